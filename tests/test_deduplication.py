"""Exact and near duplicates: against dictionaries, plain loops, datatrove's own stages, and planted copies."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import os
import pickle
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from ncvc.config import CONF_DIRECTORY
from ncvc.corpus.cleaning import Cleaner
from ncvc.corpus.duplicates import deduplication
from ncvc.corpus.duplicates.deduplication import (
    KEY_BYTES,
    DeduplicationSettings,
    decide_exact,
    exact_key,
    minhash_stages,
    near_duplicates,
    rows_to_remove,
)
from ncvc.corpus.duplicates.minhash import MinHasher, bucket_keys, estimated_similarity, sketches

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
NEAR = DeduplicationSettings(exact=True, minhash=True)
ALPHABET = [chr(code) for code in (*range(0x3042, 0x3094), *range(0x4E00, 0x4F00), *range(0x30A2, 0x30F4))] + [
    "、",
    "。",
]
relaxed = settings(deadline=None, max_examples=60)
PEAK_MEMORY = "int(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1]) / 1024"


def random_text(generator: random.Random, characters: int) -> str:
    return "".join(generator.choices(ALPHABET, k=characters))


def edited(text: str, share: float, generator: random.Random) -> str:
    """`text` with about `share` of its characters replaced, dropped, or followed by another, in equal parts."""
    out = []
    for character in text:
        kind = generator.choice(("replace", "drop", "add")) if generator.random() < share else "keep"
        out.append({"keep": character, "replace": "鵺", "drop": "", "add": character + "鵺"}[kind])
    return "".join(out)


def jaccard(first: str, second: str, ngram: int = 5) -> float:
    sets = []
    for text in (first, second):
        text = text.replace("\u2581", "").replace("\n", "")
        sets.append({text[place : place + ngram] for place in range(max(len(text) - ngram + 1, 1))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def run_stages(
    folder: Path, shards: list[list[str]], chosen: DeduplicationSettings = NEAR, order: int = 0
) -> list[set]:
    """Run the stages in this process, the tasks of each in an order drawn by `order`; removed rows per shard."""
    for name, chain, tasks in minhash_stages([], tasks=len(shards), work_folder=folder, settings=chosen):
        ranks = list(range(tasks))
        random.Random(order).shuffle(ranks)
        for rank in ranks:
            (step,) = pickle.loads(pickle.dumps(chain))
            documents = iter([SimpleNamespace(text=text) for text in shards[rank]]) if name == "signatures" else None
            assert step(documents, rank, tasks) is None
    return [set(rows_to_remove(folder, shard).tolist()) for shard in range(len(shards))]


# --- settings
def test_the_configuration_gives_the_defaults_and_none_gives_nothing():
    folder = CONF_DIRECTORY / "deduplication"
    assert asdict(NEAR) == OmegaConf.to_container(OmegaConf.load(folder / "default.yaml"))
    none = DeduplicationSettings(**OmegaConf.to_container(OmegaConf.load(folder / "none.yaml")))
    assert (none.exact, none.minhash) == (False, False)
    assert str(none) == "nothing is deduplicated"


@pytest.mark.parametrize(
    ("values", "words"),
    [({"buckets": 0}, "deduplication.buckets=0"), ({"similarity": 1.5}, "similarity=1.5"), ({"ngram": -1}, "ngram=-1")],
)
def test_settings_that_cannot_be_are_named(values, words):
    with pytest.raises(ValueError, match=words):
        DeduplicationSettings(exact=True, minhash=True, **values)


def test_the_similarity_that_buckets_imply_is_told():
    chosen = DeduplicationSettings(exact=False, minhash=True, buckets=14, hashes_per_bucket=8)
    assert chosen.meeting_similarity == pytest.approx(0.719, abs=5e-4)
    assert chosen.meeting_probability(0.8) == pytest.approx(0.924, abs=5e-4)
    assert "0.72" in str(chosen)


def test_pairs_meet_as_often_as_the_settings_say():
    generator = np.random.default_rng(0)
    first = generator.integers(0, 1 << 32, (4000, NEAR.num_hashes), dtype=np.uint64).astype(np.uint32)
    second = np.where(generator.random(first.shape) < 0.6, first, first[::-1])
    meets = (bucket_keys(first, buckets=20) == bucket_keys(second, buckets=20)).any(axis=1).mean()
    assert meets == pytest.approx(NEAR.meeting_probability(0.6), abs=0.03)


# --- exact
@relaxed
@given(st.text(), st.lists(st.sampled_from(["\u2581", "\n"]), max_size=5))
def test_white_space_alone_does_not_change_the_exact_key(text, blanks):
    spread = text
    for place, blank in enumerate(blanks):
        spread = spread[: 2 * place] + blank + spread[2 * place :]
    plain = "".join(character for character in text if character not in "\u2581\n")
    assert exact_key(spread) == exact_key(text) == hashlib.blake2b(plain.encode(), digest_size=16).digest()
    assert exact_key(text + "字") != exact_key(text)


def test_a_lone_surrogate_has_a_key_and_a_signature():
    assert len(exact_key("a\ud800")) == KEY_BYTES
    assert MinHasher(num_hashes=4, ngram=5, seed=1)(["熱\ud800が出る"]).shape == (1, 4)


@relaxed
@given(st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=12), max_size=5))
def test_the_first_of_equal_keys_stays(tmp_path_factory, shards):
    folder = tmp_path_factory.mktemp("keys")
    paths, expected, seen = [], [], set()
    for number, keys in enumerate(shards):
        paths.append(folder / f"{number}.keys")
        parts = [a.to_bytes(8, "little") + b.to_bytes(8, "big") for a, b in keys]
        paths[-1].write_bytes(b"".join(parts))
        expected.append([row for row, key in enumerate(parts) if key in seen or seen.add(key)])
    assert [rows.tolist() for rows in decide_exact(paths)] == expected


def test_a_torn_key_file_is_named(tmp_path):
    path = tmp_path / "00000.keys"
    path.write_bytes(b"x" * 17)
    with pytest.raises(ValueError, match=r"00000\.keys holds 17 bytes.*torn"):
        decide_exact([path])


@pytest.mark.slow
def test_ten_million_keys_are_decided_within_one_gibibyte(tmp_path):
    generator = np.random.default_rng(0)
    for number in range(10):
        keys = generator.integers(0, 5_000_000, (1_000_000, 2), dtype=np.uint64)
        keys[:, 1] = keys[:, 0] * np.uint64(0x9E3779B97F4A7C15)
        keys.tofile(tmp_path / f"{number}.keys")
    program = (
        "import sys; from pathlib import Path; from ncvc.corpus.duplicates.deduplication import decide_exact; "
        "rows = decide_exact([Path(p) for p in sys.argv[1:]]); "
        f"print(sum(map(len, rows)), {PEAK_MEMORY})"
    )
    paths = [str(tmp_path / f"{number}.keys") for number in range(10)]
    found = subprocess.run([sys.executable, "-c", program, *paths], capture_output=True, text=True, check=True)
    removed, mebibytes = found.stdout.split()
    distinct = len(np.unique(np.concatenate([np.fromfile(path, dtype="<u8")[::2] for path in paths])))
    assert int(removed) == 10_000_000 - distinct
    assert float(mebibytes) < 1024


# --- minima
def plain_minima(text: str, hasher: MinHasher, ngram: int, seed: int) -> list[int]:
    """The same law with Python's numbers, one n-gram at a time."""
    text = text.replace("\u2581", "").replace("\n", "")
    codes = [ord(character) for character in text]
    codes += [0] * (ngram - len(codes) if codes else 0)
    stream = b"".join(hashlib.blake2b(f"ncvc minhash {seed} {number}".encode()).digest() for number in range(200))
    numbers = [int.from_bytes(stream[4 * i : 4 * i + 4], "little") for i in range(2 * hasher.num_hashes)]
    multipliers, increments = numbers[: hasher.num_hashes], numbers[hasher.num_hashes :]
    hashes = set()
    for place in range(len(codes) - ngram + 1):
        value = 0
        for code in codes[place : place + ngram]:
            value = (value * 0x9E3779B97F4A7C15 + code) % 2**64
        value ^= value >> 32
        hashes.add((value * 0xFF51AFD7ED558CCD % 2**64) >> 32)
    pairs = zip(multipliers, increments, strict=True)
    return [min(((a | 1) * x + b) % 2**32 for x in hashes) if hashes else 2**32 - 1 for a, b in pairs]


