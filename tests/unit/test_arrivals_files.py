# SPDX-License-Identifier: BSD-3-Clause
"""Reading files: which are opened, which are refused, and the facts in them."""

import errno
import fcntl
import gc
import json
import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from ppdaemon.errors import BadMessage
from ppdaemon.node.arrivals import files
from ppdaemon.node.arrivals.files import (
    ExposureFacts,
    expected_sensors,
    facts_of_image,
    facts_of_sidecar,
    read_sidecars,
    read_state,
    read_states,
)
from ppdaemon.node.arrivals.pending import FileState
from ppdaemon.node.arrivals.roots import RawPath
from ppdaemon.raws import files as raws_files
from ppdaemon.raws.files import OpenFolders
from ppdaemon.testing.raws import small_fits

CASES = Path(__file__).parents[1] / "data" / "raws"
GROUP = "2025-11-22T03:25:16.951"


def fits(group: str = GROUP) -> bytes:
    return small_fits(f"GROUPID = '{group}'", "CURINDEX=                    1")


def put(path: Path, content: bytes = b"") -> RawPath:
    """Write a file of the root ``raw``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return RawPath(str(next(parent for parent in path.parents if parent.name == "raw")), str(path))


def state_of(*paths: RawPath) -> FileState:
    return checked(paths, structure=True)


def checked(paths: Sequence[RawPath], **order: bool) -> FileState:
    with OpenFolders() as folders:
        return read_state(paths, folders=folders, **order)


def test_an_intact_file_is_intact_with_any_ending(tmp_path):
    place = put(tmp_path / "raw/a/x.fits", fits())
    os.link(place.path, tmp_path / "raw/a/hard.fits")
    (tmp_path / "raw/a/soft.fits").symlink_to("x.fits")
    (tmp_path / "raw/b").symlink_to("a")
    for path in ("a/x.fits", "a/hard.fits", "a/soft.fits", "b/x.fits"):
        found = state_of(RawPath(place.root, f"{place.root}/{path}"))
        assert found.intact
        assert found.read
        assert found.size == 5760


def test_the_first_existing_path_is_checked(tmp_path):
    place = put(tmp_path / "raw/x.fits", fits())
    missing = RawPath(place.root, f"{place.root}/y.fits")
    assert state_of(missing, place).file == place
    assert state_of(missing).file is None


def test_fault_18_empty_cut_and_foreign_files_are_not_intact_and_the_problem_is_reported(tmp_path):
    for content, problem in ((b"", "empty"), (fits()[:-2880], "ends at byte"), (b"x" * 9, "not a header")):
        found = state_of(put(tmp_path / "raw/x.fits", content))
        assert not found.intact
        assert problem in found.problem
    assert not state_of(
        put(
            tmp_path / "raw/x.fits",
            fits()[:2880].replace(b"NAXIS   =                    1", b"NAXIS   =                    0"),
        )
    ).intact


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read all files")
def test_fault_21_a_file_without_permission_is_not_intact(tmp_path):
    place = put(tmp_path / "raw/x.fits", fits())
    os.chmod(place.path, 0)
    assert "cannot be read: Permission denied" in state_of(place).problem


def test_a_small_file_is_read_whole_also_in_parts_and_a_large_one_to_a_byte_above_the_limit(
    tmp_path, monkeypatch
):
    place = put(tmp_path / "raw/x.json", b"0123456789")
    read = os.read
    monkeypatch.setattr(os, "read", lambda descriptor, size: read(descriptor, min(size, 4)))
    for limit, content in ((10, b"0123456789"), (11, b"0123456789"), (9, b"0123456789"), (6, b"0123456")):
        with OpenFolders() as folders:
            assert raws_files.read_raw(place.path, place.root, limit, folders) == content
    place = put(tmp_path / "raw/empty.json")
    with OpenFolders() as folders:
        assert raws_files.read_raw(place.path, place.root, 10, folders) == b""


def test_a_raw_is_read_from_any_position(tmp_path):
    place = put(tmp_path / "raw/x.fits", content := os.urandom(40_000))
    with raws_files.open_raw(place.path, place.root) as file:
        assert file.seek(0, os.SEEK_END) == len(content)
        assert file.read(1) == b""
        assert file.seek(30_000) == 30_000
        assert file.read(100) == content[30_000:30_100]
        file.seek(-50, os.SEEK_CUR)
        assert file.tell() == 30_050
        assert file.read() == content[30_050:]
        descriptor = file.fileno()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_descriptor_is_closed_once_also_if_that_fails(tmp_path, monkeypatch):
    def fail(descriptor):
        closed.append(descriptor)
        close(descriptor)
        raise OSError(errno.EIO, "Input/output error")

    closed: list[int] = []
    place = put(tmp_path / "raw/x.fits", b"content")
    file = raws_files.open_raw(place.path, place.root)
    descriptor, close = file.fileno(), os.close
    monkeypatch.setattr(os, "close", fail)
    with pytest.raises(OSError, match="Input/output error"):
        file.close()
    file.close()
    del file
    gc.collect()
    assert closed == [descriptor]


def outside(root: Path) -> Path:
    secret = root.parent / "secret"
    secret.mkdir()
    put_path = secret / "x.fits"
    put_path.write_bytes(fits())
    return put_path


def link_of_a_file(root: Path) -> Path:
    (root / "x.fits").symlink_to(outside(root))
    return root / "x.fits"


def relative_link(root: Path) -> Path:
    (root / "x.fits").symlink_to("../secret/x.fits")
    outside(root)
    return root / "x.fits"


def folder_in_the_middle(root: Path) -> Path:
    (root / "LSSTCam").symlink_to(outside(root).parent)
    return root / "LSSTCam" / "x.fits"


def folder_beside_with_the_root_s_name(root: Path) -> Path:
    beside = root.parent / "raw-old"
    beside.mkdir()
    shutil.move(outside(root), beside)
    (root / "LSSTCam").symlink_to(beside)
    return root / "LSSTCam" / "x.fits"


def device(root: Path) -> Path:
    (root / "x.fits").symlink_to("/dev/zero")
    return root / "x.fits"


def fifo(root: Path) -> Path:
    os.mkfifo(root / "x.fits")
    return root / "x.fits"


def folder(root: Path) -> Path:
    (root / "x.fits").mkdir()
    return root / "x.fits"


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (link_of_a_file, "symlink"),
        (relative_link, "symlink"),
        (folder_in_the_middle, "symlink"),
        (folder_beside_with_the_root_s_name, "symlink"),
        (device, "symlink"),
        (fifo, "not_a_file"),
        (folder, "not_a_file"),
    ],
)
def test_fault_17_what_leads_out_or_is_no_file_is_refused_and_never_opened(
    tmp_path: Path, make: Callable[[Path], Path], kind: str, monkeypatch: pytest.MonkeyPatch
):
    root = tmp_path / "raw"
    root.mkdir()
    place = RawPath(str(root), str(make(root)))
    monkeypatch.setattr(raws_files, "_open_checked", pytest.fail)
    for read in (state_of, facts_of_image, facts_of_sidecar, expected_sensors):
        with pytest.raises(BadMessage) as caught:
            read(place)
        assert caught.value.kind == kind
    (root / "i.json").symlink_to(place.path)
    assert read_sidecars([(RawPath(place.root, f"{root}/i.fits"), True)]) == [(False, None)]


def test_a_root_that_is_a_link_is_no_way_out(tmp_path):
    put(tmp_path / "raw/x.fits", fits())
    (tmp_path / "link").symlink_to("raw")
    assert state_of(RawPath(f"{tmp_path}/link", f"{tmp_path}/link/x.fits")).intact
    put(tmp_path / "raw/x.json", json.dumps({"GROUPID": GROUP}).encode())
    image = RawPath(f"{tmp_path}/link", f"{tmp_path}/link/x.fits")
    assert read_sidecars([(image, True), (image, False)]) == [(True, ExposureFacts(GROUP)), (True, None)]


def test_without_a_group_in_the_header_the_own_facts_are_those_of_the_sidecar(tmp_path):
    place = put(tmp_path / "raw/x.fits", small_fits())
    assert state_of(place).facts is None
    put(tmp_path / "raw/x.json", json.dumps({"GROUPID": "g", "CURINDEX": 2}).encode())
    assert state_of(place).facts == ExposureFacts("g", 2)
    put(tmp_path / "raw/x.json", b'{"GROUPID"')  # it is being written
    found = state_of(place)
    assert (found.facts, found.has_sidecar, found.intact) == (None, True, True)
    put(tmp_path / "raw/x.json", json.dumps({"GROUPID": "g"}).encode())
    put(tmp_path / "raw/x.fits", fits("header"))
    assert state_of(place).facts.group == "header"


def test_a_marker_is_checked_beside_the_file(tmp_path):
    place = put(tmp_path / "raw/x.fits", fits())
    marked = RawPath(place.root, place.path, f"{place.path}.done")
    found = state_of(marked)
    assert not found.marked
    assert not found.read
    put(tmp_path / "raw/x.fits.done")
    assert state_of(marked).intact


def test_the_structure_is_read_only_where_that_is_ordered(tmp_path, monkeypatch):
    place = put(tmp_path / "raw/x.fits", fits())
    raw_of_marker = RawPath(place.root, place.path, f"{place.path}.done")
    monkeypatch.setattr(files.fitsblocks, "structure", pytest.fail)
    for path, structure in ((place, False), (raw_of_marker, False), (raw_of_marker, True)):
        found = checked([path], structure=structure)
        assert (found.read, found.size) == (False, 5760)


def test_with_the_structure_the_sidecar_is_checked(tmp_path):
    place = put(tmp_path / "raw/x.fits", fits())
    assert not state_of(place).has_sidecar
    put(tmp_path / "raw/x.json", b"{}")
    assert state_of(place).has_sidecar


def test_a_sidecar_that_is_too_large_is_there_and_not_read(tmp_path):
    place = put(tmp_path / "raw/x.fits", small_fits())
    content = json.dumps({"GROUPID": GROUP}).encode()
    for size, facts in ((files.MAX_SIDECAR, ExposureFacts(GROUP)), (files.MAX_SIDECAR + 1, None)):
        put(tmp_path / "raw/x.json", content.ljust(size))
        assert (state_of(place).has_sidecar, state_of(place).facts) == (True, facts)


def test_the_structure_is_read_at_once_where_nobody_has_the_file_open_for_writing(tmp_path):
    place = put(tmp_path / "raw/x.fits", fits())
    found = checked([place], structure=False, writers=True)
    assert (found.written, found.intact) == (False, True)
    with open(place.path, "rb"):
        assert checked([place], structure=False, writers=True).written is False
    with open(place.path, "r+b"):
        found = checked([place], structure=False, writers=True)
        assert (found.written, found.read) == (True, False)


def test_a_mapping_for_writing_counts_after_its_file_was_closed(tmp_path):
    place = put(tmp_path / "raw/x.fits", fits())
    with open(place.path, "r+b") as file:
        mapping = mmap.mmap(file.fileno(), 0)
    assert checked([place], structure=False, writers=True).written is True
    mapping.close()
    assert checked([place], structure=False, writers=True).written is False


def test_a_writer_that_opens_the_file_during_the_check_does_not_end_this_process(tmp_path, monkeypatch):
    place, real, refused = put(tmp_path / "raw/x.fits", fits()), fcntl.fcntl, []

    def open_before_the_lease_is_given_back(descriptor, command, value):
        if (command, value) == (fcntl.F_SETLEASE, fcntl.F_UNLCK):
            with pytest.raises(BlockingIOError) as refusal:
                os.open(place.path, os.O_WRONLY | os.O_NONBLOCK)
            refused.append(refusal)
        return real(descriptor, command, value)

    monkeypatch.setattr(fcntl, "fcntl", open_before_the_lease_is_given_back)
    assert checked([place], structure=False, writers=True).written is False
    assert refused
    os.close(os.open(place.path, os.O_WRONLY | os.O_NONBLOCK))


def test_a_file_with_a_lease_is_waited_for(tmp_path):
    """As a server of files has one until its client has written all, also of one that is closed."""
    place = put(tmp_path / "raw/x.fits", fits())
    code = f"""
