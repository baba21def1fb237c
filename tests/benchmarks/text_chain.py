"""The text chain beside its peers, on the same text in one run: cleaning, segmentation, ids, training, memory.

    python tests/benchmarks/text_chain.py                               # about 10 minutes on a quiet core
    python tests/benchmarks/text_chain.py --parts chain --megabytes 2   # one part, less text
    python tests/benchmarks/text_chain.py --parts memory --large-megabytes 1000

Text is ``../shared/data`` (or ``--text``), shuffled, the first ``--megabytes`` of it. Figures are MB of raw UTF-8 per
CPU second of this process, one thread, medians over the repeats; ratios are medians of ratios inside one repeat, so a
machine that changes its speed between repeats does not decide them. Where two sides must give the same result it is
asserted or counted. Peers: HojiChar (the cleaning rules as its filters), a bare Sudachi loop over sentences with their
strings, `tokenizers` with Sudachi as its pre-tokenizer, `encode_batch_fast`, MeCab.
"""

import argparse
import contextlib
import csv
import itertools
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import hojichar
import psutil
import tokenizers
from cleaning_filters import as_filters
from sudachipy import Dictionary

from ncvc.corpus.cleaning import Cleaner
from ncvc.corpus.reading.readers import read_documents
from ncvc.corpus.segmented import open_segmented, segment_source
from ncvc.morphology import Analyzer, SudachiAnalyzer, build_analyzer
from ncvc.tokenizer import Tokenizer, segment_text
from ncvc.tokenizer_training import peak_megabytes

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
SENTENCE = re.compile("[^。！？!?]+[。！？!?]*|[。！？!?]+")
BATCH_CHARACTERS = 200_000
LONGEST = 1_000  # characters of a sentence of the bare loop: one of 40,000 would slow all that follow to 60%
PARTS = ("cleaning", "segmentation", "chain", "ids", "training", "workers", "memory")


def texts_of(paths: list[Path]) -> Iterator[str]:
    for path in paths:
        yield from (document.text for document in read_documents(path, on_problem=lambda _: None))


def benchmark_tables() -> Iterator[str]:
    for path in sorted([*(SHARED / "jmed_llm" / "all").glob("*.csv"), *(SHARED / "jmmlu").glob("*.csv")]):
        with path.open(encoding="utf-8", newline="") as handle:
            yield from ("\n".join(filter(None, row)) for row in csv.reader(handle))


def all_text(given: list[Path]) -> list[str]:
    folders = [SHARED / "general_text", SHARED / "medical_text", SHARED / "noisy" / "web_noisy.jsonl.zst"]
    found = texts_of(given) if given else itertools.chain(texts_of(folders), benchmark_tables())
    texts = list(dict.fromkeys(found))
    random.Random(0).shuffle(texts)
    return texts


def first_megabytes(texts: list[str], megabytes: float) -> list[str]:
    sizes = itertools.accumulate(len(text.encode()) for text in texts)
    return [text for text, size in zip(texts, sizes, strict=True) if size <= megabytes * 1e6]


class Race:
    """Times contenders in turn, each once a repeat, and tells rates and ratios."""

    def __init__(self, texts: list[str], *, repeats: int) -> None:
        self.megabytes = sum(len(text.encode()) for text in texts) / 1e6
        self.repeats = repeats
        self.seconds: dict[str, list[float]] = {}

    def run(self, contenders: dict[str, Callable[[], object]]) -> None:
        for work in contenders.values():
            work()  # warm
        for _ in range(self.repeats):
            for name, work in contenders.items():
                started = time.process_time()
                work()
                self.seconds.setdefault(name, []).append(time.process_time() - started)

    def rate(self, name: str) -> float:
        return self.megabytes / statistics.median(self.seconds[name])

    def ratio(self, name: str, peer: str) -> float:
        pairs = zip(self.seconds[peer], self.seconds[name], strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)


def line(what: str, figure: str, target: str = "") -> None:
    print(f"{what:<66} {figure:>22}   {target}", flush=True)


# --- cleaning ---
def cleaning(texts: list[str], arguments: argparse.Namespace) -> None:
    cleaner, compose = Cleaner(), hojichar.Compose(as_filters())
    race = Race(texts, repeats=arguments.repeats)
    race.run(
        {
            "ours": lambda: [cleaner(text) for text in texts],
            "HojiChar": lambda: [compose(text) for text in texts],
        }
    )
    same = sum(cleaner(text) == compose(text) for text in texts) / len(texts)
    line("cleaning, MB/s", f"{race.rate('ours'):.1f}")
    line("  15 HojiChar filters of the same rules, once through, MB/s", f"{race.rate('HojiChar'):.1f}")
    line("  ours / HojiChar", f"{race.ratio('ours', 'HojiChar'):.2f}", "at least 4")
    line("  documents with the same result", f"{same:.1%}", "(theirs are simpler and not idempotent)")


