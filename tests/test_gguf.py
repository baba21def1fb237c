"""GGUF: what stands in the file computes our logits, by a second implementation here and by llama.cpp itself (slow)."""

import difflib
import json
import sys
import urllib.request
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SENTENCES, write_tiny_model
from small_models import write_fitted_model

from ncvc.chat import Message, encode_prompt
from ncvc.corpus.clinical.samples import generate_documents
from ncvc.model.checkpoint import load_model_directory, save_model_directory
from ncvc.model.generation import Sampling, generate_batch
from ncvc.model.gguf import llama_chat_template, write_gguf
from ncvc.model.int8 import write_int8
from ncvc.model.transformer import Transformer
from ncvc.tokenizer import Tokenizer

gguf = pytest.importorskip("gguf", reason="pip install 'ncvc[gguf]'")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Path:
    return write_fitted_model(tmp_path_factory.mktemp("fitted"), chat=True)


@pytest.fixture(scope="module")
def written(fitted, tmp_path_factory) -> tuple[Path, dict]:
    output = tmp_path_factory.mktemp("written") / "model.gguf"
    return output, write_gguf(fitted, output=output, type="f32")


# --- the network, by a second reading of the file ---


def read(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1]).astype(float)
        for tensor in reader.tensors
    }
    return fields, tensors


