# SPDX-License-Identifier: BSD-3-Clause
"""How a node stops and what it logs if its journal is in trouble, and what it refuses meanwhile."""

import asyncio
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import AsyncMock, MagicMock, Mock

import pytest

from ppdaemon.clock import Clock
from ppdaemon.configfile import ConfigFile
from ppdaemon.errors import Refused
from ppdaemon.folders import NodeFolders
from ppdaemon.node.control.handler import RequestHandler
from ppdaemon.node.parts import NodeParts
from ppdaemon.node.supervisor import Supervisor
from ppdaemon.node.visits.journal import Journal
from ppdaemon.node.visits.model import AcceptanceChanged
from ppdaemon.reports import DrainRequest, Resumed, ResumeRequest
from ppdaemon.sqlitefile import BatchWriter


def file_of(config):
    return ConfigFile(Path("node.yaml"), config, {(): 1})


async def test_a_stop_does_not_wait_for_a_journal_that_hangs(config, tmp_path):
    journal = Journal(tmp_path / "journal.sqlite")
    supervisor = Supervisor(file_of(config), Mock(), {}, Clock(), None, None)
    hanging = BatchWriter(journal, "journal", lambda reason: None)  # its thread never begins
    node = SimpleNamespace(journal=hanging, source=SimpleNamespace(connected=True))
    await asyncio.wait_for(supervisor._wait_until_reported(node), 20.0)
    hanging.close()


def test_a_journal_that_cannot_be_written_is_logged_once(caplog):
    node = SimpleNamespace(journal=SimpleNamespace(problem=""), _count=Counter())
    for _ in range(3):
        NodeParts._journal_failed(node, "the journal cannot be written: disk full")
        node.journal.problem = "the journal cannot be written: disk full"
    assert caplog.messages == [
        "the journal cannot be written: disk full; new visits are refused until it can be written"
    ]
    assert node._count == {"journal_error": 3}


async def test_a_second_stop_skips_the_waiting(config):
    supervisor = Supervisor(file_of(config), Mock(), {}, Clock(), Mock(), None)
    node = MagicMock()
    node.pool.slots = {}
    node.pump.wait_until_idle = asyncio.Event().wait  # never ends
    node.status.config = config
    node.exporter.waiting = node.source.connected = 0
    supervisor.stop()
    supervisor.stop()
    await asyncio.wait_for(supervisor._drain(node), 5.0)


@pytest.mark.parametrize("request_", [DrainRequest(), ResumeRequest()])
def test_a_node_that_stops_does_not_change_its_acceptance(config, request_):
    status = SimpleNamespace(state="stopping", config=config, clock=Clock())
    reprocessor, relay = Mock(), Mock()
    with pytest.raises(Refused, match="the daemon is stopping"):
        asyncio.run(RequestHandler(status, Mock(), reprocessor, relay, Mock()).handle(request_))
    assert (status.state, reprocessor.mock_calls, relay.mock_calls) == ("stopping", [], [])


def test_a_drain_while_the_node_starts_counts_when_it_would_accept_visits(config):
    """The start may wait for hours for the central repo."""
    folders = NodeFolders.of(config)
    folders.state.mkdir(parents=True, exist_ok=True)
    status = SimpleNamespace(state="starting", folders=folders, clock=Clock(), drained_since=None)
    status.offer, status.resumed = SimpleNamespace(try_journal=AsyncMock()), lambda _: Resumed()
    reprocessor, relay = Mock(), Mock()
    handler = RequestHandler(status, Mock(), reprocessor, relay, Mock())
    asyncio.run(handler.handle(DrainRequest()))
    assert folders.drained_since() == pytest.approx(status.drained_since, abs=1e-3)
    assert (status.state, reprocessor.mock_calls, relay.mock_calls) == ("starting", [], [])
    asyncio.run(handler.handle(ResumeRequest()))
    assert (folders.drained_since(), status.drained_since) == (None, None)


@pytest.mark.parametrize(("accepting", "state"), [(True, "running"), (False, "draining")])
def test_a_running_node_drains_and_resumes(accepting, state):
    status, reprocessor, relay = SimpleNamespace(state="running", drained_since=None), Mock(), Mock()
    RequestHandler(status, Mock(), reprocessor, relay, Mock()).set_accepting(accepting)
    reprocessor.inbox.post.assert_called_once_with(AcceptanceChanged(accepting))
    relay.set_accepting.assert_called_once_with(accepting)
    assert status.state == state
