"""Which heads are pruned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from converter.checkpoint.geometry import Geometry
from converter.errors import MaskError

NATIVE_FORMAT = "s4convert-mask/1"
MIN_FACTOR, MAX_FACTOR = 1e-6, 1e6  # beyond, a scale is a mistake, and float32 would make it 0 or infinite


@dataclass(frozen=True)
class HeadMask:
    """The pruned query heads of every layer, and what the mask says of compensation.

    *pruned* has one sorted tuple of head numbers per layer. *scale*, where the mask carries it, maps a layer
    to the factor for its kept heads. *provenance* is the mask's own account of where it came from.
    """

    num_heads: int
    pruned: tuple[tuple[int, ...], ...]
    scale: Mapping[int, float] | None = None
    provenance: Mapping[str, Any] | None = None

    @property
    def num_layers(self) -> int:
        return len(self.pruned)

    @property
    def num_pruned(self) -> int:
        """Pruned heads in the whole model."""
        return sum(len(heads) for heads in self.pruned)

    @property
    def touched_layers(self) -> tuple[int, ...]:
        """The layers that lose at least one head."""
        return tuple(layer for layer, heads in enumerate(self.pruned) if heads)

    def kept(self, layer: int) -> tuple[int, ...]:
        """The heads of *layer* that stay, sorted."""
        pruned = set(self.pruned[layer])
        return tuple(head for head in range(self.num_heads) if head not in pruned)

    def pruned_kv_heads(self, layer: int, geometry: Geometry) -> tuple[int, ...]:
        """The kv heads of *layer* whose query heads are all pruned: nothing reads them any more."""
        pruned, group = set(self.pruned[layer]), geometry.heads_per_group
        return tuple(
            kv for kv in range(geometry.num_kv_heads) if pruned.issuperset(range(kv * group, (kv + 1) * group))
        )

    def check(self, geometry: Geometry) -> None:
        """Raise MaskError unless the mask can be applied to a model of *geometry* and has an effect."""
        if (self.num_layers, self.num_heads) != (geometry.num_layers, geometry.num_heads):
            raise MaskError(
                f"is for {self.num_layers} layers of {self.num_heads} heads, but the checkpoint has "
                f"{geometry.num_layers} layers of {geometry.num_heads}"
            )
        if not self.num_pruned:
            raise MaskError("prunes no head, so a conversion would change nothing")
        for layer, heads in enumerate(self.pruned):
            numbers = all(type(head) is int and 0 <= head < self.num_heads for head in heads)
            if not numbers or list(heads) != sorted(set(heads)):
                raise MaskError(f"layer {layer}: {heads} are not sorted head numbers from 0 to {self.num_heads - 1}")
            if len(heads) == self.num_heads:
                raise MaskError(f"layer {layer}: every head is pruned, and no kept head can make up for them; keep one")
        for layer, factor in (self.scale or {}).items():
            if layer not in self.touched_layers:
                raise MaskError(f"scale: layer {layer} is not a layer that loses heads")
            if not MIN_FACTOR <= factor <= MAX_FACTOR:
                raise MaskError(f"scale, layer {layer}: {factor!r} is not a factor from {MIN_FACTOR} to {MAX_FACTOR}")

    def to_json(self) -> dict[str, Any]:
        """The mask in the native format, only layers that lose heads listed."""
        content: dict[str, Any] = {
            "format": NATIVE_FORMAT,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "pruned": {str(layer): list(self.pruned[layer]) for layer in self.touched_layers},
        }
        if self.scale is not None:
            content["scale"] = {str(layer): factor for layer, factor in sorted(self.scale.items())}
        if self.provenance is not None:
            content["provenance"] = dict(self.provenance)
        return content
