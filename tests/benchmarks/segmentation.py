"""Segmentation beside its peers: the same cleaned text, one process, MB of UTF-8 per CPU second.

    python tests/benchmarks/segmentation.py [--text FILE.jsonl.gz ...] [--names FILE.csv.gz]
        [--vibrato-dictionary FOLDER_OR_FILE] [--megabytes 2] [--repeats 5]

Peers: a bare SudachiPy loop by sentence that takes the strings; Sudachi as the pre-tokenizer of the package tokenizers,
with the handler that cuts the same words; bare fugashi and vibrato loops by line. All run in turn within each repeat;
medians of the repeats, and each one's share of the bare Sudachi loop (median of the ratios). Equal work is asserted:
the words of every row join to the text, and those of the Sudachi rows are the same. The user dictionary holds the names
of --names (MANBYO's form).
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tokenizers import NormalizedString, PreTokenizedString

from ncvc.analyzers.lexicon import LexiconSettings, read_lexicon
from ncvc.analyzers.user_dictionary import build_user_dictionary
from ncvc.corpus.cleaning import Cleaner
from ncvc.morphology import build_analyzer

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
TEXTS = [DATA / "general_text" / "wiki_ja.jsonl.gz", DATA / "medical_text" / "wiki_medical.jsonl.gz"]
NAMES = DATA / "disease_names" / "manbyo_surface_forms.csv.gz"
SENTENCE = re.compile("[^。！？!?]+[。！？!?]*|[。！？!?]+")
Loop = Callable[[list[str]], list[list[str]]]


def cleaned_lines(paths: list[Path], *, megabytes: float) -> list[str]:
    """Cleaned lines of the files, about as much of each."""
    cleaner, lines = Cleaner(), []
    for path in paths:
        size = 0
        with gzip.open(path, "rt", encoding="utf-8") as rows:
            for row in rows:
                kept = [line for line in cleaner(json.loads(row)["text"]).split("\n") if line]
                lines += kept
                size += sum(len(line.encode()) for line in kept)
                if size > megabytes * 1e6 / len(paths):
                    break
    return lines


def bare_sudachi() -> Loop:
    from sudachipy import Dictionary

    tokenize = Dictionary(dict="core").tokenizer(mode="C").tokenize
    return lambda lines: [
        [m.surface() for sentence in SENTENCE.findall(line) for m in tokenize(sentence)] for line in lines
    ]


def pre_tokenizer_of_tokenizers() -> Loop:
    from sudachipy import Dictionary

    def words(index: int, original: NormalizedString, morphemes) -> list[NormalizedString]:
        return [original[m.begin() : m.end()] for m in morphemes if m.end() > m.begin()]

    pre_tokenizer = Dictionary(dict="core").pre_tokenizer(mode="C", handler=words, fields={"pos", "normalized_form"})

    def loop(lines: list[str]) -> list[list[str]]:
        found = []
        for line in lines:
            row: list[str] = []
            for sentence in SENTENCE.findall(line):
                text = PreTokenizedString(sentence)
                pre_tokenizer.pre_tokenize(text)
                row += [piece for piece, _, _ in text.get_splits()]
            found.append(row)
        return found

    return loop


def bare_fugashi() -> Loop:
    import fugashi
    import ipadic

    parse = fugashi.GenericTagger(f"{ipadic.MECAB_ARGS} -Owakati").parse
    return lambda lines: [parse(line).split() for line in lines]


def by_line(segment: Callable[[str], list[str]]) -> Loop:
    return lambda lines: list(map(segment, lines))


def loops(arguments: argparse.Namespace, folder: Path) -> dict[str, Loop]:
    analyzer = build_analyzer()
    found = {
        "bare Sudachi loop": bare_sudachi(),
        "ncvc sudachi": by_line(analyzer.segment),
        "ncvc sudachi, joined words": lambda lines: [analyzer.segment_joined(line).split(" ") for line in lines],
        "tokenizers with Sudachi": pre_tokenizer_of_tokenizers(),
    }
    if arguments.names is not None:
        files = {"names": {"path": str(arguments.names), "format": "manbyo"}}
        entries = read_lexicon(LexiconSettings(files=files)).entries
        for name in ("sudachi", "mecab"):
            user = build_user_dictionary(entries, directory=folder, analyzer=name)
            label = f"ncvc {name}, {user.manifest['names']:,} names"
            found[label] = by_line(build_analyzer(name, user_dictionary=user.folder).segment)
    found["bare fugashi loop (ipadic)"] = bare_fugashi()
    found["ncvc mecab (ipadic)"] = by_line(build_analyzer("mecab").segment)
    found["ncvc mecab (unidic-lite)"] = by_line(build_analyzer("mecab", dictionary="unidic-lite").segment)
    if arguments.vibrato_dictionary is not None:
        vibrato = build_analyzer("vibrato", dictionary=str(arguments.vibrato_dictionary))
        found["bare vibrato loop"] = by_line(vibrato._cut)
        found["ncvc vibrato"] = by_line(vibrato.segment)
    return found


def check(name: str, words: list[list[str]], lines: list[str], reference: list[list[str]]) -> None:
    assert ["".join(row) for row in words] == lines, f"{name} lost text"
    if "udachi" in name and "names" not in name:
        assert [[word for word in row if word] for row in words] == reference, f"{name} cuts other words"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", nargs="+", type=Path, default=TEXTS)
    parser.add_argument("--names", type=Path, default=NAMES if NAMES.is_file() else None)
    parser.add_argument("--vibrato-dictionary", type=Path)
    parser.add_argument("--megabytes", type=float, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    lines = cleaned_lines(arguments.text, megabytes=arguments.megabytes)
    size = sum(len(line.encode()) for line in lines) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        compared = loops(arguments, Path(folder))
        reference = [[word for word in row if word] for row in compared["bare Sudachi loop"](lines)]
        rates: dict[str, list[float]] = {name: [] for name in compared}
        for repeat in range(arguments.repeats):
            for name, loop in compared.items():
                started = time.process_time()
                words = loop(lines)
                rates[name].append(size / (time.process_time() - started))
                if repeat == 0:
                    check(name, words, lines, reference)
    print(f"{size:.1f} MB in {len(lines):,} lines, medians of {arguments.repeats}\n")
    print("| | MB per CPU second | of the bare Sudachi loop |\n|---|---|---|")
    for name, values in rates.items():
        ratios = [own / bare for own, bare in zip(values, rates["bare Sudachi loop"], strict=True)]
        print(f"| {name} | {statistics.median(values):.2f} | {statistics.median(ratios):.2f} |")


if __name__ == "__main__":
    main()
