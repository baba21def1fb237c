"""The segmented store: what it holds, the same bytes for any number of workers, runs that end early."""

import errno
import fcntl
import gzip
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from ncvc import storage
from ncvc.corpus import segmented
from ncvc.corpus.cleaning import Cleaner
from ncvc.corpus.documents import Document
from ncvc.corpus.segmented import (
    SegmentedDocument,
    open_segmented,
    segment_source,
)
from ncvc.morphology import build_analyzer, sudachi_identity
from ncvc.storage import atomic_directory, require_free_space

SUBJECTS = ["患者", "七十二歳の男性", "母親", "主治医", "Ｂ病棟の看護師"]
FINDINGS = ["胸痛", "三十八度の発熱", "HbA1c 7.2%の高値", "急性心筋梗塞", "軽い頭痛", "下肢の浮腫"]
VERBS = ["を訴えた。", "について説明した。", "を認めず、退院となった。", "のため造影CT検査を行った。"]


def clinical_text(seed, sentences):
    draw = random.Random(seed)
    return "".join(
        draw.choice(SUBJECTS) + "は" + draw.choice(FINDINGS) + draw.choice(VERBS) + draw.choice(["", "\n"])
        for _ in range(sentences)
    )


def write_source(path, num_documents, *, sentences=20, rows=()):
    lines = [
        json.dumps({"id": f"d{number}", "text": clinical_text(number, sentences)}, ensure_ascii=False)
        for number in range(num_documents)
    ]
    path.write_text("\n".join([*lines, *rows]) + "\n", encoding="utf-8")
    return path


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def segment(source, output, **options):
    options = {"cleaner": Cleaner(), "analyzer_identity": sudachi_identity(), "progress": False, **options}
    return segment_source(source, output=output, **options)


def in_subprocess(code, *arguments, **options):
    """Start a script that may import ncvc and this file's settings."""
    preamble = """
        import sys
        from pathlib import Path
        from ncvc.corpus import segmented
        from ncvc.corpus.cleaning import Cleaner
        from ncvc.morphology import sudachi_identity
        def segment(source, output, workers=1):
            return segmented.segment_source(Path(source), output=Path(output), cleaner=Cleaner(),
                analyzer_identity=sudachi_identity(), workers=workers, progress=False)
    """
    script = textwrap.dedent(preamble) + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path / "source.jsonl", 30)


# ---- What the store holds ----


def test_the_store_holds_every_document_cleaned_and_cut_into_words(tmp_path, source):
    corpus = segment(source, tmp_path / "store")
    cleaner, analyzer = Cleaner(), build_analyzer()
    expected = []
    for row in map(json.loads, source.read_text(encoding="utf-8").splitlines()):
        lines = cleaner(row["text"]).split("\n")
        words = "\n".join(" ".join(analyzer.segment(line)) for line in lines)
        expected.append(SegmentedDocument(words=words, id=row["id"]))
    assert list(corpus.documents()) == expected
    assert list(corpus.texts()) == [document.words for document in expected]
    assert [document.cleaned for document in expected] == [
        cleaner(json.loads(row)["text"]) for row in source.read_text(encoding="utf-8").splitlines()
    ]
    assert expected[0].words.startswith("主治医 は 急性 心筋 梗塞 を 訴え た 。\nB 病棟 の 看護師 は")


def test_the_manifest_counts_documents_characters_and_bytes_and_names_what_made_them(tmp_path, source):
    corpus = segment(source, tmp_path / "store")
    cleaned = [document.cleaned for document in corpus.documents()]
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["documents"] == corpus.num_documents == 30
    assert manifest["characters"] == sum(map(len, cleaned))
    assert manifest["bytes"] == corpus.bytes == sum(len(text.encode()) for text in cleaned)
    assert manifest["cleaner"] == Cleaner().identity
    assert manifest["analyzer"] == sudachi_identity()
    assert manifest["problems"] == {}
    assert list(manifest["files"]) == ["documents-00000.jsonl"]


def test_what_was_left_out_is_counted_by_reason_with_at_most_20_samples(tmp_path):
    bad = ["{broken"] * 25 + ['{"text": ""}', '{"text": "https://example.org/x"}']
    source = write_source(tmp_path / "source.jsonl", 2, rows=bad)
    problems = segment(source, tmp_path / "store").manifest["problems"]
    assert {reason: entry["count"] for reason, entry in problems.items()} == {
        "broken JSON": 25,
        "empty text": 1,
        segmented.NOTHING_LEFT: 1,
    }
    assert len(problems["broken JSON"]["samples"]) == 20
    assert problems["broken JSON"]["samples"][0]["row"] == 3
    assert problems["empty text"]["samples"] == [
        {"file": "source.jsonl", "row": 28, "detail": "no character but white space"}
    ]


