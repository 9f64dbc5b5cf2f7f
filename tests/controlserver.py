# SPDX-License-Identifier: BSD-3-Clause
"""A control socket answered by a script: a daemon as ``ppctl`` sees it."""

import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

ACCEPTED_TAI = 1_763_781_916.0


class ControlServer:
    """Listens in a thread; answers each request line by the script.

    Parameters
    ----------
    path : `pathlib.Path`
        The unix socket.
    answer : `~collections.abc.Callable`
        Gets the request, returns the lines to send; `None` keeps silent and
        an empty list closes the connection.
    """

    def __init__(self, path: Path, answer: Callable[[dict[str, Any]], list[bytes] | None]):
        self.path = path
        self.requests: list[dict[str, Any]] = []
        self._answer = answer
        self._connections: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            with connection.makefile("rb") as lines:
                request = json.loads(lines.readline())
            self.requests.append(request)
            replies = self._answer(request)
            if replies is None:
                self._connections.append(connection)
                continue
            with connection:
                connection.sendall(b"".join(line + b"\n" for line in replies))

    def close(self) -> None:
        """Stop listening; connections kept silent are closed."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for connection in self._connections:
            connection.close()


def status(**changes: Any) -> dict[str, Any]:
    """Return a status report as JSON values."""
    return {
        "node": "node1",
        "version": "0.1.0",
        "pid": 4711,
        "state": "running",
        "text": "2 of 4 slots idle",
        "started_tai": ACCEPTED_TAI,
        "tai": ACCEPTED_TAI + 7980,
        "relay": "connected relay",
        "slots": {"idle": 2, "processing": 1, "quarantined": 1},
        "workers_max": 16,
        "capacity": 16,
        "logs": "/logs",
        "queued": 0,
        "open_visits": 1,
        "outcomes": {"succeeded": 34, "no_image": 1, "crashed": 1},
        "spooled": 2,
        "exporter": "idle",
        "arrivals": [{"name": "inotify /data/raw", "live": True, "files": 36}],
        "counters": {"bad_message.json": 3},
        "problems": [
            {
                "source": "slots",
                "text": "slot 3 is quarantined: ImportError: no module named 'sky'",
                "since_tai": ACCEPTED_TAI + 7380,
                "degrades": True,
            }
        ],
        "supervisor_mb": 51.6,
        "ramdisk_mb": 310.0,
        "template_ms": 412.0,
        "leftovers_removed": 1,
    } | changes


def worker(slot: int, **changes: Any) -> dict[str, Any]:
    """Return a slot as JSON values."""
    return {"slot": slot, "state": "idle", "epoch": 1, "pid": 5000 + slot, "since_s": 12.5} | changes


def late(**changes: Any) -> dict[str, Any]:
    """Return a late raw as JSON values."""
    return {
        "instrument": "DemoCam",
        "group": "2025-11-22T03:25:16.951",
        "detector": 4,
        "exposure": 2025112100156,
        "path": "/data/raw/DemoCam/20251121/DC_O_20251121_000156/DC_O_20251121_000156_R22_S11.fits",
        "seen_tai": ACCEPTED_TAI + 300.0,
        "attempt": 1,
        "outcome": "no_image",
    } | changes


def summary(**changes: Any) -> dict[str, Any]:
    """Return a visit with a failed detector, as JSON values."""
    return {
        "instrument": "DemoCam",
        "group": "2025-11-22T03:25:16.951",
        "survey": "BLOCK-365",
        "received_tai": ACCEPTED_TAI,
        "detectors": {0: "succeeded", 1: "crashed", 2: "prepared"},
        "slowest_s": 38.1,
        "failed_detector": 1,
        "reason": "SIGSEGV [in subtract]",
    } | changes


def visit(detector: int, **changes: Any) -> dict[str, Any]:
    """Return a visit-detector that succeeded, as JSON values."""
    after = {
        "accepted": 0.0,
        "assigned": 0.01,
        "prepared": 4.0,
        "arrived": 38.0,
        "ingested": 38.05,
        "first_task": 38.1,
        "processed": 40.1,
        "spooled": 40.3,
        "central": 42.0,
    }
    return {
        "instrument": "DemoCam",
        "group": "2025-11-22T03:25:16.951",
        "detector": detector,
        "attempt": 1,
        "survey": "BLOCK-365",
        "outcome": "succeeded",
        "pipeline": "/pipelines/ApPipe.yaml",
        "slot": detector,
        "pid": 5000 + detector,
        "exposures": [2025112100156],
        "datasets": 12,
        "stages": {stage: ACCEPTED_TAI + seconds for stage, seconds in after.items()},
        "shutter_close_tai": ACCEPTED_TAI + 35.0,
        "ended_tai": ACCEPTED_TAI + 40.3,
    } | changes
