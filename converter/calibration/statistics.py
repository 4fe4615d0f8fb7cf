"""Statistics on disk: the moments of every layer, so that a second mask or mode needs no second pass over the data.

A directory with ``statistics.json`` and a safetensors file per layer, which holds the lower triangle of E[x x^T] in
float64; text and image tokens are separate, so that another image weight needs no second pass either.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import strict_json
from ..checkpoint import Checkpoint
from ..checkpoint.dtypes import Float64Array
from ..checkpoint.safetensors_header import read_header
from ..choices import HOLDOUT, IMAGE_WEIGHT
from ..disk import UNFINISHED, read_file, sync, write_output
from ..errors import CalibrationError, CheckpointError, CompensationError, StorageError, UsageError, reading, shown
from ..progress import layer_bar
from ..version import __version__
from .inputs import Inputs, describe, make_inputs
from .moments import MODALITIES, LayerMoments, Moments, PartedMoments, SplitMoments, mix_moments
from .samples import Paths, Samples, read_samples
from .stream import stream_layers

STATISTICS_FORMAT = "s4convert-statistics/1"
DESCRIPTION_FILE = "statistics.json"
LAYER_FILE = re.compile(r"layer-([0-9]{5})\.safetensors")
_SIZES = ("num_layers", "num_heads", "num_kv_heads", "head_dim", "hidden_size")
_BLOCK = 256  # rows of a matrix at a time


@dataclass(frozen=True)
class CalibrationData:
    """Files of questions or texts, the directories of their *images*, and how to use them.

    They are read as :func:`read_samples` says. Fits do not use the share *holdout* of the samples, spread evenly, but
    are judged by it. *device* runs the model.
    """

    files: Paths
    images: Paths | None = None
    num_samples: int | None = None
    holdout: float = HOLDOUT
    device: str = "cpu"
    window: int | None = None

    def check(self) -> Samples:
        """The samples; UsageError, CalibrationError or StorageError where the data is wrong, before any work."""
        if not 0 <= self.holdout < 1:
            raise UsageError(f"`holdout` {self.holdout}: give a share from 0 to below 1")
        return self.read

    @cached_property
    def read(self) -> Samples:
        """The samples, read once; errors as of :func:`read_samples`."""
        return read_samples(self.files, self.images, self.num_samples, self.window)

    def inputs(self, checkpoint: Checkpoint, *, tower: Path | None = None, progress: bool = False) -> list[Inputs]:
        """What :func:`make_inputs` makes of them."""
        return make_inputs(checkpoint, self.read.samples, tower=tower, device=self.device, progress=progress)


def held_out_of(num_samples: int, holdout: float) -> list[bool]:
    """For each of *num_samples* samples, whether it is one of the share *holdout* that is held out, spread evenly."""
    return [int((number + 1) * holdout) > int(number * holdout) for number in range(num_samples)]


@dataclass(frozen=True)
class Statistics:
    """The moments in *directory*, read layer by layer; fits to them are computed on *device*.

    Raises:
        UsageError: *image_weight*, the share of image tokens in the moments, is not from 0 to 1.
    """

    directory: Path
    image_weight: float = IMAGE_WEIGHT
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not 0 <= self.image_weight <= 1:
            raise UsageError(f"`image_weight` {self.image_weight}: give a share from 0 to 1")

    def __call__(self, layer: int) -> LayerMoments:
        """The moments of *layer*; CalibrationError or StorageError where they cannot be read."""
        path = self._path(layer)
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            parts = {
                part: {modality: _moments(tensors, f"{part}.{modality}", self.device) for modality in MODALITIES}
                for part in ("train", "held_out")
            }
            train, held_out = (self.mixed(of_part) for of_part in parts.values())
        except (OSError, SafetensorError) as error:
            raise StorageError(f"{path}: cannot be read ({error}); gather the statistics again") from error
        except (KeyError, TypeError, ValueError, IndexError, CompensationError) as error:
            raise CalibrationError(f"{path}: is malformed ({shown(error)}); gather the statistics again") from error
        if train is None:
            raise CalibrationError(f"{path}: has no tokens to fit with; gather the statistics again")
        return LayerMoments(train, held_out)

    def describe(self) -> dict[str, Any]:
        """The data that was run, on which model, and how it is used here; CalibrationError where that is not said."""
        stated = read_description(self.directory)
        data = stated.get("calibration")
        used = {"fingerprint": stated.get("fingerprint"), "image_weight": self.image_weight, "fit_device": self.device}
        return {**(data if isinstance(data, dict) else {}), **used}

    def check(self, checkpoint: Checkpoint, layers: Collection[int], *, foreign: bool = False) -> None:
        """Raise CalibrationError where the statistics are not of *checkpoint*, or lack one of *layers*.

        With *foreign*, those of another model of the same geometry pass.
        """
        stated, expected = read_description(self.directory), _description(checkpoint)
        for name in _SIZES:
            if stated.get(name) != expected[name]:
                raise CalibrationError(
                    f"{self.directory / DESCRIPTION_FILE}: {name} is {shown(stated.get(name))}, but this "
                    f"checkpoint's is {expected[name]}; gather statistics of this one"
                )
        if not foreign and stated.get("fingerprint") != checkpoint.fingerprint:
            raise CalibrationError(
                f"{self.directory}: was gathered on another model ({shown(stated.get('source'))}), as the fingerprint "
                "tells; gather statistics of this one, or insist with `foreign_statistics=True`"
            )
        for layer in layers:
            if not self._path(layer).is_file():
                raise CalibrationError(f"{self.directory}: has nothing of layer {layer}; gather the statistics again")
            _check_sizes(self._path(layer), checkpoint.geometry.num_columns("o"))

    def check_new(self) -> None:
        """Raise UsageError where the directory holds more than the files of an unfinished :meth:`gather`."""
        if not self.directory.exists():
            return
        with reading(self.directory):
            names = [path.name for path in self.directory.iterdir()] if self.directory.is_dir() else ["a file"]
        if not all(LAYER_FILE.fullmatch(name) or name.startswith(UNFINISHED) for name in names):
            raise UsageError(f"{self.directory}: exists and is no empty directory; choose another for the statistics")

    def gather(
        self,
        checkpoint: Checkpoint,
        data: CalibrationData,
        layers: Collection[int],
        *,
        tower: Path | None = None,
        progress: bool = False,
    ) -> None:
        """Run *data* through *checkpoint* and save the moments of *layers*; the description is written last.

        *tower* is the directory of the vision tower, as :func:`make_inputs` takes it.

        Raises:
            S4ConvertError: as in :func:`read_samples`, :func:`make_inputs` and :func:`stream_layers`.
        """
        inputs = data.inputs(checkpoint, tower=tower, progress=progress)
        how = data.holdout, data.device
        PassingMoments(checkpoint, inputs, layers, *how, kept=self, whole=True, progress=progress).finish()

    def mixed(self, by_modality: Mapping[str, Moments | None]) -> Moments | None:
        """The moments of text and image tokens in one; None where there are neither."""
        text, image = (by_modality[modality] for modality in MODALITIES)
        return None if text is None and image is None else mix_moments(text, image, image_weight=self.image_weight)

    def _path(self, layer: int) -> Path:
        return self.directory / f"layer-{layer:05}.safetensors"

    def save(self, layer: int, parts: PartedMoments) -> None:
        """Write the moments of *layer*."""
        from safetensors.numpy import save

        tensors: dict[str, npt.NDArray[Any]] = {}
        for part, by_modality in parts.items():
            for modality, moments in by_modality.items():
                if moments is not None:
                    tensors[f"{part}.{modality}.second"] = _lower_triangle(moments.second)
                    tensors[f"{part}.{modality}.mean"] = moments.mean
                    tensors[f"{part}.{modality}.num_tokens"] = np.array([moments.num_tokens], np.int64)
        # Not save_file: its files are for their owner alone, and where it is killed, it leaves one of a random name.
        self._path(layer).write_bytes(save(tensors))


class PassingMoments:
    """The moments of *layers* while the data streams through *checkpoint*: each layer's are at hand once, in order.

    Of *inputs*, which are overwritten, the share *holdout* is held out; the model and the fits run on *device*. What is
    to be read again goes into the directory of *kept*: all moments where it is to be *whole*, and otherwise what a
    check of the fits needs, those of the other samples, mixed.

    Raises:
        StorageError: the directory cannot be made.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        inputs: list[Inputs],
        layers: Collection[int],
        holdout: float,
        device: str,
        *,
        kept: Statistics,
        whole: bool,
        progress: bool = False,
    ) -> None:
        self.kept, self._whole, self._checkpoint = kept, whole, checkpoint
        self._calibration = {**describe(inputs), "holdout": holdout, "device": device.partition(":")[0]}
        with self._writing():
            kept.directory.mkdir(exist_ok=True)
            for left in kept.directory.glob(f"{UNFINISHED}*"):  # of one that was killed
                left.unlink()
        held_out = held_out_of(len(inputs), holdout)
        self._passing = self._stream(inputs, sorted(layers), held_out, device, progress=progress)

    def __call__(self, layer: int) -> LayerMoments:
        """The moments of *layer*, which must be behind those asked for before.

        Raises:
            S4ConvertError: as in :func:`stream_layers`.
        """
        parts = next(parts for passing, parts in self._passing if passing == layer)
        train, held_out = (self.kept.mixed(of_part) for of_part in parts.values())
        assert train is not None, "a share below 1 is held out"
        if not self._whole:
            with self._writing():
                self.kept.save(layer, {"train": {"text": train}})
        return LayerMoments(train, held_out)

    def finish(self) -> Statistics:
        """Let the rest pass; returns what was kept."""
        for _ in self._passing:
            pass
        directory = self.kept.directory
        description = _description(self._checkpoint) | {"calibration": self._calibration}
        with self._writing():
            if self._whole:  # the description says that all layers are there, so they are on the disk before it
                for path in (*directory.iterdir(), directory, directory.absolute().parent):
                    sync(path)
            write_output(directory / DESCRIPTION_FILE, json.dumps(description, indent=1) + "\n", force=False)
        return self.kept

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = self.kept.directory
            raise StorageError(f"{where}: cannot be written: {error.strerror or error}") from error

    def _stream(
        self, inputs: list[Inputs], layers: list[int], held_out: list[bool], device: str, *, progress: bool
    ) -> Iterator[tuple[int, PartedMoments]]:
        with layer_bar("calibrate", self._checkpoint.geometry.num_layers, shown=progress) as bar:
            for seen in stream_layers(self._checkpoint, inputs, lambda _: SplitMoments(held_out), device=device):
                bar.update(1)
                if seen.layer in layers:
                    parts = seen.observer.take()
                    if self._whole:
                        with self._writing():
                            self.kept.save(seen.layer, parts)
                    yield seen.layer, parts
                    del parts  # before the next layer's are there
                if seen.layer == layers[-1]:
                    return


