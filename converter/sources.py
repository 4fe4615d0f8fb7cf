"""From what a user names to what is read: a path on the disk, or a name on the Hub."""

from __future__ import annotations

import logging
from pathlib import Path

from .checkpoint import Checkpoint, Geometry, Repository
from .checkpoint.families import ORIGINAL
from .errors import S4ConvertError, UsageError, shown
from .hub.names import checkpoint_name, file_name
from .mask import HeadMask, Schedule
from .mask.files import load_mask
from .mask.schedules import Rate, schedule_of
from .model.front_end import named_tower, open_front_end

_log = logging.getLogger(__name__)


def open_checkpoint(given: Path | str, *, progress: bool = False) -> Checkpoint:
    """Open the checkpoint *given*: a directory, or ``org/name[@revision]`` on the Hub, which is downloaded.

    Raises:
        S4ConvertError: as :func:`locate_checkpoint` and :meth:`Checkpoint.open` say.
    """
    return Checkpoint.open(*locate_checkpoint(given, progress=progress))


def locate_checkpoint(given: Path | str, *, progress: bool = False) -> tuple[Path, Repository | None]:
    """(the directory of the checkpoint *given*, the repository that it was downloaded from, if it was).

    Raises:
        UsageError: *given* is no path or name, or begins with ``hf://`` and names no repository.
        CheckpointError, HubError, StorageError: as :func:`~s4convert.hub.download.fetch_checkpoint` says.
    """
    if not isinstance(given, str | Path):
        raise UsageError(f"{shown(given)} is neither a directory nor a name on the Hub")
    name = checkpoint_name(given)
    if name is None:
        return Path(given), None
    from .hub.download import fetch_checkpoint

    return fetch_checkpoint(name, progress=progress)


def original_at_hand(source: str, directory: Path) -> Checkpoint | None:
    """The checkpoint that a manifest calls *source*, if it can be used without a download; else None.

    That is a directory of this name in *directory*, or a repository in the Hub client's cache.
    """
    try:
        if Path(source).name == source and source not in ("", ".."):
            return Checkpoint.open(directory / source)
        name = checkpoint_name(source)
        if name is None:
            return None
        from .hub.download import cached_checkpoint

        return Checkpoint.open(*cached_checkpoint(name))
    except S4ConvertError:
        return None


def locate_tower(
    checkpoint: Checkpoint, given: Path | str | None, *, needed: bool, progress: bool = False
) -> Path | None:
    """The directory of the vision tower for images, see :func:`~s4convert.model.front_end.open_front_end`.

    *given* is a directory or a name on the Hub, and is tried here, before any work. Without it, the tower is the one
    that *checkpoint*'s config names on the Hub: it is downloaded where it is *needed*, and otherwise taken from the
    client's cache. None where that lacks it, and where the front end finds the tower by itself.

    Raises:
        UsageError: *given* is no directory and no such name, or *checkpoint* has no use for it.
        CheckpointError: it is no vision tower for *checkpoint*.
        HubError, StorageError: as :func:`~s4convert.hub.download.fetch_tower` says.
    """
    if given is None:
        named = named_tower(checkpoint)
        if named is None or {":", "@"} & set(named):  # stock code knows plain names alone
            return None
        name = checkpoint_name(named)
        if name is None:
            return None
        from .hub.download import cached_tower, fetch_tower

        return fetch_tower(name, progress=progress) if needed else cached_tower(name)
    if checkpoint.family.lineage != ORIGINAL:
        raise UsageError(
            f"{checkpoint.known_as}: is not in LLaVA's original layout, which alone has its vision tower elsewhere; "
            "leave `vision_tower` out"
        )
    name = checkpoint_name(given)
    if name is None:
        tower = Path(given)
    else:
        from .hub.download import fetch_tower

        tower = fetch_tower(name, progress=progress)
    if not tower.is_dir():
        raise UsageError(f"`vision_tower` {given}: is neither a directory nor a name on the Hub; give one of the two")
    open_front_end(checkpoint, with_images=True, tower=tower)
    return tower


def open_mask(
    given: Path | str | HeadMask,
    geometry: Geometry,
    *,
    polarity: str | None = None,
    schedule: str | Schedule | None = None,
    rate: Rate | None = None,
    progress: bool = False,
) -> HeadMask:
    """The mask *given*: a mask, a file, or ``org/name[@revision]:path`` on the Hub; how a file was read is told.

    Raises:
        UsageError: *given* is no such thing, or the other arguments are not for it.
        S4ConvertError: as :func:`~s4convert.hub.download.fetch_mask` and :func:`~s4convert.mask.files.load_mask` say.
    """
    if not isinstance(given, HeadMask | str | Path):
        raise UsageError(f"`mask` is {shown(given)}, not a mask, a file or a name on the Hub")
    if isinstance(given, HeadMask):
        if polarity is not None or schedule is not None or rate is not None:
            raise UsageError(
                "`mask_polarity`, `schedule` and `rate` are about a mask file, and this mask is none; leave them out"
            )
        given.check_fits(geometry)
        return given
    parsed = schedule_of(schedule, rate)
    path, shown_as = locate_file(given, progress=progress)
    mask = load_mask(path, geometry, polarity=polarity, schedule=parsed)
    assert mask.file is not None
    _log.info("%s: %s", shown_as, mask.file.how_read)
    return mask


def locate_file(given: Path | str, *, progress: bool = False) -> tuple[Path, str]:
    """(where the mask or scores file *given* lies on the disk, what messages call it).

    Raises:
        UsageError, MaskError, HubError, StorageError: as :func:`~s4convert.hub.download.fetch_mask` says.
    """
    name = file_name(given)
    if name is None:
        return Path(given), str(given)
    from .hub.download import fetch_mask

    path, found = fetch_mask(name, progress=progress)
    return path, str(found)
