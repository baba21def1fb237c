"""A language model that writes or labels text, behind one small protocol: requests in, answers or failures out.

What it does: the protocol (`Teacher`), what goes in and out of it (`Request`, `Answer`, `Failure`), the settings of
every kind of teacher, prompt formats as data (`ChatFormat`) and the teacher that reads its answers from a file or a
function (`ScriptedTeacher`). Models behind a server are in `served_teacher`, models in this process in
`transformers_teacher`, whose `open_teacher` opens any of them.

One request that fails is a `Failure` in its place and the rest goes on. An answer is a function of the request alone as
far as the model allows: the seed goes to it with every request. Knows nothing of torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from ncvc.settings import settings_from

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Request:
    """One question: messages `{"role": ..., "content": ...}`, a seed, the most tokens of the answer.

    `temperature` None: the teacher's own. Raises ValueError for messages that no teacher could take.
    """

    messages: Sequence[Mapping[str, str]]
    seed: int
    max_tokens: int
    temperature: float | None = None

    def __post_init__(self) -> None:
        for message in self.messages:
            content = message.get("content") if isinstance(message, Mapping) else None
            if not isinstance(content, str) or message.get("role") not in ROLES:
                raise ValueError(f"message {message!r}: must have a role ({', '.join(ROLES)}) and a text as content.")
        if not self.messages or self.messages[-1]["role"] != "user":
            raise ValueError("a request must end with a message of the role user; add one.")
        if self.max_tokens < 1 or not 0 <= self.seed < 2**63:
            raise ValueError(f"max_tokens={self.max_tokens}, seed={self.seed}: must be at least 1 and 0.")
        if self.temperature is not None and not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature={self.temperature}: must be a number from 0 on; 0 is greedy.")


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said. `finish_reason`: "stop" (it ended by itself), "length" (cut at max_tokens), or another.

    `tokens` is the length of the answer where the teacher knows it, `seconds` how long it took. The text can always be
    written as UTF-8: halves of surrogate pairs come out as U+FFFD.
    """

    text: str
    finish_reason: str | None = "stop"
    tokens: int | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        whole = self.text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        object.__setattr__(self, "text", whole)


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that got no answer, and why."""

    reason: str


Result = Answer | Failure


class Teacher(Protocol):
    """What writes or labels. `identity` is all that decides its answers, as plain JSON values."""

    name: str
    identity: dict[str, Any]

    def answer(self, requests: Iterable[Request]) -> Iterator[Result]:
        """One result per request, in the order of the requests; requests are drawn as places become free."""
        ...

    def answer_as_completed(self, requests: Iterable[Request]) -> Iterator[tuple[int, Result]]:
        """The same results as they come, each with the number of its request, counted from 0."""
        ...


def in_order(completed: Iterable[tuple[int, Result]]) -> Iterator[Result]:
    """The results of `answer_as_completed` in the order of their numbers."""
    waiting: dict[int, Result] = {}
    following = 0
    for number, result in completed:
        waiting[number] = result
        while following in waiting:
            yield waiting.pop(following)
            following += 1


@dataclass(frozen=True, kw_only=True)
class ChatFormat:
    """How a model wants messages written as one text; each part holds `{content}` once, where the message goes.

    The token that begins a text is the tokenizer's own business and not part of it. `stop` ends an answer: what
    follows one of these is cut off.
    """

    begin: str = ""
    system: str
    user: str
    assistant: str
    reply: str = ""
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", tuple(self.stop))
        for part in ROLES:
            if getattr(self, part).count("{content}") != 1:
                raise ValueError(
                    f"teacher.chat_format.{part}={getattr(self, part)!r}: must hold {{content}} exactly once, where "
                    "the message goes."
                )
        if not all(self.stop):
            raise ValueError("teacher.chat_format.stop: an empty text would end every answer; leave it out.")

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt. Raises ValueError for a message that holds a mark of the format itself."""
        for message in messages:
            if mark := next((mark for mark in self.stop if mark in message["content"]), None):
                raise ValueError(f"a message holds {mark!r}, which ends an answer in this chat format")
        turns = (getattr(self, message["role"]).replace("{content}", message["content"]) for message in messages)
        return self.begin + "".join(turns) + self.reply

    def cut(self, text: str) -> tuple[str, bool]:
        """`text` up to the first stop, and whether there was one."""
        places = [place for mark in self.stop if (place := text.find(mark)) >= 0]
        return (text[: min(places)], True) if places else (text, False)


