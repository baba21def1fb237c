"""When a run is saved, how it is taken up again, and how it goes back after spikes.

A checkpoint holds what every strategy can read (``lit_modules/live_state.py``) and proves itself when it is loaded
(``ncvc/checkpoints.py``): hashes of every file, and the forward pass of a fixed text. Kept are the archive (one every
3,200 steps, R56), the last few rolling ones and the final step. Training waits only while the state is copied to host
memory; hashing, writing and syncing happen in a thread. The state is the step and nothing else: sample order, dropout
and learning rate are functions of it.
"""

import json
import math
import time
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning

from lit_modules.callbacks import EveryStep, HeldOutReport
from lit_modules.causal_lm import CausalLM
from lit_modules.live_state import applied_updates, live_slices, restore_slices, set_position, set_schedule, trained
from lit_modules.records import StepRecords
from lit_modules.watchdog import long_phase, watchdog_of
from ncvc.checkpoints import (
    BackgroundSaver,
    CheckpointWriter,
    discard_after,
    newest_complete,
    prune,
)
from ncvc.model.probe import compare_probes, probe
from ncvc.model.stability import rewind_wanted
from ncvc.model.training_state import HostCopy, StateReader, write_shard
from ncvc.resuming import (
    RunState,
    RunStopped,
    merged_ranges,
    read_rewinds,
    refuse_changes,
    write_rewinds,
)
from ncvc.storage import require_free_space

_BYTES_PER_PARAMETER = 12  # fp32 weights and AdamW's two moments


