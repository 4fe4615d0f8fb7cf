"""OUT's model card: what was pruned, how it was checked and how to load it, above what IN's card says."""

from __future__ import annotations

import json
import logging
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..checkpoint import MANIFEST_FILE, Checkpoint
from ..checkpoint.families import LANGUAGE_MODEL, ORIGINAL
from ..compensation import MODES
from ..compensation.modes import REFIT
from ..disk import read_file, write_synced
from ..errors import CheckpointError, StorageError
from ..mask import HeadMask
from ..rewrite.plan import Plan
from ..verify.report import Report
from ..version import __version__, versions
from .heatmap import png_heatmap
from .origin import Origin, in_words

_log = logging.getLogger(__name__)

CARD_FILE = "README.md"
PICTURE_FILE = "s4convert-heads.png"
CARD_FILES = frozenset({CARD_FILE, PICTURE_FILE})
# Around what is generated, so that the card of a converted checkpoint that is converted again has one such part.
BEGIN, END = "<!-- s4convert: generated, begin -->", "<!-- s4convert: generated, end -->"
_METADATA_BYTES = 1 << 20  # which PyYAML takes seconds for
_WAY_OUT = "mend it, or leave it as it is with `card=False`"


@dataclass(frozen=True)
class BaseCard:
    """What OUT's card is made of beside the report: its YAML block *metadata*, and the *text* of IN's own card."""

    metadata: str
    text: str


def read_base_card(checkpoint: Checkpoint) -> BaseCard:
    """What the card of *checkpoint*'s conversion takes over from its README.md, if it has one.

    Raises:
        CheckpointError: the file is not UTF-8, its metadata cannot be read or taken over, or a file stands where the
            card's picture goes.
        StorageError: it cannot be read.
    """
    if PICTURE_FILE in checkpoint.sidecars and checkpoint.manifest is None:
        raise CheckpointError(
            f"{checkpoint.path / PICTURE_FILE}: stands where the model card's picture goes; "
            "rename it, or use `card=False`"
        )
    path, content = checkpoint.path / CARD_FILE, ""
    if CARD_FILE in checkpoint.sidecars:
        try:
            content = read_file(path, CheckpointError).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path}: is not UTF-8 at byte {error.start}; {_WAY_OUT}") from error
    block, text = _split(content)
    if len(block) > _METADATA_BYTES:
        raise CheckpointError(f"{path}: its metadata is longer than {_METADATA_BYTES:,} characters; {_WAY_OUT}")
    import yaml

    try:
        found = yaml.safe_load(block) or {}
        written = yaml.safe_dump(card_metadata(checkpoint, found), sort_keys=False, allow_unicode=True)
    except Exception as error:  # what PyYAML raises, and what becomes of a text that is no mapping
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: its metadata is not a YAML mapping ({reason}); {_WAY_OUT}") from error
    return BaseCard(written, _without_generated(text).strip())


def _split(content: str) -> tuple[str, str]:
    """(the YAML block at the top of a card, what is below it)."""
    lines = re.split("\r\n?|\n", content.lstrip())
    if lines[0] != "---" or "---" not in lines[1:]:
        return "", "\n".join(lines)
    end = lines.index("---", 1)
    return "\n".join(lines[1:end]), "\n".join(lines[end + 1 :])


def _without_generated(text: str) -> str:
    kept, at = [], 0
    while (begin := text.find(BEGIN, at)) >= 0 and (end := text.find(END, begin)) >= 0:
        kept.append(text[at:begin])
        at = end + len(END)
    return "".join([*kept, text[at:]])


TAGS = ("s4convert", "pruned", "attention-head-pruning")
# What the base's card says of the unpruned model, or of what that was made from.
_NOT_OF_THE_PRUNED = ("base_model", "base_model_relation", "eval_results", "model-index", "model_name", "widget")


