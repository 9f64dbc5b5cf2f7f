# SPDX-License-Identifier: BSD-3-Clause
"""The installed units under a real systemd, from ``make install`` to ``make uninstall``.

Covers what only the system's manager does: users, folders, the RAM disk, protections, the page's user, the
journal, boot. `test_units_live` has the daemons under a manager of one user, whose restarts are faster.
"""

import json
from collections.abc import Iterator

import pytest
import yaml
from newhost import PYTHON, Host, booted_host, what_is_missing
from systemd_user import Instance

from ppdaemon.states import ExitCode
from ppdaemon.testing.raws import RawWriter
from ppdaemon.testing.waiting import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(reason := what_is_missing(boot=True)), reason=reason),
]
PROGRAMS = ("pprelay", "ppdaemon", "ppweb")
CONFIG = "/etc/ppdaemon/ppdaemon.yaml"
SCRIPTED = {
    "workers": {"work": "ppdaemon.testing.work", "min": 1, "spare": 0, "max": 9, "preload": []},
    "engine": {"no_return": [], "apdb": {}, "apdb_tasks": []},
    "pipelines": {"main": [{"pipelines": ["/srv/any.yaml"]}]},
    "export": {"types": [".*"]},
}
"""Parts of the shipped configuration that are replaced: workers without LSST code."""


@pytest.fixture(scope="module")
def installed() -> Iterator[tuple[Host, Instance]]:
    with booted_host() as (host, systemd):
        host.make("install")
        # What pip would have installed too.
        host.run("sh", "-c", f"echo /opt/deps > /opt/ppdaemon/lib/{PYTHON}/site-packages/deps.pth")
        host.run("install", "-d", "/data/raw", "/srv/ppdaemon/alerts")
        yield host, systemd


@pytest.fixture
def host(installed: tuple[Host, Instance]) -> Host:
    """Return the host; the next test finds what this one leaves running."""
    return installed[0]


@pytest.fixture
def systemd(installed: tuple[Host, Instance]) -> Instance:
    return installed[1]


def write(host: Host, path: str, text: str) -> None:
    assert host.attempt("tee", path, text=text).returncode == 0


def status(host: Host, *options: str) -> dict[str, object]:
    """Return the status of the node, or with ``--relay`` of the relay."""
    answer: dict[str, object] = json.loads(host.run("ppctl", *options, "status", "--json"))
    return answer


def outcomes(host: Host, group: str) -> list[str | None]:
    """Return those of all attempts of a visit; none while the node does not know it."""
    answer = host.attempt("ppctl", "visit", group, "--json")
    rows = json.loads(answer.stdout) if answer.returncode == 0 else []
    return [row["outcome"] for row in rows]


@pytest.fixture
def running(host: Host, systemd: Instance) -> Host:
    """Return the host when relay and node run, with the shipped configuration and scripted workers."""
    shipped = host.run("cat", "/srv/checkout/etc/ppdaemon.yaml")
    write(host, CONFIG, yaml.safe_dump(yaml.safe_load(shipped) | SCRIPTED))
    write(host, "/srv/any.yaml", "{}\n")
    systemd.systemctl("start", "pprelay", "ppdaemon")
    for program in ("pprelay", "ppdaemon"):
        systemd.wait(program, ActiveState="active")
    wait_until(lambda: status(host)["relay_connected"], 40, "the node is connected")
    return host


def journal(host: Host, program: str, *options: str) -> str:
    """Return the texts of a program's last lines in the journal of systemd."""
    return host.run("journalctl", "-u", program, "-o", "cat", "-n", "40", *options)


def announce(host: Host, group: str) -> None:
    host.run("ppctl", "send", "--instrument", "DemoCam", "--group", group, "--duration", "30")
    wait_until(lambda: len(outcomes(host, group)) >= 9, 40, f"the node has {group}")


def land(host: Host, group: str) -> None:
    """Let the raws of a visit land; its detectors succeed."""
    RawWriter(host.root / "data" / "raw").land(group, range(9), number=sum(group.encode()))
    wait_until(lambda: outcomes(host, group).count("succeeded") == 9, 40, lambda: outcomes(host, group))


