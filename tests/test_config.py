"""Problems of a configuration: each is told by name with its cure, and all of them at once."""

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf, open_dict

from ncvc.command_line import problems_of_command_line, quoted
from ncvc.config import accumulation, check, problems_of

ROOT = Path(__file__).resolve().parent.parent


def told(*arguments: str) -> list[str]:
    return problems_of_command_line(list(arguments), config_name="train")


def test_a_good_command_line_has_no_problems():
    assert told("experiment=quickstart") == []


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("sed=7", ["sed=7", "did you mean seed?"]),
        ("optimizer.lerning_rate=1", ["optimizer.lerning_rate", "did you mean optimizer.learning_rate?"]),
        ("model=ncvc_7b", ["model=ncvc_7b", "ncvc_1b", "quickstart"]),
        ("modell=ncvc_1b", ["modell"]),
        ("experiment=quikstart", ["experiment=quikstart", "pretrain_1b"]),
        ("seed=abc", ["seed='abc'", "whole number"]),
        ("seed=1.5", ["seed=1.5", "whole number"]),
        ("optimizer.learning_rate=fast", ["optimizer.learning_rate='fast'", "a number"]),
        ("optimizer.betas=[0.9]", ["optimizer.betas", "list"]),
        ("model.num_kv_heads=3", ["model.num_kv_heads=3", "model.num_heads=8", "1, 2, 4, 8"]),
        ("model.head_dim=31", ["model.head_dim=31", "even"]),
        ("model.residual_dropout=1.5", ["model.residual_dropout=1.5", "[0, 1)"]),
        ("model.qk_norm=2", ["model.qk_norm=2", "true or false"]),
        ("data.batch_size=7", ["data.batch_size=7", "data.micro_batch_size=4", "multiple of 4"]),
        ("trainer.devices=3", ["trainer.devices=3", "multiple of 12"]),
        ("trainer.devices=auto", ["trainer.devices='auto'", "whole number"]),
        ("trainer.max_stepz=3", ["trainer.max_stepz", "trainer.max_steps"]),
        ("schedule.warmup_steps=9999", ["schedule.warmup_steps=9999", "trainer.max_steps=240"]),
        ("data.source=null", ["data.source is not set"]),
        ("data.packing=squash", ["data.packing='squash'", "concatenate", "truncate"]),
        ("data.validation_fraction=1.5", ["data.validation_fraction=1.5", "between 0 and 1"]),
        ("validate_every=0", ["validate_every=0"]),
        ("+surprise=1", ["surprise", "no such key"]),
        ("+callbacks.mine.speed=3", ["callbacks.mine", "_target_"]),
        ("+callbacks.held_out.colour=red", ["callbacks.held_out.colour", "no such setting"]),
        (
            "logger.tensorboard._target_=lightning.Nothing",
            ["logger.tensorboard._target_", "cannot be imported"],
        ),
        ("optimizer._target_=no.such.module", ["optimizer._target_", "cannot be imported"]),
        ("model.vocab_size=???", ["model.vocab_size", "a value is needed"]),
        ("tokenizer.vocab_size=many", ["tokenizer.vocab_size='many'", "whole number"]),
        ("+tokenizer.vocab=9000", ["tokenizer.vocab", "did you mean vocab_size?"]),
        ("analyzer.mode=3", ["analyzer.mode=3", "text"]),
        ("+analyzer.modus=A", ["analyzer.modus", "did you mean mode?"]),
        ("+paths.hme=x", ["paths.hme", "did you mean home?"]),
        ("data={source: null, sources: {web: {path: a, wieght: 1}}}", ["data.sources.web.wieght", "weight"]),
        ("data={source: null, sources: {web: {weight: 1}}}", ["data.sources.web.path", "needed"]),
        ("data={source: null, sources: {web: a.jsonl}}", ["data.sources.web", "group of settings"]),
        (
            "data={source: null, sources: {web: {path: a, weight: heavy}}}",
            ["data.sources.web.weight='heavy'", "number"],
        ),
    ],
)
def test_each_problem_names_what_was_set_and_what_to_set(argument, words):
    messages = told("experiment=quickstart", argument)
    assert messages, f"{argument} was accepted"
    assert any(all(word in message for word in words) for message in messages), messages


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["base=null"], ["base is not set", "last"]),
        (["data.sources=null"], ["data.sources is empty", "conversations=jmed_llm"]),
        (
            ["conversations=jmed_llm", "data.sources.jmed.split=papers"],
            ["data.sources.jmed.split='papers'", "'grouped'"],
        ),
        (["conversations=jmed_llm", "+data.sources.jmed.pat=a"], ["data.sources.jmed.pat", "did you mean path?"]),
        (["conversations=messages"], ["data.sources.messages.path", "a value is needed"]),
        (["module.neftune_alpha=0"], ["module.neftune_alpha=0", "above 0"]),
        (["tuning=lora", "module.lora.rank=0"], ["module.lora.rank=0"]),
        (["tuning=lora", "module.lora.rank=big"], ["module.lora.rank='big'", "whole number"]),
        (["tuning=lora", "module.lora.targets=[query,head]"], ["module.lora.targets", "query, key, value"]),
        (["tuning=lora", "base=null"], ["module.lora is set and base is not"]),
        (["tuning=adapters"], ["tuning=adapters", "full", "lora"]),
        (["data.layout=padded"], ["data.layout='padded'", "bucketed"]),
        (["data.too_long=cut"], ["data.too_long='cut'", "truncate"]),
        (["data.validation_fraction=1.0"], ["data.validation_fraction=1.0"]),
    ],
)
def test_each_problem_of_a_tuning_names_what_was_set_and_what_to_set(arguments, words):
    messages = told("experiment=sft_quickstart", *arguments)
    assert any(all(word in message for word in words) for message in messages), messages


