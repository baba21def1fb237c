"""What a benchmark asks and what is right: items, and tasks that hold them.

An item carries its conversation ready to be sent to a model, so that answering knows nothing of benchmarks, and
everything that the scorers need, so that scoring saved answers needs no model. Costs: nothing; both are plain data.
Does not: ask, or score.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ncvc.chat import Message, check_turns

Kind = Literal["choice", "letters", "number", "spans"]
Family = Literal["igakuqa", "jmed_llm", "jmmlu", "own"]
Kappa = Literal["unweighted", "linear"]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question.

    ``id`` is unique within the task and stable. ``messages`` are what is asked: a system turn and demonstrations as
    user and assistant turns where there are any; the last turn is the user's. ``gold`` is what is right: one letter
    (choice), letters (letters), the digits (number) or the spans (spans); ``alternatives`` are other answers that are
    right too, each in the form of ``gold``. ``letters`` and ``options`` are the options' letters and texts, ``wanted``
    how many letters the question asks for, ``passage`` the text that spans come from, ``group`` the exam block or the
    document, ``tag`` a label to count by, ``points`` what a right answer earns, ``text_only`` whether it can be
    answered without a picture. ``metadata`` keeps what else the benchmark says, the raw question as ``question``.
    """

    id: str
    task: str
    kind: Kind
    messages: tuple[Message, ...]
    gold: tuple[str, ...]
    alternatives: tuple[tuple[str, ...], ...] = ()
    letters: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    wanted: int = 1
    passage: str = ""
    group: str = ""
    tag: str = ""
    points: int = 1
    text_only: bool = True
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"item {self.id} of task {self.task}"
        check_turns(self.messages, where=where)
        if self.messages[-1].role != "user":
            raise ValueError(f"{where}: the last message is {self.messages[-1].role}; it has to be the question.")
        if not self.gold or not all(part.strip() for part in self.gold):
            raise ValueError(f"{where}: the right answer is empty.")
        for answer in (self.gold, *self.alternatives):
            if self.kind in ("choice", "letters") and not {*answer} <= {*self.letters}:
                raise ValueError(
                    f"{where}: the right answer {','.join(answer)} is none of its letters {', '.join(self.letters)}."
                )
        if self.kind in ("choice", "number") and len(self.gold) != 1:
            raise ValueError(f"{where}: kind {self.kind} has one right answer, and {len(self.gold)} are given.")
        if len(self.letters) != len(self.options):
            raise ValueError(f"{where}: has {len(self.letters)} letters for {len(self.options)} options.")

    @property
    def prompt_sha256(self) -> str:
        """Fingerprint of the conversation: 64 hexadecimal digits; another prompt has another."""
        turns = [[message.role, message.content] for message in self.messages]
        return hashlib.sha256(json.dumps(turns, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Task:
    """Items that make one score.

    ``kappa`` says which agreement is computed beside accuracy (None: no kappa); ``source`` where the items come from:
    files with their sha256, split, fold.
    """

    name: str
    family: Family
    items: tuple[Item, ...]
    kappa: Kappa | None = None
    source: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.items:
            raise ValueError(f"task {self.name} has no item.")
        seen: set[str] = set()
        for item in self.items:
            if item.id in seen:
                raise ValueError(f"task {self.name} has the item {item.id} twice.")
            seen.add(item.id)
