# SPDX-License-Identifier: BSD-3-Clause
"""What ``ppctl check`` finds out about the host: versions, clock, disks, watches, limits.

Each check looks at one thing and returns findings; what a value means is decided by a function
without I/O beside it.
"""

import ctypes
import errno
import importlib.metadata
import os
import platform
import re
import resource
import sqlite3
import statistics
import struct
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import zmq
from astropy.utils import iers

from ppdaemon import __version__
from ppdaemon.clock import TAI_MINUS_UTC_S
from ppdaemon.config import NodeConfig
from ppdaemon.mounts import REMOTE, is_ramdisk, mount_of
from ppdaemon.terminal import size
from ppdaemon.thishost import filesystem_size, nearest_existing
from ppdaemon.wire import Model

__all__ = (
    "CheckFinding",
    "Level",
    "check_clock",
    "check_inotify",
    "check_limits",
    "check_ramdisk",
    "check_spill",
    "check_state_disk",
    "check_versions",
)

type Level = Literal["ok", "skipped", "warning", "error"]
"""``skipped``: could not be checked here."""

KERNEL_MIN = (5, 4)
"""Workers are watched and stopped by pidfd: clone and wait of Linux 5.4."""
KERNEL_CGROUP = (5, 14)
"""cgroup.kill: the kernel ends all processes of a worker at once."""
SQLITE_MIN = (3, 38)
"""The journal is queried with JSON functions, which are built in since then."""
TIME_ERROR = 5
"""What adjtimex(2) returns if no time service corrects the clock."""
CLOCK_ERROR_S = 0.1
"""Largest estimated error of a clock that times stages of a visit."""
EXPIRES_SOON = timedelta(days=60)
"""A table of leap seconds is announced half a year ahead."""
FSYNC_WARNING_S = 0.05
"""The journal writes in batches, each with an fsync: one must be short compared with a second."""
FSYNCS = 5
FREE_MIN = 0.1
"""Fraction of a disk that should be free."""
SEARCH_S = 5.0
"""How long folders are counted."""
FILES_PER_WORKER, FILES_BASE = 16, 512
"""Open files of the supervisor: sockets, logs and pidfds of each worker, and all others."""
PROCESSES_PER_WORKER = 8
"""Threads of a worker and processes that its tasks start."""


class CheckFinding(Model):
    """One line of ``ppctl check``."""

    item: str
    """What was checked."""
    level: Level
    """``skipped``: could not be checked here."""
    text: str
    """What was found."""
    action: str = ""
    """What to do, unless it is fine."""


def check_versions() -> Iterator[CheckFinding]:
    """Return the versions of Python, the kernel and the libraries that matter."""
    packages = {
        name: found.version
        for found in importlib.metadata.distributions()
        if (name := found.metadata["Name"]).startswith("lsst-")
    }
    yield lsst_finding(packages)
    yield from kernel_findings(platform.release())
    text = f"ppdaemon {__version__}, Python {platform.python_version()}, pyzmq {zmq.pyzmq_version()}"
    yield CheckFinding(item="versions", level="ok", text=f"{text}, libzmq {zmq.zmq_version()}")
    if not zmq.has("curve"):
        text, action = "this libzmq has no CURVE: connections cannot be encrypted", "install pyzmq's wheel"
        yield CheckFinding(item="versions", level="error", text=text, action=action)
    if sqlite3.sqlite_version_info[:2] < SQLITE_MIN:
        text, action = f"SQLite {sqlite3.sqlite_version} has no JSON functions", "install a newer Python"
        yield CheckFinding(item="versions", level="error", text=text, action=action)


def lsst_finding(packages: Mapping[str, str]) -> CheckFinding:
    """Return whether the packages of the LSST stack, by name, are of one series."""
    series: dict[str, list[str]] = {}
    for name, version in sorted(packages.items()):
        series.setdefault(version.partition(".")[0], []).append(name)
    if len(series) == 1:
        latest = max(packages.values())
        return CheckFinding(item="packages", level="ok", text=f"{len(packages)} lsst packages up to {latest}")
    shown = "; ".join(f"{number}: {', '.join(names)}" for number, names in series.items())
    text = f"lsst packages of several series: {shown}" if series else "no lsst package"
    return CheckFinding(item="packages", level="error", text=text, action="install all of one series")


