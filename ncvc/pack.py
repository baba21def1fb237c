"""Tokens of a text for a given tokenizer: ``python -m ncvc.pack source=TEXT_OR_STORE tokenizer.directory=DIR``.

Cleans and segments the source as the tokenizer's text was (a finished segmented store is used as it is) and packs it
into a folder under ``home/tokens`` with training and held-out tokens. What is complete is not made again.
"""

import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ncvc.command_line import run


def pack(config: DictConfig) -> Path:
    """Hydra's entry point; returns the token folder."""
    from ncvc.preparation import Source, prepare_tokens
    from ncvc.shards import TokenFile

    values: Any = OmegaConf.to_container(config, resolve=True)
    if values["source"] is None:
        raise ValueError("source is not set: name a text file, a folder of them, or a finished segmented store")
    if values["tokenizer"]["directory"] is None:
        raise ValueError(
            "tokenizer.directory is not set: name the folder of a tokenizer; python -m ncvc.fit_tokenizer makes one"
        )
    name = str(values["name"])
    if not name or name.startswith(".") or "/" in name:
        raise ValueError(f"name={name!r} is to be the start of a folder's name; set letters and digits")
    directory = Path(values["tokenizer"]["directory"]).expanduser()
    prepared = prepare_tokens(
        [Source(name=name, path=str(values["source"]))],
        tokenizer=directory,
        home=Path(values["home"]).expanduser(),
        validation_fraction=values["validation_fraction"],
        text_field=values["text_field"],
        split_seed=values["split_seed"],
        workers=values["workers"] or len(os.sched_getaffinity(0)),
    )
    for side, folder in (("train", prepared.train[name]), ("validation", prepared.validation[name])):
        file = TokenFile.open(folder)
        print(
            f"{side:<11}{file.tokens:>16,} tokens {file.documents:>12,} documents "
            f"{file.characters / file.tokens:>8.3f} characters per token   {folder}"
        )
    print(f"to train on it   python -m ncvc.train data.source={values['source']} tokenizer.directory={directory} ...")
    return prepared.train[name].parent


if __name__ == "__main__":
    run(pack, config_name="pack")
