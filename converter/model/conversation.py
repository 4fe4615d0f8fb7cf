"""LLaVA's ``vicuna_v1`` conversation: what a prompt looks like to the models that are asked here."""

from __future__ import annotations

from collections.abc import Sequence

IMAGE_PLACEHOLDER = "<image>"
SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
LETTER_INSTRUCTION = "Answer with the option's letter from the given choices directly."
END_OF_ANSWER = "</s>"


def conversation(turns: Sequence[tuple[str, str | None]]) -> str:
    """The text of (question, answer) *turns*; it ends where the answer begins if the last answer is None."""
    text = f"{SYSTEM_PROMPT} "
    for question, answer in turns:
        text += f"USER: {question} ASSISTANT:"
        if answer is not None:
            text += f" {answer}{END_OF_ANSWER}"
    return text
