# SPDX-License-Identifier: BSD-3-Clause
"""The daemon of a chaos run: its process, its descendants, what they use.

All processes of a run carry a mark in their environment, so that those are
found whose parent has died; a signal goes to nobody else.
"""

import contextlib
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from ppdaemon.config import NodeConfig
from ppdaemon.ctl.client import Daemon
from ppdaemon.errors import Unavailable
from ppdaemon.folders import NodeFolders
from ppdaemon.reports import StatusReport, WorkerRow
from ppdaemon.testing.node import NodeProcess
from ppdaemon.testing.processes import ResourceUsage, title

__all__ = ("ChaosNode",)

MARK = "PPDAEMON_CHAOS"
DAEMON = Path(__file__).with_name("chaos_daemon.py")
STOP_S = 30.0
PER_WORKER = 2
"""Descriptors that a supervisor has for a worker: channel and pidfd."""


class ChaosNode(NodeProcess):
    """A daemon that is killed and started again in the same folders.

    Parameters
    ----------
    folder : `pathlib.Path`
        Configuration and log of the daemon.
    settings : `dict`
        The configuration.
    mark : `str`
        By which its processes are known.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], mark: str):
        # Without SPT_NOENV a process that changes its title loses its mark.
        environment = {MARK: mark, "SPT_NOENV": "1"}
        super().__init__(folder, settings, program=(str(DAEMON),), environment=environment)
        self.folders = NodeFolders.of(NodeConfig.model_validate(settings))
        self.incarnations = 0
        self.slowest_answer_s = 0.0
        self.daemon = Daemon(self.control)
        self._mark = f"{MARK}={mark}".encode()

    def launch(self) -> None:
        """Begin an incarnation; return at once."""
        self.incarnations += 1
        super().launch()

    def stop_or_kill(self) -> int | None:
        """Stop it; return its exit status, `None` if it had to be killed."""
        with contextlib.suppress(AssertionError):
            return self.stop(STOP_S)
        return None

    def change_settings(self) -> None:
        """Change what makes a reload replace all processes, and nothing else."""
        self.rewrite(workers={"recycle_visits": 301 - self.config["workers"].get("recycle_visits", 100)})

    # --- asking ----------------------------------------------------------

    def status_if_served(self) -> StatusReport | None:
        """Return its report; `None` while it does not serve."""
        with contextlib.suppress(Unavailable):
            return self._timed(self.status)
        return None

    def workers_if_served(self) -> list[WorkerRow]:
        """Return its slots; none while it does not serve."""
        with contextlib.suppress(Unavailable):
            return self._timed(self.workers)
        return []

    def request(self, request: Any) -> None:
        """Send a request, in vain while it does not serve."""
        with contextlib.suppress(Unavailable):
            self.daemon.ask(request)

    def _timed[T](self, call: Any) -> T:
        begin = time.monotonic()
        answer: T = call()
        self.slowest_answer_s = max(self.slowest_answer_s, time.monotonic() - begin)
        return answer

    # --- its processes ---------------------------------------------------

    def processes(self) -> dict[int, str]:
        """Return all living processes with the mark, by their titles."""
        found = {}
        for pid in psutil.pids():
            with contextlib.suppress(OSError, psutil.Error):
                if self._is_ours(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                    found[pid] = title(pid)
        return found

    def signal(self, pid: int, number: int) -> bool:
        """Send a signal to one of the run's processes; return whether it was there."""
        with contextlib.suppress(OSError):
            descriptor = os.pidfd_open(pid)
            try:
                if self._is_ours(pid):
                    signal.pidfd_send_signal(descriptor, number)
                    return True
            finally:
                os.close(descriptor)
        return False

    def find(self, wanted: str) -> int | None:
        """Return the process with a title."""
        return next((pid for pid, name in self.processes().items() if name == wanted), None)

    def describe(self, pid: int, name: str) -> str:
        """Return whose child a process is, of which session and how old."""
        with contextlib.suppress(OSError, psutil.Error):
            process = psutil.Process(pid)
            age_s = time.time() - process.create_time()
            family = f"child of {process.ppid()}, session {os.getsid(pid)}"
            return f"process {pid} {name}, {family}, {age_s:.1f} s old"
        return f"process {pid} {name}"

    def _is_ours(self, pid: int) -> bool:
        return self._mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")

    def usage(self) -> ResourceUsage:
        """Return what the supervisor uses, without the descriptors of its workers."""
        workers = sum(1 for row in self.workers_if_served() if row.pid is not None)
        usage = super().usage()
        return replace(usage, descriptors=usage.descriptors - PER_WORKER * workers)

    def log_of(self, *words: str, most: int = 40) -> list[str]:
        """Return the lines of the daemon's log with one of these words."""
        with self.log.open(errors="replace") as lines:
            return [line.rstrip() for line in lines if any(word in line for word in words)][-most:]
