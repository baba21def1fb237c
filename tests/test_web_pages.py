"""Web pages and web archives: main text, character sets, damaged records."""

import gzip
import io
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import read

from ncvc.corpus.reading import compressed, problems
from ncvc.corpus.reading.problems import BadRowError
from ncvc.corpus.reading.web_archives import read_responses
from ncvc.corpus.reading.web_pages import WebPages, WebPageSettings, decode_page

pytest.importorskip("trafilatura")
pytest.importorskip("warcio")

SENTENCES = [
    "急性心筋梗塞は、冠動脈が閉塞して心筋が壊死する疾患である。胸痛が続く場合は、ただちに救急車を呼ぶ必要がある。",
    "診断は心電図と血液検査による。治療は再灌流療法であり、発症から早いほど効果が高い。",
]
MENU = "<nav><ul>" + "".join(f"<li><a href='/{n}'>診療科{n}のご案内</a></li>" for n in range(12)) + "</ul></nav>"


def page(body, *, charset="utf-8", title="急性心筋梗塞"):
    return (
        f"<!DOCTYPE html><html lang='ja'><head><meta charset='{charset}'><title>{title}</title>"
        "<link rel='license' href='https://creativecommons.org/licenses/by/4.0/'>"
        f"<script>var text = '動く文字';</script></head><body><header>{MENU}</header>{body}"
        "<footer><p>Copyright 病院 All Rights Reserved.</p><a href='/p'>個人情報保護方針</a></footer></body></html>"
    )


ARTICLE = page(
    "<main><article>" + "".join(f"<p>{sentence}</p>" for sentence in SENTENCES) + "<table><tr><td>薬</td><td>100mg</td>"
    "</tr></table></article></main>"
)


def main_text(html, **options):
    return WebPages(WebPageSettings(**options)).read(html).text


# ---- Main text ----


def test_menus_scripts_and_footers_are_left_out():
    assert main_text(ARTICLE) == "\n".join(SENTENCES)
    assert "100mg" in main_text(ARTICLE, tables=True)
    assert main_text(ARTICLE, fallback=False) == "\n".join(SENTENCES)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "<div>" + "".join(f"<p><a href='/{n}'>{n}月の外来休診日のお知らせ</a></p>" for n in range(20)) + "</div>",
        "<p>このサイトはクッキーを使用しています。</p><button>同意する</button>",
        "<h1>404 Not Found</h1><p>お探しのページは見つかりませんでした。</p>",
    ],
)
def test_a_page_of_boilerplate_has_no_main_text(tmp_path, body):
    (tmp_path / "a.html").write_text(page(body), encoding="utf-8")
    (tmp_path / "b.html").write_text(ARTICLE, encoding="utf-8")
    documents, found = read(tmp_path)
    assert [document.id for document in documents] == ["b.html"]
    assert [(problem.file, problem.row, problem.reason) for problem in found] == [
        ("a.html", None, problems.NO_MAIN_TEXT)
    ]


