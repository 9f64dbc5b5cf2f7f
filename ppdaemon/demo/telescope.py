# SPDX-License-Identifier: BSD-3-Clause
"""A whole telescope at a cadence: announce a visit, wait, expose, write its raws.

When what happens is decided by a pure function, `timeline`; `Telescope` acts
it out. DemoCam is rendered, other cameras write small valid files.
"""

import enum
import gzip
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ppdaemon.clock import Clock
from ppdaemon.ctl.submit import RelayClient, summary
from ppdaemon.demo.delivery import Delivery
from ppdaemon.demo.faults import WRONG_GROUP, Faults, Misprint, with_cards
from ppdaemon.demo.geometry import CAMERA_NAME
from ppdaemon.demo.plan import ExposurePlan, primary_header
from ppdaemon.demo.raws import detector_names, encode_blank, encode_raw, place_in, write_expected_sensors
from ppdaemon.demo.render import render_raw
from ppdaemon.demo.sky import Sky, demo_skies, sky_at
from ppdaemon.demo.visits import Cadence, VisitPlan
from ppdaemon.errors import Refused
from ppdaemon.raws.layout import LayoutName, make_layout

__all__ = ("Compression", "Happening", "Moment", "SimulatedCamera", "Step", "Telescope", "timeline")


class Step(enum.StrEnum):
    """What happens to a visit, in order."""

    ANNOUNCE = "announced"
    CANCEL = "cancelled"
    EXPOSE = "exposing"
    LAND = "landed"


class Compression(enum.StrEnum):
    """How whole files are compressed, beside the tiles in them."""

    NONE = "none"
    FZ = "fz"
    """Not any more: the ending says that tiles are."""
    GZ = "gz"

    @property
    def suffix(self) -> str:
        """What is behind ``.fits`` (`str`)."""
        return "" if self is Compression.NONE else f".{self}"

    def applied(self, content: bytes) -> bytes:
        """Compress a file's content."""
        return gzip.compress(content, mtime=0) if self is Compression.GZ else content


@dataclass(frozen=True, order=True)
class Moment:
    """Something that is to happen at a time after the run began."""

    after_s: float
    step: Step = field(compare=False)
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
) -> list[Moment]:
    """Return when what happens, in order.

    Parameters
    ----------
    visits : `~collections.abc.Iterable` [`VisitPlan`]
        The visits.
    cadence : `Cadence`
        The times; its speed shortens all waits.
    announce : `bool`
        Whether visits are announced.
    cancel : `bool`
        Whether each is cancelled in the middle of its lead time, and has no
        exposures.
    announce_after_s : `float`, optional
        Visits are announced only so long after their last raws landed.
    late_s : `float`, optional
        How much later than usual raws land.

    Returns
    -------
    moments : `list` [`Moment`]
        Beginning at 0 s.
    """
    moments: list[Moment] = []
    for visit in visits:
        at_s = visit.announced_tai_s
        landing_s = cadence.readout_s + late_s
        if announce_after_s is not None:
            at_s = visit.exposures[-1].end_tai_s + landing_s + announce_after_s
        if announce:
            moments.append(Moment(at_s, Step.ANNOUNCE, visit))
        if cancel:
            moments.append(Moment(at_s + visit.lead_s / 2.0, Step.CANCEL, visit))
            continue
        for exposure in visit.exposures:
            moments.append(Moment(exposure.begin_tai_s, Step.EXPOSE, visit, exposure))
            moments.append(Moment(exposure.end_tai_s + landing_s, Step.LAND, visit, exposure))
    moments.sort()
    if not moments:
        return []
    begin_s = moments[0].after_s
    return [replace(each, after_s=(each.after_s - begin_s) / cadence.speed) for each in moments]


