# SPDX-License-Identifier: BSD-3-Clause
"""What the relay's decisions ask to be done: send this, write that.

Decisions are made in `ppdaemon.relay.dispatcher` and carried out by
`ppdaemon.relay.relay`, which commits the writes of a `Turn` before it sends
anything of it: no node and no client knows what the ledger could forget.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ppdaemon.states import Outcome
from ppdaemon.visit import NextVisit

type ResultKey = tuple[str, str, int, int]
"""Instrument, group, detector, attempt."""


@dataclass(frozen=True, slots=True)
class Beat:
    """Tell a node that the relay is alive, and learn if it is connected."""

    peer: bytes


@dataclass(frozen=True, slots=True)
class Greet:
    """Tell a node that it is known."""

    peer: bytes


@dataclass(frozen=True, slots=True)
class TurnAway:
    """Tell a connection that it is not served: ``stranger`` or ``taken``."""

    peer: bytes
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Reserve:
    """Give a node its detectors of a visit."""

    peer: bytes
    visit: NextVisit
    detectors: tuple[int, ...]
    attempt: int
    received_tai: float


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Tell a node to give up a visit, or only some detectors of it."""

    peer: bytes
    instrument: str
    group: str
    detectors: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class ConfirmResults:
    """Tell a node that these outcomes are on disk."""

    peer: bytes
    keys: tuple[ResultKey, ...]


@dataclass(frozen=True, slots=True)
class SetRoute:
    """These detectors are about to be sent to a node."""

    number: int
    """The visit's row in the ledger, here and below."""
    node: str
    attempt: int
    detectors: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SetAcked:
    """The node has these detectors in its journal."""

    number: int
    detectors: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SetOutcome:
    """A detector of a visit has ended."""

    number: int
    detector: int
    outcome: Outcome
    reason: str
    node: str | None
    """Who says so; `None` if it is the relay."""


@dataclass(frozen=True, slots=True)
class AmendOutcome:
    """A node has tried a detector again that had ended there; counts if the
    attempt is later than what the ledger knows.
    """

    instrument: str
    group: str
    detector: int
    node: str
    attempt: int
    outcome: Outcome
    reason: str


@dataclass(frozen=True, slots=True)
class SetCancelled:
    """The script queue cancelled the visit."""

    number: int


@dataclass(frozen=True, slots=True)
class CloseVisit:
    """All detectors of the visit have ended."""

    number: int


type Send = Beat | Greet | TurnAway | Reserve | Withdraw | ConfirmResults
type Write = SetRoute | SetAcked | SetOutcome | AmendOutcome | SetCancelled | CloseVisit


@dataclass(slots=True)
class Turn:
    """What follows from one event: commit the writes, then send."""

    writes: list[Write] = field(default_factory=list)
    sends: list[Send] = field(default_factory=list)

    @classmethod
    def of(cls, *sends: Send, writes: Sequence[Write] = ()) -> "Turn":
        """Make a turn of its parts.

        Parameters
        ----------
        *sends : `Send`
            In order.
        writes : `~collections.abc.Sequence` [`Write`]
            In order.

        Returns
        -------
        turn : `Turn`
            For comparison, mostly.
        """
        return cls(list(writes), list(sends))
