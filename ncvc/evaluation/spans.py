"""Lists of text spans as one line of text and back: how the answers of JMED-LLM's extraction tasks are written.

The form is a JSON list of strings, ``["発熱", "咳嗽"]``, with Japanese unescaped: any JSON parser reads it, and so does
the published scorer, which reads Python lists. It has to survive the tokenizer, which cleans every turn (quotation
marks are unified, #tags go). So each span is cleaned first, and one that would not come through the cleaning of the
whole line unchanged has its marks, at last all its characters, written as \\uXXXX. No row of JMED-LLM needs that
(measured).

Costs: one cleaning of the spans and of the line. Does not: search a list inside other text (code fences, prefaces), or
stand up to the cleaning rules ``literal``, which cut #tags through quotation marks.
"""

from __future__ import annotations

import ast
import functools
import json
import re
from collections.abc import Iterable

from ncvc.corpus.cleaning import SPACE, Cleaner

LONGEST_LIST = 100_000
"""Characters from which on a text is no list of spans, whatever is in it."""

_ITEM = re.compile(r"""\s*('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")\s*(?:,|(?=\]))""", re.DOTALL)
_END = re.compile(r"\s*\]\s*\Z")
_ESCAPE = re.compile(r"\\([0-7]{1,3}|.)", re.DOTALL)
_MARKS = re.compile(r"[\n!-/:-@\[-`{-~]")
_ALL = re.compile("[^\U00010000-\U0010ffff]")  # cleaning takes the ideographs above U+FFFF for letters and keeps them


def clean_span(text: str) -> str:
    """``text`` as it comes back from a tokenizer: cleaned (NFKC and the other rules), white space as one space."""
    return _cleaner()(text).replace(SPACE, " ")


def write_spans(spans: Iterable[str]) -> str:
    """The spans, each cleaned, as one line that cleaning leaves as it is; what cleaning leaves nothing of is left out.

    ``read_spans(clean_span(write_spans(spans)))`` is the list of the cleaned spans that are not empty.
    """
    return f"[{', '.join(_quoted(span) for span in map(clean_span, spans) if span)}]"


def read_spans(text: str) -> list[str]:
    """The spans in ``text``: a JSON list of strings, or a Python list of strings as JMED-LLM's files have it.

    Never raises: what is anything else, also in part, or longer than ``LONGEST_LIST``, is the empty list. Blank spans
    are left out. Nothing of the text is run.
    """
    if len(text) > LONGEST_LIST:
        return []
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = parse_python_strings(text)
    if not isinstance(value, list) or not all(isinstance(span, str) for span in value):
        return []
    return [span for span in value if span.strip()]


def parse_python_strings(text: str) -> list[str] | None:
    """The strings of a Python list literal of strings, or None if ``text`` is anything else.

    Each string is read by ``ast.literal_eval``; nothing nested reaches it.
    """
    text = text.strip()
    if len(text) > LONGEST_LIST or not text.startswith("["):
        return None
    strings, place = [], 1
    while not _END.match(text, place):
        match = _ITEM.match(text, place)
        if match is None:
            return None
        try:
            strings.append(ast.literal_eval(_ESCAPE.sub(_without_warning, match[1])))
        except (ValueError, SyntaxError):
            return None
        place = match.end()
    return strings


def _without_warning(escape: re.Match[str]) -> str:
    """An escape that says the same and that Python does not warn of."""
    if escape[1][0] in "01234567":
        return f"\\u{int(escape[1], 8):04x}"
    return escape[0] if escape[1] in "\n\\'\"abfnrtvxNuU" else f"\\{escape[0]}"


@functools.lru_cache(maxsize=1)
def _cleaner() -> Cleaner:
    return Cleaner()


def _quoted(span: str) -> str:
    """A cleaned span in quotation marks, with as few escapes as cleaning needs to leave it alone."""
    plain, marked = json.dumps(span, ensure_ascii=False), _escaped(span, _MARKS)
    return next((one for one in (plain, marked) if clean_span(f"[{one}]") == f"[{one}]"), _escaped(span, _ALL))


def _escaped(span: str, characters: re.Pattern[str]) -> str:
    return f'"{characters.sub(lambda match: f"{chr(92)}u{ord(match[0]):04x}", span)}"'
