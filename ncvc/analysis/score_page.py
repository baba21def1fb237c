"""A report as one HTML page that needs nothing else, as Markdown, and as plain data.

The page holds its pictures and its style, runs no script, asks for nothing from any network, reads on a phone and
prints on A4. All text in it is escaped: names of models and tasks are other people's. Costs nothing. Does not: decide
what is in a report (see `ncvc.analysis.score_report`).
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ncvc.analysis.published_scores import Contradiction
from ncvc.analysis.score_figures import Figure
from ncvc.analysis.score_tables import Row, Table

_STYLE = """
:root { --text: #1b2325; --soft: #55636a; --line: #d5dcde; --own: #e3f1ef; --report: #f4f1e6; --reference: #eef0f3; }
* { box-sizing: border-box; }
html { color-scheme: light; -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; background: #fff; color: var(--text);
  font: 16px/1.6 system-ui, "Hiragino Sans", "Noto Sans CJK JP", "Noto Sans JP", "Yu Gothic UI", Meiryo, sans-serif; }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; padding-top: .5rem;
  border-top: 2px solid var(--line); } h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; overflow-wrap: anywhere; }
ul { padding-left: 1.2rem; margin: .4rem 0; } li { margin: .2rem 0; } nav a { display: inline-block;
  margin-right: 1rem; }
