"""The main text of a web page: character set, then trafilatura (extra `corpus`), then a look whether it is a text.

The character set comes from the byte order mark; else ISO-2022-JP and UTF-8 are told by their form (a page whose bytes
are UTF-8 is UTF-8, whatever it or its server says); else from the HTTP header, the page's own declaration, and trial of
EUC-JP and Shift_JIS, in this order. A single bad byte in a hundred is forgiven (U+FFFD stands in its place).
A page without main text is left out: menus and links only, or fewer than `min_characters` characters.
Cost: 6 ms a page of 3 to 15 kB on one core, 1 ms with `fallback` off; memory 50 to 200 times the page.
Does not: run scripts, follow links, tell languages apart.
"""

from __future__ import annotations

import codecs
import importlib
import re
from dataclasses import dataclass, field
from typing import Any

from ncvc.corpus.reading.problems import (
    MOJIBAKE_SHARE,
    NO_MAIN_TEXT,
    ROW_TOO_LONG,
    UNDECODABLE,
    BadRowError,
    is_small,
    mojibake_share,
)

LONGEST_PAGE_BYTES = 1 << 22
"""Pages with more bytes than these 4 MiB are left out: such a page may already take 850 MiB and 20 seconds."""

_BAD_SHARE = 0.01
_META = re.compile(rb"""<meta[^>]{0,200}?charset\s{0,9}=\s{0,9}["']?\s{0,9}([\w.:-]{1,40})""", re.IGNORECASE)
_XML = re.compile(rb"""^\s{0,99}<\?xml[^>]{0,200}?encoding\s{0,9}=\s{0,9}["']([\w.:-]{1,40})["']""")
_HEADER = re.compile(r"""charset\s{0,9}=\s{0,9}["']?([\w.:-]{1,40})""", re.IGNORECASE)
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# What pages call by these names is read as the superset that browsers read.
_SUPERSETS = {
    "shift_jis": "cp932",
    "iso8859-1": "cp1252",
    "ascii": "cp1252",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "euc_kr": "cp949",
    "iso2022_jp": "iso2022_jp_ext",
    "utf-16": "utf-16-le",
}
_NAMES = {"x-sjis": "cp932", "windows-31j": "cp932", "x-euc-jp": "euc_jp"}
_KNOWN = re.compile(r"utf-8|utf-16-[lb]e|cp932|euc_jp|iso2022_jp_ext|gb18030|big5|cp949|iso8859-\d+|cp125\d|koi8-[ru]")


@dataclass(frozen=True, kw_only=True)
class WebPageSettings:
    """How main text is taken from pages.

    `precision`: rather lose text than keep boilerplate. `tables`: keep tables (as | cells |). `fallback`: let two
    other algorithms compete, four times slower. `min_characters`: fewer characters are no main text.
    """

    precision: bool = True
    tables: bool = False
    fallback: bool = True
    min_characters: int = 50

    def __post_init__(self) -> None:
        for name in ("precision", "tables", "fallback"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"options.{name}={getattr(self, name)!r} is neither true nor false; set one of them")
        if not isinstance(self.min_characters, int) or isinstance(self.min_characters, bool) or self.min_characters < 1:
            raise ValueError(
                f"options.min_characters={self.min_characters!r} is no number of characters; set 1 or more"
            )


@dataclass(frozen=True)
class Page:
    """Main text and what the page says of itself: title, language, url, license, charset."""

    text: str
    metadata: dict[str, Any] = field(default_factory=dict)


class WebPages:
    """Takes the main text of pages; trafilatura is imported at the first page."""

    def __init__(self, settings: WebPageSettings) -> None:
        self.settings = settings

    def read(self, page: str | bytes, *, url: str | None = None, content_type: str | None = None) -> Page:
        """The page's main text and metadata; `content_type` is its HTTP header's. Raises BadRowError."""
        if len(page) > LONGEST_PAGE_BYTES:
            raise BadRowError(ROW_TOO_LONG, f"a page of {len(page)} bytes, more than {LONGEST_PAGE_BYTES}")
        metadata: dict[str, Any] = {}
        if isinstance(page, bytes):
            page, metadata["charset"] = decode_page(page, content_type=content_type)
        tree = _parse(page)
        metadata |= _said_of_itself(tree)
        if url is not None and is_small(url):
            metadata["url"] = url
        return Page(self._main_text(tree, url), metadata)

    def _main_text(self, tree: Any, url: str | None) -> str:
        try:
            found = trafilatura().bare_extraction(
                tree,
                url=url,
                fast=not self.settings.fallback,
                favor_precision=self.settings.precision,
                include_comments=False,
                include_tables=self.settings.tables,
            )
        except Exception as error:  # pages of any shape come; one must not end the run
            raise BadRowError(NO_MAIN_TEXT, f"extraction failed: {type(error).__name__}: {error}") from error
        text = (found.text or "").strip() if found is not None else ""
        if len(text) < self.settings.min_characters:
            raise BadRowError(NO_MAIN_TEXT, f"{len(text)} characters: {text[:40]!r}")
        return text


