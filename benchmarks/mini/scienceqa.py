"""Accuracy of converted mini LLaVAs on held-out questions, by LLaVA's own unmodified ScienceQA scripts.

``python -m benchmarks.mini.scienceqa``, in the environment of ``make stock``, prints one row per checkpoint: the
mini LLaVA in the original layout, unpruned, and with 10, 20 and 30 % of its heads pruned, with and without
compensation. ``python -m benchmarks.mini.scienceqa CONVERTED ...`` asks conversions of the mini LLaVA in place of
those.

Which heads go: the weakest by the norm of O_h V_h, as the demo ranks them, but with one budget for the whole model,
spread evenly. The heads are ordered by their rank inside their layer, then by their norm, and the first n go; so
no layer loses a second head before every layer has lost one. n is the rate times the number of heads, rounded
half up.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

from tqdm import tqdm

import s4convert
from benchmarks.mini.questions import HELD_OUT_SEED, write_scienceqa
from s4convert.checkpoint import Checkpoint
from s4convert.demo import MINI_LLAVA
from s4convert.mask import HeadMask
from s4convert.output.manifest import read_conversion
from s4convert.saliency import score_heads
from tests.stock.scripts import Accuracy, ask, score
from tests.support.original_layout import write_original_layout

PERCENTAGES = (10, 20, 30)
COMPENSATIONS = ("none", "scale")


def weakest_of_the_model(checkpoint: Checkpoint, count: int) -> HeadMask:
    """A mask of *count* heads, chosen as the module's docstring says."""
    order = sorted(
        (rank, norm, layer, head)
        for layer, norms in enumerate(score_heads(checkpoint, "magnitude").scores)
        for rank, (norm, head) in enumerate(sorted((norm, head) for head, norm in enumerate(norms)))
    )
    pruned: list[list[int]] = [[] for _ in range(checkpoint.geometry.num_layers)]
    for _, _, layer, head in order[:count]:
        pruned[layer].append(head)
    return HeadMask(checkpoint.geometry.num_heads, tuple(tuple(sorted(heads)) for heads in pruned))


def heads_for(percentage: int, num_heads: int) -> int:
    """*percentage* of *num_heads*, rounded half up."""
    return math.floor(Fraction(percentage * num_heads, 100) + Fraction(1, 2))


def accuracy(checkpoint: Path, questions: Path) -> Accuracy:
    """What the stock scripts say of *checkpoint*; the files that they write are left beside it."""
    answers = checkpoint.with_name(f"{checkpoint.name}.jsonl")
    ask(checkpoint, questions, answers)
    return score(questions, answers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("converted", type=Path, nargs="*", help="conversions of the mini LLaVA, as it ships")
    parser.add_argument("--questions", type=int, default=400, help="half of them with an image")
    arguments = parser.parse_args()
    if find_spec("llava") is None:
        parser.error(
            "there is no llava here; run `make stock`, then .stock-venv/bin/python -m benchmarks.mini.scienceqa"
        )
    with tempfile.TemporaryDirectory() as scratch:
        questions, original = Path(scratch, "questions"), Path(scratch, "llava-mini")
        num_image = arguments.questions // 2
        num_text = arguments.questions - num_image
        write_scienceqa(questions, num_image=num_image, num_text=num_text, seed=HELD_OUT_SEED)
        write_original_layout(MINI_LLAVA, original, Path(scratch, "tower"))
        checkpoint = Checkpoint.open(original)
        num_heads = checkpoint.geometry.num_layers * checkpoint.geometry.num_heads
        rows: list[tuple[str, str, Path]] = [(f"0 of {num_heads}", "", original)]
        for percentage in () if arguments.converted else PERCENTAGES:
            mask = weakest_of_the_model(checkpoint, heads_for(percentage, num_heads))
            for compensation in COMPENSATIONS:
                converted = original.with_name(f"{original.name}-{percentage}-{compensation}")
                s4convert.convert(original, converted, mask, compensation=compensation)
                rows.append((f"{mask.num_pruned} of {num_heads}", compensation, converted))
        for number, path in enumerate(arguments.converted):
            stated = read_conversion(Checkpoint.open(path))
            assert stated is not None, f"{path} has no manifest"
            converted = original.with_name(f"{original.name}-{number}")
            write_original_layout(path, converted, Path(scratch, f"tower-{number}"))
            rows.append((f"{stated.mask.num_pruned} of {num_heads}", stated.compensation, converted))

        print(f"{'heads pruned':<14}{'compensation':<14}{'total':>8}{'image':>8}{'text':>8}")
        for heads, compensation, path in tqdm(rows, desc="checkpoints", leave=False, disable=None):
            found = accuracy(path, questions)
            shares = f"{found.total:>8.1%}{found.image:>8.1%}{found.text:>8.1%}"
            tqdm.write(f"{heads:<14}{compensation:<14}{shares}")


if __name__ == "__main__":
    main()
