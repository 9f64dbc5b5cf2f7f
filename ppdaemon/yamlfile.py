# SPDX-License-Identifier: BSD-3-Clause
"""Reads YAML files; reports all errors at once, with file, line and key."""

import difflib
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pydantic
import yaml

from ppdaemon.errors import ConfigError

__all__ = ("KeyPath", "did_you_mean", "expand", "load_model", "located", "read_key", "read_yaml")

type KeyPath = tuple[str | int, ...]
type _Position = tuple[int, int]
"""Line, from 1, and column; what an alias or a merge key repeats has the position of the original."""
type _Pair = tuple[yaml.Node, yaml.Node]

SHOWN = 60
"""Characters of a value in a message."""
MAX_DEPTH = 32
"""Deepest nesting: an alias of a node inside that node would nest without end."""

RESEMBLANCE = 0.66
"""Of a name and a hint, from 0 to 1: low enough for two letters of three in the wrong order."""

_MAPPING = re.compile(r"dictionary( or instance of \w+)?")
"""What pydantic calls a mapping, and a part of the file."""
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
        self.refused: set[KeyPath] = set()
        """Scalars that could not be converted, and nodes that nest too deeply."""

    @property
    def lines(self) -> dict[KeyPath, int]:
        """The line number of each key path."""
        return {key_path: line for key_path, (line, _) in self.positions.items()}

    def build(self, node: yaml.Node, key_path: KeyPath = ()) -> dict[str, Any] | list[Any] | Any:
        self.positions[key_path] = _position(node)
        if len(key_path) > MAX_DEPTH:
            self._refuse(node, f"nested more than {MAX_DEPTH} deep")
            self.refused.add(key_path)
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
        return self._scalar(node, key_path)

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

    def _scalar(self, node: yaml.Node, key_path: KeyPath) -> Any:
        shown = repr(node.value[:SHOWN])
        if node.tag in _NUMBERS and _AMBIGUOUS.fullmatch(node.value):
            self._refuse(
                node, f"{shown} is a number in base 8 or 60; write a decimal number, or quote the text"
            )
            self.refused.add(key_path)
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
        self.refused.add(key_path)
        return None


def _position(node: yaml.Node) -> _Position:
    return node.start_mark.line + 1, node.start_mark.column


def read_yaml(path: Path) -> tuple[Any, dict[KeyPath, int]]:
    """Return the value of a YAML file, and the line number of each key path in it.

    Raises `~ppdaemon.errors.ConfigError` if it cannot be read, is not YAML, or has a
    key twice.
    """
    value, builder = _read(path)
    if builder.problems:
        raise ConfigError([f"{path}:{line}: {text}" for (line, _), text in builder.problems])
    return value, builder.lines


def read_key(
    path: Path, key_path: KeyPath, environment: Mapping[str, str], default: str | None = None
) -> str:
    """Return one text of a YAML file, with ``${NAME}`` replaced, whatever errors other keys have.

    A `default` is returned if the key is missing or null. Raises
    `~ppdaemon.errors.ConfigError` if the file has no such text, or a variable is not set.
    """
    value, builder = _read(path)
    for step in key_path:
        value = value.get(step) if isinstance(value, dict) else None
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        line, _ = builder.positions[nearest(key_path, builder.positions)]
        raise ConfigError([f"{path}:{line}: {_shown(key_path)}: missing key, or not a text"])
    unset: dict[KeyPath, list[str]] = {}
    text = expand(value, environment, unset, key_path)
    if unset:
        line, _ = builder.positions[key_path]
        raise ConfigError([f"{path}:{line}: {_shown(key_path)}: {_unset(unset[key_path], environment)}"])
    return str(text)


def _read(path: Path) -> tuple[Any, _Builder]:
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
    builder = _Builder()
    if root is None:
        builder.positions[()] = (1, 0)
        return {}, builder
    return builder.build(root), builder


