# SPDX-License-Identifier: BSD-3-Clause
"""Programs and modules of ``tools/``, imported for tests that do not run them."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@contextmanager
def program(name: str) -> Iterator[Any]:
    """Give a program of ``tools/`` as a module."""
    spec = spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        patch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        yield module


def part(name: str) -> Any:
    """Return a module of the programs' own packages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        return import_module(name)
