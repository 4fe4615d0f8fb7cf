"""Conversions with every compensation: what is written is its formula, and verification knows it from any other."""

from __future__ import annotations

import itertools
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from s4convert import Checkpoint, HeadMask, convert, plan_conversion, verify_conversion
from s4convert.calibration.moments import LayerMoments, Moments
from s4convert.compensation import MomentsSource
from s4convert.errors import CheckpointError, CompensationError, UsageError, VerificationError
from s4convert.rewrite.plan import ColumnEdit, Edit, ValueEdit
from tests.compensation.stock_moments import language_model, output_projection_inputs
from tests.support import seams
from tests.support.modes import MAPS
from tests.support.synthetic import Spec, read_safetensors, write_checkpoint, write_safetensors

SPEC = Spec(
    num_layers=3, num_kv_heads=4, head_dim=4, hidden_size=16, dtype="F32"
)  # transformers 4.37 wants heads * head_dim
GROUPED = replace(SPEC, num_kv_heads=2, heads_per_group=2)
MASK = HeadMask(4, ((1,), (), (0, 3)))
OUTPUT = "language_model.model.layers.{}.self_attn.o_proj.weight"
VALUE = "language_model.model.layers.{}.self_attn.v_proj.weight"
UNIT = {"F32": 2.0**-23, "F16": 2.0**-10, "BF16": 2.0**-7}


_measured: dict[tuple[str, int, int], MomentsSource] = {}


def calibrate(path: Path, *, num_tokens: int = 400, seed: int = 0) -> MomentsSource:
    """The moments over random embeddings, half of the samples held out, by the stock model; once for any weights."""
    key = (Checkpoint.open(path).fingerprint, num_tokens, seed)
    if key not in _measured:
        _measured[key] = measure(path, num_tokens, seed)
    return _measured[key]


