"""Least squares: the kept heads' outputs stand in for the pruned ones' as well as a linear map can make them.

x_P is predicted by A x_K with A = S_PK (S_KK + lambda 1)^-1, ridge regression towards 0, and W'_K = W_K + W_P A. For
lambda -> 0 this is the block update of the optimal brain surgeon, W - W_P [S^-1]_PP^-1 [S^-1]_P: (OSSCAR,
arXiv 2403.12983); for lambda -> infinity it is no compensation.
"""

from __future__ import annotations

from ..calibration.moments import Moments
from ..checkpoint.dtypes import Float64Array
from ..errors import CompensationError
from .head_mix import HeadMix, Indices
from .pruned_layer import PrunedLayer

TOKENS_PER_COLUMN = 10  # fewer tokens than this for each kept column, and the fit follows their noise


def least_squares(layer: PrunedLayer, moments: Moments, damping: float) -> HeadMix:
    """The fit with lambda = *damping* times the mean of S_KK's diagonal, which bounds the condition of the problem.

    Raises:
        CompensationError: S_KK + lambda 1 is not positive definite.
    """
    mean_power = float(moments.tensor.diagonal()[layer.kept_columns.tolist()].mean())
    transfer = fit_transfer(
        moments, layer.pruned_columns, layer.kept_columns, damping * mean_power, f"layer {layer.number}"
    )
    return layer.mix(1.0, transfer)


def fit_transfer(moments: Moments, pruned: Indices, kept: Indices, ridge: float, where: str) -> Float64Array:
    """A = S_PK (S_KK + *ridge* 1)^-1 [pruned, kept], by Cholesky in float64, on the device of *moments*.

    Raises:
        CompensationError: the matrix is not positive definite; *where* says which.
    """
    import torch  # for its triangular solves, which numpy has none of

    of_kept, of_pruned = (torch.from_numpy(columns).to(moments.device) for columns in (kept, pruned))
    rows = moments.tensor[of_kept]
    system = rows[:, of_kept]
    system.diagonal().add_(ridge)
    factor, failed_at = torch.linalg.cholesky_ex(system)
    if failed_at:
        raise CompensationError(
            f"{where}: the second moment of its {len(kept)} kept columns is not positive definite, so least-squares "
            "has no solution; calibrate with more data, or use another compensation"
        )
    solution = torch.cholesky_solve(rows[:, of_pruned], factor).T.contiguous()
    if not solution.isfinite().all():
        raise CompensationError(f"{where}: the least-squares solution is not finite; use another compensation")
    transfer: Float64Array = solution.cpu().numpy()
    return transfer


def too_few_tokens(layer: PrunedLayer, moments: Moments) -> str | None:
    """A sentence with the number wanted where there are too few tokens for the layer's kept columns, or None."""
    wanted = TOKENS_PER_COLUMN * len(layer.kept_columns)
    if moments.num_tokens >= wanted:
        return None
    return (
        f"layer {layer.number}: {moments.num_tokens:,} calibration tokens are few for {len(layer.kept_columns):,} kept "
        f"columns; {wanted:,} are wanted"
    )
