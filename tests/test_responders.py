"""What answers items: a model of ours, one of transformers, a server; each held against an independent statement."""

import itertools
import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from conftest import TINY_SHAPE, write_tiny_model
from serving_world import LONG, SHORT, chat_model, endless, serving
from small_models import write_fitted_model
from teacher_server import Server, completion, drip, half, reset

from ncvc.chat import Message, encode_prompt
from ncvc.evaluation.answering import AnswerSettings, answer_tasks, first_line, plain_prompt, weighed_answers
from ncvc.evaluation.item import Item, Task
from ncvc.model.assistant import Assistant
from ncvc.model.responders import LocalResponder, ServerResponder, model_facts, open_responder

LETTERS, OPTIONS = ("A", "B", "C", "D"), ("ない", "低い", "高い", "確実")


def item(number: int, question: str, *, kind: str = "choice", **more) -> Item:
    defaults = {
        "choice": {"gold": ("A",), "letters": LETTERS, "options": OPTIONS},
        "letters": {"gold": ("A", "C"), "letters": LETTERS, "options": OPTIONS, "wanted": 2},
        "number": {"gold": ("100",)},
        "spans": {"gold": ("咳",), "passage": question},
    }[kind]
    messages = more.pop("messages", (Message("user", question),))
    return Item(id=f"{kind}:{number}", task="made", kind=kind, messages=messages, **{**defaults, **more})


def made_items() -> list[Item]:
    """Items of every kind and of lengths from one word to forty."""
    words, chance = ["発熱", "咳嗽", "肺炎", "血圧", "外来"], random.Random(5)
    texts = ["、".join(chance.choices(words, k=size)) + "。" for size in (1, 9, 40)]
    kinds = ["choice", "letters", "number", "spans"]
    return [item(n, f"第{n}問、{text}", kind=kind) for n, (text, kind) in enumerate(itertools.product(texts, kinds))]


def exact() -> Assistant:
    """The drilled model in fp64, where batches cannot tip a choice."""
    assistant = Assistant.load(chat_model())
    assistant.model.double()
    return assistant


def answers_of(responder, items, path: Path, tell=lambda text: None, **settings) -> dict[str, object]:
    task = Task(name="made", family="own", items=tuple(items))
    path.unlink(missing_ok=True)
    found = answer_tasks([task], responder, settings=AnswerSettings(**settings), path=path, tell=tell)
    return {answer.id: answer for answer in found.values()}


@pytest.fixture(scope="module")
def drilled() -> LocalResponder:
    return LocalResponder(exact())


@pytest.mark.parametrize("settings", [{}, {"constrained": True}, {"method": "log_likelihood"}])
def test_answers_depend_on_neither_the_order_of_the_items_nor_the_batch(drilled, tmp_path, settings):
    items = made_items()
    settings = {"max_new_tokens": 20, **settings}
    alone = {
        one.id: answers_of(drilled, [one], tmp_path / "alone.jsonl", **settings, batch_size=1)[one.id] for one in items
    }
    random.Random(1).shuffle(items)
    together = answers_of(drilled, items, tmp_path / "all.jsonl", **settings, batch_size=7)
    assert {name: answer.answer for name, answer in together.items()} == {n: a.answer for n, a in alone.items()}
    for name, answer in together.items():
        if answer.log_likelihoods is not None:
            assert answer.log_likelihoods == pytest.approx(alone[name].log_likelihoods, abs=1e-9)


