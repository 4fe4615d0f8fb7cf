"""The HTML report of a conversion, from its manifest."""

from __future__ import annotations

from pathlib import Path

from ..checkpoint import MANIFEST_FILE, read_json_object
from ..choices import REPORT_FILE
from ..disk import check_output, write_output
from ..errors import UsageError
from ..hub.names import checkpoint_name
from ..output.html_report import html_report
from ..sources import locate_file
from .options import as_path


def check_report(path: Path, conversion: Path, *, force: bool) -> None:
    """Refuse a report that could not be written to *path*, or would be in the directory *conversion*.

    Raises:
        UsageError: its name is not one of HTML, or it cannot stand there.
        StorageError: its directory does not exist.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{path}: is written as HTML; give it a name that ends in .html")
    if path.resolve().is_relative_to(conversion.resolve()):
        raise UsageError(f"{path}: would be in the conversion, whose files are listed; choose a place outside it")
    check_output(path, force=force)


def write_report(
    converted: Path | str, out: Path | str = REPORT_FILE, *, force: bool = False, progress: bool = False
) -> Path:
    """Write the report of *converted*, a conversion, as one HTML file *out*; *force* replaces a file that stands there.

    It is made of ``s4convert.json`` alone, so it is what ``report`` would have written at the conversion. *converted*
    is a directory, or ``org/name[@revision]`` on the Hub, of which nothing else is downloaded.

    Raises:
        UsageError: *converted* is no conversion, or *out* cannot stand there.
        CheckpointError: the manifest is malformed.
        HubError, StorageError: as the class says.
    """
    out = as_path(out)
    check_report(out, Path(converted), force=force)
    manifest = Path(converted) / MANIFEST_FILE
    if checkpoint_name(converted) is not None:
        manifest, _ = locate_file(f"{converted}:{MANIFEST_FILE}", progress=progress)
    elif not manifest.is_file():
        raise UsageError(f"{converted}: has no {MANIFEST_FILE}, so s4convert did not write it; give a conversion")
    write_output(out, html_report(read_json_object(manifest), manifest), force=force)
    return out
