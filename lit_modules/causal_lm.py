"""The LightningModule: one network, next-token loss over the whole global batch, one optimizer, one schedule.

The loss of an optimizer step is the mean over all target tokens of the global batch, however it is cut into ranks and
micro-batches: each micro-batch contributes its sum over the global count (batches carry it as ``target_tokens``), so
8 x 1 equals 1 x 8 also when rows have unequal numbers of targets. Works unchanged for packed text and for chats.

Dropout is a function of (seed, step, micro-batch, rank): the generator is set before every micro-batch, so a resumed
run draws the same masks; the noise of NEFTune (R81) has a generator of its own. Tuning takes the weights of a base
(``start_from``) and trains all of them or, with LoRA, adapters beside them. Held-out loss is reported as nats per token
and as bits per character, which does not depend on the tokenizer. Every update passes the guard
(``lit_modules/guard.py``): loss spikes are seen there, and non-finite gradients never reach the weights. Nothing here
waits for the device.
"""

import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_modules.guard import UpdateGuard
from lit_modules.live_state import base_optimizer
from lit_modules.strategies import ZeroStage2Strategy
from ncvc.model.base import base_weights
from ncvc.model.lora import LoraSettings, add_adapters
from ncvc.model.neftune import conversation_lengths, neftune_noise
from ncvc.model.stability import StabilitySettings
from ncvc.model.transformer import ModelConfig, Transformer
from ncvc.randomness import mix


