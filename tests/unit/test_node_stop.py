# SPDX-License-Identifier: BSD-3-Clause
"""How a node stops and what it logs if its journal is in trouble, and what it refuses meanwhile."""

import asyncio
from collections import Counter
from types import SimpleNamespace
from unittest.mock import MagicMock, Mock

import pytest

from ppdaemon.clock import Clock
from ppdaemon.errors import Refused
from ppdaemon.node.control.answers import Answers
from ppdaemon.node.parts import Node
from ppdaemon.node.supervisor import Supervisor
from ppdaemon.node.visits.journal import Journal
from ppdaemon.node.visits.turn import AcceptanceChanged
from ppdaemon.sqlitefile import BatchWriter


def test_a_stop_does_not_wait_for_a_journal_that_gives_no_answer(config, tmp_path):
    journal = Journal(tmp_path / "journal.sqlite")

    async def run():
        supervisor = Supervisor(config, lambda: config, {}, Clock(), None, None)
        hanging = BatchWriter(journal, "journal", lambda reason: None)  # its thread never begins
        node = SimpleNamespace(journal=hanging, relay=SimpleNamespace(connected=True))
        await asyncio.wait_for(supervisor._until_reported(node), 20.0)
        hanging.close()

    asyncio.run(run())


def test_a_journal_that_cannot_be_written_is_logged_once(caplog):
    node = SimpleNamespace(journal=SimpleNamespace(problem=""), _count=Counter())
    for _ in range(3):
        Node._journal_failed(node, "the journal cannot be written: disk full")
        node.journal.problem = "the journal cannot be written: disk full"
    assert caplog.messages == ["the journal cannot be written: disk full; no visits are taken"]
    assert node._count == {"journal_error": 3}


def test_a_second_stop_waits_for_nothing_that_is_under_way(config):
    async def run():
        supervisor = Supervisor(config, lambda: config, {}, Clock(), Mock(), None)
        node = MagicMock()
        node.pool.slots = {}
        node.pump.settle = asyncio.Event().wait  # never ends
        node.status.config = config
        node.exporter.waiting = node.relay.connected = 0
        supervisor.stop()
        supervisor.stop()
        await asyncio.wait_for(supervisor._drain(node), 5.0)

    asyncio.run(run())


@pytest.mark.parametrize("state", ["starting", "stopping"])
@pytest.mark.parametrize("taking", [True, False])
def test_a_node_that_starts_or_stops_changes_not_what_it_takes(state, taking):
    status, facts, relay = SimpleNamespace(state=state), Mock(), Mock()
    answers = Answers(status, Mock(), Mock(), facts, relay, Mock())
    with pytest.raises(Refused, match=f"the daemon is {state}"):
        answers.take(taking)
    assert (status.state, facts.mock_calls, relay.mock_calls) == (state, [], [])


@pytest.mark.parametrize(("taking", "state"), [(True, "running"), (False, "draining")])
def test_a_running_node_drains_and_resumes(taking, state):
    status, facts, relay = SimpleNamespace(state="running"), Mock(), Mock()
    Answers(status, Mock(), Mock(), facts, relay, Mock()).take(taking)
    facts.inbox.post.assert_called_once_with(AcceptanceChanged(taking))
    relay.set_taking.assert_called_once_with(taking)
    assert status.state == state
