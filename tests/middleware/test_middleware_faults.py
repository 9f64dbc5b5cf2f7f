# SPDX-License-Identifier: BSD-3-Clause
"""Databases that fail under a worker: the local registry, the central repo."""

import shutil
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy.exc import DatabaseError
from toycam import MakeRig, Rig

from ppdaemon.errors import VisitFailed
from ppdaemon.middleware.butlerwork import ButlerWork
from ppdaemon.states import Outcome

pytest_plugins = ("toyfixtures",)


@pytest.fixture
def with_registry(rigs: MakeRig) -> tuple[Rig, ButlerWork]:
    """Return a worker that has opened its registry in a visit."""
    rig, worker = rigs(engine={"kind": "separable"})
    worker.prepare(rig.order())
    worker.reset()
    return rig, worker


def registry_of(repo: Path) -> Path:
    (registry,) = repo.rglob("*.sqlite3")
    return registry


def test_a_corrupt_local_registry_costs_one_visit_and_is_rebuilt(
    with_registry: tuple[Rig, ButlerWork],
) -> None:
    """Fault 44: the local registry is corrupt."""
    rig, worker = with_registry
    registry = registry_of(rig.context.repo)
    registry.write_bytes(b"\0" * registry.stat().st_size)
    with pytest.raises((VisitFailed, DatabaseError), match=r"malformed|not a database|disk image"):
        worker.prepare(rig.order())
    worker.reset()
    assert worker.prepare(rig.order()).pipeline == "Full"


def test_a_locked_local_registry_is_replaced_with_its_repo(with_registry: tuple[Rig, ButlerWork]) -> None:
    """Fault 44: a lock on the old repo does not reach the fresh copy."""
    rig, worker = with_registry
    lock = sqlite3.connect(registry_of(rig.context.repo), isolation_level=None)
    try:
        lock.execute("BEGIN EXCLUSIVE")
        worker.reset()
        assert worker.prepare(rig.order()).pipeline == "Full"
    finally:
        lock.close()


def test_a_preload_without_central_repo_is_retriable(
    rigs: MakeRig, toy_central: Path, tmp_path: Path
) -> None:
    """Fault 45: the central repo is down during preload, then it is back."""
    central = tmp_path / "central"
    rig, worker = rigs(central)
    with pytest.raises(VisitFailed) as caught:
        worker.prepare(rig.order())
    assert (caught.value.outcome, caught.value.retriable) == (Outcome.PRELOAD_FAILED, True)
    worker.reset()
    shutil.copytree(toy_central, central)
    assert worker.prepare(rig.order()).pipeline == "Full"
