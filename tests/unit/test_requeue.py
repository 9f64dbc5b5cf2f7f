# SPDX-License-Identifier: BSD-3-Clause
"""What may be tried again, and looks for raws that are shared by a visit's detectors."""

import asyncio
from unittest.mock import AsyncMock, Mock

import pytest
from test_journal import an_entry, ended

from ppdaemon.clock import Clock
from ppdaemon.errors import Refused
from ppdaemon.folders import NodeFolders
from ppdaemon.node.journal import Journal
from ppdaemon.node.journalthread import JournalThread
from ppdaemon.node.lastlook import LastLooks
from ppdaemon.node.requeue import WITHDRAWN, Requeue, objection
from ppdaemon.states import Outcome


def an_ended_one(outcome=Outcome.NO_IMAGE, **changes):
    entry = ended(an_entry(), outcome)
    for name, value in changes.items():
        setattr(entry, name, value)
    return entry


@pytest.mark.parametrize("outcome", sorted(set(Outcome) - {Outcome.SUCCEEDED}))
def test_what_did_not_succeed_may_be_tried_again(outcome):
    assert objection(an_ended_one(outcome), force=False) == ""


def test_a_partial_success_may_be_tried_again():
    assert objection(an_ended_one(Outcome.SUCCEEDED, partial=True), force=False) == ""


@pytest.mark.parametrize("force", [False, True])
def test_a_success_and_what_is_under_way_are_never_tried_again(force):
    assert objection(an_ended_one(Outcome.SUCCEEDED), force=force) == "it has succeeded"
    assert objection(an_entry(), force=force) == "it is under way"
    assert objection(an_ended_one(Outcome.CRASHED, final=False), force=force) == "it is under way"


def test_what_may_be_done_twice_needs_force_which_says_what_it_risks():
    permanent = an_ended_one(Outcome.CRASHED, no_return="alert database")
    text = objection(permanent, force=False)
    assert "point of no return (alert database)" in text
    assert "twice; --force accepts that" in text
    assert objection(permanent, force=True) == ""
    moved = an_ended_one(Outcome.CANCELLED, reason=WITHDRAWN)
    assert "two nodes would process it; --force accepts that" in objection(moved, force=False)
    assert objection(moved, force=True) == ""


def granted(config, outcome, spool, look):
    """Ask for another attempt; return what was taken, why not, and the journal's rows."""
    folders, take = NodeFolders.of(config), AsyncMock()

    async def play():
        journal = JournalThread(Journal(folders.journal))
        requeue = Requeue(
            folders=folders,
            clock=Clock(),
            journal=journal,
            flush=AsyncMock(),
            withdraw=Mock(return_value=True),
            export=Mock(),
            look=lambda *args: look(journal),
            take=take,
        )
        await journal.call(lambda file: (file.accept([an_entry()]), file.update([an_ended_one(outcome)])))
        if spool:
            folders.spooled(*an_entry().key).mkdir(parents=True)
        error = None
        try:
            await requeue.grant("g", None, force=False)
        except (OSError, Refused) as raised:
            error = raised
        rows = await journal.call(lambda file: file.visit("g"))
        journal.close()
        return [entry.key.attempt for call in take.call_args_list for entry in call.args[0]], error, rows

    return asyncio.run(play())


def test_what_the_relay_asks_for_again_meanwhile_is_left_to_it(config):
    async def asked_again(journal):
        assert await journal.call(lambda file: file.accept([an_entry(attempt=5)])) == [True]

    taken, error, rows = granted(config, Outcome.CANCELLED, False, asked_again)
    assert (taken, [row.attempt for row in rows]) == ([], [1, 5])
    assert "the relay has asked for it again" in str(error)


def test_what_is_promised_is_taken_though_old_outputs_cannot_be_discarded(config, monkeypatch):
    refused = Mock(side_effect=OSError(39, "Directory not empty"))
    monkeypatch.setattr("ppdaemon.node.requeue._discard", refused)
    taken, error, rows = granted(config, Outcome.FAILED, True, AsyncMock())
    assert (taken, [row.attempt for row in rows]) == ([2], [1, 2])
    assert "not empty" in str(error)


class Looks:
    """Last looks that a test lets end."""

    def __init__(self):
        self.taken = []
        self.ended = []
        self.gate = asyncio.Event()
        self.tasks = []
        self.looks = LastLooks(self.look, self.ended.append, self.run)

    async def look(self, visit, detectors, announced_tai):
        self.taken.append((visit.group, detectors, announced_tai))
        await self.gate.wait()

    def run(self, coroutine):
        self.tasks.append(asyncio.ensure_future(coroutine))

    async def turn(self):
        await asyncio.sleep(0)
        await asyncio.sleep(0)


def test_one_look_serves_all_detectors_whose_time_is_over_at_once():
    async def play():
        world = Looks()
        entries = [an_entry(detector=detector) for detector in range(205)]
        for entry in entries:
            world.looks.want(entry)
        await world.turn()
        assert world.taken == [("g", set(range(205)), 5.0)]
        assert world.ended == []
        world.gate.set()
        await asyncio.gather(*world.tasks)
        assert world.ended == entries

    asyncio.run(play())


def test_whoever_comes_during_a_look_gets_the_next_one():
    async def play():
        world = Looks()
        world.looks.want(an_entry())
        await world.turn()
        for detector in (1, 2):
            world.looks.want(an_entry(detector=detector))
        world.looks.want(an_entry("other"))
        await world.turn()
        world.gate.set()
        await asyncio.gather(*world.tasks)
        assert world.taken == [("g", {0}, 5.0), ("other", {0}, 5.0), ("g", {1, 2}, 5.0)]
        world.looks.want(an_entry())
        await asyncio.gather(*world.tasks)
        assert (len(world.taken), len(world.ended)) == (4, 5)

    asyncio.run(play())


def test_a_look_that_fails_bars_no_later_one():
    async def play():
        world = Looks()

        async def fail(visit, detectors, announced_tai):
            raise RuntimeError("disk on fire")

        world.looks = LastLooks(fail, world.ended.append, world.run)
        for _ in range(2):
            world.looks.want(an_entry())
            await asyncio.gather(*world.tasks, return_exceptions=True)
        assert [type(task.exception()) for task in world.tasks] == [RuntimeError] * 2

    asyncio.run(play())
