# SPDX-License-Identifier: BSD-3-Clause
"""What ``ppctl check`` finds out about a node: configuration, central repo, keys, relay, daemon."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import yaml
import zmq

from ppdaemon.clock import Clock
from ppdaemon.config import NodeConfig
from ppdaemon.configtypes import ranges
from ppdaemon.ctl.client import Daemon, NotRunning
from ppdaemon.ctl.hostchecks import CheckFinding, Level
from ppdaemon.errors import PPDaemonError
from ppdaemon.folders import NodeFolders
from ppdaemon.keyfiles import UnusableKey, read_key_pair, read_public_key
from ppdaemon.privatefiles import user_name
from ppdaemon.reports import StatusReport
from ppdaemon.sqlitereader import reading
from ppdaemon.states import ExitCode
from ppdaemon.terminal import plain
from ppdaemon.thishost import nearest_existing
from ppdaemon.visit import NextVisit

__all__ = (
    "check_calibrations",
    "check_configuration",
    "check_daemon",
    "check_keys",
    "check_relay",
    "check_repo",
    "check_user",
)

CONNECT_S = 3.0
"""A relay in the same building answers in milliseconds."""
TONIGHT_S = 43_200.0
"""The night that is checked by day: twelve hours from now."""
PREFIX = "ppdaemon: "
WARNING = "ppdaemon: warning: "
"""What lines of ``ppdaemon check-config`` begin with."""


def check_user(config: NodeConfig) -> Iterator[CheckFinding]:
    """Return whether this user is that of the daemon, whose rights count."""
    folder = nearest_existing(config.node.state_dir)
    yield user_finding(folder, folder.stat().st_uid, os.geteuid())


def user_finding(folder: Path, owner: int, user: int) -> CheckFinding:
    """Return whether a user owns the state directory."""
    if owner == user:
        return CheckFinding(item="user", level="ok", text=user_name(user))
    text = f"{folder} belongs to {user_name(owner)}, and this is {user_name(user)}: rights are not compared"
    action = f"run it as the daemon's user: sudo -u {user_name(owner)} ppctl check"
    return CheckFinding(item="user", level="warning", text=text, action=action)


def check_configuration(path: Path) -> Iterator[CheckFinding]:
    """Return what ``ppdaemon check-config`` finds: keys, pipelines, and names in the central repo."""
    yield from configuration_findings(*_run_ppdaemon(["check-config", "--config", str(path)]))


def _run_ppdaemon(arguments: list[str], stdin: str = "") -> tuple[int, str, str]:
    """Return the exit code, the output and the errors of a ``ppdaemon`` command of this installation."""
    command = [sys.executable, "-m", "ppdaemon.node.app", *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def configuration_findings(code: int, output: str, errors: str) -> Iterator[CheckFinding]:
    """Return a finding for each line of ``ppdaemon check-config``."""
    for line in filter(None, errors.splitlines()):
        level: Level = "warning" if line.startswith(WARNING) or code == ExitCode.FAILED else "error"
        text = line.removeprefix(WARNING).removeprefix(PREFIX)
        action = "look at it" if level == "warning" else "correct it; the daemon does not start"
        yield CheckFinding(item="configuration", level=level, text=plain(text), action=action)
    if code == ExitCode.OK:
        yield CheckFinding(item="configuration", level="ok", text=plain(output.strip()))


def check_repo(config: NodeConfig) -> Iterator[CheckFinding]:
    """Return whether outputs can be written to the central repo, without writing any.

    Only a repo in a folder: a file without a name is made in its datastore, and the database
    of its registry must be writable.
    """
    if config.butler is None:
        return
    root = Path(config.butler.central.removeprefix("file://"))
    if root.is_absolute() and not root.exists():
        text, action = f"{root} does not exist", "mount it or correct butler.central; no worker can start"
        yield CheckFinding(item="central repo", level="error", text=text, action=action)
        return
    if not (root.is_absolute() and root.is_dir()):
        text = f"{config.butler.central} is no folder: whether it is writable is seen at the first export"
        yield CheckFinding(item="central repo", level="skipped", text=text)
        return
    folders, database = repo_places(root, (root / "butler.yaml").read_text())
    for folder in folders:
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            text, action = f"{folder} cannot be written: {error.strerror}", "no output can be exported"
            yield CheckFinding(item="central repo", level="error", text=text, action=action)
            return
    if database is None:
        text = f"{root}: files can be written; whether the database can is seen at the first export"
        yield CheckFinding(item="central repo", level="skipped", text=text)
    elif not os.access(database, os.W_OK):
        text, action = f"{database} cannot be written", "no output can be exported"
        yield CheckFinding(item="central repo", level="error", text=text, action=action)
    else:
        yield CheckFinding(item="central repo", level="ok", text=f"{root} can be written")


def repo_places(root: Path, text: str) -> tuple[list[Path], Path | None]:
    """Return the folders in which the datastores of a repo create files, and the file of its SQLite
    registry, from its ``butler.yaml``; `None` for another database.
    """
    settings: Any = yaml.safe_load(text) or {}
    database = str(settings.get("registry", {}).get("db", "sqlite:///<butlerRoot>/gen3.sqlite3"))
    datastore = settings.get("datastore", {})
    parts = [each.get("datastore", {}) for each in datastore.get("datastores", ())] or [datastore]
    written = [str(part.get("root", "<butlerRoot>")).replace("<butlerRoot>", str(root)) for part in parts]
    folders = [Path(path.removeprefix("file://")) for path in written if path.startswith(("/", "file:///"))]
    file = database.replace("<butlerRoot>", str(root)).removeprefix("sqlite:///")
    return folders, Path(file) if database.startswith("sqlite:") else None


def check_keys(config: NodeConfig) -> Iterator[CheckFinding]:
    """Return whether the keys can be used, and whether each pair belongs together."""
    security, servers = config.security, [config.relay.server]
    servers += [publisher.server for publisher in config.arrivals.subscribe]
    files = [("security.key", security.key), *(("server", server) for server in servers)]
    if not any(path for _, path in files):
        text = "no keys: connections are not encrypted"
        yield CheckFinding(item="keys", level="warning" if security.insecure else "ok", text=text)
    for name, path in files:
        if path is None:
            continue
        try:
            if name == "security.key":
                pair = read_key_pair(path)
                if zmq.curve_public(pair.secret) != pair.public:
                    raise UnusableKey(f"{path}: the public key is not that of the secret one")
            else:
                read_public_key(path)
        except UnusableKey as error:
            action = "run ppctl keygen for a new pair, or correct owner and mode"
            yield CheckFinding(item="keys", level="error", text=str(error), action=action)
        else:
            yield CheckFinding(item="keys", level="ok", text=f"{name}: {path}")


def check_relay(config: NodeConfig) -> Iterator[CheckFinding]:
    """Return whether a program listens at the relay's address; no message is sent."""
    address = config.relay.address
    if address is None:
        yield CheckFinding(item="relay", level="ok", text="none configured")
        return
    if not address.startswith("tcp://"):
        yield CheckFinding(item="relay", level="skipped", text=f"{address} is not TCP")
        return
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_S):
            yield CheckFinding(item="relay", level="ok", text=f"{address} accepts connections")
    except OSError as error:
        text = f"{address}: {error.strerror or error}"
        action = "start pprelay there, or correct relay.address; see the firewall"
        yield CheckFinding(item="relay", level="error", text=text, action=action)


