# SPDX-License-Identifier: BSD-3-Clause
"""``etc/ppdaemon.yaml`` names every key, shows the defaults, and loads."""

import types
import typing
from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml

from ppdaemon.config import NodeConfig, load_node
from ppdaemon.errors import ConfigError
from ppdaemon.yamlfile import read_yaml

SHOWN = Path(__file__).parents[2] / "etc" / "ppdaemon.yaml"

CHOSEN = {
    "relay.address",
    "workers.preload",
    "butler.skymap",
    "pipelines.preprocessing",
    "pipelines.overrides",
    "engine.no_return",
    "engine.apdb",
    "engine.apdb_tasks",
    "export.types",
}
"""Optional keys that the example sets to another value."""


def parts(annotation: Any) -> type[pydantic.BaseModel] | None:
    """Return the model that a field holds, directly or as ``| None``."""
    options = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    models = [
        option for option in options if isinstance(option, type) and issubclass(option, pydantic.BaseModel)
    ]
    return models[0] if models else None


def fields(model: type[pydantic.BaseModel], prefix: str = "") -> dict[str, pydantic.fields.FieldInfo]:
    """Return all fields of a model and of the models in it, by dotted key."""
    found = {}
    for name, field in model.model_fields.items():
        found[prefix + name] = field
        if (inner := parts(field.annotation)) is not None:
            found |= fields(inner, f"{prefix}{name}.")
    return found


def value_at(document: Any, key: str) -> Any:
    for step in key.split("."):
        document = document[step]
    return document


def test_every_key_is_shown_with_a_comment() -> None:
    document, lines = read_yaml(SHOWN)
    text = SHOWN.read_text().splitlines()
    for key, field in fields(NodeConfig).items():
        value_at(document, key)  # a KeyError names what is missing
        line = lines[tuple(key.split("."))]
        if parts(field.annotation) is None:
            assert text[line - 2].lstrip().startswith("#"), f"line {line}: {key} has no comment"


def test_optional_keys_show_their_defaults() -> None:
    config = NodeConfig.model_validate(read_yaml(SHOWN)[0])
    differing = set()
    for key, field in fields(NodeConfig).items():
        if not field.is_required() and parts(field.annotation) is None:
            shown: Any = config
            for step in key.split("."):
                shown = getattr(shown, step)
            if shown != field.get_default(call_default_factory=True):
                differing.add(key)
    assert differing == CHOSEN


@pytest.fixture
def mine(tmp_path: Path) -> dict[str, Any]:
    """Give the document with only its paths changed, files in place."""
    text = SHOWN.read_text()
    pipelines = tmp_path / "pipelines"
    pipelines.mkdir()
    for name in ("Preprocess", "ApPipe", "SingleFrame", "Calibration"):
        (pipelines / f"{name}.yaml").touch()
    for old, new in {
        "/etc/ppdaemon/pipelines": str(pipelines),
        "/var/lib/ppdaemon": str(tmp_path / "state"),
        "/run/ppramdisk": str(tmp_path),
    }.items():
        assert old in text
        text = text.replace(old, new)
    document: dict[str, Any] = yaml.safe_load(text)
    return document


def test_it_loads_with_only_its_paths_changed(mine: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "ppdaemon.yaml"
    path.write_text(yaml.safe_dump(mine))
    config = load_node(path, {})
    assert config.node.instruments == {"DemoCam": tuple(range(9))}
    assert config.workers.memory.hard == 8_000_000_000


def test_a_missing_pipeline_is_named(mine: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "ppdaemon.yaml"
    (tmp_path / "pipelines" / "SingleFrame.yaml").unlink()
    path.write_text(yaml.safe_dump(mine))
    with pytest.raises(
        ConfigError, match=r"yaml:\d+: pipelines\.main\.\d\.pipelines\.\d: .*SingleFrame\.yaml: no such file"
    ):
        load_node(path, {})
