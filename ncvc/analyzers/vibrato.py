"""Vibrato as an analyser: MeCab's model in Rust, lossless, with a compiled dictionary or the text of one.

What it does: words of a cleaned line. `dictionary` is a compiled file (as it comes, or compressed: .zst), or a folder
with matrix.def, char.def, unk.def and one or several csv files, as ipadic's source has them (UTF-8 or EUC-JP). User
dictionaries are csv files of the same form, added to a text dictionary as it is opened.

What it costs: a fourth of Sudachi's time; opening ipadic's text 1.2 s, with 73,000 names 1.5 s, 300 to 400 MB.
What it does not do: add user words to a compiled dictionary (its package cannot), or split modes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ncvc.analyzers.files import sha256_of
from ncvc.analyzers.mecab import segment_parts
from ncvc.morphology import installed_version, user_dictionary_hashes

LONGEST_UNKNOWN = 24  # characters of an unknown word, as in MeCab
_ZSTANDARD = b"\x28\xb5\x2f\xfd"


class VibratoAnalyzer:
    """Vibrato, sentence by sentence; see the module for `dictionary` and `user_dictionaries`."""

    def __init__(self, *, dictionary: str | None, user_dictionaries: Sequence[Path] = ()) -> None:
        version = installed_version("vibrato", "analyzer.name=vibrato")
        if dictionary is None:
            raise ValueError(
                "analyzer.dictionary is not set: the package vibrato brings none; set a compiled dictionary (.dic, "
                ".dic.zst), or a folder with matrix.def, char.def, unk.def and csv files, such as ipadic's source"
            )
        path = Path(dictionary)
        if not path.exists():
            raise FileNotFoundError(f"analyzer.dictionary={dictionary} does not exist; set vibrato's dictionary")
        self.identity = {
            "name": "vibrato",
            "dictionary": "files",
            "dictionary_sha256": sha256_of(path),
            "version": version,
            **user_dictionary_hashes(user_dictionaries),
        }
        self._cut = _open(path, user_dictionaries).tokenize_to_surfaces

    def segment(self, line: str) -> list[str]:
        """Return the words of `line`: none is empty and `"".join(words) == line`."""
        return segment_parts(line, self._cut)

    def __reduce__(self) -> Any:
        raise TypeError("a VibratoAnalyzer cannot be pickled; send its identity and call analyzer_from_identity there")


def _open(path: Path, user_dictionaries: Sequence[Path]) -> Any:
    """A tokenizer; raises `ValueError` for files vibrato cannot use."""
    import vibrato

    try:
        if path.is_dir():
            lexicon, matrix, characters, unknown = text_dictionary(path)
            lexicon += "".join(_lines(user) for user in user_dictionaries)
            return vibrato.Vibrato.from_textdict(lexicon, matrix, characters, unknown, max_grouping_len=LONGEST_UNKNOWN)
        if user_dictionaries:
            raise ValueError(
                "user words cannot be added to a compiled dictionary; set the folder of its text, or leave "
                "analyzer.user_dictionary=null"
            )
        return vibrato.Vibrato(_decompressed(path), max_grouping_len=LONGEST_UNKNOWN)
    except ValueError as error:
        users = f" with analyzer.user_dictionary={', '.join(map(str, user_dictionaries))}" if user_dictionaries else ""
        raise ValueError(f"analyzer.dictionary={path}{users}: vibrato cannot use it: {error}") from error


def text_dictionary(folder: Path) -> tuple[str, str, str, str]:
    """The csv files one after the other by name, matrix.def, char.def and unk.def of a text dictionary."""
    csv = sorted(folder.glob("*.csv"))
    missing = [name for name in ("matrix.def", "char.def", "unk.def") if not (folder / name).is_file()]
    if missing or not csv:
        raise ValueError(f"the folder lacks {', '.join([*missing, *([] if csv else ['*.csv'])])}")
    return (
        "".join(map(_lines, csv)),
        _text(folder / "matrix.def"),
        _text(folder / "char.def"),
        _text(folder / "unk.def"),
    )


def _text(path: Path) -> str:
    data = path.read_bytes()
    for encoding in ("utf-8-sig", "euc_jp"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError as error:
            refusal = error
    raise ValueError(f"{path.name} is neither UTF-8 nor EUC-JP ({refusal})")


def _lines(path: Path) -> str:
    text = _text(path)
    return text if text.endswith("\n") or not text else text + "\n"


def _decompressed(path: Path) -> bytes:
    data = path.read_bytes()
    if not data.startswith(_ZSTANDARD):
        return data
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{path} is compressed; run: pip install zstandard") from error
    try:
        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    except zstandard.ZstdError as error:
        raise ValueError(f"the compressed file is damaged ({error})") from error


def vibrato_identity(recorded: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """What the recorded analyser is here, its files taken as recorded, and the package of its version."""
    if "dictionary_sha256" not in recorded:
        raise ValueError(f"the recorded analyser identity lacks dictionary_sha256: {dict(recorded)}")
    installed = {
        "name": "vibrato",
        "dictionary": "files",
        "dictionary_sha256": recorded["dictionary_sha256"],
        "version": installed_version("vibrato", "analyzer.name=vibrato"),
    }
    return installed, {"version": "vibrato"}
