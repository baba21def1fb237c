"""Intervals and paired tests, held against scipy's, scikit-learn's and counting by hand."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ncvc.evaluation.statistics import (
    Measure,
    bootstrap_interval,
    bootstrap_intervals,
    mcnemar,
    mean_measure,
    paired_test,
    ratio,
)

HITS = np.array([1.0] * 67 + [0.0] * 33)


def f1(sums):
    return 2 * sums[..., 0] / (sums[..., 1] + sums[..., 2])


def f1_measure(seed, *, rows=60):
    draw = np.random.default_rng(seed)
    gold, given_spans = draw.integers(1, 8, rows), draw.integers(1, 8, rows)
    right = np.minimum(np.minimum(gold, given_spans), draw.integers(0, 8, rows))
    return Measure(additions=np.stack([right, gold, given_spans], axis=1).astype(float), statistic=f1)


def test_two_thirds_of_a_hundred_items_mean_57_to_76_percent():
    found = bootstrap_interval(HITS)
    assert found.value == pytest.approx(0.67)
    assert (found.low, found.high) == pytest.approx((0.575, 0.765), abs=0.02)
    assert (found.over, found.units, found.resamples, found.undefined) == ("items", 100, 2000, 0)


def test_an_interval_is_that_of_scipys_percentile_bootstrap_for_a_mean_and_for_a_ratio_of_sums():
    stats = pytest.importorskip("scipy.stats")
    measure = f1_measure(1)
    for ours, data, statistic in (
        (bootstrap_interval(HITS, resamples=20_000), (HITS,), np.mean),
        (
            bootstrap_interval(measure, resamples=20_000),
            tuple(measure.additions.T),
            lambda a, b, c, axis=-1: 2 * a.sum(axis) / (b.sum(axis) + c.sum(axis)),
        ),
    ):
        theirs = stats.bootstrap(
            data, statistic, n_resamples=20_000, paired=True, vectorized=True, method="percentile", rng=1
        ).confidence_interval
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_intervals_over_documents_are_those_of_scipy_over_the_documents_sums_and_wider_where_documents_agree():
    stats = pytest.importorskip("scipy.stats")
    hits = np.repeat(np.random.default_rng(0).integers(0, 2, 25), 8).astype(float)
    groups = [f"document {number // 8}" for number in range(200)]
    over_documents = bootstrap_interval(hits, groups=groups, resamples=20_000)
    theirs = stats.bootstrap(
        (hits.reshape(25, 8).mean(axis=1),), np.mean, n_resamples=20_000, method="percentile", rng=1
    ).confidence_interval
    assert (over_documents.low, over_documents.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)
    over_items = bootstrap_interval(hits)
    assert over_documents.high - over_documents.low > 2 * (over_items.high - over_items.low)
    assert (over_documents.over, over_documents.units) == ("documents", 25)


def test_groups_of_one_item_each_change_nothing():
    names = [str(number) for number in range(100)]
    ours, plain = bootstrap_interval(HITS, groups=names), bootstrap_interval(HITS)
    assert (ours.low, ours.high) == (plain.low, plain.high)


@pytest.mark.parametrize("seed", range(3))
def test_an_interval_of_95_percent_holds_the_truth_about_95_times_in_100(seed):
    draw = np.random.default_rng(seed)
    held = 0
    for number in range(200):
        found = bootstrap_interval(draw.random(100) < 0.3, seed=number, resamples=400)
        held += found.low <= 0.3 <= found.high
    assert 0.89 <= held / 200 <= 0.99


def test_the_order_of_items_does_not_matter_and_the_seed_does():
    measure = f1_measure(2)
    turned = Measure(additions=measure.additions[::-1], statistic=f1)
    one, other = bootstrap_interval(measure), bootstrap_interval(turned)
    assert (one.low, one.high) == (other.low, other.high)
    assert bootstrap_interval(measure, seed=1).low != one.low


def test_all_right_or_all_wrong_is_no_certainty_but_clopper_and_pearsons_bound():
    stats = pytest.importorskip("scipy.stats")
    for number in (1, 10, 100):
        exact = stats.binomtest(number, number).proportion_ci(0.95, method="exact")
        right, wrong = bootstrap_interval([1.0] * number), bootstrap_interval([0.0] * number)
        assert (right.low, right.high) == pytest.approx((exact.low, 1.0))
        assert (wrong.low, wrong.high) == pytest.approx((0.0, 1.0 - exact.low))


def test_resamples_without_a_score_are_left_out_and_counted():
    additions = np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    found = bootstrap_interval(Measure(additions=additions, statistic=ratio, highest=9.0))
    assert found.undefined == pytest.approx(2000 * (2 / 3) ** 3, rel=0.15)
    never = bootstrap_interval(Measure(additions=np.zeros((3, 2)), statistic=ratio))
    assert math.isnan(never.low)
    assert never.undefined == 2000
    assert never.to_dict()["low"] is None


def test_several_measures_get_what_each_gets_alone():
    together = bootstrap_intervals({"f1": f1_measure(1), "twice": f1_measure(1)})
    assert (together["f1"].low, together["f1"].high) == (together["twice"].low, together["twice"].high)
    assert together["f1"].value == f1_measure(1).value


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"resamples": 10}, "resamples=10"),
        ({"level": 1.0}, "level=1.0"),
        ({"groups": ["a"]}, "1 groups are named for 100 items"),
    ],
)
def test_what_cannot_be_is_named(change, told):
    with pytest.raises(ValueError, match=told):
        bootstrap_interval(HITS, **change)
    with pytest.raises(ValueError, match="finite"):
        mean_measure([1.0, math.nan])
    with pytest.raises(ValueError, match="at least one item"):
        mean_measure([])
    with pytest.raises(ValueError, match="same items"):
        paired_test([1.0], [1.0, 0.0])


# --- paired tests
@given(st.integers(0, 60), st.integers(0, 60))
@settings(deadline=None, max_examples=60)
def test_mcnemars_test_is_the_exact_binomial_test(only_first, only_second):
    stats = pytest.importorskip("scipy.stats")
    total = only_first + only_second
    exact = stats.binomtest(only_first, total, 0.5).pvalue if total else 1.0
    assert mcnemar(only_first, only_second) == pytest.approx(exact, rel=1e-9)


def test_a_paired_test_of_right_and_wrong_is_mcnemars():
    first, second = np.zeros(40), np.zeros(40)
    first[:5], second[4:20] = 1, 1
    found = paired_test(first, second)
    assert found.method == "McNemar, exact"
    assert found.p_value == pytest.approx(mcnemar(4, 15))
    assert found.difference == pytest.approx(11 / 40)
    assert (found.units, found.differing) == (40, 19)


def test_few_differing_items_are_swapped_in_every_way_as_counting_by_hand_does():
    draw = np.random.default_rng(4)
    first, second = draw.random(8), draw.random(8)
    found = paired_test(first, second)
    differences = second - first
    signs = np.array(list(itertools.product([1, -1], repeat=8)))
    by_hand = (np.abs((signs * differences).mean(axis=1)) >= abs(differences.mean()) - 1e-12).mean()
    assert found.method == "swaps, exact"
    assert found.p_value == pytest.approx(by_hand)


def test_sampled_swaps_agree_with_scipys_permutation_test_for_a_score_that_is_no_mean():
    stats = pytest.importorskip("scipy.stats")
    first = f1_measure(5)
    second = Measure(additions=first.additions + np.array([0, 0, 1.0]) * (np.arange(60) % 2)[:, None], statistic=f1)
    rows = np.stack([first.additions, second.additions])

    def difference(one, two):
        """Of item numbers 0 to 59 for the first and 60 to 119 for the second."""
        flat = rows.reshape(120, 3)
        return float(f1(flat[two.astype(int)].sum(axis=0)) - f1(flat[one.astype(int)].sum(axis=0)))

    theirs = stats.permutation_test(
        (np.arange(60.0), np.arange(60.0) + 60),
        difference,
        permutation_type="samples",
        n_resamples=3000,
        vectorized=False,
        rng=2,
    )
    ours = paired_test(first, second)
    assert ours.method == "swaps, sampled"
    assert ours.difference == pytest.approx(theirs.statistic)
    assert ours.p_value == pytest.approx(theirs.pvalue, abs=0.03)


def test_a_model_is_not_told_apart_from_itself():
    found = paired_test(f1_measure(1), f1_measure(1))
    assert (found.difference, found.p_value, found.differing) == (0.0, 1.0, 0)
    assert paired_test(HITS, HITS).p_value == 1.0


def test_swapping_whole_documents_is_more_cautious_where_documents_agree():
    first, second = np.zeros(80), np.zeros(80)
    second[:32] = 1
    groups = [str(number // 8) for number in range(80)]
    assert paired_test(first, second).p_value < 1e-6
    assert paired_test(first, second, groups=groups).p_value == pytest.approx(0.125)


def test_no_difference_is_found_five_times_in_a_hundred_at_most():
    draw = np.random.default_rng(8)
    found = [paired_test(draw.random(30), draw.random(30), permutations=300).p_value < 0.05 for _ in range(200)]
    assert sum(found) / 200 <= 0.1
