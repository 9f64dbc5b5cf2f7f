# SPDX-License-Identifier: BSD-3-Clause
"""The visits of the demonstration and the pipeline that each of them must get."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ppdaemon.demo.geometry import DETECTOR_COUNT
from ppdaemon.demo.plan import ImageType
from ppdaemon.demo.rules import PIPELINES, SURVEYS, DemoRule
from ppdaemon.demo.sky import SECOND_DEC_DEG, SECOND_RA_DEG
from ppdaemon.demo.visits import Cadence, FieldPointing, VisitPlan, plan_visits
from ppdaemon.night.totals import last_attempts
from ppdaemon.reports import VisitRow
from ppdaemon.states import Stage

__all__ = ("CADENCE", "NIGHT", "TEMPLATE_BANDS", "PlannedVisit", "may_announce", "plan_visit")

CADENCE = Cadence(lead_s=3.0, exposure_s=5.0, readout_s=1.0)
TEMPLATE_BANDS = ("g", "r")
"""No templates in i: the demonstration shows the fallback for such a visit."""
FIELD = FieldPointing()
SECOND_FIELD = FieldPointing(SECOND_RA_DEG, SECOND_DEC_DEG)


@dataclass(frozen=True, slots=True)
class PlannedVisit:
    """A visit, the rule that applies to it, and the pipeline that must run."""

    rule: DemoRule
    pipeline: str
    physical_filter: str
    snaps: int = 1
    image_type: ImageType = ImageType.SCIENCE
    pointing: FieldPointing = FIELD
    filter_announced: bool = True
    reason: str = ""
    """Part of the reason that is reported for the skipped pipelines."""

    @property
    def skipped_pipelines(self) -> tuple[str, ...]:
        """Pipelines that the rule prefers and that cannot run."""
        return PIPELINES[self.rule][: PIPELINES[self.rule].index(self.pipeline)]


NIGHT = (
    PlannedVisit(DemoRule.IN_MAP, "ApPipe", "r_03"),
    PlannedVisit(DemoRule.IN_MAP, "ApPipe", "g_01", snaps=2),
    PlannedVisit(DemoRule.IN_MAP, "ApPipe", "r_03"),
    # The fallback is decided before the image arrives: there is no template.
    PlannedVisit(DemoRule.IN_MAP, "SingleFrame", "i_06", reason="lacks template"),
    # The filter is known only from the image: the templates have other bands.
    PlannedVisit(DemoRule.IN_MAP, "SingleFrame", "i_06", filter_announced=False, reason="its graph is empty"),
    PlannedVisit(DemoRule.ELSEWHERE, "SingleFrame", "r_03", pointing=SECOND_FIELD),
    PlannedVisit(DemoRule.CALIBRATION, "Calibration", "r_03", image_type=ImageType.BIAS),
)


def plan_visit(number: int, begin_tai_s: float, seq_num: int) -> VisitPlan:
    """Plan a visit of the night that is announced at a time, with its first sequence number."""
    planned = NIGHT[number]
    (visit,) = plan_visits(
        1,
        begin_tai_s,
        CADENCE,
        snaps=planned.snaps,
        filters=(planned.physical_filter,),
        pointing=planned.pointing,
        image_type=planned.image_type,
        program=SURVEYS[planned.rule],
        first_seq_num=seq_num,
    )
    return replace(visit, number=number, filter_announced=planned.filter_announced)


def may_announce(now_tai_s: float, visits: Sequence[VisitPlan], rows: Sequence[VisitRow]) -> bool:
    """Return whether the next visit may be announced: its raws are to land when the visit before has ended.

    The last of `visits`, whose raws have been written, is expected to take as long for each exposure as the
    one before; the first one is waited for. At most one is processed.
    """
    *earlier, last = (
        [row for row in last_attempts(rows).values() if row.group == visit.group] for visit in visits
    )
    if not _is_open(last):
        return True
    if not earlier or any(map(_is_open, earlier)):
        return False
    until_landed_s = CADENCE.lead_s + CADENCE.exposure_s + CADENCE.readout_s
    exposures, exposures_before = (len(visit.exposures) for visit in (visits[-1], visits[-2]))
    expected_s = _processed_s(earlier[-1]) * exposures / exposures_before
    return now_tai_s + until_landed_s >= _landed_tai(last) + expected_s


def _is_open(rows: Sequence[VisitRow]) -> bool:
    return len(rows) < DETECTOR_COUNT or any(row.outcome is None for row in rows)


def _landed_tai(rows: Sequence[VisitRow]) -> float:
    """Return when the last raw of a visit was ingested; not yet if one is missing."""
    # Not when it arrived: that is noted for the first exposure.
    return max((row.stages.get(Stage.INGESTED, math.inf) for row in rows), default=math.inf)


def _processed_s(rows: Sequence[VisitRow]) -> float:
    """Return the time from the last raw of a visit to its last outputs."""
    return max(row.stages.get(Stage.SPOOLED, 0.0) for row in rows) - _landed_tai(rows)
