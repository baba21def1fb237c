"""What a running training does about bad numbers, lost ranks, signals, clocks, disks and changed files."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, program, program_environment, run_program, write_source

from ncvc.checkpoints import find_checkpoints, newest_complete
from ncvc.model.training_state import StateReader
from ncvc.resuming import RunStopped
from ncvc.train import train

ALTER, AT_STEP = "+callbacks.fault._target_=faults.AlterLoss", "+callbacks.fault._target_=faults.AtStep"
EVERY_STEP = [
    "callbacks.checkpoints.rolling_every=1",
    "callbacks.checkpoints.keep_rolling=50",
    "callbacks.samples=null",
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path / "source.jsonl")


@pytest.fixture(autouse=True)
def faults_can_be_imported(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY / "tests"))


def state_of(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """Weights and moments of one checkpoint."""
    checkpoint = next(found for found in find_checkpoints(folder / "checkpoints") if found.step == step)
    shards = [name for name in checkpoint.manifest["files"] if name.startswith("shard-")]
    reader = StateReader(checkpoint.path, shards)
    state = json.loads((checkpoint.path / "state.json").read_text())
    sizes = {name: sum(piece.stop - piece.start for piece in reader._pieces["weight", name]) for name in reader.names}
    found = {
        f"{kind}:{name}": reader.read(kind, name, 0, sizes[name]) for kind in reader.kinds for name in reader.names
    }
    return {**found, "updates": torch.tensor(state["updates"])}


def spikes_of(folder: Path) -> list[dict]:
    path = folder / "spikes.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ---- numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainer", ["cpu", "ddp_cpu", "zero2_cpu", "zero2_cpu bf16"])
def test_a_nan_on_one_rank_reaches_no_weight_on_any(tmp_path, source, trainer):
    rank, (trainer, *bf16) = 0 if trainer == "cpu" else 1, trainer.split()
    settings = [
        f"trainer.precision={'bf16-mixed' if bf16 else '32-true'}",
        ALTER, "+callbacks.fault.steps=[3]", "+callbacks.fault.loss_factor=nan", f"+callbacks.fault.rank={rank}",
        f"trainer={trainer}", "data.micro_batch_size=1", *EVERY_STEP, f"hydra.run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    done = run_program(tmp_path / "home", source, *settings)
    assert done.returncode == 0, done.stderr[-3000:]
    before, during, after = (state_of(tmp_path / "run", step) for step in (2, 3, 4))
    assert same(before, during)
    assert not same(during, after)
    assert during["updates"] == 2 and after["updates"] == 3
    assert all(torch.isfinite(tensor).all() for tensor in state_of(tmp_path / "run", 6).values())
    (spike,) = spikes_of(tmp_path / "run")
    assert (spike["step"], spike["non_finite"], spike["skipped"]) == (3, True, True)
    assert len(spike["rows"]) == 4 and spike["rows"][0]["source"] == "source"
    assert set(spike["layer_norms"]) == {"embedding", "layers.0", "layers.1", "final_norm", "head"}
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["stability"]["first_spike"] == 3


def gradient_times(factor: float, *, at: str) -> list[str]:
    return [ALTER, f"+callbacks.fault.{at}", f"+callbacks.fault.gradient_factor={factor}", *EVERY_STEP]


@pytest.mark.parametrize("level", ["record", "skip"])
def test_a_gradient_times_a_thousand_is_recorded_and_at_the_level_skip_left_out(tiny_run, tmp_path, level):
    train(tiny_run(*gradient_times(1e3, at="steps=[4]"), f"stability={level}"))
    (spike,) = spikes_of(tmp_path / "run")
    assert (spike["step"], spike["skipped"]) == (4, level == "skip")
    assert spike["gradient_norm"] > 100
    assert same(state_of(tmp_path / "run", 3), state_of(tmp_path / "run", 4)) == (level == "skip")
    recorded = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert spike["checksum"] == recorded[3]["checksum"]


def test_the_norms_of_the_layers_add_up_to_the_gradient_norm(tiny_run, tmp_path):
    train(tiny_run(*gradient_times(1e3, at="steps=[4]")))
    (spike,) = spikes_of(tmp_path / "run")
    assert sum(norm**2 for norm in spike["layer_norms"].values()) ** 0.5 == pytest.approx(spike["gradient_norm"])


REWIND = [
    "stability=rewind", "stability.minimum_history=8", "stability.window=16", "stability.rewind_after=2",
    "stability.rewind_within=4", "stability.rewind_steps=6", "stability.skip_steps=10", "trainer.max_steps=36",
    "callbacks.checkpoints.rolling_every=4", "callbacks.checkpoints.keep_rolling=6", "callbacks.samples=null",
    "validate_every=12",
]  # fmt: skip


def test_spikes_that_follow_the_data_are_gone_after_a_rewind_that_leaves_the_data_out(tiny_run, tmp_path):
    fault = [ALTER, "+callbacks.fault.samples=[76,88]", "+callbacks.fault.gradient_factor=1e3"]  # steps 20 to 22
    parts = train(tiny_run(*REWIND, *fault))
    folder = tmp_path / "run"
    (rewind,) = json.loads((folder / "rewinds.json").read_text())["rewinds"]
    assert rewind["first_spike"] == 20 and rewind["at_step"] == 21
    assert rewind["to_step"] == 12  # the newest checkpoint at least 6 steps before the first spike
    assert rewind["skip"] == [48, 88]  # from the batch after step 12 on, 10 batches of 4
    assert parts["result"]["steps"] == 36
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 37))
    seen = [sample for line in lines for first, end in line["samples"] for sample in range(first, end)]
    assert seen == [*range(48), *range(88, 184)]
    assert all(spike["rewound"] for spike in spikes_of(folder))
    assert [entry["step"] for entry in parts["result"]["held_out_series"]] == [0, 12, 24, 36]
    assert parts["data"].skip == [(48, 88)]


@pytest.mark.slow
def test_a_rewound_run_killed_and_taken_up_leaves_the_same_samples_out(tmp_path, source):
    fault = [ALTER, "+callbacks.fault.samples=[76,88]", "+callbacks.fault.gradient_factor=1e3"]
    for name, broken in (("whole", False), ("broken", True)):
        settings = [*REWIND, *fault, f"hydra.run.dir={tmp_path / name}"]
        if broken:
            kill = ["+callbacks.kill._target_=faults.AtStep", "+callbacks.kill.what=kill", "+callbacks.kill.step=30"]
            assert run_program(tmp_path / "home", source, *settings, *kill).returncode == -signal.SIGKILL
        done = run_program(tmp_path / "home", source, *settings, *(["resume=auto"] if broken else []))
        assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "whole" / "samples.jsonl").read_text() == (tmp_path / "broken" / "samples.jsonl").read_text()
    assert same(state_of(tmp_path / "whole", 36), state_of(tmp_path / "broken", 36))


def test_rewinding_ends_with_a_message_when_the_data_are_not_the_cause(tiny_run):
    fault = [ALTER, f"+callbacks.fault.steps={list(range(20, 24))}", "+callbacks.fault.gradient_factor=1e3"]
    with pytest.raises(Exception, match=r"after 2 rewinds \(stability\.max_rewinds=2\).*optimizer\.learning_rate"):
        train(tiny_run(*REWIND, *fault, "stability.max_rewinds=2"))


def test_a_run_whose_every_update_is_left_out_ends_and_says_why(tiny_run):
    fault = [ALTER, f"+callbacks.fault.steps={list(range(3, 40))}", "+callbacks.fault.loss_factor=nan"]
    with pytest.raises(RunStopped, match=r"10 steps in a row were left out \(loss or gradient are not finite\)"):
        train(tiny_run(*fault, "stability.restart_after=5", "trainer.max_steps=40"))


# ---- ranks and signals ---------------------------------------------------------------------------------------------


def run_with_fault(tmp_path: Path, source: Path, *settings: str, trainer: str = "ddp_cpu") -> tuple:
    quick = ["callbacks.watchdog.minimum_seconds=4", "trainer.max_steps=40", "callbacks.samples=null"]
    micro = [] if trainer == "cpu" else ["data.micro_batch_size=2"]
    started = time.monotonic()
    done = run_program(
        tmp_path / "home", source, *quick, *micro, f"trainer={trainer}", AT_STEP, *settings,
        f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    return done, time.monotonic() - started


def no_process_mentions(folder: Path) -> bool:
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return not [line for line in listed.splitlines() if str(folder) in line and "ncvc.train" in line]


@pytest.mark.parametrize(
    ("what", "rank", "code", "words"),
    [
        ("kill", 1, 70, r"rank 1 \(process \d+\) was killed by SIGKILL"),
        ("raise", 1, 70, r"rank 1 \(process \d+\) ended with exit code 1"),
        ("hang", 1, 71, "has made no progress for"),
        ("stop", 1, 71, "has made no progress for"),
    ],
)
def test_a_lost_rank_ends_the_run_within_seconds_and_leaves_its_checkpoints(tmp_path, source, what, rank, code, words):
    settings = [f"+callbacks.fault.what={what}", "+callbacks.fault.step=7", f"+callbacks.fault.rank={rank}"]
    done, _ = run_with_fault(tmp_path, source, *settings)
    assert done.returncode == code, done.stderr[-3000:]
    assert re.search(words, done.stderr), done.stderr[-3000:]
    assert f"resume={tmp_path / 'run'}" in done.stderr
    time.sleep(1.5)
    assert no_process_mentions(tmp_path / "run")
    chosen, _ = newest_complete(tmp_path / "run" / "checkpoints")
    assert chosen is not None and chosen.step in (4, 6)


@pytest.mark.parametrize(
    ("trainer", "rank", "what"),
    [("cpu", 0, "interrupt"), ("ddp_cpu", 1, "terminate"), ("zero2_cpu", 0, "terminate")],
)
def test_a_signal_on_any_rank_saves_and_ends_all_in_order(tmp_path, source, trainer, rank, what):
    number = signal.SIGTERM if what == "terminate" else signal.SIGINT
    settings = [f"+callbacks.fault.what={what}", "+callbacks.fault.step=7", f"+callbacks.fault.rank={rank}"]
    done, _ = run_with_fault(tmp_path, source, *settings, trainer=trainer)
    assert done.returncode == 128 + number, done.stderr[-3000:]
    assert f"{number.name} received: step 7 is saved" in done.stderr
    assert "Traceback" not in done.stderr
    chosen, passed_over = newest_complete(tmp_path / "run" / "checkpoints")
    assert chosen is not None and (chosen.step, passed_over) == (7, [])
    command = [sys.executable, "-m", "ncvc.train", f"resume={tmp_path / 'run'}", "callbacks.fault.step=1000"]
    again = subprocess.run(
        command, cwd=REPOSITORY, env=program_environment(tmp_path / "home"), capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr[-3000:]
    assert "taken up at step 7" in again.stdout
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 40


def test_a_port_in_use_is_told_with_the_cure(tmp_path, source):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        environment = {**program_environment(tmp_path / "home"), "MASTER_PORT": str(port)}
        command = program(source, "trainer=ddp_cpu", "data.micro_batch_size=2")
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=60
        )
    assert done.returncode == 1
    assert f"MASTER_PORT={port} is in use" in done.stderr


# ---- files, folders, clock -----------------------------------------------------------------------------------------


def test_a_clock_that_jumps_back_a_day_changes_nothing(tiny_run, tmp_path):
    real = time.time
    try:
        train(
            tiny_run(AT_STEP, "+callbacks.fault.what=jump_clock", "+callbacks.fault.step=3", *EVERY_STEP, run="jumped")
        )
    finally:
        time.time = real
    train(tiny_run(*EVERY_STEP, run="plain"))
    assert same(state_of(tmp_path / "jumped", 6), state_of(tmp_path / "plain", 6))
    chosen, _ = newest_complete(tmp_path / "jumped" / "checkpoints")
    assert chosen is not None and chosen.step == 6


def test_token_files_changed_under_the_run_end_it_by_name(tiny_run, tmp_path):
    fault = ["+callbacks.fault.what=touch", "+callbacks.fault.step=4", f"+callbacks.fault.path={tmp_path / 'home'}"]
    with pytest.raises(ValueError, match=r"tokens\.bin was changed or removed while the run reads it"):
        train(tiny_run(AT_STEP, *fault, *EVERY_STEP))
    chosen, _ = newest_complete(tmp_path / "run" / "checkpoints")
    assert chosen is not None and chosen.step == 3


def test_a_second_run_in_the_same_folder_is_refused_while_the_first_runs(tmp_path, source):
    settings = [f"hydra.run.dir={tmp_path / 'run'}", "trainer.max_steps=4000", "callbacks.samples=null"]
    first = subprocess.Popen(
        program(source, *settings), cwd=REPOSITORY, env=program_environment(tmp_path / "home"),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not find_checkpoints(tmp_path / "run" / "checkpoints") and time.monotonic() < deadline:
            time.sleep(0.05)
        second = run_program(tmp_path / "home", source, *settings, "resume=auto")
        assert second.returncode == 1
        assert f"is in use by process {first.pid}" in second.stderr
        assert first.poll() is None
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()


def test_a_full_disk_ends_the_run_with_a_message_and_the_previous_checkpoint_stays(tmp_path, source):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(small)], check=False)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs more rights")
    try:
        settings = ["trainer.max_steps=60", "callbacks.samples=null", "callbacks.checkpoints.rolling_every=1"]
        fill = "callbacks.checkpoints.keep_rolling=3"
        done = run_program(tmp_path / "home", source, *settings, fill, f"hydra.run.dir={small / 'run'}")
        assert done.returncode == 1, done.stdout[-2000:]
        assert "needs about" in done.stderr and "NCVC_HOME" in done.stderr  # told before the first step
        done = run_program(
            tmp_path / "home", source, *settings[:2], "callbacks.checkpoints.rolling_every=20",
            "callbacks.checkpoints.keep_rolling=1", "+callbacks.fault._target_=faults.FillDisk",
            f"+callbacks.fault.path={small}", "+callbacks.fault.step=25", f"hydra.run.dir={small / 'run2'}",
        )  # fmt: skip
        assert done.returncode == 1, done.stdout[-2000:]
        assert "full" in done.stderr and f"resume={small / 'run2'}" in done.stderr, done.stderr[-2000:]
        chosen, passed_over = newest_complete(small / "run2" / "checkpoints")
        assert chosen is not None and (chosen.step, passed_over) == (20, [])
    finally:
        subprocess.run(["umount", "-l", str(small)], check=False)
