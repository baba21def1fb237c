"""JMED-LLM as conversations: every row and no other, three splits, answers that survive the tokenizer."""

import ast
import csv
import itertools
import json
import os
import random
import shutil
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from conftest import REPOSITORY, SENTENCES
from hypothesis import given
from hypothesis import strategies as st
from jmed_world import CASES, RECORDS, TESTS, full_sets, write_jmed

from ncvc.chat import encode_conversation, encode_prompt, with_chat_tokens
from ncvc.corpus.cleaning import Cleaner
from ncvc.evaluation import jmed_llm
from ncvc.evaluation.jmed_documents import document_ids, folds_of, near_pairs
from ncvc.evaluation.jmed_files import LETTERS, TASKS, Row, passage_of
from ncvc.evaluation.jmed_llm import read_spans, split_summary, training_conversations
from ncvc.evaluation.spans import clean_span
from ncvc.morphology import build_analyzer
from ncvc.tokenizer import SMALLEST_VOCABULARY, Tokenizer, segment_text

SHARED = REPOSITORY.parent / "shared" / "data" / "jmed_llm"


@pytest.fixture
def folder(tmp_path):
    return write_jmed(tmp_path / "jmed")


@pytest.fixture(scope="module")
def shared():
    if not SHARED.is_dir():
        pytest.skip("needs the shared data beside the repository")
    return SHARED


@pytest.fixture(scope="module")
def folds(shared):
    """The rows of each of the five folds of the published files."""
    return [jmed_llm.test_examples(shared, split="grouped", fold=fold) for fold in range(5)]


@pytest.fixture(scope="module")
def tokenizer():
    cleaner, analyzer = Cleaner(), build_analyzer()
    segmented = [segment_text(cleaner(text), analyzer=analyzer) for text in SENTENCES * 5]
    with pytest.warns(UserWarning, match="unused"):
        trained = Tokenizer.train(
            segmented, vocab_size=SMALLEST_VOCABULARY + 160, cleaner=cleaner, analyzer=analyzer, progress=False
        )
    return with_chat_tokens(trained)


def places(examples):
    return {(example.source, example.row) for example in examples}


def every_row():
    return {(name, row) for name, rows in full_sets().items() for row in range(len(rows) - 1)}


def held_out_rows():
    return {place for places in TESTS.values() for place in places}


# --- rows become conversations ---


def test_a_choice_is_asked_with_its_options_and_answered_by_a_letter(folder):
    example = next(e for e in training_conversations(folder, split="paper", tasks=["rrtnm"]) if e.row == 2)
    user, assistant = example.messages
    assert (user.role, assistant.role) == ("user", "assistant")
    assert user.content.endswith("」\nA. なし\nB. ある") and "C. " not in user.content
    assert assistant.content == example.answer == "B" and example.options == ("A", "B") and example.passage == ""


def test_spans_are_asked_of_a_passage_and_answered_in_its_order_each_once(folder):
    (example,) = (e for e in jmed_llm.test_examples(folder, split="paper", task="mrner_disease") if e.row == 0)
    user, assistant = example.messages
    assert example.passage == CASES[2] == passage_of(user.content) and user.content.endswith(f"\n「{CASES[2]}」")
    assert json.loads(assistant.content) == [clean_span(CASES[2][0:3]), clean_span(CASES[2][7:10])]
    assert example.answer == [CASES[2][7:10], CASES[2][0:3], CASES[2][0:3]] and example.options == ()


def test_awkward_cells_come_whole(folder):
    (example,) = jmed_llm.test_examples(folder, split="paper", task="nrner")
    assert example.passage == RECORDS[0]  # begins with a bracket of its own, holds quotes, a line break, a backslash
    assert example.answer == ["#頭痛", '“眠い”, 頭が"重い"', "\\"]
    written = example.messages[1].content
    assert read_spans(clean_span(written)) == ['"眠い", 頭が"重い"', "#頭痛", "\\"]


def test_a_conversation_is_supervised_on_its_answer_alone(folder, tokenizer):
    for example in training_conversations(folder, split="paper"):
        prompt = encode_prompt(example.messages[:1], tokenizer=tokenizer)
        whole = encode_conversation(example.messages, tokenizer=tokenizer)
        assert whole.ids[: len(prompt)] == prompt and not any(whole.supervised[: len(prompt)])
        assert all(whole.supervised[len(prompt) :])
        answer = tokenizer.decode(whole.ids[len(prompt) : -1])
        assert answer == example.messages[-1].content
        if not example.options:
            assert set(read_spans(answer)) == {clean_span(span) for span in example.answer} - {""}


# --- the splits ---


def test_the_paper_split_is_every_row_but_the_test_rows(folder):
    assert places(training_conversations(folder, split="paper")) == every_row() - held_out_rows()


