# SPDX-License-Identifier: BSD-3-Clause
"""Which visit-detectors with an outcome may be retried by an operator. Pure."""

from ppdaemon.messages import ResultEntry
from ppdaemon.node.visits.model import JournalEntry
from ppdaemon.reports import RequeueRow
from ppdaemon.states import Outcome, Stage

__all__ = (
    "HANDED_BACK",
    "WITHDRAWN",
    "is_returned",
    "refusal_reason",
    "requeue_row",
    "requeue_warning",
)

# In journals on disk, and compared with them: changed, requeues would miss rows of older versions.
HANDED_BACK = "handed back"
"""Beginning of the reason of a visit-detector that the relay gives to another node."""
WITHDRAWN = "withdrawn: the relay has ended it, or given it to another node"
"""Reason of a visit-detector that the relay withdrew without a cancellation."""


def is_returned(ended: JournalEntry | ResultEntry) -> bool:
    """Return whether an attempt has ended without an outcome, so that another node may have it."""
    return ended.outcome == Outcome.CANCELLED and ended.reason.startswith((HANDED_BACK, WITHDRAWN))


def refusal_reason(entry: JournalEntry, *, force: bool) -> str:
    """Return why a visit-detector cannot be retried, or a blank.

    ``entry`` is its last attempt, with ``no_return`` of all attempts; with
    ``force`` the operator accepts that outputs may be sent twice.
    """
    if not entry.final:
        return "it is under way"
    if entry.outcome == Outcome.SUCCEEDED and not entry.partial:
        return "it has succeeded"
    if force:
        return ""
    if entry.no_return:
        return (
            f"attempt {entry.key.attempt} passed the point of no return ({entry.no_return}):"
            " its writes to the alert database or stream would be there twice; --force accepts that"
        )
    if entry.reason.startswith((HANDED_BACK, WITHDRAWN)):
        return f"{entry.reason}: two nodes would process it; --force accepts that"
    return ""


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
