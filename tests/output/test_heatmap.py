"""Looking at masks: in a terminal, and as a picture."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from s4convert import convert
from s4convert.mask import HeadMask
from s4convert.output.heatmap import text_heatmap
from tests.conftest import MINI_LLAVA
from tests.support.command_line import run_here


def test_a_text_heatmap_has_a_character_for_every_head() -> None:
    text = text_heatmap(4, ((), (1, 3)), [[0.1, 0.5, 0.2, 0.9], [0.3, 0.0, 0.4, 0.05]])
    _, first, second, meaning = text.splitlines()
    assert first == "    0 |:*-#|   0"
    assert second == "    1 |=x+x|   2 =="
    assert meaning.startswith("x = pruned")


def test_without_saliency_kept_heads_are_dots() -> None:
    assert "    0 |.x..|   1 =" in text_heatmap(4, ((1,),))


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    path = tmp_path / "scores.json"
    rows = {str(layer): [float((7 * layer + 3 * head) % 11) for head in range(4)] for layer in range(3)}
    content = {"format": "s4convert-scores/1", "num_layers": 3, "num_heads": 4, "scores": rows, "provenance": {}}
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("name", ["mask.png", "mask.svg"])
def test_a_mask_can_be_drawn(scores: Path, tmp_path: Path, name: str) -> None:
    outcome = run_here(
        *("mask", "--scores", scores, "-o", tmp_path / "mask.json", "--plot", tmp_path / name),
        *("--schedule", "uniform", "--rate", "0.5"),
    )
    assert outcome.exit_code == 0
    assert "|" in outcome.stdout
    if name.endswith(".png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 200
            colors = picture.convert("RGB").getcolors(maxcolors=1 << 20)
            assert colors is not None and len(colors) > 20
    else:
        assert "<svg" in (tmp_path / name).read_text()


def test_the_silent_heads_of_a_conversion_can_be_drawn(tmp_path: Path, mini_mask: HeadMask) -> None:
    convert(MINI_LLAVA, tmp_path / "out", mini_mask, check_behaviour=False)
    outcome = run_here("inspect", tmp_path / "out", "--plot", tmp_path / "heads.png")
    assert outcome.exit_code == 0
    assert "    4 |x......x|   2 ==" in outcome.stdout
    with Image.open(tmp_path / "heads.png") as picture:
        assert picture.format == "PNG"


def test_a_name_of_no_picture_is_refused_before_the_work(scores: Path, tmp_path: Path) -> None:
    outcome = run_here(
        *("mask", "--scores", scores, "-o", tmp_path / "mask.json", "--plot", tmp_path / "mask.doc"),
        *("--schedule", "uniform", "--rate", "0.5"),
    )
    assert outcome.exit_code == 2
    assert "mask.doc: is no name of a picture; end it with one of" in outcome.error
    assert not (tmp_path / "mask.json").exists()


def test_without_matplotlib_the_text_heatmap_still_works(
    scores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    arguments = ("mask", "--scores", scores, "-o", tmp_path / "mask.json", "--schedule", "uniform", "--rate", "0.5")
    refused = run_here(*arguments, "--plot", tmp_path / "mask.png")
    assert refused.exit_code == 2
    assert "pip install 's4convert[plot]', or look at the text heatmap" in refused.error
    outcome = run_here(*arguments)
    assert outcome.exit_code == 0
    assert "x = pruned" in outcome.stdout
