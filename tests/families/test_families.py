"""Every supported family converts right, loads in stock code, and computes what run-time hooks would.

Each test states what it showed with ``record_property``; ``tests.families.support_matrix`` makes README's table of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

import s4convert
from s4convert.checkpoint import Checkpoint
from s4convert.checkpoint.families import FAMILIES
from s4convert.errors import UsageError
from s4convert.mask import HeadMask
from s4convert.model.decoder import require_stock_code
from s4convert.verify.probe import make_probe
from tests.families.fixtures import CLIP, FIXTURES, Fixture, Tensors
from tests.support.run_time_hooks import hook_heads
from tests.support.stock_figures import assert_figures, run

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
FORMS = ("one file", "two shards", ".bin")
RecordProperty = Callable[[str, object], None]


def mask_for(fixture: Fixture) -> HeadMask:
    """Layer 0 untouched, a single head in layer 1, in layer 2 a whole kv group and one head more."""
    group = fixture.num_heads // fixture.num_kv_heads
    return HeadMask(fixture.num_heads, ((), (1,), tuple(range(group + 1))))


def weights(path: Path) -> Tensors:
    files = sorted([*path.glob("*.safetensors"), *path.glob("*.bin")])
    found: Tensors = {}
    for file in files:
        found |= load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
    return found


def expected(fixture: Fixture, before: Tensors, mask: HeadMask, *, scaled: bool) -> Tensors:
    """What the mask makes of *before*: written down once more, with nothing but the fixture's names and numpy."""
    width, heads, kv_heads = fixture.head_dim, fixture.num_heads, fixture.num_kv_heads
    group = heads // kv_heads
    after = {name: tensor.clone() for name, tensor in before.items()}
    for layer, pruned in enumerate(mask.pruned):
        if not pruned:
            continue
        at = f"{fixture.layers}.{layer}.self_attn."
        factor = heads / (heads - len(pruned)) if scaled else 1.0
        output = before[at + "o_proj.weight"]
        columns = output.float().numpy() * np.float32(factor)
        for head in pruned:
            columns[:, head * width : (head + 1) * width] = 0
        after[at + "o_proj.weight"] = torch.from_numpy(columns).to(output.dtype)
        silent_groups = [kv for kv in range(kv_heads) if set(range(kv * group, (kv + 1) * group)) <= set(pruned)]
        rows = {"q": (0, pruned), "k": (0, silent_groups), "v": (0, silent_groups)}
        if fixture.fused:
            rows = {
                "q": (0, pruned),
                "k": (heads * width, silent_groups),
                "v": ((heads + kv_heads) * width, silent_groups),
            }
        for projection, (first, silent) in rows.items():
            for kind in ("weight", "bias"):
                tensor = after.get(f"{at}{'qkv' if fixture.fused else projection}_proj.{kind}")
                for head in silent if tensor is not None else ():
                    tensor[first + head * width : first + (head + 1) * width] = 0
    return after


# Every family in every form and in both dtypes, and every form in both dtypes, but not each of the three with each.
# Every run has each family once, the battery all.
PAIRS = [
    pytest.param(
        fixture, form, DTYPES[name], id=f"{name}-{form}-{fixture.name}",
        marks=() if form == FORMS[number % 3] else pytest.mark.battery,
    )
    for number, fixture in enumerate(FIXTURES)
    for form, name in zip(FORMS, itertools.islice(itertools.cycle(DTYPES), number % 2, None), strict=False)
]  # fmt: skip


