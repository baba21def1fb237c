"""What a run shows and leaves: figures while it trains, text samples, the run's record, the model directory.

All of them count optimizer steps, not micro-batches, and wait for the device only when they write. Nothing here draws
from the generators that training uses.
"""

import math
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm

from lit_modules.causal_lm import CausalLM
from lit_modules.strategies import full_precision_weights
from ncvc.chat import Message, encode_prompt, has_chat_tokens
from ncvc.environment import peak_memory_bytes, peak_of_this_machine
from ncvc.model.base import base_weights
from ncvc.model.checkpoint import save_model_directory
from ncvc.model.generation import generate
from ncvc.model.lora import adapted_network, merged_weights
from ncvc.planning import flops_per_token


class EveryStep(Callback, ABC):
    """Base of callbacks that act once per optimizer step, whatever the accumulation."""

    def __init__(self) -> None:
        self._last_step = -1

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._last_step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        module: CausalLM,
        outputs: Any,
        batch: Any,
        batch_index: int,
    ) -> None:
        if trainer.global_step != self._last_step:
            self._last_step = trainer.global_step
            self.on_step(trainer, module)

    def rewound(self, *, step: int, keep_spikes_from: int) -> None:
        """The run went back to ``step`` because of spikes from step ``keep_spikes_from`` on."""
        self._last_step = step

    @abstractmethod
    def on_step(self, trainer: lightning.Trainer, module: CausalLM) -> None:
        """Called after each optimizer step."""


class TrainingMonitor(EveryStep):
    """Loss, gradient norm, rate, tokens seen, tokens/s, MFU and memory, to the logger and to one line in the terminal.

    Written every ``every_n_steps`` steps; the loss is the mean over those steps. ``peak_tflops`` is the machine's dense
    peak for MFU (null: the data sheet's for a known GPU, a measured matrix product on a CPU); its name is printed once.
    """

    def __init__(self, *, every_n_steps: int = 10, peak_tflops: float | None = None) -> None:
        super().__init__()
        self.every_n_steps, self.peak_tflops = every_n_steps, peak_tflops
        self.bar: tqdm | None = None
        self.marked_tokens: int | None = None  # seen by marked_step; counted when the first figures are due

    def on_train_start(self, trainer: lightning.Trainer, module: CausalLM) -> None:
        super().on_train_start(trainer, module)
        self.peak, self.peak_name = peak_of_this_machine(module.device, given=self.peak_tflops)
        self.flops = flops_per_token(module.network.config).causal
        self.started, self.mark, self.marked_step = time.monotonic(), time.monotonic(), trainer.global_step
        self.first_step, self.marked_tokens = trainer.global_step, None
        if trainer.is_global_zero:
            named = f"MFU is measured against {self.peak_name}: {self.peak:.2f} TFLOP/s per device"
            print(named, flush=True)
            if module.lora is not None:
                sizes = [(parameter.numel(), parameter.requires_grad) for parameter in module.network.parameters()]
                adapters, total = sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)
                print(
                    f"LoRA: {adapters:,} parameters are trained ({adapters / total:.2%}), gradients and optimizer "
                    f"states of {12 * adapters / 2**20:,.1f} MiB instead of {12 * (total - adapters) / 2**20:,.1f} MiB",
                    flush=True,
                )
            add_text(trainer, "speed/peak", named)
            live = sys.stderr.isatty()
            self.bar = tqdm(
                total=trainer.max_steps,
                initial=trainer.global_step,
                unit="step",
                desc="training",
                mininterval=0.5 if live else 10.0,
                ncols=None if live else 160,
            )

    def on_step(self, trainer: lightning.Trainer, module: CausalLM) -> None:
        step = trainer.global_step
        if self.bar is not None:
            self.bar.update(step - self.bar.n)
        if step % self.every_n_steps and step != trainer.max_steps:
            return
        module.guard.collect()
        recent = list(module.guard.since(self.marked_step))
        loss, norm = sum(figures.loss for figures in recent) / max(1, len(recent)), recent[-1].gradient_norm
        now = time.monotonic()
        tokens = trainer.datamodule.tokens_seen(step)
        if self.marked_tokens is None:
            self.marked_tokens = trainer.datamodule.tokens_seen(self.marked_step)
        rate = (tokens - self.marked_tokens) / max(1e-9, now - self.mark)
        figures = {
            "train/loss": loss,
            "train/gradient_norm": norm,
            "train/learning_rate": module.learning_rate,
            "train/tokens_seen": float(tokens),
            "speed/tokens_per_second": rate,
            "speed/mfu": rate * self.flops / (self.peak * 1e12 * trainer.world_size),
            "memory/peak_gib": peak_memory_bytes(module.device) / 2**30,
            "time/remaining_hours": (now - self.started)
            / max(1, step - self.first_step)
            * (trainer.max_steps - step)
            / 3600,
        }
        self.mark, self.marked_step, self.marked_tokens = now, step, tokens
        if trainer.logger is not None:
            trainer.logger.log_metrics(figures, step=step)
        if self.bar is not None:
            text = f"loss {loss:.3f} norm {norm:.2f} {rate:,.0f} tok/s MFU {figures['speed/mfu']:.0%}"
            self.bar.set_postfix_str(text, refresh=False)

    def rewound(self, *, step: int, keep_spikes_from: int) -> None:
        super().rewound(step=step, keep_spikes_from=keep_spikes_from)
        self.started, self.mark, self.marked_step, self.first_step = time.monotonic(), time.monotonic(), step, step
        self.marked_tokens = None
        if self.bar is not None:
            self.bar.update(step - self.bar.n)

    def on_validation_start(self, trainer: lightning.Trainer, module: CausalLM) -> None:
        self.pause = time.monotonic()

    def on_validation_end(self, trainer: lightning.Trainer, module: CausalLM) -> None:
        if not trainer.sanity_checking:
            self.mark += time.monotonic() - self.pause  # scoring held-out text is not training time

    def on_train_end(self, trainer: lightning.Trainer, module: CausalLM) -> None:
        if self.bar is not None:
            self.bar.close()