def test_a_long_store_is_cut_into_files_that_are_read_in_order(tmp_path, source, monkeypatch):
    whole = list(segment(source, tmp_path / "one").documents())
    monkeypatch.setattr(segmented, "_FILE_BYTES", 1)
    monkeypatch.setattr(segmented, "_BATCH_CHARACTERS", 2_000)
    several = segment(source, tmp_path / "several")
    assert len(several.manifest["files"]) > 3
    assert list(several.documents()) == whole


@pytest.mark.parametrize("suffix", ["jsonl", "folder"])
def test_the_bytes_are_the_same_for_any_number_of_workers(tmp_path, monkeypatch, suffix):
    rows = ["{broken", '{"text": "https://example.org/x"}']
    source = write_source(tmp_path / "source.jsonl", 40, rows=rows)
    if suffix == "folder":
        folder = tmp_path / "folder"
        folder.mkdir()
        (folder / "a.jsonl.gz").write_bytes(gzip.compress(source.read_bytes()))
        (folder / "b.txt").write_text(clinical_text(99, 300), encoding="utf-8")
        source = folder
    monkeypatch.setattr(segmented, "_SMALL_SOURCE_BYTES", 0)
    monkeypatch.setattr(segmented, "_BATCH_CHARACTERS", 1_500)
    for workers in (1, 2, 3):
        segment(source, tmp_path / f"store-{workers}", workers=workers)
    one, two, three = (contents(tmp_path / f"store-{workers}") for workers in (1, 2, 3))
    assert one == two == three
    assert "documents-00000.jsonl" in one


def test_workers_do_not_run_the_program_that_started_them(tmp_path):
    source = write_source(tmp_path / "source.jsonl", 4)
    script = tmp_path / "program_without_a_guard.py"
    script.write_text(
        textwrap.dedent(
            f"""
            from pathlib import Path
            from ncvc.corpus import segmented
            from ncvc.corpus.cleaning import Cleaner
            from ncvc.morphology import sudachi_identity
            print("imported")
            segmented._SMALL_SOURCE_BYTES = 0
            segmented.segment_source(Path({str(source)!r}), output=Path({str(tmp_path / "store")!r}),
                cleaner=Cleaner(), analyzer_identity=sudachi_identity(), workers=2, progress=False)
            """
        )
    )
    root = Path(segmented.__file__).parents[2]
    run = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (run.returncode, run.stdout) == (0, "imported\n"), run.stderr
    assert open_segmented(tmp_path / "store").num_documents == 4


def test_the_progress_bar_counts_the_bytes_of_the_source(tmp_path, source, capsys):
    segment(source, tmp_path / "store", progress=True)
    shown = capsys.readouterr().err
    assert "clean and segment: 100%" in shown
    assert "B/s" in shown


# ---- Refusals before any work ----


def test_an_analyzer_of_another_version_is_refused(tmp_path, source):
    identity = {**sudachi_identity(), "dictionary_version": "19990101"}
    with pytest.raises(ValueError, match="19990101"):
        segment(source, tmp_path / "store", analyzer_identity=identity)
    assert not (tmp_path / "store").exists()


def test_zero_workers_are_refused(tmp_path, source):
    with pytest.raises(ValueError, match=r"data\.workers=0"):
        segment(source, tmp_path / "store", workers=0)


def test_a_source_larger_than_the_disk_is_refused_before_reading(tmp_path):
    source = tmp_path / "source.txt"
    source.touch()
    os.truncate(source, min(shutil.disk_usage(tmp_path).free + (1 << 30), (1 << 43)))  # a hole: takes no space
    with pytest.raises(OSError, match=r"needs about [\d,]+ bytes in .*, but that disk has [\d,]+ free") as info:
        segment(source, tmp_path / "store")
    assert info.value.errno == errno.ENOSPC
    assert "NCVC_HOME" in str(info.value)
    assert not (tmp_path / "store").exists()


def test_the_free_space_of_a_folder_still_to_be_made_is_that_of_its_disk(tmp_path):
    require_free_space(tmp_path / "not" / "yet" / "made", 1, what="a test")
    with pytest.raises(OSError, match="a test needs about"):
        require_free_space(tmp_path / "not" / "yet" / "made", 1 << 60, what="a test")


