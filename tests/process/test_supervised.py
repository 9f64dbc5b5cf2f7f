# SPDX-License-Identifier: BSD-3-Clause
"""Child processes that are kept: real ones, and an exporter that the test plays."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from node import TESTS

from ppdaemon.config import ExportConfig
from ppdaemon.messages import (
    EXPORTER_FACTS,
    Exported,
    ExportSpool,
    Forked,
    ForkWorker,
    Quit,
    Ready,
    SpoolRefused,
)
from ppdaemon.node.processes.child import Lifeline, launch
from ppdaemon.node.processes.exporter import ExporterProcess
from ppdaemon.node.processes.lifecycle import Lifecycle, State
from ppdaemon.node.processes.supervised import SupervisedProcess
from ppdaemon.testing.processes import alive
from ppdaemon.testing.waiting import wait_until
from ppdaemon.wire import encode

DEADLINE_S = 20.0


async def until(condition: Callable[[], object], story: object = "") -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, story
        await asyncio.sleep(0.005)


class Kept(SupervisedProcess[Ready | Exported | SpoolRefused]):
    """Keeps `kept`, and gives each one an order as soon as it is ready."""

    def __init__(self, folder: Path, fault: str, boot_s: float = 60.0, answer_s: float = 60.0):
        pauses = {"first_pause_s": 0.1, "longest_pause_s": 1.0}
        lifecycle = Lifecycle(boot_s=boot_s, answer_s=answer_s, **pauses)
        super().__init__("child", folder / "log", EXPORTER_FACTS, lifecycle)
        self.story: list[str] = []
        self.pids: list[int] = []
        self._fault = fault
        self._lifeline = Lifeline()

    async def until_told(self, what: str, times: int = 1) -> None:
        await until(lambda: self.story.count(what) >= times, self.story)

    def end(self) -> None:
        self.close()
        self._lifeline.close()
        for pid in self.pids:
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                continue  # reaped when it died

    def _launch(self):
        environment = {**os.environ, "PYTHONPATH": TESTS}
        child = launch("kept", [self._fault], self._lifeline, environment, self._log)
        self.pids.append(child.pid)
        return child

    def _serve(self):
        assert self._order("order", Quit())
        self.story.append("serves")
        if self._fault == "answer and exit":  # the loop finds answers and death at the same time
            wait_until(lambda: not alive(self.pids[-1]), DEADLINE_S)

    def _received(self, message, descriptors):
        if isinstance(message, Ready):
            self._ready()
        else:
            self.story.append("answered")
            self._answered("order")

    def _lost(self, manner, owed):
        self.story.append(f"{manner}, owes {owed}")


def keep(tmp_path, body, fault, **limits):
    async def play():
        kept = Kept(tmp_path, fault, **limits)
        kept.start()
        try:
            await body(kept)
        finally:
            kept.end()

    asyncio.run(play())


def test_the_last_messages_of_a_process_come_before_its_end(tmp_path):
    async def body(kept):
        await kept.until_told("ended with status 3, owes []")
        assert kept.story[:22] == ["serves", *["answered"] * 20, "ended with status 3, owes []"]

    keep(tmp_path, body, "answer and exit")


def test_a_process_that_dies_is_started_again_and_its_problem_is_told(tmp_path):
    async def body(kept):
        await kept.until_told("serves")
        os.kill(kept.pid, signal.SIGKILL)
        await kept.until_told("was killed by SIGKILL, owes ['order']")
        end = f"; the next one starts in 0 s; see {tmp_path}/log"
        assert (kept.pid, kept.problem) == (None, f"the child was killed by SIGKILL{end}")
        await kept.until_told("serves", 2)
        assert len(set(kept.pids)) == 2
        assert not alive(kept.pids[0])

    keep(tmp_path, body, "wait")


@pytest.mark.parametrize(
    ("fault", "limits", "reason"),
    [
        ("mute", {"boot_s": 0.3}, "was not ready in 0.3 s, owes []"),
        ("wait", {"answer_s": 0.3}, "has not answered for 0.3 s, owes ['order']"),
        ("nonsense", {}, "sent an invalid message: ready.pid: Input should be a valid integer"),
    ],
)
def test_a_process_that_is_late_or_sends_an_invalid_message_is_killed_and_given_up_once(
    tmp_path, fault, limits, reason
):
    async def body(kept):
        await until(lambda: len(kept.pids) >= 2, kept.story)
        assert not alive(kept.pids[0])
        (told,) = [text for text in kept.story if text != "serves"]
        assert told.startswith(reason)

    keep(tmp_path, body, fault, **limits)


def test_a_process_that_cannot_be_started_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))

    async def body(kept):
        assert "cannot be started" in kept.story[0]
        monkeypatch.undo()
        await kept.until_told("serves")

    keep(tmp_path, body, "wait")


def test_a_closed_process_is_dead_and_none_follows(tmp_path):
    async def body(kept):
        await kept.until_told("serves")
        kept.close()
        kept.close()
        kept.start()
        await asyncio.to_thread(os.waitpid, kept.pids[0], 0)
        assert (kept.pid, kept.lifecycle.state, len(kept.pids)) == (None, State.CLOSED, 1)
        assert kept.story == ["serves"]

    keep(tmp_path, body, "wait")


class PlayedExporter:
    """The zygote, and the exporters that it would fork: a process that sleeps, and the test."""

    def __init__(self, folder: Path, retry_s: float = 0.05):
        self.orders: list[ForkWorker] = []
        self.serves = True
        self.done: list[Exported] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._channels: list[socket.socket] = []
        log = folder / "exporter.log"
        self.config = ExportConfig(retry_s=retry_s)
        self.kept = ExporterProcess(self.config, folder / "repo", log, self._ask, self.done.append)
        self.kept.start()

    def _ask(self, order: ForkWorker) -> bool:
        self.orders.append(order)
        return self.serves

    def fork(self, epoch: int | None = None) -> None:
        """Answer the last order: there is a process."""
        process = subprocess.Popen(["sleep", "600"], start_new_session=True)
        self._processes.append(process)
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channels.append(self.channel)
        order = self.orders[-1]
        message = Forked(role="exporter", slot=-1, epoch=epoch or order.epoch, pid=process.pid)
        self.kept.forked(message, [theirs.detach(), os.pidfd_open(process.pid)])

    def serve(self) -> None:
        self.fork()
        self.say(Ready(pid=1))

    def say(self, *messages: Ready | Exported | SpoolRefused) -> None:
        for message in messages:
            self.channel.send(encode(message))

    async def told(self) -> str:
        """Return the next order."""
        self.channel.setblocking(False)
        packet = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.channel, 4096), DEADLINE_S)
        return packet.decode()

    def die(self) -> None:
        """End as a process does whose zygote reaps it: messages stay in the channel."""
        self._processes[-1].kill()
        self.channel.close()

    def end(self) -> None:
        self.kept.close()
        for channel in self._channels:
            channel.close()
        for process in self._processes:
            process.kill()
            process.wait()


def play(tmp_path, body, **options):
    async def run():
        played = PlayedExporter(tmp_path, **options)
        try:
            await body(played)
        finally:
            played.end()

    asyncio.run(run())


def order_of(*spools: str) -> str:
    return encode(ExportSpool(spools=spools)).decode()


def exported(*spools: str, refused: tuple[str, ...] = ()) -> Exported:
    return Exported(spools=spools, refused=refused, tai=0.0, datasets=1)


def test_all_spools_go_in_one_order_and_a_refused_order_is_sent_again(tmp_path):
    async def body(played):
        for spool in "abc":
            played.kept.add(spool)
        assert (played.kept.text, played.kept.waiting) == ("starting", 3)
        played.serve()
        assert await played.told() == order_of("a", "b", "c")
        assert played.kept.text == "exporting 3"
        assert not played.kept.withdraw("b")
        played.say(SpoolRefused(spools=("a", "b", "c"), reason="the database is down"))
        await until(lambda: played.kept.problem)
        assert played.kept.text == "failing: the database is down"
        assert played.kept.withdraw("c")
        assert await played.told() == order_of("a", "b")
        played.say(exported("a", refused=("b",)))
        await until(lambda: played.done)
        assert (played.kept.text, played.kept.waiting, played.kept.problem) == ("idle", 0, "")

    play(tmp_path, body)


def test_the_last_word_of_an_exporter_may_be_that_it_has_exported(tmp_path):
    async def body(played):
        played.kept.add("a")
        played.kept.add("b")
        played.serve()
        await played.told()
        played.kept.add("c")
        played.say(exported("a", "b"))
        played.die()
        await until(lambda: len(played.orders) == 2)
        assert [message.spools for message in played.done] == [("a", "b")]
        assert played.kept.problem == "the process ended"
        played.serve()
        assert await played.told() == order_of("c")

    play(tmp_path, body)


def test_the_last_messages_count_though_an_order_was_not_read(tmp_path):
    async def body(played):
        played.kept.add("a")
        played.serve()
        await until(lambda: played.kept.text == "exporting 1")
        played.say(exported("a"))
        played.die()
        played.kept._on_end()  # the loop finds the end of the process before that of its channel
        assert [message.spools for message in played.done] == [("a",)]

    play(tmp_path, body)


def test_an_exporter_is_replaced_after_the_export_that_runs_and_without_a_pause(tmp_path):
    async def body(played):
        played.kept.add("a")
        played.serve()
        await played.told()
        played.kept.add("b")
        played.kept.replace(ExportConfig(retry_s=1000.0))
        played.say(exported("a"))
        assert await played.told() == encode(Quit()).decode()
        played.die()
        await until(lambda: len(played.orders) == 2)
        played.serve()
        assert await played.told() == order_of("b")
        assert played.kept.problem == ""

    play(tmp_path, body, retry_s=1000.0)


def test_an_exporter_that_pauses_is_started_at_once_if_somebody_waits_for_its_spools(tmp_path):
    async def body(played):
        assert not played.kept.pausing, "it boots"
        played.serve()
        played.kept.add("a")
        await played.told()
        assert not played.kept.pausing, "it exports"
        played.die()
        await until(lambda: played.kept.pausing)
        played.kept.hurry()
        assert not played.kept.pausing
        played.serve()
        assert await played.told() == order_of("a")
        played.say(SpoolRefused(spools=("a",), reason="the database is down"))
        await until(lambda: played.kept.pausing)
        played.kept.hurry()
        assert played.kept.pausing, "the database is not asked before its time"
        assert len(played.orders) == 2

    play(tmp_path, body, retry_s=1000.0)


def test_an_exporter_of_the_configuration_before_comes_too_late(tmp_path):
    async def body(played):
        played.kept.replace(played.config)
        assert [order.epoch for order in played.orders] == [1, 2]
        played.fork(epoch=1)
        late = played._processes[-1]
        await asyncio.to_thread(late.wait, DEADLINE_S)
        assert played.kept.pid is None
        played.fork()
        assert played.kept.pid is not None

    play(tmp_path, body, retry_s=1000.0)


def test_an_exporter_that_is_not_forked_is_asked_for_again(tmp_path):
    async def body(played):
        played.serves = False
        played.kept.not_forked("no room")
        assert played.kept.problem == "the process was not forked: no room"
        await until(lambda: len(played.orders) == 2)
        assert played.kept.problem == "the process cannot be started: there is no zygote"
        played.serves = True
        await until(lambda: len(played.orders) == 3)
        played.serve()
        await until(lambda: played.kept.lifecycle.state is State.SERVING)

    play(tmp_path, body)
