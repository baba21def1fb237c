"""Figures 3, 6 and 7: curves as logged, checkpoints in their place with their intervals."""

import math
import os
import random
import statistics
from dataclasses import replace

import pytest
from report_world import TOTALS, YEARS, choice_record, event_file, exam_record, own, score_file, training_run

from ncvc.analysis.published_scores import published_scores
from ncvc.analysis.score_figures import checkpoints_of, draw_losses, draw_scores
from ncvc.analysis.training_curves import find_runs, read_curve


def test_the_interval_of_a_mean_over_years_is_that_of_resampling_the_years_together(tmp_path):
    draw, shares = random.Random(1), (0.2, 0.3, 0.25)
    answers = [[draw.random() < share for _ in range(400)] for share in shares]
    records, resampled = [], []
    for year, right in zip(YEARS, answers, strict=False):
        means = sorted(statistics.fmean(draw.choices(right, k=400)) for _ in range(1000))
        low, high = (100 * means[place] for place in (25, 975))
        record = exam_record(year, points=100 * statistics.fmean(right), total=100)
        record["interval"] = {"corrected": {"percent": [low, high]}}
        records.append(record)
    for _ in range(1000):
        resampled.append(100 * statistics.fmean(statistics.fmean(draw.choices(right, k=400)) for right in answers))
    score_file(tmp_path, *records, tokens=1000)
    [point], left_out = checkpoints_of(own(tmp_path))
    resampled.sort()
    assert left_out == 0
    assert point.percent == pytest.approx(100 * statistics.fmean(map(statistics.fmean, answers)))
    assert (point.low, point.high) == pytest.approx((resampled[25], resampled[975]), abs=0.35)
    assert point.chance == pytest.approx(18.8)


def test_checkpoints_of_a_run_are_one_line_by_tokens_and_others_are_not(tmp_path):
    run = tmp_path / "runs" / "quickstart" / "1"
    for step, tokens in ((20, 2000), (10, 1000)):
        record = exam_record(2018, points=90 + step)
        score_file(tmp_path, record, where=f"{step}", tokens=tokens, directory=str(run / f"model-step={step}"))
    score_file(tmp_path, exam_record(2018, points=1), where="shots", shots=3, tokens=5, directory=str(run / "model"))
    score_file(tmp_path, exam_record(2018, points=1), where="unknown")
    score_file(tmp_path, exam_record(2018, points=1, answered=399), where="part", tokens=7)
    score_file(tmp_path, choice_record(), where="no exam", tokens=9)
    points, left_out = checkpoints_of(own(tmp_path))
    lines = {}
    for point in points:
        lines.setdefault(point.series, []).append((point.tokens, point.percent))
    assert lines == {
        "quickstart/1, 0-shot, generation": [(n * 1000, pytest.approx(100 * (90 + 10 * n) / 499)) for n in (1, 2)],
        "quickstart/1, 3-shot, generation": [(5, pytest.approx(100 / 499))],
    }  # fmt: skip
    assert left_out == 2


def test_a_curve_is_what_was_logged_without_what_was_not_finite_or_done_again(tmp_path):
    run = tmp_path / "run"
    event_file(run, {"train/loss": [(10, 8.0), (20, math.nan), (30, 6.0), (40, math.inf)]})
    event_file(run, {"train/loss": [(30, 5.0), (40, 4.0)], "train/tokens_seen": [(30, 300.0), (40, 400.0)]})
    curve = read_curve(run)
    assert [step for step, _ in curve.losses][:1] == [10]
    assert dict(curve.losses)[40] == 4.0 and dict(curve.losses)[30] == 5.0
    assert curve.not_finite == 1
    assert curve.tokens_per_step == 10.0


def test_a_file_of_events_whose_end_was_cut_gives_what_is_before_the_cut(tmp_path):
    run = training_run(tmp_path / "run")
    [path] = (run / "tensorboard").iterdir()
    whole = read_curve(run).losses
    path.write_bytes(path.read_bytes()[:-7])
    assert read_curve(run).losses == whole
    path.write_bytes(path.read_bytes()[:200])
    assert 0 < len(read_curve(run).losses) < len(whole)


def test_runs_are_found_by_folder_by_name_and_the_newest_of_each_kind(tmp_path):
    first = training_run(tmp_path / "runs" / "quickstart" / "1")
    second = training_run(tmp_path / "runs" / "quickstart" / "2")
    tuned = training_run(tmp_path / "runs" / "sft" / "jmed", tuning=True)
    times = {first: 100, second: 200, tuned: 150}
    for run, time in times.items():
        for path in (run / "tensorboard").iterdir():
            os.utime(path, (time, time))
    assert find_runs(["last"], home=tmp_path) == [second, tuned]
    assert find_runs(["all"], home=tmp_path) == [first, tuned, second]
    assert find_runs(["quickstart"], home=tmp_path) == [second]
    assert find_runs([str(first), "sft/jmed"], home=tmp_path) == [first, tuned]
    with pytest.raises(FileNotFoundError, match="runs=nothing: no TensorBoard event files"):
        find_runs(["nothing"], home=tmp_path)


def test_figures_hold_the_runs_of_their_kind_and_their_numbers(tmp_path):
    pytest.importorskip("matplotlib")
    curves = [
        read_curve(training_run(tmp_path / "runs" / "a" / "1")),
        read_curve(training_run(tmp_path / "runs" / "b" / "1", tuning=True)),
    ]
    pretraining, tuning = (draw_losses(curves, kind=kind) for kind in ("pretraining", "tuning"))
    assert [run["name"] for run in pretraining.data["runs"]] == ["a/1"]
    assert [run["name"] for run in tuning.data["runs"]] == ["b/1"]
    assert pretraining.png.startswith(b"\x89PNG") and pretraining.png == draw_losses(curves, kind="pretraining").png
    score_file(tmp_path, exam_record(2018, points=99), tokens=1_000_000)
    points, _ = checkpoints_of(own(tmp_path))
    figure = draw_scores(points, published_scores(), left_out=2)
    assert [tokens for tokens, _ in figure.data["published"]] == [20132659200.0, 50331648000.0]
    assert figure.data["published"][0][1] == pytest.approx(statistics.fmean(
        100 * points / total for points, total in zip((70, 64, 73, 77, 57), TOTALS.values(), strict=True)
    ))  # fmt: skip
    assert "2 score files" in figure.caption
    assert draw_scores([], published_scores(), left_out=0) is None


def test_any_name_of_a_run_can_stand_in_a_legend(tmp_path):
    pytest.importorskip("matplotlib")
    names = ("$\\frac{1$ 調整済み", "_hidden", "長" * 200)
    curves = [replace(read_curve(training_run(tmp_path / str(place))), name=name) for place, name in enumerate(names)]
    assert draw_losses(curves, kind="pretraining").png.startswith(b"\x89PNG")
