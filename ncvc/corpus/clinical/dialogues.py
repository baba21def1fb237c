"""Invented conversations for the quickstart of instruction tuning: questions and answers about the bundled lexicon.

**Every conversation is invented, for demonstration: no patient stands behind it, and nothing in it is medical
advice.** Four kinds: a patient's questions about a disease (one to three turns), a diagnosis in a sentence, a diagnosis
among four options (the answer is a letter), and the drugs of a note (the answer is a JSON list of what stands there). The
last two have the form in which JMED-LLM's tasks are asked here. Costs about 50 microseconds a conversation. The patterns
were written for this repository; a model tuned on them learns to answer in form, not medicine.
"""

# ruff: noqa: E501 -- a sentence pattern stays on one line
from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

from ncvc.chat import Message
from ncvc.corpus.clinical.case import Case, finding_sentence, join
from ncvc.corpus.clinical.lexicon import DISEASES, Disease
from ncvc.corpus.clinical.questions import question_pairs
from ncvc.evaluation.jmed_llm import CHOICE_INSTRUCTION, SPANS_INSTRUCTION
from ncvc.evaluation.spans import write_spans
from ncvc.storage import whole_file

CLINICAL_DIALOGUES = "clinical_dialogues"  # the name that stands for them as a source
_LETTERS = "ABCD"


def generate_dialogues(*, conversations: int, seed: int) -> Iterator[tuple[str, list[Message]]]:
    """(id, messages) of ``conversations`` dialogues; number k depends on (seed, k) alone.

    Raises ValueError for a negative count.
    """
    if conversations < 0:
        raise ValueError(f"conversations={conversations} cannot be negative: set 0 or more")
    return (_dialogue(number, seed=seed) for number in range(conversations))


def write_clinical_dialogues(path: Path, *, conversations: int = 4000, seed: int = 0) -> None:
    """Write the dialogues as JSON lines {"id", "messages"}; the file appears whole or not at all.

    The same arguments give the same bytes on every machine.
    """
    written = generate_dialogues(conversations=conversations, seed=seed)
    with whole_file(path) as file:
        for name, messages in written:
            turns = [{"role": message.role, "content": message.content} for message in messages]
            file.write((json.dumps({"id": name, "messages": turns}, ensure_ascii=False) + "\n").encode("utf-8"))


def bundled_dialogues(home: Path) -> Path:
    """The dialogues as a file under ``home``, written if it is not there or not what this version writes."""
    path = home / "corpus" / f"{CLINICAL_DIALOGUES}.jsonl"
    fresh = path.with_name(f".{path.name}")
    write_clinical_dialogues(fresh)
    if path.is_file() and path.read_bytes() == fresh.read_bytes():
        fresh.unlink()  # the file keeps its time of change, by which it is known
    else:
        fresh.replace(path)
    return path


def _dialogue(number: int, *, seed: int) -> tuple[str, list[Message]]:
    rng = Random(f"{seed}/dialogue {number}")
    names = tuple(DISEASES)
    order = Random(f"{seed}/round {number // len(names)}").sample(names, len(names))
    disease = DISEASES[order[number % len(names)]]  # each disease once before any comes twice
    kind, write = rng.choice(_KINDS)
    turns = write(rng, disease)
    messages = [Message(("user", "assistant")[place % 2], text) for place, text in enumerate(turns)]
    return f"dialogue-{seed}-{number:06d}-{kind}", messages


def _talk(rng: Random, disease: Disease) -> list[str]:
    """One to three questions of a patient, the first of which names the disease."""
    pairs = question_pairs(rng, disease, at_least=1)
    return [text for pair in pairs[: rng.choice((1, 1, 2, 3))] for text in pair]


def _presentation(rng: Random, disease: Disease) -> str:
    """A patient with the disease, which is not named."""
    case = Case(rng, disease)
    signs = join(case.signs[:2], last="と")
    told = [f"{case.person}。{case.because()}{disease.department}を受診した。", f"身体診察で{signs}を認めた。"]
    told += [case.labs_sentence(), finding_sentence(rng, *rng.choice(case.findings))]
    return "".join(sentence for sentence in told if disease.name not in sentence)


def _diagnosis(rng: Random, disease: Disease) -> list[str]:
    asked = rng.choice(("最も考えられる疾患は何ですか。", "考えられる診断名を教えてください。", "診断は何でしょうか。"))
    told = rng.choice((f"{disease.name}が最も考えられます。", f"所見からは{disease.name}が疑われます。"))
    return [f"次の症例を読んで答えてください。{asked}\n「{_presentation(rng, disease)}」", told]


def _choice(rng: Random, disease: Disease) -> list[str]:
    others = rng.sample([name for name in DISEASES if name != disease.name], len(_LETTERS) - 1)
    options = rng.sample([disease.name, *others], len(_LETTERS))
    lines = [f"{letter}. {name}" for letter, name in zip(_LETTERS, options, strict=True)]
    question = f"以下の症例で最も考えられる診断は？\n「{_presentation(rng, disease)}」"
    return ["\n".join([CHOICE_INSTRUCTION, question, *lines]), _LETTERS[options.index(disease.name)]]


def _spans(rng: Random, disease: Disease) -> list[str]:
    case = Case(rng, disease)
    note = f"{case.person}。{disease.name}と診断した。{case.start_of_treatment()}"
    drugs = list(dict.fromkeys(drug.name for drug, _ in case.drugs[:3]))
    drugs.sort(key=note.index)
    return [f"{SPANS_INSTRUCTION}\n以下の症例で、使われた薬の名前は？\n「{note}」", write_spans(drugs)]


_KINDS = (
    ("talk", _talk),
    ("talk", _talk),
    ("diagnosis", _diagnosis),
    ("choice", _choice),
    ("spans", _spans),
)
