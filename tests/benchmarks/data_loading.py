"""Reading packed tokens beside litdata's StreamingDataset: the same tokens, window, batch and final type.

    python tests/benchmarks/data_loading.py

20 M random tokens, windows of 2,049, shuffled, batches of 8 as int64, page cache warm, no worker processes. Figures are
million tokens per CPU second of this process (every thread counts), medians over the repeats. Equal work is asserted:
both sides deliver the same number of tokens, to 1% (litdata drops the rest of each chunk, ours shares one token).
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import litdata
import numpy as np
import torch
from litdata.streaming.item_loader import TokensLoader

from ncvc.corpus.segmented import SegmentedDocument
from ncvc.sampling import SampleOrder
from ncvc.shards import PackedWindows, write_tokens

WINDOW, ROWS, VOCAB = 2049, 8, 32_768


class Numbered:
    """Stands where a tokenizer does: document number -> its ready ids, so that only storage is measured."""

    vocab_size, fingerprint, begin_id, end_id = VOCAB, "numbered", 0, 1

    def __init__(self, documents: list[list[int]]) -> None:
        self.documents = documents

    def encode_segmented(self, number: str) -> list[int]:
        return self.documents[int(number)]


def token_chunk(index: int) -> Iterator[torch.Tensor]:
    generator = np.random.default_rng(index)
    for _ in range(20):
        yield torch.from_numpy(generator.integers(2, VOCAB, 100_000).astype(np.uint16))


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def rate(read: Callable[[], int]) -> tuple[float, int]:
    """Million tokens per CPU second, and how many were read."""
    started = time.process_time()
    tokens = read()
    return tokens / (time.process_time() - started) / 1e6, tokens


def read_ours(windows: PackedWindows, order: SampleOrder, epoch: int) -> int:
    batches = len(windows) // ROWS
    tokens = 0
    for step in range(epoch * batches, (epoch + 1) * batches):
        _, places = order.global_batch(step, ROWS)
        tokens += torch.from_numpy(windows.gather(places)).numel()
    return tokens


def read_litdata(folder: Path, epoch: int) -> int:
    loader = TokensLoader(block_size=WINDOW)
    dataset = litdata.StreamingDataset(str(folder), item_loader=loader, shuffle=True, seed=epoch)
    tokens, rows = 0, []
    for row in dataset:
        rows.append(row)
        if len(rows) == ROWS:
            tokens += torch.stack(rows).to(torch.int64).numel()
            rows = []
    return tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--chunks", type=int, default=10, help="of 2 M tokens each")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp())
    try:
        stream = np.concatenate([piece.numpy() for index in range(arguments.chunks) for piece in token_chunk(index)])
        documents = [stream[start : start + 1000].tolist() for start in range(0, len(stream), 1000)]
        file = write_tokens(
            (SegmentedDocument(str(number), "") for number in range(len(documents))),
            tokenizer=Numbered(documents),
            directory=root / "ours",
            source_fingerprint="",
            progress=False,
        )
        peer = root / "litdata"
        litdata.optimize(
            token_chunk,
            list(range(arguments.chunks)),
            str(peer),
            chunk_bytes="64MB",
            num_workers=1,
            item_loader=TokensLoader(block_size=WINDOW),
        )
        windows = PackedWindows(file, context_length=WINDOW - 1)
        order = SampleOrder([len(windows)], fingerprints=[windows.fingerprint], seed=0)
        ours, theirs = [], []
        for epoch in range(arguments.repeats):
            speed, read = rate(lambda epoch=epoch: read_ours(windows, order, epoch))
            peer_speed, peer_read = rate(lambda epoch=epoch: read_litdata(peer, epoch))
            assert abs(read / peer_read - 1) < 0.01, f"not the same work: {read} and {peer_read} tokens"
            ours.append(speed)
            theirs.append(peer_speed)
        print(
            json.dumps(
                {
                    "tokens": len(stream),
                    "mtok_per_cpu_second": {
                        "ncvc": round(statistics.median(ours)),
                        "litdata": round(statistics.median(theirs)),
                    },
                    "ratio": round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 2),
                    "bytes_per_token": {
                        "ncvc": round(bytes_of(root / "ours") / file.tokens, 4),
                        "ncvc_tokens_alone": round((root / "ours" / "tokens.bin").stat().st_size / file.tokens, 4),
                        "litdata": round(bytes_of(peer) / len(stream), 4),
                    },
                }
            )
        )
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
