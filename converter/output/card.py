"""OUT's model card: what was pruned, how it was checked and how to load it, above what IN's card says."""

from __future__ import annotations

import json
import logging
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..checkpoint import MANIFEST_FILE, Checkpoint
from ..checkpoint.families import LANGUAGE_MODEL, ORIGINAL
from ..compensation import MODES
from ..compensation.modes import REFIT
from ..disk import read_file, write_synced
from ..errors import CheckpointError, StorageError, UsageError
from ..mask import HeadMask
from ..rewrite.plan import Plan
from ..verify.report import Report
from ..version import __version__, versions
from .heatmap import png_heatmap
from .left import NOT_MEASURED, as_command, what_is_left
from .origin import Origin, files_of, in_words

_log = logging.getLogger(__name__)

CARD_FILE = "README.md"
PICTURE_FILE = "s4convert-heads.png"
CARD_FILES = frozenset({CARD_FILE, PICTURE_FILE})
# Around what is generated, so that the card of a converted checkpoint that is converted again has one such part.
BEGIN, END = "<!-- s4convert: generated, begin -->", "<!-- s4convert: generated, end -->"
# Arguments of the command line that change nothing in OUT; --jobs has a value behind it.
_DECIDES_NO_BYTE = re.compile(r"--(?:debug|force|json|jobs(?:=.*)?|quiet|verbose)|-[qv]+")
_METADATA_BYTES = 1 << 20  # which PyYAML takes seconds for
_WAY_OUT = "mend it, or leave it as it is with `card=False`"


@dataclass(frozen=True)
class BaseCard:
    """What OUT's card is made of beside the report: its YAML block *metadata*, the *text* of IN's own card, and its
    title *model_name*, if one was given.
    """

    metadata: str
    text: str
    model_name: str | None = None


