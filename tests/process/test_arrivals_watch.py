# SPDX-License-Identifier: BSD-3-Clause
"""The kernel's events: races with new folders, and events that are lost, refused, or do not come."""

import asyncio
import contextlib
import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
from arrivalkit import (
    BUSY_MACHINE,
    DEADLINE_S,
    FOCAL_PLANE,
    Exposure,
    arriving,
    fits_file,
    renamed_into_place,
    reported_by_inotify,
    source,
    waiting_for,
)
from watchdog.observers.inotify_c import InotifyFD

from ppdaemon.node.arrivals.watch import FolderWatch


def race(root: Path, sequence: int, *, rename: bool) -> None:
    """Make a new folder and at once a file in it."""
    exposure = Exposure(root, sequence)
    exposure.folder.mkdir(parents=True)
    if rename:
        renamed_into_place(exposure.image(), fits_file())
    else:
        exposure.image().write_bytes(fits_file())


@pytest.mark.parametrize("rename", [False, True])
async def test_fault_22_of_300_races_with_new_folders_none_is_missed(tmp_path, rename):
    async with arriving(tmp_path, sidecar_wait_s=0.01) as catcher:
        await catcher.watching()
        for first in range(1, 301, 50):
            await asyncio.to_thread(
                lambda first=first: [race(tmp_path, first + i, rename=rename) for i in range(50)]
            )
        await catcher.until(lambda: len(catcher.raws) >= 300)
        assert len({raw.exposure for raw in catcher.raws}) == len(catcher.raws) == 300


async def test_a_folder_that_is_moved_here_with_its_files_is_explored(tmp_path):
    root = tmp_path / "raw"
    Exposure(root, 1).folder.mkdir(parents=True)
    async with arriving(root) as catcher:
        await catcher.watching()
        staged = Exposure(tmp_path / "staged", 2)
        staged.put(94)
        await asyncio.to_thread(os.rename, staged.folder, Exposure(root, 2).folder)
        await catcher.one()
        # Files added to it later are reported under its present name.
        Exposure(root, 2).put(95)
        await catcher.until(lambda: catcher.detectors == [94, 95])
        assert catcher.raws[-1].path == str(Exposure(root, 2).image(95))


