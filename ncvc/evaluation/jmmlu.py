"""JMMLU's subjects as tasks: one .csv a subject, without a header: question, four options, the letter.

``jmmlu`` are the five medical subjects that JMED-LLM took over as JMMLU-Med (681 questions); ``jmmlu_<subject>`` is
any one file there is. The five hold the 100 test rows of JMED-LLM's jmmlu_med and the 581 that its splits train on,
so a model tuned on JMED-LLM has seen most of them: ``jmed_llm_rows`` in the task's source names the subjects concerned.
Questions are asked like jmmlu_med. Costs: 10 ms a subject. Does not: know subjects that have no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ncvc.chat import Message
from ncvc.evaluation.benchmark_rows import read_records, refuse
from ncvc.evaluation.item import Item, Task
from ncvc.evaluation.jmed_llm import CHOICE_INSTRUCTION

MEDICAL_SUBJECTS = ("anatomy", "clinical_knowledge", "college_medicine", "medical_genetics", "professional_medicine")
LETTERS = ("A", "B", "C", "D")


def choice_prompt(question: str, options: Sequence[str], letters: Sequence[str], *, instruction: str) -> str:
    """The user turn of a question with options, in the form of JMED-LLM's choice tasks here."""
    lines = (f"{letter}. {text}" for letter, text in zip(letters, options, strict=True))
    return "\n".join([instruction, question, *lines])


def jmmlu_task(folder: Path, *, name: str = "jmmlu") -> Task:
    """The task ``jmmlu`` or ``jmmlu_<subject>``; ``ValueError`` names bad rows, ``FileNotFoundError`` the subjects."""
    folder = Path(folder)
    paths = {path.stem: path for path in sorted(folder.glob("*.csv")) if not path.name.startswith(".")}
    wanted = MEDICAL_SUBJECTS if name == "jmmlu" else (name.removeprefix("jmmlu_"),)
    if missing := [subject for subject in wanted if subject not in paths]:
        held = ", ".join(paths) or "no .csv"
        raise FileNotFoundError(f"{name}: {folder} lacks {', '.join(missing)} (.csv); it holds {held}.")
    items: list[Item] = []
    problems: list[str] = []
    hashes = {}
    for subject in wanted:
        records = read_records(paths[subject], header=False)
        hashes[paths[subject].name] = records.sha256
        problems += records.problems
        for record in records.rows:
            try:
                items.append(_item(list(record.cells.values()), task=name, subject=subject, number=record.number))
            except ValueError as error:
                problems.append(f"{record.where}: {error}")
    refuse(problems)
    source = {"files": hashes, "jmed_llm_rows": sorted({*wanted} & {*MEDICAL_SUBJECTS})}
    return Task(name=name, family="jmmlu", items=tuple(items), kappa="unweighted", source=source)


def _item(cells: Sequence[str], *, task: str, subject: str, number: int) -> Item:
    if len(cells) != 2 + len(LETTERS):
        raise ValueError(f"has {len(cells)} cells; it has to have 6: question, four options, the right letter.")
    question, options, answer = cells[0], tuple(cells[1:-1]), cells[-1].strip()
    if not question.strip() or not all(option.strip() for option in options):
        raise ValueError("the question or an option is empty; take the file from JMMLU again.")
    if answer not in LETTERS:
        raise ValueError(f"the answer is {answer[:40]!r}; it has to be one of {', '.join(LETTERS)}.")
    asked = choice_prompt(question, options, LETTERS, instruction=CHOICE_INSTRUCTION)
    return Item(
        id=f"{subject}:{number}",
        task=task,
        kind="choice",
        messages=(Message("user", asked),),
        gold=(answer,),
        letters=LETTERS,
        options=options,
        group=f"{subject}:{number}",
        tag=subject,
        metadata={"question": question},
    )
