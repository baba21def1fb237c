"""Continue prompts token by token, many at a time, with a static key/value cache.

Prompts of unequal length lie in one cache, padded on the left: each row's positions start at its own first token and
no row sees padding, so a row gets the tokens that it gets alone (up to the rounding of the products). Prompts of very
different length are read in groups, so that a short one does not pay for a long one's padding. A row that has ended
leaves the batch as soon as a quarter of the rows can go.

Each step costs one pass of one token per row, the head on one position, and one small transfer from the device. On a
CPU the matrices are packed where it pays (``packed_weights``; a program that answers often packs them once with
``pack_weights``). The cache holds 2 x num_layers x num_kv_heads x head_dim
values per row and token. One static batch: a prompt that comes later waits for the next call. One call at a time per
model: it is put into evaluation mode meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from ncvc.constraints import Constraint
from ncvc.model.key_value_cache import KeyValueCache
from ncvc.model.packed_weights import packed_weights
from ncvc.model.sampling_rules import Sampling, TokenPicker
from ncvc.model.transformer import Transformer

__all__ = ["Generated", "Sampling", "generate", "generate_batch"]

MOST_TOKENS_PER_PASS = 8192  # of prompts, padding counted; bounds what one pass holds
_WASTE = 1.25  # padded over real tokens of a group of prompts, at most
_ROW_STEPS_WORTH_PACKING = 256  # of one call; below it the packing costs more time than it saves
NOT_FINITE = (
    "the network's logits are not finite: the weights are broken, or too large for their type; load them in float32, "
    "or take an earlier checkpoint."
)


@dataclass(frozen=True)
class Generated:
    """New ids without prompt and end token, and why there are no more."""

    ids: list[int]
    finish_reason: Literal["stop", "length", "cancelled"]


@dataclass
class _Row:
    number: int  # place in the caller's order
    prompt: list[int]
    sampling: Sampling
    budget: int  # new tokens, at most
    constraint: Constraint | None
    state: Any = None
    ids: list[int] = field(default_factory=list)
    reason: Literal["stop", "length", "cancelled"] | None = None

    def take(self, token: int, *, end_id: int | None, on_token: Callable[[int, int], bool | None] | None) -> None:
        if token == end_id:
            self.reason = "stop"
            return
        self.ids.append(token)
        if self.constraint is not None:
            self.state = self.constraint.advance(self.state, token)
        if on_token is not None and on_token(self.number, token) is False:
            self.reason = "cancelled"
        elif self.constraint is not None and end_id is not None and self.only_end_left(end_id):
            self.reason = "stop"  # sure without another step
        elif len(self.ids) >= self.budget:
            self.reason = "length"

    def only_end_left(self, end_id: int) -> bool:
        assert self.constraint is not None
        allowed = self.constraint.allowed(self.state)
        return len(allowed) == 1 and allowed[0] == end_id


def generate_batch(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    sampling: Sampling | Sequence[Sampling],
    end_id: int | None,
    constraints: Sequence[Constraint | None] | None = None,
    on_token: Callable[[int, int], bool | None] | None = None,
) -> list[Generated]:
    """Continue every prompt until ``end_id``, its ``max_new_tokens`` or the end of the context, whichever is first.

    ``sampling`` and ``constraints`` are one per row (or one sampling for all). ``on_token(row, id)`` hears every new
    token but the end token as it comes, in the order of the rows; where it returns False, that row ends there with
    reason "cancelled". A row with a constraint gets only allowed tokens; it may end by length before its answer does.

    Raises ``ValueError`` for an empty prompt, ids outside the vocabulary, a prompt that leaves no room in the context,
    a constraint that allows nothing, and logits that are not finite.
    """
    rows = _rows(model, prompts, sampling=sampling, constraints=constraints)
    for row in rows:
        if row.constraint is not None:
            row.state = row.constraint.start()
    if not rows:
        return []
    row_steps = sum(row.budget for row in rows)
    with evaluating(model), packed_weights(model) if row_steps >= _ROW_STEPS_WORTH_PACKING else nullcontext():
        _Batch(model, rows).run(end_id=end_id, on_token=on_token)
    return [Generated(row.ids, row.reason or "length") for row in rows]


class _Batch:
    """The rows that are still being written, longest prompt first, and the cache that they share."""

    def __init__(self, model: Transformer, rows: Sequence[_Row]) -> None:
        self.model = model
        self.rows = sorted(rows, key=lambda row: -len(row.prompt))
        weight = model.final_norm.weight
        self.device = weight.device
        self.longest = len(self.rows[0].prompt)
        self.cache = KeyValueCache(
            model.config,
            batch=len(rows),
            capacity=self.longest + max(row.budget for row in rows) - 1,  # the last token is never read
            device=weight.device,
            dtype=activation_dtype(weight),
        )
        self.starts = [self.longest - len(row.prompt) for row in self.rows]
        self.picker = TokenPicker(
            [row.prompt for row in self.rows],
            samplings=[row.sampling for row in self.rows],
            vocab_size=model.config.vocab_size,
            device=weight.device,
        )

    def run(self, *, end_id: int | None, on_token: Callable[[int, int], bool | None] | None) -> None:
        hidden = self._read_prompts()
        self._lay_out()
        while True:
            logits = self.model.head(hidden)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            tokens = self.picker(logits, allowed=self._allowed())
            for row, token in sorted(zip(self.rows, tokens.tolist(), strict=True), key=lambda pair: pair[0].number):
                if row.reason is None:
                    if token < 0:
                        raise ValueError(NOT_FINITE)
                    row.take(token, end_id=end_id, on_token=on_token)
            live = [place for place, row in enumerate(self.rows) if row.reason is None]
            if not live:
                return
            if len(live) <= 0.75 * len(self.rows):
                tokens = tokens[torch.tensor(live, device=self.device)]
                self._keep(live)
            hidden = self._step(tokens)

    def _allowed(self) -> list[Sequence[int] | None] | None:
        if all(row.constraint is None for row in self.rows):
            return None
        found: list[Sequence[int] | None] = []
        for row in self.rows:
            if row.constraint is None or row.reason is not None:
                found.append(None)
                continue
            ids = row.constraint.allowed(row.state)
            if not ids:
                raise ValueError(
                    f"the constraint of row {row.number} allows no token after {row.ids}: where an answer may end, it "
                    "must allow the end token."
                )
            found.append(ids)
        return found

    def _read_prompts(self) -> torch.Tensor:
        """Fill the cache group by group; the hidden state of every prompt's last token, [B, d]."""
        hidden, first = [], 0
        while first < len(self.rows):
            length, last, real = len(self.rows[first].prompt), first, 0
            while last < len(self.rows):
                real += len(self.rows[last].prompt)
                padded = (last + 1 - first) * length
                if last > first and (padded > _WASTE * real or padded > MOST_TOKENS_PER_PASS):
                    break
                last += 1
            cache = self.cache.window(slice(first, last), first=self.longest - length)
            hidden.append(read_left_padded(self.model, [row.prompt for row in self.rows[first:last]], cache=cache))
            first = last
        self.cache.length = self.longest
        return torch.cat(hidden)

    def _lay_out(self) -> None:
        """Positions and mask of the steps to come; rows without padding need neither."""
        self.positions: torch.Tensor | None = None
        self.mask: torch.Tensor | None = None
        if any(self.starts):
            starts = torch.tensor(self.starts, device=self.device)
            self.positions = (self.cache.length - starts).unsqueeze(1)  # [B, 1]
            columns = torch.arange(self.cache.store.size(4), device=self.device)
            self.mask = (columns >= starts.unsqueeze(1))[:, None, None]  # [B, 1, 1, capacity]

    def _step(self, tokens: torch.Tensor) -> torch.Tensor:
        length = self.cache.length + 1
        mask = None if self.mask is None else self.mask[..., :length]
        hidden = self.model.hidden_states(
            tokens.unsqueeze(1), cache=self.cache, positions=self.positions, mask=mask
        )  # [B, 1, d]
        if self.positions is not None:  # a row that ended but has not left must not run past the tables
            self.positions = (self.positions + 1).clamp(max=self.model.config.context_length - 1)
        return hidden[:, 0]

    def _keep(self, live: list[int]) -> None:
        self.rows = [self.rows[place] for place in live]
        self.picker.keep(live)
        first = min(self.starts[place] for place in live)
        self.cache.keep(live, first=first)
        self.starts = [self.starts[place] - first for place in live]
        self._lay_out()


