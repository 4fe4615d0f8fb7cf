"""The probe: the batch that a conversion is verified on, made from the checkpoint's own stock front end."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.checkpoint import Checkpoint
from converter.checkpoint.layouts import LANGUAGE_MODEL, ORIGINAL
from converter.checkpoint.torch_file import torch_dtype
from converter.decoder import stock_code
from converter.errors import StorageError

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
    "USER: {image}\nWhat color is the shape at the top left? ASSISTANT:",
    "USER: {image}\nDescribe this picture. ASSISTANT:",
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


def make_probe(checkpoint: Checkpoint) -> Probe:
    """Text prompts, and images where the vision tower is in the checkpoint; seeded token ids as a last resort."""
    try:
        samples = _text_samples(checkpoint)
    except StorageError:
        raise
    except Exception as error:  # stock code fails in its own ways on an incomplete checkpoint
        _log.debug("the tokenizer cannot be loaded: %s", error)
        return Probe(_random_samples(checkpoint), "seeded token ids (the tokenizer cannot be loaded)")
    text = f"{len(samples)} text prompts"
    if checkpoint.family.lineage == LANGUAGE_MODEL:
        return Probe(samples, text)
    if checkpoint.family.lineage == ORIGINAL:
        return Probe(samples, f"{text} (no images: the vision tower is not part of this layout)")
    try:
        images = _image_samples(checkpoint)
    except StorageError:
        raise
    except Exception as error:  # as above
        _log.debug("the vision tower cannot be loaded: %s", error)
        return Probe(samples, f"{text} (no images: the vision tower cannot be loaded)")
    return Probe(samples + images, f"{text}, {len(images)} image prompts")


def _embed(checkpoint: Checkpoint, token_ids: list[int]) -> torch.Tensor:
    """The rows of the embedding table that *token_ids* name; the table itself is never in memory."""
    import numpy as np
    import torch

    rows = [checkpoint.read_rows(checkpoint.embedding, token, 1) for token in token_ids]
    return torch.from_numpy(np.concatenate(rows)[None])


def _text_samples(checkpoint: Checkpoint) -> tuple[torch.Tensor, ...]:
    from transformers import AutoTokenizer

    with stock_code():
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.path)
        encoded = [list(tokenizer(prompt)["input_ids"]) for prompt in TEXT_PROMPTS]
    return tuple(_embed(checkpoint, token_ids) for token_ids in encoded)


def _random_samples(checkpoint: Checkpoint) -> tuple[torch.Tensor, ...]:
    import numpy as np

    generator = np.random.Generator(np.random.PCG64(SEED))
    vocabulary = checkpoint.embedding.shape[0]
    return tuple(
        _embed(checkpoint, [int(token) for token in generator.integers(0, vocabulary, RANDOM_TOKENS)])
        for _ in range(NUM_RANDOM_SAMPLES)
    )


def _image_samples(checkpoint: Checkpoint) -> tuple[torch.Tensor, ...]:
    """What stock code hands to the language model for the image prompts.

    The checkpoint's own class is built without decoder layers and runs as usual; a hook notes the input of
    its language model.
    """
    import torch

    captured: list[torch.Tensor] = []
    with stock_code(), torch.inference_mode():
        model = _front_end(checkpoint)
        processor = load_processor(checkpoint.path)
        language_model = next(
            module for name, module in model.named_modules() if name.rpartition(".")[2] == "language_model"
        )
        language_model.register_forward_pre_hook(
            lambda module, args, kwargs: captured.append(kwargs["inputs_embeds"]), with_kwargs=True
        )
        for prompt, image in zip(IMAGE_PROMPTS, _images(), strict=True):
            text = prompt.format(image=getattr(processor, "image_token", "<image>"))
            model(**processor(text=text, images=image, return_tensors="pt"), use_cache=False)
    return tuple(captured)


def _front_end(checkpoint: Checkpoint) -> Any:
    """The checkpoint's stock model class with its tower, projector and embeddings, and no decoder layer."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(checkpoint.path)
    config.text_config.num_hidden_layers = 0
    weights = {
        name: torch.frombuffer(bytearray(checkpoint.read_bytes(tensor)), dtype=torch_dtype(tensor.dtype)).reshape(
            tensor.shape
        )
        for name, tensor in checkpoint.tensors.items()
        if checkpoint.family.layer_key(name) is None
    }
    model_class = getattr(transformers, config.architectures[0])
    model, loading = model_class.from_pretrained(None, config=config, state_dict=weights, output_loading_info=True)
    if loading["missing_keys"]:
        raise ValueError(f"no weights for {sorted(loading['missing_keys'])[0]}")
    return model.float().eval()


def load_processor(path: Path) -> Any:
    """The checkpoint's stock processor: its image processor and tokenizer."""
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, LlavaProcessor

    try:
        return AutoProcessor.from_pretrained(path)
    except TypeError:  # transformers 4.37 does not know what newer ones wrote into processor_config.json
        return LlavaProcessor(AutoImageProcessor.from_pretrained(path), AutoTokenizer.from_pretrained(path))


def _images() -> tuple[Image.Image, Image.Image]:
    """A red square on grey, and seeded noise."""
    import numpy as np
    from PIL import Image

    square = Image.new("RGB", (IMAGE_PIXELS, IMAGE_PIXELS), (220, 220, 220))
    square.paste((215, 40, 40), (20, 20, 100, 100))
    noise = np.random.Generator(np.random.PCG64(SEED)).integers(0, 256, (IMAGE_PIXELS, IMAGE_PIXELS, 3))
    return square, Image.fromarray(noise.astype(np.uint8))
