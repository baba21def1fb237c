"""Our weights under the names of transformers' classes: folding, naming, writing and reading back.

``folded`` multiplies run-time factors into the weights, ``exported_tensors`` names them, ``write_weights`` and
``read_weights`` are the files. One table of names serves both directions. Knows no tokenizer, imports no transformers.

Costs the weights in memory once, plus one shard while writing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ncvc.model.transformer import Block, ModelConfig, Projection, Transformer
from ncvc.storage import write_json
from ncvc.tokenizer import BEGIN_ID, END_ID

Form = Literal["arcee", "llama", "apertus"]
Precision = Literal["float32", "bfloat16"]
SHARD_BYTES = 2_000_000_000
PLAIN = "no_embedding_scale"  # the init variant without run-time factors
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Names:
    """What a class of transformers calls itself and the two norms of a layer."""

    model_type: str
    architecture: str
    attention_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"


FORMS: dict[str, Names] = {
    "arcee": Names(model_type="arcee", architecture="ArceeForCausalLM"),
    "llama": Names(model_type="llama", architecture="LlamaForCausalLM"),
    "apertus": Names(
        model_type="apertus",
        architecture="ApertusForCausalLM",
        attention_norm="attention_layernorm",
        mlp_norm="feedforward_layernorm",
    ),
}


def check_form(config: ModelConfig, *, form: str, dtype: str = "float32") -> None:
    """``ValueError`` when this network cannot be written in that form, naming the form that can."""
    if form not in FORMS:
        raise ValueError(f"form={form!r} is not one of {', '.join(FORMS)}; set form=arcee, or form=llama for vLLM.")
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype={dtype!r} is not one of float32, bfloat16; set one of these.")
    if config.qk_norm != (form == "apertus"):
        why = "has query and key norms, which" if config.qk_norm else "has no query and key norms, without which"
        other = "apertus" if config.qk_norm else "arcee (or llama)"
        raise ValueError(f"form={form}: this network {why} {FORMS[form].architecture} cannot be; set form={other}.")
    if form != "apertus" and config.hidden_size % config.num_heads:
        raise ValueError(
            f"form={form}: {FORMS[form].architecture} takes no model.hidden_size={config.hidden_size} that "
            f"model.num_heads={config.num_heads} does not divide; such a network can only be run by ncvc."
        )


def configuration(config: ModelConfig, *, form: str, dtype: str) -> dict[str, Any]:
    """The content of ``config.json``.

    There is no padding id: with one, transformers' embedding would give that row no gradient, and padding is the
    end-of-text token here. The rotary base stands there twice, for transformers before and since version 5.
    """
    return {
        "architectures": [FORMS[form].architecture],
        "model_type": FORMS[form].model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "attention_bias": False,
        "attention_dropout": config.attention_dropout,
        "mlp_bias": form == "llama",
        "tie_word_embeddings": False,
        "use_cache": True,
        "bos_token_id": BEGIN_ID,
        "eos_token_id": END_ID,
        "pad_token_id": None,
        "dtype": dtype,
        "torch_dtype": dtype,
    }


# ---- ours to theirs ------------------------------------------------------------------------------------------------


@torch.no_grad()
def folded(network: Transformer, *, dtype: Precision = "float32") -> Transformer:
    """The fp32 network with its embedding's factor and its gates multiplied into the weights.

    For ``dtype`` bfloat16 every value is rounded to it and held in fp32. Takes ``network`` over: what needs no change
    is shared with it, and rounding happens in place.
    """
    weights = {name: tensor for name, tensor in network.state_dict().items() if not name.endswith(".gate")}
    for name, module in network.named_modules():
        if isinstance(module, Projection) and module.gate is not None:
            blocks = zip(module.row_blocks(), module.gate, strict=True)
            weights[f"{name}.weight"] = torch.cat([block * gate for block, gate in blocks])
    table, gate = network.embedding.weight.data, network.embedding.gate
    table, factor = table if gate is None else table * gate, network.config.embedding_multiplier
    weights["embedding.weight"] = table if factor == 1.0 else table * factor
    if dtype == "bfloat16":
        for tensor in weights.values():
            tensor.copy_(tensor.to(torch.bfloat16))
    return network_of(replace(network.config, init=PLAIN), weights)


def network_of(config: ModelConfig, weights: dict[str, torch.Tensor]) -> Transformer:
    """A network that holds these tensors, in evaluation mode."""
    with torch.device("meta"):
        network = Transformer(config)
    network.load_state_dict(weights, assign=True)
    return network.eval()


def exported_tensors(network: Transformer, *, form: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of a ``folded`` network under transformers' names, one at a time, as views of its parameters."""
    names = FORMS[form]
    yield "model.embed_tokens.weight", network.embedding.weight
    for index, layer in enumerate(cast("list[Block]", network.layers)):
        prefix, attention = f"model.layers.{index}", layer.attention
        yield f"{prefix}.{names.attention_norm}.weight", layer.attention_norm.weight
        for letter, block in zip("qkv", attention.qkv.row_blocks(), strict=True):
            yield f"{prefix}.self_attn.{letter}_proj.weight", block
        if network.config.qk_norm:
            yield f"{prefix}.self_attn.q_norm.weight", attention.query_norm.weight
            yield f"{prefix}.self_attn.k_norm.weight", attention.key_norm.weight
        yield f"{prefix}.self_attn.o_proj.weight", attention.output.weight
        yield f"{prefix}.{names.mlp_norm}.weight", layer.mlp_norm.weight
        yield f"{prefix}.mlp.{'gate' if form == 'llama' else 'up'}_proj.weight", layer.mlp.up.weight
        yield f"{prefix}.mlp.down_proj.weight", layer.mlp.down.weight
    yield "model.norm.weight", network.final_norm.weight
    yield "lm_head.weight", network.head.weight


