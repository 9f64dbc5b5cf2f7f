# SPDX-License-Identifier: BSD-3-Clause
"""The work of each second waits for the orders of a burst of raws, for a bounded time."""

import asyncio
from dataclasses import fields
from unittest.mock import AsyncMock, Mock

import pytest

from ppdaemon.node.control import ticker as ticker_module
from ppdaemon.node.control.ticker import Ticker


def played(urgent, folder):
    parts = {field.name: Mock() for field in fields(Ticker)}
    parts["generations"].processes.return_value = set(), set()
    parts["names"].pids = set()
    parts["folders"].journal = folder / "journal"
    parts["pump"].resend_results = AsyncMock()
    parts["exporter"].measure = AsyncMock()
    return Ticker(**parts | {"watchdog_s": None, "urgent": urgent})


async def is_called(call):
    for _ in range(200):
        if call.called:
            return True
        await asyncio.sleep(0.005)
    return False


@pytest.mark.parametrize(
    ("work", "call"),
    [
        (Ticker.run, lambda ticker: ticker.scheduler.tick),
        (Ticker.run_slowly, lambda ticker: ticker.pump.resend_results),
    ],
)
async def test_the_work_of_a_second_waits_while_raws_are_ordered_for_a_bounded_time(
    monkeypatch, tmp_path, work, call
):
    monkeypatch.setattr(ticker_module, "WAIT_S", 1000.0)  # however slow this machine is
    looks = []
    ticker = played(lambda: looks.append(1) or len(looks) < 5, tmp_path)
    running = asyncio.create_task(work(ticker))
    while len(looks) < 4:
        await asyncio.sleep(0)
        assert not call(ticker).called
    assert await is_called(call(ticker))
    running.cancel()

    monkeypatch.setattr(ticker_module, "WAIT_S", 0.01)
    ticker = played(lambda: True, tmp_path)
    running = asyncio.create_task(work(ticker))
    assert await is_called(call(ticker))
    running.cancel()


async def test_state_disk_and_journal_are_read_seldom_while_there_is_nothing_new(monkeypatch, tmp_path):
    asleep, wake = asyncio.Semaphore(0), asyncio.Semaphore(0)

    async def sleep(seconds):
        asleep.release()
        await wake.acquire()

    ticker = played(lambda: False, tmp_path)
    ticker.exporter.waiting = 0
    ticker.pump.journal.written = 0
    monkeypatch.setattr(ticker_module.asyncio, "sleep", sleep)
    running = asyncio.create_task(ticker.run_slowly())

    async def measured():
        """Return how often the next second has measured."""
        await asleep.acquire()
        count, ticker.exporter.measure.await_count = ticker.exporter.measure.await_count, 0
        return count

    assert await measured() == 1
    wake.release()
    assert await measured() == 0
    ticker.pump.journal.written = 1
    wake.release()
    assert await measured() == 1
    ticker.exporter.waiting = 1
    for _ in range(2):
        wake.release()
        assert await measured() == 1
    ticker.exporter.waiting = 0
    counts = []
    for _ in range(2 * ticker_module.READ_EVERY):
        wake.release()
        counts.append(await measured())
    assert sum(counts) == 2
    running.cancel()
