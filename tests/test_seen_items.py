"""Which items a model was trained on, from real little runs' records: by document, by text, by certificate."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, write_tiny_model
from igakuqa_world import write_igakuqa
from jmed_world import CASES, POSTS, REPORTS, text_of, write_jmed

from ncvc.chat import Message
from ncvc.conversation_preparation import divide, prepare_conversations
from ncvc.conversation_store import ConversationStore, EncodingSettings
from ncvc.conversations import ConversationSource
from ncvc.corpus.contamination.certificate import merge_certificate
from ncvc.corpus.contamination.winnowing import FingerprintWriter
from ncvc.evaluation import seen_items as seen_items_module
from ncvc.evaluation.item import Item, Task
from ncvc.evaluation.item_search import ItemSearch, texts_of
from ncvc.evaluation.jmed_llm import test_examples as examples_of
from ncvc.evaluation.jmed_llm import training_conversations
from ncvc.evaluation.leaks import leak_status
from ncvc.evaluation.seen_items import document_hash, seen_items, training_records
from ncvc.evaluation.tasks import load_tasks
from ncvc.shards import TokenWriter
from ncvc.storage import write_json
from ncvc.tokenizer import Tokenizer, segment_text

SHARED = REPOSITORY.parent / "shared" / "data"
QUESTION = "生後三週の女児が嘔吐を主訴に来院した。腹部の触診で右上腹部に腫瘤を触れる。診断はどれか。"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    write_jmed(folder / "jmed_llm")
    write_igakuqa(folder / "igakuqa")
    return folder


def question(text: str, *, name: str = "q", task: str = "own", passage: str = "") -> Item:
    return Item(
        id=name, task=task, kind="choice", messages=(Message("user", f"{text}\nA. はい\nB. いいえ"),), gold=("A",),
        letters=("A", "B"), options=("はい", "いいえ"), passage=passage, metadata={"question": text},
    )  # fmt: skip


def task_of(*items: Item) -> Task:
    return Task(name="own", family="own", items=items)


@pytest.fixture
def tuned(tmp_path, base):
    """A run's folder as tuning leaves it, on the given sources; returns the record of its model."""

    def build(*sources: ConversationSource, fraction: float = 0.0, name: str = "run", started_from: Path | None = None):
        prepared = prepare_conversations(
            sources,
            base_tokenizer=base / "tokenizer",
            home=tmp_path / "home",
            settings=EncodingSettings(context_length=4096),
            workers=1,
            progress=False,
        )
        run = tmp_path / "home" / "runs" / "sft" / name
        train = {key: str(path) for key, path in prepared.train.items()}
        fingerprint = f"data of {name}"
        write_json(
            run / "data.json", {"fingerprint": fingerprint, "tokenizer": str(prepared.tokenizer), "train": train}
        )
        (run / "config.yaml").write_text(
            f"data: {{validation_fraction: {fraction}, split_seed: 0, home: '${{x.y}}'}}\n"
        )
        training = {"data_fingerprint": fingerprint}
        if started_from is not None:
            training["base"] = {"weights": "0"}
            write_json(run / "base.json", {"path": str(started_from), "sha256": "0"})
        write_json(run / "model" / "model_config.json", {"training": training})
        return {"directory": str(run / "model"), "training": training}

    return build


def jmed(benchmarks: Path, split: str = "paper", fold: int | None = None) -> ConversationSource:
    return ConversationSource(name="jmed", path=str(benchmarks / "jmed_llm"), kind="jmed_llm", split=split, fold=fold)


def messages(path: Path, *texts: str) -> ConversationSource:
    rows = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "はい。"}]} for text in texts
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return ConversationSource(name="messages", path=str(path), kind="messages")


