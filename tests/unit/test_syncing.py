# SPDX-License-Identifier: BSD-3-Clause
"""Many files that are synced at once."""

import errno
import os
import threading

import pytest

from ppdaemon.middleware.export.syncing import sync_all
from ppdaemon.testing.waiting import TIMEOUT_S


def synced_by(paths, monkeypatch, takes_s):
    """Return what each thread has synced of some files, each of which takes some time."""

    def sync(descriptor: int) -> None:
        synced.setdefault(threading.current_thread(), []).append(os.readlink(f"/proc/self/fd/{descriptor}"))
        now[0] += takes_s
        if threading.current_thread() is not threading.main_thread():
            together.wait()

    now, together = [0.0], threading.Barrier(len(paths) - 2, timeout=TIMEOUT_S)
    synced: dict[threading.Thread, list[str]] = {}
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", sync)
        sync_all(paths, clock=lambda: now[0])
    return synced.pop(threading.main_thread()), [path for names in synced.values() for path in names]


def test_all_files_are_on_the_disk_and_threads_wait_for_a_busy_one(tmp_path, monkeypatch):
    for name in "abc":
        (tmp_path / name).write_text(name)
    paths = [*(tmp_path / name for name in "abc"), tmp_path]
    names = list(map(str, paths))
    assert synced_by(paths, monkeypatch, 0.0001) == (names, [])
    alone, together = synced_by(paths, monkeypatch, 0.01)
    assert (alone, set(together)) == (names[:2], set(names[2:]))


def test_a_file_that_is_missing_is_an_error(tmp_path):
    (tmp_path / "a").write_text("a")
    with pytest.raises(FileNotFoundError):
        sync_all([tmp_path / "a", tmp_path / "missing"])


def test_there_may_be_no_files():
    sync_all([])


@pytest.mark.parametrize("busy", [False, True])
def test_an_error_of_any_file_is_raised(tmp_path, monkeypatch, busy):
    def sync(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("/c"):
            raise OSError(errno.EIO, "Input/output error")

    for name in "abcd":
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(OSError, match="Input/output error"):
        sync_all(
            [tmp_path / name for name in "abcd"], clock=map(float, range(100)).__next__ if busy else float
        )
