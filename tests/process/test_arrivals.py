# SPDX-License-Identifier: BSD-3-Clause
"""Raws landing in real folders: each is delivered once."""

import asyncio
import gzip
import os

import pytest
from arrivalkit import (
    DEADLINE_S,
    FOCAL_PLANE,
    GROUP,
    Exposure,
    arriving,
    count_calls,
    fits_file,
    renamed_into_place,
    source,
    waiting_for,
)

from ppdaemon.clock import Clock, day_obs
from ppdaemon.node.arrivals import completion
from ppdaemon.node.arrivals.walk import Survey


@pytest.mark.parametrize("scan_s", [60.0, 0.2])
async def test_of_200_raws_in_new_folders_none_is_missed(tmp_path, scan_s):
    """Each exposure's folder appears with its files at once: the race that
    inotify loses.
    """
    async with arriving(tmp_path, scan_s=scan_s) as catcher:
        await catcher.watching()
        exposures = [Exposure(tmp_path, sequence) for sequence in range(1, 201)]
        await asyncio.to_thread(lambda: [exposure.put(94) for exposure in exposures])
        await catcher.until(lambda: len(catcher.raws) >= 200)
        assert sorted(raw.exposure for raw in catcher.raws) == [each.id for each in exposures]


async def test_a_full_focal_plane_at_once_is_delivered_once_each(tmp_path):
    async with arriving(tmp_path, detectors=range(205)) as catcher:
        await catcher.watching()
        exposure = Exposure(tmp_path)
        await asyncio.to_thread(lambda: [exposure.put(detector) for detector in range(205)])
        await catcher.until(lambda: len(catcher.raws) >= 205)
        assert catcher.detectors == list(range(205))
        assert {raw.group for raw in catcher.raws} == {GROUP}


async def test_in_a_flood_each_raw_is_delivered_once(tmp_path, monkeypatch):
    monkeypatch.setattr("ppdaemon.node.arrivals.completion.FLOOD_QUEUED", 5)
    monkeypatch.setattr("ppdaemon.node.arrivals.completion.AT_ONCE", 2)
    monkeypatch.setattr("ppdaemon.node.arrivals.completion.CALM_S", 1.0)
    flooded = []

    class Queue(completion._Queue):
        @property
        def is_flooded(self) -> bool:
            flooded.append(super().is_flooded)
            return flooded[-1]

    monkeypatch.setattr(completion, "_Queue", Queue)
    exposure = Exposure(tmp_path)
    for detector in range(189):
        exposure.put(detector)
    async with arriving(tmp_path, scan_s=0.2) as catcher:
        await catcher.until(lambda: len(catcher.raws) >= 189)
        assert catcher.detectors == list(range(189))
    assert {True, False} == {*flooded}


async def test_above_what_can_be_checked_soon_surveys_pause_and_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("ppdaemon.node.arrivals.completion.MAX_QUEUED", 3)
    monkeypatch.setattr("ppdaemon.node.arrivals.walk.CHUNK", 5)
    monkeypatch.setattr("ppdaemon.node.arrivals.rootsource.SLICE_FILES", 5)
    exposure = Exposure(tmp_path)
    for detector in range(189):
        exposure.put(detector)
    async with arriving(tmp_path) as catcher:
        await catcher.until(lambda: len(catcher.raws) >= 189)
        assert catcher.detectors == list(range(189))


async def test_raws_that_arrived_before_the_start_are_found(tmp_path):
    Exposure(tmp_path).put(94)
    async with arriving(tmp_path) as catcher:
        await catcher.one()


async def test_the_first_night_of_an_instrument_and_even_its_root_may_be_made_later(tmp_path):
    root = tmp_path / "raw"
    async with arriving(root, scan_s=0.1) as catcher:
        await catcher.until(lambda: "No such file" in catcher.arrivals.report()[0].note)
        Exposure(root).put(94)
        await catcher.one()
        await catcher.watching()


async def test_the_first_night_may_be_made_under_the_watch(tmp_path):
    async with arriving(tmp_path) as catcher:
        await catcher.watching()
        Exposure(tmp_path, day=20200101).put(94)
        await catcher.one()


async def test_without_events_raws_are_found_by_scanning(tmp_path):
    async with arriving(tmp_path, watch="poll", scan_s=0.1) as catcher:
        await catcher.watching()
        Exposure(tmp_path).put(94)
        await catcher.one()
        poll, scan = catcher.arrivals.report()
        assert (poll.name, poll.live, poll.files) == (f"poll {tmp_path}", True, 0)
        assert (scan.name, scan.live, scan.files) == (f"scan {tmp_path}", True, 1)


async def test_detectors_of_other_nodes_are_never_opened(tmp_path):
    async with arriving(tmp_path, detectors=[94]) as catcher:
        await catcher.watching()
        exposure = Exposure(tmp_path)
        exposure.folder.mkdir(parents=True)
        # Opening a FIFO would show: it is no regular file.
        os.mkfifo(exposure.image(93))
        os.mkfifo(exposure.image(95))
        exposure.put(94)
        await catcher.one()
        assert catcher.count("refused.not_a_file") == 0


