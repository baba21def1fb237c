"""Exported directories compute what ours compute, without ncvc; and they come back."""

import errno
import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TINY_SHAPE
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_export_tokenizer import code_of, trained

from ncvc.chat import Message, with_chat_tokens
from ncvc.model import huggingface, huggingface_weights
from ncvc.model.agreement import GREEDY_TOKENS, Figures, compare_figures
from ncvc.model.assistant import Assistant
from ncvc.model.checkpoint import load_model_directory, save_model_directory
from ncvc.model.generation import Sampling
from ncvc.model.huggingface import export_huggingface, import_huggingface
from ncvc.model.huggingface_weights import check_form, folded, unfolded_table
from ncvc.model.transformer import ModelConfig, Transformer
from ncvc.tokenizer import FIRST_BYTE_ID, FIRST_PIECE_ID, Tokenizer


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> dict[str, Path]:
    base, folder = trained(), tmp_path_factory.mktemp("tokenizers")
    for name, tokenizer in (("base", base), ("chat", with_chat_tokens(base))):
        tokenizer.save(folder / name)
    return {name: folder / name for name in ("base", "chat")}


def make(folder: Path, tokenizer: Path, **changes) -> Path:
    """A model directory whose weights are shaken, so that norms, factors and logits are nothing special."""
    shape = {"vocab_size": Tokenizer.load(tokenizer).vocab_size, "context_length": 64, **TINY_SHAPE, **changes}
    network = Transformer(ModelConfig(**shape), seed=5)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "gate" not in name:
                scale = 0.02 if parameter.dim() == 2 else 0.1
                parameter += scale * torch.randn(parameter.shape, generator=generator)
    training = {"steps": 3, "tokens_seen": 1_536, "data_fingerprint": "f" * 64, "seed": 5}
    save_model_directory(
        folder, config=network.config, weights=network.state_dict(), tokenizer=tokenizer, training=training
    )
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizers) -> Path:
    return make(tmp_path_factory.mktemp("model") / "model", tokenizers["chat"])


@pytest.fixture(scope="module")
def exported(tmp_path_factory, model) -> Path:
    export_huggingface(model, output=tmp_path_factory.mktemp("exported") / "arcee")
    return next(tmp_path_factory.getbasetemp().glob("exported*/arcee"))


