"""What a run writes about itself besides its logs: configuration, environment, data, and a result in words.

The run folder holds ``config.yaml`` (resolved), ``.hydra/`` (composition and overrides), ``environment.json``,
``data.json`` (fingerprint, sources, tokens) and, at the end, ``result.json`` with the same figures that are printed.
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ncvc.environment import environment_record
from ncvc.storage import require_free_space, write_json

_BYTES_PER_PARAMETER = 14  # bf16 weights, fp32 master and two moments


def start_run(config: DictConfig, *, data: Any, parameters: int) -> None:
    """Check the disk, then record configuration, environment and data before the first step (call it on one rank)."""
    folder = Path(config.paths.run)
    require_free_space(
        folder,
        4 * parameters + _checkpoints(config) * _BYTES_PER_PARAMETER * parameters,
        what=f"the model directory and {_checkpoints(config)} checkpoint(s) of this run",
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True), encoding="utf-8")
    write_json(folder / "environment.json", environment_record())
    write_json(
        folder / "data.json",
        {
            "fingerprint": data.fingerprint,
            "tokenizer": str(data.prepared.tokenizer),
            "tokenizer_fingerprint": data.tokenizer.fingerprint,
            "train": {name: str(path) for name, path in data.prepared.train.items()},
            "validation": {name: str(path) for name, path in data.prepared.validation.items()},
            "train_tokens": data.train_tokens,
            "windows": [len(windows) for windows in data.windows],
        },
    )
    tokens_per_step = config.data.batch_size * config.data.context_length
    print(
        f"run folder {folder}\n{parameters:,} parameters; {data.train_tokens:,} unique training tokens; "
        f"{config.trainer.max_steps:,} steps of {config.data.batch_size} x {config.data.context_length} tokens "
        f"({config.trainer.max_steps * tokens_per_step / max(1, data.train_tokens):.1f} epochs)",
        flush=True,
    )


def _checkpoints(config: DictConfig) -> int:
    every = next(
        (
            node.every_n_train_steps
            for node in (config.callbacks or {}).values()
            if node and "every_n_train_steps" in node
        ),
        None,
    )
    return 0 if not every else config.trainer.max_steps // every + 1


def finish_run(config: DictConfig, *, trainer: Any, module: Any, data: Any) -> dict[str, Any]:
    """Collect the results, write ``result.json`` and print them as a short table with the samples."""
    series: list[dict[str, float]] = next(
        (callback.series for callback in trainer.callbacks if hasattr(callback, "series")), []
    )
    samples: dict[str, str] = next((callback.texts for callback in trainer.callbacks if hasattr(callback, "texts")), {})
    result = {
        "steps": trainer.global_step,
        "tokens_seen": trainer.global_step * module.tokens_per_step,
        "held_out_before": series[0] if series else None,
        "held_out_after": series[-1] if series else None,
        "held_out_series": series,
        "unigram_bits_per_character": data.unigram_bits_per_character(),
        "samples": samples,
        "model_directory": str(Path(config.paths.run) / "model"),
    }
    if trainer.is_global_zero:
        write_json(Path(config.paths.run) / "result.json", result)
        print(summary(result, run_folder=config.paths.run))
    return result


def summary(result: dict[str, Any], *, run_folder: str) -> str:
    """The result as the lines a reader wants to see last."""
    lines = [""]
    if result["held_out_before"] is not None:
        for name, words in (
            ("bits_per_character", "bits per character"),
            ("nats_per_token", "nats per token"),
        ):
            before, after = (
                result["held_out_before"][f"held_out/{name}"],
                result["held_out_after"][f"held_out/{name}"],
            )
            lines.append(f"held-out {words:<20} {before:8.4f} before   {after:8.4f} after")
        lines.append(f"unigram model of the same text {result['unigram_bits_per_character']:5.4f} bits per character")
    lines += [f"\n{text}" for text in result["samples"].values()]
    if Path(result["model_directory"]).is_dir():
        lines.append(f"\nmodel directory  {result['model_directory']}")
    lines.append(f"TensorBoard      tensorboard --logdir {run_folder}")
    return "\n".join(lines)
