"""Causal grouped-query attention for CPUs as a few large matrix products per block of queries.

PyTorch's fused CPU kernel works head by head with small products; with narrow heads its backward pass is the largest
single cost of a small model's step. Here the query heads of a group share one product with their key head, each block
of queries meets only the keys up to its end (so about half the square is computed), and the backward pass recomputes
the block's probabilities from the saved normalizers, so memory stays linear in the sequence length. Products run in
the inputs' type and everything between them in fp32: in bf16 the output strays about 4x, gradients 1-3x as far from an
fp64 reference as SDPA's, because scores are rounded to bf16 once. Attention dropout costs one more elementwise pass
instead of the fall to the unfused path. Not twice differentiable.

Shapes: B batch, H query heads, K key/value heads, G = H / K, T tokens, D head width, Q queries of a block, S keys.
"""

import math

import torch
from torch.autograd.function import once_differentiable


def blocked_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, dropout: float = 0.0, block: int = 64
) -> torch.Tensor:
    """Causal attention of ``query`` [B, H, T, D] over ``key`` and ``value`` [B, K, T, D]; returns [B, H, T, D]."""
    seed = int(torch.randint(2**62, ())) if dropout > 0 else 0
    return _BlockedAttention.apply(query, key, value, dropout, block, seed)


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _blocks(length: int, block: int) -> list[tuple[int, int]]:
    return [(start, min(start + block, length)) for start in range(0, length, block)]


def _scores(rows: torch.Tensor, keys: torch.Tensor, start: int, end: int) -> torch.Tensor:
    """Masked scores [B, K, G * Q, S] of the queries start..end against keys 0..end."""
    scores = rows @ keys.transpose(-2, -1)
    square = scores.view(*scores.shape[:2], -1, end - start, end)[..., start:]  # the diagonal part
    square.masked_fill_(_above_diagonal(end - start, scores.device), -torch.inf)
    return scores


def _above_diagonal(size: int, device: torch.device) -> torch.Tensor:
    return torch.ones(size, size, dtype=torch.bool, device=device).triu(diagonal=1)


def _kept(shape: torch.Size, dropout: float, generator: torch.Generator, like: torch.Tensor) -> torch.Tensor:
    """Dropout factors: 0 or 1 / (1 - dropout)."""
    keep = 1.0 - dropout
    return torch.empty(shape, dtype=like.dtype, device=like.device).bernoulli_(keep, generator=generator).div_(keep)


class _BlockedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, dropout, block, seed):  # noqa: ANN001, ANN205 (autograd's own signature)
        batch, heads, length, width = query.shape
        groups = key.size(1)
        grouped = (query * (1 / math.sqrt(width))).view(batch, groups, -1, length, width)  # [B, K, G, T, D]
        key, value = key.contiguous(), value.contiguous()
        mixed = torch.empty_like(grouped, memory_format=torch.contiguous_format)
        sums = _sum_dtype(query.dtype)
        normalizers = torch.empty(grouped.shape[:-1], dtype=sums, device=query.device)
        generator = torch.Generator(query.device).manual_seed(seed)
        for start, end in _blocks(length, block):
            rows = grouped[:, :, :, start:end].reshape(batch, groups, -1, width)  # [B, K, G * Q, D]
            scores = _scores(rows, key[:, :, :end], start, end).to(sums)
            largest = scores.amax(dim=-1, keepdim=True)
            weights = scores.sub_(largest).exp_()
            total = weights.sum(dim=-1, keepdim=True)
            if dropout > 0:
                weights.mul_(_kept(weights.shape, dropout, generator, weights))
            part = (weights.to(rows.dtype) @ value[:, :, :end]).to(sums).div_(total)
            shape = (batch, groups, -1, end - start)
            mixed[:, :, :, start:end] = part.view(*shape, width)
            normalizers[:, :, :, start:end] = (largest + total.log()).view(*shape)
        ctx.save_for_backward(grouped, key, value, mixed, normalizers)
        ctx.settings = (dropout, block, seed)
        return mixed.view(batch, heads, length, width)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):  # noqa: ANN001, ANN205
        grouped, key, value, mixed, normalizers = ctx.saved_tensors
        dropout, block, seed = ctx.settings
        batch, groups, _, length, width = grouped.shape
        upstream = upstream.reshape(grouped.shape)
        sums = _sum_dtype(key.dtype)
        correction = (upstream.to(sums) * mixed).sum(dim=-1)  # [B, K, G, T]
        query_gradient = torch.empty_like(grouped, memory_format=torch.contiguous_format)
        key_gradient = torch.zeros_like(key, dtype=sums)
        value_gradient = torch.zeros_like(value, dtype=sums)
        generator = torch.Generator(key.device).manual_seed(seed)
        for start, end in _blocks(length, block):
            shape = (batch, groups, -1)
            rows = grouped[:, :, :, start:end].reshape(*shape, width)
            above = upstream[:, :, :, start:end].reshape(*shape, width)
            normalizer = normalizers[:, :, :, start:end].reshape(*shape, 1)
            weights = _scores(rows, key[:, :, :end], start, end).to(sums).sub_(normalizer).exp_()  # [B, K, G * Q, S]
            gradient = (above @ value[:, :, :end].transpose(-2, -1)).to(sums)
            dropped = weights
            if dropout > 0:
                factors = _kept(weights.shape, dropout, generator, weights)
                dropped = weights * factors
                gradient.mul_(factors)
            value_gradient[:, :, :end] += dropped.to(rows.dtype).transpose(-2, -1) @ above
            gradient = gradient.sub_(correction[:, :, :, start:end].reshape(*shape, 1)).mul_(weights).to(rows.dtype)
            query_gradient[:, :, :, start:end] = (gradient @ key[:, :, :end]).view(*shape, end - start, width)
            key_gradient[:, :, :end] += gradient.transpose(-2, -1) @ rows
        query_gradient.mul_(1 / math.sqrt(width))
        return (
            query_gradient.view(batch, -1, length, width),
            key_gradient.to(key.dtype),
            value_gradient.to(value.dtype),
            None,
            None,
            None,
        )
