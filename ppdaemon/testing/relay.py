# SPDX-License-Identifier: BSD-3-Clause
"""A real ``pprelay`` under test, and a client of its submit socket."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import yaml
import zmq

from ppdaemon.clock import Clock
from ppdaemon.ctl.client import RelayDaemon
from ppdaemon.curve import ClientKeys
from ppdaemon.errors import Unavailable
from ppdaemon.reports import RELAY_SOCKET
from ppdaemon.testing.played import ClientSockets
from ppdaemon.testing.waiting import TIMEOUT_S, wait_until

__all__ = ("SILENCE_S", "RelayProcess", "SubmitClient")

SILENCE_S = 3.0
"""Long enough for a played node that sends nothing while a test does other things."""


class RelayProcess:
    """A ``pprelay`` in its own folder, on unix sockets; a ``with`` statement stops it at its end.

    Parameters
    ----------
    folder : `pathlib.Path`
        With a short path; holds configuration, state, sockets and log.
    launcher : `~collections.abc.Sequence` [`str`], optional
        A command that starts the command after it.
    **changes
        Keys of the configuration in addition to the paths, or instead of the addresses.

    Attributes
    ----------
    submit, nodes : `str`
        Addresses of its sockets, below `folder` by default.
    state_dir, config, log : `pathlib.Path`
        Its state folder, configuration file and log file.
    control : `pathlib.Path`
        Its control socket.
    """

    def __init__(self, folder: Path, *, launcher: Sequence[str] = (), **changes: Any):
        self.state_dir = folder / "state"
        self.submit = changes.get("submit", f"ipc://{folder}/submit")
        self.nodes = changes.get("nodes", f"ipc://{folder}/nodes")
        self.config = folder / "pprelay.yaml"
        self.log = folder / "log"
        self.control = self.state_dir / RELAY_SOCKET
        fields = {
            "submit": self.submit,
            "nodes": self.nodes,
            "state_dir": str(self.state_dir),
            "instruments": {"DemoCam": {"detectors": "0-8"}},
            "heartbeat_s": 0.1,
            "silence_s": SILENCE_S,
            "resend_s": 0.2,
        }
        self._launcher = launcher
        self._fields = fields | changes
        self.configure()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The relay's process (`subprocess.Popen`)."""
        if self._process is None:
            raise AssertionError("the relay was never started")
        return self._process

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended (`bool`)."""
        return self._process is not None and self._process.poll() is None

    def configure(self, **changes: Any) -> None:
        """Write the configuration file with further changes; a running relay must reload it."""
        self._fields |= changes
        self.config.write_text(yaml.safe_dump(self._fields), encoding="utf-8")

    def command(self, *arguments: str) -> list[str]:
        """Return the command that starts the program."""
        program = (sys.executable, "-m", "ppdaemon.relay.app")
        return [*self._launcher, *program, *arguments, "--config", str(self.config)]

    def launch(self, **environment: str) -> None:
        """Start it; return at once."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command("run"), stderr=log, env={**os.environ, **environment}
            )

    def start(self, **environment: str) -> Self:
        """Start it and wait until it listens on both sockets and answers on its control socket."""
        before = len(self.events("listening"))
        self.launch(**environment)
        wait_until(lambda: len(self.events("listening")) == before + 2, TIMEOUT_S, self.log.read_text)
        wait_until(self._answers, TIMEOUT_S, self.log.read_text)
        return self

    def _answers(self) -> bool:
        try:
            RelayDaemon(self.control).status()
        except Unavailable:
            return False
        return True

    def events(self, text: str = "") -> list[str]:
        """Return the events of its log that contain a text."""
        log = self.log.read_text(encoding="utf-8") if self.log.exists() else ""
        lines = log[: log.rfind("\n") + 1].splitlines()  # the last one may be half written
        events = [json.loads(line)["event"] if line.startswith("{") else line for line in lines]
        return [event for event in events if text in event]

    def stop_duration_s(self) -> float:
        """Return the duration of the last stop in seconds, according to its log."""
        events = [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]
        times = {event["event"]: datetime.fromisoformat(event["timestamp"]) for event in events}
        return (times["stopped"] - times["stopping"]).total_seconds()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, and wait for the end; return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(TIMEOUT_S)

    def kill(self) -> None:
        """Kill it without warning, as a power cut does."""
        self.process.kill()
        self.process.wait(TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if self._process is None or self._process.returncode is not None:
            return  # the test has seen its end
        status = self.stop()
        if error is None and status != 0:
            raise AssertionError(f"the relay ended with {status}\n{self.log.read_text()}")


class SubmitClient:
    """A REQ socket on the submit side.

    Parameters
    ----------
    sockets : `~ppdaemon.testing.played.ClientSockets`
        Creates the socket, and closes it at the end of the test.
    address : `str`
        ZeroMQ address of the relay's submit socket.
    instrument : `str`, optional
        Instrument of the announced visits.
    keys : `~ppdaemon.curve.ClientKeys`, optional
        Those of an encrypted connection.
    """

    def __init__(
        self,
        sockets: ClientSockets,
        address: str,
        instrument: str = "DemoCam",
        keys: ClientKeys | None = None,
    ):
        self._socket = sockets.connect(zmq.REQ, address, keys)
        self._instrument = instrument

    def request(self, fields: dict[str, Any] | bytes) -> dict[str, Any]:
        """Send an object, or any bytes, and return the answer."""
        self._socket.send(fields if isinstance(fields, bytes) else json.dumps(fields).encode())
        answer: dict[str, Any] = json.loads(self._socket.recv())
        return answer

    def announce(self, group: str, **fields: Any) -> dict[str, Any]:
        """Send a next_visit; its further fields have their SAL names."""
        stamp = {"private_sndStamp": Clock().tai()}
        return self.request({"groupId": group, "instrument": self._instrument, **stamp, **fields})

    def outcomes(self, group: str) -> dict[int, str | None]:
        """Return the outcome of each detector of a visit, so far."""
        answer = self.request({"type": "visit_status", "groupId": group})
        return {found["detector"]: found.get("outcome") for found in answer.get("outcomes", [])}
