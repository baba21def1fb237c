"""One step of a run again: the same samples, dropout and weights, told sample by sample.

The trainer goes from the newest checkpoint before the step up to it (steps in between are computed again). Reported
are the cross entropy of every sample (a row of packed text, a conversation) before the update, where it comes from,
loss, gradient norms by layer, scores, and whether samples and loss are those that the run recorded.
"""

import json
import math
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from lit_modules.causal_lm import CausalLM


class ReplayStep(Callback):
    """Reports the trainer's last step; ``directory`` is the run's folder, whose records it is held against."""

    def __init__(self, *, directory: str) -> None:
        self.directory = Path(directory)
        self.rows: list[dict[str, Any]] = []
        self.report: dict[str, Any] = {}

    def on_train_start(self, trainer: lightning.Trainer, module: CausalLM) -> None:
        module.guard.stop_requested = False
        if trainer.is_global_zero:
            between = trainer.max_steps - 1 - trainer.global_step
            note = f", computing {between} step(s) in between again" if between else ""
            print(
                f"replay of step {trainer.max_steps} from the state after step {trainer.global_step}{note}", flush=True
            )

    @torch.no_grad()
    def on_train_batch_start(self, trainer: lightning.Trainer, module: CausalLM, batch: Any, batch_index: int) -> None:
        if trainer.global_step != trainer.max_steps - 1:
            return
        module.eval()
        with trainer.precision_plugin.forward_context():
            losses = module.network.token_losses(
                batch["input_ids"], batch["labels"], document_ids=batch.get("document_ids")
            )
        module.train()
        counted = batch["labels"] >= 0
        data, micro_step = trainer.datamodule, batch_index % trainer.accumulate_grad_batches
        rows = data.rows_of(trainer.global_step, micro_step, rank=trainer.global_rank, world_size=trainer.world_size)
        for number, row in enumerate(rows):
            for place, first, end in row:
                part = counted[number, first:end]
                mean = float(losses[number, first:end].where(part, 0).sum() / part.sum())
                ids = batch["input_ids"][number, first:end].tolist()
                text = data.tokenizer.decode(ids[:48]).replace("\n", " ")
                self.rows.append({"row": place, "nats_per_token": mean, "text": text})

    def on_train_end(self, trainer: lightning.Trainer, module: CausalLM) -> None:
        module.guard.collect()
        figures = next(module.guard.since(trainer.max_steps - 1))
        rows = self.rows
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, rows)
            rows = [row for part in gathered for row in part]
        documents = trainer.datamodule.documents_of(figures.step - 1)
        rows = [{**row, **documents[row["row"]]} for row in sorted(rows, key=lambda row: row["row"])]
        self.report = {
            "step": figures.step,
            "samples": trainer.datamodule.samples_of(figures.step - 1),
            "checksum": f"{figures.checksum:014x}",
            "loss": figures.loss,
            "loss_score": figures.loss_score,
            "gradient_norm": figures.gradient_norm,
            "norm_score": figures.norm_score,
            "spiked": figures.spiked,
            "non_finite": figures.non_finite,
            "layer_norms": figures.layer_norms,
            "rows": rows,
            "recorded": self._recorded(figures.step),
        }
        if trainer.is_global_zero:
            print(_as_table(self.report), flush=True)

    def _recorded(self, step: int) -> dict[str, Any] | None:
        """The line that the run wrote about this step."""
        path = self.directory / "samples.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            if line.startswith(f'{{"step": {step},'):
                return json.loads(line)
        return None


def _as_table(report: dict[str, Any]) -> str:
    recorded = report["recorded"]
    if recorded is None:
        same = "the run has no record of this step"
    elif recorded["checksum"] == report["checksum"]:
        same = "the rows are those that the run recorded"
    else:
        same = f"NOT the rows that the run recorded (checksum {recorded['checksum']})"
    if recorded is not None and "loss" in recorded:
        exact = recorded["loss"] == report["loss"]
        same += ", and so is the loss" if exact else f"; the run's loss was {recorded['loss']}"
    lines = [
        f"step {report['step']}: samples {report['samples']}, checksum {report['checksum']}: {same}",
        f"loss {report['loss']:.6f} (score {_score(report['loss_score'])}), gradient norm "
        f"{report['gradient_norm']:.6g} (score {_score(report['norm_score'])})"
        + (" SPIKE" if report["spiked"] else ""),
        "",
        "layer            gradient norm",
        *(f"{name:<16} {norm:13.6g}" for name, norm in report["layer_norms"].items()),
        "",
        f"row  nats/token  source            {'place':<27} text",
    ]
    for row in report["rows"]:
        lines.append(
            f"{row['row']:>3}  {row['nats_per_token']:10.4f}  {row['source']:<16}  {_place(row):<27} {row['text'][:60]}"
        )
    return "\n".join(lines)


def _place(row: dict[str, Any]) -> str:
    """Where a sample comes from: the window of packed text and its documents, or the row of a conversation."""
    if "documents" not in row:
        return str(row["row_in_source"])
    first, end = row["documents"]
    return f"window {row['window']}, {first}-{end - 1}"


def _score(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else "none yet"
