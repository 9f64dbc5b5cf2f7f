# SPDX-License-Identifier: BSD-3-Clause
"""The node's one process that asks for all workers: started, replaced and started again."""

import asyncio
import fcntl
import os
import signal
import socket
import struct
import subprocess
import termios
import time
from contextlib import contextmanager

import pytest

from ppdaemon.config import WorkersConfig
from ppdaemon.folders import NodeFolders
from ppdaemon.messages import Asked, Forked, Ready
from ppdaemon.node.processes import asker
from ppdaemon.node.processes.asker import LATE_S, SILENT_S, SLOT, AskerProcess
from ppdaemon.node.processes.child import ChildProcess
from ppdaemon.reports import ReloadRequest
from ppdaemon.testing.node import NodeProcess, running_node
from ppdaemon.testing.processes import alive
from ppdaemon.testing.waiting import TIMEOUT_S, wait_until
from ppdaemon.wire import encode

BUTLER = {"central": "/repo", "instrument_class": {"DemoCam": "package.DemoCam"}}


def starts(node):
    """Return pid and template of each asker that was started."""
    path = node.state / "askers"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(pid), template) for pid, template in map(str.split, lines)]


def wait_for_starts(node, count):
    node.wait(lambda: len(starts(node)) == count)
    return starts(node)[-1]


def doorbell_of(node):
    return node.ramdisk / "ppdaemon-n1" / "slots" / "asker" / "doorbell"


def ring(node, word):
    """Write an order of the test for the asker, and wait until it has read that."""
    with doorbell_of(node).open("r+b", buffering=0) as doorbell:
        doorbell.write(word)
        unread = struct.Struct("i")
        node.wait(lambda: unread.unpack(fcntl.ioctl(doorbell, termios.FIONREAD, bytes(4))) == (0,))


def log_of(tmp_path):
    return (tmp_path / "daemon.log").read_text()


def test_an_asker_that_has_ended_is_started_again(tmp_path, socket_dir):
    with running_node(tmp_path, socket_dir, butler=BUTLER) as node:
        first, _ = wait_for_starts(node, 1)
        ring(node, b"fail")
        second, _ = wait_for_starts(node, 2)
        assert second != first
        assert not alive(first)
        ring(node, b"fail")  # the next pause is longer
        (problem,) = node.wait(lambda: [each for each in node.status().problems if "asker" in each.text])
        assert problem.text.startswith("preload: workers ask the central repo by themselves")
        assert not problem.degrades
        second, _ = wait_for_starts(node, 3)
        assert "the asker ended" in log_of(tmp_path)
        node.succeed("g1")
    assert not alive(second)


@pytest.mark.parametrize(("configured", "of_asker"), [(5, 1), (0, 0)])
def test_workers_give_way_to_the_asker_and_both_to_the_supervisor(tmp_path, socket_dir, configured, of_asker):
    with running_node(tmp_path, socket_dir, butler=BUTLER, workers={"nice": configured}) as node:
        pid, _ = wait_for_starts(node, 1)
        workers = node.wait(lambda: [row.pid for row in node.workers() if row.pid])

        def nicer(pid):
            return os.getpriority(os.PRIO_PROCESS, pid) - os.getpriority(os.PRIO_PROCESS, node.pid)

        assert nicer(pid) == of_asker
        assert {nicer(each) for each in workers} == {configured}


def test_an_asker_has_the_configuration_of_the_workers(tmp_path, socket_dir):
    with running_node(tmp_path, socket_dir, butler=BUTLER) as node:
        old, template = wait_for_starts(node, 1)
        assert template == "template-1"
        node.rewrite(log={"level": "WARNING"})
        node.daemon.ask(ReloadRequest(), timeout_s=TIMEOUT_S)
        new, template = wait_for_starts(node, 2)
        assert template == "template-2"
        node.wait(lambda: not alive(old))
        node.wait(lambda: len(node.zygotes()) == 1)  # no process keeps the old one
        assert alive(new)


def test_the_questions_of_a_configuration_are_deleted_with_it(tmp_path, socket_dir):
    with running_node(tmp_path, socket_dir, butler=BUTLER) as node:
        folders = NodeFolders(node.ramdisk / "ppdaemon-n1", node.state)
        for generation in (1, 2):
            folders.questions(generation).mkdir(parents=True)
            (folders.questions(generation) / ".lock").touch()
        node.daemon.ask(ReloadRequest(), timeout_s=TIMEOUT_S)
        node.wait(lambda: not folders.questions(1).exists())
        assert folders.questions(2).exists()


def test_a_configuration_without_a_central_repo_ends_the_asker_and_one_with_it_starts_one(
    tmp_path, socket_dir
):
    with running_node(tmp_path, socket_dir, butler=BUTLER) as node:
        old, _ = wait_for_starts(node, 1)
        config = node.config.pop("butler")
        node.rewrite()
        node.daemon.ask(ReloadRequest(), timeout_s=TIMEOUT_S)
        node.wait(lambda: not alive(old))
        node.wait(lambda: len(node.zygotes()) == 1)  # it keeps no old one
        assert node.status().asker is None
        assert not any("asker" in text for text in node.status().problem_texts)
        node.rewrite(butler=config)
        node.daemon.ask(ReloadRequest(), timeout_s=TIMEOUT_S)
        new, template = wait_for_starts(node, 2)
        assert template == "template-3"
        node.wait(lambda: node.status().asker.serving)
        assert node.status().asker.replaced == 0, "by a reload only"
    assert not alive(new)


