"""Residual transfer and similarity are what their formulas say, transcribed here on plain weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s4convert.compensation.similarity import residual_transfer, similarity
from tests.compensation.layers import make_layer

HEAD_DIM, HIDDEN = 3, 7


def alike_heads(num_heads: int, norm: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(O, V) with V rows that have something in common, of about *norm* a head."""
    generator = np.random.Generator(np.random.PCG64(seed))
    value = generator.normal(0, 1, (num_heads, HEAD_DIM, HIDDEN)) + generator.normal(0, 1, (HEAD_DIM, HIDDEN))
    value *= norm / np.linalg.norm(value, axis=(1, 2)).mean()
    return generator.normal(0, 1, (HIDDEN, num_heads * HEAD_DIM)), value.reshape(-1, HIDDEN)


def transcribed_transfer(
    output: np.ndarray, value: np.ndarray, pruned: tuple[int, ...], num_heads: int
) -> tuple[np.ndarray, np.ndarray]:
    """beta' = beta max(cos, 0); V_k += beta' (V_p - V_k), at most 1.5 sqrt(d); O_k += beta' (O_p - O_k); p silenced."""
    first_v = [value[h * HEAD_DIM : (h + 1) * HEAD_DIM].copy() for h in range(num_heads)]
    v = [rows.copy() for rows in first_v]
    o = [output[:, h * HEAD_DIM : (h + 1) * HEAD_DIM].copy() for h in range(num_heads)]
    for p in pruned:
        best, best_cosine = -1, -math.inf
        for k in range(num_heads):
            if k in pruned:
                continue
            a, b = first_v[p].ravel(), first_v[k].ravel()
            cosine = float(a @ b) / (math.sqrt(float(a @ a)) * math.sqrt(float(b @ b)))
            if cosine > best_cosine:
                best, best_cosine = k, cosine
        beta = 0.1 * max(best_cosine, 0.0)
        v[best] = v[best] + beta * (v[p] - v[best])
        norm = math.sqrt(float((v[best] ** 2).sum()))
        if norm > 1.5 * math.sqrt(HEAD_DIM):
            v[best] = v[best] * (math.sqrt(HEAD_DIM) / norm)
        o[best] = o[best] + beta * (o[p] - o[best])
    for p in pruned:
        v[p], o[p] = np.zeros_like(v[p]), np.zeros_like(o[p])
    return np.concatenate(o, axis=1), np.concatenate(v)


CASES = st.tuples(
    st.integers(2, 7).flatmap(
        lambda n: st.tuples(
            st.just(n), st.sets(st.integers(0, n - 1), min_size=1, max_size=n - 1).map(sorted).map(tuple)
        )
    ),
    st.sampled_from([0.5, 2.0, 2.59, 2.61, 8.0]),  # 1.5 sqrt(3) = 2.598
    st.integers(0, 2**32 - 1),
)


@settings(max_examples=100, deadline=None)
@given(CASES)
def test_residual_transfer_is_its_formula(case: tuple[tuple[int, tuple[int, ...]], float, int]) -> None:
    (num_heads, pruned), norm, seed = case
    output, value = alike_heads(num_heads, norm, seed)
    mix = residual_transfer(make_layer(pruned, num_heads, HEAD_DIM, output, value, []))
    wanted_output, wanted_value = transcribed_transfer(output, value, pruned, num_heads)
    found = output @ mix.apply_to_heads(np.eye(output.shape[1])).T
    np.testing.assert_allclose(found, wanted_output, rtol=1e-6, atol=1e-6)
    mixed = mix.apply_to_values(value.astype(np.float32))
    mixed[mix.pruned_columns] = 0
    np.testing.assert_allclose(mixed, wanted_value, rtol=1e-6, atol=1e-6)


def test_residual_transfer_gives_nothing_to_heads_that_are_not_alike() -> None:
    value = np.eye(4)
    output = np.random.Generator(np.random.PCG64(0)).normal(0, 1, (4, 4))
    mix = residual_transfer(make_layer((1,), 4, 1, output, value, []))
    assert (mix.factors == [1, 0, 1, 1]).all()
    assert mix.transfer is not None and (mix.transfer == 0).all()
    assert mix.mixed_values == ()


@settings(max_examples=100, deadline=None)
@given(CASES)
def test_similarity_is_its_formula(case: tuple[tuple[int, tuple[int, ...]], float, int]) -> None:
    (num_heads, pruned), norm, seed = case
    output, value = alike_heads(num_heads, norm, seed)
    heads = value.reshape(num_heads, -1)
    kept = [head for head in range(num_heads) if head not in pruned]
    raw = {}
    for k in kept:
        raw[k] = num_heads / len(kept)
        for p in pruned:
            cosine = float(heads[p] @ heads[k]) / float(np.linalg.norm(heads[p]) * np.linalg.norm(heads[k]))
            raw[k] += max(cosine, 0.0)
    total = sum(raw.values())
    warnings: list[str] = []
    mix = similarity(make_layer(pruned, num_heads, HEAD_DIM, output, value, warnings))
    found = mix.factors[::HEAD_DIM]
    np.testing.assert_allclose(found, [raw[h] * num_heads / total if h in raw else 0 for h in range(num_heads)], 1e-6)
    assert float(found.sum()) == pytest.approx(num_heads, rel=1e-6)
    if round(total, 2) != num_heads:
        assert warnings == [
            f"layer 5: similarity: the factors of its kept heads sum to {total:.2f} where {num_heads} is meant; "
            "they are normalised"
        ]


def test_similarity_of_heads_that_have_nothing_in_common_is_the_scale_and_warns_of_nothing() -> None:
    warnings: list[str] = []
    mix = similarity(make_layer((1,), 4, 1, np.ones((4, 4)), np.eye(4), warnings))
    np.testing.assert_allclose(mix.factors, [4 / 3, 0, 4 / 3, 4 / 3], rtol=1e-6)
    assert warnings == []
