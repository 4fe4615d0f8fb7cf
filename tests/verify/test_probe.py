"""The probe that a user gives: what it measures is the stock model's, and everything that tells of it names it."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from PIL import Image

import s4convert
from s4convert.calibration.inputs import make_inputs
from s4convert.calibration.samples import read_samples
from s4convert.checkpoint import Checkpoint
from s4convert.demo import MINI_LLAVA, QUESTIONS
from s4convert.errors import CheckpointError, UsageError, VerificationError
from s4convert.mask import HeadMask
from s4convert.model.front_end import load_processor
from s4convert.verify.probe import make_probe
from tests.compensation.stock_moments import mini_llava
from tests.families.fixtures import FIXTURES
from tests.support.command_line import run_here
from tests.support.run_time_hooks import hook_heads
from tests.support.stock_figures import assert_figures, run

FILE = QUESTIONS / "questions.json"
PROBE = ("--probe", FILE, "--probe-images", QUESTIONS)
SCHEMA = json.loads((Path(s4convert.__file__).parent / "output" / "manifest.schema.json").read_text())
MASK = HeadMask(8, ((), (1, 3, 5), (), (0, 7), (2,), (), (), (4, 5, 6)))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a conversion that was checked on the questions of the demo, and its report."""
    directory = tmp_path_factory.mktemp("probe")
    MASK.save(directory / "mask.json")
    done = run_here(
        *(MINI_LLAVA, directory / "out", "--mask", directory / "mask.json", *PROBE),
        *("--report", directory / "report.html"),
    )
    assert done.exit_code == 0, done.stderr
    (directory / "stdout").write_text(done.stdout)
    return directory


@pytest.fixture
def behaviour(directory: Path) -> dict[str, Any]:
    stated = json.loads((directory / "out" / "s4convert.json").read_text())
    jsonschema.validate(stated, SCHEMA)
    return dict(stated["verification"]["behaviour"])


def test_text_and_images_are_measured_as_on_the_stock_models(directory: Path) -> None:
    report = s4convert.verify_conversion(MINI_LLAVA, directory / "out", probe=FILE, probe_images=QUESTIONS)
    samples = read_samples(FILE, QUESTIONS).samples
    original, reference, converted = mini_llava(MINI_LLAVA), mini_llava(MINI_LLAVA), mini_llava(directory / "out")
    hook_heads(reference, MASK, scaled=True)
    processor, runs = load_processor(MINI_LLAVA), {}
    for name, model in {"original": original, "reference": reference, "converted": converted}.items():
        runs[name] = []
        for sample in samples:
            image = None if sample.image is None else Image.open(sample.image).convert("RGB")
            runs[name].append(run(model, **processor(text=sample.text, images=image, return_tensors="pt")))
    assert report.behaviour is not None
    assert report.behaviour.layers[0].apart.keys() == {"text", "image"}
    assert_figures(report.behaviour, make_inputs(Checkpoint.open(MINI_LLAVA), samples), runs)


def test_the_manifest_names_the_file_and_what_it_came_to(behaviour: dict[str, Any]) -> None:
    assert behaviour["probe"] == "8 samples of questions.json, 4 with an image"
    digest = sha256(FILE.read_bytes()).hexdigest()
    (file,) = behaviour["data"]["files"]
    assert (file["file"], file["sha256"], file["samples"]) == ("questions.json", digest, 8)
    counts = [behaviour["data"][name] for name in ("num_samples", "text_tokens", "image_tokens", "cut_tokens")]
    assert counts == [8, behaviour["next_token"]["text_tokens"], 64, 0]
    assert behaviour["next_token"]["predicted_tokens"] == counts[1] - 8  # the first of each sample stands behind none


