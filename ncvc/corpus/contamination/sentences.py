"""Sentences of a segmented text, and the text without some of them.

A sentence ends after 。！？ (half-width too) and the closing brackets that follow, and at every newline; always between
words. What is rebuilt is a segmented text again: one space between words, no empty line.
Costs one scan. Does not: know abbreviations, or keep lines of which nothing is left.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

Span = tuple[int, int]
"""Where something starts in a text, and where it ends (before)."""

_END = re.compile(r"[。！？!?](?=[ \n]|\Z)(?: [」』）)〉》】\]\"]+(?=[ \n]|\Z))*|\n")


def sentences_of(segmented: str) -> list[Span]:
    """The sentences, which together are the whole text."""
    ends = [match.end() for match in _END.finditer(segmented)]
    if not ends or ends[-1] < len(segmented):
        ends.append(len(segmented))
    return list(zip([0, *ends[:-1]], ends, strict=True))


def without(sentences: Sequence[Span], spans: Sequence[Span]) -> list[Span]:
    """The sentences that share no character with any of the spans."""
    starts = np.array([start for start, _ in sentences])
    change = np.zeros(len(sentences) + 1, np.int64)
    for start, end in spans:
        change[max(0, int(np.searchsorted(starts, start, side="right")) - 1)] += 1
        change[int(np.searchsorted(starts, end - 1, side="right"))] -= 1
    held = np.cumsum(change[:-1]) > 0
    return [sentence for sentence, gone in zip(sentences, held.tolist(), strict=True) if not gone]


def rebuilt(segmented: str, sentences: Sequence[Span]) -> tuple[str, list[tuple[int, int]]]:
    """The sentences as a segmented text, and for each (its start in that text, its start in `segmented`)."""
    parts: list[str] = []
    places: list[tuple[int, int]] = []
    size = previous = 0
    for start, end in sentences:
        sentence = segmented[start:end]
        words = sentence.strip(" \n")
        if not words:
            continue
        begin = start + len(sentence) - len(sentence.lstrip(" \n"))
        if parts:
            parts.append("\n" if segmented.find("\n", previous, begin) >= 0 else " ")
            size += 1
        places.append((size, begin))
        parts.append(words)
        size += len(words)
        previous = begin + len(words)
    return "".join(parts), places


def moved(characters: Sequence[int], places: Sequence[tuple[int, int]]) -> list[int]:
    """Places of characters of a rebuilt text in the text it was rebuilt from."""
    starts = [start for start, _ in places]
    numbers = (np.searchsorted(starts, characters, side="right") - 1).tolist()
    return [places[number][1] + at - starts[number] for number, at in zip(numbers, characters, strict=True)]