def read_description(directory: Path) -> Mapping[str, Any]:
    """The description of the statistics in *directory*.

    Raises:
        CalibrationError: it is missing or malformed.
        StorageError: it cannot be read.
    """
    path = directory / DESCRIPTION_FILE
    if not path.is_file():
        lack = f"has no {DESCRIPTION_FILE}, so it holds no statistics" if directory.is_dir() else "no such directory"
        raise CalibrationError(f"{directory}: {lack}; give a directory that `save_statistics` made")
    try:
        stated = strict_json.parse(read_file(path, CalibrationError))
    except ValueError as error:
        raise CalibrationError(f"{path}: is not JSON ({error}); gather the statistics again") from error
    if not isinstance(stated, dict) or stated.get("format") != STATISTICS_FORMAT:
        found = stated.get("format") if isinstance(stated, dict) else None
        raise CalibrationError(
            f"{path}: format is {shown(found)}, but {STATISTICS_FORMAT!r} is needed; gather them again"
        )
    for name in _SIZES:
        if not isinstance(stated.get(name), int):
            raise CalibrationError(f"{path}: {name} is {shown(stated.get(name))}, not a number; gather them again")
    return stated


def _check_sizes(path: Path, columns: int) -> None:
    """Refuse the moments of a layer in the file *path* where they are not of *columns*, before memory is asked for."""
    shapes = {"second": (columns * (columns + 1) // 2,), "mean": (columns,), "num_tokens": (1,)}
    try:
        entries = read_header(path).entries
    except CheckpointError as error:
        raise CalibrationError(str(error)) from error
    for entry in entries:
        shape, dtype = shapes.get(entry.name.rpartition(".")[2]), "I64" if entry.name.endswith("num_tokens") else "F64"
        if (entry.shape, entry.dtype) != (shape, dtype):
            raise CalibrationError(
                f"{path}: is malformed ({shown(entry.name)} is {entry.dtype} {shown(list(entry.shape))}, where "
                f"moments of {columns} columns are due); gather the statistics again"
            )


def scratch_bytes(checkpoint: Checkpoint, num_layers: int, *, whole: bool = True) -> int:
    """The most bytes that the moments of *num_layers* layers take on the disk, or what a check needs of them."""
    columns = checkpoint.geometry.num_columns("o")
    return num_layers * (2 * len(MODALITIES) if whole else 1) * 8 * (columns * (columns + 1) // 2 + columns)


def _description(checkpoint: Checkpoint) -> dict[str, Any]:
    sizes = {name: getattr(checkpoint.geometry, name) for name in _SIZES}
    return {
        "format": STATISTICS_FORMAT,
        "tool_version": __version__,
        "source": checkpoint.source,
        "fingerprint": checkpoint.fingerprint,
        **sizes,
    }


def _moments(tensors: Mapping[str, npt.NDArray[Any]], name: str, device: str) -> Moments | None:
    if f"{name}.second" not in tensors:
        return None
    mean: Float64Array = tensors[f"{name}.mean"]
    triangle, (num_tokens,) = tensors[f"{name}.second"], tensors[f"{name}.num_tokens"]
    if mean.ndim != 1 or triangle.shape != (len(mean) * (len(mean) + 1) // 2,):
        raise ValueError(f"{name}.second has shape {list(triangle.shape)}, {name}.mean {list(mean.shape)}")
    import torch

    return Moments(torch.from_numpy(_symmetric_matrix(triangle, len(mean))).to(device), mean, int(num_tokens))


# At the size of a 7B model, numpy's tril_indices takes 0.5 GB and ten times as long as the loops below.
def _lower_triangle(matrix: Float64Array) -> Float64Array:
    """The rows of *matrix* [n, n] up to and with the diagonal, flat [n (n + 1) / 2]."""
    return np.concatenate([row[: number + 1] for number, row in enumerate(matrix)])


def _symmetric_matrix(triangle: Float64Array, size: int) -> Float64Array:
    """The matrix [size, size] whose lower triangle is *triangle*."""
    matrix = np.zeros((size, size))
    begin = 0
    for row in range(size):
        matrix[row, : row + 1] = triangle[begin : begin + row + 1]
        begin += row + 1
    for first in range(0, size, _BLOCK):
        on_diagonal = matrix[first : first + _BLOCK, first : first + _BLOCK]
        on_diagonal += np.tril(on_diagonal, -1).T
        matrix[first : first + _BLOCK, first + _BLOCK :] = matrix[first + _BLOCK :, first : first + _BLOCK].T
    return matrix
