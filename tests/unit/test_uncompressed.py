# SPDX-License-Identifier: BSD-3-Clause
"""Room for uncompressed images, shared by processes."""

import errno
import logging
import multiprocessing
import os
from pathlib import Path

import pytest

from ppdaemon import uncompressed
from ppdaemon.config import ExportConfig
from ppdaemon.folders import NodeFolders
from ppdaemon.node.processes.uncompressedwatch import CALM_S, UncompressedWatch
from ppdaemon.spooling import SpoolDisk
from ppdaemon.uncompressed import Uncompressed, UncompressedRoom


@pytest.fixture(autouse=True)
def _idle_cores(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))


@pytest.fixture
def room(tmp_path):
    (tmp_path / "uncompressed").mkdir()
    return UncompressedRoom(tmp_path / "uncompressed", tmp_path, 4, 1000)


SPOOL = "Cam~g%201~7~1"


def test_there_is_room_for_so_many_bytes_and_images(room):
    assert [room.take(SPOOL, str(number), 400) for number in range(3)] == [True, True, False]
    assert room.used() == Uncompressed(2, 800)
    assert [room.take("Cam~g~8~1", str(number), 50) for number in range(3)] == [True, True, False]
    assert room.used() == Uncompressed(4, 900)
    assert room.declined() == 2
    room.give_back(SPOOL)
    assert room.used() == Uncompressed(2, 100)
    assert room.take(SPOOL, "3", 900)


@pytest.mark.parametrize("limits", [(0, 1000), (10, 0)])
def test_without_packers_or_a_size_nothing_is_declined(room, limits):
    none = UncompressedRoom(room.folder, room.spool, *limits)
    assert not none.take(SPOOL, "0", 1)
    assert (none.used().images, none.declined()) == (0, 0)


def _take(room, barrier, taken):
    barrier.wait()
    taken.put(sum(room.take(SPOOL, f"{os.getpid()}-{number}", 100) for number in range(20)))


def test_processes_that_take_room_at_once_never_take_more(tmp_path):
    (tmp_path / "uncompressed").mkdir()
    room = UncompressedRoom(tmp_path / "uncompressed", tmp_path, 100, 1000)
    fork = multiprocessing.get_context("fork")
    barrier, taken = fork.Barrier(4), fork.Queue()
    processes = [fork.Process(target=_take, args=(room, barrier, taken)) for _ in range(4)]
    for process in processes:
        process.start()
    numbers = [taken.get(timeout=30) for _ in processes]
    for process in processes:
        process.join()
    assert 0 < sum(numbers) == room.used().images <= 10


def test_an_image_that_is_counted_again_never_loses_its_room(room, monkeypatch):
    opened, taken = Path.open, []

    def open_and_take(path, *args):
        file = opened(path, *args)
        with monkeypatch.context() as taking:
            taking.setattr(Path, "open", opened)
            taken.append(room.take(SPOOL, "1", 901))
        return file

    assert room.take(SPOOL, "0", 900)
    with monkeypatch.context() as counting:
        counting.setattr(Path, "open", open_and_take)
        room.note(SPOOL, "0", 900)
    assert (taken, room.used()) == ([False], Uncompressed(1, 900))


def test_half_of_the_free_disk_stays_free(room, monkeypatch):
    room = UncompressedRoom(room.folder, room.spool, 4, 10**18)
    disk = os.statvfs(room.spool)
    monkeypatch.setattr(uncompressed.os, "statvfs", lambda folder: disk)  # others use it, too
    free = disk.f_bavail * disk.f_frsize
    assert not room.take(SPOOL, "0", int(0.6 * free))
    assert room.take(SPOOL, "0", int(0.3 * free))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.ENOENT, errno.EIO])
