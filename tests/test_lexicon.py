"""The lexicon: lists are read by their columns, names are the cleaner's, bad rows are counted and the rest goes on."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from ncvc.analyzers.lexicon import Lexicon, LexiconFile, LexiconSettings, read_lexicon
from ncvc.config import CONF_DIRECTORY
from ncvc.corpus.cleaning import Cleaner

SHARED = CONF_DIRECTORY.parent.parent / "shared" / "data"
relaxed = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))


def read(path: Path, content: str | bytes, *, problems: list | None = None, **file) -> Lexicon:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    known = {key: file.pop(key) for key in list(file) if key not in LexiconFile.__dataclass_fields__}
    chosen = LexiconSettings(files={"list": {"path": str(path), **file}}, **known)
    return read_lexicon(chosen, on_problem=None if problems is None else problems.append)


def surfaces(lexicon: Lexicon) -> list[str]:
    return [entry.surface for entry in lexicon.entries]


MANBYO = "surface,icd10,standard_name\n川崎病,M303,川崎病\nＨＢＶ既感染,B181,Ｂ型肝炎\n鼻咽腔逆流なし,-1,-1\n"


@pytest.mark.parametrize("content", [MANBYO, MANBYO.partition("\n")[2]], ids=["with titles", "without"])
def test_manbyo_is_read_with_and_without_its_first_row_and_rows_without_a_code_are_no_diseases(tmp_path, content):
    lexicon = read(tmp_path / "m.csv", content, format="manbyo")
    assert [(entry.surface, entry.code, entry.kind) for entry in lexicon.entries] == [
        ("川崎病", "M303", "disease"),
        ("HBV既感染", "B181", "disease"),
    ]
    assert lexicon.counts["list"] == {"rows": 3, "names": 2, "no code: not a disease": 1}


def test_each_list_gives_its_names_readings_codes_and_frequencies(tmp_path):
    mini = read(
        tmp_path / "a.tsv",
        "出現形\tICDコード\t標準病名\tしゅつげんけい\t東大診療録頻度\n糖尿病\tE14\t糖尿病\tとうにょうびょう\t582195\n",
        format="manbyo_mini",
    ).entries[0]
    assert (mini.reading, mini.code, mini.frequency) == ("とうにょうびょう", "E14", 582195)
    ssk = read(
        tmp_path / "b.csv",
        "code,name,short_name,kana,medis_no,icd10,icd10_2\n8846079,ＭＥＬＡＳ症候群,ＭＥＬＡＳ,メラス,2,E888,\n",
        format="ssk_disease",
    ).entries[0]
    assert (ssk.surface, ssk.reading, ssk.code, ssk.source) == ("MELAS症候群", "メラス", "E888", "list")
    icd = read(tmp_path / "c.csv", "\ufeffMDCコード,ICD名称,ICDコード\n01,脳炎,G04$\n", format="icd10_dpc").entries[0]
    assert (icd.surface, icd.code) == ("脳炎", "G04$")
    price = read(
        tmp_path / "d.csv",
        "薬価基準収載医薬品コード,成分名,品名\n2149040F4033,カンデサルタンシレキセチル,アーチスト錠２．５ｍｇ\n",
        format="mhlw_price",
    )
    assert [(entry.surface, entry.kind) for entry in price.entries] == [
        ("アーチスト錠2.5mg", "drug"),
        ("アーチスト", "drug"),
        ("カンデサルタンシレキセチル", "ingredient"),
    ]
    drug = read(
        tmp_path / "e.csv",
        "code,name,halfwidth_kana,unit,yj_or_price_code,basic_name\n1,ガスター散２％,ｶﾞｽﾀｰｻﾝ2%,ｇ,2325003B2029,x\n",
        format="ssk_drug",
        brands=False,
    )
    assert [(entry.surface, entry.reading) for entry in drug.entries] == [("ガスター散2%", "ガスターサン2%")]


def test_any_table_is_read_by_titles_or_by_numbers_in_its_own_encoding(tmp_path):
    rows = "番号;名前;よみ\n1;急性心筋梗塞;きゅうせい\n"
    own = {"surface": "名前", "reading": "よみ", "delimiter": ";", "kind": "disease", "encoding": "cp932"}
    assert read(tmp_path / "a.csv", rows.encode("cp932"), **own).entries[0].reading == "きゅうせい"
    numbered = read(tmp_path / "b.csv", "1\t急性心筋梗塞\n2\t脳炎\n", surface="2", header=False, delimiter="\t")
    assert surfaces(numbered) == ["急性心筋梗塞", "脳炎"]


BAD = {
    '"大腸癌肝転移,""C189","C787""",大腸癌': "a comma or a quote in the name",
    '"急性,心筋梗塞",I21,心筋梗塞': "a comma or a quote in the name",
    '急性"心筋梗塞,I21,心筋梗塞': "a comma or a quote in the name",
    "急性,心筋梗塞,I21,心筋梗塞": "wrong number of columns",
    "心筋梗塞": "wrong number of columns",
    '"心筋梗塞,I21,心筋梗塞': "broken CSV",
    ",I21,心筋梗塞": "empty name",
    "心筋\u0007梗塞,I21,心筋梗塞": "control characters",
    "心筋\u200b\ue000梗塞,I21,x": "control characters",
    "心筋\ufffd梗塞,I21,x": "control characters",
    f"{'心' * 65},I21,x": "name too long",
    "***,I21,x": "nothing left after cleaning",
    "肺炎。心不全,I21,x": "several lines or sentences",
    "経過観察,-1,-1": "no code: not a disease",
    "心" * 70_000: "row too long",
}


