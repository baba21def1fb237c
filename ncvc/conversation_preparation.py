"""From sources of conversations to what instruction tuning reads, building only what is missing.

source -> conversations -> store of token ids for the base's tokenizer with the role tokens (R74) -> training and
held-out conversations. A store lies in a folder named by a hash of everything that decides its content (conversations,
tokenizer, template, context length, policy), so a changed source makes a new folder and an unchanged one is opened.

Held out is by document where the source knows it (JMED-LLM), else by the conversation itself, by a hash that depends on
nothing else; no held-out conversation is a copy of a training one. Knows nothing of torch.
"""

from __future__ import annotations

import hashlib
import itertools
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ncvc.analyzers.files import remember_files
from ncvc.chat import CHAT_TEMPLATE, with_chat_tokens
from ncvc.conversation_store import VERSION, ConversationStore, EncodingSettings, told, write_store
from ncvc.conversations import ConversationSource, read_conversations
from ncvc.corpus.clinical.dialogues import CLINICAL_DIALOGUES, bundled_dialogues
from ncvc.corpus.reading.sources import find_source_files
from ncvc.preparation import known_fingerprint, one_builder
from ncvc.randomness import mix
from ncvc.storage import hash_json, require_free_space
from ncvc.tokenizer import Tokenizer

_STORE_PER_BYTE = 2  # an upper guess of the store's size, before anything is read


@dataclass(frozen=True, kw_only=True)
class PreparedConversations:
    """What preparation leaves: the folder of the grown tokenizer and, per source, the folder of its store."""

    tokenizer: Path
    stores: dict[str, Path]
    train: dict[str, Path]
    validation: dict[str, Path]


def prepare_conversations(
    sources: Sequence[ConversationSource],
    *,
    base_tokenizer: Path,
    home: Path,
    settings: EncodingSettings,
    workers: int,
    progress: bool = True,
) -> PreparedConversations:
    """Build every missing product under ``home`` and say how many rows of each source were refused, and why.

    ``base_tokenizer`` is the folder of the base's tokenizer. Raises with the cure in the message for a source that is
    not there, or of which every row is refused.
    """
    with one_builder(home):
        tokenizer = with_chat_tokens(Tokenizer.load(base_tokenizer))
        folder = home / "tokenizers" / f"chat-{tokenizer.vocab_size}-{tokenizer.fingerprint[:16]}"
        if not folder.is_dir():
            partial = folder.with_name(f".{folder.name}.partial")  # one writer at a time: the lock is held
            shutil.rmtree(partial, ignore_errors=True)
            tokenizer.save(partial)
            partial.rename(folder)
        tokenizer = Tokenizer.load(folder)
        remember_files([folder])  # where workers find the user dictionaries it carries
        stores = {}
        for source in sources:
            stores[source.name] = _store(
                _with_file(source, home=home),
                home=home,
                tokenizer=tokenizer,
                settings=settings,
                workers=workers,
                progress=progress,
            )
    return PreparedConversations(tokenizer=folder, stores=stores, train=stores, validation=stores)


def _with_file(source: ConversationSource, *, home: Path) -> ConversationSource:
    """The source itself; for the bundled dialogues, the source with their file."""
    if source.path != CLINICAL_DIALOGUES:
        return source
    return replace(source, path=str(bundled_dialogues(home)))


def _store(
    source: ConversationSource,
    *,
    home: Path,
    tokenizer: Tokenizer,
    settings: EncodingSettings,
    workers: int,
    progress: bool,
) -> Path:
    """The folder of one source's store, made if it is missing; tells what was refused either way."""
    encoding = [settings.context_length, settings.too_long, CHAT_TEMPLATE, tokenizer.fingerprint]
    key = hash_json([VERSION, source.kind, _fingerprint(source, home=home, progress=progress), encoding])[:16]
    folder = home / "conversations" / f"{source.name}-{key}"
    if not (folder / "manifest.json").is_file():
        files, _ = find_source_files(Path(source.path).expanduser(), setting=f"data.sources.{source.name}.path")
        needed = sum(_STORE_PER_BYTE * file.num_bytes for file in files)
        require_free_space(folder, needed, what=f"the conversations of data.sources.{source.name}")
        write_store(
            read_conversations(source),
            directory=folder,
            name=source.name,
            tokenizer=tokenizer,
            settings=settings,
            workers=workers,
            progress=progress,
        )
    if progress:
        tell_refusals(source.name, ConversationStore.open(folder))
    return folder


def tell_refusals(name: str, store: ConversationStore) -> None:
    """Print how many rows of a source were refused, why, and where all of them are listed."""
    if store.manifest["refused"]:
        refusals = store.refusals()
        print(
            f"note: data.sources.{name}: {len(refusals):,} of {len(store) + len(refusals):,} rows are left out: "
            f"{told(refusals)}. All of them: {store.directory / 'refused.jsonl'}",
            flush=True,
        )


