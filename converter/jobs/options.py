"""What the options of jobs share: they are frozen, checked when they are made, and made from keywords."""

from __future__ import annotations

import types
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from ..calibration.samples import Samples, read_samples
from ..calibration.statistics import Statistics
from ..checkpoint import Geometry
from ..choices import IMAGE_WEIGHT
from ..compensation import MODES, MomentsSource
from ..compensation.training import TrainingSettings
from ..errors import CalibrationError, UsageError, shown
from ..mask import HeadMask, Schedule
from ..mask.schedules import Rate
from ..sources import open_mask

_TRAINING = tuple(field.name for field in fields(TrainingSettings))

OptionsT = TypeVar("OptionsT", bound="Options")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a job; *progress* shows bars on stderr while it works, where that is a terminal.

    Raises:
        UsageError: an option is of another type than its annotation says.
    """

    progress: bool = False

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for option in fields(self):
            value, accepted = getattr(self, option.name), _classes(hints[option.name])
            if isinstance(value, int) and not isinstance(value, bool) and float in accepted:
                continue
            if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted):
                names = " or ".join("None" if each is types.NoneType else each.__name__ for each in accepted)
                raise UsageError(f"`{option.name}` is {shown(value)}, not of type {names}")


@dataclass(frozen=True, kw_only=True)
class ConversionOptions(Options):
    """What making a conversion and checking one share: how its mask and its statistics are read, and what is checked.

    *mask_polarity* (``keep`` or ``prune``) says what a 1 means where a file of bare 0/1 flags does not. *schedule*
    (``uniform``, ``adaptive``, ``global``, ``bands:...``) and *rate* make a mask of a file of scores.

    *statistics* is a directory that ``save_statistics`` kept, or a function from a layer's number to its moments;
    *foreign_statistics* accepts a directory of another model of the same geometry. *image_weight* (0.5) is the share of
    image tokens in a fit; *device* (``cpu``) runs the fits, and the models whose hidden states are compared.

    *vision_tower*, a directory or ``org/name[@revision]`` on the Hub, is the CLIP for images in place of the one that
    the config of a checkpoint in the original layout names.

    *check_behaviour* compares hidden states and logits; bytes are always compared. They are those of *probe*, a file of
    questions or plain text with its images in the directory *probe_images*, and else of built-in prompts and images.
    *jobs* is the number of threads.

    Raises:
        UsageError: an option is of the wrong type, out of range, or means nothing without another.
    """

    mask_polarity: str | None = None
    schedule: str | Schedule | None = None
    rate: Rate | None = None
    statistics: str | Path | Callable[..., Any] | None = None
    foreign_statistics: bool = False
    image_weight: float | None = None
    device: str | None = None
    vision_tower: str | Path | None = None
    check_behaviour: bool = True
    probe: str | Path | None = None
    probe_images: str | Path | None = None
    jobs: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.jobs is not None and self.jobs < 1:
            raise UsageError(f"{self.jobs} `jobs` can do nothing; give one or more")
        if self.foreign_statistics and self.statistics is None:
            raise UsageError("`foreign_statistics` is about `statistics`; give that as well, or leave it out")
        if self.probe is not None and not self.check_behaviour:
            raise UsageError("`probe` is for hidden states, which are not checked; leave it out")
        if self.probe is None and self.probe_images is not None:
            raise UsageError("`probe_images` is about the samples of a `probe`; give that as well, or leave it out")

    @cached_property
    def probe_samples(self) -> Samples | None:
        """The samples of :attr:`probe`, read once; errors as of :func:`~s4convert.calibration.samples.read_samples`."""
        if self.probe is None:
            return None
        with images_called("probe_images"):
            return read_samples(self.probe, self.probe_images)

    @property
    def kept_statistics(self) -> Statistics | None:
        """The moments of :attr:`statistics`, where that is a directory."""
        return None if self.statistics is None or callable(self.statistics) else self.statistics_in(self.statistics)

    def statistics_in(self, directory: str | Path) -> Statistics:
        """The moments in *directory*, gathered or still to be gathered, as these options weigh and use them.

        Raises:
            UsageError: the image weight is not from 0 to 1.
        """
        weight = IMAGE_WEIGHT if self.image_weight is None else self.image_weight
        return Statistics(Path(directory), image_weight=weight, device=self.device or "cpu")

    @property
    def given_moments(self) -> MomentsSource | None:
        """Where a fit gets the moments of a layer, as far as :attr:`statistics` says."""
        return self.statistics if callable(self.statistics) else self.kept_statistics

    def read_mask(self, given: str | Path | HeadMask, geometry: Geometry) -> HeadMask:
        """The mask *given*, see :func:`~s4convert.sources.open_mask`."""
        return open_mask(
            given,
            geometry,
            polarity=self.mask_polarity,
            schedule=self.schedule,
            rate=self.rate,
            progress=self.progress,
        )


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(Options):
    """How the compensation ``distill`` trains, see :class:`~s4convert.compensation.training.TrainingSettings`.

    Raises:
        UsageError: an option is of the wrong type or out of range.
    """

    train: str | None = None
    steps: int | None = None
    learning_rate: float | None = None
    self_answers: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.training

    @property
    def training(self) -> TrainingSettings:
        """The settings, with defaults for what is not given."""
        given = {name: getattr(self, name) for name in _TRAINING}
        return TrainingSettings(**{name: value for name, value in given.items() if value is not None})

    def check_use(self, compensations: Collection[str]) -> None:
        """Raise UsageError where an option is given and none of *compensations* trains."""
        for name in _TRAINING:
            if getattr(self, name) and not any(mode in MODES and MODES[mode].trained for mode in compensations):
                raise UsageError(f"`{name}` is about a training; give it with `compensation='distill'`")


@contextmanager
def images_called(name: str) -> Iterator[None]:
    """Name the parameter of a directory of images as this job does, in the errors of those who know it as `images`."""
    try:
        yield
    except (CalibrationError, UsageError) as error:
        raise type(error)(str(error).replace("`images`", f"`{name}`")) from error


def options_of(kind: type[OptionsT], options: OptionsT | None, settings: dict[str, Any]) -> OptionsT:
    """*options*, or the defaults of their *kind*, changed by *settings*.

    Raises:
        TypeError: a setting is no option.
        UsageError: an option means nothing.
    """
    return kind(**settings) if options is None else replace(options, **settings)


def as_path(given: str | Path) -> Path:
    """*given* as a path; UsageError where a program gives something else."""
    if not isinstance(given, str | Path):
        raise UsageError(f"{shown(given)} is not a path")
    return Path(given)


def _classes(annotation: Any) -> tuple[type, ...]:
    """The classes that isinstance takes for *annotation*."""
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(each for part in get_args(annotation) for each in _classes(part))
    return (get_origin(annotation) or annotation,)
