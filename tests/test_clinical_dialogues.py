"""The bundled conversations: the same on every machine, well-formed, and answered by what they ask about."""

import hashlib
import json
from itertools import pairwise

import pytest

from ncvc.chat import check_turns, parse_messages
from ncvc.corpus.clinical.dialogues import bundled_dialogues, generate_dialogues, write_clinical_dialogues
from ncvc.corpus.clinical.lexicon import DISEASES, DRUGS
from ncvc.evaluation.spans import read_spans

DIALOGUES = list(generate_dialogues(conversations=1200, seed=0))


def of_kind(kind: str) -> list[tuple[str, str]]:
    """(question, answer) of the first turn of every dialogue of this kind."""
    found = [(turns[0].content, turns[1].content) for name, turns in DIALOGUES if name.endswith(kind)]
    assert len(found) > 100
    return found


def test_every_dialogue_is_a_finished_conversation():
    for name, messages in DIALOGUES:
        check_turns(messages, where=name)
        assert messages[-1].role == "assistant"
        assert 2 <= len(messages) <= 6


def test_a_longer_run_begins_with_the_shorter_and_another_seed_is_another():
    assert list(generate_dialogues(conversations=50, seed=0)) == DIALOGUES[:50]
    assert list(generate_dialogues(conversations=50, seed=1)) != DIALOGUES[:50]
    assert len({tuple(messages) for _, messages in DIALOGUES}) > 1150


def test_the_letter_of_a_choice_is_that_of_a_disease_which_the_case_does_not_name():
    for question, answer in of_kind("choice"):
        options = dict(line.split(". ", 1) for line in question.splitlines()[-4:])
        assert sorted(options) == ["A", "B", "C", "D"]
        assert answer in options
        assert len(set(options.values())) == 4
        case = question[question.index("「") : question.index("」")]
        assert options[answer] in DISEASES
        assert options[answer] not in case
    letters = [answer for _, answer in of_kind("choice")]
    assert all(letters.count(letter) > len(letters) / 6 for letter in "ABCD")


def test_spans_are_the_drugs_of_the_note_in_its_order():
    for question, answer in of_kind("spans"):
        note, spans = question[question.index("「") :], read_spans(answer)
        assert spans
        assert set(spans) <= set(DRUGS)
        places = [note.index(span) for span in spans]
        assert all(first < second for first, second in pairwise(places))
        longest_first = sorted((drug for drug in DRUGS if drug in note), key=len, reverse=True)
        rest, found = note, set()
        for drug in longest_first:  # a name inside a longer one is no drug of the note
            if drug in rest:
                found.add(drug)
                rest = rest.replace(drug, "")
        assert found == set(spans)


def test_a_diagnosis_is_named_in_the_answer_and_not_in_the_question():
    for question, answer in of_kind("diagnosis"):
        named = max((name for name in DISEASES if name in answer), key=len)
        assert named not in question


def test_a_talk_names_its_disease_in_the_first_turn():
    for question, _ in of_kind("talk"):
        assert any(name in question for name in DISEASES)


def test_the_file_is_written_whole_and_left_alone_when_it_is_what_it_should_be(tmp_path):
    path = bundled_dialogues(tmp_path)
    before, made = hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns
    assert bundled_dialogues(tmp_path).stat().st_mtime_ns == made
    path.write_text("torn", encoding="utf-8")
    assert hashlib.sha256(bundled_dialogues(tmp_path).read_bytes()).hexdigest() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 4000
    assert [parse_messages(json.loads(line)["messages"]) for line in lines[:1200]] == [turns for _, turns in DIALOGUES]


def test_a_negative_number_is_refused(tmp_path):
    with pytest.raises(ValueError, match="conversations=-1"):
        write_clinical_dialogues(tmp_path / "a.jsonl", conversations=-1)
