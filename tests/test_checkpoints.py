"""Checkpoints on disk: what they hold, how harm to them is named, which stay, and saving in the background."""

import errno
import itertools
import json
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ncvc.checkpoints import (
    FORMAT,
    BackgroundSaver,
    CheckpointWriter,
    checkpoint_name,
    discard_after,
    find_checkpoints,
    newest_complete,
    open_checkpoint,
    prune,
    required_bytes,
    step_of,
    verify,
)
from ncvc.storage import file_record, hash_json


def shard_of(content: bytes) -> Callable[[Path], dict]:
    def write(path: Path) -> dict:
        path.write_bytes(content)
        return file_record(path)

    return write


def small_tokenizer(folder: Path) -> Path:
    """A directory with files in two levels."""
    (folder / "dictionary").mkdir(parents=True)
    (folder / "tokenizer.json").write_text('{"vocabulary": ["肺炎"]}', encoding="utf-8")
    (folder / "dictionary" / "user.csv").write_text("肺炎,はいえん\n", encoding="utf-8")
    return folder


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return small_tokenizer(tmp_path / "tokenizer")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "run" / "checkpoints"


def save(
    directory: Path,
    step: int,
    *,
    token: str = "a",
    content: bytes = b"values" * 50,
    tokenizer: Path | None = None,
    ranks: int = 1,
):
    """A whole checkpoint, its ranks one after the other, the first one last."""
    for rank in reversed(range(ranks)):
        writer = CheckpointWriter(directory, step=step, rank=rank, world_size=ranks, token=token)
        writer.write_shard(shard_of(content + bytes([rank])))
    extra = {"tokenizer": tokenizer} if tokenizer else {}
    return writer.complete({"step": step, "text": content[:20].decode()}, extra_directories=extra, timeout=5)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# ---- the folder ----------------------------------------------------------------------------------------------------


def test_a_checkpoint_holds_shards_state_tokenizer_and_a_manifest_of_them_all(directory, tokenizer):
    checkpoint = save(directory, 3200, tokenizer=tokenizer, ranks=2)
    assert names(directory) == ["step=00003200"]
    files = {path.relative_to(checkpoint.path).as_posix() for path in checkpoint.path.rglob("*") if path.is_file()}
    listed = {
        "shard-00000-of-00002.safetensors",
        "shard-00001-of-00002.safetensors",
        "state.json",
        "tokenizer/tokenizer.json",
        "tokenizer/dictionary/user.csv",
    }
    assert files == listed | {"manifest.json"}
    manifest = json.loads((checkpoint.path / "manifest.json").read_text())
    assert set(manifest["files"]) == listed and manifest["world_size"] == 2 and manifest["step"] == 3200
    assert all(manifest["files"][name] == file_record(checkpoint.path / name) for name in listed)
    state = json.loads((checkpoint.path / "state.json").read_text())
    assert state["shards"] == ["shard-00000-of-00002.safetensors", "shard-00001-of-00002.safetensors"]
    assert open_checkpoint(checkpoint.path) == checkpoint
    assert newest_complete(directory) == (checkpoint, [])


def test_names_and_steps_are_each_others_inverse():
    assert [step_of(Path("x") / checkpoint_name(step)) for step in (0, 3200, 123_456_789)] == [0, 3200, 123_456_789]
    with pytest.raises(ValueError, match="name one like step=00003200"):
        step_of(Path("last"))


def test_order_is_by_step_whatever_the_clock_said(directory):
    for step in (1000, 200, 99_999_999, 100_000_000):
        save(directory, step)
        os.utime(directory / checkpoint_name(step), times=(4e9 - step, 4e9 - step))  # later steps look older
    assert [checkpoint.step for checkpoint in find_checkpoints(directory)] == [200, 1000, 99_999_999, 100_000_000]
    assert newest_complete(directory)[0].step == 100_000_000
    assert newest_complete(directory, at_most=5000)[0].step == 1000
    assert newest_complete(directory, at_most=100) == (None, [])
    assert prune(directory, keep_rolling=1, archive_every=3200) == [200, 1000]  # 10^8 is on the grid
    assert newest_complete(directory.parent / "nowhere") == (None, [])


