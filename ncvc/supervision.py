"""Running a job as a program of its own, to its end, whatever happens to it; and the heartbeats by which it is watched.

A job gets its own session, a clean environment, and a folder: ``output.txt`` (what it printed, appended on each
attempt) and ``job.json`` (overrides, status, return code, seconds, attempts). It is ended, with all that it started,
when it is stopped, has lost a rank, or shows no progress on any rank for longer than its heartbeats promise. This is
the outer belt: the watchdog inside a run usually acts first. Costs a look at a few small files four times a second.

All times are monotonic, so a clock that jumps changes nothing. Until its first heartbeat (imports, preparation of data)
a job may take as long as it likes. Stopped processes are seen on Linux only; ranks on other machines are not watched.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from ncvc.storage import write_json

DEAD_RANK, HUNG = 70, 71  # exit codes by which a run's own watchdog ends it
JOB_VARIABLE = "NCVC_JOB"  # marks every process of a job, however it was started
_HEARTBEATS = "heartbeats"


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """A rank's last sign of progress: ``last_beat`` in seconds of CLOCK_MONOTONIC, good for ``limit_seconds``."""

    host: str
    pid: int
    last_beat: float
    limit_seconds: float
    doing: str

    def is_late(self, now: float) -> bool:
        """Whether the next beat is overdue at ``now`` (seconds of CLOCK_MONOTONIC)."""
        return now - self.last_beat > self.limit_seconds


def write_heartbeat(folder: Path, rank: int, heartbeat: Heartbeat) -> None:
    """Write ``folder/heartbeats/rank-0000.json``, complete or not at all. Raises ``OSError`` on a full disk."""
    path = Path(folder) / _HEARTBEATS / f"rank-{rank:04d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    partial.write_text(json.dumps(asdict(heartbeat)), encoding="utf-8")
    partial.replace(path)


def remove_heartbeat(folder: Path, rank: int) -> None:
    """Remove a rank's heartbeat at the end of its training; one that is not there is no error."""
    (Path(folder) / _HEARTBEATS / f"rank-{rank:04d}.json").unlink(missing_ok=True)


def read_heartbeats(folder: Path) -> dict[int, Heartbeat]:
    """Rank -> heartbeat of the ranks that live on this machine; other hosts' and dead processes' are left out."""
    host = socket.gethostname()
    return {rank: beat for rank, beat in _all_heartbeats(folder).items() if beat.host == host and is_alive(beat.pid)}