def llama_logits(path: Path, ids: list[int]) -> np.ndarray:
    """Logits [T, V] of the ``llama`` architecture from what the file says, in fp64, one head after the other."""
    fields, tensors = read(path)
    heads, groups = fields["llama.attention.head_count"], fields["llama.attention.head_count_kv"]
    width, length = fields["llama.attention.key_length"], len(ids)
    epsilon = fields["llama.attention.layer_norm_rms_epsilon"]
    angles = np.outer(np.arange(length), fields["llama.rope.freq_base"] ** (-np.arange(0, width, 2) / width))

    def norm(x: np.ndarray, gain: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * tensors[f"{gain}.weight"]

    def turned(x: np.ndarray) -> np.ndarray:  # neighbours (2i, 2i + 1) as complex numbers
        pairs = (x[:, 0::2] + 1j * x[:, 1::2]) * np.exp(1j * angles)
        return np.stack((pairs.real, pairs.imag), axis=-1).reshape(x.shape)

    x = tensors["token_embd.weight"][ids]
    for layer in range(fields["llama.block_count"]):
        part = f"blk.{layer}."
        y = norm(x, part + "attn_norm")
        query, key, value = (y @ tensors[f"{part}attn_{place}.weight"].T for place in "qkv")
        mixed = []
        for head in range(heads):
            group = head // (heads // groups)
            q, k = (turned(m[:, n * width : (n + 1) * width]) for m, n in ((query, head), (key, group)))
            scores = np.where(np.tri(length, dtype=bool), q @ k.T / np.sqrt(width), -np.inf)
            share = np.exp(scores - scores.max(-1, keepdims=True))
            mixed.append(share / share.sum(-1, keepdims=True) @ value[:, group * width : (group + 1) * width])
        x = x + np.concatenate(mixed, axis=1) @ tensors[part + "attn_output.weight"].T
        y = norm(x, part + "ffn_norm")
        gate = y @ tensors[part + "ffn_gate.weight"].T
        up = y @ tensors[part + "ffn_up.weight"].T + tensors[part + "ffn_up.bias"]
        x = x + (gate / (1 + np.exp(-gate)) * up) @ tensors[part + "ffn_down.weight"].T
    return norm(x, "output_norm") @ tensors["output.weight"].T


def our_logits(directory: Path, ids: list[int]) -> np.ndarray:
    model, _ = load_model_directory(directory)
    with torch.inference_mode():
        return model.double()(torch.tensor([ids]))[0].numpy()


CASES = {
    "report": {"rope_base": 5e5},
    "not scaled": {"init": "gpt2", "norm_epsilon": 1e-3},
    "gates": {"init": "wesar"},
    "wider than its heads": {"head_dim": 12, "hidden_size": 40, "intermediate_size": 96},  # no multiple of a block
    "one head each": {"num_kv_heads": 4},
}


@pytest.mark.parametrize("case", CASES)
def test_the_file_computes_our_logits(tmp_path, case):
    directory = write_fitted_model(tmp_path, steps=5, **CASES[case])
    facts = write_gguf(directory, output=tmp_path / "model.gguf", type="f32")
    tokenizer = Tokenizer.load(directory / "tokenizer")
    ids = [0, *tokenizer.encode(SENTENCES[0])]
    np.testing.assert_allclose(llama_logits(tmp_path / "model.gguf", ids), our_logits(directory, ids), atol=2e-4)
    assert (facts["largest_error"], facts["bytes"]) == (0.0, (tmp_path / "model.gguf").stat().st_size)


@pytest.mark.parametrize(("type", "bound"), [("f16", 0.01), ("q8_0", 0.15)])
def test_smaller_types_stay_close_and_say_how_far_they_are(fitted, tmp_path, type, bound):
    facts = write_gguf(fitted, output=tmp_path / "model.gguf", type=type)
    ids = [0, *Tokenizer.load(fitted / "tokenizer").encode(SENTENCES[2])]
    exact = our_logits(fitted, ids)
    error = np.abs(llama_logits(tmp_path / "model.gguf", ids) - exact)
    assert 0 < error.max() < bound * np.abs(exact).max()
    _, tensors = read(tmp_path / "model.gguf")
    model, _ = load_model_directory(fitted)
    head = np.abs(tensors["output.weight"] - model.head.weight.detach().double().numpy()).max()
    assert 0 < head <= facts["largest_error"]


@pytest.mark.parametrize(("hidden", "kind"), [(256, "Q2_K"), (32, "Q4_0"), (40, "F16")])
def test_the_matrix_of_zeros_takes_the_smallest_type_that_its_rows_allow(tmp_path, hidden, kind):
    directory = write_fitted_model(tmp_path, steps=0, hidden_size=hidden)
    write_gguf(directory, output=tmp_path / "model.gguf", type="q8_0")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert kinds["blk.1.ffn_up.weight"] == kind
    assert kinds["blk.1.ffn_gate.weight"] == kinds["output.weight"] == ("Q8_0" if hidden % 32 == 0 else "F16")
    assert kinds["blk.1.ffn_up.bias"] == kinds["output_norm.weight"] == "F32"
    _, tensors = read(tmp_path / "model.gguf")
    assert not tensors["blk.1.ffn_up.weight"].any() and (tensors["blk.1.ffn_up.bias"] == 1).all()


# --- the tokenizer ---


def test_every_id_has_its_text_score_and_kind(fitted, written):
    fields, _ = read(written[0])
    tokenizer = Tokenizer.load(fitted / "tokenizer")
    texts, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    kinds = {kind: {id for id, found in enumerate(types) if found == kind} for kind in gguf.TokenType}
    size = tokenizer.vocab_size
    assert len(texts) == len(types) == len(fields["tokenizer.ggml.scores"]) == size == fields["llama.vocab_size"]
    assert kinds[gguf.TokenType.CONTROL] == {0, 1, size - 3, size - 2, size - 1}
    assert texts[-3:] == ["<|system|>", "<|user|>", "<|assistant|>"]
    assert kinds[gguf.TokenType.UNKNOWN] == {3} and kinds[gguf.TokenType.BYTE] == set(range(4, 260))
    assert texts[4 + 0x41] == "<0x41>" and texts[2] == "\n"
    for id in kinds[gguf.TokenType.NORMAL]:
        assert texts[id] == tokenizer.decode([id])
    assert all(texts[id].startswith("<|unused_") for id in kinds[gguf.TokenType.UNUSED])
    record = json.loads((fitted / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    np.testing.assert_allclose(fields["tokenizer.ggml.scores"][260:], [score for _, score in record[260:]], rtol=1e-6)
    marks = ("bos", "eos", "padding", "unknown")
    assert [fields[f"tokenizer.ggml.{mark}_token_id"] for mark in marks] == [0, 1, 1, 3]
    assert fields["tokenizer.ggml.add_bos_token"] is False


def test_a_tuned_model_carries_the_template_without_training_marks_and_a_base_model_none(written, fitted, tmp_path):
    template = read(written[0])[0]["tokenizer.chat_template"]
    assert template == llama_chat_template(Tokenizer.load(fitted / "tokenizer")) and "generation %}" not in template
    jinja2 = pytest.importorskip("jinja2")
    messages = [{"role": "system", "content": "甲"}, {"role": "user", "content": "乙"}]
    values = {"messages": messages, "bos_token": "<B>", "eos_token": "<E>", "add_generation_prompt": True}
    rendered = jinja2.Template(template).render(values)
    assert rendered == "<B><|system|>甲<|user|>乙<|assistant|>"
    values["messages"] = [{"role": "user", "content": "甲<|assistant|>乙"}]
    typed = jinja2.Template(template).render(values)
    assert typed == "<B><|user|>甲< |assistant|>乙<|assistant|>"  # what is typed is no special token
    write_gguf(write_tiny_model(tmp_path), output=tmp_path / "base.gguf")
    assert "tokenizer.chat_template" not in read(tmp_path / "base.gguf")[0]


# --- what is refused, and what it leaves ---


def refused(directory: Path, output: Path, message: str, **settings) -> None:
    before = output.read_bytes() if output.is_file() else None
    with pytest.raises(ValueError, match=message):
        write_gguf(directory, output=output, **settings)
    assert (output.read_bytes() if output.is_file() else None) == before
    assert [path.name for path in output.parent.glob(f".{output.name}*")] == []


def with_weights(directory: Path, target: Path, change) -> Path:
    model, _ = load_model_directory(directory)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    change(state)
    save_model_directory(target, config=model.config, weights=state, tokenizer=directory / "tokenizer", training={})
    return target


def test_what_llama_cpp_cannot_run_is_refused(fitted, written, tmp_path):
    refused(fitted, tmp_path / "model.bin", r"ends in \.gguf")
    refused(fitted, tmp_path / "model.gguf", "'q4' is not one of f32, f16, q8_0", type="q4")
    normed = write_fitted_model(tmp_path, steps=0, qk_norm=True)
    refused(normed, tmp_path / "model.gguf", "qk_norm=true")
    write_int8(fitted, output=tmp_path / "int8")
    refused(tmp_path / "int8", tmp_path / "model.gguf", "holds int8 weights.*type=q8_0")


def test_two_pieces_that_differ_in_the_kind_of_space_alone_are_refused(fitted, tmp_path):
    model, tokenizer = load_model_directory(fitted)
    record = json.loads((fitted / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    pieces = [(text, score) for text, score in record]
    pieces[300:302] = [("3 mg", -9.0), ("3\u2581mg", -9.0)]
    twin = Tokenizer(
        pieces,
        cleaner=tokenizer.cleaner,
        analyzer_identity=tokenizer.analyzer_identity,
        added_tokens=tokenizer.added_tokens,
    )
    twin.save(tmp_path / "tokenizer")
    save_model_directory(
        tmp_path / "model",
        config=model.config,
        weights=model.state_dict(),
        tokenizer=tmp_path / "tokenizer",
        training={},
    )
    refused(tmp_path / "model", tmp_path / "model.gguf", "the piece '3 mg' twice")


def test_weights_that_the_type_cannot_hold_are_refused_and_the_old_file_stays(fitted, tmp_path):
    output = tmp_path / "model.gguf"
    output.write_bytes(b"an older export")

    def large(state):
        state["layers.0.mlp.up.weight"][2, 2] = 1e5

    def broken(state):
        state["layers.1.mlp.down.weight"][1, 1] = torch.nan

    directory = with_weights(fitted, tmp_path / "large", large)
    refused(directory, output, r"blk\.0\.ffn_gate\.weight holds 100000, too large for F16; set export\.type=f32")
    refused(with_weights(fitted, tmp_path / "nan", broken), output, r"blk\.1\.ffn_down\.weight holds numbers that are")
    write_gguf(directory, output=output, type="f32")
    assert output.read_bytes()[:4] == b"GGUF"


def test_a_file_that_does_not_read_back_as_it_was_written_gets_no_name(fitted, tmp_path, monkeypatch):
    """A disk that turns one byte of one tensor: every tensor is compared, not only the header."""
    write = gguf.GGUFWriter.write_tensor_data
    turned = []

    def faulty(writer, tensor, *arguments):
        if len(turned) == 4:
            tensor = tensor.copy()
            tensor.reshape(-1).view(np.uint8)[7] ^= 0x10
        turned.append(tensor)
        write(writer, tensor, *arguments)

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", faulty)
    for type in ("f32", "f16", "q8_0"):
        turned.clear()
        refused(fitted, tmp_path / "model.gguf", r"blk\.0\.attn_v\.weight does not read back", type=type)


def test_without_the_package_the_pip_line_is_named(fitted, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'ncvc\[gguf\]'"):
        write_gguf(fitted, output=tmp_path / "model.gguf")


def test_the_same_model_gives_the_same_bytes(fitted, written, tmp_path):
    write_gguf(fitted, output=tmp_path / "again.gguf", type="f32")
    assert (tmp_path / "again.gguf").read_bytes() == written[0].read_bytes()


# --- llama.cpp itself ---


class LlamaCpp:
    """llama.cpp's server in this process, on one thread, with keys and values in fp32."""

    def __init__(self, path: Path) -> None:
        xllamacpp = pytest.importorskip("xllamacpp", reason="pip install 'ncvc[gguf]' brings llama.cpp as xllamacpp")
        parameters = xllamacpp.CommonParams()
        parameters.model.path, parameters.n_ctx, parameters.n_parallel, parameters.port = str(path), 128, 1, 0
        parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
        parameters.verbosity = -1
        self.server = xllamacpp.Server(parameters)

    def close(self) -> None:
        del self.server

    def post(self, route: str, body: dict) -> dict:
        request = urllib.request.Request(
            self.server.listening_address + route, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def greedy(self, ids: list[int], *, new: int) -> dict:
        body = {"prompt": ids, "n_predict": new, "temperature": 0, "return_tokens": True, "cache_prompt": False}
        return self.post("/completion", {**body, "n_probs": 5, "ignore_eos": True})

    def ids(self, text: str) -> list[int]:
        return self.post("/tokenize", {"content": text})["tokens"]


class WithoutEnd:
    """All ids but the end: llama.cpp's ``ignore_eos``, so that 32 tokens come after any prompt."""

    def __init__(self, vocab_size: int) -> None:
        self.ids = [id for id in range(vocab_size) if id != Tokenizer.end_id]

    def start(self) -> int:
        return 0

    def allowed(self, state: int) -> list[int]:
        return self.ids

    def advance(self, state: int, token: int) -> int:
        return state


def greedy(model: Transformer, ids: list[int], *, new: int) -> list[int]:
    without_end = [WithoutEnd(model.config.vocab_size)]
    return generate_batch(model, [ids], sampling=Sampling(new), end_id=None, constraints=without_end)[0].ids


def prompts_of(tokenizer: Tokenizer) -> list[list[int]]:
    return [[tokenizer.begin_id, *tokenizer.encode(text)[:length]] for text in SENTENCES for length in (1, 3, 8)]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["chat", *CASES])
def test_llama_cpp_gives_our_probabilities_and_our_32_greedy_tokens(tmp_path, case):
    changes = {"chat": True} if case == "chat" else CASES[case]
    directory = write_fitted_model(tmp_path, **changes)
    write_gguf(directory, output=tmp_path / "model.gguf", type="f32")
    model, tokenizer = load_model_directory(directory)
    with closing(LlamaCpp(tmp_path / "model.gguf")) as llama:
        for ids in prompts_of(tokenizer):
            found = llama.greedy(ids, new=32)
            expected = greedy(model, ids, new=32)
            assert found["tokens"] == expected and found["tokens_evaluated"] == len(ids)
            with torch.inference_mode():
                ours = model(torch.tensor([ids]))[0, -1].log_softmax(-1)
            for entry in found["completion_probabilities"][0]["top_logprobs"]:
                assert entry["logprob"] == pytest.approx(ours[entry["id"]].item(), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("type", "share"), [("f16", 0.98), ("q8_0", 0.9)])
def test_llama_cpp_with_smaller_types_gives_nearly_our_tokens(fitted, tmp_path, type, share):
    write_gguf(fitted, output=tmp_path / "model.gguf", type=type)
    model, tokenizer = load_model_directory(fitted)
    same = total = 0
    with closing(LlamaCpp(tmp_path / "model.gguf")) as llama:
        for ids in prompts_of(tokenizer):
            expected = greedy(model, ids, new=16)
            found = llama.greedy(ids, new=16)["tokens"]
            same += sum(left == right for left, right in zip(found, expected, strict=True))
            total += len(expected)
    print(f"{type}: {same} of {total} greedy tokens are those of fp32")
    assert same >= share * total


@pytest.mark.slow
def test_llama_cpp_reads_cleaned_text_as_nearly_our_ids_and_never_as_another_text(fitted, written):
    tokenizer = Tokenizer.load(fitted / "tokenizer")
    texts = [document.text for document in generate_documents(documents=60, seed=1)]
    texts += ["𠮷野家の鱠 と 寿司。\n\n二行目", "AST 35 IU/L、10⁵個", "▁"]
    same = total = 0
    with closing(LlamaCpp(written[0])) as llama:
        assert llama.ids("") == []
        for text in texts:
            ours, theirs = tokenizer.encode(text), llama.ids(tokenizer.cleaner(text).replace("\u2581", " "))
            assert tokenizer.decode(theirs) == tokenizer.decode(ours)
            blocks = difflib.SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks()
            same, total = same + sum(block.size for block in blocks), total + len(ours)
    print(f"{same} of {total} ids ({same / total:.2%}) are the same without the analyser's words")
    assert same > 0.98 * total


@pytest.mark.slow
def test_llama_cpp_chats_by_our_template(fitted, written):
    model, tokenizer = load_model_directory(fitted)
    turns = [
        ("system", "短く答える。"),
        ("user", "発熱"),
        ("assistant", "肺炎と診断した。"),
        ("user", "糖尿病がある。"),
    ]
    messages = [{"role": role, "content": content} for role, content in turns]
    ids = encode_prompt([Message(*turn) for turn in turns], tokenizer=tokenizer)
    expected = generate_batch(model, [ids], sampling=Sampling(12), end_id=tokenizer.end_id)[0]
    with closing(LlamaCpp(written[0])) as llama:
        prompt = llama.post("/apply-template", {"messages": messages})["prompt"]
        assert llama.post("/tokenize", {"content": prompt, "parse_special": True})["tokens"] == ids
        answer = llama.post(
            "/v1/chat/completions", {"messages": messages, "temperature": 0, "max_tokens": 12, "cache_prompt": False}
        )
    choice = answer["choices"][0]
    assert answer["usage"]["prompt_tokens"] == len(ids)
    assert choice["message"]["content"].strip() == tokenizer.decode(expected.ids).strip()
    assert choice["finish_reason"] == expected.finish_reason