class HeldOutReport(Callback):
    """Prints held-out loss each time it is measured and keeps the series; the first one is before training."""

    def __init__(self) -> None:
        self.series: list[dict[str, float]] = []

    def on_validation_end(self, trainer: lightning.Trainer, module: CausalLM) -> None:
        step = trainer.global_step
        self.series.append({"step": step, **module.held_out})
        if trainer.is_global_zero:
            nats, bits = (
                module.held_out["held_out/nats_per_token"],
                module.held_out["held_out/bits_per_character"],
            )
            tqdm.write(f"step {step}: held-out {nats:.4f} nats per token, {bits:.4f} bits per character")

    def state_dict(self) -> dict[str, Any]:
        return {"series": self.series}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.series = list(state_dict["series"])


class TextSamples(EveryStep):
    """Continues fixed prompts every ``every_n_steps`` steps and at the end, to TensorBoard and the terminal.

    Where the tokenizer knows roles, a prompt is a user's turn and the answer is shown after it. ``every_n_steps=null``
    samples only at the end. Sampling has its own generator, so training does not notice.
    """

    def __init__(
        self,
        *,
        prompts: list[str],
        every_n_steps: int | None = None,
        max_new_tokens: int = 64,
        temperature: float = 0.7,
        top_p: float = 0.9,
    ) -> None:
        super().__init__()
        self.prompts, self.every_n_steps = list(prompts), every_n_steps
        self.settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
        self.texts: dict[str, str] = {}

    def on_step(self, trainer: lightning.Trainer, module: CausalLM) -> None:
        due = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        if (due or trainer.global_step == trainer.max_steps) and trainer.is_global_zero:
            self.sample(trainer, module)

    def sample(self, trainer: lightning.Trainer, module: CausalLM) -> None:
        """Generate once from the current weights (rank 0 only: nothing here talks to other ranks)."""
        tokenizer = trainer.datamodule.tokenizer
        for prompt in self.prompts:
            chat = has_chat_tokens(tokenizer)
            turns = [Message("user", prompt)]
            ids = encode_prompt(turns, tokenizer=tokenizer) if chat else [tokenizer.begin_id, *tokenizer.encode(prompt)]
            with trainer.precision_plugin.forward_context(), torch.compiler.set_stance("force_eager"):
                new = generate(module.network, ids, end_id=tokenizer.end_id, seed=trainer.global_step, **self.settings)
            whole = tokenizer.decode([*ids, *new])
            self.texts[prompt] = f"{prompt}\n-> {tokenizer.decode(new)}" if chat else whole
            add_text(trainer, f"samples/{prompt}", self.texts[prompt])


def add_text(trainer: lightning.Trainer, name: str, text: str) -> None:
    """Write to a logger that takes text (TensorBoard does)."""
    if trainer.logger is not None and hasattr(trainer.logger.experiment, "add_text"):
        trainer.logger.experiment.add_text(name, text, trainer.global_step)


class SaveModelDirectory(Callback):
    """Writes the model directory (fp32 weights, configuration, tokenizer) when the last step is done."""

    def __init__(self, *, directory: str) -> None:
        self.directory = Path(directory)

    def on_train_end(self, trainer: lightning.Trainer, module: CausalLM) -> None:
        if trainer.global_step < trainer.max_steps:
            return
        weights = full_precision_weights(module.network, strategy=trainer.strategy)
        if trainer.is_global_zero:
            data = trainer.datamodule
            if module.lora is not None:
                if module.base is not None and module.network.embedding.weight.dtype != torch.float32:
                    weights |= base_weights(module.base, module.network.config, seed=module.seed)[0]  # not rounded
                weights = merged_weights(adapted_network(module.network.config, module.lora, weights))
            save_model_directory(
                self.directory,
                config=module.network.config,
                weights=weights,
                tokenizer=data.prepared.tokenizer,
                training={
                    "steps": trainer.global_step,
                    "tokens_seen": trainer.datamodule.tokens_seen(trainer.global_step),
                    "data_fingerprint": data.fingerprint,
                    "seed": module.seed,
                    **module.origin,
                    **({} if module.lora is None else {"lora": asdict(module.lora)}),
                    **{name: value for name, value in module.held_out.items() if math.isfinite(value)},
                },
            )
        trainer.strategy.barrier("model directory")
