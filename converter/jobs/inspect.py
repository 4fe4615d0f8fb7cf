"""What a path is: a checkpoint, a mask, scores or statistics, to read and to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..calibration.statistics import DESCRIPTION_FILE, LAYER_FILE, read_description
from ..checkpoint import MANIFEST_FILE, Checkpoint, Geometry
from ..disk import check_output
from ..errors import UsageError, reading, text_of
from ..hub.names import checkpoint_name, file_name
from ..mask import HeadMask, HeadScores
from ..mask.files import holds_scores, load_mask, load_scores, stated_size
from ..output.heatmap import check_picture, plot_heatmap, text_heatmap
from ..output.origin import in_words
from ..sources import locate_file, open_checkpoint


@dataclass(frozen=True)
class Inspection:
    """What *subject* is: a checkpoint, a mask, scores, or the description of statistics."""

    subject: Checkpoint | HeadMask | HeadScores | Mapping[str, Any]
    content: Mapping[str, Any]
    text: str

    def to_json(self) -> dict[str, Any]:
        """What was seen, for a script to read."""
        return dict(self.content)

    def to_text(self) -> str:
        """What was seen, for a person to read."""
        return self.text


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
    if not Path(path).exists() and checkpoint_name(path) is None and file_name(path) is None:
        raise UsageError(f"{path}: no such file or directory, and no name on the Hub")
    if (Path(path) / DESCRIPTION_FILE).is_file():
        if plot is not None:
            raise UsageError(f"{path}: of statistics there is nothing to draw; leave `plot` out")
        return _inspect_statistics(Path(path))
    if Path(path).is_file() or (checkpoint_name(path) is None and file_name(path) is not None):
        return _inspect_file(path, checkpoint, mask_polarity, plot, progress=progress)
    if checkpoint is not None or mask_polarity is not None:
        raise UsageError(f"{path}: is no mask; leave `checkpoint` and `mask_polarity` out")
    return _inspect_checkpoint(path, plot, progress=progress)


def _inspect_checkpoint(path: Path | str, plot: Path | None, *, progress: bool) -> Inspection:
    checkpoint = open_checkpoint(path, progress=progress)
    geometry, dtypes = checkpoint.geometry, Counter[str]()
    for tensor in checkpoint.tensors.values():
        dtypes[tensor.dtype] += tensor.entry.num_bytes
    silent = tuple(checkpoint.silent_heads(layer) for layer in range(geometry.num_layers))
    if plot is not None:
        plot_heatmap(plot, geometry.num_heads, silent, None, f"{checkpoint.source}: silent heads")
    content = {
        "source": checkpoint.source,
        "model_type": checkpoint.family.model_type,
        "layout": checkpoint.family.lineage,
        "language_model": checkpoint.language_model.model_type,
        **asdict(geometry),
        "dtype_bytes": dict(sorted(dtypes.items())),
        "shards": {name: header.file_size for name, header in checkpoint.shards.items()},
        "sidecars": list(checkpoint.sidecars),
        "left_behind": list(checkpoint.left_behind),
        "passed_by": dict(checkpoint.passed_by),
        "converted": checkpoint.manifest is not None,
        **({} if checkpoint.manifest is None else {"made_from": _made_from(checkpoint.manifest)}),
        "silent_heads": {str(layer): list(heads) for layer, heads in enumerate(silent) if heads},
    }
    return Inspection(checkpoint, content, _checkpoint_text(checkpoint, content["dtype_bytes"], silent))


def _checkpoint_text(checkpoint: Checkpoint, dtypes: Mapping[str, int], silent: tuple[tuple[int, ...], ...]) -> str:
    geometry, num_silent = checkpoint.geometry, sum(map(len, silent))
    size = sum(header.file_size for header in checkpoint.shards.values())
    heads = f"{geometry.num_heads} heads of {geometry.head_dim}"
    if geometry.num_kv_heads != geometry.num_heads:
        heads += f", {geometry.num_kv_heads} kv heads ({geometry.heads_per_group} heads each)"
    lines = [
        *([] if checkpoint.repository is None else [f"repository    {checkpoint.repository}"]),
        f"checkpoint    {checkpoint.path}",
        f"layout        {checkpoint.family.lineage} {checkpoint.family.model_type}, "
        f"{checkpoint.language_model.model_type}",
        f"geometry      {geometry.num_layers} layers, {heads}, hidden size {geometry.hidden_size}",
        f"weights       {len(checkpoint.tensors)} tensors, {size:,} bytes in {len(checkpoint.shards)} shard(s): "
        + ", ".join(f"{dtype} {count:,} bytes" for dtype, count in dtypes.items()),
        f"other files   {len(checkpoint.sidecars)}",
        f"converted     {f'yes, see {MANIFEST_FILE}' if checkpoint.manifest is not None else 'no'}",
        f"silent heads  {num_silent} of {geometry.num_layers * geometry.num_heads}",
    ]
    if checkpoint.manifest is not None:
        lines += _provenance(_made_from(checkpoint.manifest))
    if num_silent:
        lines += ["", *text_heatmap(geometry.num_heads, silent).splitlines(), ""]
    lines += [f"left behind   {name} (weights that no loader reads)" for name in checkpoint.left_behind]
    lines += [f"left behind   {name} ({why})" for name, why in checkpoint.passed_by.items()]
    return text_of(lines)


def _made_from(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What the *manifest* of a conversion says of its origin, as far as that is there."""
    mask = manifest.get("mask")
    provenance = mask.get("provenance") if isinstance(mask, Mapping) else None
    said = {
        "original": manifest.get("source"),
        "fingerprint": manifest.get("fingerprint"),
        "mask_file": manifest.get("mask_file"),
        "made_by": provenance,
        "scored_on": provenance.get("calibration") if isinstance(provenance, Mapping) else None,
        "compensation": manifest.get("compensation"),
        "fitted_to": manifest.get("calibration"),
        "evaluated": _accuracies(manifest.get("evaluation")),
        "versions": manifest.get("versions"),
    }
    return {name: value for name, value in said.items() if value is not None}


