# SPDX-License-Identifier: BSD-3-Clause
"""Simulate a telescope at a cadence: announce a visit, wait, expose, write its raws.

The pure function `timeline` decides when each event happens; `Telescope`
executes it. DemoCam is rendered, other cameras write small valid files.
"""

import enum
import gzip
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ppdaemon.clock import Clock
from ppdaemon.ctl.submit import VisitSubmitter, summary
from ppdaemon.demo.delivery import Delivery
from ppdaemon.demo.faults import WRONG_GROUP, Faults, HeaderFault, with_cards
from ppdaemon.demo.geometry import CAMERA_NAME
from ppdaemon.demo.plan import ExposurePlan, primary_header
from ppdaemon.demo.raws import (
    detector_names,
    encode_blank,
    encode_raw,
    path_in_layout,
    write_expected_sensors,
)
from ppdaemon.demo.render import render_raw
from ppdaemon.demo.sky import demo_skies, sky_at
from ppdaemon.demo.visits import Cadence, VisitPlan
from ppdaemon.errors import Refused
from ppdaemon.raws.layout import LayoutName, make_layout

__all__ = (
    "Compression",
    "TelescopeEvent",
    "PlannedEvent",
    "SimulatedCamera",
    "TelescopeStep",
    "Telescope",
    "timeline",
)


class TelescopeStep(enum.StrEnum):
    """The events of a visit, in order."""

    ANNOUNCE = "announced"
    CANCEL = "canceled"
    EXPOSE = "exposing"
    WRITE = "written"


class Compression(enum.StrEnum):
    """Compression of whole files, in addition to the compressed tiles in them."""

    NONE = "none"
    FZ = "fz"
    """Only the file name differs: the tiles are compressed in any case."""
    GZ = "gz"

    @property
    def suffix(self) -> str:
        """The part of the file name after ``.fits``."""
        return "" if self is Compression.NONE else f".{self}"

    def applied(self, content: bytes) -> bytes:
        """Compress the content of a file."""
        return gzip.compress(content, mtime=0) if self is Compression.GZ else content


@dataclass(frozen=True, order=True)
class PlannedEvent:
    """An event that is due at a time after the start of the run."""

    after_s: float
    step: TelescopeStep = field(compare=False)
    visit: VisitPlan = field(compare=False)
    exposure: ExposurePlan | None = field(compare=False, default=None)


def timeline(
    visits: Iterable[VisitPlan],
    cadence: Cadence,
    *,
    announce: bool,
    cancel: bool,
    announce_after_s: float | None = None,
    late_s: float = 0.0,
) -> list[PlannedEvent]:
    """Return the events of the visits in order, beginning at 0 s.

    The cadence's `speed` shortens all waits. With `cancel` each visit is
    canceled in the middle of its lead time and has no exposures, else at its own time if it has one. With
    `announce_after_s` visits are announced that time after their last raws
    were written. `late_s` delays the raws.
    """
    events: list[PlannedEvent] = []
    for visit in visits:
        at_s = visit.announced_tai_s
        write_s = cadence.readout_s + late_s
        if announce_after_s is not None:
            at_s = visit.exposures[-1].end_tai_s + write_s + announce_after_s
        if announce:
            events.append(PlannedEvent(at_s, TelescopeStep.ANNOUNCE, visit))
        cancelled_s = at_s + visit.lead_s / 2.0 if cancel else visit.cancelled_tai_s
        if cancelled_s is not None:
            events.append(PlannedEvent(cancelled_s, TelescopeStep.CANCEL, visit))
        for exposure in () if cancel else visit.exposures:
            if cancelled_s is not None and exposure.begin_tai_s >= cancelled_s:
                break
            events.append(PlannedEvent(exposure.begin_tai_s, TelescopeStep.EXPOSE, visit, exposure))
            events.append(PlannedEvent(exposure.end_tai_s + write_s, TelescopeStep.WRITE, visit, exposure))
    events.sort()
    if not events:
        return []
    begin_s = events[0].after_s
    return [replace(each, after_s=(each.after_s - begin_s) / cadence.speed) for each in events]


