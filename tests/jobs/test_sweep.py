"""A sweep measures every point once, on the model that it says, and goes on where it was stopped."""

from __future__ import annotations

import json
import random
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import s4convert
from benchmarks.mini.questions import write_scienceqa
from s4convert.demo import MINI_LLAVA
from s4convert.errors import CheckpointError, StorageError, UsageError
from s4convert.jobs import bench
from s4convert.jobs import sweep as job
from s4convert.jobs.mask import make_mask
from s4convert.jobs.sweep import SweepOptions, Swept, read_study, summarise_results, sweep
from s4convert.mask import HeadMask
from s4convert.study.results import STUDY_FILE, Results, open_results
from tests.support.command_line import ROOT, run_here
from tests.support.environments import in_the_newest_environment
from tests.support.sweeps import rows_of
from tests.support.warm_python import warm

pytestmark = in_the_newest_environment

NUM_KILLS = 5


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options that ask two questions with an image and three without."""
    directory = tmp_path_factory.mktemp("asked")
    write_scienceqa(directory, num_image=2, num_text=3)
    return {
        "questions": directory / "questions.json",
        "images": directory / "images",
        "conversation": "vicuna_v1",
        "batch_size": 2,
        "max_new_tokens": 4,
    }


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options that read one short text, and so take next to no time."""
    path = tmp_path_factory.mktemp("texts") / "text.txt"
    path.write_text("The box has two.\n")
    return {"text": path, "rates": "0.1,0.15,0.3", "metrics": "random", "compensations": "none,scale"}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, asked: dict[str, Any]) -> Swept:
    return sweep(
        MINI_LLAVA,
        tmp_path_factory.mktemp("swept") / "results",
        **asked,
        rates="0.05,0.15,0.3",
        schedules="uniform,bands:0-3:0,4-7:0.25",
        compensations="none,least-squares",
        calibration=asked["questions"],
        calibration_images=asked["images"],
    )


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As many entries as evaluations were started."""
    seen: list[int] = []
    evaluate_model = bench.evaluate_model

    def counted(*args: Any, **kwargs: Any) -> Any:
        seen.append(len(seen))
        return evaluate_model(*args, **kwargs)

    monkeypatch.setattr(bench, "evaluate_model", counted)
    return seen


# --- what is measured ---------------------------------------------------------------------------------------


def test_a_sweep_finds_what_evaluate_finds_on_converted_checkpoints(
    swept: Swept, asked: dict[str, Any], tmp_path: Path
) -> None:
    results = Results(swept.directory)
    statistics = next(swept.directory.glob("statistics-*"))
    points = json.loads((swept.directory / STUDY_FILE).read_text())["points"]
    assert len(points) == 7
    paths = [MINI_LLAVA]
    for number, entry in enumerate(points[1:3]):
        pruned = entry["mask"]["pruned"]
        mask = HeadMask(8, tuple(tuple(pruned.get(str(layer), ())) for layer in range(8)))
        settings = {"compensation": entry["compensation"], "statistics": statistics}
        paths.append(tmp_path / f"out-{number}")
        s4convert.convert(MINI_LLAVA, paths[-1], mask, check_behaviour=False, card=False, **settings)
    alone = s4convert.evaluate(paths, **asked).evaluations.values()
    for entry, wanted in zip(points[:3], alone, strict=True):
        result = results.result(entry["point"])
        assert result is not None and result.evaluation is not None
        assert [one.text for one in result.evaluation.answers] == [one.text for one in wanted.answers]
        assert result.evaluation.accuracy() == wanted.accuracy()
        assert result.evaluation.answer_perplexity == pytest.approx(wanted.answer_perplexity, rel=1e-3)


def test_every_point_proves_that_it_was_in_effect(swept: Swept) -> None:
    for row in swept.summary.done:
        assert row.result is not None and row.result.measured is not None
        assert row.result.measured.silent_heads == row.heads_pruned > 0
        assert row.result.measured.change > 1e-3
        assert row.result.measured.error is not None and row.result.measured.error > 0
        left = row.result.measured.error_left
        assert left is not None and (left == 1 if row.compensation == "none" else left < 1)


def test_realised_rates_stand_beside_asked_ones_and_settings_that_prune_nothing_are_told(swept: Swept) -> None:
    asked_for = {(row["asked_rate"], row["rate"], row["schedule"]) for row in swept.summary.to_rows()[1:]}
    assert asked_for == {
        ("0.15", 0.125, "uniform"),
        ("0.3", 0.25, "uniform"),
        ("", 0.125, "bands:0-3:0,4-7:0.25"),
    }
    (nothing,) = swept.summary.about["prune_nothing"]
    assert nothing["rate"] == 0.05 and "prunes no head" in nothing["reason"]
    assert "uniform at 0.05 prunes no head" in (swept.directory / "summary.md").read_text()


def test_settings_that_are_the_same_mask_run_once_and_are_shown_once(
    tmp_path: Path, texts: dict[str, Any], evaluations: list[int]
) -> None:
    swept = sweep(MINI_LLAVA, tmp_path / "results", **texts)
    assert len(evaluations) == 1 + 2 * 2  # the baseline; 0.1 and 0.15 are one mask of 8 heads
    assert [row.asked for row in swept.summary.rows[1:3]] == ["random uniform 0.1; random uniform 0.15"] * 2
    assert "2 more came out as the same mask" in swept.to_text()


def test_files_and_plots_are_as_people_look_at_them(swept: Swept) -> None:
    names = {path.name for path in swept.directory.iterdir()}
    assert names >= {"summary.csv", "summary.json", "summary.md"}
    assert names >= {f"{name}.{kind}" for name in ("accuracy", "error", "pareto") for kind in ("svg", "png")}
    assert "so stock inference is not faster" in (swept.directory / "summary.md").read_text()
    assert json.loads((swept.directory / "summary.json").read_text())["rows"] == swept.summary.to_rows()


# --- going on ----------------------------------------------------------------------------------------------


def test_a_finished_point_never_runs_twice(tmp_path: Path, texts: dict[str, Any], evaluations: list[int]) -> None:
    sweep(MINI_LLAVA, tmp_path / "results", **texts)
    first, summary = len(evaluations), (tmp_path / "results" / "summary.csv").read_text()
    sweep(MINI_LLAVA, tmp_path / "results", **texts)
    assert len(evaluations) == first
    assert (tmp_path / "results" / "summary.csv").read_text() == summary
    sweep(MINI_LLAVA, tmp_path / "results", **texts | {"rates": "0.3,0.4"})
    assert len(evaluations) == first + 2


@pytest.mark.parametrize("changed", [{"max_new_tokens": 5}, {"dtype": "float16"}, {"text": "another"}])
def test_what_decides_the_answers_makes_other_points(
    tmp_path: Path, texts: dict[str, Any], evaluations: list[int], changed: dict[str, Any]
) -> None:
    few = texts | {"rates": "0.3", "compensations": "none"}
    if "text" in changed:
        changed = {"text": tmp_path / "another.txt"}
        changed["text"].write_text("The cup has three.\n")
    sweep(MINI_LLAVA, tmp_path / "results", **few)
    sweep(MINI_LLAVA, tmp_path / "results", **few | changed)
    assert len(evaluations) == 4


def test_a_failed_point_is_kept_with_its_reason_and_retried_on_request(
    tmp_path: Path, texts: dict[str, Any], evaluations: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = bench.fit

    def broken(mode: str, *args: Any, **kwargs: Any) -> Any:
        if mode == "scale":
            raise CheckpointError("o_proj would overflow F16")
        return fit(mode, *args, **kwargs)

    monkeypatch.setattr(bench, "fit", broken)
    swept = sweep(MINI_LLAVA, tmp_path / "results", **texts)
    assert [row.compensation for row in swept.summary.failed] == ["scale", "scale"]
    assert "o_proj would overflow F16" in (tmp_path / "results" / "summary.md").read_text()
    said = run_here("sweep", MINI_LLAVA, "--output", tmp_path / "results", *flags_of(texts))
    assert said.exit_code == 1 and "2 points, 2 failed" in said.stdout
    monkeypatch.setattr(bench, "fit", fit)
    before = len(evaluations)
    assert len(sweep(MINI_LLAVA, tmp_path / "results", **texts).summary.failed) == 2
    assert len(evaluations) == before
    assert not sweep(MINI_LLAVA, tmp_path / "results", **texts, retry_failed=True).summary.failed
    assert len(evaluations) == before + 2


def flags_of(settings: dict[str, Any]) -> list[object]:
    return [part for name, value in settings.items() for part in (f"--{name}", value)]


def test_a_sweep_that_is_killed_again_and_again_ends_as_an_undisturbed_one(
    tmp_path: Path, texts: dict[str, Any]
) -> None:
    undisturbed = sweep(MINI_LLAVA, tmp_path / "undisturbed", **texts)
    task = {
        "source": str(MINI_LLAVA),
        "out": str(tmp_path / "killed"),
        "options": texts | {"text": str(texts["text"])},
        "calls": sorted(random.Random(20).sample(range(24), NUM_KILLS)),
    }
    finished = subprocess.run(
        [warm("python"), "-m", "tests.support.killed_sweeps"],
        input=json.dumps(task),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert json.loads(finished.stdout) == [-signal.SIGKILL] * NUM_KILLS
    sweep(MINI_LLAVA, tmp_path / "killed", **texts)
    assert rows_of(tmp_path / "killed") == rows_of(undisturbed.directory)
    assert {path.name for path in (tmp_path / "killed").rglob("*")} == {
        path.name for path in undisturbed.directory.rglob("*")
    }


def test_two_sweeps_in_one_directory_are_refused(tmp_path: Path, texts: dict[str, Any]) -> None:
    with open_results(tmp_path / "results"), pytest.raises(StorageError, match="another sweep is writing there"):
        sweep(MINI_LLAVA, tmp_path / "results", **texts)


# --- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rates": ()}, "needs `rates`"),
        ({"rates": "0.1,one"}, "is not a number from 0 to below 1"),
        ({"metrics": "energy"}, "the metric energy is measured on calibration data"),
        ({"metrics": "energie"}, "`metrics`: 'energie' is none of"),
        ({"compensations": "least-squares"}, "is fitted to calibration data"),
        ({"schedules": "bands:0-3:0.5"}, "layer 4: is in no band"),
        ({"calibration_samples": 3}, "`calibration_samples` is about calibration data"),
        ({"samples": "answers.jsonl"}, "leave `samples` and `force` out"),
        ({"masks": ["a/mask.json", "b/mask.json"]}, "two are called 'mask.json'"),
        ({"text": "missing.txt"}, "missing.txt: cannot be read"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_written(
    tmp_path: Path, texts: dict[str, Any], changed: dict[str, Any], message: str
) -> None:
    with pytest.raises((UsageError, StorageError), match=message):
        sweep(MINI_LLAVA, tmp_path / "results", **texts | changed)
    assert not (tmp_path / "results").exists()


def test_a_directory_with_other_files_is_refused(tmp_path: Path, texts: dict[str, Any]) -> None:
    (tmp_path / "thesis.tex").write_text("\\chapter{}")
    with pytest.raises(UsageError, match="holds other files than results of a sweep"):
        sweep(MINI_LLAVA, tmp_path, **texts)


# --- the command --------------------------------------------------------------------------------------------


def test_a_study_file_says_what_the_options_say(tmp_path: Path, texts: dict[str, Any]) -> None:
    shutil.copy(texts["text"], tmp_path / "text.txt")
    study = tmp_path / "study.yaml"
    study.write_text("text: text.txt\nrates: [0.1, 0.15, 0.3]\nmetrics: [random]\ncompensations: [none, scale]\n")
    options = [word for name in ("rates", "metrics", "compensations") for word in (f"--{name}", texts[name])]
    first = run_here("sweep", MINI_LLAVA, "-o", tmp_path / "a", "--text", tmp_path / "text.txt", *options)
    second = run_here("sweep", MINI_LLAVA, "-o", tmp_path / "b", "--study", study)
    assert (first.exit_code, second.exit_code) == (0, 0), first.stderr + second.stderr
    assert rows_of(tmp_path / "a") == rows_of(tmp_path / "b")
    third = run_here("sweep", MINI_LLAVA, "-o", tmp_path / "b", "--study", study, "--rates", "0.3")
    assert third.exit_code == 0 and len(rows_of(tmp_path / "b")) == 3


def test_masks_made_before_are_measured_beside_the_others_or_alone(tmp_path: Path, texts: dict[str, Any]) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    for rate in ("0.1", "0.3"):
        make_mask(MINI_LLAVA, masks / f"{rate}.json", metric="random", schedule="uniform", rate=rate)
    make_mask(MINI_LLAVA, masks / "other.json", metric="magnitude", schedule="uniform", rate="0.3")
    (masks / "study.yaml").write_text("masks: [0.1.json, 0.3.json, other.json]\ncompensations: [none]\n")
    alone = run_here(
        "sweep", MINI_LLAVA, "-o", tmp_path / "a", "--study", masks / "study.yaml", "--text", texts["text"]
    )
    assert alone.exit_code == 0, alone.stderr
    assert [(row["metric"], row["schedule"]) for row in rows_of(tmp_path / "a")[1:]] == [
        ("0.1.json", "given"),
        ("0.3.json", "given"),
        ("other.json", "given"),
    ]
    given = {"masks": [masks / "0.3.json", masks / "other.json"]}
    sweep(MINI_LLAVA, tmp_path / "b", **texts | given | {"compensations": "none"})
    both = [row["metric"] for row in rows_of(tmp_path / "b")[1:]]
    assert both == ["random", "random; 0.3.json", "other.json"]  # the file of 0.3 is the sweep's own mask


def test_several_files_of_a_study_lie_beside_it_and_are_fitted_to(tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(
        "calibration: [a.json, b.txt]\ncalibration_images: [x, y]\nwindow: 99\ntext: t.txt\nrates: [0.3]\n"
    )
    options = SweepOptions(**read_study(study))
    assert options.calibration == [tmp_path / "a.json", tmp_path / "b.txt"]
    assert options.calibration_images == [tmp_path / "x", tmp_path / "y"]
    data = options.calibration_data
    assert data is not None and data.window == 99 and options.modes == ("least-squares",)
    assert SweepOptions(text="t.txt", rates="0.3").modes == ("scale",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("rate: 0.3", "'rate' is no option of a sweep; did you mean rates?"),
        ("force: true", "'force' is no option of a sweep"),
        ("- uniform", "is not a list of options"),
        ("rates: [0.1", "is not YAML"),
    ],
)
def test_a_study_file_that_is_wrong_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "study.yaml").write_text(content)
    with pytest.raises(UsageError, match=message.replace("?", r"\?")):
        read_study(tmp_path / "study.yaml")


def test_the_summary_is_made_again_and_the_best_point_is_converted(tmp_path: Path, texts: dict[str, Any]) -> None:
    results, best = tmp_path / "results", tmp_path / "best"
    sweep(MINI_LLAVA, results, **texts)
    (results / "summary.md").unlink()
    again = run_here("sweep", "--summarise", results)
    assert again.exit_code == 0 and (results / "summary.md").is_file(), again.stderr
    converted = sweep(MINI_LLAVA, results, **texts, convert_best=best, best_by="perplexity")
    assert converted.report is not None
    wanted = converted.summary.best("perplexity")
    manifest = json.loads((best / "s4convert.json").read_text())
    assert manifest["mask"]["pruned"] == (wanted.mask or {})["pruned"]
    assert wanted.compensation in json.dumps(manifest)
    with pytest.raises(UsageError, match="is not empty"):
        sweep(MINI_LLAVA, results, **texts, convert_best=best, best_by="perplexity")


def test_without_matplotlib_the_rest_is_there_and_it_says_how_to_get_plots(
    tmp_path: Path, texts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(job, "can_plot", lambda: False)
    caplog.set_level("INFO")
    sweep(MINI_LLAVA, tmp_path / "results", **texts | {"rates": "0.3"})
    assert "install s4convert[study]" in caplog.text
    assert not list((tmp_path / "results").glob("*.svg"))


# Counts the heads that a manifest says are gone; there is none beside the original.
COUNTS_HEADS = """
import json, pathlib, sys
manifest = pathlib.Path(sys.argv[1], "s4convert.json")
pruned = json.loads(manifest.read_text())["mask"]["pruned"] if manifest.exists() else {}
print(sys.argv[1], "lost", sum(map(len, pruned.values())))
"""


def test_an_outside_evaluator_scores_every_point_once_at_a_path_of_its_own(
    tmp_path: Path, texts: dict[str, Any]
) -> None:
    outside = {"eval_command": shlex.join([sys.executable, "-c", COUNTS_HEADS, "{checkpoint}"])}
    outside |= {"score_pattern": r"lost (\d+)"}
    swept = sweep(MINI_LLAVA, tmp_path / "results", **texts, **outside)
    scores = [None if row.outside is None else row.outside.score for row in swept.summary.rows]
    assert scores == [row.heads_pruned for row in swept.summary.rows] == [0, 8, 8, 16, 16]
    logs = {path: path.read_text() for path in (tmp_path / "results" / "outside").glob("*/log.txt")}
    assert len({text.split()[0] for text in logs.values()}) == 5
    assert sum("/mini-llava-" in text for text in logs.values()) == 4
    assert not list((tmp_path / "results" / "checkpoints").iterdir())
    stamps = {path: path.stat().st_mtime_ns for path in logs}
    sweep(MINI_LLAVA, tmp_path / "results", **texts, **outside, keep=True)
    assert {path: path.stat().st_mtime_ns for path in logs} == stamps
    with pytest.raises(UsageError, match="`keep` is about an outside evaluator"):
        sweep(MINI_LLAVA, tmp_path / "results", **texts, keep=True)


@pytest.mark.parametrize(
    "arguments", [("--summarise", "results", "in"), ("--summarise", "results", "--rates", "0.1"), ("in",), ()]
)
def test_arguments_that_do_not_go_together_are_refused(arguments: tuple[str, ...]) -> None:
    assert run_here("sweep", *arguments).exit_code == 2


def test_summaries_come_of_results_only(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no study\.json"):
        summarise_results(tmp_path)
    (tmp_path / STUDY_FILE).write_text(json.dumps({"format": "s4convert-study/1", "points": [{}]}))
    with pytest.raises(UsageError, match="its results are malformed"):
        summarise_results(tmp_path)


def test_a_cluster_without_ray_is_refused_before_any_work(
    tmp_path: Path, texts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"^`ray` needs Ray: pip install 's4convert\[ray\]'$"):
        sweep(MINI_LLAVA, tmp_path / "results", **texts, ray="local")
    assert not (tmp_path / "results").exists()
