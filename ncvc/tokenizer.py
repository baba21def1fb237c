"""The Unigram tokenizer (R31-R36): trained on cleaned, segmented text, lossless for every character.

What it does: `Tokenizer.train` learns pieces from segmented text (words joined by one space, lines by "\\n"),
`encode` turns raw text into ids (clean, segment, look up), `decode` gives the cleaned text back:
`decode(encode(x)) == Cleaner()(x).replace("\\u2581", " ")` for every x. Ids: 0 begin of text, 1 end of text
(also the padding token), 2 newline, 3 `<unk>` (the file format wants one; no text gives it), 4-259 the bytes
0-255 that stand for characters without a piece, then the pieces in the order of their text, then unused
entries up to `vocab_size`. Special tokens typed in a text ("<|end_of_text|>", "<0x41>") are ordinary
characters: only the caller places ids 0 and 1.

What is saved is self-contained: `tokenizer.json` (loads with `tokenizers.Tokenizer.from_file`) and
`ncvc_tokenizer.json`, which names the cleaner, analyser and dictionary that make the ids (R36) and the hash
of the first file; beside them copies of the analyser's user dictionaries. `load` refuses anything else than these.

What it costs: ids from segmented text at about 30 MB of UTF-8 per second on one core (words are remembered,
at most `word_ids.CACHE_WORDS` of them); raw text at the speed of the analyser. Training memory follows the number of
distinct words, not the length of the text.

What it does not do: split special tokens out of text, add a space of its own, or share one object between
threads (see `morphology`). Two trainings on the same text, in any order, give the same bytes as long as the
`tokenizers` package finds the same pieces, as it always did so far (see `unigram`); another version of it may not:
ship the files.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from ncvc.analyzers.files import copy_analyzer_files, remove_other_files
from ncvc.corpus.cleaning import SPACE, Cleaner
from ncvc.morphology import Analyzer, analyzer_from_identity, check_identity
from ncvc.unigram import NotEnoughRoomError, learn_pieces
from ncvc.word_ids import WordIds

FORMAT_VERSION = 1
BEGIN_OF_TEXT, END_OF_TEXT, NEWLINE, UNKNOWN = "<|begin_of_text|>", "<|end_of_text|>", "\n", "<unk>"
BEGIN_ID, END_ID, NEWLINE_ID, UNKNOWN_ID, FIRST_BYTE_ID, FIRST_PIECE_ID = 0, 1, 2, 3, 4, 260
# Added behind all others when a model learns to chat (R74); see `ncvc.chat`
ROLE_TOKENS = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
# Pieces every tokenizer has, seen in training or not: digits, Latin letters, kana and the common marks of
# clinical notes.
INITIAL_ALPHABET = (
    "".join(map(chr, range(0x21, 0x7F)))
    + "".join(map(chr, range(0x3041, 0x3097)))
    + "".join(map(chr, range(0x30A1, 0x30FB)))
    + "▁、。「」『』【】・ー…〜—℃°±×÷≦≧→←↑↓⇒○●△□■※〇々αβγδμ²³⁵₂①②③④⑤"
)
SMALLEST_VOCABULARY = FIRST_PIECE_ID + len(set(INITIAL_ALPHABET))
NEVER_CHOSEN = -10_000.0  # score of entries no text may give; far below any path of single characters
_UNUSED = "<|unused_"
MODEL_FILE, METADATA_FILE = "tokenizer.json", "ncvc_tokenizer.json"


def segment_text(cleaned: str, *, analyzer: Analyzer) -> str:
    """Segment cleaned text: the words of each line joined by one space, lines by "\\n"."""
    segment_joined = getattr(analyzer, "segment_joined", None)
    if segment_joined is not None:
        return "\n".join(map(segment_joined, cleaned.split("\n")))
    segment = analyzer.segment
    return "\n".join([" ".join(segment(line)) for line in cleaned.split("\n")])


class Tokenizer:
    """Raw text to ids and back; build one with `train` or `load`."""

    begin_id, end_id, newline_id = BEGIN_ID, END_ID, NEWLINE_ID

    def __init__(
        self,
        pieces: list[tuple[str, float]],
        *,
        cleaner: Cleaner,
        analyzer_identity: Mapping[str, str],
        analyzer: Analyzer | None = None,
        training: Mapping[str, Any] | None = None,
        files_folder: Path | None = None,
        added_tokens: Sequence[str] = (),
    ) -> None:
        """`pieces` is the whole vocabulary, text and score by id; its last entries are the `added_tokens`, which no
        text gives. The analyser is opened at the first `encode` if none is given, with the files that its identity
        names (user dictionaries) from `files_folder`."""
        self.cleaner = cleaner
        self.analyzer_identity = dict(analyzer_identity)
        self.training = dict(training or {})
        self.vocab_size = len(pieces)
        self.pieces = tuple(text for text, _ in pieces)
        self._scored = pieces
        self._analyzer = analyzer
        self._files_folder = files_folder
        self._word_ids = WordIds(
            models.Unigram(pieces, unk_id=UNKNOWN_ID, byte_fallback=True),
            vocab_size=self.vocab_size,
            newline_id=NEWLINE_ID,
        )
        self.added_tokens = tuple(added_tokens)
        if self.added_tokens != self.pieces[self.vocab_size - len(self.added_tokens) :]:
            raise ValueError(f"the vocabulary does not end in its added tokens {', '.join(self.added_tokens)}")
        special = [BEGIN_OF_TEXT, END_OF_TEXT, NEWLINE, *self.added_tokens]
        self._special_ids = {text: self.pieces.index(text) for text in special}
        silent = {BEGIN_ID, END_ID, UNKNOWN_ID, *range(self.vocab_size - len(self.added_tokens), self.vocab_size)}
        silent |= {id for id, piece in enumerate(self.pieces) if piece.startswith(_UNUSED)}
        self._bytes = _decoding_table(self.pieces, silent)
        self.character_counts = _character_counts(self.pieces, silent)
        identity = [FORMAT_VERSION, pieces, cleaner.identity, self.analyzer_identity]  # not how a package writes them
        if self.added_tokens:
            identity.append(self.added_tokens)
        self.fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def id_of(self, token: str) -> int:
        """The id of a special token: begin, end, newline or an added one. Raises `ValueError` for another."""
        if token not in self._special_ids:
            raise ValueError(f"{token!r} is no special token of this tokenizer; it has {', '.join(self._special_ids)}")
        return self._special_ids[token]

    def with_added_tokens(self, tokens: Sequence[str]) -> Tokenizer:
        """This tokenizer with further ids behind its own, which only a caller can place and which decode to nothing.

        Raises `ValueError` for a token that is an ordinary piece already."""
        if taken := [token for token in tokens if token in self.pieces]:
            raise ValueError(f"{', '.join(taken)}: the vocabulary has it already; train the tokenizer again")
        return Tokenizer(
            [*self._scored, *((token, NEVER_CHOSEN) for token in tokens)],
            cleaner=self.cleaner,
            analyzer_identity=self.analyzer_identity,
            analyzer=self._analyzer,
            training=self.training,
            files_folder=self._files_folder,
            added_tokens=(*self.added_tokens, *tokens),
        )

    @property
    def analyzer(self) -> Analyzer:
        """The analyser of this object, opened on first use."""
        if self._analyzer is None:
            self._analyzer = analyzer_from_identity(self.analyzer_identity, files_folder=self._files_folder)
        return self._analyzer

    def __getstate__(self) -> dict[str, Any]:
        return {
            "pieces": self._scored,
            "cleaner": self.cleaner,
            "analyzer_identity": self.analyzer_identity,
            "training": self.training,
            "files_folder": self._files_folder,
            "added_tokens": self.added_tokens,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        Tokenizer.__init__(self, state.pop("pieces"), **state)

    # --- training
    @classmethod
    def train(
        cls,
        segmented: Iterable[str],
        *,
        vocab_size: int,
        cleaner: Cleaner,
        analyzer: Analyzer,
        shrinking_factor: float = 0.75,
        max_piece_length: int = 16,
        n_sub_iterations: int = 8,
        character_coverage: float = 1.0,
        progress: bool = True,
    ) -> Tokenizer:
        """Train on segmented text (R31, R32, R34); `cleaner` and `analyzer` are those that made it and are
        recorded. With `character_coverage` below 1 the rarest characters get no piece and are written as bytes.

        The vocabulary has exactly `vocab_size` entries. A text that gives fewer pieces leaves unused entries
        and a warning that counts them. Raises `ValueError` when `vocab_size` has no room for the bytes, the
        initial alphabet and every character of the text, and when the text is empty."""
        if vocab_size < SMALLEST_VOCABULARY:
            raise ValueError(
                f"tokenizer.vocab_size={vocab_size} is too small: {FIRST_PIECE_ID} special and byte entries "
                f"and {SMALLEST_VOCABULARY - FIRST_PIECE_ID} letters, digits, kana and marks belong to it; "
                f"set at least {SMALLEST_VOCABULARY} (the report: 32768)"
            )
        room = vocab_size - FIRST_PIECE_ID
        try:
            text = learn_pieces(
                segmented,
                most_pieces=room,
                alphabet=INITIAL_ALPHABET,
                shrinking_factor=shrinking_factor,
                max_piece_length=max_piece_length,
                n_sub_iterations=n_sub_iterations,
                character_coverage=character_coverage,
                progress=progress,
            )
        except NotEnoughRoomError as error:
            needed = FIRST_PIECE_ID + error.distinct
            raise ValueError(
                f"tokenizer.vocab_size={vocab_size} is too small: {error.distinct} distinct characters of this text "
                f"and {FIRST_PIECE_ID} special and byte entries need {needed}; set tokenizer.vocab_size to at least "
                f"{needed} (the report: 32768), or tokenizer.character_coverage below 1 to leave rare ones to bytes"
            ) from error
        learned = _choose(text.pieces, room)
        unused = room - len(learned)
        if unused:
            warnings.warn(
                f"the text gave {len(learned)} pieces (from {text.characters} characters), "
                f"so {unused} of the {vocab_size} entries stay unused; give the tokenizer more text or lower "
                f"tokenizer.vocab_size to {vocab_size - unused}",
                stacklevel=2,
            )
        training = {
            "texts": text.texts,
            "characters": text.characters,
            "distinct_words": text.distinct_words,
            "pieces": len(learned),
            "unused": unused,
            "shrinking_factor": shrinking_factor,
            "max_piece_length": max_piece_length,
            "n_sub_iterations": n_sub_iterations,
            "character_coverage": character_coverage,
            "tokenizers_version": tokenizers.__version__,
        }
        vocabulary = _fixed_entries() + learned + [(f"{_UNUSED}{n}|>", NEVER_CHOSEN) for n in range(unused)]
        return cls(
            vocabulary,
            cleaner=cleaner,
            analyzer_identity=analyzer.identity,
            analyzer=analyzer,
            training=training,
        )

    # --- files
    def _model_json(self) -> str:
        """The vocabulary as a file of the `tokenizers` package, for segmented text. Special tokens typed in a
        text are split out there."""
        model = tokenizers.Tokenizer(models.Unigram(self._scored, unk_id=UNKNOWN_ID, byte_fallback=True))
        model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        model.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Replace(SPACE, " ")])
        model.add_special_tokens(
            [
                AddedToken(token, normalized=False, special=True)
                for token in (BEGIN_OF_TEXT, END_OF_TEXT, *self.added_tokens)
            ]
        )
        model.add_tokens([AddedToken(NEWLINE, normalized=False, special=False)])
        return model.to_str()

    def save(self, directory: Path) -> None:
        """Write both files, each whole or not at all, and copies of what the analyser needs besides packages (user
        dictionaries). The metadata comes last, so an interrupted save never loads as a tokenizer."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        copy_analyzer_files(self.analyzer_identity, directory, files_folder=self._files_folder)
        model = self._model_json()
        metadata = {
            "format_version": FORMAT_VERSION,
            "vocab_size": self.vocab_size,
            "fingerprint": self.fingerprint,
            "special_tokens": {
                "begin_of_text": BEGIN_ID,
                "end_of_text": END_ID,
                "padding": END_ID,
                "newline": NEWLINE_ID,
            },
            "cleaner": self.cleaner.identity,
            "analyzer": self.analyzer_identity,
            "sha256": {MODEL_FILE: hashlib.sha256(model.encode("utf-8")).hexdigest()},
            "training": self.training,
            **({"added_tokens": list(self.added_tokens)} if self.added_tokens else {}),
        }
        _write_whole(directory / MODEL_FILE, model)
        _write_whole(directory / METADATA_FILE, json.dumps(metadata, ensure_ascii=False, indent=2) + "\n")
        remove_other_files(self.analyzer_identity, directory)

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """Read a saved tokenizer. Raises `FileNotFoundError` or `ValueError` naming what differs: a missing
        or changed file, another format, cleaning rules this version does not have, or another analyser or
        dictionary than the recorded one."""
        directory = Path(directory)
        model, metadata = (_read(directory / name) for name in (MODEL_FILE, METADATA_FILE))
        facts = _parse(metadata, directory / METADATA_FILE)
        if facts.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"{directory / METADATA_FILE} has format version {facts.get('format_version')!r}, but this ncvc "
                f"reads {FORMAT_VERSION}: use the version that wrote it, or train the tokenizer again"
            )
        lacking = [key for key in ("cleaner", "analyzer", "sha256", "fingerprint", "vocab_size") if key not in facts]
        if lacking:
            raise ValueError(
                f"{directory / METADATA_FILE} lacks {', '.join(lacking)}; restore the file or train the tokenizer again"
            )
        found, recorded = hashlib.sha256(model.encode("utf-8")).hexdigest(), facts["sha256"].get(MODEL_FILE)
        if found != recorded:
            raise ValueError(
                f"{directory / MODEL_FILE} was changed: its sha256 is {found}, "
                f"{METADATA_FILE} records {recorded}; restore both files from one saved tokenizer"
            )
        cleaner = _recorded_cleaner(facts["cleaner"], directory)
        try:
            check_identity(facts["analyzer"], files_folder=directory)
        except (ValueError, ModuleNotFoundError) as error:
            raise type(error)(f"{directory / METADATA_FILE}: {error}") from error
        pieces = [(text, score) for text, score in json.loads(model)["model"]["vocab"]]
        tokenizer = cls(
            pieces,
            cleaner=cleaner,
            analyzer_identity=facts["analyzer"],
            training=facts.get("training"),
            files_folder=directory,
            added_tokens=facts.get("added_tokens", ()),
        )
        if tokenizer.fingerprint != facts["fingerprint"] or tokenizer.vocab_size != facts["vocab_size"]:
            raise ValueError(
                f"{directory / METADATA_FILE} was changed: it records fingerprint {facts['fingerprint']} and "
                f"{facts['vocab_size']} entries, the files give {tokenizer.fingerprint} and "
                f"{tokenizer.vocab_size}; restore both files from one saved tokenizer"
            )
        return tokenizer

    # --- text and ids
    def encode(self, text: str) -> list[int]:
        """Raw text to ids: cleaned, segmented, looked up. No begin or end id is added."""
        return self.encode_segmented(self.segment(text))

    def segment(self, text: str) -> str:
        """Raw text to cleaned text whose words are joined by one space: what `encode_segmented` and an exported
        tokenizer take."""
        return segment_text(self.cleaner(text), analyzer=self.analyzer)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each raw text, as `encode` gives them. Cleans all, then segments all, then looks all up: the
        analyser drives the table of words out of the processor's cache, so this is a twentieth faster; give it a
        few hundred kB at a time."""
        cleaned = [self.cleaner(text) for text in texts]
        analyzer = self.analyzer
        segmented = [segment_text(text, analyzer=analyzer) for text in cleaned]
        return [self.encode_segmented(words) for words in segmented]

    def encode_segmented(self, segmented: str) -> list[int]:
        """Segmented text to ids. No begin or end id is added."""
        words = segmented.replace("\n", " \n ").split(" ")
        return list(chain.from_iterable(map(self._word_ids.__getitem__, words)))

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Ids to text, U+2581 as a space. Bytes that form no character (a model may emit them) become U+FFFD.

        Raises `ValueError` for an id outside the vocabulary. Begin, end, unknown and unused entries are left
        out or written by name."""
        table = self._bytes
        try:
            if skip_special_tokens:
                return b"".join([table[id] for id in _natural(ids)]).decode("utf-8", errors="replace")
            return b"".join([table[id] or self.pieces[id].encode() for id in _natural(ids)]).decode(
                "utf-8", errors="replace"
            )
        except IndexError:
            raise ValueError(f"an id is outside the vocabulary of {self.vocab_size} entries") from None


