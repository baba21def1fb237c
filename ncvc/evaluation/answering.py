"""Asking a model every item of some tasks that has no answer yet, with answers saved as they come.

``Responder`` is what answers (a local model, a server); ``AnswerSettings`` is how. Items are asked by kind and length,
whatever order the files have, so that a batch holds like ones. An item that cannot be asked or gets no answer is saved
as failed with the reason, never as a wrong answer, and asked again by the next run. Costs nothing beside the model.
Does not: load tasks, open models, or score.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from ncvc.chat import Message, TooLong
from ncvc.evaluation.answers import Answer, AnswerWriter, Key
from ncvc.evaluation.item import Item, Task

Method = Literal["generation", "log_likelihood"]
METHODS: tuple[str, ...] = get_args(Method)
MOST_WEIGHED = 1000  # sets of letters of one item
DOES_NOT_FIT = "does not fit"
_SECONDS_BETWEEN_NOTES = 5.0
_LONGEST_ANSWER = {"spans": 512}  # tokens, where no other number is set: as published for all tasks of JMED-LLM
_LONGEST_LETTERS = 64
_CUE = "答え:"


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """How items are answered; what decides an answer is in ``identity``.

    ``method``: generation writes an answer, greedily; log_likelihood takes the likeliest of the letters (or of the sets
    of as many letters as are asked for), and writes where there is none to choose (numbers, spans). ``constrained``
    writing admits nothing but letters and spans of the passage (numbers are free). ``max_new_tokens`` None: 64, of
    spans 512, at most half the context. ``too_long``: refuse (the item fails) or truncate (demonstrations go first,
    then the beginning of the question). ``system_role`` false puts the system line before the first question.
    """

    method: Method = "generation"
    constrained: bool = False
    max_new_tokens: int | None = None
    batch_size: int = 32
    too_long: TooLong = "refuse"
    system_role: bool = True

    def __post_init__(self) -> None:
        found = []
        if self.method not in METHODS:
            found.append(f"method={self.method!r}: set one of {', '.join(METHODS)}.")
        if self.too_long not in get_args(TooLong):
            found.append(f"too_long={self.too_long!r}: set one of {', '.join(get_args(TooLong))}.")
        for name in ("max_new_tokens", "batch_size"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= 1_000_000:
                found.append(f"{name}={value}: must be at least 1 and at most 1,000,000.")
        if found:
            raise ValueError("\n".join(found))

    @property
    def identity(self) -> dict[str, Any]:
        """What decides an answer besides model and prompt; the batch does not."""
        names = ("method", "constrained", "max_new_tokens", "too_long", "system_role")
        return {name: getattr(self, name) for name in names}

    def longest(self, item: Item, *, context_length: int | None) -> int:
        """New tokens of an answer to ``item`` at most."""
        chosen = self.max_new_tokens or _LONGEST_ANSWER.get(item.kind, _LONGEST_LETTERS)
        return chosen if context_length is None else max(1, min(chosen, context_length // 2))

    def weighs(self, item: Item) -> bool:
        """Whether the answer to ``item`` is chosen by its probability."""
        return self.method == "log_likelihood" and item.kind in ("choice", "letters")

    def messages(self, item: Item) -> list[Message]:
        """The conversation as it is sent."""
        turns = list(item.messages)
        if self.system_role or turns[0].role != "system":
            return turns
        system, first = turns[0], turns[1]
        return [Message("user", f"{system.content}\n{first.content}"), *turns[2:]]


class Responder(Protocol):
    """What answers items: ``identity`` decides its answers, ``record`` describes it for the sheet; plain JSON."""

    name: str
    identity: dict[str, Any]
    record: dict[str, Any]

    def check(self, settings: AnswerSettings) -> None:
        """``ValueError`` with the cure for settings that this responder cannot follow."""
        ...

    def respond(self, items: Sequence[Item], *, settings: AnswerSettings, keep: Callable[[Answer], None]) -> None:
        """Give ``keep`` one answer for each item, in any order, as they come."""
        ...


def weighed_answers(item: Item) -> list[str]:
    """The answers that are weighed for an item: its letters, or sets of ``wanted`` of them, joined by commas.

    ``ValueError`` where there is none to choose from, or more than ``MOST_WEIGHED``.
    """
    number = math.comb(len(item.letters), item.wanted) if item.wanted > 0 else 0
    if not 1 <= number <= MOST_WEIGHED:
        raise ValueError(
            f"{item.wanted} of {len(item.letters)} letters make {number:,} answers to weigh, not 1 to {MOST_WEIGHED:,}"
        )
    return [",".join(letters) for letters in itertools.combinations(item.letters, item.wanted)]


def plain_prompt(messages: Sequence[Message]) -> str:
    """A conversation as one text for a model that knows no roles: questions end in ``答え:``, answers follow it."""
    text = ""
    for message in messages:
        if message.role == "assistant":
            text = f"{_cued(text)}{message.content}\n\n"
        else:
            text += f"{message.content}\n"
    return _cued(text)


def _cued(text: str) -> str:
    text = text.rstrip("\n")
    return text if text.endswith((_CUE, "答え：")) else f"{text}\n{_CUE}"


def first_line(text: str) -> str:
    """What a continued text answers: its first line that is not blank; the text itself if all are."""
    return next((line for line in text.splitlines() if line.strip()), text)


def answered(item: Item, text: str, **more: Any) -> Answer:
    """The answer ``text`` to an item; ``more`` are further fields of ``Answer``."""
    return Answer(task=item.task, id=item.id, prompt_sha256=item.prompt_sha256, answer=text, **more)


def failed(item: Item, reason: str, *, seconds: float = 0.0) -> Answer:
    """The record that an item got no answer."""
    reason = " ".join(reason.split()) or "no reason given"
    return Answer(
        task=item.task, id=item.id, prompt_sha256=item.prompt_sha256, answer=None, failed=reason, seconds=seconds
    )


def current_answers(tasks: Iterable[Task], answers: Mapping[Key, Answer]) -> dict[Key, Answer]:
    """The answers to the items of ``tasks`` as these are now; answers to other prompts are left out."""
    found = {}
    for task in tasks:
        for item in task.items:
            answer = answers.get((task.name, item.id))
            if answer is not None and answer.prompt_sha256 == item.prompt_sha256:
                found[answer.key] = answer
    return found


def answer_tasks(
    tasks: Sequence[Task],
    responder: Responder,
    *,
    settings: AnswerSettings,
    path: Path,
    tell: Callable[[str], object] = lambda text: None,
) -> dict[Key, Answer]:
    """Ask ``responder`` every item that ``path`` holds no answer to, and return the answers to all.

    ``tell`` hears of progress and of what failed. An interruption or error leaves what was answered in the file.
    """
    responder.check(settings)
    with AnswerWriter(path, tell=tell) as writer:
        known = current_answers(tasks, writer.answers)
        items = [item for task in tasks for item in task.items]
        waiting = [item for item in items if (item.task, item.id) not in known or known[item.task, item.id].failed]
        if len(waiting) < len(items):
            tell(f"{len(items) - len(waiting):,} of {len(items):,} items are answered already; going on")
        waiting.sort(key=lambda item: (item.kind == "spans", -_size(item), item.task, item.id))
        progress = Progress(waiting, tell=tell)

        def keep(answer: Answer) -> None:
            writer.write(answer)
            progress.add(answer)

        if waiting:
            responder.respond(waiting, settings=settings, keep=keep)
        progress.end()
        return current_answers(tasks, writer.answers)


def _size(item: Item) -> int:
    return sum(len(message.content) for message in item.messages)


class Progress:
    """Items done, items failed and the time that is left, every few seconds; long items count for more."""

    def __init__(self, items: Sequence[Item], *, tell: Callable[[str], object]) -> None:
        self._sizes = {(item.task, item.id): 100 + _size(item) * (3 if item.kind == "spans" else 1) for item in items}
        self._whole, self._tell = sum(self._sizes.values()), tell
        self._size = self.done = 0
        self._seconds = 0.0  # of the answers; a batch's come at once, and the first of them must not stand for all
        self.reasons: dict[str, tuple[int, str]] = {}  # by what stands before a colon: how many, and one of them
        self._started = self._told = time.monotonic()

    def add(self, answer: Answer) -> None:
        """One item more has an answer or has failed."""
        self.done, now = self.done + 1, time.monotonic()
        self._seconds += answer.seconds
        self._size += self._sizes.get(answer.key, 0)
        if answer.failed is not None:
            kind = answer.failed.partition(":")[0]
            number, example = self.reasons.get(kind, (0, answer.failed))
            self.reasons[kind] = (number + 1, example)
        if now - self._told < _SECONDS_BETWEEN_NOTES or self._size == 0:
            return
        self._told = now
        passed = min(self._seconds, now - self._started) or now - self._started
        left = passed / self._size * (self._whole - self._size)
        failures = sum(number for number, _ in self.reasons.values())
        told = f"{self.done:,}/{len(self._sizes):,} items, about {_duration(left)} left"
        self._tell(told + (f", {failures:,} failed" if failures else ""))

    def end(self) -> None:
        """Tell how long it took, and why items failed."""
        if self.done:
            self._tell(f"{self.done:,} items in {_duration(time.monotonic() - self._started)}")
        ordered = sorted(self.reasons.items(), key=lambda pair: (-pair[1][0], pair[0]))
        for _, (number, example) in ordered[:5]:
            self._tell(f"{number:,} failed, as this one: {example[:300]}")
        if len(ordered) > 5:
            rest = sum(number for _, (number, _) in ordered[5:])
            self._tell(f"{rest:,} failed for {len(ordered) - 5:,} other reasons")


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"
