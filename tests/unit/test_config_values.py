# SPDX-License-Identifier: BSD-3-Clause
"""A wrong value of any key in the files of ``etc`` is an error with its line."""

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from ppdaemon.bridge.config import load_bridge
from ppdaemon.config import load_node
from ppdaemon.errors import ConfigError
from ppdaemon.relay.config import load_relay

SHOWN = Path(__file__).parents[2] / "etc"
type Place = tuple[str | int, ...]


def places(value: Any, place: Place = ()) -> Iterator[Place]:
    """Yield the place of each value in a file."""
    if place:
        yield place
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, child in steps:
        yield from places(child, (*place, step))


def changed(document: dict[str, Any], place: Place, value: Any) -> dict[str, Any]:
    """Return the document with another value at a place."""
    copied = copy.deepcopy(document)
    within: Any = copied
    for step in place[:-1]:
        within = within[step]
    within[place[-1]] = value
    return copied


def problems_of(
    path: Path, document: dict[str, Any], load: Callable[[Path, Mapping[str, str]], Any]
) -> Sequence[str]:
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    try:
        load(path, {})
    except ConfigError as error:
        return error.problems
    return ()


@pytest.mark.parametrize("wrong", [[{"x": 1}], "\u2603 apples"], ids=str)
@pytest.mark.parametrize(("name", "load"), [("pprelay", load_relay), ("ppbridge", load_bridge)])
def test_a_wrong_value_of_any_key_is_no_error_of_the_program(
    tmp_path: Path, name: str, load: Callable[[Path, Mapping[str, str]], Any], wrong: Any
) -> None:
    path = tmp_path / f"{name}.yaml"
    document = yaml.safe_load((SHOWN / f"{name}.yaml").read_text())
    problems = [
        problem
        for place in places(document)
        for problem in problems_of(path, changed(document, place, wrong), load)
    ]
    assert problems
    assert [each for each in problems if not re.match(rf"{re.escape(str(path))}:\d+: ", each)] == []


@pytest.mark.parametrize("key", ["expiry_s", "heartbeat_s", "keep_days"])
@pytest.mark.parametrize("switch", ["true", "yes"])
def test_a_switch_is_not_a_number(tmp_path: Path, key: str, switch: str) -> None:
    path = tmp_path / "pprelay.yaml"
    path.write_text(f"state_dir: {tmp_path}\ninstruments: {{DemoCam: {{detectors: 0-8}}}}\n{key}: {switch}\n")
    with pytest.raises(ConfigError) as caught:
        load_relay(path, {})
    assert caught.value.problems == (f"{path}:3: {key}: true is not a number",)


@pytest.mark.parametrize("place", ["security.operators.users", "instruments.DemoCam.sal_indexes"])
def test_a_switch_is_not_a_number_in_a_list(tmp_path: Path, place: str) -> None:
    path = tmp_path / "pprelay.yaml"
    document: Any = yaml.safe_load((SHOWN / "pprelay.yaml").read_text())
    (problem,) = problems_of(path, changed(document, tuple(place.split(".")), [0, True]), load_relay)
    assert problem.endswith(f": {place}.1: true is not a number")


@pytest.mark.parametrize("size", ["preload.cache_max", "workers.memory.soft", "export.uncompressed_max"])
def test_a_switch_is_not_a_size(tmp_path: Path, size: str) -> None:
    path = tmp_path / "ppdaemon.yaml"
    document: Any = yaml.safe_load((SHOWN / "ppdaemon.yaml").read_text())
    path.write_text(yaml.safe_dump(changed(document, tuple(size.split(".")), value=True), sort_keys=False))
    with pytest.raises(ConfigError) as caught:
        load_node(path, {})
    assert [each for each in caught.value.problems if f": {size}: true is not a number" in each]
