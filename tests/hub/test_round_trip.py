"""There and back: from the Hub, converted, to the Hub, and from there into stock transformers."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import MINI_LLAVA
from tests.hub.client_process import ClientProcess
from tests.hub.commands import CommandLine, digests_at
from tests.hub.repositories import GIT_ATTRIBUTES
from tests.hub.server import LoopbackHub
from tests.support.disk import digests

# What a user of the pushed repository runs: nothing of this package.
USE = """
import sys, torch
from huggingface_hub import snapshot_download
from transformers import AutoTokenizer, LlavaForConditionalGeneration

assert not any(name.partition(".")[0] == "s4convert" for name in sys.modules)
model = LlavaForConditionalGeneration.from_pretrained("lab/mini-llava-pruned")
tokenizer = AutoTokenizer.from_pretrained("lab/mini-llava-pruned")
ids = tokenizer("USER: Which has ten?", return_tensors="pt").input_ids
with torch.no_grad():
    assert torch.isfinite(model(input_ids=ids).logits).all()
for name, weights in model.named_parameters():
    if "language_model" in name and name.endswith("layers.2.self_attn.o_proj.weight"):
        print([head for head in range(8) if not weights[:, 16 * head : 16 * (head + 1)].any()])
print(snapshot_download("lab/mini-llava-pruned"))
"""


def write_text(path: Path) -> Path:
    path.write_text("The box has two.\n")
    return path


def test_from_the_hub_and_to_the_hub(
    hub: LoopbackHub, client: ClientProcess, s4convert: CommandLine, mini_mask_file: Path, tmp_path: Path
) -> None:
    client.api("create_repo", "lab/mini-llava")
    client.api("upload_folder", repo_id="lab/mini-llava", folder_path=str(MINI_LLAVA))
    client.api("create_tag", "lab/mini-llava", tag="v1")
    original = hub.repositories.by_id["lab/mini-llava"].branches["main"]

    out = tmp_path / "mini-llava-pruned"
    down = s4convert("lab/mini-llava@v1", out, "--mask", mini_mask_file)
    assert down.exit_code == 0, down.stderr
    manifest = json.loads((out / "s4convert.json").read_text())
    assert manifest["source"] == f"lab/mini-llava@{original}"
    assert manifest["verification"]["behaviour"] is not None

    requests = len(hub.requests)
    asked = s4convert("evaluate", out, "--text", write_text(tmp_path / "text.txt"), "--json")
    assert json.loads(asked.stdout)["baseline"] == "lab/mini-llava", asked.stderr  # out of the cache
    assert len(hub.requests) == requests

    up = s4convert("push", out, "lab/mini-llava-pruned")
    assert up.exit_code == 0, up.stderr
    assert digests_at(hub, "lab/mini-llava-pruned") == digests(out)

    elsewhere = s4convert.under(HF_HOME=str(tmp_path / "elsewhere"))  # with an empty cache
    hub.requests.clear()
    for name, of in (("here", out), ("there", "lab/mini-llava-pruned")):
        reported = elsewhere("report", of, "-o", tmp_path / f"{name}.html", "-q")
        assert (reported.exit_code, reported.stdout) == (0, f"{tmp_path / name}.html\n"), reported.stderr
    assert (tmp_path / "here.html").read_bytes() == (tmp_path / "there.html").read_bytes()
    assert {request.path.rpartition("/")[2] for request in hub.requests if "/resolve/" in request.path} == {
        "s4convert.json"
    }
    used = subprocess.run(
        [sys.executable, "-c", USE],
        cwd=tmp_path,
        env=elsewhere.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert used.returncode == 0, used.stderr
    silent, downloaded = used.stdout.splitlines()
    assert silent == "[1, 3, 5]"
    arrived = digests(Path(downloaded))
    assert arrived == {**digests(out), ".gitattributes": hashlib.sha256(GIT_ATTRIBUTES).hexdigest()}  # the Hub's own

    verified = elsewhere("verify", "lab/mini-llava@v1", "lab/mini-llava-pruned", "--json")
    assert verified.exit_code == 0, verified.stderr
    assert json.loads(verified.stdout)["behaviour"] is not None
    by_directory = s4convert("verify", MINI_LLAVA, downloaded)
    assert by_directory.exit_code == 0, by_directory.stderr
