"""The report on marked texts: its counts by hand, its peer, and the aims on the marked radiology reports."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from ncvc.corpus.personal import report as privacy_report
from ncvc.corpus.personal.kinds import KINDS
from ncvc.corpus.personal.masking import PrivacySettings
from ncvc.corpus.personal.report import kind_of, measure, measure_unmarked

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
MARKED = SHARED / "medical_text" / "synthetic_radiology_phi.jsonl.gz"
needs_shared = pytest.mark.skipif(not MARKED.is_file(), reason="the marked texts lie beside the repository")
ALL = PrivacySettings(kinds=KINDS)


def write_marked(path: Path, rows: list[tuple[str, list[tuple[str, str]]]]) -> Path:
    lines = []
    for text, marks in rows:
        phi = [
            {"type": kind, "text": part, "start": text.index(part), "end": text.index(part) + len(part)}
            for kind, part in marks
        ]
        lines.append(json.dumps({"text": text, "phi": phi}, ensure_ascii=False))
    with gzip.open(path, "wt", encoding="utf-8") if path.suffix == ".gz" else path.open("w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    return path


def test_the_report_counts_as_by_hand(tmp_path):
    rows = [
        ("電話03-1234-5678と03-1234-5678", [("PHONE_NUMBER", "03-1234-5678")]),  # the repeat is right
        ("電話03-1111-2222とFAX03-3333-4444", [("PHONE_NUMBER", "03-1111-2222")]),  # one mask of nothing
        ("番号は１２ー３４、年齢60歳", [("HOSPITAL_PHONE", "１２ー３４"), ("AGE", "60歳")]),  # missed; not a kind
        ("電話03-5555-6666内", [("MOBILE_PHONE", "03-5555-6666内")]),  # overlapped, not covered
    ]
    report = measure(write_marked(tmp_path / "marked.jsonl.gz", rows), settings=ALL, peers=False)
    row = next(row.figures() for row in report.rows if row.kind == "phone")
    assert (row["marked"], row["overlapped"], row["covered"]) == (4, 3, 2)
    assert (row["masks"], row["masks_of_nothing"]) == (5, 1)
    assert (row["masked_characters"], row["unmarked_characters"]) == (50, 10)
    assert row["over_masking"] == 0.2
    assert "phone" in report.as_table()
    assert json.loads(json.dumps(report.as_dict()))["texts"] == 4
    halves = [measure(tmp_path / "marked.jsonl.gz", settings=ALL, peers=False, half=half) for half in ("even", "odd")]
    assert [half.texts for half in halves] == [2, 2]


@pytest.mark.parametrize(
    ("mark", "kind"),
    [("PATIENT_NAME_KANA", "name"), ("HOSPITAL_NAME", ""), ("DATE_OF_BIRTH", "birth_date"), ("EXAM_DATE", ""),
     ("AGE", ""), ("EMERGENCY_CONTACT_PHONE", "phone"), ("HOSPITAL_ADDRESS", "address"), ("PATIENT_ID", "patient_id"),
     ("DEPARTMENT", ""), ("PATIENT_INITIAL", "name"), ("email", "email")],
)  # fmt: skip
def test_types_of_marks_are_mapped(mark, kind):
    assert kind_of(mark) == kind


@pytest.mark.parametrize(
    "line",
    ['{"text": 3}', "[1]", "nonsense", '{"text": "ab", "phi": [{"type": "AGE", "start": 1, "end": 9}]}',
     '{"text": "ab", "phi": [{"type": "AGE", "text": "b", "start": 0, "end": 1}]}', '{"text": 5, "phi": []}'],
)  # fmt: skip
def test_a_wrong_record_is_named_by_its_line(tmp_path, line):
    path = tmp_path / "marked.jsonl"
    path.write_text('{"text": "a", "phi": []}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 2"):
        measure(path, settings=ALL, peers=False)


def test_a_file_without_texts_is_an_error(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no marked text"):
        measure(tmp_path / "empty.jsonl", settings=ALL, peers=False)


def test_hojichar_stands_beside_on_the_same_texts(tmp_path):
    filters = pytest.importorskip("hojichar.filters.document_filters")
    from hojichar import Document

    text = "連絡は075-123-4567か、hoge@example.ne.jpへ"
    marks = [("PHONE", "075-123-4567"), ("EMAIL", "hoge@example.ne.jp")]
    report = measure(write_marked(tmp_path / "marked.jsonl", [(text, marks)]), settings=ALL)
    rows = {row.kind: row for row in report.rows if row.masker == "hojichar"}
    assert (rows["phone"].overlapped, rows["phone"].covered) == (1, 0)  # it leaves all but the last four digits
    changed = filters.MaskPersonalInformation().apply(Document(text)).text
    places = {place for span in privacy_report.hojichar_finder()(text) for place in range(span.start, span.end)}
    kept = "".join(character for place, character in enumerate(text) if place not in places)
    assert kept == changed.replace("XXXX", "").replace("xxxx@yyy", "")


@needs_shared
@pytest.mark.parametrize("half", ["even", "odd"])
def test_the_aims_are_met_on_both_halves_of_the_marked_reports(half):
    """The rules were written looking at the even reports only."""
    report = measure(MARKED, settings=ALL, peers=False, half=half)
    recall = {row.kind: row.figures()["recall_covered"] for row in report.rows}
    assert recall["phone"] >= 0.95
    assert recall["patient_id"] >= 0.95
    assert recall["address"] >= 0.90
    assert recall["birth_date"] >= 0.95
    assert recall["name"] >= 0.90


@needs_shared
@pytest.mark.parametrize("file", ["nursing_records_S.jsonl.gz", "pseudo_tweets_adr.jsonl"])
def test_records_and_tweets_that_name_nobody_lose_nothing(file):
    path = SHARED / "medical_text" / file
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    assert measure_unmarked(texts, settings=ALL)["masks"] == {}
