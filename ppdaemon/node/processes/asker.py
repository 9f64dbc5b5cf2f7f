# SPDX-License-Identifier: BSD-3-Clause
"""The asker: one process that asks the central repo for all workers.

It has no orders: the workers wake it. Without it each worker asks by itself, so that its end is no problem of
the node.
"""

from collections.abc import Callable
from typing import Any

from ppdaemon import messages
from ppdaemon.folders import NodeFolders
from ppdaemon.node.processes.lifecycle import Lifecycle, ProcessState
from ppdaemon.node.processes.supervised import ForkedProcess
from ppdaemon.wire import encode

__all__ = ("AskerProcess",)

SLOT = -3
"""Instead of the number of a slot, in orders to the zygote."""
BOOT_S = 60.0
"""From the order to fork until it is ready, and from the order to quit until it has ended; one that is
spawned imports everything itself."""
PAUSES_S = 1.0, 60.0
"""Before it is started again, shortest and longest."""


class AskerProcess(ForkedProcess[messages.AskerFact]):
    """Supervises the asker."""

    def __init__(self, folders: NodeFolders, request_fork: Callable[[messages.ForkWorker], bool]):
        first_s, longest_s = PAUSES_S
        lifecycle = Lifecycle(
            boot_s=BOOT_S,
            answer_s=BOOT_S,
            first_pause_s=first_s,
            longest_pause_s=longest_s,
            steady_s=longest_s,
        )
        repo, log = folders.slots / "asker", folders.logs / "asker.log"
        super().__init__("asker", SLOT, repo, log, messages.ASKER_FACTS, lifecycle, request_fork)

    def replace(self) -> None:
        """Replace the process by one with a new configuration."""
        if self._child is None:
            self.start()  # one that is being forked has the old configuration: its epoch is refused
        else:
            self.lifecycle.replace(self._loop.time())
            self._serve()
            self._set_timer()

    def _serve(self) -> None:
        if self.lifecycle.state is ProcessState.REPLACING and self._child is not None:
            self._child.send(encode(messages.Quit()))

    def _received(self, message: messages.AskerFact, descriptors: list[int]) -> None:
        self._ready()

    def _give_up(self, cause: str, unanswered: list[Any]) -> None:
        """Do nothing: it has no orders."""