@pytest.mark.parametrize("kind", ["folder of the user", "file", "other manifest"])
def test_an_output_that_ncvc_did_not_make_is_never_replaced(tmp_path, source, kind):
    output = tmp_path / "store"
    if kind == "file":
        output.write_text("mine")
    else:
        output.mkdir()
        (output / ("manifest.json" if kind == "other manifest" else "thesis.txt")).write_text('{"name": "mine"}')
    with pytest.raises(FileExistsError, match=r"store is in the way and will not be replaced"):
        segment(source, output)
    assert output.is_file() or len(list(output.iterdir())) == 1


def test_a_source_that_cleans_to_nothing_is_refused_with_the_reasons(tmp_path):
    source = tmp_path / "source.jsonl"
    source.write_text('{"text": "https://example.org/a"}\n{"text": "https://example.org/b"}\n')
    with pytest.raises(ValueError, match="no document is left after cleaning: 2 x nothing left"):
        segment(source, tmp_path / "store")
    assert list(tmp_path.iterdir()) == [source]


# ---- Runs that end early ----


class FailingCleaner(Cleaner):
    """The real cleaner, with a fault on one document."""

    def __call__(self, text):
        if "故障" in text:
            raise RuntimeError("a fault in the middle")
        return super().__call__(text)


def test_a_document_that_cannot_be_analysed_costs_only_itself(tmp_path):
    source = write_source(tmp_path / "source.jsonl", 3, rows=['{"id": "bad", "text": "故障"}'])
    manifest = segment(source, tmp_path / "store", cleaner=FailingCleaner()).manifest
    assert manifest["documents"] == 3
    assert manifest["problems"] == {
        segmented.NOT_ANALYSED: {
            "count": 1,
            "samples": [{"file": "bad", "row": None, "detail": "RuntimeError: a fault in the middle"}],
        }
    }


def test_a_failed_run_leaves_the_old_store_and_nothing_else(tmp_path, source):
    output = tmp_path / "store"
    segment(source, output)
    before = contents(output)
    source.write_text('{"text": "https://example.org/a"}\n')
    with pytest.raises(ValueError, match="no document is left"):
        segment(source, output)
    assert contents(output) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.jsonl", "store"]


