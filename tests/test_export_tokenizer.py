"""The exported tokenizer: ids, targets and text are ours, and what a user types stays text."""

import json
import re
from pathlib import Path

import pytest
from conftest import SENTENCES
from hypothesis import given, settings
from hypothesis import strategies as st

from ncvc.analyzers.lexicon import Entry
from ncvc.analyzers.user_dictionary import build_user_dictionary
from ncvc.chat import Message, encode_conversation, encode_prompt, with_chat_tokens
from ncvc.corpus.cleaning import Cleaner
from ncvc.huggingface_tokenizer import (
    NCVC_FOLDER,
    chat_template,
    check_tokenizer,
    segment_for_export,
    segmenter,
    special_tokens,
    write_tokenizer,
)
from ncvc.model_card import model_card
from ncvc.morphology import build_analyzer
from ncvc.tokenizer import SMALLEST_VOCABULARY, Tokenizer, segment_text

SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|system|>", "<|user|>", "<|assistant|>")
PARTS = [
    *SPECIAL,
    "<|",
    "|>",
    "<unk>",
    "<0x41>",
    "<|unused_0|>",
    "user",
    "\n",
    "\r\n",
    " ",
    "　",
    "▁",
    "\t",
    "患者",
    "肺炎",
]
TEXTS = st.one_of(
    st.text(),
    st.lists(st.one_of(st.sampled_from([*PARTS, *SENTENCES]), st.text(max_size=3)), max_size=12).map("".join),
)
SHAPE = dict.fromkeys(("num_layers", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_dim"), 1)


def trained(analyzer=None, texts=SENTENCES) -> Tokenizer:
    cleaner, analyzer = Cleaner(), analyzer or build_analyzer()
    segmented = [segment_text(cleaner(text), analyzer=analyzer) for text in texts]
    with pytest.warns(UserWarning, match="unused"):
        return Tokenizer.train(
            segmented, vocab_size=SMALLEST_VOCABULARY + 160, cleaner=cleaner, analyzer=analyzer, progress=False
        )


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return with_chat_tokens(trained())


def load(folder: Path, tokenizer: Tokenizer):
    from transformers import AutoTokenizer

    write_tokenizer(folder, tokenizer=tokenizer, context_length=10_000)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory, tokenizer):
    return load(tmp_path_factory.mktemp("exported"), tokenizer)


# --- ids and text ---


@given(text=TEXTS)
@settings(max_examples=150, deadline=None)
def test_ids_of_any_text_are_ours_and_decode_to_our_text(tokenizer, loaded, text):
    ids = tokenizer.encode(text)
    segmented = segment_for_export(text, tokenizer=tokenizer)
    assert loaded(segmented)["input_ids"] == [tokenizer.begin_id, *ids]
    assert loaded.decode(ids) == loaded.decode([0, *ids, 1], skip_special_tokens=True) == tokenizer.decode(ids)
    assert not set(ids) & {tokenizer.id_of(token) for token in SPECIAL}


@st.composite
def conversations(draw) -> list[Message]:
    contents = TEXTS.filter(lambda text: Cleaner()(text).strip("\n▁ "))
    turns = draw(st.integers(1, 3))
    messages = [Message("system", draw(contents))] if draw(st.booleans()) else []
    for _ in range(turns):
        messages += [Message("user", draw(contents)), Message("assistant", draw(contents))]
    return messages


@given(messages=conversations())
@settings(max_examples=60, deadline=None)
def test_ids_and_targets_of_any_conversation_are_ours(tokenizer, loaded, messages):
    plain = [{"role": m.role, "content": segment_for_export(m.content, tokenizer=tokenizer)} for m in messages]
    ours = encode_conversation(messages, tokenizer=tokenizer)
    found = loaded.apply_chat_template(plain, return_dict=True, return_assistant_tokens_mask=True)
    assert found["input_ids"] == ours.ids
    assert [bool(value) for value in found["assistant_masks"]] == ours.supervised
    asked = loaded.apply_chat_template(plain[:-1], add_generation_prompt=True, return_dict=True)
    assert asked["input_ids"] == encode_prompt(messages[:-1], tokenizer=tokenizer)


@given(messages=conversations())
@settings(max_examples=40, deadline=None)
def test_contents_that_nobody_segmented_cannot_open_or_end_a_turn(tokenizer, loaded, messages):
    plain = [{"role": m.role, "content": m.content} for m in messages]
    ids = loaded.apply_chat_template(plain, return_dict=True)["input_ids"]
    placed = [id for id in ids if id in {tokenizer.id_of(token) for token in SPECIAL}]
    expected = ["<|begin_of_text|>"]
    for message in messages:
        expected += [f"<|{message.role}|>", *(["<|end_of_text|>"] if message.role == "assistant" else [])]
    assert placed == [tokenizer.id_of(token) for token in expected]


def test_entries_without_text_decode_to_nothing_as_ours_do(tokenizer, loaded):
    others = [id for id, piece in enumerate(tokenizer.pieces) if not re.fullmatch("<0x[0-9A-F]{2}>", piece)]
    assert any(piece.startswith("<|unused_") for piece in tokenizer.pieces)
    for keep in (False, True):
        theirs = loaded.decode(others, skip_special_tokens=not keep)
        ours = tokenizer.decode(others, skip_special_tokens=not keep)
        assert theirs == (re.sub(r"<unk>|<\|unused_\d+\|>", "", ours) if keep else ours)


def test_begin_end_and_padding_are_the_reports_and_padding_is_on_the_left(loaded, tokenizer):
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (0, 1, 1)
    batch = loaded(["肺炎", "肺炎 と 診断 し た"], padding=True)
    assert set(batch) == {"input_ids", "attention_mask"}  # what generate() takes, no more
    assert batch["input_ids"][0][0] == 1 and batch["attention_mask"][0][0] == 0


def test_a_base_tokenizer_has_no_chat_template(tmp_path):
    base = trained()
    loaded = load(tmp_path, base)
    assert loaded.chat_template is None and special_tokens(base) == SPECIAL[:2]
    check_tokenizer(tmp_path, tokenizer=base)


# --- words that hold a special token ---


@pytest.mark.parametrize("name", ["sudachi", "mecab"])
def test_analysers_cut_typed_special_tokens_into_several_words(name):
    if name == "mecab":
        pytest.importorskip("fugashi")
    analyzer = build_analyzer(name)

    @given(before=st.text(max_size=3), token=st.sampled_from(SPECIAL), after=st.text(max_size=3))
    @settings(max_examples=60, deadline=None)
    def cut(before, token, after):
        assert token not in segment_text(Cleaner()(before + token + after), analyzer=analyzer)

    cut()


@pytest.fixture(scope="module")
def whole_word(tmp_path_factory):
    """A tokenizer whose analyser keeps typed role tokens whole, by a user dictionary that names them."""
    entries = [
        Entry(surface=surface, reading=None, kind="disease", code=None, source="test", frequency=None)
        for surface in ("<|user|>", "前<|assistant|>後")
    ]
    built = build_user_dictionary(entries, directory=tmp_path_factory.mktemp("dictionary"))
    return with_chat_tokens(trained(build_analyzer(user_dictionary=built.folder)))


@pytest.mark.slow
def test_a_special_token_that_a_user_dictionary_keeps_whole_is_broken_with_the_same_ids(tmp_path, whole_word):
    loaded = load(tmp_path, whole_word)
    check_tokenizer(tmp_path, tokenizer=whole_word)
    for text in ("発熱<|user|>咳嗽", "<|user|><|user|>", "前<|assistant|>後", "1 2<|user|>\n<|user|>"):
        assert any(token in whole_word.segment(text) for token in SPECIAL)
        ids = whole_word.encode(text)
        assert loaded(segment_for_export(text, tokenizer=whole_word), add_special_tokens=False)["input_ids"] == ids
        assert loaded.decode(ids) == whole_word.decode(ids)
        assert segmenter(tmp_path)(text) == segment_for_export(text, tokenizer=whole_word)


# --- the ways to segment ---


def code_of(card: str) -> list[str]:
    return re.findall("```python\n(.*?)```", card, re.DOTALL)


def test_the_cards_two_ways_to_segment_are_exact_and_for_clean_text_equal(tmp_path, tokenizer, monkeypatch):
    folder = tmp_path / "exported"
    folder.mkdir()
    write_tokenizer(folder, tokenizer=tokenizer, context_length=128)
    export = {"architecture": "", "form": "arcee", "dtype": "", "parameters": 1, "constants": 0, "bytes": 1}
    shape = {**SHAPE, "context_length": 128}
    card = model_card(
        name="exported", model=shape, training={}, tokenizer=tokenizer, export={**export, "rounding": None, "told": ""}
    )
    exact, plain, script = code_of(card)
    assert len(exact.splitlines()) == 2 and len(script.splitlines()) == 6
    monkeypatch.chdir(tmp_path)
    ways = []
    for code in (exact, plain):
        space: dict = {}
        exec(code, space)
        ways.append(space["segment"])
    for text in ["ＣＲＰは　１２．３mg/dL", "<|user|>", *SENTENCES, "\n".join(SENTENCES) * 3]:
        assert ways[0](text) == tokenizer.segment(text)
        clean = Cleaner()(text).replace("▁", " ")
        assert ways[1](clean) == ways[0](clean) == ways[0](text)


@pytest.mark.slow
def test_a_tokenizer_with_another_analyser_promises_only_the_exact_way(whole_word):
    export = {"architecture": "", "form": "arcee", "dtype": "", "parameters": 1, "constants": 0, "bytes": 1}
    shape = {**SHAPE, "context_length": 128}
    card = model_card(
        name="m", model=shape, training={}, tokenizer=whole_word, export={**export, "rounding": None, "told": ""}
    )
    assert "SudachiPy alone" not in card and "segmenter" in card


# --- damage ---


@pytest.mark.parametrize("damage", ["swap", "score", "begin", "template"])
def test_files_that_give_other_ids_are_refused(tmp_path, tokenizer, damage):
    write_tokenizer(tmp_path, tokenizer=tokenizer, context_length=128)
    path = tmp_path / "tokenizer.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = record["model"]["vocab"]
    if damage == "swap":
        vocabulary[300], vocabulary[301] = vocabulary[301], vocabulary[300]
    elif damage == "score":
        longest = max(range(300, len(vocabulary) - 3), key=lambda n: len(vocabulary[n][0]) * (vocabulary[n][1] > -100))
        vocabulary[longest][1] = -500.0
    elif damage == "begin":
        record["post_processor"] = None
    else:
        template = chat_template(tokenizer).replace("content ~ eos_token", "content")
        (tmp_path / "chat_template.jinja").write_text(template, encoding="utf-8")
    path.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(ValueError, match=r"other ids|other text|ids or targets"):
        check_tokenizer(tmp_path, tokenizer=tokenizer)


def test_a_directory_without_our_tokenizer_cannot_segment(tmp_path):
    with pytest.raises(FileNotFoundError, match=NCVC_FOLDER):
        segmenter(tmp_path)
