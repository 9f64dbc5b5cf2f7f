# SPDX-License-Identifier: BSD-3-Clause
"""The cache of a host: fetching, sharing, eviction, and leftovers of killed workers."""

import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lsst.resources import ResourcePath

from ppdaemon.environment import CHILD_ENVIRONMENT
from ppdaemon.folders import NodeFolders
from ppdaemon.middleware.preload import cache as module
from ppdaemon.middleware.preload.cache import CacheStats, SharedCache

BUDGET = 1000
WORKERS = """
import os, sys, traceback
from pathlib import Path
from lsst.resources import ResourcePath
from ppdaemon.middleware.preload.cache import SharedCache, CacheStats

folder, sources, scratch, budget = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])

def work(number):
    target = scratch / str(number)
    target.mkdir()
    cache, stats = SharedCache(folder, budget), CacheStats()
    for round in range(5):
        for source in sorted(sources.iterdir()):
            cache.take(source.name, ResourcePath(source.as_uri()), target / source.name, stats)
            assert (target / source.name).read_text() == source.read_text(), source
            (target / source.name).unlink()
    os.write(1, f"{stats.hits} {stats.misses} {stats.evicted}\\n".encode())

out, into = os.pipe()
for number in range(6):
    if not os.fork():
        os.close(into)
        os.read(out, 1)  # ends when all have been started
        try:
            work(number)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
os.close(into)
sys.exit(any([os.wait()[1] for number in range(6)]))
"""
KILLED = """
import signal, sys
from pathlib import Path
from lsst.resources import ResourcePath
from ppdaemon.middleware.preload import cache
from ppdaemon.middleware.preload.cache import SharedCache, CacheStats

def half(source, partial, size_bytes):
    partial.write_text("half")
    print("copying", flush=True)
    signal.pause()

cache._copy = half
folder, source = Path(sys.argv[1]), Path(sys.argv[2])
SharedCache(folder, 1000).take("slow", ResourcePath(source.as_uri()), folder.parent / "target", CacheStats())
"""


class Host:
    """A cache, files to be fetched into it, and a folder to link them to."""

    def __init__(self, root: Path, budget: int):
        self.folder, self._root = root / "cache", root
        self.cache = SharedCache(self.folder, budget)
        self.stats = CacheStats()
        self._count = 0

    def source(self, name: str, size: int) -> Path:
        path = self._root / f"source #1%20 {name}"
        if not path.exists():
            path.write_bytes(os.urandom(size))
        return path

    def take(self, name: str, size: int = 100, **more: Any) -> Path:
        """Take a file of a size to a new path."""
        self._count += 1
        target = self._root / f"taken-{self._count}"
        uri = ResourcePath(self.source(name, size).as_uri())
        self.cache.take(name, uri, target, self.stats, **more)
        return target

    def use(self, name: str, size: int = 100) -> None:
        """Take a file and delete the link."""
        self.take(name, size).unlink()

    def names(self) -> set[str]:
        """Return the names in the cache."""
        return {path.name for path in self.folder.iterdir() if not path.name.startswith(".")}

    def partial_files(self) -> list[Path]:
        """Return the files that are being copied."""
        return list(self.folder.glob(".lane-??/*"))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path, BUDGET)


@pytest.fixture
def ages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the time of each use a second after the previous one, whatever the clock's resolution."""
    real, now = os.utime, iter(range(10**9, 10**10))

    def later(path: Any) -> None:
        real(path, times=(second := next(now), second))

    monkeypatch.setattr(os, "utime", later)


def run(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=os.environ | CHILD_ENVIRONMENT, text=True, **pipes)


def test_a_file_is_fetched_once_and_linked_after_that(host: Host) -> None:
    first = host.take("one")
    content = host.source("one", 0).read_bytes()
    host.source("one", 0).unlink()
    second = host.take("one", size=0)
    assert first.read_bytes() == second.read_bytes() == content
    assert os.path.samefile(first, second)
    assert (host.stats.hits, host.stats.misses) == (1, 1)
    assert (host.stats.bytes, host.stats.fetched_bytes) == (200, 100)


def test_a_shared_file_cannot_be_written_to(host: Host) -> None:
    assert stat.S_IMODE(host.take("one").stat().st_mode) == 0o444


def test_a_failed_fetch_leaves_nothing_and_costs_no_budget(host: Host) -> None:
    for _ in range(20):
        with pytest.raises(FileNotFoundError):
            host.cache.take("none", ResourcePath("/nowhere/none"), host.folder / "target", host.stats)
    assert host.names() == set()
    assert host.partial_files() == []
    for k in range(10):
        host.use(f"{k}")
    assert host.stats.evicted == 0


@pytest.mark.usefixtures("ages")
def test_the_least_recently_used_make_room(host: Host) -> None:
    for k in range(10):
        host.use(f"{k}")
    host.use("0")
    host.use("more")
    assert host.names() == {"0", "3", "4", "5", "6", "7", "8", "9", "more"}
    assert (host.stats.evicted, host.stats.evicted_bytes) == (2, 200)


@pytest.mark.usefixtures("ages")
def test_a_touched_file_is_evicted_later(host: Host) -> None:
    for k in range(10):
        host.use(f"{k}")
    host.cache.touch("0")
    host.cache.touch("never there")
    host.use("more")
    assert "0" in host.names()


def test_files_in_use_are_not_evicted_and_count(host: Host) -> None:
    used = [host.take(f"used-{k}", 300) for k in range(3)]
    for k in range(5):
        host.use(f"{k}")
    assert host.names() >= {"used-0", "used-1", "used-2"}
    assert len(host.names()) <= 3 + 2
    used[0].unlink()
    host.use("more")
    assert "used-0" not in host.names()


