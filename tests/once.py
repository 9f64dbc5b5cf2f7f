# SPDX-License-Identifier: BSD-3-Clause
"""Files that take seconds to create are created once for all test processes of a run."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the temporary folder that all test processes of the run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Exclude other test processes; the kernel releases the lock of one that ends."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a path that the first test process creates; the others wait. It is only read: a test
    that writes takes a copy.
    """
    base = shared_folder(tmp_path_factory)
    path, made = base / name, base / f"{name}.made"
    with locked(base / f"{name}.lock"):
        if not made.exists():
            shutil.rmtree(path, ignore_errors=True)  # half made by one that failed
            make(path)
            made.touch()
    return path
