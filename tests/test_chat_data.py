"""Conversations as training reads them: what is a target, what is refused, and that no layout changes the loss."""

import gzip
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, SENTENCES, TINY_SHAPE, write_tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from data_modules.chat import ChatDataModule, HeldOutConversations
from ncvc.batching import MOST_PER_ROW, cells, micro_batches
from ncvc.chat import Message, encode_conversation
from ncvc.conversation_preparation import divide, lengths_as_table
from ncvc.conversation_store import ConversationStore, EncodingSettings, write_store
from ncvc.conversations import RawConversation, sources_from
from ncvc.model.loss import IGNORE
from ncvc.model.transformer import ModelConfig, Transformer

JMED = REPOSITORY.parent / "shared" / "data" / "jmed_llm"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("base"))


def turns(number: int) -> list[dict[str, str]]:
    """One or two questions and answers, of very different lengths."""
    said = [SENTENCES[(number * 3 + place) % len(SENTENCES)] for place in range(1 + number % 4)]
    found = [
        {"role": "user", "content": f"{number}番の質問。" + "".join(said[: 1 + number % 2])},
        {"role": "assistant", "content": "".join(said[-1:]) if number % 3 else "A"},
    ]
    if number % 5 == 0:
        found += [{"role": "user", "content": "では?"}, {"role": "assistant", "content": "はい。"}]
    if number % 7 == 0:
        found.insert(0, {"role": "system", "content": "医療の助手です。"})
    return found


