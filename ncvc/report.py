"""Tables and figures from what runs left on disk: ``python -m ncvc.report`` or ``python -m ncvc.report sweep=FOLDER``.

Without ``sweep``: Tables 2 to 7 and Figures 3, 6 and 7 of the technical report with one's own scores and runs, as one
HTML page, Markdown, JSON and PNG. With it: a sweep's summary, figures and TensorBoard view, also while it still runs.
Runs nothing; every setting is in ``conf/report.yaml``.
"""

import sys
from functools import partial
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ncvc.command_line import run

TEXTS = ("scores", "runs", "output")


def report(config: DictConfig, *, texts: dict[str, str] | None = None) -> Path:
    """Hydra's entry point: the score report, or the summary of the sweep that is named; returns its page or folder."""
    if config.sweep_folder:
        from ncvc.analysis.sweeps import newest_sweep, summarize_sweep

        named = str(config.sweep_folder)
        folder = newest_sweep(Path(config.home)) if named == "last" else Path(named).expanduser().absolute()
        print(summarize_sweep(folder))
        return folder

    from ncvc.analysis.score_report import ReportSettings, write_report

    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    settings = ReportSettings.from_plain({**{str(key): value for key, value in plain.items()}, **(texts or {})})
    return write_report(settings, tell=partial(print, flush=True))


def main(arguments: list[str]) -> None:
    """Turn ``sweep=FOLDER`` into Hydra's argument: ``sweep`` itself is a folder of ``conf/``, so Hydra looks there."""
    given = [
        "sweep_" + text.replace("sweep=", "folder=", 1) if text.startswith("sweep=") else text for text in arguments
    ]
    from ncvc.settings import plain_texts

    rest, texts = plain_texts(given, names=TEXTS, keep_lists=True)

    def task(config: DictConfig) -> None:
        report(config, texts=texts)

    run(task, config_name="report", arguments=rest)


if __name__ == "__main__":
    main(sys.argv[1:])
