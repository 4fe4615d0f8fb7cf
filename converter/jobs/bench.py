"""What measures the points of a sweep: data gathered once, and a resident model that each is swapped into."""

from __future__ import annotations

import hashlib
import logging
import math
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..calibration.inputs import Inputs
from ..calibration.samples import Samples
from ..calibration.statistics import CalibrationData, Statistics
from ..checkpoint import Checkpoint, Repository
from ..choices import HOLDOUT
from ..compensation import MODES, Fits, fit
from ..compensation.fitting import check_mode
from ..compensation.modes import REFIT
from ..disk import sha256_of
from ..errors import S4ConvertError, StorageError, VerificationError, enough_memory, reading
from ..mask import HeadScores
from ..mask.files import load_scores
from ..model.resident import ResidentModel
from ..sources import locate_tower
from ..study.evaluation import Evaluation, Task, Tasks, evaluate_model
from ..study.points import NAME_DIGITS, Point
from ..study.results import Measured, Result, Results
from ..study.swap import relative_change, swapped
from ..version import __version__
from .distill import distilled, training_inputs
from .evaluate import embedded, read_asked

if TYPE_CHECKING:
    import torch

    from .sweep import SweepOptions

_log = logging.getLogger(__name__)

_PROBED = 4  # questions whose logits show that a point is in effect, and how fast it is
_TIMED = 3  # times that they are timed; the shortest counts


def digest_of(samples: Iterable[tuple[str, Path | None]], more: Sequence[Any]) -> str:
    """The sha256 of texts and images."""
    digest = hashlib.sha256(repr(more).encode())
    for text, image in samples:
        if image is None:
            digest.update(repr((text, None)).encode())
        else:
            with reading(image):
                digest.update(repr((text, sha256_of(image))).encode())
    return digest.hexdigest()


def digest_of_data(samples: Samples, more: Sequence[Any]) -> str:
    """The sha256 of calibration data, and of how its texts are cut up."""
    windows = [(file.window, file.most) for file in samples.files if file.window is not None]
    return digest_of([(sample.text, sample.image) for sample in samples.samples], [*more, *windows])


@dataclass(frozen=True)
class SweepData:
    """What is measured once for all points, and kept in *results*."""

    checkpoint: Checkpoint
    options: SweepOptions
    results: Results

    @cached_property
    def scores(self) -> dict[str, HeadScores]:
        """The scores of the heads by each metric."""
        return {metric: self._scores(metric) for metric in self.options.metric_names}

    def _scores(self, metric: str) -> HeadScores:
        from ..saliency import score_heads

        def make(path: Path) -> None:
            scores = score_heads(
                self.checkpoint,
                metric,
                samples=None if self.calibration is None else self.calibration.read,
                device=self.options.device,
                tower=self.tower,
                progress=self.options.progress,
            )
            scores.save(path)

        return load_scores(self.results.made_once(f"scores-{metric}-{self._name}.json", make))

    @cached_property
    def directory(self) -> Path | None:
        """The statistics that compensations are fitted to; None without calibration data."""
        data = self.calibration
        if data is None:
            return None

        def make(path: Path) -> None:
            layers = range(self.checkpoint.geometry.num_layers)
            progress = self.options.progress
            Statistics(path, device=self.options.device).gather(
                self.checkpoint, data, layers, tower=self.tower, progress=progress
            )

        return self.results.made_once(f"statistics-{self._name}", make)

    @cached_property
    def calibration(self) -> CalibrationData | None:
        """What metrics and compensations are measured on."""
        return self.options.calibration_data

    @cached_property
    def tower(self) -> Path | None:
        """The directory of the vision tower, where the calibration data needs it."""
        if self.calibration is None:
            return None
        needed = self.calibration.read.has_images
        return locate_tower(self.checkpoint, self.options.vision_tower, needed=needed, progress=self.options.progress)

    @cached_property
    def _name(self) -> str:
        """The hash of what scores and statistics are measured on."""
        data = self.calibration
        samples = Samples(()) if data is None else data.read
        tower = self.options.vision_tower
        decided = [__version__, self.checkpoint.fingerprint, HOLDOUT, self.options.device, tower and Path(tower).name]
        return digest_of_data(samples, decided)[:NAME_DIGITS]


def open_bench(path: Path, repository: Repository | None, options: SweepOptions, directory: Path) -> SweepBench:
    """The model of the checkpoint *path*, and what is asked of it, in this process."""
    data = SweepData(Checkpoint.open(path, repository), options, Results(directory.absolute()))
    model = ResidentModel(data.checkpoint, device=options.device, dtype=options.dtype, progress=options.progress)
    return SweepBench(model, embedded(data.checkpoint, read_asked(data.checkpoint, options)), data)


