"""``fisher``: what it costs the model's output that a layer loses its first heads, and the others are fitted again.

In each layer, heads go in the order of greedy least-squares reconstruction. With W = ``o_proj.weight``, x_t its input
at token t, W'_j the refit of those that are left when the first j heads are gone, and L the cross-entropy of a sample,
summed over its n labels that are drawn from the model's own output,

    J_j = E[sum_t (g_t . r_t)^2 / n]        r_t = (W'_j - W) x_t,  g_t = dL/dy_t at y_t = W x_t

over the samples is twice the second-order growth of the KL divergence to the original, in nats a label. Every sample
counts the same: a question with an answer of one letter tells as much as a page. The next step of the greedy path is
W'_j+1 = W'_j - W'_jp G with the heads p that go and the update G [head_dim, columns]; so with u_t = W'_j^T g_t, which
is at first the gradient at the *input* of ``o_proj``,

    g_t . r_t   falls by  u_tp . (G x_t)        u_t  falls by  G^T u_tp

and no W'_j, of which there are as many as heads, is ever made.
Sources: the Fisher information of natural gradient (Amari 1998); its use for pruning, Theis et al. (arXiv 1801.05787).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import TYPE_CHECKING

import numpy as np

from ..calibration.inputs import Inputs, modalities
from ..calibration.stream import stream_layers
from ..checkpoint import Checkpoint
from ..disk import free_bytes
from ..errors import CalibrationError, StorageError, enough_memory
from ..mask.head_scores import Ladder
from ..model.batches import batches, padded
from ..model.decoder import LayerDecoder, full_float32, stock_code
from ..model.output_head import OutputHead
from ..model.resident import ResidentModel
from ..progress import layer_bar, sample_bar
from .reconstruction import Reconstruction

if TYPE_CHECKING:
    import torch

_DEVICE_BYTES = 2 << 30  # of all samples' gradients, which stay on the device up to so many
_ROWS = 256  # of logits at a time, at the most


class Labels:
    """Where *inputs* have a label, and the numbers that draw it from the model's output; the same on every device.

    They are where what comes next counts under *loss*, see :meth:`~s4convert.calibration.inputs.Inputs.places`.

    Raises:
        CalibrationError: there is no label, because all answers were cut off.
    """

    def __init__(self, inputs: Sequence[Inputs], loss: str, seed: int) -> None:
        import torch

        generator = torch.Generator().manual_seed(seed)
        self.places: list[torch.Tensor] = []  # [tokens], of each sample: whether there is a label
        self._draws: list[torch.Tensor] = []  # [tokens], uniform in [0, 1)
        for sample in inputs:
            self._draws.append(torch.rand(len(sample.is_image), dtype=torch.float64, generator=generator))
            self.places.append(sample.places(loss))
        self.count = sum(int(places.sum()) for places in self.places)
        self.num_samples = sum(bool(places.any()) for places in self.places)
        if not self.count:
            raise CalibrationError(
                "fisher: every sample was cut off before its answers; give shorter ones, or use `loss='all'`"
            )

    def gradients(self, numbers: Sequence[int], head: OutputHead, hidden: torch.Tensor) -> torch.Tensor:
        """dL/dh / sqrt(n) of the samples *numbers*, whose residual stream h behind the last layer is *hidden* [samples,
        tokens, width]."""
        import torch

        return torch.stack([self._gradient(*one, head) for one in zip(numbers, hidden.float(), strict=True)])

    def _gradient(self, number: int, hidden: torch.Tensor, head: OutputHead) -> torch.Tensor:
        import torch

        gradient = torch.zeros_like(hidden)
        count = int(self.places[number].sum())
        for places in self.places[number].nonzero()[:, 0].chunk(-(-len(hidden) // _ROWS)):
            draws = self._draws[number][places, None].to(hidden.device)
            rows = hidden[places.to(hidden.device)].requires_grad_()
            with torch.enable_grad():
                normed = head.normed(rows)
            probabilities = head.logits(normed.detach()).double().softmax(-1)
            summed = probabilities.cumsum(-1)
            labels = torch.searchsorted(summed, draws * summed[:, -1:], right=True)
            labels.clamp_(max=summed.shape[1] - 1)
            at_logits = probabilities.scatter_add_(1, labels, -torch.ones_like(draws)).div_(count**0.5).float()
            (gradient[places.to(hidden.device)],) = torch.autograd.grad(normed, rows, head.pull_back(at_logits))
        return gradient


class LosingHeads:
    """J_1 to J_n of a layer that loses its heads in the order *heads*, by the *updates* [n, head_dim, columns]."""

    def __init__(self, heads: Sequence[int], updates: torch.Tensor) -> None:
        self._heads, self._updates = tuple(heads), updates
        self._sums: torch.Tensor | None = None

    def observe(self, outputs: torch.Tensor, gradient: torch.Tensor) -> None:
        """Count in the input of ``o_proj`` [tokens, columns], and the gradient of L / sqrt(n) there."""
        import torch

        outputs, left = outputs.float(), gradient.float().clone()  # W'_j^T g_t
        head_dim = self._updates.shape[1]
        change = torch.zeros(len(outputs), dtype=torch.float64, device=outputs.device)
        squares = []
        for head, update in zip(self._heads, self._updates, strict=True):
            gone = left[:, head * head_dim : (head + 1) * head_dim].clone()
            change -= (gone.double() * (outputs @ update.T).double()).sum(1)
            left.addmm_(gone, update, alpha=-1)
            squares.append(change.square().sum())
        sums = torch.stack(squares)
        self._sums = sums if self._sums is None else self._sums + sums

    def ladder(self, num_samples: int) -> Ladder:
        """The order, and J_1 to J_n, of so many samples."""
        assert self._sums is not None
        return Ladder(self._heads, tuple((self._sums / num_samples).tolist()))


def streamed_ladders(
    checkpoint: Checkpoint, inputs: list[Inputs], labels: Labels, *, device: str, progress: bool
) -> list[Ladder]:
    """The ladder of every layer, with two decoder layers in memory at the most; *inputs* is overwritten.

    On the way up, the residual stream before every layer goes to a directory in the system's temporary one; on the way
    down, it is read again, and each layer is run again with gradients.

    Raises:
        StorageError: the temporary directory has no room.
        S4ConvertError: as :func:`~s4convert.calibration.stream.stream_layers`.
    """
    num_layers = checkpoint.geometry.num_layers
    _check_room(checkpoint, inputs)
    with (
        TemporaryDirectory(prefix="s4convert-fisher-") as directory,
        ThreadPoolExecutor(1) as worker,
        layer_bar("fisher", 2 * num_layers, shown=progress) as bar,
    ):
        scratch = _Scratch(Path(directory), [len(sample.is_image) for sample in inputs], checkpoint, worker)
        scratch.keep(0, inputs)
        for seen in stream_layers(
            checkpoint, inputs, lambda layer: Reconstruction(checkpoint, layer, device), device=device
        ):
            scratch.keep_losing(seen.layer, seen.observer)
            if seen.layer + 1 < num_layers:
                scratch.keep(seen.layer + 1, inputs)
            del seen  # free the moments of this layer before the next one
            bar.update(1)
        scratch.settle()
        with stock_code(), full_float32():
            head = OutputHead(checkpoint, device)
            stay = device if sum(sample.hidden.nbytes for sample in inputs) <= _DEVICE_BYTES else "cpu"
            together = []
            for numbers in batches([len(sample.is_image) for sample in inputs]):
                batch = [inputs[number] for number in numbers]
                behind = labels.gradients(numbers, head, padded(sample.hidden.to(device) for sample in batch))
                together.append((numbers, modalities(batch, device)[1], behind.to(stay)))
            del head
            decoder, following = (LayerDecoder(checkpoint, device) for _ in range(2))
            loading = worker.submit(following.load, checkpoint, num_layers - 1)
            ladders = []
            for layer in reversed(range(num_layers)):
                loading.result()
                decoder, following = following, decoder
                if layer:  # the next one loads while this one computes
                    loading = worker.submit(following.load, checkpoint, layer - 1)
                losing = scratch.losing(layer, device)
                for place, (numbers, inside, behind) in enumerate(together):
                    hidden = padded(scratch.hidden(layer, number) for number in numbers).to(device)
                    before, heads, at_heads = decoder.backward(hidden, behind.to(device))
                    together[place] = (numbers, inside, before.to(stay))
                    losing.observe(heads[inside], at_heads[inside])
                ladders.append(losing.ladder(labels.num_samples))
                bar.update(1)
    return ladders[::-1]


def resident_ladders(
    checkpoint: Checkpoint, inputs: Sequence[Inputs], labels: Labels, *, device: str, progress: bool
) -> list[Ladder]:
    """The ladder of every layer, with the whole model on *device*, as stored on a GPU and in float32 on a CPU.

    Raises:
        S4ConvertError: as :class:`~s4convert.model.resident.ResidentModel`; a layer's moments cannot be factorised.
    """
    layers = range(checkpoint.geometry.num_layers)
    model = ResidentModel(checkpoint, device=device, progress=progress)
    moments = [Reconstruction(checkpoint, layer, device) for layer in layers]
    with (
        stock_code(),
        full_float32(),
        enough_memory("the whole model, with the moments of all layers, for `resident`"),
        sample_bar("fisher", 2 * len(inputs), shown=progress) as bar,
    ):
        together = []
        for numbers in batches([len(sample.is_image) for sample in inputs]):
            batch = [inputs[number] for number in numbers]
            is_image, inside = modalities(batch, device)
            together.append((numbers, inside))
            for layer, heads in enumerate(model.heads(padded(sample.hidden for sample in batch))):
                moments[layer].add(heads[inside], is_image, lambda outputs: outputs.T @ outputs)
            bar.update(len(numbers))
        losing = [LosingHeads(*_path(moments.pop(0), model.output_weight(layer))) for layer in layers]
        head = OutputHead(checkpoint, device)
        for numbers, inside in together:
            model.backward(
                padded(inputs[number].hidden for number in numbers),
                partial(labels.gradients, numbers, head),
                partial(_count, losing, inside),
            )
            bar.update(len(numbers))
    return [one.ladder(labels.num_samples) for one in losing]


def _count(
    losing: Sequence[LosingHeads], inside: torch.Tensor, layer: int, heads: torch.Tensor, at_heads: torch.Tensor
) -> None:
    """Count in a padded batch of *layer*; *inside* is where it has tokens."""
    losing[layer].observe(heads[inside], at_heads[inside])


def _path(moments: Reconstruction, weight: torch.Tensor | None = None) -> tuple[list[int], torch.Tensor]:
    """(the heads in the order in which they go, the updates [heads, head_dim, columns] in float32)."""
    import torch

    heads, updates = [], []
    for step in moments.steps(weight):
        heads.append(step.head)
        updates.append(step.update.float())
    return heads, torch.stack(updates)


class _Scratch:
    """What the way down needs of the way up, in files of *directory*, for samples of *lengths* tokens."""

    def __init__(self, directory: Path, lengths: Sequence[int], checkpoint: Checkpoint, worker: Executor) -> None:
        self._directory, self._lengths, self._geometry = directory, lengths, checkpoint.geometry
        self._worker = worker
        self._writing: Future[None] | None = None
        self._heads: dict[int, list[int]] = {}

    def keep(self, layer: int, inputs: Sequence[Inputs]) -> None:
        """Write the residual stream before *layer*, while work goes on."""
        self.settle()
        self._writing = self._worker.submit(_write, self._path("hidden", layer), [sample.hidden for sample in inputs])

    def settle(self) -> None:
        """Wait until everything is written; StorageError where it cannot be."""
        if self._writing is not None:
            self._writing.result()

    def hidden(self, layer: int, number: int) -> torch.Tensor:
        """The residual stream of sample *number* before *layer*, [1, tokens, hidden_size]."""
        import torch

        width, first, tokens = self._geometry.hidden_size, sum(self._lengths[:number]), self._lengths[number]
        path = self._path("hidden", layer)
        numbers = np.fromfile(path, np.float32, count=tokens * width, offset=4 * first * width)
        return torch.from_numpy(numbers).reshape(1, tokens, width)

    def keep_losing(self, layer: int, moments: Reconstruction) -> None:
        """Write in which order, and by which updates, *layer* loses its heads."""
        self._heads[layer], updates = _path(moments)
        _write(self._path("updates", layer), [updates.cpu()])

    def losing(self, layer: int, device: str) -> LosingHeads:
        """*layer*, which will lose its heads so."""
        import torch

        updates = torch.from_numpy(np.fromfile(self._path("updates", layer), np.float32))
        shape = (self._geometry.num_heads, self._geometry.head_dim, -1)
        return LosingHeads(self._heads[layer], updates.reshape(shape).to(device))

    def _path(self, kind: str, layer: int) -> Path:
        return self._directory / f"{kind}-{layer:05}"


def _check_room(checkpoint: Checkpoint, inputs: Sequence[Inputs]) -> None:
    geometry = checkpoint.geometry
    tokens, columns = sum(len(sample.is_image) for sample in inputs), geometry.num_columns("o")
    wanted = 4 * geometry.num_layers * (tokens * geometry.hidden_size + columns * columns)
    free = free_bytes(Path(gettempdir()) / "fisher")
    if free < wanted:
        raise StorageError(
            f"{gettempdir()}: fisher keeps {wanted:,} bytes there while it runs, but {free:,} are free; name another "
            "directory with TMPDIR, or give fewer samples"
        )


def _write(path: Path, tensors: Sequence[torch.Tensor]) -> None:
    try:
        with path.open("wb") as file:
            for tensor in tensors:
                file.write(np.ascontiguousarray(tensor.cpu().numpy()).data)  # tofile may be silent about a full disk
    except OSError as error:
        raise StorageError(
            f"{path.parent.parent}: cannot be written: {error.strerror or error}; free some space, or name another "
            "directory with TMPDIR"
        ) from error
