"""The settings of ``python -m ncvc.evaluate``, checked before a model is opened. Knows nothing of Hydra or torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self, get_args

from ncvc.evaluation.answering import AnswerSettings, Method
from ncvc.evaluation.item import Task
from ncvc.evaluation.scoring import ScoreSettings
from ncvc.evaluation.tasks import load_tasks
from ncvc.settings import fits, hints_of, settings_from, suggestion, words

TEXTS = ("model", "server", "output", "score")
"""Settings that are free text, kept from Hydra's grammar."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """Which questions: everything that ``load_tasks`` asks."""

    directory: str
    tasks: tuple[str, ...]
    own: Mapping[str, Any]
    split: Literal["paper", "document", "grouped"]
    fold: int | None
    shots: int

    def load(self) -> list[Task]:
        """The tasks; ``ValueError`` or ``FileNotFoundError`` as of ``load_tasks``."""
        return load_tasks(
            self.tasks,
            directory=Path(self.directory).expanduser(),
            split=self.split,
            fold=self.fold,
            shots=self.shots,
            own=self.own,
        )


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """What ``conf/evaluate.yaml`` says, with its comments; ``ValueError`` names everything that cannot be."""

    home: str
    model: str
    server: str | None
    device: str
    dtype: str
    tasks: tuple[str, ...]
    split: Literal["paper", "document", "grouped"]
    fold: int | None
    shots: int
    method: Literal["generation", "log_likelihood", "both"]
    constrained: bool
    max_new_tokens: int | None
    batch_size: int
    too_long: Literal["refuse", "truncate"]
    system_role: bool
    output: str | None
    score: str | None
    scoring: Mapping[str, Any]
    benchmarks: Mapping[str, Any]
    teacher: Mapping[str, Any]

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Self:
        """From the values of a configuration, in which one task may be typed as text; ``ValueError`` as above."""
        known = [field.name for field in fields(cls)]
        if unknown := [f"{name}: no such setting{suggestion(name, known)}" for name in values if name not in known]:
            raise ValueError("\n".join(unknown))
        tasks = values.get("tasks")
        if isinstance(tasks, str):
            tasks = [name.strip() for name in tasks.strip("[] ").split(",") if name.strip()]
        return cls(**{**values, "tasks": tuple(tasks) if isinstance(tasks, list) else tasks})

    def __post_init__(self) -> None:
        hints = hints_of(type(self))
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        found = [
            f"{name}={value!r}: must be {words(hints[name])}."
            for name, value in values.items()
            if not fits(value, hints[name])
        ]
        found += [
            f"benchmarks.{name}: no such setting{suggestion(name, ('dir', 'tasks', 'own'))}"
            for name in (self.benchmarks if isinstance(self.benchmarks, Mapping) else ())
            if name not in ("dir", "tasks", "own")
        ]
        if not found:
            found = self._choices()
        if found:
            raise ValueError("\n".join(found))
        for method in self.methods:
            self.answering(method)
        self.score_settings(benchmarks=None)

    def _choices(self) -> list[str]:
        found = []
        if not self.tasks and self.score is None:
            found.append("tasks is empty: name at least one, such as [jmed_llm,igakuqa_2018].")
        if self.shots < 0:
            found.append(f"shots={self.shots}: must be 0 (none) or above.")
        if not isinstance(self.benchmarks.get("dir"), str):
            found.append("benchmarks.dir must be the folder of the benchmarks' files.")
        own = self.benchmarks.get("own")
        if own is not None and not isinstance(own, Mapping):
            found.append("benchmarks.own must be a group of tasks by name.")
        if self.method == "both" and self.output is not None:
            found.append("method=both writes a folder for each method, and output names one; leave output out.")
        if self.server is not None and not self.server.strip():
            found.append("server is empty; set the URL of the server, or null.")
        return found

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods to answer with, one after the other."""
        both: tuple[Method, ...] = get_args(Method)
        return both if self.method == "both" else (self.method,)

    def answering(self, method: Method) -> AnswerSettings:
        """How items are answered with ``method``."""
        return AnswerSettings(
            method=method,
            constrained=self.constrained,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            too_long=self.too_long,
            system_role=self.system_role,
        )

    @property
    def benchmark(self) -> BenchmarkSettings:
        """Which questions are asked."""
        return BenchmarkSettings(
            directory=self.benchmarks["dir"],
            tasks=self.tasks,
            own=self.benchmarks.get("own") or {},
            split=self.split,
            fold=self.fold,
            shots=self.shots,
        )

    def score_settings(self, *, benchmarks: Path | None) -> ScoreSettings:
        """How answers are scored; ``benchmarks`` is the folder that the benchmarks lie in."""
        values = dict(self.scoring)
        certificate = values.pop("certificate", None)
        if not isinstance(certificate, str | None):
            raise ValueError(f"scoring.certificate={certificate!r}: must be the folder of a certificate, or null.")
        for name in values:
            if name not in ("resamples", "seed", "baselines"):
                known = ("resamples", "seed", "baselines", "certificate")
                raise ValueError(f"scoring.{name}: no such setting{suggestion(name, known)}")
        paths = {"benchmarks": benchmarks, "home": Path(self.home).expanduser()}
        paths["certificate"] = None if certificate is None else Path(certificate).expanduser()
        found = settings_from(ScoreSettings, {**values, **paths}, path="scoring")
        for name, lowest in (("resamples", 1), ("seed", 0)):
            if not lowest <= getattr(found, name) < 2**31:
                raise ValueError(f"scoring.{name}={getattr(found, name)}: must be {lowest} or above.")
        return found

    @property
    def connection(self) -> dict[str, Any] | None:
        """The settings of a server's teacher, or None where the model is opened here."""
        if self.server is None:
            return None
        name = None if self.model in ("last", "null", "") else self.model
        return {**self.teacher, "backend": "openai_compatible", "base_url": self.server, "model": name}
