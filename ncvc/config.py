"""What a composed configuration may hold, checked before any work starts, with every problem told at once.

Hydra merges files without knowing which keys mean something: ``sed: 7`` in an experiment would train silently with the
old seed. Here every root key is held against ``TrainConfig``, every node with a ``_target_`` against the signature of
what it names, and the figures against each other. Costs the imports that training needs anyway; starts nothing.
"""

import contextlib
import copy
import importlib
import inspect
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ncvc.settings import fits, hints_of, suggestion, words

CONF_DIRECTORY = Path(__file__).resolve().parent.parent / "conf"
_NOT_SETTINGS = {"segmented", "cleaner", "analyzer", "progress", "return"}  # of Tokenizer.train: objects, not settings
_HYDRA_KEYS = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Root keys of ``conf/train.yaml`` and ``conf/bench.yaml``; groups are typed by what their ``_target_`` names."""

    name: str
    seed: int
    validate_every: int
    base: str | None
    paths: dict
    model: dict
    tokenizer: dict
    analyzer: dict
    data: dict
    optimizer: dict
    schedule: dict
    stability: dict
    module: dict
    trainer: dict
    callbacks: dict | None
    logger: dict | None
    resume: str | None
    allow_changes: list[str]
    replay: int | None
    bench: dict | None = None


def register_with_hydra() -> None:
    """Make the resolvers and the launcher of sweeps known to Hydra; safe to call more than once."""
    from ncvc.sweep_launcher import register_launcher

    register_launcher()
    OmegaConf.register_new_resolver("accumulation", accumulation, replace=True)
    OmegaConf.register_new_resolver("product", lambda *factors: _product(factors), replace=True)


def _product(factors: tuple[int, ...]) -> int:
    result = 1
    for factor in factors:
        result *= factor
    return result


def accumulation(batch_size: int, micro_batch_size: int, devices: Any, num_nodes: int) -> int:
    """Micro-batches per optimizer step: batch / (micro-batch x devices x nodes), which must come out whole (R58)."""
    if not isinstance(devices, int) or devices < 1:
        raise ValueError(
            f"trainer.devices={devices!r} leaves the number of micro-batches open; set a whole number of devices."
        )
    parallel = micro_batch_size * devices * num_nodes
    if batch_size < 1 or parallel < 1 or batch_size % parallel:
        raise ValueError(
            f"data.batch_size={batch_size} is not a multiple of data.micro_batch_size={micro_batch_size} x "
            f"trainer.devices={devices} x trainer.num_nodes={num_nodes} = {parallel}; set data.batch_size to a "
            f"multiple of {parallel}, or change the other three."
        )
    return batch_size // parallel


def problems_of(config: DictConfig) -> list[str]:
    """Every problem of a composed configuration, one message each: what was set, why it cannot be, what to set."""
    register_with_hydra()
    found = list(_root_problems(config))
    for path, node in _nodes(config, ""):
        found += _node_problems(path, node)
    for path, node, hints in _groups_without_target(config):
        found += _values_problems(path, node, hints)
    for group in ("callbacks", "logger"):
        for name, entry in (_plain(config, group) or {}).items():
            if entry is not None and (not isinstance(entry, Mapping) or "_target_" not in entry):
                found.append(
                    f"{group}.{name}: has no _target_, so it would be ignored; name its class or set it to null."
                )
    told = {text.partition(": ")[2]: text for text in reversed([*found, *_cross_problems(config)])}
    return list(reversed(told.values()))  # one refusing resolver stops every key that uses it: told once


def _plain(config: DictConfig, key: str) -> Any:
    node = config.get(key)
    return OmegaConf.to_container(node, resolve=False) if isinstance(node, DictConfig | ListConfig) else node


def _root_problems(config: DictConfig) -> Iterator[str]:
    known = {field.name: field.type for field in fields(TrainConfig)}
    for key in config:
        if OmegaConf.is_missing(config, key):
            yield f"{key}: a value is needed and none is set; set {key}=..."
        elif key not in known:
            yield f"{key}: no such key at the root of the configuration{suggestion(str(key), known)}"
        elif not OmegaConf.is_interpolation(config, key):
            value = _plain(config, str(key))
            if not fits(value, known[key]):
                yield f"{key}={value!r}: must be {words(known[key])}."


def _nodes(node: Any, path: str) -> Iterator[tuple[str, DictConfig]]:
    """Every mapping of the tree with its dotted path, the root left out."""
    if not isinstance(node, DictConfig | ListConfig) or node._is_none() or node._is_missing():
        return
    keys = list(node.keys()) if isinstance(node, DictConfig) else list(range(len(node)))
    if isinstance(node, DictConfig) and path:
        yield path, node
    for key in keys:
        child = node._get_node(key)
        if isinstance(child, DictConfig | ListConfig):
            yield from _nodes(child, f"{path}.{key}" if path else str(key))


def _node_problems(path: str, node: DictConfig) -> list[str]:
    """Problems of one mapping: values that do not resolve, and keys, gaps and types against its target's signature."""
    found, values = [], {}
    for key in node:
        if OmegaConf.is_missing(node, key):
            found.append(f"{path}.{key}: a value is needed and none is set; set {path}.{key}=...")
            continue
        try:
            values[str(key)] = node[key]
        except OmegaConfBaseException as error:  # a resolver refused, or an interpolation leads nowhere
            found.append(f"{path}.{key}: {_first_line(error)}")
    if "_target_" not in node or not isinstance(values.get("_target_"), str):
        return found
    try:
        module, _, name = values["_target_"].rpartition(".")
        target = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        return [*found, f"{path}._target_={values['_target_']}: cannot be imported ({_first_line(error)})."]
    parameters = inspect.signature(target).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return found
    hints = hints_of(target)
    for key, value in values.items():
        if key in _HYDRA_KEYS:
            continue
        if key not in parameters:
            found.append(f"{path}.{key}: {values['_target_']} has no such setting{suggestion(key, parameters)}")
        elif OmegaConf.is_interpolation(node, key):
            continue  # told where the value is set
        elif key in hints and not isinstance(value, DictConfig) and not fits(_unwrapped(value), hints[key]):
            found.append(f"{path}.{key}={_unwrapped(value)!r}: must be {words(hints[key])}.")
    if not values.get("_partial_"):
        given = set(values) | {str(key) for key in node}
        for name, parameter in parameters.items():
            if parameter.default is parameter.empty and name not in given and parameter.kind is parameter.KEYWORD_ONLY:
                found.append(f"{path}.{name}: needed by {values['_target_']} and not set; set {path}.{name}=...")
    return found


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = lines[0]
    marker = "raised while resolving interpolation: "
    return text.split(marker, 1)[1] if marker in text else text