def test_every_report_tells_of_it(directory: Path, behaviour: dict[str, Any]) -> None:
    said = behaviour["next_token"]
    shown = [f"{said[model]['perplexity']:.4g}" for model in ("original", "reference", "converted")]
    stdout = (directory / "stdout").read_text()
    assert stdout.startswith("probe: 8 samples of questions.json, 4 with an image\n")
    lines = [line.split() for line in stdout.splitlines()]
    assert ["original", shown[0]] in lines
    assert ["converted", shown[2]] in [[line[0], line[-1]] for line in lines if line]
    sentence = (
        f"On {said['text_tokens']:,} tokens of text of questions.json, the probe, both find the same next token most "
        f"likely in {said['converted']['top1']:.1%} of the places; "
    )
    html, card = (directory / "report.html").read_text(), (directory / "out" / "README.md").read_text()
    for text in (html, card):
        assert sentence in text
        assert f"perplexity goes from {shown[0]} to {shown[2]}" in text
    file = behaviour["data"]["files"][0]
    assert f"| probe | `questions.json` | 8 samples | `{file['sha256']}` |" in card
    assert f"<td>questions.json</td><td>8 samples</td><td>{file['sha256']}</td>" in html
    last = behaviour["layers"][-1]["apart"]["image"]["original"]
    assert f"<td>{last['mean_abs_delta']:.3g}</td><td>{last['max_abs_delta']:.3g}</td>" in html


def test_the_conversion_is_verified_and_made_again_without_it(directory: Path) -> None:
    verified = run_here("verify", MINI_LLAVA, directory / "out", "--json")
    assert verified.exit_code == 0, verified.stderr
    assert json.loads(verified.stdout)["behaviour"]["probe"] == "3 text prompts, 2 image prompts"
    made_again = run_here("reproduce", directory / "out", "--source", MINI_LLAVA)
    assert made_again.exit_code == 0, made_again.stderr


def test_a_probe_that_the_fit_has_seen_is_told(tmp_path: Path) -> None:
    data = {"calibration": FILE, "images": QUESTIONS, "probe": FILE, "probe_images": QUESTIONS}
    report = s4convert.convert(MINI_LLAVA, tmp_path / "out", MASK, compensation="uniform-ls", **data)
    note = "the probe, questions.json, is the data of the fit, which looks better there than elsewhere"
    assert report.notes == (note,)
    del data["calibration"], data["images"]
    assert note in s4convert.verify_conversion(MINI_LLAVA, tmp_path / "out", **data).notes


def test_of_a_long_file_the_first_samples_are_taken(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("\n".join(f"Line {number} of a text about nothing." for number in range(3000)))
    probe = make_probe(Checkpoint.open(MINI_LLAVA), given=read_samples(tmp_path / "long.txt"))
    assert probe.description == "7 samples of long.txt, none with an image"
    assert [len(sample.is_image) for sample in probe.samples] == [640] * 7  # 4,096 tokens and what ends the last window
    for sample in probe.samples:
        assert sample.token_ids is not None
        assert bool((sample.token_ids >= 0).all())


def test_a_probe_that_cannot_be_used_is_refused_before_any_work(directory: Path, tmp_path: Path) -> None:
    mask, out = directory / "mask.json", tmp_path / "out"
    cases: dict[tuple[object, ...], str] = {
        ("--probe", FILE): "names the image 1.png; say with --probe-images which directory it is in",
        ("--probe", FILE, "--probe-images", tmp_path): "there is no image",
        (*PROBE, "--no-verify"): "--probe is for hidden states, which are not checked; leave it out",
        ("--probe-images", QUESTIONS): "--probe-images is about the samples of a --probe; give that as well",
    }
    for options, message in cases.items():
        refused = run_here(MINI_LLAVA, out, "--mask", mask, *options)
        assert refused.exit_code == 2
        assert message in refused.error
    assert sorted(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="`probe_images` is about the samples of a `probe`"):
        s4convert.VerifyOptions(probe_images=QUESTIONS)


def test_logits_that_are_not_finite_are_told(mini_llava: Path, tmp_path: Path) -> None:
    stored = Checkpoint.open(mini_llava).vocabulary_projection
    with (mini_llava / stored.shard).open("r+b") as file:
        file.seek(stored.entry.begin)
        file.write(b"\x00\x7c")  # infinity
    with pytest.raises(VerificationError, match="on the probe, what the model says comes next is not finite; check IN"):
        s4convert.convert(mini_llava, tmp_path / "out", MASK)
    assert not (tmp_path / "out").exists()


def test_a_language_model_is_asked_for_no_images(tmp_path: Path) -> None:
    fixture = next(fixture for fixture in FIXTURES if fixture.name == "LlamaForCausalLM")
    source, out = fixture.write(tmp_path, torch.float32), tmp_path / "checkpoint-pruned"
    with pytest.raises(CheckpointError, match="is a language model and takes no images; use text samples alone"):
        s4convert.plan_conversion(source, out, HeadMask(4, ((0,), (), ())), probe=FILE, probe_images=QUESTIONS)
