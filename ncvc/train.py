"""Train a model: ``python -m ncvc.train experiment=quickstart`` (or ``pretrain_1b``); every setting is in ``conf/``.

Prepares what is missing, trains, and leaves a run folder with the composed configuration, the environment, TensorBoard
logs, checkpoints and the model directory. ``base=...`` starts from a trained model (``experiment=sft_quickstart``: with
conversations). ``resume=FOLDER`` goes on where a run ended, ``replay=STEP`` runs one step of
it again, ``--multirun`` makes a sweep.
"""

import logging
import warnings
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ncvc.command_line import run
from ncvc.config import check, with_base


def train(config: DictConfig) -> dict[str, Any]:
    """Run one training from a composed configuration; returns its parts and results (for tests and notebooks)."""
    check(config)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # device notes and advertisements
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning 2.6.6 with torch 2.13: theirs to mend
    warnings.filterwarnings("ignore", message=".*across ranks is zero.*")  # nothing held out, on purpose
    from hydra.utils import instantiate

    from ncvc.environment import require_devices, require_free_port
    from ncvc.model.base import check_base_tokenizer, pin_base
    from ncvc.model.checkpoint import check_tokenizer_fits
    from ncvc.resuming import run_of
    from ncvc.run_folder import already_finished, as_replay, finish_run, open_run, start_run

    if (result := already_finished(config)) is not None:
        return {"result": result}
    require_devices(config.trainer.accelerator, config.trainer.devices)
    require_free_port(config.trainer.devices)
    if config.replay is not None:
        config = as_replay(config)
    with open_run(Path(config.paths.run), config):
        base = None if config.base is None else pin_base(config.base, **run_of(config))
        config = config if base is None else with_base(config, base)
        data: Any = instantiate(config.data, _convert_="all")
        data.prepare_data()
        data.setup()
        module: Any = instantiate(config.module, _convert_="all")
        if base is not None:
            check_base_tokenizer(base, data.tokenizer)
            module.start_from(base)
        check_tokenizer_fits(data.tokenizer.vocab_size, config=module.network.config, where="training")
        nodes = [node for node in (config.callbacks or {}).values() if node is not None]
        callbacks: list[Any] = [instantiate(node, _convert_="all") for node in nodes]
        state = start_run(config, data=data, parameters=module.network.config.num_parameters, callbacks=callbacks)
        loggers = [
            instantiate(node, _convert_="all", **state.logger_settings(node._target_))
            for node in (config.logger or {}).values()
            if node is not None
        ]
        trainer: Any = instantiate(config.trainer, callbacks=callbacks, logger=loggers or False, _convert_="all")
        trainer.fit(module, datamodule=data)
        result = finish_run(config, trainer=trainer, module=module, data=data, state=state)
    return {"trainer": trainer, "module": module, "data": data, "result": result}


def main(config: DictConfig) -> Any:
    """Hydra's entry point: the run's folder is the one Hydra made, the same on every rank."""
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:  # started by a launcher that shares a process: the job gets one of its own
        from ncvc.sweep_launcher import run_as_own_program

        return run_as_own_program(hydra)
    config.paths.run = hydra.runtime.output_dir
    OmegaConf.resolve(config)
    train(config)
    return None


if __name__ == "__main__":
    run(main, config_name="train")
