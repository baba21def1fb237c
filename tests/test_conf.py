"""Every file under conf/ composes, builds on the meta device, configures an optimizer; the report's figures stand."""

import re
import subprocess
import sys

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ncvc.config import CONF_DIRECTORY, problems_of
from ncvc.corpus.personal.masking import PrivacySettings
from ncvc.corpus.quality.rules import QualitySettings
from ncvc.curation.settings import curation_from, executor_from
from ncvc.model.initialization import VARIANTS
from ncvc.settings import settings_from

EXPERIMENTS = sorted(path.stem for path in (CONF_DIRECTORY / "experiment").glob("*.yaml"))
CONVERSATIONS = sorted(path.stem for path in (CONF_DIRECTORY / "conversations").glob("*.yaml"))
BASE = "base=a_model_directory"  # what the experiments on conversations ask for
TRAINERS = sorted(path.stem for path in (CONF_DIRECTORY / "trainer").glob("*.yaml"))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_is_free_of_problems(composed, experiment):
    assert problems_of(composed(f"experiment={experiment}", *([BASE] if experiment.startswith("sft") else []))) == []


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_builds_on_the_meta_device_and_configures_its_optimizer(composed, experiment):
    config = composed(f"experiment={experiment}", "optimizer.fused=false", BASE)
    with torch.device("meta"):
        module = instantiate(config.module, _convert_="all")
    optimizers = module.configure_optimizers()
    grouped = sum(len(group["params"]) for group in optimizers["optimizer"].param_groups)
    assert grouped == len(list(module.network.parameters()))
    assert module.network.config.num_parameters == sum(p.numel() for p in module.network.parameters())


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_opens_with_its_command(experiment):
    text = (CONF_DIRECTORY / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8")
    assert f"python -m ncvc.train experiment={experiment}" in text.splitlines()[1]


@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_trainer_preset_is_free_of_problems_for_the_full_run(composed, trainer):
    assert problems_of(composed("experiment=pretrain_1b", f"trainer={trainer}")) == []


@pytest.mark.parametrize("trainer", [name for name in TRAINERS if "gpu" not in name and name not in ("ddp", "slurm")])
def test_every_cpu_trainer_preset_builds_a_trainer(composed, trainer):
    config = composed("experiment=quickstart", f"trainer={trainer}")
    built = instantiate(config.trainer, logger=False, _convert_="all")
    assert built.world_size == config.trainer.devices


def test_the_four_gpu_preset_builds_the_deepspeed_strategy_on_a_machine_without_a_gpu(composed):
    strategy = instantiate(composed("experiment=pretrain_1b").trainer.strategy)
    assert strategy.config["zero_optimization"]["stage"] == 2
    assert strategy.config["data_types"] == {"grad_accum_dtype": "fp32"}


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_every_init_variant_has_its_configuration_and_sets_nothing_else(composed, variant):
    chosen, report = (
        OmegaConf.to_container(composed("experiment=quickstart", f"model/init={name}").model)
        for name in (variant, "report")
    )
    assert chosen.pop("init") == variant
    assert {**report, "init": None} == {**chosen, "init": None}
    assert {path.stem for path in (CONF_DIRECTORY / "model" / "init").glob("*.yaml")} == set(VARIANTS)


# R-number -> (dotted key, the report's figure); each is written once under conf/, with its number beside it
REPORT = {
    "R32": ("model.vocab_size", 32768),
    "R37": ("model.num_layers", 24),
    "R38": ("model.hidden_size", 2048),
    "R39": ("model.intermediate_size", 8192),
    "R40": ("model.head_dim", 64),
    "R41": ("model.num_heads", 32),
    "R42": ("model.context_length", 2048),
    "R47": ("model.num_kv_heads", 8),
    "R55": ("trainer.max_steps", 24000),
    "R56": ("callbacks.checkpoints.archive_every", 3200),
    "R62": ("model.attention_dropout", 0.1),
    "R65": ("trainer.precision", "bf16-mixed"),
    "R67": ("trainer.gradient_clip_val", 1.0),
}
REPORT_AGAIN = {
    "data.batch_size": 1024,
    "data.micro_batch_size": 8,
    "trainer.devices": 4,
    "trainer.accumulate_grad_batches": 32,
    "model.residual_dropout": 0.1,
    "model.mask_documents": False,
    "model.init": "report",
    "optimizer.betas": [0.9, 0.95],
    "optimizer.weight_decay": 0.1,
    "optimizer.learning_rate": 1e-3,
    "schedule.warmup_steps": 750,
    "schedule.total_steps": 24000,
    "tokenizer.shrinking_factor": 0.75,
    "tokenizer.max_piece_length": 16,
    "tokenizer.n_sub_iterations": 8,
    "data.packing": "concatenate",
}


def test_the_full_run_is_the_reports_figure_by_figure(composed):
    config = composed("experiment=pretrain_1b")
    expected = dict(REPORT.values()) | REPORT_AGAIN
    found = {key: OmegaConf.select(config, key) for key in expected}
    found["optimizer.betas"] = list(found["optimizer.betas"])
    assert found == expected
    assert config.trainer.strategy._target_ == "lit_modules.strategies.ZeroStage2Strategy"
    for_tokenizer = {name: source.for_tokenizer for name, source in config.data.sources.items()}
    assert for_tokenizer == {
        "wikipedia": True,
        "oscar": False,
        "medical_web": True,
        "medical_synthetic": True,
    }  # R35


@pytest.mark.parametrize("number", sorted(REPORT))
def test_each_figure_of_the_report_is_written_once_beside_its_number(number):
    key, _ = REPORT[number]
    field = key.split(".")[-1]
    lines = [
        line
        for path in CONF_DIRECTORY.rglob("*.yaml")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.match(rf"\s*{field}: .*#.*\b{number}\b", line)
    ]
    assert len(lines) == 1, lines


def test_the_full_network_has_the_reports_size_on_the_meta_device(composed):
    with torch.device("meta"):
        module = instantiate(composed("experiment=pretrain_1b", "optimizer.fused=false").module, _convert_="all")
    assert sum(p.numel() for p in module.network.parameters()) == 1_191_282_688
    factors = module.configure_optimizers()["lr_scheduler"]["scheduler"].lr_lambdas[0]
    assert 1e-3 * factors(74) == pytest.approx(1e-4)  # update 75 of a linear warm-up (R66)
    assert factors(749) == 1.0
    assert factors(23999) == 0.0


def test_cfg_job_prints_the_composed_run_without_starting_it():
    command = [sys.executable, "-m", "ncvc.train", "experiment=pretrain_1b", "--cfg", "job"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=CONF_DIRECTORY.parent)
    assert "max_steps: 24000" in printed.stdout
    assert OmegaConf.create(printed.stdout).model.num_layers == 24


def test_bench_plan_prints_the_reports_arithmetic():
    command = [
        sys.executable,
        "-m",
        "ncvc.bench",
        "plan",
        "experiment=pretrain_1b",
        "bench.utilization=0.204",
    ]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=CONF_DIRECTORY.parent).stdout
    assert "1,191,282,688 (2.22 GiB in bf16)" in printed
    assert "1024 rows = 8 per GPU x 4 GPU(s) x 32 accumulated" in printed
    assert "50.33 B" in printed  # R57
    days = float(re.search(r"([\d.]+) days on 4 GPU", printed)[1])
    assert days == pytest.approx(14.0, abs=0.6)  # R68: 74.4 of 364 TFLOP/s per GPU


