"""The public benchmarks' files: which there are, with size and sha256, and whether a folder holds them unaltered.

The list (``benchmark_files.json``) pins one commit of each repository: JMED-LLM's full and test sets, IgakuQA's five
years with the published predictions, JMMLU's medical and life-science subjects. ``check`` holds a folder against it: as
``ncvc.download`` lays it out, or clones of the repositories beside each other. ``rebuilt_jcsts`` makes JMED-LLM's
largest set from the repository that it was made of, where it is missing.

Costs reading what is there, 20 MB in all. Does not: connect to anything (`ncvc.https_files` does), or know a row.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ncvc.settings import suggestion

DATASETS = ("jmed_llm", "igakuqa", "jmmlu")
JCSTS, JCSTS_TEST, JCSTS_SOURCE = "all/JCSTS.csv", "test/jcsts.csv", "japanese_clinical_sts"
_LIST = Path(__file__).with_name("benchmark_files.json")
_SCORES = "FEDCBA"  # the letter of each similarity, 0 to 5

State = Literal["as published", "altered", "missing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkFile:
    """One file: its place below the dataset's folder, in the repository, its size in bytes and its sha256."""

    dataset: str
    path: str
    source: str
    num_bytes: int
    sha256: str

    @property
    def place(self) -> str:
        """The path below the benchmarks' folder."""
        return f"{self.dataset}/{self.path}"

    @property
    def part(self) -> str:
        """What it is needed for, a unit of its own: a dataset, or of IgakuQA questions or predictions of a year."""
        if self.dataset != "igakuqa" or "/" not in self.path:
            return self.dataset
        kind, year = self.path.split("/")[:2]
        names = {"data": f"igakuqa {year}", "baseline_results": f"igakuqa {year}, published predictions"}
        return names.get(kind, "igakuqa, worked questions")


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One repository at one commit: ``name`` as its authors write it."""

    key: str
    name: str
    commit: str
    licence: str
    files: tuple[BenchmarkFile, ...]


@functools.cache
def datasets() -> Mapping[str, Dataset]:
    """All of the list by key: ``DATASETS``, and the source of JCSTS."""
    found = {}
    for key, values in json.loads(_LIST.read_text(encoding="utf-8")).items():
        files = tuple(
            BenchmarkFile(
                dataset=key, path=row["path"], source=row["source"], num_bytes=row["bytes"], sha256=row["sha256"]
            )
            for row in values["files"]
        )
        found[key] = Dataset(
            key=key, name=values["name"], commit=values["commit"], licence=values["licence"], files=files
        )
    return found


def files_of(names: Sequence[str]) -> list[BenchmarkFile]:
    """The files of the datasets ``names``; ``ValueError`` for an unknown name, or none."""
    if not names:
        raise ValueError(f"datasets is empty; name at least one of {', '.join(DATASETS)}.")
    if unknown := [name for name in names if name not in DATASETS]:
        told = "; ".join(f"{name!r}{suggestion(str(name), DATASETS)}" for name in unknown)
        raise ValueError(f"datasets: there is no dataset {told}")
    return [file for name in dict.fromkeys(names) for file in datasets()[name].files]


@functools.cache
def _pinned() -> Mapping[str, BenchmarkFile]:
    return {file.sha256: file for dataset in datasets().values() for file in dataset.files}


def is_published(sha256: str) -> bool:
    """Whether a file with this sha256 is one of the list, so that scores on it compare with others'."""
    return sha256 in _pinned()


