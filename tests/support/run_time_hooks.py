"""What people do at run time in place of a conversion: the reference that conversions are compared with."""

from __future__ import annotations

from typing import Any

import torch

from s4convert.mask import HeadMask


def decoder_layers(model: torch.nn.Module) -> Any:
    """The layers of *model*'s language model; a vision tower's attention has an out_proj, no o_proj."""
    stacks = (m for name, m in model.named_modules() if name.rpartition(".")[2] == "layers")
    return next(layers for layers in stacks if hasattr(layers[0].self_attn, "o_proj"))


def hook_heads(model: torch.nn.Module, mask: HeadMask, *, scaled: bool) -> None:
    """Silence heads in front of o_proj, and scale the others by N/n."""
    for layer, pruned in zip(decoder_layers(model), mask.pruned, strict=True):
        if not pruned:
            continue
        output = layer.self_attn.o_proj
        factors = torch.ones(mask.num_heads)
        if scaled:
            factors *= mask.num_heads / (mask.num_heads - len(pruned))
        factors[list(pruned)] = 0
        factors = factors.repeat_interleave(output.in_features // mask.num_heads).to(output.weight.dtype)
        output.register_forward_pre_hook(lambda _, inputs, f=factors: (inputs[0] * f,))
