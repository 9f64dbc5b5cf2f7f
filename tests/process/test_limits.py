# SPDX-License-Identifier: BSD-3-Clause
"""Workers that exceed their limits in a real daemon."""

import itertools
import os
import signal
import subprocess
import uuid
from pathlib import Path

import pytest
from node import TESTS, running

from ppdaemon.states import Outcome, SlotState
from ppdaemon.testing.processes import alive, descendants, title
from ppdaemon.testing.waiting import TIMEOUT_S, wait_until

SAMPLE_S = 0.1


@pytest.fixture(scope="module")
def changes():
    """Return the configuration of the daemon that some tests here share."""
    memory = {"sample_s": SAMPLE_S, "soft": "100MB", "hard": "300MB", "ramdisk": "10MB", "budget": "8GB"}
    environment = {"PYTHONPATH": str(TESTS)}
    return {"work": "greedy", "memory": memory, "environment": environment, "log_max": "1MB"}


def greedy(folder, sockets, *, memory=None, **workers):
    """Run a node whose workers can have the faults of `greedy`."""
    memory = {"sample_s": SAMPLE_S, **(memory or {})}
    environment = {"PYTHONPATH": str(TESTS)}
    return running(folder, sockets, work="greedy", memory=memory, environment=environment, **workers)


def test_a_leak_of_200_mb_a_visit_ends_between_visits(tmp_path, socket_dir):
    """Fault 37: a leak of 200 MB a visit costs no visit."""
    memory = {"soft": "150MB", "hard": "2GB"}
    with greedy(tmp_path, socket_dir, min=1, spare=0, max=1, memory=memory) as node:
        for k in (1, 2):
            # Four times 60 MB; the last fault waits until the meters have seen them.
            node.relay.reserve(
                f"g{k}", survey="prepare:leak ingest:leak process:leak written:leak export:gate"
            )
            node.land(f"g{k}", number=k)
            node.wait(lambda: (node.workers()[0].memory_mb or 0) > 230)
            node.open_gate(f"g{k}")
            assert node.relay.outcome(f"g{k}").outcome == Outcome.SUCCEEDED
            node.wait(lambda k=k: node.workers()[0].epoch == k + 1)
            assert node.workers()[0].note.startswith("recycled: ")
        assert all(row.attempt == 1 for k in (1, 2) for row in node.visit(f"g{k}"))


@pytest.mark.parametrize("fault", ["gorge", "gorge_in_fork"])
def test_a_burst_of_memory_costs_that_worker_only(node, group, fault):
    """Fault 38: gigabytes within a second."""
    other = f"{group}-other"
    node.relay.reserve(group, survey=f"process:{fault}")
    node.relay.reserve(other)
    node.wait(lambda: sum(row.state == SlotState.WAITING for row in node.workers()) == 2)
    started = (SlotState.WAITING, SlotState.IDLE)  # a third one may still start
    before = {row.slot: (row.epoch, row.pid) for row in node.workers() if row.state in started}
    node.land(group)
    assert node.relay.outcome(group).outcome == Outcome.OUT_OF_MEMORY
    node.land(other)
    assert node.relay.outcome(other).outcome == Outcome.SUCCEEDED
    slot = node.visit(group)[0].slot
    node.wait(lambda: node.workers()[slot].state == SlotState.IDLE)
    after = {row.slot: (row.epoch, row.pid) for row in node.workers()}
    assert {number for number in before if after[number] != before[number]} == {slot}


def test_a_visit_that_takes_too_much_cpu_time_is_stopped(tmp_path, socket_dir):
    """Fault 32: an endless loop, long before its wall time limit."""
    with greedy(tmp_path, socket_dir, attempts=1, times={"cpu_s": 0.2, "run_s": 60}) as node:
        node.relay.reserve("g1", survey="process:burn")
        node.land("g1")
        entry = node.relay.outcome("g1")
        assert entry.outcome == Outcome.RUN_TIMEOUT
        assert entry.reason == "the visit took more than 0.2 s of CPU time"


