# SPDX-License-Identifier: BSD-3-Clause
"""The effects of the relay's decisions: messages to send, rows to write.

Decisions are made in `ppdaemon.relay.dispatcher` and performed by
`ppdaemon.relay.relay`. It commits the writes of an `Effects` before it sends the
messages, so that no node and no client gets anything that a crash could lose.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from ppdaemon.messages import DetectorsOfVisit
from ppdaemon.states import Outcome
from ppdaemon.traces import Span, TraceKey, problem_of, root_of, trace_number
from ppdaemon.visit import NextVisit

ADOPTED = "from the journal of the node: the ledger was older"
"""Reason of an outcome that the ledger of the relay did not have."""

type ResultKey = tuple[str, str, int, int]
"""Instrument, group, detector, attempt."""


@dataclass(frozen=True, slots=True)
class SendHeartbeat:
    """Send a heartbeat to a node; this also detects a closed connection."""

    peer: bytes
    drained: bool = False
    """Whether an operator has drained the node."""


@dataclass(frozen=True, slots=True)
class SendWelcome:
    """Confirm to a node that it is registered."""

    peer: bytes


@dataclass(frozen=True, slots=True)
class RefuseHello:
    """Refuse to serve a connection, with the code ``stranger`` or ``taken``."""

    peer: bytes
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class RequestHello:
    """Request a node's state again, because messages of it were lost."""

    peer: bytes


@dataclass(frozen=True, slots=True)
class Reserve:
    """Send a visit and the node's detectors of it."""

    peer: bytes
    visit: NextVisit
    detectors: tuple[int, ...]
    attempt: int
    received_at: float
    """When the visit was received, monotonic seconds: the wall clock may have jumped since then."""


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Cancel a visit at a node, or only some detectors of it."""

    peer: bytes
    instrument: str
    group: str
    detectors: tuple[int, ...] | None = None
    attempt: int | None = None
    """Later attempts stay at the node."""


@dataclass(frozen=True, slots=True)
class Permit:
    """Permit a run of a node to write permanently for these detectors."""

    peer: bytes
    incarnation: str
    visits: tuple[DetectorsOfVisit, ...]


@dataclass(frozen=True, slots=True)
class RefusePermit:
    """Refuse a permit: the node ends these detectors."""

    peer: bytes
    visits: tuple[DetectorsOfVisit, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class ConfirmResults:
    """Confirm to a node that these outcomes are on disk."""

    peer: bytes
    keys: tuple[ResultKey, ...]
    moved: tuple[ResultKey, ...] = ()
    """Those that do not count: the detector was given to another node."""

    def with_moved(self, moved: Collection[ResultKey]) -> "ConfirmResults":
        """Return the confirmation with those of its outcomes that the ledger has refused."""
        return replace(self, moved=(*self.moved, *(key for key in self.keys if key in moved)))


@dataclass(frozen=True, slots=True)
class SetRoute:
    """Record that these detectors will be sent to a node."""

    number: int
    """The visit's row in the ledger, here and below."""
    node: str
    attempt: int
    detectors: tuple[int, ...]
    alone: bool = False


@dataclass(frozen=True, slots=True)
class SetAcknowledged:
    """Record that the node's journal has these detectors."""

    number: int
    detectors: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SetPermitted:
    """Record which run of their node may write permanently; blank if none may."""

    number: int
    detectors: tuple[int, ...]
    incarnation: str


@dataclass(frozen=True, slots=True)
class ClearRoute:
    """Record that these detectors have no node; `attempt` is that of the next one."""

    number: int
    detectors: tuple[int, ...]
    attempt: int


@dataclass(frozen=True, slots=True)
class SetOutcome:
    """Record the outcome of a detector."""

    number: int
    detector: int
    outcome: Outcome
    reason: str
    node: str | None
    """The node that sent the outcome; `None` if the relay decided it."""


@dataclass(frozen=True, slots=True)
class UpdateOutcome:
    """Replace the outcome of a detector that the same node has processed again, or
    one that the relay decided because the node was silent.

    In the first case it has no effect unless the attempt is later than the one in
    the ledger.
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
    """Record that the script queue canceled the visit."""

    number: int


@dataclass(frozen=True, slots=True)
class CloseVisit:
    """Record that all detectors of the visit have an outcome."""

    number: int


@dataclass(frozen=True, slots=True)
class Ended:
    """A detector has its outcome: for its trace, after the writes."""

    instrument: str
    group: str
    detector: int
    survey: str
    received_tai: float
    node: str
    """The node that had it last; blank if none had it."""
    attempt: int
    outcome: Outcome
    reason: str

    @property
    def key(self) -> TraceKey:
        """What the trace is about."""
        return TraceKey(self.instrument, self.group, self.detector)

    def span(self, relay: str, ended_tai: float) -> Span:
        """Return the root of the trace: from the announcement to the outcome in the ledger of a relay."""
        trace = trace_number(self.key)
        names = ("instrument", "group", "detector", "survey", "node", "attempt", "reason")
        return Span(
            "visit-detector",
            "pprelay",
            relay,
            trace,
            root_of(trace),
            None,
            self.received_tai,
            max(self.received_tai, ended_tai),
            {f"ppdaemon.{name}": getattr(self, name) for name in names}
            | {"ppdaemon.outcome": str(self.outcome)},
            problem_of(self.outcome, self.reason),
        )


type Send = (
    SendHeartbeat
    | SendWelcome
    | RefuseHello
    | RequestHello
    | Reserve
    | Withdraw
    | Permit
    | RefusePermit
    | ConfirmResults
)
type Write = (
    SetRoute
    | ClearRoute
    | SetAcknowledged
    | SetPermitted
    | SetOutcome
    | UpdateOutcome
    | SetCancelled
    | CloseVisit
)


@dataclass(slots=True)
class Effects:
    """The effects of one event: commit the writes, then send the messages."""

    writes: list[Write] = field(default_factory=list)
    sends: list[Send] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)

    def add(self, other: "Effects") -> None:
        """Add the effects of a later event."""
        self.writes += other.writes
        self.sends += other.sends
        self.ended += other.ended

    @classmethod
    def of(cls, *sends: Send, writes: Sequence[Write] = ()) -> "Effects":
        """Return an `Effects` with these messages and writes."""
        return cls(list(writes), list(sends))
