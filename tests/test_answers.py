"""Saved answers: nothing that was written is lost, whatever was answered and wherever the program was killed."""

import fcntl
import json
import math
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ncvc.evaluation.answers import Answer, AnswerWriter, read_answers

HASH = "0" * 64
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)


def answer(number: int, text: str | None = "A", **more) -> Answer:
    return Answer(task="crade", id=f"CRADE:{number}", prompt_sha256=HASH, answer=text, **more)


def write(path, *answers: Answer) -> None:
    with AnswerWriter(path) as writer:
        for each in answers:
            writer.write(each)


@given(
    st.lists(
        st.builds(
            Answer,
            task=TEXTS,
            id=TEXTS,
            prompt_sha256=st.just(HASH),
            answer=TEXTS,
            finish_reason=st.none() | TEXTS,
            log_likelihoods=st.none() | st.lists(st.floats(max_value=0, allow_nan=False)).map(tuple),
            seconds=st.integers(0, 99).map(float),
        ),
        max_size=5,
    )
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_answer_is_read_back_as_it_was_written_and_is_one_line_to_every_reader(tmp_path, answers):
    path = tmp_path / "answers.jsonl"
    path.unlink(missing_ok=True)
    write(path, *answers)
    assert read_answers(path) == {each.key: each for each in answers}
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["answer"] for line in lines] == [each.answer for each in answers]


@given(st.data())
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_killed_at_any_byte_the_whole_lines_stay_and_the_rest_is_written_again(tmp_path, data):
    path = tmp_path / "answers.jsonl"
    path.unlink(missing_ok=True)
    answers = [answer(0, "右肺炎\n、咳"), answer(1, None, failed="HTTP 500"), answer(2, '["', log_likelihoods=(-1.5,))]
    write(path, *answers)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    lines = whole[:cut].split(b"\n")
    complete = [each for each, line in zip(answers, whole.split(b"\n"), strict=False) if line in lines]
    assert list(read_answers(path).values()) == complete
    with AnswerWriter(path) as writer:
        assert list(writer.answers.values()) == complete
        for each in answers:
            if each.key not in writer.answers:
                writer.write(each)
    assert path.read_bytes() == whole


def test_of_several_lines_of_an_item_the_last_counts_and_a_failure_is_not_repeated(tmp_path):
    path = tmp_path / "answers.jsonl"
    failure = answer(0, None, failed="no reply")
    write(path, failure)
    write(path, failure, answer(0, "B"), answer(1))
    assert read_answers(path)["crade", "CRADE:0"].answer == "B"
    assert len(path.read_bytes().splitlines()) == 3
    other = Answer(task="crade", id="CRADE:0", prompt_sha256="1" * 64, answer=None, failed="no reply")
    write(path, failure, other)
    assert read_answers(path)["crade", "CRADE:0"] == other


@pytest.mark.parametrize(
    "line",
    [
        b"", b"\0" * 50, b"[]", b"1", b"not json", b"[" * 100_000, b'{"task": "crade"}', b'{"task": 1}', b"\xff\xfe",
        b'{"task": "a", "id": "b", "prompt_sha256": "c", "answer": ["x"]}',
        b'{"task": "a", "id": "b", "prompt_sha256": "c", "answer": null}',
        b'{"task": "a", "id": "b", "prompt_sha256": "c", "answer": "A", "failed": "both"}',
        b'{"task": "a", "id": "b", "prompt_sha256": "c", "answer": "A", "log_likelihoods": 3}',
    ],
)  # fmt: skip
def test_a_line_that_is_no_answer_is_told_and_left_out(tmp_path, line):
    path, told = tmp_path / "answers.jsonl", []
    write(path, answer(0), answer(1))
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + line + b"\n" + second)
    assert list(read_answers(path, tell=told.append)) == [("crade", "CRADE:0"), ("crade", "CRADE:1")]
    assert len(told) == bool(line) and all("line 2" in text for text in told)


@pytest.mark.parametrize("content", [b"a note", b"a note\n", b'{"a": 1}\n', b"[]\n"])
def test_a_file_that_is_none_of_answers_is_left_alone(tmp_path, content):
    path = tmp_path / "answers.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="no file of answers"):
        AnswerWriter(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"\0\0\0\0", b'{"ta', b'{"task": "crade", "id'])
def test_a_file_with_the_beginning_of_one_line_is_begun_anew(tmp_path, content):
    path = tmp_path / "answers.jsonl"
    path.write_bytes(content)
    write(path, answer(0))
    assert list(read_answers(path).values()) == [answer(0)] and path.read_bytes().count(b"\n") == 1


def test_a_whole_last_line_without_its_end_is_kept(tmp_path):
    path = tmp_path / "answers.jsonl"
    write(path, answer(0))
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    write(path, answer(1))
    assert list(read_answers(path).values()) == [answer(0), answer(1)]


def test_an_answer_of_a_megabyte_and_one_with_half_a_surrogate_pair_are_kept(tmp_path):
    path = tmp_path / "answers.jsonl"
    write(path, answer(0, "咳" * 400_000), answer(1, "a\ud800b"))
    found = read_answers(path)
    assert found["crade", "CRADE:0"].answer == "咳" * 400_000 and found["crade", "CRADE:1"].answer == "a?b"


def test_an_impossible_option_comes_back_as_minus_infinity(tmp_path):
    path = tmp_path / "answers.jsonl"
    write(path, answer(0, log_likelihoods=(-math.inf, -0.5)))
    json.loads(path.read_text(), parse_constant=pytest.fail)
    assert read_answers(path)["crade", "CRADE:0"].log_likelihoods == (-math.inf, -0.5)


def test_two_programs_do_not_write_the_same_answers(tmp_path):
    path = tmp_path / "answers.jsonl"
    with path.open("ab") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another program"):
            AnswerWriter(path)


def test_what_was_written_outlives_a_program_that_is_killed_at_once(tmp_path):
    path = tmp_path / "answers.jsonl"
    code = (
        "import os, signal, sys; from ncvc.evaluation.answers import *\n"
        f"writer = AnswerWriter({str(path)!r})\n"
        "for n in range(50): writer.write(Answer(task='t', id=str(n), prompt_sha256='', answer='A'))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert len(read_answers(path)) == 50


def test_a_missing_file_and_an_answer_that_is_both_or_neither_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file of answers"):
        read_answers(tmp_path / "none.jsonl")
    for text, failed in ((None, None), ("A", "failed too")):
        with pytest.raises(ValueError, match="CRADE:0"):
            answer(0, text, failed=failed)
