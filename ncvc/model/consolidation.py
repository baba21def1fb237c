"""From a training checkpoint to the model directory: whole fp32 weights out of the ranks' shards.

Needs no GPU, no DeepSpeed and no more ranks than one, whoever wrote the checkpoint; memory for the weights once. The
result has to compute what the trained network computed when it was saved. A checkpoint of adapters (LoRA) holds these
alone: they are merged into the weights of the base that they were trained beside.
"""

import contextlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ncvc.checkpoints import open_checkpoint
from ncvc.model.base import base_weights
from ncvc.model.checkpoint import save_model_directory
from ncvc.model.lora import LoraSettings, add_adapters, merged_weights
from ncvc.model.probe import compare_probes, probe
from ncvc.model.training_state import StateReader
from ncvc.model.transformer import ModelConfig, Transformer


def consolidate(checkpoint: Path, *, output: Path, base: Path | None = None) -> dict[str, Any]:
    """Write the weights of ``checkpoint`` (a folder ``step=...``) as a model directory; what was found, for printing.

    ``base`` says where the base of adapters lies now, if not where it was. ``ValueError`` when a file of the checkpoint
    is torn or altered, the base is another, or the network does not repeat the saved figures.
    """
    path = open_checkpoint(Path(checkpoint)).path
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    config = ModelConfig.from_dict(state["model"])
    reader = StateReader(path, state["shards"])
    lora = (
        None
        if state.get("lora") is None
        else LoraSettings(**{**state["lora"], "targets": (*state["lora"]["targets"],)})
    )
    with torch.device("meta"):
        network = Transformer(config)
        if lora is not None:
            add_adapters(network, lora)
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    shapes = {name: network.get_parameter(name).shape for name in trained}
    weights = {name: reader.read_full("weight", name, shape) for name, shape in shapes.items()}
    if lora is not None:
        weights |= _beside_adapters(state, config, path=path, base=base)
    network.load_state_dict(weights, assign=True)
    found = probe(network, context=contextlib.nullcontext())
    told = compare_probes(state["probe"], found, where=str(path))
    save_model_directory(
        Path(output),
        config=config,
        weights=merged_weights(network),
        tokenizer=path / "tokenizer",
        training={
            "steps": state["step"],
            "tokens_seen": state["tokens_seen"],
            "data_fingerprint": state["data_fingerprint"],
            "seed": state["identity"]["seed"],
            **state.get("origin", {}),
            **({} if lora is None else {"lora": asdict(lora)}),
            **state["held_out"],
        },
    )
    return {"step": state["step"], "parameters": config.num_parameters, "shards": len(state["shards"]), "probe": told}


def _beside_adapters(
    state: dict[str, Any], config: ModelConfig, *, path: Path, base: Path | None
) -> dict[str, torch.Tensor]:
    """The frozen weights that the adapters of a checkpoint were trained beside."""
    where = Path(base or state["base"] or "")
    if not (where / "model_config.json").is_file():
        raise FileNotFoundError(
            f"{path} holds adapters (LoRA) alone, and the model they were trained beside is not in {where}; put it "
            "back, or name the model directory that holds it now as base."
        )
    weights, origin = base_weights(where, config, seed=state["identity"]["seed"])
    expected = state["origin"]["base"]["weights"]
    if origin["weights"] != expected:
        raise ValueError(
            f"{path} holds adapters (LoRA) of another model than {where} (sha256 of its weights {expected[:12]}..., "
            f"there {origin['weights'][:12]}...); name the model directory that they were trained beside as base."
        )
    return weights
