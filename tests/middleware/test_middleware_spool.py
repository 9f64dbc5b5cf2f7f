# SPDX-License-Identifier: BSD-3-Clause
"""When a spool has its name, and when it is on the disk."""

import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from ppdaemon.middleware.export.manifest import MANIFEST, SpooledFile, SpoolKey
from ppdaemon.middleware.export.spool import OpenFiles, write_spool
from ppdaemon.middleware.export.syncing import AT_ONCE

KEY = SpoolKey(instrument="Cam", group="g", detector=1, attempt=1)


def fill(number: int) -> Callable[[Path], Iterable[SpooledFile]]:
    def write(folder: Path) -> Iterable[SpooledFile]:
        for k in range(number):
            (folder / str(k)).write_text("content")
            yield SpooledFile(str(k), 7, "", "a.B", ())

    return write


class Steps:
    """Notes in which order a spool is written, named, and synced."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.done: list[str] = []
        self.synced: list[str] = []
        self._rename, self._wait = Path.rename, OpenFiles.wait_until_written
        self._sync = OpenFiles.sync
        monkeypatch.setattr(Path, "rename", lambda path, target: self.rename(path, target))
        monkeypatch.setattr(OpenFiles, "wait_until_written", lambda files: self.wait(files))
        monkeypatch.setattr(OpenFiles, "sync", lambda files: self.sync(files))

    def rename(self, path: Path, target: Path) -> Path:
        self.done.append("named" if target.name == KEY.folder else "withdrawn")
        return self._rename(path, target)

    def wait(self, files: OpenFiles) -> None:
        self.done.append("written")
        self._wait(files)

    def sync(self, files: OpenFiles) -> None:
        self.done.append("synced")
        self._sync(files)
        self.synced += [Path(path).name for path in files.paths]

    def commit(self) -> None:
        self.done.append("allowed")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(monkeypatch)


def write(folder: Path, number: int, steps: Steps) -> Path:
    return write_spool(folder, KEY, fill(number), [], {}, may_commit=steps.commit)


def test_a_spool_has_its_name_when_its_content_is_written_and_is_synced_with_it(
    tmp_path: Path, steps: Steps
) -> None:
    """After a power failure there is a complete spool, or none under its name; when the worker is free, all
    of it and its name are on the disk.
    """
    spool = write(tmp_path, 3, steps)
    assert steps.done == ["written", "allowed", "named", "synced"], "the disk is waited for once"
    assert sorted(steps.synced) == sorted(["0", "1", "2", MANIFEST, f"{KEY.folder}.part", tmp_path.name])
    assert sorted(path.name for path in spool.iterdir()) == ["0", "1", "2", MANIFEST]


@pytest.mark.parametrize("number", [AT_ONCE - 4, AT_ONCE - 3, AT_ONCE - 2, 3 * AT_ONCE])
def test_of_many_files_all_are_synced_once_and_never_is_more_open_than_one_request_takes(
    tmp_path: Path, steps: Steps, number: int
) -> None:
    write(tmp_path, number, steps)
    before = steps.done[: steps.done.index("written")]
    assert before == ["synced"] * len(before)
    assert len(before) == max(0, -(-(number + 3 - AT_ONCE) // AT_ONCE))
    assert steps.done[len(before) :] == ["written", "allowed", "named", "synced"]
    names = [*map(str, range(number)), MANIFEST, f"{KEY.folder}.part", tmp_path.name]
    assert sorted(steps.synced) == sorted(names)


@pytest.mark.parametrize("step", ["wait_until_written", "sync"])
def test_of_a_spool_that_the_disk_does_not_take_nothing_is_left(
    tmp_path: Path, steps: Steps, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def refuse(files: OpenFiles) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(OpenFiles, step, refuse)
    with pytest.raises(OSError, match="Input/output error"):
        write(tmp_path, 2, steps)
    assert list(tmp_path.iterdir()) == []
    assert steps.done == (
        [] if step == "wait_until_written" else ["written", "allowed", "named", "withdrawn"]
    )


def test_a_spool_that_may_not_be_named_is_not(tmp_path: Path, steps: Steps) -> None:
    def refuse() -> None:
        raise RuntimeError("another node has it")

    with pytest.raises(RuntimeError, match="another node"):
        write_spool(tmp_path, KEY, fill(2), [], {}, may_commit=refuse)
    assert (steps.done, list(tmp_path.iterdir())) == (["written"], [])


def test_an_image_that_a_packer_replaces_meanwhile_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace(files: OpenFiles) -> None:
        spool = tmp_path / KEY.folder
        (spool / "0").rename(spool / "packed-0")
        (spool / "1").unlink()
        sync(files)

    sync = OpenFiles.sync
    monkeypatch.setattr(OpenFiles, "sync", replace)
    spool = write_spool(tmp_path, KEY, fill(3), [], {})
    assert sorted(path.name for path in spool.iterdir()) == ["2", MANIFEST, "packed-0"]


def test_no_descriptor_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(files: OpenFiles) -> None:
        raise OSError(errno.EIO, "Input/output error")

    before = os.listdir("/proc/self/fd")
    write_spool(tmp_path / "first", KEY, fill(3), [], {})
    monkeypatch.setattr(OpenFiles, "sync", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        write_spool(tmp_path / "second", KEY, fill(3), [], {})
    assert os.listdir("/proc/self/fd") == before
