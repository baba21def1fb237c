"""The model directory: what comes back, what is refused, and what an interrupted save leaves."""

import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch

from ncvc.corpus.cleaning import Cleaner
from ncvc.model import checkpoint
from ncvc.model.checkpoint import load_model_directory, read_model_config, save_model_directory
from ncvc.model.transformer import ModelConfig, Transformer
from ncvc.morphology import build_analyzer
from ncvc.tokenizer import SMALLEST_VOCABULARY, Tokenizer, segment_text

SENTENCES = [
    "患者は58歳の男性で、胸痛を主訴に救急外来を受診した。",
    "心電図でST上昇を認め、急性心筋梗塞と診断した。",
    "アスピリンとクロピドグレルの内服を開始し、第7病日に退院した。",
    "既往歴に高血圧と2型糖尿病がある。",
]
VOCABULARY = SMALLEST_VOCABULARY + 160


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    cleaner, analyzer = Cleaner(), build_analyzer()
    segmented = [segment_text(cleaner(text), analyzer=analyzer) for text in SENTENCES * 5]
    with pytest.warns(UserWarning, match="unused"):
        trained = Tokenizer.train(segmented, vocab_size=VOCABULARY, cleaner=cleaner, analyzer=analyzer, progress=False)
    directory = tmp_path_factory.mktemp("tokenizer")
    trained.save(directory)
    return directory


def build(seed: int = 0, **changes) -> Transformer:
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 4,
        "context_length": 32,
    }
    return Transformer(ModelConfig(**{**sizes, **changes}), seed=seed)


def save(model: Transformer, directory: Path, tokenizer: Path, **training) -> None:
    save_model_directory(
        directory,
        config=model.config,
        weights=model.state_dict(),
        tokenizer=tokenizer,
        training=training,
    )


@pytest.fixture
def saved(tmp_path, tokenizer) -> Path:
    save(build(), tmp_path / "model", tokenizer, steps=3)
    return tmp_path / "model"


# --- what comes back ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changes", [{}, {"init": "wesar", "qk_norm": True, "rope_base": 5e5}], ids=str)
def test_weights_configuration_and_tokenizer_come_back_bit_for_bit(tmp_path, tokenizer, changes, dtype):
    model = build(seed=4, **changes).to(dtype)
    save(model, tmp_path / "runs" / "model", tokenizer)  # parents are made
    loaded, loaded_tokenizer = load_model_directory(tmp_path / "runs" / "model")
    assert loaded.config == model.config
    state, expected = loaded.state_dict(), model.state_dict()
    assert list(state) == list(expected)
    for name, values in expected.items():
        assert state[name].dtype == dtype and torch.equal(state[name], values), name
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())  # can be trained further
    original = Tokenizer.load(tokenizer)
    assert loaded_tokenizer.fingerprint == original.fingerprint
    ids = torch.tensor([original.encode(SENTENCES[0])[:32]])
    assert torch.equal(loaded(ids), model.eval()(ids))
    assert loaded_tokenizer.encode(SENTENCES[1]) == original.encode(SENTENCES[1])


def test_the_directory_is_complete_self_contained_and_holds_nothing_pickled(saved, tokenizer, tmp_path):
    names = {path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()}
    assert names == {
        "model.safetensors",
        "model_config.json",
        "manifest.json",
        *(f"tokenizer/{path.name}" for path in tokenizer.iterdir()),
    }
    for name in names - {"model.safetensors"}:
        json.loads((saved / name).read_text(encoding="utf-8"))
    weights = (saved / "model.safetensors").read_bytes()  # an 8-byte length, a JSON header, plain numbers
    header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
    values = sum(parameter.numel() for parameter in build().parameters())
    assert len(weights) == 8 + int.from_bytes(weights[:8], "little") + 4 * values
    assert set(header) - {"__metadata__"} == set(build().state_dict())
    moved = tmp_path / "elsewhere" / "copy"
    shutil.copytree(saved, moved)
    shutil.rmtree(saved)
    load_model_directory(moved)


def test_how_it_was_trained_is_written_readably(tmp_path, tokenizer):
    save(build(), tmp_path / "model", tokenizer, data="臨床文", tokens_seen=50_331_648_000)
    text = (tmp_path / "model" / "model_config.json").read_text(encoding="utf-8")
    assert '"data": "臨床文"' in text
    assert json.loads(text)["training"] == {"data": "臨床文", "tokens_seen": 50_331_648_000}