def test_a_flood_of_log_lines_is_cut_and_counted(node, group):
    """Fault 41: 100,000 lines a second, lines without end, control characters."""
    before = node.status().counters.get("log_cut", 0)
    for each, survey in ((group, "process:flood"), (f"{group}-other", "")):
        node.relay.reserve(each, survey=survey)
    for each in (group, f"{group}-other"):
        node.land(each)
        assert node.relay.outcome(each).outcome == Outcome.SUCCEEDED
    log = node.state / "logs" / f"worker-{node.visit(group)[0].slot:04d}.log"
    node.wait(lambda: log.stat().st_size < 1_000_000)
    node.wait(lambda: node.status().counters.get("log_cut", 0) > before)
    text = log.read_bytes()
    assert text.startswith(b"... ")
    assert b" bytes were cut here\n" in text[:100]
    assert b"\x1b[2J\x00\r\x07\xff" in text


# --- the RAM disk ------------------------------------------------------------


@pytest.fixture
def small_ramdisk(socket_dir):
    """Mount 8 MB with 300 inodes where the node has its RAM disk."""
    folder = socket_dir / "ram"
    folder.mkdir()
    options = "size=8m,nr_inodes=300,mode=0700"
    mount = ["mount", "-t", "tmpfs", "-o", options, "ppdaemon-test", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_worker_over_its_ram_disk_quota_is_stopped_and_its_repo_wiped(node, group):
    """Fault 42: one worker hoards, before the RAM disk is full."""
    other = f"{group}-other"
    node.relay.reserve(group, survey="process:hoard")
    node.relay.reserve(other)
    node.land(group)
    entry = node.relay.outcome(group)
    assert entry.outcome == Outcome.RAMDISK_FULL
    assert entry.reason == "20 MB on the RAM disk, 10 MB allowed"
    node.land(other)
    assert node.relay.outcome(other).outcome == Outcome.SUCCEEDED
    slot = node.visit(group)[0].slot
    node.wait(lambda: node.workers()[slot].state == SlotState.IDLE)
    repo = node.ramdisk / "ppdaemon-n1" / "slots" / f"{slot:04d}"
    assert {path.name for path in repo.iterdir()} == {"registry", "tmp"}


def test_a_full_ram_disk_is_reported_and_costs_the_visit_that_filled_it(tmp_path, socket_dir, small_ramdisk):
    """Fault 42: nearly full, which is reported before it costs a visit; full, then out of inodes, in any
    stage.
    """
    stages, faults = ("prepare", "ingest", "process", "export"), ("fill_bytes", "fill_inodes")
    with greedy(tmp_path, socket_dir, image_timeout_s=100) as node:
        assert node.status().ramdisk_mb < 1
        other = small_ramdisk / "others"
        other.write_bytes(bytes(8_200_000))
        problem = f"{small_ramdisk / 'ppdaemon-n1'} has only "
        node.wait(lambda: any(line.startswith(problem) for line in node.status().problem_texts))
        assert node.status().state == "degraded"
        node.wait(lambda: node.status().ramdisk_mb > 8.2)
        other.unlink()
        node.wait(lambda: node.status().state == "running")
        node.relay.reserve("other")
        node.wait(lambda: any(row.state == SlotState.WAITING for row in node.workers()))
        for number, (stage, fault) in enumerate(itertools.product(stages, faults), 1):
            visit = f"{stage}-{fault}"
            node.relay.reserve(visit, survey=f"{stage}:{fault}")
            node.land(visit, number=number)
            entry = node.relay.outcome(visit)
            assert entry.outcome == Outcome.RAMDISK_FULL
            assert "No space left on device" in entry.reason
            slot = node.visit(visit)[0].slot
            node.wait(lambda slot=slot: node.workers()[slot].state == SlotState.IDLE)
            repo = small_ramdisk / "ppdaemon-n1" / "slots" / f"{slot:04d}"
            # The worker sends its outcome first, then cleans up.
            node.wait(lambda repo=repo: {path.name for path in repo.iterdir()} == {"registry", "tmp"})
        node.land("other", number=9)
        assert node.relay.outcome("other").outcome == Outcome.SUCCEEDED


# --- control groups ----------------------------------------------------------


@pytest.fixture
def cgroup():
    """Create a control group below the root of the host's version 2 hierarchy."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    root = next((Path(mount[1]) for mount in mounts if mount[2] == "cgroup2"), None)
    if root is None:
        pytest.skip("this host has no control groups of version 2")
    folder = root / f"ppdaemon-test-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    if not (folder / "cgroup.kill").exists():
        folder.rmdir()
        pytest.skip("cgroup.kill needs Linux 5.14")
    yield folder
    (folder / "cgroup.kill").write_text("1")
    events = folder / "cgroup.events"
    wait_until(lambda: "populated 0" in events.read_text(), TIMEOUT_S, "the group's processes")
    left = sorted(path.name for path in folder.iterdir() if path.is_dir())
    for name in left:
        (folder / name).rmdir()
    folder.rmdir()
    assert left == ["supervisor"]


def delegated(group):
    """Return a command that starts the command after it in the group."""
    return ["sh", "-c", 'echo $$ > "$0"/cgroup.procs && exec "$@"', str(group)]


def group_of(pid):
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return next(line for line in lines if line.startswith("0::")).rpartition("/")[2]


def test_a_delegated_group_is_divided_and_kills_a_detached_grandchild_with_its_worker(
    tmp_path, socket_dir, cgroup
):
    """Fault 39: a daemonized grandchild, after the end of the zygote."""
    with greedy(tmp_path, socket_dir, launcher=delegated(cgroup)) as node:
        limits = node.status().limits
        assert limits["descendants"] == "supervisor by process group; kernel (cgroup)"
        controllers = (cgroup / "cgroup.controllers").read_text().split()
        for name, controller in (("memory", "memory"), ("processes", "pids")):
            assert ("kernel (cgroup)" in limits[name]) == (controller in controllers)
            assert (f"no {controller} controller" in limits[name]) == (controller not in controllers)
        # The exporter may start after the workers.
        node.wait(lambda: any(title(pid) == "ppdaemon exporter" for pid in descendants(node.pid)))
        rows = node.workers()
        assert {group_of(row.pid) for row in rows} == {f"worker-{row.slot:04d}" for row in rows}
        others = {node.pid, *descendants(node.pid)} - {row.pid for row in rows}
        assert len(others) >= 3  # supervisor, zygote, exporter
        assert {group_of(pid) for pid in others} == {"supervisor"}
        node.relay.reserve("g1", survey="prepare:detach process:die@1")
        note = node.state / "grandchild"
        grandchild = int(node.wait(lambda: note.exists() and note.read_text()))
        node.wait(lambda: any(row.state == SlotState.WAITING for row in node.workers()))
        (holder,) = (row for row in node.workers() if row.state == SlotState.WAITING)
        assert group_of(grandchild) == group_of(holder.pid)
        assert os.getsid(grandchild) not in (grandchild, holder.pid)
        (zygote,) = node.zygotes()
        os.kill(zygote, signal.SIGKILL)
        wait_until(lambda: not alive(zygote), TIMEOUT_S)
        assert alive(grandchild)
        note.unlink()  # the second attempt writes its own
        node.land("g1")
        wait_until(lambda: not alive(grandchild), TIMEOUT_S, "the grandchild outlives its worker")
        assert node.relay.outcome("g1").outcome == Outcome.SUCCEEDED


def test_without_a_delegated_group_the_status_names_the_limits_that_are_not_enforced(node):
    limits = node.status().limits
    assert limits["memory"].startswith("300 MB, supervisor every 0.1 s; not by the kernel: ")
    assert limits["RAM disk"] == "10 MB, supervisor every 0.5 s"
    assert limits["all workers"] == "8.0 GB, supervisor before each fork"