def check_daemon(daemon: Daemon) -> Iterator[CheckFinding]:
    """Return the problems of the running daemon, and how its zygote and its limits are."""
    try:
        report = daemon.status()
    except NotRunning:
        text = "it does not run: its zygote, limits and problems are not checked"
        yield CheckFinding(item="daemon", level="skipped", text=text)
        return
    except PPDaemonError as error:
        text, action = plain(error), "see systemctl status ppdaemon"
        yield CheckFinding(item="daemon", level="error", text=text, action=action)
        return
    yield from daemon_findings(report)
    for process in psutil.Process(report.pid).children():
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            if " ".join(process.cmdline()).startswith("ppdaemon zygote"):
                yield zygote_finding(process.num_threads())


def daemon_findings(report: StatusReport) -> Iterator[CheckFinding]:
    """Return each problem in a status, and which limits of workers the kernel does not enforce."""
    yield CheckFinding(item="daemon", level="ok" if report.healthy else "warning", text=plain(report.text))
    for problem in report.problems:
        level: Level = "error" if problem.degrades else "warning"
        action = "see If you see this message, in the operator's guide"
        text = f"{problem.source}: {plain(problem.text)}"
        yield CheckFinding(item="daemon", level=level, text=text, action=action)
    weak = [name for name, text in report.limits.items() if "not by the kernel" in text]
    if weak:
        text = f"not enforced by the kernel: {', '.join(weak)}; the supervisor does it"
        action = "run it under its systemd unit, on a host with control groups of version 2; see ppctl status"
        yield CheckFinding(item="cgroup", level="warning", text=text, action=action)
    elif report.limits:
        yield CheckFinding(item="cgroup", level="ok", text="the kernel enforces the limits of workers")


