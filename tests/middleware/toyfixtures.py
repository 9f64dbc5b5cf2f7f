# SPDX-License-Identifier: BSD-3-Clause
"""Fixtures with ToyCam, for test modules that name this one in ``pytest_plugins``."""

import gc
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from lsst.utils import packages
from once import made_once
from toycam import MakeRig, Rig, load_toy_camera, make_central

from ppdaemon.middleware import work
from ppdaemon.middleware.butlerwork import ButlerWork


@pytest.fixture(scope="session", autouse=True)
def installed_packages() -> Iterator[None]:
    """List the imported packages once: it takes 0.2 s, then 0.03 s, and each output run has it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packages, "getPythonPackages", cache(packages.getPythonPackages))
        yield


@pytest.fixture(scope="session")
def toy_central(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the central repo; it is only read, and tests that write make a copy."""
    return made_once(tmp_path_factory, "toy-central", make_central)


@pytest.fixture(scope="session")
def toy_template(tmp_path_factory: pytest.TempPathFactory, toy_central: Path) -> Path:
    """Return a template that all tests copy."""
    root = tmp_path_factory.mktemp("template")
    rig = Rig(root, root / "ram", toy_central)
    work.build_template(rig.context)
    # As the zygote does: the full collection at each reset of a worker then
    # does not visit all imported modules.
    gc.collect()
    gc.freeze()
    return rig.context.template


@pytest.fixture
def rigs(tmp_path: Path, toy_central: Path, toy_template: Path) -> Iterator[MakeRig]:
    """Return a function that creates a rig and its work; all are closed at the end."""
    opened: list[ButlerWork] = []

    def make(central: Path = toy_central, **changes: Any) -> tuple[Rig, ButlerWork]:
        root = tmp_path / str(len(opened))
        rig = Rig(root, root / "ram", central, **changes)
        shutil.copytree(toy_template, rig.context.template)
        assert rig.config.butler is not None
        opened.append(ButlerWork(rig.context, rig.config.butler, load_toy_camera))
        return rig, opened[-1]

    yield make
    for each in opened:
        each.close()
