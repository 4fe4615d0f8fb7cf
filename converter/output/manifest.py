"""``s4convert.json``: what OUT says of itself, so that anyone can check it and nobody converts it twice."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Any, TypeAlias

from ..checkpoint import MANIFEST_FILE, Checkpoint
from ..compensation import MODES
from ..compensation.figures import Choice
from ..compensation.modes import FITTED_MODES
from ..compensation.training import TrainingSettings
from ..disk import write_synced
from ..errors import CheckpointError, UsageError, VerificationError, shown
from ..mask import HeadMask
from ..mask.formats.json_masks import read_native
from ..rewrite.plan import Plan
from ..verify.report import Report
from ..version import __version__, versions
from .card import CARD_FILES
from .origin import Origin

MANIFEST_FORMAT = "s4convert/1"
TOLERATED_ERROR = 0.02  # by which what a fit leaves of E may grow from one machine to another

_SHA256 = re.compile("[0-9a-f]{64}")

# Of a file: (size in bytes, sha256).
Digest: TypeAlias = "tuple[int, str]"


def manifest(
    checkpoint: Checkpoint,
    plan: Plan,
    report: Report,
    origin: Origin,
    card: Mapping[str, Digest],
    evaluation: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The manifest of a conversion, with the files of its *card* and the figures of an *evaluation*, if any.

    ``manifest.schema.json`` says what is in it. It holds no time and no path, and the command only beside a card that
    names it as well; so the same inputs and libraries give the same bytes.
    """
    fitted = plan.fits.to_json()
    files = dict(sorted((dict(report.structure.digests) | dict(card)).items()))
    return {
        "format": MANIFEST_FORMAT,
        "tool_version": __version__,
        "versions": versions(),
        **({"command": origin.made_by} if card else {}),
        "source": checkpoint.source,
        "fingerprint": checkpoint.fingerprint,
        "mask": plan.mask.to_json(),
        "mask_file": None if plan.mask.file is None else plan.mask.file.to_json(),
        "compensation": plan.fits.mode,
        **({"fitted": fitted} if fitted else {}),
        **({} if plan.fits.training is None else {"training": plan.fits.training.to_json()}),
        "calibration": None if origin.calibration is None else dict(origin.calibration),
        "shard_bytes": origin.shard_bytes,
        "plan": {"edits": len(plan.edits), "rewritten_bytes": plan.num_bytes},
        "verification": report.to_json(),
        **({} if report.advice is None else {"advice": report.advice}),
        **({} if evaluation is None else {"evaluation": dict(evaluation)}),
        "card": sorted(CARD_FILES) if card else [],
        "files": {name: {"size": size, "sha256": sha256} for name, (size, sha256) in files.items()},
    }


def write_manifest(content: dict[str, Any], directory: Path) -> Digest:
    """Write *content* into *directory* and bring it to the disk; the (size, sha256) of what was written."""
    text = (json.dumps(content, indent=1, allow_nan=False) + "\n").encode("ascii")
    write_synced(directory / MANIFEST_FILE, text)
    return len(text), sha256(text).hexdigest()


@dataclass(frozen=True)
class StatedConversion:
    """What a manifest says of its checkpoint; *files* maps names to their (size, sha256).

    *card* are the names of those that are the model card, and not the original's. *source* and *fingerprint* name the
    original, *versions* and *calibration* what the result depends on otherwise, *shard_bytes* is the bound of shards
    that were built. *choices* are the modes of layers where a compensation was fitted, *factors* those of each head in
    the layers that have some. *training* are the settings of a training, None where there was none, and *trains* the
    letters of the projections that it replaced, none where the refit stayed. On the *probe*, which is (what it is in
    words, what it comes to), *errors_left* are what the compensation left of E.
    """

    mask: HeadMask
    compensation: str
    choices: Mapping[int, Choice]
    factors: Mapping[int, tuple[float, ...]]
    training: TrainingSettings | None
    trains: str
    files: Mapping[str, Digest]
    card: frozenset[str]
    source: str
    fingerprint: str
    versions: Mapping[str, Any]
    calibration: Mapping[str, Any] | None
    shard_bytes: int | None
    probe: Any
    errors_left: Mapping[int, float]


def read_conversion(converted: Checkpoint) -> StatedConversion | None:
    """What *converted*'s manifest states, or None where it has no manifest.

    Raises:
        CheckpointError: the manifest is of another version, or malformed.
        MaskError: the mask in it does not fit the checkpoint.
    """
    content = converted.manifest
    if content is None:
        return None
    where = converted.path / MANIFEST_FILE
    files = read_files(content, where)
    mode = content.get("compensation")
    if not isinstance(mode, str) or mode not in MODES:
        raise CheckpointError(f"{where}: compensation {shown(mode)} is not known to this version")
    mask = read_native(content.get("mask"), converted.geometry)
    card = content.get("card", [])
    if not isinstance(card, list) or any(
        name not in sorted(CARD_FILES) for name in card
    ):  # nothing else may go uncompared
        raise CheckpointError(f"{where}: card is {shown(card)}, not files of a model card; convert the original again")
    choices, factors = _read_fits(content, mask, where)
    training, trains = _read_training(content, mode, where)
    probe, errors_left = _read_probe(content, where)
    return StatedConversion(
        mask,
        mode,
        choices,
        factors,
        training,
        trains,
        files,
        frozenset(card),
        source=_of_kind(content, "source", str, where, ""),
        fingerprint=_of_kind(content, "fingerprint", str, where, ""),
        versions=_of_kind(content, "versions", dict, where, {}),
        calibration=_of_kind(content, "calibration", dict, where, None),
        shard_bytes=_of_kind(content, "shard_bytes", int, where, None),
        probe=probe,
        errors_left=errors_left,
    )


