"""Mistakes that people make when they rewrite heads: which of the checks sees each of them, and what it names.

Every check is asked alone: *bytes* compares all of them with what the mask asks for, *definition* the stored weights
with what the compensation is defined as, *states* the hidden states of both and of the hooked original.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from s4convert import Checkpoint, HeadMask, convert, verify_conversion
from s4convert.calibration.moments import LayerMoments
from s4convert.checkpoint.dtypes import encode
from s4convert.compensation import fit
from s4convert.errors import VerificationError
from s4convert.verify.behaviour import check_behaviour
from s4convert.verify.claim import Claim
from s4convert.verify.definition import check_definition
from s4convert.verify.probe import Probe, make_probe
from s4convert.verify.structure import ByteChecks, check_structure
from tests.jobs.test_verify_anything import moments
from tests.support.synthetic import Spec, read_safetensors, write_checkpoint, write_safetensors

# 3 layers of 6 heads in 3 groups; the mask takes a whole group and half of one, and leaves layer 1.
GROUPED = Spec(
    num_layers=3, num_kv_heads=3, heads_per_group=2, head_dim=8, hidden_size=48, dtype="BF16", text_model="qwen2",
    num_shards=2,
)  # fmt: skip
MASK = HeadMask(6, ((2, 3), (), (0,)))
OWN = replace(GROUPED, num_kv_heads=6, heads_per_group=1, dtype="F16", text_model="llama", num_shards=1)
D, HEADS = GROUPED.head_dim, GROUPED.num_heads
LAYERS = "language_model.model.layers"

Array = np.ndarray
Sabotage = Callable[["Pair"], None]


@dataclass(frozen=True)
class Pair:
    """An original and its conversion by *mode*, which a test may spoil."""

    original: Path
    converted: Path
    mode: str

    @property
    def moments(self) -> Callable[[int], LayerMoments] | None:
        return moments(HEADS * D) if self.mode == "least-squares" else None

    def before(self, name: str) -> Array:
        checkpoint = Checkpoint.open(self.original)
        return checkpoint.read_rows(checkpoint.tensors[name])

    def change(self, name: str, edit: Callable[[Array], Array | None]) -> None:
        """Let *edit* change the values of the converted tensor *name* in place, or return others."""
        checkpoint = Checkpoint.open(self.converted)
        tensor = checkpoint.tensors[name]
        values = np.array(checkpoint.read_rows(tensor))
        changed = edit(values)
        self.write(name, encode(values if changed is None else changed, tensor.dtype))

    def write(self, name: str, data: bytes) -> None:
        tensor = Checkpoint.open(self.converted).tensors[name]
        with (self.converted / tensor.shard).open("r+b") as file:
            file.seek(tensor.entry.begin)
            file.write(data)

    def put_back(self, layer: int, *projections: str) -> None:
        for name in Checkpoint.open(self.original).tensors:
            if re.match(rf"{re.escape(LAYERS)}\.{layer}\.self_attn\.[{''.join(projections)}]_proj\.", name):
                self.change(name, lambda _, name=name: self.before(name))

    def caught(self, probe: Probe) -> dict[str, str]:
        """What each of the checks says, by its name; those that see nothing are not in it."""
        original, converted = Checkpoint.open(self.original), Checkpoint.open(self.converted)
        with TemporaryDirectory() as scratch:
            fits = fit(self.mode, original, MASK, Path(scratch), moments=self.moments, progress=False)
            return self._caught(Claim(original, converted, MASK, fits), probe)

    def _caught(self, claim: Claim, probe: Probe) -> dict[str, str]:
        def definition() -> None:
            for layer in MASK.touched_layers:
                check_definition(claim, layer, None if self.moments is None else self.moments(layer).train)

        seen = ByteChecks(claim.terms, claim.converted.path, claim.converted)
        checks: dict[str, Callable[[], object]] = {
            "bytes": lambda: check_structure(claim, seen, jobs=1, advance=lambda _: None),
            "definition": definition,
            "states": lambda: check_behaviour(claim, probe, advance=lambda _: None),
        }
        said = {}
        for name, check in checks.items():
            try:
                check()
            except VerificationError as error:
                said[name] = str(error)
        return said


def weight(layer: int, projection: str, kind: str = "weight") -> str:
    return f"{LAYERS}.{layer}.self_attn.{projection}_proj.{kind}"


def of_head(head: int) -> slice:
    return slice(head * D, (head + 1) * D)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    """Converts once by each mode."""
    pairs: dict[str, Pair] = {}

    def make(mode: str) -> Pair:
        if mode not in pairs:
            directory = tmp_path_factory.mktemp(mode)
            pair = Pair(
                write_checkpoint(directory / "in", GROUPED if mode == "scale" else OWN), directory / "out", mode
            )
            settings = {"compensation": mode, "card": False, "check_behaviour": False}
            convert(pair.original, pair.converted, MASK, statistics=pair.moments, **settings)
            pairs[mode] = pair
        return pairs[mode]

    return make


@pytest.fixture
def pair(request: pytest.FixtureRequest, made: Callable[[str], Pair], tmp_path: Path) -> Iterator[Pair]:
    """A copy of a conversion, by ``scale`` if a test does not say otherwise."""
    honest = made(getattr(request, "param", "scale"))
    yield replace(honest, converted=Path(shutil.copytree(honest.converted, tmp_path / "out")))


@pytest.fixture(scope="module")
def probes(made: Callable[[str], Pair]) -> Callable[[Pair], Probe]:
    known: dict[str, Probe] = {}

    def of(pair: Pair) -> Probe:
        if pair.mode not in known:
            known[pair.mode] = make_probe(Checkpoint.open(pair.original))
        return known[pair.mode]

    return of


@pytest.mark.parametrize("pair", ["scale", "least-squares", "residual-transfer"], indirect=True)
def test_no_check_sees_anything_in_an_honest_conversion(pair: Pair, probes: Callable[[Pair], Probe]) -> None:
    assert pair.caught(probes(pair)) == {}
    verify_conversion(pair.original, pair.converted, check_behaviour=False)


# --- factors ---------------------------------------------------------------------------------------------------


def scaled(pair: Pair, layer: int, factors: float | Array, *, rows: bool = False) -> None:
    """The original's columns of *layer* times *factors*, one a head; those of pruned heads are zero."""
    by_head = np.repeat(np.broadcast_to(np.asarray(factors, np.float32), HEADS), D)

    def edit(_: Array) -> Array:
        values = pair.before(weight(layer, "o")) * (by_head[:, None] if rows else by_head)
        for head in MASK.pruned[layer]:
            values[:, of_head(head)] = 0
        return values

    pair.change(weight(layer, "o"), edit)