def decode_page(page: bytes, *, content_type: str | None = None) -> tuple[str, str]:
    """The page as text and the name of its character set; BadRowError if none fits."""
    for mark, charset in _MARKS:
        if page.startswith(mark):
            return _checked(page[len(mark) :].decode(charset, "replace"), charset)
    if b"\x1b$" in page or b"\x1b(J" in page:
        candidates = ["iso2022_jp_ext"]
    elif page.isascii():
        return page.decode("ascii"), "utf-8"
    else:
        candidates = ["utf-8", *_declared(page, content_type), "euc_jp", "cp932"]
    candidates = list(dict.fromkeys(candidates))
    for errors in ("strict", "replace"):
        for charset in candidates:
            try:
                return _checked(page.decode(charset, errors), charset)
            except (UnicodeDecodeError, BadRowError):
                continue
    raise BadRowError(UNDECODABLE, f"none of {', '.join(candidates)} fits; first bytes {page[:20]!r}")


def _declared(page: bytes, content_type: str | None) -> list[str]:
    """Character sets named by the HTTP header and by the page's first 4 kB, as Python knows them."""
    names = _HEADER.findall(content_type or "")[:1]
    names += [match[1].decode("ascii") for pattern in (_XML, _META) if (match := pattern.search(page[:4096]))]
    found = []
    for name in names:
        try:
            charset = _NAMES.get(name.lower()) or codecs.lookup(name).name
        except (LookupError, ValueError):
            continue
        charset = _SUPERSETS.get(charset, charset)
        if _KNOWN.fullmatch(charset):
            found.append(charset)
    return found


def _checked(text: str, charset: str) -> tuple[str, str]:
    visible = max(1, len(text) - text.count(" ") - text.count("\n"))
    if text.count("\ufffd") > _BAD_SHARE * visible or mojibake_share(text) >= MOJIBAKE_SHARE:
        raise BadRowError(UNDECODABLE, f"{text.count(chr(0xFFFD))} of {len(text)} characters are not {charset}")
    return text, charset


def _parse(page: str) -> Any:
    """The page's tree; BadRowError if it has none."""
    html = importlib.import_module("lxml.html")
    # Encoded again so that no declaration inside the page (of the set it was stored in) is believed.
    data = page.replace("\0", "").encode("utf-8", "replace")
    parser = html.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True, collect_ids=False)
    try:
        tree = html.document_fromstring(data, parser=parser)
    except Exception as error:  # lxml's errors are of several families
        raise BadRowError(NO_MAIN_TEXT, f"no HTML: {error}") from None
    return tree


def _said_of_itself(tree: Any) -> dict[str, Any]:
    """Title, language, canonical address and license as the page gives them, each if it is a short string."""
    links = {link.get("rel", "").lower(): link.get("href") for link in tree.iter("link", "a") if link.get("rel")}
    said = {
        "title": tree.findtext(".//title"),
        "language": tree.get("lang") or tree.get("{http://www.w3.org/XML/1998/namespace}lang"),
        "url": links.get("canonical"),
        "license": links.get("license"),
    }
    said = {name: " ".join(value.split()) for name, value in said.items() if isinstance(value, str)}
    return {name: value for name, value in said.items() if is_small(value)}


def trafilatura() -> Any:
    """The package that finds main text; ModuleNotFoundError with the cure."""
    try:
        return importlib.import_module("trafilatura")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "web pages are read with the package trafilatura, which is not installed; run pip install 'ncvc[corpus]'",
            name=error.name,
        ) from error