def test_a_stopped_asker_is_replaced_with_the_configuration(tmp_path, socket_dir):
    with running_node(tmp_path, socket_dir, butler=BUTLER) as node:
        old, _ = wait_for_starts(node, 1)
        os.kill(old, signal.SIGSTOP)
        node.rewrite(log={"level": "WARNING"})
        node.daemon.ask(ReloadRequest(), timeout_s=TIMEOUT_S)
        _, template = wait_for_starts(node, 2)
        assert template == "template-2"
        node.wait(lambda: not alive(old))


def test_the_status_has_what_an_asker_has_answered(tmp_path, socket_dir):
    with running_node(tmp_path, socket_dir, butler=BUTLER) as node:
        wait_for_starts(node, 1)
        ring(node, b"answer")
        asker = node.wait(lambda: (asker := node.status().asker).questions and asker)
        assert (asker.questions, asker.batches, asker.replaced) == (2, 1, 0)
        assert (asker.wait_p50_ms, asker.wait_p99_ms, asker.late_s) == (20.0, 20.0, None)
        assert asker.serving
        assert node.wait(lambda: node.status().asker.memory_mb) > 1


def test_an_asker_with_too_much_memory_is_replaced(tmp_path, socket_dir):
    memory = {"soft": "400 MB", "hard": "1 GB", "sample_s": 0.1}
    with running_node(tmp_path, socket_dir, butler=BUTLER, workers={"memory": memory}) as node:
        old, _ = wait_for_starts(node, 1)
        for _ in range(3):
            ring(node, b"grow")
        doorbell_of(node).write_bytes(b"grow")  # one that has read this is killed at any moment
        wait_for_starts(node, 2)
        node.wait(lambda: not alive(old))
        assert "more than the 400 MB of workers.memory.soft: it is killed" in log_of(tmp_path)
        assert node.status().asker.replaced == 1


@pytest.mark.slow
def test_an_asker_is_replaced_at_its_age(tmp_path, socket_dir):
    workers = {"recycle_age_s": 3, "memory": {"sample_s": 0.1}}
    with running_node(tmp_path, socket_dir, butler=BUTLER, workers=workers) as node:
        old, _ = wait_for_starts(node, 1)
        node.wait(lambda: len(starts(node)) > 1)
        node.wait(lambda: not alive(old))
        assert "the asker is replaced because of its age" in log_of(tmp_path)
        assert node.status().asker.replaced == 0


def test_a_module_without_open_asker_processes_visits_and_is_a_problem(tmp_path, socket_dir):
    (tmp_path / "site_work.py").write_text("from ppdaemon.testing.work import *\ndel open_asker\n")
    workers = {"work": "site_work", "environment": {"PYTHONPATH": str(tmp_path)}}
    with running_node(tmp_path, socket_dir, butler=BUTLER, workers=workers) as node:
        (problem,) = node.wait(lambda: node.status().problems)
        assert "workers ask the central repo by themselves" in problem.text
        assert not problem.degrades
        assert "no attribute 'open_asker'" in (node.state / "logs" / "asker.log").read_text()
        node.succeed("g1")


@pytest.mark.parametrize("end", [NodeProcess.stop, NodeProcess.kill])
def test_no_asker_is_left_when_the_daemon_has_ended(tmp_path, socket_dir, end):
    with running_node(tmp_path, socket_dir, butler=BUTLER) as node:
        pid, _ = wait_for_starts(node, 1)
        ring(node, b"hang")
        end(node)
        wait_until(lambda: not alive(pid), TIMEOUT_S, lambda: f"asker {pid} is left")
        node.start()
        wait_for_starts(node, 2)


@pytest.mark.slow
def test_a_stopped_asker_is_replaced_within_a_minute(tmp_path, socket_dir):
    with running_node(tmp_path, socket_dir, butler=BUTLER) as node:
        old, _ = wait_for_starts(node, 1)
        os.kill(old, signal.SIGSTOP)
        (problem,) = node.wait(lambda: node.status().problems, deadline_s=2 * SILENT_S)
        assert "workers ask the central repo by themselves" in problem.text
        assert "the asker has not reported for" in problem.text
        assert not problem.degrades
        assert not node.status().asker.serving
        node.wait(lambda: len(starts(node)) == 2, deadline_s=2 * SILENT_S)
        assert not alive(old)
        assert f"the asker has not answered for {SILENT_S:g} s: it is killed" in log_of(tmp_path)


# --- an asker that the test plays ----------------------------------------------


