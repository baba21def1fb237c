"""Scores during training: the same as evaluating the saved model, and training that does not notice."""

import json
import random
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_SHAPE, run_program, write_source, write_tiny_model
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from jmed_world import write_jmed
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_modules.evaluation import InLoopEvaluation, fixed_items, untouched
from ncvc.chat import Message
from ncvc.config import CONF_DIRECTORY, register_with_hydra
from ncvc.evaluation.answering import AnswerSettings
from ncvc.evaluation.item import Item, Task
from ncvc.evaluation.measures import measures_of
from ncvc.evaluation.statistics import bootstrap_interval
from ncvc.evaluation.tasks import load_tasks
from ncvc.model.assistant import Assistant
from ncvc.model.responders import LocalResponder
from ncvc.model.transformer import ModelConfig, Transformer
from ncvc.train import train


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory):
    return write_jmed(tmp_path_factory.mktemp("benchmarks"))


def switched_on(benchmarks, *more: str) -> list[str]:
    return [f"callbacks.evaluation.directory={benchmarks}", "callbacks.evaluation.tasks=[crade,smdis,nrner]", *more]


def same_bits(first, second) -> bool:
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (first, second))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


DROPOUT = ("model.residual_dropout=0.1", "model.attention_dropout=0.1", "model.context_length=64")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, benchmarks) -> dict[str, Any]:
    """The parts of two runs that differ by the evaluation alone, and the folder that holds both."""
    folder = tmp_path_factory.mktemp("runs")
    source = write_source(folder / "source.jsonl")
    register_with_hydra()
    found: dict[str, Any] = {"folder": folder}
    for name, more in {"without": [], "with": switched_on(benchmarks)}.items():
        paths = [f"paths.home={folder / 'home'}", f"paths.run={folder / name}", f"data.source={source}"]
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONF_DIRECTORY), version_base="1.3"):
            config = compose("train", overrides=["experiment=quickstart", *paths, *TINY, *DROPOUT, *more])
        found[name] = train(config)
    GlobalHydra.instance().clear()
    return found


def callback_of(parts) -> InLoopEvaluation:
    return next(one for one in parts["trainer"].callbacks if isinstance(one, InLoopEvaluation))


def scalars(folder, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in EventAccumulator(str(folder / "tensorboard")).Reload().Scalars(tag)]


def test_training_does_not_notice(runs):
    folder = runs["folder"]
    assert same_bits(folder / "without", folder / "with")
    assert [found["step"] for found in callback_of(runs["with"]).evaluations] == [0, 3, 6]
    assert scalars(folder / "without", "train/loss") == scalars(folder / "with", "train/loss")
    modes = [[layer.training for layer in runs[name]["module"].network.modules()] for name in ("without", "with")]
    assert modes[0] == modes[1]


def test_it_is_off_until_it_has_a_directory(runs):
    assert callback_of(runs["without"]).evaluations == []
    events = EventAccumulator(str(runs["folder"] / "without" / "tensorboard")).Reload()
    assert not any(tag.startswith("evaluation/") for tag in events.Tags()["scalars"])


def test_the_last_figures_are_those_of_the_saved_model(runs, benchmarks):
    assistant = Assistant.load(runs["folder"] / "with" / "model")
    settings = AnswerSettings(method="log_likelihood", max_new_tokens=64, too_long="truncate")
    for task in load_tasks(["crade", "smdis", "nrner"], directory=benchmarks):
        answers = {}
        LocalResponder(assistant).respond(
            task.items, settings=settings, keep=lambda answer, to=answers: to.update({answer.id: answer})
        )
        measures = measures_of(task, task.items, [answers[item.id].answer for item in task.items])
        interval = bootstrap_interval(measures.headline)
        name = f"evaluation/{task.name}/{measures.metric}"
        wanted = {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
        wanted[f"evaluation/{task.name}/refused"] = sum(measures.refused) / len(task.items)
        for tag, value in wanted.items():
            if np.isfinite(value):
                assert scalars(runs["folder"] / "with", tag)[-1] == (6, pytest.approx(value, abs=1e-6)), tag
    accuracy = scalars(runs["folder"] / "with", "evaluation/smdis/accuracy")
    assert [step for step, _ in accuracy] == [0, 3, 6]
    assert scalars(runs["folder"] / "with", "evaluation/smdis/accuracy_chance")[0] == (0, 0.5)
    assert scalars(runs["folder"] / "with", "evaluation/smdis/kappa_chance")[0] == (0, 0.0)


@pytest.mark.slow
def test_training_does_not_notice_answers_that_are_written(tiny_run, tmp_path, benchmarks):
    more = ["callbacks.evaluation.every_n_steps=1", "callbacks.evaluation.method=generation"]
    train(tiny_run(*DROPOUT, run="without"))
    parts = train(tiny_run(*DROPOUT, *switched_on(benchmarks, *more), run="with"))
    assert same_bits(tmp_path / "without", tmp_path / "with")
    assert [found["step"] for found in callback_of(parts).evaluations] == list(range(7))


def item(number: int) -> Item:
    return Item(
        id=f"q{number}", task="own", kind="choice", messages=(Message("user", f"{number}?"),), gold=("A",),
        letters=("A", "B"), options=("はい", "いいえ"),
    )  # fmt: skip


def test_the_items_are_the_same_whatever_order_or_number_the_file_has():
    task = Task(name="own", family="own", items=tuple(item(number) for number in range(100)))
    shuffled = list(task.items)
    random.Random(1).shuffle(shuffled)
    chosen = fixed_items(task, count=10, seed=0)
    again = fixed_items(Task(name="own", family="own", items=tuple(shuffled)), count=10, seed=0)
    assert {one.id for one in chosen.items} == {one.id for one in again.items}
    assert len(chosen.items) == 10
    assert list(chosen.items) == [one for one in task.items if one in chosen.items]
    assert {one.id for one in fixed_items(task, count=10, seed=1).items} != {one.id for one in chosen.items}
    assert fixed_items(task, count=1000, seed=0).items == task.items
    without = Task(name="own", family="own", items=tuple(one for one in task.items if one not in chosen.items[:3]))
    assert {one.id for one in chosen.items[3:]} < {one.id for one in fixed_items(without, count=10, seed=0).items}


def test_generators_and_modes_are_as_before_also_after_an_error():
    network = Transformer(ModelConfig(vocab_size=300, context_length=16, **TINY_SHAPE), seed=0).train()
    network.layers[0].eval()
    modes = [layer.training for layer in network.modules()]
    state = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    with pytest.raises(ValueError, match="x"), untouched(network):
        network.eval()
        torch.rand(5)
        raise ValueError("x")
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.random.get_state()[1].tolist() == state[1]
    assert random.getstate() == state[2]
    assert [layer.training for layer in network.modules()] == modes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["cradle"]}, "there is no task 'cradle'.*did you mean crade"),
        ({"directory": "nowhere"}, "nowhere is no folder"),
        ({"tasks": []}, "tasks is empty"),
        ({"every_n_steps": 0}, "every_n_steps=0"),
        ({"items_per_task": 0}, "items_per_task=0"),
        ({"split": "grouped"}, "set fold"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"method": "guess"}, "method='guess'"),
    ],
)
def test_what_cannot_be_is_told_by_name(benchmarks, changes, message):
    callback = InLoopEvaluation(**{"directory": str(benchmarks), "tasks": ["crade"], **changes})
    with pytest.raises(ValueError, match=message) as error:
        callback.setup(None, None, "fit")
    assert "callbacks.evaluation" in str(error.value)


