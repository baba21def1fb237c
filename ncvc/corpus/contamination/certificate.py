"""A hashed certificate of a corpus: "was this text in it?" answered later, without the corpus.

What it does: the fingerprints of all texts (see `winnowing`) go into a Bloom filter. A text of which 30 letters and
digits in a row stand in the corpus is always found; one that shares nothing is taken for seen with the stated
probability per fingerprint, which is measured when the certificate is built. A run of only 20 shared characters may be
found too: that is a shared run, not chance, and `longest_run` tells it.

How: each shard's fingerprints go into a file of their own (`winnowing.FingerprintWriter`), in parallel;
`merge_certificate` makes the filter from any number of such files in any order, always the same bytes.
What it costs: one fingerprint per 6 characters, 19.2 bits each at 1e-4: 0.13 GB per GB of cleaned text; merging takes
15 s per GB of text and holds 100 MB. A question takes half a millisecond.
What it does not do: give the text back: only bits of hashes are kept. But who guesses 30 characters can test the guess,
so a certificate of texts that may not be known to exist is as confidential as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ncvc.corpus.cleaning import Cleaner
from ncvc.corpus.contamination import array_file, winnowing
from ncvc.corpus.contamination.condensed import Values, condense, mix, window_hashes
from ncvc.corpus.contamination.winnowing import DEFAULT_SETTINGS, CertificateSettings, as_keys, different, smallest
from ncvc.storage import atomic_directory, check_file, file_record, read_manifest, write_manifest

FORMAT, VERSION = "ncvc-certificate", 1
FILTER = "filter.bin"

_PART_BITS = 1 << 20  # each part of the filter is a Bloom filter of its own, for an equal share of all hashes
_KEYS_AT_A_TIME = 1 << 20
_ROWS_AT_A_TIME = 1 << 15
_PROBES = 1_000_000
_STRANGER = np.uint64(0x5851F42D4C957F2D)
_STEP = np.uint64(0x9E3779B97F4A7C15)

Seen = Literal["not seen", "seen", "too short to tell"]


# --- the filter
def _part_of(keys: Values, num_parts: int) -> np.ndarray:
    """The part each key belongs to, rising with the key: the upper half of the product of its upper 32 bits."""
    return ((keys >> np.uint64(32)) * np.uint64(num_parts) >> np.uint64(32)).astype(np.int64)


def _bit_places(keys: Values, num_hashes: int) -> np.ndarray:
    """[n, num_hashes] the bits of each key within its part: double hashing of two mixes of the key."""
    first = mix(keys + _STEP)
    second = mix(first + _STEP) | np.uint64(1)
    steps = np.arange(num_hashes, dtype=np.uint64)
    mixed = first[:, None] + steps * second[:, None]
    return (mixed >> np.uint64(64 - _PART_BITS.bit_length() + 1)).astype(np.int64)


def _merged(files: Sequence[Values], *, num_parts: int) -> Iterator[tuple[int, int, Values]]:
    """(first part, last part + 1, the different keys of these parts), part by part in order."""
    total = sum(len(keys) for keys in files)
    step = max(1, min(num_parts, num_parts * _KEYS_AT_A_TIME // max(1, total)))
    bounds = [0] * len(files)
    for first in range(0, num_parts, step):
        last = min(num_parts, first + step)
        # The least upper half that belongs to part `last`: ceil(last * 2**32 / num_parts).
        edge = -(-(last << 32) // num_parts) << 32
        pieces = []
        for number, keys in enumerate(files):
            end = len(keys) if last == num_parts else int(np.searchsorted(keys, np.uint64(edge), side="left"))
            pieces.append(np.asarray(keys[bounds[number] : end]))
            bounds[number] = end
        yield first, last, different(np.concatenate(pieces)) if pieces else np.empty(0, np.uint64)


def _filled(keys: Values, first: int, last: int, num_parts: int, num_hashes: int) -> bytes:
    """The bytes of the parts from `first` to before `last` that hold `keys`."""
    flags = np.zeros((last - first) * _PART_BITS, np.uint8)
    for start in range(0, len(keys), _ROWS_AT_A_TIME):
        some = keys[start : start + _ROWS_AT_A_TIME]
        places = _bit_places(some, num_hashes) + ((_part_of(some, num_parts) - first) * _PART_BITS)[:, None]
        flags[places.reshape(-1)] = 1
    return np.packbits(flags, bitorder="little").tobytes()


def _contains(bits: np.ndarray, keys: Values, num_parts: int, num_hashes: int) -> np.ndarray:
    """[n] whether all bits of each key are set."""
    present = np.ones(len(keys), bool)
    for start in range(0, len(keys), _ROWS_AT_A_TIME):
        some = keys[start : start + _ROWS_AT_A_TIME]
        places = _bit_places(some, num_hashes) + (_part_of(some, num_parts) * _PART_BITS)[:, None]
        left = np.arange(len(some))
        for number in range(num_hashes):
            at = places[left, number]
            left = left[(bits[at >> 3] >> (at & 7).astype(np.uint8)) & 1 == 1]
        present[start : start + len(some)] = False
        present[start + left] = True
    return present


def _strangers() -> Values:
    """Hashes of no text, the same in every run, in rising order."""
    return np.sort(mix(np.arange(1, _PROBES + 1, dtype=np.uint64) * _STEP + _STRANGER))


def merge_certificate(
    partials: Iterable[Path],
    *,
    directory: Path,
    corpus: str,
    cleaner: Cleaner | None = None,
    settings: CertificateSettings = DEFAULT_SETTINGS,
) -> Certificate:
    """Make the certificate folder `directory` of the corpus with fingerprint `corpus` from the shards' files.

    The bytes are the same for any number and order of files that hold the same texts. `cleaner` is the one the corpus
    was cleaned with; questions are cleaned with it. Raises ValueError for damaged files and those of other settings.
    """
    files = []
    partials = sorted(map(Path, partials))
    if not partials:
        raise ValueError("a certificate needs the fingerprints of at least one shard; none were given")
    for path in partials:
        arrays, header = array_file.open_arrays(path, file_format=winnowing.FORMAT, version=winnowing.VERSION)
        of_shard = {key: header.get(key) for key in ("guaranteed_characters", "fingerprint_characters")}
        if of_shard.items() - asdict(settings).items():
            raise ValueError(
                f"{path} holds fingerprints of other settings ({of_shard}, wanted {asdict(settings)}); write it again"
            )
        files.append(arrays["fingerprints"])
    distinct = sum(len(keys) for _, _, keys in _merged(files, num_parts=1 << 12))
    num_parts = max(1, math.ceil(distinct * settings.bits_per_fingerprint / _PART_BITS))
    cleaner = cleaner or Cleaner()
    with atomic_directory(Path(directory), manifest_format=FORMAT) as folder:
        with (folder / FILTER).open("wb") as handle:
            for first, last, keys in _merged(files, num_parts=num_parts):
                handle.write(_filled(keys, first, last, num_parts, settings.num_hashes))
        bits = np.memmap(folder / FILTER, np.uint8, mode="r")
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "corpus": corpus,
            "settings": asdict(settings),
            "cleaner": cleaner.identity,
            "fingerprints": distinct,
            "parts": num_parts,
            "measured_false_positive_rate": float(_contains(bits, _strangers(), num_parts, settings.num_hashes).mean()),
            "measured_with": _PROBES,
            "files": {FILTER: file_record(folder / FILTER)},
        }
        write_manifest(folder, manifest)
    return Certificate.open(directory)


# --- questions
@dataclass(frozen=True, kw_only=True)
class Answer:
    """Whether a text was in the corpus.

    `verdict`: "seen" if at least one guaranteed window may be shared, "not seen" if none is (certain), "too short to
    tell" below `guaranteed_characters` letters and digits. `share` of the text's `fingerprints` that are present;
    `longest_run`: so many characters in a row, at least, are covered by present ones; `chance`: the probability that
    as many would be present in a corpus that shares nothing with the text (1 when none is).
    """

    verdict: Seen
    share: float
    longest_run: int
    chance: float
    fingerprints: int

    def __str__(self) -> str:
        if self.verdict == "too short to tell":
            return self.verdict
        return (
            f"{self.verdict}: {self.share:.0%} of {self.fingerprints} fingerprints present, {self.longest_run} "
            f"characters in a row, by chance with probability {self.chance:.2g}"
        )


class Certificate:
    """A certificate on disk, mapped into memory; made by `merge_certificate`."""

    def __init__(self, directory: Path, manifest: dict[str, Any]) -> None:
        self.directory, self.manifest = Path(directory), manifest
        self.settings = CertificateSettings(**manifest["settings"])
        self._bits = np.memmap(self.directory / FILTER, np.uint8, mode="r")
        self._cleaner = Cleaner(manifest["cleaner"]["rules"])

    @classmethod
    def open(cls, directory: Path, *, verify: bool = False) -> Certificate:
        """Open a certificate; refuses foreign, incomplete and altered ones (`verify` reads every byte), and those of
        a cleaner that this version of ncvc does not have."""
        directory = Path(directory)
        manifest = read_manifest(directory, manifest_format=FORMAT, version=VERSION)
        for name, record in manifest["files"].items():
            check_file(directory / name, record, verify=verify, cure="copy the certificate again")
        identity = manifest["cleaner"]
        if Cleaner(identity["rules"]).identity != identity:
            raise ValueError(
                f"{directory} was made with another version of the cleaning rules ({identity}); ask it with the "
                "version of ncvc that made it"
            )
        return cls(directory, manifest)

    def __reduce__(self) -> Any:
        return (Certificate.open, (self.directory,))

    @property
    def corpus(self) -> str:
        """Fingerprint of the corpus that it tells of."""
        return self.manifest["corpus"]

    @property
    def measured_false_positive_rate(self) -> float:
        """Share of a million hashes of no text that the filter took for present, when it was built."""
        return self.manifest["measured_false_positive_rate"]

    def __str__(self) -> str:
        size = (self.directory / FILTER).stat().st_size
        return (
            f"certificate of {self.corpus}: {self.manifest['fingerprints']:,} fingerprints in {size:,} bytes; any "
            f"{self.settings.guaranteed_characters} letters and digits in a row are found; a fingerprint is taken for "
            f"known by chance at {self.settings.false_positive_rate:g} (stated), "
            f"{self.measured_false_positive_rate:g} (measured)"
        )

    def was_seen(self, text: str) -> Answer:
        """Whether `text` (raw: it is cleaned here as the corpus was) shares a stretch with the corpus."""
        settings = self.settings
        block = condense(self._cleaner(text))
        if block.num_characters < settings.guaranteed_characters:
            return Answer(verdict="too short to tell", share=0.0, longest_run=0, chance=1.0, fingerprints=0)
        hashes = mix(window_hashes(block.prefix(), length=settings.fingerprint_characters))
        chosen = smallest(hashes, window=settings.window)
        # Where each window's fingerprint begins: the last of equal ones, so that a run is never told too long.
        places = np.arange(len(chosen))
        for place in range(settings.window):
            candidates = hashes[place : place + len(chosen)]
            places[candidates == chosen] = np.flatnonzero(candidates == chosen) + place
        order = np.flatnonzero(np.diff(places, prepend=-1))
        selected, places = as_keys(chosen[order]), places[order]
        known = _contains(self._bits, selected, self.manifest["parts"], settings.num_hashes)
        fingerprints = len(different(selected))
        present = len(different(selected[known]))
        return Answer(
            verdict="seen" if present else "not seen",
            share=present / fingerprints,
            longest_run=_longest_run(places, known, length=settings.fingerprint_characters),
            chance=_at_least(present, of=fingerprints, rate=settings.false_positive_rate),
            fingerprints=fingerprints,
        )


def _longest_run(places: np.ndarray, known: np.ndarray, *, length: int) -> int:
    """Characters from the first to the last of known fingerprints that follow each other, at most."""
    longest, start = 0, None
    for place, is_known in zip(places.tolist(), known.tolist(), strict=True):
        if not is_known:
            start = None
            continue
        start = place if start is None else start
        longest = max(longest, place + length - start)
    return longest


def _at_least(successes: int, *, of: int, rate: float) -> float:
    """The probability of at least so many successes in `of` independent trials (binomial)."""
    if successes == 0:
        return 1.0
    log_term = (
        math.lgamma(of + 1)
        - math.lgamma(successes + 1)
        - math.lgamma(of - successes + 1)
        + successes * math.log(rate)
        + (of - successes) * math.log1p(-rate)
    )
    term, total = 1.0, 1.0
    for number in range(successes, of):
        term *= (of - number) / (number + 1) * rate / (1 - rate)
        total += term
        if term < 1e-17 * total:
            break
    return min(1.0, math.exp(log_term) * total)