def _natural(ids: Iterable[int]) -> Iterator[int]:
    """Yield the ids, refusing negative ones, which would count from the end."""
    for id in ids:
        if id < 0:
            raise IndexError(id)
        yield id


def _fixed_entries() -> list[tuple[str, float]]:
    special = [BEGIN_OF_TEXT, END_OF_TEXT, NEWLINE, UNKNOWN]
    return [(text, NEVER_CHOSEN) for text in special + [f"<0x{byte:02X}>" for byte in range(256)]]


def _choose(learned: list[tuple[str, float]], room: int) -> list[tuple[str, float]]:
    """At most `room` pieces in the order of their text: the initial alphabet, then the most probable."""
    reserved = {*(text for text, _ in _fixed_entries()), *ROLE_TOKENS.values()}
    scores = {text: score for text, score in learned if text not in reserved and not text.startswith(_UNUSED)}
    alphabet = set(INITIAL_ALPHABET)
    ranked = sorted(scores, key=lambda text: (text not in alphabet, -scores[text], text))
    return [(text, scores[text]) for text in sorted(ranked[:room])]


def _decoding_table(pieces: tuple[str, ...], silent: set[int]) -> list[bytes]:
    """The bytes each id stands for; empty for the `silent` entries, which stand for no text."""
    table = [b"" if id in silent else piece.replace(SPACE, " ").encode() for id, piece in enumerate(pieces)]
    table[FIRST_BYTE_ID:FIRST_PIECE_ID] = [bytes([byte]) for byte in range(256)]
    return table


