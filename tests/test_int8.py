"""int8 weights: arithmetic in whole numbers held against exact sums; what a quantized directory can and cannot."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import SENTENCES, write_tiny_model
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.torch import load_file, save_file
from small_models import write_fitted_model

from ncvc.model import int8_layers
from ncvc.model.base import base_weights
from ncvc.model.checkpoint import is_int8, load_model_directory, read_model_config, save_model_directory
from ncvc.model.generation import Sampling, generate_batch
from ncvc.model.int8 import MAX_PERPLEXITY_RISE, compare, int8_model, measured_ids, write_int8
from ncvc.model.int8_layers import Int8Projection, int8_weights, quantize_rows
from ncvc.model.transformer import Projection, Transformer


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    return write_fitted_model(tmp_path_factory.mktemp("fitted"))


@pytest.fixture(scope="module")
def quantized(fitted, tmp_path_factory):
    output = tmp_path_factory.mktemp("quantized") / "int8"
    return output, write_int8(fitted, output=output)


def layer_of(rows: int, columns: int, *, seed: int = 0) -> tuple[Int8Projection, torch.Tensor, torch.Tensor]:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.1
    values, scales = quantize_rows(matrix)
    return Int8Projection(values, scales, block_sizes=(rows,)), values, scales


# --- rounding ---


@given(arrays(np.float32, (4, 7), elements=st.floats(-1e4, 1e4, width=32)))
def test_every_weight_is_within_half_a_step_of_its_rows_scale(matrix):
    values, scales = quantize_rows(torch.from_numpy(matrix))
    assert values.dtype == torch.int8 and int(values.abs().max()) <= 127
    error = np.abs(values.double().numpy() * scales.double().numpy()[:, None] - matrix)
    step = np.abs(matrix).max(axis=1, keepdims=True) / 127
    assert (error <= step * 0.5001 + 1e-38).all()


def test_weights_that_are_not_finite_are_refused_by_the_name_of_their_layer(tmp_path):
    model, _ = load_model_directory(write_tiny_model(tmp_path))
    with torch.no_grad():
        model.layers[1].mlp.down.weight[3, 5] = torch.inf
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.down: .*not finite"):
        int8_weights(model)


# --- products ---


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 64, 48), (5, 33, 7), (130, 256, 40)])
def test_a_product_is_the_exact_sum_of_whole_numbers_times_both_scales(count, columns, rows):
    layer, values, scales = layer_of(rows, columns)
    x = torch.randn(count, columns, generator=torch.Generator().manual_seed(1)) * 3
    levels = int8_layers.input_levels()[0]
    largest = x.abs().amax(dim=1, keepdim=True).double()
    found = layer(x).double()
    exact = (x.double() / largest * levels).round() @ values.double().T * (largest / levels) * scales.double()
    # an input half-way between two levels may go to either: one level times the largest weight, at most
    allowed = 1e-4 * exact.abs().max() + 1.01 * largest / levels * (scales.double() * 127)
    assert (found - exact).abs().le(allowed).all()
    assert ((found - exact).abs() < 1e-4 * exact.abs().max()).double().mean() > 0.9
    true = x @ layer.weight.T
    assert (layer(x) - true).norm() / true.norm() < (0.02 if levels == 127 else 0.04)


def test_a_row_gets_the_same_bits_alone_in_a_batch_and_in_a_sequence():
    layer, _, _ = layer_of(48, 64)
    x = torch.randn(6, 9, 64, generator=torch.Generator().manual_seed(2))
    x[0, 0] *= 1e4  # a neighbour that a scale of the whole tensor would follow
    together = layer(x)
    assert together.shape == (6, 9, 48)
    for row in range(6):
        for place in range(9):
            assert torch.equal(layer(x[row, place : place + 1])[0], together[row, place])


def test_rows_of_zeros_give_zeros_and_numbers_that_are_not_finite_stay_so():
    layer, _, _ = layer_of(8, 32)
    x = torch.zeros(4, 32)
    x[1, 4], x[2, 5], x[3, 6] = torch.nan, torch.inf, 1e-35
    y = layer(x)
    assert torch.equal(y[0], torch.zeros(8))
    assert not torch.isfinite(y[1:3]).any()
    torch.testing.assert_close(y[3], layer.weight[:, 6] * 1e-35, rtol=1e-4, atol=0)


def test_the_input_type_comes_back():
    layer, _, _ = layer_of(8, 32)
    assert layer(torch.ones(1, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_an_input_on_another_device_is_refused_by_name():
    with pytest.raises(ValueError, match="opened on the CPU, the input is on meta"):
        layer_of(8, 32)[0](torch.ones(1, 32, device="meta"))


def test_where_torch_has_no_kernel_the_weights_are_expanded(monkeypatch):
    layer, values, scales = layer_of(48, 64)
    monkeypatch.setattr(int8_layers, "_pack", lambda *_: None)
    plain = Int8Projection(values, scales, block_sizes=(40, 8))
    x = torch.randn(4, 64)
    torch.testing.assert_close(plain(x), x @ (values.float() * scales[:, None]).T)
    assert (plain(x) - layer(x)).norm() / plain(x).norm() < 0.04
    assert torch.equal(plain.weight, layer.weight)
    assert [block.shape for block in plain.row_blocks()] == [(40, 64), (8, 64)]


def test_a_cpu_that_overflows_gets_one_bit_less(monkeypatch):
    """What the probe decides: a kernel that saturates returns less than the exact sum."""
    kernel = "linear_with_input_q_dq_qweight_dq_output_fp32"
    real = getattr(torch.ops.quantized, kernel)
    int8_layers.input_levels.cache_clear()
    monkeypatch.setattr(torch.ops.quantized, kernel, lambda *arguments: real(*arguments).clamp(max=5000.0))
    assert int8_layers.input_levels() == (63, 64)
    int8_layers.input_levels.cache_clear()
    monkeypatch.undo()
    layer, values, scales = layer_of(16, 64)
    monkeypatch.setattr(int8_layers, "input_levels", lambda: (63, 64))
    x = torch.randn(5, 64)
    true = x @ (values.float() * scales[:, None]).T
    assert (layer(x) - true).norm() / true.norm() < 0.04


# --- networks ---


@pytest.mark.parametrize("changes", [{}, {"init": "wesar", "qk_norm": True}], ids=str)
def test_gates_are_folded_and_the_logits_stay_close(tmp_path, changes):
    directory = write_fitted_model(tmp_path, steps=40, **changes)
    model, tokenizer = load_model_directory(directory)
    quantized = int8_model(model, int8_weights(model))
    assert not any(type(module) is Projection for module in quantized.modules())
    ids = torch.tensor([[0, *tokenizer.encode(SENTENCES[0])]])
    with torch.inference_mode():
        before, after = model(ids), quantized(ids)
    assert (after - before).norm() / before.norm() < 0.03
    for name in ("embedding", "head"):
        torch.testing.assert_close(getattr(quantized, name).weight, effective(model, name), atol=0.02, rtol=0)


def effective(model: Transformer, name: str) -> torch.Tensor:
    layer = getattr(model, name)
    return layer.weight.detach() * (1.0 if layer.gate is None else layer.gate.detach())


def test_comparing_a_network_with_itself_finds_no_difference_and_its_true_perplexity(fitted):
    model, tokenizer = load_model_directory(fitted)
    ids = measured_ids(tokenizer, model.config.context_length)
    assert ids.shape == (16, 128) and int(ids.min()) >= 0
    found = compare(model, model, ids=ids)
    assert found["largest_logit_difference"] == found["mean_logit_difference"] == found["divergence"] == 0.0
    labels = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
    with torch.no_grad():
        expected = torch.exp(model.token_losses(ids, labels).double().sum() / ids[:, 1:].numel())
    assert found["perplexity_before"] == pytest.approx(expected.item(), rel=1e-4)
    assert found["perplexity_after"] == found["perplexity_before"]


def test_the_divergence_is_what_the_models_own_text_loses(fitted, quantized):
    """Against torch's own: KL of the predictions before from those after, summed over the vocabulary."""
    model, tokenizer = load_model_directory(fitted)
    after, _ = load_model_directory(quantized[0])
    ids = measured_ids(tokenizer, 128)[:3]
    with torch.inference_mode():
        was, now = (network(ids)[:, :-1].double().log_softmax(-1).flatten(0, 1) for network in (model, after))
    expected = torch.nn.functional.kl_div(now, was, reduction="batchmean", log_target=True)
    assert compare(model, after, ids=ids)["divergence"] == pytest.approx(expected.item(), rel=1e-4)


