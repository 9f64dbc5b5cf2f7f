# SPDX-License-Identifier: BSD-3-Clause
"""What a node needs of the program that gives it visits: a relay, or streams of Redis."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from ppdaemon.config import NodeConfig
from ppdaemon.messages import DetectorsOfVisit, ReserveVisit, ResultEntry
from ppdaemon.reports import ProblemSource, RedisReport

__all__ = ("MAX_RESULTS_PER_MESSAGE", "VisitSource")

MAX_RESULTS_PER_MESSAGE = 500
"""With this many outcomes a message is far below the relay's size limit."""


class VisitSource(Protocol):
    """Sends visits to `~ppdaemon.node.visits.chooser.PipelineChooser.receive`, with all other messages of
    `~ppdaemon.node.visits.model.FromLink`: `~ppdaemon.messages.Welcome` when it answers, and
    `~ppdaemon.node.visits.model.RelayLost` when it does not any more.
    """

    @property
    def kind(self) -> ProblemSource:
        """What its problem is about."""

    @property
    def text(self) -> str:
        """The state of the connection, for operators."""

    @property
    def problem(self) -> str:
        """Why no visits are received, or blank."""

    @property
    def away_s(self) -> float:
        """Seconds without a connection."""

    @property
    def connected(self) -> bool:
        """Whether it answers."""

    @property
    def drained(self) -> bool:
        """Whether an operator has drained this node where the visits come from."""

    @property
    def samples(self) -> Mapping[str, str]:
        """By kind of invalid message: the beginning of the first one."""

    def report(self) -> RedisReport | None:
        """Return what is known of the streams, or `None` without any."""

    async def run(self) -> None:
        """Connect and exchange messages until canceled."""

    def set_accepting(self, accepting: bool) -> None:
        """Take visits, or none while the node drains."""

    def set_capacity(self, capacity: int) -> None:
        """Have another number of visit-detectors at once."""

    def reconfigure(self, config: NodeConfig) -> None:
        """Use the keys of another configuration from now on.

        Raises `~ppdaemon.keyfiles.UnusableKey` if they cannot be used; the old ones stay.
        """

    def send_accepted(self, visit: ReserveVisit, detectors: Sequence[int]) -> None:
        """Send that the journal has these detectors."""

    def send_refused(
        self, visit: ReserveVisit, detectors: Sequence[int], reason: str, *, final: bool
    ) -> None:
        """Send that these detectors are not accepted; ``final`` if another try is useless."""

    def send_results(self, entries: Sequence[ResultEntry]) -> None:
        """Send outcomes that are in the journal, and what was returned; `~ppdaemon.messages.ResultsSeen`
        follows.
        """

    def ask_permits(self, visits: Sequence[DetectorsOfVisit]) -> None:
        """Ask to write permanently for visit-detectors; an answer may follow."""
