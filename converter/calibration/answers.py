"""The original's own answers to calibration questions: what it would say, in place of what a file says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..checkpoint import Checkpoint
from ..choices import BATCH_SIZE
from ..model.front_end import conversation, open_front_end
from ..model.resident import ResidentModel
from ..progress import sample_bar
from .inputs import open_image
from .samples import MAX_TOKENS, Sample

MAX_ANSWER_TOKENS = 256  # of one answer; then it is cut


def own_answers(
    checkpoint: Checkpoint,
    model: ResidentModel,
    samples: Sequence[Sample],
    *,
    tower: Path | None = None,
    progress: bool = False,
) -> tuple[Sample, ...]:
    """*samples* with greedy answers of *model*, which is *checkpoint*'s, turn by turn; plain text stays as it is.

    *tower* is the directory of the vision tower, see :func:`~s4convert.model.front_end.open_front_end`.

    Raises:
        CheckpointError: the front end cannot be loaded or used.
        CalibrationError: an image cannot be read.
    """
    with_images = any(sample.image is not None for sample in samples)
    front_end = open_front_end(checkpoint, with_images=with_images, tower=tower, device=model.device)
    decode = partial(front_end.tokenizer.decode, skip_special_tokens=True)
    said: list[list[tuple[str, str | None]]] = [[] for _ in samples]
    with sample_bar("answer", sum(len(sample.turns) for sample in samples), shown=progress) as bar:
        for turn in range(max((len(sample.turns) for sample in samples), default=0)):
            asked = [number for number, sample in enumerate(samples) if turn < len(sample.turns)]
            for first in range(0, len(asked), BATCH_SIZE):
                batch = asked[first : first + BATCH_SIZE]
                prompts = []
                for number in batch:
                    sample = samples[number]
                    image = None if sample.image is None else open_image(sample.image, sample.where)
                    text = conversation([*said[number], (sample.turns[turn][0], None)])
                    prompts.append(front_end(text, image)[0][:, :MAX_TOKENS])
                answers = model.generate(prompts, max_new_tokens=MAX_ANSWER_TOKENS)
                for number, tokens in zip(batch, answers, strict=True):
                    said[number].append((samples[number].turns[turn][0], decode(tokens).strip()))
                bar.update(len(batch))
    return tuple(
        replace(sample, text=conversation(turns), turns=tuple(turns)) if turns else sample
        for sample, turns in zip(samples, said, strict=True)
    )
