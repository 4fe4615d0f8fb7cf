"""From a checkpoint, or scores made before, to a mask file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..disk import check_output
from ..errors import UsageError
from ..mask import HeadMask, HeadScores, Schedule
from ..mask.files import load_scores
from ..mask.making import make_mask
from ..output.heatmap import check_picture, plot_heatmap, text_heatmap
from ..sources import open_checkpoint


@dataclass(frozen=True)
class MadeMask:
    """A mask and the scores that it was made of."""

    mask: HeadMask
    scores: HeadScores

    def to_json(self) -> dict[str, Any]:
        """The mask in the native format."""
        return self.mask.to_json()

    def to_text(self) -> str:
        """The heads by layer and saliency, and the mask in a line."""
        return f"{text_heatmap(self.mask.num_heads, self.mask.pruned, self.scores.scores)}\n\n{self.mask.to_text()}"


def write_mask(
    out: Path | str,
    schedule: Schedule,
    *,
    checkpoint: Path | str | None = None,
    scores: Path | str | None = None,
    metric: str | None = None,
    calibration: Path | str | None = None,
    images: Path | str | None = None,
    num_samples: int | None = None,
    gamma: float = 0.4,
    seed: int = 0,
    device: str = "cpu",
    granularity: str = "head",
    num_kv_heads: int | None = None,
    save_scores: Path | str | None = None,
    plot: Path | str | None = None,
    force: bool = False,
    progress: bool = False,
) -> MadeMask:
    """Score the heads of *checkpoint* by *metric*, or read *scores*, and write the mask that *schedule* makes of them.

    *checkpoint* is a directory, or ``org/name[@revision]`` on the Hub. The arguments from *metric* to *device* are
    those of :func:`s4convert.saliency.score_heads`, and belong to a checkpoint. *granularity* ``group`` prunes whole kv
    groups; a checkpoint states how many there are, *scores* need *num_kv_heads*. *save_scores* and *plot* name further
    files to write; *force* replaces files that stand there.

    Raises:
        S4ConvertError: the subclass says what kind; what could be seen at the beginning was refused then.
    """
    out = Path(out)
    extra = [Path(path) for path in (save_scores, plot) if path is not None]
    _check_arguments(out, extra, checkpoint, scores, metric)
    for path in (out, *extra):
        check_output(path, force=force)
    if plot is not None:
        check_picture(Path(plot))
    if scores is not None:
        if out.exists() and Path(scores).exists() and out.samefile(scores):
            raise UsageError(f"{out}: is the scores file itself; choose another name for the mask")
        found = load_scores(scores)
    else:
        from ..saliency import score_heads

        assert checkpoint is not None and metric is not None  # _check_arguments
        opened = open_checkpoint(checkpoint, progress=progress)
        num_kv_heads = opened.geometry.num_kv_heads if granularity == "group" else None
        found = score_heads(
            opened,
            metric,
            calibration=calibration,
            images=images,
            num_samples=num_samples,
            gamma=gamma,
            seed=seed,
            device=device,
            progress=progress,
        )
        if save_scores is not None:
            found.save(save_scores, force=force)  # first: they took long
    mask = make_mask(found, schedule, granularity=granularity, num_kv_heads=num_kv_heads)
    mask.save(out, force=force)
    if plot is not None:
        title = f"{mask.num_pruned} of {mask.num_layers * mask.num_heads} heads pruned"
        plot_heatmap(Path(plot), mask.num_heads, mask.pruned, found.scores, title)
    return MadeMask(mask, found)


def _check_arguments(
    out: Path, extra: list[Path], checkpoint: Path | str | None, scores: Path | str | None, metric: str | None
) -> None:
    if (checkpoint is None) == (scores is None):
        raise UsageError("give a checkpoint to score, or --scores made before, one of the two")
    if checkpoint is not None and metric is None:
        raise UsageError("a checkpoint is scored by a metric; give it with --metric")
    if scores is not None and metric is not None:
        raise UsageError("--metric is for a checkpoint; scores have been made by theirs")
    if len({path.absolute() for path in (out, *extra)}) <= len(extra):
        raise UsageError(f"{out}: two outputs have the same name; choose another")
