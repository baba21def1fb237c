"""A job ends, whatever happens to it, with all that it started; heartbeats, environment, output and record."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from ncvc.supervision import (
    Heartbeat,
    JobOutcome,
    Patience,
    StopRequest,
    clean_environment,
    is_alive,
    read_heartbeats,
    read_job,
    remove_heartbeat,
    run_job,
    stop_on_signals,
    write_heartbeat,
)

SHORT = Patience(late=0.5, stopped=1.0, vanished=1.0, ending=1.0, saving=5.0)
BEAT = """
import os, signal, subprocess, sys, time
from pathlib import Path
from ncvc.supervision import Heartbeat, write_heartbeat
import socket
def beat(limit=1.0, rank=0, pid=None, age=0.0):
    write_heartbeat(Path(sys.argv[1]), rank, Heartbeat(host=socket.gethostname(), pid=pid or os.getpid(),
        last_beat=time.monotonic() - age, limit_seconds=limit, doing="step 7"))
"""


def run(folder: Path, program: str, *, beats: bool = False, **settings) -> JobOutcome:
    code = (BEAT if beats else "import os, sys, time\n") + textwrap.dedent(program)
    settings.setdefault("patience", SHORT)
    return run_job([sys.executable, "-c", code, str(folder)], folder=folder, environment=dict(os.environ), **settings)


def grandchild(folder: Path) -> int:
    return int((folder / "grandchild").read_text())


START_GRANDCHILD = """
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
                          "time.sleep(600)"], start_new_session=True)
