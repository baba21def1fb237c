"""Requests that are none, clients that leave, queues that are full, models that fail, and the server's own end."""

import asyncio
import collections
import json
import socket
import threading
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from serving_world import SHORT, ask, ask_raw, call, chat_model, endless, port_of, post, raw, serving, wait_until

from ncvc.model.assistant import Assistant
from ncvc.serving.protocol import _NEUTRAL, _SHARED, Refusal, parse_chat, parse_text, read_json
from ncvc.serving.server import LocalServer, listen
from ncvc.serving.settings import ServerSettings

pytest.importorskip("fastapi", reason="the server's packages are not installed: pip install -e '.[serve]'")
CHAT, USER = "/v1/chat/completions", [{"role": "user", "content": "あ"}]


@pytest.fixture(scope="module")
def assistant():
    return Assistant.load(chat_model())


@pytest.fixture(scope="module")
def server(assistant):
    with serving(assistant, max_messages=5, max_body_bytes=40_000, max_tokens=100) as running:
        yield running
        assert ask(running, SHORT[0])["choices"][0]["message"]["content"] == SHORT[1]  # still well after all of it


# --- requests that are none
def turns(*roles, content="あ"):
    return {"messages": [{"role": role, "content": content} for role in roles]}


BAD = {
    "no messages": ({}, "messages"),
    "messages no list": ({"messages": "あ"}, "messages"),
    "no message": ({"messages": []}, "messages"),
    "message no object": ({"messages": ["あ"]}, "messages[0]"),
    "unknown role": (turns("tool"), "messages"),
    "role no text": ({"messages": [{"role": 3, "content": "あ"}]}, "messages[0]"),
    "empty turn": (turns("user", content=" \n\u3000"), "messages"),
    "nothing left once cleaned": (turns("user", content="\u200b\u0000"), "messages"),
    "no content": ({"messages": [{"role": "user"}]}, "messages[0].content"),
    "two user turns": (turns("user", "user"), "messages"),
    "system last": (turns("user", "assistant", "system"), "messages"),
    "assistant last": (turns("user", "assistant"), "messages"),
    "too many": (turns(*["user", "assistant"] * 3), "messages"),
    "picture": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
    "tool call": ({"messages": [{**USER[0], "tool_calls": [{}]}]}, "messages[0].content"),
    "half a surrogate": (turns("user", content="\ud83d"), "messages[0].content"),
    "surrogate role": (turns("\ud83d"), "messages"),
    "model no text": ({"messages": USER, "model": 3}, "model"),
    "several answers": ({"messages": USER, "n": 2}, "n"),
    "n true": ({"messages": USER, "n": True}, "n"),
    "logprobs": ({"messages": USER, "logprobs": True}, "logprobs"),
    "frequency": ({"messages": USER, "frequency_penalty": 0.1}, "frequency_penalty"),
    "tools": ({"messages": USER, "tools": [{}]}, "tools"),
    "json": ({"messages": USER, "response_format": {"type": "json_object"}}, "response_format"),
    "typing error": ({"messages": USER, "temprature": 1}, "temprature"),
    "surrogate field": ({"messages": USER, "\ud83d": 1}, "?"),
    "hot": ({"messages": USER, "temperature": 2.1}, "temperature"),
    "cold": ({"messages": USER, "temperature": -0.1}, "temperature"),
    "words for numbers": ({"messages": USER, "temperature": "1"}, "temperature"),
    "truth for numbers": ({"messages": USER, "temperature": True}, "temperature"),
    "no mass": ({"messages": USER, "top_p": 0}, "top_p"),
    "half a token": ({"messages": USER, "max_tokens": 1.5}, "max_tokens"),
    "no token": ({"messages": USER, "max_tokens": 0}, "max_tokens"),
    "over the limit": ({"messages": USER, "max_completion_tokens": 101}, "max_completion_tokens"),
    "two limits": ({"messages": USER, "max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens"),
    "seed": ({"messages": USER, "seed": 2**63}, "seed"),
    "stream": ({"messages": USER, "stream": 1}, "stream"),
    "stream options": ({"messages": USER, "stream_options": {"include_usage": True}}, "stream_options"),
    "stop number": ({"messages": USER, "stop": 3}, "stop"),
    "stop empty": ({"messages": USER, "stop": [""]}, "stop"),
    "stops": ({"messages": USER, "stop": list("abcde")}, "stop"),
    "too long": (turns("user", content="。、" * 2500), "messages"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_chat_request_that_cannot_be_answered_is_told_what_is_wrong(server, name):
    fields, param = BAD[name]
    for stream in (False, True) if "stream" not in name else (fields.get("stream"),):
        sent = {**fields, **({} if stream is None else {"stream": stream})}
        status, headers, body = call(server, "POST", CHAT, json.dumps(sent).encode())
        assert (status, headers["content-type"]) == (400, "application/json")
        assert (body["error"]["param"], body["error"]["type"]) == (param, "invalid_request_error")
        assert len(body["error"]["message"]) > 10


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prompt": ""},
        {"prompt": "\u200b"},
        {"prompt": ["a", "b"]},
        {"prompt": [1, 2]},
        {"prompt": "あ", "echo": True},
        {"prompt": "あ", "suffix": "い"},
        {"prompt": "あ", "logprobs": 1},
        {"prompt": "あ", "best_of": 2},
        {"prompt": "あ", "messages": USER},
        {"prompt": "。、" * 2500},
    ],
)
def test_a_text_request_that_cannot_be_answered_is_told_what_is_wrong(server, fields):
    status, _, body = call(server, "POST", "/v1/completions", fields)
    assert status == 400
    assert body["error"]["param"] in fields or body["error"]["param"] == "prompt"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"a"',
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b'{"messages": NaN}',
        b"9" * 6000,
        b"[" * 15_000,
        b'{"a":' * 3000 + b"1" + b"}" * 3000,
    ],
)
def test_a_body_that_is_no_json_object_is_told(server, body):
    status, _, answer = call(server, "POST", CHAT, body)
    assert status == 400
    assert answer["error"]["message"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(sorted(_SHARED | set(_NEUTRAL) | {"messages", "prompt", "user"}))


@given(st.dictionaries(names | st.text(max_size=8), json_values, max_size=6), json_values)
def test_no_json_value_is_more_than_a_refusal(fields, value):
    chat = {"messages": [{"role": "user", "content": value}], **fields}
    for parse in (
        lambda: parse_chat(chat, most_messages=9, most_tokens=9, temperature=0.0),
        lambda: parse_text({"prompt": value, **fields}, most_tokens=9, temperature=0.0),
        lambda: read_json(json.dumps(value).encode()),
    ):
        try:
            parse()
        except Refusal as refusal:
            json.dumps(refusal.body(), ensure_ascii=False).encode()
            assert refusal.status == 400


def test_paths_and_methods_that_are_none_are_told_in_json(server):
    for method, path, status in (
        ("GET", "/v2/models", 404),
        ("GET", "/docs", 404),
        ("GET", "/openapi.json", 404),
        ("GET", "/v1/models/", 404),
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("OPTIONS", CHAT, 405),
        ("GET", "/../../etc/passwd", 404),
    ):
        found, _, body = call(server, method, path)
        assert (found, body["error"]["type"]) == (status, "invalid_request_error"), path


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50),  # TLS
        b"hello\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n",
        b"GET \xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nA: " + b"a" * 1_000_000 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
    ],
)
def test_bytes_that_are_no_http_are_told_and_cut(server, data):
    try:
        answer = raw(server, data)
    except ConnectionResetError:
        return  # cut before all was sent
    assert answer.startswith(b"HTTP/1.1 400")
    assert b'"error"' in answer


