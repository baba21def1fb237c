"""Many prompts at once against each alone and against recomputation without a cache; constraints, refusals, packing."""

import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_generation import build

from ncvc.model.attention import attend
from ncvc.model.generation import Sampling, generate_batch
from ncvc.model.packed_weights import pack_weights, packed_linear, packed_weights
from ncvc.model.sampling_rules import nucleus
from ncvc.model.transformer import Transformer

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2, 6, 4, 3, 3], [27, 18], [2, 8, 1, 8]]


def exact(seed: int = 0, **changes) -> Transformer:
    """In fp64, so that the order of a sum decides no token."""
    return build(seed, **changes).double()


@torch.no_grad()
def recomputed(model: Transformer, prompt: list[int], count: int, *, end_id: int | None = None) -> list[int]:
    ids = list(prompt)
    for _ in range(min(count, model.config.context_length - len(prompt))):
        token = int(model(torch.tensor([ids]))[0, -1].argmax())
        if token == end_id:
            break
        ids.append(token)
    return ids[len(prompt) :]


@pytest.mark.parametrize(
    "changes",
    [{}, {"num_kv_heads": 1}, {"num_kv_heads": 4}, {"qk_norm": True, "init": "wesar"}, {"attention_backend": "eager"}],
    ids=str,
)
def test_greedy_rows_of_unequal_prompts_equal_recomputation_one_by_one(changes):
    model, budgets = exact(**changes), [18, 23, 4, 9, 1]
    samplings = [Sampling(budget) for budget in budgets]
    found = generate_batch(model, PROMPTS, sampling=samplings, end_id=None)  # columns pass the context, positions not
    for prompt, budget, row in zip(PROMPTS, budgets, found, strict=True):
        assert row.ids == recomputed(model, prompt, budget)
        assert row.finish_reason == "length"
    assert len({tuple(row.ids[:4]) for row in found}) == 5