def test_each_bad_row_is_counted_with_file_and_row_and_the_rest_goes_on(tmp_path):
    lines = ["surface,icd10,standard_name"]
    for number, row in enumerate(BAD):
        lines += [row, f"名前その{number}号,I21,x"]
    problems: list = []
    path = tmp_path / "m.csv"
    lexicon = read(path, "\n".join(lines) + "\n", format="manbyo", problems=problems)
    assert surfaces(lexicon) == [f"名前その{number}号" for number in range(len(BAD))]
    assert [(problem.row, problem.reason) for problem in problems] == [
        (2 * number + 2, reason) for number, reason in enumerate(BAD.values())
    ]
    assert {problem.file for problem in problems} == {str(path)}
    told = {key: count for key, count in lexicon.counts["list"].items() if key not in ("rows", "names")}
    assert told == dict(Counter(BAD.values()))


def test_bytes_that_are_not_of_the_encoding_and_nul_cost_one_row(tmp_path):
    content = "surface\n急性心筋梗塞\n".encode() + b"\xff\xfe\x80\n" + "脳\0炎\n脳梗塞\n".encode()
    lexicon = read(tmp_path / "m.csv", content)
    assert surfaces(lexicon) == ["急性心筋梗塞", "脳梗塞"]
    assert lexicon.counts["list"]["undecodable bytes"] == 1
    assert sum(lexicon.counts["list"].get(reason, 0) for reason in ("broken CSV", "control characters")) == 1


@pytest.mark.parametrize("times", [1, 2])
def test_nested_gzip_is_read(tmp_path, times):
    data = MANBYO.encode()
    for _ in range(times):
        data = gzip.compress(data)
    assert surfaces(read(tmp_path / "m.csv.gz", data, format="manbyo")) == ["川崎病", "HBV既感染"]