def _of_kind(content: Mapping[str, Any], name: str, kind: type, where: Path, default: Any) -> Any:
    """The field *name*; *default* where it is missing or null. CheckpointError where it is not of *kind*."""
    value = content.get(name)
    if value is None:
        return default
    if not isinstance(value, kind):
        raise CheckpointError(f"{where}: {name} is {shown(value)}; convert the original again")
    return value


def read_files(content: Mapping[str, Any], where: Path) -> dict[str, Digest]:
    """The (size, sha256) of every file by its name, as *content*, read from the manifest *where*, states them.

    Raises:
        CheckpointError: the manifest is of another version, or its list of files is malformed.
    """
    if content.get("format") != MANIFEST_FORMAT:
        raise CheckpointError(
            f"{where}: format is {shown(content.get('format'))}; this version reads {MANIFEST_FORMAT!r}"
        )
    try:
        files = {name: (entry["size"], entry["sha256"]) for name, entry in content["files"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{where}: its list of files is malformed; convert the original again") from error
    for name, (size, digest) in files.items():
        is_digest = isinstance(digest, str) and _SHA256.fullmatch(digest)
        if not _is_inside(name) or not is_digest or type(size) is not int or size < 0:
            raise CheckpointError(
                f"{where}: its list of files has {shown(name)}, of size {shown(size)} and sha256 {shown(digest)}, "
                "which no conversion writes; convert the original again"
            )
    return files


def _is_inside(name: str) -> bool:
    """Whether *name* is of a file in the directory, as its manifest names them: nothing outside of it may be read."""
    return not {"", ".", ".."} & set(name.split("/")) and "\0" not in name


def _read_fits(
    content: Mapping[str, Any], mask: HeadMask, where: Path
) -> tuple[dict[int, Choice], dict[int, tuple[float, ...]]]:
    """(the modes of the layers that were fitted, the factors of those that have some).

    Raises:
        CheckpointError: they are no modes, or not finite numbers, one for each head, of layers that lose heads.
    """
    choices: dict[int, Choice] = {}
    factors: dict[int, tuple[float, ...]] = {}
    try:
        for layer, fit in content.get("fitted", {}).items():
            choices[int(layer)] = Choice(fit["mode"], fit["damping"])
            if fit["factors"] is not None:
                factors[int(layer)] = tuple(float(factor) for factor in fit["factors"])
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise CheckpointError(f"{where}: its fitted factors are malformed; convert the original again") from error
    for of_heads in factors.values():
        if len(of_heads) != mask.num_heads or not all(map(isfinite, of_heads)):
            raise CheckpointError(f"{where}: its fitted factors do not fit its mask; convert the original again")
    for layer, choice in choices.items():
        if layer not in mask.touched_layers or choice.mode not in (*FITTED_MODES, "distill"):
            raise CheckpointError(f"{where}: its fits do not fit its mask; convert the original again")
    return choices, factors


def _read_training(content: Mapping[str, Any], mode: str, where: Path) -> tuple[TrainingSettings | None, str]:
    """(the settings of the training of a *mode* that trains, the projections that it replaced)."""
    if not MODES[mode].trained:
        return None, ""
    try:
        said = content["training"]
        settings = TrainingSettings(**{field.name: said[field.name] for field in fields(TrainingSettings)})
        return settings, settings.train if said["best_step"] else ""
    except (KeyError, TypeError, UsageError) as error:
        raise CheckpointError(f"{where}: its training is malformed; convert the original again") from error


def _read_probe(content: Mapping[str, Any], where: Path) -> tuple[Any, dict[int, float]]:
    """(the probe that the conversion was checked on, what the compensation of each layer left of E there)."""
    try:
        behaviour = content["verification"]["behaviour"] or {"probe": None, "data": None, "layers": []}
        layers = {row["layer"]: row.get("error_left") for row in behaviour["layers"]}
        errors_left = {int(layer): float(left) for layer, left in layers.items() if left is not None}
        return (behaviour["probe"], behaviour.get("data")), errors_left
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{where}: its verification is malformed; convert the original again") from error


def check_digests(stated: StatedConversion, converted: Checkpoint, digests: Mapping[str, Digest]) -> None:
    """Raise VerificationError unless the manifest's list of files is what was seen, their *digests* by name."""
    for name in sorted(set(stated.files) | set(digests)):
        if stated.files.get(name) != digests.get(name):
            raise VerificationError(
                f"{converted.path / name}: is not what {MANIFEST_FILE} says of it; convert again", cause="damaged"
            )


def check_unproven(stated: StatedConversion, converted: Checkpoint, report: Report) -> None:
    """Compare, on the probe, fits that were not checked against their data with what the manifest says of them.

    Any mix of pruned heads could stand in a layer, and where they have as many columns as the layer has rows, any
    weight. Such a one leaves another error than the fit did.

    Raises:
        VerificationError: a layer is further from the original than it was when it was converted.
    """
    if report.behaviour is None or (report.behaviour.probe, report.behaviour.data) != stated.probe:
        return
    for row in report.behaviour.layers:
        said = stated.errors_left.get(row.layer)
        if row.layer not in report.unproven_layers or said is None or row.error_left is None:
            continue
        if row.error_left > said * (1 + TOLERATED_ERROR):
            raise VerificationError(
                f"{converted.path}: layer {row.layer}: its compensation leaves {row.error_left:.4g} of the error of "
                f"none on the probe, where {MANIFEST_FILE} says {said:.4g}; convert again"
            )