@relaxed
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=30), max_size=6), st.integers(1, 7))
def test_minima_are_those_of_plain_arithmetic(texts, ngram):
    hasher = MinHasher(num_hashes=6, ngram=ngram, seed=3)
    assert hasher(texts).tolist() == [plain_minima(text, hasher, ngram, seed=3) for text in texts]


def test_minima_of_a_long_text_do_not_depend_on_its_pieces():
    generator = random.Random(1)
    hasher = MinHasher(num_hashes=2, ngram=5, seed=1)
    texts = [random_text(generator, size) for size in (65_536, 65_541, 131_080)]
    assert hasher(["短い文。", *texts])[1:].tolist() == [plain_minima(text, hasher, 5, seed=1) for text in texts]


def test_sketches_estimate_the_jaccard_similarity():
    generator = random.Random(2)
    hasher = MinHasher(num_hashes=120, ngram=5, seed=1)
    errors = []
    for _ in range(150):
        text = random_text(generator, 400)
        other = edited(text, generator.choice((0, 0.01, 0.03, 0.1)), generator)
        first, second = sketches(hasher([text, other]))
        errors.append(estimated_similarity(first, second) - jaccard(text, other))
    assert abs(np.mean(errors)) < 0.01
    assert np.std(errors) < 0.05  # sqrt(0.25 / 120) = 0.046 at most
    assert estimated_similarity(*sketches(hasher([random_text(generator, 400) for _ in range(2)]))) < 0.05


