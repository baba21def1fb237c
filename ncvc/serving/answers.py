"""What an answer of OpenAI's interface looks like, and where a stop string ends it."""

import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class AnswerHead:
    """What all objects of one answer share: id, time, kind and model."""

    id: str
    created: int
    is_chat: bool
    model: str

    def whole(self, text: str, *, finish_reason: str, usage: Mapping[str, int]) -> dict[str, Any]:
        """The answer to a request without streaming."""
        said = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.is_chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish_reason}
        kind = "chat.completion" if self.is_chat else "text_completion"
        return {**self._head(kind), "choices": [choice], "usage": dict(usage)}

    def chunk(self, text: str | None, *, finish_reason: str | None = None, first: bool = False) -> dict[str, Any]:
        """A piece of a streamed answer."""
        if self.is_chat:
            delta = {**({"role": "assistant"} if first else {}), **({} if text is None else {"content": text})}
            said: dict[str, Any] = {"delta": delta}
        else:
            said = {"text": text or ""}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head("chat.completion.chunk" if self.is_chat else "text_completion"), "choices": [choice]}

    def usage_chunk(self, usage: Mapping[str, int]) -> dict[str, Any]:
        """The last piece, which carries the counts and no choice."""
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        return {**self._head(kind), "choices": [], "usage": dict(usage)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def new_head(*, is_chat: bool, model: str) -> AnswerHead:
    """An answer's head with a fresh id."""
    prefix = "chatcmpl" if is_chat else "cmpl"
    return AnswerHead(f"{prefix}-{secrets.token_hex(12)}", int(time.time()), is_chat, model)


def usage_of(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """OpenAI's counts of tokens."""
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


class StopMatcher:
    """Text that arrives in pieces, passed on up to the first stop string.

    What may be the beginning of a stop string is held back. The stop that is complete first ends the text (of two that
    end at once, the longer), so the result does not depend on how the text was cut. A piece costs its length times the
    number of stops.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops, self._held, self.stopped = tuple(stops), "", False

    def feed(self, text: str) -> str:
        """What may be passed on now; afterwards ``stopped`` tells whether a stop was met."""
        if self.stopped:
            return ""
        held = self._held + text
        ends = [(place + len(stop), place) for stop in self._stops if (place := held.find(stop)) >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return held[: min(ends)[1]]
        keep = max((_overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def rest(self) -> str:
        """What was held back when the text has ended."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of ``text`` that begin ``stop``, all of it left out."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
