"""Tables and figures from what runs left on disk: ``python -m ncvc.report sweep=FOLDER`` (or ``sweep=last``).

Remakes a sweep's summary.md, summary.csv, figures and TensorBoard view from its job folders, also while it still runs,
and prints the tables. Runs nothing.
"""

import sys
from pathlib import Path

from omegaconf import DictConfig

from ncvc.command_line import run


def report(config: DictConfig) -> Path:
    """Hydra's entry point: summarize the sweep that is named; returns its folder."""
    from ncvc.analysis.sweeps import newest_sweep, summarize_sweep

    if not config.sweep_folder:
        raise ValueError("sweep is not set: name a sweep's folder (.ncvc/sweeps/<name>/<time>), or last.")
    named = str(config.sweep_folder)
    folder = newest_sweep(Path(config.home)) if named == "last" else Path(named).expanduser().absolute()
    print(summarize_sweep(folder))
    return folder


def main(arguments: list[str]) -> None:
    """Turn ``sweep=FOLDER`` into Hydra's argument: ``sweep`` itself is a folder of ``conf/``, so Hydra looks there."""
    given = [
        "sweep_" + text.replace("sweep=", "folder=", 1) if text.startswith("sweep=") else text for text in arguments
    ]
    run(report, config_name="report", arguments=given)


if __name__ == "__main__":
    main(sys.argv[1:])
