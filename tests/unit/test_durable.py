# SPDX-License-Identifier: BSD-3-Clause
"""Files that survive the machine."""

import os

import pytest

from ppdaemon.durable import write_durably


def test_the_file_is_on_the_disk_before_its_name(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    write_durably(tmp_path / "mark", "why")
    assert (tmp_path / "mark").read_text() == "why"
    assert synced == [str(tmp_path / "mark"), str(tmp_path)]


def test_a_file_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_durably(tmp_path / "missing" / "mark", "why")
