"""What ``python -m ncvc.generate`` does with an opened model: one prompt, a file of prompts, or a conversation.

Answers go to standard output or the file of answers, notes and progress to standard error; prompts are written nowhere
else. Ctrl-C ends one answer (what there is of it stays), or a file after the batch that is complete.
"""

from __future__ import annotations

import hashlib
import io
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ncvc.chat import Message
from ncvc.constraints import Constraint, option_letters, spans_of
from ncvc.evaluation.jmed_files import passage_of
from ncvc.generation_settings import GenerateSettings
from ncvc.model.assistant import Assistant, Completion
from ncvc.model.generation import Sampling
from ncvc.prompt_file import AnswerFile, PromptRow, answers_path, read_prompts
from ncvc.randomness import mix
from ncvc.resuming import RunStopped
from ncvc.terminal_chat import TerminalChat, interruptible, show, tell

_LONGEST_ANSWER = 256  # tokens, where no other number is set
_BATCHES_AHEAD = 32  # whose prompts are encoded and sorted by length together
_SECONDS_BETWEEN_NOTES = 5.0


def answer_room(assistant: Assistant, settings: GenerateSettings) -> int:
    """New tokens of an answer, at most, all of which the context must hold beside the prompt."""
    encode = assistant.tokenizer.encode
    if settings.options is not None:
        return max(len(encode(option)) for option in settings.options) + 1
    if settings.choose is not None:
        return len(encode(",".join(settings.choose))) + 1
    return settings.max_new_tokens or min(_LONGEST_ANSWER, assistant.context_length // 2)


def sampling_of(assistant: Assistant, settings: GenerateSettings, *, row: int = 0) -> Sampling:
    """How to write an answer; a file's rows draw from seeds of their own, so their batch does not matter."""
    return Sampling(
        answer_room(assistant, settings),
        temperature=settings.temperature,
        top_p=settings.top_p,
        repetition_penalty=settings.repetition_penalty,
        seed=mix(settings.seed, row) if row else settings.seed,
    )


def prompt_ids(assistant: Assistant, row: PromptRow, settings: GenerateSettings) -> list[int]:
    """Ids of the row's prompt with room for the answer; ``ValueError`` where it cannot be asked."""
    room, too_long = answer_room(assistant, settings), settings.too_long
    if settings.raw:
        return assistant.text_prompt(row.text, max_new_tokens=room, too_long=too_long)
    return assistant.chat_prompt(row.messages, max_new_tokens=room, too_long=too_long, where="the prompt")


def letters_of(assistant: Assistant, settings: GenerateSettings) -> Constraint | None:
    """The letters that ``choose`` asks for, the same for every prompt, or None."""
    if settings.choose is None:
        return None
    return option_letters(settings.choose, tokenizer=assistant.tokenizer, count=settings.choose_count)


def spans_for(assistant: Assistant, row: PromptRow, settings: GenerateSettings) -> Constraint | None:
    """The lists of spans that ``spans`` asks for, or None; ``ValueError`` for a passage without text."""
    if not settings.spans:
        return None
    question = row.messages[-1].content if row.messages else row.text
    passage = row.passage or passage_of(question) or question
    return spans_of(passage, tokenizer=assistant.tokenizer, max_new_tokens=answer_room(assistant, settings))


# ---- one prompt ----------------------------------------------------------------------------------------------------


def answer_prompt(
    assistant: Assistant, settings: GenerateSettings, *, write: Callable[[str], None] = show
) -> Completion | list[float]:
    """Answer ``settings.prompt`` on standard output as it comes, or weigh ``settings.options``; returns the result."""
    row = _single_row(settings)
    ids = prompt_ids(assistant, row, settings)
    if settings.options is not None:
        [scores] = assistant.log_likelihoods([(ids, settings.options)], ends=not settings.raw)
        write(score_table(settings.options, scores))
        return scores
    with interruptible() as interrupt:

        def on_text(_: int, text: str) -> bool:
            write(text)
            return not interrupt.seen

        [answer] = assistant.generate(
            [ids],
            sampling=sampling_of(assistant, settings),
            constraints=[letters_of(assistant, settings) or spans_for(assistant, row, settings)],
            on_text=on_text,
        )
    write("\n")
    if answer.finish_reason != "stop":
        tell("note: stopped." if answer.finish_reason == "cancelled" else "note: cut at max_new_tokens.")
    return answer


def _single_row(settings: GenerateSettings) -> PromptRow:
    text = settings.prompt or ""
    if settings.raw:
        return PromptRow(line=1, text=text)
    system = [Message("system", settings.system)] if settings.system is not None else []
    return PromptRow(line=1, messages=(*system, Message("user", text)))


def score_table(options: tuple[str, ...], scores: list[float]) -> str:
    """Log-probabilities in nats, one option a line, the likeliest marked."""
    best = max(range(len(scores)), key=scores.__getitem__)
    lines = [
        f"{'*' if place == best else ' '} {score:10.4f}  {option}"
        for place, (option, score) in enumerate(zip(options, scores, strict=True))
    ]
    return "\n".join(lines) + "\n"


# ---- a file of prompts ---------------------------------------------------------------------------------------------


def answer_file(assistant: Assistant, settings: GenerateSettings, *, directory: Path) -> Path:
    """Answer every row of ``settings.file`` that has no answer yet; returns the file of answers.

    Bad rows are told by line and left out, the rest is answered; then ``RunStopped`` with exit code 1. ``directory`` is
    the model's.
    """
    source = Path(settings.file or "").expanduser()
    output = Path(settings.output).expanduser() if settings.output else answers_path(source)
    rows, problems = read_prompts(source, raw=settings.raw, system=settings.system)
    if output.exists() and output.samefile(source):
        raise ValueError(f"output={output} is the file of prompts itself; set another output.")
    identity = {**settings.identity, "model": model_identity(directory)}
    with AnswerFile(output, rows=rows, identity=identity) as answers:
        waiting = [row for row in rows if row.line not in answers.done]
        if len(waiting) < len(rows):
            tell(f"note: {len(rows) - len(waiting):,} of {len(rows):,} prompts are answered already; going on.")
        try:
            for line, message in _answer_rows(assistant, waiting, settings, answers=answers):
                problems[line] = message
        except KeyboardInterrupt:
            done = f"{len(answers.done):,} of {len(rows):,} prompts are answered in {output}"
            raise RunStopped(f"stopped: {done}. Repeat the command to go on.", exit_code=130) from None
        answers.sort()
    for line, message in sorted(problems.items()):
        tell(f"{source.name} line {line}: {message}")
    tell(f"{len(answers.done):,} answers in {output}")
    if problems:
        message = f"{len(problems):,} prompts of {source} have no answer (see above); {output} has the rest."
        raise RunStopped(message, exit_code=1)
    return output


def _answer_rows(
    assistant: Assistant, rows: list[PromptRow], settings: GenerateSettings, *, answers: AnswerFile
) -> Iterator[tuple[int, str]]:
    """Write the rows' answers; yields line and message of those that cannot be asked."""
    progress, letters = _Progress(len(rows)), letters_of(assistant, settings)
    ahead = settings.batch_size * _BATCHES_AHEAD
    for start in range(0, len(rows), ahead):
        asked: list[tuple[PromptRow, list[int], Constraint | None]] = []
        for row in rows[start : start + ahead]:
            try:
                asked.append(
                    (row, prompt_ids(assistant, row, settings), letters or spans_for(assistant, row, settings))
                )
            except ValueError as error:
                progress.add()
                yield row.line, str(error)
        if settings.options is not None:
            items = [(ids, settings.options) for _, ids, _ in asked]
            for (row, _, _), scores in zip(asked, assistant.log_likelihoods(items, ends=not settings.raw), strict=True):
                answers.write(row.line, _weighed(settings.options, scores))
                progress.add()
            continue

        def keep(place: int, answer: Completion, asked: list[Any] = asked) -> None:
            answers.write(asked[place][0].line, _written(answer))
            progress.add(len(answer.ids))

        assistant.generate(
            [ids for _, ids, _ in asked],
            sampling=[sampling_of(assistant, settings, row=row.line) for row, _, _ in asked],
            constraints=[constraint for _, _, constraint in asked],
            on_completion=keep,
            batch_size=settings.batch_size,
        )


def _written(answer: Completion) -> dict[str, Any]:
    return {
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": len(answer.ids),
    }


def _weighed(options: tuple[str, ...], scores: list[float]) -> dict[str, Any]:
    best = options[max(range(len(scores)), key=scores.__getitem__)]
    return {"text": best, "log_likelihoods": dict(zip(options, scores, strict=True))}


def model_identity(directory: Path) -> str:
    """sha256 of a model directory's manifest (which has that of the weights) and of its tokenizer's metadata."""
    parts = [
        directory / "manifest.json",
        directory / "model_config.json",
        directory / "tokenizer" / "ncvc_tokenizer.json",
    ]
    return hashlib.sha256(b"".join(path.read_bytes() for path in parts)).hexdigest()


class _Progress:
    """Rows done, tokens a second and the time that is left, every few seconds on standard error."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.tokens = total, 0, 0
        self.started = self.told = time.monotonic()

    def add(self, tokens: int = 0) -> None:
        self.done, self.tokens, now = self.done + 1, self.tokens + tokens, time.monotonic()
        if now - self.told < _SECONDS_BETWEEN_NOTES:
            return
        self.told, passed = now, now - self.started
        left = passed / self.done * (self.total - self.done)
        tell(
            f"{self.done:,}/{self.total:,} prompts, {self.tokens / passed:,.0f} tokens/s, about {_duration(left)} left"
        )


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"


# ---- a conversation ------------------------------------------------------------------------------------------------


def chat(assistant: Assistant, settings: GenerateSettings) -> TerminalChat:
    """Talk in the terminal until the user ends it; returns the conversation."""
    room = answer_room(assistant, settings)
    assistant.chat_prompt([Message("user", "a")], max_new_tokens=room)  # a base model is told before the first line
    seeds = iter(range(1 << 62))

    def answer(messages: list[Message], on_text: Callable[[str], bool]) -> tuple[str, str]:
        ids = assistant.chat_prompt(messages, max_new_tokens=room, too_long="truncate")
        sampling = replace(sampling_of(assistant, settings), seed=mix(settings.seed, next(seeds)))
        [completion] = assistant.generate([ids], sampling=sampling, on_text=lambda _, text: on_text(text))
        return completion.text, completion.finish_reason

    conversation = TerminalChat(
        answer=answer,
        fitting=lambda messages: assistant.without_oldest(messages, max_new_tokens=room),
        cleaned=assistant.tokenizer.cleaner,
        system=settings.system,
    )
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # bytes that are no text are not the end of a conversation
    if sys.stdin.isatty():
        tell(f"{assistant.name}: a conversation of up to {assistant.context_length} tokens. /help tells the commands.")
    conversation.run()
    return conversation
