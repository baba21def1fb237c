"""What a run writes about itself besides its logs: configuration, environment, data, and a result in words.

The run folder holds ``config.yaml`` (resolved), ``.hydra/`` (composition and overrides), ``environment.json``,
``data.json`` (fingerprint, sources, tokens, lengths), ``attempts.jsonl`` (one line per start) and, at the end,
``result.json`` with the same figures that are printed. One process at a time trains in a folder, and a folder that
holds a run is gone on with or left alone, never overwritten.
"""

import contextlib
import copy
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from ncvc.checkpoints import find_checkpoints, newest_complete, required_bytes, step_of
from ncvc.environment import environment_record
from ncvc.resuming import RunLock, RunState, is_finished, is_first_rank, read_rewinds, run_identity, run_layout
from ncvc.storage import require_free_space, write_json


@dataclass(kw_only=True)
class StartedRun(RunState):
    """A run with the step it starts from and the moment it was started."""

    step: int = 0
    started: float = 0.0

    def logger_settings(self, target: str) -> dict[str, Any]:
        """TensorBoard is told to forget what was logged after the checkpoint: it comes again."""
        resumed = self.checkpoint is not None and target.endswith("TensorBoardLogger")
        return {"purge_step": self.step + 1} if resumed else {}


def already_finished(config: DictConfig) -> dict[str, Any] | None:
    """The result of a run that is to be gone on with and has nothing left to do, printed again; else None."""
    folder = Path(config.paths.run)
    if config.resume is None or config.replay is not None or not is_finished(folder):
        return None
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    print(f"{folder} is finished: nothing left to do")
    print(summary(result, run_folder=str(folder)), flush=True)
    return result


@contextlib.contextmanager
def open_run(folder: Path, config: DictConfig) -> Iterator[None]:
    """Hold the run's folder (first rank only); refuse one that holds another run. A replay only reads."""
    if not is_first_rank() or config.replay is not None:
        yield
        return
    with RunLock(folder):
        if config.resume is None and find_checkpoints(folder / "checkpoints"):
            raise ValueError(
                f"{folder} holds the checkpoints of a run already; set resume=auto to go on with it, or another folder "
                "with paths.run=..."
            )
        yield


def as_replay(config: DictConfig) -> DictConfig:
    """The run's configuration cut down to going through step ``replay`` once: nothing is saved, logged or scored."""
    config = copy.deepcopy(config)
    OmegaConf.resolve(config)  # what follows from the run's length, as its schedule, keeps the run's own
    with open_dict(config):
        checkpoints = (config.callbacks or {}).get("checkpoints")
        if checkpoints is None:
            raise ValueError("replay: the run keeps no checkpoints (callbacks.checkpoints=null) to start from.")
        checkpoints.read_only = True
        config.callbacks = {
            "checkpoints": checkpoints,
            "replay": {"_target_": "lit_modules.replay.ReplayStep", "directory": config.paths.run},
        }
        config.logger = None
        if config.replay > config.trainer.max_steps:
            raise ValueError(f"replay={config.replay}: the run has only {config.trainer.max_steps} steps.")
        config.trainer.max_steps = config.replay
        config.trainer.val_check_interval = (config.replay + 1) * config.trainer.accumulate_grad_batches
        config.trainer.num_sanity_val_steps = config.trainer.limit_val_batches = 0
    return config


def start_run(config: DictConfig, *, data: Any, parameters: int, callbacks: list[Any]) -> StartedRun:
    """Decide where to start, check the disk, and record configuration, environment and data before the first step.

    Every rank calls it; only the first one looks at checkpoints and writes. ``callbacks`` that keep checkpoints are
    told which run this is.
    """
    folder = Path(config.paths.run)
    state = StartedRun(
        folder=folder,
        identity=run_identity(config, data.identity),
        layout=run_layout(config),
        allowed=[*config.allow_changes, *(["trainer.max_steps"] if config.replay is not None else [])],
        started=time.monotonic(),
    )
    if is_first_rank():
        state.environment = environment_record()
        _choose_checkpoint(config, state)
        if config.replay is None:
            _require_disk(config, parameters=parameters)
            _record_start(config, state, data=data)
        _print_start(config, state, data=data, parameters=parameters)
    for callback in callbacks:
        if hasattr(callback, "connect_run"):
            callback.connect_run(state)
    return state


def _choose_checkpoint(config: DictConfig, state: StartedRun) -> None:
    if config.resume is None and config.replay is None:
        return
    at_most = None if config.replay is None else config.replay - 1
    chosen, state.notes = newest_complete(state.folder / "checkpoints", at_most=at_most)
    while chosen is not None and (undone := _undone_from(chosen.path, state.folder)) is not None:
        note = f"{chosen.path.name} is passed over: a rewind to step {undone} has undone it"
        chosen, further = newest_complete(state.folder / "checkpoints", at_most=undone)
        state.notes += [note, *further]
    if chosen is not None:
        state.checkpoint, state.step = chosen.path, chosen.step
    elif state.notes:
        state.notes.append(f"no complete checkpoint in {state.folder}/checkpoints: the run starts from its beginning")
        for note in state.notes:
            print(f"note: {note}", flush=True)


