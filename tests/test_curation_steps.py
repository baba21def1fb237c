"""What the steps of a curation do to documents: masks, decontamination, the certificate, hostile input."""

import gzip
import json
from pathlib import Path

import pytest
from test_curation import curated, document, dropped

from ncvc.corpus.contamination.certificate import Certificate
from ncvc.corpus.segmented import open_segmented
from ncvc.curation.corpus import open_curated

CONTACTS = {"kinds": ["phone", "patient_id"], "action": "mask"}
QUESTION = "高アンモニア血症をきたす疾患のうち、新生児期に発症し緊急の血液浄化療法を要するものはどれか選べ。"


def write_rows(path: Path, texts: list[str]) -> Path:
    lines = [json.dumps({"id": f"r{number}", "text": text}, ensure_ascii=False) for number, text in enumerate(texts)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def kept(folder: Path, name: str = "text") -> dict[str, str]:
    return {found.id: found.cleaned for found in open_segmented(folder / "stores" / name).documents()}


def test_personal_data_is_masked_where_cleaning_would_remove_it_and_where_it_would_uncover_it(tmp_path):
    texts = [
        document(0) + "\n電話は０９０－１２３４－５６７８。",
        document(1) + "\n患者ＩＤ：A\u200bB12345",
        document(2),
    ]
    source = {"path": str(write_rows(tmp_path / "a.jsonl", texts)), "privacy": CONTACTS}
    folder = curated({"text": source}, tmp_path / "home")
    found = kept(folder)
    assert "〈電話番号〉" in found["r0"]
    assert "患者ID:〈患者番号〉" in found["r1"]
    assert not any("1234" in text for text in found.values())
    assert open_curated(folder, home=tmp_path).manifest["sources"]["text"]["masked"] == {"patient_id": 1, "phone": 1}


@pytest.fixture
def benchmark(tmp_path) -> dict:
    path = tmp_path / "questions.jsonl"
    row = {"problem_id": "1", "problem_text": QUESTION, "choices": ["甲", "乙"]}
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    return {"exam": str(path)}


def with_question(number: int) -> str:
    return f"{document(number)}\n{QUESTION.replace('、', '，')}\n{document(number + 1)}"


def test_a_planted_question_drops_its_document_and_is_listed(tmp_path, benchmark):
    texts = [document(0), with_question(10), document(20)]
    source = {"path": str(write_rows(tmp_path / "a.jsonl", texts))}
    folder = curated({"text": source}, tmp_path / "home", contamination={"sources": benchmark})
    assert set(kept(folder)) == {"r0", "r2"}
    (share,) = [json.loads(line) for line in (folder / "contamination.jsonl").open(encoding="utf-8")]
    assert (share["id"], share["action"], share["file"], share["row"]) == ("r1", "dropped", "a.jsonl", 2)
    assert {match["benchmark"] for match in share["matches"]} == {"exam"}
    (drop,) = [record for record in dropped(folder) if record["stage"] == "decontaminate"]
    assert drop["reason"] == "shares text with exam"


def test_cutting_takes_out_the_question_and_keeps_the_rest(tmp_path, benchmark):
    source = {"path": str(write_rows(tmp_path / "a.jsonl", [document(0), with_question(10)]))}
    settings = {"sources": benchmark, "action": "cut"}
    folder = curated({"text": source}, tmp_path / "home", contamination=settings)
    assert "アンモニア" not in kept(folder)["r1"]
    assert kept(folder)["r1"].count("\n") == with_question(10).count("\n") - 1
    (share,) = [json.loads(line) for line in (folder / "contamination.jsonl").open(encoding="utf-8")]
    assert share["action"] == "cut"


def test_the_certificate_knows_what_is_in_the_corpus_and_not_what_was_dropped(tmp_path, benchmark):
    texts = [document(0), with_question(10), document(20)]
    source = {"path": str(write_rows(tmp_path / "a.jsonl", texts))}
    folder = curated({"text": source}, tmp_path / "home", contamination={"sources": benchmark})
    certificate = Certificate.open(folder / "certificate", verify=True)
    assert certificate.corpus == open_curated(folder, home=tmp_path).manifest["fingerprint"]
    assert certificate.was_seen(document(20)[10:60]).verdict == "seen"
    assert certificate.was_seen(QUESTION).verdict == "not seen"


def test_sources_listed_first_keep_their_copy_and_others_may_be_left_alone(tmp_path):
    one, two = (
        write_rows(tmp_path / f"{name}.jsonl", [document(0), document(number)]) for name, number in (("a", 1), ("b", 2))
    )
    named = {"first": {"path": str(two)}, "second": {"path": str(one)}}
    folder = curated(named, tmp_path / "home")
    assert (set(kept(folder, "first")), set(kept(folder, "second"))) == ({"r0", "r1"}, {"r1"})
    named["second"]["deduplicate"] = False
    assert set(kept(curated(named, tmp_path / "home"), "second")) == {"r0", "r1"}


def test_hostile_files_are_counted_by_file_and_row_and_the_rest_goes_on(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    good = [
        json.dumps({"id": f"g{number}", "text": document(number)}, ensure_ascii=False).encode() for number in range(6)
    ]
    (folder / "bytes.jsonl").write_bytes(good[0] + b'\n{"text": "\xff\xfe\x00"}\n' + good[1] + b"\n")
    (folder / "nul.jsonl").write_bytes(b'{"text": "a\\u0000b"}\n{"text": "\\ud800"}\n' + good[2] + b"\n")
    garbled = document(3).encode().decode("latin-1")
    rows = json.dumps({"text": garbled}).encode() + b'\n{"other": 1}\n{"text": ""}\n[1]\n' + good[3] + b"\n"
    (folder / "rows.jsonl").write_bytes(rows)
    whole = gzip.compress(good[4] + b"\n" + good[5] * 50 + b"\n")
    (folder / "torn.jsonl.gz").write_bytes(whole[: len(whole) - 20])
    (folder / "twice.jsonl.gz").write_bytes(gzip.compress(gzip.compress(good[5] + b"\n")))
    (folder / "note.docx").write_bytes(b"PK")
    made = curated({"text": {"path": str(folder)}}, tmp_path / "home")
    assert set(kept(made)) >= {f"g{number}" for number in range(6)}
    found = {(record["file"], record["row"]): record["reason"] for record in dropped(made)}
    places = {("bytes.jsonl", 2), ("nul.jsonl", 1), ("nul.jsonl", 2), *(("rows.jsonl", row) for row in (1, 2, 3, 4))}
    assert places <= set(found)
    assert any(file == "torn.jsonl.gz" for file, _ in found)
    assert any(file == "note.docx" for file, _ in found)


def test_a_corpus_of_which_nothing_is_left_is_an_error_that_counts_the_reasons(tmp_path):
    source = {"path": str(write_rows(tmp_path / "a.jsonl", ["http://example.jp/a", "https://example.jp/b"]))}
    with pytest.raises(ValueError, match="no document is left: 2 x clean: nothing left after cleaning"):
        curated({"text": source}, tmp_path / "home")
