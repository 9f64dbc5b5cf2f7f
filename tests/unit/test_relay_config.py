# SPDX-License-Identifier: BSD-3-Clause
"""``etc/pprelay.yaml`` names every key, and is a configuration that works."""

from pathlib import Path

import pydantic
import pytest
import yaml

from ppdaemon.ctl import target
from ppdaemon.errors import ConfigError
from ppdaemon.relay.config import RelayConfig, load_relay, needs_restart
from ppdaemon.yamlfile import read_yaml

SHOWN = Path(__file__).parents[2] / "etc" / "pprelay.yaml"


def test_relays_of_both_modes_commit_offsets_under_different_names(tmp_path: Path) -> None:
    path = tmp_path / "pprelay.yaml"
    groups = set()
    for shadow in ("false", "true"):
        path.write_text(
            f"state_dir: {tmp_path}\nshadow: {shadow}\ninstruments: {{DemoCam: {{detectors: 0-8}}}}\n"
        )
        groups.add(load_relay(path, {}).kafka_group)
    assert groups == {"ppdaemon-relay", "ppdaemon.shadow-relay"}


def keys_of(model: type[pydantic.BaseModel]) -> set[str]:
    found = set()
    for name, field in model.model_fields.items():
        found.add(name)
        for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(part, type) and issubclass(part, pydantic.BaseModel):
                found |= {f"{name}.{key}" for key in keys_of(part)}
    return found


def keys_shown() -> set[str]:
    value, _ = read_yaml(SHOWN)
    found = set(value)
    names = (
        "kafka",
        "log",
        "metrics",
        "traces",
        "switched_off",
        "security",
        "security.operators",
        "security.readers",
    )
    for name in (*names, *(f"instruments.{instrument}" for instrument in value["instruments"])):
        part = value
        for step in name.split("."):
            part = part[step]
        where = "instruments" if name.startswith("instruments.") else name
        found |= {f"{where}.{key}" for key in part}
    return found


def test_every_key_is_shown_and_no_other():
    assert keys_shown() == keys_of(RelayConfig)


def test_it_loads_with_only_the_path_changed_and_shows_the_defaults(tmp_path):
    text = SHOWN.read_text(encoding="utf-8")
    assert "/var/lib/ppdaemon/relay" in text
    mine = tmp_path / "pprelay.yaml"
    mine.write_text(text.replace("/var/lib/ppdaemon/relay", str(tmp_path / "state")), encoding="utf-8")
    config = load_relay(mine, {})
    assert config.control == target.RELAY_RUN  # the unit makes its folder, and ppctl looks there
    least = RelayConfig(state_dir=config.state_dir, instruments=config.instruments, control=config.control)
    assert config == least


