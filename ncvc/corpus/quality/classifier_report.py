"""What a quality classifier is worth: its scores held against labels it has not seen, threshold by threshold.

For every threshold: precision and recall of what is kept and of what is removed, agreement with the teacher (accuracy
and Cohen's kappa), and the share of the corpus that would go, with its interval. Beside it stand the majority's answer
(everything is high), a logistic regression on a few figures of the characters, the teacher's agreement with itself or
with a second teacher, and what each costs: the report found the vectors not worth theirs (R104) and nearly nothing
removed (R102). Costs nothing to speak of. Takes numbers; knows neither the forest nor torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ncvc.corpus.quality.classifier import RECONSTRUCTION, is_kept
from ncvc.storage import write_json

THRESHOLDS = tuple(step / 20 for step in range(1, 20))
PLAIN_THRESHOLD = 0.5


def cohen_kappa(first: np.ndarray, second: np.ndarray) -> float | None:
    """Agreement of two raters [items] beyond chance (Cohen 1960); None where it is undefined: both say one thing."""
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    total, agreed = len(first), int(np.count_nonzero(first == second))
    ones, others = int(np.count_nonzero(first)), int(np.count_nonzero(second))
    by_chance = ones * others + (total - ones) * (total - others)  # times total: whole numbers, so that 0 is 0
    return None if by_chance == total * total else (total * agreed - by_chance) / (total * total - by_chance)


def area_under_curve(scores: np.ndarray, high: np.ndarray) -> float | None:
    """Probability that a high text scores above a low one, ties half (Mann-Whitney); None with one class."""
    high = np.asarray(high, bool)
    positives, negatives = int(high.sum()), int((~high).sum())
    if not positives or not negatives:
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # the mean rank of equal scores
    return float((ranks[high].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def wilson_interval(count: int, total: int) -> tuple[float, float]:
    """95% interval of a share (Wilson 1927); (0, 1) of nothing."""
    if not total:
        return 0.0, 1.0
    z, share = 1.959964, count / total
    middle = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, (middle - spread) / (1 + z * z / total)), min(1.0, (middle + spread) / (1 + z * z / total))


def sign_test(first_right: np.ndarray, second_right: np.ndarray) -> float:
    """Two-sided probability of a difference this large if two classifiers are equally often right (McNemar)."""
    only_first = int(np.count_nonzero(first_right & ~second_right))
    only_second = int(np.count_nonzero(second_right & ~first_right))
    total, fewer = only_first + only_second, min(only_first, only_second)
    if total > 1000:  # the normal approximation, with continuity
        return math.erfc(max(0.0, abs(only_first - only_second) - 1) / math.sqrt(2 * total))
    return min(1.0, 2 * sum(math.comb(total, count) for count in range(fewer + 1)) / 2**total)


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def at_threshold(scores: np.ndarray, high: np.ndarray, characters: np.ndarray, *, threshold: float) -> dict[str, Any]:
    """All figures of one threshold on held-out ``scores``, labels ``high`` and text lengths, each [documents]."""
    kept = is_kept(scores, threshold=threshold)
    removed, low = ~kept, ~high
    count = int(removed.sum())
    return {
        "threshold": threshold,
        "removed": _ratio(count, len(kept)),
        "removed_interval": list(wilson_interval(count, len(kept))),
        "removed_characters": _ratio(characters[removed].sum(), characters.sum()),
        "precision_high": _ratio((kept & high).sum(), kept.sum()),
        "recall_high": _ratio((kept & high).sum(), high.sum()),
        "precision_low": _ratio((removed & low).sum(), count),
        "recall_low": _ratio((removed & low).sum(), low.sum()),
        "accuracy": float(np.mean(kept == high)),
        "kappa": cohen_kappa(kept, high),
    }


def best_threshold(scores: np.ndarray, high: np.ndarray) -> float:
    """The threshold of ``THRESHOLDS`` with the highest kappa; the middle one of several equal ones.

    Choose it on training texts (out-of-bag scores), never on those that the report judges by. Scores that are nan are
    left out. 0.5 where no threshold agrees better than chance.
    """
    known = np.isfinite(scores)
    kappas = [cohen_kappa(is_kept(scores[known], threshold=value), high[known]) or 0.0 for value in THRESHOLDS]
    best = max(kappas)
    if best <= 0:
        return PLAIN_THRESHOLD
    equal = [value for value, kappa in zip(THRESHOLDS, kappas, strict=True) if kappa == best]
    return equal[len(equal) // 2]


def judged(scores: np.ndarray, high: np.ndarray, characters: np.ndarray, *, threshold: float) -> dict[str, Any]:
    """A classifier on held-out texts: area under the curve, figures at ``threshold``, the whole table."""
    return {
        "area_under_curve": area_under_curve(scores, high),
        "chosen": at_threshold(scores, high, characters, threshold=threshold),
        "table": [at_threshold(scores, high, characters, threshold=value) for value in THRESHOLDS],
    }


def check_held_out(high: np.ndarray) -> None:
    """Raise ``ValueError`` when the held-out labels [documents] show one class only: nothing could be measured."""
    if not high.any() or high.all():
        raise ValueError(
            f"all {len(high)} held-out labels are {'high' if high.any() else 'low'}: nothing can be measured on them; "
            "label more documents (labels.documents) or hold out more of them (forest.held_out)."
        )


def evaluation(
    *,
    forest: np.ndarray,
    baseline: np.ndarray,
    high: np.ndarray,
    characters: np.ndarray,
    forest_threshold: float,
    baseline_threshold: float,
) -> dict[str, Any]:
    """Forest, baseline and majority on the same held-out texts [documents], as plain JSON values.

    The thresholds were chosen on training texts. Raises ``ValueError`` when the held-out texts show one class only.
    """
    check_held_out(high)
    forest_right = is_kept(forest, threshold=forest_threshold) == high
    baseline_right = is_kept(baseline, threshold=baseline_threshold) == high
    majority = bool(high.mean() >= 0.5)
    always = {"answer": "high" if majority else "low", "accuracy": float(np.mean(high == majority)), "kappa": 0.0}
    return {
        "held_out": len(high),
        "held_out_high": int(high.sum()),
        "forest": judged(forest, high, characters, threshold=forest_threshold),
        "baseline": judged(baseline, high, characters, threshold=baseline_threshold),
        "majority": always,
        "forest_against_majority": sign_test(forest_right, high == majority),
        "forest_against_baseline": sign_test(forest_right, baseline_right),
    }


def agreement(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, Any]:
    """How two rounds of labels (by document key) agree on the documents that both labelled."""
    both = sorted(first.keys() & second.keys())
    a, b = (np.array([labels[key] == "high" for key in both], dtype=bool) for labels in (first, second))
    return {
        "documents": len(both),
        "agreement": float(np.mean(a == b)) if both else None,
        "kappa": cohen_kappa(a, b),
    }


# --- for the eye


def _number(value: float | None, *, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}%"


def verdict(found: Mapping[str, Any]) -> list[str]:
    """What the figures say, in words: against the majority, against the baseline, and what is removed."""
    forest, baseline, majority = found["forest"]["chosen"], found["baseline"]["chosen"], found["majority"]
    lines = []
    for name, other, chance in (
        ("always answering " + majority["answer"], majority, found["forest_against_majority"]),
        ("the character statistics", baseline, found["forest_against_baseline"]),
    ):
        better = forest["accuracy"] - other["accuracy"]
        than = f"agrees with the teacher {'more' if better > 0 else 'less'} often than"
        words = than if chance < 0.05 else "cannot be told apart from"
        lines.append(
            f"The forest {words} {name}: accuracy {_number(forest['accuracy'])} and {_number(other['accuracy'])}, "
            f"kappa {_number(forest['kappa'])} and {_number(other['kappa'])} (sign test p = {chance:.2g})."
        )
    low, high = forest["removed_interval"]
    lines.append(
        f"At threshold {forest['threshold']:.2f} it removes {_share(forest['removed'])} of the documents "
        f"({_share(low)} to {_share(high)}) and {_share(forest['removed_characters'])} of the characters."
    )
    return lines


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| threshold | removed documents | removed characters | precision high | recall high | precision low | "
        "recall low | accuracy | kappa |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["removed_interval"]
        cells = [f"{row['threshold']:.2f}", f"{_share(row['removed'])} ({_share(low)}–{_share(high)})"]
        cells.append(_share(row["removed_characters"]))
        cells += [_number(row[f"{what}_{side}"]) for side in ("high", "low") for what in ("precision", "recall")]
        lines.append("| " + " | ".join([*cells, _number(row["accuracy"]), _number(row["kappa"])]) + " |")
    return lines


def as_markdown(record: Mapping[str, Any]) -> str:
    """The whole report as a page; ``record`` has ``labelling``, ``agreement``, ``evaluation`` and ``costs``."""
    labelling, found = record["labelling"], record["evaluation"]
    high, valid = labelling["high"], labelling["valid"]
    lines = ["# Quality classifier", "", RECONSTRUCTION, "", "## Labels", ""]
    lines += [
        f"- teacher {labelling['teacher']}: {valid:,} of {labelling['documents']:,} documents labelled, "
        f"{_share(_ratio(high, valid))} high (the report: 94%, R8); {labelling['seen']:,} documents to choose from",
        *(f"- answers rejected, {reason}: {count:,}" for reason, count in labelling["rejections"].items()),
        *(f"- requests without an answer, {reason}: {count:,}" for reason, count in labelling["failures"].items()),
    ]
    for again in record["agreement"]:
        lines.append(
            f"- {again['with']} on {again['documents']:,} documents: agreement {_number(again['agreement'])}, "
            f"kappa {_number(again['kappa'])}"
        )
    lines += ["", "## Verdict", "", *(f"- {line}" for line in verdict(found))]
    lines += [
        "",
        f"Held out: {found['held_out']:,} texts ({found['held_out_high']:,} high), chosen by a hash of their text. "
        "Thresholds were chosen on training texts. Area under the curve: forest "
        f"{_number(found['forest']['area_under_curve'])}, statistics {_number(found['baseline']['area_under_curve'])}.",
        "", "## Forest on hidden vectors, by threshold", "", *_table(found["forest"]["table"]),
        "", "## Logistic regression on character statistics, by threshold", "", *_table(found["baseline"]["table"]),
        "", "## Costs (R104)", "", "| step | documents per second | documents per CPU second |", "|---|---|---|",
    ]  # fmt: skip
    for name, cost in record["costs"].items():
        lines.append(f"| {name} | {cost['per_second']:,.1f} | {cost['per_cpu_second']:,.1f} |")
    vectors, plain = (record["costs"][name]["per_cpu_second"] for name in ("hidden vectors", "character statistics"))
    lines += ["", f"A hidden vector takes {plain / vectors:,.0f} times the CPU time of the character statistics."]
    return "\n".join(lines) + "\n"


def write_report(directory: Path, record: Mapping[str, Any]) -> list[Path]:
    """Write report.json, report.md and, where matplotlib is installed, report.png; returns what was written."""
    directory = Path(directory)
    write_json(directory / "report.json", record)
    (directory / "report.md").write_text(as_markdown(record), encoding="utf-8")
    written = [directory / "report.md", directory / "report.json"]
    if draw(record, directory / "report.png"):
        written.append(directory / "report.png")
    return written


def draw(record: Mapping[str, Any], place: Path) -> bool:
    """Draw agreement and removed share over the threshold; False without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = record["evaluation"]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for name, label, color in (
        ("forest", "forest on hidden vectors", "tab:blue"),
        ("baseline", "regression on characters", "tab:orange"),
    ):
        table = found[name]["table"]
        at = [row["threshold"] for row in table]
        left.plot(at, [math.nan if row["kappa"] is None else row["kappa"] for row in table], color=color, label=label)
        right.plot(at, [100 * row["removed"] for row in table], color=color, label=label)
        if name == "forest":
            lowest, highest = zip(*(row["removed_interval"] for row in table), strict=True)
            right.fill_between(at, [100 * v for v in lowest], [100 * v for v in highest], color=color, alpha=0.2)
        chosen = found[name]["chosen"]
        left.plot(chosen["threshold"], chosen["kappa"] or 0.0, "o", color=color)
        right.plot(chosen["threshold"], 100 * chosen["removed"], "o", color=color)
    left.axhline(0, color="0.5", linewidth=0.8, linestyle="--", label=f"always {found['majority']['answer']}")
    for again in record["agreement"][:1]:
        if again["kappa"] is not None:
            left.axhline(again["kappa"], color="tab:green", linewidth=0.8, linestyle=":", label=again["with"])
    share_low = 100 * (1 - found["held_out_high"] / found["held_out"])
    right.axhline(share_low, color="0.5", linewidth=0.8, linestyle="--", label="labelled low by the teacher")
    left.set(xlabel="threshold", ylabel="Cohen's kappa", title=f"Agreement with {record['labelling']['teacher']}")
    right.set(xlabel="threshold", ylabel="% of documents", title="Removed (band: 95% interval)", ylim=(-2, 102))
    for axis in (left, right):
        axis.grid(alpha=0.25, linewidth=0.5)
        axis.legend(fontsize=8)
    partial = place.with_name(f".{place.name}.partial")
    figure.savefig(partial, dpi=130, format="png")
    pyplot.close(figure)
    partial.replace(place)
    return True
