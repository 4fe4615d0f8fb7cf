"""The model card: README.md of OUT, and the picture in it."""

from converter.card.base_card import BaseCard, read_base_card
from converter.card.model_card import CARD_FILES, write_card

__all__ = ["CARD_FILES", "BaseCard", "read_base_card", "write_card"]
