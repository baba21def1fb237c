"""Which windows make up which step: the order of samples as a pure function of (data, seed, sample number).

Nothing here has state: sample s is the same after a restart, on any number of ranks, with any number of
workers. The data come in as fingerprints (ncvc/shards.py), so other data shuffle otherwise. Random numbers
are splitmix64 (Steele, Lea and Flood 2014) over integers, because numpy does not promise the same stream from
one version to the next; the tests pin the first samples.

Without weights  all windows of all sources are one pool; every epoch is a fresh permutation of it, without
                 end.
With weights     each period of 10,000 samples holds every source exactly as often as its weight says (largest
                 remainder, so shares are right to 0.01 %), shuffled inside the period. Within a source, every
                 window is drawn once before any is drawn again, in a fresh permutation each time round.
Skip ranges      absolute sample numbers left out (after a loss spike): later samples move up, earlier ones
                 stay. All sample numbers are absolute, so a skip list found in one run means the same in the
                 next.

Cost: a permutation of 4.4 million windows (9 billion tokens) takes under 0.1 s and 18 MB, once per epoch;
two are kept per source.
Does not: read tokens, hand out work to processes, or stop after a number of epochs.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction

import numpy as np

ORDER_VERSION = 1
"""Raise it when the same arguments give another order; it is part of the fingerprint and of every key."""
PERIOD = 10_000
"""Samples after which the shares of weighted sources come out exactly."""

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_KEPT = 2
_BLOCK = 1024  # samples drawn at once, so that small batches cost a slice each


def _splitmix64(counters: np.ndarray, key: int) -> np.ndarray:
    """Outputs number `counters` + 1 of the splitmix64 stream seeded with `key`; uint64, modulo 2**64."""
    values = (counters + np.uint64(1)) * _GAMMA + np.uint64(key)
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def permutation(size: int, *, key: int) -> np.ndarray:
    """A permutation of range(size), [size] uint32 (uint64 from 2**32 on), decided by the 64-bit `key`.

    Each number gets a hash whose low bits are replaced by the number itself; sorting the hashes shuffles the
    numbers. As no two are equal, every sorting algorithm gives the same result (and a plain sort is 18 times
    faster than a stable argsort).
    """
    numbers = np.arange(size, dtype=np.uint64)
    low_bits = np.uint64(max(1, (size - 1).bit_length()))
    mask = (np.uint64(1) << low_bits) - np.uint64(1)
    hashes = _splitmix64(numbers, key)
    hashes &= ~mask
    hashes |= numbers
    hashes.sort()
    hashes &= mask
    return hashes.astype(np.uint32 if size <= 1 << 32 else np.uint64)


def quotas(weights: Sequence[float], *, period: int = PERIOD) -> list[int]:
    """How often each source occurs in a period: its weight's share, rounded by largest remainder.

    Ties go to the first source. Raises ValueError for weights that are not positive numbers, or too small to
    occur at all.
    """
    if any(weight is None or not math.isfinite(weight) or weight <= 0 for weight in weights):
        raise ValueError(
            f"data.sources weights={list(weights)}: each must be a positive number, or all null for natural "
            "shares; leave a source out instead of giving it weight 0"
        )
    exact = [Fraction(weight) * period / sum(map(Fraction, weights)) for weight in weights]
    counts = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda source: counts[source] - exact[source])
    for source in by_remainder[: period - sum(counts)]:
        counts[source] += 1
    if 0 in counts:
        raise ValueError(
            f"data.sources weights={list(weights)}: source {counts.index(0)} would get less than 1 sample "
            f"in {period:,}; raise its weight or leave the source out"
        )
    return counts


class SampleOrder:
    """Sample number -> (source, window). See the module's docstring.

    `sizes` are the windows of each source, `fingerprints` name their contents, `weights` are shares of the
    samples (None: natural shares), `skip` is a sorted list of absolute ranges [first, end) to leave out.
    `fingerprint` covers all but `skip`.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        fingerprints: Sequence[str],
        weights: Sequence[float] | None = None,
        seed: int,
        skip: Iterable[tuple[int, int]] = (),
    ) -> None:
        if not sizes or any(size < 1 for size in sizes):
            raise ValueError(f"windows per source are {list(sizes)}; every source needs at least one window")
        if len(fingerprints) != len(sizes) or (weights is not None and len(weights) != len(sizes)):
            raise ValueError(
                f"{len(sizes)} sources, {len(fingerprints)} fingerprints and "
                f"{len(sizes) if weights is None else len(weights)} weights; give one of each per source"
            )
        self.sizes = [int(size) for size in sizes]
        self.seed = int(seed)
        self.skip = _checked_skip(skip)
        self.quotas = None if weights is None else quotas(weights)
        self._quotas = np.array(self.quotas or [], dtype=np.int64)
        identity = [ORDER_VERSION, self.sizes, list(fingerprints), self.quotas, self.seed]
        self.fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        self._ends = np.cumsum(self.sizes)
        self._caches: dict[str, dict[int, np.ndarray]] = {}

    def sample_numbers(self, start: int, count: int) -> np.ndarray:
        """Absolute numbers of the samples at places start to start + count, skips left out; int64 [count]."""
        if start < 0 or count < 0:
            raise ValueError(f"samples {start} to {start + count} asked for; they are numbered from 0")
        numbers = np.arange(start, start + count, dtype=np.int64)
        for first, end in self.skip:
            numbers[numbers >= first] += end - first
        return numbers

    def sample_ranges(self, start: int, count: int) -> list[tuple[int, int]]:
        """`sample_numbers` as ranges [first, end) of consecutive ones."""
        numbers = self.sample_numbers(start, count)
        parts = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
        return [(int(part[0]), int(part[-1]) + 1) for part in parts]

    def indices(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Sources, and windows in them, of samples at places start to start + count; two int64 [count]."""
        if start < 0 or count < 0:
            raise ValueError(f"samples {start} to {start + count} asked for; they are numbered from 0")
        pieces = []
        for block in range(start // _BLOCK, max(start, start + count - 1) // _BLOCK + 1):
            begin = max(start - block * _BLOCK, 0)
            end = min(start + count - block * _BLOCK, _BLOCK)
            pieces.append(self._cached("block", block, self._draw_block)[:, begin:end])
        sources, windows = pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1)
        return sources, windows

    def _draw_block(self, block: int) -> np.ndarray:
        """Sources and windows of the _BLOCK samples from place block * _BLOCK on: int64 [2, _BLOCK]."""
        drawn = np.stack(self._draw(self.sample_numbers(block * _BLOCK, _BLOCK)))
        drawn.flags.writeable = False  # callers get views of what is kept
        return drawn

    def _draw(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sources and windows of absolute sample numbers (ascending)."""
        if self.quotas is None:
            pool = self._permuted("pool", int(self._ends[-1]), numbers)
            sources = np.searchsorted(self._ends, pool, side="right")
            return sources, pool - (self._ends - self.sizes)[sources]
        sources = np.empty(len(numbers), dtype=np.int64)
        ordinals = np.empty(len(numbers), dtype=np.int64)
        periods, places = np.divmod(numbers, PERIOD)
        for period in np.unique(periods).tolist():
            members, ranks = self._cached("period", period, self._arrange_period)
            chosen = periods == period
            sources[chosen] = members[places[chosen]]
            ordinals[chosen] = period * self._quotas[sources[chosen]] + ranks[places[chosen]]
        windows = np.empty(len(numbers), dtype=np.int64)
        for source in np.unique(sources).tolist():
            chosen = sources == source
            windows[chosen] = self._permuted(f"source {source}", self.sizes[source], ordinals[chosen])
        return sources, windows

    def global_batch(self, step: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Sources and windows of optimizer step `step` (from 0), two int64 arrays [batch_size]."""
        return self.indices(step * batch_size, batch_size)

    def micro_batch(
        self,
        step: int,
        micro_step: int,
        rank: int,
        *,
        batch_size: int,
        world_size: int,
        micro_batch_size: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """One rank's part of `global_batch(step, batch_size)`, two int64 arrays [micro_batch_size].

        Over all ranks and the batch_size / (world_size * micro_batch_size) micro-steps the parts are the
        global batch, each sample once; in order if read micro-step by micro-step, rank by rank.
        """
        parallel = world_size * micro_batch_size
        if parallel < 1 or batch_size % parallel:
            raise ValueError(
                f"data.batch_size={batch_size} is not a multiple of {world_size} ranks x "
                f"data.micro_batch_size={micro_batch_size} = {parallel}; set data.batch_size to a multiple "
                f"of {parallel}, or data.micro_batch_size to a divisor"
            )
        if not (0 <= micro_step < batch_size // parallel and 0 <= rank < world_size):
            raise ValueError(
                f"micro-step {micro_step} of rank {rank} asked for; a step has {batch_size // parallel} "
                f"micro-steps and {world_size} ranks, both counted from 0"
            )
        start = step * batch_size + micro_step * parallel + rank * micro_batch_size
        return self.indices(start, micro_batch_size)

    def epoch_of(self, sample: int) -> np.ndarray:
        """Passes over each source before absolute sample number `sample`, float64 [sources].

        Skipped samples count as drawn.
        """
        if self.quotas is None:
            return np.full(len(self.sizes), sample / self._ends[-1])
        period, place = divmod(sample, PERIOD)
        members, _ = self._cached("period", period, self._arrange_period)
        drawn = period * self._quotas + np.bincount(members[:place], minlength=len(self.sizes))
        return drawn / np.array(self.sizes)

    def _key(self, *purpose: str | int) -> int:
        data = json.dumps([self.fingerprint, *purpose]).encode()
        return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")

    def _permuted(self, pool: str, size: int, ordinals: np.ndarray) -> np.ndarray:
        """Draws number `ordinals` (ascending) from an endless row of permutations of range(size): int64."""
        epochs, places = np.divmod(ordinals, size)
        drawn = np.empty(len(ordinals), dtype=np.int64)
        values, begins = np.unique(epochs, return_index=True)
        for epoch, begin, end in zip(values.tolist(), begins, [*begins[1:], len(ordinals)], strict=True):
            order = self._cached(pool, epoch, lambda epoch: permutation(size, key=self._key(pool, epoch)))
            drawn[begin:end] = order[places[begin:end]]
        return drawn

    def _arrange_period(self, period: int) -> np.ndarray:
        """For each place its source, and how many of that source come before it; int64 [2, PERIOD]."""
        sorted_sources = np.repeat(np.arange(len(self.sizes)), self._quotas)
        members = sorted_sources[permutation(PERIOD, key=self._key("period", period))]
        ranks = np.empty(PERIOD, dtype=np.int64)
        for source in range(len(self.sizes)):
            chosen = members == source
            ranks[chosen] = np.arange(self._quotas[source])
        return np.stack([members, ranks])

    def _cached(self, kind: str, number: int, make: Callable[[int], np.ndarray]) -> np.ndarray:
        """The last results of each kind; a batch meets at most two of them unless its source is tiny."""
        cache = self._caches.setdefault(kind, {})
        if number not in cache:
            while len(cache) >= _KEPT:
                del cache[next(iter(cache))]
            cache[number] = make(number)
        return cache[number]


def _checked_skip(skip: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    ranges = [(int(first), int(end)) for first, end in skip]
    before = 0
    for first, end in ranges:
        if first < before or end <= first:
            raise ValueError(
                f"data.skip={ranges}: [{first}, {end}) must hold at least one sample and begin after the "
                "range before it; give sorted ranges [first, end) of absolute sample numbers that do not "
                "overlap"
            )
        before = end
    return ranges