def test_a_body_that_is_too_large_is_told_however_it_comes(server):
    large = json.dumps({"messages": USER, "user": "a" * 50_000}).encode()
    assert call(server, "POST", CHAT, large)[0] == 413
    chunks = b"".join(b"4000\r\n" + b"a" * 0x4000 + b"\r\n" for _ in range(4)) + b"0\r\n\r\n"
    head = (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    )
    assert raw(server, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks).startswith(b"HTTP/1.1 413")
    assert raw(server, head + b"Content-Length: 99999999999\r\n\r\n").startswith(b"HTTP/1.1 413")
    assert raw(server, head + b"Expect: 100-continue\r\nContent-Length: 50000\r\n\r\n").startswith(b"HTTP/1.1 413")


def test_requests_that_do_not_arrive_are_cut(assistant):
    with serving(assistant, body_seconds=0.3) as server:
        whole = post(json.dumps({"messages": USER}).encode())
        started = time.monotonic()
        assert raw(server, b"") == b""
        assert raw(server, whole[:30]) == b""
        assert raw(server, whole[:-1]).startswith(b"HTTP/1.1 408")
        assert time.monotonic() - started < 5
        assert server.worker.counts() == {"running": 0, "waiting": 0}


# --- clients that leave
def begin_stream(server, **fields):
    """A socket whose stream has begun to speak."""
    connection = socket.create_connection(("127.0.0.1", port_of(server)), timeout=10)
    connection.sendall(post(json.dumps({"messages": USER, "stream": True, "max_tokens": 1000, **fields}).encode()))
    got = b""
    while b'"content":"' not in got.replace(b'"content":""', b""):
        got += connection.recv(65536)
    return connection


