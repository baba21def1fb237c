"""From raw text to what training reads, building only what is missing.

raw source -> segmented store (cleaned, words separated) -> tokenizer -> token files (train and validation). A source
that is a segmented store already is used as it is.
Every product lies in a folder named by a hash of everything that decides its content (text, cleaner, analyser,
dictionary, tokenizer, split), so a changed source or setting makes a new folder and an unchanged one costs only a
look at the source's files. Knows nothing of torch. Segmentation dominates: about 1.8 MB of UTF-8 per second and core.
"""

import contextlib
import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ncvc.analyzers.files import remember_files
from ncvc.corpus.cleaning import Cleaner
from ncvc.corpus.reading.readers import find_source_files, source_fingerprint
from ncvc.corpus.segmented import FORMAT as SEGMENTED
from ncvc.corpus.segmented import SegmentedCorpus, open_segmented, segment_source
from ncvc.morphology import build_analyzer
from ncvc.shards import TokenFile, pack_corpus
from ncvc.storage import write_json
from ncvc.tokenizer import Tokenizer
from ncvc.tokenizer_training import train_on_stores

CLINICAL_SAMPLES = "clinical_samples"  # the name that stands for the bundled synthetic text


@dataclass(frozen=True, kw_only=True)
class Source:
    """One text source: where it lies, its share of the training samples (null: its natural share).

    ``path`` is a file or folder of text, or a finished segmented store. ``kind`` says who wrote it: ``real`` people or
    a model (``synthetic``); `ncvc.mixture` governs the share of the two.
    """

    name: str
    path: str
    weight: float | None = None
    for_tokenizer: bool = True
    kind: Literal["real", "synthetic"] = "real"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What preparation leaves: the tokenizer's folder and, per source, its token folders.

    A small source among several may lack the one for ``validation``.
    """

    tokenizer: Path
    train: dict[str, Path]
    validation: dict[str, Path]


def prepare(
    sources: list[Source],
    *,
    home: Path,
    cleaning: str,
    analyzer: Mapping[str, str],
    tokenizer: Mapping[str, Any],
    validation_fraction: float,
    text_field: str,
    split_seed: int,
    workers: int,
    progress: bool = True,
) -> Prepared:
    """Build every missing product for ``sources`` under ``home`` and return where they lie.

    ``tokenizer`` holds ``directory`` (use that one) or the settings to train one. Raises with the cure in the message
    for a source without text, a tokenizer that cannot be used, or a disk too small; what is complete stays.
    """
    with one_builder(home):
        cleaner, segmenter = Cleaner(cleaning), build_analyzer(**analyzer)
        stores = _stores(
            sources,
            home=home,
            cleaner=cleaner,
            analyzer_identity=segmenter.identity,
            text_field=text_field,
            workers=workers,
            progress=progress,
        )
        directory = _tokenizer(
            [stores[source.name] for source in sources if source.for_tokenizer],
            settings=tokenizer,
            home=home,
            cleaner=cleaner,
            segmenter=segmenter,
            progress=progress,
        )
        return _tokens(
            stores,
            tokenizer=directory,
            home=home,
            validation_fraction=validation_fraction,
            split_seed=split_seed,
            progress=progress,
        )


def prepare_tokenizer(
    sources: list[Source],
    *,
    home: Path,
    cleaning: str,
    analyzer: Mapping[str, str],
    tokenizer: Mapping[str, Any],
    text_field: str,
    workers: int,
    progress: bool = True,
) -> tuple[Path, list[SegmentedCorpus]]:
    """Segment the sources that are ``for_tokenizer`` and train a tokenizer on them, where missing.

    Returns its folder and the stores. The same text and settings give the folder that `prepare` would make. Errors as
    of `prepare`.
    """
    with one_builder(home):
        cleaner, segmenter = Cleaner(cleaning), build_analyzer(**analyzer)
        stores = _stores(
            [source for source in sources if source.for_tokenizer],
            home=home,
            cleaner=cleaner,
            analyzer_identity=segmenter.identity,
            text_field=text_field,
            workers=workers,
            progress=progress,
        )
        directory = _tokenizer(
            list(stores.values()),
            settings=tokenizer,
            home=home,
            cleaner=cleaner,
            segmenter=segmenter,
            progress=progress,
        )
        return directory, list(stores.values())


def prepare_tokens(
    sources: list[Source],
    *,
    tokenizer: Path,
    home: Path,
    validation_fraction: float,
    text_field: str,
    split_seed: int,
    workers: int,
    progress: bool = True,
) -> Prepared:
    """Pack ``sources`` for the tokenizer in the folder ``tokenizer``, which also decides cleaning and analyser.

    Errors as of `prepare`; a finished store made by another cleaner or analyser is refused by name.
    """
    with one_builder(home):
        loaded = Tokenizer.load(tokenizer)
        remember_files([tokenizer])  # where workers find the user dictionaries it carries
        stores = _stores(
            sources,
            home=home,
            cleaner=loaded.cleaner,
            analyzer_identity=loaded.analyzer_identity,
            text_field=text_field,
            workers=workers,
            progress=progress,
        )
        return _tokens(
            stores,
            tokenizer=tokenizer,
            home=home,
            validation_fraction=validation_fraction,
            split_seed=split_seed,
            progress=progress,
        )


def _stores(
    sources: list[Source],
    *,
    home: Path,
    cleaner: Cleaner,
    analyzer_identity: Mapping[str, str],
    text_field: str,
    workers: int,
    progress: bool,
) -> dict[str, SegmentedCorpus]:
    """The segmented store of each source: the source itself if it is one, else made where it is missing."""
    stores: dict[str, SegmentedCorpus] = {}
    for source in sources:
        path = _source_path(source, home=home)
        if is_segmented(path):
            stores[source.name] = _own_store(source, path, cleaner=cleaner, analyzer_identity=analyzer_identity)
            continue
        fingerprint = known_fingerprint(path, home=home, progress=progress)
        key = _key(fingerprint, cleaner.identity, analyzer_identity, text_field)
        folder = home / "corpus" / f"{source.name}-{key}"
        if not (folder / "manifest.json").is_file():
            segment_source(
                path,
                output=folder,
                cleaner=cleaner,
                analyzer_identity=analyzer_identity,
                text_field=text_field,
                workers=workers,
                progress=progress,
            )
        stores[source.name] = open_segmented(folder)
    return stores


def is_segmented(path: Path) -> bool:
    """Whether ``path`` is a segmented store (also a damaged one, which `open_segmented` refuses), not raw text."""
    manifest = path / "manifest.json"
    if not manifest.is_file():
        return False
    try:
        facts = json.loads(manifest.read_text(encoding="utf-8"))
    except ValueError:  # broken JSON, or no UTF-8
        return (path / "documents-00000.jsonl").is_file()
    return isinstance(facts, dict) and facts.get("format") == SEGMENTED


def _own_store(
    source: Source, path: Path, *, cleaner: Cleaner, analyzer_identity: Mapping[str, str]
) -> SegmentedCorpus:
    """Open a source that is a store; raises ``ValueError`` where cleaner or analyser are not those in use."""
    store = open_segmented(path)
    differences = [
        f"{setting}.{key}: {_said(made.get(key))} there, {_said(used.get(key))} here"
        for setting, made, used in (
            ("cleaning", store.manifest["cleaner"], cleaner.identity),
            ("analyzer", store.manifest["analyzer"], analyzer_identity),
        )
        for key in dict.fromkeys([*made, *used])
        if made.get(key) != used.get(key)
    ]
    if differences:
        raise ValueError(
            f"{path} (source {source.name}) is text that was cleaned and segmented otherwise than the settings say: "
            f"{'; '.join(differences)}. Set cleaning and analyzer to what it was made with, use a tokenizer made for "
            "it, or name the raw text instead of it."
        )
    return store


def _said(value: object) -> str:
    return "nothing" if value is None else str(value)


def _tokens(
    stores: Mapping[str, SegmentedCorpus],
    *,
    tokenizer: Path,
    home: Path,
    validation_fraction: float,
    split_seed: int,
    progress: bool,
) -> Prepared:
    """Token folders of every store, made where missing.

    One source among several may be too small to give a held-out document; all together must give one.
    """
    loaded = Tokenizer.load(tokenizer)
    train, validation = {}, {}
    for name, store in stores.items():
        key = _key(store.fingerprint, loaded.fingerprint, validation_fraction, split_seed)
        folder = home / "tokens" / f"{name}-{key}"
        if not _complete(folder, alone=len(stores) == 1):
            pack_corpus(
                store,
                tokenizer=loaded,
                directory=folder,
                validation_fraction=validation_fraction,
                seed=split_seed,
                validation_optional=len(stores) > 1,
                progress=progress,
            )
        train[name] = folder / "train"
        if (folder / "validation" / "manifest.json").is_file():
            validation[name] = folder / "validation"
    if not validation:
        raise ValueError(
            f"data.validation_fraction={validation_fraction} leaves no document of any of {', '.join(stores)} for "
            "validation; set it higher, or another data.split_seed"
        )
    return Prepared(tokenizer=tokenizer, train=train, validation=validation)


@contextlib.contextmanager
def one_builder(home: Path) -> Iterator[None]:
    """Ranks and runs that start together build once: the first holds the lock, the others wait and find all made."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / ".preparing").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def known_fingerprint(path: Path, *, home: Path, progress: bool, setting: str = "data.source") -> str:
    """Fingerprint of a source, read again only when the name, size or time of change of one of its files differs.

    At the report's 32 GB a reading takes minutes; start-up should not. ``setting`` names the source in errors.
    """
    files, _ = find_source_files(path, setting=setting)
    state = _key([(file.name, file.num_bytes, file.path.stat().st_mtime_ns) for file in files])
    known_as = home / "corpus" / ".fingerprints" / f"{_key(str(path.resolve()))}.json"
    if known_as.is_file():
        known = json.loads(known_as.read_text(encoding="utf-8"))
        if known["state"] == state:
            return known["fingerprint"]
    fingerprint = source_fingerprint(path, progress=progress, setting=setting)
    write_json(known_as, {"source": str(path.resolve()), "state": state, "fingerprint": fingerprint})
    return fingerprint