def unpublished(files: Mapping[str, str]) -> list[str]:
    """Of ``files``, {name: sha256} as a task's source has them, those that are not of the list: other versions."""
    return [name for name, sha256 in files.items() if not is_published(sha256)]


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes, 64 hexadecimal digits."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def state_of(path: Path, file: BenchmarkFile) -> State:
    """Whether ``path`` is ``file``; the size is looked at first, so most altered files are not read."""
    if not path.is_file():
        return "missing"
    same = path.stat().st_size == file.num_bytes and sha256_of(path) == file.sha256
    return "as published" if same else "altered"


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a folder holds: paths by file of the list, the altered ones, and by part the files that are missing."""

    folder: Path
    found: Mapping[str, Path]
    altered: tuple[str, ...] = ()
    missing: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    absent: tuple[str, ...] = ()

    @property
    def is_good(self) -> bool:
        """Something is there, all of it as published, and no part of it has gaps."""
        return bool(self.found) and not self.altered and not self.missing

    def __str__(self) -> str:
        counts: dict[str, int] = {}
        for place in self.found:
            name = place.split("/", 1)[0]
            counts[name] = counts.get(name, 0) + 1
        lines = [f"{datasets()[name].name}: {count} files as published" for name, count in counts.items()]
        lines += [f"{part}: not there" for part in self.absent]
        for part, places in self.missing.items():
            lines.append(f"{part}: {len(places)} files are missing: {_some(places)}")
        if self.altered:
            lines.append(f"{len(self.altered)} files are not as published: {_some(self.altered)}")
        return "\n".join(lines)


def check(folder: Path, names: Sequence[str] = DATASETS) -> Findings:
    """Hold what lies in ``folder`` against the list; ``FileNotFoundError`` where there is no such folder.

    A part of which nothing is there is ``absent``; one with gaps is ``missing`` the rest.
    """
    folder = Path(folder)
    files = files_of(names)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is no folder (looked in {Path.cwd()} if relative); set dir to the one that holds "
            f"{', '.join(names)}, or fetch them: python -m ncvc.download benchmarks."
        )
    found: dict[str, Path] = {}
    altered: list[str] = []
    gaps: dict[str, list[str]] = {}
    there: dict[str, bool] = {}
    for file in files:
        path = _place_of(folder, file)
        state = state_of(path, file)
        there[file.part] = there.get(file.part, False) or state != "missing"
        if state == "as published":
            found[file.place] = path
        elif state == "altered":
            altered.append(str(path))
        else:
            gaps.setdefault(file.part, []).append(file.place)
    return Findings(
        folder=folder,
        found=found,
        altered=tuple(altered),
        missing={part: tuple(places) for part, places in gaps.items() if there[part]},
        absent=tuple(part for part, any_there in there.items() if not any_there),
    )


def _place_of(folder: Path, file: BenchmarkFile) -> Path:
    """Where a file lies: in our layout, or in a clone of its repository, or the one it should have."""
    clone = folder / datasets()[file.dataset].name / file.source
    own = folder / file.place
    return clone if clone.is_file() and not own.is_file() else own


def _some(places: Iterable[str], most: int = 5) -> str:
    names = list(places)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def rebuilt_jcsts(workbook: Path, *, test: Path) -> bytes:
    """The bytes of JMED-LLM's ``all/JCSTS.csv`` from the pairs of Japanese-Clinical-STS (an .xls workbook).

    ``test`` is JMED-LLM's own ``jcsts.csv``, which has the wording of the question and the options. The result is to be
    held against its sha256. ``ModuleNotFoundError`` where xlrd is missing, ``ValueError`` for other files.
    """
    try:
        import xlrd
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"to rebuild {JCSTS} from {workbook.name}, xlrd is needed: pip install 'xlrd>=2.0,<3'", name="xlrd"
        ) from error
    rows = list(csv.reader(io.StringIO(test.read_text(encoding="utf-8"), newline="")))
    try:
        header, (question, *options, _) = rows[0], rows[1]
        wording = question[: question.index("\nS1: ")]
        sheet = xlrd.open_workbook(str(workbook), on_demand=True).sheet_by_index(0)
        pairs = [sheet.row_values(number) for number in range(sheet.nrows)]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(header)
        for first, second, score in pairs:
            writer.writerow([f"{wording}\nS1: {first}\nS2: {second}", *options, _SCORES[int(score)]])
    except (IndexError, ValueError, TypeError, xlrd.XLRDError) as error:
        raise ValueError(
            f"{JCSTS} cannot be rebuilt from {workbook} and {test} ({error}); fetch both again."
        ) from error
    return text.getvalue().encode("utf-8")
