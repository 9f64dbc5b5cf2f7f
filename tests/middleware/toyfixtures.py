# SPDX-License-Identifier: BSD-3-Clause
"""Fixtures with ToyCam, for test modules that name this one in ``pytest_plugins``."""

import gc
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from lsst.daf.butler.logging import ButlerMDC
from lsst.utils import packages
from once import made_once
from toycam import MakeRig, Rig, load_toy_camera, make_central

from ppdaemon.middleware import work
from ppdaemon.middleware.butler.repo import write_content
from ppdaemon.middleware.butlerwork import ButlerWork


@pytest.fixture(scope="session", autouse=True)
def installed_packages() -> Iterator[None]:
    """List the imported packages once: it takes 0.2 s, then 0.03 s, and each output run has it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packages, "getPythonPackages", cache(packages.getPythonPackages))
        yield


@pytest.fixture
def logging_of_a_node(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Set the log level of a node's processes, and records that name their task."""
    caplog.set_level("INFO")
    ButlerMDC.add_mdc_log_record_factory()
    yield
    ButlerMDC.restore_log_record_factory()


@pytest.fixture(scope="session")
def toy_central(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the central repo; it is only read, and tests that write make a copy."""
    return made_once(tmp_path_factory, "toy-central", make_central)


@pytest.fixture(scope="session")
def toy_template(tmp_path_factory: pytest.TempPathFactory, toy_central: Path) -> Path:
    """Return a template that all tests copy."""

    def make(root: Path) -> None:
        rig = Rig(root, root / "ram", toy_central)
        work.build_template(rig.context)

    made = made_once(tmp_path_factory, "toy-template", make)
    # As the zygote does: the full collection at each reset of a worker then
    # does not visit all imported modules.
    gc.collect()
    gc.freeze()
    return made / "ram" / "template"


type RigsIn = Callable[[Path], AbstractContextManager[MakeRig]]


@pytest.fixture(scope="session")
def rigs_in(toy_central: Path, toy_template: Path) -> RigsIn:
    """Return a function that gives what `rigs` is, in a folder; for fixtures of a module."""

    @contextmanager
    def making(folder: Path) -> Iterator[MakeRig]:
        numbers = itertools.count()
        with ExitStack() as opened:

            def make(central: Path = toy_central, **changes: Any) -> tuple[Rig, ButlerWork]:
                root = folder / str(next(numbers))
                rig = Rig(root, root / "ram", central, **changes)
                shutil.copytree(toy_template, rig.context.template)
                if "DAF_BUTLER_CONFIG_PATH" in os.environ:  # of this test; it changes all repos
                    write_content(rig.context.template, "versions")
                assert rig.config.butler is not None
                worker = ButlerWork(rig.context, rig.config.butler, load_toy_camera)
                opened.callback(worker.close)
                return rig, worker

            yield make

    return making


@pytest.fixture
def rigs(tmp_path: Path, rigs_in: RigsIn) -> Iterator[MakeRig]:
    """Return a function that creates a rig and its work; all are closed at the end."""
    with rigs_in(tmp_path) as make:
        yield make
