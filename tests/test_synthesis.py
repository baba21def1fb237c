"""Synthesis: what is planned, what is kept and why not, and that kills at any moment change nothing of the result."""

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthesis_world import NAMES, answer, exercise, plan, quiet, rows_of, run, settings, textbook, words_for
from teacher_server import Server, completion

from ncvc.corpus.reading.readers import read_documents
from ncvc.corpus.synthesis.checks import Rejection
from ncvc.corpus.synthesis.plan import (
    PROVENANCE,
    Prompt,
    SynthesisPlan,
    Topic,
    choose_topics,
    read_topics,
    sentences,
)
from ncvc.corpus.synthesis.progress import Progress, duration
from ncvc.corpus.synthesis.run import synthesize
from ncvc.storage import check_file
from ncvc.teachers.teacher import Answer, Failure, Request, ScriptedTeacher

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("unbroken") / "out"
    run(output, pause=0, tell=quiet)
    return output


# --- what is planned ---


def test_the_plan_is_every_topic_by_prompt_by_teacher_by_sample_in_order():
    whole = plan(topics=4)
    items = [item for topic in range(4) for name in whole.teachers for item in whole.unit(topic, teacher=name)]
    places = [(item.topic.surface, item.teacher, item.sample) for item in sorted(items, key=lambda item: item.number)]
    assert places == [(topic, name, n) for topic in NAMES[:4] for name in ("one", "two") for n in range(5)]
    assert len({item.number for item in items}) == len({whole.id(item) for item in items}) == 40
    assert whole.size("one") == 20


def test_five_exercises_ask_about_five_things():
    (prompt,) = (prompt for prompt in settings().prompt_list if prompt.id == "disease")
    asked = {prompt.messages(Topic("肺炎", "disease"), sample=n)[-1]["content"] for n in range(5)}
    assert len(asked) == 5 and all("「肺炎」" in text and "{" not in text for text in asked)


def test_braces_in_a_topic_are_no_placeholders():
    prompt = Prompt(id="p", kinds=("disease",), user="{topic}と{kind}と{angle}", angles=("治療",))
    messages = prompt.messages(Topic("{kind}{angle}{topic}{x}", "disease"), sample=0)
    assert messages == [{"role": "user", "content": "{kind}{angle}{topic}{x}と疾患と治療"}]


@given(st.integers(1, 5), st.integers(0, 99), st.text(min_size=1, max_size=8))
def test_a_share_of_the_teachers_is_chosen_by_the_seed_alone(wanted, seed, surface):
    names = ("a", "b", "c", "d", "e")
    topic = Topic(surface.encode("utf-8", "replace").decode(), "disease")
    chosen = plan(teachers=names, teachers_per_prompt=wanted, seed=seed)
    assigned = chosen.assigned(topic, chosen.prompts[0])
    assert len(assigned) == wanted
    assert assigned == plan(teachers=names[::-1], teachers_per_prompt=wanted, seed=seed).assigned(
        topic, chosen.prompts[0]
    )
    if wanted < 5:
        more = plan(teachers=names, teachers_per_prompt=wanted + 1, seed=seed)
        assert assigned < more.assigned(topic, chosen.prompts[0])


def test_shares_are_even_over_many_topics():
    names = ("a", "b", "c", "d", "e")
    chosen = plan(teachers=names, teachers_per_prompt=2)
    counts = Counter(
        name for n in range(2000) for name in chosen.assigned(Topic(f"病{n}", "disease"), chosen.prompts[0])
    )
    assert all(abs(counts[name] - 800) < 100 for name in names)  # 4.6 standard deviations


def test_a_request_does_not_depend_on_the_other_topics():
    few, many = plan(topics=2), plan(topics=9)
    requests = [whole.request(whole.unit(1, teacher="two")[3], attempt=1) for whole in (few, many)]
    assert requests[0] == requests[1]
    seeds = {many.seed(item, attempt=n) for topic in range(9) for name in many.teachers
             for item in many.unit(topic, teacher=name) for n in range(3)}  # fmt: skip
    assert len(seeds) == 9 * 2 * 5 * 3


def test_topics_are_cleaned_counted_and_limited():
    entries = [
        Topic("肺炎", "disease"),
        Topic("肺炎", "disease"),
        Topic(" 痛風\n", "disease"),
        Topic("", "drug"),
        Topic("あ" * 101, "drug"),
        Topic("脳\x00", "drug"),
        Topic("半\ud800", "drug"),
        Topic("錠Ａ　１ｍｇ", "drug"),
        Topic("錠▁B", "drug"),
        Topic("頭蓋骨", "anatomy"),
        Topic("心電図", "general"),
    ]
    topics, left_out = choose_topics(entries, settings=settings(), limits={"drug": 1, "disease": None})
    assert [topic.surface for topic in topics] == ["肺炎", "痛風", "錠Ａ １ｍｇ", "心電図"]
    assert sum(left_out.values()) == 7 and left_out["named twice"] == 1
    assert left_out["beyond topics.limits.drug=1"] == 1 and left_out["no prompt is for topics of the kind anatomy"] == 1
    with pytest.raises(ValueError, match="not one topic is left"):
        choose_topics([], settings=settings())