def write_rows(path: Path, rows: list) -> Path:
    """A line per row; what is no text already is written as the messages of a conversation."""
    lines = [row if isinstance(row, bytes) else json.dumps({"messages": row}).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def sixty(tmp_path_factory) -> Path:
    return write_rows(tmp_path_factory.mktemp("source") / "chat.jsonl", [turns(number) for number in range(60)])


@pytest.fixture
def chat(home, sixty, base):
    """Build a data module on a file of 60 conversations, or on the given files by name."""

    def build(files: dict[str, Path] | None = None, **changed) -> ChatDataModule:
        files = files or {"own": sixty}
        values = {
            "home": str(home),
            "base": str(base),
            "sources": {name: {"path": str(path), "kind": "messages"} for name, path in files.items()},
            "context_length": 128,
            "batch_size": 8,
            "micro_batch_size": 4,
            "layout": "bucketed",
            "too_long": "refuse",
            "validation_fraction": 0.15,
            "validation_conversations": 100,
            "seed": 0,
            "workers": 1,
        }
        data = ChatDataModule(**{**values, **changed})
        data.prepare_data()
        data.setup()
        return data

    return build


def parts_of(data, step: int, *, world_size: int = 1):
    """Every micro-batch of a step, of all ranks."""
    for micro_step in range(data.batch_size // (data.micro_batch_size * world_size)):
        for rank in range(world_size):
            yield data.micro_batch(step, micro_step, rank=rank, world_size=world_size)


# ---- what is a target ----


def test_the_targets_are_the_ids_right_after_assistant_through_end_of_text(chat, tmp_path):
    messages = [Message("system", "助手"), Message("user", "発熱は?"), Message("assistant", "肺炎。")]
    messages += [Message("user", "薬は?"), Message("assistant", "抗菌薬")]
    file = write_rows(tmp_path / "one.jsonl", [[{"role": m.role, "content": m.content} for m in messages]])
    data = chat({"one": file}, batch_size=1, micro_batch_size=1, validation_fraction=0.0)
    tokenizer = data.tokenizer
    batch = data.micro_batch(0, 0, rank=0, world_size=1)
    system, user, assistant = (tokenizer.id_of(f"<|{role}|>") for role in ("system", "user", "assistant"))
    first, second = tokenizer.encode("肺炎。"), tokenizer.encode("抗菌薬")
    asked = [tokenizer.begin_id, system, *tokenizer.encode("助手"), user, *tokenizer.encode("発熱は?"), assistant]
    between = [user, *tokenizer.encode("薬は?"), assistant]
    end = tokenizer.end_id
    assert batch["input_ids"].tolist() == [[*asked, *first, end, *between, *second]]
    silent = [IGNORE] * (len(asked) - 1)
    assert batch["labels"].tolist() == [[*silent, *first, end, *[IGNORE] * len(between), *second, end]]
    assert batch["target_tokens"] == len(first) + len(second) + 2


@pytest.mark.parametrize("layout", ["bucketed", "packed"])
def test_every_real_end_token_is_a_target_and_no_padding_is(chat, layout):
    data = chat(layout=layout)
    answers = labels = 0
    for batch in parts_of(data, 0):
        for row, length in zip(batch["labels"], batch["lengths"].tolist(), strict=True):
            assert (row[length:] == IGNORE).all()  # padding has the id of the end token and no label
            labels += int((row == data.tokenizer.end_id).sum())
    for origin in data.documents_of(0):
        number = int(origin["row_in_source"].rpartition(":")[2]) - 1
        answers += sum(turn["role"] == "assistant" for turn in turns(number))
    assert labels == answers > 0


# ---- no layout changes the loss ----


@pytest.fixture(scope="module")
def network() -> Transformer:
    torch.manual_seed(0)
    return Transformer(ModelConfig(vocab_size=1024, context_length=512, **TINY_SHAPE), seed=1).double()


def loss_and_gradients(network: Transformer, batches) -> tuple[float, list[torch.Tensor]]:
    network.zero_grad()
    total = 0.0
    for batch in batches:
        documents = batch.get("document_ids")
        loss = network.loss(batch["input_ids"], batch["labels"], document_ids=documents) / batch["target_tokens"]
        loss.backward()
        total += float(loss.detach())
    return total, [parameter.grad.clone() for parameter in network.parameters()]


def one_at_a_time(data, step: int):
    """The same step from the source's own rows, each by itself, without anything of the data module's."""
    conversations = []
    for origin in data.documents_of(step):
        found = turns(int(origin["row_in_source"].rpartition(":")[2]) - 1)
        messages = [Message(turn["role"], turn["content"]) for turn in found]
        conversations.append(encode_conversation(messages, tokenizer=data.tokenizer))
    total = sum(sum(conversation.supervised) for conversation in conversations)
    for conversation in conversations:
        labels = [
            id if target else IGNORE for id, target in zip(conversation.ids, conversation.supervised, strict=True)
        ]
        yield {
            "input_ids": torch.tensor([conversation.ids[:-1]]),
            "labels": torch.tensor([labels[1:]]),
            "target_tokens": total,
        }


@pytest.mark.parametrize("layout", ["bucketed", "packed"])
@pytest.mark.parametrize(("micro_batch_size", "world_size"), [(8, 1), (1, 1), (4, 2), (2, 4)])
def test_loss_and_gradient_are_those_of_one_conversation_at_a_time(chat, network, layout, micro_batch_size, world_size):
    data = chat(layout=layout, micro_batch_size=micro_batch_size, context_length=400)
    expected, wanted = loss_and_gradients(network, one_at_a_time(data, 1))
    loss, gradients = loss_and_gradients(network, parts_of(data, 1, world_size=world_size))
    assert loss == pytest.approx(expected, rel=1e-12)
    for found, right in zip(gradients, wanted, strict=True):
        assert torch.allclose(found, right, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("layout", ["bucketed", "packed"])
def test_checksum_and_samples_do_not_depend_on_how_a_step_is_cut(chat, layout):
    whole = chat(layout=layout, micro_batch_size=8)
    for step in (0, 5):
        expected = sum(batch["checksum"] for batch in parts_of(whole, step))
        for micro_batch_size, world_size in ((1, 1), (2, 2), (1, 8)):
            cut = chat(layout=layout, micro_batch_size=micro_batch_size)
            assert sum(batch["checksum"] for batch in parts_of(cut, step, world_size=world_size)) == expected
            assert cut.documents_of(step) == whole.documents_of(step)
    single = chat(layout=layout, batch_size=1, micro_batch_size=1)
    store, train = single.stores["own"], single.division.train["own"]
    sums = [single.micro_batch(step, 0, rank=0, world_size=1)["checksum"] for step in (0, len(train))]
    places = [int(train[single.order.indices(step, 1)[1][0]]) for step in (0, len(train))]
    assert sums == [store.checksum(number, place=step) for number, step in zip(places, (0, len(train)), strict=True)]
    assert store.checksum(0, place=1) != store.checksum(0, place=2) != store.checksum(1, place=2)


def test_a_step_holds_the_same_rows_after_a_restart_and_an_epoch_holds_every_one(chat):
    data, again = chat(batch_size=1, micro_batch_size=1), chat(batch_size=1, micro_batch_size=1)
    train = len(data.division.train["own"])
    seen = [data.documents_of(step)[0]["row_in_source"] for step in range(train)]
    assert len(set(seen)) == train
    for step in (train - 1, 3, 0):
        assert again.documents_of(step)[0]["row_in_source"] == seen[step]
    data.skip_samples([(2, 5)])
    assert [data.documents_of(step)[0]["row_in_source"] for step in (1, 2)] == [seen[1], seen[5]]


def test_rows_of_a_micro_batch_say_which_conversation_lies_where(chat):
    for layout in ("bucketed", "packed"):
        data = chat(layout=layout, context_length=300)
        origins, held = data.documents_of(0), []
        for micro_step in range(2):
            batch = data.micro_batch(0, micro_step, rank=0, world_size=1)
            rows = data.rows_of(0, micro_step, rank=0, world_size=1)
            for ids, row in zip(batch["input_ids"].tolist(), rows, strict=True):
                for place, first, end in row:
                    number = int(origins[place]["row_in_source"].rpartition(":")[2]) - 1
                    assert f"{number}番の質問" in data.tokenizer.decode(ids[first:end])
                    assert ids[first] == data.tokenizer.begin_id
                    held.append(place)
        assert sorted(held) == list(range(8))


# ---- how a step is cut ----

LENGTHS = st.lists(st.integers(1, 64), min_size=1, max_size=24)


@settings(max_examples=80, deadline=None)
@given(LENGTHS, st.integers(1, 6), st.sampled_from(["bucketed", "packed"]))
def test_micro_batches_hold_every_conversation_once_and_fit(lengths, micro_batch_size, layout):
    lengths = np.array(
        (lengths * micro_batch_size)[: len(lengths) // micro_batch_size * micro_batch_size or micro_batch_size]
    )
    batches = micro_batches(lengths, micro_batch_size=micro_batch_size, layout=layout, context_length=64)
    assert len(batches) == len(lengths) // micro_batch_size
    assert sorted(place for rows in batches for row in rows for place in row) == list(range(len(lengths)))
    sizes = [cells(lengths, rows) for rows in batches]
    assert sizes == sorted(sizes, reverse=True)
    for rows in batches:
        assert all(1 <= lengths[row].sum() <= 64 for row in rows)
        assert layout == "packed" or len(rows) <= MOST_PER_ROW * micro_batch_size
    if layout == "bucketed":
        assert sizes[0] <= micro_batch_size * lengths.max()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=6, max_size=6))
def test_bucketed_cuts_are_the_best_of_all_cuts(lengths):
    lengths = np.array(lengths)
    found = micro_batches(lengths, micro_batch_size=2, layout="bucketed", context_length=64)
    ordered = np.sort(lengths)[::-1]
    most = 2 * ordered[0]
    areas = []
    for cuts in itertools.combinations(range(1, 6), 2):
        parts = [part[0] * len(part) for part in np.split(ordered, cuts)]
        areas += [sum(parts)] if max(parts) <= most else []
    assert sum(cells(lengths, rows) for rows in found) == min(areas)


def test_rows_of_a_packed_micro_batch_are_no_wider_than_they_need_be():
    lengths = np.array([50, 40, 30, 20])  # first fit alone gives 50 + 40 and 30 + 20
    (rows,) = micro_batches(lengths, micro_batch_size=4, layout="packed", context_length=100)
    assert sorted(map(sorted, rows)) == [[0, 3], [1, 2]]


def test_a_packed_micro_batch_of_one_row_has_no_padding(chat):
    data = chat(layout="packed", batch_size=16, micro_batch_size=2, context_length=400)
    for batch in parts_of(data, 0):
        assert batch["input_ids"].numel() == int(batch["lengths"].sum())


def test_a_batch_size_that_does_not_divide_is_refused_by_name(chat):
    with pytest.raises(ValueError, match=r"data.batch_size=8 .* data.micro_batch_size=3"):
        chat(micro_batch_size=3)
    with pytest.raises(ValueError, match=r"3 ranks x data.micro_batch_size=4"):
        chat().micro_batch(0, 0, rank=0, world_size=3)


# ---- what is refused ----

GOOD = [{"role": "user", "content": "発熱は?"}, {"role": "assistant", "content": "肺炎。"}]
BAD = {
    "role 'doctor'": [{"role": "doctor", "content": "発熱"}, GOOD[1]],
    "is empty; leave": [{"role": "user", "content": " \n"}, GOOD[1]],
    "empty once it is cleaned": [{"role": "user", "content": "\u200b\u200b"}, GOOD[1]],
    "ends in an answer": GOOD[:1],
    "has to come there": [GOOD[0], GOOD[0], GOOD[1]],
    "must be a list": "発熱",
    "must be text": [GOOD[0], {"role": "assistant", "content": 3}],
    "no object": b"[1, 2]",
    "an object with text": b'{"text": "a"}',
    "Expecting": b'{"messages": [',
    "not UTF-8": b'{"messages": "\xff\xfe"}',
    "surrogate pair": [{"role": "user", "content": "\ud800"}, GOOD[1]],
    "recursion": b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "the model's context is 128": [{"role": "user", "content": SENTENCES[0] * 20}, GOOD[1]],
}


def test_every_row_that_is_no_conversation_is_told_with_its_place_and_reason(chat, tmp_path, capsys):
    rows = [GOOD, *BAD.values(), b"", GOOD]
    data = chat({"mixed": write_rows(tmp_path / "mixed.jsonl", rows)}, validation_fraction=0.0)
    refusals = {refusal.row: refusal.detail for refusal in data.stores["mixed"].refusals()}
    assert list(refusals) == [f"mixed.jsonl:{number}" for number in range(2, len(BAD) + 2)]
    for said, detail in zip(BAD, refusals.values(), strict=True):
        assert said in detail, (said, detail)
    assert len(data.stores["mixed"]) == 2
    told = capsys.readouterr().out
    assert f"{len(BAD)} of {len(BAD) + 2} rows are left out" in told
    assert "mixed.jsonl:2" in told
    assert chat({"mixed": tmp_path / "mixed.jsonl"}, validation_fraction=0.0).identity == data.identity
    assert "rows are left out" in capsys.readouterr().out  # told again when nothing is built anew


@pytest.mark.parametrize("rows", [[], [b""], list(BAD.values())])
def test_a_source_without_a_conversation_is_an_error_that_names_it(chat, tmp_path, rows):
    with pytest.raises(
        ValueError, match=r"data.sources.mine: (there is no conversation|every conversation was refused)"
    ):
        chat({"mine": write_rows(tmp_path / "empty.jsonl", rows)})
    assert not list((tmp_path / "home").glob("conversations/mine-*"))


def test_a_missing_or_foreign_source_is_an_error_that_names_the_setting(chat, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data.sources.mine.path=.*nowhere"):
        chat({"mine": tmp_path / "nowhere"})
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(ValueError, match=r"data.sources.mine.path"):
        chat({"mine": tmp_path / "notes.md"})
    (tmp_path / "text.txt").write_text("発熱")
    with pytest.raises(ValueError, match=r"every conversation was refused, 1 x not of the layout, first text.txt"):
        chat({"mine": tmp_path / "text.txt"})


def test_compressed_files_and_folders_are_read_and_damage_is_told(chat, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    whole = "".join(json.dumps({"messages": turns(number)}) + "\n" for number in range(9)).encode()
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(whole))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(whole * 50)[:-100])
    data = chat({"folder": folder}, validation_fraction=0.0)
    assert len(data.stores["folder"]) > 9
    assert [refusal.reason for refusal in data.stores["folder"].refusals()] == ["truncated or damaged file"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "message"}, "kind"),
        ({"kind": "messages", "split": "paper"}, "split and fold are for kind jmed_llm"),
        ({"kind": "jmed_llm"}, "split=None"),
        ({"kind": "jmed_llm", "split": "grouped"}, "needs a fold"),
        ({"kind": "jmed_llm", "split": "paper", "fold": 1}, "no folds"),
        ({"kind": "messages", "waight": 1.0}, "did you mean weight"),
        ({}, "kind: needed"),
        ({"kind": "messages", "weight": "much"}, "must be a number"),
    ],
)
def test_a_source_that_cannot_be_is_refused_by_setting(settings, said):
    with pytest.raises(ValueError, match=said) as error:
        sources_from({"mine": {"path": "somewhere", **settings}})
    assert "data.sources.mine" in str(error.value)


