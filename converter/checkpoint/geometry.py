"""The shape of a language model's attention: how many layers, heads and kv heads, and how wide they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from converter.errors import CheckpointError

# What the stock config classes assume where a (partial) text_config is silent.
_CLASS_DEFAULTS: Mapping[str, Mapping[str, int | None]] = {
    "llama": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": None},
    "mistral": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8},
    "qwen2": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32},
}


@dataclass(frozen=True)
class Geometry:
    """Attention geometry of a language model; sizes are in elements.

    Query head ``h`` reads kv head ``h // heads_per_group``. Rows of ``q``/``k``/``v`` and columns of ``o``
    that belong to head ``h`` are ``[h * head_dim, (h + 1) * head_dim)``.
    """

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int

    @property
    def heads_per_group(self) -> int:
        """Query heads that share one kv head."""
        return self.num_heads // self.num_kv_heads

    def shape_of(self, projection: str, kind: str) -> tuple[int, ...]:
        """The shape that the ``weight`` or ``bias`` of a projection must have."""
        heads = {"q": self.num_heads, "k": self.num_kv_heads, "v": self.num_kv_heads}
        if projection == "o":
            return (self.hidden_size, self.num_heads * self.head_dim) if kind == "weight" else (self.hidden_size,)
        rows = heads[projection] * self.head_dim
        return (rows, self.hidden_size) if kind == "weight" else (rows,)


def read_geometry(text_config: Mapping[str, Any], model_type: str, where: str) -> Geometry:
    """The geometry that a language model's config states, class defaults filled in.

    Raises:
        CheckpointError: a size is missing, not a positive integer, or contradicts another.
    """
    defaults = _CLASS_DEFAULTS[model_type]

    def size(name: str, fallback: int | None) -> int:
        value = text_config.get(name)
        value = fallback if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise CheckpointError(f"{where}: {name} is {value!r}, not a positive integer; mend the config")
        return value

    hidden_size = size("hidden_size", defaults["hidden_size"])
    num_heads = size("num_attention_heads", defaults["num_attention_heads"])
    # Stated as null, it means one kv head per head, also where the class has another default.
    kv_default = num_heads if "num_key_value_heads" in text_config else defaults["num_key_value_heads"] or num_heads
    num_kv_heads = size("num_key_value_heads", kv_default)
    head_dim = size("head_dim", hidden_size // num_heads)
    if num_heads % num_kv_heads:
        raise CheckpointError(
            f"{where}: {num_heads} heads cannot share {num_kv_heads} kv heads evenly; mend the config"
        )
    return Geometry(
        num_layers=size("num_hidden_layers", defaults["num_hidden_layers"]),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        hidden_size=hidden_size,
    )


def supported_text_models() -> tuple[str, ...]:
    """The language model types whose geometry can be read."""
    return tuple(_CLASS_DEFAULTS)