# --- near duplicates
def planted(generator: random.Random, *, documents: int, copies: int) -> list[tuple[int, str]]:
    originals = [(number, random_text(generator, generator.randint(150, 1500))) for number in range(documents)]
    chosen = generator.sample(originals, copies)
    rows = originals + [(n, edited(text, generator.choice((0, 0.005, 0.01, 0.02)), generator)) for n, text in chosen]
    generator.shuffle(rows)
    return rows


def test_planted_copies_are_found_and_the_first_of_each_stays(tmp_path):
    rows = planted(random.Random(4), documents=900, copies=400)
    shards = [rows[start::3] for start in range(3)]
    removed = run_stages(tmp_path, [[text for _, text in shard] for shard in shards])
    left = [[n for row, (n, _) in enumerate(shard) if row not in removed[s]] for s, shard in enumerate(shards)]
    assert set(itertools.chain(*left)) == set(range(900))  # no original is lost without its twin
    assert sum(map(len, removed)) >= 0.97 * 400
    for number, shard in enumerate(shards):
        for record in near_duplicates(tmp_path, number):
            kept = shards[record["kept_shard"]][record["kept_row"]]
            assert (record["kept_shard"], record["kept_row"]) < (number, record["row"])
            assert kept[0] == shard[record["row"]][0]
            assert abs(record["similarity"] - jaccard(kept[1], shard[record["row"]][1])) < 0.2


def test_order_of_tasks_and_cut_into_shards_change_nothing(tmp_path):
    texts = [text for _, text in planted(random.Random(5), documents=120, copies=80)]
    found = []
    for number, cuts in enumerate(([0, 200], [0, 70, 70, 71, 200], [0, 70, 70, 71, 200], range(0, 201, 8))):
        shards = [texts[start:end] for start, end in itertools.pairwise(cuts)]
        removed = run_stages(tmp_path / str(number), shards, order=number)
        found.append(sorted(start + row for start, rows in zip(cuts, removed, strict=False) for row in rows))
    assert found[0] == found[1] == found[2] == found[3] != []
    files = [
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.npy")}
        for name in ("1", "2")
    ]
    assert files[0] == files[1]