def read_left_padded(model: Transformer, prompts: Sequence[Sequence[int]], *, cache: KeyValueCache) -> torch.Tensor:
    """Read prompts into an empty cache, padded on the left to the longest; the last hidden states, [B, d]."""
    device, length = model.final_norm.weight.device, max(map(len, prompts))
    ids = torch.tensor([[0] * (length - len(prompt)) + list(prompt) for prompt in prompts], device=device)  # [B, T]
    starts = torch.tensor([[length - len(prompt)] for prompt in prompts], device=device)  # [B, 1]
    positions = mask = None
    if any(len(prompt) < length for prompt in prompts):
        columns = torch.arange(length, device=device)
        positions = (columns - starts).clamp(min=0)
        causal = columns <= columns.unsqueeze(1)
        alone = columns == columns.unsqueeze(1)  # padding sees itself, or its softmax would be of nothing
        mask = ((causal & (columns >= starts.unsqueeze(2))) | alone).unsqueeze(1)  # [B, 1, T, T]
    return model.hidden_states(ids, cache=cache, positions=positions, mask=mask)[:, -1]


@contextmanager
def evaluating(model: Transformer) -> Iterator[None]:
    """Evaluation mode without gradients; the mode is put back afterwards."""
    was_training = model.training
    if was_training:
        model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        if was_training:
            model.train()


