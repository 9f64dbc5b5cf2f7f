# SPDX-License-Identifier: BSD-3-Clause
"""Files that survive the machine."""

import errno
import os
import threading

import pytest

from ppdaemon.durable import sync_all, write_durably
from ppdaemon.testing.waiting import TIMEOUT_S


def test_the_file_is_on_the_disk_before_its_name(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    write_durably(tmp_path / "mark", "why")
    assert (tmp_path / "mark").read_text() == "why"
    assert synced == [str(tmp_path / "mark"), str(tmp_path)]


def test_a_file_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_durably(tmp_path / "missing" / "mark", "why")


def test_all_files_are_on_the_disk_or_it_is_an_error(tmp_path, monkeypatch):
    def sync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        if len(synced) > 1:
            together.wait()

    synced: list[str] = []
    together = threading.Barrier(2, timeout=TIMEOUT_S)
    monkeypatch.setattr(os, "fsync", sync)
    for name in "ab":
        (tmp_path / name).write_text(name)
    sync_all([tmp_path / "a", tmp_path / "b", tmp_path])
    assert (synced[0], set(synced)) == (
        str(tmp_path / "a"),
        {str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path)},
    )
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError):
        sync_all([tmp_path / "a", tmp_path / "missing"])


def test_there_may_be_no_files():
    sync_all([])


def test_an_error_of_any_file_is_raised(tmp_path, monkeypatch):
    def sync(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("/c"):
            raise OSError(errno.EIO, "Input/output error")

    for name in "abcd":
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(OSError, match="Input/output error"):
        sync_all([tmp_path / name for name in "abcd"])
