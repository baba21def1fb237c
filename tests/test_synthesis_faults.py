"""Kills at any moment, torn journals, teachers that go away, answers in any order: the same bytes result."""

import json
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from synthesis_world import answer, bytes_of, plan, quiet, rows_of, run

from ncvc.corpus.synthesis.run import RunSettings, TeacherGone, synthesize
from ncvc.teachers.teacher import Failure, ScriptedTeacher

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("unbroken") / "out"
    run(output, pause=0, tell=quiet)
    return output


# --- the order in which answers come changes nothing ---


class Shuffled(ScriptedTeacher):
    """Has several requests under way and answers them in any order."""

    def __init__(self, script, *, name: str, seed: int, places: int = 7) -> None:
        super().__init__(script, name=name)
        self.random, self.places = random.Random(seed), places

    def answer_as_completed(self, requests):
        source, under_way = enumerate(requests), []
        while True:
            while len(under_way) < self.places and (following := next(source, None)) is not None:
                under_way.append(following)
            if not under_way:
                return
            number, request = under_way.pop(self.random.randrange(len(under_way)))
            (result,) = self.answer_one(request)
            yield number, result

    def answer_one(self, request):
        return (result for _, result in super().answer_as_completed([request]))


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_answers_and_their_number_at_a_time_change_no_byte(finished, tmp_path, seed):
    teachers = {
        name: lambda name=name: Shuffled(answer, name=name, seed=seed, places=1 + 5 * seed) for name in ("one", "two")
    }
    synthesize(plan(), teachers=teachers, output=tmp_path / "out", tell=quiet)
    assert bytes_of(tmp_path / "out") == bytes_of(finished)


# --- faults ---


def start(output: Path, pause: float, **settings) -> subprocess.Popen:
    command = [sys.executable, str(HERE / "synthesis_world.py"), str(output), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=HERE.parent, **settings)


def test_killed_again_and_again_it_ends_with_the_same_bytes_and_asks_little_twice(finished, tmp_path):
    output, answered = tmp_path / "out", 0
    for wait, kill in ((0.15, signal.SIGKILL), (0.3, signal.SIGINT), (0.2, signal.SIGKILL)):
        process = start(output, 0.03)
        journal = output.with_name("out.answers") / "one.jsonl"
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not (
            journal.is_file() and len(journal.read_bytes().splitlines()) > answered + 3
        ):
            time.sleep(0.01)
        time.sleep(wait)
        process.send_signal(kill)
        process.communicate()
        answered = len(journal.read_bytes().splitlines())
    assert not output.exists() and answered > 10
    process = start(output, 0.0)
    told, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors.decode()
    assert bytes_of(output) == bytes_of(finished)
    asked = Counter((row["item"], row["attempt"]) for row in rows_of(journal) if "item" in row)
    again = [row for row in asked.values() if row > 1]
    manifest = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
    assert len(again) <= manifest["teachers"]["one"]["rejected"]["no answer"]  # only what had failed
    assert "answers are there already" in told.decode()


def test_a_full_disk_leaves_whole_lines_and_the_next_start_goes_on(finished, tmp_path):
    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))

    output = tmp_path / "out"
    process = start(output, 0.0, preexec_fn=small_files)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and "File too large" in errors.decode()
    journal = output.with_name("out.answers") / "one.jsonl"
    assert 4_000 < journal.stat().st_size <= 5_000 and journal.read_bytes().endswith(b"\n")
    assert not output.exists()
    run(output, pause=0, tell=quiet)
    assert bytes_of(output) == bytes_of(finished)


@hypothesis_settings(max_examples=6, deadline=None)
@given(st.integers(0, 10_000), st.binary(max_size=30))
def test_a_journal_torn_anywhere_heals(finished, tmp_path_factory, place, garbage):
    output = tmp_path_factory.mktemp("torn") / "out"
    folder = output.with_name("out.answers")
    folder.mkdir()
    (folder / "plan.json").write_bytes((finished.with_name("out.answers") / "plan.json").read_bytes())
    whole = (finished.with_name("out.answers") / "one.jsonl").read_bytes()
    first_line = whole.index(b"\n") + 1
    torn = whole[: max(first_line, place % len(whole))] + garbage.replace(b"\n", b"\0")
    (folder / "one.jsonl").write_bytes(torn)
    run(output, pause=0, tell=quiet)
    assert bytes_of(output) == bytes_of(finished)


