"""Conversations as token ids on disk, made once: what instruction tuning reads.

A store is a folder: tokens.bin (the ids of all conversations one after the other, uint16 or uint32), supervised.bin (a
byte for each id: 1 where it is a target of training), starts.npy (where each conversation begins, and the end),
hashes.npy (of its ids, and of the document it is about), rows.jsonl (where each stood in its source), refused.jsonl
(every row left out, with the reason) and manifest.json.

Costs: segmentation decides it, about 2 MB of text per second and core; 3 bytes a token on disk, memory-mapped. A source
below 500 conversations is encoded in this process, a larger one by ``workers``; the bytes are the same. Whether a
finished store can be used again is decided by its folder's name (`ncvc.conversation_preparation`).
What it does not do: read sources, shuffle, or make batches.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ncvc.chat import Conversation, TooLong, encode_conversation
from ncvc.conversations import (
    NO_CONVERSATION,
    NO_TARGET,
    TOO_LONG,
    RawConversation,
    Refusal,
    refused,
)
from ncvc.processes import exit_with_parent, in_order
from ncvc.storage import atomic_directory, check_file, file_record, hash_json, read_manifest, write_manifest
from ncvc.tokenizer import Tokenizer

FORMAT, VERSION = "ncvc-conversations", 1
_BATCH = 250  # conversations that a worker gets at once
_FILES = ("tokens.bin", "supervised.bin", "starts.npy", "hashes.npy", "rows.jsonl", "refused.jsonl")


@dataclass(frozen=True, kw_only=True)
class EncodingSettings:
    """What becomes of a conversation over ``context_length`` tokens; see `ncvc.chat.encode_conversation`."""

    context_length: int
    too_long: TooLong = "refuse"

    def __post_init__(self) -> None:
        if self.context_length < 8:
            raise ValueError(
                f"data.context_length={self.context_length} is too short for any conversation; set 2048 (R61)."
            )
        if self.too_long not in ("refuse", "truncate"):
            raise ValueError(f"data.too_long={self.too_long!r}: set refuse, or truncate (the oldest turns go first).")


class ConversationStore:
    """A finished store, opened: conversation i is ``ids(i)`` with the flags ``supervised(i)``.

    ``lengths`` and ``targets`` are the numbers of ids and of supervised ids of each conversation, int64 [n];
    ``hashes`` uint64 [n, 2], of its ids and of the document it is about (of its ids again where that is not known);
    ``content_fingerprint`` covers ids, flags and hashes. Raises what `open` tells.
    """

    def __init__(self, directory: Path, manifest: dict[str, Any]) -> None:
        self.directory, self.manifest = directory, manifest
        self._opened = self._state()
        self._tokens = np.memmap(directory / "tokens.bin", dtype=manifest["dtype"], mode="r").view(np.ndarray)
        self._flags = np.memmap(directory / "supervised.bin", dtype=np.uint8, mode="r").view(np.ndarray)
        self._starts = np.load(directory / "starts.npy", allow_pickle=False)
        self.hashes = np.load(directory / "hashes.npy", allow_pickle=False)
        self.lengths = np.diff(self._starts)
        if len(self._tokens) != len(self._flags) or len(self._starts) < 2 or self._starts[-1] != len(self._tokens):
            raise ValueError(
                f"{directory}: its files disagree on the number of tokens; remove the folder and start again"
            )
        self.targets = np.add.reduceat(self._flags, self._starts[:-1], dtype=np.int64)
        self._rows: list[str] | None = None
        files = {name: manifest["files"][name]["sha256"] for name in _FILES[:4]}
        self.content_fingerprint = hash_json([FORMAT, VERSION, manifest["dtype"], files])

    @classmethod
    def open(cls, directory: Path, *, verify: bool = False) -> ConversationStore:
        """Open the store in ``directory``; foreign, truncated and altered ones are refused by name."""
        directory = Path(directory)
        manifest = read_manifest(directory, manifest_format=FORMAT, version=VERSION)
        for name in _FILES:
            check_file(directory / name, manifest["files"][name], verify=verify)
        return cls(directory, manifest)

    def __len__(self) -> int:
        return len(self.lengths)

    def ids(self, number: int) -> np.ndarray:
        """Token ids of a conversation, int64 [length]."""
        return self._tokens[self._starts[number] : self._starts[number + 1]].astype(np.int64)

    def supervised(self, number: int) -> np.ndarray:
        """Whether each id of a conversation is a target, bool [length]."""
        return self._flags[self._starts[number] : self._starts[number + 1]].astype(bool)

    def checksum(self, number: int, *, place: int) -> int:
        """A 40-bit hash of a conversation's ids and targets with its ``place`` in the run.

        Sums of it over a step do not depend on micro-batches, ranks or layout, and stay below 2^53 up to 8,192
        conversations a step, so that an fp64 reduction is exact.
        """
        digest = hashlib.blake2b(digest_size=5, salt=place.to_bytes(8, "little"))
        digest.update(self.ids(number).astype("<i8").tobytes() + self.supervised(number).tobytes())
        return int.from_bytes(digest.digest(), "little")

    def row(self, number: int) -> str:
        """Where a conversation stood in its source."""
        if self._rows is None:
            lines = (self.directory / "rows.jsonl").read_text(encoding="utf-8").splitlines()
            self._rows = [json.loads(line) for line in lines]
        return self._rows[number]

    def refusals(self) -> list[Refusal]:
        """Every row that was left out."""
        lines = (self.directory / "refused.jsonl").read_text(encoding="utf-8").splitlines()
        return [Refusal(**json.loads(line)) for line in lines]

    def check_unchanged(self) -> None:
        """``ValueError`` if a file is no longer the one that was opened: one look at it, no reading."""
        if self._state() != self._opened:
            raise ValueError(
                f"{self.directory} was changed or removed while the run reads it; the run ends before it learns from "
                "something else. Remove the folder, to prepare it anew, and resume the run"
            )

    def _state(self) -> list[Any]:
        found: list[Any] = []
        for name in _FILES[:2]:
            try:
                status = (self.directory / name).stat()
            except FileNotFoundError:
                return []
            found.append((status.st_ino, status.st_size, status.st_mtime_ns))
        return found


def write_store(
    conversations: Iterable[RawConversation | Refusal],
    *,
    directory: Path,
    name: str,
    tokenizer: Tokenizer,
    settings: EncodingSettings,
    workers: int = 1,
    progress: bool = True,
) -> ConversationStore:
    """Encode ``conversations`` into the store ``directory``, which appears whole or not at all.

    ``tokenizer`` knows the roles; ``name`` is the source's in messages. Raises ``ValueError`` when every row was
    refused or there was none.
    """
    if workers < 1:
        raise ValueError(f"data.workers={workers}: at least one process must do the work; set 1 or more")
    with (
        atomic_directory(directory, manifest_format=FORMAT) as partial,
        contextlib.ExitStack() as stack,
    ):
        writer = _Writer(partial, tokenizer=tokenizer, stack=stack)
        bar = stack.enter_context(tqdm(desc=f"encode {name}", unit=" conversations", disable=not progress))
        encoded = stack.enter_context(contextlib.closing(_encoded(conversations, tokenizer, settings, workers)))
        for batch in encoded:
            writer.add(batch)
            bar.update(len(batch.lengths) + len(batch.refusals))
        refusals = writer.refusals
        if not writer.lengths:
            if not refusals:
                raise ValueError(f"data.sources.{name}: there is no conversation in it; name a source with some.")
            raise ValueError(f"data.sources.{name}: every conversation was refused, {told(refusals)}")
        write_manifest(partial, writer.finish())
    return ConversationStore.open(directory)


def told(refusals: list[Refusal]) -> str:
    """How many were refused, why, and the first of each reason."""
    counts = Counter(refusal.reason for refusal in refusals)
    first = {refusal.reason: refusal for refusal in reversed(refusals)}
    return "; ".join(f"{count:,} x {reason}, first {first[reason]}" for reason, count in counts.items())


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A batch of conversations: their ids and flags in one array each, and what was refused."""

    ids: np.ndarray
    flags: np.ndarray
    lengths: list[int]
    rows: list[str]
    hashes: list[tuple[int, int]]
    refusals: list[Refusal]
    over_context: int


