"""Fetch what is missing of the benchmarks' files: what ``python -m ncvc.download`` does.

Files that are there as published are not fetched again, so without any missing one nothing is connected to; altered
ones are never overwritten unasked. Several files come at once. What fails is told at the end, all of it; where the
server cannot be reached, nothing more is tried. Repeating the command goes on within a file. JMED-LLM's ``JCSTS.csv``,
where its repository lacks it, is rebuilt from the repository that it was made of.

Costs 20 MB over the line. Does not: decide licences (it prints them), or connect to anything but ``repositories``.
"""

from __future__ import annotations

import fcntl
import sys
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from ncvc.benchmark_files import (
    DATASETS,
    JCSTS,
    JCSTS_SOURCE,
    JCSTS_TEST,
    BenchmarkFile,
    check,
    datasets,
    files_of,
    rebuilt_jcsts,
    state_of,
)
from ncvc.https_files import Fetcher, Missing, Stopped, TransferSettings, Unreachable
from ncvc.resuming import RunStopped
from ncvc.settings import suggestion
from ncvc.storage import require_free_space, whole_file

_TOLD = 10
Tell = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class DownloadSettings:
    """``dir`` gets the files; ``repositories`` are base URLs by dataset, {commit} in them is the pinned one."""

    dir: str
    datasets: tuple[str, ...] = DATASETS
    repositories: Mapping[str, str] = field(default_factory=dict)
    certificates: str | None = None
    connections: int = 4
    timeout_seconds: float = 30.0
    attempts: int = 4
    pause_seconds: float = 1.0
    replace: bool = False

    def __post_init__(self) -> None:
        found = []
        if not self.dir.strip():
            found.append("benchmarks.dir is empty; set the folder that gets the files.")
        if not 1 <= self.connections <= 32:
            found.append(f"connections={self.connections}: must be 1 to 32.")
        known = datasets()
        for name, base in self.repositories.items():
            if name not in known:
                found.append(f"repositories.{name}: no such repository{suggestion(str(name), known)}")
            elif (why := _problem_of(base)) is not None:
                found.append(f"repositories.{name}={base!r}: {why}")
        found += [f"repositories.{name}: needed and not set; set its base URL." for name in self.datasets
                  if name in known and name not in self.repositories]  # fmt: skip
        if found:
            raise ValueError("\n".join(found))
        files_of(self.datasets)
        _ = self.transfer

    @property
    def transfer(self) -> TransferSettings:
        """How each file is fetched."""
        return TransferSettings(
            certificates=None if self.certificates is None else Path(self.certificates).expanduser(),
            timeout_seconds=self.timeout_seconds,
            attempts=self.attempts,
            pause_seconds=self.pause_seconds,
        )

    def url_of(self, file: BenchmarkFile) -> str:
        """Where ``file`` is fetched from."""
        base = self.repositories[file.dataset].replace("{commit}", datasets()[file.dataset].commit)
        return f"{base.rstrip('/')}/{urllib.parse.quote(file.source)}"


def _problem_of(base: object) -> str | None:
    if not isinstance(base, str):
        return "must be text, a URL that begins with https://."
    try:
        parts = urllib.parse.urlsplit(base)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return f"is no URL ({error})."
    if parts.scheme != "https" or not host:
        return "must begin with https:// and name a host; nothing is fetched over an open line."
    if parts.username or parts.query or parts.fragment or any(sign.isspace() for sign in base):
        return "must be a plain base URL, without a user name, ?, # or blanks."
    return None


def download_benchmarks(settings: DownloadSettings, *, tell: Tell = print) -> Path:
    """Fetch every file that is missing and say what is there; returns the folder.

    ``OSError`` or ``ValueError`` tell all that failed and how to go on; ``RunStopped`` on Ctrl-C.
    """
    folder = Path(settings.dir).expanduser()
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"benchmarks.dir={folder} is a file; set a folder.")
    files = files_of(settings.datasets)
    folder.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(folder, tell=tell):
        states = {file: state_of(folder / file.place, file) for file in files}
        altered = [file for file in files if states[file] == "altered"]
        if altered and not settings.replace:
            names = ", ".join(str(folder / file.place) for file in altered[:5])
            raise ValueError(
                f"{len(altered)} files in {folder} are not as published and are left as they are: {names}"
                f"{' ...' if len(altered) > 5 else ''}. Move them away, or set replace=true to fetch them anew."
            )
        wanted = [file for file in files if states[file] != "as published"]
        if not wanted:
            tell(f"all {len(files)} files are in {folder}, as published; nothing was fetched")
            return folder
        require_free_space(folder, sum(file.num_bytes for file in wanted), what="the benchmarks' files")
        for name in dict.fromkeys(file.dataset for file in wanted):
            source = datasets()[name]
            tell(f"{source.name} at commit {source.commit[:12]}; licence: {source.licence}")
        _fetch_all(wanted, folder, settings, tell=tell)
    tell(f"{len(wanted)} files fetched, {len(files) - len(wanted)} were there; all {len(files)} in {folder}")
    return folder