def test_topic_files_are_read_and_their_bad_lines_told(tmp_path):
    plain = tmp_path / "topics.txt"
    plain.write_bytes("\ufeff肺炎\n\n# 註\nアスピリン\tdrug\r\n".encode() + b"\xff\xfe\n" + "痛風".encode())
    topics, problems = read_topics(plain, kind="disease")
    assert topics == [Topic("肺炎", "disease"), Topic("アスピリン", "drug"), Topic("痛風", "disease")]
    assert len(problems) == 1 and problems[0].startswith("topics.txt:5:")
    lines = tmp_path / "topics.jsonl"
    lines.write_text('{"surface": "肺炎"}\n{"surface": 3}\n[]\n{"surface": "錠", "kind": "drug"}\n{', encoding="utf-8")
    topics, problems = read_topics(lines, kind="general")
    assert topics == [Topic("肺炎", "general"), Topic("錠", "drug")] and len(problems) == 3
    with pytest.raises(FileNotFoundError, match=r"topics\.file"):
        read_topics(tmp_path / "none", kind="disease")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 0}, "synthesis.samples=0"),
        ({"kind": "novel"}, "synthesis.kind='novel'"),
        ({"teachers_per_prompt": 0}, "teachers_per_prompt=0"),
        ({"prompts": {}}, "synthesis.prompts is empty"),
        ({"prompts": {"a": "text"}}, "synthesis.prompts.a='text'"),
        ({"prompts": {"a": {"kinds": ["drug"], "user": "書け"}}}, "synthesis.prompts.a: must name"),
        ({"prompts": {"a": {"kinds": ["drug"], "user": "{topic}{angle}"}}}, "synthesis.prompts.a: angles"),
        ({"prompts": {"a": {"kinds": ["drug"], "user": "{topic}", "tone": "x"}}}, "synthesis.prompts.a.tone: no such"),
        ({"checks": {"refusals": ["("]}}, "synthesis.checks"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        settings(**changes)


# --- what is written ---


def test_every_row_says_where_it_comes_from(finished):
    rows = rows_of(finished / "documents" / "exercise-00000.jsonl")
    whole = plan()
    by_id = {whole.id(item): item for n in range(10) for name in whole.teachers for item in whole.unit(n, teacher=name)}
    assert len(rows) > 80
    for row in rows:
        item = by_id[row["id"]]
        expected = answer(whole.request(item, attempt=row["attempt"]))
        assert row["text"] == expected and row["exercise"]["answer"] == ["b"]
        assert (row["teacher"], row["topic"], row["topic_kind"]) == (item.teacher, item.topic.surface, "disease")
        assert row["seed"] == whole.seed(item, attempt=row["attempt"])
        assert row["model"] == item.teacher  # as the scripted teacher's identity says
        assert row["prompt_sha256"] == item.prompt.sha256 and row["created_by"].startswith("ncvc ")
    assert [row["id"] for row in rows] == sorted(by_id.keys() & {row["id"] for row in rows})


def test_every_sentence_carries_its_provenance(finished):
    for row in rows_of(finished / "documents" / "exercise-00000.jsonl")[:20]:
        found = list(sentences(row))
        assert re.sub(r"\s", "", "".join(sentence for sentence, _ in found)) == re.sub(r"\s", "", row["text"])
        assert len(found) >= 9
        assert all(origin == {name: row[name] for name in PROVENANCE} for _, origin in found)
    assert {"teacher", "model", "prompt", "topic", "seed"} <= set(PROVENANCE)


@given(st.text())
def test_sentences_lose_nothing_but_white_space(text):
    row = {"text": text, **dict.fromkeys(PROVENANCE)}
    assert "".join("".join(sentence.split()) for sentence, _ in sentences(row)) == "".join(text.split())


def test_wanted_is_kept_and_lost_and_every_rejected_answer_is_there_with_its_reason(finished):
    manifest = json.loads((finished / "manifest.json").read_text(encoding="utf-8"))
    rows, rejects = rows_of(finished / "documents" / "exercise-00000.jsonl"), rows_of(finished / "rejects.jsonl")
    for name, entry in manifest["teachers"].items():
        reasons = Counter(reject["reason"] for reject in rejects if reject["teacher"] == name)
        assert entry["rejected"] == dict(reasons)
        assert entry["accepted"] == sum(row["teacher"] == name for row in rows)
        assert entry["wanted"] == 50 == entry["accepted"] + entry["lost"]
        assert entry["answers"] == entry["accepted"] + sum(reasons.values())
        assert entry["characters"] == sum(len(row["text"]) for row in rows if row["teacher"] == name)
        assert entry["identity"] == {"backend": "scripted", "model": name}
    assert {"refusal", "answered in English", "cut off", "no answer", "topic not mentioned", "chat marks"} <= {
        reject["reason"] for reject in rejects
    }
    whole, lost = plan(), {reject["id"] for reject in rejects if reject["last_attempt"]}
    assert lost.isdisjoint(row["id"] for row in rows)
    assert all(reject["attempt"] <= whole.settings.attempts - 1 for reject in rejects)
    for name, record in manifest["files"].items():
        check_file(finished / name, record, verify=True)


def test_a_rejected_answer_is_asked_again_with_another_seed_up_to_the_limit(tmp_path):
    asked: list[Request] = []

    def script(request):
        asked.append(request)
        return "" if len(asked) < 3 else exercise("肺炎", words_for(request))

    whole = plan(topics=1, teachers=("one",), samples=1)
    manifest = synthesize(
        whole, teachers={"one": lambda: ScriptedTeacher(script, name="one")}, output=tmp_path / "a", tell=quiet
    )
    assert manifest["teachers"]["one"]["accepted"] == 1
    assert [request.messages for request in asked] == [asked[0].messages] * 3
    assert len({request.seed for request in asked}) == 3
    asked.clear()
    silent = {"one": lambda: ScriptedTeacher(lambda request: asked.append(request) or "", name="one")}
    never = synthesize(whole, teachers=silent, output=tmp_path / "b", tell=quiet)
    assert len(asked) == 3 and never["teachers"]["one"]["lost"] == 1


def test_the_same_and_nearly_the_same_are_kept_once(tmp_path):
    def script(request):
        angle = re.search("問うのは(.+?)です", request.messages[-1]["content"])[1]
        words = words_for(Request(request.messages, seed=0, max_tokens=1))
        first = exercise("肺炎", words)
        return first.replace("60歳", "61歳") if angle == "検査と診断" else first  # near, else exactly the same

    whole = plan(topics=1, teachers=("one",))
    run(tmp_path / "out", pause=0, which=("one",), tell=quiet, chosen=whole)
    assert synthesize(
        whole, teachers={"one": lambda: ScriptedTeacher(script, name="one")}, output=tmp_path / "same", tell=quiet
    )
    rows, rejects = rows_of(tmp_path / "same/documents/exercise-00000.jsonl"), rows_of(tmp_path / "same/rejects.jsonl")
    assert [row["sample"] for row in rows] == [0]
    reasons = Counter((reject["sample"], reject["reason"]) for reject in rejects)
    assert reasons == {(1, "duplicate"): 3, (2, "near duplicate"): 3, (3, "duplicate"): 3, (4, "duplicate"): 3}


def test_copies_by_another_teacher_or_on_another_topic_are_left_out(tmp_path):
    def script(request):
        return textbook("肺炎と痛風", words_for(Request(request.messages, seed=0, max_tokens=1)))

    whole = plan("textbook", topics=2)
    teachers = {name: lambda name=name: ScriptedTeacher(script, name=name) for name in ("one", "two")}
    manifest = synthesize(whole, teachers=teachers, output=tmp_path / "out", tell=quiet)
    rows = rows_of(tmp_path / "out/documents/textbook-00000.jsonl")
    assert [(row["topic"], row["teacher"], row["prompt"]) for row in rows] == [("肺炎", "one", "disease")]
    assert sum(entry["wanted"] for entry in manifest["teachers"].values()) == 8


def test_the_documents_are_a_source_for_the_readers(finished):
    problems = []
    documents = list(read_documents(finished / "documents", on_problem=problems.append))
    assert problems == []
    rows = rows_of(finished / "documents" / "exercise-00000.jsonl")
    assert [(document.id, document.text) for document in documents] == [(row["id"], row["text"]) for row in rows]


def test_progress_tells_share_and_time_left(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    told = []
    progress = Progress(every=50.0, tell=told.append)
    progress.begin("t", wanted=100, attempts=3, answered=0)
    for number in range(50):  # half are usable: about 200 answers for 100 documents, at 1 a second
        now[0] += 1.0
        progress.count("t", accepted=number % 2 == 0)
    assert told == ["t: 50 answers for 100 documents, 50.0% usable, 1.00 requests/s, about 2 min 30 s left"]
    assert [duration(s) for s in (0, 59, 3600, 200_000)] == ["0 s", "59 s", "1 h 0 min", "2 d 7 h"]


# --- the program ---


def test_the_program_writes_a_corpus_with_a_server_and_tells_what_it_did(tmp_path):
    def script(body, nth):
        request = Request(body["messages"], seed=body["seed"], max_tokens=body["max_tokens"])
        found = answer(request)
        if isinstance(found, Failure):
            return (500, {}, b"busy") if nth == 1 else completion(exercise("?", words_for(request)))
        return completion(found) if isinstance(found, str) else completion(found.text, found.finish_reason)

    server = Server(script)
    (tmp_path / "topics.txt").write_text("\n".join(NAMES[:3]), encoding="utf-8")
    command = [sys.executable, "-m", "ncvc.synthesize", "synthesis=exercise", f"topics.file={tmp_path / 'topics.txt'}",
               "topics.general=false", f"teacher.base_url={server.url}", "teacher.backoff_seconds=0.01",
               f"home={tmp_path / 'home'}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent, timeout=120, check=False,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    server.shutdown()
    assert done.returncode == 0, done.stderr
    assert "3 topics, 15 documents wanted" in done.stdout and "| teacher | 15 |" in done.stdout
    output = tmp_path / "home" / "synthesis" / "exercise"
    documents = list(read_documents(output / "documents", on_problem=print))
    assert len(documents) >= 12
    identity = json.loads((output / "manifest.json").read_text(encoding="utf-8"))["teachers"]["teacher"]["identity"]
    assert identity["model"] == "tiny"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["topics.general=false"], "not one topic is left"),
        (["teacher.base_url=http://8.8.8.8"], "is not of this network"),
        (["teacher.base_url=http://127.0.0.1:9"], "does not answer"),
        (["teacher.temperature=warm"], "teacher.temperature='warm': must be a number"),
        (["ask=[nobody]"], "nobody is no teacher of this run"),
        (["run.give_up_after=0"], "give_up_after"),
        (["synthesis.samples=x"], "synthesis.samples='x': must be a whole number"),
    ],
)
def test_the_program_refuses_in_words(composed, tmp_path, overrides, message):
    from ncvc.synthesize import synthesize as program

    with pytest.raises((ValueError, OSError), match=re.escape(message)):
        program(composed(f"home={tmp_path}", *overrides, root="synthesize"))