def test_a_name_that_cannot_be_a_folder_is_refused():
    for name in ("a/b", "", "..", "a b"):
        with pytest.raises(ValueError, match="name"):
            sources_from({name: {"path": "somewhere", "kind": "messages"}})


def test_truncation_takes_from_the_left_and_never_from_the_answer(chat, tmp_path):
    long = [{"role": "user", "content": SENTENCES[0] * 20}, {"role": "assistant", "content": SENTENCES[1]}]
    data = chat(
        {"long": write_rows(tmp_path / "long.jsonl", [long, GOOD])}, too_long="truncate", validation_fraction=0.0
    )
    store = data.stores["long"]
    assert store.lengths.tolist()[0] == 128
    answer = data.tokenizer.decode(store.ids(0)[store.supervised(0)].tolist())
    assert answer == data.tokenizer.decode(data.tokenizer.encode(SENTENCES[1]))
    assert data.lengths()["long"]["over_the_context"] == 0.5
    with pytest.raises(ValueError, match="too long"):
        answer_alone = [{"role": "user", "content": "何?"}, {"role": "assistant", "content": SENTENCES[0] * 20}]
        chat({"answer": write_rows(tmp_path / "answer.jsonl", [answer_alone])}, too_long="truncate")


# ---- held out ----


def test_no_held_out_conversation_is_a_copy_of_a_training_one(chat, tmp_path):
    rows = [turns(number % 40) for number in range(80)]  # each of them twice, and again in a second file
    first, second = write_rows(tmp_path / "a.jsonl", rows), write_rows(tmp_path / "b.jsonl", rows[:20])
    data = chat({"a": first, "b": second}, validation_fraction=0.3)
    ids = {name: [tuple(store.ids(number)) for number in range(len(store))] for name, store in data.stores.items()}
    train = {ids[name][number] for name, numbers in data.division.train.items() for number in numbers}
    held = {ids[name][number] for name, numbers in data.division.held_out.items() for number in numbers}
    assert held
    assert not train & held
    assert sum(map(len, data.division.train.values())) + sum(map(len, data.division.held_out.values())) == 100


