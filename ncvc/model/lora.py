"""LoRA in place: small trainable matrices beside frozen ones (Hu et al. 2021, arXiv 2106.09685).

Each chosen matrix W [rows, columns] gets down [rank, columns] and up [rows, rank]; the layer computes
W x + alpha / rank * up (down dropout(x)). ``up`` starts at zero, so tuning starts at the base. The base, with the new
rows of the role tokens, stays as it is: gradients, optimizer states and checkpoints are those of the adapters alone.
Query, key and value are row blocks of one stored matrix and have adapters of their own. Where a matrix has a gate, the
adapter lies inside it. Every model directory is plain: ``merge`` adds the product to the weights.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from ncvc.model.transformer import Block, ModelConfig, Projection, Transformer
from ncvc.randomness import mix

TARGETS = ("query", "key", "value", "output", "up", "down")
_PURPOSE = 0x4C6F5241


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """``rank`` and ``alpha`` of every adapter, ``dropout`` on its input, and the kinds of matrix that get one."""

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: tuple[str, ...] = TARGETS

    def __post_init__(self) -> None:
        if problems := self.problems({**vars(self)}):
            raise ValueError("\n".join(problems))

    @staticmethod
    def problems(values: Mapping[str, Any]) -> list[str]:
        """What is wrong with these values, one message each."""
        found = []
        if values["rank"] < 1:
            found.append(f"module.lora.rank={values['rank']}: must be at least 1; 16 is usual.")
        if not values["alpha"] > 0:
            found.append(f"module.lora.alpha={values['alpha']}: must be above 0; twice the rank is usual.")
        if not 0.0 <= values.get("dropout", 0.0) < 1.0:
            found.append(f"module.lora.dropout={values['dropout']} is not in [0, 1). Set 0 to switch it off.")
        targets = tuple(values.get("targets", TARGETS))
        if not targets or len(set(targets)) != len(targets) or set(targets) - set(TARGETS):
            found.append(f"module.lora.targets={[*targets]}: must name each once, out of {', '.join(TARGETS)}.")
        return found

    @property
    def scale(self) -> float:
        """Factor on the adapter's output."""
        return self.alpha / self.rank


class Adapter(nn.Module):
    """``down`` [rank, columns] and ``up`` [rows, rank] of one matrix."""

    def __init__(self, rows: int, columns: int, *, rank: int, like: torch.Tensor) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, columns, device=like.device, dtype=like.dtype))
        self.up = nn.Parameter(torch.zeros(rows, rank, device=like.device, dtype=like.dtype))


class AdaptedProjection(Projection):
    """A ``Projection`` whose row blocks may have adapters; shares weight and gate with the one it is made from."""

    def __init__(self, plain: Projection, *, kinds: tuple[str, ...], settings: LoraSettings) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.weight, self.gate, self.block_sizes = plain.weight, plain.gate, plain.block_sizes
        self.register_parameter("bias", None)
        self.kinds, self.scale, self.dropout = kinds, settings.scale, nn.Dropout(settings.dropout)
        self.adapters = nn.ModuleDict(
            {
                kind: Adapter(rows, plain.in_features, rank=settings.rank, like=plain.weight)
                for kind, rows in zip(kinds, plain.block_sizes, strict=True)
                if kind in settings.targets
            }
        )
        self.train(plain.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, dropped = F.linear(x, self.weight), self.dropout(x)
        parts = []
        for kind, part in zip(self.kinds, y.split(self.block_sizes, dim=-1), strict=True):
            if kind in self.adapters:
                adapter = cast("Adapter", self.adapters[kind])
                part = part + F.linear(F.linear(dropped, adapter.down), adapter.up) * self.scale
            parts.append(part)
        y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        if self.gate is None:
            return y
        factors = torch.cat([gate.expand(size) for gate, size in zip(self.gate, self.block_sizes, strict=True)])
        return y * factors.to(y.dtype)

    def increments(self) -> torch.Tensor:
        """What the adapters add to the stored matrix, [rows, columns]; zero in blocks without one."""
        blocks = []
        for kind, rows in zip(self.kinds, self.block_sizes, strict=True):
            adapter = cast("Adapter", self.adapters[kind]) if kind in self.adapters else None
            blocks.append(
                torch.zeros(rows, self.in_features, device=self.weight.device, dtype=self.weight.dtype)
                if adapter is None
                else adapter.up @ adapter.down * self.scale
            )
        return torch.cat(blocks)


def add_adapters(network: Transformer, settings: LoraSettings, *, seed: int = 0) -> None:
    """Freeze ``network`` and put adapters beside its matrices, in place; the same seed gives the same start.

    ``down`` is uniform within 1 / sqrt(columns), ``up`` is zero. On the meta device nothing is drawn.
    """
    network.requires_grad_(False)
    places: list[tuple[str, str, tuple[str, ...]]] = [
        ("attention", "qkv", TARGETS[:3]),
        ("attention", "output", ("output",)),
        ("mlp", "up", ("up",)),
        ("mlp", "down", ("down",)),
    ]
    for number, layer in enumerate(cast("list[Block]", network.layers)):
        for part, name, kinds in places:
            if not set(kinds) & set(settings.targets):
                continue
            module = getattr(layer, part)
            adapted = AdaptedProjection(getattr(module, name), kinds=kinds, settings=settings)
            setattr(module, name, adapted)
            for kind, adapter in adapted.adapters.items():
                down = cast("Adapter", adapter).down
                if not down.is_meta:
                    draw = torch.Generator(down.device)
                    draw.manual_seed(mix(seed, _PURPOSE, number, TARGETS.index(kind)) >> 1)
                    bound = 1 / math.sqrt(down.size(1))
                    nn.init.uniform_(down, -bound, bound, generator=draw)


def adapted_network(config: ModelConfig, settings: LoraSettings, weights: Mapping[str, torch.Tensor]) -> Transformer:
    """A network with adapters that holds ``weights`` (base and adapters by name) without a copy."""
    with torch.device("meta"):
        network = Transformer(config)
        add_adapters(network, settings)
    network.load_state_dict(dict(weights), assign=True)
    return network


def adapted(network: nn.Module) -> Iterator[tuple[str, AdaptedProjection]]:
    """Every projection with adapters by its name in ``network``; nothing in a plain one."""
    for name, module in network.named_modules():
        if isinstance(module, AdaptedProjection):
            yield name, module


@torch.no_grad()
def merged_weights(network: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of the plain network that computes what ``network`` does; a plain network's own weights.

    Values are added in the weights' own type: call it on fp32 weights.
    """
    weights = {name: value.detach() for name, value in network.state_dict().items() if ".adapters." not in name}
    for name, module in adapted(network):
        weights[f"{name}.weight"] = module.weight.detach() + module.increments()
    return weights
