# SPDX-License-Identifier: BSD-3-Clause
"""A daemon that the tests of a module share, each with its own visit; the client of a relay.

The daemon is for tests that neither kill nor reconfigure it. Its workers, its counters and the messages of
its relay depend on earlier tests: a test compares with the state at its start.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from node import running_for_module

from ppdaemon.testing.node import NodeProcess
from ppdaemon.testing.played import ClientSockets
from ppdaemon.testing.relay import RelayProcess, SubmitClient

GROUPS = itertools.count(1)


@pytest.fixture(scope="module")
def changes() -> dict[str, Any]:
    """Return the module's changes to the configuration as `node.parts` takes them; a module may
    override this.
    """
    return {}


@pytest.fixture(scope="module")
def shared_node(
    tmp_path_factory: pytest.TempPathFactory, module_leaves_nothing: None, changes: dict[str, Any]
) -> Iterator[NodeProcess]:
    """Return the module's daemon; a test takes `node`."""
    with running_for_module(tmp_path_factory, **changes) as node:
        yield node


@pytest.fixture
def node(shared_node: NodeProcess) -> Iterator[NodeProcess]:
    """Return the module's daemon, without open visits before and after the test."""
    yield shared_node
    relay = shared_node.relay
    assert relay is not None
    for group in {group for group, _ in relay.open}:  # those of a test that failed
        relay.cancel(group)
    shared_node.wait(lambda: not shared_node.status().open_visits)
    relay.open.clear()


@pytest.fixture
def wires() -> Iterator[ClientSockets]:
    """Return the sockets of clients and nodes that a test plays."""
    with ClientSockets() as sockets:
        yield sockets


@pytest.fixture
def client(relay: RelayProcess, wires: ClientSockets) -> SubmitClient:
    """Return a client of the module's relay."""
    return SubmitClient(wires, relay.submit)


@pytest.fixture
def group() -> str:
    """Return a group that no other test has."""
    return f"shared-{next(GROUPS)}"
