"""Loss spikes: each optimizer step is judged by its loss and gradient norm, on the device, without waiting for it.

Both series are read as what lies above their level: the residual is the value minus the median of the last 8 accepted
values, so the steep fall of the first steps does not hide a jump as it does from a window of raw values. For the norm
the value is its logarithm. A step is a spike if one of these holds for loss or norm:

- it is not finite (at any step, the first too);
- loss > ln(vocab_size) + ``loss_margin``: worse than guessing every token alike (at any step);
- early, with fewer than ``minimum_history`` accepted values: loss > lowest so far + ``loss_jump``, or
  norm > ``norm_jump`` x median so far;
- later: z = (residual - median) / max(1.4826 MAD, floor) > ``sigmas``, with median and MAD (median absolute deviation)
  over the residuals of the last ``window`` accepted steps. The floor is 0.005 of the level for the loss and 0.05 for
  the log norm, so that a flat stretch does not make every ripple a spike. Only rises are spikes, not falls.

Spikes stay out of the history, so ten in a row are all found; ``restart_after`` in a row are a new level, and history
starts anew. Equal inputs give equal verdicts on every rank: give it reduced figures (mean loss, global norm).

Cost: about 80 small operations per step on at most 4 x ``window`` numbers (0.4 ms on one CPU core), no host
synchronisation; the state is 4 x ``window`` + 1 numbers. It reduces nothing over ranks, leaves no update out and reads
no checkpoint: its callers act on the verdicts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch

Level = Literal["record", "skip", "rewind"]

_LEVEL_VALUES = 8  # accepted values whose median is the level
_MAD_TO_SIGMA = 1.4826  # 1 / (quartile of the normal distribution)
_LOSS_FLOOR = 0.005  # of the level
_LOG_NORM_FLOOR = 0.05
_ROWS = ("losses", "log_norms", "loss_residuals", "log_norm_residuals")


@dataclass(frozen=True, kw_only=True)
class StabilitySettings:
    """What is a spike and what is done about it; ``ValueError`` naming every value that cannot be.

    ``level``: ``record`` only writes spikes down, ``skip`` also leaves their updates out, ``rewind`` also goes back
    when they come in bursts. Non-finite updates are left out at every level.
    """

    level: Level
    window: int = 128  # accepted steps that are compared with
    sigmas: float = 6.0  # robust standard deviations
    minimum_history: int = 32  # accepted values before the window decides
    loss_margin: float = 1.0  # nats above ln(vocab_size)
    loss_jump: float = 1.0  # nats above the lowest loss so far, early
    norm_jump: float = 30.0  # times the median norm so far, early
    restart_after: int = 64  # spikes in a row that are a new level
    rewind_after: int = 3  # so many spikes ...
    rewind_within: int = 10  # ... within so many steps ask for a rewind
    rewind_steps: int = 100  # at least so far before the first of them
    skip_steps: int = 200  # batches left out, from the step rewound to
    max_rewinds: int = 5

    def __post_init__(self) -> None:
        if problems := self.problems(asdict(self)):
            raise ValueError("\n".join(problems))

    @staticmethod
    def problems(values: Mapping[str, Any]) -> list[str]:
        """What is wrong with these field values, one message each; empty when they can be used."""
        found = []
        if values["level"] not in get_args(Level):
            found.append(f"stability.level={values['level']!r}: set one of {', '.join(get_args(Level))}.")
        counts = ("window", "minimum_history", "restart_after", "rewind_after", "rewind_within", "rewind_steps")
        whole = set()
        for name in (*counts, "skip_steps", "max_rewinds"):
            if isinstance(values[name], bool) or not isinstance(values[name], int) or values[name] < 1:
                found.append(f"stability.{name}={values[name]!r}: must be a whole number of at least 1.")
            else:
                whole.add(name)
        for name, bound in (("sigmas", 0), ("loss_margin", 0), ("loss_jump", 0), ("norm_jump", 1)):
            value = values[name]
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value <= bound:
                found.append(f"stability.{name}={value!r}: must be a finite number above {bound}.")
        for small, large, reason in (
            ("minimum_history", "window", "the window never holds so many values"),
            ("rewind_after", "rewind_within", "so many spikes never lie within so few steps"),
        ):
            if {small, large} <= whole and values[small] > values[large]:
                found.append(
                    f"stability.{small}={values[small]}: above stability.{large}={values[large]}, and {reason}; set "
                    f"it to at most {values[large]}."
                )
        return found


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One step's judgement; scalars on the detector's device. Scores are z values in fp64, NaN without history."""

    loss_score: torch.Tensor
    norm_score: torch.Tensor
    spiked: torch.Tensor  # bool; true for what is not finite too
    non_finite: torch.Tensor  # bool