def test_a_jump_of_the_clock_does_not_end_the_wait_for_a_rank(directory, monkeypatch):
    first, second = (CheckpointWriter(directory, step=1, rank=r, world_size=2, token="a") for r in (0, 1))
    first.write_shard(shard_of(b"0"))
    clock = itertools.count(time.time(), 86_400)  # a day later at each look
    monkeypatch.setattr(time, "time", lambda: next(clock))
    late = threading.Timer(0.2, second.write_shard, args=[shard_of(b"1")])
    late.start()
    assert first.complete({}, timeout=20).step == 1
    late.join()


def test_saving_a_step_again_replaces_it(directory):
    save(directory, 100, content=b"before")
    save(directory, 100, content=b"after", token="b")
    assert names(directory) == ["step=00000100"]
    assert json.loads((directory / "step=00000100" / "state.json").read_text())["text"] == "after"


def test_what_another_version_wrote_is_passed_over_and_never_deleted(directory):
    save(directory, 100)
    path = save(directory, 200).path
    manifest = json.loads((path / "manifest.json").read_text()) | {"version": 2}
    (path / "manifest.json").write_text(json.dumps(manifest))
    found, skipped = newest_complete(directory)
    assert found.step == 100
    assert skipped == [
        f"step=00000200 is passed over: manifest.json is of format '{FORMAT}' version 2; this version of ncvc reads "
        f"'{FORMAT}' version 1"
    ]
    save(directory, 200, token="b")
    assert names(directory) == ["step=00000100", "step=00000200", "step=00000200.kept-b"]


# ---- torn and altered files ----------------------------------------------------------------------------------------


def delete(path: Path) -> str:
    path.unlink()
    return "is missing"


def truncate(path: Path) -> str:
    path.write_bytes(path.read_bytes()[:-5])
    return "is torn" if path.name == "manifest.json" else r"is truncated: \d+ bytes, the manifest says \d+"


def lengthen(path: Path) -> str:
    path.write_bytes(path.read_bytes() + b"x")
    return "is torn" if path.name == "manifest.json" else "is longer than it was written"


def flip(path: Path) -> str:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return "(was altered after it was written|is torn)" if path.name == "manifest.json" else "was altered"


def empty(path: Path) -> str:
    path.write_bytes(b"")
    return "is torn" if path.name == "manifest.json" else "is truncated: 0 bytes"


FILES = [
    "manifest.json",
    "state.json",
    "shard-00000-of-00002.safetensors",
    "shard-00001-of-00002.safetensors",
    "tokenizer/tokenizer.json",
    "tokenizer/dictionary/user.csv",
]


@pytest.mark.parametrize("harm", [delete, truncate, lengthen, flip, empty])
@pytest.mark.parametrize("file", FILES)
def test_harm_to_any_file_is_named_and_the_checkpoint_before_is_taken(directory, tokenizer, file, harm):
    save(directory, 100, tokenizer=tokenizer, ranks=2)
    path = save(directory, 200, tokenizer=tokenizer, ranks=2).path
    told = harm(path / file)
    found, skipped = newest_complete(directory)
    assert found.step == 100 and len(skipped) == 1
    assert re.match(f"step=00000200 is passed over: {re.escape(file)} {told}", skipped[0])
    with pytest.raises(ValueError, match=f"{re.escape(file)} {told}"):
        open_checkpoint(path)
    prune(directory, keep_rolling=0, archive_every=3200)
    assert newest_complete(directory)[0].step == 100  # a torn newer one does not let the last whole one go
    save(directory, 200, tokenizer=tokenizer, ranks=2, token="b")  # the run goes on and comes to this step again
    assert newest_complete(directory)[0].step == 200


def test_a_change_far_from_the_edges_is_found_by_a_thorough_check_only(directory):
    checkpoint = save(directory, 100, content=b"v" * (5 << 20))
    flip(checkpoint.path / "shard-00000-of-00001.safetensors")
    assert verify(checkpoint, thorough=False) == []
    (problem,) = verify(checkpoint, thorough=True)
    assert problem.startswith("shard-00000-of-00001.safetensors was altered after it was written")


def test_every_problem_of_a_checkpoint_is_told(directory, tokenizer):
    path = save(directory, 100, tokenizer=tokenizer, ranks=2).path
    delete(path / FILES[2])
    truncate(path / FILES[4])
    found, (skipped,) = newest_complete(directory)
    assert found is None and FILES[2] in skipped and FILES[4] in skipped


