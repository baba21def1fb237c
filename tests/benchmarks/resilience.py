"""What it costs that training survives: ZeRO-2 beside DDP, saving, taking up, and the guard, on two CPU ranks.

    python tests/benchmarks/resilience.py                # all of it, about 12 minutes
    python tests/benchmarks/resilience.py --only zero

zero     per-token time of ZeRO-2 over DDP (two ranks, one thread each; runs alternate; median of each run's steps)
saving   share of a save's wall time for which training stops (background saving)
resume   seconds from loading the libraries to the first step after taking up, beyond those of a fresh start
guard    time of the guard and the records beyond plain clipping, as a share of the step
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def run(home: Path, folder: Path, *settings: str) -> float:
    """Train as a program of its own; wall seconds."""
    ranks = ("LOCAL_RANK", "NODE_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in ranks} | {"NCVC_HOME": str(home)}
    command = [sys.executable, "-m", "ncvc.train", "experiment=quickstart", "callbacks.samples=null", *settings]
    started = time.perf_counter()
    done = subprocess.run(
        [*command, f"hydra.run.dir={folder}"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return time.perf_counter() - started


def tokens_per_second(folder: Path) -> float:
    """Median over the run's logging intervals, the first two left out."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return statistics.median(event.value for event in events.Scalars("speed/tokens_per_second")[2:])


def measure_zero(home: Path, *, repeats: int) -> None:
    """Alternate DDP and ZeRO-2 at the quickstart's size, with and without accumulation."""
    os.environ["OMP_NUM_THREADS"] = "1"
    for micro in (4, 2, 1):
        ratios, speeds = [], {"ddp_cpu": [], "zero2_cpu": []}
        for number in range(repeats):
            for trainer in ("ddp_cpu", "zero2_cpu") if number % 2 == 0 else ("zero2_cpu", "ddp_cpu"):
                folder = home / f"zero-{micro}-{number}-{trainer}"
                settings = [
                    "trainer.max_steps=24",
                    "callbacks.monitor.every_n_steps=4",
                    "callbacks.checkpoints=null",
                    "data.validation_tokens=2000",
                ]
                run(
                    home,
                    folder,
                    f"trainer={trainer}",
                    f"data.micro_batch_size={micro}",
                    "validate_every=1000",
                    *settings,
                )
                speeds[trainer].append(tokens_per_second(folder))
            ratios.append(speeds["ddp_cpu"][-1] / speeds["zero2_cpu"][-1])
        medians = {trainer: statistics.median(values) for trainer, values in speeds.items()}
        print(
            f"zero: accumulation {4 // micro}: DDP {medians['ddp_cpu']:,.0f} tokens/s, ZeRO-2 "
            f"{medians['zero2_cpu']:,.0f} tokens/s; time per token ZeRO-2 / DDP {statistics.median(ratios):.3f} "
            f"({min(ratios):.3f} to {max(ratios):.3f}, {repeats} pairs)",
            flush=True,
        )


def measure_saving(home: Path) -> None:
    """Save every 6th step of a network of 30 million parameters (0.36 GB a checkpoint)."""
    folder = home / "saving"
    size = ["model.hidden_size=512", "model.intermediate_size=2048", "model.num_layers=8", "model.num_heads=16"]
    settings = [
        "trainer.max_steps=40",
        "callbacks.checkpoints.rolling_every=10",
        "callbacks.checkpoints.keep_rolling=1",
    ]
    run(home, folder, *size, *settings, "validate_every=1000", "schedule.warmup_steps=2", "data.validation_tokens=2000")
    saving = json.loads((folder / "result.json").read_text(encoding="utf-8"))["saving"]
    wall = saving["stopped_seconds"] + saving["writing_seconds"]
    gigabytes = sum(file.stat().st_size for file in next((folder / "checkpoints").glob("step=*")).rglob("*")) / 1e9
    print(
        f"saving: {saving['saves']} saves of {gigabytes:.2f} GB: training stopped {saving['stopped_seconds']:.2f} s "
        f"of {wall:.2f} s ({saving['stopped_seconds'] / wall:.1%}), and waited {saving['waited_seconds']:.2f} s for a "
        "save before",
        flush=True,
    )


