"""The one thread that owns the model, and the queue in front of it.

Requests that wait together are answered together, in one batch with settings of their own; what each gets does not
depend on its neighbours. A batch takes no newcomers while it runs, so a request waits at most for the batch before it
and for those ahead in the queue. The queue has a fixed number of places; who finds none is told so at once.

Text reaches a request through its ``deliver``, called in this thread. A row ends on its own: its end is told one step
later at most, whatever its neighbours still have to say; a row whose client has gone, whose stop string came or whose
time is over ends at its next token. A batch that fails is answered again row by row where nothing was
delivered yet, so one bad row does not take its neighbours along.
"""

import collections
import contextlib
import math
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ncvc.model.assistant import Assistant
from ncvc.model.generation import Sampling, generate_batch
from ncvc.serving.answers import StopMatcher
from ncvc.serving.protocol import Refusal
from ncvc.serving.settings import ServerSettings
from ncvc.token_text import TextStream
from ncvc.tokenizer import Tokenizer


@dataclass(frozen=True)
class Text:
    """A piece of an answer."""

    text: str


@dataclass(frozen=True)
class Done:
    """The end of an answer: ``stop`` (ended by itself or at a stop string) or ``length`` (of tokens or of time)."""

    finish_reason: str
    completion_tokens: int


Event = Text | Done | Refusal


class Deliver(Protocol):
    """Takes the events of one request, in the worker's thread; must neither block nor raise."""

    def __call__(self, event: Event) -> None: ...


class Place:
    """A place among the requests that are admitted, given back once."""

    def __init__(self, leave: Callable[[], None]) -> None:
        self._leave: Callable[[], None] | None = leave

    def give_back(self) -> None:
        """Free the place; a second call does nothing."""
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()


class Job:
    """One admitted request on its way through the worker."""

    def __init__(
        self,
        prompt: Sequence[int],
        *,
        sampling: Sampling,
        stops: Sequence[str],
        deadline: float,
        place: Place,
        deliver: Deliver,
    ) -> None:
        self.prompt, self.sampling, self.deadline = list(prompt), sampling, deadline
        self._place, self._deliver, self._stops = place, deliver, tuple(stops)
        self._refusal: Refusal | None = None
        self.gone = self.finished = self.delivered = False

    def cancel(self, refusal: Refusal | None = None) -> None:
        """End the answer at its next token: the client has gone, or is to be told ``refusal``. From any thread."""
        self._refusal = self._refusal or refusal
        self.gone = True

    @property
    def is_over(self) -> bool:
        """Whether its time is over."""
        return time.monotonic() > self.deadline

    def begin(self, tokenizer: Tokenizer) -> None:
        """Before the first token of an attempt."""
        self._stream, self._matcher, self.tokens = TextStream(tokenizer), StopMatcher(self._stops), 0

    def take(self, token: int) -> bool:
        """Pass on what a new token of the model says; False when no more is wanted, and then the end is told."""
        self.tokens += 1
        self._pass_on(self._matcher.feed(self._stream.feed(token)))
        enough = self.tokens >= self.sampling.max_new_tokens
        if enough or self.gone or self._matcher.stopped or self.is_over:
            self.finish()
        return not self.finished

    def finish(self, *, by_itself: bool = False) -> None:
        """Tell the end; ``by_itself`` when the model said it, by its end token."""
        if self._refusal is not None:
            self.fail(self._refusal)
        elif not self.finished:
            self._pass_on(self._matcher.feed(self._stream.end()))
            if not self._matcher.stopped:
                self._pass_on(self._matcher.rest())
            self._end(Done("stop" if by_itself or self._matcher.stopped else "length", self.tokens))

    def fail(self, refusal: Refusal) -> None:
        """End without an answer, or in the middle of one."""
        self._end(refusal)

    def _pass_on(self, text: str) -> None:
        if text and not self.gone:
            self.delivered = True
            self._deliver(Text(text))

    def _end(self, event: Event) -> None:
        if not self.finished:
            self.finished = True
            self._place.give_back()
            self._deliver(event)


