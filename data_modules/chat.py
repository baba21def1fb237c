"""Conversations for instruction tuning as a LightningDataModule (R71-R77, R83).

A step is ``batch_size`` conversations, drawn without replacement from all sources (or by the sources' weights): a pure
function of (data, seed, step), so a resumed run reads on exactly, on any number of ranks. The loss is the mean over all
target tokens of a step, so micro-batches may hold whichever conversations go well together (`ncvc.batching`): little
padding, the same loss and gradient as one conversation at a time. Conversations never see each other: they lie in rows
of their own (``bucketed``) or behind each other with "document_ids" (``packed``).

A label is the next token where that is supervised, else ``IGNORE``. Padding is marked by place, never by id: the
end-of-text token that ends an answer keeps its label (R83). Costs 3 bytes a token on disk, mapped; a batch takes under
a millisecond to build, its plan 2 ms per 256 conversations. No worker processes.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning
import numpy as np
import torch

from data_modules.packed import StepLoader
from ncvc.batching import micro_batches
from ncvc.conversation_preparation import (
    Division,
    PreparedConversations,
    divide,
    length_statistics,
    lengths_as_table,
    prepare_conversations,
    unigram_bits_per_character,
)
from ncvc.conversation_store import ConversationStore, EncodingSettings
from ncvc.conversations import sources_from
from ncvc.model.loss import IGNORE
from ncvc.sampling import SampleOrder
from ncvc.storage import hash_json
from ncvc.tokenizer import Tokenizer


class ChatDataModule(lightning.LightningDataModule):
    """Yields {"input_ids", "labels", "lengths", "target_tokens", "checksum"} and, packed, "document_ids".

    ``base`` names the model that is tuned (`ncvc.model.base.find_base`): its tokenizer with the three role tokens makes
    the ids. ``sources`` is {name: {path, kind, weight, split, fold}} (`ncvc.conversations`). ``too_long`` says what
    becomes of a conversation over ``context_length`` tokens: ``refuse`` leaves it out and tells so, ``truncate`` drops
    its oldest turns. ``validation_fraction`` of the documents is held out (0: nothing), at most
    ``validation_conversations`` are scored each time; ``split_seed`` decides which.
    """

    prepared: PreparedConversations  # after prepare_data
    tokenizer: Tokenizer  # after setup
    division: Division

    def __init__(
        self,
        *,
        home: str,
        base: str,
        sources: dict,
        context_length: int,
        batch_size: int,
        micro_batch_size: int,
        layout: Literal["packed", "bucketed"] = "bucketed",
        too_long: Literal["refuse", "truncate"] = "refuse",
        validation_fraction: float = 0.01,
        validation_conversations: int = 500,
        seed: int = 0,
        split_seed: int = 0,
        workers: int | None = None,
        skip: list[list[int]] | None = None,
        max_steps: int | None = None,
    ) -> None:
        super().__init__()
        if layout not in ("packed", "bucketed"):
            raise ValueError(f"data.layout={layout!r}: set bucketed (rows of one conversation) or packed.")
        if batch_size < 1 or micro_batch_size < 1 or batch_size % micro_batch_size:
            raise ValueError(
                f"data.batch_size={batch_size} is not a multiple of data.micro_batch_size={micro_batch_size}; set one "
                "that divides it."
            )
        self.home, self.base = Path(home).expanduser(), base
        self.sources = sources_from(sources)
        self.encoding = EncodingSettings(context_length=context_length, too_long=too_long)
        self.context_length, self.layout = context_length, layout
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.validation_fraction, self.validation_conversations = validation_fraction, validation_conversations
        self.seed, self.split_seed, self.max_steps = seed, split_seed, max_steps
        self.workers = workers or len(os.sched_getaffinity(0))
        self.skip: list[tuple[int, int]] = [(int(first), int(end)) for first, end in skip or []]
        self.stores: dict[str, ConversationStore] = {}
        self._plans: dict[int, tuple[np.ndarray, list[list[list[int]]]]] = {}
        self._seen = (0, 0)  # steps, and the tokens of all of them together

    # ---- preparation -------------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Build the tokenizer with role tokens and the stores of ids that are missing (one process at a time)."""
        if not hasattr(self, "prepared"):
            from ncvc.model.base import find_base

            self.prepared = prepare_conversations(
                self.sources,
                base_tokenizer=find_base(self.base, home=self.home) / "tokenizer",
                home=self.home,
                settings=self.encoding,
                workers=self.workers,
            )

    def setup(self, stage: str | None = None) -> None:
        """Open tokenizer and stores and divide them; costs a second for half a million conversations."""
        if self.stores:
            return
        self.prepare_data()
        self.tokenizer = Tokenizer.load(self.prepared.tokenizer)
        stores = {name: ConversationStore.open(folder) for name, folder in self.prepared.stores.items()}
        for name, store in stores.items():
            self._check_store(name, store)
        self.division = divide(
            stores,
            fraction=self.validation_fraction,
            most_scored=self.validation_conversations,
            seed=self.split_seed,
        )
        self.stores = stores
        self._by_number = list(stores.values())
        self._train = [self.division.train[name] for name in stores]
        self.skip_samples(self.skip)

    def _check_store(self, name: str, store: ConversationStore) -> None:
        if store.manifest["tokenizer_fingerprint"] != self.tokenizer.fingerprint:
            raise ValueError(
                f"{store.directory} was written with another tokenizer; remove the folder and start again."
            )
        if len(without := np.flatnonzero(store.targets == 0)):
            raise ValueError(
                f"data.sources.{name}: {store.row(int(without[0]))} has no target token, so nothing could be learned "
                f"from it; {store.directory} is damaged: remove the folder and start again."
            )

    @property
    def _fingerprints(self) -> dict[str, str]:
        """Of each source's training conversations, in their order."""
        return {
            name: hash_json(
                [
                    store.content_fingerprint,
                    hashlib.sha256(self.division.train[name].astype("<i8").tobytes()).hexdigest(),
                ]
            )
            for name, store in self.stores.items()
        }

    # ---- order -------------------------------------------------------------------------------------------------------

    def skip_samples(self, ranges: Sequence[Sequence[int]]) -> None:
        """Leave out absolute ranges [first, end) of samples from now on; later samples move up."""
        self.skip = [(int(first), int(end)) for first, end in ranges]
        weights: list[Any] = [source.weight for source in self.sources]
        self.weights = None if all(weight is None for weight in weights) else weights
        self.order = SampleOrder(
            sizes=[len(numbers) for numbers in self._train],
            fingerprints=list(self._fingerprints.values()),
            weights=self.weights,
            seed=self.seed,
            skip=self.skip,
        )
        self._plans, self._seen = {}, (0, 0)

    def samples_of(self, step: int) -> list[tuple[int, int]]:
        """Absolute ranges [first, end) of the samples of optimizer step ``step`` (counted from 0)."""
        return self.order.sample_ranges(step * self.batch_size, self.batch_size)

    def documents_of(self, step: int) -> list[dict[str, Any]]:
        """For every conversation of optimizer step ``step`` (from 0): its source and where it stands there."""
        sources, numbers = self._conversations(step * self.batch_size, self.batch_size)
        return [
            {"source": self.sources[source].name, "row_in_source": self._by_number[source].row(number)}
            for source, number in zip(sources.tolist(), numbers.tolist(), strict=True)
        ]

    def rows_of(self, step: int, micro_step: int, *, rank: int, world_size: int) -> list[list[tuple[int, int, int]]]:
        """What each row of a micro-batch holds: (place in the step, first position, end) of every conversation."""
        lengths, plan = self._plan(step)
        found = []
        for row in self._part(plan, micro_step, rank=rank, world_size=world_size):
            ends = np.cumsum(lengths[row]).tolist()
            found.append(list(zip(row, [0, *ends[:-1]], ends, strict=True)))
        return found

    def _conversations(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Sources, and conversations in their stores, of the samples from place ``start`` on; two int64 [count]."""
        sources, places = self.order.indices(start, count)
        numbers = np.empty(count, dtype=np.int64)
        for source, train in enumerate(self._train):
            chosen = sources == source
            numbers[chosen] = train[places[chosen]]
        return sources, numbers

    def _plan(self, step: int) -> tuple[np.ndarray, list[list[list[int]]]]:
        """Positions that each conversation of a step takes (its tokens less one), and its micro-batches."""
        if step not in self._plans:
            while len(self._plans) >= 2:
                del self._plans[next(iter(self._plans))]
            sources, numbers = self._conversations(step * self.batch_size, self.batch_size)
            lengths = self._lengths(sources, numbers) - 1
            plan = micro_batches(
                lengths,
                micro_batch_size=self.micro_batch_size,
                layout=self.layout,
                context_length=self.context_length,
            )
            self._plans[step] = lengths, plan
        return self._plans[step]

    def _part(self, plan: list[list[list[int]]], micro_step: int, *, rank: int, world_size: int) -> list[list[int]]:
        """One rank's micro-batch; ranks that work side by side get neighbours, the larger one in turns."""
        if len(plan) % world_size:
            raise ValueError(
                f"data.batch_size={self.batch_size} is not a multiple of {world_size} ranks x data.micro_batch_size="
                f"{self.micro_batch_size}; set data.batch_size to a multiple of {world_size * self.micro_batch_size}."
            )
        if not (0 <= micro_step < len(plan) // world_size and 0 <= rank < world_size):
            raise ValueError(f"micro-step {micro_step} of rank {rank} asked for; a step has {len(plan) // world_size}.")
        return plan[micro_step * world_size + (rank if micro_step % 2 == 0 else world_size - 1 - rank)]

    def _lengths(self, sources: np.ndarray, numbers: np.ndarray, *, of: str = "lengths") -> np.ndarray:
        found = np.empty(len(sources), dtype=np.int64)
        for source, store in enumerate(self._by_number):
            chosen = sources == source
            found[chosen] = getattr(store, of)[numbers[chosen]]
        return found

    # ---- batches -----------------------------------------------------------------------------------------------------

    def micro_batch(self, step: int, micro_step: int, *, rank: int, world_size: int) -> dict[str, Any]:
        """Micro-batch ``micro_step`` of optimizer step ``step`` for one rank; tensors are [rows, T], both of them free.

        "lengths" [rows] are positions before the padding, "target_tokens" the targets of the whole step, "checksum" a
        sum over conversations that does not depend on how the step was cut.
        """
        sources, numbers = self._conversations(step * self.batch_size, self.batch_size)
        _, plan = self._plan(step)
        rows = self._part(plan, micro_step, rank=rank, world_size=world_size)
        held = [[(int(sources[place]), int(numbers[place])) for place in row] for row in rows]
        batch = self._batch(held, target_tokens=int(self._lengths(sources, numbers, of="targets").sum()))
        checksum = sum(
            self._by_number[sources[place]].checksum(int(numbers[place]), place=step * self.batch_size + place)
            for row in rows
            for place in row
        )
        return {**batch, "checksum": checksum}

    def _batch(self, rows: Sequence[Sequence[tuple[int, int]]], *, target_tokens: int) -> dict[str, Any]:
        """Rows of (source, conversation) as tensors."""
        lengths = [sum(int(self._by_number[source].lengths[number]) - 1 for source, number in row) for row in rows]
        shape = (len(rows), max(lengths))
        input_ids = np.full(shape, self.tokenizer.end_id, dtype=np.int64)
        labels = np.full(shape, IGNORE, dtype=np.int64)
        documents = np.zeros(shape, dtype=np.int32)
        for number, row in enumerate(rows):
            start = 0
            for document, (source, conversation) in enumerate(row):
                ids, flags = self._checked(source, conversation)
                end = start + len(ids) - 1
                input_ids[number, start:end] = ids[:-1]
                labels[number, start:end] = np.where(flags[1:], ids[1:], IGNORE)
                documents[number, start:end] = document
                start = end
            documents[number, start:] = len(row)  # padding is a document of its own
        batch: dict[str, Any] = {
            "input_ids": torch.from_numpy(input_ids),
            "labels": torch.from_numpy(labels),
            "lengths": torch.tensor(lengths),
            "target_tokens": target_tokens,
        }
        if self.layout == "packed":
            batch["document_ids"] = torch.from_numpy(documents)
        return batch

    def _checked(self, source: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and flags of a conversation; ``ValueError`` when they are not what was opened."""
        store = self._by_number[source]
        ids, flags = store.ids(number), store.supervised(number)
        if int(ids.max()) >= self.tokenizer.vocab_size or int(flags.sum()) != store.targets[number] or flags[0]:
            raise ValueError(
                f"data.sources.{self.sources[source].name}: {store.row(number)} has ids outside the vocabulary or "
                f"other targets than when it was opened: {store.directory} was damaged. Remove the folder and start "
                "the run again with resume=auto, and it is prepared anew."
            )
        return ids, flags

    def train_dataloader(self) -> StepLoader:
        """One endless-epoch loader of exactly the run's micro-batches, starting at the trainer's current step."""
        assert self.trainer is not None  # Lightning attached this module to it
        return StepLoader(self, trainer=self.trainer)

    def val_dataloader(self) -> "list[HeldOutConversations]":
        """The held-out conversations, each scored once; no loader where nothing is held out."""
        trainer = self.trainer
        assert trainer is not None  # Lightning attached this module to it
        if not self.division.scored:
            return []
        return [HeldOutConversations(self, rank=trainer.global_rank, world_size=trainer.world_size)]

    # ---- what a run records ------------------------------------------------------------------------------------------

    def check_unchanged(self) -> None:
        """``ValueError`` if a store is no longer the one that was opened."""
        for store in self.stores.values():
            store.check_unchanged()

    @property
    def identity(self) -> dict[str, Any]:
        """What decides which conversation a sample number stands for, by name; compared when a run is resumed."""
        texts = {f"data.text.{name}": fingerprint for name, fingerprint in self._fingerprints.items()}
        shares: list[Any] = self.weights or [None] * len(self.sources)
        weights = {f"data.weight.{source.name}": share for source, share in zip(self.sources, shares, strict=True)}
        return {**texts, **weights, "tokenizer": self.tokenizer.fingerprint}

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides which tokens a sample number stands for."""
        return hash_json([self._fingerprints, self.tokenizer.fingerprint])

    @property
    def character_counts(self) -> np.ndarray:
        """Characters that each token id stands for, [vocab_size]."""
        return self.tokenizer.character_counts

    @property
    def train_tokens(self) -> int:
        """Tokens of all training conversations, once each."""
        return sum(int(self.stores[name].lengths[numbers].sum()) for name, numbers in self.division.train.items())

    def tokens_seen(self, step: int) -> int:
        """Tokens of the conversations of steps 0 to ``step`` (excluded), padding left out."""
        done, tokens = self._seen if self._seen[0] <= step else (0, 0)
        while done < step:  # in parts, so that a run of millions of samples needs no memory
            upto = min(step, done + max(1, (1 << 18) // self.batch_size))
            part = self._conversations(done * self.batch_size, (upto - done) * self.batch_size)
            tokens += int(self._lengths(*part).sum())
            done = upto
        self._seen = (done, tokens)
        return tokens

    def lengths(self) -> dict[str, dict[str, float]]:
        """Length statistics of every source (`ncvc.conversation_preparation`)."""
        return length_statistics(self.stores, self.division)

    def record(self) -> dict[str, Any]:
        """What ``data.json`` says of these data besides fingerprints and folders."""
        return {"train_tokens": self.train_tokens, "lengths": self.lengths(), "scored": len(self.division.scored)}

    def description(self, max_steps: int) -> str:
        """The lines about these data that a run prints at its start."""
        conversations = sum(len(numbers) for numbers in self._train)
        samples = max_steps * self.batch_size
        return (
            f"{conversations:,} conversations of {self.train_tokens:,} tokens; {max_steps:,} steps of "
            f"{self.batch_size} conversations ({samples / conversations:.1f} epochs), {self.layout}\n"
            f"{lengths_as_table(self.lengths())}"
        )

    def unigram_bits_per_character(self) -> float | None:
        """Bits per character of a unigram model of the training answers on the held-out ones; None without any."""
        return unigram_bits_per_character(self.stores, self.division, tokenizer=self.tokenizer)


class HeldOutConversations:
    """Micro-batches of the held-out conversations, of like length, each rank its share.

    Every rank gets the same number of batches; where there are too few, the last one is a batch without labels.
    """

    def __init__(self, data: ChatDataModule, *, rank: int, world_size: int) -> None:
        self.data = data
        names = list(data.stores)
        scored = [(names.index(name), number) for name, number in data.division.scored]
        scored.sort(key=lambda found: (-int(data._by_number[found[0]].lengths[found[1]]), found))
        size = data.micro_batch_size
        parts = [scored[start : start + size] for start in range(0, len(scored), size)]
        self.count = -(-len(parts) // world_size)
        self.parts = parts[rank::world_size]
        self.filler = parts[-1]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for number in range(self.count):
            part = self.parts[number] if number < len(self.parts) else self.filler
            batch = self.data._batch([[found] for found in part], target_tokens=1)
            batch.pop("document_ids", None)  # one conversation a row needs none
            if number >= len(self.parts):
                batch["labels"] = torch.full_like(batch["labels"], IGNORE)
            yield {**batch, "target_tokens": int((batch["labels"] >= 0).sum())}
