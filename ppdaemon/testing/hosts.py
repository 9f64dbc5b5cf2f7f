# SPDX-License-Identifier: BSD-3-Clause
"""Hosts as network namespaces, and connections between them that can be cut in one direction.

Needs root and the program ``ip``; changes nothing outside of its own namespaces. Hosts share the
files of this machine, and unix sockets with a path; nothing else connects them with it.
"""

import contextlib
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

__all__ = ("Hosts", "why_not")

NAMESPACES = Path("/run/netns")
PREFIX = "ppd"
SWITCH = "switch"
NOWHERE = "02:00:00:00:ff:ff"
"""Nobody has this address: what is sent there is lost without an error, as in a broken cable."""


def why_not() -> str:
    """Return why this machine cannot have hosts, or a blank."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need the program ip (iproute2)"
    command = ["unshare", "--net", "ip", "link", "add", "type", "bridge"]
    tried = subprocess.run(command, capture_output=True, text=True)
    return f"no network namespaces here: {tried.stderr.strip()}" if tried.returncode else ""


class Hosts:
    """Network namespaces, each connected to a switch; a context manager that removes them.

    Their names contain the process id: those of a process that was killed are removed by the next
    one that makes hosts.

    Parameters
    ----------
    names : `~collections.abc.Iterable` [`str`]
        One short name for each host, at most 200.
    """

    _serial = itertools.count()

    def __init__(self, names: Iterable[str]):
        self._run = f"{PREFIX}-{os.getpid()}-{next(self._serial)}"
        self._numbers = {name: number for number, name in enumerate(names, 1)}
        self._cuts: set[tuple[str, str]] = set()

    def __enter__(self) -> Self:
        remove_leftovers()
        try:
            self._make()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def address(self, name: str) -> str:
        """Return the IPv4 address of a host (`str`)."""
        return f"10.99.0.{self._numbers[name]}"

    def launcher(self, name: str) -> Sequence[str]:
        """Return the command that starts the command after it on a host; it keeps its process id."""
        return ("nsenter", f"--net={NAMESPACES / self._namespace(name)}", "--")

    def cut(self, source: str, target: str) -> None:
        """Lose everything that one host sends to another, until `heal`; the other direction works."""
        self._cuts.add((source, target))
        self._set_neighbor(source, target, NOWHERE)

    def cut_both(self, one: str, other: str) -> None:
        """Lose everything between two hosts, until `heal`."""
        self.cut(one, other)
        self.cut(other, one)

    def isolate(self, name: str) -> None:
        """Lose everything from and to a host, until `heal`, as when it has lost its power."""
        for other in self._numbers.keys() - {name}:
            self.cut_both(name, other)

    def heal(self, *names: str) -> None:
        """Repair the connections of these hosts, or all of them."""
        for source, target in sorted(self._cuts):
            if not names or {source, target} & set(names):
                self._cuts.discard((source, target))
                self._set_neighbor(source, target, self._link_address(target))

    def signal(self, name: str, number: int) -> None:
        """Send a signal to all processes of a host: SIGSTOP suspends it, SIGCONT wakes it."""
        for pid in _ip("netns", "pids", self._namespace(name)).split():
            with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                os.kill(int(pid), number)

    def close(self) -> None:
        """Remove all hosts."""
        for name in (*self._numbers, SWITCH):
            _remove(self._namespace(name))

    def _namespace(self, name: str) -> str:
        return f"{self._run}-{name}"

    def _link_address(self, name: str) -> str:
        return f"02:00:00:00:00:{self._numbers[name]:02x}"

    def _make(self) -> None:
        switch = self._namespace(SWITCH)
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "up", "type", "bridge")
        for name, number in self._numbers.items():
            host, port = self._namespace(name), f"port{number}"
            _ip("netns", "add", host)
            _ip("-n", host, "link", "set", "lo", "up")
            link = ("link", "add", "eth0", "address", self._link_address(name), "type", "veth")
            _ip("-n", host, *link, "peer", "name", port, "netns", switch)
            _ip("-n", switch, "link", "set", port, "master", "bridge", "up")
            _ip("-n", host, "address", "add", f"{self.address(name)}/24", "dev", "eth0")
            _ip("-n", host, "link", "set", "eth0", "up")
        for source, target in itertools.permutations(self._numbers, 2):
            self._set_neighbor(source, target, self._link_address(target))

    def _set_neighbor(self, source: str, target: str, link_address: str) -> None:
        """Set the link address that one host uses for another; no ARP, which a cut would delay."""
        neighbor = ("neighbor", "replace", self.address(target), "lladdr", link_address)
        _ip("-n", self._namespace(source), *neighbor, "dev", "eth0", "nud", "permanent")


def remove_leftovers() -> None:
    """Remove the hosts of processes that have ended."""
    for namespace in _namespaces():
        _, pid, *_ = namespace.split("-")
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            _remove(namespace)


def _namespaces() -> Iterator[str]:
    with contextlib.suppress(FileNotFoundError):  # there never was one on this machine
        yield from (name for name in os.listdir(NAMESPACES) if name.startswith(f"{PREFIX}-"))


def _remove(namespace: str) -> None:
    if (NAMESPACES / namespace).exists():
        subprocess.run(["ip", "netns", "delete", namespace], check=False, capture_output=True)


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout
