# SPDX-License-Identifier: BSD-3-Clause
"""When raws that are being written are delivered."""

import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import pytest
from arrivalkit import (
    DEADLINE_S,
    GROUP,
    Exposure,
    arriving,
    count_calls,
    fits_file,
    source,
)

from ppdaemon.clock import Clock
from ppdaemon.messages import Raw
from ppdaemon.node.arrivals import files
from ppdaemon.node.arrivals.pending import FileState
from ppdaemon.node.arrivals.roots import RawPath
from ppdaemon.testing.waiting import wait_until


def file_id(path: Path) -> tuple[int, int, int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def seems_renamed(path: Path) -> bool:
    """Return whether the file was changed otherwise after its last write."""
    status = path.stat()
    return status.st_ctime_ns > status.st_mtime_ns


@pytest.fixture
def no_quiet(monkeypatch):
    """Let no file be taken because nothing happens to it for a while."""
    for name in ("QUIET_INTACT_S", "QUIET_BROKEN_S", "QUIET_UNCONFIRMED_S"):
        monkeypatch.setattr(f"ppdaemon.node.arrivals.pending.{name}", 3.0 * DEADLINE_S)


@pytest.mark.usefixtures("no_quiet")
async def test_a_raw_renamed_into_place_is_delivered_with_all_that_is_known(tmp_path):
    async with arriving(tmp_path) as catcher:
        exposure = Exposure(tmp_path)
        exposure.folder.mkdir(parents=True)
        await catcher.watching()
        began = Clock().tai()
        path = exposure.put(94)
        raw = await catcher.one()
        assert raw == Raw(
            path=str(path),
            sidecar=str(path.with_suffix(".json")),
            instrument="LSSTCam",
            group=GROUP,
            detector=94,
            exposure=exposure.id,
            snap=1,
            snaps=1,
            seen_tai=raw.seen_tai,
            file_id=file_id(path),
        )
        assert began <= raw.seen_tai <= Clock().tai()


@pytest.mark.usefixtures("no_quiet")
async def test_a_file_is_checked_while_it_is_written_and_not_delivered_before_it_is_closed(
    tmp_path, monkeypatch
):
    content, checks = fits_file(), count_calls(monkeypatch, files, "read_state")
    async with arriving(tmp_path, scan_s=0.1) as catcher:
        exposure = Exposure(tmp_path)
        exposure.put_sidecar()
        await catcher.watching()
        with exposure.image().open("wb") as file:
            for start in range(0, len(content) - 2880, 2880):
                file.write(content[start : start + 2880])
                file.flush()
                before = len(checks)
                await catcher.until(lambda: len(checks) > before + 1)  # noqa: B023
                assert catcher.raws == []
            file.write(content[-2880:])
        await catcher.one()


@pytest.mark.usefixtures("no_quiet")
async def test_a_file_opened_twice_is_not_delivered_with_its_header_alone(tmp_path, monkeypatch):
    content, checks = fits_file(), count_calls(monkeypatch, files, "read_state")
    async with arriving(tmp_path) as catcher:
        exposure = Exposure(tmp_path)
        exposure.put_sidecar()
        await catcher.watching()
        exposure.image().write_bytes(content[:2880])
        await catcher.until(lambda: len(checks) > 3)
        assert catcher.raws == []
        with exposure.image().open("ab") as file:
            file.write(content[2880:])
        await catcher.one()


async def test_a_hard_linked_raw_is_delivered(tmp_path):
    async with arriving(tmp_path) as catcher:
        exposure = Exposure(tmp_path)
        exposure.put_sidecar()
        (tmp_path / "staged").write_bytes(fits_file())
        await catcher.watching()
        exposure.image().hardlink_to(tmp_path / "staged")
        await catcher.one()


async def test_a_truncated_raw_is_delivered_after_its_quiet_time(tmp_path):
    async with arriving(tmp_path) as catcher:
        exposure = Exposure(tmp_path)
        exposure.folder.mkdir(parents=True)
        await catcher.watching()
        began = time.monotonic()
        exposure.put(94, fits_file()[:-4000])
        raw = await catcher.one()
        assert time.monotonic() - began >= 2.0
        assert raw.group == GROUP
        assert catcher.count("delivered_broken") == 1


async def test_a_raw_that_comes_back_while_it_is_abandoned_is_delivered(tmp_path, monkeypatch):
    monkeypatch.setattr("ppdaemon.node.arrivals.pending.MISSING_S", 0.0)
    read_state, exposure = files.read_state, Exposure(tmp_path)
    states: list[FileState] = []
    async with arriving(tmp_path) as catcher:
        exposure.put_sidecar()
        await catcher.watching()

        def read(paths: Sequence[RawPath], **order: bool) -> FileState:
            """Find it gone; at once it is here again, and reported."""
            if states:
                return read_state(paths, **order)
            exposure.image().unlink()
            states.append(read_state(paths, **order))
            (pending,) = catcher.arrivals._completion._pending.values()
            pending._reported = False
            exposure.put(94, sidecar=False)
            wait_until(lambda: pending._reported)
            return states[0]

        monkeypatch.setattr(files, "read_state", read)
        exposure.put(94, sidecar=False)
        await catcher.one()
        assert [found.file for found in states] == [None]


@pytest.mark.usefixtures("no_quiet")
@pytest.mark.parametrize("touch", ["chmod", "link"])
async def test_a_preallocated_file_that_is_still_written_is_not_taken_for_one_renamed_into_place(
    tmp_path, monkeypatch, touch
):
    content = fits_file()
    exposure = Exposure(tmp_path)
    exposure.put_sidecar()
    with exposure.image().open("wb") as file:
        # As long as its headers promise from the beginning.
        file.write(content[:2880].ljust(len(content), b"\0"))
        file.flush()
        while not seems_renamed(exposure.image()):  # within a tick, the time stamps are the same
            if touch == "chmod":
                exposure.image().chmod(0o644)
            else:
                exposure.image().with_suffix(f".{uuid.uuid4()}").hardlink_to(exposure.image())
        checks = count_calls(monkeypatch, files, "read_state")
        async with arriving(tmp_path, watch="poll", scan_s=0.1) as catcher:
            await catcher.until(lambda: len(checks) > 2)
            assert not catcher.raws
            file.seek(2880)
            file.write(content[2880:])
            file.close()
            await catcher.one()


@pytest.mark.usefixtures("no_quiet")
async def test_a_file_that_was_written_before_the_watch_is_taken_when_nobody_has_it_open(tmp_path):
    exposure = Exposure(tmp_path)
    exposure.put_sidecar()
    exposure.image().write_bytes(fits_file())
    async with arriving(tmp_path) as catcher:
        await catcher.one()


async def test_when_events_were_lost_no_close_event_is_awaited(tmp_path, monkeypatch):
    # So long would it be awaited.
    monkeypatch.setattr("ppdaemon.node.arrivals.pending.QUIET_UNCONFIRMED_S", 3.0 * DEADLINE_S)
    async with arriving(tmp_path) as catcher:
        exposure = Exposure(tmp_path)
        exposure.put_sidecar()
        await catcher.watching()
        with exposure.image().open("wb") as file:
            file.write(fits_file())
            file.flush()
            await catcher.until(lambda: source(catcher, "inotify").files)
            catcher.arrivals._sources[str(tmp_path)].on_events_lost("overflow")
            await catcher.one()


async def test_incomplete_files_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("ppdaemon.node.arrivals.completion.MAX_PENDING", 3)
    async with arriving(tmp_path) as catcher:
        exposure = Exposure(tmp_path)
        exposure.folder.mkdir(parents=True)
        for detector in range(6):
            exposure.image(detector).write_bytes(b"SIMPLE  =")
        await catcher.until(lambda: catcher.count("dropped") >= 3)
        assert sum(source.files for source in catcher.arrivals.report()) == 3
