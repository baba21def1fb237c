"""One connection: uvicorn's HTTP/1.1 protocol with the limits that it leaves out.

Cut is a connection that sends no whole request head in time, or that lets its answer lie unread; refused, in OpenAI's
words, are bytes that are no HTTP and a connection too many. Costs a timer per request.
"""

import asyncio
import json
from typing import Any

from ncvc.serving.protocol import Refusal
from ncvc.serving.settings import ServerSettings


def connection_class(settings: ServerSettings) -> type[asyncio.Protocol]:
    """The protocol of one server's connections."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    return type("Connection", (Limits, H11Protocol), {"settings": settings})


class Limits(asyncio.Protocol):
    """What stands before uvicorn's protocol in the order of methods; the attributes without values are uvicorn's."""

    settings: ServerSettings
    connections: set[Any]
    cycle: Any  # the request under way, or the last one
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    _head_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if len(self.connections) > self.settings.max_connections and self.cycle is None:
            self._refuse(Refusal("too many connections; try again later.", status=503, code="connections"))
            return
        super().data_received(data)
        if self._is_idle():
            self._await_head()
        elif self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def send_400_response(self, msg: str) -> None:
        """Where uvicorn's own words would be said."""
        self._refuse(Refusal("this is no valid HTTP/1.1 request."))

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(self.settings.stalled_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.settings.body_seconds, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._is_idle() and not self.transport.is_closing():
            self.transport.abort()

    def _refuse(self, refusal: Refusal) -> None:
        self._stop_timers()
        if not self._is_idle() and self.cycle.response_started:
            self.transport.close()  # half an answer is out already
            return
        body = json.dumps(refusal.body()).encode()
        reason = {400: "Bad Request", 503: "Service Unavailable"}[refusal.status]
        head = (
            f"HTTP/1.1 {refusal.status} {reason}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        if not self.transport.is_closing():
            self.transport.write(head.encode() + body)
            self.transport.close()

    def _stop_timers(self) -> None:
        for timer in (self._head_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        self._head_timer = self._stall_timer = None