@pytest.fixture
def copy(tmp_path, exported) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def theirs(directory: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def contents(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


# --- the same network ---

SLOW = pytest.mark.slow
CASES = {
    "arcee": ("arcee", {}),
    "llama": ("llama", {"rope_base": 5e5, "norm_epsilon": 1e-2, "head_dim": 16}),
    "apertus": ("apertus", {"qk_norm": True, "init": "gpt2"}),
    "gates": ("arcee", {"init": "wesar"}),
}


@pytest.mark.parametrize("case", [name if name == "arcee" else pytest.param(name, marks=SLOW) for name in CASES])
def test_transformers_computes_our_logits_and_our_greedy_tokens(tmp_path, tokenizers, case):
    form, changes = CASES[case]
    source = make(tmp_path / "model", tokenizers["chat"], **changes)
    facts = export_huggingface(source, output=tmp_path / "out", form=form)
    ours, their = load_model_directory(source)[0], theirs(tmp_path / "out")
    assert type(their).__name__ == facts["architecture"] == f"{form.capitalize()}ForCausalLM"
    ids = torch.randint(ours.config.vocab_size, (3, 64), generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        difference = (ours(ids) - their(ids).logits).abs().max().item()
    assert difference <= facts["bound"] <= 2e-4 * facts["largest_logit"]  # and so more than what MISTAKES do below
    assert facts["max_difference"] <= facts["bound"]
    if case == "arcee":
        assert difference == facts["max_difference"] == 0.0
    assert facts["prompts"] == 4 and facts["greedy_tokens"] == 4 * GREEDY_TOKENS and not facts["ties"]
    extra = facts["constants"] if form == "llama" else 0
    gates = 6 * 2 + 2 if case == "gates" else 0
    assert sum(p.numel() for p in their.parameters()) == ours.config.num_parameters + extra - gates


@pytest.mark.slow
def test_bfloat16_weights_are_ours_rounded(tmp_path, model):
    facts = export_huggingface(model, output=tmp_path / "out", dtype="bfloat16")
    weights, network = load_file(tmp_path / "out" / "model.safetensors"), load_model_directory(model)[0]
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    table = (network.embedding.weight * network.config.hidden_size**0.5).to(torch.bfloat16)
    assert torch.equal(weights["model.embed_tokens.weight"], table)
    assert torch.equal(weights["lm_head.weight"], network.head.weight.to(torch.bfloat16))
    assert facts["max_difference"] <= facts["bound"] < facts["rounding"]
    assert facts["bytes"] == 2 * network.config.num_parameters


@pytest.mark.slow
def test_several_shards_load_as_one(tmp_path, model, exported, monkeypatch):
    monkeypatch.setattr(huggingface_weights, "SHARD_BYTES", 30_000)
    export_huggingface(model, output=tmp_path / "out")
    shards = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 2 and shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    whole = load_file(exported / "model.safetensors")
    together = {name: value for shard in shards for name, value in load_file(tmp_path / "out" / shard).items()}
    assert set(together) == set(whole) and all(torch.equal(together[name], whole[name]) for name in whole)
    import_huggingface(tmp_path / "out", output=tmp_path / "back")
    assert torch.equal(load_model_directory(tmp_path / "back")[0].head.weight, whole["lm_head.weight"])


@pytest.mark.slow
def test_an_export_is_complete_says_its_hashes_and_is_the_same_each_time(tmp_path, model, exported):
    export_huggingface(model, output=tmp_path / "arcee")
    assert contents(tmp_path / "arcee") == contents(exported)
    names = set(contents(exported))
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    assert not [name for name in names if name.endswith((".py", ".bin", ".pkl", ".lock"))]
    told = dict(reversed(line.split("  ")) for line in (exported / "SHA256SUMS").read_text().splitlines())
    assert set(told) == names - {"SHA256SUMS"}
    assert all(hashlib.sha256(contents(exported)[name]).hexdigest() == digest for name, digest in told.items())
    config = json.loads((exported / "config.json").read_text())
    assert "auto_map" not in config and config["max_position_embeddings"] == 64 and config["pad_token_id"] is None


def test_the_card_says_what_it_is_how_it_was_trained_and_what_it_is_not(exported):
    card = (exported / "README.md").read_text(encoding="utf-8")
    network = theirs(exported)
    for text in ("Not a medical device", "1,536", "f" * 64, f"{sum(p.numel() for p in network.parameters()):,}"):
        assert text in card
    assert "vLLM | llama" in card


# --- refusing to finish ---

MISTAKES = {
    "rms_norm_eps": 1e-2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 9_000.0},
    "hidden_act": "gelu",
    "num_key_value_heads": 4,
}


@pytest.mark.parametrize(
    "field", [name if name == "rope_parameters" else pytest.param(name, marks=SLOW) for name in MISTAKES]
)
def test_a_directory_that_computes_something_else_is_not_finished(tmp_path, model, monkeypatch, field):
    right = huggingface.configuration
    wrong = {field: MISTAKES[field], **({"rope_theta": 9_000.0} if field == "rope_parameters" else {})}
    monkeypatch.setattr(huggingface, "configuration", lambda *args, **named: right(*args, **named) | wrong)
    with pytest.raises((ValueError, RuntimeError), match=r"not the same network|size mismatch|mismatch|does not find"):
        export_huggingface(model, output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_swapped_weights_are_noticed(tmp_path, model, monkeypatch):
    right = huggingface.exported_tensors

    def swapped(network, *, form):
        tensors = dict(right(network, form=form))
        first, second = "model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.v_proj.weight"
        tensors[first], tensors[second] = tensors[second], tensors[first]
        return iter(tensors.items())

    monkeypatch.setattr(huggingface, "exported_tensors", swapped)
    with pytest.raises(ValueError, match=r"logits differ by up to .* nothing is written"):
        export_huggingface(model, output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def figures(logits, tokens, leads=()) -> Figures:
    return Figures(logits=[torch.tensor(logits)], tokens=tokens, leads=list(leads))


def test_another_greedy_token_passes_only_as_a_tie():
    ours = replace(figures([[1.0, 2.0]], [[5, 6, 7]], [[1.0, 1e-5, 1.0]]), sensitivity=1e-6)
    assert compare_figures(ours, ours, what="x")["greedy_tokens"] == 3
    tie = compare_figures(ours, figures([[1.0, 2.0]], [[5, 9, 1]]), what="x")
    assert (tie["ties"], tie["greedy_tokens"]) == (1, 1)
    for tokens in ([[5, 6, 8]], [[4, 6, 7]], [[5, 6]], [[5, 6, 7, 8]]):
        with pytest.raises(ValueError, match=r"x: greedy token \d after prompt 1 is another"):
            compare_figures(ours, figures([[1.0, 2.0]], tokens), what="x")
    assert compare_figures(ours, figures([[1.0, 2.00001]], [[5, 6, 7]]), what="x")["bound"] == 16e-6
    for value in (2.00002, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="x: the logits differ"):
            compare_figures(ours, figures([[1.0, value]], [[5, 6, 7]]), what="x")


def test_weights_that_are_not_numbers_are_refused(tmp_path, model):
    network, _ = load_model_directory(model)
    network.head.weight.data[3, 3] = torch.nan
    source = tmp_path / "model"
    save_model_directory(
        source, config=network.config, weights=network.state_dict(), tokenizer=model / "tokenizer", training={}
    )
    with pytest.raises(ValueError, match=r"not the same network|not finite"):
        export_huggingface(source, output=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("changes", "form", "said"),
    [
        ({"qk_norm": True}, "arcee", "set form=apertus"),
        ({"qk_norm": True}, "llama", "set form=apertus"),
        ({}, "apertus", "set form=arcee"),
        ({"hidden_size": 34}, "arcee", "hidden_size=34 .*num_heads=4"),
        ({}, "gpt2", "form='gpt2' is not one of arcee"),
    ],
)
def test_a_form_without_place_for_the_network_is_refused_by_name(changes, form, said):
    with pytest.raises(ValueError, match=said):
        check_form(ModelConfig(vocab_size=50, context_length=8, **{**TINY_SHAPE, **changes}), form=form)


def test_a_full_disk_leaves_the_older_export_and_no_part(tmp_path, model, copy, monkeypatch):
    before = contents(copy)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_weights, "save_file", full)
    with pytest.raises(OSError, match="bytes free on that disk"):
        export_huggingface(model, output=copy)
    assert contents(copy) == before and [path.name for path in tmp_path.iterdir()] == ["copy"]


@pytest.mark.slow
def test_an_older_export_is_replaced_and_anything_else_is_not(tmp_path, model, copy, exported):
    (copy / "stale.txt").write_text("old")
    export_huggingface(model, output=copy)
    assert set(contents(copy)) == set(contents(exported))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "notes", tmp_path / "file", model):
        with pytest.raises(FileExistsError, match="will not be replaced"):
            export_huggingface(model, output=output)
    assert (tmp_path / "notes" / "mine.txt").read_text() == "mine"


def test_a_damaged_model_directory_is_refused(tmp_path, model):
    source = Path(shutil.copytree(model, tmp_path / "model"))
    whole = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated"):
        export_huggingface(source, output=tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="not a model directory"):
        export_huggingface(tmp_path / "nowhere", output=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# --- back ---


@pytest.mark.slow
@pytest.mark.parametrize("case", ["arcee", "llama", "apertus"])
def test_the_way_back_gives_our_weights_and_bitwise_our_logits(tmp_path, tokenizers, case):
    form, changes = CASES[case]
    source = make(tmp_path / "model", tokenizers["chat"], **changes)
    export_huggingface(source, output=tmp_path / "out", form=form)
    import_huggingface(tmp_path / "out", output=tmp_path / "back")
    (first, tokenizer), (second, again) = load_model_directory(source), load_model_directory(tmp_path / "back")
    assert first.config == second.config and tokenizer.fingerprint == again.fingerprint
    for name, tensor in second.state_dict().items():
        before = first.state_dict()[name]
        if name == "embedding.weight":  # sqrt(32) is no power of two: the last bit may differ
            assert ((tensor - before).abs() <= before.abs() * 2.0**-23).all()
        else:
            assert torch.equal(tensor, before), name
    ids = torch.arange(64)[None] * 31 % first.config.vocab_size
    with torch.no_grad():
        assert torch.equal(first(ids), second(ids))


@pytest.mark.slow
def test_where_the_factor_is_a_power_of_two_the_way_back_is_bitwise(tmp_path, tokenizers):
    source = make(tmp_path / "model", tokenizers["base"], hidden_size=64)
    export_huggingface(source, output=tmp_path / "out")
    import_huggingface(tmp_path / "out", output=tmp_path / "back")
    first, second = (load_model_directory(folder)[0].state_dict() for folder in (source, tmp_path / "back"))
    assert all(torch.equal(first[name], second[name]) for name in first)


VALUES = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**60), max_value=2.0**60)


@given(values=st.lists(VALUES, min_size=1, max_size=50), size=st.integers(1, 5_000))
def test_a_folded_table_has_a_table_that_gives_it_back(values, size):
    table, factor = torch.tensor(values), size**0.5
    back = unfolded_table(table * factor, factor)
    assert back is not None and torch.equal(back * factor, table * factor)
    normal = table.abs() > 2.0**-100
    assert ((back - table).abs()[normal] <= table.abs()[normal] * 2.0**-23).all()


@pytest.mark.slow
def test_a_table_that_no_product_gives_is_kept_folded(tmp_path, model):
    export_huggingface(model, output=tmp_path / "out", dtype="bfloat16")
    facts = import_huggingface(tmp_path / "out", output=tmp_path / "back")
    assert facts["init"] == "no_embedding_scale" and "inside" in facts["embedding"]
    back, their = load_model_directory(tmp_path / "back")[0], theirs(tmp_path / "out")
    ids = torch.arange(64)[None] * 31 % back.config.vocab_size
    with torch.no_grad():
        assert torch.equal(back(ids), their(ids).logits)


@pytest.mark.slow
def test_gates_come_back_multiplied_in(tmp_path, tokenizers):
    source = make(tmp_path / "model", tokenizers["base"], init="wesar")
    export_huggingface(source, output=tmp_path / "out")
    assert import_huggingface(tmp_path / "out", output=tmp_path / "back")["init"] == "report"
    back, plain = load_model_directory(tmp_path / "back")[0], folded(load_model_directory(source)[0])
    assert torch.equal(back.layers[1].mlp.down.weight, plain.layers[1].mlp.down.weight)


def test_weights_trained_elsewhere_come_back(tmp_path, copy):
    their = theirs(copy)
    with torch.no_grad():
        for parameter in their.parameters():
            parameter *= 1.01
    their.save_pretrained(tmp_path / "tuned")
    with pytest.raises(FileNotFoundError, match=r"no manifest\.json"):
        import_huggingface(tmp_path / "tuned", output=tmp_path / "back")
    shutil.copy(copy / "manifest.json", tmp_path / "tuned")
    shutil.copytree(copy / "ncvc_tokenizer", tmp_path / "tuned" / "ncvc_tokenizer")
    import_huggingface(tmp_path / "tuned", output=tmp_path / "back")
    ids = torch.arange(64)[None] * 31 % their.config.vocab_size
    with torch.no_grad():
        assert torch.equal(load_model_directory(tmp_path / "back")[0](ids), their(ids).logits)


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def rewrite(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


NORM = "model.norm.weight"
DAMAGE = {
    "missing weights": (lambda d: (d / "model.safetensors").unlink(), r"model\.safetensors is missing"),
    "torn weights": (lambda d: shorten(d / "model.safetensors"), r"no whole safetensors file"),
    "one tensor less": (
        lambda d: rewrite(d / "model.safetensors", lambda t: t.pop(NORM)),
        r"lacks 1 tensor\(s\): model\.norm\.weight",
    ),
    "one too many": (
        lambda d: rewrite(d / "model.safetensors", lambda t: t.update(extra=torch.ones(1))),
        r"holds extra, which this network has no place for",
    ),
    "another shape": (
        lambda d: rewrite(d / "model.safetensors", lambda t: t.update({NORM: torch.ones(9)})),
        r"model\.norm\.weight is torch\.float32 \[9\]",
    ),
    "another configuration": (lambda d: edit(d / "config.json", rms_norm_eps=1e-5), r"rms_norm_eps is 1e-05"),
    "no configuration": (lambda d: (d / "config.json").unlink(), r"config\.json is missing"),
    "broken configuration": (lambda d: (d / "config.json").write_text("[1"), r"config\.json is no configuration"),
    "broken index": (lambda d: (d / "model.safetensors.index.json").write_text("{}"), r"is no index of weights"),
    "index that leads out": (
        lambda d: (d / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}'),
        r"is missing",
    ),
    "another form": (lambda d: edit(d / "manifest.json", form="gpt2"), r"form='gpt2' is not one of"),
    "another format": (lambda d: edit(d / "manifest.json", format="other"), r"format 'other'"),
    "no model": (lambda d: edit(d / "manifest.json", model={}), r"missing model field"),
    "no tokenizer": (lambda d: shutil.rmtree(d / "ncvc_tokenizer"), r"ncvc_tokenizer"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused_by_name_with_and_without_the_hashes(tmp_path, copy, damage):
    harm, said = DAMAGE[damage]
    harm(copy)
    listed = damage not in ("broken index", "index that leads out")  # files that the export did not have
    if listed:
        with pytest.raises((ValueError, OSError), match=r"altered|is missing|manifest"):
            import_huggingface(copy, output=tmp_path / "back")
    (copy / "SHA256SUMS").unlink()
    with pytest.raises((ValueError, OSError), match=said):
        import_huggingface(copy, output=tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_tokenizer_of_another_size_is_refused(tmp_path, copy, tokenizers):
    (copy / "SHA256SUMS").unlink()
    shutil.rmtree(copy / "ncvc_tokenizer")
    shutil.copytree(tokenizers["base"], copy / "ncvc_tokenizer")
    with pytest.raises(ValueError, match=r"tokenizer has \d+ ids and the model has"):
        import_huggingface(copy, output=tmp_path / "back")


def test_hashes_that_lead_out_of_the_folder_are_refused(tmp_path, copy):
    (copy / "SHA256SUMS").write_text(f"{'0' * 64}  ../elsewhere\n")
    with pytest.raises(ValueError, match="line 1"):
        import_huggingface(copy, output=tmp_path / "back")


@pytest.mark.slow
def test_a_llama_form_that_was_trained_as_a_gated_mlp_is_refused(tmp_path, model):
    export_huggingface(model, output=tmp_path / "out", form="llama")
    (tmp_path / "out" / "SHA256SUMS").unlink()
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(tmp_path / "out" / "model.safetensors", lambda tensors: tensors[name][0, 0].add_(0.5))
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj\.weight is no longer constant"):
        import_huggingface(tmp_path / "out", output=tmp_path / "back")


# --- the six lines ---


def our_answer(model: Path) -> str:
    assistant = Assistant.load(model, device="cpu")
    prompt = [0, *assistant.tokenizer.encode("肺炎とは")]
    if assistant.can_chat:
        prompt = assistant.chat_prompt([Message("user", "肺炎とは何ですか。")], max_new_tokens=40)
    room = min(64, assistant.context_length - len(prompt))
    return assistant.generate([prompt], sampling=Sampling(max_new_tokens=room))[0].text


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["base", "chat"])
def test_the_cards_six_lines_give_our_text_without_ncvc(tmp_path, tokenizers, kind):
    source = make(tmp_path / "model", tokenizers[kind], context_length=256)
    network, _ = load_model_directory(source)
    with torch.no_grad():  # logit 0, never the largest: broken characters are written otherwise by the packages
        network.head.weight[FIRST_BYTE_ID:FIRST_PIECE_ID] = 0.0
    save_model_directory(
        source, config=network.config, weights=network.state_dict(), tokenizer=tokenizers[kind], training={}
    )
    export_huggingface(source, output=tmp_path / "shared")
    _, plain, script = code_of((tmp_path / "shared" / "README.md").read_text(encoding="utf-8"))
    assert len(script.splitlines()) == (6 if kind == "chat" else 5)
    hidden = "import sys\nsys.modules['ncvc'] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", hidden + plain + script], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == our_answer(source) + "\n"


def test_the_way_back_of_the_fixture_gives_bitwise_our_logits(tmp_path, model, exported):
    assert import_huggingface(exported, output=tmp_path / "back")["init"] == "report"
    first, second = load_model_directory(model)[0], load_model_directory(tmp_path / "back")[0]
    ids = torch.arange(64)[None] * 31 % first.config.vocab_size
    with torch.no_grad():
        assert torch.equal(first(ids), second(ids))
