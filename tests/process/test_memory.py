# SPDX-License-Identifier: BSD-3-Clause
"""Memory of a worker's processes: what counts, and what counts once."""

import os
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from ppdaemon.config import MemoryConfig, WorkersConfig
from ppdaemon.folders import NodeFolders
from ppdaemon.node.slots import memory
from ppdaemon.node.slots.memory import MemoryFiles, anonymous_share, exclusive_bytes, memory_bound
from ppdaemon.node.slots.meters import Meters, folder_bytes
from ppdaemon.processes import parent, process_tree

SIZE_BYTES = 100_000_000
GONE = 2**22 + 1
"""No process has this id: it is above the largest ``pid_max``."""

FORK = f"""
content = bytearray(os.urandom(1000)) * ({SIZE_BYTES} // 1000)
if os.fork() == 0:
    print("ready", flush=True)
    sys.stdin.read()
    os._exit(0)
"""
HOLD = f"""
descriptor = os.memfd_create("model")
os.truncate(descriptor, {SIZE_BYTES})
os.posix_fallocate(descriptor, 0, {SIZE_BYTES})
print("ready", flush=True)
"""
MAP_FILE = f"""
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.posix_fallocate(descriptor, 0, {SIZE_BYTES})
memory = mmap.mmap(descriptor, {SIZE_BYTES})
os.close(descriptor)
sum(memory[place] for place in range(0, {SIZE_BYTES}, 4096))
print("ready", flush=True)
"""

MAP_HELD = f"""
descriptor = os.memfd_create("inputs")
os.posix_fallocate(descriptor, 0, {SIZE_BYTES})
memory = mmap.mmap(descriptor, {SIZE_BYTES}, mmap.MAP_PRIVATE)
sum(memory[place] for place in range(0, {SIZE_BYTES}, 4096))
print("ready", flush=True)
"""
MAP_BESIDE_HELD = f"""
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
ctypes.memset(libc.mmap(None, {SIZE_BYTES}, 3, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS, -1, 0), 1, {SIZE_BYTES})
{HOLD}
"""
MAP_TWICE = f"""
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.posix_fallocate(descriptor, 0, {SIZE_BYTES})
half = {SIZE_BYTES} // 2 // 4096 * 4096
libc = ctypes.CDLL(None)  # a mapping of Python's module keeps the file open
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
for offset, size in ((0, {SIZE_BYTES}), (0, {SIZE_BYTES}), (half, half), (0, half)):
    ctypes.string_at(libc.mmap(None, size, 3, 1, descriptor, offset), size)
os.close(descriptor)
print("ready", flush=True)
"""
TEMPORARY = f"""
import tempfile
file = tempfile.TemporaryFile(dir=sys.argv[1])
os.posix_fallocate(file.fileno(), 0, {SIZE_BYTES})
print("ready", flush=True)
"""


