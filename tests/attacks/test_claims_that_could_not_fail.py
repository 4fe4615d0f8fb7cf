"""What would pass for want of anything to compare with: no byte changed, or any mix of pruned heads would do."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from s4convert import Checkpoint, HeadMask, convert, verify_conversion
from s4convert.calibration.moments import LayerMoments, Moments
from s4convert.checkpoint import Geometry
from s4convert.errors import CheckpointError, VerificationError
from tests.support.command_line import run_here
from tests.support.disk import hidden_siblings
from tests.support.synthetic import Spec, write_checkpoint

SPEC = Spec(num_layers=3, num_kv_heads=4, head_dim=4, hidden_size=16, dtype="F32")
WIDE = replace(SPEC, head_dim=16)  # a pruned head has as many columns as o_proj has rows
MASK = HeadMask(4, ((1,), (), (0, 3)))


def moments_of(geometry: Geometry) -> Callable[[int], LayerMoments]:
    generator = np.random.Generator(np.random.PCG64(0))
    columns = geometry.num_columns("o")
    tokens = generator.normal(0, 1, (20 * columns, 8)) @ generator.normal(0, 1, (8, columns))
    tokens += generator.normal(0, 0.3, tokens.shape)
    return lambda layer: LayerMoments(Moments.of(tokens))


# --- no byte changed ---------------------------------------------------------------------------------------------


def test_pruning_heads_that_are_silent_already_is_no_conversion(tmp_path: Path) -> None:
    mask = tmp_path / "mask.json"
    mask.write_text(json.dumps(MASK.to_json()))
    source = write_checkpoint(tmp_path / "in", SPEC)
    pruned, again = tmp_path / "pruned", tmp_path / "again"
    options = ("--mask", mask, "--no-verify", "--compensate", "none", "--no-card")
    assert run_here(source, pruned, *options).exit_code == 0
    outcome = run_here(pruned, again, *options, "--allow-converted")
    assert outcome.exit_code == 1
    assert "layer 0: pruning 1 heads changed no byte, they were silent already; check the mask" in outcome.error
    assert not again.exists()
    assert hidden_siblings(again) == []


def test_one_layer_without_a_changed_byte_is_enough(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "in", SPEC)
    convert(source, tmp_path / "pruned", HeadMask(4, ((), (), (0, 3))), compensation="none", check_behaviour=False)
    with pytest.raises(VerificationError, match="layer 2: pruning 2 heads changed no byte"):
        convert(
            *(tmp_path / "pruned", tmp_path / "again", MASK),
            compensation="none",
            allow_converted=True,
            check_behaviour=False,
        )


# --- a least-squares map that is read off the weights that it is to vouch for ----------------------------------------


def rewrite(directory: Path, layer: int, change: Callable[[np.ndarray, np.ndarray], None], source: Path) -> None:
    """Let *change* work on a layer's stored ``o_proj``, beside the original's, and mend the manifest."""
    stored = Checkpoint.open(directory).output_projection(layer)
    values = np.memmap(directory / stored.shard, "<f4", "r+", offset=stored.entry.begin, shape=stored.shape)
    before = Checkpoint.open(source)
    change(values, before.read_rows(before.output_projection(layer)))
    values.flush()
    manifest = directory / "s4convert.json"
    content = json.loads(manifest.read_text())
    content["files"][stored.shard]["sha256"] = hashlib.sha256((directory / stored.shard).read_bytes()).hexdigest()
    manifest.write_text(json.dumps(content))


def a_mix_of_noise(values: np.ndarray, before: np.ndarray) -> None:
    """The columns of kept heads in layer 2 are the original's and any mix of those of the pruned heads 0 and 3."""
    width = before.shape[1] // 4
    pruned = [*range(width), *range(3 * width, 4 * width)]
    noise = np.random.Generator(np.random.PCG64(1)).normal(0, 3, (2 * width, 2 * width))
    exact = before.astype(np.float64)  # rounded once: float32 sums differ from one processor to another
    values[:, width : 3 * width] = exact[:, width : 3 * width] + exact[:, pruned] @ noise


def any_weights(values: np.ndarray, before: np.ndarray) -> None:
    width = before.shape[1] // 4
    noise = np.random.Generator(np.random.PCG64(1)).normal(0, 3, (len(before), 2 * width))
    values[:, width : 3 * width] = noise


@pytest.mark.parametrize(
    ("spec", "change"),
    [(SPEC, a_mix_of_noise), (WIDE, a_mix_of_noise), (WIDE, any_weights)],
    ids=["a mix of noise", "a mix of noise, many columns", "any weights"],
)
def test_weights_that_pass_as_a_least_squares_map_are_known_by_their_error(
    tmp_path: Path, spec: Spec, change: Callable[[np.ndarray, np.ndarray], None]
) -> None:
    source = write_checkpoint(tmp_path / "in", spec)
    out, moments = tmp_path / "out", moments_of(Checkpoint.open(source).geometry)
    try:
        convert(source, out, MASK, compensation="least-squares", statistics=moments)
    except CheckpointError:
        assert spec is WIDE
        pytest.skip("the stock model of this transformers has no heads of such a width")
    verdict = verify_conversion(source, out).verdict
    assert "the fits of 2 layers are not checked against their data" in verdict
    assert "not checked" not in verify_conversion(source, out, statistics=moments).verdict
    rewrite(out, 2, change, source)
    verify_conversion(source, out, check_behaviour=False)  # the bytes alone cannot tell, and the verdict said so
    with pytest.raises(
        VerificationError, match=r"layer 2: its compensation leaves .* of the error of none on the probe"
    ):
        verify_conversion(source, out)