async def test_links_out_of_the_root_fifos_and_folders_are_refused(tmp_path, monkeypatch):
    # What is found by the scan alone waits this long.
    monkeypatch.setattr("ppdaemon.node.arrivals.pending.QUIET_UNCONFIRMED_S", 1.0)
    root, outside = tmp_path / "raw", tmp_path / "outside.fits"
    outside.write_bytes(fits_file())
    async with arriving(root, detectors=range(205), scan_s=0.1) as catcher:
        exposure = Exposure(root)
        exposure.folder.mkdir(parents=True)
        await catcher.watching()
        exposure.image(1).symlink_to(outside)
        os.mkfifo(exposure.image(2))
        exposure.put(3)
        exposure.image(4).symlink_to(exposure.image(3))
        await catcher.until(
            lambda: (
                catcher.count("refused.symlink")
                and catcher.count("refused.not_a_file")
                and len(catcher.raws) == 2
            )
        )
        assert catcher.detectors == [3, 4]


async def test_only_another_file_is_delivered_again(tmp_path):
    """Fault 20: links and repeated listings of a delivered file have no effect."""
    async with arriving(tmp_path, scan_s=0.1) as catcher:
        exposure = Exposure(tmp_path)
        path = exposure.put(94)
        await catcher.one()
        os.link(path, path.with_suffix(".fit"))
        path.chmod(0o640)
        exposure.put(95)
        await catcher.until(lambda: len(catcher.raws) >= 2)
        assert catcher.detectors == [94, 95]
        exposure.put(94)
        await catcher.until(lambda: len(catcher.raws) >= 3)
        exposure.put(96)
        await catcher.until(lambda: len(catcher.raws) >= 4)
        assert catcher.detectors == [94, 94, 95, 96]


async def test_the_generic_layout_and_gzipped_files_are_delivered_too(tmp_path):
    async with arriving(tmp_path, layout="generic") as catcher:
        folder = tmp_path / "LSSTCam/94/2026-11-22T03:25:16.951%231/0/2026112100156/r_03"
        await catcher.watching()
        renamed_into_place(folder / "any.fits.gz", gzip.compress(fits_file("another group", 1, 2)))
        raw = await catcher.one()
        assert (raw.group, raw.snap, raw.snaps) == ("2026-11-22T03:25:16.951#1", 1, 2)
        assert (raw.exposure, raw.detector, raw.sidecar) == (2026112100156, 94, None)


async def test_fault_29_watch_polling_and_scan_of_one_file_make_one_delivery(tmp_path, monkeypatch):
    monkeypatch.setattr("ppdaemon.node.arrivals.watchmethods.LOCAL", frozenset())
    surveys = count_calls(monkeypatch, Survey, "survey")
    keys = {"poll_s": 0.02, "scan_s": 0.05, "waiting": waiting_for(*FOCAL_PLANE)}
    async with arriving(tmp_path, **keys) as catcher:
        await catcher.watching()
        assert [each.name.split()[0] for each in catcher.arrivals.report()] == ["inotify", "poll", "scan"]
        for sequence in range(1, 4):
            await asyncio.to_thread(
                lambda: [Exposure(tmp_path, sequence).put(d) for d in FOCAL_PLANE]  # noqa: B023
            )
        await catcher.until(lambda: len(catcher.raws) >= 3 * len(FOCAL_PLANE))
        before = len(surveys)
        await catcher.until(lambda: len(surveys) >= before + 4)
        assert len(catcher.raws) == 3 * len(FOCAL_PLANE)


async def test_fault_20_a_raw_linked_replaced_and_overwritten_is_delivered_once(tmp_path, monkeypatch):
    surveys = count_calls(monkeypatch, Survey, "survey")
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
        before = len(surveys)
        await catcher.until(lambda: len(surveys) >= before + 4)
        assert catcher.detectors == [94, 95]


async def test_fault_28_old_exposures_cost_nothing_at_the_start(tmp_path, monkeypatch):
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
    async with arriving(tmp_path, scan_s=0.1) as catcher:
        await catcher.watching()
        new = Exposure(tmp_path, 500)
        new.put(94)
        await catcher.one()
        night = new.folder.parent
        below = {folder for folder in listed if folder.startswith(str(tmp_path))}
        assert below == {str(tmp_path), str(night.parent), str(night), str(new.folder)}


async def test_each_source_reports_its_latency(tmp_path):
    old = Exposure(tmp_path, 1)
    old.put(94)
    async with arriving(tmp_path) as catcher:
        await catcher.one()
        # Files from before the start do not count for the latency.
        assert source(catcher, "scan").lag_p99_ms is None
        await catcher.watching()
        for detector in range(20):
            Exposure(tmp_path, 1).put(detector)
        await catcher.until(lambda: len(catcher.raws) == 21)
        report = source(catcher, "inotify")
        assert report.files >= 1
        assert report.lag_p50_ms is not None
        assert report.lag_p99_ms is not None
        assert 0.0 <= report.lag_p50_ms <= report.lag_p99_ms < 1000.0 * DEADLINE_S
