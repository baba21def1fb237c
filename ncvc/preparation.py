"""From raw text to what training reads, building only what is missing.

raw source -> segmented store (cleaned, words separated) -> tokenizer -> token files (train and validation).
Every product lies in a folder named by a hash of everything that decides its content (text, cleaner, analyser,
dictionary, tokenizer, split), so a changed source or setting makes a new folder and an unchanged one costs only a
look at the source's files. Knows nothing of torch. Segmentation dominates: about 1.8 MB of UTF-8 per second and core.
"""

import contextlib
import fcntl
import hashlib
import itertools
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ncvc.corpus.cleaning import Cleaner
from ncvc.corpus.readers import find_source_files, source_fingerprint
from ncvc.corpus.segmented import SegmentedCorpus, open_segmented, segment_source
from ncvc.morphology import build_analyzer
from ncvc.shards import TokenFile, pack_corpus
from ncvc.storage import write_json
from ncvc.tokenizer import Tokenizer

CLINICAL_SAMPLES = "clinical_samples"  # the name that stands for the bundled synthetic text


@dataclass(frozen=True, kw_only=True)
class Source:
    """One text source: where it lies, its share of the training samples (null: its natural share)."""

    name: str
    path: str
    weight: float | None = None
    for_tokenizer: bool = True


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What preparation leaves: the tokenizer's folder and, per source, its two token folders."""

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
    with _one_builder(home):
        cleaner = Cleaner(cleaning)
        segmenter = build_analyzer(**analyzer)
        stores: dict[str, SegmentedCorpus] = {}
        for source in sources:
            path = _source_path(source, home=home)
            fingerprint = _fingerprint(path, home=home, progress=progress)
            key = _key(fingerprint, cleaner.identity, segmenter.identity, text_field)
            folder = home / "corpus" / f"{source.name}-{key}"
            if not (folder / "manifest.json").is_file():
                segment_source(
                    path,
                    output=folder,
                    cleaner=cleaner,
                    analyzer_identity=segmenter.identity,
                    text_field=text_field,
                    workers=workers,
                    progress=progress,
                )
            stores[source.name] = open_segmented(folder)
        directory = _tokenizer(
            [stores[source.name] for source in sources if source.for_tokenizer],
            settings=tokenizer,
            home=home,
            cleaner=cleaner,
            segmenter=segmenter,
            progress=progress,
        )
        loaded = Tokenizer.load(directory)
        train, validation = {}, {}
        for name, store in stores.items():
            key = _key(store.fingerprint, loaded.fingerprint, validation_fraction, split_seed)
            folder = home / "tokens" / f"{name}-{key}"
            if not _complete(folder):
                pack_corpus(
                    store,
                    tokenizer=loaded,
                    directory=folder,
                    validation_fraction=validation_fraction,
                    seed=split_seed,
                    progress=progress,
                )
            train[name], validation[name] = folder / "train", folder / "validation"
        return Prepared(tokenizer=directory, train=train, validation=validation)


@contextlib.contextmanager
def _one_builder(home: Path) -> Iterator[None]:
    """Ranks and runs that start together build once: the first holds the lock, the others wait and find all made."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / ".preparing").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fingerprint(path: Path, *, home: Path, progress: bool) -> str:
    """Fingerprint of a source, read again only when the name, size or time of change of one of its files differs.

    At the report's 32 GB a reading takes minutes; start-up should not.
    """
    files, _ = find_source_files(path)
    state = _key([(file.name, file.num_bytes, file.path.stat().st_mtime_ns) for file in files])
    known_as = home / "corpus" / ".fingerprints" / f"{_key(str(path.resolve()))}.json"
    if known_as.is_file():
        known = json.loads(known_as.read_text(encoding="utf-8"))
        if known["state"] == state:
            return known["fingerprint"]
    fingerprint = source_fingerprint(path, progress=progress)
    write_json(known_as, {"source": str(path.resolve()), "state": state, "fingerprint": fingerprint})
    return fingerprint


def _complete(folder: Path) -> bool:
    return (folder / "train" / "manifest.json").is_file() and (folder / "validation" / "manifest.json").is_file()


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
        words = _Sample(stores, megabytes=chosen.pop("sample_megabytes"))
        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always", UserWarning)
            trained = Tokenizer.train(words, cleaner=cleaner, analyzer=segmenter, progress=progress, **chosen)
        for note in noted:  # as a line of the program's output, not with a line of its code
            print(f"note: {note.message}", flush=True)
        partial = directory.with_name(f".{directory.name}.partial")  # one writer at a time: prepare holds the lock
        shutil.rmtree(partial, ignore_errors=True)
        trained.save(partial)
        partial.rename(directory)
    return directory


class _Sample:
    """Segmented documents for tokenizer training, readable more than once.

    All of them, or every k-th so that about ``megabytes`` of cleaned UTF-8 come out.
    """

    def __init__(self, stores: list[SegmentedCorpus], *, megabytes: float) -> None:
        self.stores = stores
        self.step = max(1, round(sum(store.bytes for store in stores) / (megabytes * 1e6)))

    def __iter__(self) -> Iterator[str]:
        for store in self.stores:
            yield from itertools.islice(store.texts(), 0, None, self.step)


def open_token_files(folders: Mapping[str, Path], *, tokenizer: Tokenizer) -> dict[str, TokenFile]:
    """Memory-map prepared token folders, refusing those of another tokenizer."""
    return {name: TokenFile.open(folder, expected_tokenizer=tokenizer.fingerprint) for name, folder in folders.items()}
