# SPDX-License-Identifier: BSD-3-Clause
"""Reads YAML files; reports all errors at once, with file, line and key."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic
import yaml

from ppdaemon.errors import ConfigError

__all__ = ("expand", "load_model", "read_yaml")

type KeyPath = tuple[str | int, ...]

MAX_DEPTH = 32
"""Deepest nesting: an alias of a node inside that node would nest without end."""

_VARIABLE = re.compile(r"\$\{(\w+)\}")


def _build(
    node: yaml.Node, key_path: KeyPath, lines: dict[KeyPath, int], problems: list[tuple[int, str]]
) -> dict[str, Any] | list[Any] | Any:
    """Convert YAML nodes to plain values; collect the line of each, duplicate keys, and
    scalars that cannot be converted.
    """
    lines[key_path] = node.start_mark.line + 1
    if len(key_path) > MAX_DEPTH:
        problems.append((node.start_mark.line + 1, f"nested more than {MAX_DEPTH} deep"))
        return None
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            if key in result:
                problems.append((key_node.start_mark.line + 1, f"key {key!r} occurs twice"))
            result[key] = _build(value_node, (*key_path, key), lines, problems)
            lines[(*key_path, key)] = key_node.start_mark.line + 1
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_build(child, (*key_path, k), lines, problems) for k, child in enumerate(node.value)]
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node, deep=True)
    except (yaml.MarkedYAMLError, ValueError) as error:  # an unknown tag, or a date such as 2026-11-45
        text = error.problem if isinstance(error, yaml.MarkedYAMLError) else error
        problems.append((node.start_mark.line + 1, f"{node.value!r}: {text}"))
        return None
    finally:
        loader.dispose()


def read_yaml(path: Path) -> tuple[Any, dict[KeyPath, int]]:
    """Return the value of a YAML file, and the line number of each key path in it.

    Raises `~ppdaemon.errors.ConfigError` if it cannot be read, is not YAML, or has a
    key twice.
    """
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: not UTF-8 at byte {error.start}"]) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError([f"{path}:{line}: not YAML: {error.problem or error.context}"]) from None
    except yaml.YAMLError as error:
        raise ConfigError([f"{path}: not YAML: {error}"]) from None
    if root is None:
        return {}, {(): 1}
    lines: dict[KeyPath, int] = {}
    problems: list[tuple[int, str]] = []
    value = _build(root, (), lines, problems)
    if problems:
        raise ConfigError([f"{path}:{line}: {text}" for line, text in problems])
    return value, lines


def expand(value: Any, environment: Mapping[str, str]) -> Any:
    """Replace ``${NAME}`` in all strings of a value; unknown variables stay unchanged."""
    if isinstance(value, str):
        return _VARIABLE.sub(lambda match: environment.get(match[1], match[0]), value)
    if isinstance(value, dict):
        return {key: expand(item, environment) for key, item in value.items()}
    if isinstance(value, list):
        return [expand(item, environment) for item in value]
    return value


def _line_of(key_path: KeyPath, lines: Mapping[KeyPath, int]) -> int:
    while key_path not in lines and key_path:
        key_path = key_path[:-1]
    return lines.get(key_path, 1)


def load_model[M: pydantic.BaseModel](
    path: Path, model: type[M], environment: Mapping[str, str], context: object = None
) -> M:
    """Read a YAML file into a validated model.

    `environment` gives the values of ``${NAME}``, `context` is passed to validators.
    Raises `~ppdaemon.errors.ConfigError` with one line per error: file, line, key, error.
    """
    # Variables are replaced after parsing, so that a value cannot change the structure.
    value, lines = read_yaml(path)
    value = expand(value, environment)
    try:
        return model.model_validate(value, context=context)
    except pydantic.ValidationError as error:
        problems = []
        for problem in error.errors(include_url=False):
            # pydantic adds the branch of a union in round brackets; it is not a key.
            key_path = tuple(step for step in problem["loc"] if not str(step).startswith("("))
            key = ".".join(str(step) for step in key_path) or "(the whole file)"
            text = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "extra_forbidden":
                text = "unknown key"
            elif problem["type"] == "missing":
                text = "missing key"
            problems.append((_line_of(key_path, lines), f"{key}: {text}"))
        raise ConfigError([f"{path}:{line}: {text}" for line, text in sorted(problems)]) from None
