"""A whole tiny run: what it leaves, and that ranks, accumulation and precision do not change what is computed."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import run_program, write_source
from omegaconf import OmegaConf
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ncvc.model.checkpoint import load_model_directory
from ncvc.train import train


@pytest.fixture
def finished(tiny_run, tmp_path):
    parts = train(tiny_run())
    return {**parts, "folder": tmp_path / "run"}


def test_a_run_leaves_its_model_its_record_and_its_figures(finished):
    folder, result = finished["folder"], json.loads((finished["folder"] / "result.json").read_text())
    assert result["steps"] == 6
    assert result["tokens_seen"] == 6 * 4 * 32
    assert (
        result["held_out_after"]["held_out/bits_per_character"]
        < result["held_out_before"]["held_out/bits_per_character"]
    )
    assert [entry["step"] for entry in result["held_out_series"]] == [0, 3, 6]
    record = json.loads((folder / "environment.json").read_text())
    assert record["packages"]["torch"] == torch.__version__
    assert record["command"]
    data = json.loads((folder / "data.json").read_text())
    assert len(data["fingerprint"]) == 64
    assert OmegaConf.load(folder / "config.yaml").trainer.max_steps == 6
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    wanted = {
        "train/loss", "train/gradient_norm", "train/learning_rate", "train/tokens_seen", "speed/tokens_per_second",
        "speed/mfu", "memory/peak_gib", "time/remaining_hours", "held_out/nats_per_token",
        "held_out/bits_per_character",
    }  # fmt: skip
    assert wanted <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("held_out/bits_per_character")] == [0, 3, 6]
    assert events.Scalars("train/tokens_seen")[-1].value == 6 * 4 * 32
    rates = [event.value for event in events.Scalars("train/learning_rate")]
    cosine = [0.5 * (1 + np.cos(np.pi * (update - 2) / 4)) for update in range(2, 7)]  # peak at 2, 0 at 6
    assert rates == pytest.approx([3e-3 * share for share in (0.5, *cosine)], abs=1e-10)
    assert len(events.Tags()["tensors"]) == len(result["samples"]) + 1  # the text samples, the name of the peak


def test_the_saved_model_scores_the_held_out_text_as_the_run_did(finished):
    model, tokenizer = load_model_directory(finished["folder"] / "model")
    nats = characters = tokens = 0
    for file in finished["data"].validation.values():
        ids = np.asarray(file.tokens_array[: finished["data"].validation_tokens + 1], dtype=np.int64)
        for start in range(0, len(ids) - 1, 32):  # plain loop, full logits
            piece = torch.from_numpy(ids[start : start + 33])[None]
            log_probabilities = model(piece[:, :-1]).log_softmax(-1)
            nats -= log_probabilities.gather(2, piece[:, 1:, None]).sum().item()
            tokens += piece.size(1) - 1
            characters += len(tokenizer.decode(piece[0, 1:].tolist()))
    held_out = finished["module"].held_out
    assert held_out["held_out/nats_per_token"] == pytest.approx(nats / tokens, rel=1e-5)
    assert held_out["held_out/bits_per_character"] == pytest.approx(nats / np.log(2) / characters, rel=1e-3)


def test_the_unigram_floor_is_the_entropy_of_the_training_counts(finished):
    data = finished["data"]
    counts = np.ones(data.tokenizer.vocab_size)
    for windows in data.windows:
        for token in windows.token_file.tokens_array.tolist():
            counts[token] += 1
    bits = characters = 0.0
    for file in data.validation.values():
        for token in file.tokens_array[1:].tolist()[: data.validation_tokens]:
            bits -= np.log2(counts[token] / counts.sum())
            characters += int(data.character_counts[token])
    assert data.unigram_bits_per_character() == pytest.approx(bits / characters)


def test_the_same_run_twice_gives_the_same_weights_bit_for_bit(tiny_run, tmp_path):
    dropout = ["model.residual_dropout=0.1", "model.attention_dropout=0.1"]
    train(tiny_run(*dropout, run="a"))
    torch.rand(3)  # state of the global generator must not matter
    train(tiny_run(*dropout, run="b"))
    first, second = (load_file(tmp_path / run / "model" / "model.safetensors") for run in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_sampling_and_scoring_more_often_does_not_change_the_weights(tiny_run, tmp_path):
    train(tiny_run("model.residual_dropout=0.1", run="a"))
    train(tiny_run("model.residual_dropout=0.1", "validate_every=1", run="b"))
    first, second = (load_file(tmp_path / run / "model" / "model.safetensors") for run in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)


def figures_of(folder: Path) -> dict[str, list[float]]:
    """Loss and gradient norm of every step, from TensorBoard: Adam hides a wrong scale, these do not."""
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {name: [event.value for event in events.Scalars(f"train/{name}")] for name in ("loss", "gradient_norm")}


def assert_same_training(first: Path, second: Path) -> None:
    """The two runs computed the same losses, gradient norms and, up to Adam's amplification, weights."""
    ours, theirs = figures_of(first), figures_of(second)
    for name, values in ours.items():
        assert len(values) == 6
        assert theirs[name] == pytest.approx(values, rel=2e-5), name
    weights, others = (load_file(folder / "model" / "model.safetensors") for folder in (first, second))
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, rtol=1e-3, atol=5e-5)


