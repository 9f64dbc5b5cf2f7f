# SPDX-License-Identifier: BSD-3-Clause
"""How a node stops, and what it logs, if its journal is in trouble; nothing runs but its thread."""

import asyncio
from collections import Counter
from types import SimpleNamespace

from ppdaemon.clock import Clock
from ppdaemon.node.parts import Node
from ppdaemon.node.supervisor import Supervisor
from ppdaemon.node.visits.journal import Journal
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
