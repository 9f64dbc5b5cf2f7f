# SPDX-License-Identifier: BSD-3-Clause
"""The visits of the demonstration and the pipeline that each of them must get."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ppdaemon.demo.plan import ImageType
from ppdaemon.demo.rules import PIPELINES, SURVEYS, DemoRule
from ppdaemon.demo.sky import SECOND_DEC_DEG, SECOND_RA_DEG
from ppdaemon.demo.visits import Cadence, FieldPointing, VisitPlan, plan_visits
from ppdaemon.reports import VisitRow
from ppdaemon.states import Stage

__all__ = ("CADENCE", "NIGHT", "TEMPLATE_BANDS", "PlannedVisit", "held_cadence_s", "plan_night")

CADENCE = Cadence(every_s=12.0, lead_s=10.0, exposure_s=8.0, readout_s=2.0)
LONGEST_S = 90.0
"""A machine that needs longer for a visit gets the next one meanwhile: the night must end."""
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


def plan_night(
    begin_tai_s: float,
    planned_visits: Sequence[PlannedVisit] = NIGHT,
    *,
    every_s: float = CADENCE.every_s,
    seq_num: int = 1,
) -> list[VisitPlan]:
    """Plan the visits; the shutter of one closes before that of the next opens.

    `every_s` is the time between announcements of visits with one snap, `seq_num` the first
    sequence number.
    """
    visits: list[VisitPlan] = []
    for number, planned in enumerate(planned_visits):
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
        visits.append(replace(visit, number=number, filter_announced=planned.filter_announced))
        seq_num += planned.snaps
        begin_tai_s += every_s + (planned.snaps - 1) * (CADENCE.exposure_s + CADENCE.readout_s)
    return visits


def held_cadence_s(rows: Sequence[VisitRow]) -> float:
    """Return the time between announcements that the machine holds, measured at one visit alone.

    A visit uses the machine while it is prepared, and from its first raw to its last export. At least
    the time of `CADENCE`, at most `LONGEST_S`.
    """
    busy_s = _passed_s(rows, Stage.ASSIGNED, Stage.PREPARED) + _passed_s(rows, Stage.ARRIVED, Stage.CENTRAL)
    return min(max(CADENCE.every_s, busy_s), LONGEST_S)


def _passed_s(rows: Sequence[VisitRow], begin: Stage, end: Stage) -> float:
    """Return the time from the first detector at one stage to the last one at another."""
    begins = [row.stages[begin] for row in rows if begin in row.stages]
    ends = [row.stages[end] for row in rows if end in row.stages]
    return max(max(ends) - min(begins), 0.0) if begins and ends else 0.0