def test_a_document_is_held_out_whole_unless_a_copy_stands_elsewhere(base, tmp_path):
    from ncvc.chat import with_chat_tokens
    from ncvc.tokenizer import Tokenizer

    tokenizer = with_chat_tokens(Tokenizer.load(base / "tokenizer"))

    def store(name: str, groups: list[str], offset: int = 0) -> ConversationStore:
        raw = [
            RawConversation(str(n), (Message("user", f"{n + offset}番は?"), Message("assistant", "A")), group)
            for n, group in enumerate(groups)
        ]
        chosen = EncodingSettings(context_length=64)
        return write_store(
            raw, directory=tmp_path / name, name=name, tokenizer=tokenizer, settings=chosen, progress=False
        )

    grouped = store("grouped", [f"document {n // 4}" for n in range(80)])
    division = divide({"grouped": grouped}, fraction=0.3, most_scored=5, seed=0)
    held = division.held_out["grouped"].tolist()
    assert held and all(set(range(n // 4 * 4, n // 4 * 4 + 4)) <= set(held) for n in held)
    assert len(division.scored) == 5
    assert divide({"grouped": grouped}, fraction=0.3, most_scored=5, seed=1).held_out["grouped"].tolist() != held
    copies = store("copies", [""] * 3, offset=held[0])  # rows held[0], held[0] + 1, held[0] + 2 under other names
    both = divide({"grouped": grouped, "copies": copies}, fraction=0.3, most_scored=99, seed=0)
    trained = {int(grouped.hashes[n, 0]) for n in both.train["grouped"]} | {
        int(copies.hashes[n, 0]) for n in both.train["copies"]
    }
    scored = {"grouped": grouped, "copies": copies}
    assert not any(int(scored[name].hashes[number, 0]) in trained for name, number in both.scored)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_held_out_answers_are_scored_once_over_all_ranks_in_as_many_batches_each(chat, world_size):
    data = chat(layout="packed")
    loaders = [HeldOutConversations(data, rank=rank, world_size=world_size) for rank in range(world_size)]
    batches = [list(loader) for loader in loaders]
    assert len({len(found) for found in batches}) == len({len(loader) for loader in loaders}) == 1
    scored = []
    for batch in itertools.chain(*batches):
        assert "document_ids" not in batch
        scored += batch["labels"][batch["labels"] != IGNORE].tolist()
    store = data.stores["own"]
    wanted = [store.ids(number)[store.supervised(number)] for _, number in data.division.scored]
    assert sorted(scored) == sorted(np.concatenate(wanted).tolist())


def test_nothing_is_held_out_where_that_is_asked_and_all_is_refused(chat):
    data = chat(validation_fraction=0.0)
    data.trainer = type("Trainer", (), {"global_rank": 0, "world_size": 1})()
    assert data.val_dataloader() == []
    assert data.unigram_bits_per_character() is None
    assert len(data.division.train["own"]) == 60
    with pytest.raises(ValueError, match=r"data.validation_fraction=0.999999"):
        chat(validation_fraction=0.999999)
    with pytest.raises(ValueError, match=r"holds out no conversation of own; set it above"):
        chat(validation_fraction=1e-9)


def test_the_unigram_floor_is_the_cross_entropy_of_counted_answers(chat):
    data = chat()
    store = data.stores["own"]
    counts = np.ones(data.tokenizer.vocab_size)
    for number in data.division.train["own"]:
        for token in store.ids(number)[store.supervised(number)]:
            counts[token] += 1
    bits = characters = 0.0
    for _, number in data.division.scored:
        answer = store.ids(number)[store.supervised(number)]
        bits -= sum(np.log2(counts[token] / counts.sum()) for token in answer)
        characters += len(data.tokenizer.decode(answer.tolist()))
    assert data.unigram_bits_per_character() == pytest.approx(bits / characters)


# ---- what a run is told ----


def test_length_statistics_are_those_of_the_encoded_rows(chat):
    data = chat(validation_fraction=0.0)
    conversations = [
        encode_conversation([Message(turn["role"], turn["content"]) for turn in turns(n)], tokenizer=data.tokenizer)
        for n in range(60)
    ]
    lengths = [len(conversation.ids) for conversation in conversations]
    found = data.lengths()["own"]
    assert found["tokens"] == sum(lengths) == data.train_tokens
    assert found["supervised_tokens"] == sum(sum(conversation.supervised) for conversation in conversations)
    assert [found["mean"], found["median"], found["longest"]] == [np.mean(lengths), np.median(lengths), max(lengths)]
    assert f"{sum(lengths):,}" in lengths_as_table(data.lengths())
    assert lengths_as_table(data.lengths()) in data.description(10)


def test_tokens_seen_count_every_token_of_the_steps_before(chat):
    data = chat(batch_size=8)
    per_step = []
    for step in range(9):
        total = 0
        for origin in data.documents_of(step):
            number = int(origin["row_in_source"].rpartition(":")[2]) - 1
            total += int(data.stores["own"].lengths[number])
        per_step.append(total)
    assert [data.tokens_seen(step) for step in (9, 4, 0, 5)] == [sum(per_step[:n]) for n in (9, 4, 0, 5)]


def test_sources_come_by_their_weights(chat, home, base, sixty, tmp_path):
    other = write_rows(tmp_path / "b.jsonl", [turns(number) for number in range(100, 120)])
    sources = {
        "own": {"path": str(sixty), "kind": "messages", "weight": 0.8},
        "other": {"path": str(other), "kind": "messages", "weight": 0.2},
    }
    data = chat(sources=sources, batch_size=1000, micro_batch_size=1000, validation_fraction=0.0)
    names = [origin["source"] for step in range(10) for origin in data.documents_of(step)]
    assert names.count("other") / len(names) == pytest.approx(0.2, abs=0.001)


def test_identity_changes_with_whatever_changes_a_sample(chat, tmp_path):
    plain = chat()
    assert chat().identity == plain.identity
    assert chat(layout="packed", micro_batch_size=2).identity == plain.identity
    changed = write_rows(tmp_path / "chat.jsonl", [turns(number) for number in range(59)])
    assert chat({"own": changed}).fingerprint != plain.fingerprint
    assert chat(validation_fraction=0.3).fingerprint != plain.fingerprint
    assert chat(context_length=80).fingerprint != plain.fingerprint


# ---- damage ----


def test_a_damaged_store_is_refused_and_a_changed_one_ends_the_run(chat, tmp_path):
    home = tmp_path / "home"
    data = chat(home=str(home))
    data.check_unchanged()
    folder = data.stores["own"].directory
    flags = folder / "supervised.bin"
    original = flags.read_bytes()
    flags.write_bytes(bytes(len(original)))
    with pytest.raises(ValueError, match="was changed or removed while the run reads it"):
        data.check_unchanged()
    with pytest.raises(ValueError, match=r"supervised.bin was altered"):
        chat(home=str(home))
    flags.write_bytes(original[:-5])
    with pytest.raises(ValueError, match=r"supervised.bin is truncated"):
        ConversationStore.open(folder)


def test_a_conversation_whose_targets_vanish_after_opening_is_named(chat, tmp_path):
    data = chat(home=str(tmp_path / "home"))
    flags = data.stores["own"].directory / "supervised.bin"
    with flags.open("r+b") as file:
        file.write(bytes(flags.stat().st_size))
    with pytest.raises(
        ValueError, match=r"data.sources.own: chat.jsonl:\d+ has ids outside the vocabulary or other targets"
    ):
        data.micro_batch(0, 0, rank=0, world_size=1)


@pytest.mark.slow
def test_the_bytes_of_a_store_do_not_depend_on_the_number_of_workers(chat, tmp_path):
    file = write_rows(tmp_path / "many.jsonl", [turns(number) for number in range(1200)])
    one, two = (
        chat({"many": file}, home=str(tmp_path / f"home{workers}"), workers=workers).stores["many"]
        for workers in (1, 2)
    )
    assert one.manifest == two.manifest


@pytest.mark.slow
@pytest.mark.skipif(not JMED.is_dir(), reason="the JMED-LLM files are not here")
@pytest.mark.parametrize(("split", "rows"), [("paper", 22_741), ("document", 19_740)])
def test_every_row_of_jmed_llm_becomes_a_conversation(chat, split, rows):
    sources = {"jmed": {"path": str(JMED), "kind": "jmed_llm", "split": split}}
    # a tokenizer of eight sentences writes most characters as bytes, so the context is wide here
    data = chat(sources=sources, context_length=8192, workers=2, validation_fraction=0.0, batch_size=256)
    assert data.lengths()["jmed"]["conversations"] == rows
    assert data.lengths()["jmed"]["refused"] == 0