# --- tuning on conversations
SFT = {  # R-number -> (dotted key, the report's figure)
    "R74": ("model.vocab_size", 32771),
    "R75": ("data.micro_batch_size", 8),
    "R78": ("optimizer.weight_decay", 0.01),
    "R79": ("schedule.warmup_steps", 50),
    "R80": ("trainer.max_steps", 890),
    "R81": ("module.neftune_alpha", 5.0),
}
SFT_AGAIN = {
    "data.batch_size": 256,
    "trainer.accumulate_grad_batches": 32,
    "trainer.devices": 1,
    "optimizer.learning_rate": 1e-4,
    "schedule.total_steps": 890,
    "model.residual_dropout": 0.1,
    "model.attention_dropout": 0.1,
    "model.context_length": 2048,
    "data.too_long": "refuse",
    "data.validation_fraction": 0.0,
    "data.sources.jmed.split": "paper",
    "module.lora": None,
}


def test_the_tuning_on_jmed_llm_is_the_reports_figure_by_figure(composed):
    config = composed("experiment=sft_jmed", BASE)
    expected = dict(SFT.values()) | SFT_AGAIN
    assert {key: OmegaConf.select(config, key) for key in expected} == expected
    assert list(config.optimizer.betas) == [0.9, 0.95]
    factors = instantiate(config.schedule)(torch.optim.SGD([torch.zeros(1)], lr=1e-4)).lr_lambdas[0]
    assert (1e-4 * factors(49), factors(889)) == (1e-4, 0.0)
    assert -(-22_741 // config.data.batch_size) * 10 == config.trainer.max_steps  # R80: 10 epochs of the paper's split


def test_the_tuning_with_exercises_differs_only_in_what_the_report_says(composed):
    without, with_them = (
        OmegaConf.to_container(composed(f"experiment={name}", BASE), resolve=False)
        for name in ("sft_jmed", "sft_jmed_exercises")
    )
    assert with_them["data"].pop("batch_size") == 1024  # R76
    assert with_them["trainer"].pop("max_steps") == 4850  # R80
    assert with_them.pop("validate_every") == 485
    assert [*with_them["data"]["sources"]] == ["jmed", "exercises"]  # R72
    assert with_them["data"]["sources"].pop("exercises")["kind"] == "exercises"
    for container in (without, with_them):
        container["data"].pop("batch_size", None)
        container["trainer"].pop("max_steps", None)
        container.pop("validate_every", None)
        container.pop("name")
    assert with_them == without


def test_the_jmed_tuning_asks_for_its_base_by_name(composed):
    assert [text for text in problems_of(composed("experiment=sft_jmed")) if text.startswith("base")]


@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if name.startswith("sft")])
def test_every_tuning_can_be_one_of_adapters(composed, experiment):
    config = composed(f"experiment={experiment}", "tuning=lora", "optimizer.fused=false", BASE)
    assert problems_of(config) == []
    with torch.device("meta"):
        module = instantiate(config.module, _convert_="all")
    groups = module.configure_optimizers()["optimizer"].param_groups
    trained = {id(parameter) for group in groups for parameter in group["params"]}
    assert trained == {id(p) for name, p in module.network.named_parameters() if ".adapters." in name}
    assert len(trained) == module.network.config.num_layers * 6 * 2


