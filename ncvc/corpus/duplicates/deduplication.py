"""Repeated documents: the exact ones by a 128-bit key of the text, the near ones by MinHash over character n-grams.

Exact: `exact_key` gives the 16 bytes of a cleaned text without its white space; `decide_exact` reads one file of keys
per shard and says which rows repeat an earlier one. Near: `minhash_stages` gives three stages for any datatrove
executor (signatures per shard, candidate pairs per bucket, one decision) and `rows_to_remove` reads what they decided.

What stays: the first in (shard, row) order. A document is removed only if its own sketch agrees with that of the
document that stays in at least `similarity` of the hashes: chains of ever less similar documents do not form, and a
chance meeting in a bucket costs nothing. Neither number nor order of workers changes any of it.

What it costs, measured on one core: signatures 50 MB/s with the JSON read, and on disk 8 bytes a bucket and 1 byte a
hash per document; pairs 40 bytes of memory per document; the decision 40 microseconds and 300 bytes per repeated
document, in one task. `decide_exact`: 0.4 microseconds and 40 bytes per document. What it does not do: find a passage
that two different documents share.

Why not datatrove's own MinHash stages: their signatures need words (under 1 MB/s for Japanese, and a tenth of the
copies missed), their buckets hold every shard's file open (a thousand shards exceed the usual limit of a process),
and of a cluster they keep the member with most links, not the first.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ncvc.corpus.duplicates.minhash import MinHasher, bucket_keys, estimated_similarity, sketches, without_white_space
from ncvc.storage import whole_file

KEY_BYTES = 16
_BATCH_CHARACTERS = 1 << 18
_PAIRS_AT_A_TIME = 1 << 16
REMOVED = np.dtype([("row", "<u4"), ("kept_shard", "<u4"), ("kept_row", "<u4"), ("similarity", "<f4")])


@dataclass(frozen=True, kw_only=True)
class DeduplicationSettings:
    """What counts as a repetition.

    `exact` removes texts that are equal but for white space; `minhash` removes those that share at least `similarity`
    of their `ngram`-character n-grams (Jaccard, as the sketch estimates it). Two documents of Jaccard s meet in a
    bucket with probability 1 - (1 - s ** hashes_per_bucket) ** buckets, half-way near `meeting_similarity`.
    """

    exact: bool
    minhash: bool
    buckets: int = 20
    hashes_per_bucket: int = 6
    ngram: int = 5
    similarity: float = 0.7
    seed: int = 1

    def __post_init__(self) -> None:
        for name, low, high in (("buckets", 1, 1024), ("hashes_per_bucket", 1, 64), ("ngram", 1, 64)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"deduplication.{name}={value!r}: must be a whole number from {low} to {high}.")
        if not 0 <= self.similarity <= 1:
            raise ValueError(
                f"deduplication.similarity={self.similarity!r}: a share of n-grams from 0 to 1; set for example 0.7."
            )

    @property
    def num_hashes(self) -> int:
        """Hashes per document."""
        return self.buckets * self.hashes_per_bucket

    @property
    def meeting_similarity(self) -> float:
        """The Jaccard similarity at which pairs begin to meet in a bucket: (1 / buckets) ** (1 / hashes_per_bucket)."""
        return float((1 / self.buckets) ** (1 / self.hashes_per_bucket))

    def meeting_probability(self, similarity: float) -> float:
        """The probability that two documents of Jaccard `similarity` meet in at least one bucket."""
        return float(1 - (1 - similarity**self.hashes_per_bucket) ** self.buckets)

    def __str__(self) -> str:
        near = (
            f"MinHash of {self.ngram} characters, {self.buckets} x {self.hashes_per_bucket} hashes: pairs meet from a "
            f"similarity of about {self.meeting_similarity:.2f}, removed from {self.similarity:g}"
        )
        parts = ["equal texts"] * self.exact + [near] * self.minhash
        return "; ".join(parts) or "nothing is deduplicated"


class HasText(Protocol):
    """A document: datatrove's, or any other with a text."""

    text: str


