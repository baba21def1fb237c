"""Near duplicates beside datatrove's own MinHash stages: speed, planted copies found, documents lost, memory.

    python tests/benchmarks/deduplication.py TEXT.jsonl.gz [TEXT.jsonl.gz ...] --documents 2500 --repeats 3

TEXT holds one JSON object with "text" per line. Cleaned texts are cut into documents of 200 to 4,000 characters; copies
of a fifth of them, with 0 to 2 percent of the characters replaced, dropped or added, are shuffled in. Every variant
reads the same JSONL in a process of its own. Rates are MB of text per CPU second, signatures with reading; medians of
the repeats, in turn. "found": copies of which one document is gone; "lost": originals of which nothing is left.

datatrove's Japanese tokenizer needs spaCy; where that is missing its words come from SudachiPy itself, which spaCy
calls too, so the figure flatters it. "datatrove, characters" is datatrove's code with single characters as words.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ncvc.corpus.cleaning import Cleaner
from ncvc.corpus.duplicates.deduplication import DeduplicationSettings, minhash_stages, rows_to_remove

EDITS = (0.0, 0.005, 0.01, 0.02)


# --- the text
def documents_of(paths: list[Path], count: int, generator: random.Random) -> list[str]:
    cleaner, found = Cleaner(), {}
    for path in paths:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            for line in lines:
                cleaned, start = cleaner(json.loads(line)["text"]), 0
                while len(cleaned) - start >= 200:
                    size = generator.choice((200, 400, 800, 1500, 4000))
                    found[cleaned[start : start + size]] = None
                    start += size
    every = [text for text in found if len(text) >= 200]
    if len(every) < count:
        raise SystemExit(f"{len(every)} documents in {[*map(str, paths)]}: give more text or --documents {len(every)}")
    return generator.sample(every, count)


def edited(text: str, share: float, generator: random.Random) -> str:
    out = []
    for character in text:
        kind = generator.randrange(3) if generator.random() < share else 3
        out.append(("鵺", "", character + "鵺", character)[kind])
    return "".join(out)


def write_rows(path: Path, originals: list[str], generator: random.Random) -> list[int]:
    """Write the shuffled rows; the number of the original of each."""
    rows = list(enumerate(originals))
    for number in generator.sample(range(len(originals)), len(originals) // 5):
        rows.append((number, edited(originals[number], generator.choice(EDITS), generator)))
    generator.shuffle(rows)
    lines = [json.dumps({"id": str(number), "text": text}, ensure_ascii=False) for number, text in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [number for number, _ in rows]


# --- the variants, each in a process of its own
def read(path: Path) -> Iterator[Any]:
    from datatrove.data import Document

    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield Document(**json.loads(line))


def run_ours(path: Path, folder: Path, settings: DeduplicationSettings) -> tuple[float, float, list[int]]:
    seconds = []
    for name, (step,), tasks in minhash_stages([], tasks=1, work_folder=folder, settings=settings):
        started = time.process_time()
        for rank in range(tasks):
            step(read(path) if name == "signatures" else None, rank, tasks)
        seconds.append(time.process_time() - started)
    return seconds[0], sum(seconds[1:]), rows_to_remove(folder, 0).tolist()


def run_datatrove(path: Path, folder: Path, words: Callable[[], Any]) -> tuple[float, float, list[int]]:
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.utils.hashing import HashConfig

    config = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8, hash_config=HashConfig(precision=64))
    signatures, pairs, clusters = (str(folder / name) for name in ("signatures", "pairs", "clusters"))
    step = MinhashDedupSignature(signatures, config=config, language=words())
    hash_of = step._hash_func
    step._hash_func = lambda text: hash_of(text.encode())  # xxhash 4 takes bytes alone; datatrove 0.10 gives it text
    started = time.process_time()
    step.run(read(path), 0, 1)
    first = time.process_time() - started
    for rank in range(14):
        MinhashDedupBuckets(signatures, pairs, config=config).run(None, rank, 14)
    MinhashDedupCluster(pairs, clusters, config=config).run(None, 0, 1)
    removed = np.fromfile(folder / "clusters" / "000000.remove", dtype="<u4")
    return first, time.process_time() - started - first, removed.tolist()


def japanese_words() -> Any:
    """datatrove's tokenizer, or Sudachi alone where spaCy is missing."""
    from datatrove.utils.typeshelper import Languages
    from datatrove.utils.word_tokenizers import load_word_tokenizer

    try:
        tokenizer = load_word_tokenizer(Languages.japanese)
        tokenizer.word_tokenize("試す。")
        return tokenizer
    except ImportError:
        from sudachipy import Dictionary

        sudachi = Dictionary().create()
        return words_by(lambda text: [m.surface() for part in text.split("。") for m in sudachi.tokenize(part)])


