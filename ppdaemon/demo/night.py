# SPDX-License-Identifier: BSD-3-Clause
"""The visits of the demonstration and the pipeline that each of them must get."""

from dataclasses import dataclass, replace

from ppdaemon.demo.plan import ImageType
from ppdaemon.demo.rules import PIPELINES, SURVEYS, DemoRule
from ppdaemon.demo.sky import SECOND_DEC_DEG, SECOND_RA_DEG
from ppdaemon.demo.visits import Cadence, FieldPointing, VisitPlan, plan_visits

__all__ = ("CADENCE", "NIGHT", "TEMPLATE_BANDS", "PlannedVisit", "plan_visit")

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
