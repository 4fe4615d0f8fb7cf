"""Where a conversion's moments come from: statistics kept before, or calibration data run through the model now."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..checkpoint import Checkpoint
from ..errors import StorageError, UsageError
from ..model.device import check_device
from .moments import IMAGE_WEIGHT
from .statistics import CalibrationData, Statistics


class MomentsRequest:
    """Moments from *statistics*, or from *data*, which go into the directory *save* or, without one, beside *out*."""

    def __init__(
        self,
        out: Path,
        *,
        data: CalibrationData | None = None,
        statistics: Path | None = None,
        save: Path | None = None,
        image_weight: float = IMAGE_WEIGHT,
        device: str = "cpu",
    ) -> None:
        """*image_weight* is the share of image tokens in the moments; *device* is where fits to them are computed.

        Raises:
            UsageError: neither *statistics* nor *data* is given, or both; or the weight is not from 0 to 1.
        """
        if (data is None) == (statistics is None):
            raise UsageError("give calibration data, or --statistics kept before, one of the two")
        if save is not None and data is None:
            raise UsageError("--save-statistics keeps what --calibration measures; give that")
        self._out, self._data, self._save = out, data, save
        if not 0 <= image_weight <= 1:
            raise UsageError(f"--image-weight {image_weight}: give a share from 0 to 1")
        self.moments = Statistics(statistics or save or out, image_weight=image_weight, device=device)

    def check(self, checkpoint: Checkpoint, layers: Collection[int]) -> None:
        """Raise, before any work, what can be seen to be wrong with the request for *layers* of *checkpoint*."""
        check_device(self.moments.device)
        if self._data is None:
            self.moments.check(checkpoint, layers)
            return
        self._data.check()
        if self._save is not None and self._save.exists() and (not self._save.is_dir() or any(self._save.iterdir())):
            raise UsageError(f"{self._save}: exists and is no empty directory; choose another for the statistics")

    @contextmanager
    def ready(self, checkpoint: Checkpoint, layers: Collection[int], *, progress: bool) -> Iterator[None]:
        """Have the moments of *layers* in place; kept ones are of all layers, for other masks."""
        if self._data is None:
            yield
            return
        if self._save is not None:
            every = range(checkpoint.geometry.num_layers)
            self.moments.gather(checkpoint, self._data, every, progress=progress)
            yield
            return
        try:
            scratch = tempfile.mkdtemp(
                prefix=f".{self._out.name}.s4convert-statistics-", dir=self._out.absolute().parent
            )
        except OSError as error:
            raise StorageError(f"{self._out.absolute().parent}: cannot be written: {error.strerror}") from error
        try:
            self.moments.directory = Path(scratch)
            self.moments.gather(checkpoint, self._data, layers, progress=progress)
            yield
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
