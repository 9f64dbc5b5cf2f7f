# SPDX-License-Identifier: BSD-3-Clause
"""Fixtures of all tests: a fake clock, short paths, and the leak check."""

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from clocks import FakeClock
from leaks import MARK, kill_left_over, left_over, possessions

CHECKED_FOLDERS = frozenset({"process", "system"})
"""Tests below these start processes and are checked for what they leave."""

# How long an example takes says how busy the machine is, not what is wrong.
hypothesis.settings.register_profile(
    "busy machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("busy machine")


@pytest.fixture
def clock() -> FakeClock:
    """Give a `ppdaemon.clock.Clock` that only ``advance()`` moves."""
    return FakeClock()


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


@pytest.fixture
def socket_dir() -> Iterator[Path]:
    """Give an empty folder whose path is short: a unix socket's has at most
    107 characters, which pytest's ``tmp_path`` can exceed.
    """
    folder = Path(tempfile.mkdtemp(prefix="pp-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test that leaves a process, a thread or a descriptor."""
    if request.path.relative_to(Path(__file__).parent).parts[0] not in CHECKED_FOLDERS:
        yield
        return
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    before = possessions(mark)
    yield
    offenders = left_over(before, mark)
    kill_left_over(before, mark)
    if offenders:
        pytest.fail("the test left behind: " + "; ".join(offenders), pytrace=False)
