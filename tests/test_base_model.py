"""Which model a training starts from, and that one of another shape, tokenizer or content is refused by name."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from conftest import write_tiny_model
from safetensors.torch import load_file, save_file

from ncvc.chat import with_chat_tokens
from ncvc.model.base import base_weights, check_base_tokenizer, find_base, has_role_tokens, misfits, pin_base
from ncvc.model.checkpoint import load_model_directory, read_model_config, save_model_directory
from ncvc.storage import file_record, read_manifest, write_manifest
from ncvc.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def base(tiny, tmp_path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def as_run(model: Path, folder: Path, *, finished: bool = True) -> Path:
    """A run's folder as far as anybody looks at it from outside."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("name: a\n")
    (folder / "result.json").write_text(json.dumps({"finished": finished}))
    shutil.copytree(model, folder / "model")
    return folder


def with_roles(model: Path, directory: Path) -> Path:
    """The same model, tuned on chats as far as its tokenizer says."""
    tokenizer = with_chat_tokens(Tokenizer.load(model / "tokenizer"))
    tokenizer.save(directory.parent / "tokenizer-with-roles")
    config = replace(read_model_config(model), vocab_size=tokenizer.vocab_size)
    weights, _ = base_weights(model, config, seed=0)
    save_model_directory(
        directory, config=config, weights=weights, tokenizer=directory.parent / "tokenizer-with-roles", training={}
    )
    return directory


# ---- where it lies
def test_a_model_directory_and_a_run_are_found(base, tmp_path):
    assert find_base(str(base), home=tmp_path) == base
    run = as_run(base, tmp_path / "run")
    assert find_base(str(run), home=tmp_path) == run / "model"


def test_last_is_the_newest_finished_run_without_roles(base, tmp_path):
    home = tmp_path / "home"
    with pytest.raises(FileNotFoundError, match=r"base=last: .* no finished run of a base model"):
        find_base("last", home=home)
    as_run(base, home / "runs" / "a" / "2026-01-01_00-00-00")
    as_run(base, home / "runs" / "b" / "2026-01-02_00-00-00")
    as_run(base, home / "runs" / "a" / "2026-01-03_00-00-00", finished=False)
    as_run(with_roles(base, tmp_path / "chat"), home / "runs" / "sft" / "2026-01-04_00-00-00")
    assert find_base("last", home=home) == home / "runs" / "b" / "2026-01-02_00-00-00" / "model"


@pytest.mark.parametrize("made", ["nothing", "empty folder", "file"])
def test_what_is_no_model_is_refused_with_what_to_name(tmp_path, made):
    path = tmp_path / "there"
    if made == "empty folder":
        path.mkdir()
    elif made == "file":
        path.write_text("x")
    with pytest.raises(FileNotFoundError, match=r"base=.*there: .*checkpoint"):
        find_base(str(path), home=tmp_path)


# ---- whether it fits
def test_a_base_of_another_shape_or_init_is_refused_field_by_field(base):
    config = read_model_config(base)
    wrong = replace(config, num_layers=3, intermediate_size=128, init="gpt2", context_length=256, vocab_size=999)
    with pytest.raises(ValueError, match="another network") as refused:
        base_weights(base, wrong, seed=0)
    for words in (
        "model.num_layers=3, and the base has 2; set model.num_layers=2",
        "model.intermediate_size=128, and the base has 64",
        "model.init=gpt2, and the base has report",
        "model.context_length=256 is longer than the base's 128",
        f"set model.vocab_size={config.vocab_size + 3}",
    ):
        assert words in str(refused.value)
    assert "num_heads" not in str(refused.value)


def test_what_a_training_may_choose_is_no_misfit(base):
    config = read_model_config(base)
    free = replace(config, context_length=64, residual_dropout=0.1, attention_dropout=0.1, mask_documents=True)
    assert misfits(config, free, new_rows=3) == []
    for name in set(asdict(config)) - {"context_length", "vocab_size", "attention_dropout", "residual_dropout"}:
        changed = {"qk_norm": True, "init": "small", "attention_backend": "eager", "mask_documents": True}.get(name)
        other = replace(config)
        object.__setattr__(other, name, getattr(config, name) * 2 if changed is None else changed)
        assert bool(misfits(config, other, new_rows=0)) == (name not in ("mask_documents", "attention_backend")), name