class SimulatedCamera:
    """Makes the files of an exposure.

    DemoCam observes the nearest of its skies. `compression` sets the ending
    of the files, `faults` what is wrong in headers. Raises `ConfigError` if
    the camera has no focal-plane table, `ValueError` if it has no such
    detector or cannot have such a fault.
    """

    def __init__(
        self,
        instrument: str = CAMERA_NAME,
        detectors: Sequence[int] | None = None,
        *,
        layout: LayoutName = "lsst",
        compression: Compression = Compression.NONE,
        faults: Faults | None = None,
    ):
        self._names = detector_names(instrument)
        self.instrument = instrument
        self.detectors = tuple(self._names) if detectors is None else tuple(detectors)
        unknown = sorted(set(self.detectors) - set(self._names))
        if unknown:
            raise ValueError(
                f"{instrument} has no detector {', '.join(map(str, unknown))}; "
                f"it has {min(self._names)} to {max(self._names)}"
            )
        self._faults = faults or Faults()
        chosen = self._faults.drop_detectors | (self._faults.only or frozenset())
        if not chosen <= set(self.detectors):
            raise ValueError(f"detectors {sorted(chosen - set(self.detectors))} are not read out")
        if self._faults.header_fault is HeaderFault.DETECTOR and len(self._names) == 1:
            raise ValueError(f"{instrument} has no other detector that a header could name")
        self._layout = make_layout(layout, {instrument: self.detectors})
        self._compression = compression
        # Only this layout has the list of expected sensors.
        self._writes_list = layout == "lsst"
        self._skies = demo_skies() if instrument == CAMERA_NAME else ()

    def read_out(self, plan: ExposurePlan) -> Iterator[tuple[int, Path, bytes, bytes]]:
        """Yield detector number, path relative to the raw root, image and sidecar."""
        for detector in self.detectors:
            name = self._names[detector][0]
            image, sidecar = self._encode(plan, detector, name)
            if self._faults.header_fault is not None and self._faults.affects(detector):
                image = with_cards(image, self._wrong_cards(self._faults.header_fault, plan, detector))
            path = path_in_layout(self._layout, plan, detector, name)
            yield (
                detector,
                path.with_name(path.name + self._compression.suffix),
                self._compression.applied(image),
                sidecar,
            )

    def write_detector_list(self, root: Path, plan: ExposurePlan) -> None:
        """Write the list of an exposure's detectors if the layout has one."""
        if self._writes_list:
            write_expected_sensors(root, plan, self.detectors)

    def _encode(self, plan: ExposurePlan, detector: int, name: str) -> tuple[bytes, bytes]:
        if not self._skies:
            return encode_blank(plan, detector, name)
        sky = sky_at(self._skies, plan.ra_deg or 0.0, plan.dec_deg or 0.0)
        return encode_raw(plan, detector, render_raw(plan, detector, sky))

    def _wrong_cards(self, header_fault: HeaderFault, plan: ExposurePlan, detector: int) -> dict[str, Any]:
        if header_fault is HeaderFault.GROUP:
            return {"GROUPID": WRONG_GROUP}
        numbers = list(self._names)
        other = numbers[(numbers.index(detector) + 1) % len(numbers)]
        header = primary_header(plan, other, self._names[other][0])
        return {key: header[key] for key in ("RAFTBAY", "CCDSLOT", "DETECTOR", "LSST_NUM")}


@dataclass(frozen=True)
class TelescopeEvent:
    """An event that the telescope has just executed, for the progress display."""

    step: TelescopeStep
    tai_s: float
    visit: VisitPlan
    exposure: ExposurePlan | None
    detail: str
    late_s: float = 0.0
    """How much later than planned it was completed."""


class Telescope:
    """Executes a timeline with a camera, a delivery and, optionally, a relay.

    `on_event` is called with each `TelescopeEvent`.
    """

    def __init__(
        self,
        camera: SimulatedCamera,
        delivery: Delivery,
        relay: VisitSubmitter | None = None,
        *,
        clock: Clock | None = None,
        sleep: Callable[[float], None] = time.sleep,
        on_event: Callable[[TelescopeEvent], None] = lambda event: None,
    ):
        self._camera = camera
        self._delivery = delivery
        self._relay = relay
        self._clock = clock or Clock()
        self._sleep = sleep
        self._on_event = on_event
        self._exposed: dict[int, list[tuple[int, Path, bytes, bytes]]] = {}

    def run(self, events: Iterable[PlannedEvent]) -> int:
        """Execute events in order, each not before its time; return the number of images.

        Raises `~ppdaemon.errors.Unavailable` if the relay does not answer in
        time, `~ppdaemon.errors.Refused` if it rejects or ignores an event, and
        `~ppdaemon.errors.BadMessage` if its answer is invalid.
        """
        # Monotonic: a change of the computer's time must not shift the visits.
        begin = self._clock.mono()
        delivered = 0
        for planned in events:
            wait_s = begin + planned.after_s - self._clock.mono()
            if wait_s > 0.0:
                self._sleep(wait_s)
            delivered += self._execute(planned, begin + planned.after_s)
        return delivered

    def _execute(self, planned: PlannedEvent, due_mono: float) -> int:
        written = 0
        match planned:
            case PlannedEvent(step=TelescopeStep.ANNOUNCE, visit=visit):
                detail = self._submit(visit.next_visit(self._clock.tai()))
            case PlannedEvent(step=TelescopeStep.CANCEL, visit=visit):
                detail = self._submit(visit.cancellation(self._clock.tai()))
            case PlannedEvent(step=TelescopeStep.EXPOSE, exposure=ExposurePlan() as plan):
                # The pixels are made while the shutter is open, so that they are written in time.
                self._exposed[plan.exposure_id] = list(self._camera.read_out(plan))
                detail = f"{plan.obs_id} {plan.physical_filter} {plan.exposure_s:g} s"
            case PlannedEvent(step=TelescopeStep.WRITE, exposure=ExposurePlan() as plan):
                written = self._write_raws(plan)
                detail = f"{plan.obs_id} {written} of {len(self._camera.detectors)} detectors"
            case unexpected:
                raise AssertionError(unexpected)
        late_s = max(self._clock.mono() - due_mono, 0.0)
        self._on_event(
            TelescopeEvent(planned.step, self._clock.tai(), planned.visit, planned.exposure, detail, late_s)
        )
        return written

    def _submit(self, event: dict[str, Any]) -> str:
        if self._relay is None:
            return "not sent: no relay is configured"
        answer = self._relay.ask(event)
        # A duplicate was accepted before.
        if answer.status not in ("accepted", "duplicate"):
            raise Refused(f"the relay did not accept the event: {summary(answer)}")
        return f"{answer.status} by the relay, {answer.detectors} detectors"

    def _write_raws(self, plan: ExposurePlan) -> int:
        self._camera.write_detector_list(self._delivery.root, plan)
        return self._delivery.deliver_all(self._exposed.pop(plan.exposure_id))