def test_damaged_lines_inside_a_journal_are_told_and_asked_again(finished, tmp_path):
    folder = tmp_path / "out.answers"
    folder.mkdir()
    lines = (finished.with_name("out.answers") / "one.jsonl").read_bytes().splitlines(keepends=True)
    lines[3] = b"\0" * len(lines[3][:-1]) + b"\n"
    lines[5], lines[7] = b'{"item": "x"}\n', lines[7][:20] + b"\n"
    lines[9] = lines[0]
    (folder / "one.jsonl").write_bytes(b"".join(lines))
    told = []
    run(tmp_path / "out", pause=0, tell=told.append)
    assert bytes_of(tmp_path / "out") == bytes_of(finished)
    assert any("4 damaged lines" in text for text in told)


def test_a_teacher_that_is_gone_stops_the_run_and_the_next_start_goes_on(finished, tmp_path):
    calls = Counter()

    def gone(request):
        calls["one"] += 1
        return answer(request) if calls["one"] <= 30 else Failure("connection refused")

    def teachers(script):
        return {"one": lambda: ScriptedTeacher(script, name="one"), "two": lambda: ScriptedTeacher(answer, name="two")}

    stop = RunSettings(give_up_after=8)
    with pytest.raises(TeacherGone, match=r"teacher one: the last 8 requests .* connection refused"):
        synthesize(plan(), teachers=teachers(gone), output=tmp_path / "out", settings=stop, tell=quiet)
    assert not (tmp_path / "out").exists()
    synthesize(plan(), teachers=teachers(answer), output=tmp_path / "out", settings=stop, tell=quiet)
    assert bytes_of(tmp_path / "out") == bytes_of(finished)


def test_teachers_can_be_asked_one_after_the_other(finished, tmp_path):
    told = []
    assert run(tmp_path / "out", pause=0, which=("two",), tell=told.append) is None
    assert not (tmp_path / "out").exists() and "still to be asked: one" in told[-1]
    assert run(tmp_path / "out", pause=0, which=("one",), tell=told.append) is not None
    assert bytes_of(tmp_path / "out") == bytes_of(finished)


def test_a_finished_output_is_not_asked_for_again(finished):
    def refuse(request):
        raise AssertionError("asked again")

    before = bytes_of(finished)
    teachers = {"one": lambda: ScriptedTeacher(refuse, name="one")}
    assert synthesize(plan(), teachers=teachers, output=finished, tell=quiet)["key"] == plan().key
    assert bytes_of(finished) == before


def test_other_plans_and_other_teachers_are_refused_by_name(finished, tmp_path):
    with pytest.raises(ValueError, match=r"belongs to another plan \(it differs in synthesis\.samples\)"):
        run(finished, pause=0, chosen=plan(samples=4), tell=quiet)
    run(tmp_path / "out", pause=0, which=("one",), tell=quiet)
    with pytest.raises(ValueError, match=r"differs in topics\.count, topics\.sha256"):
        run(tmp_path / "out", pause=0, chosen=plan(topics=3), tell=quiet)
    other = {"one": lambda: ScriptedTeacher(answer, name="one", identity="a newer model")}
    with pytest.raises(ValueError, match=r"answered by another teacher \(model differs\)"):
        synthesize(plan(), teachers=other, output=tmp_path / "out", tell=quiet)


def test_two_runs_do_not_write_one_journal(tmp_path):
    process = start(tmp_path / "out", 0.05)
    journal = tmp_path / "out.answers" / "one.jsonl"
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not (journal.is_file() and journal.stat().st_size > 1000):
        time.sleep(0.02)
    try:
        with pytest.raises(OSError, match="being written by another run"):
            run(tmp_path / "out", pause=0, which=("one",), tell=quiet)
    finally:
        process.kill()
        process.communicate()