@dataclass(frozen=True)
class SweepBench:
    """A resident *model*, and what is asked of it."""

    model: ResidentModel
    tasks: Tasks
    data: SweepData

    def measured(self, point: Point) -> Result:
        """What *point* answers, and the proof that it was in effect; or why it failed.

        Raises:
            S4ConvertError: what is no fault of the point: the unpruned model fails, or the disk.
        """
        try:
            return self._measure(point)
        except S4ConvertError as error:
            if point.mask is None or isinstance(error, StorageError):
                raise
            return Result(None, failure=str(error))

    @cached_property
    def _pupils(self) -> list[Inputs]:
        """What trainings are trained and judged on."""
        data = self.data
        assert data.calibration is not None, "check_training has seen it"
        given = data.checkpoint, data.calibration, data.options.training
        return training_inputs(*given, model=self.model, tower=data.tower)

    def _fit(self, point: Point) -> Fits:
        """The compensation of *point*."""
        assert point.mask is not None and point.compensation is not None
        data = self.data
        statistics = None if data.directory is None else Statistics(data.directory, device=data.options.device)
        # What is mapped into memory from there stays after the files are gone.
        with tempfile.TemporaryDirectory(dir=data.results.scratch) as name:
            scratch, is_trained = Path(name), MODES[point.compensation].trained
            mode = REFIT if is_trained else point.compensation
            fits = fit(mode, data.checkpoint, point.mask, scratch, moments=statistics)
            if is_trained:
                given = data.checkpoint, point.mask, fits, self.model, self._pupils
                fits, _ = distilled(*given, HOLDOUT, data.options.training, scratch)
            return fits

    def check_unchanged(self) -> None:
        """Raise VerificationError where the model is not as it was loaded."""
        self.model.check_unchanged()

    def _measure(self, point: Point) -> Result:
        """What *point* answers, and the proof that it was in effect.

        Raises:
            S4ConvertError: it cannot be fitted or swapped in, is not in effect, or its answers are not numbers.
        """
        with enough_memory(f"point {point.name}"):
            if point.mask is None:
                return Result(self._evaluate())
            with _noted() as notes:
                fits = self._fit(point)
            if fits.training is not None:
                notes.append(f"training: {fits.training.to_text()}")
            before, unpruned_seconds = self._probe()
            with swapped(self.model, self.data.checkpoint, point.mask, fits):
                after, seconds = self._probe()
                change, speed = relative_change(before, after), unpruned_seconds / seconds
                silent = sum(len(self.model.silent_heads(layer)) for layer in range(point.mask.num_layers))
                measured = Measured(change, silent, *_errors(fits), speed, tuple(notes))
                return Result(self._evaluate(), measured)

    def _probe(self) -> tuple[list[torch.Tensor], float]:
        """What the model makes of some of the tasks, spread evenly, and the seconds that it takes for them."""
        every: tuple[Task, ...] = (*self.tasks.questions, *self.tasks.texts)
        count = min(_PROBED, len(every))
        probed = [every[number * (len(every) - 1) // max(1, count - 1)] for number in range(count)]
        times = []
        for _ in range(_TIMED):
            start = time.perf_counter()
            logits = self.model.logits([task.whole for task in probed], [task.tail for task in probed])
            logits[-1].sum().item()  # waits for a GPU
            times.append(time.perf_counter() - start)
        return logits, min(times)

    def _evaluate(self) -> Evaluation:
        options = self.data.options
        found = evaluate_model(
            self.model, self.tasks, batch_size=options.batch_size, max_new_tokens=options.max_new_tokens
        )
        if not math.isfinite(found.text_loss + math.fsum(one.loss for one in found.answers)):
            raise VerificationError("the model's probabilities are not finite numbers; try another `dtype`")
        return found


@contextmanager
def _noted() -> Iterator[list[str]]:
    """What fits say inside the block: on stderr, the same would stand for every layer of every point."""
    notes: list[str] = []
    logger = logging.getLogger(check_mode.__module__)

    def note(record: logging.LogRecord) -> bool:
        notes.append(record.getMessage())
        return False

    logger.addFilter(note)
    try:
        yield notes
    finally:
        logger.removeFilter(note)


def _errors(fits: Fits) -> tuple[float | None, float | None]:
    """(E summed over layers, its share of the E of no compensation), on held-out tokens if there are any."""
    figures = [layer.held_out or layer.train for layer in fits.figures.values()]
    if not figures:
        return None, None
    error, none = math.fsum(one.fit for one in figures), math.fsum(one.none for one in figures)
    return error, error / none if none else None
