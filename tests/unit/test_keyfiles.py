# SPDX-License-Identifier: BSD-3-Clause
"""Key files: their format, and which of them are refused."""

import os
import stat

import pytest
import zmq.auth
from click.testing import CliRunner

from ppdaemon.config import NodeConfig, load_node
from ppdaemon.configtypes import is_local
from ppdaemon.ctl.cli import _ppctl
from ppdaemon.curve import new_key_pair
from ppdaemon.errors import ConfigError
from ppdaemon.keyfiles import UnusableKey, read_allow_list, read_key_pair, read_public_key, write_key_pair
from ppdaemon.relay.config import load_relay
from ppdaemon.testing.node import node_config

NOBODY = 65534
ONLY_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


@pytest.fixture
def keys(tmp_path):
    return write_key_pair(tmp_path, "node1", new_key_pair())


def test_the_files_are_those_of_pyzmq(tmp_path):
    pair = new_key_pair()
    secret, public = write_key_pair(tmp_path, "node1", pair)
    assert zmq.auth.load_certificate(secret) == (pair.public, pair.secret)
    assert zmq.auth.load_certificate(public) == (pair.public, None)
    assert read_key_pair(secret) == pair
    assert read_public_key(public) == pair.public
    made, made_secret = zmq.auth.create_certificates(tmp_path, "other")
    os.chmod(made_secret, 0o600)
    assert read_key_pair(made_secret).public == read_public_key(made)


def test_a_secret_is_not_shown(keys):
    pair = read_key_pair(keys[0])
    assert pair.secret.decode() not in repr(pair)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_secret_key_that_others_can_read_is_refused(keys, mode):
    """Fault 66."""
    keys[0].chmod(mode)
    with pytest.raises(
        UnusableKey, match=rf"{keys[0]}: .* may read it \(mode {mode:04o}\); chmod 600 {keys[0]}"
    ):
        read_key_pair(keys[0])


def test_a_public_key_that_others_can_replace_is_refused(keys):
    keys[1].chmod(0o664)
    with pytest.raises(UnusableKey, match=f"may write to it .*; chmod go-w {keys[1]}"):
        read_public_key(keys[1])


@ONLY_ROOT
def test_a_key_of_another_user_is_refused(keys):
    for path, read in zip(keys, (read_key_pair, read_public_key), strict=True):
        os.chown(path, NOBODY, NOBODY)
        with pytest.raises(UnusableKey, match=r"belongs to user nobody, but this program runs as user root"):
            read(path)


def test_other_files_are_refused(tmp_path, keys):
    secret, public = keys
    with pytest.raises(UnusableKey, match="No such file"):
        read_key_pair(tmp_path / "missing")
    with pytest.raises(UnusableKey, match="has a secret key"):
        read_public_key(secret)
    public.chmod(0o600)
    with pytest.raises(UnusableKey, match="has no pair of keys"):
        read_key_pair(public)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(UnusableKey, match="is not a file"):
        read_key_pair(tmp_path / "pipe")
    (tmp_path / "text").write_text('curve\n public-key = "too short"\n')
    with pytest.raises(UnusableKey, match="has no public key"):
        read_public_key(tmp_path / "text")


def test_an_allow_list_is_a_folder_of_public_keys(tmp_path, keys):
    folder = tmp_path / "nodes"
    folder.mkdir()
    assert read_allow_list(folder) == {}
    (folder / "node1.key").write_bytes(keys[1].read_bytes())
    (folder / "README").touch()
    assert read_allow_list(folder) == {read_public_key(keys[1]).decode(): "node1"}
    (folder / "node2.key").write_bytes(keys[1].read_bytes())
    with pytest.raises(UnusableKey, match=r"node2.key has the same key as node1.key"):
        read_allow_list(folder)
    (folder / "node2.key").write_bytes(keys[0].read_bytes())
    with pytest.raises(UnusableKey, match="has a secret key"):
        read_allow_list(folder)
    folder.chmod(0o777)
    with pytest.raises(UnusableKey, match="chmod go-w"):
        read_allow_list(folder)


def run(*arguments):
    return CliRunner().invoke(_ppctl, ["keygen", *map(str, arguments)])


def test_keygen_makes_two_files_and_a_closed_folder(tmp_path):
    before = os.umask(0)
    try:
        done = run("node1", "--folder", tmp_path / "keys")
    finally:
        os.umask(before)
    assert done.exit_code == 0
    secret, public = tmp_path / "keys" / "node1.key_secret", tmp_path / "keys" / "node1.key"
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "keys", secret, public)]
    assert modes == [0o700, 0o600, 0o644]
    assert str(secret) in done.output
    assert read_key_pair(secret).secret.decode() not in done.output
    assert read_key_pair(secret).public == read_public_key(public)


@pytest.mark.parametrize("existing", ["node1.key_secret", "node1.key"])
def test_keygen_overwrites_nothing(tmp_path, existing):
    (tmp_path / existing).write_text("precious")
    done = run("node1", "--folder", tmp_path)
    assert done.exit_code != 0
    assert "File exists" in str(done.exception)
    assert [path.name for path in tmp_path.iterdir()] == [existing]
    assert (tmp_path / existing).read_text() == "precious"


