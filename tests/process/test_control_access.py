# SPDX-License-Identifier: BSD-3-Clause
"""Who may use a control socket, and who has to make room; with a real socket in one process."""

import asyncio
import contextlib
import functools
import grp
import json
import os
import socket
import stat
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from ppdaemon import controlserver, reports
from ppdaemon.config import SecurityConfig
from ppdaemon.controlserver import MAX_CLIENTS, RESERVED_CLIENTS, ControlServer
from ppdaemon.ctl.client import Daemon
from ppdaemon.errors import Denied, StateUnusable
from ppdaemon.peers import MAX_GROUPS, Connections, PeerCredentials, Role, access_error, role_of
from ppdaemon.reports import OPERATING, READING, DrainRequest, Ok, StatusReport, StatusRequest
from ppdaemon.testing.waiting import TIMEOUT_S

NOBODY = 65534
ONLY_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
STRANGER = PeerCredentials(NOBODY, frozenset({NOBODY}))
SEND = """
import json, os, socket, sys
path, uid, *requests = sys.argv[1:]
line = socket.socket(socket.AF_UNIX)
os.setgroups([])
os.setgid(int(uid))
os.setuid(int(uid))
line.connect(path)
lines = line.makefile("rwb")
for request in requests:
    lines.write(json.dumps({"type": request}).encode() + b"\\n")
    lines.flush()
    sys.stdout.buffer.write(lines.readline())
"""


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Let clients be silent for long: none is disconnected because this machine is slow."""
    monkeypatch.setattr(controlserver, "FIRST_REQUEST_S", 600.0)


def in_loop(test):
    """Run an asynchronous test in an event loop."""

    @functools.wraps(test)
    def run(**fixtures):
        asyncio.run(test(**fixtures))

    return run


def status_report() -> StatusReport:
    return StatusReport(
        **{
            name: 0
            for name in (
                "pid",
                "started_tai",
                "tai",
                "workers_max",
                "capacity",
                "queued",
                "open_visits",
                "spooled",
            )
        },
        **{name: "" for name in ("node", "version", "text", "relay", "exporter", "logs")},
        **{name: {} for name in ("slots", "outcomes", "counters")},
        arrivals=(),
        state="running",
    )


async def answer_all(request):
    return Ok(data=request.type)


@contextlib.asynccontextmanager
async def serving(path, **access):
    config = SecurityConfig.model_validate(access)
    control = ControlServer(path, reports.REQUESTS, answer_all, status_report, config)
    await control.start()
    try:
        yield control
    finally:
        await control.stop()


def connected(path: Path, number: int) -> list[socket.socket]:
    lines = [socket.socket(socket.AF_UNIX) for _ in range(number)]
    for line in lines:
        line.connect(str(path))
    return lines


def ask(path, request=None):
    return Daemon(path, timeout_s=TIMEOUT_S).ask(request or StatusRequest())


def as_user(path, uid, *requests):
    """Return the replies to requests of a process of another user."""
    command = [sys.executable, "-c", SEND, str(path), str(uid), *requests]
    done = subprocess.run(command, capture_output=True, check=True, timeout=TIMEOUT_S)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_request_is_for_readers_or_for_operators():
    unions = [typing.get_args(kind.__value__)[0] for kind in (reports.Request, reports.RelayRequest)]
    assert {request for union in unions for request in typing.get_args(union)} == READING | OPERATING
    assert not READING & OPERATING


def test_the_credentials_of_a_peer_are_those_of_its_process():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = PeerCredentials.of(ours)
    assert peer == PeerCredentials(os.geteuid(), frozenset({os.getegid(), *os.getgroups()}))
    assert peer.name == "root" or os.geteuid() != 0


@ONLY_ROOT
@pytest.mark.parametrize("count", [1, MAX_GROUPS])
def test_all_groups_of_a_peer_are_known(count):
    groups = range(70_000, 70_000 + count)
    program = f"""
