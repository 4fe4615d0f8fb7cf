"""Train the mini LLaVA that ships in ``converter/demo`` (one GPU, ten minutes).

``python -m benchmarks.mini.train OUT`` writes a checkpoint of stock transformers' layout. The model is
``LlavaForConditionalGeneration`` itself; only the data and the loop are ours. What made it learn: weights
drawn with a standard deviation near 1/sqrt(hidden_size) (with transformers' 0.02 it was still at chance on
lettered questions after 5,000 steps), and many short turns per conversation. ``training-log.jsonl`` beside
this file is the log of the run that made the shipped weights (data seed and model seed as below, one H200).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import time
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from tqdm import tqdm
from transformers import LlavaConfig, LlavaForConditionalGeneration

from benchmarks.mini.architecture import (
    BOS_TOKEN,
    CONFIG,
    EOS_TOKEN,
    IMAGE_TOKEN,
    NUM_IMAGE_TOKENS,
    PAD_TOKEN,
    SIDECARS,
    write_checkpoint,
)
from benchmarks.mini.questions import (
    IMAGE_SIZE,
    LETTERS,
    TRAINING_SEED,
    FactsScene,
    Scene,
    ShapesScene,
)
from benchmarks.mini.tokenizer import train_tokenizer
from s4convert.model.front_end import LETTER_INSTRUCTION, SYSTEM_PROMPT

SEQUENCE_LENGTH = 288
SHARE_OF_LETTERS = 0.4
IGNORED = -100  # the label that cross entropy leaves out

INITIALIZER_RANGE = 0.08
LEARNING_RATE = 1.5e-3
WARM_UP_STEPS = 1000
WEIGHT_DECAY = 0.05
BETAS = (0.9, 0.98)
MODEL_SEED = 0
LOG_EVERY = 250
NUM_HELD_OUT = 2048
CHUNK = 1000  # conversations that a process makes at a time

# (token ids, labels, pixels); pixels is empty for text-only conversations.
Samples = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def encode_conversation(
    tokenizer: sentencepiece.SentencePieceProcessor, scene: Scene, rng: random.Random
) -> tuple[list[int], list[int]]:
    """Token ids and labels of one multi-turn ``vicuna_v1`` conversation; only the answers carry loss."""
    if isinstance(scene, ShapesScene):
        ids = [BOS_TOKEN, *tokenizer.encode(f"{SYSTEM_PROMPT} USER: "), *[IMAGE_TOKEN] * NUM_IMAGE_TOKENS]
        opening = "\n"
    else:  # without an image the first turn is one run of text
        ids = [BOS_TOKEN]
        opening = f"{SYSTEM_PROMPT} USER: {scene.context}"
    labels = [IGNORED] * len(ids)
    while len(ids) < SEQUENCE_LENGTH:
        question = scene.ask(rng)
        if rng.random() < SHARE_OF_LETTERS:
            text, answer = f"{question.with_options()}\n{LETTER_INSTRUCTION}", question.letter
        else:
            text, answer = question.text, question.word
        prompt_ids = tokenizer.encode(f"{opening}{text} ASSISTANT:")
        answer_ids = [*tokenizer.encode(answer), EOS_TOKEN]
        opening = "USER: "
        ids += prompt_ids + answer_ids
        labels += [IGNORED] * len(prompt_ids) + answer_ids
    return ids[:SEQUENCE_LENGTH], labels[:SEQUENCE_LENGTH]


def _make_chunk(task: tuple[str, int, int, bool]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    model_file, seed, count, with_image = task
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=model_file)
    rng = random.Random(seed)
    ids = np.full((count, SEQUENCE_LENGTH), PAD_TOKEN, np.int16)
    labels = np.full((count, SEQUENCE_LENGTH), IGNORED, np.int16)
    pixels = np.zeros((count if with_image else 0, 3, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    for row in range(count):
        scene: Scene = ShapesScene.make(rng) if with_image else FactsScene.make(rng)
        if isinstance(scene, ShapesScene):
            pixels[row] = np.asarray(scene.draw()).transpose(2, 0, 1)
        ids[row], labels[row] = encode_conversation(tokenizer, scene, rng)
    return ids, labels, pixels


def make_samples(model_file: Path, count: int, *, with_image: bool, seed: int, device: torch.device) -> Samples:
    """*count* conversations, made by all cores, on *device*."""
    sizes = [min(CHUNK, count - first) for first in range(0, count, CHUNK)]
    tasks = [(str(model_file), seed + number, size, with_image) for number, size in enumerate(sizes)]
    with multiprocessing.get_context("spawn").Pool() as pool:
        parts = list(tqdm(pool.imap(_make_chunk, tasks), total=len(tasks), desc="samples"))
    ids, labels, pixels = (torch.from_numpy(np.concatenate(column)).to(device) for column in zip(*parts, strict=True))
    return ids, labels, pixels


def normalize(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 pixels [batch, 3, height, width] as the checkpoint's image processor hands them over."""
    processor = SIDECARS["preprocessor_config.json"]
    mean = torch.tensor(processor["image_mean"], device=pixels.device).view(3, 1, 1)
    std = torch.tensor(processor["image_std"], device=pixels.device).view(3, 1, 1)
    return (pixels.float() / 255 - mean) / std


