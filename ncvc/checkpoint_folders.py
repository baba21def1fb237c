"""Folders ``step=00003200`` on disk: found by step, checked against their manifests, pruned, cleaned up after kills.

Checking a checkpoint thoroughly reads it once. Removing one renames it first, so that nothing half removed looks like
one. Nothing is ordered by time. Writing them is in ``ncvc/checkpoints.py``.
"""

import contextlib
import fcntl
import json
import re
import shutil
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ncvc import storage
from ncvc.storage import check_file, hash_json

FORMAT, VERSION = "ncvc-checkpoint", 1
_NAME = re.compile(r"step=(\d{8,})")
_BESIDE = re.compile(r"\.step=(\d{8,})\.(partial|old|removed)-(.+)")


def checkpoint_name(step: int) -> str:
    """The folder's name, ``step=00003200``."""
    return f"step={step:08d}"


def step_of(path: Path) -> int:
    """The step that a checkpoint's folder is named after; ``ValueError`` for another name."""
    match = _NAME.fullmatch(Path(path).name)
    if match is None:
        raise ValueError(f"{path} is not a checkpoint's folder; name one like {checkpoint_name(3200)}.")
    return int(match.group(1))


def shard_name(rank: int, *, world_size: int) -> str:
    """The file of one rank."""
    return f"shard-{rank:05d}-of-{world_size:05d}.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a readable manifest; ``verify`` tells whether its files are what the manifest says."""

    path: Path
    step: int
    manifest: Mapping[str, Any]


# ---- finding and checking ------------------------------------------------------------------------------------------


def open_checkpoint(path: Path, *, thorough: bool = True) -> Checkpoint:
    """The checkpoint in ``path``; ``ValueError`` that names every file that is not what the manifest says."""
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not there; name a folder like RUN/checkpoints/{checkpoint_name(3200)}.")
    try:
        checkpoint = _read(path, step=step_of(path))
        problems = verify(checkpoint, thorough=thorough)
    except OSError as error:
        problems = [str(error)]
    if problems:
        raise ValueError(f"{path} cannot be used: {'; '.join(problems)}. Take another checkpoint.")
    return checkpoint


def _read(path: Path, *, step: int) -> Checkpoint:
    """Read the manifest; ``ValueError`` says what is wrong with it."""
    file = path / "manifest.json"
    if not file.is_file():
        raise ValueError("manifest.json is missing")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"manifest.json is torn ({error})") from error
    if not isinstance(manifest, dict) or (manifest.get("format"), manifest.get("version")) != (FORMAT, VERSION):
        found = manifest if isinstance(manifest, dict) else {}
        raise ValueError(
            f"manifest.json is of format {found.get('format')!r} version {found.get('version')!r}; this version of "
            f"ncvc reads {FORMAT!r} version {VERSION}"
        )
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    if manifest.get("sha256") != hash_json(content):
        raise ValueError("manifest.json was altered after it was written (its own sha256 does not fit)")
    if manifest["step"] != step:
        raise ValueError(f"manifest.json is of step {manifest['step']}, the folder's name says {step}")
    return Checkpoint(path, step, content)


