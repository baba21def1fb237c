"""Checkpoints that prove themselves: written beside, synced, completed by a manifest, and put in place by a rename.

Each rank writes its shard and a record into a hidden folder; when all records are there, the first rank adds state and
tokenizer, syncs, writes manifest.json (sha256 of every file and of itself) and renames. Ranks meet by the folder's name
alone, so saving needs no collective call and can run in a thread. Everything about checkpoints on disk is imported from
here. Tensors are not known here (``ncvc/model/training_state.py``), nor is when to save.
"""

import contextlib
import errno
import fcntl
import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from ncvc import storage
from ncvc.background import BackgroundSaver
from ncvc.checkpoint_folders import (
    FORMAT,
    VERSION,
    Checkpoint,
    checkpoint_name,
    discard_after,
    find_checkpoints,
    is_foreign,
    newest_complete,
    open_checkpoint,
    prune,
    remove_leftovers,
    required_bytes,
    shard_name,
    step_of,
    verify,
)
from ncvc.storage import check_file, file_record, hash_json, write_json, write_manifest

__all__ = [
    "FORMAT",
    "VERSION",
    "BackgroundSaver",
    "Checkpoint",
    "CheckpointWriter",
    "checkpoint_name",
    "discard_after",
    "find_checkpoints",
    "newest_complete",
    "open_checkpoint",
    "prune",
    "remove_leftovers",
    "required_bytes",
    "shard_name",
    "step_of",
    "verify",
]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_POLL_SECONDS = 0.02


class _RankError(OSError):
    """What another rank reported, in its own words."""


