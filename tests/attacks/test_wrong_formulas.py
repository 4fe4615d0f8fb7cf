"""A wrong formula of a compensation does not vouch for itself: plan and byte check ask it, and the definition says no.

Each case puts a plausible mistake in the place of a formula and converts without the check of hidden states, so that
nothing but the definition can tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import s4convert.compensation.error as error_module
from s4convert import HeadMask, convert
from s4convert.calibration.moments import LayerMoments, Moments, mix_moments
from s4convert.compensation import MODES, HeadMix
from s4convert.compensation.error import head_gram
from s4convert.compensation.pruned_layer import PrunedLayer
from s4convert.errors import VerificationError
from tests.support import seams
from tests.support.disk import hidden_siblings
from tests.support.environments import in_the_newest_environment
from tests.support.modes import MAPS
from tests.support.synthetic import Spec, read_safetensors, write_checkpoint, write_safetensors

pytestmark = in_the_newest_environment

Formula = Callable[[PrunedLayer, Moments, float], HeadMix]

SPEC = Spec(num_layers=3, num_kv_heads=6, head_dim=4, hidden_size=24, dtype="F16")
GROUPED = replace(SPEC, num_kv_heads=3, heads_per_group=2)
MASK = HeadMask(6, ((1, 4), (), (0, 2, 3)))
SCALED = replace(MASK, scale={0: 1.1, 2: 1.3})
N, D = SPEC.num_heads, SPEC.head_dim


def write(path: Path, spec: Spec) -> Path:
    """The checkpoint of *spec*; its heads have something in common, and the V rows of some have a large norm."""
    write_checkpoint(path, spec)
    tensors = read_safetensors(path / "model.safetensors")
    common = np.random.Generator(np.random.PCG64(5)).normal(0, 0.3, (D, spec.hidden_size))
    for name, (dtype, shape, data) in tensors.items():
        values = np.frombuffer(data, "<f2").astype(np.float32).reshape(shape)
        if name.startswith("language_model.") and name.endswith("v_proj.weight"):
            by_head = values.reshape(-1, D, spec.hidden_size) + common
            by_head[::2] *= 0.5
            values = by_head.reshape(shape)
        if name.startswith("language_model.") and name.endswith("o_proj.weight"):
            values = values + np.tile(common.T, spec.num_heads)
        tensors[name] = (dtype, shape, values.astype("<f2").tobytes())
    write_safetensors(path / "model.safetensors", tensors)
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("wrong") / "in", SPEC)


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("wrong") / "in", GROUPED)


def tokens(layer: int, kind: str) -> Moments:
    """The moments of 600 head outputs that depend on each other; of each *kind* others."""
    generator = np.random.Generator(np.random.PCG64([layer, *kind.encode()]))
    common = np.random.Generator(np.random.PCG64(layer)).normal(0, 1, (10, N * D))
    outputs = generator.normal(0, 1, (600, 10)) @ (common + generator.normal(0, 0.3, common.shape))
    return Moments.of(outputs + generator.normal(0, 0.5, outputs.shape) + 0.5)


def mixed(layer: int, weight: float = 0.5) -> LayerMoments:
    """Moments of text and image tokens, as a conversion weighs them."""
    return LayerMoments(mix_moments(tokens(layer, "text"), tokens(layer, "image"), image_weight=weight))


def with_held_out(layer: int) -> LayerMoments:
    return LayerMoments(mixed(layer).train, tokens(layer, "held out"))


def assert_refused(source: Path, tmp_path: Path, mode: str, mask: HeadMask = MASK, message: str = "") -> None:
    """A conversion with *mode* fails at the definition, or with *message*, and leaves nothing behind."""
    moments = mixed if MODES[mode].needs_moments else None
    message = message or rf"_proj.weight of layer \d is not what {mode} is by definition"
    with pytest.raises(VerificationError, match=message):
        convert(
            source, tmp_path / "out", mask, compensation=mode, statistics=moments, check_behaviour=False, card=False
        )
    assert not (tmp_path / "out").exists()
    assert hidden_siblings(tmp_path / "out") == []


# --- factors that go by the mask -----------------------------------------------------------------------------


def by_mask(factor: Callable[[int, int], float]) -> Formula:
    """One factor for kept heads, of the numbers of all and of kept heads."""
    return lambda layer, moments, damping: layer.mix(factor(N, len(layer.kept)))


def all_but_one(layer: PrunedLayer, moments: Moments, damping: float) -> HeadMix:
    factors = np.full(len(layer.kept), N / len(layer.kept))
    factors[-1] = 1.0
    return layer.mix(factors)


def silences_the_next_head(layer: PrunedLayer, moments: Moments, damping: float) -> HeadMix:
    shifted = replace(layer, pruned=tuple(sorted((head + 1) % N for head in layer.pruned)))
    return shifted.mix(N / len(layer.kept))


def shifts_columns_by_one(layer: PrunedLayer, moments: Moments, damping: float) -> HeadMix:
    mix = layer.mix(N / len(layer.kept))
    return replace(mix, factors=np.roll(mix.factors, 1))


SCALES = {
    "n / N": by_mask(lambda total, kept: kept / total),
    "N / n with one head too few": by_mask(lambda total, kept: total / (kept - 1)),
    "N / n with one head too many": by_mask(lambda total, kept: total / (kept + 1)),
    "N over the pruned heads": by_mask(lambda total, kept: total / (total - kept)),
    "kept over pruned heads": by_mask(lambda total, kept: kept / (total - kept) + 0.01),
    "the square": by_mask(lambda total, kept: (total / kept) ** 2),
    "the square root": by_mask(lambda total, kept: math.sqrt(total / kept)),
    "unscaled": by_mask(lambda total, kept: 1.0),
    "the rate of the whole model": lambda layer, moments, damping: layer.mix(18 / 13),
    "all kept heads but the last": all_but_one,
    "the next head is silenced": silences_the_next_head,
    "columns shifted by one": shifts_columns_by_one,
}


@pytest.mark.parametrize("wrong", SCALES.values(), ids=SCALES)
def test_a_wrong_scale_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: Formula
) -> None:
    seams.change_formula(monkeypatch, "scale", wrong)
    assert_refused(source, tmp_path, "scale")


SCALES_OF_THE_MASK: dict[str, Formula] = {
    "the mask's own is passed over": by_mask(lambda total, kept: total / kept),
    "the mask's own of another layer": lambda layer, moments, damping: layer.mix({0: 1.3, 2: 1.1}[layer.number]),
    "the mask's own on top of N / n": lambda layer, moments, damping: layer.mix((layer.scale or 1) * N / 4),
}


@pytest.mark.parametrize("wrong", SCALES_OF_THE_MASK.values(), ids=SCALES_OF_THE_MASK)
def test_a_wrong_scale_of_the_mask_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: Formula
) -> None:
    seams.change_formula(monkeypatch, "scale", wrong)
    assert_refused(source, tmp_path, "scale", SCALED)


@pytest.mark.parametrize(
    "wrong", [SCALES["n / N"], MODES["scale"].fit, all_but_one], ids=["n / N", "N / n", "one head is left out"]
)
def test_a_none_that_is_not_none_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: Formula
) -> None:
    seams.change_formula(monkeypatch, "none", wrong)
    assert_refused(source, tmp_path, "none")


def test_the_scale_of_kv_groups_is_refused(grouped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def by_groups(layer: PrunedLayer, moments: Moments, damping: float) -> HeadMix:
        kept = {head // 2 for head in layer.kept}
        return layer.mix(3 / len(kept))

    seams.change_formula(monkeypatch, "scale", by_groups)
    assert_refused(grouped, tmp_path, "scale")


@pytest.mark.parametrize("shift", [-1, 1])
def test_kv_rows_of_the_next_group_are_refused(
    grouped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift: int
) -> None:
    right = HeadMask.pruned_kv_heads
    monkeypatch.setattr(
        HeadMask,
        "pruned_kv_heads",
        lambda *args: tuple(sorted((kv + shift) % 3 for kv in right(*args))),
    )
    message = r"[kv]_proj.weight of layer 2 is not what the mask asks for"
    assert_refused(grouped, tmp_path, "scale", message=message)


# --- factors that are fitted -----------------------------------------------------------------------------------


def parts(layer: PrunedLayer, moments: Moments) -> tuple[np.ndarray, list[int], list[int]]:
    return head_gram(layer.weight_gram, moments, D), list(layer.kept), list(layer.pruned)


def uniform(factor: Callable[[float, float, float], float]) -> Formula:
    """One factor, of <Y_P, Y_K>, |Y_K|^2 and |Y_P|^2."""

    def formula(layer: PrunedLayer, moments: Moments, damping: float) -> HeadMix:
        gram, kept, pruned = parts(layer, moments)
        between, of_kept, of_pruned = (
            float(gram[np.ix_(a, b)].sum()) for a, b in ((pruned, kept), (kept, kept), (pruned, pruned))
        )
        return layer.mix(factor(between, of_kept, of_pruned))

    return formula


def without_cross_terms(layer: PrunedLayer, moments: Moments, damping: float) -> HeadMix:
    gram, kept, pruned = parts(layer, moments)
    return layer.mix(1 + float(gram[np.ix_(pruned, kept)].sum()) / float(np.diag(gram)[kept].sum()))


UNIFORM = {
    "the sign": uniform(lambda between, kept, pruned: 1 - between / kept),
    "without the 1": uniform(lambda between, kept, pruned: between / kept),
    "over the pruned heads' power": uniform(lambda between, kept, pruned: 1 + between / pruned),
    "twice the step": uniform(lambda between, kept, pruned: 1 + 2 * between / kept),
    "the roots of the powers": uniform(lambda between, kept, pruned: 1 + between / math.sqrt(kept * pruned)),
    "without cross terms": without_cross_terms,
    "a factor each": MODES["head-ls"].fit,
}


@pytest.mark.parametrize("wrong", UNIFORM.values(), ids=UNIFORM)
def test_a_wrong_uniform_factor_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: Formula
) -> None:
    seams.change_formula(monkeypatch, "uniform-ls", wrong)
    assert_refused(source, tmp_path, "uniform-ls")


def by_head(change: Callable[[np.ndarray, list[int], list[int]], np.ndarray]) -> Formula:
    """1 + a change for each kept head, of the head Gram, kept and pruned heads."""
    return lambda layer, moments, damping: layer.mix(1 + change(*parts(layer, moments)))


def solved(gram: np.ndarray, kept: list[int], pruned: list[int]) -> np.ndarray:
    change: np.ndarray = np.linalg.solve(gram[np.ix_(kept, kept)], gram[np.ix_(kept, pruned)].sum(axis=1))
    return change


def centred(moments: Moments) -> Moments:
    return replace(moments, tensor=moments.second - np.outer(moments.mean, moments.mean))


BY_HEAD = {
    "off by one head": by_head(lambda *given: np.roll(solved(*given), 1)),
    "heads in reverse order": by_head(lambda *given: solved(*given)[::-1]),
    "the sign": by_head(lambda *given: -solved(*given)),
    "damped": by_head(lambda gram, kept, pruned: solved(gram + 0.1 * np.diag(np.diag(gram)), kept, pruned)),
    "the diagonal alone": by_head(
        lambda gram, kept, pruned: gram[np.ix_(kept, pruned)].sum(axis=1) / np.diag(gram)[kept]
    ),
    "the mean over pruned heads": by_head(lambda gram, kept, pruned: solved(gram, kept, pruned) / len(pruned)),
    "one pruned head is left out": by_head(lambda gram, kept, pruned: solved(gram, kept, pruned[1:])),
    "the covariance": lambda layer, moments, damping: MODES["head-ls"].fit(layer, centred(moments), damping),
    "one factor for all": MODES["uniform-ls"].fit,
}


@pytest.mark.parametrize("wrong", BY_HEAD.values(), ids=BY_HEAD)
def test_a_wrong_factor_of_a_head_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: Formula
) -> None:
    seams.change_formula(monkeypatch, "head-ls", wrong)
    assert_refused(source, tmp_path, "head-ls")


# --- least squares -----------------------------------------------------------------------------------------------


def ridge(layer: PrunedLayer, moments: Moments, damping: float) -> np.ndarray:
    second, kept, pruned = moments.second, layer.kept_columns, layer.pruned_columns
    system = second[np.ix_(kept, kept)]
    system = system + damping * np.mean(np.diag(system)) * np.eye(len(kept))
    solution: np.ndarray = np.linalg.solve(system, second[np.ix_(kept, pruned)]).T
    return solution


def mapped(change: Callable[[np.ndarray], np.ndarray], factor: float = 1.0) -> Formula:
    """The right map, changed."""
    return lambda layer, moments, damping: layer.mix(factor, change(ridge(layer, moments, damping)))


def damped(times: float) -> Formula:
    return lambda layer, moments, damping: MODES["least-squares"].fit(layer, moments, damping * times)


def damped_by_all_columns(layer: PrunedLayer, moments: Moments, damping: float) -> HeadMix:
    diagonal = np.diag(moments.second)
    return damped(float(diagonal.mean() / diagonal[layer.kept_columns].mean()))(layer, moments, damping)


def kept_and_pruned_swapped(layer: PrunedLayer, moments: Moments, damping: float) -> HeadMix:
    other = replace(layer, pruned=layer.kept)
    transfer: np.ndarray = np.linalg.pinv(ridge(other, moments, damping))
    return layer.mix(1.0, np.ascontiguousarray(transfer))


def weights_of_the_next_head(layer: PrunedLayer, moments: Moments, damping: float) -> HeadMix:
    rolled = replace(moments, tensor=np.roll(moments.second, D, axis=(0, 1)))
    return layer.mix(1.0, ridge(layer, rolled, damping))


LEAST_SQUARES = {
    "damping times ten": damped(10),
    "damping over ten": damped(0.1),
    "hardly damped": damped(1e-6),
    "damping by the mean of all columns": damped_by_all_columns,
    "rows and columns swapped": mapped(lambda a: np.ascontiguousarray(a.T).reshape(a.shape)),
    "pruned heads off by one": mapped(lambda a: np.roll(a, D, axis=0)),
    "kept heads off by one": mapped(lambda a: np.roll(a, D, axis=1)),
    "one column off": mapped(lambda a: np.roll(a, 1, axis=1)),
    "the sign": mapped(lambda a: -a),
    "half of it": mapped(lambda a: a / 2),
    "the scale on top": mapped(lambda a: a, 1.5),
    "rounded to whole percents": mapped(lambda a: np.round(a, 2)),
    "without the smallest numbers": mapped(lambda a: np.where(np.abs(a) < 0.05, 0.0, a)),
    "noise": mapped(lambda a: np.random.Generator(np.random.PCG64(1)).normal(0, a.std(), a.shape)),
    "kept and pruned swapped": kept_and_pruned_swapped,
    "moments of the next head": weights_of_the_next_head,
    "the covariance": lambda layer, moments, damping: MODES["least-squares"].fit(layer, centred(moments), damping),
}


@pytest.mark.parametrize("wrong", LEAST_SQUARES.values(), ids=LEAST_SQUARES)
def test_a_wrong_least_squares_map_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: Formula
) -> None:
    seams.change_formula(monkeypatch, "least-squares", wrong)
    assert_refused(source, tmp_path, "least-squares")


OTHER_MOMENTS = {
    "image tokens for text": lambda layer: LayerMoments(tokens(layer, "image")),
    "text tokens alone": lambda layer: LayerMoments(tokens(layer, "text")),
    "another image weight": lambda layer: mixed(layer, 0.1),
    "the weights of text and image swapped": lambda layer: mixed(layer, 0.4),
    "the next layer's": lambda layer: mixed(layer + 1),
    "held-out tokens in place of those to fit": lambda layer: LayerMoments(tokens(layer, "held out")),
    "all tokens": lambda layer: LayerMoments(mix_moments(mixed(layer).train, tokens(layer, "held out"))),
}


@pytest.mark.parametrize("mode", ["uniform-ls", "head-ls", "least-squares"])
@pytest.mark.parametrize("wrong", OTHER_MOMENTS.values(), ids=OTHER_MOMENTS)
def test_a_fit_to_other_moments_is_refused(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    wrong: Callable[[int], LayerMoments],
) -> None:
    seams.fit_to(monkeypatch, wrong)
    assert_refused(source, tmp_path, mode)


# --- the methods that go by the likeness of heads ------------------------------------------------------------------


def v_rows(layer: PrunedLayer) -> np.ndarray:
    return layer.read_weight("v").reshape(N, -1)


def o_columns(layer: PrunedLayer) -> np.ndarray:
    return np.concatenate([layer.read_weight("o")[:, h * D : (h + 1) * D].reshape(1, -1) for h in range(N)])


def cosines(rows: np.ndarray) -> np.ndarray:
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    alike: np.ndarray = unit @ unit.T
    return alike


def alike(
    share: Callable[[np.ndarray], np.ndarray] = lambda cosine: np.maximum(cosine, 0),
    *,
    rows: Callable[[PrunedLayer], np.ndarray] = v_rows,
    likeness: Callable[[np.ndarray], np.ndarray] = cosines,
    base: Callable[[int], float] = lambda kept: N / kept,
    total: Callable[[int, float], float] = lambda kept, found: N,
) -> Formula:
    """Similarity, of which one part may be another."""

    def formula(layer: PrunedLayer, moments: Moments, damping: float) -> HeadMix:
        kept, pruned = list(layer.kept), list(layer.pruned)
        factors = base(len(kept)) + share(likeness(rows(layer))[np.ix_(pruned, kept)]).sum(axis=0)
        return layer.mix(factors * total(len(kept), float(factors.sum())) / factors.sum())

    return formula


def between_rolled(rows: np.ndarray) -> np.ndarray:
    return cosines(np.roll(rows, 1, axis=0))


SIMILARITIES = {
    "not normalised": alike(total=lambda kept, found: found),
    "normalised to the kept heads": alike(total=lambda kept, found: kept),
    "without N / n": alike(base=lambda kept: 0.0),
    "n / N": alike(base=lambda kept: kept / N),
    "1 in place of N / n": alike(base=lambda kept: 1.0),
    "the sign": alike(lambda cosine: -np.maximum(cosine, 0)),
    "the squared cosines": alike(lambda cosine: np.maximum(cosine, 0) ** 2),
    "the mean over pruned heads": alike(lambda cosine: np.maximum(cosine, 0) / len(cosine)),
    "the largest alone": alike(lambda cosine: np.where(cosine == cosine.max(axis=0), cosine, 0)),
    "heads in reverse order": alike(lambda cosine: np.maximum(cosine, 0)[:, ::-1]),
    "products in place of cosines": alike(likeness=lambda rows: rows @ rows.T),
    "O in place of V": alike(rows=o_columns),
    "V of the next head": alike(likeness=between_rolled),
    "V of the first kept head": alike(lambda cosine: np.repeat(np.maximum(cosine, 0)[:, :1], cosine.shape[1], axis=1)),
}


@pytest.mark.parametrize("wrong", SIMILARITIES.values(), ids=SIMILARITIES)
def test_a_wrong_similarity_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: Formula
) -> None:
    seams.change_formula(monkeypatch, "similarity", wrong)
    assert_refused(source, tmp_path, "similarity")


def transfer(
    *,
    beta: float = 0.1,
    choose: Callable[[np.ndarray], int] = lambda cosine: int(np.argmax(cosine)),
    rows: Callable[[PrunedLayer], np.ndarray] = v_rows,
    giver: Callable[[int], int] = lambda pruned: pruned,
    stays: Callable[[float], float] = lambda share: 1 - share,
    limit: float = 1.5,
    shrunk: float = 1.0,
    changes: tuple[str, ...] = ("v", "o"),
) -> Formula:
    """Residual transfer, of which one part may be another."""

    def formula(layer: PrunedLayer, moments: Moments, damping: float) -> HeadMix:
        kept, pruned = list(layer.kept), list(layer.pruned)
        likeness, v = cosines(rows(layer)), v_rows(layer)
        values, outputs = np.eye(N), np.eye(N)
        for p in pruned:
            k = kept[choose(likeness[p, kept])]
            share = beta * max(float(likeness[p, k]), 0.0)
            for name, mixture in (("v", values), ("o", outputs)):
                if name in changes:
                    mixture[k] *= stays(share)
                    mixture[k, giver(p)] += share
            norm = float(np.linalg.norm(values[k] @ v))
            if norm > limit * math.sqrt(D):
                values[k] *= shrunk * math.sqrt(D) / norm
        values[pruned] = 0.0
        return layer.mix(np.diag(outputs)[kept], np.kron(outputs[np.ix_(kept, pruned)].T, np.eye(D)), values)

    return formula


TRANSFERS = {
    "the sign": transfer(beta=-0.1),
    "ten times as much": transfer(beta=1.0),
    "the least alike": transfer(choose=lambda cosine: int(np.argmin(cosine))),
    "the second most alike": transfer(choose=lambda cosine: int(np.argsort(cosine)[-2])),
    "the neighbour of the most alike": transfer(choose=lambda cosine: (int(np.argmax(cosine)) + 1) % len(cosine)),
    "the first kept head": transfer(choose=lambda cosine: 0),
    "O in place of V": transfer(rows=o_columns),
    "V of the next head": transfer(rows=lambda layer: np.roll(v_rows(layer), 1, axis=0)),
    "added on top": transfer(stays=lambda share: 1.0),
    "O alone": transfer(changes=("o",)),
    "V alone": transfer(changes=("v",)),
    "no limit of the norm": transfer(limit=math.inf),
    "shrunk to the limit": transfer(shrunk=1.5),
}


@pytest.mark.parametrize("wrong", TRANSFERS.values(), ids=TRANSFERS)
def test_a_wrong_residual_transfer_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: Formula
) -> None:
    seams.change_formula(monkeypatch, "residual-transfer", wrong)
    assert_refused(source, tmp_path, "residual-transfer")


# --- the right ones -----------------------------------------------------------------------------------------------

RIGHT = {
    "scale": by_mask(lambda total, kept: total / kept),
    "none": by_mask(lambda total, kept: 1.0),
    "uniform-ls": uniform(lambda between, kept, pruned: 1 + between / kept),
    "head-ls": by_head(solved),
    "least-squares": mapped(lambda a: a),
    "residual-transfer": transfer(),
    "similarity": alike(),
}


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("mode", MAPS)
def test_the_formulas_that_the_mistakes_are_made_in_are_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, dtype: str
) -> None:
    source = write_checkpoint(tmp_path / "in", replace(SPEC, dtype=dtype))
    seams.change_formula(monkeypatch, mode, RIGHT[mode])
    convert(source, tmp_path / "out", MASK, compensation=mode, statistics=mixed, check_behaviour=False, card=False)


# --- the figures -------------------------------------------------------------------------------------------------


def test_an_error_that_is_not_the_stored_weights_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = error_module.mix_error
    monkeypatch.setattr("s4convert.compensation.figures.mix_error", lambda *args: 0.9 * right(*args))
    assert_refused(source, tmp_path, "least-squares", message=r"E of none is .*, where the report has")
