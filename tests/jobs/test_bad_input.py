"""What cannot be done is refused in one line that says what is wrong, and nothing on the disk changes.

Here are requests that are about where OUT may stand, and a few of each other kind; tests/attacks/bad_input_cases.py has
the bad inputs.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from s4convert.checkpoint import Checkpoint
from tests.support import seams
from tests.support.command_line import ERROR, Outcome, run, run_here
from tests.support.disk import snapshot
from tests.support.environments import in_llavas_environment
from tests.support.synthetic import Spec, read_safetensors, write_checkpoint, write_safetensors

pytestmark = in_llavas_environment

SPEC = Spec(num_layers=3, num_kv_heads=4, hidden_size=16, num_shards=2)
O_PROJ = "language_model.model.layers.1.self_attn.o_proj.weight"
USAGE, STORAGE = 2, 3


@dataclass
class Request:
    """A request that is in order; a case below spoils it."""

    directory: Path
    source: Path
    mask: Path
    out: Path
    options: list[object]
    monkeypatch: pytest.MonkeyPatch

    @property
    def arguments(self) -> list[object]:
        return [self.source, self.out, "--mask", self.mask, *self.options]

    def make_mask(self, **content: Any) -> None:
        self.mask.write_text(json.dumps(content))

    def change_config(self, change: Callable[[dict[str, Any]], object]) -> None:
        path = self.source / "config.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))

    def change_index(self, change: Callable[[dict[str, Any]], object]) -> None:
        path = self.source / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        change(index["weight_map"])
        path.write_text(json.dumps(index))

    def change_weights(self, name: str, change: Callable[[np.ndarray], None]) -> None:
        shard = self.source / Checkpoint.open(self.source).tensors[name].shard
        tensors = read_safetensors(shard)
        dtype, shape, data = tensors[name]
        values = np.frombuffer(data, "<f2").reshape(shape).copy()
        change(values)
        write_safetensors(shard, tensors | {name: (dtype, shape, values.tobytes())})


@pytest.fixture
def request_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Request:
    request = Request(
        directory=tmp_path,
        source=write_checkpoint(tmp_path / "in", SPEC),
        mask=tmp_path / "mask.json",
        out=tmp_path / "out",
        options=["--no-verify"],
        monkeypatch=monkeypatch,
    )
    request.make_mask(pruned_heads={"1": [0, 2]})
    return request


@dataclass(frozen=True)
class Case:
    spoil: Callable[[Request], None]
    exit_code: int
    message: str


CASES: list[Case] = []


def refused(exit_code: int, message: str) -> Callable[[Callable[[Request], None]], Callable[[Request], None]]:
    """The decorated function spoils a request, which then must end with *exit_code* and say *message*."""

    def register(spoil: Callable[[Request], None]) -> Callable[[Request], None]:
        CASES.append(Case(spoil, exit_code, message))
        return spoil

    return register


# --- IN -------------------------------------------------------------------------------------------------------


@refused(USAGE, "in: no such directory")
def in_is_missing(request: Request) -> None:
    shutil.rmtree(request.source)


@refused(USAGE, "config.json: stock transformers cannot build the language model from it")
def the_language_model_cannot_be_built(request: Request) -> None:
    request.options.remove("--no-verify")
    request.change_config(lambda config: config["text_config"].update(hidden_act="nope"))


@refused(USAGE, "names model-00002-of-00002.safetensors, which is missing; download it again")
def a_shard_is_missing(request: Request) -> None:
    (request.source / "model-00002-of-00002.safetensors").unlink()


@refused(USAGE, "is mapped to '../elsewhere.safetensors', which is not a plain file name")
def the_index_points_outside(request: Request) -> None:
    shutil.copy(request.source / "model-00001-of-00002.safetensors", request.directory / "elsewhere.safetensors")
    request.change_index(lambda weight_map: weight_map.update({O_PROJ: "../elsewhere.safetensors"}))


@refused(USAGE, f"{O_PROJ} (layer 1) holds NaN or infinity")
def a_weight_is_not_a_number(request: Request) -> None:
    request.change_weights(O_PROJ, lambda values: values.put(3, np.nan))


@refused(USAGE, "layer 2: head 3 is zero already")
def in_has_a_silent_head(request: Request) -> None:
    def silence(values: np.ndarray) -> None:
        values[:, -SPEC.head_dim :] = 0

    request.change_weights(O_PROJ.replace("layers.1", "layers.2"), silence)


# --- the mask -------------------------------------------------------------------------------------------------


@refused(USAGE, "layer 1: every head is pruned")
def the_mask_prunes_a_whole_layer(request: Request) -> None:
    request.make_mask(pruned_heads={"1": [0, 1, 2, 3]})


# --- OUT ------------------------------------------------------------------------------------------------------


@refused(USAGE, "out: lies inside IN")
def out_is_inside_in(request: Request) -> None:
    request.out = request.source / "out"


@refused(USAGE, "out: lies inside IN")
def out_is_inside_in_by_a_link(request: Request) -> None:
    (request.directory / "link").symlink_to(request.source)
    request.out = request.directory / "link" / "out"


@refused(USAGE, "IN lies inside it")
def in_is_inside_out(request: Request) -> None:
    request.out = request.directory


@refused(USAGE, "in: is IN itself")
def out_is_in(request: Request) -> None:
    request.out = request.source
    request.options.append("--force")


@refused(USAGE, "in/../in: is IN itself")
def out_is_in_in_other_words(request: Request) -> None:
    request.out = request.source / ".." / "in"
    request.options.append("--force")


@refused(USAGE, "link: is IN itself")
def out_is_a_link_to_in(request: Request) -> None:
    request.out = request.directory / "link"
    request.out.symlink_to(request.source)
    request.options.append("--force")


@refused(USAGE, "out: is IN itself")
def in_is_a_link_to_out(request: Request) -> None:
    request.source.rename(request.out)
    request.source.symlink_to(request.out)
    request.options.append("--force")


@refused(USAGE, "out: is not empty; choose another OUT, or replace it with --force")
def out_is_not_empty(request: Request) -> None:
    request.out.mkdir()
    (request.out / "thesis.txt").write_text("the only copy")


@refused(USAGE, "so --force will not replace it")
def out_is_no_checkpoint(request: Request) -> None:
    request.out.mkdir()
    (request.out / "thesis.txt").write_text("the only copy")
    request.options.append("--force")


@refused(USAGE, "out: is a file")
def out_is_a_file(request: Request) -> None:
    request.out.write_text("the only copy")
    request.options.append("--force")


@refused(USAGE, "out: is a symbolic link")
def out_is_a_dangling_link(request: Request) -> None:
    request.out.symlink_to("nowhere")


@refused(USAGE, "out: is a symbolic link")
def out_is_a_link_to_an_empty_directory(request: Request) -> None:
    (request.directory / "empty").mkdir()
    request.out.symlink_to("empty")


@refused(STORAGE, "missing: no such directory; create it first")
def the_parent_of_out_is_missing(request: Request) -> None:
    request.out = request.directory / "missing" / "out"


@refused(STORAGE, "no such directory; create it first")
def the_parent_of_out_is_a_file(request: Request) -> None:
    request.out = request.mask / "out"


@refused(STORAGE, "no permission to write there; choose another OUT")
def the_parent_of_out_cannot_be_written(request: Request) -> None:
    access = os.access  # the tests may run as root, to whom everything is permitted
    request.monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != request.directory and access(path, mode))


@refused(STORAGE, "and 4,096 are free; make room for")
def the_disk_is_too_small(request: Request) -> None:
    request.monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=1, f_frsize=4096))


# --- options --------------------------------------------------------------------------------------------------


@refused(USAGE, "Invalid value for '--jobs'")
def there_are_no_jobs(request: Request) -> None:
    request.options += ["--jobs", "0"]


def test_the_request_that_the_cases_spoil_is_in_order(request_in_order: Request) -> None:
    outcome = run_here(*request_in_order.arguments)
    assert outcome.exit_code == 0, outcome.stderr
    assert request_in_order.out.is_dir()


@pytest.mark.parametrize("case", CASES, ids=[case.spoil.__name__ for case in CASES])
def test_a_bad_request_is_refused_in_one_line(request_in_order: Request, case: Case) -> None:
    case.spoil(request_in_order)
    before = snapshot(request_in_order.directory)
    outcome = run_here(*request_in_order.arguments)
    assert_refused(outcome, case)
    assert snapshot(request_in_order.directory) == before


@pytest.mark.parametrize("spoil", [a_weight_is_not_a_number, there_are_no_jobs])
def test_a_bad_request_is_refused_by_a_process_of_its_own_too(
    request_in_order: Request, spoil: Callable[[Request], None]
) -> None:
    (case,) = (case for case in CASES if case.spoil is spoil)
    spoil(request_in_order)
    before = snapshot(request_in_order.directory)
    assert_refused(run(*request_in_order.arguments), case)
    assert snapshot(request_in_order.directory) == before


def assert_refused(outcome: Outcome, case: Case) -> None:
    assert case.message in outcome.error  # the last line; it checks the others
    assert outcome.exit_code == case.exit_code
    assert outcome.stdout == ""


def test_the_main_job_without_a_mask_is_refused(request_in_order: Request) -> None:
    outcome = run_here(request_in_order.source, request_in_order.out)
    assert outcome.exit_code == USAGE
    assert "give a --mask; or a --rate and --calibration data, to have one made" in outcome.error


def test_a_fault_of_our_own_is_told_in_one_line_too(request_in_order: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    seams.before_staging(monkeypatch, lambda: 1 / 0)
    before = snapshot(request_in_order.directory)
    outcome = run_here(*request_in_order.arguments)
    assert outcome.exit_code == 70
    assert "ZeroDivisionError: division by zero" in outcome.error
    assert snapshot(request_in_order.directory) == before


def test_debug_shows_the_traceback_as_well(request_in_order: Request) -> None:
    in_is_missing(request_in_order)
    outcome = run_here(*request_in_order.arguments, "--debug")
    first, *_, last = outcome.stderr.splitlines()
    assert first == "Traceback (most recent call last):"
    assert "CheckpointError" in outcome.stderr
    assert last.startswith(ERROR)
    assert outcome.exit_code == USAGE