@pytest.mark.parametrize(
    "command",
    [
        "touch /usr/x",
        "touch /opt/python/x",
        "touch /opt/site/x",
        "mount -o remount,bind,rw /usr && touch /usr/x",
        "mount -t proc proc /mnt && echo 1 > /mnt/sys/kernel/panic",
        "mount -t sysfs sysfs /mnt && echo 1 > /mnt/module/printk/parameters/time",
        "mknod /tmp/disk b 254 0",
        "chown 1 /dev/null",
        "dmesg --clear",
        "date -s 2020-01-01",
    ],
)
def test_root_of_the_host_cannot_change_this_machine(installed: tuple[Host, Instance], command: str) -> None:
    host, _ = installed
    refused = host.attempt("sh", "-c", f"mkdir -p /mnt; {command}")
    host.attempt("umount", "/mnt")
    assert refused.returncode != 0
    assert any(
        text in refused.stdout
        for text in ("Read-only", "ermission denied", "not permitted", "invalid argument")
    ), refused.stdout


def test_a_start_before_the_central_repo_waits_for_it(host: Host, systemd: Instance) -> None:
    """With the shipped configuration, by somebody who has read only half of the guide."""
    host.run("cp", "/srv/checkout/etc/ppdaemon.yaml", CONFIG)
    host.run("rm", "-r", "/srv/ppdaemon")
    systemd.systemctl("start", "ppdaemon")
    systemd.wait("ppdaemon", ActiveState="active")
    assert "no worker can start: the central repo /srv/ppdaemon/repo" in systemd.show(
        "ppdaemon", "StatusText"
    )
    assert host.attempt("ppctl", "status", "--check").returncode == ExitCode.FAILED
    # The rest is made now: a part of it is there before the repo.
    host.run("install", "-d", "/srv/ppdaemon/alerts")
    wait_until(
        lambda: "butler.central: /srv/ppdaemon/repo does not exist" in str(status(host)["problems"]), 40
    )
    systemd.wait("ppdaemon", ActiveState="active", NRestarts="0")
    systemd.systemctl("stop", "ppdaemon")


def test_everything_runs_as_in_the_guide(running: Host, systemd: Instance) -> None:
    systemd.systemctl("start", "ppweb")
    for program in PROGRAMS:
        assert systemd.show(program, "NRestarts") == "0"
    # Its first one may be from before the first scan of the raws.
    wait_until(lambda: systemd.show("ppdaemon", "StatusText").startswith("running: "), 40, "it runs")
    assert status(running)["state"] == "running"
    assert status(running)["problems"] == []
    assert status(running, "--relay")["problems"] == []
    assert running.run("stat", "-c", "%U:%G %a", "/run/ppramdisk", "/var/lib/ppdaemon/node").split("\n")[
        :2
    ] == [
        "ppdaemon:ppdaemon 750",
        "ppdaemon:ppdaemon 750",
    ]
    announce(running, "g1")
    land(running, "g1")
    # Its user is a member of the group ppdaemon, by SupplementaryGroups= only.
    wait_until(lambda: "following the daemon" in journal(running, "ppweb"), 40, "the page has a status")
    page = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8080/visit/g1').read().decode())"
    assert "succeeded" in running.run("/opt/ppdaemon/bin/python", "-c", page)


def test_the_journal_has_the_levels_and_fields_of_the_lines(running: Host, systemd: Instance) -> None:
    announce(running, "lines")
    priorities = {"debug": "7", "info": "6", "warning": "4", "error": "3", "critical": "2"}
    for program in ("ppdaemon", "pprelay"):
        entries = [json.loads(line) for line in journal(running, program, "-o", "json").splitlines()]
        logged = [each for each in entries if each["MESSAGE"].startswith("{")]
        assert logged
        for entry in logged:
            assert priorities[json.loads(entry["MESSAGE"])["level"]] == entry["PRIORITY"], entry
    line = json.loads(journal(running, "pprelay", "--grep", '"group": "lines"').splitlines()[0])
    assert {"event", "relay", "level", "logger", "timestamp", "instrument"} <= line.keys()
    land(running, "lines")