def _accuracies(evaluation: Any) -> dict[str, str] | None:
    """What an *evaluation* found of each checkpoint, by its name; None where there is none."""
    found = evaluation.get("checkpoints") if isinstance(evaluation, Mapping) else None
    if not isinstance(found, Mapping):
        return None
    shares = {name: one.get("accuracy") for name, one in found.items() if isinstance(one, Mapping)}
    return {
        name: f"{share.get('percent')}% of {share.get('count')} questions"
        for name, share in shares.items()
        if isinstance(share, Mapping)
    }


def _inspect_file(
    given: Path | str, checkpoint: Path | str | None, polarity: str | None, plot: Path | None, *, progress: bool
) -> Inspection:
    path, _ = locate_file(given, progress=progress)
    geometry = None if checkpoint is None else open_checkpoint(checkpoint, progress=progress).geometry
    if holds_scores(path):
        if polarity is not None:
            raise UsageError(f"{path}: holds scores, so `mask_polarity` has nothing to say; leave it out")
        return _inspect_scores(path, geometry, plot)
    mask = load_mask(path, geometry or stated_size(path), polarity=polarity)
    if plot is not None:
        title = f"{mask.num_pruned} of {mask.num_layers * mask.num_heads} heads pruned"
        plot_heatmap(plot, mask.num_heads, mask.pruned, None, title)
    heads = text_heatmap(mask.num_heads, mask.pruned)
    lines = [f"mask          {mask.file.how_read if mask.file else ''}", *_provenance(mask.provenance), ""]
    return Inspection(mask, mask.to_json(), text_of([*lines, *heads.splitlines()]))


def _inspect_scores(path: Path, geometry: Geometry | None, plot: Path | None) -> Inspection:
    scores = load_scores(path, geometry)
    none_pruned: tuple[tuple[int, ...], ...] = ((),) * scores.num_layers
    if plot is not None:
        plot_heatmap(plot, scores.num_heads, none_pruned, scores.scores, path.name)
    there = f"scores        {scores.num_layers} layers of {scores.num_heads} heads"
    heads = text_heatmap(scores.num_heads, none_pruned, scores.scores)
    lines = [there, *_provenance(scores.provenance), "", *heads.splitlines()]
    return Inspection(scores, scores.to_json(), text_of(lines))


def _inspect_statistics(path: Path) -> Inspection:
    description = read_description(path)
    with reading(path):
        files = {int(match[1]): file for file in path.iterdir() if (match := LAYER_FILE.fullmatch(file.name))}
        layers, num_bytes = sorted(files), sum(file.stat().st_size for file in files.values())
    there = f"statistics    {len(layers)} of {description['num_layers']} layers, {num_bytes:,} bytes"
    content = {**description, "layers": layers, "num_bytes": num_bytes}
    return Inspection(description, content, text_of([there, *_provenance(description)]))


def _provenance(provenance: Mapping[str, Any] | None) -> list[str]:
    """A line for each thing that is said in words or numbers."""
    lines = []
    for name, value in (provenance or {}).items():
        if isinstance(value, Mapping):
            value = in_words(value)
        if isinstance(value, str | int | float):
            lines.append(f"{name.replace('_', ' '):<13} {value}")
    return lines
