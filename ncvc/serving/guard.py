"""Who may speak to the server, checked before a body is read, and what every response carries.

Against other web pages in the user's browser: on loopback the ``Host`` header has to name this machine (a page whose
name was rebound to 127.0.0.1 names itself), a foreign ``Origin`` is refused, and no CORS header is ever sent. Against
other machines: the bearer token, compared in constant time. One line per request goes to the access log: method, path,
status, milliseconds, and nothing of what was said. Costs some microseconds per request.
"""

import asyncio
import hashlib
import hmac
import json
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from ncvc.serving.protocol import Refusal
from ncvc.serving.settings import ServerSettings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

OPEN_PATHS = frozenset({"/", "/health", "/favicon.ico"})  # without a token: nothing of the model is told there
HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Guard:
    """ASGI middleware, outside of everything else."""

    def __init__(
        self, application: Application, *, settings: ServerSettings, log: Callable[[str], None] = lambda line: None
    ) -> None:
        self._application, self._log = application, log
        self._token = _digest(settings.token) if settings.token else None
        self._hosts = {"localhost", "127.0.0.1", "::1", settings.host.lower(), settings.address[1].lower()}
        self._check_host = settings.is_loopback

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a refused request itself; hand the others on."""
        if scope["type"] != "http":
            return
        begun, status = time.monotonic(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = {name for name, _ in message["headers"]}
                added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *(pair for pair in added if pair[0] not in given)]
            await send(message)

        try:
            self._check(scope)
            await self._application(scope, receive, sending)
        except Refusal as refusal:
            await send_refusal(refusal, sending)
        except asyncio.CancelledError:
            raise
        except Exception:
            traceback.print_exc(file=sys.stderr)
            if not status:
                await send_refusal(Refusal("an error of the server; its log says more.", status=500), sending)
        finally:
            path = scope.get("raw_path", b"").decode("ascii", "replace")[:100]
            milliseconds = (time.monotonic() - begun) * 1000
            self._log(f"{scope['method'][:10]} {path} {status or '-'} {milliseconds:.0f} ms")

    def _check(self, scope: Message) -> None:
        headers = scope["headers"]
        host = _only(headers, b"host")
        if host is None or _host_name(host) is None:
            raise Refusal("exactly one Host header is needed.")
        if self._check_host and _host_name(host) not in self._hosts:
            raise Refusal(
                f"this server answers to localhost and 127.0.0.1, not to {host[:100]!r}.", status=403, code="host"
            )
        origin = _only(headers, b"origin", default="")
        if origin is None or (origin and origin.partition("://")[2].lower() != host.lower()):
            raise Refusal("requests from other web pages are refused.", status=403, code="origin")
        if self._token is not None and scope["path"] not in OPEN_PATHS and not self._is_authorized(headers):
            raise Refusal(
                "a valid token is needed: send the header Authorization: Bearer TOKEN.",
                status=401,
                code="invalid_api_key",
            )

    def _is_authorized(self, headers: list[tuple[bytes, bytes]]) -> bool:
        scheme, _, token = (_only(headers, b"authorization") or "").partition(" ")
        given = _digest(token.strip())
        return hmac.compare_digest(given, self._token or b"") and scheme.lower() == "bearer"


async def send_refusal(refusal: Refusal, send: Send) -> None:
    """The refusal as a whole response."""
    body = json.dumps(refusal.body(), ensure_ascii=False).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.encode(), value.encode()) for name, value in refusal_headers(refusal).items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def refusal_headers(refusal: Refusal) -> Mapping[str, str]:
    """What a client's library reads beside the error object."""
    headers = {}
    if refusal.retry_after is not None:
        headers["retry-after"] = str(refusal.retry_after)
    if refusal.status == 401:
        headers["www-authenticate"] = "Bearer"
    if refusal.status in (408, 413):
        headers["connection"] = "close"
    return headers


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _only(headers: list[tuple[bytes, bytes]], name: bytes, *, default: str | None = None) -> str | None:
    """The header's value; ``default`` when it is absent, None when it stands there more than once."""
    found = [value for key, value in headers if key == name]
    return default if not found else found[0].decode("latin-1") if len(found) == 1 else None


def _host_name(host: str) -> str | None:
    """The name in a Host header without its port, in lower case; None when it is none."""
    try:
        parts = urlsplit(f"//{host}")
        name = parts.hostname
        _ = parts.port
    except ValueError:
        return None
    return name if name and parts.netloc == host and "@" not in host else None