class _Writer:
    def __init__(self, directory: Path, *, tokenizer: Tokenizer, stack: contextlib.ExitStack) -> None:
        self.directory = directory
        self.dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
        self.lengths: list[int] = []
        self.refusals: list[Refusal] = []
        self.over_context = 0
        self.facts = {"vocab_size": tokenizer.vocab_size, "tokenizer_fingerprint": tokenizer.fingerprint}
        self._hashes: list[tuple[int, int]] = []
        self._tokens, self._flags, self._rows, self._refused = (
            stack.enter_context((directory / name).open("wb"))
            for name in ("tokens.bin", "supervised.bin", "rows.jsonl", "refused.jsonl")
        )

    def add(self, batch: _Encoded) -> None:
        self._tokens.write(batch.ids.astype(self.dtype).tobytes())
        self._flags.write(batch.flags.tobytes())
        self._rows.writelines(json.dumps(row).encode() + b"\n" for row in batch.rows)
        for refusal in batch.refusals:
            fields = {"row": refusal.row, "reason": refusal.reason, "detail": refusal.detail}
            self._refused.write(json.dumps(fields).encode() + b"\n")
        self._hashes += batch.hashes
        self.lengths += batch.lengths
        self.refusals += batch.refusals
        self.over_context += batch.over_context

    def finish(self) -> dict[str, Any]:
        for handle in (self._tokens, self._flags, self._rows, self._refused):
            handle.close()
        starts = np.concatenate(([0], np.cumsum(self.lengths, dtype=np.int64)))
        np.save(self.directory / "starts.npy", starts)
        np.save(self.directory / "hashes.npy", np.array(self._hashes, dtype=np.uint64))
        return {
            "format": FORMAT,
            "version": VERSION,
            "dtype": self.dtype.str,
            **self.facts,
            "conversations": len(self.lengths),
            "tokens": int(starts[-1]),
            "over_context": self.over_context,
            "refused": dict(Counter(refusal.reason for refusal in self.refusals)),
            "files": {name: file_record(self.directory / name) for name in _FILES},
        }