import fcntl, os, signal
file = os.open({place.path!r}, os.O_RDWR)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGIO])
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("leased", flush=True)
signal.sigwait([signal.SIGIO])
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as server:
        assert server.stdout.readline() == b"leased\n"
        state = state_of(place)
    assert (state.problem, state.intact) == ("", True)


def test_where_the_kernel_does_not_tell_nothing_is_known(tmp_path, monkeypatch):
    def refuse(descriptor, command, value):
        if command == fcntl.F_SETLEASE:
            raise PermissionError  # a file of another user, without CAP_LEASE

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    place = put(tmp_path / "raw/x.fits", fits())
    found = checked([place], structure=False, writers=True)
    assert (found.written, found.read) == (None, False)


def test_one_that_is_not_to_be_opened_does_not_hinder_the_others(tmp_path):
    place = put(tmp_path / "raw/x.fits", fits())
    os.mkfifo(tmp_path / "raw/fifo.fits")
    fifo_path = RawPath(place.root, f"{place.root}/fifo.fits")
    refused, found = read_states([((fifo_path,), True, False), ((place,), True, False)])
    assert isinstance(refused, BadMessage)
    assert refused.kind == "not_a_file"
    assert isinstance(found, FileState)
    assert found.intact


@pytest.mark.parametrize(
    ("replace", "kind"),
    [
        (lambda path, secret: path.symlink_to(secret), "symlink"),
        (lambda path, _: os.mkfifo(path), "not_a_file"),
    ],
    ids=["link", "fifo"],
)
def test_a_file_that_is_replaced_before_it_is_opened_is_refused(tmp_path, monkeypatch, replace, kind):
    place = put(tmp_path / "raw/a/x.fits", fits())
    secret, is_regular = outside(tmp_path / "raw"), raws_files._is_regular_in

    def replaced(folder: int, path: str) -> bool:
        found = is_regular(folder, path)
        Path(path).unlink()
        replace(Path(path), secret)
        return found

    monkeypatch.setattr(raws_files, "_is_regular_in", replaced)
    with pytest.raises(BadMessage) as refused:
        state_of(place)
    assert refused.value.kind == kind


