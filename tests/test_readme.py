"""The README: its commands run, its file map is true, its first page is there in both languages."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def test_the_two_commands_stand_in_both_languages():
    for command in (
        "pip install -e . && python -m ncvc.train experiment=quickstart",
        "pip install -e '.[test]' && pytest",
    ):
        assert commands().count(command) == 2


def test_every_file_of_the_map_exists_and_every_file_is_on_the_map():
    listed = set(re.findall(r"^\| `([^`]+)` \|", README, flags=re.MULTILINE))
    for name in listed:
        assert (REPOSITORY / name).exists(), name
    files = {
        path.relative_to(REPOSITORY).as_posix()
        for package in ("ncvc", "data_modules", "lit_modules")
        for path in (REPOSITORY / package).rglob("*.py")
        if path.name != "__init__.py"
    }
    missing = {name for name in files if not any(name == entry or name.startswith(entry) for entry in listed)}
    assert missing == set()


def test_linked_files_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (REPOSITORY / target).exists(), target


def test_no_placeholder_is_left():
    assert not re.search(r"@[A-Z]+@", README)


def test_the_commands_that_only_print_run():
    for command in commands():
        if "--cfg job" in command or "ncvc.bench plan" in command:
            arguments = command.replace("python", sys.executable, 1).split()
            subprocess.run(arguments, check=True, capture_output=True, cwd=REPOSITORY)


@pytest.mark.slow
def test_the_first_command_trains_a_model_that_beats_the_unigram_floor(tmp_path: Path):
    environment = {**os.environ, "NCVC_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "ncvc.train", "experiment=quickstart"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=REPOSITORY, env=environment)
    figures = {
        name: float(value)
        for name, value in re.findall(
            r"^(held-out bits per character).* ([\d.]+) after", done.stdout, flags=re.MULTILINE
        )
    }
    floor = float(re.search(r"unigram model of the same text\s+([\d.]+)", done.stdout)[1])
    assert figures["held-out bits per character"] < floor / 2
    model = re.search(r"model directory\s+(\S+)", done.stdout)[1]
    assert (Path(model) / "model.safetensors").is_file()
