# SPDX-License-Identifier: BSD-3-Clause
"""Relay and node: registration, visits, permits and outcomes, over ZeroMQ."""

from typing import Annotated, Literal

import pydantic

from ppdaemon.errors import BadMessage
from ppdaemon.messages.common import Storable
from ppdaemon.states import Outcome
from ppdaemon.throttle import sample_of
from ppdaemon.visit import Group, Name, NextVisit
from ppdaemon.wire import BY_TYPE, Model, parse_json

NODE_LIMIT = 1_048_576
"""Largest message that a relay accepts from a node, bytes."""

RELAY_LIMIT = 262_144
"""Largest message that a node accepts from a relay, bytes."""

Attempt = Annotated[int, pydantic.Field(ge=0, le=1 << 31)]
"""Number of an attempt: the next ones are integers of 64 bits, too."""

PROTOCOL: Literal[2] = 2
"""Version of the messages between relay and nodes; 2 has permits."""


def other_protocol(data: bytes) -> str:
    """Return what to do about an invalid message, if it has another version; blank otherwise."""
    try:
        content = parse_json(data, limit=NODE_LIMIT)
    except BadMessage:
        return ""
    version = content.get("schema") if isinstance(content, dict) else None
    if not isinstance(version, int) or version == PROTOCOL:
        return ""
    origin = sample_of(str(content.get("origin")))[:80]
    return (
        f"{origin} sends messages of version {version}, this program of version {PROTOCOL}: install the same"
        " version of ppdaemon on the relay and on all nodes"
    )


class _Envelope(Model):
    """Fields of all messages between relay and node."""

    model_config = pydantic.ConfigDict(extra="ignore", validate_by_name=True, validate_by_alias=True)

    schema_version: Literal[2] = pydantic.Field(PROTOCOL, alias="schema")
    """Version of this protocol; all nodes of a relay must have the same."""
    origin: Name
    """Name of the node or relay that sends it."""
    sent_tai: float
    sequence: Storable
    """Number of the message, counted by the sender for each receiver; 0 if it is not
    counted. A gap means that messages were lost."""


class DetectorsOfVisit(Model):
    """Detectors of one visit in one attempt of the relay."""

    instrument: Name
    group: Group
    attempt: Attempt
    """The relay's number, from the last `ReserveVisit`; retries of the node itself do not change it."""
    detectors: tuple[Storable, ...]


class HeldDetectors(DetectorsOfVisit):
    """Detectors that a node has in its journal without an outcome."""

    state: Literal["held", "permitted", "crossed"]
    """``held``: nothing permanent was written and this run of the node has no permit.
    ``permitted``: it has one. ``crossed``: something permanent may have been written."""


class EndedDetectors(DetectorsOfVisit):
    """Detectors that have an outcome in the journal of a node."""

    outcome: Outcome
    reported: bool
    """Whether a relay has confirmed it; otherwise `Results` follow."""
    last: Attempt | None = None
    """The node's own number of the attempt, if it differs: that of a retry, or of a requeue."""


class Hello(_Envelope):
    """A node registers at the relay, after its start or a new connection, or its state has changed."""

    type: Literal["hello"] = "hello"
    incarnation: Annotated[Name, pydantic.Field(alias="life")]
    """Random string that differs for each start of the node."""
    instruments: dict[Name, tuple[Storable, ...]]
    """Detectors that the node may process, by instrument."""
    capacity: Annotated[Storable, pydantic.Field(ge=0)]
    """Number of visit-detectors that it can have at once; with 0 it gets none."""
    spare: bool = False
    """Whether it only gets what no other node can get."""
    holds: tuple[HeldDetectors, ...] = ()
    """All visit-detectors in its journal without an outcome."""
    ended: tuple[EndedDetectors, ...] = ()
    """The latest outcomes in its journal, if it is not connected: the ledger of the relay may be an
    older copy."""
    complete: bool = True
    """Whether `ended` has them; a node that is connected, as far as it knows, leaves them out."""
    alone: bool = False
    """Whether the node writes permanently without a permit while it has no connection to a relay."""
    version: str = ""
    """Version of ppdaemon."""
    shadow: bool | None = None
    """Whether the node runs in shadow mode; `None`: it does not."""


class VisitAccepted(_Envelope):
    """The node's journal has these detectors of a visit."""

    type: Literal["ack"] = "ack"
    instrument: Name
    group: Group
    detectors: tuple[Storable, ...]
    attempt: Attempt = 1


class VisitRefused(_Envelope):
    """The node refuses these detectors of a visit."""

    type: Literal["nak"] = "nak"
    instrument: Name
    group: Group
    detectors: tuple[Storable, ...]
    attempt: Attempt = 1
    reason: str
    final: bool
    """Whether sending it again, to this or another node, is useless."""


