"""Initial values as a closed set of named variants; each is one table {matrix, law, standard deviation}.

The same table is what ``initialize`` applies, what ``describe`` prints and what the test measures every tensor against,
so text and code cannot disagree. Swept as ``model/init=report,small,...`` with ``model.qk_norm=true,false`` beside it.

Matrices carry the report's names: embedding E, query W_Q, key W_K, value W_V, output W_O, up W_1, down W_2, head.
d is the hidden size, N the number of layers. Norm gains start at 1 in every variant. Costs one pass over the weights.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

if TYPE_CHECKING:
    from ncvc.model.transformer import Block, ModelConfig, Transformer

MATRICES = ("embedding", "query", "key", "value", "output", "up", "down", "head")

# law -> (formula as printed, standard deviation from hidden size d, layers N, rows, columns)
LAWS = {
    "small": ("sqrt(2/(5d))", lambda d, n, rows, columns: math.sqrt(2 / (5 * d))),  # R50
    "small_scaled": (
        "sqrt(2/(5d)) / sqrt(2N)",
        lambda d, n, rows, columns: math.sqrt(2 / (5 * d)) / math.sqrt(2 * n),
    ),  # R52
    "xavier": ("sqrt(2/(rows+columns))", lambda d, n, rows, columns: math.sqrt(2 / (rows + columns))),  # R53
    "normal_0.02": ("0.02", lambda d, n, rows, columns: 0.02),
    "normal_0.02_scaled": ("0.02 / sqrt(2N)", lambda d, n, rows, columns: 0.02 / math.sqrt(2 * n)),
    "zero": ("0", lambda d, n, rows, columns: 0.0),
}

WESAR_STD = math.sqrt(4e-5)  # one common std for every matrix (Nishida et al. 2024, arXiv 2410.05052)


@dataclass(frozen=True, kw_only=True)
class InitVariant:
    """One named choice: a default law, the matrices that depart from it, and what the network does at run time.

    ``scale_embedding`` multiplies the embedding's output by sqrt(d) (R51). ``gates`` stores every matrix with the
    common std and gives it one trainable factor that starts at law / common std, so that the product follows the law
    (WeSaR).
    """

    meaning: str
    default: str
    exceptions: tuple[tuple[str, str], ...] = ()
    scale_embedding: bool = False
    gates: bool = False

    def law(self, matrix: str) -> str:
        """Name of the law that ``matrix`` (one of ``MATRICES``) follows."""
        return dict(self.exceptions).get(matrix, self.default)


_SCALED = (("output", "small_scaled"), ("down", "small_scaled"))
_XAVIER_HEAD = (("head", "xavier"),)

VARIANTS = {
    "report": InitVariant(
        meaning="the report: small init, W_O and W_2 scaled, embedding scaled, Xavier head (R50-R53)",
        default="small",
        exceptions=_SCALED + _XAVIER_HEAD,
        scale_embedding=True,
    ),
    "small": InitVariant(
        meaning="the report without the 1/sqrt(2N) of W_O and W_2",
        default="small",
        exceptions=_XAVIER_HEAD,
        scale_embedding=True,
    ),
    "no_embedding_scale": InitVariant(
        meaning="the report without the sqrt(d) after the embedding",
        default="small",
        exceptions=_SCALED + _XAVIER_HEAD,
    ),
    "gpt2": InitVariant(
        meaning="GPT-2: normal 0.02, W_O and W_2 over sqrt(2N), embedding not scaled",
        default="normal_0.02",
        exceptions=(("output", "normal_0.02_scaled"), ("down", "normal_0.02_scaled")),
    ),
    "normal": InitVariant(meaning="normal 0.02 everywhere", default="normal_0.02"),
    "xavier": InitVariant(
        meaning="Xavier normal in every matrix, small embedding times sqrt(d)",
        default="xavier",
        exceptions=(("embedding", "small"),),
        scale_embedding=True,
    ),
    "zero_projections": InitVariant(
        meaning="the report with W_O and W_2 at zero: every block starts as the identity",
        default="small",
        exceptions=(("output", "zero"), ("down", "zero"), *_XAVIER_HEAD),
        scale_embedding=True,
    ),
    "wesar": InitVariant(
        meaning="the report's laws, each matrix held at one common std behind a trainable gate (WeSaR)",
        default="small",
        exceptions=_SCALED + _XAVIER_HEAD,
        scale_embedding=True,
        gates=True,
    ),
}


@dataclass(frozen=True, kw_only=True)
class InitRow:
    """One row of a variant's table: ``std`` is that of the effective matrix, ``stored_std`` of the stored values."""

    pattern: str
    matrix: str
    shape: tuple[int, int]
    law: str
    formula: str
    std: float
    stored_std: float
    gate: float | None