def test_it_has_the_instruments_of_the_shown_node():
    """Otherwise a relay is degraded that was installed as the guide has it: nothing serves them."""
    node, _ = read_yaml(SHOWN.with_name("ppdaemon.yaml"))
    relay, _ = read_yaml(SHOWN)
    served = node["node"]["instruments"]
    assert {name: found["detectors"] for name, found in relay["instruments"].items()} == served


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("{silence_s: 1.5}", "silence_s: 1.5 is less than 2 x heartbeat_s (1)"),
        ("{nodes: 'tcp://127.0.0.1:70000'}", "nodes: port 70000 of tcp://127.0.0.1:70000 is not in 1-65535"),
        ("{nodes: 'tcp://127.0.0.1:5570'}", "nodes: tcp://127.0.0.1:5570 is the address of submit, too"),
        ("{state_dir: state}", "state_dir: state is relative; write an absolute path"),
        (
            "{state_dir: '${STAT}/relay'}",
            "state_dir: environment variable 'STAT' is not set; did you mean 'ST",
        ),
        (
            "{switched_off: {surveys: [], detectors: {DemoCan: 1}}}",
            "switched_off.detectors: DemoCan is not one",
        ),
        (
            "{switched_off: {detectors: {DemoCam: 7-10}}}",
            "switched_off.detectors.DemoCam: DemoCam has no detectors 9-10, only 0-8",
        ),
        ("{switched_off: LATISS}", "switched_off: Input should be a valid mapping"),
        ("{kafka: {options: [a]}}", "kafka.options: Input should be a valid mapping"),
        ("{name: ..}", "name: String should match pattern"),
        ("{instruments: {..: {detectors: 0}}}", "instruments.."),
        (
            "{instruments: {DemoCam: {detectors: 0-8, nodes: {a: 7-10}}}}",
            "instruments.DemoCam.nodes.a: 9-10 are not in the detectors of the instrument",
        ),
        (
            "{submit: 'tcp://*:5570'}",
            "submit: other hosts can connect to tcp://*:5570: it needs security.key, or security.insecure",
        ),
        (
            "{submit: 'udp://127.0.0.1:5570'}",
            "submit: udp://127.0.0.1:5570 is not an address: write tcp://HOST",
        ),
        ("{submit: 'tcp://127.0.0.1'}", "submit: tcp://127.0.0.1 is not an address: write tcp://HOST:PORT"),
        ("{kafka: {registry: 'ftp://r'}}", "kafka.registry: ftp://r is not the address of a registry"),
        (
            "{kafka: {registry: 'https://u:hush-7@r'}}",
            "kafka.registry: write no user into the address: use registry_",
        ),
        ("{kafka: {registry: 'https://r', registry_user: u}}", "registry_password are needed together"),
        (
            "{kafka: {registry: 'http://r', registry_ca: /ca.pem}}",
            "kafka.registry: a password is sent, and a certificate is checked, with https:// only",
        ),
        ("{kafka: {password: /missing}}", "kafka.password: /missing: No such file or directory"),
        ("{kafka: {registry: 'u:hush-7@r:8081'}}", "kafka.registry: write no user into the address: use "),
        ("{kafka: {password: hush-7}}", "kafka.password: not an absolute path; write that of a file"),
        ("{security: {nodes: /}}", "security.nodes: needs security.key, the key of this relay"),
        ("{nodes: 'tcp://10.0.0.1:5571'}", "nodes: other hosts can connect to tcp://10.0.0.1:5571"),
        (
            "{metrics: {listen: '0.0.0.0:9465'}}",
            "metrics.listen: other hosts can connect to 0.0.0.0:9465: it needs metrics.insecure: true",
        ),
        ("{keep_days: 0.01}", "keep_days: Input should be greater than or equal to 1"),
        ("{expiry: 3}", "expiry: unknown key; did you mean 'expiry_s'?"),
    ],
)
def test_a_misspelling_or_an_impossible_value_is_refused_with_its_line(tmp_path, keys, message):
    path = tmp_path / "relay.yaml"
    needed = {"state_dir": str(tmp_path), "instruments": {"DemoCam": {"detectors": "0-8"}}}
    path.write_text(yaml.safe_dump(needed | yaml.safe_load(keys), sort_keys=False))
    with pytest.raises(ConfigError) as caught:
        load_relay(path, {"STATE": "/s"})
    (problem,) = caught.value.problems
    assert message in problem
    assert "hush-7" not in problem


def test_what_is_off_is_left_out_and_the_preferred_nodes_are_in_order(tmp_path):
    nodes = {"a": "0-2", "b": "2,3"}
    config = RelayConfig.model_validate(
        {
            "state_dir": tmp_path,
            "instruments": {"DemoCam": {"detectors": "0-4", "nodes": nodes}, "LATISS": {"detectors": 0}},
            "switched_off": {"instruments": ["LATISS"], "detectors": {"DemoCam": "1,4"}},
        }
    )
    assert config.active_detectors == {"DemoCam": (0, 2, 3), "LATISS": ()}
    assert config.preferred_nodes["DemoCam"] == {0: ("a",), 1: ("a",), 2: ("a", "b"), 3: ("b",), 4: ()}


def test_what_a_running_relay_cannot_change_is_named(tmp_path):
    old = RelayConfig.model_validate({"state_dir": tmp_path, "instruments": {"DemoCam": {"detectors": 0}}})
    new = old.model_copy(update={"keep_days": 3.0, "name": "other", "resend_s": 1.0})
    assert needs_restart(old, new) == ["name", "resend_s"]
