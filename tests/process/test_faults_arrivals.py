# SPDX-License-Identifier: BSD-3-Clause
"""Failures on a raw's way to its worker that the daemon survives, by number.

The sources alone are tested in ``test_arrivals.py``; what a worker finds in a
raw's header in ``tests/middleware``.
"""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote_plus

import pytest
import zmq
from node import make_node
from ramdisk import TEMPORARY

from ppdaemon.clock import Clock
from ppdaemon.demo.oldfiles import write_old_files
from ppdaemon.reports import StatusReport
from ppdaemon.states import Outcome, SlotState
from ppdaemon.testing.node import NodeProcess
from ppdaemon.testing.played import PlayedRelay
from ppdaemon.testing.raws import small_fits

NEVER_S = 3600.0
MAY_MOUNT = (
    os.geteuid() == 0
    and subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], check=False).returncode
    == 0
)
MAY_LIMIT = (
    subprocess.run(
        ["unshare", "--user", "--map-root-user", "test", "-w", "/proc/sys/user/max_inotify_instances"],
        check=False,
        stderr=subprocess.DEVNULL,
    ).returncode
    == 0
)
needs_mount = pytest.mark.skipif(not MAY_MOUNT, reason="needs the right to mount")


@pytest.fixture(scope="module")
def publisher() -> Iterator["Publisher"]:
    """Return the publisher of the shared daemon."""
    with tempfile.TemporaryDirectory(prefix="pp-", dir=TEMPORARY) as sockets:
        publisher = Publisher(Path(sockets))
        yield publisher
        publisher.close()


@pytest.fixture(scope="module")
def changes(publisher: "Publisher") -> dict[str, object]:
    """Turn the survey off in the shared daemon, too."""
    return {"arrivals": {"watch": "inotify", "scan_s": NEVER_S, "subscribe": [publisher.address]}}


@contextmanager
def daemon(folder: Path, sockets: Path, arrivals: dict | None = None, **workers) -> Iterator[NodeProcess]:
    """Run a node without surveys."""
    relay = PlayedRelay()
    node = make_node(folder, sockets, relay, **workers)
    node.rewrite(arrivals={"scan_s": NEVER_S} | (arrivals or {}))
    try:
        yield node.start()
    finally:
        try:
            status = node.stop()
        finally:
            relay.close()
    assert status == 0, node.story()


class Publisher:
    """Reports files to a daemon."""

    def __init__(self, sockets: Path):
        self.address = f"ipc://{sockets}/notices"
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.linger = 0
        self._socket.bind(self.address)

    def wait_for_subscriber(self) -> None:
        assert self._socket.poll(20_000)
        self._socket.recv()

    def send(self, message: object) -> None:
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        self._socket.send_multipart([b"raw", data])

    def close(self) -> None:
        self._socket.close()
        self._context.term()


@pytest.fixture
def own_publisher(socket_dir: Path) -> Iterator[Publisher]:
    publisher = Publisher(socket_dir)
    yield publisher
    publisher.close()


def record(key: str, name: str = "ObjectCreated:Put", bucket: str = "raws") -> dict[str, object]:
    return {"eventName": name, "s3": {"bucket": {"name": bucket}, "object": {"key": quote_plus(key)}}}


def ingested(node: NodeProcess, group: str = "") -> Counter[tuple[str, int]]:
    """Count the orders to ingest, of all groups or of one, by group and exposure number."""
    path = node.state / "ingested"
    lines = path.read_text().splitlines() if path.exists() else []
    found = [(words[0], int(words[2]) - node.raws.exposure(0)) for words in map(str.split, lines)]
    return Counter(each for each in found if group in ("", each[0]))


def sizes(node: NodeProcess) -> set[int]:
    """Return the sizes of files as workers found them."""
    return {int(line.split()[3]) for line in (node.state / "ingested").read_text().splitlines()}


