"""Every bad input is refused in one line, with a documented exit code, and nothing on the disk changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attacks.bad_input_cases import CASES, Case
from tests.attacks.bad_inputs import faults_of, write_sound


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sound")
    write_sound(directory)
    return directory


def test_there_are_enough_cases_and_each_has_a_name_of_its_own() -> None:
    assert len(CASES) >= 400
    assert len({case.name for case in CASES}) == len(CASES)


# tests/checkpoint has the corpora of headers and indexes by themselves, and the battery runs all.
SOME = [case for case in CASES if not case.name.startswith(("header: ", "index: "))]


@pytest.mark.parametrize("case", SOME, ids=[case.name for case in SOME])
def test_a_bad_input_is_refused_in_one_line(case: Case, sound: Path, tmp_path: Path) -> None:
    assert faults_of(case, sound, tmp_path) == []
