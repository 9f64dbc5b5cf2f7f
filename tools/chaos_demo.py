# SPDX-License-Identifier: BSD-3-Clause
"""The demo camera of a chaos run: real pipelines, one detector.

The workers have no faults of their own; they are only killed and stopped.
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from chaos_plan import PROCESS_FAULTS, Fault, Visit
from chaos_scene import RunFolders

from ppdaemon.clock import Clock
from ppdaemon.demo import services
from ppdaemon.demo.central import make_central_repo
from ppdaemon.demo.delivery import Delivery
from ppdaemon.demo.geometry import CAMERA_NAME
from ppdaemon.demo.rules import SURVEYS, DemoRule
from ppdaemon.demo.telescope import SimulatedCamera
from ppdaemon.demo.visits import Cadence, VisitPlan, plan_visits
from ppdaemon.testing.played import VisitDetector
from ppdaemon.visit import NextVisit, read_next_visit

DETECTOR = 4
IMAGE_TIMEOUT_S = 20.0
CADENCE = Cadence(every_s=60.0, lead_s=1.0, exposure_s=4.0, readout_s=0.5)
TIMES = {"boot_s": 30, "prepare_s": 40, "run_s": 60, "export_s": 40, "grace_s": 1, "stop_s": 10}


class DemoScene:
    """A central repo, a sky, and the pipeline that makes alerts."""

    detectors = (DETECTOR,)
    worker_faults: tuple[str, ...] = ()
    process_faults = tuple(fault for fault in PROCESS_FAULTS if fault is not Fault.CENTRAL_DOWN)
    visit_every_s = 2.5
    fault_every_s = 2.0
    raw_timeout_s = IMAGE_TIMEOUT_S
    drain_s = 180.0

    def __init__(self, folders: RunFolders):
        self._paths = services.DemoPaths(folders.scratch, folders.ramdisk)
        self._relay = folders.relay
        self._state = folders.state
        self._camera = SimulatedCamera(detectors=self.detectors)
        self._delivery = Delivery(self._paths.raws, Clock().tai)
        self._plans: dict[str, VisitPlan] = {}
        self._thread = ThreadPoolExecutor(1, "camera")
        make_central_repo(
            self._paths.central,
            bands=("r",),
            detectors=self.detectors,
            processes=1,
            progress=lambda line: None,
        )

    def settings(self, workers: int) -> dict[str, Any]:
        """Return the daemon's configuration."""
        for folder in (self._paths.raws, self._paths.alerts):
            folder.mkdir(exist_ok=True)
        settings = services.node_config(self._paths, workers)
        settings["node"] |= {"instruments": {CAMERA_NAME: str(DETECTOR)}, "state_dir": str(self._state)}
        settings["relay"] = {"address": self._relay, "heartbeat_s": 0.2, "silence_s": 1.0}
        settings["arrivals"] = {"roots": [str(self._paths.raws)], "image_timeout_s": IMAGE_TIMEOUT_S}
        settings["workers"] |= {"min": 2, "spare": 1, "times": TIMES}
        settings["export"]["retry_s"] = 0.5
        return settings

    def announcement(self, visit: Visit) -> NextVisit:
        """Return the visit that the relay reserves."""
        fields = self._plan(visit).next_visit(Clock().tai())
        return read_next_visit(fields | {"duration": 0.0, "nimages": visit.snaps})

    def write_raws(self, visit: Visit, snap: int) -> None:
        """Expose, read out and deliver a snap in the camera's thread."""
        self._thread.submit(self._deliver, self._plan(visit), snap)

    def writes(self) -> dict[VisitDetector, int] | None:
        """Return the visit-detectors with alerts, which a task refuses to write twice."""
        # In the Butler each exposure is a separate visit.
        groups = {each.exposure_id: group for group, plan in self._plans.items() for each in plan.exposures}
        found = {}
        for path in self._paths.alerts.glob("alerts_*.avro"):
            _, visit, detector = path.stem.split("_")
            found[groups[int(visit)], int(detector)] = 1
        return found

    def exports(self) -> dict[VisitDetector, list[int]] | None:
        """Return `None`: the central repo has no attempts."""
        return None

    def done_worker_faults(self) -> Counter[str]:
        """Return no faults: the workers have none of their own."""
        return Counter()

    def close(self) -> None:
        """Stop the camera's thread."""
        self._thread.shutdown()

    def _plan(self, visit: Visit) -> VisitPlan:
        if visit.group not in self._plans:
            taken = sum(len(plan.exposures) for plan in self._plans.values())
            (self._plans[visit.group],) = plan_visits(
                1,
                Clock().tai() - CADENCE.lead_s - CADENCE.exposure_s,
                CADENCE,
                snaps=visit.snaps,
                program=SURVEYS[DemoRule.IN_MAP],
                group=visit.group,
                first_seq_num=taken + 1,
            )
        return self._plans[visit.group]

    def _deliver(self, plan: VisitPlan, snap: int) -> None:
        for detector, path, image, sidecar in self._camera.read_out(plan.exposures[snap - 1]):
            self._delivery.deliver(path, image, sidecar, detector)
