"""Which files of a repository are downloaded."""

from __future__ import annotations

import pytest

from s4convert.hub.download import choose_files

SHARDS = ("model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
SIDECARS = ("config.json", "tokenizer.model", "README.md", "additional_chat_templates/rag.jinja")


def chosen(*others: str, parts: tuple[str, ...] = ()) -> set[str]:
    """Of *others*, what comes along with shards and sidecars."""
    files = choose_files((*SHARDS, *SIDECARS, *others), SHARDS, lambda folder: folder in parts)
    assert files >= {*SHARDS, *SIDECARS}
    return set(files - {*SHARDS, *SIDECARS})


@pytest.mark.parametrize(
    "name",
    [
        *("pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json", "model.gguf"),
        *("model.fp16.safetensors", "consolidated.00.pth", "tf_model.h5", "flax_model.msgpack", "onnx/model.onnx"),
        *("optimizer.pt", "training_args.bin", "optimizer.bin", ".gitattributes", ".cache/huggingface/config.json"),
        *("checkpoint-10/model.safetensors", "original/consolidated.00.pth", "a/b/checkpoint-10/pytorch_model.bin"),
    ],
)
def test_other_weights_and_what_is_git_s_or_the_hubs_stay_behind(name: str) -> None:
    assert chosen(name) == set()


def test_a_folder_of_other_weights_stays_behind_whole() -> None:
    assert chosen("checkpoint-10/model.safetensors", "checkpoint-10/config.json", "checkpoint-10/logs/1.txt") == set()


def test_a_folder_without_weights_comes_along() -> None:
    names = {"code/modeling.py", "images/a.png", ".settings/a.json"}
    assert chosen(*names) == names


def test_a_part_of_the_checkpoint_comes_along_with_weights_of_one_kind() -> None:
    tower = ("tower/config.json", "tower/model.safetensors")
    assert chosen(*tower, "tower/pytorch_model.bin", "tower/tf_model.h5", parts=("tower",)) == set(tower)
    assert chosen("tower/config.json", "tower/pytorch_model.bin", parts=("tower",)) == {
        "tower/config.json",
        "tower/pytorch_model.bin",
    }
