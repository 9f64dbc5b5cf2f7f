# SPDX-License-Identifier: BSD-3-Clause
"""What is left in the channel of a child process."""

import socket
from contextlib import closing

from ppdaemon.node.processes.child import Child


def test_messages_of_a_process_that_died_with_orders_unread_are_found():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with closing(ours), closing(theirs):
        ours.setblocking(False)
        child = Child(pid=1, channel=ours, pidfd=-1)
        assert not child.has_message()
        assert child.send(b"an order")
        theirs.send(b"a message")
        theirs.close()
        assert child.has_message()
        assert ours.recv(100) == b"a message"
        assert not child.has_message()
