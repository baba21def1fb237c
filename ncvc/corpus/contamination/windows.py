"""Which windows of benchmark items are looked for, and which are left out because they are nobody's question.

Three kinds: every window of so many condensed characters, every window of so many words, and, where a question (or
the document it is about) is shorter than a window of characters, the whole of it. An item of which nothing is left
to look for is listed with the reason.

Template windows. "以下の症例報告において、…" opens a hundred items, and clinical questions share stock phrases; a
document that holds one of them has not seen a question. A window is a template when at least `template_items` items of
its benchmark hold it with different remaining text: the run of text they share around the window is at most
`LONGEST_TEMPLATE` characters, and the item has own text at least half as long, of which no 12 characters
are as widespread. So a
case report that many questions ask about, or a post that is judged for several diseases, is no template: its items
have little text of their own. In a benchmark of `LARGE_BENCHMARK` items or more, what more than half of them hold is a
template of any length. A window of which less than a third lies outside all templates is left out with them: the end
of an instruction and the first letters of a question. A question that other items hold whole is judged alike.

Costs: analysis of the items' text, then sorting; 4 s for the 3,551 items of IgakuQA, JMED-LLM and JMMLU. Does not:
compare benchmarks with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ncvc.corpus.contamination.benchmark_texts import Item
from ncvc.corpus.contamination.condensed import Block, Places, Values, condense, window_hashes, word_window_hashes
from ncvc.corpus.contamination.lookup import Table

LONGEST_TEMPLATE = 100
LARGE_BENCHMARK = 20
MOST_PLACES = 16
"""Of a window that many items hold, so many places are kept: enough to name them."""

_OWN_WINDOW = 12


@dataclass(frozen=True, slots=True)
class CollectedWindows:
    """All that is looked for, in arrays.

    `values` [characters of all texts]; the first len(items) texts are the items, then the wholes; `texts` [texts + 1]
    their bounds; `owners` [texts] the item each belongs to; `words` [words of the items + 1] their bounds.
    Places: of `characters` an index of `values`, of `words` one of `words`, of `wholes` one of the texts.
    """

    values: Values
    texts: Places
    owners: Places
    words: Places
    characters: Table
    word_windows: Table
    wholes: Table
    unfindable: list[tuple[int, str]]
    template_windows: int


@dataclass(frozen=True, slots=True)
class _Windows:
    """Windows of one kind over all items: [w] hash, item, place, first and last character + 1 within the item."""

    hashes: Values
    items: Places
    places: Places
    starts: Places
    ends: Places

    def of(self, chosen: np.ndarray) -> _Windows:
        return _Windows(*(array[chosen] for array in (self.hashes, self.items, self.places, self.starts, self.ends)))


def collect_windows(
    items: Sequence[Item],
    *,
    segment: Callable[[str], str],
    clean: Callable[[str], str],
    word_window: int,
    character_window: int,
    whole_item_characters: int,
    template_items: int,
) -> CollectedWindows:
    """Windows of `items`; `segment` takes cleaned text. 0 for the last two: no wholes, no templates."""
    blocks = [condense(segment(clean(item.text))) for item in items]
    lengths = np.array([block.num_characters for block in blocks], np.int64)
    benchmarks = np.unique([item.benchmark for item in items], return_inverse=True)[1]
    characters = _character_windows(blocks, length=character_window)
    words = _word_windows(blocks, length=word_window)
    own_text = _OwnText(blocks, benchmarks)
    dropped = 0
    kept = []
    for windows in (characters, words):
        templates = _templates(windows, own_text, benchmarks=benchmarks, template_items=template_items)
        templates |= _mostly_template(windows, templates, lengths)
        dropped += int(templates.sum())
        kept.append(windows.of(~templates))
    found = np.zeros(len(items), bool)
    for windows in kept:
        found[windows.items] = True
    parts = _whole_parts(items, clean, blocks, found, shortest=whole_item_characters, window=character_window)
    if template_items:
        parts = _without_templates(
            parts, blocks, own_text, benchmarks, anchor=whole_item_characters, template_items=template_items
        )
    for owner, _ in parts:
        found[owner] = True
    unfindable = [
        (int(item), _why_unfindable(int(lengths[item]), whole_item_characters, character_window))
        for item in np.flatnonzero(~found)
    ]
    texts = [block.values for block in blocks] + [part.values for _, part in parts]
    bounds = _bounds([len(text) for text in texts])
    whole_hashes = [window_hashes(part.prefix(), length=whole_item_characters)[0] for _, part in parts]
    return CollectedWindows(
        values=np.concatenate(texts) if texts else np.empty(0, np.uint64),
        texts=bounds,
        owners=np.array([*range(len(items)), *(owner for owner, _ in parts)], np.int64),
        words=_all_words(blocks, bounds),
        characters=_table(kept[0].hashes, kept[0].places),
        word_windows=_table(kept[1].hashes, kept[1].places),
        wholes=_table(np.array(whole_hashes, np.uint64), np.arange(len(items), len(texts))),
        unfindable=unfindable,
        template_windows=dropped,
    )


def _why_unfindable(length: int, shortest: int, window: int) -> str:
    if length < (shortest or window):
        return f"only {length} letters and digits, fewer than {shortest or window}"
    return "says only what many items of the benchmark say"


def _bounds(lengths: Sequence[int]) -> Places:
    return np.concatenate(([0], np.cumsum(np.array(lengths, np.int64)))).astype(np.int64)


def _all_words(blocks: Sequence[Block], bounds: Places) -> Places:
    starts = [block.words[:-1] + bounds[number] for number, block in enumerate(blocks)]
    return np.concatenate([*starts, bounds[len(blocks) : len(blocks) + 1]])


def _character_windows(blocks: Sequence[Block], *, length: int) -> _Windows:
    hashes = [window_hashes(block.prefix(), length=length) for block in blocks]
    starts = [np.arange(len(found)) for found in hashes]
    before = _bounds([block.num_characters for block in blocks])
    return _gathered(hashes, starts, [start + length for start in starts], before, starts)


def _word_windows(blocks: Sequence[Block], *, length: int) -> _Windows:
    hashes, starts, ends, indices = [], [], [], []
    for block in blocks:
        found = word_window_hashes(block.word_hashes(block.prefix()), length=length)
        hashes.append(found)
        indices.append(np.arange(len(found)))
        starts.append(block.words[: len(found)])
        ends.append(block.words[length : length + len(found)])
    return _gathered(hashes, starts, ends, _bounds([block.num_words for block in blocks]), indices)


def _gathered(
    hashes: list[Values], starts: list[Places], ends: list[Places], before: Places, indices: list[Places]
) -> _Windows:
    if not hashes:
        none = np.empty(0, np.int64)
        return _Windows(np.empty(0, np.uint64), none, none, none, none)
    return _Windows(
        np.concatenate(hashes),
        np.repeat(np.arange(len(hashes)), [len(found) for found in hashes]),
        np.concatenate([index + before[number] for number, index in enumerate(indices)]),
        np.concatenate(starts),
        np.concatenate(ends),
    )


def _table(hashes: Values, places: Places) -> Table:
    """Sorted by hash, then place; of equal hashes the first `MOST_PLACES`."""
    order = np.lexsort((places, hashes))
    hashes, places = hashes[order], places[order]
    first = np.searchsorted(hashes, hashes, side="left")
    kept = np.arange(len(hashes)) - first < MOST_PLACES
    return Table(hashes[kept], places[kept])


# --- templates
def _frequencies(windows: _Windows, benchmarks: Places) -> Places:
    """[w] how many items of the same benchmark hold each window."""
    return _holders(windows, benchmarks, chosen=np.ones(len(windows.hashes), bool))


def _holders(windows: _Windows, benchmarks: Places, *, chosen: np.ndarray) -> Places:
    """[w] how many items of the same benchmark hold each window among the chosen ones."""
    if not len(windows.hashes):
        return np.empty(0, np.int64)
    number = np.unique(windows.hashes, return_inverse=True)[1] * (int(benchmarks.max()) + 1)
    number += benchmarks[windows.items]
    pairs = np.unique(number[chosen] * len(benchmarks) + windows.items[chosen])
    return np.bincount(pairs // len(benchmarks), minlength=int(number.max()) + 1)[number]


def _spans_by_item(windows: _Windows, num_items: int) -> Places:
    return np.searchsorted(windows.items, np.arange(num_items + 1))


class _OwnText:
    """How much of an item stands in few others, told by its windows of `_OWN_WINDOW` characters."""

    def __init__(self, blocks: Sequence[Block], benchmarks: Places) -> None:
        self.lengths = [block.num_characters for block in blocks]
        windows = _character_windows(blocks, length=_OWN_WINDOW)
        self._starts, self._spans = windows.starts, _spans_by_item(windows, len(blocks))
        self._frequency = _frequencies(windows, benchmarks)

    def characters(self, item: int, *, level: int, known: tuple[int, int] = (0, 0)) -> int:
        """Characters of `item` outside `known` and under no window that `level` items or more hold."""
        part = slice(self._spans[item], self._spans[item + 1])
        starts = self._starts[part][self._frequency[part] >= level]
        ends = np.append(starts + _OWN_WINDOW, known[1])
        return int((~_cover(np.append(starts, known[0]), ends, self.lengths[item])).sum())


def _cover(starts: Places, ends: Places, length: int) -> np.ndarray:
    """[length] whether each character lies under at least one of the spans."""
    change = np.bincount(starts, minlength=length + 1) - np.bincount(ends, minlength=length + 1)
    return np.cumsum(change[:length]) > 0


def _templates(windows: _Windows, own_text: _OwnText, *, benchmarks: Places, template_items: int) -> np.ndarray:
    """[w] whether the window is a template of its benchmark."""
    votes = np.zeros(len(windows.hashes), bool)
    if template_items < 1 or not len(windows.hashes):
        return votes
    frequency = _frequencies(windows, benchmarks)
    sizes = np.bincount(benchmarks)
    spans = _spans_by_item(windows, len(benchmarks))
    for item in np.unique(windows.items[frequency >= template_items]).tolist():
        part = slice(spans[item], spans[item + 1])
        held, starts, ends = frequency[part], windows.starts[part], windows.ends[part]
        size = int(sizes[benchmarks[item]])
        for level in np.unique(held[held >= template_items]).tolist():
            own = own_text.characters(item, level=level)
            always = size >= LARGE_BENCHMARK and 2 * level > size and own > 0
            as_widespread = np.flatnonzero(held >= level)
            exactly = held[as_widespread] == level
            shared = _shared_runs(starts, ends, as_widespread)
            speaks = always | ((shared <= LONGEST_TEMPLATE) & (2 * own >= shared))
            votes[part][as_widespread[exactly]] = speaks[exactly]
    return _holders(windows, benchmarks, chosen=votes) >= template_items


def _shared_runs(starts: Places, ends: Places, chosen: Places) -> Places:
    """[chosen] the characters of the run of chosen windows, one after the other, that each belongs to."""
    run = np.cumsum(np.diff(chosen, prepend=-2) > 1) - 1
    first = np.flatnonzero(np.diff(run, prepend=-1))
    last = np.append(first[1:], len(run)) - 1
    return (ends[chosen[last]] - starts[chosen[first]])[run]


def _mostly_template(windows: _Windows, templates: np.ndarray, lengths: Places) -> np.ndarray:
    """[w] whether fewer than a third of a window's characters lie outside all templates of its item."""
    bounds = _bounds(lengths.tolist())
    starts, ends = windows.starts + bounds[windows.items], windows.ends + bounds[windows.items]
    covered = _cover(starts[templates], ends[templates], int(bounds[-1]))
    before = np.concatenate(([0], np.cumsum(~covered)))
    return 3 * (before[ends] - before[starts]) < ends - starts


