# SPDX-License-Identifier: BSD-3-Clause
"""Supervised child processes: real ones, and an exporter that the test plays."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from node import TESTS

from ppdaemon.config import ExportConfig, LogConfig, WorkersConfig
from ppdaemon.errors import Refused
from ppdaemon.folders import NodeFolders
from ppdaemon.messages import (
    EXPORTER_FACTS,
    Connecting,
    DatastoreMarked,
    Exported,
    ExportSpool,
    Forked,
    ForkWorker,
    GiveUpImages,
    ImagesGivenUp,
    MarkDatastore,
    Quit,
    Ready,
    Reaped,
    SpoolRefused,
)
from ppdaemon.node.processes import exporter as exporter_module
from ppdaemon.node.processes import generation, supervised
from ppdaemon.node.processes import publisher as publisher_module
from ppdaemon.node.processes.child import Lifeline, launch
from ppdaemon.node.processes.exporter import BATCH, ExporterProcess
from ppdaemon.node.processes.generation import TemplateFailed, TemplateProcess, TemplateUnavailable
from ppdaemon.node.processes.lifecycle import Lifecycle, ProcessState
from ppdaemon.node.processes.publisher import PublisherProcess
from ppdaemon.node.processes.supervised import SupervisedProcess
from ppdaemon.publish.config import Publication
from ppdaemon.publish.messages import PublishReport, Telemetry
from ppdaemon.reports import DestinationReport
from ppdaemon.testing.processes import alive
from ppdaemon.testing.waiting import TIMEOUT_S, wait_until
from ppdaemon.wire import encode

DEADLINE_S = TIMEOUT_S


async def until(condition: Callable[[], object], story: object = "") -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, story
        await asyncio.sleep(0.005)


class SupervisedChild(SupervisedProcess[Ready | Exported | SpoolRefused]):
    """Supervises `childprogram`, and sends each process an order as soon as it is ready."""

    def __init__(self, folder: Path, fault: str, boot_s: float = 60.0, answer_s: float = 60.0):
        pauses = {"first_pause_s": 0.1, "longest_pause_s": 1.0}
        lifecycle = Lifecycle(boot_s=boot_s, answer_s=answer_s, **pauses)
        super().__init__("child", folder / "log", EXPORTER_FACTS, lifecycle)
        self.story: list[str] = []
        self.pids: list[int] = []
        self._fault = fault
        self._lifeline = Lifeline()

    async def until_event(self, what: str, times: int = 1) -> None:
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
        child = launch("childprogram", [self._fault], self._lifeline, environment, self._log)
        self.pids.append(child.pid)
        return child

    def _serve(self):
        assert self._order("order", Quit())
        self.story.append("serving")
        if self._fault == "answer and exit":  # the loop finds answers and death at the same time
            wait_until(lambda: not alive(self.pids[-1]), DEADLINE_S)

    def _received(self, message, descriptors):
        if isinstance(message, Ready):
            self._ready()
        else:
            self.story.append("answered")
            self._answered("order")

    def _give_up(self, cause, unanswered):
        self.story.append(f"{cause}, unanswered {unanswered}")


@contextmanager
def child_of(tmp_path, fault, **limits):
    child = SupervisedChild(tmp_path, fault, **limits)
    child.start()
    try:
        yield child
    finally:
        child.end()


async def test_the_last_messages_of_a_process_come_before_its_end(tmp_path):
    with child_of(tmp_path, "answer and exit") as child:
        await child.until_event("ended with status 3, unanswered []")
        assert child.story[:22] == ["serving", *["answered"] * 20, "ended with status 3, unanswered []"]


async def test_a_process_that_dies_is_started_again_and_its_problem_is_reported(tmp_path):
    with child_of(tmp_path, "wait") as child:
        await child.until_event("serving")
        os.kill(child.pid, signal.SIGKILL)
        await child.until_event("ended by signal 9 (SIGKILL), unanswered ['order']")
        end = f"; the next one starts in 0 s; see {tmp_path}/log"
        assert (child.pid, child.problem) == (None, f"the child ended by signal 9 (SIGKILL){end}")
        await child.until_event("serving", 2)
        assert len(set(child.pids)) == 2
        assert not alive(child.pids[0])


@pytest.mark.parametrize(
    ("fault", "limits", "reason"),
    [
        ("silent", {"boot_s": 0.3}, "was not ready in 0.3 s, unanswered []"),
        ("wait", {"answer_s": 0.3}, "has not answered for 0.3 s, unanswered ['order']"),
        ("invalid", {}, "sent an invalid message: ready.pid: Input should be a valid integer"),
    ],
)
async def test_a_process_that_is_late_or_sends_an_invalid_message_is_killed_and_its_orders_given_up_once(
    tmp_path, fault, limits, reason
):
    with child_of(tmp_path, fault, **limits) as child:
        await until(lambda: len(child.pids) >= 2, child.story)
        assert not alive(child.pids[0])
        events = [text for text in child.story if text != "serving"]
        assert all(event.startswith(reason) for event in events), events
        # Once for each process. After a stall of this one, the last one may be late, too.
        assert len(child.pids) - 1 <= len(events) <= len(child.pids)


async def test_a_process_that_cannot_be_started_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with child_of(tmp_path, "wait") as child:
        assert "cannot be started" in child.story[0]
        monkeypatch.undo()
        await child.until_event("serving")


async def test_a_closed_process_is_dead_and_none_follows(tmp_path):
    with child_of(tmp_path, "wait") as child:
        await child.until_event("serving")
        child.close()
        child.close()
        child.start()
        await asyncio.to_thread(os.waitpid, child.pids[0], 0)
        assert (child.pid, child.lifecycle.state, len(child.pids)) == (None, ProcessState.CLOSED, 1)
        assert child.story == ["serving"]


class PlayedExporter:
    """Plays the zygote and the exporters that it would fork: a process that sleeps, and the test."""

    def __init__(self, folder: Path, **changes: Any):
        self._passed_s = 0.0
        asyncio.get_running_loop().time = lambda: time.monotonic() + self._passed_s
        self.orders: list[ForkWorker] = []
        self.serves = True
        self.done: list[Exported | ImagesGivenUp] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._channels: list[socket.socket] = []
        self.folders = NodeFolders(folder / "ramdisk", folder)
        self.folders.logs.mkdir()
        self.config = ExportConfig(**({"retry_s": 0.05, "gather_s": 0.0} | changes))
        self.exporter = ExporterProcess(self.config, self.folders, self._ask, self.done.append)
        self.exporter.start()

    def _ask(self, order: ForkWorker) -> bool:
        self.orders.append(order)
        return self.serves

    def pass_time(self, seconds: float) -> None:
        """Let this time pass for the exporter and its timers, without waiting."""
        self._passed_s += seconds

    def fork(self, epoch: int | None = None) -> None:
        """Answer the last order: there is a process."""
        process = subprocess.Popen(["sleep", "600"], start_new_session=True)
        self._processes.append(process)
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channels.append(self.channel)
        order = self.orders[-1]
        message = Forked(role="exporter", slot=-1, epoch=epoch or order.epoch, pid=process.pid)
        self.exporter.forked(message, [theirs.detach(), os.pidfd_open(process.pid)])

    def serve(self) -> None:
        self.fork()
        self.send(Ready(pid=1))

    def send(self, *messages: Ready | Exported | ImagesGivenUp | SpoolRefused | DatastoreMarked) -> None:
        for message in messages:
            self.channel.send(encode(message))

    async def next_order(self) -> str:
        """Return the next order."""
        self.channel.setblocking(False)
        packet = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.channel, 65536), DEADLINE_S)
        return packet.decode()

    def die(self) -> None:
        """End as a process that its zygote reaps: messages stay in the channel."""
        self.kill(reaped_by_zygote=True)
        self.tell_status()

    def kill(self, *, reaped_by_zygote: bool) -> None:
        """End without a word of the zygote."""
        self._processes[-1].kill()
        if reaped_by_zygote:
            self._processes[-1].wait()
        self.channel.close()

    def tell_status(self) -> None:
        """Report the end, as the zygote does."""
        process = self._processes[-1]
        self.exporter.reaped(Reaped(pid=process.pid, status=process.returncode, cpu_s=0.0))

    def end(self) -> None:
        self.exporter.close()
        for channel in self._channels:
            channel.close()
        for process in self._processes:
            process.kill()
            process.wait()


@contextmanager
def playing(tmp_path, **options):
    played = PlayedExporter(tmp_path, **options)
    try:
        yield played
    finally:
        played.end()


def order_of(*spools: str) -> str:
    return encode(ExportSpool(spools=spools)).decode()


def exported(*spools: str, refused: tuple[str, ...] = (), gone: tuple[str, ...] = ()) -> Exported:
    return Exported(spools=spools, refused=refused, gone=gone, tai=0.0, datasets=1)


async def test_the_time_that_a_spool_was_pending_is_measured(tmp_path):
    with playing(tmp_path) as played:
        assert played.exporter.oldest_s is None
        played.exporter.add("a")
        await until(lambda: played.exporter.oldest_s > 0.01)
        played.exporter.add("b")
        played.exporter.add("a")  # again: it has waited since before
        assert 0.01 < played.exporter.oldest_s < DEADLINE_S
        played.serve()
        await played.next_order()
        played.send(exported("a", refused=("b",)))
        await until(lambda: not played.exporter.waiting)
        assert played.exporter.times.count == 1
        assert 0.01 < played.exporter.times.sum < DEADLINE_S
        assert played.exporter.oldest_s is None


async def test_all_spools_go_in_one_order_and_a_refused_order_is_sent_again(tmp_path):
    with playing(tmp_path, retry_s=1000.0) as played:
        for spool in "abc":
            played.exporter.add(spool)
        assert (played.exporter.text, played.exporter.waiting) == ("starting", 3)
        played.serve()
        assert await played.next_order() == order_of("a", "b", "c")
        assert played.exporter.text == "exporting 3"
        assert not played.exporter.withdraw("b")
        played.send(SpoolRefused(spools=("a", "b", "c"), reason="the database is down"))
        await until(lambda: played.exporter.problem)
        assert played.exporter.text == "failing: the database is down"
        assert played.exporter.withdraw("c")
        played.pass_time(1000.0)
        assert await played.next_order() == order_of("a", "b")
        played.send(exported("a", refused=("b",)))
        await until(lambda: played.done)
        assert (played.exporter.text, played.exporter.waiting, played.exporter.problem) == ("idle", 0, "")


async def test_orders_that_no_exporter_survives_become_smaller_and_hold_up_no_other_spool(tmp_path):
    with playing(tmp_path) as played:

        async def next_order_of_another() -> str:
            forks = len(played.orders)
            played.die()
            await until(lambda: len(played.orders) > forks)
            played.serve()
            return await played.next_order()

        for spool in "abcde":
            played.exporter.add(spool)
        played.serve()
        assert await played.next_order() == order_of(*"abcde")
        assert await next_order_of_another() == order_of("a", "b")
        assert await next_order_of_another() == order_of("a")
        assert await next_order_of_another() == order_of("b")
        since = played.exporter.oldest_s
        played.send(exported("b"))
        assert await played.next_order() == order_of("c", "d")
        played.send(exported("c", "d"))
        assert await played.next_order() == order_of("e", "a")
        assert played.exporter.oldest_s > since


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_spool_that_is_gone_counts_as_exported_only_after_an_unanswered_order(tmp_path, replaced):
    with playing(tmp_path) as played:
        played.exporter.add("a")
        played.exporter.add("b")
        played.serve()
        await played.next_order()
        played.send(SpoolRefused(spools=("a", "b"), reason="the database is down"))
        assert await played.next_order() == order_of("a", "b")
        if replaced:
            played.exporter.replace(played.config)
        played.die()
        await until(lambda: len(played.orders) == 2)
        assert not played.exporter.withdraw("a"), "it may be registered, and not deleted yet"
        played.exporter.add("c")
        played.serve()
        order = await played.next_order()
        played.send(SpoolRefused(spools=("a",), reason="the database is still down"))
        if order == order_of("a"):  # it is half as large after a process that died with it
            assert not replaced
            assert await played.next_order() == order_of("a")
            played.send(exported(gone=("a",)))
            assert await played.next_order() == order_of("b", "c")
            played.send(exported(gone=("b", "c")))
        else:
            assert await played.next_order() == order_of("a", "b", "c")
            played.send(exported(gone=("a", "b", "c")))
        await until(lambda: not played.exporter.waiting)
        assert {spool for message in played.done for spool in message.spools} == {"a", "b"}
        assert [message.gone for message in played.done if message.gone] == [("c",)]


async def test_the_last_message_of_an_exporter_may_report_an_export(tmp_path):
    with playing(tmp_path) as played:
        played.exporter.add("a")
        played.exporter.add("b")
        played.serve()
        await played.next_order()
        played.exporter.add("c")
        played.send(exported("a", "b"))
        played.die()
        await until(lambda: len(played.orders) == 2)
        assert [message.spools for message in played.done] == [("a", "b")]
        assert played.exporter.problem == "the process ended by signal 9 (SIGKILL)"
        played.serve()
        assert await played.next_order() == order_of("c")


async def test_the_last_messages_count_though_an_order_was_not_read(tmp_path):
    with playing(tmp_path) as played:
        played.exporter.add("a")
        played.serve()
        await until(lambda: played.exporter.text == "exporting 1")
        played.send(exported("a"))
        played.die()
        played.exporter._on_end()  # the loop finds the end of the process before that of its channel
        assert [message.spools for message in played.done] == [("a",)]


async def test_an_exporter_is_replaced_after_the_export_that_runs_and_without_a_pause(tmp_path):
    with playing(tmp_path, retry_s=1000.0) as played:
        played.exporter.add("a")
        played.serve()
        await played.next_order()
        played.exporter.add("b")
        played.exporter.replace(ExportConfig(retry_s=1000.0, gather_s=0.0))
        played.send(exported("a"))
        assert await played.next_order() == encode(Quit()).decode()
        played.die()
        await until(lambda: len(played.orders) == 2)
        played.serve()
        assert await played.next_order() == order_of("b")
        assert played.exporter.problem == ""


async def test_an_exporter_that_pauses_is_started_at_once_if_the_daemon_stops(tmp_path):
    with playing(tmp_path, retry_s=1000.0) as played:
        assert not played.exporter.pausing, "it boots"
        played.serve()
        played.exporter.add("a")
        await played.next_order()
        assert not played.exporter.pausing, "it exports"
        played.die()
        await until(lambda: played.exporter.pausing)
        played.exporter.hurry()
        assert not played.exporter.pausing
        played.serve()
        assert await played.next_order() == order_of("a")
        played.send(SpoolRefused(spools=("a",), reason="the database is down"))
        await until(lambda: played.exporter.pausing)
        played.exporter.hurry(retry=False)
        assert played.exporter.pausing, "the database is not asked before the pause ends"
        assert len(played.orders) == 2
        played.exporter.hurry()
        assert not played.exporter.pausing, "an operator has asked"
        assert await played.next_order() == order_of("a")


async def test_spools_that_come_in_quick_succession_share_an_order(tmp_path):
    with playing(tmp_path, gather_s=60.0) as played:
        played.serve()
        await until(lambda: played.exporter.lifecycle.state is ProcessState.SERVING)
        for spool in "abc":
            played.exporter.add(spool)
            await asyncio.sleep(0)
        assert played.exporter.text == "idle", "another one may follow"
        played.pass_time(60.0)
        assert await played.next_order() == order_of("a", "b", "c")
        played.send(exported("a", "b", "c"))
        await until(lambda: not played.exporter.waiting)


async def test_a_large_exporter_is_replaced_after_an_export_but_not_while_images_are_packed(tmp_path):
    limits = WorkersConfig(memory={"soft": 1000, "hard": 2000})
    with playing(tmp_path) as played:
        exporter = played.exporter
        played.serve()
        exporter.measured(1001, limits)
        exporter.add("a")
        assert await played.next_order() == order_of("a"), "it has exported nothing yet"
        played.send(Exported(spools=(), packing=("a",), tai=0.0, datasets=5))
        await until(lambda: exporter.text == "idle")
        exporter.measured(1001, limits)
        exporter.hurry()
        assert await played.next_order() == order_of("a"), "its packers would end"
        played.send(exported("a"))
        await until(lambda: not exporter.waiting)
        exporter.measured(1000, limits)
        assert exporter.lifecycle.state is ProcessState.SERVING
        exporter.measured(1001, limits)
        assert exporter.lifecycle.state is ProcessState.REPLACING
        assert await played.next_order() == encode(Quit()).decode()


async def test_spools_whose_images_are_packed_are_ordered_again_behind_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(exporter_module, "PACKING_S", 1000.0)
    with playing(tmp_path) as played:
        exporter = played.exporter
        played.serve()
        exporter.add("a")
        assert await played.next_order() == order_of("a")
        exporter.add("b")
        since = exporter.oldest_s
        played.send(Exported(spools=(), packing=("a",), tai=0.0, datasets=5))
        await until(lambda: exporter.text == "idle")
        played.pass_time(1000.0)
        assert await played.next_order() == order_of("b", "a")
        assert exporter.oldest_s > since, "it has waited since before"
        played.send(Exported(spools=("b",), packing=("a",), tai=0.0, datasets=5))
        await until(lambda: exporter.waiting == 1)
        assert exporter.text == "idle", "there is a pause"
        assert not exporter.withdraw("a"), "its catalogs are in the central repo"
        exporter.hurry()
        assert exporter.text == "exporting 1"
        assert await played.next_order() == order_of("a")
        played.send(exported("a"))
        await until(lambda: not exporter.waiting)


async def test_the_end_of_an_idle_exporter_is_a_problem_until_the_next_one_serves(tmp_path):
    with playing(tmp_path) as played:
        played.serve()
        await until(lambda: played.exporter.lifecycle.state is ProcessState.SERVING)
        played.die()
        await until(lambda: played.exporter.problem == "the process ended by signal 9 (SIGKILL)")
        await until(lambda: len(played.orders) == 2)
        played.serve()
        await until(lambda: not played.exporter.problem)
        assert played.exporter.text == "idle"


@pytest.mark.parametrize(
    ("late_s", "problem"),
    [(0.9, "the process ended by signal 9 (SIGKILL)"), (1.1, "the process ended with unknown status")],
)
async def test_the_status_of_a_dead_exporter_is_awaited_if_the_zygote_gets_no_core(tmp_path, late_s, problem):
    with playing(tmp_path) as played:
        played.serve()
        await until(lambda: played.exporter.lifecycle.state is ProcessState.SERVING)
        now = time.monotonic()
        asyncio.get_running_loop().time = lambda: now  # however slow this machine is
        played.kill(reaped_by_zygote=True)
        while played.exporter._awaits_status is None:
            await asyncio.to_thread(int)
        now += late_s
        for _ in range(5):
            await asyncio.sleep(0)
        played.tell_status()
        assert played.exporter.problem == problem
        assert played.exporter.pid is None


async def test_the_status_of_an_exporter_without_a_zygote_is_known(tmp_path):
    with playing(tmp_path) as played:
        played.serve()
        await until(lambda: played.exporter.lifecycle.state is ProcessState.SERVING)
        played.kill(reaped_by_zygote=False)  # it has become a child of this process
        await until(lambda: played.exporter.problem == "the process ended by signal 9 (SIGKILL)")


@pytest.mark.parametrize(("fault", "end"), [("wait", "by signal 9 (SIGKILL)"), ("exit", "with status 3")])
@pytest.mark.parametrize("kills", [0, 1])
async def test_a_process_that_the_kernel_may_have_killed_for_its_memory_is_reported_so(
    tmp_path, monkeypatch, fault, end, kills
):
    group_kills = iter([7, *[7 + kills] * 9])
    monkeypatch.setattr(supervised, "own_memory_kills", lambda: next(group_kills))
    with child_of(tmp_path, "answer and exit" if fault == "exit" else fault) as child:
        await child.until_event("serving")
        if fault == "wait":
            os.kill(child.pid, signal.SIGKILL)
        await until(lambda: child.lifecycle.cause)
        cause = "the kernel has killed it, or another process of the service meanwhile"
        may_be = fault == "wait" and kills
        assert child.lifecycle.cause == f"ended {end}" + (f", out of memory: {cause}" if may_be else "")


async def test_spools_are_gathered_no_longer_than_an_exposure_takes(tmp_path):
    with playing(tmp_path, gather_s=60.0) as played:
        played.serve()
        await until(lambda: played.exporter.lifecycle.state is ProcessState.SERVING)
        for number in range(BATCH):
            assert played.exporter.text == "idle"
            played.exporter.add(str(number))
        assert played.exporter.text == f"exporting {BATCH}"


async def test_images_are_given_up_if_too_much_waits_on_the_disk(tmp_path):
    with playing(tmp_path, ramdisk_max=10**9, spill_max=150) as played:
        exporter, folders = played.exporter, played.folders
        spools = [folders.ramdisk_spool / "a", folders.spool / "b", folders.spool / "c"]
        for spool in spools:
            spool.mkdir(parents=True)
            (spool / "file").write_bytes(bytes(100))
            exporter.add(str(spool))
        await exporter.measure()
        assert exporter.waiting_on(ramdisk=True)[1].used_bytes == 100
        played.serve()
        order = GiveUpImages(folders=(str(folders.spool),), excess_bytes=50)
        assert await played.next_order() == encode(order).decode()
        (spools[1] / "file").unlink()
        given_up = ImagesGivenUp(spools={str(spools[1]): "image"}, size_bytes=100)
        played.send(given_up)
        assert await played.next_order() == order_of(*map(str, spools)), "and exports go on"
        assert (exporter.given_up, exporter.given_up_bytes, exporter.incomplete) == (1, 100, 1)
        await exporter.measure()
        assert exporter.waiting_on(ramdisk=False)[1].used_bytes == 100, "they were measured again"
        played.send(exported(*map(str, spools)))
        await until(lambda: not exporter.waiting)
        assert (exporter.given_up, exporter.incomplete) == (1, 0)
        assert played.done[0] == given_up


async def test_without_images_exports_go_on_though_too_much_waits(tmp_path):
    with playing(tmp_path, spill_max=50) as played:
        spool = played.folders.spool / "a"
        spool.mkdir(parents=True)
        (spool / "file").write_bytes(bytes(100))
        played.exporter.add(str(spool))
        await played.exporter.measure()
        played.serve()
        assert json.loads(await played.next_order())["type"] == "give_up_images"
        played.send(ImagesGivenUp())
        assert await played.next_order() == order_of(str(spool))
        await played.exporter.measure()
        played.send(SpoolRefused(spools=(str(spool),), reason="the database is down"))
        assert await played.next_order() == order_of(str(spool)), "there is nothing to give up"
        played.exporter.add("b")
        await played.exporter.measure()
        played.send(SpoolRefused(spools=(str(spool),), reason="the database is down"))
        assert json.loads(await played.next_order())["type"] == "give_up_images"
        assert not played.done


async def test_a_stop_and_an_operator_do_not_wait_for_more_spools(tmp_path):
    with playing(tmp_path, gather_s=60.0) as played:
        played.serve()
        await until(lambda: played.exporter.lifecycle.state is ProcessState.SERVING)
        assert played.exporter.hurry(retry=False) == "nothing waits for export"
        played.exporter.add("a")
        assert played.exporter.hurry(retry=False) == "exporting 1"
        assert await played.next_order() == order_of("a")
        played.send(exported("a"))
        await until(lambda: not played.exporter.waiting)
        played.exporter.add("b")
        assert played.exporter.text == "idle", "that was for what was pending then"


@pytest.mark.parametrize("refused", [False, True])
async def test_the_datastore_is_marked_before_the_next_export(tmp_path, refused):
    with playing(tmp_path, retry_s=1000.0) as played:
        played.serve()
        played.exporter.add("a")
        assert await played.next_order() == order_of("a")
        played.send(SpoolRefused(spools=("a",), reason="no mark"))
        await until(lambda: played.exporter.pausing)
        asked = [asyncio.create_task(played.exporter.mark_datastore()) for _ in range(2)]
        assert await played.next_order() == encode(MarkDatastore()).decode()
        played.send(DatastoreMarked(text="so it is", refused=refused))
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert [(str(answer), type(answer)) for answer in answers] == [
            ("so it is", Refused if refused else str)
        ] * 2
        assert await played.next_order() == order_of("a")


async def test_an_exporter_that_dies_has_not_marked(tmp_path):
    with playing(tmp_path, retry_s=1000.0) as played:
        played.serve()
        asked = asyncio.create_task(played.exporter.mark_datastore())
        assert await played.next_order() == encode(MarkDatastore()).decode()
        played.die()
        with pytest.raises(Refused, match="the exporter ended"):
            await asked


async def test_an_exporter_of_the_configuration_before_is_refused(tmp_path):
    with playing(tmp_path, retry_s=1000.0) as played:
        played.exporter.replace(played.config)
        assert [order.epoch for order in played.orders] == [1, 2]
        played.fork(epoch=1)
        late = played._processes[-1]
        await asyncio.to_thread(late.wait, DEADLINE_S)
        assert played.exporter.pid is None
        played.fork()
        assert played.exporter.pid is not None


async def test_an_exporter_that_is_not_forked_is_asked_for_again(tmp_path):
    with playing(tmp_path) as played:
        played.serves = False
        played.exporter.not_forked("no room")
        assert played.exporter.problem == "the process was not forked: no room"
        await until(lambda: len(played.orders) >= 2)
        assert played.exporter.problem == "the process cannot be started: there is no zygote"
        played.serves = True
        asked = len(played.orders)
        await until(lambda: len(played.orders) > asked)
        played.serve()
        await until(lambda: played.exporter.lifecycle.state is ProcessState.SERVING)


# --- a template, whose process the test plays ----------------------------------


@pytest.mark.parametrize(
    ("sent", "error", "text"),
    [
        ((Connecting(what="the central repo /repo"),), TemplateUnavailable, "repo /repo has not answered"),
        ((), TemplateFailed, "not created within 0.5 s"),
        ((Connecting(what="the central repo /repo"), Ready(pid=1)), TemplateFailed, "not created within"),
    ],
)
def test_a_template_is_unavailable_if_the_central_repo_hangs(tmp_path, monkeypatch, sent, error, text):
    """Fault 77: a database whose connection was dropped; the daemon must not exit."""
    monkeypatch.setattr(generation, "TEMPLATE_S", 0.5)
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    async def run() -> None:
        def fork(order: ForkWorker) -> bool:
            message = Forked(role="template", slot=order.slot, epoch=order.epoch, pid=process.pid)
            asyncio.get_running_loop().call_soon(
                template.forked, message, [theirs.detach(), os.pidfd_open(process.pid)]
            )
            return True

        template = TemplateProcess(tmp_path / "repo", tmp_path / "log", fork)
        for message in sent:
            channel.send(encode(message))
        with pytest.raises(TemplateFailed, match=text) as raised:
            await template.run()
        assert type(raised.value) is error

    with channel:
        asyncio.run(run())
    assert process.wait(DEADLINE_S) == -signal.SIGKILL


# --- a publisher ----------------------------------------------------------------

TELEMETRY = Telemetry(
    **{"timestamp": 0.0, "node": "n1", "instrument": "DemoCam", "group": "g1", "detector": 1, "attempt": 1},
    **{"survey": "", "outcome": "succeeded", "reason": "", "pipeline": "", "exposures": 1, "datasets": 0},
    **{"prepare_s": None, "alerts_s": None, "total_s": None},
)


@contextmanager
def publisher_of(tmp_path, *publish):
    lifeline = Lifeline()
    publisher = PublisherProcess(
        publish, tmp_path / "publish", lifeline, os.environ, tmp_path / "log", LogConfig()
    )
    publisher.start()
    try:
        yield publisher
    finally:
        pid = publisher.pid
        publisher.close()
        lifeline.close()
        if pid is not None:
            os.waitpid(pid, 0)


def serves(publisher: PublisherProcess) -> bool:
    return publisher.lifecycle.state is ProcessState.SERVING


async def test_no_publisher_follows_one_that_ends_when_nothing_is_published(tmp_path):
    to = Publication.model_validate({"what": "telemetry", "to": "http://127.0.0.1:9"})
    with publisher_of(tmp_path, to) as publisher:
        await until(lambda: serves(publisher), "it does not serve")
        publisher.reconfigure((), LogConfig())
        os.kill(publisher.pid, signal.SIGKILL)
        await until(lambda: publisher.pid is None and publisher.lifecycle.deadline is None, "one is due")
        publisher.reconfigure((to,), LogConfig())
        await until(lambda: serves(publisher), "none is started any more")


async def test_outcomes_that_a_killed_publisher_still_reports_are_counted_once(tmp_path):
    to = Publication.model_validate({"what": "telemetry", "to": "http://127.0.0.1:9"})
    with publisher_of(tmp_path, to) as publisher:
        await until(lambda: serves(publisher), "it does not serve")
        publisher.add(TELEMETRY, "none.json")
        config = WorkersConfig()
        publisher.measured(config.memory.hard, config)
        assert serves(publisher)
        publisher.measured(2 * config.memory.hard, config)
        assert "uses 16 GB, more than the 8.0 GB of workers.memory.hard; it is killed" in publisher.problem
        places = (DestinationReport(name=to.name, sent=1),)
        publisher._received(PublishReport(orders=1, places=places), [])
        (row,) = publisher.report()
        assert (row.sent + row.dropped, row.waiting, publisher.waiting) == (1, 0, 0)


async def test_a_publisher_that_does_not_take_an_outcome_is_replaced(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(publisher_module, "ANSWER_S", 0.5)
    to = Publication.model_validate({"what": "telemetry", "to": "http://127.0.0.1:9"})
    with publisher_of(tmp_path, to) as publisher:
        await until(lambda: serves(publisher), "it does not serve")
        stopped = publisher.pid
        os.kill(stopped, signal.SIGSTOP)
        publisher.add(TELEMETRY, "none.json")
        await until(lambda: publisher.pid not in (None, stopped) and serves(publisher), "it stays")
        assert "the publisher has not answered for 0.5 s: it is killed" in caplog.text
        assert publisher.report()[0].dropped == 1, "the outcome is lost with it"