def n_over_N(pair: Pair) -> None:  # noqa: N802 (as the formula is written)
    for layer in MASK.touched_layers:
        scaled(pair, layer, (HEADS - len(MASK.pruned[layer])) / HEADS)


def the_factor_of_the_whole_model(pair: Pair) -> None:
    for layer in MASK.touched_layers:
        scaled(pair, layer, 3 * HEADS / (3 * HEADS - MASK.num_pruned))


def the_factor_of_groups(pair: Pair) -> None:
    scaled(pair, 0, 2.0)  # a group of three is silent, but as if the heads of the two others had to make up for four


def no_factor(pair: Pair) -> None:
    scaled(pair, 2, 1.0)


def the_factor_on_one_head_alone(pair: Pair) -> None:
    scaled(pair, 0, np.array([1.5, 1, 0, 0, 1, 1]))


def rows_in_place_of_columns(pair: Pair) -> None:
    scaled(pair, 0, np.array([1.5, 1.5, 1, 1, 1.5, 1.5]), rows=True)


def layers_that_lose_no_head_as_well(pair: Pair) -> None:
    pair.change(weight(1, "o"), lambda values: values * 1.25)


# --- heads -----------------------------------------------------------------------------------------------------


def silenced(pair: Pair, layer: int, heads: list[int], groups: list[int]) -> None:
    """*layer* as another mask would have it."""
    pair.put_back(layer, "q", "k", "v", "o")
    factor = HEADS / (HEADS - len(heads))

    def columns(values: Array) -> Array:
        values *= factor
        for head in heads:
            values[:, of_head(head)] = 0
        return values

    pair.change(weight(layer, "o"), columns)
    for projection, which in {"q": heads, "k": groups, "v": groups}.items():
        for kind in ("weight", "bias"):
            for one in which:
                pair.change(weight(layer, projection, kind), lambda values, at=one: values.__setitem__(of_head(at), 0))


