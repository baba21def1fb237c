"""A teacher behind an OpenAI-compatible server (vLLM, llama.cpp, Ollama, ...) on this machine or this network.

What it does: asks `/v1/chat/completions`, or `/v1/completions` where a chat format is configured, over plain http(s)
with the standard library. Nothing leaves the network unless `allow_public`: the host must be a loopback, private or
link-local address or a name that only a local network knows, and every address it resolves to is checked again when
connecting; redirects and proxies are not followed.

What it costs: one thread and one connection per request under way. 429, 5xx, time-outs and broken connections are tried
again with growing pauses; a reply that is not what the protocol promises is a `Failure` at once. What it does not do:
streaming, tools, pictures.
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import ipaddress
import json
import math
import os
import queue
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

from ncvc.teachers.teacher import Answer, Failure, Request, Result, TeacherSettings, in_order

LOCAL_NETWORKS = tuple(
    map(
        ipaddress.ip_network,
        (
            "127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16",
            "::1/128", "fc00::/7", "fe80::/10",
        ),
    )
)  # fmt: skip
"""Loopback, RFC 1918, link-local and unique local addresses."""
_LISTING_SECONDS = 30.0
LOCAL_SUFFIXES = (".local", ".lan", ".internal", ".home.arpa", ".localhost")


def is_local_address(address: str) -> bool:
    """Whether an IP address (v4, v6, v6 with a v4 inside) belongs to this machine or a private network."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return any(parsed in network for network in LOCAL_NETWORKS)


def is_local_host(host: str) -> bool:
    """Whether a host, judged by its name alone, can only be on this machine or network."""
    try:
        return is_local_address(host)
    except ValueError:
        name = host.lower().rstrip(".")
        return bool(name) and ("." not in name or name.endswith(LOCAL_SUFFIXES))


class _TryAgain(Exception):
    """A transport's trouble that may pass."""


