"""Packed pretraining text as a LightningDataModule (R61).

Every sample is ``context_length`` tokens cut from memory-mapped token files. Which samples make up step s is a pure
function of (data fingerprint, seed, s): no sampler state, no epoch state, no worker processes (one gather of a batch
takes microseconds, a worker's hand-over takes milliseconds, measured). A run that resumes at step s reads exactly what
the unbroken run would have read, on any number of ranks.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning
import numpy as np
import torch

from ncvc.curation.corpus import open_curated
from ncvc.mixture import mixture_weights
from ncvc.model.loss import IGNORE
from ncvc.preparation import Prepared, Source, open_token_files, prepare
from ncvc.sampling import SampleOrder
from ncvc.shards import PackedWindows, TokenFile, data_fingerprint
from ncvc.tokenizer import Tokenizer


class PackedDataModule(lightning.LightningDataModule):
    """Builds what is missing in ``prepare_data`` and yields micro-batches {"input_ids", "labels", "target_tokens"}.

    ``source`` is one file or folder of text (or ``clinical_samples``); ``sources`` is a mapping from a name to
    {path, weight, for_tokenizer}: weights are shares of the samples, null keeps natural proportions; ``corpus`` is a
    folder that ``python -m ncvc.curate`` finished, or ``last``, and takes the place of both. ``batch_size`` is
    the global batch in rows. ``mask_documents`` adds "document_ids", which keep attention inside each document.
    ``validation_tokens`` bounds the held-out text that is scored each time; ``split_seed`` decides which documents are
    held out and ``seed`` the order of samples, so that runs with other seeds are scored on the same text. ``skip`` are
    absolute ranges [first, end) of samples to leave out, as found in the record of another run. ``synthetic_share`` is
    the share of samples from sources of kind synthetic, ``repeat_cap`` the most times a source may be read in
    ``max_steps`` (`ncvc.mixture`); None leaves both open.
    """

    prepared: Prepared  # after prepare_data
    tokenizer: Tokenizer  # after setup

    def __init__(
        self,
        *,
        home: str,
        source: str | None,
        sources: dict | None,
        corpus: str | None = None,
        tokenizer: dict,
        analyzer: dict,
        cleaning: Literal["guarded", "literal"],
        context_length: int,
        batch_size: int,
        micro_batch_size: int,
        packing: Literal["concatenate", "truncate"],
        mask_documents: bool,
        validation_fraction: float,
        validation_tokens: int,
        seed: int,
        split_seed: int = 0,
        text_field: str = "text",
        workers: int | None = None,
        skip: list[list[int]] | None = None,
        synthetic_share: float | None = None,
        repeat_cap: float | None = None,
        max_steps: int | None = None,
    ) -> None:
        super().__init__()
        self.home = Path(home).expanduser()
        made_with: dict[str, Any] = {}
        if corpus is not None:
            curated = open_curated(corpus, home=self.home)
            self.sources, made_with = curated.sources(), curated.settings
        else:
            named = {"source": {"path": source}} if sources is None else sources
            self.sources = [Source(name=name, **settings) for name, settings in named.items()]
        self.settings: dict[str, Any] = {
            "cleaning": cleaning,
            "analyzer": dict(analyzer),
            "tokenizer": dict(tokenizer),
            "validation_fraction": validation_fraction,
            "text_field": text_field,
            "split_seed": split_seed,
            "workers": workers or len(os.sched_getaffinity(0)),
            **made_with,
        }
        self.context_length, self.packing, self.mask_documents = context_length, packing, mask_documents
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.validation_tokens, self.seed = validation_tokens, seed
        self.skip: list[tuple[int, int]] = [(int(first), int(end)) for first, end in skip or []]
        self.synthetic_share, self.repeat_cap, self.max_steps = synthetic_share, repeat_cap, max_steps
        self.weights: list[Any] | None = None  # shares of the samples; None: natural ones
        self.windows: list[PackedWindows] = []
        self.validation: dict[str, TokenFile] = {}

    def prepare_data(self) -> None:
        """Build the segmented text, tokenizer and token files that are missing (one process only)."""
        if not hasattr(self, "prepared"):
            self.prepared = prepare(self.sources, home=self.home, **self.settings)

    def setup(self, stage: str | None = None) -> None:
        """Open tokenizer and token files; costs milliseconds once everything is prepared."""
        if self.windows:
            return
        self.prepare_data()
        self.tokenizer = Tokenizer.load(self.prepared.tokenizer)
        train = open_token_files(self.prepared.train, tokenizer=self.tokenizer)
        self.validation = open_token_files(self.prepared.validation, tokenizer=self.tokenizer)
        self.windows = [
            PackedWindows(file, context_length=self.context_length, packing=self.packing) for file in train.values()
        ]
        self.weights = self._mixture()
        self.skip_samples(self.skip)

    def _mixture(self) -> list[Any] | None:
        """Shares of the samples by source; refuses what ``synthetic_share`` or ``repeat_cap`` forbid (R107)."""
        weights = {source.name: source.weight for source in self.sources}
        natural = all(weight is None for weight in weights.values())
        if self.synthetic_share is None and self.repeat_cap is None:
            return None if natural else list(weights.values())
        if self.max_steps is None:
            raise ValueError(
                "data.repeat_cap and data.synthetic_share need data.max_steps; set it to trainer.max_steps"
            )
        shares = mixture_weights(
            {
                source.name: len(windows) * self.context_length
                for source, windows in zip(self.sources, self.windows, strict=True)
            },
            {source.name: source.kind for source in self.sources},
            synthetic_share=self.synthetic_share,
            repeat_cap=self.repeat_cap,
            training_tokens=self.max_steps * self.batch_size * self.context_length,
            weights=weights,
        )
        if self.synthetic_share is None:  # a limit alone changes no share
            return None if natural else list(weights.values())
        return list(shares.values())

    def skip_samples(self, ranges: Sequence[Sequence[int]]) -> None:
        """Leave out absolute ranges [first, end) of samples from now on; later samples move up."""
        self.skip = [(int(first), int(end)) for first, end in ranges]
        self.order = SampleOrder(
            sizes=[len(windows) for windows in self.windows],
            fingerprints=[windows.content_fingerprint for windows in self.windows],
            weights=self.weights,
            seed=self.seed,
            skip=self.skip,
        )

    def samples_of(self, step: int) -> list[tuple[int, int]]:
        """Absolute ranges [first, end) of the samples of optimizer step ``step`` (counted from 0)."""
        return self.order.sample_ranges(step * self.batch_size, self.batch_size)

    def documents_of(self, step: int) -> list[dict[str, Any]]:
        """For every row of optimizer step ``step`` (from 0): source, window, and the documents it holds tokens of.

        ``documents`` are [first, last + 1] as numbered in the source's training token file.
        """
        rows = []
        for source, window in zip(*self.order.global_batch(step, self.batch_size), strict=True):
            held = self.windows[source].documents(int(window))
            name = self.sources[source].name
            rows.append({"source": name, "window": int(window), "documents": [held.start, held.stop]})
        return rows

    def check_unchanged(self) -> None:
        """``ValueError`` if a token file is no longer the one that was opened."""
        for windows in self.windows:
            windows.token_file.check_unchanged()

    @property
    def identity(self) -> dict[str, Any]:
        """What decides which tokens a sample number stands for, by name; compared when a run is resumed."""
        texts = {
            f"data.text.{source.name}": windows.content_fingerprint
            for source, windows in zip(self.sources, self.windows, strict=True)
        }
        shares: list[Any] = self.weights or [None] * len(self.sources)
        weights = {f"data.weight.{source.name}": share for source, share in zip(self.sources, shares, strict=True)}
        return {**texts, **weights, "tokenizer": self.tokenizer.fingerprint}

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides which tokens a sample number stands for."""
        return data_fingerprint(self.windows)

    @property
    def character_counts(self) -> np.ndarray:
        """Characters that each token id stands for, [vocab_size]."""
        return self.tokenizer.character_counts

    @property
    def train_tokens(self) -> int:
        """Unique training tokens over all sources."""
        return sum(windows.token_file.tokens for windows in self.windows)

    def tokens_seen(self, step: int) -> int:
        """Tokens of steps 0 to ``step`` (excluded)."""
        return step * self.batch_size * self.context_length

    def record(self) -> dict[str, Any]:
        """What ``data.json`` says of these data besides fingerprints and folders."""
        return {"train_tokens": self.train_tokens, "windows": [len(windows) for windows in self.windows]}

    def description(self, max_steps: int) -> str:
        """The line about these data that a run prints at its start."""
        epochs = self.tokens_seen(max_steps) / max(1, self.train_tokens)
        return (
            f"{self.train_tokens:,} unique training tokens; {max_steps:,} steps of {self.batch_size} x "
            f"{self.context_length} tokens ({epochs:.1f} epochs)"
        )

    def rows_of(self, step: int, micro_step: int, *, rank: int, world_size: int) -> list[list[tuple[int, int, int]]]:
        """What each row of a micro-batch holds: (place in the step, first position, end); here one whole window."""
        first = (micro_step * world_size + rank) * self.micro_batch_size
        return [[(first + row, 0, self.context_length)] for row in range(self.micro_batch_size)]

    def micro_batch(self, step: int, micro_step: int, *, rank: int, world_size: int) -> dict[str, Any]:
        """Micro-batch ``micro_step`` of optimizer step ``step`` for one rank; tensors are [micro_batch_size, T]."""
        sources, places = self.order.micro_batch(
            step,
            micro_step,
            rank,
            batch_size=self.batch_size,
            world_size=world_size,
            micro_batch_size=self.micro_batch_size,
        )
        rows = np.empty((len(places), self.context_length + 1), dtype=np.int64)
        for number, windows in enumerate(self.windows):
            chosen = sources == number
            if chosen.any():
                rows[chosen] = windows.gather(places[chosen])
        self._check_ids(rows, step=step)
        batch = self._batch(torch.from_numpy(rows), target_tokens=self.batch_size * self.context_length)
        first = step * self.batch_size + (micro_step * world_size + rank) * self.micro_batch_size
        return {**batch, "checksum": rows_checksum(rows, first=first)}

    def _check_ids(self, rows: np.ndarray, *, step: int) -> None:
        """``ValueError`` for ids outside the vocabulary: the token file was damaged after it was opened."""
        if (highest := int(rows.max(initial=0))) >= self.tokenizer.vocab_size:
            files = ", ".join(str(windows.token_file.directory) for windows in self.windows)
            raise ValueError(
                f"the batch of step {step + 1} holds token id {highest}, and the tokenizer has only "
                f"{self.tokenizer.vocab_size} ids: a token file was damaged ({files}). Remove its folder and start "
                "the run again with resume=auto, and it is prepared anew."
            )

    def _batch(self, rows: torch.Tensor, *, target_tokens: int) -> dict[str, Any]:
        batch = {"input_ids": rows[:, :-1], "labels": rows[:, 1:], "target_tokens": target_tokens}
        if self.mask_documents:
            batch["document_ids"] = (batch["input_ids"] == self.tokenizer.begin_id).cumsum(dim=1, dtype=torch.int32)
        return batch

    def train_dataloader(self) -> "StepLoader":
        """One endless-epoch loader of exactly the run's micro-batches, starting at the trainer's current step."""
        assert self.trainer is not None  # Lightning attached this module to it
        return StepLoader(self, trainer=self.trainer)

    def val_dataloader(self) -> "HeldOutLoader":
        """The held-out text in order, each token scored once."""
        trainer = self.trainer
        assert trainer is not None  # Lightning attached this module to it
        return HeldOutLoader(self, rank=trainer.global_rank, world_size=trainer.world_size)

    def held_out_tokens(self) -> list[np.ndarray]:
        """The scored part of each source's held-out tokens, their first token (never a label) included."""
        share = self.validation_tokens // len(self.validation)
        return [file.tokens_array[: share + 1] for file in self.validation.values()]

    def unigram_bits_per_character(self, *, sample: int = 50_000_000) -> float:
        """Bits per character of a unigram model of the training tokens on the held-out text: the floor to beat.

        Add-one smoothed counts of at most ``sample`` training tokens over the same ids.
        """
        vocab = self.tokenizer.vocab_size
        counts = np.ones(vocab)
        for windows in self.windows:
            counts += np.bincount(windows.token_file.tokens_array[:sample], minlength=vocab)
        bits = -np.log2(counts / counts.sum())
        held_out = np.concatenate([tokens[1:] for tokens in self.held_out_tokens()])
        return float(bits[held_out].sum() / max(1, self.character_counts[held_out].sum()))


