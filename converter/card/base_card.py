"""The model card that IN has, read: its metadata and its text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converter.checkpoint import Checkpoint
from converter.errors import CheckpointError, StorageError

CARD_FILE = "README.md"
PICTURE_FILE = "s4convert-heads.png"
# Around what is generated, so that the card of a converted checkpoint that is converted again has one such part.
BEGIN, END = "<!-- s4convert: generated, begin -->", "<!-- s4convert: generated, end -->"
_WAY_OUT = "mend it, or leave it as it is with --no-card"


@dataclass(frozen=True)
class BaseCard:
    """The *metadata* (the YAML block at the top) of a card and the *text* below, without what s4convert generated."""

    metadata: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""


def read_base_card(checkpoint: Checkpoint) -> BaseCard:
    """*checkpoint*'s README.md; an empty card where it has none.

    Raises:
        CheckpointError: the file is not UTF-8, its metadata is no YAML mapping, or a file stands where the card's
            picture goes.
        StorageError: it cannot be read.
    """
    if PICTURE_FILE in checkpoint.sidecars and checkpoint.manifest is None:
        raise CheckpointError(
            f"{checkpoint.path / PICTURE_FILE}: stands where the model card's picture goes; rename it, or use --no-card"
        )
    if CARD_FILE not in checkpoint.sidecars:
        return BaseCard()
    path = checkpoint.path / CARD_FILE
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: is not UTF-8 at byte {error.start}; {_WAY_OUT}") from error
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    text = REGEX_YAML_BLOCK.sub("", content, count=1)
    text = re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", "", text, flags=re.DOTALL)
    return BaseCard(_metadata(path), text.strip())


def _metadata(path: Path) -> dict[str, Any]:
    from huggingface_hub import metadata_load

    try:
        found = metadata_load(path) or {}
    except Exception as error:  # what PyYAML and the Hub's client raise on a text that is no mapping
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: its metadata is not a YAML mapping ({reason}); {_WAY_OUT}") from error
    return {str(name): value for name, value in found.items()}
