"""Which run is taken up, whether it is the same, and who holds its folder."""

import itertools
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ncvc.command_line import taken_up
from ncvc.resuming import RunLock, changes, merged_ranges, newest_run


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)).map(lambda pair: (pair[0], pair[0] + pair[1]))))
def test_merged_ranges_cover_the_same_numbers_in_order_and_apart(ranges):
    merged = merged_ranges(ranges)
    assert {n for first, end in merged for n in range(first, end)} == {n for a, b in ranges for n in range(a, b)}
    assert all(first[1] < second[0] for first, second in itertools.pairwise(merged))


def test_a_change_is_told_by_name_and_allowed_by_name_or_group():
    saved, now = {"model.head_dim": 8, "seed": 0}, {"model.head_dim": 16, "seed": 0, "optimizer.extra": 1}
    assert [text.partition(":")[0] for text in changes(saved, now)] == ["model.head_dim", "optimizer.extra"]
    assert changes(saved, now, allowed=["model", "optimizer.extra"]) == []
    assert len(changes(saved, now, allowed=["mod", "optimizer"])) == 1


def test_the_lock_of_a_dead_process_does_not_hold(tmp_path):
    code = f"from ncvc.resuming import RunLock; from pathlib import Path; RunLock(Path({str(tmp_path)!r})); print(1)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    with RunLock(tmp_path), pytest.raises(ValueError, match=r"is in use by process \d+"):
        RunLock(tmp_path)


def a_run(home, name: str, overrides: list[str]):
    folder = home / "runs" / "quickstart" / name
    (folder / ".hydra").mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 0\n")
    (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {text}\n" for text in overrides))
    return folder


def test_resume_names_a_run_by_folder_or_as_the_last(tmp_path, monkeypatch):
    monkeypatch.setenv("NCVC_HOME", str(tmp_path))
    old = a_run(tmp_path, "2026-01-01_00-00-00", ["experiment=quickstart", "seed=1", "+callbacks.mine.step=3"])
    new = a_run(tmp_path, "2026-01-02_00-00-00", ["experiment=quickstart", "seed=2", "resume=auto"])
    assert newest_run(tmp_path) == new
    assert taken_up(["resume=last"]) == ["experiment=quickstart", "seed=2", "resume=auto", f'hydra.run.dir="{new}"']
    assert taken_up([f"resume={old}", "seed=7", "callbacks.mine.step=9"]) == [
        "experiment=quickstart", "seed=7", "+callbacks.mine.step=9", "resume=auto", f'hydra.run.dir="{old}"',
    ]  # fmt: skip
    replay = taken_up(["replay=5"])
    assert "replay=5" in replay and f'hydra.run.dir="{new}"' in replay and "hydra.output_subdir=null" in replay


def test_other_command_lines_are_left_as_they_are():
    for arguments in (["experiment=quickstart"], ["experiment=quickstart", "resume=auto"], ["resume=null"]):
        assert taken_up(arguments) == arguments


def test_a_folder_without_a_run_is_told_with_the_cure(tmp_path, monkeypatch):
    monkeypatch.setenv("NCVC_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no run was started there"):
        taken_up([f"resume={tmp_path}"])
    with pytest.raises(FileNotFoundError, match="there is no run under"):
        taken_up(["replay=3"])
    with pytest.raises(ValueError, match=r"hydra\.sweep\.dir"):
        taken_up(["--multirun", f"resume={tmp_path}"])