import os, socket
os.setgroups(range({groups.start}, {groups.stop}))
from ppdaemon.peers import PeerCredentials
print(*sorted(PeerCredentials.of(socket.socketpair()[0]).groups))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=TIMEOUT_S)
    assert [*map(int, done.stdout.split())] == [os.getegid(), *groups]


@pytest.mark.parametrize(
    ("peer", "lists", "role"),
    [
        (PeerCredentials(0, frozenset({0})), {}, Role.OPERATOR),
        (PeerCredentials(os.geteuid(), frozenset({NOBODY})), {}, Role.OPERATOR),
        (PeerCredentials(NOBODY, frozenset({os.getegid(), 7})), {}, Role.READER),
        (STRANGER, {}, Role.STRANGER),
        (STRANGER, {"readers": {"users": ["nobody"]}}, Role.READER),
        (STRANGER, {"readers": {"groups": [NOBODY]}}, Role.READER),
        (STRANGER, {"operators": {"users": [NOBODY]}}, Role.OPERATOR),
        (STRANGER, {"operators": {"groups": [grp.getgrgid(NOBODY).gr_name]}}, Role.OPERATOR),
        (STRANGER, {"operators": {"users": ["root"]}, "readers": {"groups": ["root"]}}, Role.STRANGER),
    ],
)
def test_roles(peer, lists, role):
    assert role_of(peer, SecurityConfig.model_validate(lists)) is role


def test_a_user_that_does_not_exist_is_an_error():
    with pytest.raises(ValueError, match="this host has no user jane-doe"):
        SecurityConfig.model_validate({"readers": {"users": ["jane-doe"]}})
    with pytest.raises(ValueError, match="this host has no group jane-doe"):
        SecurityConfig.model_validate({"readers": {"groups": ["jane-doe"]}})


def test_a_refusal_names_the_list_to_extend():
    assert access_error(STRANGER, Role.READER, "drain") == (
        "user nobody may read, not drain: add it to security.operators"
    )
    assert access_error(STRANGER, Role.STRANGER, "status") == (
        "user nobody may not use this socket: add it to security.readers or security.operators"
    )


@in_loop
async def test_the_socket_is_open_to_all_only_if_users_are_listed(socket_dir):
    path = socket_dir / "control"
    async with serving(path) as control:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        control.set_access(SecurityConfig.model_validate({"readers": {"users": ["nobody"]}}))
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
    assert not path.exists()


@in_loop
async def test_a_file_in_the_place_of_the_socket_is_not_deleted(socket_dir):
    (socket_dir / "control").write_text("precious")
    with pytest.raises(StateUnusable, match="is not a socket"):
        async with serving(socket_dir / "control"):
            pass
    assert (socket_dir / "control").read_text() == "precious"


LISTS = {"readers": {"users": ["nobody"]}, "operators": {"users": [1]}}
MATRIX = {
    "owner": (os.geteuid(), ["ok", "ok"]),
    "operator": (1, ["ok", "ok"]),
    "reader": (NOBODY, ["ok", "denied"]),
    "stranger": (2, ["denied"]),
}
"""A user, and the replies to a status request and a drain."""


@ONLY_ROOT
@pytest.mark.parametrize("cell", MATRIX)
def test_control(cell, socket_dir):
    """Fault 15."""
    uid, expected = MATRIX[cell]
    socket_dir.chmod(0o755)

    async def body():
        async with serving(socket_dir / "control", **LISTS):
            requests = ["status", "drain"][: len(expected)]
            return await asyncio.to_thread(as_user, socket_dir / "control", uid, *requests)

    replies = asyncio.run(body())
    assert [reply.get("code", reply["type"]) for reply in replies] == expected
    for reply in replies:
        if reply["type"] == "failed":
            assert ("may read, not drain" if cell == "reader" else "may not use") in reply["text"]


