# SPDX-License-Identifier: BSD-3-Clause
"""The daemon of a chaos run: its process, its descendants, their resources.

All processes of a run have a mark in their environment, so that orphans are
found, too, and no other process gets a signal.
"""

import contextlib
import os
import signal
import time
from collections.abc import Sequence
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

MARK = "PPDAEMON_CHAOS"
DAEMON = Path(__file__).with_name("chaos_daemon.py")
# Includes the export of all spools.
STOP_S = 30.0
PER_WORKER = 2
"""Descriptors of a supervisor per worker, channel and pidfd, beside those of its meter (below /proc)."""


class ChaosNode(NodeProcess):
    """A daemon that is killed and started again in the same folders.

    `mark` identifies its processes.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], mark: str, *, launcher: Sequence[str] = ()):
        # Without SPT_NOENV a process that changes its title overwrites its environment.
        environment = {MARK: mark, "SPT_NOENV": "1"}
        program = (str(DAEMON),)
        super().__init__(folder, settings, program=program, launcher=launcher, environment=environment)
        self.folders = NodeFolders.of(NodeConfig.model_validate(settings))
        self.incarnations = 0
        self.slowest_answer_s = 0.0
        self.daemon = Daemon(self.control)
        self._mark = f"{MARK}={mark}".encode()

    def launch(self) -> None:
        """Start an incarnation; return at once."""
        self.incarnations += 1
        super().launch()

    def stop_or_kill(self) -> int | None:
        """Stop it; return its exit status, `None` if it had to be killed."""
        with contextlib.suppress(AssertionError):
            return self.stop(STOP_S)
        return None

    def change_settings(self) -> None:
        """Change one setting for which a reload replaces all processes."""
        self.rewrite(workers={"recycle_visits": 301 - self.config["workers"].get("recycle_visits", 100)})

    # --- requests ---------------------------------------------------------

    def status_or_none(self) -> StatusReport | None:
        """Return its status; `None` while it does not answer."""
        with contextlib.suppress(Unavailable):
            return self._timed(self.status)
        return None

    def workers_or_none(self) -> list[WorkerRow]:
        """Return its slots; none while it does not answer."""
        with contextlib.suppress(Unavailable):
            return self._timed(self.workers)
        return []

    def request(self, request: Any) -> bool:
        """Send a request; return whether the daemon answered."""
        try:
            self.daemon.ask(request)
        except Unavailable:
            return False
        return True

    def _timed[T](self, call: Any) -> T:
        begin = time.monotonic()
        answer: T = call()
        self.slowest_answer_s = max(self.slowest_answer_s, time.monotonic() - begin)
        return answer

    # --- its processes ---------------------------------------------------

    def processes(self) -> dict[int, str]:
        """Return all running processes with the mark, with their titles."""
        found = {}
        for pid in psutil.pids():
            with contextlib.suppress(OSError, psutil.Error):
                if self._has_mark(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                    found[pid] = title(pid)
        return found

    def signal(self, pid: int, number: int) -> bool:
        """Send a signal to one of the run's processes; return whether it was running."""
        with contextlib.suppress(OSError):
            # The descriptor is opened before the check of the mark: the pid cannot be reused in between.
            descriptor = os.pidfd_open(pid)
            try:
                if self._has_mark(pid):
                    signal.pidfd_send_signal(descriptor, number)
                    return True
            finally:
                os.close(descriptor)
        return False

    def find(self, process_title: str) -> int | None:
        """Return the pid of the process with a title."""
        return next((pid for pid, name in self.processes().items() if name == process_title), None)

    def describe(self, pid: int, name: str) -> str:
        """Return parent, session and age of a process as text."""
        with contextlib.suppress(OSError, psutil.Error):
            process = psutil.Process(pid)
            age_s = time.time() - process.create_time()
            ancestry = f"child of {process.ppid()}, session {os.getsid(pid)}"
            return f"process {pid} {name}, {ancestry}, {age_s:.1f} s old"
        return f"process {pid} {name}"

    def _has_mark(self, pid: int) -> bool:
        return self._mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")

    def usage(self) -> ResourceUsage:
        """Return the supervisor's resources, without the descriptors of its workers."""
        workers = sum(1 for row in self.workers_or_none() if row.pid is not None)
        meters = sum(path.startswith("/proc/") for path in self.open_files())
        usage = super().usage()
        return replace(usage, descriptors=usage.descriptors - PER_WORKER * workers - meters)

    def open_files(self) -> list[str]:
        """Return what the supervisor's descriptors refer to, sorted."""
        paths = []
        for descriptor in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                paths.append(os.readlink(descriptor))
        return sorted(paths)

    def log_of(self, *texts: str, most: int = 40) -> list[str]:
        """Return the last lines of the daemon's log with one of these texts."""
        with self.log.open(errors="replace") as lines:
            return [line.rstrip() for line in lines if any(text in line for text in texts)][-most:]
