# SPDX-License-Identifier: BSD-3-Clause
"""The division of a delegated control group, in folders that imitate one."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from ppdaemon.config import MemoryConfig, WorkersConfig
from ppdaemon.controlgroup import NoControlGroup, own_memory_kills
from ppdaemon.node.slots.cgroups import Cgroups, delegated_group

CONFIG = WorkersConfig(tasks_max=99, memory=MemoryConfig(soft=100, hard=1000, ramdisk=500))
SLOT = 3


@dataclass
class Host:
    """A hierarchy of version 2 with this process in group ``unit``."""

    root: Path
    proc: Path

    @property
    def base(self):
        return self.root / "unit"

    @property
    def leaf(self):
        return self.base / f"worker-{SLOT:04d}"

    def files(self, group, **texts):
        """Create the files of a group, as the kernel does."""
        group.mkdir(exist_ok=True)
        for name, text in texts.items():
            (group / name.replace("_", ".", 1)).write_text(text)

    def claim(self):
        return Cgroups.claim(CONFIG, self.proc)


@pytest.fixture
def host(tmp_path):
    host = Host(tmp_path / "fs", tmp_path / "proc")
    host.proc.mkdir()
    host.root.mkdir()
    (host.proc / "cgroup").write_text("4:memory:/elsewhere\n0::/unit\n")
    (host.proc / "mountinfo").write_text(
        "25 1 0:22 / /proc rw,relatime - proc proc rw\n"
        f"41 31 0:38 / {host.root} rw,relatime shared:9 - cgroup2 cgroup2 rw\n"
    )
    common = {"cgroup_events": "populated 0\n", "cgroup_procs": "", "cgroup_kill": ""}
    host.files(
        host.base,
        **common | {"cgroup_procs": f"{os.getpid()}\n"},
        cgroup_controllers="cpu memory pids\n",
        cgroup_subtree_control="",
    )
    host.files(host.base / "supervisor", **common)
    limits = {"memory_max": "", "memory_swap.max": "", "memory_oom.group": "", "pids_max": ""}
    host.files(host.leaf, **common, **limits, memory_events="oom 0\noom_kill 0\n")
    return host


def test_the_supervisor_moves_into_a_leaf_and_enables_the_controllers(host):
    cgroups = host.claim()
    assert (host.base / "supervisor" / "cgroup.procs").read_text() == str(os.getpid())
    assert (host.base / "cgroup.subtree_control").read_text() == "+memory +pids"
    assert {cgroups.enforced_by(limit) for limit in ("memory", "pids", "kill")} == {"kernel (cgroup)"}


def test_a_group_that_the_service_manager_has_already_divided_is_used(host):
    (host.proc / "cgroup").write_text("0::/unit/supervisor\n")
    (host.base / "cgroup.procs").write_text("")
    assert delegated_group(host.proc) == host.base


def test_a_worker_gets_its_limits_before_it_enters_its_leaf(host):
    host.claim().add_worker(SLOT, 4711)
    texts = {path.name: path.read_text() for path in host.leaf.iterdir()}
    assert texts["memory.max"] == "1500"
    assert texts["memory.swap.max"] == "0"
    assert texts["memory.oom.group"] == "1"
    assert texts["pids.max"] == "99"
    assert texts["cgroup.procs"] == "4711"


def test_a_kernel_without_swap_accounting_still_limits_memory(host):
    (host.leaf / "memory.swap.max").unlink()
    cgroups = host.claim()
    cgroups.add_worker(SLOT, 4711)
    assert (host.leaf / "memory.max").read_text() == "1500"
    assert not (host.leaf / "memory.swap.max").exists()
    assert not cgroups.problem


def test_only_kills_of_the_present_worker_count(host):
    cgroups = host.claim()
    (host.leaf / "memory.events").write_text("oom 9\noom_kill 2\n")
    cgroups.add_worker(SLOT, 4711)
    assert not cgroups.out_of_memory(SLOT)
    (host.leaf / "memory.events").write_text("oom 9\noom_kill 3\noom_group_kill 1\n")
    assert cgroups.out_of_memory(SLOT)
    cgroups.add_worker(SLOT, 4712)
    assert not cgroups.out_of_memory(SLOT)


def test_a_dead_workers_descendants_are_killed_at_once(host):
    cgroups = host.claim()
    (host.leaf / "cgroup.kill").write_text("")
    cgroups.kill(SLOT)
    cgroups.wait_empty(SLOT)
    assert (host.leaf / "cgroup.kill").read_text() == "1"


def test_leaves_of_a_previous_run_are_killed_at_the_start(host):
    host.claim()
    assert (host.leaf / "cgroup.kill").read_text() == "1"


def test_a_slot_without_a_leaf_is_no_error(host):
    cgroups = host.claim()
    for action in (cgroups.kill, cgroups.wait_empty, cgroups.remove):
        action(77)
    assert not cgroups.out_of_memory(77)


def test_a_worker_that_cannot_be_limited_is_reported_until_one_can(host):
    cgroups = host.claim()
    (host.leaf / "memory.max").rename(host.leaf / "gone")
    cgroups.add_worker(SLOT, 4711)
    assert cgroups.problem.startswith(
        f"worker 4711 of slot {SLOT} is limited by the supervisor only, not by the kernel"
    )
    (host.leaf / "gone").rename(host.leaf / "memory.max")
    cgroups.add_worker(SLOT, 4712)
    assert not cgroups.problem


def test_a_missing_controller_is_reported_and_the_other_used(host):
    (host.base / "cgroup.controllers").write_text("cpu pids\n")
    cgroups = host.claim()
    cgroups.add_worker(SLOT, 4711)
    assert cgroups.enforced_by("memory") == "not by the kernel: unit has no memory controller"
    assert cgroups.enforced_by("pids") == "kernel (cgroup)"
    assert (host.leaf / "memory.max").read_text() == ""
    assert (host.leaf / "pids.max").read_text() == "99"


def test_an_old_kernel_does_not_kill_groups(host):
    (host.base / "supervisor" / "cgroup.kill").unlink()
    assert host.claim().enforced_by("kill") == "not by the kernel: cgroup.kill needs Linux 5.14"


def test_a_group_with_other_processes_is_not_delegated(host):
    (host.base / "cgroup.procs").write_text(f"1\n{os.getpid()}\n")
    with pytest.raises(NoControlGroup, match="unit is not delegated: other processes are in it"):
        delegated_group(host.proc)


def test_the_root_group_is_not_delegated(host):
    (host.proc / "cgroup").write_text("0::/\n")
    with pytest.raises(NoControlGroup, match="the root control group"):
        delegated_group(host.proc)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("cgroup", "4:memory:/unit\n", "this host has no control groups of version 2"),
        ("cgroup", "0::/../outside\n", "no control groups of version 2 are mounted"),
        ("mountinfo", "25 1 0:22 / /proc rw - proc proc rw\n", "no control groups of version 2 are mounted"),
    ],
)
def test_without_a_group_nothing_is_enforced_and_the_reason_reported(host, name, text, reason):
    (host.proc / name).write_text(text)
    cgroups = host.claim()
    for limit in ("memory", "pids", "kill"):
        assert cgroups.enforced_by(limit) == f"not by the kernel: {reason}"
    cgroups.add_worker(SLOT, 4711)
    cgroups.kill(SLOT)
    cgroups.wait_empty(SLOT)
    cgroups.remove(SLOT)
    cgroups.close()
    assert not cgroups.out_of_memory(SLOT)
    assert (host.leaf / "cgroup.procs").read_text() == ""


@pytest.mark.parametrize(
    ("files", "kills"),
    [
        ({"memory_events": "low 0\noom 3\noom_kill 2\noom_group_kill 1\n"}, 2),
        ({}, 0),  # the root group, or no memory controller
    ],
)
def test_the_kills_of_the_own_group_are_counted(host, files, kills):
    host.files(host.base, **files)
    assert own_memory_kills(host.proc) == kills


@pytest.mark.parametrize("text", ["4:memory:/unit\n", "0::/gone\n", None])
def test_without_a_group_no_kills_are_counted(host, text):
    if text is None:
        (host.proc / "cgroup").unlink()
    else:
        (host.proc / "cgroup").write_text(text)
    assert own_memory_kills(host.proc) == 0
