"""Pruned heads by layer and head, to look at: in a terminal, or as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import StorageError, UsageError

PRUNED = "x"
SHADES = ".:-=+*#"  # from the least salient heads to the most salient

Heads = Sequence[Sequence[int]]  # the pruned heads of every layer
Saliency = Sequence[Sequence[float]]  # [layers][heads]


def text_heatmap(num_heads: int, pruned: Heads, saliency: Saliency | None = None) -> str:
    """A line per layer: a character per head, :data:`PRUNED` or a shade, and how many are pruned.

    The shades rank the heads over the whole model, so that a few large figures do not leave all others blank.
    """
    shades = None if saliency is None else _ranks(saliency)
    lines = []
    for layer, heads in enumerate(pruned):
        row = [
            PRUNED if head in heads else "." if shades is None else SHADES[int(shades[layer][head] * len(SHADES))]
            for head in range(num_heads)
        ]
        lines.append(f"{layer:>5} |{''.join(row)}| {len(heads):>3} {'=' * len(heads)}".rstrip())
    meaning = "" if shades is None else f", kept heads from {SHADES[0]!r} to {SHADES[-1]!r} by saliency"
    return "\n".join(["layer  heads, and how many are pruned", *lines, f"{PRUNED} = pruned{meaning}"])


def require_plots(path: Path) -> None:
    """Refuse, before any work, a picture that could not be drawn.

    Raises:
        UsageError: matplotlib is not installed, or does not know the file's ending.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise UsageError(
            f"{path}: a picture needs matplotlib; pip install 's4convert[plot]', or look at the text heatmap"
        ) from error
    endings = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix.lstrip(".").lower() not in endings:
        raise UsageError(f"{path}: is no name of a picture; end it with one of .{', .'.join(endings)}")


def plot_heatmap(path: Path, num_heads: int, pruned: Heads, saliency: Saliency | None, title: str) -> None:
    """Draw saliency by layer and head with the pruned heads marked, and the pruned heads of each layer beside it.

    Raises:
        UsageError: as :func:`require_plots`.
        StorageError: the file cannot be written.
    """
    require_plots(path)
    import numpy as np
    from matplotlib.figure import Figure

    num_layers = len(pruned)
    shades = np.zeros((num_layers, num_heads)) if saliency is None else np.array(_ranks(saliency))
    figure = Figure(figsize=(3 + 0.22 * num_heads, 1.6 + 0.22 * num_layers), layout="constrained", dpi=120)
    heads, counts = figure.subplots(1, 2, sharey=True, width_ratios=[4, 1])
    image = heads.imshow(shades, cmap="viridis" if saliency is not None else "Greys", vmin=0, vmax=1, aspect="auto")
    marks = [(head, layer) for layer, row in enumerate(pruned) for head in row]
    if marks:
        heads.scatter(*zip(*marks, strict=True), marker="x", s=22, color="red", linewidths=1.2, label="pruned")
    heads.set(xlabel="head", ylabel="layer", title=title)
    if saliency is not None:
        figure.colorbar(image, ax=heads, label="saliency (rank in the model)", location="bottom", shrink=0.6)
    counts.barh(range(num_layers), [len(row) for row in pruned], color="tab:red")
    counts.set(xlabel="pruned", xlim=(0, num_heads))
    try:
        # No software's version in it: the same figures give the same bytes.
        figure.savefig(path, metadata={"Software": None} if path.suffix.lower() == ".png" else None)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from error


def _ranks(saliency: Saliency) -> list[list[float]]:
    """Each figure's rank among all of them, in [0, 1); equal figures may differ by their place."""
    order = sorted((figure, layer, head) for layer, row in enumerate(saliency) for head, figure in enumerate(row))
    ranks = [[0.0] * len(row) for row in saliency]
    for rank, (_, layer, head) in enumerate(order):
        ranks[layer][head] = rank / len(order)
    return ranks
