"""Decontamination: planted cases are found whatever their form, templates are not, and what is cut is clean."""

import csv
import dataclasses
import gzip
import json
import pickle
import random

import numpy as np
import pytest
from conftest import REPOSITORY
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from ncvc.config import CONF_DIRECTORY
from ncvc.corpus.cleaning import Cleaner
from ncvc.corpus.contamination.benchmark_texts import Benchmark, Item, read_benchmark
from ncvc.corpus.contamination.condensed import condense, condensed_blocks, fold
from ncvc.corpus.contamination.index import ContaminationSettings, WindowIndex
from ncvc.corpus.contamination.sentences import sentences_of
from ncvc.morphology import build_analyzer
from ncvc.settings import settings_from
from ncvc.tokenizer import segment_text

SHARED = REPOSITORY.parent / "shared" / "data"
BEFORE = "春の市で古い時計を買った。店の主人は静かに笑い、"
AFTER = "と言って包みを渡した。帰り道に雨が降りだした。"
QUESTION = (
    "62歳の男性。3日前から続く左側腹部の鈍痛と、38.2℃の発熱を主訴に来院した。"
    "白血球は14,800で、造影CTでは左腎の周囲に液体の貯留を認める。最初に行うべき対応はどれか。"
)
CHOICES = ["抗菌薬の点滴静注", "体外衝撃波による結石の破砕", "腎摘除術", "経過の観察", "副腎皮質ステロイドの投与"]
SHORT = "ビタミンB1の欠乏で生じるのはどれか。"  # 17 letters and digits
ITEMS = [
    Item("exam", "1", "\n".join([QUESTION, *CHOICES]), (QUESTION,)),
    Item("exam", "2", "\n".join([SHORT, "脚気", "壊血病", "くる病"]), (SHORT,)),
    Item("exam", "3", "答えは?", ("答えは?",)),
]


class PairAnalyzer:
    """Words of two characters: cheap, and every character is in a word."""

    def __init__(self):
        self.identity = {"name": "pairs"}

    def segment(self, line):
        return [line[place : place + 2] for place in range(0, len(line), 2)]


@pytest.fixture(scope="module")
def analyzer():
    return build_analyzer()


@pytest.fixture(scope="module")
def index(analyzer):
    return WindowIndex.build(ContaminationSettings(), analyzer=analyzer, items=ITEMS)


@pytest.fixture(scope="module")
def segmented(analyzer):
    cleaner = Cleaner()
    return lambda raw: segment_text(cleaner(raw), analyzer=analyzer)


@pytest.fixture
def shared_data():
    if not SHARED.is_dir():
        pytest.skip("needs the shared data beside the repository")
    return SHARED


def letters(text):
    """The condensed characters of a text, told one by one."""
    return [(place, fold(character)) for place, character in enumerate(text) if fold(character)]


def stretch(text, *, first, length):
    """So many letters and digits of a text from the `first` on, as they stand there."""
    places = [place for place, _ in letters(text)]
    start = first if first >= 0 else len(places) + first
    return text[places[start] : places[start + length - 1] + 1]


