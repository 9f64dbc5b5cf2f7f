# SPDX-License-Identifier: BSD-3-Clause
"""The states of visit-detectors for clients that watch them. Pure."""

from collections.abc import Iterable, Iterator

from ppdaemon.node.visits import model
from ppdaemon.reports import VisitChange
from ppdaemon.states import Outcome, Stage, state_of

__all__ = ("change_of", "changes_of")


def changes_of(write: model.Write, result: object) -> Iterator[VisitChange]:
    """Yield the changes that are final or begin with a committed write, with its result."""
    match write, result:
        case model.Accept(entries=entries), list() as attempts:
            # The others were accepted before.
            for entry, attempt in zip(entries, attempts, strict=True):
                if attempt is not None:
                    yield change_of(entry, attempt)
        case model.Update(entries=entries), _:
            # Stages were passed on when they were reached.
            yield from (change_of(entry) for entry in entries if entry.outcome is not None)
        case model.Requeue(entries=entries), _:
            yield from map(change_of, entries)
        case model.Retry(entry=entry), _:
            yield change_of(entry)


def change_of(entry: model.JournalEntry, attempt: int | None = None) -> VisitChange:
    """Return the state of an attempt; `attempt` is its number if the journal has just given it."""
    reached: Iterable[float] = entry.stages.values()
    close, processed = entry.shutter_close_tai, entry.stages.get(Stage.PROCESSED)
    latency_s = None
    if entry.outcome == Outcome.SUCCEEDED and close is not None and processed is not None:
        latency_s = processed - close
    return VisitChange(
        instrument=entry.key.instrument,
        group=entry.key.group,
        detector=entry.key.detector,
        attempt=entry.key.attempt if attempt is None else attempt,
        survey=entry.visit.survey,
        received_tai=entry.received_tai,
        state=state_of(entry.outcome, entry.stages, partial=entry.partial),
        since_tai=entry.ended_tai or max(reached, default=entry.received_tai),
        reason=entry.reason,
        slot=entry.slot,
        shutter_close_tai=close,
        latency_s=latency_s,
    )
