"""A model directory whose matrices are int8: a quarter of the size, and faster on a CPU with enough weights to move.

Weights and inputs of every linear layer have 8 bits, with one scale a row (``ncvc.model.int8_layers``); norms stay
fp32. ``load_model_directory`` opens the result, generation and scoring run unchanged; training is refused. The result
is measured before it is written, on fixed Japanese clinical text (the bundled samples): perplexity may rise by
``MAX_PERPLEXITY_RISE`` at most, that of the text and that of the model's own continuations (exp of the mean
Kullback-Leibler divergence of the two predictions), which no model is too strange to the text to show.

Costs: the network twice in memory (fp32 and int8) and two passes over 16 rows of text. What it does not do: calibrate,
keep outlier columns apart, go below 8 bits.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ncvc.corpus.clinical.samples import generate_documents
from ncvc.model.checkpoint import load_model_directory, read_model_record, refuse_int8, save_model_directory
from ncvc.model.int8_layers import INT8, int8_weights, put_int8_layers
from ncvc.model.transformer import Transformer
from ncvc.tokenizer import Tokenizer

MAX_PERPLEXITY_RISE = 0.02  # 2%: far above what 8 bits cost the networks measured so far (see .github/LOG.md)
_ROWS, _LENGTH = 16, 256


def write_int8(directory: Path, *, output: Path) -> dict[str, Any]:
    """Write the model directory with int8 matrices as ``output``; what was written and what it costs in quality.

    Returned: ``path``, ``bytes`` of the weights, ``bytes_before``, ``largest_logit_difference`` and
    ``mean_logit_difference`` (absolute, over the measured text), ``perplexity_before``, ``perplexity_after``,
    ``divergence`` (mean KL of before from after, nats) and ``tokens`` measured. ``ValueError`` when perplexity rises by
    more than ``MAX_PERPLEXITY_RISE``, when the directory is int8 already or the output's own source; then nothing is
    written.
    """
    directory, output = Path(directory), Path(output)
    if output.resolve() == directory.resolve():
        raise ValueError(f"export.output={output} is the model itself, which would be lost; name another folder.")
    refuse_int8(directory, purpose="Nothing is left to do; to measure it anew, use the directory that it was made from")
    model, tokenizer = load_model_directory(directory)
    model = model.float()
    weights = int8_weights(model)
    measured = compare(model, int8_model(model, weights), ids=measured_ids(tokenizer, model.config.context_length))
    rise = max(measured["perplexity_after"] / measured["perplexity_before"], math.exp(measured["divergence"])) - 1.0
    if not rise <= MAX_PERPLEXITY_RISE:
        raise ValueError(
            f"{directory}: int8 raises the perplexity of {measured['tokens']} tokens of clinical text from "
            f"{measured['perplexity_before']:.4g} to {measured['perplexity_after']:.4g}, or of its own text by "
            f"exp({measured['divergence']:.4g}): by {rise:.1%}, and at most {MAX_PERPLEXITY_RISE:.0%} is let pass. "
            "Nothing was written: run it in bf16, or export q8_0 for llama.cpp."
        )
    save_model_directory(
        output,
        config=model.config,
        weights=weights,
        tokenizer=directory / "tokenizer",
        training=read_model_record(directory).get("training") or {},
        quantization={"kind": INT8, **measured},
    )
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (output, directory)]
    return {"path": str(output), "bytes": sizes[0], "bytes_before": sizes[1], **measured}


def int8_model(model: Transformer, weights: dict[str, torch.Tensor]) -> Transformer:
    """The network of ``model`` with the int8 ``weights`` of ``int8_weights``."""
    with torch.device("meta"):
        quantized = Transformer(replace(model.config, attention_backend="auto"))
    quantized.load_state_dict(put_int8_layers(quantized, weights), assign=True)
    return quantized.eval()


def measured_ids(tokenizer: Tokenizer, context_length: int) -> torch.Tensor:
    """Token ids [rows, length] of bundled clinical documents that the quickstart does not train on."""
    length = min(_LENGTH, context_length)
    stream: list[int] = []
    for document in generate_documents(documents=_ROWS * 4, seed=1):
        stream += [tokenizer.begin_id, *tokenizer.encode(document.text), tokenizer.end_id]
        if len(stream) >= _ROWS * length:
            break
    rows = max(1, min(_ROWS, len(stream) // length))
    return torch.tensor(stream[: rows * length]).view(rows, -1)


@torch.inference_mode()
def compare(before: Transformer, after: Transformer, *, ids: torch.Tensor) -> dict[str, Any]:
    """Perplexity of the tokens ``ids`` [rows, length] under both networks, and how far their logits are apart."""
    losses, largest, total, divergence, count = [0.0, 0.0], 0.0, 0.0, 0.0, 0
    for row in ids.split(1):
        logits = [network(row)[:, :-1].float() for network in (before, after)]
        for place, values in enumerate(logits):
            losses[place] += float(F.cross_entropy(values[0], row[0, 1:], reduction="sum"))
        was, now = (values[0].double().log_softmax(dim=-1) for values in logits)
        divergence += float((was.exp() * (was - now)).sum())
        difference = (logits[0] - logits[1]).abs()
        largest = max(largest, float(difference.max()))
        total += float(difference.double().sum())
        count += difference.numel()
    tokens = ids[:, 1:].numel()
    return {
        "tokens": tokens,
        "largest_logit_difference": largest,
        "mean_logit_difference": total / count,
        "divergence": divergence / tokens,
        "perplexity_before": math.exp(losses[0] / tokens),
        "perplexity_after": math.exp(losses[1] / tokens),
    }
