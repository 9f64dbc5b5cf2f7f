# SPDX-License-Identifier: BSD-3-Clause
"""A relay and a node with a worker for each detector, and what these have recorded.

A source of visits announces one, a source of notices reports files that nothing else finds.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

from benching.folders import BenchFolders
from benching.orders import Orders, Samples
from poolbench.node import BenchFailed

from ppdaemon.config import WorkersConfig
from ppdaemon.states import SlotState
from ppdaemon.testing.node import NodeProcess
from ppdaemon.testing.raws import RawWriter
from ppdaemon.testing.relay import SubmitClient
from ppdaemon.testing.telescope import running_telescope

CAMERA = "LSSTCam"
START_S = 300.0
LATE_S = 15.0
"""A message without an order to a worker after this time counts as lost."""
POLL_S = 0.05
DISABLED_S = 86_400.0
"""A period that is longer than the measurement: nothing but notices reports a file."""
KINDS = ("prepared", "ingested")
"""Orders that workers record, each in a file of its name in the state directory."""
LINK = {"heartbeat_s": 1.0, "silence_s": 60.0}

type Send = Callable[[Mapping[int, bytes], float], Mapping[int, float]]
"""Sends one notice for each detector, evenly within so many seconds; returns when each was sent, monotonic
seconds."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The amounts of the measurement."""

    exposures: int
    detectors: int
    within_s: float
    """Time in which the notices of an exposure are sent."""
    ring: int


class Site:
    """What a section asks for."""

    def __init__(self, node: NodeProcess, client: SubmitClient, workload: Workload):
        self.node = node
        self.client = client
        self.detectors = range(workload.detectors)
        self._raws = RawWriter(node.raw_root, CAMERA, "MC")
        self._orders_by_kind = {kind: Orders(node.state / kind) for kind in KINDS}

    def visit(self, group: str, announce: Callable[[], float], samples: Samples) -> None:
        """Announce a visit; add the times from the announcement to each worker's order to prepare."""
        began = announce()
        self._wait(lambda: len(self._orders("prepared", group)) >= len(self.detectors))
        samples.add(dict.fromkeys(self.detectors, began), self._orders("prepared", group))

    def announce(self, group: str) -> float:
        """Announce a visit to the relay; return the monotonic time before."""
        began = time.monotonic()
        answer = self.client.announce(group, survey="idle", nimages=1)
        if answer["status"] != "accepted":
            raise BenchFailed(f"visit {group}: {answer}")
        return began

    def expose(self, group: str, send: Send, within_s: float, samples: Samples) -> None:
        """Write the raws of an announced visit, and send a notice of each; add the times from the notices to
        the orders to ingest. End the visit.
        """
        waiting = {SlotState.WAITING: len(self.detectors)}
        self._wait(lambda: self.node.status().slots == waiting, START_S)
        paths = self._raws.land(group, self.detectors)
        notices = dict(zip(self.detectors, map(self._notice, paths), strict=True))
        sent = send(notices, within_s)
        self._wait(lambda: len(self._orders("ingested", group)) >= len(sent))
        samples.add(sent, self._orders("ingested", group))
        self.end(group)

    def end(self, group: str) -> None:
        """End a visit, and wait until no slot has one."""
        self.client.request({"groupId": group})
        idle = {SlotState.IDLE: len(self.detectors)}
        self._wait(lambda: self.node.status().slots == idle, START_S)

    def _notice(self, path: Path) -> bytes:
        """Return the notice of an object store for a bucket that is mounted as the raw root."""
        key = quote_plus(str(path.relative_to(self.node.raw_root)))
        content = {"bucket": {"name": "raw"}, "object": {"key": key, "size": path.stat().st_size}}
        return json.dumps({"Records": [{"eventName": "ObjectCreated:Put", "s3": content}]}).encode()

    def _orders(self, kind: str, group: str) -> list[tuple[int, float]]:
        return self._orders_by_kind[kind].of(group)

    def _wait(self, condition: Callable[[], object], limit_s: float = LATE_S) -> None:
        until = time.monotonic() + limit_s
        while not condition() and time.monotonic() < until:
            time.sleep(POLL_S)


@contextmanager
def running(
    folders: BenchFolders, workload: Workload, arrivals: Mapping[str, Any], **parts: Mapping[str, Any]
) -> Iterator[Site]:
    """Run a relay and a node; `arrivals` are the sources of notices, `parts` further parts of the node's
    configuration. Raises `BenchFailed` if that fails.
    """
    slots, last = workload.detectors, workload.detectors - 1
    workers = {"min": slots, "max": slots, "spare": 0, "nice": WorkersConfig().nice}
    periods = {"watch": "poll", "poll_s": DISABLED_S, "scan_s": DISABLED_S, "image_timeout_s": 3600}
    try:
        with running_telescope(
            folders.scratch,
            folders.ramdisk,
            ["n1"],
            relay={**LINK, "instruments": {CAMERA: {"detectors": f"0-{last}"}}},
            start_s=START_S,
            link=LINK,
            node={"instruments": {CAMERA: f"0-{last}"}},
            workers={**workers, "times": {"boot_s": START_S, "prepare_s": 3600}},
            arrivals={**periods, **arrivals},
            **parts,
        ) as (telescope, client):
            site = Site(telescope.nodes["n1"], client, workload)
            record_in_memory(site.node.state, folders.ramdisk)
            site._wait(lambda: site.node.status().slots == {SlotState.IDLE: slots}, START_S)
            yield site
    except AssertionError as error:
        raise BenchFailed(str(error)) from None


def record_in_memory(state: Path, ramdisk: Path) -> None:
    """Let workers record orders on the RAM disk, before there is a record. On a disk, 200 workers that append
    to one file wait for each other whenever its filesystem commits its journal, and keep the cores busy.
    """
    for kind in KINDS:
        (state / kind).symlink_to(ramdisk / kind)


def groups(name: str, count: int) -> Sequence[str]:
    """Return the groups of a section's visits; the first one warms up, and is not counted."""
    return [f"{name}{number}" for number in range(count + 1)]
