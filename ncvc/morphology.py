"""Words of one cleaned line, by a morphological analyser (R18, R29).

What it does: an `Analyzer` cuts a line into words whose concatenation is the line again, whatever the line
holds (very long lines, symbols the dictionary does not know, lone surrogates). `identity` names everything
that decides where the cuts fall; the tokenizer stores it and refuses another one (R36).

What it costs: the speed of a plain SudachiPy loop over sentences that takes the surface strings (2 to 4 MB
of UTF-8 per second and core), 50 ms to open the dictionary, and about 200 MB of memory-mapped dictionary
shared between processes.

What it does not do: clean text, handle "\\n" specially (the caller splits lines), share one analyser between
threads (Sudachi raises; build one per thread), or pickle one (rebuild it from its `identity` with
`analyzer_from_identity`)."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

SPLIT_MODES = ("A", "B", "C")
DICTIONARIES = ("core", "small", "full")

# One call of Sudachi takes at most 49,149 bytes of UTF-8, and at most 65,535 bytes after its own
# normalisation, which can grow one character to 33 bytes (measured on SudachiPy 0.7.0). 12,000 characters of
# at most 4 bytes meet the first limit always; the second is met by halving on refusal.
MAX_CHARACTERS_PER_CALL = 12_000
# A Sudachi tokenizer never shrinks its lattice and clears all of it at each call: after one sentence of
# 40,000 characters every later call ran at 60 % of its speed (measured). Longer sentences than this go to a
# second tokenizer, so that the one for ordinary sentences stays fast.
LONG_SENTENCE = 1_000
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


def sudachi_identity(*, mode: str = "C", dictionary: str = "core") -> dict[str, str]:
    """Describe the installed Sudachi (package and dictionary versions) without opening its dictionary.

    Raises `ValueError` for an unknown mode or dictionary and `ModuleNotFoundError` when a package is not
    installed."""
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
        "dictionary_version": _installed_version(f"sudachidict-{dictionary}", f"analyzer.dictionary={dictionary}"),
        "version": _installed_version("sudachipy", "analyzer.name=sudachi"),
    }


def _installed_version(package: str, setting: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise ModuleNotFoundError(
            f"{setting} needs the package {package!r}, which is not installed; run: pip install {package}"
        ) from error


class SudachiAnalyzer:
    """Sudachi, sentence by sentence. `mode` A, B or C; `dictionary` core, small or full.

    The fields `pos` and `normalized_form` are loaded though only surfaces are returned: without them
    Sudachi's rule that joins digits into one number does not run and the segmentation changes (measured: 318
    of 1,174 documents with no field, 0 with these two)."""

    def __init__(self, *, mode: str = "C", dictionary: str = "core") -> None:
        self.identity = sudachi_identity(mode=mode, dictionary=dictionary)
        from sudachipy import Dictionary, Morpheme

        opened = Dictionary(dict=dictionary)
        fields = {"pos", "normalized_form"}
        self._tokenize = opened.tokenizer(mode=mode, fields=fields).tokenize
        self._tokenize_long = opened.tokenizer(mode=mode, fields=fields).tokenize
        self._surface = Morpheme.surface

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


def _cut(text: str, start: int, end: int) -> int:
    """Return where to end a part of at most `end - start` characters: after the last mark or space of its
    last eighth, else at `end`."""
    if end >= len(text):
        return len(text)
    earliest = end - (end - start) // 8
    best = max(text.rfind(mark, earliest, end) for mark in _CUT_AFTER)
    return best + 1 if best >= 0 else end


def build_analyzer(name: str = "sudachi", *, mode: str = "C", dictionary: str = "core") -> Analyzer:
    """Build an analyser by name; see `SudachiAnalyzer` for `mode` and `dictionary`. Raises `ValueError` for
    an unknown name."""
    if name != "sudachi":
        raise ValueError(f"analyzer.name={name!r} is not known; set analyzer.name=sudachi")
    return SudachiAnalyzer(mode=mode, dictionary=dictionary)


def check_identity(recorded: Mapping[str, str]) -> None:
    """Raise `ValueError` unless the analyser installed here is the recorded one (R36: another version cuts
    words elsewhere)."""
    if recorded.get("name") != "sudachi":
        raise ValueError(f"the recorded analyser is {recorded.get('name')!r}; this version of ncvc has only 'sudachi'")
    missing = [key for key in ("mode", "dictionary", "dictionary_version", "version") if key not in recorded]
    if missing:
        raise ValueError(f"the recorded analyser identity lacks {', '.join(missing)}: {dict(recorded)}")
    installed = sudachi_identity(mode=recorded["mode"], dictionary=recorded["dictionary"])
    packages = {"version": "sudachipy", "dictionary_version": f"sudachidict-{recorded['dictionary']}"}
    wrong = {key: package for key, package in packages.items() if recorded[key] != installed[key]}
    if wrong:
        found = "; ".join(
            f"{package} {recorded[key]} is recorded, {installed[key]} is installed" for key, package in wrong.items()
        )
        cure = " ".join(f"{package}=={recorded[key]}" for key, package in wrong.items())
        raise ValueError(f"another analyser would cut words elsewhere: {found}; run: pip install {cure}")
    if dict(recorded) != installed:
        raise ValueError(f"the recorded analyser identity {dict(recorded)} differs from what is installed: {installed}")


def analyzer_from_identity(identity: Mapping[str, str]) -> Analyzer:
    """Rebuild in this process or thread the analyser that `identity` names; raises `ValueError` when other
    versions are installed."""
    check_identity(identity)
    return build_analyzer(identity["name"], mode=identity["mode"], dictionary=identity["dictionary"])
