"""What stands in for pruned heads in a checkpoint that says nothing of it, read off its weights and the original's.

Each layer gets the simplest mode of the table that gives its weights, up to the rounding of the stored dtype. So a map
that is recognised was compared with every number, and says nothing of where it comes from: one factor may be a fit or
the mask's own, and where pruned heads have as many columns as ``o_proj`` has rows, any weight is a mix of them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..checkpoint import Checkpoint
from ..checkpoint.dtypes import Float64Array, encode, unit_in_last_place
from ..errors import VerificationError
from ..mask import HeadMask
from ..mask.head_mask import MAX_FACTOR, MIN_FACTOR
from ..progress import layer_bar
from .figures import Choice, rounded
from .fitting import Fits, fit, keep, pruned_layer
from .head_mix import HeadMix, Indices, columns_of
from .modes import DEFAULT_DAMPING, MODES
from .pruned_layer import PrunedLayer
from .stated import nearest_transfer, own_rows
from .training import TrainedRows

ROWS = 256  # of a weight at a time
SLACK = 2.0**-23  # of a number, for the arithmetic of whoever multiplied it, in float32 or better
FEW = 0.01  # of a head's numbers; training moves more of them
TURNED = 1e-3  # from n / N, in which a factor is taken to be that
SOME = 0.1  # of the kept columns that one map explains: then the rest is damage, as training spares no column

KINDS = {
    "none": "the original's",
    "scale": "times N / n",
    "uniform-ls": "times one factor",
    "head-ls": "times a factor each",
    "similarity": "times a factor each, by likeness",
    "least-squares": "plus a mix of pruned ones",
    "residual-transfer": "plus a little of those alike",
    "distill": "something else, as by training",
}


@dataclass(frozen=True)
class RecognisedLayer:
    """What was seen of *layer*, in which the heads *pruned* are silent; *mode* says what kept columns are.

    *lowest* and *highest* are the factors of kept heads, 1 where there is none. *moved* is how far the kept columns are
    from the original's, and *off* how far from what the mode makes of those, as shares of the norm; where the mode is
    ``distill``, from the nearest mix. *others* are how far the kept rows of q, k and v moved, of those that did.
    """

    layer: int
    pruned: tuple[int, ...]
    mode: str
    lowest: float
    highest: float
    moved: float
    off: float
    others: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """The figures, rounded to four significant digits."""
        return {
            "layer": self.layer,
            "pruned": list(self.pruned),
            "mode": self.mode,
            "lowest_factor": rounded(self.lowest),
            "highest_factor": rounded(self.highest),
            "moved": rounded(self.moved),
            "off": rounded(self.off),
            "others_moved": {projection: rounded(moved) for projection, moved in self.others.items()},
        }


@dataclass(frozen=True, eq=False)
class Recognised:
    """The *mask* by which heads fell silent, with the factors that are not N / n, the *fits*, and each of *layers*.

    *notes* are sentences that a reader of the verdict must know.
    """

    mask: HeadMask
    fits: Fits
    layers: tuple[RecognisedLayer, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """What was read off, for a script to read."""
        return {"kept_columns": KINDS[self.fits.mode], "layers": [layer.to_json() for layer in self.layers]}

    def to_text(self) -> str:
        """What was read off, for a person to read."""
        width = max(len("kept columns"), *(len(KINDS[layer.mode]) for layer in self.layers))
        lines = [
            f"read off the weights: {self.mask.num_pruned} heads are silent, and kept columns of o_proj are the "
            f"original's{_rest(self.fits.mode)} (as {self.fits.mode} makes them)",
            f"layer  {'kept columns':<{width}}  factors        moved      off  q, k, v moved  silent heads",
        ]
        for row in self.layers:
            same = rounded(row.lowest) == rounded(row.highest)
            factors = f"{row.lowest:.4g}" if same else f"{row.lowest:.4g} to {row.highest:.4g}"
            others = ", ".join(f"{projection} {moved:.1%}" for projection, moved in row.others.items()) or "no"
            lines.append(
                f"{row.layer:>5}  {KINDS[row.mode]:<{width}}  {factors:<12}  {row.moved:>6.2%}  {row.off:>7.1e}  "
                f"{others:<13}  {', '.join(map(str, row.pruned))}"
            )
        return "\n".join([*lines, ""])


def _rest(mode: str) -> str:
    return "" if mode == "none" else f", {KINDS[mode]}"


def recognise(
    original: Checkpoint, converted: Checkpoint, mask: HeadMask, scratch: Path, *, progress: bool = False
) -> Recognised:
    """Find what *converted* has in place of the heads of *mask*, which are silent in it.

    Maps are kept in the directory *scratch*.

    Raises:
        VerificationError: a head that is kept lost rows of q, k or v, one that is silent kept some, or some numbers of
            a layer are not what the others say; the message names them.
        CheckpointError, StorageError: a weight is not finite, or cannot be read.
    """
    found = []
    with layer_bar("read off", len(mask.touched_layers), shown=progress) as bar:
        for number in mask.touched_layers:
            found.append(_Compared(original, converted, mask, number, scratch).recognise())
            bar.update(1)
    kinds = {layer.mode for layer, _, _ in found}
    mode, mask = _common_mode(kinds, mask, [layer for layer, _, _ in found])
    if mode in ("none", "residual-transfer"):
        fits = fit(mode, original, mask, scratch)
    else:
        named = {layer.layer: _named_in(mode, layer.mode) for layer, _, _ in found}
        fits = Fits(
            mode,
            {layer.layer: keep(mix, layer.layer, scratch) for layer, mix, _ in found},
            {layer: Choice(name) for layer, name in named.items()} if MODES[mode].needs_moments else {},
            recovered=frozenset(mask.touched_layers),
            trained={layer.layer: rows for layer, _, rows in found if rows},
            trains="".join(p for p in "qkvo" if any(p in rows for _, _, rows in found)),
        )
    return Recognised(mask, fits, tuple(layer for layer, _, _ in found), _notes_on(original, found))


def _notes_on(
    original: Checkpoint, found: list[tuple[RecognisedLayer, HeadMix, dict[str, TrainedRows]]]
) -> tuple[str, ...]:
    geometry, notes = original.geometry, []
    turned = [
        row.layer
        for row, _, _ in found
        if row.mode == "uniform-ls"
        and abs(row.lowest * geometry.num_heads / (geometry.num_heads - len(row.pruned)) - 1) < TURNED
    ]
    if turned:
        notes.append(
            f"in {_layers(turned)}, kept columns are the original's times n / N, where the S4 scale is N / n; was it "
            "turned upside down?"
        )
    any_would_do = [
        row.layer
        for row, mix, _ in found
        if row.mode == "least-squares" and len(mix.pruned_columns) >= geometry.hidden_size
    ]
    if any_would_do:
        notes.append(
            f"in {_layers(any_would_do)}, pruned heads have as many columns as o_proj has rows, so that any weight is "
            "a mix of them; that it is one shows nothing"
        )
    return tuple(notes)


def _layers(numbers: list[int]) -> str:
    return f"{'layer' if len(numbers) == 1 else 'layers'} {', '.join(map(str, numbers))}"


def _common_mode(kinds: Collection[str], mask: HeadMask, layers: list[RecognisedLayer]) -> tuple[str, HeadMask]:
    """(the one mode that gives all of *layers*, the mask with those factors that are its own)."""
    kinds = set(kinds)
    if "scale" in kinds and kinds <= {"none", "scale", "uniform-ls"}:
        own = {layer.layer: layer.lowest for layer in layers if layer.mode != "scale"}
        if all(MIN_FACTOR <= factor <= MAX_FACTOR for factor in own.values()):
            return "scale", replace(mask, scale={**(mask.scale or {}), **own}) if own else mask
    for mode, with_it in (("similarity", {"scale"}), ("residual-transfer", {"none"})):
        if mode in kinds and kinds <= {mode, *with_it}:
            return mode, mask
    fitted = ("none", "uniform-ls", "head-ls", "least-squares", "distill")
    return max((_named_in("", kind) for kind in kinds), key=fitted.index), mask


def _named_in(mode: str, kind: str) -> str:
    """What a layer of *kind* is called where others make *mode* of all of them."""
    general = {"scale": "uniform-ls", "similarity": "head-ls", "residual-transfer": "distill"}
    return kind if kind == mode else general.get(kind, kind)


def _bytes_by_head(checkpoint: Checkpoint, layer: int, projection: str) -> npt.NDArray[np.uint8]:
    """The rows of each head of a projection as they are stored, [heads, bytes]."""
    rows = checkpoint.projection(layer, projection, "weight")
    assert rows is not None, "a checkpoint without it cannot be opened"
    data = checkpoint.read_bytes(rows.tensor, rows.first, rows.count)
    return np.frombuffer(data, np.uint8).reshape(rows.count // checkpoint.geometry.head_dim, -1)


class _Compared:
    """One layer before and after, and where it is stored."""

    def __init__(self, original: Checkpoint, converted: Checkpoint, mask: HeadMask, number: int, scratch: Path) -> None:
        self.original, self.converted, self.mask, self.number = original, converted, mask, number
        layer = pruned_layer(original, mask, number)
        self.layer: PrunedLayer = replace(layer, warn=lambda _: None)  # of what is merely tried
        self.output = converted.output_projection(number)
        self.before = self.layer.read_weight("o")
        self.after = converted.read_projection(number, "o")

    def recognise(self) -> tuple[RecognisedLayer, HeadMix, dict[str, TrainedRows]]:
        """(what the layer is, its map, the weights that no map gives)."""
        others = {projection: moved for projection in "qkv" if (moved := self._rows_moved(projection))}
        mode, mix = self._map(set(others))
        trained: dict[str, TrainedRows] = {}
        off = self._off(mix)
        if mode == "distill" or (others and mode != "residual-transfer"):
            mode, mix = "distill", self.layer.mix(1.0)
            trained = {p: own_rows(self.converted, self.number, p) for p in (*others, "o")}
        factors = [mix.head_factors[head] for head in self.layer.kept]
        kept = self.layer.kept_columns
        moved = _share(self.after[:, kept] - self.before[:, kept], self.before[:, kept])
        pruned = self.mask.pruned[self.number]
        row = RecognisedLayer(self.number, pruned, mode, min(factors), max(factors), moved, off, others)
        return row, mix, trained

    def _map(self, others: set[str]) -> tuple[str, HeadMix]:
        """(the mode that gives the kept columns, its map); of ``distill``, the nearest mix."""
        layer, geometry = self.layer, self.original.geometry
        if not others:
            for mode, factor in zip(("none", "scale"), self._preferred, strict=True):  # what most are, and at once
                if self._is_stored(layer.mix(factor)):
                    return mode, layer.mix(factor)
        low, high = self._factor_bounds()
        kept, width = layer.kept, geometry.head_dim
        of_head = [columns_of((head,), width) for head in kept]
        shared = _most_common(low[layer.kept_columns], high[layer.kept_columns], self._preferred)
        alone = [_most_common(low[columns], high[columns], self._preferred) for columns in of_head]
        own_values = geometry.heads_per_group == 1
        if not others and shared.holds.all():
            if shared.factor == 1.0 and np.array_equal(
                self.after[:, layer.kept_columns], self.before[:, layer.kept_columns]
            ):
                return "none", layer.mix(1.0)
            is_scale = shared.factor == self._preferred[-1]
            return "scale" if is_scale else "uniform-ls", layer.mix(shared.factor)
        if not others and all(one.holds.all() for one in alone):
            if own_values:
                mix = MODES["similarity"].fit(layer, None, DEFAULT_DAMPING)
                wanted = [mix.head_factors[head] for head in kept]
                bounds = zip(alone, wanted, strict=True)
                if all(one.low * (1 - SLACK) <= factor <= one.high * (1 + SLACK) for one, factor in bounds):
                    return "similarity", mix
            return "head-ls", layer.mix(np.array([one.factor for one in alone]))
        if own_values and others <= {"v"}:
            mix = MODES["residual-transfer"].fit(layer, None, DEFAULT_DAMPING)
            if self._gives(mix) and self._gives_values(mix):
                return "residual-transfer", mix
        any_would_do = len(layer.pruned_columns) >= self.output.num_rows
        held = np.concatenate([one.holds for one in alone])
        if any_would_do and not others and held.mean() > SOME:
            self._refuse(held, "the original's times a factor")
        transfer, is_mix = nearest_transfer(layer, self.before, self.after, self.output.dtype)
        if is_mix.all():
            return "least-squares", layer.mix(1.0, transfer)
        if not others:
            if held.mean() > SOME:
                self._refuse(held, "the original's times a factor")
            if is_mix.mean() > SOME:
                self._refuse(is_mix, "the original's plus a mix of the pruned ones")
        return "distill", layer.mix(1.0, transfer)

    @property
    def _preferred(self) -> tuple[float, float]:
        """Factors that are more likely than their neighbours: 1, and that of the S4 scale."""
        return 1.0, self.mask.scale_factor(self.number)

    def _factor_bounds(self) -> tuple[Float64Array, Float64Array]:
        """For each column the lowest and highest factor that turns it into what it is, up to rounding."""
        columns = self.before.shape[1]
        low, high = np.full(columns, -np.inf), np.full(columns, np.inf)
        for first in range(0, len(self.before), ROWS):
            before, after = (weight[first : first + ROWS] for weight in (self.before, self.after))
            doubt = unit_in_last_place(after, self.output.dtype) / 2 + SLACK * np.abs(after)
            is_zero = before == 0
            with np.errstate(divide="ignore", invalid="ignore"):
                ends = np.stack([(after - doubt) / before, (after + doubt) / before])
            impossible = is_zero & (after != 0)
            low = np.maximum(
                low, np.where(is_zero, np.where(impossible, np.inf, -np.inf), ends.min(axis=0)).max(axis=0)
            )
            high = np.minimum(
                high, np.where(is_zero, np.where(impossible, -np.inf, np.inf), ends.max(axis=0)).min(axis=0)
            )
        return low, high

    def _is_stored(self, mix: HeadMix) -> bool:
        """Whether the bytes are those of a diagonal *mix*."""
        with np.errstate(over="ignore"):
            products = mix.apply_to_rows(self.before.astype(np.float32))
        return encode(products, self.output.dtype) == self.converted.read_bytes(self.output)

    def _gives(self, mix: HeadMix) -> bool:
        """Whether *mix* makes the kept columns what they are, to one unit in the last place."""
        for first in range(0, len(self.before), ROWS):
            before, after = (weight[first : first + ROWS] for weight in (self.before, self.after))
            wanted = np.asarray(mix.apply_to_rows(before.astype(np.float32)), np.float64)
            unit = unit_in_last_place(wanted, self.output.dtype)
            if not (np.abs(after - wanted)[:, mix.kept_columns] <= unit[:, mix.kept_columns]).all():
                return False
        return True

    def _gives_values(self, mix: HeadMix) -> bool:
        """The same of ``v_proj``, whose heads are nobody else's."""
        rows = columns_of(self.layer.kept, self.layer.geometry.head_dim)
        wanted = mix.apply_to_values(self.layer.read_weight("v").astype(np.float32))[rows]
        found = self.converted.read_projection(self.number, "v")[rows]
        return bool((np.abs(found - wanted) <= unit_in_last_place(wanted, self.output.dtype)).all())

    def _off(self, mix: HeadMix) -> float:
        kept = self.layer.kept_columns
        wanted = np.asarray(mix.apply_to_rows(self.before.astype(np.float32)), np.float64)
        return _share(self.after[:, kept] - wanted[:, kept], self.after[:, kept])

    def _rows_moved(self, projection: str) -> float:
        """How far the rows of kept heads moved, as a share of their norm; 0 where they are what they were.

        Raises:
            VerificationError: rows of a kept head are zero, rows of a silent one are not, or a few numbers moved.
        """
        geometry, number = self.original.geometry, self.number
        own = self.mask.pruned[number] if projection == "q" else self.mask.pruned_kv_heads(number, geometry)
        old, new = (_bytes_by_head(side, number, projection) for side in (self.original, self.converted))
        stays = np.setdiff1d(np.arange(len(old)), np.array(own, dtype=np.intp))
        head = "head" if projection == "q" else "kv head"
        left = [one for one in own if new[one].any()]
        if left:
            raise VerificationError(
                f"{self._where(projection)}: the rows of {head} {left[0]} are not zero, though nothing reads what they "
                "make: it is silent by its columns of o_proj alone; convert again",
                cause="rows-left",
            )
        if np.array_equal(old[stays], new[stays]):
            return 0.0
        silenced = [int(one) for one in stays if old[one].any() and not new[one].any()]
        if silenced:
            raise VerificationError(
                f"{self._where(projection)}: the rows of {head} {silenced[0]} are zero, which the heads that are kept "
                "still need; convert again",
                cause="damaged",
            )
        before, after = (
            side.read_projection(number, projection).reshape(len(old), -1)[stays]
            for side in (self.original, self.converted)
        )
        changed = (before != after).mean(axis=1)
        if changed.max() <= FEW:
            first = int(stays[int(np.argmax(changed > 0))])
            raise VerificationError(
                f"{self._where(projection)}: {int((before != after).sum())} of the numbers of kept heads are not the "
                f"original's, the first in {head} {first}; convert again",
                cause="damaged",
            )
        return _share(after - before, before)

    def _refuse(self, holds: npt.NDArray[np.bool_], what: str) -> None:
        bad: Indices = self.layer.kept_columns[~holds]
        head, column = divmod(int(bad[0]), self.original.geometry.head_dim)
        raise VerificationError(
            f"{self._where('o')}: {len(bad)} of {len(holds)} kept columns are not {what}, as the others are; the first "
            f"is column {column} of head {head}; convert again",
            cause="damaged",
        )

    def _where(self, projection: str) -> str:
        rows = self.converted.projection(self.number, projection, "weight")
        assert rows is not None, "a checkpoint without it cannot be opened"
        return f"{self.converted.path / rows.tensor.shard}: {rows.tensor.name} of layer {self.number}"


