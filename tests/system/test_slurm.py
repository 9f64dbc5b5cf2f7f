# SPDX-License-Identifier: BSD-3-Clause
"""The daemon as jobs of a real Slurm: however a job ends, no visit is lost and nothing is left of it."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from slurmcluster import HOSTS, KILL_WAIT_S, SlurmCluster, slurm_cluster

from ppdaemon.errors import NotFound, Unavailable
from ppdaemon.node.lock import OWNER_VARIABLE
from ppdaemon.processes import processes_with_variable
from ppdaemon.states import SlotState
from ppdaemon.testing.node import TIMES, NodeProcess, node_config
from ppdaemon.testing.played import ClientSockets
from ppdaemon.testing.processes import descendants
from ppdaemon.testing.relay import RelayProcess, SubmitClient
from ppdaemon.testing.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

SCRIPT = Path(__file__).parents[2] / "etc" / "slurm" / "ppdaemon.sbatch"
WITHIN_S = 60.0
LIMIT_S = 150.0
"""Slurm has time limits of whole minutes, and compares each job with its limit every 30 s."""
of_both_trackings = pytest.mark.parametrize("cluster", ["linuxproc", "cgroup"], indirect=True, scope="module")


@pytest.fixture(scope="module")
def cluster(request, tmp_path_factory, module_leaves_nothing) -> Iterator[SlurmCluster]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm"), getattr(request, "param", "linuxproc")) as running:
        yield running


class Site:
    """A relay, and the daemons of the two hosts while they have jobs."""

    def __init__(self, folder: Path, sockets: Path, cluster: SlurmCluster, client: SubmitClient, nodes: str):
        self.cluster = cluster
        self.client = client
        times = TIMES | {"run_s": 120, "stop_s": KILL_WAIT_S / 2, "kill_s": 2}
        config = node_config(
            folder,
            sockets,
            relay={"address": nodes, "silence_s": 2.0},
            arrivals={"image_timeout_s": 600},
            workers={"times": times},
        )
        config["node"] |= {
            "name": "${SLURMD_NODENAME}",
            "state_dir": f"{folder}/state-${{SLURMD_NODENAME}}",
            "control": f"{sockets}/${{SLURMD_NODENAME}}",
        }
        self.config = folder / "ppdaemon.yaml"
        self.config.write_text(yaml.safe_dump(config))
        self.script, self.script_of_two = folder / SCRIPT.name, folder / "two.sbatch"
        # Without the libraries of Slurm's packages.
        command = f"env -u LD_LIBRARY_PATH {Path(sys.executable).parent}/ppdaemon"
        self.script.write_text(SCRIPT.read_text().replace("/opt/ppdaemon/bin/ppdaemon", command))
        self.script_of_two.write_text(
            f"#!/bin/bash\nexec srun --ntasks-per-node=1 {command} run --config {self.config}\n"
        )
        self.logs = folder
        self.nodes = {
            host: NodeProcess(
                folder, yaml.safe_load(self.config.read_text().replace("${SLURMD_NODENAME}", host))
            )
            for host in HOSTS
        }

    def submit(self, *options: object) -> tuple[str, str]:
        """Submit the batch script; return job and host when its daemon has idle workers."""
        log = f"--output={self.logs}/job-%N.log"
        # One task of an array: the number of the array is that of its last job.
        job = self.cluster.submit("--array=1", log, "--open-mode=append", *options, self.script, self.config)
        host = self.wait(lambda: self.cluster.host_of(job))
        self.wait(lambda: self.is_ready(host))
        return job, host

    def is_ready(self, host: str) -> bool:
        try:
            return self.nodes[host].is_ready() and "connected" in self.nodes[host].status().relay
        except Unavailable:
            return False

    def state(self, host: str) -> str:
        """Return the state of a host's daemon; blank if it does not answer."""
        try:
            return self.nodes[host].status().state
        except Unavailable:
            return ""

    def wait[T](self, condition: Callable[[], T], within_s: float = WITHIN_S) -> T:
        return wait_until(condition, within_s, self.story)

    def story(self) -> str:
        logs = [
            f"--- {path.name}\n{path.read_text()[-4000:]}" for path in sorted(self.logs.glob("job-*.log"))
        ]
        return "\n".join([*logs, self.cluster.story()])

    def announce(self, group: str, survey: str = "") -> None:
        assert self.client.announce(group, survey=survey, nimages=1)["status"] == "accepted"

    def land(self, group: str) -> None:
        """Write the raw of a visit, for both hosts."""
        self.nodes[HOSTS[0]].land(group)

    def has_ended(self, group: str) -> bool:
        return self.client.outcomes(group) == {0: "succeeded"}

    def check_end(self, *groups: str) -> None:
        """Check that each visit was done once, and that no host has anything of a job."""
        for group in groups:
            self.wait(lambda group=group: self.has_ended(group))
        written = [mark for node in self.nodes.values() for mark in node.marks().items()]
        assert sorted(written) == [(f"{group}~0", 1) for group in sorted(groups)]
        self.wait(lambda: self.cluster.states_of_hosts() == dict.fromkeys(HOSTS, "idle"))
        for node in self.nodes.values():
            owned = processes_with_variable(OWNER_VARIABLE, str(node.state))
            assert not owned, self.story()
            assert list(node.ramdisk.glob("ppdaemon-*")) == []