def test_a_lexicon_gives_the_topics(composed, tmp_path, capsys):
    from ncvc.synthesize import synthesize as program

    (tmp_path / "diseases.csv").write_text("name,kana,icd10\n心室細動,シンシツサイドウ,I490\n", encoding="utf-8")
    (tmp_path / "drugs.csv").write_text("name,code\nバファリン 錠,1143001\n", encoding="utf-8")
    files = {
        "diseases": {"path": str(tmp_path / "diseases.csv"), "format": "ssk_disease"},
        "drugs": {"path": str(tmp_path / "drugs.csv"), "surface": "name", "kind": "drug"},
    }
    (tmp_path / "answers.jsonl").write_text('{"text": ""}\n', encoding="utf-8")
    script = ["teacher=scripted", f"teacher.answers={tmp_path / 'answers.jsonl'}", "topics.general=false"]
    config = composed(f"home={tmp_path}", *script, root="synthesize")
    config.lexicon = {"files": files, "brands": False}
    with pytest.raises(ValueError, match=r"not one document was kept; read why in .*rejects\.jsonl"):
        program(config)
    assert "lexicon diseases" in capsys.readouterr().out
    topics = {row["topic"] for row in rows_of(tmp_path / "synthesis/textbook/rejects.jsonl")}
    assert topics == {"心室細動", "バファリン 錠"}
    with pytest.raises(ValueError, match="not one document was kept"):
        program(config)


