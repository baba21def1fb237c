"""A small synthesis with a teacher whose answers, good and bad, are a function of the request; also a program to kill.

``python synthesis_world.py OUTPUT PAUSE`` runs it with two teachers that take PAUSE seconds per answer.
"""

import functools
import hashlib
import itertools
import json
import re
import sys
import time
from pathlib import Path

from omegaconf import OmegaConf

from ncvc.corpus.synthesis.plan import SynthesisPlan, SynthesisSettings, Topic
from ncvc.corpus.synthesis.run import RunSettings, synthesize
from ncvc.settings import settings_from
from ncvc.teachers.teacher import Answer, Failure, Request, ScriptedTeacher

CONF = Path(__file__).resolve().parent.parent / "conf" / "synthesis"
NOT_SETTINGS = ("general_topics", "defaults")
NAMES = [
    "肺炎",
    "痛風",
    "高血圧症",
    "急性心筋梗塞",
    "2型糖尿病",
    "気管支喘息",
    "脳梗塞",
    "慢性腎臓病",
    "鉄欠乏性貧血",
    "胃潰瘍",
]
WORDS = [
    "発熱", "咳嗽", "疼痛", "浮腫", "頭痛", "倦怠感", "食欲低下", "体重減少", "血圧上昇", "呼吸困難",
    "血液検査", "画像検査", "心電図", "超音波検査", "薬物療法", "安静", "輸液", "手術", "食事療法", "経過観察",
]  # fmt: skip


@functools.cache
def _configured(which: str) -> str:
    textbook, exercise = (OmegaConf.load(CONF / f"{name}.yaml") for name in ("textbook", "exercise"))
    return json.dumps(OmegaConf.to_container(OmegaConf.merge(textbook, exercise) if which == "exercise" else textbook))


def settings(which: str = "exercise", **changes) -> SynthesisSettings:
    """The settings under conf/synthesis, as the program composes them."""
    plain = {name: value for name, value in json.loads(_configured(which)).items() if name not in NOT_SETTINGS}
    return settings_from(SynthesisSettings, {**plain, **changes}, path="synthesis")


def plan(which: str = "exercise", *, topics: int = 10, teachers: tuple[str, ...] = ("one", "two"), **changes):
    """A plan over the first of `NAMES`."""
    return SynthesisPlan(
        [Topic(name, "disease") for name in NAMES[:topics]], settings=settings(which, **changes), teachers=teachers
    )


def draw(request: Request, what: str, choices: int) -> int:
    """A number below `choices` that depends on the request alone."""
    digest = hashlib.sha256(f"{request.seed}{what}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % choices


def exercise(topic: str, words: list[str], *, key: str = "b") -> str:
    """A well-formed question."""
    options = "\n".join(f"{letter}: {word}を行う" for letter, word in zip("abcde", words[:5], strict=True))
    asked = f"問題: 60歳の女性。{words[5]}と{words[6]}を主訴に来院し、{topic}と診断された。まず行うべきものはどれか。"
    return (
        f"{asked}\n{options}\n答え: {key}\n解説: {topic}では{words[7]}がみられ、{words[1]}が第一に選ばれるためである。"
    )


def textbook(topic: str, words: list[str]) -> str:
    """A passage that repeats little."""
    parts = (f"{word}は第{number}に注意すべき{topic}の所見で、{other}の前に確かめる。"
             for number, (word, other) in enumerate(itertools.pairwise(words)))  # fmt: skip
    return f"{topic}とは、よくみられる疾患の一つである。" + "".join(parts)


def words_for(request: Request) -> list[str]:
    """The words in an order of the request's own."""
    return sorted(WORDS, key=lambda word: hashlib.sha256(f"{request.seed}{word}".encode()).digest())


def answer(request: Request) -> str | Answer | Failure:
    """Six answers in ten are good; the others show every fault there is a reason for."""
    asked = request.messages[-1]["content"]
    topic = re.search("「(.+?)」", asked)[1]
    good = (exercise if "五肢択一" in asked else textbook)(topic, words_for(request))
    faults = {
        0: "申し訳ありませんが、その質問にはお答えできません。",
        1: f"{topic} is a common disease. Patients present with fever and cough, and are treated with rest. " * 4,
        2: Answer(good[: len(good) // 2], "length"),
        3: Failure("the server said no"),
        4: good.replace(topic, "その疾患"),
        5: (exercise if "五肢択一" in asked else textbook)(topic, WORDS),
        6: "",
        7: good + "\n<|im_end|>",
    }
    return faults.get(draw(request, "fault", 20), good)


def run(output: Path, *, pause: float, which=("one", "two"), tell=print, chosen=None):
    """The synthesis of `chosen` (or the plan above) into `output`."""

    def slow(request: Request):
        time.sleep(pause)
        return answer(request)

    teachers = {name: lambda name=name: ScriptedTeacher(slow, name=name) for name in which}
    return synthesize(chosen or plan(), teachers=teachers, output=output, settings=RunSettings(sync_every=3), tell=tell)


def quiet(text: str) -> None:
    """Tells nobody."""


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rows_of(path: Path) -> list[dict]:
    """The objects of a JSON lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    run(Path(sys.argv[1]), pause=float(sys.argv[2]))
