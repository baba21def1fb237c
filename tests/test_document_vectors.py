"""Hidden vectors of documents: an unpadded loop, independence of the batch, what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SENTENCES, write_tiny_model

from ncvc.corpus.quality.classifier import VectorSettings
from ncvc.model.checkpoint import load_model_directory, save_model_directory
from ncvc.model.document_vectors import CHARACTERS_PER_TOKEN, open_vectors

TEXTS = [
    SENTENCES[0],
    "",
    "熱。",
    "".join(SENTENCES),
    "\n".join(SENTENCES[3:6]),
    "x",
    "".join(SENTENCES) * 4,
    SENTENCES[6],
    "▁▁",
    "😀\x00𠮷",
]


@pytest.fixture(scope="module")
def ncvc_model(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("ncvc_model"))


def write_transformers_model(folder: Path, kind: str) -> Path:
    """A tiny BERT (both directions) or Llama (causal) with a tokenizer of single characters, as transformers saves."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    characters = sorted({character for text in TEXTS for character in text})
    vocabulary = {name: number for number, name in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *characters])}
    fast = Fast(models.WordLevel(vocabulary, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    special = {"unk_token": "[UNK]"}
    torch.manual_seed(5)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"vocab_size": len(vocabulary), "max_position_embeddings": 64}
    if kind == "bert":
        fast.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        special |= {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        model = BertModel(BertConfig(**shape))
    else:
        model = LlamaModel(LlamaConfig(**shape))
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=fast, **special).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["bert", "llama"])
def transformers_model(request, tmp_path_factory) -> Path:
    return write_transformers_model(tmp_path_factory.mktemp(request.param), request.param)


def settings(model: Path, **changes) -> VectorSettings:
    return VectorSettings(**{"model": str(model), "max_tokens": 48, "batch_size": 3, **changes})


# --- the numbers ---


def test_an_ncvc_models_vectors_equal_an_unpadded_loop_over_the_texts(ncvc_model):
    found = open_vectors(settings(ncvc_model))(TEXTS)
    model, tokenizer = load_model_directory(ncvc_model)
    expected = []
    for text in TEXTS:
        ids = tokenizer.encode(text)[:48]
        with torch.inference_mode():
            hidden = model.hidden_states(torch.tensor([[tokenizer.begin_id, *ids]]))[0]
        expected.append((hidden[1:] if ids else hidden).mean(dim=0).numpy())
    assert found.dtype == np.float32 and found.shape == (len(TEXTS), 32)
    np.testing.assert_allclose(found, np.stack(expected), atol=1e-5)
    assert np.ptp(found, axis=0).max() > 0.1  # texts differ


def test_a_transformers_models_vectors_equal_an_unpadded_loop_over_the_texts(transformers_model):
    from transformers import AutoModel, AutoTokenizer

    found = open_vectors(settings(transformers_model))(TEXTS)
    model = AutoModel.from_pretrained(transformers_model).eval()
    tokenizer = AutoTokenizer.from_pretrained(transformers_model)
    expected = []
    for text in TEXTS:
        ids = tokenizer(text.replace("▁", " "))["input_ids"] or [0]
        if len(ids) > 48:  # BERT keeps its last token
            ids = ids[:47] + ids[-1:] if tokenizer.sep_token else ids[:48]
        with torch.inference_mode():
            expected.append(model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(dim=0).numpy())
    assert found.dtype == np.float32 and found.shape == (len(TEXTS), 32)
    np.testing.assert_allclose(found, np.stack(expected), atol=1e-5)


@pytest.mark.parametrize("kind", ["ncvc", "bert", "llama"])
def test_a_vector_has_the_same_bits_alone_in_any_batch_and_in_any_order(kind, ncvc_model, tmp_path):
    model = ncvc_model if kind == "ncvc" else write_transformers_model(tmp_path, kind)
    vectors = open_vectors(settings(model, batch_size=4))
    together = vectors(TEXTS)
    alone = np.concatenate([vectors([text]) for text in TEXTS])
    np.testing.assert_array_equal(together, alone)
    order = np.random.default_rng(1).permutation(len(TEXTS) * 3) % len(TEXTS)
    np.testing.assert_array_equal(vectors([TEXTS[number] for number in order]), together[order])
    assert vectors([]).shape == (0, 32)


def test_only_the_first_tokens_of_a_text_are_read_however_long_it_is(ncvc_model):
    vectors = open_vectors(settings(ncvc_model, max_tokens=16))
    start = "".join(SENTENCES)
    assert len(start) > 16 * 2
    long = start + "全く別の文章が続く。" * 200_000  # 2 million characters: not tokenized
    assert len(long) > 16 * CHARACTERS_PER_TOKEN
    np.testing.assert_array_equal(vectors([start + "終わり。"]), vectors([long]))


