# SPDX-License-Identifier: BSD-3-Clause
"""The records: what is on the disk before somebody acts on it."""

import asyncio
import sqlite3
from collections import Counter

from test_journal import a_raw, an_entry

from ppdaemon.folders import NodeFolders
from ppdaemon.messages import Pipelines
from ppdaemon.node.assignment import Assignment
from ppdaemon.node.docket import OpenVisit
from ppdaemon.node.journal import Journal
from ppdaemon.node.journalthread import JournalThread
from ppdaemon.node.latetable import LateTable
from ppdaemon.node.records import Records
from ppdaemon.states import Outcome, Stage


def test_a_raw_that_comes_late_while_the_records_are_written_is_kept(config):
    folders, count, entry = NodeFolders.of(config), Counter(), an_entry()
    visit = OpenVisit(entry, Assignment(entry.key, entry.visit, Pipelines(), 1e9, 1e9))

    async def play():
        journal = JournalThread(Journal(folders.journal))
        records = Records(folders, journal, count)
        records.meet(lambda results: None, lambda spool: None)
        await journal.call(lambda file: file.accept([entry]))
        records.docket.add(visit)
        records.docket.reached(visit, Stage.PREPARED, 7.0)
        writing = asyncio.create_task(records.flush())
        await asyncio.sleep(0)
        assert not writing.done()
        records.docket.end(visit, Outcome.SUCCEEDED, "", 9.0, final=True)
        records.unclaimed(a_raw(exposure=7))
        await writing
        await records.flush()
        late = await journal.call(lambda file: file.late.rows(10))
        journal.close()
        return late

    (row,) = asyncio.run(play())
    assert (row.exposure, row.outcome, count["late_raws"]) == (7, Outcome.SUCCEEDED, 1)


def test_late_raws_are_kept_until_the_journal_takes_them(config, monkeypatch):
    folders, count, entry = NodeFolders.of(config), Counter(), an_entry()
    note, refusals = LateTable.note, [sqlite3.OperationalError("database is locked")]

    def refusing(table, raws):
        if refusals:
            raise refusals.pop()
        return note(table, raws)

    monkeypatch.setattr(LateTable, "note", refusing)

    async def play():
        journal = JournalThread(Journal(folders.journal))
        records = Records(folders, journal, count)
        await journal.call(lambda file: file.accept([entry]))
        entry.outcome, entry.final = Outcome.NO_IMAGE, True
        await journal.call(lambda file: file.update([entry]))
        for exposure in (7, 8):
            records.unclaimed(a_raw(exposure=exposure))
        await records.flush()
        assert "database is locked" in records.problem
        writing = asyncio.create_task(records.keep_written())
        async with asyncio.timeout(20.0):
            while not (rows := await journal.call(lambda file: file.late.rows(10))):
                await asyncio.wait([writing], timeout=0.01)
        writing.cancel()
        problem = records.problem
        journal.close()
        return rows, problem

    rows, problem = asyncio.run(play())
    assert ([row.exposure for row in rows], problem) == ([8, 7], "")


def test_of_raws_that_wait_for_their_lookup_the_oldest_are_passed_over(config, monkeypatch):
    monkeypatch.setattr("ppdaemon.node.records.MOST_UNCLAIMED", 3)
    folders, count, entry = NodeFolders.of(config), Counter(), an_entry()
    entry.outcome, entry.final = Outcome.NO_IMAGE, True

    async def play():
        journal = JournalThread(Journal(folders.journal))
        records = Records(folders, journal, count)
        await journal.call(lambda file: (file.accept([entry]), file.update([entry])))
        for exposure in range(1, 6):
            records.unclaimed(a_raw(exposure=exposure))
        await records.flush()
        rows = await journal.call(lambda file: file.late.rows(10))
        journal.close()
        return [row.exposure for row in rows]

    assert asyncio.run(play()) == [5, 4, 3]
