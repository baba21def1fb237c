"""A run that has lost a rank, or hangs, ends within seconds and says so; SIGTERM and Ctrl-C end it in order.

A thread in every rank writes a heartbeat beside the run (``ncvc/supervision.py``) and looks at the others'. It ends the
run when a rank has died, or when no rank on this machine has made any progress for longer than is usual for the run:
``factor`` times the longest pause so far, at least ``minimum_seconds``; the first step and known long phases (saving,
sampling) may take ``startup_seconds``. All times are monotonic, so a clock that jumps changes nothing, and a run that
was stopped as a whole (Ctrl-Z) and continued is not taken for hung.

Signals: the first SIGTERM or SIGINT asks for a checkpoint at the next step boundary and an orderly end on all ranks,
whichever rank got it; a second SIGINT ends at once. Lightning's own handler, which would broadcast from inside the
signal handler, and its broadcast before every micro-batch are switched off.
"""

import contextlib
import faulthandler
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from lit_modules.causal_lm import CausalLM
from ncvc.supervision import DEAD_RANK, HUNG, Heartbeat, read_heartbeats, remove_heartbeat, write_heartbeat

_TICK = 0.25
_LOST_CONNECTION = re.compile(r"gloo|nccl|connection (closed|reset)|broken pipe|peer", re.IGNORECASE)


