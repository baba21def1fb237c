"""Log-likelihoods of options and sequences against one full pass per option in fp64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_generation import build

from ncvc.model.scoring import score_options, sequence_log_likelihoods
from ncvc.model.transformer import Transformer


def exact(seed: int = 0, **changes) -> Transformer:
    return build(seed, **changes).double()


@torch.no_grad()
def one_by_one(model: Transformer, prompt: list[int], option: list[int]) -> float:
    logits = model(torch.tensor([[*prompt, *option[:-1]]]))[0]
    return sum(float(logits[len(prompt) - 1 + place].log_softmax(dim=-1)[token]) for place, token in enumerate(option))


def assert_equal_to_one_by_one(model: Transformer, items: list, **arguments) -> None:
    found = score_options(model, items, **arguments)
    assert [len(scores) for scores in found] == [len(options) for _, options in items]
    for (prompt, options), scores in zip(items, found, strict=True):
        assert scores == pytest.approx([one_by_one(model, prompt, option) for option in options], abs=1e-10)


few = st.integers(0, 2)  # few different tokens, so that options share beginnings
items_strategy = st.lists(
    st.tuples(
        st.lists(st.integers(0, 29), min_size=1, max_size=12),
        st.lists(st.lists(few, min_size=1, max_size=6), min_size=1, max_size=6),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(items=items_strategy, shared=st.sampled_from([0, 5, 16, 20]), limit=st.sampled_from([1, 30, 4096]))
def test_options_have_the_likelihood_of_a_pass_of_their_own_however_they_share(items, shared, limit):
    model = exact(context_length=40)
    ahead = [(7 * place + 3) % 30 for place in range(shared)]
    items = [([*ahead, *prompt], options) for prompt, options in items]
    assert_equal_to_one_by_one(model, items, max_tokens_per_pass=limit)


@pytest.mark.parametrize(
    "changes", [{"num_kv_heads": 1}, {"qk_norm": True, "init": "wesar"}, {"attention_backend": "eager"}], ids=str
)
def test_every_shape_of_network_scores_alike(changes):
    items = [([1, 2, 3], [[4, 5, 6], [4, 5, 7, 8], [4], [9, 9]]), ([5], [[6, 7]])]
    assert_equal_to_one_by_one(exact(**changes), items)


def test_the_likelihoods_of_all_single_tokens_add_up_to_one():
    scores = score_options(exact(), [([3, 1, 4], [[token] for token in range(30)])])[0]
    assert sum(map(math.exp, scores)) == pytest.approx(1.0, abs=1e-12)


def test_more_options_than_the_context_has_places_fit_as_long_as_each_does():
    items = [(list(range(20)), [[token, token, token, token, 1] for token in range(10)])]  # 60 places, context 24
    assert_equal_to_one_by_one(exact(), items)


def test_an_option_may_end_one_beyond_the_context_and_not_two():
    model, prompt = exact(), list(range(20))
    assert_equal_to_one_by_one(model, [(prompt, [[1, 2, 3, 4, 5], [6]])])
    with pytest.raises(ValueError, match=r"option 1 of item 0 has 6 tokens after a prompt of 20.*context_length=24"):
        score_options(model, [(prompt, [[6], [1, 2, 3, 4, 5, 6]])])


def test_prompts_that_are_all_the_same_and_options_that_repeat_keep_their_places():
    prompt = [(5 * place) % 30 for place in range(18)]
    assert_equal_to_one_by_one(exact(), [(prompt, [[1, 2], [1, 2], [1]]), (prompt, [[1]]), (prompt, [[3, 3, 3]])])


def test_only_one_pass_is_run_for_items_of_like_length_and_the_shared_beginning_is_read_once():
    model, read = exact(context_length=64), []
    model.embedding.register_forward_hook(lambda module, inputs, output: read.append(tuple(inputs[0].shape)))
    ahead = [(7 * place + 3) % 30 for place in range(30)]
    items = [([*ahead, number, 1], [[2], [3], [4, 5]]) for number in range(8)]
    score_options(model, items)
    assert read == [(1, 30), (8, 3)]  # the beginning; two more of each prompt and the 4


@pytest.mark.parametrize(
    ("items", "named"),
    [
        ([([], [[1]])], "item 0 has an empty prompt"),
        ([([1], [[1]]), ([1], [])], "item 1 has no options"),
        ([([1], [[1], []])], "option 1 of item 0 is empty"),
        ([([30], [[1]])], "prompt of item 0 has token id 30"),
        ([([1], [[-4]])], "option 0 of item 0 has token id -4"),
        ([(list(range(25)), [[1]])], "does not fit model.context_length=24"),
    ],
    ids=str,
)
def test_what_cannot_be_scored_is_refused_by_name(items, named):
    with pytest.raises(ValueError, match=named):
        score_options(exact(), items)


def test_no_items_give_no_scores_and_a_pass_of_no_tokens_is_refused():
    assert score_options(exact(), []) == []
    with pytest.raises(ValueError, match="max_tokens_per_pass=0"):
        score_options(exact(), [([1], [[2]])], max_tokens_per_pass=0)


def test_weights_that_are_not_numbers_give_an_error_not_a_score():
    model = build()
    with torch.no_grad():
        model.layers[0].mlp.up.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        score_options(model, [([1], [[2]])])


def test_sequences_have_the_cross_entropy_of_their_own_pass():
    model = exact()
    sequences = [[3, 1, 4, 1, 5, 9], [2, 6], list(range(24)), [7] * 25]
    found = sequence_log_likelihoods(model, sequences)
    for sequence, value in zip(sequences, found, strict=True):
        ids = torch.tensor([sequence])
        with torch.no_grad():
            loss = torch.nn.functional.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:], reduction="sum")
        assert value == pytest.approx(-float(loss), abs=1e-10)
    with pytest.raises(ValueError, match="sequence 1 has 1 token"):
        sequence_log_likelihoods(model, [[1, 2], [3]])


def test_mode_and_gradients_are_left_alone_and_dropout_is_off():
    model = exact(attention_dropout=0.5, residual_dropout=0.5)
    expected = score_options(model, [([1, 2], [[3, 4], [5]])])
    model.train()
    assert score_options(model, [([1, 2], [[3, 4], [5]])]) == expected
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(ValueError, match="no options"):
        score_options(model, [([1], [])])
    assert model.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_lower_precision_scores_are_near_the_exact_ones(dtype):
    items = [([3, 1, 4, 1, 5], [[9, 2, 6], [5, 3], [5, 8]]), ([2], [[7], [1]])]
    near, truth = score_options(build().to(dtype), items), score_options(exact(), items)
    tolerance = 0.5 if dtype == torch.bfloat16 else 1e-4
    for scores, right in zip(near, truth, strict=True):
        assert scores == pytest.approx(right, abs=tolerance)