class OpenAICompatibleTeacher:
    """Asks the server at `settings.base_url`; opening it proves that the server is there and has the model.

    Raises OSError with the cure if the server cannot be reached, refuses the key or lacks the model, and ValueError
    for an address outside this network.
    """

    def __init__(self, settings: TeacherSettings) -> None:
        self.settings = settings
        self.name = settings.name
        self._scheme, self._host, self._port, self._path = _address(settings)
        self._headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "ncvc"}
        if settings.api_key_variable is not None:
            self._headers["Authorization"] = f"Bearer {_api_key(settings.api_key_variable)}"
        self.model = self._served_model()
        self.identity = {**settings.identity, "model": self.model}

    def answer(self, requests: Iterable[Request]) -> Iterator[Result]:
        """One result per request in order, up to `concurrency` requests at the same time."""
        return in_order(self.answer_as_completed(requests))

    def answer_as_completed(self, requests: Iterable[Request]) -> Iterator[tuple[int, Result]]:
        """The same results as they come, each with the number of its request."""
        waiting: queue.SimpleQueue[tuple[int, Request] | None] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[int, Result | BaseException]] = queue.SimpleQueue()
        stop = threading.Event()
        source, exhausted = enumerate(requests), False
        under_way = workers = 0
        try:
            while True:
                while not exhausted and under_way < self.settings.concurrency:
                    following = next(source, None)
                    if following is None:
                        exhausted = True
                        break
                    waiting.put(following)
                    under_way += 1
                    if under_way > workers:
                        threading.Thread(target=self._work, args=(waiting, done, stop), daemon=True).start()
                        workers += 1
                if not under_way:
                    return
                number, result = done.get()
                under_way -= 1
                if isinstance(result, BaseException):
                    raise result
                yield number, result
        finally:
            stop.set()
            for _ in range(workers):
                waiting.put(None)

    def _work(self, waiting: queue.SimpleQueue, done: queue.SimpleQueue, stop: threading.Event) -> None:
        while (job := waiting.get()) is not None and not stop.is_set():
            number, request = job
            try:
                done.put((number, self._ask(request, stop)))
            except BaseException as error:  # told by the thread that asked
                done.put((number, error))

    def _ask(self, request: Request, stop: threading.Event) -> Result:
        settings = self.settings
        try:
            path, body = self._body(request)
        except ValueError as error:
            return Failure(f"request: {error}")
        begun, reason = time.monotonic(), ""
        for attempt in range(settings.retries + 1):
            pause = settings.backoff_seconds * 2**attempt
            try:
                status, headers, data = self._exchange("POST", path, body)
            except _TryAgain as error:
                reason = str(error)
            except ValueError as error:
                return Failure(str(error))
            else:
                if status == 200:
                    return self._result(data, seconds=time.monotonic() - begun)
                reason = f"HTTP {status}: {_head(data)}"
                if status not in (408, 425, 429) and status < 500:
                    return Failure(reason)
                pause = max(pause, _retry_after(headers.get("Retry-After")))
            if attempt < settings.retries and stop.wait(min(pause, settings.backoff_limit_seconds)):
                break
        return Failure(f"{reason} (after {attempt + 1} attempts)")

    def _body(self, request: Request) -> tuple[str, bytes]:
        settings = self.settings
        messages = settings.complete(request.messages)
        body: dict[str, Any] = {
            "model": self.model,
            "seed": request.seed,
            "max_tokens": request.max_tokens,
            "temperature": settings.temperature if request.temperature is None else request.temperature,
            "top_p": settings.top_p,
            "stream": False,
        }
        if settings.format is None:
            return "/chat/completions", json.dumps({**body, "messages": messages}).encode()
        prompt = settings.format.render(messages)
        if settings.format.stop:
            body["stop"] = list(settings.format.stop)
        return "/completions", json.dumps({**body, "prompt": prompt}).encode()

    def _result(self, data: bytes, *, seconds: float) -> Result:
        """The answer in a reply with status 200, or what is wrong with the reply."""
        try:
            reply = json.loads(data)
        except (ValueError, RecursionError) as error:
            return Failure(f"the reply is not JSON ({type(error).__name__}): {_head(data)}")
        try:
            choice = reply["choices"][0]
            text = choice["message"]["content"] if self.settings.format is None else choice["text"]
            finish = choice.get("finish_reason")
        except (KeyError, IndexError, TypeError, AttributeError):
            return Failure(f"the reply has no choices[0] with a text: {_head(data)}")
        if not isinstance(text, str) or not isinstance(finish, str | None):
            return Failure(f"the reply's text is a {type(text).__name__}, its finish_reason a {type(finish).__name__}")
        usage = reply.get("usage")
        tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
        if self.settings.format is not None:
            text, ended = self.settings.format.cut(text)
            finish = "stop" if ended else finish
        return Answer(text, finish, tokens if type(tokens) is int and tokens >= 0 else None, seconds)

    def _served_model(self) -> str:
        """The model to ask for, after a look at what the server lists; patient with a server that is still loading."""
        settings, told = self.settings, f"teacher.base_url={self.settings.base_url}"
        for attempt in range(settings.retries + 1):
            try:
                status, _, data = self._exchange("GET", "/models", None, seconds=_LISTING_SECONDS)
            except (_TryAgain, ValueError) as error:
                raise OSError(
                    f"{told}: the server does not answer ({error}). Start it, or set teacher.base_url to where it "
                    "listens, such as http://127.0.0.1:8000"
                ) from error
            if status not in (429, 500, 502, 503, 504) or attempt == settings.retries:
                break
            time.sleep(min(settings.backoff_seconds * 2**attempt, settings.backoff_limit_seconds))
        if status in (401, 403):
            raise OSError(f"{told}: the server refuses the key (HTTP {status}); set teacher.api_key_variable to the "
                          "name of the environment variable that holds it")  # fmt: skip
        if status == 200:
            with contextlib.suppress(ValueError, RecursionError, KeyError, TypeError):
                listed = [entry["id"] for entry in json.loads(data)["data"]]
                if settings.model in listed or (settings.model is None and len(listed) == 1):
                    return settings.model or listed[0]
                raise OSError(f"{told}: the server has no model {settings.model!r}; set teacher.model to one of those "
                              f"it lists: {', '.join(map(str, listed[:20])) or 'none'}")  # fmt: skip
        elif status >= 500:
            raise OSError(f"{told}: the server is not ready (HTTP {status}: {_head(data)}); start again when it is")
        if settings.model is None:
            raise OSError(f"{told}: the server lists no models (HTTP {status}), so teacher.model must be set")
        return settings.model

    def _exchange(
        self, method: str, path: str, body: bytes | None, *, seconds: float = math.inf
    ) -> tuple[int, Any, bytes]:
        """One request on a connection of its own: status, headers and whole body, within `timeout_seconds` in all.

        Raises _TryAgain for trouble of the transport and ValueError for a body beyond `maximum_response_bytes`.
        """
        seconds, limit = min(seconds, self.settings.timeout_seconds), self.settings.maximum_response_bytes
        connection = http.client.HTTPConnection(self._host, self._port, timeout=seconds)
        expired = threading.Event()
        timer = None
        try:
            connection.sock = self._connect(seconds)
            timer = threading.Timer(seconds, _hang_up, args=(connection.sock, expired))
            timer.daemon = True
            timer.start()
            connection.request(method, self._path + path, body=body, headers=self._headers)
            response = connection.getresponse()
            data = bytearray()
            while block := response.read(1 << 16):
                data += block
                if len(data) > limit:
                    raise ValueError(f"the reply is longer than teacher.maximum_response_bytes={limit}")
            if response.length or expired.is_set():
                raise http.client.IncompleteRead(bytes(data[:0]), response.length)
            return response.status, response.headers, bytes(data)
        except (OSError, http.client.HTTPException) as error:
            if expired.is_set() or isinstance(error, TimeoutError):
                raise _TryAgain(f"no whole reply within {seconds:g} seconds (teacher.timeout_seconds)") from error
            raise _TryAgain(f"connection: {type(error).__name__}: {error}") from error
        finally:
            if timer is not None:
                timer.cancel()
            connection.close()

    def _connect(self, seconds: float) -> socket.socket:
        """A connection to an address that was checked after the name was resolved."""
        last: OSError = OSError(f"{self._host} resolves to no address")
        for _, _, _, _, target in socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM):
            address = str(target[0])
            if not self.settings.allow_public and not is_local_address(address):
                last = OSError(f"{self._host} resolves to {address}, which is not of this network")
                continue
            try:
                plain = socket.create_connection((address, self._port), timeout=seconds)
            except OSError as error:
                last = error
                continue
            if self._scheme == "http":
                return plain
            try:
                return ssl.create_default_context().wrap_socket(plain, server_hostname=self._host)
            except OSError as error:
                plain.close()
                last = error
        raise last


