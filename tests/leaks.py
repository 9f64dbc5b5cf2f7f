# SPDX-License-Identifier: BSD-3-Clause
"""Processes, threads and descriptors that a test left behind."""

import gc
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

MARK = "PPDAEMON_TEST"
"""Environment variable that identifies a test's orphaned descendants."""

TIMEOUT_S = 20.0
"""For processes that are ending when a test ends."""

FILES_TOLERATED = 2
"""Regular files that a library may open once and keep open. Sockets, pipes, pidfds and the like
are never tolerated.
"""


@dataclass(frozen=True, slots=True)
class Possessions:
    """Processes, threads and descriptors of this process at one time."""

    processes: frozenset[int]
    threads: frozenset[threading.Thread]
    descriptors: frozenset[tuple[int, str]]


def _descendants(mark: str, shared: frozenset[int] = frozenset()) -> dict[int, str]:
    """Return the descendants of this process, and orphans with the mark; not those of `shared`
    processes: a daemon that several tests share replaces its workers.
    """
    found = {}
    variable = f"{MARK}={mark}".encode()
    children = set(_below(psutil.Process(), shared))
    for process in psutil.process_iter():
        pid = process.pid
        if pid == os.getpid():
            continue
        try:
            if pid in children or variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found[pid] = f"{pid} {process.status()} {' '.join(process.cmdline()) or process.name()}"
        except (OSError, psutil.Error):
            continue  # it ended meanwhile, or is another user's
    return found


def _below(process: psutil.Process, shared: frozenset[int]) -> Iterator[int]:
    for child in process.children():
        yield child.pid
        if child.pid not in shared:
            with suppress(psutil.NoSuchProcess):
                yield from _below(child, shared)


def _descriptors() -> frozenset[tuple[int, str]]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add((int(name), os.readlink(f"/proc/self/fd/{name}")))
        except OSError:
            continue  # the descriptor of the listing itself
    return frozenset(found)


def possessions(mark: str) -> Possessions:
    """Return the present possessions of this process; `mark` is the value of `MARK` in this
    test's processes.
    """
    return Possessions(frozenset(_descendants(mark)), frozenset(threading.enumerate()), _descriptors())


def _is_file(target: str) -> bool:
    return target.startswith("/") and not target.startswith("/dev/")


def _differences(before: Possessions, mark: str) -> list[str]:
    processes = [
        text for pid, text in _descendants(mark, before.processes).items() if pid not in before.processes
    ]
    threads = [
        t
        for t in threading.enumerate()
        if t not in before.threads and not t.daemon and not t.name.startswith("pytest_timeout ")
    ]
    opened = sorted(_descriptors() - before.descriptors)
    files = [each for each in opened if _is_file(each[1])]
    if len(files) <= FILES_TOLERATED:
        opened = [each for each in opened if each not in files]
    return (
        [f"process {text}" for text in processes]
        + [f"thread {thread.name}" for thread in threads]
        + [f"descriptor {number} -> {target}" for number, target in opened]
    )


def left_over(before: Possessions, mark: str) -> list[str]:
    """Return one line for each possession that was not there before the test; waits for processes
    that are ending.
    """
    deadline = time.monotonic() + TIMEOUT_S
    if _differences(before, mark):
        gc.collect()
    while (offenders := _differences(before, mark)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return offenders


def kill_left_over(before: Possessions, mark: str) -> None:
    """Kill the processes that a test left behind, so that the next test starts without them."""
    for pid in _descendants(mark, before.processes).keys() - before.processes:
        try:
            psutil.Process(pid).kill()
        except psutil.NoSuchProcess:
            continue