@dataclass(frozen=True, eq=False)
class _Factor:
    """A *factor* from *low* to *high*, and for each column whether it turns it into what it is."""

    factor: float
    low: float
    high: float
    holds: npt.NDArray[np.bool_]


def _most_common(low: Float64Array, high: Float64Array, preferred: tuple[float, ...]) -> _Factor:
    """The factor that is between *low* and *high* of most columns, one of *preferred* where that is; 1 for any."""
    possible = low <= high
    if not possible.any():
        return _Factor(1.0, 1.0, 1.0, possible)
    starts, ends = np.sort(low[possible]), np.sort(high[possible])
    counts = np.searchsorted(starts, starts, side="right") - np.searchsorted(ends, starts, side="left")
    begin = starts[int(np.argmax(counts))]
    holds = possible & (low <= begin) & (begin <= high)
    end = high[holds].min()
    inside = [factor for factor in preferred if begin <= factor <= end]
    factor = inside[0] if inside else (begin + end) / 2 if np.isfinite(begin + end) else 1.0
    return _Factor(float(factor), float(begin), float(end), holds)


def _share(difference: Float64Array, whole: Float64Array) -> float:
    """The norm of *difference* over that of *whole*."""
    norm = float(np.linalg.norm(whole))
    return float(np.linalg.norm(difference)) / norm if norm else float(np.linalg.norm(difference) > 0)
