"""Distillation: q, k, v and o of kept heads are trained until the pruned model says what the original says.

From the least-squares refit on, Adam lowers KL(original || pruned) on calibration samples, over questions, answers and
plain text alike; every sample counts the same, or a page of text would outweigh hundreds of answers. The two models
share all weights but those that are trained. These are in float32, without the rows and columns of pruned heads, which
are zero throughout; the model computes with them rounded to the dtype that they are stored in, and gradients pass that
rounding by. Held-out samples judge: what is kept makes all of them better, and neither those of a file nor the answers
in it worse. Where there is no such thing, the refit stays.

The same inputs give the same bytes on the same machine with the same number of threads.
"""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..calibration.inputs import Inputs
from ..calibration.judges import Judges
from ..checkpoint import Checkpoint, StoredTensor
from ..checkpoint.torch_file import torch_dtype
from ..errors import CheckpointError, enough_memory
from ..mask import HeadMask
from ..model.decoder import full_float32
from ..model.divergence import Compared, Divergence, compare
from ..model.output_head import OutputHead
from ..model.resident import ResidentModel
from ..progress import step_bar
from .fitting import Fits, pruned_layer
from .training import Check, TrainedRows, Training, TrainingSettings

BATCH, BATCH_TOKENS = 4, 2560  # samples a step, at the least, and more of them up to so many tokens
CHECKS = 10  # times that a training is judged on the way
PATIENCE = 3  # checks without a better one in the second half, while the rate falls, and it ends
WARM_UP = 0.05  # of the steps, in which the rate rises
BETAS, EPSILON = (0.9, 0.999), 1e-8  # of Adam
SEED = 0  # of the order of the samples


def distill(
    checkpoint: Checkpoint,
    mask: HeadMask,
    refit: Fits,
    model: ResidentModel,
    pupils: Sequence[Inputs],
    judges: Sequence[Inputs],
    settings: TrainingSettings,
    scratch: Path,
    *,
    progress: bool = False,
) -> Fits:
    """Train *checkpoint* without *mask*'s heads by *settings*, from *refit* on; *model* is *checkpoint* and stays so.

    It is trained on *pupils* and judged on *judges*. The weights go into the directory *scratch*.

    Raises:
        CheckpointError: a trained weight is beyond the range of its stored dtype.
        OutOfMemoryError: the training takes too much memory.
    """
    with enough_memory("distillation"), _deterministic(), full_float32():
        maps = _trained_maps(checkpoint, mask, refit, settings.train, model.device)
        training = _train(checkpoint, model, maps, pupils, judges, settings, progress=progress)
        if not training.best_step:
            return replace(refit, mode="distill", training=training)
        layers: dict[int, dict[str, TrainedRows]] = {layer: {} for layer in mask.touched_layers}
        for trained in maps:
            for projection, first, count in trained.holds:
                if projection in settings.train:
                    path = scratch / f"trained-{trained.layer:05}-{projection}"
                    layers[trained.layer][projection] = _kept(trained, first, count, checkpoint, path)
    mixes = {layer: pruned_layer(checkpoint, mask, layer).mix(1.0) for layer in mask.touched_layers}
    choices = {layer: replace(refit.choice(layer), mode="distill", damping=None) for layer in mask.touched_layers}
    return Fits("distill", mixes, choices, trained=layers, trains=settings.train, training=training)


# --- what is trained --------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _TrainedMap:
    """A linear map of *layer*, of which the *master* rows (*axis* 0) or columns (1) are trained, in float32.

    *runs* are the stretches of the whole weight along the axis, in order, each as (whether it is trained, how long it
    is); the others are zero. *holds* are the projections in it, each with its first row and number of rows. *best* is
    the master as it is to be stored.
    """

    layer: int
    name: str
    tensor: StoredTensor
    axis: int
    runs: tuple[tuple[bool, int], ...]
    holds: tuple[tuple[str, int, int], ...]
    master: torch.Tensor
    best: torch.Tensor

    def keep(self) -> None:
        """Let what the master is now be the best."""
        self.best = self.master.detach().to(self.best.dtype)

    def whole(self) -> torch.Tensor:
        """The best weight with its zeros, in its stored dtype."""
        return _joined(self.best, self.runs, self.axis)