def encode_one(
    raw: RawConversation, *, tokenizer: Tokenizer, settings: EncodingSettings
) -> tuple[Conversation | Refusal, bool]:
    """One conversation within the context, or why it is refused; and whether it was longer than the context."""
    try:
        whole = encode_conversation(raw.messages, tokenizer=tokenizer)
    except ValueError as error:
        return refused(raw.row, NO_CONVERSATION, error), False
    over = len(whole.ids) > settings.context_length
    if over:
        try:
            length, policy = settings.context_length, settings.too_long
            whole = encode_conversation(raw.messages, tokenizer=tokenizer, context_length=length, too_long=policy)
        except ValueError as error:
            return refused(raw.row, TOO_LONG, error), True
    if not any(whole.supervised):
        return Refusal(raw.row, NO_TARGET, "no turn of the assistant has a token"), over
    return whole, over


def _encode(batch: list[RawConversation | Refusal], tokenizer: Tokenizer, settings: EncodingSettings) -> _Encoded:
    ids: list[int] = []
    flags: list[bool] = []
    lengths, rows, hashes, refusals = [], [], [], []
    over_context = 0
    for raw in batch:
        if isinstance(raw, Refusal):
            refusals.append(raw)
            continue
        result, over = encode_one(raw, tokenizer=tokenizer, settings=settings)
        over_context += over
        if isinstance(result, Refusal):
            refusals.append(result)
            continue
        ids += result.ids
        flags += result.supervised
        lengths.append(len(result.ids))
        rows.append(raw.row)
        own = _hash(np.array(result.ids, dtype="<u4").tobytes())
        hashes.append((own, _hash(raw.group.encode()) if raw.group else own))
    return _Encoded(
        ids=np.array(ids, dtype=np.uint32),
        flags=np.array(flags, dtype=np.uint8),
        lengths=lengths,
        rows=rows,
        hashes=hashes,
        refusals=refusals,
        over_context=over_context,
    )


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


_worker: tuple[Tokenizer, EncodingSettings]  # what one worker process encodes with; set once when it starts


def _start_worker(tokenizer: Tokenizer, settings: EncodingSettings) -> None:
    global _worker
    exit_with_parent()
    _worker = (tokenizer, settings)


def _encode_in_worker(batch: list[RawConversation | Refusal]) -> _Encoded:
    return _encode(batch, *_worker)


def _batches(conversations: Iterable[RawConversation | Refusal]) -> Iterator[list[RawConversation | Refusal]]:
    remaining = iter(conversations)
    while batch := list(itertools.islice(remaining, _BATCH)):
        yield batch


def _encoded(
    conversations: Iterable[RawConversation | Refusal],
    tokenizer: Tokenizer,
    settings: EncodingSettings,
    workers: int,
) -> Generator[_Encoded, None, None]:
    """Encoded batches in order; processes are started only where there is more than two batches of work."""
    batches = _batches(conversations)
    ahead = list(itertools.islice(batches, 3))
    if workers == 1 or len(ahead) < 3:
        for batch in itertools.chain(ahead, batches):
            yield _encode(batch, tokenizer, settings)
        return
    yield from in_order(
        _encode_in_worker,
        itertools.chain(ahead, batches),
        workers=workers,
        start=_start_worker,
        start_with=(tokenizer, settings),
        doing="encoding",
    )
