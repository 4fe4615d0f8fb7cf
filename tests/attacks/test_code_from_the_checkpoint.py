"""A checkpoint that brings code along: nothing of it is ever run, and nobody is asked whether it may."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import NoReturn

import pytest

from tests.support.command_line import run_here

CODE = """
from pathlib import Path
(Path(__file__).parent / "it-ran").touch()
Path("{marker}").touch()
class Evil: pass
"""
CLASSES = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer", "AutoProcessor", "AutoImageProcessor")
FILES = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")


@pytest.fixture
def marker(tmp_path: Path, mini_llava: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the checkpoint's code would leave behind; a question whether it may run fails the test."""
    marker = tmp_path / "it-ran"
    (mini_llava / "evil.py").write_text(CODE.format(marker=marker))

    def asked(*args: object) -> NoReturn:
        pytest.fail("somebody was asked")

    monkeypatch.setattr(builtins, "input", asked)
    return marker


@pytest.mark.parametrize("file", FILES)
def test_an_auto_map_in_any_file_is_ignored(
    mini_llava: Path, tmp_path: Path, mini_mask_file: Path, marker: Path, file: str
) -> None:
    path = mini_llava / file
    content = json.loads(path.read_text())
    auto_map = dict.fromkeys(CLASSES, "evil.Evil") | {"AutoTokenizer": ["evil.Evil", None]}
    content["auto_map"] = auto_map
    if "text_config" in content:
        content["text_config"]["auto_map"] = auto_map
    path.write_text(json.dumps(content))
    outcome = run_here(mini_llava, tmp_path / "out", "--mask", mini_mask_file)
    assert outcome.exit_code == 0, outcome.stderr
    assert "probe: 3 text prompts, 2 image prompts" in outcome.stdout
    assert not marker.exists()


def test_the_config_does_not_choose_which_class_is_loaded(
    mini_llava: Path, tmp_path: Path, mini_mask_file: Path, marker: Path
) -> None:
    config = mini_llava / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"architectures": ["pipeline"]}))
    outcome = run_here(mini_llava, tmp_path / "out", "--mask", mini_mask_file)
    assert outcome.exit_code == 0, outcome.stderr
    assert "probe: 3 text prompts, 2 image prompts" in outcome.stdout
    assert not marker.exists()


@pytest.mark.parametrize(
    ("file", "field"), [("tokenizer_config.json", "tokenizer_class"), ("processor_config.json", "processor_class")]
)
def test_a_class_that_only_the_checkpoints_code_has_is_not_run(
    mini_llava: Path, tmp_path: Path, mini_mask_file: Path, marker: Path, file: str, field: str
) -> None:
    """Stock code does without it or fails, by version; then the probe is of seeded token ids, or of text alone."""
    path = mini_llava / file
    content = json.loads(path.read_text()) | {field: "Evil"}
    content["auto_map"] = {"AutoTokenizer": ["evil.Evil", None], "AutoProcessor": "evil.Evil"}
    path.write_text(json.dumps(content))
    outcome = run_here(mini_llava, tmp_path / "out", "--mask", mini_mask_file)
    assert outcome.exit_code == 0, outcome.stderr
    assert not marker.exists()
