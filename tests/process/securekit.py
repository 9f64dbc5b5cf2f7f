# SPDX-License-Identifier: BSD-3-Clause
"""A real pprelay with keys, listening on TCP, and the keys of who may and may not connect."""

import json
import shutil
import signal
from pathlib import Path

from ppdaemon.curve import ClientKeys, new_key_pair
from ppdaemon.keyfiles import write_key_pair
from ppdaemon.testing.relay import RelayProcess
from ppdaemon.testing.waiting import TIMEOUT_S, wait_until

NAMES = ("relay", "node1", "node2", "client", "stranger")


class SecureRelay(RelayProcess):
    """Admits the keys of node1, node2 and client."""

    def __init__(self, folder: Path, **changes):
        self.keys = folder / "keys"
        self.keys.mkdir()
        for name in NAMES:
            write_key_pair(self.keys, name, new_key_pair())
        for socket, names in (("nodes", ("node1", "node2")), ("submit", ("client",))):
            (folder / socket).mkdir()
            for name in names:
                self.admit(folder / socket, name)
        self.folders = {"nodes": folder / "nodes", "submit": folder / "submit"}
        security = {"key": str(self.keys / "relay.key_secret")}
        security |= {name: str(path) for name, path in self.folders.items()}
        security |= changes.pop("security", {})
        addresses = {"submit": "tcp://127.0.0.1:*", "nodes": "tcp://127.0.0.1:*"}
        super().__init__(folder, **addresses, security=security, **changes)

    def start(self, **environment):
        super().start(**environment)
        records = map(json.loads, self.log.read_text().splitlines())
        found = {each["socket"]: each["address"] for each in records if each["event"] == "listening"}
        self.submit, self.nodes = found["submit"], found["nodes"]
        return self

    def admit(self, folder, name):
        shutil.copy(self.keys / f"{name}.key", folder)

    def reload(self):
        """Read the folders again, and wait until that is done."""

        def answers():
            return len(self.events("keys were read")) // 2 + len(self.events("reload refused"))

        before = answers()
        self.process.send_signal(signal.SIGHUP)
        wait_until(lambda: answers() > before, TIMEOUT_S, self.log.read_text)

    def client_keys(self, name, server="relay"):
        return ClientKeys.read(self.keys / f"{name}.key_secret", self.keys / f"{server}.key")


CELLS = {
    "known key": ("known", "relay"),
    "unknown key": ("stranger", "relay"),
    "no key": None,
    "wrong server key": ("known", "stranger"),
}
"""Of the matrix: whose keys the client has, and whose public key it expects of the server."""


def keys_of(relay: SecureRelay, cell: str, known: str) -> ClientKeys | None:
    """Return the keys of a client in a cell of the matrix, `known` being the one that is admitted."""
    names = CELLS[cell]
    return None if names is None else relay.client_keys(known if names[0] == "known" else names[0], names[1])
