"""Cost of a configuration: ``python -m ncvc.bench plan experiment=pretrain_1b`` (estimate, nothing is run).

``plan`` prints parameters, memory per GPU, FLOPs per token and days at a given MFU; ``bench.gpu`` and
``bench.utilization`` choose the machine. Output as JSON with ``bench.json=true``.
"""

import json
import sys

from omegaconf import DictConfig

from ncvc.command_line import run
from ncvc.config import check

COMMANDS = ("plan",)


def bench(config: DictConfig) -> None:
    """Hydra's entry point: run ``bench.command``."""
    check(config)
    from hydra.utils import instantiate

    from ncvc.planning import plan, plan_as_table

    strategy = config.trainer.strategy
    zero_stage = 2 if isinstance(strategy, DictConfig) and "ZeroStage2" in strategy._target_ else 0
    run_facts = {
        "batch_size": config.data.batch_size,
        "micro_batch_size": config.data.micro_batch_size,
        "accumulation": config.trainer.accumulate_grad_batches,
        "max_steps": config.trainer.max_steps,
        "devices": config.trainer.devices,
        "num_nodes": config.trainer.num_nodes,
        "zero_stage": zero_stage,
        "bf16": "bf16" in str(config.trainer.precision),
        "activation_checkpointing": config.module.activation_checkpointing,
    }
    figures = plan(instantiate(config.model), run=run_facts, gpu=config.bench.gpu, utilization=config.bench.utilization)
    print(json.dumps(figures, indent=2) if config.bench.json else plan_as_table(figures))


def main(arguments: list[str]) -> None:
    """Turn ``plan key=value ...`` into Hydra's arguments."""
    if not arguments or (arguments[0] not in COMMANDS and not arguments[0].startswith("-")):
        given = arguments[0] if arguments else "nothing"
        raise SystemExit(f"ncvc.bench: {given!r} is no command; use one of: {', '.join(COMMANDS)}.")
    command, rest = (
        ([], arguments) if arguments[0].startswith("-") else ([f"bench.command={arguments[0]}"], arguments[1:])
    )
    run(bench, config_name="bench", arguments=[*command, *rest])


if __name__ == "__main__":
    main(sys.argv[1:])