def measure(path: Path, num_tokens: int, seed: int) -> MomentsSource:
    model = language_model(path)
    generator = torch.Generator().manual_seed(seed)
    hidden = Checkpoint.open(path).geometry.hidden_size
    samples = [{"inputs_embeds": torch.randn(1, 20, hidden, generator=generator)} for _ in range(num_tokens // 10)]
    half = len(samples) // 2
    train, held_out = (output_projection_inputs(model, part) for part in (samples[:half], samples[half:]))
    return lambda layer: LayerMoments(Moments.of(train[layer]), Moments.of(held_out[layer]))


def fit_only(moments: MomentsSource) -> MomentsSource:
    """Without the held-out part, so that no mode steps down."""
    return lambda layer: LayerMoments(moments(layer).train)


def weights(path: Path, name: str) -> np.ndarray:
    checkpoint = Checkpoint.open(path)
    return checkpoint.read_rows(checkpoint.tensors[name]).astype(np.float64)


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "in", SPEC)


# --- what is written ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [SPEC, GROUPED], ids=["own kv heads", "grouped"])
@pytest.mark.parametrize("dtype", UNIT)
def test_least_squares_writes_its_formula_and_nothing_else(tmp_path: Path, spec: Spec, dtype: str) -> None:
    source = write_checkpoint(tmp_path / "in", replace(spec, dtype=dtype))
    moments = fit_only(calibrate(source))
    report = convert(source, tmp_path / "out", MASK, compensation="least-squares", statistics=moments)
    assert report.behaviour is not None
    convert(source, tmp_path / "none", MASK, compensation="none", check_behaviour=False)
    after, plain = (read_safetensors(tmp_path / name / "model.safetensors") for name in ("out", "none"))
    assert {name for name in after if after[name] != plain[name]} == {OUTPUT.format(0), OUTPUT.format(2)}
    for layer, pruned in ((0, [1]), (2, [0, 3])):
        columns = np.concatenate([np.arange(4 * head, 4 * head + 4) for head in pruned])
        kept = np.setdiff1d(np.arange(16), columns)
        second = moments(layer).train.second
        ridge = 1e-2 * np.trace(second[np.ix_(kept, kept)]) / len(kept)
        before = weights(source, OUTPUT.format(layer))
        predictor = (
            np.linalg.inv(second[np.ix_(kept, kept)] + ridge * np.eye(len(kept))) @ second[np.ix_(kept, columns)]
        )
        wanted = before[:, kept] + before[:, columns] @ predictor.T
        found = weights(tmp_path / "out", OUTPUT.format(layer))
        assert (found[:, columns] == 0).all() and not np.signbit(found[:, columns]).any()
        np.testing.assert_allclose(found[:, kept], wanted, rtol=UNIT[dtype] * 0.5001, atol=1e-12 + 2.0**-25)


@pytest.mark.parametrize("mode", ["uniform-ls", "head-ls", "similarity"])
def test_factors_are_written_as_float32_products(source: Path, tmp_path: Path, mode: str) -> None:
    moments = fit_only(calibrate(source))
    convert(source, tmp_path / "out", MASK, compensation=mode, statistics=moments)
    before, after = (weights(path, OUTPUT.format(2)) for path in (source, tmp_path / "out"))
    factors = (after[:, 4:12] / before[:, 4:12]).reshape(16, 2, 4)
    assert np.ptp(factors, axis=(0, 2)).max() < 1e-6
    assert (after[:, [*range(4), *range(12, 16)]] == 0).all()
    if mode == "uniform-ls":
        assert np.ptp(factors) < 1e-6
    if mode == "similarity":
        assert factors[0, :, 0].sum() == pytest.approx(4, rel=1e-6)


@pytest.mark.parametrize("text_model", ["llama", "qwen2"])
def test_residual_transfer_writes_kept_value_rows_and_their_biases(tmp_path: Path, text_model: str) -> None:
    source = write_checkpoint(tmp_path / "in", replace(SPEC, text_model=text_model))
    tensors = read_safetensors(source / "model.safetensors")
    value = np.frombuffer(tensors[VALUE.format(0)][2], "<f4").reshape(4, 4, 16).copy()
    value[2] = 0.5 * value[1] + 0.1 * value[2]  # head 1, which is pruned, is most like head 2
    tensors[VALUE.format(0)] = ("F32", (16, 16), value.tobytes())
    write_safetensors(source / "model.safetensors", tensors)
    report = convert(source, tmp_path / "out", MASK, compensation="residual-transfer")
    assert report.behaviour is not None
    before, after = (weights(path, VALUE.format(0)).reshape(4, 4, 16) for path in (source, tmp_path / "out"))
    cosine = (before[1] * before[2]).sum() / (np.linalg.norm(before[1]) * np.linalg.norm(before[2]))
    share = 0.1 * cosine
    assert share > 0.09
    np.testing.assert_allclose(after[2], (1 - share) * before[2] + share * before[1], rtol=1e-6, atol=1e-7)
    assert (after[1] == 0).all() and (after[[0, 3]] == before[[0, 3]]).all()
    before, after = (weights(path, OUTPUT.format(0)) for path in (source, tmp_path / "out"))
    wanted = (1 - share) * before[:, 8:12] + share * before[:, 4:8]
    np.testing.assert_allclose(after[:, 8:12], wanted, rtol=1e-6, atol=1e-7)
    assert (after[:, [*range(4), *range(12, 16)]] == before[:, [*range(4), *range(12, 16)]]).all()
    if text_model == "qwen2":
        name = VALUE.format(0).replace("weight", "bias")
        before, after = (weights(path, name).reshape(4, 4) for path in (source, tmp_path / "out"))
        np.testing.assert_allclose(after[2], (1 - share) * before[2] + share * before[1], rtol=1e-6, atol=1e-7)
        assert (after[1] == 0).all()
    verify_conversion(source, tmp_path / "out")


# One of factors for columns, one of a dense map, one of value rows; every dtype, and with the dense map each of them.
ONE_OF_A_KIND = [("head-ls", "BF16"), ("residual-transfer", "F32"), *(("least-squares", dtype) for dtype in UNIT)]


def each_mode_and_dtype(in_every_run: list[tuple[str, str]]) -> pytest.MarkDecorator:
    """All modes with all dtypes; those that are not *in_every_run* belong to the battery."""
    return pytest.mark.parametrize(
        ("mode", "dtype"),
        [
            pytest.param(*pair, marks=() if pair in in_every_run else pytest.mark.battery)
            for pair in itertools.product(MAPS, UNIT)
        ],
    )


@each_mode_and_dtype(ONE_OF_A_KIND)
def test_the_bytes_depend_neither_on_the_threads_nor_on_the_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, dtype: str
) -> None:
    spec = replace(SPEC, num_layers=4, head_dim=50, hidden_size=200, num_shards=3, dtype=dtype)
    source = write_checkpoint(tmp_path / "in", spec)
    moments = calibrate(source)
    mask = HeadMask(4, ((1,), (0, 3), (2,), (0, 1, 2)))
    outputs = []
    for jobs, block_bytes in ((1, 1 << 20), (8, 1 << 20), (8, 1), (3, 20_000)):
        seams.edit_in_blocks_of(monkeypatch, block_bytes)
        out = tmp_path / f"out-{jobs}-{block_bytes}"
        convert(source, out, mask, compensation=mode, statistics=moments, check_behaviour=False, jobs=jobs, card=False)
        outputs.append(files_of(out))
    assert all(files == outputs[0] for files in outputs)


