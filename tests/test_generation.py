"""Generation against full recomputation without a cache, and what it leaves untouched."""

import itertools
import math

import pytest
import torch

from ncvc.model.generation import Sampling, generate, generate_batch
from ncvc.model.transformer import KeyValueCache, ModelConfig, Transformer

SMALL = {
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 4,
    "context_length": 24,
}
PROMPT = [3, 1, 4, 1, 5]


def build(seed: int = 0, **changes) -> Transformer:
    """Weights large enough that the next token is far from uniform and depends on the past."""
    model = Transformer(ModelConfig(**{**SMALL, **changes}), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise, alpha=0.03 if changes.get("init") == "wesar" else 0.4)  # gates multiply it
    return model.eval()


@torch.no_grad()
def next_logits(model: Transformer, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids]))[0, -1]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_kv_heads": 1},
        {"num_kv_heads": 4},
        {"qk_norm": True},
        {"init": "wesar"},
        {"attention_backend": "eager"},
    ],
    ids=str,
)
def test_logits_with_the_cache_equal_full_recomputation_however_the_sequence_is_cut(changes):
    model = build(**changes)
    ids = torch.randint(0, 30, (3, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        full = model(ids)
        for cuts in ([24], [5, 1, 1, 10, 7], [1] * 24):
            cache = KeyValueCache(model.config, batch=3, capacity=24, device=torch.device("cpu"), dtype=torch.float32)
            parts = [model(part, cache=cache) for part in ids.split(cuts, dim=1)]
            assert cache.length == 24
            torch.testing.assert_close(torch.cat(parts, dim=1), full, rtol=0, atol=2e-6 * float(full.abs().max()))


@pytest.mark.parametrize("changes", [{}, {"qk_norm": True, "init": "wesar"}], ids=str)
def test_greedy_equals_an_argmax_loop_without_a_cache(changes):
    model = build(**changes)
    ids = list(PROMPT)
    for _ in range(15):
        ids.append(int(next_logits(model, ids).argmax()))
    assert len(set(ids[5:])) > 2  # the model does not just repeat one token
    told: list[int] = []
    assert generate(model, PROMPT, max_new_tokens=15, on_token=told.append) == ids[5:] == told


def test_documents_and_a_cache_together_are_refused_not_mixed_up():
    model = build()
    cache = KeyValueCache(model.config, batch=1, capacity=9, device=torch.device("cpu"), dtype=torch.float32)
    ids = torch.zeros(1, 4, dtype=torch.long)
    with torch.no_grad(), pytest.raises(ValueError, match="document_ids"):
        model(ids, document_ids=ids, cache=cache)
        model(ids[:, :1], document_ids=ids[:, :1], cache=cache)


# --- sampling ---


def draws(model: Transformer, count: int, **arguments) -> torch.Tensor:
    samplings = [Sampling(1, seed=seed, **arguments) for seed in range(count)]
    rows = generate_batch(model, [PROMPT] * count, sampling=samplings, end_id=None)
    return torch.bincount(torch.tensor([row.ids[0] for row in rows]), minlength=30)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampling_follows_the_softmax_at_its_temperature(temperature):
    model, count = build(), 1500
    probabilities = (next_logits(model, PROMPT).double() / temperature).softmax(dim=0)
    found = draws(model, count, temperature=temperature)
    common = probabilities * count >= 8
    expected = torch.cat((probabilities[common], 1 - probabilities[common].sum(dim=0, keepdim=True))) * count
    observed = torch.cat((found[common], found[~common].sum(dim=0, keepdim=True))).double()
    assert int(common.sum()) >= 3
    freedom = len(expected) - 1
    statistic = float(((observed - expected).square() / expected.clamp(min=1.0)).sum())
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


def test_top_p_keeps_exactly_the_smallest_set_that_holds_it():
    model = build()
    probabilities = next_logits(model, PROMPT).softmax(dim=0).tolist()
    kept, mass = set(), 0.0
    for token in sorted(range(30), key=lambda token: -probabilities[token]):
        kept.add(token)
        mass += probabilities[token]
        if mass >= 0.8:
            break
    assert 2 <= len(kept) <= 10
    found = draws(model, 1500, temperature=1.0, top_p=0.8)
    assert {token for token, times in enumerate(found.tolist()) if times} == kept
    for token in kept:  # shares inside the set keep their proportions
        share = probabilities[token] / mass
        assert abs(int(found[token]) - 1500 * share) < 5 * math.sqrt(1500 * share)


def test_the_edges_of_sampling_are_greedy():
    model = build()
    greedy = generate(model, PROMPT, max_new_tokens=10)
    for seed in range(5):
        assert generate(model, PROMPT, max_new_tokens=10, temperature=1.5, top_p=1e-9, seed=seed) == greedy
        assert generate(model, PROMPT, max_new_tokens=10, temperature=1e-4, seed=seed) == greedy


def test_the_seed_decides_the_sample():
    model = build()
    run = [generate(model, PROMPT, max_new_tokens=15, temperature=1.5, seed=seed) for seed in (1, 1, 2)]
    assert run[0] == run[1] != run[2]


@pytest.mark.parametrize("penalty", [0.5, 1.3, 5.0])
def test_repetition_penalty_divides_positive_and_multiplies_negative_logits_of_what_was_seen(penalty):
    model, ids = build(seed=1), list(PROMPT)
    for _ in range(12):
        logits = next_logits(model, ids).tolist()
        for token in set(ids):
            logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
        ids.append(max(range(30), key=logits.__getitem__))
    found = generate(model, PROMPT, max_new_tokens=12, repetition_penalty=penalty)
    assert found == ids[5:]
    assert found != generate(model, PROMPT, max_new_tokens=12)


def test_repetition_penalty_pushes_a_seen_token_down_also_where_every_logit_is_negative():
    decisive = 0
    for seed in range(120):
        model = build(seed=seed, vocab_size=3)
        logits = next_logits(model, [1]).tolist()
        if max(logits) < 0 and logits[1] == max(logits):
            expected = max(range(3), key=[logits[0], 5 * logits[1], logits[2]].__getitem__)
            assert generate(model, [1], max_new_tokens=1, repetition_penalty=5.0) == [expected]
            decisive += expected != 1
    assert decisive >= 2


# --- where it stops ---


def test_it_stops_before_the_end_token():
    model = build()
    free = generate(model, PROMPT, max_new_tokens=12)
    end = next(token for token in free[1:] if token != free[0])
    expected = list(itertools.takewhile(lambda token: token != end, free))
    told: list[int] = []
    assert generate(model, PROMPT, max_new_tokens=12, end_id=end, on_token=told.append) == expected == told
    assert generate(model, PROMPT, max_new_tokens=12, end_id=free[0]) == []


def test_a_prompt_longer_than_the_context_keeps_its_end():
    model = build()
    prompt = torch.randint(0, 30, (60,), generator=torch.Generator().manual_seed(0)).tolist()
    new = generate(model, prompt, max_new_tokens=4)
    assert len(new) == 4
    assert new == generate(model, prompt[-20:], max_new_tokens=4)


def test_asking_for_more_tokens_than_fit_does_not_drop_a_prompt_that_fits():
    model = build()
    few = generate(model, PROMPT, max_new_tokens=10)
    many = generate(model, PROMPT, max_new_tokens=1000)
    assert many[:10] == few
    assert 10 < len(many) <= 24


# --- what it leaves alone, and what it refuses ---


def test_mode_global_randomness_and_gradients_are_left_alone():
    model = build(attention_dropout=0.3, residual_dropout=0.3)
    expected = generate(model, PROMPT, max_new_tokens=8, temperature=1.0)
    model.train()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert generate(model, PROMPT, max_new_tokens=8, temperature=1.0) == expected  # no dropout inside
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())

    def refuse(token: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(model, PROMPT, max_new_tokens=8, on_token=refuse)
    assert model.training
    model.eval()
    generate(model, PROMPT, max_new_tokens=2)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("changes", [{}, {"qk_norm": True}], ids=str)
def test_under_bf16_autocast_the_cache_is_bf16_and_the_likely_tokens_stay_likely(changes):
    model = build(**changes)
    with torch.autocast("cpu", torch.bfloat16):
        new = generate(model, PROMPT, max_new_tokens=10)
    assert len(new) == 10
    for place, token in enumerate(new):
        logits = next_logits(model, PROMPT + new[:place])
        assert float(logits.max() - logits[token]) < 0.05 * float(logits.std()) + 0.1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"temperature": -0.1}, r"temperature=-0\.1"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"top_p": 0.0}, r"top_p=0\.0"),
        ({"top_p": 1.1}, r"top_p=1\.1"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty=0\.0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
    ],
    ids=str,
)
def test_settings_outside_their_range_are_refused_by_name(arguments, named):
    with pytest.raises(ValueError, match=named):
        generate(build(), PROMPT, **{"max_new_tokens": 3, **arguments})


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="prompt has no tokens"):
        generate(build(), [], max_new_tokens=3)
