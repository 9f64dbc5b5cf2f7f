# SPDX-License-Identifier: BSD-3-Clause
"""Messages to systemd, as in sd_notify(3), and sockets from it."""

import os
import socket
from collections.abc import Mapping

__all__ = ("Notifier", "passed_sockets")

FIRST_PASSED = 3
"""The first descriptor of a socket that systemd passes."""


class Notifier:
    """Sends the daemon's state to the service manager. `address` is the value of
    ``NOTIFY_SOCKET``; `None` if there is no service manager.
    """

    def __init__(self, address: str | None):
        self._address = "\0" + address[1:] if address and address.startswith("@") else address
        # Kept open: the watchdog must be served also when no descriptor is free.
        self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._sender.setblocking(False)

    def notify(self, **fields: str | int) -> None:
        """Send assignments such as ``READY=1`` or ``STATUS=...``; a line break in a value becomes a space."""
        if not self._address:
            return
        text = "\n".join(f"{name}={str(value).replace(chr(10), ' ')}" for name, value in fields.items())
        try:
            self._sender.sendto(text.encode(), self._address)
        except (BlockingIOError, ConnectionRefusedError, FileNotFoundError):
            return  # the manager restarts or is slow; the next message repeats the state


def passed_sockets(environment: Mapping[str, str]) -> list[socket.socket]:
    """Return the sockets that systemd has opened for this process, as in sd_listen_fds(3)."""
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return []
    return [socket.socket(fileno=FIRST_PASSED + n) for n in range(int(environment.get("LISTEN_FDS", "0")))]
