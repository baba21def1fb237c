"""`python -m ncvc.generate`: one prompt, files of prompts and the terminal, on a tiny model that knows two answers."""

import fcntl
import io
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import REPOSITORY, program_environment
from omegaconf import DictConfig, OmegaConf
from test_assistant import write_chat_model

from ncvc.chat import Message
from ncvc.config import CONF_DIRECTORY
from ncvc.generate import generate
from ncvc.generation_settings import TEXTS, GenerateSettings, listed
from ncvc.prompt_file import AnswerFile, PromptRow, read_prompts
from ncvc.resuming import RunStopped
from ncvc.settings import plain_texts
from ncvc.terminal_chat import TerminalChat, for_terminal, interruptible


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("chat"))


def configuration(**settings) -> DictConfig:
    """`conf/generate.yaml` with these settings, as Hydra gives it to the program."""
    plain = OmegaConf.load(CONF_DIRECTORY / "generate.yaml")
    del plain["hydra"]
    for name, value in settings.items():
        plain[name] = str(value) if isinstance(value, Path) else value
    return plain


@pytest.fixture
def run(directory, tmp_path):
    """Run the program's task with these settings in this process."""

    def task(**settings):
        texts = {name: settings.pop(name) for name in ("prompt", "system", "options", "choose") if name in settings}
        return generate(configuration(**{"home": tmp_path / "home", "model": directory, **settings}), texts=texts)

    return task


def program(*arguments: str, home: Path, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "ncvc.generate", *arguments]
    return subprocess.run(
        command, cwd=REPOSITORY, env=program_environment(home), capture_output=True, check=False, timeout=120, **options
    )


# --- one prompt


def test_the_program_answers_a_prompt_as_it_stands_and_writes_it_nowhere(tmp_path, directory):
    prompt = "診断は?, '${oc.env:HOME}' [a=b] \\"
    ran = program(f"model={directory}", f"prompt={prompt}", home=tmp_path / "home")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.decode().endswith("\n") and len(ran.stdout.decode()) > 1
    for path in (tmp_path / "home").rglob("*"):
        assert path.is_dir() or "診断" not in path.read_text(encoding="utf-8")


def test_an_answer_goes_to_standard_output_alone(run, capsys):
    assert run(prompt="診断は?").text == "肺炎、瘰癧。"
    assert capsys.readouterr().out == "肺炎、瘰癧。\n"
    run(prompt="診断は?", max_new_tokens=3)
    told = capsys.readouterr()
    assert told.out == "肺炎、\ufffd\n" and "cut at max_new_tokens" in told.err


def test_options_are_weighed_and_the_likeliest_is_marked(run, capsys):
    scores = run(prompt="診断は?", options='["発熱、咳", "肺炎、瘰癧。"]')
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("*") and lines[1].endswith("肺炎、瘰癧。") and scores[1] > scores[0]
    assert float(lines[0].split()[0]) == pytest.approx(scores[0], abs=1e-4)


def test_closed_answers_come_in_their_form(run):
    assert run(prompt="診断は?", choose="A,B,C").text in set("ABC")
    assert len(run(prompt="診断は?", choose="a,b,c,d", choose_count=2).text.split(",")) == 2
    question = "薬は?「患者」\n「発熱にアセトアミノフェン、咳。」"
    spans = json.loads(run(prompt=question, spans=True, max_new_tokens=30, temperature=2.0).text)
    assert spans and all(span in "発熱にアセトアミノフェン、咳。" for span in spans)


