"""Which heads are pruned."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.checkpoint.geometry import Geometry
from converter.errors import MaskError, shown
from converter.mask.checked_values import check_provenance
from converter.mask.layer_lists import Polarity
from converter.output_file import write_output

if TYPE_CHECKING:
    from converter.mask.schedules import Schedule

NATIVE_FORMAT = "s4convert-mask/1"
MIN_FACTOR, MAX_FACTOR = 1e-6, 1e6  # beyond, a scale is a mistake, and float32 would make it 0 or infinite


@dataclass(frozen=True)
class HeadMask:
    """The pruned query heads of every layer, and what the mask says of compensation.

    *pruned* has one sorted tuple of head numbers per layer. *scale*, where the mask carries it, maps a layer
    to the factor for its kept heads; numbers of other kinds (numpy's) become Python's. *provenance* is the mask's own
    account of where it came from. *how_read* says in words how a file was read; it is no part of the mask.
    """

    num_heads: int
    pruned: tuple[tuple[int, ...], ...]
    scale: Mapping[int, float] | None = None
    provenance: Mapping[str, Any] | None = None
    how_read: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.scale, Mapping):
            plain = {_plain(layer): _plain(factor) for layer, factor in self.scale.items()}
            object.__setattr__(self, "scale", plain)

    @classmethod
    def load(
        cls,
        path: Path | str,
        geometry: Geometry,
        *,
        polarity: Polarity | None = None,
        schedule: Schedule | None = None,
    ) -> HeadMask:
        """Read the mask file *path*, in any format that the README lists, for a model of *geometry*.

        *polarity* says what a 1 means where the file does not: ``keep`` or ``prune`` the head. *schedule* turns a file
        of scores into a mask. How the file was read is in :attr:`how_read`.

        Raises:
            MaskError: there is no such file, or it is malformed, ambiguous, without effect or not of this geometry.
            UsageError: *polarity* or *schedule* cannot be followed.
            StorageError: the file cannot be read.
        """
        from converter.mask.reading import load_mask  # which makes HeadMasks

        return load_mask(Path(path), geometry, polarity, schedule)

    @classmethod
    def from_json(cls, content: Any, geometry: Geometry) -> HeadMask:
        """The mask of parsed JSON in the native format, what :meth:`to_json` gives.

        Raises:
            MaskError: malformed, without effect, or not of this geometry.
        """
        from converter.mask.json_formats import read_native

        return read_native(content, geometry)

    def save(self, path: Path | str, *, force: bool = False) -> None:
        """Write the native mask file *path*, whole or not at all; *force* replaces a file that stands there.

        Raises:
            UsageError, StorageError: it cannot be written there.
        """
        write_output(Path(path), json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n", force=force)

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

    def scale_factor(self, layer: int) -> float:
        """The S4 scale of *layer*: the mask's own ``scale``, or all heads over kept heads."""
        if self.scale is not None and layer in self.scale:
            return self.scale[layer]
        return self.num_heads / len(self.kept(layer))

    def pruned_kv_heads(self, layer: int, geometry: Geometry) -> tuple[int, ...]:
        """The kv heads of *layer* whose query heads are all pruned: nothing reads them any more."""
        pruned, group = set(self.pruned[layer]), geometry.heads_per_group
        return tuple(
            kv for kv in range(geometry.num_kv_heads) if pruned.issuperset(range(kv * group, (kv + 1) * group))
        )

    def check(self, geometry: Geometry | None = None) -> None:
        """Raise MaskError unless the mask has an effect and can be applied, to a model of *geometry* if given."""
        if geometry is not None and (self.num_layers, self.num_heads) != (geometry.num_layers, geometry.num_heads):
            raise MaskError(
                f"is for {self.num_layers} layers of {self.num_heads} heads, but the checkpoint has "
                f"{geometry.num_layers} layers of {geometry.num_heads}"
            )
        if not self.num_pruned:
            raise MaskError("prunes no head, so a conversion would change nothing")
        for layer, heads in enumerate(self.pruned):
            numbers = all(type(head) is int and 0 <= head < self.num_heads for head in heads)
            if not numbers or list(heads) != sorted(set(heads)):
                raise MaskError(
                    f"layer {layer}: {shown(heads)} are not sorted head numbers from 0 to {self.num_heads - 1}"
                )
            if len(heads) == self.num_heads:
                raise MaskError(f"layer {layer}: every head is pruned, and no kept head can make up for them; keep one")
        self._check_scale()
        check_provenance(self.provenance)

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
        """How many heads each layer loses, for a person to read; layers in a row that lose as many share a line."""
        lines, first = ["layers     heads pruned"], 0
        counts = [len(heads) for heads in self.pruned]
        for layer, count in enumerate(counts):
            if layer + 1 == self.num_layers or counts[layer + 1] != count:
                lines.append(f"{first if first == layer else f'{first}-{layer}':<9}  {count:>12}")
                first = layer + 1
        return "\n".join([*lines, f"total      {self.num_pruned:>12} of {self.num_layers * self.num_heads}"])

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


def _plain(value: Any) -> Any:
    """*value* as Python's own int or float where it is a number of another kind; anything else as it is."""
    if isinstance(value, bool | int | float) and type(value) in (bool, int, float):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        try:
            return float(value)
        except OverflowError:
            return value
    return value
