"""How much of what training sees comes from which source: real against synthetic text, and repetition (R107).

What it does: `mixture_weights` turns the tokens of the sources, who wrote them, and two rules into shares of the
training samples, and refuses by name, with the figure that would fit, what the text cannot give:

* ``synthetic_share``: the synthetic sources together make up exactly this share. Within the real and within the
  synthetic ones, proportions stay as they are (by tokens, or by the weights that were set).
* ``repeat_cap``: no source is read more often than this many times in the whole training.

What it costs: nothing. What it does not do: read text, change any source, or know which tokens are good.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from ncvc.sampling import PERIOD

KINDS = ("real", "synthetic")


def mixture_weights(
    tokens: Mapping[str, int],
    kinds: Mapping[str, str],
    *,
    synthetic_share: float | None,
    repeat_cap: float | None,
    training_tokens: int,
    weights: Mapping[str, float | None] | None = None,
) -> dict[str, float]:
    """Share of the training samples of each source, by name; they sum to 1.

    ``tokens`` are the distinct tokens of each source, ``kinds`` say "real" or "synthetic", ``training_tokens`` is what
    the whole training reads. ``weights`` are relative shares (None everywhere: by tokens). Null rules are off. Raises
    ``ValueError`` for settings that mean nothing, a ``synthetic_share`` that these kinds of sources cannot give, and a
    source that would be repeated too often.
    """
    _check(tokens, kinds, synthetic_share=synthetic_share, repeat_cap=repeat_cap, training_tokens=training_tokens)
    relative = _relative(tokens, weights)
    if synthetic_share is not None:
        of_kind = _kind_shares(kinds, synthetic_share)
        sums = {kind: sum(relative[name] for name in tokens if kinds[name] == kind) for kind in of_kind}
        relative = {name: relative[name] / sums[kinds[name]] * of_kind[kinds[name]] for name in tokens}
    shares = {name: relative[name] / sum(relative.values()) for name in tokens}
    if repeat_cap is not None:
        _refuse_repetition(
            shares,
            tokens,
            kinds,
            repeat_cap=repeat_cap,
            training_tokens=training_tokens,
            synthetic_share=synthetic_share,
        )
    if synthetic_share is not None:
        for name, share in shares.items():
            if share * PERIOD < 0.5:  # less than a sample in every period of the order of samples
                raise ValueError(
                    f"data.synthetic_share={synthetic_share} leaves source {name} {share:.3%} of the samples, fewer "
                    f"than one in {PERIOD:,}; leave the source out, or join it with another one of its kind"
                )
    return shares


def repetitions(shares: Mapping[str, float], tokens: Mapping[str, int], *, training_tokens: int) -> dict[str, float]:
    """How often each source is read in a training of ``training_tokens``, by name."""
    return {name: shares[name] * training_tokens / tokens[name] for name in tokens}


def _check(
    tokens: Mapping[str, int],
    kinds: Mapping[str, str],
    *,
    synthetic_share: float | None,
    repeat_cap: float | None,
    training_tokens: int,
) -> None:
    if not tokens or set(tokens) != set(kinds):
        raise ValueError(f"sources {list(tokens)} and their kinds {list(kinds)} must be the same, and at least one")
    for name, kind in kinds.items():
        if kind not in KINDS:
            raise ValueError(f"data.sources.{name}.kind={kind!r} is not known; set {' or '.join(KINDS)}")
        if tokens[name] < 1:
            raise ValueError(f"source {name} has {tokens[name]} tokens; leave it out")
    if training_tokens < 1:
        raise ValueError(f"a training of {training_tokens} tokens has no mixture; set trainer.max_steps to 1 or more")
    if synthetic_share is not None and not 0 <= synthetic_share <= 1:
        raise ValueError(
            f"data.synthetic_share={synthetic_share} is no share; set a number from 0 to 1, or null for no rule"
        )
    if repeat_cap is not None and not 0 < repeat_cap < math.inf:
        raise ValueError(
            f"data.repeat_cap={repeat_cap}: how often a source may be read is a number above 0; null sets no limit"
        )


def _relative(tokens: Mapping[str, int], weights: Mapping[str, float | None] | None) -> dict[str, float]:
    given = {name: (weights or {}).get(name) for name in tokens}
    if all(weight is None for weight in given.values()):
        return {name: float(count) for name, count in tokens.items()}
    checked = {}
    for name, weight in given.items():
        if weight is None or not 0 < weight < math.inf:
            raise ValueError(
                f"data.sources.{name}.weight={weight}: each weight must be a positive number, or all null for shares "
                "by tokens; leave a source out instead of giving it weight 0"
            )
        checked[name] = float(weight)
    return checked


def _kind_shares(kinds: Mapping[str, str], synthetic_share: float) -> dict[str, float]:
    """Share of each kind that gets samples; refuses a share for which there is no source, and sources without one."""
    wanted = {"real": 1.0 - synthetic_share, "synthetic": synthetic_share}
    for kind, share in wanted.items():
        names = [name for name in kinds if kinds[name] == kind]
        fits = 0 if kind == "synthetic" else 1  # the synthetic share that sources of the other kind alone can give
        if share > 0 and not names:
            raise ValueError(
                f"data.synthetic_share={synthetic_share} cannot be met: no source has kind={kind}; set "
                f"data.synthetic_share={fits}, or name the kind of your sources (data.sources.NAME.kind)"
            )
        if share == 0 and names:
            raise ValueError(
                f"data.synthetic_share={synthetic_share} leaves nothing for {', '.join(names)} (kind={kind}); leave "
                "them out of data.sources, or set another share"
            )
    return {kind: share for kind, share in wanted.items() if share > 0}


def _refuse_repetition(
    shares: Mapping[str, float],
    tokens: Mapping[str, int],
    kinds: Mapping[str, str],
    *,
    repeat_cap: float,
    training_tokens: int,
    synthetic_share: float | None,
) -> None:
    repeated = repetitions(shares, tokens, training_tokens=training_tokens)
    over = {name: times for name, times in repeated.items() if times > repeat_cap * (1 + 1e-9)}
    if not over:
        return
    fitting = math.floor(min(repeat_cap * tokens[name] / shares[name] for name in tokens))
    lines = [
        f"{name} ({tokens[name]:,} tokens, {shares[name]:.2%} of the samples) would be read {times:.2f} times"
        for name, times in over.items()
    ]
    cures = [f"train on at most {fitting:,} tokens (trainer.max_steps)"]
    share = _fitting_share(shares, tokens, kinds, most=repeat_cap / training_tokens)
    if synthetic_share is not None and share is not None:
        cures.append(f"set data.synthetic_share to {share}")
    cures += [
        "add text to it" if len(over) == 1 else "add text to them",
        f"set data.repeat_cap={_up(max(over.values()))}",
    ]
    raise ValueError(
        f"data.repeat_cap={repeat_cap} is passed in a training of {training_tokens:,} tokens: {'; '.join(lines)}. "
        f"Either {', or '.join(cures)}."
    )


def _fitting_share(
    shares: Mapping[str, float], tokens: Mapping[str, int], kinds: Mapping[str, str], *, most: float
) -> str | None:
    """The range of synthetic shares that keeps every source at ``most`` samples a token, or None if there is none."""
    largest = {}  # of each kind as a whole, its proportions kept
    for kind in KINDS:
        names = [name for name in tokens if kinds[name] == kind]
        whole = sum(shares[name] for name in names)
        largest[kind] = min((most * tokens[name] * whole / shares[name] for name in names), default=0.0)
    low, high = max(0.0, 1 - largest["real"]), min(1.0, largest["synthetic"])
    low, high = math.ceil(low * 1e4 - 1e-9) / 1e4, math.floor(high * 1e4 + 1e-9) / 1e4
    if low > high or high == 0 or low == 1:
        return None
    if low == 0 or high == 1:
        return f"at most {high:g}" if low == 0 else f"at least {low:g}"
    return f"{high:g}" if low == high else f"{low:g} to {high:g}"


def _up(times: float) -> str:
    return f"{math.ceil(times * 100 - 1e-9) / 100:g}"