def nothing(pair: Pair) -> None:
    for layer in MASK.touched_layers:
        pair.put_back(layer, "q", "k", "v", "o")


def heads_counted_from_one(pair: Pair) -> None:
    silenced(pair, 0, [3, 4], [])
    silenced(pair, 2, [1], [])


def heads_counted_across_groups(pair: Pair) -> None:
    silenced(pair, 0, [1, 4], [])  # the heads 2 and 3, if head h were of group h % 3


def kept_for_pruned(pair: Pair) -> None:
    silenced(pair, 0, [0, 1, 4, 5], [0, 2])


def keys_and_values_of_half_a_group(pair: Pair) -> None:
    for projection in "kv":
        pair.change(weight(2, projection), lambda values: values.__setitem__(of_head(0), 0))


def keys_of_the_group_by_the_number_of_the_head(pair: Pair) -> None:
    pair.change(weight(0, "k"), lambda values: values.__setitem__(of_head(2), 0))


def keys_and_values_of_a_silent_group_left(pair: Pair) -> None:
    pair.put_back(0, "k", "v")


def queries_alone(pair: Pair) -> None:
    pair.put_back(0, "o")


def output_alone(pair: Pair) -> None:
    pair.put_back(0, "q", "k", "v")


def a_bias_forgotten(pair: Pair) -> None:
    pair.change(weight(0, "v", "bias"), lambda _: pair.before(weight(0, "v", "bias")))


def a_bias_of_a_kept_head(pair: Pair) -> None:
    pair.change(weight(2, "v", "bias"), lambda values: values.__setitem__(of_head(0), 0))


def the_vision_tower_in_place_of_the_language_model(pair: Pair) -> None:
    name = "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight"
    pair.change(name, lambda values: values.__setitem__(of_head(2), 0))


# --- files -----------------------------------------------------------------------------------------------------


def layers_in_the_wrong_order(pair: Pair) -> None:
    raw = {name: Checkpoint.open(pair.converted).tensors[name] for name in Checkpoint.open(pair.converted).tensors}
    data = {name: Checkpoint.open(pair.converted).read_bytes(tensor) for name, tensor in raw.items()}
    for name in data:
        if name.startswith(f"{LAYERS}.0."):
            other = name.replace(f"{LAYERS}.0.", f"{LAYERS}.1.")
            pair.write(name, data[other])
            pair.write(other, data[name])


def bf16_read_as_fp16(pair: Pair) -> None:
    original = Checkpoint.open(pair.original)
    tensor = original.output_projection(2)
    values = np.frombuffer(original.read_bytes(tensor), "<f2").reshape(tensor.shape).astype(np.float32) * 1.2
    values[:, of_head(0)] = 0
    pair.write(tensor.name, values.astype("<f2").tobytes())


def transposed(pair: Pair) -> None:
    pair.change(weight(0, "o"), lambda values: values.T.copy())


def one_bit_of_a_layer_that_loses_no_head(pair: Pair) -> None:
    name = f"{LAYERS}.1.mlp.down_proj.weight"
    data = bytearray(Checkpoint.open(pair.converted).read_bytes(Checkpoint.open(pair.converted).tensors[name]))
    data[100] ^= 1
    pair.write(name, bytes(data))


def one_number_of_lm_head(pair: Pair) -> None:
    pair.change("language_model.lm_head.weight", lambda values: values.__setitem__((3, 3), 2))


def not_a_number(pair: Pair) -> None:
    pair.change(weight(2, "o"), lambda values: values.__setitem__((3, 11), np.nan))


