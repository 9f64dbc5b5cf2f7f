# SPDX-License-Identifier: BSD-3-Clause
"""Nights to replay: from a ledger, from a file, generated, or of a scheduler's simulation.

A night is a sequence of announcements with the times at which they were sent. In a file it has a JSON
object in each line: ``{"received_tai": 1795317916.0, "content": {...}}``, as a ledger has them, with a
``cancelled_tai`` if it was canceled; or the event alone, with its ``private_sndStamp``; or a message of Kafka
as ``kcat -J`` prints it, with the event as its ``payload``. Of events, cancellations are read, too.
"""

import json
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ppdaemon.clock import tai_iso
from ppdaemon.demo.geometry import CAMERA_NAME, FILTER_BANDS
from ppdaemon.demo.plan import ExposurePlan
from ppdaemon.demo.visits import VisitPlan
from ppdaemon.errors import BadMessage, Unavailable
from ppdaemon.ledgerfile import LEDGER_NAME
from ppdaemon.reports import JOURNAL_NAME
from ppdaemon.sqlitereader import reading
from ppdaemon.timescales import TAI_MINUS_UTC_S
from ppdaemon.visit import CoordinateSystem, NextVisit, RotationSystem, read_next_visit

LEAD_S, LONGEST_LEAD_S = 20.0, 120.0
"""From the announcement to the shutter if the event does not say so, and the most that is believed."""
EXPOSURE_S = 30.0

FILTERS = {"u": "u_24", "g": "g_6", "r": "r_57", "i": "i_39", "z": "z_20", "y": "y_10"}
"""Those of LSSTCam, by band."""
BAND_SHARES = {"u": 56, "g": 80, "r": 184, "i": 184, "z": 160, "y": 160}
"""Illustrative shares of the bands: a wide survey has more red than blue visits."""
DEEP_SHARE, SHORT_SHARE = 0.07, 0.01
"""Illustrative parts of the blocks: on deep drilling fields, and after an alert of others."""
WIDE, DEEP, FOLLOW_UP = "BLOCK-365", "BLOCK-365-DDF", "BLOCK-365-TOO"
"""Surveys; the first is that of ``etc/ppdaemon.yaml``, the others are made up."""
DEEP_FIELDS = ((9.45, -44.02), (35.57, -4.82), (52.98, -28.12), (58.9, -49.32), (150.11, 2.23))
"""Near the deep drilling fields, degrees, to a tenth or so: ELAIS S1, XMM-LSS, ECDFS, EDFS, COSMOS."""
BLOCK = 25
"""Fields that are visited one after the other, and then again: two visits of a field are about half an
hour apart, for moving objects."""
FIELD_DEG = 3.0
"""Between the centers of neighboring fields; the field of view has 3.5 degrees."""
FILTER_CHANGE_S = 120.0
"""The camera needs it in addition to the cadence."""

_MJD_OF_1970 = 40587.0
_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Announcement:
    """One next_visit of a night."""

    after_s: float
    """Since the first one of the night."""
    fields: dict[str, Any]
    """With SAL field names."""
    cancelled_s: float | None = None
    """Seconds after it when the visit was canceled."""


@dataclass(frozen=True)
class ReplayedVisit(VisitPlan):
    """A visit whose announcement has all fields of the original, but group and times."""

    fields: dict[str, Any] = field(default_factory=dict)
    speed: float = 1.0
    """Start and duration are announced as they will be: nodes wait for raws until then."""

    def next_visit(self, sent_tai_s: float) -> dict[str, Any]:
        """Return the event."""
        lead_s = self.lead_s / self.speed if self.speed else 0.0
        times = {"private_sndStamp": sent_tai_s, "startTime": sent_tai_s + lead_s}
        if self.speed and isinstance(duration_s := self.fields.get("duration"), int | float):
            times["duration"] = duration_s / self.speed
        return self.fields | {"groupId": self.group} | times

    def cancellation(self, sent_tai_s: float) -> dict[str, Any]:
        """Return the event that cancels it."""
        script = {name: self.fields[name] for name in ("scriptSalIndex",) if name in self.fields}
        return script | {"groupId": self.group, "private_sndStamp": sent_tai_s}