def test_the_document_split_leaves_out_what_any_test_row_is_about(folder):
    about_tested = {("CRADE", row) for row in (0, 1, 2, 3, 4, 5, 6, 7)}  # cases 0 and 1, and 2 and 3 through CRNER
    about_tested |= {("CRNER", row) for row in (0, 1, 2, 3)}  # row 0: the same case in other words
    about_tested |= {("RRTNM", 0), ("RRTNM", 1), ("RRTNM", 2), ("RRNER", 0), ("SMDIS", 0), ("SMDIS", 1)}
    about_tested |= {("JCSTS", 0), ("JCSTS", 1), ("JMMLU-Med", 0), ("JMMLU-Med", 1), ("NRNER", 0), ("NRNER", 1)}
    assert places(training_conversations(folder, split="document")) == every_row() - about_tested


def test_grouped_folds_part_the_rows_and_share_no_document(folder):
    seen = Counter()
    for fold in range(5):
        held_out = jmed_llm.test_examples(folder, split="grouped", fold=fold)
        trained = training_conversations(folder, split="grouped", fold=fold)
        assert not places(held_out) & places(trained) and places(held_out) | places(trained) == every_row()
        assert not {e.document for e in held_out} & {e.document for e in trained}
        seen.update(places(held_out))
    assert set(seen) == every_row() and set(seen.values()) == {1}


def test_a_near_copy_of_a_report_and_a_reversed_pair_are_one_document_and_a_like_post_is_not(folder):
    of = {(e.source, e.row): e.document for fold in range(5)
          for e in jmed_llm.test_examples(folder, split="grouped", fold=fold)}  # fmt: skip
    assert of["CRADE", 0] == of["CRADE", 1] == of["CRNER", 0]
    assert of["JCSTS", 0] == of["JCSTS", 1] != of["JCSTS", 2]
    assert of["JCSTS", 3] == of["JCSTS", 4]
    assert of["JMMLU-Med", 0] == of["JMMLU-Med", 1] != of["JMMLU-Med", 2]
    assert len({of["SMDIS", row] for row in range(0, 8, 2)}) == 4


def test_splits_and_documents_do_not_depend_on_line_ends_and_folders(folder, tmp_path):
    original = write_jmed(tmp_path / "original", full="datasets/all", test="datasets")
    write_jmed(tmp_path / "original" / "datasets" / "v1", full="all", test=".")  # an older version beside it
    windows = write_jmed(tmp_path / "windows", full="whole", test="probe", test_line_end="\r\n")
    capitals, small = tmp_path / "capitals", tmp_path / "small"
    for path in folder.rglob("*.csv"):
        is_full = path.parent.name == "all"
        for copy in (
            capitals / ("ALL" if is_full else "Test") / path.name.upper(),
            small / ("all" if is_full else "others") / path.name.lower(),
        ):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    for split, fold in (("paper", None), ("document", None), ("grouped", 3)):
        wanted = training_conversations(folder, split=split, fold=fold)
        for other in (original, windows, capitals, small):
            assert training_conversations(other, split=split, fold=fold) == wanted
            found = jmed_llm.test_examples(other, split=split, fold=fold)
            assert found == jmed_llm.test_examples(folder, split=split, fold=fold)


def test_a_changed_file_of_the_same_size_is_read_again(folder):
    path = folder / "all" / "SMDIS.csv"
    before = training_conversations(folder, split="paper", tasks=["smdis"])[-1]
    status = path.stat()
    path.write_bytes(path.read_bytes().removesuffix(b"B\n") + b"A\n")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    after = training_conversations(folder, split="paper", tasks=["smdis"])[-1]
    assert (before.answer, after.answer) == ("B", "A") and path.stat().st_size == status.st_size


@given(st.lists(st.text("あいう1", max_size=12), max_size=12, unique=True), st.sampled_from([0.5, 0.8, 1.0]))
def test_near_pairs_are_those_that_comparing_all_pairs_finds(texts, threshold):
    def trigrams(text):
        return {text[n : n + 3] for n in range(max(1, len(text) - 2))}

    expected = set()
    for first, second in itertools.combinations(texts, 2):
        one, other = trigrams(first), trigrams(second)
        if len(one & other) >= threshold * len(one | other):
            expected.add(frozenset((first, second)))
    found = list(near_pairs(texts, threshold=threshold))
    assert len(found) == len(expected) and {frozenset(pair) for pair in found} == expected


def rows_about(pairs):
    return [Row("jcsts", "JCSTS", n, "", "", (), "A", pair) for n, pair in enumerate(pairs)]


