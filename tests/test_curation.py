"""Curation: the output depends on the input alone, whatever ran it, killed it or came broken to it."""

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY, SENTENCES, program_environment, run_program

from ncvc.corpus.segmented import open_segmented
from ncvc.curation.corpus import open_curated
from ncvc.curation.pipeline import curate_corpus
from ncvc.curation.settings import curation_from, executor_from

ANALYZER = {"name": "sudachi", "mode": "C", "dictionary": "core"}
DEDUPLICATION = {"exact": True, "minhash": True}
LONG = "".join(SENTENCES)


def document(number: int) -> str:
    """A text that shares few five-character runs with the others: every sentence holds its own numbers and names."""
    words = [hashlib.sha256(f"{number} {place}".encode()).hexdigest() for place in range(6)]
    kana = ["".join(chr(0x3042 + 2 * (int(c, 16) % 40)) for c in word[:24]) for word in words]
    return "\n".join(
        f"{name}は{int(word[:6], 16)}番目の所見であり、{name[::-1]}を認めた。"
        for name, word in zip(kana, words, strict=True)
    )


def write_sources(folder: Path) -> dict[str, dict]:
    """Two small sources with every kind of drop in them; returns their settings."""
    folder.mkdir(parents=True, exist_ok=True)
    general = [{"id": f"g{number}", "text": document(number)} for number in range(40)]
    general[7]["text"] = general[3]["text"]  # the same text
    general[9]["text"] = general[4]["text"].replace("所見", "初見", 1)  # nearly the same
    general[11]["text"] = "http://example.jp/a https://example.jp/b"  # nothing left
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in general]
    lines[20:20] = [b"{not json", b'{"id": "n", "other": "x"}', b'{"text": "\xff\xfe"}', b'{"text": ""}']
    (folder / "general.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    notes = folder / "notes"
    notes.mkdir(exist_ok=True)
    rows = [
        {"id": f"n{number}", "text": document(1000 + number) + "\n電話は090-1234-5678まで。"} for number in range(20)
    ]
    rows[5]["text"] = general[2]["text"]  # the first source keeps it
    with gzip.open(notes / "a.jsonl.gz", "wt", encoding="utf-8") as handle:
        handle.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[:10])
    (notes / "b.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[10:]), "utf-8")
    return {"general": {"path": str(folder / "general.jsonl")}, "notes": {"path": str(notes), "domain": "medical"}}


def settings_of(sources: dict[str, dict], **changes: object):
    values = {
        "corpus": {"name": "small", "sources": sources},
        "cleaning": "guarded",
        "analyzer": ANALYZER,
        "deduplication": DEDUPLICATION,
        "contamination": None,
        "classifier": None,
        "shard_megabytes": 0.005,
        "certificate": True,
        **changes,
    }
    return curation_from(values)


def curated(sources: dict[str, dict], home: Path, *, executor: dict | None = None, **changes: object) -> Path:
    chosen = executor_from(executor or {"kind": "local", "workers": 1})
    return curate_corpus(settings_of(sources, **changes), executor=chosen, home=home, progress=False)


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def dropped(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "dropped.jsonl").open(encoding="utf-8")]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    return write_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def whole(sources, tmp_path_factory) -> Path:
    """The corpus as one process makes it."""
    return curated(sources, tmp_path_factory.mktemp("home"))


def test_every_row_is_kept_once_or_dropped_with_its_reason_file_and_row(whole, sources):
    kept = [document.id for name in sources for document in open_segmented(whole / "stores" / name).documents()]
    assert len(kept) == len(set(kept)) == 64 - 8
    gone = {(record["stage"], record["reason"]): record for record in dropped(whole)}
    assert gone["read", "broken JSON"]["file"] == "general.jsonl"
    assert gone["read", "broken JSON"]["row"] == 21
    assert gone["clean", "nothing left after cleaning"]["id"] == "g11"
    by_id = {record["id"]: record for record in dropped(whole) if record["stage"] == "deduplicate"}
    assert set(by_id) == {"g7", "g9", "n5"}
    assert by_id["g9"]["reason"] != by_id["g7"]["reason"]
    assert len(dropped(whole)) == 8


