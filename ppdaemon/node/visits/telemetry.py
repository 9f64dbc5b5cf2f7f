# SPDX-License-Identifier: BSD-3-Clause
"""What is published of the outcome of a visit-detector. Pure."""

from ppdaemon.node.visits.model import JournalEntry
from ppdaemon.publish.messages import Telemetry
from ppdaemon.states import Stage
from ppdaemon.timescales import TAI_MINUS_UTC_S

__all__ = ("telemetry_of",)


def telemetry_of(entry: JournalEntry, node: str) -> Telemetry | None:
    """Return the telemetry of an attempt whose outcome is that of its visit-detector; `None` of others."""
    if not entry.final or entry.outcome is None or entry.ended_tai is None:
        return None
    prepared, processed = entry.stages.get(Stage.PREPARED), entry.stages.get(Stage.PROCESSED)
    return Telemetry(
        timestamp=entry.ended_tai - TAI_MINUS_UTC_S,
        node=node,
        instrument=entry.key.instrument,
        group=entry.key.group,
        detector=entry.key.detector,
        attempt=entry.key.attempt,
        survey=entry.visit.survey,
        outcome=entry.outcome,
        reason=entry.reason,
        pipeline=entry.pipeline,
        exposures=len(entry.exposures),
        datasets=entry.datasets,
        prepare_s=_between(entry.received_tai, prepared),
        alerts_s=_between(entry.shutter_close_tai, processed),
        total_s=_between(entry.shutter_close_tai, entry.ended_tai),
    )


def _between(begin: float | None, end: float | None) -> float | None:
    return None if begin is None or end is None else round(end - begin, 3)
