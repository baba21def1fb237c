"""The chunked cross entropy against ``F.cross_entropy``: value, gradients, precision, what it never holds."""

import pytest
import torch
import torch.nn.functional as F
from conftest import Largest

from ncvc.model.loss import IGNORE, linear_cross_entropy, token_cross_entropy
from ncvc.model.transformer import ModelConfig, Transformer


def inputs(rows: int = 23, width: int = 12, vocab: int = 37, *, dtype=torch.float32, ignored: int = 4):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(vocab, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    labels = torch.randint(0, vocab, (rows,), generator=generator)
    labels[torch.randperm(rows, generator=generator)[:ignored]] = IGNORE
    return hidden, weight, labels


def plain(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = F.linear(hidden, weight)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")


def with_gradients(function, hidden, weight, labels, *, factor: float = 1.0, **arguments) -> list[torch.Tensor]:
    loss = function(hidden, weight, labels, **arguments)
    return [loss.detach(), *torch.autograd.grad(loss * factor, (hidden, weight))]


@pytest.mark.parametrize("chunk_size", [1, 5, 8, 23, 1024])
@pytest.mark.parametrize("ignored", [0, 4])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_value_and_both_gradients_equal_cross_entropy_of_the_logits(dtype, tolerance, ignored, chunk_size):
    expected = with_gradients(plain, *inputs(dtype=dtype, ignored=ignored), factor=0.37)
    result = with_gradients(
        linear_cross_entropy, *inputs(dtype=dtype, ignored=ignored), factor=0.37, chunk_size=chunk_size
    )
    for ours, wanted in zip(result, expected, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, wanted, rtol=10 * tolerance, atol=10 * tolerance)


def test_gradients_equal_finite_differences():
    hidden, weight, labels = inputs(7, 4, 5, dtype=torch.float64, ignored=2)
    assert torch.autograd.gradcheck(
        lambda hidden, weight: linear_cross_entropy(hidden, weight, labels, chunk_size=3), (hidden, weight)
    )


def test_a_second_derivative_is_refused_not_wrong():
    hidden, weight, labels = inputs(7, 4, 5, dtype=torch.float64)
    loss = linear_cross_entropy(hidden, weight, labels)
    (gradient,) = torch.autograd.grad(loss.square(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_a_frozen_side_gets_no_gradient_and_the_other_the_same_one(frozen):
    hidden, weight, labels = inputs()
    expected = dict(zip(("hidden", "weight"), with_gradients(plain, *inputs())[1:], strict=True))
    tensors = {"hidden": hidden, "weight": weight}
    tensors[frozen].requires_grad_(False)
    linear_cross_entropy(hidden, weight, labels, chunk_size=5).backward()
    other = "weight" if frozen == "hidden" else "hidden"
    assert tensors[frozen].grad is None
    torch.testing.assert_close(tensors[other].grad, expected[other], rtol=1e-5, atol=1e-5)


def test_a_batch_without_any_label_has_loss_and_gradients_exactly_zero():
    result = with_gradients(linear_cross_entropy, *inputs(ignored=23), chunk_size=5)
    assert not any(tensor.any() for tensor in result)
    assert not token_cross_entropy(*inputs(ignored=23), chunk_size=5).any()


def test_logits_of_any_size_give_no_overflow():
    hidden, weight, labels = inputs(ignored=0)
    value, *gradients = with_gradients(linear_cross_entropy, hidden * 1e4, weight, labels, chunk_size=5)
    expected, *wanted = with_gradients(plain, hidden * 1e4, weight, labels)
    torch.testing.assert_close(value, expected)
    for ours, theirs in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("chunk_size", [1, 5, 1024])
def test_losses_per_token_equal_cross_entropy_and_carry_no_gradient(dtype, chunk_size):
    hidden, weight, labels = inputs(dtype=dtype)
    losses = token_cross_entropy(hidden, weight, labels, chunk_size=chunk_size)
    expected = F.cross_entropy(hidden @ weight.T, labels, ignore_index=IGNORE, reduction="none").detach()
    assert losses.dtype == torch.float32 and not losses.requires_grad
    assert not losses[labels == IGNORE].any() and losses[labels != IGNORE].all()
    torch.testing.assert_close(losses, expected.float(), rtol=1e-5, atol=1e-5)


# --- half precision ---


def relative_error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return float((ours.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("weights", ["fp32", "bf16"])
def test_in_bf16_the_gradients_are_as_exact_as_those_of_cross_entropy(weights):
    """fp32 weights under autocast, and bf16 weights as DeepSpeed holds them; 64 chunks."""
    stored = torch.bfloat16 if weights == "bf16" else torch.float32
    hidden, weight, labels = inputs(2048, 32, 256, dtype=stored)
    exact_inputs = [tensor.detach().bfloat16().double().requires_grad_() for tensor in (hidden, weight)]
    exact = with_gradients(plain, *exact_inputs, labels, factor=1 / 3)
    with torch.autocast("cpu", torch.bfloat16, enabled=weights == "fp32"):
        ours = with_gradients(linear_cross_entropy, hidden, weight, labels, factor=1 / 3, chunk_size=32)
        theirs = with_gradients(plain, hidden, weight, labels, factor=1 / 3)
        per_token = token_cross_entropy(hidden, weight, labels, chunk_size=32)
    assert ours[0].dtype == torch.float32 and ours[1].dtype == ours[2].dtype == stored
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(per_token.sum(), theirs[0], rtol=1e-5, atol=0)
    for index in (1, 2):
        assert relative_error(ours[index], exact[index]) <= 1.25 * relative_error(theirs[index], exact[index])


# --- memory ---


@pytest.mark.parametrize("autocast", [False, True])
def test_no_tensor_of_rows_times_vocabulary_is_ever_made(autocast):
    rows, width, vocab, chunk = 96, 8, 300, 16
    hidden, weight, labels = inputs(rows, width, vocab)
    with Largest() as seen, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        linear_cross_entropy(hidden, weight, labels, chunk_size=chunk).backward()
        token_cross_entropy(hidden, weight, labels, chunk_size=chunk)
    assert seen.elements == chunk * vocab  # one chunk of logits; the next is the head's gradient, 300 x 8
    with Largest() as seen:  # the same instrument does see them where they are made
        plain(hidden, weight, labels).backward()
    assert seen.elements == rows * vocab


def test_training_the_network_holds_one_chunk_of_logits():
    config = ModelConfig(
        vocab_size=2000,
        hidden_size=8,
        intermediate_size=16,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        context_length=512,
    )
    model = Transformer(config)
    ids = torch.arange(4 * 512).view(4, 512) % 2000
    with Largest() as seen:
        model.loss(ids, ids).backward()
        model.token_losses(ids, ids)
    assert seen.elements == 1024 * 2000 < ids.numel() * 2000


# --- bad input ---


def test_labels_that_do_not_fit_are_refused():
    hidden, weight, labels = inputs()
    for wrong in (labels[:-1], torch.cat((labels, labels)), labels[:1]):
        with pytest.raises((ValueError, RuntimeError)):
            linear_cross_entropy(hidden, weight, wrong, chunk_size=1)
        with pytest.raises((ValueError, RuntimeError)):
            token_cross_entropy(hidden, weight, wrong, chunk_size=1)
    beyond = labels.clone()
    beyond[0] = 37
    with pytest.raises((IndexError, RuntimeError)):
        linear_cross_entropy(hidden, weight, beyond)
