# SPDX-License-Identifier: BSD-3-Clause
"""A real ``pprelay`` for tests, with clients and nodes that speak to it.

The node here is a raw DEALER that says what a test tells it to say.
"""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import yaml
import zmq
from waiting import wait_until

from ppdaemon.messages import (
    AckedVisit,
    CancelVisit,
    FromRelay,
    Heartbeat,
    Hello,
    NakedVisit,
    ReserveVisit,
    ResultEntry,
    Results,
)
from ppdaemon.states import Outcome
from ppdaemon.wire import decode, encode

__all__ = ("PATIENCE_S", "ROOT", "SILENCE_S", "Client", "Peer", "RelayProcess", "Wires")

ROOT = Path(__file__).parents[1]
DETECTORS = range(9)
PATIENCE_S = 30.0
"""For what takes a moment on a machine that is not busy."""
SILENCE_S = 3.0
"""A node that the test plays says nothing while the test does something else."""


class Wires:
    """Makes sockets and keeps them until all are closed; a context manager."""

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sockets: list[zmq.Socket[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.destroy(linger=0)

    def connect(self, kind: zmq.SocketType, address: str) -> zmq.Socket[bytes]:
        """Give a connected socket that waits with patience."""
        made = self._context.socket(kind)
        self._sockets.append(made)
        made.rcvtimeo = round(PATIENCE_S * 1000)
        made.set(zmq.RECONNECT_IVL, 20)
        made.connect(address)
        return made


class RelayProcess:
    """A ``pprelay`` in a folder of its own, on unix sockets.

    Parameters
    ----------
    folder : `pathlib.Path`
        With a short path; holds configuration, state, sockets and log.
    **changes
        Configuration beside the paths.
    """

    def __init__(self, folder: Path, **changes: Any):
        self.folder = folder
        self.state_dir = folder / "state"
        self.submit = f"ipc://{folder}/submit"
        self.nodes = f"ipc://{folder}/nodes"
        self.config = folder / "pprelay.yaml"
        self.log = folder / "log"
        fields = {
            "submit": self.submit,
            "nodes": self.nodes,
            "state_dir": str(self.state_dir),
            "instruments": {"DemoCam": {"detectors": "0-8"}},
            "heartbeat_s": 0.1,
            "silence_s": SILENCE_S,
            "resend_s": 0.2,
        }
        self.config.write_text(yaml.safe_dump(fields | changes), encoding="utf-8")
        self.process: subprocess.Popen[bytes] | None = None

    def command(self, *arguments: str) -> list[str]:
        """Return the words that start the program."""
        return [sys.executable, "-m", "ppdaemon.relay.app", *arguments, "--config", str(self.config)]

    def start(self, **environment: str) -> "RelayProcess":
        """Start it and wait until it listens."""
        listening = self.told().count("listening")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command("run"), cwd=ROOT, stderr=log, env={**os.environ, **environment}
            )
        wait_until(lambda: self.told().count("listening") == listening + 2, PATIENCE_S, self.log.read_text)
        return self

    def told(self, event: str | None = None) -> list[str]:
        """Return what it logged: all events, or those that contain a text."""
        text = self.log.read_text(encoding="utf-8") if self.log.exists() else ""
        lines = text[: text.rfind("\n") + 1].splitlines()  # the last one may be half written
        events = [json.loads(line)["event"] if line.startswith("{") else line for line in lines]
        return [found for found in events if event is None or event in found]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end; return the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def stop_took_s(self) -> float:
        """Return how long the last stop took, by its own account."""
        events = [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]
        times = {event["event"]: datetime.fromisoformat(event["timestamp"]) for event in events}
        return (times["stopped"] - times["stopping"]).total_seconds()

    def kill(self) -> None:
        """End it without a word."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(PATIENCE_S)


class Client:
    """A REQ socket on the submit side.

    Parameters
    ----------
    wires : `Wires`
        Makes the socket.
    address : `str`
        The relay's submit socket.
    """

    def __init__(self, wires: Wires, address: str):
        self._socket = wires.connect(zmq.REQ, address)

    def ask(self, fields: dict[str, Any] | bytes) -> dict[str, Any]:
        """Send an object, or any bytes, and return the answer."""
        self._socket.send(fields if isinstance(fields, bytes) else json.dumps(fields).encode())
        answer = json.loads(self._socket.recv())
        assert isinstance(answer, dict)
        return answer

    def announce(self, group: str, **fields: Any) -> dict[str, Any]:
        """Send a next_visit of DemoCam."""
        stamp = {"private_sndStamp": time.time() + 37.0}
        return self.ask({"groupId": group, "instrument": "DemoCam", **stamp, **fields})

    def outcomes(self, group: str) -> dict[int, str | None]:
        """Return how the detectors of a visit stand."""
        answer = self.ask({"type": "visit_status", "groupId": group})
        return {found["detector"]: found.get("outcome") for found in answer.get("outcomes", [])}


class Peer:
    """A node's end of the link.

    Parameters
    ----------
    wires : `Wires`
        Makes the socket.
    address : `str`
        The relay's node socket.
    name, life : `str`
        How it introduces itself.
    detectors : `~collections.abc.Iterable` [`int`]
        What it offers of DemoCam.
    """

    def __init__(
        self,
        wires: Wires,
        address: str,
        name: str,
        *,
        life: str = "life1",
        detectors: range = DETECTORS,
    ):
        self.name = name
        self._life = life
        self._detectors = tuple(detectors)
        self._socket = wires.connect(zmq.DEALER, address)
        self._sequence = 0
        self._beat_at = 0.0
        self.heard: list[Any] = []
        self.hello()

    def _say(self, kind: type[Any], **fields: Any) -> None:
        self._sequence += 1
        message = kind(origin=self.name, sent_tai=time.time() + 37.0, sequence=self._sequence, **fields)
        self._socket.send(encode(message))

    def hello(self) -> None:
        """Say who this is."""
        offered = {"DemoCam": self._detectors}
        self._say(Hello, life=self._life, instruments=offered, capacity=len(self._detectors))

    def raw(self, *frames: bytes) -> None:
        """Send anything."""
        self._socket.send_multipart(frames)

    def listen(self) -> None:
        """Take in what came, and stay alive; hello to a relay that asks."""
        if time.monotonic() - self._beat_at > 0.1:
            self._beat_at = time.monotonic()
            self._say(Heartbeat)
        while self._socket.poll(0):
            message = decode(self._socket.recv(), FromRelay, limit=10**6)
            self.heard.append(message)
            if message.type == "sorry" and message.code == "stranger":
                self.hello()

    def got(self, kind: str, count: int = 1) -> list[Any]:
        """Wait until so many messages of a kind came; return all of them.

        There can be more: what is not acknowledged is sent again.
        """

        def enough() -> list[Any]:
            self.listen()
            found = [message for message in self.heard if message.type == kind]
            return found if len(found) >= count else []

        return wait_until(enough, PATIENCE_S, lambda: f"{count} {kind} in {self.heard}")

    def ack(self, order: ReserveVisit) -> None:
        """Acknowledge an order."""
        self._say(AckedVisit, **_names(order), detectors=order.detectors, attempt=order.attempt)

    def nak(self, order: ReserveVisit, reason: str, *, final: bool) -> None:
        """Refuse an order."""
        fields = {"detectors": order.detectors, "attempt": order.attempt, "reason": reason, "final": final}
        self._say(NakedVisit, **_names(order), **fields)

    def finish(self, order: ReserveVisit, outcome: Outcome = Outcome.SUCCEEDED) -> None:
        """Report an outcome for each detector of an order."""
        entries = [
            ResultEntry(**_names(order), detector=detector, attempt=order.attempt, outcome=outcome)
            for detector in order.detectors
        ]
        self._say(Results, entries=tuple(entries))

    def hang_up(self) -> None:
        """Close the connection without a word."""
        self._socket.close(linger=0)


def _names(order: ReserveVisit | CancelVisit) -> dict[str, str]:
    if isinstance(order, ReserveVisit):
        return {"instrument": order.visit.instrument, "group": order.visit.group}
    return {"instrument": order.instrument, "group": order.group}