@contextmanager
def site_of(folder: Path, sockets: Path, cluster: SlurmCluster) -> Iterator[Site]:
    relay = RelayProcess(sockets, instruments={"DemoCam": {"detectors": "0"}}).start()
    try:
        with ClientSockets() as wires:
            yield Site(folder, sockets, cluster, SubmitClient(wires, relay.submit), relay.nodes)
    finally:
        cluster.run("scancel", "--user", str(os.geteuid()))
        wait_until(lambda: not cluster.run("squeue", "--noheader"), WITHIN_S, cluster.story)
        relay.stop()


@pytest.fixture
def site(tmp_path, socket_dir, cluster) -> Iterator[Site]:
    with site_of(tmp_path, socket_dir, cluster) as made:
        yield made


def begin(site: Site, host: str) -> None:
    """Let a host process one visit-detector, which leaves a process, and wait with another one."""
    site.announce("runs", "process:detach process:gate")
    site.land("runs")
    site.wait(lambda: site.nodes[host].at_gate("runs"))
    site.announce("waits")
    site.wait(lambda: any(row.state == SlotState.WAITING for row in site.nodes[host].workers()))


@of_both_trackings
def test_slurm_finds_all_processes_of_a_daemon(site):
    job, host = site.submit()
    begin(site, host)
    supervisor = site.nodes[host].status().pid
    site.wait(lambda: {supervisor, *descendants(supervisor)} <= site.cluster.processes_of(job, host))
    site.nodes[host].open_gate("runs")
    site.land("waits")
    site.wait(lambda: site.has_ended("runs") and site.has_ended("waits"))
    site.cluster.run("scancel", job)
    site.check_end("runs", "waits")


@pytest.mark.parametrize(
    ("options", "command", "within_s"),
    [
        pytest.param((), "scancel {job}", WITHIN_S, id="canceled"),
        pytest.param((), "scancel --batch --signal=TERM {job}", WITHIN_S, id="signal"),
        # The limit is lowered only now: with a minute from the start the daemon would take no visits.
        pytest.param(
            ("--time=60",), "scontrol update job={job} TimeLimit=1", LIMIT_S, id="warned of its limit"
        ),
        pytest.param(
            ("--time=60", "--signal=B:CONT@1"), "scontrol update job={job} TimeLimit=1", LIMIT_S, id="limit"
        ),
    ],
)
def test_what_a_job_does_when_it_ends_is_finished_and_the_rest_is_done_by_another_one(
    site, options, command, within_s
):
    job, host = site.submit(*options)
    begin(site, host)
    site.cluster.run(*command.format(job=job).split())
    site.wait(lambda: site.state(host) == "stopping", within_s)
    site.nodes[host].open_gate("runs")
    site.wait(lambda: site.has_ended("runs"))
    site.wait(lambda: site.cluster.states_of_hosts()[host] == "idle")
    (other,) = set(HOSTS) - {host}
    next_job, _ = site.submit(f"--nodelist={other}")
    site.land("waits")
    site.wait(lambda: site.has_ended("waits"))
    site.cluster.run("scancel", next_job)
    site.check_end("runs", "waits")


