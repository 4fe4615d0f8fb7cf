"""Train the mini LLaVA's sentencepiece tokenizer: BPE with byte fallback, as Llama's own was made."""

from __future__ import annotations

import random
from pathlib import Path

import sentencepiece

from benchmarks.mini.questions import (
    TRAINING_SEED,
    FactsScene,
    ShapesScene,
)
from s4convert.model.front_end import LETTER_INSTRUCTION, SYSTEM_PROMPT

VOCAB_SIZE = 640
WORD_INSTRUCTION = "Answer the question using a single word or phrase."
GENERAL_TEXT = (
    "The capital of France is Paris, and its river is the Seine.",
    "Describe this picture in a few words, then say what you like about it.",
)


def train_tokenizer(model_file: Path) -> None:
    """Write the sentencepiece model for the questions' language to *model_file*."""
    rng = random.Random(TRAINING_SEED)
    lines = list(GENERAL_TEXT) * 20
    for _ in range(4000):
        scene = rng.choice((ShapesScene, FactsScene)).make(rng)
        question = scene.ask(rng)
        lines += [f"{SYSTEM_PROMPT} USER:", *(scene.context + question.with_options()).split("\n")]
        lines += [LETTER_INSTRUCTION, WORD_INSTRUCTION, f" ASSISTANT: {question.letter}", f"ASSISTANT: {question.word}"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(model_file.with_suffix("")),
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=False,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    model_file.with_suffix(".vocab").unlink()