@pytest.mark.slow
def test_a_wrong_setting_ends_the_run_before_its_first_step(tiny_run, tmp_path, benchmarks):
    with pytest.raises(ValueError, match="there is no task 'cradle'"):
        train(tiny_run(*switched_on(benchmarks), "callbacks.evaluation.tasks=[cradle]"))
    assert not (tmp_path / "run" / "samples.jsonl").exists()


@pytest.mark.slow
def test_a_failing_evaluation_does_not_end_the_training(tiny_run, tmp_path, benchmarks, monkeypatch, capsys):
    def broken(*_, **__):
        raise ValueError("the network's logits are not finite")

    monkeypatch.setattr(LocalResponder, "respond", broken)
    train(tiny_run(*switched_on(benchmarks)))
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    assert "the evaluation failed, training goes on" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["ddp_cpu", "zero2_cpu"])
def test_two_ranks_wait_for_the_first_and_train_the_same(tmp_path, benchmarks, trainer):
    source = write_source(tmp_path / "source.jsonl")
    common = (f"trainer={trainer}", "data.micro_batch_size=1", "model.context_length=64")
    on = switched_on(benchmarks, "callbacks.evaluation.every_n_steps=1", "callbacks.watchdog.minimum_seconds=2")
    for name, settings in {"without": (), "with": on}.items():
        done = run_program(tmp_path / "home", source, *common, *settings, f"hydra.run.dir={tmp_path / name}")
        assert done.returncode == 0, done.stderr[-3000:]
    assert same_bits(tmp_path / "without", tmp_path / "with")
    assert done.stdout.count("crade kappa") == 7
    assert json.loads((tmp_path / "with" / "result.json").read_text())["finished"]


@pytest.mark.slow
def test_a_tuned_model_is_asked_in_its_chat_form(tmp_path, composed, benchmarks):
    from test_sft import settings_of

    base = write_tiny_model(tmp_path / "base")
    on = switched_on(benchmarks, "callbacks.evaluation.every_n_steps=3")
    lora = ["tuning=lora", "module.lora.rank=4", "module.lora.alpha=8.0", "module.lora.dropout=0.1"]
    train(composed(*settings_of(tmp_path, base, run="without"), *lora))
    train(composed(*settings_of(tmp_path, base, run="with"), *lora, *on))
    assert same_bits(tmp_path / "without", tmp_path / "with")
    events = EventAccumulator(str(tmp_path / "with" / "tensorboard")).Reload()
    assert [event.value for event in events.Scalars("evaluation/smdis/refused")] == [0.0, 0.0, 0.0]


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["trainer.precision=bf16-mixed", "module.activation_checkpointing=true"])
def test_other_ways_to_train_do_not_notice_either(tiny_run, tmp_path, benchmarks, setting):
    more = ["callbacks.evaluation.every_n_steps=1", "model.hidden_size=512"]  # matrices large enough to be packed
    train(tiny_run(*DROPOUT, setting, "model.hidden_size=512", run="without"))
    train(tiny_run(*DROPOUT, setting, *switched_on(benchmarks, *more), run="with"))
    assert same_bits(tmp_path / "without", tmp_path / "with")


@pytest.mark.slow
def test_a_run_taken_up_again_evaluates_on_and_ends_with_the_same_weights(tiny_run, tmp_path, benchmarks):
    from test_sft import until_step

    on = switched_on(benchmarks, "callbacks.evaluation.every_n_steps=2")
    train(tiny_run(*DROPOUT, run="whole"))
    train(tiny_run(*DROPOUT, *on, run="broken"))
    until_step(tmp_path / "broken", 2)
    parts = train(tiny_run(*DROPOUT, *on, "resume=auto", run="broken"))
    assert same_bits(tmp_path / "whole", tmp_path / "broken")
    assert [found["step"] for found in callback_of(parts).evaluations] == [4, 6]
