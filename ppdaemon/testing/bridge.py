# SPDX-License-Identifier: BSD-3-Clause
"""A real ``ppbridge`` under test, with a socket as systemd passes it, and a store that sends it notices."""

import http.client
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import yaml

from ppdaemon.ctl.client import BridgeDaemon
from ppdaemon.errors import Unavailable
from ppdaemon.reports import BRIDGE_SOCKET
from ppdaemon.testing.waiting import TIMEOUT_S, wait_until

__all__ = ("BridgeProcess",)

_PASS = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3);"
    " os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid())); os.execv(sys.argv[2], sys.argv[2:])"
)
"""Starts a program as systemd does: the number of its process is in its environment."""


class BridgeProcess:
    """A ``ppbridge`` in its own folder. Its HTTP socket stays open while it is down, as that of systemd.

    Parameters
    ----------
    folder : `pathlib.Path`
        With a short path; holds configuration, state, sockets and log.
    **changes
        Keys of the configuration in addition to the paths, or instead of the addresses.
    """

    def __init__(self, folder: Path, **changes: Any):
        self.state_dir = Path(changes.get("state_dir", folder / "state"))
        self.nodes = changes.get("nodes", f"ipc://{folder}/nodes")
        self.config = folder / "ppbridge.yaml"
        self.log = folder / "log"
        self.control = folder / BRIDGE_SOCKET
        self._fields = {
            "nodes": self.nodes,
            "state_dir": str(self.state_dir),
            "control": str(self.control),
        } | changes
        self._listener = _listen(0)
        self.port: int = self._listener.getsockname()[1]
        """The port of HTTP."""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The bridge's process (`subprocess.Popen`)."""
        assert self._process is not None, "the bridge was never started"
        return self._process

    def configure(self, **changes: Any) -> None:
        """Write the configuration file with further changes; a running bridge must reload it."""
        self._fields |= changes
        self.config.write_text(yaml.safe_dump(self._fields), encoding="utf-8")

    def start(self, *, wait: bool = True) -> Self:
        """Start it, and wait until it serves."""
        self.configure()
        command = [sys.executable, "-m", "ppdaemon.bridge.app", "run", "--config", str(self.config)]
        fd = self._listener.fileno()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PASS, str(fd), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[fd],
            )
        if wait:
            wait_until(self._serves, story=self._story)
        return self

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(TIMEOUT_S)

    @contextmanager
    def unreachable(self) -> Iterator[None]:
        """Stop it with its host: connections are refused."""
        self.stop()
        self._listener.close()
        yield
        self._listener = _listen(self.port)
        self.start()

    def close(self) -> None:
        """End it, and close its socket."""
        if self._process is not None and self._process.poll() is None:
            self.stop(signal.SIGKILL)
        self._listener.close()

    def post(self, body: bytes, path: str = "/", headers: dict[str, str] | None = None) -> int:
        """Send a notice as a store does; return the status. Raises OSError if there is no answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        try:
            connection.request("POST", path, body, headers or {})
            return connection.getresponse().status
        except http.client.HTTPException as error:
            raise ConnectionError(str(error)) from error
        finally:
            connection.close()

    @property
    def daemon(self) -> BridgeDaemon:
        """A client of its control socket."""
        return BridgeDaemon(self.control)

    def _serves(self) -> bool:
        assert self.process.poll() is None, self._story()
        try:
            self.daemon.status()
        except Unavailable:
            return False
        return True

    def _story(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


def _listen(port: int) -> socket.socket:
    return socket.create_server(("127.0.0.1", port), backlog=512)