def _fingerprint(source: ConversationSource, *, home: Path, progress: bool) -> str:
    """Hash of the files and of how they are read: of every conversation for JMED-LLM, whose rows depend on the split
    and are read in a second; else of the files, read again only when they changed, and of the first conversations."""
    read = read_conversations(source)
    files = ""
    if source.kind != "jmed_llm":
        path = Path(source.path).expanduser()
        files = known_fingerprint(path, home=home, progress=progress, setting=f"data.sources.{source.name}.path")
        read = itertools.islice(read, 100)
    digest = hashlib.sha256(files.encode())
    for found in read:
        digest.update(repr(found).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Division:
    """Which conversations of each source, by number, are for training and which are held out; ``scored`` of these."""

    train: dict[str, np.ndarray]
    held_out: dict[str, np.ndarray]
    scored: list[tuple[str, int]]


def divide(stores: Mapping[str, ConversationStore], *, fraction: float, most_scored: int, seed: int) -> Division:
    """Hold out about ``fraction`` of the documents of every source, and name up to ``most_scored`` to be scored.

    ``fraction`` 0 holds out nothing, as the report did. Raises ``ValueError`` where nothing is left for one side.
    """
    if not 0.0 <= fraction < 1.0:
        raise ValueError(f"data.validation_fraction={fraction}: must lie between 0 (nothing is held out) and 1.")
    if most_scored < 1:
        raise ValueError(f"data.validation_conversations={most_scored}: score at least 1.")
    places = {name: _positions(store.hashes[:, 1], seed) for name, store in stores.items()}
    held = {name: places[name] < fraction for name in stores}
    while True:  # a copy of a training conversation, known there by another document, is trained on as well
        trained = np.concatenate([stores[name].hashes[~held[name], 0] for name in stores])
        copies = {name: held[name] & np.isin(stores[name].hashes[:, 0], trained) for name in stores}
        if not any(found.any() for found in copies.values()):
            break
        held = {name: held[name] & ~copies[name] for name in stores}
    for name, chosen in held.items():
        if chosen.all():
            raise ValueError(
                f"data.validation_fraction={fraction} leaves no conversation of data.sources.{name} for training; set "
                "it lower, or another data.split_seed."
            )
    if fraction and not any(chosen.any() for chosen in held.values()):
        lowest = min(float(found.min()) for found in places.values())
        raise ValueError(
            f"data.validation_fraction={fraction} holds out no conversation of {', '.join(stores)}; set it above "
            f"{lowest:.4g}, or another data.split_seed, or 0 to score nothing."
        )
    ranked = sorted(
        (float(places[name][number]), name, int(number)) for name in stores for number in np.flatnonzero(held[name])
    )
    return Division(
        train={name: np.flatnonzero(~held[name]) for name in stores},
        held_out={name: np.flatnonzero(held[name]) for name in stores},
        scored=[(name, number) for _, name, number in ranked[:most_scored]],
    )


def _positions(hashes: np.ndarray, seed: int) -> np.ndarray:
    """Places in [0, 1) that depend on a document's hash and the seed alone, float64 [n]."""
    unique, inverse = np.unique(hashes, return_inverse=True)
    return np.array([mix(seed, int(value)) / 2**64 for value in unique])[inverse]


def length_statistics(stores: Mapping[str, ConversationStore], division: Division) -> dict[str, dict[str, float]]:
    """Of every source: conversations, tokens, supervised tokens, mean, median, 95th percentile and longest, refused."""
    found = {}
    for name, store in stores.items():
        lengths = store.lengths[division.train[name]]
        found[name] = {
            "conversations": len(lengths),
            "held_out": len(division.held_out[name]),
            "tokens": int(lengths.sum()),
            "supervised_tokens": int(store.targets[division.train[name]].sum()),
            "mean": float(lengths.mean()),
            "median": float(np.median(lengths)),
            "percentile_95": float(np.percentile(lengths, 95)),
            "longest": int(lengths.max()),
            "refused": sum(store.manifest["refused"].values()),
            "over_the_context": store.manifest["over_context"] / (len(store) + sum(store.manifest["refused"].values())),
        }
    return found


def lengths_as_table(statistics: Mapping[str, Mapping[str, float]]) -> str:
    """`length_statistics` in columns."""
    heads = ("held out", "tokens", "supervised", "mean", "median", "95%", "longest", "refused", "over the context")
    widths = [max(10, len(head)) for head in heads]
    lines = [f"{'source':<20} conversations " + " ".join(f"{head:>10}" for head in heads)]
    for name, row in statistics.items():
        figures = [
            f"{row['held_out']:,}",
            f"{row['tokens']:,}",
            f"{row['supervised_tokens']:,}",
            f"{row['mean']:.1f}",
            f"{row['median']:g}",
            f"{row['percentile_95']:g}",
            f"{row['longest']:,}",
            f"{row['refused']:,}",
            f"{row['over_the_context']:.2%}",
        ]
        lines.append(f"{name:<20} {row['conversations']:>13,} " + " ".join(map(str.rjust, figures, widths)))
    return "\n".join(lines)


def unigram_bits_per_character(
    stores: Mapping[str, ConversationStore], division: Division, *, tokenizer: Tokenizer, sample: int = 2_000_000
) -> float | None:
    """Bits per character of a unigram model of the training answers on the held-out ones: the floor to beat.

    Add-one smoothed counts of the supervised tokens, at most about ``sample`` of each source. None where nothing is
    held out.
    """
    if not division.scored:
        return None
    counts = np.ones(tokenizer.vocab_size)
    for name, numbers in division.train.items():
        store = stores[name]
        enough = int(np.searchsorted(np.cumsum(store.targets[numbers]), sample)) + 1
        for number in numbers[:enough].tolist():
            np.add.at(counts, store.ids(number)[store.supervised(number)], 1)
    bits = -np.log2(counts / counts.sum())
    answers = [stores[name].ids(number)[stores[name].supervised(number)] for name, number in division.scored]
    held_out = np.concatenate(answers)
    return float(bits[held_out].sum() / max(1, tokenizer.character_counts[held_out].sum()))