def zygote_finding(threads: int) -> CheckFinding:
    """Return whether a zygote has one thread: a fork beside others can leave a lock locked for ever."""
    if threads == 1:
        return CheckFinding(item="zygote", level="ok", text="one thread")
    text = f"{threads} threads: a worker forked beside them may hang"
    action = "find the module in workers.preload that starts threads; or workers.start: spawn"
    return CheckFinding(item="zygote", level="error", text=text, action=action)


def check_calibrations(path: Path, config: NodeConfig) -> Iterator[CheckFinding]:
    """Return whether the latest visit of each instrument could be processed twelve hours from now, with
    the inputs that the central repo has: one of its detectors, by ``ppdaemon plan``.
    """
    journal = NodeFolders.of(config).journal
    tonight = Clock().tai() + TONIGHT_S
    for instrument, detectors in config.node.instruments.items():
        row = None
        if journal.exists():
            with reading(journal) as db:
                row = db.execute(
                    "SELECT visit, detector FROM attempt WHERE instrument = ? ORDER BY rowid DESC LIMIT 1",
                    (instrument,),
                ).fetchone()
        if row is None:
            text = f"{instrument}: the journal has no visit that could be planned again for tonight"
            action = f"ppdaemon plan --config {path} --visit FILE --detector {detectors[0]}"
            yield CheckFinding(item="inputs", level="skipped", text=text, action=action)
            continue
        visit, detector = NextVisit.model_validate_json(row[0]), int(row[1])
        event = visit.to_sal() | {"startTime": tonight, "private_sndStamp": tonight - visit.duration_s}
        arguments = ["plan", "--config", str(path), "--visit", "-", "--detector", str(detector), "--json"]
        result = _run_ppdaemon(arguments, json.dumps(event))
        yield plan_finding(instrument, visit.group, detector, *result)


def plan_finding(
    instrument: str, group: str, detector: int, code: int, output: str, errors: str
) -> CheckFinding:
    """Return what a plan for tonight means."""
    what = f"{instrument} {ranges([detector])}, a visit such as {group} twelve hours from now"
    if code == ExitCode.OK:
        datasets = json.loads(output)["distinct_datasets"]
        return CheckFinding(item="inputs", level="ok", text=f"{what}: {datasets} datasets to preload")
    if code == ExitCode.FAILED:
        plan = json.loads(output)
        reasons = [each["reason"] for each in plan["detectors"] if each["reason"]] + plan["fallbacks"]
        text = f"{what}: {'; '.join(map(plain, reasons))}"
        action = "certify calibrations for tonight, or see ppdaemon plan"
        return CheckFinding(item="inputs", level="error", text=text, action=action)
    last = plain((errors.strip().splitlines() or [f"exit code {code}"])[-1])
    return CheckFinding(item="inputs", level="error", text=f"{what}: {last}", action="see ppdaemon plan")
