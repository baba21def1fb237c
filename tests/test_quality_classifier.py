"""The quality classifier: sklearn's numbers without sklearn, what it learns and what not, the verb end to end."""

import json
import pickle
import random
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, SENTENCES, write_tiny_model
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from test_curation import curated, dropped

from ncvc.config import CONF_DIRECTORY
from ncvc.corpus.cleaning import Cleaner
from ncvc.corpus.documents import Document
from ncvc.corpus.quality.character_statistics import NAMES, character_statistics
from ncvc.corpus.quality.classifier import (
    ForestSettings,
    QualityClassifier,
    QualityClassifierSettings,
    VectorSettings,
    check_labels,
    held_out_rows,
    is_kept,
    save_classifier,
    train_forest,
)
from ncvc.corpus.quality.classifier_report import (
    THRESHOLDS,
    agreement,
    area_under_curve,
    at_threshold,
    best_threshold,
    cohen_kappa,
    sign_test,
    wilson_interval,
)
from ncvc.corpus.quality.forest import Forest
from ncvc.corpus.quality.label_log import Labelling, label_sample, read_labels
from ncvc.corpus.quality.labels import LabelSettings, choose_sample
from ncvc.corpus.quality.training import train_and_report
from ncvc.corpus.segmented import open_segmented
from ncvc.judge import judge
from ncvc.model.document_vectors import open_vectors
from ncvc.model.quality_scorer import open_scorer
from ncvc.settings import settings_from
from ncvc.teachers.teacher import ScriptedTeacher

CONF = OmegaConf.to_container(OmegaConf.load(CONF_DIRECTORY / "judge.yaml"))


def forest_settings(**changes) -> ForestSettings:
    return ForestSettings(**{**CONF["forest"], "trees": 20, "min_labels_per_class": 5, **changes})


def label_settings(**changes) -> LabelSettings:
    return LabelSettings(**{**CONF["labels"], "documents": 400, "repeated_documents": 0, **changes})


def prose_and_salad(number: int) -> list[Document]:
    """Half sentences, half the same words in disorder and without their ends."""
    draw, found = random.Random(7), []
    for n in range(number):
        text = "".join(draw.sample(SENTENCES, 4)) + f"症例{n}の経過は良好であった。"
        if n % 2:
            words = [text[place : place + 3] for place in range(0, len(text), 3)]
            draw.shuffle(words)
            text = "検査治療薬剤" + "・".join(words).replace("。", "").replace("、", "")
        found.append(Document(text, f"d{n}"))
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


def vector_settings(model: Path, **changes) -> VectorSettings:
    return VectorSettings(**{"model": str(model), "max_tokens": 64, "batch_size": 16, **changes})


@pytest.fixture(scope="module")
def vectors(model):
    return open_vectors(vector_settings(model))


def data(rows: int = 300, width: int = 12, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    values = draw.normal(size=(rows, width)).astype(np.float32).round(2)  # rounded: ties with thresholds occur
    return values, values[:, 0] + values[:, 3] * values[:, 5] + draw.normal(size=rows) > -0.5


# --- the forest ---


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"max_depth": 1},
        {"min_samples_leaf": 40},
        {"class_weight": "balanced"},
        {"max_features": 1, "max_depth": 30},
    ],
    ids=str,
)
def test_probabilities_are_sklearns_digit_by_digit(parameters):
    from sklearn.ensemble import RandomForestClassifier

    values, high = data()
    grown = RandomForestClassifier(n_estimators=37, random_state=1, n_jobs=1, **parameters).fit(values, high)
    others = np.concatenate([data(3000, seed=5)[0], values, np.full((1, 12), 3e38, np.float32)])
    others[:12, 0] = grown.estimators_[0].tree_.threshold[0]  # as near to a threshold as float32 comes
    np.testing.assert_array_equal(Forest.from_sklearn(grown).probability(others), grown.predict_proba(others)[:, 1])