# --- segmentation and ids ---
def by_batches(texts: list[str]) -> Iterator[list[str]]:
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def bare_loop(cleaned: list[str]) -> Callable[[], object]:
    """Sudachi as one would write it: sentences, cut beforehand, each to the list of its surfaces."""
    tokenize = Dictionary(dict="core").tokenizer(mode="C", fields={"pos", "normalized_form"}).tokenize
    sentences = [part for text in cleaned for row in text.split("\n") for part in SENTENCE.findall(row)]
    sentences = [part[start : start + LONGEST] for part in sentences for start in range(0, len(part), LONGEST)]

    def run() -> None:
        for sentence in sentences:
            [morpheme.surface() for morpheme in tokenize(sentence)]

    return run


def forgetful(analyzer: SudachiAnalyzer) -> SudachiAnalyzer:
    """The analyser without the short sentences it remembers: a repeat must not gain from the one before."""
    analyzer._joined.clear()
    return analyzer


def segmentation(texts: list[str], arguments: argparse.Namespace) -> None:
    cleaner, analyzer = Cleaner(), build_analyzer()
    cleaned = [cleaner(text) for text in texts]
    contenders: dict[str, Callable[[], object]] = {
        "ours": lambda: forgetful(analyzer) and [segment_text(text, analyzer=analyzer) for text in cleaned],
        "bare": bare_loop(cleaned),
    }
    mecab = mecab_analyzer()
    if mecab is not None:
        contenders["mecab"] = lambda: [segment_text(text, analyzer=mecab) for text in cleaned]
    race = Race(texts, repeats=arguments.repeats)
    race.run(contenders)
    line("segmentation (Sudachi core, C), MB/s", f"{race.rate('ours'):.2f}")
    line("  bare Sudachi loop by sentence with strings, MB/s", f"{race.rate('bare'):.2f}")
    line("  ours / bare", f"{race.ratio('ours', 'bare'):.3f}", "about 1")
    if mecab is not None:
        line("  ours with MeCab (ipadic), MB/s", f"{race.rate('mecab'):.2f}")


def mecab_analyzer() -> Analyzer | None:
    try:
        return build_analyzer("mecab", mode=None, dictionary="ipadic")
    except ModuleNotFoundError as error:
        print(f"left out: {error}")
        return None


def trained_on(cleaned: list[str], *, vocab_size: int) -> Tokenizer:
    analyzer = build_analyzer()
    segmented = [segment_text(text, analyzer=analyzer) for text in cleaned]
    return Tokenizer.train(
        segmented,
        vocab_size=vocab_size,
        cleaner=Cleaner(),
        analyzer=analyzer,
        character_coverage=0.9998,
        progress=False,
    )


def saved_model(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        return tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))


