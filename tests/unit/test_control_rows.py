# SPDX-License-Identifier: BSD-3-Clause
"""Long lists in replies of the control socket do not hold the event loop."""

import asyncio
import itertools
import json
from unittest.mock import Mock

import pytest

from ppdaemon.controlserver import ROWS_AT_ONCE, Rows
from ppdaemon.node.control.handler import RequestHandler
from ppdaemon.reports import LateRow, Ok, WorkerRow, WorkersRequest
from ppdaemon.wire import encode


async def test_other_tasks_run_while_the_rows_of_many_workers_are_made_and_encoded():
    made = []

    def rows():
        for slot in range(4 * ROWS_AT_ONCE + 1):
            made.append(slot)
            yield WorkerRow(slot=slot, state="idle", epoch=1, since_s=0.0)

    async def reply():
        handler = RequestHandler(Mock(workers=rows), Mock(), Mock(), Mock(), Mock())
        return await (await handler.handle(WorkersRequest())).encoded()

    asking = asyncio.create_task(reply())
    counts = [0]
    while not asking.done():
        await asyncio.sleep(0)
        counts.append(len(made))
    data = json.loads(asking.result())["data"]
    assert max(after - before for before, after in itertools.pairwise(counts)) == ROWS_AT_ONCE
    assert [row["slot"] for row in data] == made


@pytest.mark.parametrize("count", [0, 1, ROWS_AT_ONCE, 2 * ROWS_AT_ONCE + 1])
async def test_rows_are_an_answer_as_any_other(count):
    rows = [WorkerRow(slot=slot, state="idle", epoch=1, since_s=0.5, note="é") for slot in range(count)]
    whole = encode(Ok(data=[row.model_dump(mode="json") for row in rows]))
    assert await Rows(rows).encoded() == whole


async def test_a_row_with_a_name_that_is_no_text_is_escaped():
    row = LateRow.model_construct(path="/raw/\udcff.fits")
    [data] = json.loads(await Rows([row]).encoded())["data"]
    assert data == {"path": "/raw/\\udcff.fits"}