def test_a_forest_comes_back_from_its_bytes_and_the_bytes_are_always_the_same(tmp_path):
    values, high = data()
    trained = [train_forest(values, high, settings=forest_settings(), workers=workers) for workers in (1, 2)]
    assert trained[0].forest.to_bytes() == trained[1].forest.to_bytes()
    np.testing.assert_array_equal(trained[0].out_of_bag, trained[1].out_of_bag)
    (tmp_path / "f.npz").write_bytes(trained[0].forest.to_bytes())
    loaded = Forest.from_file(tmp_path / "f.npz")
    np.testing.assert_array_equal(loaded.probability(values), trained[0].forest.probability(values))
    other = train_forest(values, high, settings=forest_settings(seed=1))
    assert other.forest.to_bytes() != trained[0].forest.to_bytes()


def hostile(forest: Forest) -> dict[str, dict[str, np.ndarray]]:
    nodes = forest.left.size
    inner = int(np.flatnonzero(forest.left != np.arange(nodes))[1])

    def changed(name: str, place: int, value: float) -> dict[str, np.ndarray]:
        array = getattr(forest, name).copy()
        array[place] = value
        return {name: array}

    return {
        "a cycle": changed("left", inner, 0),
        "a child outside": changed("right", inner, nodes),
        "a negative child": changed("left", inner, -1),
        "a feature outside": changed("feature", inner, forest.width),
        "a negative feature": changed("feature", inner, -1),
        "a root outside": changed("roots", 0, nodes),
        "a share above 1": changed("high", inner, 1.5),
        "a share that is no number": changed("high", inner, np.nan),
        "an endless threshold": changed("threshold", inner, np.inf),
        "too few nodes": {"left": forest.left[:-1]},
        "another type": {"left": forest.left.astype(np.int64)},
        "no trees": {"roots": forest.roots[:0]},
        "objects": {"high": np.array([print] * nodes, dtype=object)},
    }


def test_arrays_that_are_no_forest_are_refused_by_name(tmp_path):
    values, high = data()
    forest = train_forest(values, high, settings=forest_settings()).forest
    whole = {
        name: getattr(forest, name) for name in ("roots", "left", "right", "feature", "threshold", "high", "width")
    }
    for name, change in hostile(forest).items():
        np.savez(tmp_path / "f.npz", allow_pickle=True, **{**whole, **change})
        with pytest.raises(ValueError, match=r"f\.npz is no forest"):
            Forest.from_file(tmp_path / "f.npz")
            pytest.fail(name)
    np.savez(tmp_path / "f.npz", **whole)
    Forest.from_file(tmp_path / "f.npz")
    for content in (b"", b"PK", b"text", (tmp_path / "f.npz").read_bytes()[:-40]):
        (tmp_path / "f.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"f\.npz is no forest"):
            Forest.from_file(tmp_path / "f.npz")


def test_vectors_that_do_not_fit_or_are_not_finite_are_refused():
    values, high = data()
    forest = train_forest(values, high, settings=forest_settings()).forest
    with pytest.raises(ValueError, match=r"vectors of shape \(300, 11\) do not fit"):
        forest.probability(values[:, :11])
    values[[4, 9], 2] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"2 of 300 vectors are not finite \(the first is number 4\)"):
        forest.probability(values)
    with pytest.raises(ValueError, match="not finite"):
        train_forest(values, high, settings=forest_settings())
    assert forest.probability(np.empty((0, 12))).shape == (0,)


# --- labels that cannot be trained on ---


def test_labels_of_one_class_too_few_or_none_are_refused_with_their_counts():
    with pytest.raises(ValueError, match="the sample is empty"):
        check_labels(np.zeros(0, bool), settings=forest_settings())
    with pytest.raises(ValueError, match="9 high and 0 low labels: a classifier needs both"):
        check_labels(np.ones(9, bool), settings=forest_settings())
    with pytest.raises(ValueError, match=r"90 high and 4 low labels, but forest\.min_labels_per_class=5"):
        check_labels(np.arange(94) >= 4, settings=forest_settings())
    check_labels(np.arange(94) >= 5, settings=forest_settings())


@pytest.mark.parametrize(
    "changes",
    [
        {"trees": 9}, {"max_depth": 0}, {"min_samples_leaf": 0}, {"class_weight": "none"}, {"held_out": 1.0},
        {"min_labels_per_class": 1}, {"seed": -1},
    ],
    ids=str,
)  # fmt: skip
def test_forest_settings_that_cannot_be_are_refused_by_name(changes):
    (name,) = changes
    with pytest.raises(ValueError, match=rf"forest\.{name}="):
        forest_settings(**changes)


