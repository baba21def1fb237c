"""From the logits of a batch to one token per row: penalty, constraint, temperature, top-p, draw.

In this order: the repetition penalty on what prompt and answer hold so far (Keskar et al. 2019, arXiv 1909.05858), the
constraint's allowed tokens, then greedy at temperature 0, else a draw from the softmax at that temperature, cut to the
smallest set of tokens that holds ``top_p`` of it (Holtzman et al. 2020, arXiv 1904.09751).

A row draws one number per token from a generator of its own and inverts the distribution with it, in the order of the
vocabulary. So a row's tokens depend on its own seed and logits, not on the rows beside it nor on the device's random
numbers, and the process's generators are never touched.

Costs one pass over [B, V]; a sort of the whole vocabulary only where the 64 likeliest tokens hold less than ``top_p``.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass

import torch

_LIKELIEST = 64  # tokens that are sorted first
_COLDEST = 1e-30  # temperatures below it are greedy in fp32 anyway, and 1 / temperature would overflow


@dataclass(frozen=True)
class Sampling:
    """How one row is continued; ``ValueError`` names every setting that cannot be."""

    max_new_tokens: int
    _: KW_ONLY
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        found = []
        if not _whole(self.max_new_tokens) or self.max_new_tokens < 1:
            found.append(f"max_new_tokens={self.max_new_tokens!r} cannot be: set a whole number of at least 1.")
        if not (_number(self.temperature) and self.temperature >= 0):
            found.append(f"temperature={self.temperature!r} cannot be: set 0 for greedy, or a number above 0.")
        if not (_number(self.top_p) and 0 < self.top_p <= 1):
            found.append(f"top_p={self.top_p!r} cannot be: set a number above 0 and at most 1 (1 cuts nothing).")
        if not (_number(self.repetition_penalty) and self.repetition_penalty > 0):
            found.append(f"repetition_penalty={self.repetition_penalty!r} cannot be: set 1 for none, or above 1.")
        if not _whole(self.seed) or self.seed < 0:
            found.append(f"seed={self.seed!r} cannot be: set a whole number of at least 0.")
        if found:
            raise ValueError("\n".join(found))


class TokenPicker:
    """Picks the tokens of a batch of rows, step by step; knows each row's settings and what it has seen."""

    def __init__(
        self, prompts: Sequence[Sequence[int]], *, samplings: Sequence[Sampling], vocab_size: int, device: torch.device
    ) -> None:
        self.samplings, self.device = list(samplings), device
        self._streams = [random.Random(sampling.seed) for sampling in samplings]
        self._seen: torch.Tensor | None = None  # [B, V]
        if any(sampling.repetition_penalty != 1.0 for sampling in samplings):
            seen = torch.zeros(len(prompts), vocab_size, dtype=torch.bool)
            for row, prompt in zip(seen, prompts, strict=True):
                row[torch.tensor(prompt)] = True
            self._seen = seen.to(device)
        self._settings()

    def _settings(self) -> None:
        drawn = [row for row, sampling in enumerate(self.samplings) if sampling.temperature > 0]
        cut = [place for place, row in enumerate(drawn) if self.samplings[row].top_p < 1]
        self._drawn, self._cut = drawn, torch.tensor(cut, device=self.device)
        self._drawn_index = torch.tensor(drawn, device=self.device)

        def column(values: Iterable[float]) -> torch.Tensor:
            return torch.tensor(list(values), dtype=torch.float32, device=self.device).unsqueeze(1)

        self._temperature = column(max(self.samplings[row].temperature, _COLDEST) for row in drawn)
        self._top_p = column(self.samplings[drawn[place]].top_p for place in cut)
        self._penalty = column(sampling.repetition_penalty for sampling in self.samplings)

    def keep(self, rows: Sequence[int]) -> None:
        """Let go of all rows but these."""
        self.samplings = [self.samplings[row] for row in rows]
        self._streams = [self._streams[row] for row in rows]
        if self._seen is not None:
            self._seen = self._seen[torch.tensor(rows, device=self.device)]
        self._settings()

    def __call__(self, logits: torch.Tensor, *, allowed: Sequence[Sequence[int] | None] | None = None) -> torch.Tensor:
        """Token ids [B] from ``logits`` [B, V] (fp32 or fp64), -1 where a row's logits are not finite.

        ``allowed`` lists, for each constrained row, the ids that may come.
        """
        if self._seen is not None:
            punished = torch.where(logits > 0, logits / self._penalty, logits * self._penalty)
            logits = torch.where(self._seen, punished, logits)
        if allowed is not None:
            logits = _only(logits, allowed)
        best, tokens = logits.max(dim=-1)
        if self._drawn:
            chosen = logits if len(self._drawn) == len(logits) else logits[self._drawn_index]
            tokens = tokens.index_copy(0, self._drawn_index, self._draw(chosen))
        if self._seen is not None:
            self._seen.scatter_(1, tokens.unsqueeze(1), True)
        return torch.where(best.isfinite(), tokens, -1)

    def _draw(self, logits: torch.Tensor) -> torch.Tensor:
        probabilities = ((logits - logits.amax(dim=-1, keepdim=True)) / self._temperature).softmax(dim=-1)
        if len(self._cut) == len(probabilities):
            probabilities = nucleus(probabilities, self._top_p)
        elif len(self._cut):
            probabilities = probabilities.index_copy(0, self._cut, nucleus(probabilities[self._cut], self._top_p))
        below = probabilities.double().cumsum(dim=-1)  # [R, V]
        numbers = [self._streams[row].random() for row in self._drawn]
        total = below[:, -1:]
        point = torch.tensor(numbers, dtype=torch.float64, device=self.device).unsqueeze(1) * total
        point = torch.minimum(point, torch.nextafter(total, torch.zeros_like(total)))  # below the total, so on a token
        found = torch.searchsorted(below, point, right=True).squeeze(1)
        return found.clamp(max=logits.size(-1) - 1)  # past the end only where a row is not finite


