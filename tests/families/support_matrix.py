"""The table of supported families, made from what the tests really ran.

``python -m tests.families.support_matrix RESULTS.xml ...`` reads the results (``pytest --junitxml``) of
tests/families in one or more environments and prints the table in Markdown; ``make support`` does all of it.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tests.families.fixtures import FIXTURES


def passed_properties(results: Path) -> Iterator[dict[str, str]]:
    """What every test that passed stated with ``record_property``."""
    for case in ElementTree.parse(results).iter("testcase"):
        if case.find("failure") is None and case.find("error") is None and case.find("skipped") is None:
            yield {entry.attrib["name"]: entry.attrib["value"] for entry in case.iter("property")}


def support_matrix(results: list[Path]) -> str:
    """The table; a family of which no test passed has empty cells."""
    forms: dict[str, set[str]] = defaultdict(set)
    loaded: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for path in results:
        for shown in passed_properties(path):
            if "bit for bit" in shown:
                forms[shown["family"]].add(shown["bit for bit"])
            if "stock class" in shown:
                loaded[shown["family"]][shown["stock class"]].add(shown["transformers"])
    rows = [
        "| family | `model_type` | converted bit for bit | loaded by, equal to run-time hooks |",
        "|" + " --- |" * 4,
    ]
    for fixture in FIXTURES:
        classes = [
            f"`{name}` ({', '.join(sorted(versions))})" for name, versions in sorted(loaded[fixture.name].items())
        ]
        cells = (fixture.name, f"`{fixture.model_type}`", ", ".join(sorted(forms[fixture.name])), ", ".join(classes))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(support_matrix([Path(argument) for argument in sys.argv[1:]]))