class Watchdog(Callback):
    """See the module's docstring. ``directory`` is the run's folder."""

    def __init__(
        self, *, directory: str, minimum_seconds: float = 15.0, factor: float = 10.0, startup_seconds: float = 1800.0
    ) -> None:
        self.directory = Path(directory)
        self.minimum_seconds, self.factor, self.startup_seconds = minimum_seconds, factor, startup_seconds
        self.longest = 0.0
        self.doing, self.last_beat, self.limit = "starting", time.monotonic(), startup_seconds
        self.signal_number: int | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: lightning.Trainer, module: CausalLM) -> None:
        self._take_signals(trainer, module)
        self.rank, self.step = trainer.global_rank, trainer.global_step
        launcher = trainer.strategy.launcher
        self._children = list(getattr(launcher, "procs", None) or [])
        self._parent = os.getppid() if trainer.local_rank > 0 else None
        self.beat("the first step", limit=self.startup_seconds)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def beat(self, doing: str, *, limit: float | None = None) -> None:
        """Progress was made; the next beat may take ``limit`` seconds (default: what is usual for this run)."""
        now = time.monotonic()
        if limit is None:
            if self.limit < self.startup_seconds:  # pauses after long phases say nothing about the usual ones
                self.longest = max(self.longest, now - self.last_beat)
            limit = max(self.minimum_seconds, self.factor * self.longest)
        self.last_beat, self.doing, self.limit = now, doing, limit

    @contextlib.contextmanager
    def long_phase(self, doing: str) -> Iterator[None]:
        """A phase that may take long without a beat."""
        self.beat(doing, limit=self.startup_seconds)
        try:
            yield
        finally:
            self.beat(f"after {doing}")

    def on_train_batch_start(self, trainer: lightning.Trainer, module: CausalLM, batch: Any, batch_index: int) -> None:
        if self.step == trainer.global_step and batch_index < trainer.accumulate_grad_batches:
            return  # the first step of this process compiles and allocates
        self.beat(f"step {trainer.global_step + 1}")

    def on_validation_batch_start(
        self, trainer: lightning.Trainer, module: CausalLM, batch: Any, batch_index: int, loader_index: int = 0
    ) -> None:
        if self._thread is not None:
            self.beat("scoring held-out text")

    def on_train_end(self, trainer: lightning.Trainer, module: CausalLM) -> None:
        self._stop()

    def on_exception(self, trainer: lightning.Trainer, module: CausalLM, exception: BaseException) -> None:
        """A rank that dies breaks the others' connections at once: say what really happened, not what broke."""
        if self._thread is not None and trainer.world_size > 1 and _LOST_CONNECTION.search(str(exception)):
            deadline = time.monotonic() + 3
            while time.monotonic() < deadline:
                self._look_for_the_dead()
                time.sleep(_TICK)
        self._stop()

    def _stop(self) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
            remove_heartbeat(self.directory, self.rank)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def _watch(self) -> None:
        tick, written = time.monotonic(), 0.0
        while not self._over.wait(_TICK):
            now = time.monotonic()
            if now - tick > max(2.0, self.minimum_seconds / 3):  # this process itself was stopped, or starved
                self.last_beat += now - tick
            tick = now
            if now - written >= 1.0:
                written = now
                with contextlib.suppress(OSError):  # a full disk must not stop the watch
                    beat = Heartbeat(
                        host=socket.gethostname(),
                        pid=os.getpid(),
                        last_beat=self.last_beat,
                        limit_seconds=self.limit,
                        doing=self.doing,
                    )
                    write_heartbeat(self.directory, self.rank, beat)
            self._look_for_the_dead()
            if now - self.last_beat > self.limit and self._all_are_late(now):
                self._end_hung(now)

    def _look_for_the_dead(self) -> None:
        for number, child in enumerate(self._children, start=1):
            code = child.poll()
            if code not in (None, 0):
                died = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                self._end(f"rank {number} (process {child.pid}) {died} during {self.doing}", DEAD_RANK)
        if self._parent is not None and os.getppid() != self._parent:
            self._end(f"rank 0 is gone; rank {self.rank} ends too", DEAD_RANK)

    def _all_are_late(self, now: float) -> bool:
        """No rank of this machine is within its time: one that works keeps the others waiting by right."""
        others = [beat for rank, beat in read_heartbeats(self.directory).items() if rank != self.rank]
        return all(beat.is_late(now) for beat in others)

    def _end_hung(self, now: float) -> None:
        print(f"rank {self.rank}: where it stands:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        self._end(
            f"rank {self.rank} has made no progress for {now - self.last_beat:.0f} s during {self.doing} (usual pause: "
            f"{self.longest:.1f} s); a rank hangs",
            HUNG,
        )

    def _end(self, why: str, code: int) -> None:
        print(
            f"error: {why}. The run ends; its last complete checkpoint is as it was. To go on: "
            f"python -m ncvc.train resume={self.directory}",
            file=sys.stderr,
            flush=True,
        )
        for child in self._children:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
        os._exit(code)

    def _take_signals(self, trainer: lightning.Trainer, module: CausalLM) -> None:
        vars(trainer.fit_loop.epoch_loop)["_broadcast_sigterm_tensor"] = lambda: None
        if threading.current_thread() is not threading.main_thread():
            return
        if not any(getattr(callback, "saves_on_signal", False) for callback in trainer.callbacks):
            self._handlers[signal.SIGTERM] = signal.signal(
                signal.SIGTERM, signal.SIG_DFL
            )  # nothing to save: end at once
            return

        def note(number: int, frame: FrameType | None) -> None:
            if number == signal.SIGINT and self.signal_number is not None:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                raise KeyboardInterrupt
            self.signal_number = number
            module.guard.stop_requested = True
            name = signal.Signals(number).name
            os.write(2, f"\n{name}: the run saves a checkpoint at the next step boundary and ends.\n".encode())

        for number in (signal.SIGTERM, signal.SIGINT):
            self._handlers[number] = signal.signal(number, note)


def watchdog_of(trainer: lightning.Trainer) -> Watchdog | None:
    """The run's watchdog, if it has one."""
    return next((callback for callback in trainer.callbacks if isinstance(callback, Watchdog)), None)


def long_phase(trainer: lightning.Trainer, doing: str) -> contextlib.AbstractContextManager[None]:
    """``Watchdog.long_phase`` of the run's watchdog, or nothing."""
    watchdog = watchdog_of(trainer)
    return contextlib.nullcontext() if watchdog is None else watchdog.long_phase(doing)
