"""Synthetic Japanese clinical text for the quickstart: nine kinds of document from a small lexicon.

**Every document is invented, for demonstration: no patient stands behind it, and nothing in it is medical
advice.** The lexicon (`lexicon`) and every sentence pattern were written for this repository; no
data were copied from anywhere. A disease appears with its own symptoms, signs, values, findings, drugs and
complications, at an age and a sex it occurs in.

Costs: see `write_clinical_samples`. It does not aim at the variety of real text: sentences share patterns,
so a model's loss on it says that training works, not that the model knows medicine.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from random import Random

from ncvc.corpus.clinical import articles, questions, records, reports
from ncvc.corpus.clinical.lexicon import DISEASES, DRUGS, EXAMINATIONS
from ncvc.corpus.documents import Document

_INPATIENT = tuple(name for name, disease in DISEASES.items() if disease.setting != "慢")
_OUTPATIENT = tuple(name for name, disease in DISEASES.items() if disease.setting != "急")
_IMAGED = tuple(name for name, disease in DISEASES.items() if any(e.kind == "画像" for e, _ in disease.findings))

# kind: (documents of it in a block, the names it can be about, their table, the function that writes it)
_KINDS: dict[str, tuple[int, tuple[str, ...], dict, Callable[..., str]]] = {
    "case_summary": (4, tuple(DISEASES), DISEASES, records.case_summary),
    "discharge_summary": (3, _INPATIENT, DISEASES, records.discharge_summary),
    "outpatient_note": (4, _OUTPATIENT, DISEASES, records.outpatient_note),
    "imaging_report": (2, _IMAGED, DISEASES, reports.imaging_report),
    "nursing_record": (2, _INPATIENT, DISEASES, reports.nursing_record),
    "disease_article": (3, tuple(DISEASES), DISEASES, articles.disease_article),
    "drug_article": (3, tuple(DRUGS), DRUGS, articles.drug_article),
    "examination_article": (1, tuple(EXAMINATIONS), EXAMINATIONS, articles.examination_article),
    "patient_questions": (3, tuple(DISEASES), DISEASES, questions.patient_questions),
}
KINDS = tuple(_KINDS)
_BLOCK = tuple(kind for kind, (weight, *_) in _KINDS.items() for _ in range(weight))


@lru_cache(maxsize=64)
def _shuffled(seed: int, label: str, items: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(Random(f"{seed}/{label}").sample(items, len(items)))


def plan_document(index: int, *, seed: int) -> tuple[str, str]:
    """Kind and topic of document `index`: kinds come in shuffled blocks, a kind's topics in shuffled rounds.

    So every kind occurs in each `len(_BLOCK)` documents, each topic of a kind once before any occurs twice.
    """
    block, place = divmod(index, len(_BLOCK))
    order = _shuffled(seed, f"block {block}", _BLOCK)
    kind = order[place]
    weight, topics, *_ = _KINDS[kind]
    turn, item = divmod(block * weight + order[:place].count(kind), len(topics))
    return kind, _shuffled(seed, f"{kind} {turn}", topics)[item]


def generate_documents(*, documents: int, seed: int) -> Iterator[Document]:
    """Yield `documents` synthetic documents.

    Number k depends on (seed, k) alone, so a longer run begins with the shorter. The id tells seed, number
    and kind. Raises ValueError for a negative count.
    """
    if documents < 0:
        raise ValueError(f"documents={documents} cannot be negative: set the number of documents to write, 0 or more")
    return (_document(index, seed=seed) for index in range(documents))


def _document(index: int, *, seed: int) -> Document:
    kind, topic = plan_document(index, seed=seed)
    _, _, table, write = _KINDS[kind]
    text = write(Random(f"{seed}/document {index}"), table[topic])
    return Document(text=text, id=f"clinical-{seed}-{index:06d}-{kind}")


def write_clinical_samples(path: Path, *, documents: int = 4000, seed: int = 0) -> int:
    """Write the documents to `path` as JSON lines {"id", "text"} in UTF-8 and return the size in bytes.

    The file appears whole or not at all: it is written beside its place and renamed. The same arguments give
    the same bytes on every machine. 4,000 documents are about 1.8 million characters, 5 MB, in about 0.3 s on
    one core. Raises ValueError for a negative count and OSError where the folder cannot be written.
    """
    written = generate_documents(documents=documents, seed=seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            for document in written:
                file.write(json.dumps({"id": document.id, "text": document.text}, ensure_ascii=False) + "\n")
        size = temporary.stat().st_size
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return size
