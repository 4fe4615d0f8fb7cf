"""The trained mini LLaVA that ships with the package, and questions for it."""

from pathlib import Path

MINI_LLAVA = Path(__file__).parent / "mini-llava"
QUESTIONS = Path(__file__).parent / "questions"