def test_a_client_that_leaves_in_mid_stream_frees_its_place_at_once():
    with serving(endless(), max_tokens=3000, max_batch=1) as server:
        leaving = begin_stream(server, max_tokens=3000)
        assert server.worker.counts()["running"] == 1
        leaving.close()
        wait_until(lambda: server.worker.counts() == {"running": 0, "waiting": 0}, seconds=2)
        assert ask(server, "あ", max_tokens=2)["usage"]["completion_tokens"] == 2


def test_clients_that_leave_while_they_wait_free_their_places_at_once():
    with serving(endless(), max_tokens=3000, max_batch=1, max_waiting=1) as server:
        running = begin_stream(server, max_tokens=3000)
        for stream in (False, True):
            with socket.create_connection(("127.0.0.1", port_of(server))) as waiting:
                waiting.sendall(post(json.dumps({"messages": USER, "stream": stream}).encode()))
                wait_until(lambda: server.worker.counts() == {"running": 1, "waiting": 1})
            wait_until(lambda: server.worker.counts() == {"running": 1, "waiting": 0}, seconds=2)
        running.close()


def test_a_client_that_never_reads_is_cut_and_holds_nothing(assistant):
    with serving(endless(), stalled_seconds=0.3) as server, socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        deaf.connect(("127.0.0.1", port_of(server)))
        page = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with pytest.raises(OSError):  # broken pipe or reset, whichever side notices
            for _ in range(4000):
                deaf.sendall(page * 50)
                deaf.settimeout(5)
        assert ask(server, "あ", max_tokens=1)


# --- more than can be answered
def test_who_finds_the_queue_full_is_told_when_to_come_again():
    with serving(endless(), max_tokens=3000, max_batch=1, max_waiting=0) as server:
        running = begin_stream(server, max_tokens=3000)
        status, headers, body = call(server, "POST", CHAT, {"messages": USER})
        assert (status, body["error"]["type"], body["error"]["code"]) == (429, "rate_limit_error", "queue_full")
        assert 1 <= int(headers["retry-after"]) <= 60
        running.close()


def test_a_thousand_requests_at_once_are_answered_or_told(assistant):
    async def crowd(port: int) -> list[tuple[int, bytes]]:
        request = post(json.dumps({"messages": [{"role": "user", "content": SHORT[0]}]}).encode())
        return await asyncio.gather(*(ask_raw(port, request) for _ in range(1000)))

    with serving(assistant, max_waiting=56, max_batch=8) as server:
        found = asyncio.run(crowd(port_of(server)))
        counted = collections.Counter(status for status, _ in found)
        assert set(counted) == {200, 429}
        assert counted[200] >= 64
        for status, body in found:
            if status == 200:
                assert json.loads(body)["choices"][0]["message"]["content"] == SHORT[1]
        assert server.worker.counts() == {"running": 0, "waiting": 0}
        assert ask(server, SHORT[0])["choices"][0]["message"]["content"] == SHORT[1]


