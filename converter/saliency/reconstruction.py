"""``reconstruction``: the error that the removal of a head leaves after a least-squares refit of the kept heads.

Heads are removed greedily, each with all its columns. With W = ``o_proj.weight``, S = E[x x^T] of its input
and A = S + lambda I, removing the heads P and refitting the others gives the optimal-brain-surgeon update

    W - W' = W_P ([A^-1]_PP)^-1 [A^-1]_P:        (so W'_P = 0 and W'_K = W_K + W_P S_PK (S_KK + lambda I)^-1)

whose error is E = tr((W - W') S (W - W')^T) = tr((W - W') A (W - W')^T) - lambda |W - W'|_F^2. Removing the next head
is the same update, from W' and the A^-1 of the columns that are left. It needs only the products W'^T W' and
W'^T (W - W') [columns, columns], in float64, and not W' itself.
Sources: Optimal Brain Surgeon (Hassibi and Stork 1993); in blocks of heads, SlimGPT (arXiv 2412.18110).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from ..calibration.moments import SecondMoments
from ..checkpoint import Checkpoint
from ..errors import CalibrationError
from ..mask.head_scores import rising

if TYPE_CHECKING:
    import torch

DAMPING = 1e-2  # lambda over the mean of diag(S)


class Reconstruction(SecondMoments):
    """The growth of E at the step at which greedy removal takes the head.

    Scores rise strictly in the order of removal, so that the lowest scores of a layer are the heads that greedy removal
    takes first: where E grows less than at the step before, the score is the next float above that step's score.
    """

    def __init__(self, checkpoint: Checkpoint, layer: int, device: str) -> None:
        super().__init__()
        self._checkpoint, self._layer, self._device = checkpoint, layer, device

    def scores(self) -> tuple[float, ...]:
        """The scores [num_heads]; CalibrationError where S + lambda I cannot be factorised."""
        removed = [(step.head, step.error) for step in self.steps()]
        return rising([head for head, _ in removed], [error for _, error in removed])

    def steps(self, weight: torch.Tensor | None = None) -> Iterator[Removal]:
        """Greedy removal; CalibrationError where S + lambda I cannot be factorised.

        *weight* is that of ``o_proj`` where it is in memory already; else it is read.
        """
        import torch

        if weight is None:
            weight = torch.from_numpy(self._checkpoint.read_projection(self._layer, "o"))
        weight = weight.to(self._device, torch.float64)
        gram = weight.T @ weight
        del weight
        geometry = self._checkpoint.geometry
        try:
            yield from greedy_removal(gram, self.mixed(), geometry.num_heads)
        except ArithmeticError as error:
            raise CalibrationError(
                f"reconstruction: layer {self._layer}: the second moments cannot be factorised ({error}); "
                "give more samples, or use the metric energy"
            ) from error


class Removal(NamedTuple):
    """That *head* goes: *error* is E after it, and *update* [head_dim, columns] the G of W' - W'_p G, which does it."""

    head: int
    error: float
    update: torch.Tensor


def greedy_removal(gram: torch.Tensor, moments: torch.Tensor, num_heads: int) -> Iterator[Removal]:
    """The removals, in their order; of equal errors, the lower head number first.

    *gram* is W^T W and *moments* S, [num_heads * head_dim, num_heads * head_dim] in float64. lambda is
    :data:`DAMPING` times the mean of diag(S) over all heads, the same at every step.

    Raises:
        ArithmeticError: S + lambda I is not positive definite.
    """
    import torch

    head_dim = len(moments) // num_heads
    # Where every head is silent, S is zero, and any lambda gives the right errors, zero.
    damping = DAMPING * float(moments.diagonal().mean()) or 1.0
    left = moments.clone()
    left.diagonal().add_(damping)
    inverse = _inverse(left)
    gram = gram.contiguous().clone()  # W'^T W'
    cross = torch.zeros_like(gram)  # W'^T (W - W')
    damped_error, change = 0.0, 0.0  # tr((W - W') A (W - W')^T) and |W - W'|_F^2
    remaining = list(range(num_heads))
    while remaining:
        heads = torch.tensor(remaining, device=moments.device)
        rows = inverse.view(num_heads, head_dim, -1)[heads]
        block = _inverse(_blocks(inverse, num_heads)[heads])
        of_weight = _blocks(gram, num_heads)[heads]
        growth = (of_weight * block).sum((1, 2))
        # What the update U = W'_p G, G = block @ rows, adds to |W - W'|^2: 2 <W - W', U> + |U|^2.
        crossed = cross.view(num_heads, head_dim, -1)[heads] @ rows.transpose(1, 2)
        squared = block @ (rows @ rows.transpose(1, 2)) @ block
        changed = 2 * (crossed * block).sum((1, 2)) + (of_weight * squared).sum((1, 2))
        errors = (damped_error + growth) - damping * (change + changed)
        best = int(errors.argmin())
        head = remaining.pop(best)
        damped_error, change = damped_error + float(growth[best]), change + float(changed[best])

        at = slice(head * head_dim, (head + 1) * head_dim)
        update = block[best] @ rows[best]
        yield Removal(head, not_below_zero(float(errors[best])), update)
        towards, away, within = gram[:, at].clone(), cross[at].clone(), gram[at, at].clone()
        cross += towards @ update - update.T @ (away + within @ update)
        gram += update.T @ (within @ update) - towards @ update - update.T @ towards.T
        inverse -= inverse[:, at] @ update
        for matrix in (inverse, gram):
            matrix[at] = 0.0
            matrix[:, at] = 0.0
        cross[at] = 0.0


def not_below_zero(figure: float) -> float:
    """*figure*, or 0 where rounding made it negative; NaN stays NaN, which ``max`` would make 0."""
    return 0.0 if figure < 0 else figure


def _blocks(matrix: torch.Tensor, num_heads: int) -> torch.Tensor:
    """The blocks [num_heads, head_dim, head_dim] on the diagonal of *matrix*."""
    head_dim = len(matrix) // num_heads
    return matrix.view(num_heads, head_dim, num_heads, head_dim).diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def _inverse(matrix: torch.Tensor) -> torch.Tensor:
    import torch

    factor, failed = torch.linalg.cholesky_ex(matrix)
    if bool(failed.any()) or not bool(factor.isfinite().all()):
        raise ArithmeticError("not positive definite")
    return torch.cholesky_inverse(factor).contiguous()  # CUDA's result is column-major