def test_torchs_threads_are_as_before_after_a_call(ncvc_model):
    before = torch.get_num_threads()
    open_vectors(settings(ncvc_model, threads=2))([TEXTS[0]])
    assert torch.get_num_threads() == before


# --- identity ---


def test_the_identity_is_plain_json_and_follows_weights_and_length_and_not_the_place(ncvc_model, tmp_path):
    original = open_vectors(settings(ncvc_model)).identity
    assert json.loads(json.dumps(original)) == original
    moved = shutil.copytree(ncvc_model, tmp_path / "elsewhere")
    assert open_vectors(settings(moved, batch_size=7)).identity == original
    assert open_vectors(settings(moved, max_tokens=47)).identity != original
    model, _ = load_model_directory(moved)
    with torch.no_grad():
        model.final_norm.weight += 0.01
    save_model_directory(
        tmp_path / "trained",
        config=model.config,
        weights=model.state_dict(),
        tokenizer=moved / "tokenizer",
        training={},
    )
    assert open_vectors(settings(tmp_path / "trained")).identity != original
    assert str(tmp_path) not in json.dumps(original)


def test_a_transformers_identity_follows_the_files_contents(transformers_model, tmp_path):
    original = open_vectors(settings(transformers_model)).identity
    copied = shutil.copytree(transformers_model, tmp_path / "copy")
    assert open_vectors(settings(copied)).identity == original
    weights = copied / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1  # the last bit of the last weight
    weights.write_bytes(bytes(data))
    assert open_vectors(settings(copied)).identity != original


# --- what is refused ---


def test_a_name_of_a_hub_is_not_fetched():
    with pytest.raises(FileNotFoundError, match=r"vectors\.model=cl-tohoku/bert.*nothing is fetched by name"):
        open_vectors(settings(Path("cl-tohoku/bert-base-japanese")))


def test_a_folder_without_a_model_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"vectors\.model=.*holds no model"):
        open_vectors(settings(tmp_path))


def test_more_tokens_than_the_model_reads_are_refused_with_the_most_that_fit(ncvc_model, transformers_model):
    with pytest.raises(ValueError, match=r"vectors\.max_tokens=128.*set at most 127"):
        open_vectors(settings(ncvc_model, max_tokens=128))
    open_vectors(settings(ncvc_model, max_tokens=127))(TEXTS)
    with pytest.raises(ValueError, match=r"vectors\.max_tokens=65.*set at most 64"):
        open_vectors(settings(transformers_model, max_tokens=65))
    assert np.isfinite(open_vectors(settings(transformers_model, max_tokens=64))(TEXTS)).all()


def test_altered_weights_of_an_ncvc_model_are_refused(ncvc_model, tmp_path):
    copied = shutil.copytree(ncvc_model, tmp_path / "model")
    weights = copied / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 0x40
    weights.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"model\.safetensors was altered"):
        open_vectors(settings(copied))


def test_pickled_weights_and_models_with_code_of_their_own_are_refused(tmp_path):
    pickled = write_transformers_model(tmp_path / "pickled", "bert")
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"vectors\.model=.*cannot be opened by transformers"):
        open_vectors(settings(pickled))
    coded = write_transformers_model(tmp_path / "coded", "bert")
    config = json.loads((coded / "config.json").read_text())
    config |= {"model_type": "ours", "auto_map": {"AutoConfig": "ours.Config", "AutoModel": "ours.Model"}}
    (coded / "config.json").write_text(json.dumps(config))
    (coded / "ours.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ValueError, match=r"vectors\.model=.*cannot be opened by transformers"):
        open_vectors(settings(coded))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("device", ["meta", "nonsense", "cuda:99"])
def test_a_device_that_cannot_be_used_is_refused_by_name(ncvc_model, device):
    with pytest.raises(ValueError, match=rf"vectors\.device={device} cannot be used"):
        open_vectors(settings(ncvc_model, device=device))


@pytest.mark.parametrize("changes", [{"max_tokens": 0}, {"batch_size": 0}, {"threads": 0}, {"model": ""}], ids=str)
def test_settings_that_cannot_be_are_refused_by_name(changes):
    (name,) = changes
    with pytest.raises(ValueError, match=rf"vectors\.{name}"):
        VectorSettings(**{"model": "m", "max_tokens": 4, "batch_size": 2, **changes})