def test_a_base_model_continues_text(run, directory):
    base = directory.parent / "base" / "model"
    assert run(model=base, prompt="患者は", raw=True, max_new_tokens=5).ids
    with pytest.raises(ValueError, match="raw=true"):
        run(model=base, prompt="患者は")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "exactly one"),
        ({"prompt": "a", "chat": True}, "prompt=TEXT and chat=true"),
        ({"prompt": "a", "options": "[]"}, "at least one answer"),
        ({"prompt": "a", "options": "a", "spans": True}, "options and spans exclude"),
        ({"chat": True, "raw": True}, "does not go with raw"),
        ({"prompt": "a", "output": "b"}, "set file too"),
        ({"prompt": "a", "raw": True, "system": "b"}, "system belongs"),
        ({"prompt": "a", "temperature": -1.0}, "temperature=-1.0"),
        ({"prompt": "a", "temperature": float("nan")}, "temperature=nan"),
        ({"prompt": "a", "top_p": 0.0}, "top_p=0.0"),
        ({"prompt": "a", "repetition_penalty": 0.0}, "repetition_penalty=0.0"),
        ({"prompt": "a", "max_new_tokens": 0}, "max_new_tokens=0"),
        ({"prompt": "a", "max_new_tokens": 2.5}, "must be a whole number"),
        ({"prompt": "a", "batch_size": 0}, "batch_size=0"),
        ({"prompt": "a", "too_long": "cut"}, "too_long='cut'"),
        ({"prompt": "a", "dtype": "int4"}, "dtype='int4'"),
        ({"prompt": "a", "choose": "A,A"}, "option letters"),
        ({"prompt": "a", "choose": "A,B", "choose_count": 3}, "3 of 2"),
        ({"prompt": "\n"}, "is empty"),
        ({"prompt": "咳" * 500}, "context is 128"),
        ({"file": "prompts.csv"}, "convert it"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(run, settings, told):
    with pytest.raises(ValueError, match=told):
        run(**settings)


def test_all_that_is_wrong_with_the_settings_is_told_at_once():
    plain = {**configuration(), "temperature": -1, "top_p": 3, "unknown": 1}
    with pytest.raises(ValueError, match="unknown: no such setting"):
        GenerateSettings.from_plain(plain)
    del plain["unknown"]
    with pytest.raises(ValueError, match=r"temperature=-1.*\n.*top_p=3.*\n.*exactly one"):
        GenerateSettings.from_plain(plain)


def test_free_texts_are_kept_from_the_grammar_of_overrides():
    rest, texts = plain_texts(
        ["prompt=a,b=c", "temperature=1", "system=null", "options=[x,y]", "prompt=", "-m"], names=TEXTS
    )
    assert rest == ["temperature=1", "system=null", "-m"] and texts == {"prompt": "", "options": "[x,y]"}
    assert listed("[はい, いいえ]") == ("はい", "いいえ") == listed('["はい", "いいえ"]') == listed("はい,いいえ")
    assert listed('["A, B"]') == ("A, B",)
    with pytest.raises(ValueError, match="list of texts"):
        listed("[1, 2]")


# --- a file of prompts


GOOD = ['{"prompt": "主訴は?", "id": "a"}', '{"messages": [{"role": "user", "content": "診断は?"}]}']
BAD = {
    "not json": "not valid JSON",
    "[" * 100_000: "JSON|nested",
    "[]": '"prompt" or "messages"',
    '{"prompt": "a", "messages": []}': '"prompt" or "messages"',
    '{"prompt": 3}': "prompt must be text",
    '{"prompt": "a", "id": [1]}': "id must be",
    '{"prompt": "a", "passage": 1}': "passage must be",
    '{"messages": []}': "at least one message",
    '{"messages": [{"role": "robot", "content": "a"}]}': "role 'robot'",
    '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}': "last message",
    '{"prompt": " "}': "is empty",
    '{"prompt": "\U0001f600"}': "empty once it is cleaned",
}


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_good_row_is_answered_and_every_bad_one_told_by_line(run, tmp_path, capsys):
    prompts = tmp_path / "prompts.jsonl"
    lines = [GOOD[0], *BAD, "", GOOD[1]]
    prompts.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\n" + b'{"prompt": "\xff"}\n')
    with pytest.raises(RunStopped, match=f"{len(BAD) + 1} prompts .* have no answer") as stopped:
        run(file=prompts)
    assert stopped.value.exit_code == 1
    found = records(tmp_path / "prompts.answers.jsonl")
    assert [(record["line"], record["text"]) for record in found] == [
        (1, "発熱と咳嗽です。"),
        (len(lines), "肺炎、瘰癧。"),
    ]
    assert found[0]["id"] == "a" and found[0]["finish_reason"] == "stop"
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("prompts.jsonl line")]
    assert len(told) == len(BAD) + 1 and "line 16: is not UTF-8" in told[-1]
    for number, (line, reason) in enumerate(BAD.items(), 2):
        entry = next(entry for entry in told if f"line {number}:" in entry)
        assert any(word in entry for word in reason.split("|")), line[:99]


def test_a_stopped_file_goes_on_where_it_stopped_and_ends_the_same(run, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"主訴{number}は{'、咳' * (number % 5)}?" for number in range(20)), encoding="utf-8")
    settings = {"file": prompts, "temperature": 2.0, "max_new_tokens": 8}
    whole = run(**settings, output=tmp_path / "whole.jsonl", batch_size=3).read_bytes()
    kept = whole.splitlines(keepends=True)
    part = tmp_path / "part.jsonl"
    part.write_bytes(b"".join([kept[4], *kept[9:12]]) + kept[2][:40])  # killed while it wrote
    assert run(**settings, output=part, batch_size=7).read_bytes() == whole
    assert [record["line"] for record in records(part)] == list(range(1, 21))
    assert len({record["text"] for record in records(part)}) > 10