def card_metadata(checkpoint: Checkpoint, base: Mapping[Any, Any]) -> dict[str, Any]:
    """The metadata of the card of *checkpoint*'s conversion: licence, languages, data and the like are the *base*'s."""
    named = {str(name): value for name, value in base.items()}
    kept = {name: value for name, value in named.items() if name not in _NOT_OF_THE_PRUNED}
    lineage = checkpoint.family.lineage
    kept.setdefault("library_name", "llava" if lineage == ORIGINAL else "transformers")
    kept.setdefault("pipeline_tag", "text-generation" if lineage == LANGUAGE_MODEL else "image-text-to-text")
    tags = kept.pop("tags", None) or []
    tags = tags if isinstance(tags, list) else [tags]
    kept["tags"] = [*tags, *(tag for tag in TAGS if tag not in tags)]
    name = base_model(checkpoint)
    if name is not None:
        # Of the Hub's relations (adapter, merge, quantized, finetune) this is what whole weights with other numbers
        # in them are; pruning has none of its own.
        kept |= {"base_model": name, "base_model_relation": "finetune"}
    return kept


def base_model(checkpoint: Checkpoint) -> str | None:
    """*checkpoint*'s name on the Hub, where it came from there, be it by way of the client's cache; else None."""
    if checkpoint.repository is not None:
        return checkpoint.repository.repo_id
    parts = checkpoint.path.absolute().parts
    if len(parts) > 2 and parts[-2] == "snapshots":
        cached = re.fullmatch(r"models--([^-].*?)--(.+)", parts[-3])
        return f"{cached[1]}/{cached[2]}" if cached else None
    return None


def draw_picture(mask: HeadMask) -> bytes | None:
    """The card's picture of *mask*; None, and a warning, where it cannot be drawn: it is only decoration."""
    try:
        return png_heatmap(mask.num_heads, mask.pruned, "pruned heads")
    except Exception as error:  # a broken Pillow raises anything
        _log.warning(
            "the model card has no picture, because Pillow cannot draw it (%s: %s)", type(error).__name__, error
        )
        return None


def write_card(
    checkpoint: Checkpoint,
    plan: Plan,
    report: Report,
    base: BaseCard,
    picture: bytes | None,
    origin: Origin,
    evaluation: str | None,
    directory: Path,
) -> dict[str, tuple[int, str]]:
    """Write the card of *checkpoint*'s conversion into *directory*, with its *picture* if there is one.

    *evaluation* says what is left of the original's answers, where both were asked.

    There is no time, path or host in the card, so the same inputs and libraries give the same bytes. The result maps
    the files' names to their (size, sha256).

    Raises:
        StorageError: the disk refused.
    """
    if base_model(checkpoint) is None:
        _log.debug("%s: is a local directory, so the model card names no base_model", checkpoint.path)
    body = _body(checkpoint, plan, report, origin, evaluation, has_picture=picture is not None)
    below = f"\n\n# The card of the original\n\n{base.text}" if base.text else ""
    card = f"---\n{base.metadata}---\n\n{BEGIN}\n{body}\n{END}{below}\n"
    files = {CARD_FILE: card.encode("utf-8", "backslashreplace")}
    if picture is not None:
        files[PICTURE_FILE] = picture
    for name, content in files.items():
        try:
            write_synced(directory / name, content)
        except OSError as error:
            raise StorageError(f"{directory / name}: cannot be written: {error.strerror}") from error
    return {name: (len(content), sha256(content).hexdigest()) for name, content in files.items()}


