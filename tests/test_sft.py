"""Tuning a tiny base on conversations: what it leaves, exact resuming, adapters, and what is refused."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, TINY_SHAPE, program_environment, write_tiny_model
from omegaconf import DictConfig
from safetensors.torch import load_file

from ncvc.chat import ROLES, encode_prompt, parse_messages
from ncvc.checkpoints import find_checkpoints
from ncvc.command_line import quoted
from ncvc.model.base import base_weights
from ncvc.model.checkpoint import load_model_directory, read_model_config
from ncvc.model.consolidation import consolidate
from ncvc.train import train

ANSWERS = ["肺炎と診断した。", "解熱した。", "経過をみる。", "抗菌薬を開始し、3日後に解熱した。"]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("base"))


def settings_of(folder: Path, base: Path, *, run: str) -> list[str]:
    """Overrides of a run of 6 steps that takes a second, on conversations in ``folder``."""
    conversations = folder / "conversations.jsonl"
    if not conversations.is_file():
        lines = []
        for number in range(60):
            turns = [("user", f"症例{number}の診断は？"), ("assistant", ANSWERS[number % 4])]
            turns += [("user", "経過は？"), ("assistant", ANSWERS[number % 3])] if number % 5 == 0 else []
            messages = [{"role": role, "content": content} for role, content in turns]
            lines.append(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
        conversations.write_text("".join(lines), encoding="utf-8")
    size = read_model_config(base).vocab_size + 3
    return [
        "experiment=sft_quickstart", "conversations=messages", f"data.sources.messages.path={conversations}",
        f"base={base}", f"paths.home={folder / 'home'}", f"paths.run={folder / run}", f"model.vocab_size={size}",
        *(f"model.{name}={value}" for name, value in TINY_SHAPE.items()), "model.context_length=128",
        "model.residual_dropout=0.1", "data.batch_size=8", "data.micro_batch_size=4", "data.workers=1",
        "data.validation_fraction=0.2", "trainer.max_steps=6", "schedule.warmup_steps=2", "validate_every=3",
        "callbacks.samples.max_new_tokens=4", "callbacks.monitor.every_n_steps=1", "callbacks.watchdog=null",
        "callbacks.monitor.peak_tflops=1.0",
        "callbacks.checkpoints.rolling_every=2",
    ]  # fmt: skip


@pytest.fixture
def sft(tmp_path, base, composed) -> Callable[..., DictConfig]:
    def configuration(*overrides: str, run: str = "run") -> DictConfig:
        return composed(*settings_of(tmp_path, base, run=run), *overrides)

    return configuration


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def lines(folder: Path) -> list[str]:
    return (folder / "samples.jsonl").read_text().splitlines()


def until_step(folder: Path, step: int) -> None:
    """Make a finished run one that was killed after its checkpoint of ``step``."""
    for checkpoint in find_checkpoints(folder / "checkpoints"):
        if checkpoint.step > step:
            shutil.rmtree(checkpoint.path)
    (folder / "result.json").unlink()
    shutil.rmtree(folder / "model")


LORA = ["tuning=lora", "module.lora.rank=4", "module.lora.alpha=8.0", "module.lora.dropout=0.1"]


@pytest.mark.parametrize("tuning", [[], LORA], ids=["full", "lora"])
def test_a_run_taken_up_in_the_middle_ends_with_the_unbroken_runs_weights(sft, tmp_path, base, tuning):
    whole = train(sft(*tuning, run="whole"))
    train(sft(*tuning, run="broken"))
    until_step(tmp_path / "broken", 4)
    again = train(sft(*tuning, "resume=auto", run="broken"))
    assert again["result"]["started_from_step"] == 4
    assert lines(tmp_path / "broken") == lines(tmp_path / "whole")
    ours, theirs = weights(tmp_path / "broken"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    config = read_model_config(base)
    assert ours.keys() == load_file(base / "model.safetensors").keys()  # plain, whatever the tuning
    model, tokenizer = load_model_directory(tmp_path / "whole" / "model")
    assert model.config.vocab_size == tokenizer.vocab_size == config.vocab_size + 3
    assert [tokenizer.id_of(f"<|{role}|>") for role in ROLES] == [config.vocab_size + place for place in range(3)]
    prompt = encode_prompt(parse_messages([{"role": "user", "content": "診断は？"}]), tokenizer=tokenizer)
    with torch.no_grad():
        tuned, network = model(torch.tensor([prompt])), whole["module"].network.eval()
        torch.testing.assert_close(tuned, network(torch.tensor([prompt])), rtol=1e-5, atol=1e-5)
    start, _ = base_weights(base, model.config, seed=0)
    changed = {name for name in start if not torch.equal(start[name], theirs[name])}
    frozen = {"embedding.weight", "head.weight", "final_norm.weight"} if tuning else set()
    assert changed.isdisjoint(frozen)
    assert any("qkv" in name for name in changed)
    exported = tmp_path / "exported"
    facts = consolidate(tmp_path / "whole" / "checkpoints" / "step=00000006", output=exported)
    assert "bit for bit" in facts["probe"]
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in load_file(exported / "model.safetensors").items())


def test_the_model_directory_records_base_growth_and_tuning(sft, tmp_path, base):
    train(sft(*LORA))
    record = json.loads((tmp_path / "run" / "model" / "model_config.json").read_text())["training"]
    pinned = json.loads((tmp_path / "run" / "base.json").read_text())
    assert record["base"]["weights"] == pinned["sha256"]
    assert record["base"]["growth"]["embedding"]["law"].startswith("mean of the existing rows")
    assert record["lora"]["rank"] == 4
    assert str(tmp_path) not in json.dumps(record)  # a model directory tells nothing of the machine
    checkpoint = tmp_path / "run" / "checkpoints" / "step=00000006"
    state = json.loads((checkpoint / "state.json").read_text())
    held = sum(shard.stat().st_size for shard in checkpoint.glob("*.safetensors"))
    adapters = 2 * 4 * sum((32 + 32, 16 + 32, 16 + 32, 32 + 32, 64 + 32, 32 + 64))
    assert 12 * adapters <= held < 12 * adapters + 20_000  # weights and two moments of the adapters alone, and names
    assert state["base"] == pinned["path"]


def test_a_chat_sample_is_an_answer_to_its_prompt(sft):
    texts = train(sft('callbacks.samples.prompts=["診断は？"]'))["result"]["samples"]
    assert list(texts) == ["診断は？"]
    assert texts["診断は？"].startswith("診断は？\n-> ")


def test_tuning_without_held_out_conversations_runs(sft):
    result = train(sft("data.validation_fraction=0"))["result"]
    assert result["steps"] == 6
    assert result["held_out_series"] == []


@pytest.mark.slow
def test_a_changed_tuning_makes_another_run_by_name(sft, tmp_path):
    train(sft())
    until_step(tmp_path / "run", 4)
    for override, name in (
        ("module.neftune_alpha=3.0", "module.neftune_alpha: the checkpoint was made with 5.0, now it is 3.0"),
        ("module.neftune_alpha=null", "module.neftune_alpha"),
        ("tuning=lora", "module.lora.rank"),
    ):
        with pytest.raises(ValueError, match="because this would be another run") as refused:
            train(sft(override, "resume=auto"))
        assert name in str(refused.value)


def test_adapters_are_refused_beside_another_base_or_none(sft, tmp_path, base):
    copied = Path(shutil.copytree(base, tmp_path / "copied"))
    train(sft(*LORA, f"base={copied}"))
    checkpoint = tmp_path / "run" / "checkpoints" / "step=00000006"
    shutil.rmtree(copied)
    with pytest.raises(FileNotFoundError, match=r"holds adapters \(LoRA\) alone"):
        consolidate(checkpoint, output=tmp_path / "out")
    other = write_tiny_model(tmp_path / "other", seed=4)
    with pytest.raises(ValueError, match="of another model than"):
        consolidate(checkpoint, output=tmp_path / "out", base=other)
    consolidate(checkpoint, output=tmp_path / "out", base=base)
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in weights(tmp_path / "run").items())


def test_a_base_that_does_not_fit_is_refused_before_training(sft):
    with pytest.raises(ValueError, match=r"model\.num_layers=3, and the base has 2"):
        train(sft("model.num_layers=3"))
    with pytest.raises(ValueError, match=r"set model\.vocab_size="):
        train(sft("model.vocab_size=4096"))


def test_plain_text_goes_on_from_a_base_with_its_tokenizer(tiny_run, base, tmp_path):
    config = read_model_config(base)
    shape = [f"model.vocab_size={config.vocab_size}", f"base={base}", "trainer.max_steps=2", "schedule.warmup_steps=1"]
    parts = train(tiny_run(*shape))
    before = load_file(base / "model.safetensors")
    assert parts["data"].tokenizer.vocab_size == config.vocab_size
    moved = max((weights(tmp_path / "run")[name] - before[name]).abs().max().item() for name in before)
    assert 0 < moved < 0.02  # two steps from the base, not a fresh start
    record = json.loads((tmp_path / "run" / "model" / "model_config.json").read_text())["training"]
    assert record["base"]["growth"] is None


@pytest.mark.slow
def test_tuning_goes_on_from_a_tuned_model_without_growing_again(sft, tmp_path):
    train(sft(run="first"))
    train(sft(f"base={tmp_path / 'first'}", run="second"))
    record = json.loads((tmp_path / "second" / "model" / "model_config.json").read_text())["training"]
    assert record["base"]["growth"] is None
    assert weights(tmp_path / "second")["head.weight"].shape == weights(tmp_path / "first")["head.weight"].shape


@pytest.mark.slow
def test_a_checkpoint_is_a_base_and_made_a_model_directory_once(sft, tmp_path):
    train(sft(run="first"))
    checkpoint = tmp_path / "first" / "checkpoints" / "step=00000004"
    for run in ("second", "third"):
        train(sft(quoted(f"base={checkpoint}"), "trainer.max_steps=3", run=run))
    assert len([path for path in (tmp_path / "home" / "bases").iterdir() if path.is_dir()]) == 1
    identity = json.loads((checkpoint / "manifest.json").read_text())["sha256"]
    assert json.loads((tmp_path / "second" / "base.json").read_text())["path"].endswith(
        f"step=00000004-{identity[:16]}"
    )


# ---- as programs of their own
def program(folder: Path, base: Path, *overrides: str, run: str) -> list[str]:
    settings = [text for text in settings_of(folder, base, run=run) if not text.startswith("callbacks.watchdog")]
    settings = [text.replace("paths.run=", "hydra.run.dir=") for text in settings]
    return [sys.executable, "-m", "ncvc.train", *settings, *overrides]


def run_to_its_end(folder: Path, base: Path, *overrides: str, run: str) -> str:
    done = subprocess.run(
        program(folder, base, *overrides, run=run), capture_output=True, text=True, check=False, cwd=REPOSITORY,
        env=program_environment(folder / "home"), timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("tuning", [[], LORA], ids=["full", "lora"])
@pytest.mark.parametrize("trainer", ["ddp_cpu", "zero2_cpu"])
def test_a_killed_tuning_of_two_ranks_is_the_unbroken_one(tmp_path, base, trainer, tuning):
    settings = [f"trainer={trainer}", "data.micro_batch_size=2", "trainer.max_steps=14", *tuning]
    run_to_its_end(tmp_path, base, *settings, run="whole")
    run = subprocess.Popen(
        program(tmp_path, base, *settings, run="broken"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        cwd=REPOSITORY, env=program_environment(tmp_path / "home"), start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while len(find_checkpoints(tmp_path / "broken" / "checkpoints")) < 2 and run.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(random.Random(trainer).uniform(0, 0.1))
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()
    told = run_to_its_end(tmp_path, base, *settings, "resume=auto", run="broken")
    assert "bit for bit" in told
    assert lines(tmp_path / "broken") == lines(tmp_path / "whole")
    ours, theirs = weights(tmp_path / "broken"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    facts = consolidate(tmp_path / "broken" / "checkpoints" / "step=00000014", output=tmp_path / "exported")
    assert facts["shards"] == 2
    found = load_file(tmp_path / "exported" / "model.safetensors")
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-7)


@pytest.mark.slow
def test_one_rank_two_ranks_and_packed_rows_see_the_same_samples_and_the_same_loss(tmp_path, base):
    plain = ["model.residual_dropout=0", "module.neftune_alpha=null"]
    variants = {
        "one": ["data.micro_batch_size=8"], "accumulated": ["data.micro_batch_size=2"],
        "packed": ["data.layout=packed"], "two": ["trainer=ddp_cpu", "data.micro_batch_size=2"],
    }  # fmt: skip
    for name, overrides in variants.items():
        run_to_its_end(tmp_path, base, *plain, *overrides, run=name)
    records = {name: [json.loads(line) for line in lines(tmp_path / name)] for name in variants}
    for name in variants:
        for ours, theirs in zip(records[name], records["one"], strict=True):
            assert (ours["samples"], ours["checksum"]) == (theirs["samples"], theirs["checksum"]), name
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5), name
