"""Turns samples into inputs of the language model, before any decoder layer is in memory."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint import Checkpoint
from ..errors import CalibrationError, CheckpointError
from ..model.decoder import stock_code
from ..model.front_end import (
    FrontEnd,
    UnusableFrontEndError,
    embed,
    open_front_end,
    stock_front_end,
)
from ..progress import sample_bar
from .samples import MAX_TOKENS, DataFile, Sample

if TYPE_CHECKING:
    import torch
    from PIL import Image

_log = logging.getLogger(__name__)


MOST_JUDGING = 4096  # tokens that models are compared on, those of images included


@dataclass(frozen=True)
class Inputs:
    """A sample: *hidden* is the residual stream [1, tokens, hidden_size] in float32 on the CPU; *is_image* [tokens],
    whether a position is a part of an image; *num_cut* tokens behind those were cut off. *is_answer* [tokens], whether
    a token is one of an answer, is None where the sample has none, or they cannot be told. *file* is where it is from.
    *token_ids* [tokens] has -1 in the places of images; it is None where the tokenizer's tokens are not those that the
    front end made."""

    hidden: torch.Tensor
    is_image: torch.Tensor
    num_cut: int = 0
    is_answer: torch.Tensor | None = None
    file: DataFile | None = None
    token_ids: torch.Tensor | None = None

    def places(self, loss: str) -> torch.Tensor:
        """Whether it counts what comes next behind each token [tokens].

        It does under the *loss* ``all``, unless that is an image's token: nobody reads what an image makes the model
        say. Under ``answers``, it does where the tokens of answers come next; in a sample without answers, as in all.
        """
        places = self.is_image.new_ones(self.is_image.shape)
        if loss == "answers" and self.is_answer is not None:
            places[:-1], places[-1] = self.is_answer[1:], False
        else:
            places[:-1] = ~self.is_image[1:]
        return places

    @property
    def answered(self) -> torch.Tensor:
        """Of the places that count under ``all``, in their order, whether the token of an answer comes next."""
        everywhere = self.places("all")
        if self.is_answer is None:
            return everywhere.new_zeros(int(everywhere.sum()))
        return self.places("answers")[everywhere]


def make_inputs(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    *,
    tower: Path | None = None,
    device: str = "cpu",
    enough: int | None = None,
    progress: bool = False,
) -> list[Inputs]:
    """The inputs that *checkpoint*'s stock front end makes from *samples*, at most :data:`MAX_TOKENS` tokens each.

    Plain text becomes windows; in each of them the tokens begin as the tokenizer lets any text begin, and the last may
    be shorter. With *enough* tokens, those of images included, no further sample is taken.

    *tower* is the directory of the vision tower, see :func:`~s4convert.model.front_end.open_front_end`.

    Raises:
        CheckpointError: the front end cannot be loaded or used, or a token is beyond the embedding table.
        CalibrationError: an image cannot be read.
    """
    with_images = any(sample.image is not None for sample in samples)
    front_end = open_front_end(checkpoint, with_images=with_images, tower=tower, device=device)
    inputs: list[Inputs] = []
    num_tokens = 0
    with sample_bar("inputs", len(samples), shown=progress) as bar:
        for sample in samples:
            image = None if sample.image is None else open_image(sample.image, sample.where)
            try:
                with stock_front_end(checkpoint, "tokenizer" if image is None else "vision tower"):
                    is_packed = sample.file is not None and sample.file.window is not None
                    whole = partial(_whole, front_end, sample, image)
                    for one in _windows(checkpoint, front_end, sample) if is_packed else [whole()]:
                        inputs.append(one)
                        num_tokens += len(one.is_image)
                        if enough is not None and num_tokens >= enough:
                            break
            except UnusableFrontEndError as error:
                raise CheckpointError(f"{sample.where}: {error}; restore its files") from error
            bar.update(1)
            if enough is not None and num_tokens >= enough:
                break
    num_cut = sum(sample.num_cut > 0 for sample in inputs)
    if num_cut:
        _log.warning("%d of %d samples are longer than %d tokens and were cut", num_cut, len(inputs), MAX_TOKENS)
    return inputs


def _whole(front_end: FrontEnd, sample: Sample, image: Image.Image | None) -> Inputs:
    """*sample*, cut at :data:`MAX_TOKENS`."""
    hidden, is_image = front_end(sample.text, image)
    is_answer, token_ids = None, token_ids_of(front_end, sample.text, is_image)
    if sample.answers and token_ids is not None:
        is_answer = _answers(front_end, sample, token_ids)[:MAX_TOKENS].clone()
    elif sample.answers:
        _log.warning("%s: its answers cannot be told from other text, so all of it counts", sample.where)
    return Inputs(
        hidden[:, :MAX_TOKENS].clone(),
        is_image[:MAX_TOKENS].clone(),
        max(0, len(is_image) - MAX_TOKENS),
        is_answer,
        sample.file,
        None if token_ids is None else token_ids[:MAX_TOKENS].clone(),
    )


def token_ids_of(front_end: FrontEnd, text: str, is_image: torch.Tensor) -> torch.Tensor | None:
    """The tokens that *front_end* makes of *text*, as :class:`Inputs` has them; *is_image* [tokens] is its own."""
    import torch

    found, is_text = front_end.text_tokens(text), ~is_image
    if len(found) != int(is_text.sum()):
        return None
    token_ids = torch.full(is_image.shape, -1)
    token_ids[is_text] = torch.tensor(found, dtype=torch.int64)
    return token_ids


def _windows(checkpoint: Checkpoint, front_end: FrontEnd, sample: Sample) -> Iterator[Inputs]:
    """The text of *sample*, embedded in the windows of its file."""
    import torch

    assert sample.file is not None and sample.file.window is not None
    most, tokenizer = sample.file.most, front_end.tokenizer
    with stock_code():
        ids = [int(token) for token in tokenizer(sample.text, add_special_tokens=False)["input_ids"]]
        first = tokenizer(sample.text[:1])["input_ids"][:1]
    begin = [tokenizer.bos_token_id] if first == [tokenizer.bos_token_id] else []
    step = sample.file.window - len(begin)
    windows = [begin + ids[at : at + step] for at in range(0, len(ids), step)]
    if most is not None and most > len(windows):
        _log.warning("%s: holds %d windows of %d tokens, fewer than %d", sample.where, len(windows), step, most)
    for window in windows[:most]:
        is_image = torch.zeros(len(window), dtype=torch.bool)
        yield Inputs(embed(checkpoint, window), is_image, file=sample.file, token_ids=torch.tensor(window))


def _answers(front_end: FrontEnd, sample: Sample, token_ids: torch.Tensor) -> torch.Tensor:
    """Whether each token of *sample*, of its *token_ids*, is one of an answer [tokens].

    An answer begins where the tokens of the text before it cease to be those of the whole text: a tokenizer may join
    the last letter before an answer with its first.
    """
    import torch

    places = (token_ids >= 0).nonzero()[:, 0]
    whole, is_answer = token_ids[places].tolist(), torch.zeros_like(token_ids, dtype=torch.bool)
    for begin, end in sample.answers:
        first, behind = (_num_common(front_end.text_tokens(sample.text[:at]), whole) for at in (begin, end))
        is_answer[places[first:behind]] = True
    return is_answer


def _num_common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens the two begin with alike."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def some_of(inputs: Sequence[Inputs]) -> list[Inputs]:
    """Some of *inputs*, spread evenly over them, of :data:`MOST_JUDGING` tokens together at the most."""
    step = 1
    while sum(len(sample.is_image) for sample in inputs[::step]) > MOST_JUDGING and step < len(inputs):
        step += 1
    return list(inputs[::step])


def modalities(batch: Sequence[Inputs], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(whether each token of *batch* is a part of an image, one sample after the other; where the samples have tokens,
    [samples, longest], when they are padded on the right), both on *device*."""
    import torch

    lengths = torch.tensor([len(sample.is_image) for sample in batch])
    inside = torch.arange(int(lengths.max())) < lengths[:, None]
    return torch.cat([sample.is_image for sample in batch]).to(device), inside.to(device)


def describe(inputs: Sequence[Inputs]) -> dict[str, Any]:
    """What *inputs* come to, for a provenance: their files, tokens of text and of images, and what was cut off.

    ``window_tokens`` of a file is how long its samples are at the most.
    """
    files = Counter(sample.file for sample in inputs if sample.file is not None)
    image = sum(int(sample.is_image.sum()) for sample in inputs)
    return {
        "files": [
            {"file": file.name, "sha256": file.sha256, "samples": count, "window_tokens": file.window or MAX_TOKENS}
            for file, count in files.items()
        ],
        "num_samples": len(inputs),
        "text_tokens": sum(len(sample.is_image) for sample in inputs) - image,
        "image_tokens": image,
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
