"""NEFTune's noise: the paper's formula, per conversation, in training alone, the same at the same step."""

import math
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY_SHAPE
from hypothesis import given, settings
from hypothesis import strategies as st

from ncvc.model.neftune import conversation_lengths, neftune_noise
from ncvc.model.transformer import ModelConfig, Transformer

SEED = (3, 14, 1, 0)


def plain_lengths(row: list[int], real: int) -> list[int]:
    """One row by hand: how many real positions have the document of this position, in one stretch."""
    found = []
    for place, document in enumerate(row):
        first = last = place
        while first > 0 and row[first - 1] == document:
            first -= 1
        while last + 1 < len(row) and row[last + 1] == document:
            last += 1
        found.append(sum(1 for p in range(first, last + 1) if p < real) if place < real else 0)
    return found


@given(
    st.lists(st.tuples(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 9)), min_size=1, max_size=5)
)
@settings(max_examples=100, deadline=None)
def test_lengths_of_packed_rows_are_those_counted_by_hand(rows):
    width = max(sum(lengths) + padding for lengths, padding in rows)
    documents, real = [], []
    for lengths, _ in rows:
        row = [number for number, length in enumerate(lengths) for _ in range(length)]
        real.append(len(row))
        documents.append(row + [len(lengths)] * (width - len(row)))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    found = conversation_lengths(ids, document_ids=torch.tensor(documents), lengths=torch.tensor(real))
    assert found.tolist() == [plain_lengths(row, count) for row, count in zip(documents, real, strict=True)]


def test_rows_that_begin_with_the_number_the_row_before_ended_with_are_apart():
    documents = torch.tensor([[0, 0, 0], [0, 1, 1]])
    assert conversation_lengths(torch.zeros(2, 3), document_ids=documents).tolist() == [[3, 3, 3], [1, 2, 2]]


def test_padding_of_rows_with_one_conversation_does_not_count():
    found = conversation_lengths(torch.zeros(2, 4), lengths=torch.tensor([3, 4]))
    assert found.tolist() == [[3, 3, 3, 0], [4, 4, 4, 4]]
    assert conversation_lengths(torch.zeros(1, 4)).tolist() == [[4, 4, 4, 4]]  # plain text


def test_noise_is_alpha_over_root_of_length_times_width_and_zero_on_padding():
    lengths, width, alpha = torch.tensor([[3, 3, 3, 0], [100] * 4]), 64, 5.0
    noise = neftune_noise(lengths, hidden_size=width, alpha=alpha, seed=SEED).double()
    assert noise.shape == (2, 4, width)
    assert not noise[0, 3].any()
    for row, length in ((noise[0, :3], 3), (noise[1], 100)):
        bound = alpha / math.sqrt(length * width)  # Jain et al. 2023, section 2
        unit = row / bound
        assert unit.abs().max() <= 1 + 1e-6
        assert unit.abs().max() > 0.95
        assert unit.std().item() == pytest.approx(1 / math.sqrt(3), rel=0.1)  # of a uniform draw on (-1, 1)
        assert abs(unit.mean().item()) < 0.1
    uniform = noise[1] * math.sqrt(100 * width) / alpha
    again = neftune_noise(torch.full((2, 4), 7), hidden_size=width, alpha=2.0, seed=SEED).double()[1]
    torch.testing.assert_close(again, uniform * 2.0 / math.sqrt(7 * width), rtol=1e-6, atol=1e-9)


def test_noise_is_a_function_of_every_part_of_its_seed_and_of_nothing_else():
    lengths = torch.full((2, 5), 5)

    def draw(*seed: int) -> torch.Tensor:
        return neftune_noise(lengths, hidden_size=8, alpha=5.0, seed=seed)

    torch.manual_seed(0)
    first, state = draw(1, 2, 3, 4), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(draw(1, 2, 3, 4), first)
    for other in ((2, 2, 3, 4), (1, 3, 3, 4), (1, 2, 4, 4), (1, 2, 3, 5)):
        assert not torch.equal(draw(*other), first)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)  # dropout's stream did not move


@torch.no_grad()
def test_the_network_adds_noise_after_the_scaled_embedding():
    config = ModelConfig(vocab_size=50, context_length=8, **TINY_SHAPE)
    network = Transformer(config, seed=1).double().eval()
    ids = torch.arange(8)[None]
    noise = torch.randn(1, 8, config.hidden_size, dtype=torch.float64)
    seen = {}
    handle = network.layers[0].register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0]))
    network.hidden_states(ids, noise=noise)
    handle.remove()
    expected = network.embedding.weight[ids] * math.sqrt(config.hidden_size) + noise
    torch.testing.assert_close(seen["x"], expected, rtol=0, atol=0)


def module_with(alpha, monkeypatch):
    from functools import partial

    from lit_modules.causal_lm import CausalLM
    from ncvc.model.optimization import adamw, warmup_cosine
    from ncvc.model.stability import StabilitySettings

    module = CausalLM(
        model=ModelConfig(vocab_size=50, context_length=8, residual_dropout=0.1, **TINY_SHAPE),
        optimizer=partial(adamw, learning_rate=1e-3, betas=(0.9, 0.95), weight_decay=0.0),
        schedule=partial(warmup_cosine, warmup_steps=1, total_steps=10),
        stability=StabilitySettings(level="record"),
        neftune_alpha=alpha,
    )
    trainer = SimpleNamespace(world_size=1, accumulate_grad_batches=2, global_step=4, global_rank=0)
    monkeypatch.setattr(type(module), "trainer", trainer)
    monkeypatch.setattr(type(module), "global_rank", 0)
    return module.train()


def batch_of(lengths: list[int]) -> dict:
    ids = torch.arange(len(lengths) * 8).view(len(lengths), 8) % 50
    labels = torch.where(torch.arange(8) < torch.tensor(lengths)[:, None], ids.roll(-1), -100)
    return {"input_ids": ids, "labels": labels, "lengths": torch.tensor(lengths), "target_tokens": 10, "checksum": 0}


def test_a_training_step_has_the_noise_of_its_step_and_evaluation_has_none(monkeypatch):
    noisy, batch = module_with(5.0, monkeypatch), batch_of([8, 5])
    first, second = noisy.training_step(batch, 8), noisy.training_step(batch, 8)
    assert first == second
    assert noisy.training_step(batch, 9) != first  # another micro-step
    plain = module_with(None, monkeypatch)
    plain.load_state_dict(noisy.state_dict())
    assert plain.training_step(batch, 8) != first
    noisy._held_out, plain._held_out = torch.zeros(3).double(), torch.zeros(3).double()
    noisy.character_counts = plain.character_counts = torch.ones(50, dtype=torch.int32)
    for module in (noisy.eval(), plain.eval()):
        module.validation_step(batch, 0)
    assert torch.equal(noisy._held_out, plain._held_out)


def test_the_noise_does_not_move_dropout(monkeypatch):
    """With a strength that vanishes in rounding, the loss with noise is bit for bit the loss without."""
    batch = batch_of([8, 8])
    noisy, plain = module_with(1e-30, monkeypatch), module_with(None, monkeypatch)
    plain.load_state_dict(noisy.state_dict())
    assert noisy.training_step(batch, 0) == plain.training_step(batch, 0)


@pytest.mark.parametrize("alpha", [0.0, -5.0, math.inf, math.nan])
def test_a_strength_that_cannot_be_is_refused_by_name(alpha, monkeypatch):
    with pytest.raises(ValueError, match=r"module\.neftune_alpha"):
        module_with(alpha, monkeypatch)
