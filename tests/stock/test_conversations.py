"""The prompts of the original layout are LLaVA's own, character for character."""

from __future__ import annotations

import pytest
from llava.conversation import conv_templates

from s4convert.study.prompts import CONVERSATIONS

TURNS = [("<image>\nWhat is red?\nA. the box", "A"), ("And why?", "It is."), ("Sure?", None)]


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("turns", [TURNS, TURNS[2:], TURNS[:1], TURNS[:2]], ids=["three", "asked", "answered", "two"])
def test_a_conversation_is_llavas(name: str, turns: list[tuple[str, str | None]]) -> None:
    conversation = conv_templates[name].copy()
    for question, answer in turns:
        conversation.append_message(conversation.roles[0], question)
        conversation.append_message(conversation.roles[1], answer)
    assert CONVERSATIONS[name](turns) == conversation.get_prompt()
