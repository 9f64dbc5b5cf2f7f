# SPDX-License-Identifier: BSD-3-Clause
"""The configuration of a relay, validated once at start.

The docstring under each field is its documentation; ``etc/pprelay.yaml`` shows
every key.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import pydantic

from ppdaemon.config import LogConfig
from ppdaemon.configtypes import Address, Detectors, Seconds, WritableFolder
from ppdaemon.thishost import ThisHost
from ppdaemon.visit import Name
from ppdaemon.wire import Model
from ppdaemon.yamlfile import load_model

__all__ = ("RelayConfig", "RelayInstrument", "load_relay")


class RelayInstrument(Model):
    """One instrument that the relay accepts visits of."""

    detectors: Detectors
    """One reservation is made for each of them."""
    sal_indexes: tuple[int, ...] = ()
    """Script queues whose visits are taken; empty means any."""


class RelayConfig(Model):
    """Everything a ``pprelay`` needs to know."""

    name: Annotated[Name, pydantic.Field(min_length=1, pattern=r"^[\w.-]+$")] = "relay"
    """Name of this relay in its messages and logs."""
    submit: Address = "tcp://127.0.0.1:5570"
    """Where next_visit events come in."""
    nodes: Address = "tcp://127.0.0.1:5571"
    """Where nodes connect."""
    state_dir: WritableFolder
    """The ledger; on a local disk that outlives a restart."""
    instruments: Annotated[dict[Name, RelayInstrument], pydantic.Field(min_length=1)]
    """The instruments whose visits are accepted; others are refused."""
    expiry_s: Seconds = 3600.0
    """Announcements older than this are refused, and unserved ones dropped."""
    heartbeat_s: Seconds = 1.0
    """Interval of heartbeats to the nodes."""
    silence_s: Seconds = 4.0
    """A node silent for so long is gone."""
    resend_s: Seconds = 0.5
    """What is unacknowledged for so long is sent again."""
    keep_days: Seconds = 30.0
    """How long the ledger keeps what has ended."""
    log: LogConfig = LogConfig()


def load_relay(path: Path, environment: Mapping[str, str]) -> RelayConfig:
    """Read and check the configuration of a relay.

    Parameters
    ----------
    path : `pathlib.Path`
        A YAML file.
    environment : `~collections.abc.Mapping` [`str`, `str`]
        For ``${NAME}`` in values.

    Returns
    -------
    config : `RelayConfig`
        The configuration.

    Raises
    ------
    ppdaemon.errors.ConfigError
        Raised with every error, its line and key.
    """
    return load_model(path, RelayConfig, environment, ThisHost(environment))