ASKED, ORIGINALS = "is not what the mask asks for", "is not the original's"
DEFINED = "is not what scale is by definition"


SEEN: list[tuple[Sabotage, dict[str, str]]] = [
    (n_over_N, {
        "bytes": f"layers.0.self_attn.o_proj.weight of layer 0 {ASKED}",
        "definition": rf"layers.0.self_attn.o_proj.weight of layer 0 {DEFINED}: kept columns .* times 1.5",
        "states": "layer 0: is .* off the hooked original",
    }),
    (the_factor_of_the_whole_model, {
        "bytes": f"o_proj.weight of layer 0 {ASKED}",
        "definition": f"o_proj.weight of layer 0 {DEFINED}",
        "states": "layer 0: is .* off",
    }),
    (the_factor_of_groups, {
        "bytes": f"o_proj.weight of layer 0 {ASKED}",
        "definition": f"o_proj.weight of layer 0 {DEFINED}",
        "states": "layer 0: is .* off",
    }),
    (no_factor, {
        "bytes": f"o_proj.weight of layer 2 {ASKED}",
        "definition": rf"o_proj.weight of layer 2 {DEFINED}: kept columns .* times 1.2",
        "states": "layer 2: is .* off",
    }),
    (the_factor_on_one_head_alone, {
        "bytes": f"o_proj.weight of layer 0 {ASKED}",
        "definition": f"o_proj.weight of layer 0 {DEFINED}",
        "states": "layer 0: is .* off",
    }),
    (rows_in_place_of_columns, {
        "bytes": f"o_proj.weight of layer 0 {ASKED}",
        "definition": f"o_proj.weight of layer 0 {DEFINED}",
        "states": "layer 0: is .* off",
    }),
    (layers_that_lose_no_head_as_well, {
        "bytes": f"layers.1.self_attn.o_proj.weight {ORIGINALS}",
        "states": "layer 1: computes something else than the original's",
    }),
    (nothing, {
        "bytes": f"of layer 0 {ASKED}",
        "definition": f"o_proj.weight of layer 0 {DEFINED}: a column of a pruned head is not zero",
        "states": "layer 0: pruning 2 heads changed nothing",
    }),
    (heads_counted_from_one, {
        "bytes": f"of layer 0 {ASKED}",
        "definition": "layer 0 .* a column of a pruned head is not zero",
        "states": "layer 0: is .* off",
    }),
    (heads_counted_across_groups, {
        "bytes": f"of layer 0 {ASKED}",
        "definition": "layer 0 .* a column of a pruned head is not zero",
        "states": "layer 0: is .* off",
    }),
    (kept_for_pruned, {
        "bytes": f"of layer 0 {ASKED}",
        "definition": "layer 0 .* a column of a pruned head is not zero",
        "states": "layer 0: is .* off",
    }),
    (keys_and_values_of_half_a_group, {
        "bytes": f"[kv]_proj.weight of layer 2 {ASKED}",
        "states": "layer 2: is .* off",
    }),
    (keys_of_the_group_by_the_number_of_the_head, {
        "bytes": f"k_proj.weight of layer 0 {ASKED}",
        "states": "layer 0: is .* off",
    }),
    (keys_and_values_of_a_silent_group_left, {"bytes": f"[kv]_proj.(weight|bias) of layer 0 {ASKED}"}),
    (queries_alone, {
        "bytes": f"o_proj.weight of layer 0 {ASKED}",
        "definition": "layer 0 .* a column of a pruned head is not zero",
        "states": "layer 0: is .* off",
    }),
    (output_alone, {"bytes": f"[qkv]_proj.(weight|bias) of layer 0 {ASKED}"}),
    (a_bias_forgotten, {"bytes": f"v_proj.bias of layer 0 {ASKED}"}),
    (a_bias_of_a_kept_head, {"bytes": f"v_proj.bias of layer 2 {ASKED}", "states": "layer 2: is .* off"}),
    (the_vision_tower_in_place_of_the_language_model, {
        "bytes": f"vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight {ORIGINALS}",
    }),
    (layers_in_the_wrong_order, {
        "bytes": rf"layers.0..* (of layer 0 {ASKED}|{ORIGINALS})",
        "definition": "layer 0 .* a column of a pruned head is not zero",
        "states": "layer 0: is .* off",
    }),
    (bf16_read_as_fp16, {
        "bytes": f"o_proj.weight of layer 2 {ASKED}",
        "definition": f"o_proj.weight of layer 2 {DEFINED}",
        "states": "layer 2: is .* off",
    }),
    (transposed, {
        "bytes": f"o_proj.weight of layer 0 {ASKED}",
        "definition": f"o_proj.weight of layer 0 {DEFINED}",
        "states": "layer 0: is .* off",
    }),
    (one_bit_of_a_layer_that_loses_no_head, {
        "bytes": f"layers.1.mlp.down_proj.weight {ORIGINALS}",
        "states": "layer 1: computes something else",
    }),
    (one_number_of_lm_head, {"bytes": f"language_model.lm_head.weight {ORIGINALS}"}),
    (not_a_number, {
        "bytes": f"o_proj.weight of layer 2 {ASKED}",
        "definition": f"o_proj.weight of layer 2 {DEFINED}",
        "states": "layer 2: hidden states are not finite",
    }),
]  # fmt: skip


