"""Quality rules beside HojiChar's document filters of the same kinds: MB of UTF-8 per CPU second, and what each drops.

    python tests/benchmarks/quality.py TEXT.jsonl.gz [TEXT.jsonl.gz ...] --repeats 5

TEXT holds one JSON object with "text" per line; texts are cleaned first. Both judge the same texts in one process, in
turn; medians. The kinds are those of conf/quality/web.yaml that HojiChar has too: length, Japanese, sentences, short
lines, ellipses, repetition, adult words (its list is longer and holds single words such as アス). Thresholds differ, so
the shares dropped are told, not compared. HojiChar stops at the first broken rule; ours measures all of them always.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from omegaconf import OmegaConf

from ncvc.config import CONF_DIRECTORY
from ncvc.corpus.cleaning import Cleaner
from ncvc.corpus.quality.rules import QualityRules, QualitySettings


def our_reasons(preset: str) -> Callable[[str], str | None]:
    values = OmegaConf.to_container(OmegaConf.load(CONF_DIRECTORY / "quality" / f"{preset}.yaml"))
    rules = QualityRules(QualitySettings(**values))
    return lambda text: rules(text).reason


def hojichar_reasons() -> Callable[[str], str | None]:
    from hojichar import Compose, Document
    from hojichar.filters import document_filters as filters

    chosen = [
        filters.DocumentLengthFilter(min_doc_len=100, max_doc_len=1_000_000),
        filters.AcceptJapanese(),
        filters.DiscardRareKuten(),
        filters.DiscardTooShortLines(),
        filters.DiscardTooManyEndingEllipsis(),
        filters.SingleCharacterRepetitionFilter(),
        filters.CharRepetitionRatioFilter(threshold=0.33, ngram_size=5),
        filters.DiscardAdultContentJa(),
    ]
    compose = Compose(chosen)

    def reason(text: str) -> str | None:
        document = compose.apply(Document(text))
        return str(document.reject_reason.get("name", "rejected")) if document.is_rejected else None

    return reason


def read(path: Path) -> list[str]:
    cleaner = Cleaner()
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        return [cleaner(json.loads(line)["text"]) for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path, nargs="+")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    judges = {
        "ours, web": our_reasons("web"),
        "ours, clinical": our_reasons("clinical"),
        "HojiChar": hojichar_reasons(),
    }
    for path in arguments.text:
        texts = read(path)
        megabytes = sum(len(text.encode()) for text in texts) / 1e6
        seconds: dict[str, list[float]] = {name: [] for name in judges}
        reasons: dict[str, Counter[str]] = {}
        for _ in range(arguments.repeats):
            for name, judge in judges.items():
                started = time.process_time()
                found = [judge(text) for text in texts]
                seconds[name].append(time.process_time() - started)
                reasons[name] = Counter(reason for reason in found if reason is not None)
        print(f"{path.name}: {len(texts):,} documents, {megabytes:.1f} MB")
        for name, times in seconds.items():
            rate = megabytes / statistics.median(times)
            dropped = reasons[name].total() / len(texts)
            why = ", ".join(f"{reason} {count}" for reason, count in reasons[name].most_common())
            print(f"  {name:15} {rate:7.1f} MB/s, drops {dropped:6.1%}: {why or 'nothing'}")


if __name__ == "__main__":
    main()
