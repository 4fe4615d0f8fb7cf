"""Many masks and compensations of one checkpoint, each measured on the same questions without writing a checkpoint."""

from __future__ import annotations

import difflib
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from fractions import Fraction
from functools import cached_property, partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..calibration.samples import as_paths
from ..calibration.statistics import CalibrationData
from ..checkpoint import MANIFEST_FILE, Checkpoint
from ..checkpoint.loader_names import check_loader_name
from ..choices import COMPENSATIONS, HOLDOUT, METRICS, RAY_CPUS
from ..compensation import MODES
from ..compensation.fitting import check_mode
from ..compensation.modes import default_mode
from ..compensation.training import TrainingSettings
from ..disk import read_file, write_output
from ..errors import S4ConvertError, StorageError, UsageError, shown
from ..hub.names import file_name
from ..mask import HeadMask, Schedule, parse_schedule
from ..mask.schedules import Rate
from ..progress import sample_bar
from ..rewrite.staging import check_replaceable
from ..sources import open_checkpoint, open_mask
from ..study.outside import Evaluator
from ..study.plots import HOW_TO_GET_PLOTS, can_plot, plot
from ..study.points import NAME_DIGITS, Grid, Point, distinct, make_grid
from ..study.results import Result, Results, Score, open_results
from ..study.summary import Summary, as_json_text, summarise
from ..verify.report import Report
from ..version import __version__
from .bench import SweepBench, SweepData, digest_of, digest_of_data, open_bench
from .convert import convert, refuse_converted
from .distill import check_training
from .evaluate import Asked, EvaluateOptions, read_asked
from .options import TrainingOptions, as_path

_log = logging.getLogger(__name__)

_PATHS = ("questions", "images", "text", "calibration", "calibration_images")
_TEXTS = (*_PATHS, "masks", "schedules")
_LONGEST = 4096  # letters of a value in a file of options, which messages show
_NOT_OF_A_SWEEP = ("samples", "force")


