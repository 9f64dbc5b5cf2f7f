# SPDX-License-Identifier: BSD-3-Clause
"""Reloads by signals and by requests, one after the other."""

import asyncio

import pytest

from ppdaemon.clock import Clock
from ppdaemon.errors import Refused
from ppdaemon.reloading import Reloader


async def test_a_reload_begins_when_the_one_before_has_ended_so_that_the_newest_file_is_used_last():
    steps, go = [], asyncio.Event()

    async def reload():
        steps.append("read")
        await go.wait()
        steps.append("used")

    reloader = Reloader(reload, Clock())
    both = asyncio.gather(reloader.now(), reloader.now())
    for _ in range(10):
        await asyncio.sleep(0)
    assert steps == ["read"]
    go.set()
    await both
    assert steps == ["read", "used"] * 2


async def test_a_reload_that_is_refused_does_not_stop_the_next_one():
    faults = [Refused("not now")]

    async def reload():
        if faults:
            raise faults.pop()

    reloader = Reloader(reload, Clock(tai=lambda: 7.0))
    with pytest.raises(Refused):
        await reloader.now()
    assert reloader.reloaded_tai is None
    await reloader.now()
    assert reloader.reloaded_tai == 7.0