def test_what_is_removed_resembles_what_stays_even_along_a_chain(tmp_path):
    generator = random.Random(6)
    chain = [random_text(generator, 1000)]
    for step in range(19):  # each differs from the one before in 50 characters, from the first in ever more
        start = 50 * step
        chain.append(chain[-1][:start] + random_text(generator, 50) + chain[-1][start + 50 :])
    removed = run_stages(tmp_path, [chain])[0]
    assert 0 not in removed
    for record in near_duplicates(tmp_path, 0):
        assert jaccard(chain[record["row"]], chain[record["kept_row"]]) > 0.55
    kept = sorted(set(range(20)) - removed)
    assert len(kept) > 2
    assert all(jaccard(chain[a], chain[b]) < 0.85 for a, b in itertools.pairwise(kept))


def test_short_texts_are_repeated_only_when_equal_and_empty_ones_never(tmp_path):
    texts = [
        "はい",
        "",
        "はい",
        "はい。",
        "熱",
        "熱",
        "痛み",
        "",
        "\u2581\n",
        "は\u2581い",
        "発熱あり",
        "発熱なし",
        "発熱あり",
    ]
    assert run_stages(tmp_path, [texts, ["熱", ""], []]) == [{2, 5, 9, 12}, {0}, set()]


def test_no_documents_at_all_are_no_error(tmp_path):
    assert run_stages(tmp_path, [[], []]) == [set(), set()]


def test_many_equal_documents_cost_one_comparison_each(tmp_path):
    generator = random.Random(7)
    page = random_text(generator, 60)
    assert run_stages(tmp_path, [[page] * 3000, [page] * 2000]) == [set(range(1, 3000)), set(range(2000))]


def test_rows_are_refused_before_the_stages_are_complete(tmp_path):
    with pytest.raises(FileNotFoundError, match="not complete"):
        rows_to_remove(tmp_path, 0)


def test_documents_that_meet_are_those_of_datatroves_bucket_stage(tmp_path, monkeypatch):
    monkeypatch.setenv("LOGURU_LEVEL", "ERROR")
    from datatrove.pipeline.dedup import MinhashDedupBuckets
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.utils.hashing import HashConfig

    chosen = DeduplicationSettings(exact=False, minhash=True, buckets=4, hashes_per_bucket=3)
    rows = planted(random.Random(8), documents=150, copies=100)
    shards = [[text for _, text in rows[start : start + 50]] for start in range(0, 250, 50)]
    run_stages(tmp_path / "ours", shards, chosen)
    for shard, bucket in itertools.product(range(5), range(4)):
        records = np.zeros(50, dtype=[("key", "<u8"), ("row", "<u4")])
        records["key"] = np.load(deduplication._keys_path(tmp_path / "ours", shard))[bucket]
        records["row"] = np.arange(50)
        path = tmp_path / "signatures" / f"bucket_{bucket:03d}" / f"{shard:05d}.minhash.sig"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.sort(records, order=["key", "row"]).tofile(path)
    config = MinhashConfig(
        n_grams=5, num_buckets=4, hashes_per_bucket=1, hash_config=HashConfig(precision=64, hash_fc="sha1")
    )
    for bucket in range(4):
        stage = MinhashDedupBuckets(str(tmp_path / "signatures"), str(tmp_path / "pairs"), config=config)
        stage.run(None, bucket, 4)
        theirs = np.fromfile(tmp_path / "pairs" / f"{bucket:05d}_00.dups", dtype="<u4").reshape(-1, 4).astype(int)
        links = [(50 * a + b, 50 * c + d) for a, b, c, d in theirs.tolist()]
        pairs = np.load(deduplication._pairs_path(tmp_path / "ours", bucket))
        ours = list(zip((pairs >> 32).tolist(), (pairs & 0xFFFFFFFF).tolist(), strict=True))
        assert links
        assert components(links) == components(ours)
        assert all(first < second for first, second in ours)


