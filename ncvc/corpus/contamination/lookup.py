"""Finding stored windows by their hash, comparing them, and joining those that overlap.

Costs: about 5 ns for a window that is not held. Does not: decide by the hash; `same_runs` compares what it points at.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ncvc.corpus.contamination.condensed import Places, Values

FILTER_BITS_PER_WINDOW = 16

_SECOND_KEY = np.uint64(0xBF58476D1CE4E5B9)
_CHARACTERS_AT_A_TIME = 1 << 17


@dataclass(frozen=True, slots=True)
class Table:
    """Windows of one kind: `hashes` ascending [n], and `places` [n], where in the items each is."""

    hashes: Values
    places: Places


class Lookup:
    """One kind's windows: a bit array (two bits a window) that refuses most strangers, then a binary search."""

    def __init__(self, table: Table, bits: np.ndarray) -> None:
        self.table, self.bits = table, bits
        self._shift = _key_shift(len(bits) * 8)

    @staticmethod
    def bits_of(hashes: Values) -> np.ndarray:
        """The bit array for `hashes`; fewer than one stranger in 50 passes it."""
        size = max(1 << 10, 1 << (FILTER_BITS_PER_WINDOW * len(hashes)).bit_length())
        flags = np.zeros(size, np.uint8)
        for keys in (hashes, hashes * _SECOND_KEY):
            flags[(keys >> _key_shift(size)).astype(np.int64)] = 1
        return np.packbits(flags, bitorder="little")

    def _passing(self, hashes: Values) -> np.ndarray:
        keys = (hashes >> self._shift).astype(np.int64)
        return np.flatnonzero((self.bits[keys >> 3] >> (keys & 7).astype(np.uint8)) & 1)

    def find(self, hashes: Values) -> tuple[Places, Places]:
        """Which of `hashes` are held, and where: pairs of an index of `hashes` and a place."""
        chosen = self._passing(hashes)
        if len(chosen):
            chosen = chosen[self._passing(hashes[chosen] * _SECOND_KEY)]
        if not len(chosen) or not len(self.table.hashes):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        wanted = hashes[chosen]
        first = np.searchsorted(self.table.hashes, wanted, side="left")
        counts = np.searchsorted(self.table.hashes, wanted, side="right") - first
        before = np.cumsum(counts) - counts
        indices = np.repeat(first - before, counts) + np.arange(int(counts.sum()))
        return np.repeat(chosen, counts), self.table.places[indices].astype(np.int64)


def _key_shift(num_bits: int) -> np.uint64:
    return np.uint64(65 - num_bits.bit_length())


def same_runs(values: Values, starts: Places, stored: Values, places: Places, *, lengths: Places) -> np.ndarray:
    """[n] whether the characters of `values` from each start are those of `stored` from each place, so many."""
    same = starts + lengths <= len(values)
    for length in np.unique(lengths[same]).tolist():
        within, chosen = np.arange(length), np.flatnonzero(same & (lengths == length))
        step = max(1, _CHARACTERS_AT_A_TIME // length)
        for first in range(0, len(chosen), step):
            some = chosen[first : first + step]
            left, right = starts[some, None] + within, places[some, None] + within
            same[some] = (values[left] == stored[right]).all(axis=1)
    return same


def stretches(keys: Places, starts: Places, ends: Places) -> tuple[Places, Places, Places]:
    """Spans of the same key that overlap or touch as one: (keys, starts, ends), by key, then start."""
    order = np.lexsort((ends, starts, keys))
    keys, starts, ends = keys[order], starts[order], ends[order]
    changes = np.diff(keys, prepend=-1) != 0
    # Ends of later keys are moved beyond those of earlier ones, so that one running maximum serves all.
    shift = (np.cumsum(changes) - 1) * (int(ends.max(initial=0)) + 1)
    reach = np.maximum.accumulate(ends + shift)
    first = np.flatnonzero(changes | (starts + shift > np.concatenate(([-1], reach[:-1]))))
    last = np.append(first[1:], len(keys)) - 1
    return keys[first], starts[first], (reach - shift)[last] if len(first) else ends
