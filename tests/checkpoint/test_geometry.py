"""The geometry that a language model's config states, where it is partial as well."""

from __future__ import annotations

import re
from typing import Any

import pytest

from s4convert.checkpoint import Geometry
from s4convert.checkpoint.families import find_language_model
from s4convert.checkpoint.geometry import expected_shape, projections_in, read_geometry
from s4convert.errors import CheckpointError


def geometry_of(text_config: dict[str, Any], model_type: str, where: str) -> Geometry:
    return read_geometry(text_config, find_language_model(model_type, where), where)


@pytest.mark.parametrize(
    ("model_type", "text_config", "expected"),
    [
        ("llama", {}, Geometry(32, 32, 32, 128, 4096)),
        ("mistral", {}, Geometry(32, 32, 8, 128, 4096)),
        ("qwen2", {}, Geometry(32, 32, 32, 128, 4096)),
        ("llama", {"num_attention_heads": 16}, Geometry(32, 16, 16, 256, 4096)),
        ("mistral", {"num_attention_heads": 16}, Geometry(32, 16, 8, 256, 4096)),
        ("llama", {"num_key_value_heads": None}, Geometry(32, 32, 32, 128, 4096)),
        ("llama", {"num_attention_heads": 16, "num_key_value_heads": None}, Geometry(32, 16, 16, 256, 4096)),
        ("llama", {"hidden_size": 5120, "num_attention_heads": 40, "num_hidden_layers": 40},
         Geometry(40, 40, 40, 128, 5120)),
        ("qwen2", {"hidden_size": 896, "num_attention_heads": 14, "num_key_value_heads": 2, "num_hidden_layers": 24},
         Geometry(24, 14, 2, 64, 896)),
        ("mistral", {"head_dim": 96}, Geometry(32, 32, 8, 96, 4096)),
        ("mistral", {"head_dim": None}, Geometry(32, 32, 8, 128, 4096)),
        ("qwen3", {}, Geometry(32, 32, 32, 128, 4096)),
        ("qwen3", {"hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 8},
         Geometry(32, 16, 8, 128, 1024)),
        ("phi3", {}, Geometry(32, 32, 32, 96, 3072)),
        ("LLaVAOneVision1_5_text", {}, Geometry(36, 32, 8, 128, 2560)),
        ("llama", {"vocab_size": 7, "num_heads": 3}, Geometry(32, 32, 32, 128, 4096)),
    ],
)  # fmt: skip
def test_class_defaults_fill_in_what_a_config_does_not_state(
    model_type: str, text_config: dict[str, Any], expected: Geometry
) -> None:
    assert geometry_of(text_config, model_type, "config.json") == expected


@pytest.mark.parametrize("model_type", ["mistral", "qwen2"])
def test_kv_heads_that_are_null_are_as_many_as_the_heads(model_type: str) -> None:
    text_config = {"num_attention_heads": 16, "num_key_value_heads": None}
    assert geometry_of(text_config, model_type, "config.json") == Geometry(32, 16, 16, 256, 4096)


@pytest.mark.parametrize(
    "name", ["hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers", "head_dim"]
)
@pytest.mark.parametrize("value", [0, -1, 32.0, "32", True, [32]])
def test_a_size_that_is_no_positive_integer_is_refused(name: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=re.escape(f"here: {name} is {value!r}, not a positive integer")):
        geometry_of({name: value}, "llama", "here")


def test_more_heads_than_hidden_units_leave_no_width_for_a_head() -> None:
    with pytest.raises(CheckpointError, match="head_dim is 0, not a positive integer"):
        geometry_of({"hidden_size": 8, "num_attention_heads": 16}, "llama", "here")


def test_shapes_follow_from_the_geometry() -> None:
    geometry = Geometry(num_layers=1, num_heads=6, num_kv_heads=2, head_dim=5, hidden_size=7)
    assert geometry.heads_per_group == 3

    def shape_of(name: str) -> tuple[int, ...]:
        return expected_shape(projections_in(f"self_attn.{name}", geometry), geometry)

    assert {p: shape_of(f"{p}_proj.weight") for p in ("q", "k", "v", "qkv", "o")} == {
        "q": (30, 7),
        "k": (10, 7),
        "v": (10, 7),
        "qkv": (50, 7),
        "o": (7, 30),
    }
    assert [shape_of(f"{p}_proj.bias") for p in ("q", "k", "v", "qkv", "o")] == [(30,), (10,), (10,), (50,), (7,)]
    assert [(p.projection, p.first, p.count) for p in projections_in("self_attn.qkv_proj.weight", geometry)] == [
        ("q", 0, 30),
        ("k", 30, 10),
        ("v", 40, 10),
    ]
