"""What a score says, in words, by one table of rules; the first that applies is the verdict.

"Better" stands in the last rule alone: it needs every item answered, an interval above chance, paired tests won against
a constant answer and every baseline, and a record of training that does not hold the items, or all that again on those
it does not hold. Whatever explains a score (guessing, a constant answer, surface, memory) is named instead. The same
holds between two models (`comparison`).

Costs: nothing. Does not: correct for looking at many tasks; at level 0.95 one in twenty is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ncvc.evaluation.statistics import LEVEL, PairedTest


@dataclass(frozen=True, kw_only=True)
class Rival:
    """What a score is held against on the same items: its name, its score, and the paired test's p-value."""

    name: str
    value: float
    p_value: float


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that a verdict rests on.

    ``value`` with its interval ``low`` to ``high`` (the wider one of items and documents) and ``chance`` are in the
    same measure as the rivals. ``baselines`` are those that ran; ``not_run`` says why trained ones are lacking, if they
    are. ``trained_share`` is the share of the items read in training, None if unknown; ``at_least``: there may be more;
    ``unread`` are the same facts of the items not read, where some were.
    """

    items: int
    answered: int
    value: float
    low: float
    high: float
    chance: float
    constant: Rival | None = None
    baselines: tuple[Rival, ...] = ()
    not_run: str | None = None
    trained_share: float | None = None
    at_least: bool = False
    unread: Facts | None = None
    significance: float = 1.0 - LEVEL

    def is_beaten(self, rival: Rival) -> bool:
        """Whether the score is above ``rival`` and the paired test says so."""
        return self.value > rival.value and rival.p_value < self.significance

    @property
    def is_memory(self) -> bool:
        """Whether items were read in training, and the score is not above chance and baselines on the others."""
        if not self.trained_share:
            return False
        return self.unread is None or rule_of(self.unread).name not in ("better", "baselines not run")

    @property
    def unbeaten(self) -> Rival | None:
        """The strongest baseline that the score is not surely above."""
        rivals = [rival for rival in self.baselines if not self.is_beaten(rival)]
        return max(rivals, key=lambda rival: rival.value, default=None)


@dataclass(frozen=True)
class Rule:
    """A condition, what it is called, and the words of the verdict."""

    name: str
    applies: Callable[[Facts], bool]
    words: Callable[[Facts], str]


def _against(rival: Rival, facts: Facts) -> str:
    below = rival.value > facts.value and rival.p_value < facts.significance
    return f"{'below' if below else 'not told apart from'} {rival.name} ({rival.value:.2f}, p {_p(rival.p_value)})"


def _p(value: float) -> str:
    return "unknown" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.2g}"


def _unbeaten(facts: Facts) -> str:
    rival = facts.unbeaten
    assert rival is not None
    return f"{_against(rival, facts)}, which is no language model"


def _constant(facts: Facts) -> str:
    assert facts.constant is not None
    return _against(facts.constant, facts)


def _memory(facts: Facts) -> str:
    share = 0.0 if facts.trained_share is None else facts.trained_share
    told = f"{'at least ' if facts.at_least else ''}{share:.0%}"
    return f"above chance and baselines, but {told} of the items are about texts it was trained on: memory may be why"


def _better(facts: Facts) -> str:
    if facts.unread is None:
        return "better than chance and every baseline, on items it was not trained on"
    others = f"the {facts.unread.items:,} items alone that it was not trained on"
    return f"better than chance and every baseline, also on {others}"


RULES: tuple[Rule, ...] = (
    Rule("nothing answered", lambda f: f.answered == 0, lambda f: "no score: no item was answered"),
    Rule(
        "incomplete",
        lambda f: f.answered < f.items,
        lambda f: f"no verdict: {f.items - f.answered:,} of {f.items:,} items have no answer yet",
    ),
    Rule("undefined", lambda f: math.isnan(f.value + f.low + f.high), lambda f: "no verdict: the score is undefined"),
    Rule("below chance", lambda f: f.high < f.chance, lambda f: f"below chance ({f.chance:.2f})"),
    Rule("chance", lambda f: f.low <= f.chance, lambda f: f"not told apart from chance ({f.chance:.2f})"),
    Rule("constant", lambda f: f.constant is not None and not f.is_beaten(f.constant), _constant),
    Rule("baseline", lambda f: f.unbeaten is not None, _unbeaten),
    Rule("memory", lambda f: f.is_memory, _memory),
    Rule(
        "baselines not run",
        lambda f: f.not_run is not None,
        lambda f: f"above chance; no verdict on baselines: {f.not_run}",
    ),
    Rule(
        "training unknown",
        lambda f: f.trained_share is None or f.at_least,
        lambda f: "above chance and baselines; whether it was trained on these items is not known",
    ),
    Rule("better", lambda f: True, _better),
)
"""In the order in which they are tried."""


def rule_of(facts: Facts) -> Rule:
    """The rule that applies."""
    return next(rule for rule in RULES if rule.applies(facts))


def verdict(facts: Facts) -> str:
    """The verdict in words."""
    return rule_of(facts).words(facts)


def comparison(
    first: str, second: str, test: PairedTest, *, first_share: float | None, second_share: float | None
) -> str:
    """What a paired test says of two models: ``first_share`` and ``second_share`` of the items were trained on.

    A model that leads is called better only if it is known not to have been trained on the items.
    """
    if math.isnan(test.p_value) or test.p_value >= 1.0 - LEVEL:
        return f"{first} and {second} cannot be told apart (difference {test.difference:+.2f}, p {_p(test.p_value)})"
    leader, other, share = (second, first, second_share) if test.difference > 0 else (first, second, first_share)
    told = f"{leader} scores {abs(test.difference):.2f} above {other} (p {_p(test.p_value)})"
    if share is None:
        return f"{told}; whether it was trained on these items is not known"
    if share > 0:
        return f"{told}, but {share:.0%} of the items are about texts it was trained on: memory may explain it"
    return f"{told} and is better on these items"
