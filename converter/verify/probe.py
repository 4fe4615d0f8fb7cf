"""The probe: the batch that a conversion is verified on, made from the checkpoint's own stock front end."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoint import Checkpoint
from ..checkpoint.families import LANGUAGE_MODEL, ORIGINAL
from ..errors import CheckpointError, StorageError
from ..model.front_end import FrontEnd, HuggingFaceFrontEnd, TextFrontEnd, embed, open_front_end

if TYPE_CHECKING:
    import torch
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
    """Inputs of the language model: one tensor [1, tokens, hidden_size] in float32 per sample.

    *description* says in words what they are, and what could not be had.
    """

    samples: tuple[torch.Tensor, ...]
    description: str


def make_probe(checkpoint: Checkpoint, tower: Path | None = None) -> Probe:
    """Text prompts, and images where the vision tower is at hand; seeded token ids as a last resort.

    *tower* is the directory of the vision tower, see :func:`~s4convert.model.front_end.open_front_end`.
    """
    try:
        samples = _text_samples(checkpoint)
    except (StorageError, CheckpointError):
        raise
    except Exception as error:  # stock code fails in its own ways on an incomplete checkpoint
        _log.debug("the tokenizer cannot be loaded: %s", error)
        return Probe(_random_samples(checkpoint), "seeded token ids (the tokenizer cannot be loaded)")
    text = f"{len(samples)} text prompts"
    if checkpoint.family.lineage == LANGUAGE_MODEL:
        return Probe(samples, text)
    try:
        images = _image_samples(checkpoint, tower)
    except StorageError:
        raise
    except CheckpointError as error:
        if checkpoint.family.lineage != ORIGINAL:
            raise
        # A conversion needs no images, and the tower is not a part of the checkpoint.
        _log.warning("the probe has no images: %s", str(error).partition("; use text")[0])
        return Probe(samples, f"{text} (no images: the vision tower is not at hand)")
    except Exception as error:  # as above
        _log.debug("the vision tower cannot be loaded: %s", error)
        return Probe(samples, f"{text} (no images: the vision tower cannot be loaded)")
    return Probe(samples + images, f"{text}, {len(images)} image prompts")


def _text_samples(checkpoint: Checkpoint) -> tuple[torch.Tensor, ...]:
    front_end = TextFrontEnd(checkpoint)
    return tuple(front_end(prompt)[0] for prompt in TEXT_PROMPTS)


def _random_samples(checkpoint: Checkpoint) -> tuple[torch.Tensor, ...]:
    import numpy as np

    generator = np.random.Generator(np.random.PCG64(SEED))
    vocabulary = checkpoint.embedding.shape[0]
    return tuple(
        embed(checkpoint, [int(token) for token in generator.integers(0, vocabulary, RANDOM_TOKENS)])
        for _ in range(NUM_RANDOM_SAMPLES)
    )


def _image_samples(checkpoint: Checkpoint, tower: Path | None) -> tuple[torch.Tensor, ...]:
    front_end: FrontEnd
    if checkpoint.family.lineage == ORIGINAL:
        front_end = open_front_end(checkpoint, with_images=True, tower=tower)
    else:
        front_end = HuggingFaceFrontEnd(checkpoint)
    return tuple(front_end(prompt, image)[0] for prompt, image in zip(IMAGE_PROMPTS, _images(), strict=True))


def _images() -> tuple[Image.Image, Image.Image]:
    """A red square on grey, and seeded noise."""
    import numpy as np
    from PIL import Image

    square = Image.new("RGB", (IMAGE_PIXELS, IMAGE_PIXELS), (220, 220, 220))
    square.paste((215, 40, 40), (20, 20, 100, 100))
    noise = np.random.Generator(np.random.PCG64(SEED)).integers(0, 256, (IMAGE_PIXELS, IMAGE_PIXELS, 3))
    return square, Image.fromarray(noise.astype(np.uint8))
