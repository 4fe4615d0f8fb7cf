"""Turns samples into inputs of the language model, before any decoder layer is in memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint import Checkpoint
from ..errors import CalibrationError, CheckpointError
from ..model.front_end import FrontEnd, UnusableFrontEndError, open_front_end, stock_front_end
from ..progress import sample_bar
from .samples import Sample

if TYPE_CHECKING:
    import torch
    from PIL import Image

_log = logging.getLogger(__name__)

MAX_TOKENS = 2048  # LLaVA's model_max_length; as in its training, the rest is cut off


@dataclass(frozen=True)
class Inputs:
    """A sample: *hidden* is the residual stream [1, tokens, hidden_size] in float32 on the CPU; *is_image* [tokens],
    whether a position is a part of an image; *num_cut* tokens behind those were cut off. *is_answer* [tokens], whether
    a token is one of an answer, is None where that was not asked for and where the sample has no answers."""

    hidden: torch.Tensor
    is_image: torch.Tensor
    num_cut: int = 0
    is_answer: torch.Tensor | None = None


def make_inputs(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    *,
    tower: Path | None = None,
    device: str = "cpu",
    find_answers: bool = False,
    progress: bool = False,
) -> list[Inputs]:
    """The inputs that *checkpoint*'s stock front end makes from *samples*, at most :data:`MAX_TOKENS` tokens each.

    *find_answers* finds out which of the tokens are those of answers. *tower* is the directory of the vision tower, see
    :func:`~s4convert.model.front_end.open_front_end`.

    Raises:
        CheckpointError: the front end cannot be loaded or used, or a token is beyond the embedding table.
        CalibrationError: an image cannot be read.
    """
    with_images = any(sample.image is not None for sample in samples)
    front_end = open_front_end(checkpoint, with_images=with_images, tower=tower, device=device)
    inputs = []
    with sample_bar("inputs", len(samples), shown=progress) as bar:
        for sample in samples:
            image = None if sample.image is None else open_image(sample.image, sample.where)
            try:
                with stock_front_end(checkpoint, "tokenizer" if image is None else "vision tower"):
                    hidden, is_image = front_end(sample.text, image)
                    is_answer = _answers(front_end, sample, is_image) if find_answers and sample.answers else None
            except UnusableFrontEndError as error:
                raise CheckpointError(f"{sample.where}: {error}; restore its files") from error
            num_cut = max(0, len(is_image) - MAX_TOKENS)
            is_answer = None if is_answer is None else is_answer[:MAX_TOKENS].clone()
            inputs.append(Inputs(hidden[:, :MAX_TOKENS].clone(), is_image[:MAX_TOKENS].clone(), num_cut, is_answer))
            bar.update(1)
    num_cut = sum(sample.num_cut > 0 for sample in inputs)
    if num_cut:
        _log.warning("%d of %d samples are longer than %d tokens and were cut", num_cut, len(samples), MAX_TOKENS)
    return inputs


def _answers(front_end: FrontEnd, sample: Sample, is_image: torch.Tensor) -> torch.Tensor:
    """Whether each token of *sample* is one of an answer [tokens].

    An answer begins where the tokens of the text before it cease to be those of the whole text: a tokenizer may join
    the last letter before an answer with its first.
    """
    import torch

    whole, places = front_end.text_tokens(sample.text), (~is_image).nonzero()[:, 0]
    if len(whole) != len(places):
        raise CheckpointError(
            f"{sample.where}: the front end makes {len(places)} text tokens of it, but its tokenizer {len(whole)}, so "
            "the answers cannot be found; use `loss='all'`"
        )
    is_answer = torch.zeros_like(is_image)
    for begin, end in sample.answers:
        first, behind = (_num_common(front_end.text_tokens(sample.text[:at]), whole) for at in (begin, end))
        is_answer[places[first:behind]] = True
    return is_answer


def _num_common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens the two begin with alike."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def describe(inputs: Sequence[Inputs]) -> dict[str, Any]:
    """What *inputs* come to, for a provenance: samples, tokens of text and of images, and what was cut off."""
    image = sum(int(sample.is_image.sum()) for sample in inputs)
    return {
        "num_samples": len(inputs),
        "text_tokens": sum(len(sample.is_image) for sample in inputs) - image,
        "image_tokens": image,
        "window_tokens": MAX_TOKENS,
        "cut_tokens": sum(sample.num_cut for sample in inputs),
    }


def open_image(path: Path, where: str) -> Image.Image:
    """The image in the file *path*, in RGB; CalibrationError, which names *where*, if it is none."""
    from PIL import Image

    try:
        with Image.open(path) as stored:
            image: Image.Image = stored.convert("RGB")
            return image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise CalibrationError(f"{where}: {path} cannot be read as an image ({error}); replace it") from error
