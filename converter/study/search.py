"""A search from a mask: heads swapped between layers, along the order in which each loses its own, by measured KL.

A state is how many heads each layer has lost; which, its order says. A proposal lets one layer have the last of them
back and another lose its next, refits both by least squares, and stays where that lowers KL(original || pruned) on
samples that neither scores nor fits have seen. The whole model is in memory. Swaps along ladders: Tyr the Pruner
(arXiv 2503.09657).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..calibration.inputs import Inputs, modalities
from ..calibration.moments import SecondMoments
from ..compensation.modes import DEFAULT_DAMPING
from ..errors import CompensationError, enough_memory
from ..model.batches import batches, padded
from ..model.decoder import full_float32, stock_code
from ..model.divergence import Divergence, compare
from ..model.output_head import OutputHead
from ..model.resident import ResidentModel
from ..progress import second_bar

if TYPE_CHECKING:
    import torch

Orders = Sequence[Sequence[int]]  # [layers][heads]: the heads of each layer, in the order in which they go


@dataclass(frozen=True)
class Searched:
    """What a search came to: how many heads each layer loses (*counts*), and its log.

    *kl_before* and *kl_after* are in nats a token. *swaps* are the accepted proposals, (the layer that had a head back,
    the layer that lost one, the KL after it); *exhausted* says that no proposal was left to try.
    """

    counts: tuple[int, ...]
    proposals: int
    kl_before: float
    kl_after: float
    tokens: int
    swaps: tuple[tuple[int, int, float], ...]
    exhausted: bool

    def to_json(self) -> dict[str, Any]:
        """The log, for a provenance."""
        return {
            "proposals": self.proposals,
            "accepted": len(self.swaps),
            "kl_before": self.kl_before,
            "kl_after": self.kl_after,
            "held_out_tokens": self.tokens,
            "exhausted": self.exhausted,
            "swaps": [list(swap) for swap in self.swaps],
        }


class Searcher:
    """Swaps heads of *model*, which loses those of *orders*; fits are to the samples *train*.

    *held_out* are the samples that judge, each where *places* [tokens] says.

    Raises:
        OutOfMemoryError: the moments of all layers do not fit beside the model.
    """

    def __init__(
        self,
        model: ResidentModel,
        orders: Orders,
        train: Sequence[Inputs],
        held_out: Sequence[Inputs],
        places: Sequence[torch.Tensor],
    ) -> None:
        self._model, self._orders, self._head = model, orders, OutputHead(model.checkpoint, model.device)
        self._weights = [model.output_weight(layer).clone() for layer in range(len(orders))]
        moments = [SecondMoments() for _ in orders]
        with stock_code(), full_float32(), enough_memory("the moments of all layers, for `search`"):
            for numbers in batches([len(sample.is_image) for sample in train]):
                batch = [train[number] for number in numbers]
                is_image, inside = modalities(batch, model.device)
                for layer, heads in enumerate(model.heads(padded(sample.hidden for sample in batch))):
                    moments[layer].add(heads[inside], is_image, lambda outputs: outputs.T @ outputs)
            self._moments = [moments.pop(0).mixed() for _ in orders]
            self._batches = [
                [(held_out[number].hidden, places[number].to(model.device)) for number in numbers]
                for numbers in batches([len(sample.is_image) for sample in held_out])
            ]
            self._original = self._states()
        self.tokens = sum(len(states) for states in self._original)

    def refit(self, layer: int, count: int) -> None:
        """Let *layer* lose the first *count* heads of its order, the others refitted; with 0, be as it was.

        Raises:
            CompensationError: there is no fit.
        """
        import torch

        weight, moments = self._weights[layer], self._moments[layer]
        into = self._model.output_weight(layer)
        if not count:
            into.copy_(weight)
            return
        head_dim = len(moments) // len(self._orders[layer])
        gone = torch.zeros(len(self._orders[layer]), dtype=torch.bool, device=moments.device)
        gone[torch.tensor(self._orders[layer][:count], device=moments.device)] = True
        gone = gone.repeat_interleave(head_dim)
        system, shared = moments[~gone][:, ~gone], moments[~gone][:, gone]
        # Where the kept heads are silent, any ridge gives the right transfer, none.
        system.diagonal().add_(DEFAULT_DAMPING * float(system.diagonal().mean()) or 1.0)
        factor, failed = torch.linalg.cholesky_ex(system)
        if bool(failed):
            raise CompensationError(
                f"layer {layer}: the second moments of its kept heads are not positive definite, so the search cannot "
                "refit it; give more samples"
            )
        exact = weight.double()
        refitted = torch.zeros_like(exact)
        refitted[:, ~gone] = exact[:, ~gone] + exact[:, gone] @ torch.cholesky_solve(shared, factor).T
        into.copy_(refitted)

    def divergence(self) -> float:
        """KL(original || the model as it is), in nats a token of the held-out samples, which count the same."""
        pairs = zip(self._original, self._states(), strict=True)
        return Divergence.mean([compare(self._head, before, after) for before, after in pairs if len(before)]).kl

    def search(
        self,
        counts: Sequence[int],
        *,
        seconds: float,
        seed: Sequence[int],
        frozen: Sequence[int] = (),
        most: int | None = None,
        progress: bool = False,
    ) -> Searched:
        """Search from *counts* for so many *seconds*, or *most* proposals, or until every swap was tried in vain.

        *frozen* layers keep what they have. What is proposed depends on the *seed* alone, and the model is left without
        the heads that the result prunes.

        Raises:
            CompensationError: a layer cannot be refitted, or the model's output is not finite.
        """
        found = list(counts)
        for layer, count in enumerate(found):
            self.refit(layer, count)
        begin = best = self.divergence()
        if not math.isfinite(begin):
            raise CompensationError(
                "the model's output is not finite numbers, so the search cannot begin; check the checkpoint's weights"
            )
        numbers = np.random.Generator(np.random.PCG64(list(seed)))
        swaps: list[tuple[int, int, float]] = []
        tried: set[tuple[int, int]] = set()
        proposals, start = 0, time.monotonic()
        with second_bar("search", seconds, shown=progress) as bar:
            while time.monotonic() - start < seconds and proposals != most:
                left = [pair for pair in self._pairs(found, frozen) if pair not in tried]
                if not left:
                    break
                back, lost = left[int(numbers.integers(len(left)))]
                proposals += 1
                before = [(layer, self._model.output_weight(layer).clone()) for layer in (back, lost)]
                self.refit(back, found[back] - 1)
                self.refit(lost, found[lost] + 1)
                divergence = self.divergence()
                if divergence < best:
                    found[back], found[lost], best = found[back] - 1, found[lost] + 1, divergence
                    swaps.append((back, lost, divergence))
                    tried.clear()
                else:
                    for layer, weight in before:
                        self._model.output_weight(layer).copy_(weight)
                    tried.add((back, lost))
                bar.set_postfix_str(f"KL {best:.4g}, {len(swaps)} of {proposals} accepted", refresh=False)
                bar.update(min(time.monotonic() - start, seconds) - bar.n)
        exhausted = all(pair in tried for pair in self._pairs(found, frozen))
        return Searched(tuple(found), proposals, begin, best, self.tokens, tuple(swaps), exhausted)

    def _pairs(self, counts: Sequence[int], frozen: Sequence[int]) -> list[tuple[int, int]]:
        """(layer that may have a head back, layer that may lose one); every layer keeps one."""
        layers = [layer for layer in range(len(counts)) if layer not in frozen]
        return [
            (back, lost)
            for back in layers
            for lost in layers
            if back != lost and counts[back] and counts[lost] < len(self._orders[lost]) - 1
        ]

    def _states(self) -> list[torch.Tensor]:
        """What goes into ``lm_head`` at the places of each held-out sample, [places, hidden_size]."""
        import torch

        with torch.inference_mode():
            return [
                state[: len(places)][places]
                for batch in self._batches
                for state, (_, places) in zip(self._model.states([one for one, _ in batch]), batch, strict=True)
            ]
