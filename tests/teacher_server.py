"""A server on loopback that speaks the OpenAI protocol as a script says, with every fault a real one can have."""

import json
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ncvc.teachers.teacher import Request


def ask(text: str, *, seed: int = 0, max_tokens: int = 16, temperature: float | None = None) -> Request:
    return Request([{"role": "user", "content": text}], seed=seed, max_tokens=max_tokens, temperature=temperature)


def completion(text: str, finish: str | None = "stop") -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return json.dumps({"choices": [choice], "usage": {"completion_tokens": len(text)}}).encode()


class Server(ThreadingHTTPServer):
    """Answers with `script(body, nth time it came)`: bytes, (status, headers, bytes), or a function of the handler."""

    daemon_threads = True

    def __init__(self, script, *, models=("tiny",)):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.models = script, models
        self.lock, self.seen = threading.Lock(), Counter()
        self.requests: list[tuple[str, dict, dict]] = []
        self.running = self.most_running = 0
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def server_close(self):
        self.shutdown()  # a thread that goes on listening on a closed socket takes a core for itself
        super().server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        pass  # broken connections are what is tested


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def reply(self, status, headers, body):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if callable(self.server.models):
            self.reply(*self.server.models(dict(self.headers)))
        else:
            self.reply(200, {}, json.dumps({"data": [{"id": name} for name in self.server.models]}).encode())

    def do_POST(self):
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        server = self.server
        with server.lock:
            server.requests.append((self.path, json.loads(raw), dict(self.headers)))
            server.seen[raw] += 1
            nth = server.seen[raw]
            server.running += 1
            server.most_running = max(server.most_running, server.running)
        try:
            found = server.script(json.loads(raw), nth)
            if callable(found):
                found(self)
            else:
                self.reply(*(found if isinstance(found, tuple) else (200, {}, found)))
        finally:
            with server.lock:
                server.running -= 1


def reset(handler):
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def half(handler):
    body = completion("肺炎")
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2])
    handler.close_connection = True


def chunked(handler):
    body = completion("分割された返答")
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for place in range(0, len(body), 7):
        part = body[place : place + 7]
        handler.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
    handler.wfile.write(b"0\r\n\r\n")


def half_chunked(handler):
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b'ff\r\n{"choices": [')
    handler.close_connection = True


def drip(handler):
    """A byte now and then, for longer than any test waits: each is soon enough, the whole is not."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(400):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(1000):
        handler.wfile.write(b"x" * 10_000)