.note { color: var(--soft); font-size: .85rem; margin: .3rem 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: .85rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
tbody:last-child tr:last-child > * { border-bottom: 0; }
thead th { background: #f7f8f8; } tbody th { font-weight: 400; }
th:first-child { position: sticky; left: 0; background: #fff; white-space: normal;
  min-width: 9.5rem; max-width: 22rem; }
thead th:first-child { background: #f7f8f8; }
.own th, .own td, .own th:first-child { background: var(--own); } .own th { font-weight: 600; }
.report th, .report td, .report th:first-child { background: var(--report); }
.reference th, .reference td, .reference th:first-child { background: var(--reference); font-style: italic; }
.key.own { background: var(--own); } .key.report { background: var(--report); }
.key.reference { background: var(--reference); font-style: italic; }
th small { display: block; color: var(--soft); font-weight: 400; line-height: 1.35; }
.verdict td { white-space: normal; background: #fff; padding-top: 0; }
.verdict span { position: sticky; left: .6rem; display: inline-block; max-width: min(60rem, calc(100vw - 4rem)); }
.pair > * { border-bottom: 0; } .pair td { padding-bottom: .1rem; }
.key { display: inline-block; padding: 0 .5rem; border: 1px solid var(--line); border-radius: 4px;
  margin-right: .4rem; }
sup { color: var(--soft); font-size: .7em; line-height: 0; font-style: normal; font-weight: 400; }
figure { margin: 1rem 0; break-inside: avoid; } figure img { display: block; max-width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: .85rem; margin-top: .3rem; }
@page { size: A4; margin: 12mm; }
@media (max-width: 40rem) { th:first-child { min-width: 9rem; max-width: 9rem; overflow-wrap: anywhere; } }
@media print {
  html { font-size: 9.5pt; }
  body { max-width: none; padding: 0; font-size: 9.5pt; }
  .wide { overflow: visible; border-radius: 0; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; } nav { display: none; }
  table { font-size: 6.8pt; } th, td { padding: .12rem .25rem; white-space: normal; overflow-wrap: normal; }
  th:first-child { position: static; min-width: 0; } tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .verdict span { max-width: none; }
}
"""

GUIDE = (
    "Rows of other models are citations of the report; they were not measured here. Their sources stand at the end.",
    "As published: counted by the published scorers, faults included, so that own rows can be held against the "
    "published ones. Corrected: refusals counted, spans matched one to one, with a 95% interval (over items "
    "or documents, the wider).",
    "A score says something only above what guessing, a constant answer and a baseline without a language model get on "
    "the same items, and only if the model was not trained on them. The verdict of a sheet says which of these explain "
    "it.",
    "In JMED-LLM's published (paper) split, most test items are about documents that other training rows are about.",
)
GUIDE_JAPANESE = (
    "他モデルの行は報告書からの引用で、ここで測定したものではありません。",
    "as published は公開採点器の規則（欠陥も含む）による値、corrected は修正した採点による値で、"
    "95%区間を添えています。",
    "偶然・定数回答・言語モデルを使わない基準を上回り、かつ学習に使っていない問題での得点だけが意味を持ちます。",
)
_KINDS = {"own": "own run", "report": "model of the report", "cited": "cited", "reference": "held against"}


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a report shows: one's own sheets, Tables 2 to 7, figures, contradictions, and remarks on what is missing."""

    sheets: tuple[Table, ...]
    tables: tuple[Table, ...]
    figures: tuple[Figure, ...]
    contradictions: tuple[Contradiction, ...]
    remarks: tuple[str, ...] = ()

    @property
    def sources(self) -> tuple[str, ...]:
        """Who published the rows that were not measured here, in the order of their numbers."""
        rows = (row for table in self.tables for row in table.rows if row.kind in ("cited", "report"))
        return tuple(dict.fromkeys(row.source for row in rows))

    def mark(self, row: Row) -> str:
        """The number of a row's source; empty for rows that were measured here."""
        return str(self.sources.index(row.source) + 1) if row.kind in ("cited", "report") else ""


def as_data(report: Report) -> dict[str, Any]:
    """The report as plain data, without pictures."""
    data = {
        "sheets": [asdict(table) for table in report.sheets],
        "tables": [asdict(table) for table in report.tables],
        "figures": [
            {"name": figure.name, "title": figure.title, "caption": figure.caption, **figure.data}
            for figure in report.figures
        ],
        "contradictions": [{"id": each.id, "said": each.said, "here": each.here} for each in report.contradictions],
        "sources": list(report.sources),
        "remarks": list(report.remarks),
    }
    return _printable_data(data)


def _printable_data(value: Any) -> Any:
    if isinstance(value, str):
        return _printable(value)
    if isinstance(value, Mapping):
        return {key: _printable_data(each) for key, each in value.items()}
    return [_printable_data(each) for each in value] if isinstance(value, list | tuple) else value


# --- HTML
def as_html(report: Report) -> str:
    """The page, complete."""
    parts = [_heading(report)]
    parts.append('<h2 id="own">Own scores</h2>')
    parts += [_html_table(table, report) for table in report.sheets]
    parts.append(_paragraphs(report.remarks))
    parts.append('<h2 id="tables">Tables 2 to 7</h2>')
    parts.append("<p>" + "".join(f'<span class="key {kind}">{_key(kind)}</span>' for kind in _KINDS) + "</p>")
    parts += [_html_table(table, report) for table in report.tables]
    if report.figures:
        parts.append('<h2 id="figures">Figures</h2>')
        parts += [_html_figure(figure) for figure in report.figures]
    parts.append('<h2 id="contradictions">Where the report contradicts itself</h2>')
    said = [f"<li><b>{_escaped(each.id)}</b> {_escaped(each.said)} {_escaped(each.here)}</li>"
            for each in report.contradictions]  # fmt: skip
    parts.append(f"<ul>{''.join(said)}</ul>")
    parts.append('<h2 id="sources">Sources</h2>')
    listed = "".join(f"<li>{_escaped(source)}</li>" for source in report.sources)
    parts.append(f"<ol>{listed}</ol>")
    body = "\n".join(part for part in parts if part)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>NCVC-slm: scores</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _heading(report: Report) -> str:
    places = {"own": "Own scores", "tables": "Tables 2 to 7", **({"figures": "Figures"} if report.figures else {}),
              "contradictions": "Contradictions", "sources": "Sources"}  # fmt: skip
    links = "".join(f'<a href="#{place}">{name}</a>' for place, name in places.items())
    guide = "".join(f"<li>{_escaped(text)}</li>" for text in GUIDE)
    japanese = "".join(f"<li>{_escaped(text)}</li>" for text in GUIDE_JAPANESE)
    return (
        f"<h1>Scores beside the report NCVC-slm-1</h1>\n<nav>{links}</nav>\n<ul>{guide}</ul>\n"
        f'<ul lang="ja" class="note">{japanese}</ul>'
    )


def _key(kind: str) -> str:
    return _escaped(_KINDS[kind])


def _html_table(table: Table, report: Report) -> str:
    header, verdicts = table.header, table.header[-1] == "verdict"
    shown = header[:-1] if verdicts else header
    lines = ["<tr>" + "".join(f'<th scope="col">{_escaped(name)}</th>' for name in shown) + "</tr>"]
    body = []
    for row in table.rows:
        cells = row.cells[:-1] if verdicts else row.cells
        detail = f"<small>{_escaped(row.detail)}</small>" if row.detail else ""
        told = [f'<th scope="row">{_escaped(row.label)}{_raised(report.mark(row))}{detail}</th>']
        told += [
            f"<td>{_escaped(cell)}{_raised(', '.join(row.marks.get(place, ())))}</td>"
            for place, cell in enumerate(cells)
        ]
        kind = f"{row.kind}{' pair' if verdicts else ''}"
        body.append(f'<tr class="{kind}">{"".join(told)}</tr>')
        if verdicts:
            words = _escaped(row.cells[-1])
            body.append(f'<tr class="verdict"><td colspan="{len(shown)}"><span>Verdict: {words}</span></td></tr>')
    marks = _raised(", ".join(table.marks))
    return (
        f'<section id="{_escaped(table.name)}"><h3>{_escaped(table.title)}{marks}</h3>\n'
        f'<div class="wide" tabindex="0" role="region" aria-label="{_escaped(table.title)}"><table><thead>'
        f"{''.join(lines)}</thead>\n<tbody>{chr(10).join(body)}</tbody></table></div>\n"
        f"{_paragraphs(table.notes)}</section>"
    )


def _html_figure(figure: Figure) -> str:
    data = base64.b64encode(figure.png).decode("ascii")
    return (
        f'<figure id="{_escaped(figure.name)}"><img alt="{_escaped(figure.title)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{_escaped(figure.caption)}</figcaption></figure>"
    )


def _paragraphs(notes: Sequence[str]) -> str:
    return "\n".join(f'<p class="note">{_escaped(note)}</p>' for note in notes)


def _raised(text: str) -> str:
    return f" <sup>{_escaped(text)}</sup>" if text else ""


def _escaped(text: str) -> str:
    """Text for HTML; what no HTML may hold, such as a lone surrogate or a NUL, becomes U+FFFD."""
    return html.escape(_printable(text), quote=True)


def _printable(text: str) -> str:
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff\u202a-\u202e\u2066-\u2069]", "\ufffd", text)


# --- Markdown
def as_markdown(report: Report, *, pictures: Mapping[str, str]) -> str:
    """The report as Markdown; ``pictures`` gives the file of each figure's name."""
    parts = ["# Scores beside the report NCVC-slm-1", *(f"- {text}" for text in GUIDE), "", "## Own scores", ""]
    parts += [_markdown_table(table, report) for table in report.sheets]
    parts += [*(f"{_plain(remark)}\n" for remark in report.remarks), "## Tables 2 to 7", ""]
    parts += [_markdown_table(table, report) for table in report.tables]
    if report.figures:
        parts += ["## Figures", ""]
        parts += [
            f"![{figure.title}]({pictures[figure.name]})\n\n{_plain(figure.caption)}\n" for figure in report.figures
        ]
    parts += ["## Where the report contradicts itself", ""]
    parts += [f"- **{each.id}** {each.said} {each.here}" for each in report.contradictions]
    parts += ["", "## Sources", "", *(f"{place}. {_plain(text)}" for place, text in enumerate(report.sources, start=1))]
    return "\n".join(parts) + "\n"


def _markdown_table(table: Table, report: Report) -> str:
    lines = ["| " + " | ".join(["rows", *map(_plain, table.header)]) + " |", "|" + "---|" * (len(table.header) + 1)]
    for row in table.rows:
        source = f" [{report.mark(row)}]" if report.mark(row) else ""
        detail = f" ({_plain(row.detail)})" if row.detail else ""
        cells = [_KINDS[row.kind], _plain(row.label) + detail + source]
        for place, cell in enumerate(row.cells):
            marks = "".join(f" [{_plain(mark)}]" for mark in row.marks.get(place, ()))
            cells.append(_plain(cell) + marks)
        lines.append("| " + " | ".join(cells) + " |")
    marks = "".join(f" [{_plain(mark)}]" for mark in table.marks)
    notes = "".join(f"\n{_plain(note)}\n" for note in table.notes)
    return f"### {_plain(table.title)}{marks}\n\n" + "\n".join(lines) + "\n" + notes


def _plain(text: str) -> str:
    """Text that Markdown takes as it is: on one line, no table's end, no markup."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(_printable(text).split()))
