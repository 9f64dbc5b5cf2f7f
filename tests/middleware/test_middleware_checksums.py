# SPDX-License-Identifier: BSD-3-Clause
"""Spooled files on their way to the datastore: copied, or linked where nothing else can change them."""

import errno
import mmap
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from lsst.daf.butler import DataCoordinate, DatasetRef, DatasetType, DimensionUniverse

from ppdaemon.errors import BadMessage
from ppdaemon.middleware.butler.datafiles import LocatedFile
from ppdaemon.middleware.export import checksums
from ppdaemon.middleware.export.checksums import checksum_of, copy_checked, copy_with_checksum, facts_of_new
from ppdaemon.middleware.export.outputs import SelectedOutputs
from ppdaemon.middleware.run.engine import PipelineRun


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a spooled file."""
    path = tmp_path / "spooled"
    path.write_bytes(bytes(range(256)) * 1000)
    return path


def bring(file: Path, target: Path) -> bool:
    """Copy or link a file; return whether it was copied."""
    return copy_checked(
        str(file), str(target), file.stat().st_size, checksum_of(file), facts_of_new(target.parent)
    )


def test_a_file_that_nothing_else_can_change_is_linked(file: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    assert not bring(file, target)
    assert target.samefile(file)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["spooled", "target"]
    with file.open("r+b"):
        pass  # no lease is left


def test_a_linked_file_is_synced_unless_it_is_as_it_was_then(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    written_ns = file.stat().st_ctime_ns

    def bring_again(name: str) -> int:
        synced.clear()
        time.sleep(0.02)  # a tick of the clock, before Linux 6.13
        (tmp_path / "target").unlink(missing_ok=True)
        source, facts = tmp_path / name, facts_of_new(tmp_path)
        size_bytes = source.stat().st_size
        assert not copy_checked(str(source), str(tmp_path / "target"), size_bytes, "", facts, written_ns)
        return len(synced)

    assert bring_again("spooled") == 0
    time.sleep(0.02)
    shutil.copy2(file, tmp_path / "copy")
    assert bring_again("copy") == 1, "a copy has the time of its content's change, but not this one"
    assert bring_again("spooled") == 1, "it had another name meanwhile"


def map_writable(file: Path) -> Any:
    """Map a file; the descriptor that was used for it is closed."""
    with file.open("r+b") as stream:
        return mmap.mmap(stream.fileno(), 0)


@pytest.mark.parametrize(
    "keep",
    [
        lambda file: file.open("r+b"),
        map_writable,
        lambda file: os.link(file, file.with_name("other")),
        lambda file: file.chmod(0o600),
    ],
    ids=["open", "mapped", "another name", "another mode"],
)
def test_a_file_that_something_else_can_change_or_that_differs_from_a_new_one_is_copied(
    file: Path, tmp_path: Path, keep: Callable[[Path], Any]
) -> None:
    file.chmod(0o644)
    target, kept = tmp_path / "target", keep(file)
    try:
        assert bring(file, target)
    finally:
        if hasattr(kept, "close"):
            kept.close()
    assert not target.samefile(file)
    assert target.read_bytes() == file.read_bytes()


def test_a_file_with_another_label_than_a_new_one_is_copied(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = iter((b"new", b"spooled", b"new", b"new"))
    monkeypatch.setattr(os, "listxattr", lambda descriptor: ["security.selinux"])
    monkeypatch.setattr(os, "getxattr", lambda descriptor, name: next(labels))
    assert bring(file, tmp_path / "copy")
    assert not bring(file, tmp_path / "link")


@pytest.mark.parametrize("code", [errno.EXDEV, errno.ENOSYS])
def test_where_no_link_can_be_made_the_file_is_copied(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    assert bring(file, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == file.read_bytes()


def test_a_changed_file_gets_no_other_name(file: Path, tmp_path: Path) -> None:
    checksum = checksum_of(file)
    with file.open("r+b") as stream:
        stream.write(b"ten bytes.")
    for linkable in (None, facts_of_new(tmp_path)):
        with pytest.raises(BadMessage, match="was changed in the spool: its checksum is crc32:"):
            copy_checked(str(file), str(tmp_path / "target"), file.stat().st_size, checksum, linkable)
    assert [path.name for path in tmp_path.iterdir()] == ["spooled"]


@pytest.mark.parametrize("how", ["compared", "copied", "linked"])
@pytest.mark.parametrize("content", [b"", b"cut", bytes(range(256)) * 1001])
def test_a_file_of_another_size_gets_no_other_name_even_if_its_checksum_was_removed(
    file: Path, tmp_path: Path, content: bytes, how: str
) -> None:
    size_bytes = file.stat().st_size
    file.write_bytes(content)
    target = None if how == "compared" else str(tmp_path / "target")
    linkable = facts_of_new(tmp_path) if how == "linked" else None
    with pytest.raises(BadMessage, match=f"has {len(content)} bytes, not {size_bytes}"):
        copy_checked(str(file), target, size_bytes, "", linkable)
    assert [path.name for path in tmp_path.iterdir()] == ["spooled"]


@pytest.mark.parametrize("moment", ["_compare", "_has_lease"])
def test_a_file_that_another_process_waits_to_write_to_is_copied(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    original, refused = getattr(checksums, moment), []

    def while_another_opens(*args: Any) -> Any:
        try:
            os.close(os.open(file, os.O_WRONLY | os.O_NONBLOCK))
        except BlockingIOError as error:
            refused.append(error)  # and this process got a signal, which does not end it
        return original(*args)

    monkeypatch.setattr(checksums, moment, while_another_opens)
    target = tmp_path / "target"
    assert bring(file, target)
    assert refused
    assert not target.samefile(file)
    assert target.read_bytes() == file.read_bytes()


def test_why_no_file_can_be_made_in_the_datastore_is_raised(tmp_path: Path) -> None:
    (tmp_path / "facts").mkdir()
    with pytest.raises(FileExistsError):
        facts_of_new(tmp_path)


def test_a_copy_has_the_checksum_of_its_content_and_replaces_nothing(file: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    assert copy_with_checksum(str(file), str(target)) == checksum_of(file) == checksum_of(target)
    assert target.read_bytes() == file.read_bytes()
    with pytest.raises(FileExistsError):
        copy_with_checksum(str(file), str(target))


def test_the_disk_begins_with_an_output_before_the_next_one_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(folder: Path) -> Iterator[LocatedFile]:
        for name in "ab":
            (folder / name).write_text(name)
            steps.append(f"{name} is made")
            yield LocatedFile(folder / name, "formatter", (ref,))

    def begin_sync_of(descriptor: int) -> None:
        steps.append(f"{Path(f'/proc/self/fd/{descriptor}').readlink().name} begins")

    steps: list[str] = []
    universe = DimensionUniverse()
    kind = DatasetType("catalog", (), "StructuredDataDict", universe=universe)
    ref = DatasetRef(kind, DataCoordinate.make_empty(universe), run="run")
    monkeypatch.setattr(checksums, "begin_sync_of", begin_sync_of)
    files = SelectedOutputs((), cast(PipelineRun, SimpleNamespace(write=write))).fill(tmp_path)
    assert steps == ["a is made", "a begins", "b is made", "b begins"]
    assert [(file.name, file.size_bytes, file.checksum, file.changed_ns) for file in files] == [
        (name, 1, checksum_of(tmp_path / name), (tmp_path / name).stat().st_ctime_ns) for name in "ab"
    ]


def test_a_file_of_the_repo_stays_what_it_is_when_it_is_copied_to_the_spool(
    file: Path, tmp_path: Path
) -> None:
    universe = DimensionUniverse()
    kind = DatasetType("image", (), "StructuredDataDict", universe=universe)
    ref = DatasetRef(kind, DataCoordinate.make_empty(universe), run="run")
    source = file.rename(tmp_path / "image.fits.gz")
    folder = tmp_path / "spool"
    folder.mkdir()
    run = cast(PipelineRun, SimpleNamespace(write=lambda folder: ()))
    (spooled,) = SelectedOutputs((LocatedFile(source, "formatter", (ref,), plain=True),), run).fill(folder)
    assert (spooled.name, spooled.plain) == (f"{ref.id}.fits.gz", True)
    assert (folder / spooled.name).read_bytes() == source.read_bytes()
    assert spooled.checksum == checksum_of(source)
