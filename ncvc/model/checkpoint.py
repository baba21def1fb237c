"""The model directory: all that evaluation, generation, analysis and export ever read.

``model.safetensors`` (weights), ``model_config.json`` (shape, choices, and how it was trained), ``tokenizer/``
(self-contained, see ``ncvc.tokenizer``) and ``manifest.json`` (size and hashes of the weights, checked on loading).
Nothing in it is pickled. Written beside and renamed, so that a reader never meets half a directory.

Its matrices may be int8 (``ncvc.model.int8``): then ``model_config.json`` says so under ``quantization``, and the
network opens for running only.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ncvc.model.int8_layers import INT8, put_int8_layers
from ncvc.model.transformer import ModelConfig, Transformer
from ncvc.storage import atomic_directory, check_file, file_record, read_manifest, write_json, write_manifest
from ncvc.tokenizer import Tokenizer

FORMAT, MANIFEST = 1, "ncvc-model"


def save_model_directory(
    directory: Path,
    *,
    config: ModelConfig,
    weights: Mapping[str, torch.Tensor],
    tokenizer: Path,
    training: Mapping[str, Any],
    quantization: Mapping[str, Any] | None = None,
) -> None:
    """Write ``weights`` (the network's state dict) with their configuration and a copy of the ``tokenizer`` directory.

    ``quantization`` is the record of int8 weights (``ncvc.model.int8``). An existing model directory is replaced only
    after the new one is complete; a failed save leaves nothing behind.
    """
    with atomic_directory(Path(directory), manifest_format=MANIFEST) as partial:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        save_file(tensors, partial / "model.safetensors")
        record = {"format": FORMAT, "model": config.to_dict(), "training": dict(training)}
        if quantization is not None:
            record["quantization"] = dict(quantization)
        write_json(partial / "model_config.json", record)
        shutil.copytree(tokenizer, partial / "tokenizer")
        files = {"model.safetensors": file_record(partial / "model.safetensors")}
        write_manifest(partial, {"format": MANIFEST, "version": FORMAT, "files": files})


def read_model_record(directory: Path) -> dict[str, Any]:
    """The content of ``model_config.json``: format, model, training, perhaps quantization; errors name the cure."""
    path = Path(directory) / "model_config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{directory} is not a model directory: it has no model_config.json. Name the 'model' folder of a run "
            "(.ncvc/runs/<name>/<time>/model)."
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); restore it from a complete copy.") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds no object; restore it from a complete copy.")
    if record.get("format") != FORMAT:
        raise ValueError(f"{path}: format {record.get('format')!r} is not the format {FORMAT} that this version reads.")
    return record


def read_model_config(directory: Path) -> ModelConfig:
    """The network's configuration from a model directory; errors name the file and the cure."""
    try:
        return ModelConfig.from_dict(read_model_record(directory).get("model") or {})
    except ValueError as error:
        path = str(Path(directory) / "model_config.json")
        raise ValueError(str(error) if str(error).startswith(path) else f"{path}: {error}") from error


def is_int8(directory: Path) -> bool:
    """Whether a model directory's matrices are int8; ``ValueError`` for a quantization this version cannot read."""
    quantization = read_model_record(directory).get("quantization")
    if quantization is None:
        return False
    if not isinstance(quantization, dict) or quantization.get("kind") != INT8:
        raise ValueError(
            f"{Path(directory) / 'model_config.json'}: the quantization {quantization!r} is not the {INT8} that this "
            "version reads; use the version of ncvc that wrote it, or the model directory that it was made from."
        )
    return True


def refuse_int8(directory: Path, *, purpose: str) -> None:
    """``ValueError`` when the matrices are int8; ``purpose`` says what needs the full ones, and the cure."""
    if is_int8(directory):
        raise ValueError(f"{directory} holds int8 weights, made for running only. {purpose}.")


def load_model_directory(directory: Path, *, device: str = "cpu") -> tuple[Transformer, Tokenizer]:
    """The network (in evaluation mode) and the tokenizer of a model directory.

    Raises when weights and configuration do not fit each other, or the tokenizer does not fit the model.
    """
    directory = Path(directory)
    config, int8 = read_model_config(directory), is_int8(directory)
    for name, record in read_manifest(directory, manifest_format=MANIFEST, version=FORMAT)["files"].items():
        check_file(directory / name, record, verify=False, cure="restore it from a complete copy")
    config = replace(config, attention_backend="auto")  # the machine that trained need not be the one that runs
    with torch.device("meta"):
        model = Transformer(config)
    try:
        weights = load_file(directory / "model.safetensors", device=device)
        if int8:
            weights = put_int8_layers(model, weights)
        model.load_state_dict(weights, assign=True)
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{directory}/model.safetensors does not fit its model_config.json: {error}") from error
    tokenizer = Tokenizer.load(directory / "tokenizer")
    check_tokenizer_fits(tokenizer.vocab_size, config=config, where=str(directory))
    return model.eval(), tokenizer


def check_tokenizer_fits(vocab_size: int, *, config: ModelConfig, where: str) -> None:
    """``ValueError`` when the tokenizer has another number of ids than the model has rows."""
    if vocab_size != config.vocab_size:
        raise ValueError(
            f"{where}: the tokenizer has {vocab_size} ids and the model has model.vocab_size={config.vocab_size} rows; "
            f"set model.vocab_size={vocab_size}, or use the tokenizer that the model was made for."
        )