def test_a_connection_too_many_is_told(assistant):
    with serving(assistant, max_connections=3) as server:
        held = [socket.create_connection(("127.0.0.1", port_of(server))) for _ in range(3)]
        time.sleep(0.1)
        answer = raw(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 503")
        for connection in held:
            connection.close()
        wait_until(lambda: call(server, "GET", "/health")[0] == 200)


def test_an_answer_whose_time_is_over_is_cut_and_a_request_whose_turn_never_came_is_told():
    with serving(endless(), max_tokens=3000, max_batch=1, request_seconds=0.5) as server:
        answers = {}
        first = threading.Thread(target=lambda: answers.update(first=ask(server, "あ", max_tokens=3000)))
        first.start()
        wait_until(lambda: server.worker.counts()["running"] == 1)
        status, headers, body = call(server, "POST", CHAT, {"messages": USER})
        first.join()
        assert answers["first"]["choices"][0]["finish_reason"] == "length"
        assert 0 < answers["first"]["usage"]["completion_tokens"] < 3000
        if status == 200:  # its turn came in its last moment
            assert body["usage"]["completion_tokens"] < 3000
        else:
            assert (status, body["error"]["code"], headers["retry-after"]) == (503, "timeout", "10")


# --- models that fail
def test_a_request_on_which_the_model_fails_does_not_take_its_neighbours_along(capfd):
    broken = Assistant.load(chat_model())
    poison = broken.tokenizer.encode("℃")
    with torch.no_grad():
        broken.model.embedding.weight[poison[-1]] = float("nan")
    with serving(broken, gather_seconds=0.3, max_batch=2) as server:
        found = {}
        bad = threading.Thread(
            target=lambda: found.update(
                bad=call(server, "POST", CHAT, {"messages": [{"role": "user", "content": "℃"}]})
            )
        )
        bad.start()
        wait_until(lambda: server.worker.counts()["waiting"] == 1)
        assert ask(server, SHORT[0])["choices"][0]["message"]["content"] == SHORT[1]
        bad.join()
        status, _, body = found["bad"]
        assert (status, body["error"]["type"]) == (500, "server_error")
        assert "Traceback" not in json.dumps(body)
        with begin_socket(server, {"messages": [{"role": "user", "content": "℃"}], "stream": True}) as connection:
            said = b"".join(iter(lambda: connection.recv(65536), b""))
        assert b'data: {"error"' in said
        assert b"[DONE]" not in said
        assert ask(server, SHORT[0])["choices"][0]["message"]["content"] == SHORT[1]
    assert "not finite" in capfd.readouterr().err


def begin_socket(server, fields):
    connection = socket.create_connection(("127.0.0.1", port_of(server)), timeout=10)
    connection.sendall(post(json.dumps(fields).encode()))
    return connection


# --- its own beginning and end
def test_a_port_that_is_taken_is_named_with_the_cure():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"port={port} .*another program.*set port="):
            listen(ServerSettings(port=port))


def test_the_end_of_the_server_lets_answers_finish_and_tells_those_who_wait(assistant):
    with serving(endless(), max_tokens=3000, max_batch=1, shutdown_seconds=0.3) as server:
        streaming = begin_stream(server, max_tokens=3000)
        with begin_socket(server, {"messages": USER}) as waiting:
            wait_until(lambda: server.worker.counts()["waiting"] == 1)
            server.stop()
            assert waiting.recv(65536).startswith(b"HTTP/1.1 503")
        rest = b"".join(iter(lambda: streaming.recv(65536), b""))
        assert b"shutting_down" in rest
        streaming.close()


def test_a_server_that_never_ran_frees_its_port(assistant):
    server = LocalServer(assistant, settings=ServerSettings(port=0))
    port = port_of(server)
    server.close()
    listen(ServerSettings(port=port)).close()