@pytest.mark.parametrize("mode", MAPS)
def test_layers_that_lose_no_head_stay_bit_for_bit_and_their_moments_are_not_asked_for(
    source: Path, tmp_path: Path, mode: str
) -> None:
    moments, asked = calibrate(source), []

    def watched(layer: int) -> LayerMoments:
        asked.append(layer)
        return moments(layer)

    plan_conversion(source, tmp_path / "out", MASK, compensation=mode, statistics=watched).to_json()
    assert asked == []
    convert(source, tmp_path / "out", MASK, compensation=mode, statistics=watched, check_behaviour=False)
    assert set(asked) == {0, 2}
    before, after = (read_safetensors(path / "model.safetensors") for path in (source, tmp_path / "out"))
    assert [name for name in before if ".layers.1." in name and before[name] != after[name]] == []


def test_a_dry_run_says_what_becomes_of_the_columns(source: Path, tmp_path: Path) -> None:
    options = {"compensation": "least-squares", "statistics": lambda layer: pytest.fail("asked")}
    plan = plan_conversion(source, tmp_path / "out", MASK, **options).plan
    changes = [edit.describe() for edit in plan.edits if isinstance(edit, ColumnEdit)]
    assert changes[0] == "4 of 16 columns become 0, the others take over the pruned ones by least squares"
    plan = plan_conversion(source, tmp_path / "out", MASK, compensation="residual-transfer").plan
    changes = [edit.describe() for edit in plan.edits if isinstance(edit, ValueEdit)]
    assert changes[0] == "4 of 16 rows become 0, the others take from those like them"


# --- what is refused and told -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["uniform-ls", "head-ls", "least-squares"])
def test_a_fit_without_moments_is_refused_before_anything_is_written(source: Path, tmp_path: Path, mode: str) -> None:
    with pytest.raises(
        UsageError, match=f"compensation {mode} is fitted to calibration data; give it with `calibration`"
    ):
        convert(source, tmp_path / "out", MASK, compensation=mode)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("mode", ["residual-transfer", "similarity"])
def test_methods_that_go_by_value_rows_refuse_heads_that_share_them(tmp_path: Path, mode: str) -> None:
    source = write_checkpoint(tmp_path / "in", GROUPED)
    with pytest.raises(UsageError, match=f"layer 0: compensation {mode} goes by .* 2 heads share those of a kv head"):
        convert(source, tmp_path / "out", MASK, compensation=mode)