def components(links: list[tuple[int, int]]) -> set[frozenset[int]]:
    member = {}
    for first, second in links:
        joined = member.get(first, frozenset([first])) | member.get(second, frozenset([second]))
        member.update(dict.fromkeys(joined, joined))
    return set(member.values())


@dataclass(frozen=True)
class ReadLines:
    """Pipeline step: the documents of shard `rank` (datatrove's own reader asks for one more package)."""

    folder: Path

    def __call__(self, data: None, rank: int, world_size: int) -> Iterator[Any]:
        from datatrove.data import Document

        with sorted(self.folder.glob("*.jsonl"))[rank].open(encoding="utf-8") as lines:
            for line in lines:
                yield Document(**json.loads(line))


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_stages_run_on_datatroves_executor(tmp_path, monkeypatch, workers):
    monkeypatch.setenv("LOGURU_LEVEL", "ERROR")
    from datatrove.executor import LocalPipelineExecutor

    rows = planted(random.Random(9), documents=60, copies=40)
    shards = [rows[:30], rows[30:31], rows[31:]]
    folder = tmp_path / "shards"
    folder.mkdir()
    for number, shard in enumerate(shards):
        lines = [json.dumps({"id": str(n), "text": text}, ensure_ascii=False) for n, text in shard]
        (folder / f"{number:05d}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    reading = [ReadLines(folder)]
    for name, chain, tasks in minhash_stages(reading, tasks=3, work_folder=tmp_path / "near", settings=NEAR):
        LocalPipelineExecutor(chain, tasks=tasks, workers=workers, logging_dir=str(tmp_path / "log" / name)).run()
        assert len(list((tmp_path / "log" / name / "completions").iterdir())) == tasks
    found = [set(rows_to_remove(tmp_path / "near", shard).tolist()) for shard in range(3)]
    assert found == run_stages(tmp_path / "here", [[text for _, text in shard] for shard in shards])


# --- real text
@pytest.fixture(scope="session")
def wiki() -> list[str]:
    path = SHARED / "general_text" / "wiki_ja.jsonl.gz"
    if not path.is_file():
        pytest.skip("needs ../shared/data")
    cleaner = Cleaner()
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [cleaner(json.loads(line)["text"]) for line in itertools.islice(lines, 300)]


def test_articles_are_not_taken_for_each_other_and_their_copies_are_found(tmp_path, wiki):
    generator = random.Random(10)
    pieces = [text[start : start + 1200] for text in wiki for start in range(0, len(text) - 200, 1200)]
    copies = {len(pieces) + n: place for n, place in enumerate(generator.sample(range(len(pieces)), 300))}
    texts = pieces + [edited(pieces[place], generator.choice((0, 0.01, 0.02)), generator) for place in copies.values()]
    removed = run_stages(tmp_path, [texts])[0]
    assert len(removed & set(copies)) >= 0.97 * len(copies)
    by_place = defaultdict(set)
    for record in near_duplicates(tmp_path, 0):
        by_place[jaccard(texts[record["row"]], texts[record["kept_row"]]) >= 0.6].add(record["row"])
    assert len(by_place[False]) <= 0.01 * len(removed)
    assert len(removed - set(copies)) <= 0.005 * len(pieces)


@pytest.mark.slow
def test_memory_does_not_grow_with_one_huge_document():
    program = (
        "from ncvc.corpus.duplicates.minhash import MinHasher; "
        "text = '患者は発熱と咳を主訴に来院した。' * 1_000_000; hasher = MinHasher(num_hashes=120, ngram=5, seed=1); "
        f"before = {PEAK_MEMORY}; hasher([text]); print({PEAK_MEMORY} - before, len(text))"
    )
    environment = {**os.environ, "PYTHONPATH": str(CONF_DIRECTORY.parent)}
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    mebibytes, characters = found.stdout.split()
    assert float(mebibytes) < 14 * int(characters) / 2**20  # the text's code points and their bytes, no hashes
