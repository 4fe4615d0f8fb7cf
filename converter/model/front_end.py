"""From text and images to the language model's input, through stock code: tokenizer, vision tower, projector.

Of the token embeddings, only the rows of the tokens are read, and ``lm_head`` not at all. Towers compute in float32.
"""

from __future__ import annotations

import ctypes
import errno
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from ..checkpoint import CONFIG_FILE, Checkpoint, StoredTensor, read_json_object
from ..checkpoint.families import HUGGING_FACE, ORIGINAL
from ..checkpoint.shards import open_shards
from ..checkpoint.sidecars import list_files
from ..checkpoint.tensors import TensorEntry
from ..errors import CheckpointError, S4ConvertError, StorageError, enough_memory, shown
from .decoder import full_float32, language_model_config, stock_code, without_initial_weights
from .loading import stored_rows

if TYPE_CHECKING:
    import torch
    from PIL import Image


# (input of the language model [1, tokens, hidden_size] in float32, whether a position is an image's [tokens])
Embedded: TypeAlias = "tuple[torch.Tensor, torch.Tensor]"
Stored: TypeAlias = "StoredTensor | TensorEntry"

IMAGE_PLACEHOLDER = "<image>"
SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
LETTER_INSTRUCTION = "Answer with the option's letter from the given choices directly."
_END_OF_ANSWER = "</s>"


def conversation(turns: Sequence[tuple[str, str | None]]) -> str:
    """LLaVA's ``vicuna_v1`` prompt for (question, answer) *turns*; it ends with ``ASSISTANT:`` if the last is None."""
    text = f"{SYSTEM_PROMPT} "
    for question, answer in turns:
        text += f"USER: {question} ASSISTANT:"
        if answer is not None:
            text += f" {answer}{_END_OF_ANSWER}"
    return text


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")  # of which a checkpoint has one at least

# No code of a checkpoint is ever run, whatever its ``auto_map`` says. Without this, transformers asks on stdin.
_NO_CODE: Mapping[str, Any] = MappingProxyType({"trust_remote_code": False})

# The class with tower and projector, by the family's model type: the config's own ``architectures`` may name anything.
STOCK_CLASSES: Mapping[str, str] = MappingProxyType(
    {
        "llava": "LlavaForConditionalGeneration",
        "llava_next": "LlavaNextForConditionalGeneration",
        "llava_next_video": "LlavaNextVideoForConditionalGeneration",
        "llava_onevision": "LlavaOnevisionForConditionalGeneration",
        "video_llava": "VideoLlavaForConditionalGeneration",
        "vipllava": "VipLlavaForConditionalGeneration",
    }
)


# The entries of a config that say what tower and projector compute. No other reaches stock code, as in the decoder.
_TOWER_ENTRIES = (
    *("model_type", "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads"),
    *("num_channels", "image_size", "patch_size", "hidden_act", "layer_norm_eps", "vision_use_head"),
)
_IMAGE_ENTRIES = (
    *("image_token_index", "image_token_id", "video_token_index", "video_token_id", "pad_token_id"),
    *("projector_hidden_act", "projector_layernorm_eps", "multimodal_projector_bias", "tie_word_embeddings"),
    *("vision_feature_layer", "vision_feature_layers", "vision_feature_select_strategy", "vision_aspect_ratio"),
    *("image_grid_pinpoints", "image_seq_length", "video_seq_length", "spatial_pool_mode", "spatial_pool_stride"),
)
_NAMES = ("model_type", "transformers_version", "tokenizer_class", "processor_class", "image_processor_type")
_TOWER_TYPES = ("clip_vision_model", "siglip_vision_model")
_LINKS = "s4convert-links-"  # the name of a directory that is made for stock classes begins so
_MOST_TILES = 8  # the sides of an image in those of the tower's images, at the most; LLaVA-OneVision has 6
_MOST_EXTRA_TOKENS = 64  # of an image, beside one a patch


class FrontEnd(Protocol):
    """Makes the language model's input; with an image, the text has one ``<image>`` in its place."""

    tokenizer: Any

    def __call__(self, text: str, image: Image.Image | None = None) -> Embedded: ...

    def text_tokens(self, text: str) -> list[int]:
        """The tokens of *text* that are no part of an image, as they stand in the model's input."""


