"""What a run writes down step by step: which samples it saw, and every loss spike with the data behind it.

``samples.jsonl`` has one line per optimizer step: absolute sample ranges, a checksum over the rows that were really
trained on, and the loss, so that an interrupted run can be held against an unbroken one line by line. ``spikes.jsonl``
has one line per spike: scores, gradient norm of every layer, documents of the batch. Lines after the step that a run is
taken up at are removed, because they are written again. Only the first rank writes; costs microseconds per step.
"""

import json
import math
from collections import deque
from pathlib import Path
from typing import Any

import lightning

from lit_modules.callbacks import EveryStep, add_text
from lit_modules.causal_lm import CausalLM
from lit_modules.guard import StepFigures
from ncvc.model.stability import spike_score
from ncvc.resuming import RunStopped


def _kept_lines(path: Path, *, last_step: int) -> list[str]:
    """Lines up to ``last_step``; a line torn by a kill is left out."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record["step"] <= last_step or record.get("rewound"):
            lines.append(line)
    return lines


class StepRecords(EveryStep):
    """Writes ``samples.jsonl`` and ``spikes.jsonl`` into ``directory`` and the spike scores to the logger.

    ``score_window`` is the number of last steps whose share of spikes is the spike score.
    """

    def __init__(self, *, directory: str, score_window: int = 1000) -> None:
        super().__init__()
        self.directory, self.score_window = Path(directory), score_window
        self.recent: deque[bool] = deque(maxlen=score_window)
        self.summary: dict[str, Any] = {"spikes": 0, "first_spike": None, "skipped": 0, "largest_gradient_norm": 0.0}
        self.seen = -1
        self.left_out_in_a_row = 0
        self._samples: Any = None

    def on_train_start(self, trainer: lightning.Trainer, module: CausalLM) -> None:
        super().on_train_start(trainer, module)
        self.seen = trainer.global_step
        if trainer.is_global_zero:
            self._rewrite(trainer.global_step)

    def _rewrite(self, step: int) -> None:
        """Cut both files back to ``step`` and open the sample log for the lines that follow."""
        self.directory.mkdir(parents=True, exist_ok=True)
        if self._samples is not None:
            self._samples.close()
        for name in ("samples.jsonl", "spikes.jsonl"):
            path = self.directory / name
            lines = _kept_lines(path, last_step=step)
            partial = path.with_name(f".{name}.partial")
            partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            partial.replace(path)
        self._samples = (self.directory / "samples.jsonl").open("a", encoding="utf-8")

    def on_step(self, trainer: lightning.Trainer, module: CausalLM) -> None:
        for figures in module.guard.since(self.seen):
            self.seen = figures.step
            self._record(figures, trainer, module)

    def flush(self, trainer: lightning.Trainer, module: CausalLM) -> None:
        """Write everything up to the current step (before a checkpoint says that it happened)."""
        module.guard.collect()
        self.on_step(trainer, module)
        if self._samples is not None:
            self._samples.flush()

    def _record(self, figures: StepFigures, trainer: lightning.Trainer, module: CausalLM) -> None:
        self.recent.append(figures.spiked)
        self._stop_if_stuck(figures, module)
        if math.isfinite(figures.gradient_norm):
            self.summary["largest_gradient_norm"] = max(self.summary["largest_gradient_norm"], figures.gradient_norm)
        self.summary["skipped"] += figures.skipped
        if figures.spiked:
            self.summary["spikes"] += 1
            self.summary["first_spike"] = self.summary["first_spike"] or figures.step
        if not trainer.is_global_zero:
            return
        data = trainer.datamodule
        line = {
            "step": figures.step,
            "samples": data.samples_of(figures.step - 1),
            "checksum": f"{figures.checksum:014x}",
            "loss": _json_number(figures.loss),
        }
        self._samples.write(json.dumps(line) + "\n")
        if trainer.logger is not None:
            scores = {"stability/loss_score": figures.loss_score, "stability/norm_score": figures.norm_score}
            known = {name: score for name, score in scores.items() if math.isfinite(score)}
            trainer.logger.log_metrics({**known, "stability/spike_score": spike_score(self.recent)}, step=figures.step)
        if figures.spiked:
            self._record_spike(figures, line, trainer)

    def _stop_if_stuck(self, figures: StepFigures, module: CausalLM) -> None:
        """End a run whose every update is left out: it would go on for ever without learning anything."""
        self.left_out_in_a_row = self.left_out_in_a_row + 1 if figures.skipped else 0
        limit = 2 * module.guard.settings.restart_after
        if self.left_out_in_a_row >= limit:
            why = (
                "loss or gradient are not finite"
                if figures.non_finite
                else f"loss {figures.loss:.3f} counts as a spike"
            )
            raise RunStopped(
                f"the updates of {limit} steps in a row were left out ({why}), so the weights stand still since step "
                f"{figures.step - limit}. Set a lower optimizer.learning_rate or another model/init and start anew, or "
                "stability.loss_margin higher (stability=record leaves out only what is not finite).",
                exit_code=1,
            )

    def _record_spike(self, figures: StepFigures, line: dict[str, Any], trainer: lightning.Trainer) -> None:
        record = {
            **line,
            "loss_score": figures.loss_score,
            "gradient_norm": figures.gradient_norm,
            "norm_score": figures.norm_score,
            "non_finite": figures.non_finite,
            "skipped": figures.skipped,
            "layer_norms": figures.layer_norms,
            "rows": trainer.datamodule.documents_of(figures.step - 1),
        }
        plain = {name: _json_number(value) for name, value in record.items()}
        plain["layer_norms"] = {name: _json_number(norm) for name, norm in figures.layer_norms.items()}
        with (self.directory / "spikes.jsonl").open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(plain, ensure_ascii=False) + "\n")
        skipped = ", update left out" if figures.skipped else ""
        text = (
            f"spike at step {figures.step}: loss {figures.loss:.4f} (score {figures.loss_score:.1f}), gradient norm "
            f"{figures.gradient_norm:.4g} (score {figures.norm_score:.1f}){skipped}; see spikes.jsonl"
        )
        print(text, flush=True)
        add_text(trainer, "stability/spikes", text)

    def state_dict(self) -> dict[str, Any]:
        return {"summary": dict(self.summary), "recent": list(self.recent)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.summary = dict(state_dict["summary"])
        self.recent = deque(state_dict["recent"], maxlen=self.score_window)

    def rewound(self, *, step: int, keep_spikes_from: int) -> None:
        """After a rewind to ``step``: cut the logs back to it; the spikes that caused it stay, marked as rewound."""
        path = self.directory / "spikes.jsonl"
        if self._samples is not None:
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
            marked = [{**line, "rewound": True} if line["step"] >= keep_spikes_from else line for line in lines]
            path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in marked), encoding="utf-8")
            self._rewrite(step)
        self.seen = step

    def result(self) -> dict[str, Any]:
        """Spikes of the whole run, its spike score (share of spiked steps at the end) and largest gradient norm."""
        return {**self.summary, "spike_score": spike_score(self.recent)}

    def on_train_end(self, trainer: lightning.Trainer, module: CausalLM) -> None:
        self.flush(trainer, module)
        if self._samples is not None:
            self._samples.close()


def _json_number(value: Any) -> Any:
    """Numbers that JSON lacks (NaN, infinity) as text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