def _body(
    checkpoint: Checkpoint, plan: Plan, report: Report, origin: Origin, evaluation: str | None, *, has_picture: bool
) -> str:
    mask, name = plan.mask, checkpoint.known_as.name
    heads = mask.num_layers * mask.num_heads
    return "\n\n".join(
        [
            f"# {name}, with {mask.num_pruned} of {heads} attention heads pruned",
            f"s4convert {__version__} silenced {mask.num_pruned} of {heads} "
            f"attention heads in the weights of `{checkpoint.source}`: they are zero, and compute nothing. Tensors, "
            "shapes and head counts are the original's. "
            f"`{MANIFEST_FILE}` holds the mask and the sha256 of every file.",
            "## What was pruned",
            *([f"![Pruned heads by layer and head]({PICTURE_FILE})"] if has_picture else []),
            f"{len(mask.touched_layers)} of {mask.num_layers} layers lose heads: {mask.num_pruned} {mask.realised}.",
            _mask_origin(mask),
            "## Compensation",
            f"`{plan.fits.mode}`: of the layers that lose heads, the kept columns of `o_proj` "
            f"{_change(plan)}.{_fitted_to(origin)}{_trained(plan)}",
            "## Verification",
            _verification(report),
            *([] if evaluation is None else ["## What is left", evaluation]),
            "## Loading it",
            _loading(checkpoint),
            "## How it was made",
            f"```console\n$ {origin.made_by}\n```",
            "Versions: " + ", ".join(f"{name} {version}" for name, version in versions().items()) + ".",
            "| file | sha256 |\n| --- | --- |\n"
            + "\n".join(f"| `{file}` | `{sha}` |" for file, sha in _hashes(report)),
        ]
    )


def public_command(arguments: Sequence[str], names: Mapping[str, str]) -> str:
    """The command line as a card may state it: without a path of this machine, and with *names* for what is called
    otherwise there."""
    said = ["s4convert"]
    for argument in arguments:
        option, equals, value = argument.rpartition("=") if argument.startswith("--") else ("", "", argument)
        path = Path(value)
        is_local = path.is_absolute() or value.startswith((".", "~")) or path.exists()
        public = names.get(value) or names.get(str(path)) or (path.name if is_local else value)
        said.append(f"{option}{equals}{public}")
    return shlex.join(said)


def _mask_origin(mask: HeadMask) -> str:
    """The mask's file, and what it says of itself."""
    digest = sha256(json.dumps(mask.to_json(), sort_keys=True).encode()).hexdigest()
    lines = [f"Mask: sha256 `{digest}`."]
    if mask.file is not None:
        lines.append(f"Its file: `{mask.file.name}`, sha256 `{mask.file.sha256}`, read as {mask.file.how_read}.")
    said = dict(mask.to_json().get("provenance") or {})
    data = said.pop("calibration", None)
    if said:
        lines.append(f"It says of itself: {in_words(said)}.")
    if isinstance(data, dict):
        lines.append(f"It was scored on {in_words(data)}.")
    return "\n".join(lines)


def _fitted_to(origin: Origin) -> str:
    """The calibration data, as a sentence behind another."""
    if origin.calibration is None:
        return ""
    return f" Calibration data: {in_words(origin.calibration) or 'moments that a Python function gave'}."


def _change(plan: Plan) -> str:
    """What kept columns become, in words; where a training replaced nothing, they are the refit's."""
    fits = plan.fits
    return fits.description.change if fits.trains or not fits.description.trained else MODES[REFIT].change


def _trained(plan: Plan) -> str:
    """What became of a training, as a sentence behind another."""
    return "" if plan.fits.training is None else f" Training: {plan.fits.training.to_text()}."


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
    named = checkpoint.config.get("architectures")
    is_text = checkpoint.family.lineage == LANGUAGE_MODEL
    model = named[0] if isinstance(named, list) and named and str(named[0]).isidentifier() else "AutoModel"
    reader = "AutoTokenizer" if is_text else "AutoProcessor"
    return (
        f"With stock transformers:\n\n```python\nfrom transformers import {reader}, {model}\n\n"
        f'path = "OUT"  # this directory, or its name on the Hub\nmodel = {model}.from_pretrained(path)\n'
        f"{reader.removeprefix('Auto').lower()} = {reader}.from_pretrained(path)\n```"
    )


def _hashes(report: Report) -> list[tuple[str, str]]:
    digests = report.structure.digests
    return [(name, sha) for name, (_, sha) in digests.items() if name.endswith(".safetensors")]
