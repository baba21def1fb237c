"""The whole curation: raw sources to segmented stores, resumable at every task, the same bytes for any workers.

    read      files of each source -> shards of raw documents
    refine    mask, clean, mask again, quality rules, quality classifier -> refined shards with exact keys
    duplicates  exact: the first of equal texts stays; near: MinHash over what is left
    finish    leave duplicates out, segment, decontaminate -> the segmented store of each source
    close     manifests, dropped.jsonl, certificate

Personal data is masked before cleaning, where numbers still have their shape, and once more after it, when invisible
and full-width characters can no longer hide them. Duplicates go before segmentation, the dearest step.
The result is `<home>/curated/<name>-<key>`; the key is a hash of the sources' bytes and of every rule, so the same
command finds a finished corpus, or goes on with a killed one, and another rule makes another folder.

Costs: the time of the analyser (about 2 MB of text a second and core), and on disk 4 times the raw text until it is
done, 1.2 times after.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ncvc.analyzers.files import copy_analyzer_files
from ncvc.corpus.cleaning import Cleaner
from ncvc.corpus.personal.masking import Masker
from ncvc.corpus.quality.rules import QualityRules
from ncvc.corpus.segmented import FORMAT as STORE_FORMAT
from ncvc.corpus.segmented import VERSION as STORE_VERSION
from ncvc.curation.corpus import FORMAT, VERSION
from ncvc.curation.executors import Stage, Workers, run_stage
from ncvc.curation.plan import Shard, Unit, key_of, read_shards, units_of
from ncvc.curation.settings import CurationSettings, ExecutorSettings
from ncvc.curation.statistics import write_statistics
from ncvc.morphology import build_analyzer
from ncvc.preparation import known_fingerprint
from ncvc.storage import atomic_directory, require_free_space, write_manifest
from ncvc.supervision import held


@dataclasses.dataclass(frozen=True)
class _Run:
    """What every stage needs to know."""

    settings: CurationSettings
    executor: ExecutorSettings
    workers: Workers
    work: Path
    identities: Mapping[str, Any]
    progress: bool

    @property
    def names(self) -> list[str]:
        return [source.name for source in self.settings.sources]

    def folder(self, name: str) -> Path:
        folder = self.work / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def run(self, stage: Stage) -> None:
        run_stage(
            stage,
            executor=self.executor,
            workers=self.workers,
            folder=self.folder("stages"),
            progress=self.progress,
        )

    def progress_of(self, stage: str) -> Path:
        return self.work / "stages" / stage / "progress"


def curate_corpus(settings: CurationSettings, *, executor: ExecutorSettings, home: Path, progress: bool = True) -> Path:
    """Curate ``settings.sources`` and return the finished folder; builds nothing that is there already.

    Raises `ValueError` or `OSError` with the cure in the message for settings that cannot be, sources without text, a
    failed task or a disk too small; finished tasks stay, and the same call goes on.
    """
    units = units_of(settings.sources)
    identities = _identities(settings, home=home, progress=progress)
    key = key_of(identities)
    output = home.absolute() / "curated" / f"{settings.name}-{key}"
    if (output / "manifest.json").is_file():
        return output
    work = output.with_name(f".{output.name}.work")
    raw_bytes = sum(unit.num_bytes for unit in units)
    require_free_space(output.parent, 4 * raw_bytes, what=f"curating {raw_bytes:,} stored bytes of {settings.name}")
    with held(work, lock=".lock", what="a curation"), Workers(executor.num_workers) as workers:
        run = _Run(settings, executor, workers, work, identities, progress)
        shards = _read(run, units)
        if _identities(settings, home=home, progress=progress) != identities:
            shutil.rmtree(work)
            raise ValueError(
                f"a source of corpus {settings.name} changed while it was read; leave the files as they are and start "
                "again. What was read is removed, because it may be of both states."
            )
        _refine(run, shards)
        exact = _exact(run, shards)
        near = _near(run, shards, exact)
        _finish(run, shards, exact, near)
        _close(run, units, shards, output)
    shutil.rmtree(work, ignore_errors=True)
    return output


def _identities(settings: CurationSettings, *, home: Path, progress: bool) -> dict[str, Any]:
    """Everything that decides the output, as plain values."""
    sources = []
    for source in settings.sources:
        values = dataclasses.asdict(source.settings)
        del values["path"]
        sources.append(
            {
                "name": source.name,
                "fingerprint": known_fingerprint(source.path, home=home, progress=progress),
                **values,
                "privacy": None if source.privacy is None else Masker(source.privacy).identity,
                "quality": None if source.quality is None else source.quality.identity,
            }
        )
    return {
        "format": [FORMAT, VERSION],
        "sources": sources,
        "cleaner": Cleaner(settings.cleaning).identity,
        "analyzer": build_analyzer(**settings.analyzer).identity,
        "deduplication": None if settings.deduplication is None else dataclasses.asdict(settings.deduplication),
        "contamination": None if settings.contamination is None else settings.contamination.identity,
        "classifier": None if settings.classifier is None else settings.classifier.identity,
        "certificate": settings.certificate,
        "shard_megabytes": settings.shard_megabytes,
    }


# --- stages
def _read(run: _Run, units: list[Unit]) -> list[Shard]:
    from ncvc.curation import reading_steps, writing_steps

    folder = run.folder("raw")
    shard_bytes = int(run.settings.shard_megabytes * 1e6)
    reader = reading_steps.ReadUnit(units, run.settings.sources, progress_folder=run.progress_of("read"))
    writer = writing_steps.WriteShards(folder, units, run.names, shard_bytes=shard_bytes)
    run.run(Stage("read", [reader, writer], len(units), [unit.num_bytes for unit in units]))
    shards = read_shards(folder, num_units=len(units))
    for number in range(len(run.settings.sources)):
        if not any(shard.source == number for shard in shards):
            raise ValueError(_nothing(run, units, number))
    return shards


def _nothing(run: _Run, units: list[Unit], number: int) -> str:
    source = run.settings.sources[number]
    reasons: dict[str, int] = {}
    first: dict[str, str] = {}
    for rank, unit in enumerate(units):
        dropped = run.work / "raw" / f"{rank:05d}.dropped.jsonl"
        if unit.source == number and dropped.is_file():
            for line in dropped.open(encoding="utf-8"):
                record = json.loads(line)
                reasons[record["reason"]] = reasons.get(record["reason"], 0) + 1
                first.setdefault(record["reason"], f"{record['id']} ({record['detail']})")
    told = "; ".join(f"{count} x {reason}, first {first[reason]}" for reason, count in sorted(reasons.items()))
    path = f"corpus.sources.{source.name}"
    return (
        f"{path}.path={source.settings.path}: not one document came out: {told or 'all files are empty'}. Set it to "
        f"text, {path}.text_field (now {source.settings.text_field!r}) to the field that holds it, and {path}.layout "
        f"(now {source.settings.layout}) to its form"
    )


def _refine(run: _Run, shards: list[Shard]) -> None:
    from ncvc.curation import reading_steps, steps, writing_steps

    sources = list(enumerate(run.settings.sources))
    privacy = {number: Masker(source.privacy) for number, source in sources if source.privacy is not None}
    quality = {number: QualityRules(source.quality) for number, source in sources if source.quality is not None}
    chain: list[Any] = [
        reading_steps.ReadShard([shard.path for shard in shards], progress_folder=run.progress_of("refine")),
        *([steps.Mask(privacy, shards)] if privacy else []),
        steps.Clean(run.settings.cleaning),
        *([steps.Mask(privacy, shards)] if privacy else []),
        *([steps.JudgeQuality(quality, shards)] if quality else []),
    ]
    if run.settings.classifier is not None:
        from ncvc.curation.scoring import Score

        chosen = [source.settings.classify for source in run.settings.sources]
        chain.append(Score(run.settings.classifier, shards, chosen))
    chain.append(writing_steps.WriteRefined(run.folder("refined"), shards, run.names))
    run.run(Stage("refine", chain, len(shards), [shard.num_bytes for shard in shards]))


def _exact(run: _Run, shards: list[Shard]) -> list[dict[int, str]]:
    """Rows of each refined shard that repeat an earlier text; none for sources that are not deduplicated."""
    from ncvc.corpus.duplicates.deduplication import decide_exact

    rows: list[dict[int, str]] = [{} for _ in shards]
    if run.settings.deduplication is None or not run.settings.deduplication.exact:
        return rows
    taking_part = [rank for rank, shard in enumerate(shards) if run.settings.sources[shard.source].settings.deduplicate]
    decided = decide_exact([run.work / "refined" / f"{rank:05d}.keys" for rank in taking_part])
    for rank, found in zip(taking_part, decided, strict=True):
        rows[rank] = dict.fromkeys(found.tolist(), "an earlier document is kept")
    return rows


def _near(run: _Run, shards: list[Shard], exact: list[dict[int, str]]) -> list[dict[int, str]]:
    """Rows of each refined shard, counted without exact repeats, that nearly repeat another document."""
    settings = run.settings.deduplication
    if settings is None or not settings.minhash:
        return [{} for _ in shards]
    from ncvc.corpus.duplicates.deduplication import minhash_stages, near_duplicates
    from ncvc.curation import reading_steps, steps

    paths = [run.work / "refined" / f"{rank:05d}.jsonl" for rank in range(len(shards))]
    taking_part = [run.settings.sources[shard.source].settings.deduplicate for shard in shards]
    reading: list[Any] = [
        reading_steps.ReadShard(paths, progress_folder=run.progress_of("signatures")),
        steps.DropRows(exact, name="exact duplicates", reason="same text"),
        steps.Kept(taking_part),
    ]
    folder = run.folder("near")
    sizes = [path.stat().st_size for path in paths]
    for name, chain, tasks in minhash_stages(reading, tasks=len(shards), work_folder=folder, settings=settings):
        run.run(Stage(name, chain, tasks, sizes if name == "signatures" else (), short=name != "signatures"))
    return [
        {
            int(found["row"]): f"similarity {found['similarity']:.2f} to document {found['kept_row'] + 1} of "
            f"{run.names[shards[found['kept_shard']].source]}, shard {found['kept_shard']}"
            for found in near_duplicates(folder, rank)
        }
        for rank in range(len(shards))
    ]


def store_files(run_work: Path, shards: list[Shard], names: list[str]) -> list[Path]:
    """Where the kept documents of each shard go: documents-00000.jsonl, ... of the store of its source."""
    counts = [0] * len(names)
    files = []
    for shard in shards:
        files.append(run_work / "stores" / names[shard.source] / f"documents-{counts[shard.source]:05d}.jsonl")
        counts[shard.source] += 1
    return files


def _finish(run: _Run, shards: list[Shard], exact: list[dict[int, str]], near: list[dict[int, str]]) -> None:
    from ncvc.curation import reading_steps, steps, writing_steps

    paths = [run.work / "refined" / f"{rank:05d}.jsonl" for rank in range(len(shards))]
    names = [run.names[shard.source] for shard in shards]
    chain: list[Any] = [
        reading_steps.ReadShard(paths, progress_folder=run.progress_of("finish")),
        steps.DropRows(exact, name="exact duplicates", reason="same text"),
        steps.DropRows(near, name="near duplicates", reason="nearly the same text"),
        steps.Segment(run.identities["analyzer"]),
    ]
    if run.settings.contamination is not None and run.settings.contamination.enabled:
        from ncvc.corpus.contamination.index import WindowIndex

        index = run.work / "benchmarks.index"
        if not index.exists():
            WindowIndex.build(
                run.settings.contamination,
                cleaner=Cleaner(run.settings.cleaning),
                analyzer=build_analyzer(**run.settings.analyzer),
            ).save(index)
        chain.append(steps.Decontaminate(index))
    if run.settings.certificate:
        chain.append(steps.Certify(run.folder("certificate")))
    files = store_files(run.work, shards, run.names)
    chain.append(writing_steps.WriteStore(run.folder("finished"), files, names))
    run.run(Stage("finish", chain, len(shards), [path.stat().st_size for path in paths]))


# --- closing
def _close(run: _Run, units: list[Unit], shards: list[Shard], output: Path) -> None:
    """Put the finished files under their names, with manifests; hard links, so that a kill here loses nothing."""
    from ncvc.curation import steps, writing_steps
    from ncvc.curation.data_card import drop_counts

    files = store_files(run.work, shards, run.names)
    with atomic_directory(output, manifest_format=FORMAT) as partial:
        sources = {}
        for number, source in enumerate(run.settings.sources):
            ranks = [rank for rank, shard in enumerate(shards) if shard.source == number]
            record = _close_store(run, number, ranks, files, partial / "stores" / source.name)
            sources[source.name] = record | _facts(run, number, units, shards, ranks)
        parts = [run.work / "raw" / f"{rank:05d}.dropped.jsonl" for rank in range(len(units))]
        for stage in ("refined", "finished"):
            parts += [run.work / stage / f"{rank:05d}.dropped.jsonl" for rank in range(len(shards))]
        writing_steps.concatenate(parts, partial / "dropped.jsonl")
        shared = [run.work / "finished" / f"{rank:05d}.shared.jsonl" for rank in range(len(shards))]
        writing_steps.concatenate(shared, partial / "contamination.jsonl")
        (partial / "analyzer").mkdir()
        copy_analyzer_files(run.identities["analyzer"], partial / "analyzer")
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "name": run.settings.name,
            "settings": {"cleaning": run.settings.cleaning, "analyzer": _portable(run.settings.analyzer)},
            "identity": dict(run.identities),
            "sources": sources,
            "dropped": drop_counts(partial / "dropped.jsonl"),
        }
        manifest["fingerprint"] = key_of([run.identities, sources])
        if run.settings.certificate:
            from ncvc.corpus.contamination.certificate import merge_certificate

            merge_certificate(
                [steps.fingerprint_file(run.work / "certificate", rank) for rank in range(len(shards))],
                directory=partial / "certificate",
                corpus=manifest["fingerprint"],
                cleaner=Cleaner(run.settings.cleaning),
            )
        kept = sum(record["documents"] for record in sources.values())
        if kept == 0:
            raise ValueError(f"corpus={run.settings.name}: no document is left: {_words(manifest['dropped'])}")
        tasks = {"read": len(units), "refine": len(shards), "finish": len(shards)}
        write_statistics(output, tasks=tasks, folder=run.work / "stages")
        write_manifest(partial, manifest)


def _portable(analyzer: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without paths: the dictionaries they name lie in the corpus' folder ``analyzer``."""
    dictionary = analyzer.get("dictionary")
    is_path = dictionary is not None and Path(str(dictionary)).expanduser().exists()
    plain = {key: value for key, value in analyzer.items() if key != "user_dictionary"}
    return plain | ({"dictionary": None} if is_path else {})