# --- what is refused ---


def test_a_folder_that_is_no_model_directory_is_refused_with_the_cure(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=r"not a model directory: it has no model_config\.json.*Name"):
            load_model_directory(folder)


@pytest.mark.parametrize("found", [2, None, "1"])
def test_another_format_is_refused_by_number(saved, found):
    path = saved / "model_config.json"
    record = json.loads(path.read_text(encoding="utf-8")) | {"format": found}
    path.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"model_config\.json: format {found!r} is not the format 1"):
        read_model_config(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 1, "model": {"vocab_size": 9}}'])
def test_a_broken_configuration_file_is_refused_by_name(saved, text):
    (saved / "model_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"model_config\.json"):
        read_model_config(saved)


@pytest.mark.parametrize(
    ("field", "value"), [("hidden_size", 24), ("num_layers", 3), ("num_layers", 1), ("qk_norm", True)]
)
def test_weights_of_another_shape_are_refused(saved, field, value):
    path = saved / "model_config.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record["model"][field] = value
    path.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(ValueError, match=r"model\.safetensors does not fit its model_config\.json"):
        load_model_directory(saved)


def test_missing_and_truncated_weights_are_refused_by_file_name(saved):
    weights = saved / "model.safetensors"
    whole = weights.read_bytes()
    for size in (0, 4, 100, len(whole) - 1):
        weights.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            load_model_directory(saved)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load_model_directory(saved)


def test_a_tokenizer_that_does_not_fit_is_refused_with_both_numbers(tmp_path, tokenizer):
    save(build(vocab_size=VOCABULARY + 1), tmp_path / "model", tokenizer)
    with pytest.raises(ValueError, match=rf"{VOCABULARY} ids.*vocab_size={VOCABULARY + 1} rows.*set"):
        load_model_directory(tmp_path / "model")


def test_a_changed_tokenizer_file_is_refused(saved):
    path = saved / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace("胸", "腹"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer\.json was changed"):
        load_model_directory(saved)


# --- replacing and interrupting ---


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_second_save_replaces_the_first_and_leaves_nothing_beside_it(saved, tokenizer):
    (saved / "stale.txt").write_text("of the first save", encoding="utf-8")
    save(build(seed=9), saved, tokenizer, steps=4)
    loaded, _ = load_model_directory(saved)
    assert torch.equal(loaded.head.weight, build(seed=9).head.weight)
    assert not (saved / "stale.txt").exists()
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_saving_over_itself_with_its_own_tokenizer_works(saved):
    save(build(seed=9), saved, saved / "tokenizer")
    assert torch.equal(load_model_directory(saved)[0].head.weight, build(seed=9).head.weight)


@pytest.mark.parametrize("broken", ["save_file", "fsync", "tokenizer"])
def test_an_interrupted_save_leaves_the_old_directory_and_no_half_one(saved, tokenizer, monkeypatch, broken):
    before = files(saved)

    def interrupt(*_, **__):
        raise OSError("no space left on device")

    if broken == "save_file":
        monkeypatch.setattr(checkpoint, "save_file", interrupt)
    elif broken == "fsync":
        monkeypatch.setattr(os, "fsync", interrupt)
    source = tokenizer / "missing" if broken == "tokenizer" else tokenizer
    with pytest.raises(OSError):
        save(build(seed=9), saved, source)
    assert files(saved) == before
    load_model_directory(saved)
    assert [path.name for path in saved.parent.iterdir()] == ["model"]  # gigabytes of debris otherwise


def test_until_the_new_one_is_whole_a_reader_sees_the_old_one(saved, tokenizer, monkeypatch):
    before, seen, flush = files(saved), [], os.fsync

    def watch(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            seen.append(files(saved) == before)
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    save(build(seed=9), saved, tokenizer)
    assert len(seen) >= 4 and all(seen)  # every file of the new one was flushed before the change
    assert files(saved) != before


def test_debris_of_a_killed_save_does_not_mix_into_the_next(saved, tokenizer):
    partial = saved.with_name(f".model.partial-{os.getpid()}")
    partial.mkdir()
    (partial / "debris.bin").write_bytes(b"x" * 100)
    save(build(seed=9), saved, tokenizer)
    assert not (saved / "debris.bin").exists()
    load_model_directory(saved)
