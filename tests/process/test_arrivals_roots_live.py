# SPDX-License-Identifier: BSD-3-Clause
"""Raw roots that the kernel reports nothing of, that vanish, and that hang."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from arrivalkit import (
    BUSY_MACHINE,
    DEADLINE_S,
    HANG_S,
    Exposure,
    Publisher,
    arriving,
    reported_by_inotify,
    source,
    waiting_for,
)


@pytest.mark.slow
async def test_raws_of_open_visits_are_polled_for_and_others_are_not(tmp_path):
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


async def test_without_open_visits_nothing_is_polled_for(tmp_path, monkeypatch):
    checks = []
    async with arriving(
        tmp_path, watch="poll", poll_s=0.01, waiting=lambda: checks.append(1) or []
    ) as catcher:
        await catcher.watching()
        await catcher.until(lambda: len(checks) >= 5)
        Exposure(tmp_path, 1).put(94)
        await catcher.until(lambda: len(checks) >= 20)
        assert source(catcher, "poll").files == 0


async def test_a_root_that_is_missing_does_not_stop_the_others(tmp_path):
    gone, good = tmp_path / "gone", tmp_path / "good"
    good.mkdir()
    async with arriving([gone, good], scan_s=0.1) as catcher:
        Exposure(good).put(94)
        await catcher.one()
        live = {source.name: source.live for source in catcher.arrivals.report()}
        assert live[f"scan {good}"]
        assert not live[f"scan {gone}"]


async def test_a_root_that_is_deleted_and_made_anew_is_watched_again(tmp_path):
    root = tmp_path / "raw"
    root.mkdir()
    async with arriving(root, scan_s=0.1) as catcher:
        await catcher.watching()
        shutil.rmtree(root)
        await catcher.until(lambda: not catcher.arrivals.report()[0].live)
        first, second = Exposure(root, 1), Exposure(root, 2)
        first.put(94)
        second.folder.mkdir()
        await catcher.until(lambda: len(catcher.raws) == 1)
        await catcher.watching()
        inotify = catcher.arrivals.report()[0]
        # Into a folder that is watched: in a new one each file may be listed before its event.
        for detector in range(60):
            await asyncio.to_thread(second.put, detector)
            if catcher.arrivals.report()[0].files > inotify.files:
                break
        await catcher.until(lambda: catcher.arrivals.report()[0].files > inotify.files)


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
        time.sleep(0.05)  # a check of it may be in progress
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


@pytest.mark.slow
async def test_fault_25_a_filesystem_without_events_is_polled(overlay):
    """A write to a layer of an overlay causes no event on the overlay."""
    merged, upper = overlay
    # The night exists in both layers, so that the new exposure shows at once.
    (merged / Exposure(upper, 1).folder.parent.relative_to(upper) / "any").touch()
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


async def test_what_is_written_through_an_overlay_is_reported_by_inotify(overlay):
    merged, _ = overlay
    async with arriving(merged) as catcher:
        await catcher.watching()
        exposure = Exposure(merged)
        exposure.folder.mkdir()
        await reported_by_inotify(catcher, exposure)


async def test_fault_26_a_root_that_is_unmounted_and_mounted_again_recovers(tmp_path):
    disk, root = tmp_path / "disk", tmp_path / "disk/raw"
    disk.mkdir()
    mount("-t", "tmpfs", "first", str(disk))
    try:
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
            await reported_by_inotify(catcher, Exposure(root, 2))
            # Read-only: no file can be written there.
            await asyncio.to_thread(mount, "-o", "remount,ro", str(disk))
            await catcher.until(lambda: "read-only" in source(catcher, "scan").note)
            await asyncio.to_thread(mount, "-o", "remount,rw", str(disk))
            await catcher.watching()
    finally:
        unmount(disk)


class Hanging:
    """Makes all calls on one root hang until they are released."""

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


async def test_a_filesystem_that_hangs_blocks_neither_the_loop_nor_the_stop(tmp_path, monkeypatch):
    release = threading.Event()

    def hang(*_args: object, **_keys: object) -> None:
        release.wait(HANG_S)

    async with arriving(tmp_path) as catcher:
        await catcher.watching()
        monkeypatch.setattr("ppdaemon.node.arrivals.files.read_state", hang)
        exposure = Exposure(tmp_path)
        await asyncio.to_thread(lambda: [exposure.put(detector) for detector in range(20)])
        await catcher.until(lambda: sum(source.files for source in catcher.arrivals.report()) == 20)
        worst, last = 0.0, time.monotonic()
        for _ in range(50):
            await asyncio.sleep(0.002)
            worst, last = max(worst, time.monotonic() - last), time.monotonic()
        assert worst < HANG_S / 10
        began = time.monotonic()
    assert time.monotonic() - began < HANG_S / 3
    release.set()


async def test_fault_27_a_root_that_hangs_stops_neither_the_loop_nor_other_roots(tmp_path, monkeypatch):
    monkeypatch.setattr("ppdaemon.node.arrivals.rootsource.STUCK_S", 0.2)
    monkeypatch.setattr("ppdaemon.node.arrivals.rootsource.ABANDON_S", 0.4)
    monkeypatch.setattr("ppdaemon.node.arrivals.rootsource.CANARY_S", 0.1)
    bad, good = tmp_path / "bad", tmp_path / "good"
    bad.mkdir()
    good.mkdir()
    hanging = Hanging(monkeypatch, bad)
    async with arriving([bad, good], scan_s=0.1, sidecar_wait_s=0.1) as catcher:
        await catcher.watching()
        with hanging.hangs():
            await asyncio.to_thread(lambda: [Exposure(bad, 1).put(d) for d in range(20)])
            await catcher.until(lambda: "not responded" in catcher.arrivals.report()[0].note)
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


async def test_fault_27_a_raw_that_may_lie_in_two_roots_is_found_though_one_hangs(tmp_path, monkeypatch):
    monkeypatch.setattr("ppdaemon.node.arrivals.rootsource.ABANDON_S", 0.4)
    monkeypatch.setattr("ppdaemon.node.arrivals.rootsource.CANARY_S", 0.1)
    monkeypatch.setattr("ppdaemon.node.arrivals.completion.HANGING_PAUSE_S", 0.1)
    bad, good = tmp_path / "bad", tmp_path / "good"
    bad.mkdir()
    exposure = Exposure(good, day=20200101)  # which no scan finds
    exposure.put(94)
    os.utime(exposure.folder.parent, (0, 0))
    hanging = Hanging(monkeypatch, bad)
    with contextlib.closing(Publisher()) as publisher:
        async with arriving([bad, good], subscribe=[publisher.address], watch="poll") as catcher:
            await publisher.subscribed()
            await catcher.watching()
            with hanging.hangs():
                publisher.send({"path": str(exposure.image().relative_to(good))})
                assert (await catcher.one()).path == str(exposure.image())
