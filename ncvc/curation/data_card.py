"""The data card of a curated corpus: Table 1 and Figure 1 for the user's own text (R16, R17), as Markdown, JSON, PNG.

Documents, bytes, tokens and shares per source; what every step dropped, with texts to read; licences; the fingerprint.
It reads the finished folder and the token folders, and holds no time of day, so equal corpora give equal cards.
Costs: one pass over dropped.jsonl. The picture needs matplotlib (extra `figures`) and is left out without it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ncvc.storage import write_json

SAMPLES = 3
_STAGES = ("read", "mask", "clean", "quality", "classifier", "deduplicate", "segment", "decontaminate")


def drop_counts(dropped: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """stage -> reason -> documents, bytes, and the first few records, of a file of dropped documents."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    with dropped.open(encoding="utf-8", errors="surrogatepass") as handle:
        for line in handle:
            record = json.loads(line)
            entry = found.setdefault(record["stage"], {}).setdefault(
                record["reason"], {"documents": 0, "bytes": 0, "sources": {}, "samples": []}
            )
            entry["documents"] += 1
            entry["bytes"] += record["bytes"]
            entry["sources"][record["source"]] = entry["sources"].get(record["source"], 0) + 1
            if len(entry["samples"]) < SAMPLES:
                entry["samples"].append({key: record[key] for key in ("source", "id", "detail", "excerpt")})
    ordered = sorted(found, key=lambda stage: (_STAGES.index(stage) if stage in _STAGES else len(_STAGES), stage))
    return {stage: dict(sorted(found[stage].items())) for stage in ordered}


def data_card(manifest: Mapping[str, Any], *, tokens: Mapping[str, int]) -> dict[str, Any]:
    """The card as plain values; ``tokens`` per source (training and validation together)."""
    total_tokens = sum(tokens.values())
    sources = {}
    for name, record in manifest["sources"].items():
        sources[name] = {
            key: record[key]
            for key in (
                "kind", "domain", "license", "origin", "stored_bytes", "raw_documents", "raw_bytes", "documents",
                "characters", "bytes", "masked",
            )
        }  # fmt: skip
        sources[name]["tokens"] = tokens.get(name, 0)
        sources[name]["token_share"] = tokens.get(name, 0) / total_tokens if total_tokens else 0.0
    shares = {
        f"{key}={value}": sum(entry["token_share"] for entry in sources.values() if entry[key] == value)
        for key, values in (("domain", ("general", "medical")), ("kind", ("real", "synthetic")))
        for value in values
    }
    totals = {
        key: sum(entry[key] for entry in sources.values())
        for key in ("raw_documents", "raw_bytes", "documents", "characters", "bytes", "tokens")
    }
    return {
        "name": manifest["name"],
        "sources": sources,
        "totals": totals,
        "token_shares": shares,
        "funnel": funnel(manifest),
        "dropped": manifest["dropped"],
        "identity": manifest["identity"],
        "fingerprint": manifest["fingerprint"],
    }


