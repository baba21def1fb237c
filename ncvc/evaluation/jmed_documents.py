"""Which rows of JMED-LLM are about the same document, and five folds that share none (R71).

A document is the passage in 「…」 (case report, radiology report, post, nursing record), the question itself
(jmmlu_med), or the sentences that pairs connect (jcsts). Texts are compared after NFKC and without white space, across
all sets: CRADE and CRNER ask about the same case reports. Texts that share at least 80% of their character trigrams
(Jaccard) are one document too, which joins versions of a report that differ by a few characters and re-worded
questions; not so posts and sentences, where one word more or less is another statement (smdis, jcsts).

Costs: under 1 s for all rows; candidates come from an index of each text's rarest trigrams, not from all pairs (Bayardo
et al. 2007, "Scaling Up All Pairs Similarity Search"), unless texts are made of a few common trigrams. Does not: find a
sentence inside a report.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from ncvc.evaluation.jmed_files import Row

FOLDS = 5
NEAR = 0.8
_TRIGRAM = 3
_EXACT_TASKS = ("smdis", "jcsts")


def document_ids(rows: Sequence[Row]) -> list[str]:
    """A name of each row's document, 12 hexadecimal digits; the same for rows about the same document."""
    plain: dict[str, str] = {}
    numbers: dict[str, int] = {}
    near_texts: dict[str, int] = {}
    members: list[int] = []
    parents: list[int] = []

    def root(number: int) -> int:
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number

    for row in rows:
        places = []
        for text in row.texts:
            key = plain.get(text) or plain.setdefault(text, _plain(text))
            if key not in numbers:
                numbers[key] = len(parents)
                parents.append(len(parents))
            places.append(numbers[key])
            if row.task not in _EXACT_TASKS:
                near_texts[key] = numbers[key]
        for place in places[1:]:
            parents[root(place)] = root(places[0])
        members.append(places[0])
    for first, second in near_pairs(sorted(near_texts), threshold=NEAR):
        parents[root(near_texts[second])] = root(near_texts[first])
    names: dict[int, str] = {}
    for text in sorted(numbers):  # a group is named by its first text, whatever the order of rows
        names.setdefault(root(numbers[text]), hashlib.blake2b(text.encode(), digest_size=6).hexdigest())
    return [names[root(member)] for member in members]


def near_pairs(texts: Sequence[str], *, threshold: float) -> Iterator[tuple[str, str]]:
    """Pairs of texts whose character trigrams have a Jaccard index of at least ``threshold``; exact."""
    trigrams = [_trigrams(text) for text in texts]
    frequency = Counter(gram for grams in trigrams for gram in grams)
    index: dict[str, list[int]] = defaultdict(list)
    for number in sorted(range(len(texts)), key=lambda number: len(trigrams[number])):
        grams = trigrams[number]
        least = math.ceil(threshold * len(grams) - 1e-9)  # so many trigrams a partner has to share
        rarest = sorted(grams, key=lambda gram: (frequency[gram], gram))[: len(grams) - least + 1]
        for other in sorted({other for gram in rarest for other in index[gram] if len(trigrams[other]) >= least}):
            common = len(grams & trigrams[other])
            if common >= threshold * (len(grams) + len(trigrams[other]) - common):
                yield texts[other], texts[number]
        for gram in rarest:
            index[gram].append(number)


def folds_of(documents: Sequence[str], *, sources: Sequence[str]) -> dict[str, int]:
    """The fold, 0 to 4, of each document, from the document and source of every row.

    Sources are spread apart, by the first that names a document: the largest document goes first, each into the fold
    with the fewest rows; equally large ones in the order of their names.
    """
    sizes = Counter(documents)
    first_source: dict[str, str] = {}
    for document, source in zip(documents, sources, strict=True):
        first_source.setdefault(document, source)
    filled = {source: [0] * FOLDS for source in sources}
    folds: dict[str, int] = {}
    for document in sorted(sizes, key=lambda document: (-sizes[document], document)):
        rows = filled[first_source[document]]
        folds[document] = rows.index(min(rows))
        rows[folds[document]] += sizes[document]
    return folds


def _plain(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split())


def _trigrams(text: str) -> frozenset[str]:
    return frozenset(text[place : place + _TRIGRAM] for place in range(max(1, len(text) - _TRIGRAM + 1)))
