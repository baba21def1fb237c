"""Ids of words, remembered: a word of a language comes again and again, and a look-up costs a twentieth of finding its
pieces (40 MB of segmented UTF-8 per second and core).

Memory: about 200 bytes a word, at most ``CACHE_WORDS`` of them.
"""

from __future__ import annotations

from tokenizers import models

CACHE_WORDS = 500_000
CACHED_WORD_LENGTH = 64


class WordIds(dict[str, tuple[int, ...]]):
    """Ids of words already seen. Bounded: emptied when `CACHE_WORDS` are held; words too long to recur are
    not kept. All words share one integer object per id, so that a look-up touches little memory."""

    def __init__(self, model: models.Unigram, *, vocab_size: int, newline_id: int) -> None:
        super().__init__()
        self._tokenize = model.tokenize
        self._numbers = list(range(vocab_size))
        self._newline = (newline_id,)
        self._start_over()

    def _start_over(self) -> None:
        self.clear()
        self[""], self["\n"] = (), self._newline

    def __missing__(self, word: str) -> tuple[int, ...]:
        numbers = self._numbers
        try:
            ids = tuple([numbers[token.id] for token in self._tokenize(word)])
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{word[:20]!r} holds a lone surrogate: it was not cleaned; pass raw text to encode() instead"
            ) from error
        if len(word) <= CACHED_WORD_LENGTH:
            if len(self) >= CACHE_WORDS:
                self._start_over()
            self[word] = ids
        return ids