def _all_heartbeats(folder: Path) -> dict[int, Heartbeat]:
    found = {}
    for path in sorted((Path(folder) / _HEARTBEATS).glob("rank-*.json")):
        try:
            found[int(path.stem.removeprefix("rank-"))] = Heartbeat(**json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            continue  # removed just now, or not ours
    return found


def is_alive(pid: int) -> bool:
    """Whether a process of this number runs on this machine; one that has ended and waits to be collected does not."""
    return process_state(pid) not in ("", "Z", "X")


def process_state(pid: int) -> str:
    """State letter of Linux (R, S, D, T stopped, Z ended), "" for no such process; elsewhere "?" for one that runs."""
    if Path("/proc/self/stat").exists():
        try:
            return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "?"


_RANKS = re.compile(
    r"LOCAL_RANK|RANK|WORLD_SIZE|NODE_RANK|GROUP_RANK|CROSS_RANK|CROSS_SIZE|LOCAL_SIZE|LOCAL_WORLD_SIZE|"
    r"GROUP_WORLD_SIZE|MASTER_ADDR|MASTER_PORT|ROLE_.*|TORCHELASTIC_.*|PL_GLOBAL_SEED|PL_SEED_WORKERS|"
    r"SLURM_(NTASKS|NPROCS|TASKS_PER_NODE|PROCID|LOCALID|NODEID|STEP_|STEPID|GTIDS).*|"
    r"(OMPI|PMI|PMIX)_.*|LSB_.*|JSM_NAMESPACE_.*"
)


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` without what would make a job take itself for a rank of some other job, or for one task of srun."""
    return {name: value for name, value in environ.items() if name != JOB_VARIABLE and not _RANKS.fullmatch(name)}


@dataclass(frozen=True, kw_only=True)
class JobOutcome:
    """How a job ended.

    ``status``: ``finished``, ``failed`` (its own error), ``dead`` (killed, or lost a rank), ``hung`` or ``stopped``.
    ``seconds`` is the length of this attempt; ``reason`` is empty for a finished job, else it says why, with the last
    lines of its output.
    """

    status: str
    return_code: int | None
    seconds: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How many seconds are given before a job is ended, and while it ends."""

    late: float = 5.0  # beyond the promise of every rank's heartbeat: the run's own watchdog comes first
    stopped: float = 10.0  # for a process that was stopped (SIGSTOP) to go on
    vanished: float = 5.0  # for the other ranks to end after one is gone
    ending: float = 5.0  # between SIGTERM and SIGKILL
    saving: float = 60.0  # for a job that is asked to stop to save a checkpoint


class StopRequest(threading.Event):
    """Set: save and end. ``at_once``: do not wait for the saving."""

    at_once = False


def run_job(
    command: Sequence[str],
    *,
    folder: Path,
    environment: Mapping[str, str],
    overrides: Sequence[str] = (),
    product: str | None = None,
    stop: StopRequest | None = None,
    patience: Patience | None = None,
) -> JobOutcome:
    """Run ``command`` to its end and leave no process behind, whether it ends, hangs, or this call is interrupted.

    ``product`` is a file that the job must leave in ``folder``. Setting ``stop`` sends SIGTERM and waits for the job to
    save. What an earlier attempt left running (its supervisor was killed) is ended first. Raises ``ValueError`` when
    the folder is supervised by somebody else, ``OSError`` when the program cannot be started.
    """
    patience, stop = patience or Patience(), stop or StopRequest()
    with held(Path(folder), lock=".job.lock", what="this job"):
        before = read_job(folder) or {}
        if before.get("status") == "running" and before.get("host") == socket.gethostname():
            _end(None, before.get("token", ""), seconds=patience.ending)
        for leftover in (Path(folder) / _HEARTBEATS).glob("rank-*.json"):
            leftover.unlink(missing_ok=True)
        token, started = secrets.token_hex(16), time.monotonic()
        record = {
            "overrides": list(overrides),
            "command": list(command),
            "status": "running",
            "attempts": before.get("attempts", 0) + 1,
            "host": socket.gethostname(),
            "token": token,
        }
        write_json(Path(folder) / "job.json", record)
        with (Path(folder) / "output.txt").open("ab") as output:
            first_byte = output.tell()
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**environment, JOB_VARIABLE: token},
                start_new_session=True,
            )
        outcome = JobOutcome(status="stopped", return_code=None, seconds=0.0, reason="its supervisor was interrupted")
        try:
            found = _watch(process, Path(folder), stop=stop, patience=patience)
            if found is not None and found[0] == "stopped":
                _ask_to_save(process, stop=stop, seconds=patience.saving)
            _end(process, token, seconds=patience.ending)
            outcome = _outcome(process, found, product=product, folder=Path(folder), first_byte=first_byte)
        finally:
            _end(process, token, seconds=patience.ending)
            outcome = dataclasses.replace(outcome, seconds=round(time.monotonic() - started, 3))
            write_json(Path(folder) / "job.json", {**record, **asdict(outcome)})
    return outcome


def read_job(folder: Path) -> dict[str, Any] | None:
    """What ``job.json`` of a job's folder says; None where no job was started."""
    path = Path(folder) / "job.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is not the record of a job ({error}); move the folder, or set another one") from error


@contextlib.contextmanager
def held(folder: Path, *, lock: str, what: str) -> Iterator[None]:
    """Hold ``folder`` by a lock file that dies with this process; ``ValueError`` when another one holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / lock).open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{folder}: {what} is running there already. Wait for it, end it, or set another folder"
            ) from error
        yield


def _watch(
    process: subprocess.Popen[bytes], folder: Path, *, stop: StopRequest, patience: Patience
) -> tuple[str, str] | None:
    """Wait for the process; (status, reason) where it has to be ended, None where it ended by itself."""
    ranks = _Ranks(process.pid, folder=folder, patience=patience)
    while process.poll() is None:
        if stop.wait(0.25):
            return "stopped", "ended from outside"
        if (found := ranks.trouble(time.monotonic())) is not None and process.poll() is None:
            return found
    return None


class _Ranks:
    """What can be seen of a job's ranks from outside, and since when."""

    def __init__(self, pid: int, *, folder: Path, patience: Patience) -> None:
        self.pid, self.folder, self.patience = pid, folder, patience
        self.last_look = time.monotonic()
        self.since: dict[tuple[str, int], float] = {}  # (what, process) -> first seen
        self.trusted_from = self.last_look

    def trouble(self, now: float) -> tuple[str, str] | None:
        """(status, reason) of a job that will not end by itself, else None. ``now``: seconds of CLOCK_MONOTONIC."""
        if now - self.last_look > 2.0:  # this process was stopped or starved, the job perhaps with it
            self.trusted_from = now + self.patience.late
            self.since.clear()
        self.last_look = now
        host = socket.gethostname()
        beats = {rank: beat for rank, beat in _all_heartbeats(self.folder).items() if beat.host == host}
        names = {self.pid: "its first process", **{beat.pid: f"rank {rank}" for rank, beat in beats.items()}}
        states = {pid: process_state(pid) for pid in names}
        for pid, state in states.items():
            if self._lasts("stopped", pid, state == "T", now, self.patience.stopped):
                return "hung", f"{names[pid]} (process {pid}) has been stopped for {self.patience.stopped:.0f} s"
            if self._lasts("vanished", pid, state in ("", "Z", "X"), now, self.patience.vanished):
                return "dead", f"{names[pid]} (process {pid}) is gone and the others have not ended"
        lateness = {rank: now - beat.last_beat for rank, beat in beats.items()}
        if (
            beats
            and now >= self.trusted_from
            and all(lateness[rank] > beat.limit_seconds + self.patience.late for rank, beat in beats.items())
        ):
            rank = max(lateness, key=lambda number: lateness[number])
            return "hung", f"rank {rank} has made no progress for {lateness[rank]:.0f} s during {beats[rank].doing}"
        return None

    def _lasts(self, what: str, pid: int, seen: bool, now: float, seconds: float) -> bool:
        if not seen:
            self.since.pop((what, pid), None)
            return False
        return now - self.since.setdefault((what, pid), now) > seconds


def _ask_to_save(process: subprocess.Popen[bytes], *, stop: StopRequest, seconds: float) -> None:
    """SIGTERM to the first process, which saves a checkpoint and ends its ranks."""
    process.terminate()
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline and not stop.at_once:
        time.sleep(0.05)


def _end(process: subprocess.Popen[bytes] | None, token: str, *, seconds: float) -> None:
    """End every process of the job: SIGTERM, after ``seconds`` SIGKILL, until none is left."""
    deadline, sent = time.monotonic() + seconds, False
    while left := _processes_of(process, token):
        over = time.monotonic() > deadline
        if over or not sent:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if over else signal.SIGTERM)
            sent = True
        if time.monotonic() > deadline + 30:  # in a system call that cannot be interrupted
            break
        time.sleep(0.05)


def _processes_of(process: subprocess.Popen[bytes] | None, token: str) -> list[int]:
    """Living processes that carry the job's mark, or are in its session."""
    marked = f"{JOB_VARIABLE}={token}".encode()
    found = [process.pid] if process is not None and process.poll() is None else []
    for entry in Path("/proc").glob("[0-9]*") if token else ():
        pid = int(entry.name)
        try:
            same = marked in (entry / "environ").read_bytes().split(b"\0")
            if same or (process is not None and os.getsid(pid) == process.pid):
                found.append(pid)
        except OSError:
            continue  # ended just now, or another user's
    return [pid for pid in dict.fromkeys(found) if pid != os.getpid() and is_alive(pid)]


def _outcome(
    process: subprocess.Popen[bytes],
    found: tuple[str, str] | None,
    *,
    product: str | None,
    folder: Path,
    first_byte: int,
) -> JobOutcome:
    code, last_lines = process.returncode, _last_lines(folder / "output.txt", first_byte=first_byte)
    complete = code == 0 and (product is None or (folder / product).is_file())
    if complete and (found is None or found[0] == "stopped"):  # it may have reached its end when asked to stop
        return JobOutcome(status="finished", return_code=0, seconds=0.0, reason="")
    if found is not None:
        status, reason = found
    elif code == 0:
        status, reason = "failed", f"it ended without leaving {product}"
    elif code in (128 + signal.SIGTERM, 128 + signal.SIGINT, -signal.SIGINT):
        status, reason = "stopped", f"exit code {code}"
    elif code < 0:
        status, reason = "dead", f"killed by {signal.Signals(-code).name}"
    else:
        status, reason = {DEAD_RANK: "dead", HUNG: "hung"}.get(code, "failed"), f"exit code {code}"
    return JobOutcome(status=status, return_code=code, seconds=0.0, reason="\n".join([reason, *last_lines]))


def _last_lines(path: Path, *, first_byte: int, most: int = 6) -> list[str]:
    """The message of this attempt's last error where it printed one, else its last lines."""
    with path.open("rb") as handle:
        end = handle.seek(0, os.SEEK_END)
        handle.seek(max(first_byte, end - 16_384))
        text = handle.read().decode("utf-8", errors="replace")
    printed = [line.strip() for line in text.replace("\r", "\n").split("\n") if line.strip()]
    lines = [line for line in printed if not re.search(r"\d%\|", line)]  # no progress bars
    errors = [place for place, line in enumerate(lines) if line.startswith("error:")]
    return lines[errors[-1] :][:most] if errors else lines[-most:]


@contextlib.contextmanager
def stop_on_signals(stop: StopRequest) -> Iterator[list[int]]:
    """SIGTERM or Ctrl-C sets ``stop`` instead of ending this program; a second Ctrl-C sets ``stop.at_once``.

    Yields the list of signals received so far. Does nothing outside the main thread, where signals cannot be taken.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, frame: FrameType | None) -> None:
        stop.at_once = stop.is_set() and number == signal.SIGINT
        received.append(number)
        stop.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
