# SPDX-License-Identifier: BSD-3-Clause
"""A real redis-server, of Debian, on a unix socket."""

import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from debian import unpacked

WITHIN_S = 20.0


class RedisServer:
    """A server, which keeps its data over a restart if `keeps` is set."""

    def __init__(self, folder: Path, *, keeps: bool = False):
        self._programs = unpacked("redis-server")
        self._folder = folder
        self._keeps = keeps
        self._process: subprocess.Popen[bytes] | None = None
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"

    def start(self, *options: object) -> None:
        """Start it, and wait until it answers."""
        self._process = subprocess.Popen(
            [
                self._programs.program("redis-server"),
                *("--port", "0", "--unixsocket", str(self.socket), "--dir", str(self._folder)),
                *("--save", "", "--appendonly", "yes" if self._keeps else "no", "--appendfsync", "always"),
                *map(str, options),
            ],
            env=self._programs.environment,
            stdout=subprocess.DEVNULL,
        )
        until = time.monotonic() + WITHIN_S
        while True:
            try:
                with self.client() as client:
                    client.ping()
                return
            except redis.RedisError:
                assert time.monotonic() < until, "redis-server does not answer"
                time.sleep(0.01)

    def stop(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def client(self) -> "redis.Redis":
        """Return a client, which is closed as a context manager."""
        return redis.Redis(unix_socket_path=str(self.socket), protocol=2)

    def add(self, stream: str, *fields: Mapping[str, Any]) -> list[str]:
        """Write entries as the observatory's fan-out does; return their ids."""
        with self.client() as client:
            return [client.xadd(stream, dict(each)).decode() for each in fields]

    def ask(self, *command: object) -> Any:
        """Return the answer to a command."""
        with self.client() as client:
            return client.execute_command(*command)


@contextmanager
def redis_server(folder: Path, *, keeps: bool = False) -> Iterator[RedisServer]:
    """Run a server."""
    server = RedisServer(folder, keeps=keeps)
    try:
        server.start()
        yield server
    finally:
        server.stop()
