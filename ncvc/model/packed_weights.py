"""Matrices laid out once in the order in which oneDNN's CPU kernels read them.

A generation step multiplies few rows with every matrix. PyTorch's ordinary product reads the plain layout slowly for
so few rows, or reorders it at every call; with the matrix packed once, a product of 8 rows takes about half the time
in fp32 and in bf16, one of many rows three quarters (``tests/benchmarks/generation.py``). In bf16 the results are the
same bits, in fp32 the same up to the order of summation.

Costs a second copy of the matrices, and to make it the time of 10 to 30 steps of one row: a program that answers again
and again packs once, for good. Only on a CPU, in fp32 and (where the CPU has it) bf16, and only the network's own
projections: an adapted or an int8 one keeps its own product. Elsewhere nothing happens, and an fp32 matrix too small to
gain by it stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from ncvc.model.transformer import Projection

_SMALLEST = 1 << 18  # values of an fp32 matrix below which the ordinary product is as fast


def pack_weights(model: nn.Module) -> list[Projection]:
    """Let products of ``model`` without gradients use packed copies from here on; returns the projections that now do.

    For a network that only runs: its weights must neither change nor move afterwards. Those packed before are kept.
    """
    from ncvc.model.transformer import Projection

    packed = []
    for module in model.modules():
        if type(module) is not Projection or module.packed is not None:
            continue
        dtype = _product_dtype(module.weight)
        if _can_pack(module.weight, dtype):
            with torch.inference_mode():
                plain = module.weight.detach().to(dtype).contiguous()
                module.packed = torch.ops.mkldnn._reorder_linear_weight.default(plain)
            packed.append(module)
    return packed


@contextmanager
def packed_weights(model: nn.Module) -> Iterator[None]:
    """``pack_weights`` while open, for a network whose weights may change later; does nothing to one packed before."""
    packed: list[Projection] = []
    try:
        packed = pack_weights(model)
        yield
    finally:
        for module in packed:
            module.packed = None


def packed_linear(x: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    """``F.linear(x, weight)`` for ``x`` [.., in_features] and the packed copy of ``weight``."""
    return torch.ops.mkldnn._linear_pointwise.default(x.to(packed.dtype), packed, None, "none", [], "")


def _product_dtype(weight: torch.Tensor) -> torch.dtype:
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def _can_pack(weight: torch.Tensor, dtype: torch.dtype) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return False
    if dtype == torch.float32:
        return weight.numel() >= _SMALLEST
    return dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
