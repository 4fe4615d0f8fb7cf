"""A conversion made again from what its manifest says, and compared with it file by file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..calibration.samples import Paths, as_paths, read_samples
from ..calibration.statistics import Statistics
from ..checkpoint import MANIFEST_FILE, Checkpoint
from ..compensation import MODES
from ..disk import sha256_of
from ..errors import UsageError, VerificationError, reading, shown, text_of
from ..hub.names import checkpoint_name
from ..output.manifest import StatedConversion, read_conversion
from ..output.origin import files_of, taken_of
from ..progress import byte_bar
from ..rewrite.staging import open_staging
from ..rewrite.writer import disk_flusher
from ..sources import locate_checkpoint
from ..version import versions
from .convert import ConvertOptions, PlannedConversion, prepare, stage_and_check


@dataclass(frozen=True)
class Reproduction:
    """The *files* that were made again byte for byte, and what is not as it was when they were made first.

    *differences* maps the name of a version or a setting to what it was and what it is.
    """

    files: tuple[str, ...]
    differences: Mapping[str, tuple[Any, Any]]

    def to_json(self) -> dict[str, Any]:
        """The outcome for a script to read."""
        changed = {name: {"then": then, "now": now} for name, (then, now) in self.differences.items()}
        return {"identical": list(self.files), "differences": changed}

    def to_text(self) -> str:
        """The outcome for a person to read."""
        lines = [f"{name}  identical" for name in self.files]
        if self.differences:
            lines.append(f"not as it was then: {_in_words(self.differences)}")
        return text_of([*lines, f"verdict: OK, all {len(self.files)} files are made again byte for byte"])


def reproduce(
    converted: Path | str,
    source: Path | str | None = None,
    *,
    calibration: Paths | None = None,
    images: Paths | None = None,
    statistics: Path | str | None = None,
    vision_tower: Path | str | None = None,
    jobs: int | None = None,
    progress: bool = False,
) -> Reproduction:
    """Convert *source* anew as *converted*'s manifest says, and compare every file but the model card by its sha256.

    Both are directories, or ``org/name[@revision]`` on the Hub; *source* may be left out where the manifest names one
    on the Hub. A compensation that was fitted to data needs the same data: *calibration* with the directory *images*,
    or the *statistics* that were kept of it; and where one was given for the images of an original LLaVA, the same
    *vision_tower*. The work is done in a hidden directory beside *converted*, or in the
    working directory for a name on the Hub; it takes as much space, and is removed.

    Raises:
        VerificationError: a file of *converted* is not what its manifest says, or comes out otherwise.
        UsageError: there is no manifest, or the source or the data are missing or others.
        S4ConvertError: as :func:`~s4convert.jobs.convert.convert` says.
    """
    directory, repository = locate_checkpoint(converted, progress=progress)
    made = Checkpoint.open(directory, repository)
    stated = read_conversion(made)
    if stated is None:
        raise UsageError(f"{converted}: has no {MANIFEST_FILE} that says how it was made")
    if source is None:
        if checkpoint_name(stated.source) is None:
            raise UsageError(f"{converted}: was made from {shown(stated.source)}; say with `source` where that is")
        source = stated.source
    options = ConvertOptions(
        **_settings(stated, calibration, images, statistics),
        vision_tower=vision_tower,
        shard_size=stated.shard_bytes,
        allow_converted=True,
        allow_name=True,
        card=bool(stated.card),
        check_behaviour=False,
        jobs=jobs,
        progress=progress,
    )
    place = directory.resolve() if repository is None else Path.cwd() / Path(repository.repo_id).name
    planned = prepare(source, place, stated.mask, options)
    if planned.checkpoint.fingerprint != stated.fingerprint:
        raise UsageError(
            f"{planned.checkpoint.known_as}: is another model than {converted} was made from, as the fingerprint "
            "tells; give the original"
        )
    _check_files(made, stated, progress=progress)
    return _compare(planned, made, stated)


def _settings(
    stated: StatedConversion, calibration: Paths | None, images: Paths | None, statistics: Path | str | None
) -> dict[str, Any]:
    """The options of *stated*'s compensation, with the data that it was fitted to.

    Raises:
        UsageError: the data is missing, not needed, or other data.
        CalibrationError, StorageError: it cannot be read.
    """
    mode, fitted_to = stated.compensation, stated.calibration or {}
    if not MODES[mode].needs_moments:
        if calibration is not None or statistics is not None:
            raise UsageError(f"compensation {mode} is fitted to no data; leave `calibration` and `statistics` out")
        return {"compensation": mode}
    files = files_of(fitted_to)
    if not files:
        raise UsageError(f"compensation {mode} was fitted to moments whose data {MANIFEST_FILE} does not name")
    names = ", ".join(shown(file["file"]) for file in files)
    if calibration is None and statistics is None:
        raise UsageError(f"compensation {mode} was fitted to {names}; give it with `calibration`, or its `statistics`")
    if stated.training is not None and calibration is None:
        raise UsageError(f"compensation {mode} was trained on {names}; give it with `calibration`")
    settings: dict[str, Any] = {} if stated.training is None else stated.training.to_json()
    settings |= {"compensation": mode, "image_weight": fitted_to.get("image_weight")}
    given: list[Path | str] = []
    found: list[str] = []
    if statistics is not None:
        settings |= {"statistics": statistics, "foreign_statistics": True, "device": fitted_to.get("fit_device")}
        given, found = [statistics], [file["sha256"] for file in files_of(Statistics(Path(statistics)).describe())]
    elif calibration is not None:
        settings |= {"calibration": calibration, "images": images}
        settings |= {name: fitted_to.get(name) for name in ("holdout", "device")}
        settings |= taken_of(files)
        given = [*as_paths(calibration)]
        found = [file.sha256 for file in read_samples(calibration, images).files]
    if found != [file["sha256"] for file in files]:
        raise UsageError(f"{', '.join(map(str, given))}: is not the data of the fit, {names}, as its sha256 tells")
    return settings


def _check_files(made: Checkpoint, stated: StatedConversion, *, progress: bool) -> None:
    """Raise VerificationError where a file of *made* is not what its manifest says."""
    total = sum(size for size, _ in stated.files.values())
    with byte_bar("check", total, shown=progress) as bar:
        for name, (_, sha256) in stated.files.items():
            path = made.path / name
            with reading(path):
                if sha256_of(path, bar.update) != sha256:
                    raise VerificationError(f"{path}: is not what {MANIFEST_FILE} says of it; convert again")


def _compare(planned: PlannedConversion, made: Checkpoint, stated: StatedConversion) -> Reproduction:
    """Convert anew without a commit; VerificationError where a file comes out otherwise."""
    with open_staging(planned.out) as staging, disk_flusher() as flusher:
        anew = stage_and_check(planned, staging, flusher)
    differences = {
        **_differences(stated.versions, versions()),
        **_differences(stated.calibration or {}, anew.calibration or {}),
    }
    then = {name: digest for name, digest in stated.files.items() if name not in stated.card}
    now = anew.report.structure.digests
    differing = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
    if differing:
        why = f"not as it was then: {_in_words(differences)}" if differences else "all versions are those of then"
        raise VerificationError(
            f"{made.known_as}: {len(differing)} of {len(then)} files are not made again byte for byte, the first is "
            f"{differing[0]}; {why}"
        )
    return Reproduction(tuple(then), differences)


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {name: (then[name], now.get(name)) for name in then if then[name] != now.get(name)}


def _in_words(differences: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {then}, now {now}" for name, (then, now) in differences.items())