@pytest.mark.parametrize(("fixture", "form", "dtype"), PAIRS)
def test_every_tensor_is_what_the_mask_makes_of_it(
    fixture: Fixture, form: str, dtype: torch.dtype, tmp_path: Path, record_property: RecordProperty
) -> None:
    source = fixture.write(tmp_path, dtype, form=form)
    before, mask = weights(source), mask_for(fixture)
    out = source.with_name(source.name + "-pruned")
    s4convert.convert(source, out, mask, check_behaviour=False, card=False)
    found = weights(out)
    wanted = expected(fixture, before, mask, scaled=True)
    assert sorted(found) == sorted(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
        if not torch.equal(tensor, before[name]):
            assert not torch.signbit(found[name][found[name] == 0]).any(), name
    assert any(not torch.equal(found[name], before[name]) for name in before)
    assert not list(out.glob("*.bin*"))
    record_property("family", fixture.name)
    record_property("bit for bit", ".bin" if form == ".bin" else "safetensors")


def write_tower(path: Path) -> None:
    """The CLIP directory that ``mm_vision_tower`` names in the original layout."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    CLIPVisionModel(CLIPVisionConfig(**CLIP)).save_pretrained(path)
    CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(path)


def load(fixture: Fixture, path: Path) -> Any:
    """The checkpoint, loaded by its stock class with every key in its place."""
    stock_class = fixture.stock_class()
    if fixture.model_type == "llavaonevision1_5":
        return load_by_its_language_model(fixture, path, stock_class)
    model, loading = stock_class.from_pretrained(path, output_loading_info=True)
    unexpected = set(loading["unexpected_keys"])
    if fixture.not_loaded is not None:
        unexpected = {name for name in unexpected if not fixture.not_loaded.fullmatch(name)}
    # A rotary embedding's constants and a tower's position numbers are no weights; old versions stored them.
    missing = {name for name in loading["missing_keys"] if not name.endswith((".inv_freq", ".position_ids"))}
    assert (missing, unexpected, list(loading["mismatched_keys"])) == (set(), set(), [])
    return model.float().eval()


def load_by_its_language_model(fixture: Fixture, path: Path, stock_class: Any) -> Any:
    """Its own class is remote code; its language model is Qwen3 under other names, with another default of the base."""
    config = stock_class.config_class(**fixture.config, rope_theta=5_000_000.0)
    model = stock_class(config)
    found = {
        name.replace("model.language_model.", "model."): tensor
        for name, tensor in weights(path).items()
        if not (fixture.not_loaded and fixture.not_loaded.fullmatch(name))
    }
    model.load_state_dict(found, strict=True)
    return model.float().eval()


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda fixture: fixture.name)
@pytest.mark.parametrize("compensation", ["scale", pytest.param("none", marks=pytest.mark.battery)])
def test_stock_code_loads_it_and_computes_what_hooks_would(
    fixture: Fixture,
    compensation: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: RecordProperty,
) -> None:
    source = fixture.write(tmp_path, torch.float32)
    if "mm_vision_tower" in fixture.settings:
        monkeypatch.chdir(tmp_path)
        write_tower(tmp_path / "tower")
    mask = mask_for(fixture)
    out = source.with_name(source.name + "-pruned")
    try:
        require_stock_code(Checkpoint.open(source))
    except UsageError as error:
        pytest.skip(str(error))
    report = s4convert.convert(source, out, mask, compensation=compensation, card=False)
    assert report.behaviour is not None

    original, reference, converted = load(fixture, source), load(fixture, source), load(fixture, out)
    hook_heads(reference, mask, scaled=compensation == "scale")
    models = {"original": original, "reference": reference, "converted": converted}
    samples = make_probe(Checkpoint.open(source)).samples
    samples = samples if compensation == "scale" else samples[:1]  # one mode is enough for the figures
    token_ids = [sample.token_ids[None] for sample in samples if sample.token_ids is not None]
    said = {
        name: [run(model, input_ids=ids, attention_mask=torch.ones_like(ids)) for ids in token_ids]
        for name, model in models.items()
    }
    runs = list(zip(*(of_model[0].states for of_model in said.values()), strict=True))
    assert len(runs) == 4
    for index, (before, wanted, found) in enumerate(runs):
        if index <= mask.touched_layers[0]:  # [0] are the embeddings, so [i] is what layer i reads
            assert torch.equal(found, before)
        else:
            assert not torch.equal(found, before)
            assert (found - wanted).norm() <= 1e-5 * wanted.norm()
    if compensation == "scale":
        assert_figures(report.behaviour, samples, said)
    record_property("family", fixture.name)
    record_property("stock class", type(original).__name__)
    record_property("transformers", transformers.__version__)


def test_every_family_of_the_table_has_a_fixture() -> None:
    assert {family.model_type for family in FAMILIES} <= {fixture.model_type for fixture in FIXTURES}
