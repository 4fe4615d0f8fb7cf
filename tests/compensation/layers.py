"""Layers, tokens and moments to try compensations on; numpy alone, and of the package only what carries them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from s4convert.calibration.moments import Moments
from s4convert.checkpoint import Geometry
from s4convert.compensation.pruned_layer import PrunedLayer


@dataclass(frozen=True, eq=False)
class Example:
    """A layer with random weights, and *tokens* [num_tokens, columns] of head outputs that depend on each other."""

    layer: PrunedLayer
    output: np.ndarray
    value: np.ndarray
    tokens: np.ndarray
    warnings: list[str] = field(default_factory=list)

    @property
    def moments(self) -> Moments:
        return Moments.of(self.tokens)

    def streamed_error(self, after: np.ndarray, tokens: np.ndarray | None = None) -> float:
        """E by its definition: the mean over tokens of |W' x - W x|^2, a few tokens at a time."""
        tokens = self.tokens if tokens is None else tokens
        total = 0.0
        for first in range(0, len(tokens), 100):
            block = tokens[first : first + 100]
            total += float((((after - self.output) @ block.T) ** 2).sum())
        return total / len(tokens)


def example(
    pruned: tuple[int, ...] = (1, 4),
    *,
    num_heads: int = 6,
    head_dim: int = 4,
    hidden_size: int = 20,
    num_tokens: int = 2000,
    rank: int | None = None,
    seed: int = 0,
) -> Example:
    """An example; its tokens are noise of *rank* dimensions, plus a tenth of noise in all of them, off zero."""
    generator = np.random.Generator(np.random.PCG64(seed))
    columns = num_heads * head_dim
    output, value = (generator.normal(0, 1, shape) for shape in ((hidden_size, columns), (columns, hidden_size)))
    shared = generator.normal(0, 1, (num_tokens, rank or columns // 2))
    tokens = shared @ generator.normal(0, 1, (shared.shape[1], columns))
    tokens += 0.3 * generator.normal(0, 1, tokens.shape) + generator.normal(0, 0.5, columns)
    return Example(
        make_layer(pruned, num_heads, head_dim, output, value, warnings := []), output, value, tokens, warnings
    )


def make_layer(
    pruned: tuple[int, ...],
    num_heads: int,
    head_dim: int,
    output: np.ndarray,
    value: np.ndarray,
    warnings: list[str],
    *,
    scale: float | None = None,
) -> PrunedLayer:
    geometry = Geometry(8, num_heads, num_heads, head_dim, len(output))
    weights = {"o": output, "v": value}
    return PrunedLayer(5, geometry, pruned, scale, weights.__getitem__, warnings.append)


def weight_error(before: np.ndarray, after: np.ndarray, moments: Moments) -> float:
    """E of the weight *after* in the place of *before*, by its definition: tr((W' - W) S (W' - W)^T)."""
    change = after - before
    return float(np.trace(change @ moments.second @ change.T))
