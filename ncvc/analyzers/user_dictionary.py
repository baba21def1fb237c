"""User dictionaries out of a lexicon, so that compound names stay one morpheme, for Sudachi, MeCab and vibrato.

What it does: `build_user_dictionary` compiles names for the installed system dictionary into a folder named by its
content (`manifest.json`, the dictionary), built once, whole or not at all, with the same bytes each time.
`whole_names` counts the names that stay one word in a sentence. Short everyday words are left out: names with fewer
than 3 characters (肺癌, 不安), and names of fewer than 5 hiragana (だるさ), which would cut words of ordinary text.
Names the system dictionary already knows are not: entries around them would outbid them (measured: 0.7 % fewer whole
names in mode A without them).

What it costs: 93,000 names in 9 s and 0.8 GB for Sudachi (in a program of its own), 1 s and 130 MB for MeCab.
What it does not do: rebuild a dictionary when the system dictionary is upgraded (opening it says so).
"""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ncvc.analyzers.files import USER_DICTIONARY, copy_name, sha256_of
from ncvc.analyzers.lexicon import Entry, LexiconSettings, read_lexicon
from ncvc.analyzers.mecab import dictionary_folder
from ncvc.morphology import ANALYZERS, DICTIONARIES, Analyzer, installed_version
from ncvc.settings import settings_from
from ncvc.storage import atomic_directory, check_file, file_record, hash_json, read_manifest, write_manifest

FORMAT, VERSION = "ncvc-user-dictionary", 1
CONTEXT = "患者は{}と診断された。"
# Measured on 93,000 names: 99.9 % stay whole with Sudachi, 99.7 % with ipadic. Negative costs make it worse (97 %):
# several cheap short entries beat one long one.
COSTS = {"sudachi": 5000, "mecab": 3000, "vibrato": 3000}
COST_RANGE = (-32_767, 32_767)
SUDACHI_CONTEXT_ID = 4786  # 名詞,固有名詞,一般 in Sudachi's dictionaries
IPADIC_CONTEXT_ID = 1288  # 名詞,固有名詞,一般 in ipadic, whose package holds no list of them
LONGEST_KEY = 255  # characters of a name; what Sudachi stores
_POS = ("名詞", "固有名詞", "一般")
_UNUSABLE = re.compile(r"[\s\0-\x1f\x7f\ud800-\udfff\\]")  # the compilers' csv has one row a line, and \u escapes
_HIRAGANA = re.compile("[ぁ-ゖー]+")
_SUDACHI_HEADER, _CREATED = b"SudachiBinaryDic", slice(24, 32)  # seconds since 1970, little-endian

_BUILD_SUDACHI = """
import json, sys
from sudachipy.sudachipy import build_user_dic
system, names, output = json.loads(sys.argv[1])
build_user_dic(system, [names], output, "ncvc")
"""
_BUILD_MECAB = """
import json, shlex, sys
import fugashi
folder, names, output = map(shlex.quote, json.loads(sys.argv[1]))
fugashi.build_dictionary(f"build -d {folder} -u {output} -f utf8 -t utf8 {names}")
"""


@dataclass(frozen=True)
class UserDictionary:
    """A built dictionary: its folder, the file that an analyser opens, and the manifest beside it."""

    folder: Path
    file: Path
    manifest: dict[str, Any]


def with_lexicon(
    analyzer: Mapping[str, Any], lexicon: Mapping[str, Any] | None, *, home: Path
) -> tuple[dict[str, Any], str]:
    """Settings of an analyser with the names of a lexicon (plain settings, or None) as words, and what was done.

    Reads the lexicon and builds the user dictionary under ``home``, or finds it built.
    """
    if lexicon is None:
        return dict(analyzer), ""
    settings = settings_from(LexiconSettings, lexicon, path="lexicon")
    built = build_user_dictionary(
        read_lexicon(settings).entries,
        directory=home / "lexicon",
        analyzer=analyzer.get("name", "sudachi"),
        dictionary=analyzer.get("dictionary"),
        cost=settings.cost,
        minimum_characters=settings.minimum_characters,
        minimum_hiragana=settings.minimum_hiragana,
    )
    others = analyzer.get("user_dictionary") or []
    held = [others] if isinstance(others, str | Path) else list(others)
    told = f"user dictionary  {built.folder}: {built.manifest['names']:,} names"
    return {**analyzer, "user_dictionary": [*map(str, held), str(built.folder)]}, told


