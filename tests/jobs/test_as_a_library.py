"""The jobs as a program calls them: what it may hand over in place of text, and what is refused of that."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import s4convert
from s4convert import convert, make_mask, verify_conversion
from s4convert.calibration.statistics import CalibrationData, Statistics
from s4convert.checkpoint import Checkpoint
from s4convert.errors import CalibrationError, CheckpointError, StorageError, UsageError
from s4convert.jobs.mask import MaskOptions
from s4convert.mask import HeadMask, HeadScores, parse_schedule
from s4convert.mask.schedules import describe
from tests.conftest import MINI_LLAVA
from tests.support.command_line import run, run_here
from tests.support.environments import in_llavas_environment
from tests.support.synthetic import Spec, write_checkpoint

pytestmark = in_llavas_environment

MASK = HeadMask(4, ((), (0, 2), (3,)))
SCORES = [[4.0, 3.0, 2.0, 1.0]] * 3


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "in", Spec(num_layers=3, num_kv_heads=4, hidden_size=16))


@pytest.fixture
def converted(source: Path, tmp_path: Path) -> Path:
    convert(source, tmp_path / "out", MASK, check_behaviour=False, card=False)
    return tmp_path / "out"


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    (tmp_path / "scores.json").write_text(json.dumps(HeadScores(3, 4, SCORES).to_json()))
    return tmp_path / "scores.json"


def test_what_the_package_does_not_have_is_named() -> None:
    with pytest.raises(AttributeError, match="module 's4convert' has no attribute 'unprune'"):
        s4convert.unprune  # noqa: B018
    assert "convert" in dir(s4convert)


def test_what_is_neither_text_nor_the_thing_itself_is_refused(source: Path, converted: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="3 is neither a directory nor a name on the Hub"):
        convert(3, tmp_path / "other", MASK)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="`mask` is 3, not a mask, a file or a name on the Hub"):
        convert(source, tmp_path / "other", 3)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="nowhere: no such directory"):
        verify_conversion(source, tmp_path / "nowhere")
    with pytest.raises(UsageError, match="are about a `mask` file; give that too"):
        verify_conversion(source, converted, rate=0.5)


# --- schedules ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["uniform", "adaptive", "global"])
def test_a_schedule_may_be_given_as_an_object(scores: Path, source: Path, tmp_path: Path, text: str) -> None:
    schedule = parse_schedule(text, "0.25")
    made = make_mask(scores=scores, schedule=schedule)
    assert made.mask.pruned == make_mask(scores=scores, schedule=text, rate=0.25).mask.pruned
    assert describe(schedule) == f"{text} at 0.25"
    planned = s4convert.plan_conversion(source, tmp_path / "other", scores, schedule=schedule)
    assert planned.mask.pruned == made.mask.pruned


def test_bands_describe_themselves() -> None:
    assert describe(parse_schedule("bands:0-1:0,2:0.5")) == "bands:0-1:0,2:0.5"


def test_a_schedule_that_has_its_rate_takes_no_other(scores: Path, source: Path, tmp_path: Path) -> None:
    schedule = parse_schedule("uniform", "0.25")
    with pytest.raises(UsageError, match="this `schedule` says that itself; leave `rate` out"):
        make_mask(scores=scores, schedule=schedule, rate=0.25)
    with pytest.raises(UsageError, match="this `schedule` has its rate; leave `rate` out"):
        convert(source, tmp_path / "other", scores, schedule=schedule, rate=0.25)


def test_no_schedule_is_asked_for(scores: Path) -> None:
    with pytest.raises(UsageError, match="say with `schedule` how many heads each layer loses"):
        make_mask(scores=scores)
    with pytest.raises(UsageError, match="`schedule` is 3, not of type"):
        MaskOptions(schedule=3)  # type: ignore[arg-type]


def test_scores_take_no_metric_and_a_mask_of_them_may_stay_in_memory(scores: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`metric` is for a checkpoint to score, and `scores` were made before"):
        make_mask(scores=scores, metric="energy", schedule="uniform", rate=0.25)
    picture = tmp_path / "mask.png"
    made = make_mask(scores=scores, schedule="uniform", rate=0.25, plot=picture)
    assert made.mask.pruned == ((3,), (3,), (3,))
    assert made.to_text().endswith(made.mask.to_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mask.png", "scores.json"]


# --- what stands at OUT and beside it ---------------------------------------------------------------------------


def test_a_mount_point_is_no_out(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "disk")
    with pytest.raises(UsageError, match="is a mount point, which nothing can take the place of"):
        convert(source, tmp_path / "disk", MASK, check_behaviour=False)
    assert list((tmp_path / "disk").iterdir()) == []


def test_a_lock_that_cannot_be_made_is_named(source: Path, tmp_path: Path) -> None:
    lock = tmp_path / ".out.s4convert-lock"
    lock.mkdir()
    with pytest.raises(StorageError, match=r"\.out\.s4convert-lock: cannot be locked: Is a directory"):
        convert(source, tmp_path / "out", MASK, check_behaviour=False)
    assert lock.is_dir()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: {**content, "compensation": "magic"}, "compensation 'magic' is not known to this version"),
        (lambda content: {**content, "files": ["a"]}, "its list of files is malformed"),
        (lambda content: {**content, "files": {"a": {}}}, "its list of files is malformed"),
    ],
)
def test_a_manifest_that_means_nothing_is_refused(
    source: Path, converted: Path, change: Callable[[dict[str, object]], dict[str, object]], message: str
) -> None:
    manifest = converted / "s4convert.json"
    manifest.write_text(json.dumps(change(json.loads(manifest.read_text()))))
    with pytest.raises(CheckpointError, match=message):
        verify_conversion(source, converted, check_behaviour=False)


# --- statistics -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("statistics")
    (directory / "text.txt").write_text("The box has two.\n\nThe cup has nine.\n\nWhich has nine?\n")
    Statistics(directory / "kept").gather(
        Checkpoint.open(MINI_LLAVA), CalibrationData(directory / "text.txt", None), [1, 2]
    )
    return directory / "kept"


@pytest.fixture
def statistics(gathered: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(gathered, tmp_path / "kept"))


def test_statistics_that_lack_a_layer_of_the_mask_are_refused(statistics: Path, tmp_path: Path) -> None:
    mask = HeadMask(8, ((), (1,), (), (2,), (), (), (), ()))
    with pytest.raises(CalibrationError, match="kept: has nothing of layer 3; gather the statistics again"):
        convert(MINI_LLAVA, tmp_path / "out", mask, compensation="head-ls", statistics=statistics)


def test_a_broken_file_of_statistics_is_named(statistics: Path) -> None:
    (statistics / "layer-00001.safetensors").write_bytes(b"half")
    with pytest.raises(StorageError, match=r"layer-00001\.safetensors: cannot be read .*; gather the statistics again"):
        Statistics(statistics)(1)


def test_statistics_of_another_version_are_refused(statistics: Path) -> None:
    description = statistics / "statistics.json"
    for content, found in ({"format": "s4convert-statistics/0"}, "'s4convert-statistics/0'"), ([], "None"):
        description.write_text(json.dumps(content))
        with pytest.raises(CalibrationError, match=f"format is {found}, but .* is needed; gather them again"):
            s4convert.inspect(statistics)


@pytest.mark.parametrize("stands", ["a file", "a directory with a file in it"])
def test_statistics_go_to_a_new_directory(statistics: Path, tmp_path: Path, stands: str) -> None:
    taken = tmp_path / "taken"
    if stands == "a file":
        taken.write_text("the only copy")
    else:
        taken.mkdir()
        (taken / "thesis.txt").write_text("the only copy")
    text = tmp_path / "text.txt"
    text.write_text("one\n\ntwo\n")
    mask = HeadMask(8, ((), (1,), (), (), (), (), (), ()))
    with pytest.raises(UsageError, match="taken: exists and is no empty directory; choose another for the statistics"):
        convert(MINI_LLAVA, tmp_path / "out", mask, calibration=text, save_statistics=taken)
    assert not (tmp_path / "out").exists()


def test_a_share_that_is_a_whole_number_is_a_share(statistics: Path, tmp_path: Path) -> None:
    mask = HeadMask(8, ((), (1,), (), (), (), (), (), ()))
    options = {"compensation": "head-ls", "statistics": statistics, "check_behaviour": False, "card": False}
    for name, weight in (("whole", 0), ("fraction", 0.0)):
        convert(MINI_LLAVA, tmp_path / name, mask, image_weight=weight, **options)
    one, other = (Checkpoint.open(tmp_path / name) for name in ("whole", "fraction"))
    assert np.array_equal(one.read_rows(one.output_projection(1)), other.read_rows(other.output_projection(1)))


# --- the rest ---------------------------------------------------------------------------------------------------


def test_the_demo_tells_a_script_all_that_it_tells_a_person(tmp_path: Path) -> None:
    outcome = run_here("demo", tmp_path / "demo", "--json")
    assert outcome.exit_code == 0
    told = json.loads(outcome.stdout)
    assert told["converted"] == str(tmp_path / "demo" / "mini-llava-pruned")
    assert [answer["original"] for answer in told["answers"]] == [answer["right"] for answer in told["answers"]]
    assert len(told["report"]["behaviour"]["layers"]) == 8


def test_a_demo_that_cannot_be_written_is_an_error_of_storage(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("the only copy")
    outcome = run_here("demo", tmp_path / "file" / "demo")
    assert outcome.exit_code == 3
    assert "cannot be written: Not a directory" in outcome.error


def test_a_checkout_has_the_command_without_being_installed() -> None:
    outcome = run("--version", command=(sys.executable, "cli.py"))
    assert (outcome.exit_code, outcome.stdout) == (0, f"s4convert, version {s4convert.__version__}\n")


def test_rows_that_a_weight_does_not_have_are_refused() -> None:
    checkpoint = Checkpoint.open(MINI_LLAVA)
    with pytest.raises(CheckpointError, match="has 128 rows, none up to 130"):
        checkpoint.read_rows(checkpoint.output_projection(1), 120, 10)


def test_a_probe_does_without_images_where_the_vision_tower_cannot_be_loaded(mini_llava: Path, tmp_path: Path) -> None:
    (mini_llava / "preprocessor_config.json").unlink()
    mask = HeadMask(8, ((), (1,), (), (), (), (), (), ()))
    report = convert(mini_llava, tmp_path / "out", mask, card=False)
    assert report.behaviour is not None
    assert report.behaviour.probe == "3 text prompts (no images: the vision tower cannot be loaded)"
