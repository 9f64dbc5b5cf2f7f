# SPDX-License-Identifier: BSD-3-Clause
"""Watch, polling and scan of raw roots that fail, vanish, hang, or tell nothing."""

import asyncio
import contextlib
import errno
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
from test_arrivals import (
    DEADLINE_S,
    GROUP,
    HANG_S,
    Catcher,
    Exposure,
    Publisher,
    arriving,
    fits_file,
    renamed_into_place,
    run,
)
from watchdog.observers.inotify_c import InotifyFD

from ppdaemon.clock import Clock, day_obs
from ppdaemon.node.arrivals.watch import FolderWatch, LostNews
from ppdaemon.raws.path import Expected
from ppdaemon.reports import ArrivalSource

FOCAL_PLANE = range(189)
BUSY_MACHINE = 4.0
"""What takes 2 s on an idle machine may take so many times longer in a test."""


def source(catcher: Catcher, kind: str) -> ArrivalSource:
    (found,) = [each for each in catcher.arrivals.report() if each.name.startswith(f"{kind} ")]
    return found


def waiting_for(*detectors: int) -> Callable[[], list[Expected]]:
    return lambda: [Expected("LSSTCam", frozenset(detectors), GROUP)]


async def told_by_the_kernel(catcher: Catcher, exposure: Exposure) -> None:
    """Let raws land until inotify is the first to tell of one: a scan may be sooner."""
    before = source(catcher, "inotify").files
    for detector in range(100, 150):
        await asyncio.to_thread(exposure.put, detector)
        await catcher.until(lambda: detector in catcher.detectors)  # noqa: B023
        if source(catcher, "inotify").files > before:
            return
    raise AssertionError(catcher.story())


# --- races ---


def race(root: Path, sequence: int, *, rename: bool) -> None:
    """Make a new folder and at once a file in it."""
    exposure = Exposure(root, sequence)
    exposure.folder.mkdir(parents=True)
    if rename:
        renamed_into_place(exposure.image(), fits_file())
    else:
        exposure.image().write_bytes(fits_file())


@pytest.mark.parametrize("rename", [False, True])
def test_fault_22_of_300_races_with_new_folders_none_is_missed(tmp_path, rename):
    async def body() -> None:
        async with arriving(tmp_path, sidecar_wait_s=0.01) as catcher:
            await catcher.watching()
            for first in range(1, 301, 50):
                await asyncio.to_thread(
                    lambda first=first: [race(tmp_path, first + i, rename=rename) for i in range(50)]
                )
            await catcher.until(lambda: len(catcher.raws) >= 300)
            assert len({raw.exposure for raw in catcher.raws}) == len(catcher.raws) == 300

    run(body)


def test_a_folder_that_is_moved_here_with_its_files_is_looked_into(tmp_path):
    root = tmp_path / "raw"

    async def body() -> None:
        Exposure(root, 1).folder.mkdir(parents=True)
        async with arriving(root) as catcher:
            await catcher.watching()
            staged = Exposure(tmp_path / "staged", 2)
            staged.put(94)
            await asyncio.to_thread(os.rename, staged.folder, Exposure(root, 2).folder)
            await catcher.one()
            # What is put into it later is told under its present name.
            Exposure(root, 2).put(95)
            await catcher.until(lambda: catcher.detectors == [94, 95])
            assert catcher.raws[-1].path == str(Exposure(root, 2).image(95))

    run(body)


# --- the kernel's news ---


class Frozen:
    """Holds back all that the kernel tells, until it is let go."""

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


def test_fault_23_a_queue_that_overflows_loses_nothing(tmp_path, monkeypatch):
    """20,000 files while nobody reads the events, of which 16,384 fit the queue."""
    monkeypatch.setattr("ppdaemon.node.arrivals.root.CANARY_STEPS", 1000)
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

    async def body() -> None:
        watched.put(94)
        async with arriving(tmp_path) as catcher:
            await catcher.one()
            with frozen.frozen():
                await asyncio.to_thread(storm)
                assert len(catcher.raws) == 1
            went_on = time.monotonic()
            await catcher.until(lambda: len(catcher.raws) > count)
            assert time.monotonic() - went_on < 2.0 * BUSY_MACHINE
            assert catcher.count("watch.overflow") >= 1
            assert len(catcher.raws) == 1 + count

    run(body)


