"""Decontamination: documents that share a window with a benchmark are dropped or cut, and every share is listed.

What it does: `WindowIndex` holds the windows of 30 characters and of 13 words of all items (see
`contamination_windows`), over the condensed form of `condensed`, so that neither punctuation, widths nor line breaks
hide a copy. Documents come segmented, as in the segmented store. A hash only points at a place: every hit is compared
character by character, so that no document goes for a collision and no shared window is missed.
Action "drop" drops a document with a match; "cut" takes the sentences out that hold one, until none is left.

What it costs: about 40 MB of text a second and core, constant memory for documents of any length; the index of IgakuQA
and JMED-LLM takes 20 MB in one file, which the workers map. Many short documents: `judge_many`.
What it does not do: find translations, paraphrases, or a question whose every 30 characters were changed.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from ncvc.corpus.cleaning import Cleaner
from ncvc.corpus.contamination import array_file
from ncvc.corpus.contamination.benchmark_texts import Benchmark, Item, read_benchmark, report_problem
from ncvc.corpus.contamination.condensed import (
    Block,
    Places,
    condensed_blocks,
    grouped_texts,
    joined_texts,
    window_hashes,
    word_window_hashes,
)
from ncvc.corpus.contamination.lookup import Lookup, Table, same_runs, stretches
from ncvc.corpus.contamination.sentences import moved, rebuilt, sentences_of, without
from ncvc.corpus.contamination.windows import CollectedWindows, collect_windows
from ncvc.corpus.reading.problems import ReadProblem
from ncvc.morphology import Analyzer
from ncvc.storage import hash_json
from ncvc.tokenizer import segment_text

FORMAT, VERSION = "ncvc-windows", 1
Action = Literal["drop", "cut"]
Kind = Literal["characters", "words", "whole"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_MOST_ROUNDS = 100

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ContaminationSettings:
    """Which benchmarks are looked for, by what windows, and what becomes of a document that holds one.

    `sources`: a list of paths, or {name: path or {path, fields}}; fields name what holds the text (numbers from 1 in
    a .csv without a header), null for the usual names. None looks for nothing (`enabled` is False).
    """

    sources: dict[str, Any] | tuple[str, ...] | None = None
    word_window: int = 13
    character_window: int = 30
    action: Action = "drop"
    kept_characters: int = 100
    whole_item_characters: int = 12
    template_items: int = 10

    def __post_init__(self) -> None:
        if self.action not in get_args(Action):
            raise ValueError(
                f"contamination.action={self.action!r} is not known; set drop (the document goes) or cut (the "
                "sentences that hold a match go)"
            )
        least = {"word_window": 3, "character_window": 8, "kept_characters": 1}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value < smallest:
                raise ValueError(f"contamination.{name}={value}: must be {smallest} or more")
        if self.whole_item_characters and not 4 <= self.whole_item_characters <= self.character_window:
            raise ValueError(
                f"contamination.whole_item_characters={self.whole_item_characters}: shorter questions would be found "
                f"everywhere and longer ones have windows; set 4 to {self.character_window} "
                "(contamination.character_window), or 0 to look for no question whole"
            )
        if self.template_items == 1 or self.template_items < 0:
            raise ValueError(
                f"contamination.template_items={self.template_items}: every window would be a template; set 2 or "
                "more, or 0 to keep all windows"
            )
        self.benchmarks()

    @property
    def enabled(self) -> bool:
        """Whether there is anything to look for."""
        return bool(self.benchmarks())

    def benchmarks(self) -> list[Benchmark]:
        """The sources as benchmarks; raises ValueError for what is none."""
        sources = self.sources or {}
        if isinstance(sources, str):
            sources = (sources,)
        if not isinstance(sources, Mapping):
            names = [Path(path).name.partition(".")[0] for path in sources]
            if len(set(names)) < len(names):
                raise ValueError(
                    f"contamination.sources={list(sources)}: two have the same name; set {{name: path, ...}} instead"
                )
            sources = dict(zip(names, sources, strict=True))
        return [_benchmark(str(name), source) for name, source in sources.items() if source is not None]

    def read_items(self, *, on_problem: Callable[[ReadProblem], None] = report_problem) -> list[Item]:
        """The items of all sources; raises the errors of `read_benchmark`."""
        return [item for benchmark in self.benchmarks() for item in read_benchmark(benchmark, on_problem=on_problem)]

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides what goes: the settings and a hash of every item. Reads the sources."""
        return self.identity_of(self.read_items(on_problem=lambda problem: None))

    def identity_of(self, items: Iterable[Item]) -> dict[str, Any]:
        """`identity` for items that were read already."""
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del settings["sources"]  # where they lie decides nothing
        return settings | {"items": hash_json([dataclasses.astuple(item) for item in items])}


