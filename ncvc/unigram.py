"""Learning the pieces of a Unigram vocabulary from segmented text (R31, R34).

What it does: runs the Unigram training of the `tokenizers` package on words and returns pieces with scores, in the
order of their text. Two faults of that training are mended here:

* It looks for candidate pieces in the list of distinct words, so a word that is part of no other word is never
  a candidate, however often it occurs: on 14 MB of Japanese text 556 of the 1,426 words seen 100 times or more
  could not become one piece, and a disease name that the analyser keeps whole is the typical case. The frequent
  words are therefore also shown joined in pairs, the more often the more frequent they are: 8 of the 1,426
  remained, and held-out text took 12 % fewer tokens (1.54 characters each instead of 1.35; vocabulary 32,768).
* Its sums depend on the order of a hash table: two runs give scores that differ by about 0.03. Scores are rounded
  and pieces ordered by their text; two runs that find the same pieces give them the same ids (0 of 803 documents
  differed at 8,000 and at 32,768 entries).

What it costs: 21 s and 310 MB for 49 MB of segmented text on one core (12 s and 280 MB without the pairs). Memory
follows the number of distinct words, not the length of the text; words are counted here too, and the rarest
forgotten when there are more than `MOST_WORDS`.

Rare characters can be left to the byte pieces: `character_coverage` below 1 keeps the most frequent characters
that make up that share of the text, so that a small vocabulary is not spent on kanji seen once (4,259 of the
entries on 14 MB). It costs one more reading of the texts, in which the words are counted instead.

What it does not do: know of special tokens, bytes or files; those are of `tokenizer`.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

SCORE_DIGITS = 3
MOST_WORDS = 4_000_000
LEAST_COUNT = 3  # a word seen less often is not shown again
SHOWN_SHARE = 0.5  # words shown again, at most, for each piece wanted; 4 save 0.5 % more tokens in twice the time


@dataclass(frozen=True)
class Learned:
    """The pieces in the order of their text with their scores, and what they were learned from.

    `distinct_words` is a lower bound when the text has more than `MOST_WORDS` of them.
    """

    pieces: list[tuple[str, float]]
    texts: int
    characters: int
    distinct_words: int


class _WordCounts:
    """Counts of words and, through them, of characters; bounded by `MOST_WORDS`."""

    def __init__(self) -> None:
        self.words: Counter[str] = Counter()
        self.distinct = 0
        self._forgotten: Counter[str] = Counter()  # characters of the words that were let go

    def add(self, text: str) -> None:
        self.words.update(text.split())
        if len(self.words) > MOST_WORDS:
            self._forget()

    def _forget(self) -> None:
        """Let the rarest words go, until half of `MOST_WORDS` are left: the next time is far off."""
        self.distinct = max(self.distinct, len(self.words))
        rarest = 1
        while len(self.words) > MOST_WORDS // 2:
            for word in [word for word, count in self.words.items() if count <= rarest]:
                count = self.words.pop(word)
                for character in word:
                    self._forgotten[character] += count
            rarest *= 2

    def characters(self) -> Counter[str]:
        """How often each character other than white space was seen, words that were let go included."""
        counts = self._forgotten.copy()
        for word, count in self.words.items():
            for character in word:
                counts[character] += count
        return counts

    def frequent(self, *, most: int, max_length: int) -> list[tuple[str, int]]:
        """The most frequent words of 2 to `max_length` characters seen `LEAST_COUNT` times; lets all words go."""
        self.distinct = max(self.distinct, len(self.words))
        counted = ((w, n) for w, n in self.words.items() if n >= LEAST_COUNT and 2 <= len(w) <= max_length)
        chosen = sorted(counted, key=lambda word: (-word[1], word[0]))[:most]
        self.words = Counter()  # before the training itself, which needs the most memory
        return chosen


class _TrainingText:
    """Passes the texts on, counting words and characters, then shows the frequent words again in pairs.

    Characters of `left_out` are replaced by a space: they end words and get no piece. `counts` may come filled, from an
    earlier reading.
    """

    def __init__(
        self, texts: Iterable[str], *, left_out: str, counts: _WordCounts | None, most_shown: int, max_piece_length: int
    ) -> None:
        self._texts = texts
        self._left_out = re.compile(f"[{re.escape(left_out)}]") if left_out else None
        self._counting = counts is None
        self.counts = counts or _WordCounts()
        self._most_shown, self._max_piece_length = most_shown, max_piece_length
        self.texts, self.characters = 0, 0
        self.alphabet: Iterable[str] = ()

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            self.texts += 1
            self.characters += len(text)
            if self._counting:
                self.counts.add(text)
            yield text if self._left_out is None else self._left_out.sub(" ", text)
        left_out = self._left_out
        self.alphabet = [c for c in self.counts.characters() if left_out is None or not left_out.match(c)]
        yield from self._pairs()

    def _pairs(self) -> Iterator[str]:
        """Join the frequent words in random pairs: each takes part once for every doubling of `LEAST_COUNT`."""
        most = self.counts.frequent(most=self._most_shown, max_length=self._max_piece_length)
        frequent = [(word, count) for word, count in most if self._left_out is None or not self._left_out.search(word)]
        order, least = random.Random(0), LEAST_COUNT
        while len(words := [word for word, count in frequent if count >= least]) > 1:
            order.shuffle(words)
            for left, right in zip(words[0::2], words[1::2], strict=False):
                yield left + right
            least *= 2


def learn_pieces(
    segmented: Iterable[str],
    *,
    most_pieces: int,
    alphabet: str,
    shrinking_factor: float,
    max_piece_length: int,
    n_sub_iterations: int,
    character_coverage: float,
    progress: bool,
) -> Learned:
    """Learn at most `most_pieces` pieces from texts of words joined by white space; `alphabet` always belongs to them.

    Characters outside the most frequent ones that make up `character_coverage` of the text get no piece (1: all do);
    below 1 the texts are read twice, so they must be a collection or anything that can be iterated over again.
    Raises `ValueError` when the text is empty or has more distinct characters than `most_pieces`: each needs a piece.
    """
    if not 0.0 < character_coverage <= 1.0:
        raise ValueError(
            f"tokenizer.character_coverage={character_coverage} is not above 0 and at most 1; set 1 to give every "
            "character a piece, 0.9995 to leave the rarest to bytes"
        )
    counts = None if character_coverage == 1.0 else _counted(segmented)
    left_out = "" if counts is None else _rare_characters(counts.characters(), character_coverage, alphabet)
    texts = _TrainingText(
        segmented,
        left_out=left_out,
        counts=counts,
        most_shown=int(SHOWN_SHARE * most_pieces),
        max_piece_length=max_piece_length,
    )
    scratch = tokenizers.Tokenizer(models.Unigram())
    scratch.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.UnigramTrainer(
        vocab_size=most_pieces,
        shrinking_factor=shrinking_factor,
        max_piece_length=max_piece_length,
        n_sub_iterations=n_sub_iterations,
        initial_alphabet=sorted(set(alphabet)),
        show_progress=progress,
    )
    try:
        scratch.train_from_iterator(texts, trainer=trainer)
    except Exception as error:  # the package raises nothing more precise
        if "not large enough to contain all chars" not in str(error):
            raise
        distinct = len({*texts.alphabet, *alphabet})
        raise NotEnoughRoomError(distinct) from error
    if not texts.alphabet:
        raise ValueError("the training text of the tokenizer is empty; check data.source")
    trained = json.loads(scratch.to_str())["model"]["vocab"]
    scores = {text: round(float(score), SCORE_DIGITS) for text, score in trained}
    pieces = [(text, scores[text]) for text in sorted(scores)]
    return Learned(pieces, texts.texts, texts.characters, texts.counts.distinct)


def _counted(texts: Iterable[str]) -> _WordCounts:
    if iter(texts) is texts:
        raise ValueError(
            "tokenizer.character_coverage below 1 reads the text twice, but an iterator can be read once; pass a list, "
            "or set tokenizer.character_coverage=1"
        )
    counts = _WordCounts()
    for text in texts:
        counts.add(text)
    return counts


def _rare_characters(counts: Counter[str], coverage: float, alphabet: str) -> str:
    """The characters beyond the most frequent ones that make up `coverage` of the text, in code point order."""
    counted = sorted(((n, c) for c, n in counts.items()), key=lambda item: (-item[0], item[1]))
    enough, seen, rare = coverage * sum(n for n, _ in counted), 0, []
    for count, character in counted:
        if seen >= enough and character not in alphabet:
            rare.append(character)
        seen += count
    return "".join(sorted(rare))


class NotEnoughRoomError(ValueError):
    """The text has more distinct characters (`distinct`) than pieces were asked for."""

    def __init__(self, distinct: int) -> None:
        super().__init__(f"{distinct} distinct characters need a piece each")
        self.distinct = distinct