@dataclass(frozen=True, kw_only=True)
class SweepOptions(EvaluateOptions, TrainingOptions):
    """Which masks and compensations are measured; how they are, :class:`~s4convert.jobs.evaluate.EvaluateOptions` says,
    and how ``distill`` trains, :class:`~s4convert.jobs.options.TrainingOptions`.

    Every one of *metrics* scores the heads, every one of *schedules* at every one of *rates* makes a mask of them
    (``bands:...`` have rates of their own). *masks* are files made before, or ``org/name:file`` on the Hub; where there
    are no *rates*, they alone are measured. Every mask is measured with every one of *compensations*. Each is a
    sequence, or text with commas; the compensation is by default ``least-squares`` with calibration data, and ``scale``
    without.

    *calibration*, a file of questions or plain text or several, with *calibration_images*, the directory of their
    images or one for each, is what metrics and compensations are measured on. The first *calibration_samples* (all) of
    each are used; plain text is packed into windows of *window* (640) tokens. *retry_failed* runs points
    again that failed before. *ray* measures points on the workers of a Ray cluster at that address, or of this machine
    (``local``); each has a GPU or *ray_cpus* (1) processors. *convert_best* is where the best point is written as a
    checkpoint; *best_by* says what makes it the best, see :meth:`~s4convert.study.summary.Summary.ranked`.

    *eval_command* is an outside evaluator, with *score_json* or *score_pattern*, see
    :class:`~s4convert.study.outside.Evaluator`: it runs on every point as a checkpoint of its own, which is removed
    afterwards unless *keep* is on.

    Raises:
        UsageError: an option is of the wrong type, names nothing there is, or means nothing without another.
    """

    rates: str | Sequence[Rate] = ()
    schedules: str | Sequence[str] = ("uniform",)
    metrics: str | Sequence[str] = ("magnitude",)
    masks: str | Sequence[str | Path] = ()
    compensations: str | Sequence[str] | None = None
    calibration: str | Path | Sequence[str | Path] | None = None
    calibration_images: str | Path | Sequence[str | Path] | None = None
    calibration_samples: int | None = None
    window: int | None = None
    retry_failed: bool = False
    ray: str | None = None
    ray_cpus: int | None = None
    eval_command: str | None = None
    score_json: str | None = None
    score_pattern: str | None = None
    keep: bool = False
    convert_best: str | Path | None = None
    best_by: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples is not None or self.force:
            raise UsageError("a sweep keeps every answer in its results; leave `samples` and `force` out")
        _check_names("metrics", _texts(self.metrics), METRICS)
        _check_names("compensations", self.modes, COMPENSATIONS)
        self.check_use(self.modes)
        for name in ("calibration_images", "calibration_samples", "window"):
            if self.calibration is None and getattr(self, name) is not None:
                raise UsageError(f"`{name}` is about calibration data; give it with `calibration`")
        for name in ("score_json", "score_pattern", "keep"):
            if self.eval_command is None and getattr(self, name):
                raise UsageError(f"`{name}` is about an outside evaluator; give it with `eval_command`")
        if self.ray is not None and find_spec("ray") is None:
            raise UsageError("`ray` needs Ray: pip install 's4convert[ray]'")
        if self.ray_cpus is not None and (self.ray is None or self.ray_cpus < 1):
            raise UsageError("`ray_cpus` is how many processors, one or more, a worker of `ray` has")
        _ = self.parsed_schedules, self.evaluator

    @property
    def evaluator(self) -> Evaluator | None:
        """The outside evaluator, if any."""
        if self.eval_command is None:
            return None
        return Evaluator(self.eval_command, self.score_json, self.score_pattern)

    @cached_property
    def parsed_schedules(self) -> tuple[Schedule, ...]:
        """Every schedule at every rate, each once; none where there are only masks made before."""
        given = _texts(self.rates)
        parsed: list[Schedule] = []
        if self.masks and not given and self.schedules == SweepOptions.schedules:
            return ()
        for text in _texts(self.schedules, r",(?=\s*[a-z])"):  # bands have commas, and digits behind them
            if text.startswith("bands"):
                parsed.append(parse_schedule(text))
            elif not given:
                raise UsageError(f"the schedule {text} needs `rates`, such as 0.1,0.2,0.3")
            else:
                parsed += [parse_schedule(text, rate) for rate in given]
        if not parsed:
            raise UsageError("give at least one of `schedules`")
        return distinct(parsed)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The metrics, each once; none where no schedule asks for one."""
        return _texts(self.metrics) if self.parsed_schedules else ()

    @property
    def modes(self) -> tuple[str, ...]:
        """The compensations, each once."""
        if self.compensations is None:
            return (default_mode(has_data=self.calibration is not None),)
        return _texts(self.compensations)

    @property
    def calibration_data(self) -> CalibrationData | None:
        """The data to calibrate on, if any."""
        if self.calibration is None:
            return None
        how = self.calibration_samples, HOLDOUT, self.device, self.window
        return CalibrationData(self.calibration, self.calibration_images, *how)


@dataclass(frozen=True)
class Swept:
    """What a sweep found, as the files in its *directory* say; *report* is that of the best point's conversion."""

    summary: Summary
    directory: Path
    best_by: str | None = None
    report: Report | None = None

    def to_json(self) -> dict[str, Any]:
        """The rows, and what is said of all, for a script to read."""
        converted = {} if self.report is None else {"converted": self.report.to_json()}
        return self.summary.to_json() | {"results": str(self.directory)} | converted

    def to_text(self) -> str:
        """The best ten points and what is to be said of all, for a terminal."""
        text = self.summary.to_text(self.best_by)
        return text if self.report is None else f"{text}\n\n{self.report}"


def sweep(
    source: Path | str,
    out: Path | str,
    options: SweepOptions | None = None,
    *,
    study: Path | str | None = None,
    **settings: Any,
) -> Swept:
    """Measure every point that *options* ask of the checkpoint *source*, and keep the results in the directory *out*.

    A point that is there already is not run again; so a sweep that was stopped goes on. *study* is a YAML file of
    options, and *settings*, fields of :class:`SweepOptions`, have precedence.

    Raises:
        UsageError: an option means nothing for this checkpoint.
        S4ConvertError: as the class says. Where a point fails, that is kept as its result.
    """
    if options is None:
        options = SweepOptions(**({} if study is None else read_study(study)) | settings)
    elif study is not None or settings:
        raise UsageError("give `options`, or a `study` and settings, one of the two")
    out = as_path(out)
    checkpoint = open_checkpoint(source, progress=options.progress)
    decided = _check(checkpoint, options)
    with open_results(out) as results:
        data = SweepData(checkpoint, options, results)
        grid = make_grid(data.scores, options.parsed_schedules, decided.masks, options.modes, decided.decided_by)
        evaluator = options.evaluator
        stated = {"source": checkpoint.source, "evaluator": None if evaluator is None else asdict(evaluator)}
        results.keep_study(grid, {**stated, **decided.about})
        _run(grid, data)
        if evaluator is not None:
            _ask_outside(grid, data, evaluator)
        swept = _written(results, out, options.best_by)
        if options.convert_best is None:
            return swept
        best = swept.summary.best(options.best_by)
        mask = next(point.mask for point in grid.points if point.name == best.point)
        assert mask is not None
        report = _convert(data, as_path(options.convert_best), mask, best.compensation)
    return Swept(swept.summary, out, options.best_by, report)


