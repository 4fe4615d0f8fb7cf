"""From a checkpoint, or scores made before, to a mask file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import Any

from ..calibration.inputs import Inputs, describe, make_inputs, some_of
from ..calibration.samples import Samples, read_samples
from ..calibration.statistics import held_out_of
from ..checkpoint import Checkpoint
from ..choices import GAMMA, GRANULARITIES, HOLDOUT, LOSSES, SCHEDULES
from ..disk import check_json_name, check_output
from ..errors import UsageError
from ..mask import HeadMask, HeadScores, Schedule, parse_schedule
from ..mask.files import load_mask, load_scores
from ..mask.making import NO_GROUPS, prune_lowest, with_saliency
from ..mask.schedules import Adaptive, Rate
from ..output.heatmap import check_picture, plot_heatmap, text_heatmap
from ..sources import locate_tower, open_checkpoint
from .options import Options, as_path, options_of

_OF_CALIBRATION = ("images", "num_samples", "window", "vision_tower")


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
    ``fisher``, *loss* says which tokens count, ``all`` or those of ``answers``, and *resident* keeps the whole model on
    the device.

    *vision_tower*, a directory or ``org/name[@revision]`` on the Hub, is the CLIP for images in place of the one that
    the config of a checkpoint in the original layout names. Or *scores* are a file made before; for groups these need
    *num_kv_heads*.

    *search* is for how many seconds heads are swapped between layers on the whole model in memory, see
    :mod:`s4convert.study.search`; *seed* decides which. A fifth of the calibration samples is then neither
    scored nor fitted to, and some of it judges. It takes a checkpoint, also where there are *scores*. *start* is a mask
    that a search made before of the same scores, to go on from.

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
    search: float | None = None
    start: str | Path | None = None
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
        text = f"{text_heatmap(self.mask.num_heads, self.mask.pruned, self.scores.scores)}\n\n{self.mask.to_text()}"
        log = (self.mask.provenance or {}).get("search")
        if log is None:
            return text
        end = ", until no swap was left to try" if log["exhausted"] else ""
        return (
            f"{text}\nsearch: {log['accepted']} of {log['proposals']} swaps accepted{end}; KL to the original from "
            f"{log['kl_before']:.4g} to {log['kl_after']:.4g} nats, on {log['held_out_tokens']:,} held-out tokens"
        )


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
    data = None if checkpoint is None else _Data.read(checkpoint, options)
    num_kv_heads = options.num_kv_heads
    if scores is not None:
        for path in outputs:
            if path.exists() and scores.exists() and path.samefile(scores):
                raise UsageError(f"{path}: is the scores file itself; choose another name")
        found = load_scores(scores, None if data is None else data.checkpoint.geometry)
    else:
        assert data is not None  # _check_arguments
        found = data.score()
        if save_scores is not None:
            found.save(save_scores, force=options.force)  # first: they took long
        if options.granularity == "group":
            num_kv_heads = data.checkpoint.geometry.num_kv_heads
    mask = prune_lowest(found, schedule, granularity=options.granularity, num_kv_heads=num_kv_heads)
    if options.search is not None:
        assert data is not None
        mask = _searched(data, mask, found, schedule, options)
    mask = with_saliency(mask, found)
    if out is not None:
        mask.save(out, force=options.force)
    if plot is not None:
        title = f"{mask.num_pruned} of {mask.num_layers * mask.num_heads} heads pruned"
        plot_heatmap(plot, mask.num_heads, mask.pruned, found.scores, title)
    return MadeMask(mask, found)


@dataclass(frozen=True)
class _Data:
    """What a *checkpoint* is scored and searched on."""

    checkpoint: Checkpoint
    options: MaskOptions
    samples: Samples | None
    tower: Path | None

    @staticmethod
    def read(checkpoint: Path | str, options: MaskOptions) -> _Data:
        """The data of *options*; its inputs are made when they are used."""
        opened = open_checkpoint(checkpoint, progress=options.progress)
        if options.calibration is None:
            return _Data(opened, options, None, None)
        samples = read_samples(options.calibration, options.images, options.num_samples, options.window)
        tower = locate_tower(opened, options.vision_tower, needed=samples.has_images, progress=options.progress)
        return _Data(opened, options, samples, tower)

    @cached_property
    def inputs(self) -> list[Inputs]:
        """All of them; none where there is no data."""
        if self.samples is None:
            return []
        options = self.options
        return make_inputs(
            self.checkpoint,
            self.samples.samples,
            tower=self.tower,
            device=options.device,
            progress=options.progress,
        )

    @cached_property
    def held_out(self) -> list[bool]:
        """Whether an input only judges a search; UsageError where there are too few for one."""
        flags = held_out_of(len(self.inputs), 0.0 if self.options.search is None else HOLDOUT)
        if self.options.search is not None and not any(flags):
            raise UsageError(
                f"`search` holds back a fifth of the samples, and {len(flags)} are too few for that; give 5 or more"
            )
        return flags

    @property
    def train(self) -> list[Inputs]:
        """The inputs that are scored and fitted to."""
        return [one for one, held in zip(self.inputs, self.held_out, strict=True) if not held]

    def score(self) -> HeadScores:
        """The scores of the heads."""
        from ..saliency.metrics import Settings
        from ..saliency.score import check_metric, score_inputs

        options = self.options
        assert options.metric is not None  # _check_arguments
        loss = options.loss if options.search is None or options.metric == "fisher" else LOSSES[0]
        settings = Settings(options.gamma, options.seed, options.device, loss, options.resident)
        check_metric(options.metric, settings, has_data=self.samples is not None)
        return score_inputs(self.checkpoint, options.metric, self.train, settings, progress=options.progress)


def _searched(data: _Data, mask: HeadMask, scores: HeadScores, schedule: Schedule, options: MaskOptions) -> HeadMask:
    """*mask*, or the one to start from, after a search; its log is in the provenance."""
    from ..model.resident import ResidentModel
    from ..saliency.fisher import Labels
    from ..study.search import Searcher

    assert options.search is not None
    orders = [sorted(range(scores.num_heads), key=lambda head: (row[head], head)) for row in scores.scores]
    counts, before = [len(heads) for heads in mask.pruned], 0
    if options.start is not None:
        start = load_mask(options.start, data.checkpoint.geometry)
        _check_start(start, mask, orders, Path(options.start))
        counts = [len(heads) for heads in start.pruned]
        before = int(((start.provenance or {}).get("search") or {}).get("total_proposals", 0))
    held_out = some_of([*compress(data.inputs, data.held_out)])
    model = ResidentModel(data.checkpoint, device=options.device, progress=options.progress)
    searcher = Searcher(model, orders, data.train, held_out, Labels(held_out, options.loss, options.seed).places)
    frozen = () if isinstance(schedule, Adaptive) else schedule.protect or ()
    found = searcher.search(
        counts, seconds=options.search, seed=(options.seed, before), frozen=frozen, progress=options.progress
    )
    pruned = tuple(tuple(sorted(order[:count])) for order, count in zip(orders, found.counts, strict=True))
    log = {
        "seconds": options.search,
        "seed": options.seed,
        "loss": options.loss,
        "holdout": HOLDOUT,
        "calibration": describe(data.inputs),
        "device": options.device.partition(":")[0],
        "started_from": None if options.start is None else Path(options.start).name,
        "total_proposals": before + found.proposals,
        **found.to_json(),
    }
    return replace(mask, pruned=pruned, provenance={**(mask.provenance or {}), "search": log})


def _check_start(start: HeadMask, mask: HeadMask, orders: list[list[int]], path: Path) -> None:
    """Raise UsageError where *start* is no mask that a search could have made of *mask*."""
    if start.num_pruned != mask.num_pruned:
        raise UsageError(
            f"{path}: prunes {start.num_pruned} heads, but the schedule {mask.num_pruned}; start from a mask of as many"
        )
    for layer, (heads, order) in enumerate(zip(start.pruned, orders, strict=True)):
        if set(heads) != set(order[: len(heads)]):
            raise UsageError(
                f"{path}: layer {layer}: heads {list(heads)} are not the first that go by these scores, "
                f"{sorted(order[: len(heads)])}; start from a mask made of the same scores"
            )


def _check_arguments(outputs: list[Path], checkpoint: Path | str | None, options: MaskOptions) -> None:
    if options.search is None:
        if (checkpoint is None) == (options.scores is None):
            raise UsageError("give a checkpoint to score, or `scores` made before, one of the two")
        if options.start is not None:
            raise UsageError("`start` is the mask that a search goes on from; give `search` as well, or leave it out")
    else:
        _check_search(checkpoint, options)
    if options.scores is None and options.metric is None:
        raise UsageError("a checkpoint is scored by a metric; give it with `metric`")
    only_to_score = ("metric",) if options.search is not None else ("metric", *_OF_CALIBRATION, "calibration")
    for name in only_to_score:
        if options.scores is not None and getattr(options, name) is not None:
            raise UsageError(f"`{name}` is for a checkpoint to score, and `scores` were made before; leave one out")
    if options.scores is not None and options.resident:
        raise UsageError("`resident` is for `metric='fisher'`, and `scores` were made before; leave one out")
    if options.scores is not None and options.search is None and options.loss != LOSSES[0]:
        raise UsageError("`loss` is for `metric='fisher'` and `search`; leave it out")
    if options.metric == "fisher" and options.granularity == "group":
        raise UsageError(NO_GROUPS)
    if options.num_kv_heads is not None and options.scores is None:
        raise UsageError("`num_kv_heads` is for `scores`; a checkpoint says it itself, leave it out")
    for name in _OF_CALIBRATION:
        if options.calibration is None and getattr(options, name) is not None:
            raise UsageError(f"`{name}` is about calibration data; give it with `calibration`")
    if len({path.absolute() for path in outputs}) < len(outputs):
        raise UsageError(f"{outputs[0]}: two outputs have the same name; choose another")


def _check_search(checkpoint: Path | str | None, options: MaskOptions) -> None:
    assert options.search is not None
    if not 0 < options.search < math.inf:
        raise UsageError(f"`search` {options.search}: give a number of seconds above 0")
    if checkpoint is None or options.calibration is None:
        raise UsageError("`search` runs the whole model; give the checkpoint, and data with `calibration`")
    if options.loss not in LOSSES:
        raise UsageError(f"`loss` {options.loss!r} is none of {', '.join(LOSSES)}")
    if options.granularity == "group":
        raise UsageError("`search` swaps single heads; leave it out, or use `granularity='head'`")
