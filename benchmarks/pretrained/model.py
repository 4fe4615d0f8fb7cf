"""The LLaVA while it is trained: stock tower and language model, and low-rank changes of the language model's maps."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from benchmarks.pretrained.architecture import VISION_CONFIG, VISION_FEATURE_LAYER, tower_name
from benchmarks.pretrained.language_model import Gguf

RANK, SCALE = 16, 2.0


def new_tower() -> CLIPVisionModel:
    """A tower with fresh weights.

    The stock ones begin with next to no notion of where a patch is, and with even attention. Here positions begin as
    sines and cosines of row and column, as in Beyer et al. 2022 (2205.01580), and queries and keys with unit variance.
    """
    tower = CLIPVisionModel(CLIPVisionConfig(**VISION_CONFIG))
    width, side = VISION_CONFIG["hidden_size"], VISION_CONFIG["image_size"] // VISION_CONFIG["patch_size"]
    frequencies = 100.0 ** -torch.linspace(0, 1, width // 4)
    angles = torch.arange(side)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], 1)  # [side, width / 2]
    positions = torch.cat([waves.repeat_interleave(side, 0), waves.repeat(side, 1)], 1)
    with torch.no_grad():
        for name, parameter in tower.named_parameters():
            if name.endswith("position_embedding.weight"):
                parameter[1:] = positions
            elif name.endswith("patch_embedding.weight"):
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            elif name.endswith(("q_proj.weight", "k_proj.weight")):
                parameter.normal_(std=parameter.shape[1] ** -0.5)
    return tower


class LowRank(nn.Module):
    """The map *weight* [out, in], which stays, plus SCALE times up [out, rank] @ down [rank, in], which is trained."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.down = nn.Parameter(torch.randn(RANK, weight.shape[1]) / math.sqrt(weight.shape[1]))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], RANK))
        self.is_changed = True

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        mapped = functional.linear(states, self.weight)
        if not self.is_changed:
            return mapped
        return mapped + SCALE * functional.linear(functional.linear(states, self.down), self.up)


class PretrainedLlava(nn.Module):
    """Tower, projector and language model; only the tower, the projector and the low-rank changes are trained."""

    def __init__(self, language_model: Gguf, dtype: torch.dtype) -> None:
        super().__init__()
        config = language_model.config()
        self.language_model = LlamaForCausalLM(LlamaConfig(**config))
        self.language_model.load_state_dict(language_model.weights())
        self.language_model.requires_grad_(False).to(dtype)
        self._changes: dict[str, LowRank] = {}
        for name, module in list(self.language_model.named_modules()):
            if isinstance(module, nn.Linear) and name != "lm_head":
                parent, _, child = name.rpartition(".")
                self._changes[name] = LowRank(module.weight.detach())
                setattr(self.language_model.get_submodule(parent), child, self._changes[name])
        self.tower = new_tower()
        width, hidden = VISION_CONFIG["hidden_size"], config["hidden_size"]
        self.projector = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden))

    def change_parameters(self) -> list[nn.Parameter]:
        return [parameter for change in self._changes.values() for parameter in (change.down, change.up)]

    def set_changed(self, changed: bool) -> None:
        """Whether the language model has its changes, or is the pretrained one."""
        for change in self._changes.values():
            change.is_changed = changed

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """The tower's patches [batch, patches, width]."""
        states = self.tower(pixels, output_hidden_states=True).hidden_states
        return states[VISION_FEATURE_LAYER][:, 1:]

    def states(self, ids: torch.Tensor, pixels: torch.Tensor | None = None, start: int = 0) -> torch.Tensor:
        """The last states [batch, tokens, hidden]; the first ``len(pixels)`` rows have their picture at *start*."""
        embedded = self.language_model.model.embed_tokens(ids)
        if pixels is not None and len(pixels):
            projected = self.projector(self.features(pixels)).to(embedded.dtype)
            end = start + projected.shape[1]
            with_picture = torch.cat([embedded[: len(pixels), :start], projected, embedded[: len(pixels), end:]], 1)
            embedded = torch.cat([with_picture, embedded[len(pixels) :]])
        return self.language_model.model(inputs_embeds=embedded, use_cache=False).last_hidden_state

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        return self.language_model.lm_head(states).float()

    def deltas(self) -> dict[str, torch.Tensor]:
        """name of the map + ``.down`` or ``.up`` -> the change's factor; SCALE is in ``.up``."""
        factors = {}
        for name, change in self._changes.items():
            factors[f"{name}.down"], factors[f"{name}.up"] = change.down.detach(), SCALE * change.up.detach()
        return factors

    def tower_and_projector(self) -> dict[str, torch.Tensor]:
        """Names on disk -> weights."""
        weights = {
            tower_name(name): tensor.detach()
            for name, tensor in self.tower.state_dict().items()
            if not name.endswith("position_ids")
        }
        for number, module in ((1, self.projector[0]), (2, self.projector[2])):
            for part in ("weight", "bias"):
                weights[f"multi_modal_projector.linear_{number}.{part}"] = getattr(module, part).detach()
        return weights