def test_log_likelihoods_are_those_of_a_plain_pass_over_prompt_and_letters(drilled, tmp_path):
    items = [each for each in made_items() if each.kind in ("choice", "letters")]
    found = answers_of(drilled, items, tmp_path / "a.jsonl", method="log_likelihood")
    model, tokenizer = drilled.assistant.model, drilled.assistant.tokenizer
    for each in items:
        prompt, expected = encode_prompt(each.messages, tokenizer=tokenizer), []
        texts = list(LETTERS) if each.kind == "choice" else ["A,B", "A,C", "A,D", "B,C", "B,D", "C,D"]
        for text in texts:
            ids = torch.tensor([prompt + tokenizer.encode(text) + [tokenizer.end_id]])
            with torch.no_grad():
                scores = model(ids).log_softmax(dim=-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
            expected.append(scores[len(prompt) - 1 :].sum().item())
        assert found[each.id].log_likelihoods == pytest.approx(expected, abs=1e-8)
        assert found[each.id].answer == texts[expected.index(max(expected))]


def test_a_drilled_model_says_what_it_was_drilled_on_in_a_batch_with_others(drilled, tmp_path):
    others = [each for each in made_items() if each.kind != "number"]
    items = [item(0, SHORT[0], kind="number"), *others, item(1, LONG[0], kind="number")]
    found = answers_of(drilled, items, tmp_path / "a.jsonl", max_new_tokens=80)
    assert found["number:0"].answer == SHORT[1] and found["number:1"].answer.startswith(LONG[1][:5])
    assert found["number:0"].finish_reason == "stop"


def test_constrained_answers_are_letters_and_spans_of_the_passage(tmp_path):
    responder = LocalResponder(endless())
    found = answers_of(responder, made_items(), tmp_path / "a.jsonl", constrained=True, max_new_tokens=24)
    for each in made_items():
        text = found[each.id].answer
        if each.kind == "choice":
            assert text in LETTERS
        elif each.kind == "letters":
            assert text in weighed_answers(each)
        elif each.kind == "spans":
            assert json.loads(text) and all(span in each.passage for span in json.loads(text))
        else:
            assert found[each.id].finish_reason == "length"


def test_what_does_not_fit_fails_by_name_and_truncation_keeps_the_questions_end(tmp_path):
    shown = item(1, "診断は？", messages=(
        Message("user", "咳" * 80), Message("assistant", "A"), Message("user", "咳" * 80),
        Message("assistant", "B"), Message("user", "診断は？")))  # fmt: skip
    long, told = item(0, "咳" * 200 + "診断は？"), []
    responder = LocalResponder(Assistant.load(write_fitted_model(tmp_path / "small", steps=1, chat=True)))
    assert responder.assistant.context_length == 128
    for method in ("generation", "log_likelihood"):
        settings = {"method": method, "max_new_tokens": 9}
        found = answers_of(responder, [long, shown, item(2, "咳は？")], tmp_path / "a.jsonl", told.append, **settings)
        assert [found[each.id].answer is None for each in (long, shown)] == [True, True]
        assert found["choice:0"].failed.startswith("does not fit: ") and found["choice:2"].failed is None
        assert any(text.startswith("2 failed, as this one: does not fit") for text in told)
        found = answers_of(responder, [long, shown], tmp_path / "b.jsonl", **settings, too_long="truncate")
        assert all(answer.failed is None for answer in found.values())
    ids = responder.prompt_ids(shown, AnswerSettings(too_long="truncate"), reserve=9)
    assert len(ids) < 110 and responder.assistant.tokenizer.decode(ids).endswith("診断は?")


def test_items_that_cannot_be_asked_fail_alone(drilled, tmp_path):
    items = [
        item(0, "\U0001f600"),  # nothing is left of it once it is cleaned
        item(1, "咳は？", letters=("A", "Ａ", "C", "D")),
        item(2, "咳は？", kind="letters", wanted=5),
        item(3, "咳は？", kind="letters", letters=tuple("ABCDEFGHIJKLMNOP"), options=("x",) * 16, wanted=8),
        item(4, "咳は？", kind="spans", passage='"'),
        item(5, "咳は？"),
    ]
    weighed = answers_of(drilled, items[:4] + items[5:], tmp_path / "a.jsonl", method="log_likelihood")
    written = answers_of(drilled, items, tmp_path / "b.jsonl", constrained=True, max_new_tokens=30)
    for found in (weighed, written):
        assert [name for name, answer in sorted(found.items()) if answer.failed is None] == ["choice:5"]
    assert "12,870 answers" in weighed["letters:3"].failed and "no text" in written["spans:4"].failed


def test_a_base_model_gets_plain_text_and_its_first_line_counts(tmp_path):
    assistant = Assistant.load(write_tiny_model(tmp_path / "base"))
    assistant.model.double()
    responder = LocalResponder(assistant)
    turns = (
        Message("system", "試験"),
        Message("user", "問一"),
        Message("assistant", "B"),
        Message("user", "問二\n答え:"),
    )
    assert plain_prompt(turns) == "試験\n問一\n答え:B\n\n問二\n答え:"
    one = item(0, "", messages=turns)
    ids = responder.prompt_ids(one, AnswerSettings(), reserve=5)
    assert ids == [assistant.tokenizer.begin_id, *assistant.tokenizer.encode(plain_prompt(turns))]
    found = answers_of(responder, [one], tmp_path / "a.jsonl", max_new_tokens=30)[one.id]
    assert "\n" not in found.answer and responder.record["chat"] is False
    weighed = answers_of(responder, [one], tmp_path / "a.jsonl", method="log_likelihood")[one.id]
    for letter, weight in zip(LETTERS, weighed.log_likelihoods, strict=True):
        whole = torch.tensor([ids + assistant.tokenizer.encode(letter)])
        with torch.no_grad():
            scores = assistant.model(whole).log_softmax(dim=-1)[0, :-1].gather(1, whole[0, 1:, None])[:, 0]
        assert weight == pytest.approx(scores[len(ids) - 1 :].sum().item(), abs=1e-8)
    assert first_line("\n \nB。\nC") == "B。" and first_line("  ") == "  " and first_line("") == ""


def test_without_a_system_role_its_line_goes_before_the_first_question():
    turns = (Message("system", "試験"), Message("user", "問"), Message("assistant", "B"), Message("user", "問二"))
    without = AnswerSettings(system_role=False)
    assert without.messages(item(0, "", messages=turns)) == [Message("user", "試験\n問"), *turns[2:]]
    assert without.messages(item(0, "問")) == [Message("user", "問")]


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"method": "vote"}, "method='vote'"), ({"max_new_tokens": 0}, "max_new_tokens=0"), ({"batch_size": 0}, "batch_"),
     ({"too_long": "cut"}, "too_long='cut'")],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused_by_name(changes, told):
    with pytest.raises(ValueError, match=told):
        AnswerSettings(**changes)


