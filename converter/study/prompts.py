"""The prompt that a checkpoint was trained with: LLaVA's conversation, or the chat template that lies with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

from ..checkpoint import Checkpoint
from ..checkpoint.families import HUGGING_FACE, ORIGINAL
from ..choices import CHAT_TEMPLATE
from ..errors import CheckpointError, UsageError
from ..model.decoder import stock_code
from ..model.front_end import (
    IMAGE_PLACEHOLDER,
    TextFrontEnd,
    UnusableFrontEndError,
    conversation,
    open_processor,
    stock_front_end,
)

# Writes (question, answer) turns as a prompt; it ends where the answer begins if the last answer is None.
Writer: TypeAlias = "Callable[[Sequence[tuple[str, str | None]]], str]"


def _mistral_instruct(turns: Sequence[tuple[str, str | None]]) -> str:
    return "".join(
        f"[INST] {question} [/INST]" + ("" if answer is None else f" {answer} </s>") for question, answer in turns
    )


def _chatml_direct(turns: Sequence[tuple[str, str | None]]) -> str:
    text = "<|im_start|>system\nAnswer the questions.<|im_end|>"
    for question, answer in turns:
        text += f"<|im_start|>user\n{question}<|im_end|><|im_start|>assistant\n"
        text += "" if answer is None else f"{answer}<|im_end|>"
    return text


# As ``llava/conversation.py`` of LLaVA 1.2.2 writes them.
CONVERSATIONS: Mapping[str, Writer] = MappingProxyType(
    {"vicuna_v1": conversation, "mistral_instruct": _mistral_instruct, "chatml_direct": _chatml_direct}
)
# Of the original layout, by the type of its language model.
_LLAVAS_OWN: Mapping[str, str] = MappingProxyType({"llama": "vicuna_v1", "mistral": "mistral_instruct"})


@dataclass(frozen=True)
class Prompts:
    """How questions are put to a checkpoint; *name* is a row of :data:`CONVERSATIONS`, or ``chat-template``."""

    name: str
    write: Writer


def prompts_of(checkpoint: Checkpoint, name: str | None = None) -> Prompts:
    """The prompts that *checkpoint* was trained with, or those that *name* says.

    Raises:
        UsageError: there is no such conversation, or none can be told from the checkpoint.
        CheckpointError: its processor cannot be loaded.
    """
    if name is None and checkpoint.family.lineage == ORIGINAL:
        name = _LLAVAS_OWN.get(checkpoint.language_model.model_type)
    if name is not None and name in CONVERSATIONS:
        return Prompts(name, CONVERSATIONS[name])
    names = ", ".join((*CONVERSATIONS, CHAT_TEMPLATE))
    if name not in (None, CHAT_TEMPLATE):
        raise UsageError(f"`conversation` {name!r} is none of {names}")
    writer = _template(checkpoint)
    if writer is None:
        raise UsageError(
            f"{checkpoint.known_as}: has no chat template, and a wrong prompt measures another model; say with "
            f"`conversation` which it was trained with: {names}"
        )
    return Prompts(CHAT_TEMPLATE, writer)


def _template(checkpoint: Checkpoint) -> Writer | None:
    """The chat template of *checkpoint*'s processor, or else of its tokenizer; None where neither has one."""
    try:
        with stock_front_end(checkpoint, "tokenizer"):
            processor = open_processor(checkpoint) if checkpoint.family.lineage == HUGGING_FACE else None
            tokenizer = TextFrontEnd(checkpoint).tokenizer if processor is None else processor.tokenizer
    except UnusableFrontEndError as error:
        raise CheckpointError(f"{error}; restore its files") from error
    start = tokenizer.bos_token if _begins(tokenizer) else ""
    if getattr(processor, "chat_template", None) is not None:
        return lambda turns: _applied(processor, turns, in_parts=True).removeprefix(start)
    if getattr(tokenizer, "chat_template", None) is not None:
        return lambda turns: _applied(tokenizer, turns, in_parts=False).removeprefix(start)
    return None


def _begins(tokenizer: Any) -> bool:
    """Whether *tokenizer* puts its first token in front of a text by itself, where a template's would be a second."""
    with stock_code():
        return list(tokenizer("a")["input_ids"])[:1] == [tokenizer.bos_token_id]


def _applied(template: Any, turns: Sequence[tuple[str, str | None]], *, in_parts: bool) -> str:
    """*turns* as the chat template writes them; *in_parts* gives an image as a part of its own."""
    messages: list[dict[str, Any]] = []
    for question, answer in turns:
        said: Any = question
        if in_parts:
            text = question.removeprefix(f"{IMAGE_PLACEHOLDER}\n")
            said = [{"type": "image"}] if text != question else []
            said.append({"type": "text", "text": text})
        messages.append({"role": "user", "content": said})
        if answer is not None:
            messages.append(
                {"role": "assistant", "content": [{"type": "text", "text": answer}] if in_parts else answer}
            )
    with stock_code():
        return str(template.apply_chat_template(messages, tokenize=False, add_generation_prompt=turns[-1][1] is None))