def test_copies_of_a_text_stand_on_one_side_and_about_the_asked_share_is_held_out():
    hashes = [f"{number * 2654435761 % 2**64:016x}{'0' * 48}" for number in range(4000)]
    held = held_out_rows(hashes, share=0.2, seed=0)
    assert abs(held.mean() - 0.2) < 0.03
    np.testing.assert_array_equal(held_out_rows(hashes[::-1], share=0.2, seed=0), held[::-1])
    assert (held_out_rows(hashes, share=0.2, seed=1) != held).any()


# --- the figures ---


pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


@given(pairs)
def test_kappa_is_sklearns(pair):
    from sklearn.metrics import cohen_kappa_score

    first, second = (np.array(column) for column in zip(*pair, strict=True))
    found = cohen_kappa(first, second)
    if (first.all() and second.all()) or not (first.any() or second.any()):
        assert found is None
    else:
        assert found == pytest.approx(cohen_kappa_score(first, second), abs=1e-12)


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=2, max_size=60))
def test_the_area_under_the_curve_is_sklearns_ties_included(pair):
    from sklearn.metrics import roc_auc_score

    scores, high = (np.array(column) for column in zip(*pair, strict=True))
    if high.all() or not high.any():
        assert area_under_curve(scores / 10, high) is None
    else:
        assert area_under_curve(scores / 10, high) == pytest.approx(roc_auc_score(high, scores))


@given(pairs)
def test_the_sign_test_is_the_exact_binomial_one(pair):
    from scipy.stats import binomtest

    first, second = (np.array(column) for column in zip(*pair, strict=True))
    better, worse = int((first & ~second).sum()), int((second & ~first).sum())
    expected = binomtest(better, better + worse, 0.5).pvalue if better + worse else 1.0
    assert sign_test(first, second) == pytest.approx(expected)


def test_the_sign_test_of_many_texts_is_near_the_exact_one():
    from scipy.stats import binomtest

    first = np.arange(1500) < 800
    assert sign_test(first, ~first) == pytest.approx(binomtest(800, 1500, 0.5).pvalue, rel=0.02)


@pytest.mark.parametrize(("count", "total"), [(0, 10), (10, 10), (3, 40), (500, 1000)])
def test_the_interval_of_a_share_is_wilsons(count, total):
    from scipy.stats import binomtest

    expected = binomtest(count, total).proportion_ci(method="wilson")
    assert wilson_interval(count, total) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_every_figure_of_a_threshold_is_right_recomputed_by_sklearn():
    from sklearn.metrics import accuracy_score, precision_score, recall_score

    draw = np.random.default_rng(3)
    scores, high, characters = draw.random(200).astype(np.float32), draw.random(200) < 0.9, draw.integers(1, 900, 200)
    for threshold in (0.05, 0.5, 0.95):
        row = at_threshold(scores, high, characters, threshold=threshold)
        kept = scores >= np.float32(threshold)
        assert row["removed"] == pytest.approx(1 - kept.mean())
        assert row["removed_characters"] == pytest.approx(characters[~kept].sum() / characters.sum())
        for side, positive in (("high", True), ("low", False)):
            assert row[f"precision_{side}"] == pytest.approx(precision_score(high, kept, pos_label=positive))
            assert row[f"recall_{side}"] == pytest.approx(recall_score(high, kept, pos_label=positive))
        assert row["accuracy"] == pytest.approx(accuracy_score(high, kept))
    nothing = at_threshold(np.ones(9), np.arange(9) > 2, np.ones(9), threshold=0.5)
    assert nothing["removed"] == 0 and nothing["precision_low"] is None and nothing["recall_low"] == 0


def test_a_score_at_the_threshold_is_kept_as_the_curation_compares_it():
    for threshold in (*THRESHOLDS, 0.1, 1 / 3):
        at = np.float64(threshold).astype(np.float32)
        scores = np.array([np.nextafter(at, np.float32(0)), at, np.nextafter(at, np.float32(1))])
        assert is_kept(scores, threshold=threshold).tolist() == [False, True, True]
        assert [bool(score < threshold) for score in scores] == [True, False, False]