@pytest.mark.parametrize(("sabotage", "said"), SEEN, ids=[sabotage.__name__ for sabotage, _ in SEEN])
def test_each_check_that_can_sees_it(
    pair: Pair, probes: Callable[[Pair], Probe], sabotage: Sabotage, said: dict[str, str]
) -> None:
    sabotage(pair)
    caught = pair.caught(probes(pair))
    assert caught.keys() == said.keys(), caught
    for check, pattern in said.items():
        assert re.search(pattern, caught[check]), caught[check]


# --- compensations that are fitted, or that move V --------------------------------------------------------------


def one_kept_head_by_a_thousandth(pair: Pair) -> None:
    pair.change(weight(0, "o"), lambda values: values.__setitem__(np.s_[:, of_head(4)], values[:, of_head(4)] * 1.001))


def one_row_of_v(pair: Pair) -> None:
    def edit(values: Array) -> None:
        row = 5 * D + 3  # head 5 is kept
        values[row] *= 1.01

    pair.change(weight(2, "v"), edit)


def values_that_were_not_mixed(pair: Pair) -> None:
    pair.put_back(0, "v")
    for head in MASK.pruned[0]:
        pair.change(weight(0, "v"), lambda values, at=head: values.__setitem__(of_head(at), 0))


SEEN_OF_MAPS: list[tuple[str, Sabotage, dict[str, str]]] = [
    ("least-squares", one_kept_head_by_a_thousandth, {
        "bytes": f"layers.0.self_attn.o_proj.weight of layer 0 {ASKED}",
        "definition": "o_proj.weight of layer 0 is not what least-squares is by definition",
    }),
    ("residual-transfer", one_row_of_v, {
        "bytes": f"layers.2.self_attn.v_proj.weight of layer 2 {ASKED}",
        "definition": "layer 2 is not what residual-transfer is by definition: the rows of v_proj",
        "states": "layer 2: is .* off",
    }),
    ("residual-transfer", values_that_were_not_mixed, {
        "bytes": f"layers.0.self_attn.v_proj.weight of layer 0 {ASKED}",
        "definition": "layer 0 is not what residual-transfer is by definition: the rows of v_proj",
        "states": "layer 0: is .* off",
    }),
]  # fmt: skip


@pytest.mark.parametrize(
    ("pair", "sabotage", "said"), SEEN_OF_MAPS, indirect=["pair"], ids=[row[1].__name__ for row in SEEN_OF_MAPS]
)
def test_a_map_that_is_off_by_little_is_seen(
    pair: Pair, probes: Callable[[Pair], Probe], sabotage: Sabotage, said: dict[str, str]
) -> None:
    test_each_check_that_can_sees_it(pair, probes, sabotage, said)


