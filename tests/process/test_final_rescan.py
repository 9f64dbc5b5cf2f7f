# SPDX-License-Identifier: BSD-3-Clause
"""Final rescans of real folders: the raws that they deliver before they end."""

import asyncio
import errno
import os
import threading
import time
from pathlib import Path

import pytest
from arrivalkit import DEADLINE_S, GROUP, Exposure, arriving, fits_file, renamed_into_place

from ppdaemon.clock import Clock
from ppdaemon.node.arrivals.unrecognized import UnrecognizedFiles
from ppdaemon.visit import read_next_visit

VISIT = read_next_visit({"groupId": GROUP, "instrument": "LSSTCam"})
BLIND = {"watch": "poll", "poll_s": 600.0}


@pytest.fixture
def no_hurry(monkeypatch):
    """Allow a rescan more time, because the machine may be busy."""
    monkeypatch.setattr("ppdaemon.node.arrivals.finalrescan.RESCAN_S", DEADLINE_S)


@pytest.mark.usefixtures("no_hurry")
async def test_what_no_source_has_reported_is_delivered_before_the_rescan_ends(tmp_path):
    async with arriving(tmp_path, **BLIND) as catcher:
        await catcher.watching()
        Exposure(tmp_path).put(94)
        other = Exposure(tmp_path, 157)
        renamed_into_place(other.image(95), fits_file(group="other"))
        await catcher.arrivals.rescan(VISIT, {94, 95}, Clock().tai())
        assert [raw.group for raw in catcher.raws] == [GROUP]
        assert catcher.detectors == [94]


@pytest.mark.usefixtures("no_hurry")
async def test_what_was_delivered_before_is_delivered_again(tmp_path):
    async with arriving(tmp_path, scan_s=0.1) as catcher:
        Exposure(tmp_path).put(94)
        await catcher.one()
        await catcher.arrivals.rescan(VISIT, {94}, Clock().tai())
        assert catcher.detectors == [94, 94]


async def test_a_rescan_ends_in_time_when_an_image_is_not_complete(tmp_path):
    async with arriving(tmp_path, **BLIND) as catcher:
        await catcher.watching()
        exposure = Exposure(tmp_path)
        exposure.put_sidecar(94)
        exposure.image(94).write_bytes(fits_file()[:-4000])
        begun = time.monotonic()
        (file,) = await catcher.arrivals.rescan(VISIT, {94}, Clock().tai())
        assert time.monotonic() - begun > 1.2
        assert not catcher.raws
        assert file.path == str(exposure.image(94))
        assert file.reason.startswith("not complete: "), file
        assert catcher.count("final_rescan_cut_short") == 1


@pytest.mark.usefixtures("no_hurry")
async def test_many_exposures_of_other_visits_are_read_once_each(tmp_path):
    async with arriving(tmp_path, **BLIND) as catcher:
        await catcher.watching()
        for sequence in range(30):
            exposure = Exposure(tmp_path, sequence + 200)
            for detector in range(20):
                renamed_into_place(exposure.image(detector), fits_file(group=f"g{sequence}"))
        for group in ("g7", "g8"):
            visit = VISIT.model_copy(update={"group": group})
            await asyncio.gather(
                *(catcher.arrivals.rescan(visit, {detector}, Clock().tai()) for detector in range(3))
            )
        assert catcher.detectors == [0, 0, 1, 1, 2, 2]
        assert catcher.count("final_rescan_cut_short") == 0


@pytest.mark.usefixtures("no_hurry")
@pytest.mark.parametrize("first", [None, fits_file(group=None)])
async def test_a_rescan_waits_for_no_sidecar_and_reads_all_raws(tmp_path, first):
    async with arriving(tmp_path, sidecar_wait_s=2.0 * DEADLINE_S, **BLIND) as catcher:
        await catcher.watching()
        exposure = Exposure(tmp_path)
        if first is not None:
            exposure.put(0, first, sidecar=False)
        for detector in (1, 2):
            exposure.put(detector, sidecar=False)
        await catcher.arrivals.rescan(VISIT, range(3), Clock().tai())
        assert catcher.detectors == ([1, 2] if first is None else [0, 1, 2])


@pytest.mark.usefixtures("no_hurry")
async def test_what_is_not_taken_is_returned_with_the_reason(tmp_path):
    async with arriving(tmp_path, sidecar_wait_s=0.1, **BLIND) as catcher:
        await catcher.watching()
        exposure, other = Exposure(tmp_path), Exposure(tmp_path, 157)
        exposure.put(93)
        renamed_into_place(exposure.image(94, ".fits.part"), fits_file())
        renamed_into_place(exposure.folder / "x.txt", b"")
        renamed_into_place(exposure.image(95), fits_file(group="own"))
        renamed_into_place(other.image(94), fits_file(group="other"))
        renamed_into_place(other.image(95, ".fits.part"), fits_file(group="other"))
        renamed_into_place(Exposure(tmp_path, 158).image(94), fits_file(group=None))
        link = Exposure(tmp_path, 156).image(96)
        link.symlink_to("/etc/hostname")
        files = await catcher.arrivals.rescan(VISIT, {93, 94, 95, 96}, Clock().tai())
        found = {Path(file.path).name: (file.reason, file.detector, file.group) for file in files}
        assert found == {
            exposure.image(94, ".fits.part").name: (
                "not complete, or no raw: its name ends in .part",
                94,
                None,
            ),
            "x.txt": ("no name of the layout", None, None),
            exposure.image(95).name: ("its own header has the group own", 95, "own"),
            link.name: ("is a link out of the raw root", 96, None),
            other.image(94).name: ("it has the group other", 94, "other"),
            Exposure(tmp_path, 158).image(94).name: ("no group in sidecar or header", 94, None),
        }