def test_moments_of_another_checkpoint_are_refused(source: Path, tmp_path: Path) -> None:
    other = LayerMoments(Moments.of(np.eye(8)))
    with pytest.raises(CompensationError, match=r"layer 0: its moments are of 8 columns, but o_proj has 16"):
        convert(source, tmp_path / "out", MASK, compensation="least-squares", statistics=lambda layer: other)
    assert not (tmp_path / "out").exists()


def test_moments_that_determine_no_fit_are_an_error_and_never_no_compensation(source: Path, tmp_path: Path) -> None:
    silent = LayerMoments(Moments.of(np.zeros((20_000, 16))))
    with pytest.raises(CompensationError, match=r"layer 0: .*not positive definite"):
        convert(source, tmp_path / "out", MASK, compensation="least-squares", statistics=lambda layer: silent)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mode", ["uniform-ls", "head-ls", "least-squares", "similarity", "residual-transfer"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_an_error(source: Path, tmp_path: Path, mode: str, value: float) -> None:
    moments = calibrate(source)
    tensors = read_safetensors(source / "model.safetensors")
    for name in (OUTPUT.format(0), VALUE.format(0)):
        dtype, shape, data = tensors[name]
        values = np.frombuffer(data, "<f4").copy()
        values[70] = value
        tensors[name] = (dtype, shape, values.tobytes())
    write_safetensors(source / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"_proj.weight \(layer 0\) holds NaN or infinity"):
        convert(source, tmp_path / "out", MASK, compensation=mode, statistics=moments, check_behaviour=False)


def test_a_dense_product_that_the_dtype_cannot_hold_is_an_error(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "in", replace(SPEC, dtype="F16"))
    tokens = np.random.Generator(np.random.PCG64(0)).normal(0, 1, (400, 16))
    tokens[:, 4:8] = 1e6 * tokens[:, 8:12]
    moments = LayerMoments(Moments.of(tokens))
    with pytest.raises(CheckpointError, match=r"o_proj.weight \(layer 0\) would overflow F16 when compensated"):
        convert(source, tmp_path / "out", MASK, compensation="least-squares", statistics=lambda layer: moments)
    assert not (tmp_path / "out").exists()