def _benchmark(name: str, source: Any) -> Benchmark:
    setting = f"contamination.sources.{name}"
    if isinstance(source, str | Path):
        return Benchmark(name, Path(source))
    if not isinstance(source, Mapping) or not {"path"} <= set(source) <= {"path", "fields"}:
        raise ValueError(f"{setting}={source!r}: must be a path, or {{path: ..., fields: [...]}}")
    fields = source.get("fields")
    if isinstance(fields, str | int):
        fields = [fields]
    if not isinstance(source["path"], str | Path) or not all(isinstance(field, str | int) for field in fields or []):
        raise ValueError(f"{setting}={dict(source)!r}: path is one path, fields are names or numbers of columns")
    return Benchmark(name, Path(source["path"]), tuple(fields) if fields else None)


@dataclass(frozen=True, slots=True, order=True)
class Match:
    """A stretch that a document shares with an item: characters `start` to before `end` of the segmented text."""

    start: int
    end: int
    benchmark: str
    item: str
    window: Kind

    def __str__(self) -> str:
        return f"{self.benchmark} {self.item}: {self.window}, characters {self.start} to {self.end}"


class Verdict(NamedTuple):
    """What is kept of a document (None: nothing) and what it shared, places counted in the text as it came."""

    kept: str | None
    matches: tuple[Match, ...]


class _Hits(NamedTuple):
    """Stretches found: [h] document, item, kind, first character and last + 1 in the texts as one."""

    documents: Places
    items: Places
    kinds: Places
    starts: Places
    ends: Places


