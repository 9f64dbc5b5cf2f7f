# SPDX-License-Identifier: BSD-3-Clause
"""The changes of visits that a write to the journal causes. Pure."""

from collections.abc import Iterable, Iterator

from ppdaemon.node.visits import model
from ppdaemon.reports import VisitChange
from ppdaemon.states import Outcome, Stage, state_of

__all__ = ("changes_of",)


def changes_of(write: model.Write, result: object) -> Iterator[VisitChange]:
    """Yield the changes of a committed write with its result."""
    match write, result:
        case model.Accept(entries=entries), list() as attempts:
            # The others were accepted before.
            for entry, attempt in zip(entries, attempts, strict=True):
                if attempt is not None:
                    yield _change(entry, attempt)
        case model.Update(entries=entries) | model.Requeue(entries=entries), _:
            for entry in entries:
                yield _change(entry, entry.key.attempt)
        case model.Retry(entry=entry), _:
            yield _change(entry, entry.key.attempt)


def _change(entry: model.JournalEntry, attempt: int) -> VisitChange:
    reached: Iterable[float] = entry.stages.values()
    close, processed = entry.shutter_close_tai, entry.stages.get(Stage.PROCESSED)
    latency_s = None
    if entry.outcome == Outcome.SUCCEEDED and close is not None and processed is not None:
        latency_s = processed - close
    return VisitChange(
        instrument=entry.key.instrument,
        group=entry.key.group,
        detector=entry.key.detector,
        attempt=attempt,
        survey=entry.visit.survey,
        received_tai=entry.received_tai,
        state=state_of(entry.outcome, entry.stages, partial=entry.partial),
        since_tai=entry.ended_tai or max(reached, default=entry.received_tai),
        reason=entry.reason,
        slot=entry.slot,
        shutter_close_tai=close,
        latency_s=latency_s,
    )
