"""What a curation is asked to do: its sources, its rules, and where it runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from ncvc.corpus.contamination.index import ContaminationSettings
from ncvc.corpus.duplicates.deduplication import DeduplicationSettings
from ncvc.corpus.personal.masking import PrivacySettings
from ncvc.corpus.quality.classifier import QualityClassifierSettings
from ncvc.corpus.quality.rules import QualitySettings
from ncvc.settings import settings_from

Group = TypeVar("Group")


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """One raw source. Sources listed first keep their copy of a text that several have.

    ``path`` is a file or folder; ``layout`` how a row holds its text (`ncvc.corpus.reading.layouts`), with ``options``
    of that layout; ``kind`` and ``domain`` are for the data card and the mixture; ``license`` and ``origin`` are told
    in the card. ``privacy`` and ``quality`` are groups of settings, null leaves that step out.
    """

    path: str
    layout: str = "plain"
    options: dict | None = None
    text_field: str = "text"
    kind: Literal["real", "synthetic"] = "real"
    domain: Literal["general", "medical"] = "general"
    license: str | None = None
    origin: str | None = None
    for_tokenizer: bool = True
    weight: float | None = None
    deduplicate: bool = True
    classify: bool = True
    privacy: dict | None = None
    quality: dict | None = None


@dataclass(frozen=True, kw_only=True)
class ExecutorSettings:
    """Where the tasks run: ``local`` processes, a ``ray`` cluster, or ``slurm`` array jobs.

    ``workers`` tasks run at a time (null: one per core here); ``address`` is Ray's (null: one started here, auto: the
    running one); the rest is Slurm's and is handed to datatrove.
    """

    kind: Literal["local", "ray", "slurm"] = "local"
    workers: int | None = None
    cpus_per_task: int = 1
    gigabytes_per_cpu: float = 2
    address: str | None = None
    partition: str | None = None
    time: str | None = None
    qos: str = "normal"
    env_command: str | None = None
    sbatch_args: dict | None = None
    srun: bool = True

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"executor.workers={self.workers}: at least one task must run; set 1 or more, or null.")
        if self.kind == "slurm" and (self.partition is None or self.time is None):
            raise ValueError(
                f"executor.partition={self.partition}, executor.time={self.time}: Slurm needs both; set for example "
                "executor.partition=cpu executor.time=24:00:00."
            )

    @property
    def num_workers(self) -> int:
        """Tasks that run at a time."""
        return self.workers or len(os.sched_getaffinity(0))


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source with its settings built, ready to be run."""

    name: str
    settings: SourceSettings
    privacy: PrivacySettings | None
    quality: QualitySettings | None

    @property
    def path(self) -> Path:
        """Where the raw text lies."""
        return Path(self.settings.path).expanduser()


@dataclass(frozen=True, kw_only=True)
class CurationSettings:
    """All of one curation; ``shard_megabytes`` is the raw text of one task, the most that a kill can cost."""

    name: str
    sources: tuple[Source, ...]
    cleaning: Literal["guarded", "literal"] = "guarded"
    analyzer: Mapping[str, Any] = field(default_factory=dict)
    deduplication: DeduplicationSettings | None = None
    contamination: ContaminationSettings | None = None
    classifier: QualityClassifierSettings | None = None
    shard_megabytes: float = 32.0
    certificate: bool = True

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("corpus.sources is empty: name at least one source, {NAME: {path: FILE_OR_FOLDER}}.")
        if not self.shard_megabytes > 0:
            raise ValueError(f"shard_megabytes={self.shard_megabytes}: must be above 0; 32 is the default.")


def source_from(name: str, values: Mapping[str, Any]) -> Source:
    """The source ``name`` of ``corpus.sources``; raises `ValueError` with every setting that cannot be."""
    path = f"corpus.sources.{name}"
    if not isinstance(values, Mapping):
        raise ValueError(f"{path}={values!r}: must be a group of settings with at least path: {path}.path=FILE.")
    if not name or name.startswith(".") or "/" in name:
        raise ValueError(f"corpus.sources: {name!r} names a folder; use letters, digits, - and _.")
    missing = [key for key, value in values.items() if value == "???"]
    if missing:
        raise ValueError(f"{path}.{missing[0]}: needed and not set; set {path}.{missing[0]}=FILE_OR_FOLDER.")
    settings = settings_from(SourceSettings, values, path=path)
    return Source(
        name=name,
        settings=settings,
        privacy=_group(PrivacySettings, settings.privacy, path=f"{path}.privacy"),
        quality=_group(QualitySettings, settings.quality, path=f"{path}.quality"),
    )


def _group(kind: type[Group], values: Mapping[str, Any] | None, *, path: str) -> Group | None:
    return None if not values else settings_from(kind, values, path=path)


def executor_from(values: Mapping[str, Any]) -> ExecutorSettings:
    """The group ``executor``; raises `ValueError` with every setting that cannot be."""
    return settings_from(ExecutorSettings, values, path="executor")


def curation_from(values: Mapping[str, Any]) -> CurationSettings:
    """What the composed configuration of ``python -m ncvc.curate`` asks for.

    Raises one `ValueError` that lists every group's problems.
    """
    found: list[str] = []
    built: dict[str, Any] = {}

    def attempt(name: str, build: Callable[..., Any], *arguments: Any, **settings: Any) -> None:
        try:
            built[name] = build(*arguments, **settings)
        except ValueError as error:
            found.append(str(error))

    corpus = values["corpus"]
    sources = corpus.get("sources") or {}
    for name, settings in sources.items():
        if settings is not None:
            attempt(f"source {name}", source_from, str(name), settings)
    groups = {
        "deduplication": DeduplicationSettings,
        "contamination": ContaminationSettings,
        "classifier": QualityClassifierSettings,
    }
    for name, kind in groups.items():
        group = values.get(name)
        if group is not None:
            attempt(name, settings_from, kind, group, path=name)
    if found:
        raise ValueError("\n".join(found))
    return CurationSettings(
        name=corpus["name"],
        sources=tuple(built[name] for name in built if name.startswith("source ")),
        cleaning=values["cleaning"],
        analyzer=values["analyzer"],
        deduplication=built.get("deduplication"),
        contamination=built.get("contamination"),
        classifier=built.get("classifier"),
        shard_megabytes=values["shard_megabytes"],
        certificate=values["certificate"],
    )