class WindowIndex:
    """The windows of the benchmarks, to hold documents against. Make one with `build` or `open`; any number of
    processes may open one file."""

    def __init__(self, arrays: Mapping[str, np.ndarray], header: Mapping[str, Any], *, path: Path | None) -> None:
        self.settings = ContaminationSettings(**header["settings"])
        self.identity: dict[str, Any] = dict(header["identity"])
        self.items: list[tuple[str, str]] = [(benchmark, item) for benchmark, item in header["items"]]
        self.unfindable: list[tuple[str, str, str]] = [
            (*self.items[item], reason) for item, reason in header["unfindable"]
        ]
        self.template_windows: int = header["template_windows"]
        self._header, self._arrays, self._path = header, arrays, path
        self._values, self._texts, self._owners, self._words = (
            arrays[name] for name in ("values", "texts", "owners", "words")
        )
        wholes = arrays["texts"][len(self.items) :].astype(np.int64)
        self._longest = max([self.settings.character_window, *np.diff(wholes).tolist()])
        self._lookups = {
            kind: Lookup(Table(arrays[f"{kind}_hashes"], arrays[f"{kind}_places"]), arrays[f"{kind}_bits"])
            for kind in KINDS
        }

    @classmethod
    def build(
        cls,
        settings: ContaminationSettings,
        *,
        analyzer: Analyzer,
        cleaner: Cleaner | None = None,
        items: Sequence[Item] | None = None,
    ) -> WindowIndex:
        """Index `items` (None: those of `settings.sources`), cleaned and segmented as the documents are.

        Raises ValueError when there is nothing to look for, and the errors of `read_benchmark`.
        """
        cleaner = cleaner or Cleaner()
        items = settings.read_items() if items is None else items
        if not items:
            raise ValueError(
                "contamination.sources names no benchmark: set {name: path}, or contamination=none to look for none"
            )
        collected = collect_windows(
            items,
            segment=lambda cleaned: segment_text(cleaned, analyzer=analyzer),
            clean=cleaner,
            word_window=settings.word_window,
            character_window=settings.character_window,
            whole_item_characters=settings.whole_item_characters,
            template_items=settings.template_items,
        )
        identity = settings.identity_of(items) | {"cleaner": cleaner.identity, "analyzer": dict(analyzer.identity)}
        plain = {key: value for key, value in dataclasses.asdict(settings).items() if key != "sources"}
        header = {
            "settings": plain,
            "identity": identity,
            "items": [[item.benchmark, item.id] for item in items],
            "unfindable": [list(entry) for entry in collected.unfindable],
            "template_windows": collected.template_windows,
        }
        return cls(_arrays_of(collected), header, path=None)

    @property
    def fingerprint(self) -> str:
        """sha256 of the identity."""
        return hash_json(self.identity)

    def save(self, path: Path) -> None:
        """Write one file, complete or not at all; the same items and settings give the same bytes."""
        array_file.write(path, self._arrays, file_format=FORMAT, version=VERSION, header=self._header)

    @classmethod
    def open(cls, path: Path) -> WindowIndex:
        """Map a saved index; refuses foreign, truncated and altered files by name (reads it once: 1 GB/s)."""
        arrays, header = array_file.open_arrays(path, file_format=FORMAT, version=VERSION)
        return cls(arrays, header, path=Path(path))

    def __reduce__(self) -> Any:
        if self._path is None:
            raise TypeError("this WindowIndex is in memory alone; save it and send the path, or open it and send that")
        return (WindowIndex.open, (self._path,))

    # --- looking
    def check(self, segmented: str) -> list[Match]:
        """Every stretch that `segmented` shares with an item, by place; overlapping windows are one stretch."""
        return self.check_many([segmented])[0]

    def check_many(self, texts: Sequence[str]) -> list[list[Match]]:
        """`check` of each text; short texts go together, which is many times faster than one by one."""
        found: list[list[Match]] = []
        for group in grouped_texts(texts):
            found += self._check_group(group)
        return found

    def _check_group(self, texts: Sequence[str]) -> list[list[Match]]:
        text, starts = joined_texts(texts)
        blocks = condensed_blocks(text, characters=self._longest, words=self.settings.word_window)
        parts = [hits for block in blocks for hits in self._hits(block, starts)]
        found: list[list[Match]] = [[] for _ in texts]
        if not parts:
            return found
        hits = _Hits(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
        keys = (hits.documents * len(self.items) + hits.items) * len(KINDS) + hits.kinds
        for key, start, end in zip(*(array.tolist() for array in stretches(keys, hits.starts, hits.ends)), strict=True):
            document, item, kind = (
                key // len(KINDS) // len(self.items),
                key // len(KINDS) % len(self.items),
                key % len(KINDS),
            )
            before = int(starts[document])
            benchmark, name = self.items[item]
            found[document].append(Match(start - before, end - before, benchmark, name, KINDS[kind]))
        return [sorted(matches) for matches in found]

    def _hits(self, block: Block, starts: Places) -> Iterator[_Hits]:
        """Confirmed stretches of one block, kind by kind; `starts` of the documents."""
        prefix, values = block.prefix(), self._values
        width = self.settings.character_window
        first, at = self._lookups["characters"].find(window_hashes(prefix, length=width))
        if len(first):
            same = same_runs(block.values, first, values, at, lengths=np.full(len(first), width))
            yield from self._found(block, "characters", first[same], first[same] + width, at[same], starts)
        width = self.settings.word_window
        word, at = self._lookups["words"].find(word_window_hashes(block.word_hashes(prefix), length=width))
        if len(word):
            within = np.arange(width + 1)
            bounds, stored = block.words[word[:, None] + within], self._words[at[:, None] + within].astype(np.int64)
            same = (bounds - bounds[:, :1] == stored - stored[:, :1]).all(axis=1)
            bounds, stored = bounds[same], stored[same]
            first, last, at = bounds[:, 0], bounds[:, -1], stored[:, 0]
            same = same_runs(block.values, first, values, at, lengths=last - first)
            yield from self._found(block, "words", first[same], last[same], at[same], starts)
        width = self.settings.whole_item_characters
        if width:
            first, text = self._lookups["whole"].find(window_hashes(prefix, length=width))
            if len(first):
                at = self._texts[text].astype(np.int64)
                last = first + self._texts[text + 1].astype(np.int64) - at
                same = same_runs(block.values, first, values, at, lengths=last - first)
                yield from self._found(block, "whole", first[same], last[same], at[same], starts)

    def _found(
        self, block: Block, kind: Kind, first: Places, last: Places, stored: Places, starts: Places
    ) -> Iterator[_Hits]:
        """Stretches of the runs from `first` to before `last` in the block, at `stored` among the items' characters;
        runs from one document into the next are none."""
        owners = self._owners[np.searchsorted(self._texts, stored, side="right") - 1].astype(np.int64)
        begin, end = block.positions[first], block.positions[last - 1] + 1
        document = np.searchsorted(starts, begin, side="right") - 1
        inside = document == np.searchsorted(starts, end - 1, side="right") - 1
        keys = (document * len(self.items) + owners)[inside]
        if len(keys):
            keys, begin, end = stretches(keys, begin[inside], end[inside])
            kinds = np.full(len(keys), KINDS.index(kind))
            yield _Hits(keys // len(self.items), keys % len(self.items), kinds, begin, end)

    # --- judging
    def judge(self, segmented: str) -> Verdict:
        """What `settings.action` leaves of a document, and why."""
        return self.judge_many([segmented])[0]

    def judge_many(self, texts: Sequence[str]) -> list[Verdict]:
        """`judge` of each text; see `check_many`."""
        verdicts = []
        for text, matches in zip(texts, self.check_many(texts), strict=True):
            if not matches:
                verdicts.append(Verdict(text, ()))
            elif self.settings.action == "drop":
                verdicts.append(Verdict(None, tuple(matches)))
            else:
                verdicts.append(self._cut(text, matches))
        return verdicts

    def _cut(self, segmented: str, matches: list[Match]) -> Verdict:
        """Take out the sentences that hold a match, look again at what then stands side by side, until none is left."""
        sentences = sentences_of(segmented)
        listed: list[Match] = []
        for _ in range(_MOST_ROUNDS):
            listed += matches
            sentences = without(sentences, [(match.start, match.end) for match in matches])
            text, places = rebuilt(segmented, sentences)
            if len(text) - text.count(" ") - text.count("\n") < self.settings.kept_characters:
                break
            matches = [_moved(match, places) for match in self.check(text)]
            if not matches:
                return Verdict(text, tuple(listed))
        return Verdict(None, tuple(listed))


def _arrays_of(collected: CollectedWindows) -> dict[str, np.ndarray]:
    arrays = {
        "values": collected.values,
        "texts": collected.texts,
        "owners": collected.owners.astype(np.uint32),
        "words": collected.words.astype(np.uint32),
    }
    for kind, table in zip(KINDS, (collected.characters, collected.word_windows, collected.wholes), strict=True):
        arrays[f"{kind}_hashes"] = table.hashes
        arrays[f"{kind}_places"] = table.places.astype(np.uint32)
        arrays[f"{kind}_bits"] = Lookup.bits_of(table.hashes)
    return arrays


def _moved(match: Match, places: Sequence[tuple[int, int]]) -> Match:
    """A match in a rebuilt text, at its place in the text as it came."""
    start, last = moved([match.start, match.end - 1], places)
    return dataclasses.replace(match, start=start, end=last + 1)
