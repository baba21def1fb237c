"""Learning the pieces of a Unigram vocabulary from segmented text (R31, R34).

What it does: counts the words of the text, runs the Unigram training of the `tokenizers` package on the counted words
and returns pieces with scores, in the order of their text. Two faults of that training are mended here:

* It looks for candidate pieces in the list of distinct words, so a word that is part of no other word is never
  a candidate, however often it occurs: on 14 MB of Japanese text 556 of the 1,426 words seen 100 times or more
  could not become one piece, and a disease name that the analyser keeps whole is the typical case. The frequent
  words are therefore also shown joined in pairs, the more often the more frequent they are: 8 of the 1,426
  remained, and held-out text took 12 % fewer tokens (1.54 characters each instead of 1.35; vocabulary 32,768).
* Its sums depend on the order of a hash table: two runs give scores that differ by about 0.03. The scores are
  therefore made anew (`unigram_scores`): two runs that find the same pieces, as all runs so far did, give the same
  bytes.

What it costs: 20 s and 200 MB for 50 MB of segmented text on one core, then 1.8 s for every further 50 MB: at most
`MOST_WORDS` are counted at a time (150 bytes each) and the `TRAINED_WORDS` most frequent ones reach the training. The
text is read once.

Rare characters can be left to the byte pieces: `character_coverage` below 1 keeps the most frequent characters
that make up that share of the text, so that a small vocabulary is not spent on kanji seen once (4,259 of the
entries on 14 MB).

What it does not do: know of special tokens, bytes or files; those are of `tokenizer`.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from ncvc.unigram_scores import piece_scores

SCORE_DIGITS = 3
MOST_WORDS = 2_000_000
# Words that reach the training, at least three for each piece wanted: of 163,000 in 50 MB the 100,000 most frequent
# ones take half the time and 0.13 % more tokens on held-out text (the rest was seen once).
TRAINED_WORDS, TRAINED_SHARE = 100_000, 3
LEAST_COUNT = 3  # a word seen less often is not shown in pairs
SHOWN_SHARE = 0.5  # words shown in pairs, at most, for each piece wanted; 4 save 0.5 % more tokens in twice the time
_WORDS_AT_ONCE = 1_000


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
        self.texts, self.text_characters = 0, 0
        self._most = 0
        self._forgotten: Counter[str] = Counter()  # characters of the words that were let go

    def add(self, text: str) -> None:
        self.texts += 1
        self.text_characters += len(text)
        self.words.update(text.split())
        if len(self.words) > MOST_WORDS:
            self._forget()

    def _forget(self) -> None:
        """Let the rarest words go, until half of `MOST_WORDS` are left: the next time is far off."""
        self._most = max(self._most, len(self.words))
        rarest = 1
        while len(self.words) > MOST_WORDS // 2:
            for word in [word for word, count in self.words.items() if count <= rarest]:
                count = self.words.pop(word)
                for character in word:
                    self._forgotten[character] += count
            rarest *= 2

    @property
    def distinct(self) -> int:
        """Distinct words; a lower bound once some were let go."""
        return max(self._most, len(self.words))

    def characters(self) -> Counter[str]:
        """How often each character other than white space was seen, words that were let go included."""
        counts = self._forgotten.copy()
        for word, count in self.words.items():
            for character in word:
                counts[character] += count
        return counts

    def trained(self, *, left_out: str, most: int) -> dict[str, int]:
        """At most so many words to train on, most frequent first; characters of `left_out` end words, in none."""
        words: Mapping[str, int] = self.words
        if left_out:
            foreign, parts = re.compile(f"[{re.escape(left_out)}]"), Counter[str]()
            for word, count in self.words.items():
                for part in foreign.sub(" ", word).split() if foreign.search(word) else (word,):
                    parts[part] += count
            words = parts
        return dict(sorted(words.items(), key=lambda item: (-item[1], item[0]))[:most])


def _shown(words: Mapping[str, int], *, most_paired: int, max_piece_length: int) -> Iterator[str]:
    """What the training reads: every word as often as it was seen, then the frequent ones joined in random pairs.

    Each of these takes part in a pair once for every doubling of `LEAST_COUNT`.
    """
    for word, count in words.items():
        for start in range(0, count, _WORDS_AT_ONCE):
            yield f"{word} " * min(_WORDS_AT_ONCE, count - start)
    fitting = ((w, n) for w, n in words.items() if n >= LEAST_COUNT and 2 <= len(w) <= max_piece_length)
    frequent = list(itertools.islice(fitting, most_paired))
    order, least = random.Random(0), LEAST_COUNT
    while len(paired := [word for word, count in frequent if count >= least]) > 1:
        order.shuffle(paired)
        for left, right in zip(paired[0::2], paired[1::2], strict=False):
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

    Characters outside the most frequent ones that make up `character_coverage` of the text get no piece (1: all do).
    Raises `ValueError` when the text is empty or has more distinct characters than `most_pieces`: each needs a piece.
    """
    if not 0.0 < character_coverage <= 1.0:
        raise ValueError(
            f"tokenizer.character_coverage={character_coverage} is not above 0 and at most 1; set 1 to give every "
            "character a piece, 0.9995 to leave the rarest to bytes"
        )
    counts = _WordCounts()
    for text in segmented:
        counts.add(text)
    characters = counts.characters()
    if not characters:
        raise ValueError("the training text of the tokenizer is empty; check data.source")
    left_out = "" if character_coverage == 1.0 else _rare_characters(characters, character_coverage, alphabet)
    words = counts.trained(left_out=left_out, most=max(TRAINED_WORDS, TRAINED_SHARE * most_pieces))
    distinct = counts.distinct
    counts.words.clear()  # before the training itself, which needs the most memory
    names = _train(
        _shown(words, most_paired=int(SHOWN_SHARE * most_pieces), max_piece_length=max_piece_length),
        trainer=trainers.UnigramTrainer(
            vocab_size=most_pieces,
            shrinking_factor=shrinking_factor,
            max_piece_length=max_piece_length,
            n_sub_iterations=n_sub_iterations,
            initial_alphabet=sorted(set(alphabet)),
            show_progress=progress,
        ),
        distinct_characters=len({*characters, *alphabet} - set(left_out)),
    )
    scores = [round(score, SCORE_DIGITS) for score in piece_scores(names, words)]
    return Learned(list(zip(names, scores, strict=True)), counts.texts, counts.text_characters, distinct)


def _train(shown: Iterator[str], *, trainer: trainers.UnigramTrainer, distinct_characters: int) -> list[str]:
    """The texts of the pieces, in order."""
    scratch = tokenizers.Tokenizer(models.Unigram())
    scratch.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    try:
        scratch.train_from_iterator(shown, trainer=trainer)
    except Exception as error:  # the package raises nothing more precise
        if "not large enough to contain all chars" not in str(error):
            raise
        raise NotEnoughRoomError(distinct_characters) from error
    return sorted({text for text, _ in json.loads(scratch.to_str())["model"]["vocab"]})


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