def rows_checksum(rows: np.ndarray, *, first: int) -> int:
    """Sum of a 40-bit hash of every row of [rows, T] with its place in the run (``first``, first + 1, ...).

    Sums of it over micro-batches and ranks depend on which rows stood at which places, and not on how the batch was
    cut; they stay below 2^53, so an fp64 reduction is exact up to 8,192 rows a step.
    """
    total = 0
    for place, row in enumerate(np.ascontiguousarray(rows, dtype="<i8"), start=first):
        digest = hashlib.blake2b(row, digest_size=5, salt=place.to_bytes(8, "little")).digest()
        total += int.from_bytes(digest, "little")
    return total


class StepLoader:
    """Iterable over the micro-batches of a run for one rank, from the trainer's current step on.

    ``len`` is their number in the whole run (known lengths keep Lightning from fetching ahead of the step).
    """

    def __init__(self, data: lightning.LightningDataModule, *, trainer: lightning.Trainer) -> None:
        self.data, self.trainer = data, trainer

    def __len__(self) -> int:
        return self.trainer.max_steps * self.trainer.accumulate_grad_batches

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        while (step := self.trainer.global_step) < self.trainer.max_steps:  # read anew: a rewind moves it
            for micro_step in range(self.trainer.accumulate_grad_batches):
                yield self.data.micro_batch(step, micro_step, rank=rank, world_size=world_size)


