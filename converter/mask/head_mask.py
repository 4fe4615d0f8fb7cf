"""A mask: the heads to prune."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from numbers import Integral, Real
from pathlib import Path
from sys import float_info
from typing import Any

from ..checkpoint.geometry import Geometry
from ..disk import check_json_name, write_output
from ..errors import MaskError, shown
from .checked_values import check_provenance

NATIVE_FORMAT = "s4convert-mask/1"
SALIENCY = "saliency"  # in the provenance: the rounded score of every head
MIN_FACTOR, MAX_FACTOR = 1e-6, 1e6  # a scale out of this range is a mistake


@dataclass(frozen=True)
class MaskFile:
    """The file that a mask was read from: its *name* without a path, its *sha256*, and in words how it was read."""

    name: str
    sha256: str
    how_read: str

    def to_json(self) -> dict[str, str]:
        """The file for a script to read."""
        return {"name": self.name, "sha256": self.sha256, "read_as": self.how_read}


@dataclass(frozen=True)
class HeadMask:
    """The pruned query heads of every layer.

    *pruned* has a sorted tuple of head numbers per layer. *scale* (optional) maps a layer to the factor for its kept
    heads; numpy's numbers become Python's. *provenance* states where the mask is from. *file* is the one that it was
    read from, if any, and no part of it.

    Raises:
        MaskError: it prunes no head, or a whole layer, or a part of it is malformed.
    """

    num_heads: int
    pruned: tuple[tuple[int, ...], ...]
    scale: Mapping[int, float] | None = None
    provenance: Mapping[str, Any] | None = None
    file: MaskFile | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.scale, Mapping):
            plain = {_plain(layer): _plain(factor) for layer, factor in self.scale.items()}
            object.__setattr__(self, "scale", plain)
        self._check_heads()
        self._check_scale()
        check_provenance(self.provenance)

    def save(self, path: Path | str, *, force: bool = False) -> None:
        """Write the native mask file *path*, whole or not at all; *force* replaces an existing file.

        Raises:
            UsageError, StorageError: it cannot be written there, or the name does not end in ``.json``.
        """
        check_json_name(Path(path))
        write_output(Path(path), json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n", force=force)

    @property
    def num_layers(self) -> int:
        return len(self.pruned)

    @property
    def num_pruned(self) -> int:
        """The number of pruned heads in the model."""
        return sum(len(heads) for heads in self.pruned)

    @property
    def rate(self) -> float:
        """The share of the model's heads that is pruned."""
        return self.num_pruned / (self.num_layers * self.num_heads)

    @property
    def asked_rate(self) -> float | None:
        """The share that the mask was to prune, as far as its provenance says."""
        said = (self.provenance or {}).get("rate")
        return float(said) if isinstance(said, float) and isfinite(said) else None

    @property
    def saliency(self) -> tuple[tuple[float, ...], ...] | None:
        """The score of every head, [num_layers][num_heads], by which the mask was made, as far as provenance says."""
        said = (self.provenance or {}).get(SALIENCY)
        rows = said if isinstance(said, Sequence) and len(said) == self.num_layers else ()
        if not rows or not all(isinstance(row, Sequence) and len(row) == self.num_heads for row in rows):
            return None
        if not all(type(score) in (int, float) and abs(score) <= float_info.max for row in rows for score in row):
            return None
        return tuple(tuple(float(score) for score in row) for row in rows)

    @property
    def touched_layers(self) -> tuple[int, ...]:
        """The layers that lose at least one head."""
        return tuple(layer for layer, heads in enumerate(self.pruned) if heads)

    def kept(self, layer: int) -> tuple[int, ...]:
        """The heads of *layer* that are kept, sorted."""
        pruned = set(self.pruned[layer])
        return tuple(head for head in range(self.num_heads) if head not in pruned)

    def scale_factor(self, layer: int) -> float:
        """The factor for the kept heads of *layer*: the mask's own ``scale``, or else all heads / kept heads (S4)."""
        if self.scale is not None and layer in self.scale:
            return self.scale[layer]
        return self.num_heads / len(self.kept(layer))

    def pruned_kv_heads(self, layer: int, geometry: Geometry) -> tuple[int, ...]:
        """The kv heads of *layer* that no kept query head reads."""
        pruned, group = set(self.pruned[layer]), geometry.heads_per_group
        return tuple(
            kv for kv in range(geometry.num_kv_heads) if pruned.issuperset(range(kv * group, (kv + 1) * group))
        )

    def check_fits(self, geometry: Geometry) -> None:
        """Raise MaskError unless the mask is for a model of *geometry*."""
        if (self.num_layers, self.num_heads) != (geometry.num_layers, geometry.num_heads):
            raise MaskError(
                f"is for {self.num_layers} layers of {self.num_heads} heads, but the checkpoint has "
                f"{geometry.num_layers} layers of {geometry.num_heads}"
            )

    def _check_heads(self) -> None:
        if not any(self.pruned):
            raise MaskError("prunes no head, so a conversion would change nothing")
        for layer, heads in enumerate(self.pruned):
            numbers = all(type(head) is int and 0 <= head < self.num_heads for head in heads)
            if not numbers or list(heads) != sorted(set(heads)):
                raise MaskError(
                    f"layer {layer}: {shown(heads)} are not sorted head numbers from 0 to {self.num_heads - 1}"
                )
            if len(heads) == self.num_heads:
                raise MaskError(f"layer {layer}: every head is pruned, and no kept head can make up for them; keep one")

    def _check_scale(self) -> None:
        if self.scale is None:
            return
        if not isinstance(self.scale, Mapping):
            raise MaskError("scale is not an object that maps layers to factors")
        for layer, factor in self.scale.items():
            if layer not in self.touched_layers or isinstance(layer, bool):
                raise MaskError(f"scale: layer {shown(layer)} is not a layer that loses heads")
            if not isinstance(factor, int | float) or isinstance(factor, bool):
                raise MaskError(f"scale, layer {layer}: {shown(factor)} is not a number")
            if not MIN_FACTOR <= factor <= MAX_FACTOR:
                raise MaskError(
                    f"scale, layer {layer}: {shown(factor)} is not a factor from {MIN_FACTOR} to {MAX_FACTOR}"
                )

    def to_text(self) -> str:
        """A table of the pruned heads per layer; neighbouring layers with the same number share a line."""
        lines, first = ["layers     heads pruned"], 0
        counts = [len(heads) for heads in self.pruned]
        for layer, count in enumerate(counts):
            if layer + 1 == self.num_layers or counts[layer + 1] != count:
                lines.append(f"{first if first == layer else f'{first}-{layer}':<9}  {count:>12}")
                first = layer + 1
        return "\n".join([*lines, f"total      {self.num_pruned:>12} {self.realised}"])

    @property
    def realised(self) -> str:
        """Behind the number of pruned heads: of how many, which rate that is, and which was asked for."""
        asked = self.asked_rate
        beside = "" if asked is None else ", as asked for" if asked == self.rate else f"; {asked:g} was asked for"
        return f"of {self.num_layers * self.num_heads} heads, a rate of {self.rate:.4g}{beside}"

    def realised_json(self) -> dict[str, float | None]:
        """What the mask takes, and what was asked for, for a script to read."""
        heads = self.num_layers * self.num_heads
        return {"pruned": self.num_pruned, "heads": heads, "rate": self.rate, "asked_rate": self.asked_rate}

    def to_json(self) -> dict[str, Any]:
        """The mask in the native format, which lists only layers that lose heads."""
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


def _plain(value: Any) -> Any:
    """*value* as Python's int or float where it is another kind of number, such as numpy's."""
    if type(value) in (bool, int, float) or not isinstance(value, Real):
        return value
    try:
        return int(value) if isinstance(value, Integral) else float(value)
    except OverflowError:
        return value