def kernel_findings(release: str) -> Iterator[CheckFinding]:
    """Return what the kernel of a release such as ``6.12.0-amd64`` lacks."""
    version = tuple(int(number) for number in re.findall(r"\d+", release)[:2])
    level: Level = "ok" if version >= KERNEL_CGROUP else "warning" if version >= KERNEL_MIN else "error"
    action = {
        "warning": "Linux 5.14 ends all processes of a worker at once (cgroup.kill)",
        "error": "install Linux 5.4 or newer: workers are watched by pidfd",
    }
    yield CheckFinding(item="kernel", level=level, text=release, action=action.get(level, ""))


def check_clock() -> Iterator[CheckFinding]:
    """Return whether the clock is corrected, and whether all count the same leap seconds."""
    state, error_s = _adjtimex()
    yield synchronized_finding(state, error_s)
    kernel_s = round(time.clock_gettime(time.CLOCK_TAI) - time.clock_gettime(time.CLOCK_REALTIME))
    table = iers.LeapSeconds.open(iers.IERS_LEAP_SECOND_FILE)  # the file of the package, no download
    expires = table.expires.utc.to_datetime(timezone=UTC)
    yield from tai_findings(kernel_s, int(table["tai_utc"][-1]), expires, datetime.now(UTC))


def _adjtimex() -> tuple[int, float]:
    """Return what adjtimex(2) returns, and the largest error that the kernel assumes, seconds."""
    buffer = ctypes.create_string_buffer(512)  # struct timex of zeros: it only reads
    state = ctypes.CDLL(None, use_errno=True).adjtimex(buffer)
    (error_us,) = struct.unpack_from("@l", buffer, 3 * struct.calcsize("@l"))
    return state, error_us / 1e6


def synchronized_finding(state: int, error_s: float) -> CheckFinding:
    """Return whether a time service corrects the clock well enough."""
    if state < 0:
        return CheckFinding(item="clock", level="skipped", text="the kernel does not allow to ask")
    if state == TIME_ERROR:
        text = "no time service corrects the clock: times of stages and of nodes cannot be compared"
        return CheckFinding(item="clock", level="warning", text=text, action="start chrony, or another one")
    if error_s > CLOCK_ERROR_S:
        text = f"corrected, with an error of up to {error_s:.3g} s"
        return CheckFinding(item="clock", level="warning", text=text, action="see chronyc tracking")
    return CheckFinding(item="clock", level="ok", text=f"corrected to {error_s * 1e3:.1f} ms")


def tai_findings(kernel_s: int, table_s: int, expires: datetime, now: datetime) -> Iterator[CheckFinding]:
    """Return whether TAI - UTC of the kernel and of a table of leap seconds is that of this program; a
    kernel of which nobody has set it has 0.
    """
    for name, value_s in (
        ("the kernel", kernel_s or TAI_MINUS_UTC_S),
        ("the table of leap seconds", table_s),
    ):
        if value_s != TAI_MINUS_UTC_S:
            text = f"TAI - UTC is {value_s} s in {name} and {TAI_MINUS_UTC_S:g} s in ppdaemon"
            action = "if there was a leap second: install a newer ppdaemon"
            yield CheckFinding(item="TAI", level="error", text=text, action=action)
            return
    kernel = f"{kernel_s} s" if kernel_s else "not set, nobody needs it"
    text = f"TAI - UTC {TAI_MINUS_UTC_S:g} s (kernel: {kernel}); the table is valid until {expires:%Y-%m-%d}"
    if expires < now + EXPIRES_SOON:
        yield CheckFinding(item="TAI", level="warning", text=text, action="install a newer astropy-iers-data")
    else:
        yield CheckFinding(item="TAI", level="ok", text=text)