def dictionary_names(
    entries: Iterable[Entry], *, minimum_characters: int = 3, minimum_hiragana: int = 5
) -> tuple[list[str], dict[str, int]]:
    """Names that get a word of their own, sorted, each once, and how many were left out by which rule."""
    names, short, hiragana, long, unusable = set(), 0, 0, 0, 0
    for surface in {entry.surface for entry in entries}:
        if _UNUSABLE.search(surface):
            unusable += 1
        elif len(surface) < minimum_characters:
            short += 1
        elif len(surface) < minimum_hiragana and _HIRAGANA.fullmatch(surface):
            hiragana += 1
        elif len(surface) > LONGEST_KEY:
            long += 1
        else:
            names.add(surface)
    return sorted(names), {"short": short, "short hiragana": hiragana, "too long": long, "unusable": unusable}


def build_user_dictionary(
    entries: Iterable[Entry],
    *,
    directory: Path,
    analyzer: str = "sudachi",
    dictionary: str | None = None,
    cost: int | None = None,
    minimum_characters: int = 3,
    minimum_hiragana: int = 5,
) -> UserDictionary:
    """Build, or find built, the user dictionary of `entries` in a folder of its own in `directory`.

    `dictionary` is the system dictionary as for `build_analyzer` (null: core for sudachi, ipadic for mecab; of
    vibrato's only left-id.def and right-id.def are read, ipadic's contexts are taken without). `cost` of an entry:
    null takes the measured one. Raises `ValueError` for no name, and for what the compiler refuses.
    """
    if analyzer not in ANALYZERS:
        raise ValueError(f"analyzer.name={analyzer!r} is not known; set analyzer.name to {', '.join(ANALYZERS)}")
    cost = COSTS[analyzer] if cost is None else cost
    if not COST_RANGE[0] <= cost <= COST_RANGE[1]:
        raise ValueError(f"lexicon.cost={cost}: must lie between {COST_RANGE[0]} and {COST_RANGE[1]}; 5000 is measured")
    names, left_out = dictionary_names(
        entries, minimum_characters=minimum_characters, minimum_hiragana=minimum_hiragana
    )
    if not names:
        raise ValueError(
            f"the lexicon has no name for a user dictionary (left out: {left_out}); name files with names of at least "
            f"{minimum_characters} characters"
        )
    system, built_on = _system_dictionary(analyzer, dictionary)
    rows = _rows(names, analyzer, built_on.get("dictionary"), system, cost)
    facts = {"analyzer": analyzer, **built_on, "cost": cost, "names": len(rows)}
    key = hash_json([FORMAT, VERSION, facts, rows])
    folder = Path(directory) / f"{analyzer}-{key[:16]}"
    built = _finished(folder)
    if built is not None:
        return built
    with atomic_directory(folder, manifest_format=FORMAT) as partial:
        output = partial / f"{USER_DICTIONARY}{'.csv' if analyzer == 'vibrato' else '.dic'}"
        _compile(rows, output, analyzer, system)
        named = output.rename(partial / copy_name(USER_DICTIONARY, sha256_of(output), output))
        files = {named.name: file_record(named)}
        manifest = {"format": FORMAT, "version": VERSION, **facts, "left_out": left_out, "key": key, "files": files}
        write_manifest(partial, manifest)
    return UserDictionary(folder, folder / named.name, manifest)


def _finished(folder: Path) -> UserDictionary | None:
    """What an earlier call built, if it is there and whole."""
    try:
        manifest = read_manifest(folder, manifest_format=FORMAT, version=VERSION)
        (name, record), *_ = manifest["files"].items()
        check_file(folder / name, record, verify=True)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return UserDictionary(folder, folder / name, manifest)


def user_dictionary_file(folder: Path, *, analyzer: str) -> Path:
    """The dictionary in a built folder, checked against its manifest.

    Raises `FileNotFoundError` and `ValueError` for a folder that holds none, one for another analyser or another
    system dictionary than the installed one, or a damaged one."""
    manifest = read_manifest(folder, manifest_format=FORMAT, version=VERSION)
    if manifest["analyzer"] != analyzer:
        raise ValueError(
            f"analyzer.user_dictionary={folder} is for {manifest['analyzer']}, and analyzer.name={analyzer}; build "
            f"one for {analyzer}, or set analyzer.name={manifest['analyzer']}"
        )
    package = manifest.get("dictionary_package")
    if package is not None:
        installed = installed_version(package, f"analyzer.user_dictionary={folder}")
        if installed != manifest["dictionary_version"]:
            raise ValueError(
                f"analyzer.user_dictionary={folder} was built on {package} {manifest['dictionary_version']}, and "
                f"{installed} is installed; build it again from the lexicon, or run: "
                f"pip install {package}=={manifest['dictionary_version']}"
            )
    (name, record), *_ = manifest["files"].items()
    check_file(folder / name, record, verify=True, cure="remove its folder and build it again from the lexicon")
    return folder / name