class ResultEntry(Model):
    """The outcome of a visit-detector."""

    instrument: Name
    group: Group
    detector: Storable
    attempt: Attempt = 1
    outcome: Outcome
    reason: str = ""
    asked: Attempt | None = None
    """The relay's number of the attempt, without retries of the node itself; `None` means `attempt`."""
    returned: bool | None = None
    """Whether this is no outcome: the node has ended it without writing anything permanent, so that
    another one may have it."""


class Results(_Envelope):
    """Outcomes; sent again until the relay confirms them with `ResultsSeen`."""

    type: Literal["results"] = "results"
    entries: tuple[ResultEntry, ...]


class PermitRequest(_Envelope):
    """The node asks to write permanently for these detectors; sent again until answered."""

    type: Literal["permit"] = "permit"
    visits: tuple[DetectorsOfVisit, ...]


class Heartbeat(_Envelope):
    """The sender is running; sent when there is no other message."""

    type: Literal["heartbeat"] = "heartbeat"
    state: str = ""
    """State of a node, as in `~ppdaemon.reports.StatusReport`; blank from a relay."""
    problem: str = ""
    """The worst problem of a node, or blank."""
    drained: bool = False
    """From a relay: whether an operator has drained the node there."""


class Welcome(_Envelope):
    """The node is registered; visits that it has not acknowledged follow."""

    type: Literal["welcome"] = "welcome"
    incarnation: Annotated[Name, pydantic.Field(alias="life")]
    """Random string that differs for each start of the relay."""
    epoch: Storable
    """Number that grows with each start of the relay."""


class HelloRefused(_Envelope):
    """The relay does not serve the node on this connection."""

    type: Literal["sorry"] = "sorry"
    code: Literal["stranger", "taken"]
    """``stranger``: the connection is not registered, send `Hello` at once.
    ``taken``: a connected node has the same name, or the node is in shadow mode and the relay is not, or
    the reverse; send `Hello` again after a heartbeat interval. It is accepted when the other node has
    disconnected."""
    reason: str


class SendHello(_Envelope):
    """The node must send `Hello` again: messages of it were lost."""

    type: Literal["send_hello"] = "send_hello"


class ReserveVisit(_Envelope):
    """A visit and the node's detectors of it; sent again until acknowledged."""

    type: Literal["visit"] = "visit"
    visit: NextVisit
    detectors: tuple[Storable, ...]
    attempt: Attempt = 1
    received_tai: float
    """When the relay accepted the visit, TAI seconds since 1970; deadlines are
    counted from here."""


class CancelVisit(_Envelope):
    """A visit is canceled; sent again until its outcomes have arrived."""

    type: Literal["cancel"] = "cancel"
    instrument: Name
    group: Group
    detectors: tuple[Storable, ...] | None = None
    """Only these detectors, because another node has them now; `None` means all."""
    attempt: Attempt | None = None
    """Later attempts than this one stay; `None` means all attempts."""


class Permitted(_Envelope):
    """The node may write permanently for these detectors: no other node will get them."""

    type: Literal["permitted"] = "permitted"
    epoch: Storable
    """Epoch of the relay; a node ignores a lower one than it has received before."""
    incarnation: Annotated[Name, pydantic.Field(alias="life")]
    """The run of the node that has asked."""
    visits: tuple[DetectorsOfVisit, ...]


class PermitRefused(_Envelope):
    """The node must end these detectors without writing anything permanent."""

    type: Literal["not_permitted"] = "not_permitted"
    visits: tuple[DetectorsOfVisit, ...]
    reason: str


class ResultsSeen(_Envelope):
    """The relay has these outcomes on disk."""

    type: Literal["results_seen"] = "results_seen"
    entries: tuple[tuple[str, str, Storable, Storable], ...]
    """Keys: instrument, group, detector, attempt."""
    moved: tuple[tuple[str, str, Storable, Storable], ...] = ()
    """Those that do not count: the relay has given the detector to another node."""


type NodeMessage = Annotated[
    Hello | VisitAccepted | VisitRefused | PermitRequest | Results | Heartbeat, BY_TYPE
]
type RelayMessage = Annotated[
    Welcome
    | HelloRefused
    | SendHello
    | ReserveVisit
    | CancelVisit
    | Permitted
    | PermitRefused
    | ResultsSeen
    | Heartbeat,
    BY_TYPE,
]
FromNode = pydantic.TypeAdapter[NodeMessage](NodeMessage)
FromRelay = pydantic.TypeAdapter[RelayMessage](RelayMessage)
