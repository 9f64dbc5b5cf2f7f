# SPDX-License-Identifier: BSD-3-Clause
"""Answers of ``ppbridge``: its state, and the nodes that ask it."""

from ppdaemon.reports.common import ControlModel, ServerStatus

BRIDGE_SOCKET = "control.sock"
"""Default name of a bridge's control socket in its state directory."""


class BridgeNodeRow(ControlModel):
    """A node that has asked a bridge for notices within the last hour."""

    node: str
    behind: int
    """Notices that it does not have yet."""
    asked_s: float
    """Seconds since its last question; connected nodes ask every second."""


class BridgeStatusReport(ServerStatus):
    """The state of a bridge of object stores."""

    bridge: str
    """Name of the bridge."""
    listening: str
    """Address of HTTP; blank if none is served."""
    connections: int
    """Open connections of stores."""
    nodes: tuple[BridgeNodeRow, ...]
    """Those that have asked within the last hour."""
    ring: str
    """Path of the ring."""
    epoch: str
    """Random name of the ring; it changes when the ring is lost."""
    first: int
    """Number of the oldest notice in the ring."""
    last: int
    """Number of the newest notice."""
    ring_mb: float
    """Size of the notices in the ring."""
    backlog: int
    """Notices that are not yet written."""
    last_notice_s: float | None
    """Seconds since the last notice; `None` if the ring is empty."""
    sent: int
    """Notices sent to nodes since the start, to each one counted."""

    @property
    def depth(self) -> int:
        """Notices in the ring."""
        return self.last - self.first + 1