class PlayedAsker:
    """Plays the zygote and the askers that it would fork: a process that sleeps, and the test."""

    def __init__(self, folder):
        self._passed_s = 0.0
        asyncio.get_running_loop().time = lambda: time.monotonic() + self._passed_s
        self.orders = []
        self.processes = []
        self.channels = []
        folders = NodeFolders(folder / "ramdisk", folder)
        folders.logs.mkdir()
        self.asker = AskerProcess(folders, self._ask, jitter=lambda: 0.0)
        self.asker.start()

    def _ask(self, order):
        self.orders.append(order)
        return True

    def pass_time(self, seconds):
        """Let this time pass for the asker and its timers, without waiting."""
        self._passed_s += seconds

    async def serve(self):
        """Answer the last order: there is a process, and it is ready."""
        self._fork()
        await self.until(lambda: self.asker.report().serving, "it does not serve")

    def _fork(self):
        process = subprocess.Popen(["sleep", "600"], start_new_session=True)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.processes.append(process)
        self.channels.append(ours)
        forked = Forked(role="asker", slot=SLOT, epoch=self.orders[-1].epoch, pid=process.pid)
        self.asker.forked(forked, [theirs.detach(), os.pidfd_open(process.pid)])
        ours.send(encode(Ready(pid=process.pid)))

    async def report(self, *waited_s, idle=False):
        """Report as the asker, and wait until that is read."""
        before = self.asker._reported
        self.channels[-1].send(encode(Asked(waited_s=waited_s, idle=idle)))
        await self.until(lambda: self.asker._reported != before, "the report is not read")

    async def until(self, condition, story):
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            assert time.monotonic() < deadline, story
            await asyncio.sleep(0.005)

    def end(self):
        self.asker.close()
        for channel in self.channels:
            channel.close()
        for process in self.processes:
            process.kill()
            process.wait()


@contextmanager
def playing(tmp_path, monkeypatch):
    monkeypatch.setattr(asker, "PAUSES_S", (0.05, 0.1))
    played = PlayedAsker(tmp_path)
    try:
        yield played
    finally:
        played.end()


async def test_an_asker_that_does_not_report_is_late_then_replaced(tmp_path, monkeypatch):
    with playing(tmp_path, monkeypatch) as played:
        await played.serve()
        played.pass_time(LATE_S)
        assert played.asker.report().late_s > LATE_S
        assert "the asker has not reported for" in played.asker.problem
        assert not played.asker.report().serving
        played.pass_time(SILENT_S - LATE_S)
        await played.until(lambda: len(played.orders) == 2, "it is not replaced")
        assert await asyncio.to_thread(played.processes[0].wait, TIMEOUT_S) == -signal.SIGKILL
        assert f"has not answered for {SILENT_S:g} s" in played.asker.problem
        await played.serve()
        assert played.asker.report().replaced == 1


async def test_an_asker_that_reports_stays_however_long_it_answers(tmp_path, monkeypatch):
    with playing(tmp_path, monkeypatch) as played:
        await played.serve()
        for _ in range(5):
            played.pass_time(SILENT_S / 2)
            await played.report(0.25)
        assert len(played.orders) == 1
        report = played.asker.report()
        assert report.questions == report.batches == 5
        assert report.wait_p50_ms == 250.0


async def test_an_old_asker_is_replaced_and_is_no_problem(tmp_path, monkeypatch):
    with playing(tmp_path, monkeypatch) as played:
        await played.serve()
        for _ in range(17):
            played.pass_time(SILENT_S / 2)
            await played.report(idle=True)
            played.asker.measured(1, WorkersConfig(recycle_age_s=600))
        await played.report(idle=True)
        assert len(played.orders) == 1
        played.pass_time(SILENT_S / 2)  # a tenth earlier than configured
        played.asker.measured(1, WorkersConfig(recycle_age_s=600))
        await played.report(0.25)
        await played.report()  # such as after questions that could not be answered together
        assert len(played.orders) == 1, "replaced while it answers questions"
        await played.report(idle=True)
        assert len(played.orders) == 2
        assert await asyncio.to_thread(played.processes[0].wait, TIMEOUT_S) == -signal.SIGKILL
        assert (played.asker.problem, played.asker.report().replaced) == ("", 0)


async def test_another_asker_starts_though_the_one_before_does_not_end_and_no_third(tmp_path, monkeypatch):
    """As on a file system that hangs."""
    with playing(tmp_path, monkeypatch) as played:
        monkeypatch.setattr(ChildProcess, "signal", lambda *_: None)
        monkeypatch.setattr(ChildProcess, "close", lambda self: (self.channel.close(), os.close(self.pidfd)))
        await played.serve()
        played.pass_time(SILENT_S)
        await played.until(lambda: len(played.orders) == 2, "no other one starts")
        assert played.processes[0].poll() is None
        await played.serve()
        played.pass_time(SILENT_S)
        await played.until(lambda: "2 that were killed have not ended" in played.asker.problem, "no problem")
        for _ in range(5):
            played.pass_time(SILENT_S)
            await asyncio.sleep(0.01)
        assert len(played.orders) == 2, "a third one starts"
        played.processes[0].kill()
        await played.until(lambda: len(played.orders) == 3, "none follows one that has ended")
        await played.serve()