@contextmanager
def worker(script, *arguments):
    """Run a script; yield its process id when it is ready."""
    command = [
        sys.executable,
        "-c",
        f"import ctypes, mmap, os, sys\n{script}\nsys.stdin.read()",
        *map(str, arguments),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
        process.stdin.close()


@pytest.fixture
def folders(tmp_path):
    folders = NodeFolders(tmp_path / "ram", tmp_path / "state")
    for folder in (folders.slots, folders.logs, folders.repo(0)):
        folder.mkdir(parents=True, exist_ok=True)
    return folders


def measured(folders, *pids):
    """Return what the workers use beyond the interpreter and their repos, in units of `SIZE_BYTES`."""
    # The limit is so low that exact shares are read.
    with closing(Meters(WorkersConfig(memory=MemoryConfig(soft=1_000_000)), folders)) as meters:
        samples = meters.read(dict(enumerate(pids)), {})
    return [round((sample.used_bytes - sample.repo_bytes) / SIZE_BYTES) for sample in samples.values()]


def test_memory_that_a_worker_shares_with_its_fork_counts_once(folders):
    with worker(FORK) as pid:
        members = process_tree(pid)
        assert len(members) == 2
        assert sum(memory_bound(member).anonymous for member in members) > 2 * SIZE_BYTES
        assert SIZE_BYTES < sum(map(anonymous_share, members)) < 1.5 * SIZE_BYTES
        assert measured(folders, pid) == [1]


def test_a_file_in_memory_that_only_one_worker_has_counts(folders):
    with worker(HOLD) as held, worker("print('ready', flush=True)") as other:
        assert measured(folders, held, other) == [1, 0]


@pytest.fixture
def file():
    """A file on a tmpfs."""
    file = Path(f"/dev/shm/ppdaemon-test-{os.getpid()}")
    yield file
    file.unlink(missing_ok=True)


@pytest.mark.parametrize("deleted", [False, True], ids=["named", "deleted"])
def test_a_mapped_file_in_memory_counts_once(folders, file, deleted):
    with worker(MAP_FILE, file) as first:
        if deleted:
            file.unlink()
        assert measured(folders, first) == [1]


def test_pages_of_open_files_are_not_searched(folders, monkeypatch):
    """A search takes some 20 ms of a worker that has its inputs in such files."""

    def refuse(self, pid):
        raise AssertionError

    monkeypatch.setattr(MemoryFiles, "mapped", refuse)
    with worker(MAP_HELD) as pid:
        assert memory_bound(pid).shared > SIZE_BYTES * 0.9
        assert measured(folders, pid) == [1]


def test_mapped_memory_counts_beside_open_files_of_which_nothing_is_mapped(folders):
    with worker(MAP_BESIDE_HELD) as pid:
        assert measured(folders, pid) == [2]


def test_a_part_that_a_worker_maps_several_times_counts_once(folders, file):
    with worker(MAP_TWICE, file) as pid:
        assert measured(folders, pid) == [1]


def test_a_temporary_file_without_a_name_counts_and_is_not_in_the_repo(folders):
    with worker(TEMPORARY, folders.repo(0)) as pid:
        assert folder_bytes(folders.repo(0)) == 0
        assert measured(folders, pid) == [1]


def test_a_file_in_memory_of_several_workers_counts_for_none(folders, file):
    with worker(MAP_FILE, file) as first, worker(MAP_FILE, file) as second:
        assert measured(folders, first, second) == [0, 0]


def test_a_mapped_file_of_the_repo_is_counted_with_the_repo(folders):
    with worker(MAP_FILE, folders.repo(0) / "file") as pid:
        assert measured(folders, pid) == [0]


def test_mapped_files_on_a_disk_do_not_count(folders):
    """The kernel drops their pages when memory is short."""
    file = f"/var/tmp/ppdaemon-test-{os.getpid()}"
    try:
        with worker(MAP_FILE, file) as pid:
            assert measured(folders, pid) == [0]
    finally:
        os.unlink(file)


def test_a_worker_that_has_ended_uses_nothing(folders):
    assert MemoryFiles.outside(folders.ramdisk).of([GONE]) == {}
    assert anonymous_share(GONE) == 0
    assert (memory_bound(GONE).anonymous, memory_bound(GONE).shared) == (0, 0)


def test_a_process_that_nobody_has_waited_for_uses_nothing_and_stops_no_measurement(folders, monkeypatch):
    """Reading one is permitted to root only."""

    def refusing(function):
        def call(path, *arguments, **options):
            if str(path).startswith(f"/proc/{pid}/"):
                raise PermissionError(13, "Permission denied", path)
            return function(path, *arguments, **options)

        return call

    with worker(HOLD) as pid, worker(HOLD) as other:
        monkeypatch.setattr(os, "scandir", refusing(os.scandir))
        monkeypatch.setattr(memory, "open", refusing(open), raising=False)
        assert MemoryFiles.outside(folders.ramdisk).of([pid]) == {}
        assert measured(folders, pid, other) == [0, 1]


def test_open_files_on_disks_are_not_touched(folders, monkeypatch, tmp_path):
    """A mount that hangs would stop the measurement of all workers."""
    file = f"/var/tmp/ppdaemon-test-{os.getpid()}"
    stat, touched = os.stat, []

    def noted(path, *arguments, **options):
        touched.append(os.readlink(path))
        return stat(path, *arguments, **options)

    try:
        with open(file, "w"), worker(f"stream = open({file!r})\n{HOLD}") as pid:
            monkeypatch.setattr(memory.os, "stat", noted)
            MemoryFiles.outside(folders.ramdisk).of([pid])
            monkeypatch.undo()
    finally:
        os.unlink(file)
    assert [name for name in touched if not name.startswith(("/memfd:", "/dev/"))] == []


def test_a_file_in_memory_that_the_zygote_has_counts_for_no_worker(folders, file):
    fork = f"""
descriptor = os.open({str(file)!r}, os.O_RDWR | os.O_CREAT)
os.posix_fallocate(descriptor, 0, {SIZE_BYTES})
pid = os.fork()
if pid:
    print(pid, flush=True)
    sys.stdin.read()
    os.waitpid(pid, 0)
    os._exit(0)
"""
    command = [sys.executable, "-c", f"import os, sys\n{fork}\nsys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        pid = int(process.stdout.readline())
        assert parent(pid) == process.pid
        assert measured(folders, pid) == [0]
        process.stdin.close()


def test_only_files_of_a_single_worker_are_exclusive():
    files = {7: {(1, 10): 5, (1, 11): 6}, 8: {(1, 11): 6, (2, 10): 8}, 9: {}}
    assert exclusive_bytes(files) == {7: 5, 8: 8, 9: 0}