def variant_named(name: str) -> InitVariant:
    """The variant called ``name``; ``ValueError`` lists the closed set."""
    if name not in VARIANTS:
        raise ValueError(f"model.init={name!r} is not one of {', '.join(VARIANTS)}; set model/init to one of these.")
    return VARIANTS[name]


def table(config: "ModelConfig") -> list[InitRow]:
    """The variant's table for this shape, one row per kind of matrix, in the order of ``MATRICES``."""
    variant = variant_named(config.init)
    hidden, queries = config.hidden_size, config.num_heads * config.head_dim
    keys = config.num_kv_heads * config.head_dim
    places = {
        "embedding": ("embedding.weight", (config.vocab_size, hidden)),
        "query": ("layers.*.attention.qkv.weight [query rows]", (queries, hidden)),
        "key": ("layers.*.attention.qkv.weight [key rows]", (keys, hidden)),
        "value": ("layers.*.attention.qkv.weight [value rows]", (keys, hidden)),
        "output": ("layers.*.attention.output.weight", (hidden, queries)),
        "up": ("layers.*.mlp.up.weight", (config.intermediate_size, hidden)),
        "down": ("layers.*.mlp.down.weight", (hidden, config.intermediate_size)),
        "head": ("head.weight", (config.vocab_size, hidden)),
    }
    rows = []
    for matrix in MATRICES:
        pattern, shape = places[matrix]
        law = variant.law(matrix)
        formula, deviation = LAWS[law]
        std = deviation(hidden, config.num_layers, *shape)
        rows.append(
            InitRow(
                pattern=pattern,
                matrix=matrix,
                shape=shape,
                law=law,
                formula=formula,
                std=std,
                stored_std=WESAR_STD if variant.gates else std,
                gate=std / WESAR_STD if variant.gates else None,
            )
        )
    return rows


def named_matrices(model: "Transformer") -> Iterator[tuple[str, str, torch.Tensor]]:
    """Every weight matrix as (name, kind, view); the fused qkv weight comes as its three row blocks."""
    yield "embedding", "embedding", model.embedding.weight
    for index, layer in enumerate(cast("list[Block]", model.layers)):
        blocks = zip(("query", "key", "value"), layer.attention.qkv.row_blocks(), strict=True)
        yield from ((f"layers.{index}.attention.{kind}", kind, block) for kind, block in blocks)
        yield f"layers.{index}.attention.output", "output", layer.attention.output.weight
        yield f"layers.{index}.mlp.up", "up", layer.mlp.up.weight
        yield f"layers.{index}.mlp.down", "down", layer.mlp.down.weight
    yield "head", "head", model.head.weight


@torch.no_grad()
def initialize(model: "Transformer", *, seed: int) -> None:
    """Draw every matrix from its law, set gates, and set norm gains to 1; the same seed gives the same weights.

    Does nothing to meta tensors, so the full network can be laid out without memory.
    """
    rows = {row.matrix: row for row in table(model.config)}
    generator: dict[torch.device, torch.Generator] = {}
    for _, kind, matrix in named_matrices(model):
        if matrix.is_meta:
            return
        if matrix.device not in generator:
            generator[matrix.device] = torch.Generator(matrix.device).manual_seed(seed)
        if rows[kind].stored_std == 0.0:
            matrix.zero_()
        else:
            matrix.normal_(0.0, rows[kind].stored_std, generator=generator[matrix.device])
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):
            kinds = ("query", "key", "value") if "qkv" in name else (name.split(".")[-2],)
            parameter.copy_(torch.tensor([rows[kind].gate for kind in kinds]))
        elif parameter.dim() == 1:
            parameter.fill_(1.0)


def describe(config: "ModelConfig") -> str:
    """The variant's table as aligned text, as the README prints it."""
    variant = variant_named(config.init)
    lines = [
        f"init variant {config.init}: {variant.meaning}",
        f"{'matrix':<10}{'law':<20}{'std':>12}  {'formula':<26}where",
    ]
    for row in table(config):
        gate = "" if row.gate is None else f"  stored std {row.stored_std:.6f} x gate {row.gate:.4f}"
        lines.append(f"{row.matrix:<10}{row.law:<20}{row.std:>12.6f}  {row.formula:<26}{row.pattern}{gate}")
    scale = f"x sqrt(d) = {math.sqrt(config.hidden_size):.4f}" if variant.scale_embedding else "not scaled"
    norms = "RMSNorm gains 1" + (", query and key normalized per head" if config.qk_norm else "")
    return "\n".join([*lines, f"embedding output {scale}; {norms}"])
