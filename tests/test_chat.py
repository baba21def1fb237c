"""The chat template: exact ids and targets, what is refused, what is kept when a conversation is too long.

The independent reference for ids is Hugging Face's tokenizer reading the saved file with the Jinja template.
"""

import warnings
from pathlib import Path

import pytest
from conftest import SENTENCES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ncvc.chat import (
    CHAT_TEMPLATE,
    Message,
    check_turns,
    encode_conversation,
    encode_prompt,
    has_chat_tokens,
    parse_messages,
    render,
    with_chat_tokens,
)
from ncvc.corpus.cleaning import Cleaner
from ncvc.morphology import build_analyzer
from ncvc.tokenizer import ROLE_TOKENS, SMALLEST_VOCABULARY, Tokenizer, segment_text

relaxed = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
SYSTEM, USER, ASSISTANT = (
    Message("system", "あなたは医師です。"),
    Message("user", "発熱と咳嗽。"),
    Message("assistant", "肺炎と診断した。"),
)
typed = st.lists(
    st.sampled_from(
        [*ROLE_TOKENS.values(), "<|end_of_text|>", "<|begin_of_text|>", "<", "|>", "user", "\n", " ", "熱"]
    ),
    max_size=8,
).map("".join)
contents = st.one_of(typed, st.text(max_size=40)).filter(lambda text: bool(Cleaner()(text).strip(" \n▁")))


@pytest.fixture(scope="module")
def base() -> Tokenizer:
    cleaner, analyzer = Cleaner(), build_analyzer()
    segmented = [segment_text(cleaner(text), analyzer=analyzer) for text in SENTENCES * 3]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return Tokenizer.train(
            segmented, vocab_size=SMALLEST_VOCABULARY + 120, cleaner=cleaner, analyzer=analyzer, progress=False
        )


@pytest.fixture(scope="module")
def tokenizer(base: Tokenizer) -> Tokenizer:
    return with_chat_tokens(base)


@pytest.fixture(scope="module")
def huggingface(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory):
    from transformers import PreTrainedTokenizerFast

    directory: Path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(directory)
    return PreTrainedTokenizerFast(
        tokenizer_file=str(directory / "tokenizer.json"),
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        pad_token="<|end_of_text|>",
        chat_template=CHAT_TEMPLATE,
    )


def test_a_base_tokenizer_grows_by_three_ids_behind_its_own_and_changes_no_other(base, tokenizer):
    assert tokenizer.vocab_size == base.vocab_size + 3
    assert [tokenizer.id_of(token) for token in ("<|system|>", "<|user|>", "<|assistant|>")] == [
        base.vocab_size, base.vocab_size + 1, base.vocab_size + 2,
    ]  # fmt: skip
    assert tokenizer.pieces[: base.vocab_size] == base.pieces
    assert tokenizer.fingerprint != base.fingerprint
    assert with_chat_tokens(tokenizer) is tokenizer and has_chat_tokens(tokenizer) and not has_chat_tokens(base)
    for sentence in SENTENCES:
        assert tokenizer.encode(sentence) == base.encode(sentence)
    assert tokenizer.character_counts[-3:].tolist() == [0, 0, 0]


def test_a_saved_chat_tokenizer_is_loaded_with_its_roles_and_a_torn_record_is_refused(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.fingerprint == tokenizer.fingerprint and has_chat_tokens(loaded)
    record = tmp_path / "ncvc_tokenizer.json"
    record.write_text(record.read_text(encoding="utf-8").replace("added_tokens", "aded_tokens"), encoding="utf-8")
    with pytest.raises(ValueError, match="was changed"):
        Tokenizer.load(tmp_path)


def test_supervised_are_exactly_the_ids_after_the_assistant_token_through_end_of_text(tokenizer):
    turns = [SYSTEM, USER, ASSISTANT, Message("user", "既往歴は。"), Message("assistant", "高血圧症。")]
    found = encode_conversation(turns, tokenizer=tokenizer)
    system, user, assistant = (tokenizer.id_of(token) for token in ROLE_TOKENS.values())
    first, second = tokenizer.encode("肺炎と診断した。"), tokenizer.encode("高血圧症。")
    head = [0, system, *tokenizer.encode(SYSTEM.content), user, *tokenizer.encode(USER.content), assistant]
    middle = [user, *tokenizer.encode("既往歴は。"), assistant]
    assert found.ids == [*head, *first, 1, *middle, *second, 1]
    wanted = [False] * len(head) + [True] * (len(first) + 1) + [False] * len(middle) + [True] * (len(second) + 1)
    assert found.supervised == wanted
    assert [id for id, chosen in zip(found.ids, found.supervised, strict=True) if chosen] == [*first, 1, *second, 1]


def test_a_prompt_is_the_beginning_of_its_conversation(tokenizer):
    prompt = encode_prompt([SYSTEM, USER], tokenizer=tokenizer)
    whole = encode_conversation([SYSTEM, USER, ASSISTANT], tokenizer=tokenizer)
    assert whole.ids[: len(prompt)] == prompt and prompt[-1] == tokenizer.id_of("<|assistant|>")
    assert not any(whole.supervised[: len(prompt)]) and all(whole.supervised[len(prompt) :])


@relaxed
@given(system=contents, user=contents, answer=contents)
def test_ids_and_targets_equal_the_jinja_template_read_by_hugging_face(tokenizer, huggingface, system, user, answer):
    turns = [Message("system", system), Message("user", user), Message("assistant", answer)]
    try:
        ours = encode_conversation(turns, tokenizer=tokenizer)
    except ValueError as error:
        assert "empty" in str(error)
        return
    segmented = [{"role": turn.role, "content": tokenizer.segment(turn.content)} for turn in turns]
    theirs = huggingface.apply_chat_template(
        segmented, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert theirs["input_ids"] == ours.ids
    assert [bool(flag) for flag in theirs["assistant_masks"]] == ours.supervised
    assert huggingface(render(turns, tokenizer=tokenizer), add_special_tokens=False)["input_ids"] == ours.ids
    prompt = huggingface.apply_chat_template(segmented[:2], tokenize=True, add_generation_prompt=True)
    assert list(prompt["input_ids"]) == encode_prompt(turns[:2], tokenizer=tokenizer)


@relaxed
@given(text=typed.filter(lambda text: bool(text.strip())))
def test_special_tokens_typed_in_a_turn_are_ordinary_characters(tokenizer, text):
    special = {0, 1, *(tokenizer.id_of(token) for token in ROLE_TOKENS.values())}
    assert not special & set(tokenizer.encode(text))
    assert tokenizer.decode(tokenizer.encode(text)) == Cleaner()(text).replace("▁", " ")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "at least one message"),
        ("text", "must be a list"),
        ([{"role": "user"}], "message 1 must be an object with role and content"),
        ([{"role": "doctor", "content": "a"}], "message 1 has the role 'doctor'"),
        ([{"role": "user", "content": 3}], "must be text"),
        ([{"role": "user", "content": " \n　"}], "message 1 \\(user\\) is empty"),
        ([{"role": "system", "content": "a"}], "there is no user turn"),
        ([{"role": "assistant", "content": "a"}], "message 1 is assistant, and user has to come there"),
        ([{"role": "user", "content": "a"}] * 2, "message 2 is user, and assistant has to come there"),
        ([{"role": "system", "content": "a"}] * 2, "message 2 is system, and user has to come there"),
    ],
)
def test_what_is_no_conversation_is_refused_by_message_and_cause(value, message):
    with pytest.raises(ValueError, match=f"^rows.jsonl:3: .*{message}"):
        parse_messages(value, where="rows.jsonl:3")