class CheckpointWriter:
    """One checkpoint, written by ``world_size`` processes on a shared file system. One writer per process and save.

    ``token`` names the attempt (the start of the run) and is the same on all ranks: with the step it gives the folder.
    Every rank calls ``write_shard``, then the first one ``complete``. What fails in any rank is raised there and on the
    first rank, which removes the unfinished folder; checkpoints on disk stay as they are.
    """

    def __init__(self, directory: Path, *, step: int, rank: int, world_size: int, token: str) -> None:
        self.directory, self.step, self.token = Path(directory), step, token
        self.rank, self.world_size = rank, world_size
        self.partial = self.directory / f".{checkpoint_name(step)}.partial-{token}"
        self._lock: TextIO | None = None

    def write_shard(self, write: Callable[[Path], Mapping[str, Any]]) -> None:
        """Let ``write`` write this rank's shard to a path; it returns the file's record (``storage.file_record``)."""
        shard = self.partial / shard_name(self.rank, world_size=self.world_size)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if self.rank == 0:
                remove_leftovers(self.directory, token=self.token)
            self.partial.mkdir(exist_ok=True)
            self._lock = (self.partial / ".lock").open("a+")
            fcntl.flock(self._lock, fcntl.LOCK_SH)  # many writers; a cleaner wants it alone
            record = dict(write(shard))
            write_json(self._record_of(self.rank), record)
        except BaseException as error:
            reason = self._reason(error)
            if self.rank == 0:
                self._give_up()
            elif self.partial.exists():
                with contextlib.suppress(OSError):
                    shard.unlink(missing_ok=True)  # makes room for the record
                    told = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
                    write_json(self._record_of(self.rank), {"error": told, "errno": getattr(error, "errno", None)})
            if reason is error:
                raise
            raise reason from error
        finally:
            if self.rank != 0:
                self._unlock()

    def complete(
        self,
        state: Mapping[str, Any],
        *,
        extra_directories: Mapping[str, Path] | None = None,
        timeout: float = 600.0,
    ) -> Checkpoint:
        """First rank: wait for all shards, add ``state`` and copies of directories, and put the checkpoint in place.

        ``state`` is plain JSON; ``shards``, the names of the files, is added to it. ``OSError`` after ``timeout``
        seconds without some rank's shard, or when a rank failed or the disk is full.
        """
        try:
            records = self._wait_for_ranks(timeout)
            shards = [shard_name(rank, world_size=self.world_size) for rank in range(self.world_size)]
            text = json.dumps({**state, "shards": shards}, ensure_ascii=False, indent=1)
            (self.partial / "state.json").write_text(text + "\n", encoding="utf-8")
            others = ["state.json"]
            for name, source in (extra_directories or {}).items():
                others += _copy_files(Path(source), self.partial / name, root=self.partial)
            files = dict(zip(shards, records, strict=True))
            files |= {name: file_record(self.partial / name) for name in sorted(others)}
            for shard in shards:  # the other machines' files are seen from here as they were written
                check_file(self.partial / shard, files[shard], verify=False, cure="the checkpoint is given up")
            manifest = {"format": FORMAT, "version": VERSION, "step": self.step, "world_size": self.world_size}
            manifest |= {"files": files}
            for rank in range(self.world_size):
                self._record_of(rank).unlink()
            write_manifest(self.partial, {**manifest, "sha256": hash_json(manifest)})
            for path in [*self.partial.rglob("*"), self.partial]:
                storage.sync(path)
            self._put_in_place()
        except BaseException as error:
            reason = self._reason(error)
            self._give_up()
            if reason is error:
                raise
            raise reason from error
        finally:
            self._unlock()
        final = self.directory / checkpoint_name(self.step)
        return Checkpoint(final, self.step, manifest)

    def _put_in_place(self) -> None:
        final = self.directory / checkpoint_name(self.step)
        old = self.directory / f".{final.name}.old-{self.token}"
        if final.exists():
            if is_foreign(final):  # another version's work is not ours to delete
                old = self.directory / f"{final.name}.kept-{self.token}"
            final.rename(old)
        try:
            self.partial.rename(final)
        except OSError:
            if old.exists():
                old.rename(final)
            raise
        (final / ".lock").unlink()
        storage.sync(self.directory)
        if old.name.startswith("."):
            shutil.rmtree(old, ignore_errors=True)

    def _wait_for_ranks(self, timeout: float) -> list[dict[str, Any]]:
        records: dict[int, dict[str, Any]] = {}
        deadline = time.monotonic() + timeout  # the wall clock may jump
        while True:
            for rank in set(range(self.world_size)) - set(records):
                if self._record_of(rank).is_file():
                    record = json.loads(self._record_of(rank).read_text(encoding="utf-8"))
                    if "error" in record:
                        raise _RankError(record["errno"] or errno.EIO, f"rank {rank}: {record['error']}")
                    records[rank] = record
            if len(records) == self.world_size:
                return [records[rank] for rank in range(self.world_size)]
            if time.monotonic() > deadline:
                silent = ", ".join(str(rank) for rank in range(self.world_size) if rank not in records)
                raise OSError(
                    errno.ETIMEDOUT,
                    f"the checkpoint of step {self.step} in {self.directory} is given up: rank {silent} wrote nothing "
                    f"within {timeout:g} s. Earlier checkpoints are untouched: look in the output of rank {silent} for "
                    "why it stopped, then go on from the last checkpoint",
                )
            time.sleep(_POLL_SECONDS)

    def _record_of(self, rank: int) -> Path:
        return self.partial / f"rank-{rank:05d}.json"

    def _reason(self, error: BaseException) -> BaseException:
        """The error in words that name the cure, where the disk is at fault."""
        if isinstance(error, OSError) and error.errno in _FULL and not isinstance(error, _RankError):
            free = shutil.disk_usage(self.directory).free
            return OSError(
                error.errno,
                f"writing the checkpoint of step {self.step} in {self.directory} failed: {error.strerror} ({free:,} "
                "bytes free on that disk). The unfinished part is removed and earlier checkpoints are untouched. Free "
                "some space, lift the limit, or set NCVC_HOME to a folder on a larger disk, then resume the run",
            )
        if isinstance(error, FileNotFoundError) and not self.partial.exists():
            return OSError(
                errno.ECANCELED,
                f"the checkpoint of step {self.step} in {self.directory} was given up by the first rank; its message "
                "says why. Earlier checkpoints are untouched",
            )
        return error

    def _give_up(self) -> None:
        self._unlock()
        shutil.rmtree(self.partial, ignore_errors=True)

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _copy_files(source: Path, target: Path, *, root: Path) -> list[str]:
    """Copy a directory file by file (so that a full disk keeps its errno); the files' names below ``root``."""
    names = []
    for path in sorted(source.rglob("*")):
        if path.is_file():
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            names.append(copy.relative_to(root).as_posix())
    if not names:
        raise FileNotFoundError(errno.ENOENT, f"{source} has no files to copy into the checkpoint", str(source))
    return names