def test_the_manifest_counts_what_the_files_hold(whole):
    manifest = open_curated(whole, home=whole.parent).manifest
    for name, record in manifest["sources"].items():
        documents = list(open_segmented(whole / "stores" / name, verify=True).documents())
        assert record["documents"] == len(documents)
        assert record["characters"] == sum(len(document.cleaned) for document in documents)
    counted = sum(entry["documents"] for reasons in manifest["dropped"].values() for entry in reasons.values())
    assert counted == len(dropped(whole))


def test_two_workers_write_the_same_bytes(whole, sources, tmp_path):
    other = curated(sources, tmp_path, executor={"kind": "local", "workers": 2})
    assert contents(other) == contents(whole)


def test_a_finished_corpus_is_found_and_not_made_again(whole, sources):
    before = (whole / "manifest.json").stat().st_mtime_ns
    assert curated(sources, whole.parent.parent) == whole
    assert (whole / "manifest.json").stat().st_mtime_ns == before
    assert not list(whole.parent.glob(".*.work"))


def test_a_source_that_changes_while_it_is_read_is_refused_and_nothing_of_it_is_kept(sources, tmp_path, monkeypatch):
    from ncvc.curation import pipeline

    path = tmp_path / "changing.jsonl"
    path.write_bytes(Path(sources["general"]["path"]).read_bytes())
    run_stage = pipeline.run_stage

    def changing(stage, **settings):
        run_stage(stage, **settings)
        path.write_bytes(path.read_bytes() + b'{"text": "\xe8\xbf\xbd\xe8\xa8\x98"}\n')

    monkeypatch.setattr(pipeline, "run_stage", changing)
    with pytest.raises(ValueError, match="changed while it was read"):
        curated({"general": {"path": str(path)}}, tmp_path / "home")
    assert not list((tmp_path / "home" / "curated").iterdir())


def test_ctrl_c_ends_within_seconds_and_the_next_call_goes_on(sources, unbroken, tmp_path):
    words = command(tmp_path, sources, "executor.workers=2")
    running = subprocess.Popen(words, cwd=REPOSITORY, env=program_environment(tmp_path), stderr=subprocess.DEVNULL)
    while running.poll() is None and not list(tmp_path.glob("curated/.*/stages/refine/completions/*")):
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=20) != 0
    assert run_command(tmp_path, words).returncode == 0
    assert contents(finished_in(tmp_path)) == contents(unbroken)


def test_another_rule_makes_another_folder(whole, sources):
    assert curated(sources, whole.parent.parent, cleaning="literal") != whole


def test_a_source_that_yields_nothing_is_an_error_with_the_reasons(sources, tmp_path):
    (tmp_path / "empty.jsonl").write_bytes(b'{"body": "x"}\n{"body": "y"}\n')
    broken = {**sources, "empty": {"path": str(tmp_path / "empty.jsonl")}}
    with pytest.raises(ValueError, match=r"corpus.sources.empty.path=.*2 x no text field.*text_field"):
        curated(broken, tmp_path / "home")


def test_a_missing_source_is_named_by_its_own_setting(sources, tmp_path):
    missing = {**sources, "gone": {"path": str(tmp_path / "nowhere")}}
    with pytest.raises(FileNotFoundError, match=r"corpus\.sources\.gone\.path"):
        curated(missing, tmp_path / "home")


def test_a_path_that_is_not_set_is_asked_for_by_name():
    with pytest.raises(ValueError, match=r"corpus\.sources\.text\.path: needed and not set"):
        settings_of({"text": {"path": "???"}})