def test_general_topics_are_the_ones_of_the_configuration(composed, tmp_path, capsys):
    from ncvc.synthesize import synthesize as program

    script = tmp_path / "answers.jsonl"
    words = words_for(Request([{"role": "user", "content": "?"}], seed=1, max_tokens=1))
    rows = [{"text": textbook(name, words), "contains": f"「{name}」"} for name in ("心電図", "緩和ケア")]
    script.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in [*rows, {"text": ""}]), encoding="utf-8")
    manifest = program(composed(f"home={tmp_path}", "teacher=scripted", f"teacher.answers={script}", root="synthesize"))
    assert manifest["teachers"]["scripted"]["accepted"] == 2
    assert manifest["teachers"]["scripted"]["wanted"] > 60
    assert "rejects" in capsys.readouterr().out


def test_prompts_of_the_configuration_serve_every_kind_of_topic():
    for kind in ("textbook", "exercise"):
        chosen = settings(kind)
        asked = {name for prompt in chosen.prompt_list for name in prompt.kinds}
        assert {"disease", "drug", "general"} <= asked
    assert settings("exercise").samples == 5  # R14
    whole = SynthesisPlan([Topic("肺炎", "disease")], settings=settings(), teachers=["t"])
    item = whole.unit(0, teacher="t")[0]
    assert isinstance(whole.judge(item, Answer(item.prompt.user)), Rejection)  # an echo of the prompt is no exercise