def test_answers_of_another_model_setting_or_prompt_are_refused(run, tmp_path, directory):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(GOOD), encoding="utf-8")
    before = run(file=prompts).read_bytes()
    for change in ({"temperature": 0.5}, {"system": "短く。"}, {"choose": "A,B"}):
        with pytest.raises(ValueError, match="another file, model or settings"):
            run(file=prompts, **change)
    prompts.write_text("\n".join([GOOD[0].replace("主訴", "体温"), GOOD[1]]), encoding="utf-8")
    with pytest.raises(ValueError, match="line 1 of another"):
        run(file=prompts)
    assert (tmp_path / "prompts.answers.jsonl").read_bytes() == before


@pytest.mark.parametrize("content", ["a note without line end", '{"a": 1}\n', "[]\n", '{"line": [1], "key": 2}\n'])
def test_a_file_that_is_none_of_answers_is_left_alone(run, tmp_path, content):
    prompts, other = tmp_path / "prompts.jsonl", tmp_path / "other.txt"
    prompts.write_text(GOOD[0], encoding="utf-8")
    other.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="set another output"):
        run(file=prompts, output=other)
    with pytest.raises(ValueError, match="prompts itself"):
        run(file=prompts, output=prompts)
    assert other.read_text(encoding="utf-8") == content and prompts.read_text(encoding="utf-8") == GOOD[0]


def test_two_programs_do_not_write_the_same_answers(run, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(GOOD[0], encoding="utf-8")
    with (tmp_path / "prompts.answers.jsonl").open("ab") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another program"):
            run(file=prompts)


def test_options_and_spans_of_a_file(run, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "診断は?"}, {"prompt": "主訴は?", "passage": "発熱と咳"}, {"prompt": "薬は?", "passage": '"'}]
    prompts.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    weighed = records(run(file=prompts, options="[発熱と咳嗽です。,肺炎、瘰癧。]", output=tmp_path / "a.jsonl"))
    assert [record["text"] for record in weighed[:2]] == ["肺炎、瘰癧。", "発熱と咳嗽です。"]
    assert set(weighed[0]["log_likelihoods"]) == {"発熱と咳嗽です。", "肺炎、瘰癧。"}
    with pytest.raises(RunStopped, match="1 prompts"):  # a passage without text
        run(file=prompts, spans=True, max_new_tokens=40, output=tmp_path / "b.jsonl")
    found = records(tmp_path / "b.jsonl")
    assert all(span in "発熱と咳" for span in json.loads(found[1]["text"])) and len(found) == 2


