"""A run that is killed and taken up again is the unbroken run: same samples, same weights, bit for bit."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, program, program_environment, run_program, write_source
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ncvc.checkpoints import find_checkpoints
from ncvc.model.checkpoint import load_model_directory
from ncvc.train import train

STEPS = 14
DROPOUT = ["model.residual_dropout=0.1", "model.attention_dropout=0.1"]
LONGER = [
    f"trainer.max_steps={STEPS}",
    "data.micro_batch_size=1",  # 4 micro-batches a step on one rank, 2 on two
    "validate_every=5",
    "callbacks.samples=null",
    *DROPOUT,
]


@pytest.fixture(autouse=True)
def faults_can_be_imported(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY / "tests"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path / "source.jsonl")


def start(home: Path, source: Path, *overrides: str) -> subprocess.Popen:
    """Begin a tiny run in a session of its own, so that nothing of it outlives the test."""
    return subprocess.Popen(
        program(source, *overrides),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=REPOSITORY,
        env=program_environment(home),
        start_new_session=True,
    )


def steps_logged(folder: Path) -> int:
    path = folder / "samples.jsonl"
    return len(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else 0


def kill_after(run: subprocess.Popen, folder: Path, *, checkpoints: int, delay: float) -> None:
    """SIGKILL to the whole run, ``delay`` seconds after it has completed so many checkpoints."""
    deadline = time.monotonic() + 120
    while len(find_checkpoints(folder / "checkpoints")) < checkpoints:
        if run.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"the run ended before it could be killed:\n{run.communicate()[0][-3000:]}")
        time.sleep(0.005)
    time.sleep(delay)
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def assert_same_run(broken: Path, whole: Path) -> None:
    assert (broken / "samples.jsonl").read_text() == (whole / "samples.jsonl").read_text()
    ours, theirs = weights(broken), weights(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    results = [json.loads((folder / "result.json").read_text()) for folder in (broken, whole)]
    assert results[0]["held_out_series"] == results[1]["held_out_series"]
    assert results[0]["stability"] == results[1]["stability"]


@pytest.mark.parametrize("trainer", ["cpu", "ddp_cpu", pytest.param("zero2_cpu", marks=pytest.mark.slow)])
def test_killed_twice_and_taken_up_twice_is_the_unbroken_run(tmp_path, source, trainer):
    home, settings = tmp_path / "home", [*LONGER, f"trainer={trainer}"]
    whole = run_program(home, source, *settings, f"hydra.run.dir={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr[-3000:]
    assert steps_logged(tmp_path / "whole") == STEPS
    folder, draw = tmp_path / "broken", random.Random(trainer)
    for attempt in range(2):
        run = start(home, source, *settings, f"hydra.run.dir={folder}", *(["resume=auto"] if attempt else []))
        kill_after(run, folder, checkpoints=1 + attempt, delay=draw.uniform(0, 0.1))
    last = run_program(home, source, *settings, f"hydra.run.dir={folder}", "resume=auto")
    assert last.returncode == 0, last.stderr[-3000:]
    assert "taken up at step" in last.stdout
    assert "bit for bit" in last.stdout
    assert_same_run(folder, tmp_path / "whole")


@pytest.mark.slow
def test_other_numbers_of_ranks_keep_batch_order_and_optimizer_state(tmp_path, source):
    """2 -> 1 -> 2 ranks, ZeRO -> plain -> DDP, without dropout: the same samples, and weights equal to rounding."""
    home, plain = tmp_path / "home", [*LONGER[:-2], "model.residual_dropout=0", "model.attention_dropout=0"]
    whole = run_program(home, source, *plain, f"hydra.run.dir={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr[-3000:]
    folder = tmp_path / "changed"
    stop = ["+callbacks.stop._target_=faults.AtStep", "+callbacks.stop.what=terminate"]
    for trainer, step in (("zero2_cpu", 5), ("cpu", 9), ("ddp_cpu", None)):
        until = [*stop, f"+callbacks.stop.step={step}"] if step else []
        done = run_program(home, source, *plain, f"trainer={trainer}", *until, f"hydra.run.dir={folder}", "resume=auto")
        assert done.returncode == (143 if step else 0), done.stderr[-3000:]
    assert "trainer.devices was 1, now 2: batch, order and optimizer state are the same" in done.stdout
    lines = [[json.loads(line) for line in (at / "samples.jsonl").open()] for at in (folder, tmp_path / "whole")]
    for ours, theirs in zip(*lines, strict=True):
        assert (ours["samples"], ours["checksum"]) == (theirs["samples"], theirs["checksum"])
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    ours, theirs = weights(folder), weights(tmp_path / "whole")
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.fixture
def halfway(tiny_run, tmp_path):
    """A run of 6 steps whose last checkpoint but one is at step 4; call it to go on from there with other settings."""
    train(tiny_run(run="run"))
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step=00000006")
    (tmp_path / "run" / "result.json").unlink()

    def go_on(*overrides: str) -> dict:
        return train(tiny_run("resume=auto", *overrides))

    return go_on


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        (
            "optimizer.learning_rate=1e-4",
            "optimizer.learning_rate: the checkpoint was made with 0.003, now it is 0.0001",
        ),
        ("model.residual_dropout=0.2", "model.residual_dropout"),
        ("data.batch_size=8", "data.batch_size: the checkpoint was made with 4, now it is 8"),
        ("seed=1", "seed: the checkpoint was made with 0, now it is 1"),
        ("trainer.max_steps=8", "trainer.max_steps"),
        ("data.cleaning=literal", "tokenizer: the tokenizer is not the one of the checkpoint"),
        ("tokenizer.max_piece_length=2", "tokenizer: the tokenizer is not the one of the checkpoint"),
        ("stability=skip", "stability.level"),
    ],
)
def test_what_would_make_it_another_run_is_refused_by_name(halfway, setting, name):
    with pytest.raises(ValueError, match="because this would be another run") as refused:
        halfway(setting)
    assert name in str(refused.value)
    assert "allow_changes=[" in str(refused.value)


def test_changed_text_under_a_run_is_refused_by_name(halfway, tmp_path):
    source = tmp_path / "source.jsonl"
    source.write_text(source.read_text().replace("解熱", "発熱"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"data\.text\.source: the text of source source is not the one"):
        halfway()


def test_what_is_allowed_by_name_is_taken(halfway):
    with pytest.raises(ValueError, match=r"schedule\.total_steps"):
        halfway("trainer.max_steps=8", "allow_changes=[trainer.max_steps]")
    result = halfway("trainer.max_steps=8", "allow_changes=[trainer.max_steps,schedule]")["result"]
    assert (result["steps"], result["started_from_step"]) == (8, 4)


def test_a_folder_that_holds_a_run_is_not_overwritten_by_a_fresh_start(tiny_run, tmp_path):
    train(tiny_run(run="run"))
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*") if path.is_file())
    with pytest.raises(ValueError, match=r"holds the checkpoints of a run already; set resume=auto"):
        train(tiny_run(run="run"))
    after = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert [entry for entry in after if entry[0].name != ".lock"] == [
        entry for entry in before if entry[0].name != ".lock"
    ]


def test_a_finished_run_says_so_and_does_nothing(tiny_run, capsys):
    first = train(tiny_run(run="run"))["result"]
    capsys.readouterr()
    again = train(tiny_run("resume=auto", run="run"))["result"]
    assert "is finished: nothing left to do" in capsys.readouterr().out
    assert again["held_out_after"] == first["held_out_after"]


def test_a_torn_newest_checkpoint_is_passed_over_by_name(halfway, tmp_path, capsys):
    shard = tmp_path / "run" / "checkpoints" / "step=00000004" / "shard-00000-of-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    result = halfway()["result"]
    assert result["started_from_step"] == 2
    assert "step=00000004 is passed over: shard-00000-of-00001.safetensors is truncated" in capsys.readouterr().out


def test_weights_that_compute_something_else_are_refused(halfway, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "silu", torch.nn.functional.relu)  # as if the code had changed
    with pytest.raises(ValueError, match="does not compute what the saved one did"):
        halfway()


def test_a_run_killed_between_its_last_step_and_its_model_directory_gets_it(tiny_run, tmp_path):
    train(tiny_run(run="run"))
    expected, result = weights(tmp_path / "run"), json.loads((tmp_path / "run" / "result.json").read_text())
    shutil.rmtree(tmp_path / "run" / "model")
    (tmp_path / "run" / "result.json").unlink()
    again = train(tiny_run("resume=auto", run="run"))["result"]
    assert again["started_from_step"] == 6
    assert again["held_out_series"] == result["held_out_series"]
    found = weights(tmp_path / "run")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_log_of_tensorboard_holds_every_step_once_after_going_on(halfway, tmp_path):
    halfway()
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]


def test_export_writes_the_weights_of_a_two_rank_zero_checkpoint_whole(tmp_path, source):
    folder = tmp_path / "run"
    settings = ["trainer=zero2_cpu", "data.micro_batch_size=2", f"hydra.run.dir={folder}"]
    done = run_program(tmp_path / "home", source, *settings)
    assert done.returncode == 0, done.stderr[-3000:]
    command = [sys.executable, "-m", "ncvc.export", f"checkpoint={folder}", f"output={tmp_path / 'exported'}"]
    exported = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=REPOSITORY, env=program_environment(tmp_path / "home")
    )
    assert exported.returncode == 0, exported.stderr
    assert "from 2 shard(s)" in exported.stdout
    model, tokenizer = load_model_directory(tmp_path / "exported")
    written = load_file(folder / "model" / "model.safetensors")
    assert model.state_dict().keys() == written.keys()
    assert all(torch.equal(tensor, written[name]) for name, tensor in model.state_dict().items())
    assert tokenizer.vocab_size == 1024


@pytest.mark.parametrize("step", [1, 4, 5])
def test_replay_runs_exactly_the_batch_of_a_step(tiny_run, tmp_path, step, capsys):
    parts = train(tiny_run(*DROPOUT, run="run"))
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*") if path.is_file())
    report = train(tiny_run(*DROPOUT, f"replay={step}", run="run"))["result"]
    recorded = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").open()][step - 1]
    assert (report["checksum"], report["samples"]) == (recorded["checksum"], [tuple(r) for r in recorded["samples"]])
    assert report["loss"] == recorded["loss"]
    assert [row["row"] for row in report["rows"]] == [0, 1, 2, 3]
    assert report["rows"][0]["documents"] == parts["data"].documents_of(step - 1)[0]["documents"]
    assert "the rows are those that the run recorded, and so is the loss" in capsys.readouterr().out
    after = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert before == after


def test_replay_of_the_last_run_needs_no_other_argument(tmp_path, source):
    folder = tmp_path / "home" / "runs" / "quickstart" / "2026-01-01_00-00-00"
    assert run_program(tmp_path / "home", source, f"hydra.run.dir={folder}").returncode == 0
    done = subprocess.run(
        [sys.executable, "-m", "ncvc.train", "replay=3"],
        capture_output=True, text=True, check=False, cwd=REPOSITORY, env=program_environment(tmp_path / "home"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "replay of step 3 from the state after step 2" in done.stdout
    assert "the rows are those that the run recorded, and so is the loss" in done.stdout