@given(st.lists(st.tuples(st.sampled_from("abcdefghij"), st.sampled_from("abcdefghij")), max_size=15), st.randoms())
def test_connected_sentences_are_one_document_whatever_the_order(pairs, shuffled):
    names = document_ids(rows_about(pairs))
    reached = {letter: {letter} for letter in "abcdefghij"}  # by walking
    for _ in range(10):
        for first, second in pairs:
            joined = reached[first] | reached[second]
            for letter in joined:
                reached[letter] = joined
    for (one, name), (other, another) in itertools.combinations(zip(pairs, names, strict=True), 2):
        assert (name == another) == (other[0] in reached[one[0]])
    order = list(range(len(pairs)))
    shuffled.shuffle(order)
    again = document_ids(rows_about([pairs[place] for place in order]))
    assert again == [names[place] for place in order]


@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from("xy")), min_size=1, max_size=80))
def test_folds_are_as_even_as_the_largest_document_allows(rows):
    rows = [(f"{source}{number}", source) for number, source in rows]
    folds = folds_of([name for name, _ in rows], sources=[source for _, source in rows])
    for source in {source for _, source in rows}:
        sizes = Counter(name for name, of in rows if of == source)
        filled = [sum(size for name, size in sizes.items() if folds[name] == fold) for fold in range(5)]
        assert max(filled) - min(filled) <= max(sizes.values())


# --- the published files ---


def test_the_paper_split_has_the_rows_that_the_report_trained_on(shared):
    counts = Counter(e.source for e in training_conversations(shared, split="paper"))
    assert counts == {"JMMLU-Med": 581, "CRADE": 1530, "RRTNM": 224, "SMDIS": 15260, "JCSTS": 3570, "CRNER": 115,
                      "RRNER": 22, "NRNER": 1439}  # fmt: skip
    assert sum(counts.values()) == 22_741 and -(-22_741 // 256) * 10 == 890  # R80: ten epochs
    assert Counter(e.task for e in jmed_llm.test_examples(shared, split="paper")) == dict.fromkeys(TASKS, 100)


def test_documents_are_the_given_groups_of_rows(shared, folds):
    with (shared / "row_groups.csv").open(encoding="utf-8", newline="") as handle:
        given_groups = {(row["file"], int(row["row"])): row for row in csv.DictReader(handle)}
    ours, theirs = defaultdict(set), defaultdict(set)
    for fold in folds:
        for e in fold:
            group = given_groups[e.source, e.row]["doc_id"]
            ours[e.document].add(group)
            theirs[group].add(e.document)
    assert len(ours) == len(theirs) == 5425
    assert all(len(groups) == 1 for groups in (*ours.values(), *theirs.values()))
    clean = {place for place, row in given_groups.items() if not row["test_file"] and row["doc_seen_in_test"] == "0"}
    assert places(training_conversations(shared, split="document")) == clean and len(clean) == 19_740


def test_folds_are_even_in_every_set(folds):
    by_fold = [Counter(e.source for e in fold) for fold in folds]
    for source in by_fold[0]:
        counts = [count[source] for count in by_fold]
        assert max(counts) <= 1.3 * min(counts), (source, counts)


def test_the_summary_counts_rows_and_leaks(shared):
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
            for line in split_summary(shared).splitlines() if line.startswith("|")}  # fmt: skip
    assert rows["all"][:3] == ["23,541", "22,741", "19,740"]
    assert rows["crade"] == ["1,630", "1,530", "370", "329 328 326 318 329", "100", "100", "0"]
    assert [rows[task][5] for task in TASKS] == ["4", "100", "94", "100", "68", "50", "100", "63"]
    assert {cells[6] for task, cells in rows.items() if task in TASKS} == {"0"}


def test_every_gold_list_survives_the_tokenizer(folds, tokenizer):
    checked = 0
    for fold in folds:
        for e in fold:
            if e.options:
                assert e.answer in e.options and e.answer in LETTERS
                continue
            answer = tokenizer.decode(tokenizer.encode(e.messages[-1].content))
            found, wanted = read_spans(answer), {clean_span(span) for span in e.answer}
            assert set(found) == wanted and len(found) == len(wanted) and "" not in wanted
            assert ast.literal_eval(answer) == found and "\\" not in answer
            assert all(span in clean_span(e.passage) for span in found)
            checked += 1
    assert checked == 1_876


@pytest.mark.slow
def test_thousands_of_reports_are_compared_without_comparing_all_pairs():
    drawn = random.Random(0)
    letters = [chr(0x4E00 + number) for number in range(1_000)]
    texts = ["".join(drawn.choices(letters, k=200)) for _ in range(4_000)]
    texts += [text[:-1] + "了" for text in texts[:100]]
    started = time.monotonic()
    assert len(list(near_pairs(texts, threshold=0.8))) == 100
    assert time.monotonic() - started < 20  # all 8 million pairs take minutes


def test_paths_may_be_texts(folder):
    assert training_conversations(str(folder), split="paper") == training_conversations(Path(folder), split="paper")
