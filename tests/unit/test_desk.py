# SPDX-License-Identifier: BSD-3-Clause
"""The desk without workers: former lives, and orders that cross each other."""

import asyncio
import sqlite3
from collections import Counter
from contextlib import closing
from unittest.mock import AsyncMock, Mock

import pytest
from test_journal import a_raw, an_entry

from ppdaemon.clock import Clock
from ppdaemon.folders import NodeFolders
from ppdaemon.messages import CancelVisit, ReserveVisit
from ppdaemon.node.desk import VisitDesk
from ppdaemon.node.events import Finish
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


def test_a_raw_that_comes_between_two_attempts_is_the_next_ones(config):
    async def play(desk, journal, crash):
        crash()
        desk.raw_arrived(a_raw(exposure=7))
        await desk.records.flush()
        (visit,) = desk.docket
        assert visit.raws.keys() == {7}
        return await journal.call(lambda file: file.late.rows(10))

    assert between_attempts(config, play) == []


def test_a_cancellation_between_two_attempts_is_in_the_journal(config):
    async def play(desk, journal, crash):
        writing = asyncio.create_task(desk.records.keep_written())
        await asyncio.sleep(0)
        # In one turn of the loop: the next attempt has no row yet.
        crash()
        desk.cancel(CancelVisit(sequence=2, instrument="DemoCam", group="g", origin="relay", sent_tai=9.0))
        await settled(desk)
        writing.cancel()
        return await journal.call(lambda file: (file.visit("g"), file.unfinished()))

    rows, unfinished = between_attempts(config, play)
    assert [row.outcome for row in rows] == [Outcome.CRASHED, Outcome.CANCELLED]
    assert unfinished == []


def test_an_outcome_is_in_the_journal_before_it_is_told(config):
    async def play(desk, journal, crash):
        told = []

        def tell(entries):
            with closing(sqlite3.connect(NodeFolders.of(config).journal)) as other:
                rows = other.execute("SELECT attempt, outcome FROM attempt").fetchall()
            told.extend((entry.attempt, (entry.attempt, entry.outcome) in rows) for entry in entries)

        desk.records._tell_results = tell
        writing = asyncio.create_task(desk.records.keep_written())
        await asyncio.sleep(0)
        crash()
        desk.cancel(CancelVisit(sequence=2, instrument="DemoCam", group="g", origin="relay", sent_tai=9.0))
        await settled(desk)
        writing.cancel()
        return told

    assert between_attempts(config, play) == [(2, True)]


def test_a_raw_that_comes_before_an_attempt_that_cannot_be_written_is_late(config, monkeypatch):
    async def play(desk, journal, crash):
        monkeypatch.setattr(Journal, "retry", Mock(side_effect=sqlite3.OperationalError("the disk is full")))
        crash()
        desk.raw_arrived(a_raw(exposure=7))
        await settled(desk)
        return await journal.call(lambda file: (file.visit("g"), file.late.rows(10)))

    rows, late = between_attempts(config, play)
    assert [row.outcome for row in rows] == [Outcome.CRASHED]
    assert [(row.exposure, row.outcome) for row in late] == [(7, Outcome.CRASHED)]


@pytest.mark.parametrize(
    ("detectors", "exposures", "outcomes"),
    [
        (None, [], [Outcome.CANCELLED]),
        (None, [7], [Outcome.CRASHED, None]),  # it was taken all the same
        ((0,), [7], [Outcome.CANCELLED]),  # another node may have it
        ((1,), [], [Outcome.CRASHED, None]),
    ],
)
def test_what_was_cancelled_while_its_worker_was_stopped_is_not_tried_again(
    config, detectors, exposures, outcomes
):
    async def play(desk, journal, crash):
        for exposure in exposures:
            desk.raw_arrived(a_raw(exposure=exposure))
        desk.cancel(
            CancelVisit(
                sequence=2, instrument="DemoCam", group="g", detectors=detectors, origin="relay", sent_tai=9.0
            )
        )
        crash()
        await settled(desk)
        return await journal.call(lambda file: file.visit("g"))

    assert [row.outcome for row in between_attempts(config, play)] == outcomes


async def settled(desk):
    """Let all end that runs beside, and write what comes of it."""
    while desk.records._tasks:
        await asyncio.wait(desk.records._tasks)
    await desk.records.flush()


def between_attempts(config, play):
    """Return what `play` does with a desk one of whose visits will be tried again."""
    clock, folders = Clock(), NodeFolders.of(config)
    folders.no_return.mkdir(parents=True)
    folders.spool.mkdir(parents=True)
    visit = read_next_visit({"groupId": "g", "instrument": "DemoCam", "survey": "new"})
    words = {"origin": "relay", "sent_tai": clock.tai()}
    order = ReserveVisit(sequence=1, visit=visit, detectors=(0,), received_tai=clock.tai(), **words)

    async def played():
        journal = JournalThread(Journal(folders.journal))
        desk = VisitDesk(config, clock, journal, Scheduler(config.workers), Counter())
        neighbours = Mock(look=AsyncMock())
        desk.meet(neighbours)
        desk.taking = True
        await desk.reserve(order)
        (opened,) = desk.docket
        desk._scheduler.remove(opened.entry.key)
        desk.assign(opened.assignment, 3, 4711)

        def crash():
            desk.perform(Finish(opened.assignment, Outcome.CRASHED, "", retriable=True), Mock())

        try:
            async with asyncio.timeout(20.0):
                return await play(desk, journal, crash)
        finally:
            journal.close()

    return asyncio.run(played())
