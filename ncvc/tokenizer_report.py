"""What a tokenizer does to text and to medical terms, beside tokenizers that were trained otherwise on the same text.

Measured on documents that the peers did not learn from (a tenth of the sample, chosen by a hash of the text):
characters and bytes per token, tokens that are unknown or single bytes, documents that do not decode to their cleaned
text, the share of the learned pieces that occurs; and on names: tokens each (fertility), and how many are one token,
which the analogies of A.3 need (R98).

The peers, all of the same vocabulary size and the same Unigram training:
  same training    the tokenizer's own analyser: what its training gives on this text
  no morphology    words end at spaces and punctuation only
  characters       pieces of one character

As everywhere, the most frequent words reach the training (`unigram.TRAINED_WORDS`), without morphology the most
frequent clauses.

What it costs: one pass of the analyser and three trainings, about 2 minutes and 1 GB (clauses are long) for 10 MB.
What it does not do: say how well a model learns with the tokenizer, or judge the analyser (`python -m ncvc.bench
lexicon` counts the names that stay one morpheme in a sentence).
"""

from __future__ import annotations

import hashlib
import heapq
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ncvc.corpus.cleaning import Cleaner
from ncvc.morphology import Analyzer
from ncvc.tokenizer import FIRST_BYTE_ID, FIRST_PIECE_ID, UNKNOWN_ID, Tokenizer, segment_text

ANALOGY_WORDS = (  # R98: the terms of the five analogies and the answers the report prints
    *("脳出血", "脳", "消化管", "消化管出血", "尿路結石", "尿路", "胆管", "結石", "脳卒中", "心臓"),
    *("心疾患", "脳梗塞", "心不全", "大腸癌", "大腸", "肝臓", "肝細胞癌"),
)
_WORD_OR_MARK = re.compile(r"[^\W_]+|[\W_]", re.DOTALL)
_TRAINING = ("shrinking_factor", "max_piece_length", "n_sub_iterations", "character_coverage")


class NoMorphology:
    """An analyser that knows no words: runs of letters, digits and kana, each other character by itself."""

    identity: dict[str, str] = {"name": "none", "version": "1"}  # noqa: RUF012 - the protocol has it so

    def segment(self, line: str) -> list[str]:
        """The runs of `line`; none is empty and joined they are the line."""
        return _WORD_OR_MARK.findall(line)


@dataclass(frozen=True, kw_only=True)
class NameMeasures:
    """Of names of one kind, each cleaned and encoded by itself: how many, tokens each, share that is one token."""

    names: int
    unusable: int  # nothing, or several lines, after cleaning; not counted elsewhere
    characters_per_name: float
    tokens_per_name: float
    one_token_share: float


@dataclass(frozen=True, kw_only=True)
class Measures:
    """One tokenizer on some documents and names. Shares lie between 0 and 1."""

    tokenizer: str
    entries: int
    pieces: int  # learned, without special, byte and unused entries
    documents: int
    characters: int
    bytes: int
    tokens: int
    characters_per_token: float
    bytes_per_token: float
    unknown_share: float  # of the tokens
    byte_share: float  # of the tokens: one byte of a character without a piece
    byte_character_share: float  # of the characters: written as bytes
    altered_documents: int  # that do not decode to their cleaned text
    pieces_used_share: float  # of the learned pieces
    names: dict[str, NameMeasures]
    analogy_words: int  # of `ANALOGY_WORDS`: one token each
    analogy_words_split: list[str]


