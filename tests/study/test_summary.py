"""The table of a study, the rule for its best point, and its files."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from s4convert.errors import StorageError, UsageError
from s4convert.study.evaluation import Answer, Evaluation, Speed
from s4convert.study.plots import front
from s4convert.study.points import Point
from s4convert.study.questions import Question
from s4convert.study.results import Measured, Result, Score, open_results
from s4convert.study.summary import Row, Summary

COUNT = 100


def result(right: int, *, loss: float = 0.1, speed: float = 1.0) -> Result:
    """Of 100 questions, half of them with an image, the first *right* are answered right."""
    answers = []
    for number in range(COUNT):
        question = Question(str(number), "", Path() if number % 2 else None, ("A",), 4, "")
        is_right = number < right
        answers.append(Answer(question, "A" if is_right else "B", "A" if is_right else "B", is_right, loss, 1, False))
    timed = Speed(1.0, COUNT, 2 * COUNT, (COUNT,), 10**9, None)
    return Result(Evaluation(tuple(answers), 0.0, 0, timed), Measured(0.1, 2, 3.0, 0.5, speed, ("few tokens",)))


def row(name: str, heads: int, found: Result | None) -> Row:
    settings = ({"metric": "energy", "schedule": "uniform", "rate": heads / 64},) if heads else ()
    return Row(name, "scale" if heads else None, settings, None, heads, heads / 64, found)


def summary_of(*rows: Row) -> Summary:
    return Summary({"source": "llava"}, (row("base", 0, replace(result(95), measured=None)), *rows))


def test_the_best_point_prunes_most_of_those_that_lose_no_more_than_chance_explains() -> None:
    summary = summary_of(
        row("a", 8, result(95)), row("b", 16, result(92)), row("c", 16, result(93)), row("d", 32, result(60))
    )
    assert [one.point for one in summary.ranked()] == ["c", "b", "a", "d"]
    assert summary.best().point == "c"
    assert summary.best("accuracy").point == "a"
    with pytest.raises(UsageError, match="`best_by` 'speed' is none of"):
        summary.best("speed")


def test_where_all_points_lose_the_rule_says_so_and_another_can_be_chosen() -> None:
    summary = summary_of(row("a", 16, result(60, loss=0.5)), row("b", 32, result(50, loss=0.2)))
    with pytest.raises(UsageError, match="every point has lost accuracy"):
        summary.best()
    assert (summary.best("accuracy").point, summary.best("perplexity").point) == ("a", "b")
    with pytest.raises(UsageError, match="no point was run to its end"):
        summary_of(row("a", 16, Result(None, failure="no fit"))).best()


def test_a_row_says_everything_with_intervals_and_the_difference_in_words() -> None:
    summary = summary_of(row("a", 16, result(60)), row("b", 32, Result(None, failure="no fit")), row("c", 40, None))
    base, lost, failed, to_run = csv.DictReader(io.StringIO(summary.to_csv()))
    assert (base["accuracy"], base["accuracy_change"], base["settings"]) == ("95.0", "", "unpruned")
    assert (lost["accuracy"], lost["accuracy_change"], lost["rate"]) == ("60.0", "-35.0", "0.25")
    assert float(lost["accuracy_low"]) < 60 < float(lost["accuracy_high"])
    assert lost["accuracy_in_words"].startswith("lost 35.0 +- ")
    assert lost["image_accuracy"] == lost["text_accuracy"] == "60.0"
    assert (failed["state"], failed["reason"], failed["accuracy"]) == ("failed", "no fit", "")
    assert to_run["state"] == "to run"
    assert "1 points, 1 failed, 1 still to run" in summary.to_text()
    assert "energy uniform 0.5, scale: no fit" in summary.to_markdown()
    json.dumps(summary.to_json(), allow_nan=False)


def test_the_speed_is_told_with_its_spread_and_that_zeroed_heads_save_nothing() -> None:
    summary = summary_of(*(row(f"{speed}", 8, result(95, speed=speed)) for speed in (0.9, 1.0, 1.2)))
    assert summary.speed_in_words.startswith("Zeroed heads keep their shapes, so stock inference is not faster")
    assert "1.00 times as fast as the unpruned model (median of 3, from 0.90 to 1.20)" in summary.speed_in_words


def test_the_front_holds_what_no_other_point_beats_in_rate_and_accuracy() -> None:
    summary = summary_of(row("a", 8, result(90)), row("b", 16, result(92)), row("c", 32, result(60)))
    assert [one.point for one in front(summary)] == ["base", "b", "c"]


def test_a_result_comes_back_as_it_was_written_and_a_broken_file_is_told(tmp_path: Path) -> None:
    point, written = Point(None, None, (), {"fingerprint": "f"}), result(60)
    with open_results(tmp_path / "results") as results:
        assert results.result(point.name) is None
        results.keep(point, written)
        assert results.result(point.name) == written
        (path,) = (tmp_path / "results" / "points").iterdir()
        path.write_text(path.read_text()[:-20])
        with pytest.raises(UsageError, match=r"is not JSON .* remove it"):
            results.result(point.name)
        path.write_text(json.dumps({"format": "s4convert-point/1", "failure": None}))
        with pytest.raises(UsageError, match=r"is malformed .* remove it"):
            results.result(point.name)


def test_results_are_held_against_others_and_a_file_is_no_directory_for_them(tmp_path: Path) -> None:
    with (
        open_results(tmp_path / "results"),
        pytest.raises(StorageError, match="another sweep is writing there"),
        open_results(tmp_path / "results"),
    ):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is no directory"), open_results(tmp_path / "file"):
        pass


def test_a_point_whose_outside_evaluator_failed_has_failed() -> None:
    good, bad = row("good", 8, result(95)), replace(row("bad", 8, result(95)), outside=Score(None, "exit code 1"))
    summary = summary_of(good, bad)
    assert [one.point for one in summary.failed] == ["bad"]
    assert "2 points, 1 failed" in summary.to_text()
    assert ": exit code 1" in summary.to_markdown()
