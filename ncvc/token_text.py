"""What token ids say: the bytes of each, and the text of an answer while it grows.

A character without a piece of its own is written as byte tokens, so an answer's text is not the sum of its tokens'
texts. ``TextStream`` hands out only whole characters, and what it hands out joined is what ``Tokenizer.decode`` gives
for all ids: bytes that form no character become U+FFFD, as soon as that is certain. Costs one decoding of the
vocabulary (about 30 ms at 32,768) for each tokenizer object.
"""

from __future__ import annotations

import codecs
from weakref import WeakKeyDictionary

from ncvc.tokenizer import FIRST_BYTE_ID, FIRST_PIECE_ID, Tokenizer

_TABLES: WeakKeyDictionary[Tokenizer, tuple[bytes, ...]] = WeakKeyDictionary()


def token_bytes(tokenizer: Tokenizer) -> tuple[bytes, ...]:
    """The UTF-8 bytes that each id stands for, U+2581 as a space; empty for special, role and unused entries."""
    if tokenizer not in _TABLES:
        table = [tokenizer.decode((id,)).encode() for id in range(tokenizer.vocab_size)]
        table[FIRST_BYTE_ID:FIRST_PIECE_ID] = [bytes((byte,)) for byte in range(256)]
        _TABLES[tokenizer] = tuple(table)
    return _TABLES[tokenizer]


class TextStream:
    """Ids in, whole characters out."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._bytes = token_bytes(tokenizer)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """The characters that ``token`` completes; often one word, empty in the middle of a character."""
        return self._decoder.decode(self._bytes[token])

    def end(self) -> str:
        """What is left: U+FFFD for the bytes of an unfinished character, else nothing."""
        return self._decoder.decode(b"", final=True)
