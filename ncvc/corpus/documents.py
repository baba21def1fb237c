"""The one thing that readers yield and every later stage takes: a document.

Costs nothing; does nothing to the text. A document is raw here: cleaning and segmentation make new text from
it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Document:
    """One text with a name.

    `text` is any string that UTF-8 can hold (readers drop lone surrogates and empty text); `id` names it in
    reports and is not required to be unique: nothing is looked up by it. `metadata` holds small JSON values:
    readers always give "file" and "row" (None for a whole file; together with the id the document's place, which
    no other document of the source has) and what the layout knows (title, url, license, language ...). Two
    documents are equal when text and id are.
    """

    text: str
    id: str
    metadata: dict[str, Any] = field(default_factory=dict, compare=False)