def summarise_results(directory: Path | str, *, best_by: str | None = None) -> Swept:
    """Make the summary and the plots in the results *directory* again.

    Raises:
        UsageError: it holds no results, or malformed ones.
        StorageError: a file cannot be read or written, or a sweep is writing there.
    """
    directory = as_path(directory)
    Results(directory).study()
    with open_results(directory) as results:
        try:
            swept = Swept(summarise(results), directory, best_by)
            swept.to_text(), swept.summary.to_markdown()  # what is malformed shows here, before anything is written
        except (KeyError, IndexError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise UsageError(f"{directory}: its results are malformed ({shown(error)}); run the sweep again") from error
        return _written(results, directory, best_by)


def read_study(path: Path | str) -> dict[str, Any]:
    """The options in the YAML file *path*; paths in it are relative to its directory.

    Raises:
        UsageError: it is malformed, or names an option that there is not.
        StorageError: it cannot be read.
    """
    import yaml

    path = as_path(path)
    try:
        content = yaml.safe_load(read_file(path, UsageError))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: is not YAML ({' '.join(str(error).split())[:80]}); mend it") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: is not a list of options, each as `name: value`")
    known = [field.name for field in fields(SweepOptions) if field.name not in (*_NOT_OF_A_SWEEP, "progress")]
    options: dict[str, Any] = {}
    for given, value in content.items():
        name = str(given).replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"options are {', '.join(known)}"
            raise UsageError(f"{path}: {shown(given)} is no option of a sweep; {hint}")
        kind, what = (str, "text") if name in _TEXTS else (str | int | float, "text, a number")
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, kind) or "\0" in str(one) or len(str(one)) > _LONGEST:
                raise UsageError(f"{path}: {name} is {shown(value)}; give {what}, or a list of such")
        if name == "masks":
            value = [_beside(path, mask) if file_name(mask) is None else mask for mask in _texts(value)]
        options[name] = _beside(path, value) if name in _PATHS else value
    return options


def _beside(study: Path, value: Any) -> Any:
    """The path *value*, or the paths in it, relative to the directory of *study*."""
    if isinstance(value, list):
        return [_beside(study, one) for one in value]
    return study.parent / value if isinstance(value, str) else value


def _texts(given: str | Sequence[Any], separator: str = ",") -> tuple[Any, ...]:
    """*given*, split where it is text."""
    parts = re.split(separator, given) if isinstance(given, str) else given
    return tuple(dict.fromkeys(part.strip() if isinstance(part, str) else part for part in parts))


def _check_names(option: str, names: Sequence[Any], known: Sequence[str]) -> None:
    if not names:
        raise UsageError(f"give at least one of `{option}`")
    for name in names:
        if name not in known:
            raise UsageError(f"`{option}`: {shown(name)} is none of {', '.join(known)}")


@dataclass(frozen=True)
class _Decided:
    """What decides the answers beside mask and compensation: *of_all*, the *calibration*, of some the *training*.

    *masks* are those that were given.
    """

    of_all: Mapping[str, Any]
    calibration: str | None
    training: TrainingSettings
    masks: Mapping[str, HeadMask]

    @property
    def about(self) -> dict[str, Any]:
        """What study.json says of all points."""
        return {"decided_by": dict(self.of_all), "calibration": self.calibration}

    def decided_by(self, mask: HeadMask | None, compensation: str | None) -> dict[str, Any]:
        """Everything that decides the answers of a point."""
        if mask is None:
            return dict(self.of_all)
        pruned = {str(layer): list(mask.pruned[layer]) for layer in mask.touched_layers}
        own = {"pruned": pruned, "compensation": compensation, "calibration": self.calibration}
        if compensation is not None and MODES[compensation].trained:
            own["training"] = self.training.to_json()
        return {**self.of_all, **own}


