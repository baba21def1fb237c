"""The model directory: all that evaluation, generation, analysis and export ever read.

``model.safetensors`` (weights), ``model_config.json`` (shape, choices, and how it was trained) and ``tokenizer/``
(self-contained, see ``ncvc.tokenizer``). Nothing in it is pickled. Written beside and renamed, so that a reader never
meets half a directory.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ncvc.model.transformer import ModelConfig, Transformer
from ncvc.tokenizer import Tokenizer

FORMAT = 1


def save_model_directory(
    directory: Path,
    *,
    config: ModelConfig,
    weights: Mapping[str, torch.Tensor],
    tokenizer: Path,
    training: Mapping[str, Any],
) -> None:
    """Write ``weights`` (the network's state dict) with their configuration and a copy of the ``tokenizer`` directory.

    An existing directory of the same name is replaced only after the new one is complete.
    """
    partial = directory.with_name(f".{directory.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()},
        partial / "model.safetensors",
    )
    record = {"format": FORMAT, "model": config.to_dict(), "training": dict(training)}
    (partial / "model_config.json").write_text(
        json.dumps(record, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
    )
    shutil.copytree(tokenizer, partial / "tokenizer")
    for path in partial.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    if directory.exists():
        old = directory.with_name(f".{directory.name}.old-{os.getpid()}")
        directory.rename(old)
        partial.rename(directory)
        shutil.rmtree(old)
    else:
        partial.rename(directory)


def read_model_config(directory: Path) -> ModelConfig:
    """The network's configuration from a model directory; errors name the file and the cure."""
    path = Path(directory) / "model_config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{directory} is not a model directory: it has no model_config.json. Name the 'model' folder of a run "
            "(.ncvc/runs/<name>/<time>/model)."
        )
    record = json.loads(path.read_text(encoding="utf-8"))
    if record.get("format") != FORMAT:
        raise ValueError(f"{path}: format {record.get('format')!r} is not the format {FORMAT} that this version reads.")
    return ModelConfig.from_dict(record["model"])


def load_model_directory(directory: Path, *, device: str = "cpu") -> tuple[Transformer, Tokenizer]:
    """The network (in evaluation mode) and the tokenizer of a model directory.

    Raises when weights and configuration do not fit each other, or the tokenizer does not fit the model.
    """
    directory = Path(directory)
    config = read_model_config(directory)
    with torch.device("meta"):
        model = Transformer(config)
    weights = load_file(directory / "model.safetensors", device=device)
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
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
