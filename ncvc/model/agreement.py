"""Do two programs compute the same network? Logits of fixed and random rows of ids, and 32 greedy tokens after prompts.

The rows reach from one token to the whole context and over the whole vocabulary; ids are drawn from a generator of
their own, so that the same model gives the same figures. Both sides run in fp32 with the same rows.

The bound: programs that sum in the same order agree bit for bit (largest difference 0). Where a matrix is cut
otherwise, a gate is multiplied in, or another library sums, fp32 rounding leaves a difference, which a deep or sharp
network amplifies. How far is measured on the network itself: ``sensitivity`` is the largest change of a logit when each
number of the embedding moves by about two of its last bits, and ``FACTOR`` times that is allowed (1.2 times is what
folded gates need, 6 times what rotary frequencies rounded otherwise do at position 2,000). A greedy token may differ
only where the two best logits of ours are closer than twice the bound: a tie.

Costs two forward passes over about 1.2 contexts of tokens with our network, one with the other, and some hundred steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ncvc.model.generation import generate
from ncvc.model.transformer import ModelConfig, Transformer

FACTOR = 16.0  # of the network's own sensitivity
SMALLEST_BOUND, LARGEST_BOUND = 2.0**-20, 2.0**-4  # of the largest logit, however sensitive the network is
_MOVED = 2.0**-22
GREEDY_TOKENS = 32
AGREEMENT = ("max_difference", "bound", "largest_logit", "prompts", "greedy_tokens", "ties")  # of compare_figures
KEPT_POSITIONS = 256  # logits kept of one row


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Logits [positions, V] per row, and per prompt its greedy tokens.

    Of ours also the ``leads`` of each greedy token over the second best, and the ``sensitivity`` of the logits.
    """

    logits: list[torch.Tensor]
    tokens: list[list[int]]
    leads: list[list[float]] = field(default_factory=list)
    sensitivity: float = 0.0

    @property
    def largest_logit(self) -> float:
        """Largest absolute value of all logits; infinite or NaN where one is."""
        return max(float(logits.abs().max()) for logits in self.logits)

    def largest_difference(self, other: Figures) -> float:
        """Largest absolute difference of two logits at the same place; NaN when one is no number."""
        pairs = zip(self.logits, other.logits, strict=True)
        return float(torch.stack([(mine - theirs).abs().max() for mine, theirs in pairs]).max())


def rows_of_ids(config: ModelConfig) -> list[torch.Tensor]:
    """Rows of ids [B, T] to compare logits on: one token, a stride over the vocabulary, random ones, a context."""
    generator = torch.Generator().manual_seed(0)
    context = config.context_length

    def random(batch: int, length: int) -> torch.Tensor:
        return torch.randint(config.vocab_size, (batch, min(length, context)), generator=generator)

    stride = torch.arange(min(64, context))[None] * 7919 % config.vocab_size
    return [random(1, 1), stride, random(1, 7), random(2, 64), random(1, context)]


def prompts_of_ids(config: ModelConfig) -> list[list[int]]:
    """Prompts for greedy decoding: begin of text alone, then random ids, as long as the context leaves room."""
    generator = torch.Generator().manual_seed(1)
    longest = max(1, config.context_length - GREEDY_TOKENS)
    lengths = [min(length, longest) for length in (3, 21, 55)]
    drawn = [torch.randint(config.vocab_size, (length,), generator=generator).tolist() for length in lengths]
    return [[0], *drawn]


def kept_logits(logits: torch.Tensor) -> torch.Tensor:
    """Of logits [B, T, V] at most ``KEPT_POSITIONS`` evenly spaced ones, first and last among them; [positions, V]."""
    flat = logits.flatten(0, 1).float()
    if len(flat) <= KEPT_POSITIONS:
        return flat.clone()
    return flat[torch.linspace(0, len(flat) - 1, KEPT_POSITIONS).round().long()]