def middle(text, length):
    """The middle so many letters and digits of a text."""
    return stretch(text, first=(len(letters(text)) - length) // 2, length=length)


def named(matches):
    return {(match.benchmark, match.item) for match in matches}


# --- planted cases
OTHER_FORMS = {
    "as it is": QUESTION,
    "full width": QUESTION.translate({c: c + 0xFEE0 for c in range(0x21, 0x7F)}),
    "other punctuation": QUESTION.replace("、", "，").replace("。", "．"),
    "no punctuation": QUESTION.replace("、", "").replace("。", ""),
    "in brackets": "【" + QUESTION.replace("の", "の「").replace("で", "」で") + "】",
    "a line break after every fifth character": "\n".join(QUESTION[n : n + 5] for n in range(0, len(QUESTION), 5)),
    "spaces between all characters": "\u3000".join(QUESTION),
    "upper case, zero widths": QUESTION.replace("CT", "Ｃ\u200bT").replace("の", "の\u200b"),
    "with its choices numbered": "問1 " + QUESTION + "\n" + "\n".join(f"{n}. {c}" for n, c in enumerate(CHOICES)),
    "the middle 30 characters": middle(QUESTION, 30),
    "the first 30 characters": stretch(QUESTION, first=0, length=30),
    "the last 30 characters": stretch(QUESTION, first=-30, length=30),
}


@pytest.mark.parametrize("form", OTHER_FORMS)
def test_a_planted_question_is_found_whatever_its_form(index, segmented, form):
    text = segmented(BEFORE + OTHER_FORMS[form] + AFTER)
    assert ("exam", "1") in named(index.check(text))
    assert index.judge(text).kept is None


def test_thirteen_words_are_found_though_the_numbers_around_them_changed(index, segmented, analyzer):
    changed = QUESTION.replace("62", "71").replace("38.2", "39.4").replace("14,800", "9,100")
    assert ("exam", "1") in named(index.check(segmented(BEFORE + changed + AFTER)))
    line = "続く左側腹部の鈍痛と、"
    words = [word for word in analyzer.segment(line) if condense(word).num_characters]
    assert len(words) < 13
    assert index.check(segmented(BEFORE + line + AFTER)) == []


def test_thirteen_words_of_fewer_than_thirty_characters_are_found_and_twelve_are_not(analyzer, segmented):
    line = "手に本を持ち山へ行き木の下で茶を飲み空を見て歌を詠む日の夢を語る"
    words = analyzer.segment(line)
    index = WindowIndex.build(ContaminationSettings(), analyzer=analyzer, items=[Item("verse", "1", line)])
    for count, expected in ((13, {"words"}), (12, set())):
        stretch = words[2 : 2 + count]
        assert len("".join(stretch)) < 30
        found = index.check(" ".join([*["犬", "と", "猫", "が"], *stretch, *["犬", "と", "猫", "が"]]))
        assert {match.window for match in found} == expected


def test_twenty_nine_characters_are_no_match_and_thirty_are(analyzer):
    text = "あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほまみむめもやゆよらりるれろ"
    index = WindowIndex.build(
        ContaminationSettings(word_window=40), analyzer=analyzer, items=[Item("kana", "1", text, (text,))]
    )
    assert index.check("x" + text[7:36] + "x") == []
    (match,) = index.check("x 。 " + text[7:37] + "x")
    assert (match.window, match.start, match.end) == ("characters", 4, 34)


def test_a_stretch_is_told_once_with_its_place_in_a_long_document(index, segmented):
    filler = segmented("雨の日は本を読み、晴れた日は畑で働いた。" * 20_000)
    question = segmented(QUESTION)
    document = f"{filler}\n{question}\n{filler}"
    (match,) = [match for match in index.check(document) if match.window == "characters"]
    assert document[match.start : match.end] == question.rstrip("。 ")
    assert (match.benchmark, match.item) == ("exam", "1")


def test_a_question_shorter_than_the_windows_is_found_whole_and_a_tiny_one_is_listed(index, segmented):
    (match,) = index.check(segmented(BEFORE + SHORT + AFTER))
    assert (match.item, match.window) == ("2", "whole")
    assert index.check(segmented(BEFORE + SHORT[:-4] + AFTER)) == []
    assert [(benchmark, item) for benchmark, item, _ in index.unfindable] == [("exam", "3")]


def test_choices_in_another_order_do_not_hide_the_question(index, segmented):
    text = segmented(QUESTION + "\n" + "\n".join(reversed(CHOICES)))
    assert ("exam", "1") in named(index.check(text))


def test_many_documents_are_judged_as_one_by_one_and_none_sees_its_neighbour(index, segmented):
    texts = [segmented(BEFORE), segmented(QUESTION), "", segmented(SHORT), segmented(AFTER), "。 。"] * 50
    assert index.judge_many(texts) == [index.judge(text) for text in texts]


def test_no_document_sees_its_neighbour():
    kana = "あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほまみむめもやゆよらりるれろ"
    index = WindowIndex.build(ContaminationSettings(), analyzer=PairAnalyzer(), items=[Item("kana", "1", kana)])
    halves = [segment_text(half, analyzer=PairAnalyzer()) for half in (kana[:22], kana[22:])]
    assert index.check_many(halves) == [[], []]
    assert index.check(" ".join(halves)) != []


# --- against a naive search
def naive_matches(items, document, *, characters, words):
    """(item, kind) of every window of an item that the document holds, by comparing all of them."""

    def parts(segmented):
        condensed = "".join(character for _, character in letters(segmented))
        tokens = ["".join(fold(c) for c in word) for word in segmented.replace("\n", " ").split(" ")]
        tokens = [token for token in tokens if token]
        yield "characters", {condensed[n : n + characters] for n in range(len(condensed) - characters + 1)}
        yield "words", {tuple(tokens[n : n + words]) for n in range(len(tokens) - words + 1)}

    of_document = dict(parts(document))
    return {
        (item.id, kind)
        for item in items
        for kind, windows in parts(segment_text(Cleaner()(item.text), analyzer=PairAnalyzer()))
        if windows & of_document[kind]
    }


SMALL = "ab。 12\nあい"


@settings(max_examples=150, deadline=None)
@given(
    texts=st.lists(st.text(SMALL, min_size=1, max_size=40), min_size=1, max_size=4),
    document=st.text(SMALL, max_size=80),
)
def test_what_is_found_is_what_a_naive_search_finds(texts, document):
    items = [Item("small", str(number), text) for number, text in enumerate(texts)]
    chosen = ContaminationSettings(character_window=8, word_window=4, whole_item_characters=0, template_items=0)
    index = WindowIndex.build(chosen, analyzer=PairAnalyzer(), items=items)
    document = segment_text(Cleaner()(document), analyzer=PairAnalyzer())
    found = index.check(document)
    assert {(match.item, match.window) for match in found} == naive_matches(items, document, characters=8, words=4)
    for match in found:
        assert fold(document[match.start]) and fold(document[match.end - 1])


@settings(max_examples=100, deadline=None)
@given(
    text=st.text("aあ、 \n", max_size=200),
    block=st.integers(5, 60),
    characters=st.integers(1, 9),
    words=st.integers(1, 4),
)
def test_every_window_lies_whole_in_a_block_wherever_blocks_end(text, block, characters, words):
    def windows(blocks):
        of_characters, of_words = set(), set()
        for part in blocks:
            places = part.positions.tolist()
            of_characters |= {tuple(places[n : n + characters]) for n in range(len(places) - characters + 1)}
            bounds = [places[word] for word in part.words[:-1]]
            of_words |= {tuple(bounds[n : n + words]) for n in range(len(bounds) - words + 1)}
        return of_characters, of_words

    found = windows(condensed_blocks(text, characters=characters, words=words, block_characters=block))
    assert found == windows([condense(text)])


@given(st.text(max_size=30))
def test_two_texts_have_the_same_values_exactly_when_they_fold_to_the_same(text):
    block = condense(text)
    assert [text[place] for place in block.positions] == [character for character in text if fold(character)]
    folded = [fold(text[place]) for place in block.positions]
    assert (
        len(set(zip(folded, block.values.tolist(), strict=True))) == len(set(folded)) == len(set(block.values.tolist()))
    )


@pytest.mark.parametrize(
    ("character", "folded"),
    [
        ("A", "a"),
        ("Ａ", "a"),
        ("①", "1"),
        ("⁵", "5"),
        ("。", ""),
        ("「", ""),
        ("%", ""),
        ("▁", ""),
        ("ー", "ー"),
        ("々", "々"),
    ],
)
def test_the_condensed_form_keeps_letters_and_digits_alone(character, folded):
    assert fold(character) == folded


def test_a_hash_that_points_at_other_characters_is_no_match(index, segmented):
    text = segmented(BEFORE + QUESTION + SHORT + AFTER)
    assert {match.window for match in index.check(text)} == {"characters", "words", "whole"}
    others = {**index._arrays, "values": np.roll(index._arrays["values"], 1)}
    assert WindowIndex(others, index._header, path=None).check(text) == []


# --- templates
def instruction_items(
    count, instruction="以下の症例報告において、患者に実際に認められた病変や症状を表す表現は何ですか?"
):
    draw = random.Random(1)
    kana = "あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほまみむめもやゆよらりるれろ"
    return instruction, [
        Item("notes", str(number), f"{instruction}\n「{''.join(draw.choices(kana, k=60))}」") for number in range(count)
    ]


def test_an_instruction_of_many_items_is_a_template_and_each_item_is_still_found(analyzer, segmented):
    instruction, items = instruction_items(12)
    index = WindowIndex.build(ContaminationSettings(template_items=10), analyzer=analyzer, items=items)
    assert index.check(segmented(BEFORE + instruction + AFTER)) == []
    assert index.check(segmented(BEFORE + instruction + "「あ" + AFTER)) == []
    for item in items:
        assert ("notes", item.id) in named(index.check(segmented(BEFORE + item.text + AFTER)))
        assert ("notes", item.id) in named(index.check(segmented(BEFORE + middle(item.text[-60:], 30) + AFTER)))
    assert index.unfindable == []
    few = WindowIndex.build(ContaminationSettings(template_items=10), analyzer=analyzer, items=items[:9])
    assert few.check(segmented(BEFORE + instruction + AFTER)) != []
    kept = WindowIndex.build(ContaminationSettings(template_items=0), analyzer=analyzer, items=items)
    assert kept.check(segmented(BEFORE + instruction + AFTER)) != []


def test_a_report_that_many_questions_ask_about_is_no_template(analyzer, segmented):
    names = ["発疹", "頭痛", "嘔気", "下痢", "めまい", "不眠", "咳", "浮腫", "倦怠", "脱毛", "貧血", "黄疸"]
    items = [Item("reports", name, f"「{name}」が薬の有害事象である可能性は?\n「{QUESTION}」") for name in names]
    index = WindowIndex.build(ContaminationSettings(template_items=10), analyzer=analyzer, items=items)
    found = named(index.check(segmented(BEFORE + QUESTION + AFTER)))
    assert {item for _, item in found} == set(names)


def test_a_short_post_that_is_judged_for_many_diseases_is_found_whole(analyzer, segmented):
    post = "昨日から熱が出て学校を休んだ。"
    diseases = ["感冒", "花粉症", "下痢", "頭痛", "咳", "鼻水", "風邪", "発熱", "喘息", "肺炎", "胃炎", "湿疹"]
    items = [
        Item("posts", name, f"以下の投稿をした本人または周囲の人間は、1日以内に{name}でしたか?\n「{post}」", (post,))
        for name in diseases
    ]
    index = WindowIndex.build(ContaminationSettings(template_items=10), analyzer=analyzer, items=items)
    assert {match.window for match in index.check(segmented(BEFORE + post + AFTER))} == {"whole"}


def test_a_longer_post_that_is_judged_for_many_diseases_is_found_by_its_middle(analyzer, segmented):
    post = "昨日から熱が出て学校を休んだ。母が粥を作ってくれたので、少し食べて薬を飲み、夕方まで眠った。"
    diseases = ["感冒", "花粉症", "下痢", "頭痛", "咳", "鼻水", "風邪", "発熱", "喘息", "肺炎", "胃炎", "湿疹"]
    items = [
        Item("posts", name, f"以下の投稿をした本人または周囲の人間は、1日以内に{name}でしたか?\n「{post}」", (post,))
        for name in diseases
    ]
    index = WindowIndex.build(ContaminationSettings(template_items=10), analyzer=analyzer, items=items)
    assert index.check(segmented(BEFORE + middle(post, 30) + AFTER)) != []


def test_a_question_that_opens_many_items_is_not_looked_for_whole(analyzer, segmented):
    common = "次の記述のうち正しいものはどれか。"
    draw = random.Random(2)
    items = [
        Item("exam", str(n), common + "\n" + "".join(draw.choices("心肺肝腎脳骨胃腸皮膚血液神経", k=50)), (common,))
        for n in range(12)
    ]
    index = WindowIndex.build(ContaminationSettings(template_items=10), analyzer=analyzer, items=items)
    assert index.check(segmented(BEFORE + common + AFTER)) == []
    assert all(named(index.check(segmented(item.text))) for item in items)


def test_items_that_are_copies_of_each_other_are_no_templates(analyzer, segmented):
    items = [Item("copies", str(number), QUESTION) for number in range(30)]
    index = WindowIndex.build(ContaminationSettings(), analyzer=analyzer, items=items)
    assert index.check(segmented(BEFORE + QUESTION + AFTER)) != []


# --- cutting
def test_cutting_takes_the_sentences_that_hold_a_match_and_leaves_the_rest(index, segmented):
    cutting = WindowIndex(
        index._arrays, {**index._header, "settings": {**index._header["settings"], "action": "cut"}}, path=None
    )
    text = segmented("朝は晴れていた。\n" + BEFORE + QUESTION + "夜は雨だった。\n" + "翌日の朝も雨だった。" * 12)
    kept, matches = cutting.judge(text)
    assert kept == segmented(
        "朝は晴れていた。\n春の市で古い時計を買った。夜は雨だった。\n" + "翌日の朝も雨だった。" * 12
    )
    assert named(matches) == {("exam", "1")}
    assert cutting.judge(segmented("朝は晴れ。" + QUESTION)).kept is None  # fewer than kept_characters are left


@settings(max_examples=60, deadline=None)
@given(
    document=st.lists(
        st.sampled_from(["abcdefgh", "efgh", "abcd", "xyz", "。", "!", "\n", " ", "」", "12345678"]), max_size=60
    )
)
def test_what_is_left_after_cutting_holds_no_match_and_is_a_segmented_text(document):
    chosen = ContaminationSettings(
        action="cut", kept_characters=1, character_window=8, word_window=4, whole_item_characters=0, template_items=0
    )
    items = [Item("small", "1", "abcdefgh12345678"), Item("small", "2", "xyzxyzxyzxyz")]
    index = WindowIndex.build(chosen, analyzer=PairAnalyzer(), items=items)
    text = segment_text(Cleaner()("".join(document)), analyzer=PairAnalyzer())
    kept, matches = index.judge(text)
    if not matches:
        assert kept == text
        return
    assert all(match.end <= len(text) and fold(text[match.start]) for match in matches)
    if kept is None:
        return
    assert index.check(kept) == []
    assert all(line and "" not in line.split(" ") for line in kept.split("\n"))
    assert len(sentences_of(kept)) < len(sentences_of(text))
    left = iter(text.replace("\n", " ").split(" "))
    assert all(word in left for word in kept.replace("\n", " ").split(" "))  # the words left, in their order


def test_sentences_that_meet_after_a_cut_are_looked_at_again():
    chosen = ContaminationSettings(
        action="cut", kept_characters=1, character_window=8, word_window=40, whole_item_characters=0, template_items=0
    )
    items = [Item("small", "1", "abcdefgh"), Item("small", "2", "pqrstuvw")]
    index = WindowIndex.build(chosen, analyzer=PairAnalyzer(), items=items)
    kept, matches = index.judge("ab cd 。 pq rs tu vw 。 ef gh 。 xx yy zz")
    assert kept == "xx yy zz"
    assert [(match.item, match.start, match.end) for match in matches] == [("2", 8, 19), ("1", 0, 27)]


# --- the file
def test_an_index_on_disk_finds_the_same_and_its_bytes_are_the_same(index, segmented, tmp_path):
    text = segmented(BEFORE + QUESTION + SHORT + AFTER)
    index.save(tmp_path / "one")
    opened = WindowIndex.open(tmp_path / "one")
    assert opened.check(text) == index.check(text)
    assert opened.identity == index.identity
    assert pickle.loads(pickle.dumps(opened)).check(text) == index.check(text)
    opened.save(tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    with pytest.raises(TypeError, match="save it"):
        pickle.dumps(index)


def test_a_damaged_or_foreign_index_is_refused_by_name(index, tmp_path):
    path = tmp_path / "index"
    index.save(path)
    whole = path.read_bytes()
    for data, reason in (
        (whole[:-1], "truncated"),
        (whole[:-100] + b"x" + whole[-99:], "altered"),
        (b"{}" + whole, "not written by ncvc"),
        (b"", "not written by ncvc"),
        (whole.replace(b'"ncvc-windows"', b'"ncvc-widgets"', 1), "ncvc-widgets"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=reason):
            WindowIndex.open(path)
    with pytest.raises(FileNotFoundError, match="build it again"):
        WindowIndex.open(tmp_path / "none")


def test_the_identity_changes_with_items_and_settings_and_not_with_their_place():
    base = ContaminationSettings(sources=("a.csv",)).identity_of(ITEMS)
    assert ContaminationSettings(sources=("b/c.csv",)).identity_of(ITEMS) == base
    assert ContaminationSettings(action="cut").identity_of(ITEMS) != base
    assert ContaminationSettings().identity_of(ITEMS[:2]) != base
    json.dumps(base)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"action": "delete"}, r"contamination\.action='delete'"),
        ({"word_window": 0}, r"contamination\.word_window=0"),
        ({"character_window": 3}, r"contamination\.character_window=3"),
        ({"whole_item_characters": 31}, r"contamination\.whole_item_characters=31"),
        ({"template_items": 1}, r"contamination\.template_items=1"),
        ({"kept_characters": 0}, r"contamination\.kept_characters=0"),
        ({"sources": {"a": {"file": "x"}}}, r"contamination\.sources\.a"),
        ({"sources": ("x/a.csv", "y/a.csv")}, "same name"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(values, reason):
    with pytest.raises(ValueError, match=reason):
        ContaminationSettings(**values)


@pytest.mark.parametrize(("name", "enabled"), [("none", False), ("benchmarks", True)])
def test_the_configurations_are_settings_that_can_be(name, enabled, monkeypatch):
    monkeypatch.setenv("NCVC_SHARED_DATA", "somewhere")
    with initialize_config_dir(str(CONF_DIRECTORY), version_base="1.3"):
        values = OmegaConf.to_container(compose(f"contamination/{name}"), resolve=True)["contamination"]
    found = settings_from(ContaminationSettings, values, path="contamination")
    assert found.enabled is enabled
    assert set(values) == {field.name for field in dataclasses.fields(ContaminationSettings)}
    defaults = dataclasses.replace(ContaminationSettings(), sources=found.sources)
    assert found == defaults


def test_an_index_of_nothing_is_refused(analyzer):
    assert not ContaminationSettings().enabled
    with pytest.raises(ValueError, match="names no benchmark"):
        WindowIndex.build(ContaminationSettings(), analyzer=analyzer)


# --- benchmark files
def rows(*records):
    return "\n".join(json.dumps(record, ensure_ascii=False) for record in records) + "\n"


def write_csv(path, *lines, bom=False):
    with path.open("w", encoding="utf-8-sig" if bom else "utf-8", newline="") as handle:
        csv.writer(handle).writerows(lines)


def read(path, **options):
    problems = []
    return read_benchmark(Benchmark("b", path, **options), on_problem=problems.append), problems


def test_igakuqa_is_read_with_its_choices_and_without_answers_and_metadata(tmp_path):
    record = {
        "problem_id": "112A1",
        "problem_text": "問い。",
        "choices": ["甲", "乙"],
        "text_only": True,
        "answer": ["a"],
    }
    (tmp_path / "112-A.jsonl").write_text(rows(record), encoding="utf-8")
    (tmp_path / "112-A_metadata.jsonl").write_text(rows({"problem_id": "112A1", "category": "肝"}), encoding="utf-8")
    (tmp_path / "112-A_gpt.jsonl").write_text(rows({"problem_id": "112A1", "prediction": "a"}), encoding="utf-8")
    items, problems = read(tmp_path)
    assert items == [Item("b", "112A1", "問い。\n甲\n乙", ("問い。",))]
    assert [(problem.file, problem.reason) for problem in problems] == [("112-A_gpt.jsonl", "no text field")]


def test_jmed_llm_is_read_without_options_that_never_change_and_with_the_document_alone(tmp_path):
    lines = [[f"似ているか?\nS1: 文{n}\nS2: 句{n}", "同じである。\nS1: 例", "違う", "A"] for n in range(3)]
    write_csv(tmp_path / "jcsts.csv", ["question", "optionA", "optionB", "answer"], *lines)
    lines = [["d", f"表現は?\n「記録{n}の\n本文。\n」", "['x']"] for n in range(3)]
    write_csv(tmp_path / "nrner.csv", ["tag", "question", "answer"], *lines)
    items, problems = read(tmp_path)
    assert problems == []
    assert items[0] == Item("b", "jcsts.csv:2", lines_of(0), (lines_of(0), "文0", "句0"))
    assert items[3].wholes == ("表現は?\n「記録0の\n本文。\n」", "記録0の\n本文。")
    assert "例" not in "".join(item.text for item in items)


def lines_of(number):
    return f"似ているか?\nS1: 文{number}\nS2: 句{number}"


def test_jmmlu_is_read_though_it_has_no_header(tmp_path):
    lines = [[f"問{n}", "い", "ろ", " は", "に", "B"] for n in range(4)]
    write_csv(tmp_path / "anatomy.csv", *lines, bom=True)
    items, _ = read(tmp_path / "anatomy.csv")
    assert [item.id for item in items] == [f"anatomy.csv:{n}" for n in range(1, 5)]
    assert items[0].wholes == ("問0",)
    assert items[0].text == "問0"  # the options are the same in all rows here


def test_any_file_is_read_by_the_fields_given(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        rows({"q": "甲乙", "extra": {"x": ["丙", {"y": "丁"}], "n": 3}}), encoding="utf-8"
    )
    assert read(tmp_path / "a.jsonl", fields=("q", "extra"))[0][0].text == "甲乙\n丙\n丁\n3"
    write_csv(tmp_path / "b.csv", ["x", "甲"], ["y", "乙"])
    assert [item.text for item in read(tmp_path / "b.csv", fields=(2,))[0]] == ["甲", "乙"]
    (tmp_path / "c.txt").write_text("第一\n続き\n\n\n第二\r\n\r\n第三", encoding="utf-8")
    assert [(item.id, item.text) for item in read(tmp_path / "c.txt")[0]] == [
        ("c.txt:1", "第一\n続き"),
        ("c.txt:5", "第二"),
        ("c.txt:7", "第三"),
    ]
    (tmp_path / "d.json").write_text(json.dumps([{"id": 7, "question": "何"}]), encoding="utf-8")
    assert read(tmp_path / "d.json")[0] == [Item("b", "7", "何", ("何",))]
    (tmp_path / "e.jsonl.gz").write_bytes(gzip.compress(rows({"question": "何"}).encode()))
    assert read(tmp_path / "e.jsonl.gz")[0][0].text == "何"
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"question": ["甲", "乙"], "choices": [["a"], ["b"]]}), tmp_path / "f.parquet")
    assert [item.text for item in read(tmp_path / "f.parquet")[0]] == ["甲\na", "乙\nb"]