def funnel(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Documents that are left after each stage, beginning with all rows that were read or failed to be."""
    left = sum(record["documents"] for record in manifest["sources"].values())
    dropped = {
        stage: sum(entry["documents"] for entry in reasons.values()) for stage, reasons in manifest["dropped"].items()
    }
    steps = [{"stage": "rows", "left": left + sum(dropped.values()), "dropped": 0}]
    for stage, count in dropped.items():
        steps.append({"stage": stage, "left": steps[-1]["left"] - count, "dropped": count})
    return steps


def as_markdown(card: Mapping[str, Any], *, picture: str | None) -> str:
    """The card to read."""
    totals = card["totals"]
    lines = [
        f"# Data card: {card['name']}",
        "",
        f"Fingerprint `{card['fingerprint']}`.",
        "",
        "| source | kind | domain | documents | cleaned MB | tokens | share | licence | origin |",
        "|---|---|---|---:|---:|---:|---:|---|---|",
    ]
    for name, entry in card["sources"].items():
        lines.append(
            f"| {name} | {entry['kind']} | {entry['domain']} | {entry['documents']:,} | {entry['bytes'] / 1e6:,.2f} | "
            f"{entry['tokens']:,} | {entry['token_share']:.2%} | {entry['license'] or 'not stated'} | "
            f"{entry['origin'] or ''} |"
        )
    lines.append(
        f"| **total** | | | {totals['documents']:,} | {totals['bytes'] / 1e6:,.2f} | {totals['tokens']:,} | 100% | | |"
    )
    shares = card["token_shares"]
    lines += [
        "",
        f"Medical text is {shares['domain=medical']:.2%} of the tokens, synthetic text {shares['kind=synthetic']:.2%}.",
        "",
        *([f"![token shares and drop funnel]({picture})", ""] if picture else []),
        "## What was left out",
        "",
        "| stage | reason | documents | share of all | MB | sources |",
        "|---|---|---:|---:|---:|---|",
    ]
    rows = card["funnel"][0]["left"]
    for stage, reasons in card["dropped"].items():
        for reason, entry in reasons.items():
            where = ", ".join(f"{name} {count:,}" for name, count in sorted(entry["sources"].items()))
            lines.append(
                f"| {stage} | {reason} | {entry['documents']:,} | {entry['documents'] / rows:.2%} | "
                f"{entry['bytes'] / 1e6:,.2f} | {where} |"
            )
    lines += ["", "```text", *(f"{step['left']:>12,}  after {step['stage']}" for step in card["funnel"]), "```", ""]
    masked = {name: entry["masked"] for name, entry in card["sources"].items() if entry["masked"]}
    if masked:
        lines += ["## Personal data masked", "", "| source | kind | times |", "|---|---|---:|"]
        lines += [f"| {name} | {kind} | {count:,} |" for name, kinds in masked.items() for kind, count in kinds.items()]
        lines.append("")
    lines += ["## Samples of what was left out", ""]
    for stage, reasons in card["dropped"].items():
        for reason, entry in reasons.items():
            lines += [f"**{stage}: {reason}**", ""]
            lines += [_sample(sample) for sample in entry["samples"]] + [""]
    identity = card["identity"]
    lines += [
        "## Made with",
        "",
        f"- cleaner {identity['cleaner']['rules']}, version {identity['cleaner']['version']}",
        f"- analyser {', '.join(f'{key} {value}' for key, value in identity['analyzer'].items())}",
        f"- deduplication {json.dumps(identity['deduplication'])}",
        "",
        "All dropped documents with their reasons: `dropped.jsonl`.",
        "",
    ]
    return "\n".join(lines)


def _sample(sample: Mapping[str, Any]) -> str:
    excerpt = " ".join(str(sample["excerpt"]).split()).replace("`", "'")
    words = f"- {sample['source']}, `{sample['id']}`: {sample['detail']}"
    return f"{words}\n  `{excerpt}`" if excerpt else words


def write_card(directory: Path, card: Mapping[str, Any]) -> list[Path]:
    """card.json, card.md and, where matplotlib is installed, card.png in ``directory``; returns what was written."""
    picture = directory / "card.png"
    drawn = draw_card(card, picture)
    write_json(directory / "card.json", card)
    text = as_markdown(card, picture=picture.name if drawn else None)
    (directory / "card.md").write_text(text, encoding="utf-8", errors="replace")
    return [directory / "card.md", directory / "card.json", *([picture] if drawn else [])]


def draw_card(card: Mapping[str, Any], path: Path) -> bool:
    """Figure 1: token shares as a pie, the drop funnel beside it; False where matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return False
    figure = Figure(figsize=(12, 5), layout="constrained")
    FigureCanvasAgg(figure)
    shares, steps = figure.subplots(1, 2)
    entries = sorted(card["sources"].items(), key=lambda item: -item[1]["token_share"])
    labels = [f"{name}  {entry['token_share']:.1%}  ({_short(entry['tokens'])})" for name, entry in entries]
    wedges, *_ = shares.pie(
        [max(entry["token_share"], 1e-9) for _, entry in entries],
        startangle=90,
        counterclock=False,
        wedgeprops={"linewidth": 0.8, "edgecolor": "white"},
    )
    shares.legend(wedges, labels, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    shares.set_title(f"Tokens of {card['name']}: {_short(card['totals']['tokens'])}")
    names = [step["stage"] for step in card["funnel"]]
    left = [step["left"] for step in card["funnel"]]
    bars = steps.barh(range(len(names)), left, color="#4878a8")
    steps.set_yticks(range(len(names)), names)
    steps.invert_yaxis()
    steps.bar_label(
        bars, [f"{step['left']:,}  (-{step['dropped']:,})" for step in card["funnel"]], padding=4, fontsize=9
    )
    steps.set_xlim(0, max([*left, 1]) * 1.3)
    steps.set_title("Documents left after each step")
    steps.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return True


def _short(count: float) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:,}"