def test_every_problem_of_the_settings_is_told_at_once(sources):
    wrong = {"general": {**sources["general"], "kinds": "real"}, "notes": {"path": 3}}
    with pytest.raises(ValueError) as caught:
        settings_of(wrong, deduplication={"exactly": True})
    for part in (
        "corpus.sources.general.kinds",
        "did you mean kind",
        "corpus.sources.notes.path=3",
        "deduplication.exactly",
    ):
        assert part in str(caught.value)


def test_a_second_curation_of_the_same_corpus_is_refused_while_the_first_runs(sources, tmp_path):
    import fcntl

    first = curated(sources, tmp_path / "first")
    work = tmp_path / "home" / "curated" / f".{first.name}.work"
    work.mkdir(parents=True)
    with (work / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="a curation is running there already"):
            curated(sources, tmp_path / "home")


# --- broken off and taken up
def command(home: Path, sources: dict[str, dict], *overrides: str) -> list[str]:
    named = [f"+corpus.sources.{name}={{path: '{values['path']}'}}" for name, values in sources.items()]
    shape = ["corpus=single", "~corpus.sources.text", "corpus.name=small", *named, "shard_megabytes=0.005"]
    chosen = {word.partition("=")[0]: word for word in (*shape, "pack=false", *overrides)}  # the last of each key
    return [sys.executable, "-m", "ncvc.curate", *chosen.values()]


def run_command(home: Path, words: list[str], **environment: str) -> subprocess.CompletedProcess:
    settings = {"cwd": REPOSITORY, "env": program_environment(home) | environment, "timeout": 300, "check": False}
    return subprocess.run(words, capture_output=True, text=True, **settings)


def finished_in(home: Path) -> Path:
    (finished,) = (path.parent for path in home.glob("curated/*/manifest.json"))
    return finished


@pytest.fixture(scope="module")
def unbroken(sources, tmp_path_factory) -> Path:
    """The corpus as the program makes it with one worker and nothing in its way."""
    home = tmp_path_factory.mktemp("unbroken")
    done = run_command(home, command(home, sources, "executor.workers=1"))
    assert done.returncode == 0, done.stderr
    return finished_in(home)


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_curation_killed_at_any_moment_ends_with_the_bytes_of_an_unbroken_one(sources, unbroken, tmp_path, workers):
    environment = program_environment(tmp_path)
    words = command(tmp_path, sources, f"executor.workers={workers}")
    kills = 0
    for marks in (1, 9, 17):  # after so many finished tasks of all stages
        running = subprocess.Popen(words, cwd=REPOSITORY, env=environment, stderr=subprocess.DEVNULL)
        while running.poll() is None:
            if len(list(tmp_path.glob("curated/.*/stages/*/completions/*"))) >= marks:
                running.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.01)
        running.wait(timeout=120)
    done = run_command(tmp_path, words)
    assert done.returncode == 0, done.stderr
    assert kills
    assert contents(finished_in(tmp_path)) == contents(unbroken)


def test_a_worker_that_dies_ends_the_stage_by_name_and_the_next_call_goes_on(sources, unbroken, tmp_path):
    words = command(tmp_path, sources, "executor.workers=2")
    environment = {**program_environment(tmp_path), "NCVC_TEST_MARK": str(tmp_path)}
    running = subprocess.Popen(words, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True)
    while running.poll() is None and not list(tmp_path.glob("curated/.*/stages/refine/progress/*")):
        time.sleep(0.005)
    for worker in _marked(str(tmp_path)):
        if worker != running.pid and _has_opened(worker, "refine"):
            os.kill(worker, signal.SIGKILL)
    _, told = running.communicate(timeout=120)
    assert running.returncode == 1
    assert "a worker process died" in told and "the same command goes on" in told
    assert run_command(tmp_path, words).returncode == 0
    assert contents(finished_in(tmp_path)) == contents(unbroken)


def _has_opened(process: int, part: str) -> bool:
    folder = Path("/proc", str(process), "fd")
    return any(part in str(path.readlink()) for path in folder.iterdir() if path.is_symlink())