@dataclass(frozen=True, kw_only=True)
class TeacherSettings:
    """`teacher` of the configuration: which model, how it is prompted and sampled, and where it runs.

    Raises ValueError naming the setting, why it cannot be and what to set.
    """

    name: str
    backend: Literal["openai_compatible", "transformers", "scripted"]
    model: str | None = None
    system_message: str | None = None
    chat_format: dict[str, Any] | None = None
    temperature: float = 0.7
    top_p: float = 1.0
    concurrency: int = 8
    base_url: str | None = None
    allow_public: bool = False
    api_key_variable: str | None = None
    timeout_seconds: float = 300.0
    retries: int = 4
    backoff_seconds: float = 1.0
    backoff_limit_seconds: float = 60.0
    maximum_response_bytes: int = 1 << 22
    directory: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int = 8
    answers: str | None = None
    format: ChatFormat | None = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", self.name):
            raise ValueError(
                f"teacher.name={self.name!r}: names a file; set letters, digits, dots, - and _, at most 64."
            )
        needed = {"openai_compatible": "base_url", "transformers": "directory", "scripted": "answers"}
        if self.backend not in needed:
            raise ValueError(f"teacher.backend={self.backend!r}: must be one of {', '.join(needed)}.")
        if getattr(self, needed[self.backend]) is None:
            raise ValueError(
                f"teacher.{needed[self.backend]} is not set, and teacher.backend={self.backend} needs it; "
                f"set teacher.{needed[self.backend]}=..."
            )
        ranges = {
            "temperature": (0, 10), "top_p": (1e-6, 1), "concurrency": (1, 1024), "timeout_seconds": (1e-3, 86_400),
            "retries": (0, 100), "backoff_seconds": (0, 3600), "backoff_limit_seconds": (0, 3600),
            "maximum_response_bytes": (1, 1 << 31), "batch_size": (1, 4096),
        }  # fmt: skip
        for name, (lowest, highest) in ranges.items():
            value = getattr(self, name)
            if not lowest <= value <= highest:
                raise ValueError(f"teacher.{name}={value}: must lie from {lowest} to {highest}.")
        if self.chat_format is not None:
            built = settings_from(ChatFormat, self.chat_format, path="teacher.chat_format")
            object.__setattr__(self, "format", built)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the answers, without where the model runs."""
        return {
            "backend": self.backend,
            "model": self.model,
            "system_message": self.system_message,
            "chat_format": None if self.format is None else {**asdict(self.format), "stop": list(self.format.stop)},
            "temperature": self.temperature,
            "top_p": self.top_p,
        }

    def complete(self, messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
        """The messages, opened by the teacher's own system message if they bring none."""
        plain = [dict(message) for message in messages]
        if self.system_message is None or plain[0]["role"] == "system":
            return plain
        return [{"role": "system", "content": self.system_message}, *plain]


class ScriptedTeacher:
    """Answers from a function or a JSON lines file, for tests and dry runs; nothing is generated.

    A row of the file holds `text` (and `finish_reason` if it is not "stop") or `failure`, and maybe `contains`: rows
    whose `contains` is in the request's last message come before rows without one; among several the seed chooses, so
    that the answer depends on the request alone. A function returns a text, an `Answer` or a `Failure`.
    """

    def __init__(
        self, script: Callable[[Request], str | Result] | str | Path, *, name: str = "scripted", identity: object = None
    ) -> None:
        self.name = name
        if callable(script):
            self._function = script
            self.identity: dict[str, Any] = {"backend": "scripted", "model": identity or name}
        else:
            rows = _read_script(Path(script).expanduser())
            self._function = lambda request: _scripted(rows, request)
            digest = hashlib.sha256(Path(script).expanduser().read_bytes()).hexdigest()
            self.identity = {"backend": "scripted", "model": identity or digest}

    def answer(self, requests: Iterable[Request]) -> Iterator[Result]:
        """One result per request, in order."""
        return in_order(self.answer_as_completed(requests))

    def answer_as_completed(self, requests: Iterable[Request]) -> Iterator[tuple[int, Result]]:
        """The same with numbers; nothing here runs at the same time."""
        for number, request in enumerate(requests):
            result = self._function(request)
            yield number, Answer(result) if isinstance(result, str) else result


def _read_script(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"teacher.answers={path} does not exist; name a JSON lines file with answers.")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            kinds = {"text": str, "failure": str, "contains": str, "finish_reason": str}
            if not all(isinstance(value, kinds[key]) for key, value in row.items()) or not {"text", "failure"} & set(
                row
            ):
                raise ValueError("needs text or failure, and knows contains and finish_reason beside them")
        except (ValueError, KeyError, AttributeError) as error:
            raise ValueError(
                f"teacher.answers={path}:{number} is no scripted answer ({error}); mend that line."
            ) from error
        rows.append(row)
    if not rows:
        raise ValueError(f'teacher.answers={path} holds no answers; add lines such as {{"text": "..."}}.')
    return rows


def _scripted(rows: list[dict[str, Any]], request: Request) -> Result:
    asked = request.messages[-1]["content"]
    chosen = [row for row in rows if "contains" in row and row["contains"] in asked]
    chosen = chosen or [row for row in rows if "contains" not in row]
    if not chosen:
        return Failure("the script has no answer for this request")
    row = chosen[request.seed % len(chosen)]
    if "failure" in row:
        return Failure(row["failure"])
    return Answer(row["text"], row.get("finish_reason", "stop"))