@of_both_trackings
def test_what_does_not_end_in_time_is_done_by_another_host_too(site):
    job, host = site.submit()
    begin(site, host)
    site.cluster.run("scancel", job)
    site.wait(lambda: site.cluster.states_of_hosts()[host] == "idle")
    (other,) = set(HOSTS) - {host}
    next_job, _ = site.submit(f"--nodelist={other}")
    site.nodes[other].open_gate("runs")
    site.land("waits")
    site.wait(lambda: site.has_ended("runs") and site.has_ended("waits"))
    site.cluster.run("scancel", next_job)
    site.check_end("runs", "waits")


def test_a_preempted_job_goes_on_at_another_host_which_does_not_take_the_state_of_the_first(site):
    job, host = site.submit()
    begin(site, host)
    urgent = site.cluster.submit(
        f"--nodelist={host}", "--partition=urgent", "--output=/dev/null", "--wrap=exec sleep 1000"
    )
    site.wait(lambda: site.state(host) == "stopping")
    site.nodes[host].open_gate("runs")
    site.wait(lambda: site.has_ended("runs"))
    (other,) = set(HOSTS) - {host}
    site.wait(lambda: site.cluster.host_of(job) == other)
    site.wait(lambda: site.is_ready(other))
    site.land("waits")
    site.wait(lambda: site.has_ended("waits"))
    with pytest.raises(NotFound):
        site.nodes[other].visit("runs")
    site.cluster.run("scancel", job, urgent)
    site.check_end("runs", "waits")


@pytest.mark.parametrize("command", ["scancel", "scancel --signal=TERM"])
def test_one_job_may_have_several_hosts(site, command):
    log = f"--output={site.logs}/job-two.log"
    job = site.cluster.submit("--nodes=2", log, site.script_of_two)
    for each in HOSTS:
        site.wait(lambda each=each: site.is_ready(each))
    site.announce("runs", "process:detach process:gate")
    site.land("runs")
    (host,) = site.wait(lambda: [each for each in HOSTS if site.nodes[each].at_gate("runs")])
    site.cluster.run(*command.split(), job)
    site.wait(lambda: site.state(host) == "stopping")
    site.nodes[host].open_gate("runs")
    site.check_end("runs")


@of_both_trackings
def test_the_next_job_of_a_host_finishes_what_a_killed_one_has_begun(site):
    job, host = site.submit()
    begin(site, host)
    site.cluster.run("scancel", "--full", "--signal=KILL", job)
    site.wait(lambda: site.cluster.states_of_hosts()[host] == "idle")
    site.nodes[host].open_gate("runs")
    site.land("waits")
    next_job, _ = site.submit(f"--nodelist={host}")
    site.wait(lambda: site.has_ended("runs") and site.has_ended("waits"))
    site.cluster.run("scancel", next_job)
    site.check_end("runs", "waits")


def test_a_daemon_takes_no_visit_that_could_end_after_its_job(site):
    job, host = site.submit("--time=60")
    status = site.nodes[host].status()
    # The end of the job, less the 2 minutes of the script and the 760 s of a visit without duration.
    assert 3600 - 120 - 760 - WITHIN_S < status.takes_until_tai - status.tai < 3600 - 120 - 760
    site.announce("fits")
    site.land("fits")
    site.wait(lambda: site.has_ended("fits"))
    site.cluster.run("scancel", job)
    site.wait(lambda: not site.state(host))
    short, host = site.submit("--time=5", f"--nodelist={host}")
    site.wait(lambda: site.nodes[host].status().capacity == 0)
    site.announce("later")
    (other,) = set(HOSTS) - {host}
    long, _ = site.submit(f"--nodelist={other}")
    site.land("later")
    site.wait(lambda: site.has_ended("later"))
    assert site.nodes[other].visit("later")
    site.cluster.run("scancel", short, long)
    site.check_end("fits", "later")