class SpikeDetector:
    """Judges the steps of one run in order; see the module's docstring.

    ``vocab_size`` gives the loss of guessing. The history lies on ``device``, [4, window]: losses, log norms and the
    residuals of both, the newest last, NaN where there is none yet.
    """

    def __init__(self, settings: StabilitySettings, *, vocab_size: int, device: torch.device | str) -> None:
        if vocab_size < 2:
            raise ValueError(
                f"vocab_size={vocab_size}: the loss of guessing needs at least 2 tokens; set model.vocab_size."
            )
        self.settings, self.device = settings, torch.device(device)
        self._loss_limit = math.log(vocab_size) + settings.loss_margin
        self._jumps = self._constant(settings.loss_jump, math.log(settings.norm_jump))
        self._relative_floors = self._constant(_LOSS_FLOOR, 0.0)
        self._floors = self._constant(0.0, _LOG_NORM_FLOOR)
        self.reset()

    def _constant(self, loss: float, norm: float) -> torch.Tensor:
        return torch.tensor([loss, norm], dtype=torch.float64, device=self.device)

    def reset(self) -> None:
        """Forget everything, as before the first step."""
        self._history = torch.full((4, self.settings.window), math.nan, dtype=torch.float64, device=self.device)
        self._streak = torch.zeros((), dtype=torch.int64, device=self.device)

    @torch.no_grad()
    def update(self, loss: torch.Tensor, gradient_norm: torch.Tensor) -> Verdict:
        """Judge the next optimizer step and remember it if it is no spike.

        ``loss`` is a scalar in nats per token, ``gradient_norm`` the scalar norm before clipping, both on ``device``.
        A norm of exactly 0 has no logarithm: it is neither judged nor remembered.
        """
        figures = torch.stack((loss.double().reshape(()), gradient_norm.double().reshape(())))
        non_finite = ~torch.isfinite(figures).all()
        values = torch.stack((figures[0], figures[1].masked_fill(figures[1] == 0, math.nan).log()))

        past, past_residuals = self._history[:2], self._history[2:]
        medians, counts = _medians(self._history)
        centre = medians[2:]
        deviation, _ = _medians((past_residuals - centre[:, None]).abs())
        level, _ = _medians(past[:, -_LEVEL_VALUES:])
        residuals = values - level
        floors = torch.addcmul(self._floors, level.abs(), self._relative_floors)
        early = counts[:2] < self.settings.minimum_history
        scores = (residuals - centre) / torch.maximum(_MAD_TO_SIGMA * deviation, floors)
        scores = scores.masked_fill(early, math.nan)

        references = torch.stack((past[0].nan_to_num(nan=math.inf).amin(), medians[1]))
        jumped = early & (values > references + self._jumps)  # an empty history (infinity, NaN) compares false
        spiked = ((scores > self.settings.sigmas) | jumped).any() | (figures[0] > self._loss_limit) | non_finite

        self._remember(torch.cat((values, residuals)), spiked=spiked, non_finite=non_finite)
        return Verdict(loss_score=scores[0], norm_score=scores[1], spiked=spiked, non_finite=non_finite)

    def _remember(self, new: torch.Tensor, *, spiked: torch.Tensor, non_finite: torch.Tensor) -> None:
        """Take an accepted step's column [4] into the history; start anew after so many finite spikes in a row."""
        accepted = ~(new[:2].isnan() | spiked).repeat(2)
        streak = torch.where(non_finite, self._streak, (self._streak + 1) * spiked)  # NaN tells nothing of a new level
        anew = streak >= self.settings.restart_after
        shifted = torch.cat((self._history[:, 1:], new[:, None]), dim=1)
        self._history = torch.where(accepted[:, None], shifted, self._history).masked_fill_(anew, math.nan)
        self._streak = streak

    def state_dict(self) -> dict[str, Any]:
        """The history as plain numbers (``None`` where there is none yet), exact through JSON; waits for the device."""
        rows = [[None if math.isnan(number) else number for number in row] for row in self._history.tolist()]
        return {**dict(zip(_ROWS, rows, strict=True)), "streak": int(self._streak)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``: the next verdicts are bit-identical to the uninterrupted ones.

        With another ``stability.window`` than the state's, the newest values are kept. ``ValueError`` if it is no state
        of this class; then nothing is changed.
        """
        try:
            rows = [[math.nan if number is None else number for number in state[name]] for name in _ROWS]
            history = torch.tensor(rows, dtype=torch.float64)
            streak = torch.tensor(int(state["streak"]), dtype=torch.int64, device=self.device)
        except (KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"no state of the spike detector ({reason}); resume from another checkpoint.") from error
        window = self.settings.window
        padded = torch.nn.functional.pad(history, (max(0, window - history.shape[1]), 0), value=math.nan)
        self._history, self._streak = padded[:, padded.shape[1] - window :].to(self.device), streak


def _medians(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Median and number of each row's values [R, N] that are not NaN: both [R]; the mean of the middle two, or NaN."""
    counts = (~rows.isnan()).sum(dim=1)
    middle = torch.stack((counts - 1, counts), dim=1).clamp(min=0) // 2
    return rows.sort(dim=1).values.gather(1, middle).mean(dim=1), counts  # sorting puts NaN last


def rewind_wanted(spiked_steps: Sequence[int], settings: StabilitySettings) -> int | None:
    """First step of the earliest burst: ``rewind_after`` spikes within ``rewind_within`` steps; else ``None``."""
    steps = sorted(set(spiked_steps))
    for first, last in zip(steps, steps[settings.rewind_after - 1 :], strict=False):
        if last - first < settings.rewind_within:
            return first
    return None


def spike_score(flags: Sequence[bool]) -> float:
    """Share of spiked steps; 0 without any step."""
    return sum(flags) / len(flags) if flags else 0.0
