"""Socket, connections and signals of the server (uvicorn).

A busy port is told before the model is loaded. Each connection has limits of its own: one that sends no whole request
head within ``body_seconds``, or does not read its answer for ``stalled_seconds``, is cut.
Ctrl-C and SIGTERM end the server in order: nobody is admitted, those who wait are told, running answers get
``shutdown_seconds`` to finish; a second Ctrl-C ends it now. HTTP/1.1 only; TLS is left to a proxy.
"""

import asyncio
import contextlib
import errno
import logging
import resource
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from ncvc.model.assistant import Assistant
from ncvc.serving.connection import connection_class
from ncvc.serving.guard import Guard
from ncvc.serving.settings import ServerSettings
from ncvc.serving.worker import Worker

BACKLOG = 1024  # connections that the system holds until they are accepted


class LocalServer:
    """One model behind one port. ``run`` serves until ``stop``, Ctrl-C or SIGTERM; an object serves once.

    ``listener`` is a socket of ``listen``, for who wants to know about the port before the model is loaded.
    """

    def __init__(
        self,
        assistant: Assistant,
        *,
        settings: ServerSettings,
        listener: socket.socket | None = None,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        from ncvc.serving.application import Answers, build_application

        check_packages()
        self.settings = settings
        self.worker = Worker(assistant, settings=settings)
        self._answers = Answers(assistant, self.worker, settings=settings)
        self._socket = listener or listen(settings)
        self._port = self._socket.getsockname()[1]
        _room_for_connections(settings.max_connections)
        guard = Guard(build_application(self._answers), settings=settings, log=log)
        self._server = _build_server(guard, worker=self.worker, settings=settings)

    @property
    def address(self) -> str:
        """``http://host:port`` under which the page and ``/v1`` are found."""
        where = self.settings.address[1]
        shown = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(where, where)
        return f"http://{f'[{shown}]' if ':' in shown else shown}:{self._port}"

    def run(self) -> None:
        """Serve, to the end."""
        self.worker.start()
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self.close()

    def stop(self) -> None:
        """Begin the end from another thread."""
        self._server.should_exit = True

    def close(self) -> None:
        """Free the port and end the threads, also where ``run`` was never called."""
        self._socket.close()
        self.worker.close()
        self.worker.cancel_running()
        self._answers.close()
        self.worker.join(self.settings.shutdown_seconds)


def check_packages() -> None:
    """``ModuleNotFoundError`` with the cure when the packages of the server are missing."""
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the server needs the package {error.name}: pip install -e '.[serve]' (or pip install fastapi uvicorn)"
        ) from error


def listen(settings: ServerSettings) -> socket.socket:
    """A socket that listens at the settings' address; ``OSError`` with the cure when the port cannot be had."""
    family, where = settings.address
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((where, settings.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        other = settings.port + 1 if settings.port < 65535 else 8000
        cures = {
            errno.EADDRINUSE: f"another program listens there; set port={other}, or port=0 for any free one",
            errno.EACCES: "ports below 1024 belong to the system; set port=8000",
            errno.EADDRNOTAVAIL: "this machine has no such address; set host=127.0.0.1",
        }
        cure = cures.get(error.errno or 0, error.strerror or str(error))
        raise OSError(f"host={settings.host} port={settings.port} cannot be served: {cure}.") from error
    return listener


def _room_for_connections(count: int) -> None:
    """Let this process hold ``count`` open connections, as far as the system allows without asking."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _build_server(guard: Guard, *, worker: Worker, settings: ServerSettings) -> Any:
    """uvicorn's server with an end in our order."""
    import uvicorn

    class OrderlyServer(uvicorn.Server):
        """Tells the worker when the end begins, and leaves the process's exit code to the program."""

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            worker.close()
            timer = asyncio.get_running_loop().call_later(settings.shutdown_seconds, worker.cancel_running)
            await super().shutdown(sockets)
            timer.cancel()

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            if threading.current_thread() is not threading.main_thread():
                yield
                return
            before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            self.force_exit = self.should_exit
            self.should_exit = True

    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # the guard tells what is worth telling
    config = uvicorn.Config(
        guard,
        http=connection_class(settings),
        loop="asyncio",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=int(settings.shutdown_seconds) + 2,
    )
    return OrderlyServer(config)
