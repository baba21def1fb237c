"""Textbooks and exercises written by teachers (R10, R12-R15): the plan, what is asked, what is kept.

What it does: topics x prompts x teachers x samples in a fixed order (`SynthesisPlan`); each request is a pure function
of the seed, the topic's name, the prompt, the teacher's name, the sample and the attempt. Answers are checked
(`synthesis_checks`); a rejected one is asked again with another seed, up to `attempts` times; near-duplicates within
(topic, teacher) are decided in the order of the plan, so that neither speed nor interruptions change what is kept.

What it costs: the topics in memory (100,000 are 20 MB), nothing else that grows. What it does not do: talk to teachers
or disks (`synthesis_run` does), or govern the share of synthetic text in training (R107, at packing).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from ncvc.corpus.characters import SPACE
from ncvc.corpus.synthesis.checks import (
    NO_ANSWER,
    CheckSettings,
    Duplicates,
    Exercise,
    Rejection,
    check,
)
from ncvc.settings import settings_from
from ncvc.storage import hash_json
from ncvc.teachers.teacher import Answer, Request, Result

LAW = "1"
"""Raised when the same answers would give other documents."""
GENERAL = "general"
MAXIMUM_TOPIC_CHARACTERS = 100
_PLACE = re.compile(r"\{(topic|kind|angle)\}")
_KINDS = {"disease": "疾患", "drug": "医薬品", "ingredient": "医薬品の成分", GENERAL: "医学一般"}


class HasSurface(Protocol):
    """What a topic is made of: a lexicon's entry, or a `Topic`."""

    @property
    def surface(self) -> str: ...

    @property
    def kind(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Topic:
    """What a text is about: a name, and disease, drug, general or another kind of the lexicon."""

    surface: str
    kind: str


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One way to ask: for topics of `kinds`, with {topic}, {kind} (in Japanese) and {angle} replaced.

    Sample n is asked with angle n, counted around: five exercises on a disease then differ in what they ask about.
    """

    id: str
    kinds: tuple[str, ...]
    user: str
    system: str | None = None
    angles: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", tuple(self.kinds))
        object.__setattr__(self, "angles", tuple(self.angles))
        told = f"synthesis.prompts.{self.id}"
        if not re.fullmatch(r"[a-z0-9_]{1,40}", self.id):
            raise ValueError(f"{told}: a prompt's name goes into ids; set small letters, digits and _.")
        if not self.kinds or "{topic}" not in self.user:
            raise ValueError(f"{told}: must name the kinds of topic it is for, and hold {{topic}} in user.")
        if ("{angle}" in self.user) != bool(self.angles):
            raise ValueError(f"{told}: angles and {{angle}} in user belong together; set both or neither.")

    @property
    def sha256(self) -> str:
        """Of all that is asked with it."""
        return hash_json(asdict(self))

    def messages(self, topic: Topic, *, sample: int) -> list[dict[str, str]]:
        """System and user message about `topic`; braces in the topic's name stay what they are."""
        angle = self.angles[sample % len(self.angles)] if self.angles else ""
        values = {"topic": topic.surface, "kind": _KINDS.get(topic.kind, topic.kind), "angle": angle}

        def filled(text: str) -> str:
            return _PLACE.sub(lambda match: values[match[1]], text)

        system = [{"role": "system", "content": filled(self.system)}] if self.system is not None else []
        return [*system, {"role": "user", "content": filled(self.user)}]


@dataclass(frozen=True, kw_only=True)
class SynthesisSettings:
    """`synthesis` of the configuration. `prompts`: {id: {kinds, user, system, angles}}."""

    name: str
    kind: Literal["textbook", "exercise"]
    prompts: dict[str, Any]
    checks: dict[str, Any]
    samples: int
    attempts: int
    max_tokens: int
    teachers_per_prompt: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9_]{1,40}", self.name):
            raise ValueError(f"synthesis.name={self.name!r}: goes into ids; set small letters, digits and _.")
        for name in ("samples", "attempts", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"synthesis.{name}={getattr(self, name)}: must be at least 1.")
        if self.teachers_per_prompt is not None and self.teachers_per_prompt < 1:
            raise ValueError(
                f"synthesis.teachers_per_prompt={self.teachers_per_prompt}: no teacher would be asked; set at least "
                "1, or null for every teacher."
            )
        if not any(self.prompts.values()):
            raise ValueError("synthesis.prompts is empty, so nothing would be asked; set at least one prompt.")
        for name, values in self.prompts.items():
            if not isinstance(values, Mapping | None):
                raise ValueError(f"synthesis.prompts.{name}={values!r}: must be a group with kinds and user.")
        _ = self.prompt_list, self.check_settings  # so that wrong ones are told now

    @property
    def prompt_list(self) -> tuple[Prompt, ...]:
        """The prompts in their order."""
        return tuple(
            settings_from(Prompt, {"id": name, **values}, path=f"synthesis.prompts.{name}")
            for name, values in self.prompts.items()
            if values is not None
        )

    @property
    def check_settings(self) -> CheckSettings:
        """What answers are held against."""
        return settings_from(CheckSettings, self.checks, path="synthesis.checks")


