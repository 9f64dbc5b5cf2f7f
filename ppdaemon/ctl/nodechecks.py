# SPDX-License-Identifier: BSD-3-Clause
"""What ``ppctl check`` finds out about a node: configuration, central repo, keys, relay, daemon."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import zmq
import zmq.asyncio

from ppdaemon.clock import Clock
from ppdaemon.config import NodeConfig, RedisConfig
from ppdaemon.config.shadow import NO_CENTRAL
from ppdaemon.ctl.client import Daemon
from ppdaemon.ctl.hostchecks import CheckFinding, Level
from ppdaemon.curve import ClientKeys
from ppdaemon.detectorlist import ranges
from ppdaemon.errors import NotRunning, PPDaemonError
from ppdaemon.folders import NodeFolders
from ppdaemon.keyfiles import PUBLIC_SUFFIX, UnusableKey, read_key_pair, read_public_key
from ppdaemon.privatefiles import user_name
from ppdaemon.redisserver import StreamGroup, groups_of, open_server, rivals
from ppdaemon.reports import StatusReport
from ppdaemon.sqlitereader import reading
from ppdaemon.states import ExitCode
from ppdaemon.terminal import plain
from ppdaemon.thishost import nearest_existing
from ppdaemon.visit import NextVisit
from ppdaemon.zmqmonitor import KEYS_OF_ONE, UNKNOWN_KEY, WRONG_SERVER, ConnectionMonitor

__all__ = (
    "check_calibrations",
    "check_configuration",
    "check_daemon",
    "check_keys",
    "check_redis",
    "check_relay",
    "check_repo",
    "check_user",
)

CONNECT_S = 3.0
"""A relay in the same building answers in milliseconds."""
POLL_S = 0.02
NO_ANSWER = f"no relay has answered within {CONNECT_S:g} s"
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
    return _run(["ppdaemon.node.app", *arguments], stdin=stdin)


def _run(
    arguments: list[str], environment: Mapping[str, str] | None = None, stdin: str = ""
) -> tuple[int, str, str]:
    """Return the exit code, the output and the errors of a module of this installation."""
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, input=stdin, env=environment, capture_output=True, text=True, check=False)
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
    """Return whether outputs can be registered in the central repo, without writing any; as the exporter
    would, in its environment.
    """
    if config.butler is None:
        return
    central = config.butler.central
    if central == NO_CENTRAL:
        text = "shadow mode without shadow.central: outputs are not exported"
        yield CheckFinding(item="central repo", level="ok", text=text)
        return
    root = Path(central.removeprefix("file://"))
    if root.is_absolute() and not root.exists():
        text, action = f"{root} does not exist", "mount it or correct butler.central; no worker can start"
        yield CheckFinding(item="central repo", level="error", text=text, action=action)
        return
    environment = {**os.environ, **config.workers.environment}
    code, output, errors = _run(["ppdaemon.middleware.export.writable", central], environment)
    if code != ExitCode.OK:
        last = plain((errors.strip().splitlines() or [f"exit code {code}"])[-1])
        yield CheckFinding(item="central repo", level="error", text=f"cannot be checked: {last}")
        return
    for found in json.loads(output):
        yield CheckFinding(item="central repo", **found)


def check_keys(config: NodeConfig) -> Iterator[CheckFinding]:
    """Return whether the keys can be used, and whether each pair belongs together."""
    security, servers = config.security, [config.relay.server]
    servers += [each.server for each in (*config.arrivals.subscribe, *config.arrivals.bridges)]
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
    """Return whether the relay admits this node, as far as its keys decide; no message is sent."""
    address = config.relay.address
    if address is None:
        text = "none configured: visits come from Redis" if config.redis.url else "none configured"
        yield CheckFinding(item="relay", level="ok", text=text)
        return
    try:
        _connect(address)
        refusal = asyncio.run(_refusal(address, ClientKeys.read(config.security.key, config.relay.server)))
    except OSError as error:
        text = f"{address}: {error.strerror or error}"
        action = "start pprelay there, or correct relay.address; see the firewall"
        yield CheckFinding(item="relay", level="error", text=text, action=action)
    except UnusableKey:  # reported by the check of the keys
        text = f"{address} accepts connections; whether it admits this node needs its keys"
        yield CheckFinding(item="relay", level="skipped", text=text)
    else:
        yield relay_finding(config, address, refusal)


def check_redis(config: NodeConfig) -> Iterator[CheckFinding]:
    """Return whether the streams can be read, without taking an entry or creating a group."""
    redis = config.redis
    if redis.url is None:
        return
    import redis.exceptions as errors

    try:
        found, keeps = asyncio.run(_groups(redis))
    except (errors.RedisError, OSError, PPDaemonError) as error:
        action = "start the server, or correct the keys of redis; see the firewall"
        yield CheckFinding(item="redis", level="error", text=f"{redis.url}: {plain(error)}", action=action)
        return
    for stream, groups in found.items():
        yield redis_finding(config, stream, groups)
    if not keeps and not config.shadow.enabled:
        text = f"{redis.url} has no append-only file: after its crash, visits could be processed twice"
        yield CheckFinding(
            item="redis", level="warning", text=text, action="set appendonly yes in its redis.conf"
        )


async def _groups(redis: RedisConfig) -> tuple[Mapping[str, Mapping[str, StreamGroup]], bool]:
    """Return the groups of each stream, and whether the server may keep its data over a crash."""
    from redis import ResponseError

    async with open_server(redis, "ppctl") as server:
        keeps = True
        with contextlib.suppress(ResponseError):  # this user may not ask
            keeps = (await server.info("persistence")).get("aof_enabled") != 0
        return {stream: await groups_of(server, stream) for stream in redis.streams}, keeps


def redis_finding(config: NodeConfig, stream: str, groups: Mapping[str, StreamGroup]) -> CheckFinding:
    """Return what to do about the groups of a stream."""
    group = config.redis.group
    if (others := rivals(groups.values(), config.redis)) and not config.shadow.enabled:
        text = f"{stream}: group {others[0]} processes the same visits"
        action = (
            "use its name as redis.group, delete it if nobody uses it, list it in redis.watching_groups if it"
            " processes none, or set shadow: true"
        )
        return CheckFinding(item="redis", level="error", text=text, action=action)
    if (known := groups.get(group)) is None:
        return CheckFinding(item="redis", level="ok", text=f"{stream}: the daemon will create group {group}")
    text = f"{stream}: group {group}: {known.consumers} consumers, {known.pending} entries pending"
    return CheckFinding(item="redis", level="ok", text=f"{text}, {known.waiting} waiting")


def _connect(address: str) -> None:
    """Connect, because ZeroMQ does not report why it cannot. Raises OSError."""
    if address.startswith("tcp://"):
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()


async def _refusal(address: str, keys: ClientKeys | None) -> str:
    """Return why a relay does not admit these keys, or blank; no message is sent."""
    deadline = time.monotonic() + CONNECT_S
    with zmq.asyncio.Context() as context:
        dealer = context.socket(zmq.DEALER)
        monitor = ConnectionMonitor(dealer, time.monotonic)
        try:
            dealer.linger = 0
            if keys is not None:
                keys.apply(dealer)
            dealer.connect(address)
            while not monitor.connected and not monitor.refusal:
                if time.monotonic() > deadline:
                    return NO_ANSWER
                await asyncio.sleep(POLL_S)
                await monitor.ended()
            return monitor.refusal
        finally:
            monitor.close()


def relay_finding(config: NodeConfig, address: str, refusal: str) -> CheckFinding:
    """Return what to do about a refusal by the relay, which is blank if it admits this node."""
    if not refusal:
        return CheckFinding(item="relay", level="ok", text=f"{address} admits this node")
    key = config.security.key
    public = key.with_suffix(PUBLIC_SUFFIX) if key else "its key"
    actions = {
        UNKNOWN_KEY: f"copy {public} to {config.node.name}{PUBLIC_SUFFIX} in the folder security.nodes of the"
        " relay; then systemctl reload pprelay",
        WRONG_SERVER: f"copy the relay's own public key to {config.relay.server}",
        KEYS_OF_ONE: "set security.key and relay.server here, and security at the relay; or none of them",
    }
    action = actions.get(refusal, "correct relay.address: it is that of nodes, not of clients")
    return CheckFinding(item="relay", level="error", text=f"{address}: {refusal}", action=action)


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
        text = f"{problem.source}: {plain(problem.text).removeprefix(f'{problem.source}: ')}"
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
