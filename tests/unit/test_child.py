# SPDX-License-Identifier: BSD-3-Clause
"""Messages that are left in the channel of a child process."""

import os
import socket
import subprocess
import sys
from contextlib import closing

from ppdaemon.environment import CHILD_ENVIRONMENT
from ppdaemon.node.processes.child import ChildProcess


def test_messages_of_a_process_that_ended_with_unread_orders_are_found():
    parent_end, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with closing(parent_end), closing(child_end):
        parent_end.setblocking(False)
        child = ChildProcess(pid=1, channel=parent_end, pidfd=-1)
        assert not child.has_message()
        assert child.send(b"an order")
        child_end.send(b"a message")
        child_end.close()
        assert child.has_message()
        assert parent_end.recv(100) == b"a message"
        assert not child.has_message()


def test_processes_import_nothing_from_the_current_folder(tmp_path):
    (tmp_path / "http.py").write_text("raise SystemExit('a file of the current folder')")
    command = [sys.executable, "-m", "http.server", "--help"]
    environment = {**os.environ, **CHILD_ENVIRONMENT}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, stdout=subprocess.DEVNULL)
