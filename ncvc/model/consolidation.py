"""From a training checkpoint to the model directory: whole fp32 weights out of the ranks' shards.

Needs no GPU, no DeepSpeed and no more ranks than one, whoever wrote the checkpoint; memory for the weights once. The
result has to compute what the trained network computed when it was saved.
"""

import contextlib
import json
from pathlib import Path
from typing import Any

import torch

from ncvc.checkpoints import open_checkpoint
from ncvc.model.checkpoint import save_model_directory
from ncvc.model.probe import compare_probes, probe
from ncvc.model.training_state import StateReader
from ncvc.model.transformer import ModelConfig, Transformer


def consolidate(checkpoint: Path, *, output: Path) -> dict[str, Any]:
    """Write the weights of ``checkpoint`` (a folder ``step=...``) as a model directory; what was found, for printing.

    ``ValueError`` when a file of the checkpoint is torn or altered, or the network does not repeat the saved figures.
    """
    path = open_checkpoint(Path(checkpoint)).path
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    config = ModelConfig.from_dict(state["model"])
    reader = StateReader(path, state["shards"])
    with torch.device("meta"):
        network = Transformer(config)
    weights = {name: reader.read_full("weight", name, tensor.shape) for name, tensor in network.state_dict().items()}
    network.load_state_dict(weights, assign=True)
    found = probe(network, context=contextlib.nullcontext())
    told = compare_probes(state["probe"], found, where=str(path))
    save_model_directory(
        Path(output),
        config=config,
        weights=weights,
        tokenizer=path / "tokenizer",
        training={
            "steps": state["step"],
            "tokens_seen": state["tokens_seen"],
            "data_fingerprint": state["data_fingerprint"],
            "seed": state["identity"]["seed"],
            **state["held_out"],
        },
    )
    return {"step": state["step"], "parameters": config.num_parameters, "shards": len(state["shards"]), "probe": told}
