# SPDX-License-Identifier: BSD-3-Clause
"""The records: what is on the disk before somebody acts on it."""

import asyncio
from collections import Counter

from test_journal import a_raw, an_entry

from ppdaemon.folders import NodeFolders
from ppdaemon.messages import Pipelines
from ppdaemon.node.assignment import Assignment
from ppdaemon.node.docket import OpenVisit
from ppdaemon.node.journal import Journal
from ppdaemon.node.journalthread import JournalThread
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