def test_a_folder_is_checked_once_for_a_batch_and_closed(tmp_path, monkeypatch):
    places = [put(tmp_path / f"raw/{name}", fits()) for name in ("a/x.fits", "a/y.fits", "b/x.fits")]
    (tmp_path / "raw/link").symlink_to("a")
    places.append(RawPath(places[0].root, f"{places[0].root}/link/x.fits"))
    checks, check = [], raws_files._folder_descriptor
    monkeypatch.setattr(
        raws_files, "_folder_descriptor", lambda folder: checks.append(Path(folder).name) or check(folder)
    )
    before = os.listdir("/proc/self/fd")
    for _ in range(2):  # a folder may be replaced between two batches
        states = read_states([((place,), True, False) for place in places])
        assert all(isinstance(state, FileState) and state.intact for state in states)
        assert len({state.inode for state in states}) == 3
        (tmp_path / "raw/a").rename(tmp_path / "raw/old")
        shutil.copytree(tmp_path / "raw/old", tmp_path / "raw/a")
        shutil.rmtree(tmp_path / "raw/old")
    assert checks == ["a", "b", "link"] * 2
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("needed", [True, False])
def test_a_sidecar_is_found_beside_its_image_but_not_through_a_link_out_of_the_root(tmp_path, needed):
    image = put(tmp_path / "raw/a/x.fits", fits())
    assert read_sidecars([(image, needed)]) == [(False, None)]
    fields = json.dumps({"GROUPID": GROUP}).encode()
    outside(tmp_path / "raw").with_name("x.json").write_bytes(fields)
    (tmp_path / "raw/a/x.json").symlink_to(tmp_path / "secret/x.json")
    (tmp_path / "raw/out").symlink_to(tmp_path / "secret")
    put(tmp_path / "raw/b/x.json", fields)
    (tmp_path / "raw/b/y.json").symlink_to("x.json")
    places = [RawPath(image.root, f"{image.root}/{name}.fits") for name in ("a/x", "out/x", "b/x", "b/y")]
    found = read_sidecars([(place, needed) for place in places])
    assert [has_sidecar for has_sidecar, _ in found] == [False, False, True, True]
    assert [facts is not None for _, facts in found] == [False, False, needed, needed]


