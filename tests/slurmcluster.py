# SPDX-License-Identifier: BSD-3-Clause
"""A cluster of Slurm on this machine: its real programs, from Debian's packages, with two hosts.

Each host is a ``slurmd`` of its own. All files are below one folder, all connections on the loopback
interface; no munge, no accounting. The user of the tests is the only one. With the tracking ``cgroup`` each
``slurmd`` sees one empty folder of this machine's control groups as all of them.
"""

import os
import pwd
import re
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Literal

import pytest
from debian import DebianPrograms, running_program, unpacked
from ports import free_ports

from ppdaemon.processes import process_tree, processes_with_variable
from ppdaemon.testing.processes import title
from ppdaemon.testing.waiting import wait_until

HOSTS = ("n1", "n2")
KILL_WAIT_S = 15
START_S = 30.0
FREEZER = Path("/sys/fs/cgroup/freezer")
COMMAND_S = 60.0
type Tracking = Literal["linuxproc", "cgroup"]
"""How Slurm finds the processes of a job."""
CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={hostname}(127.0.0.1)
SlurmctldPort={ports[0]}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/none
AuthInfo=cred_expire=5
CredType=cred/none
PluginDir={plugins}
PlugStackConfig={folder}/plugstack.conf
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/controller
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
MailProg=/bin/true
ProctrackType=proctrack/{tracking}
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/linear
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait={kill_wait_s}
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
ReturnToService=2
NodeName=n1 NodeHostname={hostname} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=100
NodeName=n2 NodeHostname={hostname} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=100
PartitionName=night Nodes=n1,n2 Default=YES PriorityTier=1
PartitionName=urgent Nodes=n1,n2 PriorityTier=10
"""


class SlurmCluster:
    """The commands of a cluster that runs."""

    def __init__(self, folder: Path, programs: DebianPrograms, configuration: Path):
        self.folder = folder
        self._programs = programs
        self._variables = {"SLURM_CONF": str(configuration)}

    @property
    def environment(self) -> dict[str, str]:
        """The environment of its programs and jobs."""
        return self._programs.environment | self._variables

    def run(self, program: str, *arguments: object) -> str:
        """Run a command; return its output."""
        command = [self._programs.program(program), *map(str, arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=self.environment, timeout=COMMAND_S, cwd=self.folder
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def submit(self, *arguments: object) -> str:
        """Submit a job; return its number. The job has the libraries of these programs, too."""
        return self.run("sbatch", "--parsable", *arguments)

    def state(self, job: str) -> str:
        """Return the state of a job, such as ``RUNNING``; an ended one may have none."""
        found = re.search(r"JobState=(\w+)", self.run("scontrol", "show", "job", job))
        return "" if found is None else found[1]

    def host_of(self, job: str) -> str:
        """Return the host of a job; blank before it has one."""
        return self.run("squeue", "--noheader", f"--jobs={job}", "--format=%N")

    def states_of_hosts(self) -> Mapping[str, str]:
        """Return the state of each host, such as ``idle``; with a mark if it does not answer."""
        lines = self.run("sinfo", "--noheader", "--Node", "--partition=night", "--format=%N %t")
        return dict(line.split() for line in lines.splitlines())

    def processes_of(self, job: str, host: str) -> set[int]:
        """Return the processes that Slurm has found for a job."""
        lines = self.run("scontrol", "listpids", job, host).splitlines()[1:]
        return {int(line.split()[0]) for line in lines}

    def story(self) -> str:
        """Return the logs of its programs."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in logs)


@contextmanager
def slurm_cluster(folder: Path, tracking: Tracking = "linuxproc") -> Iterator[SlurmCluster]:
    """Run a cluster in an empty folder; skip where Debian's packages cannot be had, or this machine has no
    control groups for it.
    """
    if tracking == "cgroup" and not (os.access(FREEZER, os.W_OK) and os.geteuid() == 0):
        pytest.skip(f"Slurm's proctrack/cgroup needs root and {FREEZER}, of control groups of version 1")
    programs = unpacked("slurm-wlm")
    (plugin,) = programs.root.glob("usr/lib/*/slurm-wlm/proctrack_linuxproc.so")
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(
            hostname=socket.gethostname().partition(".")[0],
            user=pwd.getpwuid(os.geteuid()).pw_name,
            folder=folder,
            tracking=tracking,
            plugins=plugin.parent,
            ports=free_ports(3),
            kill_wait_s=KILL_WAIT_S,
        )
    )
    (folder / "plugstack.conf").touch()
    for name in ("controller", *(f"spool-{host}" for host in HOSTS)):
        (folder / name).mkdir()
    cluster = SlurmCluster(folder, programs, configuration)
    stepd = programs.program("slurmstepd-wlm")
    with ExitStack() as running:
        launchers: dict[str, Sequence[str]] = dict.fromkeys(HOSTS, ())
        if tracking == "cgroup":
            (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
            launchers = {host: running.enter_context(_control_groups(folder, host)) for host in HOSTS}
        controller = (programs.program("slurmctld-wlm"), "-D", "-c", "-i")
        running.enter_context(running_program(controller, folder / "slurmctld.log", cluster.environment))
        for host in HOSTS:
            slurmd = (*launchers[host], programs.program("slurmd-wlm"), "-D", "-N", host, "-d", stepd)
            log = folder / f"slurmd-{host}.log"
            running.enter_context(running_program(slurmd, log, cluster.environment))
        running.callback(_end_jobs, configuration)
        wait_until(lambda: _answers(cluster), START_S, cluster.story)
        yield cluster


def _end_jobs(configuration: Path) -> None:
    """Kill what is left of jobs after a failure, which would outlive the cluster."""
    for stepd in processes_with_variable("SLURM_CONF", str(configuration)):
        if title(stepd).startswith("slurmstepd"):
            for pid in reversed(process_tree(stepd)):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _answers(cluster: SlurmCluster) -> bool:
    try:
        return dict(cluster.states_of_hosts()) == dict.fromkeys(HOSTS, "idle")
    except AssertionError:  # the controller does not listen yet
        return False


@contextmanager
def _control_groups(folder: Path, host: str) -> Iterator[Sequence[str]]:
    """Make a control group for a host; yield the command that starts its command in it, with mounts of its
    own, where nothing of the other control groups of this machine is left.
    """
    group, seen = FREEZER / f"ppdaemon-test-{os.getpid()}-{host}", folder / f"groups-{host}"
    for made in (group, seen):
        made.mkdir()
    script = (
        f"echo $$ > {group}/cgroup.procs; mount -t tmpfs tmpfs {seen}; mkdir {seen}/freezer; "
        f"mount --bind {group} {seen}/freezer; umount -R /sys/fs/cgroup; "
        f'mount --rbind {seen} /sys/fs/cgroup; exec "$@"'
    )
    try:
        yield ("unshare", "--mount", "--", "sh", "-ec", script, "sh")
    finally:
        # Each process has left its group when it was reaped, perhaps by another process.
        wait_until(lambda: _removed(group), COMMAND_S, lambda: f"processes are left in {group}")


def _removed(group: Path) -> bool:
    with suppress(OSError):  # a process is left
        for path, _, _ in group.walk(top_down=False):
            path.rmdir()
    return not group.exists()
