# SPDX-License-Identifier: BSD-3-Clause
"""The pump with a real journal and no other part of a node."""

import asyncio
import sqlite3
from collections import Counter
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
from test_scheduler import an_assignment
from visitworld import a_raw

from ppdaemon.clock import Clock
from ppdaemon.errors import Refused
from ppdaemon.folders import NodeFolders
from ppdaemon.messages import DetectorsOfVisit, Raw, ResultEntry, Welcome
from ppdaemon.node.control.handler import RequestHandler
from ppdaemon.node.slots.events import Finish, RawArrived
from ppdaemon.node.visits import journal as journal_module
from ppdaemon.node.visits import pump as pump_module
from ppdaemon.node.visits.chooser import PipelineChooser
from ppdaemon.node.visits.core import Visits
from ppdaemon.node.visits.journal import Journal, RowMissing
from ppdaemon.node.visits.model import (
    Accept,
    AskPermits,
    Effects,
    JournalEntry,
    MarkQuarantined,
    MarkReported,
    Reserved,
    SendResults,
    Update,
)
from ppdaemon.node.visits.openvisits import Phase, VisitDetector
from ppdaemon.node.visits.pump import Inbox, VisitPump
from ppdaemon.node.visits.reprocess import Reprocessor
from ppdaemon.reports import CatchupRequest, LateRequest
from ppdaemon.retries import WAITS_FOR_EXPORT
from ppdaemon.sqlitefile import BatchWriter, Commit
from ppdaemon.states import Outcome


@asynccontextmanager
async def running(config, tmp_path, monkeypatch):
    """A pump without the parts that its events do not need."""
    monkeypatch.setattr(journal_module, "BUSY_S", 0.01)
    writer = BatchWriter(Journal(tmp_path / "journal.sqlite"), "journal", lambda reason: None, retry_s=0.01)
    count, inbox = Counter(), Inbox()
    visits = Visits(config, count)
    nothing = SimpleNamespace()
    folders = NodeFolders.of(config)
    pump = VisitPump(
        inbox, visits, writer, nothing, nothing, nothing, nothing, nothing, folders, Clock(), count
    )
    tasks = [asyncio.create_task(pump.run()), asyncio.create_task(writer.run())]
    try:
        yield SimpleNamespace(pump=pump, inbox=inbox, visits=visits, writer=writer, count=count)
    finally:
        tasks[0].cancel()
        writer.finish()
        await asyncio.wait(tasks)
        writer.close()


