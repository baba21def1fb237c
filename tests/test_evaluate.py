"""The program ``ncvc.evaluate``: what it asks, where answers and scores lie, how it goes on, what it scores again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, program_environment
from igakuqa_world import write_igakuqa
from jmed_world import write_jmed
from omegaconf import OmegaConf
from serving_world import chat_model
from teacher_server import Server, completion

from ncvc.evaluate import evaluate
from ncvc.evaluation.answers import read_answers
from ncvc.evaluation.sheet import read_scores
from ncvc.evaluation_settings import TEXTS, EvaluateSettings
from ncvc.settings import plain_texts

SMALL = ["max_new_tokens=12", "scoring.baselines=false", "scoring.resamples=200"]


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    write_igakuqa(folder / "igakuqa")
    write_jmed(folder / "jmed_llm")
    return folder


@pytest.fixture
def run(composed, tmp_path, benchmarks):
    """The program in this process on the drilled chat model; texts as they are typed, the folders it returns."""

    def start(*overrides: str, **texts: object) -> list[Path]:
        home = [f"home={tmp_path / 'home'}", f"benchmarks.dir={benchmarks}"]
        config = composed(*home, *SMALL, *overrides, root="evaluate")
        return evaluate(
            config, texts={"model": str(chat_model()), **{name: str(value) for name, value in texts.items()}}
        )

    return start


def test_tasks_are_asked_once_saved_and_scored_in_a_folder_of_model_and_settings(run, tmp_path, capsys):
    [folder] = run("tasks=[smdis,nrner,igakuqa_2018]")
    assert folder.parent == tmp_path / "home" / "scores" / chat_model().name
    assert folder.name.startswith("generation-paper-0shot-")
    answers = read_answers(folder / "answers.jsonl")
    scores = read_scores(folder)
    assert [(task["task"], task["items"], task["answered"]) for task in scores["tasks"]] == [
        (name, sum(key[0] == name for key in answers), sum(key[0] == name for key in answers))
        for name in ("smdis", "nrner", "igakuqa_2018")
    ]
    assert scores["model"]["name"] == chat_model().name and len(scores["model"]["sha256"]) == 64
    told = capsys.readouterr()
    assert "smdis" in told.out and "verdict" not in told.err and "igakuqa_2018" in told.out
    before = (folder / "answers.jsonl").read_bytes()
    assert run("tasks=[smdis,nrner,igakuqa_2018]", "batch_size=2") == [folder]
    assert (folder / "answers.jsonl").read_bytes() == before
    assert "items are answered already" in capsys.readouterr().err


def test_a_changed_setting_gets_a_folder_of_its_own_and_is_refused_by_name_in_anothers(run, tmp_path):
    first = run("tasks=smdis", output=tmp_path / "one")[0]
    before = (first / "answers.jsonl").read_bytes()
    for override, told in (
        ("constrained=true", "constrained was False, is True"),
        ("method=log_likelihood", "method was generation, is log_likelihood"),
        ("split=document", "split was paper, is document"),
        ("max_new_tokens=11", "max_new_tokens was 12, is 11"),
        ("dtype=bfloat16", "model.dtype was float32, is bfloat16"),
    ):
        with pytest.raises(ValueError, match=told):
            run("tasks=smdis", override, output=tmp_path / "one")
    assert (first / "answers.jsonl").read_bytes() == before
    assert run("tasks=smdis")[0] != run("tasks=smdis", "constrained=true")[0]
    assert len(list((tmp_path / "home" / "scores" / chat_model().name).iterdir())) == 2


def test_tasks_can_be_added_and_the_scores_are_of_all_that_were_asked(run):
    [folder] = run("tasks=[crade]")
    assert run("tasks=[jcsts]") == [folder]
    assert [task["task"] for task in read_scores(folder)["tasks"]] == ["crade", "jcsts"]


def test_both_methods_get_a_folder_each_and_log_likelihoods_are_kept(run):
    written, weighed = run("tasks=[crade,nrner]", "method=both")
    assert all(answer.log_likelihoods is None for answer in read_answers(written / "answers.jsonl").values())
    kept = {answer.task: answer.log_likelihoods for answer in read_answers(weighed / "answers.jsonl").values()}
    assert len(kept["crade"]) == 4 and kept["nrner"] is None
    assert read_scores(weighed)["method"] == "log_likelihood"


def test_scoring_can_be_repeated_without_the_model_and_gives_the_same(run, tmp_path, monkeypatch):
    [folder] = run("tasks=[smdis,igakuqa_2018]", "shots=3")
    scores = read_scores(folder)
    assert scores["shots"] == 3
    (folder / "scores.json").unlink()
    monkeypatch.setitem(sys.modules, "ncvc.model.responders", None)  # importing it would fail
    assert run(score=folder) == [folder]
    again = read_scores(folder)
    for record in (scores, again):
        record.pop("created")
    assert again == scores


def test_answers_decide_the_score_and_nothing_else_does(run, tmp_path):
    """Gold answers put into the file score 1, whatever the model said."""
    [folder] = run("tasks=[crade]")
    evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    settings = EvaluateSettings.from_plain({**plain_configuration(), "tasks": evaluation["benchmark"]["tasks"],
                                            "benchmarks": {"dir": evaluation["benchmark"]["directory"]}})  # fmt: skip
    [task] = settings.benchmark.load()
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    gold = {item.id: item.gold[0] for item in task.items}
    text = "\n".join(json.dumps({**line, "answer": gold[line["id"]]}) for line in lines)
    (folder / "answers.jsonl").write_text(text + "\n", encoding="utf-8")
    run(score=folder)
    [record] = read_scores(folder)["tasks"]
    assert record["as_published"]["accuracy"] == 1 == record["corrected"]["accuracy"]


def plain_configuration(**changes) -> dict:
    plain = OmegaConf.to_container(OmegaConf.load(REPOSITORY / "conf" / "evaluate.yaml"))
    for name in ("defaults", "hydra"):
        plain.pop(name)
    return {**plain, "home": "home", "tasks": ["crade"], "benchmarks": {"dir": "b", "own": {}}, **changes}


def test_a_server_is_asked_by_name_and_its_faults_do_not_count_as_wrong(run, capsys):
    broken = [True]

    def script(body, nth):
        wanted = "である可能性は" in body["messages"][-1]["content"]
        return (400, {}, b"no") if wanted and broken else completion("A")

    with Server(script, models=("tiny", "other")) as server:
        arguments = {"model": "other", "server": server.url}
        [folder] = run("tasks=[crade,smdis]", "teacher.retries=0", **arguments)
        assert {body["model"] for _, body, _ in server.requests} == {"other"}
        crade, smdis = read_scores(folder)["tasks"]
        assert (crade["failed"], crade["answered"], smdis["failed"]) == (2, 0, 0)
        assert "failed" in capsys.readouterr().out
        broken.clear()
        assert run("tasks=[crade,smdis]", "teacher.retries=0", **arguments) == [folder]
        assert read_scores(folder)["tasks"][0]["answered"] == 2


def test_a_task_of_ones_own_is_asked_and_scored(run, tmp_path):
    rows = [{"question": f"問{n}はどれか。", "options": ["甲", "乙"], "answer": "AB"[n % 2]} for n in range(4)]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    [folder] = run("tasks=[mine]", f"+benchmarks.own.mine={{path: {path}, kind: choice}}", "constrained=true")
    [record] = read_scores(folder)["tasks"]
    assert record["task"] == "mine" and record["answered"] == 4 and record["refused"] == 0


def test_free_texts_are_kept_from_the_grammar_of_overrides():
    rest, texts = plain_texts(
        ["model=a,b=c", "server=http://h:1/v1?a={b}", "tasks=[crade]", "score=null", "-m"], names=TEXTS
    )
    assert rest == ["tasks=[crade]", "score=null", "-m"] and set(texts) == {"model", "server"}


@pytest.mark.slow
def test_a_killed_program_goes_on_where_it_stopped_and_ends_the_same(tmp_path, benchmarks):
    command = [
        sys.executable, "-m", "ncvc.evaluate", f"model={chat_model()}", "tasks=[jmed_llm,igakuqa]", *SMALL,
        f"benchmarks.dir={benchmarks}", "batch_size=2",
    ]  # fmt: skip
    environment = program_environment(tmp_path / "home")
    whole = tmp_path / "whole"
    subprocess.run([*command, f"output={whole}"], check=True, cwd=REPOSITORY, env=environment, timeout=200)
    part = tmp_path / "part"
    process = subprocess.Popen([*command, f"output={part}"], cwd=REPOSITORY, env=environment)
    try:
        while not (part / "answers.jsonl").is_file() or (part / "answers.jsonl").stat().st_size < 500:
            assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    done = len((part / "answers.jsonl").read_bytes().splitlines())
    expected = read_answers(whole / "answers.jsonl")
    assert 0 < done < len(expected)
    result = subprocess.run(
        [*command, f"output={part}"], check=True, cwd=REPOSITORY, env=environment, timeout=200, capture_output=True,
        text=True,
    )  # fmt: skip
    assert "answered already; going on" in result.stderr
    found = read_answers(part / "answers.jsonl")
    assert {key: answer.answer for key, answer in found.items()} == {key: a.answer for key, a in expected.items()}
    records = [read_scores(folder)["tasks"] for folder in (whole, part)]
    assert records[0] == records[1]
