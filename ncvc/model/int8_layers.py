"""Linear layers and the embedding with int8 weights, for running a trained network on a CPU.

A row of a matrix is 8-bit whole numbers from -127 to 127 times one fp32 scale. A linear layer turns each row of its
input into 8 bits as well, by that row's largest absolute value, multiplies whole numbers (fbgemm's kernel, in torch)
and scales back: an output row depends on its input row alone, so padding and neighbours in a batch change nothing, not
even the last bit. Where torch has no such kernel (not an x86 CPU, or a GPU), the weights are expanded to the input's
type for each product: correct, a quarter of the memory, slow.

Costs: 1 byte a weight and 4 a row. Not trained: ``train()`` is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn

from ncvc.model.transformer import Embedding, Projection, Transformer

INT8 = "int8_rows"  # the kind in model_config.json: one scale a row, symmetric
_LEVELS = 127


def quantize_rows(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 values [rows, columns] and fp32 scales [rows] with values * scale nearest to ``matrix``.

    ``ValueError`` for numbers that are not finite.
    """
    matrix = matrix.detach().float()
    if not torch.isfinite(matrix).all():
        raise ValueError("the weights hold numbers that are not finite: the training diverged; use an earlier step.")
    scales = matrix.abs().amax(dim=1) / _LEVELS
    divisors = torch.where(scales > 0, scales, 1.0).unsqueeze(1)  # a row of zeros stays zeros
    values = (matrix / divisors).round().clamp(-_LEVELS, _LEVELS)
    return values.to(torch.int8), scales


class _RunningOnly(nn.Module):
    """A layer that cannot be put into training mode."""

    gate = None  # folded into the scales

    def train(self, mode: bool = True) -> Self:
        """Refuses training mode."""
        if mode:
            raise ValueError(
                "the weights are int8, made for running only: train the model directory that they were made from, and "
                "quantize the result."
            )
        return super().train(mode)


