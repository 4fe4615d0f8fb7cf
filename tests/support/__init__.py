"""What tests and benchmarks share."""

import os
import pathlib
import sys

if sys.version_info < (3, 11):  # pathlib keeps the functions of os as they were, and the tests put others into os

    def _look_up(name):
        return staticmethod(lambda *arguments, **options: getattr(os, name)(*arguments, **options))

    for _name in ("stat", "listdir", "scandir", "mkdir", "rmdir", "unlink", "rename", "replace"):
        setattr(pathlib._NormalAccessor, _name, _look_up(_name))
