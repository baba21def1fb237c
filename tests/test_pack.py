"""The verbs fit_tokenizer and pack, and finished stores as sources: nothing is made twice, nothing wrong is used."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, write_source

from ncvc import preparation
from ncvc.corpus.cleaning import Cleaner
from ncvc.corpus.segmented import open_segmented, segment_source
from ncvc.fit_tokenizer import fit_tokenizer
from ncvc.morphology import sudachi_identity
from ncvc.pack import pack
from ncvc.preparation import Source, is_segmented, prepare
from ncvc.shards import TokenFile
from ncvc.tokenizer import Tokenizer
from ncvc.tokenizer_training import Sample, train_on_stores


@pytest.fixture
def source(tmp_path) -> Path:
    return write_source(tmp_path / "text.jsonl")


@pytest.fixture
def fit(tmp_path, composed, source):
    def fitted(*overrides: str, home: str = "home") -> Path:
        first = [f"home={tmp_path / home}", "model.vocab_size=800", "workers=1"]
        return fit_tokenizer(composed(*first, *overrides, root="fit_tokenizer"))

    return fitted


@pytest.fixture
def packing(tmp_path, composed):
    def packed(source: Path, tokenizer: Path, *overrides: str, home: str = "home") -> Path:
        first = [f"home={tmp_path / home}", f"source={source}", f"tokenizer.directory={tokenizer}", "workers=1"]
        return pack(composed(*first, "validation_fraction=0.2", *overrides, root="pack"))

    return packed


@pytest.fixture
def store(tmp_path, source):
    def made(rules: str = "guarded", mode: str = "C", name: str = "store") -> Path:
        identity = sudachi_identity(mode=mode)
        cleaner = Cleaner(rules)
        segment_source(source, output=tmp_path / name, cleaner=cleaner, analyzer_identity=identity, progress=False)
        return tmp_path / name

    return made


def settings(**changes) -> dict:
    tokenizer = {"directory": None, "vocab_size": 800, "n_sub_iterations": 2, "sample_megabytes": 100.0}
    return {
        "cleaning": "guarded",
        "analyzer": {"name": "sudachi", "mode": "C", "dictionary": "core"},
        "tokenizer": tokenizer,
        "validation_fraction": 0.2,
        "text_field": "text",
        "split_seed": 0,
        "workers": 1,
        "progress": False,
        **changes,
    }


# --- fit_tokenizer ---
def test_the_tokenizer_is_the_one_that_training_would_make_and_its_measures_are_printed(fit, source, tmp_path, capsys):
    directory = fit(f"sources.wiki.path={source}")
    printed = capsys.readouterr().out
    tokenizer = Tokenizer.load(directory)
    words = {word for text in open_segmented(next((tmp_path / "home" / "corpus").glob("wiki-*"))).texts()
             for word in text.split()}  # fmt: skip
    assert f"{len(words)} distinct words" in printed and "peak memory of this process" in printed
    assert f"tokenizer        {directory}" in printed and re.search(r"unknown tokens +0\.0000%", printed)
    assert tokenizer.vocab_size == 800 and tokenizer.training["texts"] == 60
    chosen = {name: value for name, value in tokenizer.training.items() if name in
              ("shrinking_factor", "max_piece_length", "n_sub_iterations", "character_coverage")}  # fmt: skip
    same = {"directory": None, "vocab_size": 800, "sample_megabytes": 2000.0, **chosen}
    again = prepare([Source(name="wiki", path=str(source))], home=tmp_path / "home", **settings(tokenizer=same))
    assert again.tokenizer == directory


def test_sources_without_a_path_are_not_there_and_those_not_for_the_tokenizer_teach_nothing(fit, source, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"text": "鬱蒼とした森で麒麟を見た。" * 30}, ensure_ascii=False) + "\n")
    both = f"sources.medical.path={other}"
    kept = Tokenizer.load(fit(f"sources.wiki.path={source}", both))
    left = Tokenizer.load(fit(f"sources.wiki.path={source}", both, "+sources.medical.for_tokenizer=false"))
    assert any("麒" in piece for piece in kept.pieces) and not any("麒" in piece for piece in left.pieces)


def test_a_sample_bounds_the_text_that_is_read_and_takes_documents_from_everywhere(tmp_path, capsys):
    source = write_source(tmp_path / "many.jsonl", documents=400)
    made = segment_source(
        source, output=tmp_path / "many", cleaner=Cleaner(), analyzer_identity=sudachi_identity(), progress=False
    )
    sample = Sample([made], megabytes=made.bytes / 1e6 / 4)
    texts, every = list(sample), list(made.texts())
    assert sample.bytes <= made.bytes / 4 * 1.05 and len(texts) == 100
    places = [every.index(text) for text in texts]
    assert max(np.diff(places)) <= 4 and places[-1] >= 396
    assert list(sample) == texts
    assert list(Sample([made], megabytes=1000)) == every
    train_on_stores(
        [made],
        settings={"vocab_size": 800, "sample_megabytes": made.bytes / 1e6 / 4},
        cleaner=Cleaner(),
        analyzer=preparation.build_analyzer(),
        progress=False,
    )
    assert "(a sample of 25.00%)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], "no source is set"),
        (["sources=null"], "no source is set"),
        (["sources.wiki=a.jsonl"], "sources.wiki must be a group"),
        (["sources.wiki.path=nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["sources.wiki.path=SOURCE", "+sources.wiki.kind=scraped"], r"sources.wiki.kind='scraped'.*'real'"),
        (["sources.wiki.path=SOURCE", "+sources.wiki.wieght=1"], "sources.wiki.wieght: no such setting"),
        (["sources.wiki.path=SOURCE", "+sources.wiki.for_tokenizer=false"], "for_tokenizer=true"),
        (["sources.wiki.path=SOURCE", "tokenizer.sample_megabytes=0"], "tokenizer.sample_megabytes=0"),
        (["sources.wiki.path=SOURCE", "tokenizer.sample_megabytes=null"], "tokenizer.sample_megabytes=None"),
        (["sources.wiki.path=SOURCE", "model.vocab_size=300"], "tokenizer.vocab_size=300 is too small"),
        (["curated=last"], "holds no finished corpus"),
    ],
    ids=str,
)
def test_what_cannot_be_fitted_is_told_with_its_cure(fit, source, overrides, words):
    with pytest.raises((ValueError, OSError), match=words):
        fit(*(text.replace("SOURCE", str(source)) for text in overrides))


# --- pack ---
def test_tokens_are_those_of_the_tokenizer_and_the_figures_printed_are_those_of_the_files(fit, packing, source, capsys):
    directory = fit(f"sources.wiki.path={source}")
    capsys.readouterr()
    folder = packing(source, directory)
    printed, tokenizer = capsys.readouterr().out, Tokenizer.load(directory)
    raw = [json.loads(line)["text"] for line in source.read_text(encoding="utf-8").splitlines()]
    expected = {(tokenizer.begin_id, *tokenizer.encode(text), tokenizer.end_id) for text in raw}
    found = set()
    for side in ("train", "validation"):
        file = TokenFile.open(folder / side, verify=True)
        ends = [*file.document_starts.tolist()[1:], file.tokens]
        found |= {tuple(file.tokens_array[a:b].tolist()) for a, b in zip(file.document_starts, ends, strict=True)}
        assert f"{file.tokens:,} tokens" in printed and f"{file.documents} documents" in printed
        assert f"{file.characters / file.tokens:.3f} characters per token" in printed and str(folder / side) in printed
    assert found == expected


def test_a_store_and_its_raw_text_give_the_same_tokens_and_the_store_is_not_segmented_again(
    fit, packing, store, source, monkeypatch
):
    directory = fit(f"sources.wiki.path={source}")
    of_text = TokenFile.open(packing(source, directory, home="one") / "train")
    made = store()
    monkeypatch.setattr(preparation, "segment_source", lambda *_, **__: pytest.fail("segmented again"))
    of_store = TokenFile.open(packing(made, directory, home="two") / "train")
    assert of_store.content_fingerprint == of_text.content_fingerprint


def test_the_tokenizer_decides_cleaning_and_analyser(fit, packing, source):
    directory = fit(f"sources.wiki.path={source}", "cleaning=literal", "analyzer.mode=A")
    folder = packing(source, directory)
    record = json.loads((next((folder.parents[1] / "corpus").glob("source-*")) / "manifest.json").read_text())
    assert record["cleaner"]["rules"] == "literal" and record["analyzer"]["mode"] == "A"


@pytest.mark.parametrize(
    ("rules", "mode", "words"),
    [
        ("literal", "C", r"source source.*cleaning.rules: literal there, guarded here"),
        ("guarded", "A", r"analyzer.mode: A there, C here"),
    ],
)
def test_a_store_made_otherwise_is_refused_by_the_name_of_the_setting(fit, packing, store, source, rules, mode, words):
    directory = fit(f"sources.wiki.path={source}")
    with pytest.raises(ValueError, match=words):
        packing(store(rules, mode), directory)


def test_a_store_of_another_dictionary_or_with_a_user_dictionary_is_refused(fit, packing, store, source):
    directory, made = fit(f"sources.wiki.path={source}"), store()
    manifest = json.loads((made / "manifest.json").read_text())
    for key, value, words in (
        ("dictionary_version", "20200101", "dictionary_version: 20200101 there"),
        ("user_dictionary", "ab" * 32, "analyzer.user_dictionary: abab.* there, nothing here"),
    ):
        changed = {**manifest, "analyzer": {**manifest["analyzer"], key: value}}
        (made / "manifest.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=words):
            packing(made, directory)


def test_a_damaged_store_is_refused_and_never_read_as_raw_text(fit, packing, store, source):
    directory, made = fit(f"sources.wiki.path={source}"), store()
    documents, manifest = made / "documents-00000.jsonl", (made / "manifest.json").read_bytes()
    (made / "manifest.json").write_bytes(manifest[:50])
    with pytest.raises(ValueError, match=r"manifest.json"):
        packing(made, directory)
    (made / "manifest.json").write_bytes(manifest)
    documents.write_bytes(documents.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"documents-00000.jsonl"):
        packing(made, directory)
    documents.unlink()
    with pytest.raises((ValueError, OSError), match=r"documents-00000.jsonl"):
        packing(made, directory)


def test_a_folder_of_text_that_happens_to_hold_a_manifest_is_text(tmp_path, source):
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(source, folder / "text.jsonl")
    for content in ("{}", "[]", "not json", '{"format": "other"}', '{"format": ["ncvc-segmented"]}'):
        (folder / "manifest.json").write_text(content)
        assert not is_segmented(folder)
    (folder / "manifest.json").write_bytes(b"\xff\xfe")
    assert not is_segmented(folder) and not is_segmented(source) and not is_segmented(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["source=null"], "source is not set"),
        (["tokenizer.directory=null"], "tokenizer.directory is not set.*fit_tokenizer"),
        (["tokenizer.directory=nowhere"], "nowhere.*is missing"),
        (["name=../up"], "name='../up'"),
        (["name=''"], "name=''"),
        (["validation_fraction=1.5"], "validation_fraction=1.5"),
    ],
    ids=str,
)
def test_what_cannot_be_packed_is_told_with_its_cure(fit, packing, source, overrides, words):
    directory = fit(f"sources.wiki.path={source}")
    with pytest.raises((ValueError, OSError), match=words):
        packing(source, directory, *overrides)


def test_a_small_source_among_several_may_have_no_held_out_document(tmp_path, source):
    small = tmp_path / "small.jsonl"
    small.write_text(json.dumps({"text": "一つだけの文書である。"}, ensure_ascii=False) + "\n", encoding="utf-8")
    sources = [Source(name="large", path=str(source)), Source(name="small", path=str(small))]
    fraction = 0.05
    prepared = prepare(sources, home=tmp_path / "home", **settings(validation_fraction=fraction))
    assert set(prepared.train) == {"large", "small"} and set(prepared.validation) == {"large"}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "home" / "tokens").rglob("*")}
    assert prepare(sources, home=tmp_path / "home", **settings(validation_fraction=fraction)) == prepared
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "home" / "tokens").rglob("*")}
    given = settings(validation_fraction=fraction)["tokenizer"] | {"directory": str(prepared.tokenizer)}
    for together in ([sources[1]], [sources[1], Source(name="twin", path=str(small))]):
        with pytest.raises(ValueError, match="validation"):
            prepare(together, home=tmp_path / "home", **settings(validation_fraction=fraction, tokenizer=given))


def test_the_programs_run_from_the_command_line(tmp_path, source):
    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *command],
            capture_output=True,
            text=True,
            check=False,
            cwd=REPOSITORY,
            env={**os.environ, "NCVC_HOME": str(tmp_path / "home")},
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    printed = run("ncvc.fit_tokenizer", f"sources.wiki.path={source}", "model.vocab_size=800")
    directory = printed.partition("tokenizer.directory=")[2].split()[0]
    printed = run("ncvc.pack", f"source={source}", f"tokenizer.directory={directory}", "validation_fraction=0.2")
    assert "characters per token" in printed and "python -m ncvc.train data.source=" in printed
