# SPDX-License-Identifier: BSD-3-Clause
"""Control groups, version 2: limits that the kernel enforces.

Where the service manager has delegated a group to the daemon (systemd: ``Delegate=memory
pids``), supervisor and zygote move into a leaf of it and each worker gets its own leaf: with a
memory limit that it cannot exceed between two samples, and with a file that kills all its
descendants at once. Limits that kernel or host do not support are not enforced, and reported
as such. See Documentation/admin-guide/cgroup-v2.rst of the kernel.

cgroupfs is in memory: its files are read and written in the event loop.
"""

import contextlib
import logging
import os
import select
import time
from dataclasses import dataclass, field
from pathlib import Path

from ppdaemon.config import WorkersConfig
from ppdaemon.controlgroup import PROC, NoControlGroup, memory_kills, own_group

__all__ = ("Cgroups", "delegated_group")

_LOG = logging.getLogger(__name__)

SUPERVISOR = "supervisor"
EMPTY_WAIT_S = 1.0
"""Time limit for the end of killed descendants before the repo is wiped."""


def delegated_group(proc: Path = PROC) -> Path:
    """Return the control group that is delegated to this process: below the root of a version 2
    hierarchy, writable, and without other processes. `proc` is the folder of ``cgroup`` and
    ``mountinfo``. Raise `NoControlGroup` with the reason if there is none.
    """
    folder = own_group(proc)
    if folder.name == SUPERVISOR:  # systemd's DelegateSubgroup=
        folder = folder.parent
    if not (folder / "cgroup.events").exists():
        raise NoControlGroup("the daemon runs in the root control group")
    if not all(os.access(path, os.W_OK) for path in (folder, folder / "cgroup.procs")):
        raise NoControlGroup(f"control group {folder.name} is not delegated: it cannot be written")
    others = set(_read(folder / "cgroup.procs").split()) - {str(os.getpid())}
    if others:
        raise NoControlGroup(f"control group {folder.name} is not delegated: other processes are in it")
    return folder


