"""Benchmark scores of a model: ``python -m ncvc.evaluate model=last tasks=[jmed_llm,igakuqa_2018]``.

The model is a directory of ours, a Hugging Face directory, or behind an OpenAI-compatible ``server=URL``. Answers are
saved as they come, so the same command goes on where it stopped; ``score=FOLDER`` scores saved answers again. Every
setting, with its meaning, is in ``conf/evaluate.yaml``.
"""

import shlex
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ncvc.command_line import run


def tell(text: str) -> None:
    """Notes and progress go to standard error, sheets alone to standard output."""
    print(text, file=sys.stderr, flush=True)


def evaluate(config: DictConfig, *, texts: dict[str, str] | None = None, command: str = "") -> list[Path]:
    """Hydra's entry point: answer and score, or score only; returns the folders."""
    from ncvc.evaluation import running
    from ncvc.evaluation.sheet import sheet_text
    from ncvc.evaluation_settings import EvaluateSettings

    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    settings = EvaluateSettings.from_plain({**plain, **(texts or {})})
    if settings.score is not None:
        evaluation = running.read_evaluation(Path(settings.score).expanduser())
        print(sheet_text(running.score(evaluation, settings, tell=tell)))
        return [evaluation.folder]
    tasks = settings.benchmark.load()

    from ncvc.model.responders import open_responder

    responder = open_responder(
        settings.model,
        home=Path(settings.home).expanduser(),
        teacher=settings.connection,
        device=settings.device,
        dtype=settings.dtype,
        batch_size=settings.batch_size,
        tell=tell,
    )
    return running.evaluate_responder(responder, tasks, settings, command=command, tell=tell, write=print)


def main(arguments: list[str]) -> None:
    """Keep free texts from Hydra's grammar and start."""
    from ncvc.evaluation_settings import TEXTS
    from ncvc.settings import plain_texts

    rest, texts = plain_texts(arguments, names=TEXTS)
    command = shlex.join(["python", "-m", "ncvc.evaluate", *arguments])

    def task(config: DictConfig) -> None:
        evaluate(config, texts=texts, command=command)

    run(task, config_name="evaluate", arguments=rest)


if __name__ == "__main__":
    main(sys.argv[1:])