def open_front_end(
    checkpoint: Checkpoint, *, with_images: bool, tower: Path | None = None, device: str = "cpu"
) -> FrontEnd:
    """The front end of *checkpoint*, on *device*; only *with_images* loads the vision tower.

    For the original layout, this is the one in the directory *tower*, or else in the directory that the config names.

    Raises:
        CheckpointError: a part of it is missing, malformed or not supported.
        StorageError: the disk refused.
    """
    lineage = checkpoint.family.lineage
    if with_images:
        check_takes_images(checkpoint)
    what = "vision tower" if with_images else "tokenizer"
    try:
        with stock_front_end(checkpoint, what if tower is None or not with_images else f"vision tower {tower}"):
            if not with_images:
                return TextFrontEnd(checkpoint)
            if lineage == HUGGING_FACE:
                return HuggingFaceFrontEnd(checkpoint, device)
            return OriginalFrontEnd(checkpoint, tower, device)
    except UnusableFrontEndError as error:
        raise CheckpointError(f"{error}; restore its files") from error


def check_takes_images(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError where *checkpoint* is a language model alone."""
    if checkpoint.family.lineage not in (HUGGING_FACE, ORIGINAL):
        raise CheckpointError(f"{checkpoint.path}: is a language model and takes no images; use text samples alone")


def return_freed_memory() -> None:
    """Give what was freed back to the system: the C library of Linux keeps what lies between things still in use."""
    with suppress(OSError, AttributeError):  # there is another C library
        ctypes.CDLL(None).malloc_trim(0)


# What the disk, or the kernel, may say of a file that is there.
_DISK_ERRORS = (
    *(errno.EIO, errno.ENFILE, errno.EMFILE, errno.EACCES, errno.EPERM, errno.ESTALE, errno.ENOMEM),
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS),
)


class UnusableFrontEndError(Exception):
    """Stock code cannot load, or use, the tokenizer or the vision tower."""


@contextmanager
def stock_front_end(checkpoint: Checkpoint, what: str) -> Iterator[None]:
    """While *checkpoint*'s tokenizer or vision tower, *what*, is loaded or used by stock code.

    Raises:
        UnusableFrontEndError: stock code cannot, for what its files hold or lack.
        StorageError: the disk refused.
        OutOfMemoryError: it takes too much memory.
    """
    where = f"{checkpoint.path}: the {what}"
    try:
        with enough_memory(where):
            yield
    except S4ConvertError:
        raise
    except Exception as error:  # stock code raises errors of any kind at an incomplete checkpoint
        number = _disk_error(error)
        if number is not None:
            raise StorageError(f"{where} cannot be read: {os.strerror(number)}; mend that and run again") from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        reason = re.sub(rf"[^\s'\"]*{_LINKS}\w+", str(checkpoint.path), reason)
        if not any((checkpoint.path / name).is_file() for name in _TOKENIZER_FILES):
            where = f"{checkpoint.path}: the tokenizer"  # stock code may not say so
            reason = f"none of {', '.join(_TOKENIZER_FILES)} is there"
        raise UnusableFrontEndError(f"{where} cannot be used by stock code ({reason})") from error


def _disk_error(error: BaseException | None) -> int | None:
    """The number of the disk's error that is behind *error*, if one is; that a file is missing is none."""
    while error is not None:
        for number in _DISK_ERRORS:
            # Libraries that are not in Python have its text in their message alone.
            if (isinstance(error, OSError) and error.errno == number) or os.strerror(number) in str(error):
                return number
        error = error.__cause__ or error.__context__
    return None


def named_tower(checkpoint: Checkpoint) -> str | None:
    """The vision tower that the config of a *checkpoint* in the original layout names: a directory, or on the Hub."""
    if checkpoint.family.lineage != ORIGINAL:
        return None
    name = checkpoint.config.get("mm_vision_tower") or checkpoint.config.get("vision_tower")
    return name if isinstance(name, str) else None


def embed(checkpoint: Checkpoint, token_ids: Sequence[int]) -> torch.Tensor:
    """The embeddings [1, tokens, hidden_size] of *token_ids*; CheckpointError where one is not in the table."""
    import numpy as np
    import torch

    table = checkpoint.embedding
    for token in token_ids:
        if not 0 <= token < table.num_rows:
            raise CheckpointError(
                f"{checkpoint.path}: token {token} is beyond {table.name}, which has {table.num_rows} rows; "
                "the tokenizer is not this checkpoint's"
            )
    distinct = {token: checkpoint.read_rows(table, token, 1) for token in sorted(set(token_ids))}
    return torch.from_numpy(np.concatenate([distinct[token] for token in token_ids])[None])


class TextFrontEnd:
    """The checkpoint's tokenizer and token embeddings."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        from transformers import AutoTokenizer

        self._checkpoint = checkpoint
        with stock_code(), _stock_files(checkpoint) as directory:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(directory, **_NO_CODE)

    def token_ids(self, text: str) -> list[int]:
        with stock_code():
            return [int(token) for token in self.tokenizer(text)["input_ids"]]

    text_tokens = token_ids

    def __call__(self, text: str, image: Image.Image | None = None) -> Embedded:
        import torch

        if image is not None:
            raise ValueError("a text front end takes no images")
        embedded = embed(self._checkpoint, self.token_ids(text))
        return embedded, torch.zeros(embedded.shape[1], dtype=torch.bool)


class HuggingFaceFrontEnd:
    """The checkpoint's stock class without decoder layers and vocabulary; a hook takes its language model's input."""

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu") -> None:
        self._checkpoint, self._device = checkpoint, device
        self._captured: list[torch.Tensor] = []
        with stock_code():
            self._processor = open_processor(checkpoint)
            self._model = _without_decoder(checkpoint).to(device)
        _check_processor(self._processor, self._model.config.vision_config, checkpoint.path)
        # Of these, newer versions take sizes of images, and paddings, that go before the checked ones.
        self.tokenizer: Any = self._processor.tokenizer
        self.tokenizer.init_kwargs = {}
        self._model.set_input_embeddings(_embedding_module(checkpoint, device))
        config = self._model.config
        self._image_token_id = int(getattr(config, "image_token_id", None) or config.image_token_index)
        self._image_token = str(getattr(self._processor, "image_token", None) or IMAGE_PLACEHOLDER)
        language_model = next(
            module for name, module in self._model.named_modules() if name.rpartition(".")[2] == "language_model"
        )
        captured = self._captured  # and not self, which holds the model: both would stay until garbage is looked for
        language_model.register_forward_pre_hook(
            lambda module, args, kwargs: captured.append(kwargs["inputs_embeds"]), with_kwargs=True
        )

    def text_tokens(self, text: str) -> list[int]:
        with stock_code():
            token_ids = self.tokenizer(text.replace(IMAGE_PLACEHOLDER, self._image_token))["input_ids"]
        return [token for token in token_ids if token != self._image_token_id]

    def __call__(self, text: str, image: Image.Image | None = None) -> Embedded:
        import torch

        text = text.replace(IMAGE_PLACEHOLDER, self._image_token)
        self._captured.clear()
        with stock_code(), full_float32(), torch.inference_mode():
            if image is None:
                token_ids = self.tokenizer(text)["input_ids"]
                embedded = embed(self._checkpoint, token_ids)
                return embedded, torch.zeros(len(token_ids), dtype=torch.bool)
            inputs = self._processor(text=text, images=image, return_tensors="pt").to(self._device)
            self._model(**inputs, use_cache=False)
        embedded = self._captured.pop().cpu()
        is_image = (inputs["input_ids"][0] == self._image_token_id).cpu()
        # In transformers up to 4.4x, an image is one token, which the model replaces by the image's features.
        features = embedded.shape[1] - len(is_image) + 1
        if features > 1:
            is_image = is_image.repeat_interleave(torch.where(is_image, features, 1))
        return embedded, is_image


class OriginalFrontEnd:
    """Original LLaVA: the CLIP tower in the directory *tower* or ``mm_vision_tower``, and the checkpoint's projector.

    Source: ``llava/model/llava_arch.py``, ``llava/mm_utils.py`` and ``llava/model/multimodal_encoder``.
    """

    def __init__(self, checkpoint: Checkpoint, tower: Path | None = None, device: str = "cpu") -> None:
        from transformers import AutoImageProcessor

        self._text = TextFrontEnd(checkpoint)
        self.tokenizer: Any = self._text.tokenizer
        self._checkpoint, self._device, self._config = checkpoint, device, checkpoint.config
        directory = _tower_directory(checkpoint, tower)
        self._projector = _read_projector(checkpoint, device)
        with stock_code():
            self._tower = _read_tower(directory).float().eval().to(device)
            self._image_processor = AutoImageProcessor.from_pretrained(directory, config=self._tower.config, **_NO_CODE)
        _check_processor(self._image_processor, self._tower.config, directory)

    def __call__(self, text: str, image: Image.Image | None = None) -> Embedded:
        import torch

        if image is None:
            return self._text(text)
        before, after = self._around_image(text)
        features = self._features(image).cpu()
        parts = [embed(self._checkpoint, before), features]
        if after:
            parts.append(embed(self._checkpoint, after))
        is_image = torch.zeros(sum(part.shape[1] for part in parts), dtype=torch.bool)
        is_image[len(before) : len(before) + features.shape[1]] = True
        return torch.cat(parts, dim=1), is_image

    def text_tokens(self, text: str) -> list[int]:
        if IMAGE_PLACEHOLDER not in text:
            return self._text.token_ids(text)
        before, after = self._around_image(text)
        return before + after

    def _around_image(self, text: str) -> tuple[list[int], list[int]]:
        """The tokens before and behind the image."""
        before, after = (self._text.token_ids(part) for part in text.split(IMAGE_PLACEHOLDER))
        if after and after[0] == self.tokenizer.bos_token_id:
            after = after[1:]
        return before, after

    def _features(self, image: Image.Image) -> torch.Tensor:
        """The projected patches of *image*, [1, patches, hidden_size]."""
        import torch

        if self._config.get("image_aspect_ratio") == "pad":
            image = _padded_to_square(image, tuple(int(mean * 255) for mean in self._image_processor.image_mean))
        with stock_code(), full_float32(), torch.inference_mode():
            pixels = self._image_processor(images=image, return_tensors="pt")["pixel_values"].to(self._device)
            states = self._tower(pixels.float(), output_hidden_states=True).hidden_states
            features: torch.Tensor = states[int(self._config["mm_vision_select_layer"])]
            if self._config.get("mm_vision_select_feature") in (None, "patch"):
                features = features[:, 1:]  # without the class token
            for number, (weight, bias) in enumerate(self._projector):
                if number:
                    features = torch.nn.functional.gelu(features)
                features = torch.nn.functional.linear(features, weight, bias)
        return features


def open_processor(checkpoint: Checkpoint) -> Any:
    """The stock processor of *checkpoint*, of the Hugging Face layout; stock code's own errors pass through."""
    with stock_code(), _stock_files(checkpoint) as directory:
        return load_processor(directory)


def load_processor(path: Path) -> Any:
    """The checkpoint's stock processor: its image processor and tokenizer."""
    from transformers import AutoImageProcessor, AutoProcessor, LlamaTokenizerFast, LlavaProcessor

    try:
        return AutoProcessor.from_pretrained(path, **_NO_CODE)
    except TypeError:  # transformers 4.37 cannot read a processor_config.json that newer ones wrote
        image_processor = AutoImageProcessor.from_pretrained(path, **_NO_CODE)
        # Its processor takes this class alone, which does what a tokenizer.json says, of whatever kind that is.
        return LlavaProcessor(image_processor, LlamaTokenizerFast.from_pretrained(path))


def _without_decoder(checkpoint: Checkpoint) -> Any:
    """The checkpoint's stock model with tower and projector, no decoder layer and a vocabulary of one token."""
    import torch
    import transformers

    stored = [tensor for name, tensor in checkpoint.tensors.items() if checkpoint.family.layer_key(name) is None]
    where, given = str(checkpoint.path / CONFIG_FILE), _config_entries(checkpoint)
    if "vision_config" in checkpoint.config:
        given["vision_config"] = _tower_entries(checkpoint.config["vision_config"], stored, where)
    config = transformers.AutoConfig.for_model(**given)
    model_class = getattr(transformers, STOCK_CLASSES[checkpoint.family.model_type])
    _check_stored(model_class, config, stored, where)
    weights = {}
    for tensor in stored:
        is_vocabulary = tensor is checkpoint.embedding or tensor.name.endswith("lm_head.weight")
        weights[tensor.name] = stored_rows(checkpoint, tensor, 0, 1 if is_vocabulary else None)
    # At first in the dtype that all weights have, so that old versions do not hold them twice; of several, none does.
    dtypes = {tensor.dtype for tensor in weights.values()}
    dtype = dtypes.pop() if len(dtypes) == 1 else None
    model, loading = model_class.from_pretrained(
        None, config=config, state_dict=weights, torch_dtype=dtype, output_loading_info=True
    )
    if loading["missing_keys"]:
        raise ValueError(f"no weights for {sorted(loading['missing_keys'])[0]}")
    weights.clear()  # so that the cast frees each stored tensor in turn
    with torch.no_grad():
        return model.float().eval()


def _config_entries(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a stock config is made of for *checkpoint*, but for the vision tower."""
    given = {name: checkpoint.config[name] for name in _IMAGE_ENTRIES if name in checkpoint.config}
    named = {name: checkpoint.config[name] for name in _NAMES if isinstance(checkpoint.config.get(name), str)}
    language_model = language_model_config(checkpoint, num_layers=0)
    return given | ({"text_config": language_model} if checkpoint.family.nested else language_model) | named


@contextmanager
def _stock_files(checkpoint: Checkpoint) -> Iterator[Path]:
    """A directory of links to *checkpoint*'s files for stock classes; its config.json has what may reach them."""
    with TemporaryDirectory(prefix=_LINKS) as name, _silent_stdout():
        directory = Path(name)
        for file in checkpoint.sidecars:
            if "/" not in file and file != CONFIG_FILE:
                (directory / file).symlink_to((checkpoint.path / file).absolute())
        (directory / CONFIG_FILE).write_text(json.dumps(_config_entries(checkpoint)))
        yield directory


@contextmanager
def _silent_stdout() -> Iterator[None]:
    """Nothing reaches stdout: what is written in Rust prints names that it does not know there, past Python."""
    try:
        kept = os.dup(1)
    except OSError:  # it is closed
        yield
        return
    try:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.close(nothing)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _tower_entries(config: Any, stored: Sequence[Stored], where: str) -> dict[str, Any]:
    """What a stock config is made of for the tower whose *config* stands in *where*, and whose tensors are *stored*."""
    if not isinstance(config, dict):
        raise CheckpointError(f"{where}: vision_config is {shown(config)}, not an object; restore the file")
    layers, kind = config.get("num_hidden_layers", 0), config.get("model_type", _TOWER_TYPES[0])
    if kind not in _TOWER_TYPES:
        raise ValueError(f"{shown(kind)} towers are not supported")
    if not isinstance(layers, int) or layers > len(stored):
        raise CheckpointError(
            f"{where}: the vision tower has {shown(layers)} layers by its num_hidden_layers, but there are only "
            f"{len(stored)} tensors; mend the config"
        )
    return {name: config[name] for name in _TOWER_ENTRIES if name in config}


def _check_stored(model_class: Any, config: Any, stored: Sequence[Stored], where: str) -> None:
    """Raise CheckpointError where the model of *config* has more numbers than are *stored*, before it takes memory."""
    import torch

    with torch.device("meta"), without_initial_weights():
        numbers = sum(parameter.numel() for parameter in model_class(config).parameters())
    held = sum(math.prod(tensor.shape) for tensor in stored)
    if numbers > held:
        raise CheckpointError(
            f"{where}: asks for a vision tower and a projector of {numbers:,} weights, but {held:,} are stored; "
            "mend the config"
        )


def _check_processor(processor: Any, tower: Any, path: Path) -> None:
    """Raise CheckpointError where *processor* makes images, or texts, far larger than the config *tower* asks for."""
    image_processor = getattr(processor, "image_processor", processor)
    side, patch = max(_numbers(tower.image_size)), max(_numbers(tower.patch_size))
    for name in ("size", "crop_size", "pad_size", "image_grid_pinpoints"):
        largest = max(_numbers(getattr(image_processor, name, None)), default=0)
        if largest > _MOST_TILES * side:
            raise CheckpointError(
                f"{path}: {name} of the image processor is {largest:,} pixels, but the vision tower takes images of "
                f"{side}; mend preprocessor_config.json"
            )
    patch_size, extra = getattr(processor, "patch_size", None), getattr(processor, "num_additional_image_tokens", None)
    if min(_numbers(patch_size), default=patch) < patch or max(_numbers(extra), default=0) > _MOST_EXTRA_TOKENS:
        raise CheckpointError(
            f"{path}: patch_size {shown(patch_size)} and num_additional_image_tokens {shown(extra)} of the processor "
            f"are not those of a tower with patches of {patch} pixels; mend processor_config.json"
        )


def _numbers(value: Any) -> list[float]:
    """The numbers in *value*: itself, or those in a list, or in an object."""
    if isinstance(value, int | float):
        return [value]
    parts = value if isinstance(value, list | tuple) else dict(value).values() if value else ()
    return [number for part in parts for number in _numbers(part)]


def _read_tower(directory: Path) -> Any:
    """The stock CLIP tower in *directory*."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config, where = read_json_object(directory / CONFIG_FILE), str(directory / CONFIG_FILE)
    shards, _, _ = open_shards(directory, [path.name for path in directory.iterdir()])
    stored = [entry for weights in shards.values() for entry in weights.entries]
    given = config.get("vision_config") if config.get("model_type") == "clip" else config
    stock_config = CLIPVisionConfig(**_tower_entries(given, stored, where))
    _check_stored(CLIPVisionModel, stock_config, stored, where)
    tower, loading = CLIPVisionModel.from_pretrained(directory, config=stock_config, output_loading_info=True)
    absent = sorted(name for name in loading["missing_keys"] if not name.endswith(".position_ids"))
    if absent:  # stock code makes them up
        raise CheckpointError(f"{directory}: the vision tower has no weights for {absent[0]}; restore its files")
    return tower


def _embedding_module(checkpoint: Checkpoint, device: str) -> torch.nn.Module:
    """A module that takes the place of the embedding table in a stock model."""
    import torch

    class EmbeddingRows(torch.nn.Module):
        def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
            return torch.cat([embed(checkpoint, sequence.tolist()) for sequence in token_ids]).to(device)

    return EmbeddingRows()


def _tower_directory(checkpoint: Checkpoint, given: Path | None) -> Path:
    """The directory of the CLIP tower, *given* or the config's; CheckpointError where a setting is not supported."""
    config, where = checkpoint.config, checkpoint.path / CONFIG_FILE
    way_out = "use text samples alone, or the checkpoint in the Hugging Face layout"
    name = named_tower(checkpoint) or ""
    if given is None and not (name and Path(name).is_dir()):
        raise CheckpointError(
            f"{where}: mm_vision_tower is {shown(name or None)}, which is not at hand, and images need it; name a "
            "directory, or a repository on the Hub, with `vision_tower`"
        )
    directory = given or Path(name)
    for setting, supported in (
        ("image_aspect_ratio", (None, "pad", "square")),
        ("mm_vision_select_feature", (None, "patch", "cls_patch")),
        ("mm_use_im_start_end", (None, False)),
        ("unfreeze_mm_vision_tower", (None, False)),
    ):
        if config.get(setting) not in supported:
            raise CheckpointError(
                f"{where}: images with {setting} {shown(config[setting])} are not supported; {way_out}"
            )
    if not isinstance(config.get("mm_vision_select_layer"), int):
        raise CheckpointError(f"{where}: has no mm_vision_select_layer, and images need it; mend the config")
    list_files(directory)  # stock code would wait for a pipe for ever
    tower_type = read_json_object(directory / CONFIG_FILE).get("model_type")
    if tower_type not in ("clip", "clip_vision_model"):
        raise CheckpointError(
            f"{directory}: is of model_type {shown(tower_type)}, and only CLIP towers are supported; {way_out}"
        )
    return directory


def _read_projector(checkpoint: Checkpoint, device: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(weight, bias) of the projector's linear maps, in float32; between them is a GELU."""
    import torch

    kind = checkpoint.config.get("mm_projector_type", "linear")
    match = re.fullmatch(r"mlp([1-9])x_gelu", str(kind))
    if kind != "linear" and match is None:
        raise CheckpointError(
            f"{checkpoint.path / CONFIG_FILE}: projector {shown(kind)} is not supported (linear and mlpNx_gelu are); "
            "use text samples alone"
        )
    names = [f"{2 * number}." for number in range(int(match[1]))] if match else [""]
    maps = []
    for name in names:
        pair = []
        for part in ("weight", "bias"):
            tensor = checkpoint.tensors.get(f"model.mm_projector.{name}{part}")
            if tensor is None:
                raise CheckpointError(
                    f"{checkpoint.path}: has no model.mm_projector.{name}{part}; its weights are incomplete"
                )
            pair.append(torch.from_numpy(checkpoint.read_rows(tensor)).to(device))
        maps.append((pair[0], pair[1]))
    return maps


def _padded_to_square(image: Image.Image, color: tuple[int, ...]) -> Image.Image:
    """*image* in the middle of a square of *color*."""
    from PIL import Image as Images

    side = max(image.size)
    square = Images.new(image.mode, (side, side), color)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
