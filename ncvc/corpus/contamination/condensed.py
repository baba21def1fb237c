"""The condensed form in which texts are compared: letters and digits alone, each as one 64-bit value.

What it does: punctuation, brackets, symbols and white space (U+2581 too) are left out, letters are lower-cased and
compatibility forms of one character folded (¹ and ① are 1), so that no line break, width or bracket hides a copy.
Words are the parts between the spaces and newlines of a segmented text; a word of punctuation alone is none. Each
character becomes a 64-bit value by a bijection: two texts have the same values exactly when they have the same
condensed characters. `Block.prefix` gives the hash of any run in one subtraction and one product (a polynomial hash
modulo 2**64 over the values).

What it costs: about 10 ns a character; texts go through in blocks of 32 Ki characters, whatever their length. The
table of all code points takes 9 MB and 0.15 s in each process.
What it does not do: clean text; give it cleaned text, so that widths, dashes and compositions are one.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

Values = np.ndarray  # uint64
Places = np.ndarray  # int64

BLOCK_CHARACTERS = 1 << 15
LONGEST_WORD = 4_096
"""A longer run without a space is cut where a block ends: it is no word."""

_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64
_INVERSE = pow(_MULTIPLIER, -1, 1 << 64)
_WORD_LENGTH = np.uint64(0xD1B54A32D192ED03)
_CODE_POINTS = 0x110000
# Ideographs and Hangul syllables: letters that fold to themselves, whatever version of Unicode Python knows.
_LETTERS = ((0x3400, 0x4DC0), (0x4E00, 0xA000), (0xAC00, 0xD7A4), (0x20000, 0x2F800), (0x2FA20, 0x40000))
_LAST_FOLDED = 0x30000


def mix(values: Values) -> Values:
    """A bijection of 64-bit values that spreads every bit over all others (the finalizer of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def fold(character: str) -> str:
    """The character that stands for `character` in the condensed form; the empty string if it is left out."""
    if any(first <= ord(character) < end for first, end in _LETTERS):
        return character
    for change in (functools.partial(unicodedata.normalize, "NFKC"), str.lower):
        changed = change(character)
        character = changed if len(changed) == 1 else character
    return character if unicodedata.category(character)[0] in "LNM" else ""


@functools.cache
def _value_table() -> Values:
    """[0x110000] the value of each code point, 0 for those left out."""
    folded = np.zeros(_CODE_POINTS, np.uint64)
    is_letter = np.zeros(_CODE_POINTS, bool)
    for first, end in _LETTERS:
        folded[first:end] = np.arange(first, end, dtype=np.uint64)
        is_letter[first:end] = True
    for code in np.flatnonzero(~is_letter[:_LAST_FOLDED]).tolist():
        character = fold(chr(code))
        if character:
            folded[code] = ord(character)
    table = mix((folded + np.uint64(1)) * np.uint64(_MULTIPLIER))
    table[folded == 0] = 0
    return table


@functools.cache
def _powers(exponent: int) -> tuple[Values, Values]:
    """The first 2**exponent powers of the multiplier and of its inverse."""
    both = []
    for base in (_MULTIPLIER, _INVERSE):
        factors = np.full(1 << exponent, base, np.uint64)
        factors[0] = 1
        both.append(np.cumprod(factors))
    return both[0], both[1]


@dataclass(frozen=True, slots=True)
class Block:
    """Condensed characters of a part of a text; `num_characters` = n, `num_words` = m.

    `values` [n]; `positions` [n], where each stands in the text; `words` [m + 1], the index of the first character of
    each word and, last, n. Characters before `words[0]` are the rest of a word that was cut.
    """

    values: Values
    positions: Places
    words: Places

    @property
    def num_characters(self) -> int:
        return len(self.values)

    @property
    def num_words(self) -> int:
        return len(self.words) - 1

    def prefix(self) -> Values:
        """[n + 1] sums from which `run_hashes` takes the hash of any run."""
        sums = np.zeros(self.num_characters + 1, np.uint64)
        inverse = _powers(max(16, self.num_characters.bit_length()))[1]
        np.cumsum(self.values * inverse[: self.num_characters], out=sums[1:])
        return sums

    def word_hashes(self, prefix: Values) -> Values:
        """[m] one hash a word, of its characters and their number."""
        hashes = run_hashes(prefix, self.words[:-1], self.words[1:])
        return mix(hashes + np.diff(self.words).astype(np.uint64) * _WORD_LENGTH)


def window_hashes(prefix: Values, *, length: int) -> Values:
    """[n - length + 1] the hash of every window of `length` characters; empty when there are fewer."""
    count = len(prefix) - length
    if count <= 0:
        return np.empty(0, np.uint64)
    powers = _powers(max(16, len(prefix).bit_length()))[0]
    return (prefix[length:] - prefix[:count]) * powers[:count]


def run_hashes(prefix: Values, starts: Places, ends: Places) -> Values:
    """The hash of each run from `starts` to before `ends`; equal to `window_hashes` of the same characters."""
    powers = _powers(max(16, len(prefix).bit_length()))[0]
    return (prefix[ends] - prefix[starts]) * powers[starts]


def word_window_hashes(words: Values, *, length: int) -> Values:
    """[m - length + 1] the hash of every window of `length` words, from `Block.word_hashes`."""
    whole = Block(words, np.empty(0, np.int64), np.zeros(1, np.int64))
    return window_hashes(whole.prefix(), length=length)


def condense(text: str) -> Block:
    """The whole of `text` as one block; for benchmark items and other short texts."""
    return _condense_part(text, 0, len(text), starts_word=True)


def _condense_part(text: str, start: int, end: int, *, starts_word: bool) -> Block:
    codes = np.frombuffer(text[start:end].encode("utf-32-le", "surrogatepass"), np.uint32)
    values = _value_table()[codes]
    kept = np.flatnonzero(values)
    number = np.cumsum((codes == 32) | (codes == 10), dtype=np.int32)[kept]
    words = np.flatnonzero(number[1:] != number[:-1]) + 1
    if len(kept) and (starts_word or number[0] > 0):
        words = np.concatenate(([0], words))
    return Block(values[kept], kept + start, np.append(words, len(kept)))


def condensed_blocks(
    text: str, *, characters: int, words: int, block_characters: int = BLOCK_CHARACTERS
) -> Iterator[Block]:
    """Blocks of `text` that together hold every window of `characters` characters and of `words` words.

    A window may lie in two blocks that follow each other. Memory does not grow with the text.
    """
    carried: Block | None = None
    start, starts_word = 0, True
    while start < len(text):
        end = _block_end(text, start, start + block_characters)
        block = _condense_part(text, start, end, starts_word=starts_word)
        if carried is not None:
            block = _joined(carried, block)
        yield block
        carried = _tail(block, characters=characters - 1, words=words - 1)
        start = end
        starts_word = end >= len(text) or text[end - 1] in " \n" or text[end] in " \n"


def _block_end(text: str, start: int, end: int) -> int:
    """Where to end a block: before a space or newline when there is one near, else at `end`."""
    if end >= len(text):
        return len(text)
    nearest = max(start + 1, end - LONGEST_WORD)
    found = max(text.rfind(" ", nearest, end), text.rfind("\n", nearest, end))
    return found if found > start else end


def _joined(first: Block, second: Block) -> Block:
    n = first.num_characters
    return Block(
        np.concatenate((first.values, second.values)),
        np.concatenate((first.positions, second.positions)),
        np.concatenate((first.words[:-1], second.words + n)),
    )


def _tail(block: Block, *, characters: int, words: int) -> Block:
    """The end of `block` from the start of a word on, with at least so many characters and words if it has them."""
    n = block.num_characters
    from_characters = max(0, n - characters)
    before = int(np.searchsorted(block.words[:-1], from_characters, side="right")) - 1
    first_word = max(0, min(before, block.num_words - words))
    first = int(block.words[first_word]) if block.num_words and before >= 0 else from_characters
    if n - first > LONGEST_WORD + characters:
        first = from_characters  # inside a run that is no word
    starts = block.words[:-1]
    return Block(block.values[first:], block.positions[first:], np.append(starts[starts >= first] - first, n - first))


def joined_texts(texts: Sequence[str]) -> tuple[str, Places]:
    """The texts as one, a newline between them, and [len(texts)] where each starts in it."""
    lengths = np.fromiter((len(text) + 1 for text in texts), np.int64, len(texts))
    return "\n".join(texts), np.cumsum(lengths) - lengths


def grouped_texts(texts: Iterable[str], *, group_characters: int = BLOCK_CHARACTERS) -> Iterator[list[str]]:
    """The texts in order, in groups that each fill about one block."""
    group: list[str] = []
    size = 0
    for text in texts:
        group.append(text)
        size += len(text)
        if size >= group_characters:
            yield group
            group, size = [], 0
    if group:
        yield group
