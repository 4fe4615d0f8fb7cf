"""A front end that cannot be read, or that is hostile: an error, or a probe whose weakness is told, never silence."""

from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import transformers

from s4convert.checkpoint import Checkpoint
from s4convert.errors import StorageError
from s4convert.verify.probe import make_probe
from tests.support.command_line import run_here

NO_IMAGES, NO_PROMPTS = "the probe had no images", "the probe had no prompts, only token ids"


def fails(error: Exception) -> Callable[..., NoReturn]:
    """A function that raises *error* behind another one, as stock code does that tries something else."""

    def fail(*args: object, **kwargs: object) -> NoReturn:
        try:
            raise error
        except Exception:
            raise OSError("Can't load it. Make sure that you have it.")  # noqa: B904

    return fail


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.EACCES, errno.ENFILE], ids=errno.errorcode.get)
@pytest.mark.parametrize("loader", ["AutoTokenizer", "AutoProcessor"])
@pytest.mark.parametrize("in_rust", [False, True], ids=["Python", "Rust"])
def test_a_disk_that_refuses_is_an_error(
    mini_llava: Path, monkeypatch: pytest.MonkeyPatch, loader: str, number: int, in_rust: bool
) -> None:
    text = os.strerror(number)
    error = Exception(f"{text} (os error {number})") if in_rust else OSError(number, text, "tokenizer.model")
    monkeypatch.setattr(getattr(transformers, loader), "from_pretrained", fails(error))
    what = "tokenizer" if loader == "AutoTokenizer" else "vision tower"
    with pytest.raises(StorageError, match=f"mini-llava: the {what} cannot be read: {text}; mend that and run again"):
        make_probe(Checkpoint.open(mini_llava))


@pytest.fixture
def few_files() -> Iterator[Callable[[int], None]]:
    """Lets this process open a few more files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    def allow(more: int) -> None:
        opened = max(int(name) for name in os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (opened + more, before[1]))

    yield allow
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("more", [1, 2, 3])
def test_too_many_open_files_make_no_weaker_probe(
    mini_llava: Path, few_files: Callable[[int], None], more: int
) -> None:
    checkpoint = Checkpoint.open(mini_llava)
    whole = make_probe(checkpoint)
    few_files(more)
    try:
        probe = make_probe(checkpoint)
    except StorageError as error:
        assert "Too many open files" in str(error)
    else:
        assert probe.description == whole.description


@pytest.mark.parametrize("quiet", [False, True])
@pytest.mark.parametrize(
    ("file", "content", "probe", "weakness"),
    [
        ("preprocessor_config.json", None, "3 text prompts (no images: the vision tower", NO_IMAGES),
        ("preprocessor_config.json", {"image_mean": "x"}, "3 text prompts (no images: the vision tower", NO_IMAGES),
        ("preprocessor_config.json", {"crop_size": {"height": 0, "width": 0}}, "3 text prompts (no", NO_IMAGES),
        ("tokenizer.model", None, "seeded token ids (the tokenizer", NO_PROMPTS),
        ("tokenizer.model", {}, "seeded token ids (the tokenizer", NO_PROMPTS),
    ],
)
def test_a_weaker_probe_is_a_warning_and_in_the_verdict(
    mini_llava: Path,
    tmp_path: Path,
    mini_mask_file: Path,
    quiet: bool,
    file: str,
    content: dict[str, Any] | None,
    probe: str,
    weakness: str,
) -> None:
    path = mini_llava / file
    if content is None:
        path.unlink()
    else:
        stated = json.loads(path.read_text()) if path.suffix == ".json" else {}
        path.write_text(json.dumps(stated | content))
    out = tmp_path / "out"
    outcome = run_here(mini_llava, out, "--mask", mini_mask_file, *(["--quiet"] if quiet else []))
    assert outcome.exit_code == 0, outcome.stderr
    (warning,) = (line for line in outcome.stderr.splitlines() if "cannot be used by stock code (" in line)
    assert warning.startswith(f"s4convert: {mini_llava}: the ")
    assert warning.endswith(" prompts do" if weakness == NO_PROMPTS else " images do")
    assert "s4convert-links" not in outcome.stderr
    verified = json.loads((out / "s4convert.json").read_text())["verification"]
    assert verified["behaviour"]["probe"].startswith(probe)
    assert verified["verdict"].endswith(f"; {weakness}")
    assert quiet or outcome.stdout.splitlines()[-2].endswith(f"; {weakness}")
    assert f"; {weakness}" in (out / "README.md").read_text()


def test_a_whole_probe_leaves_the_verdict_alone(mini_llava: Path, tmp_path: Path, mini_mask_file: Path) -> None:
    out = tmp_path / "out"
    outcome = run_here(mini_llava, out, "--mask", mini_mask_file)
    assert "cannot be loaded" not in outcome.stderr
    assert json.loads((out / "s4convert.json").read_text())["verification"]["verdict"].endswith(")")