def activation_dtype(weight: torch.Tensor) -> torch.dtype:
    """Type of keys and values: the weights', or autocast's where it is on."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def check_ids(ids: Sequence[int], *, vocab_size: int, name: str) -> list[int]:
    """``ids`` as a list; ``ValueError`` where one is no id of this vocabulary."""
    found = [int(token) for token in ids]
    wrong = next((token for token in found if not 0 <= token < vocab_size), None)
    if wrong is not None:
        raise ValueError(
            f"{name} has token id {wrong}, and the network knows 0 to {vocab_size - 1}: encode it with the tokenizer "
            "that lies in the same model directory."
        )
    return found


def _rows(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    sampling: Sampling | Sequence[Sampling],
    constraints: Sequence[Constraint | None] | None,
) -> list[_Row]:
    samplings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
    chosen = [None] * len(prompts) if constraints is None else list(constraints)
    for name, values in (("sampling", samplings), ("constraints", chosen)):
        if len(values) != len(prompts):
            raise ValueError(f"{len(values)} {name} for {len(prompts)} prompts: give one per prompt.")
    rows, context = [], model.config.context_length
    for number, prompt in enumerate(prompts):
        ids = check_ids(prompt, vocab_size=model.config.vocab_size, name=f"prompt {number}")
        if not ids:
            raise ValueError(
                f"prompt {number}: the prompt has no tokens; give at least one, for example the begin-of-text token."
            )
        if len(ids) >= context:
            raise ValueError(
                f"prompt {number} has {len(ids)} tokens and leaves no room for an answer in "
                f"model.context_length={context}; shorten it to {context - 1} or fewer."
            )
        budget = min(samplings[number].max_new_tokens, context - len(ids))
        rows.append(_Row(number, ids, samplings[number], budget, chosen[number]))
    return rows


def generate(
    model: Transformer,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    end_id: int | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    on_token: Callable[[int], object] | None = None,
) -> list[int]:
    """New token ids after one prompt, by ``generate_batch``; a prompt too long for the context keeps its end.

    The prompt keeps what ``max_new_tokens`` leave of the context, but never less than half of it.
    """
    sampling = Sampling(
        max_new_tokens, temperature=temperature, top_p=top_p, repetition_penalty=repetition_penalty, seed=seed
    )
    context = model.config.context_length
    kept = list(prompt_ids)[-max(context - max_new_tokens, context // 2, 1) :]

    def tell(_: int, token: int) -> None:
        if on_token is not None:
            on_token(token)

    return generate_batch(model, [kept], sampling=sampling, end_id=end_id, on_token=tell)[0].ids
