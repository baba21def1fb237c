"""Training the tokenizer on segmented stores, in bounded memory (R31, R35).

Memory and time follow the number of distinct words, which grows with the text: at most ``sample_megabytes`` of it are
read, documents evenly spread over all sources. Cost: see `ncvc.unigram`; one line says what a training took.
Does not: choose sources, or save anything.
"""

from __future__ import annotations

import math
import re
import resource
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from ncvc.corpus.cleaning import Cleaner
from ncvc.corpus.segmented import SegmentedCorpus
from ncvc.morphology import Analyzer
from ncvc.tokenizer import Tokenizer


def train_on_stores(
    stores: Sequence[SegmentedCorpus],
    *,
    settings: Mapping[str, Any],
    cleaner: Cleaner,
    analyzer: Analyzer,
    progress: bool = True,
) -> Tokenizer:
    """Train a tokenizer on the text of ``stores``; prints how much it saw, what that cost, and what was noted.

    ``settings`` are those of `Tokenizer.train` and ``sample_megabytes``. Raises ``ValueError`` as `Tokenizer.train`,
    and for a sample of nothing.
    """
    chosen = dict(settings)
    sample = Sample(stores, megabytes=chosen.pop("sample_megabytes"))
    before, started = peak_megabytes(), time.monotonic()
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always", UserWarning)
        trained = Tokenizer.train(sample, cleaner=cleaner, analyzer=analyzer, progress=progress, **chosen)
    share = "" if sample.share == 1 else f" (a sample of {float(sample.share):.2%})"
    words, seconds = trained.training["distinct_words"], time.monotonic() - started
    print(
        f"tokenizer: {words:,} distinct words in {sample.bytes / 1e6:,.1f} MB of text{share}, {seconds:.0f} s; "
        f"peak memory of this process {peak_megabytes():,.0f} MB ({before:,.0f} MB before)",
        flush=True,
    )
    for note in noted:  # as a line of the program's output, not with a line of its code
        print(f"note: {note.message}", flush=True)
    return trained


def peak_megabytes() -> float:
    """The most memory this process has held so far, in MB.

    Linux counts in ru_maxrss what the process that started this one held, so its own record is asked first.
    """
    status = Path("/proc/self/status")
    if status.is_file() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))):
        return int(found[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6  # Linux counts in KiB, macOS in bytes


class Sample:
    """Segmented documents for tokenizer training, readable more than once.

    All of them, or as many, evenly spread, that about ``megabytes`` of cleaned UTF-8 come out. ``bytes`` is what the
    last reading gave.
    """

    def __init__(self, stores: Sequence[SegmentedCorpus], *, megabytes: float) -> None:
        if isinstance(megabytes, bool) or not isinstance(megabytes, int | float) or not 0 < megabytes < math.inf:
            raise ValueError(
                f"tokenizer.sample_megabytes={megabytes!r}: how much text is read is a number of MB above 0; set 2000"
            )
        self.stores = stores
        self.share = min(Fraction(1), Fraction(megabytes) * 1_000_000 / max(1, sum(store.bytes for store in stores)))
        self.bytes = 0

    def __iter__(self) -> Iterator[str]:
        self.bytes = number = 0
        for store in self.stores:
            for text in store.texts():
                number += 1
                if math.floor(number * self.share) > math.floor((number - 1) * self.share):
                    self.bytes += len(text.encode()) - text.count(" ")
                    yield text
