"""The server's routes: OpenAI's models, chat completions and completions under ``/v1``, ``/health``, and the page.

A request goes body -> fields -> place in the queue -> token ids -> worker; whoever is refused on the way holds nothing.
Prompts become ids in one thread of their own, because the analyser of the tokenizer serves one caller at a time. While
an answer is made the client is watched: when it leaves, its row ends.
"""

import asyncio
import base64
import contextlib
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ncvc.chat import encode_prompt
from ncvc.model.assistant import Assistant
from ncvc.model.generation import Sampling
from ncvc.serving.answers import AnswerHead, new_head, usage_of
from ncvc.serving.guard import HEADERS, refusal_headers
from ncvc.serving.prompt_log import PromptLog
from ncvc.serving.protocol import Refusal, Request, parse_chat, parse_text, read_json, shown
from ncvc.serving.settings import ServerSettings
from ncvc.serving.worker import Event, Job, Text, Worker

PAGE = Path(__file__).with_name("page.html")
HEARTBEAT_SECONDS = 10.0
MOST_DRAINED = 16 * 2**20  # bytes of too large a body that are read, so that its sender gets to read the refusal


@dataclass(frozen=True)
class Exchange:
    """One request under way: what was asked, its job, and the queue of the job's events."""

    request: Request
    job: Job
    events: asyncio.Queue[Event]
    head: AnswerHead
    watcher: asyncio.Task[None]


class Answers:
    """Takes requests to the worker and its events back; one object per server."""

    def __init__(self, assistant: Assistant, worker: Worker, *, settings: ServerSettings) -> None:
        self.assistant, self.worker, self.settings = assistant, worker, settings
        self.created = int(time.time())
        self._reading = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prompts")
        self._log = PromptLog(settings.prompts_file) if settings.prompts_file else None

    def close(self) -> None:
        """End the thread that reads prompts."""
        self._reading.shutdown(wait=False, cancel_futures=True)

    async def begin(self, connection: Any, *, is_chat: bool) -> Exchange:
        """Read, check and queue a request (Starlette's); ``Refusal`` for whoever cannot be answered."""
        kind = connection.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refusal("send the header Content-Type: application/json.", status=415)
        request = self._request(read_json(await self._body(connection)), is_chat=is_chat)
        deadline = time.monotonic() + self.settings.request_seconds
        place = self.worker.admit()
        try:
            loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()
            prompt = await loop.run_in_executor(self._reading, self._prompt, request)

            def deliver(event: Event) -> None:
                with contextlib.suppress(RuntimeError):  # the loop has ended: nobody is there to be told
                    loop.call_soon_threadsafe(events.put_nowait, event)

            sampling = self._sampling(request, len(prompt))
            job = Job(prompt, sampling=sampling, stops=request.stop, deadline=deadline, place=place, deliver=deliver)
        except BaseException:
            place.give_back()
            raise
        self.worker.submit(job)
        watcher = asyncio.create_task(self._watch(connection.receive, job))
        return Exchange(request, job, events, new_head(is_chat=is_chat, model=self.assistant.name), watcher)

    async def whole(self, exchange: Exchange) -> dict[str, Any]:
        """The answer in one piece; ``Refusal`` when there will be none."""
        parts: list[str] = []
        try:
            while True:
                event = await exchange.events.get()
                if isinstance(event, Text):
                    parts.append(event.text)
                elif isinstance(event, Refusal):
                    raise event
                else:
                    usage = usage_of(len(exchange.job.prompt), event.completion_tokens)
                    return exchange.head.whole("".join(parts), finish_reason=event.finish_reason, usage=usage)
        finally:
            self._leave(exchange, "".join(parts))

    async def stream(self, exchange: Exchange) -> AsyncIterator[bytes]:
        """The answer as server-sent events; a failure in its middle comes as an event with OpenAI's error object."""
        head, parts = exchange.head, []
        without_usage = {"usage": None} if exchange.request.include_usage else {}
        try:
            if head.is_chat:
                yield _event({**head.chunk("", first=True), **without_usage})
            while True:
                try:
                    async with asyncio.timeout(HEARTBEAT_SECONDS):
                        event = await exchange.events.get()
                except TimeoutError:
                    yield b": waiting\n\n"
                    continue
                if isinstance(event, Text):
                    parts.append(event.text)
                    yield _event({**head.chunk(event.text), **without_usage})
                elif isinstance(event, Refusal):
                    yield _event(event.body())
                    return
                else:
                    yield _event({**head.chunk(None, finish_reason=event.finish_reason), **without_usage})
                    if exchange.request.include_usage:
                        usage = usage_of(len(exchange.job.prompt), event.completion_tokens)
                        yield _event(head.usage_chunk(usage))
                    yield b"data: [DONE]\n\n"
                    return
        finally:
            self._leave(exchange, "".join(parts))

    def _leave(self, exchange: Exchange, text: str) -> None:
        self.worker.withdraw(exchange.job)
        exchange.watcher.cancel()
        if self._log is not None:
            self._log.write(exchange.head.id, exchange.request, text)

    async def _watch(self, receive: Any, job: Job) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.worker.withdraw(job)

    async def _body(self, connection: Any) -> bytes:
        """The body, at most ``max_body_bytes`` of it and within ``body_seconds``; ``Refusal`` 413 or 408 otherwise."""
        from starlette.requests import ClientDisconnect

        limit, parts, size = self.settings.max_body_bytes, [], 0
        too_large = Refusal(f"the body is larger than {limit} bytes.", status=413, code="body_too_large")
        declared = int(connection.headers.get("content-length", "0"))
        if declared > MOST_DRAINED or (declared > limit and "expect" in connection.headers):
            raise too_large
        try:
            async with asyncio.timeout(self.settings.body_seconds):
                async for part in connection.stream():
                    size += len(part)
                    if size > MOST_DRAINED:
                        raise too_large
                    if size <= limit:
                        parts.append(part)
        except TimeoutError as error:
            raise Refusal(f"the body took longer than {self.settings.body_seconds:g} s.", status=408) from error
        except ClientDisconnect as error:
            raise Refusal("the body is not whole.") from error
        if size > limit:
            raise too_large
        return b"".join(parts)

    def _request(self, fields: Mapping[str, Any], *, is_chat: bool) -> Request:
        settings = self.settings
        if is_chat:
            request = parse_chat(
                fields,
                most_messages=settings.max_messages,
                most_tokens=settings.max_tokens,
                temperature=settings.temperature,
            )
        else:
            request = parse_text(fields, most_tokens=settings.max_tokens, temperature=settings.temperature)
        if request.model is not None:
            self.check_model(request.model)
        if is_chat and not self.assistant.can_chat:
            raise Refusal(
                f"{self.assistant.name} is a base model without chat tokens: it continues text "
                "(/v1/completions). Tune it on conversations to chat (python -m ncvc.train experiment=sft_quickstart).",
                code="model_cannot_chat",
            )
        return request

    def check_model(self, name: str) -> None:
        """``Refusal`` (404) unless ``name`` is the model of this server."""
        if name != self.assistant.name:
            text = f"there is no model {shown(name)} here; this server has {self.assistant.name}."
            raise Refusal(text, status=404, param="model", code="model_not_found")

    def _prompt(self, request: Request) -> list[int]:
        """Token ids, in the thread that reads prompts."""
        param = "messages" if request.is_chat else "prompt"
        tokenizer = self.assistant.tokenizer
        if request.is_chat:
            try:
                ids = encode_prompt(request.messages, tokenizer=tokenizer)
            except ValueError as error:
                raise Refusal(str(error), param=param) from error
        else:
            ids = [tokenizer.begin_id, *tokenizer.encode(request.prompt)]
            if len(ids) == 1:
                raise Refusal("the prompt is empty once it is cleaned.", param=param)
        context, asked = self.assistant.context_length, request.max_tokens or 1
        if len(ids) + asked > context:
            raise Refusal(
                f"{param}: {len(ids)} tokens, and {asked} are asked for, but the model's context is {context}; "
                "shorten them or ask for fewer.",
                param=param,
                code="context_length_exceeded",
            )
        return ids

    def _sampling(self, request: Request, prompt_tokens: int) -> Sampling:
        room = self.assistant.context_length - prompt_tokens
        return Sampling(
            max_new_tokens=request.max_tokens or min(self.settings.max_tokens, room),
            temperature=request.temperature,
            top_p=request.top_p,
            repetition_penalty=request.repetition_penalty,
            seed=request.seed,
        )

    def model_card(self) -> dict[str, Any]:
        """The model as ``/v1/models`` lists it, with what the page needs to know besides."""
        facts = {"id": self.assistant.name, "object": "model", "created": self.created, "owned_by": "ncvc"}
        limits = {"context_length": self.assistant.context_length, "max_tokens": self.settings.max_tokens}
        return {**facts, **limits, "can_chat": self.assistant.can_chat, "temperature": self.settings.temperature}


