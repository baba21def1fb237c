"""Bad input to ``ncvc.evaluate``: told by name before anything is asked, and never at the cost of saved answers."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, program_environment
from igakuqa_world import write_igakuqa
from jmed_world import write_jmed
from omegaconf import OmegaConf
from safetensors.torch import load_file
from serving_world import chat_model
from teacher_server import Server, completion

from ncvc.evaluate import evaluate
from ncvc.evaluation import running
from ncvc.evaluation.answers import read_answers
from ncvc.evaluation.sheet import read_scores
from ncvc.evaluation_settings import EvaluateSettings
from ncvc.model.checkpoint import load_model_directory, save_model_directory
from ncvc.resuming import RunStopped


@pytest.fixture
def benchmarks(tmp_path) -> Path:
    write_igakuqa(tmp_path / "benchmarks" / "igakuqa")
    return write_jmed(tmp_path / "benchmarks" / "jmed_llm").parent


@pytest.fixture
def run(composed, tmp_path, benchmarks):
    def start(*overrides: str, **texts: object) -> list[Path]:
        home = [f"home={tmp_path / 'home'}", f"benchmarks.dir={benchmarks}", "max_new_tokens=8"]
        config = composed(*home, "scoring.baselines=false", "scoring.resamples=100", *overrides, root="evaluate")
        return evaluate(
            config, texts={"model": str(chat_model()), **{name: str(value) for name, value in texts.items()}}
        )

    return start


def configuration(**changes) -> dict:
    plain = OmegaConf.to_container(OmegaConf.load(REPOSITORY / "conf" / "evaluate.yaml"))
    for name in ("defaults", "hydra"):
        plain.pop(name)
    return {**plain, "home": "home", "tasks": ["crade"], "benchmarks": {"dir": "b", "own": {}}, **changes}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tasks": []}, "tasks is empty"),
        ({"tasks": [1]}, "tasks="),
        ({"split": "random"}, "split='random'"),
        ({"shots": -1}, "shots=-1"),
        ({"shots": True}, "shots=True"),
        ({"method": "vote"}, "method='vote'"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 2.5}, "batch_size=2.5"),
        ({"too_long": "cut"}, "too_long='cut'"),
        ({"server": " "}, "server is empty"),
        ({"method": "both", "output": "x"}, "method=both"),
        ({"benchmarks": {"dir": None}}, "benchmarks.dir"),
        ({"benchmarks": {"dir": "b", "own": []}}, "benchmarks.own"),
        ({"benchmarks": {"dir": "b", "folder": "c"}}, "benchmarks.folder: no such setting"),
        ({"scoring": {"resample": 3}}, "scoring.resample: no such setting; did you mean resamples"),
        ({"scoring": {"resamples": "many"}}, "scoring.resamples='many'"),
        ({"scoring": {"resamples": 0}}, "scoring.resamples=0"),
        ({"scoring": {"certificate": 3}}, "scoring.certificate=3"),
        ({"mehtod": "generation"}, "mehtod: no such setting; did you mean method"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(changes, told):
    with pytest.raises(ValueError, match=told.replace("[", r"\[")):
        EvaluateSettings.from_plain(configuration(**changes))


def test_all_that_is_wrong_with_the_settings_is_told_at_once():
    with pytest.raises(ValueError, match=r"(?s)split='x'.*method='y'"):
        EvaluateSettings.from_plain(configuration(split="x", method="y"))


def test_tasks_are_looked_for_before_a_model_is_opened(run, tmp_path):
    for overrides, told in (
        (["tasks=[crdae]"], "did you mean crade"),
        (["tasks=[igakuqa_1999]"], "no year 1999"),
        (["tasks=[smdis]", "split=grouped"], "set fold"),
        (["tasks=[smdis]", "fold=1"], "has no folds"),
        (["tasks=[smdis]", f"benchmarks.dir={tmp_path / 'nowhere'}"], "benchmarks.dir="),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=told):
            run(*overrides, model=tmp_path / "no_model")
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        run("tasks=[smdis]", model=tmp_path / "no_model")
    assert not (tmp_path / "home" / "scores").exists()


def test_a_folder_that_is_no_evaluation_is_left_alone(run, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is in the way"):
        run("tasks=[smdis]", output=mine)
    for folder in (mine, tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match="holds no evaluation"):
            run(score=folder)
    assert [path.name for path in mine.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", "null", '{"format": 2}', '{"format": 1, "identity": {}}', "[" * 9999]
)
def test_a_damaged_record_is_told_by_its_file(run, tmp_path, content):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "evaluation.json").write_text(content)
    for arguments in ({"score": folder}, {"output": folder}):
        with pytest.raises(ValueError, match=r"evaluation.json"):
            run("tasks=[smdis]", **arguments)


def test_a_half_line_costs_one_answer_and_foreign_lines_none(run, capsys):
    [folder] = run("tasks=[crade,smdis]")
    path = folder / "answers.jsonl"
    whole = path.read_bytes()
    first, *rest = whole.splitlines(keepends=True)
    path.write_bytes(first + b"\0\0\0 not json\n" + b"".join(rest)[:-20])
    assert run("tasks=[crade,smdis]") == [folder]
    told = capsys.readouterr().err
    assert "line 2 and" in told or "line 2, " in told
    known = {key: answer.answer for key, answer in read_answers(path).items()}
    path.write_bytes(whole)
    assert known == {key: answer.answer for key, answer in read_answers(path).items()}
    (record, other) = read_scores(folder)["tasks"]
    assert record["answered"] == record["items"] and other["answered"] == other["items"]


def test_an_answer_that_is_code_or_a_megabyte_is_scored_and_never_run(run, tmp_path):
    [folder] = run("tasks=[nrner,smdis]")
    path, canary = folder / "answers.jsonl", tmp_path / "canary"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    said = {"nrner": f"__import__('os').system('touch {canary}')", "smdis": "Ａ" * 1_000_000}
    text = "".join(json.dumps({**line, "answer": said[line["task"]]}) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    run(score=folder)
    assert not canary.exists() and len(read_scores(folder)["tasks"]) == 2


def test_answers_to_questions_that_changed_are_not_scored_but_asked_again(run, benchmarks, capsys):
    [folder] = run("tasks=[smdis,crade]")
    for name in ("test/smdis", "all/SMDIS"):
        path = benchmarks / "jmed_llm" / f"{name}.csv"
        path.write_text(path.read_text(encoding="utf-8").replace("でしたか", "でしょうか"), encoding="utf-8")
    run(score=folder)
    assert "read differently now" in capsys.readouterr().err
    smdis, crade = read_scores(folder)["tasks"]
    assert (smdis["answered"], smdis["missing"]) == (0, 1) and crade["missing"] == 0
    run("tasks=[smdis,crade]")
    assert read_scores(folder)["tasks"][0]["answered"] == 1


def test_a_network_whose_weights_are_broken_is_told_and_not_scored(run, tmp_path):
    directory = tmp_path / "broken"
    weights = load_file(chat_model() / "model.safetensors")
    weights["embedding.weight"] = torch.full_like(weights["embedding.weight"], float("nan"))
    config = load_model_directory(chat_model())[0].config
    save_model_directory(directory, config=config, weights=weights, tokenizer=chat_model() / "tokenizer", training={})
    for method in ("generation", "log_likelihood"):
        with pytest.raises(ValueError, match="not finite"):
            run("tasks=[smdis]", f"method={method}", model=directory)
    assert not list((tmp_path / "home").rglob("scores.json"))


def test_ctrl_c_says_where_the_answers_are_and_how_to_go_on(run, monkeypatch):
    def interrupted(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "answer_tasks", interrupted)
    with pytest.raises(RunStopped, match="Repeat the command") as stopped:
        run("tasks=[smdis]")
    assert stopped.value.exit_code == 130


def test_what_a_server_cannot_do_is_told_before_a_folder_is_made(run, tmp_path):
    with Server(lambda body, nth: completion("A")) as server:
        for override in ("method=both", "constrained=true"):
            with pytest.raises(ValueError, match="server"):
                run("tasks=[smdis]", override, server=server.url, model="tiny")
        with pytest.raises(OSError, match="no model 'other'"):
            run("tasks=[smdis]", server=server.url, model="other")
    assert not (tmp_path / "home" / "scores").exists()
    with pytest.raises(OSError, match="server does not answer"):
        run("tasks=[smdis]", "teacher.retries=0", server="http://127.0.0.1:1", model="tiny")
    with pytest.raises(ValueError, match="not of this network"):
        run("tasks=[smdis]", server="http://example.com", model="tiny")


@pytest.mark.slow
def test_a_program_that_is_interrupted_ends_with_130_and_goes_on(tmp_path, benchmarks):
    shutil.copytree(chat_model(), tmp_path / "model")
    command = [
        sys.executable, "-m", "ncvc.evaluate", f"model={tmp_path / 'model'}", "tasks=[igakuqa]", "batch_size=1",
        f"benchmarks.dir={benchmarks}", f"output={tmp_path / 'out'}", "scoring.baselines=false", "max_new_tokens=500",
    ]  # fmt: skip
    environment = program_environment(tmp_path / "home")
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True)
    answers = tmp_path / "out" / "answers.jsonl"
    while not answers.is_file() or not answers.stat().st_size:
        assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130 and "Repeat the command to go on" in told and "Traceback" not in told
    done = len(answers.read_bytes().splitlines())
    result = subprocess.run(command, check=True, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert f"{done:,} of" in result.stderr and (tmp_path / "out" / "scores.json").is_file()


@pytest.mark.slow
def test_the_programs_own_errors_are_one_line_and_an_exit_code(tmp_path, benchmarks):
    command = [sys.executable, "-m", "ncvc.evaluate", f"benchmarks.dir={benchmarks}"]
    environment = program_environment(tmp_path / "home")
    for overrides, code, told in (
        (["tasks=[crdae]"], 1, "did you mean crade"),
        (["taks=[crade]"], 2, "did you mean tasks"),
        (["tasks=[crade]", "model=last"], 1, "no run under"),
    ):
        result = subprocess.run([*command, *overrides], cwd=REPOSITORY, env=environment, capture_output=True, text=True)
        assert result.returncode == code and told in result.stderr and "Traceback" not in result.stderr
