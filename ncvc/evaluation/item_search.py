"""Which benchmark items stand in some text: their passages, sentences and questions, piece by piece.

An item is found where 40 letters and digits in a row of its passage (or of either sentence of a pair, or of its
question) stand in the text, counted from the beginning in steps of 40; a shorter text has to stand there whole. Under
20 letters and digits nothing is looked for: such an item is ``too_short``. A piece that ten items of a task share is
the benchmark's wording and counts for none. Texts are compared cleaned and condensed (`ncvc.corpus.contamination`), so
width, punctuation and line breaks do not matter; hits are compared character by character.

Costs 10 s per 100 million characters. Does not: find paraphrases, or a question whose wording was changed.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from ncvc.corpus.contamination.condensed import Block, condense, window_hashes
from ncvc.evaluation.item import Item, Task
from ncvc.evaluation.jmed_files import passage_of

PIECE, SHORTEST, TEMPLATE_ITEMS = 40, 20, 10
_AT_ONCE = 1 << 16  # characters
_APART = "\nꙮ\n"  # a letter that no Japanese text has: no piece reaches over it
_SENTENCES = re.compile(r"\nS1: (.*?)\nS2: (.*)\Z", re.DOTALL)

Key = tuple[str, str]
"""Task and id of an item."""


def texts_of(item: Item) -> tuple[str, ...]:
    """What of an item would stand in training data: its passage, the sentences of a pair, or its question; raw."""
    if item.passage:
        return (item.passage,)
    question = item.metadata.get("question")
    asked = question if isinstance(question, str) else item.messages[-1].content
    if (passage := passage_of(asked)) is not None and passage.strip():
        return (passage,)
    if pair := _SENTENCES.search(asked):
        return (pair[1], pair[2])
    return (asked,)


class ItemSearch:
    """Looks for the items of ``tasks``; ``clean`` is the cleaning that the texts went through. ``found`` grows."""

    def __init__(self, tasks: Sequence[Task], *, clean: Callable[[str], str]) -> None:
        self.found: set[Key] = set()
        self.too_short: set[Key] = set()
        self._pieces: dict[int, list[tuple[np.ndarray, Key]]] = defaultdict(list)  # by the hash of the beginning
        for task in tasks:
            pieces = {item.id: _pieces(item, clean) for item in task.items}
            shared = Counter(key for own in pieces.values() for key in {piece.tobytes() for piece in own})
            for name, own in pieces.items():
                kept = [piece for piece in own if shared[piece.tobytes()] < TEMPLATE_ITEMS]
                if not kept:
                    self.too_short.add((task.name, name))
                for piece in kept:
                    self._pieces[_beginning(piece)].append((piece, (task.name, name)))
        self._beginnings = np.array(sorted(self._pieces), dtype=np.uint64)

    def look_through(self, texts: Iterable[str]) -> None:
        """Note every item that stands in one of ``texts``."""
        waiting: list[str] = []
        size = 0
        for text in texts:
            waiting.append(text)
            size += len(text)
            if size >= _AT_ONCE:
                self._look(_APART.join(waiting))
                waiting, size = [], 0
        if waiting:
            self._look(_APART.join(waiting))

    def _look(self, text: str) -> None:
        if not len(self._beginnings):
            return
        values = condense(text)
        hashes = window_hashes(values.prefix(), length=SHORTEST)
        places = np.searchsorted(self._beginnings, hashes)
        places[places == len(self._beginnings)] = 0
        for start in np.flatnonzero(self._beginnings[places] == hashes).tolist():
            for piece, key in self._pieces[int(hashes[start])]:
                if key not in self.found and np.array_equal(values.values[start : start + len(piece)], piece):
                    self.found.add(key)


def _pieces(item: Item, clean: Callable[[str], str]) -> list[np.ndarray]:
    """The condensed values of each piece of an item's texts."""
    found = []
    for text in texts_of(item):
        values = condense(clean(text)).values
        if len(values) >= PIECE:
            found += [values[start : start + PIECE] for start in range(0, len(values) - PIECE + 1, PIECE)]
        elif len(values) >= SHORTEST:
            found.append(values)
    return found


def _beginning(values: np.ndarray) -> int:
    """The hash of the first ``SHORTEST`` values, as `window_hashes` gives it."""
    first = Block(values[:SHORTEST], np.arange(SHORTEST), np.zeros(1, np.int64))
    return int(window_hashes(first.prefix(), length=SHORTEST)[0])
