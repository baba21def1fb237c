"""The spike detector: what it finds and leaves alone, against plain Python; its state, its silence towards the host."""

import json
import math
import statistics
import time

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from ncvc.model.stability import SpikeDetector, StabilitySettings, rewind_wanted, spike_score

VOCABULARY = 32_768  # guessing costs ln(32,768) = 10.397 nats
SCORES = ("loss_score", "norm_score")


def detector(*, vocab_size: int = VOCABULARY, **changes) -> SpikeDetector:
    return SpikeDetector(StabilitySettings(level="skip", **changes), vocab_size=vocab_size, device="cpu")


def number(value: float) -> torch.Tensor:
    return torch.tensor(float(value), dtype=torch.float64)


def judge(detector: SpikeDetector, losses, norms) -> list[tuple[float, float, bool, bool]]:
    """Loss score, norm score, spiked, non-finite of every step."""
    verdicts = []
    for loss, norm in zip(losses, norms, strict=True):
        found = detector.update(number(loss), number(norm))
        verdicts.append((float(found.loss_score), float(found.norm_score), bool(found.spiked), bool(found.non_finite)))
    return verdicts


def spiked_steps(verdicts) -> list[int]:
    return [step for step, verdict in enumerate(verdicts, start=1) if verdict[2]]


def clean_run(steps: int, *, seed: int, warmup: int = 300, unigram_plateau: bool = False):
    """Losses from 10.4 to about 2.5 and log-normal norms that settle: the shape of a run that nothing disturbs."""
    generator = np.random.default_rng(seed)
    step = np.arange(1, steps + 1)
    progress = np.where(step < warmup, step**2 / (2 * warmup), step - warmup / 2)  # sum of the warm-up's rates
    losses = 2.2 + 8.2 * (1 + progress / 12) ** -0.55
    if unigram_plateau:  # the frequencies of words are learned at once, the rest slowly: the fall ends abruptly
        losses = 2.4 + 2.9 / (1 + np.exp(np.minimum(step - 80, 2000) / 12)) + 5.1 * (1 + step / 400) ** -0.6
    losses = losses + 0.03 * generator.standard_normal(steps)
    settled = 0.4 + 4.0 * np.exp(-step / 60) + 0.3 * np.exp(-(((step - 1.3 * warmup) / 200) ** 2))
    return losses, settled * np.exp(0.25 * generator.standard_normal(steps))


# ---- what is left alone --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "warmup", "unigram_plateau"),
    [
        (0, 300, False),
        (1, 300, True),
        pytest.param(2, 20, False, marks=pytest.mark.slow),
        pytest.param(3, 1000, True, marks=pytest.mark.slow),
    ],
)
def test_ten_thousand_clean_steps_of_a_falling_loss_give_no_false_alarm(seed, warmup, unigram_plateau):
    losses, norms = clean_run(10_000, seed=seed, warmup=warmup, unigram_plateau=unigram_plateau)
    assert 10.1 < losses[0] < 10.6
    assert 2.2 < losses[-100:].mean() < 3.2
    assert spiked_steps(judge(detector(), losses, norms)) == []


def test_falls_are_no_spikes_however_deep():
    losses, norms = clean_run(300, seed=0)
    losses[200:] -= 2.0
    norms[200:] /= 1000
    verdicts = judge(detector(), losses, norms)
    assert spiked_steps(verdicts) == []
    assert verdicts[200][0] < -20
    assert verdicts[200][1] < -15


def test_a_flat_curve_makes_no_spike_of_a_ripple():
    losses = np.where(np.arange(400) % 50 == 49, 2.01, 2.0)  # MAD 0: only the floor keeps this from being infinite
    assert spiked_steps(judge(detector(), losses, np.ones(400))) == []
    losses[-1] = 2.07  # 0.07 / (0.005 x 2.0) = 7
    verdicts = judge(detector(), losses, np.ones(400))
    assert spiked_steps(verdicts) == [400]
    assert verdicts[-1][0] == pytest.approx(7.0, rel=1e-4)


