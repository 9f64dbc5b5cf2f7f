# SPDX-License-Identifier: BSD-3-Clause
"""Plan the visits of a simulated telescope: pointings, filters, times, events."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ppdaemon.clock import day_obs, tai_iso
from ppdaemon.demo.geometry import CAMERA_NAME
from ppdaemon.demo.plan import CAMERA_CODES, ExposurePlan, ImageType
from ppdaemon.demo.sky import DEFAULT_DEC_DEG, DEFAULT_RA_DEG
from ppdaemon.raws.layout import LayoutName

__all__ = ("Cadence", "FieldPointing", "VisitPlan", "next_seq_num", "plan_visits")

# An index that no real script queue has.
_SIMULATED_QUEUE = 999
# Values of the SAL enumerations.
_COORDINATES_ICRS, _ROTATION_SKY, _NONE = 2, 2, 1
_DOME_CLOSED, _DOME_OPEN = 1, 2
_UTC_MINUS_TAI_S = -37.0
_SEQUENCE_DIGITS = 5
_DITHER_ARCSEC = 40.0
# Steps of this angle never repeat a direction.
_GOLDEN_ANGLE = math.pi * (3.0 - math.sqrt(5.0))


@dataclass(frozen=True)
class Cadence:
    """The times of a night, in seconds."""

    every_s: float = 35.0
    """From one announcement to the next."""
    lead_s: float = 20.0
    """From the announcement to the opening shutter."""
    exposure_s: float = 30.0
    """Shutter open, for each snap."""
    readout_s: float = 2.0
    """From the closed shutter to the written raws."""
    speed: float = 1.0
    """Factor by which the run is faster than the times in the headers."""


@dataclass(frozen=True)
class FieldPointing:
    """The pointing of a science visit; all values in degrees."""

    ra_deg: float = DEFAULT_RA_DEG
    dec_deg: float = DEFAULT_DEC_DEG
    rotpa_deg: float = 0.0

    def dithered(self, number: int) -> Self:
        """Return the pointing of the n-th visit: on a spiral, less than 1 arcmin away."""
        radius_deg = _DITHER_ARCSEC / 3600.0 * math.sqrt((number * 0.381966) % 1.0)
        angle = number * _GOLDEN_ANGLE
        dec_deg = self.dec_deg + radius_deg * math.sin(angle)
        ra_deg = self.ra_deg + radius_deg * math.cos(angle) / math.cos(math.radians(dec_deg))
        return type(self)(ra_deg % 360.0, dec_deg, self.rotpa_deg)


@dataclass(frozen=True)
class VisitPlan:
    """One visit: its announcement and its exposures."""

    number: int
    """Counter within the run, from 0; the event's script index is one higher."""
    exposures: tuple[ExposurePlan, ...]
    announced_tai_s: float
    lead_s: float
    filter_announced: bool = True
    """Whether the announcement names the filter; if not, any filter is accepted."""
    cancelled_tai_s: float | None = None
    """When it is canceled: exposures that have not begun are not taken."""

    @property
    def group(self) -> str:
        """The visit's group, that of its exposures."""
        return self.exposures[0].group

    def next_visit(self, sent_tai_s: float) -> dict[str, Any]:
        """Return the SAL event that announces the visit."""
        first = self.exposures[0]
        on_sky = first.image_type is ImageType.SCIENCE
        return {
            "salIndex": _SIMULATED_QUEUE,
            "scriptSalIndex": self.number + 1,
            "groupId": self.group,
            "coordinateSystem": _COORDINATES_ICRS if on_sky else _NONE,
            "position": [first.ra_deg or 0.0, first.dec_deg or 0.0],
            "startTime": first.begin_tai_s,
            "rotationSystem": _ROTATION_SKY if on_sky else _NONE,
            "cameraAngle": first.rotpa_deg or 0.0,
            "filters": first.physical_filter if self.filter_announced else "",
            "dome": _DOME_OPEN if on_sky else _DOME_CLOSED,
            "duration": self.exposures[-1].end_tai_s - self.announced_tai_s,
            "nimages": len(self.exposures),
            "instrument": first.instrument,
            "survey": first.program,
            "totalCheckpoints": 1,
            "private_sndStamp": sent_tai_s,
            "private_efdStamp": sent_tai_s + _UTC_MINUS_TAI_S,
        }

    def cancellation(self, sent_tai_s: float) -> dict[str, Any]:
        """Return the SAL event that cancels the announced visit."""
        return {"scriptSalIndex": self.number + 1, "groupId": self.group, "private_sndStamp": sent_tai_s}


def plan_visits(
    count: int,
    begin_tai_s: float,
    cadence: Cadence,
    *,
    instrument: str = CAMERA_NAME,
    snaps: int = 1,
    filters: Sequence[str] = ("r_03",),
    pointing: FieldPointing | None = None,
    image_type: ImageType = ImageType.SCIENCE,
    program: str = "BLOCK-365",
    group: str | None = None,
    first_seq_num: int = 1,
    controller: str = "O",
) -> list[VisitPlan]:
    """Plan a run of visits.

    The first one is announced at `begin_tai_s` (TAI seconds since 1970). The
    filters are used in turn, pointings are dithered around `pointing`. Without
    `group` the start time is the group; a group can be set for a single visit
    only. Raises `ValueError` for contradictory values.
    """
    if group is not None and count > 1:
        raise ValueError(f"one group cannot name {count} visits: omit it, or plan one visit")
    exposure_s = 0.0 if image_type is ImageType.BIAS else cadence.exposure_s
    # Visits may overlap, exposures of one camera may not.
    busy_s = snaps * (exposure_s + cadence.readout_s)
    if count > 1 and busy_s > cadence.every_s:
        raise ValueError(f"a visit every {cadence.every_s:g} s is too often: {snaps} snaps take {busy_s:g} s")
    seq_nums = itertools.count(first_seq_num)
    visits = []
    for number in range(count):
        announced_tai_s = begin_tai_s + number * cadence.every_s
        start_tai_s = announced_tai_s + cadence.lead_s
        position: dict[str, Any] = {}
        if image_type is ImageType.SCIENCE:
            dithered = (pointing or FieldPointing()).dithered(number)
            position = {
                "ra_deg": dithered.ra_deg,
                "dec_deg": dithered.dec_deg,
                "rotpa_deg": dithered.rotpa_deg,
            }
        exposures = tuple(
            ExposurePlan(
                instrument=instrument,
                controller=controller,
                seq_num=next(seq_nums),
                group=group or tai_iso(start_tai_s),
                snap_index=snap + 1,
                snap_count=snaps,
                physical_filter=filters[number % len(filters)],
                exposure_s=exposure_s,
                image_type=image_type,
                program=program,
                begin_tai_s=start_tai_s + snap * (exposure_s + cadence.readout_s),
                **position,
            )
            for snap in range(snaps)
        )
        visits.append(VisitPlan(number, exposures, announced_tai_s, cadence.lead_s))
    return visits


def next_seq_num(root: Path, instrument: str, tai_s: float, layout: LayoutName = "lsst") -> int:
    """Return the first sequence number (from 1) without a folder in the observing day.

    The raw root need not exist.
    """
    day = day_obs(tai_s)
    exposures = {
        "lsst": f"{day}/{CAMERA_CODES[instrument]}_?_{day}_??????",
        "imsim": f"{day}/{day}?????",
        "generic": f"*/*/*/{day}?????",
    }
    taken = (root / instrument).glob(exposures[layout])
    return max((int(each.name[-_SEQUENCE_DIGITS:]) for each in taken), default=0) + 1
