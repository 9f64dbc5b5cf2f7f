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

CAMERA = "DemoCam"
IMAGE_TIMEOUT_S = 4.0
# Short limits, so that each of them is reached in a short run.
TIMES = {"boot_s": 10, "prepare_s": 2, "ingest_s": 2, "run_s": 3, "export_s": 2, "grace_s": 0.3, "stop_s": 3}

CENTRAL_REPO = {"central": "/repo", "instrument_class": {CAMERA: "package.DemoCam"}}
"""So that there is an asker; scripted processes open no repo."""


@dataclass(frozen=True, slots=True)
class RunFolders:
    """The folders of one run."""

    scratch: Path
    """On a disk."""
    ramdisk: Path
    """On a tmpfs if the machine has one; the path is short because sockets are in it."""

    @property
    def relay(self) -> str:
        """Address of the relay."""
        return f"ipc://{self.ramdisk}/relay.sock"

    @property
    def raws(self) -> Path:
        """The raw root."""
        return self.scratch / "raw"

    @property
    def state(self) -> Path:
        """The daemon's state directory."""
        return self.scratch / "state"


class Scene(Protocol):
    """The differences between scripted workers and real pipelines."""

    detectors: tuple[int, ...]
    worker_faults: tuple[str, ...]
    """Faults in workers that are possible."""
    process_faults: tuple[Fault, ...]
    """Faults of processes that are possible."""
    visit_every_s: float
    fault_every_s: float
    raw_timeout_s: float
    """Time for which a visit waits for raws."""
    drain_s: float
    """Time limit for all work after the last fault."""

    def settings(self, workers: int) -> dict[str, Any]:
        """Return the daemon's configuration."""

    def announcement(self, visit: Visit) -> NextVisit:
        """Return the visit that the relay reserves."""

    def write_raws(self, visit: Visit, snap: int) -> None:
        """Write the raws of one snap for all the visit's detectors."""

    def writes(self) -> dict[VisitDetector, int] | None:
        """Count permanent writes; `None` if they cannot be counted."""

    def exports(self) -> dict[VisitDetector, list[int]] | None:
        """Return the exported attempts; `None` if they are not known."""

    def done_worker_faults(self) -> Counter[str]:
        """Count the faults that happened in workers."""

    def close(self) -> None:
        """Release the camera's resources."""


@dataclass(slots=True)
class ScriptedScene:
    """Workers of `ppdaemon.testing.work`; raws of one byte."""

    folders: RunFolders
    detectors: tuple[int, ...] = tuple(range(9))
    worker_faults: tuple[str, ...] = WORKER_FAULTS
    process_faults: tuple[Fault, ...] = PROCESS_FAULTS
    visit_every_s: float = 0.45
    fault_every_s: float = 0.7
    raw_timeout_s: float = IMAGE_TIMEOUT_S
    drain_s: float = 40.0
    _camera: RawWriter = field(init=False)

    def __post_init__(self) -> None:
        self._camera = RawWriter(self.folders.raws, CAMERA)

    def settings(self, workers: int) -> dict[str, Any]:
        """Return the daemon's configuration."""
        return node_config(
            self.folders.scratch,
            self.folders.ramdisk,
            node={
                "name": "chaos",
                "ramdisk": str(self.folders.ramdisk),
                "instruments": {CAMERA: f"0-{len(self.detectors) - 1}"},
            },
            relay={"address": self.folders.relay, "silence_s": 1.0},
            butler=CENTRAL_REPO,
            # Longer than the jumps of the clock, which are one hour.
            arrivals={"image_timeout_s": IMAGE_TIMEOUT_S, "remember_s": 7200},
            workers={
                "max": workers,
                "times": TIMES,
                "memory": {"soft": "50MB", "hard": "250MB", "sample_s": 0.2},
            },
        )

    def announcement(self, visit: Visit) -> NextVisit:
        """Return the visit that the relay reserves."""
        return read_next_visit(
            {"groupId": visit.group, "instrument": CAMERA, "nimages": visit.snaps, "survey": visit.survey}
        )

    def write_raws(self, visit: Visit, snap: int) -> None:
        """Write raws and sidecars, renamed into the raw root."""
        self._camera.land(visit.group, visit.detectors, snap=snap, snaps=visit.snaps)

    def writes(self) -> dict[VisitDetector, int] | None:
        """Count permanent writes."""
        return read_writes(self.folders.state / "marks")

    def exports(self) -> dict[VisitDetector, list[int]] | None:
        """Return the exported attempts."""
        central = self.folders.state / "exported"
        return read_exports(path.name for path in central.iterdir()) if central.exists() else {}

    def done_worker_faults(self) -> Counter[str]:
        """Count the faults in the workers' log."""
        path = self.folders.state / "faults.log"
        lines = path.read_text().splitlines() if path.exists() else []
        return Counter(line.split()[0] for line in lines)

    def close(self) -> None:
        """Do nothing: there are no resources."""