def test_broken_rows_and_files_are_told_and_the_rest_is_read(tmp_path):
    good = rows({"question": "良い問い"})
    (tmp_path / "a.jsonl").write_text('{"question": \n' + good + '[1]\n"x"\n' + '{"question": ""}\n', encoding="utf-8")
    (tmp_path / "b.csv").write_bytes("question\n頭痛\n".encode("cp932"))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(good.encode())[:-6])
    (tmp_path / "d.csv").write_text('question\n"no end', encoding="utf-8")
    (tmp_path / "e.json").write_text("[" * 100_000, encoding="utf-8")
    (tmp_path / "f.parquet").write_bytes(b"PAR1")
    (tmp_path / ".hidden.jsonl").write_text(good, encoding="utf-8")
    items, problems = read(tmp_path)
    assert [item.text for item in items] == ["良い問い"]
    assert [(problem.file, problem.row) for problem in problems] == [
        ("a.jsonl", 1),
        ("b.csv", None),
        ("c.jsonl.gz", None),
        ("d.csv", None),
        ("e.json", None),
        ("f.parquet", None),
    ]


def test_a_benchmark_without_items_is_an_error_that_names_the_setting(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"contamination\.sources\.b\.path"):
        read(tmp_path / "none.csv")
    (tmp_path / "a.jsonl").write_text(rows({"body": "x"}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"contamination\.sources\.b\.fields"):
        read(tmp_path)


# --- the real benchmarks
def real_settings(shared_data, **options):
    sources = {
        "igakuqa": str(shared_data / "igakuqa" / "data"),
        "jmed_llm": str(shared_data / "jmed_llm" / "test"),
        "jmmlu": str(shared_data / "jmmlu"),
    }
    return ContaminationSettings(sources=sources, **options)


def test_one_block_of_igakuqa_and_one_file_of_jmed_llm_are_found_item_by_item(shared_data, analyzer, segmented):
    sources = {
        "igakuqa": str(shared_data / "igakuqa" / "data" / "2019" / "113-E.jsonl"),
        "jmed_llm": str(shared_data / "jmed_llm" / "test" / "smdis.csv"),
    }
    items = ContaminationSettings(sources=sources).read_items()
    assert len(items) == 151
    index = WindowIndex.build(ContaminationSettings(), analyzer=analyzer, items=items)
    documents = [segmented(BEFORE + item.text + AFTER) for item in items]
    for item, matches in zip(items, index.check_many(documents), strict=True):
        assert (item.benchmark, item.id) in named(matches)
    assert (
        index.check(segmented(BEFORE + "SNSで以下の投稿をした本人または周囲の人間は、1日以内に頭痛でしたか?" + AFTER))
        == []
    )


@pytest.mark.slow
def test_every_item_of_every_benchmark_is_found_in_an_invented_document(shared_data, analyzer, segmented):
    chosen = real_settings(shared_data)
    items = chosen.read_items()
    assert {name: sum(item.benchmark == name for item in items) for name in ("igakuqa", "jmed_llm", "jmmlu")} == {
        "igakuqa": 1200,
        "jmed_llm": 800,
        "jmmlu": 1551,
    }
    index = WindowIndex.build(chosen, analyzer=analyzer)
    assert index.unfindable == []
    long_enough = 0
    for item, matches in zip(
        items, index.check_many([segmented(BEFORE + item.text + AFTER) for item in items]), strict=True
    ):
        long_enough += condense(Cleaner()(item.text)).num_characters >= 30
        assert (item.benchmark, item.id) in named(matches), item.id
    assert long_enough > 3500


@pytest.mark.slow
def test_the_middle_thirty_characters_are_found_but_for_stock_phrases(shared_data, analyzer, segmented):
    chosen = real_settings(shared_data)
    items = [item for item in chosen.read_items() if condense(Cleaner()(item.wholes[-1])).num_characters >= 30]
    index = WindowIndex.build(chosen, analyzer=analyzer)
    stretches = [middle(Cleaner()(item.wholes[-1]).replace("\n", ""), 30) for item in items]
    found = index.check_many([segmented(BEFORE + stretch + AFTER) for stretch in stretches])
    missed = [stretch for stretch, matches in zip(stretches, found, strict=True) if not matches]
    assert len(missed) < 0.005 * len(items)
    assert all("異常を認めない" in stretch for stretch in missed), missed


@pytest.mark.slow
def test_the_medical_and_noisy_text_beside_the_benchmarks_shares_nothing_with_them(shared_data, analyzer, segmented):
    index = WindowIndex.build(real_settings(shared_data), analyzer=analyzer)
    texts = []
    for path in sorted((shared_data / "medical_text").glob("*.jsonl*")):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        texts += [json.loads(line)["text"] for line in data.decode().split("\n") if line]
    assert len(texts) > 1000
    assert [match for matches in index.check_many([segmented(text) for text in texts]) for match in matches] == []
