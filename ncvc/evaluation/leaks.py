"""How much of a test a model may have read before: by the split, by its own record, by its corpus's certificate.

- split: share of the test rows whose document occurs in the rows that the split leaves for training, of any task (CRADE
  and the extraction tasks ask about the same case reports). It says what tuning on this split leaks.
- model: which items the model's recorded training data hold (`Seen`, from `ncvc.evaluation.seen_items`).
- certificate: which items' texts share a long stretch with the corpus that the model was pretrained on
  (`ncvc.corpus.contamination`).

An item is taken for read if the record or the certificate says so. Where neither can tell, the status is "unknown" and
never "none". Costs: 1 ms an item with a certificate. Does not: find paraphrases, or look into the model.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ncvc.corpus.contamination.certificate import Certificate
from ncvc.evaluation.item import Item, Task
from ncvc.evaluation.jmed_llm import Split, training_conversations

Status = Literal["none", "some", "unknown"]
_LONG = 60  # characters of a question that is searched for alone


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Which items of one task a model's recorded training data hold.

    ``items`` are ids of items whose document or question was trained on; ``complete`` whether the record covers all
    that the model was trained on, so that items not named were not; ``why`` says where this is known from.
    """

    items: frozenset[str] = frozenset()
    complete: bool = False
    why: str = "its record does not say what it was trained on"


@dataclass(frozen=True, kw_only=True)
class Leak:
    """What is known of one task: ``items`` asked, of which ``trained`` (ids) were read in training.

    ``status`` is "some", "none" (known of all), or "unknown" (nothing found, but not all is known); ``at_least``: more
    may have been read. ``split`` and ``certificate`` are counts, None where there is no split or certificate.
    """

    items: int
    trained: frozenset[str]
    status: Status
    why: str
    at_least: bool = False
    split: Mapping[str, Any] | None = None
    certificate: Mapping[str, Any] | None = None

    @property
    def share(self) -> float | None:
        """Share of the items read in training; None where that is not known."""
        return None if self.status == "unknown" else len(self.trained) / self.items

    def to_dict(self) -> dict[str, Any]:
        """As plain data: counts and shares, not ids."""
        return {
            "status": self.status,
            "trained_on": len(self.trained) if self.status != "unknown" else None,
            "share": self.share,
            "at_least": self.at_least,
            "why": self.why,
            "split": None if self.split is None else dict(self.split),
            "certificate": None if self.certificate is None else dict(self.certificate),
        }


def trained_documents(folder: Path, *, split: Split, fold: int | None = None) -> frozenset[str]:
    """The documents of all rows that ``split`` leaves for training; errors as of `training_conversations`."""
    return frozenset(example.document for example in training_conversations(folder, split=split, fold=fold))


def split_leak(items: Sequence[Item], documents: Collection[str], *, split: str, fold: int | None) -> dict[str, Any]:
    """How many of ``items`` are about one of the training ``documents``: rows, seen, share."""
    seen = sum(item.group in documents for item in items)
    return {"split": split, "fold": fold, "rows": len(items), "seen": seen, "share": seen / len(items)}


def leak_status(
    task: Task,
    *,
    documents: Collection[str] | None = None,
    split: str | None = None,
    fold: int | None = None,
    seen: Seen | None = None,
    certificate: Certificate | None = None,
) -> Leak:
    """What is known of ``task``; ``documents`` are those of the split's training rows, None where there is no split."""
    found = Seen() if seen is None else seen
    known = {item.id for item in task.items} & found.items
    whys = [found.why]
    counts = None
    unclear = not found.complete
    if certificate is not None:
        verdicts = {item.id: certificate.was_seen(text_of(item)).verdict for item in task.items}
        known |= {name for name, verdict in verdicts.items() if verdict == "seen"}
        words = ("seen", "not seen", "too short to tell")
        counts = {
            **{word: sum(verdict == word for verdict in verdicts.values()) for word in words},
            "corpus": certificate.corpus,
        }
        whys.append(f"{counts['seen']} of {len(verdicts)} share a stretch with the corpus of the certificate")
    return Leak(
        items=len(task.items),
        trained=frozenset(known),
        status="some" if known else "unknown" if unclear else "none",
        why="; ".join(whys),
        at_least=unclear,
        split=None if documents is None else split_leak(task.items, documents, split=str(split), fold=fold),
        certificate=counts,
    )


def text_of(item: Item) -> str:
    """The text of an item that training data would hold: its passage, else the question, a short one with options."""
    question = item.metadata.get("question")
    asked = question if isinstance(question, str) else item.messages[-1].content
    return item.passage or (asked if len(asked) >= _LONG else "\n".join([asked, *item.options]))
