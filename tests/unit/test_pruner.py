# SPDX-License-Identifier: BSD-3-Clause
"""Old visits leave the journal between all other writes, and a locked file only delays that."""

import asyncio
import sqlite3
from contextlib import closing

import pytest
from journalkit import rows_of

from ppdaemon.node.slots.assignment import Key
from ppdaemon.node.visits import journal as journal_module
from ppdaemon.node.visits import pruner as module
from ppdaemon.node.visits.journal import Journal
from ppdaemon.node.visits.model import Accept, JournalEntry, Reserved, Update
from ppdaemon.node.visits.pruner import JournalPruner
from ppdaemon.sqlitefile import BatchWriter, Commit
from ppdaemon.states import Outcome
from ppdaemon.visit import read_next_visit

DAY_S = 86_400.0


def fill(path, ended_tai, received_mono=-1000 * DAY_S):
    """Write an ended visit for each time."""
    with closing(Journal(path)) as journal:
        for number, tai in enumerate(ended_tai):
            visit = read_next_visit({"groupId": f"g{number}", "instrument": "DemoCam"})
            entry = JournalEntry(
                Key("DemoCam", visit.group, 0, 1),
                visit,
                received_tai=tai,
                stages={},
                received_mono=received_mono,
            )
            journal.write(Accept(Reserved(None, {}), (entry,)))
            entry.outcome, entry.final, entry.ended_tai = Outcome.SUCCEEDED, True, tai
            journal.write(Update((entry,)))


async def pruned(path, clock, while_pruning=None):
    """Prune once; return the number of rows left."""
    writer = BatchWriter(Journal(path), "journal", lambda reason: None)
    running = asyncio.create_task(writer.run())
    pruner = JournalPruner(writer, clock, keep_days=30.0, reporting=False)
    try:
        work = asyncio.create_task(pruner.prune())
        if while_pruning is not None:
            await while_pruning(writer, work)
        await work
        return await writer.call(lambda journal: len(rows_of(journal, 10_000)))
    finally:
        writer.finish()
        await running
        writer.close()


async def test_only_what_is_older_than_keep_days_is_deleted_in_small_steps(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(journal_module, "PRUNE_BATCH", 10)
    monkeypatch.setattr(module, "PAUSE_S", 0.0)
    now = clock.tai()
    fill(tmp_path / "j", [now - 31 * DAY_S] * 45 + [now - 29 * DAY_S] * 15)
    order = []

    async def write_meanwhile(writer, work):
        for number in range(3):
            done = asyncio.get_running_loop().create_future()
            writer.put(Commit(lambda journal: rows_of(journal, 1), done.set_result))
            await done
            order.append((number, work.done()))

    assert await pruned(tmp_path / "j", clock, write_meanwhile) == 15
    assert order == [(0, False), (1, False), (2, False)]


async def test_a_wall_clock_that_is_ahead_deletes_nothing_of_this_boot(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(module, "PAUSE_S", 0.0)
    fill(tmp_path / "j", [clock.tai() - 31 * DAY_S] * 3, clock.mono() - DAY_S)
    assert await pruned(tmp_path / "j", clock) == 3


async def test_a_journal_that_is_locked_is_an_error_that_changes_nothing(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(journal_module, "BUSY_S", 0.05)
    fill(tmp_path / "j", [clock.tai() - 31 * DAY_S])

    async def lock(writer, work):
        with closing(sqlite3.connect(tmp_path / "j", autocommit=True)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(sqlite3.OperationalError):
                await work
        await JournalPruner(writer, clock, keep_days=30.0, reporting=False).prune()

    with pytest.raises(sqlite3.OperationalError):
        await pruned(tmp_path / "j", clock, lock)
    with closing(Journal(tmp_path / "j")) as journal:
        assert rows_of(journal, 1) == []
