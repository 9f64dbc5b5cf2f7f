# SPDX-License-Identifier: BSD-3-Clause
"""Fixtures of central repos on both databases, for test modules that name this one in ``pytest_plugins``."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from centrals import Central, make_few, run_visit
from once import made_once, shared_folder
from postgres import PostgresServer, shared_server
from toycam import Rig, load_toy_camera

from ppdaemon.middleware import work
from ppdaemon.middleware.butlerwork import ButlerWork


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """Yield the server of all test processes."""
    with shared_server(shared_folder(tmp_path_factory)) as server:
        yield server


@pytest.fixture(scope="session", params=("SQLite", "PostgreSQL"))
def server(request: pytest.FixtureRequest) -> PostgresServer | None:
    """Return the session's server, or `None` for SQLite."""
    if request.param == "SQLite":
        return None
    found: PostgresServer = request.getfixturevalue("postgres")
    return found


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory, server: PostgresServer | None) -> Central:
    """Return a central repo to read; a test that writes must copy it."""
    if server is None:
        return Central(made_once(tmp_path_factory, "few-central", lambda root: make_few(root, None)))

    def make(root: Path) -> None:
        (root.parent / f"{root.name}.database").write_text(make_few(root, server).database)

    # Of this server: it is another one if those that used the first have ended.
    made = made_once(tmp_path_factory, f"few-central-{server.name}", make)
    pristine = Central(made, server, (made.parent / f"{made.name}.database").read_text())
    # PostgreSQL copies a database only while nobody is connected to it: each process reads its own copy.
    return pristine.copy(tmp_path_factory.mktemp("few") / "central")


@pytest.fixture
def central(tmp_path: Path, few: Central) -> Central:
    """Return a central repo for one test."""
    return few.copy(tmp_path / "central")


@pytest.fixture(scope="session")
def few_template(tmp_path_factory: pytest.TempPathFactory, few: Central) -> Path:
    """Return a template of that repo's dimensions and dataset types."""

    def make(root: Path) -> None:
        rig = Rig(root, root / "ram", few.root)
        work.build_template(rig.context)

    database = "sqlite" if few.server is None else few.server.name
    return made_once(tmp_path_factory, f"few-template-{database}", make) / "ram" / "template"


@pytest.fixture(scope="session")
def spooled(tmp_path_factory: pytest.TempPathFactory, toy_central: Path, toy_template: Path) -> Path:
    """Return a folder of spools: two attempts of detector 1 on one host, detector 2 on another."""

    def make(root: Path) -> None:
        _spool_visits(root, toy_central, toy_template)

    return made_once(tmp_path_factory, "spooled", make) / "spool"


def _spool_visits(root: Path, toy_central: Path, toy_template: Path) -> None:
    for host, detector, attempts in (("a", 1, (1, 2)), ("b", 2, (1,))):
        types = {"types": ["toy_.*", ".*_config", "regionTimeInfo"]}
        rig = Rig(root / host, root / host / "ram", toy_central, export=types)
        shutil.copytree(toy_template, rig.context.template)
        assert rig.config.butler is not None
        worker = ButlerWork(rig.context, rig.config.butler, load_toy_camera)
        for attempt in attempts:
            run_visit(rig, worker, detector, attempt=attempt)
            worker.reset()
        worker.close()
        shutil.copytree(rig.context.spool, root / "spool", dirs_exist_ok=True)


@pytest.fixture
def spools(tmp_path: Path, spooled: Path) -> list[Path]:
    """Return copies of the spools: detector 1, its second attempt, detector 2."""
    shutil.copytree(spooled, tmp_path / "spool")
    return sorted((tmp_path / "spool").iterdir())
