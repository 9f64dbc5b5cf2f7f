# SPDX-License-Identifier: BSD-3-Clause
"""The desk without workers: former lives, and orders that cross each other."""

import asyncio
from collections import Counter
from unittest.mock import Mock

from test_journal import an_entry

from ppdaemon.clock import Clock
from ppdaemon.folders import NodeFolders
from ppdaemon.messages import CancelVisit, ReserveVisit
from ppdaemon.node.desk import VisitDesk
from ppdaemon.node.journal import Journal
from ppdaemon.node.journalthread import JournalThread
from ppdaemon.node.neighbours import Neighbours
from ppdaemon.node.scheduler import Scheduler
from ppdaemon.states import Outcome
from ppdaemon.visit import read_next_visit


def test_what_no_rule_takes_any_more_is_not_tried_again(config):
    clock, folders = Clock(), NodeFolders.of(config)
    folders.no_return.mkdir(parents=True)
    entry = an_entry()
    entry.received_tai = clock.tai()

    async def play():
        journal = JournalThread(Journal(folders.journal))
        desk = VisitDesk(config, clock, journal, Scheduler(config.workers), Counter())
        await journal.call(lambda file: file.accept([entry]))
        assert await desk.answer_for_former_life() == 1
        rows = await journal.call(lambda file: file.visit("g"))
        journal.close()
        return rows

    (row,) = asyncio.run(play())
    assert (row.outcome, row.retriable) == (Outcome.INTERRUPTED, True)
    assert "; now no rule matches (survey 'S'" in row.reason


def test_a_cancellation_that_comes_while_its_visit_is_written_down_is_obeyed(config):
    clock, folders = Clock(), NodeFolders.of(config)
    visit = read_next_visit({"groupId": "g", "instrument": "DemoCam", "survey": "new"})
    words = {"origin": "relay", "sent_tai": clock.tai()}
    order = ReserveVisit(sequence=1, visit=visit, detectors=(0, 1), received_tai=clock.tai(), **words)
    cancel = CancelVisit(sequence=2, instrument="DemoCam", group="g", **words)

    async def play():
        journal = JournalThread(Journal(folders.journal))
        desk = VisitDesk(config, clock, journal, Scheduler(config.workers), Counter())
        desk.meet(Neighbours(link=Mock(), seat=Mock(), export=Mock(), decide=Mock(), look=Mock()))
        desk.taking = True
        reserving = asyncio.create_task(desk.reserve(order))
        await asyncio.sleep(0)
        assert not reserving.done()
        desk.cancel(cancel)
        await reserving
        await desk.records.flush()
        rows = await journal.call(lambda file: file.visit("g"))
        journal.close()
        return rows

    assert [row.outcome for row in asyncio.run(play())] == [Outcome.CANCELLED] * 2
