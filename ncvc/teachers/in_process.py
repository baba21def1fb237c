"""A teacher in this process: a transformers model directory on disk, and `open_teacher`, which opens any teacher.

What it does: writes the prompt by the configured chat format or the tokenizer's chat template, generates in batches
with left padding, and samples each row with its own generator seeded by its request: what a request is answered does
not depend on the others in its batch, up to the rounding of the arithmetic. Only files on disk are read and no code
from the model's repository is run (transformers refuses such models by name).

What it costs: the weights in memory; a batch ends with its longest answer. A batch that does not fit into GPU memory is
halved. What it does not do: several GPUs, quantisation; serve the model for that.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ncvc.storage import edges_sha256
from ncvc.teachers.served import OpenAICompatibleTeacher
from ncvc.teachers.teacher import Answer, Failure, Request, Result, ScriptedTeacher, Teacher, TeacherSettings, in_order


def open_teacher(settings: TeacherSettings) -> Teacher:
    """The teacher that `settings` describes. Raises OSError or ValueError with the cure if it cannot be opened."""
    if settings.backend == "openai_compatible":
        return OpenAICompatibleTeacher(settings)
    if settings.backend == "scripted":
        return ScriptedTeacher(str(settings.answers), name=settings.name)
    return TransformersTeacher(settings)


class TransformersTeacher:
    """Generates with the causal language model in `settings.directory`.

    Raises OSError or ValueError with the cure when the directory holds no such model, needs code of its own, or has no
    chat template while no chat format is set; ModuleNotFoundError without transformers.
    """

    def __init__(self, settings: TeacherSettings) -> None:
        self.settings = settings
        self.name = settings.name
        directory = Path(str(settings.directory)).expanduser()
        self.device = torch.device(_device(settings.device))
        self.tokenizer, self.model = _load(directory, dtype=settings.dtype)
        self.model.to(self.device).eval()
        if settings.format is None and not self.tokenizer.chat_template:
            raise ValueError(
                f"teacher.directory={directory}: its tokenizer has no chat template; set teacher.chat_format."
            )
        self._ends = _end_tokens(self.tokenizer, self.model)
        self._context = getattr(self.model.config, "max_position_embeddings", None)
        self.identity = {
            **settings.identity,
            "model": settings.model or directory.resolve().name,
            "files": _files(directory),
        }

    def answer(self, requests: Iterable[Request]) -> Iterator[Result]:
        """One result per request, in order, `batch_size` of them at a time."""
        return in_order(self.answer_as_completed(requests))

    def answer_as_completed(self, requests: Iterable[Request]) -> Iterator[tuple[int, Result]]:
        """The same results with the numbers of their requests."""
        numbered = enumerate(requests)
        while batch := list(islice(numbered, self.settings.batch_size)):
            ready: list[tuple[int, Request, list[int]]] = []
            for number, request in batch:
                try:
                    ready.append((number, request, self._prompt(request)))
                except ValueError as error:
                    yield number, Failure(str(error))
            yield from self._generate(ready)

    def _prompt(self, request: Request) -> list[int]:
        """Token ids of the prompt. Raises ValueError if it cannot be written or leaves no room for the answer."""
        from jinja2.exceptions import TemplateError

        messages = self.settings.complete(request.messages)
        try:
            if self.settings.format is not None:
                ids = self.tokenizer(self.settings.format.render(messages))["input_ids"]
            else:
                text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
                ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        except TemplateError as error:
            raise ValueError(f"the chat template refuses the messages: {error}") from error
        if not ids:
            raise ValueError("the prompt has no tokens")
        if self._context is not None and len(ids) + request.max_tokens > self._context:
            raise ValueError(
                f"{len(ids)} tokens of prompt and max_tokens={request.max_tokens} exceed the context of {self._context}"
            )
        return list(ids)

    def _generate(self, batch: list[tuple[int, Request, list[int]]]) -> Iterator[tuple[int, Result]]:
        if not batch:
            return
        try:
            begun = time.monotonic()
            generated = self._sample([ids for _, _, ids in batch], [request for _, request, _ in batch])
            seconds = (time.monotonic() - begun) / len(batch)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                yield batch[0][0], Failure(f"out of memory: {str(error).splitlines()[0]}")
                return
            generated = None
        if generated is None:  # outside the except block, which holds the tensors that did not fit
            torch.cuda.empty_cache()
            yield from self._generate(batch[: len(batch) // 2])
            yield from self._generate(batch[len(batch) // 2 :])
            return
        for (number, request, _), ids in zip(batch, generated, strict=True):
            yield number, self._answer(ids[: request.max_tokens], seconds=seconds)

    @torch.inference_mode()
    def _sample(self, prompts: list[list[int]], requests: list[Request]) -> list[list[int]]:
        """Generated ids of each prompt, up to the longest max_tokens of the batch, padding included."""
        longest = max(map(len, prompts))
        padding = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else min(self._ends, default=0)
        ids = torch.tensor([[padding] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        output = self.model.generate(  # [prompts, longest + generated]
            input_ids=ids.to(self.device),
            attention_mask=mask.to(self.device),
            max_new_tokens=max(request.max_tokens for request in requests),
            do_sample=False,  # the processor has drawn already: its largest entry is the sample
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=padding,
            eos_token_id=sorted(self._ends) or None,
            logits_processor=[_SeededSampling(requests, self.settings, device=self.device)],
        )
        return output[:, longest:].tolist()

    def _answer(self, ids: list[int], *, seconds: float) -> Answer:
        end = next((place for place, token in enumerate(ids) if token in self._ends), None)
        text = self.tokenizer.decode(ids[:end], skip_special_tokens=True)
        cut = False
        if self.settings.format is not None:
            raw, cut = self.settings.format.cut(self.tokenizer.decode(ids[:end], skip_special_tokens=False))
            text = raw if cut else text
        tokens = len(ids) if end is None else end + 1
        return Answer(text.strip(), "length" if end is None and not cut else "stop", tokens, seconds)


class _SeededSampling:
    """Draws each row's next token with the row's own generator: the largest of (log-probability + Gumbel noise).

    That maximum is distributed as the softmax at the request's temperature over the top_p nucleus; temperature 0 adds
    no noise and is greedy.
    """

    def __init__(self, requests: list[Request], settings: TeacherSettings, *, device: torch.device) -> None:
        self.top_p = settings.top_p
        self.temperatures = [
            settings.temperature if request.temperature is None else request.temperature for request in requests
        ]
        self.generators = [torch.Generator(device).manual_seed(request.seed) for request in requests]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [rows, vocabulary] whose largest entry per row is the drawn token."""
        return torch.stack([self._row(row, scores[row].float()) for row in range(len(scores))])

    def _row(self, row: int, scores: torch.Tensor) -> torch.Tensor:
        if self.temperatures[row] == 0:
            return scores
        log_probabilities = torch.log_softmax(scores / self.temperatures[row], dim=-1)
        if self.top_p < 1:
            ordered, places = log_probabilities.sort(descending=True)
            before = ordered.exp().cumsum(0) - ordered.exp()  # the most probable token always stays
            log_probabilities[places[before >= self.top_p]] = -torch.inf
        uniform = torch.rand(scores.shape, generator=self.generators[row], device=scores.device, dtype=torch.float64)
        noise = -torch.log(-torch.log(uniform.clamp(min=1e-300, max=1 - 1e-16)))
        return (log_probabilities.double() + noise).float()