def test_workers_compress_where_room_cannot_be_taken(room, monkeypatch, code):
    def fail(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(uncompressed.os, "statvfs", fail)
    assert not room.take(SPOOL, "0", 1)
    assert room.used().images == 0


def test_workers_compress_while_all_cores_are_busy(room, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (float(os.cpu_count() or 1), 0.0, 0.0))
    assert not room.take(SPOOL, "0", 1)
    assert (room.used().images, room.declined()) == (0, 1)


def test_without_its_folder_there_is_no_room(room):
    room.folder.rmdir()
    assert not room.take(SPOOL, "0", 1)
    assert (room.used(), room.declined()) == (Uncompressed(0, 0), 0)
    room.close()
    room.open()


def test_what_has_no_spool_for_long_gives_its_room_back(room):
    for spool in ("a", "b", "c"):
        assert room.take(spool, "0", 1)
    for spool in ("a", "b"):
        os.utime(room.folder / f"{spool}~0", (1, 1))
    room.give_back_stale({"a"}, 600.0)
    assert sorted(path.name for path in room.folder.iterdir()) == ["a~0", "c~0"]


@pytest.mark.parametrize("failing", ["scandir", "unlink"])
@pytest.mark.parametrize("code", [errno.EMFILE, errno.EACCES, errno.EIO])
def test_room_that_cannot_be_given_back_is_given_back_later(room, monkeypatch, failing, code):
    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    assert room.take(SPOOL, "0", 1)
    os.utime(room.folder / f"{SPOOL}~0", (1, 1))
    with monkeypatch.context() as failed:
        failed.setattr(os, failing, fail)
        room.give_back(SPOOL)
        room.give_back_stale((), 600.0)
    assert room.used().images == 1
    room.give_back_stale((), 600.0)
    assert room.used().images == 0


def test_uncompressed_images_take_a_quarter_of_other_limits():
    assert ExportConfig().uncompressed_bytes == 2_000_000_000
    assert ExportConfig(spill_max=1000).uncompressed_bytes == 250
    assert ExportConfig(spill_max=1000, ramdisk_max=400).uncompressed_bytes == 100
    assert ExportConfig(spill_max=1000, uncompressed_max=0).uncompressed_bytes == 0


@pytest.fixture
def folders(tmp_path):
    folders = NodeFolders(tmp_path / "ram", tmp_path / "state")
    for folder in (folders.uncompressed, folders.spool):
        folder.mkdir(parents=True)
    return folders


def test_the_room_is_closed_while_half_of_the_spill_limit_waits(folders):
    watch, config = UncompressedWatch(folders), ExportConfig(spill_max=10_000)
    room = UncompressedRoom.of(folders.uncompressed, folders.spool, config)
    watch.update(config, SpoolDisk(5001, 10_000), 0.0)
    assert not room.take(SPOOL, "0", 1)
    watch.update(config, SpoolDisk(4999, 10_000), 1.0)
    assert room.take(SPOOL, "0", 1)
    report = watch.report
    assert (report.images, report.declined, report.declining, report.max_mb) == (0, 1, True, 0.0025)


@pytest.mark.parametrize("failing", ["scandir", "unlink", "stat", "getloadavg"])
@pytest.mark.parametrize("code", [errno.EMFILE, errno.EACCES, errno.EIO])
def test_a_room_that_cannot_be_read_keeps_its_last_report(folders, monkeypatch, failing, code):
    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    watch, config = UncompressedWatch(folders), ExportConfig(uncompressed_max=100)
    room = UncompressedRoom.of(folders.uncompressed, folders.spool, config)
    assert [room.take(SPOOL, str(number), 60) for number in range(2)] == [True, False]
    watch.update(config, SpoolDisk(0, None), 0.0)
    before = watch.report
    assert (before.images, before.declined) == (1, 1)
    with monkeypatch.context() as failed:
        failed.setattr(os, failing, fail)
        watch.update(config, SpoolDisk(0, None), 2.0 * CALM_S)
    assert watch.report == before
    watch.update(config, SpoolDisk(0, None), 2.0 * CALM_S)
    assert not watch.report.declining


def test_a_switch_is_logged_once_in_each_direction(folders, caplog):
    caplog.set_level(logging.INFO)
    watch, config = UncompressedWatch(folders), ExportConfig(uncompressed_max=100)
    room = UncompressedRoom.of(folders.uncompressed, folders.spool, config)
    disk = SpoolDisk(0, None)
    for now in range(5):
        room.take(SPOOL, str(now), 60)
        watch.update(config, disk, float(now))
    assert (watch.report.images, watch.report.declined, watch.report.declining) == (1, 4, True)
    watch.update(config, disk, 4.0 + CALM_S)
    (switch,) = caplog.messages
    assert "more export.packers help while cores are idle; 1 image (60 B) wait uncompressed" in switch
    watch.update(config, disk, 5.0 + CALM_S)
    watch.update(config, disk, 6.0 + CALM_S)
    assert not watch.report.declining
    assert caplog.messages[1:] == ["workers spool images uncompressed again; 1 wait for packers"]
