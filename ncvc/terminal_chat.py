"""A conversation in the terminal: history, commands, an answer that appears as it is written and can be stopped.

Knows nothing of models: it is given functions that answer, that tell which turns still fit, and that clean a text.
When the context is full the oldest turns are left out of what the model reads, with a note; they stay in the history
and in what ``/save`` writes. Typed lines can be called back with the arrow keys and are never written to disk. With
input from a pipe each line is a turn, answers go to standard output, notes to standard error.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from ncvc.chat import Message

HELP = """/system TEXT  set the system turn (without text: remove it)
/reset        forget the conversation, keep the system turn
/save FILE    write the conversation as a line of JSON ({"messages": [...]}), as training reads it
/quit         end; so do Ctrl-D, and Ctrl-C at the prompt. Ctrl-C during an answer stops the answer
//TEXT        say TEXT with a slash in front"""

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass
class Interrupt:
    """Whether Ctrl-C was pressed."""

    seen: bool = False


@contextlib.contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Ctrl-C is noted instead of raised; a second one is raised. Outside the main thread nothing changes."""
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def note(number: int, frame: FrameType | None) -> None:
        if interrupt.seen:
            raise KeyboardInterrupt
        interrupt.seen = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)


def typed_line() -> str | None:
    """The next line from standard input, or None at its end; a terminal shows ``> `` and can be edited."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.rstrip("\r\n") if line else None
    with contextlib.suppress(ImportError):  # not built into every Python; without it the arrow keys do nothing
        importlib.import_module("readline")
    try:
        return input("> ")
    except (EOFError, KeyboardInterrupt):
        print()
        return None


def for_terminal(text: str) -> str:
    """``text`` with U+FFFD for control characters: bytes of a model must not steer a terminal."""
    return _CONTROLS.sub("\ufffd", text)


def show(text: str) -> None:
    """Write to standard output at once; without control characters where that is a terminal."""
    sys.stdout.write(for_terminal(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def tell(note: str) -> None:
    """A note about the conversation, on standard error."""
    print(note, file=sys.stderr, flush=True)


@dataclass(kw_only=True)
class TerminalChat:
    """One conversation. ``run`` returns when the user ends it.

    ``answer(messages, on_text)`` gives the answer's text and why it ended (stop, length, cancelled); ``on_text``
    returns False to end it. ``fitting(messages)`` gives the turns that the model can still read. Both may raise
    ``ValueError`` with what the user should know. ``cleaned`` is the tokenizer's cleaning.
    """

    answer: Callable[[list[Message], Callable[[str], bool]], tuple[str, str]]
    fitting: Callable[[list[Message]], list[Message]]
    cleaned: Callable[[str], str]
    system: str | None = None
    read: Callable[[], str | None] = typed_line
    write: Callable[[str], None] = show
    note: Callable[[str], None] = tell
    turns: list[Message] = field(default_factory=list)
    _saved: set[Path] = field(default_factory=set)
    _left_out: int = 0

    @property
    def messages(self) -> list[Message]:
        """The conversation up to now."""
        return [*([Message("system", self.system)] if self.system is not None else []), *self.turns]

    def run(self) -> None:
        """Take lines until the input ends or /quit."""
        while (line := self.read()) is not None:
            line = line.strip()
            if line == "/quit":
                return
            if line.startswith("/") and not line.startswith("//"):
                self._command(line)
            elif line:
                self._say(line[1:] if line.startswith("//") else line)

    def _command(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if name == "/system":
            if rest and not self.cleaned(rest):
                self.note("note: nothing is left of that system turn once it is cleaned; it stays as it was.")
                return
            self.system = rest or None
            self.note(f"note: the system turn is {'set' if rest else 'removed'}.")
        elif name == "/reset" and not rest:
            self.turns, self._left_out = [], 0
            self.note("note: the conversation begins anew.")
        elif name == "/save" and rest:
            self._save(Path(rest).expanduser())
        else:
            self.note(HELP if line == "/help" else f"note: {line} is no command. There are:\n{HELP}")

    def _say(self, text: str) -> None:
        """Ask, show the answer while it comes, and keep both; a turn without an answer is taken back."""
        self.turns.append(Message("user", text))
        try:
            reply, reason = self._answered()
        except ValueError as error:
            self.turns.pop()
            self.note(f"note: {error}")
            return
        except KeyboardInterrupt:
            self.turns.pop()
            self.write("\n")
            self.note("note: stopped at once; your turn is taken back.")
            return
        self.write("\n")
        if not self.cleaned(reply):
            self.turns.pop()
            self.note("note: there was no answer; your turn is taken back.")
            return
        self.turns.append(Message("assistant", reply))
        if reason != "stop":
            why = "stopped" if reason == "cancelled" else "cut at max_new_tokens"
            self.note(f"note: {why}; what there is of the answer belongs to the conversation.")

    def _answered(self) -> tuple[str, str]:
        readable = self.fitting(self.messages)
        left_out = len(self.messages) - len(readable)
        if left_out > self._left_out:
            self.note(f"note: the context is full, so the model does not read the oldest {left_out} turns any more.")
        self._left_out = left_out
        with interruptible() as interrupt:

            def on_text(text: str) -> bool:
                self.write(text)
                return not interrupt.seen

            return self.answer(readable, on_text)

    def _save(self, path: Path) -> None:
        if not self.turns:
            self.note("note: there is nothing to save yet.")
            return
        record = {"messages": [{"role": turn.role, "content": turn.content} for turn in self.messages]}
        line = json.dumps(record, ensure_ascii=False).encode("utf-8", errors="replace") + b"\n"
        try:
            with path.open("wb" if path.absolute() in self._saved else "xb") as handle:
                handle.write(line)
        except FileExistsError:
            self.note(f"note: {path} exists and is left alone; name another file.")
        except OSError as error:
            self.note(f"note: {path} cannot be written ({error.strerror}); name another file.")
        else:
            self._saved.add(path.absolute())
            self.note(f"note: saved to {path}.")