def _complete(folder: Path, *, alone: bool) -> bool:
    """Whether the tokens of one source are all there; a source that stands ``alone`` must have held-out text."""
    if not (folder / "train" / "manifest.json").is_file():
        return False
    return (folder / "validation" / "manifest.json").is_file() or (not alone and (folder / "manifest.json").is_file())


def _key(*parts: Any) -> str:
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def _source_path(source: Source, *, home: Path) -> Path:
    if source.path != CLINICAL_SAMPLES:
        return Path(source.path).expanduser()
    from ncvc.corpus.clinical.samples import write_clinical_samples

    path = home / "corpus" / "clinical_samples.jsonl"
    write_clinical_samples(path)
    return path


def _tokenizer(
    stores: list[SegmentedCorpus],
    *,
    settings: Mapping[str, Any],
    home: Path,
    cleaner: Cleaner,
    segmenter: Any,
    progress: bool,
) -> Path:
    if settings.get("directory") is not None:
        return Path(settings["directory"]).expanduser()
    chosen = {name: value for name, value in settings.items() if name != "directory"}
    if not stores:
        raise ValueError("no source has for_tokenizer=true; set it for at least one, or name a tokenizer.directory.")
    key = _key([store.fingerprint for store in stores], cleaner.identity, segmenter.identity, chosen)
    directory = home / "tokenizers" / f"unigram-{chosen['vocab_size']}-{key}"
    if not directory.is_dir():
        trained = train_on_stores(stores, settings=chosen, cleaner=cleaner, analyzer=segmenter, progress=progress)
        partial = directory.with_name(f".{directory.name}.partial")  # one writer at a time: the caller holds the lock
        shutil.rmtree(partial, ignore_errors=True)
        trained.save(partial)
        partial.rename(directory)
    return directory


def open_token_files(folders: Mapping[str, Path], *, tokenizer: Tokenizer) -> dict[str, TokenFile]:
    """Memory-map prepared token folders, refusing those of another tokenizer."""
    return {name: TokenFile.open(folder, expected_tokenizer=tokenizer.fingerprint) for name, folder in folders.items()}
