# SPDX-License-Identifier: BSD-3-Clause
"""Fixtures of all tests: a fake clock, short paths, no long waits, and the leak check."""

import asyncio
import gc
import inspect
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from clocks import FakeClock
from leaks import MARK, kill_left_over, left_over, possessions
from longwaits import refuse_long_waits
from nolsst import NoLsst
from once import made_once
from ramdisk import TEMPORARY

DEMO_CENTRAL_S = 400
CHECKED_FOLDERS = frozenset({"process", "system"})
"""Tests below these start processes and are checked for what they leave."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of this suite."""
    parser.addoption("--without-lsst", action="store_true", help="Fail where LSST code is imported.")


def pytest_configure(config: pytest.Config) -> None:
    """Keep files in memory, and refuse LSST code if that was requested; in all processes of the run."""
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(TEMPORARY))
    if config.getoption("--without-lsst"):
        assert "lsst" not in sys.modules
        sys.meta_path.insert(0, NoLsst())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests of the demo's central repo as slow, and extend their time limit: one of them creates it."""
    for item in items:
        if "demo_central" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
            if not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(DEMO_CENTRAL_S))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine in an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    asyncio.run(pyfuncitem.obj(**arguments))
    return True


def pytest_collection_finish() -> None:
    """Exclude imported modules from later garbage collections, which tests request by the hundred."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Delete the files of a successful run, which are in memory; those of a failed run are needed
    to find the cause.
    """
    if exitstatus == pytest.ExitCode.OK and "PYTEST_XDIST_WORKER" not in os.environ:
        base: Path = session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
        if base.is_relative_to(TEMPORARY):
            shutil.rmtree(base, ignore_errors=True)


# The duration of an example depends on the load of the machine.
hypothesis.settings.register_profile(
    "busy machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("busy machine")


@pytest.fixture
def clock() -> FakeClock:
    """Return a `ppdaemon.clock.Clock` that only ``advance()`` moves."""
    return FakeClock()


@pytest.fixture(scope="session")
def demo_detectors() -> tuple[int, ...]:
    """Return the detectors for which `demo_central` has calibrations."""
    return (4,)


@pytest.fixture(scope="session")
def demo_central(tmp_path_factory: pytest.TempPathFactory, demo_detectors: tuple[int, ...]) -> Path:
    """Return the demo's central repo with templates in r, a copy for this test process.

    A test writes into separate output runs and takes an alert database from
    `ppdaemon.demo.central.make_apdb`.
    """
    from ppdaemon.demo.central import make_central_repo
    from ppdaemon.demo.keptcentral import copy_central_repo

    name = f"demo-{'-'.join(map(str, demo_detectors))}"
    made = made_once(
        tmp_path_factory,
        name,
        # One process for each core: the other test processes wait.
        lambda root: make_central_repo(
            root, bands=("r",), detectors=demo_detectors, processes=2, progress=lambda line: None
        ),
    )
    central = tmp_path_factory.mktemp("demo") / "central"
    copy_central_repo(made, central)
    return central


@pytest.fixture
def socket_dir() -> Iterator[Path]:
    """Return an empty folder whose path is short."""
    folder = Path(tempfile.mkdtemp(prefix="pp-", dir=TEMPORARY))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def no_long_waits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that sleeps for long, unless it is marked as slow or with a reason."""
    if not any(request.node.get_closest_marker(name) for name in ("slow", "waits")):
        refuse_long_waits(monkeypatch)


@pytest.fixture(scope="module", autouse=True)
def module_leaves_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the last test of a module whose fixtures leave something behind."""
    with pytest.MonkeyPatch.context() as patch:
        yield from _checked(request, patch)


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test that leaves a process, a thread or a descriptor."""
    yield from _checked(request, monkeypatch)


def _checked(request: pytest.FixtureRequest, patch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.path.relative_to(Path(__file__).parent).parts[0] not in CHECKED_FOLDERS:
        yield
        return
    mark = uuid.uuid4().hex
    patch.setenv(MARK, mark)
    before = possessions(mark)
    yield
    offenders = left_over(before, mark)
    kill_left_over(before, mark)
    if offenders:
        pytest.fail(f"the {request.scope} left behind: " + "; ".join(offenders), pytrace=False)