async def test_a_flush_of_a_journal_that_cannot_be_written_is_refused(config, tmp_path, monkeypatch):
    async with running(config, tmp_path, monkeypatch) as node:
        with closing(sqlite3.connect(tmp_path / "journal.sqlite", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            node.inbox.post(RawArrived(a_raw()))  # its lookup must be written
            with pytest.raises(Refused, match="the journal cannot be written"):
                await asyncio.wait_for(node.pump.flush(), 20.0)
        await asyncio.wait_for(node.pump.wait_until_idle(), 20.0)
        assert node.count["raw_without_visit"] == 1


async def test_late_raws_are_shown_while_the_journal_cannot_be_written(config, tmp_path, monkeypatch):
    async with running(config, tmp_path, monkeypatch) as node:
        nothing, reprocessor = SimpleNamespace(), SimpleNamespace(pump=node.pump)
        status = SimpleNamespace(folders=NodeFolders(tmp_path, tmp_path))
        handler = RequestHandler(status, nothing, reprocessor, nothing, nothing)
        with closing(sqlite3.connect(tmp_path / "journal.sqlite", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            node.inbox.post(RawArrived(a_raw()))
            answer = await asyncio.wait_for(handler.handle(LateRequest()), 20.0)
            assert [*answer.rows] == []


@pytest.mark.parametrize(
    ("moved_back", "force", "text"), [(False, False, ""), (True, False, WAITS_FOR_EXPORT), (True, True, "")]
)
def test_the_catch_up_gets_a_quarantined_success_unless_its_spool_was_moved_back(
    config, tmp_path, monkeypatch, moved_back, force, text
):
    assignment, folders, nothing = an_assignment(), NodeFolders.of(config), SimpleNamespace()
    key = assignment.key
    entry = JournalEntry(key, assignment.visit, received_tai=2e9, outcome=Outcome.SUCCEEDED, final=True)
    if moved_back:
        (folders.spool / folders.spooled(*key).name).mkdir(parents=True)

    async def run():
        async with running(config, tmp_path, monkeypatch) as node:
            for write in (Accept(Reserved(None, {}), (entry,)), Update((entry,)), MarkQuarantined((key,))):
                await node.writer.call(lambda journal, write=write: journal.write(write))
            exporter = SimpleNamespace(has=lambda name: False)
            reprocessor = Reprocessor(folders, node.writer, nothing, node.inbox, node.pump, exporter, nothing)
            names = {"instrument": key.instrument, "group": key.group, "detectors": (key.detector,)}
            request = CatchupRequest(**names, state="running", run="R", force=force)
            return await reprocessor.mark_catchup(request)

    (row,) = asyncio.run(run())
    assert (row.text, row.attempt) == (text, None if text else key.attempt)


async def test_raws_are_searched_although_the_journal_contradicts_their_decision(
    config, tmp_path, monkeypatch
):
    assignment = an_assignment()
    key = assignment.key
    raw = Raw(
        path="/raws/8.fits",
        instrument=key.instrument,
        group=key.group,
        detector=key.detector,
        exposure=8,
        seen_tai=2e9,
    )
    async with running(config, tmp_path, monkeypatch) as node:
        unknown = JournalEntry(key, assignment.visit, received_tai=2e9)
        visit = VisitDetector(unknown, assignment, Phase.ASSIGNED, raws={8: raw})
        node.visits.open.add(visit)
        node.inbox.post(Finish(assignment, Outcome.FAILED))
        node.inbox.post(RawArrived(a_raw("another")))
        await asyncio.wait_for(node.pump.wait_until_idle(), 20.0)
        assert node.count == {"journal_contradicted": 1, "late_raws": 0, "raw_without_visit": 2}


async def test_the_journal_is_asked_for_unconfirmed_outcomes_until_there_are_none_and_after_each_write(
    config, tmp_path, monkeypatch
):
    sent, assignment = [], an_assignment()
    entry = JournalEntry(assignment.key, assignment.visit, received_tai=2e9)
    async with running(config, tmp_path, monkeypatch) as node:
        node.pump.source = SimpleNamespace(connected=True, send_results=sent.append)

        async def resend(*writes):
            """Write, and return how many outcomes each of three calls sends; none if it does not ask."""
            for write in writes:
                written = asyncio.get_running_loop().create_future()
                node.writer.put(Commit(partial(Journal.write, write=write), written.set_result))
                await written
            sent.clear()
            for _ in range(3):
                await node.pump.resend_results()
            return [len(entries) for entries in sent]

        assert await resend() == [0]
        ended = replace(entry, outcome=Outcome.SUCCEEDED, final=True)
        assert await resend(Accept(Reserved(None, {}), (entry,)), Update((ended,))) == [1, 1, 1]
        assert await resend(MarkReported((assignment.key,))) == [0]


async def loop_steps_until(condition):
    """Count the steps of the event loop until a condition is true."""
    steps = 0
    while not condition():
        await asyncio.sleep(0)
        steps += 1
    return steps


async def test_a_burst_of_events_does_not_block_the_loop(config, tmp_path, monkeypatch):
    handled = []
    async with running(config, tmp_path, monkeypatch) as node:
        monkeypatch.setattr(node.pump, "_handle", handled.append)
        for number in range(10_000):
            node.inbox.post(number)
        assert await loop_steps_until(lambda: len(handled) == 10_000) >= 100
        assert len(node.inbox) == 0
    assert handled == list(range(10_000))


async def test_a_burst_of_messages_does_not_block_the_loop(config):
    posted = []
    chooser = PipelineChooser(config, posted.append, Counter())
    message = Welcome(origin="relay", sent_tai=2e9, sequence=1, life="x", epoch=1)
    for _ in range(10_000):
        chooser.receive(message)
    task = asyncio.create_task(chooser.run())
    assert await loop_steps_until(lambda: len(posted) == 10_000) >= 100
    task.cancel()


async def test_a_visit_is_open_and_not_counted_until_its_outcome_is_in_the_journal(
    config, tmp_path, monkeypatch
):
    assignment = an_assignment()
    async with running(config, tmp_path, monkeypatch) as node:
        entry = JournalEntry(assignment.key, assignment.visit, received_tai=2e9)
        await node.writer.call(lambda journal: journal.write(Accept(Reserved(None, {}), (entry,))))
        node.visits.open.add(VisitDetector(entry, assignment, Phase.ASSIGNED))
        with closing(sqlite3.connect(tmp_path / "journal.sqlite", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            node.inbox.post(Finish(assignment, Outcome.FAILED))
            with pytest.raises(Refused):
                await asyncio.wait_for(node.pump.flush(), 20.0)
            assert (len(node.visits.open), node.pump.open) == (0, 1)
            assert not node.pump.times.outcomes
        await asyncio.wait_for(node.pump.wait_until_idle(), 20.0)
        assert node.pump.open == 0
        assert node.pump.times.outcomes == {(assignment.key.instrument, "failed"): 1}
        assert await node.writer.call(lambda journal: journal.unfinished()) == []


async def test_a_visit_whose_outcome_the_journal_contradicts_is_closed(config, tmp_path, monkeypatch):
    assignment = an_assignment()
    async with running(config, tmp_path, monkeypatch) as node:
        unknown = JournalEntry(assignment.key, assignment.visit, received_tai=2e9)
        node.visits.open.add(VisitDetector(unknown, assignment, Phase.ASSIGNED))
        node.inbox.post(Finish(assignment, Outcome.FAILED))
        await asyncio.wait_for(node.pump.wait_until_idle(), 20.0)
        assert (node.count["journal_contradicted"], node.pump.open) == (1, 0)
        assert not node.pump.times.outcomes


async def test_a_contradicted_decision_is_undone_alone(config, tmp_path, monkeypatch):
    keys = [an_assignment(detector=detector).key for detector in range(3)]
    visit, results = an_assignment().visit, []

    def ended(number):
        return JournalEntry(keys[number], visit, received_tai=2e9, outcome=Outcome.FAILED, final=True)

    async with running(config, tmp_path, monkeypatch) as node:
        opened = tuple(JournalEntry(key, visit, received_tai=2e9) for key in keys[:2])
        await node.writer.call(lambda journal: journal.write(Accept(Reserved(None, {}), opened)))
        # In one batch: the thread has not begun.
        for numbers in ((0, 2), (1,)):
            writes = [Update(tuple(map(ended, numbers)))]
            node.writer.put(Commit(partial(pump_module._write, writes), results.append))
        await asyncio.wait_for(node.pump.wait_until_idle(), 20.0)
        unfinished = await node.writer.call(lambda journal: journal.unfinished())
        assert [entry.key for entry in unfinished] == keys[:1]
    contradiction, written = results
    assert isinstance(contradiction, RowMissing)
    assert written == [None]


async def test_the_partial_spools_of_all_detectors_are_deleted_in_one_call(config, tmp_path, monkeypatch):
    ordered = {"run_until": 1.0}
    assignments = [an_assignment(detector=detector)._replace(**ordered) for detector in range(3)]
    calls = []
    monkeypatch.setattr(pump_module, "discard", calls.append)
    async with running(config, tmp_path, monkeypatch) as node:
        node.pump.source.send_results = lambda entries: None
        entries = tuple(JournalEntry(each.key, each.visit, received_tai=2e9) for each in assignments)
        await node.writer.call(lambda journal: journal.write(Accept(Reserved(None, {}), entries)))
        for entry, assignment in zip(entries, assignments, strict=True):
            node.visits.open.add(VisitDetector(entry, assignment, Phase.ASSIGNED))
            node.inbox.post(Finish(assignment, Outcome.CANCELLED))
        await asyncio.wait_for(node.pump.wait_until_idle(), 20.0)
    folders = NodeFolders.of(config)
    assert [set(each) for each in calls] == [
        {
            spool / f"DemoCam~g~{detector}~1.part"
            for detector in range(3)
            for spool in (folders.spool, folders.ramdisk_spool)
        }
    ]


def test_permits_asked_for_one_after_the_other_share_a_message(config, tmp_path, monkeypatch):
    names = {"instrument": "DemoCam", "group": "g", "attempt": 1}
    visits = [DetectorsOfVisit(**names, detectors=(detector,)) for detector in range(4)]
    asked = []

    async def run():
        async with running(config, tmp_path, monkeypatch) as node:
            node.pump.source.ask_permits = asked.append
            for visit in visits:
                node.pump._perform(Effects(actions=[AskPermits((visit,))]))
                await loop_steps_until(lambda: asked)
            assert asked == [visits[:1]]  # at once
            async with asyncio.timeout(20.0):
                await loop_steps_until(lambda: len(asked) > 1)

    asyncio.run(run())
    assert asked == [visits[:1], visits[1:]]


async def test_no_permit_is_asked_for_after_the_outcome_was_sent(config, tmp_path, monkeypatch):
    """The nodes of a Redis stream would be refused what this one has returned to them, for good."""
    names, sent = {"instrument": "DemoCam", "group": "g", "attempt": 1}, []
    async with running(config, tmp_path, monkeypatch) as node:
        node.pump.source.ask_permits = sent.extend
        node.pump.source.send_results = sent.extend
        visits = [DetectorsOfVisit(**names, detectors=(detector,)) for detector in range(2)]
        for visit in visits:  # the second one waits for others
            node.pump._perform(Effects(actions=[AskPermits((visit,))]))
            await loop_steps_until(lambda: sent)
        returned = ResultEntry(**names, detector=1, outcome=Outcome.CANCELLED, returned=True)
        node.pump._perform(Effects(actions=[SendResults((returned,))]))
        await loop_steps_until(lambda: returned in sent)
        assert sent == [*visits, returned]
        await asyncio.sleep(2 * pump_module.ASK_TOGETHER_S)
    assert sent == [*visits, returned]
