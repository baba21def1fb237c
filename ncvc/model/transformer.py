"""The NCVC-slm-1 network, readable top to bottom (R37-R54).

A causal language model of pre-norm blocks, ``x + attention(norm(x))`` then ``x + mlp(norm(x))``:

- token embedding, its output times sqrt(hidden_size) where the init variant says so (R51), and an untied head
- RMSNorm (R46), rotary positions on every query and key (R43), grouped-query attention (R47)
- an MLP of two matrices with SiLU between them (R39, R45), no bias anywhere (R48)
- dropout on attention probabilities and on both residual branches (R62)
- optional: attention kept inside packed documents with positions restarting (off in the report, R101), query/key
  normalization, one gate per matrix (both from the init sweep), activation checkpointing

At the report's shape it has 1,191,282,688 parameters: 2.22 GiB in bf16 (R49). It knows nothing of Lightning or Hydra.

Shapes: B batch, T tokens, d hidden_size, H num_heads, K num_kv_heads, D head_dim, V vocab_size.
"""

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from ncvc.model.attention import BACKENDS, attend
from ncvc.model.initialization import VARIANTS, initialize, variant_named
from ncvc.model.key_value_cache import KeyValueCache
from ncvc.model.loss import linear_cross_entropy, token_cross_entropy
from ncvc.model.packed_weights import packed_linear


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape and choices of the network; sizes have no defaults here, so that each stands once, in ``conf/model``.

    ``ValueError`` names every field that cannot be, all at once.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context_length: int
    rope_base: float = 10_000.0
    norm_epsilon: float = 1e-6
    attention_dropout: float = 0.0
    residual_dropout: float = 0.0
    init: str = "report"
    qk_norm: bool = False
    mask_documents: bool = False
    attention_backend: str = "auto"

    def __post_init__(self) -> None:
        if problems := self.problems(asdict(self)):
            raise ValueError("\n".join(problems))

    @staticmethod
    def problems(values: Mapping[str, Any]) -> list[str]:
        """What is wrong with these field values, one message each; empty when a model can be built from them."""
        found = []
        sizes = (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
        )
        for name in (*sizes, "context_length"):
            if not isinstance(values[name], int) or values[name] < 1:
                found.append(f"model.{name}={values[name]!r} cannot be: a size is a whole number of at least 1.")
        heads, groups, width = values["num_heads"], values["num_kv_heads"], values["head_dim"]
        whole = {name for name in sizes if isinstance(values[name], int) and values[name] >= 1}
        if {"num_heads", "num_kv_heads"} <= whole and heads % groups:
            divisors = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
            found.append(
                f"model.num_kv_heads={groups} does not divide model.num_heads={heads}: every key/value head serves the "
                f"same number of query heads. Set it to one of {divisors}."
            )
        if "head_dim" in whole and width % 2:
            found.append(f"model.head_dim={width} is odd: rotary positions turn pairs. Set an even width.")
        for name in ("attention_dropout", "residual_dropout"):
            if not 0.0 <= values.get(name, 0.0) < 1.0:
                found.append(
                    f"model.{name}={values[name]} is not in [0, 1). Set 0 to switch it off, 0.1 for the report's."
                )
        for name in ("rope_base", "norm_epsilon"):
            if not values.get(name, 1.0) > 0:
                found.append(f"model.{name}={values[name]} is not above 0; the report's network has 10000 and 1e-6.")
        if values.get("init", "report") not in VARIANTS:
            found.append(
                f"model.init={values['init']!r} is not one of {', '.join(VARIANTS)}; set model/init to one of them."
            )
        if values.get("attention_backend", "auto") not in BACKENDS:
            found.append(
                f"model.attention_backend={values['attention_backend']!r} is not one of {', '.join(BACKENDS)}."
            )
        return found

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from a plain mapping; ``ValueError`` names unknown and missing fields."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"unknown model field(s) {', '.join(unknown)}; known: {', '.join(sorted(known))}.")
        if missing := sorted({field.name for field in fields(cls) if field.default is MISSING} - set(values)):
            raise ValueError(f"missing model field(s) {', '.join(missing)}.")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """A plain mapping, as written to ``model_config.json``."""
        return asdict(self)

    @property
    def embedding_multiplier(self) -> float:
        """Factor on the embedding's output: sqrt(hidden_size) or 1 (R51)."""
        return math.sqrt(self.hidden_size) if variant_named(self.init).scale_embedding else 1.0

    @property
    def num_parameters(self) -> int:
        """Exact number of trainable values, by arithmetic (a test counts the built network)."""
        attention_width, kv_width = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = self.hidden_size * (2 * attention_width + 2 * kv_width)
        layer = attention + 2 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        layer += 2 * self.head_dim if self.qk_norm else 0
        gates = 6 * self.num_layers + 2 if variant_named(self.init).gates else 0
        return 2 * self.vocab_size * self.hidden_size + self.num_layers * layer + self.hidden_size + gates