def test_the_best_threshold_is_the_one_of_highest_kappa_and_one_half_without_agreement():
    high = np.arange(100) >= 20
    assert 0.7 < best_threshold(np.where(high, 0.85, 0.65), high) <= 0.85
    assert best_threshold(np.where(high, 0.2, 0.8), high) == 0.5
    assert best_threshold(np.full(100, np.nan), high) == 0.5
    assert 0.7 < best_threshold(np.where(np.arange(100) == 3, np.nan, np.where(high, 0.85, 0.65)), high) <= 0.85


def test_agreement_counts_only_what_both_labelled():
    first = {"a": "high", "b": "low", "c": "high", "d": "low", "e": "high"}
    second = {"a": "high", "b": "low", "c": "low", "d": "low", "f": "low"}
    assert agreement(first, second) == {"documents": 4, "agreement": 0.75, "kappa": pytest.approx(0.5)}
    assert agreement(first, {}) == {"documents": 0, "agreement": None, "kappa": None}


def test_the_character_statistics_of_a_text_are_what_their_names_say():
    (row,) = character_statistics(["かなカナ漢字AB12。、\nあ"])
    named = dict(zip(NAMES, row.tolist(), strict=True))
    assert named["share of hiragana"] == pytest.approx(3 / 14)
    assert named["share of katakana"] == named["share of kanji"] == pytest.approx(2 / 14)
    assert named["share of Latin letters"] == named["share of digits"] == pytest.approx(2 / 14)
    assert named["share of commas and full stops"] == pytest.approx(2 / 14)
    assert named["sentence ends per 100 characters"] == pytest.approx(100 / 14)
    assert named["share of lines with a sentence end"] == 0.5
    assert named["share of repeated pairs of characters"] == 0
    assert character_statistics(["ああああ"])[0][-1] == pytest.approx(2 / 3)
    assert character_statistics([]).shape == (0, 12) and not character_statistics([""]).any()


@given(st.text(max_size=80))
def test_the_character_statistics_of_any_text_are_finite(text):
    assert np.isfinite(character_statistics([text])).all()


# --- learning ---


def labelled(tmp_path: Path, answer, documents: list[Document]) -> tuple:
    def teacher(request) -> str:
        text = request.messages[-1]["content"].partition("始まり===\n")[2].partition("\n===文章の終わり")[0]
        return f"判定：{'高' if answer(text, request.seed) else '低'}\n引用：{text[:20]}\n理由：そう読めるため。"

    sample = choose_sample(documents, size=400, seed=0, keep_characters=1000)
    done = label_sample(
        sample.documents, teacher=ScriptedTeacher(teacher), settings=label_settings(), path=tmp_path / "labels.jsonl"
    )
    return sample, done


def trained(tmp_path: Path, vectors, answer, **changes) -> dict:
    sample, labelling = labelled(tmp_path, answer, prose_and_salad(400))
    return train_and_report(
        sample,
        labelling=labelling,
        again={"again": labelling},
        vectors=vectors,
        settings=forest_settings(**{"trees": 50, "held_out": 0.3, **changes}),
        output=tmp_path,
    )


def test_a_planted_rule_is_learned(tmp_path, vectors):
    found = trained(tmp_path, vectors, lambda text, _: text.endswith("。"))["evaluation"]
    assert found["majority"]["accuracy"] < 0.62
    assert found["forest"]["chosen"]["accuracy"] > 0.95
    assert found["forest"]["chosen"]["kappa"] > 0.9 and found["forest"]["area_under_curve"] > 0.98
    assert found["forest_against_majority"] < 1e-6
    words = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "agrees with the teacher more often than always answering" in words
    assert (tmp_path / "report.png").read_bytes()[:4] == b"\x89PNG"


def test_random_labels_are_not_learned(tmp_path, vectors):
    found = trained(tmp_path, vectors, lambda _, seed: seed % 2)["evaluation"]
    spread = 3.3 * (0.25 / found["held_out"]) ** 0.5  # 99.9% of a fair coin
    assert abs(found["forest"]["chosen"]["accuracy"] - 0.5) < spread
    assert abs(found["forest"]["area_under_curve"] - 0.5) < spread * 1.2
    assert abs(found["baseline"]["area_under_curve"] - 0.5) < spread * 1.2
    assert found["forest_against_majority"] > 0.001
    assert "cannot be told apart from" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_one_kind_of_label_is_refused_before_any_vector_is_made(tmp_path):
    def never(texts):
        raise AssertionError("vectors were made")

    never.identity = {}
    with pytest.raises(ValueError, match=r"\d+ high and 0 low labels"):
        trained(tmp_path, never, lambda *_: True)
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    with pytest.raises(ValueError, match=r"forest\.min_labels_per_class=150"):
        trained(tmp_path, never, lambda text, _: text.endswith("。"), min_labels_per_class=150)
    assert not (tmp_path / "classifier").exists()


