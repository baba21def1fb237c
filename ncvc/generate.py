"""Answers from a model: ``python -m ncvc.generate prompt="..."``, ``file=prompts.jsonl`` or ``chat=true``.

``model`` is a model directory, a run's folder, or last. The answer goes to standard output; every setting, with its
meaning, is in ``conf/generate.yaml``. Prompts are written to no log.
"""

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ncvc.command_line import run


def generate(config: DictConfig, *, texts: dict[str, str] | None = None) -> Any:
    """Hydra's entry point: open the model and do what is asked; ``texts`` are settings taken off the command line."""
    from ncvc.generation_settings import GenerateSettings

    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    settings = GenerateSettings.from_plain({**plain, **(texts or {})})

    from ncvc.model import prompting
    from ncvc.model.assistant import Assistant, find_model

    directory = find_model(settings.model, home=Path(settings.home))
    print(f"model {directory}", file=sys.stderr)
    assistant = Assistant.load(directory, device=settings.device, dtype=settings.dtype)
    if settings.chat:
        return prompting.chat(assistant, settings)
    if settings.file is not None:
        return prompting.answer_file(assistant, settings, directory=directory)
    return prompting.answer_prompt(assistant, settings)


def main(arguments: list[str]) -> None:
    """Keep free texts from Hydra's grammar and start."""
    from ncvc.generation_settings import TEXTS
    from ncvc.settings import plain_texts

    rest, texts = plain_texts(arguments, names=TEXTS)

    def task(config: DictConfig) -> None:
        generate(config, texts=texts)

    run(task, config_name="generate", arguments=rest)


if __name__ == "__main__":
    main(sys.argv[1:])