def _words(dropped: Mapping[str, Any]) -> str:
    found = [
        (entry["documents"], f"{stage}: {reason}")
        for stage, reasons in dropped.items()
        for reason, entry in reasons.items()
    ]
    return "; ".join(f"{count} x {what}" for count, what in sorted(found, reverse=True)[:8])


def _close_store(run: _Run, number: int, ranks: list[int], files: list[Path], folder: Path) -> dict[str, Any]:
    """The segmented store of one source: its files under their names and its manifest."""
    folder.mkdir(parents=True)
    totals = {"documents": 0, "characters": 0, "bytes": 0}
    listed = {}
    for rank in ranks:
        record = json.loads((run.work / "finished" / f"{rank:05d}.json").read_text(encoding="utf-8"))
        for key in totals:
            totals[key] += record[key]
        if record["file"] is not None:
            os.link(files[rank], folder / files[rank].name)
            listed[files[rank].name] = record["file"]
    source = run.identities["sources"][number]
    write_manifest(
        folder,
        {
            "format": STORE_FORMAT,
            "version": STORE_VERSION,
            "source_fingerprint": source["fingerprint"],
            "text_field": source["text_field"],
            "cleaner": run.identities["cleaner"],
            "analyzer": run.identities["analyzer"],
            **totals,
            "problems": {},
            "files": listed,
        },
    )
    return totals


def _facts(run: _Run, number: int, units: list[Unit], shards: list[Shard], ranks: list[int]) -> dict[str, Any]:
    """What the data card tells of a source beside its counts."""
    settings = run.settings.sources[number].settings
    masked: dict[str, int] = {}
    for rank in ranks:
        record = json.loads((run.work / "refined" / f"{rank:05d}.json").read_text(encoding="utf-8"))
        for kind, count in record["masked"].items():
            masked[kind] = masked.get(kind, 0) + count
    return {
        "raw_documents": sum(shards[rank].documents for rank in ranks),
        "raw_bytes": sum(shards[rank].num_bytes for rank in ranks),
        "stored_bytes": sum(unit.num_bytes for unit in units if unit.source == number),
        "masked": dict(sorted(masked.items())),
        **{key: getattr(settings, key) for key in ("kind", "domain", "license", "origin", "for_tokenizer", "weight")},
    }
