# SPDX-License-Identifier: BSD-3-Clause
"""The relay's submit socket: how a visit's requests are answered. The requests are in `ppdaemon.visit`."""

from typing import Annotated, Literal

import pydantic

from ppdaemon.states import Outcome
from ppdaemon.visit import Group
from ppdaemon.wire import Model

SUBMIT_LIMIT = 65_536
"""Largest request on the submit socket, bytes."""


class DetectorOutcome(Model):
    """State of one detector of a visit at the relay."""

    detector: int
    node: str | None = None
    """The node that has it; `None` if it was not sent to a node."""
    outcome: Outcome | None = None
    """`None` while it is under way."""
    reason: str = ""
    attempt: int = 1


class Accepted(Model):
    """The relay's answer to a request on its submit socket.

    ``duplicate``: it was accepted before. ``ignored``: nothing is to be done, for
    example because the visit takes no image. ``rejected``: it has an error or
    cannot be accepted now, see `reason`.
    """

    status: Literal["accepted", "duplicate", "ignored", "rejected"]
    group: str = pydantic.Field("", alias="groupId")
    detectors: int = 0
    """Number of detectors of the visit, or of those that a cancellation ends."""
    reason: str = ""
    outcomes: tuple[DetectorOutcome, ...] | None = None
    """Only in the answer to ``visit_status``."""
    unserved: tuple[int, ...] | None = None
    """Detectors of an announced visit that no connected node serves now: they wait for one."""
    again: Annotated[bool, pydantic.Field(exclude=True)] = False
    """Not sent: the same request may be accepted later."""

    model_config = pydantic.ConfigDict(validate_by_name=True, validate_by_alias=True)


BUSY = "busy"
"""Beginning of the reason of an `Accepted` for a request that was not read: send it again later."""


class VisitStatus(Model):
    """Request for the outcomes of a visit's detectors."""

    type: Literal["visit_status"]
    group: Group = pydantic.Field(alias="groupId")