def count(node: NodeProcess, kind: str) -> int:
    return node.status().counters.get(f"arrivals.{kind}", 0)


def found(node: NodeProcess) -> int:
    """Return how many raws were found. Unlike the count of deliveries it does not grow when a file of
    an earlier test, changed after the end of its visit, is delivered once more.
    """
    return sum(each.files for each in node.status().arrivals)


def reserve(node: NodeProcess, group: str, **fields: object) -> None:
    """Reserve detector 0 and wait until its worker waits for the raw."""
    node.relay.reserve(group, **fields)
    node.wait(lambda: any((row.group, row.state) == (group, SlotState.WAITING) for row in node.workers()))


def turns(node: NodeProcess, state: str, words: str = "") -> None:
    """Wait until the daemon is in a state for a reason: another reason may come first."""
    seen: list[StatusReport] = []

    def turned() -> bool:
        seen.append(node.status())
        return seen[-1].state == state and words in " ".join(seen[-1].problem_texts)

    try:
        node.wait(turned)
    except AssertionError as error:
        raise AssertionError(f"{seen[-1].problem_texts} {seen[-1].arrivals}") from error


def succeeds(node: NodeProcess, group: str, number: int | None = None) -> None:
    """Run a complete visit, to show that the daemon works."""
    reserve(node, group)
    node.land(group, number=number)
    assert node.relay.outcome(group).outcome == Outcome.SUCCEEDED


def place_of(node: NodeProcess, group: str, **fields: int) -> Path:
    """Return where the raw of detector 0 belongs; the raw of detector 1 and its sidecar are there."""
    other = node.land(group, detector=1, **fields)
    target = other.with_name(other.name.replace("_S01", "_S00"))
    shutil.copy(other.with_suffix(".json"), target.with_suffix(".json"))
    return target


def watched_folders(pid: int) -> int:
    """Return how many folders a process watches."""
    lines = []
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(FileNotFoundError):
            lines += info.read_text().splitlines()
    return sum(line.startswith("inotify wd:") for line in lines)


# --- notices and names ---


@pytest.mark.slow
def test_of_many_notices_the_good_ones_are_used(tmp_path, socket_dir, own_publisher):
    """Fault 16: URL-encoded key, several records, removals, sidecars, other
    buckets, one broken record.
    """
    arrivals = {"watch": "poll", "poll_s": NEVER_S, "subscribe": [own_publisher.address]}
    with daemon(tmp_path, socket_dir, arrivals) as node:
        own_publisher.wait_for_subscriber()
        reserve(node, "g1")
        path = node.land("g1")
        key = str(path.relative_to(node.raw_root))
        own_publisher.send({"Records": [record(key, "ObjectRemoved:Delete"), 5, {"s3": None}]})
        own_publisher.send({"Records": [record("other/bucket/key", bucket="else")]})
        own_publisher.send(b"\xff{")
        assert not ingested(node)
        own_publisher.send(
            {"Records": [record(key.replace(".fits", ".json")), {"eventName": 5}, record(key), record(key)]}
        )
        assert node.relay.outcome("g1").outcome == Outcome.SUCCEEDED
        assert ingested(node) == {("g1", 1): 1}


def test_paths_out_of_the_root_are_refused_and_never_opened(tmp_path, node, group, publisher):
    """Fault 17: ``..``, an absolute path, a link out of the root, a newline."""
    kinds = ("escape", "outside", "control")
    before = [count(node, f"refused.{kind}") for kind in kinds]
    links = count(node, "refused.symlink")
    node.wait(lambda: all(source.live for source in node.status().arrivals))
    reserve(node, group)
    # A process that opened it would hang: there is no writer.
    trap = tmp_path / "trap.fits"
    os.mkfifo(trap)
    name = node.land(group, detector=1).relative_to(node.raw_root)
    publisher.send({"path": f"../{trap.name}"})
    publisher.send({"path": str(trap)})
    publisher.send({"path": f"{name}\n"})
    node.wait(lambda: [count(node, f"refused.{kind}") for kind in kinds] == [each + 1 for each in before])
    link = Path(str(node.raw_root / name).replace("_S01", "_S00"))
    link.symlink_to(trap)
    node.wait(lambda: count(node, "refused.symlink") > links)
    assert not ingested(node, group)
    link.unlink()
    node.land(group)
    assert node.relay.outcome(group).outcome == Outcome.SUCCEEDED


