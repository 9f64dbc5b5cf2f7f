# SPDX-License-Identifier: BSD-3-Clause
"""Reads the environment variables of another service: the output of ``env``, or YAML of Kubernetes. Pure."""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from ppdaemon.errors import ConfigError

__all__ = ("read_environment",)

_VARIABLE = re.compile(r"(?:export )?([A-Za-z_][^\s=:\"']*)=(.*)", re.DOTALL)


def read_environment(text: str) -> dict[str, str]:
    """Return the variables of an environment.

    `text` is the output of ``env`` or ``env -0``, or YAML of Kubernetes with
    ``env`` lists of containers or the ``data`` of ConfigMaps. A variable whose
    value is in a secret is blank. Raises `~ppdaemon.errors.ConfigError`.
    """
    if "\0" in text:
        found = [_VARIABLE.fullmatch(each) for each in text.split("\0")]
        return {match[1]: match[2] for match in found if match}
    lines = (line.strip() for line in text.splitlines())
    first = next((line for line in lines if line and not line.startswith("#")), "")
    if _VARIABLE.match(first):
        return _lines(text)
    try:
        return {name: value for document in yaml.safe_load_all(text) for name, value in _manifest(document)}
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError([f"neither lines NAME=VALUE nor YAML: {error}"]) from error


def _lines(text: str) -> dict[str, str]:
    variables: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if match := _VARIABLE.fullmatch(line):
            name = match[1]
            variables[name] = match[2]
        elif name and not (line.startswith("#") and "\n" not in variables[name]):
            variables[name] += f"\n{line}"  # lists of pipelines have several lines
    return {name: _unquoted(value.rstrip()) for name, value in variables.items()}


def _unquoted(value: str) -> str:
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return value[1:-1] if quoted else value


def _manifest(part: Any) -> Iterator[tuple[str, str]]:
    """Yield the variables anywhere in a document of Kubernetes."""
    if isinstance(part, list):
        for each in part:
            yield from _manifest(each)
    elif isinstance(part, dict):
        if isinstance(part.get("name"), str) and part.keys() & {"value", "valueFrom"}:
            yield part["name"], str(part.get("value", ""))
        elif part.get("kind") == "ConfigMap":
            data = part.get("data")
            yield from ((str(n), str(v)) for n, v in data.items()) if isinstance(data, dict) else ()
        else:
            for each in part.values():
                yield from _manifest(each)
