"""Accuracy of a checkpoint on held-out ScienceQA-format questions, by stock transformers' greedy ``generate``.

``python -m benchmarks.mini.accuracy CHECKPOINT ...`` prints one row per checkpoint: image questions,
text-only questions, and the image questions again with the image blanked.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from PIL import Image
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from benchmarks.mini.questions import HELD_OUT_SEED, LETTER_INSTRUCTION, SYSTEM_PROMPT, write_scienceqa


def answer(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, question: str, image: Image.Image | None
) -> str:
    """What *model* says to one question in LLaVA's ``vicuna_v1`` conversation."""
    prompt = f"{SYSTEM_PROMPT} USER: {question}\n{LETTER_INSTRUCTION} ASSISTANT:"
    inputs = processor(text=prompt, images=image, return_tensors="pt")
    output = model.generate(**inputs, do_sample=False, max_new_tokens=4)
    return str(processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


def accuracy(checkpoint: Path, questions: Path, *, blank: bool = False) -> dict[str, tuple[int, int]]:
    """(right, asked) for ``image`` and ``text`` questions; *blank* greys every image out."""
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint).float().eval()
    processor = LlavaProcessor.from_pretrained(checkpoint)
    problems = json.loads((questions / "problems.json").read_text())
    counts = {"image": [0, 0], "text": [0, 0]}
    for entry in tqdm(json.loads((questions / "questions.json").read_text()), desc=checkpoint.name, leave=False):
        image = Image.open(questions / "images" / entry["image"]).convert("RGB") if "image" in entry else None
        if blank:
            if image is None:
                continue
            image = Image.new("RGB", image.size, (128, 128, 128))
        said = answer(model, processor, entry["conversations"][0]["value"], image)
        count = counts["image" if image is not None else "text"]
        count[0] += said == "ABCDE"[problems[entry["id"]]["answer"]]
        count[1] += 1
    return {kind: (right, asked) for kind, (right, asked) in counts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--questions", type=int, default=200, help="of each kind")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        questions = Path(scratch)
        write_scienceqa(questions, num_image=arguments.questions, num_text=arguments.questions, seed=HELD_OUT_SEED)
        print(f"{'checkpoint':<32} {'image':>8} {'text':>8} {'blanked image':>14}")
        for checkpoint in arguments.checkpoints:
            seen = accuracy(checkpoint, questions)
            blanked = accuracy(checkpoint, questions, blank=True)
            shares = [right / asked for right, asked in (seen["image"], seen["text"], blanked["image"])]
            print(f"{checkpoint.name:<32} {shares[0]:>8.1%} {shares[1]:>8.1%} {shares[2]:>14.1%}")


if __name__ == "__main__":
    main()
