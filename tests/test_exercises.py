"""Synthetic exercises as conversations: every kept one, its letters first, and bad rows told while the rest is read."""

import gzip
import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthesis_world import exercise, plan, quiet, rows_of, run, words_for

from ncvc.chat import Message, check_turns
from ncvc.corpus.reading.problems import ReadProblem
from ncvc.corpus.synthesis.checks import Exercise, parse_exercise
from ncvc.exercises import conversation_of, read_exercises
from ncvc.teachers.teacher import Request

RECORD = Exercise(
    "発熱と咳嗽の原因はどれか。", ("肺炎", "痛風", "骨折", "白内障", "難聴"), ("a", "c"), "aとcが正しい。"
).record


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthesis") / "out"
    run(folder, pause=0, tell=quiet, chosen=plan(topics=4))
    return folder


def read(path):
    problems: list[ReadProblem] = []
    return list(read_exercises(path, on_problem=problems.append)), problems


def write(path, *rows):
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return path


def test_every_kept_exercise_is_one_conversation_and_no_rejected_one(output):
    kept = [row for path in sorted((output / "documents").iterdir()) for row in rows_of(path)]
    found, problems = read(output)
    assert kept and not problems and (output / "rejects.jsonl").stat().st_size > 0
    assert [name for name, _ in found] == [row["id"] for row in kept]
    for (_, (user, assistant)), row in zip(found, kept, strict=True):
        # the document of the corpus says the same in its own layout: read it back from there
        again = parse_exercise(row["text"])
        assert again.question in user.content and all(option in user.content for option in again.options)
        letters, _, explanation = assistant.content.partition("\n")
        assert tuple(letters.split(",")) == again.answer and explanation == f"解説: {again.explanation}"
        check_turns([user, assistant])


def test_a_conversation_says_how_many_are_right_and_answers_with_the_letters_first():
    assert conversation_of(RECORD) == [
        Message(
            "user",
            "次の問題の正しい選択肢を2つ選んで記号で答え、理由を説明してください。\n"
            "問題: 発熱と咳嗽の原因はどれか。\na: 肺炎\nb: 痛風\nc: 骨折\nd: 白内障\ne: 難聴",
        ),
        Message("assistant", "a,c\n解説: aとcが正しい。"),
    ]


def test_documents_a_file_and_gzip_give_the_same(output, tmp_path):
    wanted, _ = read(output)
    (path,) = (output / "documents").iterdir()
    packed = tmp_path / "exercise.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    shutil.copytree(output / "documents", tmp_path / "copied")
    for source in (output / "documents", path, packed, str(packed), tmp_path / "copied"):
        assert read(source) == (wanted, [])