# --- the directory ---


def test_a_quantized_directory_opens_as_what_was_measured_and_is_a_quarter_of_the_size(fitted, quantized):
    output, facts = quantized
    model, tokenizer = load_model_directory(fitted)
    loaded, same_tokenizer = load_model_directory(output)
    assert is_int8(output) and not is_int8(fitted)
    assert read_model_config(output) == read_model_config(fitted)
    assert same_tokenizer.fingerprint == tokenizer.fingerprint
    matrices = sum(v.numel() for n, v in load_file(output / "model.safetensors").items() if n.endswith(".int8"))
    assert facts["bytes"] == (output / "model.safetensors").stat().st_size < 0.45 * facts["bytes_before"]
    assert matrices > 0.98 * model.config.num_parameters
    ids = torch.tensor([[0, *tokenizer.encode(SENTENCES[1])]])
    with torch.inference_mode():
        assert torch.equal(loaded(ids), int8_model(model, int8_weights(model))(ids))
    found = compare(model, loaded, ids=measured_ids(tokenizer, 128))
    assert {name: facts[name] for name in found} == found
    record = json.loads((output / "model_config.json").read_text(encoding="utf-8"))
    assert record["quantization"]["perplexity_after"] == facts["perplexity_after"]
    assert record["training"] == {"steps": 120}


