# SPDX-License-Identifier: BSD-3-Clause
"""Control groups, version 2: the limits that the kernel itself enforces.

Where the service manager has delegated a group to the daemon (systemd:
``Delegate=memory pids``), supervisor and zygote move into a leaf of it and
each worker gets another one: with a memory limit that a worker cannot outrun
between two samples, and with one word that kills all its descendants. What
the kernel or the host does not offer is not enforced, and said so. See
Documentation/admin-guide/cgroup-v2.rst of the kernel.

cgroupfs lives in memory: its files are read and written in the event loop.
"""

import contextlib
import logging
import os
import select
import time
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ppdaemon.config import WorkersConfig
from ppdaemon.errors import PPDaemonError

__all__ = ("Cgroups", "NotDelegated", "delegated_group")

_LOG = logging.getLogger(__name__)

SUPERVISOR = "supervisor"
EMPTY_WAIT_S = 1.0
"""How long killed descendants may take to be gone before the repo is wiped."""

PROC = Path("/proc/self")


class NotDelegated(PPDaemonError):
    """This process has no control group of its own to divide."""


def delegated_group(proc: Path = PROC) -> Path:
    """Find the control group that is this process's own.

    Parameters
    ----------
    proc : `pathlib.Path`, optional
        Folder of ``cgroup`` and ``mountinfo``.

    Returns
    -------
    folder : `pathlib.Path`
        Of a group below a version 2 hierarchy's root, writable, and with no
        other process in it: dividing it takes nothing from anybody.

    Raises
    ------
    NotDelegated
        Raised with the reason if there is no such group.
    """
    folder = _own_folder(proc)
    if folder.name == SUPERVISOR:  # systemd's DelegateSubgroup=
        folder = folder.parent
    if not (folder / "cgroup.events").exists():
        raise NotDelegated("the daemon runs in the root control group")
    if not all(os.access(path, os.W_OK) for path in (folder, folder / "cgroup.procs")):
        raise NotDelegated(f"control group {folder.name} is not delegated: it cannot be written")
    others = set(_read(folder / "cgroup.procs").split()) - {str(os.getpid())}
    if others:
        raise NotDelegated(f"control group {folder.name} is not delegated: it holds others too")
    return folder


def _own_folder(proc: Path) -> Path:
    groups = (line.split(":", 2) for line in _read(proc / "cgroup").splitlines())
    group = next((PurePosixPath(path) for number, _, path in groups if number == "0"), None)
    if group is None:
        raise NotDelegated("this host has no control groups of version 2")
    for line in _read(proc / "mountinfo").splitlines():
        # proc(5): id, parent, device, root, mount point, options, optional
        # fields, "-", type, ...
        before, _, after = line.partition(" - ")
        if after.split(" ", 1)[0] == "cgroup2":
            root, mount = before.split(" ")[3:5]
            if group.is_relative_to(root) and ".." not in group.parts:  # outside of the namespace
                return Path(mount) / group.relative_to(root)
    raise NotDelegated("no control groups of version 2 are mounted")