BAD = {
    "not JSON": (b'{"id": "x", "exercise": {', "broken JSON"),
    "nested without end": (b"[" * 100_000, "broken JSON"),
    "not UTF-8": ("発熱".encode("cp932"), "undecodable bytes"),
    "a list": ([1, 2], "no text field"),
    "a textbook": ({"id": "t", "kind": "textbook", "text": "肺炎とは"}, "it is a textbook"),
    "an exercise that is a text": ({"exercise": "問題"}, "no exercise in it"),
    "no question": ({"exercise": {**RECORD, "question": " \n"}}, "its question is empty"),
    "a question of numbers": ({"exercise": {**RECORD, "question": 5}}, "its question is no text"),
    "no explanation": (
        {"exercise": {k: v for k, v in RECORD.items() if k != "explanation"}},
        "its explanation is no text",
    ),
    "four options": (
        {"exercise": {**RECORD, "options": dict(zip("abcd", "甲乙丙丁", strict=True))}},
        "not a, b, c, d, e",
    ),
    "options in disorder": ({"exercise": {**RECORD, "options": dict.fromkeys("bacde", "甲")}}, "in order"),
    "options as a list": ({"exercise": {**RECORD, "options": ["甲"] * 5}}, "in order"),
    "an empty option": ({"exercise": {**RECORD, "options": {**RECORD["options"], "c": ""}}}, "an option is empty"),
    "no answer": ({"exercise": {**RECORD, "answer": []}}, "not a list of letters"),
    "an answer that is no option": ({"exercise": {**RECORD, "answer": ["f"]}}, "not a list of letters"),
    "an answer of lists": ({"exercise": {**RECORD, "answer": [["a"]]}}, "not a list of letters"),
    "an answer as text": ({"exercise": {**RECORD, "answer": "a"}}, "not a list of letters"),
    "an answer named twice": ({"exercise": {**RECORD, "answer": ["a", "a"]}}, "names a letter twice"),
    "half a surrogate pair": ({"exercise": {**RECORD, "explanation": "\ud800"}}, "lone surrogate"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_row_is_told_and_the_others_are_read(tmp_path, fault):
    row, told = BAD[fault]
    path = write(tmp_path / "exercise.jsonl", {"id": "one", "exercise": RECORD}, row, b"  ", {"exercise": RECORD})
    found, (problem,) = read(path)
    assert [name for name, _ in found] == ["one", "exercise.jsonl:4"]
    assert (problem.file, problem.row) == ("exercise.jsonl", 2) and told in str(problem)


def test_a_cut_file_gives_its_whole_rows_and_is_told(tmp_path):
    rows = b"".join(
        json.dumps({"id": f"row {n}", "exercise": RECORD, "n": "ab" * n}).encode() + b"\n" for n in range(500)
    )
    path = tmp_path / "exercise.jsonl.gz"
    path.write_bytes(gzip.compress(rows)[:-600])
    found, (problem,) = read(path)
    assert 0 < len(found) < 500 and [name for name, _ in found] == [f"row {n}" for n in range(len(found))]
    assert "truncated or damaged file" in str(problem) and f"the {len(found)} rows before are kept" in str(problem)


def test_other_files_in_the_folder_are_told(tmp_path):
    write(tmp_path / "a.jsonl", {"id": "one", "exercise": RECORD})
    (tmp_path / "b.csv").write_text("question,answer\n")
    found, (problem,) = read(tmp_path)
    assert len(found) == 1 and problem.file == "b.csv"


def test_bad_rows_are_logged_when_nobody_asks(tmp_path, caplog):
    path = write(tmp_path / "exercise.jsonl", [1])
    assert list(read_exercises(path)) == [] and "exercise.jsonl:1: no text field" in caplog.text


def test_nothing_to_read_is_told_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        read_exercises(tmp_path / "nowhere")
    (tmp_path / "summary.txt").write_text("x")
    with pytest.raises(ValueError, match="no file of exercises"):
        read_exercises(tmp_path)
    (tmp_path / "rejects.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="no file of exercises"):
        read_exercises(tmp_path)


@given(st.text(min_size=1), st.lists(st.sampled_from("abcde"), min_size=1, max_size=4, unique=True))
def test_any_exercise_that_is_whole_becomes_two_turns(text, letters):
    record = {**RECORD, "question": text, "explanation": text, "answer": sorted(letters)}
    if not text.strip():
        with pytest.raises(ValueError, match="its question is empty"):
            conversation_of(record)
        return
    user, assistant = conversation_of(record)
    assert f"選択肢を{len(letters)}つ選んで" in user.content and f"問題: {text}\na: " in user.content
    assert assistant.content == f"{','.join(sorted(letters))}\n解説: {text}"


def test_the_worlds_exercise_goes_through_both_ways():
    words = words_for(Request(({"role": "user", "content": "x"},), seed=1, max_tokens=10))
    user, assistant = conversation_of(parse_exercise(exercise("肺炎", words, key="b, d")).record)
    assert "2つ選んで" in user.content and assistant.content.startswith("b,d\n解説: 肺炎では")
