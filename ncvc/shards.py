"""Token files, and windows of tokens cut from them (R61).

A token file is a folder: tokens.bin (little-endian uint16, uint32 when the vocabulary exceeds 65,536),
documents.npy (uint64, where each document starts) and manifest.json. A document is its begin id, its ids and
its end id; documents follow each other.

`PackedWindows` cuts windows of context_length + 1 tokens (inputs, and the same shifted by one as labels):
  concatenate  windows follow each other through the stream wherever documents end; neighbours share one
               token, so every token but the first is a label once and only a tail shorter than a window is
               dropped.
  truncate     every window begins at the start of a document and takes the documents that follow; the last
               one is cut and its rest dropped. `dropped_share` tells how much that costs.

Cost: 2 bytes a token on disk, memory-mapped, so as good as none in memory; gathering a batch is one strided
copy and a cast to int64 (2,500 million tokens per CPU second in cache). Writing is bound by the tokenizer.
Memory while writing: about 20 MB.
Refused by name: truncated, altered, foreign or outdated files, another tokenizer's, ids outside the
vocabulary.
Does not: shuffle (ncvc/sampling.py does), mask attention between documents, or keep the documents' ids.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

import numpy as np
from numpy.lib.stride_tricks import as_strided
from tqdm import tqdm

from ncvc.corpus.segmented import SegmentedCorpus, SegmentedDocument
from ncvc.storage import (
    atomic_directory,
    check_file,
    file_record,
    hash_json,
    read_manifest,
    require_free_space,
    write_manifest,
)
from ncvc.tokenizer import Tokenizer

FORMAT, VERSION = "ncvc-tokens", 1
SPLIT_FORMAT, SPLIT_VERSION = "ncvc-tokens-split", 1
PACKING_VERSION = 1  # raise it when the same token file would be cut into other windows
Packing = Literal["concatenate", "truncate"]

_FLUSH_TOKENS = 1 << 20
_MANIFEST_KEYS = {
    "dtype",
    "vocab_size",
    "tokens",
    "documents",
    "characters",
    "tokenizer_fingerprint",
    "source_fingerprint",
    "split",
    "files",
}


class TokenWriter:
    """Writes one token file into an existing empty folder, document by document; `finish` completes it."""

    def __init__(self, directory: Path, *, tokenizer: Tokenizer) -> None:
        self.directory = directory
        self.tokenizer = tokenizer
        self.dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
        self.tokens = self.documents = self.characters = 0
        self._ids: list[int] = []
        self._starts: list[int] = []
        self._tokens_handle = (directory / "tokens.bin").open("wb")
        self._starts_handle = (directory / "documents.npy").open("wb")
        self._write_starts_header()

    def __enter__(self) -> TokenWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tokens_handle.close()
        self._starts_handle.close()

    def add(self, segmented: str) -> None:
        """Append one document, given as segmented text."""
        ids = self.tokenizer.encode_segmented(segmented)
        self._starts.append(self.tokens)
        self._ids.append(self.tokenizer.begin_id)
        self._ids.extend(ids)
        self._ids.append(self.tokenizer.end_id)
        self.tokens += len(ids) + 2
        self.documents += 1
        self.characters += len(segmented) - segmented.count(" ")
        if len(self._ids) >= _FLUSH_TOKENS:
            self._flush()

    def finish(self, *, source_fingerprint: str, split: str) -> dict[str, Any]:
        """Write what is left and the manifest, which is returned."""
        self._flush()
        self._starts_handle.seek(0)
        self._write_starts_header()
        self.__exit__(None, None, None)
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "dtype": self.dtype.str,
            "vocab_size": self.tokenizer.vocab_size,
            "tokens": self.tokens,
            "documents": self.documents,
            "characters": self.characters,
            "tokenizer_fingerprint": self.tokenizer.fingerprint,
            "source_fingerprint": source_fingerprint,
            "split": split,
            "files": {name: file_record(self.directory / name) for name in ("tokens.bin", "documents.npy")},
        }
        write_manifest(self.directory, manifest)
        return manifest

    def _flush(self) -> None:
        if self._ids:
            ids = np.array(self._ids, dtype=np.int64)
            _check_ids(ids, self.tokenizer.vocab_size, where="the tokenizer's output")
            self._tokens_handle.write(ids.astype(self.dtype).tobytes())
            self._starts_handle.write(np.array(self._starts, dtype="<u8").tobytes())
            self._ids.clear()
            self._starts.clear()

    def _write_starts_header(self) -> None:
        """Write the .npy header, which numpy pads to one length for any number of documents."""
        header = {"descr": "<u8", "fortran_order": False, "shape": (self.documents,)}
        np.lib.format.write_array_header_1_0(self._starts_handle, header)


def _check_ids(ids: np.ndarray, vocab_size: int, *, where: str) -> None:
    if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= vocab_size):
        raise ValueError(
            f"{where} holds the ids {int(ids.min())} to {int(ids.max())}, but the tokenizer has "
            f"{vocab_size} (0 to {vocab_size - 1}); set the tokenizer that the tokens were made with, or "
            "prepare the data again"
        )


def write_tokens(
    documents: Iterable[SegmentedDocument],
    *,
    tokenizer: Tokenizer,
    directory: Path,
    source_fingerprint: str,
    split: str = "all",
    progress: bool = True,
) -> TokenFile:
    """Encode documents into the token file `directory`, which appears only when it is complete."""
    with (
        atomic_directory(directory, manifest_format=FORMAT) as partial,
        TokenWriter(partial, tokenizer=tokenizer) as writer,
    ):
        for document in tqdm(documents, desc="encode", unit=" documents", disable=not progress):
            writer.add(document.words)
        if writer.documents == 0:
            raise ValueError(f"no document to write into {directory}; set data.source to text with documents")
        writer.finish(source_fingerprint=source_fingerprint, split=split)
    return TokenFile.open(directory)


class TokenFile:
    """A token file opened for reading.

    `tokens_array` [tokens] and `document_starts` [documents] are memory-mapped and read-only; `tokens`,
    `documents`, `characters` (of cleaned text, newlines included) and `vocab_size` are counts; `fingerprint`
    is a sha256 over the contents and the tokenizer, `content_fingerprint` over the contents alone. Pickles as its
    folder.
    """

    def __init__(
        self,
        directory: Path,
        manifest: dict[str, Any],
        tokens_array: np.ndarray,
        document_starts: np.ndarray,
    ) -> None:
        self.directory, self.manifest = directory, manifest
        self.tokens_array, self.document_starts = tokens_array, document_starts
        self.tokens: int = manifest["tokens"]
        self.documents: int = manifest["documents"]
        self.characters: int = manifest["characters"]
        self.vocab_size: int = manifest["vocab_size"]
        files = {name: record["sha256"] for name, record in manifest["files"].items()}
        self.content_fingerprint = hash_json([manifest["format"], manifest["version"], manifest["dtype"], files])
        self.fingerprint = hash_json([self.content_fingerprint, manifest["tokenizer_fingerprint"]])
        self._opened = _state_of(directory / "tokens.bin")

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenFile.open, (self.directory,)

    def check_unchanged(self) -> None:
        """``ValueError`` if tokens.bin is no longer the file that was opened: costs one look at it, no reading."""
        path = self.directory / "tokens.bin"
        if not path.is_file() or _state_of(path) != self._opened:
            raise ValueError(
                f"{path} was changed or removed while the run reads it; the run ends before it learns from something "
                "else. Put the file back as it was (or remove its folder, to prepare it anew) and resume the run"
            )

    @classmethod
    def open(cls, directory: Path, *, expected_tokenizer: str | None = None, verify: bool = False) -> TokenFile:
        """Open the token file `directory`.

        `expected_tokenizer` is the fingerprint of the tokenizer in use. Always checked: format, sizes, and a
        hash of the first and last MiB of each file; `verify` reads every byte. Raises FileNotFoundError or
        ValueError.
        """
        directory = Path(directory)
        manifest = read_manifest(directory, manifest_format=FORMAT, version=VERSION)
        if missing := sorted(_MANIFEST_KEYS - manifest.keys()):
            raise ValueError(f"{directory / 'manifest.json'} lacks {', '.join(missing)}; prepare the data again")
        made_with = manifest["tokenizer_fingerprint"]
        if expected_tokenizer is not None and made_with != expected_tokenizer:
            raise ValueError(
                f"{directory} was written with the tokenizer {made_with[:12]}..., but the tokenizer in use "
                f"is {expected_tokenizer[:12]}...; set the tokenizer it was written with, or prepare the "
                "data again with this one"
            )
        for name in ("tokens.bin", "documents.npy"):
            check_file(directory / name, manifest["files"][name], verify=verify)
        dtype = np.dtype(manifest["dtype"])
        if manifest["files"]["tokens.bin"]["bytes"] != manifest["tokens"] * dtype.itemsize:
            raise ValueError(f"{directory}: tokens.bin and its manifest disagree on its length; prepare the data again")
        # Plain arrays over the maps: numpy's memmap class makes every slice several times slower.
        tokens = np.memmap(directory / "tokens.bin", dtype=dtype, mode="r").view(np.ndarray)
        starts = np.load(directory / "documents.npy", mmap_mode="r", allow_pickle=False).view(np.ndarray)
        if starts.dtype != np.uint64 or starts.shape != (manifest["documents"],):
            raise ValueError(
                f"{directory}: documents.npy holds {starts.shape} {starts.dtype}, the manifest says "
                f"{manifest['documents']} documents; prepare the data again"
            )
        if verify:
            for first in range(0, len(tokens), 1 << 24):
                _check_ids(tokens[first : first + (1 << 24)], manifest["vocab_size"], where=str(directory))
        return cls(directory, manifest, tokens, starts)


def split_position(cleaned: str, *, seed: int) -> float:
    """A document's place in [0, 1), a hash of cleaned text and seed; below the fraction is validation.

    Only the text counts, so exact duplicates fall on the same side and nothing depends on the order of
    documents.
    """
    digest = hashlib.blake2b(cleaned.encode(), digest_size=8, key=str(seed).encode()).digest()
    return int.from_bytes(digest, "big") / 2**64


def pack_corpus(
    corpus: SegmentedCorpus,
    *,
    tokenizer: Tokenizer,
    directory: Path,
    validation_fraction: float,
    seed: int,
    validation_optional: bool = False,
    progress: bool = True,
) -> tuple[TokenFile, TokenFile | None]:
    """Encode a corpus into `directory`/train and `directory`/validation, split by document; returns both.

    Raises ValueError if the corpus was segmented for another tokenizer or if either side would hold no document;
    with `validation_optional` (one small source among several) the validation side may be missing and is None.
    """
    directory = Path(directory)
    if not 0.0 < validation_fraction < 1.0:
        raise ValueError(f"data.validation_fraction={validation_fraction} must lie between 0 and 1, for example 0.01")
    _check_made_for(corpus, tokenizer)
    itemsize = 2 if tokenizer.vocab_size <= 1 << 16 else 4
    # An upper guess: one token for each character, of 3 bytes in Japanese.
    needed = itemsize * (corpus.manifest["bytes"] // 3 + 2 * corpus.num_documents) + 8 * corpus.num_documents
    require_free_space(directory, needed, what=f"the tokens of {corpus.directory}")
    lowest, highest = math.inf, -math.inf
    with contextlib.ExitStack() as stack:
        partial = stack.enter_context(atomic_directory(directory, manifest_format=SPLIT_FORMAT))
        bar = stack.enter_context(
            tqdm(
                total=corpus.manifest["characters"],
                desc="encode",
                unit=" characters",
                unit_scale=True,
                disable=not progress,
            )
        )
        writers = {}
        for split in ("train", "validation"):
            (partial / split).mkdir()
            writers[split] = stack.enter_context(TokenWriter(partial / split, tokenizer=tokenizer))
        for document in corpus.documents():
            cleaned = document.cleaned
            position = split_position(cleaned, seed=seed)
            lowest, highest = min(lowest, position), max(highest, position)
            writers["validation" if position < validation_fraction else "train"].add(document.words)
            bar.update(len(cleaned))
        none_held_out = lowest >= validation_fraction
        if (none_held_out and not validation_optional) or highest < validation_fraction:
            raise ValueError(_empty_side(corpus, validation_fraction, lowest, highest))
        summary = {
            split: writer.finish(source_fingerprint=corpus.fingerprint, split=split)
            for split, writer in writers.items()
        }
        if none_held_out:
            shutil.rmtree(partial / "validation")
        manifest: dict[str, Any] = {
            "format": SPLIT_FORMAT,
            "version": SPLIT_VERSION,
            "validation_fraction": validation_fraction,
            "seed": seed,
        }
        for split, written in summary.items():
            manifest[split] = {key: written[key] for key in ("tokens", "documents", "characters")}
        write_manifest(partial, manifest)
    held_out = None if none_held_out else TokenFile.open(directory / "validation")
    return TokenFile.open(directory / "train"), held_out


def _empty_side(corpus: SegmentedCorpus, fraction: float, lowest: float, highest: float) -> str:
    if lowest == highest:
        return (
            f"{corpus.directory} holds {corpus.num_documents} document(s) with one and the same text, but "
            "training and validation need one each and the split never cuts a document; set data.source to "
            "more documents (a .txt file below 150 kB is one document)"
        )
    side = "validation" if lowest >= fraction else "training"
    return (
        f"data.validation_fraction={fraction} leaves no document of the {corpus.num_documents} in "
        f"{corpus.directory} for {side}; set it above {lowest:.4g} and at most {highest:.4g}, or set "
        "another data.split_seed"
    )


def _check_made_for(corpus: SegmentedCorpus, tokenizer: Tokenizer) -> None:
    made_for = {"cleaner": dict(tokenizer.cleaner.identity), "analyzer": dict(tokenizer.analyzer_identity)}
    for name, wanted in made_for.items():
        if corpus.manifest[name] != wanted:
            raise ValueError(
                f"{corpus.directory} was made with the {name} {corpus.manifest[name]}, but the tokenizer was "
                f"made for {wanted}; segment the source again for this tokenizer, or set the one that fits"
            )


class PackedWindows:
    """The windows of one token file, context_length + 1 tokens each; `len()` is their number.

    `dropped_share` is the share of tokens that are never a label; `fingerprint` covers tokens, tokenizer, packing and
    context length; `content_fingerprint` leaves the tokenizer out: two trainings of a tokenizer differ in scores, and
    where they give the same ids the samples shall come in the same order. Raises ValueError if the file is too small
    for one window.
    """

    def __init__(self, token_file: TokenFile, *, context_length: int, packing: Packing = "concatenate") -> None:
        if packing not in get_args(Packing):
            raise ValueError(f"data.packing={packing!r} is not known; set one of {', '.join(get_args(Packing))}")
        if context_length < 1:
            raise ValueError(f"data.context_length={context_length} must be at least 1, for example 2048 (R61)")
        self.token_file, self.context_length, self.packing = token_file, context_length, packing
        tokens, width = token_file.tokens_array, context_length + 1
        if packing == "concatenate":
            self._starts, self._len = None, (len(tokens) - 1) // context_length
            stride = context_length
        else:
            self._starts = _truncate_starts(token_file.document_starts, len(tokens), context_length)
            self._len, stride = len(self._starts), 1
        if self._len == 0:
            raise ValueError(
                f"{token_file.directory} holds {len(tokens):,} tokens, fewer than the {width:,} of one "
                f"window (data.context_length={context_length} + 1, packing={packing}); set data.source to "
                "more text, data.context_length lower, or data.validation_fraction so that it gets more"
            )
        # Row i is the window that starts at token i * stride; overlapping rows of one map, no copy.
        rows = (len(tokens) - width) // stride + 1
        item = tokens.itemsize
        self._rows = as_strided(tokens, (rows, width), (stride * item, item), writeable=False)
        self.dropped_share = 1.0 - self._len * context_length / (len(tokens) - 1)
        cut = [PACKING_VERSION, context_length, packing]
        self.content_fingerprint = hash_json([*cut, token_file.content_fingerprint])
        self.fingerprint = hash_json([*cut, token_file.fingerprint])

    def __len__(self) -> int:
        return self._len

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen_windows, (self.token_file, self.context_length, self.packing)

    def gather(self, indices: np.ndarray) -> np.ndarray:
        """Windows by number: [n] integers in [0, len), else IndexError -> int64 [n, context_length + 1]."""
        indices = np.asarray(indices)
        try:
            if len(indices) and indices.min() < 0:
                raise IndexError("windows are numbered from 0")
            places = indices if self._starts is None else self._starts[indices]
            return self._rows[places].astype(np.int64)
        except IndexError as error:
            raise IndexError(f"{error}; {self.token_file.directory}: there are {self._len} windows") from None

    def documents(self, window: int) -> range:
        """Numbers of the documents that window ``window`` holds tokens of, as counted in the token file."""
        start = window * self.context_length if self._starts is None else int(self._starts[window])
        begins = self.token_file.document_starts
        first = int(np.searchsorted(begins, start, side="right")) - 1
        return range(first, int(np.searchsorted(begins, start + self.context_length + 1, side="left")))


def _state_of(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _reopen_windows(token_file: TokenFile, context_length: int, packing: Packing) -> PackedWindows:
    return PackedWindows(token_file, context_length=context_length, packing=packing)


def _truncate_starts(document_starts: np.ndarray, num_tokens: int, context_length: int) -> np.ndarray:
    """First tokens of the windows, int64: document starts, each at least context_length after the last.

    A document that starts on the last token of a window (where only its begin id is seen, as a label) starts
    the next.
    """
    starts = document_starts.astype(np.int64)
    usable = int(np.searchsorted(starts, num_tokens - context_length - 1, side="right"))
    following = np.searchsorted(starts, starts[:usable] + context_length).data
    chosen, document = [], 0
    while document < usable:
        chosen.append(document)
        document = following[document]
    return starts[chosen]


def data_fingerprint(windows: Sequence[PackedWindows]) -> str:
    """sha256 that changes whenever a (source, window number) could stand for other tokens.

    Covers tokenizer, tokens, document starts, packing, context length, the packing's version, and the order
    of `windows`.
    """
    return hash_json([source.fingerprint for source in windows])
