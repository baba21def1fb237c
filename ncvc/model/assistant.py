"""A model directory ready to answer: network, tokenizer and chat template behind one small surface.

``Assistant.load`` opens a directory, ``chat_prompt`` and ``text_prompt`` make ids, ``generate`` answers a list of
prompts in batches of like length and streams whole characters, ``log_likelihoods`` weighs given answers. Terminal,
prompt files and server use nothing else. A base model continues text; only a tuned one chats.

``dtype="auto"`` is float32 on a CPU and bfloat16 on a GPU. One object belongs to one thread. What it does not do:
queue requests, keep a history (``ncvc.terminal_chat``), read prompts from files (``ncvc.prompt_file``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import torch

from ncvc.chat import Message, TooLong, check_turns, encode_prompt, has_chat_tokens
from ncvc.constraints import Constraint
from ncvc.model.checkpoint import is_int8, load_model_directory
from ncvc.model.generation import Generated, Sampling, generate_batch
from ncvc.model.packed_weights import pack_weights
from ncvc.model.scoring import score_options
from ncvc.model.transformer import Transformer
from ncvc.token_text import TextStream
from ncvc.tokenizer import Tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OnText = Callable[[int, str], bool | None]


@dataclass(frozen=True)
class Completion:
    """An answer: its text, its token ids without the end token, and why it ended."""

    text: str
    ids: list[int]
    prompt_tokens: int
    finish_reason: Literal["stop", "length", "cancelled"]


class Assistant:
    """A network and its tokenizer; ``name`` is the run's or the folder's."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, *, name: str) -> None:
        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name

    @classmethod
    def load(cls, directory: Path, *, device: str = "auto", dtype: str = "auto") -> Self:
        """Open a model directory. ``device`` is auto, cpu, cuda or cuda:N; ``dtype`` auto or one of ``DTYPES``.

        ``ValueError`` or ``FileNotFoundError`` naming what does not fit: the folder, its weights, its tokenizer, a
        device that is not there.
        """
        directory = Path(directory)
        if dtype not in ("auto", *DTYPES):
            raise ValueError(f"dtype={dtype!r} is not one of auto, {', '.join(DTYPES)}; set one of these.")
        name = model_name(directory)
        if is_int8(directory):
            if _device("cpu" if device == "auto" else device).type != "cpu" or dtype not in ("auto", "float32"):
                raise ValueError(f"{directory} has int8 weights, which run on a CPU with dtype=auto; set device=cpu.")
            return cls(*load_model_directory(directory), name=name)
        place = _device(device)
        if dtype == "auto":
            dtype = "bfloat16" if place.type == "cuda" else "float32"
        model, tokenizer = load_model_directory(directory, device=str(place))
        model = model.to(DTYPES[dtype])
        pack_weights(model)
        return cls(model, tokenizer, name=name)

    @property
    def context_length(self) -> int:
        """Tokens of prompt and answer together."""
        return self.model.config.context_length

    @property
    def can_chat(self) -> bool:
        """Whether the model knows the roles of a conversation."""
        return has_chat_tokens(self.tokenizer)

    def chat_prompt(
        self, messages: Sequence[Message], *, max_new_tokens: int, too_long: TooLong = "refuse", where: str = "messages"
    ) -> list[int]:
        """Ids that ask for the answer to a conversation, with room for ``max_new_tokens``; see ``encode_prompt``.

        ``ValueError`` for a base model, turns out of order, and a conversation that does not fit.
        """
        self._need_chat()
        self._check_room(max_new_tokens)
        return encode_prompt(
            messages,
            tokenizer=self.tokenizer,
            context_length=self.context_length,
            reserve=max_new_tokens,
            too_long=too_long,
            where=where,
        )

    def text_prompt(self, text: str, *, max_new_tokens: int = 1, too_long: TooLong = "refuse") -> list[int]:
        """Begin-of-text and the ids of ``text``, to be continued; the empty text asks for any text.

        With ``too_long="truncate"`` a text over the context loses its beginning, else it is a ``ValueError``.
        """
        self._check_room(max_new_tokens)
        ids, room = self.tokenizer.encode(text), self.context_length - 1 - max_new_tokens
        if len(ids) > room:
            if too_long == "refuse":
                raise ValueError(
                    f"the text has {len(ids)} tokens, and {room} fit beside max_new_tokens={max_new_tokens} in the "
                    f"context of {self.context_length}; shorten it, or allow too_long=truncate (its beginning goes)."
                )
            ids = ids[len(ids) - room :]
        return [self.tokenizer.begin_id, *ids]

    def without_oldest(self, messages: Sequence[Message], *, max_new_tokens: int) -> list[Message]:
        """The system turn and the newest turns that fit beside an answer; at least the last one, fitting or not."""
        check_turns(messages)
        turns = [len(self.tokenizer.encode(turn.content)) + 1 + (turn.role == "assistant") for turn in messages]
        first = int(messages[0].role == "system")
        room, start = self.context_length - max_new_tokens - 2 - sum(turns[:first]), first
        while sum(turns[start:]) > room and start + 2 < len(messages):
            start += 2
        return [*messages[:first], *messages[start:]]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        sampling: Sampling | Sequence[Sampling],
        constraints: Sequence[Constraint | None] | None = None,
        on_text: OnText | None = None,
        on_completion: Callable[[int, Completion], None] | None = None,
        batch_size: int = 8,
    ) -> list[Completion]:
        """Answers in the order of ``prompts``; those of like length share a batch.

        ``on_text(row, text)`` gets new whole characters of a row as they come (bytes that form none are U+FFFD), and
        ends that row by returning False; the texts of a row joined are its answer's. ``on_completion`` gets each answer
        when its batch is done. One ``sampling`` for all rows, or one for each.
        """
        each = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
        limits: Sequence[Constraint | None] = constraints if constraints is not None else [None] * len(prompts)
        if not len(prompts) == len(each) == len(limits):
            raise ValueError(
                f"{len(prompts)} prompts, {len(each)} samplings and {len(limits)} constraints do not match."
            )
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: set at least 1.")
        order = sorted(range(len(prompts)), key=lambda row: (-len(prompts[row]), row))
        done: dict[int, Completion] = {}
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            streams = {row: TextStream(self.tokenizer) for row in rows}
            answers = generate_batch(
                self.model,
                [prompts[row] for row in rows],
                sampling=[each[row] for row in rows],
                end_id=self.tokenizer.end_id,
                constraints=[limits[row] for row in rows] if constraints is not None else None,
                on_token=None if on_text is None else _teller(rows, streams, on_text),
            )
            for row, answer in zip(rows, answers, strict=True):
                if on_text is not None and (rest := streams[row].end()):
                    on_text(row, rest)
                done[row] = self._completion(answer, prompt_tokens=len(prompts[row]))
                if on_completion is not None:
                    on_completion(row, done[row])
        return [done[row] for row in range(len(prompts))]

    def log_likelihoods(
        self, items: Sequence[tuple[Sequence[int], Sequence[str]]], *, ends: bool = True
    ) -> list[list[float]]:
        """The log-probability, in nats, of each option as the answer to its prompt, for items (prompt ids, options).

        With ``ends`` the end token is part of an answer, as in a chat; without it the text may go on.
        ``ValueError`` for an option that has no token and for what does not fit in the context.
        """
        end = [self.tokenizer.end_id] if ends else []
        encoded = []
        for prompt, options in items:
            answers = [self.tokenizer.encode(option) for option in options]
            if empty := [option for option, ids in zip(options, answers, strict=True) if not ids]:
                raise ValueError(f"the option {empty[0]!r} is empty once it is cleaned; write it anew or leave it out.")
            encoded.append((list(prompt), [[*ids, *end] for ids in answers]))
        return score_options(self.model, encoded)

    def _completion(self, answer: Generated, *, prompt_tokens: int) -> Completion:
        ids = list(answer.ids)
        return Completion(self.tokenizer.decode(ids), ids, prompt_tokens, answer.finish_reason)

    def _need_chat(self) -> None:
        if not self.can_chat:
            raise ValueError(
                f"the model {self.name} is a base model: it continues text and knows no roles. Let it continue text "
                "(raw=true), or tune it on conversations first (python -m ncvc.train experiment=sft_quickstart)."
            )

    def _check_room(self, max_new_tokens: int) -> None:
        if not 1 <= max_new_tokens < self.context_length - 2:
            raise ValueError(
                f"max_new_tokens={max_new_tokens} leaves no room for a prompt in the context of {self.context_length} "
                f"tokens; set 1 to {max(1, self.context_length - 3)}."
            )


