"""Which model goes out in which formats, and where: what stands behind ``python -m ncvc.export``.

A source (checkpoint, model directory, Hugging Face directory) becomes a model directory unless it is one, and from
there every format asked for. Each format is complete or not there; one that fails leaves those before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from ncvc.checkpoints import newest_complete
from ncvc.model.agreement import AGREEMENT
from ncvc.model.assistant import find_model
from ncvc.model.consolidation import consolidate
from ncvc.model.huggingface import export_huggingface, import_huggingface
from ncvc.model.huggingface_weights import FORMS, Form, Precision
from ncvc.model_card import write_card
from ncvc.resuming import newest_run

FORMATS = ("ncvc", "huggingface", "gguf", "int8")


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """What to export (one of ``checkpoint``, ``model``, ``huggingface``), in which ``format`` (one name or several).

    Each key's meaning is in ``conf/export.yaml``. ``ValueError`` names what cannot be, and what to set.
    """

    checkpoint: str | None = None
    model: str | None = None
    huggingface: str | None = None
    format: str | tuple[str, ...] | None = None
    output: str | None = None
    base: str | None = None
    form: str = "arcee"
    dtype: str = "float32"
    type: str = "f16"

    def __post_init__(self) -> None:
        sources = [name for name in ("checkpoint", "model", "huggingface") if getattr(self, name)]
        if len(sources) != 1:
            what = " and ".join(sources) + " are set" if sources else "none is set"
            raise ValueError(f"name what to export by one of checkpoint, model and huggingface; {what}.")
        if unknown := [name for name in self.formats if name not in FORMATS]:
            raise ValueError(f"format={unknown[0]} is not one of {', '.join(FORMATS)}; set one of these, or a list.")
        if not self.formats or (self.model and "ncvc" in self.formats):
            raise ValueError(
                f"format={self.format}: there is nothing to do for a model directory; set huggingface, gguf or int8."
            )
        for name, known in (("form", tuple(FORMS)), ("dtype", get_args(Precision)), ("type", ("f32", "f16", "q8_0"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)} is not one of {', '.join(known)}; set one of these.")

    @property
    def formats(self) -> list[str]:
        """The formats, each once, the model directory (``ncvc``) first."""
        given = self.format if self.format is not None else ("huggingface" if self.model else "ncvc")
        names = dict.fromkeys([given] if isinstance(given, str) else given)
        return sorted(names, key=lambda name: name != "ncvc")


def export_model(settings: ExportSettings, *, home: Path, tell: Callable[[str], None]) -> list[Path]:
    """Write every format and ``tell`` of each; the paths of the products, in the order of ``settings.formats``.

    Raises what finding the source and writing a format raise.
    """
    directory = _model_directory(settings, home=home, tell=tell)
    products = []
    for name in settings.formats:
        output = directory if name == "ncvc" else _place(name, directory, settings)
        if name != "ncvc":
            tell(f"{name}  {output}\n  {_told(_write(name, directory, output, settings))}")
        products.append(output)
    return products


def _model_directory(settings: ExportSettings, *, home: Path, tell: Callable[[str], None]) -> Path:
    """The model directory to export, written first where the source is none; with its card."""
    if settings.model:
        return find_model(settings.model, home=home)
    if settings.huggingface:
        source = Path(settings.huggingface).expanduser()
        output = _first_place(settings, source.absolute().parent / f"{source.absolute().name}-ncvc")
        told = f"read back: {_told(import_huggingface(source, output=output))}"
    else:
        source = _checkpoint(cast(str, settings.checkpoint), home=home, tell=tell)
        output = _first_place(settings, source.parent.parent / f"model-{source.name}")
        base = Path(settings.base).expanduser() if settings.base else None
        facts = consolidate(source, output=output, base=base)
        told = "step {step}: {parameters:,} parameters in fp32 from {shards} shard(s); {probe}".format(**facts)
    write_card(output)
    tell(f"{told}\nmodel directory  {output}")
    return output


def _checkpoint(checkpoint: str, *, home: Path, tell: Callable[[str], None]) -> Path:
    """The checkpoint's folder that ``checkpoint`` names: itself, the newest of a run's folder, or of the last run."""
    chosen = newest_run(home) if checkpoint == "last" else Path(checkpoint).expanduser()
    if not (chosen / "checkpoints").is_dir():
        return chosen
    newest, passed_over = newest_complete(chosen / "checkpoints")
    for note in passed_over:
        tell(f"note: {note}")
    if newest is None:
        raise FileNotFoundError(f"{chosen}/checkpoints holds no complete checkpoint.")
    return newest.path


def _first_place(settings: ExportSettings, default: Path) -> Path:
    """Where the model directory goes: ``output`` if it is all that is asked for, in ``output`` among several."""
    if not settings.output or "ncvc" not in settings.formats:
        return default
    output = Path(settings.output).expanduser()
    return output if len(settings.formats) == 1 else output / default.name


def _place(name: str, directory: Path, settings: ExportSettings) -> Path:
    """Where another format goes: ``output`` if it is the only one, in ``output`` among several, or beside the model."""
    output = Path(settings.output).expanduser() if settings.output else None
    if output is not None and len(settings.formats) == 1:
        return output
    ending = {"huggingface": settings.form, "gguf": f"{settings.type}.gguf", "int8": "int8"}[name]
    return (output or directory.absolute().parent) / f"{directory.absolute().name}-{ending}"


def _write(name: str, directory: Path, output: Path, settings: ExportSettings) -> dict[str, Any]:
    if name == "huggingface":
        form, dtype = cast(Form, settings.form), cast(Precision, settings.dtype)
        return export_huggingface(directory, output=output, form=form, dtype=dtype)
    if name == "gguf":
        from ncvc.model.gguf import GGUFType, write_gguf

        return write_gguf(directory, output=output, type=cast(GGUFType, settings.type))
    from ncvc.model.int8 import write_int8

    return write_int8(directory, output=output)


def _told(facts: dict[str, Any]) -> str:
    """What a writer found, as one line."""
    forms = {float: "{:.4g}", int: "{:,}"}
    beside = ("path", "told", "form", *AGREEMENT) if "told" in facts else ("path",)
    kept = {name: value for name, value in facts.items() if value is not None and name not in beside}
    texts = [f"{name.replace('_', ' ')} {forms.get(type(value), '{}').format(value)}" for name, value in kept.items()]
    return "; ".join([", ".join(texts), *([facts["told"]] if "told" in facts else [])])