def test_pages_of_every_kind_are_named_by_their_path_and_say_what_they_are(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.html", "b.HTM", "sub/c.xhtml"):
        declared = "<?xml version='1.0' encoding='utf-8'?>" if name.endswith("xhtml") else ""
        (tmp_path / name).write_text(declared + ARTICLE, encoding="utf-8")
    (tmp_path / "d.html").write_bytes(gzip.compress(ARTICLE.encode()))
    documents, found = read(tmp_path)
    assert [document.id for document in documents] == ["a.html", "b.HTM", "d.html", "sub/c.xhtml"]
    assert {document.text for document in documents} == {"\n".join(SENTENCES)}
    assert documents[0].metadata == {
        "file": "a.html",
        "row": None,
        "charset": "utf-8",
        "title": "急性心筋梗塞",
        "language": "ja",
        "license": "https://creativecommons.org/licenses/by/4.0/",
    }
    assert found == []


@pytest.mark.parametrize(
    "hostile",
    [
        "",
        "\0" * 100,
        "<div>" * 30_000 + SENTENCES[0],
        "<a " * 50_000,
        "<table>" * 3_000,
        "<![CDATA[" * 1_000,
        "&#xD800;&#0;" * 100,
        "<html><body>\x0b\ud800</body></html>",
        "<frameset><frame src=x></frameset>",
        b"\xff" * 1_000,
        b"\x1b$B" + b"\xff" * 500,
    ],
)
def test_hostile_pages_are_reported(hostile):
    with pytest.raises(BadRowError) as caught:
        problems.check_text(main_text(hostile))
    assert caught.value.reason in {problems.NO_MAIN_TEXT, problems.UNDECODABLE, problems.MOJIBAKE}


def test_a_page_above_the_limit_is_reported(tmp_path):
    (tmp_path / "a.html").write_bytes(b"<p>" + b"x" * (5 << 20))
    (tmp_path / "b.html").write_text(ARTICLE, encoding="utf-8")
    documents, found = read(tmp_path)
    assert len(documents) == 1
    assert [(problem.file, problem.reason) for problem in found] == [("a.html", problems.ROW_TOO_LONG)]


# ---- Character sets ----


@pytest.mark.parametrize(
    ("codec", "declared", "header", "expected"),
    [
        ("utf-8", "utf-8", None, "utf-8"),
        ("utf-8", "Shift_JIS", "text/html; charset=ISO-8859-1", "utf-8"),
        ("cp932", "Shift_JIS", None, "cp932"),
        ("cp932", "x-sjis", None, "cp932"),
        ("cp932", "utf-8", None, "cp932"),
        ("cp932", "utf-8", "text/html; charset=windows-31j", "cp932"),
        ("cp932", "no-such-set", None, "cp932"),
        ("euc_jp", "EUC-JP", None, "euc_jp"),
        ("euc_jp", "", None, "euc_jp"),
        ("euc_jp", "", 'text/html; charset="euc-jp"', "euc_jp"),
        ("iso2022_jp", "", None, "iso2022_jp_ext"),
        ("utf-8-sig", "Shift_JIS", None, "utf-8"),
        ("utf-16", "utf-16", None, "utf-16-le"),
    ],
)
def test_the_character_set_is_found(codec, declared, header, expected):
    html = page(f"<p>{SENTENCES[0]}</p>", charset=declared)
    assert decode_page(html.encode(codec), content_type=header) == (html, expected)


@pytest.mark.parametrize("codec", ["utf-8", "cp932", "euc_jp"])
def test_one_bad_byte_is_forgiven_and_many_are_not(codec):
    html = page("".join(f"<p>{sentence}</p>" for sentence in SENTENCES * 5), charset=codec.replace("_", "-"))
    data = html.encode(codec)
    cut = data[: len(data) // 2] + b"\xff" + data[len(data) // 2 :]
    text, charset = decode_page(cut)
    assert charset == codec and text.replace("\ufffd", "")[:300] == html[:300] and text.count("\ufffd") <= 4
    with pytest.raises(BadRowError, match="undecodable"):
        decode_page(b"".join(bytes([byte, 0xFF]) for byte in data[:2_000]))


@settings(deadline=None, max_examples=100)
@given(
    text=st.text(st.sampled_from("亜医療患者検査ぁんァンー。、１Ａａ漢字ABC 19<>"), min_size=1, max_size=80),
    codec=st.sampled_from(["utf-8", "cp932", "euc_jp"]),
)
def test_a_declared_set_is_believed_when_it_fits(text, codec):
    html = f"<meta charset='{codec}'><p>日本語の文章です。{text}</p>"
    assert decode_page(html.encode(codec)) == (html, codec)


def test_names_of_python_codecs_that_are_no_character_sets_are_not_believed():
    for name in ("unicode_escape", "punycode", "idna", "utf-7", "rot13", "zlib", "undefined"):
        assert decode_page(f"<meta charset={name}>日本語の文章です。".encode("euc_jp"))[1] == "euc_jp"


# ---- Web archives ----


def response(url, body, *, content_type="text/html; charset=utf-8", status="200 OK", headers=()):
    return {
        "kind": "response",
        "url": url,
        "body": body,
        "status": status,
        "headers": [("Content-Type", content_type), *headers],
    }


def warc(records, *, compressed=True):
    """One WARC file's records, each as its bytes."""
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    pieces = []
    for record in records:
        buffer = io.BytesIO()
        writer = WARCWriter(buffer, gzip=compressed)
        if record["kind"] == "warcinfo":
            made = writer.create_warcinfo_record("a.warc", {"software": "test"})
        else:
            http = None
            if record["kind"] == "response":
                http = StatusAndHeaders(record["status"], record["headers"], protocol="HTTP/1.1")
            made = writer.create_warc_record(
                record["url"], record["kind"], payload=io.BytesIO(record["body"]), http_headers=http,
                warc_headers_dict={"WARC-Date": "2024-01-15T00:00:00Z"},
            )  # fmt: skip
        writer.write_record(made)
        pieces.append(buffer.getvalue())
    return pieces


def numbered(number):
    return page(f"<p>第{number}号。{SENTENCES[0]}</p><p>{SENTENCES[1]}</p>")


RECORDS = [
    {"kind": "warcinfo"},
    *(response(f"https://a.example/{number}", numbered(number).encode()) for number in range(1, 6)),
]


def texts(documents):
    return [document.text[:4] for document in documents]


@pytest.mark.parametrize("name", ["a.warc.gz", "a.warc"])
def test_the_html_responses_of_an_archive_are_read_and_the_rest_passed_over(tmp_path, name):
    chunked = numbered(9).encode("cp932")
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(chunked), chunked)
    records = [
        *RECORDS[:2],
        {"kind": "request", "url": "https://a.example/1", "body": b"GET / HTTP/1.1\r\n\r\n"},
        response("https://a.example/p.png", b"\x89PNG", content_type="image/png"),
        response("https://a.example/gone", ARTICLE.encode(), status="404 Not Found"),
        response("https://a.example/menu", page("").encode()),
        response("https://a.example/8", gzip.compress(numbered(8).encode()), headers=[("Content-Encoding", "gzip")]),
        response(
            "https://a.example/9", chunked, content_type="text/html; charset=Shift_JIS",
            headers=[("Transfer-Encoding", "chunked")],
        ),
        response("https://a.example/x", numbered(7).encode("euc_jp"), content_type="application/xhtml+xml"),
    ]  # fmt: skip
    (tmp_path / name).write_bytes(b"".join(warc(records, compressed=name.endswith("gz"))))
    documents, found = read(tmp_path)
    assert texts(documents) == ["第1号。", "第8号。", "第9号。", "第7号。"]
    assert [document.id for document in documents] == [f"https://a.example/{last}" for last in "189x"]
    assert documents[0].metadata["row"] == 2 and documents[0].metadata["file"] == name
    assert documents[0].metadata["url"] == "https://a.example/1"
    assert documents[0].metadata["date"] == "2024-01-15T00:00:00Z"
    assert [document.metadata["charset"] for document in documents] == ["utf-8", "utf-8", "cp932", "euc_jp"]
    assert [(problem.row, problem.reason) for problem in found] == [
        (5, problems.ERROR_PAGE),
        (6, problems.NO_MAIN_TEXT),
    ]


@pytest.mark.parametrize("pack", [b"".join, lambda pieces: gzip.compress(b"".join(pieces))])
def test_an_archive_packed_as_one_stream_or_not_at_all_is_read_whatever_its_name(tmp_path, pack):
    (tmp_path / "a.warc.gz").write_bytes(pack(warc(RECORDS, compressed=False)))
    documents, found = read(tmp_path)
    assert texts(documents) == [f"第{number}号。" for number in range(1, 6)]
    assert found == []


def flipped(piece):
    middle = len(piece) // 2
    return piece[:middle] + bytes(byte ^ 0xFF for byte in piece[middle : middle + 40]) + piece[middle + 40 :]


@pytest.mark.parametrize(
    ("compress", "damage"),
    [
        (True, flipped),
        (True, lambda piece: piece[: len(piece) // 2]),
        (True, lambda piece: piece[:-8] + b"\0" * 8),
        (True, lambda piece: gzip.compress(gzip.decompress(piece)[:-200])),
        (True, lambda piece: gzip.compress(b"no record\r\n\r\n")),
        (False, lambda piece: piece[: len(piece) // 2]),
        (False, lambda piece: piece.replace(b"Content-Length: ", b"Content-Length: 9", 1)),
        (False, lambda piece: piece.replace(b"Content-Length: ", b"Content-Length: 9999999", 1)),
        (False, lambda piece: piece.replace(b"Content-Length: ", b"Content-Length: -", 1)),
        (False, lambda piece: piece.replace(b"Content-Length", b"Content-Lungth", 1)),
        (False, lambda piece: piece.replace(b"WARC/1", b"WORC/1", 1)),
    ],
)
def test_a_damaged_record_is_reported_and_the_rest_goes_on(tmp_path, compress, damage):
    pieces = warc(RECORDS, compressed=compress)
    pieces[3] = damage(pieces[3])
    (tmp_path / "a.warc.gz").write_bytes(b"".join(pieces))
    documents, found = read(tmp_path)
    assert texts(documents) == ["第1号。", "第2号。", "第4号。", "第5号。"]
    assert [(problem.row, problem.reason in (problems.DAMAGED_RECORD, problems.ROW_TOO_LONG)) for problem in found] == [
        (4, True)
    ]


@pytest.mark.parametrize("compress", [True, False])
def test_an_archive_cut_anywhere_keeps_the_records_before(tmp_path, compress):
    pieces = warc(RECORDS, compressed=compress)
    whole = b"".join(pieces)
    for cut in [len(whole) - 20, len(whole) // 2, len(pieces[0]) + len(pieces[1]) + 7]:
        (tmp_path / "a.warc").write_bytes(whole[:cut])
        documents, found = read(tmp_path)
        assert texts(documents) == [f"第{number}号。" for number in range(1, len(documents) + 1)]
        assert [problem.reason for problem in found] == [problems.DAMAGED_RECORD]
        assert found[0].row == len(documents) + 2


@settings(deadline=None, max_examples=30)
@given(block=st.integers(100, 3_000), compress=st.booleans(), place=st.integers(0, 2_000))
def test_records_do_not_depend_on_how_the_file_is_read(block, compress, place):
    pieces = warc(RECORDS[:4], compressed=compress)
    data = bytearray(b"".join(pieces))
    data[place % len(data)] ^= 0x55
    results = []
    for size in (block, len(data)):
        blocks = (bytes(data[start : start + size]) for start in range(0, len(data), size))
        found = read_responses(blocks, is_gzip=compress)
        results.append([(number, one.reason if isinstance(one, BadRowError) else one) for number, one in found])
    kept = [[r for _, r in result if not isinstance(r, str)] for result in results]
    assert kept[0] == kept[1]
    assert len(kept[0]) >= 2


def test_a_file_that_is_no_archive_is_reported(tmp_path):
    (tmp_path / "a.warc").write_bytes(b"no archive at all\n" * 100)
    (tmp_path / "b.warc.gz").write_bytes(b"\x1f\x8b\x08" + zlib.compress(b"x" * 100))
    (tmp_path / "c.warc").write_bytes(b"")
    (tmp_path / "d.html").write_text(ARTICLE, encoding="utf-8")
    documents, found = read(tmp_path)
    assert [document.id for document in documents] == ["d.html"]
    assert [(problem.file, problem.reason) for problem in found] == [
        ("a.warc", problems.DAMAGED_RECORD),
        ("b.warc.gz", problems.DAMAGED_RECORD),
    ]


def test_pages_are_no_wiki_articles(tmp_path):
    (tmp_path / "a.html").write_text(ARTICLE, encoding="utf-8")
    (tmp_path / "b.warc").write_bytes(b"".join(warc(RECORDS)))
    with pytest.raises(ValueError, match="2 x not of the layout"):
        read(tmp_path, layout="wiki40b")


def test_progress_of_an_archive_ends_at_its_size(tmp_path):
    (tmp_path / "a.warc.gz").write_bytes(b"".join(warc(RECORDS)))
    seen = []
    read(tmp_path, on_progress=seen.append)
    assert seen == sorted(seen) and seen[-1] == (tmp_path / "a.warc.gz").stat().st_size
    assert seen[-1] < compressed.BLOCK_BYTES