def _undone_from(checkpoint: Path, folder: Path) -> int | None:
    """The step that a later rewind went back to, if the checkpoint was saved after it (a kill kept it on disk)."""
    rewinds = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))["rewinds"]
    back_to = min((rewind["to_step"] for rewind in read_rewinds(folder)[rewinds:]), default=None)
    return back_to if back_to is not None and step_of(checkpoint) > back_to else None


def _require_disk(config: DictConfig, *, parameters: int) -> None:
    checkpoints = (config.callbacks or {}).get("checkpoints")
    needed = 4 * parameters  # the model directory
    if checkpoints is not None:
        needed += required_bytes(
            parameters,
            max_steps=config.trainer.max_steps,
            archive_every=checkpoints.archive_every,
            keep_rolling=checkpoints.keep_rolling if checkpoints.rolling_every else 0,
        )
    there = sum(file.stat().st_size for file in Path(config.paths.run).glob("checkpoints/*/*") if file.is_file())
    require_free_space(
        Path(config.paths.run),
        max(0, needed - there),
        what="the model directory and the checkpoints of this run (callbacks.checkpoints)",
    )


def _record_start(config: DictConfig, state: StartedRun, *, data: Any) -> None:
    folder, environment = state.folder, state.environment
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True), encoding="utf-8")
    write_json(folder / "environment.json", environment)
    attempt = {"started": environment["started"], "command": environment["command"], "step": state.step, **state.layout}
    with (folder / "attempts.jsonl").open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(attempt, ensure_ascii=False) + "\n")
    write_json(
        folder / "data.json",
        {
            "fingerprint": data.fingerprint,
            "tokenizer": str(data.prepared.tokenizer),
            "tokenizer_fingerprint": data.tokenizer.fingerprint,
            "train": {name: str(path) for name, path in data.prepared.train.items()},
            "validation": {name: str(path) for name, path in data.prepared.validation.items()},
            **data.record(),
        },
    )


def _print_start(config: DictConfig, state: StartedRun, *, data: Any, parameters: int) -> None:
    about = data.description(config.trainer.max_steps)
    print(f"run folder {state.folder}\n{parameters:,} parameters; {about}", flush=True)


def finish_run(config: DictConfig, *, trainer: Any, module: Any, data: Any, state: StartedRun) -> dict[str, Any]:
    """Collect the results, write ``result.json`` and print them as a short table with the samples."""
    if config.replay is not None:
        return _of_callbacks(trainer, "report") or {}
    folder = Path(config.paths.run)
    series: list[dict[str, float]] = _of_callbacks(trainer, "series") or []
    records = next((callback for callback in trainer.callbacks if hasattr(callback, "result")), None)
    result = {
        "finished": trainer.global_step >= config.trainer.max_steps,
        "steps": trainer.global_step,
        "tokens_seen": data.tokens_seen(trainer.global_step),
        "held_out_before": series[0] if series else None,
        "held_out_after": series[-1] if series else None,
        "held_out_series": series,
        "unigram_bits_per_character": data.unigram_bits_per_character(),
        "stability": None if records is None else records.result(),
        "samples": _of_callbacks(trainer, "texts") or {},
        "saving": _of_callbacks(trainer, "saving"),
        "seconds": round(time.monotonic() - state.started, 3),
        "started_from_step": state.step,
        "model_directory": str(folder / "model"),
    }
    if trainer.is_global_zero:
        _complete_model_directory(config)
        write_json(folder / "result.json", result)
        print(summary(result, run_folder=config.paths.run))
    return result


def _of_callbacks(trainer: Any, name: str) -> Any:
    return next((getattr(callback, name) for callback in trainer.callbacks if hasattr(callback, name)), None)


def _complete_model_directory(config: DictConfig) -> None:
    """Make the model directory from the last checkpoint where a kill came between the last step and its writing."""
    wanted = (config.callbacks or {}).get("model_directory")
    if wanted is None or Path(wanted.directory).is_dir():
        return
    from ncvc.model.consolidation import consolidate

    chosen, _ = newest_complete(Path(config.paths.run) / "checkpoints")
    if chosen is not None and chosen.step == config.trainer.max_steps:
        consolidate(chosen.path, output=Path(wanted.directory))


def summary(result: dict[str, Any], *, run_folder: str) -> str:
    """The result as the lines a reader wants to see last."""
    lines = [""]
    if result["held_out_before"] is not None:
        for name, words in (
            ("bits_per_character", "bits per character"),
            ("nats_per_token", "nats per token"),
        ):
            before, after = (
                result["held_out_before"][f"held_out/{name}"],
                result["held_out_after"][f"held_out/{name}"],
            )
            lines.append(f"held-out {words:<20} {before:8.4f} before   {after:8.4f} after")
        lines.append(f"unigram model of the same text {result['unigram_bits_per_character']:5.4f} bits per character")
    lines += [f"\n{text}" for text in result["samples"].values()]
    if Path(result["model_directory"]).is_dir():
        lines.append(f"\nmodel directory  {result['model_directory']}")
    lines.append(f"TensorBoard      tensorboard --logdir {run_folder}")
    return "\n".join(lines)
