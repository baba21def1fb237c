"""The score report: its files, its page in a real browser, its settings and its program."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from report_world import VERDICT, YEARS, choice_record, event_file, exam_record, score_file, span_record, training_run

from ncvc.analysis.score_page import Report, as_html, as_markdown
from ncvc.analysis.score_report import ReportSettings, write_report
from ncvc.analysis.score_tables import Row, Table
from ncvc.report import TEXTS
from ncvc.settings import plain_texts


def written_report(tmp_path, **more):
    chosen = {"home": str(tmp_path), "scores": ("all",), "runs": ("last",), "output": None, **more}
    return write_report(ReportSettings(**chosen), tell=lambda text: None)


@pytest.fixture(scope="module")
def filled_home(tmp_path_factory):
    """A home with a pretraining run whose checkpoints are scored, and a tuned model scored on everything."""
    pytest.importorskip("matplotlib")
    home = tmp_path_factory.mktemp("home")
    run = training_run(home / "runs" / "quickstart" / "2026-11-24_10-00-00")
    training_run(home / "runs" / "sft" / "2026-11-24_11-00-00", tuning=True)
    for step, points in ((20, 80), (40, 101), (60, 92)):
        records = [exam_record(year, points=points + year % 7) for year in YEARS[:3]]
        place = {"where": f"base/{step}", "directory": str(run / f"model-step={step}")}
        score_file(home, *records, name="quickstart", tokens=step * 2048, **place)
    choices = ("jmmlu_med", "crade", "rrtnm", "smdis", "jcsts")
    records = [choice_record(task) for task in choices] + [span_record("mrner_disease"), span_record()]
    records.append(exam_record(2018, points=97))
    score_file(home, *records, name="調整済み", tokens=123_000, directory=str(home / "m" / "model"))
    return home


@pytest.fixture(scope="module")
def page(filled_home, tmp_path_factory):
    """The page of that home, beside the other files."""
    return written_report(filled_home, output=str(tmp_path_factory.mktemp("report")))


def test_the_report_is_page_markdown_data_and_pictures(page):
    names = {path.name for path in page.parent.iterdir()}
    assert names == {"report.html", "report.md", "report.json", "figure_3.png", "figure_6.png", "figure_7.png"}
    data = json.loads(page.with_name("report.json").read_text())
    assert [table["name"] for table in data["tables"]] == [f"table_{number}" for number in range(2, 8)]
    assert len(data["sheets"]) == 4
    for text in (page.with_name(name).read_text(encoding="utf-8") for name in ("report.html", "report.md")):
        for claim in ("調整済み", VERDICT, "382 (76.6%)", "R126", "sociocom", "93.6 (18.8%)"):
            assert claim in text, claim


def test_the_page_asks_for_nothing_outside_itself(page):
    text = page.read_text(encoding="utf-8")
    addresses = re.findall(r"""(?:src|href|url|action|srcset)\s*[=(]\s*["']?([^"')\s>]*)""", text)
    assert addresses and all(address.startswith(("data:", "#")) for address in addresses)
    assert "<script" not in text and "@import" not in text
    assert "default-src 'none'" in text


def test_nothing_is_called_better_by_the_report_itself(page):
    words = re.compile(r"\b(better|best|worse|outperform\w*|beats?|superior|improve\w*|wins?)\b", re.IGNORECASE)
    for name in ("report.html", "report.md", "report.json"):
        text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page.with_name(name).read_text(encoding="utf-8"))
        assert VERDICT in text
        assert not words.search(text)


def test_equal_files_make_equal_reports_and_figures_of_an_earlier_one_do_not_stay(page, filled_home, tmp_path):
    again = written_report(filled_home, output=str(tmp_path))
    (tmp_path / "mine.png").write_bytes(b"mine")
    for path in page.parent.iterdir():
        assert (again.parent / path.name).read_bytes() == path.read_bytes()
    written_report(filled_home, output=str(tmp_path), runs=())
    assert {path.name for path in tmp_path.glob("*.png")} == {"figure_6.png", "mine.png"}


HOSTILE = "<script>alert(1)</script>\"'|`[x](http://e)\n\x00\ud800\u202eabc"


@settings(deadline=None, max_examples=50)
@given(text=st.text(max_size=40) | st.just(HOSTILE))
def test_whatever_a_model_or_task_is_called_the_page_and_the_markdown_stay_whole(text):
    row = Row(label=text, kind="own", cells=(text, text), source="", marks={0: (text,)})
    table = Table(name="sheet_1", title=text, header=("task", "items", "verdict"), rows=(row,), notes=(text,))
    report = Report(sheets=(table,), tables=(), figures=(), contradictions=(), remarks=(text,))
    page, words = as_html(report), as_markdown(report, pictures={})
    page.encode("utf-8"), words.encode("utf-8")
    empty = as_html(Report(sheets=(Table(name="sheet_1", title="", header=table.header, rows=(Row(
        label="", kind="own", cells=("", ""), marks={}),)),), tables=(), figures=(), contradictions=()))  # fmt: skip
    assert set(re.findall(r"<(\w+)", page)) <= set(re.findall(r"<(\w+)", empty)) | {"sup", "p"}
    lines = [line for line in words.splitlines() if line.startswith("| own run")]
    assert len(lines) == 1 and len(re.findall(r"(?<!\\)(?:\\\\)*\|", lines[0])) == len(table.header) + 2


# ---- settings and the program


@pytest.mark.parametrize(
    ("values", "message"),
    [({"scores": 3}, "scores=3: must be"), ({"runs": ["a", ""]}, "runs: an empty name"), ({"output": 4}, "output=4")],
)
def test_settings_that_cannot_be_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        ReportSettings.from_plain({"home": "h", "scores": "all", "runs": "last", "output": None, **values})


def test_one_name_is_a_list_of_one_and_none_is_nothing():
    chosen = ReportSettings.from_plain({"home": "h", "scores": "a", "runs": None, "output": None})
    assert (chosen.scores, chosen.runs) == (("a",), ())
    assert ReportSettings.from_plain({"home": "h", "scores": "none", "runs": ["none"], "output": None}).scores == ()


def test_paths_are_kept_from_the_grammar_of_overrides_and_lists_are_not():
    given, texts = plain_texts(
        ["scores=a b/c=d,(e)", "runs=[x,y]", "output=null", "home=h"], names=TEXTS, keep_lists=True
    )
    assert given == ["runs=[x,y]", "output=null", "home=h"]
    assert texts == {"scores": "a b/c=d,(e)"}


def test_no_scores_at_all_is_told_and_none_shows_the_published_tables_alone(tmp_path):
    with pytest.raises(ValueError, match=r"there are no scores under .* yet; .* sweep is not set"):
        written_report(tmp_path)
    page = written_report(tmp_path, scores=()).read_text(encoding="utf-8")
    assert "published rows only" in page and "Llama3-Preferred-MedSwallow-70B" in page


def test_a_run_without_a_loss_is_left_out_unless_it_was_named(tmp_path):
    empty = event_file(tmp_path / "runs" / "quickstart" / "2026-11-24_12-00-00", {"other": [(1, 1.0)]})
    told = []
    chosen = {"home": str(tmp_path), "scores": (), "output": str(tmp_path / "out")}
    write_report(ReportSettings(**chosen, runs=("all",)), tell=told.append)
    assert any(line.startswith("left out: ") and str(empty) in line for line in told)
    with pytest.raises(ValueError, match="no train/loss in it"):
        write_report(ReportSettings(**chosen, runs=(str(empty),)), tell=told.append)


@pytest.mark.slow
def test_the_program_writes_the_report_of_a_home_with_odd_names(filled_home, tmp_path):
    home = tmp_path / "home (1), a=b"
    shutil.copytree(filled_home, home)
    command = [sys.executable, "-m", "ncvc.report", f"scores={home}/scores", "runs=[quickstart]", f"output={home}/out"]
    environment = {**os.environ, "NCVC_HOME": str(home)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY, env=environment)
    assert done.returncode == 0, done.stderr
    assert f"report  {home}/out/report.html" in done.stdout
    assert (home / "out" / "figure_3.png").is_file() and not (home / "out" / "figure_7.png").exists()


# ---- a real browser


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as started:
        sandbox = [] if sys.platform != "linux" or os.geteuid() else ["--no-sandbox"]  # root has no sandbox
        opened = started.chromium.launch(executable_path=found, args=sandbox)
        yield opened
        opened.close()


def opened_page(browser, path, *, width):
    """The page at that width, and what it asked for or complained of besides itself."""
    view = browser.new_page(viewport={"width": width, "height": 800})
    said = []
    view.on("pageerror", lambda error: said.append(str(error)))
    view.on("console", lambda message: said.append(message.text))
    view.on("dialog", lambda dialog: said.append(dialog.message))
    view.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
    view.goto(path.as_uri())
    return view, said


@pytest.mark.slow
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_a_browser_shows_the_whole_page_at_any_width_and_asks_for_nothing(browser, page, width):
    view, said = opened_page(browser, page, width=width)
    assert view.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert view.evaluate("[...document.images].map(image => image.naturalWidth > 0)") == [True] * 3
    assert view.locator("section table").count() == 10
    last = view.locator(".verdict span").first
    last.scroll_into_view_if_needed()
    assert VERDICT in last.inner_text()
    box = last.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width
    hidden = "[...document.querySelectorAll('.wide')].filter(x => x.scrollWidth > x.clientWidth && getComputedStyle(x).overflowX != 'auto').length"  # noqa: E501
    assert view.evaluate(hidden) == 0
    assert said == []
    view.close()


@pytest.mark.slow
def test_a_browser_prints_the_page_without_cutting_a_table(browser, page, tmp_path):
    view, _ = opened_page(browser, page, width=703)  # A4 less its margins
    view.emulate_media(media="print")
    assert view.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert view.evaluate("[...document.querySelectorAll('.wide')].every(x => x.scrollWidth <= x.clientWidth + 1)")
    assert view.pdf(format="A4").startswith(b"%PDF")
    view.close()


@pytest.mark.slow
def test_a_browser_runs_nothing_of_what_models_and_tasks_are_called(browser, tmp_path):
    hostile = "<img src=x onerror=alert(1)><script>alert(2)</script><svg/onload=alert(3)>\"' onmouseover='alert(4)"
    record = choice_record(hostile, verdict=hostile)
    score_file(tmp_path, record, name=hostile, where="hostile", command=hostile)
    view, said = opened_page(browser, written_report(tmp_path, runs=()), width=390)
    assert view.locator("h3").first.inner_text().startswith(hostile)
    assert view.evaluate("document.querySelectorAll('script, svg, body img').length") == 0
    assert said == []
    view.close()
