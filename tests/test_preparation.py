"""Preparation: it builds what is missing and nothing else, and what is complete is never lost."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import write_source

from ncvc import preparation
from ncvc.preparation import CLINICAL_SAMPLES, Source, prepare
from ncvc.tokenizer import Tokenizer

TOKENIZER = {
    "directory": None,
    "vocab_size": 800,
    "shrinking_factor": 0.75,
    "max_piece_length": 16,
    "n_sub_iterations": 2,
    "character_coverage": 1.0,
    "sample_megabytes": 100.0,
}
SETTINGS = {
    "cleaning": "guarded",
    "analyzer": {"name": "sudachi", "mode": "C", "dictionary": "core"},
    "tokenizer": TOKENIZER,
    "validation_fraction": 0.2,
    "text_field": "text",
    "split_seed": 0,
    "workers": 1,
    "progress": False,
}


def products(home: Path) -> dict[str, int]:
    return {
        path.relative_to(home).as_posix(): path.stat().st_mtime_ns
        for path in home.rglob("*")
        if path.is_file() and path.name != ".preparing"
    }


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def source(tmp_path) -> Source:
    return Source(name="one", path=str(write_source(tmp_path / "one.jsonl")))


def test_a_second_call_builds_nothing_and_reads_no_source(tmp_path, source, monkeypatch):
    first = prepare([source], home=tmp_path / "home", **SETTINGS)
    before = products(tmp_path / "home")
    monkeypatch.setattr(preparation, "source_fingerprint", lambda *_, **__: pytest.fail("the source was read again"))
    assert prepare([source], home=tmp_path / "home", **SETTINGS) == first
    assert products(tmp_path / "home") == before


def test_a_changed_source_makes_new_products_and_keeps_the_old(tmp_path, source):
    first = prepare([source], home=tmp_path / "home", **SETTINGS)
    before = products(tmp_path / "home")
    write_source(Path(source.path), documents=70)
    second = prepare([source], home=tmp_path / "home", **SETTINGS)
    assert second.train["one"] != first.train["one"]
    assert before.items() - products(tmp_path / "home").items() <= {
        item for item in before.items() if ".fingerprints" in item[0]
    }


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({"tokenizer": {**TOKENIZER, "vocab_size": 900}}, ["corpus"]),
        ({"split_seed": 1}, ["corpus", "tokenizers"]),
        ({"validation_fraction": 0.3}, ["corpus", "tokenizers"]),
        ({"cleaning": "literal"}, []),
        ({"analyzer": {"name": "sudachi", "mode": "A", "dictionary": "core"}}, []),
    ],
    ids=str,
)
def test_a_changed_setting_rebuilds_only_what_it_decides(tmp_path, source, change, kept):
    prepare([source], home=tmp_path / "home", **SETTINGS)
    before = {room: names(tmp_path / "home" / room) for room in ("corpus", "tokenizers", "tokens")}
    prepare([source], home=tmp_path / "home", **{**SETTINGS, **change})
    after = {room: names(tmp_path / "home" / room) for room in before}
    assert [room for room in before if before[room] == after[room]] == kept


def test_only_chosen_sources_teach_the_tokenizer(tmp_path, source):
    other = Source(name="two", path=str(tmp_path / "two.jsonl"), for_tokenizer=False)
    text = json.dumps({"text": "鬱蒼とした森で麒麟を見た。" * 30}, ensure_ascii=False)
    Path(other.path).write_text(
        f"{text}\n" + text.replace("森", "林") + "\n" + text.replace("森", "山"), encoding="utf-8"
    )
    settings = {**SETTINGS, "validation_fraction": 0.35}
    prepared = prepare([source, other], home=tmp_path / "home", **settings)
    assert "麒" not in json.loads((prepared.tokenizer / "tokenizer.json").read_text())["model"]["vocab"].__str__()
    both = prepare([source, Source(name="two", path=other.path)], home=tmp_path / "home", **settings)
    assert "麒" in json.loads((both.tokenizer / "tokenizer.json").read_text())["model"]["vocab"].__str__()
    with pytest.raises(ValueError, match="for_tokenizer=true"):
        prepare([other], home=tmp_path / "home", **settings)


def test_a_given_tokenizer_is_used_as_it_is(tmp_path, source):
    made = prepare([source], home=tmp_path / "home", **SETTINGS).tokenizer
    settings = {**SETTINGS, "tokenizer": {**TOKENIZER, "directory": str(made)}}
    other = prepare([source], home=tmp_path / "elsewhere", **settings)
    assert other.tokenizer == made
    assert not (tmp_path / "elsewhere" / "tokenizers").exists()


def test_a_tokenizer_of_another_cleaner_is_refused_by_name(tmp_path, source):
    made = prepare([source], home=tmp_path / "home", **{**SETTINGS, "cleaning": "literal"}).tokenizer
    settings = {**SETTINGS, "tokenizer": {**TOKENIZER, "directory": str(made)}}
    with pytest.raises(ValueError, match="cleaner"):
        prepare([source], home=tmp_path / "home", **settings)


def test_the_bundled_text_is_a_source_by_its_name(tmp_path):
    prepared = prepare(
        [Source(name="source", path=CLINICAL_SAMPLES)],
        home=tmp_path / "home",
        **{**SETTINGS, "tokenizer": {**TOKENIZER, "vocab_size": 4000}, "workers": 2},
    )
    assert Tokenizer.load(prepared.tokenizer).vocab_size == 4000
    assert json.loads((prepared.train["source"] / "manifest.json").read_text())["documents"] > 3000


PROGRAM = """
import json, sys
from pathlib import Path
from ncvc.preparation import Source, prepare
source, home, settings = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
print(json.dumps(str(prepare([Source(name="one", path=source)], home=home, **settings))))
"""


def start(source: Source, home: Path) -> subprocess.Popen:
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, source.path, str(home), json.dumps(SETTINGS)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_processes_that_start_together_build_once(tmp_path, source):
    running = [start(source, tmp_path / "home") for _ in range(3)]
    printed = {process.communicate(timeout=120)[0].splitlines()[-1] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(printed) == 1
    assert len(names(tmp_path / "home" / "tokens")) == 1


@pytest.mark.parametrize("delay", [0.3, 0.6, 0.9, 1.2])
def test_a_killed_preparation_is_taken_up_by_the_next(tmp_path, delay):
    source = Source(name="one", path=str(write_source(tmp_path / "one.jsonl", documents=600)))
    process = start(source, tmp_path / "home")
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = prepare([source], home=tmp_path / "home", **SETTINGS)
    fresh = prepare([source], home=tmp_path / "fresh", **SETTINGS)
    for side in ("train", "validation"):
        ours, theirs = (json.loads((getattr(p, side)["one"] / "manifest.json").read_text()) for p in (again, fresh))
        assert ours["documents"] == theirs["documents"]
        assert ours["characters"] == theirs["characters"]
    left = [path.name for path in (tmp_path / "home").rglob("*") if ".partial" in path.name or ".old-" in path.name]
    assert left == []
