"""What a checkpoint is: its layout, geometry, dtypes and shards, and which heads are silent already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint
from ..checkpoint.silence import silent_heads
from ..disk import check_output
from ..output.heatmap import check_picture, plot_heatmap, text_heatmap
from ..sources import open_checkpoint


@dataclass(frozen=True)
class Inspection:
    """*dtypes* counts the bytes of each stored dtype; *silent* maps a layer to its heads that are zero already."""

    checkpoint: Checkpoint
    dtypes: Mapping[str, int]
    silent: Mapping[int, tuple[int, ...]]

    @property
    def silent_by_layer(self) -> tuple[tuple[int, ...], ...]:
        """The silent heads of every layer."""
        return tuple(self.silent.get(layer, ()) for layer in range(self.checkpoint.geometry.num_layers))

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
            "silent_heads": {str(layer): list(heads) for layer, heads in self.silent.items()},
        }

    def to_text(self) -> str:
        """The inspection for a person to read."""
        checkpoint, geometry = self.checkpoint, self.checkpoint.geometry
        size = sum(header.file_size for header in checkpoint.shards.values())
        heads = f"{geometry.num_heads} heads of {geometry.head_dim}"
        if geometry.num_kv_heads != geometry.num_heads:
            heads += f", {geometry.num_kv_heads} kv heads ({geometry.heads_per_group} heads each)"
        num_silent = sum(len(heads) for heads in self.silent.values())
        lines = [
            *([] if checkpoint.repository is None else [f"repository    {checkpoint.repository}"]),
            f"checkpoint    {checkpoint.path}",
            f"layout        {checkpoint.family.lineage} {checkpoint.family.model_type}, "
            f"{checkpoint.language_model.model_type}",
            f"geometry      {geometry.num_layers} layers, {heads}, hidden size {geometry.hidden_size}",
            f"weights       {len(checkpoint.tensors)} tensors, {size:,} bytes in {len(checkpoint.shards)} shard(s): "
            + ", ".join(f"{dtype} {count:,} bytes" for dtype, count in self.dtypes.items()),
            f"other files   {len(checkpoint.sidecars)}",
            f"converted     {'yes, see s4convert.json' if checkpoint.manifest is not None else 'no'}",
            f"silent heads  {num_silent} of {geometry.num_layers * geometry.num_heads}",
        ]
        if num_silent:
            lines += ["", text_heatmap(geometry.num_heads, self.silent_by_layer), ""]
        lines += [f"left behind   {name} (weights that no loader reads)" for name in checkpoint.left_behind]
        return "\n".join(lines)


def inspect_checkpoint(path: Path | str, *, plot: Path | str | None = None, progress: bool = False) -> Inspection:
    """Look at the headers and ``o_proj`` weights of *path*, a directory or ``org/name[@revision]`` on the Hub.

    *plot* names a picture of its silent heads to draw. *progress* shows bars where it is downloaded.

    Raises:
        CheckpointError, UsageError, HubError, StorageError: as the class says.
    """
    if plot is not None:
        check_output(Path(plot), force=False)
        check_picture(Path(plot))
    checkpoint = open_checkpoint(path, progress=progress)
    dtypes: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values():
        dtypes[tensor.dtype] += tensor.entry.num_bytes
    silent = {layer: silent_heads(checkpoint, layer) for layer in range(checkpoint.geometry.num_layers)}
    inspection = Inspection(checkpoint, dict(sorted(dtypes.items())), {layer: h for layer, h in silent.items() if h})
    if plot is not None:
        title = f"{checkpoint.source}: silent heads"
        plot_heatmap(Path(plot), checkpoint.geometry.num_heads, inspection.silent_by_layer, None, title)
    return inspection