@ONLY_ROOT
@in_loop
async def test_other_lists_apply_at_once(socket_dir):
    socket_dir.chmod(0o755)
    path = socket_dir / "control"
    async with serving(path, **LISTS) as control:
        control.set_access(SecurityConfig.model_validate({"operators": {"users": [1]}}))
        (status,) = await asyncio.to_thread(as_user, path, NOBODY, "status")
        assert status["code"] == "denied"


@ONLY_ROOT
@in_loop
async def test_a_user_who_is_refused_again_and_again_does_not_fill_the_log(socket_dir, caplog):
    caplog.set_level("INFO", "ppdaemon.controlserver")
    socket_dir.chmod(0o755)
    async with serving(socket_dir / "control", **LISTS):
        for uid in (2, 2, NOBODY, NOBODY):
            (reply,) = await asyncio.to_thread(as_user, socket_dir / "control", uid, "drain")
            assert reply["code"] == "denied"
    assert [record.getMessage()[:28] for record in caplog.records] == ["refused a control request: u"] * 2


@in_loop
async def test_the_client_raises_an_error_with_the_exit_code_of_permissions(socket_dir, monkeypatch):
    monkeypatch.setattr(controlserver, "role_of", lambda peer, config: Role.READER)
    async with serving(socket_dir / "control"):
        with pytest.raises(Denied, match="may read, not drain") as denied:
            await asyncio.to_thread(ask, socket_dir / "control", DrainRequest())
    assert denied.value.exit_code == 77


@in_loop
async def test_silent_clients_make_room(socket_dir):
    """Fault 67."""
    path = socket_dir / "control"
    async with serving(path):
        silent = await asyncio.to_thread(connected, path, MAX_CLIENTS + 20)
        assert await asyncio.to_thread(ask, path) == "status"
        # The ones that have waited longest were disconnected.
        assert await asyncio.to_thread(silent[0].recv, 1) == b""
        for line in silent:
            line.close()


@in_loop
async def test_a_client_without_a_first_request_is_disconnected(socket_dir, monkeypatch):
    monkeypatch.setattr(controlserver, "FIRST_REQUEST_S", 0.05)
    async with serving(socket_dir / "control"):
        silent, incomplete = await asyncio.to_thread(connected, socket_dir / "control", 2)
        incomplete.send(b'{"type": ')
        for line in (silent, incomplete):
            line.settimeout(TIMEOUT_S)
            assert await asyncio.to_thread(line.recv, 1) == b""
            line.close()


@in_loop
async def test_operators_get_in_when_all_connections_watch(socket_dir):
    path = socket_dir / "control"
    async with serving(path):
        watching = await asyncio.to_thread(connected, path, MAX_CLIENTS)
        for line in watching:
            line.send(b'{"type": "watch"}\n')
            assert await asyncio.to_thread(line.recv, 1) == b"{"
        assert await asyncio.to_thread(ask, path) == "status"
        for line in watching:
            line.close()


@in_loop
async def test_who_has_to_make_room():
    async def forever():
        await asyncio.Event().wait()

    clients = Connections(most=3, reserved=1)
    tasks = [asyncio.create_task(forever()) for _ in range(9)]
    for task, role in zip(tasks, (Role.OPERATOR, Role.READER, Role.READER), strict=False):
        assert clients.admit(task, role)
    assert clients.admit(tasks[3], Role.READER)  # instead of the first reader
    assert set(clients.tasks) == {tasks[0], tasks[2], tasks[3]}
    for task in (tasks[0], tasks[2], tasks[3]):
        clients.set_busy(task)
    assert not clients.admit(tasks[4], Role.READER)
    assert clients.admit(tasks[5], Role.OPERATOR)
    clients.set_busy(tasks[5])
    assert not clients.admit(tasks[6], Role.OPERATOR)  # the reserved ones are used, too
    clients.set_idle(tasks[2], Role.READER)
    assert clients.admit(tasks[7], Role.READER)
    assert tasks[2] not in clients.tasks
    await asyncio.sleep(0)
    assert [task.cancelling() for task in tasks[:3]] == [0, 1, 1]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert len(clients.tasks) <= 3 + RESERVED_CLIENTS
