"""What befalls a run while it saves: kills at every change on disk, dead and failing ranks, full disks.

Whatever happens, the checkpoint before is there and whole, and the next save works.
"""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_checkpoints import names, save, shard_of, small_tokenizer

from ncvc.checkpoints import (
    CheckpointWriter,
    find_checkpoints,
    newest_complete,
    prune,
    remove_leftovers,
    verify,
)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return small_tokenizer(tmp_path / "tokenizer")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "run" / "checkpoints"


def child(function: Callable[[], object]) -> int:
    """Run ``function`` in a process of its own (a fork); its process id."""
    process = os.fork()
    if process == 0:
        status = 1
        try:
            function()
            status = 0
        finally:
            os._exit(status)
    return process


def ended(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


# ---- kills ---------------------------------------------------------------------------------------------------------


def killed_at(event: int, action: Callable[[], object], *, below: Path) -> int:
    """Run ``action`` in a child that is killed (SIGKILL) before its change number ``event`` of files ``below``."""

    def run() -> None:
        seen = 0

        def count(name: str, arguments: tuple) -> None:
            nonlocal seen
            if name == "open":
                changes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            else:
                changes = name in ("os.mkdir", "os.rename", "os.remove", "os.rmdir")
            relative = name in ("os.remove", "os.rmdir") and arguments[1] != -1  # rmtree names files by open folder
            if changes and (relative or str(arguments[0]).startswith(str(below))):
                if seen == event:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen += 1

        sys.addaudithook(count)
        action()

    return ended(child(run))


def every_kill(directory: Path, prepare: Callable[[Path], object], action: Callable[[Path], object]) -> Iterator[Path]:
    """For every operation of ``action``: a directory in which it was killed just before; ends when it ran through."""
    for event in range(1000):
        place = directory / str(event)
        prepare(place)
        status = killed_at(event, lambda place=place: action(place), below=place)
        assert status in (0, -signal.SIGKILL)
        yield place
        if status == 0:
            assert event >= 5
            return
    raise AssertionError("the action never ends")


def test_a_kill_at_any_operation_of_saving_leaves_a_usable_checkpoint(directory, tokenizer):
    def prepare(place: Path) -> None:
        save(place, 100, content=b"100")
        save(place, 200, content=b"before")

    def action(place: Path) -> None:
        save(place, 200, content=b"after", tokenizer=tokenizer, token="b")  # replaces: the longest way

    texts = set()
    for place in every_kill(directory, prepare, action):
        found, _ = newest_complete(place)
        assert found.step == 200 == find_checkpoints(place)[-1].step
        texts.add(json.loads((found.path / "state.json").read_text())["text"])
        remove_leftovers(place, token="c")  # what the next save does first
        assert names(place) == ["step=00000100", "step=00000200"]
        assert newest_complete(place)[0].step == 200
    assert texts == {"before", "after"}


def test_a_kill_at_any_operation_of_a_first_save_leaves_nothing_that_looks_complete(directory, tokenizer):
    for place in every_kill(
        directory, lambda place: place.mkdir(parents=True), lambda place: save(place, 5, tokenizer=tokenizer)
    ):
        found, skipped = newest_complete(place)
        assert found is None or verify(found, thorough=True) == []
        assert found is not None or all(".step=00000005.partial-a" in reason for reason in skipped)
        save(place, 5, tokenizer=tokenizer, token="b")
        assert names(place) == ["step=00000005"]


def test_a_kill_at_any_operation_of_pruning_leaves_only_whole_checkpoints(directory):
    def prepare(place: Path) -> None:
        for step in (50, 100, 200, 300, 400):
            save(place, step)

    for place in every_kill(
        directory, prepare, lambda place: prune(place, keep_rolling=1, archive_every=200, keep={300})
    ):
        assert all(verify(checkpoint, thorough=True) == [] for checkpoint in find_checkpoints(place))
        assert {checkpoint.step for checkpoint in find_checkpoints(place)} >= {100, 200, 300, 400}
        assert newest_complete(place)[0].step == 400 and newest_complete(place)[1] == []
        remove_leftovers(place, token="a")
        assert all(name.startswith("step=") for name in names(place))


def test_a_checkpoint_moved_aside_comes_back_when_the_new_one_cannot_take_its_place(directory):
    before = save(directory, 100, content=b"before")

    def replace_while_the_new_one_vanishes() -> None:
        def vanish(name: str, arguments: tuple) -> None:
            if (
                name == "os.rename"
                and ".partial-b" in str(arguments[0])
                and str(arguments[1]).endswith("step=00000100")
            ):
                shutil.rmtree(arguments[0])

        sys.addaudithook(vanish)
        with pytest.raises(OSError, match="given up"):
            save(directory, 100, content=b"after", token="b")

    assert ended(child(replace_while_the_new_one_vanishes)) == 0
    assert names(directory) == ["step=00000100"] and newest_complete(directory) == (before, [])


def test_kills_at_random_moments_of_writing_leave_the_one_before_and_the_next_save_works(directory):
    program = (
        "import sys; from pathlib import Path; from ncvc.checkpoints import CheckpointWriter, prune\n"
        "from ncvc.storage import file_record\n"
        "def write(path):\n"
        "    with path.open('wb') as file:\n"
        "        for _ in range(40): file.write(b'x' * 100_000); file.flush()\n"
        "    return file_record(path)\n"
        "first = int(sys.argv[2])\n"
        "for step in range(first, first + 10_000):\n"
        "    writer = CheckpointWriter(Path(sys.argv[1]), step=step, rank=0, world_size=1, token=sys.argv[2])\n"
        "    writer.write_shard(write); writer.complete({})\n"
        "    prune(Path(sys.argv[1]), keep_rolling=2, archive_every=10**6)\n"
        "    print(step, flush=True)\n"
    )
    done = 0
    for attempt in range(12):
        command = [sys.executable, "-c", program, str(directory), str(done + 1)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            done = int(process.stdout.readline())  # one step at least
            time.sleep(0.0137 * attempt)
            process.kill()
            done = max([done, *map(int, process.stdout.read().split())])
        found, _ = newest_complete(directory)
        assert found.step in (done, done + 1)  # killed between the rename and the line that tells it
        done = found.step
    save(directory, done + 1, token="end")
    assert all(verify(checkpoint, thorough=True) == [] for checkpoint in find_checkpoints(directory))
    assert all(name.startswith("step=") for name in names(directory))


# ---- several ranks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [0, 1])
def test_two_processes_write_one_checkpoint_without_talking(directory, tokenizer, late):
    def second() -> None:
        time.sleep(0.2 * late)
        CheckpointWriter(directory, step=7, rank=1, world_size=2, token="t").write_shard(shard_of(b"from 1"))

    process = child(second)
    time.sleep(0.2 * (1 - late))
    first = CheckpointWriter(directory, step=7, rank=0, world_size=2, token="t")
    first.write_shard(shard_of(b"from 0"))
    checkpoint = first.complete({}, extra_directories={"tokenizer": tokenizer}, timeout=20)
    assert ended(process) == 0
    shards = [(checkpoint.path / f"shard-0000{rank}-of-00002.safetensors").read_bytes() for rank in (0, 1)]
    assert shards == [b"from 0", b"from 1"]
    assert verify(checkpoint, thorough=True) == [] and names(directory) == ["step=00000007"]


def test_a_dead_rank_ends_the_save_with_its_number_and_the_one_before_intact(directory):
    before = save(directory, 100, ranks=2)

    def second() -> None:
        writer = CheckpointWriter(directory, step=200, rank=1, world_size=2, token="t")
        writer.write_shard(lambda path: path.write_bytes(b"half") and os.kill(os.getpid(), signal.SIGKILL))

    assert ended(child(second)) == -signal.SIGKILL
    first = CheckpointWriter(directory, step=200, rank=0, world_size=2, token="t")
    first.write_shard(shard_of(b"whole"))
    with pytest.raises(OSError, match=r"step 200 .* is given up: rank 1 wrote nothing within 0\.3 s"):
        first.complete({}, timeout=0.3)
    assert names(directory) == ["step=00000100"] and newest_complete(directory) == (before, [])


def test_the_error_of_a_rank_is_raised_there_and_on_the_first_one(directory):
    before = save(directory, 100, ranks=2)

    def full(path: Path) -> dict:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    first, second = (CheckpointWriter(directory, step=200, rank=r, world_size=2, token="t") for r in (0, 1))
    first.write_shard(shard_of(b"0"))
    with pytest.raises(OSError, match=r"writing the checkpoint of step 200 .* bytes free"):
        second.write_shard(full)
    with pytest.raises(OSError, match=r"rank 1: writing the checkpoint of step 200 .* Free some space") as caught:
        first.complete({}, timeout=20)
    assert caught.value.errno == errno.ENOSPC and str(caught.value).count("bytes free") == 1
    assert names(directory) == ["step=00000100"] and newest_complete(directory) == (before, [])


def test_a_rank_whose_folder_the_first_one_removed_says_so(directory):
    first, second = (CheckpointWriter(directory, step=200, rank=r, world_size=2, token="t") for r in (0, 1))

    def late(path: Path) -> dict:
        with pytest.raises(RuntimeError, match="broken"):
            first.write_shard(broken)
        return shard_of(b"1")(path)

    def broken(path: Path) -> dict:
        raise RuntimeError("broken")

    with pytest.raises(OSError, match=r"step 200 .* was given up by the first rank"):
        second.write_shard(late)
    assert names(directory) == []


def test_a_folder_that_a_living_process_writes_is_left_alone(directory):
    directory.mkdir(parents=True)
    reading, writing = os.pipe()

    def slow() -> None:
        writer = CheckpointWriter(directory, step=1, rank=1, world_size=2, token="other")
        writer.write_shard(lambda path: os.write(writing, b"x") and time.sleep(60))

    process = child(slow)
    os.read(reading, 1)
    remove_leftovers(directory, token="mine")
    assert names(directory) == [".step=00000001.partial-other"]
    assert newest_complete(directory)[1] == [
        ".step=00000001.partial-other is passed over: it was never completed (killed, or still being written)"
    ]
    os.kill(process, signal.SIGKILL)
    ended(process)
    remove_leftovers(directory, token="mine")
    assert names(directory) == []


def test_a_state_that_is_no_json_leaves_nothing_behind(directory):
    writer = CheckpointWriter(directory, step=1, rank=0, world_size=1, token="a")
    writer.write_shard(shard_of(b"0"))
    with pytest.raises(TypeError, match="not JSON serializable"):
        writer.complete({"folder": Path("x")})
    assert names(directory) == []


# ---- full disks ----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


FULL = "writing the checkpoint of step 200 in .* failed: No space left .* earlier checkpoints are untouched.* NCVC_HOME"


def test_a_disk_that_fills_up_in_a_shard_keeps_the_one_before(small_disk):
    before = save(small_disk, 100, content=b"x" * (5 << 20))
    with pytest.raises(OSError, match=FULL) as caught:
        save(small_disk, 200, content=b"x" * (5 << 20))
    assert caught.value.errno == errno.ENOSPC
    assert names(small_disk) == ["step=00000100"] and newest_complete(small_disk) == (before, [])
    save(small_disk, 200, content=b"x" * (1 << 20))  # there is room for this one


def test_a_disk_that_fills_up_after_the_shards_keeps_the_one_before(small_disk, tokenizer):
    before = save(small_disk, 100, content=b"x" * (3 << 20))
    (tokenizer / "large").write_bytes(b"x" * (3 << 20))
    with pytest.raises(OSError, match=FULL):
        save(small_disk, 200, content=b"x" * (3 << 20), tokenizer=tokenizer)
    assert names(small_disk) == ["step=00000100"] and newest_complete(small_disk) == (before, [])


def test_a_second_rank_on_a_full_disk_reports_to_the_first(small_disk):
    save(small_disk, 100, content=b"x" * (5 << 20))
    first, second = (CheckpointWriter(small_disk, step=200, rank=r, world_size=2, token="t") for r in (0, 1))
    first.write_shard(shard_of(b"0"))
    with pytest.raises(OSError, match=FULL):
        second.write_shard(shard_of(b"x" * (5 << 20)))
    with pytest.raises(OSError, match=f"rank 1: {FULL}"):
        first.complete({}, timeout=20)
    assert names(small_disk) == ["step=00000100"]


def test_a_file_size_limit_keeps_the_one_before(directory):
    before = save(directory, 100)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        with pytest.raises(OSError, match=r"step 200 .* failed: File too large .* lift the limit"):
            save(directory, 200, content=b"x" * (2 << 20))

    assert ended(child(limited)) == 0
    assert names(directory) == ["step=00000100"] and newest_complete(directory) == (before, [])
