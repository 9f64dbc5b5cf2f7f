# SPDX-License-Identifier: BSD-3-Clause
"""Many files that are synced at once."""

import ctypes
import errno
import os
import signal
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from ppdaemon.middleware.export import syncing
from ppdaemon.middleware.export.syncing import AT_ONCE, OpenFiles, sync_all


def some_files(folder: Path, number: int) -> list[Path]:
    paths = [folder / f"{k}" for k in range(number)]
    for path in paths:
        path.write_text("a")
    return paths


class Kernel:
    """Stands before the kernel's own calls, and notes the names of files that are synced."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.requests: list[list[str]] = []
        self.alone: list[str] = []
        self.takes = AT_ONCE
        self.errors: dict[str, int] = {}
        self.interrupted_by: list[BaseException | None] = []
        self._real, self._fsync = syncing._LIBC.syscall, os.fsync
        monkeypatch.setattr(syncing, "_QUEUE", syncing._Queue())
        monkeypatch.setattr(syncing, "_LIBC", SimpleNamespace(syscall=self.call))
        monkeypatch.setattr(os, "fsync", self.fsync)

    def call(self, number: ctypes.c_long, *arguments: ctypes.c_long) -> int:
        values = [each.value for each in arguments]
        match number.value:
            case syncing._SUBMIT:
                return self.submit(*values)
            case syncing._GET_EVENTS:
                return self.get_events(*values)
        return int(self._real(number, *arguments))

    def submit(self, context: int, count: int, address: int) -> int:
        if not self.takes:
            ctypes.set_errno(errno.EAGAIN)
            return -1
        taken = min(count, self.takes)
        pointers = (ctypes.c_void_p * count).from_address(address)
        requests = [syncing._Request.from_address(each) for each in pointers[:taken]]
        self.names = {each.number: name_of(each.descriptor) for each in requests}
        self.requests.append(list(self.names.values()))
        return int(self._real(*map(ctypes.c_long, (syncing._SUBMIT, context, taken, address))))

    def get_events(self, context: int, least: int, most: int, address: int, limit: int) -> int:
        if self.interrupted_by:
            if (error := self.interrupted_by.pop()) is not None:
                raise error
            ctypes.set_errno(errno.EINTR)
            return -1
        arguments = (syncing._GET_EVENTS, context, least, most, address, limit)
        found = int(self._real(*map(ctypes.c_long, arguments)))
        for event in (syncing._Event * max(0, found)).from_address(address):
            assert event.result == 0
            event.result = -self.errors.get(self.names.get(event.number, ""), 0)
        return found

    def fsync(self, descriptor: int) -> None:
        self.alone.append(name_of(descriptor))
        self._fsync(descriptor)


def name_of(descriptor: int) -> str:
    return Path(f"/proc/self/fd/{descriptor}").readlink().name


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    if syncing._SETUP is None:
        pytest.skip("the numbers of system calls of this kind of machine are not known")
    with tempfile.TemporaryFile() as file:
        if not syncing._Queue().sync([file.fileno()]):
            pytest.skip("this kernel takes no such requests, or allows none here")
    return Kernel(monkeypatch)


@pytest.mark.parametrize("number", [1, AT_ONCE - 1, AT_ONCE, 2 * AT_ONCE + 3])
def test_all_files_and_their_folder_are_synced_by_few_requests(
    tmp_path: Path, kernel: Kernel, number: int
) -> None:
    paths = [*some_files(tmp_path, number), tmp_path]
    sync_all(map(str, paths))
    assert [name for names in kernel.requests for name in names] == [path.name for path in paths]
    assert len(kernel.requests) == -(-len(paths) // AT_ONCE)
    assert kernel.alone == []


@pytest.mark.parametrize("takes", [0, 1, 3])
def test_a_file_that_the_kernel_does_not_take_is_synced_alone(
    tmp_path: Path, kernel: Kernel, takes: int
) -> None:
    kernel.takes = takes
    sync_all([*some_files(tmp_path, 4), tmp_path])
    names = ["0", "1", "2", "3", tmp_path.name]
    assert [name for names in kernel.requests for name in names] == names[:takes]
    assert kernel.alone == names[takes:]


def test_without_numbers_of_system_calls_each_file_is_synced_alone(
    tmp_path: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syncing, "_SETUP", None)
    sync_all(some_files(tmp_path, 2))
    assert (kernel.requests, kernel.alone) == ([], ["0", "1"])


def test_a_forked_process_has_a_queue_of_its_own(tmp_path: Path, kernel: Kernel) -> None:
    paths = some_files(tmp_path, 2)
    sync_all(paths)
    child = os.fork()
    if not child:
        kernel.requests.clear()
        sync_all(paths)
        os._exit(0 if (kernel.requests, kernel.alone) == ([["0", "1"]], []) else 1)
    assert os.waitpid(child, 0)[1] == 0
    sync_all(paths)
    assert kernel.requests == [["0", "1"], ["0", "1"]]


@pytest.mark.parametrize("which", ["0", "2", str(AT_ONCE)])
def test_an_error_of_any_file_is_raised_with_its_name(tmp_path: Path, kernel: Kernel, which: str) -> None:
    paths = some_files(tmp_path, AT_ONCE + 2)
    kernel.errors = {which: errno.ENOSPC}
    with pytest.raises(OSError, match="No space left") as caught:
        sync_all(paths)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / which))
    kernel.errors.clear()
    sync_all(paths)


def test_a_wait_that_a_signal_interrupts_goes_on(tmp_path: Path, kernel: Kernel) -> None:
    kernel.interrupted_by = [None, None]
    kernel.errors = {"1": errno.EIO}
    with pytest.raises(OSError, match="Input/output error"):
        sync_all(some_files(tmp_path, 3))


def test_results_of_a_wait_that_has_ended_are_not_those_of_the_next_one(
    tmp_path: Path, kernel: Kernel
) -> None:
    paths = some_files(tmp_path, 6)
    kernel.interrupted_by = [SystemExit(signal.SIGTERM)]
    with pytest.raises(SystemExit):
        sync_all(paths[:2])
    kernel.errors = {"4": errno.EIO}
    with pytest.raises(OSError, match="Input/output error") as caught:
        sync_all(paths[2:])
    assert caught.value.filename == str(tmp_path / "4")


@pytest.mark.parametrize("takes", [AT_ONCE, 0])
def test_what_cannot_be_synced_is_an_error(tmp_path: Path, kernel: Kernel, takes: int) -> None:
    kernel.takes = takes
    with pytest.raises(OSError, match="Invalid argument"):
        sync_all([*some_files(tmp_path, 1), "/dev/null"])


def test_a_file_that_is_missing_is_an_error_and_no_descriptor_is_left(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FileNotFoundError):
        sync_all([*some_files(tmp_path, 2), tmp_path / "missing"])
    assert os.listdir("/proc/self/fd") == before


def test_there_may_be_no_files() -> None:
    sync_all([])


def test_the_content_of_what_was_written_last_is_waited_for_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[str] = []

    def wait(descriptor: int) -> None:
        waited.append(name_of(descriptor))
        if waited[-1] == "1":
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(syncing, "wait_until_written", wait)
    with OpenFiles(some_files(tmp_path, 3)) as files:
        with pytest.raises(OSError, match="Input/output error") as caught:
            files.wait_until_written()
        assert caught.value.filename == str(tmp_path / "1")
    assert waited == ["2", "1"]
