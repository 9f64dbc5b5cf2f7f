# SPDX-License-Identifier: BSD-3-Clause
"""Fixtures of the tests with a real Butler."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def demo_detectors() -> tuple[int, ...]:
    """Tell for which detectors `demo_central` has calibrations."""
    return (4,)


@pytest.fixture(scope="session")
def demo_central(tmp_path_factory: pytest.TempPathFactory, demo_detectors: tuple[int, ...]) -> Path:
    """Give the demo's central repo with templates in r, the same for all tests.

    A test writes into output runs of its own and takes an alert database of
    its own from `ppdaemon.demo.central.make_apdb`.
    """
    from ppdaemon.demo.central import make_central_repo

    root = tmp_path_factory.mktemp("demo") / "central"
    return make_central_repo(
        root, bands=("r",), detectors=demo_detectors, processes=1, progress=lambda line: None
    )