def _system_dictionary(analyzer: str, dictionary: str | None) -> tuple[Path | None, dict[str, str]]:
    """File or folder to compile for, and what of it decides the result."""
    if analyzer == "vibrato":
        return Path(dictionary) if dictionary and Path(dictionary).is_dir() else None, {}
    if analyzer == "mecab":
        folder, named = dictionary_folder(dictionary or "ipadic")
        package = {"dictionary_package": named["dictionary"]} if "dictionary_version" in named else {}
        return folder, named | package | {"builder": f"fugashi {installed_version('fugashi', 'analyzer.name=mecab')}"}
    dictionary = dictionary or "core"
    if dictionary not in DICTIONARIES:
        raise ValueError(f"analyzer.dictionary={dictionary!r} is not a Sudachi dictionary; set core, small or full")
    package_name = f"sudachidict-{dictionary}"
    version = installed_version(package_name, f"analyzer.dictionary={dictionary}")
    found = importlib.util.find_spec(f"sudachidict_{dictionary}")
    file = Path(str(found.origin)).parent / "resources" / "system.dic" if found is not None else None
    if file is None or not file.is_file():
        raise FileNotFoundError(
            f"{package_name} holds no system.dic; run: pip install --force-reinstall {package_name}"
        )
    return file, {
        "dictionary": dictionary,
        "dictionary_version": version,
        "dictionary_package": package_name,
        "builder": f"sudachipy {installed_version('sudachipy', 'analyzer.name=sudachi')}",
    }


def _rows(
    names: Sequence[str], analyzer: str, dictionary: str | None, folder: Path | None, cost: int
) -> list[list[str]]:
    """Rows of the compiler's csv. Sudachi looks up normalised keys (width, case): names with one key give one row."""
    if analyzer == "sudachi":
        from sudachipy import Dictionary

        normalize = Dictionary(dict=dictionary).text_normalizer().normalize
        ids, rows = [str(SUDACHI_CONTEXT_ID)] * 2, dict[str, list[str]]()
        for name in names:
            key = normalize(name)
            rows.setdefault(key, [key, *ids, str(cost), name, *_POS, *"***", "", name, *"*****"])
        return list(rows.values())
    left, right = _context_ids(folder)
    return [[name, str(left), str(right), str(cost), *_POS, *"***", name, *"**"] for name in names]


def _context_ids(folder: Path | None) -> tuple[int, int]:
    """Left and right context of a common proper noun: from the dictionary's lists, else ipadic's."""
    found = []
    for name in ("left-id.def", "right-id.def"):
        path = folder / name if folder is not None else None
        if path is None or not path.is_file():
            return IPADIC_CONTEXT_ID, IPADIC_CONTEXT_ID
        data = path.read_bytes()
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            text = data.decode("euc_jp", errors="replace")
        numbers = re.findall(rf"^(\d+) {','.join(_POS)}(?:,|$)", text, flags=re.MULTILINE)
        if not numbers:
            raise ValueError(f"{path} has no context of {','.join(_POS)}; use ipadic or unidic-lite")
        found.append(int(numbers[-1]))
    return found[0], found[1]


def _compile(rows: list[list[str]], output: Path, analyzer: str, system: Path | None) -> None:
    """Write the csv and compile it in a program of its own: the compilers take 1 GB, print, and may exit."""
    if analyzer == "vibrato":
        _write_csv(output, rows)
        return
    with tempfile.TemporaryDirectory() as folder:  # plain paths: the compilers know no quoting of their own
        names, built = Path(folder) / "names.csv", Path(folder) / "user.dic"
        _write_csv(names, rows)
        code = _BUILD_SUDACHI if analyzer == "sudachi" else _BUILD_MECAB
        done = subprocess.run(
            [sys.executable, "-c", code, json.dumps([str(system), str(names), str(built)])],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode != 0 or not built.is_file():
            lines = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
            raise ValueError(f"the user dictionary of {len(rows):,} names could not be compiled: {lines[-1]}")
        data = bytearray(built.read_bytes())
        if analyzer == "sudachi" and data.startswith(_SUDACHI_HEADER):
            data[_CREATED] = bytes(8)  # the time of building; without it the same names give the same bytes
        output.write_bytes(data)


def _write_csv(path: Path, rows: list[list[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle, lineterminator="\n").writerows(rows)


def whole_names(names: Iterable[str], *, analyzer: Analyzer, context: str = CONTEXT) -> tuple[int, list[str]]:
    """How many names stay one word where `context` has "{}", and those that do not, in their order."""
    before, marker, after = context.partition("{}")
    if not marker:
        raise ValueError(f"context={context!r}: has no {{}} where the name stands")
    count, broken = 0, []
    for name in names:
        position = 0
        for word in analyzer.segment(before + name + after):
            if position >= len(before):
                break
            position += len(word)
        if position == len(before) and word == name:
            count += 1
        else:
            broken.append(name)
    return count, broken