def test_a_zero_gradient_is_neither_judged_nor_remembered():
    losses, norms = clean_run(200, seed=0)
    zero = np.isin(np.arange(200), [0, 1, 50, 150])  # at the first step too
    judged = np.array(judge(detector(), losses, np.where(zero, 0.0, norms)))
    shortened = np.array(judge(detector(), losses[~zero], norms[~zero]))
    assert not judged[:, 2].any()
    assert np.isnan(judged[zero, 1]).all()
    np.testing.assert_array_equal(judged[~zero, 1], shortened[:, 1])


# ---- what is found -------------------------------------------------------------------------------------------


def plain_window_finds(losses, *, step: int) -> bool:
    """The usual rule: more than 6 robust sigmas above the median of the last 128 raw values, 32 at least."""
    past = list(losses[max(0, step - 129) : step - 1])
    if len(past) < 32:
        return False
    median = statistics.median(past)
    deviation = statistics.median(abs(value - median) for value in past)
    return losses[step - 1] > median + 6 * 1.4826 * deviation


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("step", "plain_finds"), [(20, False), (60, False), (150, False), (2000, True)])
def test_a_jump_of_one_and_a_half_nats_is_found_where_a_window_of_raw_values_misses_it(step, plain_finds, seed):
    losses, norms = clean_run(step + 20, seed=seed)
    losses[step - 1] += 1.5
    assert spiked_steps(judge(detector(), losses, norms)) == [step]
    assert plain_window_finds(losses, step=step) == plain_finds


@pytest.mark.parametrize("step", [2, 10, 32])
def test_before_the_window_decides_a_jump_above_the_lowest_loss_is_found_in_the_steepest_fall(step):
    losses, norms = clean_run(60, seed=0, warmup=20)
    lowest = losses[: step - 1].min()
    losses[step - 1] = lowest + 1.01
    assert spiked_steps(judge(detector(vocab_size=10**6), losses, norms)) == [step]
    losses[step - 1] = lowest + 0.99
    assert spiked_steps(judge(detector(vocab_size=10**6), losses, norms)) == []


@pytest.mark.parametrize("step", [2, 3, 10, 40, 500, 2000])
def test_a_gradient_a_thousand_times_too_large_is_found_from_the_second_step_on(step):
    losses, norms = clean_run(step + 20, seed=0)
    norms[step - 1] *= 1000
    assert spiked_steps(judge(detector(), losses, norms)) == [step]


@pytest.mark.parametrize("step", [1, 10, 500])
def test_a_loss_one_nat_above_guessing_is_a_spike_at_any_step(step):
    losses, norms = clean_run(520, seed=0)
    losses[step - 1] = math.log(VOCABULARY) + 1.01
    assert spiked_steps(judge(detector(sigmas=1e9, loss_jump=1e9), losses, norms)) == [step]
    losses[step - 1] = math.log(VOCABULARY) + 0.99
    assert spiked_steps(judge(detector(sigmas=1e9, loss_jump=1e9), losses, norms)) == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("row", ["loss", "norm"])
@pytest.mark.parametrize("step", [1, 2, 20, 200])
def test_one_number_that_is_not_finite_flags_exactly_its_step_and_leaves_no_trace(step, row, value):
    losses, norms = clean_run(260, seed=0)
    undisturbed = judge(detector(), np.delete(losses, step - 1), np.delete(norms, step - 1))
    (losses if row == "loss" else norms)[step - 1] = value
    verdicts = judge(detector(), losses, norms)
    assert spiked_steps(verdicts) == [step]
    assert [place for place, verdict in enumerate(verdicts, start=1) if verdict[3]] == [step]
    del verdicts[step - 1]
    np.testing.assert_array_equal(verdicts, undisturbed)


@pytest.mark.parametrize("first", [21, 200])
def test_a_spike_of_ten_steps_flags_all_ten_and_the_step_after_is_clean(first):
    losses, norms = clean_run(300, seed=0)
    losses[first - 1 : first + 9] += np.linspace(1.5, 3.0, 10)
    norms[first - 1 : first + 9] *= 50
    assert spiked_steps(judge(detector(), losses, norms)) == list(range(first, first + 10))