class CausalLM(lightning.LightningModule):
    """Trains a ``Transformer``; batches are {"input_ids", "labels", "target_tokens"} and, where masked, "document_ids".

    ``optimizer`` takes the network, ``schedule`` takes the optimizer; both come as partials from the configuration.
    ``seed`` decides the initial weights and dropout. ``stability`` says what is a loss spike and what is done about it.
    ``neftune_alpha`` is the strength of the noise on the embeddings in training (R81; None: none); rows that are padded
    carry "lengths" [B] for it. ``lora`` trains adapters and leaves the base as it is. ``compile_blocks`` runs each
    layer through ``torch.compile``.
    """

    def __init__(
        self,
        *,
        model: ModelConfig,
        optimizer: Callable[[nn.Module], Optimizer],
        schedule: Callable[[Optimizer], LRScheduler],
        stability: StabilitySettings,
        seed: int = 0,
        neftune_alpha: float | None = None,
        lora: LoraSettings | None = None,
        activation_checkpointing: bool = False,
        compile_blocks: bool = False,
    ) -> None:
        super().__init__()
        if neftune_alpha is not None and not 0 < neftune_alpha < math.inf:
            raise ValueError(
                f"module.neftune_alpha={neftune_alpha}: must be above 0 (the report: 5); null switches it off."
            )
        self.character_counts = torch.zeros(0)  # of the tokenizer, after setup
        self.network = Transformer(model, seed=seed, activation_checkpointing=activation_checkpointing)
        self.neftune_alpha, self.lora = neftune_alpha, lora
        self.base: Path | None = None  # the model directory that it started from
        self.origin: dict[str, Any] = {}  # what its record says of that
        if lora is not None:
            add_adapters(self.network, lora, seed=seed)
        if compile_blocks:  # blocks, never the LightningModule: self.log inside a compiled module breaks
            for layer in self.network.layers:
                layer.compile(dynamic=False)
        self.make_optimizer, self.make_schedule, self.seed = optimizer, schedule, seed
        self.guard = UpdateGuard(stability, self.network, vocab_size=model.vocab_size)
        self._loss: torch.Tensor | float = 0.0  # this rank's share of the step's mean; no buffer: DeepSpeed casts them
        self._checksum = 0
        self.learning_rate = math.nan
        self._held_out = torch.zeros(3, dtype=torch.float64)  # nats, tokens, characters
        self.held_out: dict[str, float] = {}

    def start_from(self, directory: Path) -> None:
        """Take the weights of a model directory, grown by the role tokens' rows where the model has them (R74).

        ``ValueError`` when it is another network than the configured one.
        """
        weights, record = base_weights(directory, self.network.config, seed=self.seed)
        missing, unexpected = self.network.load_state_dict(weights, strict=False)
        if unexpected or not all(".adapters." in name for name in missing):
            names = [*unexpected, *(name for name in missing if ".adapters." not in name)]
            raise ValueError(
                f"{directory}/model.safetensors does not fit its model_config.json ({', '.join(names[:3])}); restore "
                "both from a complete copy."
            )
        self.base, self.origin = Path(directory), {"base": record}

    def setup(self, stage: str) -> None:
        counts = self.trainer.datamodule.character_counts
        self.character_counts = torch.as_tensor(counts, dtype=torch.int32)

    def on_fit_start(self) -> None:
        """Put the guard between gradient and update."""
        self.guard.attach(base_optimizer(self.trainer.strategy), self.device)
        if isinstance(self.trainer.strategy, ZeroStage2Strategy):
            self.trainer.strategy.before_each_update(functools.partial(self._judge, partial=True))

    def training_step(self, batch: Mapping[str, Any], batch_index: int) -> torch.Tensor:
        """Share of this micro-batch in the mean loss of the global batch, scaled for Lightning's own averaging."""
        ranks, accumulated = self.trainer.world_size, self.trainer.accumulate_grad_batches
        torch.manual_seed(mix(self.seed, self.trainer.global_step, batch_index % accumulated, self.global_rank) >> 1)
        loss = self.network.loss(
            batch["input_ids"],
            batch["labels"],
            document_ids=batch.get("document_ids"),
            noise=self._noise(batch, micro_step=batch_index % accumulated),
        )
        if batch_index % accumulated == 0:
            self._loss, self._checksum = 0.0, 0
        self._loss = self._loss + loss.detach().double() / batch["target_tokens"]
        self._checksum += batch["checksum"]
        return loss * (ranks * accumulated / batch["target_tokens"])

    def _noise(self, batch: Mapping[str, Any], *, micro_step: int) -> torch.Tensor | None:
        """NEFTune's noise of this micro-batch, [B, T, d]: a function of seed, step, micro-step and rank (R81)."""
        if self.neftune_alpha is None:
            return None
        lengths = conversation_lengths(
            batch["input_ids"], document_ids=batch.get("document_ids"), lengths=batch.get("lengths")
        )
        return neftune_noise(
            lengths,
            hidden_size=self.network.config.hidden_size,
            alpha=self.neftune_alpha,
            seed=(self.seed, self.trainer.global_step, micro_step, self.global_rank),
        )

    def _judge(self, gradients: list[torch.Tensor], parameters: list[nn.Parameter], *, partial: bool) -> torch.Tensor:
        assert torch.is_tensor(self._loss)  # at least one micro-batch came before
        return self.guard.before_update(
            gradients,
            parameters,
            step=self.trainer.global_step + 1,
            loss=self._loss,
            checksum=self._checksum,
            partial=partial,
            clip=self.trainer.gradient_clip_val,
        )

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Note the rate that this update uses; afterwards the schedule has moved on to the next one's."""
        self.learning_rate = float(optimizer.param_groups[0]["lr"])

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by global norm and judge the update (R67); under ZeRO the strategy asks the guard itself."""
        if isinstance(self.trainer.strategy, ZeroStage2Strategy):
            return
        parameters = [parameter for parameter in self.network.parameters() if parameter.grad is not None]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        self._judge(gradients, parameters, partial=False)

    def on_train_batch_end(self, outputs: Any, batch: Mapping[str, Any], batch_index: int) -> None:
        """Ask Lightning to validate after the last step too, whatever the validation interval."""
        if self.trainer.global_step >= self.trainer.max_steps:
            self.trainer.should_stop = True

    def on_validation_epoch_start(self) -> None:
        self._held_out = torch.zeros(3, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: Mapping[str, Any], batch_index: int) -> None:
        """Add up nats, predicted tokens and the characters they stand for."""
        labels = batch["labels"]
        losses = self.network.token_losses(batch["input_ids"], labels, document_ids=batch.get("document_ids"))
        counted = labels >= 0
        characters = self.character_counts.to(labels.device)[labels.where(counted, 0)].where(counted, 0)
        self._held_out += torch.stack((losses.sum(dtype=torch.float64), counted.sum(), characters.sum())).double()

    def on_validation_epoch_end(self) -> None:
        """Reduce over ranks; log nats per token and bits per character of the held-out text."""
        nats, tokens, characters = self.trainer.strategy.reduce(self._held_out, reduce_op="sum").tolist()
        self.held_out = {
            "held_out/nats_per_token": nats / max(1.0, tokens),
            "held_out/bits_per_character": nats / math.log(2) / max(1.0, characters),
        }
        if self.logger is not None:
            self.logger.log_metrics(self.held_out, step=self.trainer.global_step)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = self.make_optimizer(self.network)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.make_schedule(optimizer), "interval": "step"},
        }

    def lr_scheduler_step(self, scheduler: LRScheduler, metric: Any) -> None:
        """Step without a metric; overridden so that any scheduler class is accepted."""
        scheduler.step()
