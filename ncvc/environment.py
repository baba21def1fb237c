"""Facts about the machine and the code that a run ran on, and the peak that its MFU is measured against."""

import importlib.metadata
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ncvc.planning import known_peak

RECORDED_PACKAGES = (
    "torch", "lightning", "deepspeed", "hydra-core", "omegaconf", "tokenizers", "sudachipy", "sudachidict-core",
    "torchmetrics", "tensorboard", "numpy", "safetensors", "flash-attn",
)  # fmt: skip


def peak_of_this_machine(device: torch.device, *, given: float | None = None) -> tuple[float, str]:
    """(TFLOP/s of one device, name of the figure): the given one, a known GPU's data sheet, else a measured product.

    The measurement is a square fp32 product, best of five, about 0.2 s on a CPU.
    """
    if given is not None:
        return given, "the peak set in the configuration"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    if name and (peak := known_peak(name)) is not None:
        return peak, f"{name}, data sheet, dense bf16"
    size = 768 if device.type == "cpu" else 8192
    square = torch.ones(size, size, device=device, dtype=torch.float32 if device.type == "cpu" else torch.bfloat16)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        (square @ square).sum().item()
        best = min(best, time.perf_counter() - started)
    kind = f"{torch.get_num_threads()} CPU threads, fp32" if device.type == "cpu" else f"{name}, bf16"
    return 2 * size**3 / best / 1e12, f"{kind}, measured on a {size}x{size} product"


def peak_memory_bytes(device: torch.device) -> int:
    """Largest memory so far: reserved on the GPU, resident set of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would also count a larger parent's peak from before exec
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def require_devices(accelerator: str, devices: int) -> None:
    """``ValueError`` when the configuration asks for more GPUs than this process can see."""
    visible = torch.cuda.device_count()
    if accelerator in ("gpu", "cuda") and devices > visible:
        raise ValueError(
            f"trainer.accelerator={accelerator} with trainer.devices={devices} needs {devices} CUDA GPU(s) and "
            f"{visible} can be seen here; set trainer=cpu, a smaller trainer.devices, or install a CUDA build of torch."
        )


def require_free_port(devices: int) -> None:
    """``ValueError`` when several ranks are to meet at a MASTER_PORT that another program listens on."""
    port = os.environ.get("MASTER_PORT")
    if devices < 2 or not port or int(os.environ.get("LOCAL_RANK", "0")) > 0 or "RANK" in os.environ:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(port)))
        except OSError as error:
            raise ValueError(
                f"MASTER_PORT={port} is in use on this machine ({error.strerror}), so the ranks cannot meet there; "
                "unset it (a free port is found then), or set another."
            ) from error


def environment_record() -> dict[str, Any]:
    """Versions, commit, hardware and command line of this process, ready for JSON."""
    packages: dict[str, str | None] = {}
    for name in RECORDED_PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = None
    root = Path(__file__).resolve().parent.parent
    ours = _git(root, "rev-parse", "--show-toplevel") == str(root)  # not a repository that merely contains this folder
    changes = _git(root, "status", "--porcelain") if ours else None
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [sys.executable, *sys.argv],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "packages": {**packages, "torch": torch.__version__},  # with its build, which the package record lacks
        "commit": _git(root, "rev-parse", "HEAD") if ours else None,
        "uncommitted_changes": None if changes is None else bool(changes),
    }


def _git(root: Path, *arguments: str) -> str | None:
    if shutil.which("git") is None:
        return None
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
