# SPDX-License-Identifier: BSD-3-Clause
"""The camera of a chaos run with scripted workers: configuration and raw files."""

import json
import os
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from chaos_check import Place, read_exports, read_writes
from chaos_plan import STRIKES, Fault, Visit
from chaos_work import DEEDS, DEEDS_FILE

from ppdaemon.clock import Clock, day_obs
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
    deeds: tuple[str, ...]
    """What may go wrong in workers."""
    strikes: tuple[Fault, ...]
    """What may happen to processes."""
    visit_every_s: float
    strike_every_s: float
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

    def writes(self) -> dict[Place, int] | None:
        """Count permanent writes, if they can be counted."""

    def exports(self) -> dict[Place, list[int]] | None:
        """Return which attempts were exported, if it can be known."""

    def done_deeds(self) -> Counter[str]:
        """Count what went wrong in workers."""

    def close(self) -> None:
        """Let go of what the camera holds."""


@dataclass(slots=True)
class ScriptedScene:
    """Workers of `chaos_work`; raws of one byte."""

    places: Places
    detectors: tuple[int, ...] = tuple(range(9))
    deeds: tuple[str, ...] = tuple(DEEDS)
    strikes: tuple[Fault, ...] = STRIKES
    visit_every_s: float = 0.45
    strike_every_s: float = 0.8
    patience_s: float = IMAGE_TIMEOUT_S
    drain_s: float = 40.0
    _numbers: dict[tuple[str, int], int] = field(default_factory=dict)
    """Sequence number of each snap."""

    def settings(self, workers: int) -> dict[str, Any]:
        """Return the daemon's configuration."""
        pipeline = self.places.scratch / "any.yaml"
        pipeline.write_text("{}\n")
        self.places.raws.mkdir(exist_ok=True)
        return {
            "node": {
                "name": "chaos",
                "state_dir": str(self.places.state),
                "ramdisk": str(self.places.ramdisk),
                "control": str(self.places.ramdisk / "control"),
                "instruments": {CAMERA: f"0-{len(self.detectors) - 1}"},
            },
            "relay": {"address": self.places.relay, "heartbeat_s": 0.2, "silence_s": 1.0},
            "arrivals": {
                "roots": [str(self.places.raws)],
                "image_timeout_s": IMAGE_TIMEOUT_S,
                "sidecar_wait_s": 0.2,
                "scan_s": 0.5,
                "remember_s": 7200,  # by a clock that is an hour off, too
            },
            "workers": {
                "work": "chaos_work",
                "min": 2,
                "spare": 1,
                "max": workers,
                "nice": 0,
                "environment": {"PYTHONPATH": os.pathsep.join((str(Path(__file__).parent), *sys.path))},
                "times": TIMES,
                "memory": {"soft": "100MB", "hard": "250MB", "sample_s": 0.2},
            },
            "pipelines": {"main": [{"pipelines": [str(pipeline)]}]},
            "export": {"retry_s": 0.2},
            "log": {"format": "console"},
        }

    def announcement(self, visit: Visit) -> NextVisit:
        """Return what the relay reserves."""
        return read_next_visit(
            {"groupId": visit.group, "instrument": CAMERA, "nimages": visit.snaps, "survey": visit.survey}
        )

    def land(self, visit: Visit, snap: int) -> None:
        """Let raws and sidecars land, renamed into place."""
        day = day_obs(Clock().tai())
        number = self._numbers.setdefault((visit.group, snap), len(self._numbers) + 1)
        obsid = f"DC_O_{day}_{number:06d}"
        folder = self.places.raws / CAMERA / str(day) / obsid
        folder.mkdir(parents=True, exist_ok=True)
        facts = {"OBSID": obsid, "GROUPID": visit.group, "DAYOBS": str(day), "SEQNUM": number}
        facts |= {"CONTRLLR": "O", "CAMCODE": "DC", "CURINDEX": snap, "MAXINDEX": visit.snaps}
        for detector in visit.detectors:
            name = f"{obsid}_R22_S{detector // 3}{detector % 3}"
            for suffix, data in ((".json", json.dumps(facts).encode()), (".fits", SMALL_FITS)):
                part = folder / f".{name}{suffix}.part"
                part.write_bytes(data)
                part.rename(folder / f"{name}{suffix}")

    def writes(self) -> dict[Place, int] | None:
        """Count permanent writes."""
        return read_writes(self.places.state / "writes")

    def exports(self) -> dict[Place, list[int]] | None:
        """Return which attempts were exported."""
        central = self.places.state / "central"
        return read_exports(path.name for path in central.iterdir()) if central.exists() else {}

    def done_deeds(self) -> Counter[str]:
        """Count what the workers noted."""
        path = self.places.state / DEEDS_FILE
        lines = path.read_text().splitlines() if path.exists() else []
        return Counter(line.split()[0] for line in lines)

    def close(self) -> None:
        """Nothing is held."""


def _small_fits() -> bytes:
    cards: Mapping[str, object] = {"SIMPLE": "T", "BITPIX": 8, "NAXIS": 1, "NAXIS1": 1}
    lines = [f"{name:8}= {value:>20}".ljust(80) for name, value in cards.items()]
    return "".join([*lines, "END".ljust(80)]).ljust(2880).encode() + bytes(2880)


SMALL_FITS = _small_fits()
"""A whole FITS file of one byte."""