def test_a_base_grows_by_the_role_tokens_and_a_tuned_one_is_taken_as_it_is(base, tmp_path):
    config = read_model_config(base)
    same, record = base_weights(base, config, seed=0)
    assert record["growth"] is None
    assert all(torch.equal(same[name], tensor) for name, tensor in load_file(base / "model.safetensors").items())
    grown, record = base_weights(base, replace(config, vocab_size=config.vocab_size + 3), seed=0)
    assert record["growth"]["ids"] == [config.vocab_size + n for n in range(3)]
    assert record["weights"] == file_record(base / "model.safetensors")["sha256"]
    chat = with_roles(base, tmp_path / "chat")
    assert has_role_tokens(chat)
    again, record = base_weights(chat, read_model_config(chat), seed=7)
    assert record["growth"] is None
    assert all(torch.equal(again[name], tensor) for name, tensor in grown.items())
    with pytest.raises(ValueError, match=rf"model\.vocab_size={config.vocab_size + 6}, and the base has"):
        base_weights(chat, replace(config, vocab_size=config.vocab_size + 6), seed=0)
    model, tokenizer = load_model_directory(chat)
    assert model.config.vocab_size == tokenizer.vocab_size == config.vocab_size + 3


def test_another_tokenizer_than_the_bases_is_refused_and_its_own_or_grown_one_taken(base):
    own = Tokenizer.load(base / "tokenizer")
    check_base_tokenizer(base, own)
    check_base_tokenizer(base, with_chat_tokens(own))
    with pytest.raises(ValueError, match=r"trained with another tokenizer.*set|Set tokenizer\.directory"):
        check_base_tokenizer(base, own.with_added_tokens(["<|other|>"]))


def rewritten(directory: Path, weights: dict[str, torch.Tensor]) -> None:
    """Other weights in a model directory, under a manifest of their own."""
    save_file(weights, directory / "model.safetensors")
    manifest = read_manifest(directory, manifest_format="ncvc-model", version=1)
    manifest["files"] = {"model.safetensors": file_record(directory / "model.safetensors")}
    write_manifest(directory, manifest)


def test_whole_numbers_are_no_weights_to_train(base):
    weights = load_file(base / "model.safetensors")
    rewritten(base, {**weights, "head.weight": (weights["head.weight"] * 100).to(torch.int8)})
    with pytest.raises(ValueError, match="made for running, not for training"):
        base_weights(base, read_model_config(base), seed=0)


def test_weights_of_half_precision_are_trained_in_full(base):
    rewritten(base, {name: value.bfloat16() for name, value in load_file(base / "model.safetensors").items()})
    weights, _ = base_weights(base, read_model_config(base), seed=0)
    assert {value.dtype for value in weights.values()} == {torch.float32}


# ---- the same one when a run is taken up again
def test_a_run_keeps_its_base_though_last_means_another_by_now(base, tmp_path):
    home, run = tmp_path / "home", tmp_path / "run"
    first = as_run(base, home / "runs" / "a" / "2026-01-01_00-00-00")
    pinned = pin_base("last", home=home, run=run, resumed=False, first_rank=True)
    assert pinned == first / "model"
    as_run(base, home / "runs" / "a" / "2026-01-02_00-00-00")
    assert pin_base("last", home=home, run=run, resumed=True, first_rank=True) == pinned
    assert pin_base("last", home=home, run=run, resumed=False, first_rank=False) == pinned  # a further rank
    assert pin_base("last", home=home, run=tmp_path / "new", resumed=False, first_rank=True) != pinned


def test_other_weights_in_the_place_of_a_runs_base_are_refused_by_name(base, tmp_path):
    pin_base(str(base), home=tmp_path, run=tmp_path / "run", resumed=False, first_rank=True)
    rewritten(base, {name: value * 2 for name, value in load_file(base / "model.safetensors").items()})
    with pytest.raises(ValueError, match="are not those that this run started from"):
        pin_base(str(base), home=tmp_path, run=tmp_path / "run", resumed=True, first_rank=True)


def test_a_base_that_was_moved_is_asked_for_and_taken_where_it_lies_now(base, tmp_path):
    run, moved = tmp_path / "run", tmp_path / "elsewhere"
    pin_base(str(base), home=tmp_path, run=run, resumed=False, first_rank=True)
    base.rename(moved)
    with pytest.raises(FileNotFoundError, match=r"no longer there.*set base=FOLDER"):
        pin_base(str(base), home=tmp_path, run=run, resumed=True, first_rank=True)
    assert pin_base(str(moved), home=tmp_path, run=run, resumed=True, first_rank=True) == moved
    assert pin_base("last", home=tmp_path, run=run, resumed=True, first_rank=True) == moved


def test_a_flipped_bit_in_the_weights_of_a_base_is_found_before_training(base, tmp_path):
    path = base / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="was altered after it was written"):
        pin_base(str(base), home=tmp_path, run=tmp_path / "run", resumed=False, first_rank=True)


@pytest.mark.parametrize("content", ["", "[]", '{"path": "/a"}', "{"])
def test_a_torn_record_of_the_base_is_told_by_name(base, tmp_path, content):
    run = tmp_path / "run"
    pin_base(str(base), home=tmp_path, run=run, resumed=False, first_rank=True)
    (run / "base.json").write_text(content)
    with pytest.raises(ValueError, match=r"base\.json does not say which model"):
        pin_base(str(base), home=tmp_path, run=run, resumed=True, first_rank=True)