def test_a_watch_that_is_stopped_before_it_reads_leaves_nothing_open(monkeypatch):
    def queues() -> int:
        links = (os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink())
        return sum("inotify" in link for link in links)

    frozen, before = Frozen(monkeypatch), queues()
    watch = FolderWatch(Mock(), Mock(), Mock(), None)
    with frozen.frozen():
        watch.start()
        reader = watch._reader
        assert reader is not None
        watch.stop()
        watch.start()  # too late
    reader.join(DEADLINE_S)
    assert (queues(), watch.reading) == (before, False)


def test_when_news_were_lost_nobody_waits_for_a_file_to_be_closed(tmp_path):
    async def body() -> None:
        async with arriving(tmp_path) as catcher:
            exposure = Exposure(tmp_path)
            exposure.put_sidecar()
            await catcher.watching()
            with exposure.image().open("wb") as file:
                file.write(fits_file())
                file.flush()
                await catcher.until(lambda: source(catcher, "inotify").files)
                catcher.arrivals._roots[str(tmp_path)]._heard(LostNews("overflow"))
                lost = time.monotonic()
                await catcher.one()
                assert time.monotonic() - lost < 2.0 * BUSY_MACHINE  # 10 s without

    run(body)


def test_a_reader_that_dies_is_replaced_and_nothing_is_lost(tmp_path, monkeypatch):
    async def body() -> None:
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
            await told_by_the_kernel(catcher, Exposure(tmp_path, 2))

    run(body)


def test_a_reader_that_stands_still_is_noticed_by_the_canary(tmp_path, monkeypatch):
    monkeypatch.setattr("ppdaemon.node.arrivals.root.CANARY_STEPS", 2)
    monkeypatch.setattr("ppdaemon.node.arrivals.root.CANARY_S", 0.1)
    frozen = Frozen(monkeypatch)

    async def body() -> None:
        async with arriving(tmp_path / "raw", scan_s=0.2, canaries=tmp_path / "own") as catcher:
            Exposure(tmp_path / "raw", 1).put(94)
            await catcher.one()
            await catcher.watching()
            with frozen.frozen():
                await catcher.until(lambda: "do not come through" in source(catcher, "inotify").note)
                # Meanwhile raws of open visits are polled for.
                assert source(catcher, "poll").live
                Exposure(tmp_path / "raw", 1).put(95)
                await catcher.until(lambda: len(catcher.raws) == 2)
                assert source(catcher, "inotify").files == 0 or source(catcher, "inotify").files == 1
            await catcher.watching()

    run(body)


@pytest.mark.parametrize(
    ("number", "sysctl"),
    [(errno.ENOSPC, "fs.inotify.max_user_watches"), (errno.EMFILE, "fs.inotify.max_user_instances")],
)
def test_fault_24_a_limit_names_its_sysctl_and_polling_takes_over(tmp_path, monkeypatch, number, sysctl):
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

    async def body() -> None:
        nonlocal refusing
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

    run(body)


def test_a_root_that_nobody_looks_at_any_more_is_not_told_to_be_live(tmp_path, monkeypatch):
    async def body() -> None:
        async with arriving(tmp_path) as catcher:
            await catcher.watching()
            monkeypatch.setattr(
                "ppdaemon.node.arrivals.root.FolderWatch.touch", Mock(side_effect=RuntimeError("broken"))
            )
            await catcher.until(lambda: catcher.count("internal"))
            assert {(each.live, each.note) for each in catcher.arrivals.report()} == {
                (False, "ended by an error, see the log")
            }

    run(body)


# --- polling ---