def measure(
    tokenizer: Tokenizer, texts: Iterable[str], *, names: Mapping[str, Iterable[str]], label: str = "this tokenizer"
) -> Measures:
    """Measure one tokenizer on raw texts and on names by kind. Raises ``ValueError`` when no text is left."""
    analyzer, counts = tokenizer.analyzer, np.zeros(tokenizer.vocab_size, dtype=np.int64)
    documents = characters = num_bytes = altered = 0
    for text in texts:
        cleaned = tokenizer.cleaner(text)
        ids = tokenizer.encode_segmented(segment_text(cleaned, analyzer=analyzer))
        if not ids:
            continue
        counts += np.bincount(ids, minlength=tokenizer.vocab_size)
        documents, characters, num_bytes = documents + 1, characters + len(cleaned), num_bytes + len(cleaned.encode())
        altered += tokenizer.decode(ids, skip_special_tokens=False) != cleaned.replace("▁", " ")
    tokens = int(counts.sum())
    if tokens == 0:
        raise ValueError("no text to measure a tokenizer on is left after cleaning; name a file with more text")
    of_bytes = counts[FIRST_BYTE_ID:FIRST_PIECE_ID]
    learned = FIRST_PIECE_ID + np.flatnonzero(tokenizer.character_counts[FIRST_PIECE_ID:])
    split = [word for word in ANALOGY_WORDS if len(tokenizer.encode(word)) != 1]
    return Measures(
        tokenizer=label,
        entries=tokenizer.vocab_size,
        pieces=len(learned),
        documents=documents,
        characters=characters,
        bytes=num_bytes,
        tokens=tokens,
        characters_per_token=characters / tokens,
        bytes_per_token=num_bytes / tokens,
        unknown_share=int(counts[UNKNOWN_ID]) / tokens,
        byte_share=int(of_bytes.sum()) / tokens,
        byte_character_share=int(of_bytes @ tokenizer.character_counts[FIRST_BYTE_ID:FIRST_PIECE_ID]) / characters,
        altered_documents=altered,
        pieces_used_share=float(np.count_nonzero(counts[learned]) / max(1, len(learned))),
        names={kind: _measure_names(tokenizer, of_kind) for kind, of_kind in names.items()},
        analogy_words=len(ANALOGY_WORDS) - len(split),
        analogy_words_split=split,
    )


def _measure_names(tokenizer: Tokenizer, names: Iterable[str]) -> NameMeasures:
    cleaned = [tokenizer.cleaner(name) for name in names]
    usable = [name for name in cleaned if name and "\n" not in name]
    lengths = np.array([len(tokenizer.encode(name)) for name in usable], dtype=np.int64)
    number = max(1, len(usable))
    return NameMeasures(
        names=len(usable),
        unusable=len(cleaned) - len(usable),
        characters_per_name=sum(map(len, usable)) / number,
        tokens_per_name=int(lengths.sum()) / number,
        one_token_share=int((lengths == 1).sum()) / number,
    )


@dataclass(frozen=True, kw_only=True)
class TokenizerReport:
    """The measures of a tokenizer and its peers, and how the text was divided."""

    measures: list[Measures]
    training_documents: int
    training_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def as_table(self) -> str:
        """One row a measure, one column a tokenizer."""
        first = self.measures[0]
        rows = [("", [m.tokenizer for m in self.measures])]
        rows += [
            ("characters per token", [f"{m.characters_per_token:.3f}" for m in self.measures]),
            ("bytes per token", [f"{m.bytes_per_token:.3f}" for m in self.measures]),
            ("unknown tokens", [f"{m.unknown_share:.4%}" for m in self.measures]),
            ("byte tokens", [f"{m.byte_share:.4%}" for m in self.measures]),
            ("characters written as bytes", [f"{m.byte_character_share:.4%}" for m in self.measures]),
            ("documents not restored", [f"{m.altered_documents}" for m in self.measures]),
            ("learned pieces", [f"{m.pieces:,} of {m.entries:,}" for m in self.measures]),
            ("learned pieces that occur", [f"{m.pieces_used_share:.1%}" for m in self.measures]),
        ]
        for kind, of_kind in first.names.items():
            what = f"{of_kind.names:,} {kind} names"
            rows += [
                (f"{what}: tokens each", [f"{m.names[kind].tokens_per_name:.2f}" for m in self.measures]),
                (f"{what}: one token", [f"{m.names[kind].one_token_share:.1%}" for m in self.measures]),
            ]
        rows.append((f"{len(ANALOGY_WORDS)} words of A.3: one token", [f"{m.analogy_words}" for m in self.measures]))
        widths = [max(len(row[1][column]) for row in rows) for column in range(len(self.measures))]
        head = max(len(name) for name, _ in rows)
        lines = [
            f"{name:<{head}}  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
            for name, cells in rows
        ]
        learned = f"; peers learned from {self.training_documents:,} others, {self.training_bytes / 1e6:.1f} MB"
        lines.append(
            f"measured on {first.documents:,} documents, {first.bytes / 1e6:.1f} MB{learned if len(widths) > 1 else ''}"
        )
        if first.analogy_words_split:
            lines.append(f"words of A.3 in several tokens ({first.tokenizer}): {' '.join(first.analogy_words_split)}")
        return "\n".join(lines)