def test_a_models_facts_are_those_of_its_files(tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(chat_model(), directory)
    identity, record = model_facts(directory)
    assert model_facts(chat_model())[0] == identity  # wherever it lies
    manifest = json.loads((directory / "manifest.json").read_text())
    assert record["sha256"] == manifest["files"]["model.safetensors"]["sha256"]
    config = directory / "model_config.json"
    config.write_text(config.read_text().replace('"training": {}', '"training": {"steps": 7}'))
    changed, record = model_facts(directory)
    assert changed != identity and record["training"] == {"steps": 7}


# --- transformers


@pytest.fixture(scope="module")
def foreign(tmp_path_factory) -> Path:
    """A Llama with a tokenizer of single characters and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    directory = tmp_path_factory.mktemp("foreign")
    pieces = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<unk>"]
    pieces += sorted(set("第問、発熱咳嗽肺炎血圧外来。答え:A,BCD0123456789\n"))
    tokenizer = Tokenizer(models.WordLevel({piece: n for n, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=pieces[3:5],
    )  # fmt: skip
    fast.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}"
        "{% endif %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}<|assistant|>"
    )
    fast.save_pretrained(directory)
    torch.manual_seed(0)
    shape = {name: TINY_SHAPE[name] for name in ("hidden_size", "intermediate_size")}
    config = LlamaConfig(
        vocab_size=len(pieces), num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=0.3, **shape,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


@pytest.mark.slow
def test_a_transformers_model_weighs_and_writes_what_a_plain_loop_does(foreign, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    responder = open_responder(str(foreign), home=tmp_path)
    items = [each for each in made_items() if each.kind in ("choice", "letters", "number")][:12]
    tokenizer, model = AutoTokenizer.from_pretrained(foreign), AutoModelForCausalLM.from_pretrained(foreign)
    weighed = answers_of(responder, items, tmp_path / "a.jsonl", method="log_likelihood", max_new_tokens=6)
    written = answers_of(responder, items, tmp_path / "b.jsonl", max_new_tokens=6)
    for each in items:
        text = f"<s><|user|>{each.messages[0].content}<|assistant|>"
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = list(prompt)
        with torch.no_grad():
            for _ in range(6):
                ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
                if ids[-1] == 2:
                    break
        said = tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).strip()
        assert written[each.id].answer == said
        if each.kind == "number":
            assert weighed[each.id].answer == said and weighed[each.id].log_likelihoods is None
            continue
        for option, weight in zip(weighed_answers(each), weighed[each.id].log_likelihoods, strict=True):
            whole = torch.tensor([[*prompt, *tokenizer(option, add_special_tokens=False)["input_ids"], 2]])
            with torch.no_grad():
                scores = model(whole).logits.log_softmax(dim=-1)[0, :-1].gather(1, whole[0, 1:, None])[:, 0]
            assert weight == pytest.approx(scores[len(prompt) - 1 :].sum().item(), abs=1e-4)


@pytest.mark.slow
def test_a_transformers_model_fails_items_it_cannot_take_and_refuses_what_it_cannot_do(foreign, tmp_path):
    responder = open_responder(str(foreign), home=tmp_path)
    turns = (Message("system", "問"), Message("user", "咳"))
    items = [item(0, "咳" * 300), item(1, "", messages=turns), item(2, "咳")]
    for method in ("generation", "log_likelihood"):
        found = answers_of(responder, items, tmp_path / "a.jsonl", method=method, max_new_tokens=4)
        assert found["choice:0"].failed.startswith("does not fit") and "no system role" in found["choice:1"].failed
        assert found["choice:2"].failed is None
    found = answers_of(responder, items[1:2], tmp_path / "b.jsonl", max_new_tokens=4, system_role=False)
    assert found["choice:1"].failed is None
    for settings in ({"constrained": True}, {"too_long": "truncate"}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            responder.check(AnswerSettings(**settings))


@pytest.mark.slow
def test_a_transformers_base_model_gets_plain_text(foreign, tmp_path):
    from transformers import AutoTokenizer

    shutil.copytree(foreign, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink(missing_ok=True)
    kept = json.loads((foreign / "tokenizer_config.json").read_text())
    kept.pop("chat_template", None)
    (tmp_path / "base" / "tokenizer_config.json").write_text(json.dumps(kept))
    responder = open_responder(str(tmp_path / "base"), home=tmp_path)
    assert responder.record["chat"] is False
    found = answers_of(responder, [item(0, "咳")], tmp_path / "a.jsonl", method="log_likelihood")["choice:0"]
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path / "base"), responder.model
    prompt = tokenizer("咳\n答え:")["input_ids"]
    with torch.no_grad():
        scores = model(torch.tensor([prompt])).logits[0, -1].log_softmax(dim=-1)
    letters = [scores[tokenizer(letter, add_special_tokens=False)["input_ids"][0]].item() for letter in LETTERS]
    assert found.log_likelihoods == pytest.approx(letters, abs=1e-4)
    written = answers_of(responder, [item(0, "咳")], tmp_path / "a.jsonl", max_new_tokens=8)["choice:0"]
    assert "\n" not in written.answer


@pytest.mark.slow
def test_an_exported_model_answers_as_the_directory_it_was_exported_from(tmp_path):
    from ncvc.model.huggingface import export_huggingface

    export_huggingface(chat_model(), output=tmp_path / "exported")
    ours = open_responder(str(chat_model()), home=tmp_path / "home")
    theirs = open_responder(str(tmp_path / "exported"), home=tmp_path / "home")
    assert theirs.name == "exported" and theirs.record["kind"] == "ncvc"
    assert open_responder(str(tmp_path / "exported"), home=tmp_path / "home").identity == theirs.identity
    for settings in ({"max_new_tokens": 12}, {"method": "log_likelihood"}):
        found = [answers_of(each, made_items(), tmp_path / "a.jsonl", **settings) for each in (ours, theirs)]
        assert {n: a.answer for n, a in found[0].items()} == {n: a.answer for n, a in found[1].items()}
    weights = tmp_path / "exported" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ValueError, match="was altered"):
        open_responder(str(tmp_path / "exported"), home=tmp_path / "home")


# --- a server


def connection(server: Server, **changes) -> dict:
    return {
        "name": "server", "backend": "openai_compatible", "base_url": server.url, "retries": 1,
        "backoff_seconds": 0.01, "timeout_seconds": 0.4, "concurrency": 4, **changes,
    }  # fmt: skip


def test_a_server_of_the_same_model_gives_the_same_answers(tmp_path):
    items = [item(0, SHORT[0], kind="number"), item(1, LONG[0], kind="number")]
    with serving(Assistant.load(chat_model())) as server:
        responder = ServerResponder({"name": "s", "backend": "openai_compatible", "base_url": server.address})
        found = answers_of(responder, items, tmp_path / "a.jsonl", max_new_tokens=60)
    local = answers_of(LocalResponder(Assistant.load(chat_model())), items, tmp_path / "b.jsonl", max_new_tokens=60)
    assert {n: (a.answer, a.finish_reason) for n, a in found.items()} == {
        n: (a.answer, a.finish_reason) for n, a in local.items()
    }


def test_a_servers_faults_are_failures_with_their_reasons_and_are_asked_again_by_the_next_run(tmp_path):
    faults = {"一": (500, {}, b"no"), "二": reset, "三": half, "四": drip, "五": (400, {}, b"too long"), "六": b"{}"}
    healthy = []

    def script(body, nth):
        asked = body["messages"][-1]["content"]
        assert body["temperature"] == 0.0 and body["messages"][0]["role"] == "user"
        return completion("B") if healthy or asked[0] not in faults else faults[asked[0]]

    items = [item(n, f"{word}。") for n, word in enumerate([*faults, "七", "八"])]
    task, path, told = Task(name="made", family="own", items=tuple(items)), tmp_path / "a.jsonl", []
    with Server(script) as server:
        responder = ServerResponder(connection(server))
        found = answer_tasks([task], responder, settings=AnswerSettings(), path=path, tell=told.append)
        assert [found["made", each.id].answer for each in items] == [None] * 6 + ["B", "B"]
        reasons = [found["made", each.id].failed for each in items[:6]]
        words = ["HTTP 500", "connection", "connection", "no whole reply", "HTTP 400: too long", "choices"]
        assert all(word in reason for word, reason in zip(words, reasons, strict=True)), reasons
        assert all("2 attempts" in reason for reason in reasons[:4])
        asked = len(server.requests)
        healthy.append(True)
        found = answer_tasks([task], responder, settings=AnswerSettings(), path=path, tell=told.append)
        assert all(answer.answer == "B" for answer in found.values()) and len(server.requests) == asked + 6


def test_a_server_that_is_gone_ends_the_run_soon_and_keeps_what_was_answered(tmp_path):
    alive = [True] * 20

    def script(body, nth):
        return completion("B") if alive and alive.pop() else (503, {}, b"gone")

    items = [item(n, f"問{n}。") for n in range(300)]
    path = tmp_path / "a.jsonl"
    with Server(script) as server:
        responder = ServerResponder(connection(server, retries=0))
        with pytest.raises(OSError, match=r"32 requests in a row failed.*HTTP 503.*repeat the command"):
            answers_of(responder, items, path)
        assert len(server.requests) < 70
    assert path.read_text().count('"answer": "B"') == 20


@pytest.mark.parametrize(
    "settings", [{"method": "log_likelihood"}, {"constrained": True}, {"too_long": "truncate"}], ids=str
)
def test_what_a_server_cannot_do_is_refused_before_it_is_asked(tmp_path, settings):
    with Server(lambda body, nth: completion("B")) as server:
        responder = ServerResponder(connection(server))
        with pytest.raises(ValueError, match=next(iter(settings))):
            answers_of(responder, [item(0, "咳")], tmp_path / "a.jsonl", **settings)
        assert not server.requests and not (tmp_path / "a.jsonl").exists()