class Frozen:
    """Holds back all events of the kernel until they are released."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self._go = threading.Event()
        self._go.set()
        reading = InotifyFD.read_events

        def read_events(reader: InotifyFD, **keys: int) -> list[object]:
            self._go.wait(60.0)
            events = reading(reader, **keys)
            self._go.wait(60.0)
            return events

        monkeypatch.setattr(InotifyFD, "read_events", read_events)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        self._go.clear()
        try:
            yield
        finally:
            self._go.set()


@pytest.mark.slow
async def test_fault_23_a_queue_that_overflows_loses_nothing(tmp_path, monkeypatch):
    """20,000 files while no thread reads the events, of which 16,384 fit the queue."""
    monkeypatch.setattr("ppdaemon.node.arrivals.rootsource.CANARY_STEPS", 1000)
    frozen = Frozen(monkeypatch)
    count = 30 * len(FOCAL_PLANE)
    watched = Exposure(tmp_path, 1)

    def storm() -> None:
        for number in range(20_000 - count):
            (watched.folder / f"other-{number}").touch()  # two events each
        for sequence in range(2, 32):
            exposure = Exposure(tmp_path, sequence)
            exposure.put_sidecar(0)
            for detector in FOCAL_PLANE:
                exposure.image(detector).write_bytes(fits_file())

    watched.put(94)
    async with arriving(tmp_path) as catcher:
        await catcher.one()
        with frozen.frozen():
            await asyncio.to_thread(storm)
            assert len(catcher.raws) == 1
        continued = time.monotonic()
        await catcher.until(lambda: len(catcher.raws) > count)
        assert time.monotonic() - continued < 2.0 * BUSY_MACHINE
        assert catcher.count("watch.overflow") >= 1
        assert len(catcher.raws) == 1 + count


def test_a_watch_that_is_stopped_before_it_reads_leaves_nothing_open(monkeypatch):
    def queues() -> int:
        links = (os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink())
        return sum("inotify" in link for link in links)

    frozen, before = Frozen(monkeypatch), queues()
    watch = FolderWatch(Mock(), Mock(), None)
    with frozen.frozen():
        watch.start()
        reader = watch._reader
        assert reader is not None
        watch.stop()
        watch.start()  # too late
    reader.join(DEADLINE_S)
    assert (queues(), watch.reading) == (before, False)


async def test_a_reader_that_ends_is_replaced_and_nothing_is_lost(tmp_path, monkeypatch):
    async with arriving(tmp_path, canaries=tmp_path / "own") as catcher:
        Exposure(tmp_path, 1).put(94)
        await catcher.one()
        await catcher.watching()
        monkeypatch.setattr(threading, "excepthook", lambda args: None)
        handle = InotifyFD.handle_event

        def die(reader: InotifyFD, event: object) -> None:
            monkeypatch.setattr(InotifyFD, "handle_event", handle)
            raise RuntimeError("the reader dies here")

        monkeypatch.setattr(InotifyFD, "handle_event", die)
        Exposure(tmp_path, 2).put(94)
        await catcher.until(lambda: not source(catcher, "inotify").live)
        await catcher.until(lambda: len(catcher.raws) == 2)
        await catcher.watching()
        assert catcher.count("watch.silent") == 1
        await reported_by_inotify(catcher, Exposure(tmp_path, 2))


async def test_a_reader_that_stands_still_is_noticed_by_the_canary(tmp_path, monkeypatch):
    monkeypatch.setattr("ppdaemon.node.arrivals.rootsource.CANARY_STEPS", 2)
    monkeypatch.setattr("ppdaemon.node.arrivals.rootsource.CANARY_S", 0.1)
    frozen = Frozen(monkeypatch)
    async with arriving(tmp_path / "raw", scan_s=0.2, canaries=tmp_path / "own") as catcher:
        Exposure(tmp_path / "raw", 1).put(94)
        await catcher.one()
        await catcher.watching()
        before = source(catcher, "inotify").files
        with frozen.frozen():
            await catcher.until(lambda: "do not arrive" in source(catcher, "inotify").note)
            # Meanwhile raws of open visits are polled for.
            assert source(catcher, "poll").live
            Exposure(tmp_path / "raw", 1).put(95)
            await catcher.until(lambda: len(catcher.raws) == 2)
            assert source(catcher, "inotify").files == before
        await catcher.watching()


@pytest.mark.parametrize(
    ("number", "sysctl"),
    [(errno.ENOSPC, "fs.inotify.max_user_watches"), (errno.EMFILE, "fs.inotify.max_user_instances")],
)
async def test_fault_24_a_limit_names_its_sysctl_and_polling_takes_over(
    tmp_path, monkeypatch, number, sysctl
):
    refusing = True

    def refused(*args: object) -> int:
        raise OSError(number, os.strerror(number))

    adding, starting = InotifyFD.add_callback, InotifyFD._create_inotify_fd

    def add(reader: InotifyFD, path: bytes, *args: object) -> int:
        # Not the first folder: the limit may come at any.
        if refusing and number == errno.ENOSPC and b"MC_O" in path:
            refused()
        return adding(reader, path, *args)

    monkeypatch.setattr(InotifyFD, "add_callback", add)
    if number == errno.EMFILE:
        monkeypatch.setattr(
            InotifyFD, "_create_inotify_fd", lambda *args: refused() if refusing else starting()
        )
    # A scan would come too late.
    keys = {"waiting": waiting_for(*FOCAL_PLANE), "poll_s": 0.05}
    async with arriving(tmp_path, scan_s=1.0, **keys) as catcher:
        exposure = Exposure(tmp_path, 1)
        exposure.put(94)
        await catcher.until(lambda: sysctl in source(catcher, "inotify").note)
        await catcher.until(lambda: len(catcher.raws) == 1)
        assert not source(catcher, "inotify").live
        assert source(catcher, "poll").live
        exposure.put(95)
        await catcher.until(lambda: len(catcher.raws) == 2)
        assert sum(source(catcher, kind).files for kind in ("poll", "scan")) == 2
        refusing = False
        await catcher.watching()
        assert [each.name.split()[0] for each in catcher.arrivals.report()] == ["inotify", "scan"]


async def test_a_root_that_is_no_longer_observed_is_not_reported_as_live(tmp_path, monkeypatch):
    async with arriving(tmp_path) as catcher:
        await catcher.watching()
        monkeypatch.setattr(
            "ppdaemon.node.arrivals.rootsource.FolderWatch.touch",
            Mock(side_effect=RuntimeError("broken")),
        )
        await catcher.until(lambda: catcher.count("internal"))
        assert {(each.live, each.note) for each in catcher.arrivals.report()} == {
            (False, "ended by an error, see the log")
        }
