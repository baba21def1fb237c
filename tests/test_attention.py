"""Attention backends against a plain loop in fp64: values, gradients, masks, maps, dropout, memory."""

import itertools
import math

import pytest
import torch
from conftest import Largest

from ncvc.model.attention import attend, causal_mask, document_mask, document_starts
from ncvc.model.blocked_attention import blocked_attention
from ncvc.model.transformer import ModelConfig, Transformer

BACKENDS = ("sdpa", "blocked", "eager")
# B, H, K, T, D: one token, MHA, GQA and MQA, odd lengths, more than one block of 128
SHAPES = [(1, 1, 1, 1, 2), (2, 4, 4, 7, 8), (1, 4, 2, 33, 8), (2, 6, 1, 19, 4), (1, 4, 2, 131, 8)]
cuda_only = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def inputs(shape: tuple[int, ...], *, dtype=torch.float64, seed: int = 0, device: str = "cpu"):
    """Query, key, value and an upstream gradient; the same numbers in every dtype, up to its rounding."""
    batch, heads, groups, length, width = shape
    generator = torch.Generator().manual_seed(seed)
    sizes = [(batch, count, length, width) for count in (heads, groups, groups, heads)]
    drawn = [torch.randn(size, generator=generator, dtype=torch.float64) * 1.5 for size in sizes]
    query, key, value, upstream = (tensor.to(device, dtype) for tensor in drawn)
    return [tensor.requires_grad_() for tensor in (query, key, value)], upstream


