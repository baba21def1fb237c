"""Answers that cannot be wrong in form: which tokens may come next when the space of answers is closed.

A ``Constraint`` is a small automaton over token ids; generation masks every token that ``allowed`` does not list.
``OneOf`` and ``option_letters`` admit the given answers only. ``spans_of`` admits a list of spans of a passage as
``ncvc.evaluation.spans.write_spans`` writes it, ``["...", "..."]``: nothing that does not stand in the cleaned
passage can come out, no span is empty or named twice, and the list is always closed, also where ``max_new_tokens``
would have cut it. Which pieces spell it is left to the model: any path of tokens whose bytes are such a list.

Costs: a trie of the vocabulary once for each tokenizer (0.15 s at 32,768), then about 3 ms at the start of a span of a
passage of 1,000 characters and 0.5 ms a token on the average, remembered for each passage. What it does not do: spans
with a quotation mark, backslash or line end in them (none of JMED-LLM's 6,306 gold spans has one); grammars.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

from ncvc.corpus.cleaning import SPACE
from ncvc.token_text import token_bytes
from ncvc.tokenizer import Tokenizer

_OPEN, _BETWEEN, _QUOTE, _COMMA, _CLOSE = b'["', b', "', ord('"'), ord(","), ord("]")
_BREAK = 0xFF  # stands in the passage where no span may cross; no character has this byte
_NEVER_INSIDE = '"\\\n'


class Constraint(Protocol):
    """Which tokens may follow; states are hashable and never changed."""

    def start(self) -> Any:
        """The state before the first token of an answer."""

    def allowed(self, state: Any) -> Sequence[int]:
        """The ids that may come next, never none; the end id is among them where the answer may end."""

    def advance(self, state: Any, token: int) -> Hashable:
        """The state after ``token``; ``ValueError`` if it was not allowed. Not called for the end id."""


class OneOf:
    """Exactly one of some token sequences, then ``end_id``: a trie, whose states are its nodes' numbers.

    ``ValueError`` for no sequence, an empty one, and one that contains the end id.
    """

    def __init__(self, sequences: Sequence[Sequence[int]], *, end_id: int) -> None:
        if not sequences:
            raise ValueError("a constraint to one of some answers needs at least one answer.")
        children: list[dict[int, int]] = [{}]
        for sequence in sequences:
            if not sequence or end_id in sequence:
                raise ValueError(f"an answer of a closed set must have tokens, and not the end id {end_id} among them.")
            node = 0
            for token in sequence:
                if token not in children[node]:
                    children[node][token] = len(children)
                    children.append({})
                node = children[node][token]
            children[node][end_id] = -1
        self._children = children
        self._allowed = [tuple(sorted(following)) for following in children]

    def start(self) -> int:
        """The root."""
        return 0

    def allowed(self, state: int) -> Sequence[int]:
        """The tokens of the sequences that begin as the answer does."""
        return self._allowed[state]

    def advance(self, state: int, token: int) -> int:
        """The node after ``token``."""
        following = self._children[state].get(token, -1)
        if following < 0:
            raise ValueError(f"token {token} is not one that may come here.")
        return following


def option_letters(letters: Sequence[str], *, tokenizer: Tokenizer, count: int | None = 1) -> OneOf:
    """An answer of exactly ``count`` of the ``letters`` in their order, joined by ",": "C", or "a,d" for ``count=2``.

    ``count=None`` admits any number of them from one. Each answer has the ids that training gives its text.
    ``ValueError`` for letters that are no text, twice the same once cleaned, more than 16, or fewer than ``count``.
    """
    cleaned = [tokenizer.cleaner(letter) for letter in letters]
    if not cleaned or not all(cleaned) or len(set(cleaned)) < len(cleaned) or any("," in letter for letter in cleaned):
        raise ValueError(
            f"option letters {', '.join(map(repr, letters)) or '(none)'}: give at least one, each other than the rest "
            "and without a comma, as in A,B,C."
        )
    if len(letters) > 16:
        raise ValueError(f"{len(letters)} option letters are more than the 16 that can be combined; name fewer.")
    if count is not None and not 1 <= count <= len(letters):
        raise ValueError(f"{count} of {len(letters)} option letters cannot be chosen; set 1 to {len(letters)}.")
    numbers = range(1, len(letters) + 1) if count is None else (count,)
    chosen = itertools.chain.from_iterable(itertools.combinations(cleaned, number) for number in numbers)
    return OneOf([tokenizer.encode(",".join(some)) for some in chosen], end_id=tokenizer.end_id)


class SpanState(NamedTuple):
    """Where a list of spans stands. ``written`` counts the bytes of a fixed part, ``text`` holds those of a span."""

    part: str  # open, span, after, between, done
    written: int = 0
    text: bytes = b""
    used: tuple[bytes, ...] = ()
    left: int | None = None  # tokens that may still come; None without a limit


class Spans:
    """A list of spans of a passage; see ``spans_of``."""

    def __init__(
        self, passage: str, *, tokenizer: Tokenizer, max_new_tokens: int | None, max_spans: int, max_characters: int
    ) -> None:
        cleaned = tokenizer.cleaner(passage).replace(SPACE, " ")
        for character in _NEVER_INSIDE:
            cleaned = cleaned.replace(character, "\0")
        self._passage = cleaned.encode().replace(b"\0", bytes((_BREAK,))) + bytes((_BREAK,))  # so that no text ends it
        self._max_spans, self._max_characters, self._limit = max_spans, max_characters, max_new_tokens
        self._end_id, self._bytes = tokenizer.end_id, token_bytes(tokenizer)
        self._trie = _trie_of(tokenizer)
        self._costs = {c: self._trie.cost(c.encode()) for c in sorted({*cleaned, *'[", ]'}) if c != "\0"}
        self._allowed: dict[SpanState, tuple[int, ...]] = {}
        self._nearest: dict[tuple[bytes, tuple[bytes, ...]], int | None] = {}
        needed = self._cost_to_close(self.start())
        if needed is None:
            raise ValueError("the passage has no text that a span could be; give a passage, or leave spans out.")
        if max_new_tokens is not None and needed > max_new_tokens:
            raise ValueError(
                f"max_new_tokens={max_new_tokens}: the shortest list of spans takes {needed} tokens; set more."
            )

    def start(self) -> SpanState:
        """Before the opening bracket."""
        return SpanState("open", left=self._limit)

    def allowed(self, state: SpanState) -> Sequence[int]:
        """The pieces that keep the list one that can still be closed, within the tokens that are left."""
        if state.part == "done":
            return (self._end_id,)
        key = state._replace(left=None)
        if key not in self._allowed:
            self._allowed[key] = tuple(sorted(self._pieces_after(key)))
        tokens = self._allowed[key]
        if state.left is None or state.left > 8 * len(state.used) + 40:  # more than any list needs to be closed
            return tokens
        costs = ((token, self._cost_to_close(self.advance(key, token))) for token in tokens)
        return tuple(token for token, cost in costs if cost is not None and cost < state.left)

    def advance(self, state: SpanState, token: int) -> SpanState:
        """The state after the bytes of ``token``."""
        following: SpanState | None = state
        for byte in self._bytes[token] if 0 <= token < len(self._bytes) else b"":
            following = None if following is None else self._step(following, byte)
        if following is None or following is state:
            raise ValueError(f"token {token} is not one that may come here.")
        return following if state.left is None else following._replace(left=state.left - 1)

    def _pieces_after(self, state: SpanState) -> Iterator[int]:
        """Every piece whose bytes can come now."""
        if state.part != "span":
            yield from self._walk(self._trie.root, state)
            return
        text = state.text
        waiting = [(self._trie.root, text, _characters(text), self._ends_of(text))]
        while waiting:  # the passage read on from every place where the text stands in it, along the vocabulary
            node, here, count, ends = waiting.pop()
            if -1 in node and here != text and self._nearest_end(here, state.used) is not None:
                yield from node[-1]
            if _QUOTE in node and (after := self._step(state._replace(text=here), _QUOTE)):
                yield from node[_QUOTE].get(-1, ())
                yield from self._walk(node[_QUOTE], after)
            following: dict[int, list[int]] = {}
            for end in ends:
                following.setdefault(self._passage[end], []).append(end + 1)
            for byte, further in following.items():
                begins = byte & 0xC0 != 0x80
                if byte in node and byte != _BREAK and (not begins or count < self._max_characters):
                    waiting.append((node[byte], here + bytes((byte,)), count + begins, further))

    def _ends_of(self, text: bytes) -> list[int]:
        """Where the passage goes on after each place of ``text`` in it; for the empty one, where a span may begin."""
        if not text:
            return [place for place, byte in enumerate(self._passage) if byte & 0xC0 != 0x80 and byte not in b" \xff"]
        ends, place = [], self._passage.find(text)
        while place >= 0:
            ends.append(place + len(text))
            place = self._passage.find(text, place + 1)
        return ends

    def _walk(self, start: dict[int, Any], state: SpanState) -> Iterator[int]:
        """Pieces below a node of the trie whose further bytes can come: trie and automaton walked together."""
        waiting = [(start, state)]
        while waiting:
            node, here = waiting.pop()
            for byte, child in node.items():
                there = self._step(here, byte) if byte >= 0 else None
                if there is None:
                    continue
                waiting.append((child, there))
                if -1 in child and self._cost_to_close(there) is not None:
                    yield from child[-1]

    def _step(self, state: SpanState, byte: int) -> SpanState | None:
        """The state after one byte, or ``None`` where it may not come."""
        if state.part == "span":
            return self._step_in_span(state, byte)
        if state.part == "after":
            if byte == _CLOSE:
                return SpanState("done", used=state.used)
            another = byte == _COMMA and len(state.used) < self._max_spans
            return SpanState("between", 1, used=state.used) if another else None
        if state.part == "done":
            return None
        fixed = _OPEN if state.part == "open" else _BETWEEN
        if byte != fixed[state.written]:
            return None
        if state.written + 1 == len(fixed):
            return SpanState("span", used=state.used)
        return SpanState(state.part, state.written + 1, used=state.used)

    def _step_in_span(self, state: SpanState, byte: int) -> SpanState | None:
        text = state.text
        if byte == _QUOTE:
            return (
                SpanState("after", used=tuple(sorted((*state.used, text)))) if self._whole(text, state.used) else None
            )
        begins = byte & 0xC0 != 0x80  # a character's first byte
        if byte == _BREAK or (not text and (not begins or byte == 0x20)):
            return None
        if begins and _characters(text) >= self._max_characters:
            return None
        text += bytes((byte,))
        return SpanState("span", text=text, used=state.used) if text in self._passage else None

    def _whole(self, text: bytes, used: tuple[bytes, ...]) -> bool:
        """Whether a span may end here: whole characters, not blank at its end, not named before."""
        return bool(text) and text not in used and text[-1] != 0x20 and _missing_bytes(text) == 0

    def _cost_to_close(self, state: SpanState) -> int | None:
        """Tokens that are enough to close the list from here; ``None`` where no list can be made of it any more."""
        close = self._costs['"'] + self._costs["]"]
        if state.part in ("after", "done"):
            return 0 if state.part == "done" else self._costs["]"]
        fixed = {"open": _OPEN, "between": _BETWEEN}.get(state.part, b"")
        before = sum(self._costs[chr(byte)] for byte in fixed[state.written :])
        nearest = self._nearest_end(state.text, state.used)
        return None if nearest is None else before + nearest + close

    def _nearest_end(self, text: bytes, used: tuple[bytes, ...]) -> int | None:
        """Tokens, character by character, to the nearest place where a span that began as ``text`` may end."""
        if self._whole(text, used):
            return 0
        key = (text, used)
        if key not in self._nearest:
            self._nearest[key] = self._search_end(text, used)
        return self._nearest[key]

    def _search_end(self, text: bytes, used: tuple[bytes, ...]) -> int | None:
        waiting, seen = [(0, text)], {text}
        while waiting:
            cost, here = heapq.heappop(waiting)
            if self._whole(here, used):
                return cost
            missing = _missing_bytes(here)
            for there in self._longer(here, missing):
                if there not in seen:
                    seen.add(there)
                    added = missing or self._costs[there[len(here) :].decode()]
                    heapq.heappush(waiting, (cost + added, there))
        return None

    def _longer(self, text: bytes, missing: int) -> Iterator[bytes]:
        """``text`` with each character that follows it in the passage, or with its own character completed."""
        if not missing and _characters(text) >= self._max_characters:
            return
        for end in self._ends_of(text):
            first = self._passage[end]
            if missing or (first != _BREAK and first & 0xC0 != 0x80):
                yield text + self._passage[end : end + (missing or _length_of(first))]


def spans_of(
    passage: str,
    *,
    tokenizer: Tokenizer,
    max_new_tokens: int | None = None,
    max_spans: int = 32,
    max_characters: int = 100,
) -> Spans:
    """A list of 1 to ``max_spans`` different spans of the cleaned ``passage``, each of up to ``max_characters``.

    With ``max_new_tokens`` the list is closed within so many tokens (the end token not counted). JMED-LLM's longest
    gold list has 22 spans, its longest span 76 characters. ``ValueError`` for a passage without text and for limits
    that no list fits in.
    """
    for name, value in (("max_spans", max_spans), ("max_characters", max_characters)):
        if value < 1:
            raise ValueError(f"{name}={value}: set at least 1.")
    return Spans(
        passage,
        tokenizer=tokenizer,
        max_new_tokens=max_new_tokens,
        max_spans=max_spans,
        max_characters=max_characters,
    )


class _Trie:
    """The vocabulary by bytes: each node maps a byte to the next node, and -1 to the ids that end there."""

    def __init__(self, table: Sequence[bytes]) -> None:
        self.root: dict[int, Any] = {}
        for token, text in enumerate(table):
            if not text:
                continue
            node = self.root
            for byte in text:
                node = node.setdefault(byte, {})
            node.setdefault(-1, []).append(token)

    def cost(self, character: bytes) -> int:
        """Tokens that a character takes at most: 1, or one for each of its bytes where it has no piece."""
        node = self.root
        for byte in character:
            node = node.get(byte, {})
        return 1 if -1 in node else len(character)


_TRIES: WeakKeyDictionary[Tokenizer, _Trie] = WeakKeyDictionary()


def _trie_of(tokenizer: Tokenizer) -> _Trie:
    if tokenizer not in _TRIES:
        _TRIES[tokenizer] = _Trie(token_bytes(tokenizer))
    return _TRIES[tokenizer]


def _characters(text: bytes) -> int:
    """Characters begun in UTF-8 bytes."""
    return sum(byte & 0xC0 != 0x80 for byte in text)


def _length_of(first: int) -> int:
    """Bytes of the character that begins with this byte."""
    return 1 if first < 0x80 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4


def _missing_bytes(text: bytes) -> int:
    """Bytes that the last character of UTF-8 bytes still lacks."""
    for back in range(1, min(4, len(text)) + 1):
        if text[-back] & 0xC0 != 0x80:
            return _length_of(text[-back]) - back
    return 0
