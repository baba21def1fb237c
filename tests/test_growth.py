"""A grown vocabulary: what was there computes what it did, and the new rows follow the law that is recorded."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import TINY_SHAPE

from ncvc.model.growth import grow
from ncvc.model.initialization import VARIANTS, WESAR_STD
from ncvc.model.transformer import ModelConfig, Transformer

OLD = 400
CONFIG = ModelConfig(vocab_size=OLD, context_length=16, **TINY_SHAPE)


def grown_network(config: ModelConfig, *, new_rows: int = 3, seed: int = 0) -> tuple[Transformer, Transformer, dict]:
    before = Transformer(config, seed=5).eval()
    weights, record = grow(before.state_dict(), config, new_rows=new_rows, seed=seed)
    after = Transformer(replace(config, vocab_size=config.vocab_size + new_rows)).eval()
    after.load_state_dict(weights)
    return before, after, record


@pytest.mark.parametrize("variant", sorted(VARIANTS))
@torch.no_grad()
def test_the_logits_of_the_old_ids_are_what_they_were(variant):
    before, after, _ = grown_network(replace(CONFIG, init=variant))
    ids = torch.arange(2 * 16).view(2, 16) * 7 % OLD
    torch.testing.assert_close(after(ids)[..., :OLD], before(ids), rtol=0, atol=0)
    assert torch.equal(after.embedding.weight[:OLD], before.embedding.weight)
    assert torch.equal(after.head.weight[:OLD], before.head.weight)


@pytest.mark.parametrize("variant", ["report", "gpt2", "wesar"])
def test_new_rows_are_the_mean_of_the_old_ones_and_noise_of_the_recorded_law(variant):
    """4,000 new rows instead of 3: their mean and spread are measured, each matrix against its own formula."""
    config = replace(CONFIG, init=variant)
    before, after, record = grown_network(config, new_rows=4000)
    d = config.hidden_size
    expected = {
        "report": {"embedding": math.sqrt(2 / (5 * d)), "head": math.sqrt(2 / (OLD + d))},
        "gpt2": {"embedding": 0.02, "head": 0.02},
        "wesar": {"embedding": WESAR_STD, "head": WESAR_STD},  # of the stored values, before the gate
    }[variant]
    for matrix, std in expected.items():
        old, new = getattr(before, matrix).weight.double(), getattr(after, matrix).weight[OLD:].double()
        noise = new - old.mean(dim=0)
        assert record[matrix]["std"] == pytest.approx(std)
        assert noise.std().item() == pytest.approx(std, rel=0.02)
        assert noise.mean(dim=0).abs().max().item() < 5 * std / math.sqrt(4000)


def test_the_same_seed_gives_the_same_rows_and_another_seed_others():
    weights = Transformer(CONFIG, seed=5).state_dict()
    first, again, other = (grow(weights, CONFIG, new_rows=3, seed=seed)[0] for seed in (0, 0, 1))
    for name in ("embedding.weight", "head.weight"):
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name][OLD:], other[name][OLD:])
    assert not torch.equal(first["embedding.weight"][OLD], first["embedding.weight"][OLD + 1])


def test_growing_leaves_the_callers_weights_and_every_other_tensor_alone():
    weights = Transformer(CONFIG, seed=5).state_dict()
    copies = {name: tensor.clone() for name, tensor in weights.items()}
    grown, _ = grow(weights, CONFIG, new_rows=3, seed=0)
    assert all(torch.equal(weights[name], copies[name]) for name in copies)
    assert {name for name in weights if grown[name] is not weights[name]} == {"embedding.weight", "head.weight"}


def test_the_record_says_which_ids_are_new():
    _, _, record = grown_network(CONFIG, seed=9)
    assert (record["from"], record["to"], record["ids"], record["seed"]) == (OLD, OLD + 3, [OLD, OLD + 1, OLD + 2], 9)
    assert record["embedding"]["law"] == "mean of the existing rows + small"
    assert record["head"]["law"] == "mean of the existing rows + xavier"


@pytest.mark.parametrize("new_rows", [0, -3])
def test_a_vocabulary_does_not_shrink(new_rows):
    with pytest.raises(ValueError, match="at least one row"):
        grow(Transformer(CONFIG).state_dict(), CONFIG, new_rows=new_rows, seed=0)
