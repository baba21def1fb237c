"""A short fixed text through the network: the figures by which a loaded checkpoint proves to be the saved one.

Costs one forward pass over at most 64 tokens. Equal figures mean equal weights and equal code; on another machine, or
with another number of threads, sums are rounded otherwise, so close figures pass with a note.
"""

import hashlib
import math
import struct
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch

from ncvc.model.transformer import Transformer

_TOKENS = 64
_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}  # nats per token between two machines


def probe(network: Transformer, *, context: AbstractContextManager[Any]) -> dict[str, Any]:
    """Cross entropies of a fixed row of token ids, in nats, with a hash over their bits; drawn from no generator.

    ``context`` is the autocast that training runs under. The network is left in the mode it was in.
    """
    length = min(_TOKENS, network.config.context_length)
    ids = torch.arange(length + 1, device=network.embedding.weight.device) * 7919 % network.config.vocab_size
    training = network.training
    network.eval()
    try:
        with torch.no_grad(), context, torch.compiler.set_stance("force_eager"):
            kind = ids.device.type
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else network.head.weight.dtype
            losses = network.token_losses(ids[None, :-1], ids[None, 1:])[0].float().tolist()
    finally:
        network.train(training)
    return {
        "losses": losses,
        "sha256": hashlib.sha256(struct.pack(f"<{length}f", *losses)).hexdigest(),
        "precision": str(dtype).removeprefix("torch."),
    }


def compare_probes(saved: Mapping[str, Any], found: Mapping[str, Any], *, where: str) -> str:
    """Say how well the loaded network repeats the saved figures; ``ValueError`` when it does not."""
    if saved["sha256"] == found["sha256"]:
        return "its forward pass is bit for bit the saved one"
    pairs = zip(saved["losses"], found["losses"], strict=False)
    difference = max(abs(a - b) if math.isfinite(a - b) else math.inf for a, b in pairs)
    tolerance = max(_TOLERANCE.get(str(side["precision"]), 5e-2) for side in (saved, found))
    if len(saved["losses"]) != len(found["losses"]) or not difference <= tolerance:
        raise ValueError(
            f"{where}: the loaded network does not compute what the saved one did (cross entropies of a fixed text "
            f"differ by up to {difference:.3g} nats, allowed {tolerance:g}): the weights or the code are not the same. "
            "Use an older checkpoint, or the version of ncvc that wrote this one."
        )
    return f"its forward pass is the saved one to {difference:.1e} nats (other machine, threads or precision)"