def _trained_maps(
    checkpoint: Checkpoint, mask: HeadMask, refit: Fits, train: str, device: str
) -> tuple[_TrainedMap, ...]:
    maps = []
    for layer in mask.touched_layers:
        for name, tensor in checkpoint.layers[layer].items():
            _, held = checkpoint.projections_in(tensor) or (layer, ())
            if not name.endswith(".weight") or not any(part.projection in train for part in held):
                continue
            is_output = held[0].projection == "o"
            kept = np.zeros(tensor.shape[1 if is_output else 0], np.bool_)
            for part in held:
                pruned = mask.pruned[layer]
                if part.projection in "kv":
                    pruned = mask.pruned_kv_heads(layer, checkpoint.geometry)
                heads = np.ones(kept.size if is_output else part.count, np.bool_)
                heads.reshape(-1, checkpoint.geometry.head_dim)[list(pruned)] = False
                kept[slice(None) if is_output else slice(part.first, part.first + part.count)] = heads
            weight = torch.from_numpy(checkpoint.read_rows(tensor)).to(device)
            if is_output:
                weight = refit.mixes[layer].apply_to_rows(weight).float()
            at = torch.from_numpy(np.flatnonzero(kept)).to(device)
            master = weight.index_select(int(is_output), at).contiguous().requires_grad_()
            maps.append(
                _TrainedMap(
                    layer,
                    name.removesuffix(".weight"),
                    tensor,
                    int(is_output),
                    _runs(kept),
                    tuple((part.projection, part.first, part.count) for part in held),
                    master,
                    master.detach().to(torch_dtype(tensor.dtype)),
                )
            )
    return tuple(maps)


def _runs(kept: np.ndarray[Any, np.dtype[np.bool_]]) -> tuple[tuple[bool, int], ...]:
    """The stretches of equal values, each as (value, length)."""
    starts = [0, *(np.flatnonzero(np.diff(kept)) + 1).tolist()]
    return tuple((bool(kept[first]), end - first) for first, end in zip(starts, [*starts[1:], kept.size], strict=True))


def _joined(master: torch.Tensor, runs: Sequence[tuple[bool, int]], axis: int) -> torch.Tensor:
    """The whole weight: stretches of *master* along *axis*, and zeros between them."""
    parts, at = [], 0
    for is_kept, length in runs:
        if is_kept:
            parts.append(master.narrow(axis, at, length))
            at += length
        else:
            shape = list(master.shape)
            shape[axis] = length
            parts.append(master.new_zeros(shape))
    return torch.cat(parts, axis)


class _Stored(torch.autograd.Function):
    """From a master to the whole weight that the model computes with, rounded as it will be stored."""

    @staticmethod
    def forward(ctx: Any, master: torch.Tensor, trained: _TrainedMap, dtype: torch.dtype) -> torch.Tensor:
        ctx.trained = trained
        return _joined(master.to(trained.best.dtype).to(dtype), trained.runs, trained.axis)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        parts, at = [], 0
        for is_kept, length in ctx.trained.runs:
            if is_kept:
                parts.append(gradients[0].narrow(ctx.trained.axis, at, length))
            at += length
        return torch.cat(parts, ctx.trained.axis).float(), None, None


class _Pupil(torch.nn.Module):
    """Stands in the place of the original's linear map; its bias is the original's."""

    def __init__(self, trained: _TrainedMap, bias: torch.Tensor | None) -> None:
        super().__init__()
        self._trained, self._bias = trained, bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        weight: torch.Tensor = _Stored.apply(  # type: ignore[no-untyped-call]
            self._trained.master, self._trained, inputs.dtype
        )
        return torch.nn.functional.linear(inputs, weight, self._bias)


def _kept(trained: _TrainedMap, first: int, count: int, checkpoint: Checkpoint, path: Path) -> TrainedRows:
    """Rows [first, first + count) of the best weight of *trained*, kept in the file *path*."""
    tensor = trained.tensor
    whole = trained.whole()[first : first + count]
    if not whole.isfinite().all():
        raise CheckpointError(
            f"{checkpoint.path / tensor.shard}: {tensor.name} would overflow {tensor.dtype} when trained; lower "
            "`learning_rate`, or use `compensation='least-squares'`"
        )
    path.write_bytes(whole.cpu().contiguous().view(torch.uint8).numpy().data)  # tofile may be silent about a full disk
    stored, row = np.memmap(path, np.uint8, "r"), tensor.row_bytes
    return TrainedRows(tensor.dtype, lambda at, rows: stored[at * row : (at + rows) * row].tobytes())


# --- the training -----------------------------------------------------------------------------------------------


