# SPDX-License-Identifier: BSD-3-Clause
"""In which order the pool handles the messages of many workers, with real channels."""

import asyncio
import contextlib
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from unittest.mock import Mock

import pytest

from ppdaemon.messages import Ready, Reaped
from ppdaemon.node.processes.child import ChildProcess
from ppdaemon.node.slots import pool as pool_module
from ppdaemon.node.slots.pool import HELD_S, READ_AT_ONCE, SETTLE_S, Pool
from ppdaemon.wire import encode

WORKERS = 3 * READ_AT_ONCE + 1


class Played:
    """A pool with channels, and the slots whose messages it has handled, in order."""

    def __init__(self, pool: Pool, ends: list[socket.socket]):
        self.pool, self.ends = pool, ends
        self.handled: list[int] = []
        pool.handle = lambda number, event: self.handled.append(number)

    def send(self, slot: int) -> None:
        self.ends[slot].send(encode(Ready(pid=1)))

    async def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 20.0
        while not condition():
            assert time.monotonic() < deadline, self.handled
            await asyncio.sleep(0)


@pytest.fixture
def play(config, clock):
    @contextlib.contextmanager
    def played() -> Iterator[Played]:
        pool = Pool(config, clock, lambda order: True, lambda action: None, Counter())
        with contextlib.ExitStack() as stack:
            stack.callback(pool.close)
            ends = []
            for slot in range(WORKERS):
                ours, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                ours.setblocking(False)
                child = ChildProcess(0, ours, os.eventfd(0), slot, is_direct_child=True)
                pool._watch(child)
                stack.callback(end.close)
                stack.callback(child.close)
                stack.callback(pool._unwatch, child)
                ends.append(end)
            yield Played(pool, ends)

    return played


async def test_other_tasks_run_between_the_messages_of_many_workers(play):
    with play() as played:
        for slot in range(WORKERS):
            played.send(slot)
        counts = []
        while len(played.handled) < WORKERS:
            before = len(played.handled)
            await asyncio.sleep(0)
            counts.append(len(played.handled) - before)
        assert max(counts) <= READ_AT_ONCE
        assert sorted(played.handled) == list(range(WORKERS))


async def test_workers_that_send_without_end_do_not_stop_another(play):
    with play() as played:
        played.send(WORKERS - 1)

        def flood() -> bool:
            for slot in range(WORKERS - 1):
                played.send(slot)
            return WORKERS - 1 in played.handled

        await played.until(flood)


async def test_messages_wait_while_raws_are_checked(play, monkeypatch):
    monkeypatch.setattr(pool_module, "HELD_S", 1000.0)  # however slow this machine is
    with play() as played:
        checking = True
        played.pool.urgent = lambda: checking
        played.send(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert played.handled == []
        assert played.pool.holds
        checking = False
        await played.until(lambda: played.handled)
        assert not played.pool.holds


async def test_channels_are_not_watched_again_for_each_look_whether_messages_still_wait(play, monkeypatch):
    monkeypatch.setattr(pool_module, "HELD_S", 1000.0)
    monkeypatch.setattr(pool_module, "LOOK_AGAIN_S", 0.0)
    with play() as played:
        looks = []
        played.pool._loop = loop = Mock(wraps=asyncio.get_running_loop())
        played.pool.urgent = lambda: looks.append(1) or len(looks) < 20
        played.send(0)
        await played.until(lambda: played.handled)
        assert len(looks) >= 20
        assert loop.add_reader.call_count == 1


async def test_messages_do_not_wait_longer_than_their_limit(play):
    with play() as played:
        played.pool.urgent = lambda: True
        played.send(0)
        await played.until(lambda: played.handled)
        # Not held again before the raws were checked once.
        played.send(1)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert played.handled == [0, 1]


@pytest.mark.parametrize(
    ("checked_s", "settling_s"), [(0.0, 0.0), (0.002, 0.002), (SETTLE_S, SETTLE_S), (0.1, SETTLE_S)]
)
async def test_messages_wait_after_a_burst_as_long_as_during_it_within_limits(play, checked_s, settling_s):
    with play() as played:
        now, checking = 1000.0, True
        played.pool._loop = Mock(wraps=asyncio.get_running_loop(), time=lambda: now)
        played.pool.urgent = lambda: checking
        assert played.pool._holds(now)
        now += checked_s
        assert played.pool._holds(now)
        checking = False
        if settling_s:
            assert played.pool._holds(now + 0.9 * settling_s)
        assert not played.pool._holds(now + 1.1 * settling_s)
        assert not played.pool._holds(now + 0.9 * settling_s)  # until raws are checked again


async def test_raws_that_arrive_again_and_again_hold_messages_half_of_the_time(play):
    with play() as played:
        now, checking = 1000.0, True
        played.pool._loop = Mock(wraps=asyncio.get_running_loop(), time=lambda: now)
        played.pool.urgent = lambda: checking

        async def is_held(slot: int) -> bool:
            before = len(played.handled)
            played.send(slot)
            for _ in range(20):
                await asyncio.sleep(0)
            return len(played.handled) == before

        assert await is_held(0)
        checking = False
        await played.until(lambda: played.handled)
        checking, now = True, now + 1.1 * HELD_S
        assert not await is_held(1)
        now += HELD_S
        assert await is_held(2)
        checking = False
        await played.until(lambda: played.handled == [0, 1, 2])


async def test_a_closed_channel_is_read_no_further(play):
    with play() as played:
        played.ends[0].close()
        played.send(1)
        await played.until(lambda: played.handled == [1])
        await played.until(lambda: len(played.pool._by_channel) == WORKERS - 1)


@pytest.mark.parametrize(("late_s", "known"), [(0.9, True), (1.1, False)])
async def test_the_status_of_a_dead_worker_is_awaited_while_the_zygote_gets_no_core(play, late_s, known):
    now = 1000.0
    asyncio.get_running_loop().time = lambda: now  # however slow this machine is
    with play() as played:
        died: list[int | None] = []
        played.pool.handle = lambda number, event: died.append(event.status)
        own = os.pidfd_open(os.getpid())  # of no child of this process
        child = replace(next(iter(played.pool._by_channel.values())), pid=1, pidfd=own)
        played.pool._children[child.slot] = child
        played.pool._on_exit(child)
        now += late_s
        for _ in range(5):
            await asyncio.sleep(0)
        assert died == ([] if known else [None])
        if known:
            played.pool.reaped(Reaped(pid=child.pid, status=-9, cpu_s=1.0))
            assert died == [-9]
        played.pool._children.clear()
        os.close(own)
