"""Texts that are left out: mojibake found, odd but right text kept."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import LATIN_1, json_lines, read

from ncvc.corpus.reading import problems

# ---- Text that was decoded wrongly ----

JAPANESE = "患者は発熱と咳嗽を主訴に来院した。テストデータは3件、体温は38.5℃。"


@pytest.mark.parametrize(
    "wrong",
    [
        JAPANESE.encode().decode("latin-1"),
        JAPANESE.encode().decode("cp1252", "replace"),
        JAPANESE.encode().decode("cp932", "replace"),
        JAPANESE.encode().decode("latin-1").encode().decode("latin-1"),
        JAPANESE.encode("cp932").decode("latin-1"),
        JAPANESE.encode("cp932").decode("cp1252", "replace"),
        JAPANESE.encode("euc_jp").decode("latin-1"),
        JAPANESE.encode("cp932").decode("utf-8", "replace"),
        JAPANESE.encode("ascii", "replace").decode().replace("?", "\ufffd"),
        "テスト".encode("cp932").decode("cp1252"),
        "Größe und Übermaß, naïve Entzündung".encode().decode("latin-1"),
        "Повышенная температура тела".encode().decode("latin-1"),
    ],
)
def test_text_that_was_decoded_wrongly_is_mojibake(tmp_path, wrong):
    (tmp_path / "a.jsonl").write_bytes(json_lines([{"text": wrong}, {"text": JAPANESE}]))
    documents, found = read(tmp_path)
    assert [document.text for document in documents] == [JAPANESE]
    assert [(problem.row, problem.reason) for problem in found] == [(1, problems.MOJIBAKE)]


@pytest.mark.parametrize(
    "right",
    [
        JAPANESE + "縺れた糸を\ufffdほどく。" + JAPANESE,  # one rare letter, one lost one
        "Ménière病、naïve T細胞、Sjögren症候群、Guillain–Barré症候群",
        "„Das macht Spaß“, ‚ja‘, sagte sie. « CAFÉ », ¥1,000 × 2–3 ±0.5°",
        "Ärzte hören Übelkeit – größer als „groß“ – über Füße…",
        "L’œuvre « Été » à Noël – où l’on naît, l’âme… ƒ(x)=½",
        "Повышенная температура тела",
        "한국어 문장입니다.",
        "ｶﾞﾝ検診ｾﾝﾀｰ",
        "\u200fשלום\u200b\u202eعربي\ufeff",
    ],
)
def test_text_that_only_looks_odd_is_kept_as_it_is(tmp_path, right):
    (tmp_path / "a.jsonl").write_bytes(json_lines([{"text": right}]))
    assert [document.text for document in read(tmp_path)[0]] == [right]


@settings(deadline=None, max_examples=300)
@given(st.text(st.sampled_from(LATIN_1 + "aー患ƒ‚€縺繝繧\ufffdÂÃã 。") | st.characters(codec="utf-8"), max_size=60))
def test_the_quick_look_overlooks_nothing(text):
    found = text.strip() and problems.mojibake_share(text) >= problems.MOJIBAKE_SHARE
    found = found and any(sign in text for sign in "縺繝\ufffdƒ" + LATIN_1)  # 繧 counts beside 縺 or 繝 only
    try:
        problems.check_text(text)
        assert not found
    except problems.BadRowError as bad:
        assert (bad.reason == problems.MOJIBAKE) == bool(found) or bad.reason == problems.NUL_CHARACTERS
