"""Sweeps: every job a program of its own, none run twice, none dropped; the summary, computed another way."""

import csv
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import REPOSITORY, program, program_environment, write_source
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ncvc.analysis.sweep_figures import loss_curve, mean_curve, spiked_steps
from ncvc.analysis.sweeps import group_table, job_table, largest_stable_rate, newest_sweep, read_sweep, summarize_sweep
from ncvc.config import CONF_DIRECTORY, check
from ncvc.supervision import read_heartbeats, read_job
from ncvc.sweep_folder import SweepJob, kept_outcome, take_up_sweep, write_plan
from ncvc.sweep_launcher import quoted, share_of_devices

VARIANTS, RATES, SEEDS = ("report", "gpt2"), ("1e-3", "3e-3", "1e-2"), (0, 1, 2)


def record_job(
    sweep: Path, number: int, overrides: list[str], *, status="finished", reason="", bits=3.0, spikes=(), steps=4
) -> Path:
    """A job's folder as the launcher and a run of a few steps leave it; ``bits=None``: it did not stay finite."""
    folder = sweep / str(number)
    folder.mkdir(parents=True)
    job = {"overrides": overrides, "status": status, "attempts": 1, "seconds": 10.0 + number, "reason": reason}
    (folder / "job.json").write_text(json.dumps({**job, "return_code": 0 if status == "finished" else 1}))
    losses = [8.0 - step - number / 100 for step in range(steps)]
    lines = [json.dumps({"step": step + 1, "loss": loss}) for step, loss in enumerate(losses)]
    (folder / "samples.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "spikes.jsonl").write_text("".join(json.dumps({"step": step, "loss": "nan"}) + "\n" for step in spikes))
    if status == "finished":
        stability = {
            "spikes": len(spikes),
            "first_spike": min(spikes, default=None),
            "spike_score": len(spikes) / steps,
            "largest_gradient_norm": 1.5 + number,
        }
        held_out = {"held_out/bits_per_character": bits, "held_out/nats_per_token": bits}
        result = {"finished": True, "held_out_after": held_out, "unigram_bits_per_character": 4.0}
        (folder / "result.json").write_text(json.dumps({**result, "stability": stability}))
    return folder


def bits_of(number: int) -> float:
    return 2.0 + 0.1 * math.sin(number)


@pytest.fixture
def recorded(tmp_path):
    """2 variants x 3 learning rates x 3 seeds: gpt2 spikes at 3e-3 with seed 1 and breaks in three ways at 1e-2."""
    sweep = tmp_path / "sweep"
    plan = {}
    for variant in VARIANTS:
        for rate in RATES:
            for seed in SEEDS:
                number = len(plan)
                plan[number] = [f"model/init={variant}", f"optimizer.learning_rate={rate}", f"seed={seed}", "name=x"]
                settings: dict = {"bits": bits_of(number), "spikes": (2, 3) if number == 13 else ()}
                if number in (15, 16):
                    settings.update(status="hung" if number == 15 else "dead", reason=f"why {number}\nlast | words")
                if number != 17:
                    record_job(sweep, number, plan[number], **settings)
    write_plan(sweep, plan)
    return sweep


def test_mean_and_spread_over_seeds_are_those_of_numpy(recorded):
    groups = read_sweep(recorded).groups()
    assert [list(group.settings.values()) for group in groups] == [[v, r] for v in VARIANTS for r in RATES]
    for place, group in enumerate(groups[:5]):
        values = np.array([bits_of(3 * place + seed) for seed in SEEDS])
        assert group.mean("bits_per_character") == pytest.approx(values.mean(), rel=1e-12)
        assert group.deviation("bits_per_character") == pytest.approx(values.std(ddof=1), rel=1e-12)
        assert group.values("largest_gradient_norm") == [1.5 + 3 * place + seed for seed in SEEDS]
    assert groups[5].mean("bits_per_character") is None
    line = group_table(read_sweep(recorded))[1 + 4]
    values = np.array([bits_of(12 + seed) for seed in SEEDS])
    assert line[:4] == ["gpt2", "3e-3", "3/3", f"{values.mean():.4f} ± {values.std(ddof=1):.4f}"]
    assert line[5] == "2 (in 1 of 3)"


def test_settings_that_all_jobs_share_are_no_axis(recorded):
    assert read_sweep(recorded).axes == ["model/init", "optimizer.learning_rate", "seed"]
    assert job_table(read_sweep(recorded))[0][:5] == ["job", "model/init", "learning_rate", "seed", "status"]


def test_no_job_is_dropped_and_each_that_did_not_finish_says_why(recorded):
    text = summarize_sweep(recorded)
    page = (recorded / "summary.md").read_text()
    lines = list(csv.DictReader((recorded / "summary.csv").open()))
    assert [line["status"] for line in lines] == ["finished"] * 15 + ["hung", "dead", "not started"]
    assert "15 of 18 jobs finished" in text and "15 of 18 jobs finished" in page
    for number in (15, 16):
        assert f"why {number}" in text and f"why {number}" in page
        assert lines[number]["reason"] == f"why {number}\nlast | words"
    assert re.search(r"job 17 \(.*seed=2\) not started", text)
    assert f"tensorboard --logdir {recorded}" in text


def test_the_csv_holds_the_figures_of_the_runs_exactly(recorded):
    summarize_sweep(recorded)
    lines = list(csv.DictReader((recorded / "summary.csv").open()))
    for number in range(15):
        result = json.loads((recorded / str(number) / "result.json").read_text())
        assert float(lines[number]["bits_per_character"]) == result["held_out_after"]["held_out/bits_per_character"]
        assert float(lines[number]["spike_score"]) == result["stability"]["spike_score"]
        assert int(lines[number]["job"]) == number


def test_the_largest_stable_rate_needs_every_seed_and_no_spike(recorded):
    variants = read_sweep(recorded).variants()
    assert {name: largest_stable_rate(groups) for name, groups in variants.items()} == {"report": 1e-2, "gpt2": 1e-3}
    assert [[float(r) for r in RATES]] * 2 == [
        [float(group.settings["optimizer.learning_rate"]) for group in groups] for groups in variants.values()
    ]


@pytest.mark.parametrize("bits", [4.0, 9.0, None, math.nan])
def test_a_rate_at_which_nothing_was_learned_is_not_stable(tmp_path, bits):
    for number, rate in enumerate(("1e-3", "1e-2")):
        record_job(tmp_path, number, [f"optimizer.learning_rate={rate}"], bits=3.9 if number == 0 else bits)
    assert largest_stable_rate(read_sweep(tmp_path).variants()["all"]) == 1e-3


def test_tensorboard_shows_one_entry_per_finished_job(recorded):
    summarize_sweep(recorded)
    summarize_sweep(recorded)  # made anew, not added to
    entries = sorted((recorded / "summary").glob("job-*"))
    assert [int(entry.name[4:]) for entry in sorted(entries, key=lambda e: int(e.name[4:]))] == list(range(15))
    events = EventAccumulator(str(recorded / "summary" / "job-4"))
    events.Reload()
    assert events.Scalars("final/bits_per_character")[0].value == pytest.approx(bits_of(4), rel=1e-6)
    page = EventAccumulator(str(recorded / "summary"))
    page.Reload()
    assert "summary/text_summary" in page.Tags()["tensors"]


def test_the_mean_curve_is_the_mean_at_every_step_all_seeds_reached(recorded):
    rows = read_sweep(recorded).groups()[0].rows
    (rows[1].folder / "samples.jsonl").write_text(
        '{"step": 1, "loss": 7.0}\n{"step": 2, "loss": "nan"}\n{"step": 3, "lo'
    )
    curves = [loss_curve(row) for row in rows]
    assert [len(curve) for curve in curves] == [4, 2, 4]
    first, second = mean_curve(curves)
    assert first == (1, pytest.approx(np.mean([8.0, 7.0, 7.98])))
    assert second[0] == 2 and math.isnan(second[1])
    assert spiked_steps(read_sweep(recorded).rows[13]) == [2, 3]


def test_figures_are_drawn_where_matplotlib_is(recorded):
    pytest.importorskip("matplotlib")
    text = summarize_sweep(recorded)
    for name in ("loss_curves.png", "stability.png"):
        assert (recorded / name).read_bytes().startswith(b"\x89PNG")
        assert f"({name})" in (recorded / "summary.md").read_text()
        assert name in text


def test_without_matplotlib_the_tables_are_made_and_the_cure_is_told(recorded, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'ncvc[figures]'" in summarize_sweep(recorded)
    assert (recorded / "summary.md").is_file()
    assert not list(recorded.glob("*.png"))


def test_a_folder_without_a_sweep_and_one_of_several_are_refused(recorded, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no sweep"):
        read_sweep(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="there is no sweep under"):
        newest_sweep(tmp_path)
    for when in ("2026-01-01_00-00-00", "2026-02-01_00-00-00"):
        (tmp_path / "sweeps" / "name" / when).mkdir(parents=True)
        (tmp_path / "sweeps" / "name" / when / "multirun.yaml").touch()
    assert newest_sweep(tmp_path).name == "2026-02-01_00-00-00"
    with pytest.raises(ValueError, match="holds several sweeps"):
        read_sweep(tmp_path / "sweeps" / "name")


def jobs_of(sweep: Path, *lists: list[str]) -> list[SweepJob]:
    return [
        SweepJob(number=number, overrides=overrides, name=overrides[-1], folder=sweep / str(number))
        for number, overrides in enumerate(lists)
    ]


def test_a_sweep_is_gone_on_with_by_the_same_command_only(tmp_path):
    jobs = jobs_of(tmp_path, ["a=1", "seed=0"], ["a=1", "seed=1"])
    take_up_sweep(tmp_path, jobs, whole=True)
    record_job(tmp_path, 0, ["a=1", "seed=0"])
    record_job(tmp_path, 1, ["a=1", "seed=1"], status="failed")
    take_up_sweep(tmp_path, jobs, whole=True)
    assert [outcome and outcome.status for outcome in map(kept_outcome, jobs)] == ["finished", None]
    refused = {
        "it has seed=1, this one has seed=2": [["a=1", "seed=0"], ["a=1", "seed=2"]],
        "the same settings in another order": [["seed=0", "a=1"], ["a=1", "seed=1"]],
        r"job 1 \(seed=1\) is in only one of them": [["a=1", "seed=0"]],
        r"job 2 \(seed=2\) is in only one of them": [["a=1", "seed=0"], ["a=1", "seed=1"], ["a=1", "seed=2"]],
    }
    for message, lists in refused.items():
        with pytest.raises(ValueError, match=message):
            take_up_sweep(tmp_path, jobs_of(tmp_path, *lists), whole=True)
    (tmp_path / "0" / "job.json").unlink()
    with pytest.raises(ValueError, match="holds a run that is no job of a sweep"):
        take_up_sweep(tmp_path, jobs, whole=True)


@given(
    st.text(
        st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/$") | st.sampled_from("\\'"), min_size=1
    )
)
def test_any_folder_name_passes_hydras_grammar_unchanged(name):
    override = OverridesParser.create().parse_override(f"hydra.run.dir={quoted(Path('/sweeps') / name)}")
    assert override.value() == str(Path("/sweeps") / name)


def test_jobs_at_once_share_no_device():
    shares = [share_of_devices(list("0123456"), slot=slot, n_jobs=3, wanted=2) for slot in range(3)]
    assert shares == [["0", "1"], ["2", "3"], ["4", "5"]]
    with pytest.raises(ValueError, match=r"set hydra\.launcher\.n_jobs=2"):
        share_of_devices(list("0123"), slot=0, n_jobs=3, wanted=2)


def test_every_job_of_the_stability_experiment_is_a_run_of_its_variant_and_rate(composed):
    sweep = yaml.safe_load((CONF_DIRECTORY / "sweep" / "init_variants.yaml").read_text())
    axes = {name: values.split(",") for name, values in sweep["hydra"]["sweeper"]["params"].items()}
    assert {"report", "small", "no_embedding_scale", "gpt2", "normal", "xavier"} == set(axes["model/init"])
    assert len(axes["seed"]) >= 3
    for variant in axes["model/init"]:
        config = composed(
            "sweep=init_variants",
            f"model/init={variant}",
            f"optimizer.learning_rate={axes['optimizer.learning_rate'][-1]}",
        )
        check(config)
        assert config.model.init == variant
        assert config.optimizer.learning_rate == float(axes["optimizer.learning_rate"][-1])
        assert config.trainer.gradient_clip_val is None and config.stability.level == "record"


def sweep_program(home: Path, source: str, *overrides: str, timeout: float = 400) -> subprocess.CompletedProcess:
    environment = {
        **program_environment(home),
        "SLURM_NTASKS": "2",
        "SLURM_JOB_NAME": "sweep",
    }  # as inside an allocation
    return subprocess.run(
        [*program(Path(source), *overrides), "--multirun"],
        capture_output=True, text=True, check=False, cwd=REPOSITORY, env=environment, timeout=timeout,
    )  # fmt: skip


def test_a_failing_job_does_not_stop_a_sweep_and_a_finished_one_is_not_run_again(tmp_path):
    good, sweep = write_source(tmp_path / "source.jsonl"), tmp_path / "a sweep"
    overrides = (f"hydra.sweep.dir='{sweep}'", "hydra.launcher.n_jobs=2")
    first = sweep_program(tmp_path / "home", f"{tmp_path}/missing.jsonl,{good}", *overrides)
    assert first.returncode == 1, first.stdout + first.stderr
    assert "1 of 2 jobs finished" in first.stdout
    assert f"data.source={tmp_path}/missing.jsonl does not exist" in first.stdout
    assert re.search(
        r"\[\d/2\] data\.source=\S+source\.jsonl: finished in \d+ s, \d\.\d+ bits per character", first.stdout
    )
    assert [read_job(sweep / name)["status"] for name in "01"] == ["failed", "finished"]
    assert sorted(path.name for path in sweep.iterdir() if path.name.isdigit()) == ["0", "1"]
    write_source(tmp_path / "missing.jsonl")
    again = sweep_program(tmp_path / "home", f"{tmp_path}/missing.jsonl,{good}", *overrides)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "2 of 2 jobs finished" in again.stdout
    assert [read_job(sweep / name)["attempts"] for name in "01"] == [2, 1]
    results = [json.loads((sweep / name / "result.json").read_text()) for name in "01"]
    assert results[0]["held_out_series"] == results[1]["held_out_series"]  # the same text after all


@pytest.mark.slow
@pytest.mark.parametrize("order", ["1,2", "2,1"])
def test_one_and_two_ranks_in_either_order_train_on_the_same_samples(tmp_path, order):
    source, sweep = write_source(tmp_path / "source.jsonl"), tmp_path / "sweep"
    done = sweep_program(
        tmp_path / "home", str(source), f"hydra.sweep.dir={sweep}", "trainer=ddp_cpu", f"trainer.devices={order}",
        "data.micro_batch_size=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 jobs finished" in done.stdout
    assert sorted(path.name for path in sweep.iterdir() if path.name.isdigit()) == ["0", "1"]
    logs = [(sweep / name / "samples.jsonl").read_text().splitlines() for name in "01"]
    checksums = [[json.loads(line)["checksum"] for line in log] for log in logs]  # over the rows of all ranks
    assert len(checksums[0]) == 6
    assert checksums[0] == checksums[1]


@pytest.mark.slow
def test_a_stopped_rank_ends_its_job_within_seconds_and_the_sweep_goes_on(tmp_path):
    source, sweep = write_source(tmp_path / "source.jsonl"), tmp_path / "sweep"
    command = program(
        source, "trainer=ddp_cpu", "data.micro_batch_size=2", "trainer.max_steps=100000,6", "schedule.warmup_steps=2",
        "validate_every=100000", f"hydra.sweep.dir={sweep}", "--multirun",
    )  # fmt: skip
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, env=program_environment(tmp_path / "home")
    )
    while len(beats := read_heartbeats(sweep / "0")) < 2:
        assert running.poll() is None
        time.sleep(0.2)
    pids = [beat.pid for beat in beats.values() if beat.host == socket.gethostname()]
    os.kill(pids[0], signal.SIGSTOP)
    stopped = time.monotonic()
    while read_job(sweep / "0")["status"] == "running":
        time.sleep(0.1)
    assert time.monotonic() - stopped < 40
    assert read_job(sweep / "0")["status"] in ("hung", "dead")
    output, _ = running.communicate(timeout=200)
    assert running.returncode == 1
    assert read_job(sweep / "1")["status"] == "finished"
    assert "1 of 2 jobs finished" in output
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.slow
def test_a_sweep_that_is_ended_saves_its_job_and_goes_on_from_there(tmp_path):
    source, sweep = write_source(tmp_path / "source.jsonl"), tmp_path / "sweep"
    overrides = ["trainer.max_steps=150", "validate_every=150", "seed=0,1", f"hydra.sweep.dir={sweep}", "--multirun"]
    command, environment = program(source, *overrides), program_environment(tmp_path / "home")
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, env=environment)
    while not list(sweep.glob("0/checkpoints/step=*")):
        assert running.poll() is None
        time.sleep(0.1)
    running.terminate()
    output, _ = running.communicate(timeout=100)
    assert running.returncode == 128 + signal.SIGTERM
    assert "0 of 2 jobs finished" in output and "job 1 (seed=1) not started" in output
    assert read_job(sweep / "0")["status"] == "stopped"
    saved = int(re.findall(r"step (\d+) is saved", (sweep / "0" / "output.txt").read_text())[-1])
    again = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY, env=environment)
    assert again.returncode == 0, again.stdout + again.stderr
    starts = [json.loads(line)["step"] for line in (sweep / "0" / "attempts.jsonl").read_text().splitlines()]
    assert starts == [0, saved]
    assert len((sweep / "0" / "samples.jsonl").read_text().splitlines()) == 150


@pytest.mark.slow
def test_jobs_under_submitit_are_programs_of_their_own_and_finished_ones_are_kept(tmp_path):
    pytest.importorskip("submitit")
    source, sweep = write_source(tmp_path / "source.jsonl"), tmp_path / "sweep"
    for _ in range(2):
        done = sweep_program(
            tmp_path / "home", str(source), "seed=0,1", "hydra/launcher=submitit_local", f"hydra.sweep.dir={sweep}"
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "2 of 2 jobs finished" in done.stdout
    assert [read_job(sweep / name)["attempts"] for name in "01"] == [1, 1]


def test_the_report_names_what_is_missing(tmp_path):
    environment = program_environment(tmp_path)
    command = [sys.executable, "-m", "ncvc.report"]
    for arguments, message in (([], "sweep is not set"), ([f"sweep={tmp_path}"], "holds no sweep")):
        done = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, check=False, cwd=REPOSITORY, env=environment
        )
        assert done.returncode == 1
        assert message in done.stderr