class Projection(nn.Linear):
    """A bias-free linear layer whose rows may be several logical matrices, each with an optional trainable gate.

    ``packed`` is set by ``packed_weights`` while the network generates on a CPU.
    """

    packed: torch.Tensor | None = None

    def __init__(self, in_features: int, *row_blocks: int, gated: bool = False) -> None:
        super().__init__(in_features, sum(row_blocks), bias=False)
        self.block_sizes = row_blocks
        self.gate = nn.Parameter(torch.ones(len(row_blocks))) if gated else None

    def row_blocks(self) -> tuple[torch.Tensor, ...]:
        """Views of the weight, one per logical matrix."""
        return self.weight.split(self.block_sizes)

    def reset_parameters(self) -> None:
        """Left to ``initialize``: values drawn here would be drawn twice."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        packed = None if torch.is_grad_enabled() else self.packed
        y = F.linear(x, self.weight) if packed is None else packed_linear(x, packed)
        if self.gate is None:
            return y
        factors = torch.cat([gate.expand(size) for gate, size in zip(self.gate, self.block_sizes, strict=True)])
        return y * factors.to(y.dtype)


class Embedding(nn.Embedding):
    """Token embedding with an optional trainable gate; initial values come from ``initialize``."""

    def __init__(self, vocab_size: int, hidden_size: int, *, gated: bool = False) -> None:
        super().__init__(vocab_size, hidden_size)
        self.gate = nn.Parameter(torch.ones(1)) if gated else None

    def reset_parameters(self) -> None:
        """Left to ``initialize``."""

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        x = super().forward(token_ids)
        return x if self.gate is None else x * self.gate.to(x.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) * gain over the last dimension, statistics in fp32 (R46)."""

    def __init__(self, size: int, *, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.epsilon)


class RotaryTable:
    """Cosines and signed sines of rotary positions, [context_length, D], fp32; the sign is that of ``rotate``'s pairs.

    Deliberately neither module nor buffer: DeepSpeed casts buffers to bf16, which would blur positions past 256.
    """

    def __init__(self, *, head_dim: int, length: int, base: float) -> None:
        self.head_dim, self.length, self.base = head_dim, length, base
        self._tables: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    def at(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """The two tables on ``device``, made there at first use."""
        if device not in self._tables:
            with torch.inference_mode(False):
                exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=device) / self.head_dim
                frequencies = 1.0 / self.base**exponents  # not base**-x, whose last bits are not those of other engines
                angles = torch.outer(torch.arange(self.length, dtype=torch.float32, device=device), frequencies)
                sine = angles.sin()
                self._tables[device] = (angles.cos().repeat(1, 2), torch.cat((-sine, sine), dim=-1))
        return self._tables[device]


def rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Turn the pairs (x[i], x[i + D/2]) of [B, H, T, D] by their position's angles [.., T, D] (R43)."""
    return x * cosine.to(x.dtype) + x.roll(x.size(-1) // 2, dims=-1) * sine.to(x.dtype)


@dataclass
class Context:
    """What every layer shares in one pass: rotary tables for its positions, documents or mask, cache, kept maps."""

    cosine: torch.Tensor
    sine: torch.Tensor
    document_ids: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    cache: KeyValueCache | None = None
    maps: dict[int, torch.Tensor] | None = None


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions (R43, R47)."""

    def __init__(self, config: ModelConfig, *, index: int) -> None:
        super().__init__()
        gated = variant_named(config.init).gates
        self.config, self.index = config, index
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.qkv = Projection(config.hidden_size, queries, keys, keys, gated=gated)
        self.output = Projection(queries, config.hidden_size, gated=gated)
        if config.qk_norm:
            self.query_norm = RMSNorm(config.head_dim, epsilon=config.norm_epsilon)
            self.key_norm = RMSNorm(config.head_dim, epsilon=config.norm_epsilon)

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        batch, length, _ = x.shape
        heads, groups = self.config.num_heads, self.config.num_kv_heads
        qkv = self.qkv(x).view(batch, length, heads + 2 * groups, self.config.head_dim).transpose(1, 2)
        query_and_key, value = qkv.split((heads + groups, groups), dim=1)  # [B, H + K, T, D], [B, K, T, D]
        if self.config.qk_norm:
            query, key = query_and_key.split((heads, groups), dim=1)
            query_and_key = torch.cat((self.query_norm(query), self.key_norm(key)), dim=1)
            query_and_key = query_and_key.to(value.dtype)  # autocast leaves a norm's result in fp32: flash refuses it
        query, key = rotate(query_and_key, context.cosine, context.sine).split((heads, groups), dim=1)
        if context.cache is not None:
            key, value = context.cache.extend(self.index, key, value)  # [B, K, S, D]
        kept = context.maps if context.maps is not None and self.index in context.maps else None
        mixed, maps = attend(
            query,
            key,
            value,
            backend=self.config.attention_backend,
            dropout=self.config.attention_dropout if self.training else 0.0,
            document_ids=context.document_ids,
            mask=context.mask,
            return_maps=kept is not None,
        )
        if kept is not None and maps is not None:
            kept[self.index] = maps
        return self.output(mixed.transpose(1, 2).reshape(batch, length, -1))  # [B, T, d]


class MLP(nn.Module):
    """Two matrices with SiLU between them: W_2 silu(W_1 x) (R39, R45)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        gated = variant_named(config.init).gates
        self.up = Projection(config.hidden_size, config.intermediate_size, gated=gated)
        self.down = Projection(config.intermediate_size, config.hidden_size, gated=gated)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.up(x)))


class Block(nn.Module):
    """One pre-norm layer (R44) with dropout on both residual branches (R62)."""

    def __init__(self, config: ModelConfig, *, index: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, epsilon=config.norm_epsilon)
        self.attention = Attention(config, index=index)
        self.mlp_norm = RMSNorm(config.hidden_size, epsilon=config.norm_epsilon)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.residual_dropout)

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        if self.training:
            x = x + self.dropout(self.attention(self.attention_norm(x), context))
            return x + self.dropout(self.mlp(self.mlp_norm(x)))
        x = x + self.attention(self.attention_norm(x), context)
        return x + self.mlp(self.mlp_norm(x))


