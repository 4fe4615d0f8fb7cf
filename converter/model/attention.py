"""The input of attention kernels, seen from outside stock code."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import UsageError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class AttentionInput:
    """The input of one layer's attention kernel, after projections and rotary embedding.

    *query* is [num_heads, tokens, head_dim]; *key* is the same, or [num_kv_heads, tokens, head_dim] where the
    kernel shares kv heads itself. *mask* [1 or num_heads, tokens, tokens] is boolean (True = may attend) or added
    to the scores; None means causal.
    """

    query: torch.Tensor
    key: torch.Tensor
    mask: torch.Tensor | None
    scale: float

    def until(self, tokens: int) -> AttentionInput:
        """That of the first *tokens*."""
        mask = None if self.mask is None else self.mask[:, :tokens, :tokens]
        return AttentionInput(self.query[:, :tokens], self.key[:, :tokens], mask, self.scale)

    def weights(self, rows: torch.Tensor) -> torch.Tensor:
        """The attention weights [num_heads, len(rows), tokens] of the queries at the token positions *rows*."""
        import torch

        heads, tokens, _ = self.query.shape
        key = self.key.repeat_interleave(heads // len(self.key), dim=0)
        scores = (self.query[:, rows] * self.scale) @ key.transpose(1, 2)
        if self.mask is None:
            positions = torch.arange(tokens, device=rows.device)
            scores = scores.masked_fill(positions > rows[:, None], float("-inf"))
        elif self.mask.dtype == torch.bool:
            scores = scores.masked_fill(~self.mask[:, rows], float("-inf"))
        else:
            scores = scores + self.mask[:, rows]
        return scores.softmax(-1)


AttentionHook: TypeAlias = "Callable[[AttentionInput], object]"


@contextlib.contextmanager
def attention_watched(hook: AttentionHook) -> Iterator[None]:
    """Call *hook* with the input of torch's attention kernel, which every version and family of stock code calls.

    Raises:
        UsageError: inside the block, the installed stock code did not call it.
    """
    with _watch_class()(hook) as watch:
        yield
    if not watch.calls:
        import transformers

        raise UsageError(
            f"transformers {transformers.__version__} does not compute this model's attention with torch's kernel, so "
            "attention cannot be watched; use another version, or a metric or a compensation that needs no calibration "
            "data"
        )


# A class is part of a cycle, which stays until Python looks for some: so there is one for all calls, and the hook, with
# all that it saw, belongs to the instance.
@functools.cache
def _watch_class() -> Any:
    import torch
    from torch.overrides import TorchFunctionMode

    kernel = torch.nn.functional.scaled_dot_product_attention

    class Watch(TorchFunctionMode):
        def __init__(self, hook: AttentionHook) -> None:
            super().__init__()
            self._hook, self.calls = hook, 0

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is kernel:
                self.calls += 1
                for one in _inputs(*args, **(kwargs or {})):
                    self._hook(one)
            return function(*args, **(kwargs or {}))

    return Watch


def _inputs(
    query: Any, key: Any, value: Any, attn_mask: Any = None, *_: Any, scale: Any = None, **__: Any
) -> Iterator[AttentionInput]:
    """Of each sample that torch's kernel is called with."""
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    masks = itertools.repeat(None) if attn_mask is None else attn_mask.expand(len(query), -1, -1, -1)
    for of_one in zip(query, key, masks, strict=False):
        yield AttentionInput(*of_one, factor)