def test_a_shift_to_a_new_level_is_flagged_64_times_and_then_accepted():
    losses, norms = clean_run(1000, seed=0)
    losses[499:] += 2.0
    verdicts = judge(detector(), losses, norms)
    assert spiked_steps(verdicts) == list(range(500, 564))
    assert all(math.isnan(verdict[0]) for verdict in verdicts[563:595])  # history starts anew: 32 values
    assert not any(math.isnan(verdict[0]) for verdict in verdicts[595:])


def test_steps_that_are_not_finite_neither_lengthen_nor_break_the_way_to_a_new_level():
    losses, norms = clean_run(1000, seed=0)
    losses[499:] += 2.0
    norms[[520, 540]] = math.nan
    assert spiked_steps(judge(detector(), losses, norms)) == list(range(500, 566))
    losses, norms = clean_run(1000, seed=0)
    norms[499:699] = math.nan
    assert spiked_steps(judge(detector(), losses, norms)) == list(range(500, 700))


# ---- the numbers, against plain Python -----------------------------------------------------------------------


class PlainDetector:
    """The same rules over Python lists, with ``statistics.median``."""

    def __init__(self, *, window: int, minimum_history: int, restart_after: int):
        self.window, self.minimum_history, self.restart_after = window, minimum_history, restart_after
        self.forget()

    def forget(self):
        self.history, self.streak = ([], []), 0

    def score(self, row: int, value: float) -> float:
        history = self.history[row]
        residuals = [residual for _, residual in history[-self.window :] if residual is not None]
        if len(history) < self.minimum_history or not residuals:
            return math.nan
        level = statistics.median([value for value, _ in history[-8:]])
        centre = statistics.median(residuals)
        sigma = 1.4826 * statistics.median([abs(residual - centre) for residual in residuals])
        return (value - level - centre) / max(sigma, (0.005 * abs(level), 0.05)[row])

    def update(self, loss: float, norm: float) -> tuple[float, float, bool]:
        values = (loss, math.log(norm) if math.isfinite(norm) else norm)
        scores = tuple(self.score(row, value) for row, value in enumerate(values))
        past = [[value for value, _ in history] for history in self.history]
        spiked = loss > math.log(VOCABULARY) + 1 or any(score > 6 for score in scores)
        if 0 < len(past[0]) < self.minimum_history:
            spiked |= loss > min(past[0]) + 1 or values[1] > statistics.median(past[1]) + math.log(30)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return (*scores, True)
        self.streak = self.streak + 1 if spiked else 0
        if self.streak == self.restart_after:
            self.forget()
        elif not spiked:
            for value, history in zip(values, self.history, strict=True):
                level = statistics.median([old for old, _ in history[-8:]]) if history else None
                history.append((value, None if level is None else value - level))
        return (*scores, spiked)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    window=st.integers(8, 40),
    minimum_history=st.integers(1, 8),
    restart_after=st.integers(1, 12),
    spread=st.sampled_from([0.0, 1e-3, 0.05, 0.5]),
)
def test_scores_and_flags_equal_plain_python_on_random_streams(seed, window, minimum_history, restart_after, spread):
    sizes = {"window": window, "minimum_history": minimum_history, "restart_after": restart_after}
    generator = np.random.default_rng(seed)
    losses = np.linspace(9, 3, 120) + spread * generator.standard_normal(120)
    norms = np.exp(spread * generator.standard_t(3, 120))
    jumped = generator.random(120) < 0.1
    losses[jumped] += generator.exponential(2.0, jumped.sum())
    norms[generator.random(120) < 0.05] *= 100
    losses[generator.random(120) < 0.02] = math.nan
    losses[80:] += generator.choice([0.0, 1.5])
    plain = PlainDetector(**sizes)
    expected = [plain.update(float(loss), float(norm)) for loss, norm in zip(losses, norms, strict=True)]
    found = [verdict[:3] for verdict in judge(detector(**sizes), losses, norms)]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


# ---- state ---------------------------------------------------------------------------------------------------


def disturbed_run():
    losses, norms = clean_run(300, seed=5)
    losses[100:103] += 3.0
    norms[150] = math.nan
    losses[200:280] += 2.0  # a new level from step 264 on, and back
    return losses, norms


@pytest.fixture(scope="module")
def uninterrupted():
    """Verdicts on ``disturbed_run`` in one go."""
    return judge(detector(), *disturbed_run())


