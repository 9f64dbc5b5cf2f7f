# SPDX-License-Identifier: BSD-3-Clause
"""A PostgreSQL server for one measurement, from the programs of this machine."""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ppdaemon.errors import Unavailable

_USER = "ppdaemon"
_START_S = 60.0


def find_programs() -> Path | None:
    """Return the folder of the server's programs, or `None` if it is not installed."""
    for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        if (path / "initdb").exists():
            return path
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found else None


@contextmanager
def running_server(programs: Path, parent: Path) -> Iterator[Path]:
    """Yield the folder with the socket of a server that syncs as usual."""
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir=parent))
    identity = _identity(folder)
    data = folder / "data"
    initdb = [programs / "initdb", "-D", data, "-U", _USER, "-A", "trust", "-E", "UTF8", "--no-locale"]
    subprocess.run(initdb, check=True, capture_output=True, cwd=folder, **identity)
    options = ["-c", f"unix_socket_directories={folder}", "-c", "listen_addresses="]
    server = subprocess.Popen(
        [programs / "postgres", "-D", data, *options],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **identity,
    )
    try:
        psql = [programs / "psql", "-h", folder, "-U", _USER, "-d", "template1", "-c"]
        _wait(psql)
        subprocess.run([*psql, "CREATE EXTENSION btree_gist"], check=True, capture_output=True)
        yield folder
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def new_database(programs: Path, folder: Path) -> str:
    """Make a database; return its URL."""
    name = f"repo{uuid.uuid4().hex}"
    psql = [programs / "psql", "-h", folder, "-U", _USER, "-d", "postgres", "-c"]
    subprocess.run([*psql, f"CREATE DATABASE {name}"], check=True, capture_output=True)
    return f"postgresql+psycopg2://{_USER}@/{name}?host={folder}"


def _wait(psql: list[Any]) -> None:
    until = time.monotonic() + _START_S
    while subprocess.run([*psql, "SELECT 1"], capture_output=True, check=False).returncode:
        if time.monotonic() > until:
            raise Unavailable(f"PostgreSQL did not start in {_START_S:g} s")
        time.sleep(0.1)


def _identity(folder: Path) -> dict[str, Any]:
    """Return the user of the server, which refuses to be root, and give it the folder."""
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam("postgres")
    os.chown(folder, user.pw_uid, user.pw_gid)
    for each in folder.parents:  # it must be able to enter
        if not each.stat().st_mode & 0o001:
            each.chmod(each.stat().st_mode | 0o011)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
