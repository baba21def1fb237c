"""A model directory as one GGUF file for llama.cpp and the programs built on it, in their ``llama`` architecture.

llama.cpp has no graph of our network (two matrices with SiLU between them; its ``arcee`` squares a ReLU), but its gated
MLP, ``down(silu(gate x) * (up x + bias))``, is ours exactly with our first matrix as the gate, ``up`` zero and its bias
one. The zeros are stored in the smallest common block type, so they cost 2.6 bits each and no accuracy. The embedding's
factor and trainable gates are folded into the matrices; rows of queries and keys are put in the order of llama.cpp's
rotation. Every tensor is read back and held against the network before the file gets its name.

**Text.** llama.cpp has no morphological analyser and no cleaning, so the exact way is to send ids: make them here
(``Tokenizer.encode``, ``ncvc.chat.encode_prompt``) and give them as ``prompt`` to the server's ``/completion``. Plain
text works too, over the same pieces, scores and bytes but without the limits of words (llama.cpp's ``plamo2``
tokenizer): most ids are the same, not all (measured in ``.github/LOG.md``). There begin-of-text is not added: write
``<|begin_of_text|>`` first, as the chat template in the file does. Special tokens typed in a text are special in
llama.cpp, unlike here.

Costs: the network once in memory and one more matrix. Needs ``pip install 'ncvc[gguf]'``. What it does not do:
quantize below 8 bits (llama.cpp's own ``llama-quantize`` does, from the f16 file).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
import torch

from ncvc.chat import has_chat_tokens
from ncvc.huggingface_tokenizer import chat_template
from ncvc.model.checkpoint import load_model_directory, refuse_int8
from ncvc.model.transformer import Block, Embedding, ModelConfig, Projection, Transformer
from ncvc.storage import require_free_space, whole_file
from ncvc.tokenizer import FIRST_BYTE_ID, FIRST_PIECE_ID, MODEL_FILE, NEWLINE_ID, UNKNOWN_ID, Tokenizer

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

GGUFType = Literal["f32", "f16", "q8_0"]
ARCHITECTURE = "llama"
TOKENIZER_MODEL = "plamo2"  # llama.cpp's name of Unigram pieces with byte pieces, the best path over a whole text
_UNUSED = "<|unused_"


@dataclass(frozen=True)
class _Tensor:
    """One tensor of the file: ``values()`` gives it as fp32 [rows, columns] (or [size])."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    values: Callable[[], np.ndarray]


def write_gguf(directory: Path, *, output: Path, type: GGUFType = "f16") -> dict[str, Any]:
    """Write the model directory as ``output`` (a ``.gguf`` file, replaced only by a whole one); what was written.

    ``type`` is that of the matrices: f32 is exact, f16 halves it, q8_0 has 8-bit blocks of 32; vectors stay fp32. A
    matrix whose rows q8_0 cannot hold (columns no multiple of 32) is f16, as llama.cpp does it. Returned: ``path``,
    ``bytes``, ``type``, ``tensors``, ``largest_error`` (largest |stored - ours| over all tensors). ``ValueError`` for a
    network that llama.cpp cannot run, weights that do not fit the type, a file that does not read back as written.
    """
    gguf = _gguf()
    output = Path(output)
    if type not in get_args(GGUFType):
        raise ValueError(f"export.type={type!r} is not one of {', '.join(get_args(GGUFType))}.")
    if output.suffix != ".gguf" or output.is_dir():
        raise ValueError(f"export.output={output} has to name a file that ends in .gguf.")
    refuse_int8(directory, purpose="GGUF has its own 8-bit type: export the model it was made from with type=q8_0")
    model, tokenizer = load_model_directory(directory)
    _check_network(model.config)
    tensors = list(_tensors(model, type=type))
    size = sum(_stored_bytes(tensor) for tensor in tensors)
    require_free_space(output.parent, size + (64 << 20), what=f"the GGUF file {output.name}")
    with whole_file(output) as handle:
        writer = gguf.GGUFWriter(handle.name, ARCHITECTURE)
        try:
            _add_network(writer, model.config, type=type)
            _add_tokenizer(writer, tokenizer, scores=_scores(directory))
            _write(writer, tensors)
        finally:
            writer.close()
        largest = _verify(Path(handle.name), tensors)
    return {
        "path": str(output),
        "bytes": output.stat().st_size,
        "type": type,
        "tensors": len(tensors),
        "largest_error": largest,
    }


# ---- the network -----------------------------------------------------------------------------------------------------


def _check_network(config: ModelConfig) -> None:
    if config.qk_norm:
        raise ValueError(
            "model.qk_norm=true: llama.cpp's llama architecture has no norm of queries and keys, so it would compute "
            "something else; run this model with python -m ncvc.generate."
        )