def read_base_card(checkpoint: Checkpoint, *, base_model: str | None, model_name: str | None) -> BaseCard:
    """What the card of *checkpoint*'s conversion takes over from its README.md, if it has one.

    *base_model* is the original's name on the Hub, by default the one that it came from; *model_name* the card's title.

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
        written = yaml.safe_dump(card_metadata(checkpoint, found, base_model), sort_keys=False, allow_unicode=True)
    except Exception as error:  # what PyYAML raises, and what becomes of a text that is no mapping
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: its metadata is not a YAML mapping ({reason}); {_WAY_OUT}") from error
    return BaseCard(written, _without_generated(text).strip(), model_name)


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


def card_metadata(checkpoint: Checkpoint, base: Mapping[Any, Any], base_model: str | None) -> dict[str, Any]:
    """The metadata of the card of *checkpoint*'s conversion: licence, languages, data and the like are the *base*'s.

    *base_model* names the original on the Hub, where it does not say that itself.
    """
    named = {str(name): value for name, value in base.items()}
    kept = {name: value for name, value in named.items() if name not in _NOT_OF_THE_PRUNED}
    lineage = checkpoint.family.lineage
    kept.setdefault("library_name", "llava" if lineage == ORIGINAL else "transformers")
    kept.setdefault("pipeline_tag", "text-generation" if lineage == LANGUAGE_MODEL else "image-text-to-text")
    tags = kept.pop("tags", None) or []
    tags = tags if isinstance(tags, list) else [tags]
    kept["tags"] = [*tags, *(tag for tag in TAGS if tag not in tags)]
    name = base_model or hub_name(checkpoint)
    if name is not None:
        # Of the Hub's relations (adapter, merge, quantized, finetune) this is what whole weights with other numbers
        # in them are; pruning has none of its own.
        kept |= {"base_model": name, "base_model_relation": "finetune"}
    return kept


def hub_name(checkpoint: Checkpoint) -> str | None:
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
        return png_heatmap(mask.num_heads, mask.pruned, mask.saliency, "pruned heads")
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
    evaluation: Mapping[str, Any] | None,
    directory: Path,
) -> dict[str, tuple[int, str]]:
    """Write the card of *checkpoint*'s conversion into *directory*, with its *picture* if there is one.

    *evaluation* is what original and converted answered, as the manifest has it, where both were asked.

    There is no time, path or host in the card, so the same inputs and libraries give the same bytes. The result maps
    the files' names to their (size, sha256).

    Raises:
        StorageError: the disk refused.
    """
    if hub_name(checkpoint) is None:
        _log.debug("%s: is a local directory, so its model card can name a base_model only if told", checkpoint.path)
    body = _body(checkpoint, plan, report, base, origin, evaluation, has_picture=picture is not None)
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
    checkpoint: Checkpoint,
    plan: Plan,
    report: Report,
    base: BaseCard,
    origin: Origin,
    evaluation: Mapping[str, Any] | None,
    *,
    has_picture: bool,
) -> str:
    mask, name = plan.mask, checkpoint.known_as.name
    heads = mask.num_layers * mask.num_heads
    left = what_is_left(evaluation, report.to_json())
    return "\n\n".join(
        [
            f"# {base.model_name or f'{name}, with {mask.num_pruned} of {heads} attention heads pruned'}",
            f"{mask.num_pruned} of {heads} attention heads of `{checkpoint.source}` are pruned, in "
            f"{len(mask.touched_layers)} of {mask.num_layers} layers: they are zero in the weights, and compute "
            f"nothing. {' '.join(left) or 'What is left of its answers was not measured.'}",
            f"s4convert {__version__} wrote it, with the compensation `{plan.fits.mode}`, and checked that the weights "
            "match the mask. Tensors, shapes and head counts are the original's, so stock code loads it, and it "
            f"is as large and as fast as before. `{MANIFEST_FILE}` holds the mask, all figures and the sha256 of every "
            "file.",
            *([] if report.advice is None else [f"> **Advice.** {as_command(report.advice)}."]),
            "## What was pruned",
            *([f"![Pruned heads by layer and head]({PICTURE_FILE})", _picture_legend(mask)] if has_picture else []),
            f"{len(mask.touched_layers)} of {mask.num_layers} layers lose heads: {mask.num_pruned} {mask.realised}.",
            _mask_origin(mask),
            "## Compensation",
            f"`{plan.fits.mode}`: of the layers that lose heads, the kept columns of `o_proj` "
            f"{_change(plan)}.{_fitted_to(origin)}{_trained(plan)}",
            "## What is left",
            *_what_is_left(report, evaluation),
            "## Verification",
            _verification(report),
            *_data(mask, report, origin, evaluation),
            "## Loading it",
            _loading(checkpoint),
            "## How it was made",
            f"```console\n$ {origin.made_by}\n```",
            "Versions: " + ", ".join(f"{name} {version}" for name, version in versions().items()) + ".",
            "| file | sha256 |\n| --- | --- |\n"
            + "\n".join(f"| `{file}` | `{sha}` |" for file, sha in _hashes(report)),
            "## How to cite",
            _citation(checkpoint),
        ]
    )


def public_command(arguments: Sequence[str], names: Mapping[str, str]) -> str:
    """The command line as a card may state it: without a path of this machine, without what decides no byte of OUT,
    and with *names* for what is called otherwise there."""
    said, left = ["s4convert"], iter(arguments)
    for argument in left:
        if argument == "--jobs":
            next(left, None)
        if _DECIDES_NO_BYTE.fullmatch(argument):
            continue
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


def _picture_legend(mask: HeadMask) -> str:
    shades = "no shade: the mask does not say what its heads were chosen by"
    if mask.saliency is not None:
        shades = "the brighter, the more a head is worth keeping by the mask's metric, as its rank in the model"
    return f"A row for each layer, a column for each head. Crossed out: pruned. Colour: {shades}. Bars: pruned heads."


def _what_is_left(report: Report, evaluation: Mapping[str, Any] | None) -> list[str]:
    """The figures on answers and on held-out text, with what they mean."""
    parts = []
    if evaluation is not None:
        asked, told = evaluation["questions"], evaluation["checkpoints"]
        kinds = ("accuracy", "image_accuracy", "text_accuracy")
        rows = [f"| {name} | {' | '.join(_share(found[kind]) for kind in kinds)} |" for name, found in told.items()]
        changed = told["converted"]["changed"]
        rows.append(f"| change | {' | '.join(_points(changed.get(kind)) for kind in ('accuracy', 'image', 'text'))} |")
        parts += [
            f"{asked['count']} questions of `{asked['file']}` (sha256 `{asked['sha256']}`), by the prompt of "
            f"{evaluation['conversation']}:",
            "| | right answers | with an image | without one |\n| --- | --- | --- | --- |\n" + "\n".join(rows),
            "In brackets: the 95 % interval. The change is measured question by question.",
        ]
    if report.agreement is not None:
        parts += [
            "```\n" + "\n".join(report.agreement.to_lines()) + "\n```",
            "KL: the mean KL divergence from the original, in nats a token; 0 is the same model. Same top token: where "
            "both find the same next token most likely. `none` and `scale` need no data, and stand there to compare.",
        ]
    return parts or [f"{NOT_MEASURED.replace('--evaluate FILE', '`--evaluate FILE`')}"]


def _share(share: Mapping[str, Any] | None) -> str:
    return "" if share is None else f"{share['percent']:.1f} % ({share['low']:.1f} to {share['high']:.1f})"


def _points(change: Mapping[str, Any] | None) -> str:
    return "" if change is None else f"{change['points']:+.1f} points ({change['low']:+.1f} to {change['high']:+.1f})"


def _verification(report: Report) -> str:
    if report.behaviour is None:
        return (
            "The weights match the mask: every byte was compared with the original's. Hidden states were not looked at "
            "(`--no-verify`)."
        )
    told = replace(report, agreement=None, calibration={}).to_text()
    fit = (
        "; of a fit, what scale and fit leave of E, the change of the layer's attention output without compensation "
        "(`E none`)"
    )
    return (
        "The weights match the mask. Every byte was compared with the original's, and hidden states, by stock code, "
        "with those of the original and of the original with hooks that prune at run time (the reference):\n\n"
        f"```\n{told}\n```\n\n"
        "Relative delta: how far hidden states moved; it says that pruning had an effect, not how bad it is. Off "
        "reference: rounding, adding up from layer to layer. N/n: the S4 scale; c\\*: the one factor for kept heads "
        f"that changes the layer's output least{fit if report.figures else ''}."
    )


def _data(mask: HeadMask, report: Report, origin: Origin, evaluation: Mapping[str, Any] | None) -> list[str]:
    """A table of the files of data that were used; nothing where there are none."""
    scored = (mask.provenance or {}).get("calibration")
    used: dict[str, Mapping[str, Any]] = {
        "mask": scored if isinstance(scored, Mapping) else {},
        "compensation": origin.calibration or {},
        "probe": {} if report.behaviour is None else report.behaviour.data,
    }
    rows = []
    for what, said in used.items():
        try:
            files = files_of(said)
        except UsageError:  # what a mask that others made says of its data
            continue
        for file in files:
            rows.append(f"| {what} | `{file['file']}` | {file['samples']} samples | `{file['sha256']}` |")
        if rows and "text_tokens" in said:
            rows.append(
                f"| {what} | all | {said['text_tokens']} text and {said.get('image_tokens', 0)} image tokens | |"
            )
    if evaluation is not None and evaluation["questions"]["file"]:
        asked = evaluation["questions"]
        rows.append(f"| questions | `{asked['file']}` | {asked['count']} questions | `{asked['sha256']}` |")
    return (
        ["## Data", "| used for | file | took | sha256 |\n| --- | --- | --- | --- |\n" + "\n".join(rows)]
        if rows
        else []
    )


def _citation(checkpoint: Checkpoint) -> str:
    return (
        f"Cite `{checkpoint.source}` as its authors ask, and the tool that pruned it:\n\n```bibtex\n"
        "@software{s4convert,\n  title = {s4convert: rewrite a LLaVA checkpoint on disk so that pruned attention heads "
        f"stay pruned}},\n  version = {{{__version__}}}\n}}\n```"
    )


_TOKENIZER_FILES = frozenset({"tokenizer.json", "tokenizer.model", "vocab.json"})


def _loading(checkpoint: Checkpoint) -> str:
    """A block of code for the layout and the files that are there."""
    has_tokenizer = not _TOKENIZER_FILES.isdisjoint(checkpoint.sidecars)
    lacks = "" if has_tokenizer else "\n\nThere is no tokenizer among its files; take the original's."
    if checkpoint.family.lineage == ORIGINAL:
        return (
            "With LLaVA's own code, which goes by the directory's name (keep it near the original's):\n\n```python\n"
            "from llava.mm_utils import get_model_name_from_path\n"
            "from llava.model.builder import load_pretrained_model\n"
            '\npath = "OUT"  # this directory\n'
            "tokenizer, model, image_processor, context_len = load_pretrained_model(\n"
            f"    path, None, get_model_name_from_path(path)\n)\n```{lacks}"
        )
    named = checkpoint.config.get("architectures")
    model = named[0] if isinstance(named, list) and named and str(named[0]).isidentifier() else "AutoModel"
    is_text = checkpoint.family.lineage == LANGUAGE_MODEL
    has_processor = not is_text and not {"preprocessor_config.json", "processor_config.json"}.isdisjoint(
        checkpoint.sidecars
    )
    reader = "AutoProcessor" if has_processor and has_tokenizer else "AutoTokenizer" if has_tokenizer else None
    imported = ", ".join(sorted(filter(None, (reader, model))))
    read = "" if reader is None else f"{reader.removeprefix('Auto').lower()} = {reader}.from_pretrained(path)\n"
    return (
        f"With stock transformers:\n\n```python\nfrom transformers import {imported}\n\n"
        f'path = "OUT"  # this directory, or its name on the Hub\nmodel = {model}.from_pretrained(path)\n'
        f"{read}```{lacks}"
    )


def _hashes(report: Report) -> list[tuple[str, str]]:
    digests = report.structure.digests
    return [(name, sha) for name, (_, sha) in digests.items() if name.endswith(".safetensors")]
