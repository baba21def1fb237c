"""The order of samples: a pure function, permuted epochs, exact shares, the same on any number of ranks."""

import hashlib
import json
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ncvc.sampling import ORDER_VERSION, PERIOD, SampleOrder, permutation, quotas

sizes_lists = st.lists(st.integers(1, 60), min_size=1, max_size=4)
seeds = st.integers(0, 2**40)
MASK = 2**64 - 1


def make_order(sizes, **settings_):
    names = [f"source {number} of {size} windows" for number, size in enumerate(sizes)]
    return SampleOrder(sizes, **{"fingerprints": names, "seed": 0, **settings_})


def draws(order, start, count):
    sources, windows = order.indices(start, count)
    return list(zip(sources.tolist(), windows.tolist(), strict=True))


# ---- The reference: the documented law in plain Python integers, without numpy ----


def reference_permutation(size, key):
    def hashed(number):
        value = (key + (number + 1) * 0x9E3779B97F4A7C15) & MASK
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
        return value ^ (value >> 31)

    low_bits = max(1, (size - 1).bit_length())
    return sorted(range(size), key=lambda number: (hashed(number) >> low_bits, number))


def reference_draw(order, names, number):
    """Source and window of one absolute sample number."""
    identity = [ORDER_VERSION, order.sizes, names, order.quotas, order.seed]
    fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def key(*purpose):
        data = json.dumps([fingerprint, *purpose]).encode()
        return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")

    if order.quotas is None:
        epoch, place = divmod(number, sum(order.sizes))
        window = reference_permutation(sum(order.sizes), key("pool", epoch))[place]
        for source, size in enumerate(order.sizes):
            if window < size:
                return source, window
            window -= size
    period, place = divmod(number, PERIOD)
    members = [source for source, count in enumerate(order.quotas) for _ in range(count)]
    members = [members[position] for position in reference_permutation(PERIOD, key("period", period))]
    source = members[place]
    ordinal = period * order.quotas[source] + members[:place].count(source)
    epoch, place = divmod(ordinal, order.sizes[source])
    return source, reference_permutation(order.sizes[source], key(f"source {source}", epoch))[place]


@given(size=st.integers(1, 300), key=st.integers(0, MASK))
def test_a_permutation_equals_its_definition_in_plain_python(size, key):
    assert permutation(size, key=key).tolist() == reference_permutation(size, key)


@settings(max_examples=20, deadline=None)
@given(sizes=sizes_lists, seed=seeds, start=st.integers(0, 200), weighted=st.booleans())
def test_draws_equal_the_documented_law_in_plain_python(sizes, seed, start, weighted):
    names = [f"source {number} of {size} windows" for number, size in enumerate(sizes)]
    weights = [1.0 + number for number in range(len(sizes))] if weighted else None
    order = make_order(sizes, seed=seed, weights=weights)
    expected = [reference_draw(order, names, number) for number in range(start, start + 5)]
    assert draws(order, start, 5) == expected


def test_splitmix64_gives_the_published_first_outputs():
    # Vigna's splitmix64.c seeded with 1234567; other languages' test suites pin the same five.
    from ncvc.sampling import _splitmix64

    outputs = _splitmix64(np.arange(5, dtype=np.uint64), 1234567).tolist()
    assert outputs == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_the_first_samples_never_change():
    """A change here makes recorded runs irreproducible: raise ORDER_VERSION, say so in the change log."""
    plain = make_order([7, 4])
    weighted = make_order([7, 4], weights=[3, 1])
    assert permutation(10, key=42).tolist() == GOLDEN_PERMUTATION
    assert draws(plain, 0, 12) == GOLDEN_PLAIN
    assert draws(weighted, 9_996, 8) == GOLDEN_WEIGHTED
    assert plain.fingerprint == GOLDEN_FINGERPRINT


GOLDEN_PERMUTATION = [4, 1, 6, 2, 8, 3, 9, 0, 7, 5]
GOLDEN_PLAIN = [
    (0, 2),
    (0, 3),
    (1, 3),
    (0, 4),
    (0, 1),
    (1, 1),
    (0, 6),
    (0, 0),
    (1, 0),
    (1, 2),
    (0, 5),
    (0, 4),
]
GOLDEN_WEIGHTED = [(0, 6), (1, 2), (0, 1), (0, 2), (0, 0), (1, 2), (0, 5), (0, 3)]
GOLDEN_FINGERPRINT = "7b1ef09734eb0c81412c1db9d956737e32fb70a316677dbf5754f1109c4d61ae"


# ---- Epochs ----


@given(sizes=sizes_lists, seed=seeds, epoch=st.integers(0, 10**9))
def test_every_epoch_holds_every_window_once(sizes, seed, epoch):
    order = make_order(sizes, seed=seed)
    total = sum(sizes)
    every_window = [(source, window) for source, size in enumerate(sizes) for window in range(size)]
    assert sorted(draws(order, epoch * total, total)) == every_window


