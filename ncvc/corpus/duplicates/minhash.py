"""MinHash of Japanese text over character n-grams: minima, bucket keys, sketches.

What it does: `MinHasher` turns texts into minima (Broder 1997); `bucket_keys` joins them into keys under which similar
documents meet (locality-sensitive hashing); `sketches` keeps one byte of each to estimate similarity. White space does
not count. What it costs: 50 MB of UTF-8 per second on one core for 120 hashes; memory of one text and one block.
What it does not do: decide anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from ncvc.corpus.characters import SPACE

_BLOCK = 1 << 16  # n-grams hashed at a time: 256 KiB, within a core's cache
_FIBONACCI = 0x9E3779B97F4A7C15
_MURMUR = 0xFF51AFD7ED558CCD


class MinHasher:
    """Texts to minima: `MinHasher(...)(texts)` is (documents, num_hashes) of uint32.

    Hash k of an n-gram is a_k * x + b_k mod 2**32, with a_k odd and x a mixed 32-bit hash of its characters; the
    minimum over the n-grams of two texts is equal with probability of their Jaccard similarity (Broder 1997). A text
    shorter than an n-gram is one n-gram; a text of white space alone has the largest value everywhere.
    """

    def __init__(self, *, num_hashes: int, ngram: int, seed: int) -> None:
        self.num_hashes, self.ngram = num_hashes, ngram
        size = 8 * self.num_hashes
        seeds = b"".join(  # not numpy's generators: their streams may change with the version
            hashlib.blake2b(f"ncvc minhash {seed} {number}".encode()).digest() for number in range(-(-size // 64))
        )
        parameters = np.frombuffer(seeds[:size], dtype="<u4").reshape(2, -1)
        self._multipliers, self._increments = parameters[0] | np.uint32(1), parameters[1]

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Minima of `texts`, in order."""
        codes = [_codes(text) for text in texts]
        minima = np.full((len(texts), self.num_hashes), 0xFFFFFFFF, dtype=np.uint32)
        batch: list[int] = []
        size = 0
        for place, code in enumerate(codes):
            if len(code) > _BLOCK:
                minima[place] = self._of_long(code)
            elif len(code):
                if size + len(code) > _BLOCK:
                    minima[batch] = self._of_several([codes[one] for one in batch])
                    batch, size = [], 0
                batch.append(place)
                size += len(code)
        if batch:
            minima[batch] = self._of_several([codes[one] for one in batch])
        return minima

    def _of_long(self, code: np.ndarray) -> np.ndarray:
        ngram, lowest = self.ngram, np.full(self.num_hashes, 0xFFFFFFFF, dtype=np.uint32)
        for start in range(0, len(code) - ngram + 1, _BLOCK):
            hashes = _ngram_hashes(code[start : start + _BLOCK + ngram - 1], ngram)
            np.minimum(lowest, self._minima(hashes, np.zeros(1, dtype=np.int64))[0], out=lowest)
        return lowest

    def _of_several(self, codes: list[np.ndarray]) -> np.ndarray:
        """Minima of short texts, hashed as one text whose n-grams across a border are left out."""
        ngram = self.ngram
        padded = [np.pad(code, (0, ngram - len(code))) if len(code) < ngram else code for code in codes]
        lengths = np.array([len(code) for code in padded], dtype=np.int64)
        hashes = _ngram_hashes(np.concatenate(padded), ngram)
        if len(codes) > 1 and ngram > 1:
            inside = np.ones(len(hashes), dtype=bool)
            inside[(np.cumsum(lengths)[:-1, None] - np.arange(1, ngram)).ravel()] = False
            hashes = hashes[inside]
        return self._minima(hashes, np.array([0, *np.cumsum(lengths - ngram + 1)[:-1]], dtype=np.int64))

    def _minima(self, hashes: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """(number of starts, num_hashes): minima over the hashes from each start to the next."""
        minima = np.empty((self.num_hashes, len(starts)), dtype=np.uint32)
        permuted = np.empty_like(hashes)
        for number in range(self.num_hashes):
            np.multiply(hashes, self._multipliers[number], out=permuted)
            np.add(permuted, self._increments[number], out=permuted)
            np.minimum.reduceat(permuted, starts, out=minima[number])
        return minima.T


def bucket_keys(minima: np.ndarray, *, buckets: int) -> np.ndarray:
    """(documents, buckets) of uint64: 60 bits of the hashes of each bucket, 0 for a document without text."""
    parts = minima.reshape(len(minima), buckets, minima.shape[1] // buckets).astype(np.uint64)
    keys = np.full((len(minima), buckets), _FIBONACCI, dtype=np.uint64)
    for number in range(parts.shape[2]):
        keys ^= parts[:, :, number]
        keys *= np.uint64(_MURMUR)
        keys ^= keys >> np.uint64(32)
    keys = np.maximum(keys >> np.uint64(4), np.uint64(1))
    keys[(minima == 0xFFFFFFFF).all(axis=1)] = 0
    return keys


def sketches(minima: np.ndarray) -> np.ndarray:
    """(documents, hashes) of uint8: one byte of each minimum, enough to estimate similarity (Li & Koenig 2010)."""
    return ((minima * np.uint32(0x9E3779B1)) >> np.uint32(24)).astype(np.uint8)


def estimated_similarity(first: np.ndarray, second: np.ndarray) -> float:
    """Jaccard similarity of two documents by their sketches; bytes agree by chance once in 256."""
    return max(0.0, (np.count_nonzero(first == second) / len(first) - 1 / 256) / (1 - 1 / 256))


def without_white_space(text: str) -> str:
    """A cleaned text without its spaces and line breaks."""
    return text.replace(SPACE, "").replace("\n", "")


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(without_white_space(text).encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _ngram_hashes(codes: np.ndarray, ngram: int) -> np.ndarray:
    """(characters - ngram + 1,) of uint32: one mixed hash per n-gram."""
    count = len(codes) - ngram + 1
    hashes = codes[:count].astype(np.uint64)
    for offset in range(1, ngram):
        hashes *= np.uint64(_FIBONACCI)
        hashes += codes[offset : offset + count]
    hashes ^= hashes >> np.uint64(32)
    hashes *= np.uint64(_MURMUR)
    return (hashes >> np.uint64(32)).astype(np.uint32)
