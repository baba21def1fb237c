"""Seeds by mixing: published splitmix64 outputs, invertibility, order, no collisions."""

import itertools

import pytest
import torch

from ncvc.randomness import mix, splitmix64

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def test_splitmix64_gives_the_published_outputs():
    """Outputs of the reference generator: state 0, then the well-known five from state 1234567."""
    assert splitmix64(0) == 0xE220A8397B1DCDAF
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [splitmix64((1234567 + GOLDEN * step) & MASK) for step in range(5)] == expected


def undo_shift(value: int, shift: int) -> int:
    result = value
    for _ in range(64 // shift + 1):
        result = value ^ (result >> shift)
    return result


def test_splitmix64_is_a_bijection():
    """Undone step by step with modular inverses."""
    for value in [0, 1, 2, MASK, 1 << 63, *range(10**6, 10**6 + 1000)]:
        state = undo_shift(splitmix64(value), 31)
        state = undo_shift(state * pow(0x94D049BB133111EB, -1, 1 << 64) & MASK, 27)
        state = undo_shift(state * pow(0xBF58476D1CE4E5B9, -1, 1 << 64) & MASK, 30)
        assert (state - GOLDEN) & MASK == value


def test_mix_keeps_its_values_so_that_old_runs_resume_with_the_same_draws():
    assert mix(7, 250, 3, 1) == 10871131947745679035
    assert mix(0) == splitmix64(1 ^ splitmix64(0)) == 627405149472732430


def test_mix_never_collides_over_seeds_steps_micro_batches_and_ranks():
    grid = list(itertools.product(range(3), [0, 1, 2, 3, 100, 23_999, 24_000], range(32), range(8)))
    shorter = [values[:count] for values in grid for count in (1, 2, 3)]
    distinct = set(grid) | set(shorter)
    assert len({mix(*values) for values in distinct}) == len(distinct)


def test_mix_depends_on_order_number_and_every_value():
    assert len({mix(1, 2), mix(2, 1), mix(3), mix(1, 2, 0), mix(0, 1, 2), mix()}) == 6
    base = (7, 250, 3, 1)
    for place in range(4):
        changed = [value + (index == place) for index, value in enumerate(base)]
        assert mix(*changed) != mix(*base)


def test_one_changed_bit_changes_about_half_of_the_result():
    flips = [(mix(5, value) ^ mix(5, value ^ (1 << bit))).bit_count() for value in range(40) for bit in range(0, 40, 5)]
    assert 30.5 < sum(flips) / len(flips) < 33.5  # 320 draws of mean 32 and deviation 4: error 0.22
    assert min(flips) > 10


@pytest.mark.parametrize("values", [(0, 0), (2**63, -1), (2**64 - 1, 24_000, 31, 3)])
def test_every_result_is_a_seed_that_torch_accepts(values):
    seed = mix(*values)
    assert 0 <= seed <= MASK
    draws = [torch.rand(4, generator=torch.Generator().manual_seed(seed)) for _ in range(2)]
    assert torch.equal(*draws)