def report_on(
    tokenizer: Tokenizer,
    texts: Iterable[str],
    *,
    names: Mapping[str, Sequence[str]] | None = None,
    peers: bool = True,
    sample_megabytes: float = 10.0,
    held_out_share: float = 0.1,
    progress: bool = True,
) -> TokenizerReport:
    """Measure ``tokenizer`` on raw ``texts`` and on ``names`` by kind, beside peers trained on the rest of the texts.

    Of the texts a sample of at most ``sample_megabytes`` is kept, by a hash of each: it depends on no order. Without
    ``peers`` all of it is measured. Raises ``ValueError`` for text that leaves nothing to measure or to train on, and
    where a peer cannot be trained (its message).
    """
    if not 0 < held_out_share < 1:
        raise ValueError(f"held_out_share={held_out_share}: must lie between 0 and 1, both excluded; set 0.1")
    if not sample_megabytes > 0:
        raise ValueError(f"sample_megabytes={sample_megabytes}: must be above 0; set 10")
    sample = _sample(texts, cleaner=tokenizer.cleaner, num_bytes=round(sample_megabytes * 1e6))
    named = {kind: list(of_kind) for kind, of_kind in (names or {}).items()}
    held_out = round(len(sample) * held_out_share) or 1 if peers else len(sample)
    measured, training = sample[:held_out], sample[held_out:]
    measures = [measure(tokenizer, measured, names=named)]
    if peers:
        if not training:
            raise ValueError(f"{len(sample)} document(s) cannot be divided into text to measure on and to train on")
        for label, peer in _peers(tokenizer, training, progress=progress):
            measures.append(measure(peer, measured, names=named, label=label))
    return TokenizerReport(
        measures=measures,
        training_documents=len(training),
        training_bytes=sum(len(text.encode()) for text in training),
    )


def _sample(texts: Iterable[str], *, cleaner: Cleaner, num_bytes: int) -> list[str]:
    """Cleaned texts, each once, those with the smallest hashes that fill ``num_bytes``; in the order of the hashes."""
    kept: list[tuple[int, str]] = []  # a heap, the largest hash first
    known: set[int] = set()
    total = 0
    for text in texts:
        cleaned = cleaner(text)
        data = cleaned.encode()
        place = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
        if not cleaned or place in known:
            continue
        heapq.heappush(kept, (-place, cleaned))
        known.add(place)
        total += len(data)
        while total > num_bytes and len(kept) > 1:
            largest, dropped = heapq.heappop(kept)
            known.discard(-largest)
            total -= len(dropped.encode())
    return [text for _, text in sorted(kept, reverse=True)]


def _peers(tokenizer: Tokenizer, training: Sequence[str], *, progress: bool) -> Iterator[tuple[str, Tokenizer]]:
    """Each peer with its name, trained on cleaned texts with the settings of ``tokenizer``."""
    settings = {name: tokenizer.training[name] for name in _TRAINING if name in tokenizer.training}
    for label, analyzer, changed in (
        ("same training", tokenizer.analyzer, {}),
        ("no morphology", NoMorphology(), {}),
        ("characters", NoMorphology(), {"max_piece_length": 1}),
    ):
        yield label, _trained(tokenizer, training, analyzer=analyzer, settings=settings | changed, progress=progress)


def _trained(
    tokenizer: Tokenizer, training: Sequence[str], *, analyzer: Analyzer, settings: Mapping[str, Any], progress: bool
) -> Tokenizer:
    segmented = [segment_text(text, analyzer=analyzer) for text in training]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # unused entries: the table tells
        return Tokenizer.train(
            segmented,
            vocab_size=tokenizer.vocab_size,
            cleaner=tokenizer.cleaner,
            analyzer=analyzer,
            progress=progress,
            **settings,
        )