def test_the_services_can_write_only_their_folders(running: Host, systemd: Instance) -> None:
    pid = systemd.main_pid("ppdaemon")
    shown = running.run("cat", f"/proc/{pid}/status")
    for line in ("CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"):
        assert line in shown
    folders = "/etc /usr/local /root /var/lib/ppdaemon /data/raw /srv /srv/ppdaemon /run/ppramdisk /tmp"
    # As root, in the mounts of the service: only these keep it from writing.
    probe = f"for f in {folders}; do if mkdir $f/x 2>/dev/null; then rmdir $f/x; echo $f; fi; done"
    writable = running.run("nsenter", "-t", pid, "-m", "sh", "-c", probe).split()
    assert writable == ["/srv/ppdaemon", "/run/ppramdisk", "/tmp"]
    user = running.run("ps", "-o", "user=", "-p", pid).strip()
    assert user == "ppdaemon"


@pytest.mark.parametrize("signal", ["KILL", "STOP"])
def test_a_supervisor_that_is_killed_or_hangs_is_started_again_and_goes_on(
    running: Host, systemd: Instance, signal: str
) -> None:
    announce(running, signal)
    before = systemd.restarts("ppdaemon")
    systemd.signal("ppdaemon", signal)
    systemd.wait_for_restart("ppdaemon", before, 60)
    land(running, signal)
    assert ("Watchdog timeout" in journal(running, "ppdaemon", "-p", "err")) == (signal == "STOP")


def test_a_reload_is_done_or_refused_with_the_reason(running: Host, systemd: Instance) -> None:
    generation, restarts = status(running)["generation"], systemd.restarts("ppdaemon")
    systemd.systemctl("reload", "ppdaemon")
    wait_until(lambda: status(running)["generation"] != generation, 40, "a new generation serves")
    running.run("sed", "-i", "s/level: INFO/level: LOUD/", CONFIG)
    systemd.systemctl("reload", "ppdaemon")
    wait_until(lambda: "log.level" in str(status(running)["problems"]), 40, "the refusal is a problem")
    systemd.wait("ppdaemon", ActiveState="active", NRestarts=str(restarts))


def test_a_stop_hands_waiting_visits_back_and_leaves_nothing(running: Host, systemd: Instance) -> None:
    announce(running, "stopped")
    systemd.systemctl("stop", "ppdaemon")
    systemd.wait("ppdaemon", ActiveState="inactive", Result="success")
    assert running.attempt("ls", "/sys/fs/cgroup/system.slice/ppdaemon.service").returncode != 0
    assert running.run("ps", "-o", "args=", "-u", "ppdaemon").count("\n") == 1  # the relay
    assert running.tree("/run/ppramdisk", "/dev/shm") == set()
    assert "9 of them wait for a node" in running.run("ppctl", "--relay", "status")
    systemd.systemctl("start", "ppdaemon")
    wait_until(lambda: outcomes(running, "stopped").count(None) == 9, 40, "the node has them again")
    land(running, "stopped")


@pytest.mark.parametrize("program", ["ppdaemon", "pprelay"])
def test_a_wrong_configuration_is_not_tried_again(running: Host, systemd: Instance, program: str) -> None:
    path = f"/etc/ppdaemon/{program}.yaml"
    before = running.run("cat", path)
    systemd.systemctl("stop", program)
    write(running, path, before + "nonsense: 1\n")
    try:
        systemd.systemctl("start", program)
        systemd.wait(program, ActiveState="failed", ExecMainStatus="78", NRestarts="0")
        assert "nonsense" in systemd.show(program, "StatusText")
        assert "nonsense" in journal(running, program, "-p", "err")
    finally:
        write(running, path, before)


def test_the_services_are_started_at_boot_and_removed_without_a_trace(
    running: Host, systemd: Instance
) -> None:
    systemd.systemctl("enable", *PROGRAMS)
    systemd.systemctl("isolate", "basic.target")
    systemd.systemctl("isolate", "multi-user.target")
    for program in PROGRAMS:
        systemd.wait(program, ActiveState="active")
    for program in reversed(PROGRAMS):
        refused = running.attempt("make", "uninstall")
        assert f"{program} is enabled or runs: systemctl disable --now {program}" in refused.stdout
        systemd.systemctl("disable", "--now", program)
    running.run("make", "uninstall")
    assert "0 unit files" in systemd.systemctl("list-unit-files", "pp*", "run-ppramdisk.mount")
    assert "ppramdisk" not in running.run("cat", "/proc/self/mounts")
    left = running.run("find", "/opt", "/usr/local", "/etc", "/run", "-xdev", "-name", "*pp[dwrc]*").split()
    assert left == ["/etc/ppdaemon", CONFIG]  # it was changed