class _Adam:
    """Steps of one master, taken as soon as its gradient is there, so that no two gradients need memory at a time."""

    def __init__(self, schedule: _Schedule, master: torch.Tensor) -> None:
        self._schedule = schedule
        self._mean, self._power = torch.zeros_like(master), torch.zeros_like(master)
        self._hook = master.register_post_accumulate_grad_hook(self._step)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Take no more steps."""
        self._hook.remove()

    def _step(self, master: torch.Tensor) -> None:
        assert master.grad is not None
        # Half precision may overflow on the way back; a number that did says nothing.
        gradient = master.grad.div_(self._schedule.tokens).nan_to_num_(0.0, 0.0, 0.0)
        master.grad = None
        (first, second), count = BETAS, self._schedule.step + 1
        with torch.no_grad():
            self._mean.lerp_(gradient, 1 - first)
            self._power.mul_(second).addcmul_(gradient, gradient, value=1 - second)
            spread = gradient.copy_(self._power).div_(1 - second**count).sqrt_().add_(EPSILON)
            master.addcdiv_(self._mean, spread, value=-self._schedule.rate / (1 - first**count))


@dataclass
class _Schedule:
    """The *step* that is being taken, from 0, over *tokens* places."""

    settings: TrainingSettings
    step: int = 0
    tokens: int = 0

    @property
    def rate(self) -> float:
        """Up along a line, and down to 0 along a cosine."""
        done, warm = self.step + 1, WARM_UP * self.settings.steps
        falling = 0.5 * (1 + math.cos(math.pi * self.step / self.settings.steps))
        return self.settings.learning_rate * min(1.0, done / warm) * falling


def _train(
    checkpoint: Checkpoint,
    model: ResidentModel,
    maps: Sequence[_TrainedMap],
    pupils: Sequence[Inputs],
    judges: Sequence[Inputs],
    settings: TrainingSettings,
    *,
    progress: bool,
) -> Training:
    """Train *maps*, whose best weights are then the ones to keep."""
    head, modules = OutputHead(checkpoint, model.device), {}
    for trained in maps:
        bias = getattr(model.module(trained.layer, trained.name), "bias", None)
        modules[trained.layer, trained.name] = _Pupil(trained, bias)
    held_out = Judges(model, head, judges)
    with model.replaced(modules):
        refit = held_out.judge()
    best = refit.of_all.kl
    best_step, since, checks, seen = 0, 0, list[Check](), list[Compared]()
    schedule, every = _Schedule(settings), max(1, settings.steps // CHECKS)
    optimizers = [_Adam(schedule, trained.master) for trained in maps]
    with step_bar("distill", settings.steps, shown=progress) as bar, model.recomputing():
        bar.set_postfix_str(f"held-out KL {best:.4g}")
        for step, batch in zip(range(settings.steps), _order(pupils), strict=False):
            seen += _backward(model, head, modules, batch, schedule)
            schedule.step += 1
            bar.update(1)
            if (step + 1) % every and step + 1 < settings.steps:
                continue
            with model.replaced(modules):
                found = held_out.judge()
            checks.append(Check(step + 1, found.of_all.kl, Divergence.mean(seen).kl, found.worse_than(refit)))
            seen.clear()
            bar.set_postfix_str(f"held-out KL {found.of_all.kl:.4g}")
            since += 1
            if found.of_all.kl < best and not checks[-1].worse:
                best, best_step, since = found.of_all.kl, step + 1, 0
                for trained in maps:
                    trained.keep()
            if since >= PATIENCE and step >= settings.steps // 2 + PATIENCE * every:
                break
    for optimizer in optimizers:
        optimizer.close()
    return Training(
        settings,
        len(pupils),
        len(judges),
        refit.of_all.tokens,
        refit.of_all.kl,
        tuple(checks),
        best_step,
        torch.device(model.device).type,
        str(model.dtype).removeprefix("torch."),
    )


def _backward(
    model: ResidentModel,
    head: OutputHead,
    modules: Mapping[tuple[int, str], torch.nn.Module],
    batch: Sequence[Inputs],
    schedule: _Schedule,
) -> list[Compared]:
    """Compare the two models on every sample of *batch*; on the way back, every master takes its step."""
    hidden = [sample.hidden for sample in batch]
    places = [sample.places("all").nonzero()[:, 0].to(model.device) for sample in batch]
    schedule.tokens = sum(map(len, places))
    with torch.no_grad():
        wanted = model.states(hidden)
    with model.replaced(modules):
        states, compared = model.states(hidden), []
        gradient = torch.zeros_like(states)
        for row, where in enumerate(places):
            found = compare(head, wanted[row, where], states[row, where].detach(), with_gradient=True)
            assert found.gradient is not None
            weight = schedule.tokens / len(batch) / len(where)  # 1 where all are of a length: half precision is coarse
            gradient[row, where] = (weight * found.gradient).to(states.dtype)
            compared.append(replace(found, gradient=None))
        states.backward(gradient)  # type: ignore[no-untyped-call]
    return compared


def _order(pupils: Sequence[Inputs]) -> Iterator[list[Inputs]]:
    """Batches without end; each sample comes once before any comes again."""
    generator = torch.Generator().manual_seed(SEED)
    while True:
        batch: list[Inputs] = []
        for number in torch.randperm(len(pupils), generator=generator).tolist():
            longest = max(len(sample.is_image) for sample in (*batch, pupils[number]))
            if len(batch) >= BATCH and (len(batch) + 1) * longest > BATCH_TOKENS:
                yield batch
                batch = []
            batch.append(pupils[number])
        yield batch


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """Let torch compute the same bits every time inside the block, on a GPU as well."""
    name, before = "CUBLAS_WORKSPACE_CONFIG", os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    mode, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ.setdefault(name, ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory = getattr(torch.utils, "deterministic", None)  # before torch 2.2, there is none
    fills = memory is not None and memory.fill_uninitialized_memory
    if memory is not None:
        memory.fill_uninitialized_memory = False  # nothing here reads what it has not written, and it takes time
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.use_deterministic_algorithms(mode, warn_only=warns)
        if memory is not None:
            memory.fill_uninitialized_memory = fills
        if before is None:
            del os.environ[name]