def test_all_problems_of_a_command_line_are_told_at_once():
    messages = told(
        "experiment=quickstart",
        "sed=7",
        "seed=abc",
        "model.head_dim=33",
        "optimizer.lr=1",
        "data.batch_size=9",
    )
    for words in ("sed=7", "seed='abc'", "model.head_dim=33", "optimizer.lr=1", "data.batch_size=9"):
        assert sum(words in message for message in messages) == 1, (words, messages)


def test_a_wrong_key_in_an_experiment_file_is_told_by_name(composed):
    config = composed("experiment=quickstart")
    with open_dict(config):  # what a file that Hydra merges silently comes to
        config.sed = 7
        config.optimizer.lerning_rate = 1.0
        config.data.batchsize = 4
    messages = problems_of(config)
    assert any("sed" in text and "seed" in text for text in messages)
    assert any("optimizer.lerning_rate" in text and "learning_rate" in text for text in messages)
    assert any("data.batchsize" in text and "batch_size" in text for text in messages)
    with pytest.raises(ValueError, match="3 problems in the configuration"):
        check(config)


def test_one_refusal_that_stops_several_keys_is_told_once():
    messages = told("experiment=quickstart", "trainer.devices=3")
    assert len([text for text in messages if "multiple of 12" in text]) == 1


def test_a_sweep_is_checked_at_each_of_its_values():
    messages = told("--multirun", "experiment=quickstart", "model/init=report,gtp2", "model.head_dim=32,33")
    assert any("model/init=gtp2" in text for text in messages)
    assert any("model.head_dim=33" in text for text in messages)
    assert told("--multirun", "experiment=quickstart", "model/init=report,gpt2", "seed=0,1") == []


def test_the_program_ends_with_the_list_and_without_a_stack_trace():
    command = [sys.executable, "-m", "ncvc.train", "experiment=quickstart", "sed=7", "model.head_dim=33"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert "2 problems in the configuration" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("batch", "micro", "devices", "nodes", "expected"),
    [(1024, 8, 4, 1, 32), (256, 8, 1, 1, 32), (64, 8, 4, 2, 1)],
)
def test_accumulation_is_the_batch_over_everything_in_parallel(batch, micro, devices, nodes, expected):
    assert accumulation(batch, micro, devices, nodes) == expected


def test_a_run_reads_its_configuration_back_as_it_was_composed(composed):
    config = composed("experiment=quickstart")
    assert OmegaConf.create(OmegaConf.to_yaml(config)) == config


@pytest.mark.parametrize(
    ("argument", "given"),
    [
        ("base=runs/a/checkpoints/step=00009600", 'base="runs/a/checkpoints/step=00009600"'),
        ("base=last", "base=last"),
        ("checkpoint=/x y/step=00000001", 'checkpoint="/x y/step=00000001"'),
        ('base="a/step=1"', 'base="a/step=1"'),
        ("base=a/step=1,a/step=2", "base=a/step=1,a/step=2"),  # a sweep, which Hydra reads itself
        ("data={source: null}", "data={source: null}"),
        ("+callbacks.x._target_=a.B", "+callbacks.x._target_=a.B"),
        ("--cfg", "--cfg"),
    ],
)
def test_a_path_with_a_sign_of_its_own_reaches_hydra_as_one_value(argument, given):
    assert quoted(argument) == given