@pytest.mark.parametrize("micro", [1, 2])
def test_four_rows_at_once_equal_the_same_rows_accumulated(tiny_run, tmp_path, micro):
    train(tiny_run(run="whole"))
    train(tiny_run(f"data.micro_batch_size={micro}", run="cut"))
    assert_same_training(tmp_path / "whole", tmp_path / "cut")


def test_a_run_does_not_touch_the_data_that_another_prepared(tiny_run, tmp_path):
    train(tiny_run(run="a"))
    files = sorted((tmp_path / "home").rglob("*.bin"))
    before = [(path, path.stat().st_mtime_ns) for path in files]
    train(tiny_run("seed=0", "optimizer.learning_rate=1e-4", run="b"))
    assert [(path, path.stat().st_mtime_ns) for path in sorted((tmp_path / "home").rglob("*.bin"))] == before


def test_document_masking_trains_and_changes_the_result(tiny_run):
    plain = train(tiny_run(run="plain"))["result"]
    masked = train(tiny_run("model.mask_documents=true", run="masked"))["result"]
    assert masked["held_out_after"] != plain["held_out_after"]


def test_bf16_follows_fp32_closely(tiny_run):
    full = train(tiny_run(run="full"))["module"].held_out["held_out/nats_per_token"]
    half = train(tiny_run("trainer.precision=bf16-mixed", run="half"))["module"].held_out["held_out/nats_per_token"]
    assert half == pytest.approx(full, rel=5e-3)
    assert half != full


@pytest.mark.parametrize("trainer", ["ddp_cpu", pytest.param("zero2_cpu", marks=pytest.mark.slow)])
def test_two_ranks_compute_what_one_computes(tmp_path, trainer):
    source = write_source(tmp_path / "source.jsonl")
    for name, settings in {
        "one": ("trainer=cpu",),
        "two": (f"trainer={trainer}", "data.micro_batch_size=1"),
    }.items():
        done = run_program(tmp_path / "home", source, *settings, f"hydra.run.dir={tmp_path / name}")
        assert done.returncode == 0, done.stderr[-3000:]
    assert_same_training(tmp_path / "one", tmp_path / "two")
    results = {name: json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two")}
    for key in ("held_out_before", "held_out_after"):
        one, two = (results[name][key]["held_out/nats_per_token"] for name in ("one", "two"))
        assert two == pytest.approx(one, rel=2e-5)


def test_a_missing_source_is_told_without_a_stack_trace(tmp_path):
    done = run_program(tmp_path / "home", tmp_path / "nowhere.jsonl")
    assert done.returncode == 1
    assert "nowhere.jsonl" in done.stderr
    assert "data.source" in done.stderr
    assert "Traceback" not in done.stderr


def test_more_gpus_than_there_are_is_told_with_both_numbers_before_any_work(tiny_run, tmp_path):
    wanted = torch.cuda.device_count() + 1
    with pytest.raises(ValueError, match=rf"trainer\.devices={wanted} needs {wanted} .* and {wanted - 1} can be seen"):
        train(tiny_run("trainer=gpu", f"trainer.devices={wanted}", f"data.batch_size={4 * wanted}"))
    assert not (tmp_path / "home").exists()


def test_too_little_disk_is_told_before_training(tiny_run, tmp_path, monkeypatch):
    train(tiny_run(run="a"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=10**9, used=10**9 - 1000, free=1000))
    with pytest.raises(OSError, match=r"needs about [\d,]+ bytes .* but that disk has 1,000 free.*NCVC_HOME"):
        train(tiny_run(run="b"))
    assert not (tmp_path / "b" / "config.yaml").exists()


def test_a_truncated_token_file_is_refused_by_name(tiny_run, tmp_path):
    train(tiny_run(run="a"))
    tokens = next((tmp_path / "home" / "tokens").glob("*/train/tokens.bin"))
    tokens.write_bytes(tokens.read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"tokens\.bin is truncated.*prepare the data again"):
        train(tiny_run(run="b"))


def test_a_tokenizer_that_does_not_fit_the_model_is_refused(tiny_run, tmp_path):
    train(tiny_run(run="a"))
    tokenizer = next((tmp_path / "home" / "tokenizers").iterdir())
    with pytest.raises(ValueError, match=r"1024 ids.*model.vocab_size=2048"):
        train(tiny_run(f"tokenizer.directory={tokenizer}", "model.vocab_size=2048", run="b"))
