"""What a sweep found, to compare with what another found."""

from __future__ import annotations

import csv
from pathlib import Path

from s4convert.study.summary import TIMINGS


def rows_of(results: Path) -> list[dict[str, str]]:
    """The rows of summary.csv in the directory *results*, timings aside."""
    with (results / "summary.csv").open(newline="", encoding="utf-8") as file:
        return [{name: value for name, value in row.items() if name not in TIMINGS} for row in csv.DictReader(file)]