def test_keygen_refuses_a_folder_in_which_all_can_replace_files(tmp_path):
    tmp_path.chmod(0o777)
    done = run("node1", "--folder", tmp_path)
    assert "chmod o-w" in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_keygen_refuses_a_path_as_a_name(tmp_path):
    assert "letters, digits" in run("../node1", "--folder", tmp_path / "keys").output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("tcp://127.0.0.1:5570", True),
        ("tcp://127.8.9.1:*", True),
        ("tcp://localhost:5570", True),
        ("tcp://lo:5570", True),
        ("tcp://[::1]:5570", True),
        ("ipc:///run/relay", True),
        ("tcp://*:5570", False),
        ("tcp://0.0.0.0:5570", False),
        ("tcp://[::]:5570", False),
        ("tcp://eth0:5570", False),
        ("tcp://relay:5570", False),
        ("tcp://127.0.0.1.example.org:5570", False),
        ("tcp://127.0.0.1:0;10.0.0.1:5570", False),
    ],
)
def test_what_only_this_host_can_reach(address, local):
    assert is_local(address) is local


def node_problems(tmp_path, **parts):
    path = tmp_path / "node.yaml"
    path.write_text(str(node_config(tmp_path, tmp_path, **parts)))
    with pytest.raises(ConfigError) as caught:
        load_node(path, {})
    return [problem.partition(": ")[2] for problem in caught.value.problems]


def test_connections_of_a_node_to_other_hosts_need_keys(tmp_path, keys):
    """Fault 65."""
    secret, public = map(str, keys)
    relay = {"address": "tcp://relay:5571"}
    arrivals = {"subscribe": ["tcp://storage:5580", {"address": "tcp://127.0.0.1:5580"}]}
    needs = "is on another host: connections need server and security.key, or security.insecure: true"
    assert node_problems(tmp_path, relay=relay, arrivals=arrivals) == [
        f"arrivals.subscribe.0: tcp://storage:5580 {needs}",
        f"relay: tcp://relay:5571 {needs}",
    ]
    assert node_problems(tmp_path, relay=relay, security={"key": secret}) == [
        f"relay: tcp://relay:5571 {needs}"
    ]
    assert node_problems(tmp_path, relay=relay | {"server": public}) == [
        "relay.server: needs security.key, the key of this node"
    ]
    assert node_problems(tmp_path, relay=relay | {"server": public}, security={"key": public}) == [
        f"security.key: {public}: users other than its owner may read it (mode 0644); chmod 600 {public}"
    ]
    for parts in (
        {"relay": relay | {"server": public}, "security": {"key": secret}},
        {"relay": relay, "arrivals": arrivals, "security": {"insecure": True}},
    ):
        config = node_config(tmp_path, tmp_path, **parts)
        (tmp_path / "node.yaml").write_text(str(config))
        loaded = load_node(tmp_path / "node.yaml", {})
        assert NodeConfig.model_validate_json(loaded.model_dump_json()) == loaded


@pytest.mark.parametrize(
    ("listen", "text"),
    [
        ("127.0.0.1:9464", ""),
        ("[::1]:9464", ""),
        ("localhost:9464", ""),
        ("0.0.0.0:9464", "other hosts can connect to 0.0.0.0:9464: it needs metrics.insecure: true"),
        ("[::]:9464", "other hosts can connect to [::]:9464: it needs metrics.insecure: true"),
        ("node1:9464", "other hosts can connect to node1:9464: it needs metrics.insecure: true"),
        ("9464", "9464 is not an address: write HOST:PORT, such as 127.0.0.1:9464"),
        (":9464", ":9464 is not an address: write HOST:PORT, such as 127.0.0.1:9464"),
        ("*:9464", "*:9464 is not an address: write HOST:PORT, such as 127.0.0.1:9464"),
        ("::1:9464", "::1:9464 is not an address: write HOST:PORT, such as 127.0.0.1:9464"),
        ("127.0.0.1:x", "127.0.0.1:x is not an address: write HOST:PORT, such as 127.0.0.1:9464"),
        ("127.0.0.1:0", "port 0 of 127.0.0.1:0 is not in 1-65535"),
        ("127.0.0.1:65536", "port 65536 of 127.0.0.1:65536 is not in 1-65535"),
    ],
)
def test_metrics_are_for_this_host_unless_others_are_allowed(tmp_path, listen, text):
    config = node_config(tmp_path, tmp_path, metrics={"listen": listen})
    if text:
        assert node_problems(tmp_path, metrics={"listen": listen}) == [f"metrics.listen: {text}"]
        config["metrics"]["insecure"] = True
    if not text or text.startswith("other hosts"):
        (tmp_path / "node.yaml").write_text(str(config))
        assert load_node(tmp_path / "node.yaml", {}).metrics.listen == listen


def test_a_relay_with_a_key_needs_both_folders(tmp_path, keys):
    config = {"state_dir": str(tmp_path), "instruments": {"DemoCam": {"detectors": "0-8"}}}
    config["security"] = {"key": str(keys[0]), "nodes": str(tmp_path)}
    (tmp_path / "relay.yaml").write_text(str(config))
    with pytest.raises(ConfigError, match=r"security.submit: missing key, the folder with the public keys"):
        load_relay(tmp_path / "relay.yaml", {})