# --- what is seen before any number is compared ------------------------------------------------------------------


def stale_index(pair: Pair) -> None:
    index = pair.converted / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    shards = sorted(set(content["weight_map"].values()))
    content["weight_map"][weight(0, "o")] = next(s for s in shards if s != content["weight_map"][weight(0, "o")])
    index.write_text(json.dumps(content))


def index_of_a_checkpoint_with_more_shards(pair: Pair) -> None:
    index = pair.converted / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00002-of-00002", "model-00003-of-00003"))


def a_tensor_in_another_dtype(pair: Pair) -> None:
    name = weight(1, "q")
    path = pair.converted / Checkpoint.open(pair.converted).tensors[name].shard
    tensors = read_safetensors(path)
    _, shape, data = tensors[name]
    tensors[name] = ("F16", shape, data)
    write_safetensors(path, tensors)


def a_tensor_left_out(pair: Pair) -> None:
    name = weight(1, "q", "bias")
    path = pair.converted / Checkpoint.open(pair.converted).tensors[name].shard
    write_safetensors(path, {other: tensor for other, tensor in read_safetensors(path).items() if other != name})


def fewer_heads_in_the_config(pair: Pair) -> None:
    config = json.loads((pair.converted / "config.json").read_text())
    config["text_config"]["num_attention_heads"] = 4
    (pair.converted / "config.json").write_text(json.dumps(config))


def pruned_heads_in_the_config(pair: Pair) -> None:
    config = json.loads((pair.converted / "config.json").read_text())
    config["text_config"]["pruned_heads"] = {"0": [2, 3]}
    (pair.converted / "config.json").write_text(json.dumps(config))


def torch_files_left_beside(pair: Pair) -> None:
    (pair.converted / "pytorch_model.bin").write_bytes(b"the original's")


NAMED: list[tuple[Sabotage, str]] = [
    (stale_index, "model.safetensors.index.json"),
    (index_of_a_checkpoint_with_more_shards, "model-00003-of-00003.safetensors, which is missing"),
    (a_tensor_in_another_dtype, r"model-0000\d-of-00002.safetensors"),
    (a_tensor_left_out, r"q_proj.bias"),
    (fewer_heads_in_the_config, "config.json|geometry"),
    (pruned_heads_in_the_config, "config.json: its size is not the original's"),
    (torch_files_left_beside, "pytorch_model.bin"),
]


@pytest.mark.parametrize(("sabotage", "said"), NAMED, ids=[sabotage.__name__ for sabotage, _ in NAMED])
def test_a_file_that_is_not_the_conversions_is_named(pair: Pair, sabotage: Sabotage, said: str) -> None:
    sabotage(pair)
    with pytest.raises(VerificationError, match=said):
        verify_conversion(pair.original, pair.converted, check_behaviour=False)


def test_tied_embeddings_that_were_untied_are_named(tmp_path: Path) -> None:
    original = write_checkpoint(tmp_path / "in", replace(OWN, num_layers=1))
    config = json.loads((original / "config.json").read_text())
    config["text_config"]["tie_word_embeddings"] = True
    (original / "config.json").write_text(json.dumps(config))
    tensors = read_safetensors(original / "model.safetensors")
    head = tensors.pop("language_model.lm_head.weight")
    write_safetensors(original / "model.safetensors", tensors)
    convert(original, tmp_path / "out", HeadMask(6, ((1,),)), check_behaviour=False)
    untied = {**read_safetensors(tmp_path / "out" / "model.safetensors"), "language_model.lm_head.weight": head}
    write_safetensors(tmp_path / "out" / "model.safetensors", untied)
    with pytest.raises(
        VerificationError, match=r"model\.safetensors: language_model\.lm_head\.weight does not stand in the original"
    ):
        verify_conversion(original, tmp_path / "out", check_behaviour=False)
    (tmp_path / "out" / "s4convert.json").unlink()  # then shards may be others
    with pytest.raises(VerificationError, match=r"language_model\.lm_head\.weight"):
        verify_conversion(original, tmp_path / "out", check_behaviour=False)
