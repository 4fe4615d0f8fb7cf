"""Plain text of two kinds, split by document: speeches (State of the Union addresses) and a novel (Moby Dick).

Both are in the public domain. A document goes to training (what the fine-tuned model must still say as the pretrained
one), to calibration, or to what is held out.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path

SHARES = {"calibration": 0.2, "held-out": 0.2, "training": 0.6}  # of the documents
SPLIT_SEED = 11
PASSAGE = 1600  # characters, about 400 tokens
FIRST_SPEECH = 1900


def speeches(package: Path) -> list[str]:
    """The addresses since 1900, one document each."""
    files = sorted((package / "data").glob("*.txt"))
    return [file.read_text() for file in files if file.name[:4] >= str(FIRST_SPEECH)]


def chapters(package: Path) -> list[str]:
    """The chapters of the novel, one document each."""
    return [file.read_text() for file in sorted((package / "data").glob("chapter_*.txt"))]


def split(documents: Iterable[str]) -> dict[str, list[str]]:
    """split -> passages of its documents, the first of each document first; no document is in two splits."""
    shuffled = list(documents)
    random.Random(SPLIT_SEED).shuffle(shuffled)
    parts, first = {}, 0
    for name, share in SHARES.items():
        last = len(shuffled) if name == "training" else first + round(share * len(shuffled))
        rounds = zip_longest(*(passages(document) for document in shuffled[first:last]))
        parts[name] = [passage for one_of_each in rounds for passage in one_of_each if passage is not None]
        first = last
    return parts


def passages(document: str) -> list[str]:
    """*document* in pieces of whole sentences, PASSAGE characters or a little more; a shorter rest is left out."""
    pieces, piece = [], ""
    for sentence in re.split(r"(?<=[.!?])\s+", document):
        piece = f"{piece} {' '.join(sentence.split())}".strip()
        if len(piece) >= PASSAGE:
            pieces.append(piece)
            piece = ""
    return pieces


def write(file: Path, pieces: Iterable[str]) -> None:
    """Write *pieces* as paragraphs, which ``--text`` and ``--calibration`` read."""
    file.write_text("\n\n".join(pieces) + "\n")
