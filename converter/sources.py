"""From what a user names to what is read: a path on the disk, or a name on the Hub."""

from __future__ import annotations

import logging
from pathlib import Path

from .checkpoint import Checkpoint, Geometry, Repository
from .hub.names import checkpoint_name, file_name
from .mask import HeadMask, Schedule
from .mask.files import load_mask as load_mask_file
from .mask.formats.layer_lists import Polarity

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
        UsageError: *given* begins with ``hf://`` and names no repository.
        CheckpointError, HubError, StorageError: as :func:`~s4convert.hub.download.fetch_checkpoint` says.
    """
    name = checkpoint_name(given)
    if name is None:
        return Path(given), None
    from .hub.download import fetch_checkpoint

    fetched = fetch_checkpoint(name, progress=progress)
    return fetched.path, fetched.repository


def load_mask(
    given: Path | str,
    geometry: Geometry,
    *,
    polarity: Polarity | None = None,
    schedule: Schedule | None = None,
    progress: bool = False,
) -> HeadMask:
    """The mask in the file *given*, a path or ``org/name[@revision]:path`` on the Hub; how it was read is told.

    Raises:
        S4ConvertError: as :func:`~s4convert.hub.download.fetch_mask` and :func:`s4convert.mask.files.load_mask` say.
    """
    name, path = file_name(given), Path(given)
    if name is not None:
        from .hub.download import fetch_mask

        path, name = fetch_mask(name, progress=progress)
    mask = load_mask_file(path, geometry, polarity=polarity, schedule=schedule)
    _log.info("%s: %s", given if name is None else name, mask.how_read)
    return mask
