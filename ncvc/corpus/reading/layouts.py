"""What the fields of a row mean: plain rows, Wiki-40B's markup, OSCAR-2301's annotations, rows that hold HTML.

A layout turns a row (field -> value) into the text of a document, its id and its metadata, or says why the row is
left out. `plain` takes the text as it is; `wiki40b` undoes the markup of Wiki-40B as TFDS and Hugging Face publish it
(title, section titles and paragraphs become lines); `oscar2301` reads the JSON lines of OSCAR-2301 (or its Hugging
Face form, fields `text` and `meta`) and filters by its annotations; `html` takes the main text of the page in the
text field.
Cost: a fraction of parsing the row; html 2 to 10 ms a page.
Does not: clean the text, or know fields beyond those named here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ncvc.corpus.documents import Document
from ncvc.corpus.reading.problems import (
    BROKEN_JSON,
    EMPTY_TEXT,
    HARMFUL_PERPLEXITY,
    LOW_LANGUAGE_PROBABILITY,
    NO_TEXT_FIELD,
    NOT_A_STRING,
    OTHER_LANGUAGE,
    QUALITY_WARNING,
    UNWANTED_CATEGORY,
    WRONG_LAYOUT,
    BadRowError,
    check_text,
    decode_utf8,
    is_encodable,
    is_small,
)
from ncvc.corpus.reading.web_pages import WebPages, WebPageSettings

LAYOUTS = ("plain", "wiki40b", "oscar2301", "html")

_PLAIN_METADATA = ("title", "url", "source", "license", "language")
_LONGEST_ID = 4_096
_MOST_LABELS = 50

Reading = tuple[str, object, Mapping[str, object] | None]  # text, id (anything), metadata


@dataclass(frozen=True, kw_only=True)
class Wiki40bSettings:
    """What of an article becomes text: the title's line, the section titles' lines (paragraphs always do)."""

    keep_titles: bool = True
    keep_section_titles: bool = True

    def __post_init__(self) -> None:
        for name in ("keep_titles", "keep_section_titles"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"options.{name}={getattr(self, name)!r} is neither true nor false; set one of them")


@dataclass(frozen=True, kw_only=True)
class Oscar2301Settings:
    """Which rows are left out, by OSCAR's own annotations; null asks nothing.

    `language`, `min_language_probability`: of the document's identification; a row without one is left out when either
    is set. `drop_quality_warnings`, `drop_categories`: labels that leave a row out. `min_harmful_perplexity`,
    `max_harmful_perplexity`: of `harmful_pp`, a model of harmful text: the lower, the more like it; rows without stay.
    """

    language: str | None = "ja"
    min_language_probability: float | None = None
    drop_quality_warnings: Sequence[str] = ()
    drop_categories: Sequence[str] = ()
    min_harmful_perplexity: float | None = None
    max_harmful_perplexity: float | None = None

    def __post_init__(self) -> None:
        if self.language is not None and (not isinstance(self.language, str) or not self.language):
            raise ValueError(f"options.language={self.language!r} is no language code; set one such as ja, or null")
        for name in ("min_language_probability", "min_harmful_perplexity", "max_harmful_perplexity"):
            if getattr(self, name) is not None and not _is_number(getattr(self, name)):
                raise ValueError(f"options.{name}={getattr(self, name)!r} is no number; set a number or null")
        least = self.min_language_probability
        if least is not None and not 0 <= least <= 1:
            raise ValueError(f"options.min_language_probability={least} is no probability; set 0 to 1, or null")
        low, high = self.min_harmful_perplexity, self.max_harmful_perplexity
        if low is not None and high is not None and low > high:
            raise ValueError(
                f"options.min_harmful_perplexity={low} is above options.max_harmful_perplexity={high}, so that no "
                "row is left; set it below, or one of them to null"
            )
        for name in ("drop_quality_warnings", "drop_categories"):
            value = getattr(self, name)
            if isinstance(value, str | Mapping) or not all(isinstance(label, str) for label in value or ()):
                raise ValueError(f"options.{name}={value!r} is no list of labels; set a list such as [adult], or []")
            object.__setattr__(self, name, tuple(value or ()))


class Layout:
    """Base of the layouts: what becomes of a row.

    `pages` reads files that are web pages, None if they are not of this layout; `reads_txt` likewise for .txt files.
    """

    pages: WebPages | None = None
    reads_txt = False
    takes_text_as_it_is = False
    metadata_fields: tuple[str, ...] = ()

    def __init__(self, text_field: str) -> None:
        self.text_field = text_field

    def text_fields(self) -> tuple[str, ...]:
        """Fields that may hold the text, the first present one does."""
        return (self.text_field,)

    def columns(self, names: Sequence[str]) -> list[str]:
        """Those of a table's columns that are needed; BadRowError if the text is not among them."""
        if not any(name in names for name in self.text_fields()):
            raise BadRowError(
                NO_TEXT_FIELD, f"{self.text_field!r} is missing; columns: {', '.join(map(repr, names[:10]))}"
            )
        wanted = {"id", *self.text_fields(), *self.metadata_fields}
        return [name for name in names if name in wanted]

    def read(self, fields: Mapping[str, object]) -> Reading:
        """Text, id (any value; an unusable one is replaced) and metadata of a row; BadRowError."""
        raise NotImplementedError

    def document(self, fields: object, *, file: str, row: int, stored: bytes | None = None) -> Document:
        """The document of one row; BadRowError. `stored`: bytes in which its strings stand as they are, if any."""
        if not isinstance(fields, Mapping):
            raise BadRowError(BROKEN_JSON, f"the row is a {type(fields).__name__}, not an object with fields")
        text, name, metadata = self.read(fields)
        check_text(text, stored=stored if self.takes_text_as_it_is else None)
        place: dict[str, object] = {"file": file, "row": row}
        if metadata:
            place |= metadata
        return Document(text, usable_id(name) or f"{file}:{row}", place)

    def text_of(self, fields: Mapping[str, object]) -> object:
        """The value of the text field, of any type but None; BadRowError."""
        for name in self.text_fields():
            if (value := fields.get(name)) is not None:
                return value
        what = "is null" if self.text_field in fields else "is missing"
        raise BadRowError(
            NO_TEXT_FIELD, f"{self.text_field!r} {what}; fields: {', '.join(map(repr, list(fields)[:10]))}"
        )

    def string_of(self, fields: Mapping[str, object]) -> str:
        """The text field as a string; bytes (a binary column) are read as UTF-8. BadRowError."""
        value = self.text_of(fields)
        if isinstance(value, bytes):
            return decode_utf8(value)
        if not isinstance(value, str):
            raise BadRowError(NOT_A_STRING, f"{self.text_field!r} holds a {type(value).__name__}")
        return value