@dataclass(frozen=True, slots=True)
class Item:
    """One document wanted: its place in the plan, and what is asked of whom."""

    number: int
    topic_number: int
    topic: Topic
    prompt: Prompt
    teacher: str
    sample: int


class SynthesisPlan:
    """Every document wanted, in order: by topic, prompt, teacher, sample.

    `topics` as from `choose_topics`. `key` names all that decides what is asked and kept, but for the teachers' own
    identity, which their journals record.
    """

    def __init__(self, topics: Sequence[Topic], *, settings: SynthesisSettings, teachers: Sequence[str]) -> None:
        if len(set(teachers)) != len(teachers) or not teachers:
            raise ValueError(f"teachers {list(teachers)}: at least one is needed, each with a name of its own.")
        self.topics, self.settings, self.teachers = topics, settings, tuple(teachers)
        self.prompts, self.checks = settings.prompt_list, settings.check_settings
        self._prompt_sha = {prompt.id: prompt.sha256 for prompt in self.prompts}
        names = hashlib.sha256()
        for topic in topics:
            names.update(json.dumps([topic.surface, topic.kind], ensure_ascii=False).encode())
        plain = json.loads(json.dumps(asdict(settings)))
        self.record: dict[str, Any] = {
            "law": LAW,
            "synthesis": plain,
            "teachers": list(teachers),
            "topics": {"count": len(topics), "sha256": names.hexdigest()},
        }
        self.key = hash_json(self.record)

    def unit(self, topic_number: int, *, teacher: str) -> list[Item]:
        """What `teacher` is to write about one topic, in order; duplicates are looked for among these."""
        topic, items = self.topics[topic_number], []
        teacher_number, samples = self.teachers.index(teacher), self.settings.samples
        for prompt_number, prompt in enumerate(self.prompts):
            if topic.kind in prompt.kinds and teacher in self.assigned(topic, prompt):
                place = (topic_number * len(self.prompts) + prompt_number) * len(self.teachers) + teacher_number
                items += [
                    Item(place * samples + sample, topic_number, topic, prompt, teacher, sample)
                    for sample in range(samples)
                ]
        return items

    def assigned(self, topic: Topic, prompt: Prompt) -> frozenset[str]:
        """The teachers asked about `topic` with `prompt`: all, or those whose hash with the seed is lowest."""
        wanted = self.settings.teachers_per_prompt
        if wanted is None or wanted >= len(self.teachers):
            return frozenset(self.teachers)
        ranked = sorted(self.teachers, key=lambda name: _hash(self.settings.seed, topic.surface, prompt.id, name))
        return frozenset(ranked[:wanted])

    def size(self, teacher: str) -> int:
        """Documents wanted of `teacher`."""
        return sum(len(self.unit(number, teacher=teacher)) for number in range(len(self.topics)))

    def seed(self, item: Item, *, attempt: int) -> int:
        """31 bits that depend on what is asked, not on the item's place in the plan."""
        parts = (self.settings.seed, item.topic.surface, item.prompt.id, item.teacher, item.sample, attempt)
        return _hash(*parts) >> 33

    def request(self, item: Item, *, attempt: int) -> Request:
        """The request of one attempt."""
        messages = item.prompt.messages(item.topic, sample=item.sample)
        return Request(messages, seed=self.seed(item, attempt=attempt), max_tokens=self.settings.max_tokens)

    def judge(self, item: Item, result: Result) -> Rejection | Exercise | str:
        """What is in one result, looked at alone."""
        if not isinstance(result, Answer):
            return Rejection(NO_ANSWER, result.reason)
        return check(
            result.text,
            finish_reason=result.finish_reason,
            topic=item.topic.surface,
            exercise=self.settings.kind == "exercise",
            settings=self.checks,
        )

    def decide(self, items: Sequence[Item], *, judged: Judged) -> tuple[list[Outcome], list[tuple[Item, int]]]:
        """`decide` with this plan's settings."""
        return decide(items, judged=judged, attempts=self.settings.attempts, near=self.checks.near_duplicate)

    def provenance(self, item: Item, *, attempt: int) -> dict[str, Any]:
        """What every row, and so every sentence, carries."""
        return {
            "teacher": item.teacher,
            "prompt": item.prompt.id,
            "prompt_sha256": self._prompt_sha[item.prompt.id],
            "topic": item.topic.surface,
            "topic_kind": item.topic.kind,
            "sample": item.sample,
            "seed": self.seed(item, attempt=attempt),
            "attempt": attempt,
        }

    def id(self, item: Item) -> str:
        """A name that is an item's own within the plan."""
        return f"{self.settings.name}-{item.topic_number:06d}-{item.prompt.id}-{item.teacher}-{item.sample}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One judged attempt at an item: a document (`Exercise` or text), or why it is none."""

    item: Item
    attempt: int
    found: Rejection | Exercise | str


Judged = Callable[[Item, int], Rejection | Exercise | str | None]


