"""Between gradient and update: one small reduction over the ranks, the spike verdict, and the figures of the step.

Once per optimizer step, when the gradient is complete and nothing is updated yet, every rank sums one short vector with
the others: loss, squared gradient norm of every layer, checksum of the rows, and whether somebody asked the run to
stop. All ranks see the same sums, so all decide alike. The verdict stays on the device: a skipped update is PyTorch's
own mechanism for mixed precision (``optimizer.found_inf``), which leaves weights, moments and the step counter of a
fused optimizer untouched. The host reads a step's figures while the next one runs, so nothing waits for the device.

Cost: one reduction of a few dozen numbers and about 1 ms of small operations per optimizer step.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed
from torch import nn
from torch.optim import Optimizer

from ncvc.model.stability import SpikeDetector, StabilitySettings

_LOSS, _CHECKSUM, _STOP, _LAYERS = 0, 1, 2, 3  # places in the reduced vector; layers take the rest
_KEPT = 4096


@dataclass(frozen=True, kw_only=True)
class StepFigures:
    """What one optimizer step was: ``step`` 1 is the first update; scores are robust z values, NaN without history."""

    step: int
    loss: float
    gradient_norm: float
    loss_score: float
    norm_score: float
    spiked: bool
    non_finite: bool
    skipped: bool
    checksum: int
    stop: bool
    layer_norms: dict[str, float]


def layer_of(parameter: str) -> str:
    """The layer a parameter's name belongs to: ``layers.3`` for its matrices, else the module (``head``)."""
    parts = parameter.split(".")
    return ".".join(parts[:2]) if parts[0] == "layers" else parts[0]


