"""Log-likelihoods of given continuations: the options of a question after its prompt, or whole sequences.

The options of an item become a tree behind its prompt: a token that several options begin with stands once, and the
last token of an option is predicted, never read. Prompt and tree are one row of one pass, in which each option sees
the prompt and itself (tree attention: a mask, and positions that go on from the prompt in every branch), and rows of
like length share a pass. What all prompts of a call begin with (an instruction, examples) is read once and its keys
and values are laid before every row. So a question with options of one token costs one pass over its prompt.

Costs one forward pass over the distinct tokens, and the head only where a token is predicted. The mask is quadratic in
the row's length. Nothing is sampled; equal to a full pass over prompt + option, one by one, in fp64 (tested).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from ncvc.model.generation import NOT_FINITE, activation_dtype, check_ids, evaluating
from ncvc.model.key_value_cache import KeyValueCache
from ncvc.model.packed_weights import packed_weights
from ncvc.model.transformer import Transformer

TOKENS_PER_PASS = 4096  # padding counted
_SHORTEST_PREFIX = 16  # tokens that all prompts must share for them to be read apart
_TOKENS_WORTH_PACKING = 2048
_LOGIT_ROWS = 512  # positions whose logits are held at a time


def score_options(
    model: Transformer,
    items: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]],
    *,
    max_tokens_per_pass: int = TOKENS_PER_PASS,
) -> list[list[float]]:
    """Sum of log p(token | prompt, earlier tokens of the option) in nats, for every option of every (prompt, options).

    Divide by the option's length for a mean per token. Raises ``ValueError`` for an empty prompt or option, an item
    without options, ids outside the vocabulary, and a prompt with an option that does not fit the context (the last
    token of an option is not read, so it may lie one beyond it).
    """
    if max_tokens_per_pass < 1:
        raise ValueError(f"max_tokens_per_pass={max_tokens_per_pass} cannot be: set at least 1.")
    trees = [_tree(number, *item, model=model) for number, item in enumerate(items)]
    shared = _shared_prefix([tree.tokens[: tree.prompt_length - 1] for tree in trees])
    scores: list[list[float]] = [[] for _ in trees]
    tokens = shared + sum(len(tree.tokens) - shared for tree in trees)
    with evaluating(model), packed_weights(model) if tokens >= _TOKENS_WORTH_PACKING else nullcontext():
        prefix = _read_prefix(model, trees[0].tokens[:shared]) if shared else None
        for group in _groups(trees, shared=shared, limit=max_tokens_per_pass):
            for tree, found in zip(group, _score(model, group, prefix=prefix), strict=True):
                scores[tree.number] = found
    return scores


def sequence_log_likelihoods(
    model: Transformer, sequences: Sequence[Sequence[int]], *, max_tokens_per_pass: int = TOKENS_PER_PASS
) -> list[float]:
    """Sum of log p(token | all before it) in nats over every token of each sequence but its first.

    The perplexity is exp(-sum / (length - 1)). Raises ``ValueError`` for a sequence of fewer than two tokens.
    """
    for number, sequence in enumerate(sequences):
        if len(sequence) < 2:
            raise ValueError(
                f"sequence {number} has {len(sequence)} token(s): the first one is only read, so give at least two, "
                "for example the begin-of-text token ahead."
            )
    items = [(sequence[:1], [sequence[1:]]) for sequence in sequences]
    found = score_options(model, items, max_tokens_per_pass=max_tokens_per_pass)
    return [scores[0] for scores in found]


@dataclass(frozen=True)
class _Tree:
    """A prompt and, behind it, the tokens of its options that are read; ``parents`` point to the token before."""

    number: int
    tokens: list[int]
    parents: list[int]
    prompt_length: int
    predicted: list[list[tuple[int, int]]]  # per option: (place of the token before, token)


def _tree(number: int, prompt: Sequence[int], options: Sequence[Sequence[int]], *, model: Transformer) -> _Tree:
    vocab_size, context = model.config.vocab_size, model.config.context_length
    tokens = check_ids(prompt, vocab_size=vocab_size, name=f"the prompt of item {number}")
    if not tokens:
        raise ValueError(f"item {number} has an empty prompt; give at least the begin-of-text token.")
    if not options:
        raise ValueError(f"item {number} has no options; give at least one.")
    parents, length = list(range(-1, len(tokens) - 1)), len(tokens)
    known: dict[tuple[int, int], int] = {}  # (place, token) -> the place where that token stands behind it
    predicted = []
    for place, option in enumerate(options):
        ids = check_ids(option, vocab_size=vocab_size, name=f"option {place} of item {number}")
        if not ids:
            raise ValueError(f"option {place} of item {number} is empty: it has no likelihood; leave it out.")
        if length + len(ids) - 1 > context:
            raise ValueError(
                f"option {place} of item {number} has {len(ids)} tokens after a prompt of {length}, which does not fit "
                f"model.context_length={context}; shorten the prompt."
            )
        at, pairs = length - 1, []
        for token in ids[:-1]:
            pairs.append((at, token))
            if (at, token) not in known:
                known[at, token] = len(tokens)
                tokens.append(token)
                parents.append(at)
            at = known[at, token]
        predicted.append([*pairs, (at, ids[-1])])
    return _Tree(number, tokens, parents, length, predicted)


def _shared_prefix(prompts: Sequence[list[int]]) -> int:
    """How many tokens all prompts begin with; 0 where it would not pay."""
    if len(prompts) < 2:
        return 0
    first, last = min(prompts), max(prompts)
    count = next((place for place, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), None)
    count = min(len(first), len(last)) if count is None else count
    return count if count >= _SHORTEST_PREFIX else 0


def _groups(trees: Sequence[_Tree], *, shared: int, limit: int) -> Iterator[list[_Tree]]:
    """Rows of like length together, at most ``limit`` tokens with their padding (one row may be longer).

    Each row holds a copy of the shared keys and values, so these count too, to a quarter.
    """
    group: list[_Tree] = []
    for tree in sorted(trees, key=lambda tree: -len(tree.tokens)):
        length = len(group[0].tokens) if group else 0
        if group and (len(group) + 1) * max(length - shared, length // 4) > limit:
            yield group
            group = []
        group.append(tree)
    if group:
        yield group


def _read_prefix(model: Transformer, tokens: Sequence[int]) -> KeyValueCache:
    weight = model.final_norm.weight
    dtype = activation_dtype(weight)
    cache = KeyValueCache(model.config, batch=1, capacity=len(tokens), device=weight.device, dtype=dtype)
    model.hidden_states(torch.tensor([list(tokens)], device=weight.device), cache=cache)
    return cache


def _score(model: Transformer, group: Sequence[_Tree], *, prefix: KeyValueCache | None) -> list[list[float]]:
    device, shared = model.final_norm.weight.device, 0 if prefix is None else prefix.length
    length = len(group[0].tokens) - shared  # the longest comes first
    ids = torch.zeros(len(group), length, dtype=torch.long)
    for row, tree in zip(ids, group, strict=True):
        row[: len(tree.tokens) - shared] = torch.tensor(tree.tokens[shared:])
    cache = None if prefix is None else prefix.repeated(len(group), capacity=shared + length)
    if all(tree.parents == list(range(-1, len(tree.tokens) - 1)) for tree in group):  # no branches
        positions = mask = None  # padding comes last, and no token looks ahead
    else:
        positions, mask = _layout(group, length=length, shared=shared)
        positions, mask = positions.to(device), mask.to(device)
    hidden = model.hidden_states(ids.to(device), cache=cache, positions=positions, mask=mask)  # [B, T, d]
    return _log_probabilities(model, hidden, group, shared=shared)


def _layout(group: Sequence[_Tree], *, length: int, shared: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions [B, T] and mask [B, 1, T, shared + T]: a token sees itself and the tokens on its way to the root."""
    positions = torch.arange(shared, shared + length).repeat(len(group), 1)
    mask = torch.ones(length, shared + length, dtype=torch.bool).tril(diagonal=shared)
    mask = mask.repeat(len(group), 1, 1, 1)
    for row, tree in enumerate(group):
        for place in range(tree.prompt_length, len(tree.tokens)):
            own, parent = place - shared, tree.parents[place] - shared
            positions[row, own] = positions[row, parent] + 1
            mask[row, 0, own] = mask[row, 0, parent]
            mask[row, 0, own, place] = True
        positions[row, len(tree.tokens) - shared :] = 0  # padding, read by nobody; its place may pass the context
    return positions, mask