def _device(chosen: str) -> str:
    if chosen != "auto":
        try:
            torch.zeros(1, device=chosen)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"teacher.device={chosen}: cannot be used here ({str(error).splitlines()[0]}).") from error
        return chosen
    return "cuda" if torch.cuda.is_available() else "cpu"


def _load(directory: Path, *, dtype: str) -> tuple[Any, Any]:
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "teacher.backend=transformers needs the package transformers; run pip install 'transformers>=5.0,<6'",
            name=error.name,
        ) from error
    if not (directory / "config.json").is_file():
        raise FileNotFoundError(
            f"teacher.directory={directory}: holds no config.json; set the folder of a downloaded model."
        )
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ValueError(f"teacher.dtype={dtype!r}: must be auto, float32, bfloat16 or float16.")
    chosen = dtype if dtype == "auto" else getattr(torch, dtype)
    kept: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, **kept)
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=chosen, **kept)
    except (OSError, ValueError, KeyError, json.JSONDecodeError, RuntimeError) as error:
        raise ValueError(
            f"teacher.directory={directory}: transformers cannot load it ({type(error).__name__}: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'}). Set the folder of a "
            "causal language model that transformers knows; a model with code of its own is served, not loaded: "
            "teacher.backend=openai_compatible."
        ) from error
    return tokenizer, model


def _end_tokens(tokenizer: Any, model: Any) -> set[int]:
    """Every token that ends an answer: the tokenizer's, and those of the model's generation settings."""
    listed = getattr(model.generation_config, "eos_token_id", None)
    ends = set(listed) if isinstance(listed, list | tuple) else {listed}
    return {token for token in (*ends, tokenizer.eos_token_id) if token is not None}


def _files(directory: Path) -> dict[str, Any]:
    """Size and sha256 of the first and last MiB of every file of the model: its identity without reading it whole."""
    kinds = {".json", ".safetensors", ".bin", ".model", ".jinja", ".txt"}
    paths = sorted(path for path in directory.iterdir() if path.suffix in kinds and path.is_file())
    return {path.name: [path.stat().st_size, edges_sha256(path)] for path in paths}