@torch.no_grad()
def figures_of(network: Transformer) -> Figures:
    """What our network computes, which should be in fp32 and in evaluation mode."""
    config, rows = network.config, rows_of_ids(network.config)
    logits = [kept_logits(network(ids)) for ids in rows]
    moved = Figures(logits=[kept_logits(_moved_logits(network, ids)) for ids in rows], tokens=[])
    tokens: list[list[int]] = []
    leads: list[list[float]] = []
    for prompt in prompts_of_ids(config):
        room = min(GREEDY_TOKENS, config.context_length - len(prompt))
        new = generate(network, prompt, max_new_tokens=room, end_id=None) if room > 0 else []
        best = network(torch.tensor([[*prompt, *new]]))[0, len(prompt) - 1 : -1].float().topk(2).values
        tokens.append(new)
        leads.append((best[:, 0] - best[:, 1]).tolist())
    found = Figures(logits=logits, tokens=tokens, leads=leads)
    return replace(found, sensitivity=found.largest_difference(moved))


def _moved_logits(network: Transformer, ids: torch.Tensor) -> torch.Tensor:
    """Logits [B, T, V] with every number of the scaled embedding moved at random by about two of its last bits."""
    embedded = network.embedding(ids) * network.config.embedding_multiplier  # [B, T, d]
    random = torch.randn(embedded.shape, generator=torch.Generator().manual_seed(2))
    return network.head(network.hidden_states(ids, noise=embedded * random * _MOVED))


@torch.no_grad()
def figures_of_other(
    config: ModelConfig,
    *,
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    continue_greedily: Callable[[list[int], int], list[int]],
) -> Figures:
    """The same rows and prompts through another program: ids [B, T] to logits [B, T, V], and prompt to new tokens."""
    logits = [kept_logits(logits_of(ids)) for ids in rows_of_ids(config)]
    tokens = []
    for prompt in prompts_of_ids(config):
        room = min(GREEDY_TOKENS, config.context_length - len(prompt))
        tokens.append(continue_greedily(prompt, room) if room > 0 else [])
    return Figures(logits=logits, tokens=tokens)


def compare_figures(ours: Figures, theirs: Figures, *, what: str) -> dict[str, Any]:
    """``max_difference``, the ``bound`` it has to keep, ``largest_logit``, and how many prompts and tokens agree.

    ``ValueError``, beginning with ``what``, when logits differ by more than the bound, are no numbers, or a greedy
    token differs that is no tie.
    """
    largest, difference = ours.largest_logit, ours.largest_difference(theirs)
    bound = min(max(FACTOR * ours.sensitivity, SMALLEST_BOUND * largest), LARGEST_BOUND * largest)
    if not difference <= bound or not largest < float("inf"):
        raise ValueError(
            f"{what}: the logits differ by up to {difference:.3g} from ncvc's (allowed {bound:.3g}, the largest logit "
            f"is {largest:.3g}): this is not the same network, so nothing is written. Weights that are not numbers, or "
            "another version of a package than the tested one, are the likely causes."
        )
    ties = agreed = 0
    for number, (mine, other, leads) in enumerate(zip(ours.tokens, theirs.tokens, ours.leads, strict=True), 1):
        place = next((n for n, (a, b) in enumerate(zip(mine, other, strict=False)) if a != b), None)
        if place is None and len(mine) == len(other):
            agreed += len(mine)
            continue
        place = min(len(mine), len(other)) if place is None else place
        if place >= len(leads) or leads[place] > 2 * bound:
            raise ValueError(
                f"{what}: greedy token {place + 1} after prompt {number} is another one than ncvc's, and no tie: this "
                "is not the same network, so nothing is written."
            )
        ties, agreed = ties + 1, agreed + place
    return dict(zip(AGREEMENT, (difference, bound, largest, len(ours.tokens), agreed, ties), strict=True))


def told(agreement: dict[str, Any]) -> str:
    """The comparison as one line for the terminal and the model card."""
    ties = f", {agreement['ties']} prompt(s) up to a tie of two logits" if agreement["ties"] else ""
    return (
        f"largest difference of a logit {agreement['max_difference']:.2g} (bound {agreement['bound']:.2g}, largest "
        f"logit {agreement['largest_logit']:.3g}); {agreement['greedy_tokens']} greedy tokens after "
        f"{agreement['prompts']} prompts identical{ties}"
    )
