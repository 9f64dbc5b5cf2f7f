# SPDX-License-Identifier: BSD-3-Clause
"""The daemon of a chaos run: its process, its descendants, what they hold.

All processes of a run carry a mark in their environment, so that those are
found whose parent has died; a signal goes to nobody else.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from ppdaemon.config import NodeConfig
from ppdaemon.ctl.client import Daemon
from ppdaemon.errors import Unavailable
from ppdaemon.folders import NodeFolders
from ppdaemon.reports import StatusReport, WorkerRow

__all__ = ("Holdings", "Node")

MARK = "PPDAEMON_CHAOS"
DAEMON = Path(__file__).with_name("chaos_daemon.py")
STOP_S = 30.0
PER_WORKER = 2
"""Descriptors that a supervisor has for a worker: channel and pidfd."""


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a supervisor holds."""

    descriptors: int
    """Without those of its workers."""
    threads: int
    rss_bytes: int


class Node:
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
        self.config = NodeConfig.model_validate(settings)
        self.folders = NodeFolders.of(self.config)
        self.log = folder / "daemon.log"
        self.lives = 0
        self.slowest_answer_s = 0.0
        self._path = folder / "node.yaml"
        self._settings = settings
        self._path.write_text(yaml.safe_dump(settings))
        self._mark = mark
        self._daemon = Daemon(self.config.node.control)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin a life; returns at once."""
        self.lives += 1
        # Without SPT_NOENV a process that changes its title loses its mark.
        environment = {**os.environ, MARK: self._mark, "SPT_NOENV": "1"}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(DAEMON), str(self._path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The supervisor's process id (`int`)."""
        assert self._process is not None
        return self._process.pid

    def status_if_ended(self) -> int | None:
        """Return the exit status of a supervisor that has ended."""
        return self._process.poll() if self._process is not None else None

    def kill(self) -> None:
        """End the supervisor as a power cut does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> int | None:
        """End the supervisor as an operator does.

        Returns
        -------
        status : `int` or `None`
            Its exit status; `None` if it had to be killed.
        """
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.kill()
                return None
        return self._process.returncode

    def rewrite_settings(self) -> None:
        """Change what makes a reload replace all processes, and nothing else."""
        workers = self._settings["workers"]
        workers["recycle_visits"] = 301 - workers.get("recycle_visits", 100)
        part = self._path.with_suffix(".part")
        part.write_text(yaml.safe_dump(self._settings))
        part.rename(self._path)

    # --- asking ----------------------------------------------------------

    def status(self) -> StatusReport | None:
        """Return its report; `None` while it does not serve."""
        with contextlib.suppress(Unavailable):
            return self._timed(self._daemon.status)
        return None

    def workers(self) -> list[WorkerRow]:
        """Return its seats; none while it does not serve."""
        with contextlib.suppress(Unavailable):
            return list(self._timed(self._daemon.workers))
        return []

    def ask(self, request: Any) -> None:
        """Ask for something, in vain while it does not serve."""
        with contextlib.suppress(Unavailable):
            self._daemon.ask(request)

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
                    found[pid] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
        return found

    def signal(self, pid: int, number: int) -> bool:
        """Send a signal to one of the run's processes, and tell whether it
        was there.
        """
        with contextlib.suppress(OSError):
            descriptor = os.pidfd_open(pid)
            try:
                if self._is_ours(pid):
                    signal.pidfd_send_signal(descriptor, number)
                    return True
            finally:
                os.close(descriptor)
        return False

    def find(self, title: str) -> int | None:
        """Return the process with a title."""
        return next((pid for pid, name in self.processes().items() if name == title), None)

    def describe(self, pid: int, title: str) -> str:
        """Tell whose child a process is, of which session and how old."""
        with contextlib.suppress(OSError, psutil.Error):
            process = psutil.Process(pid)
            age_s = time.time() - process.create_time()
            family = f"child of {process.ppid()}, session {os.getsid(pid)}"
            return f"process {pid} {title}, {family}, {age_s:.1f} s old"
        return f"process {pid} {title}"

    def _is_ours(self, pid: int) -> bool:
        return f"{MARK}={self._mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")

    def holdings(self) -> Holdings:
        """Return what the supervisor holds now."""
        workers = sum(1 for row in self.workers() if row.pid is not None)
        process = psutil.Process(self.pid)
        return Holdings(
            descriptors=process.num_fds() - PER_WORKER * workers,
            threads=process.num_threads(),
            rss_bytes=process.memory_info().rss,
        )

    def log_of(self, *words: str, most: int = 40) -> list[str]:
        """Return the lines of the daemon's log with one of these words."""
        with self.log.open(errors="replace") as lines:
            return [line.rstrip() for line in lines if any(word in line for word in words)][-most:]