def _hang_up(connected: socket.socket, expired: threading.Event) -> None:
    expired.set()
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connected, socket.SHUT_RDWR)  # beneath TLS too: it wakes the thread that reads


def _address(settings: TeacherSettings) -> tuple[str, str, int, str]:
    """Scheme, host, port and path of `teacher.base_url`. Raises ValueError for what is no address of this network."""
    told = f"teacher.base_url={settings.base_url!r}"
    try:
        url = urlsplit(settings.base_url or "")
        host, port = url.hostname, url.port
    except ValueError as error:
        raise ValueError(f"{told}: is no address ({error}); set one such as http://127.0.0.1:8000.") from error
    if url.scheme not in ("http", "https") or not host or not re.fullmatch(r"[0-9A-Za-z._:%\-]+", host):
        raise ValueError(f"{told}: must be http or https and name a host, such as http://127.0.0.1:8000.")
    if url.username or url.password or url.query or url.fragment:
        raise ValueError(f"{told}: must hold no user, password or query; a key goes into teacher.api_key_variable.")
    if not settings.allow_public and not is_local_host(host):
        raise ValueError(
            f"{told}: {host} is not of this network, and texts would leave it. Set a loopback or private address or a "
            f"local name ({', '.join(LOCAL_SUFFIXES)} or without a dot), or teacher.allow_public=true if that is meant."
        )
    path = url.path.rstrip("/")
    path = path if path.endswith("/v1") else path + "/v1"
    return url.scheme, host, port or (443 if url.scheme == "https" else 80), path


def _api_key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise ValueError(f"teacher.api_key_variable={variable}: that environment variable holds no key; export it.")
    return key


def _retry_after(value: str | None) -> float:
    """Seconds that a Retry-After header asks for: a number or a date; 0 if it says nothing that makes sense."""
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        if re.fullmatch(r"\d{1,9}", value := (value or "").strip()):
            return float(value)
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0


def _head(data: bytes) -> str:
    text = " ".join(data[:400].decode("utf-8", "replace").split())
    return f"{text[:160]}{'...' if len(text) > 160 else ''}" or "(empty)"