@torch.no_grad()
def answer_accuracy(
    model: LlavaForConditionalGeneration, samples: Samples, letters: torch.Tensor, batch: int = 512
) -> dict[str, float]:
    """The share of answer tokens that are the arg max under teacher forcing, letters and words apart."""
    right, total = [0, 0], [0, 0]
    for first in range(0, len(samples[0]), batch):
        ids, labels, pixels = (part[first : first + batch] for part in samples)
        with torch.autocast(ids.device.type, torch.bfloat16):
            images = normalize(pixels) if len(pixels) else None
            predicted = model(input_ids=ids.long(), pixel_values=images).logits[:, :-1].argmax(-1)
        targets = labels[:, 1:].long()
        is_letter = torch.isin(targets, letters)
        is_word = (targets != IGNORED) & (targets != EOS_TOKEN) & ~is_letter
        for kind, counted in enumerate((is_letter, is_word)):
            right[kind] += int((predicted == targets)[counted].sum())
            total[kind] += int(counted.sum())
    return {name: round(right[k] / max(1, total[k]), 4) for k, name in enumerate(("letters", "words"))}


def new_model(device: torch.device) -> LlavaForConditionalGeneration:
    """The mini LLaVA with fresh float32 weights."""
    torch.manual_seed(MODEL_SEED)
    config = {name: value for name, value in CONFIG.items() if name != "torch_dtype"}
    config["text_config"] = CONFIG["text_config"] | {"initializer_range": INITIALIZER_RANGE}
    config["initializer_range"] = INITIALIZER_RANGE
    return LlavaForConditionalGeneration(LlavaConfig(**config)).float().to(device)


def train(arguments: argparse.Namespace) -> None:
    device = torch.device(arguments.device)
    arguments.out.mkdir(parents=True)
    tokenizer_model = arguments.out / "tokenizer.model"
    train_tokenizer(tokenizer_model)
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_model))
    letters = torch.tensor([tokenizer.encode(letter)[0] for letter in LETTERS[:4]], device=device)
    training, held_out = [], []
    for with_image in (True, False):
        seed = TRAINING_SEED + 10_000_000 * with_image
        training.append(
            make_samples(tokenizer_model, arguments.samples, with_image=with_image, seed=seed, device=device)
        )
        held_out.append(
            make_samples(tokenizer_model, NUM_HELD_OUT, with_image=with_image, seed=int(with_image), device=device)
        )

    model = new_model(device)
    compiled = torch.compile(model, dynamic=False) if device.type == "cuda" else model
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}],
        lr=LEARNING_RATE,
        betas=BETAS,
        fused=device.type == "cuda",
    )
    warm_up = min(WARM_UP_STEPS, arguments.steps // 4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warm_up, (arguments.steps - step) / (arguments.steps - warm_up)),
    )
    log, start = [], time.monotonic()
    for step in tqdm(range(1, arguments.steps + 1), desc="train", mininterval=10):
        rows = torch.randint(arguments.samples, (2, arguments.batch // 2), device=device)
        ids = torch.cat([training[kind][0][rows[kind]] for kind in range(2)]).long()
        labels = torch.cat([training[kind][1][rows[kind]] for kind in range(2)]).long()
        with torch.autocast(device.type, torch.bfloat16):
            logits = compiled(input_ids=ids, pixel_values=normalize(training[0][2][rows[0]])).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % LOG_EVERY == 0 or step == arguments.steps:
            entry = {"step": step, "loss": round(loss.item(), 4)}
            for name, samples in zip(("image", "text"), held_out, strict=True):
                entry[name] = answer_accuracy(model, samples, letters)
            entry["seconds"] = round(time.monotonic() - start, 1)
            log.append(json.dumps(entry))
            tqdm.write(log[-1])
    write_checkpoint(arguments.out, model.state_dict(), tokenizer_model)
    arguments.log.write_text("\n".join(log) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--log", type=Path, default=Path("training-log.jsonl"))
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--samples", type=int, default=200_000, help="of each kind")
    parser.add_argument("--device", default="cuda")
    train(parser.parse_args())