rows_strategy = st.lists(
    st.tuples(
        st.lists(st.integers(0, 29), min_size=1, max_size=23),
        st.builds(
            Sampling,
            st.integers(1, 30),
            temperature=st.sampled_from([0.0, 0.0, 0.7, 1.5]),
            top_p=st.sampled_from([1.0, 0.8, 0.2]),
            repetition_penalty=st.sampled_from([1.0, 1.0, 1.4]),
            seed=st.integers(0, 2**70),
        ),
    ),
    min_size=1,
    max_size=7,
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(rows=rows_strategy, end_id=st.sampled_from([None, 7, 11]), seed=st.integers(0, 3))
def test_what_a_row_gets_does_not_depend_on_the_rows_beside_it(rows, end_id, seed):
    model = exact(seed)
    prompts, samplings = [prompt for prompt, _ in rows], [sampling for _, sampling in rows]
    together = generate_batch(model, prompts, sampling=samplings, end_id=end_id)
    for prompt, sampling, row in zip(prompts, samplings, together, strict=True):
        assert generate_batch(model, [prompt], sampling=sampling, end_id=end_id) == [row]
        assert len(row.ids) <= min(sampling.max_new_tokens, 24 - len(prompt))
        assert end_id not in row.ids
        if sampling.temperature == 0 and sampling.repetition_penalty == 1.0:
            assert row.ids == recomputed(model, prompt, sampling.max_new_tokens, end_id=end_id)


def test_a_longer_answer_begins_with_the_shorter_one_also_when_sampled():
    model = exact()
    runs = [
        generate_batch(model, [PROMPTS[0]], sampling=Sampling(count, temperature=1.3, seed=4), end_id=None)[0].ids
        for count in (3, 17)
    ]
    assert runs[1][:3] == runs[0]
    assert len(runs[1]) == 17


def test_a_prompt_may_leave_room_for_one_token_and_not_for_none():
    model = exact()
    full = (PROMPTS[2] * 2)[:23]
    found = generate_batch(model, [full, PROMPTS[0]], sampling=Sampling(5), end_id=None)
    assert [len(row.ids) for row in found] == [1, 5]
    assert found[0].ids == recomputed(model, full, 1)
    with pytest.raises(ValueError, match=r"prompt 1 has 24 tokens.*context_length=24"):
        generate_batch(model, [PROMPTS[0], [*full, 1]], sampling=Sampling(1), end_id=None)


# --- streaming ---


def test_tokens_are_told_as_they_come_row_by_row_and_a_row_can_be_ended_from_outside():
    model = exact()
    plain = generate_batch(model, PROMPTS[:2], sampling=Sampling(10), end_id=None)
    told: list[tuple[int, int]] = []

    def hear(row: int, token: int) -> bool:
        told.append((row, token))
        return not (row == 1 and sum(r == 1 for r, _ in told) == 3)

    found = generate_batch(model, PROMPTS[:2], sampling=Sampling(10), end_id=None, on_token=hear)
    assert [row for row, _ in told] == [0, 1] * 3 + [0] * 7
    assert found[0] == plain[0]
    assert (found[1].ids, found[1].finish_reason) == (plain[1].ids[:3], "cancelled")
    assert [token for row, token in told if row == 0] == plain[0].ids


def test_the_end_token_is_neither_kept_nor_told():
    model = exact()
    free = generate_batch(model, [PROMPTS[0]], sampling=Sampling(10), end_id=None)[0].ids
    end = next(token for token in free[1:] if token != free[0])
    told: list[int] = []
    found = generate_batch(
        model, [PROMPTS[0]], sampling=Sampling(10), end_id=end, on_token=lambda _, token: told.append(token)
    )
    assert found[0].ids == told == free[: free.index(end)]
    assert found[0].finish_reason == "stop"


# --- constraints ---


@dataclass(frozen=True)
class Words:
    """One of the given sequences, then the end; the state is what has been written."""

    sequences: tuple[tuple[int, ...], ...]
    end_id: int

    def start(self) -> tuple[int, ...]:
        return ()

    def allowed(self, state: tuple[int, ...]) -> list[int]:
        fitting = [word for word in self.sequences if word[: len(state)] == state]
        return sorted({word[len(state)] if len(word) > len(state) else self.end_id for word in fitting})

    def advance(self, state: tuple[int, ...], token: int) -> tuple[int, ...]:
        return (*state, token)


@torch.no_grad()
def best_word(model: Transformer, prompt: list[int], words: Words) -> list[int]:
    """Greedy among what is allowed, recomputed without a cache."""
    written: tuple[int, ...] = ()
    while True:
        logits = model(torch.tensor([[*prompt, *written]]))[0, -1]
        token = max(words.allowed(written), key=lambda token: float(logits[token]))
        if token == words.end_id:
            return list(written)
        written = (*written, token)


def test_constrained_rows_write_only_what_is_allowed_beside_free_ones():
    model = exact()
    words = Words(((4,), (4, 5), (6, 7, 8), (6, 9)), 0)
    constraints = [words, None, words, Words(((12, 13, 14),), 0), words]
    found = generate_batch(model, PROMPTS, sampling=Sampling(6), end_id=0, constraints=constraints)
    for prompt, row, constraint in zip(PROMPTS, found, constraints, strict=True):
        if constraint is None:
            assert row.ids == recomputed(model, prompt, 6, end_id=0)
        else:
            assert row.ids == best_word(model, prompt, constraint)
            assert row.finish_reason == "stop"


@pytest.mark.parametrize("temperature", [0.0, 3.0])
def test_a_sampled_constrained_row_stays_inside_and_uses_all_of_it(temperature):
    model, words = exact(), Words(((4,), (5,), (6, 7)), 0)
    samplings = [Sampling(6, temperature=temperature, repetition_penalty=3.0, seed=seed) for seed in range(60)]
    found = generate_batch(model, [PROMPTS[0]] * 60, sampling=samplings, end_id=0, constraints=[words] * 60)
    assert {tuple(row.ids) for row in found} <= set(words.sequences)
    assert len({tuple(row.ids) for row in found}) == (3 if temperature else 1)


def test_where_only_the_end_is_left_no_further_step_is_run():
    model, steps = exact(), []
    model.final_norm.register_forward_hook(lambda *_: steps.append(1))
    found = generate_batch(model, [[3, 1]], sampling=Sampling(9), end_id=0, constraints=[Words(((4,), (5,)), 0)])
    assert found[0].finish_reason == "stop"
    assert len(steps) == 1


def test_a_constraint_with_a_dead_end_or_foreign_ids_is_refused_by_name():
    model = exact()

    class Dead(Words):
        def allowed(self, state: tuple[int, ...]) -> list[int]:
            return [] if state else [4]

    with pytest.raises(ValueError, match=r"row 0 allows no token after \[4\]"):
        generate_batch(model, [[1]], sampling=Sampling(3), end_id=0, constraints=[Dead(((4,),), 0)])
    for foreign in (30, -1):
        with pytest.raises(ValueError, match="the network knows 0 to 29"):
            generate_batch(model, [[1]], sampling=Sampling(3), end_id=0, constraints=[Words(((foreign, 2),), 0)])


# --- refusals ---


def test_bad_prompts_and_unequal_counts_are_refused_by_name():
    model = build()
    for prompts, named in (([[1], []], "prompt 1.*no tokens"), ([[1, 30]], "prompt 0 has token id 30"), ([[-1]], "-1")):
        with pytest.raises(ValueError, match=named):
            generate_batch(model, prompts, sampling=Sampling(3), end_id=None)
    with pytest.raises(ValueError, match="1 sampling for 2 prompts"):
        generate_batch(model, [[1], [2]], sampling=[Sampling(3)], end_id=None)
    with pytest.raises(ValueError, match="1 constraints for 2 prompts"):
        generate_batch(model, [[1], [2]], sampling=Sampling(3), end_id=None, constraints=[None])
    assert generate_batch(model, [], sampling=Sampling(3), end_id=None) == []


@pytest.mark.parametrize(
    "change",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": 2.5},
        {"max_new_tokens": True},
        {"temperature": math.inf},
        {"top_p": math.nan},
        {"top_p": "0.9"},
        {"repetition_penalty": -1.0},
        {"seed": -1},
        {"seed": 0.5},
    ],
    ids=str,
)
def test_each_sampling_setting_is_refused_by_name(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))}="):
        Sampling(**{"max_new_tokens": 3, **change})


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_weights_that_are_not_numbers_are_refused_not_written_down(temperature):
    model = build()
    with torch.no_grad():
        model.head.weight[5] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        generate_batch(model, PROMPTS, sampling=Sampling(3, temperature=temperature), end_id=None)