def replayed(
    night: Iterable[Announcement],
    begin_tai_s: float,
    instrument: str,
    seq_num: int = 1,
    speed: float = 1.0,
    named_tai_s: float | None = None,
) -> list[ReplayedVisit]:
    """Return the visits of a night that begins now; with `named_tai_s` under the names that they had when
    it began then.

    Visits of other instruments, and those without an image, are left out. Each has a new group, so that a
    relay that knows the night accepts it.
    """
    visits: list[ReplayedVisit] = []
    for each in night:
        event = read_next_visit(each.fields)
        if event.instrument != instrument or event.nimages == 0:
            continue
        number, snaps = len(visits), event.nimages
        announced_s, lead_s = begin_tai_s + each.after_s, _lead_s(event)
        start_s = announced_s + lead_s
        named_s = start_s if named_tai_s is None else named_tai_s + each.after_s + lead_s
        ra_deg, dec_deg = event.boresight or (0.0, 0.0)
        exposures = tuple(
            ExposurePlan(
                instrument=instrument,
                seq_num=seq_num + snap,
                group=f"{tai_iso(named_s)}-{number}",
                snap_index=snap + 1,
                snap_count=snaps,
                physical_filter=next(iter(event.filter_names), "none"),
                ra_deg=ra_deg,
                dec_deg=dec_deg,
                rotpa_deg=event.sky_angle or 0.0,
                exposure_s=EXPOSURE_S / snaps,
                program=event.survey,
                begin_tai_s=start_s + snap * (EXPOSURE_S / snaps + 2.0),
            )
            for snap in range(snaps)
        )
        seq_num += snaps
        cancelled_tai_s = None
        if each.cancelled_s is not None:
            # At speed 0 the visit has ended long before a later event: it is canceled at once.
            cancelled_tai_s = announced_s + (each.cancelled_s if speed else 0.0)
        visits.append(
            ReplayedVisit(
                number,
                exposures,
                announced_s,
                lead_s,
                cancelled_tai_s=cancelled_tai_s,
                fields=each.fields,
                speed=speed,
            )
        )
    return visits


def _lead_s(event: NextVisit) -> float:
    lead_s = event.start_time_tai - (event.published_tai or math.inf)
    return lead_s if 0.0 <= lead_s <= LONGEST_LEAD_S else LEAD_S


# --- recorded nights ---------------------------------------------------------


def of_lines(lines: Iterable[str], name: str) -> list[Announcement]:
    """Read a file of announcements; raise `BadMessage` with the line that has none."""
    found: list[_Found] = []
    cancelled: dict[str, float] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            content = fields.get("content") or _payload(fields)
            tai_s = float(fields.get("received_tai") or content.get("private_sndStamp") or _stamp(fields))
            if "instrument" not in content:
                cancelled[content["groupId"]] = tai_s
                continue
            cancelled_tai_s = fields.get("cancelled_tai")
            found.append((tai_s, content, None if cancelled_tai_s is None else float(cancelled_tai_s)))
            read_next_visit(content)
        except (ValueError, KeyError, TypeError, AttributeError, BadMessage) as error:
            raise BadMessage(f"{name}, line {number}: no next_visit with its time: {error!r}") from None
    return _in_order(
        (tai_s, content, at if at is not None else cancelled.get(content["groupId"]))
        for tai_s, content, at in found
    )


