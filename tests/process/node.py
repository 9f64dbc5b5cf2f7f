# SPDX-License-Identifier: BSD-3-Clause
"""A real ``ppdaemon`` in the configuration of most process tests."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ramdisk import TEMPORARY

from ppdaemon.testing.node import PROGRAM, TIMES, NodeProcess, node_config, running_node
from ppdaemon.testing.played import ClientSockets, PlayedRelay
from ppdaemon.testing.relay import RelayProcess, SubmitClient

TESTS = Path(__file__).parent


def make_node(
    folder: Path,
    sockets: Path,
    relay: PlayedRelay | None = None,
    *,
    launcher: Sequence[str] = (),
    program: Sequence[str] = PROGRAM,
    variables: Mapping[str, str] | None = None,
    **changes: Any,
) -> NodeProcess:
    """Return a node that is not started; `changes` as `parts` takes them."""
    config = node_config(folder, sockets, **parts(folder, **changes))
    if relay is not None:
        config["relay"]["address"] = relay.address
    return NodeProcess(folder, config, relay, launcher=launcher, program=program, environment=variables)


@contextmanager
def running(
    folder: Path,
    sockets: Path,
    *,
    launcher: Sequence[str] = (),
    program: Sequence[str] = PROGRAM,
    ready: bool = True,
    **changes: Any,
) -> Iterator[NodeProcess]:
    """Run a node with a played relay; `changes` as `parts` takes them."""
    options = {"launcher": launcher, "program": program, "ready": ready}
    with running_node(folder, sockets, **options, **parts(folder, **changes)) as node:
        yield node


@contextmanager
def observatory(
    folder: Path,
    sockets: Path,
    alone: str = "wait",
    *,
    relay_keys: Mapping[str, Any] | None = None,
    node_keys: Mapping[str, Mapping[str, Any]] | None = None,
    **workers: Any,
) -> Iterator[tuple[RelayProcess, NodeProcess, SubmitClient]]:
    """Run a relay and a node, and give a client of the relay; further keys of their configurations."""
    with RelayProcess(sockets, **(relay_keys or {})).start() as relay:
        node = make_node(folder, sockets, None, **workers)
        node.config["relay"] |= {"address": relay.nodes, "silence_s": 2.0, "alone": alone}
        node.config |= node_keys or {}
        with node.start(), ClientSockets() as wires:
            node.wait(lambda: node.status().relay.startswith("connected"))
            yield relay, node, SubmitClient(wires, relay.submit)
            assert node.stop() == 0, node.story()  # also if the test has stopped it, and has not looked


@contextmanager
def running_for_module(folders: pytest.TempPathFactory, **changes: Any) -> Iterator[NodeProcess]:
    """Run a node in folders that outlive a test; `changes` as `running` takes them."""
    with (
        tempfile.TemporaryDirectory(prefix="pp-", dir=TEMPORARY) as sockets,
        running(folders.mktemp("node"), Path(sockets), **changes) as node,
    ):
        yield node


def parts(
    folder: Path,
    *,
    image_timeout_s: float = 30,
    arrivals: Mapping[str, Any] | None = None,
    times: Mapping[str, float] | None = None,
    publish: Sequence[Mapping[str, Any]] = (),
    **workers: Any,
) -> dict[str, Any]:
    """Return changes of `node_config`: further names are keys of its part ``workers``."""
    rules = [{"survey": "ignore", "pipelines": None}, {"pipelines": [str(folder / "any.yaml")]}]
    return {
        "arrivals": {"image_timeout_s": image_timeout_s, **(arrivals or {})},
        "workers": {"times": TIMES | dict(times or {}), **workers},
        "pipelines": {"main": rules},
        "publish": list(publish),
    }
