"""New rows of the embedding and the head for the role tokens of chat: 32,768 -> 32,771 (R74).

How the report's new rows start is not stated. Here a new row is the mean of the existing rows plus noise of the law
that the matrix was drawn from (the table of its init variant): new tokens begin as an average word, and differ from
each other. Existing rows, and with them the logits of existing ids, stay as they are. The noise comes from a generator
of its own, so the same seed gives the same rows on every rank. Costs one pass over both matrices.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from ncvc.model.initialization import table
from ncvc.model.transformer import ModelConfig
from ncvc.randomness import mix

_GROWN = ("embedding", "head")
_PURPOSE = 0x67726F77  # keeps these draws apart from others of the same seed


def grow(
    weights: Mapping[str, torch.Tensor], config: ModelConfig, *, new_rows: int, seed: int
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The weights of ``config`` with ``new_rows`` more rows in embedding and head, and a record of how they start.

    ``weights`` is a network's state dict, ``config`` its configuration before the growth. The record names law,
    standard deviation (of the stored values), seed and new ids. ``ValueError`` for a number of rows below 1.
    """
    if new_rows < 1:
        raise ValueError(f"new_rows={new_rows}: a vocabulary grows by at least one row.")
    rows = {row.matrix: row for row in table(config)}
    grown, laws = dict(weights), {}
    for place, matrix in enumerate(_GROWN):
        name = f"{matrix}.weight"
        old = weights[name]  # [V, d]
        row = rows[matrix]
        generator = torch.Generator().manual_seed(mix(seed, _PURPOSE, place) >> 1)
        noise = torch.randn(new_rows, old.size(1), generator=generator, dtype=torch.float64) * row.stored_std
        new = old.double().mean(dim=0).cpu() + noise  # [new_rows, d]
        grown[name] = torch.cat((old, new.to(device=old.device, dtype=old.dtype)))
        laws[matrix] = {"law": f"mean of the existing rows + {row.law}", "std": row.stored_std}
    first = config.vocab_size
    record = {"from": first, "to": first + new_rows, "ids": [*range(first, first + new_rows)], "seed": seed, **laws}
    return grown, record


def grown_config(config: ModelConfig, *, new_rows: int) -> ModelConfig:
    """The configuration of the grown network."""
    return replace(config, vocab_size=config.vocab_size + new_rows)