def decide(
    items: Sequence[Item], *, judged: Judged, attempts: int, near: float
) -> tuple[list[Outcome], list[tuple[Item, int]]]:
    """The outcomes of a unit so far, in order, and the attempts still needed to go on.

    `judged(item, attempt)` is what was found in that answer, or None if it has not come. A pure function of the
    answers: an item that is not a duplicate by itself waits until all items before it are decided.
    """
    outcomes: list[Outcome] = []
    needed: list[tuple[Item, int]] = []
    earlier = Duplicates(near=near)
    for item in items:
        tried: list[Outcome] = []
        for attempt in range(attempts):
            found = judged(item, attempt)
            if found is None:
                needed.append((item, attempt))
                break
            if not isinstance(found, Rejection):
                if needed:
                    break
                found = earlier.find(compared(found)) or found
            tried.append(Outcome(item, attempt, found))
            if not isinstance(found, Rejection):
                earlier.add(compared(found), name=f"{item.prompt.id}-{item.sample}")
                break
        if not needed:
            outcomes += tried
    return outcomes, needed


def compared(found: Exercise | str) -> str:
    """What of a document is compared with others: of an exercise its question and options."""
    return found if isinstance(found, str) else "\n".join((found.question, *found.options))


def choose_topics(
    entries: Iterable[HasSurface], *, settings: SynthesisSettings, limits: Mapping[str, int | None] | None = None
) -> tuple[list[Topic], Counter[str]]:
    """The topics to write about, in the order of `entries`, and how many were left out for what reason.

    `limits`: the most topics of a kind (R12: 91,000 diseases, 9,000 drugs), the first ones. Raises ValueError if none
    is left.
    """
    asked = {kind for prompt in settings.prompt_list for kind in prompt.kinds}
    left_out: Counter[str] = Counter()
    taken: Counter[str] = Counter()
    topics: dict[str, Topic] = {}
    for entry in entries:
        surface, kind = " ".join(entry.surface.replace(SPACE, " ").split()), entry.kind
        limit = (limits or {}).get(kind)
        if not surface or len(surface) > MAXIMUM_TOPIC_CHARACTERS or not surface.isprintable():
            left_out["empty, too long or unprintable"] += 1
        elif kind not in asked:
            left_out[f"no prompt is for topics of the kind {kind}"] += 1
        elif surface in topics:
            left_out["named twice"] += 1
        elif limit is not None and taken[kind] >= limit:
            left_out[f"beyond topics.limits.{kind}={limit}"] += 1
        else:
            topics[surface] = Topic(surface, kind)
            taken[kind] += 1
    if not topics:
        raise ValueError(
            f"not one topic is left ({dict(left_out) or 'none was given'}); set topics.file to a list of names."
        )
    return list(topics.values()), left_out


def read_topics(path: Path, *, kind: str) -> tuple[list[Topic], list[str]]:
    """Topics of a UTF-8 text file, one name a line (maybe a tab and its kind, else `kind`), or of JSON lines.

    A line that starts with # is left out. JSON lines hold `surface` and maybe `kind`. Lines that cannot be read come
    back as messages with file and line. Raises OSError if there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"topics.file={path} does not exist; name a text file with one topic a line.")
    topics, problems = [], []
    for number, raw in enumerate(path.read_bytes().split(b"\n"), 1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            if not line or line.startswith("#"):
                continue
            if path.suffix == ".jsonl":
                row = json.loads(line)
                surface, own = row["surface"], row.get("kind", kind)
                if not isinstance(surface, str) or not isinstance(own, str):
                    raise ValueError("surface and kind must be texts")
            else:
                surface, _, own = line.partition("\t")
            topics.append(Topic(surface.strip(), own.strip() or kind))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            problems.append(f"{path.name}:{number}: {type(error).__name__}: {error}")
    return topics, problems


def row_of(plan: SynthesisPlan, outcome: Outcome, *, model: Any, version: str) -> dict[str, Any]:
    """The row of a kept document: id, text, kind, where it comes from, and the parts of an exercise.

    `model` is what the teacher's identity names as such.
    """
    found = outcome.found
    assert not isinstance(found, Rejection)
    row = {"id": plan.id(outcome.item), "text": found if isinstance(found, str) else found.text}
    row |= {"kind": plan.settings.kind, **plan.provenance(outcome.item, attempt=outcome.attempt)}
    row |= {"model": model, "created_by": version}
    return row if isinstance(found, str) else {**row, "exercise": found.record}


_SENTENCE = re.compile(r"[^。！？!?\n]*(?:[。！？!?]+[」』）)]*|\n|$)")
PROVENANCE = ("id", "kind", "teacher", "model", "prompt", "prompt_sha256", "topic", "topic_kind", "seed", "created_by")


def sentences(row: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every sentence of a row (to 。！？ or the line's end, never empty) with teacher, prompt, topic and seed."""
    provenance = {name: row[name] for name in PROVENANCE}
    for match in _SENTENCE.finditer(row["text"]):
        if sentence := match[0].strip():
            yield sentence, dict(provenance)


def _hash(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).digest()[:8], "big")
