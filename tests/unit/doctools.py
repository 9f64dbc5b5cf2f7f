# SPDX-License-Identifier: BSD-3-Clause
"""What the documentation is made with, imported for tests that need no Sphinx."""

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

DOC = Path(__file__).parents[2] / "doc"


@cache
def codetext() -> Any:
    """Return the module that writes pages from the code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOC / "_ext")
        return import_module("codetext")
