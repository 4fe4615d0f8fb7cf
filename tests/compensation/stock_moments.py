"""Moments by brute force: a stock model runs, and what goes into each ``o_proj`` is kept whole."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, LlavaForConditionalGeneration

from benchmarks.mini.questions import write_scienceqa
from s4convert.checkpoint import Checkpoint
from s4convert.model.front_end import SYSTEM_PROMPT, load_processor
from tests.support.run_time_hooks import decoder_layers

Inputs = Mapping[str, torch.Tensor]


def output_projection_inputs(model: torch.nn.Module, samples: Iterable[Inputs]) -> list[np.ndarray]:
    """For every decoder layer, the inputs of its ``o_proj`` [tokens, columns] over all *samples*."""
    seen: list[list[np.ndarray]] = [[] for _ in decoder_layers(model)]
    handles = [
        layer.self_attn.o_proj.register_forward_pre_hook(
            lambda _, inputs, keep=keep: keep.append(inputs[0][0].double().numpy())
        )
        for layer, keep in zip(decoder_layers(model), seen, strict=True)
    ]
    with torch.inference_mode():
        for sample in samples:
            model(**sample)
    for handle in handles:
        handle.remove()
    return [np.concatenate(parts) for parts in seen]


def language_model(path: Path) -> torch.nn.Module:
    """The stock language model of a synthetic checkpoint, in float32."""
    checkpoint = Checkpoint.open(path)
    text_config = {k: v for k, v in checkpoint.text_config.items() if k not in ("model_type", "architectures")}
    stock_type = checkpoint.language_model.stock_type
    model = AutoModel.from_config(AutoConfig.for_model(stock_type, **text_config)).float().eval()
    with torch.no_grad():
        for layer, module in enumerate(model.layers):
            for name, parameter in module.named_parameters():
                parameter.copy_(torch.from_numpy(checkpoint.read_rows(checkpoint.layers[layer][name])))
        model.embed_tokens.weight.copy_(torch.from_numpy(checkpoint.read_rows(checkpoint.embedding)))
    return model


def mini_llava(path: Path) -> LlavaForConditionalGeneration:
    return LlavaForConditionalGeneration.from_pretrained(path).float().eval()


def mini_samples(path: Path, count: int, seed: int) -> list[Inputs]:
    """*count* questions with an image and as many without, as stock code prepares them for the mini LLaVA."""
    processor = load_processor(path)
    samples: list[Inputs] = []
    with tempfile.TemporaryDirectory() as scratch:
        write_scienceqa(Path(scratch), num_image=count, num_text=count, seed=seed)
        for entry in json.loads(Path(scratch, "questions.json").read_text()):
            image = Image.open(Path(scratch, "images", entry["image"])).convert("RGB") if "image" in entry else None
            prompt = f"{SYSTEM_PROMPT} USER: {entry['conversations'][0]['value']} ASSISTANT:"
            samples.append(dict(processor(text=prompt, images=image, return_tensors="pt")))
    return samples
