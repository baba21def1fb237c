"""Fixtures shared by the tests: composed configurations and a tiny text source."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from torch.utils._python_dispatch import TorchDispatchMode

from ncvc.config import CONF_DIRECTORY, register_with_hydra
from ncvc.corpus.cleaning import Cleaner
from ncvc.model.checkpoint import save_model_directory
from ncvc.model.transformer import ModelConfig, Transformer
from ncvc.morphology import build_analyzer
from ncvc.tokenizer import SMALLEST_VOCABULARY, Tokenizer, segment_text

REPOSITORY = CONF_DIRECTORY.parent

SENTENCES = [
    "患者は発熱と咳嗽を主訴に来院した。体温は38.5℃、血圧は120/80mmHgであった。",
    "胸部X線では右下肺野に浸潤影を認め、肺炎と診断した。",
    "抗菌薬を開始し、3日後に解熱した。",
    "既往に高血圧症と2型糖尿病がある。",
    "頭部CTでは明らかな出血を認めなかった。",
    "退院後は外来で経過をみる方針とした。",
    "食事は全量摂取でき、夜間はよく眠れた。",
    "血液検査で白血球数の増加とCRPの上昇を認めた。",
]


REPORT = {  # the shape of the full network (R32, R37-R47)
    "vocab_size": 32_768,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_layers": 24,
    "num_heads": 32,
    "num_kv_heads": 8,
    "head_dim": 64,
    "context_length": 2048,
}


class Largest(TorchDispatchMode):
    """Records the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def write_source(path: Path, *, documents: int = 60) -> Path:
    """A small JSONL source in which every document differs."""
    lines = []
    for number in range(documents):
        chosen = [SENTENCES[(number * 3 + place * 5 + number // 8) % len(SENTENCES)] for place in range(5)]
        text = f"症例{number}。" + "".join(chosen) + "\n" + SENTENCES[number % len(SENTENCES)]
        lines.append(json.dumps({"id": f"d{number}", "text": text}, ensure_ascii=False))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


TINY_SHAPE = {  # of the smallest network that the tests build by hand
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
}

TINY = [
    "model.vocab_size=1024",
    "model.hidden_size=32",
    "model.intermediate_size=64",
    "model.num_layers=2",
    "model.num_heads=4",
    "model.num_kv_heads=2",
    "model.head_dim=8",
    "model.context_length=32",
    "data.batch_size=4",
    "data.micro_batch_size=4",
    "data.validation_fraction=0.2",
    "data.validation_tokens=1000",
    "data.workers=1",
    "trainer.max_steps=6",
    "schedule.warmup_steps=2",
    "validate_every=3",
    "callbacks.samples.max_new_tokens=8",
    "callbacks.monitor.every_n_steps=1",
    "callbacks.checkpoints.rolling_every=2",
]


def program(source: Path, *overrides: str) -> list[str]:
    """The command of a tiny run on ``source``."""
    settings = ["experiment=quickstart", *TINY, f"data.source={source}", *overrides]
    return [sys.executable, "-m", "ncvc.train", *settings]


def program_environment(home: Path) -> dict[str, str]:
    """Environment of a tiny run: one thread, everything made under ``home``, no leftovers of Lightning's."""
    ranks = ("LOCAL_RANK", "NODE_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in ranks}
    return {**kept, "NCVC_HOME": str(home), "OMP_NUM_THREADS": "1"}


def run_program(home: Path, source: Path, *overrides: str, timeout: float = 240) -> subprocess.CompletedProcess:
    """Run a tiny training as a program of its own, to its end."""
    return subprocess.run(
        program(source, *overrides),
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
        env=program_environment(home),
        timeout=timeout,
    )


def write_tiny_model(folder: Path, *, seed: int = 3) -> Path:
    """A model directory with a network of 32 numbers a token and a tokenizer of a few sentences."""
    cleaner, analyzer, size = Cleaner(), build_analyzer(), SMALLEST_VOCABULARY + 160
    segmented = [segment_text(cleaner(text), analyzer=analyzer) for text in SENTENCES * 5]
    with pytest.warns(UserWarning, match="unused"):
        tokenizer = Tokenizer.train(segmented, vocab_size=size, cleaner=cleaner, analyzer=analyzer, progress=False)
    tokenizer.save(folder / "tokenizer")
    network = Transformer(ModelConfig(vocab_size=size, context_length=128, **TINY_SHAPE), seed=seed)
    save_model_directory(
        folder / "model",
        config=network.config,
        weights=network.state_dict(),
        tokenizer=folder / "tokenizer",
        training={},
    )
    return folder / "model"


@pytest.fixture
def composed() -> Iterator[Callable[..., DictConfig]]:
    """Compose ``conf/train.yaml`` (or another root) with overrides."""
    register_with_hydra()

    def composition(*overrides: str, root: str = "train") -> DictConfig:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONF_DIRECTORY), version_base="1.3"):
            return compose(root, overrides=list(overrides))

    yield composition
    GlobalHydra.instance().clear()


@pytest.fixture
def tiny_run(tmp_path: Path, composed: Callable[..., DictConfig]) -> Callable[..., DictConfig]:
    """A composed training configuration that takes a second: tiny network, tiny text, everything under ``tmp_path``."""
    source = write_source(tmp_path / "source.jsonl")

    def configuration(*overrides: str, run: str = "run") -> DictConfig:
        return composed(
            "experiment=quickstart",
            f"paths.home={tmp_path / 'home'}",
            f"paths.run={tmp_path / run}",
            f"data.source={source}",
            *TINY,
            *overrides,
        )

    return configuration


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tiny tensors gain nothing from a second thread, and a busy machine's threads wait for each other."""
    torch.set_num_threads(1)