def test_raws_of_open_visits_are_polled_for_and_others_are_not(tmp_path):
    async def body() -> None:
        keys = {"watch": "poll", "poll_s": 0.1, "waiting": waiting_for(94)}
        async with arriving(tmp_path, **keys) as catcher:
            await catcher.watching()
            lags = []
            for sequence in range(1, 11):
                path = Exposure(tmp_path, sequence).put(94)
                placed = time.monotonic()
                await catcher.until(lambda: len(catcher.raws) == sequence)  # noqa: B023
                lags.append(time.monotonic() - placed)
                assert catcher.raws[-1].path == str(path)
            # The latter where a rename shows in no stamp.
            assert sorted(lags)[5] < (0.2 + 0.5) * BUSY_MACHINE
            assert source(catcher, "poll").files == 10

    run(body)


def test_without_open_visits_nothing_is_polled_for(tmp_path, monkeypatch):
    looks = []

    async def body() -> None:
        async with arriving(
            tmp_path, watch="poll", poll_s=0.01, waiting=lambda: looks.append(1) or []
        ) as catcher:
            await catcher.watching()
            await catcher.until(lambda: len(looks) >= 5)
            Exposure(tmp_path, 1).put(94)
            await catcher.until(lambda: len(looks) >= 20)
            assert source(catcher, "poll").files == 0

    run(body)


def test_fault_29_watch_polling_and_scan_of_one_file_make_one_delivery(tmp_path, monkeypatch):
    monkeypatch.setattr("ppdaemon.node.arrivals.mounts.LOCAL", frozenset())

    async def body() -> None:
        keys = {"poll_s": 0.02, "scan_s": 0.05, "waiting": waiting_for(*FOCAL_PLANE)}
        async with arriving(tmp_path, **keys) as catcher:
            await catcher.watching()
            assert [each.name.split()[0] for each in catcher.arrivals.report()] == ["inotify", "poll", "scan"]
            for sequence in range(1, 4):
                await asyncio.to_thread(
                    lambda: [Exposure(tmp_path, sequence).put(d) for d in FOCAL_PLANE]  # noqa: B023
                )
            await catcher.until(lambda: len(catcher.raws) >= 3 * len(FOCAL_PLANE))
            await asyncio.sleep(0.2)  # several more scans and looks
            assert len(catcher.raws) == 3 * len(FOCAL_PLANE)

    run(body)


def test_fault_20_a_raw_linked_replaced_and_overwritten_is_delivered_once(tmp_path):
    async def body() -> None:
        async with arriving(tmp_path, scan_s=0.05) as catcher:
            exposure = Exposure(tmp_path)
            path = exposure.put(94)
            await catcher.one()
            os.link(path, tmp_path / "other name")
            exposure.put(94, fits_file() + fits_file()[2880:])
            with path.open("r+b") as file:
                file.write(fits_file())
            os.unlink(path)
            os.link(tmp_path / "other name", path)
            exposure.put(95)
            await catcher.until(lambda: len(catcher.raws) >= 2)
            await asyncio.sleep(0.2)  # several more scans
            assert catcher.detectors == [94, 95]

    run(body)


# --- mounts ---


