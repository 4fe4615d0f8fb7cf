"""The Hub's check of the metadata at the head of a model card (README.md)."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml  # comes with huggingface_hub

FRONT_MATTER = re.compile(r"^\s*---[\r\n]+([\S\s]*?)[\r\n]+---(\r\n|\n|$)")

_LICENSES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0
cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0
cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl
gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0
odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown
other
"""
LICENSES = frozenset(_LICENSES.split())

_PIPELINE_TAGS = """
any-to-any audio-classification audio-text-to-text audio-to-audio automatic-speech-recognition depth-estimation
document-question-answering feature-extraction fill-mask graph-ml image-classification image-feature-extraction
image-segmentation image-text-to-image image-text-to-text image-text-to-video image-to-3d image-to-image
image-to-text image-to-video keypoint-detection mask-generation object-detection question-answering
reinforcement-learning robotics sentence-similarity summarization table-question-answering tabular-classification
tabular-regression text-classification text-generation text-ranking text-to-3d text-to-audio text-to-image
text-to-speech text-to-video time-series-forecasting token-classification translation
unconditional-image-generation video-classification video-text-to-text video-to-video visual-document-retrieval
visual-question-answering voice-activity-detection zero-shot-classification zero-shot-image-classification
zero-shot-object-detection other
"""
PIPELINE_TAGS = frozenset(_PIPELINE_TAGS.split())

BASE_MODEL_RELATIONS = ("adapter", "merge", "quantized", "finetune")

MODEL_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Verdict:
    """What is wrong with a card: *errors* keep it out of the Hub, *warnings* do not."""

    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, list[dict[str, str]]]:
        return {
            "errors": [{"message": message} for message in self.errors],
            "warnings": [{"message": message} for message in self.warnings],
        }


def metadata_of(card: str) -> Any:
    """The card's metadata, None where it has none; :class:`yaml.YAMLError` where it is no YAML."""
    front_matter = FRONT_MATTER.match(card)
    return yaml.safe_load(front_matter[1]) if front_matter else None


def check_card(card: str) -> Verdict:
    """What the Hub has to say about *card*, a model card's whole text."""
    try:
        metadata = metadata_of(card)
    except yaml.YAMLError as error:
        return Verdict(errors=(f"Invalid YAML: {' '.join(str(error).split())}",))
    if not metadata:
        return Verdict(warnings=("empty or missing yaml metadata in repo card",))
    if not isinstance(metadata, dict):
        return Verdict(errors=("the metadata must be an object",))
    errors = [
        message
        for key, check in CHECKS.items()
        if key in metadata and (message := check(key, metadata[key])) is not None
    ]
    if metadata.get("license_link") is not None and metadata.get("license") != "other":
        errors.append('"license_link" needs "license" to be other')
    warnings = []
    tag = metadata.get("pipeline_tag")
    if isinstance(tag, str) and tag not in PIPELINE_TAGS:
        warnings.append(f'The pipeline tag "{tag}" is not in the official list: {", ".join(sorted(PIPELINE_TAGS))}')
    return Verdict(tuple(errors), tuple(warnings))


def _text(key: str, value: Any) -> str | None:
    return None if isinstance(value, str) and value else f'"{key}" must be a string'


def _texts(key: str, value: Any) -> str | None:
    if not isinstance(value, list):
        return f'"{key}" must be an array'
    wrong = next((number for number, item in enumerate(value) if not isinstance(item, str)), None)
    return None if wrong is None else f'"{key}[{wrong}]" must be a string'


def _text_or_texts(key: str, value: Any) -> str | None:
    return _texts(key, value) if isinstance(value, list) else _text(key, value)


def _license(key: str, value: Any) -> str | None:
    names = value if isinstance(value, list) else [value]
    known = names and all(isinstance(name, str) and name in LICENSES for name in names)
    return None if known else f'"{key}" must be one of [{", ".join(sorted(LICENSES))}]'


def _base_model(key: str, value: Any) -> str | None:
    for model in value if isinstance(value, list) else [value]:
        if not isinstance(model, str) or not MODEL_ID.fullmatch(model):
            return f'"{key}" with value "{model}" is not valid. Use a model id from https://hf.co/models.'
    return None


def _relation(key: str, value: Any) -> str | None:
    return None if value in BASE_MODEL_RELATIONS else f'"{key}" must be one of [{", ".join(BASE_MODEL_RELATIONS)}]'


CHECKS: dict[str, Callable[[str, Any], str | None]] = {
    "base_model": _base_model,
    "base_model_relation": _relation,
    "datasets": _text_or_texts,
    "language": _text_or_texts,
    "library_name": _text,
    "license": _license,
    "license_link": _text,
    "license_name": _text,
    "metrics": _text_or_texts,
    "model-index": lambda key, value: None if isinstance(value, list) else f'"{key}" must be an array',
    "pipeline_tag": _text,
    "tags": _texts,
    "thumbnail": _text,
    "widget": lambda key, value: None if isinstance(value, list) else f'"{key}" must be an array',
}