class UpdateGuard:
    """Judges every update of one network; see the module's docstring.

    ``settings`` decide what is done about a spike; non-finite updates are skipped at every level. ``before_update`` is
    called by the module or the strategy with the complete gradient, ``since`` hands the figures to callbacks.
    """

    def __init__(self, settings: StabilitySettings, network: nn.Module, *, vocab_size: int) -> None:
        self.settings, self.vocab_size = settings, vocab_size
        names = [layer_of(name) for name, _ in network.named_parameters()]
        self.layers = list(dict.fromkeys(names))
        self._layer_index = {
            id(parameter): self.layers.index(name)
            for name, (_, parameter) in zip(names, network.named_parameters(), strict=True)
        }
        self.detector: SpikeDetector | None = None
        self.stop_requested = False  # set by a signal; every rank learns it with the next step
        self.figures: deque[StepFigures] = deque(maxlen=_KEPT)
        self._pending: deque[tuple[int, torch.Tensor, torch.cuda.Event | None]] = deque()
        self._index: tuple[list[int], torch.Tensor] | None = None
        self._state: dict | None = None

    def attach(self, optimizer: Optimizer, device: torch.device) -> None:
        """Call once the optimizer is on its device; ``ValueError`` if it cannot leave out an update."""
        if not getattr(optimizer, "_step_supports_amp_scaling", False):
            raise ValueError(
                f"{type(optimizer).__name__} as configured cannot leave out an update without waiting for the device, "
                "which keeps non-finite gradients from the weights; set optimizer.fused=true."
            )
        self.optimizer = optimizer
        self.detector = SpikeDetector(self.settings, vocab_size=self.vocab_size, device=device)
        if self._state is not None:
            self.detector.load_state_dict(self._state)

    def before_update(
        self,
        gradients: Sequence[torch.Tensor],
        parameters: Sequence[nn.Parameter],
        *,
        step: int,
        loss: torch.Tensor,
        checksum: int,
        partial: bool,
        clip: float | None,
    ) -> torch.Tensor:
        """Judge update number ``step``; returns the global gradient norm before clipping (fp32 scalar).

        ``gradients`` belong to ``parameters`` one by one; ``partial`` when each rank holds another part of them (ZeRO)
        instead of all ranks the same. ``loss`` is this rank's share of the mean loss. Clips the gradients in place by
        the global norm and tells the optimizer whether to leave the update out.
        """
        assert self.detector is not None
        self.collect()
        ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        vector = torch.zeros(_LAYERS + len(self.layers), dtype=torch.float64, device=loss.device)
        vector[_LOSS] = loss
        if gradients:
            squares = torch.stack(torch._foreach_norm(list(gradients))).double().square_()
            vector.index_add_(0, self._places(parameters, device=loss.device), squares if partial else squares / ranks)
        vector[_CHECKSUM].fill_(float(checksum))  # fill_ takes a number along; copying a tensor would wait
        vector[_STOP].fill_(float(self.stop_requested))
        if ranks > 1:
            torch.distributed.all_reduce(vector)
        squared = vector[_LAYERS:]
        norm = squared.sum().sqrt()
        verdict = self.detector.update(vector[_LOSS], norm)
        skip = verdict.non_finite if self.settings.level == "record" else verdict.spiked
        self.optimizer.found_inf = skip.float()  # read by the fused step that follows
        if clip is not None and gradients:
            factor = (clip / (norm.float() + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(list(gradients), factor)
        scores = torch.stack((verdict.loss_score, verdict.norm_score, verdict.spiked, verdict.non_finite, skip, norm))
        self._queue(step, torch.cat((vector, scores.double())))
        return norm.float()

    def _places(self, parameters: Sequence[nn.Parameter], *, device: torch.device) -> torch.Tensor:
        """Place in the reduced vector of each parameter's layer; the same list comes every step."""
        key = [id(parameter) for parameter in parameters]
        if self._index is None or self._index[0] != key:
            places = [_LAYERS + self._layer_index[number] for number in key]
            self._index = (key, torch.tensor(places, device=device))
        return self._index[1]

    def _queue(self, step: int, vector: torch.Tensor) -> None:
        if vector.device.type != "cuda":
            self._pending.append((step, vector, None))
            return
        host = torch.empty(vector.shape, dtype=vector.dtype, pin_memory=True)
        host.copy_(vector, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._pending.append((step, host, event))

    def collect(self) -> None:
        """Read what was queued: called one step later it waits for nothing, called at once it waits for the device."""
        while self._pending:
            step, vector, event = self._pending.popleft()
            if event is not None:
                event.synchronize()
            self.figures.append(self._figures(step, vector.tolist()))

    def _figures(self, step: int, values: list[float]) -> StepFigures:
        loss_score, norm_score, spiked, non_finite, skipped, norm = values[_LAYERS + len(self.layers) :]
        squares = values[_LAYERS : _LAYERS + len(self.layers)]
        return StepFigures(
            step=step,
            loss=values[_LOSS],
            gradient_norm=norm,
            loss_score=loss_score,
            norm_score=norm_score,
            spiked=bool(spiked),
            non_finite=bool(non_finite),
            skipped=bool(skipped),
            checksum=int(values[_CHECKSUM]),
            stop=bool(values[_STOP]),
            layer_norms={
                name: math.sqrt(square) if square >= 0 else math.nan
                for name, square in zip(self.layers, squares, strict=True)
            },
        )

    def since(self, step: int) -> Iterator[StepFigures]:
        """Figures of the updates after number ``step`` that the host knows, in order."""
        fresh = []
        for figures in reversed(self.figures):
            if figures.step <= step:
                break
            fresh.append(figures)
        yield from reversed(fresh)

    def state_dict(self) -> dict:
        """The detector's history as plain numbers, for a checkpoint."""
        return {} if self.detector is None else self.detector.state_dict()

    def restore(self, state: dict | None) -> None:
        """Take up the history of a checkpoint (``None``: begin anew) and forget the figures of this process."""
        self.figures.clear()
        self._pending.clear()
        self._state = state or None
        if self.detector is not None:
            self.detector.reset()
            if state:
                self.detector.load_state_dict(state)