def _check(checkpoint: Checkpoint, options: SweepOptions) -> _Decided:
    """Refuse what can be seen to be wrong, before anything is written; and what decides the answers."""
    from ..saliency.metrics import METRICS as TABLE

    asked = read_asked(checkpoint, options)
    refuse_converted(checkpoint)
    geometry = checkpoint.geometry
    even = [[Fraction(0)] * geometry.num_heads] * geometry.num_layers
    for schedule in options.parsed_schedules:
        schedule.counts(even)
    data, any_mask = options.calibration_data, HeadMask(geometry.num_heads, ((0,), *[()] * (geometry.num_layers - 1)))
    for mode in options.modes:
        check_mode(mode, checkpoint, any_mask, has_moments=data is not None)
        if MODES[mode].trained:
            check_training(data, options.training)
    for metric in options.metric_names:
        if TABLE[metric].needs_data and data is None:
            raise UsageError(f"the metric {metric} is measured on calibration data; give it with `calibration`")
    if options.convert_best is not None:
        best = as_path(options.convert_best)
        check_replaceable(best, force=False)
        check_loader_name(checkpoint.family, checkpoint.known_as, best)
    if options.evaluator is not None:
        check_loader_name(checkpoint.family, checkpoint.known_as, _outside_path(checkpoint, Path(), "0" * NAME_DIGITS))
    calibration = None
    if data is not None:
        calibration = digest_of_data(data.check(), [HOLDOUT])
    decided_by = _decided_by(checkpoint, asked, options)
    return _Decided(decided_by, calibration, options.training, _given_masks(checkpoint, options))


def _given_masks(checkpoint: Checkpoint, options: SweepOptions) -> dict[str, HeadMask]:
    """The masks made before, by the names of their files."""
    files: dict[str, str | Path] = {}
    for given in _texts(options.masks):
        name = as_path(given).name
        if name in files:
            raise UsageError(f"`masks`: two are called {shown(name)}; rename one")
        files[name] = given
    return {name: open_mask(file, checkpoint.geometry, progress=options.progress) for name, file in files.items()}


def _decided_by(checkpoint: Checkpoint, asked: Asked, options: SweepOptions) -> dict[str, Any]:
    said: dict[str, Any] = {
        "versions": {"s4convert": __version__, **{name: version(name) for name in ("torch", "transformers")}},
        "fingerprint": checkpoint.fingerprint,
        "device": options.device.partition(":")[0],
        "dtype": options.dtype or ("float32" if options.device == "cpu" else "as stored"),
        "max_new_tokens": options.max_new_tokens,
        "vision_tower": None if options.vision_tower is None else Path(options.vision_tower).name,
        "questions": None,
        "text": None,
        "conversation": None,
        "prompt": None,
    }
    if asked.prompts is not None:
        answers = [question.answers for question in asked.questions]
        said["questions"] = digest_of([(question.text, question.image) for question in asked.questions], answers)
        said["conversation"] = asked.prompts.name
        said["prompt"] = asked.prompts.write([(asked.questions[0].text, None)])
    if asked.texts:
        said["text"] = digest_of([(sample.text, None) for sample in asked.texts], [])
    return said


def _run(grid: Grid, data: SweepData) -> None:
    """Measure the points that have no result yet."""
    options, results = data.options, data.results
    pending = [point for point in grid.points if _is_to_run(results.result(point.name), options)]
    if not pending:
        return
    _ = data.directory  # what takes memory of its own comes before the model
    checkpoint = data.checkpoint
    bench = partial(open_bench, checkpoint.path, checkpoint.repository, _anywhere(options), results.directory)
    with sample_bar("points", len(pending), shown=options.progress) as bar:
        for point, result in _measured(pending, bench, options):
            if result.failure is not None:
                said = "; ".join(map(str, point.settings))
                _log.warning("%s, %s: failed: %s", said, point.compensation, result.failure)
            results.keep(point, result)
            bar.update(1)


