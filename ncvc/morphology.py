"""Words of one cleaned line, by a morphological analyser (R18, R29).

What it does: an `Analyzer` cuts a line into words whose concatenation is the line again, whatever the line
holds (very long lines, symbols the dictionary does not know, lone surrogates). `identity` names everything
that decides where the cuts fall; the tokenizer stores it and refuses another one (R36). Three analysers: sudachi
(here, the default), mecab (`mecab_analyzer`) and vibrato (`vibrato_analyzer`), each with user dictionaries, so that
names of a lexicon stay whole (`user_dictionary`).

What it costs: the speed of a plain SudachiPy loop over sentences that takes the surface strings (2 to 4 MB
of UTF-8 per second and core), 50 ms to open the dictionary, and about 200 MB of memory-mapped dictionary
shared between processes. MeCab and vibrato are 3 to 4 times as fast.

What it does not do: clean text, handle "\\n" specially (the caller splits lines), share one analyser between
threads (Sudachi raises; build one per thread), or pickle one (rebuild it from its `identity` with
`analyzer_from_identity`)."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ncvc.analyzers.files import USER_DICTIONARY, analyzer_files, find_by_hash, hashes_of, remember_files, sha256_of

ANALYZERS = ("sudachi", "mecab", "vibrato")
SPLIT_MODES = ("A", "B", "C")
DICTIONARIES = ("core", "small", "full")
MAX_USER_DICTIONARIES = 14  # of Sudachi

# One call of Sudachi takes at most 49,149 bytes of UTF-8, and at most 65,535 bytes after its own
# normalisation, which can grow one character to 33 bytes (measured on SudachiPy 0.7.0). 12,000 characters of
# at most 4 bytes meet the first limit always; the second is met by halving on refusal.
MAX_CHARACTERS_PER_CALL = 12_000
# A Sudachi tokenizer never shrinks its lattice and clears all of it at each call: after one sentence of
# 40,000 characters every later call ran at 60 % of its speed (measured). Longer sentences than this go to a
# second tokenizer, so that the one for ordinary sentences stays fast.
LONG_SENTENCE = 1_000
KEPT_SENTENCES, KEPT_SENTENCE_LENGTH = 50_000, 32
_TOO_LONG = "Input is too long"
_SENTENCE = re.compile("[^。！？!?]+[。！？!?]*|[。！？!?]+")
_SURROGATES = re.compile("[\ud800-\udfff]|[^\ud800-\udfff]+")
_CUT_AFTER = "、▁,;)」 "


@runtime_checkable
class Analyzer(Protocol):
    """Cuts a cleaned line into words. One object serves one thread of one process."""

    identity: dict[str, str]

    def segment(self, line: str) -> list[str]:
        """Return the words of `line`: none is empty and `"".join(words) == line`."""
        ...


def sudachi_identity(
    *, mode: str = "C", dictionary: str = "core", user_dictionaries: Sequence[Path] = ()
) -> dict[str, str]:
    """Describe the installed Sudachi (package and dictionary versions) without opening its dictionary.

    User dictionaries are named by their sha256, joined by a comma; without any the key is absent. Raises
    `ValueError` for an unknown mode or dictionary and `ModuleNotFoundError` when a package is not installed."""
    if mode not in SPLIT_MODES:
        raise ValueError(
            f"analyzer.mode={mode!r} is not a Sudachi split mode; set A, B or C (C keeps the longest words)"
        )
    if dictionary not in DICTIONARIES:
        raise ValueError(f"analyzer.dictionary={dictionary!r} is not a Sudachi dictionary; set core, small or full")
    return {
        "name": "sudachi",
        "mode": mode,
        "dictionary": dictionary,
        "dictionary_version": installed_version(f"sudachidict-{dictionary}", f"analyzer.dictionary={dictionary}"),
        "version": installed_version("sudachipy", "analyzer.name=sudachi"),
        **user_dictionary_hashes(user_dictionaries),
    }


def user_dictionary_hashes(paths: Sequence[Path]) -> dict[str, str]:
    """The part of an identity that names user dictionaries; empty without any."""
    return {"user_dictionary": ",".join(map(sha256_of, paths))} if paths else {}


def installed_version(package: str, setting: str) -> str:
    """Version of an installed package; raises `ModuleNotFoundError` with the setting that needs it and the cure."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise ModuleNotFoundError(
            f"{setting} needs the package {package!r}, which is not installed; run: pip install {package}"
        ) from error