def single_characters() -> Any:
    return words_by(lambda text: [character for character in text if not character.isspace()])


def words_by(split: Callable[[str], list[str]]) -> Any:
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Words(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return split(text)

        def sent_tokenize(self, text: str) -> list[str]:
            return [text]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return [(0, len(text))]

    return Words()


def settings_of(buckets: int, hashes: int) -> DeduplicationSettings:
    return DeduplicationSettings(exact=False, minhash=True, buckets=buckets, hashes_per_bucket=hashes)


VARIANTS: dict[str, Callable[[Path, Path], tuple[float, float, list[int]]]] = {
    "ours, 20 x 6 (default)": lambda path, folder: run_ours(path, folder, settings_of(20, 6)),
    "ours, 14 x 8": lambda path, folder: run_ours(path, folder, settings_of(14, 8)),
    "datatrove, characters": lambda path, folder: run_datatrove(path, folder, single_characters),
    "datatrove, Japanese words": lambda path, folder: run_datatrove(path, folder, japanese_words),
}


def peak_mebibytes() -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path, nargs="+")
    parser.add_argument("--documents", type=int, default=2500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ["LOGURU_LEVEL"] = "ERROR"
    if arguments.variant:
        with tempfile.TemporaryDirectory() as folder:
            first, rest, removed = VARIANTS[arguments.variant](arguments.text[0], Path(folder))
        print(json.dumps({"signatures": first, "rest": rest, "removed": removed, "memory": peak_mebibytes()}))
        return
    generator = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        originals = documents_of(arguments.text, arguments.documents, generator)
        numbers = write_rows(path, originals, generator)
        megabytes = sum(len(json.loads(line)["text"].encode()) for line in path.open(encoding="utf-8")) / 1e6
        copies = len(numbers) - len(originals)
        print(f"{len(numbers):,} documents, {megabytes:.1f} MB, {copies} of them copies")
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}
        for _ in range(arguments.repeats):
            for name, results in runs.items():
                command = [sys.executable, __file__, str(path), "--variant", name]
                found = subprocess.run(
                    command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
                )
                results.append(json.loads(found.stdout.splitlines()[-1]))
    print(f"{'variant':27} signatures MB/s  other stages s  found of {copies}      lost  peak MiB")
    for name, results in runs.items():
        assert all(result["removed"] == results[0]["removed"] for result in results), "not deterministic"
        removed = set(results[0]["removed"])
        left = [number for row, number in enumerate(numbers) if row not in removed]
        both = len(left) - len(set(left))
        rate = megabytes / statistics.median(result["signatures"] for result in results)
        rest, memory = (statistics.median(result[key] for result in results) for key in ("rest", "memory"))
        share = (copies - both) / copies
        lost = len(originals) - len(set(left))
        print(f"{name:27} {rate:15.2f}  {rest:14.2f}  {copies - both:4} = {share:6.1%}  {lost:8}  {memory:8.0f}")


if __name__ == "__main__":
    main()
