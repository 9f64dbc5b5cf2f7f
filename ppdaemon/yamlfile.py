# SPDX-License-Identifier: BSD-3-Clause
"""Reads YAML files; reports all errors at once, with file, line and key."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pydantic
import yaml

from ppdaemon.errors import ConfigError

__all__ = ("KeyPath", "expand", "load_model", "read_yaml")

type KeyPath = tuple[str | int, ...]
type _Position = tuple[int, int]
"""Line, from 1, and column; what an alias or a merge key repeats has the position of the original."""
type _Pair = tuple[yaml.Node, yaml.Node]

SHOWN = 60
"""Characters of a value in a message."""
MAX_DEPTH = 32
"""Deepest nesting: an alias of a node inside that node would nest without end."""

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_MERGE = "tag:yaml.org,2002:merge"
_NUMBERS = frozenset({"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"})
_AMBIGUOUS = re.compile(r"[-+]?(0[0-7_]+|[0-9_]+(:[0-5]?[0-9])+(\.[0-9_]*)?)")
"""Numbers in base 8 or 60 by YAML 1.1, which PyYAML implements. By YAML 1.2 they are decimal numbers or
texts, and a reader expects detector 42 in 042 and degrees in -5:00."""


class _Builder:
    """Converts YAML nodes to plain values; collects the position of each, duplicate keys, and
    scalars that cannot be converted.
    """

    def __init__(self) -> None:
        self.positions: dict[KeyPath, _Position] = {}
        self.problems: dict[tuple[_Position, str], None] = {}
        """Each once, although aliases and merge keys repeat nodes."""

    def build(self, node: yaml.Node, key_path: KeyPath = ()) -> dict[str, Any] | list[Any] | Any:
        self.positions[key_path] = _position(node)
        if len(key_path) > MAX_DEPTH:
            self._refuse(node, f"nested more than {MAX_DEPTH} deep")
            return None
        if isinstance(node, yaml.MappingNode):
            result: dict[str, Any] = {}
            for key_node, value_node in self._pairs(node):
                key = str(key_node.value)
                if key in result:
                    self._refuse(key_node, f"key {key!r} occurs twice")
                result[key] = self.build(value_node, (*key_path, key))
                self.positions[(*key_path, key)] = _position(key_node)
            return result
        if isinstance(node, yaml.SequenceNode):
            return [self.build(child, (*key_path, k)) for k, child in enumerate(node.value)]
        return self._scalar(node)

    def _pairs(self, node: yaml.MappingNode, depth: int = 0) -> list[_Pair]:
        """Return keys and values of a mapping; its own ones replace those of its merge keys (``<<``)."""
        if depth > MAX_DEPTH:
            self._refuse(node, f"nested more than {MAX_DEPTH} deep")
            return []
        own: list[_Pair] = []
        merged: dict[str, _Pair] = {}
        for key_node, value_node in node.value:
            if key_node.tag != _MERGE:
                own.append((key_node, value_node))
                continue
            # In a list of mappings the first one that has a key counts.
            for source in value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]:
                if not isinstance(source, yaml.MappingNode):
                    self._refuse(source, "'<<' needs a mapping or a list of mappings, such as <<: *name")
                    continue
                for pair in self._pairs(source, depth + 1):
                    merged.setdefault(str(pair[0].value), pair)
        names = {str(key_node.value) for key_node, _ in own}
        return [*own, *(pair for name, pair in merged.items() if name not in names)]

    def _refuse(self, node: yaml.Node, text: str) -> None:
        self.problems[_position(node), text] = None

    def _scalar(self, node: yaml.Node) -> Any:
        shown = repr(node.value[:SHOWN])
        if node.tag in _NUMBERS and _AMBIGUOUS.fullmatch(node.value):
            self._refuse(
                node, f"{shown} is a number in base 8 or 60; write a decimal number, or quote the text"
            )
            return None
        loader = yaml.SafeLoader("")
        try:
            return loader.construct_object(node, deep=True)
        except yaml.MarkedYAMLError as error:  # an unknown tag
            self._refuse(node, f"{shown}: {error.problem}")
        except (ValueError, KeyError, AttributeError):  # a date such as 2026-11-45, or !!bool maybe
            self._refuse(node, f"{shown} is not a valid {node.tag.removeprefix('tag:yaml.org,2002:')}")
        finally:
            loader.dispose()
        return None


def _position(node: yaml.Node) -> _Position:
    return node.start_mark.line + 1, node.start_mark.column


def read_yaml(path: Path) -> tuple[Any, dict[KeyPath, int]]:
    """Return the value of a YAML file, and the line number of each key path in it.

    Raises `~ppdaemon.errors.ConfigError` if it cannot be read, is not YAML, or has a
    key twice.
    """
    value, positions = _read(path)
    return value, {key_path: line for key_path, (line, _) in positions.items()}


def _read(path: Path) -> tuple[Any, dict[KeyPath, _Position]]:
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
        raise ConfigError([f"{path}: not YAML: {' '.join(str(error).split())}"]) from None
    if root is None:
        return {}, {(): (1, 0)}
    builder = _Builder()
    value = builder.build(root)
    if builder.problems:
        raise ConfigError([f"{path}:{line}: {text}" for (line, _), text in builder.problems])
    return value, builder.positions


def expand(value: Any, environment: Mapping[str, str]) -> Any:
    """Replace ``${NAME}`` in all strings of a value; unknown variables stay unchanged."""
    if isinstance(value, str):
        return _VARIABLE.sub(lambda match: environment.get(match[1], match[0]), value)
    if isinstance(value, dict):
        return {key: expand(item, environment) for key, item in value.items()}
    if isinstance(value, list):
        return [expand(item, environment) for item in value]
    return value


def load_model[M: pydantic.BaseModel](
    path: Path, model: type[M], environment: Mapping[str, str], context: object = None
) -> M:
    """Read a YAML file into a validated model.

    `environment` gives the values of ``${NAME}``, `context` is passed to validators.
    Raises `~ppdaemon.errors.ConfigError` with one line per error: file, line, key, error.
    """
    # Variables are replaced after parsing, so that a value cannot change the structure.
    value, positions = _read(path)
    value = expand(value, environment)
    try:
        return model.model_validate(value, context=context)
    except pydantic.ValidationError as error:
        found: dict[tuple[_Position, KeyPath, str], str] = {}
        for key_path, shown, text in _problems(error):
            known = key_path
            while known not in positions:
                known = known[:-1]
            # What an alias or a merge key repeats is one error, at one position.
            found.setdefault((positions[known], key_path[len(known) :], text), f"{shown}: {text}")
        lines = sorted((line, text) for ((line, _), *_), text in found.items())
        raise ConfigError([f"{path}:{line}: {text}" for line, text in lines]) from None


def _problems(error: pydantic.ValidationError) -> Iterator[tuple[KeyPath, str, str]]:
    """Yield the key path, the same as text, and the problem of each mistake in the file.

    Unknown and missing keys of a mapping are one mistake: the usual one is a misspelled key. The
    same problem of several elements of a list is one mistake, too.
    """
    unknown: dict[KeyPath, list[str | int]] = {}
    missing: dict[KeyPath, list[str | int]] = {}
    elements: dict[tuple[KeyPath, str], list[str | int]] = {}
    problems = error.errors(include_url=False)
    within = {problem["loc"][:length] for problem in problems for length in range(len(problem["loc"]))}
    for problem in problems:
        if problem["type"] == "too_short" and problem["loc"] in within:
            continue  # only because elements with errors do not count
        # pydantic adds the branch of a union in round brackets; it is not a key.
        key_path = tuple(step for step in problem["loc"] if not str(step).startswith("("))
        text = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "missing":
            missing.setdefault(key_path[:-1], []).append(key_path[-1])
        elif problem["type"] == "extra_forbidden":
            unknown.setdefault(key_path[:-1], []).append(key_path[-1])
        elif key_path and isinstance(key_path[-1], int):
            elements.setdefault((key_path[:-1], text), []).append(key_path[-1])
        else:
            yield key_path, _shown(key_path), text
    for (key_path, text), steps in elements.items():
        yield (*key_path, steps[0]), _shown((*key_path, ",".join(map(str, steps)))), text
    for key_path in dict.fromkeys((*unknown, *missing)):
        parts = [
            (steps, f"{what} {'key' if len(steps) == 1 else 'keys'}")
            for what, steps in (("unknown", unknown.get(key_path)), ("missing", missing.get(key_path)))
            if steps
        ]
        match parts:
            case [([step], text)]:
                yield (*key_path, step), _shown((*key_path, step)), text
            case _:
                text = ", ".join(f"{text} {', '.join(map(str, steps))}" for steps, text in parts)
                yield (*key_path, parts[0][0][0]), _shown(key_path), text


def _shown(key_path: KeyPath) -> str:
    return ".".join(map(str, key_path)) or "(the whole file)"