def _unwrapped(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if isinstance(value, ListConfig) else value


def _groups_without_target(config: DictConfig) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Settings that are handed on as plain groups, with the names and types of what takes them."""
    from ncvc.conversations import ConversationSource
    from ncvc.morphology import build_analyzer
    from ncvc.preparation import Source
    from ncvc.tokenizer import Tokenizer

    trained = {name: hint for name, hint in hints_of(Tokenizer.train).items() if name not in _NOT_SETTINGS}
    takers: dict[str, dict[str, Any]] = {
        "paths": {"home": str, "run": str},
        "tokenizer": {**trained, "directory": str | None, "sample_megabytes": float},
        "analyzer": hints_of(build_analyzer),
        "bench": {"gpu": str, "utilization": float, "json": bool},
    }
    kind = ConversationSource if _is_chat(config) else Source
    source = {name: hint for name, hint in typing.get_type_hints(kind).items() if name != "name"}
    sources = OmegaConf.select(config, "data.sources")
    for name in sources if isinstance(sources, DictConfig) and not sources._is_none() else ():
        takers[f"data.sources.{name}"] = source
    for path, hints in takers.items():
        node = OmegaConf.select(config, path)
        if node is not None or path.startswith("data.sources."):
            yield path, node, hints


def _values_problems(path: str, node: Any, hints: Mapping[str, Any]) -> list[str]:
    if not isinstance(node, DictConfig):
        return [
            f"{path}={node!r}: must be a group of settings: {', '.join(name for name in hints if name != 'return')}."
        ]
    found = []
    for key in map(str, node):
        if key not in hints:
            found.append(f"{path}.{key}: no such setting{suggestion(key, set(hints) - {'return'})}")
        elif not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key):
            value = _unwrapped(node[key])
            if not fits(value, hints[key]):
                found.append(f"{path}.{key}={value!r}: must be {words(hints[key])}.")
    if "path" in hints and "path" not in node:
        found.append(f"{path}.path: needed and not set; name a file or folder of text.")
    return found


def _is_chat(config: DictConfig) -> bool:
    """Whether the data are conversations."""
    return "data_modules.chat" in str(_readable(config, "data").get("_target_"))


def _cross_problems(config: DictConfig) -> list[str]:
    """Figures that are fine alone and impossible together; parts that are broken by themselves are passed over."""
    from ncvc.model.transformer import ModelConfig

    found = []
    model = {key: value for key, value in _readable(config, "model").items() if key not in _HYDRA_KEYS}
    hints = hints_of(ModelConfig)
    if set(hints) - {"return"} == set(model) and all(fits(value, hints[key]) for key, value in model.items()):
        found += ModelConfig.problems(model)
    found += _stability_problems(config)
    replay = config.get("replay")
    if isinstance(replay, int) and replay < 1:
        found.append(f"replay={replay}: steps are counted from 1, the first update.")
    every = config.get("validate_every")
    if isinstance(every, int) and every < 1:
        found.append(f"validate_every={every}: must be at least 1 optimizer step.")
    steps, warmup = (
        _readable(config, "trainer").get("max_steps"),
        _readable(config, "schedule").get("warmup_steps"),
    )
    if isinstance(steps, int) and steps < 1:
        found.append(f"trainer.max_steps={steps}: a run has at least one optimizer step; set it to 1 or more.")
    elif isinstance(steps, int) and isinstance(warmup, int) and warmup >= steps:
        found.append(f"schedule.warmup_steps={warmup} does not fit into trainer.max_steps={steps}; set it below that.")
    found += _tuning_problems(config)
    data = _readable(config, "data")
    found += _chat_problems(config) if _is_chat(config) else _text_problems(data)
    fraction = data.get("validation_fraction")
    nothing = _is_chat(config) and fraction == 0  # the report held out no conversation
    if isinstance(fraction, int | float) and not 0 < fraction < 1 and not nothing:
        found.append(
            f"data.validation_fraction={fraction}: must lie between 0 and 1, both excluded; 0.01 holds out 1%."
        )
    return found


def _text_problems(data: Mapping[str, Any]) -> list[str]:
    """Where plain text comes from: exactly one of the three settings."""
    if data.get("corpus") is not None:
        return []  # it takes the place of both
    if data.get("source") is None and data.get("sources") is None:
        return [
            "data.source is not set: name a file or folder of text (txt, jsonl, parquet), or clinical_samples, or set "
            "data.corpus to a curated one."
        ]
    if data.get("source") is not None and data.get("sources") is not None:
        return ["data.source and data.sources are both set; keep one (data.sources=null or data.source=null)."]
    return []


def _chat_problems(config: DictConfig) -> list[str]:
    found = []
    if not OmegaConf.is_missing(config, "base") and config.base is None:
        found.append(
            "base is not set, and conversations are learned by a model that knows the language: set base to a model "
            "directory, a run, a checkpoint's folder, or last."
        )
    if not (config.data.get("sources") or {}):
        found.append(
            "data.sources is empty: set conversations=jmed_llm, exercises, jmed_llm_exercises, messages or "
            "clinical_dialogues, or name sources of your own."
        )
    return found


def _tuning_problems(config: DictConfig) -> list[str]:
    """Of noise and adapters; see ``conf/tuning``."""
    from ncvc.model.lora import LoraSettings

    found, module = [], _readable(config, "module")
    alpha = module.get("neftune_alpha")
    if isinstance(alpha, int | float) and not alpha > 0:
        found.append(f"module.neftune_alpha={alpha}: must be above 0 (the report: 5); null switches the noise off.")
    if not isinstance(module.get("lora"), DictConfig):
        return found
    if not OmegaConf.is_missing(config, "base") and config.base is None:
        found.append(
            "module.lora is set and base is not: adapters lie beside a trained model; set base, or tuning=full."
        )
    values = {key: value for key, value in _readable(config.module, "lora").items() if key not in _HYDRA_KEYS}
    hints = hints_of(LoraSettings)
    if set(hints) - {"return"} == set(values) and all(fits(value, hints[key]) for key, value in values.items()):
        found += LoraSettings.problems(values)
    return found


def _stability_problems(config: DictConfig) -> list[str]:
    from ncvc.model.stability import StabilitySettings

    values = {key: value for key, value in _readable(config, "stability").items() if key not in _HYDRA_KEYS}
    hints = hints_of(StabilitySettings)
    if set(hints) - {"return"} != set(values) or not all(fits(value, hints[key]) for key, value in values.items()):
        return []  # told by name already
    return StabilitySettings.problems(values)


def _readable(config: DictConfig, key: str) -> dict[str, Any]:
    """The values of a group that are set and resolve; what does not has its own message already."""
    group, values = config.get(key), {}
    for name in group if isinstance(group, DictConfig) else ():
        if not OmegaConf.is_missing(group, name):
            with contextlib.suppress(OmegaConfBaseException):
                values[str(name)] = _unwrapped(group[name])
    return values


def with_base(config: DictConfig, directory: Path) -> DictConfig:
    """A copy of a training's configuration in which ``base`` is this model directory; the data take its tokenizer."""
    config = copy.deepcopy(config)
    OmegaConf.resolve(config)
    config.base = str(directory.absolute())
    if _is_chat(config):
        config.data.base = config.base
    elif config.data.tokenizer.directory is None:
        config.data.tokenizer.directory = str(directory.absolute() / "tokenizer")
    return config


def check(config: DictConfig) -> None:
    """Raise one ``ValueError`` that lists every problem of ``config``."""
    if found := problems_of(config):
        raise ValueError(as_message(found))


def as_message(found: list[str]) -> str:
    """The problems as one numbered message."""
    noun = "problem" if len(found) == 1 else "problems"
    return "\n".join(
        [f"{len(found)} {noun} in the configuration:", *(f"  {n}. {text}" for n, text in enumerate(found, 1))]
    )