Path(sys.argv[1], "grandchild").write_text(str(child.pid))
"""


def test_a_job_without_progress_is_ended_within_seconds_with_its_grandchildren(tmp_path):
    started = time.monotonic()
    outcome = run(tmp_path, START_GRANDCHILD + "beat()\nprint('started', flush=True)\ntime.sleep(600)", beats=True)
    assert outcome.status == "hung"
    assert "rank 0 has made no progress" in outcome.reason and "step 7" in outcome.reason
    assert "started" in outcome.reason
    assert time.monotonic() - started < 20
    assert not is_alive(grandchild(tmp_path))  # although it ignores SIGTERM and left the job's session


def test_a_stopped_job_is_ended_though_its_heartbeat_promised_an_hour(tmp_path):
    outcome = run(tmp_path, "beat(limit=3600)\nos.kill(os.getpid(), signal.SIGSTOP)", beats=True)
    assert outcome.status == "hung"
    assert "stopped" in outcome.reason
    assert outcome.seconds < 15


def test_one_rank_that_works_keeps_the_others_waiting_by_right(tmp_path):
    program = """
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
    beat(rank=0, age=100.0)
    for _ in range(12):
        beat(rank=1, pid=other.pid)
        time.sleep(0.25)
    """
    assert run(tmp_path, program, beats=True).status == "finished"


def test_a_lost_rank_ends_its_job(tmp_path):
    program = """
    other = subprocess.Popen([sys.executable, "-c", "pass"])
    beat(limit=3600)
    beat(limit=3600, rank=1, pid=other.pid)
    time.sleep(600)
    """
    outcome = run(tmp_path, program, beats=True)
    assert outcome.status == "dead"
    assert "rank 1" in outcome.reason


def test_nothing_survives_a_job_that_ends_well(tmp_path):
    outcome = run(tmp_path, START_GRANDCHILD, beats=True)
    assert outcome == JobOutcome(status="finished", return_code=0, seconds=outcome.seconds, reason="")
    assert not is_alive(grandchild(tmp_path))


def test_heartbeats_of_an_earlier_attempt_and_of_other_machines_do_not_count(tmp_path):
    old = Heartbeat(host=socket.gethostname(), pid=os.getpid(), last_beat=0.0, limit_seconds=0.1, doing="long ago")
    write_heartbeat(tmp_path, 0, old)
    program = """
    other = Heartbeat(host="elsewhere", pid=1, last_beat=0.0, limit_seconds=0.1, doing="")
    write_heartbeat(Path(sys.argv[1]), 1, other)
    time.sleep(2.5)
    """
    assert run(tmp_path, program, beats=True).status == "finished"


def test_heartbeats_survive_a_clock_jump(tmp_path, monkeypatch):
    beat = Heartbeat(
        host=socket.gethostname(), pid=os.getpid(), last_beat=time.monotonic(), limit_seconds=60.0, doing="step 1"
    )
    write_heartbeat(tmp_path, 3, beat)
    path = tmp_path / "heartbeats" / "rank-0003.json"
    for jump in (-1e9, 1e9):  # file times and time.time() of a clock that was set wrong
        os.utime(path, (time.time() + jump, time.time() + jump))
        monkeypatch.setattr(time, "time", lambda jump=jump: 2e9 + jump)
        assert read_heartbeats(tmp_path) == {3: beat}
        assert not read_heartbeats(tmp_path)[3].is_late(time.monotonic())
    assert beat.is_late(beat.last_beat + 60.1)
    remove_heartbeat(tmp_path, 3)
    remove_heartbeat(tmp_path, 3)
    assert read_heartbeats(tmp_path) == {}


def test_heartbeats_of_dead_processes_and_torn_files_are_left_out(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", "pass"])
    time.sleep(0.5)  # ended and not collected yet: a zombie does not live
    dead = Heartbeat(host=socket.gethostname(), pid=ended.pid, last_beat=time.monotonic(), limit_seconds=9, doing="")
    write_heartbeat(tmp_path, 0, dead)
    for rank, text in ((1, '{"host": '), (2, "[]"), (3, '{"host": "x"}')):
        (tmp_path / "heartbeats" / f"rank-{rank:04d}.json").write_text(text)
    assert read_heartbeats(tmp_path) == {}
    ended.wait()


def test_the_environment_of_a_job_knows_nothing_of_ranks():
    lightning = ["LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"]
    slurm = ["SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_ID"]
    ranks = [*lightning, *slurm, "PL_GLOBAL_SEED", "TORCHELASTIC_RUN_ID", "SLURM_STEPID"]
    kept = {"PATH": "/bin", "HOME": "/root", "CUDA_VISIBLE_DEVICES": "1", "SLURM_JOB_ID": "7", "OMP_NUM_THREADS": "2"}
    assert clean_environment({**kept, **dict.fromkeys(ranks, "1")}) == kept


def test_lightning_takes_no_clean_environment_for_a_cluster_task(monkeypatch):
    from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

    started_by_srun = {
        "SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "sweep",
        "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2",
    }  # fmt: skip
    for name, value in started_by_srun.items():
        monkeypatch.setenv(name, value)
    assert SLURMEnvironment.detect() and TorchElasticEnvironment.detect()
    assert LightningEnvironment().creates_processes_externally
    clean = clean_environment(os.environ)
    for name in started_by_srun.keys() - clean.keys():
        monkeypatch.delenv(name)
    assert not SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()
    assert not LightningEnvironment().creates_processes_externally


@pytest.mark.parametrize(
    ("program", "status", "reason"),
    [
        ("print('one\\ntwo'); sys.exit(3)", "failed", "exit code 3\none\ntwo"),
        ("print('error: no such text\\nset another'); print('noise'); sys.exit(1)", "failed",
         "exit code 1\nerror: no such text\nset another\nnoise"),
        ("os.kill(os.getpid(), 9)", "dead", "killed by SIGKILL"),
        ("sys.exit(70)", "dead", "exit code 70"),
        ("sys.exit(71)", "hung", "exit code 71"),
        ("sys.exit(143)", "stopped", "exit code 143"),
        ("pass", "failed", "it ended without leaving result.json"),
    ],
)  # fmt: skip
def test_the_reason_of_a_job_that_ends_badly_holds_its_last_words(tmp_path, program, status, reason):
    outcome = run(tmp_path, program, product="result.json")
    assert (outcome.status, outcome.reason) == (status, reason)


def test_output_is_appended_and_the_record_counts_attempts(tmp_path):
    run(tmp_path, "print('first'); sys.exit(1)", overrides=["seed=1"])
    outcome = run(tmp_path, "print('second'); sys.exit(2)", overrides=["seed=1"])
    assert (tmp_path / "output.txt").read_text() == "first\nsecond\n"
    assert outcome.reason == "exit code 2\nsecond"  # not what the first attempt printed
    record = json.loads((tmp_path / "job.json").read_text())
    assert record == read_job(tmp_path)
    assert record["overrides"] == ["seed=1"]
    assert (record["attempts"], record["status"], record["return_code"]) == (2, "failed", 2)
    assert record["seconds"] == outcome.seconds > 0


def test_a_job_that_is_asked_to_stop_may_save_first(tmp_path):
    program = """
    import signal
    def save(*_):
        open(os.path.join(sys.argv[1], "saved"), "w").close()
        sys.exit(143)
    signal.signal(signal.SIGTERM, save)
    open(os.path.join(sys.argv[1], "ready"), "w").close()
    time.sleep(600)
    """
    stop = StopRequest()

    def ask() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.05)
        stop.set()

    thread = threading.Thread(target=ask)
    thread.start()
    outcome = run(tmp_path, program, stop=stop)
    thread.join()
    assert (outcome.status, outcome.return_code) == ("stopped", 143)
    assert (tmp_path / "saved").exists()


def test_signals_ask_to_stop_and_a_second_interrupt_does_not_wait():
    stop = StopRequest()
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals(stop) as received:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_set() and not stop.at_once
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.at_once
    assert received == [signal.SIGTERM, signal.SIGINT]
    assert signal.getsignal(signal.SIGTERM) == before


SUPERVISOR = """
import os, sys
from pathlib import Path
from ncvc.supervision import run_job
run_job([sys.executable, "-c", sys.argv[2], sys.argv[1]], folder=Path(sys.argv[1]), environment=dict(os.environ))
"""


def test_a_job_orphaned_by_a_killed_supervisor_is_ended_before_it_is_started_again(tmp_path):
    job = "import os, sys, time; open(os.path.join(sys.argv[1], 'pid'), 'w').write(str(os.getpid())); time.sleep(600)"
    supervisor = subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(tmp_path), job])
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.05)
    with pytest.raises(ValueError, match="this job is running there already"):
        run(tmp_path, "pass")
    supervisor.kill()
    supervisor.wait()
    orphan = int((tmp_path / "pid").read_text())
    assert is_alive(orphan)
    assert run(tmp_path, "pass").status == "finished"
    assert not is_alive(orphan)
    assert read_job(tmp_path)["attempts"] == 2


def test_an_interrupted_supervisor_takes_its_job_along(tmp_path):
    job = "import os, sys, time; open(os.path.join(sys.argv[1], 'pid'), 'w').write(str(os.getpid())); time.sleep(600)"
    supervisor = subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(tmp_path), job], stderr=subprocess.DEVNULL)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.05)
    supervisor.send_signal(signal.SIGINT)  # raises KeyboardInterrupt inside run_job
    supervisor.wait(timeout=20)
    assert not is_alive(int((tmp_path / "pid").read_text()))
    assert read_job(tmp_path)["status"] == "stopped"


def test_a_record_that_is_no_record_is_told(tmp_path):
    assert read_job(tmp_path) is None
    (tmp_path / "job.json").write_text("{")
    with pytest.raises(ValueError, match=r"job\.json is not the record of a job"):
        read_job(tmp_path)