class RunCheckpoints(EveryStep):
    """Saves every ``archive_every`` steps for good, every ``rolling_every`` with the last ``keep_rolling`` kept.

    ``rolling_every=null`` saves only the archive and the last step. ``background=false`` makes training wait for the
    disk. ``read_only`` takes a run up and saves nothing (replay). The run's own facts come in by ``connect_run``.
    """

    def __init__(
        self,
        *,
        directory: str,
        archive_every: int = 3200,
        rolling_every: int | None = 100,
        keep_rolling: int = 3,
        background: bool = True,
        read_only: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (
            ("archive_every", archive_every),
            ("rolling_every", rolling_every),
            ("keep_rolling", keep_rolling),
        ):
            if value is not None and value < 1:
                raise ValueError(f"callbacks.checkpoints.{name}={value}: must be at least 1.")
        self.directory = Path(directory)
        self.archive_every, self.rolling_every, self.keep_rolling = archive_every, rolling_every, keep_rolling
        self.background, self.read_only = background, read_only
        self.saves_on_signal = not read_only  # the watchdog asks for it
        self.saver, self.host = BackgroundSaver(), HostCopy()
        self.run: RunState | None = None
        self.saved_step: int | None = None
        # seconds: training stopped for the copies, waited for the save before, and the thread wrote
        self.saving = {"saves": 0, "stopped_seconds": 0.0, "waited_seconds": 0.0, "writing_seconds": 0.0}
        self.last_stop_seen = -1

    def connect_run(self, run: RunState) -> None:
        """Say which run this is, and from which checkpoint it is taken up (verified by the caller)."""
        self.run = run

    # ---- taking a run up -------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: lightning.Trainer, module: CausalLM) -> None:
        assert self.run is not None  # connect_run came before
        strategy = trainer.strategy
        chosen = None if self.run.checkpoint is None else str(self.run.checkpoint)
        chosen, self.token = strategy.broadcast((chosen, uuid.uuid4().hex[:12]))
        if chosen is None:
            return
        started = time.monotonic()
        notes = self._load(trainer, module, Path(chosen), in_batch_end_hook=False)
        if not self.read_only:
            trainer.num_sanity_val_steps = math.inf if self._scoring_is_due(trainer) else 0
        if trainer.is_global_zero:
            for note in [*self.run.notes, *notes]:
                print(f"note: {note}", flush=True)
            seconds = time.monotonic() - started
            print(f"taken up at step {trainer.global_step} from {chosen} in {seconds:.1f} s", flush=True)

    def _scoring_is_due(self, trainer: lightning.Trainer) -> bool:
        """A checkpoint is saved before the held-out text is scored: after a kill in between, score it now."""
        step, every = trainer.global_step, trainer.val_check_interval // trainer.accumulate_grad_batches
        report = next((callback for callback in trainer.callbacks if isinstance(callback, HeldOutReport)), None)
        scored = {entry["step"] for entry in report.series} if report is not None else set()
        return step not in scored and (step % every == 0 or step == trainer.max_steps or step == 0)

    def _load(self, trainer: lightning.Trainer, module: CausalLM, path: Path, *, in_batch_end_hook: bool) -> list[str]:
        """Set weights, optimizer, schedule, position, samples left out and callbacks to a checkpoint; what to tell."""
        assert self.run is not None
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        refuse_changes(state["identity"], self.run, where=path)
        notes = [
            f"{name} was {before}, now {self.run.layout.get(name)}: batch, order and optimizer state are the same; "
            "rounding and dropout masks differ"
            for name, before in state["layout"].items()
            if before != self.run.layout.get(name)
        ]
        with long_phase(trainer, "loading a checkpoint"):
            reader = StateReader(path, state["shards"])
            restore_slices(module.network, trainer.strategy, reader, updates=state["updates"])
            set_schedule(trainer, step=state["step"])
            set_position(trainer, step=state["step"], in_batch_end_hook=in_batch_end_hook)
            module.guard.restore(state["guard"])
            rewinds = read_rewinds(self.run.folder)
            ranges = [*state["skip"], *[rewind["skip"] for rewind in rewinds]]
            trainer.datamodule.skip_samples(merged_ranges([*ranges, *trainer.datamodule.skip]))
            for callback in trainer.callbacks:
                saved = state["callbacks"].get(callback.state_key)
                if saved and not (in_batch_end_hook and isinstance(callback, StepRecords)):
                    callback.load_state_dict(saved)
            found = probe(module.network, context=trainer.precision_plugin.forward_context())
            notes.append(compare_probes(state["probe"], found, where=str(path)))
        self.saved_step = state["step"]
        return notes

    # ---- saving ----------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: lightning.Trainer, module: CausalLM) -> None:
        super().on_train_start(trainer, module)
        self.last_stop_seen = trainer.global_step
        if module.guard.settings.level == "rewind" and trainer.global_step == 0 and not self.read_only:
            self.save(trainer, module)  # the place to go back to from an early spike

    def on_step(self, trainer: lightning.Trainer, module: CausalLM) -> None:
        if self.read_only:
            return
        self.saver.poll()
        step = trainer.global_step
        if module.device.type != "cuda":
            module.guard.collect()  # costs nothing where there is no queue to wait for
        if self._rewind(trainer, module):
            return
        stop = any(figures.stop for figures in module.guard.since(self.last_stop_seen))
        self.last_stop_seen = max([self.last_stop_seen, *(f.step for f in module.guard.since(self.last_stop_seen))])
        due = step % self.archive_every == 0 or (self.rolling_every is not None and step % self.rolling_every == 0)
        if (due or stop or step == trainer.max_steps) and self.saved_step != step:
            self.save(trainer, module)
        if stop and step < trainer.max_steps:
            with long_phase(trainer, "saving"):
                self.saver.close()
            watchdog = watchdog_of(trainer)
            assert self.run is not None
            number = (watchdog.signal_number if watchdog is not None else None) or 15
            raise RunStopped.by_signal(number, folder=self.run.folder, step=step)

    def save(self, trainer: lightning.Trainer, module: CausalLM) -> None:
        """Copy the state of the current step to the host and write it; every rank must call it."""
        assert self.run is not None
        step, started = trainer.global_step, time.monotonic()
        for callback in trainer.callbacks:
            if isinstance(callback, StepRecords):
                callback.flush(trainer, module)
        trainer.datamodule.check_unchanged()
        with long_phase(trainer, "saving"):
            waited = self.saver.wait()
            if trainer.is_global_zero:
                require_free_space(
                    self.directory,
                    _BYTES_PER_PARAMETER * sum(parameter.numel() for parameter in trained(module.network).values()),
                    what=f"the checkpoint of step {step}",
                )
            state = self._state(trainer, module)
            slices = self.host.copy(live_slices(module.network, trainer.strategy))
        writer = CheckpointWriter(
            self.directory, step=step, rank=trainer.global_rank, world_size=trainer.world_size, token=self.token
        )

        def write() -> None:
            begun = time.monotonic()
            writer.write_shard(lambda path: write_shard(path, slices))
            if trainer.is_global_zero:
                writer.complete(state, extra_directories={"tokenizer": trainer.datamodule.prepared.tokenizer})
                prune(
                    self.directory,
                    keep_rolling=self.keep_rolling,
                    archive_every=self.archive_every,
                    keep={trainer.max_steps, 0} if module.guard.settings.level == "rewind" else {trainer.max_steps},
                )
            self.saving["writing_seconds"] += time.monotonic() - begun

        self.saver.submit(write)
        if not self.background:
            self.saver.wait()
        self.saved_step = step
        self.saving["saves"] += 1
        self.saving["waited_seconds"] += waited
        self.saving["stopped_seconds"] += time.monotonic() - started - waited

    def _state(self, trainer: lightning.Trainer, module: CausalLM) -> dict[str, Any]:
        assert self.run is not None
        step = trainer.global_step
        states = {callback.state_key: callback.state_dict() for callback in trainer.callbacks}
        for name, state in states.items():
            _require_plain(name, state)
        return {
            "step": step,
            "samples_seen": step * trainer.datamodule.batch_size,
            "updates": applied_updates(trainer.strategy),
            "model": module.network.config.to_dict(),
            "lora": None if module.lora is None else asdict(module.lora),
            "base": None if module.base is None else str(module.base.absolute()),
            "origin": module.origin,
            "identity": self.run.identity,
            "layout": self.run.layout,
            "skip": trainer.datamodule.skip,
            "rewinds": len(read_rewinds(self.run.folder)),
            "guard": module.guard.state_dict(),
            "callbacks": {name: state for name, state in states.items() if state},
            "probe": probe(module.network, context=trainer.precision_plugin.forward_context()),
            "held_out": {name: value for name, value in module.held_out.items() if math.isfinite(value)},
            "tokens_seen": trainer.datamodule.tokens_seen(step),
            "data_fingerprint": trainer.datamodule.fingerprint,
            "environment": self.run.environment,
        }

    def on_train_end(self, trainer: lightning.Trainer, module: CausalLM) -> None:
        with long_phase(trainer, "saving"):
            self.saver.close()

    def on_exception(self, trainer: lightning.Trainer, module: CausalLM, exception: BaseException) -> None:
        if not isinstance(exception, RunStopped):
            self.saver.close(raise_errors=False)  # what was being written is finished, not lost

    # ---- going back after spikes -----------------------------------------------------------------------------

    def _rewind(self, trainer: lightning.Trainer, module: CausalLM) -> bool:
        """At the level ``rewind``: after too many spikes, go back and leave the samples around them out."""
        settings = module.guard.settings
        if settings.level != "rewind":
            return False
        spiked = [figures.step for figures in module.guard.figures if figures.spiked]
        first = rewind_wanted(spiked, settings)
        if first is None:
            return False
        assert self.run is not None
        self.saver.wait()
        rewinds = read_rewinds(self.run.folder)
        if len(rewinds) >= settings.max_rewinds:
            raise RunStopped(
                f"spikes at steps {spiked} after {len(rewinds)} rewinds (stability.max_rewinds={settings.max_rewinds}):"
                " the data of one place are not the cause. Lower optimizer.learning_rate, or set another model/init.",
                exit_code=1,
            )
        trainer.strategy.barrier("before a rewind")  # every rank's part of the last checkpoint is written
        chosen: tuple[str, int] | None = None
        if trainer.is_global_zero:
            found, _ = newest_complete(self.directory, at_most=max(0, first - settings.rewind_steps))
            chosen = None if found is None else (str(found.path), found.step)
        chosen = trainer.strategy.broadcast(chosen)
        if chosen is None:
            raise RunStopped(
                f"spikes at steps {spiked}, and no complete checkpoint at step {max(0, first - settings.rewind_steps)} "
                "or before to go back to; set callbacks.checkpoints.rolling_every and keep_rolling to keep one.",
                exit_code=1,
            )
        path, to_step = chosen
        data, size = trainer.datamodule, trainer.datamodule.batch_size
        end_step = max(to_step + settings.skip_steps, spiked[-1])
        numbers: list[Any] = [data.order.sample_numbers(place, 1)[0] for place in (to_step * size, end_step * size - 1)]
        record: dict[str, Any] = {
            "at_step": trainer.global_step,
            "first_spike": first,
            "to_step": to_step,
            "skip": [int(numbers[0]), int(numbers[1]) + 1],
        }
        if trainer.is_global_zero:
            write_rewinds(self.run.folder, [*rewinds, record])
            discard_after(self.directory, step=to_step)
            print(
                f"spikes from step {first} on: back to step {to_step}; samples {record['skip'][0]:,} to "
                f"{record['skip'][1]:,} are left out from now on (rewinds.json)",
                flush=True,
            )
        trainer.strategy.barrier("rewind recorded")
        self._load(trainer, module, Path(path), in_batch_end_hook=True)
        self._last_step = self.last_stop_seen = to_step
        for callback in trainer.callbacks:
            if isinstance(callback, EveryStep):
                callback.rewound(step=to_step, keep_spikes_from=first)
        return True


def _require_plain(callback: str, state: Any) -> None:
    """``ValueError`` for a callback whose state is not plain JSON: checkpoints hold nothing that needs unpickling."""
    try:
        json.dumps(state)
    except TypeError as error:
        raise ValueError(
            f"the state of the callback {callback} cannot be saved ({error}): a checkpoint holds numbers, text, lists "
            "and mappings of them. Return such from its state_dict, or set callbacks.checkpoints=null."
        ) from error