# --- wholes
def _whole_parts(
    items: Sequence[Item],
    clean: Callable[[str], str],
    blocks: Sequence[Block],
    found: np.ndarray,
    *,
    shortest: int,
    window: int,
) -> list[tuple[int, Block]]:
    """(item, condensed part): parts shorter than a window, and items of which no window is left."""
    if shortest < 1:
        return []
    parts = []
    for number, item in enumerate(items):
        candidates = [condense(clean(whole)) for whole in item.wholes]
        chosen = [part for part in (*candidates, blocks[number]) if shortest <= part.num_characters < window]
        if not found[number] and not chosen and blocks[number].num_characters >= shortest:
            chosen = [blocks[number]]
        different = {part.values.tobytes(): part for part in chosen}
        parts += [(number, part) for part in different.values()]
    return parts


def _without_templates(
    parts: list[tuple[int, Block]],
    blocks: Sequence[Block],
    own_text: _OwnText,
    benchmarks: Places,
    *,
    anchor: int,
    template_items: int,
) -> list[tuple[int, Block]]:
    """Leave out the parts that at least `template_items` items of the benchmark hold beside text of their own."""
    names = [(int(benchmarks[owner]), part.values.tobytes()) for owner, part in parts]
    by_anchor: dict[tuple[int, int], dict[bytes, int]] = {}
    for (benchmark, key), (_, part) in zip(names, parts, strict=True):
        first = int(window_hashes(part.prefix(), length=anchor)[0])
        by_anchor.setdefault((benchmark, first), {})[key] = part.num_characters
    anchors = np.array(sorted({first for _, first in by_anchor}), np.uint64)
    holders: dict[tuple[int, bytes], dict[int, tuple[int, int]]] = {}
    for item, block in enumerate(blocks):
        benchmark = int(benchmarks[item])
        hashes = window_hashes(block.prefix(), length=anchor)
        for start in np.flatnonzero(np.isin(hashes, anchors)).tolist():
            for key, length in by_anchor.get((benchmark, int(hashes[start])), {}).items():
                if block.values[start : start + length].tobytes() == key:
                    holders.setdefault((benchmark, key), {}).setdefault(item, (start, start + length))

    def is_template(name: tuple[int, bytes], length: int) -> bool:
        held = holders.get(name, {})
        if len(held) < template_items:
            return False
        own = [own_text.characters(item, level=len(held), known=span) for item, span in held.items()]
        return sum(2 * characters >= length for characters in own) >= template_items

    judged = {name: is_template(name, part.num_characters) for name, (_, part) in zip(names, parts, strict=True)}
    return [part for name, part in zip(names, parts, strict=True) if not judged[name]]