def build_application(answers: Answers) -> Any:
    """The FastAPI application of one server, without its guard."""
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse, Response, StreamingResponse

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    page, page_headers = read_page()

    _tell_refusals(app)

    @app.get("/")
    async def index(request: Request) -> Response:
        return Response(page, media_type="text/html; charset=utf-8", headers=page_headers)

    @app.get("/favicon.ico")
    async def icon(request: Request) -> Response:
        return Response(status_code=204)

    @app.get("/health")
    async def health(request: Request) -> Response:
        well = answers.worker.is_alive
        return JSONResponse({"status": "ok" if well else "failed", **answers.worker.counts()}, 200 if well else 503)

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [answers.model_card()]})

    @app.get("/v1/models/{name:path}")
    async def model(request: Request, name: str) -> Response:
        answers.check_model(name)
        return JSONResponse(answers.model_card())

    async def respond(request: Request, *, is_chat: bool) -> Response:
        exchange = await answers.begin(request, is_chat=is_chat)
        if exchange.request.stream:
            return StreamingResponse(answers.stream(exchange), media_type="text/event-stream")
        return JSONResponse(await answers.whole(exchange))

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await respond(request, is_chat=True)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await respond(request, is_chat=False)

    return app


def _tell_refusals(app: Any) -> None:
    """Every error of the routes as OpenAI's error object."""
    from fastapi import Request
    from fastapi.responses import JSONResponse, Response
    from starlette.exceptions import HTTPException

    async def told(refusal: Refusal) -> Response:
        return JSONResponse(refusal.body(), status_code=refusal.status, headers=refusal_headers(refusal))

    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> Response:
        return await told(error)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        words = {404: "there is no such path here.", 405: "this path takes another method."}
        return await told(Refusal(words.get(error.status_code, str(error.detail)), status=error.status_code))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return await told(Refusal("an error of the server; its log says more.", status=500))


def read_page() -> tuple[bytes, dict[str, str]]:
    """The chat page and the headers that let its own script and style run, by their hashes, and nothing else."""
    page = PAGE.read_text(encoding="utf-8")
    allowed = {}
    for tag in ("script", "style"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        allowed[tag] = f"{tag}-src 'sha256-{digest}'"
    policy = f"{HEADERS['content-security-policy']}; {allowed['script']}; {allowed['style']}; connect-src 'self'; "
    return page.encode(), {"content-security-policy": policy + "img-src data:"}


def _event(value: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
