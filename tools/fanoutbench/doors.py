# SPDX-License-Identifier: BSD-3-Clause
"""How long a worker waits before its outputs are complete, with and without a relay that permits it.

The visits have no other permanent write, before which a worker also waits for a commit of the journal:
its duration differs by more than a permit takes. Few workers at once: with more than there are cores,
each also waits for the others.
"""

from pathlib import Path
from typing import Any

from benching.cli import progress
from benching.folders import FolderRoots
from benching.results import Scalar, percentile

from fanoutbench.observatory import Observatory, running
from ppdaemon.testing.node import NodeProcess

FEW = 2
"""Detectors of a visit."""
PACE_MS = 100
"""Work in each step before it: the permission, which is asked for when the pipeline starts, arrives
meanwhile."""
LINK = {"heartbeat_s": 0.2, "silence_s": 1.0}
"""The nodes find soon that the relay has ended."""


def measure_doors(folder_roots: FolderRoots, visits: int) -> dict[str, Scalar]:
    """Measure with a node that writes without a permit while it has no relay."""
    progress("permits: starting a node for few detectors")
    with (
        folder_roots.temporary() as folders,
        running(folders, 1, FEW, slots=FEW * (visits + 1), link=LINK, make_node=_independent) as observatory,
    ):
        (node,) = observatory.telescope.nodes.values()
        doors = _Doors(observatory, node.state / "crossed")
        for number in range(visits):
            progress(f"permits: visit {number} of {visits}")
            doors.measure(f"early{number}", f"repeatable pace:{PACE_MS}")
            doors.measure(f"late{number}", "repeatable")
        alone = [f"alone{number}" for number in range(visits)]
        for group in alone:
            observatory.announce(group, f"repeatable pace:{PACE_MS}")
            observatory.wait_for_all(observatory.prepared, group)
        observatory.telescope.relay.kill()
        observatory.wait(lambda: not observatory.telescope.connected(node))
        for group in alone:
            doors.open(group)
        waits = doors.waits_ms()
    early, late, without = (
        [ms for group, ms in waits if group.startswith(name)] for name in ("early", "late", "alone")
    )
    return {
        "door_p50_ms": percentile(early, 50),
        "door_p99_ms": percentile(early, 99),
        "door_without_relay_p50_ms": percentile(without, 50),
        "door_without_relay_p99_ms": percentile(without, 99),
        "door_asked_late_p50_ms": percentile(late, 50),
        "permit_wait_ms": percentile(early, 50) - percentile(without, 50),
    }


def _independent(folder: Path, config: dict[str, Any], **options: Any) -> NodeProcess:
    config["relay"]["alone"] = "cross"
    return NodeProcess(folder, config, **options)


class _Doors:
    """Visits, and the `records` of how long each worker waited for permission."""

    def __init__(self, observatory: Observatory, records: Path):
        self._observatory = observatory
        self._records = records

    def measure(self, group: str, survey: str) -> None:
        """Let a visit take place."""
        self._observatory.announce(group, survey)
        self._observatory.wait_for_all(self._observatory.prepared, group)
        self.open(group)

    def open(self, group: str) -> None:
        """Let the raws of a prepared visit arrive, and wait for its end."""
        self._observatory.telescope.raws.land(group, range(FEW))
        self._observatory.wait_for_all(self._observatory.released, group)

    def waits_ms(self) -> list[tuple[str, float]]:
        """Return the group and the wait of each worker."""
        lines = map(str.split, self._records.read_text().splitlines())
        return [(group, float(waited) * 1e3) for group, _, waited, _ in lines]
