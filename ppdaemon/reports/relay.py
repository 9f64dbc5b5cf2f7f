# SPDX-License-Identifier: BSD-3-Clause
"""Answers of ``pprelay``: its state, its nodes, and the visits in its ledger."""

from typing import Literal

from ppdaemon.reports.common import SCHEMA, ControlModel, ServerStatus
from ppdaemon.states import Outcome
from ppdaemon.visit import Name

RELAY_SOCKET = "control.sock"
"""Default name of a relay's control socket in its state directory."""


class RelayWaitRow(ControlModel):
    """A detector that waits for a node."""

    instrument: Name
    detector: int
    visits: int
    """Number of visits of which it waits."""
    oldest_group: str
    """Group of the visit that waits longest."""
    since_tai: float
    """When the relay received that visit, TAI seconds since 1970."""
    reason: str
    """Why it waits, such as ``no node serves it``."""


class RelayStatusReport(ServerStatus):
    """The state of a relay."""

    relay: str
    """Name of the relay."""
    nodes: dict[str, int]
    """Number of nodes in each state; see `RelayNodeRow.state`."""
    open_visits: int
    """Visits with a detector that has no outcome."""
    open_detectors: int
    """Visit-detectors without an outcome."""
    waits: tuple[RelayWaitRow, ...]
    """The detectors that wait for a node."""
    unserved: dict[str, tuple[int, ...]]
    """By instrument: detectors in use that no connected node serves now."""
    switched_off: dict[str, tuple[str, ...]]
    """What ``switched_off`` of the configuration has, by its key."""
    spares_suffice: dict[str, bool]
    """By instrument: whether the idle places of spare nodes are enough for one whole visit;
    empty if there is no spare node."""
    ledger: str
    """Path of the ledger."""
    ledger_mb: float | None
    """Size of the ledger; `None` if it cannot be read."""
    ledger_backlog: int
    """Changes that are not yet written."""
    permits: dict[Literal["granted", "refused"], int] = {}
    """Answers to nodes that asked for a permit, since the start; one for each visit-detector and request."""
    messages_lost: int = 0
    """Messages of nodes that did not arrive, by their sequence numbers."""
    hosts: "RelayHostsReport"
    """How many nodes the cadence needs."""


class RelayDemandRow(ControlModel):
    """What one instrument needs, by its latest visits."""

    instrument: str
    cadence_s: float
    """Median time between two visits, seconds."""
    detectors: int
    """Detectors of the largest visit."""
    visit_s: float
    """For how long a node has a visit-detector, seconds; 95 % of those that succeeded take no longer."""
    slots: int
    """Visit-detectors that the nodes must be able to have at once."""


class RelayHostsReport(ControlModel):
    """How many nodes the cadence needs."""

    schema_version: int = SCHEMA
    """Version of the output of ``ppctl --json``."""
    ready: int
    """Nodes that are connected, not drained, and offer to take visit-detectors."""
    slots: int
    """Visit-detectors that they offer to have at once, together."""
    needed: int | None
    """Nodes such as these, or as those that were ready last, that are needed; `None` if it is not known: no
    visits come, or too few have ended since the relay started."""
    instruments: tuple[RelayDemandRow, ...]
    """By instrument; only those whose visits come now."""

    @property
    def missing(self) -> int:
        """Nodes to add; negative: to release."""
        return 0 if self.needed is None else self.needed - self.ready


class RelayNodeRow(ControlModel):
    """A node that is, or was, connected to the relay, or is drained."""

    node: str
    state: Literal["ready", "full", "draining", "closed", "disconnected"]
    """``full``: it has as many visit-detectors as it offers to have. ``draining``: an operator
    has drained it. ``closed``: it offers to take none."""
    connected: bool
    """Whether it is connected now."""
    drained: bool
    """Whether an operator has drained it at the relay."""
    spare: bool
    """Whether it gets only what no other node can get."""
    capacity: int
    """Visit-detectors that it offers to have at once."""
    open: int
    """Visit-detectors that were sent to it and have no outcome."""
    detectors: dict[str, str]
    """By instrument: the detectors that it serves, such as ``0-62``."""
    last_message_s: float | None = None
    """Seconds since its last message; `None` if it sent none since the relay started."""
    messages_lost: int = 0
    """Messages of it that did not arrive, by their sequence numbers."""
    version: str = ""
    """Its version of ppdaemon; blank if it is not connected."""
    own_state: str = ""
    """The state that it reports of itself, as in `StatusReport.state`; blank if it is not connected."""
    problem: str = ""
    """The worst problem that it reports, or blank."""


class RelayVisitRow(ControlModel):
    """One visit in the ledger."""

    instrument: str
    group: str
    survey: str = ""
    received_tai: float
    """When the relay received it, TAI seconds since 1970."""
    cancelled: bool
    """Whether it was canceled."""
    ended_tai: float | None
    """When its last detector had an outcome; `None` while it is open."""
    detectors: int
    """Number of its detectors."""
    open: dict[str, int]
    """Number of detectors without an outcome in each state: ``waiting`` for a node, ``sent`` to
    one, ``acknowledged`` by it, ``permitted`` to write permanently."""
    outcomes: dict[Outcome, int]
    """Number of detectors with each outcome."""


class RelayDetectorRow(ControlModel):
    """One detector of a visit in the ledger."""

    instrument: str
    group: str
    detector: int
    state: str
    """``waiting``, ``sent``, ``acknowledged``, ``permitted``, or ``ended``."""
    node: str | None
    """The node that has it or had it last."""
    attempt: int
    """Number of the last attempt, from 1."""
    received_tai: float
    """When the relay received the visit."""
    acknowledged_tai: float | None
    """When the node acknowledged it; `None` if it did not."""
    outcome: Outcome | None
    """Its outcome; `None` while it is under way."""
    reason: str
    """Why it has this outcome or waits, or blank."""