@pytest.mark.parametrize(("split", "fold"), [("paper", None), ("document", None), ("grouped", 0), ("grouped", 3)])
def test_documents_of_jmed_llm_are_told_as_the_split_has_them(tuned, benchmarks, split, fold):
    folder = benchmarks / "jmed_llm"
    trained = {example.document for example in training_conversations(folder, split=split, fold=fold)}
    record = tuned(jmed(benchmarks, split, fold))
    for tested, test_fold in (("paper", None), ("grouped", 0), ("grouped", 3)):
        examples = examples_of(folder, split=tested, fold=test_fold)
        names = sorted({example.task for example in examples})
        tasks = load_tasks(names, directory=benchmarks, split=tested, fold=test_fold)
        seen = seen_items(tasks, model=record)
        for task in tasks:
            wanted = {f"{e.source}:{e.row}" for e in examples if e.task == task.name and e.document in trained}
            assert seen[task.name].items == wanted, task.name
            assert seen[task.name].complete
            status = leak_status(task, seen=seen[task.name]).status
            assert status == ("some" if wanted else "none")


def test_what_a_run_held_out_does_not_count(tuned, tmp_path):
    texts = [text_of(number) for number in range(40)]
    source = messages(tmp_path / "rows.jsonl", *texts)
    tasks = [task_of(*(question(text, name=f"q{number}") for number, text in enumerate(texts)))]
    assert len(seen_items(tasks, model=tuned(source, name="all"))["own"].items) == 40
    record = tuned(source, fraction=0.3, name="some")
    folder = Path(json.loads((Path(record["directory"]).parent / "data.json").read_text())["train"]["messages"])
    store = ConversationStore.open(folder)
    division = divide({"messages": store}, fraction=0.3, most_scored=1, seed=0)
    assert 0 < len(division.held_out["messages"]) < 40
    trained = {f"q{int(store.row(int(number)).rsplit(':', 1)[1]) - 1}" for number in division.train["messages"]}
    assert seen_items(tasks, model=record)["own"].items == trained


def test_a_question_in_other_conversations_is_found_whatever_its_width_and_breaks(tuned, tmp_path):
    disguised = QUESTION.replace("三週", "三週\n").replace("。", " . ").replace("来院", "「来院」")
    record = tuned(messages(tmp_path / "rows.jsonl", f"次の問題を解いて。{disguised} A: はい", "別の話。"))
    tasks = [task_of(question(QUESTION), question(QUESTION.replace("女児", "男児"), name="other"))]
    seen = seen_items(tasks, model=record)["own"]
    assert seen.items == {"q"}
    assert seen.complete
    assert "holds 1 of 2 items" in seen.why


def test_items_too_short_to_be_looked_for_leave_the_record_incomplete(tuned, tmp_path):
    record = tuned(messages(tmp_path / "rows.jsonl", "熱がある。今日は休む。"))
    seen = seen_items([task_of(question("熱がある。"))], model=record)["own"]
    assert seen.items == frozenset()
    assert not seen.complete
    assert "1 items are too short to be looked for" in seen.why
    assert leak_status(task_of(question("熱がある。")), seen=seen).status == "unknown"


def test_the_run_that_a_run_started_from_counts_too(tuned, tmp_path, benchmarks):
    first = tuned(messages(tmp_path / "first.jsonl", QUESTION), name="first")
    tasks = [task_of(question(QUESTION))]
    second = tuned(
        messages(tmp_path / "second.jsonl", "別の話。"), name="second", started_from=Path(first["directory"])
    )
    seen = seen_items(tasks, model=second)["own"]
    assert seen.items == {"q"}
    assert seen.complete
    records, _ = training_records(second, home=None)
    assert [record.name for record in records] == ["sft/second", "sft/first"]
    shutil.rmtree(Path(first["directory"]).parent)
    seen = seen_items(tasks, model=second)["own"]
    assert (seen.items, seen.complete) == (frozenset(), False)
    assert "no run's data.json tells what the model it started from was trained on" in seen.why


