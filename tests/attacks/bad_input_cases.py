"""The bad inputs of :mod:`tests.attacks.bad_inputs`: what spoils a sound input, and what is said of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.attacks.rules import REFUSED_HEADERS, REFUSED_INDEXES
from tests.battery.headers import ATTACKS

USAGE, STORAGE, FAILED = 2, 3, 1
LONG = "x" * 100_000
HOSTILE = "\x1b]0;owned\x07\nverdict: OK"
MANIFEST = "out/s4convert.json"
O_PROJ = "language_model.model.layers.1.self_attn.o_proj.weight"


@dataclass(frozen=True)
class Case:
    """*spoil* changes a sound input where *command* runs, which then ends with *exit_code* and says *message*."""

    name: str
    command: tuple[str, ...]
    spoil: Callable[[], object]
    message: str
    exit_code: int = USAGE

    @property
    def inputs(self) -> set[str]:
        """What the command may read, by its name at the top of the working directory."""
        named = {argument.split("/")[0] for argument in self.command}
        return named | ({"images"} if "--images" in self.command else set())


SCORES = {"0": [0.1, 0.2, 0.3, 0.4], "1": [0.5, 0.6, 0.7, 0.8]}
QUESTIONS = [
    {"id": "1", "conversations": [{"from": "human", "value": "What?\nA. x\nB. y"}, {"from": "gpt", "value": "A"}]},
    {"id": "2", "conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Nobody."}]},
]
SAMPLE = {
    "checkpoint": "a",
    "fingerprint": "f",
    "conversation": "v",
    "question_id": "1",
    "image": False,
    "answers": ["A"],
    "score": 1.0,
}
POINT = {"compensation": None, "settings": [], "mask": None, "heads_pruned": 0, "rate": 0.0}
STUDY = {
    "format": "s4convert-study/1",
    "source": "in",
    "evaluator": None,
    "prune_nothing": [],
    "points": [POINT | {"point": "0" * 16}, POINT | {"point": "1" * 16, "compensation": "none"}],
}

# --- the commands ---------------------------------------------------------------------------------------------

BYTES = ("--no-verify", "-q")
UNIFORM = ("--schedule", "uniform", "--rate", "0.25")
INSPECT, INSPECT_MASK, INSPECT_SCORES = ("inspect", "in"), ("inspect", "mask.json"), ("inspect", "scores.json")
INSPECT_STATISTICS, INSPECT_BIN, INSPECT_OUT = ("inspect", "statistics"), ("inspect", "bin"), ("inspect", "out")
INSPECT_SINGLE, INSPECT_INDEXED = ("inspect", "single"), ("inspect", "indexed")
CONVERT = ("in", "new", "--mask", "mask.json", *BYTES)
VERIFY, VERIFY_FILES = ("verify", "in", "out"), ("verify", "out")
REPORT, PUSH = ("report", "out", "-o", "report.html"), ("push", "out", "me/pruned", "--dry-run")
REPRODUCE = ("reproduce", "out", "--source", "in")
MASK = ("mask", "in", "-o", "made.json", "--metric", "magnitude", *UNIFORM)
MASK_OF_SCORES = ("mask", "--scores", "scores.json", "-o", "made.json", *UNIFORM)
FIT = (*CONVERT, "--compensate", "head-ls", "--statistics", "statistics")
CALIBRATE = (*CONVERT, "--compensate", "head-ls", "--calibration", "questions.json", "--dry-run")
CALIBRATE_TEXTS = (*CONVERT, "--compensate", "head-ls", "--calibration", "texts.txt", "--dry-run")
EVALUATE = ("evaluate", "in", "--questions", "questions.json", "--conversation", "vicuna_v1")
COMPARE = ("compare", "samples.jsonl", "samples.jsonl")
SWEEP = ("sweep", "in", "-o", "new", "--study", "study.yaml")
SUMMARISE = ("sweep", "--summarise", "results")
SOUND = (
    *(INSPECT, INSPECT_MASK, INSPECT_SCORES, INSPECT_STATISTICS, INSPECT_BIN, INSPECT_OUT, INSPECT_SINGLE, CONVERT),
    *(VERIFY, VERIFY_FILES, REPORT, PUSH, REPRODUCE, MASK, MASK_OF_SCORES, FIT, CALIBRATE, CALIBRATE_TEXTS, COMPARE),
    SUMMARISE,
)

# --- what spoils an input -------------------------------------------------------------------------------------


def write(path: str, content: bytes | str) -> Callable[[], object]:
    """Let *content* stand in the file *path*."""
    return lambda: Path(path).write_bytes(content.encode() if isinstance(content, str) else content)


def put(path: str, *where: str | int, value: Any) -> Callable[[], object]:
    """Let *value* stand at *where* in the JSON file *path*."""

    def spoil() -> None:
        content = part = json.loads(Path(path).read_text())
        for name in where[:-1]:
            part = part[name]
        part[where[-1]] = value
        Path(path).write_text(json.dumps(content))

    return spoil


def config(*where: str, value: Any) -> Callable[[], object]:
    """Let *value* stand at *where* in IN's config.json."""
    return put("in/config.json", *where, value=value)


def config_text(content: bytes | str) -> Callable[[], object]:
    """Let *content* be IN's config.json."""
    return write("in/config.json", content)


def stated(*where: str, value: Any) -> Callable[[], object]:
    """Let *value* stand at *where* in OUT's manifest."""
    return put(MANIFEST, *where, value=value)


def without(path: str, *where: str | int) -> Callable[[], object]:
    """Let nothing stand at *where* in the JSON file *path*."""

    def spoil() -> None:
        content = part = json.loads(Path(path).read_text())
        for name in where[:-1]:
            part = part[name]
        del part[where[-1]]
        Path(path).write_text(json.dumps(content))

    return spoil


def nothing() -> None:
    """The command is what is wrong."""


CASES: list[Case] = []


def add(command: tuple[str, ...], cases: dict[str, tuple[Any, ...]], label: str = "") -> None:
    """A case for each of *cases*, which maps names to (what spoils, message[, exit code])."""
    for name, (spoil, message, *exit_code) in cases.items():
        CASES.append(Case(f"{label}{name}", command, spoil, message, *exit_code))


# --- headers and indexes: the corpora -------------------------------------------------------------------------

for _rule, _message in REFUSED_HEADERS.items():
    _content = (ATTACKS / "headers" / "refused" / f"{_rule}.safetensors").read_bytes()
    add(INSPECT_SINGLE, {f"header: {_rule}": (write("single/model.safetensors", _content), _message)})
for _rule, _message in REFUSED_INDEXES.items():
    _content = (ATTACKS / "indexes" / "refused" / f"{_rule}.json").read_bytes()
    add(INSPECT_INDEXED, {f"index: {_rule}": (write("indexed/model.safetensors.index.json", _content), _message)})

# --- config.json ----------------------------------------------------------------------------------------------

SIZES = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size", "head_dim")
for _size in SIZES:
    for _value in (0, -4, 4.0, True, "4", [4], {}, LONG):
        _said = "x" * 10 if _value is LONG else repr(_value)
        add(
            CONVERT,
            {
                f"config: {_size} is {_said}": (
                    config("text_config", _size, value=_value),
                    f"{_size} is '{_said}" if _value is LONG else f"{_size} is {_said}, not a positive integer",
                )
            },
        )
add(
    CONVERT,
    {
        "nothing": (config_text(""), "is not JSON (Expecting value: line 1 column 1 (char 0))"),
        "text": (config_text("LLaVA"), "is not JSON (Expecting value: line 1 column 1 (char 0))"),
        "a list": (config_text("[{}]"), "is not a JSON object"),
        "null": (config_text("null"), "is not a JSON object"),
        "UTF-16": (
            config_text('{"model_type": "llava"}'.encode("utf-16")),
            "is not JSON ('utf-8' codec can't decode byte 0xff in",
        ),
        "a byte order mark": (
            config_text(b'\xef\xbb\xbf{"model_type": "llava"}'),
            "is not JSON (Unexpected UTF-8 BOM (decode using",
        ),
        "not UTF-8": (config_text(b'{"model_type": "\xff"}'), "is not JSON ('utf-8' codec can't decode byte 0xff in"),
        "NaN": (config_text('{"model_type": "llava", "x": NaN}'), "is not JSON (NaN is not JSON)"),
        "Infinity": (config_text('{"model_type": "llava", "x": -Infinity}'), "is not JSON (-Infinity is not JSON)"),
        "a number too large": (
            config_text('{"model_type": "llava", "x": 1e999}'),
            "is not JSON ('1e999' is too large for a float)",
        ),
        "a number of 5000 digits": (
            config_text(f'{{"x": {"1" * 5000}}}'),
            "is not JSON (Exceeds the limit (4300",
        ),
        "a name twice": (
            config_text('{"model_type": "llava", "model_type": "llava"}'),
            "is not JSON ('model_type' stands twice)",
        ),
        "a long name twice": (config_text(f'{{"{LONG}": 1, "{LONG}": 2}}'), "is not JSON"),
        "too deep": (config_text('{"x": ' + "[" * 20_000 + "]" * 20_000 + "}"), "is not JSON (nested too deeply)"),
        "trailing junk": (
            config_text('{"model_type": "llava"} x'),
            "is not JSON (Extra data: line 1 column 25 (char 24))",
        ),
        "no model_type": (
            without("in/config.json", "model_type"),
            "model_type None is not one this tool knows (it knows",
        ),
        "model_type is null": (
            config("model_type", value=None),
            "model_type None is not one this tool knows (it knows",
        ),
        "model_type is a list": (
            config("model_type", value=["llava"]),
            "model_type ['llava'] is not one this tool knows (it knows",
        ),
        "model_type is long": (config("model_type", value=LONG), "model_type"),
        "model_type is hostile": (config("model_type", value=HOSTILE), "model_type '\\x1b]0"),
        "model_type is MPT's": (
            config("model_type", value="llava_mpt"),
            "model_type 'llava_mpt' is MPT, which stock LLaVA cannot",
        ),
        "model_type is a tower's": (
            config("model_type", value="clip_vision_model"),
            "model_type 'clip_vision_model' is a vision tower alone",
        ),
        "model_type is of experts": (
            config("model_type", value="llava_mixtral"),
            "model_type 'llava_mixtral' is a mixture of experts, which",
        ),
        "no text_config": (config("text_config", value=None), "has no text_config, as llava has"),
        "text_config is a list": (config("text_config", value=[]), "has no text_config, as llava has"),
        "text_config is text": (config("text_config", value="llama"), "has no text_config, as llava has"),
        "the language model is unknown": (
            config("text_config", "model_type", value="gpt2"),
            "language model 'gpt2' is not supported",
        ),
        "the language model is long": (config("text_config", "model_type", value=LONG), "language model"),
        "the language model is a number": (
            config("text_config", "model_type", value=7),
            "language model 7 is not supported",
        ),
        "the language model is of experts": (
            config("text_config", "model_type", value="mixtral"),
            "model_type 'mixtral' is a mixture of experts, which is",
        ),
        "quantised": (
            config("quantization_config", value={"quant_method": "gptq"}),
            "the weights are quantised ('gptq')",
        ),
        "quantised by a hostile method": (
            config("quantization_config", value={"quant_method": HOSTILE}),
            "the weights are quantised ('\\x1b]0",
        ),
        "quantised by a long method": (
            config("quantization_config", value={"quant_method": LONG}),
            "the weights are quantised",
        ),
        "quantised by a number": (config("quantization_config", value=4), "the weights are quantised"),
        "a text model quantised": (
            config("text_config", "quantization_config", value=[1]),
            "the weights are quantised",
        ),
        "weights elsewhere": (
            config("transformers_weights", value="../w.safetensors"),
            "transformers_weights names '../w.safetensors', which",
        ),
        "weights far elsewhere": (config("transformers_weights", value=LONG), "transformers_weights names"),
        "kv heads that do not divide": (
            config("text_config", "num_key_value_heads", value=3),
            "4 heads cannot share 3 kv heads evenly",
        ),
        "a head more": (
            config("text_config", "num_attention_heads", value=8),
            "language_model.model.layers.0.self_attn.q_proj.weight has",
        ),
        "a layer more": (config("text_config", "num_hidden_layers", value=3), "layer 2 has no q_proj.weight"),
        "a layer less": (
            config("text_config", "num_hidden_layers", value=1),
            "language_model.model.layers.1.self_attn.q_proj.weight is",
        ),
        "10^59 layers": (
            config("text_config", "num_hidden_layers", value=10**59),
            "config.json states 100000000000000000000000000000000000000",
        ),
        "10^400 columns": (
            config("text_config", "hidden_size", value=10**400),
            "language_model.model.layers.0.self_attn.q_proj.weight has",
        ),
        "10^12 heads": (
            config("text_config", "num_attention_heads", value=10**12),
            "language_model.model.layers.0.self_attn.q_proj.weight has",
        ),
    },
    "config: ",
)

