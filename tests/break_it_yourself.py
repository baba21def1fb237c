"""Break it yourself: kill a two-rank run three times at random, take it up each time, compare with the unbroken run.

    python tests/break_it_yourself.py                      # DDP, two CPU ranks, dropout on
    python tests/break_it_yourself.py --trainer zero2_cpu  # DeepSpeed ZeRO-2
    python tests/break_it_yourself.py --kills 10 --seed 7

Both runs train the same small network on the bundled text. The kill is SIGKILL to every process of the run, at a random
moment. At the end the two logs of samples and the two sets of weights are hashed: equal means bit for bit. Takes about
three minutes on two cores; everything is written into a temporary folder. Exits 1 if anything differs.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SETTINGS = [
    "experiment=quickstart",
    "model.hidden_size=64",
    "model.intermediate_size=256",
    "model.num_layers=4",
    "model.num_heads=4",
    "model.num_kv_heads=2",
    "model.head_dim=16",
    "model.vocab_size=4096",
    "model.residual_dropout=0.1",
    "model.attention_dropout=0.1",
    "data.batch_size=16",
    "data.micro_batch_size=2",  # 4 micro-batches a step on two ranks
    "data.validation_tokens=5000",
    "trainer.max_steps=60",
    "validate_every=20",
    "callbacks.samples=null",
    "callbacks.checkpoints.rolling_every=5",
]


def start(home: Path, folder: Path, *, trainer: str, log: Path) -> subprocess.Popen:
    """Begin the run, or go on with it, in a session of its own."""
    command = [sys.executable, "-m", "ncvc.train", *SETTINGS, f"trainer={trainer}"]
    command += [f"hydra.run.dir={folder}", "resume=auto"]
    ranks = ("LOCAL_RANK", "NODE_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in ranks} | {"NCVC_HOME": str(home)}
    environment.setdefault("OMP_NUM_THREADS", "1")
    output = log.open("ab")
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdout=output, stderr=output, start_new_session=True
    )


def lines(path: Path) -> int:
    """Steps that the run has logged."""
    return len(path.read_bytes().splitlines()) if path.is_file() else 0


def newest(folder: Path) -> str:
    """Name of the newest checkpoint folder."""
    return max((path.name for path in folder.glob("checkpoints/step=*")), default="none")


def finish(run: subprocess.Popen, *, log: Path) -> None:
    """Wait for the end of a run that is not killed."""
    if run.wait() != 0:
        sys.exit(f"the run failed:\n{log.read_text(encoding='utf-8')[-3000:]}")


def kill_at_random(run: subprocess.Popen, folder: Path, *, chance: random.Random, log: Path) -> bool:
    """Kill the run at a random moment of its training; False if it was done before."""
    first = lines(folder / "samples.jsonl")
    while lines(folder / "samples.jsonl") == first and run.poll() is None:
        time.sleep(0.02)
    time.sleep(chance.uniform(0.0, 4.0))
    if run.poll() is not None:
        finish(run, log=log)
        return False
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    return True


def sha256(path: Path) -> str:
    """Hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> int:
    """Run, break, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainer", default="ddp_cpu", help="ddp_cpu, zero2_cpu or cpu")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=None, help="of the moments of killing; default: another each time")
    parser.add_argument("--keep", action="store_true", help="leave the temporary folder")
    given = parser.parse_args()
    chance = random.Random(given.seed)
    home = Path(tempfile.mkdtemp(prefix="ncvc-break-"))
    whole, broken, log = home / "whole", home / "broken", home / "output.txt"
    print(f"unbroken run ({given.trainer}) in {whole}", flush=True)
    started = time.monotonic()
    finish(start(home, whole, trainer=given.trainer, log=log), log=log)
    print(f"  done in {time.monotonic() - started:.0f} s", flush=True)
    for number in range(1, given.kills + 1):
        run = start(home, broken, trainer=given.trainer, log=log)
        if not kill_at_random(run, broken, chance=chance, log=log):
            print("  the run was done before it could be killed again", flush=True)
            break
        print(f"kill {number}: SIGKILL; newest checkpoint {newest(broken)}", flush=True)
    finish(start(home, broken, trainer=given.trainer, log=log), log=log)
    same = True
    for name in ("samples.jsonl", "model/model.safetensors"):
        hashes = [sha256(folder / name) for folder in (whole, broken)]
        same = same and hashes[0] == hashes[1]
        print(f"{name:<24} unbroken {hashes[0]}\n{'':<24} broken   {hashes[1]}")
    print("equal, bit for bit" if same else "DIFFERENT", flush=True)
    if same and not given.keep:
        shutil.rmtree(home)
    else:
        print(f"everything is in {home}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