class Worker:
    """The queue and the thread behind it."""

    def __init__(self, assistant: Assistant, *, settings: ServerSettings) -> None:
        self._assistant, self._settings = assistant, settings
        self._waiting: collections.deque[Job] = collections.deque()
        self._running: list[Job] = []
        self._changed = threading.Condition()
        self._taken, self._closing, self._pace = 0, False, 1.0
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether requests are taken and answered."""
        return self._thread.is_alive() and not self._closing

    def counts(self) -> dict[str, int]:
        """How many requests wait and run, those whose prompt is still being read counted as waiting."""
        with self._changed:
            running = sum(not job.finished for job in self._running)
            return {"running": running, "waiting": self._taken - running}

    def admit(self) -> Place:
        """A place for a request; ``Refusal`` (429) when all are taken, (503) when the server is closing."""
        with self._changed:
            if not self.is_alive:
                raise _closing()
            if self._taken >= self._settings.places:
                batches = math.ceil(self._taken / self._settings.max_batch)
                raise Refusal(
                    f"all {self._settings.places} places are taken; try again later.",
                    status=429,
                    code="queue_full",
                    retry_after=max(1, min(60, round(self._pace * batches))),
                )
            self._taken += 1
        return Place(self._leave)

    def submit(self, job: Job) -> None:
        """Queue a job; it is told everything from now on."""
        with self._changed:
            if self.is_alive:
                self._waiting.append(job)
                self._changed.notify_all()
                return
        job.fail(_closing())

    def close(self) -> None:
        """Admit nobody any more and send away those who wait; what runs goes on."""
        with self._changed:
            self._closing = True
            waiting, self._waiting = list(self._waiting), collections.deque()
            self._changed.notify_all()
        for job in waiting:
            job.fail(_closing())

    def withdraw(self, job: Job) -> None:
        """The client of ``job`` has gone: its place is free at once while it waits, else at its next token."""
        job.cancel()
        with self._changed:
            if job not in self._waiting:
                return
            self._waiting.remove(job)
        job.fail(Refusal("the client has gone.", status=499))

    def cancel_running(self) -> None:
        """End what runs at its next token; those who ask are told that the server is shutting down."""
        for job in list(self._running):
            job.cancel(_closing())

    def join(self, timeout: float) -> bool:
        """Wait for the thread after ``close``; whether it has ended."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _leave(self) -> None:
        with self._changed:
            self._taken -= 1

    def _run(self) -> None:
        try:
            while batch := self._next_batch():
                self._serve(batch)
        finally:
            self.close()

    def _serve(self, batch: Sequence[Job]) -> None:
        started = time.monotonic()
        try:
            self._answer(batch)
        except Exception:
            self._recover(batch)
        finally:
            with self._changed:
                self._running = []
            self._pace += 0.3 * (time.monotonic() - started - self._pace)

    def _next_batch(self) -> list[Job]:
        """The next requests, in the order of their arrival; empty when the server closes."""
        while True:
            with self._changed:
                while not self._waiting and not self._closing:
                    self._changed.wait()
                if self._closing:
                    return []
                end = time.monotonic() + self._settings.gather_seconds
                while len(self._waiting) < self._settings.max_batch and (left := end - time.monotonic()) > 0:
                    self._changed.wait(left)
                count = min(len(self._waiting), self._settings.max_batch)
                taken = [self._waiting.popleft() for _ in range(count)]
                wanted = [job for job in taken if not job.gone and not job.is_over]
                self._running = list(wanted)
            for job in taken:
                if job.gone:
                    job.fail(Refusal("the client has gone.", status=499))
                elif job.is_over:
                    seconds = self._settings.request_seconds
                    job.fail(Refusal(f"no turn came within {seconds:g} s.", status=503, code="timeout", retry_after=10))
            if wanted:
                return wanted

    def _answer(self, batch: Sequence[Job]) -> None:
        tokenizer = self._assistant.tokenizer
        for job in batch:
            job.begin(tokenizer)

        def on_token(row: int, token: int) -> bool:
            job = batch[row]
            if job.tokens == max(other.tokens for other in batch):  # the first row of a new step
                for other in batch:
                    if other.tokens < job.tokens and not other.finished:
                        other.finish(by_itself=True)  # it said nothing in the last step, so it said its end
            return job.take(token)

        generated = generate_batch(
            self._assistant.model,
            [job.prompt for job in batch],
            sampling=[job.sampling for job in batch],
            end_id=tokenizer.end_id,
            on_token=on_token,
        )
        for job, answer in zip(batch, generated, strict=True):
            job.finish(by_itself=answer.finish_reason == "stop")

    def _recover(self, batch: Sequence[Job]) -> None:
        """After a batch that failed: its rows one by one, unless one was alone or has delivered text already."""
        traceback.print_exc(file=sys.stderr)
        for job in batch:
            if job.finished:
                continue
            if len(batch) > 1 and not job.delivered and not job.gone:
                with contextlib.suppress(Exception):
                    self._answer([job])
            if not job.finished:
                job.fail(
                    Refusal("the model failed on this request; the server's log says more.", status=500, code="failed")
                )


def _closing() -> Refusal:
    return Refusal("the server is shutting down.", status=503, code="shutting_down")