def plain_loop(query, key, value, *, visible=None) -> torch.Tensor:
    """Softmax attention one query at a time, the independent statement; ``visible(b, t)`` lists the keys."""
    batch, heads, length, width = query.shape
    group = heads // key.size(1)
    rows = []
    for b, h, t in itertools.product(range(batch), range(heads), range(length)):
        seen = list(range(t + 1)) if visible is None else visible(b, t)
        scores = key[b, h // group, seen] @ query[b, h, t] / math.sqrt(width)
        weights = scores.exp() / scores.exp().sum()
        rows.append(weights @ value[b, h // group, seen])
    return torch.stack(rows).view(batch, heads, length, width)


def with_gradients(function, tensors, upstream) -> list[torch.Tensor]:
    mixed = function(*tensors)
    return [mixed.detach(), *torch.autograd.grad(mixed, tensors, upstream)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
def test_backends_equal_a_plain_loop_in_value_and_gradients(backend, shape, dtype, tolerance):
    reference = with_gradients(plain_loop, *inputs(shape))
    result = with_gradients(lambda *qkv: attend(*qkv, backend=backend)[0], *inputs(shape, dtype=dtype))
    for ours, expected in zip(result, reference, strict=True):
        assert ours.dtype == dtype
        assert float((ours - expected).abs().max()) <= tolerance * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("block", [1, 5, 16, 33, 64])
def test_the_block_size_never_shows(block):
    reference = with_gradients(plain_loop, *inputs(SHAPES[2]))
    result = with_gradients(lambda *qkv: blocked_attention(*qkv, block=block), *inputs(SHAPES[2]))
    for ours, expected in zip(result, reference, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def rounding(backend: str, shape, device: str = "cpu", **arguments) -> list[float]:
    """RMS error of a backend in bf16 (value and three gradients) against fp64 on the same numbers."""
    tensors, upstream = inputs(shape, dtype=torch.bfloat16, device=device)
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    run = lambda name: lambda *qkv: attend(*qkv, backend=name, **arguments)[0]  # noqa: E731
    expected = with_gradients(run("sdpa"), exact, upstream.double())
    result = with_gradients(run(backend), tensors, upstream)
    return [
        float((ours.double() - wanted).square().mean().sqrt()) for ours, wanted in zip(result, expected, strict=True)
    ]


@pytest.mark.parametrize("shape", [*SHAPES[1:], (2, 4, 2, 256, 64)])
@pytest.mark.parametrize(("backend", "factor"), [("eager", 1.25), ("blocked", 4.5)])
def test_rounding_in_bf16_stays_within_a_known_multiple_of_sdpas(backend, factor, shape):
    """Against fp64: eager keeps fp32 inside as SDPA does; blocked rounds its scores (measured 1.0 to 4.0)."""
    for ours, theirs in zip(rounding(backend, shape), rounding("sdpa", shape), strict=True):
        assert ours <= factor * theirs


@pytest.mark.gpu
@cuda_only
@pytest.mark.parametrize("shape", [(1, 4, 2, 33, 64), (2, 8, 2, 200, 64)])
@pytest.mark.parametrize("masked", [False, True])
def test_flash_strays_no_further_from_fp64_than_sdpa(shape, masked):
    pytest.importorskip("flash_attn")
    ids = None
    if masked:
        ids = (torch.arange(shape[3], device="cuda") // 13).expand(shape[0], -1)
    flash, sdpa = (rounding(name, shape, "cuda", document_ids=ids) for name in ("flash", "sdpa"))
    for ours, theirs in zip(flash, sdpa, strict=True):
        assert ours <= 1.25 * theirs + 2**-12


# --- masks ---


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_later_token_cannot_change_an_earlier_one(backend):
    (query, key, value), _ = inputs((1, 4, 2, 140, 8), dtype=torch.float32)
    before = attend(query, key, value, backend=backend)[0]
    other_key, other_value = key.detach().clone(), value.detach().clone()
    other_key[:, :, 90:] = 50.0
    other_value[:, :, 90:] = 50.0
    after = attend(query, other_key, other_value, backend=backend)[0]
    assert torch.equal(before[:, :, :90], after[:, :, :90])
    assert not torch.allclose(before[:, :, 90:], after[:, :, 90:])


DOCUMENTS = torch.tensor([[0] * 1 + [1] * 9 + [2] * 3 + [3] * 6, [4] * 19])


@pytest.mark.parametrize("backend", BACKENDS)
def test_documents_equal_a_plain_loop_over_each_document(backend):
    def visible(b: int, t: int) -> list[int]:
        return [s for s in range(t + 1) if DOCUMENTS[b, s] == DOCUMENTS[b, t]]

    shape = (2, 6, 2, 19, 4)
    reference = with_gradients(lambda *qkv: plain_loop(*qkv, visible=visible), *inputs(shape))
    run = lambda *qkv: attend(*qkv, backend=backend, document_ids=DOCUMENTS)[0]  # noqa: E731
    for ours, expected in zip(with_gradients(run, *inputs(shape)), reference, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def test_document_mask_and_starts_equal_plain_loops():
    mask = document_mask(DOCUMENTS)
    assert mask.shape == (2, 1, 19, 19)
    for b, t, s in itertools.product(range(2), range(19), range(19)):
        assert bool(mask[b, 0, t, s]) == (s <= t and DOCUMENTS[b, s] == DOCUMENTS[b, t])
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        rows, length = (int(torch.randint(1, 9, (), generator=generator)) for _ in range(2))
        ids = (torch.rand(rows, length, generator=generator) < 0.4).cumsum(dim=1)
        expected, longest = [], 0
        for b in range(rows):
            for t in range(length):
                if t == 0 or ids[b, t] != ids[b, t - 1]:
                    expected.append(b * length + t)
        expected.append(rows * length)
        longest = max(b - a for a, b in itertools.pairwise(expected))
        starts, found = document_starts(ids)
        assert (starts.tolist(), found, starts.dtype) == (expected, longest, torch.int32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_queries_at_the_end_of_more_keys_see_all_of_the_past(backend):
    (query, key, value), _ = inputs((2, 4, 2, 12, 8))
    whole = plain_loop(query, key, value)
    for last in (1, 5):
        part = attend(query[:, :, -last:], key, value, backend=backend)[0]
        torch.testing.assert_close(part, whole[:, :, -last:], rtol=1e-12, atol=1e-12)
    assert causal_mask(2, 4, device=torch.device("cpu")).tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


# --- maps ---


@pytest.mark.parametrize("documents", [None, DOCUMENTS])
def test_maps_are_the_probabilities_rows_sum_to_1_and_nothing_is_above_the_diagonal(documents):
    (query, key, value), _ = inputs((2, 4, 2, 19, 8), dtype=torch.float32)
    torch.manual_seed(0)
    _, maps = attend(query, key, value, backend="sdpa", return_maps=True, document_ids=documents, dropout=0.5)
    assert maps.shape == (2, 4, 19, 19)
    torch.testing.assert_close(maps.sum(dim=-1), torch.ones(2, 4, 19))  # before dropout
    assert not maps.triu(diagonal=1).any()
    if documents is not None:
        assert not maps[0, :, 10:13, :10].any() and maps[1, :, 12, 0].all()
    expected = attend(query, key, value, backend="sdpa", document_ids=documents)[0]
    torch.testing.assert_close(maps @ value.repeat_interleave(2, dim=1), expected, rtol=1e-5, atol=1e-5)


def test_the_network_hands_out_maps_of_the_asked_layers_only_and_computes_the_same():
    config = ModelConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=4,
        context_length=8,
    )
    model, ids = Transformer(config), torch.arange(16).view(2, 8)
    maps = {0: None, 2: None}
    hidden = model.hidden_states(ids, maps=maps)
    assert set(maps) == {0, 2}
    assert all(kept.shape == (2, 4, 8, 8) for kept in maps.values())
    assert not torch.equal(maps[0], maps[2])
    torch.testing.assert_close(hidden, model.hidden_states(ids), rtol=1e-5, atol=1e-5)


# --- dropout ---


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_is_decided_by_the_seed_alone(backend):
    (query, key, value), _ = inputs((2, 4, 2, 33, 8), dtype=torch.float32)

    def run(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return attend(query, key, value, backend=backend, dropout=0.3)[0]

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    plain = [attend(query, key, value, backend=backend)[0] for _ in range(2)]
    assert torch.equal(*plain)


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_zeroes_its_share_of_the_map_and_scales_the_rest(backend):
    """With the identity as values, the output is the map after dropout."""
    length, rate = 40, 0.25
    (query, key, _), _ = inputs((16, 4, 2, length, length), dtype=torch.float32)
    identity = torch.eye(length).expand(16, 2, length, length)
    _, maps = attend(query, key, identity, return_maps=True)
    torch.manual_seed(5)
    dropped = attend(query, key, identity, backend=backend, dropout=rate)[0].detach()
    below = torch.ones(length, length, dtype=torch.bool).tril().expand_as(dropped)
    assert not dropped[~below].any()
    kept = below & (dropped != 0)
    share = 1 - float(kept.sum() / below.sum())
    assert abs(share - rate) < 5 * math.sqrt(rate * (1 - rate) / int(below.sum()))
    torch.testing.assert_close(dropped[kept], maps.detach()[kept] / (1 - rate), rtol=1e-4, atol=1e-7)
    heads = kept.view(16, 2, 2, -1)
    assert not torch.equal(heads[:, :, 0], heads[:, :, 1])  # heads of one group draw their own
    assert not torch.equal(kept[0], kept[1])  # and so do rows


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_preserves_the_expected_output(backend):
    (query, key, value), _ = inputs((1, 2, 1, 9, 4), dtype=torch.float32)
    repeats = 4000
    many = [tensor.detach().expand(repeats, -1, -1, -1) for tensor in (query, key, value)]
    torch.manual_seed(3)
    outputs = attend(*many, backend=backend, dropout=0.2)[0].double()
    expected = attend(query, key, value, backend=backend)[0].double()[0]
    error = outputs.std(dim=0) / math.sqrt(repeats)
    assert float(error.min()) > 0
    deviation = ((outputs.mean(dim=0) - expected) / error).detach()
    assert float(deviation.abs().max()) < 4.5  # 72 values
    assert float(deviation.square().mean()) < 2.0


def test_the_gradient_of_blocked_attention_with_dropout_equals_finite_differences():
    tensors, _ = inputs((1, 4, 2, 5, 2))

    def fixed(*qkv: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(9)
        return blocked_attention(*qkv, dropout=0.3, block=2)

    assert torch.autograd.gradcheck(fixed, tensors, eps=1e-6, atol=1e-7, rtol=1e-5)


def test_a_second_derivative_of_blocked_attention_is_refused_not_wrong():
    tensors, _ = inputs((1, 2, 1, 5, 4))
    (gradient,) = torch.autograd.grad(blocked_attention(*tensors).square().sum(), tensors[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


# --- what runs where, and what it holds ---


def test_blocked_attention_is_linear_in_the_length_where_eager_is_quadratic():
    def largest(backend: str, length: int) -> int:
        tensors, upstream = inputs((1, 4, 2, length, 8), dtype=torch.float32)
        with Largest() as seen:
            with_gradients(lambda *qkv: attend(*qkv, backend=backend, dropout=0.1)[0], tensors, upstream)
        return seen.elements

    assert largest("blocked", 1024) <= 4 * 128 * 1024  # heads x block x keys
    assert largest("blocked", 1024) <= 2 * largest("blocked", 512)
    assert largest("eager", 1024) == 4 * 1024 * 1024


def test_auto_takes_blocked_only_where_a_cpu_trains_on_whole_rows():
    (query, key, value), _ = inputs((1, 4, 2, 6, 8), dtype=torch.float32)
    name = lambda mixed: "" if mixed.grad_fn is None else type(mixed.grad_fn).__name__  # noqa: E731
    assert "Blocked" in name(attend(query, key, value)[0])
    assert "Blocked" not in name(attend(query, key, value, document_ids=torch.zeros(1, 6, dtype=torch.long))[0])
    assert "Blocked" not in name(attend(query[:, :, -1:], key, value)[0])
    with torch.no_grad():
        torch.testing.assert_close(attend(query, key, value)[0], attend(query, key, value, backend="sdpa")[0])


def test_refusals_name_the_setting():
    (query, key, value), _ = inputs((1, 2, 1, 3, 4), dtype=torch.float32)
    with pytest.raises(ValueError, match=r"model\.attention_backend='fast'.*sdpa"):
        attend(query, key, value, backend="fast")
    with pytest.raises(ValueError, match=r"attention_backend=flash needs a CUDA GPU.*float32 on cpu"):
        attend(query, key, value, backend="flash")
