"""MeCab as an analyser (fugashi), lossless, with ipadic, unidic-lite, or any compiled dictionary in UTF-8.

What it does: words of a cleaned line by MeCab's `-Owakati`. MeCab drops white space and stops at NUL; such characters
(none is left in cleaned text) become words of their own, so that the words join to the line again.

What it costs: a third of Sudachi's time and 50 MB with ipadic, half and 120 MB with unidic-lite.
What it does not do: split modes.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ncvc.analyzers.files import sha256_of
from ncvc.morphology import installed_version, user_dictionary_hashes

PACKAGES = {"ipadic": "ipadic", "unidic-lite": "unidic_lite"}
"""Dictionary package -> module with the path of its folder in DICDIR."""

MAX_PART = 10_000
"""A part of a line that is analysed at once has at most so many characters; the lattice grows with it."""

# Sentence ends, as for Sudachi; white space, NUL and surrogates stand alone.
_SENTENCE = re.compile("[^。！？!?]+[。！？!?]*|[。！？!?]+")
_PARTS = re.compile(r"[^。！？!?\s\0\ud800-\udfff]+[。！？!?]*|[。！？!?]+|[\s\0]|[\ud800-\udfff]+")
_ALONE = re.compile(r"[\s\0\ud800-\udfff]")


def segment_parts(line: str, cut: Callable[[str], list[str]]) -> list[str]:
    """Words of any `line` from `cut`, which takes a sentence without white space, NUL and surrogates.

    None is empty and they join to `line`, whatever `cut` returns: what it leaves out becomes a word.
    """
    words: list[str] = []
    if len(line) <= MAX_PART and _ALONE.search(line) is None:  # a cleaned line
        for sentence in _SENTENCE.findall(line):
            words += cut(sentence)
        if "".join(words) == line and all(words):
            return words
        words.clear()
    for part in _PARTS.findall(line):
        if _ALONE.match(part):
            words.append(part)
            continue
        for start in range(0, len(part), MAX_PART):
            piece = part[start : start + MAX_PART]
            words += _filled(piece, cut(piece))
    return [word for word in words if word]


def _filled(text: str, found: list[str]) -> list[str]:
    """The words of `text` with what lies between them."""
    words, end = [], 0
    for word in found:
        start = text.find(word, end)
        if start < 0:
            break
        words += [text[end:start], word]
        end = start + len(word)
    return [*words, text[end:]]


def dictionary_folder(dictionary: str) -> tuple[Path, dict[str, str]]:
    """Folder of a compiled MeCab dictionary, and the part of an identity that names it.

    `dictionary` is a package (ipadic, unidic-lite) or a path. Raises `ValueError` and `ModuleNotFoundError`.
    """
    if dictionary in PACKAGES:
        version = installed_version(dictionary, f"analyzer.dictionary={dictionary}")
        import importlib

        folder = Path(importlib.import_module(PACKAGES[dictionary]).DICDIR)
        return folder, {"dictionary": dictionary, "dictionary_version": version}
    folder = Path(dictionary)
    if not (folder / "sys.dic").is_file():
        raise ValueError(
            f"analyzer.dictionary={dictionary!r} is no MeCab dictionary: set {' or '.join(PACKAGES)}, or a folder that "
            "holds sys.dic, matrix.bin, char.bin, unk.dic and dicrc"
        )
    return folder, {"dictionary": "files", "dictionary_sha256": sha256_of(folder)}


class MecabAnalyzer:
    """MeCab, sentence by sentence. `dictionary` ipadic, unidic-lite or a folder; `user_dictionaries` compiled on it."""

    def __init__(self, *, dictionary: str = "ipadic", user_dictionaries: Sequence[Path] = ()) -> None:
        version = installed_version("fugashi", "analyzer.name=mecab")
        folder, named = dictionary_folder(dictionary)
        self.identity = {"name": "mecab", **named, "version": version, **user_dictionary_hashes(user_dictionaries)}
        self._parse = _open(folder, user_dictionaries).parse

    def segment(self, line: str) -> list[str]:
        """Return the words of `line`: none is empty and `"".join(words) == line`."""
        return segment_parts(line, self._cut)

    def _cut(self, sentence: str) -> list[str]:
        return self._parse(sentence).split()

    def __reduce__(self) -> Any:
        raise TypeError("a MecabAnalyzer cannot be pickled; send its identity and call analyzer_from_identity there")


def _open(folder: Path, user_dictionaries: Sequence[Path]) -> Any:
    """A tagger that writes words with spaces between them; raises `ValueError` for files MeCab cannot use."""
    import fugashi

    arguments = f"-r /dev/null -Owakati -d {shlex.quote(str(folder))}"
    if user_dictionaries:
        joined = ",".join(str(path.absolute()) for path in user_dictionaries)
        if joined.count(",") >= len(user_dictionaries):
            raise ValueError(f"analyzer.user_dictionary={joined}: MeCab takes no comma in a path; rename the folder")
        arguments += f" -u {shlex.quote(joined)}"
    try:
        tagger = fugashi.GenericTagger(arguments)
    except RuntimeError as error:
        users = f" with analyzer.user_dictionary={joined}" if user_dictionaries else ""
        raise ValueError(
            f"MeCab cannot use the dictionary {folder}{users}: a file is truncated, or the user dictionary was built "
            f"on another dictionary; build it again for this one ({str(error).strip().splitlines()[0]})"
        ) from error
    for info in tagger.dictionary_info:
        if info["charset"].lower().replace("-", "") != "utf8":
            raise ValueError(
                f"analyzer.dictionary: {info['filename']} is in {info['charset']}; compile the dictionary in UTF-8"
            )
    return tagger


def mecab_identity(recorded: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """What the recorded analyser is here, a dictionary given by files taken as recorded, and the package of each
    version."""
    installed = {"name": "mecab", "version": installed_version("fugashi", "analyzer.name=mecab")}
    packages = {"version": "fugashi"}
    if "dictionary_sha256" in recorded:
        return installed | {"dictionary": "files", "dictionary_sha256": recorded["dictionary_sha256"]}, packages
    dictionary = recorded["dictionary"]
    if dictionary not in PACKAGES or "dictionary_version" not in recorded:
        raise ValueError(f"the recorded analyser identity names no MeCab dictionary: {dict(recorded)}")
    installed |= {
        "dictionary": dictionary,
        "dictionary_version": installed_version(dictionary, f"analyzer.dictionary={dictionary}"),
    }
    return installed, packages | {"dictionary_version": dictionary}