def _add_network(writer: GGUFWriter, config: ModelConfig, *, type: GGUFType) -> None:
    from gguf import LlamaFileType

    kinds = {"f32": LlamaFileType.ALL_F32, "f16": LlamaFileType.MOSTLY_F16, "q8_0": LlamaFileType.MOSTLY_Q8_0}
    writer.add_type("model")
    writer.add_name("ncvc")
    writer.add_description("Japanese medical language model. Send token ids, or cleaned text after <|begin_of_text|>.")
    writer.add_file_type(kinds[type])
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)


def _tensors(model: Transformer, *, type: GGUFType) -> Iterator[_Tensor]:
    """All tensors in the order of the file, each made only when its ``values()`` are asked for."""
    from gguf import GGMLQuantizationType as Kind

    config = model.config

    def matrix(name: str, rows: int, columns: int, values: Callable[[], torch.Tensor]) -> _Tensor:
        kind = {"f32": Kind.F32, "f16": Kind.F16, "q8_0": Kind.Q8_0 if columns % 32 == 0 else Kind.F16}[type]
        return _Tensor(f"{name}.weight", (rows, columns), kind, lambda: _numbers(values()))

    def vector(name: str, values: torch.Tensor) -> _Tensor:
        return _Tensor(name, tuple(values.shape), Kind.F32, partial(_numbers, values))

    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    zeros = Kind.Q2_K if hidden % 256 == 0 else Kind.Q4_0 if hidden % 32 == 0 else Kind.F16
    yield matrix("token_embd", config.vocab_size, hidden, partial(_embedding, model))
    for number, layer in enumerate(cast("list[Block]", model.layers)):
        name, qkv, mlp = f"blk.{number}", layer.attention.qkv, layer.mlp
        yield vector(f"{name}.attn_norm.weight", layer.attention_norm.weight)
        yield matrix(f"{name}.attn_q", queries, hidden, partial(_block, qkv, 0, heads=config.num_heads))
        yield matrix(f"{name}.attn_k", keys, hidden, partial(_block, qkv, 1, heads=config.num_kv_heads))
        yield matrix(f"{name}.attn_v", keys, hidden, partial(_block, qkv, 2))
        yield matrix(f"{name}.attn_output", hidden, queries, partial(_block, layer.attention.output))
        yield vector(f"{name}.ffn_norm.weight", layer.mlp_norm.weight)
        yield matrix(f"{name}.ffn_gate", inner, hidden, partial(_block, mlp.up))
        yield _Tensor(f"{name}.ffn_up.weight", (inner, hidden), zeros, partial(np.zeros, (inner, hidden), np.float32))
        yield vector(f"{name}.ffn_up.bias", torch.ones(inner))
        yield matrix(f"{name}.ffn_down", hidden, inner, partial(_block, mlp.down))
    yield vector("output_norm.weight", model.final_norm.weight)
    yield matrix("output", config.vocab_size, hidden, partial(_block, model.head))


def _embedding(model: Transformer) -> torch.Tensor:
    embedding: Embedding = model.embedding
    weight = embedding.weight.float()
    weight = weight if embedding.gate is None else weight * embedding.gate.float()
    return weight * model.config.embedding_multiplier


def _block(projection: Projection, part: int = 0, *, heads: int | None = None) -> torch.Tensor:
    """A logical matrix of a projection in fp32, its gate folded in; with ``heads`` its rows in llama.cpp's order."""
    block = projection.row_blocks()[part].float()
    block = block if projection.gate is None else block * projection.gate[part].float()
    return block if heads is None else paired_rows(block, heads=heads)


def paired_rows(matrix: torch.Tensor, *, heads: int) -> torch.Tensor:
    """Rows [heads * D, d] so that the halves (i, i + D/2) that we rotate together lie beside each other (2i, 2i + 1).

    llama.cpp's ``llama`` architecture rotates neighbours.
    """
    return matrix.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)  # [heads, 2, D/2, d] -> [heads, D/2, 2, d]


