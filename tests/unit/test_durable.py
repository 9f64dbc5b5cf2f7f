# SPDX-License-Identifier: BSD-3-Clause
"""Files that survive the machine."""

import ctypes
import errno
import os
from types import SimpleNamespace

import pytest

from ppdaemon import durable
from ppdaemon.durable import wait_until_written, write_durably


def test_the_file_is_on_the_disk_before_its_name(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    write_durably(tmp_path / "mark", "why")
    assert (tmp_path / "mark").read_text() == "why"
    assert synced == [str(tmp_path / "mark"), str(tmp_path)]


def test_a_file_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_durably(tmp_path / "missing" / "mark", "why")


def answer(monkeypatch, error):
    """Let the kernel answer with an error; return the flags that it gets."""
    flags = []

    def sync_file_range(descriptor, offset, size, asked):
        flags.append(asked)
        ctypes.set_errno(error)
        return -1

    monkeypatch.setattr(durable, "_LIBC", SimpleNamespace(sync_file_range=sync_file_range))
    return flags


def test_a_file_that_the_disk_does_not_take_is_an_error(tmp_path, monkeypatch):
    flags = answer(monkeypatch, errno.EIO)
    with (tmp_path / "file").open("wb") as file, pytest.raises(OSError, match="Input/output error"):
        wait_until_written(file.fileno())
    assert flags == [7], "begin, and wait for what was begun before and now"


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.ESPIPE, errno.EINVAL, errno.EOPNOTSUPP])
def test_where_the_kernel_cannot_wait_for_content_the_file_is_synced(tmp_path, monkeypatch, error):
    answer(monkeypatch, error)
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    with (tmp_path / "file").open("wb") as file:
        wait_until_written(file.fileno())
        assert synced == [file.fileno()]


def test_the_content_of_files_and_the_names_in_folders_are_waited_for(tmp_path):
    with (tmp_path / "file").open("wb") as file:
        file.write(b"a" * 100_000)
        file.flush()
        wait_until_written(file.fileno())
    folder = os.open(tmp_path, os.O_RDONLY)
    wait_until_written(folder)
    os.close(folder)
