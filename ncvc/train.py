"""Train a model: ``python -m ncvc.train experiment=quickstart`` (or ``pretrain_1b``); every setting is in ``conf/``.

Prepares what is missing, trains, and leaves a run folder with the composed configuration, the environment, TensorBoard
logs, checkpoints and the model directory.
"""

import logging
import warnings
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from ncvc.command_line import run
from ncvc.config import check


def train(config: DictConfig) -> dict[str, Any]:
    """Run one training from a composed configuration; returns its parts and results (for tests and notebooks)."""
    check(config)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # device notes and advertisements
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning 2.6.6 with torch 2.13: theirs to mend
    from hydra.utils import instantiate

    from ncvc.environment import require_devices
    from ncvc.model.checkpoint import check_tokenizer_fits
    from ncvc.run_folder import finish_run, start_run

    require_devices(config.trainer.accelerator, config.trainer.devices)
    data: Any = instantiate(config.data, _convert_="all")
    data.prepare_data()
    data.setup()
    module: Any = instantiate(config.module, _convert_="all")
    check_tokenizer_fits(data.tokenizer.vocab_size, config=module.network.config, where="training")
    callbacks = [instantiate(node, _convert_="all") for node in (config.callbacks or {}).values() if node is not None]
    loggers = [instantiate(node, _convert_="all") for node in (config.logger or {}).values() if node is not None]
    trainer: Any = instantiate(config.trainer, callbacks=callbacks, logger=loggers or False, _convert_="all")
    if trainer.is_global_zero:
        start_run(config, data=data, parameters=module.network.config.num_parameters)
    trainer.fit(module, datamodule=data)
    result = finish_run(config, trainer=trainer, module=module, data=data)
    return {"trainer": trainer, "module": module, "data": data, "result": result}


def main(config: DictConfig) -> None:
    """Hydra's entry point: the run's folder is the one Hydra made, the same on every rank."""
    config.paths.run = HydraConfig.get().runtime.output_dir
    OmegaConf.resolve(config)
    train(config)


if __name__ == "__main__":
    run(main, config_name="train")
