# SPDX-License-Identifier: BSD-3-Clause
"""The camera of a chaos run with scripted workers: configuration and raw files."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from chaos_check import read_exports, read_writes
from chaos_plan import PROCESS_FAULTS, WORKER_FAULTS, Fault, Visit

from ppdaemon.testing.node import node_config
from ppdaemon.testing.played import VisitDetector
from ppdaemon.testing.raws import RawWriter
from ppdaemon.visit import NextVisit, read_next_visit

__all__ = ("Places", "Scene", "ScriptedScene")

CAMERA = "DemoCam"
IMAGE_TIMEOUT_S = 4.0
TIMES = {"boot_s": 10, "prepare_s": 2, "ingest_s": 2, "run_s": 3, "export_s": 2, "grace_s": 0.3, "stop_s": 3}


@dataclass(frozen=True, slots=True)
class Places:
    """The folders of one run."""

    scratch: Path
    """On a disk."""
    ramdisk: Path
    """On a tmpfs where there is one; its path is short."""

    @property
    def relay(self) -> str:
        """Where the relay listens (`str`)."""
        return f"ipc://{self.ramdisk}/relay.sock"

    @property
    def raws(self) -> Path:
        """Where raws land (`pathlib.Path`)."""
        return self.scratch / "raw"

    @property
    def state(self) -> Path:
        """The daemon's state directory (`pathlib.Path`)."""
        return self.scratch / "state"


class Scene(Protocol):
    """What differs between scripted workers and real pipelines."""

    detectors: tuple[int, ...]
    worker_faults: tuple[str, ...]
    """What may go wrong in workers."""
    process_faults: tuple[Fault, ...]
    """What may happen to processes."""
    visit_every_s: float
    fault_every_s: float
    patience_s: float
    """How long a visit waits for raws."""
    drain_s: float
    """After the last fault everything ends within this."""

    def settings(self, workers: int) -> dict[str, Any]:
        """Return the daemon's configuration."""

    def announcement(self, visit: Visit) -> NextVisit:
        """Return what the relay reserves."""

    def land(self, visit: Visit, snap: int) -> None:
        """Let the raws of one snap land, of all the visit's detectors."""

    def writes(self) -> dict[VisitDetector, int] | None:
        """Count permanent writes, if they can be counted."""

    def exports(self) -> dict[VisitDetector, list[int]] | None:
        """Return which attempts were exported, if it can be known."""

    def done_worker_faults(self) -> Counter[str]:
        """Count what went wrong in workers."""

    def close(self) -> None:
        """Close what the camera has opened."""


@dataclass(slots=True)
class ScriptedScene:
    """Workers of `ppdaemon.testing.work`; raws of one byte."""

    places: Places
    detectors: tuple[int, ...] = tuple(range(9))
    worker_faults: tuple[str, ...] = WORKER_FAULTS
    process_faults: tuple[Fault, ...] = PROCESS_FAULTS
    visit_every_s: float = 0.45
    fault_every_s: float = 0.8
    patience_s: float = IMAGE_TIMEOUT_S
    drain_s: float = 40.0
    _camera: RawWriter = field(init=False)

    def __post_init__(self) -> None:
        self._camera = RawWriter(self.places.raws, CAMERA)

    def settings(self, workers: int) -> dict[str, Any]:
        """Return the daemon's configuration."""
        return node_config(
            self.places.scratch,
            self.places.ramdisk,
            node={
                "name": "chaos",
                "ramdisk": str(self.places.ramdisk),
                "instruments": {CAMERA: f"0-{len(self.detectors) - 1}"},
            },
            relay={"address": self.places.relay, "silence_s": 1.0},
            # Remembered for long enough by a clock that is an hour off, too.
            arrivals={"image_timeout_s": IMAGE_TIMEOUT_S, "remember_s": 7200},
            workers={
                "max": workers,
                "times": TIMES,
                "memory": {"soft": "50MB", "hard": "250MB", "sample_s": 0.2},
            },
        )

    def announcement(self, visit: Visit) -> NextVisit:
        """Return what the relay reserves."""
        return read_next_visit(
            {"groupId": visit.group, "instrument": CAMERA, "nimages": visit.snaps, "survey": visit.survey}
        )

    def land(self, visit: Visit, snap: int) -> None:
        """Let raws and sidecars land, renamed into place."""
        self._camera.land(visit.group, visit.detectors, snap=snap, snaps=visit.snaps)

    def writes(self) -> dict[VisitDetector, int] | None:
        """Count permanent writes."""
        return read_writes(self.places.state / "marks")

    def exports(self) -> dict[VisitDetector, list[int]] | None:
        """Return which attempts were exported."""
        central = self.places.state / "exported"
        return read_exports(path.name for path in central.iterdir()) if central.exists() else {}

    def done_worker_faults(self) -> Counter[str]:
        """Count what the workers noted."""
        path = self.places.state / "faults.log"
        lines = path.read_text().splitlines() if path.exists() else []
        return Counter(line.split()[0] for line in lines)

    def close(self) -> None:
        """Nothing is open."""
