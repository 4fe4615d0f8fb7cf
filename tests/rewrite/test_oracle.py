"""A conversion's output, to the last bit, against an oracle written from the definition of an edit alone.

The oracle knows numpy and the synthetic checkpoints; of the package it calls ``convert`` and nothing else.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import s4convert
from s4convert.output.card import CARD_FILES
from tests.support import seams
from tests.support.environments import in_the_newest_environment
from tests.support.synthetic import HUGGING_FACE, ORIGINAL, Spec, read_safetensors, write_checkpoint, write_safetensors

MANIFEST = "s4convert.json"
LAYER_PREFIX = {HUGGING_FACE: "language_model.model.layers", ORIGINAL: "model.layers"}
STORED = {"F16": np.dtype("<u2"), "BF16": np.dtype("<u2"), "F32": np.dtype("<u4")}
EXPONENT_AND_FRACTION_BITS = {"F16": (5, 10), "BF16": (8, 7), "F32": (8, 23)}
# Bit patterns from here on could overflow when they are multiplied by N / n.
TOO_LARGE = {"F16": 0x6000, "BF16": 0x7A00, "F32": 0x7A000000}

Pruned = tuple[frozenset[int], ...]


def magnitudes(patterns: np.ndarray, dtype: str) -> np.ndarray:
    """The float64 values of *patterns*, sign bits off, by the definition of a binary floating-point number."""
    exponent_bits, fraction_bits = EXPONENT_AND_FRACTION_BITS[dtype]
    exponent = (patterns >> fraction_bits).astype(np.int64)
    fraction = (patterns & ((1 << fraction_bits) - 1)).astype(np.float64) * 2.0**-fraction_bits
    bias = (1 << (exponent_bits - 1)) - 1
    significand = np.where(exponent == 0, fraction, 1 + fraction)
    return np.ldexp(significand, np.maximum(exponent, 1) - bias)


def values(patterns: np.ndarray, dtype: str) -> np.ndarray:
    """The float64 values of stored bit *patterns*."""
    sign = 1 << (patterns.dtype.itemsize * 8 - 1)
    return np.where(patterns & sign, -1.0, 1.0) * magnitudes(patterns & (sign - 1), dtype)


def nearest(numbers: np.ndarray, dtype: str) -> np.ndarray:
    """The bit patterns of *dtype* nearest to float64 *numbers*, ties to the even pattern; none may overflow."""
    if dtype == "F32":
        return numbers.astype("<f4").view("<u4")
    every = magnitudes(np.arange(0x8000, dtype=np.uint32), dtype)  # increasing; infinity and NaN look like numbers
    below = np.searchsorted(every, np.abs(numbers), side="right") - 1
    down, up = np.abs(numbers) - every[below], every[below + 1] - np.abs(numbers)
    rounded = below + ((up < down) | ((up == down) & (below % 2 == 1)))
    return (rounded | np.where(np.signbit(numbers), 0x8000, 0)).astype("<u2")


def expected_tensor(
    name: str, stored: np.ndarray, spec: Spec, pruned: Pruned, factors: Mapping[int, float]
) -> np.ndarray:
    """What the bit patterns *stored* of tensor *name* must become; *factors* are those of layers that lose heads."""
    layer_key = re.escape(LAYER_PREFIX[spec.layout]) + r"\.(\d+)\.self_attn\.([qkvo])_proj\.(weight|bias)"
    match = re.fullmatch(layer_key, name)
    if match is None or not pruned[int(match[1])]:
        return stored
    layer, projection, kind = int(match[1]), match[2], match[3]
    heads, group, width = pruned[layer], spec.heads_per_group, spec.head_dim
    expected = stored.copy()
    if projection == "q":
        for head in heads:
            expected[head * width : (head + 1) * width] = 0
    elif projection in "kv":
        for kv_head in range(spec.num_kv_heads):
            if all(kv_head * group + member in heads for member in range(group)):
                expected[kv_head * width : (kv_head + 1) * width] = 0
    elif kind == "weight":
        # A product of two float32 is exact in float64, so this is the float32 product, then the stored rounding.
        product = values(stored, spec.dtype) * np.float64(np.float32(factors[layer]))
        expected = nearest(product.astype(np.float32).astype(np.float64), spec.dtype)
        for head in heads:
            expected[:, head * width : (head + 1) * width] = 0
    return expected


def expected_shard(content: bytes, spec: Spec, pruned: Pruned, factors: Mapping[int, float]) -> bytes:
    """What the *content* of a shard must become: the same, patched inside its tensors."""
    data_begin = 8 + int.from_bytes(content[:8], "little")
    expected = bytearray(content)
    for name, entry in json.loads(content[8:data_begin]).items():
        if name == "__metadata__" or entry["dtype"] != spec.dtype:
            continue
        begin, end = (data_begin + offset for offset in entry["data_offsets"])
        stored = np.frombuffer(content[begin:end], STORED[spec.dtype]).reshape(entry["shape"])
        expected[begin:end] = expected_tensor(name, stored, spec, pruned, factors).tobytes()
    return bytes(expected)


def files_of(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def first_difference(found: bytes, expected: bytes) -> str:
    """Where two contents of one shard differ, in words."""
    data_begin = 8 + int.from_bytes(expected[:8], "little")
    if found[:data_begin] != expected[:data_begin]:
        return "the header"
    header = json.loads(expected[8:data_begin])
    for name in header.keys() - {"__metadata__"}:
        begin, end = (data_begin + offset for offset in header[name]["data_offsets"])
        if found[begin:end] != expected[begin:end]:
            return name
    return "beyond the tensors"


def assert_equals_the_oracle(
    source: Path,
    out: Path,
    spec: Spec,
    pruned: Pruned,
    factors: Mapping[int, float],
    *,
    card: frozenset[str] = CARD_FILES,
) -> None:
    found = files_of(out)
    assert found.keys() == files_of(source).keys() | {MANIFEST} | card
    for name, content in files_of(source).items():
        if name.endswith(".safetensors"):
            expected = expected_shard(content, spec, pruned, factors)
            equal = found[name] == expected
            assert equal, f"{name}: {first_difference(found[name], expected)}"
        else:
            assert found[name] == content, name


def head_ratio(spec: Spec, pruned: Pruned) -> dict[int, float]:
    """N / n for every layer that loses heads."""
    return {layer: spec.num_heads / (spec.num_heads - len(heads)) for layer, heads in enumerate(pruned) if heads}


def native_mask(spec: Spec, pruned: Pruned) -> dict[str, Any]:
    return {
        "format": "s4convert-mask/1",
        "num_layers": spec.num_layers,
        "num_heads": spec.num_heads,
        "pruned": {str(layer): sorted(heads) for layer, heads in enumerate(pruned) if heads},
    }


def calibration_mask(spec: Spec, pruned: Pruned) -> dict[str, Any]:
    return {
        "pruned_heads": {
            str(layer): [int(head in heads) for head in range(spec.num_heads)] for layer, heads in enumerate(pruned)
        },
        "total_pruned_heads": sum(map(len, pruned)),
        "total_heads": spec.num_layers * spec.num_heads,
    }


def make_mask(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(json.dumps(content))
    return path


def any_finite(shape: tuple[int, ...], dtype: str, generator: np.random.Generator) -> bytes:
    """Any finite bit patterns: both zeros, subnormal numbers, both signs; no zero in the first row."""
    patterns = generator.integers(1, TOO_LARGE[dtype], shape, dtype=np.uint32)
    patterns[1:] *= generator.random(patterns[1:].shape) > 0.1  # only a part of a column, which would be silent
    sign = np.array([0, 1 << (STORED[dtype].itemsize * 8 - 1)], np.uint32)
    return (patterns | generator.choice(sign, shape)).astype(STORED[dtype]).tobytes()


def write_rough_checkpoint(path: Path, spec: Spec) -> Path:
    """A synthetic checkpoint with any finite numbers in o, with o biases, and with data that is not aligned."""
    write_checkpoint(path, spec)
    generator = np.random.Generator(np.random.PCG64(spec.seed))
    weight_map = {}
    for shard in sorted(path.glob("*.safetensors")):
        tensors = {f"position_ids.{shard.stem}": ("U8", (3,), b"\x01\x02\x03")}
        for name, (dtype, shape, data) in read_safetensors(shard).items():
            tensors[name] = (dtype, shape, data)
            if name.startswith(LAYER_PREFIX[spec.layout]) and name.endswith("o_proj.weight"):
                tensors[name] = (dtype, shape, any_finite(shape, dtype, generator))
                bias = name.removesuffix("weight") + "bias"
                tensors[bias] = (dtype, shape[:1], any_finite(shape[:1], dtype, generator))
        write_safetensors(shard, tensors)
        weight_map |= dict.fromkeys(tensors, shard.name)
    if spec.num_shards > 1:
        (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path


@dataclass(frozen=True)
class Case:
    spec: Spec
    pruned: Pruned
    calibration: bool
    compensation: str
    jobs: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    num_kv_heads = draw(st.integers(1, 8), label="kv heads")
    heads_per_group = draw(st.integers(2 if num_kv_heads == 1 else 1, 4), label="heads per group")
    spec = Spec(
        num_layers=draw(st.integers(1, 6), label="layers"),
        num_kv_heads=num_kv_heads,
        heads_per_group=heads_per_group,
        head_dim=draw(st.integers(1, 9), label="head_dim"),
        hidden_size=draw(st.integers(1, 9), label="hidden_size"),
        intermediate_size=3,
        vocab_size=5,
        dtype=draw(st.sampled_from(["F16", "BF16", "F32"])),
        text_model=draw(st.sampled_from(["llama", "mistral", "qwen2"])),
        layout=draw(st.sampled_from([HUGGING_FACE, ORIGINAL])),
        num_shards=draw(st.integers(1, 4), label="shards"),
        seed=draw(st.integers(0, 2**32 - 1), label="seed"),
    )
    pruned: list[set[int]] = []
    for _ in range(spec.num_layers):
        kept = draw(st.integers(0, spec.num_heads - 1))
        groups = draw(st.sets(st.integers(0, num_kv_heads - 1)))
        heads = draw(st.sets(st.integers(0, spec.num_heads - 1)))
        of_groups = {group * heads_per_group + member for group in groups for member in range(heads_per_group)}
        pruned.append((heads | of_groups) - {kept})
    if not any(pruned):
        pruned[draw(st.integers(0, spec.num_layers - 1))] = {draw(st.integers(0, spec.num_heads - 1))}
    return Case(
        spec,
        tuple(map(frozenset, pruned)),
        calibration=draw(st.booleans()),
        compensation=draw(st.sampled_from(["scale", "none"])),
        jobs=draw(st.integers(1, 3)),
    )


@in_the_newest_environment
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_every_byte_is_what_the_mask_asks_for(case: Case) -> None:
    spec, pruned = case.spec, case.pruned
    with tempfile.TemporaryDirectory() as temporary:
        source = write_rough_checkpoint(Path(temporary, "in"), spec)
        content = calibration_mask(spec, pruned) if case.calibration else native_mask(spec, pruned)
        mask = make_mask(Path(temporary, "mask.json"), content)
        before = files_of(source)
        out = Path(temporary, "llava-qwen" if spec.text_model == "qwen2" else f"llava-{spec.text_model}")
        options = {"compensation": case.compensation, "jobs": case.jobs}
        s4convert.convert(source, out, mask, check_behaviour=False, card=False, **options)
        ratios = head_ratio(spec, pruned)
        factors = ratios if case.compensation == "scale" else dict.fromkeys(ratios, 1.0)
        assert_equals_the_oracle(source, out, spec, pruned, factors, card=frozenset())
        assert files_of(source) == before


def test_the_factor_of_a_mask_is_used_and_layers_without_one_take_all_heads_over_kept_heads(tmp_path: Path) -> None:
    spec = Spec(num_layers=3, num_kv_heads=4, dtype="BF16")
    pruned = (frozenset({1}), frozenset(), frozenset({0, 2}))
    source = write_checkpoint(tmp_path / "in", spec)
    mask = make_mask(tmp_path / "mask.json", native_mask(spec, pruned) | {"scale": {"0": 1.4545}})
    s4convert.convert(source, tmp_path / "out", mask, check_behaviour=False)
    assert_equals_the_oracle(source, tmp_path / "out", spec, pruned, {0: 1.4545, 2: 2.0})


def test_the_factor_of_a_mask_is_not_used_without_compensation(tmp_path: Path) -> None:
    spec = Spec(num_kv_heads=4)
    pruned = (frozenset({1}), frozenset())
    source = write_checkpoint(tmp_path / "in", spec)
    mask = make_mask(tmp_path / "mask.json", native_mask(spec, pruned) | {"scale": {"0": 1.4545}})
    s4convert.convert(source, tmp_path / "out", mask, compensation="none", check_behaviour=False)
    assert_equals_the_oracle(source, tmp_path / "out", spec, pruned, {0: 1.0})


@pytest.mark.parametrize("compensation", ["scale", "none"])
@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_products_from_a_table_are_those_that_the_mask_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, compensation: str
) -> None:
    spec = Spec(num_layers=3, num_kv_heads=4, head_dim=8, hidden_size=32, dtype=dtype, seed=3)
    pruned = (frozenset({1, 2}), frozenset(), frozenset({0}))
    source = write_rough_checkpoint(tmp_path / "in", spec)
    mask = make_mask(tmp_path / "mask.json", native_mask(spec, pruned))
    seams.look_products_up(monkeypatch)
    s4convert.convert(source, tmp_path / "out", mask, compensation=compensation, check_behaviour=False, card=False)
    factors = head_ratio(spec, pruned) if compensation == "scale" else {0: 1.0, 2: 1.0}
    assert_equals_the_oracle(source, tmp_path / "out", spec, pruned, factors, card=frozenset())


@pytest.mark.parametrize("layout", [HUGGING_FACE, ORIGINAL])
def test_the_bytes_do_not_depend_on_the_number_of_threads(
    tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = Spec(num_layers=6, num_kv_heads=4, heads_per_group=2, num_shards=4, text_model="qwen2", layout=layout)
    pruned = tuple(frozenset(range(layer)) for layer in range(6))
    source = write_checkpoint(tmp_path / "in", spec)
    mask = make_mask(tmp_path / "mask.json", calibration_mask(spec, pruned))
    for jobs in (1, 8):
        if jobs > 1:
            seams.pass_in_blocks_of(monkeypatch, 48)
        s4convert.convert(source, tmp_path / f"llava-qwen-{jobs}", mask, check_behaviour=False, jobs=jobs)
    assert MANIFEST in files_of(tmp_path / "llava-qwen-1")
    assert files_of(tmp_path / "llava-qwen-1") == files_of(tmp_path / "llava-qwen-8")
