"""Faults to inject into real runs, as callbacks that a command line can add: ``+callbacks.fault._target_=...``."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, loss: torch.Tensor, factor: float) -> torch.Tensor:
        context.factor = factor
        return loss.clone()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient * context.factor, None


class AlterLoss(Callback):
    """Multiplies loss (``loss_factor``) or only its gradient (``gradient_factor``) at some steps or samples.

    ``steps`` are update numbers from 1; ``samples`` is an absolute range: the fault then follows the data.
    """

    def __init__(
        self,
        *,
        steps: list[int] | None = None,
        samples: list[int] | None = None,
        loss_factor: float = 1.0,
        gradient_factor: float = 1.0,
        rank: int | None = None,
    ) -> None:
        self.steps, self.samples, self.rank = steps or [], samples, rank
        self.loss_factor, self.gradient_factor = loss_factor, gradient_factor

    def applies(self, trainer: Any) -> bool:
        if self.rank is not None and trainer.global_rank != self.rank:
            return False
        if self.samples is not None:
            first, end = self.samples
            return any(a < end and b > first for a, b in trainer.datamodule.samples_of(trainer.global_step))
        return trainer.global_step + 1 in self.steps

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_index: int) -> None:
        if self.applies(trainer):
            original = type(module.network).loss

            def loss(*arguments: Any, **settings: Any) -> torch.Tensor:
                plain = original(module.network, *arguments, **settings) * self.loss_factor
                return _ScaledGradient.apply(plain, self.gradient_factor)

            module.network.loss = loss

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_index: int) -> None:
        module.network.__dict__.pop("loss", None)


class AtStep(Callback):
    """Does ``what`` on ``rank`` before the update of ``step``: kill, stop, hang, raise, terminate, interrupt, ..."""

    def __init__(self, *, what: str, step: int, rank: int = 0, path: str | None = None) -> None:
        self.what, self.step, self.rank, self.path = what, step, rank, path

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_index: int) -> None:
        if trainer.global_rank != self.rank or trainer.global_step + 1 != self.step:
            return
        if self.what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.what == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif self.what == "hang":
            time.sleep(3600)
        elif self.what == "raise":
            raise RuntimeError("a fault of the test")
        elif self.what in ("terminate", "interrupt"):
            os.kill(os.getpid(), signal.SIGTERM if self.what == "terminate" else signal.SIGINT)
        elif self.what == "jump_clock":
            real = time.time
            time.time = lambda: real() - 86_400.0
        elif self.what == "touch" and self.path is not None:
            for file in Path(self.path).glob("tokens/*/train/tokens.bin"):
                os.utime(file, (0, 0))


class FillDisk(Callback):
    """Fills the disk of ``path`` before the update of ``step``."""

    def __init__(self, *, path: str, step: int) -> None:
        self.path, self.step = Path(path), step

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_index: int) -> None:
        if trainer.global_step + 1 == self.step:
            with (self.path / "filling").open("wb") as handle:
                for _ in range(10_000):
                    try:
                        handle.write(bytes(10_000))
                        handle.flush()
                    except OSError:
                        break