class SimulatedCamera:
    """Makes an exposure's files.

    Parameters
    ----------
    instrument : `str`
        A camera with a focal-plane table.
    detectors : `~collections.abc.Sequence` [`int`], optional
        Those that are read out; all by default.
    skies : `~collections.abc.Sequence` [`~ppdaemon.demo.sky.Sky`], optional
        What DemoCam sees: the field that is nearest to where it looks.
    layout : `str`, optional
        How paths below the raw root are built.
    compression : `Compression`, optional
        Of whole files; tells their ending.
    faults : `~ppdaemon.demo.faults.Faults`, optional
        What is wrong in headers.

    Raises
    ------
    ConfigError
        Raised where the camera has no focal-plane table.
    ValueError
        Raised where it has no such detector, or a fault is not possible.
    """

    def __init__(
        self,
        instrument: str = CAMERA_NAME,
        detectors: Sequence[int] | None = None,
        skies: Sequence[Sky] | None = None,
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
        if self._faults.misprint is Misprint.DETECTOR and len(self._names) == 1:
            raise ValueError(f"{instrument} has no other detector that a header could name")
        self._layout = make_layout(layout, {instrument: self.detectors})
        self._compression = compression
        self._lists = layout == "lsst"
        self._skies = (skies or demo_skies()) if instrument == CAMERA_NAME else ()

    def read_out(self, plan: ExposurePlan) -> Iterator[tuple[int, Path, bytes, bytes]]:
        """Make the files of an exposure.

        Yields
        ------
        detector : `int`
            Detector number.
        path : `pathlib.Path`
            The FITS file, relative to the raw root.
        image, sidecar : `bytes`
            Contents.
        """
        for detector in self.detectors:
            name = self._names[detector][0]
            image, sidecar = self._encode(plan, detector, name)
            if self._faults.misprint is not None and self._faults.strikes(detector):
                image = with_cards(image, self._misprinted(self._faults.misprint, plan, detector))
            path = place_in(self._layout, plan, detector, name)
            yield (
                detector,
                path.with_name(path.name + self._compression.suffix),
                self._compression.applied(image),
                sidecar,
            )

    def announce_detectors(self, root: Path, plan: ExposurePlan) -> None:
        """Write the list of an exposure's detectors, where the layout has one."""
        if self._lists:
            write_expected_sensors(root, plan, self.detectors)

    def _encode(self, plan: ExposurePlan, detector: int, name: str) -> tuple[bytes, bytes]:
        if not self._skies:
            return encode_blank(plan, detector, name)
        sky = sky_at(self._skies, plan.ra_deg or 0.0, plan.dec_deg or 0.0)
        return encode_raw(plan, detector, render_raw(plan, detector, sky))

    def _misprinted(self, misprint: Misprint, plan: ExposurePlan, detector: int) -> dict[str, Any]:
        if misprint is Misprint.GROUP:
            return {"GROUPID": WRONG_GROUP}
        numbers = list(self._names)
        other = numbers[(numbers.index(detector) + 1) % len(numbers)]
        header = primary_header(plan, other, self._names[other][0])
        return {key: header[key] for key in ("RAFTBAY", "CCDSLOT", "DETECTOR", "LSST_NUM")}


@dataclass(frozen=True)
class Happening:
    """What the telescope has just done, for whoever watches."""

    step: Step
    tai_s: float
    visit: VisitPlan
    exposure: ExposurePlan | None
    detail: str


class Telescope:
    """Acts out a timeline.

    Parameters
    ----------
    camera : `SimulatedCamera`
        Makes the files.
    delivery : `~ppdaemon.demo.delivery.Delivery`
        Writes them.
    relay : `~ppdaemon.ctl.submit.RelayClient`, optional
        Is told of visits.
    clock : `~ppdaemon.clock.Clock`, optional
        The time.
    sleep : `~collections.abc.Callable`, optional
        Waits some seconds.
    watch : `~collections.abc.Callable`, optional
        Called with each `Happening`.
    """

    def __init__(
        self,
        camera: SimulatedCamera,
        delivery: Delivery,
        relay: RelayClient | None = None,
        *,
        clock: Clock | None = None,
        sleep: Callable[[float], None] = time.sleep,
        watch: Callable[[Happening], None] = lambda happening: None,
    ):
        self._camera = camera
        self._delivery = delivery
        self._relay = relay
        self._clock = clock or Clock()
        self._sleep = sleep
        self._watch = watch
        self._exposed: dict[int, list[tuple[int, Path, bytes, bytes]]] = {}

    def play(self, moments: Iterable[Moment]) -> int:
        """Act out moments in order, each not before its time.

        Returns
        -------
        delivered : `int`
            Detectors' images that were written.

        Raises
        ------
        ppdaemon.errors.Unavailable
            Raised where the relay does not answer in time.
        ppdaemon.errors.Refused
            Raised where it rejects or ignores an event.
        ppdaemon.errors.BadMessage
            Raised where its answer is not understood.
        """
        begin = self._clock.mono()
        delivered = 0
        for moment in moments:
            wait_s = begin + moment.after_s - self._clock.mono()
            if wait_s > 0.0:
                self._sleep(wait_s)
            delivered += self._act(moment)
        return delivered

    def _act(self, moment: Moment) -> int:
        written = 0
        match moment:
            case Moment(step=Step.ANNOUNCE, visit=visit):
                detail = self._submit(visit.next_visit(self._clock.tai()))
            case Moment(step=Step.CANCEL, visit=visit):
                detail = self._submit(visit.cancellation(self._clock.tai()))
            case Moment(step=Step.EXPOSE, exposure=ExposurePlan() as plan):
                # The pixels are made while the shutter is open, so that they land on time.
                self._exposed[plan.exposure_id] = list(self._camera.read_out(plan))
                detail = f"{plan.obs_id} {plan.physical_filter} {plan.exposure_s:g} s"
            case Moment(step=Step.LAND, exposure=ExposurePlan() as plan):
                written = self._land(plan)
                detail = f"{plan.obs_id} {written} of {len(self._camera.detectors)} detectors"
            case unexpected:
                raise AssertionError(unexpected)
        self._watch(Happening(moment.step, self._clock.tai(), moment.visit, moment.exposure, detail))
        return written

    def _submit(self, event: dict[str, Any]) -> str:
        if self._relay is None:
            return "no relay to tell"
        answer = self._relay.ask(event)
        if answer.status not in ("accepted", "duplicate"):
            raise Refused(f"the relay says {summary(answer)}")
        return f"{answer.status} by the relay, {answer.detectors} detectors"

    def _land(self, plan: ExposurePlan) -> int:
        self._camera.announce_detectors(self._delivery.root, plan)
        return self._delivery.deliver_all(self._exposed.pop(plan.exposure_id))