def test_epochs_seeds_and_data_each_change_the_order():
    orders = [make_order([500]), make_order([500], seed=1), make_order([500], fingerprints=["other"])]
    rows = [draws(orders[0], 0, 500), draws(orders[0], 500, 500), *(draws(o, 0, 500) for o in orders[1:])]
    for first in range(len(rows)):
        for second in range(first):
            same = sum(a == b for a, b in zip(rows[first], rows[second], strict=True))
            assert same < 15  # 1 expected by chance


@settings(deadline=None)
@given(sizes=sizes_lists, seed=seeds, cuts=st.lists(st.integers(0, 300), max_size=6), weighted=st.booleans())
def test_reading_in_any_pieces_gives_the_same_samples(sizes, seed, cuts, weighted):
    weights = [1] * len(sizes) if weighted else None
    edges = sorted({0, 300, *cuts})
    pieced = make_order(sizes, seed=seed, weights=weights)
    pieces = [draw for a, b in pairwise(edges) for draw in draws(pieced, a, b - a)]
    assert pieces == draws(make_order(sizes, seed=seed, weights=weights), 0, 300)


def test_the_order_is_the_same_in_another_process():
    code = (
        "from ncvc.sampling import SampleOrder\n"
        "order = SampleOrder([90, 30], fingerprints=['a', 'b'], weights=[1, 2], seed=5)\n"
        "print([array.tolist() for array in order.indices(9_900, 300)])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1 and len(outputs.pop()) > 1_000


@pytest.mark.parametrize("size", [1, 2, 3, 2**16 - 1, 2**16, 2**16 + 1])
def test_a_permutation_is_a_bijection_at_the_edges_of_bit_lengths(size):
    order = permutation(size, key=7)
    assert order.dtype == np.uint32
    assert np.array_equal(np.sort(order), np.arange(size))


def test_windows_fall_uniformly_and_neighbours_are_unrelated():
    # 4,000 permutations of 16: count who stands where. Chi-square with 15 * 15 degrees of freedom.
    size, tries = 16, 4_000
    counts = np.zeros((size, size))
    ascents = 0
    for key in range(tries):
        order = permutation(size, key=key).astype(int)
        counts[np.arange(size), order] += 1
        ascents += int((np.diff(order) > 0).sum())
    chi_square = ((counts - tries / size) ** 2 / (tries / size)).sum()
    assert 225 - 5 * 21 < chi_square < 225 + 5 * 21
    # Half of all neighbours ascend; variance (size + 1) / 12 for each permutation.
    assert abs(ascents - tries * (size - 1) / 2) < 5 * (tries * (size + 1) / 12) ** 0.5


# ---- Weights ----


@settings(deadline=None)
@given(
    weights=st.lists(st.floats(0.1, 100), min_size=1, max_size=6),
)
def test_quotas_fill_the_period_and_are_off_by_less_than_one(weights):
    counts = quotas(weights)
    assert sum(counts) == PERIOD
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - PERIOD * weight / sum(weights)) < 1 + 1e-9


def test_the_report_s_token_shares_become_these_quotas():
    # R16: Wikipedia 0.55, OSCAR 8.20, scraped medical 0.01, synthetic 0.23 billion tokens of 8.99.
    assert quotas([0.55, 8.20, 0.01, 0.23]) == [612, 9121, 11, 256]


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(1, 60), min_size=2, max_size=4), seed=seeds, period=st.integers(0, 10**6))
def test_every_period_holds_exactly_the_quotas(sizes, seed, period):
    order = make_order(sizes, seed=seed, weights=[1 + 2.7 * number for number in range(len(sizes))])
    sources, _ = order.indices(period * PERIOD, PERIOD)
    assert np.bincount(sources, minlength=len(sizes)).tolist() == order.quotas


def test_a_weighted_source_shows_every_window_before_any_again():
    order = make_order([30_000, 70], weights=[9, 1], seed=3)
    sources, windows = order.indices(0, 4 * PERIOD)
    small = windows[sources == 1]
    assert len(small) == 4_000
    for begin in range(0, len(small) - 70, 70):
        assert sorted(small[begin : begin + 70].tolist()) == list(range(70))
    large = windows[sources == 0]
    assert len(large) == 36_000
    assert sorted(large[:30_000].tolist()) == list(range(30_000))


def test_weighted_sources_are_mixed_within_a_period():
    order = make_order([100, 100], weights=[1, 1])
    sources, _ = order.indices(0, PERIOD)
    runs = int((np.diff(sources) != 0).sum()) + 1
    assert abs(runs - PERIOD / 2) < 5 * (PERIOD**0.5) / 2


@pytest.mark.parametrize("weights", [[1, 0], [1, -1], [1, float("nan")], [1, float("inf")], [1, None]])
def test_weights_that_are_not_positive_numbers_are_refused(weights):
    with pytest.raises(ValueError, match="positive number"):
        make_order([5, 5], weights=weights)


