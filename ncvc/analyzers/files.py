"""Files an analyser needs besides its packages (user dictionaries, dictionaries given by path), known by their sha256.

What it does: an analyser's identity names such files by hash alone, so that it is the same on every machine. Here a
hash is found again: in the folder given (a tokenizer's directory keeps copies), or among the paths that
`remember_files` noted in the environment variable `NCVC_ANALYZER_FILES` (programs and workers started later inherit
it; set it by hand where they do not). `copy_analyzer_files` makes a directory self-contained.

What it costs: one reading of each file (500 MB/s) per process. What it does not do: search disks, or open dictionaries.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from ncvc.storage import sync

VARIABLE = "NCVC_ANALYZER_FILES"
USER_DICTIONARY, DICTIONARY = "user_dictionary", "dictionary"
"""First part of a copy's name; the rest is the beginning of its sha256."""

HASH_KEYS = {USER_DICTIONARY: "user_dictionary", DICTIONARY: "dictionary_sha256"}
"""The key of an identity that holds the hashes of each kind, several joined by a comma."""

# Of a folder of dictionary files, those that decide where words are cut: MeCab's compiled ones, and the text form.
_COMPILED = ("sys.dic", "matrix.bin", "char.bin", "unk.dic", "dicrc")
_TEXT = ("matrix.def", "char.def", "unk.def")


def dictionary_parts(path: Path) -> list[Path]:
    """The files of a dictionary that decide the words, in the order of their names: the file itself, or a folder's."""
    if path.is_file():
        return [path]
    wanted = [path / name for name in (*_COMPILED, *_TEXT)]
    return sorted([part for part in wanted if part.is_file()] + [part for part in path.glob("*.csv") if part.is_file()])


def sha256_of(path: Path) -> str:
    """sha256 of a file, or of the names and hashes of a dictionary folder's parts. Raises `FileNotFoundError`."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; set the path of a dictionary")
    if path.is_file():
        return _file_sha256(path)
    digest = hashlib.sha256()
    for part in dictionary_parts(path):
        digest.update(f"{part.name}\0{_file_sha256(part)}\n".encode())
    return digest.hexdigest()


def _file_sha256(path: Path) -> str:
    state = path.stat()
    return _read_sha256(path, state.st_size, state.st_mtime_ns, state.st_ino)


@functools.lru_cache(maxsize=256)
def _read_sha256(path: Path, size: int, changed: int, inode: int) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def remember_files(paths: Iterable[Path]) -> None:
    """Note paths in the environment, where this process and those it starts look for hashes."""
    known = [part for part in os.environ.get(VARIABLE, "").split(os.pathsep) if part]
    for path in paths:
        absolute = str(Path(path).absolute())
        if absolute not in known:
            known.insert(0, absolute)
    os.environ[VARIABLE] = os.pathsep.join(known)


def copy_name(kind: str, sha256: str, path: Path) -> str:
    """Name of a copy in a self-contained directory; the ending stays."""
    return f"{kind}-{sha256[:16]}{'' if path.is_dir() else path.suffix}"


def find_by_hash(kind: str, sha256: str, *, files_folder: Path | None = None) -> Path:
    """The file or folder with this sha256. Raises `ValueError` that names where was looked and what to do.

    With `files_folder` only there: a directory that is said to hold its files must do so on every machine.
    """
    altered = []
    candidates = (
        sorted(Path(files_folder).glob(f"{kind}-{sha256[:16]}*")) if files_folder is not None else _remembered(kind)
    )
    for path in candidates:
        if path.exists():
            if sha256_of(path) == sha256:
                return path
            altered.append(path)
    if files_folder is not None:
        found = (
            f"{altered[0]} was altered: its sha256 is {sha256_of(altered[0])}"
            if altered
            else f"{files_folder} holds no {copy_name(kind, sha256, Path('x'))}.*"
        )
        raise ValueError(
            f"the analyser's {kind} with sha256 {sha256} is needed, and {found}; restore the directory from its source"
        )
    raise ValueError(
        f"the analyser's {kind} with sha256 {sha256} was not found; set analyzer.{kind} to its file, or name it in the "
        f"environment variable {VARIABLE} (paths joined by {os.pathsep!r})"
    )


def _remembered(kind: str) -> list[Path]:
    """Remembered paths, and the copies in remembered folders."""
    found = []
    for part in os.environ.get(VARIABLE, "").split(os.pathsep):
        if part:
            found.append(Path(part))
            if Path(part).is_dir():
                found += sorted(Path(part).glob(f"{kind}-*"))
    return found


def hashes_of(identity: Mapping[str, str]) -> dict[str, list[str]]:
    """Kind -> hashes of the files an identity names; empty where packages are all it needs."""
    return {kind: str(identity[key]).split(",") for kind, key in HASH_KEYS.items() if identity.get(key)}


def analyzer_files(identity: Mapping[str, str], *, files_folder: Path | None = None) -> dict[str, Path]:
    """Name in a self-contained directory -> where it is now, of every file that `identity` needs besides packages.

    Raises `ValueError` for a file that cannot be found or is not what its hash says.
    """
    found = {}
    for kind, hashes in hashes_of(identity).items():
        for sha256 in hashes:
            path = find_by_hash(kind, sha256, files_folder=files_folder)
            found[copy_name(kind, sha256, path)] = path
    return found


def copy_analyzer_files(identity: Mapping[str, str], directory: Path, *, files_folder: Path | None = None) -> None:
    """Copy what `identity` needs into `directory`, each file whole or not at all."""
    directory = Path(directory)
    wanted = analyzer_files(identity, files_folder=files_folder)
    for name, path in wanted.items():
        target = directory / name
        if target.exists() and sha256_of(target) == sha256_of(path):
            continue
        with tempfile.TemporaryDirectory(dir=directory, prefix=f".{name}.") as beside:
            copy = Path(beside) / name
            parts = dictionary_parts(path)
            if path.is_dir():
                copy.mkdir()
            for part in parts:
                place = copy / part.name if path.is_dir() else copy
                shutil.copyfile(part, place)
                sync(place)
            if sha256_of(copy) != sha256_of(path):
                raise OSError(f"{path} changed while it was copied to {directory}; start again")
            if target.is_dir():
                shutil.rmtree(target)
            copy.rename(target)
        sync(directory)


def remove_other_files(identity: Mapping[str, str], directory: Path) -> None:
    """Remove copies in `directory` that `identity` does not name, left by what was saved there before."""
    for kind in HASH_KEYS:
        kept = {f"{kind}-{sha256[:16]}" for sha256 in hashes_of(identity).get(kind, [])}
        for path in Path(directory).glob(f"{kind}-*"):
            if path.name.partition(".")[0] not in kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
