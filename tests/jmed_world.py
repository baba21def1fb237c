"""A benchmark of a few rows in the form of JMED-LLM: all sixteen files, awkward cells, documents that meet."""

import csv
import random
from pathlib import Path

WORDS = [
    "発熱", "咳嗽", "疼痛", "浮腫", "頭痛", "倦怠感", "食欲低下", "体重減少", "血圧上昇", "呼吸困難",
    "血液検査", "画像検査", "心電図", "超音波検査", "薬物療法", "安静", "輸液", "手術", "食事療法", "経過観察",
]  # fmt: skip
DISEASE = "患者に実際に認められた病変や症状の存在を示す異常などの所見を表す表現は？"
CHOICE = ["無関係（ADEでない）", "ADEの可能性は低い", "おそらくADEである", "確実にADEである"]
STAGES = {
    "T": ["認めない", "≦3cm, 肺に限る", ">3cm\n- 主気管支に及ぶ", ">5cm", ">7cm"],
    "N": ["なし", "同側, 肺門", "縦隔", "対側", ""],
    "M": ["なし", "ある", "", "", ""],
}
SIMILAR = ["同じ", "ほぼ同じ", "大まかに", "詳細を共有", "同じトピック", "似ていない"]


def text_of(number: int) -> str:
    """A passage of its own words, over two lines, with full-width figures."""
    words = random.Random(number).sample(WORDS, 12)
    first, second = "、".join(words[:4]), "、".join(words[4:8])
    return f"第{number}例は{number}{number}歳，{first}。\n{second}から１０ｍｇ、{'、'.join(words[8:])}。"


CASES = [text_of(number) for number in range(6)]
CASE_0_AGAIN = CASES[0].replace("から", "より")  # as CRNER prints a report of CRADE
REPORTS = [text_of(number) for number in range(10, 16)]
RECORDS = ['「“眠い”, 頭が"重い"」と訴え。\n#頭痛 あり。\\ ', text_of(21), text_of(22)]
POSTS = [
    "兄がインフルになったらしい",
    "兄がインフルになったらしい。",
    "鼻水が止まらない、つらい",
    "風邪ひいた😷@tarou_12",
]
SENTENCES = ["腫瘤を認めた", "腫瘤を認めている", "腫瘤がある", "発熱した", "解熱した", "転院した", "退院とした"]
QUESTIONS = ["解糖速度が速いときにpHの変化を抑える細胞内緩衝液として働くものはどれか?",
             "解糖速度が速いときにpHの変化を抑える細胞内緩衝液として働くものは次のうちどれか?",
             "上腕骨の遠位端にあるものはどれか。"]  # fmt: skip


def about(instruction: str, passage: str) -> str:
    """A question about a passage."""
    return f"{instruction}\n「{passage}」"


def full_sets() -> dict[str, list[list[str]]]:
    """Header and rows of the full sets."""
    options = ["optionA", "optionB", "optionC", "optionD", "optionE", "optionF"]
    crade = [
        ["disease", about(f"「{WORDS[n]}」がADEである可能性は？", case), *CHOICE, "ABCD"[(place + n) % 4]]
        for place, case in enumerate(CASES)
        for n in (0, 1)
    ]
    tnm = [
        [tag, about(f"以下の読影レポートの{tag}は？", report), *texts, answer]
        for report in REPORTS[:3]
        for (tag, texts), answer in zip(STAGES.items(), "ECB", strict=True)
    ]
    posts = [
        [tag, about(f"以下の投稿をした人は{tag}でしたか？", post), "である", "でない", "AB"[place % 2]]
        for place, post in enumerate(POSTS)
        for tag in ("cold", "fever")
    ]
    pairs = [(0, 1), (1, 2), (3, 4), (5, 6), (6, 5)]
    return {
        "CRADE": [["tag", "question", *options[:4], "answer"], *crade],
        "RRTNM": [["tag", "question", *options[:5], "answer"], *tnm],
        "SMDIS": [["tag", "question", *options[:2], "answer"], *posts],
        "JCSTS": [
            ["question", *options, "answer"],
            *([f"類似度は？\nS1: {SENTENCES[a]}\nS2: {SENTENCES[b]}", *SIMILAR, "AF"[a % 2]] for a, b in pairs),
        ],
        "JMMLU-Med": [
            ["tag", "question", *options[:4], "answer"],
            *(["anatomy", question, "肘頭", "顆", "茎状突起, 鈎", "10⁵", "C"] for question in QUESTIONS),
        ],
        "CRNER": [
            ["tag", "question", "answer"],
            ["d", about(DISEASE, CASE_0_AGAIN), "['発熱']"],
            ["m-val", about("処方量は？", CASES[1]), "['１０ｍｇ', \"歳\"]"],
            ["d", about(DISEASE, CASES[2]), str([CASES[2][7:10], CASES[2][0:3], CASES[2][0:3]])],
            ["m-key", about("薬品名は？", CASES[3]), "['１０ｍｇ']"],
            ["d", about(DISEASE, CASES[4]), "['第4例']"],
        ],
        "RRNER": [["tag", "question", "answer"], *(["d", about(DISEASE, report), "['第']"] for report in REPORTS[3:])],
        "NRNER": [
            ["tag", "question", "answer"],
            ["d", about(DISEASE, RECORDS[0]), str(["#頭痛", '“眠い”, 頭が"重い"', "\\"])],
            ["m-key", about("薬品名は？", RECORDS[0]), "['眠い']"],
            ["d", about(DISEASE, RECORDS[1]), "['第21例']"],
            ["d", about(DISEASE, RECORDS[2]), "['第22例']"],
        ],
    }


TESTS = {
    "crade": [("CRADE", 0), ("CRADE", 3)],
    "rrtnm": [("RRTNM", 0)],
    "smdis": [("SMDIS", 1)],
    "jcsts": [("JCSTS", 0)],
    "jmmlu_med": [("JMMLU-Med", 0)],
    "mrner_disease": [("CRNER", 2), ("RRNER", 0)],
    "mrner_medicine": [("CRNER", 3)],
    "nrner": [("NRNER", 0)],
}
"""Which rows of the full sets each test set holds."""


def write_rows(path: Path, rows: list[list[str]], *, line_end: str = "\n") -> Path:
    """The rows as csv in UTF-8, line ends within cells too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator=line_end)
        writer.writerows([[cell.replace("\n", line_end) for cell in row] for row in rows])
    return path


def write_jmed(folder: Path, *, full: str = "all", test: str = "test", test_line_end: str = "\n") -> Path:
    """All sixteen files below `folder`, in the folders `full` and `test`."""
    sets = full_sets()
    for name, rows in sets.items():
        write_rows(folder / full / f"{name}.csv", rows)
    for name, places in TESTS.items():
        rows = [sets[places[0][0]][0], *(sets[source][1 + row] for source, row in places)]
        write_rows(folder / test / f"{name}.csv", rows, line_end=test_line_end)
    return folder
