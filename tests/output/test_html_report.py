"""The HTML report: it says what s4convert.json says, in words that promise no more, and in one small file."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import s4convert
from s4convert.demo import MINI_LLAVA, QUESTIONS
from s4convert.errors import StorageError
from s4convert.jobs import convert as job
from s4convert.output.html_report import html_report
from tests.conftest import MINI_PRUNED
from tests.support.command_line import run_here
from tests.support.environments import in_the_newest_environment

pytestmark = in_the_newest_environment

FILE = QUESTIONS / "questions.json"
DATA = ("--calibration", FILE, "--images", QUESTIONS)
SCHEMA = json.loads((Path(s4convert.__file__).parent / "output" / "manifest.schema.json").read_text())
WHERE = Path("s4convert.json")
VOID = {"meta", "link", "br", "img", "rect", "path", "circle"}


class Page(HTMLParser):
    """The tags of a page in their order, and its text; an end without its beginning is a failure."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert tag in VOID or self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1] != "style":
            self.texts.append(" ".join(data.split()))

    def count(self, tag: str, **attributes: str) -> int:
        return sum(name == tag and attributes.items() <= attrs.items() for name, attrs in self.tags)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a conversion by least squares and a scored mask, with everything measured, and its report."""
    directory = tmp_path_factory.mktemp("report")
    how = ("--metric", "magnitude", "--schedule", "global", "--rate", "0.25", "-o", directory / "mask.json")
    assert run_here("mask", MINI_LLAVA, *how).exit_code == 0
    asked = ("--evaluate", FILE, "--evaluate-images", QUESTIONS, "--conversation", "vicuna_v1")
    done = run_here(
        *(MINI_LLAVA, directory / "out", "--mask", directory / "mask.json", *DATA, *asked),
        *("--report", directory / "report.html"),
    )
    assert done.exit_code == 0, done.stderr
    return directory


@pytest.fixture
def manifest(fitted: Path) -> dict[str, Any]:
    return dict(json.loads((fitted / "out" / "s4convert.json").read_text()))


def test_the_report_is_made_again_from_the_manifest_alone(fitted: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "renamed"
    elsewhere.mkdir()
    shutil.copy(fitted / "out" / "s4convert.json", elsewhere)
    again = run_here("report", elsewhere, "-o", tmp_path / "again.html")
    assert (again.exit_code, again.stdout) == (0, f"written: {tmp_path / 'again.html'}\n")
    assert (tmp_path / "again.html").read_bytes() == (fitted / "report.html").read_bytes()


def test_it_answers_what_was_done_is_it_true_is_it_good_and_then_shows(fitted: Path) -> None:
    html = (fitted / "report.html").read_text("ascii")
    page = Page(html)
    ids = [attrs["id"] for tag, attrs in page.tags if tag == "h2"]
    assert ids == ["done", "true", "good", "pictures", "made"]
    assert page.texts[0] == page.texts[1] == "mini-llava, with 16 of 64 heads pruned"
    assert page.texts[2] == "Weights match the mask."
    assert str(fitted) not in html and str(MINI_LLAVA) not in html
    # Nothing is loaded, nothing runs, and every figure has a table, and words for those who do not see it.
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?:|url\(|@import|javascript", html)
    assert page.count("figure") == page.count("svg", role="img") == 4
    figures = re.findall(r"<figure>.*?</figure>", html, re.DOTALL)
    assert all(len(re.findall(r"<table>", figure)) == 1 for figure in figures)
    assert all(attrs["aria-label"] for tag, attrs in page.tags if tag == "svg" and "role" in attrs)


def test_every_pruned_head_is_crossed_out_over_its_saliency(fitted: Path, manifest: dict[str, Any]) -> None:
    page = Page((fitted / "report.html").read_text())
    saliency = manifest["mask"]["provenance"]["saliency"]
    assert page.count("path", **{"class": "cross"}) == 16 + 1  # and the legend's
    for layer, scores in enumerate(saliency):
        for head, score in enumerate(scores):
            state = "pruned" if head in manifest["mask"]["pruned"].get(str(layer), ()) else "kept"
            assert f"layer {layer}, head {head}: {state}, saliency {score:.3g}" in page.texts


def numbers_in(value: Any, *path: Any) -> Iterator[tuple[Any, ...]]:
    """The path of every number in *value*."""
    if isinstance(value, dict | list):
        for name, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers_in(part, *path, name)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path


# What a reader does not look for: other numbers say it, or it is there for a later check.
NOT_SHOWN = {"heads", "fitted", "calibration", "edits", "rewritten_bytes", "training", "count", "layer"}


def test_every_figure_of_the_checks_is_shown(manifest: dict[str, Any]) -> None:
    before = html_report(manifest, WHERE)
    fields: dict[Any, tuple[Any, ...]] = {}
    for part in ("verification", "evaluation"):
        for path in numbers_in(manifest[part], part):
            if not NOT_SHOWN & set(path):
                fields[path[-2:]] = path
    assert len(fields) > 60
    for path in fields.values():
        changed = copy.deepcopy(manifest)
        place: Any = changed
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = 0.125 + 1.5 * place[path[-1]] if place[path[-1]] else 0.5
        assert html_report(changed, WHERE) != before, path


def test_the_verdict_says_what_was_not_looked_at(manifest: dict[str, Any]) -> None:
    bare = copy.deepcopy(manifest)
    for name in ("evaluation", "calibration", "mask_file", "advice"):
        bare[name] = None
    bare["verification"] |= {"behaviour": None, "unproven_layers": [2, 3], "notes": ["the mask is odd"]}
    del bare["verification"]["agreement"], bare["evaluation"], bare["mask"]["provenance"], bare["command"]
    texts = Page(html_report(bare, WHERE)).texts
    verdict = "Weights match the mask; the fits of 2 layers are not checked against their data; hidden states were not"
    assert texts[2].startswith(verdict)
    assert any(text.startswith("Nobody knows yet: no question was asked") for text in texts)
    assert "Note: the mask is odd." in texts
    assert "Not made: Hidden states" in texts


@pytest.mark.parametrize("field", ["source", "command", "advice"])
def test_what_a_manifest_says_is_text_and_not_markup(manifest: dict[str, Any], field: str) -> None:
    hostile = "</title><script>alert(1)</script>\x00\ud800 & <b>"
    html = html_report(manifest | {field: hostile}, WHERE)
    assert "&lt;/title&gt;&lt;script&gt;alert(1)&lt;/script&gt;\\u0000\\ud800 &amp; &lt;b&gt;" in html
    assert "script" not in {tag for tag, _ in Page(html).tags}


def test_thirty_two_layers_of_thirty_two_heads_are_less_than_400_kb(manifest: dict[str, Any]) -> None:
    large = copy.deepcopy(manifest)
    large["mask"] |= {"num_layers": 32, "num_heads": 32, "pruned": {str(n): list(range(n % 20)) for n in range(1, 32)}}
    large["mask"]["provenance"]["saliency"] = [[1 / (1 + n * 32 + h) for h in range(32)] for n in range(32)]
    checked = large["verification"]
    row, fit = checked["behaviour"]["layers"][-1], next(iter(checked["compensation"].values()))
    checked["behaviour"]["layers"] = [row | {"layer": n, "heads_pruned": n % 20} for n in range(32)]
    checked["compensation"] = {str(n): fit for n in range(32)}
    large["evaluation"]["answers"] = large["evaluation"]["answers"][:1] * 20
    html = html_report(large, WHERE)
    assert len(html) < 400_000
    assert Page(html).count("rect") > 1024


def test_a_report_is_refused_before_any_work(fitted: Path, mini_mask_file: Path, tmp_path: Path) -> None:
    (tmp_path / "there.html").write_text("mine")
    cases = {
        tmp_path / "there.html": "there.html: exists; choose another name, or replace it with --force",
        tmp_path / "report.pdf": "report.pdf: is written as HTML; give it a name that ends in .html",
        tmp_path / "out" / "report.html": "report.html: would be in the conversion, whose files are listed",
        tmp_path / "none" / "report.html": "none: no such directory; create it first",
    }
    for path, message in cases.items():
        refused = run_here(MINI_LLAVA, tmp_path / "out", "--mask", mini_mask_file, "--report", path)
        assert message in refused.error
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "there.html").read_text() == "mine"
    assert "would be in the conversion" in run_here("report", fitted / "out", "-o", fitted / "out" / "a.html").error
    assert "has no s4convert.json" in run_here("report", MINI_LLAVA, "-o", tmp_path / "a.html").error


def test_a_report_that_cannot_be_written_at_last_leaves_the_conversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, text: str, *, force: bool) -> None:
        raise StorageError(f"{path}: cannot be written: No space left on device")

    monkeypatch.setattr(job, "write_output", refuse)
    settings = {"report": tmp_path / "report.html", "check_behaviour": False}
    with pytest.raises(StorageError, match=r"No space left on device; .*out is written, and s4convert report makes"):
        s4convert.convert(MINI_LLAVA, tmp_path / "out", s4convert.HeadMask(8, MINI_PRUNED), **settings)
    assert (tmp_path / "out" / "s4convert.json").is_file()


@pytest.mark.parametrize("said", ["high", [[1.0] * 8] * 7, [["1"] * 8] * 8, [[10**400] * 8] * 8, [[True] * 8] * 8])
def test_a_mask_that_says_something_else_of_saliency_has_none(said: Any) -> None:
    assert s4convert.HeadMask(8, MINI_PRUNED, provenance={"saliency": said}).saliency is None


def test_a_malformed_manifest_is_refused_in_a_line(manifest: dict[str, Any], tmp_path: Path) -> None:
    broken: list[dict[str, Any]] = [{"format": "s4convert/2"}]
    broken.append(manifest | {"mask": manifest["mask"] | {"num_layers": 10**9}})
    for name, value in {"mask": {}, "verification": {"behaviour": 3}, "files": [], "evaluation": {}}.items():
        broken.append(manifest | {name: value})
    for content in broken:
        (tmp_path / "s4convert.json").write_text(json.dumps(content))
        refused = run_here("report", tmp_path, "-o", tmp_path.parent / "never.html")
        assert refused.exit_code == 2
        assert "s4convert.json: is " in refused.error
    assert not (tmp_path.parent / "never.html").exists()


def test_the_manifest_is_what_its_schema_says(fitted: Path, manifest: dict[str, Any], tmp_path: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(manifest, SCHEMA)
    assert manifest["format"] == SCHEMA["title"]
    mask = s4convert.HeadMask(8, MINI_PRUNED)
    s4convert.convert(MINI_LLAVA, tmp_path / "out", mask, check_behaviour=False)
    plain = json.loads((tmp_path / "out" / "s4convert.json").read_text())
    jsonschema.validate(plain, SCHEMA)
    plain["verification"]["heads"]["more"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(plain, SCHEMA)
