# SPDX-License-Identifier: BSD-3-Clause
"""A PostgreSQL server of the tests' own, started from the machine's programs.

It listens on a unix socket only, forgets to sync, and ends with the process
that has started it, or with the last of the processes that share it.
"""

import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from once import locked
from ramdisk import TEMPORARY

from ppdaemon.testing.waiting import wait_until

USER = "ppdaemon"
TEMPLATE = "with_gist"
"""A database with the extension that the Butler asks for."""
START_LIMIT_S = 60.0
STOP_LIMIT_S = 30.0
_PR_SET_PDEATHSIG = 1
KEEPER = '"$@" </dev/null & cat >/dev/null; kill -INT $!; wait $!; rm -rf "$0"'
"""Runs a server until no process has the write end of the pipe that is its input."""


class PostgresServer:
    """A running server, which another process may have started.

    Parameters
    ----------
    folder : `pathlib.Path`
        For data and socket; its path is short.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    @property
    def name(self) -> str:
        """A name that no other server has."""
        return self._folder.name

    def url(self, database: str) -> str:
        """Return what a Butler's ``registry.db`` takes.

        The driver is named: SQLAlchemy 2.1 takes psycopg 3 for a bare ``postgresql:``.
        """
        return f"postgresql+psycopg2://{USER}@/{database}?host={self._folder}"

    def create(self, name: str = "", *, template: str = TEMPLATE) -> str:
        """Make a database, a copy of another one; return its name."""
        name = name or f"repo{uuid.uuid4().hex}"
        self.run("postgres", f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return name

    def run(self, database: str, statement: str) -> list[tuple[Any, ...]]:
        """Execute a statement by itself; return its rows, if it has any."""
        engine = sqlalchemy.create_engine(
            self.url(database), isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool
        )
        with engine.connect() as connection:
            result = connection.execute(sqlalchemy.text(statement))
            return [tuple(row) for row in result] if result.returns_rows else []

    def cut_off(self, database: str) -> int:
        """End all connections to a database; return how many there were."""
        ended = self.run(
            "postgres", f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"
        )
        return len(ended)


class OwnPostgresServer(PostgresServer):
    """A server that this process starts.

    Parameters
    ----------
    programs : `pathlib.Path`
        Folder of ``initdb`` and ``postgres``.
    folder : `pathlib.Path`
        For data and socket; its path is short.
    max_connections : `int`
        The server's own default is 100, which is what most servers have.
    users : `int`, optional
        Read end of a pipe: the server runs until nobody has its write end, and deletes the folder.
    """

    def __init__(self, programs: Path, folder: Path, max_connections: int, users: int | None = None):
        super().__init__(folder)
        identity = _identity(folder)
        data = folder / "data"
        initdb = [
            programs / "initdb",
            "-D",
            data,
            "-U",
            USER,
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-locale",
            "-N",
        ]
        subprocess.run(initdb, check=True, capture_output=True, cwd=folder, timeout=START_LIMIT_S, **identity)
        self._programs, self._max_connections, self._users = programs, max_connections, users
        self.start()
        self.create(TEMPLATE, template="template0")
        self.run(TEMPLATE, "CREATE EXTENSION btree_gist")

    def start(self) -> None:
        """Start the server, also after `stop`."""
        folder = self._folder
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": folder,
            "max_connections": self._max_connections,
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "shared_buffers": "64MB",
            "autovacuum": "off",
        }
        options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        command = [self._programs / "postgres", "-D", folder / "data", *options]
        if self._users is not None:
            command = ["sh", "-c", KEEPER, folder, *command]
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL if self._users is None else self._users,
                stdout=log,
                stderr=log,
                cwd=folder,
                # One that is shared outlives this process, also if the tests are interrupted.
                start_new_session=self._users is not None,
                preexec_fn=_end_with_parent if self._users is None else None,
                **_identity(folder),
            )
        wait_until(self._answers, START_LIMIT_S, (folder / "log").read_text)
        if self._users is not None:
            self._process.returncode = 0  # nobody waits for it: prevents the ResourceWarning of `Popen`

    def require_passwords(self, database: str) -> None:
        """Connect to a database only with a password."""
        rules = self._folder / "data" / "pg_hba.conf"
        rules.write_text(f"local {database} all scram-sha-256\n{rules.read_text()}")
        self.run("postgres", "SELECT pg_reload_conf()")

    def stop(self) -> None:
        """Disconnect everybody and end."""
        self._process.send_signal(signal.SIGINT)  # "fast shutdown"
        try:
            self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGQUIT)  # the server ends its children before itself
            self._process.wait(STOP_LIMIT_S)

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            pytest.fail(f"PostgreSQL ended: {(self._folder / 'log').read_text()}")
        try:
            return self.run("postgres", "SELECT 1") == [(1,)]
        except sqlalchemy.exc.OperationalError:
            return False


def find_programs() -> Path | None:
    """Return the folder of the newest PostgreSQL server on this machine."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name.zfill(4))
    for name in ("postgres", "pg_config"):
        if found := shutil.which(name):
            folders.append(Path(found).resolve().parent)
    if tool := shutil.which("pg_config"):
        done = subprocess.run([tool, "--bindir"], check=False, capture_output=True, text=True)
        folders.append(Path(done.stdout.strip()))
    for folder in reversed(folders):
        if all(os.access(folder / name, os.X_OK) for name in ("initdb", "postgres")):
            return folder
    return None


def _require_programs() -> Path:
    pytest.importorskip("psycopg2", reason="the extra 'postgres' of ppdaemon is not installed")
    programs = find_programs()
    if programs is None:
        pytest.skip(
            "no PostgreSQL server on this machine: no initdb and postgres in PATH or /usr/lib/postgresql"
        )
    return programs


@contextmanager
def running_server(max_connections: int = 100) -> Iterator[OwnPostgresServer]:
    """Give a server that a test may stop; skip where there is none."""
    programs = _require_programs()
    folder = Path(tempfile.mkdtemp(prefix="pp-pg-", dir=TEMPORARY))
    try:
        server = OwnPostgresServer(programs, folder, max_connections)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


@contextmanager
def shared_server(base: Path) -> Iterator[PostgresServer]:
    """Give the server of all test processes of a run, whose shared folder is `base`; skip where there is
    none. The first process starts it, and it ends when no process uses it, also if they are killed.
    """
    programs = _require_programs()
    address = base / "postgres"
    with locked(base / "postgres.lock"):
        try:
            folder = Path(address.read_text())
            # Fails if the processes that used it have ended.
            users = os.open(folder / "users", os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            folder = Path(tempfile.mkdtemp(prefix="pp-pg-", dir=TEMPORARY))
            os.mkfifo(folder / "users")
            reading = os.open(folder / "users", os.O_RDONLY | os.O_NONBLOCK)
            users = os.open(folder / "users", os.O_WRONLY)
            os.set_blocking(reading, True)
            OwnPostgresServer(programs, folder, 100, reading)
            os.close(reading)
            address.write_text(str(folder))
    try:
        yield PostgresServer(folder)
    finally:
        os.close(users)


def _identity(folder: Path) -> dict[str, Any]:
    """Return the user to run as, and give that user the folder: the server refuses to be root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        os.chown(folder, user.pw_uid, user.pw_gid)
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    pytest.skip("PostgreSQL does not run as root, and there is no user 'postgres' or 'nobody'")


def _end_with_parent() -> None:
    """Ask the kernel for a fast shutdown when the tests are killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