@pytest.mark.parametrize("conversations", CONVERSATIONS)
def test_every_choice_of_conversations_is_one_the_data_can_read(composed, conversations):
    path = ["data.sources.messages.path=a.jsonl"] if conversations == "messages" else []
    config = composed("experiment=sft_quickstart", f"conversations={conversations}", *path)
    assert problems_of(config) == []
    data = instantiate(config.data, _convert_="all")
    assert [source.name for source in data.sources] == list(config.data.sources)


# --- the programs of the corpus
@pytest.mark.parametrize("corpus", ["single", "report", "demo_shared"])
def test_every_corpus_is_a_curation_whose_sources_keep_their_order(composed, corpus):
    config = composed(
        f"corpus={corpus}", *(["corpus.sources.text.path=a"] if corpus == "single" else []), root="curate"
    )
    values = OmegaConf.to_container(config, resolve=True)
    settings = curation_from(values)
    written = OmegaConf.load(CONF_DIRECTORY / "corpus" / f"{corpus}.yaml").sources
    assert [source.name for source in settings.sources] == list(written)
    assert settings.deduplication.exact and settings.deduplication.minhash
    assert settings.contamination.enabled == (corpus == "demo_shared")
    assert settings.classifier is None


@pytest.mark.parametrize("kind", ["local", "ray", "slurm"])
def test_every_executor_is_one_that_curation_knows(composed, kind):
    chosen = composed(f"executor={kind}", *(["executor.partition=cpu"] if kind == "slurm" else []), root="curate")
    assert executor_from(OmegaConf.to_container(chosen.executor, resolve=True)).kind == kind


def test_slurm_without_a_partition_is_refused_by_name():
    with pytest.raises(ValueError, match=r"executor\.partition=None"):
        executor_from({"kind": "slurm", "time": "1:00:00"})


@pytest.mark.parametrize("root", sorted(path.stem for path in CONF_DIRECTORY.glob("*.yaml")))
def test_every_program_composes(composed, root):
    assert composed(root=root)


@pytest.mark.parametrize("group", ["privacy", "quality"])
def test_every_preset_of_a_source_can_be_built(group):
    kind = {"privacy": PrivacySettings, "quality": QualitySettings}[group]
    for path in sorted((CONF_DIRECTORY / group).glob("*.yaml")):
        assert settings_from(kind, OmegaConf.to_container(OmegaConf.load(path)), path=group)