def test_the_same_model_gives_the_same_bytes(fitted, quantized, tmp_path):
    write_int8(fitted, output=tmp_path / "again")
    again = (tmp_path / "again" / "model.safetensors").read_bytes()
    assert again == (quantized[0] / "model.safetensors").read_bytes()


def test_generation_runs_unchanged_and_what_was_learned_by_heart_stays(fitted, quantized):
    answers = []
    for directory in (fitted, quantized[0]):
        model, tokenizer = load_model_directory(directory)
        prompts = [[0, *tokenizer.encode(text)[:4]] for text in SENTENCES]
        batch = generate_batch(model, prompts, sampling=Sampling(30), end_id=1)
        alone = [generate_batch(model, [prompt], sampling=Sampling(30), end_id=1)[0] for prompt in prompts]
        assert [row.ids for row in batch] == [row.ids for row in alone]
        answers.append([tokenizer.decode([*p, *row.ids]) for p, row in zip(prompts, batch, strict=True)])
    agreeing = sum(first == second for first, second in zip(*answers, strict=True))
    assert agreeing >= len(SENTENCES) - 1


def test_training_on_int8_weights_is_refused_by_name(quantized):
    model, _ = load_model_directory(quantized[0])
    with pytest.raises(ValueError, match="int8, made for running only"):
        model.train()
    with pytest.raises(ValueError, match="made for running, not for training"):
        base_weights(quantized[0], read_model_config(quantized[0]), seed=0)


def test_a_model_that_8_bits_would_spoil_is_refused_and_nothing_is_left(fitted, tmp_path):
    """One channel thousands of times the others: what they say is lost in its step."""
    model, _ = load_model_directory(fitted)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["final_norm.weight"][0] *= 3e4
    state["head.weight"][:, 0] /= 3e4
    save_model_directory(
        tmp_path / "spoiled", config=model.config, weights=state, tokenizer=fitted / "tokenizer", training={}
    )
    with pytest.raises(
        ValueError, match=rf"raises the perplexity .*own text.* at most {MAX_PERPLEXITY_RISE:.0%}.*Nothing was"
    ):
        write_int8(tmp_path / "spoiled", output=tmp_path / "int8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["spoiled"]


def test_neither_the_model_itself_nor_an_int8_one_is_quantized(fitted, quantized, tmp_path):
    with pytest.raises(ValueError, match="is the model itself"):
        write_int8(fitted, output=fitted.parent / "model")
    with pytest.raises(ValueError, match="holds int8 weights, made for running only"):
        write_int8(quantized[0], output=tmp_path / "again")


def altered(quantized, tmp_path, change) -> str:
    """The error of opening a copy whose weights ``change`` has altered (with a manifest that fits them)."""
    model, _ = load_model_directory(quantized[0])
    weights = change(dict(load_file(quantized[0] / "model.safetensors")))
    record = json.loads((quantized[0] / "model_config.json").read_text(encoding="utf-8"))
    save_model_directory(
        tmp_path / "altered",
        config=replace(model.config),
        weights=weights,
        tokenizer=quantized[0] / "tokenizer",
        training={},
        quantization=record["quantization"],
    )
    with pytest.raises(ValueError, match=r"does not fit its model_config\.json") as error:
        load_model_directory(tmp_path / "altered")
    return str(error.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda w: {n: v for n, v in w.items() if n != "head.scales"}, "head.scales is missing"),
        (lambda w: w | {"head.int8": w["head.int8"].float()}, "head is torch.float32"),
        (lambda w: w | {"head.int8": w["head.int8"][:-1].contiguous()}, "head has the shape"),
        (lambda w: w | {"embedding.scales": w["embedding.scales"][:3].contiguous()}, "embedding has the shape"),
        (lambda w: w | {"more.weight": torch.ones(2)}, "more.weight"),
        (lambda w: {n: v for n, v in w.items() if n != "final_norm.weight"}, "final_norm.weight"),
    ],
    ids=["scales missing", "type", "rows", "scales", "unknown", "norm missing"],
)
def test_int8_weights_that_do_not_fit_are_told(quantized, tmp_path, change, told):
    assert told in altered(quantized, tmp_path, change)


def test_another_quantization_and_torn_weights_are_refused(quantized, tmp_path):
    shutil.copytree(quantized[0], tmp_path / "other")
    path = tmp_path / "other" / "model_config.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(record | {"quantization": {"kind": "int4"}}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"the quantization .*int4.* is not the int8_rows"):
        load_model_directory(tmp_path / "other")
    path.write_text(json.dumps(record), encoding="utf-8")
    weights = load_file(tmp_path / "other" / "model.safetensors")
    weights["head.int8"][0, 0] += 1
    save_file(weights, tmp_path / "other" / "model.safetensors")
    with pytest.raises(ValueError, match="was altered after it was written"):
        load_model_directory(tmp_path / "other")
