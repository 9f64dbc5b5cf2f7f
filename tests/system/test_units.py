# SPDX-License-Identifier: BSD-3-Clause
"""The files below systemd/: valid, strict, and in accord with etc/."""

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from ppdaemon.web.access import Access, check_listen
from ppdaemon.web.app import command

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "systemd"
SERVICES = ("ppdaemon", "pprelay", "ppbridge")
PAGE = "ppweb"
"""It has no state and no watchdog: nothing depends on it."""

needs_systemd_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze not installed"
)


def unit(name: str) -> configparser.SectionProxy:
    """Return the section of a unit that is not [Unit] or [Install]."""
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str
    parser.read_string((UNITS / name).read_text())
    return parser["Mount" if name.endswith(".mount") else "Service"]


@pytest.fixture
def placed(tmp_path: Path) -> Path:
    """Copy the units beside stand-ins for the installed programs."""
    for program in (*SERVICES, PAGE):
        path = tmp_path / "bin" / program
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    for path in [*UNITS.glob("*.service"), *UNITS.glob("*.socket"), *UNITS.glob("*.mount")]:
        text = path.read_text()
        (tmp_path / path.name).write_text(text.replace("/opt/ppdaemon/bin", str(tmp_path / "bin")))
    return tmp_path


@needs_systemd_analyze
def test_the_units_are_valid(placed: Path) -> None:
    units = sorted(str(path) for path in placed.iterdir() if path.suffix in (".service", ".socket", ".mount"))
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_systemd_analyze
@pytest.mark.parametrize("name", [*SERVICES, PAGE])
def test_the_services_may_do_little(placed: Path, name: str) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=30", "--no-pager"]
    done = subprocess.run(
        [*command, str(placed / f"{name}.service")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", SERVICES)
def test_the_services_are_supervised_as_designed(name: str) -> None:
    service = unit(f"{name}.service")
    assert service["Type"] == "notify"
    assert service["NotifyAccess"] == "main"
    assert int(service["WatchdogSec"]) > 0
    assert service["KillMode"] == "mixed"
    assert service["OOMPolicy"] == "continue"
    assert service["RestartPreventExitStatus"] == "64 78"


def test_the_page_has_a_user_of_its_own_who_may_only_read() -> None:
    service = unit(f"{PAGE}.service")
    assert service["DynamicUser"] == "yes"
    assert service["SupplementaryGroups"].split() == [unit("ppdaemon.service")["Group"], "systemd-journal"]
    assert "ReadWritePaths" not in service
    assert service["RestartPreventExitStatus"] == "64 78"
    _, *options = service["ExecStart"].split()
    arguments = command.make_context(PAGE, options).params
    assert check_listen(arguments["listen"], Access()) == ("127.0.0.1", 8080)


def test_the_mount_unit_is_named_by_its_path_and_used_by_the_daemon() -> None:
    where = unit("run-ppramdisk.mount")["Where"]
    assert where.strip("/").replace("/", "-") == "run-ppramdisk"
    assert "Requires=run-ppramdisk.mount" in (UNITS / "ppdaemon.service").read_text()
    config = yaml.safe_load((ROOT / "etc" / "ppdaemon.yaml").read_text())
    assert config["node"]["ramdisk"] == where


def writable(service: configparser.SectionProxy) -> list[Path]:
    """Return the folders that a service may write below."""
    paths = [Path("/var/lib") / service["StateDirectory"]]
    if "RuntimeDirectory" in service:
        paths.append(Path("/run") / service["RuntimeDirectory"])
    return paths


def test_the_configured_folders_may_be_written() -> None:
    node = yaml.safe_load((ROOT / "etc" / "ppdaemon.yaml").read_text())
    state, run = writable(unit("ppdaemon.service"))
    assert Path(node["node"]["state_dir"]).is_relative_to(state)
    assert Path(node["node"]["control"]).is_relative_to(run)
    extra = re.findall(r"^ReadWritePaths=-?(.*)$", (UNITS / "ppdaemon.service").read_text(), re.MULTILINE)
    assert any(Path(node["butler"]["central"]).is_relative_to(path) for path in extra)
    relay = yaml.safe_load((ROOT / "etc" / "pprelay.yaml").read_text())
    assert Path(relay["state_dir"]).is_relative_to(writable(unit("pprelay.service"))[0])
    bridge = yaml.safe_load((ROOT / "etc" / "ppbridge.yaml").read_text())
    state, run = writable(unit("ppbridge.service"))
    assert Path(bridge["state_dir"]).is_relative_to(state)
    assert Path(bridge["control"]).is_relative_to(run)


def test_the_socket_of_stores_is_that_of_the_configuration_and_open_without_the_bridge() -> None:
    text = (UNITS / "ppbridge.socket").read_text()
    bridge = yaml.safe_load((ROOT / "etc" / "ppbridge.yaml").read_text())
    assert f"ListenStream={bridge['http']['listen']}\n" in text
    assert "WantedBy=sockets.target" in text
    assert "Requires=ppbridge.socket" in (UNITS / "ppbridge.service").read_text()


@pytest.mark.parametrize("name", SERVICES)
def test_the_services_start_the_shipped_configuration(name: str) -> None:
    program, action, option, config = unit(f"{name}.service")["ExecStart"].split()
    assert (program, action, option) == (f"/opt/ppdaemon/bin/{name}", "run", "--config")
    assert (ROOT / "etc" / Path(config).name).is_file()


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd-sysusers not installed")
def test_the_user_is_made(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    subprocess.run(
        ["systemd-sysusers", f"--root={tmp_path}", str(UNITS / "sysusers.d" / "ppdaemon.conf")],
        check=True,
        capture_output=True,
        timeout=60,
    )
    assert "ppdaemon:" in (tmp_path / "etc" / "passwd").read_text()


def test_sysctl_raises_the_limits_of_inotify() -> None:
    text = (UNITS / "sysctl.d" / "60-ppdaemon.conf").read_text()
    settings = dict(line.split(" = ") for line in text.splitlines() if not line.startswith("#"))
    for name, value in settings.items():
        assert Path("/proc/sys", *name.split(".")).exists(), name
        assert int(value) > 0


def test_the_daemon_has_time_to_stop() -> None:
    times = yaml.safe_load((ROOT / "etc" / "ppdaemon.yaml").read_text())["workers"]["times"]
    image_deadline_s = int(unit("ppdaemon.service")["TimeoutStopSec"])
    assert image_deadline_s > times["stop_s"] + times["grace_s"] + times["kill_s"]