def test_a_layer_whose_fit_is_worse_than_a_simpler_one_steps_down_and_says_so(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    moments = calibrate(source)

    def misleading_in_layer_2(layer: int) -> LayerMoments:
        given = moments(layer)
        if layer == 0:
            return given
        turned = np.where(np.isin(np.arange(16), [0, 1, 2, 3, 12, 13, 14, 15]), -1.0, 1.0)
        return LayerMoments(given.train, Moments(given.train.second * np.outer(turned, turned), given.train.mean, 400))

    with caplog.at_level(logging.WARNING, "s4convert"):
        convert(source, tmp_path / "out", MASK, compensation="least-squares", statistics=misleading_in_layer_2)
    assert (
        sum("layer 2: on held-out tokens, the error of least-squares is" in message for message in caplog.messages) == 1
    )
    fitted = json.loads((tmp_path / "out" / "s4convert.json").read_text())["fitted"]
    assert fitted["0"]["mode"] == "least-squares" and fitted["0"]["factors"] is None
    assert fitted["2"] == {"mode": "none", "damping": None, "factors": [0.0, 1.0, 1.0, 0.0]}
    verify_conversion(source, tmp_path / "out")


def test_too_few_tokens_are_told(source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    moments = calibrate(source, num_tokens=40)
    with caplog.at_level(logging.WARNING, "s4convert"):
        convert(source, tmp_path / "a", MASK, compensation="least-squares", statistics=moments, check_behaviour=False)
    assert "layer 0: 40 calibration tokens are few for 12 kept columns; 120 are wanted" in caplog.messages


def test_similarity_warns_of_its_total_factor_once_a_layer(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "s4convert"):
        convert(source, tmp_path / "out", MASK, compensation="similarity")
    told = [message for message in caplog.messages if "of its kept heads sum to" in message]
    assert len(told) == len({message.split(":")[0] for message in told}) >= 1


# --- what verification knows of it --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ``in``, which is the same as *source*, and ``out``, a conversion of it that is fitted."""
    directory = tmp_path_factory.mktemp("pair")
    source = write_checkpoint(directory / "in", SPEC)
    convert(source, directory / "out", MASK, compensation="least-squares", statistics=calibrate(source))
    return directory


@pytest.fixture
def compensated(pair: Path, source: Path, tmp_path: Path) -> Path:
    """A copy of the fitted conversion of *source* that a test may do anything with."""
    return Path(shutil.copytree(pair / "out", tmp_path / "out"))


@each_mode_and_dtype([*zip(MAPS, itertools.cycle(UNIT)), *(("least-squares", dtype) for dtype in UNIT)])
def test_a_conversion_is_verified_later_without_its_moments(tmp_path: Path, mode: str, dtype: str) -> None:
    source = write_checkpoint(tmp_path / "in", replace(SPEC, dtype=dtype))
    moments = calibrate(source)
    convert(source, tmp_path / "out", MASK, compensation=mode, statistics=moments)
    assert verify_conversion(source, tmp_path / "out").behaviour is not None
    verify_conversion(source, tmp_path / "out", statistics=moments, check_behaviour=False)


def test_a_fit_to_other_tokens_is_known_by_its_moments(source: Path, compensated: Path) -> None:
    with pytest.raises(VerificationError, match=r"o_proj.weight of layer 0 is not what the mask asks for"):
        verify_conversion(source, compensated, statistics=calibrate(source, seed=1), check_behaviour=False, jobs=1)


def change_output(directory: Path, layer: int, change: Callable[[np.ndarray], Any]) -> None:
    stored = Checkpoint.open(directory).tensors[OUTPUT.format(layer)]
    values = np.memmap(directory / stored.shard, "<f4", "r+", offset=stored.entry.begin, shape=stored.shape)
    change(values)
    values.flush()


def speaks_a_little(values: np.ndarray) -> None:
    values[3, 4] = 1e-30


def silences_with_minus_zero(values: np.ndarray) -> None:
    values[3, 4] = -0.0


def is_scaled(values: np.ndarray) -> None:
    values *= np.float32(1.001)


def is_off_in_one_place(values: np.ndarray) -> None:
    values[5, 9] *= np.float32(1 + 1e-4)


def is_infinite(values: np.ndarray) -> None:
    values[5, 9] = np.inf


@pytest.mark.parametrize("with_moments", [False, True])
@pytest.mark.parametrize(
    "change", [speaks_a_little, silences_with_minus_zero, is_scaled, is_off_in_one_place, is_infinite]
)
def test_changed_columns_are_noticed_with_and_without_the_moments(
    source: Path, compensated: Path, change: Callable[[np.ndarray], Any], with_moments: bool
) -> None:
    change_output(compensated, 0, change)
    moments = calibrate(source) if with_moments else None
    (compensated / "s4convert.json").rename(compensated.with_name("manifest"))
    content = json.loads(compensated.with_name("manifest").read_text())
    content["files"] = {}  # so that the columns themselves must tell
    (compensated / "s4convert.json").write_text(json.dumps(content))
    with pytest.raises(VerificationError, match="of layer 0 is n") as caught:
        verify_conversion(source, compensated, statistics=moments, check_behaviour=False)
    assert "o_proj.weight" in str(caught.value)


def test_the_last_bit_of_a_dense_product_may_differ_and_no_more(source: Path, compensated: Path) -> None:
    moments = calibrate(source)

    def refusal(steps: int) -> str:
        """What is said where one number is so many steps further up or down; it is put back."""
        written = (compensated / "model.safetensors").read_bytes()

        def nudge(values: np.ndarray) -> None:
            for _ in range(abs(steps)):
                values[5, 9] = np.nextafter(values[5, 9], np.float32(np.copysign(np.inf, steps)))

        change_output(compensated, 0, nudge)
        with pytest.raises(VerificationError) as caught:
            verify_conversion(source, compensated, statistics=moments, check_behaviour=False)
        (compensated / "model.safetensors").write_bytes(written)
        return str(caught.value)

    noticed = "o_proj.weight of layer 0 is not what the mask asks for"
    # The exact product is between the number and one of its two neighbours, which so is as good; but not as written.
    (as_good,) = (said for said in (refusal(1), refusal(-1)) if noticed not in said)
    assert "is not what s4convert.json says" in as_good
    assert noticed in refusal(2)
    assert noticed in refusal(-2)


@pytest.mark.parametrize("check_behaviour", [False, True])
def test_a_plan_with_another_transfer_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check_behaviour: bool
) -> None:
    moments = calibrate(source)

    def with_another_transfer(edit: Edit) -> list[Edit]:
        if not isinstance(edit, ColumnEdit):
            return [edit]
        assert edit.fitted.transfer is not None
        return [replace(edit, mix=replace(edit.fitted, transfer=edit.fitted.transfer * 1.001))]

    seams.change_edits(monkeypatch, with_another_transfer)
    with pytest.raises(VerificationError, match=r"o_proj.weight of layer 0 is not what the mask asks for"):
        convert(
            source,
            tmp_path / "out",
            MASK,
            compensation="least-squares",
            statistics=moments,
            check_behaviour=check_behaviour,
            jobs=1,
        )
    assert not (tmp_path / "out").exists()


def test_residual_transfer_with_other_value_rows_is_refused(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "in", SPEC)
    out = tmp_path / "out"
    convert(source, out, MASK, compensation="residual-transfer", check_behaviour=False)
    before, after = (weights(path, VALUE.format(0)).reshape(4, -1) for path in (source, out))
    changed = np.flatnonzero((before != after).any(axis=1))
    assert set(changed) > {1}
    tensors = read_safetensors(out / "model.safetensors")
    tensors[VALUE.format(0)] = read_safetensors(source / "model.safetensors")[VALUE.format(0)]
    shutil.copy(out / "s4convert.json", tmp_path / "manifest")
    write_safetensors(out / "model.safetensors", tensors)
    with pytest.raises(VerificationError, match=r"v_proj.weight of layer 0 is not what the mask asks for"):
        verify_conversion(source, out, check_behaviour=False)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ([1.0], "its fitted factors do not fit its mask"),
        ({"1": 2}, "its fitted factors do not fit its mask"),
        ("nonsense", "its fitted factors are malformed"),
        ([0.0, None, 1.0, 1.0], "its fitted factors are malformed"),
        ([0.0, 1.0, 1.0, 1e999], "is not JSON"),
    ],
)
def test_factors_that_a_manifest_garbles_are_refused(
    source: Path, tmp_path: Path, factors: object, message: str
) -> None:
    out = tmp_path / "out"
    convert(source, out, MASK, compensation="head-ls", statistics=calibrate(source), check_behaviour=False)
    content = json.loads((out / "s4convert.json").read_text())
    content["fitted"]["0"]["factors"] = factors
    (out / "s4convert.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        verify_conversion(source, out, check_behaviour=False)


def test_verifying_a_fit_without_manifest_and_moments_is_refused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(source, out, MASK, compensation="least-squares", statistics=calibrate(source), check_behaviour=False)
    (out / "s4convert.json").unlink()
    (tmp_path / "mask.json").write_text(json.dumps(MASK.to_json()))
    with pytest.raises(UsageError, match="has no manifest that states a least-squares fit; give the `statistics`"):
        verify_conversion(source, out, mask=tmp_path / "mask.json", compensation="least-squares")