@pytest.mark.usefixtures("no_hurry")
async def test_where_all_raws_are_delivered_no_other_file_is_named(tmp_path):
    async with arriving(tmp_path, **BLIND) as catcher:
        await catcher.watching()
        exposure = Exposure(tmp_path)
        exposure.put(94)
        renamed_into_place(exposure.folder / "x.txt", b"")
        assert await catcher.arrivals.rescan(VISIT, {94}, Clock().tai()) == ()


async def test_what_is_found_before_the_time_limit_is_returned(tmp_path, monkeypatch):
    """A folder that hangs costs neither the other folders of its root nor those of another root."""
    hangs, in_folder = threading.Event(), UnrecognizedFiles.in_folder

    def slow_in_folder(files, folder):
        if files.root.path == str(slow) or folder == str(Exposure(quick, 157).folder):
            assert hangs.wait(DEADLINE_S)
        return in_folder(files, folder)

    slow, quick = tmp_path / "slow", tmp_path / "quick"
    monkeypatch.setattr(UnrecognizedFiles, "in_folder", slow_in_folder)
    monkeypatch.setattr("ppdaemon.node.arrivals.finalrescan.REASONS_S", 4.0)
    async with arriving([slow, quick], **BLIND) as catcher:
        try:
            for root, detector in ((slow, 94), (quick, 95)):
                Exposure(root).put_sidecar(detector)
                Exposure(root).image(detector).write_bytes(fits_file()[:-4000])
            renamed_into_place(Exposure(quick).image(96, ".fits.part"), fits_file())
            renamed_into_place(Exposure(quick, 157).image(96, ".fits.part"), fits_file())
            await catcher.watching()
            files = await catcher.arrivals.rescan(VISIT, {94, 95, 96}, Clock().tai())
            assert {file.path for file in files} == {
                str(Exposure(slow).image(94)),
                str(Exposure(quick).image(95)),
                str(Exposure(quick).image(96, ".fits.part")),
            }
        finally:
            hangs.set()


@pytest.mark.usefixtures("no_hurry")
async def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    folder, opening = str(Exposure(tmp_path).folder), os.open

    def refusing(path, *args, **options):
        if path == folder:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return opening(path, *args, **options)

    async with arriving(tmp_path, **BLIND) as catcher:
        await catcher.watching()
        Exposure(tmp_path).put(94)
        monkeypatch.setattr(os, "open", refusing)
        (file,) = await catcher.arrivals.rescan(VISIT, {94}, Clock().tai())
        assert (file.path, file.reason) == (folder, "cannot be listed: Permission denied")


WHOLE = {"layout": {"path": "{instrument}/{day_obs}/{exposure}", "detector_keyword": "CCDNUM"}}


@pytest.mark.usefixtures("no_hurry")
@pytest.mark.parametrize("watched", [True, False])
async def test_a_file_of_all_detectors_is_delivered_once_for_each(tmp_path, watched):
    config = {"scan_s": 0.1} if watched else BLIND
    async with arriving(tmp_path, (3, 5, 8), **WHOLE, **config) as catcher:
        await catcher.watching()
        exposure = Exposure(tmp_path)
        path = tmp_path / "LSSTCam" / str(exposure.id // 100_000) / f"{exposure.id}.fits"
        renamed_into_place(path, fits_file())
        if watched:
            await catcher.until(lambda: catcher.raws)
            assert catcher.detectors == [3, 5, 8]
            catcher.raws.clear()
        assert await catcher.arrivals.rescan(VISIT, {5}, Clock().tai()) == ()
        assert catcher.detectors == [3, 5, 8]
        assert {(raw.path, raw.exposure, raw.group) for raw in catcher.raws} == {
            (str(path), exposure.id, GROUP)
        }
        assert catcher.count("delivered") == (2 if watched else 1)


@pytest.mark.usefixtures("no_hurry")
async def test_an_unfinished_file_of_all_detectors_is_named_for_each(tmp_path):
    async with arriving(tmp_path, (3, 5), **WHOLE, **BLIND) as catcher:
        await catcher.watching()
        exposure = Exposure(tmp_path)
        path = tmp_path / "LSSTCam" / str(exposure.id // 100_000) / f"{exposure.id}.fits.part"
        renamed_into_place(path, fits_file())
        (file,) = await catcher.arrivals.rescan(VISIT, {3, 5}, Clock().tai())
        assert (file.path, file.detector) == (str(path), None)
