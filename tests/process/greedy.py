# SPDX-License-Identifier: BSD-3-Clause
"""Scripted work that exceeds limits: memory, disk, CPU time, log."""

import itertools
import os
import time

from ppdaemon.testing.work import (
    FAULTS,
    LEAKED,
    ScriptedWork,
    build_template,
    open_exporter,
    open_work,
    warm_up,
)

__all__ = ("build_template", "open_exporter", "open_work", "set_up_libraries", "warm_up")

MOST = 4_000_000_000
"""Bytes at which a fault ends, to protect the machine."""


def set_up_libraries() -> None:
    """Add these faults to the scripted ones, in the zygote."""
    FAULTS.update(
        gorge=_gorge,
        gorge_in_fork=_gorge_in_fork,
        hoard=_hoard,
        burn=_burn,
        flood=_flood,
        fill_bytes=_fill_bytes,
        fill_inodes=_fill_inodes,
    )


def _gorge(work: ScriptedWork) -> None:
    """Allocate memory as fast as possible."""
    LEAKED.extend(b"x" * 50_000_000 for _ in range(MOST // 50_000_000))
    time.sleep(600)


def _gorge_in_fork(work: ScriptedWork) -> None:
    """Allocate the memory in a separate process, and wait for it."""
    pid = os.fork()
    if pid == 0:
        _gorge(work)
        os._exit(0)
    os.waitpid(pid, 0)


def _hoard(work: ScriptedWork) -> None:
    """Add 20 MB to the repo at once."""
    outside = work.context.repo.parents[1] / "hoard"
    outside.write_bytes(bytes(20_000_000))
    outside.rename(work.context.repo / "hoard")
    time.sleep(600)


def _burn(work: ScriptedWork) -> None:
    while True:
        sum(range(10_000))


def _flood(work: ScriptedWork) -> None:
    """Log 20 MB: lines, a line without an end, control characters."""
    for _ in range(100):
        os.write(1, b"one more of a hundred thousand lines a second\n" * 4000)
    os.write(2, b"x" * 1_500_000)
    # What is written while the log is being cut may be lost: this comes after it.
    while not 0 < os.fstat(2).st_size < 1_000_000:
        time.sleep(0.01)
    os.write(2, b"\x1b[2J\x00\r\x07\xff")


def _fill_bytes(work: ScriptedWork) -> None:
    with (work.context.repo / "big").open("wb", buffering=0) as stream:
        while stream.tell() < MOST:
            stream.write(bytes(65_536))


def _fill_inodes(work: ScriptedWork) -> None:
    for number in itertools.islice(itertools.count(), 100_000):
        (work.context.repo / f"small{number}").touch()