# --- the directory ---


IDENTITY = {"kind": "test", "weights_sha256": "abc", "max_tokens": 64}


@pytest.fixture
def saved(tmp_path) -> Path:
    values, high = data()
    grown = train_forest(values, high, settings=forest_settings())
    save_classifier(
        tmp_path / "c", grown, vectors=IDENTITY, labels={"teacher": "t"}, settings=forest_settings(), evaluation={}
    )
    return tmp_path / "c"


def test_a_classifier_is_read_and_scores_alike_where_sklearn_and_torch_are_missing(saved, tmp_path):
    np.save(tmp_path / "v.npy", data(50, seed=2)[0])
    code = (
        "import sys; sys.modules['sklearn'] = sys.modules['torch'] = None\n"
        "import json, numpy as np\nfrom pathlib import Path\n"
        "from ncvc.corpus.quality.classifier import QualityClassifier\n"
        f"c = QualityClassifier.load(Path({str(saved)!r}), vectors={IDENTITY!r})\n"
        f"print(json.dumps(c.scores(np.load({str(tmp_path / 'v.npy')!r})).tolist()))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    here = QualityClassifier.load(saved, vectors=IDENTITY).scores(data(50, seed=2)[0])
    assert here.dtype == np.float32 and len(set(here.tolist())) > 5
    assert np.array(json.loads(printed.stdout), dtype=np.float32).tolist() == here.tolist()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), r"forest\.npz is truncated"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), r"forest\.npz is longer"),
        (lambda path: path.write_bytes(path.read_bytes()[:500] + b"x" + path.read_bytes()[501:]), r"npz was altered"),
        (lambda path: path.unlink(), r"forest\.npz is missing"),
        (lambda path: (path.parent / "manifest.json").unlink(), r"no manifest\.json"),
        (lambda path: (path.parent / "manifest.json").write_text("{"), r"manifest\.json is not a manifest"),
        (lambda path: (path.parent / "manifest.json").write_text('{"format": "ncvc-quality-classifier", "version": 1}'),
         r"manifest\.json lacks what a classifier needs"),
        (lambda path: (path.parent / "manifest.json").write_text('{"format": "ncvc-model", "version": 1}'),
         r"of format 'ncvc-model'"),
    ],
)  # fmt: skip
def test_an_altered_truncated_or_missing_file_is_refused_by_name(saved, change, told):
    change(saved / "forest.npz")
    with pytest.raises((ValueError, OSError), match=told):
        QualityClassifier.load(saved, vectors=IDENTITY)


def test_a_classifier_is_refused_for_other_vectors_naming_what_differs(saved):
    QualityClassifier.load(saved, vectors=IDENTITY)
    with pytest.raises(ValueError, match=r"trained on other vectors \(max_tokens 128, trained on 64\)"):
        QualityClassifier.load(saved, vectors={**IDENTITY, "max_tokens": 128})
    with pytest.raises(ValueError, match=r"weights_sha256 None, trained on 'abc'"):
        QualityClassifier.load(saved, vectors={"kind": "test", "max_tokens": 64})


# --- in a curation ---