def _measured(
    points: Sequence[Point], make_bench: Callable[[], SweepBench], options: SweepOptions
) -> Iterator[tuple[Point, Result]]:
    """Every one of *points* with its result, here or on the workers of a Ray cluster."""
    if options.ray is not None:
        from ..study.cluster import measured_by_workers

        cpus = options.ray_cpus or RAY_CPUS
        yield from measured_by_workers(options.ray, points, make_bench, device=options.device, cpus=cpus)
        return
    bench = make_bench()
    for point in points:
        yield point, bench.measured(point)
    bench.check_unchanged()


def _anywhere(options: SweepOptions) -> SweepOptions:
    """*options* whose paths do not depend on the working directory."""
    paths: dict[str, Any] = {}
    for name in _PATHS:
        given = getattr(options, name)
        absolute = [path.absolute() for path in as_paths(given)]
        if absolute:
            paths[name] = absolute[0] if isinstance(given, str | Path) else absolute
    return replace(options, **paths)


def _convert(data: SweepData, out: Path, mask: HeadMask, compensation: str | None) -> Report:
    """Write a point as a checkpoint: its compensation is fitted to the same statistics."""
    assert compensation is not None
    repository, options = data.checkpoint.repository, data.options
    measured: dict[str, Any] = {"statistics": data.directory}
    if MODES[compensation].trained:  # on samples, which statistics are not
        calibration, images, number = options.calibration, options.calibration_images, options.calibration_samples
        measured = {"calibration": calibration, "images": images, "num_samples": number, **options.training.to_json()}
    return convert(
        data.checkpoint.path if repository is None else str(repository),
        out,
        mask,
        compensation=compensation,
        device=None if data.directory is None else options.device,
        vision_tower=options.vision_tower,
        progress=options.progress,
        **measured,
    )


def _ask_outside(grid: Grid, data: SweepData, evaluator: Evaluator) -> None:
    """Let *evaluator* score the points that it has not scored yet, each as a checkpoint of its own path.

    Evaluators cache answers by the path of a model, not by its weights; so the path holds the point's name.
    """
    options, results = data.options, data.results
    pending = [point for point in grid.points if _is_to_score(results.score(evaluator.name(point.name)), options)]
    with sample_bar("outside", len(pending), shown=options.progress) as bar:
        for point in pending:
            name, path = evaluator.name(point.name), data.checkpoint.path
            try:
                if point.mask is not None:
                    path = _outside_path(data.checkpoint, results.directory, point.name)
                    path.parent.mkdir(exist_ok=True)
                    if not (path / MANIFEST_FILE).is_file():
                        _convert(data, path, point.mask, point.compensation)
                score = Score(evaluator.score(path, results.directory / "outside" / name))
            except S4ConvertError as error:
                if point.mask is None or isinstance(error, StorageError):
                    raise  # that is no fault of the point
                _log.warning("%s, %s: failed: %s", "; ".join(map(str, point.settings)), point.compensation, error)
                score = Score(None, str(error))
            results.keep_score(name, point.name, score)
            if point.mask is not None and not options.keep:
                shutil.rmtree(path, ignore_errors=True)
            bar.update(1)


def _outside_path(checkpoint: Checkpoint, directory: Path, point: str) -> Path:
    """Where a point is written for an outside evaluator: stock LLaVA goes by the name, so it begins with IN's."""
    return directory / "checkpoints" / f"{checkpoint.known_as.absolute().name}-{point}"


def _is_to_score(score: Score | None, options: SweepOptions) -> bool:
    return score is None or (score.failure is not None and options.retry_failed)


def _is_to_run(result: Result | None, options: SweepOptions) -> bool:
    return result is None or (result.failure is not None and options.retry_failed)


def _written(results: Results, directory: Path, best_by: str | None) -> Swept:
    """Write the summary and the plots of *results*."""
    summary = summarise(results)
    swept = Swept(summary, directory, best_by)
    plots: tuple[str, ...] = ()
    if can_plot():
        plots = plot(summary, directory)
    else:
        _log.info(HOW_TO_GET_PLOTS)
    files: Mapping[str, Callable[[], str]] = {
        "summary.csv": summary.to_csv,
        "summary.json": lambda: as_json_text(summary),
        "summary.md": lambda: summary.to_markdown(plots),
    }
    for name, content in files.items():
        write_output(directory / name, content(), force=True)
    return swept