@dataclass(slots=True)
class Cgroups:
    """The daemon's control group, divided: a leaf for each worker.

    Parameters
    ----------
    config : `~ppdaemon.config.WorkersConfig`
        The limits.
    base : `pathlib.Path` or `None`
        The group to divide.
    reason : `str`, optional
        Why there is none.
    """

    config: WorkersConfig
    base: Path | None
    reason: str = ""
    trouble: str = field(default="", init=False)
    """Why the last worker could not be limited, or blank."""
    _refused: dict[str, str] = field(default_factory=dict)
    """Why something is not enforced: ``memory``, ``pids``, ``kill``."""
    _killed_before: dict[int, int] = field(default_factory=dict)
    """How many kills a slot's leaf had counted when its worker came."""

    @classmethod
    def claim(cls, config: WorkersConfig, proc: Path = PROC) -> "Cgroups":
        """Divide the group of this process, if it has one.

        Parameters
        ----------
        config : `~ppdaemon.config.WorkersConfig`
            The limits.
        proc : `pathlib.Path`, optional
            See `delegated_group`.

        Returns
        -------
        cgroups : `Cgroups`
            Enforces what can be enforced.
        """
        try:
            groups = cls(config, delegated_group(proc))
            groups._divide()
        except (NotDelegated, OSError) as error:
            groups = cls(config, None, str(error))
        refused = ", ".join(sorted(groups._refused.values()))
        _LOG.info("control groups: %s", groups.reason or f"{groups.base} divided; {refused or 'all limits'}")
        return groups

    def _divide(self) -> None:
        assert self.base is not None
        supervisor = self.base / SUPERVISOR
        supervisor.mkdir(exist_ok=True)
        # A group with processes in it cannot hand its controllers down.
        _write(supervisor / "cgroup.procs", str(os.getpid()))
        offered = _read(self.base / "cgroup.controllers").split()
        wanted = [controller for controller in ("memory", "pids") if controller in offered]
        for controller in {"memory", "pids"} - set(wanted):
            self._refused[controller] = f"{self.base.name} has no {controller} controller"
        orders = " ".join(f"+{controller}" for controller in wanted)
        try:
            _write(self.base / "cgroup.subtree_control", orders)
        except OSError as error:
            self._refused |= dict.fromkeys(wanted, f"{self.base.name}: {error.strerror}")
        if not (supervisor / "cgroup.kill").exists():
            self._refused["kill"] = "cgroup.kill needs Linux 5.14"
        for leaf in self.base.glob("worker-*"):  # of a run that was killed
            self._kill(leaf)
            _remove(leaf)

    def keeper(self, limit: str) -> str:
        """Say whether the kernel enforces a limit.

        Parameters
        ----------
        limit : `str`
            ``memory``, ``pids`` or ``kill``.

        Returns
        -------
        text : `str`
            For people.
        """
        reason = self.reason or self._refused.get(limit, "")
        return f"not by the kernel: {reason}" if reason else "kernel (cgroup)"

    def enter(self, slot: int, pid: int) -> None:
        """Move a fresh worker into a leaf of its own.

        Parameters
        ----------
        slot : `int`
            The slot.
        pid : `int`
            The worker, before it has done anything.
        """
        if self.base is None:
            return
        leaf = self._leaf(slot)
        try:
            # A new one each time: what the worker before has put into the
            # shared cache stays charged to its leaf.
            _remove(leaf)
            leaf.mkdir(exist_ok=True)
            self._limit(leaf)
            self._killed_before[slot] = self._kills(leaf)
            with contextlib.suppress(ProcessLookupError):  # it is dead already
                _write(leaf / "cgroup.procs", str(pid))
        except OSError as error:
            self.trouble = f"worker {pid} of slot {slot} runs without a control group: {error}"
            _LOG.error("%s", self.trouble)
        else:
            self.trouble = ""

    def _limit(self, leaf: Path) -> None:
        memory = self.config.memory
        if "memory" not in self._refused:
            _write(leaf / "memory.max", str(memory.hard + memory.ramdisk))
            # Half a worker is of no use: its descendants die with it.
            for name, value in (("memory.swap.max", "0"), ("memory.oom.group", "1")):
                if (leaf / name).exists():
                    _write(leaf / name, value)
        if "pids" not in self._refused:
            _write(leaf / "pids.max", str(self.config.tasks_max))

    def out_of_memory(self, slot: int) -> bool:
        """Tell whether the kernel has killed a dead worker for its memory.

        Parameters
        ----------
        slot : `int`
            Its slot, before the next worker comes.

        Returns
        -------
        killed : `bool`
            `False` also where the kernel does not count.
        """
        return self.base is not None and self._kills(self._leaf(slot)) > self._killed_before.get(slot, 0)

    def kill(self, slot: int) -> None:
        """Kill all that a dead worker has left.

        Parameters
        ----------
        slot : `int`
            Its slot.
        """
        if self.base is not None:
            self._kill(self._leaf(slot))

    def wait_empty(self, slot: int) -> None:
        """Wait until a slot's leaf has no process, for a second at the most.

        Blocks: to be called beside the event loop.

        Parameters
        ----------
        slot : `int`
            The slot.
        """
        if self.base is not None:
            _wait_empty(self._leaf(slot), time.monotonic() + EMPTY_WAIT_S)

    def remove(self, slot: int) -> None:
        """Remove a slot's leaf, if nothing is left in it.

        Parameters
        ----------
        slot : `int`
            The slot.
        """
        if self.base is not None:
            _remove(self._leaf(slot))

    def close(self) -> None:
        """Kill all that is left in the leaves, and remove them."""
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

    def _kills(self, leaf: Path) -> int:
        try:
            events = _read(leaf / "memory.events")
        except FileNotFoundError:
            return 0
        return sum(int(line.split()[1]) for line in events.splitlines() if line.startswith("oom_kill "))


def _read(path: Path) -> str:
    return path.read_text()


def _write(path: Path, value: str) -> None:
    """Write a file of cgroupfs, which never makes one."""
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
                poll.poll(left * 1e3)  # a change of the file ends it
                events.seek(0)
    except FileNotFoundError:
        return


def _remove(leaf: Path) -> None:
    """Remove a leaf; one that is not empty yet is left for the next time."""
    with contextlib.suppress(OSError):
        leaf.rmdir()
