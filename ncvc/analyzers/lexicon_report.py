"""What a lexicon does to an analyser: the share of its names that stay one word in a sentence, before and after.

What it costs: with 93,000 names 6 to 15 s an analyser, most of it building the user dictionary. What it does not do:
judge whether the names are good words for a language model (the tokenizer's report counts pieces).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ncvc.analyzers.lexicon import Entry, LexiconSettings, read_lexicon
from ncvc.analyzers.user_dictionary import CONTEXT, build_user_dictionary, whole_names
from ncvc.morphology import build_analyzer
from ncvc.settings import settings_from

CONTEXTS = (CONTEXT, "既往に{}がある。", "{}の疑いで紹介。")
SHORTEST_NAME = 3  # characters: shorter names are everyday words
EXAMPLES = 20


def whole_names_report(
    entries: Sequence[Entry],
    *,
    analyzers: Mapping[str, Mapping[str, Any]],
    directory: Path,
    contexts: Iterable[str] = CONTEXTS,
    **dictionary_settings: Any,
) -> list[dict[str, Any]]:
    """One record per analyser (label -> settings of `build_analyzer`, without user dictionary) and context.

    All names of at least 3 characters are tried, those without an entry in the user dictionary too. `whole_before` and
    `whole_after` are counts of names that are one word; `broken` holds the first that are not. User dictionaries are
    built into `directory` with `dictionary_settings` (see `build_user_dictionary`).
    """
    names = [entry.surface for entry in entries if len(entry.surface) >= SHORTEST_NAME]
    if not names:
        raise ValueError(f"the lexicon has no name of {SHORTEST_NAME} characters or more; name other files")
    records = []
    for label, settings in analyzers.items():
        started = time.perf_counter()
        dictionary = build_user_dictionary(
            entries,
            directory=directory,
            analyzer=settings.get("name", "sudachi"),
            dictionary=settings.get("dictionary"),
            **dictionary_settings,
        )
        seconds = time.perf_counter() - started
        bare, full = build_analyzer(**settings), build_analyzer(**settings, user_dictionary=dictionary.folder)
        for context in contexts:
            before, _ = whole_names(names, analyzer=bare, context=context)
            after, broken = whole_names(names, analyzer=full, context=context)
            records.append(
                {
                    "analyzer": label,
                    "context": context,
                    "names": len(names),
                    "entries": dictionary.manifest["names"],
                    "whole_before": before,
                    "whole_after": after,
                    "broken": broken[:EXAMPLES],
                    "build_seconds": round(seconds, 1),
                }
            )
    return records


def report_on_lexicon(
    lexicon: Mapping[str, Any] | None, *, analyzers: Mapping[str, Mapping[str, Any] | None], home: Path
) -> list[dict[str, Any]]:
    """`whole_names_report` from plain settings; prints what was read and left out."""
    if lexicon is None:
        raise ValueError("lexicon is not set: choose a list of names, for example lexicon=medical lexicon.files....")
    settings = settings_from(LexiconSettings, lexicon, path="lexicon")
    found = read_lexicon(settings)
    for name, counts in found.counts.items():
        print(f"{name}: " + ", ".join(f"{count:,} {what}" for what, count in counts.items()))
    return whole_names_report(
        found.entries,
        analyzers={label: chosen for label, chosen in analyzers.items() if chosen is not None},
        directory=home / "lexicon",
        cost=settings.cost,
        minimum_characters=settings.minimum_characters,
        minimum_hiragana=settings.minimum_hiragana,
    )


def names_by_kind(lexicon: Mapping[str, Any] | None) -> dict[str, list[str]]:
    """The names of a lexicon, given as plain settings, by kind; none without one."""
    named: dict[str, list[str]] = {}
    if lexicon is not None:
        for entry in read_lexicon(settings_from(LexiconSettings, lexicon, path="lexicon")).entries:
            named.setdefault(entry.kind, []).append(entry.surface)
    return named


def as_table(records: Iterable[Mapping[str, Any]]) -> str:
    """The records as a Markdown table."""
    lines = ["| analyser | sentence | names | one word before | after |", "|---|---|---|---|---|"]
    for record in records:
        shares = [f"{record[key] / record['names']:.2%}" for key in ("whole_before", "whole_after")]
        context = str(record["context"]).replace("{}", "＿")
        lines.append(f"| {record['analyzer']} | {context} | {record['names']:,} | {shares[0]} | {shares[1]} |")
    return "\n".join(lines)