def test_a_header_contains_group_and_snap(tmp_path):
    image = put(tmp_path / "raw/x.fits", fits(f"{GROUP}#1"))
    assert facts_of_image(image) == ExposureFacts(f"{GROUP}#1", 1)
    fields = {"GROUPID": GROUP, "CURINDEX": "1", "MAXINDEX": 2, "OBSID": "MC_O_20251121_000156"}
    sidecar = put(tmp_path / "raw/x.json", json.dumps(fields).encode())
    assert facts_of_sidecar(sidecar) == ExposureFacts(GROUP, 1, 2, "MC_O_20251121_000156")


def test_a_count_that_is_not_valid_counts_as_missing(tmp_path):
    sidecar = put(tmp_path / "raw/x.json", json.dumps({"GROUPID": GROUP, "CURINDEX": "9" * 5000}).encode())
    assert facts_of_sidecar(sidecar) == ExposureFacts(GROUP)


def test_a_group_that_is_a_number_is_its_digits(tmp_path):
    digits = put(tmp_path / "raw/x.json", b'{"GROUPID": 20261128000018}')
    assert facts_of_sidecar(digits).group == "20261128000018"
    image = put(tmp_path / "raw/x.fits", (CASES / "groupid_is_a_number.fits").read_bytes())
    assert facts_of_image(image).group == "20261128000018"


