# SPDX-License-Identifier: BSD-3-Clause
"""ROUTER sockets that programs of other hosts connect to: options, address, sending."""

import errno
import logging
import os
from asyncio import Future
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import zmq
import zmq.asyncio

from ppdaemon.curve import Gatekeeper
from ppdaemon.errors import PPDaemonError
from ppdaemon.privatefiles import check_socket_folder
from ppdaemon.states import ExitCode

__all__ = ("COMMON_OPTIONS", "CannotBind", "bind", "send")

_LOG = logging.getLogger(__name__)

COMMON_OPTIONS = {
    # Milliseconds that a closed socket may still send. Short, so that a stop takes
    # less than a second: the next run sends unacknowledged messages again.
    zmq.LINGER: 100,
    # The default is 30 s, in which each half-open connection of a port scanner
    # would use resources.
    zmq.HANDSHAKE_IVL: 3000,
    # Connections that may wait for the I/O thread, such as of all nodes after a restart; the default
    # is 100.
    zmq.BACKLOG: 1024,
    # Closes connections whose other end has disappeared (host down, cable), and
    # drops their queues.
    zmq.HEARTBEAT_IVL: 5000,
    zmq.HEARTBEAT_TIMEOUT: 15_000,
}


class CannotBind(PPDaemonError):
    """A program cannot listen on a configured address."""

    def __init__(self, key: str, address: str, error: zmq.ZMQError):
        text = str(error)
        self.exit_code = ExitCode.UNAVAILABLE
        if error.errno == errno.EADDRINUSE:
            text = "the port is in use; check whether the same program runs on this host already"
            self.exit_code = ExitCode.TRY_LATER
        elif error.errno == errno.EACCES:
            text = "this user may not listen there; choose a port above 1023"
            self.exit_code = ExitCode.PERMISSION
        elif error.errno in (errno.ENODEV, errno.EADDRNOTAVAIL, errno.EINVAL):
            text = "this host has no such address or name"
        super().__init__(f"{key}: cannot listen on {address}: {text}")


def bind(
    context: zmq.asyncio.Context,
    key: str,
    address: str,
    options: Mapping[zmq.SocketOption, int],
    gatekeeper: Gatekeeper | None,
) -> zmq.asyncio.Socket:
    """Open the ROUTER of a key of the configuration, which is also the domain of its allow-list; raise
    `CannotBind` if the address is not free.
    """
    socket = context.socket(zmq.ROUTER)
    for option, value in options.items():
        socket.setsockopt(option, value)
    if gatekeeper is not None:
        gatekeeper.apply(socket, key)
    if address.startswith("ipc:///"):
        check_socket_folder(Path(address.removeprefix("ipc://")).parent)
    # The file of an ipc socket gets its mode from here: for other users of the host there are keys.
    before = os.umask(0o177)
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        socket.close(linger=0)
        raise CannotBind(key, address, error) from None
    finally:
        os.umask(before)
    _LOG.info("listening", extra={"socket": key, "address": socket.getsockopt_string(zmq.LAST_ENDPOINT)})
    return socket


def send(socket: zmq.asyncio.Socket, frames: Sequence[bytes]) -> zmq.ZMQError | None:
    """Send without waiting; return the error if ZeroMQ does not accept the message.

    With NOBLOCK the socket's future is done when `send_multipart` returns.
    """
    sending = cast(Future[None], socket.send_multipart(frames, flags=zmq.NOBLOCK))
    error = sending.exception()
    if error is not None and not isinstance(error, zmq.ZMQError):
        raise error
    return error
