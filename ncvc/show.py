"""What a training step learns from: ``python -m ncvc.show experiment=sft_quickstart rows=3 step=1``.

Composes the configuration of that training, prepares what is missing, and prints rows of the step with the tokens that
are targets in colour, where each row comes from, and the length statistics. ``html=FILE`` writes the same as a page.
Trains nothing. Works for packed text too, where documents are told apart by colour.
"""

import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict

from ncvc.command_line import run
from ncvc.config import check, with_base
from ncvc.row_display import ShowSettings, as_text, heading, rows_of_step, summaries, write_page


def show(config: DictConfig) -> list[Any]:
    """Hydra's entry point: compose, prepare, print; returns the rows."""
    from hydra.utils import instantiate

    names = [field.name for field in fields(ShowSettings)]
    settings = ShowSettings(**{name: config[name] for name in names})
    with open_dict(config):
        for name in names:
            config.pop(name)
    check(config)
    steps = config.trainer.max_steps
    if settings.step > steps:
        raise ValueError(f"step={settings.step}: the training has only {steps} steps.")
    if config.base is not None:
        from ncvc.model.base import find_base

        config = with_base(config, find_base(config.base, home=Path(config.paths.home)))
    data: Any = instantiate(config.data, _convert_="all")
    data.prepare_data()
    data.setup()
    rows = rows_of_step(data, step=settings.step, rows=settings.rows)
    color = settings.color if settings.color is not None else sys.stdout.isatty() and "NO_COLOR" not in os.environ
    title = f"{config.name}, step {settings.step} of {steps}: {len(rows)} of {data.batch_size} samples"
    notes = summaries(data, max_steps=steps)
    print(title)
    for number, row in enumerate(rows, 1):
        print(f"\n{heading(row, number)}\n{as_text(row, tokenizer=data.tokenizer, color=color)}")
    print("", *notes, sep="\n")
    if settings.html is not None:
        path = Path(settings.html).expanduser()
        write_page(path, title=title, rows=rows, tokenizer=data.tokenizer, notes=notes)
        print(f"page {path}")
    return rows


if __name__ == "__main__":
    run(show, config_name="show")
