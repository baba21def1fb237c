"""What a run records of its machine, the peak its utilization is measured against, and how records are written."""

import importlib.metadata
import json
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from ncvc.environment import environment_record, peak_memory_bytes, peak_of_this_machine
from ncvc.storage import require_free_space, write_json

CPU = torch.device("cpu")


# --- peak and memory ---


def test_a_given_peak_is_taken_and_named_as_given():
    assert peak_of_this_machine(CPU, given=91.1) == (91.1, "the peak set in the configuration")


def test_the_peak_of_a_cpu_is_measured_and_the_name_says_so():
    peak, name = peak_of_this_machine(CPU)
    assert f"{torch.get_num_threads()} CPU threads, fp32, measured" in name
    assert 1e-4 < peak < 100  # TFLOP/s: from a slow single core to the largest servers


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_the_peak_of_a_gpu_is_named_after_it_and_above_what_a_product_reaches():
    device = torch.device("cuda")
    peak, name = peak_of_this_machine(device)
    assert torch.cuda.get_device_name(device) in name
    square = torch.ones(8192, 8192, device=device, dtype=torch.bfloat16)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    square @ square
    start.record()
    square @ square
    end.record()
    torch.cuda.synchronize()
    assert 2 * 8192**3 / (start.elapsed_time(end) * 1e-3) / 1e12 < 1.1 * peak


def test_peak_memory_counts_what_was_touched_and_does_not_fall_when_it_is_freed():
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("the resident set is read from /proc here")
    before = peak_memory_bytes(CPU)
    resident = next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmRSS" in line) * 1024
    size = before - resident + 64 * 2**20
    block = torch.ones(size, dtype=torch.uint8)
    during = peak_memory_bytes(CPU)
    assert before + 32 * 2**20 < during < before + 128 * 2**20
    del block
    assert peak_memory_bytes(CPU) > during - 2**20  # the kernel's counters lag by a few pages


# --- record ---


def test_the_record_names_versions_hardware_and_command_and_is_json():
    record = json.loads(json.dumps(environment_record()))
    assert record["packages"]["torch"] == torch.__version__
    assert torch.__version__.startswith(importlib.metadata.version("torch").split("+")[0])
    assert record["packages"]["sudachidict-core"] == importlib.metadata.version("sudachidict-core")
    for name, version in record["packages"].items():
        if version is None:
            with pytest.raises(importlib.metadata.PackageNotFoundError):
                importlib.metadata.version(name)
    assert record["python"] == platform.python_version()
    assert record["processors"] >= 1 and record["threads"] == torch.get_num_threads()
    assert len(record["gpus"]) == torch.cuda.device_count()
    assert len(record["command"]) >= 1


def test_the_record_names_the_commit_that_git_names():
    root = Path(__file__).resolve().parent.parent
    if shutil.which("git") is None or not (root / ".git").exists():
        pytest.skip("needs git and a clone")
    asked = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True)
    changes = subprocess.run(["git", "-C", str(root), "status", "--porcelain"], capture_output=True, text=True)
    record = environment_record()
    assert record["commit"] == (asked.stdout.strip() if asked.returncode == 0 else None)
    assert record["uncommitted_changes"] is bool(changes.stdout.strip())


def test_where_git_cannot_tell_the_record_does_not_claim_a_clean_tree(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    record = environment_record()
    assert record["commit"] is None
    assert record["uncommitted_changes"] is None


# --- files and disk ---


def test_json_is_written_readably_with_its_folders_and_replaces_the_old_file(tmp_path):
    path = tmp_path / "run" / "environment.json"
    for value in ("古い", "新しい"):
        write_json(path, {"text": value, "path": Path("/a/b")})
    assert json.loads(path.read_text(encoding="utf-8")) == {"text": "新しい", "path": "/a/b"}
    assert "新しい" in path.read_text(encoding="utf-8")
    assert [entry.name for entry in path.parent.iterdir()] == ["environment.json"]


def test_a_record_that_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "record.json"
    write_json(path, {"old": True})
    endless: dict = {}
    endless["self"] = endless
    with pytest.raises(ValueError):
        write_json(path, endless)
    assert json.loads(path.read_text(encoding="utf-8")) == {"old": True}
    assert [entry.name for entry in tmp_path.iterdir()] == ["record.json"]


def test_too_little_disk_is_refused_before_the_folder_is_made_with_the_need_the_rest_and_the_cure(tmp_path):
    target = tmp_path / "not" / "yet" / "there"
    require_free_space(target, 1, what="packing")
    with pytest.raises(OSError) as refusal:
        require_free_space(target, 10**18, what="packing the corpus")
    message = str(refusal.value)
    for part in (f"packing the corpus needs about {10**18:,} bytes in {target}", "set NCVC_HOME"):
        assert part in message
    told = int(message.split("that disk has ")[1].split(" free")[0].replace(",", ""))
    assert told == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)
    assert not target.exists()
