# SPDX-License-Identifier: BSD-3-Clause
"""A real ``ppdaemon`` in scratch folders, and what its supervisor uses."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from benching.places import Places

from poolbench.figures import private_mb
from poolbench.relay import PlayedRelay
from ppdaemon.ctl.client import Daemon
from ppdaemon.errors import PPDaemonError, Unavailable
from ppdaemon.states import SlotState

__all__ = ("BenchFailed", "Node", "Usage", "node_config", "private_mb_of", "running")

TOOLS = Path(__file__).parents[1]
START_S = 120.0
STOP_S = 60.0
PATIENCE_S = 60.0


class BenchFailed(PPDaemonError):
    """The daemon under measurement does not do what it should."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What the supervisor has used so far."""

    cpu_s: float
    rss_kb: float
    descriptors: int
    threads: int


def private_mb_of(pid: int) -> float:
    """Return the memory that only this process has.

    Parameters
    ----------
    pid : `int`
        Process id.

    Returns
    -------
    size : `float`
        10^6 bytes.
    """
    return private_mb(Path(f"/proc/{pid}/smaps_rollup").read_text())


def node_config(
    places: Places, instruments: Mapping[str, str], workers: Mapping[str, Any], **parts: Any
) -> dict[str, Any]:
    """Return a configuration with all seats filled from the start.

    Parameters
    ----------
    places : `~benching.places.Places`
        The folders.
    instruments : `~collections.abc.Mapping` [`str`, `str`]
        Detectors, by instrument.
    workers : `~collections.abc.Mapping`
        The part ``workers``; ``max`` is the number of seats.
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


class Node:
    """A running daemon and the relay played for it.

    Parameters
    ----------
    config : `dict`
        As `node_config` returns it.
    places : `~benching.places.Places`
        The same folders.
    relay : `PlayedRelay`
        At the configured address.
    """

    def __init__(self, config: dict[str, Any], places: Places, relay: PlayedRelay):
        self.relay = relay
        self.daemon = Daemon(places.ramdisk / "control")
        self.raws = places.scratch / "raw"
        self.state = places.scratch / "state"
        self.seats: int = config["workers"]["max"]
        self._log = places.scratch / "daemon.log"
        path = places.scratch / "node.yaml"
        path.write_text(yaml.safe_dump(config))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ppdaemon.node.app", "run", "--config", str(path)],
                stdout=log,
                stderr=log,
            )
        self._supervisor = psutil.Process(self._process.pid)

    def wait(
        self, condition: Callable[[], object], limit_s: float = PATIENCE_S, pause_s: float = 0.0
    ) -> None:
        """Wait while the daemon lives, and be its relay meanwhile.

        Parameters
        ----------
        condition : `~collections.abc.Callable`
            What is waited for; a daemon that does not answer yet is fine.
        limit_s : `float`, optional
            How long it may take.
        pause_s : `float`, optional
            Between two looks, unless something is heard.

        Raises
        ------
        BenchFailed
            Raised if the daemon ended or the time is up; tells its log.
        """
        until = time.monotonic() + limit_s
        while True:
            self.relay.listen(pause_s)
            try:
                if condition():
                    return
            except Unavailable:
                time.sleep(0.02)
            if self._process.poll() is not None or time.monotonic() > until:
                raise BenchFailed(f"the daemon ended, or {limit_s:g} s were not enough\n{self._last_lines()}")

    def wait_until_idle(self) -> None:
        """Wait until every seat has a worker that waits for a visit."""
        all_idle = {SlotState.IDLE: self.seats}
        self.wait(lambda: self.relay.connected and self.daemon.status().slots == all_idle, START_S, 0.05)

    def usage(self) -> Usage:
        """Return what the supervisor uses.

        Returns
        -------
        usage : `Usage`
            As of now.
        """
        with self._supervisor.oneshot():
            times = self._supervisor.cpu_times()
            return Usage(
                times.user + times.system,
                self._supervisor.memory_info().rss / 1e3,
                self._supervisor.num_fds(),
                self._supervisor.num_threads(),
            )

    def stop(self) -> None:
        """Stop the daemon; kill it if it does not.

        Raises
        ------
        BenchFailed
            Raised if it did not stop as it should.
        """
        self._process.send_signal(signal.SIGTERM)
        try:
            status: object = self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            status = f"KILL after {STOP_S:g} s"
        if status != 0:
            raise BenchFailed(f"the daemon ended with {status}\n{self._last_lines()}")

    def _last_lines(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])


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
    """
    with PlayedRelay(config["relay"]["address"]) as relay:
        node = Node(config, places, relay)
        try:
            node.wait_until_idle()
            yield node
        finally:
            node.stop()