def nucleus(probabilities: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """``probabilities`` [R, V], 0 outside each row's smallest set of likeliest tokens that holds ``top_p`` [R, 1]."""
    size = probabilities.size(-1)
    if probabilities.device.type == "cpu" and size > _LIKELIEST:  # on a GPU the test would wait for the device
        values, order = probabilities.topk(_LIKELIEST, dim=-1)
        if bool((values.sum(dim=-1, keepdim=True) < top_p).any()):
            values, order = probabilities.sort(dim=-1, descending=True)
    else:
        values, order = probabilities.sort(dim=-1, descending=True)
    before = values.cumsum(dim=-1) - values  # mass ahead of each token; the first is always kept
    return torch.zeros_like(probabilities).scatter(1, order, values.where(before < top_p, 0.0))


def _only(logits: torch.Tensor, allowed: Sequence[Sequence[int] | None]) -> torch.Tensor:
    """``logits`` with minus infinity outside the allowed ids of constrained rows."""
    rows = [row for row, ids in enumerate(allowed) if ids is not None for _ in ids]
    columns = torch.tensor([token for ids in allowed if ids is not None for token in ids])
    if int(columns.min()) < 0 or int(columns.max()) >= logits.size(-1):
        raise ValueError(
            f"a constraint allows token ids {int(columns.min())} to {int(columns.max())}, and the network knows 0 to "
            f"{logits.size(-1) - 1}: make it with the tokenizer that lies in the same model directory."
        )
    row_index, column_index = torch.tensor(rows, device=logits.device), columns.to(logits.device)
    masked = torch.full_like(logits, -math.inf)
    masked[row_index, column_index] = logits[row_index, column_index]
    if free := [row for row, ids in enumerate(allowed) if ids is None]:
        masked[free] = logits[free]
    return masked


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