class HeldOutLoader:
    """Windows over the held-out tokens in order, each rank its share; the last one is padded with ``IGNORE``."""

    def __init__(self, data: PackedDataModule, *, rank: int, world_size: int) -> None:
        self.data = data
        length = data.context_length
        self.places: list[tuple[np.ndarray, int]] = []
        for tokens in data.held_out_tokens():
            self.places += [(tokens, start) for start in range(0, len(tokens) - 1, length)]
        self.places = self.places[rank::world_size]

    def __len__(self) -> int:
        return -(-len(self.places) // self.data.micro_batch_size)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        length, size = self.data.context_length, self.data.micro_batch_size
        for first in range(0, len(self.places), size):
            places = self.places[first : first + size]
            rows = torch.full((len(places), length + 1), self.data.tokenizer.end_id, dtype=torch.int64)
            labels = torch.full((len(places), length), IGNORE, dtype=torch.int64)
            for number, (tokens, start) in enumerate(places):
                cut = torch.from_numpy(np.asarray(tokens[start : start + length + 1], dtype=np.int64))
                rows[number, : len(cut)] = cut
                labels[number, : len(cut) - 1] = cut[1:]
            batch = self.data._batch(rows, target_tokens=int((labels >= 0).sum()))
            yield {**batch, "labels": labels}