class Transformer(nn.Module):
    """The whole network. ``seed`` decides the initial weights; on the meta device nothing is drawn."""

    def __init__(self, config: ModelConfig, *, seed: int = 0, activation_checkpointing: bool = False) -> None:
        super().__init__()
        gated = variant_named(config.init).gates
        self.config = config
        self.activation_checkpointing = activation_checkpointing
        self.embedding = Embedding(config.vocab_size, config.hidden_size, gated=gated)
        self.layers = nn.ModuleList(Block(config, index=index) for index in range(config.num_layers))
        self.final_norm = RMSNorm(config.hidden_size, epsilon=config.norm_epsilon)
        self.head = Projection(config.hidden_size, config.vocab_size, gated=gated)
        self.rotary = RotaryTable(head_dim=config.head_dim, length=config.context_length, base=config.rope_base)
        initialize(self, seed=seed)

    def forward(
        self,
        input_ids: torch.Tensor,
        *,
        document_ids: torch.Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> torch.Tensor:
        """Logits [B, T, V] of the token after each of ``input_ids`` [B, T]."""
        return self.head(self.hidden_states(input_ids, document_ids=document_ids, cache=cache))

    def hidden_states(
        self,
        input_ids: torch.Tensor,
        *,
        document_ids: torch.Tensor | None = None,
        cache: KeyValueCache | None = None,
        positions: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        maps: dict[int, torch.Tensor] | None = None,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Normalized output of the last layer, [B, T, d].

        ``document_ids`` [B, T] (consecutive numbers) keeps attention inside each document and restarts positions.
        ``cache`` continues a sequence of S - T tokens. ``positions`` [B, T] (below ``context_length``, which the caller
        sees to) and ``mask`` [B, 1, T, S], True = may look, replace the rule of consecutive positions and the causal
        one: for rows with padding, or several continuations beside each other. ``maps`` is filled with the attention
        maps of the layers whose keys it holds. ``noise`` [B, T, d] is added to the scaled embedding (NEFTune, R81).
        Raises ``ValueError`` when the sequence would pass ``context_length``.
        """
        if cache is not None and document_ids is not None:
            raise ValueError("document_ids and cache cannot be used together; generate one document at a time.")
        past = 0 if cache is None else cache.length
        length = input_ids.size(1)
        if positions is None and past + length > self.config.context_length:
            raise ValueError(
                f"a sequence of {past + length} tokens does not fit model.context_length={self.config.context_length}; "
                "shorten the text or train with a larger context_length."
            )
        cosine, sine = self.rotary.at(input_ids.device)
        if document_ids is not None:
            positions = positions_within_documents(document_ids)
        if positions is None:
            cosine, sine = cosine[past : past + length], sine[past : past + length]
        else:
            cosine, sine = cosine[positions].unsqueeze(1), sine[positions].unsqueeze(1)  # [B, 1, T, D]
        context = Context(cosine=cosine, sine=sine, document_ids=document_ids, mask=mask, cache=cache, maps=maps)
        x = self.embedding(input_ids) * self.config.embedding_multiplier
        if noise is not None:
            x = x + noise.to(x.dtype)
        for layer in self.layers:
            if self.activation_checkpointing and self.training:
                x = checkpoint(layer, x, context, use_reentrant=False)
            else:
                x = layer(x, context)
        if cache is not None:
            cache.length = past + length
        return self.final_norm(x)

    def loss(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        *,
        document_ids: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Summed next-token cross entropy in nats (R63); ``labels`` [B, T] are the next tokens, already shifted."""
        hidden = self._head_input(self.hidden_states(input_ids, document_ids=document_ids, noise=noise))
        return linear_cross_entropy(hidden, self.head.weight, labels.flatten())

    def token_losses(
        self, input_ids: torch.Tensor, labels: torch.Tensor, *, document_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Cross entropy of every position in nats, [B, T] fp32, without gradient."""
        hidden = self._head_input(self.hidden_states(input_ids, document_ids=document_ids))
        return token_cross_entropy(hidden, self.head.weight, labels.flatten()).view(labels.shape)

    def _head_input(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden.flatten(0, 1)  # [B * T, d]
        return hidden if self.head.gate is None else hidden * self.head.gate.to(hidden.dtype)


def positions_within_documents(document_ids: torch.Tensor) -> torch.Tensor:
    """Distance of every token of [B, T] from the first token of its document in the row."""
    index = torch.arange(document_ids.size(1), device=document_ids.device).expand_as(document_ids)
    new = torch.ones_like(document_ids, dtype=torch.bool)
    new[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return index - index.where(new, 0).cummax(dim=1).values