def test_a_second_run_replaces_the_store_as_a_whole(tmp_path, source):
    output = tmp_path / "store"
    segment(source, output)
    write_source(source, 5)
    assert segment(source, output).num_documents == open_segmented(output, verify=True).num_documents == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.jsonl", "store"]
    assert sorted(contents(output)) == ["documents-00000.jsonl", "manifest.json"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_leaves_the_old_store_and_the_next_run_completes(tmp_path, workers):
    output = tmp_path / "store"
    source = write_source(tmp_path / "source.jsonl", 5)
    segment(source, output)
    before = contents(output)
    write_source(source, 4_000)  # some seconds of work
    process = in_subprocess(
        """
        segmented._BATCH_CHARACTERS = 5_000
        segmented._SMALL_SOURCE_BYTES = 0
        segment(sys.argv[1], sys.argv[2], workers=int(sys.argv[3]))
        """,
        source,
        output,
        workers,
        start_new_session=True,
    )
    partial = tmp_path / f"store.partial-{process.pid}"
    deadline = time.monotonic() + 60
    written = partial / "documents-00000.jsonl"
    while not (written.exists() and written.stat().st_size) and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert partial.is_dir() and not (partial / "manifest.json").exists()
    assert contents(output) == before
    deadline = time.monotonic() + 30
    while _session_members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _session_members(process.pid) == []  # no worker outlives the run
    write_source(source, 8)
    assert segment(source, output).num_documents == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.jsonl", "store"]


def _session_members(session):
    """Processes (zombies aside) of a session, by /proc; an empty list where there is no /proc."""
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            members.append(int(stat.parent.name))
    return members


def test_a_full_disk_is_told_plainly_and_loses_nothing(tmp_path):
    output = tmp_path / "store"
    source = write_source(tmp_path / "source.jsonl", 5)
    segment(source, output)
    before = contents(output)
    write_source(source, 200)
    process = in_subprocess(
        "segment(sys.argv[1], sys.argv[2])",
        source,
        output,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    message = errors.strip().splitlines()[-1]
    assert f"writing {output} failed: File too large" in message
    assert "set NCVC_HOME" in message
    assert contents(output) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.jsonl", "store"]


def test_an_interrupt_by_the_user_removes_the_unfinished_part(tmp_path):
    source = write_source(tmp_path / "source.jsonl", 4_000)
    process = in_subprocess(
        """
        import signal
        signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell inherit it ignored
        segmented._BATCH_CHARACTERS = 5_000
        segmented._SMALL_SOURCE_BYTES = 0
        segment(sys.argv[1], sys.argv[2], workers=2)
        """,
        source,
        tmp_path / "store",
        start_new_session=True,
    )
    written = tmp_path / f"store.partial-{process.pid}" / "documents-00000.jsonl"
    deadline = time.monotonic() + 60
    while not (written.exists() and written.stat().st_size) and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does on Ctrl-C: to the workers too
    _, errors = process.communicate(timeout=60)
    assert errors.strip().endswith("KeyboardInterrupt")
    assert errors.count("Traceback") == 1  # the program's own, none of a worker
    assert list(tmp_path.iterdir()) == [source]


def test_a_dead_worker_is_an_error_that_names_the_setting():
    batches = iter([([Document(text="本文。", id="a")], 1)] * 40)

    def kill_the_workers_on_the_way():
        for number, batch in enumerate(batches):
            if number == 8:
                for child in multiprocessing.active_children():
                    child.kill()
            yield batch

    results = segmented._analysed(kill_the_workers_on_the_way(), Cleaner(), sudachi_identity(), 2)
    with pytest.raises(RuntimeError, match=r"data\.workers=2 analysing processes died"):
        list(results)


def test_the_unfinished_folder_of_a_living_run_is_left_alone(tmp_path, source):
    living = tmp_path / "store.partial-123"
    living.mkdir()
    with (living / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        segment(source, tmp_path / "store")
        assert living.is_dir()
    segment(source, tmp_path / "store")
    assert not living.exists()


def test_an_old_store_moved_aside_by_a_killed_run_is_restored(tmp_path, source):
    output = tmp_path / "store"
    segment(source, output)
    before = contents(output)
    output.rename(tmp_path / "store.old-123")  # where a kill between the two renames leaves it
    with (
        pytest.raises(KeyError, match="on purpose"),
        atomic_directory(output, manifest_format=segmented.FORMAT),
    ):
        raise KeyError("on purpose")
    assert contents(output) == before
    assert not (tmp_path / "store.old-123").exists()


# ---- Opening ----


@pytest.fixture
def store(tmp_path, source):
    segment(source, tmp_path / "store")
    return tmp_path / "store"


def test_an_opened_store_equals_the_written_one(store):
    opened = open_segmented(store, verify=True)
    assert opened.num_documents == 30
    assert len(list(opened.documents())) == 30


def test_the_fingerprint_follows_the_words_and_not_the_problems(tmp_path, store, source):
    again = segment(source, tmp_path / "again")
    with source.open("a") as handle:
        handle.write("{broken\n")
    with_problem = segment(source, tmp_path / "with problem")
    write_source(source, 29)
    other = segment(source, tmp_path / "other")
    fingerprints = [c.fingerprint for c in (open_segmented(store), again, with_problem, other)]
    assert len(set(fingerprints[:3])) == 1
    assert fingerprints[3] != fingerprints[0]


def test_a_store_without_a_manifest_is_refused(store):
    (store / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match="not a finished folder of format ncvc-segmented"):
        open_segmented(store)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 3}', "\\xff"])
def test_a_manifest_that_is_none_is_refused(store, text):
    (store / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match="is not a manifest of ncvc"):
        open_segmented(store)


@pytest.mark.parametrize("change", [{"format": "other"}, {"version": 99}])
def test_a_store_of_another_format_or_version_is_refused(store, change):
    manifest = json.loads((store / "manifest.json").read_text(encoding="utf-8"))
    (store / "manifest.json").write_text(json.dumps({**manifest, **change}))
    with pytest.raises(ValueError, match="prepare the data again with this version"):
        open_segmented(store)


def test_a_truncated_missing_or_altered_file_is_refused_by_name(store):
    path = store / "documents-00000.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"documents-00000\.jsonl is truncated"):
        open_segmented(store)
    path.write_bytes(whole + b"\n")
    with pytest.raises(ValueError, match=r"documents-00000\.jsonl is longer"):
        open_segmented(store)
    path.write_bytes(b" " + whole[1:])
    with pytest.raises(ValueError, match=r"documents-00000\.jsonl was altered"):
        open_segmented(store)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"documents-00000\.jsonl is missing"):
        open_segmented(store)


def test_a_flipped_byte_far_from_the_edges_is_found_by_verify(store, monkeypatch):
    path = store / "documents-00000.jsonl"
    manifest = json.loads((store / "manifest.json").read_text(encoding="utf-8"))
    monkeypatch.setattr(storage, "_EDGE_BYTES", 100)
    manifest["files"][path.name] = storage.file_record(path)
    storage.write_manifest(store, manifest)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    open_segmented(store)  # 100 bytes at each edge are as they were
    with pytest.raises(ValueError, match="was altered"):
        open_segmented(store, verify=True)