def _payload(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the event in a message of Kafka, or the event that a line is."""
    payload = fields.get("payload", fields)
    event = json.loads(payload) if isinstance(payload, str) else payload
    # As its Avro union is printed in JSON.
    return dict(event.get("message", event))


def _stamp(fields: dict[str, Any]) -> float:
    """Return when Kafka has received a message, TAI seconds; it counts UTC in ms."""
    return float(fields["ts"]) / 1000.0 + TAI_MINUS_UTC_S


def of_ledger(path: Path) -> list[Announcement]:
    """Read the announcements of a relay's ledger, a file or its folder; the relay may run.

    Visits that the relay knows from a node only have no announcement.
    """
    path = path / LEDGER_NAME if path.is_dir() else path
    with reading(path) as db:
        rows = db.execute(
            "SELECT received_tai, content, cancelled_tai FROM visits WHERE NOT adopted"
        ).fetchall()
    return _in_order(
        (received_tai, json.loads(content), cancelled) for received_tai, content, cancelled in rows
    )


def of_journal(path: Path) -> list[Announcement]:
    """Read the announcements of a node's journal, a file or its folder; the node may run. A visit is canceled
    when the first of its detectors ended as canceled.
    """
    path = path / JOURNAL_NAME if path.is_dir() else path
    with reading(path) as db:
        rows = db.execute(
            "SELECT min(received_tai), visit, min(CASE outcome WHEN 'cancelled' THEN ended_tai END)"
            " FROM attempt WHERE attempt = 1 GROUP BY instrument, grp"
        ).fetchall()
    return _in_order(
        (received_tai, json.loads(content), cancelled) for received_tai, content, cancelled in rows
    )


type _Found = tuple[float, dict[str, Any], float | None]
"""When a visit was announced, its announcement, and when it was canceled."""


def _in_order(found: Iterable[_Found]) -> list[Announcement]:
    in_order = sorted(found, key=lambda each: each[0])
    return [
        Announcement(
            tai_s - in_order[0][0], fields, None if cancelled is None else max(cancelled - tai_s, 0.0)
        )
        for tai_s, fields, cancelled in in_order
    ]


def to_lines(night: Iterable[Announcement], begin_tai_s: float) -> Iterator[str]:
    """Return a night as the lines of a file."""
    for each in night:
        tai_s = begin_tai_s + each.after_s
        line = {"received_tai": tai_s, "content": each.fields}
        if each.cancelled_s is not None:
            line["cancelled_tai"] = tai_s + each.cancelled_s
        yield json.dumps(line) + "\n"


# --- simulated nights --------------------------------------------------------


def _event(
    number: int, instrument: str, ra_deg: float, dec_deg: float, angle_deg: float, name: str, survey: str
) -> dict[str, Any]:
    return {
        "salIndex": 1,
        "scriptSalIndex": number + 1,
        "groupId": str(number),
        "coordinateSystem": int(CoordinateSystem.ICRS),
        "position": [round(ra_deg, 5), round(dec_deg, 5)],
        "rotationSystem": int(RotationSystem.SKY),
        "cameraAngle": round(angle_deg, 3),
        "filters": name,
        "dome": 2,
        "duration": LEAD_S + EXPOSURE_S + 2.0,
        "nimages": 1,
        "instrument": instrument,
        "survey": survey,
        "totalCheckpoints": 1,
    }


def filters_of(instrument: str) -> dict[str, str]:
    """Return the filters of a camera by band; those of LSSTCam for all cameras but the simulated one."""
    return {band: name for name, band in FILTER_BANDS.items()} if instrument == CAMERA_NAME else FILTERS


def generated(visits: int, cadence_s: float, seed: int, instrument: str) -> list[Announcement]:
    """Make a night of blocks of neighboring fields, each visited twice, and of deep fields.

    Fields are random, not those that are up: nothing but the sky maps of a site's rules looks at them.
    """
    draw = random.Random(seed)
    filters = filters_of(instrument)
    shares = [BAND_SHARES[band] for band in filters]
    night: list[Announcement] = []
    after_s, mounted = 0.0, ""
    while len(night) < visits:
        (name,) = draw.choices(list(filters.values()), shares)
        if mounted and name != mounted:
            after_s += FILTER_CHANGE_S
        mounted = name
        survey, fields = _block(draw)
        angle_deg = draw.uniform(-90.0, 90.0)
        for ra_deg, dec_deg in fields[: visits - len(night)]:
            event = _event(len(night), instrument, ra_deg, dec_deg, angle_deg, name, survey)
            night.append(Announcement(after_s, event))
            after_s += cadence_s
    return night


def _block(draw: random.Random) -> tuple[str, list[tuple[float, float]]]:
    """Return a survey and the fields of its visits, in order."""
    kind = draw.random()
    if kind < DEEP_SHARE:
        return DEEP, [draw.choice(DEEP_FIELDS)] * (2 * BLOCK)
    ra_deg = draw.uniform(0.0, 360.0)
    # Uniform on the sphere between the limits of the wide survey.
    sin_dec = draw.uniform(math.sin(math.radians(-65.0)), math.sin(math.radians(5.0)))
    dec_deg = math.degrees(math.asin(sin_dec))
    side = math.isqrt(BLOCK)
    fields = [
        ((ra_deg + east * FIELD_DEG / math.cos(math.radians(dec_deg))) % 360.0, dec_deg + north * FIELD_DEG)
        for north in range(side)
        # There and back, so that each slew is short.
        for east in (range(side) if north % 2 == 0 else reversed(range(side)))
    ]
    return (FOLLOW_UP if kind > 1.0 - SHORT_SHARE else WIDE), fields * 2


def of_scheduler(visits: int, instrument: str) -> list[Announcement]:
    """Simulate a night with ``rubin_scheduler``, its example scheduler and its model of the observatory.

    Raises `~ppdaemon.errors.Unavailable` if the package or its data files are missing.
    """
    try:
        from rubin_scheduler.data import get_data_dir
        from rubin_scheduler.scheduler import sim_runner
        from rubin_scheduler.scheduler.example import example_scheduler
        from rubin_scheduler.scheduler.model_observatory import ModelObservatory
        from rubin_scheduler.utils import SURVEY_START_MJD
    except ModuleNotFoundError as error:
        raise Unavailable(f"--scheduler: {error}; pip install rubin-scheduler pandas") from None
    try:
        observatory = ModelObservatory(mjd_start=SURVEY_START_MJD)
        scheduler = example_scheduler(mjd_start=SURVEY_START_MJD)
        *_, observations = sim_runner(
            observatory, scheduler, sim_start_mjd=SURVEY_START_MJD, n_visit_limit=visits, verbose=False
        )
    except FileNotFoundError as error:
        raise Unavailable(
            f"--scheduler: {error.filename} is missing: scheduler_download_data gets the data of"
            f" rubin_scheduler into {get_data_dir()}, or $RUBIN_SIM_DATA_DIR names their folder"
        ) from None
    return of_observations(observations[:visits], instrument)


def of_observations(observations: Sequence[Any], instrument: str) -> list[Announcement]:
    """Convert an ``ObservationArray`` of ``rubin_scheduler``; its angles are in radians."""
    names = filters_of(instrument)
    found = []
    for number, each in enumerate(observations):
        ra_deg, dec_deg, angle_deg = (math.degrees(each[name]) for name in ("RA", "dec", "rotSkyPos"))
        survey = str(each["science_program"]) or WIDE
        band = str(each["band"])
        event = _event(number, instrument, ra_deg, dec_deg, angle_deg, names.get(band, band), survey)
        found.append(((float(each["mjd"]) - _MJD_OF_1970) * _DAY_S - LEAD_S, event, None))
    return _in_order(found)