def usable_id(name: object) -> str | None:
    """A row's id as a string if it is one, or a whole number; else None."""
    if isinstance(name, str):
        return name if 0 < len(name) <= _LONGEST_ID and is_encodable(name) else None
    if isinstance(name, int) and not isinstance(name, bool):
        return str(name)
    return None


def _small_fields(fields: Mapping[str, object], names: Sequence[str]) -> dict[str, object]:
    return {name: value for name in names if is_small(value := fields.get(name))}


class PlainLayout(Layout):
    """The text field is the text; a few well-known fields are metadata."""

    metadata_fields = _PLAIN_METADATA
    reads_txt = takes_text_as_it_is = True

    def __init__(self, text_field: str, settings: WebPageSettings) -> None:
        super().__init__(text_field)
        self.pages = WebPages(settings)

    def read(self, fields: Mapping[str, object]) -> Reading:
        text = fields.get(self.text_field)
        if text.__class__ is not str:
            text = self.string_of(fields)
        return text, fields.get("id"), _small_fields(fields, _PLAIN_METADATA) if len(fields) > 2 else None  # type: ignore[return-value]


class HtmlLayout(Layout):
    """The text field holds HTML, as a string or as bytes."""

    metadata_fields = _PLAIN_METADATA

    def __init__(self, text_field: str, settings: WebPageSettings) -> None:
        super().__init__(text_field)
        self.pages = WebPages(settings)

    def read(self, fields: Mapping[str, object]) -> Reading:
        html = self.text_of(fields)
        if not isinstance(html, str | bytes):
            raise BadRowError(NOT_A_STRING, f"{self.text_field!r} holds a {type(html).__name__}")
        given = _small_fields(fields, _PLAIN_METADATA)
        assert self.pages is not None
        page = self.pages.read(html, url=given.get("url"))  # type: ignore[arg-type]
        return page.text, fields.get("id"), page.metadata | given


_WIKI_MARK = re.compile("_START_(ARTICLE|SECTION|PARAGRAPH)_")
_BYTES_LITERAL = re.compile(r"""b(['"]).*\1\s*""", re.DOTALL)


class Wiki40bLayout(Layout):
    """Articles in Wiki-40B's markup: title, section titles and paragraphs, each a line."""

    metadata_fields = ("wikidata_id", "version_id")

    def __init__(self, text_field: str, settings: Wiki40bSettings) -> None:
        super().__init__(text_field)
        self.settings = settings

    def read(self, fields: Mapping[str, object]) -> Reading:
        text, title = self.article(self.string_of(fields))
        metadata = {name: _from_bytes(fields.get(name)) for name in self.metadata_fields}
        return text, fields.get("id"), _small_fields(metadata | {"title": title}, (*metadata, "title"))

    def article(self, marked: str) -> tuple[str, str]:
        """Text and title of one article; BadRowError when there is no markup or no paragraph."""
        marked = _from_bytes(marked)
        before, *parts = _WIKI_MARK.split(marked)
        if not parts or before.strip():
            raise BadRowError(WRONG_LAYOUT, f"it does not begin with _START_ARTICLE_: {marked[:40]!r}")
        title, section, lines, has_paragraph = "", "", [], False
        for mark, content in zip(parts[::2], parts[1::2], strict=True):
            content = content.replace("_NEWLINE_", "\n").strip()
            if mark == "ARTICLE" and not title:
                title = content
                if self.settings.keep_titles and title:
                    lines.append(title)
            elif mark != "PARAGRAPH":
                section = content
            elif content:
                if self.settings.keep_section_titles and section:
                    lines.append(section)
                lines.append(content)
                section, has_paragraph = "", True
        if not has_paragraph:
            raise BadRowError(EMPTY_TEXT, f"the article {title[:40]!r} has no paragraph")
        return "\n".join(lines), title


