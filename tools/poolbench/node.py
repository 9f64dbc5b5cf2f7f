# SPDX-License-Identifier: BSD-3-Clause
"""A real ``ppdaemon`` in scratch folders, and the relay of a benchmark."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benching.folders import BenchFolders

from ppdaemon.errors import PPDaemonError
from ppdaemon.messages import VisitRefused
from ppdaemon.states import SlotState
from ppdaemon.testing.node import NodeProcess
from ppdaemon.testing.played import PlayedRelay

TOOLS = Path(__file__).parents[1]
START_S = 120.0
STOP_S = 60.0
HEARTBEAT_S = 1.0
WORK = "ppdaemon.testing.work"


class BenchFailed(PPDaemonError):
    """The daemon under measurement does not work as expected."""


class BenchRelay(PlayedRelay):
    """A relay that fails the bench if the node refuses a visit while it runs."""

    stopping = False
    """A node that stops refuses all; raised then, it would hide why the bench stops."""

    def on_message(self, message: Any) -> None:
        """Raise `BenchFailed` if the node refuses a visit."""
        super().on_message(message)
        if isinstance(message, VisitRefused) and not self.stopping:
            raise BenchFailed(message.reason)


class Node(NodeProcess):
    """A daemon in which all slots have a worker from the start."""

    def wait_until_idle(self) -> None:
        """Wait until every slot has an idle worker."""
        idle = {SlotState.IDLE: self.config["workers"]["max"]}
        self.wait(lambda: self.relay.connected and self.status().slots == idle, START_S, 0.05)


def node_config(
    folders: BenchFolders, instruments: Mapping[str, str], workers: Mapping[str, Any], **parts: Any
) -> dict[str, Any]:
    """Return a configuration in which all slots have a worker from the start.

    `instruments` has the detectors of each instrument, `workers` is that part
    of the configuration, with the number of slots as ``max``; `parts` replace
    other parts.
    """
    pipeline, raws = folders.scratch / "none.yaml", folders.scratch / "raw"
    pipeline.write_text("{}\n")
    raws.mkdir()
    path = os.pathsep.join(filter(None, (str(TOOLS), os.environ.get("PYTHONPATH"))))
    return {
        "node": {
            "name": "bench",
            "state_dir": str(folders.scratch / "state"),
            "ramdisk": str(folders.ramdisk),
            "control": str(folders.ramdisk / "control"),
            "instruments": dict(instruments),
        },
        "relay": {"address": f"ipc://{folders.ramdisk}/relay"},
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
def running(config: dict[str, Any], folders: BenchFolders) -> Iterator[Node]:
    """Run a daemon, yield it when all its workers are ready, and stop it afterwards.

    Raises `BenchFailed` if it exits by itself, or a wait exceeds its time
    limit.
    """
    with BenchRelay(config["relay"]["address"], heartbeat_s=HEARTBEAT_S) as relay:
        node = Node(folders.scratch, config, relay)
        node.launch()
        try:
            try:
                node.wait_until_idle()
                yield node
            finally:
                relay.stopping = True
                status = node.stop(STOP_S)
        except AssertionError as error:
            raise BenchFailed(str(error)) from None
        if status != 0:
            raise BenchFailed(f"the daemon exited with status {status}\n{node.story()}")
