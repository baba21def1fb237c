"""What `python -m ncvc.show` shows is what training gets, marked so that nothing in a text can be taken for a mark."""

import html
import json
import re
from itertools import pairwise

import pytest
from conftest import write_tiny_model

from ncvc.row_display import ShownRow, ShowSettings, as_text, rows_of_step, spans_of, write_page
from ncvc.show import show

ANSWER = "肺炎です。"
TYPED = "<|assistant|>と書くと? <script>alert(1)</script>⟦"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture
def tuning(tmp_path, base, composed):
    """The composed configuration of ``python -m ncvc.show`` for six conversations."""
    rows = [
        [{"role": "user", "content": f"{n}番。{TYPED}"}, {"role": "assistant", "content": ANSWER}] for n in range(6)
    ]
    file = tmp_path / "chat.jsonl"
    file.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows), encoding="utf-8")

    def configuration(*overrides):
        return composed(
            "experiment=sft_quickstart",
            "conversations=messages",
            f"data.sources.messages.path={file}",
            f"base={base}",
            f"paths.home={tmp_path / 'home'}",
            f"paths.run={tmp_path / 'run'}",
            "data.batch_size=4",
            "data.micro_batch_size=2",
            "data.validation_fraction=0",
            "data.workers=1",
            *overrides,
            root="show",
        )

    return configuration


def test_the_targets_of_a_row_stand_between_marks_and_typed_tokens_are_told_from_real_ones(tuning, capsys):
    rows = show(tuning("rows=2", "color=false"))
    printed = capsys.readouterr().out
    shown = [line for line in printed.splitlines() if line.startswith("<|begin_of_text|>")]
    assert len(shown) == len(rows) == 2
    for line in shown:
        assert line.count("⟦") - line.count("\\⟦") == 1
        assert line.endswith(f"<|assistant|>⟦{ANSWER}<|end_of_text|>⟧")
        assert line.count("\\<|assistant|>") == 1
    tokens = [len(row.ids) for row in rows]
    assert all(
        f"{count} tokens, {sum(row.targets)} targets" in printed for count, row in zip(tokens, rows, strict=True)
    )
    assert "chat.jsonl:" in printed
    assert "6 conversations of" in printed and "median" in printed


@pytest.mark.parametrize("layout", ["bucketed", "packed"])
def test_rows_are_the_samples_of_that_step_whatever_the_layout(tuning, layout):
    found = {}
    for step in (1, 2):
        rows = show(tuning(f"data.layout={layout}", "rows=9", f"step={step}", "color=false"))
        assert len(rows) == 4
        found[step] = [(row.title, tuple(row.ids)) for row in rows]
        assert all(any(row.targets) and not row.targets[0] for row in rows)
    assert found[1] != found[2]


def test_a_step_or_setting_that_cannot_be_is_refused_by_name(tuning):
    with pytest.raises(ValueError, match="step=301: the training has only 300 steps"):
        show(tuning("step=301"))
    with pytest.raises(ValueError, match="rows=0"):
        show(tuning("rows=0"))
    with pytest.raises(ValueError, match="color='blue'"):
        show(tuning("color=blue"))
    with pytest.raises(ValueError, match=r"data\.waight|1 problem"):
        show(tuning("+data.waight=1"))


def test_colours_follow_the_targets_and_the_text_cannot_bring_its_own(tuning, tmp_path):
    tokenizer = data_of(tuning()).tokenizer
    ids = [tokenizer.begin_id, *tokenizer.encode("\x1b[31m赤\u202e"), *tokenizer.encode(ANSWER), tokenizer.end_id]
    answer = len(tokenizer.encode(ANSWER)) + 1
    row = ShownRow(title="x", ids=ids, targets=[False] * (len(ids) - answer) + [True] * answer)
    text = as_text(row, tokenizer=tokenizer, color=True)
    assert f"\x1b[32m{ANSWER}\x1b[0m" in text
    assert "\u202e" not in text
    assert set(re.findall("\x1b\\[[0-9;]*m", text)) <= {f"\x1b[{code}m" for code in ("0", "2", "32", "35", "32;1;4")}
    kinds = [kind for kind, _ in spans_of(row, tokenizer=tokenizer)]
    assert kinds == ["special", "plain", "target", "special-target"]


def test_escapes_in_a_text_are_written_as_codes():
    from ncvc.row_display import visible

    assert visible("a\x1b[31m\u202e\x07\n\u2028") == "a\\u{1b}[31m\\u{202e}\\u{7}\n\\u{2028}"
    assert visible("<|user|>⟦x⟧") == "\\<|user|>\\⟦x\\⟧"


def data_of(config):
    from hydra.utils import instantiate

    data = instantiate(config.data, _convert_="all")
    data.prepare_data()
    data.setup()
    return data


def test_the_page_holds_every_row_and_no_markup_of_the_text(tuning, tmp_path):
    page = tmp_path / "folder" / "page.html"
    show(tuning("rows=3", f"html={page}"))
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    assert text.count('<div class="row">') == 3
    assert text.count(f'<span class="target">{ANSWER}</span>') == 3
    assert "http" not in text.replace("http-equiv", "")
    shown = re.findall('<div class="row">(.*?)</div>', text, re.DOTALL)
    plain = html.unescape(re.sub("<[^>]*>", "", shown[0]))
    assert plain.startswith("<|begin_of_text|><|user|>") and plain.endswith("<|end_of_text|>")


def test_packed_text_is_shown_with_its_documents_in_turns_of_colour(tiny_run):
    data = data_of(tiny_run("model.context_length=200"))
    rows = rows_of_step(data, step=1, rows=2)
    for row in rows:
        kinds = [kind for kind, _ in spans_of(row, tokenizer=data.tokenizer) if kind != "special"]
        begins = sum(token == data.tokenizer.begin_id for token in row.ids[1:])
        assert begins > 0
        assert len(kinds) >= begins and all(first != second for first, second in pairwise(kinds))
        assert sum(row.targets) == 200
        assert "documents" in row.title


def test_settings_are_checked():
    for wrong in ({"rows": True}, {"rows": "3"}, {"step": -1}, {"html": " "}, {"color": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ShowSettings(**wrong)


def test_a_page_with_half_a_character_is_still_written(tmp_path, base):
    from ncvc.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(base / "tokenizer")
    row = ShownRow(title="x", ids=[tokenizer.begin_id, 4 + 0xE3, tokenizer.end_id], targets=[False, True, True])
    write_page(tmp_path / "page.html", title="t", rows=[row], tokenizer=tokenizer, notes=["n"])
    assert "\ufffd" in (tmp_path / "page.html").read_text(encoding="utf-8")
