# SPDX-License-Identifier: BSD-3-Clause
"""What a node reports and waits for while it starts."""

import asyncio
import math
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import AsyncMock, MagicMock, Mock

import click
import pytest

from ppdaemon.clock import Clock
from ppdaemon.config import ShadowConfig
from ppdaemon.configfile import ConfigFile
from ppdaemon.errors import ConfigError, Unavailable
from ppdaemon.node.app import _instant
from ppdaemon.node.processes import reload
from ppdaemon.node.processes.names import Resolution
from ppdaemon.node.processes.reload import Generations
from ppdaemon.node.supervisor import Supervisor


def test_a_time_is_written_as_seconds_or_as_a_local_or_universal_date(monkeypatch):
    monkeypatch.setenv("TZ", "America/Santiago")
    time.tzset()
    try:
        now = Clock().mono() + 1_795_324_800 - time.time()
        for text in ("1795324800", "2026-11-22T02:20:00", "20261122T022000", "2026-11-22T05:20:00Z"):
            assert _instant(None, None, text) == pytest.approx(now, abs=5), text
    finally:
        monkeypatch.undo()
        time.tzset()
    assert _instant(None, None, None) == math.inf
    with pytest.raises(click.BadParameter, match="tomorrow is no time"):
        _instant(None, None, "tomorrow")


@pytest.mark.parametrize("text", ["20261130", "202611300540", "20261130054000", "600", "", "-1", "1.5e9"])
def test_digits_that_may_be_a_date_are_no_seconds(text):
    with pytest.raises(
        click.BadParameter, match=f"{text} is no time; write for instance 2026-11-30T05:40:00"
    ):
        _instant(None, None, text)


@pytest.mark.parametrize("text", ["2026-11-30", "2026-W49-1"])
def test_a_day_is_no_instant(text):
    with pytest.raises(click.BadParameter, match=f"{text} has no time of day; write for instance {text}T05"):
        _instant(None, None, text)


async def test_the_watchdog_is_triggered_while_visits_are_recovered(config):
    """Fault 77: the central repo was away at the start, and the recovery takes longer than the limit."""
    notified = asyncio.Queue()
    notifier = Mock(notify=lambda **message: notified.put_nowait(message))
    supervisor = Supervisor(
        ConfigFile(Path("node.yaml"), config, {(): 1}), Mock(), {}, Clock(), notifier, 0.02
    )

    async def until_notified(key):
        while key not in await notified.get():
            pass

    async def start():
        node.generations.waiting = True
        await until_notified("READY")
        node.generations.waiting = False

    async def recover():
        while not notified.empty():
            notified.get_nowait()
        await until_notified("WATCHDOG")
        await until_notified("WATCHDOG")
        supervisor.stop()

    node = MagicMock()
    node.status.report.return_value = Mock(text="starting", problems=())
    node.generations.start, node.reprocessor.recover = start, recover
    node.arrivals.start = AsyncMock()
    await asyncio.wait_for(supervisor._start(node), 20.0)
    assert supervisor._stop.is_set()


def unresolved(loop, config):
    """Return generations whose names are not resolved."""
    file = ConfigFile(Path("node.yaml"), config, {(): 1})
    return SimpleNamespace(_task_names=loop.create_future(), _resolving=loop.create_future(), _file=file)


async def test_in_shadow_mode_nothing_begins_before_the_tasks_are_checked(monkeypatch, config):
    monkeypatch.setattr(reload, "TASK_NAMES_S", 0.05)
    config = config.model_copy(update={"shadow": ShadowConfig(enabled=True)})

    async def run(*, checked):
        node = unresolved(asyncio.get_running_loop(), config)
        if checked:
            node._task_names.set_result(Resolution())
        else:
            node._resolving.set_result(Resolution(unavailable=("the process that resolves names crashed",)))
        await asyncio.wait_for(Generations.wait_for_task_names(node), 20.0)

    with pytest.raises(Unavailable, match="could not be checked"):
        await run(checked=False)
    await run(checked=True)


@pytest.mark.parametrize(("shadow", "exports"), [(True, 0), (False, 1)])
async def test_in_shadow_mode_nothing_is_exported_before_the_repo_is_checked(
    monkeypatch, config, shadow, exports
):
    config = config.model_copy(update={"shadow": ShadowConfig(enabled=shadow)})
    monkeypatch.setattr(Supervisor, "_stop_workers", AsyncMock())
    file = ConfigFile(Path("node.yaml"), config, {(): 1})
    supervisor = Supervisor(file, Mock(), {}, Clock(), Mock(), None)
    node = MagicMock(services=())
    node.status.report.return_value = Mock(text="starting", problems=())
    for part in (node.generations.start, node.reprocessor.recover, node.arrivals.start):
        part.side_effect = AsyncMock()
    node.generations.wait_for_task_names = AsyncMock(side_effect=ConfigError(["shadow.central"]))
    with pytest.raises(ConfigError):
        await asyncio.wait_for(supervisor._start(node), 20.0)
    assert node.exporter.start.call_count == exports
    node.generations.wait_for_task_names = AsyncMock()
    node.generations.wait_for_names = AsyncMock()
    monkeypatch.setattr(Supervisor, "_wait_for_worker", AsyncMock())
    await asyncio.wait_for(supervisor._start(node), 20.0)
    assert node.exporter.start.call_count == 1 + exports


@pytest.mark.parametrize("repeating", [(), ("node.yaml:9: engine.no_return.0: no task asociate",)])
async def test_names_of_tasks_that_hang_delay_visits_for_a_limited_time(
    monkeypatch, caplog, config, repeating
):
    """Fault 78: with an error all others are awaited, but a database may hang."""
    monkeypatch.setattr(reload, "TASK_NAMES_S", 0.05)
    monkeypatch.setattr(reload, "NAMES_S", 0.05)
    node = unresolved(asyncio.get_running_loop(), config)
    if repeating:
        node._task_names.set_result(Resolution(errors=repeating, repeating=repeating))
        with pytest.raises(ConfigError, match="asociate"):
            await asyncio.wait_for(Generations.wait_for_task_names(node), 20.0)
    else:
        await asyncio.wait_for(Generations.wait_for_task_names(node), 20.0)
        assert "could be written twice: see ppdaemon check-config" in caplog.text