def expand(
    value: Any, environment: Mapping[str, str], unset: dict[KeyPath, list[str]], key_path: KeyPath = ()
) -> Any:
    """Replace ``${NAME}`` in all strings of a value.

    Adds the names of variables that are not set to `unset`, by the key path of the string.
    """
    if isinstance(value, str):
        if missing := [name for name in _VARIABLE.findall(value) if name not in environment]:
            unset[key_path] = missing
        return _VARIABLE.sub(lambda match: environment.get(match[1], match[0]), value)
    if isinstance(value, dict):
        return {key: expand(item, environment, unset, (*key_path, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [expand(item, environment, unset, (*key_path, k)) for k, item in enumerate(value)]
    return value


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Return ``; did you mean 'associate'?`` if a candidate resembles a name, else an empty text."""
    names = {each.lower(): each for each in candidates if each != name}
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=RESEMBLANCE)
    return f"; did you mean {names[close[0]]!r}?" if close else ""


def load_model[M: pydantic.BaseModel](
    path: Path, model: type[M], environment: Mapping[str, str], context: object = None
) -> tuple[M, dict[KeyPath, int]]:
    """Read a YAML file into a validated model; also return the line number of each key path in it.

    `environment` gives the values of ``${NAME}``, `context` is passed to validators.
    Raises `~ppdaemon.errors.ConfigError` with one line per error: file, line, key, error.
    """
    value, builder = _read(path)
    unset: dict[KeyPath, list[str]] = {}
    # Variables are replaced after parsing, so that a value cannot change the structure.
    value = expand(value, environment, unset)
    # What an alias or a merge key repeats is one error, at one position.
    found: dict[tuple[_Position, KeyPath, str], str] = {
        (position, (), text): text for position, text in builder.problems
    }
    for key_path, names in unset.items():
        text = _unset(names, environment)
        found.setdefault((builder.positions[key_path], (), text), f"{_shown(key_path)}: {text}")
    # These have been reported; what the validation finds in their place is no other error.
    known_wrong = builder.refused | unset.keys()
    result = None
    try:
        result = model.model_validate(value, context=context)
    except pydantic.ValidationError as error:
        for key_path, shown, text in _problems(error, model):
            if any(key_path[: len(wrong)] == wrong for wrong in known_wrong):
                continue
            known = nearest(key_path, builder.positions)
            key = builder.positions[known], key_path[len(known) :], text
            found.setdefault(key, f"{shown}: {text}")
    if found or result is None:
        lines = sorted((line, text) for ((line, _), *_), text in found.items())
        raise ConfigError([f"{path}:{line}: {text}" for line, text in lines])
    return result, builder.lines


def nearest(key_path: KeyPath, known: Mapping[KeyPath, Any]) -> KeyPath:
    """Return the longest part of a key path that a file has: a key that is missing is reported there."""
    while key_path not in known:
        key_path = key_path[:-1]
    return key_path


def located(path: Path, lines: Mapping[KeyPath, int], problems: Iterable[tuple[KeyPath, str]]) -> list[str]:
    """Return a line for each problem of a file's keys, with file, line and key, in their order."""
    return [f"{path}:{lines[nearest(key, lines)]}: {_shown(key)}: {text}" for key, text in problems]


def _unset(names: Iterable[str], environment: Mapping[str, str]) -> str:
    return "; ".join(
        f"environment variable {name!r} is not set{did_you_mean(name, environment)}" for name in names
    )


def _problems(
    error: pydantic.ValidationError, model: type[pydantic.BaseModel]
) -> Iterator[tuple[KeyPath, str, str]]:
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
        if problem["type"] in ("tuple_type", "too_short", "too_long"):  # YAML has lists
            text = text.replace("tuple", "list").replace("Tuple", "List")
        text = _MAPPING.sub("mapping", text)
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
                if key_path in unknown:
                    text += did_you_mean(str(step), _keys_at(model, key_path))
                yield (*key_path, step), _shown((*key_path, step)), text
            case _:
                text = ", ".join(f"{text} {', '.join(map(str, steps))}" for steps, text in parts)
                for step in unknown.get(key_path, [])[:1]:
                    text += did_you_mean(str(step), _keys_at(model, key_path))
                yield (*key_path, parts[0][0][0]), _shown(key_path), text


def _keys_at(model: Any, key_path: KeyPath) -> set[str]:
    """Return the keys of the mapping at a key path, of each model that may be there."""
    if typing.get_origin(model) is not None or isinstance(model, typing.TypeAliasType):
        inner = (model.__value__,) if isinstance(model, typing.TypeAliasType) else typing.get_args(model)
        # The keys and indexes of other containers are no keys of a model.
        within = key_path[1:] if typing.get_origin(model) in (dict, tuple, list) else key_path
        return set().union(*(_keys_at(each, within) for each in inner))
    if not (isinstance(model, type) and issubclass(model, pydantic.BaseModel)):
        return set()
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    if not key_path:
        return set(fields)
    field = fields.get(str(key_path[0]))
    return set() if field is None else _keys_at(field.annotation, key_path[1:])


def _shown(key_path: KeyPath) -> str:
    return ".".join(map(str, key_path)) or "(the whole file)"
