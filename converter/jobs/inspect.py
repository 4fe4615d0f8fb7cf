"""What a path is: a checkpoint, a mask, scores or statistics, to read and to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..calibration.statistics import DESCRIPTION_FILE, read_description
from ..checkpoint import MANIFEST_FILE, Checkpoint
from ..disk import check_output
from ..errors import MaskError, UsageError
from ..hub.names import checkpoint_name, file_name
from ..mask import HeadMask, HeadScores
from ..mask.files import load_mask, load_scores, stated_size
from ..output.heatmap import check_picture, plot_heatmap, text_heatmap
from ..sources import open_checkpoint, open_mask


class Inspection(Protocol):
    """What was seen, for a script or for a person to read."""

    def to_json(self) -> dict[str, Any]: ...

    def to_text(self) -> str: ...


@dataclass(frozen=True)
class CheckpointInspection:
    """*dtypes* counts the bytes of each stored dtype; *silent* has the heads of every layer that are zero already."""

    checkpoint: Checkpoint
    dtypes: Mapping[str, int]
    silent: tuple[tuple[int, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """The inspection for a script to read."""
        checkpoint, geometry = self.checkpoint, self.checkpoint.geometry
        return {
            "source": checkpoint.source,
            "model_type": checkpoint.family.model_type,
            "layout": checkpoint.family.lineage,
            "language_model": checkpoint.language_model.model_type,
            "num_layers": geometry.num_layers,
            "num_heads": geometry.num_heads,
            "num_kv_heads": geometry.num_kv_heads,
            "head_dim": geometry.head_dim,
            "hidden_size": geometry.hidden_size,
            "dtype_bytes": dict(self.dtypes),
            "shards": {name: header.file_size for name, header in checkpoint.shards.items()},
            "sidecars": list(checkpoint.sidecars),
            "left_behind": list(checkpoint.left_behind),
            "converted": checkpoint.manifest is not None,
            "silent_heads": {str(layer): list(heads) for layer, heads in enumerate(self.silent) if heads},
        }

    def to_text(self) -> str:
        """The inspection for a person to read."""
        checkpoint, geometry = self.checkpoint, self.checkpoint.geometry
        size = sum(header.file_size for header in checkpoint.shards.values())
        heads = f"{geometry.num_heads} heads of {geometry.head_dim}"
        if geometry.num_kv_heads != geometry.num_heads:
            heads += f", {geometry.num_kv_heads} kv heads ({geometry.heads_per_group} heads each)"
        num_silent = sum(map(len, self.silent))
        lines = [
            *([] if checkpoint.repository is None else [f"repository    {checkpoint.repository}"]),
            f"checkpoint    {checkpoint.path}",
            f"layout        {checkpoint.family.lineage} {checkpoint.family.model_type}, "
            f"{checkpoint.language_model.model_type}",
            f"geometry      {geometry.num_layers} layers, {heads}, hidden size {geometry.hidden_size}",
            f"weights       {len(checkpoint.tensors)} tensors, {size:,} bytes in {len(checkpoint.shards)} shard(s): "
            + ", ".join(f"{dtype} {count:,} bytes" for dtype, count in self.dtypes.items()),
            f"other files   {len(checkpoint.sidecars)}",
            f"converted     {f'yes, see {MANIFEST_FILE}' if checkpoint.manifest is not None else 'no'}",
            f"silent heads  {num_silent} of {geometry.num_layers * geometry.num_heads}",
        ]
        if num_silent:
            lines += ["", text_heatmap(geometry.num_heads, self.silent), ""]
        lines += [f"left behind   {name} (weights that no loader reads)" for name in checkpoint.left_behind]
        return "\n".join(lines)


@dataclass(frozen=True)
class MaskInspection:
    """A mask in a file."""

    mask: HeadMask

    def to_json(self) -> dict[str, Any]:
        """The mask in the native format."""
        return self.mask.to_json()

    def to_text(self) -> str:
        """How the file was read, its heads by layer, and where they are from."""
        lines = [f"mask          {self.mask.how_read}", *_provenance(self.mask.provenance)]
        return "\n".join([*lines, "", text_heatmap(self.mask.num_heads, self.mask.pruned)])


@dataclass(frozen=True)
class ScoresInspection:
    """Scores in a file."""

    scores: HeadScores

    def to_json(self) -> dict[str, Any]:
        """The scores in the native format."""
        return self.scores.to_json()

    def to_text(self) -> str:
        """How many scores there are, where they are from, and a shade for each."""
        scores = self.scores
        lines = [
            f"scores        {scores.num_layers} layers of {scores.num_heads} heads",
            *_provenance(scores.provenance),
        ]
        return "\n".join([*lines, "", text_heatmap(scores.num_heads, ((),) * scores.num_layers, scores.scores)])


@dataclass(frozen=True)
class StatisticsInspection:
    """Statistics in a directory; *layers* are those that it has, *num_bytes* is what they take."""

    description: Mapping[str, Any]
    layers: tuple[int, ...]
    num_bytes: int

    def to_json(self) -> dict[str, Any]:
        """The description, and what there is, for a script to read."""
        return {**self.description, "layers": list(self.layers), "num_bytes": self.num_bytes}

    def to_text(self) -> str:
        """The same for a person to read."""
        there = f"statistics    {len(self.layers)} of {self.description['num_layers']} layers, {self.num_bytes:,} bytes"
        stated = {name: value for name, value in self.description.items() if name != "format"}
        return "\n".join([there, *_provenance(stated)])


def inspect(
    path: Path | str,
    *,
    checkpoint: Path | str | None = None,
    mask_polarity: str | None = None,
    plot: Path | str | None = None,
    progress: bool = False,
) -> Inspection:
    """Look at *path*: a checkpoint (a directory, or a name on the Hub), a mask, scores or statistics.

    Of a checkpoint, headers and ``o_proj`` weights are read. A mask that does not state its geometry needs the
    *checkpoint* that it is for, and bare 0/1 flags *mask_polarity*. *plot* names a picture to draw. *progress* shows
    bars where something is downloaded.

    Raises:
        CheckpointError, MaskError, CalibrationError, UsageError, HubError, StorageError: as the class says.
    """
    plot = None if plot is None else Path(plot)
    if plot is not None:
        check_output(plot, force=False)
        check_picture(plot)
    if (Path(path) / DESCRIPTION_FILE).is_file():
        if plot is not None:
            raise UsageError(f"{path}: of statistics there is nothing to draw; leave `plot` out")
        return _inspect_statistics(Path(path))
    if Path(path).is_file() or (checkpoint_name(path) is None and file_name(path) is not None):
        return _inspect_file(path, checkpoint, mask_polarity, plot, progress=progress)
    if checkpoint is not None or mask_polarity is not None:
        raise UsageError(f"{path}: is no mask; leave `checkpoint` and `mask_polarity` out")
    return _inspect_checkpoint(path, plot, progress=progress)


def _inspect_checkpoint(path: Path | str, plot: Path | None, *, progress: bool) -> CheckpointInspection:
    checkpoint = open_checkpoint(path, progress=progress)
    dtypes: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values():
        dtypes[tensor.dtype] += tensor.entry.num_bytes
    silent = tuple(checkpoint.silent_heads(layer) for layer in range(checkpoint.geometry.num_layers))
    if plot is not None:
        plot_heatmap(plot, checkpoint.geometry.num_heads, silent, None, f"{checkpoint.source}: silent heads")
    return CheckpointInspection(checkpoint, dict(sorted(dtypes.items())), silent)


def _inspect_file(
    path: Path | str, checkpoint: Path | str | None, polarity: str | None, plot: Path | None, *, progress: bool
) -> MaskInspection | ScoresInspection:
    if Path(path).is_file() and checkpoint is None and polarity is None:
        try:
            scores = load_scores(path)
        except MaskError as error:
            scores, no_scores = None, error
        if scores is not None:
            if plot is not None:
                plot_heatmap(plot, scores.num_heads, ((),) * scores.num_layers, scores.scores, Path(path).name)
            return ScoresInspection(scores)
        if not str(no_scores).startswith(f"{path}: holds no scores"):
            raise no_scores
    if checkpoint is not None:
        mask = open_mask(path, open_checkpoint(checkpoint, progress=progress).geometry, polarity=polarity)
    else:
        mask = load_mask(path, stated_size(Path(path)), polarity=polarity)
    if plot is not None:
        title = f"{mask.num_pruned} of {mask.num_layers * mask.num_heads} heads pruned"
        plot_heatmap(plot, mask.num_heads, mask.pruned, None, title)
    return MaskInspection(mask)


def _inspect_statistics(path: Path) -> StatisticsInspection:
    description = read_description(path)
    files = sorted(path.glob("layer-*.safetensors"))
    layers = tuple(int(file.stem.removeprefix("layer-")) for file in files)
    return StatisticsInspection(description, layers, sum(file.stat().st_size for file in files))


def _provenance(provenance: Mapping[str, Any] | None) -> list[str]:
    """A line for each thing that is said in a word or a number."""
    lines = []
    for name, value in (provenance or {}).items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {of_key}" for key, of_key in value.items())
        if isinstance(value, str | int | float):
            lines.append(f"{name.replace('_', ' '):<13} {value}")
    return lines
