"""Multiple-choice questions to a checkpoint through stock transformers, in LLaVA's ``vicuna_v1`` conversation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from converter.conversation import LETTER_INSTRUCTION, conversation
from converter.decoder import stock_code
from converter.front_end import load_processor

if TYPE_CHECKING:
    from PIL import Image


class Chat:
    """A checkpoint of the Hugging Face layout, loaded by ``LlavaForConditionalGeneration`` in float32."""

    def __init__(self, path: Path) -> None:
        from transformers import LlavaForConditionalGeneration

        with stock_code():
            self._model = LlavaForConditionalGeneration.from_pretrained(path).float().eval()
            self._processor = load_processor(path)

    def answer(self, question: str, image: Image.Image | None) -> str:
        """What greedy ``generate`` says to *question*, in which ``<image>`` stands for the image."""
        import torch

        prompt = conversation([(f"{question}\n{LETTER_INSTRUCTION}", None)])
        with stock_code(), torch.inference_mode():
            inputs = self._processor(text=prompt, images=image, return_tensors="pt")
            output = self._model.generate(**inputs, do_sample=False, max_new_tokens=4)
        new_tokens = output[0, inputs["input_ids"].shape[1] :]
        return str(self._processor.tokenizer.decode(new_tokens, skip_special_tokens=True)).strip()
