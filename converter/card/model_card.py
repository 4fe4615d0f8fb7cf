"""OUT's model card: what was pruned, how it was checked and how to load it, above what the base's card says."""

from __future__ import annotations

import json
import logging
import os
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from converter.card.base_card import BEGIN, CARD_FILE, END, PICTURE_FILE, BaseCard
from converter.card.metadata import base_model, card_metadata
from converter.checkpoint import CONFIG_FILE, MANIFEST_FILE, Checkpoint, read_json_object
from converter.checkpoint.layouts import LANGUAGE_MODEL, ORIGINAL
from converter.errors import StorageError
from converter.heatmap import plot_heatmap, text_heatmap
from converter.mask import HeadMask
from converter.rewrite.plan import Plan
from converter.verify.report import Report
from converter.version import __version__

_log = logging.getLogger(__name__)

CARD_FILES = frozenset({CARD_FILE, PICTURE_FILE})
_LIBRARIES = ("torch", "transformers", "safetensors", "numpy")


def write_card(
    checkpoint: Checkpoint, plan: Plan, report: Report, base: BaseCard, command: str, directory: Path
) -> dict[str, tuple[int, str]]:
    """Write the card of *checkpoint*'s conversion into *directory*, in place of a copy of the base's.

    *command* is what made the conversion. The picture needs matplotlib; without it, the heatmap is text. There is no
    time, path or host in the card, so the same inputs and libraries give the same bytes. The result maps the files'
    names to their (size, sha256).

    Raises:
        StorageError: the disk refused.
    """
    from huggingface_hub import ModelCard

    if base_model(checkpoint) is None:
        _log.debug("%s: is a local directory, so the model card names no base_model", checkpoint.path)
    has_picture = find_spec("matplotlib") is not None
    (directory / PICTURE_FILE).unlink(missing_ok=True)  # the base's own
    if has_picture:
        plot_heatmap(directory / PICTURE_FILE, plan.mask.num_heads, plan.mask.pruned, None, "pruned heads")
    body = _body(checkpoint, plan, report, command, has_picture=has_picture)
    below = f"\n\n# The card of the original\n\n{base.text}" if base.text else ""
    card = ModelCard(f"---\n{card_metadata(checkpoint, base)}\n---\n\n{BEGIN}\n{body}\n{END}{below}\n")
    try:
        (directory / CARD_FILE).write_bytes(str(card).encode("utf-8", "backslashreplace"))
        return {name: _settle(directory / name) for name in sorted(CARD_FILES) if (directory / name).is_file()}
    except OSError as error:
        raise StorageError(f"{error.filename}: cannot be written: {error.strerror}") from error


def _settle(path: Path) -> tuple[int, str]:
    """Bring *path* to the disk; its (size, sha256)."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        content = file.read()
    return len(content), sha256(content).hexdigest()


def _body(checkpoint: Checkpoint, plan: Plan, report: Report, command: str, *, has_picture: bool) -> str:
    mask, name = plan.mask, checkpoint.known_as.name
    heads = mask.num_layers * mask.num_heads
    heatmap = f"```\n{text_heatmap(mask.num_heads, mask.pruned)}\n```"
    return "\n\n".join(
        [
            f"# {name}, with {mask.num_pruned} of {heads} attention heads pruned",
            f"s4convert {__version__} silenced {mask.num_pruned} of {heads} "
            f"attention heads in the weights of `{checkpoint.source}`: they are zero, and compute nothing. Tensors, "
            "shapes and head counts are the original's. "
            f"`{MANIFEST_FILE}` holds the mask and the sha256 of every file.",
            "## What was pruned",
            f"![Pruned heads by layer and head]({PICTURE_FILE})" if has_picture else heatmap,
            _provenance(mask),
            "## Compensation",
            f"`{plan.compensation.mode}`: of the layers that lose heads, the kept columns of `o_proj` "
            f"{plan.compensation.description.change}.",
            "## Verification",
            _verification(report),
            "## Loading it",
            _loading(checkpoint),
            "## How it was made",
            f"```console\n$ {command}\n```",
            _versions(),
            "| file | sha256 |\n| --- | --- |\n"
            + "\n".join(f"| `{file}` | `{sha}` |" for file, sha in _hashes(report)),
        ]
    )


def _provenance(mask: HeadMask) -> str:
    layers = f"{len(mask.touched_layers)} of {mask.num_layers} layers lose heads."
    digest = sha256(json.dumps(mask.to_json(), sort_keys=True).encode()).hexdigest()
    said = mask.to_json().get("provenance") or {}
    from_where = ", ".join(f"{name} {value}" for name, value in said.items() if isinstance(value, (str, int, float)))
    return f"{layers} Mask: sha256 `{digest}`" + (f" ({from_where})." if from_where else ".")


def _verification(report: Report) -> str:
    if report.behaviour is None:
        return "Every byte was compared with the original's; hidden states were not looked at (`--no-verify`)."
    return (
        "Every byte was compared with the original's, and hidden states, by stock code, with those of the original and "
        f"of the original with hooks that prune at run time:\n\n```\n{report.to_text()}\n```"
    )


def _loading(checkpoint: Checkpoint) -> str:
    if checkpoint.family.lineage == ORIGINAL:
        return (
            "With LLaVA's own code, which goes by the directory's name (keep it near the original's):\n\n```python\n"
            "from llava.mm_utils import get_model_name_from_path\n"
            "from llava.model.builder import load_pretrained_model\n"
            '\npath = "OUT"  # this directory\n'
            "tokenizer, model, image_processor, context_len = load_pretrained_model(\n"
            "    path, None, get_model_name_from_path(path)\n)\n```"
        )
    named = read_json_object(checkpoint.path / CONFIG_FILE).get("architectures")
    is_text = checkpoint.family.lineage == LANGUAGE_MODEL
    model = named[0] if isinstance(named, list) and named and str(named[0]).isidentifier() else "AutoModel"
    reader = "AutoTokenizer" if is_text else "AutoProcessor"
    return (
        f"With stock transformers:\n\n```python\nfrom transformers import {reader}, {model}\n\n"
        f'path = "OUT"  # this directory, or its name on the Hub\nmodel = {model}.from_pretrained(path)\n'
        f"{reader.removeprefix('Auto').lower()} = {reader}.from_pretrained(path)\n```"
    )


def _versions() -> str:
    found = [f"s4convert {__version__}"]
    for library in _LIBRARIES:
        try:
            found.append(f"{library} {version(library)}")
        except PackageNotFoundError:  # as in a tree that was never installed
            continue
    return "Versions: " + ", ".join(found) + "."


def _hashes(report: Report) -> list[tuple[str, str]]:
    digests = report.structure.digests
    return [(name, sha) for name, (_, sha) in digests.items() if name.endswith(".safetensors")]
