"""``s4convert.json``: what OUT says of itself, so that anyone can check it and nobody converts it twice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, TypeAlias

from ..checkpoint import MANIFEST_FILE, Checkpoint
from ..compensation import MODES
from ..disk import write_synced
from ..errors import CheckpointError, VerificationError, shown
from ..mask import HeadMask
from ..mask.formats.json_masks import read_native
from ..rewrite.plan import Plan
from ..verify.report import Report
from ..version import __version__, versions
from .card import CARD_FILES
from .origin import Origin

MANIFEST_FORMAT = "s4convert/1"


# Of a file: (size in bytes, sha256).
Digest: TypeAlias = "tuple[int, str]"


def manifest(
    checkpoint: Checkpoint, plan: Plan, report: Report, origin: Origin, card: Mapping[str, Digest]
) -> dict[str, Any]:
    """The manifest of a conversion, with the files of its *card*.

    It holds no time and no path, so the same inputs and libraries give the same bytes.
    """
    fitted = plan.fits.to_json()
    files = dict(sorted((dict(report.structure.digests) | dict(card)).items()))
    return {
        "format": MANIFEST_FORMAT,
        "tool_version": __version__,
        "versions": versions(),
        "source": checkpoint.source,
        "fingerprint": checkpoint.fingerprint,
        "mask": plan.mask.to_json(),
        "mask_file": None if plan.mask.file is None else plan.mask.file.to_json(),
        "compensation": plan.fits.mode,
        **({"fitted": fitted} if fitted else {}),
        "calibration": None if origin.calibration is None else dict(origin.calibration),
        "shard_bytes": origin.shard_bytes,
        "plan": {"edits": len(plan.edits), "rewritten_bytes": plan.num_bytes},
        "verification": report.to_json(),
        "card": sorted(CARD_FILES) if card else [],
        "files": {name: {"size": size, "sha256": sha256} for name, (size, sha256) in files.items()},
    }


def write_manifest(content: dict[str, Any], directory: Path) -> None:
    """Write *content* into *directory* and bring it to the disk."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_synced(directory / MANIFEST_FILE, text.encode("ascii"))


@dataclass(frozen=True)
class StatedConversion:
    """What a manifest says of its checkpoint; *files* maps names to their (size, sha256).

    *card* are the names of those that are the model card, and not the original's.
    *factors* are those of each head in the layers where a compensation was fitted that consists of factors.
    *source* and *fingerprint* name the original, *versions* and *calibration* what the result depends on otherwise,
    *shard_bytes* is the bound of shards that were built.
    """

    mask: HeadMask
    compensation: str
    factors: Mapping[int, tuple[float, ...]]
    files: Mapping[str, Digest]
    card: frozenset[str]
    source: str
    fingerprint: str
    versions: Mapping[str, Any]
    calibration: Mapping[str, Any] | None
    shard_bytes: int | None


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
    factors = _read_factors(content, mask, where)
    return StatedConversion(
        mask,
        mode,
        factors,
        files,
        frozenset(card),
        source=_of_kind(content, "source", str, where, ""),
        fingerprint=_of_kind(content, "fingerprint", str, where, ""),
        versions=_of_kind(content, "versions", dict, where, {}),
        calibration=_of_kind(content, "calibration", dict, where, None),
        shard_bytes=_of_kind(content, "shard_bytes", int, where, None),
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
        return {name: (entry["size"], entry["sha256"]) for name, entry in content["files"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{where}: its list of files is malformed; convert the original again") from error


def _read_factors(content: Mapping[str, Any], mask: HeadMask, where: Path) -> dict[int, tuple[float, ...]]:
    """The factors of the layers that have some.

    Raises:
        CheckpointError: they are not finite numbers, one for each head, of layers that lose heads.
    """
    factors: dict[int, tuple[float, ...]] = {}
    try:
        for layer, fit in content.get("fitted", {}).items():
            if fit["factors"] is not None:
                factors[int(layer)] = tuple(float(factor) for factor in fit["factors"])
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise CheckpointError(f"{where}: its fitted factors are malformed; convert the original again") from error
    for layer, of_heads in factors.items():
        if layer not in mask.touched_layers or len(of_heads) != mask.num_heads or not all(map(isfinite, of_heads)):
            raise CheckpointError(f"{where}: its fitted factors do not fit its mask; convert the original again")
    return factors


def check_digests(stated: StatedConversion, converted: Checkpoint, report: Report) -> None:
    """Raise VerificationError unless the manifest's list of files is what the structure check saw."""
    for name in sorted(set(stated.files) | set(report.structure.digests)):
        if stated.files.get(name) != report.structure.digests.get(name):
            raise VerificationError(f"{converted.path / name}: is not what {MANIFEST_FILE} says of it; convert again")
