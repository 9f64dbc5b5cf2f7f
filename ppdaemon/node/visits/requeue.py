# SPDX-License-Identifier: BSD-3-Clause
"""What may be tried again although it has its outcome. Pure."""

from ppdaemon.node.visits.turn import Entry
from ppdaemon.reports import RequeueRow
from ppdaemon.states import Outcome, Stage

__all__ = ("WITHDRAWN", "objection", "requeue_row", "risk")

WITHDRAWN = "withdrawn: the relay has ended it, or given it to another node"
"""Reason of a visit-detector that the relay took back without a cancellation."""


def objection(entry: Entry, *, force: bool) -> str:
    """Return why a visit-detector is not tried again, or a blank.

    Parameters
    ----------
    entry : `~ppdaemon.node.visits.turn.Entry`
        Its last attempt; ``no_return`` of all attempts.
    force : `bool`
        Whether an operator takes the risk of doing things twice.
    """
    if not entry.final:
        return "it is under way"
    if entry.outcome == Outcome.SUCCEEDED and not entry.partial:
        return "it has succeeded"
    if force:
        return ""
    if entry.no_return:
        return (
            f"attempt {entry.key.attempt} went past the point of no return ({entry.no_return}):"
            " what it wrote to the alert database or stream would be there twice; --force accepts that"
        )
    if entry.reason == WITHDRAWN:
        return f"{WITHDRAWN}: two nodes would process it; --force accepts that"
    return ""


def risk(before: Entry) -> str:
    """Return what an operator should know about trying this again."""
    if Stage.CENTRAL not in before.stages:
        return ""
    return (
        f"what the central repo has of attempt {before.key.attempt} stays there, only what it lacks is added"
    )


def requeue_row(entry: Entry, text: str, attempt: int | None = None) -> RequeueRow:
    """Return one line of the answer; ``attempt`` is the new one."""
    key = entry.key
    return RequeueRow(instrument=key.instrument, detector=key.detector, attempt=attempt, text=text)