def test_a_weight_too_small_for_one_sample_in_a_period_is_refused():
    with pytest.raises(ValueError, match=r"source 1 would get less than 1 sample in 10,000"):
        make_order([5, 5], weights=[1, 1e-6])


# ---- Batches and ranks ----


@settings(deadline=None)
@given(
    world_size=st.integers(1, 5),
    micro_batch_size=st.integers(1, 4),
    accumulate=st.integers(1, 4),
    step=st.integers(0, 1_000),
    weighted=st.booleans(),
)
def test_ranks_and_micro_steps_together_are_the_global_batch(world_size, micro_batch_size, accumulate, step, weighted):
    order = make_order([50, 33], weights=[2, 1] if weighted else None)
    batch_size = world_size * micro_batch_size * accumulate
    parts = [
        np.stack(
            order.micro_batch(
                step,
                micro_step,
                rank,
                batch_size=batch_size,
                world_size=world_size,
                micro_batch_size=micro_batch_size,
            )
        )
        for micro_step in range(accumulate)
        for rank in range(world_size)
    ]
    assert np.array_equal(np.concatenate(parts, axis=1), np.stack(order.global_batch(step, batch_size)))


def test_the_global_batch_is_the_same_at_8_ranks_and_at_1():
    order = make_order([5_000])
    eight = [order.micro_batch(3, 0, r, batch_size=64, world_size=8, micro_batch_size=8)[1] for r in range(8)]
    one = [order.micro_batch(3, m, 0, batch_size=64, world_size=1, micro_batch_size=8)[1] for m in range(8)]
    assert np.array_equal(np.concatenate(eight), np.concatenate(one))


def test_a_batch_that_does_not_divide_is_refused_with_all_three_numbers():
    with pytest.raises(ValueError, match=r"data.batch_size=100 is not a multiple of 4 ranks .*=8 = 32"):
        make_order([5]).micro_batch(0, 0, 0, batch_size=100, world_size=4, micro_batch_size=8)


@pytest.mark.parametrize(("micro_step", "rank"), [(2, 0), (-1, 0), (0, 2), (0, -1)])
def test_a_rank_or_micro_step_that_does_not_exist_is_refused(micro_step, rank):
    with pytest.raises(ValueError, match="counted from 0"):
        make_order([5]).micro_batch(0, micro_step, rank, batch_size=8, world_size=2, micro_batch_size=2)


# ---- Skipping ----


@settings(deadline=None)
@given(lengths=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 30)), max_size=4), start=st.integers(0, 100))
def test_skipped_samples_are_left_out_and_nothing_else(lengths, start):
    ranges, edge = [], 0
    for gap, length in lengths:
        ranges.append((edge + gap, edge + gap + length))
        edge += gap + length
    left = [n for n in range(1_000) if not any(first <= n < end for first, end in ranges)]
    order = make_order([40, 9], skip=ranges)
    plain = draws(make_order([40, 9]), 0, 1_000)
    assert order.sample_numbers(start, 50).tolist() == left[start : start + 50]
    assert draws(order, start, 50) == [plain[number] for number in left[start : start + 50]]


def test_a_skip_range_leaves_every_earlier_batch_and_the_fingerprint_as_they_were():
    plain, skipping = make_order([300]), make_order([300], skip=[(160, 192)])
    for step in range(5):
        assert np.array_equal(plain.global_batch(step, 32), skipping.global_batch(step, 32))
    assert np.array_equal(plain.global_batch(6, 32), skipping.global_batch(5, 32))
    assert plain.fingerprint == skipping.fingerprint


@pytest.mark.parametrize("skip", [[(5, 5)], [(6, 5)], [(-1, 3)], [(0, 4), (3, 6)], [(5, 6), (1, 2)]])
def test_skip_ranges_that_are_empty_unsorted_or_overlap_are_refused(skip):
    with pytest.raises(ValueError, match="sorted ranges"):
        make_order([5], skip=skip)


# ---- Epoch counts and arguments ----


def test_epoch_of_counts_passes_over_each_source():
    assert make_order([60, 40]).epoch_of(250).tolist() == [2.5, 2.5]
    weighted = make_order([60, 40], weights=[3, 1])
    number = 12_345
    sources, _ = weighted.indices(0, number)
    assert weighted.epoch_of(number) == pytest.approx(np.bincount(sources) / [60, 40])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": []}, "every source needs at least one window"),
        ({"sizes": [3, 0]}, "every source needs at least one window"),
        ({"sizes": [3], "fingerprints": []}, "give one of each per source"),
        ({"sizes": [3, 3], "weights": [1.0]}, "give one of each per source"),
    ],
)
def test_sources_that_do_not_fit_together_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_order(arguments.pop("sizes"), **arguments)


def test_numbers_far_into_a_run_are_exact():
    order = make_order([10_007], seed=1)
    start = 10**15  # a thousand million epochs on
    windows = order.indices(start, 20)[1]
    epoch, place = divmod(start, 10_007)
    whole = order.indices(epoch * 10_007, 10_007)[1]
    assert np.array_equal(windows, whole[place : place + 20])
