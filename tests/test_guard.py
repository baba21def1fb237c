"""The guard between gradient and update: clipping as PyTorch's, verdicts without waiting, updates left out whole."""

import math

import pytest
import torch
from conftest import REPORT
from torch.utils._python_dispatch import TorchDispatchMode

from lit_modules.guard import UpdateGuard, layer_of
from ncvc.model.probe import compare_probes, probe
from ncvc.model.stability import StabilitySettings
from ncvc.model.transformer import ModelConfig, Transformer

SMALL = REPORT | {
    "vocab_size": 128, "hidden_size": 16, "intermediate_size": 32, "num_layers": 3, "num_heads": 2, "num_kv_heads": 1,
    "head_dim": 8, "context_length": 16,
}  # fmt: skip


@pytest.fixture
def network() -> Transformer:
    return Transformer(ModelConfig(**SMALL), seed=0)


def guarded(network: Transformer, *, level: str = "record") -> tuple[UpdateGuard, torch.optim.AdamW]:
    guard = UpdateGuard(StabilitySettings(level=level), network, vocab_size=128)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, fused=True)
    guard.attach(optimizer, torch.device("cpu"))
    return guard, optimizer


def backward(network: Transformer) -> torch.Tensor:
    ids = torch.randint(0, 128, (2, 17), generator=torch.Generator().manual_seed(1))
    loss = network.loss(ids[:, :-1], ids[:, 1:]) / 32
    loss.backward()
    return loss.detach().double()


def judge(guard: UpdateGuard, network: Transformer, loss: torch.Tensor, *, clip: float | None) -> torch.Tensor:
    parameters = list(network.parameters())
    gradients = [parameter.grad for parameter in parameters]
    return guard.before_update(gradients, parameters, step=1, loss=loss, checksum=7, partial=False, clip=clip)


@pytest.mark.parametrize("clip", [0.05, 1e6, None])
def test_it_clips_as_pytorch_does_and_tells_the_norm_before(network, clip):
    guard, _ = guarded(network)
    loss = backward(network)
    twin = [parameter.grad.clone() for parameter in network.parameters()]
    norm = judge(guard, network, loss, clip=clip)
    for parameter, gradient in zip(network.parameters(), twin, strict=True):
        holder = torch.nn.Parameter(torch.empty_like(gradient))
        holder.grad = gradient
        parameter.twin = holder
    twins = [parameter.twin for parameter in network.parameters()]
    expected = torch.nn.utils.clip_grad_norm_(twins, math.inf if clip is None else clip)
    torch.testing.assert_close(norm, expected)
    for parameter in network.parameters():
        torch.testing.assert_close(parameter.grad, parameter.twin.grad)


def test_the_norm_of_each_layer_is_that_of_its_parameters(network):
    guard, _ = guarded(network)
    judge(guard, network, backward(network), clip=None)
    guard.collect()
    (figures,) = guard.since(0)
    for layer in ("embedding", "layers.0", "layers.1", "layers.2", "final_norm", "head"):
        squares = [p.grad.double().square().sum() for name, p in network.named_parameters() if layer_of(name) == layer]
        assert figures.layer_norms[layer] == pytest.approx(float(sum(squares)) ** 0.5, rel=1e-6)
    assert (figures.step, figures.checksum, figures.stop) == (1, 7, False)


class NothingReadsTheDevice(TorchDispatchMode):
    """Fails where a value would travel to the host, or a shape depend on values."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function not in (
            torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default,
            torch.ops.aten.masked_select.default, torch.ops.aten.equal.default, torch.ops.aten.is_nonzero.default,
        ), function  # fmt: skip
        return function(*args, **(kwargs or {}))


def test_a_step_is_judged_without_reading_anything_from_the_device(network):
    guard, _ = guarded(network, level="skip")
    loss = backward(network)
    with NothingReadsTheDevice():
        judge(guard, network, loss, clip=1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_an_update_that_is_not_finite_leaves_weights_moments_and_counter_as_they_were(network, bad, where):
    guard, optimizer = guarded(network)
    judge(guard, network, backward(network), clip=1.0)
    optimizer.step()
    before = [parameter.detach().clone() for parameter in network.parameters()]
    moments = [{name: value.clone() for name, value in state.items()} for state in optimizer.state.values()]
    optimizer.zero_grad()
    loss = backward(network)
    if where == "gradient":
        network.head.weight.grad[0, 0] = bad
    judge(guard, network, loss * bad if where == "loss" else loss, clip=1.0)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    for kept, state in zip(moments, optimizer.state.values(), strict=True):
        assert all(torch.equal(kept[name], state[name]) for name in kept)
    optimizer.zero_grad()
    judge(guard, network, backward(network), clip=1.0)
    optimizer.step()
    assert not torch.equal(before[0], next(network.parameters()))


def test_an_optimizer_that_cannot_leave_an_update_out_is_refused_by_name(network):
    guard = UpdateGuard(StabilitySettings(level="record"), network, vocab_size=128)
    with pytest.raises(ValueError, match=r"AdamW as configured.*set optimizer\.fused=true"):
        guard.attach(torch.optim.AdamW(network.parameters(), fused=False), torch.device("cpu"))


def test_the_probe_draws_nothing_and_tells_other_weights_apart(network):
    state = torch.get_rng_state()
    first = probe(network, context=torch.no_grad())
    assert torch.equal(state, torch.get_rng_state())
    assert "bit for bit" in compare_probes(first, probe(network, context=torch.no_grad()), where="here")
    with torch.no_grad():
        network.head.weight[5] += 1e-5
    near = probe(network, context=torch.no_grad())
    assert "other machine" in compare_probes(first, near, where="here")
    with torch.no_grad():
        network.layers[1].mlp.down.weight.neg_()
    with pytest.raises(ValueError, match="here: the loaded network does not compute what the saved one did"):
        compare_probes(first, probe(network, context=torch.no_grad()), where="here")


def test_the_probes_losses_are_cross_entropies_of_its_row(network):
    ids = torch.arange(17) * 7919 % 128
    network.eval()
    logits = network(ids[None, :-1])
    expected = torch.nn.functional.cross_entropy(logits[0], ids[1:], reduction="none")
    torch.testing.assert_close(torch.tensor(probe(network, context=torch.no_grad())["losses"]), expected)