def test_a_manifest_under_another_steps_name_is_refused(directory):
    path = save(directory, 100).path
    path.rename(path.with_name(checkpoint_name(300)))
    assert newest_complete(directory) == (
        None,
        ["step=00000300 is passed over: manifest.json is of step 100, the folder's name says 300"],
    )


def test_a_manifest_with_an_entry_less_is_refused(directory, tokenizer):
    path = save(directory, 100, tokenizer=tokenizer).path / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest["sha256"] == hash_json({key: value for key, value in manifest.items() if key != "sha256"})
    del manifest["files"]["tokenizer/tokenizer.json"]
    path.write_text(json.dumps(manifest))
    assert "manifest.json was altered" in newest_complete(directory)[1][0]


# ---- pruning and space ---------------------------------------------------------------------------------------------


def test_pruning_keeps_archive_final_step_and_the_last_rolling_ones(directory):
    for step in (0, 100, 200, 300, 400, 500, 600, 650):
        save(directory, step)
    assert prune(directory, keep_rolling=2, archive_every=300, keep={650}) == [100, 200]
    assert [c.step for c in find_checkpoints(directory)] == [0, 300, 400, 500, 600, 650]
    assert prune(directory, keep_rolling=2, archive_every=300, keep={650}) == []


def test_pruning_never_removes_the_newest_nor_what_is_torn(directory):
    for step in (100, 200, 300):
        save(directory, step)
    delete(directory / checkpoint_name(300) / "state.json")
    assert prune(directory, keep_rolling=0, archive_every=3200) == [100]
    assert names(directory) == ["step=00000200", "step=00000300"]
    assert newest_complete(directory)[0].step == 200


def test_going_back_discards_later_checkpoints_whole_or_torn(directory):
    for step in (100, 200, 300):
        save(directory, step)
    delete(directory / checkpoint_name(300) / "manifest.json")
    assert discard_after(directory, step=100) == [300, 200]
    assert names(directory) == ["step=00000100"]


def test_the_disk_asked_for_is_what_a_run_keeps_at_its_fullest(directory):
    fullest, archive_every, keep_rolling, max_steps = 0, 40, 3, 90
    for step in range(10, max_steps + 1, 10):
        save(directory, step)
        fullest = max(fullest, len(find_checkpoints(directory)))
        prune(directory, keep_rolling=keep_rolling, archive_every=archive_every, keep={max_steps})
    asked = required_bytes(7, max_steps=max_steps, archive_every=archive_every, keep_rolling=keep_rolling) / (7 * 12)
    assert fullest <= asked <= fullest + 1
    # the report's run (R56): 4 archived + final + 3 rolling + 1 being written, 1.2 billion parameters
    assert required_bytes(1_200_000_000, max_steps=15_000, archive_every=3200, keep_rolling=3) == 9 * 14_400_000_000


# ---- in the background ---------------------------------------------------------------------------------------------


def test_saves_run_one_after_the_other_and_the_wait_is_told():
    saver, go, order = BackgroundSaver(), threading.Event(), []
    assert saver.submit(lambda: (go.wait(10), order.append(1))) < 5
    saver.poll()  # does not wait
    assert order == []
    threading.Timer(0.2, go.set).start()
    assert saver.submit(lambda: order.append(2)) > 0.1
    assert order[0] == 1
    saver.close()
    assert order == [1, 2]


def fail() -> None:
    raise OSError(errno.ENOSPC, "the disk is full")


@pytest.mark.parametrize("call", ["wait", "close", "poll", "submit"])
def test_a_background_error_surfaces_once_in_the_callers_next_call(call):
    saver, ran = BackgroundSaver(), []
    saver.submit(fail)
    saver._thread.join()
    arguments = [lambda: ran.append(1)] if call == "submit" else []
    with pytest.raises(OSError, match="the disk is full"):
        getattr(saver, call)(*arguments)
    assert ran == []  # nothing is saved before the error was seen
    saver.close()


def test_an_error_that_may_not_be_raised_is_printed(capsys):
    saver = BackgroundSaver()
    saver.submit(fail)
    saver.close(raise_errors=False)
    assert "while saving in the background: [Errno 28] the disk is full" in capsys.readouterr().err