def verify_benchmarks(folder: Path, *, names: Sequence[str] = DATASETS, tell: Tell = print) -> None:
    """Hold a local copy against the list and say what is there; ``ValueError`` unless all of it is as published."""
    found = check(folder, names)
    tell(str(found))
    if found.altered:
        raise ValueError(
            f"{folder}: {len(found.altered)} files are not as published (see above); copy them again, or fetch them: "
            f"python -m ncvc.download benchmarks benchmarks.dir={folder} replace=true"
        )
    if found.missing:
        raise ValueError(
            f"{folder}: files are missing (see above); fetch them: python -m ncvc.download benchmarks "
            f"benchmarks.dir={folder}"
        )
    if not found.found:
        raise FileNotFoundError(
            f"{folder} holds none of the files; the datasets lie in it as {', '.join(names)}, or as clones of their "
            "repositories."
        )


def _fetch_all(wanted: Sequence[BenchmarkFile], folder: Path, settings: DownloadSettings, *, tell: Tell) -> None:
    fetcher = Fetcher(settings.transfer)
    total = sum(file.num_bytes for file in wanted)
    failures: list[str] = []
    jcsts_is_missing = False
    with (
        tqdm(total=total, unit="B", unit_scale=True, desc="benchmarks", disable=None) as bar,
        ThreadPoolExecutor(settings.connections, thread_name_prefix="download") as pool,
    ):
        futures: dict[Future[None], BenchmarkFile] = {
            pool.submit(_fetch_one, fetcher, file, folder, settings, bar): file for file in wanted
        }
        unreachable: Unreachable | None = None
        try:
            for future in as_completed(futures):
                file = futures[future]
                try:
                    future.result()
                except Stopped:
                    continue
                except Unreachable as error:
                    unreachable = unreachable or error
                    fetcher.stop.set()
                except Missing as error:
                    if (file.dataset, file.path) == ("jmed_llm", JCSTS):
                        jcsts_is_missing = True
                    else:
                        failures.append(str(error))
                except (OSError, ValueError) as error:
                    failures.append(str(error))
        except KeyboardInterrupt:
            fetcher.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise RunStopped(
                f"stopped: what came so far is in {folder}. Repeat the command to go on.", exit_code=130
            ) from None
    if unreachable is not None:
        raise OSError(
            f"{unreachable}. Without a connection: fetch the files on another machine (python -m ncvc.download "
            f"benchmarks), copy the folder, and set benchmarks.dir to it; python -m ncvc.download verify dir=FOLDER "
            "checks the copy. What came so far is kept."
        ) from unreachable
    if jcsts_is_missing:
        try:
            _rebuild_jcsts(fetcher, folder, settings, tell=tell)
        except (OSError, ValueError, ModuleNotFoundError) as error:
            failures.append(f"{JCSTS} is not in JMED-LLM's repository, and could not be rebuilt: {error}")
    if failures:
        told = sorted(failures)[:_TOLD]
        more = [f"... and {len(failures) - _TOLD} more"] if len(failures) > _TOLD else []
        raise OSError(
            "\n".join([f"{len(failures)} of {len(wanted)} files could not be fetched:", *told, *more])
            + f"\nWhat came is in {folder}; repeat the command to go on."
        )


def _fetch_one(fetcher: Fetcher, file: BenchmarkFile, folder: Path, settings: DownloadSettings, bar: tqdm) -> None:
    if fetcher.stop.is_set():
        raise Stopped
    fetcher.fetch(
        settings.url_of(file),
        folder / file.place,
        num_bytes=file.num_bytes,
        sha256=file.sha256,
        on_bytes=bar.update,
    )


def _rebuild_jcsts(fetcher: Fetcher, folder: Path, settings: DownloadSettings, *, tell: Tell) -> None:
    """Fetch the workbook of pairs, unless it is there, and write JCSTS.csv if it becomes the pinned file."""
    [workbook] = datasets()[JCSTS_SOURCE].files
    path = folder / "jmed_llm" / workbook.path
    if state_of(path, workbook) != "as published":
        if JCSTS_SOURCE not in settings.repositories:
            raise ValueError(f"set repositories.{JCSTS_SOURCE}, or put {workbook.path} into {path.parent}.")
        fetcher.fetch(settings.url_of(workbook), path, num_bytes=workbook.num_bytes, sha256=workbook.sha256)
    data = rebuilt_jcsts(path, test=folder / "jmed_llm" / JCSTS_TEST)
    wanted = next(file for file in datasets()["jmed_llm"].files if file.path == JCSTS)
    with whole_file(folder / wanted.place) as handle:
        handle.write(data)
    if state_of(folder / wanted.place, wanted) != "as published":
        (folder / wanted.place).unlink()
        raise ValueError(f"what {workbook.path} gives is not the pinned file; fetch both again.")
    licence = datasets()[JCSTS_SOURCE].licence
    tell(f"{wanted.place} was rebuilt from {path.name} ({licence}); its sha256 is the pinned one")


@contextmanager
def _one_at_a_time(folder: Path, *, tell: Tell) -> Iterator[None]:
    with (folder / ".downloading").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell(f"another download into {folder} is running; waiting for it")
            sys.stdout.flush()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