# --- exact
def exact_key(cleaned_text: str) -> bytes:
    """16 bytes that stand for a cleaned text, whatever its white space."""
    return hashlib.blake2b(without_white_space(cleaned_text).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def decide_exact(paths: Sequence[Path]) -> list[np.ndarray]:
    """Rows of each key file (ascending, int64) whose key occurred before, in an earlier file or row.

    A file holds the `exact_key`s of one shard, one after the other. Raises `ValueError` for a torn file.
    """
    counts = []
    for path in paths:
        size = Path(path).stat().st_size
        if size % KEY_BYTES:
            raise ValueError(
                f"{path} holds {size:,} bytes, no whole number of {KEY_BYTES}-byte keys: it was torn; remove it and "
                "run the stage that writes it again."
            )
        counts.append(size // KEY_BYTES)
    high, low = (np.empty(sum(counts), dtype="<u8") for _ in range(2))
    offsets = _offsets(counts)
    for path, start, end in zip(paths, offsets, offsets[1:], strict=False):
        keys = np.fromfile(path, dtype="<u8").reshape(-1, 2)
        high[start:end], low[start:end] = keys[:, 0], keys[:, 1]
    order = np.lexsort((low, high))  # stable: equal keys stay in (file, row) order
    repeats = np.zeros(len(order), dtype=bool)
    equal = np.ones(max(len(order) - 1, 0), dtype=bool)
    for part in (high, low):
        part = part[order]
        equal &= part[1:] == part[:-1]
    repeats[order[1:][equal]] = True
    return [np.flatnonzero(repeats[start:end]) for start, end in itertools.pairwise(offsets)]


# --- stages for datatrove's executors
Stage = tuple[str, list[Any], int]


def minhash_stages(
    reading: Sequence[Callable[..., Any]], *, tasks: int, work_folder: Path, settings: DeduplicationSettings
) -> list[Stage]:
    """(name, pipeline, number of tasks) of the three stages, each to be run when the one before is complete.

    `reading` are the steps that yield the documents of shard r to task r of the first stage, with the cleaned text;
    rows are counted over what they yield. Files lie under `work_folder`; `rows_to_remove` reads the result.
    """
    work_folder = Path(work_folder)
    return [
        ("signatures", [*reading, WriteSignatures(work_folder, settings)], tasks),
        ("buckets", [FindPairs(work_folder, tasks)], settings.buckets),
        ("clusters", [DecideNear(work_folder, tasks, settings)], 1),
    ]


@dataclass(frozen=True)
class WriteSignatures:
    """Pipeline step: bucket keys and sketches of the documents of shard `rank`; yields nothing."""

    folder: Path
    settings: DeduplicationSettings

    def __call__(self, data: Iterable[HasText], rank: int = 0, world_size: int = 1) -> None:
        """Write them; a document without text has a row too."""
        hasher = MinHasher(num_hashes=self.settings.num_hashes, ngram=self.settings.ngram, seed=self.settings.seed)
        found = [hasher(texts) for texts in _batches(data)]
        minima = np.concatenate([np.empty((0, hasher.num_hashes), dtype=np.uint32), *found])
        _save(_keys_path(self.folder, rank), bucket_keys(minima, buckets=self.settings.buckets).T)
        _save(_sketches_path(self.folder, rank), sketches(minima))


@dataclass(frozen=True)
class FindPairs:
    """Pipeline step: the pairs of documents that meet in bucket `rank`; yields nothing.

    Of documents that meet, each is paired with the first and with the one before. A pair is one uint64: the number of
    the earlier document in all shards, times 2**32, plus that of the later.
    """

    folder: Path
    shards: int

    def __call__(self, data: object = None, rank: int = 0, world_size: int = 1) -> None:
        """Write them, sorted."""
        files = [np.load(_keys_path(self.folder, shard), mmap_mode="r") for shard in range(self.shards)]
        keys = np.concatenate([np.empty(0, dtype=np.uint64), *(file[rank] for file in files)])
        del files
        if len(keys) > 1 << 32:
            raise ValueError(f"{len(keys):,} documents are more than MinHash can number (2**32); curate them in parts.")
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        meets = np.flatnonzero((keys[1:] == keys[:-1]) & (keys[1:] != 0)) + 1
        opens = np.ones(len(keys), dtype=bool)
        opens[meets] = False
        first = order[np.maximum.accumulate(np.where(opens, np.arange(len(keys)), 0))[meets]]
        before, later = order[meets - 1], order[meets]
        pairs = np.concatenate([first, before]).astype(np.uint64) << np.uint64(32)
        _save(_pairs_path(self.folder, rank), np.unique(pairs | np.concatenate([later, later]).astype(np.uint64)))


@dataclass(frozen=True)
class DecideNear:
    """Pipeline step of one task: which documents nearly repeat an earlier one that stays; yields nothing.

    In order, each document is held against those that stay of the documents it met: the first whose sketch is similar
    enough replaces it.
    """

    folder: Path
    shards: int
    settings: DeduplicationSettings

    def __call__(self, data: object = None, rank: int = 0, world_size: int = 1) -> None:
        """Write the removed rows of every shard."""
        sizes = [np.load(_keys_path(self.folder, shard), mmap_mode="r").shape[1] for shard in range(self.shards)]
        offsets = np.array(_offsets(sizes), dtype=np.int64)
        pairs = np.empty(0, dtype=np.uint64)
        for bucket in range(self.settings.buckets):
            pairs = np.union1d(pairs, np.load(_pairs_path(self.folder, bucket)))
        earlier, later = (pairs >> np.uint64(32)).astype(np.int64), (pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)
        del pairs
        documents = np.unique(np.concatenate([earlier, later]))
        sketch = self._sketches_of(documents, offsets)
        order = np.lexsort((earlier, later))
        earlier, later = np.searchsorted(documents, earlier[order]), np.searchsorted(documents, later[order])
        kept, similarity = _replace(earlier, later, sketch, self.settings.similarity)
        gone = np.flatnonzero(kept != np.arange(len(kept)))
        removed = np.empty(len(gone), dtype=REMOVED)
        shard = np.searchsorted(offsets, documents[gone], side="right") - 1
        removed["row"] = documents[gone] - offsets[shard]
        stays = documents[kept[gone]]
        removed["kept_shard"] = np.searchsorted(offsets, stays, side="right") - 1
        removed["kept_row"] = stays - offsets[removed["kept_shard"]]
        removed["similarity"] = similarity[gone]
        for number in range(self.shards):
            _save(_removed_path(self.folder, number), removed[shard == number])

    def _sketches_of(self, documents: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """(documents, hashes): the sketches of the documents of these numbers alone."""
        parts = [np.empty((0, self.settings.num_hashes), dtype=np.uint8)]
        borders = np.searchsorted(documents, offsets)
        for shard, (start, end) in enumerate(itertools.pairwise(borders)):
            if end > start:
                stored = np.load(_sketches_path(self.folder, shard), mmap_mode="r")
                parts.append(stored[documents[start:end] - offsets[shard]])
        return np.concatenate(parts)


def _replace(
    earlier: np.ndarray, later: np.ndarray, sketch: np.ndarray, similarity: float
) -> tuple[np.ndarray, np.ndarray]:
    """For each document the one that stays for it (itself if it stays), and how similar they are.

    `earlier` and `later` number the rows of `sketch`, sorted by `later`.
    """
    kept = list(range(len(sketch)))
    found = np.ones(len(sketch), dtype=np.float32)
    for start in range(0, len(later), _PAIRS_AT_A_TIME):
        held: set[tuple[int, int]] = set()
        pairs = (part[start : start + _PAIRS_AT_A_TIME].tolist() for part in (earlier, later))
        for first, second in zip(*pairs, strict=True):
            stays = kept[first]
            if kept[second] != second or (stays, second) in held:
                continue
            held.add((stays, second))
            estimate = estimated_similarity(sketch[stays], sketch[second])
            if estimate >= similarity:
                kept[second], found[second] = stays, estimate
    return np.array(kept, dtype=np.int64), found


def near_duplicates(work_folder: Path, shard: int) -> np.ndarray:
    """What was removed of `shard`, by row: `REMOVED` records with the document that stays and their similarity."""
    path = _removed_path(Path(work_folder), shard)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the stages of minhash_stages are not complete; run them first.")
    return np.load(path)


def rows_to_remove(work_folder: Path, shard: int) -> np.ndarray:
    """Rows of `shard` (ascending, int64) that nearly repeat a document that stays."""
    return near_duplicates(work_folder, shard)["row"].astype(np.int64)


def _offsets(counts: Iterable[int]) -> list[int]:
    """Where each part begins when parts of these sizes stand one after the other, and the end."""
    return [0, *np.cumsum(np.fromiter(counts, dtype=np.int64)).tolist()]


def _batches(data: Iterable[HasText]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for document in data:
        batch.append(document.text)
        size += len(document.text)
        if size >= _BATCH_CHARACTERS or len(batch) >= 4096:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _keys_path(folder: Path, shard: int) -> Path:
    return folder / "signatures" / f"{shard:05d}.keys.npy"


def _sketches_path(folder: Path, shard: int) -> Path:
    return folder / "signatures" / f"{shard:05d}.sketches.npy"


def _pairs_path(folder: Path, bucket: int) -> Path:
    return folder / "pairs" / f"{bucket:04d}.npy"


def _removed_path(folder: Path, shard: int) -> Path:
    return folder / "removed" / f"{shard:05d}.npy"


def _save(path: Path, array: np.ndarray) -> None:
    """Write an array, complete or not at all."""
    with whole_file(path) as handle:
        np.save(handle, np.ascontiguousarray(array), allow_pickle=False)
