"""Taking up a run again: which folder, is it the same run, who holds it, and how it ended.

A run may go on with another number of ranks; everything that would change what it computes (model, data, tokenizer,
batch, optimizer, ...) is compared by name with what its checkpoint says, and refused unless allowed by name. Knows
files and configurations, nothing of training.
"""

import fcntl
import json
import os
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from omegaconf import DictConfig, OmegaConf

from ncvc.storage import write_json

# settings under these names decide what is computed; of the rest (machine, logging, paths) a run is independent
_COMPARED = ("seed", "model", "optimizer", "schedule", "stability", "data", "trainer")
_DATA = {"batch_size", "context_length", "packing", "mask_documents", "skip", "too_long"}
_TRAINER = {"max_steps", "precision", "gradient_clip_val", "gradient_clip_algorithm"}
_MODULE = ("neftune_alpha", "lora")
_BESIDE = ("_partial_", "attention_backend")
BASE_FILE = "base.json"  # of a run: which model it started from (`ncvc.model.base`)
_LAYOUT = ("trainer.devices", "trainer.num_nodes", "trainer.strategy", "data.micro_batch_size", "data.layout")


class RunStopped(Exception):
    """The run ended before its last step, in order: everything up to here is on disk. ``exit_code`` tells why."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    @classmethod
    def by_signal(cls, number: int, *, folder: Path, step: int) -> Self:
        """After SIGTERM or Ctrl-C, with the step that was saved."""
        name = signal.Signals(number).name
        return cls(
            f"{name} received: step {step} is saved. To go on: python -m ncvc.train resume={folder}",
            exit_code=128 + number,
        )


@dataclass(kw_only=True)
class RunState:
    """What the checkpoint callback needs to know of the run: its folder, identity, and where to take it up.

    ``checkpoint`` is None for a fresh start; ``environment`` is recorded in checkpoints (first rank; empty on others).
    """

    folder: Path
    identity: dict[str, Any]
    layout: dict[str, Any]
    allowed: list[str] = field(default_factory=list)
    checkpoint: Path | None = None
    notes: list[str] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)


def run_identity(config: DictConfig, data: Mapping[str, Any]) -> dict[str, Any]:
    """Flat name -> value of everything that decides what the run computes; ``data`` names texts and tokenizer."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    found: dict[str, Any] = {}
    for root in _COMPARED:
        for name, value in _flat(root, plain.get(root)):
            group, _, key = name.partition(".")
            if group == "data" and key.split(".")[0] not in _DATA:
                continue
            if group == "trainer" and key.split(".")[0] not in _TRAINER:
                continue
            if key.split(".")[-1] not in _BESIDE:
                found[name] = value
    for setting in _MODULE:  # only where they are in use, so that runs from before they existed go on
        chosen = (plain.get("module") or {}).get(setting)
        found |= {name: value for name, value in _flat(f"module.{setting}", chosen) if value is not None}
    if plain.get("base") is not None and (pinned := read_pinned_base(Path(plain["paths"]["run"]))) is not None:
        found["base.weights"] = pinned["sha256"]
    return {**found, **data}


