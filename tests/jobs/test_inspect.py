"""``s4convert inspect``: a checkpoint, a mask, scores or statistics, in words, as JSON and as a picture."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from s4convert import convert
from s4convert.calibration.statistics import CalibrationData, Statistics
from s4convert.checkpoint import Checkpoint
from s4convert.mask import HeadMask, HeadScores
from tests.conftest import MINI_LLAVA
from tests.support.command_line import run_here
from tests.support.synthetic import Spec, write_checkpoint

PRUNED = ((1,), (), (0, 2))
SCORES = [[0.5, 0.0, 1.0, 0.25], [1.0, 1.0, 1.0, 1.0], [0.0, 0.25, 0.5, 1.0]]


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    path = tmp_path / "mask.json"
    provenance = {"metric": "energy", "samples": {"image": 3, "text": 2}, "layers": [1, 2], "rate": 0.25}
    HeadMask(4, PRUNED, provenance=provenance).save(path)
    return path


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(HeadScores(3, 4, SCORES, provenance={"metric": "energy"}).to_json()))
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "in", Spec(num_layers=3, num_kv_heads=4, hidden_size=16))


@pytest.fixture(scope="module")
def statistics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("statistics")
    text = directory / "text.txt"
    text.write_text("The box has two.\n\nThe cup has nine.\n\nWhich has nine?\n\nThe cup.\n\nThe box.\n")
    Statistics(directory / "kept").gather(Checkpoint.open(MINI_LLAVA), CalibrationData(text, None), [2, 5])
    return directory / "kept"


def shown(path: Path, *options: object) -> str:
    outcome = run_here("inspect", path, *options)
    assert outcome.exit_code == 0, outcome.stderr
    return outcome.stdout


def is_a_picture(path: Path) -> bool:
    with Image.open(path) as image:
        return image.format == "PNG" and min(image.size) > 50


def test_a_mask_is_shown_with_its_origin_and_its_heads(mask: Path) -> None:
    lines = shown(mask).splitlines()
    assert lines[0] == "mask          native mask, listed = pruned, 3 of 12 heads"
    assert lines[1:4] == ["metric        energy", "samples       image 3, text 2", "rate          0.25"]
    assert [line[6:12] for line in lines if re.match(r" +\d \|", line)] == ["|.x..|", "|....|", "|x.x.|"]
    assert json.loads(shown(mask, "--json")) == json.loads(mask.read_text())


def test_a_mask_that_does_not_state_its_size_is_shown_for_a_checkpoint(tmp_path: Path, source: Path) -> None:
    lists = tmp_path / "lists.json"
    lists.write_text(json.dumps({"pruned_heads": {"0": [1], "2": [0, 2]}}))
    found = json.loads(shown(lists, "--checkpoint", source, "--json"))
    assert found["pruned"] == {"0": [1], "2": [0, 2]}
    outcome = run_here("inspect", lists)
    assert outcome.exit_code == 2
    assert "--checkpoint" in outcome.error


@pytest.mark.parametrize(("polarity", "pruned"), [("keep", [0, 2]), ("prune", [1, 3])])
def test_bare_flags_are_shown_as_the_caller_reads_them(
    tmp_path: Path, source: Path, polarity: str, pruned: list[int]
) -> None:
    np.save(tmp_path / "flags.npy", np.array([[0, 1, 0, 1]] * 3))
    options = ("--checkpoint", source, "--mask-polarity", polarity, "--json")
    assert json.loads(shown(tmp_path / "flags.npy", *options))["pruned"] == {str(layer): pruned for layer in range(3)}


def test_scores_are_shown_as_shades(scores: Path) -> None:
    lines = shown(scores).splitlines()
    assert lines[:2] == ["scores        3 layers of 4 heads", "metric        energy"]
    assert len([line for line in lines if re.match(r" +\d \|", line)]) == 3
    assert json.loads(shown(scores, "--json"))["scores"] == {str(layer): row for layer, row in enumerate(SCORES)}


def test_statistics_are_shown_with_the_layers_that_they_have(statistics: Path) -> None:
    num_bytes = sum(path.stat().st_size for path in statistics.glob("layer-*"))
    lines = shown(statistics).splitlines()
    assert lines[0] == f"statistics    2 of 8 layers, {num_bytes:,} bytes"
    assert "head dim      16" in lines
    found = json.loads(shown(statistics, "--json"))
    assert (found["layers"], found["num_bytes"], found["num_heads"]) == ([2, 5], num_bytes, 8)


@pytest.mark.parametrize("what", ["a mask", "scores", "a checkpoint"])
def test_a_picture_is_drawn_of(what: str, tmp_path: Path, mask: Path, scores: Path, source: Path) -> None:
    if what == "a checkpoint":
        convert(source, tmp_path / "out", mask, check_behaviour=False, card=False)
    path = {"a mask": mask, "scores": scores, "a checkpoint": tmp_path / "out"}[what]
    before = shown(path)
    picture = tmp_path / "heads.png"
    assert shown(path, "--plot", picture) == before
    assert is_a_picture(picture)
    outcome = run_here("inspect", path, "--plot", picture)
    assert outcome.exit_code == 2
    assert f"{picture}: exists; choose another name" in outcome.error


def test_no_picture_is_drawn_of_statistics(statistics: Path, tmp_path: Path) -> None:
    outcome = run_here("inspect", statistics, "--plot", tmp_path / "heads.png")
    assert outcome.exit_code == 2
    assert "of statistics there is nothing to draw; leave --plot out" in outcome.error
    assert list(tmp_path.iterdir()) == []


def test_what_is_said_of_a_mask_is_refused_of_a_checkpoint(source: Path) -> None:
    for option in (("--checkpoint", source), ("--mask-polarity", "keep")):
        outcome = run_here("inspect", source, *option)
        assert outcome.exit_code == 2
        assert "is no mask; leave --checkpoint and --mask-polarity out" in outcome.error


def test_broken_scores_are_named_as_such(scores: Path) -> None:
    scores.write_text(scores.read_text().replace("0.5", "1e999", 1))
    outcome = run_here("inspect", scores)
    assert outcome.exit_code == 2
    assert outcome.error.startswith(f"{scores}: ")


def test_what_is_not_there_is_neither_a_checkpoint_nor_a_mask(tmp_path: Path) -> None:
    outcome = run_here("inspect", tmp_path / "msk.json", "--checkpoint", MINI_LLAVA)
    assert outcome.exit_code == 2
    assert outcome.error == f"{tmp_path / 'msk.json'}: no such file or directory, and no name on the Hub"
