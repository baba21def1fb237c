"""Take a model elsewhere: ``python -m ncvc.export checkpoint=last``, or ``model=last format=[huggingface,gguf]``.

A training checkpoint, of any strategy and number of ranks, becomes a model directory (whole fp32 weights, safetensors,
tokenizer, card); a model directory becomes a Hugging Face directory, a GGUF file or an int8 model directory; and
``huggingface=FOLDER`` makes a model directory of an exported one. Each format is checked before it is finished.
"""

import functools
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ncvc.command_line import run

_PATHS = ("checkpoint", "model", "huggingface", "output", "base")


def export(config: DictConfig, *, paths: dict[str, str] | None = None) -> list[Path]:
    """Hydra's entry point: write every format asked for, say what it is; ``paths`` are taken off the command line."""
    from ncvc.model.exporting import ExportSettings, export_model
    from ncvc.settings import settings_from

    values: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    home = Path(values.pop("home")).expanduser()
    settings = settings_from(ExportSettings, {**values, **(paths or {})}, path="export")
    return export_model(settings, home=home, tell=functools.partial(print, flush=True))


def main(arguments: list[str]) -> None:
    """Keep paths from Hydra, for which ``model`` is a folder of ``conf/`` and ``step=1`` an override; start."""
    pairs = [argument.partition("=") for argument in arguments]
    paths = {name: value for name, _, value in pairs if name in _PATHS and value not in ("", "null")}
    rest = [argument for argument in arguments if argument.partition("=")[0] not in _PATHS]
    run(functools.wraps(export)(functools.partial(export, paths=paths)), config_name="export", arguments=rest)


if __name__ == "__main__":
    main(sys.argv[1:])
