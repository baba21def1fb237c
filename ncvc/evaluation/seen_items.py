"""Which benchmark items a model was trained on, by its own record: the data of its run, and of those it started from.

A run's ``data.json`` names the stores that it read. Of conversations, an item of JMED-LLM is known by its document,
which the store records for rows of JMED-LLM; any item by its text (`ncvc.evaluation.item_search`). Of a text corpus, by
the certificate beside its tokens (`ncvc.corpus.contamination`), or, where there is none and the corpus is small, by its
text. Conversations that the run held out do not count. What cannot be told is said: then ``complete`` is false, and an
item that was not found may have been read all the same.

Costs 1 s for 22,741 conversations, or a million tokens. Does not: tell whether the run got as far as a conversation,
or find paraphrases.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ncvc.evaluation.item import Task
from ncvc.evaluation.item_search import ItemSearch, Key, texts_of
from ncvc.evaluation.leaks import Seen
from ncvc.storage import read_manifest
from ncvc.tokenizer import Tokenizer

MOST_TOKENS = 20_000_000
"""Tokens of a corpus without a certificate up to which its text is searched; half a minute."""

_CONVERSATIONS = "ncvc-conversations"
_TOKENS_AT_ONCE, _OVERLAP = 50_000, 200
_LONGEST_CHAIN = 20
Tell = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """The data of one run: its folder, ``data.json``, and the settings of its data where they can be read."""

    folder: Path
    data: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The run as it is told: its name and the time of its start."""
        return f"{self.folder.parent.name}/{self.folder.name}"


@dataclass
class _Found:
    keys: set[Key] = field(default_factory=set)
    too_short: set[Key] = field(default_factory=set)  # of no text could they be told, and not by document either
    looked: list[str] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)


def seen_items(
    tasks: Sequence[Task], *, model: Mapping[str, Any], home: Path | None = None, tell: Tell = lambda text: None
) -> dict[str, Seen]:
    """For each task, by name, the items that ``model`` was trained on, as far as its record goes.

    ``model`` is the record of a responder: ``directory`` of the model, ``training`` of its model_config.json (read from
    there if absent). ``home`` is where runs lie, for a model that was moved. Nothing raises for what is missing.
    """
    records, found = training_records(model, home=home)
    for record in records:
        _look(record, tasks, found, tell=tell)
    looked, unclear = "; ".join(found.looked), "; ".join(dict.fromkeys(found.unclear))
    answers = {}
    for task in tasks:
        items = frozenset(item.id for item in task.items if (task.name, item.id) in found.keys)
        short = sum((task.name, item.id) in found.too_short - found.keys for item in task.items)
        whys = [f"its record ({looked}) holds {len(items)} of {len(task.items)} items"] if looked else []
        whys += [unclear] if unclear else []
        whys += [f"{short} items are too short to be looked for"] if short else []
        complete = bool(records) and not unclear and not short
        answers[task.name] = Seen(items=items, complete=complete, why="; ".join(whys) or Seen.why)
    return answers


def training_records(model: Mapping[str, Any], *, home: Path | None) -> tuple[list[TrainingRecord], _Found]:
    """The runs that made a model, the last one first, and what of that is unclear."""
    found = _Found()
    records: list[TrainingRecord] = []
    directory = Path(model["directory"]) if model.get("directory") else None
    training = model.get("training") or (_training_of(directory) if directory is not None else {})
    for _ in range(_LONGEST_CHAIN):
        fingerprint = training.get("data_fingerprint")
        record = _record_of(directory, fingerprint, home=home)
        if record is None:
            what = "the model it started from" if records else "the model"
            found.unclear.append(f"no run's data.json tells what {what} was trained on")
            break
        records.append(record)
        pinned = _read(record.folder / "base.json")
        base = training.get("base")
        if not pinned and not base:
            break
        directory = Path(pinned["path"]) if isinstance(pinned.get("path"), str) else None
        training = (_training_of(directory) if directory is not None else {}) or dict(base or {})
    return records, found


def certificate_beside(tokens: Path) -> Path | None:
    """The folder of the contamination certificate of a token folder (``.../train``), if one lies beside it."""
    place = Path(tokens).parent / "certificate"
    return place if (place / "manifest.json").is_file() else None


def _record_of(directory: Path | None, fingerprint: Any, *, home: Path | None) -> TrainingRecord | None:
    """The run whose data have this fingerprint: the one that the model lies in, or one of ``home``."""
    if not isinstance(fingerprint, str):
        return None
    folders = [] if directory is None else [directory.absolute().parent]
    if home is not None:
        folders += sorted((path.parent for path in Path(home).glob("runs/*/*/data.json")), reverse=True)
    for folder in folders:
        data = _read(folder / "data.json")
        if data.get("fingerprint") == fingerprint and isinstance(data.get("train"), dict):
            return TrainingRecord(folder=folder, data=data, settings=_settings(folder))
    return None


def _training_of(directory: Path) -> dict[str, Any]:
    training = _read(directory / "model_config.json").get("training")
    return training if isinstance(training, dict) else {}


