"""The probe: the batch that a conversion is verified on, made by the checkpoint's own stock front end.

It is built in, or made of a file of questions or plain text, which is read as calibration data is.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..calibration.inputs import MOST_JUDGING, Inputs, make_inputs, token_ids_of
from ..calibration.samples import Samples
from ..checkpoint import Checkpoint
from ..checkpoint.families import LANGUAGE_MODEL, ORIGINAL
from ..errors import CheckpointError
from ..model.front_end import (
    STOCK_CLASSES,
    FrontEnd,
    HuggingFaceFrontEnd,
    TextFrontEnd,
    UnusableFrontEndError,
    embed,
    open_front_end,
    return_freed_memory,
    stock_front_end,
)

if TYPE_CHECKING:
    from PIL import Image

_log = logging.getLogger(__name__)

SEED = 0
TEXT_PROMPTS = (
    "USER: Which is larger, the sun or the moon? Answer with one word. ASSISTANT:",
    "USER: Context: The cup has two. The box has nine.\nWhich has the most?\nA. cup\nB. box\n"
    "Answer with the option's letter from the given choices directly. ASSISTANT:",
    "USER: Write the first line of a story about a river. ASSISTANT:",
)
IMAGE_PROMPTS = (
    "USER: <image>\nWhat color is the shape at the top left? ASSISTANT:",
    "USER: <image>\nDescribe this picture. ASSISTANT:",
)
IMAGE_PIXELS = 224  # a side; the checkpoint's image processor resizes
NUM_RANDOM_SAMPLES, RANDOM_TOKENS = 3, 48


@dataclass(frozen=True)
class Probe:
    """Inputs of the language model.

    *description* says in words what they are, and what could not be had. *weakness* is a clause for the verdict where
    the checkpoint's kind has more than this one gave, and else empty.
    """

    samples: tuple[Inputs, ...]
    description: str
    weakness: str = ""


def make_probe(
    checkpoint: Checkpoint, tower: Path | None = None, device: str = "cpu", *, given: Samples | None = None
) -> Probe:
    """The first samples of those *given*, until they have :data:`MOST_JUDGING` tokens; else what is built in.

    Built in are text prompts, and images where the vision tower is at hand; seeded token ids as a last resort.

    *tower* is the directory of the vision tower, see :func:`~s4convert.model.front_end.open_front_end`; it runs on
    *device*. A built-in probe that is weaker than the checkpoint's kind allows is told in a warning.

    Raises:
        CheckpointError: the front end contradicts the weights, or cannot make inputs of what is *given*.
        CalibrationError: an image that is *given* cannot be read.
        StorageError, OutOfMemoryError: the front end cannot be read, or takes too much memory.
    """
    if given is not None:
        return _probe_of(checkpoint, given, tower, device)
    try:
        with stock_front_end(checkpoint, "tokenizer"):
            samples = _text_samples(checkpoint)
    except UnusableFrontEndError as error:
        _log.warning("%s; the probe is of seeded token ids, and shows less than prompts do", error)
        what = "seeded token ids (the tokenizer cannot be loaded)"
        return Probe(_random_samples(checkpoint), what, "the probe had no prompts, only token ids")
    text = Probe(samples, f"{len(samples)} text prompts")
    lineage = checkpoint.family.lineage
    if lineage == LANGUAGE_MODEL:
        return text
    if lineage != ORIGINAL and checkpoint.family.model_type not in STOCK_CLASSES:
        return replace(text, description=f"{text.description} (no images: no stock class has its tower)")
    try:
        with stock_front_end(checkpoint, "vision tower"):
            images = _image_samples(checkpoint, tower, device)
        return_freed_memory()  # of the tower, more than a decoder layer takes
    except (UnusableFrontEndError, CheckpointError) as error:
        if isinstance(error, CheckpointError) and lineage != ORIGINAL:
            raise
        # A conversion needs no images; and in the original layout, the tower is not a part of the checkpoint.
        reason = str(error).partition("; use text")[0]
        _log.warning("%s; the probe is of text alone, and shows less than images do", reason)
        lack = "is not at hand" if isinstance(error, CheckpointError) else "cannot be loaded"
        what = f"{text.description} (no images: the vision tower {lack})"
        return Probe(samples, what, "the probe had no images")
    return Probe(samples + images, f"{text.description}, {len(images)} image prompts")


def _probe_of(checkpoint: Checkpoint, given: Samples, tower: Path | None, device: str) -> Probe:
    inputs = make_inputs(checkpoint, given.samples, tower=tower, device=device, enough=MOST_JUDGING)
    return_freed_memory()
    with_image = sum(bool(sample.is_image.any()) for sample in inputs)
    names = ", ".join(file.name for file in given.files)
    return Probe(tuple(inputs), f"{len(inputs)} samples of {names}, {with_image or 'none'} with an image")


def _text_samples(checkpoint: Checkpoint) -> tuple[Inputs, ...]:
    front_end = TextFrontEnd(checkpoint)
    return tuple(_input(front_end, prompt) for prompt in TEXT_PROMPTS)


def _input(front_end: FrontEnd, prompt: str, image: Image.Image | None = None) -> Inputs:
    hidden, is_image = front_end(prompt, image)
    return Inputs(hidden, is_image, token_ids=token_ids_of(front_end, prompt, is_image))


def _random_samples(checkpoint: Checkpoint) -> tuple[Inputs, ...]:
    import numpy as np
    import torch

    generator = np.random.Generator(np.random.PCG64(SEED))
    vocabulary = checkpoint.embedding.shape[0]
    drawn = [generator.integers(0, vocabulary, RANDOM_TOKENS).tolist() for _ in range(NUM_RANDOM_SAMPLES)]
    is_image = torch.zeros(RANDOM_TOKENS, dtype=torch.bool)
    return tuple(Inputs(embed(checkpoint, tokens), is_image, token_ids=torch.tensor(tokens)) for tokens in drawn)


def _image_samples(checkpoint: Checkpoint, tower: Path | None, device: str) -> tuple[Inputs, ...]:
    front_end: FrontEnd
    if checkpoint.family.lineage == ORIGINAL:
        front_end = open_front_end(checkpoint, with_images=True, tower=tower, device=device)
    else:
        front_end = HuggingFaceFrontEnd(checkpoint, device)
    return tuple(_input(front_end, prompt, image) for prompt, image in zip(IMAGE_PROMPTS, _images(), strict=True))


def _images() -> tuple[Image.Image, Image.Image]:
    """A red square on grey, and seeded noise."""
    import numpy as np
    from PIL import Image

    square = Image.new("RGB", (IMAGE_PIXELS, IMAGE_PIXELS), (220, 220, 220))
    square.paste((215, 40, 40), (20, 20, 100, 100))
    noise = np.random.Generator(np.random.PCG64(SEED)).integers(0, 256, (IMAGE_PIXELS, IMAGE_PIXELS, 3))
    return square, Image.fromarray(noise.astype(np.uint8))
