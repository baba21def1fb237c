"""``python -m ncvc.serve`` as a program: it serves, ends in order at a signal, names what keeps it, hides its token."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys

import pytest
from conftest import REPOSITORY, program_environment
from serving_world import LONG, ask_raw, chat_model, post

pytest.importorskip("fastapi", reason="the server's packages are not installed: pip install -e '.[serve]'")
pytestmark = pytest.mark.slow
USER = [{"role": "user", "content": "あ"}]


def start(*arguments: str, home, **environment: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "ncvc.serve", f"model={chat_model()}", *arguments]
    kept = {**program_environment(home), **environment}
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=kept, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def page_of(program: subprocess.Popen) -> tuple[str, str]:
    """Host and port that the program prints, once it does."""
    lines = []
    for line in program.stdout:
        lines.append(line)
        if found := re.match(r"page +http://(.*):(\d+)/", line):
            return found[1], found[2]
    raise AssertionError("".join(lines))


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_the_program_serves_and_ends_in_order_at_a_signal(tmp_path, sent):
    program = start("port=0", home=tmp_path)
    host, port = page_of(program)
    assert asyncio.run(ask_raw(int(port), post(json.dumps({"messages": USER, "max_tokens": 3}).encode())))[0] == 200
    with socket.create_connection((host, int(port))) as stream:
        stream.sendall(post(json.dumps({"messages": [{"role": "user", "content": LONG[0]}], "stream": True}).encode()))
        stream.recv(10)
        program.send_signal(sent)
        rest = b"".join(iter(lambda: stream.recv(65536), b""))
    assert b"[DONE]" in rest  # it was let finish
    output = program.communicate(timeout=20)[0]
    assert program.returncode == 0
    assert "stopped." in output
    assert "Traceback" not in output
    assert "POST /v1/chat/completions 200" in output


def test_the_program_names_what_keeps_it_from_serving(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        cases = {
            f"port={taken.getsockname()[1]}": "another program listens",
            "host=0.0.0.0": "NCVC_TOKEN",
            "prt=1": "did you mean port",
            "max_batch=many": "max_batch='many': must be a whole number",
        }
        for argument, words in cases.items():
            program = start(argument, home=tmp_path)
            output = program.communicate(timeout=60)[0]
            assert program.returncode in (1, 2)
            assert words in output
            assert "Traceback" not in output


def test_the_program_takes_its_token_from_the_environment_and_shows_it_nowhere(tmp_path):
    secret = "0123456789abcdef" * 2
    program = start("port=0", home=tmp_path, NCVC_TOKEN=secret)
    _, port = page_of(program)
    request = "GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    assert asyncio.run(ask_raw(int(port), f"{request}\r\n".encode()))[0] == 401
    authorized = f"{request}Authorization: Bearer {secret}\r\n\r\n".encode()
    assert asyncio.run(ask_raw(int(port), authorized))[0] == 200
    program.send_signal(signal.SIGINT)
    assert secret not in program.communicate(timeout=20)[0]
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or secret not in path.read_text(encoding="utf-8"), path
    assert secret not in os.environ.values()
