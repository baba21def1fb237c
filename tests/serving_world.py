"""A tiny chat model that has learned two answers, and a real server of it in a thread."""

import asyncio
import atexit
import contextlib
import functools
import http.client
import json
import shutil
import socket
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from conftest import SENTENCES, TINY_SHAPE

from ncvc.chat import Message, encode_conversation, with_chat_tokens
from ncvc.corpus.cleaning import Cleaner
from ncvc.model.assistant import Assistant
from ncvc.model.checkpoint import save_model_directory
from ncvc.model.transformer import ModelConfig, Transformer
from ncvc.morphology import build_analyzer
from ncvc.serving.server import LocalServer
from ncvc.serving.settings import ServerSettings
from ncvc.tokenizer import SMALLEST_VOCABULARY, Tokenizer, segment_text

SHORT, LONG = ("診断は？", "肺炎です。"), ("経過は？", SENTENCES[0])
CONTEXT = 4096


@functools.cache
def chat_model() -> Path:
    """A model directory in whose network two conversations were drilled until it says them by heart; made once."""
    folder = Path(tempfile.mkdtemp(prefix="ncvc-serving-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    cleaner, analyzer, size = Cleaner(), build_analyzer(), SMALLEST_VOCABULARY + 160
    segmented = [segment_text(cleaner(text), analyzer=analyzer) for text in SENTENCES * 5]
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # the text is too small for its vocabulary
        base = Tokenizer.train(segmented, vocab_size=size, cleaner=cleaner, analyzer=analyzer, progress=False)
    tokenizer = with_chat_tokens(base)
    tokenizer.save(folder / "tokenizer")
    network = Transformer(ModelConfig(vocab_size=size + 3, context_length=CONTEXT, **TINY_SHAPE), seed=3)
    examples = [
        encode_conversation([Message("user", asked), Message("assistant", said)], tokenizer=tokenizer)
        for asked, said in (SHORT, LONG)
    ]
    length = max(len(example.ids) for example in examples)
    ids = torch.zeros(len(examples), length, dtype=torch.long)
    labels = torch.full((len(examples), length), -100)
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        for place in range(1, len(example.ids)):
            if example.supervised[place]:
                labels[row, place - 1] = example.ids[place]
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(400):
        loss = network.loss(ids, labels) / (labels >= 0).sum()
        if loss.item() < 0.02:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02, "the tiny model has not learned its answers"
    save_model_directory(
        folder / "tiny-chat",
        config=network.config,
        weights=network.state_dict(),
        tokenizer=folder / "tokenizer",
        training={},
    )
    return folder / "tiny-chat"


def endless() -> Assistant:
    """The same model with the row of its end token taken out: greedily it never ends an answer."""
    assistant = Assistant.load(chat_model())
    with torch.no_grad():
        assistant.model.head.weight[assistant.tokenizer.end_id] = 0
    return assistant


@contextlib.contextmanager
def serving(assistant: Assistant, **settings: Any) -> Iterator[LocalServer]:
    """A server of ``assistant`` on a free loopback port, ended afterwards."""
    server = LocalServer(assistant, settings=ServerSettings(**{"port": 0, "gather_seconds": 0.05, **settings}))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_until(lambda: call(server, "GET", "/health")[0] == 200)
        yield server
    finally:
        server.stop()
        thread.join(20)
        assert not thread.is_alive()


def wait_until(condition: Any, *, seconds: float = 10) -> None:
    """Wait for ``condition()`` to hold; ``AssertionError`` when it does not within ``seconds``."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            if condition():
                return
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def port_of(server: LocalServer) -> int:
    return int(server.address.rpartition(":")[2])


def call(
    server: LocalServer, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, dict[str, str], Any]:
    """Status, headers and body (from JSON where it is) of one request; a ``bytes`` body is sent as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", port_of(server), timeout=30)
    try:
        sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, sent, {"Content-Type": "application/json", **given})
        response = connection.getresponse()
        content = response.read()
        found = {name.lower(): value for name, value in response.getheaders()}
        is_json = found.get("content-type", "").startswith("application/json")
        return response.status, found, json.loads(content) if is_json else content
    finally:
        connection.close()


def ask(server: LocalServer, text: str, **fields: Any) -> dict[str, Any]:
    """The answer to one user turn, without streaming."""
    status, _, body = call(
        server, "POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": text}], **fields}
    )
    assert status == 200, body
    return body


def raw(server: LocalServer, data: bytes, *, seconds: float = 10) -> bytes:
    """All that the server says to these bytes until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port_of(server)), timeout=seconds) as connection:
        connection.sendall(data)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
        return b"".join(parts)


def post(body: bytes, *, path: str = "/v1/chat/completions", extra: str = "") -> bytes:
    """The bytes of one request whose connection the server is to close."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n{extra}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def ask_raw(port: int, request: bytes) -> tuple[int, bytes]:
    """Status and body of one request that asks for its connection to be closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return int(answer.split(b" ", 2)[1]), answer.partition(b"\r\n\r\n")[2]