def _read(path: Path) -> dict[str, Any]:
    """The object of a JSON file; {} where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _settings(folder: Path) -> dict[str, Any]:
    """The group ``data`` of a run's configuration; {} where it cannot be read."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        data = OmegaConf.select(OmegaConf.load(folder / "config.yaml"), "data")
        plain = OmegaConf.to_container(data, resolve=False) if data is not None else {}
    except (OSError, ValueError, YAMLError, OmegaConfBaseException):
        return {}
    return {str(name): value for name, value in plain.items()} if isinstance(plain, dict) else {}


# --- looking
def _look(record: TrainingRecord, tasks: Sequence[Task], found: _Found, *, tell: Tell) -> None:
    """Add what the stores of one run hold."""
    try:
        tokenizer = Tokenizer.load(Path(str(record.data.get("tokenizer"))))
    except (OSError, ValueError, ModuleNotFoundError) as error:
        tokenizer = None
        found.unclear.append(f"{record.name}: its tokenizer cannot be read ({type(error).__name__})")
    folders = {str(name): Path(str(path)) for name, path in record.data["train"].items()}
    trained = _trained(record, folders)
    for name, folder in folders.items():
        where = f"{record.name}: {name}"
        tell(f"looking for the items in the training data of {where}")
        try:
            if _read(folder / "manifest.json").get("format") == _CONVERSATIONS:
                _look_in_conversations(folder, tasks, found, tokenizer, where=where, trained=trained.get(name))
            else:
                _look_in_tokens(folder, tasks, found, tokenizer, where=where)
        except (OSError, ValueError) as error:
            found.unclear.append(f"{where} cannot be read ({str(error)[:200]})")


def _trained(record: TrainingRecord, folders: Mapping[str, Path]) -> dict[str, np.ndarray]:
    """Numbers of the conversations of each store that were not held out; {} where that cannot be told."""
    from ncvc.conversation_preparation import divide
    from ncvc.conversation_store import ConversationStore

    fraction, seed = record.settings.get("validation_fraction"), record.settings.get("split_seed", 0)
    try:
        stores = {name: ConversationStore.open(folder) for name, folder in folders.items()}
        if not isinstance(fraction, float | int) or not isinstance(seed, int):
            return {}
        return divide(stores, fraction=fraction, most_scored=1, seed=seed).train
    except (OSError, ValueError):
        return {}  # no conversations, or damaged ones: told where they are read


def _look_in_conversations(
    folder: Path,
    tasks: Sequence[Task],
    found: _Found,
    tokenizer: Tokenizer | None,
    *,
    where: str,
    trained: np.ndarray | None,
) -> None:
    from ncvc.conversation_store import ConversationStore

    store = ConversationStore.open(folder)
    numbers = np.arange(len(store)) if trained is None else trained
    documents = set(store.hashes[numbers, 1].tolist())
    by_document = bool((store.hashes[:, 0] != store.hashes[:, 1]).all())  # every row names its own: they are JMED-LLM's
    others = []
    for task in tasks:
        if by_document and task.family == "jmed_llm":
            found.keys |= {(task.name, item.id) for item in task.items if document_hash(item.group) in documents}
        else:
            others.append(task)
    if others and tokenizer is not None:
        texts = (tokenizer.decode(store.ids(int(number)).tolist()) for number in numbers)
        _search(others, texts, found, tokenizer)
    found.looked.append(f"{where}, {len(numbers):,} conversations")


def document_hash(document: str) -> int:
    """The hash by which a conversation store knows a document; `ncvc.conversation_store` writes it."""
    return int.from_bytes(hashlib.blake2b(document.encode(), digest_size=8).digest(), "little")


def _look_in_tokens(
    folder: Path, tasks: Sequence[Task], found: _Found, tokenizer: Tokenizer | None, *, where: str
) -> None:
    if (place := certificate_beside(folder)) is not None:
        from ncvc.corpus.contamination.certificate import Certificate

        certificate = Certificate.open(place)
        for task in tasks:
            for item in task.items:
                verdicts = [certificate.was_seen(text).verdict for text in texts_of(item)]
                if "seen" in verdicts:
                    found.keys.add((task.name, item.id))
                elif "not seen" not in verdicts:
                    found.too_short.add((task.name, item.id))
        found.looked.append(f"{where}, by its certificate")
        return
    from ncvc.shards import FORMAT, VERSION, TokenFile

    tokens = int(read_manifest(folder, manifest_format=FORMAT, version=VERSION)["tokens"])
    if tokens > MOST_TOKENS:
        found.unclear.append(f"{where} has no certificate, and its {tokens:,} tokens are too many to be searched")
    elif tokenizer is not None:
        file = TokenFile.open(folder, expected_tokenizer=tokenizer.fingerprint)
        _search(tasks, _texts(file.tokens_array, tokenizer), found, tokenizer)
        found.looked.append(f"{where}, {tokens:,} tokens")


def _texts(tokens: np.ndarray, tokenizer: Tokenizer) -> Iterator[str]:
    """The text of a token file in parts that overlap."""
    for start in range(0, len(tokens), _TOKENS_AT_ONCE):
        yield tokenizer.decode(tokens[max(0, start - _OVERLAP) : start + _TOKENS_AT_ONCE].tolist())


def _search(tasks: Sequence[Task], texts: Iterator[str], found: _Found, tokenizer: Tokenizer) -> None:
    search = ItemSearch(tasks, clean=tokenizer.cleaner)
    search.look_through(texts)
    found.keys |= search.found
    found.too_short |= search.too_short
