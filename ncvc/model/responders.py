"""What answers a benchmark's items: a model of ours, any transformers model, or an OpenAI-compatible server.

``open_responder`` opens the one that is named. A model directory, or a Hugging Face directory that ``ncvc.export``
wrote, answers through the engine of generation: prompts of like length in one batch, matrices packed once, closed
answer spaces where asked for. A base model gets the questions as plain text and its first line counts. Other
directories go through transformers (``ncvc.model.transformers_responder``), servers through ``ncvc.teachers.served``.

Costs the weights, and for a batch the cache of its prompts and answers. An item that cannot be asked fails alone.
Does not: sample (all answers are greedy), or call a server outside this network unless that is allowed.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ncvc.constraints import Constraint, option_letters, spans_of
from ncvc.evaluation.answering import (
    DOES_NOT_FIT,
    AnswerSettings,
    Responder,
    answered,
    failed,
    first_line,
    plain_prompt,
    weighed_answers,
)
from ncvc.evaluation.answers import Answer
from ncvc.evaluation.item import Item
from ncvc.model.assistant import Assistant, find_model
from ncvc.model.checkpoint import read_model_record
from ncvc.model.generation import Sampling
from ncvc.model.packed_weights import packed_weights
from ncvc.storage import read_manifest
from ncvc.teachers.served import OpenAICompatibleTeacher
from ncvc.teachers.teacher import Failure, Request, TeacherSettings

_BATCHES_AHEAD = 32  # whose prompts are encoded and sorted by length together
_ITEMS_WEIGHED_TOGETHER = 256
_FAILURES_IN_A_ROW = 32  # of a server, after which it is not asked any more
Keep = Callable[[Answer], None]


class LocalResponder:
    """A model of ours. ``identity`` and ``record`` are what ``model_facts`` says of its directory."""

    def __init__(
        self,
        assistant: Assistant,
        *,
        identity: Mapping[str, Any] | None = None,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        self.assistant, self.name = assistant, assistant.name
        form = {"chat": assistant.can_chat, "dtype": str(assistant.model.embedding.weight.dtype).removeprefix("torch.")}
        self.identity = {**(identity or {}), **form}
        self.record = {"name": self.name, **(record or {}), **form}
        self._letters = functools.lru_cache(maxsize=256)(self._option_letters)

    def check(self, settings: AnswerSettings) -> None:
        """Every setting can be followed."""

    def respond(self, items: Sequence[Item], *, settings: AnswerSettings, keep: Keep) -> None:
        """Answer the items in the order given, many at a time."""
        ahead = settings.batch_size * _BATCHES_AHEAD
        weighed = [item for item in items if settings.weighs(item)]
        written = [item for item in items if not settings.weighs(item)]
        with packed_weights(self.assistant.model):
            for group in _groups(weighed, _ITEMS_WEIGHED_TOGETHER):
                self._weigh(group, settings, keep=keep)
            for start in range(0, len(written), ahead):
                self._write(written[start : start + ahead], settings, keep=keep)

    def prompt_ids(self, item: Item, settings: AnswerSettings, *, reserve: int) -> list[int]:
        """Ids of the item's prompt with room for ``reserve`` tokens; ``ValueError`` where it cannot be asked."""
        assistant = self.assistant
        context, messages = assistant.context_length, settings.messages(item)
        if not 1 <= reserve < context - 2:
            raise ValueError(f"{DOES_NOT_FIT}: {reserve} tokens of answer in a context of {context}")
        arguments: dict[str, Any] = {"max_new_tokens": reserve, "too_long": settings.too_long}
        try:
            if assistant.can_chat:
                return assistant.chat_prompt(messages, **arguments, where="the prompt")
            return assistant.text_prompt(plain_prompt(messages), **arguments)
        except ValueError as error:
            if "context" in str(error):
                raise ValueError(f"{DOES_NOT_FIT}: {error}") from error
            raise

    def _weigh(self, items: Sequence[Item], settings: AnswerSettings, *, keep: Keep) -> None:
        begun, encode = time.monotonic(), self.assistant.tokenizer.encode
        ready: list[tuple[Item, list[int], list[str]]] = []
        for item in items:
            try:
                options = weighed_answers(item)
                ids = [tuple(encode(option)) for option in options]
                if not all(ids) or len(set(ids)) < len(ids):
                    raise ValueError(f"letters that are one once cleaned: {', '.join(item.letters)}")
                ready.append((item, self.prompt_ids(item, settings, reserve=max(map(len, ids)) + 1), options))
            except ValueError as error:
                keep(failed(item, str(error)))
        if not ready:
            return
        asked = [(prompt, options) for _, prompt, options in ready]
        found = self.assistant.log_likelihoods(asked, ends=self.assistant.can_chat)
        seconds = (time.monotonic() - begun) / len(ready)
        for (item, _, options), weights in zip(ready, found, strict=True):
            best = options[max(range(len(weights)), key=weights.__getitem__)]
            keep(answered(item, best, finish_reason="stop", log_likelihoods=tuple(weights), seconds=seconds))

    def _write(self, items: Sequence[Item], settings: AnswerSettings, *, keep: Keep) -> None:
        ready: list[tuple[Item, list[int], Constraint | None, int]] = []
        for item in items:
            try:
                constraint, room = self._constraint(item, settings)
                ready.append((item, self.prompt_ids(item, settings, reserve=room), constraint, room))
            except ValueError as error:
                keep(failed(item, str(error)))
        ready.sort(key=lambda row: (row[0].kind == "spans", -len(row[1])))
        for start in range(0, len(ready), settings.batch_size):
            self._write_batch(ready[start : start + settings.batch_size], keep=keep)

    def _write_batch(self, batch: Sequence[tuple[Item, list[int], Constraint | None, int]], *, keep: Keep) -> None:
        begun, lines = time.monotonic(), [""] * len(batch)
        chat, constrained = self.assistant.can_chat, any(constraint for _, _, constraint, _ in batch)

        def within_a_line(row: int, text: str) -> bool:
            lines[row] += text
            return "\n" not in lines[row].lstrip()

        try:
            completions = self.assistant.generate(
                [prompt for _, prompt, _, _ in batch],
                sampling=[Sampling(room) for _, _, _, room in batch],
                constraints=[constraint for _, _, constraint, _ in batch] if constrained else None,
                on_text=None if chat else within_a_line,
                batch_size=len(batch),
            )
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
            completions = None
        if completions is None:  # outside the except block, which holds the tensors that did not fit
            torch.cuda.empty_cache()
            self._write_batch(batch[: len(batch) // 2], keep=keep)
            self._write_batch(batch[len(batch) // 2 :], keep=keep)
            return
        seconds = (time.monotonic() - begun) / len(batch)
        for (item, _, _, _), completion in zip(batch, completions, strict=True):
            text = completion.text if chat else first_line(completion.text)
            reason = "stop" if completion.finish_reason == "cancelled" else completion.finish_reason
            keep(answered(item, text, finish_reason=reason, seconds=seconds))

    def _constraint(self, item: Item, settings: AnswerSettings) -> tuple[Constraint | None, int]:
        """What closes the answers to an item, if anything, and the tokens that an answer may take."""
        longest = settings.longest(item, context_length=self.assistant.context_length)
        if not settings.constrained or item.kind == "number":
            return None, longest
        tokenizer = self.assistant.tokenizer
        if item.kind == "spans":
            return spans_of(item.passage, tokenizer=tokenizer, max_new_tokens=longest), longest
        weighed_answers(item)  # not too many
        return self._letters(item.letters, item.wanted)

    def _option_letters(self, letters: tuple[str, ...], wanted: int) -> tuple[Constraint, int]:
        tokenizer = self.assistant.tokenizer
        constraint = option_letters(letters, tokenizer=tokenizer, count=wanted)
        return constraint, len(tokenizer.encode(",".join(letters))) + 1


def _groups(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    """Items of one task at a time: they begin alike, and what they share is read once."""
    by_task: dict[str, list[Item]] = {}
    for item in items:
        by_task.setdefault(item.task, []).append(item)
    for task in sorted(by_task):
        group = by_task[task]
        for start in range(0, len(group), size):
            yield group[start : start + size]


class ServerResponder:
    """A model behind an OpenAI-compatible server; ``teacher`` is the group of settings of that name.

    ``OSError`` or ``ValueError`` with the cure when the server is not there, or for what a server cannot do.
    """

    def __init__(self, teacher: Mapping[str, Any]) -> None:
        self.teacher = OpenAICompatibleTeacher(TeacherSettings(**{**teacher, "temperature": 0.0, "top_p": 1.0}))
        self.name = str(self.teacher.model)
        self.identity = {"server": self.teacher.settings.base_url, **self.teacher.identity}
        self.record = {
            "name": self.name,
            "kind": "server",
            "server": self.teacher.settings.base_url,
            "sha256": None,
            "chat": True,
        }

    def check(self, settings: AnswerSettings) -> None:
        """A chat server gives no probabilities, and knows its tokenizer alone."""
        if settings.method != "generation":
            raise ValueError(
                f"method={settings.method} needs the model's probabilities, which a chat server does not give; set "
                "method=generation, or model=FOLDER to open the model here."
            )
        if settings.constrained:
            raise ValueError(
                "constrained=true needs the model itself; set constrained=false for a server, or model=FOLDER to open "
                "the model here."
            )
        if settings.too_long != "refuse":
            raise ValueError(
                "too_long=truncate needs the model's tokenizer; set too_long=refuse for a server: it says itself what "
                "does not fit."
            )

    def respond(self, items: Sequence[Item], *, settings: AnswerSettings, keep: Keep) -> None:
        """Ask the server, several items at a time; ``OSError`` when it fails many times in a row."""
        requests = (
            Request(
                [asdict(message) for message in settings.messages(item)],
                seed=0,
                max_tokens=settings.longest(item, context_length=None),
            )
            for item in items
        )
        in_a_row = 0
        for number, result in self.teacher.answer_as_completed(requests):
            item = items[number]
            if isinstance(result, Failure):
                in_a_row += 1
                keep(failed(item, result.reason))
                if in_a_row >= max(_FAILURES_IN_A_ROW, 2 * self.teacher.settings.concurrency):
                    raise OSError(
                        f"{in_a_row} requests in a row failed at {self.teacher.settings.base_url} (the last: "
                        f"{result.reason}). What was answered is kept; repeat the command when the server is well."
                    )
            else:
                in_a_row = 0
                keep(answered(item, result.text, finish_reason=result.finish_reason, seconds=result.seconds))


def open_responder(
    model: str,
    *,
    home: Path,
    teacher: Mapping[str, Any] | None = None,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int = 32,
    tell: Callable[[str], object] = lambda text: None,
) -> Responder:
    """What answers for ``model``: a model directory, run folder, Hugging Face directory or ``last``.

    With ``teacher`` (settings of a server, see ``TeacherSettings``) it is the server's model. ``ValueError``,
    ``FileNotFoundError`` or ``OSError`` with the cure where it cannot be opened.
    """
    if teacher is not None:
        return ServerResponder(teacher)
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file() and not (folder / "model_config.json").is_file():
        if not _is_export(folder):
            from ncvc.model.transformers_responder import TransformersResponder

            return TransformersResponder(folder, device=device, dtype=dtype, batch_size=batch_size)
        directory, name = _imported(folder, home=home), folder.absolute().name
    else:
        directory, name = find_model(model, home=home), None
    tell(f"model {directory}")
    assistant = Assistant.load(directory, device=device, dtype=dtype)
    assistant.name = name or assistant.name
    if not assistant.can_chat:
        tell(f"{assistant.name} is a base model: it gets the questions as plain text, and its first line counts")
    identity, record = model_facts(directory)
    return LocalResponder(assistant, identity=identity, record=record)


def model_facts(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What decides a model directory's answers, and what is known of the model: hash, size, how it was trained."""
    directory = Path(directory)
    parts = ("manifest.json", "model_config.json", "tokenizer/ncvc_tokenizer.json")
    digest = hashlib.sha256(b"".join((directory / part).read_bytes() for part in parts)).hexdigest()
    files = json.loads((directory / "manifest.json").read_text(encoding="utf-8")).get("files") or {}
    record = read_model_record(directory)
    facts = {
        "kind": "ncvc",
        "directory": str(directory.absolute()),
        "sha256": (files.get("model.safetensors") or {}).get("sha256"),
        "quantization": record.get("quantization"),
        "training": record.get("training") or {},
    }
    return {"directory": digest}, facts


def _is_export(folder: Path) -> bool:
    """Whether ``ncvc.export`` wrote the Hugging Face directory."""
    from ncvc.model.huggingface import MANIFEST

    try:
        read_manifest(folder, manifest_format=MANIFEST, version=None)
    except (FileNotFoundError, ValueError):
        return False
    return True


def _imported(folder: Path, *, home: Path) -> Path:
    """The model directory of an exported one, made once under ``home`` for the same files."""
    from ncvc.model.huggingface import check_sums, import_huggingface

    sums = folder / "SHA256SUMS"
    if sums.is_file():
        check_sums(folder)
    named = sums if sums.is_file() else folder / "manifest.json"
    sizes = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.glob("*.safetensors"))
    digest = hashlib.sha256(named.read_bytes() + (b"" if sums.is_file() else repr(sizes).encode())).hexdigest()
    output = Path(home).expanduser() / "imported" / f"{folder.absolute().name}-{digest[:16]}"
    if not (output / "manifest.json").is_file():
        import_huggingface(folder, output=output)
    return output
