# SPDX-License-Identifier: BSD-3-Clause
"""Which visit-detectors with an outcome may be processed again: by the daemon, or by the catch-up. Pure."""

from collections.abc import Mapping
from typing import Any, Protocol

from ppdaemon.states import Outcome

__all__ = (
    "CATCHUP",
    "HANDED_BACK",
    "QUARANTINED",
    "WAITS_FOR_EXPORT",
    "WITHDRAWN",
    "Ended",
    "EndedAttempt",
    "again",
    "catchup_state",
    "refusal_reason",
)

# In journals on disk, and compared with them: changed, requeues would miss rows of older versions.
HANDED_BACK = "handed back"
"""Beginning of the reason of a visit-detector that the relay gives to another node."""
WITHDRAWN = "withdrawn: the relay has ended it, or given it to another node"
"""Reason of a visit-detector that the relay withdrew without a cancellation."""
QUARANTINED = "its outputs are quarantined: see its folder in refused/ of the state directory"
"""Beginning of the reason of an attempt whose spool the exporter has refused, until it is exported."""
WAITS_FOR_EXPORT = "its outputs wait for export: try again when they are in the central repo"
"""Why a success is not processed again although its spool was quarantined: it was moved back."""
CATCHUP = "catchup"
"""Key in the figures of attempts that the catch-up processes or has processed: ``state``, which is
``running`` or ``done``, ``run`` and ``tai``."""


class Ended(Protocol):
    """An attempt with an outcome, in the journal or in a report of it."""

    @property
    def outcome(self) -> Outcome | None: ...  # noqa: D102
    @property
    def partial(self) -> bool: ...  # noqa: D102
    @property
    def reason(self) -> str: ...  # noqa: D102
    @property
    def no_return(self) -> str: ...  # noqa: D102
    @property
    def figures(self) -> Mapping[str, Any]: ...  # noqa: D102


class EndedAttempt(Ended, Protocol):
    """An attempt with its number."""

    @property
    def attempt(self) -> int: ...  # noqa: D102
    @property
    def retriable(self) -> bool: ...  # noqa: D102


def catchup_state(ended: Ended) -> str:
    """Return ``running`` or ``done`` if the catch-up has this attempt, or a blank."""
    return str(ended.figures.get(CATCHUP, {}).get("state", ""))


def refusal_reason(ended: Ended, attempt: int, *, force: bool, lost: bool = False) -> str:
    """Return why a visit-detector cannot be processed again, or a blank.

    ``ended`` is its last attempt, with ``no_return`` of all attempts; with
    ``force`` the operator accepts that outputs may be sent twice. ``lost``: its outputs are neither in
    the central repo nor on their way to it.
    """
    lost = lost or ended.reason.startswith(QUARANTINED)
    if ended.outcome == Outcome.SUCCEEDED and not (ended.partial or lost):
        return "it has succeeded"
    if force:
        return ""
    if state := catchup_state(ended):
        run = ended.figures[CATCHUP].get("run", "")
        text = f"the catch-up has processed it (run {run})"
        if state != "done":  # also after its end, such as one without a raw
            text = f"the catch-up has it (run {run}), ppctl catchup run goes on with it"
        return f"{text}: its outputs would be there twice; --force accepts that"
    if ended.no_return:
        return (
            f"attempt {attempt} passed the point of no return ({ended.no_return}):"
            " its writes to the alert database or stream would be there twice; --force accepts that"
        )
    if ended.reason.startswith((HANDED_BACK, WITHDRAWN)):
        return f"{ended.reason}: two nodes would process it; --force accepts that"
    return ""


def again(row: EndedAttempt) -> str:
    """Return in a few words whether a visit-detector may be processed again."""
    if state := catchup_state(row):
        return "done by the catch-up" if state == "done" else "in the catch-up"
    if refusal_reason(row, row.attempt, force=False):
        return "needs --force"
    # Of a success that is listed only the outputs are missing.
    may = row.retriable or row.outcome in (Outcome.NO_IMAGE, Outcome.SUCCEEDED)
    return "may succeed" if may else "may fail again"