def test_a_truncated_file_gives_what_comes_before_and_one_problem(tmp_path):
    import zstandard

    names = [f"病名{hashlib.sha256(str(number).encode()).hexdigest()[:20]}" for number in range(20_000)]
    text = "\n".join(["surface", *names]).encode()
    for data in (gzip.compress(text, 1), zstandard.compress(text)):
        problems: list = []
        lexicon = read(tmp_path / "m", data[: len(data) * 2 // 3], problems=problems)
        found = len(lexicon.entries)
        assert surfaces(lexicon) == names[:found] and 1 < found < 20_000
        assert [(problem.reason, problem.row) for problem in problems] == [("truncated or damaged file", found + 2)]


def test_a_name_is_kept_once_by_the_first_file_and_later_files_fill_in_what_it_lacks(tmp_path):
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    first.write_text("surface,code\n糖尿病,E14\nＣＯＰＤ,\n", encoding="utf-8")
    second.write_text(
        "surface,code,reading,n\nCOPD,J44,しーおーぴーでぃー,7\n糖尿病,X,とうにょうびょう,9\n", encoding="utf-8"
    )
    columns = {"code": "code", "kind": "disease"}
    lexicon = read_lexicon(
        LexiconSettings(
            files={
                "a": {"path": str(first), **columns},
                "b": {"path": str(second), "reading": "reading", "frequency": "n", **columns},
            }
        )
    )
    assert [(e.surface, e.code, e.reading, e.frequency, e.source) for e in lexicon.entries] == [
        ("糖尿病", "E14", "とうにょうびょう", 9, "a"),
        ("COPD", "J44", "しーおーぴーでぃー", 7, "a"),
    ]
    assert lexicon.counts["b"]["name already known"] == 2


@pytest.mark.parametrize("content", ["", "surface\n", "surface\n***\n", b"\xff\xfes\0\n\0"])
def test_a_file_that_yields_nothing_is_an_error_that_names_it(tmp_path, content):
    with pytest.raises(ValueError, match=r"(lexicon\.files\.list\.path=.*yields no name|has no column)"):
        read(tmp_path / "m.csv", content)


def test_settings_that_cannot_be_are_refused_by_name(tmp_path):
    good = MANBYO
    with pytest.raises(ValueError, match=r"no column 出現形.*surface, icd10"):
        read(tmp_path / "m.tsv", good.replace(",", "\t"), format="manbyo_mini")
    with pytest.raises(ValueError, match=r"no column 名前"):
        read(tmp_path / "m.csv", good, surface="名前")
    with pytest.raises(ValueError, match=r"lexicon\.files\.list\.format='manbio'"):
        read(tmp_path / "m.csv", good, format="manbio")
    with pytest.raises(ValueError, match=r"lexicon\.files\.list\.colour: no such setting"):
        read_lexicon(LexiconSettings(files={"list": {"path": "x", "colour": 1}}))
    with pytest.raises(ValueError, match=r"encoding='utf-9'"):
        read(tmp_path / "m.csv", good, encoding="utf-9")
    with pytest.raises(ValueError, match="numbers, counted from 1"):
        read(tmp_path / "m.csv", good, header=False)
    with pytest.raises(ValueError, match=r"lexicon\.files is empty"):
        LexiconSettings(files={})
    with pytest.raises(ValueError, match=r"lexicon\.minimum_characters=0"):
        LexiconSettings(files={"a": {"path": "x"}}, minimum_characters=0)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv is not a file"):
        read_lexicon(LexiconSettings(files={"a": {"path": str(tmp_path / "nowhere.csv")}}))


@relaxed
@given(st.lists(st.text(max_size=30), min_size=1, max_size=8))
def test_names_of_any_text_are_cleaned_whole_lines_without_white_space(tmp_path, cells):
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([["surface"], *([cell] for cell in cells), ["急性心筋梗塞"]])
    lexicon = read(tmp_path / "any.csv", out.getvalue().encode("utf-8", "surrogatepass"))
    cleaner = Cleaner()
    for entry in lexicon.entries:
        assert cleaner(entry.surface) == entry.surface
        assert len(entry.surface.split()) == 1 and 1 <= len(entry.surface) <= 64
    assert "急性心筋梗塞" in surfaces(lexicon) and len(set(surfaces(lexicon))) == len(lexicon.entries)


@pytest.mark.slow
def test_the_configured_lists_compose_and_are_read_whole():
    if not (SHARED / "disease_names").is_dir():
        pytest.skip("the name lists beside this project are absent")
    chosen = OmegaConf.merge(
        OmegaConf.load(CONF_DIRECTORY / "lexicon" / "medical.yaml"),
        OmegaConf.load(CONF_DIRECTORY / "lexicon" / "demo_shared.yaml"),
    )
    del chosen["defaults"]
    values = OmegaConf.to_container(chosen, resolve=False)
    for file in values["files"].values():
        file["path"] = str(SHARED / file["path"].rpartition("}/")[2])
    lexicon = read_lexicon(LexiconSettings(**values))
    kinds = Counter(entry.kind for entry in lexicon.entries)
    assert kinds["disease"] > 60_000 and kinds["drug"] > 20_000 and kinds["ingredient"] > 2_000
    assert lexicon.counts["manbyo"]["rows"] == 73_282
    assert lexicon.counts["manbyo"]["no code: not a disease"] == 14_175
    assert lexicon.counts["manbyo"]["a comma or a quote in the name"] == 1_399
    with gzip.open(SHARED / "disease_names" / "ssk_disease_master_20240601.csv.gz", "rt", encoding="utf-8") as rows:
        names = {Cleaner()(row["name"]) for row in csv.DictReader(rows)} - {"**▁未コード化傷病名▁**"}
    assert len(names - {entry.surface for entry in lexicon.entries}) == 0