def test_a_model_that_was_moved_is_known_by_its_fingerprint(tuned, tmp_path):
    record = tuned(messages(tmp_path / "rows.jsonl", QUESTION))
    moved = {"directory": str(tmp_path / "elsewhere" / "model"), "training": record["training"]}
    tasks = [task_of(question(QUESTION))]
    assert not seen_items(tasks, model=moved)["own"].complete
    assert seen_items(tasks, model=moved, home=tmp_path / "home")["own"].items == {"q"}
    foreign = {"directory": record["directory"], "training": {"data_fingerprint": "another"}}
    assert not seen_items(tasks, model=foreign, home=tmp_path / "home")["own"].complete


@pytest.mark.parametrize("model", [{}, {"directory": None}, {"kind": "server", "server": "http://localhost:1"}])
def test_a_model_without_a_record_is_unknown(model):
    task = task_of(question(QUESTION))
    seen = seen_items([task], model=model)["own"]
    assert (seen.items, seen.complete) == (frozenset(), False)
    assert leak_status(task, seen=seen).status == "unknown"


@pytest.mark.parametrize("damage", ["store", "tokenizer", "data.json", "config.yaml"])
def test_a_damaged_record_is_unknown_and_raises_nothing(tuned, tmp_path, damage):
    record = tuned(messages(tmp_path / "rows.jsonl", "別の話。"))
    run = Path(record["directory"]).parent
    data = json.loads((run / "data.json").read_text())
    if damage == "store":
        (Path(data["train"]["messages"]) / "tokens.bin").write_bytes(b"")
    elif damage == "tokenizer":
        shutil.rmtree(data["tokenizer"])
    else:
        (run / damage).write_text("{: not this [")
    seen = seen_items([task_of(question(QUESTION))], model=record)["own"]
    assert seen.items == frozenset()
    assert seen.complete == (damage == "config.yaml")  # then all conversations count as trained on


def pretrained(folder: Path, base: Path, texts: list[str], *, certificate: bool) -> dict:
    """The record of a model that read ``texts`` as a token file, with the corpus's certificate or without."""
    tokenizer = Tokenizer.load(base / "tokenizer")
    segmented = [segment_text(tokenizer.cleaner(text), analyzer=tokenizer.analyzer) for text in texts]
    tokens = folder / "tokens" / "source" / "train"
    tokens.mkdir(parents=True)
    with TokenWriter(tokens, tokenizer=tokenizer) as writer:
        for text in segmented:
            writer.add(text)
        writer.finish(source_fingerprint="x", split="train")
    if certificate:
        fingerprints = FingerprintWriter(folder / "fingerprints")
        for text in segmented:
            fingerprints.add(text)
        fingerprints.close()
        merge_certificate([folder / "fingerprints"], directory=tokens.parent / "certificate", corpus="x")
    run = folder / "runs" / "base" / "run"
    data = {"fingerprint": "f", "tokenizer": str(base / "tokenizer"), "train": {"source": str(tokens)}}
    write_json(run / "data.json", data)
    return {"directory": str(run / "model"), "training": {"data_fingerprint": "f"}}


@pytest.mark.parametrize("certificate", [True, False])
def test_a_text_corpus_is_asked_by_its_certificate_or_searched(tmp_path, base, certificate):
    texts = [text_of(1), f"{text_of(2)}{QUESTION}{text_of(3)}", text_of(4)]
    record = pretrained(tmp_path, base, texts, certificate=certificate)
    asked = {"in": QUESTION, "case": text_of(4), "out": QUESTION.replace("女児", "男児"), "other": text_of(5)}
    seen = seen_items([task_of(*(question(text, name=name) for name, text in asked.items()))], model=record)["own"]
    assert {"in", "case"} <= seen.items
    assert "other" not in seen.items
    assert seen.complete
    assert ("by its certificate" in seen.why) == certificate
    assert certificate or "out" not in seen.items  # a certificate is asked for any 30 letters in a row


def test_a_large_corpus_without_a_certificate_is_unknown(tmp_path, base, monkeypatch):
    monkeypatch.setattr(seen_items_module, "MOST_TOKENS", 10)
    record = pretrained(tmp_path, base, [QUESTION], certificate=False)
    seen = seen_items([task_of(question(QUESTION))], model=record)["own"]
    assert not seen.complete
    assert "has no certificate, and its" in seen.why


