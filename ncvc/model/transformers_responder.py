"""A transformers model on disk that answers a benchmark's items: any causal language model with a tokenizer.

Conversations go through the tokenizer's chat template; a tokenizer without one is a base model's, which gets plain text
and whose first line counts. Writing is ``ncvc.teachers.in_process``'s, in batches with left padding; weighing is one
pass an item, an option a row. Only files on disk are read, and no code of the model's repository is run. Does not:
close the answer space (``constrained``), or cut prompts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ncvc.evaluation.answering import (
    DOES_NOT_FIT,
    AnswerSettings,
    answered,
    failed,
    first_line,
    plain_prompt,
    weighed_answers,
)
from ncvc.evaluation.answers import Answer
from ncvc.evaluation.item import Item
from ncvc.storage import hash_json
from ncvc.teachers.in_process import TransformersTeacher
from ncvc.teachers.teacher import Failure, Request, TeacherSettings

_PLAIN = {"system": "{content}", "user": "{content}", "assistant": "{content}"}


class TransformersResponder:
    """The model in ``directory``; ``ValueError`` or ``OSError`` with the cure when transformers cannot open it."""

    def __init__(self, directory: Path, *, device: str = "auto", dtype: str = "auto", batch_size: int = 32) -> None:
        self.name = Path(directory).absolute().name
        self.chat = _has_chat_template(directory)
        self.teacher = TransformersTeacher(
            TeacherSettings(
                name="model",
                backend="transformers",
                model=self.name,
                directory=str(directory),
                chat_format=None if self.chat else _PLAIN,
                temperature=0.0,
                device=device,
                dtype=dtype,
                batch_size=batch_size,
            )
        )
        self.tokenizer, self.model = self.teacher.tokenizer, self.teacher.model
        self.context = getattr(self.model.config, "max_position_embeddings", None)
        self.identity = {**self.teacher.identity, "dtype": str(self.model.dtype).removeprefix("torch.")}
        self.record = {
            "name": self.name,
            "kind": "huggingface",
            "directory": str(Path(directory).absolute()),
            "sha256": hash_json(self.teacher.identity["files"]),
            "chat": self.chat,
            "dtype": self.identity["dtype"],
            "training": {},
        }

    def check(self, settings: AnswerSettings) -> None:
        """Closed answer spaces and cut prompts are for models of ncvc."""
        for name, wanted in (("constrained", False), ("too_long", "refuse")):
            if (value := getattr(settings, name)) != wanted:
                raise ValueError(
                    f"{name}={str(value).lower()} is for models of ncvc, and {self.name} is another's; set "
                    f"{name}={str(wanted).lower()} (method=log_likelihood chooses among the letters with any model)."
                )

    def respond(self, items: Sequence[Item], *, settings: AnswerSettings, keep: Callable[[Answer], None]) -> None:
        """Answer the items in the order given."""
        for item in items:
            if settings.weighs(item):
                self._weigh(item, settings, keep=keep)
        written = [item for item in items if not settings.weighs(item)]
        requests = (
            Request(self._turns(item, settings), seed=0, max_tokens=settings.longest(item, context_length=self.context))
            for item in written
        )
        for number, result in self.teacher.answer_as_completed(requests):
            if isinstance(result, Failure):
                fits = "exceed the context" not in result.reason
                keep(failed(written[number], result.reason if fits else f"{DOES_NOT_FIT}: {result.reason}"))
                continue
            text = result.text if self.chat else first_line(result.text)
            keep(answered(written[number], text, finish_reason=result.finish_reason, seconds=result.seconds))

    def _turns(self, item: Item, settings: AnswerSettings) -> list[dict[str, str]]:
        messages = settings.messages(item)
        if self.chat:
            return [asdict(message) for message in messages]
        return [{"role": "user", "content": plain_prompt(messages)}]

    def _weigh(self, item: Item, settings: AnswerSettings, *, keep: Callable[[Answer], None]) -> None:
        begun = time.monotonic()
        try:
            options = weighed_answers(item)
            weights = self.log_likelihoods(self._turns(item, settings), options)
        except ValueError as error:
            keep(failed(item, str(error)))
            return
        best = options[max(range(len(weights)), key=weights.__getitem__)]
        seconds = time.monotonic() - begun
        keep(answered(item, best, finish_reason="stop", log_likelihoods=tuple(weights), seconds=seconds))

    @torch.inference_mode()
    def log_likelihoods(self, turns: Sequence[dict[str, str]], options: Sequence[str]) -> list[float]:
        """Log-probability in nats of each option as the answer, of a chat with the token that ends it."""
        prompt = self._prompt_ids(turns)
        end = [self.tokenizer.eos_token_id] if self.chat and self.tokenizer.eos_token_id is not None else []
        answers = [[*self.tokenizer(option, add_special_tokens=False)["input_ids"], *end] for option in options]
        longest = max(map(len, answers))
        if min(map(len, answers)) == len(end):
            raise ValueError("an option has no token in this model's vocabulary")
        if self.context is not None and len(prompt) + longest - 1 > self.context:
            raise ValueError(f"{DOES_NOT_FIT}: {len(prompt)} tokens of prompt in a context of {self.context}")
        rows = [[*prompt, *ids, *[0] * (longest - len(ids))] for ids in answers]
        device = self.model.device
        logits = self.model(torch.tensor(rows, device=device), logits_to_keep=longest + 1).logits[:, :-1].float()
        if not torch.isfinite(logits).all():
            raise ValueError("the network's logits are not finite; load it with dtype=float32")
        chosen = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in answers], device=device)  # [N, T]
        found = logits.log_softmax(dim=-1).gather(2, chosen.unsqueeze(2)).squeeze(2)  # [N, T]
        return [float(row[: len(ids)].double().sum()) for row, ids in zip(found, answers, strict=True)]

    def _prompt_ids(self, turns: Sequence[dict[str, str]]) -> list[int]:
        from jinja2.exceptions import TemplateError

        if not self.chat:
            ids: list[int] = self.tokenizer(turns[0]["content"])["input_ids"]
        else:
            try:
                text = self.tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=True)
            except TemplateError as error:
                raise ValueError(f"the chat template refuses the messages: {error}") from error
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise ValueError("the prompt has no tokens")
        return ids


def _has_chat_template(directory: Path) -> bool:
    """Whether the tokenizer of a model on disk brings a chat template."""
    try:
        from transformers import AutoTokenizer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{directory} needs the package transformers; run pip install 'transformers>=5.0,<6'", name=error.name
        ) from error
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise ValueError(f"model={directory}: transformers cannot open its tokenizer ({first}).") from error
    return bool(tokenizer.chat_template)
