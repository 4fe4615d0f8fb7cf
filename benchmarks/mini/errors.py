"""Why E and answers part: where the error of each compensation lies, and what the model then says there.

``python -m benchmarks.mini.errors [--heads N] [--questions N]`` prunes N of 8 heads of every layer of the mini LLaVA by
``energy`` and by ``reconstruction``, and fits compensations to 400 questions. On other questions, it prints for each

- E over the E of no compensation, summed over the layers: on all tokens, on those of the text alone, and on the last
  token of each question, behind which the letter of the answer comes;
- how far the residual stream behind the last layer is from the original's, on all text and on those last tokens, as the
  norm of the difference over the norm of the original's;
- KL to the original and the share of the same top token, on the text and on the last tokens;
- the share of letters that are right.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch

from benchmarks.mini.questions import HELD_OUT_SEED, write_scienceqa
from benchmarks.mini.saliency import CALIBRATION_SEED
from s4convert.calibration.inputs import Inputs, make_inputs
from s4convert.calibration.samples import read_samples
from s4convert.calibration.statistics import CalibrationData, Statistics
from s4convert.checkpoint import Checkpoint
from s4convert.compensation import Fits, HeadMix, fit
from s4convert.demo import MINI_LLAVA
from s4convert.mask import parse_schedule
from s4convert.mask.making import prune_lowest
from s4convert.model.decoder import LayerDecoder
from s4convert.model.output_head import OutputHead
from s4convert.saliency import score_heads

METRICS = ("energy", "reconstruction")
# The mode, and the share of image tokens in its fit.
ROWS = {
    "none": ("none", 0.5),
    "scale": ("scale", 0.5),
    "head-ls": ("head-ls", 0.5),
    "least-squares": ("least-squares", 0.5),
    "least-squares, image 0": ("least-squares", 0.0),
}
LETTER = -2  # its place in a sample; the end of the answer stands behind it
Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", type=int, default=3, help="of 8, pruned in every layer")
    parser.add_argument("--questions", type=int, default=200, help="half of them with an image")
    arguments = parser.parse_args()
    checkpoint = Checkpoint.open(MINI_LLAVA)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        half = arguments.questions // 2
        write_scienceqa(scratch / "asked", num_image=half, num_text=half, seed=HELD_OUT_SEED)
        write_scienceqa(scratch / "calibration", num_image=200, num_text=200, seed=CALIBRATION_SEED)
        data = CalibrationData(scratch / "calibration" / "questions.json", scratch / "calibration" / "images")
        Statistics(scratch / "statistics").gather(checkpoint, data, range(8))
        fits: dict[tuple[str, str], Fits] = {}
        for metric in METRICS:
            scores = score_heads(checkpoint, metric, samples=data.read)
            mask = prune_lowest(scores, parse_schedule("uniform", str(arguments.heads / 8)))
            for row, (mode, weight) in ROWS.items():
                place = scratch / f"{metric}-{row}"
                place.mkdir()
                moments = Statistics(scratch / "statistics", image_weight=weight)
                fits[metric, row] = fit(mode, checkpoint, mask, place, moments=moments)
        samples = read_samples(scratch / "asked" / "questions.json", scratch / "asked" / "images").samples
        found = measure(checkpoint, make_inputs(checkpoint, samples), fits)
    names = list(next(iter(found.values())))
    print(f"{'mask':<16}{'compensation':<24}" + "".join(f"{name:>13}" for name in names))
    for (metric, row), figures in found.items():
        print(f"{metric:<16}{row:<24}" + "".join(f"{figures[name]:>13.3f}" for name in names))


def measure(
    checkpoint: Checkpoint, inputs: list[Inputs], fits: Mapping[tuple[str, str], Fits]
) -> dict[tuple[str, str], Figures]:
    """The figures of each of *fits*, on *inputs*."""
    decoder, streams = LayerDecoder(checkpoint), {name: [one.hidden for one in inputs] for name in (None, *fits)}
    errors: dict[tuple[str, str], Figures] = {name: defaultdict(float) for name in fits}
    for layer in range(checkpoint.geometry.num_layers):
        decoder.load(checkpoint, layer)
        for number, sample in enumerate(inputs):
            seen: list[torch.Tensor] = []
            before = streams[None][number]
            streams[None][number] = decoder.forward(before, lambda heads, seen=seen: seen.append(heads) or heads)
            for name, of_name in fits.items():
                mix: HeadMix = of_name.mixes[layer]
                change = (mix.apply_to_heads(seen[0]) - seen[0])[0] @ decoder.output_weight.T
                per_token = change.double().square().sum(-1)
                errors[name]["E all"] += float(per_token.sum())
                errors[name]["E text"] += float(per_token[~sample.is_image].sum())
                errors[name]["E last"] += float(per_token[LETTER - 1])
                streams[name][number] = decoder.forward(streams[name][number], mix.apply_to_heads)
    head = OutputHead(checkpoint)
    letters = letters_of(checkpoint, inputs)
    return {
        (metric, row): {
            **{part: value / errors[metric, "none"][part] for part, value in errors[metric, row].items()},
            **said(head, inputs, streams[None], streams[metric, row], letters),
        }
        for metric, row in fits
    }


def letters_of(checkpoint: Checkpoint, inputs: list[Inputs]) -> list[int]:
    """The token of each answer, found by its embedding."""
    table = torch.from_numpy(checkpoint.read_rows(checkpoint.embedding))
    return [int((table - sample.hidden[0, LETTER]).abs().sum(-1).argmin()) for sample in inputs]


def said(
    head: OutputHead,
    inputs: list[Inputs],
    original: list[torch.Tensor],
    changed: list[torch.Tensor],
    letters: list[int],
) -> Figures:
    """What the two residual streams behind the last layer come to, on text and on the last tokens of questions."""
    figures: Figures = {}
    for part in ("text", "last"):
        kl, same, right, tokens, moved, norm = 0.0, 0.0, 0, 0, 0.0, 0.0
        for number, sample in enumerate(inputs):
            places = torch.tensor([len(sample.is_image) + LETTER - 1])
            if part == "text":
                places = torch.nonzero(~sample.is_image).flatten()
            before, after = original[number][0, places].double(), changed[number][0, places].double()
            moved, norm = moved + float((after - before).square().sum()), norm + float(before.square().sum())
            with torch.inference_mode():
                p, q = (head.logits(head.normed(one.float())).double().log_softmax(-1) for one in (before, after))
            kl += float((p.exp() * (p - q)).sum())
            same += float((p.argmax(-1) == q.argmax(-1)).sum())
            right += int(q[-1].argmax()) == letters[number]
            tokens += len(places)
        figures |= {f"stream {part}": (moved / norm) ** 0.5, f"KL {part}": kl / tokens, f"same {part}": same / tokens}
        if part == "last":
            figures["right"] = right / tokens
    return figures


if __name__ == "__main__":
    main()