def _from_bytes(value: object) -> Any:
    """The text of a string that is the literal of a bytes object (b'...'), as some copies of Wiki-40B hold it."""
    if isinstance(value, bytes):
        return decode_utf8(value)
    if not isinstance(value, str) or not _BYTES_LITERAL.fullmatch(value):
        return value
    try:
        literal = ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value
    return decode_utf8(literal) if isinstance(literal, bytes) else value


class Oscar2301Layout(Layout):
    """Documents of OSCAR-2301 with their annotations."""

    metadata_fields = ("warc_headers", "metadata", "meta")
    takes_text_as_it_is = True

    def __init__(self, text_field: str, settings: Oscar2301Settings) -> None:
        super().__init__(text_field)
        self.settings = settings

    def text_fields(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.text_field, "content")))

    def read(self, fields: Mapping[str, object]) -> Reading:
        text = self.string_of(fields)
        annotations = _mapping(fields.get("metadata")) or _mapping(fields.get("meta"))
        headers = _mapping(fields.get("warc_headers")) or _mapping(annotations.get("warc_headers"))
        identification = _mapping(annotations.get("identification"))
        warnings, categories = _labels(annotations, "quality_warnings"), _labels(annotations, "categories")
        perplexity = annotations.get("harmful_pp")
        self._check_language(identification)
        self._check_labels(QUALITY_WARNING, warnings, self.settings.drop_quality_warnings)
        self._check_labels(UNWANTED_CATEGORY, categories, self.settings.drop_categories)
        self._check_perplexity(perplexity)
        known = {
            "url": headers.get("warc-target-uri"),
            "date": headers.get("warc-date"),
            "language": identification.get("label"),
            "language_probability": identification.get("prob"),
            "harmful_perplexity": perplexity,
        }
        metadata = _small_fields(known, tuple(known))
        for label_name, labels in (("quality_warnings", warnings), ("categories", categories)):
            if labels:
                metadata[label_name] = labels[:_MOST_LABELS]
        name = fields.get("id")
        return text, name if usable_id(name) else headers.get("warc-record-id"), metadata

    def _check_language(self, identification: Mapping[str, object]) -> None:
        wanted, least = self.settings.language, self.settings.min_language_probability
        label, probability = identification.get("label"), identification.get("prob")
        if wanted is not None and label != wanted:
            raise BadRowError(OTHER_LANGUAGE, f"{label!r} instead of {wanted!r}" if label else "none is given")
        if least is not None and not (_is_number(probability) and probability >= least):  # type: ignore[operator]
            raise BadRowError(LOW_LANGUAGE_PROBABILITY, f"{probability!r} is below {least}")

    def _check_labels(self, reason: str, labels: Sequence[str], unwanted: Sequence[str]) -> None:
        if found := sorted(set(labels) & set(unwanted)):
            raise BadRowError(reason, ", ".join(found))

    def _check_perplexity(self, perplexity: object) -> None:
        low, high = self.settings.min_harmful_perplexity, self.settings.max_harmful_perplexity
        if not _is_number(perplexity):
            return
        if (low is not None and perplexity < low) or (high is not None and perplexity > high):  # type: ignore[operator]
            raise BadRowError(HARMFUL_PERPLEXITY, f"{perplexity} is not within {low} and {high}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value  # NaN differs from itself


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _labels(annotations: Mapping[str, object], name: str) -> list[str]:
    value = annotations.get(name)
    return [label for label in value if isinstance(label, str) and is_small(label)] if isinstance(value, list) else []


_SETTINGS: dict[str, Any] = {
    "plain": WebPageSettings,  # a folder of plain text may hold web pages
    "wiki40b": Wiki40bSettings,
    "oscar2301": Oscar2301Settings,
    "html": WebPageSettings,
}
_CLASSES: dict[str, Any] = {
    "plain": PlainLayout,
    "wiki40b": Wiki40bLayout,
    "oscar2301": Oscar2301Layout,
    "html": HtmlLayout,
}


def build_layout(layout: str, *, text_field: str = "text", options: Mapping[str, Any] | None = None) -> Layout:
    """The layout of that name; ValueError for a name, an option or a value that is not known."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r} is not known; set one of {', '.join(LAYOUTS)}")
    known = [field.name for field in fields(_SETTINGS[layout])]
    for name in options or {}:
        if name not in known:
            raise ValueError(f"options.{name} is no option of layout={layout}; set one of {', '.join(known)}")
    settings = _SETTINGS[layout](**(options or {}))
    return _CLASSES[layout](text_field, settings)
