# SPDX-License-Identifier: BSD-3-Clause
"""``etc/ppbridge.yaml`` names every key, and is a configuration that works; contradictions are found."""

import os
import socket
from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml
from yaml import safe_load

from ppdaemon.bridge.app import _listener
from ppdaemon.bridge.config import BridgeConfig, load_bridge
from ppdaemon.ctl import target
from ppdaemon.errors import ConfigError, Unavailable
from ppdaemon.notify import FIRST_PASSED, passed_sockets

SHOWN = Path(__file__).parents[2] / "etc" / "ppbridge.yaml"


def keys_of(model: type[pydantic.BaseModel]) -> dict[str, Any]:
    """Return the keys of a configuration and its parts."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        part = field.annotation
        is_part = isinstance(part, type) and issubclass(part, pydantic.BaseModel)
        found[name] = keys_of(part) if is_part else None
    return found


def shown_keys(value: Any, known: dict[str, Any]) -> dict[str, Any]:
    return {
        name: shown_keys(each, known[name]) if known.get(name) is not None else None
        for name, each in value.items()
    }


def made(tmp_path: Path, **changes: Any) -> BridgeConfig:
    path = tmp_path / "ppbridge.yaml"
    path.write_text(yaml.safe_dump({"state_dir": str(tmp_path / "state")} | changes))
    return load_bridge(path, {})


def test_every_key_is_shown_and_no_other():
    known = keys_of(BridgeConfig)
    assert shown_keys(safe_load(SHOWN.read_text()), known) == known


def test_the_example_shows_the_defaults(tmp_path):
    text = SHOWN.read_text().replace("/var/lib/ppdaemon/bridge", str(tmp_path / "state"))
    mine = tmp_path / "ppbridge.yaml"
    mine.write_text(text)
    config = load_bridge(mine, {})
    assert config.control == target.BRIDGE_RUN  # the unit makes its folder, and ppctl looks there
    plain = made(tmp_path)
    assert config.model_copy(update={"control": None, "log": plain.log}) == plain


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"http": {"listen": None}}, "http.listen and kafka.brokers are both null"),
        ({"http": {"listen": "0.0.0.0:8480"}}, "http.listen: other hosts can connect to 0.0.0.0:8480"),
        ({"nodes": "tcp://*:5581"}, "nodes: other hosts can connect to tcp://"),
        ({"http": {"certificate_key": "/k"}}, "http.certificate: missing key"),
        ({"kafka": {"brokers": "b:9092"}}, "kafka.topics: list at least one topic"),
        (
            {"http": {"token": "hush-7"}},
            "http.token: not an absolute path; write that of a file with the sec",
        ),
        ({"ring": {"max_notices": 0}}, "ring.max_notices"),
        ({"state_dir": "/" + "s" * 110}, "state_dir: too long for control.sock in it"),
    ],
)
def test_a_contradiction_is_named_by_its_key(tmp_path, changes, words):
    with pytest.raises(ConfigError) as caught:
        made(tmp_path, **changes)
    assert words in str(caught.value)
    assert "hush-7" not in str(caught.value)


def test_other_hosts_may_connect_with_a_token_or_if_that_is_allowed(tmp_path):
    http = {"listen": "0.0.0.0:8480"}
    assert made(tmp_path, http=http | {"token": "/t"}).http.listen == http["listen"]
    assert made(tmp_path, http=http, security={"insecure": True}).http.listen == http["listen"]


def test_sockets_of_systemd_are_those_for_this_process(monkeypatch):
    assert passed_sockets({}) == []
    assert passed_sockets({"LISTEN_PID": "1", "LISTEN_FDS": "2"}) == []
    opened: list[int] = []
    monkeypatch.setattr(socket, "socket", lambda *, fileno: opened.append(fileno))
    passed_sockets({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2"})
    assert opened == [FIRST_PASSED, FIRST_PASSED + 1]


def test_a_passed_socket_that_other_hosts_reach_needs_a_token(tmp_path, monkeypatch):
    """The unit of a site may have another address than the configuration."""
    config = made(tmp_path)
    listener = socket.create_server(("0.0.0.0", 0))
    monkeypatch.setattr("ppdaemon.bridge.app.passed_sockets", lambda environment: [listener])
    with pytest.raises(ConfigError, match=r"other hosts can connect to 0\.0\.0\.0:"):
        _listener(config, {})
    assert listener.fileno() == -1


def test_a_port_in_use_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(
            Unavailable, match=f"http.listen: cannot listen on {address}: Address already in use$"
        ):
            _listener(made(tmp_path, http={"listen": address}), {})