# --- contents ---


def renamed(path: Path, content: bytes) -> None:
    path.with_name("part").write_bytes(content)
    path.with_name("part").rename(path)


def linked(path: Path, content: bytes) -> None:
    """Link a file that was written a while ago; one that appears as it is written could still be written."""
    path.unlink(missing_ok=True)
    part = path.with_name("part")
    part.write_bytes(content)
    begin = part.stat().st_mtime - 5.0
    os.utime(part, (begin, begin))
    path.hardlink_to(part)


def overwritten(path: Path, content: bytes) -> None:
    path.write_bytes(content)


@pytest.mark.parametrize("content", [b"", small_fits()[:2880], b"not FITS at all\n"])
def test_a_broken_raw_is_its_worker_s_to_refuse_and_stays_as_it_is(node, group, content):
    """Fault 18: empty, truncated, not FITS."""
    before, broken = found(node), count(node, "delivered_broken")
    reserve(node, group, survey="ingest:refuse")
    target = place_of(node, group)
    # From here on the folder is watched: what is renamed there is known to be.
    node.wait(lambda: found(node) == before + 1)
    renamed(target, content)
    entry = node.relay.outcome(group)
    assert entry.outcome == Outcome.BAD_RAW
    assert target.read_bytes() == content
    assert count(node, "delivered_broken") == broken + 1
    succeeds(node, f"{group}-next")


@pytest.mark.parametrize("watch", ["inotify", "poll"])
def test_a_slow_file_is_not_read_before_it_is_complete(tmp_path, socket_dir, watch):
    """Fault 19: a slow writer; two opens."""
    content = small_fits()
    with daemon(tmp_path, socket_dir, {"watch": watch, "poll_s": 0.1}) as node:
        for openings in (1, 2):
            group = f"g{openings}"
            reserve(node, group)
            target = place_of(node, group, number=openings)
            half = len(content) // 2
            with target.open("wb", buffering=0) as stream:
                stream.write(content[:half])
                known = 2 * openings
                node.wait(lambda known=known: found(node) == known)
                if openings == 1:
                    stream.write(content[half:])
            if openings == 2:
                assert not ingested(node, group)
                with target.open("ab") as stream:
                    stream.write(content[half:])
            assert node.relay.outcome(group).outcome == Outcome.SUCCEEDED
            assert sizes(node) == {len(content)}
            assert ingested(node, group) == {(group, openings): 1}


@pytest.mark.parametrize("again", [renamed, linked, overwritten])
@pytest.mark.parametrize("first", [renamed, linked, overwritten])
def test_a_file_that_comes_twice_is_ingested_once(node, group, first, again):
    """Fault 20: rename into place, hard link, overwritten, replaced."""
    reserve(node, group, nimages=2)
    target = place_of(node, group, snaps=2)
    first(target, small_fits())
    node.wait(lambda: ingested(node, group))
    again(target, small_fits())
    node.land(group, snap=2, snaps=2)
    assert node.relay.outcome(group).outcome == Outcome.SUCCEEDED
    again(target, small_fits())
    succeeds(node, f"{group}-next")
    assert ingested(node, group) == {(group, node.raws.number(group, snap)): 1 for snap in (1, 2)}
    assert len(ingested(node, f"{group}-next")) == 1
    assert not [row for row in node.daemon.late(100) if row.group.startswith(group)]