def test_an_empty_or_missing_file_of_prompts_is_told(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n \n")
    with pytest.raises(ValueError, match="no prompt in it"):
        read_prompts(tmp_path / "empty.jsonl", raw=False, system=None)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_prompts(tmp_path / "none.jsonl", raw=False, system=None)


def test_texts_are_continued_and_a_system_turn_goes_before_conversations(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(GOOD), encoding="utf-8")
    rows, problems = read_prompts(path, raw=True, system=None)
    assert rows[0].text == "主訴は?" and not rows[0].messages and "instead of messages" in problems[2]
    rows, problems = read_prompts(path, raw=False, system="短く。")
    assert [row.messages[0] for row in rows] == [Message("system", "短く。")] * 2 and not problems


def test_an_answer_is_on_disk_when_it_is_written_and_is_one_line_to_every_reader(tmp_path):
    row, text = PromptRow(line=3, text="a"), "咳\u2028\x85\n\x1e\ufffd"
    with AnswerFile(tmp_path / "a.jsonl", rows=[row], identity={}) as answers:
        answers.write(3, {"text": text})
        assert records(tmp_path / "a.jsonl")[0]["text"] == text
    with AnswerFile(tmp_path / "a.jsonl", rows=[row], identity={}) as answers:
        assert answers.done == {3}


# --- the terminal


def conversation(run, monkeypatch, capsys, *lines: str, **settings) -> tuple[TerminalChat, str, str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    chat = run(chat=True, **{"max_new_tokens": 30, **settings})
    told = capsys.readouterr()
    return chat, told.out, told.err


def test_each_line_of_a_pipe_is_a_turn(run, monkeypatch, capsys):
    chat, out, _ = conversation(run, monkeypatch, capsys, "診断は?", "", "/reset", "主訴は?")
    assert out == "肺炎、瘰癧。\n発熱と咳嗽です。\n"
    assert chat.turns == [Message("user", "主訴は?"), Message("assistant", "発熱と咳嗽です。")]


def test_commands_do_what_they_say_and_unknown_ones_are_not_sent(run, monkeypatch, capsys, tmp_path):
    saved, other = tmp_path / "talk.jsonl", tmp_path / "other.jsonl"
    other.write_text("mine")
    lines = [
        "/save",
        f"/save {saved}",
        "/system 短く。",
        "/system \U0001f600",
        "診断は?",
        f"/save {saved}",
        f"/save {saved}",
    ]
    lines += [f"/save {other}", f"/save {tmp_path}/none/a", "/foo", "//usr", "/system", "/help", "/quit", "主訴は?"]
    chat, _, err = conversation(run, monkeypatch, capsys, *lines)
    assert [json.loads(saved.read_text(encoding="utf-8"))["messages"][place]["content"] for place in range(3)] == [
        "短く。", "診断は?", chat.turns[1].content,
    ]  # fmt: skip
    assert other.read_text() == "mine" and "is left alone" in err and "cannot be written" in err
    assert "nothing to save" in err and "/foo is no command" in err and "nothing is left of that system turn" in err
    assert chat.turns[2].content == "/usr" and chat.system is None and "主訴" not in str(chat.turns)


def test_a_full_context_leaves_out_the_oldest_turns_with_a_note(run, monkeypatch, capsys):
    chat, out, err = conversation(run, monkeypatch, capsys, *["診断は?"] * 12)
    assert len(chat.turns) == 24 and out.count("\n") == 12
    assert "does not read the oldest" in err


def test_a_turn_that_cannot_be_answered_is_taken_back_and_the_chat_goes_on(run, monkeypatch, capsys):
    chat, _, err = conversation(run, monkeypatch, capsys, "\U0001f600", "咳" * 400, "診断は?")
    assert "empty once it is cleaned" in err and "note: " in err
    assert chat.turns[-1] == Message("assistant", "肺炎、瘰癧。") and "\U0001f600" not in str(chat.turns)


def test_ctrl_c_stops_the_answer_and_not_the_program():
    pressed = []

    def answer(messages, on_text):
        text = ""
        for character in "発熱と咳嗽":
            text += character
            if not on_text(character):
                return text, "cancelled"
        return text, "stop"

    def write(text: str) -> None:
        if text == "熱" and not pressed:
            pressed.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    notes, lines = [], iter(["一", "二"])
    chat = TerminalChat(
        answer=answer,
        fitting=lambda messages: messages,
        cleaned=str.strip,
        read=lambda: next(lines, None),
        write=write,
        note=notes.append,
    )
    before = signal.getsignal(signal.SIGINT)
    chat.run()
    assert [turn.content for turn in chat.turns] == ["一", "発熱", "二", "発熱と咳嗽"]
    assert len(notes) == 1 and "stopped" in notes[0] and signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_is_not_held_back():
    with pytest.raises(KeyboardInterrupt), interruptible() as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert interrupt.seen
        signal.raise_signal(signal.SIGINT)


def test_outside_the_main_thread_ctrl_c_is_left_to_the_program():
    seen = []

    def work() -> None:
        with interruptible() as interrupt:
            seen.append(interrupt.seen)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_control_characters_of_an_answer_do_not_reach_a_terminal():
    assert for_terminal("咳\x1b[2J\x9b\r\n\t\x07") == "咳\ufffd[2J\ufffd\ufffd\n\t\ufffd"


@pytest.mark.slow
def test_in_a_real_terminal_a_conversation_is_held_and_ctrl_c_at_the_prompt_ends_it(tmp_path, directory):
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "ncvc.generate", f"model={directory}", "chat=true", "max_new_tokens=30"]
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env={**program_environment(tmp_path), "TERM": "dumb"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, 0x540E, 0),  # TIOCSCTTY: Ctrl-C comes from this terminal
    )
    os.close(slave)
    seen = b""

    def until(words: bytes) -> None:
        nonlocal seen
        while words not in seen:
            seen += os.read(master, 4096)
        seen = seen.partition(words)[2]

    until(b"> ")
    os.write(master, "診断は?\n".encode())
    until("瘰癧。".encode())
    until(b"> ")
    os.write(master, b"\x03")
    assert process.wait(timeout=30) == 0
    os.close(master)


@pytest.mark.slow
def test_a_killed_program_loses_no_finished_answer(tmp_path, directory):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"主訴{number}は?" for number in range(600)), encoding="utf-8")
    arguments = [f"model={directory}", f"file={prompts}", "max_new_tokens=20", "batch_size=4"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ncvc.generate", *arguments], cwd=REPOSITORY, env=program_environment(tmp_path)
    )
    answers = tmp_path / "prompts.answers.jsonl"
    while process.poll() is None and (not answers.exists() or answers.read_bytes().count(b"\n") < 40):
        pass
    process.kill()
    process.wait()
    before = set(answers.read_bytes().splitlines()[:40])
    assert 40 <= answers.read_bytes().count(b"\n") < 600
    ran = program(*arguments, home=tmp_path)
    assert ran.returncode == 0 and b"answered already" in ran.stderr
    after = answers.read_bytes().splitlines()
    assert before <= set(after) and [json.loads(line)["line"] for line in after] == list(range(1, 601))
