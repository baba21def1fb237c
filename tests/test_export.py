"""``python -m ncvc.export``: what is asked for, where it goes, and the whole way of a model out and back."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, run_program, write_source, write_tiny_model

from ncvc.config import CONF_DIRECTORY
from ncvc.model.checkpoint import load_model_directory
from ncvc.model.exporting import ExportSettings, export_model
from ncvc.model_card import write_card


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "none is set"),
        ({"model": "a", "checkpoint": "b"}, "checkpoint and model are set"),
        ({"model": "a", "format": "onnx"}, "format=onnx is not one of ncvc, huggingface, gguf, int8"),
        ({"model": "a", "format": ()}, "nothing to do"),
        ({"model": "a", "format": "ncvc"}, "nothing to do"),
        ({"model": "a", "form": "gpt2"}, "form=gpt2 is not one of arcee, llama, apertus"),
        ({"model": "a", "dtype": "float16"}, "dtype=float16 is not one of float32, bfloat16"),
        ({"model": "a", "type": "q4"}, "type=q4 is not one of f32, f16, q8_0"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(given, said):
    with pytest.raises(ValueError, match=said):
        ExportSettings(**given)


def test_the_model_directory_comes_first_and_each_format_once():
    assert ExportSettings(checkpoint="a", format=("gguf", "ncvc", "gguf")).formats == ["ncvc", "gguf"]
    assert ExportSettings(checkpoint="a").formats == ExportSettings(huggingface="a").formats == ["ncvc"]
    assert ExportSettings(model="a").formats == ["huggingface"]


def test_what_is_not_there_is_named(tmp_path):
    for given in ({"model": "last"}, {"model": str(tmp_path / "nowhere")}, {"checkpoint": "last"}):
        with pytest.raises(FileNotFoundError, match=r"no run|no such folder"):
            export_model(ExportSettings(**given), home=tmp_path, tell=print)
    with pytest.raises(FileNotFoundError, match=r"manifest\.json"):
        export_model(ExportSettings(huggingface=str(tmp_path)), home=tmp_path, tell=print)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        export_model(ExportSettings(checkpoint=str(tmp_path / "run")), home=tmp_path, tell=print)


def test_a_model_goes_out_beside_itself_and_comes_back_with_its_card(tmp_path):
    model, told = write_tiny_model(tmp_path), []
    (out,) = export_model(ExportSettings(model=str(model), form="llama"), home=tmp_path, tell=told.append)
    assert out == tmp_path / "model-llama" and (out / "config.json").is_file()
    assert "LlamaForCausalLM" in told[0] and "largest difference of a logit" in told[0]
    (back,) = export_model(ExportSettings(huggingface=str(out)), home=tmp_path, tell=told.append)
    assert back == tmp_path / "model-llama-ncvc" and "Not a medical device" in (back / "README.md").read_text()
    first, second = load_model_directory(model)[0], load_model_directory(back)[0]
    ids = torch.arange(100)[None]
    with torch.no_grad():
        assert torch.equal(first(ids), second(ids))


def test_the_card_of_a_model_directory_has_its_own_figures(tmp_path):
    model = write_tiny_model(tmp_path)
    record = json.loads((model / "model_config.json").read_text())
    record["training"] = {"steps": 12_345, "held_out": {"nats_per_token": 1.25, "unknown": None}, "text": "a|b\nc"}
    (model / "model_config.json").write_text(json.dumps(record))
    write_card(model)
    card = (model / "README.md").read_text(encoding="utf-8")
    assert "| steps | 12,345 |" in card and "| held_out.nats_per_token | 1.25 |" in card
    assert r"| text | a\|b c |" in card and "unknown" not in card and "continues Japanese text" in card
    load_model_directory(model)  # the card is no part of what the manifest lists


def program(home: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "ncvc.export", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
        env={**os.environ, "NCVC_HOME": str(home), "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_a_checkpoint_goes_out_in_every_format_and_the_programs_messages_are_plain(tmp_path):
    pytest.importorskip("gguf")
    home, run = tmp_path / "home", tmp_path / "a run=1"
    done = run_program(home, write_source(tmp_path / "source.jsonl"), f"hydra.run.dir='{run}'")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out, of=it"
    done = program(home, f"checkpoint={run}", "format=[ncvc,huggingface,gguf,int8]", f"output={out}")
    assert done.returncode == 0, done.stderr
    model = "model-" + max((run / "checkpoints").glob("step=*")).name
    names = {model, f"{model}-arcee", f"{model}-f16.gguf", f"{model}-int8"}
    assert {path.name for path in out.iterdir()} == names
    assert "largest difference of a logit 0 " in done.stdout and "greedy tokens" in done.stdout
    card = (out / f"{model}-arcee" / "README.md").read_text(encoding="utf-8")
    assert json.loads((out / model / "model_config.json").read_text())["training"]["data_fingerprint"] in card
    for wrong, said in (
        (["model=last", "form=gpt2"], "form=gpt2 is not one of"),
        ([f"model={out}/{model}-int8"], "int8"),
        ([f"model={out}/{model}", f"output={run}"], "will not be replaced"),
        (["modle=last"], "did you mean model"),
    ):
        failed = program(home, *wrong)
        assert failed.returncode in (1, 2) and said in failed.stderr and "Traceback" not in failed.stderr
    shutil.rmtree(out / f"{model}-arcee" / "ncvc_tokenizer")
    failed = program(home, f"huggingface={out}/{model}-arcee")
    assert failed.returncode == 1 and "is missing, though SHA256SUMS lists it" in failed.stderr


def test_every_setting_of_the_configuration_is_one_of_the_program(composed):
    keys = set(composed(root="export")) - {"home"}
    assert keys == set(ExportSettings.__dataclass_fields__) and (CONF_DIRECTORY / "export.yaml").is_file()