def measure_resume(home: Path, *, repeats: int) -> None:
    """One more step after taking up, against one step of a fresh run (which scores the held-out text once more)."""
    short = ["validate_every=1000", "data.validation_tokens=2000", "callbacks.checkpoints.rolling_every=10"]
    fresh, resumed, loading = [], [], []
    for number in range(repeats):
        folder = home / f"resume-{number}"
        run(home, folder, *short, "trainer.max_steps=21", "schedule.warmup_steps=2", "callbacks.model_directory=null")
        for path in [folder / "result.json", *(folder / "checkpoints" / "step=00000021").rglob("*")]:
            if path.is_file():
                path.unlink()
        started = ["trainer.max_steps=21", "schedule.warmup_steps=2", "callbacks.model_directory=null"]
        resumed.append(run(home, folder, *short, *started, "resume=auto"))
        once = ["trainer.max_steps=1", "schedule.warmup_steps=0", "callbacks.model_directory=null"]
        fresh.append(run(home, home / f"fresh-{number}", *short, *once))
        loading.append(resumed[-1] - fresh[-1])
    print(
        f"resume: one step after taking up {statistics.median(resumed):.1f} s, one step of a fresh run "
        f"{statistics.median(fresh):.1f} s, difference {statistics.median(loading):+.1f} s "
        f"({min(loading):+.1f} to {max(loading):+.1f}, {repeats} pairs)",
        flush=True,
    )


def measure_guard(*, repeats: int) -> None:
    """The guard's step against PyTorch's clipping alone, on the quickstart network's gradients."""
    import torch
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    from lit_modules.guard import UpdateGuard
    from ncvc.config import CONF_DIRECTORY, register_with_hydra
    from ncvc.model.stability import StabilitySettings
    from ncvc.model.transformer import Transformer

    register_with_hydra()
    with initialize_config_dir(str(CONF_DIRECTORY), version_base="1.3"):
        config = compose("train", overrides=["experiment=quickstart"])
    network = Transformer(instantiate(config.model), seed=0)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    guard = UpdateGuard(StabilitySettings(level="record"), network, vocab_size=config.model.vocab_size)
    guard.attach(optimizer, torch.device("cpu"))
    parameters = list(network.parameters())
    ids = torch.randint(0, config.model.vocab_size, (8, config.model.context_length + 1))
    times: dict[str, list[float]] = {"step": [], "clip": [], "guard": []}
    for number in range(repeats):
        begun = time.perf_counter()
        loss = network.loss(ids[:, :-1], ids[:, 1:]) / ids[:, 1:].numel()
        loss.backward()
        optimizer.step()
        times["step"].append(time.perf_counter() - begun)
        gradients = [parameter.grad for parameter in parameters]
        begun = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(parameters, 1e9)
        times["clip"].append(time.perf_counter() - begun)
        begun = time.perf_counter()
        guard.before_update(
            gradients, parameters, step=number + 1, loss=loss.detach().double(), checksum=1, partial=False, clip=1e9
        )
        guard.collect()
        times["guard"].append(time.perf_counter() - begun)
        optimizer.zero_grad()
    step, clip, judged = (statistics.median(times[name][3:]) for name in ("step", "clip", "guard"))
    print(
        f"guard: step {step * 1e3:.0f} ms, clipping {clip * 1e3:.2f} ms, guard with clipping {judged * 1e3:.2f} ms: "
        f"{(judged - clip) / step:.2%} of the step",
        flush=True,
    )


def main() -> None:
    """Run what is asked for in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["zero", "saving", "resume", "guard"])
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ncvc-bench-") as folder:
        home = Path(folder)
        if given.only in (None, "guard"):
            measure_guard(repeats=20)
        if given.only in (None, "zero"):
            measure_zero(home, repeats=given.repeats)
        if given.only in (None, "saving"):
            measure_saving(home)
        if given.only in (None, "resume"):
            measure_resume(home, repeats=given.repeats)


if __name__ == "__main__":
    main()