@pytest.mark.parametrize("cut", [0, 1, 5, 40, 101, 151, 230, 264, 299])
def test_a_state_through_json_goes_on_with_bit_identical_verdicts(cut, uninterrupted):
    losses, norms = disturbed_run()
    first, second = detector(), detector()
    judge(first, losses[:cut], norms[:cut])
    judge(second, losses[50:100], norms[50:100])  # what it knew before is gone
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    np.testing.assert_array_equal(judge(second, losses[cut:], norms[cut:]), uninterrupted[cut:])
    assert len(spiked_steps(uninterrupted)) > 60


def test_after_a_reset_everything_is_as_before_the_first_step(uninterrupted):
    losses, norms = disturbed_run()
    used = detector()
    judge(used, losses[50:250], norms[50:250])
    used.reset()
    np.testing.assert_array_equal(judge(used, losses, norms), uninterrupted)


def test_two_ranks_that_are_given_the_same_numbers_agree_to_the_bit():
    losses, norms = disturbed_run()
    ranks = detector(), detector()
    np.testing.assert_array_equal(judge(ranks[0], losses, norms), judge(ranks[1], losses, norms))
    assert ranks[0].state_dict() == ranks[1].state_dict()


def test_a_state_of_another_window_keeps_its_newest_values():
    losses, norms = clean_run(300, seed=0)
    wide, narrow = detector(window=128), detector(window=64)
    judge(wide, losses[:200], norms[:200])
    judge(narrow, losses[:200], norms[:200])
    resumed = detector(window=64)
    resumed.load_state_dict(wide.state_dict())
    assert resumed.state_dict() == narrow.state_dict()
    resumed = detector(window=128)
    resumed.load_state_dict(narrow.state_dict())
    assert resumed.state_dict()["losses"] == [None] * 64 + narrow.state_dict()["losses"]
    assert spiked_steps(judge(resumed, losses[200:], norms[200:])) == []


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"losses": [1.0], "log_norms": [1.0], "loss_residuals": [None], "log_norm_residuals": [None]},
        {"losses": [1.0, 2.0], "log_norms": [1.0], "loss_residuals": [None], "log_norm_residuals": [None], "streak": 0},
        {"losses": [1.0], "log_norms": ["x"], "loss_residuals": [None], "log_norm_residuals": [None], "streak": 0},
        {"losses": [1.0], "log_norms": 3, "loss_residuals": [None], "log_norm_residuals": [None], "streak": 0},
    ],
)
def test_what_is_no_state_is_refused_and_the_old_history_stays(state):
    used = detector()
    judge(used, *clean_run(50, seed=0))
    before = used.state_dict()
    with pytest.raises(ValueError, match="no state of the spike detector"):
        used.load_state_dict(state)
    assert used.state_dict() == before


# ---- silence towards the host, cost --------------------------------------------------------------------------


class HostReads(TorchDispatchMode):
    """Fails on every operation whose result or shape the host must know."""

    forbidden = ("_local_scalar_dense", "nonzero", "masked_select", "index", "equal")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.name().split("::")[1].split(".")[0] not in self.forbidden, function
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("read", [bool, float, torch.nonzero, lambda t: t[t > 0]])
def test_the_two_judges_of_silence_catch_a_read(read):
    with HostReads(), pytest.raises((AssertionError, RuntimeError)):
        read(torch.ones(1))
    with pytest.raises((NotImplementedError, RuntimeError)):
        read(torch.ones(1, device="meta"))


def test_an_update_reads_nothing_back_to_the_host():
    losses, norms = disturbed_run()
    watched = detector()
    numbers = [(number(loss), number(norm)) for loss, norm in zip(losses, norms, strict=True)]
    with HostReads():
        verdicts = [watched.update(loss, norm) for loss, norm in numbers]
    assert sum(bool(verdict.spiked) for verdict in verdicts) > 60