def _log_probabilities(
    model: Transformer, hidden: torch.Tensor, group: Sequence[_Tree], *, shared: int
) -> list[list[float]]:
    """Sums per option from the hidden states of one pass; each place's logits are made once."""
    places = sorted({(row, at) for row, tree in enumerate(group) for pairs in tree.predicted for at, _ in pairs})
    number_of = {place: number for number, place in enumerate(places)}
    wanted: list[list[int]] = [[] for _ in places]  # the tokens asked for at each place
    for row, tree in enumerate(group):
        for pairs in tree.predicted:
            for at, token in pairs:
                wanted[number_of[row, at]].append(token)
    index = torch.tensor([(row, at - shared) for row, at in places], device=hidden.device).T
    rows = hidden[index[0], index[1]]  # [N, d]
    found: dict[tuple[int, int], float] = {}
    for first in range(0, len(places), _LOGIT_ROWS):
        logits = model.head(rows[first : first + _LOGIT_ROWS])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        pairs = [(n, token) for n in range(first, first + len(logits)) for token in wanted[n]]
        at, token = torch.tensor(pairs, device=logits.device).T
        values = (logits[at - first, token] - logits.logsumexp(dim=-1)[at - first]).tolist()
        if any(math.isnan(value) for value in values):
            raise ValueError(NOT_FINITE)
        found.update(zip(pairs, values, strict=True))
    return [
        [sum(found[number_of[row, at], token] for at, token in pairs) for pairs in tree.predicted]
        for row, tree in enumerate(group)
    ]
