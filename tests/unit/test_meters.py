# SPDX-License-Identifier: BSD-3-Clause
"""The meters, on this process and on folders of the test."""

import io
import os
from contextlib import ExitStack, closing
from pathlib import Path
from unittest.mock import Mock

import pytest

from ppdaemon.config import MemoryConfig, WorkersConfig
from ppdaemon.folders import NodeFolders
from ppdaemon.node.slots.meters import (
    LOOK_AGAIN_S,
    REPO_EVERY,
    WAIT_S,
    Meters,
    cpu_seconds,
    cut_log,
    folder_bytes,
    low_disk_space,
)

GONE = 2**22 + 1
"""No process has this id: it is above the largest ``pid_max``."""


def a_disk(blocks=1000, free=500, inodes=1000, inodes_free=500):
    """Return the result of a statvfs call with blocks of 4096 bytes."""
    return os.statvfs_result((4096, 4096, blocks, free, free, inodes, inodes_free, inodes_free, 0, 255))


@pytest.fixture
def folders(tmp_path):
    folders = NodeFolders(tmp_path / "ram", tmp_path / "state")
    for folder in (folders.slots, folders.logs, folders.repo(0), folders.repo(1)):
        folder.mkdir(parents=True, exist_ok=True)
    return folders


@pytest.fixture
def meters(folders):
    """Return a function that makes meters, which are closed after the test."""
    with ExitStack() as stack:

        def make(disk=None, **memory):
            config = WorkersConfig(log_max=1000, memory=MemoryConfig(**memory))
            return stack.enter_context(closing(Meters(config, folders, disk or (lambda _: a_disk()))))

        yield make


def test_shared_files_are_not_counted(folders):
    (folders.repo(0) / "own").write_bytes(bytes(8192))
    (folders.repo(0) / "shared").write_bytes(bytes(8192))
    os.link(folders.repo(0) / "shared", folders.slots / "elsewhere")
    assert folder_bytes(folders.repo(0)) == 8192
    assert folder_bytes(folders.repo(7)) == 0


def test_cpu_time_is_read_also_of_a_process_with_an_odd_name(monkeypatch):
    before = cpu_seconds(os.getpid())
    while sum(os.times()[:4]) < before + 0.03:
        sum(range(1000))
    assert before < cpu_seconds(os.getpid()) < before + 10
    assert cpu_seconds(GONE) == 0
    text = b"7 (a) b (c) S " + b" ".join(b"%d" % k for k in range(4, 53))
    monkeypatch.setattr("ppdaemon.node.slots.meters.open", lambda *_: io.BytesIO(text), raising=False)
    assert cpu_seconds(7) == pytest.approx((14 + 15 + 16 + 17) / os.sysconf("SC_CLK_TCK"))


def test_a_sample_has_memory_repo_and_cpu_time(meters, folders):
    (folders.repo(0) / "own").write_bytes(bytes(8192))
    samples = meters().read({0: os.getpid(), 1: GONE}, {})
    assert samples[0].repo_bytes == 8192
    assert samples[0].used_bytes > 1_000_000
    assert samples[0].cpu_s > 0
    assert (samples[1].used_bytes, samples[1].repo_bytes, samples[1].cpu_s) == (0, 0, 0.0)


@pytest.mark.parametrize(("urgent_s", "waited_s"), [(0.0, 0.0), (0.05, 0.05), (1e9, WAIT_S)])
def test_a_sample_waits_while_raws_are_checked_for_a_bounded_time(
    meters, monkeypatch, clock, urgent_s, waited_s
):
    began = clock.mono()
    paused = Mock(monotonic=clock.mono, sleep=clock.advance)
    monkeypatch.setattr("ppdaemon.node.slots.meters.time", paused)
    measured = meters()
    measured.urgent = lambda: clock.mono() - began < urgent_s
    assert measured.read({0: os.getpid(), 1: os.getpid()}, {}).keys() == {0, 1}
    assert clock.mono() - began == pytest.approx(waited_s, abs=LOOK_AGAIN_S)


def test_repos_are_measured_periodically_but_the_previous_workers_never(meters, folders):
    measured = meters()
    assert measured.read({0: GONE}, {})[0].repo_bytes == 0
    (folders.repo(0) / "own").write_bytes(bytes(8192))
    later = [measured.read({0: GONE}, {})[0].repo_bytes for _ in range(REPO_EVERY)]
    assert later == [0] * (REPO_EVERY - 1) + [8192]
    (folders.repo(0) / "own").unlink()
    assert measured.read({0: GONE + 1}, {})[0].repo_bytes == 0


def test_repos_are_measured_at_once_when_the_ram_disk_fills(meters, folders):
    free = [900]
    measured = meters(lambda _: a_disk(free=free[0]), ramdisk=400 * 4096)
    measured.read({0: GONE}, {})
    (folders.repo(0) / "own").write_bytes(bytes(8192))
    free[0] -= 101
    assert measured.read({0: GONE}, {})[0].repo_bytes == 8192
    assert measured.ramdisk_bytes == 201 * 4096


@pytest.mark.parametrize(
    ("disk", "text"),
    [
        (a_disk(), ""),
        (a_disk(free=50), ""),
        (a_disk(free=49), "/d has only 4.9 % of its space free"),
        (a_disk(inodes_free=0), "/d has only 0.0 % of its inodes free"),
        (a_disk(free=10, inodes_free=10), "/d has only 1.0 % of its space free and 1.0 % of its inodes free"),
        (a_disk(blocks=0, free=0, inodes=0, inodes_free=0), ""),
    ],
)
def test_a_disk_that_is_nearly_full_is_reported(disk, text):
    assert low_disk_space(Path("/d"), disk) == text


def test_both_disks_are_watched_and_an_unreadable_one_is_reported(meters, folders):
    def disk(folder):
        if folder == folders.state:
            raise OSError(5, "Input/output error")
        return a_disk(free=1)

    measured = meters(disk)
    measured.read({}, {})
    assert measured.problems == (
        f"{folders.ramdisk} has only 0.1 % of its space free",
        f"{folders.state}: Input/output error",
    )


def test_a_log_is_cut_under_its_writer_and_retains_its_end(folders):
    log = folders.logs / "worker-0000.log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"x" * 5000 + b"last line\n")
        assert cut_log(log, 1000)
        writer.write(b"later\n")
    text = log.read_bytes()
    assert text.startswith(b"... 4510 bytes were cut here\n")
    assert text.endswith(b"xlast line\nlater\n")
    assert len(text) < 600
    assert not cut_log(log, 1000)
    assert not cut_log(folders.logs / "none.log", 1000)


def test_logs_of_all_processes_are_kept_short_and_counted(meters, folders):
    for name in ("worker-0000.log", "zygote.log"):
        (folders.logs / name).write_bytes(bytes(5000))
    (folders.logs / "other.txt").write_bytes(bytes(5000))
    measured = meters()
    measured.read({}, {})
    measured.read({}, {})
    assert measured.logs_cut == 2
    assert (folders.logs / "other.txt").stat().st_size == 5000
