"""Asking a certificate about one text or about every question of a file."""

import json

import pytest
from test_curation_steps import QUESTION

from ncvc.corpus.contamination.certificate import merge_certificate
from ncvc.corpus.contamination.seen_report import ask
from ncvc.corpus.contamination.winnowing import write_fingerprints


@pytest.fixture
def certificate(tmp_path) -> str:
    write_fingerprints([QUESTION], output=tmp_path / "part")
    merge_certificate([tmp_path / "part"], directory=tmp_path / "certificate", corpus="c0")
    return str(tmp_path / "certificate")


def test_every_question_of_a_file_is_answered_and_the_seen_ones_are_listed(certificate, tmp_path):
    other = "".join(chr(0x4E00 + 7 * place) for place in range(80))
    rows = [{"id": str(number), "question": text} for number, text in enumerate([QUESTION, other, "短い問い"])]
    path = tmp_path / "exam.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    report = ask(certificate, text=None, file=str(path), fields=None)
    assert report.counts == {"seen": 1, "not seen": 1, "too short to tell": 1}
    assert "c0" in report.as_table() and "exam 0" in report.as_table() and "exam 1" not in report.as_table()
    assert [entry["verdict"] for entry in report.as_dict()["answers"]] == ["seen", "not seen", "too short to tell"]


def test_one_text_is_answered_and_neither_or_both_are_refused(certificate):
    assert ask(certificate, text=QUESTION[3:], file=None, fields=None).counts["seen"] == 1
    for text, file in ((None, None), ("a", "b")):
        with pytest.raises(ValueError, match="either text="):
            ask(certificate, text=text, file=file, fields=None)