def _numbers(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy()


# ---- the tokenizer ---------------------------------------------------------------------------------------------------


def _scores(directory: Path) -> list[float]:
    """The score of each piece, by id."""
    record = json.loads((Path(directory) / "tokenizer" / MODEL_FILE).read_text(encoding="utf-8"))
    return [float(score) for _, score in record["model"]["vocab"]]


def _add_tokenizer(writer: GGUFWriter, tokenizer: Tokenizer, *, scores: list[float]) -> None:
    from gguf import TokenType

    texts = [
        piece.replace("\u2581", " ") if id >= FIRST_PIECE_ID else piece for id, piece in enumerate(tokenizer.pieces)
    ]
    if len(set(texts)) != len(texts):
        twice = next(text for text in texts if texts.count(text) > 1)
        raise ValueError(
            f"the tokenizer has the piece {twice!r} twice, once with U+2581 for its space, and llama.cpp wants each "
            "text once. Train the tokenizer on cleaned text, whose spaces are all U+2581."
        )
    first_added = len(texts) - len(tokenizer.added_tokens)
    types = []
    for id, text in enumerate(texts):
        if id in (tokenizer.begin_id, tokenizer.end_id) or id >= first_added:
            types.append(TokenType.CONTROL)
        elif id == UNKNOWN_ID:
            types.append(TokenType.UNKNOWN)
        elif FIRST_BYTE_ID <= id < FIRST_PIECE_ID:
            types.append(TokenType.BYTE)
        else:
            types.append(TokenType.UNUSED if text.startswith(_UNUSED) else TokenType.NORMAL)
    writer.add_tokenizer_model(TOKENIZER_MODEL)
    writer.add_token_list(texts)
    # a newline is a piece of its own that nothing else can be; everywhere else the scores are the tokenizer's
    writer.add_token_scores([0.0 if id == NEWLINE_ID else score for id, score in enumerate(scores)])
    writer.add_token_types(types)
    writer.add_bos_token_id(tokenizer.begin_id)
    writer.add_eos_token_id(tokenizer.end_id)
    writer.add_pad_token_id(tokenizer.end_id)
    writer.add_unk_token_id(UNKNOWN_ID)
    writer.add_add_bos_token(False)  # the chat template writes it; so has who sends plain text
    if has_chat_tokens(tokenizer):
        writer.add_chat_template(llama_chat_template(tokenizer))


def llama_chat_template(tokenizer: Tokenizer) -> str:
    """The exported template, without the marks of training targets, which llama.cpp's Jinja does not know."""
    template = chat_template(tokenizer)
    for mark in ("generation", "endgeneration"):
        template = template.replace("{%- " + mark + " %}", "")
    return template


# ---- the file --------------------------------------------------------------------------------------------------------


def _gguf() -> Any:
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "writing GGUF needs the gguf package; install it with pip install 'ncvc[gguf]'"
        ) from error
    logging.getLogger("gguf").setLevel(logging.WARNING)  # it tells of every file it opens
    return gguf


def _stored_bytes(tensor: _Tensor) -> int:
    from gguf import GGML_QUANT_SIZES

    block, size = GGML_QUANT_SIZES[tensor.type]
    return int(np.prod(tensor.shape)) // block * size


def _write(writer: GGUFWriter, tensors: list[_Tensor]) -> None:
    """Header, then one tensor after the other."""
    for tensor in tensors:
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(np.float32), _stored_bytes(tensor), raw_dtype=tensor.type
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(_encoded(tensor))


def _encoded(tensor: _Tensor) -> np.ndarray:
    from gguf import GGMLQuantizationType as Kind
    from gguf import quants

    values = tensor.values()
    if not np.isfinite(values).all():
        raise ValueError(
            f"{tensor.name} holds numbers that are not finite: the training diverged; export an earlier step."
        )
    largest = float(np.abs(values).max(initial=0.0))
    limit = {Kind.F16: 65_504.0, Kind.Q8_0: 127 * 65_504.0}.get(tensor.type, np.inf)
    if largest > limit:
        raise ValueError(f"{tensor.name} holds {largest:g}, too large for {tensor.type.name}; set export.type=f32.")
    if tensor.type in (Kind.Q2_K, Kind.Q4_0):  # zeros alone: a scale of zero in every block
        return np.zeros(_stored_bytes(tensor), np.uint8)
    return np.ascontiguousarray(quants.quantize(values, tensor.type))


def _verify(path: Path, tensors: list[_Tensor]) -> float:
    """Largest |stored - ours| of the file at ``path``; ``ValueError`` where it is more than the type's rounding."""
    from gguf import GGUFReader, quants

    found = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    if list(found) != [tensor.name for tensor in tensors]:
        raise ValueError(f"{path} does not hold the tensors that were written; write it again.")
    worst = 0.0
    for tensor in tensors:
        values, stored = tensor.values(), found[tensor.name]
        shape = tuple(int(size) for size in reversed(stored.shape))
        error = np.abs(quants.dequantize(stored.data, stored.tensor_type).reshape(shape) - values)
        if shape != tensor.shape or stored.tensor_type != tensor.type or (error > _rounding(values, tensor.type)).any():
            raise ValueError(f"{path}: {tensor.name} does not read back as it was written; write the file again.")
        worst = max(worst, float(error.max(initial=0.0)))
    return worst


def _rounding(values: np.ndarray, type: GGMLQuantizationType) -> np.ndarray | float:
    """The most that storing ``values`` in this type may change each of them."""
    from gguf import GGMLQuantizationType as Kind

    if type == Kind.F16:
        return np.maximum(np.abs(values) * 2.0**-11, 2.0**-25)
    if type == Kind.Q8_0:  # half a step of the block's scale, and the scale's own rounding to fp16
        largest = np.abs(values.reshape(-1, 32)).max(axis=1, keepdims=True)
        return np.broadcast_to(largest * (0.5 / 127 + 2.0**-11) + 2.0**-18, (largest.size, 32)).reshape(values.shape)
    return 0.0