def test_an_update_runs_where_there_are_no_values_at_all():
    nowhere = SpikeDetector(StabilitySettings(level="skip"), vocab_size=VOCABULARY, device="meta")
    for _ in range(3):
        verdict = nowhere.update(torch.zeros((), device="meta"), torch.zeros((), device="meta"))
    assert {getattr(verdict, name).dtype for name in SCORES} == {torch.float64}
    assert verdict.spiked.dtype == verdict.non_finite.dtype == torch.bool
    assert all(getattr(verdict, name).shape == () for name in (*SCORES, "spiked", "non_finite"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_an_update_never_waits_and_finds_what_the_cpu_finds(uninterrupted):
    losses, norms = disturbed_run()
    on_gpu = SpikeDetector(StabilitySettings(level="skip"), vocab_size=VOCABULARY, device="cuda")
    numbers = [(number(loss).cuda(), number(norm).cuda()) for loss, norm in zip(losses, norms, strict=True)]
    on_gpu.update(*numbers[0])  # kernels are loaded
    on_gpu.reset()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        verdicts = [on_gpu.update(loss, norm) for loss, norm in numbers]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found = [[float(getattr(verdict, name)) for name in (*SCORES, "spiked", "non_finite")] for verdict in verdicts]
    np.testing.assert_allclose(found, uninterrupted, rtol=1e-9, atol=1e-9)


def test_an_update_costs_less_than_a_millisecond():
    losses, norms = clean_run(200, seed=0)
    used = detector()
    judge(used, losses, norms)
    loss, norm = number(losses[-1]), number(norms[-1])
    times = []
    for _ in range(20):
        start = time.thread_time()
        for _ in range(10):
            used.update(loss, norm)
        times.append((time.thread_time() - start) / 10)
    assert min(times) < 1e-3


def test_a_loss_that_still_has_a_graph_leaves_none_in_the_state():
    used = detector()
    weight = torch.ones((), requires_grad=True)
    for _ in range(3):
        verdict = used.update(3 * weight, weight + 1)
    assert not verdict.loss_score.requires_grad
    assert used.state_dict()["losses"][-1] == 3.0


# ---- rewinding, the score of a run ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "first"),
    [
        ([], None),
        ([5], None),
        ([5, 6], None),
        ([5, 6, 7], 5),
        ([5, 9, 14], 5),  # ten steps: 5 to 14
        ([5, 9, 15], None),
        ([5, 30, 31, 39, 80], 30),
        ([39, 31, 30, 30], 30),
        ([1, 10, 11, 12, 13], 10),
    ],
)
def test_three_spikes_within_ten_steps_ask_for_a_rewind_and_name_the_first(steps, first):
    assert rewind_wanted(steps, StabilitySettings(level="rewind")) == first


def test_one_spike_is_enough_if_set_so():
    assert rewind_wanted([7], StabilitySettings(level="rewind", rewind_after=1, rewind_within=1)) == 7


def test_spike_score_is_the_share_of_spiked_steps():
    assert spike_score([True, False, False, True, False]) == pytest.approx(0.4)
    assert spike_score([]) == 0.0


# ---- settings ------------------------------------------------------------------------------------------------


def test_every_value_that_cannot_be_is_told_by_name_at_once():
    with pytest.raises(ValueError) as raised:
        StabilitySettings(
            level="stop",
            window=0,
            sigmas=-1.0,
            minimum_history=2.5,
            norm_jump=1.0,
            loss_jump=math.nan,
            max_rewinds=True,
        )
    told = [line.split("=")[0] for line in str(raised.value).splitlines()]
    wrong = ["level", "window", "minimum_history", "max_rewinds", "sigmas", "loss_jump", "norm_jump"]
    assert told == [f"stability.{name}" for name in wrong]


@pytest.mark.parametrize("changes", [{"window": 16, "minimum_history": 17}, {"rewind_after": 11, "rewind_within": 10}])
def test_sizes_that_cannot_go_together_are_told_with_both_and_the_cure(changes):
    (small, few), (large, many) = sorted(changes.items(), key=lambda item: -item[1])
    with pytest.raises(ValueError, match=rf"stability.{small}={few}: above stability.{large}={many}.*at most {many}"):
        StabilitySettings(level="record", **changes)


def test_a_vocabulary_of_one_word_is_refused():
    with pytest.raises(ValueError, match="vocab_size=1"):
        detector(vocab_size=1)


def test_the_three_levels_differ_in_nothing_else_and_state_the_defaults(composed):
    for level in ("record", "skip", "rewind"):
        assert instantiate(composed(f"stability={level}").stability) == StabilitySettings(level=level)