def check_ramdisk(config: NodeConfig) -> Iterator[CheckFinding]:
    """Return whether the workers' repos are in memory, and have room."""
    folder = nearest_existing(config.node.ramdisk)
    if not is_ramdisk(folder):
        text = f"{config.node.ramdisk} is not on a tmpfs: workers are slow"
        yield CheckFinding(item="RAM disk", level="warning", text=text, action="mount a tmpfs there")
        return
    status = os.statvfs(folder)
    # Outputs that wait for export take their part of it.
    free = max(0, status.f_bavail * status.f_frsize - config.export.ramdisk_max)
    workers = config.workers
    yield ramdisk_finding(folder, filesystem_size(folder), free, workers.memory.ramdisk, workers.max)


def ramdisk_finding(folder: Path, total: int, free: int, worker: int, workers: int) -> CheckFinding:
    """Return whether a RAM disk has room for at least one worker at its limit; all sizes in bytes."""
    text = f"{folder}: {size(free)} of {size(total)} free"
    if not total:
        return CheckFinding(item="RAM disk", level="ok", text=f"{folder}: no limit")
    room = min(free // worker, workers)
    text += f", room for {room} of {workers} workers if each uses its limit of {size(worker)}"
    if free < worker:
        action = "mount a larger tmpfs, see ppctl size"
        return CheckFinding(item="RAM disk", level="error", text=text, action=action)
    return CheckFinding(item="RAM disk", level="ok", text=text)


def check_state_disk(config: NodeConfig) -> Iterator[CheckFinding]:
    """Return whether the journal's disk is local, has room and writes soon."""
    folder = nearest_existing(config.node.state_dir)
    kind = mount_of(str(folder)).kind
    status = os.statvfs(folder)
    yield state_disk_finding(folder, kind, status.f_bavail / max(status.f_blocks, 1))
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            yield fsync_finding([_fsync_s(file.fileno()) for _ in range(FSYNCS)])
    except PermissionError:
        text = f"{folder} is not writable for this user, its fsync is not timed"
        yield CheckFinding(
            item="state disk", level="skipped", text=text, action="run it as the daemon's user"
        )


def check_spill(config: NodeConfig) -> Iterator[CheckFinding]:
    """Return whether outputs can wait for export in `export.spill`, if it is set."""
    if config.export.spill is None:
        return
    folder = nearest_existing(config.export.spill)
    status = os.statvfs(folder)
    text = f"{folder}: {size(status.f_bavail * status.f_frsize)} free"
    action = ""
    if not os.access(folder, os.W_OK | os.X_OK):
        text, action = f"{folder} is not writable for this user", "allow it, or run this as the daemon's user"
    elif mount_of(str(folder)).kind in REMOTE:
        action = "set export.spill to a local disk: workers wait until their outputs are on it"
    elif (config.export.spill_max or 0) > status.f_blocks * status.f_frsize:
        text += f", less than export.spill_max ({size(config.export.spill_max or 0)})"
        action = "lower export.spill_max: images are given up before the disk is full"
    yield CheckFinding(item="spill", level="warning" if action else "ok", text=text, action=action)


def _fsync_s(descriptor: int) -> float:
    os.write(descriptor, bytes(4096))
    start = time.monotonic()
    os.fsync(descriptor)
    return time.monotonic() - start


def state_disk_finding(folder: Path, kind: str, free: float) -> CheckFinding:
    """Return whether a filesystem can have the state; `free` is a fraction."""
    text = f"{folder}: {kind}, {free:.0%} free"
    if kind in REMOTE or kind.startswith("fuse"):
        action = "set node.state_dir to a local disk: locks and fsync of SQLite are not reliable there"
        return CheckFinding(item="state disk", level="error", text=text, action=action)
    if free < FREE_MIN:
        return CheckFinding(item="state disk", level="warning", text=text, action="free some space")
    return CheckFinding(item="state disk", level="ok", text=text)


def fsync_finding(seconds: Iterable[float]) -> CheckFinding:
    """Return whether the median time of an fsync is short enough."""
    median = statistics.median(seconds)
    text = f"an fsync takes {median * 1e3:.1f} ms"
    if median > FSYNC_WARNING_S:
        action = "use a faster disk: each batch of the journal waits for one"
        return CheckFinding(item="state disk", level="warning", text=text, action=action)
    return CheckFinding(item="state disk", level="ok", text=text)


def check_inotify(config: NodeConfig) -> Iterator[CheckFinding]:
    """Return whether each raw root can be watched, and the kernel's limits allow for its folders."""
    libc = ctypes.CDLL(None, use_errno=True)
    folders, deadline = 0, time.monotonic() + SEARCH_S
    for root in config.arrivals.roots:
        kind = mount_of(str(root.path)).kind if os.access(root.path, os.R_OK | os.X_OK) else ""
        if not kind:
            text = f"{root.path} cannot be read by this user"
            yield CheckFinding(item="raws", level="error", text=text, action="create it, or allow it")
            continue
        watched = _can_watch(libc, str(root.path))
        yield root_finding(str(root.path), kind, root.watch or config.arrivals.watch, watched)
        folders += _count_folders(str(root.path), deadline)
    limits = {name: _sysctl(f"max_user_{name}") for name in ("watches", "instances")}
    yield watches_finding(folders, limits, complete=time.monotonic() < deadline)


def _can_watch(libc: ctypes.CDLL, path: str) -> str:
    """Return why inotify cannot watch a folder, or blank."""
    descriptor = libc.inotify_init1(os.O_CLOEXEC)
    if descriptor < 0:
        return errno.errorcode[ctypes.get_errno()]
    try:
        created = 0x100
        number = libc.inotify_add_watch(descriptor, os.fsencode(path), created)
        return errno.errorcode[ctypes.get_errno()] if number < 0 else ""
    finally:
        os.close(descriptor)


def _sysctl(name: str) -> int:
    return int(Path("/proc/sys/fs/inotify", name).read_text())


def _count_folders(root: str, deadline: float) -> int:
    number = 0
    for _ in os.walk(root):
        number += 1
        if time.monotonic() > deadline:
            break
    return number


def root_finding(path: str, kind: str, watch: str, problem: str) -> CheckFinding:
    """Return how new files of a raw root can be found; `problem` is inotify's error, or blank."""
    if problem:
        text, action = f"{path} cannot be watched: {problem}", "raise the fs.inotify limits (sysctl)"
        return CheckFinding(item="raws", level="error", text=text, action=action)
    if watch == "inotify" and kind in REMOTE:
        text = f"{path} is on {kind}, where inotify does not report files that other hosts write"
        return CheckFinding(item="raws", level="error", text=text, action="set watch to auto or poll")
    return CheckFinding(item="raws", level="ok", text=f"{path}: {kind}, watch {watch}")


def watches_finding(folders: int, limits: Mapping[str, int], *, complete: bool) -> CheckFinding:
    """Return whether the limits of inotify are far enough from the number of folders."""
    text = f"{'' if complete else 'at least '}{folders} folders; limits of this user: "
    text += ", ".join(f"{limit} {name}" for name, limit in limits.items())
    if folders > limits["watches"] / 2:
        action = "raise fs.inotify.max_user_watches (sysctl)"
        return CheckFinding(item="inotify", level="warning", text=text, action=action)
    return CheckFinding(item="inotify", level="ok", text=text)


def check_limits(config: NodeConfig) -> Iterator[CheckFinding]:
    """Return whether this user's limits allow for all workers."""
    limits = {
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        "processes": resource.getrlimit(resource.RLIMIT_NPROC)[1],
    }
    yield from limit_findings(config.workers.max, limits)


def limit_findings(workers: int, limits: Mapping[str, int]) -> Iterator[CheckFinding]:
    """Return whether limits of open files and processes allow for a number of workers."""
    needed = {
        "files": FILES_BASE + FILES_PER_WORKER * workers,
        "processes": PROCESSES_PER_WORKER * workers,
    }
    for name, limit in limits.items():
        shown = "no limit" if limit == resource.RLIM_INFINITY else f"limit {limit}"
        text = f"{name}: {shown}, {workers} workers need about {needed[name]}"
        if limit != resource.RLIM_INFINITY and limit < needed[name]:
            unit = {"files": "LimitNOFILE", "processes": "LimitNPROC"}[name]
            action = f"raise {unit} of the unit, or ulimit"
            yield CheckFinding(item="limits", level="warning", text=text, action=action)
        else:
            yield CheckFinding(item="limits", level="ok", text=text)
