# SPDX-License-Identifier: BSD-3-Clause
"""The node's one process that asks for all workers: started, replaced and started again."""

import signal
import socket
import subprocess
import sys

from ppdaemon.reports import ReloadRequest
from ppdaemon.states import Outcome
from ppdaemon.testing.node import running_node
from ppdaemon.testing.processes import alive
from ppdaemon.testing.waiting import TIMEOUT_S

BUTLER = {"central": "/repo", "instrument_class": {"DemoCam": "package.DemoCam"}}


def starts(node):
    """Return pid and template of each asker that was started."""
    path = node.state / "askers"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(pid), template) for pid, template in map(str.split, lines)]


def wait_for_starts(node, count):
    node.wait(lambda: len(starts(node)) == count)
    return starts(node)[-1]


def test_an_asker_that_has_ended_is_started_again(tmp_path, socket_dir):
    with running_node(tmp_path, socket_dir, butler=BUTLER) as node:
        first, _ = wait_for_starts(node, 1)
        doorbell = node.ramdisk / "ppdaemon-n1" / "slots" / "asker" / "doorbell"
        doorbell.write_bytes(b"\0")
        second, _ = wait_for_starts(node, 2)
        assert second != first
        assert not alive(first)
        doorbell.write_bytes(b"\0")  # the next pause is longer
        (problem,) = node.wait(lambda: [each for each in node.status().problems if "asker" in each.text])
        assert problem.text.startswith("preload: workers ask the central repo by themselves")
        assert not problem.degrades
        second, _ = wait_for_starts(node, 3)
        assert "the asker ended" in (tmp_path / "daemon.log").read_text()
        node.relay.reserve("g1")
        node.land("g1")
        assert node.relay.outcome("g1").outcome == Outcome.SUCCEEDED
    assert not alive(second)


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


SCRIPT = """
import os, signal, socket, sys, time
from ppdaemon.messages import ORDERS
from ppdaemon.worker import main
from ppdaemon.worker.channel import Channel

class Scripted:
    def fileno(self):
        return 0

    def prepare(self):
        pass

    def answer(self, begins):
        {}

signal.signal(signal.SIGALRM, signal.SIG_IGN)  # as what started the daemon may have done
main.ANSWER_S = {}
main._serve_questions(Channel(socket.socket(fileno=int(sys.argv[1])), ORDERS), Scripted())
"""


def exit_status(answer, limit_s):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        script = SCRIPT.format(answer, limit_s)
        command = [sys.executable, "-c", script, str(theirs.fileno())]
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], check=False)
    return ended.returncode


def test_an_asker_that_hangs_ends():
    assert exit_status("time.sleep(600)", limit_s=0.1) == -signal.SIGALRM


def test_an_asker_that_has_much_to_answer_does_not_end():
    steps = "[(begins(), time.sleep(0.5)) for _ in range(8)]; os._exit(0)"
    assert exit_status(steps, limit_s=2.0) == 0