def _character_counts(pieces: tuple[str, ...], silent: set[int]) -> np.ndarray:
    """Characters of cleaned text per id [vocab_size]: 0 for special and unused entries, 1 for the first byte
    of a character, 0 for the rest."""
    counts = np.array([len(piece) for piece in pieces], dtype=np.int64)
    counts[list(silent)] = 0
    counts[FIRST_BYTE_ID:FIRST_PIECE_ID] = [0 if 0x80 <= byte < 0xC0 else 1 for byte in range(256)]
    return counts


def _recorded_cleaner(recorded: Mapping[str, str], directory: Path) -> Cleaner:
    """The cleaner with the recorded rules; raises `ValueError` when this version's rules of that name
    differ."""
    try:
        cleaner = Cleaner(recorded.get("rules", ""))
    except ValueError as error:
        raise ValueError(
            f"{directory / METADATA_FILE} records the cleaning rules {recorded.get('rules')!r}: {error}"
        ) from error
    if cleaner.identity != dict(recorded):
        raise ValueError(
            f"{directory / METADATA_FILE} records the cleaning rules {dict(recorded)}, but this ncvc has "
            f"{cleaner.identity} and would clean text differently: use the version of ncvc that trained this "
            "tokenizer, or train it again"
        )
    return cleaner


def _read(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; a tokenizer directory holds {MODEL_FILE} and {METADATA_FILE}, "
            "as Tokenizer.save writes them"
        )
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); restore it from a saved tokenizer") from error


def _parse(text: str, path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); restore it from a saved tokenizer") from error
    if not isinstance(facts, dict):
        raise ValueError(f"{path} holds {type(facts).__name__}, not an object; restore it from a saved tokenizer")
    return facts


def _write_whole(path: Path, text: str) -> None:
    """Write a file beside its place, flush it to disk and move it there, so that no reader ever sees half of
    it."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
