"""What many tests need: the shipped mini LLaVA, in its own and in other dtypes, and a mask for it."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: no test may reach for the network
# Before torch is imported: so small a model gains little from a second thread, and loses much on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch  # before transformers: a pickle asks all modules for a name, in order, and its old aliases fail to answer

from s4convert.demo import MINI_LLAVA
from s4convert.mask import HeadMask

# Background jobs may have SIGINT and SIGHUP ignored (by a shell without job control, by nohup), and their children
# inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_finish() -> None:
    """Let no garbage collection look at the libraries again, as those that loading a model asks for would each time."""
    gc.collect()
    gc.freeze()


# Layers 0 and 1 untouched, whole and partial layers after them.
MINI_PRUNED = ((), (), (1, 3, 5), (), (0, 7), (2,), (), (4, 5, 6))


@pytest.fixture
def mini_llava(tmp_path: Path) -> Path:
    """A copy of the mini LLaVA that a test may do anything with."""
    return Path(shutil.copytree(MINI_LLAVA, tmp_path / "mini-llava"))


@pytest.fixture
def mini_mask() -> HeadMask:
    return HeadMask(8, MINI_PRUNED)


@pytest.fixture
def mini_mask_file(tmp_path: Path, mini_mask: HeadMask) -> Path:
    path = tmp_path / "mask.json"
    path.write_text(json.dumps(mini_mask.to_json()))
    return path


@pytest.fixture
def mini_llava_as(mini_llava: Path) -> Callable[..., Path]:
    """The mini LLaVA stored in another torch dtype, in one file or in two shards."""
    from safetensors.torch import load_file, save_file

    def build(dtype: torch.dtype, *, single_file: bool = False) -> Path:
        shards = {path: load_file(path) for path in sorted(mini_llava.glob("*.safetensors"))}
        if single_file:
            merged = {name: tensor for shard in shards.values() for name, tensor in shard.items()}
            for path in (*shards, mini_llava / "model.safetensors.index.json"):
                path.unlink()
            shards = {mini_llava / "model.safetensors": merged}
        for path, tensors in shards.items():
            save_file({n: t.to(dtype) for n, t in tensors.items()}, path, metadata={"format": "pt"})
        # transformers 5 loads in the dtype that the config names, whatever the file holds.
        config = mini_llava / "config.json"
        config.write_text(config.read_text().replace("float16", str(dtype).removeprefix("torch.")))
        return mini_llava

    return build
