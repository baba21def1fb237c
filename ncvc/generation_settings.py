"""The settings of ``python -m ncvc.generate``, checked before a model is opened.

``TEXTS`` are the settings that are taken off the command line as they stand. Knows nothing of Hydra or torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from ncvc.settings import fits, hints_of, suggestion, words

TEXTS = ("prompt", "system", "options", "choose", "file", "output", "model")


@dataclass(frozen=True, kw_only=True)
class GenerateSettings:
    """What ``conf/generate.yaml`` says, with its comments; ``ValueError`` names everything that cannot be."""

    home: str
    model: str
    prompt: str | None
    file: str | None
    output: str | None
    chat: bool
    system: str | None
    raw: bool
    max_new_tokens: int | None
    temperature: float
    top_p: float
    repetition_penalty: float
    seed: int
    batch_size: int
    too_long: Literal["refuse", "truncate"]
    dtype: str
    device: str
    options: tuple[str, ...] | None
    choose: tuple[str, ...] | None
    choose_count: int | None
    spans: bool

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Self:
        """From the values of a configuration, in which lists may be typed as text; ``ValueError`` as above."""
        known = [field.name for field in fields(cls)]
        if unknown := [f"{name}: no such setting{suggestion(name, known)}" for name in values if name not in known]:
            raise ValueError("\n".join(unknown))
        lists = {name: values[name] for name in ("options", "choose") if isinstance(values.get(name), str | list)}
        typed = {name: listed(value) if isinstance(value, str) else tuple(value) for name, value in lists.items()}
        return cls(**{**values, **typed})

    def __post_init__(self) -> None:
        hints = hints_of(type(self))
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        found = [
            f"{name}={value!r}: must be {words(hints[name])}."
            for name, value in values.items()
            if not fits(value, hints[name])
        ]
        if found := found or [*self._ranges(), *self._choices()]:
            raise ValueError("\n".join(found))

    def _ranges(self) -> list[str]:
        found = [
            f"{name}={getattr(self, name)}: must be at least 1."
            for name in ("max_new_tokens", "batch_size")
            if getattr(self, name) is not None and getattr(self, name) < 1
        ]
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            found.append(f"temperature={self.temperature}: must be 0 (greedy) or above.")
        if not 0 < self.top_p <= 1:
            found.append(f"top_p={self.top_p}: must be above 0 and at most 1 (the whole distribution).")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            found.append(f"repetition_penalty={self.repetition_penalty}: must be above 0; 1 switches it off.")
        return found

    def _choices(self) -> list[str]:
        modes = {"prompt=TEXT": self.prompt is not None, "file=FILE": self.file is not None, "chat=true": self.chat}
        found = []
        if sum(modes.values()) != 1:
            given = " and ".join(name for name, chosen in modes.items() if chosen) or "none of them is set"
            found.append(f"set exactly one of {', '.join(modes)}: {given}.")
        forms = {"options": self.options is not None, "choose": self.choose is not None, "spans": self.spans}
        asked = [name for name, chosen in forms.items() if chosen]
        if len(asked) > 1:
            found.append(
                f"{' and '.join(asked)} exclude each other: an answer is weighed, a letter, or a list of spans."
            )
        if self.options is not None and not self.options:
            found.append("options: name at least one answer to weigh.")
        if self.chat and (asked or self.raw):
            found.append(f"chat=true does not go with {', '.join([*asked, *['raw'] * self.raw])}; use prompt or file.")
        if self.output is not None and self.file is None:
            found.append(
                "output is for the answers to a file of prompts; set file too, or send the answer with > FILE."
            )
        if self.raw and self.system is not None:
            found.append("system belongs to a conversation, and raw=true continues plain text; set one of them.")
        return found

    @property
    def identity(self) -> dict[str, Any]:
        """What decides an answer besides model and prompt."""
        names = ("raw", "system", "max_new_tokens", "temperature", "top_p", "repetition_penalty", "seed", "too_long")
        return {name: getattr(self, name) for name in (*names, "dtype", "options", "choose", "choose_count", "spans")}


def listed(text: str) -> tuple[str, ...]:
    """A list as it is typed: JSON (``["A, B", "C"]``), or entries between commas with or without brackets."""
    text = text.strip()
    if text.startswith("["):
        try:
            value = json.loads(text)
        except ValueError:
            text = text.removeprefix("[").removesuffix("]")
        else:
            if not all(isinstance(entry, str) for entry in value):
                raise ValueError(f"{text}: a list of answers is a list of texts; put each in quotation marks.")
            return tuple(value)
    return tuple(entry.strip() for entry in text.split(",") if entry.strip())
