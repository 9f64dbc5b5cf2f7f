# SPDX-License-Identifier: BSD-3-Clause
"""Which visit-detectors with an outcome may be retried by an operator. Pure."""

from ppdaemon import retries
from ppdaemon.messages import ResultEntry
from ppdaemon.node.visits.model import JournalEntry
from ppdaemon.reports import CatchupRequest, RequeueRow
from ppdaemon.retries import HANDED_BACK, WAITS_FOR_EXPORT, WITHDRAWN
from ppdaemon.states import Outcome, Stage

__all__ = ("catchup_refusal", "is_returned", "refusal_reason", "requeue_row", "requeue_warning")


def is_returned(ended: JournalEntry | ResultEntry) -> bool:
    """Return whether an attempt has ended without an outcome, so that another node may have it."""
    return ended.outcome == Outcome.CANCELLED and ended.reason.startswith((HANDED_BACK, WITHDRAWN))


def refusal_reason(entry: JournalEntry, *, force: bool, lost: bool = False) -> str:
    """Return why a visit-detector cannot be retried, or a blank; see `ppdaemon.retries.refusal_reason`."""
    if not entry.final:
        return "it is under way"
    return retries.refusal_reason(entry, entry.key.attempt, force=force, lost=lost)


def catchup_refusal(entry: JournalEntry, request: CatchupRequest, *, has_spool: bool) -> str:
    """Return why the catch-up cannot have a visit-detector, whose outputs may wait for export, or a blank."""
    if request.state == "released":
        return "" if retries.catchup_state(entry) == "running" else "the catch-up does not have it"
    # A catch-up that was killed is repeated, and what it has made is noted by the same or another one.
    force = request.force or request.state == "done" or retries.catchup_state(entry) == "running"
    waits = has_spool and entry.outcome == Outcome.SUCCEEDED and request.state == "running"
    return refusal_reason(entry, force=force) or (WAITS_FOR_EXPORT if waits and not request.force else "")


def requeue_warning(before: JournalEntry) -> str:
    """Return what an operator should know about retrying this attempt."""
    if Stage.CENTRAL not in before.stages:
        return ""
    return (
        f"outputs of attempt {before.key.attempt} in the central repo stay there, only missing ones are added"
    )


def requeue_row(entry: JournalEntry, text: str, attempt: int | None = None) -> RequeueRow:
    """Return one row of the reply; ``attempt`` is the new one."""
    key = entry.key
    return RequeueRow(instrument=key.instrument, detector=key.detector, attempt=attempt, text=text)
