"""Whether texts were in a corpus, by its certificate: one text, or every item of a benchmark file.

A text counts as seen when a run of at least as many letters and digits as the certificate guarantees may stand in the
corpus; "not seen" is certain. Costs half a millisecond a text.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ncvc.corpus.contamination.benchmark_texts import Benchmark, read_benchmark
from ncvc.corpus.contamination.certificate import Answer, Certificate

VERDICTS = ("seen", "not seen", "too short to tell")


@dataclass(frozen=True)
class SeenReport:
    """The certificate in words and an answer for every item."""

    certificate: str
    answers: tuple[tuple[str, Answer], ...]

    @property
    def counts(self) -> dict[str, int]:
        """Items per verdict."""
        found: Counter[str] = Counter(answer.verdict for _, answer in self.answers)
        return {verdict: found[verdict] for verdict in VERDICTS}

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            "certificate": self.certificate,
            "counts": self.counts,
            "answers": [{"item": item, **asdict(answer)} for item, answer in self.answers],
        }

    def as_table(self, *, limit: int = 20) -> str:
        """Counts, and the seen items with the longest shared runs, at most ``limit``."""
        lines = [self.certificate, "  ".join(f"{verdict}: {count:,}" for verdict, count in self.counts.items())]
        seen = sorted(
            ((item, answer) for item, answer in self.answers if answer.verdict == "seen"),
            key=lambda pair: -pair[1].longest_run,
        )
        lines += [f"{item}: {answer}" for item, answer in seen[:limit]]
        if len(seen) > limit:
            lines.append(f"... and {len(seen) - limit:,} more (limit={limit}; json=true gives all)")
        return "\n".join(lines)


def ask(certificate: str, *, text: str | None, file: str | None, fields: list[str | int] | None) -> SeenReport:
    """Ask the certificate in the folder ``certificate`` for ``text``, or for each item of ``file``.

    ``fields`` of the file hold the text (null: the usual names of IgakuQA, JMED-LLM, JMMLU). Raises `ValueError` unless
    exactly one of the two is given, and the errors of `Certificate.open` and `read_benchmark`.
    """
    if (text is None) == (file is None):
        raise ValueError("set either text='...' or file=FILE: what is to be asked for")
    opened = Certificate.open(Path(certificate).expanduser())
    if text is not None:
        items = [("text", text)]
    else:
        assert file is not None  # one of the two is given
        path = Path(file).expanduser()
        wanted = tuple(fields) if fields else None
        found = read_benchmark(Benchmark(path.name.partition(".")[0], path, wanted))
        items = [(f"{item.benchmark} {item.id}", item.text) for item in found]
    return SeenReport(str(opened), tuple((name, opened.was_seen(asked)) for name, asked in items))
