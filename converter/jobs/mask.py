"""From a checkpoint, or scores made before, to a mask file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..calibration.samples import read_samples
from ..choices import GAMMA, GRANULARITIES, LOSSES, SCHEDULES
from ..disk import check_json_name, check_output
from ..errors import UsageError
from ..mask import HeadMask, HeadScores, Schedule, parse_schedule
from ..mask.files import load_scores
from ..mask.making import NO_GROUPS, prune_lowest
from ..mask.schedules import Rate
from ..output.heatmap import check_picture, plot_heatmap, text_heatmap
from ..sources import locate_tower, open_checkpoint
from .options import Options, as_path, options_of


@dataclass(frozen=True, kw_only=True)
class MaskOptions(Options):
    """How a mask is made.

    *schedule* (``uniform``, ``adaptive``, ``global``, ``bands:0-5:0,6-31:0.3``) says how many heads each layer loses,
    at a *rate* of all; bands have their own. *protect* lists layers (``0-5,31``) that lose no head, or under
    ``adaptive`` fewer, *protect_rate*. *granularity* ``group`` prunes whole kv groups.

    A checkpoint is scored by *metric*, a row of :data:`~s4convert.saliency.metrics.METRICS`, on *calibration*, a file
    of questions or plain text or several, with *images*, the directory of their images or one for each; the first
    *num_samples* (all) of each are used. Plain text is packed into windows of *window* (640) tokens. *gamma* is the
    weight of the mean in ``cross-attention``, *seed* that of ``fisher`` and ``random``, *device* runs the model. For
    ``fisher``, *loss* says which tokens count, those of ``answers`` or ``all``, and *resident* keeps the whole model on
    the device.

    *vision_tower*, a directory or ``org/name[@revision]`` on the Hub, is the CLIP for images in place of the one that
    the config of a checkpoint in the original layout names. Or *scores* are a file made before; for groups these need
    *num_kv_heads*.

    *save_scores* and *plot*, a picture, are further files to write; *force* replaces files that stand there.

    Raises:
        UsageError: an option is of the wrong type, or means nothing.
    """

    schedule: str | Schedule | None = None
    rate: Rate | None = None
    protect: str | None = None
    protect_rate: Rate | None = None
    granularity: str = GRANULARITIES[0]
    metric: str | None = None
    calibration: str | Path | Sequence[str | Path] | None = None
    images: str | Path | Sequence[str | Path] | None = None
    num_samples: int | None = None
    window: int | None = None
    gamma: float = GAMMA
    loss: str = LOSSES[0]
    resident: bool = False
    seed: int = 0
    device: str = "cpu"
    vision_tower: str | Path | None = None
    scores: str | Path | None = None
    num_kv_heads: int | None = None
    save_scores: str | Path | None = None
    plot: str | Path | None = None
    force: bool = False

    @property
    def parsed_schedule(self) -> Schedule:
        """The schedule, from text where it is text."""
        if isinstance(self.schedule, str):
            return parse_schedule(self.schedule, self.rate, protect=self.protect, protect_rate=self.protect_rate)
        if self.schedule is None:
            raise UsageError(f"say with `schedule` how many heads each layer loses: {SCHEDULES}")
        for name in ("rate", "protect", "protect_rate"):
            if getattr(self, name) is not None:
                raise UsageError(f"this `schedule` says that itself; leave `{name}` out")
        return self.schedule


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


def make_mask(
    checkpoint: Path | str | None = None,
    out: Path | str | None = None,
    options: MaskOptions | None = None,
    **settings: Any,
) -> MadeMask:
    """Score the heads of *checkpoint*, or read scores made before, and make the mask that the schedule asks for.

    *checkpoint* is a directory, or ``org/name[@revision]`` on the Hub. The mask is written to the file *out*, if
    given. *settings* are fields of :class:`MaskOptions`.

    Raises:
        S4ConvertError: the subclass says what kind; what could be seen at the beginning was refused then.
    """
    options = options_of(MaskOptions, options, settings)
    schedule, files = options.parsed_schedule, (out, options.scores, options.plot, options.save_scores)
    out, scores, plot, save_scores = (None if file is None else as_path(file) for file in files)
    outputs = [path for path in (out, save_scores, plot) if path is not None]
    _check_arguments(outputs, checkpoint, options)
    for path in outputs:
        if path != plot:
            check_json_name(path)
        check_output(path, force=options.force)
    if plot is not None:
        check_picture(plot)
    if scores is not None:
        for path in outputs:
            if path.exists() and scores.exists() and path.samefile(scores):
                raise UsageError(f"{path}: is the scores file itself; choose another name")
        found, num_kv_heads = load_scores(scores), options.num_kv_heads
    else:
        found, num_kv_heads = _score(checkpoint, options)
        if save_scores is not None:
            found.save(save_scores, force=options.force)  # first: they took long
    mask = prune_lowest(found, schedule, granularity=options.granularity, num_kv_heads=num_kv_heads)
    if out is not None:
        mask.save(out, force=options.force)
    if plot is not None:
        title = f"{mask.num_pruned} of {mask.num_layers * mask.num_heads} heads pruned"
        plot_heatmap(plot, mask.num_heads, mask.pruned, found.scores, title)
    return MadeMask(mask, found)


def _score(checkpoint: Path | str | None, options: MaskOptions) -> tuple[HeadScores, int | None]:
    """The scores of *checkpoint*'s heads, and its kv heads where groups go."""
    from ..saliency import score_heads

    assert checkpoint is not None and options.metric is not None  # _check_arguments
    opened = open_checkpoint(checkpoint, progress=options.progress)
    samples, tower = None, None
    if options.calibration is not None:
        samples = read_samples(options.calibration, options.images, options.num_samples, options.window)
        tower = locate_tower(opened, options.vision_tower, needed=samples.has_images, progress=options.progress)
    scores = score_heads(
        opened,
        options.metric,
        samples=samples,
        gamma=options.gamma,
        seed=options.seed,
        device=options.device,
        loss=options.loss,
        resident=options.resident,
        tower=tower,
        progress=options.progress,
    )
    return scores, opened.geometry.num_kv_heads if options.granularity == "group" else None


def _check_arguments(outputs: list[Path], checkpoint: Path | str | None, options: MaskOptions) -> None:
    if (checkpoint is None) == (options.scores is None):
        raise UsageError("give a checkpoint to score, or `scores` made before, one of the two")
    if checkpoint is not None and options.metric is None:
        raise UsageError("a checkpoint is scored by a metric; give it with `metric`")
    for name in ("metric", "calibration", "images", "num_samples", "window", "vision_tower"):
        if options.scores is not None and getattr(options, name) is not None:
            raise UsageError(f"`{name}` is for a checkpoint to score, and `scores` were made before; leave one out")
    if options.metric == "fisher" and options.granularity == "group":
        raise UsageError(NO_GROUPS)
    if options.num_kv_heads is not None and options.scores is None:
        raise UsageError("`num_kv_heads` is for `scores`; a checkpoint says it itself, leave it out")
    for name in ("images", "num_samples", "window", "vision_tower"):
        if options.calibration is None and getattr(options, name) is not None:
            raise UsageError(f"`{name}` is about calibration data; give it with `calibration`")
    if len({path.absolute() for path in outputs}) < len(outputs):
        raise UsageError(f"{outputs[0]}: two outputs have the same name; choose another")
