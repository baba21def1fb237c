"""A run that is killed and taken up again is the unbroken run: same samples, same weights, bit for bit."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, program, program_environment, run_program, write_source
from safetensors.torch import load_file

from ncvc.checkpoints import find_checkpoints
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


@pytest.mark.parametrize("trainer", ["cpu", "ddp_cpu", "zero2_cpu"])
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
