"""Layouts: Wiki-40B's markup, OSCAR-2301's annotations, HTML in rows."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import read

from ncvc.corpus.reading import problems
from ncvc.corpus.reading.layouts import build_layout


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_table(path, rows):
    pyarrow, pyarrow_parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    pyarrow_parquet.write_table(pyarrow.Table.from_pylist(rows), path)


# ---- Wiki-40B ----

ARTICLE = (
    "\n_START_ARTICLE_\n急性心筋梗塞\n_START_PARAGRAPH_\n冠動脈が閉塞する疾患である。_NEWLINE_胸痛を伴う。"
    "\n_START_SECTION_\n治療\n_START_PARAGRAPH_\n再灌流療法を行う。\n_START_SECTION_\n脚注"
)
LINES = ["急性心筋梗塞", "冠動脈が閉塞する疾患である。", "胸痛を伴う。", "治療", "再灌流療法を行う。"]
NO_PARAGRAPH = "\n_START_ARTICLE_\n空の記事\n_START_SECTION_\n節\n_START_PARAGRAPH_\n _NEWLINE_ "


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
@pytest.mark.parametrize(
    "published_as", [str, lambda text: repr(text.encode()), lambda text: str(text.encode() + b"'\"")]
)
def test_an_article_becomes_title_section_titles_and_paragraphs_by_line(tmp_path, name, published_as):
    row = {"wikidata_id": published_as("Q1"), "text": published_as(ARTICLE), "version_id": "12345"}
    (write_rows if name == "a.jsonl" else write_table)(tmp_path / name, [row])
    (document,), found = read(tmp_path, layout="wiki40b")
    assert document.text.split("\n")[:5] == LINES
    assert "脚注" not in document.text  # a section without a paragraph
    assert document.metadata["title"] == "急性心筋梗塞" and document.metadata["version_id"] == "12345"
    assert document.metadata["wikidata_id"].startswith("Q1") and document.id == f"{name}:1"
    assert found == []


def test_binary_columns_of_wiki40b_are_read(tmp_path):
    write_table(tmp_path / "a.parquet", [{"text": ARTICLE.encode(), "wikidata_id": b"Q1"}])
    (document,), _ = read(tmp_path, layout="wiki40b")
    assert document.text.split("\n") == LINES
    assert document.metadata["wikidata_id"] == "Q1"


@pytest.mark.parametrize(
    ("options", "left_out"),
    [
        ({"keep_titles": False}, {"急性心筋梗塞"}),
        ({"keep_section_titles": False}, {"治療"}),
        ({"keep_titles": False, "keep_section_titles": False}, {"急性心筋梗塞", "治療"}),
    ],
)
def test_titles_are_left_out_by_option(tmp_path, options, left_out):
    write_rows(tmp_path / "a.jsonl", [{"text": ARTICLE}])
    (document,), _ = read(tmp_path, layout="wiki40b", options=options)
    assert document.text.split("\n") == [line for line in LINES if line not in left_out]
    assert document.metadata["title"] == "急性心筋梗塞"


def test_rows_that_are_no_articles_are_reported(tmp_path):
    rows = [
        {"text": NO_PARAGRAPH},
        {"text": "印のない文章。"},
        {"text": "前置き" + ARTICLE},
        {"text": "b'\\xff\\xfe_START_ARTICLE_'"},
        {"text": "b'\\n_START_ARTICLE_"},
        {"title": "x"},
        {"text": ARTICLE},
        {"text": "_START_ARTICLE_\n題\n_START_PARAGRAPH_\n" + "患者は発熱".encode().decode("latin-1")},
    ]
    write_rows(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.txt").write_text("本文")
    documents, found = read(tmp_path, layout="wiki40b")
    assert [document.id for document in documents] == ["a.jsonl:7"]
    assert [(problem.row, problem.reason) for problem in found] == [
        (1, problems.EMPTY_TEXT),
        (2, problems.WRONG_LAYOUT),
        (3, problems.WRONG_LAYOUT),
        (4, problems.UNDECODABLE),
        (5, problems.WRONG_LAYOUT),
        (6, problems.NO_TEXT_FIELD),
        (8, problems.MOJIBAKE),
        (None, problems.WRONG_LAYOUT),
    ]


LINE = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=1).filter(
    lambda line: "_" not in line and line.strip() == line and not line.startswith(("b'", 'b"'))
)


@settings(deadline=None, max_examples=100)
@given(title=LINE, sections=st.lists(st.tuples(LINE, st.lists(LINE, min_size=1, max_size=3)), min_size=1, max_size=4))
def test_every_title_and_paragraph_comes_back_in_order(title, sections):
    marked, expected = f"\n_START_ARTICLE_\n{title}", [title]
    for name, paragraphs in sections:
        marked += f"\n_START_SECTION_\n{name}\n_START_PARAGRAPH_\n" + "_NEWLINE_".join(paragraphs)
        expected += [name, *paragraphs]
    layout = build_layout("wiki40b")
    text, _, metadata = layout.read({"text": marked})
    assert text.split("\n") == expected
    assert metadata.get("title", title) == title


# ---- OSCAR-2301 ----


def oscar_row(content="患者は発熱を訴えた。", **annotations):
    annotations = {
        "identification": {"label": "ja", "prob": 0.97},
        "harmful_pp": 812.5,
        "tlsh": "tlsh:0",
        "quality_warnings": ["short_sentences"],
        "categories": None,
        "sentence_identifications": [{"label": "ja", "prob": 0.99}, None],
    } | annotations
    headers = {
        "warc-record-id": "<urn:uuid:1>",
        "warc-target-uri": "https://a.example/1",
        "warc-date": "2022-11-26T08:14:02Z",
        "warc-identified-content-language": "jpn",
    }
    return {"content": content, "warc_headers": headers, "metadata": annotations}


EXPECTED = {
    "url": "https://a.example/1",
    "date": "2022-11-26T08:14:02Z",
    "language": "ja",
    "language_probability": 0.97,
    "harmful_perplexity": 812.5,
    "quality_warnings": ["short_sentences"],
}


def test_an_oscar_row_gives_its_text_and_annotations(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    data = "".join(json.dumps(oscar_row(), ensure_ascii=False) + "\n" for _ in range(2)).encode()
    (tmp_path / "ja_meta_part_1.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(data))
    documents, found = read(tmp_path, layout="oscar2301")
    assert [document.text for document in documents] == ["患者は発熱を訴えた。"] * 2
    assert documents[1].id == "<urn:uuid:1>"
    assert documents[1].metadata == {"file": "ja_meta_part_1.jsonl.zst", "row": 2, **EXPECTED}
    assert found == []


def test_the_hugging_face_form_of_oscar_is_read_too(tmp_path):
    row = oscar_row()
    meta = {"warc_headers": row["warc_headers"], **row["metadata"]}
    write_table(tmp_path / "a.parquet", [{"id": 3, "text": row["content"], "meta": meta}])
    (document,), _ = read(tmp_path, layout="oscar2301")
    assert (document.id, document.text) == ("3", row["content"])
    assert document.metadata == {"file": "a.parquet", "row": 1, **EXPECTED}


@pytest.mark.parametrize(
    ("annotations", "options", "reason"),
    [
        ({"identification": {"label": "zh", "prob": 0.9}}, {}, problems.OTHER_LANGUAGE),
        ({"identification": None}, {}, problems.OTHER_LANGUAGE),
        ({"identification": {"label": "zh", "prob": 0.9}}, {"language": None}, None),
        ({}, {"language": "zh"}, problems.OTHER_LANGUAGE),
        ({}, {"min_language_probability": 0.97}, None),
        ({}, {"min_language_probability": 0.98}, problems.LOW_LANGUAGE_PROBABILITY),
        ({"identification": {"label": "ja"}}, {"min_language_probability": 0.5}, problems.LOW_LANGUAGE_PROBABILITY),
        (
            {"identification": {"label": "ja", "prob": "x"}},
            {"min_language_probability": 0},
            problems.LOW_LANGUAGE_PROBABILITY,
        ),
        ({}, {"drop_quality_warnings": ["short_sentences", "header"]}, problems.QUALITY_WARNING),
        ({"quality_warnings": None}, {"drop_quality_warnings": ["header"]}, None),
        ({"categories": ["news", "adult"]}, {"drop_categories": ["adult"]}, problems.UNWANTED_CATEGORY),
        ({"categories": "adult"}, {"drop_categories": ["adult"]}, None),  # not a list: no label
        ({}, {"min_harmful_perplexity": 812.5, "max_harmful_perplexity": 900}, None),
        ({}, {"min_harmful_perplexity": 813}, problems.HARMFUL_PERPLEXITY),
        ({}, {"max_harmful_perplexity": 812}, problems.HARMFUL_PERPLEXITY),
        ({"harmful_pp": None}, {"min_harmful_perplexity": 813}, None),
        ({"harmful_pp": float("nan")}, {"min_harmful_perplexity": 813}, None),
    ],
)
def test_rows_are_left_out_by_their_annotations_and_the_reason_is_told(tmp_path, annotations, options, reason):
    last = {"identification": {"label": options.get("language", "ja"), "prob": 1}, "harmful_pp": None}
    rows = [oscar_row(**annotations), oscar_row("残る文。", quality_warnings=[], **last)]
    write_rows(tmp_path / "a.jsonl", rows)
    documents, found = read(tmp_path, layout="oscar2301", options=options)
    assert [(problem.row, problem.reason) for problem in found] == ([(1, reason)] if reason is not None else [])
    assert len(documents) == (1 if reason is not None else 2) and documents[-1].text == "残る文。"


@pytest.mark.parametrize(
    "odd", [None, [], "x", 3, {"identification": 5, "quality_warnings": [3, None, "\ud800", "header"]}]
)
def test_annotations_of_any_shape_do_no_harm(tmp_path, odd):
    row = {"content": "本文。", "metadata": odd, "warc_headers": odd, "id": []}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    (document,), _ = read(tmp_path, layout="oscar2301", options={"language": None, "drop_quality_warnings": ["footer"]})
    assert document.id == "a.jsonl:1"
    json.dumps(document.metadata, ensure_ascii=False).encode()


def test_oscar_text_goes_through_the_checks_of_every_text(tmp_path):
    rows = [oscar_row("a\0b"), oscar_row(""), oscar_row("\ud800x"), oscar_row("良"), {"metadata": {}}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    documents, found = read(tmp_path, layout="oscar2301")
    assert [document.text for document in documents] == ["良"]
    assert [problem.reason for problem in found] == [
        problems.NUL_CHARACTERS,
        problems.EMPTY_TEXT,
        problems.LONE_SURROGATE,
        problems.NO_TEXT_FIELD,
    ]


# ---- HTML in rows ----

SENTENCES = (
    "急性心筋梗塞は、冠動脈が閉塞して心筋が壊死する疾患である。胸痛が続く場合は、ただちに救急車を呼ぶ必要がある。"
)
HTML = f"<html><head><title>病気</title></head><body><nav><a href='/'>ホーム</a></nav><p>{SENTENCES}</p></body></html>"


@pytest.mark.parametrize("page", [HTML, f"<p>{SENTENCES}</p>", SENTENCES])
def test_html_in_a_text_field_gives_its_main_text(tmp_path, page):
    pytest.importorskip("trafilatura")
    write_rows(
        tmp_path / "a.jsonl", [{"id": "p", "body": page, "url": "https://a.example/", "license": "CC0"}, {"body": 3}]
    )
    (document,), found = read(tmp_path, layout="html", text_field="body")
    assert (document.id, document.text) == ("p", SENTENCES)
    assert document.metadata["url"] == "https://a.example/" and document.metadata["license"] == "CC0"
    assert document.metadata.get("title") == ("病気" if page == HTML else None)
    assert [(problem.row, problem.reason) for problem in found] == [(2, problems.NOT_A_STRING)]


def test_html_as_bytes_in_a_column_is_decoded_by_what_it_says(tmp_path):
    pytest.importorskip("trafilatura")
    pages = [
        HTML.replace("<head>", f"<head><meta charset='{name}'>").encode(name)
        for name in ("shift_jis", "euc-jp", "utf-8")
    ]
    write_table(tmp_path / "a.parquet", [{"text": page} for page in pages])
    documents, found = read(tmp_path, layout="html")
    assert [document.text for document in documents] == [SENTENCES] * 3
    assert [document.metadata["charset"] for document in documents] == ["cp932", "euc_jp", "utf-8"]
    assert found == []
