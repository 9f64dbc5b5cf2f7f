# SPDX-License-Identifier: BSD-3-Clause
"""``etc/pprelay.yaml`` names every key, and is a configuration that works."""

from pathlib import Path

import pydantic

from ppdaemon.relay.config import RelayConfig, load_relay
from ppdaemon.yamlfile import read_yaml

SHOWN = Path(__file__).parents[2] / "etc" / "pprelay.yaml"


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
    for name in ("log", *(f"instruments.{instrument}" for instrument in value["instruments"])):
        part = value
        for step in name.split("."):
            part = part[step]
        found |= {f"{name.partition('.')[0]}.{key}" for key in part}
    return found


def test_every_key_is_shown_and_no_other():
    assert keys_shown() == keys_of(RelayConfig)


def test_it_loads_with_only_the_path_changed_and_shows_the_defaults(tmp_path):
    text = SHOWN.read_text(encoding="utf-8")
    assert "/var/lib/ppdaemon/relay" in text
    mine = tmp_path / "pprelay.yaml"
    mine.write_text(text.replace("/var/lib/ppdaemon/relay", str(tmp_path / "state")), encoding="utf-8")
    config = load_relay(mine, {})
    least = RelayConfig(state_dir=config.state_dir, instruments=config.instruments)
    assert config == least
    assert {name: len(found.detectors) for name, found in config.instruments.items()} == {
        "LSSTCam": 189,
        "LSSTComCam": 9,
        "LATISS": 1,
        "DemoCam": 9,
    }