def with_sudachi_inside(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """`tokenizers` with Sudachi as its pre-tokenizer, set up so that it cuts words as Sudachi alone does."""
    model = saved_model(tokenizer)
    model.pre_tokenizer = Dictionary(dict="core").pre_tokenizer(
        mode="C",
        handler=lambda _, whole, found: [whole[m.begin() : m.end()] for m in found if m.end() > m.begin()],
        fields={"pos", "normalized_form"},
    )
    return model


def chain(texts: list[str], arguments: argparse.Namespace) -> None:
    cleaner = Cleaner()
    cleaned = [cleaner(text) for text in texts]
    tokenizer = trained_on(cleaned, vocab_size=arguments.vocab_size)
    model = with_sudachi_inside(tokenizer)

    def theirs() -> list[list[int]]:
        """Each line by sentences, as ours; a line end is one id."""
        found = []
        for text in map(cleaner, texts):
            rows = [SENTENCE.findall(row) for row in text.split("\n")]
            encoded = iter(model.encode_batch([part for row in rows for part in row], add_special_tokens=False))
            of_rows = [[id for _ in row for id in next(encoded).ids] for row in rows]
            found.append([id for number, row in enumerate(of_rows) for id in ([2, *row] if number else row)])
        return found

    mecab = mecab_analyzer()
    contenders: dict[str, Callable[[], object]] = {
        "ours": lambda: (
            forgetful(tokenizer.analyzer) and [tokenizer.encode_batch(batch) for batch in by_batches(texts)]
        ),
        "one by one": lambda: forgetful(tokenizer.analyzer) and [tokenizer.encode(text) for text in texts],
        "bare": bare_loop(cleaned),
        "tokenizers": theirs,
    }
    if mecab is not None:
        other = Tokenizer(
            list(zip(tokenizer.pieces, (score for _, score in tokenizer._scored), strict=True)),
            cleaner=cleaner,
            analyzer_identity=mecab.identity,
            analyzer=mecab,
        )
        contenders["mecab"] = lambda: [other.encode_batch(batch) for batch in by_batches(texts)]
    ours = [ids for batch in by_batches(texts) for ids in tokenizer.encode_batch(batch)]
    same = sum(a == b for a, b in zip(ours, theirs(), strict=True))
    race = Race(texts, repeats=arguments.repeats)
    race.run(contenders)
    line("raw text to ids, MB/s", f"{race.rate('ours'):.2f}")
    line("  one document at a time, MB/s", f"{race.rate('one by one'):.2f}")
    line(
        "  ours / bare Sudachi loop (which neither cleans nor looks up)", f"{race.ratio('ours', 'bare'):.3f}", ">= 0.85"
    )
    line("  one document at a time / bare Sudachi loop", f"{race.ratio('one by one', 'bare'):.3f}")
    line("  cleaner + tokenizers with Sudachi inside, MB/s", f"{race.rate('tokenizers'):.2f}")
    line("  ours / tokenizers with Sudachi inside", f"{race.ratio('ours', 'tokenizers'):.2f}", "at least 2")
    line("  documents with identical ids", f"{same} of {len(texts)}", "all")
    if mecab is not None:
        line("  ours with MeCab (ipadic), MB/s", f"{race.rate('mecab'):.2f}")
    hours = 32_000 / race.rate("ours") / 3600
    line("  32 GB at this rate", f"{hours:.1f} core-hours", f"{hours / 16:.2f} h on 16 cores")


def ids(texts: list[str], arguments: argparse.Namespace) -> None:
    cleaner, analyzer = Cleaner(), build_analyzer()
    cleaned = [cleaner(text) for text in texts]
    tokenizer = trained_on(cleaned, vocab_size=arguments.vocab_size)
    model = saved_model(tokenizer)
    segmented = [segment_text(text, analyzer=analyzer) for text in cleaned]
    ours = [tokenizer.encode_segmented(words) for words in segmented]
    same = sum(a == b.ids for a, b in zip(ours, model.encode_batch_fast(segmented), strict=True))
    race = Race(texts, repeats=arguments.repeats)
    race.run(
        {
            "ours": lambda: [tokenizer.encode_segmented(words) for words in segmented],
            "fast": lambda: [encoded.ids for encoded in model.encode_batch_fast(segmented)],
        }
    )
    line("words to ids, warm, MB/s", f"{race.rate('ours'):.1f}")
    line("  encode_batch_fast, MB/s", f"{race.rate('fast'):.1f}")
    line("  ours / encode_batch_fast", f"{race.ratio('ours', 'fast'):.2f}", "at least 4")
    line("  documents with identical ids", f"{same} of {len(texts)}", "all without special tokens in them")


# --- training, scaling, memory ---
def write_jsonl(texts: Iterator[str], path: Path) -> None:
    with path.open("w", encoding="utf-8") as handle:
        for number, text in enumerate(texts):
            handle.write(json.dumps({"id": str(number), "text": text}, ensure_ascii=False) + "\n")


TRAIN = """
import sys, time
from pathlib import Path
from ncvc.corpus.segmented import open_segmented
from ncvc.tokenizer import INITIAL_ALPHABET
from ncvc.tokenizer_training import Sample, peak_megabytes
from ncvc.unigram import learn_pieces
store = open_segmented(Path(sys.argv[1]))
started = time.process_time()
learned = learn_pieces(Sample([store], megabytes=1e6), most_pieces=32508, alphabet=INITIAL_ALPHABET,
    shrinking_factor=0.75, max_piece_length=16, n_sub_iterations=8, character_coverage=0.9998, progress=False)
print(store.bytes / 1e6, time.process_time() - started, peak_megabytes(), learned.distinct_words, len(learned.pieces))
"""


def training(texts: list[str], arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_jsonl(iter(first_megabytes(arguments.every, 50)), root / "text.jsonl")
        segment_source(
            root / "text.jsonl",
            output=root / "store",
            cleaner=Cleaner(),
            analyzer_identity=build_analyzer().identity,
            workers=len(os.sched_getaffinity(0)),
            progress=False,
        )
        done = subprocess.run(
            [sys.executable, "-c", TRAIN, str(root / "store")], capture_output=True, text=True, check=True
        )
    megabytes, seconds, peak, words, pieces = map(float, done.stdout.split())
    line(f"Unigram training on {megabytes:.1f} MB, {words:,.0f} distinct words", f"{seconds:.1f} CPU s", "under 30")
    line(f"  peak memory of its process ({pieces:,.0f} pieces)", f"{peak:.0f} MB", "under 300")


def workers(texts: list[str], arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_jsonl(iter(first_megabytes(arguments.every, 4 * arguments.megabytes)), root / "text.jsonl")
        identity, seconds = build_analyzer().identity, {1: [], 2: []}
        for _ in range(max(1, arguments.repeats // 2)):
            for number in (1, 2):
                started = time.perf_counter()
                segment_source(
                    root / "text.jsonl",
                    output=root / "store",
                    cleaner=Cleaner(),
                    analyzer_identity=identity,
                    workers=number,
                    progress=False,
                )
                seconds[number].append(time.perf_counter() - started)
        size = (root / "text.jsonl").stat().st_size / 1e6
    ratio = statistics.median(one / two for one, two in zip(seconds[1], seconds[2], strict=True))
    line(
        f"segment_source, {size:.0f} MB, wall: 1 worker, 2 workers", f"{min(seconds[1]):.1f} s, {min(seconds[2]):.1f} s"
    )
    line("  2 workers / 1 worker", f"{ratio:.2f}", f"at least 1.8 (load {os.getloadavg()[0]:.1f})")


SEGMENT = """
import sys
from pathlib import Path
from ncvc.corpus.cleaning import Cleaner
from ncvc.corpus.segmented import segment_source
from ncvc.morphology import build_analyzer
segment_source(Path(sys.argv[1]), output=Path(sys.argv[2]), cleaner=Cleaner(),
    analyzer_identity=build_analyzer().identity, workers=int(sys.argv[3]), progress=False)
"""


def varied(texts: list[str], megabytes: float) -> Iterator[str]:
    """The texts again and again, their lines in another order and numbered each time, up to a size."""
    total, chance = 0, random.Random(0)
    for number in itertools.count():
        rows = texts[number % len(texts)].split("\n")
        chance.shuffle(rows)
        text = f"文書{number}。" + "\n".join(rows)
        total += len(text.encode())
        if total > megabytes * 1e6:
            return
        yield text


def watched(command: list[str]) -> tuple[float, float]:
    """Run a program; the most resident memory (MB) of itself and of any process it started, seen twice a second."""
    running = psutil.Popen(command)
    own = others = 0.0
    while running.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            own = max(own, running.memory_info().rss / 1e6)
            for child in running.children(recursive=True):
                others = max(others, child.memory_info().rss / 1e6)
        time.sleep(0.5)
    if running.returncode:
        raise subprocess.CalledProcessError(running.returncode, command)
    return own, others


def memory(texts: list[str], arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for megabytes in (arguments.large_megabytes / 8, arguments.large_megabytes):
            write_jsonl(varied(arguments.every, megabytes), root / "text.jsonl")
            started = time.perf_counter()
            command = [sys.executable, "-c", SEGMENT, str(root / "text.jsonl"), str(root / "store"), "2"]
            parent, worker = watched(command)
            wall = time.perf_counter() - started
            store = open_segmented(root / "store")
            line(
                f"segment_source, {megabytes:.0f} MB, 2 workers: peak of the parent, of a worker",
                f"{parent:.0f} MB, {worker:.0f} MB",
                f"under 2048 and flat ({store.num_documents:,} documents, {wall:.0f} s)",
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, nargs="*", default=[], help="files or folders; else ../shared/data")
    parser.add_argument("--megabytes", type=float, default=5.0)
    parser.add_argument("--large-megabytes", type=float, default=0.0, help="of the memory part; 0 leaves it out")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--vocab-size", type=int, default=16_384)
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    arguments = parser.parse_args()
    arguments.every = all_text(arguments.text)
    texts = first_megabytes(arguments.every, arguments.megabytes)
    print(f"{len(texts):,} documents, {sum(len(text.encode()) for text in texts) / 1e6:.2f} MB; load {os.getloadavg()}")
    for part in arguments.parts:
        if part != "memory" or arguments.large_megabytes:
            globals()[part](texts, arguments)
    line("peak memory of this program", f"{peak_megabytes():.0f} MB")


if __name__ == "__main__":
    main()
