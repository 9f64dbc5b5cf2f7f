# SPDX-License-Identifier: BSD-3-Clause
"""The configuration of a relay, validated once at start.

The docstring under each field is its documentation; ``etc/pprelay.yaml`` shows
every key.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import pydantic

from ppdaemon.config import LogConfig, SecurityConfig, silence_conflicts
from ppdaemon.configtypes import (
    Address,
    ConfigPart,
    Detectors,
    KeyFolder,
    Seconds,
    WritableFolder,
    is_local,
    valid_values,
)
from ppdaemon.keyfiles import read_allow_list
from ppdaemon.thishost import HostContext
from ppdaemon.visit import Name
from ppdaemon.yamlfile import KeyPath, load_model

__all__ = ("RelayConfig", "RelayInstrument", "RelaySecurity", "load_relay")


class RelayInstrument(ConfigPart):
    """One instrument that the relay accepts visits of."""

    detectors: Detectors
    """Detectors of each visit; one reservation is made for each of them."""
    sal_indexes: tuple[int, ...] = ()
    """Script queues whose visits are accepted; empty means all."""


class RelaySecurity(SecurityConfig):
    """Who may connect to this relay, and its key. With a key, both folders must be set."""

    submit: KeyFolder | None = None
    """Folder with the public keys (``NAME.key``) of those who may announce visits."""
    nodes: KeyFolder | None = None
    """Folder with the public keys of the nodes; the name of a file is the name of its node."""

    def read_allow_lists(self) -> dict[str, Mapping[str, str]]:
        """Return the names of the admitted keys, by socket; raises `~ppdaemon.keyfiles.UnusableKey`."""
        folders = {"submit": self.submit, "nodes": self.nodes}
        return {name: read_allow_list(folder) for name, folder in folders.items() if folder is not None}


class RelayConfig(ConfigPart):
    """The whole configuration of ``pprelay``."""

    name: Annotated[Name, pydantic.Field(min_length=1, pattern=r"^[\w.-]+$")] = "relay"
    """Name of this relay in its messages and logs."""
    submit: Address = "tcp://127.0.0.1:5570"
    """ZeroMQ address on which next_visit events are received."""
    nodes: Address = "tcp://127.0.0.1:5571"
    """ZeroMQ address to which nodes connect."""
    state_dir: WritableFolder
    """Folder of the ledger, on a local disk that keeps its files over a reboot."""
    instruments: Annotated[dict[Name, RelayInstrument], pydantic.Field(min_length=1)]
    """The instruments whose visits are accepted; others are refused."""
    expiry_s: Seconds = 3600.0
    """Visits published longer ago are refused; detectors that no node has
    acknowledged by then end as ``expired``."""
    heartbeat_s: Seconds = 1.0
    """Interval of heartbeats to the nodes."""
    silence_s: Seconds = 4.0
    """A node that sends nothing for this long counts as disconnected. At least 2 x
    ``heartbeat_s``."""
    give_up_s: Seconds = 900.0
    """After this time without a message of a node, its detectors end as ``interrupted``; a later
    outcome of the node replaces that. Detectors for which it has no permit to write permanently go
    to another node after ``silence_s`` already. At least ``silence_s``."""
    resend_s: Seconds = 0.5
    """A detector that a node has not acknowledged after this time is sent again."""
    keep_days: Seconds = 30.0
    """Days that the ledger keeps visits of which all detectors have an outcome."""
    security: RelaySecurity = RelaySecurity()
    log: LogConfig = LogConfig()

    @classmethod
    def conflicts(cls, keys: Any) -> Iterator[tuple[KeyPath, str]]:
        """Find a time limit that a single late heartbeat would exceed, one address for two sockets, and
        sockets without keys that other hosts can reach.
        """
        yield from silence_conflicts(keys)
        if (times := valid_values(keys, "silence_s", "give_up_s")) and times[1] < times[0]:
            yield ("give_up_s",), f"{times[1]:g} is below silence_s, {times[0]:g}"
        if values := valid_values(getattr(keys, "security", None), "key", "insecure", "submit", "nodes"):
            key, insecure, *folders = values
            for name, folder in zip(("submit", "nodes"), folders, strict=True):
                for address in valid_values(keys, name):
                    if key is None and not insecure and not is_local(address):
                        text = f"other hosts can connect to {address}: it needs security.key, or "
                        yield (name,), f"{text}security.insecure: true"
                if key is not None and folder is None:
                    yield ("security", name), "missing key, the folder with the public keys that may connect"
        if (values := valid_values(keys, "submit", "nodes")) and values[0] == values[1]:
            if values[0].endswith((":*", ":0")):  # the system chooses two ports
                return
            yield ("nodes",), f"{values[1]} is the address of submit, too"


def load_relay(path: Path, environment: Mapping[str, str]) -> RelayConfig:
    """Read and check a YAML file; raise `~ppdaemon.errors.ConfigError` with all errors.

    `environment` gives the values of ``${NAME}``.
    """
    return load_model(path, RelayConfig, environment, HostContext(environment))[0]
