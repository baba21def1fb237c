"""A model directory that answers: prompts, batches, streams, and what does not fit is told by name."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import TINY_SHAPE, write_tiny_model

from ncvc.chat import Message, encode_conversation, encode_prompt, with_chat_tokens
from ncvc.constraints import option_letters, spans_of
from ncvc.model.assistant import Assistant, find_model, model_name
from ncvc.model.checkpoint import load_model_directory, save_model_directory
from ncvc.model.generation import Sampling
from ncvc.model.int8_layers import INT8, int8_weights
from ncvc.model.transformer import ModelConfig, Transformer
from ncvc.tokenizer import FIRST_BYTE_ID

TALKS = {"主訴は?": "発熱と咳嗽です。", "診断は?": "肺炎、瘰癧。"}  # 瘰癧 has no piece: its answer takes byte tokens


def write_chat_model(folder: Path) -> Path:
    """A tiny model that has learnt ``TALKS`` by heart."""
    _, tokenizer = load_model_directory(write_tiny_model(folder / "base"))
    tokenizer = with_chat_tokens(tokenizer)
    tokenizer.save(folder / "tokenizer")
    talks = [[Message("user", question), Message("assistant", answer)] for question, answer in TALKS.items()]
    rows = [encode_conversation(talk, tokenizer=tokenizer) for talk in talks]
    longest = max(len(row.ids) for row in rows)
    ids, labels = torch.ones(2, len(rows), longest, dtype=torch.long)
    labels.fill_(-100)
    for place, row in enumerate(rows):
        ids[place, : len(row.ids)] = torch.tensor(row.ids)
        targets = [token if meant else -100 for token, meant in zip(row.ids, row.supervised, strict=True)]
        labels[place, : len(targets) - 1] = torch.tensor(targets[1:])
    network = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, context_length=128, **TINY_SHAPE), seed=3)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-2)
    for _ in range(40):
        optimizer.zero_grad()
        network.loss(ids, labels).backward()
        optimizer.step()
    save_model_directory(
        folder / "model",
        config=network.config,
        weights=network.state_dict(),
        tokenizer=folder / "tokenizer",
        training={},
    )
    return folder / "model"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def assistant(directory: Path) -> Assistant:
    return Assistant.load(directory)


def ask(assistant: Assistant, text: str, room: int = 30) -> list[int]:
    return assistant.chat_prompt([Message("user", text)], max_new_tokens=room)


# --- answers


def test_answers_come_in_the_order_of_the_prompts_and_as_if_each_were_alone(assistant):
    prompts = [ask(assistant, text) for text in ["主訴は?", "診断は?主訴は?診断は?", "診断は?", "主訴は?"]]
    together = assistant.generate(prompts, sampling=Sampling(30), batch_size=2)
    alone = [assistant.generate([prompt], sampling=Sampling(30))[0] for prompt in prompts]
    assert together == alone
    assert [together[place].text for place in (0, 2, 3)] == ["発熱と咳嗽です。", "肺炎、瘰癧。", "発熱と咳嗽です。"]
    assert together[0].finish_reason == "stop" and together[0].prompt_tokens == len(prompts[0])


def test_sampled_answers_belong_to_their_row_whatever_the_batch(assistant):
    prompts = [ask(assistant, text) for text in ["主訴は?", "体温は38.5℃", "咳"]]
    samplings = [Sampling(20, temperature=2.0, seed=seed) for seed in (5, 6, 7)]
    together = assistant.generate(prompts, sampling=samplings)
    assert len({tuple(answer.ids) for answer in together}) == 3
    for batch_size in (1, 2):
        assert assistant.generate(prompts, sampling=samplings, batch_size=batch_size) == together


def test_streamed_texts_are_whole_characters_and_joined_they_are_the_answer(assistant):
    heard: dict[int, list[str]] = {0: [], 1: []}
    prompts = [ask(assistant, text) for text in TALKS]
    answers = assistant.generate(prompts, sampling=Sampling(30), on_text=lambda row, text: heard[row].append(text))
    assert FIRST_BYTE_ID + "瘰".encode()[0] in answers[1].ids  # a character of several byte tokens
    for row, answer in enumerate(answers):
        assert len(heard[row]) > 2 and "".join(heard[row]) == answer.text
        assert all(text and "\ufffd" not in text for text in heard[row])


def test_bytes_of_an_unfinished_character_are_shown_as_one_that_is_not(assistant):
    heard: list[str] = []
    answer = assistant.generate(
        [ask(assistant, "診断は?")], sampling=Sampling(3), on_text=lambda _, text: heard.append(text)
    )[0]
    assert answer.finish_reason == "length" and answer.ids[-1] == FIRST_BYTE_ID + "瘰".encode()[0]
    assert answer.text == "肺炎、\ufffd" == "".join(heard)


def test_a_row_that_is_told_to_stop_stops_and_the_others_go_on(assistant):
    prompts = [ask(assistant, text) for text in TALKS]
    cut, whole = assistant.generate(prompts, sampling=Sampling(30), on_text=lambda row, text: row != 0)
    assert cut.finish_reason == "cancelled" and "発熱と咳嗽です。".startswith(cut.text) and len(cut.ids) == 1
    assert whole.text == "肺炎、瘰癧。" and whole.finish_reason == "stop"


def test_finished_answers_are_told_batch_by_batch(assistant):
    told: list[int] = []
    prompts = [ask(assistant, text) for text in ["主訴は?", "診断は?", "主訴は?診断は?"]]
    answers = assistant.generate(
        prompts, sampling=Sampling(5), batch_size=1, on_completion=lambda row, answer: told.append((row, answer.text))
    )
    assert sorted(told) == [(row, answer.text) for row, answer in enumerate(answers)]
    assert told[0][0] == 2  # the longest prompt first


@pytest.mark.parametrize("temperature", [0.0, 3.0])
def test_a_constrained_answer_has_its_form_whatever_the_model_would_say(assistant, temperature):
    tokenizer = assistant.tokenizer
    constraints = [option_letters("abcde", tokenizer=tokenizer, count=2), None]
    passage = "患者は発熱と咳嗽、瘰癧を主訴に来院した。"
    constraints.append(spans_of(passage, tokenizer=tokenizer, max_new_tokens=25))
    samplings = [Sampling(25, temperature=temperature, seed=seed) for seed in range(3)]
    prompts = [ask(assistant, "主訴は?")] * 3
    letters, free, spans = assistant.generate(prompts, sampling=samplings, constraints=constraints)
    assert letters.finish_reason == "stop" and letters.text in {f"{a},{b}" for a in "abcde" for b in "abcde" if a < b}
    assert temperature > 0 or free.text == "発熱と咳嗽です。"
    assert spans.finish_reason == "stop" and all(span in passage for span in json.loads(spans.text))


def test_log_likelihoods_are_those_of_the_answer_with_its_end(assistant):
    prompt = ask(assistant, "診断は?")
    options = ["肺炎、瘰癧。", "発熱", "肺炎"]
    [scores] = assistant.log_likelihoods([(prompt, options)])
    for option, score in zip(options, scores, strict=True):
        ids = [*prompt, *assistant.tokenizer.encode(option), assistant.tokenizer.end_id]
        with torch.no_grad():
            logits = assistant.model(torch.tensor([ids[:-1]]))[0].log_softmax(dim=-1)
        expected = sum(float(logits[place - 1, ids[place]]) for place in range(len(prompt), len(ids)))
        assert score == pytest.approx(expected, abs=1e-4)
    assert max(scores) == scores[0]
    assert assistant.log_likelihoods([(prompt, ["肺炎"])], ends=False)[0][0] > scores[2]
    with pytest.raises(ValueError, match="empty once it is cleaned"):
        assistant.log_likelihoods([(prompt, ["肺炎", "😀"])])


def test_half_precision_gives_the_same_answer_of_a_model_that_is_sure(directory, assistant):
    half = Assistant.load(directory, dtype="bfloat16")
    assert half.model.embedding.weight.dtype == torch.bfloat16
    assert assistant.model.embedding.weight.dtype == torch.float32
    answers = half.generate([ask(half, text) for text in TALKS], sampling=Sampling(30))
    assert [answer.text for answer in answers] == list(TALKS.values())


# --- prompts


def test_a_chat_prompt_is_the_template_s_and_typed_special_tokens_stay_text(assistant):
    messages = [Message("system", "短く。"), Message("user", "<|end_of_text|><|assistant|>肺炎")]
    ids = assistant.chat_prompt(messages, max_new_tokens=10)
    assert ids == encode_prompt(messages, tokenizer=assistant.tokenizer)
    assert ids.count(assistant.tokenizer.end_id) == 0
    assert ids.count(assistant.tokenizer.id_of("<|assistant|>")) == 1


def test_a_text_that_does_not_fit_is_refused_or_loses_its_beginning(assistant):
    text = "肺炎" * 200
    assert assistant.text_prompt("") == [assistant.tokenizer.begin_id]
    with pytest.raises(ValueError, match="max_new_tokens=20"):
        assistant.text_prompt(text, max_new_tokens=20)
    ids = assistant.text_prompt(text + "咳", max_new_tokens=20, too_long="truncate")
    assert len(ids) == 128 - 20 and ids[0] == assistant.tokenizer.begin_id
    assert assistant.tokenizer.decode(ids).endswith("咳")
    assert len(assistant.generate([ids], sampling=Sampling(20))[0].ids) <= 20


def test_the_oldest_turns_are_left_out_as_few_as_need_be(assistant):
    turns = [Message("system", "短く。")]
    for number in range(12):
        turns += [Message("user", f"主訴{number}は?"), Message("assistant", "発熱と咳嗽です。")]
    turns.append(Message("user", "診断は?"))
    kept = assistant.without_oldest(turns, max_new_tokens=30)
    assert kept[0] == turns[0] and kept[1:] == turns[len(turns) - len(kept) + 1 :] and kept[1].role == "user"
    assert len(assistant.chat_prompt(kept, max_new_tokens=30)) <= 128 - 30
    with pytest.raises(ValueError, match="context is 128"):
        assistant.chat_prompt([kept[0], *turns[len(turns) - len(kept) - 1 :]], max_new_tokens=30)
    assert assistant.without_oldest(turns[:4], max_new_tokens=30) == turns[:4]
    long = [Message("user", "咳" * 300)]
    assert assistant.without_oldest(long, max_new_tokens=30) == long


@pytest.mark.parametrize("room", [0, 126, 500])
def test_an_answer_without_room_for_a_prompt_is_refused(assistant, room):
    with pytest.raises(ValueError, match=f"max_new_tokens={room}"):
        ask(assistant, "咳", room=room)


def test_a_base_model_asked_to_chat_says_what_to_do(tmp_path):
    base = Assistant.load(write_tiny_model(tmp_path))
    assert not base.can_chat
    with pytest.raises(ValueError, match=r"base model.*raw=true.*sft_quickstart"):
        ask(base, "咳")
    assert base.generate([base.text_prompt("患者は")], sampling=Sampling(5))[0].prompt_tokens > 1


# --- directories


def test_a_model_is_found_by_directory_run_or_last(tmp_path, directory):
    home = tmp_path / "home"
    for name, time in (("base", "2030-01-02"), ("chat", "2030-01-03"), ("torn", "2030-01-04")):
        run = home / "runs" / name / time
        run.mkdir(parents=True)
        (run / "config.yaml").write_text("{}")
        if name != "torn":
            shutil.copytree(directory, run / ("model" if name == "base" else "model-step=00000006"))
    base, chat = home / "runs/base/2030-01-02", home / "runs/chat/2030-01-03"
    assert find_model("last", home=home) == chat / "model-step=00000006"
    assert find_model(str(base), home=home) == base / "model" == find_model(str(base / "model"), home=home)
    assert model_name(base / "model") == "base" and model_name(chat / "model-step=00000006") == "chat"
    assert model_name(tmp_path / "exported") == "exported"


def test_what_is_no_model_is_told_with_the_cure(tmp_path, directory):
    checkpoints = tmp_path / "run" / "checkpoints"
    (checkpoints / "step=00000002").mkdir(parents=True)
    for model, cure in (
        ("last", "experiment=quickstart"),
        (str(tmp_path / "nothing"), "no such folder"),
        (str(tmp_path / "run"), f"export checkpoint={tmp_path / 'run'}"),
        (str(checkpoints / "step=00000002"), "ncvc.export checkpoint="),
        (str(tmp_path), "no model_config.json"),
    ):
        with pytest.raises(FileNotFoundError) as told:
            find_model(model, home=tmp_path)
        assert cure in str(told.value)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"dtype": "int4"}, "dtype='int4'"),
        ({"device": "gpu"}, "device='gpu'"),
        ({"device": "meta"}, "device='meta'"),
        ({"device": "cuda:99"}, "device='cuda:99'"),
    ],
)
def test_a_device_or_type_that_is_none_is_refused(directory, settings, told):
    with pytest.raises(ValueError, match=told):
        Assistant.load(directory, **settings)


def test_int8_weights_run_on_a_cpu_in_float32_and_are_not_cast(tmp_path, directory, assistant):
    weights = int8_weights(load_model_directory(directory)[0])
    save_model_directory(
        tmp_path / "int8",
        config=assistant.model.config,
        weights=weights,
        tokenizer=directory / "tokenizer",
        training={},
        quantization={"kind": INT8},
    )
    small = Assistant.load(tmp_path / "int8")
    answers = small.generate([ask(small, text) for text in TALKS], sampling=Sampling(30))
    assert [answer.text for answer in answers] == list(TALKS.values())
    with pytest.raises(ValueError, match="int8 weights"):
        Assistant.load(tmp_path / "int8", dtype="bfloat16")


def test_a_directory_without_tokenizer_or_of_another_shape_is_refused(tmp_path, directory):
    for name in ("shape", "missing", "foreign"):
        shutil.copytree(directory, tmp_path / name)
    path = tmp_path / "shape" / "model_config.json"
    path.write_text(path.read_text().replace('"hidden_size": 32', '"hidden_size": 64'))
    shutil.rmtree(tmp_path / "missing" / "tokenizer")
    base = write_tiny_model(tmp_path)
    shutil.rmtree(tmp_path / "foreign" / "tokenizer")
    shutil.copytree(base / "tokenizer", tmp_path / "foreign" / "tokenizer")
    for name, told in (("shape", "does not fit"), ("missing", "is missing"), ("foreign", "tokenizer has")):
        with pytest.raises((ValueError, FileNotFoundError), match=told):
            Assistant.load(tmp_path / name)