class SudachiAnalyzer:
    """Sudachi, sentence by sentence. `mode` A, B or C; `dictionary` core, small or full; at most 14 compiled
    `user_dictionaries`, whose words all modes keep whole.

    The fields `pos` and `normalized_form` are loaded though only surfaces are returned: without them
    Sudachi's rule that joins digits into one number does not run and the segmentation changes (measured: 318
    of 1,174 documents with no field, 0 with these two)."""

    def __init__(self, *, mode: str = "C", dictionary: str = "core", user_dictionaries: Sequence[Path] = ()) -> None:
        self.identity = sudachi_identity(mode=mode, dictionary=dictionary, user_dictionaries=user_dictionaries)
        from sudachipy import Morpheme

        opened = _open_sudachi(dictionary, user_dictionaries)
        fields = {"pos", "normalized_form"}
        self._tokenize = opened.tokenizer(mode=mode, fields=fields).tokenize
        self._tokenize_long = opened.tokenizer(mode=mode, fields=fields).tokenize
        self._surface = Morpheme.surface
        self._joined = _JoinedSentences(self._join)

    def segment(self, line: str) -> list[str]:
        """Return the words of `line`: none is empty and `"".join(words) == line`. Any length and any
        character is accepted."""
        words: list[str] = []
        surface = self._surface
        for sentence in _SENTENCE.findall(line):
            tokenize = self._tokenize if len(sentence) <= LONG_SENTENCE else self._tokenize_long
            try:
                words += map(surface, tokenize(sentence))
            except Exception as error:
                words += self._segment_by_parts(sentence, error)
        # '…' is normalised to '...' inside Sudachi and comes back as one full and two empty morphemes.
        return [word for word in words if word] if "" in words else words

    def segment_joined(self, line: str) -> str:
        """Return the words of `line` joined by one space, as `" ".join(segment(line))`, with fewer Python objects.

        Sudachi writes the string of a sentence itself, as fast as it analyses (a list of words costs a tenth more), and
        short sentences, which recur (headings, menus, answers, findings), are remembered.
        """
        if " " in line:  # would be taken for a boundary
            return " ".join(self.segment(line))
        return " ".join(map(self._joined.__getitem__, _SENTENCE.findall(line)))

    def _join(self, sentence: str) -> str:
        tokenize = self._tokenize if len(sentence) <= LONG_SENTENCE else self._tokenize_long
        try:
            words = str(tokenize(sentence))
        except Exception as error:
            return " ".join(self._segment_by_parts(sentence, error))
        # Empty morphemes (see segment) leave several spaces.
        empty = "  " in words or words[:1] == " " or words[-1:] == " "
        return " ".join(filter(None, words.split(" "))) if empty else words

    def _segment_by_parts(self, sentence: str, refusal: Exception) -> list[str]:
        """Segment what Sudachi refused whole: lone surrogates stand alone, long text is cut; any other
        refusal is raised again."""
        if isinstance(refusal, UnicodeEncodeError):
            words: list[str] = []
            for part in _SURROGATES.findall(sentence):
                words += [part] if "\ud800" <= part <= "\udfff" else self.segment(part)
            return words
        if _TOO_LONG not in str(refusal) or len(sentence) < 2:
            raise refusal
        limit = min(MAX_CHARACTERS_PER_CALL, (len(sentence) + 1) // 2)
        words, start = [], 0
        while start < len(sentence):
            end = _cut(sentence, start, start + limit)
            words += self.segment(sentence[start:end])
            start = end
        return words

    def __reduce__(self) -> Any:
        raise TypeError(
            "a SudachiAnalyzer cannot be pickled: its dictionary is memory-mapped; "
            "send its identity and call analyzer_from_identity there"
        )


class _JoinedSentences(dict[str, str]):
    """Sentence -> its words joined; short ones are kept, at most `KEPT_SENTENCES` of them (20 MB)."""

    def __init__(self, join: Callable[[str], str]) -> None:
        super().__init__()
        self._join = join

    def __missing__(self, sentence: str) -> str:
        words = self._join(sentence)
        if len(sentence) <= KEPT_SENTENCE_LENGTH:
            if len(self) >= KEPT_SENTENCES:
                self.clear()
            self[sentence] = words
        return words


def _cut(text: str, start: int, end: int) -> int:
    """Return where to end a part of at most `end - start` characters: after the last mark or space of its
    last eighth, else at `end`."""
    if end >= len(text):
        return len(text)
    earliest = end - (end - start) // 8
    best = max(text.rfind(mark, earliest, end) for mark in _CUT_AFTER)
    return best + 1 if best >= 0 else end


def _open_sudachi(dictionary: str, user_dictionaries: Sequence[Path]) -> Any:
    """Open the installed dictionary with user dictionaries; raises `ValueError` for one that cannot be used."""
    from sudachipy import Config, Dictionary
    from sudachipy.errors import SudachiError

    if not user_dictionaries:
        return Dictionary(dict=dictionary)
    names = ", ".join(map(str, user_dictionaries))
    if len(user_dictionaries) > MAX_USER_DICTIONARIES:
        raise ValueError(
            f"analyzer.user_dictionary names {len(user_dictionaries)} files; Sudachi takes at most "
            f"{MAX_USER_DICTIONARIES}: build one dictionary from all the lexicon's files"
        )
    try:
        return Dictionary(config=Config(user=[str(path.absolute()) for path in user_dictionaries]), dict=dictionary)
    except SudachiError as error:
        if "not compatible with the system dictionary" in str(error):
            versions = re.search(r"expected signature: (\S+?), actual reference: (\S+?)\)", str(error))
            found = f" (built on {versions[2]}, installed is {versions[1]})" if versions else ""
            raise ValueError(
                f"analyzer.user_dictionary={names}: a user dictionary works only with the system dictionary it was "
                f"built on{found}; build it again from the lexicon with the installed sudachidict-{dictionary}, or "
                "install the version it was built on"
            ) from error
        raise ValueError(
            f"analyzer.user_dictionary={names}: not a Sudachi user dictionary, or truncated ({error}); build it again"
        ) from error


def build_analyzer(
    name: str = "sudachi",
    *,
    mode: str | None = None,
    dictionary: str | None = None,
    user_dictionary: str | Path | list[str] | None = None,
) -> Analyzer:
    """Build an analyser: sudachi, mecab or vibrato.

    `mode` is Sudachi's split mode (null: C, the longest words); `dictionary` is core, small or full for sudachi (null:
    core), ipadic, unidic-lite or the path of a dictionary folder for mecab (null: ipadic), and the path of a compiled
    dictionary or of a text dictionary's folder for vibrato. `user_dictionary` is a file or a folder written by
    `user_dictionary.build_user_dictionary`, or a list of them. Raises `ValueError` for what cannot be, and
    `ModuleNotFoundError` with its cure for a package that is not installed."""
    if name not in ANALYZERS:
        raise ValueError(f"analyzer.name={name!r} is not known; set analyzer.name to sudachi, mecab or vibrato")
    given = [user_dictionary] if isinstance(user_dictionary, str | Path) else list(user_dictionary or ())
    paths = [_user_dictionary_file(Path(path), name) for path in given]
    if name != "sudachi" and mode is not None:
        raise ValueError(f"analyzer.mode={mode!r}: only sudachi has split modes; set analyzer.mode=null for {name}")
    analyzer: Analyzer
    if name == "sudachi":
        analyzer = SudachiAnalyzer(mode=mode or "C", dictionary=dictionary or "core", user_dictionaries=paths)
    elif name == "mecab":
        from ncvc.analyzers.mecab import MecabAnalyzer

        analyzer = MecabAnalyzer(dictionary=dictionary or "ipadic", user_dictionaries=paths)
    else:
        from ncvc.analyzers.vibrato import VibratoAnalyzer

        analyzer = VibratoAnalyzer(dictionary=dictionary, user_dictionaries=paths)
    if paths or (dictionary and "dictionary_sha256" in analyzer.identity):
        remember_files([*paths, *([Path(dictionary)] if dictionary and Path(dictionary).exists() else [])])
    return analyzer


def _user_dictionary_file(path: Path, name: str) -> Path:
    """The dictionary file that `path` is, or that the folder `path` of a built user dictionary holds, checked."""
    from ncvc.analyzers.user_dictionary import user_dictionary_file

    if path.is_dir():
        return user_dictionary_file(path, analyzer=name)
    if not path.is_file():
        raise FileNotFoundError(
            f"analyzer.user_dictionary={path} does not exist; set the file or folder of a user dictionary, or null"
        )
    return path


def check_identity(recorded: Mapping[str, str], *, files_folder: Path | None = None) -> None:
    """Raise `ValueError` unless the analyser installed here is the recorded one (R36: another version cuts
    words elsewhere), and the files it names by hash are found, in `files_folder` where one is given."""
    name = recorded.get("name")
    if name not in ANALYZERS:
        raise ValueError(f"the recorded analyser is {name!r}; this version of ncvc has {', '.join(ANALYZERS)}")
    needed = {"sudachi": ("mode", "dictionary", "dictionary_version", "version")}.get(name, ("dictionary", "version"))
    missing = [key for key in needed if key not in recorded]
    if missing:
        raise ValueError(f"the recorded analyser identity lacks {', '.join(missing)}: {dict(recorded)}")
    installed, packages = _installed_identity(recorded)
    wrong = {key: package for key, package in packages.items() if recorded[key] != installed[key]}
    if wrong:
        found = "; ".join(
            f"{package} {recorded[key]} is recorded, {installed[key]} is installed" for key, package in wrong.items()
        )
        cure = " ".join(f"{package}=={recorded[key]}" for key, package in wrong.items())
        raise ValueError(f"another analyser would cut words elsewhere: {found}; run: pip install {cure}")
    if dict(recorded) != installed:
        raise ValueError(f"the recorded analyser identity {dict(recorded)} differs from what is installed: {installed}")
    analyzer_files(recorded, files_folder=files_folder)


def _installed_identity(recorded: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """What the recorded analyser is here, files taken as recorded, and the package behind each of its versions."""
    name, dictionary = recorded["name"], recorded["dictionary"]
    if name == "sudachi":
        installed = sudachi_identity(mode=recorded["mode"], dictionary=dictionary)
        packages = {"version": "sudachipy", "dictionary_version": f"sudachidict-{dictionary}"}
    elif name == "mecab":
        from ncvc.analyzers.mecab import mecab_identity

        installed, packages = mecab_identity(recorded)
    else:
        from ncvc.analyzers.vibrato import vibrato_identity

        installed, packages = vibrato_identity(recorded)
    hashes = hashes_of(recorded).get(USER_DICTIONARY, [])
    if hashes and all(re.fullmatch("[0-9a-f]{64}", sha256) for sha256 in hashes):
        installed["user_dictionary"] = recorded["user_dictionary"]
    return installed, packages


def analyzer_from_identity(identity: Mapping[str, str], *, files_folder: Path | None = None) -> Analyzer:
    """Rebuild in this process or thread the analyser that `identity` names; raises `ValueError` when other
    versions are installed or a file it names is missing (see `analyzer_files` for where it looks)."""
    check_identity(identity, files_folder=files_folder)

    def found(kind: str) -> list[Path]:
        return [find_by_hash(kind, sha256, files_folder=files_folder) for sha256 in hashes_of(identity).get(kind, [])]

    paths, users = found("dictionary"), found(USER_DICTIONARY)
    if identity["name"] == "sudachi":
        return SudachiAnalyzer(mode=identity["mode"], dictionary=identity["dictionary"], user_dictionaries=users)
    if identity["name"] == "mecab":
        from ncvc.analyzers.mecab import MecabAnalyzer

        return MecabAnalyzer(dictionary=str(paths[0]) if paths else identity["dictionary"], user_dictionaries=users)
    from ncvc.analyzers.vibrato import VibratoAnalyzer

    return VibratoAnalyzer(dictionary=str(paths[0]), user_dictionaries=users)