@dataclass(slots=True)
class Cgroups:
    """The daemon's control group, divided into a leaf for each worker; without a `base`, every
    method does nothing and `reason` is the cause.
    """

    config: WorkersConfig
    base: Path | None
    reason: str = ""
    problem: str = field(default="", init=False)
    """Why the last worker has no limits by the kernel, or blank."""
    _refused: dict[str, str] = field(default_factory=dict)
    """Why a limit is not enforced, by ``memory``, ``pids``, ``kill``."""
    _earlier_kills: dict[int, int] = field(default_factory=dict)
    """How many kills a slot's leaf had counted before its worker entered it."""

    @classmethod
    def claim(cls, config: WorkersConfig, proc: Path = PROC) -> "Cgroups":
        """Divide the group of this process, if it has one; log the limits that are enforced."""
        try:
            groups = cls(config, delegated_group(proc))
            groups._divide()
        except (NoControlGroup, OSError) as error:
            groups = cls(config, None, str(error))
        refused = ", ".join(sorted(groups._refused.values()))
        _LOG.info("control groups: %s", groups.reason or f"{groups.base} divided; {refused or 'all limits'}")
        return groups

    def _divide(self) -> None:
        assert self.base is not None
        supervisor = self.base / SUPERVISOR
        supervisor.mkdir(exist_ok=True)
        # The kernel enables controllers only for the children of a group without processes.
        _write(supervisor / "cgroup.procs", str(os.getpid()))
        offered = _read(self.base / "cgroup.controllers").split()
        enabled = [controller for controller in ("memory", "pids") if controller in offered]
        for controller in {"memory", "pids"} - set(enabled):
            self._refused[controller] = f"{self.base.name} has no {controller} controller"
        text = " ".join(f"+{controller}" for controller in enabled)
        try:
            _write(self.base / "cgroup.subtree_control", text)
        except OSError as error:
            self._refused |= dict.fromkeys(enabled, f"{self.base.name}: {error.strerror}")
        if not (supervisor / "cgroup.kill").exists():
            self._refused["kill"] = "cgroup.kill needs Linux 5.14"
        for leaf in self.base.glob("worker-*"):  # of a previous run that was killed
            self._kill(leaf)
            _remove(leaf)

    def enforced_by(self, limit: str) -> str:
        """Return a text on whether the kernel enforces a limit: ``memory``, ``pids`` or ``kill``."""
        reason = self.reason or self._refused.get(limit, "")
        return f"not by the kernel: {reason}" if reason else "kernel (cgroup)"

    def add_worker(self, slot: int, pid: int) -> None:
        """Move a freshly forked worker, which has done nothing yet, into a new leaf."""
        if self.base is None:
            return
        leaf = self._leaf(slot)
        try:
            # A new one each time: files that the previous worker put into the
            # shared cache stay charged to its leaf.
            _remove(leaf)
            leaf.mkdir(exist_ok=True)
            self._limit(leaf)
            self._earlier_kills[slot] = memory_kills(leaf)
            with contextlib.suppress(ProcessLookupError):  # it has ended already
                _write(leaf / "cgroup.procs", str(pid))
        except OSError as error:
            self.problem = (
                f"worker {pid} of slot {slot} is limited by the supervisor only, not by the kernel: {error}"
            )
            _LOG.error("%s", self.problem)
        else:
            self.problem = ""

    def _limit(self, leaf: Path) -> None:
        memory = self.config.memory
        if "memory" not in self._refused:
            _write(leaf / "memory.max", str(memory.hard + memory.ramdisk))
            # A worker without its descendants cannot continue: kill all together.
            for name, value in (("memory.swap.max", "0"), ("memory.oom.group", "1")):
                if (leaf / name).exists():
                    _write(leaf / name, value)
        if "pids" not in self._refused:
            _write(leaf / "pids.max", str(self.config.tasks_max))

    def out_of_memory(self, slot: int) -> bool:
        """Return whether the kernel killed a slot's dead worker because of its memory; `False`
        also where the kernel does not count. Valid until the next worker enters the leaf.
        """
        return self.base is not None and memory_kills(self._leaf(slot)) > self._earlier_kills.get(slot, 0)

    def kill(self, slot: int) -> None:
        """Kill all processes that a dead worker left in its leaf."""
        if self.base is not None:
            self._kill(self._leaf(slot))

    def wait_empty(self, slot: int) -> None:
        """Wait until a slot's leaf has no process, for 1 s at most. Blocks: call it in a thread."""
        if self.base is not None:
            _wait_empty(self._leaf(slot), time.monotonic() + EMPTY_WAIT_S)

    def remove(self, slot: int) -> None:
        """Remove a slot's leaf if it is empty."""
        if self.base is not None:
            _remove(self._leaf(slot))

    def close(self) -> None:
        """Kill all processes in the leaves, and remove the leaves."""
        if self.base is None:
            return
        leaves = list(self.base.glob("worker-*"))
        for leaf in leaves:
            self._kill(leaf)
        until = time.monotonic() + EMPTY_WAIT_S
        for leaf in leaves:
            _wait_empty(leaf, until)
            _remove(leaf)

    def _leaf(self, slot: int) -> Path:
        assert self.base is not None
        return self.base / f"worker-{slot:04d}"

    def _kill(self, leaf: Path) -> None:
        if "kill" not in self._refused:
            with contextlib.suppress(FileNotFoundError):
                _write(leaf / "cgroup.kill", "1")


def _read(path: Path) -> str:
    return path.read_text()


def _write(path: Path, value: str) -> None:
    """Write to an existing file of cgroupfs."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)


def _wait_empty(leaf: Path, until: float) -> None:
    try:
        with (leaf / "cgroup.events").open() as events:
            poll = select.poll()
            poll.register(events, select.POLLPRI)
            while "populated 1" in events.read() and (left := until - time.monotonic()) > 0:
                poll.poll(left * 1e3)  # the kernel reports a change of the file
                events.seek(0)
    except FileNotFoundError:
        return


def _remove(leaf: Path) -> None:
    """Remove a leaf; one that is not empty yet is removed the next time."""
    with contextlib.suppress(OSError):
        leaf.rmdir()
