"""From a training checkpoint to a model directory: ``python -m ncvc.export checkpoint=RUN/checkpoints/step=...``.

``checkpoint`` may also be a run's folder (its newest complete checkpoint) or ``last`` (of the last run). The weights
come out whole, in fp32, as safetensors, whatever strategy and number of ranks wrote them.
"""

from pathlib import Path

from omegaconf import DictConfig

from ncvc.command_line import run


def export(config: DictConfig) -> Path:
    """Hydra's entry point: find the checkpoint, write the model directory, say what it is; returns the directory."""
    from ncvc.checkpoints import newest_complete
    from ncvc.model.consolidation import consolidate
    from ncvc.resuming import newest_run

    if not config.checkpoint:
        raise ValueError("checkpoint is not set: name a checkpoint's folder, a run's folder, or last.")
    chosen = newest_run(Path(config.home)) if config.checkpoint == "last" else Path(config.checkpoint).expanduser()
    if (chosen / "checkpoints").is_dir():
        newest, passed_over = newest_complete(chosen / "checkpoints")
        for note in passed_over:
            print(f"note: {note}")
        if newest is None:
            raise FileNotFoundError(f"{chosen}/checkpoints holds no complete checkpoint.")
        chosen = newest.path
    output = Path(config.output).expanduser() if config.output else chosen.parent.parent / f"model-{chosen.name}"
    facts = consolidate(chosen, output=output)
    print(
        f"step {facts['step']}: {facts['parameters']:,} parameters in fp32 from {facts['shards']} shard(s); "
        f"{facts['probe']}\nmodel directory  {output}"
    )
    return output


if __name__ == "__main__":
    run(export, config_name="export")