class Int8Projection(_RunningOnly):
    """In the place of a ``Projection``: y = x W^T with int8 weights and inputs; ``weight`` gives W back in fp32."""

    values: torch.Tensor
    scales: torch.Tensor

    def __init__(self, values: torch.Tensor, scales: torch.Tensor, *, block_sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.out_features, self.in_features = values.shape
        self.block_sizes = block_sizes
        self._packed = _pack(values, scales) if values.device.type == "cpu" else None
        kept = (values, scales) if self._packed is None else (None, None)  # the kernel keeps a copy of its own
        self.register_buffer("values", kept[0], persistent=False)
        self.register_buffer("scales", kept[1], persistent=False)

    def _expanded(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self._packed is None:
            return self.values, self.scales
        stored, _ = torch.ops.quantized.linear_unpack(self._packed)
        return stored.int_repr(), stored.q_per_channel_scales().float()

    @property
    def weight(self) -> torch.Tensor:
        """The matrix in fp32 [out, in], made anew at each call."""
        values, scales = self._expanded()
        return values.float() * scales.unsqueeze(1)

    def row_blocks(self) -> tuple[torch.Tensor, ...]:
        """The logical matrices in fp32."""
        return self.weight.split(self.block_sizes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out] in the type of ``x``."""
        if self._packed is None:
            return F.linear(x, self.weight.to(x.dtype))
        if x.device.type != "cpu":
            raise ValueError(f"the int8 weights were opened on the CPU, the input is on {x.device}: open them there.")
        rows = x.reshape(-1, self.in_features).float()
        largest = rows.abs().amax(dim=1, keepdim=True)
        levels, middle = input_levels()
        y = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            rows / largest.where(largest != 0, 1.0), 1.0 / levels, middle, self._packed
        )
        return (y * largest).to(x.dtype).view(*x.shape[:-1], self.out_features)


class Int8Embedding(_RunningOnly):
    """In the place of an ``Embedding``: int8 rows, looked up and scaled to fp32."""

    values: torch.Tensor
    scales: torch.Tensor

    def __init__(self, values: torch.Tensor, scales: torch.Tensor) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = values.shape
        self.register_buffer("values", values, persistent=False)
        self.register_buffer("scales", scales, persistent=False)

    @property
    def weight(self) -> torch.Tensor:
        """The table in fp32 [V, d], made anew at each call."""
        return self.values.float() * self.scales.float().unsqueeze(1)

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """[...] to [..., d] in fp32, the type of the network's norms."""
        return self.values[token_ids].to(self.scales.dtype) * self.scales[token_ids].unsqueeze(-1)


def int8_weights(model: Transformer) -> dict[str, torch.Tensor]:
    """What an int8 model directory holds: of each matrix ``<name>.int8`` and ``<name>.scales``, norms as fp32.

    Trainable gates are folded in before rounding. ``ValueError`` names a matrix that is not finite.
    """
    state: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, Projection):
            gates = torch.ones(len(module.block_sizes)) if module.gate is None else module.gate.detach().float()
            blocks = zip(module.row_blocks(), gates, strict=True)
            matrix = torch.cat([block.detach().float() * gate for block, gate in blocks])
        elif isinstance(module, Embedding):
            matrix = module.weight.detach().float()
            matrix = matrix if module.gate is None else matrix * module.gate.detach().float()
        else:
            state |= {f"{name}.{key}": value.detach().float() for key, value in module.named_parameters(recurse=False)}
            continue
        try:
            state[f"{name}.int8"], state[f"{name}.scales"] = quantize_rows(matrix)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return state


def put_int8_layers(model: Transformer, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Replace the linear layers and the embedding of ``model`` by int8 ones; returns the weights of the other layers.

    ``RuntimeError`` (as from ``load_state_dict``) when names, shapes or types are others than the network's.
    """
    rest = dict(weights)
    replaced: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        if not isinstance(module, Projection | Embedding):
            continue
        values, scales = rest.pop(f"{name}.int8", None), rest.pop(f"{name}.scales", None)
        if values is None or scales is None:
            raise RuntimeError(f"{name}.int8 or {name}.scales is missing")
        shape = tuple(module.weight.shape)
        if values.dtype != torch.int8 or scales.dtype != torch.float32:
            raise RuntimeError(f"{name} is {values.dtype} with scales {scales.dtype}, not int8 with float32")
        if tuple(values.shape) != shape or tuple(scales.shape) != shape[:1]:
            raise RuntimeError(f"{name} has the shape {tuple(values.shape)}, the network has {shape}")
        if isinstance(module, Projection):
            replaced.append((name, Int8Projection(values, scales, block_sizes=module.block_sizes)))
        else:
            replaced.append((name, Int8Embedding(values, scales)))
    for name, layer in replaced:
        parent, _, key = name.rpartition(".")
        setattr(model.get_submodule(parent), key, layer)
    return rest


# ---- the kernel ------------------------------------------------------------------------------------------------------


def _pack(values: torch.Tensor, scales: torch.Tensor) -> Any:
    """The weights in the order of the kernel, or None where torch has none."""
    if not {"fbgemm", "x86"} & set(torch.backends.quantized.supported_engines):
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*quantized tensor creation functions.*")
        zeros = torch.zeros(len(scales), dtype=torch.long)
        stored = torch._make_per_channel_quantized_tensor(values, scales.double(), zeros, 0)
        return torch.ops.quantized.linear_prepack(stored, None)


@cache
def input_levels() -> tuple[int, int]:
    """Positive levels of an 8-bit input and the number that stands for zero: (127, 128), or (63, 64).

    CPUs without VNNI add pairs of products in 16 bits, which overflow at 8 bits by 8 bits: one bit less is used there.
    Found by multiplying the largest numbers, not by asking for the CPU's name.
    """
    columns = 64
    packed = _pack(torch.full((16, columns), _LEVELS, dtype=torch.int8), torch.ones(16))
    y = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
        torch.ones(16, columns), 1.0 / _LEVELS, 128, packed
    )
    exact = torch.full_like(y, float(_LEVELS * columns))
    return (127, 128) if torch.allclose(y, exact, rtol=1e-5) else (63, 64)