# --- the files of a checkpoint --------------------------------------------------------------------------------


def move(old: str, new: str) -> Callable[[], object]:
    """Let the file *old* be called *new*."""
    return lambda: Path(old).rename(new)


def link(path: str, target: str) -> Callable[[], object]:
    """Let *path* be a link to *target*."""

    def spoil() -> None:
        Path(path).unlink(missing_ok=True)
        Path(path).symlink_to(target)

    return spoil


def pipe(path: str) -> Callable[[], object]:
    """Let *path* be a pipe that nobody writes to."""

    def spoil() -> None:
        Path(path).unlink(missing_ok=True)
        os.mkfifo(path)

    return spoil


def sparse(path: str) -> Callable[[], object]:
    """Let the file *path* have a TB of holes."""

    def spoil() -> None:
        Path(path).touch()
        os.truncate(path, 1 << 40)

    return spoil


def folder(path: str) -> Callable[[], object]:
    """Let *path* be a directory."""

    def spoil() -> None:
        Path(path).unlink(missing_ok=True)
        Path(path).mkdir()

    return spoil


def remove(path: str) -> Callable[[], object]:
    """Let nothing stand at *path*."""
    return lambda: shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()


add(
    CONVERT,
    {
        "none": (remove("in"), "no such command or directory: 'in"),
        "no config": (remove("in/config.json"), "has no config.json; give the directory of a checkpoint"),
        "no weights": (remove("in/model.safetensors"), "has none of model.safetensors"),
        "weights by another name": (
            move("in/model.safetensors", "in/weights.safetensors"),
            "is under a name that no loader looks for",
        ),
        "weights in an index as well": (
            write("in/model.safetensors.index.json", "{}"),
            "has both model.safetensors and",
        ),
        "weights are a directory": (folder("in/model.safetensors"), "cannot be read: Is a directory", STORAGE),
        "weights are a pipe": (pipe("in/model.safetensors"), "is not a regular file"),
        "weights are a device": (
            link("in/model.safetensors", "/dev/zero"),
            "is a link to /dev/zero, outside of the checkpoint",
        ),
        "weights are elsewhere": (link("in/model.safetensors", "../single/model.safetensors"), "is a link to /"),
        "weights are a broken link": (
            link("in/model.safetensors", "nowhere"),
            "cannot be read: No such file or directory",
            STORAGE,
        ),
        "weights link to themselves": (
            link("in/model.safetensors", "model.safetensors"),
            "cannot be read: Too many levels of symbolic links",
            STORAGE,
        ),
        "weights are a TB of holes": (
            sparse("in/model.safetensors"),
            "malformed safetensors header: the tensors end at byte",
        ),
        "weights are GGUF": (
            move("in/model.safetensors", "in/model.gguf"),
            "is GGUF; convert the original checkpoint instead, then",
        ),
        "weights are Flax": (move("in/model.safetensors", "in/flax_model.msgpack"), "is a Flax checkpoint"),
        "weights are TensorFlow": (move("in/model.safetensors", "in/tf_model.h5"), "is a TensorFlow checkpoint"),
        "weights are ONNX": (
            move("in/model.safetensors", "in/model.onnx"),
            "is ONNX; convert the original checkpoint instead, then",
        ),
        "a LoRA": (write("in/adapter_config.json", "{}"), "is a LoRA adapter"),
        "the rest of a LoRA": (write("in/non_lora_trainables.bin", "x"), "is the rest of a LoRA training"),
        "GPTQ": (write("in/quantize_config.json", "{}"), "the weights are quantised"),
        "a sidecar is a pipe": (pipe("in/tokenizer.json"), "is not a regular file"),
        "a sidecar is a device": (
            link("in/tokenizer.json", "/dev/urandom"),
            "is a link to /dev/urandom, outside of the checkpoint",
        ),
        "a sidecar is elsewhere": (
            link("in/notes.txt", "/etc/passwd"),
            "is a link to /etc/passwd, outside of the checkpoint",
        ),
        "a sidecar is in the parent": (link("in/notes.txt", "../mask.json"), "is a link to /"),
        "a sidecar is a broken link": (
            link("in/notes.txt", "nowhere"),
            "cannot be read: No such file or directory",
            STORAGE,
        ),
        "a sidecar that links to itself": (
            link("in/notes.txt", "notes.txt"),
            "cannot be read: Too many levels of symbolic links",
            STORAGE,
        ),
        "a directory that is a link": (link("in/more", "/etc"), "is a link to /etc, outside of the checkpoint"),
        "a tokenizer of a TB": (
            sparse("in/tokenizer_config.json"),
            "has 1,099,511,627,776 bytes, and loaders read it whole",
        ),
        "a config of a TB": (sparse("in/config.json"), "has 1,099,511,627,776 bytes, and at most 16,777,216 are"),
        "a config that is a pipe": (pipe("in/config.json"), "is not a regular file"),
        "a config that is a directory": (folder("in/config.json"), "is not a regular file"),
        "a config that is elsewhere": (
            link("in/config.json", "../single/config.json"),
            "has no config.json; give the directory of a checkpoint",
        ),
        "a model card that is not UTF-8": (write("in/README.md", b"\xff"), "is not UTF-8 at byte 0"),
        "a model card with metadata that is no YAML": (
            write("in/README.md", "---\na: [\n---\n"),
            "its metadata is not a YAML mapping (while parsing a flow",
        ),
        "a model card with metadata that runs code": (
            write("in/README.md", "---\na: !!python/object/apply:os.system ['touch ran']\n---\n"),
            "its metadata is not a YAML mapping (could not determine a",
        ),
        "a model card with metadata of a list": (
            write("in/README.md", "---\n- a\n---\n"),
            "its metadata is not a YAML mapping ('list' object has no",
        ),
        "a picture where the card's goes": (
            write("in/s4convert-heads.png", "x"),
            "stands where the model card's picture goes",
        ),
        "a manifest that is no JSON": (
            write("in/s4convert.json", "x"),
            "is not JSON (Expecting value: line 1 column 1 (char 0))",
        ),
        "a manifest of something": (
            write("in/s4convert.json", "{}"),
            "was converted before, and its compensation would be",
        ),
    },
    "checkpoint: ",
)


def change_weights(name: str, change: Callable[[np.ndarray[Any, Any]], object]) -> Callable[[], object]:
    """Let *change* work on the float16 values of the tensor *name*."""

    def spoil() -> None:
        path = Path("in/model.safetensors")
        content = bytearray(path.read_bytes())
        length = int.from_bytes(content[:8], "little")
        begin, end = (8 + length + at for at in json.loads(content[8 : 8 + length])[name]["data_offsets"])
        values = np.frombuffer(content[begin:end], "<f2").copy()
        change(values)
        content[begin:end] = values.tobytes()
        path.write_bytes(content)

    return spoil


add(
    CONVERT,
    {
        "NaN": (
            change_weights(O_PROJ, lambda values: values.put(3, np.nan)),
            "language_model.model.layers.1.self_attn.o_proj.weight",
        ),
        "infinity": (
            change_weights(O_PROJ, lambda values: values.put(3, np.inf)),
            "language_model.model.layers.1.self_attn.o_proj.weight",
        ),
        "a value that overflows": (
            change_weights(O_PROJ, lambda values: values.put(5, 60000.0)),
            "language_model.model.layers.1.self_attn.o_proj.weight",
        ),
        "a silent layer": (change_weights(O_PROJ, lambda values: values.fill(0)), "layer 1: head 0 is zero already"),
    },
    "weights: ",
)

# --- .bin -----------------------------------------------------------------------------------------------------


