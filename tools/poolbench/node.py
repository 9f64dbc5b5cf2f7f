# SPDX-License-Identifier: BSD-3-Clause
"""A real ``ppdaemon`` in scratch folders, and the relay of a benchmark."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benching.places import Places

from poolbench.figures import private_mb
from ppdaemon.errors import PPDaemonError
from ppdaemon.messages import VisitRefused
from ppdaemon.states import SlotState
from ppdaemon.testing.node import NodeProcess
from ppdaemon.testing.played import PlayedRelay

__all__ = ("BenchFailed", "Node", "node_config", "private_mb_of", "running")

TOOLS = Path(__file__).parents[1]
START_S = 120.0
STOP_S = 60.0
HEARTBEAT_S = 1.0
WORK = "ppdaemon.testing.work"


class BenchFailed(PPDaemonError):
    """The daemon under measurement does not do what it should."""


class BenchRelay(PlayedRelay):
    """A relay whose visits are all taken."""

    def on_message(self, message: Any) -> None:
        """Fail where the node does not take a visit."""
        super().on_message(message)
        if isinstance(message, VisitRefused):
            raise BenchFailed(message.reason)


class Node(NodeProcess):
    """A daemon with all slots filled from the start."""

    def wait_until_idle(self) -> None:
        """Wait until every slot has a worker that waits for a visit."""
        idle = {SlotState.IDLE: self.config["workers"]["max"]}
        self.wait(lambda: self.relay.connected and self.status().slots == idle, START_S, 0.05)


def private_mb_of(pid: int) -> float:
    """Return the memory that only this process has, 10^6 bytes."""
    return private_mb(Path(f"/proc/{pid}/smaps_rollup").read_text())


def node_config(
    places: Places, instruments: Mapping[str, str], workers: Mapping[str, Any], **parts: Any
) -> dict[str, Any]:
    """Return a configuration with all slots filled from the start.

    Parameters
    ----------
    places : `~benching.places.Places`
        The folders.
    instruments : `~collections.abc.Mapping` [`str`, `str`]
        Detectors, by instrument.
    workers : `~collections.abc.Mapping`
        The part ``workers``; ``max`` is the number of slots.
    **parts
        Other parts, in place of the usual ones.

    Returns
    -------
    config : `dict`
        As ``etc/ppdaemon.yaml``.
    """
    pipeline, raws = places.scratch / "none.yaml", places.scratch / "raw"
    pipeline.write_text("{}\n")
    raws.mkdir()
    path = os.pathsep.join(filter(None, (str(TOOLS), os.environ.get("PYTHONPATH"))))
    return {
        "node": {
            "name": "bench",
            "state_dir": str(places.scratch / "state"),
            "ramdisk": str(places.ramdisk),
            "control": str(places.ramdisk / "control"),
            "instruments": dict(instruments),
        },
        "relay": {"address": f"ipc://{places.ramdisk}/relay"},
        "arrivals": {"roots": [str(raws)]},
        "workers": {
            "min": workers["max"],
            "spare": 0,
            "environment": {"PYTHONPATH": path},
            "times": {"boot_s": START_S, "stop_s": 1, "prepare_s": 3600},
            **workers,
        },
        "pipelines": {"main": [{"pipelines": [str(pipeline)]}]},
        **parts,
    }


@contextmanager
def running(config: dict[str, Any], places: Places) -> Iterator[Node]:
    """Run a daemon until all its workers are ready, and stop it afterwards.

    Parameters
    ----------
    config : `dict`
        As `node_config` returns it.
    places : `~benching.places.Places`
        The same folders.

    Yields
    ------
    node : `Node`
        The daemon.

    Raises
    ------
    BenchFailed
        Raised if it ends by itself, or is not done with something in time.
    """
    with BenchRelay(config["relay"]["address"], heartbeat_s=HEARTBEAT_S) as relay:
        node = Node(places.scratch, config, relay)
        node.launch()
        try:
            try:
                node.wait_until_idle()
                yield node
            finally:
                status = node.stop(STOP_S)
        except AssertionError as error:
            raise BenchFailed(str(error)) from None
        if status != 0:
            raise BenchFailed(f"the daemon ended with {status}\n{node.story()}")
