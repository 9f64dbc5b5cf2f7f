# SPDX-License-Identifier: BSD-3-Clause
"""The night of the demonstration: which visits are taken, and what each one should get."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ppdaemon.demo.plan import ImageType
from ppdaemon.demo.rules import PIPELINES, SURVEYS, DemoRule
from ppdaemon.demo.sky import SECOND_DEC_DEG, SECOND_RA_DEG
from ppdaemon.demo.visits import Cadence, Pointing, VisitPlan, plan_visits

__all__ = ("CADENCE", "NIGHT", "TEMPLATE_BANDS", "Kind", "plan_night")

CADENCE = Cadence(every_s=12.0, lead_s=10.0, exposure_s=8.0, readout_s=2.0)
TEMPLATE_BANDS = ("g", "r")
"""There are no templates in i: what can be done then is shown."""
FIELD = Pointing()
SECOND_FIELD = Pointing(SECOND_RA_DEG, SECOND_DEC_DEG)


@dataclass(frozen=True, slots=True)
class Kind:
    """A visit, the rule that it falls under, and the pipeline that has to run."""

    rule: DemoRule
    runs: str
    physical_filter: str
    snaps: int = 1
    image_type: ImageType = ImageType.SCIENCE
    pointing: Pointing = FIELD
    filter_announced: bool = True
    because: str = ""
    """What is said of the pipelines that the rule prefers to the one that
    runs."""

    @property
    def passed_over(self) -> tuple[str, ...]:
        """Pipelines that the rule prefers and that cannot run (`tuple` [`str`])."""
        return PIPELINES[self.rule][: PIPELINES[self.rule].index(self.runs)]


NIGHT = (
    Kind(DemoRule.IN_MAP, "ApPipe", "r_03"),
    Kind(DemoRule.IN_MAP, "ApPipe", "g_01", snaps=2),
    Kind(DemoRule.IN_MAP, "ApPipe", "r_03"),
    # Known before the image: there is no template.
    Kind(DemoRule.IN_MAP, "SingleFrame", "i_06", because="lacks template"),
    # Known from the image: templates are there, but not in its band.
    Kind(DemoRule.IN_MAP, "SingleFrame", "i_06", filter_announced=False, because="its graph is empty"),
    Kind(DemoRule.ELSEWHERE, "SingleFrame", "r_03", pointing=SECOND_FIELD),
    Kind(DemoRule.CALIBRATION, "Calibration", "r_03", image_type=ImageType.BIAS),
)


def plan_night(begin_tai_s: float, kinds: Sequence[Kind] = NIGHT) -> list[VisitPlan]:
    """Plan the visits of the demonstration.

    Parameters
    ----------
    begin_tai_s : `float`
        When the first is announced, TAI seconds since 1970.
    kinds : `~collections.abc.Sequence` [`Kind`], optional
        What is taken.

    Returns
    -------
    visits : `list` [`~ppdaemon.demo.visits.VisitPlan`]
        One for each kind, numbered in order; the shutter of one closes before
        that of the next opens.
    """
    visits: list[VisitPlan] = []
    seq_num = 1
    for number, kind in enumerate(kinds):
        (visit,) = plan_visits(
            1,
            begin_tai_s,
            CADENCE,
            snaps=kind.snaps,
            filters=(kind.physical_filter,),
            pointing=kind.pointing,
            image_type=kind.image_type,
            program=SURVEYS[kind.rule],
            first_seq_num=seq_num,
        )
        visits.append(replace(visit, number=number, filter_announced=kind.filter_announced))
        seq_num += kind.snaps
        begin_tai_s += CADENCE.every_s + (kind.snaps - 1) * (CADENCE.exposure_s + CADENCE.readout_s)
    return visits
