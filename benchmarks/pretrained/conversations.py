"""Training conversations as token ids: LLaVA's ``chatml_direct``, several questions each, loss on the answers alone."""

from __future__ import annotations

import multiprocessing
import os
import random
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer

from benchmarks.mini.questions import Question
from benchmarks.pretrained.architecture import NUM_IMAGE_TOKENS
from benchmarks.pretrained.drawings import Drawings
from benchmarks.pretrained.language_model import END, IMAGE, PAD
from benchmarks.pretrained.questions import AMONG_CHOICES, TRAINING_SEED, WHAT, WORD_INSTRUCTION, FactsScene, Things
from s4convert.model.front_end import LETTER_INSTRUCTION
from s4convert.study.prompts import CONVERSATIONS

LENGTH = 192
SHARE_OF_LETTERS = 0.6
IGNORED = -100  # the label that cross entropy leaves out
CHUNK = 500  # conversations that a process makes at a time

_DIRECT = CONVERSATIONS["chatml_direct"]
_SYSTEM = _DIRECT([])


@dataclass(frozen=True)
class Conversations:
    """*ids* and *labels* [conversations, LENGTH]; *things*: what each is about, -1 without a picture."""

    ids: torch.Tensor
    labels: torch.Tensor
    things: torch.Tensor

    def to(self, device: torch.device) -> Conversations:
        return Conversations(self.ids.to(device), self.labels.to(device), self.things.to(device))


def image_start(tokenizer: Tokenizer) -> int:
    """Where the picture begins in every conversation about one."""
    return encode(tokenizer, [(f"{IMAGE}\n", "")])[0].index(tokenizer.token_to_id(IMAGE))


def _user(text: str) -> str:
    return _DIRECT([(text, None)]).removeprefix(_SYSTEM)


def encode(tokenizer: Tokenizer, turns: list[tuple[str, str]]) -> tuple[list[int], list[int]]:
    """(token ids, labels) of *turns*, (question, answer) each, cut or padded to LENGTH."""
    ids: list[int] = []
    labels: list[int] = []
    for number, (question, answer) in enumerate(turns):
        asked = _user(question.replace(IMAGE, IMAGE * NUM_IMAGE_TOKENS))
        asked_ids = tokenizer.encode(asked if number else _SYSTEM + asked).ids
        answer_ids = tokenizer.encode(f"{answer}{END}").ids
        ids += asked_ids + answer_ids
        labels += [IGNORED] * len(asked_ids) + answer_ids
    missing = max(0, LENGTH - len(ids))
    ids += [tokenizer.token_to_id(PAD)] * missing
    labels += [IGNORED] * missing
    return ids[:LENGTH], labels[:LENGTH]


def lettered(question: Question, before: str = "") -> tuple[str, str]:
    return f"{before}{question.with_options()}\n{LETTER_INSTRUCTION}", question.letter


def _turn(question: Question, rng: random.Random, before: str) -> tuple[str, str]:
    if rng.random() < SHARE_OF_LETTERS:
        return lettered(question, before)
    text = question.text.replace(AMONG_CHOICES, WHAT)
    return f"{before}{text}\n{WORD_INSTRUCTION}", question.word


def _make_chunk(task: tuple[str, int, int, bool, tuple[str, ...], tuple[str, ...]]) -> tuple[np.ndarray, ...]:
    tokenizer_text, seed, count, with_image, names, categories = task
    tokenizer, rng = Tokenizer.from_str(tokenizer_text), random.Random(seed)
    things = Things(names, categories)
    ids, labels = (np.zeros((count, LENGTH), np.int32) for _ in range(2))
    about = np.full(count, -1, np.int64)
    for row in range(count):
        turns: list[tuple[str, str]] = []
        if with_image:
            about[row] = rng.randrange(len(names))
            for _ in range(3):
                question = things.ask(rng, int(about[row]), rng.choice((3, 4, 4, 5)))
                turns.append(_turn(question, rng, "" if turns else f"{IMAGE}\n"))
        else:
            scene = FactsScene.make(rng, names)
            for _ in range(3):
                turns.append(_turn(scene.ask(rng), rng, "" if turns else scene.context))
        ids[row], labels[row] = encode(tokenizer, turns)
    return ids, labels, about


def make(tokenizer: Tokenizer, drawings: Drawings, count: int, *, with_image: bool) -> Conversations:
    """*count* conversations for training, made by all cores."""
    seed = TRAINING_SEED + 1_000_000 * with_image
    tasks = [
        (tokenizer.to_str(), seed + first, min(CHUNK, count - first), with_image, drawings.names, drawings.categories)
        for first in range(0, count, CHUNK)
    ]
    with multiprocessing.get_context("fork").Pool(min(len(tasks), os.cpu_count() or 1)) as pool:
        parts = pool.map(_make_chunk, tasks, chunksize=1)
    return Conversations(*(torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True)))


@dataclass(frozen=True)
class Asked:
    """Questions by letter, as they are put to the model alone: *ids*, *labels* and the drawing of each, or -1."""

    ids: torch.Tensor
    labels: torch.Tensor
    drawings: torch.Tensor

    def to(self, device: torch.device) -> Asked:
        return Asked(self.ids.to(device), self.labels.to(device), self.drawings.to(device))


def held_out(tokenizer: Tokenizer, drawings: Drawings, count: int, *, with_image: bool, seed: int) -> Asked:
    """*count* questions, around the drawings that are held out where *with_image*."""
    rng, things = random.Random(seed), Things(drawings.names, drawings.categories)
    rows = [int(row) for row in drawings.held_out.nonzero()[0]]
    ids, labels, pictures = [], [], []
    for number in range(count):
        if with_image:
            pictures.append(rows[number % len(rows)])
            turn = lettered(things.ask(rng, int(drawings.things[pictures[-1]])), f"{IMAGE}\n")
        else:
            pictures.append(-1)
            scene = FactsScene.make(rng, drawings.names)
            turn = lettered(scene.ask(rng), scene.context)
        row = encode(tokenizer, [turn])
        ids.append(row[0])
        labels.append(row[1])
    return Asked(torch.tensor(ids, dtype=torch.int32), torch.tensor(labels, dtype=torch.int32), torch.tensor(pictures))