def mount(*args: str) -> None:
    """Mount something, or skip the test."""
    if os.geteuid() != 0:
        pytest.skip("only the superuser may mount filesystems")
    done = subprocess.run(["mount", *args], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no mounts here: {done.stderr.strip()}")


def unmount(path: Path) -> None:
    for _ in range(100):
        done = subprocess.run(["umount", str(path)], capture_output=True, check=False)
        if not os.path.ismount(path):
            return
        time.sleep(0.05)  # a look at it may be under way
    raise AssertionError(done.stderr)


@pytest.fixture
def overlay(tmp_path):
    """Give an overlay mount and the folder of its upper layer."""
    for name in ("lower", "upper", "work", "merged", "base"):
        (tmp_path / name).mkdir()
    night = Exposure(tmp_path / "lower", 1).folder.parent
    night.mkdir(parents=True)
    layers = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    mount("-t", "overlay", "overlay", "-o", layers, str(tmp_path / "merged"))
    yield tmp_path / "merged", tmp_path / "upper"
    unmount(tmp_path / "merged")


def test_fault_25_a_filesystem_without_events_is_polled(overlay):
    """What is written to a layer of an overlay raises no event on the whole."""
    merged, upper = overlay
    # The night exists in both layers, so that the new exposure shows at once.
    (merged / Exposure(upper, 1).folder.parent.relative_to(upper) / "any").touch()

    async def body() -> None:
        async with arriving(merged, waiting=waiting_for(94)) as catcher:
            await catcher.watching()
            assert "overlay" in source(catcher, "poll").note
            lags = []
            for sequence in range(1, 8):
                hidden = Exposure(upper, sequence)
                await asyncio.to_thread(hidden.put, 94)
                written = time.monotonic()
                await catcher.until(lambda: source(catcher, "poll").files == sequence)  # noqa: B023
                lags.append(time.monotonic() - written)
            await catcher.until(lambda: len(catcher.raws) == 7)
            assert source(catcher, "inotify").files == source(catcher, "scan").files == 0
            assert sorted(lags)[3] < 0.5 * BUSY_MACHINE

    run(body)


def test_what_is_written_through_an_overlay_is_told_by_the_kernel(overlay):
    merged, _ = overlay

    async def body() -> None:
        async with arriving(merged) as catcher:
            await catcher.watching()
            exposure = Exposure(merged)
            exposure.folder.mkdir()
            await told_by_the_kernel(catcher, exposure)

    run(body)


def test_fault_26_a_root_that_is_unmounted_and_mounted_again_recovers(tmp_path):
    disk, root = tmp_path / "disk", tmp_path / "disk/raw"
    disk.mkdir()
    mount("-t", "tmpfs", "first", str(disk))

    async def body() -> None:
        root.mkdir()
        async with arriving(root, scan_s=0.1, canaries=tmp_path / "own") as catcher:
            Exposure(root, 1).put(94)
            await catcher.until(lambda: len(catcher.raws) == 1)
            await catcher.watching()
            await asyncio.to_thread(unmount, disk)
            await catcher.until(lambda: "No such file" in source(catcher, "scan").note)
            assert not any(each.live for each in catcher.arrivals.report())
            root.mkdir()  # below the mount point
            await catcher.until(lambda: "is not mounted any more" in source(catcher, "scan").note)
            # Another device under the same path, with a raw on it.
            await asyncio.to_thread(mount, "-t", "tmpfs", "second", str(disk))
            Exposure(root, 2).put(94)
            await catcher.until(lambda: len(catcher.raws) == 2)
            await catcher.watching()
            await told_by_the_kernel(catcher, Exposure(root, 2))
            # Read-only: nothing can land there.
            await asyncio.to_thread(mount, "-o", "remount,ro", str(disk))
            await catcher.until(lambda: "read-only" in source(catcher, "scan").note)
            await asyncio.to_thread(mount, "-o", "remount,rw", str(disk))
            await catcher.watching()

    try:
        run(body)
    finally:
        unmount(disk)


# --- a filesystem that hangs ---


class Hanging:
    """Lets all looks at one root hang, until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path):
        self._root = str(root)
        self._go = threading.Event()
        self._go.set()
        for function in ("stat", "open", "scandir"):
            monkeypatch.setattr(os, function, self._slowed(getattr(os, function)))

    def _slowed(self, call: Callable[..., object]) -> Callable[..., object]:
        def slowed(path: object, *args: object, **keys: object) -> object:
            if isinstance(path, str) and path.startswith(self._root) and threading.current_thread().daemon:
                self._go.wait(HANG_S)
            return call(path, *args, **keys)

        return slowed

    @contextlib.contextmanager
    def hangs(self) -> Iterator[None]:
        self._go.clear()
        try:
            yield
        finally:
            self._go.set()


def test_fault_27_a_root_that_hangs_stops_neither_the_loop_nor_other_roots(tmp_path, monkeypatch):
    monkeypatch.setattr("ppdaemon.node.arrivals.root.STUCK_S", 0.2)
    monkeypatch.setattr("ppdaemon.node.arrivals.root.GIVE_UP_S", 0.4)
    monkeypatch.setattr("ppdaemon.node.arrivals.root.CANARY_S", 0.1)
    bad, good = tmp_path / "bad", tmp_path / "good"
    bad.mkdir()
    good.mkdir()
    hanging = Hanging(monkeypatch, bad)

    async def body() -> None:
        async with arriving([bad, good], scan_s=0.1, sidecar_wait_s=0.1) as catcher:
            await catcher.watching()
            with hanging.hangs():
                await asyncio.to_thread(lambda: [Exposure(bad, 1).put(d) for d in range(20)])
                await catcher.until(lambda: "not answer" in catcher.arrivals.report()[0].note)
                worst, last = 0.0, time.monotonic()
                await asyncio.to_thread(Exposure(good, 2).put, 94)
                while not catcher.raws:
                    assert time.monotonic() < last + DEADLINE_S
                    await asyncio.sleep(0.002)
                    worst, last = max(worst, time.monotonic() - last), time.monotonic()
                assert worst < HANG_S / 10
                live = {each.name: each.live for each in catcher.arrivals.report()}
                assert live[f"scan {good}"]
                assert not live[f"scan {bad}"]
            await catcher.until(lambda: len(catcher.raws) == 21)
            await catcher.watching()

    run(body)


def test_fault_27_a_raw_that_may_lie_in_two_roots_is_found_though_one_hangs(tmp_path, monkeypatch):
    monkeypatch.setattr("ppdaemon.node.arrivals.root.GIVE_UP_S", 0.4)
    monkeypatch.setattr("ppdaemon.node.arrivals.root.CANARY_S", 0.1)
    monkeypatch.setattr("ppdaemon.node.arrivals.settle.HANGING_PAUSE_S", 0.1)
    bad, good = tmp_path / "bad", tmp_path / "good"
    bad.mkdir()
    exposure = Exposure(good, day=20200101)  # which no scan finds
    exposure.put(94)
    os.utime(exposure.folder.parent, (0, 0))
    hanging, publisher = Hanging(monkeypatch, bad), Publisher()

    async def body() -> None:
        async with arriving([bad, good], subscribe=[publisher.address], watch="poll") as catcher:
            await publisher.subscribed()
            await catcher.watching()
            with hanging.hangs():
                publisher.say({"path": str(exposure.image().relative_to(good))})
                assert (await catcher.one()).path == str(exposure.image())

    try:
        run(body)
    finally:
        publisher.close()


# --- many old files ---


def test_fault_28_old_exposures_cost_nothing_at_the_start(tmp_path, monkeypatch):
    """20,000 old files of this night and of others are never listed."""
    days = [day_obs(Clock().tai()), 20250101, 20250102, 20250103]
    for day in days:
        for sequence in range(100):
            folder = Exposure(tmp_path, sequence, day).folder
            folder.mkdir(parents=True)
            for number in range(50):
                (folder / f"{folder.name}_R22_S{number}.fits").touch()
            os.utime(folder, (1e9, 1e9))
        if day != days[0]:
            os.utime(folder.parent, (1e9, 1e9))
    listed: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr("os.scandir", lambda folder: listed.append(str(folder)) or scandir(folder))

    async def body() -> None:
        async with arriving(tmp_path, scan_s=0.1) as catcher:
            await catcher.watching()
            new = Exposure(tmp_path, 500)
            new.put(94)
            await catcher.one()
            night = new.folder.parent
            below = {folder for folder in listed if folder.startswith(str(tmp_path))}
            assert below == {str(tmp_path), str(night.parent), str(night), str(new.folder)}

    run(body)


# --- who tells how soon ---


def test_each_source_says_how_soon_it_tells(tmp_path):
    old = Exposure(tmp_path, 1)
    old.put(94)

    async def body() -> None:
        async with arriving(tmp_path) as catcher:
            await catcher.one()
            # What landed before the start says nothing of how soon it is found.
            assert source(catcher, "scan").lag_p99_ms is None
            await catcher.watching()
            for detector in range(20):
                Exposure(tmp_path, 1).put(detector)
            await catcher.until(lambda: len(catcher.raws) == 21)
            told = source(catcher, "inotify")
            assert told.files >= 1
            assert told.lag_p50_ms is not None
            assert told.lag_p99_ms is not None
            assert 0.0 <= told.lag_p50_ms <= told.lag_p99_ms < 1000.0 * DEADLINE_S

    run(body)