def test_a_turn_that_cleaning_leaves_empty_is_refused(tokenizer):
    with pytest.raises(ValueError, match="message 1 \\(user\\) is empty once it is cleaned"):
        encode_prompt([Message("user", "\u200b")], tokenizer=tokenizer)


def test_a_base_tokenizer_is_told_that_it_cannot_chat(base):
    with pytest.raises(ValueError, match="Tune the model on conversations first"):
        encode_prompt([USER], tokenizer=base)


def test_training_and_asking_want_the_right_last_turn(tokenizer):
    with pytest.raises(ValueError, match="the last message is user"):
        encode_conversation([USER], tokenizer=tokenizer)
    with pytest.raises(ValueError, match="asked for by a user turn"):
        encode_prompt([USER, ASSISTANT], tokenizer=tokenizer)


def test_a_conversation_over_the_context_is_refused_with_its_length(tokenizer):
    length = len(encode_conversation([USER, ASSISTANT], tokenizer=tokenizer).ids)
    assert encode_conversation([USER, ASSISTANT], tokenizer=tokenizer, context_length=length).ids
    with pytest.raises(ValueError, match=f"has {length} tokens, and the model's context is {length - 1}"):
        encode_conversation([USER, ASSISTANT], tokenizer=tokenizer, context_length=length - 1)


@relaxed
@given(turns=st.integers(1, 4), context=st.integers(1, 120), with_system=st.booleans())
def test_truncation_fits_the_context_and_keeps_system_turn_and_answer_whole(tokenizer, turns, context, with_system):
    spoken = [message for number in range(turns) for message in (Message("user", SENTENCES[number]), ASSISTANT)]
    messages = [*([SYSTEM] if with_system else []), *spoken]
    whole = encode_conversation(messages, tokenizer=tokenizer)
    try:
        kept = encode_conversation(messages, tokenizer=tokenizer, context_length=context, too_long="truncate")
    except ValueError as error:
        assert "leave no room for the question" in str(error)
        least = [*([SYSTEM] if with_system else []), Message("user", "熱"), ASSISTANT]
        assert len(encode_conversation(least, tokenizer=tokenizer).ids) > context
        return
    answer = [*tokenizer.encode(ASSISTANT.content), 1]
    assert len(kept.ids) <= context and kept.ids[0] == 0
    assert kept.ids[-len(answer) :] == answer and all(kept.supervised[-len(answer) :])
    head = [tokenizer.id_of("<|system|>"), *tokenizer.encode(SYSTEM.content)] if with_system else []
    assert kept.ids[1 : 1 + len(head)] == head
    if len(whole.ids) <= context:
        assert kept == whole


def test_a_prompt_keeps_room_for_the_answer(tokenizer):
    prompt = encode_prompt([USER], tokenizer=tokenizer)
    assert encode_prompt([USER], tokenizer=tokenizer, context_length=len(prompt) + 5, reserve=5) == prompt
    with pytest.raises(ValueError, match="kept for the answer"):
        encode_prompt([USER], tokenizer=tokenizer, context_length=len(prompt) + 4, reserve=5)
    shorter = encode_prompt(
        [USER, ASSISTANT, USER], tokenizer=tokenizer, context_length=len(prompt) + 4, reserve=4, too_long="truncate"
    )
    assert shorter == prompt


def test_check_turns_takes_messages_that_were_made_by_hand():
    check_turns([SYSTEM, USER, ASSISTANT])
