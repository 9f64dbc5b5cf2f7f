# SPDX-License-Identifier: BSD-3-Clause
"""A daemon that the tests of a module share; each test has a visit of its own.

For tests that neither kill nor reconfigure it. Which workers there are, what
its counters are and what its relay has received depends on the tests before:
a test compares with what it found.
"""

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from node import running
from ramdisk import TEMPORARY

from ppdaemon.testing.node import NodeProcess

GROUPS = itertools.count(1)


@pytest.fixture(scope="module")
def changes() -> dict[str, Any]:
    """Give what the module's daemon has configured as `node.parts` takes it; a module may have its own."""
    return {}


@pytest.fixture(scope="module")
def shared_node(
    tmp_path_factory: pytest.TempPathFactory, module_leaves_nothing: None, changes: dict[str, Any]
) -> Iterator[NodeProcess]:
    """Give the module's daemon; a test takes `node`."""
    with (
        tempfile.TemporaryDirectory(prefix="pp-", dir=TEMPORARY) as sockets,
        running(tmp_path_factory.mktemp("node"), Path(sockets), **changes) as node,
    ):
        yield node


@pytest.fixture
def node(shared_node: NodeProcess) -> Iterator[NodeProcess]:
    """Give the module's daemon, without visits under way before and after the test."""
    yield shared_node
    relay = shared_node.relay
    assert relay is not None
    for group in {group for group, _ in relay.open}:  # those of a test that failed
        relay.cancel(group)
    shared_node.wait(lambda: not shared_node.status().open_visits)
    relay.open.clear()


@pytest.fixture
def group() -> str:
    """Give a group that no other test has."""
    return f"shared-{next(GROUPS)}"
