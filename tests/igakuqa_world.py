"""A made-up examination in the form of IgakuQA, from tests/golden/igakuqa.jsonl: every trap of the scorers once."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).resolve().parent / "golden" / "igakuqa.jsonl"
DEMONSTRATION = {
    "problem_id": "100A1",
    "problem_text": "例題はどれか。2つ選べ。",
    "choices": ["甲", "乙", "丙", "丁", "戊"],
    "text_only": True,
    "answer": ["a", "b"],
    "explanation": "甲と乙である。",
}


def golden_rows() -> list[dict[str, Any]]:
    """Question, output, and what each scorer has to make of it."""
    return [json.loads(line) for line in GOLDEN.read_text(encoding="utf-8").splitlines()]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    """The rows as JSON lines in UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_igakuqa(folder: Path, *, metadata: bool = True, demonstrations: int = 3) -> Path:
    """The examination below ``folder``, in the repository's layout: data/<year>/<exam>-<block>.jsonl and prompts."""
    blocks = defaultdict(list)
    for row in golden_rows():
        blocks[row["question"]["problem_id"][:4]].append(row)
    for block, rows in blocks.items():
        stem = folder / "data" / str(int(block[:3]) + 1906) / f"{block[:3]}-{block[3]}"
        write_jsonl(stem.with_name(f"{stem.name}.jsonl"), [row["question"] for row in rows])
        write_jsonl(stem.with_name(f"{stem.name}_translate.jsonl"), [{"problem_text_en": "another file"}])
        if metadata:
            statistics = [
                {
                    "problem_id": row["question"]["problem_id"],
                    "category": "小児科",
                    "kinki": row["kinki"],
                    "reason": "",
                    "human_accuracy": "39.3",
                    "breakdown": ["15.7", "84.3"],
                }
                for row in rows
            ]
            write_jsonl(stem.with_name(f"{stem.name}_metadata.jsonl"), statistics)
    if demonstrations:
        write_jsonl(folder / "prompts" / "prompt.jsonl", [DEMONSTRATION] * demonstrations)
    return folder
