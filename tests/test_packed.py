"""The packed data module: what a batch holds, and that it depends on nothing but data, seed and step."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SENTENCES, write_source
from hydra.utils import instantiate

from data_modules.packed import HeldOutLoader, StepLoader, rows_checksum


@pytest.fixture
def packed(tiny_run):
    def build(*overrides: str):
        data = instantiate(tiny_run(*overrides).data, _convert_="all")
        data.prepare_data()
        data.setup()
        return data

    return build


def global_rows(data, step: int, *, world_size: int) -> list[tuple]:
    accumulated = data.batch_size // (world_size * data.micro_batch_size)
    batches = [
        data.micro_batch(step, micro, rank=rank, world_size=world_size)
        for micro in range(accumulated)
        for rank in range(world_size)
    ]
    return sorted(tuple(row) for batch in batches for row in batch["input_ids"].tolist())


def test_a_batch_is_consecutive_tokens_and_the_same_shifted_by_one(packed):
    data = packed()
    batch = data.micro_batch(0, 0, rank=0, world_size=1)
    stream = data.windows[0].token_file.tokens_array.astype(np.int64)
    for inputs, labels in zip(batch["input_ids"].numpy(), batch["labels"].numpy(), strict=True):
        assert (inputs[1:] == labels[:-1]).all()
        window = np.append(inputs, labels[-1])
        assert any((stream[start : start + 33] == window).all() for start in range(0, len(stream) - 32, 32))
    assert batch["target_tokens"] == 4 * 32
    assert batch["input_ids"].dtype == torch.int64


def test_ranks_and_micro_batches_cut_the_same_global_batch(packed):
    whole, cut = packed("data.micro_batch_size=4"), packed("data.micro_batch_size=1")
    for step in (0, 1, 7):
        rows = global_rows(whole, step, world_size=1)
        assert global_rows(cut, step, world_size=1) == rows
        assert global_rows(cut, step, world_size=2) == rows
        assert global_rows(cut, step, world_size=4) == rows


def test_an_epoch_shows_every_window_once(packed):
    data = packed("data.batch_size=1", "data.micro_batch_size=1")
    rows = [global_rows(data, step, world_size=1)[0] for step in range(len(data.windows[0]))]
    everything = data.windows[0].gather(np.arange(len(data.windows[0])))[:, :-1]
    assert sorted(rows) == sorted(map(tuple, everything.tolist()))


def test_another_seed_gives_another_order_of_the_same_windows(packed):
    first, second = packed("seed=0"), packed("seed=1")
    assert global_rows(first, 0, world_size=1) != global_rows(second, 0, world_size=1)


def test_the_fingerprint_changes_with_whatever_changes_a_sample(packed, tmp_path):
    plain = packed().fingerprint
    assert packed().fingerprint == plain
    assert packed("model.context_length=16").fingerprint != plain
    assert packed("data.packing=truncate").fingerprint != plain
    write_source(tmp_path / "source.jsonl", documents=61)
    assert packed().fingerprint != plain


def test_document_ids_count_the_documents_of_a_row(packed):
    data = packed("model.mask_documents=true")
    batch = data.micro_batch(0, 0, rank=0, world_size=1)
    for ids, documents in zip(batch["input_ids"].tolist(), batch["document_ids"].tolist(), strict=True):
        seen = 0
        for token, document in zip(ids, documents, strict=True):
            seen += token == data.tokenizer.begin_id
            assert document == seen


def test_truncated_rows_start_with_a_document(packed):
    data = packed("data.packing=truncate")
    batch = data.micro_batch(0, 0, rank=0, world_size=1)
    assert (batch["input_ids"][:, 0] == data.tokenizer.begin_id).all()


def test_sources_mix_by_their_weights(tiny_run, tmp_path):
    write_source(tmp_path / "second.jsonl", documents=40)
    one, two = tmp_path / "source.jsonl", tmp_path / "second.jsonl"
    mixed = f"{{one: {{path: {one}, weight: 0.75}}, two: {{path: {two}, weight: 0.25}}}}"
    data = instantiate(tiny_run("data.source=null", f"data.sources={mixed}").data, _convert_="all")
    data.prepare_data()
    data.setup()
    sources, _ = data.order.indices(0, 20_000)
    assert np.bincount(sources) / 20_000 == pytest.approx([0.75, 0.25], abs=0.01)
    assert set(data.validation) == {"one", "two"}


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_held_out_rows_score_every_token_once_over_all_ranks(packed, world_size):
    data = packed()
    scored = []
    for rank in range(world_size):
        for batch in HeldOutLoader(data, rank=rank, world_size=world_size):
            for inputs, labels in zip(batch["input_ids"], batch["labels"], strict=True):
                assert (inputs[1:][labels[:-1] >= 0] == labels[:-1][labels[:-1] >= 0])[
                    : int((labels >= 0).sum()) - 1
                ].all()
                scored += labels[labels >= 0].tolist()
    tokens = next(iter(data.validation.values())).tokens_array[1:].tolist()[: data.validation_tokens]
    assert sorted(scored) == sorted(tokens)


def test_no_document_is_in_training_and_held_out(packed):
    data = packed()
    texts = {}
    for side, file in (
        ("train", data.windows[0].token_file),
        ("validation", next(iter(data.validation.values()))),
    ):
        starts = [*file.document_starts.tolist(), file.tokens]
        texts[side] = {tuple(file.tokens_array[a:b].tolist()) for a, b in pairwise(starts)}
    assert texts["train"].isdisjoint(texts["validation"])
    assert len(texts["train"]) + len(texts["validation"]) == 60


def test_the_loader_starts_at_the_trainers_step_and_knows_its_length(packed):
    data = packed("data.micro_batch_size=2")
    trainer = SimpleNamespace(global_step=3, max_steps=5, accumulate_grad_batches=2, global_rank=0, world_size=1)
    loader = StepLoader(data, trainer=trainer)
    assert len(loader) == 10
    places = []
    for number, batch in enumerate(loader):
        step, micro_step = trainer.global_step, number % 2
        expected = data.micro_batch(step, micro_step, rank=0, world_size=1)["input_ids"]
        assert torch.equal(batch["input_ids"], expected)
        places.append((step, micro_step))
        if micro_step == 1:
            trainer.global_step = 3 if places == [(3, 0), (3, 1), (4, 0), (4, 1)] else step + 1  # once back to step 3
    assert places == [(3, 0), (3, 1), (4, 0), (4, 1), (3, 0), (3, 1), (4, 0), (4, 1)]


def test_text_survives_the_way_to_tokens_and_back(packed):
    data = packed()
    file = data.windows[0].token_file
    text = data.tokenizer.decode(file.tokens_array[: int(file.document_starts[1])].tolist())
    assert any(sentence.replace("mmHg", "mmHg") in text for sentence in SENTENCES)
    assert "\n" in text


def test_token_ids_outside_the_vocabulary_are_told_with_the_step_before_they_reach_the_network(packed):
    data = packed()
    data.micro_batch(2, 0, rank=0, world_size=1)
    path = data.windows[0].token_file.directory / "tokens.bin"
    with path.open("r+b") as handle:  # damaged in place, while the run has it mapped
        handle.write(b"\xff\xff" * (path.stat().st_size // 2))
    with pytest.raises(ValueError, match=r"the batch of step 3 holds token id 65535.*tokenizer has only 1024 ids"):
        data.micro_batch(2, 0, rank=0, world_size=1)


def test_the_checksum_follows_rows_and_places_and_not_how_the_batch_is_cut(packed):
    whole = packed().micro_batch(1, 0, rank=0, world_size=1)["checksum"]
    cut = packed("data.micro_batch_size=1")
    parts = [cut.micro_batch(1, micro, rank=rank, world_size=2)["checksum"] for micro in (0, 1) for rank in (0, 1)]
    assert sum(parts) == whole
    assert len({whole, *(cut.micro_batch(step, 0, rank=0, world_size=1)["checksum"] for step in range(4))}) == 5
    rows = np.arange(12).reshape(2, 6)
    assert rows_checksum(rows, first=0) != rows_checksum(rows[::-1], first=0)
    assert rows_checksum(rows, first=0) != rows_checksum(rows, first=1)
    assert 0 < rows_checksum(rows, first=0) < 2 * 2**40


def test_samples_and_documents_of_a_step_are_those_of_its_rows(packed):
    data = packed()
    assert data.samples_of(2) == [(8, 12)]
    data.skip_samples([(9, 20)])
    assert data.samples_of(2) == [(8, 9), (20, 23)]
    file = data.windows[0].token_file
    starts = [*file.document_starts.tolist(), file.tokens]
    for row in data.documents_of(2):
        first = row["window"] * data.context_length
        tokens = range(first, first + data.context_length + 1)
        held = [n for n, (a, b) in enumerate(pairwise(starts)) if a < tokens.stop and b > tokens.start]
        assert row["documents"] == [held[0], held[-1] + 1]