@pytest.mark.parametrize("temperature", [1e-320, 1e-30, 1e30])
def test_extreme_temperatures_are_greedy_or_uniform(temperature):
    model = exact()
    samplings = [Sampling(2, temperature=temperature, seed=seed) for seed in range(40)]
    found = {tuple(row.ids) for row in generate_batch(model, [PROMPTS[0]] * 40, sampling=samplings, end_id=None)}
    assert (found == {tuple(recomputed(model, PROMPTS[0], 2))}) if temperature < 1 else (len(found) > 30)


# --- parts ---


@pytest.mark.parametrize("top_p", [0.05, 0.6, 0.97])
@pytest.mark.parametrize("sharpness", [0.1, 4.0])  # flat: far more than 64 tokens hold it; peaked: a few
def test_the_nucleus_is_that_of_a_plain_sort(top_p, sharpness):
    generator = torch.Generator().manual_seed(0)
    probabilities = (torch.randn(3, 500, generator=generator).double() * sharpness).softmax(dim=-1)
    found = nucleus(probabilities, torch.full((3, 1), top_p, dtype=torch.float64))
    for row, kept in zip(probabilities.tolist(), found.tolist(), strict=True):
        expected, mass = [0.0] * 500, 0.0
        for token in sorted(range(500), key=lambda token: -row[token]):
            if mass >= top_p - 1e-12:
                break
            expected[token], mass = row[token], mass + row[token]
        assert kept == pytest.approx(expected, abs=0)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_one_query_over_many_keys_is_the_same_in_sdpa_and_eager(groups):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3, 4, 1, 8, generator=generator).double()
    key, value = (torch.randn(3, groups, 13, 8, generator=generator).double() for _ in range(2))
    visible = (torch.arange(13) >= torch.tensor([[0], [4], [12]]))[:, None, None]
    for mask in (None, visible):
        ours, expected = (attend(query, key, value, backend=name, mask=mask)[0] for name in ("sdpa", "eager"))
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_packed_products_are_the_plain_ones_and_leave_nothing_behind(dtype):
    model = build(vocab_size=40_000).to(dtype)
    x = torch.randn(3, 2, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    with packed_weights(model):
        assert model.head.packed is not None
        plain, ours = F.linear(x, model.head.weight), packed_linear(x, model.head.packed)
        torch.testing.assert_close(ours, plain, rtol=0, atol=0 if dtype == torch.bfloat16 else 1e-5)
        with packed_weights(model):
            pass
        assert model.head.packed is not None  # the outer one still holds
        loss = model(torch.tensor([[1, 2]])).float().sum()
        assert torch.autograd.grad(loss, model.head.weight)[0].abs().sum() > 0  # gradients take the plain product
    assert not [module for module in model.modules() if getattr(module, "packed", None) is not None]


def test_generating_between_updates_follows_the_weights():
    model = build(vocab_size=40_000)
    before = generate_batch(model, [PROMPTS[0]] * 20, sampling=Sampling(19), end_id=None)[0].ids
    with torch.no_grad():
        model.head.weight.copy_(model.head.weight.flip(0))
    after = generate_batch(model, [PROMPTS[0]] * 20, sampling=Sampling(19), end_id=None)[0].ids
    assert after[0] == 39_999 - before[0]


def test_a_network_packed_for_good_answers_alike_and_stays_packed():
    model = build(vocab_size=40_000)
    before = generate_batch(model, PROMPTS[:2], sampling=Sampling(9), end_id=None)
    assert model.head.packed is None
    assert pack_weights(model) == [model.head]  # the others are too small to gain by it
    assert pack_weights(model) == []
    assert generate_batch(model, PROMPTS[:2], sampling=Sampling(9), end_id=None) == before
    assert model.head.packed is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_in_half_precision_the_tokens_are_likely_ones_in_every_row(dtype):
    model = build()
    found = generate_batch(build().to(dtype), PROMPTS, sampling=Sampling(4), end_id=None)
    for prompt, row in zip(PROMPTS, found, strict=True):
        for place, token in enumerate(row.ids):
            with torch.no_grad():
                logits = model(torch.tensor([prompt + row.ids[:place]]))[0, -1]
            assert float(logits.max() - logits[token]) < 0.05 * float(logits.std()) + 0.1