def _teller(rows: Sequence[int], streams: dict[int, TextStream], on_text: OnText) -> Callable[[int, int], bool | None]:
    """``on_token`` of a batch that tells ``on_text`` the characters each token completes."""

    def tell(place: int, token: int) -> bool | None:
        text = streams[rows[place]].feed(token)
        return on_text(rows[place], text) if text else None

    return tell


def find_model(model: str, *, home: Path) -> Path:
    """The model directory that ``model`` names: itself, a run's folder, or ``last``, the newest run that has one.

    ``FileNotFoundError`` with the cure when there is none.
    """
    if model == "last":
        runs = [path.parent for path in Path(home).expanduser().glob("runs/*/*/config.yaml")]
        for run in sorted(runs, key=lambda folder: (folder.name, folder), reverse=True):
            if (found := _model_of_run(run)) is not None:
                return found
        raise FileNotFoundError(
            f"model=last: no run under {home}/runs has a model directory. Train one (python -m ncvc.train "
            "experiment=quickstart), or set model=FOLDER to a model directory or a run's folder."
        )
    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"model={model}: there is no such folder; name a model directory, a run's folder, or last."
        )
    if (folder / "model_config.json").is_file():
        return folder
    if (found := _model_of_run(folder)) is not None:
        return found
    if (folder / "checkpoints").is_dir() or (folder / "state.json").is_file() or folder.name.startswith("step="):
        raise FileNotFoundError(
            f"model={model}: these are training checkpoints; make a model directory of them first: "
            f"python -m ncvc.export checkpoint={folder}"
        )
    raise FileNotFoundError(
        f"model={model}: it has no model_config.json and is no run's folder with a model; name the model folder of a "
        "run (.ncvc/runs/<name>/<time>/model), the run's folder, or last."
    )


def _model_of_run(run: Path) -> Path | None:
    """The model directory of a run's folder: ``model``, else the exported one of the latest step."""
    exported = sorted(run.glob("model-step=*/model_config.json"), reverse=True)
    return next((path.parent for path in [run / "model" / "model_config.json", *exported] if path.is_file()), None)


def model_name(directory: Path) -> str:
    """What to call the model of a directory: the run's name where it lies in one, else the folder's."""
    directory = Path(directory).absolute()
    if directory.name == "model" or directory.name.startswith("model-step="):
        run = directory.parent
        return run.parent.name if (run / "config.yaml").is_file() else run.name
    return directory.name


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={device!r} is no device; set auto, cpu, cuda or cuda:N.") from error
    if place.type not in ("cpu", "cuda"):
        raise ValueError(f"device={device!r}: only cpu and cuda are supported; set auto, cpu, cuda or cuda:N.")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device={device!r}: this machine has {torch.cuda.device_count()} CUDA devices; set cpu or auto."
        )
    return place