def test_no_worker_outlives_a_killed_curation(sources, tmp_path):
    running = subprocess.Popen(
        command(tmp_path, sources, "executor.workers=2"),
        cwd=REPOSITORY,
        env={**program_environment(tmp_path), "NCVC_TEST_MARK": str(tmp_path)},
        stderr=subprocess.DEVNULL,
    )
    while running.poll() is None and not list(tmp_path.glob("curated/.*/stages/*/completions/*")):
        time.sleep(0.02)
    running.kill()
    running.wait(timeout=60)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and (alive := _marked(str(tmp_path))):
        time.sleep(0.1)
    assert not alive


def _marked(mark: str) -> list[int]:
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                held = (process / "environ").read_bytes()
            except OSError:
                continue
            if f"NCVC_TEST_MARK={mark}".encode() in held:
                found.append(int(process.name))
    return found


# --- other executors
def test_ray_with_two_workers_writes_the_same_bytes(sources, tmp_path):
    """In two large shards: Ray takes two seconds to start a task."""
    pytest.importorskip("ray")
    shape = "shard_megabytes=0.1"
    done = run_command(
        tmp_path / "ray", command(tmp_path, sources, "executor=ray", "executor.gigabytes_per_cpu=1", shape)
    )
    assert done.returncode == 0, done.stderr
    here = run_command(tmp_path / "local", command(tmp_path, sources, "executor.workers=1", shape))
    assert here.returncode == 0, here.stderr
    assert contents(finished_in(tmp_path / "ray")) == contents(finished_in(tmp_path / "local"))


SBATCH = """#!/bin/bash
# runs an array job here and now, one task after the other, as sbatch would on nodes
script="${@: -1}"  # the options come first
last=$(grep -oP '(?<=--array=0-)[0-9]+' "$script" || echo 0)
if grep -q merge_stats "$script"; then echo "Submitted batch job 2"; exit 0; fi
export SLURM_NODELIST=here RUN_OFFSET=0
for task in $(seq 0 "$last"); do SLURM_ARRAY_TASK_ID=$task bash "$script" > /dev/null 2>&1; done
echo "Submitted batch job 1"
"""


@pytest.mark.slow
def test_slurm_array_jobs_write_the_same_bytes(sources, unbroken, tmp_path):
    """With a stand-in for the four programs of Slurm; the jobs it is given are run for real."""
    programs = tmp_path / "bin"
    programs.mkdir()
    srun = '#!/bin/bash\nwhile [[ "$1" == -* ]]; do [[ "$1" == -n ]] && shift; shift; done\nexec "$@"\n'
    for name, text in {
        "sbatch": SBATCH,
        "squeue": "#!/bin/bash\n",
        "scontrol": "#!/bin/bash\necho here\n",
        "srun": srun,
    }.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    words = command(tmp_path, sources, "executor=slurm", "executor.partition=cpu")
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = run_command(tmp_path, words, PATH=path)
    assert done.returncode == 0, done.stderr
    assert contents(finished_in(tmp_path)) == contents(unbroken)


# --- to tokens and training
def test_a_run_trains_on_a_curated_corpus_and_prepares_nothing_again(sources, tmp_path):
    small = ["tokenizer.vocab_size=1024", "validation_fraction=0.2"]
    words = [word for word in command(tmp_path, sources, *small) if word != "pack=false"]
    done = run_command(tmp_path, words)
    assert done.returncode == 0, done.stderr
    tokens = sorted((tmp_path / "tokens").iterdir())
    assert len(tokens) == 2
    assert all((folder / "certificate" / "manifest.json").is_file() for folder in tokens)
    folder = finished_in(tmp_path)
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert card["totals"]["documents"] == 56
    assert sum(entry["token_share"] for entry in card["sources"].values()) == pytest.approx(1.0)
    assert (folder / "card.md").is_file()
    trained = run_program(tmp_path, "null", f"data.corpus={folder}")
    assert trained.returncode == 0, trained.stderr
    assert sorted((tmp_path / "tokens").iterdir()) == tokens