def constant_tensors(config: ModelConfig, *, form: str) -> Iterator[tuple[str, torch.Tensor]]:
    """What the Llama form needs beside our weights: its up projection is the constant 1, its other biases are 0."""
    for index in range(config.num_layers if form == "llama" else 0):
        prefix = f"model.layers.{index}.mlp"
        yield f"{prefix}.gate_proj.bias", torch.zeros(config.intermediate_size)
        yield f"{prefix}.up_proj.weight", torch.zeros(config.intermediate_size, config.hidden_size)
        yield f"{prefix}.up_proj.bias", torch.ones(config.intermediate_size)
        yield f"{prefix}.down_proj.bias", torch.zeros(config.hidden_size)


def count_constants(config: ModelConfig, *, form: str) -> int:
    """How many values ``constant_tensors`` yields, by arithmetic."""
    layer = config.intermediate_size * (config.hidden_size + 2) + config.hidden_size
    return config.num_layers * layer if form == "llama" else 0


def write_weights(tensors: Iterable[tuple[str, torch.Tensor]], directory: Path, *, dtype: Precision) -> None:
    """Write tensors as safetensors of about ``SHARD_BYTES`` each, with the index that transformers wants of several."""
    parts: list[Path] = []
    places: dict[str, int] = {}
    held: dict[str, torch.Tensor] = {}
    total = filled = 0

    def flush() -> None:
        parts.append(directory / f"part-{len(parts)}.safetensors")
        save_file(held, parts[-1], metadata={"format": "pt"})
        parts[-1].chmod(0o644)
        held.clear()

    for name, tensor in tensors:
        size = tensor.numel() * (4 if dtype == "float32" else 2)
        if held and filled + size > SHARD_BYTES:
            flush()
            filled = 0
        held[name], places[name] = tensor.detach().to(getattr(torch, dtype)).contiguous(), len(parts)
        total, filled = total + size, filled + size
    flush()
    final = [f"model-{n:05d}-of-{len(parts):05d}.safetensors" for n in range(1, len(parts) + 1)]
    final = final if len(parts) > 1 else [SINGLE]
    for part, name in zip(parts, final, strict=True):
        part.rename(directory / name)
    if len(parts) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": {name: final[n] for name, n in places.items()}}
        write_json(directory / INDEX, index)


# ---- theirs to ours ------------------------------------------------------------------------------------------------


@torch.no_grad()
def read_weights(directory: Path, *, config: ModelConfig, form: str) -> Transformer:
    """The network whose ``exported_tensors`` are the files of ``directory``, in fp32, without run-time factors.

    ``FileNotFoundError`` or ``ValueError`` names the file or the tensor that is missing, torn, too many, of another
    shape, or, in the Llama form, no longer the constant that our network needs it to be.
    """
    files = _weight_files(Path(directory))
    with torch.device("meta"):
        network = Transformer(replace(config, init=PLAIN))
    network.to_empty(device="cpu")
    constants = dict(constant_tensors(config, form=form))
    wanted = dict(exported_tensors(network, form=form)) | constants
    for path in files:
        try:
            with safe_open(path, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (no mapping)
                    if name not in wanted:
                        raise ValueError(f"{path} holds {name}, which this network has no place for; export it anew.")
                    _take(opened.get_tensor(name), wanted.pop(name), name=name, path=path, constant=name in constants)
        except SafetensorError as error:
            raise ValueError(
                f"{path} is no whole safetensors file ({error}); restore it from a complete copy."
            ) from error
    if wanted:
        missing = ", ".join(sorted(wanted)[:3])
        raise ValueError(f"{directory} lacks {len(wanted)} tensor(s): {missing}...; restore it from a complete copy.")
    return network.eval()


def _weight_files(directory: Path) -> list[Path]:
    names = [SINGLE]
    if (directory / INDEX).is_file():
        try:
            index = json.loads((directory / INDEX).read_text(encoding="utf-8"))
            names = sorted(set(index["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{directory / INDEX} is no index of weights ({error!r}); restore it.") from error
    for name in names:
        if Path(name).name != name or not (directory / name).is_file():
            raise FileNotFoundError(f"{directory / name} is missing; restore it from a complete copy of the export.")
    return [directory / name for name in names]


def _take(found: torch.Tensor, place: torch.Tensor, *, name: str, path: Path, constant: bool) -> None:
    """Copy a tensor of a file to its place, or hold a constant against what it has to be."""
    if found.shape != place.shape or not found.is_floating_point():
        raise ValueError(
            f"{path}: {name} is {found.dtype} {list(found.shape)}, but this network has {list(place.shape)} there; its "
            "manifest.json belongs to another model."
        )
    if not constant:
        place.copy_(found)
    elif not torch.equal(found.float(), place):
        raise ValueError(
            f"{path}: {name} is no longer constant, because the model was trained in the Llama form; this network has "
            "no place for a gated MLP. Train the Arcee form, or keep to Llama."
        )


def unfolded_table(table: torch.Tensor, factor: float) -> torch.Tensor | None:
    """The fp32 table whose product with ``factor`` is ``table`` bit for bit, or None where there is none.

    Several values may have the same rounded product; the one nearest to the quotient is taken.
    """
    quotient = table / factor
    ends = torch.tensor([torch.inf, -torch.inf])
    for candidate in (quotient, torch.nextafter(quotient, ends[0]), torch.nextafter(quotient, ends[1])):
        quotient = torch.where(quotient * factor == table, quotient, candidate)
    return quotient if torch.equal(quotient * factor, table) else None