def is_foreign(path: Path) -> bool:
    """Whether the folder has a readable manifest of another format or version."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and (manifest.get("format"), manifest.get("version")) != (FORMAT, VERSION)


def verify(checkpoint: Checkpoint, *, thorough: bool) -> list[str]:
    """What is wrong with the files (nothing: an empty list); ``thorough`` reads them whole, else sizes and edges."""

    def problem(name: str) -> str | None:
        try:
            check_file(checkpoint.path / name, checkpoint.manifest["files"][name], verify=thorough, cure="")
        except (OSError, ValueError) as error:
            return str(error).replace(f"{checkpoint.path}/", "").removesuffix("; ")
        return None

    with ThreadPoolExecutor(max_workers=4) as pool:  # hashing lets other threads run
        return [found for found in pool.map(problem, checkpoint.manifest["files"]) if found is not None]


def _folders(directory: Path) -> list[tuple[int, str, Path]]:
    """(step, "" or "old" or "partial", path) from the newest step to the oldest; "" comes before its leftovers."""
    found = []
    for path in Path(directory).iterdir() if Path(directory).is_dir() else []:
        if match := _NAME.fullmatch(path.name):
            found.append((int(match.group(1)), "", path))
        elif (match := _BESIDE.fullmatch(path.name)) and match.group(2) != "removed":
            found.append((int(match.group(1)), match.group(2), path))
    return sorted(found, key=lambda entry: (-entry[0], entry[1], entry[2]))


def find_checkpoints(directory: Path) -> list[Checkpoint]:
    """Checkpoints with a readable manifest, ordered by step; files are not looked at (see ``verify``)."""
    found: dict[int, Checkpoint] = {}
    for step, what, path in _folders(directory):
        # a kill between two renames can leave a step only under the name that it was moved aside to
        if step not in found and what != "partial":
            with contextlib.suppress(OSError, ValueError):
                found[step] = _read(path, step=step)
    return [found[step] for step in sorted(found)]


def newest_complete(
    directory: Path, *, at_most: int | None = None, thorough: bool = True
) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint of the highest step (up to ``at_most``) that is whole, and why higher ones were passed over."""
    skipped: list[str] = []
    for step, what, path in _folders(directory):
        if at_most is not None and step > at_most:
            continue
        if what == "partial":
            skipped.append(f"{path.name} is passed over: it was never completed (killed, or still being written)")
            continue
        try:
            checkpoint = _read(path, step=step)
            problems = verify(checkpoint, thorough=thorough)
        except (OSError, ValueError) as error:
            problems = [str(error)]
        if not problems:
            return checkpoint, skipped
        skipped.append(f"{path.name} is passed over: {'; '.join(problems)}")
    return None, skipped


# ---- cleaning up and space ------------------------------------------------------------------------------------------


def remove_leftovers(directory: Path, *, token: str) -> None:
    """Undo what killed attempts left: an old folder moved aside is restored or removed, unfinished ones removed.

    Folders of the attempt ``token`` and folders that a living process writes stay.
    """
    for path in sorted(Path(directory).iterdir()):
        match = _BESIDE.fullmatch(path.name)
        if match is None:
            continue
        step, what, owner = int(match.group(1)), match.group(2), match.group(3)
        final = path.with_name(checkpoint_name(step))
        if what == "old" and not final.exists():
            path.rename(final)
        elif what != "partial" or (owner != token and _is_abandoned(path)):
            shutil.rmtree(path, ignore_errors=True)


def _is_abandoned(partial: Path) -> bool:
    try:
        with (partial / ".lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        pass
    return True


def prune(directory: Path, *, keep_rolling: int, archive_every: int, keep: Collection[int] = frozenset()) -> list[int]:
    """Remove rolling checkpoints but the last ``keep_rolling``; the steps removed.

    Stay: multiples of ``archive_every``, steps in ``keep``, the newest whole one, and what is not whole (for a person
    to look at).
    """
    rolling = [
        checkpoint
        for checkpoint in find_checkpoints(directory)
        if checkpoint.step % archive_every and checkpoint.step not in keep and not verify(checkpoint, thorough=False)
    ]
    newest, _ = newest_complete(directory, thorough=False)
    removed = []
    for checkpoint in rolling[: max(0, len(rolling) - keep_rolling)]:
        if newest is not None and checkpoint.step != newest.step:
            _remove(checkpoint.path, step=checkpoint.step)
            removed.append(checkpoint.step)
    return removed


def discard_after(directory: Path, *, step: int) -> list[int]:
    """Remove every checkpoint of a later step, whole or not (a rewind: they belong to what is undone)."""
    removed = []
    for later, what, path in _folders(directory):
        if later > step and what != "partial":
            _remove(path, step=later)
            removed.append(later)
    return removed


def _remove(path: Path, *, step: int) -> None:
    """Rename, then delete: a kill in between leaves nothing that looks like a checkpoint."""
    aside = path.with_name(f".{checkpoint_name(step)}.removed-{time.monotonic_ns()}")
    path.rename(aside)
    storage.sync(path.parent)
    shutil.rmtree(aside, ignore_errors=True)


def required_bytes(
    parameters: int, *, max_steps: int, archive_every: int, keep_rolling: int, bytes_per_parameter: int = 12
) -> int:
    """Disk that a run's checkpoints fill: the archive, the last step, the rolling ones, and one being written.

    12 bytes a parameter: weights and AdamW's two moments in fp32.
    """
    archived = max_steps // archive_every
    final = 1 if max_steps % archive_every else 0
    return (archived + final + keep_rolling + 1) * parameters * bytes_per_parameter