def test_a_raw_that_is_taken_away_and_brought_back_is_ingested(tmp_path, node, group):
    """Fault 21: deleted before it was opened. What a worker does that cannot
    read it is tested with the middleware.
    """
    reserve(node, group)
    node.process.send_signal(signal.SIGSTOP)
    try:
        path = node.land(group)
        away = path.rename(tmp_path / path.name)
    finally:
        node.process.send_signal(signal.SIGCONT)
    node.wait(node.status)
    away.rename(path)
    assert node.relay.outcome(group).outcome == Outcome.SUCCEEDED
    assert ingested(node, group) == {(group, node.raws.number(group)): 1}


# --- events that do not come ---


def test_no_file_in_a_new_folder_is_missed(node, group):
    """Fault 22: a new directory tree with a file at once."""
    before, delivered = found(node), count(node, "delivered")
    reserve(node, group)
    for number in range(5001, 5101):
        node.land(f"{group}-other", number=number)
    node.land(group)
    assert node.relay.outcome(group).outcome == Outcome.SUCCEEDED
    node.wait(lambda: found(node) == before + 101)
    node.wait(lambda: count(node, "delivered") >= delivered + 101)


def test_after_an_overflow_everything_is_found(node, group):
    """Fault 23: the queue of events overflows while no thread reads it."""
    queue = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if queue > 100_000:
        pytest.skip(f"fs.inotify.max_queued_events is {queue}: too long to fill")
    before = found(node)
    folder = node.land(f"{group}-other", number=6001).parent
    node.wait(lambda: found(node) == before + 1)
    reserve(node, group)
    node.process.send_signal(signal.SIGSTOP)
    try:
        (folder / "0").touch()
        for number in range(queue // 2 + 1):
            (folder / f"{number}").rename(folder / f"{number + 1}")
        node.land(group)
    finally:
        node.process.send_signal(signal.SIGCONT)
    assert node.relay.outcome(group).outcome == Outcome.SUCCEEDED
    assert ingested(node, group) == {(group, node.raws.number(group)): 1}


@pytest.mark.skipif(not MAY_LIMIT, reason="needs the right to make a user namespace")
@pytest.mark.parametrize("limit", ["instances", pytest.param("watches", marks=pytest.mark.slow)])
def test_where_watches_run_out_the_sysctl_is_named_and_files_are_polled(tmp_path, socket_dir, limit):
    """Fault 24: the watch limit."""
    script = f'echo 0 > /proc/sys/user/max_inotify_{limit}; exec "$@"'
    launcher = ("unshare", "--user", "--map-root-user", "sh", "-c", script, "sh")
    with daemon(tmp_path, socket_dir, {"watch": "auto", "poll_s": 0.1}, launcher=launcher) as node:
        sysctl = f"fs.inotify.max_user_{limit}"
        node.wait(lambda: any(sysctl in source.note for source in node.status().arrivals))
        succeeds(node, "g1", number=1)


# --- filesystems that go away, or hang ---


def mount(path: Path, *options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", path], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Give a mounted filesystem, to be unmounted at will."""
    path = tmp_path / "disk"
    path.mkdir()
    mount(path)
    yield path
    while path.is_mount():
        subprocess.run(["umount", "--lazy", path], check=True)


@needs_mount
@pytest.mark.parametrize("watch", ["inotify", pytest.param("poll", marks=pytest.mark.slow)])
def test_a_mount_that_goes_away_degrades_the_daemon_until_it_is_back(tmp_path, socket_dir, disk, watch):
    """Fault 26: the mount is gone, read-only, back."""
    arrivals = {"roots": [str(disk)], "watch": watch, "poll_s": 0.1, "scan_s": 0.5}
    with daemon(tmp_path, socket_dir, arrivals) as node:
        node.raws.root = disk
        succeeds(node, "g1", number=1)
        mount(disk, "-o", "remount,ro")
        turns(node, "degraded", "read-only")
        mount(disk, "-o", "remount,rw")
        turns(node, "running")
        subprocess.run(["umount", "--lazy", disk], check=True)
        turns(node, "degraded", str(disk))
        mount(disk)
        turns(node, "running")
        succeeds(node, "g2", number=2)


@pytest.mark.parametrize("watch", ["inotify", pytest.param("poll", marks=pytest.mark.slow)])
def test_a_root_that_vanishes_degrades_the_daemon_until_it_is_back(tmp_path, socket_dir, watch):
    """Fault 26: the folder is gone, and back."""
    with daemon(tmp_path, socket_dir, {"watch": watch, "poll_s": 0.1, "scan_s": 0.5}) as node:
        away = node.raw_root.rename(tmp_path / "away")
        turns(node, "degraded", "No such file")
        away.rename(node.raw_root)
        turns(node, "running")
        succeeds(node, "g1", number=1)
        shutil.rmtree(node.raw_root)
        turns(node, "degraded")
        succeeds(node, "g2", number=2)
        turns(node, "running")


@contextmanager
def hanging(path: Path) -> Iterator[None]:
    """Mount a FUSE filesystem that never answers."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={descriptor},rootmode=40000,user_id=0,group_id=0".encode()
    if libc.mount(b"hanging", os.fsencode(path), b"fuse", 0, options):
        os.close(descriptor)
        pytest.skip(f"cannot mount FUSE: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        os.close(descriptor)  # calls that hang get an error now
        libc.umount2(os.fsencode(path), 2)


@needs_mount
@pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs /dev/fuse")
@pytest.mark.slow
@pytest.mark.parametrize("watch", ["inotify", "poll"])
def test_a_root_that_hangs_stops_neither_the_supervisor_nor_other_roots(tmp_path, socket_dir, watch):
    """Fault 27: the filesystem hangs."""
    other = tmp_path / "other"
    other.mkdir()
    arrivals = {"watch": watch, "poll_s": 0.1, "scan_s": 0.5}
    with daemon(tmp_path, socket_dir, arrivals | {"roots": [str(tmp_path / "raw"), str(other)]}) as node:
        with hanging(other):
            turns(node, "degraded", "has not responded")
            for number in range(1, 4):
                succeeds(node, f"g{number}", number)
        turns(node, "running")
        node.raws.root = other
        succeeds(node, "g4", number=4)


# --- very many files ---


@pytest.mark.slow
def test_old_files_are_neither_watched_nor_read(tmp_path, socket_dir):
    """Fault 28: very many old files at start; the benchmark has a million."""
    root = tmp_path / "raw"
    write_old_files(root, "DemoCam", 5000, Clock().tai() - 3 * 86_400, exposures_a_day=250)
    with daemon(tmp_path, socket_dir, {"watch": "inotify"}) as node:
        node.wait(lambda: all(source.live for source in node.status().arrivals))
        assert watched_folders(node.process.pid) < 20
        assert sum(source.files for source in node.status().arrivals) == 0
        succeeds(node, "g1", number=1)


def test_a_file_that_all_sources_report_is_ingested_once(tmp_path, socket_dir, own_publisher):
    """Fault 29: several sources report one file."""
    arrivals = {"watch": "inotify", "scan_s": 0.1, "subscribe": [own_publisher.address]}
    with daemon(tmp_path, socket_dir, arrivals) as node:
        own_publisher.wait_for_subscriber()
        reserve(node, "g1", nimages=2)
        path = node.land("g1", snaps=2)
        key = str(path.relative_to(node.raw_root))
        for _ in range(5):
            own_publisher.send({"path": str(path)})
            own_publisher.send({"Records": [record(key), record(key)]})
        node.wait(lambda: ingested(node) == {("g1", 1): 1})
        node.land("g1", number=2, snap=2, snaps=2)
        assert node.relay.outcome("g1").outcome == Outcome.SUCCEEDED
        assert ingested(node) == {("g1", 1): 1, ("g1", 2): 1}
        assert node.daemon.late(1) == ()
