# SPDX-License-Identifier: BSD-3-Clause
"""A real ``pprelay`` and several real ``ppdaemon``, on this machine or on `~ppdaemon.testing.hosts`."""

import contextlib
import random
import shutil
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ppdaemon.curve import ClientKeys, new_key_pair
from ppdaemon.errors import NotFound
from ppdaemon.folders import NodeFolders
from ppdaemon.keyfiles import PUBLIC_SUFFIX, SECRET_SUFFIX, write_key_pair
from ppdaemon.reports import VisitRow
from ppdaemon.testing.hosts import Hosts
from ppdaemon.testing.node import NodeProcess, node_config
from ppdaemon.testing.played import ClientSockets, VisitDetector
from ppdaemon.testing.raws import RawWriter
from ppdaemon.testing.relay import RelayProcess, SubmitClient
from ppdaemon.testing.waiting import TIMEOUT_S, wait_until

__all__ = ("RELAY", "Telescope", "free_port", "running_telescope")

RELAY = "relay"
"""Name of the relay's host."""
CLIENT = "client"
"""Name of the client's keys."""
PORT = 5571
"""Of the relay's node socket on its own host, where no other program has it."""
LOCAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""From which the kernel takes the ports of connections."""
FIRST_PORT = 10_000
"""Those below are the usual ones of programs."""
LINK = {"heartbeat_s": 0.2, "silence_s": 1.0}
"""Four heartbeats within the limit of silence, and some to spare on a busy machine."""
LOG_TAIL = 3000


def free_port() -> int:
    """Return a TCP port of the loopback that no program uses now. The kernel gives it to no connection
    meanwhile, as far as there are ports below those.
    """
    first = int(LOCAL_PORTS.read_text().split()[0])
    while True:
        port = random.randrange(FIRST_PORT, first) if first > 2 * FIRST_PORT else 0
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)) as server:
            return int(server.getsockname()[1])


class Telescope:
    """One relay and its nodes, whose workers are scripted, with one raw root for all.

    Parameters
    ----------
    folder : `pathlib.Path`
        For everything with a long path.
    sockets : `pathlib.Path`
        For sockets and RAM disks; its path is short.
    nodes : `~collections.abc.Iterable` [`str`]
        Names of the nodes.
    hosts : `~ppdaemon.testing.hosts.Hosts`, optional
        Hosts of these names, and of `RELAY`; by default all run on this machine.
    relay : `~collections.abc.Mapping`, optional
        Keys of the relay's configuration.
    encrypted : `bool`, optional
        Whether relay and nodes have keys; by default they have on several hosts, where they must.
    link : `~collections.abc.Mapping`, optional
        Heartbeats and limits of silence at both ends, short by default so that a test of a dead host
        is short.
    make_node : `~collections.abc.Callable`, optional
        Called as `~ppdaemon.testing.node.NodeProcess`.
    **parts
        As `~ppdaemon.testing.node.node_config` takes them, for all nodes.

    Attributes
    ----------
    relay : `~ppdaemon.testing.relay.RelayProcess`
        The relay.
    keys : `pathlib.Path`
        Folder of the keys, if there are any.
    nodes : `dict` [`str`, `~ppdaemon.testing.node.NodeProcess`]
        By name.
    camera : `str`
        Short name of the instrument.
    raws : `~ppdaemon.testing.raws.RawWriter`
        Writes raws that all nodes find.
    """

    def __init__(
        self,
        folder: Path,
        sockets: Path,
        nodes: Iterable[str],
        *,
        hosts: Hosts | None = None,
        relay: Mapping[str, Any] | None = None,
        encrypted: bool | None = None,
        link: Mapping[str, float] = LINK,
        make_node: Callable[..., NodeProcess] = NodeProcess,
        **parts: Mapping[str, Any],
    ):
        self.hosts = hosts
        address = f"{hosts.address(RELAY)}:{PORT}" if hosts else f"127.0.0.1:{free_port()}"
        address = f"tcp://{address}"
        nodes = tuple(nodes)
        self.keys = folder / "keys"
        encrypted = hosts is not None if encrypted is None else encrypted
        if encrypted:
            self._make_keys(nodes)
        (sockets / RELAY).mkdir()
        security = {"security": self._relay_security()} if encrypted else {}
        fields = {"nodes": address, **security, **link, **(relay or {})}
        self.relay = RelayProcess(sockets / RELAY, launcher=self._launcher(RELAY), **fields)
        (folder / "raw").mkdir(exist_ok=True)
        self.nodes: dict[str, NodeProcess] = {}
        for name in nodes:
            own, short = folder / name, sockets / name
            own.mkdir()
            short.mkdir()
            config = node_config(own, short, **parts)
            config["node"]["name"] = name
            config["relay"] |= {"address": address, **link, **parts.get("relay", {})}
            if encrypted:
                config["relay"]["server"] = str(self.keys / f"{RELAY}{PUBLIC_SUFFIX}")
                config["security"] = {"key": str(self.keys / f"{name}{SECRET_SUFFIX}")}
            config["arrivals"]["roots"] = [str(folder / "raw")]
            self.nodes[name] = make_node(own, config, launcher=self._launcher(name))
        self.camera = next(iter(config["node"]["instruments"]))
        self.raws = RawWriter(folder / "raw", self.camera)

    def _make_keys(self, nodes: Iterable[str]) -> None:
        """Make keys for relay and nodes, and the folders of those who may connect."""
        for folder in (self.keys, self.keys / "nodes", self.keys / "submit"):
            folder.mkdir(mode=0o700)
        for name in (RELAY, CLIENT, *nodes):
            _, public = write_key_pair(self.keys, name, new_key_pair())
            if name != RELAY:
                shutil.copy(public, self.keys / ("submit" if name == CLIENT else "nodes"))

    @property
    def client_keys(self) -> ClientKeys | None:
        """Keys of those who announce visits (`~ppdaemon.curve.ClientKeys`), if there are any."""
        if not self.keys.exists():
            return None
        return ClientKeys.read(self.keys / f"{CLIENT}{SECRET_SUFFIX}", self.keys / f"{RELAY}{PUBLIC_SUFFIX}")

    def client(self, sockets: ClientSockets) -> SubmitClient:
        """Return a client of the relay."""
        return SubmitClient(sockets, self.relay.submit, self.camera, self.client_keys)

    def _relay_security(self) -> dict[str, str]:
        key = self.keys / f"{RELAY}{SECRET_SUFFIX}"
        return {"key": str(key), "nodes": str(self.keys / "nodes"), "submit": str(self.keys / "submit")}

    def _launcher(self, name: str) -> Sequence[str]:
        return self.hosts.launcher(name) if self.hosts else ()

    def start(self, deadline_s: float = TIMEOUT_S) -> None:
        """Start all, and wait until all nodes are connected and have idle workers."""
        self.relay.start()
        for node in self.nodes.values():
            node.launch()
        for node in self.nodes.values():
            node.wait(lambda node=node: node.is_ready() and self.connected(node), deadline_s)  # type: ignore[misc]

    @staticmethod
    def connected(node: NodeProcess) -> bool:
        """Return whether a node is connected to the relay, by its own status."""
        return node.status().relay.startswith("connected")

    def stop(self) -> list[str]:
        """Stop all; return what went wrong."""
        problems = []
        for name, node in self.nodes.items():
            if not node.running:
                continue
            status: int | None = None
            with contextlib.suppress(AssertionError):
                status = node.stop()
            if status != 0:
                problems.append(f"{name} {'had to be killed' if status is None else f'ended with {status}'}")
            problems += [f"{name} left {path}" for path in node.ramdisk.glob("ppdaemon*")]
        if self.relay.running and (status := self.relay.stop()) != 0:
            problems.append(f"the relay ended with {status}")
        return problems

    def kill(self) -> None:
        """Kill the relay and all supervisors that are running, stopped ones too."""
        for node in self.nodes.values():
            if node.running:
                node.kill()
        if self.relay.running:
            self.relay.kill()

    def wait[T](self, condition: Callable[[], T], deadline_s: float = TIMEOUT_S) -> T:
        """Wait for a condition; a failure has the end of all logs."""
        __tracebackhide__ = True
        return wait_until(condition, deadline_s, self.story)

    def story(self) -> str:
        """Return the end of all logs."""
        logs = {RELAY: self.relay.log} | {name: node.log for name, node in self.nodes.items()}
        texts = {name: log.read_text(errors="replace") for name, log in logs.items() if log.exists()}
        return "".join(f"\n--- {name} ---\n{text[-LOG_TAIL:]}" for name, text in texts.items())

    # --- the checks of a test ----------------------------------------------

    def journal_rows(self, group: str) -> dict[str, list[VisitRow]]:
        """Return the rows of a visit in the journals of running nodes, by node."""
        found = {}
        for name, node in self.nodes.items():
            if node.running:
                with contextlib.suppress(NotFound):
                    found[name] = node.visit(group)
        return found

    def writes(self) -> Counter[VisitDetector]:
        """Count the permanent writes of all nodes."""
        found: Counter[VisitDetector] = Counter()
        for node in self.nodes.values():
            for name, count in node.marks().items():
                group, _, detector = name.rpartition("~")
                found[group, int(detector)] += count
        return found

    def exports(self) -> Counter[VisitDetector]:
        """Count the exports of all nodes."""
        found: Counter[VisitDetector] = Counter()
        for node in self.nodes.values():
            for name in node.exported():
                spool = NodeFolders.parse_spool_name(name)
                if spool is not None:
                    found[spool[1], spool[2]] += 1
        return found


@contextmanager
def running_telescope(
    folder: Path, sockets: Path, nodes: Iterable[str], *, start_s: float = TIMEOUT_S, **options: Any
) -> Iterator[tuple[Telescope, SubmitClient]]:
    """Run a telescope, and stop it.

    Parameters
    ----------
    folder, sockets, nodes, **options
        As `Telescope` takes them.
    start_s : `float`, optional
        How long the start may take.

    Yields
    ------
    telescope : `Telescope`
        All its nodes are connected.
    client : `~ppdaemon.testing.relay.SubmitClient`
        Announces visits to its relay.

    Raises
    ------
    AssertionError
        Raised if a program does not start, exits with an error, or leaves files on a RAM disk.
    """
    telescope = Telescope(folder, sockets, nodes, **options)
    try:
        with ClientSockets() as wires:
            telescope.start(start_s)
            yield telescope, telescope.client(wires)
    finally:
        problems = telescope.stop()
    if problems:
        raise AssertionError("; ".join(problems) + telescope.story())