def test_settings_are_built_from_plain_values_hashed_pickled_and_named_in_errors(saved):
    plain = OmegaConf.to_container(OmegaConf.load(CONF_DIRECTORY / "classifier" / "forest.yaml"))
    plain |= {"directory": str(saved), "threshold": 0.4}
    plain["vectors"]["model"] = "m"
    settings = settings_from(QualityClassifierSettings, plain, path="classifier")
    assert settings.vectors == VectorSettings(model="m", max_tokens=256, batch_size=8)
    assert pickle.loads(pickle.dumps(settings)) == settings and hash(settings) == hash(
        pickle.loads(pickle.dumps(settings))
    )
    identity = settings.identity
    assert json.loads(json.dumps(identity)) == identity and identity["vectors"] == IDENTITY
    other = settings_from(QualityClassifierSettings, {**plain, "threshold": 0.5}, path="classifier")
    assert other.identity != identity
    with pytest.raises(ValueError, match=r"classifier\.threshold=1\.5"):
        settings_from(QualityClassifierSettings, {**plain, "threshold": 1.5}, path="classifier")
    with pytest.raises(ValueError, match=r"classifier\.vectors\.batch: no such setting.*batch_size"):
        settings_from(QualityClassifierSettings, {**plain, "vectors": {"model": "m", "batch": 4}}, path="classifier")
    with pytest.raises(ValueError, match=r"classifier\.vectors=7: must be a group"):
        settings_from(QualityClassifierSettings, {**plain, "vectors": 7}, path="classifier")
    with pytest.raises(FileNotFoundError, match="none is not a finished folder"):
        settings_from(QualityClassifierSettings, {**plain, "directory": "none"}, path="classifier").identity  # noqa: B018


def test_the_groups_of_conf_give_no_classifier_or_one_that_only_needs_its_places(composed):
    assert composed("+classifier=none", root="judge").classifier is None
    places = ["classifier.directory=d", "classifier.vectors.model=m"]
    plain = OmegaConf.to_container(composed("+classifier=forest", *places, root="judge").classifier)
    assert settings_from(QualityClassifierSettings, plain, path="classifier").vectors.model == "m"


def test_the_settings_of_conf_are_those_that_the_settings_know():
    for kind, name in ((LabelSettings, "labels"), (ForestSettings, "forest")):
        assert settings_from(kind, CONF[name], path=name)
    assert settings_from(VectorSettings, {**CONF["vectors"], "model": "m"}, path="vectors")
    assert CONF["labels"]["documents"] == 100_000  # R8


# --- the verb ---


def write_answers(path: Path) -> Path:
    """A teacher of both kinds of text, wrong in its form once in a while."""
    good = {"contains": "経過は良好であった。", "text": "判定：高\n引用：経過は良好であった。\n理由：文が整っている。"}
    bad = {"contains": "検査治療薬剤", "text": "判定：低\n引用：検査治療薬剤\n理由：単語の羅列である。"}
    rows = [good, good, bad, bad]
    rows += [{"contains": row["contains"], "text": "This text is fine."} for row in (good, bad)]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def judging(tmp_path, composed, model):
    with (tmp_path / "source.jsonl").open("w", encoding="utf-8") as handle:
        for document in prose_and_salad(220):
            handle.write(json.dumps({"id": document.id, "text": document.text}, ensure_ascii=False) + "\n")
        handle.write("{broken\n")
    answers = write_answers(tmp_path / "answers.jsonl")

    def configuration(*overrides: str):
        return composed(
            f"source={tmp_path / 'source.jsonl'}", f"output={tmp_path / 'out'}", f"vectors.model={model}",
            "teacher=scripted", f"teacher.answers={answers}", "labels.documents=200", "labels.repeated_documents=40",
            "vectors.max_tokens=64", "vectors.batch_size=16", "forest.trees=30", "progress=false", *overrides,
            root="judge",
        )  # fmt: skip

    return configuration


def test_the_verb_labels_trains_and_reports_and_a_curation_scores_with_the_result(judging, tmp_path, model, capsys):
    record = judge(judging())
    printed = capsys.readouterr().out
    assert "sample      200 of 220 documents" in printed and "1 rows or files could not be read" in printed
    labels = read_labels(tmp_path / "out/labels.jsonl")
    told = record["labelling"]
    assert told["documents"] == 200 and told["valid"] == len(labels.labels()) > 150
    assert told["rejections"] == labels.rejections() and set(told["rejections"]) == {"not Japanese"}
    assert told["high"] == sum(label == "high" for label in labels.labels().values())
    assert record["agreement"][0]["with"] == "scripted asked again" and record["agreement"][0]["kappa"] == 1.0
    assert json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8")) == record
    assert set(record["costs"]) == {"hidden vectors", "character statistics", "forest"}
    assert all(cost["per_second"] > 0 and cost["per_cpu_second"] > 0 for cost in record["costs"].values())
    page = (tmp_path / "out/report.md").read_text(encoding="utf-8")
    for words in ("A reconstruction", "R104", "not Japanese", "Logistic regression on character statistics"):
        assert words in page
    settings = QualityClassifierSettings(
        directory=str(tmp_path / "out/classifier"), threshold=0.5, vectors=vector_settings(model)
    )
    scorer = open_scorer(settings)
    cleaner, texts = Cleaner(), prose_and_salad(260)[220:]
    scores = scorer([cleaner(document.text) for document in texts])
    assert scores.dtype == np.float32 and scores.shape == (40,)
    assert np.mean(is_kept(scores, threshold=0.5) == (np.arange(40) % 2 == 0)) > 0.95
    np.testing.assert_array_equal(np.concatenate([scorer([cleaner(document.text)]) for document in texts]), scores)
    with pytest.raises(ValueError, match="trained on other vectors"):
        open_scorer(
            QualityClassifierSettings(
                directory=settings.directory, threshold=0.5, vectors=vector_settings(model, max_tokens=32)
            )
        )
    chosen = {"directory": settings.directory, "threshold": 0.5, "vectors": asdict(settings.vectors)}
    source = {"text": {"path": str(tmp_path / "source.jsonl")}}
    folder = curated(source, tmp_path / "home", classifier=chosen, deduplication=None)
    gone = [record for record in dropped(folder) if record["stage"] == "classifier"]
    assert {record["reason"] for record in gone} == {"low quality"} and 100 <= len(gone) <= 120
    kept = [found.cleaned for found in open_segmented(folder / "stores" / "text").documents()]
    assert np.mean(["経過は良好であった" in text for text in kept]) > 0.95


def test_the_verb_repeated_asks_nothing_again_and_gives_the_same_bytes(judging, tmp_path, capsys):
    judge(judging())
    names = ("labels.jsonl", "labels_again_scripted.jsonl", "classifier/forest.npz", "classifier/manifest.json")
    before = {name: (tmp_path / "out" / name).read_bytes() for name in names}
    judge(judging("workers=2", "vectors.batch_size=5"))
    assert {name: (tmp_path / "out" / name).read_bytes() for name in names} == before
    fresh = judging()
    fresh.output = str(tmp_path / "fresh")
    judge(fresh)
    assert {name: (tmp_path / "fresh" / name).read_bytes() for name in names} == before


def test_a_second_teacher_is_asked_about_the_first_documents_of_the_sample(judging, tmp_path):
    contrary = tmp_path / "contrary.jsonl"
    text = (tmp_path / "answers.jsonl").read_text(encoding="utf-8").replace("判定：高", "判定：低")
    contrary.write_text(text, encoding="utf-8")
    record = judge(judging(
        "teacher@second_teacher=scripted", f"second_teacher.answers={contrary}", "second_teacher.name=contrary",
    ))  # fmt: skip
    found = record["agreement"][0]
    assert found["with"] == "second teacher contrary" and 30 < found["documents"] <= 40
    assert found["agreement"] < 0.8 and found["kappa"] == pytest.approx(0.0)  # it always says low


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["source=null"], r"source is not set"),
        (["vectors.model=null"], r"vectors\.model is not set"),
        (["source=/nowhere/at/all"], r"source=/nowhere/at/all does not exist"),
        (["vectors.max_tokens=4000"], r"vectors\.max_tokens=4000"),
        (["labels.attempts=0"], r"labels\.attempts=0"),
        (["forest.held_out=2"], r"forest\.held_out=2"),
        (["teacher.answers=/nowhere"], r"teacher\.answers=/nowhere does not exist"),
        (["cleaning=thorough"], r"thorough"),
    ],
    ids=str,
)
def test_the_verb_names_the_setting_that_cannot_be(judging, overrides, told):
    with pytest.raises((ValueError, OSError), match=told):
        judge(judging(*overrides))


def test_labelling_says_how_many_have_no_label():
    from ncvc.corpus.quality.label_log import LabelFile

    rows = ({"key": "a", "label": "high", "rejected": None}, {"key": "b", "label": None, "rejected": "cut off"})
    done = Labelling(file=LabelFile({}, rows), documents=3, failures={"HTTP 500": 1})
    assert done.unlabelled == 2 and done.file.rejections() == {"cut off": 1}