def read_pinned_base(folder: Path) -> dict[str, str] | None:
    """``path`` and ``sha256`` of the base that the run in ``folder`` started from; None where none is recorded."""
    file = folder / BASE_FILE
    if not file.is_file():
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        return {"path": str(record["path"]), "sha256": str(record["sha256"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} does not say which model this run started from ({type(error).__name__}: {error}); restore it, or "
            "start a new run in another folder."
        ) from error


def run_layout(config: DictConfig) -> dict[str, Any]:
    """How the work is cut over the machine: it may change, at the price of other rounding and dropout masks."""
    layout = {name: OmegaConf.select(config, name) for name in _LAYOUT}
    strategy = layout["trainer.strategy"]
    layout["trainer.strategy"] = strategy.get("_target_") if isinstance(strategy, Mapping | DictConfig) else strategy
    return layout


def _flat(name: str, value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from _flat(f"{name}.{key}", child)
    else:
        yield name, value


def changes(saved: Mapping[str, Any], now: Mapping[str, Any], *, allowed: Iterable[str] = ()) -> list[str]:
    """One message for every difference that is not allowed; ``allowed`` holds names or groups (``data``, ``model``)."""
    groups = tuple(allowed)
    found = []
    for name in dict.fromkeys([*saved, *now]):
        before, after = saved.get(name), now.get(name)
        if before == after or any(name == group or name.startswith(f"{group}.") for group in groups):
            continue
        if name == "tokenizer" or name.startswith("data.text."):
            what = "the tokenizer" if name == "tokenizer" else f"the text of source {name.removeprefix('data.text.')}"
            found.append(f"{name}: {what} is not the one of the checkpoint ({_short(before)}, now {_short(after)}).")
        else:
            found.append(f"{name}: the checkpoint was made with {_short(before)}, now it is {_short(after)}.")
    return found


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if isinstance(value, str) and len(text) == 64 else "not there" if value is None else text


def refuse_changes(saved: Mapping[str, Any], run: RunState, *, where: Path) -> None:
    """``ValueError`` that names every setting which would make this another run than the one in ``where``."""
    if found := changes(saved, run.identity, allowed=run.allowed):
        names = [text.partition(":")[0] for text in found]
        lines = "\n".join(f"  {number}. {text}" for number, text in enumerate(found, 1))
        raise ValueError(
            f"{where} cannot be taken up, because this would be another run:\n{lines}\nSet them back, or allow each "
            f"by name: 'allow_changes=[{','.join(names)}]'; or start a new run in another folder."
        )


class RunLock:
    """One training at a time in a run folder; the lock dies with its process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._handle = (folder / ".lock").open("a+")
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._handle.seek(0)
            holder = self._handle.read().strip() or "another process"
            raise ValueError(
                f"{folder} is in use by {holder}: two runs in one folder would overwrite each other. Wait for it, end "
                "it, or set another folder with paths.run=..."
            ) from error
        self._handle.truncate(0)
        self._handle.write(f"process {os.getpid()} on {os.uname().nodename}")
        self._handle.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.close()


def is_first_rank() -> bool:
    """Whether this process was started by the user and not as a further rank of a run."""
    ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") in ("", "0") for name in ranks)


def run_of(config: DictConfig) -> dict[str, Any]:
    """Where a training lies and how it starts, for what has to be the same each time it starts (`ncvc.model.base`)."""
    return {
        "home": Path(config.paths.home),
        "run": Path(config.paths.run),
        "resumed": config.resume is not None or config.replay is not None,
        "first_rank": is_first_rank() and config.replay is None,
    }


def newest_run(home: Path) -> Path:
    """The run folder under ``home`` that was started last; ``FileNotFoundError`` when there is none."""
    runs = [path.parent for path in Path(home).expanduser().glob("runs/*/*/config.yaml")]
    if not runs:
        raise FileNotFoundError(f"there is no run under {home}/runs; name one: resume=FOLDER")
    return max(runs, key=lambda folder: (folder.name, folder))  # named by the time of their start


def is_finished(folder: Path) -> bool:
    """Whether the run of this folder went through to its last step."""
    path = folder / "result.json"
    if not path.is_file():
        return False
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")).get("finished"))
    except ValueError:
        return False


def read_rewinds(folder: Path) -> list[dict[str, Any]]:
    """The rewinds of a run, oldest first: at_step, first_spike, to_step, skip [first, end)."""
    path = folder / "rewinds.json"
    return json.loads(path.read_text(encoding="utf-8"))["rewinds"] if path.is_file() else []


def write_rewinds(folder: Path, rewinds: list[dict[str, Any]]) -> None:
    """Record the rewinds of a run."""
    write_json(folder / "rewinds.json", {"rewinds": rewinds})


def merged_ranges(ranges: Iterable[Iterable[int]]) -> list[tuple[int, int]]:
    """Sorted ranges [first, end) that cover the same numbers and do not touch."""
    merged: list[tuple[int, int]] = []
    for first, end in sorted((int(first), int(end)) for first, end in ranges):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((first, end))
    return merged
