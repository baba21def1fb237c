"""Rows of a training step for the eye: which tokens are targets, where each row comes from, how long conversations are.

A row is taken from the very batch that training gets. Targets are coloured (in a terminal, or on a page) or stand
between ⟦ and ⟧; special tokens are written by name, and what only looks like one is written with a backslash before it.
Rows of plain text, where every token is a target, show their documents in turns of colour. Characters that would act on
a terminal (escapes, changes of direction) are written as codes. Costs one batch. Knows nothing of torch.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from ncvc.storage import whole_file
from ncvc.tokenizer import Tokenizer

_PLAIN, _TARGET, _SPECIAL = "plain", "target", "special"
_DOCUMENTS = ("document-0", "document-1")
_ANSI = {_TARGET: "32", _SPECIAL: "35", _PLAIN: "2", "special-target": "32;1;4", "document-0": "36", "document-1": "33"}
_STYLE = """
:root { color-scheme: light dark; --target: #0a7a2f; --wash: #0a7a2f22; --special: #a0309a; --soft: #666; --line: #8884;
  --one: #0a6a8a; --two: #9a6200; }
@media (prefers-color-scheme: dark) { :root { --target: #6fdc8c; --wash: #6fdc8c22; --special: #e29be0; --soft: #aaa;
  --one: #7fd0ea; --two: #e8bf6a; } }
body { font: 16px/1.7 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1rem; margin: 1.6rem 0 .3rem; }
h2 small, .legend { color: var(--soft); font-weight: normal; }
.row { border: 1px solid var(--line); border-radius: 6px; padding: .6rem .8rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.plain { color: var(--soft); } .target, .special-target { color: var(--target); background: var(--wash); }
.special { color: var(--special); } .special, .special-target { font: .8em ui-monospace, monospace; }
.document-0 { color: var(--one); } .document-1 { color: var(--two); }
pre { overflow-x: auto; font: .8rem/1.5 ui-monospace, monospace; }
"""


@dataclass(frozen=True, kw_only=True)
class ShowSettings:
    """What ``python -m ncvc.show`` shows: ``rows`` samples of optimizer step ``step`` (the first is 1).

    ``color``: null colours where the output is a terminal; ``html`` is a file to write the same as a page to.
    """

    rows: int = 3
    step: int = 1
    color: bool | None = None
    html: str | None = None

    def __post_init__(self) -> None:
        for name in ("rows", "step"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r}: must be a whole number of at least 1.")
        if self.color is not None and not isinstance(self.color, bool):
            raise ValueError(f"color={self.color!r}: set true, false, or null (colours in a terminal only).")
        if self.html is not None and (not isinstance(self.html, str) or not self.html.strip()):
            raise ValueError(f"html={self.html!r}: name a file, or set null.")


@dataclass(frozen=True, kw_only=True)
class ShownRow:
    """One sample: its ids, whether each is a target of training, and where it comes from."""

    title: str
    ids: list[int]
    targets: list[bool]


def rows_of_step(data: Any, *, step: int, rows: int) -> list[ShownRow]:
    """The first ``rows`` samples of optimizer step ``step`` (from 1), as a data module hands them out on one rank."""
    origins = data.documents_of(step - 1)
    found: dict[int, ShownRow] = {}
    for micro_step in range(data.batch_size // data.micro_batch_size):
        batch = data.micro_batch(step - 1, micro_step, rank=0, world_size=1)
        inputs, labels = batch["input_ids"].tolist(), batch["labels"].tolist()
        for number, held in enumerate(data.rows_of(step - 1, micro_step, rank=0, world_size=1)):
            for place, first, end in held:
                if place >= rows:
                    continue
                asked = labels[number][first:end]  # the label at t is the token t + 1
                ids = [inputs[number][first], *inputs[number][first + 1 : end], asked[-1]]
                targets = [False, *(label >= 0 for label in asked)]
                found[place] = ShownRow(title=_origin(origins[place]), ids=ids, targets=targets)
        if len(found) == min(rows, data.batch_size):
            break
    return [found[place] for place in sorted(found)]


def _origin(origin: dict[str, Any]) -> str:
    if "row_in_source" in origin:
        return f"{origin['source']}, {origin['row_in_source']}"
    first, end = origin["documents"]
    return f"{origin['source']}, window {origin['window']}, documents {first} to {end - 1}"


def spans_of(row: ShownRow, *, tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    """(kind, text) of the pieces of a row: plain, target, special, special-target, or document-0 and document-1."""
    names = {
        tokenizer.id_of(token): token for token in ("<|begin_of_text|>", "<|end_of_text|>", *tokenizer.added_tokens)
    }
    whole = all(row.targets[1:])  # plain text: everything is learned, so colours tell documents apart
    document = 0
    marked = []
    for number, (token, target) in enumerate(zip(row.ids, row.targets, strict=True)):
        if whole and token == tokenizer.begin_id and number:
            document += 1
        if token in names:
            kind = "special-target" if target and not whole else _SPECIAL
        else:
            kind = _DOCUMENTS[document % 2] if whole else _TARGET if target else _PLAIN
        marked.append((kind, token))
    for kind, group in groupby(marked, key=lambda pair: pair[0]):
        ids = [token for _, token in group]
        if kind.startswith(_SPECIAL):
            yield kind, "".join(names[token] for token in ids)
        else:
            yield kind, visible(tokenizer.decode(ids))


def visible(text: str) -> str:
    """``text`` with what could be taken for a special token marked, and what would act on a terminal as codes."""
    text = text.replace("<|", "\\<|").replace("⟦", "\\⟦").replace("⟧", "\\⟧")
    return "".join(_character(character) for character in text)


def _character(character: str) -> str:
    if character != "\n" and unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return f"\\u{{{ord(character):x}}}"
    return character


def as_text(row: ShownRow, *, tokenizer: Tokenizer, color: bool) -> str:
    """A row for a terminal; without ``color`` runs of targets stand between ⟦ and ⟧."""
    spans = list(spans_of(row, tokenizer=tokenizer))
    if color:
        return "".join(f"\x1b[{_ANSI[kind]}m{text}\x1b[0m" for kind, text in spans)
    parts = []
    for is_target, group in groupby(spans, key=lambda span: span[0] in (_TARGET, "special-target")):
        text = "".join(part for _, part in group)
        parts.append(f"⟦{text}⟧" if is_target else text)
    return "".join(parts)


def heading(row: ShownRow, number: int) -> str:
    """Number, origin, tokens and targets of a row."""
    return f"row {number}: {row.title}: {len(row.ids):,} tokens, {sum(row.targets):,} targets"


def summaries(data: Any, *, max_steps: int) -> list[str]:
    """What there is in all: the data's own description, and the splits of JMED-LLM where it is a source."""
    found = [data.description(max_steps)]
    for source in data.sources:
        if source.kind == "jmed_llm":
            from ncvc.evaluation.jmed_llm import split_summary

            found.append(f"{source.name}, split {source.split}:\n{split_summary(Path(source.path).expanduser())}")
    return found


def write_page(path: Path, *, title: str, rows: Sequence[ShownRow], tokenizer: Tokenizer, notes: Sequence[str]) -> None:
    """The rows and notes as one page that needs nothing else; the file appears whole or not at all."""
    parts = [
        f'<!doctype html>\n<html lang="ja"><head><meta charset="utf-8"><title>{html.escape(title)}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{_STYLE}</style></head><body>\n<h1>{html.escape(title)}</h1>",
        '<p class="legend"><span class="target">targets of training</span> · <span class="plain">context</span> · '
        '<span class="special">special tokens</span></p>',
    ]
    for number, row in enumerate(rows, 1):
        name, _, figures = heading(row, number).rpartition(": ")
        parts.append(f"<h2>{html.escape(name)} <small>{figures}</small></h2>")
        spans = spans_of(row, tokenizer=tokenizer)
        text = "".join(f'<span class="{kind}">{html.escape(part)}</span>' for kind, part in spans)
        parts.append(f'<div class="row">{text}</div>')
    parts += [f"<pre>{html.escape(note)}</pre>" for note in notes]
    with whole_file(path) as file:
        file.write(("\n".join(parts) + "\n</body></html>\n").encode("utf-8", "surrogatepass"))
