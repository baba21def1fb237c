"""The one thing that readers yield and every later stage takes: a document.

Costs nothing; does nothing to the text. A document is raw here: cleaning and segmentation make new text from
it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Document:
    """One text with a name.

    `text` is any string that UTF-8 can hold (readers drop lone surrogates and empty text); `id` names it in
    reports and is not required to be unique: nothing is looked up by it.
    """

    text: str
    id: str
