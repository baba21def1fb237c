"""Tokenizer, tokens and data card of a finished curated corpus."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ncvc.curation.corpus import open_curated
from ncvc.curation.data_card import data_card, write_card
from ncvc.preparation import prepare
from ncvc.shards import TokenFile


def pack_curated(folder: Path, *, home: Path, values: Mapping[str, Any], workers: int) -> str:
    """Fit or take the tokenizer, pack every store, put the certificate beside the tokens, write the card.

    ``values`` holds ``tokenizer``, ``validation_fraction`` and ``split_seed``. Builds only
    what is missing; returns where everything lies, to be printed.
    """
    corpus = open_curated(folder, home=home)
    prepared = prepare(
        corpus.sources(),
        home=home,
        cleaning=corpus.settings["cleaning"],
        analyzer=corpus.settings["analyzer"],
        tokenizer=values["tokenizer"],
        validation_fraction=values["validation_fraction"],
        text_field="text",
        split_seed=values["split_seed"],
        workers=workers,
    )
    tokens: dict[str, int] = {}
    lines = [f"tokenizer        {prepared.tokenizer}"]
    for name in prepared.train:
        folders = [prepared.train[name], *([prepared.validation[name]] if name in prepared.validation else [])]
        sides = [TokenFile.open(side) for side in folders]
        tokens[name] = sum(side.tokens for side in sides)
        characters = sum(side.characters for side in sides)
        _lay_certificate(folder / "certificate", prepared.train[name].parent / "certificate")
        lines.append(
            f"tokens           {prepared.train[name].parent}: {tokens[name]:,}, "
            f"{characters / max(1, tokens[name]):.3f} characters each"
        )
    card = data_card(corpus.manifest, tokens=tokens)
    lines += [f"data card        {path}" for path in write_card(folder, card)]
    lines.append(f"to train on it   python -m ncvc.train experiment=... data.corpus={folder}")
    return "\n".join(lines)


def _lay_certificate(certificate: Path, place: Path) -> None:
    """The certificate beside the tokens, as links where the disk allows."""
    if not certificate.is_dir() or place.is_dir():
        return
    partial = place.with_name(f".{place.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for path in certificate.iterdir():
        try:
            os.link(path, partial / path.name)
        except OSError:
            shutil.copy2(path, partial / path.name)
    partial.rename(place)