def test_an_unusual_file_is_intact_and_marked(tmp_path):
    for name in ("special_records_2880_zeros.fits", "trailing_100_zeros.fits", "last_block_not_filled.fits"):
        found = state_of(put(tmp_path / "raw/x.fits", (CASES / name).read_bytes()))
        assert (found.intact, found.unusual) == (True, True)


def test_a_group_in_the_first_extension_is_found(tmp_path):
    image = put(tmp_path / "raw/x.fits", (CASES / "fpacked_single_image.fits.fz").read_bytes())
    assert facts_of_image(image).group == "2026-11-28T20:16:03.034"


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"GROUPID": " "}', b'{"GROUPID": true}', b"\xff", b'{"GROUPID": "a']
)
def test_a_sidecar_without_a_group_is_refused(tmp_path, content):
    with pytest.raises(BadMessage):
        facts_of_sidecar(put(tmp_path / "raw/x.json", content))


@pytest.mark.parametrize(
    "content",
    [
        {"expectedSensors": {"R22_S11": "SCIENCE", "R00_SG0": "GUIDER"}},
        {"expectedSensors": ["R22_S11", "R00_SG0"]},
    ],
)
def test_the_list_of_detectors_is_read_in_both_forms(tmp_path, content):
    place = put(tmp_path / "raw/x_expectedSensors.json", json.dumps(content).encode())
    assert expected_sensors(place) == {"R22_S11", "R00_SG0"}


@pytest.mark.parametrize("content", [b"{}", b'{"expectedSensors": 5}', b'{"expectedSensors": [5]}', b"[]"])
def test_what_is_no_list_of_detectors_is_refused(tmp_path, content):
    with pytest.raises(BadMessage):
        expected_sensors(put(tmp_path / "raw/x_expectedSensors.json", content))
