# SPDX-License-Identifier: BSD-3-Clause
"""The rows of many workers do not hold the event loop."""

import asyncio
import itertools
from unittest.mock import Mock

from ppdaemon.node.control.handler import ROWS_AT_ONCE, RequestHandler
from ppdaemon.reports import WorkerRow, WorkersRequest


def test_other_tasks_run_while_the_rows_of_many_workers_are_made():
    made = []

    def rows():
        for slot in range(4 * ROWS_AT_ONCE + 1):
            made.append(slot)
            yield WorkerRow(slot=slot, state="idle", epoch=1, since_s=0.0)

    async def ask():
        handler = RequestHandler(Mock(workers=rows), Mock(), Mock(), Mock(), Mock())
        asking = asyncio.create_task(handler.handle(WorkersRequest()))
        counts = [0]
        while not asking.done():
            await asyncio.sleep(0)
            counts.append(len(made))
        return counts, asking.result().data

    counts, data = asyncio.run(ask())
    assert max(after - before for before, after in itertools.pairwise(counts)) == ROWS_AT_ONCE
    assert [row["slot"] for row in data] == made
