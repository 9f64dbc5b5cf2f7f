# SPDX-License-Identifier: BSD-3-Clause
"""The real relay with real nodes, which have a worker in each slot from the start."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from benching.folders import BenchFolders
from benching.orders import Orders
from benching.processes import cpu_s, pss_mb

from ppdaemon.config import WorkersConfig
from ppdaemon.errors import PPDaemonError
from ppdaemon.states import SlotState
from ppdaemon.testing.relay import SubmitClient
from ppdaemon.testing.telescope import Telescope, running_telescope

CAMERA = "LSSTCam"
START_S = 300.0
STEP_S = 60.0
"""Time limit of one visit."""
IDLE_S = 5.0
"""Ticks and heartbeats come more often."""
POLL_S = 0.02
"""The results are the workers' own times: a longer pause takes less from them."""
MARGIN = 1.4
"""Slots beyond an equal share: the detectors are not distributed equally."""
LINK = {"heartbeat_s": 1.0, "silence_s": 60.0}
"""A machine that is busy with the start of workers must not lose a node."""


class BenchFailed(PPDaemonError):
    """The programs under measurement do not work as expected."""


class Observatory:
    """What a measurement asks for: visits, and what the workers recorded of them."""

    def __init__(self, telescope: Telescope, client: SubmitClient, detectors: int):
        self.telescope = telescope
        self.client = client
        self.detectors = detectors
        self._workers: list[int] = []
        states = [node.state for node in telescope.nodes.values()]
        self.prepared = Orders(*(state / "prepared" for state in states))
        self.released = Orders(*(state / "released" for state in states))

    def announce(self, group: str, survey: str) -> float:
        """Announce a visit; return the monotonic time before."""
        began = time.monotonic()
        answer = self.client.announce(group, survey=survey, nimages=1)
        if (answer["status"], answer["detectors"]) != ("accepted", self.detectors):
            raise BenchFailed(f"visit {group}: {answer}")
        return began

    def cancel(self, group: str) -> float:
        """Cancel a visit; return the monotonic time before."""
        began = time.monotonic()
        answer = self.client.request({"groupId": group})
        if answer["status"] != "accepted":
            raise BenchFailed(f"cancellation of {group}: {answer}")
        return began

    def wait(self, condition: Callable[[], object], limit_s: float = STEP_S, pause_s: float = POLL_S) -> None:
        """Wait for a condition; raise `BenchFailed` if it takes too long."""
        until = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > until:
                raise BenchFailed(f"not within {limit_s:g} s{self.telescope.story()}")
            time.sleep(pause_s)

    def wait_for_all(self, orders: Orders, group: str) -> float:
        """Wait until each detector has its line; return the time of the last one."""
        self.wait(lambda: len(orders.of(group)) >= self.detectors)
        return max(at for _, at in orders.of(group))

    def slots_in(self, state: SlotState) -> int:
        """Return the number of slots in a state, of all nodes."""
        return sum(node.status().slots.get(state, 0) for node in self.telescope.nodes.values())

    def wait_until_idle(self) -> None:
        """Wait until no slot has a visit."""
        self.wait(lambda: self.slots_in(SlotState.IDLE) == self.slots)

    @property
    def slots(self) -> int:
        """Slots of all nodes."""
        return sum(node.config["workers"]["max"] for node in self.telescope.nodes.values())

    @property
    def relay_pid(self) -> int:
        """Process of the relay."""
        return self.telescope.relay.process.pid

    def relay_cpu_s(self) -> float:
        """Return the CPU time of the relay until now."""
        return cpu_s(self.relay_pid)

    def measure_idle(self) -> float:
        """Return the CPU time of the relay in each second in which there is no visit."""
        before, began = self.relay_cpu_s(), time.monotonic()
        time.sleep(IDLE_S)
        return (self.relay_cpu_s() - before) / (time.monotonic() - began)

    def nodes_cpu_s(self) -> float:
        """Return the CPU time of all supervisors until now."""
        return sum(cpu_s(node.pid) for node in self.telescope.nodes.values())

    def workers_cpu_s(self) -> float:
        """Return the CPU time of the workers that were running at the start."""
        if not self._workers:
            rows = (row for node in self.telescope.nodes.values() for row in node.workers())
            self._workers = [row.pid for row in rows if row.pid is not None]
        return sum(map(cpu_s, self._workers))

    def cpu_s(self) -> tuple[float, float, float]:
        """Return the CPU time of relay, supervisors and workers until now."""
        return self.relay_cpu_s(), self.nodes_cpu_s(), self.workers_cpu_s()

    def relay_mb(self) -> float:
        """Return the memory of the relay."""
        return pss_mb(self.relay_pid)


@contextmanager
def running(
    folders: BenchFolders,
    nodes: int,
    detectors: int,
    *,
    slots: int = 0,
    link: Mapping[str, float] = LINK,
    **options: Any,
) -> Iterator[Observatory]:
    """Run a relay with nodes that all serve all detectors, each with so many slots, by default a share
    of the detectors and some more; raise `BenchFailed` if that fails.
    """
    slots = slots or round(detectors / nodes * MARGIN) + 1
    parts = {
        "node": {"instruments": {CAMERA: f"0-{detectors - 1}"}},
        "workers": {
            "min": slots,
            "max": slots,
            "spare": 0,
            "nice": WorkersConfig().nice,  # supervisors go first, as at a site
            "times": {"boot_s": START_S, "prepare_s": 3600},
        },
        "arrivals": {"image_timeout_s": 3600},
    }
    relay = {**link, "instruments": {CAMERA: {"detectors": f"0-{detectors - 1}"}}, **options.pop("relay", {})}
    try:
        with running_telescope(
            folders.scratch,
            folders.ramdisk,
            [f"n{number}" for number in range(1, nodes + 1)],
            relay=relay,
            start_s=START_S,
            link=link,
            **options,
            **parts,
        ) as (telescope, client):
            observatory = Observatory(telescope, client, detectors)
            observatory.wait_until_idle()
            yield observatory
    except AssertionError as error:
        raise BenchFailed(str(error)) from None
