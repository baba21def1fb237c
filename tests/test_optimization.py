"""AdamW against its own formula in fp64, decay groups, and the exact values of the schedule."""

import itertools
import math

import numpy as np
import pytest
import torch

from ncvc.model.initialization import VARIANTS
from ncvc.model.optimization import adamw, parameter_groups, warmup_cosine, warmup_cosine_factor
from ncvc.model.transformer import ModelConfig, Transformer

SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 8,
    "context_length": 16,
}
REPORT = {"warmup_steps": 750, "total_steps": 24_000}


def build(**changes) -> Transformer:
    return Transformer(ModelConfig(**{**SMALL, **changes}))


# --- groups and AdamW ---


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("init", VARIANTS)
def test_matrices_decay_gains_and_gates_do_not_and_every_parameter_is_in_exactly_one_group(init, qk_norm):
    model = build(init=init, qk_norm=qk_norm)
    groups = parameter_groups(model, weight_decay=0.1)
    placed = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(placed) == sorted(id(parameter) for parameter in model.parameters())
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        spared = name.endswith("gate") or "norm" in name
        assert decay[id(parameter)] == (0.0 if spared else 0.1), name


def test_frozen_parameters_are_left_out():
    model = build()
    model.embedding.weight.requires_grad_(False)
    placed = [id(p) for group in parameter_groups(model, weight_decay=0.1) for p in group["params"]]
    assert id(model.embedding.weight) not in placed
    assert len(placed) == sum(1 for _ in model.parameters()) - 1


@pytest.mark.parametrize("fused", [False, True])
def test_three_steps_equal_the_formula_of_adamw_in_fp64(fused):
    """Loshchilov and Hutter's update with decoupled decay, on fixed gradients and a changing rate."""
    model = build(init="wesar", qk_norm=True)
    optimizer = adamw(model, learning_rate=1e-2, betas=(0.9, 0.95), weight_decay=0.1, epsilon=1e-8, fused=fused)
    rng = np.random.default_rng(0)
    values = {name: parameter.detach().double().numpy() for name, parameter in model.named_parameters()}
    first = {name: np.zeros_like(value) for name, value in values.items()}
    second = {name: np.zeros_like(value) for name, value in values.items()}
    for step, rate in enumerate((1e-2, 5e-3, 2e-2), start=1):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for name, parameter in model.named_parameters():
            gradient = rng.normal(size=values[name].shape).astype(np.float32)
            parameter.grad = torch.from_numpy(gradient)
            gradient = gradient.astype(np.float64)
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.95 * second[name] + 0.05 * gradient**2
            direction = (first[name] / (1 - 0.9**step)) / (np.sqrt(second[name] / (1 - 0.95**step)) + 1e-8)
            decay = 0.0 if values[name].ndim == 1 else 0.1
            values[name] = values[name] - rate * decay * values[name] - rate * direction
        optimizer.step()
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.detach().numpy(), values[name], rtol=2e-5, atol=2e-7)


# --- schedule ---


@pytest.mark.parametrize(
    ("update", "rate"),
    [
        (1, 1e-3 / 750),
        (75, 1.0e-4),  # linear: logarithmic warm-up would be 6.5e-4 here (R66)
        (375, 5.0e-4),
        (750, 1.0e-3),
        (12_375, 5.0e-4),  # half way between 750 and 24,000
        (6_562.5, 1e-3 * (0.5 + 0.25 * math.sqrt(2))),  # a quarter of the way
        (24_000, 0.0),
    ],
)
def test_the_reports_schedule_has_these_rates(update, rate):
    assert 1e-3 * warmup_cosine_factor(update, **REPORT) == pytest.approx(rate, rel=1e-12, abs=0)


def test_the_last_update_and_all_after_it_have_rate_exactly_zero():
    assert warmup_cosine_factor(24_000, **REPORT) == 0.0
    assert warmup_cosine_factor(30_000, **REPORT) == 0.0
    assert warmup_cosine_factor(23_999, **REPORT) > 0.0


def test_the_schedule_rises_strictly_then_falls_strictly():
    factors = [warmup_cosine_factor(update, **REPORT) for update in range(1, 24_001)]
    assert all(a < b for a, b in itertools.pairwise(factors[:750]))
    assert all(a > b for a, b in itertools.pairwise(factors[749:]))
    assert max(factors) == factors[749] == 1.0


def scheduled(warmup_steps: int, total_steps: int):
    parameter = torch.nn.Parameter(torch.zeros(2))
    groups = [{"params": [parameter]}, {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 1e-3}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    return optimizer, warmup_cosine(optimizer, warmup_steps=warmup_steps, total_steps=total_steps)


def test_the_scheduler_gives_each_update_its_own_rate_in_every_group():
    optimizer, schedule = scheduled(6, 40)
    rates = []
    for _ in range(40):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    expected = [k / 6 if k <= 6 else 0.5 * (1 + math.cos(math.pi * (k - 6) / 34)) for k in range(1, 41)]
    assert [pair[0] for pair in rates] == pytest.approx([1e-3 * factor for factor in expected], rel=1e-12)
    assert all(first == second for first, second in rates)
    assert rates[-1] == [0.0, 0.0]


def test_a_resumed_schedule_goes_on_where_it_stopped():
    optimizer, schedule = scheduled(6, 40)
    for _ in range(13):
        optimizer.step()
        schedule.step()
    resumed_optimizer, resumed = scheduled(6, 40)
    resumed_optimizer.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    for _ in range(27):
        assert resumed_optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
        for each in (optimizer, resumed_optimizer, schedule, resumed):
            each.step()


def test_no_warmup_starts_just_below_the_peak():
    optimizer, _ = scheduled(0, 10)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * 0.5 * (1 + math.cos(math.pi / 10)))


@pytest.mark.parametrize(("warmup", "total"), [(40, 40), (41, 40), (-1, 40), (0, 0)])
def test_a_warmup_that_does_not_fit_is_refused_with_both_settings(warmup, total):
    with pytest.raises(ValueError, match=rf"schedule\.warmup_steps={warmup}.*trainer\.max_steps={total}"):
        scheduled(warmup, total)