class Trap:
    """What a pickle would run when it is read."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> Any:
        return self.reduced


def save(content: Any, **options: Any) -> Callable[[], object]:
    """Let torch save *content* as the weights; a function is called for it."""

    def spoil() -> None:
        import torch

        torch.save(content() if callable(content) else content, "bin/pytorch_model.bin", **options)

    return spoil


def _tensor(make: str) -> Callable[[], Any]:
    def tensor() -> Any:
        import torch

        return {"w": eval(make, {"torch": torch})}

    return tensor


def archive(**members: bytes) -> Callable[[], object]:
    """Let the weights be a zip archive of *members*."""

    def spoil() -> None:
        import zipfile

        with zipfile.ZipFile("bin/pytorch_model.bin", "w") as file:
            for name, content in members.items():
                file.writestr(f"archive/{name.replace('_', '.', 1)}", content)

    return spoil


add(
    INSPECT_BIN,
    {
        "a pickle that runs a program": (
            save({"w": Trap(os.system, "touch ran")}),
            "holds more than tensors and may run code when it is loaded",
        ),
        "a pickle that is a program": (
            save(Trap(os.system, "touch ran")),
            "holds more than tensors and may run code when it is loaded",
        ),
        "a pickle that evaluates": (
            save({"w": Trap(eval, "open('ran', 'w')")}),
            "holds more than tensors and may run code when it is loaded",
        ),
        "a pickle that executes": (
            save({"w": Trap(exec, "open('ran', 'w')")}),
            "holds more than tensors and may run code when it is loaded",
        ),
        "a pickle that opens a file": (
            save({"w": Trap(open, "ran", "w")}),
            "holds more than tensors and may run code when it is loaded",
        ),
        "a pickle that imports": (
            save({"w": Trap(__import__, "antigravity")}),
            "holds more than tensors and may run code when it is loaded",
        ),
        "a pickle of a path": (save({"w": Path("x")}), "holds more than tensors and may run code when it is loaded"),
        "a pickle of a class": (save({"w": Case}), "holds more than tensors and may run code when it is loaded"),
        "a legacy pickle": (
            save({"w": Trap(os.system, "touch ran")}, _use_new_zipfile_serialization=False),
            "is damaged, or not in the format that torch writes since",
        ),
        "a list": (save([1, 2]), "holds a list, not tensors by name"),
        "a number": (save(1), "holds a int, not tensors by name"),
        "a name that is a number": (save(lambda: {1: _tensor("torch.ones(2)")()["w"]}), "the name 1 is no text"),
        "a value that is text": (save({"w": "x"}), "w is a str, no tensor"),
        "a value that is None": (save({"w": None}), "w is a NoneType, no tensor"),
        "nested names": (save(lambda: {"model": _tensor("torch.ones(2)")()}), "model is a dict, no tensor"),
        "a sparse tensor": (
            save(_tensor("torch.eye(3).to_sparse()")),
            "w is sparse, nested, quantised, negated or without data",
        ),
        "a tensor without data": (
            save(_tensor("torch.ones(2, device='meta')")),
            "w is sparse, nested, quantised, negated or without data",
        ),
        "a complex tensor": (
            save(_tensor("torch.ones(2, dtype=torch.complex64)")),
            "w is stored as torch.complex64, which cannot be converted",
        ),
        "a tensor that repeats": (
            save(_tensor("torch.ones(1).expand(10**6, 10**6)")),
            "w repeats what is stored to 4,000,000,000,000 bytes, more",
        ),
        "a name with dots": (save(lambda: {"../w": _tensor("torch.ones(2)")()["w"]}), "tensor name '../w' is not safe"),
        "a name with NUL": (save(lambda: {"w\0": _tensor("torch.ones(2)")()["w"]}), "tensor name 'w\\x00' is not safe"),
        "a long name": (save(lambda: {LONG: _tensor("torch.ones(2)")()["w"]}), "tensor name"),
        "no name": (save(lambda: {"": _tensor("torch.ones(2)")()["w"]}), "tensor name '' is not safe"),
        "other tensors": (save(_tensor("torch.ones(2)")), "config.json states 2 layers, but there are only 1 tensors"),
        "no tensor": (save({}), "config.json states 2 layers, but there are only 0 tensors"),
        "nothing": (write("bin/pytorch_model.bin", b""), "is damaged, or not in the format that torch writes since"),
        "text": (
            write("bin/pytorch_model.bin", "version https://git-lfs.github.com/spec/v1"),
            "is damaged, or not in the format that torch writes since",
        ),
        "a raw pickle": (
            write("bin/pytorch_model.bin", b"cos\nsystem\n(S'touch ran'\ntR."),
            "is damaged, or not in the format that torch writes since",
        ),
        "half a zip": (
            write("bin/pytorch_model.bin", b"PK\3\4" + bytes(100)),
            "is damaged, or not in the format that torch writes since",
        ),
        "another zip": (archive(readme=b"x"), "is a zip archive, but none that torch.save wrote"),
        "a zip with an empty pickle": (
            archive(data_pkl=b""),
            'cannot be read by torch (Expected hasRecord("version") to',
        ),
        "a zip with a pickle of nonsense": (
            archive(data_pkl=b"nonsense"),
            'cannot be read by torch (Expected hasRecord("version") to',
        ),
        "a zip with a pickle that runs a program": (
            archive(data_pkl=b"cos\nsystem\n(S'touch ran'\ntR."),
            'cannot be read by torch (Expected hasRecord("version") to',
        ),
        "TorchScript": (archive(constants_pkl=b"x"), "is a TorchScript archive"),
        "a pipe": (pipe("bin/pytorch_model.bin"), "is not a regular file"),
    },
    ".bin: ",
)

# --- masks ----------------------------------------------------------------------------------------------------

NATIVE = {"format": "s4convert-mask/1", "num_layers": 2, "num_heads": 4, "pruned": {"1": [0]}}


def mask(content: Any) -> Callable[[], object]:
    return write("mask.json", content if isinstance(content, bytes | str) else json.dumps(content))


add(
    CONVERT,
    {
        "none": (remove("mask.json"), "no such file"),
        "a directory": (folder("mask.json"), "is not a regular file"),
        "a pipe": (pipe("mask.json"), "is not a regular file"),
        "a device": (link("mask.json", "/dev/zero"), "is not a regular file"),
        "a TB": (sparse("mask.json"), "has 1,099,511,627,776 bytes, and at most 67,108,864 are"),
        "nothing": (mask(""), "is not JSON (Expecting value: line 1 column 1 (char 0))"),
        "text": (mask("layer 1"), "is not JSON (Expecting value: line 1 column 1 (char 0))"),
        "not UTF-8": (mask(b"\xff\xfe\xfd"), "is not JSON ('utf-16-le' codec can't decode byte 0xfd in"),
        "null": (mask(None), "is neither a JSON object nor a list with a list per layer"),
        "a number": (mask(7), "is neither a JSON object nor a list with a list per layer"),
        "text in JSON": (mask('"mask"'), "is neither a JSON object nor a list with a list per layer"),
        "an empty list": (mask([]), "has flags of 0 layers, but the checkpoint has 2"),
        "an empty object": (mask({}), "prunes no head, so a conversion would change nothing"),
        "too deep": (mask("[" * 20_000), "is not JSON (nested too deeply)"),
        "NaN": (mask('{"pruned_heads": {"1": [NaN]}}'), "layer 1: nan is not a head number"),
        "a layer twice": (mask('{"pruned_heads": {"1": [0], "1": [2]}}'), "is not JSON ('1' stands twice)"),
        "a layer in two spellings": (mask({"pruned_heads": {"01": [0]}}), "'01' is not a layer number"),
        "a layer that is no number": (mask({"pruned_heads": {"x": [0]}}), "'x' is not a layer number"),
        "a layer with a long name": (
            mask({"pruned_heads": {LONG: [0]}}),
            "'xxxxxxxxxxxxxxxxxxxxxxxxxxx...xxxxxxxxxxxxxxxxxxxxxxxxxxx",
        ),
        "a layer with a hostile name": (
            mask({"pruned_heads": {HOSTILE: [0]}}),
            "'\\x1b]0;owned\\x07\\nverdict: OK' is not a layer number",
        ),
        "a negative layer": (mask({"pruned_heads": {"-1": [0]}}), "'-1' is not a layer number"),
        "a layer too many": (
            mask({"pruned_heads": {"2": [0]}}),
            "layer 2: out of range, the checkpoint has layers 0 to 1",
        ),
        "a layer of 10 digits": (mask({"pruned_heads": {"9" * 10: [0]}}), "'9999999999' is not a layer number"),
        "heads that are a number": (mask({"pruned_heads": {"1": 0}}), "layer 1: 0 is not a list"),
        "heads that are text": (
            mask({"pruned_heads": {"1": LONG}}),
            "layer 1: 'xxxxxxxxxxxxxxxxxxxxxxxxxxx...xxxxxxxxxxxxxxxxxx",
        ),
        "heads that are null": (mask({"pruned_heads": {"1": None}}), "layer 1: None is not a list"),
        "a head that is text": (mask({"pruned_heads": {"1": ["0"]}}), "layer 1: '0' is not a head number"),
        "a head that is a fraction": (mask({"pruned_heads": {"1": [0.5]}}), "layer 1: 0.5 is not a head number"),
        "a head that is true": (mask({"pruned_heads": {"1": [True]}}), "layer 1: True is not a head number"),
        "a head that is null": (mask({"pruned_heads": {"1": [None]}}), "layer 1: None is not a head number"),
        "a head that is a list": (mask({"pruned_heads": {"1": [[[0]]]}}), "layer 1: [[0]] is not a head number"),
        "a negative head": (
            mask({"pruned_heads": {"1": [-1]}}),
            "layer 1, head -1: out of range, the checkpoint has heads",
        ),
        "a head too many": (
            mask({"pruned_heads": {"1": [4]}}),
            "layer 1, head 4: out of range, the checkpoint has heads 0",
        ),
        "a head of 400 digits": (
            mask({"pruned_heads": {"1": [10**400]}}),
            "layer 1, head 1000000000000000000000000000...0000000000000",
        ),
        "a head twice": (mask({"pruned_heads": {"1": [0, 0]}}), "layer 1, head 0: listed twice"),
        "minus zero": (mask('{"pruned_heads": {"1": [-0]}}'), "is not JSON (-0 is not an integer)"),
        "every head": (
            mask({"pruned_heads": {"1": [0, 1, 2, 3]}}),
            "layer 1: every head is pruned, and no kept head can make",
        ),
        "no head": (mask({"pruned_heads": {"1": []}}), "prunes no head, so a conversion would change nothing"),
        "flags or heads": (
            mask({"pruned_heads": {"1": [0, 1, 0, 0]}}),
            "layer 1: [0, 1, 0, 0] may be flags or head numbers",
        ),
        "flags of one layer": (mask([[0, 0, 0, 0]]), "has flags of 1 layers, but the checkpoint has 2"),
        "flags of too few heads": (mask([[0, 0, 0], [1, 0, 0]]), "layer 0: has 3 flags for 4 heads"),
        "a flag of 2": (mask([[0, 0, 0, 0], [2, 0, 0, 0]]), "layer 1, head 0: 2 is neither 0 nor 1"),
        "flags without a polarity": (
            mask([[0, 0, 0, 0], [1, 0, 0, 0]]),
            "holds 0/1 flags and does not say which are pruned",
        ),
        "pairs with a head too many": (
            mask({"pruned_heads": [[1, 4]]}),
            "row 0: layer 1, head 4: out of range, the checkpoint has",
        ),
        "a pair of four": (
            mask({"pruned_heads": [[1, 0, 0.5, 2]]}),
            "row 0: [1, 0, 0.5, 2] is neither [layer, head] nor",
        ),
        "a pair of one": (mask({"pruned_heads": [[1]]}), "row 0: [1] is neither [layer, head] nor [layer, head"),
        "pairs twice": (mask({"pruned_heads": [[1, 0], [1, 0]]}), "layer 1, head 0: listed twice"),
        "kept heads of one layer": (mask({"components": {"1": [0]}}), "components has no object attention_heads"),
        "kept heads, none of them": (
            mask({"components": {"0": [0, 1, 2, 3], "1": []}}),
            "components has no object attention_heads",
        ),
        "S4 with another total": (
            mask({"pruned_heads": {"0": [0, 0, 0, 0], "1": [1, 0, 0, 0]}, "total_pruned_heads": 3}),
            "total_pruned_heads is 3, but the lists add up to 1",
        ),
        "another version": (mask(NATIVE | {"format": "s4convert-mask/2"}), "format is 's4convert-mask/2"),
        "a format that is a list": (
            mask(NATIVE | {"format": []}),
            "format is []; this version reads 's4convert-mask/1' and",
        ),
        "a field more": (mask(NATIVE | {"more": 1}), "'more' is not a field of s4convert-mask/1"),
        "a field with a long name": (
            mask(NATIVE | {LONG: 1}),
            "'xxxxxxxxxxxxxxxxxxxxxxxxxxx...xxxxxxxxxxxxxxxxxxxxxxxxxxx",
        ),
        "other layers": (mask(NATIVE | {"num_layers": 32}), "num_layers is 32, but the checkpoint has 2"),
        "other heads": (mask(NATIVE | {"num_heads": 32}), "num_heads is 32, but the checkpoint has 4"),
        "layers that are text": (mask(NATIVE | {"num_layers": "2"}), "num_layers is '2', but the checkpoint has 2"),
        "pruned that is a list": (
            mask(NATIVE | {"pruned": [[0]]}),
            "pruned is not an object that maps layers to lists of heads",
        ),
        "a scale that is a list": (mask(NATIVE | {"scale": [1]}), "scale is not an object that maps layers to factors"),
        "a scale of an unknown layer": (
            mask(NATIVE | {"scale": {"9": 1.5}}),
            "scale: layer 9 is not a layer that loses heads",
        ),
        "a scale that is text": (mask(NATIVE | {"scale": {"1": "x"}}), "scale, layer 1: 'x' is not a number"),
        "a scale of 10^400": (
            mask(NATIVE | {"scale": {"1": 10**400}}),
            "scale, layer 1: 1000000000000000000000000000...00000000000",
        ),
        "a negative scale": (
            mask(NATIVE | {"scale": {"1": -1}}),
            "scale, layer 1: -1 is not a factor from 1e-06 to 1000000.0",
        ),
        "a provenance that is text": (mask(NATIVE | {"provenance": "x"}), "provenance is not an object with names"),
        "scores": (mask({"saliency_scores": SCORES}), "holds scores, not a mask"),
    },
    "mask: ",
)


def npy(descr: str, shape: str, data: bytes, *, magic: bytes = b"\x93NUMPY\x01\x00") -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return magic + len(header).to_bytes(2, "little") + header + data


def add_array(suffix: str, cases: dict[str, tuple[bytes, str]]) -> None:
    """Cases of masks that are arrays, in a file with *suffix*."""
    command = ("in", "new", "--mask", f"array{suffix}", "--mask-polarity", "prune", *BYTES)
    add(command, {name: (write(f"array{suffix}", content), message) for name, (content, message) in cases.items()}, "")


add_array(
    ".npy",
    {
        ".npy: nothing": (b"", "is not a .npy file of numbers, or damaged"),
        ".npy: text": (b"mask", "is not a .npy file of numbers, or damaged"),
        ".npy: no values": (npy("|u1", "(2, 4)", b""), "has 0 bytes of values, where 8 are due"),
        ".npy: a value more": (npy("|u1", "(2, 4)", bytes(9)), "has 9 bytes of values, where 8 are due"),
        ".npy: another shape": (
            npy("|u1", "(4, 2)", bytes(8)),
            "is an array of shape [4, 2], but the checkpoint has 2",
        ),
        ".npy: a shape of 10^18": (
            npy("|u1", f"({10**17}, {10**17})", bytes(8)),
            "is an array of shape [100000000000000000",
        ),
        ".npy: objects": (
            npy("|O", "(2, 4)", b"cos\nsystem\n(S'touch ran'\ntR."),
            "is a NumPy array of '|O', not of 0/1 or booleans",
        ),
        ".npy: text in it": (npy("<U8", "(2, 4)", bytes(256)), "is a NumPy array of '<U8', not of 0/1 or booleans"),
        ".npy: a structure": (npy("V8", "(2, 4)", bytes(64)), "is a NumPy array of 'V8', not of 0/1 or booleans"),
        ".npy: a header that runs code": (
            npy("|u1' + __import__('os').system('touch ran') + '", "(2, 4)", b""),
            "is not a .npy file of numbers, or damaged",
        ),
        ".npy: version 9": (
            npy("|u1", "(2, 4)", bytes(8), magic=b"\x93NUMPY\x09\x00"),
            "is not a .npy file of numbers, or damaged",
        ),
        ".npy: a flag of 2": (npy("|u1", "(2, 4)", b"\2" + bytes(7)), "layer 0, head 0: 2 is neither 0 nor 1"),
        ".npy: NaN": (npy("<f4", "(2, 4)", b"\0\0\xc0\x7f" + bytes(28)), "layer 0, head 0: nan is neither 0 nor 1"),
        ".npy: no head": (npy("|u1", "(2, 4)", bytes(8)), "prunes no head, so a conversion would change nothing"),
    },
)
add_array(
    ".safetensors",
    {
        f"mask.safetensors: {rule}": ((ATTACKS / "headers" / "refused" / f"{rule}.safetensors").read_bytes(), message)
        for rule, message in {
            "no-bytes": "array.safetensors: is not a safetensors file, or cut off",
            "header-of-2-to-the-64-less-1-bytes": "array.safetensors: is not a safetensors file, or cut off",
            "tensor-twice": "array.safetensors: malformed safetensors header: 'a' stands twice",
            "not-UTF-8": "array.safetensors: malformed safetensors header: not UTF-8 at byte 2",
            "too-deep": "array.safetensors: malformed safetensors header: nested too deeply",
            "overlap": "array.safetensors: malformed safetensors header: tensor 'c' overlaps the one before it",
            "unknown-dtype": "array.safetensors: malformed safetensors header: tensor 'a' has unknown dtype 'Q4'",
        }.items()
    }
    | {
        f"mask.safetensors: {name}": ((ATTACKS / "headers" / "read" / f"{name}.safetensors").read_bytes(), message)
        for name, message in {
            "two-tensors": "array.safetensors: holds 2 tensors",
            "no-tensor": "array.safetensors: holds 0 tensors",
            "scalar": "array.safetensors: is an array of shape [], but the checkpoint has 2 layers of 4 heads",
            "name-in-UTF-8": "array.safetensors: is an array of shape [2], but the checkpoint has 2 layers of 4 heads",
        }.items()
    },
)
add_array(
    ".pt",
    {
        "mask.pt: nothing": (b"", "is not in the format that torch writes since version 1.6"),
        "mask.pt: text": (b"mask", "is not in the format that torch writes since version 1.6"),
        "mask.pt: a raw pickle": (
            b"cos\nsystem\n(S'touch ran'\ntR.",
            "is not in the format that torch writes since version 1.6",
        ),
        "mask.pt: half a zip": (b"PK\3\4" + bytes(100), "is not in the format that torch writes since version 1.6"),
    },
)

# --- scores ---------------------------------------------------------------------------------------------------


def scores(**changes: Any) -> Callable[[], object]:
    native = {"format": "s4convert-scores/1", "num_layers": 2, "num_heads": 4, "scores": SCORES}
    return write("scores.json", json.dumps(native | changes))


def row(*values: Any) -> Callable[[], object]:
    return scores(scores={"0": SCORES["0"], "1": list(values)})


add(
    MASK_OF_SCORES,
    {
        "none": (remove("scores.json"), "no such file"),
        "nothing": (write("scores.json", ""), "is not JSON (Expecting value: line 1 column 1 (char 0))"),
        "a list": (write("scores.json", "[]"), "holds no scores"),
        "a mask": (write("scores.json", '{"pruned_heads": {"1": [0]}}'), "holds no scores"),
        "another version": (scores(format="s4convert-scores/2"), "holds no scores"),
        "a field more": (scores(more=1), "'more' is not a field of s4convert-scores/1"),
        "layers that are text": (scores(num_layers="2"), "num_layers is '2', not a number of layers"),
        "other layers": (scores(num_layers=3), "has scores of 2 layers, but num_layers is 3"),
        "other heads": (scores(num_heads=3), "layer 0: has 4 scores for 3 heads"),
        "10^59 layers": (scores(num_layers=10**59), "has scores of 2 layers, but num_layers is"),
        "no scores": (scores(scores={}), "scores is not an object that maps layers to lists of"),
        "scores that are a list": (scores(scores=[[1, 2]]), "scores is not an object that maps layers to lists of"),
        "a layer missing": (scores(scores={"1": SCORES["1"]}), "layer 0: has no scores, but layer 1 has"),
        "a layer that is no number": (scores(scores={"x": [1]}), "'x' is not a layer number"),
        "rows of two lengths": (row(1.0, 2.0), "layer 1: has 2 scores for 4 heads"),
        "a row that is text": (
            scores(scores={"0": SCORES["0"], "1": LONG}),
            "layer 1: 'xxxxxxxxxxxxxxxxxxxxxxxxxxx...xxxxxxxxxxxxxxxxxx",
        ),
        "an empty row": (row(), "layer 1: has 0 scores for 4 heads"),
        "a score that is text": (row(1, 2, 3, "4"), "layer 1, head 3: the score '4' is not a finite number"),
        "a score that is null": (row(1, 2, 3, None), "layer 1, head 3: the score None is not a finite number"),
        "a score that is true": (row(1, 2, 3, True), "layer 1, head 3: the score True is not a finite number"),
        "a score that is a list": (row(1, 2, 3, [4]), "layer 1, head 3: the score [4] is not a finite number"),
        "a score of 10^400": (row(1, 2, 3, 10**400), "layer 1, head 3: the score"),
        "a score of NaN": (
            write("scores.json", '{"saliency_scores": {"0": [NaN, 1], "1": [1, 2]}}'),
            "layer 0, head 0: the score nan is not a finite number",
        ),
        "a score of infinity": (
            write("scores.json", '{"saliency_scores": {"0": [1e999, 1], "1": [1, 2]}}'),
            "layer 0, head 0: the score inf is not a finite number",
        ),
        "means that overflow": (
            write("scores.json", '{"0-0": [1e308, 1e308]}'),
            "layer 0, head 0: the scores add up to infinity",
        ),
        "no samples": (write("scores.json", '{"0-0": []}'), "layer 0, head 0: has no score"),
        "a head missing": (
            write("scores.json", '{"0-0": 1.5, "0-2": 2.5}'),
            "layer 0, head 1: has no scores, but layer 0, head 2 has",
        ),
        "an order without a cost": (scores(order=SCORES), "cost is not an object that maps every layer to a list"),
        "an order of other layers": (
            scores(order={"0": [0]}, cost={"0": [1.0]}),
            "order is not an object that maps every layer to a list",
        ),
        "an order with a head twice": (
            scores(order={"0": [0, 0], "1": [0, 1]}, cost={"0": [1, 2], "1": [1, 2]}),
            "layer 0: the order [0, 0] is not that of its scores, [0",
        ),
        "an order with a head too many": (
            scores(order={"0": [9], "1": [0]}, cost={"0": [1], "1": [1]}),
            "layer 0: the order [9] is not that of its scores, [0, 1",
        ),
        "an order longer than its cost": (
            scores(order={"0": [0, 1], "1": [0]}, cost={"0": [1], "1": [1]}),
            "layer 0: the order [0, 1] is not that of its scores, [0",
        ),
        "a provenance that is a list": (scores(provenance=[]), "provenance is not an object with names"),
    },
    "scores: ",
)

# --- manifests ------------------------------------------------------------------------------------------------

for _command in (VERIFY, VERIFY_FILES, PUSH, REPRODUCE):
    add(
        _command,
        {
            "no JSON": (write(MANIFEST, "x"), "is not JSON (Expecting value: line 1 column 1 (char 0))"),
            "a list": (write(MANIFEST, "[]"), "is not a JSON object"),
            "of another version": (stated("format", value="s4convert/2"), "format is 's4convert/2"),
            "no files": (without(MANIFEST, "files"), "its list of files is malformed"),
            "files that are a list": (stated("files", value=[]), "its list of files is malformed"),
            "a file that is text": (stated("files", "config.json", value="x"), "its list of files is malformed"),
            "a file without a size": (
                without(MANIFEST, "files", "config.json", "size"),
                "its list of files is malformed",
            ),
            "a size that is text": (
                stated("files", "config.json", "size", value="1"),
                "its list of files has 'config.json', of size '1' and",
            ),
            "a negative size": (
                stated("files", "config.json", "size", value=-1),
                "its list of files has 'config.json', of size -1 and sha256",
            ),
            "a sha256 that is null": (
                stated("files", "config.json", "sha256", value=None),
                "its list of files has 'config.json', of size 324 and",
            ),
            "a short sha256": (
                stated("files", "config.json", "sha256", value="00"),
                "its list of files has 'config.json', of size 324 and",
            ),
            "a file in the parent": (
                stated("files", "../mask.json", value={"size": 1, "sha256": "0" * 64}),
                "its list of files has '../mask.json', of size 1 and sha256",
            ),
            "a file at an absolute path": (
                stated("files", "/dev/zero", value={"size": 1, "sha256": "0" * 64}),
                "its list of files has '/dev/zero', of size 1 and sha256",
            ),
            "a file behind dots": (
                stated("files", "a/../../x", value={"size": 1, "sha256": "0" * 64}),
                "its list of files has 'a/../../x', of size 1 and sha256",
            ),
            "a file with NUL": (
                stated("files", "a\0b", value={"size": 1, "sha256": "0" * 64}),
                "its list of files has 'a\\x00b', of size 1 and sha256",
            ),
            "a file with a long name": (
                stated("files", f"{LONG}/..", value={"size": 1, "sha256": "0" * 64}),
                "its list of files has",
            ),
        },
        f"manifest, {_command[0]} {len(_command)}: ",
    )
add(
    VERIFY,
    {
        "no mask": (without(MANIFEST, "mask"), "format is None; this version reads 's4convert-mask/1"),
        "a mask of other layers": (stated("mask", "num_layers", value=3), "num_layers is 3, but the checkpoint has 2"),
        "a mask of 10^59 heads": (
            stated("mask", "num_heads", value=10**59),
            "num_heads is 100000000000000000000000000000000000000000000",
        ),
        "a mask with a head too many": (
            stated("mask", "pruned", "1", value=[9]),
            "layer 1, head 9: out of range, the checkpoint has heads 0",
        ),
        "a compensation that is unknown": (
            stated("compensation", value="magic"),
            "compensation 'magic' is not known to this version",
        ),
        "a compensation that is a list": (
            stated("compensation", value=[]),
            "compensation [] is not known to this version",
        ),
        "a compensation that is long": (stated("compensation", value=LONG), "compensation"),
        "a card that is text": (stated("card", value="README.md"), "card is 'README.md', not files of a model card"),
        "a card that is the config": (
            stated("card", value=["config.json"]),
            "card is ['config.json'], not files of a model card",
        ),
        "a card that is long": (stated("card", value=[LONG]), "card is ["),
        "a source that is a list": (stated("source", value=[]), "source is []"),
        "versions that are text": (stated("versions", value="1"), "versions is '1"),
        "calibration that is text": (stated("calibration", value="1"), "calibration is '1"),
        "shard_bytes that are text": (stated("shard_bytes", value="1"), "shard_bytes is '1"),
        "a fingerprint of another": (
            stated("fingerprint", value="0" * 32),
            "was made from 'in', another checkpoint than in, as the",
            FAILED,
        ),
        "fitted that is a list": (stated("fitted", value=[]), "its fitted factors are malformed"),
        "fitted factors of text": (
            stated("fitted", value={"1": {"mode": "head-ls", "damping": None, "factors": ["x"] * 4}}),
            "its fitted factors are malformed",
        ),
        "fitted factors of 10^400": (
            stated("fitted", value={"1": {"mode": "head-ls", "damping": None, "factors": [10**400] * 4}}),
            "its fitted factors are malformed",
        ),
        "fitted factors too few": (
            stated("fitted", value={"1": {"mode": "head-ls", "damping": None, "factors": [1.0]}}),
            "its fitted factors do not fit its mask",
        ),
        "a verification that is text": (stated("verification", value="OK"), "its verification is malformed"),
        "a verification of null": (stated("verification", value=None), "its verification is malformed"),
        "a training without settings": (stated("compensation", value="distill"), "its training is malformed"),
    },
    "manifest: ",
)
add(
    REPORT,
    {
        "no JSON": (write(MANIFEST, "x"), "is not JSON (Expecting value: line 1 column 1 (char 0))"),
        "of another version": (stated("format", value="s4convert/2"), "is no manifest that this version reads"),
        "10^12 layers of no head": (
            stated("mask", value={"num_layers": 10**12, "num_heads": 0, "pruned": {}}),
            "is malformed (ValueError('1000000000000 la... of 0 heads",
        ),
        "10^12 layers of -1 heads": (
            stated("mask", value={"num_layers": 10**12, "num_heads": -1, "pruned": {}}),
            "is malformed (ValueError('1000000000000 la...of -1 heads",
        ),
        "10^59 heads": (
            stated("mask", "num_heads", value=10**59),
            "is malformed (ValueError('2 layers of 1000...00000 heads",
        ),
        "a mask that is text": (stated("mask", value="x"), "is malformed (TypeError("),
        "a compensation that is long": (stated("compensation", value=LONG), "is malformed (KeyError"),
        "no verification": (without(MANIFEST, "verification"), "is malformed (KeyError('verification'))"),
        "a structure that is a list": (
            stated("verification", "structure", value=[]),
            "is malformed (TypeError('list indices must...integers or",
        ),
        "files that are text": (stated("files", value="x"), "is malformed (AttributeError(\"'str' object has no"),
        "a size that is text": (
            stated("files", "config.json", "size", value="x"),
            "is malformed (ValueError(\"Cannot specify ',' with 's'.\"))",
        ),
        "no plan": (without(MANIFEST, "plan"), "is malformed (KeyError('plan'))"),
        "edits that are text": (
            stated("plan", "rewritten_bytes", value="x"),
            "is malformed (ValueError(\"Cannot specify ',' with 's'.\"))",
        ),
        "a mask file that is a number": (stated("mask_file", value=7), "is malformed (TypeError(\"'int' object is not"),
        "calibration that is a number": (
            stated("calibration", value=7),
            "is malformed (AttributeError(\"'int' object has no",
        ),
    },
    "report: ",
)
add(
    ("report", "in", "-o", "report.html"),
    {"report: no conversion": (nothing, "has no s4convert.json, so s4convert did not write it")},
)
add((*REPORT[:3], "report.txt"), {"report: not HTML": (nothing, "is written as HTML")})
add(
    (*REPORT[:3], "out/report.html"),
    {"report: in the conversion": (nothing, "would be in the conversion, whose files are listed")},
)
add(
    ("push", "in", "me/pruned", "--dry-run"),
    {"push: no conversion": (nothing, "has no s4convert.json, so s4convert did not write it")},
)
add(
    ("push", "out", "../x", "--dry-run"),
    {"push: no name": (nothing, "'../x': is not the name of a repository on the Hub")},
)
add(
    ("push", "out", LONG, "--dry-run"),
    {"push: a long name": (nothing, "'xxxxxxxxxxxxxxxxxxxxxxxxxxx...xxxxxxxxxxxxxxxxxxxxxxxxxxx")},
)
add(("push", "nowhere", "me/x", "--dry-run"), {"push: nowhere": (nothing, "nowhere: no such directory")})
add(
    PUSH,
    {
        "push: a link": (link("out/notes.txt", "/etc/passwd"), "is not a regular file"),
        "push: a changed file": (write("out/config.json", "{}"), "is not what s4convert.json says of it"),
    },
)
add(("reproduce", "in"), {"reproduce: no conversion": (nothing, "has no s4convert.json that says how it was made")})
add(("reproduce", "out"), {"reproduce: no source": (nothing, "was made from 'in'; say with --source where that is")})
add(
    REPRODUCE,
    {
        "reproduce: a changed file": (
            write("out/generation_config.json", "{}"),
            "is not what s4convert.json says of it",
            FAILED,
        )
    },
)

# --- verify ---------------------------------------------------------------------------------------------------

add(
    VERIFY,
    {
        "a config that is another": (put("out/config.json", "x", value=1), "its size is not the original's", FAILED),
        "a shard that is cut": (
            lambda: os.truncate("out/model.safetensors", 3000),
            "the header ends past the end of the file",
            FAILED,
        ),
        "a shard that is gone": (remove("out/model.safetensors"), "has none of model.safetensors", FAILED),
        "a file more": (write("out/more.txt", "x"), "does not stand in the original", FAILED),
        "a file less": (remove("out/generation_config.json"), "is missing", FAILED),
        "other weights beside it": (
            write("out/old.pth", "x"),
            "is no part of a conversion and may hold unpruned weights",
            FAILED,
        ),
        "a link outside": (
            link("out/notes.txt", "/etc/passwd"),
            "is a link to /etc/passwd, outside of the checkpoint",
            FAILED,
        ),
        "another geometry": (
            put("out/config.json", "text_config", "num_attention_heads", value=8),
            "language_model.model.layers.0.self_attn.q_proj.weight has",
            FAILED,
        ),
    },
    "verify: ",
)
add(
    ("verify", "out", "in"),
    {"verify: swapped": (nothing, "is a conversion, as its manifest says, and in has none", FAILED)},
)
add(
    ("verify", "in", "in"),
    {"verify: the same": (nothing, "is byte-identical to in in all 25 tensors: nothing was", FAILED)},
)
add(("verify", "in"), {"verify: no manifest": (nothing, "has no s4convert.json to check it by")})
add(("verify", "in", "nowhere"), {"verify: nowhere": (nothing, "nowhere: no such directory")})

# --- statistics -----------------------------------------------------------------------------------------------

S, LAYER = "statistics/statistics.json", "statistics/layer-00001.safetensors"


def layer_tensors(change: Callable[[dict[str, np.ndarray[Any, Any]]], object]) -> Callable[[], object]:
    """Let *change* work on the moments of the layer that loses heads."""

    def spoil() -> None:
        from safetensors.numpy import load_file, save_file

        tensors = load_file(LAYER)
        change(tensors)
        save_file(tensors, LAYER)

    return spoil


def huge_layer() -> None:
    """A layer of 2 TB, which takes no room on the disk."""
    header = {"train.text.second": {"dtype": "F64", "shape": [1 << 38], "data_offsets": [0, 1 << 41]}}
    text = json.dumps(header).encode()
    Path(LAYER).write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(LAYER, 8 + len(text) + (1 << 41))


add(
    FIT,
    {
        "none": (remove("statistics"), "no such directory"),
        "no description": (remove(S), "has no statistics.json, so it holds no statistics"),
        "a description that is no JSON": (write(S, "x"), "is not JSON (Expecting value: line 1 column 1 (char 0))"),
        "a description that is a list": (write(S, "[]"), "format is None, but 's4convert-statistics/1' is needed"),
        "a description that is a pipe": (pipe(S), "has no statistics.json, so it holds no statistics"),
        "a description of a TB": (sparse(S), "has 1,099,511,627,776 bytes, and at most 16,777,216 are"),
        "another version": (put(S, "format", value="x"), "format is 'x', but 's4convert-statistics/1' is needed"),
        "a long version": (put(S, "format", value=LONG), "format is"),
        "other layers": (put(S, "num_layers", value=3), "num_layers is 3, but this checkpoint's is 2"),
        "layers that are text": (put(S, "num_layers", value="2"), "num_layers is '2', not a number"),
        "another head_dim": (put(S, "head_dim", value=10**59), "head_dim is"),
        "another model": (put(S, "fingerprint", value="x"), "was gathered on another model ('in'), as the fingerprint"),
        "no layer": (remove(LAYER), "has nothing of layer 1"),
        "a layer that is nothing": (write(LAYER, b""), "0 bytes are too few for a safetensors file"),
        "a layer that is text": (write(LAYER, "x" * 100), "its header claims 8,680,820,740,569,200,760 bytes, more"),
        "a layer that is a directory": (folder(LAYER), "has nothing of layer 1"),
        "a layer of 2 TB": (huge_layer, "is malformed ('train.text.second' is F64 [274877906944]"),
        "a layer that is cut": (lambda: os.truncate(LAYER, 200), "the header ends past the end of the file"),
        "no mean": (layer_tensors(lambda t: t.pop("train.text.mean")), "is malformed (KeyError('train.text.mean'))"),
        "no count": (
            layer_tensors(lambda t: t.pop("train.text.num_tokens")),
            "is malformed (KeyError('train.text.num_tokens'))",
        ),
        "nothing of the tokens": (layer_tensors(lambda t: t.clear()), "has no tokens to fit with"),
        "a mean of other columns": (
            layer_tensors(lambda t: t.update({"train.text.mean": np.zeros(15)})),
            "is malformed ('train.text.mean' is F64 [15], where moments",
        ),
        "a matrix of other columns": (
            layer_tensors(lambda t: t.update({"train.text.second": np.zeros(120)})),
            "is malformed ('train.text.second' is F64 [120], where",
        ),
        "a mean in float32": (
            layer_tensors(lambda t: t.update({"train.text.mean": np.zeros(16, "f4")})),
            "is malformed ('train.text.mean' is F32 [16], where moments",
        ),
        "a mean of NaN": (
            layer_tensors(lambda t: t.update({"train.text.mean": np.full(16, np.nan)})),
            "is malformed (CompensationError('moments: ...nt and the",
        ),
        "a negative count": (
            layer_tensors(lambda t: t.update({"train.text.num_tokens": np.array([-1])})),
            "is malformed (CompensationError('moments: ...l",
        ),
        "two counts": (
            layer_tensors(lambda t: t.update({"train.text.num_tokens": np.array([1, 2])})),
            "is malformed ('train.text.num_tokens' is I64 [2], where",
        ),
        "a tensor more": (
            layer_tensors(lambda t: t.update({"more": np.zeros(3)})),
            "is malformed ('more' is F64 [3], where moments of 16",
        ),
    },
    "statistics: ",
)
add(
    INSPECT_STATISTICS,
    {
        "a size that is a list": (put(S, "hidden_size", value=[]), "hidden_size is [], not a number"),
        "no size": (without(S, "hidden_size"), "hidden_size is None, not a number"),
    },
    "inspect statistics: ",
)

# --- questions and texts --------------------------------------------------------------------------------------


def questions(*entries: Any) -> Callable[[], object]:
    return write("questions.json", json.dumps(entries))


def said(*turns: Any) -> Callable[[], object]:
    return questions({"id": "1", "conversations": list(turns)})


HUMAN, GPT = {"from": "human", "value": "What?"}, {"from": "gpt", "value": "A"}
add(
    CALIBRATE,
    {
        "none": (remove("questions.json"), "cannot be read: No such file or directory", STORAGE),
        "nothing": (write("questions.json", ""), "holds no samples"),
        "text": (write("questions.json", "What?"), "line 1: is not JSON (Expecting value: line 1 column 1"),
        "not UTF-8": (write("questions.json", b"\xff"), "is not UTF-8 at byte 0"),
        "an empty list": (write("questions.json", "[]"), "holds no samples"),
        "a list that is cut": (write("questions.json", "[{}"), "is not JSON (Expecting ',' delimiter: line 1 column 4"),
        "a pipe": (pipe("questions.json"), "is not a regular file"),
        "an object": (write("questions.json", '{"a": 1,\n"b": 2}'), "is one JSON object"),
        "ScienceQA's own": (
            write("questions.json", '{"1": {"question": "What?", "choices": ["a"]}}'),
            "is ScienceQA's own problems.json",
        ),
        "a number": (questions(7), "entry 1: is not a JSON object"),
        "null": (questions(None), "entry 1: is not a JSON object"),
        "no conversation": (questions({"id": "1"}), "entry 1 (id 1): has neither conversations nor a text"),
        "a conversation that is text": (
            questions({"id": "1", "conversations": "What?"}),
            "entry 1 (id 1): has neither conversations nor a text",
        ),
        "an empty conversation": (said(), "entry 1 (id 1): has neither conversations nor a text"),
        "a turn that is text": (said("What?"), 'entry 1 (id 1): conversations[0] is not {"from": "human'),
        "two humans": (said(HUMAN, HUMAN, GPT), 'entry 1 (id 1): conversations[1] is not {"from": "gpt'),
        "a value that is a number": (
            said({"from": "human", "value": 7}, GPT),
            'entry 1 (id 1): conversations[0] is not {"from": "human',
        ),
        "a lone surrogate": (
            write("questions.json", json.dumps([{"id": "1", "conversations": [HUMAN | {"value": "\ud800"}, GPT]}])),
            "entry 1 (id 1): has half a character (a lone surrogate)",
        ),
        "an image that is a list": (
            questions({"id": "1", "image": ["a", "b"], "conversations": [HUMAN, GPT]}),
            "entry 1 (id 1): image is ['a', 'b'], not the name of one",
        ),
        "an image that is long": (
            questions({"id": "1", "image": LONG, "conversations": [HUMAN, GPT]}),
            "entry 1 (id 1): image is",
        ),
        "an image without a directory": (
            questions({"id": "1", "image": "a.png", "conversations": [HUMAN, GPT]}),
            "entry 1 (id 1): names the image a.png",
        ),
        "a placeholder without an image": (
            said(HUMAN | {"value": "<image> What?"}, GPT),
            "entry 1 (id 1): has <image> but names no image",
        ),
    },
    "calibration: ",
)
add(
    EVALUATE,
    {
        "none": (remove("questions.json"), "cannot be read: No such file or directory", STORAGE),
        "nothing": (write("questions.json", ""), "holds no questions"),
        "an empty list": (write("questions.json", "[]"), "holds no questions"),
        "a list that is cut": (write("questions.json", "[{}"), "is not JSON (Expecting ',' delimiter: line 1 column 4"),
        "a pipe": (pipe("questions.json"), "is not a regular file"),
        "a number": (questions(7), "entry 1: is not a JSON object"),
        "no conversation": (questions({"id": "1"}), "entry 1 (id '1'): has neither a text nor one question and"),
        "two humans": (said(HUMAN, HUMAN, GPT), "entry 1 (id '1'): has neither a text nor one question and"),
        "an image that is long": (
            questions({"id": "1", "image": LONG, "conversations": [HUMAN, GPT]}),
            "entry 1 (id '1'): image is",
        ),
        "ScienceQA without its splits": (
            write("questions.json", '{"1": {"question": "What?", "choices": ["a"]}}'),
            "pid_splits.json: cannot be read: No such file or directory",
            STORAGE,
        ),
        "no id": (
            questions({"conversations": [HUMAN, GPT]}),
            "entry 1: has neither id nor question_id, which name its",
        ),
        "no answer": (said(HUMAN), "entry 1 (id '1'): has neither a text nor one question and"),
        "an answer that is empty": (
            said(HUMAN, GPT | {"value": ""}),
            "entry 1 (id '1'): has no right answer to compare with",
        ),
        "an answer beyond the options": (
            said(HUMAN | {"value": "What?\nA. x\nB. y"}, GPT | {"value": "D"}),
            "entry 1 (id '1'): its answer D is beyond its 2 options",
        ),
        "answers that are numbers": (
            questions({"id": "1", "text": "What?", "answers": [1]}),
            "entry 1 (id '1'): has no right answer to compare with",
        ),
        "an id twice": (questions(*QUESTIONS, QUESTIONS[0]), "the tokenizer cannot be used by stock code (none of"),
    },
    "questions: ",
)
for _name in ("images", "images/none"):
    add(
        (*CALIBRATE, "--images", _name),
        {
            f"questions: an image that is not in {_name}": (
                questions({"id": "1", "image": "../a.png", "conversations": [HUMAN, GPT]}),
                "entry 1 (id 1): there is no image images/",
            )
        },
    )
add(
    CALIBRATE_TEXTS,
    {
        "nothing": (write("texts.txt", ""), "holds no samples"),
        "blanks": (write("texts.txt", " \n\n\t\n"), "holds no samples"),
        "not UTF-8": (write("texts.txt", b"\xff\xfe"), "is not UTF-8 at byte 0"),
        "a placeholder": (
            write("texts.txt", "One <image> here"),
            "text 1: has <image> in it, but plain text has no images",
        ),
        "a directory": (folder("texts.txt"), "is not a regular file"),
    },
    "texts: ",
)

# --- samples of an evaluation ---------------------------------------------------------------------------------


def sample(**changes: Any) -> Callable[[], object]:
    return write("samples.jsonl", json.dumps(SAMPLE | changes))


add(
    COMPARE,
    {
        "none": (remove("samples.jsonl"), "cannot be read: No such file or directory", STORAGE),
        "nothing": (write("samples.jsonl", ""), "holds no answers"),
        "text": (write("samples.jsonl", "x"), "line 1: is no answer of a samples file"),
        "a list": (write("samples.jsonl", "[]"), "line 1: is no answer of a samples file"),
        "not UTF-8": (write("samples.jsonl", b"\xff"), "line 1: is no answer of a samples file"),
        "no score": (write("samples.jsonl", "{}"), "line 1: is no answer of a samples file"),
        "a score that is text": (sample(score="x"), "line 1: is no answer of a samples file"),
        "a score of 2": (sample(score=2), "line 1: is no answer of a samples file"),
        "a score of 10^400": (sample(score=10**400), "line 1: is no answer of a samples file"),
        "a score of NaN": (
            write("samples.jsonl", json.dumps(SAMPLE | {"score": float("nan")})),
            "line 1: is no answer of a samples file",
        ),
        "answers that are null": (sample(answers=None), "line 1: is no answer of a samples file"),
        "a question twice": (write("samples.jsonl", f"{json.dumps(SAMPLE)}\n" * 2), "line 2: has question '1' again"),
        "two checkpoints": (
            write("samples.jsonl", f"{json.dumps(SAMPLE)}\n{json.dumps(SAMPLE | {'checkpoint': LONG})}"),
            "holds 'a",
        ),
        "a pipe": (pipe("samples.jsonl"), "is not a regular file"),
    },
    "compare: ",
)

# --- studies and their results --------------------------------------------------------------------------------


def study(text: bytes | str) -> Callable[[], object]:
    return write("study.yaml", text)


add(
    SWEEP,
    {
        "none": (remove("study.yaml"), "cannot be read: No such file or directory", STORAGE),
        "nothing": (study(""), "is not a list of options, each as `name: value`"),
        "a list": (study("- rates"), "is not a list of options, each as `name: value`"),
        "no YAML": (study("a: [b"), 'is not YAML (while parsing a flow sequence in "<byte'),
        "a tab": (study("\t- x"), "is not YAML (while scanning for the next token found"),
        "NUL": (study("\0"), "is not YAML (unacceptable character #x0000: special"),
        "not UTF-8": (study(b"\xff\xff"), "is not YAML (unacceptable character #x00ff: invalid start"),
        "code": (
            study("rates: !!python/object/apply:os.system ['touch ran']"),
            "is not YAML (could not determine a constructor for the tag",
        ),
        "an object": (
            study("rates: !!python/object:os.path {}"),
            "is not YAML (could not determine a constructor for the tag",
        ),
        "an alias of itself": (study("rates: &a [*a]"), "rates is [[[[...]]]]"),
        "a list as a name": (study("? [a]\n: b"), 'is not YAML (while constructing a mapping in "<byte'),
        "an option that is unknown": (study("rate: 0.3"), "'rate' is no option of a sweep"),
        "an option with a long name": (
            study(f"{LONG[:1000]}: 1"),
            "'xxxxxxxxxxxxxxxxxxxxxxxxxxx...xxxxxxxxxxxxxxxxxxxxxxxxxxx",
        ),
        "rates that are nothing": (study("rates:"), "rates is None"),
        "rates that are an object": (study("rates: {a: 1}"), "rates is {'a': 1}"),
        "rates in rates": (study("rates: [[0.1]]"), "rates is [[0.1]]"),
        "a rate of a date": (study("rates: [2020-01-01]"), "rates is [datetime.date(2020, 1, 1)]"),
        "a rate of 5": (study("rates: 5"), "--rates is 5, not of type str or Sequence"),
        "a rate of words": (study("rates: many"), "give --questions to ask, or a --text to read, or both"),
        "a rate of 5000 digits": (
            study(f"rates: {'9' * 5000}"),
            "is not YAML (Exceeds the limit (4300",
        ),
        "schedules that are null": (study("schedules: [null]"), "schedules is [None]"),
        "schedules that are numbers": (study("schedules: [1]"), "schedules is [1]"),
        "a schedule that is unknown": (
            study("schedules: often\nrates: 0.2"),
            "--rates is 0.2, not of type str or Sequence",
        ),
        "a metric that is unknown": (study("metrics: luck"), "give --questions to ask, or a --text to read, or both"),
        "a metric that is a number": (study("metrics: [1]"), "give --questions to ask, or a --text to read, or both"),
        "masks that are a number": (study("masks: 5"), "masks is 5; give text, or a list of such"),
        "masks that are true": (study("masks: yes"), "masks is True"),
        "a mask that is nowhere": (
            study("masks: nowhere.json"),
            "give --questions to ask, or a --text to read, or both",
        ),
        "questions with NUL": (study('questions: "a\\0b"'), "questions is 'a\\x00b"),
        "questions that are nowhere": (
            study("rates: '0.25'\nquestions: nowhere.json"),
            "nowhere.json: cannot be read: No such file or directory",
            STORAGE,
        ),
        "questions that are long": (
            study(f"rates: '0.25'\nquestions: {LONG}"),
            "questions is 'xxxxxxxxxxxxxxxxxxxxxxxxxxx...xxxxxxxxxxxxxx",
        ),
        "a compensation that is unknown": (
            study("compensations: magic"),
            "give --questions to ask, or a --text to read, or both",
        ),
        "a command without a checkpoint": (
            study("eval_command: ls\nscore_pattern: (.)"),
            "give --questions to ask, or a --text to read, or both",
        ),
        "a command without a score": (
            study("eval_command: 'ls {checkpoint}'"),
            "give --questions to ask, or a --text to read, or both",
        ),
        "a pattern that is none": (
            study("eval_command: 'ls {checkpoint}'\nscore_pattern: '('"),
            "give --questions to ask, or a --text to read, or both",
        ),
        "a device that is unknown": (study("rates: '0.25'\ndevice: [cpu]"), "--device is ['cpu'], not of type str"),
        "steps that are text": (study("steps: many"), "--steps is 'many', not of type int or None"),
        "samples, which a sweep keeps": (study("samples: x.jsonl"), "'samples' is no option of a sweep"),
    },
    "study: ",
)
R = "results/study.json"
add(
    SUMMARISE,
    {
        "none": (remove("results"), "holds no study.json"),
        "no study": (remove(R), "holds no study.json"),
        "no JSON": (write(R, "x"), "is not JSON (Expecting value: line 1 column 1 (char 0))"),
        "a list": (write(R, "[]"), "is not of format 's4convert-study/1"),
        "another version": (put(R, "format", value="x"), "is not of format 's4convert-study/1"),
        "no point": (put(R, "points", value=[]), "its results are malformed (IndexError('tuple index out of"),
        "points that are text": (
            put(R, "points", value="x"),
            "its results are malformed (TypeError(",
        ),
        "a point that is null": (
            put(R, "points", 0, value=None),
            "its results are malformed (TypeError(\"'NoneType' object",
        ),
        "a point in the parent": (
            put(R, "points", 0, "point", value="../../mask"),
            'its results are malformed (ValueError("a point',
        ),
        "a point with a long name": (
            put(R, "points", 0, "point", value=LONG),
            'its results are malformed (ValueError("a point',
        ),
        "a point without a rate": (without(R, "points", 0, "rate"), "its results are malformed (KeyError('rate'))"),
        "a rate that is text": (
            put(R, "points", 1, "rate", value="x"),
            'its results are malformed (ValueError("Unknown format',
        ),
        "a rate of 10^400": (
            put(R, "points", 1, "rate", value=10**400),
            "its results are malformed (OverflowError('int too large",
        ),
        "settings that are text": (
            put(R, "points", 1, "settings", value="x"),
            "its results are malformed (TypeError(",
        ),
        "a setting without a schedule": (
            put(R, "points", 1, "settings", value=[{"metric": "x"}]),
            "its results are malformed (KeyError('schedule'))",
        ),
        "no source": (without(R, "source"), "its results are malformed (KeyError('source'))"),
        "an evaluator that is text": (put(R, "evaluator", value="x"), "its results are malformed"),
        "prune_nothing that is a number": (
            put(R, "prune_nothing", value=7),
            "its results are malformed (TypeError(\"'int' object is not",
        ),
        "a result that is no JSON": (
            write(f"results/points/{'0' * 16}.json", "x"),
            "is not JSON (Expecting value: line 1 column 1 (char 0))",
        ),
        "a result of another version": (
            write(f"results/points/{'0' * 16}.json", "{}"),
            "is not of format 's4convert-point/1",
        ),
        "a result of nothing": (
            write(f"results/points/{'0' * 16}.json", '{"format": "s4convert-point/1"}'),
            "is malformed (KeyError('failure'))",
        ),
        "a result that is a pipe": (pipe(f"results/points/{'0' * 16}.json"), "is not a regular file"),
        "answers that are numbers": (
            write(
                f"results/points/{'0' * 16}.json",
                json.dumps({"format": "s4convert-point/1", "failure": None, "answers": [7], "text_loss": 0.0})[:-1]
                + ', "text_tokens": 0, "speed": null, "measured": null}',
            ),
            "is malformed (TypeError(\"'int' object is not",
        ),
        "a loss that is text": (
            write(
                f"results/points/{'0' * 16}.json",
                json.dumps({"format": "s4convert-point/1", "failure": None, "answers": [], "text_loss": "x"})[:-1]
                + ', "text_tokens": 1, "speed": null, "measured": null}',
            ),
            'its results are malformed (TypeError("unsupported',
        ),
    },
    "results: ",
)

# --- options --------------------------------------------------------------------------------------------------

HERE = ("in", "new", "--mask", "mask.json")
for _name, (_command, _message) in {
    "unknown": ((*HERE, "--prune-harder"), "--prune-harder"),
    "hostile": ((*HERE, f"--{HOSTILE}"), "owned"),
    "an argument too many": ((*HERE, "more"), "Got unexpected extra argument (more)"),
    "no OUT": (("in", "--mask", "mask.json"), "Missing argument 'OUT'; see s4convert --help"),
    "no mask": (("in", "new"), "give a --mask; or a --rate and --calibration data, to"),
    "no value": ((*HERE, "--compensate"), "Option '--compensate' requires an argument"),
    "a compensation that is unknown": (
        (*HERE, "--compensate", "magic"),
        "Invalid value for '--compensate': 'magic' is not one of",
    ),
    "a polarity that is unknown": (
        (*HERE, "--mask-polarity", "drop"),
        "Invalid value for '--mask-polarity': 'drop' is not one of",
    ),
    "a polarity for a mask of heads": ((*HERE, "--mask-polarity", "prune"), "layer 0: missing"),
    "a rate without a schedule": ((*HERE, "--rate", "0.3"), "--rate needs a --schedule: uniform, adaptive, global or"),
    "a rate for a mask": ((*HERE, "--rate", "0.3", "--schedule", "uniform"), "holds listed heads, not scores"),
    "a rate of 2": (
        ("mask", "in", "-o", "m.json", "--metric", "magnitude", "--schedule", "uniform", "--rate", "2"),
        "--rate '2' is not a number from 0 to below 1, such as 0.3",
    ),
    "a rate of words": (
        ("mask", "in", "-o", "m.json", "--metric", "magnitude", "--schedule", "uniform", "--rate", "x"),
        "--rate 'x' is not a number from 0 to below 1, such as 0.3",
    ),
    "a rate of NaN": (
        ("mask", "in", "-o", "m.json", "--metric", "magnitude", "--schedule", "uniform", "--rate", "nan"),
        "--rate 'nan' is not a number from 0 to below 1, such as",
    ),
    "a rate that is long": (
        ("mask", "in", "-o", "m.json", "--metric", "magnitude", "--schedule", "uniform", "--rate", "9" * 5000),
        "--rate '999999999999999999999999999...99999999999999999999",
    ),
    "bands that are none": (
        ("mask", "in", "-o", "m.json", "--metric", "magnitude", "--schedule", "bands:x"),
        "band 'x' has no rate; write it as 0-5:0.2",
    ),
    "bands of other layers": (
        ("mask", "in", "-o", "m.json", "--metric", "magnitude", "--schedule", "bands:0-99:0.5"),
        "layer 99: out of range, there are layers 0 to 1",
    ),
    "bands of 10^12 layers": (
        ("mask", "in", "-o", "m.json", "--metric", "magnitude", "--schedule", f"bands:0-{10**12}:0.5"),
        "'0-1000000000000' is neither a layer nor a range such as",
    ),
    "protected layers that are none": ((*MASK, "--protect", "x"), "'x' is neither a layer nor a range such as 0-5"),
    "protected layers of 10^12": (
        (*MASK, "--protect", f"0-{10**12}"),
        "'0-1000000000000' is neither a layer nor a range such as",
    ),
    "a mask that is no JSON": (
        ("mask", "in", "-o", "m.npy", "--metric", "magnitude", *UNIFORM),
        "m.npy: is written as JSON",
    ),
    "a metric without data": (
        ("mask", "in", "-o", "m.json", "--metric", "energy", *UNIFORM),
        "--metric energy needs calibration data",
    ),
    "a metric that is unknown": (
        ("mask", "in", "-o", "m.json", "--metric", "luck", *UNIFORM),
        "Invalid value for '--metric': 'luck' is not one of",
    ),
    "no metric": (("mask", "in", "-o", "m.json", *UNIFORM), "a checkpoint is scored by a metric"),
    "no schedule": (("mask", "in", "-o", "m.json", "--metric", "magnitude"), "Missing option '--schedule"),
    "scores that are here already": (
        ("mask", "in", "-o", "mask.json", "--metric", "magnitude", *UNIFORM),
        "exists; choose another name, or replace it with --force",
    ),
    "jobs of 0": ((*HERE, "--jobs", "0"), "Invalid value for '--jobs': 0 is not in the range x>=1"),
    "jobs of words": ((*HERE, "--jobs", "many"), "Invalid value for '--jobs': 'many' is not a valid integer"),
    "a device without a model": ((*CONVERT, "--device", "cpu"), "--device is where models run, and here none does"),
    "a device that is unknown": ((*HERE, "--device", "abacus"), "--device abacus: there is no such device"),
    "a shard size for safetensors": (
        (*CONVERT, "--shard-size", "5GB"),
        "its shards are safetensors and stay as they are",
    ),
    "a shard size of nothing": (
        ("bin", "new", "--mask", "mask.json", *BYTES, "--shard-size", "0GB"),
        "--shard-size '0GB' is not a size such as 500MB or 5GB",
    ),
    "a shard size of words": (
        ("bin", "new", "--mask", "mask.json", *BYTES, "--shard-size", "large"),
        "--shard-size 'large' is not a size such as 500MB or 5GB",
    ),
    "images without data": ((*HERE, "--images", "images"), "--images is about calibration data"),
    "a holdout without data": ((*HERE, "--holdout", "0.2"), "--holdout is about calibration data"),
    "a holdout of 1": ((*CALIBRATE, "--holdout", "1"), "--holdout 1.0: give a share from 0 to below 1"),
    "statistics and data": (
        (*FIT, "--calibration", "texts.txt"),
        "give --calibration data, or --statistics kept before, one",
    ),
    "an image weight of 2": ((*FIT, "--image-weight", "2"), "--image-weight 2.0: give a share from 0 to 1"),
    "an image weight of NaN": ((*FIT, "--image-weight", "nan"), "--image-weight nan: give a share from 0 to 1"),
    "a fit without data": ((*CONVERT, "--compensate", "head-ls"), "compensation head-ls is fitted to calibration data"),
    "steps without a training": ((*CONVERT, "--steps", "3"), "--steps is about a training"),
    "a conversation without questions": (
        (*HERE, "--conversation", "vicuna_v1"),
        "--conversation is about questions to ask",
    ),
    "a vision tower for nothing": (
        (*CONVERT, "--vision-tower", "images"),
        "--vision-tower is for calibration and hidden states, and",
    ),
    "a title of two lines": ((*CONVERT, "--model-name", "a\nb"), "--model-name 'a\\nb' is no title"),
    "a title of blanks": ((*CONVERT, "--model-name", " "), "--model-name ' ' is no title"),
    "a base model that is no name": (
        (*CONVERT, "--base-model", "../x"),
        "'../x': is not the name of a repository on the Hub",
    ),
    "a report that is no HTML": ((*CONVERT, "--report", "report.txt"), "is written as HTML"),
    "a report in OUT": (
        (*CONVERT, "--report", "new/report.html"),
        "would be in the conversion, whose files are listed",
    ),
    "a report in IN": ((*CONVERT, "--report", "in/report.html"), "would be in IN, which is never written to"),
    "a mask to save that is given": (
        (*CONVERT, "--save-mask", "saved.json"),
        "--save-mask is about a mask to be made, and --mask is",
    ),
    "OUT is IN": (
        ("in", "in", "--mask", "mask.json", *BYTES),
        "is IN itself; IN is never written to, choose another OUT",
    ),
    "OUT is in IN": (("in", "in/new", "--mask", "mask.json", *BYTES), "lies inside IN; choose an OUT elsewhere"),
    "OUT is the working directory": (
        ("in", ".", "--mask", "mask.json", *BYTES),
        ".: is the current directory, or one above it",
    ),
    "OUT is a conversion": (
        ("in", "out", "--mask", "mask.json", *BYTES),
        "is not empty; choose another OUT, or replace it with",
    ),
    "OUT is something else": (
        ("in", "images/..", "--mask", "mask.json", *BYTES, "--force"),
        "images/..: is the current directory, or one above it",
    ),
    "OUT is a file": (("in", "mask.json", "--mask", "mask.json", *BYTES), "is a file; choose another OUT"),
    "OUT is named as a delta": (
        ("in", "llava-delta-v1", "--mask", "mask.json", *BYTES),
        "llava-delta-v1: would be taken for a delta by its name",
    ),
    "IN is a conversion": (
        ("out", "new", "--mask", "mask.json", *BYTES),
        "was converted before, and its compensation would be",
    ),
    "IN is no name": (
        ("hf://x", "new", "--mask", "mask.json", *BYTES),
        "'hf://x': is not of the form hf://ORG/NAME[@REVISION]",
    ),
    "IN is hostile": (("inspect", HOSTILE), "\\u001b]0;owned\\u0007 verdict: OK: no such file or"),
    "a command that is misspelt": (("inspct", "in"), "no such command or directory: 'inspct"),
    "nothing to inspect": (("inspect", "nowhere"), "nowhere: no such file or directory, and no name on the Hub"),
    "a checkpoint for a checkpoint": (
        ("inspect", "in", "--checkpoint", "out"),
        "is no mask; leave --checkpoint and --mask-polarity out",
    ),
    "a picture of an unknown kind": (
        ("inspect", "in", "--plot", "picture.xyz"),
        "picture.xyz: is no name of a picture",
    ),
    "a mask without its sizes": (INSPECT_MASK, "does not say how many layers and heads the model has"),
    "questions for a sweep's summary": (
        ("sweep", "--summarise", "results", "--questions", "questions.json"),
        "--summarise makes the summary of results again",
    ),
    "a sweep without an output": (("sweep", "in"), "give the checkpoint IN, and with --output the directory"),
    "a sweep without questions": (
        ("sweep", "in", "-o", "new", "--rates", "0.25"),
        "give --questions to ask, or a --text to read, or both",
    ),
    "an evaluation without questions": (("evaluate", "in"), "give --questions to ask, or a --text to read, or both"),
    "an evaluation by an unknown prompt": (
        ("evaluate", "in", "--questions", "questions.json", "--conversation", "x"),
        "Invalid value for '--conversation': 'x' is not one of",
    ),
    "tokens of 0": (
        ("evaluate", "in", "--questions", "questions.json", "--max-new-tokens", "0"),
        "Invalid value for '--max-new-tokens': 0 is not in the",
    ),
    "a comparison of one": (("compare", "samples.jsonl"), "Missing argument 'RUN_B'; see s4convert compare --help"),
}.items():
    add(_command, {f"option: {_name}": (nothing, _message)})
add(("demo", "mask.json"), {"option: a demo at a file": (nothing, "cannot be written: Not a directory", STORAGE)})