# --- the search itself
def test_the_search_agrees_with_a_plain_one_on_random_texts():
    draw = np.random.default_rng(0)
    letters = "".join(chr(code) for code in range(0x4E00, 0x4E08))
    long = ["".join(draw.choice(list(letters), size=200)) for _ in range(30)]
    items = []
    for number in range(200):
        text = long[number % 30]
        start, length = int(draw.integers(0, 150)), int(draw.integers(5, 90))
        piece = text[start : start + length]
        if number % 3 == 0:
            piece = piece[:-1] + "亜"
        items.append(question(piece, name=str(number)))
    search = ItemSearch([task_of(*items)], clean=str)
    search.look_through(long)
    for one in items:
        [text] = texts_of(one)
        pieces = [text[at : at + 40] for at in range(0, len(text) - 39, 40)] if len(text) >= 40 else [text]
        if len(text) < 20:
            assert ("own", one.id) in search.too_short
        else:
            assert (("own", one.id) in search.found) == any(piece in whole for piece in pieces for whole in long)


def test_the_wording_that_many_items_share_is_no_match():
    wording = "以下の症例報告において、次の表現が有害事象である可能性について最も適切なものはどれか選びなさい。"
    items = [question(f"{wording}{chr(0x4E00 + 50 * number) * 45}", name=str(number)) for number in range(12)]
    search = ItemSearch([task_of(*items)], clean=str)
    search.look_through([f"{wording}それは違う。", items[3].metadata["question"]])
    assert search.found == {("own", "3")}


def test_no_piece_reaches_over_the_end_of_a_text():
    text = QUESTION.replace("。", "")
    search = ItemSearch([task_of(question(text[:40]))], clean=str)
    search.look_through([text[:25], text[25:]])
    assert search.found == set()


def test_passages_sentences_and_questions_are_what_is_looked_for(benchmarks):
    tasks = {task.name: task for task in load_tasks(["jmed_llm"], directory=benchmarks)}
    assert texts_of(tasks["crade"].items[0]) == (CASES[0],)
    assert texts_of(tasks["rrtnm"].items[0]) == (REPORTS[0],)
    assert texts_of(tasks["smdis"].items[0]) == (POSTS[0],)
    assert len(texts_of(tasks["jcsts"].items[0])) == 2
    assert texts_of(tasks["nrner"].items[0]) == (tasks["nrner"].items[0].passage,)


def test_documents_are_hashed_as_the_store_hashes_them(tuned, benchmarks):
    record = tuned(jmed(benchmarks))
    data = json.loads((Path(record["directory"]).parent / "data.json").read_text())
    store = ConversationStore.open(Path(data["train"]["jmed"]))
    examples = training_conversations(benchmarks / "jmed_llm", split="paper")
    names = {f"{example.source}:{example.row}": example.document for example in examples}
    assert [document_hash(names[store.row(number)]) for number in range(len(store))] == store.hashes[:, 1].tolist()


@pytest.mark.slow
def test_the_paper_split_is_told_as_its_documents_were_counted(tuned):
    """Test rows whose document is in the rows left for training, counted apart from this code (jcsts: by group)."""
    if not SHARED.is_dir():
        pytest.skip("the shared data are not beside the repository")
    source = ConversationSource(name="jmed", path=str(SHARED / "jmed_llm"), kind="jmed_llm", split="paper")
    seen = seen_items(load_tasks(["jmed_llm", "igakuqa_2018"], directory=SHARED), model=tuned(source))
    assert {name: len(found.items) for name, found in seen.items() if name != "igakuqa_2018"} == {
        "smdis": 100, "crade": 100, "mrner_disease": 50, "mrner_medicine": 100, "rrtnm": 94, "nrner": 63, "jcsts": 68,
        "jmmlu_med": 4,
    }  # fmt: skip
    assert all(found.complete for name, found in seen.items() if name != "igakuqa_2018")
    assert not seen["igakuqa_2018"].items