def test_a_link_has_the_content_after_eviction(host: Host) -> None:
    target = host.take("target")
    content = target.read_bytes()
    (host.folder / "target").unlink()
    assert target.read_bytes() == content


def test_a_file_larger_than_the_budget_is_fetched_and_evicted_first(host: Host) -> None:
    for k in range(5):
        host.use(f"{k}")
    big = host.take("big", 5 * BUDGET)
    assert big.stat().st_size == 5 * BUDGET
    assert host.names() == {"0", "1", "2", "3", "4", "big"}
    big.unlink()
    host.use("more")
    assert host.names() == {"0", "1", "2", "3", "4", "more"}


def test_the_folder_is_not_scanned_for_each_file(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    scans = []
    real = os.scandir

    def scandir(path: Any) -> Iterator[os.DirEntry[str]]:
        scans.append(Path(path))
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", scandir)
        used = [host.take(f"used-{k}", 20) for k in range(50)]  # all of the budget, in use
        assert scans.count(host.folder) == 1  # to find out how much there is
        for k in range(100):
            host.use(f"{k}", 5)
    assert scans.count(host.folder) <= 12  # one scan for each 50 bytes, ten files
    del used


def test_unused_files_are_evicted_on_a_full_disk(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.use("unused")
    used, real, full = host.take("used"), module._copy, [True]

    def copy(source: ResourcePath, partial: Path, size_bytes: int) -> None:
        if full and full.pop():
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, partial, size_bytes)

    monkeypatch.setattr(module, "_copy", copy)
    host.take("more")
    assert host.names() == {"used", "more"}
    assert used.exists()


def test_a_full_disk_without_unused_files_is_an_error(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(source: ResourcePath, partial: Path, size_bytes: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_copy", copy)
    with pytest.raises(OSError, match="No space left"):
        host.take("one")
    assert host.names() == set()


def test_an_incomplete_copy_is_not_used(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = type(ResourcePath("/tmp/x"))
    monkeypatch.setattr(uri, "size", lambda self: 101)
    with pytest.raises(OSError, match="copied 100 bytes of 101"):
        host.take("one")
    assert host.names() == set()
    assert host.partial_files() == []


class Remote:
    """A file of which the cache only knows that it is not in a file system."""

    isLocal = False  # noqa: N815

    def __init__(self, file: ResourcePath):
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def test_a_file_of_another_store_is_fetched_by_its_own_way(host: Host, tmp_path: Path) -> None:
    source: Any = Remote(ResourcePath(host.source("one", 100).as_uri()))
    host.cache.take("one", source, tmp_path / "taken", host.stats)
    assert (tmp_path / "taken").read_bytes() == host.source("one", 100).read_bytes()
    assert host.partial_files() == []


def test_a_file_of_another_size_is_fetched_again(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    host.use("one")
    (host.folder / "one").unlink()
    (host.folder / "one").write_text("damaged")
    assert host.take("one", size_bytes=100).read_bytes() == host.source("one", 100).read_bytes()
    assert "has 7 bytes, not 100: fetched again" in caplog.text
    assert host.stats.misses == 2


def test_a_killed_workers_copy_is_neither_used_nor_left(host: Host) -> None:
    source = host.source("slow", 100)
    worker = run(KILLED, host.folder, source)
    assert worker.stdout is not None
    assert worker.stdout.readline() == "copying\n"
    (part,) = host.partial_files()
    assert part.read_text() == "half"
    assert host.cache.drop_unused() == 0  # its worker is alive
    assert part.exists()
    worker.send_signal(signal.SIGKILL)
    worker.communicate()
    assert host.take("slow").read_bytes() == source.read_bytes()
    assert host.partial_files() == []


def test_a_sweep_deletes_what_killed_workers_left(host: Host) -> None:
    worker = run(KILLED, host.folder, host.source("slow", 100))
    assert worker.stdout is not None
    worker.stdout.readline()
    worker.send_signal(signal.SIGKILL)
    worker.communicate()
    assert host.cache.drop_unused() == len("half")
    assert host.partial_files() == []


@pytest.mark.parametrize("budget", [pytest.param(10**6, marks=pytest.mark.slow), 1500])
def test_many_concurrent_workers_get_the_files_they_request(tmp_path: Path, budget: int) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    for k in range(20):
        (sources / f"{k:02d}").write_text(f"{k:02d}" * 50)
    workers = run(WORKERS, tmp_path / "cache", sources, tmp_path, budget)
    printed, error = workers.communicate()
    assert (workers.returncode, error) == (0, "")
    hits, misses, evicted = (
        sum(numbers)
        for numbers in zip(*(map(int, line.split()) for line in printed.splitlines()), strict=True)
    )
    assert hits + misses == 6 * 5 * 20
    if budget == 10**6:
        assert (misses, evicted) == (20, 0)
    host = Host(tmp_path, budget)
    size = sum((host.folder / name).stat().st_size for name in host.names())
    assert size <= budget
    assert host.partial_files() == []
    # The recorded size is right: a file that fits causes no sweep, one that does not fit causes one.
    host.use("fits", budget - size)
    assert host.stats.evicted == 0
    host.use("does not", 1)
    assert host.stats.evicted > 0


def test_questions_of_workers_are_no_files_of_the_cache(host: Host) -> None:
    host.use("one")
    host.cache.questions("1").mkdir()
    question = host.cache.questions("1") / "open"
    question.write_bytes(bytes(10 * BUDGET))
    assert host.cache.drop_unused() == 100
    assert question.exists()


def test_the_supervisor_deletes_the_questions_of_ended_configurations(tmp_path: Path) -> None:
    folders = NodeFolders(tmp_path / "ram", tmp_path)
    cache = SharedCache(folders.cache, 0)
    assert cache.questions(folders.template(3).name) == folders.questions(3)
