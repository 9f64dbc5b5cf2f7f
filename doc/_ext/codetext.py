# SPDX-License-Identifier: BSD-3-Clause
"""Pages made of the code: reStructuredText from tables, models, programs and modules.

Pure text, so that tests need no Sphinx. A page that is made at each build
cannot differ from the code; what the code does not document ends the build.
"""

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import pydantic

from ppdaemon.metrics import Metric
from ppdaemon.node.slots import slot as slot_module
from ppdaemon.node.slots.slot import ANY_STATE, TABLE, Slot
from ppdaemon.states import SlotState

__all__ = ("config_keys", "json_fields", "metrics_table", "module_map", "slot_rules", "slot_table")

ROOT = Path(__file__).parents[2]


class Undocumented(Exception):
    """The code lacks what a page must show."""


def _plain(document: str) -> str:
    """Return a docstring with its references as literals: most are names in the same module."""
    return re.sub(r"(?<![`:])`~?([^`]+)`(?!`)", r"``\1``", document)


# --- the slot's table ---------------------------------------------------------


def _spaced(name: str) -> str:
    """Write a class's or a method's name in words: ``_kill_slow_start``, ``RawArrived``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.strip("_")).replace("_", " ").lower()


def _rule_of(state: SlotState, event: type) -> Any:
    return TABLE.get((state, event)) or ANY_STATE.get(event)


def slot_table(states: Sequence[SlotState]) -> str:
    """Return the table event x state, with a column for each of some states."""
    # In the order of a worker's states: by the first state that expects the event.
    expected = [event for state in SlotState for when, event in TABLE if when == state]
    lines = [
        ".. list-table::",
        "   :class: slot-table",
        "   :header-rows: 1",
        "   :stub-columns: 1",
        "",
        "   * - event",
        *(f"     - {state}" for state in states),
    ]
    for event in dict.fromkeys([*expected, *ANY_STATE]):
        rules = [_rule_of(state, event) for state in states]
        if all(rule in (None, Slot._ignore) for rule in rules):
            continue
        lines.append(f"   * - {_spaced(event.__name__)}")
        lines += [f"     - {_cell(rule)}".rstrip() for rule in rules]
    return "\n".join(lines) + "\n"


def _cell(rule: Any) -> str:
    if rule is None:
        return ""
    return "·" if rule is Slot._ignore else _spaced(rule.__name__)


def slot_rules() -> str:
    """Return the table of rules: to which states each may lead."""
    reached = _states_reached()
    rules = {rule.__name__: rule for rule in (*TABLE.values(), *ANY_STATE.values())}
    del rules[Slot._ignore.__name__]
    lines = [".. list-table::", "   :header-rows: 1", "", "   * - what follows", "     - next state"]
    for name in sorted(rules):
        states = [state for state in SlotState if state.name in reached[name]]
        lines += [f"   * - {_spaced(name)}", f"     - {', '.join(states) or 'the same'}"]
    return "\n".join(lines) + "\n"


def _states_reached() -> Mapping[str, set[str]]:
    """Return which states each method of `Slot` may go to, read from its code."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(Slot))).body
    methods = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    calls: dict[str, set[str]] = {}
    reached: dict[str, set[str]] = {}
    for name, node in methods.items():
        called = [(c.func.attr, c) for c in ast.walk(node) if isinstance(c, ast.Call) and _on_self(c.func)]
        calls[name] = {attribute for attribute, _ in called} & methods.keys()
        goes = [call.args[0] for attribute, call in called if attribute == "_enter"]
        reached[name] = {arg.attr for arg in goes if isinstance(arg, ast.Attribute)}
    while True:
        wider = {name: states.union(*(reached[c] for c in calls[name])) for name, states in reached.items()}
        if wider == reached:
            break
        reached = wider
    if missing := {state.name for state in SlotState} - set().union(*reached.values()):
        raise Undocumented(f"{slot_module.__name__}: no rule leads to {', '.join(sorted(missing))}")
    return reached


def _on_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"


# --- metrics ------------------------------------------------------------------


def metrics_table(metrics: Sequence[Metric[Any]]) -> str:
    """Return a table of metrics with their labels."""
    lines = [".. list-table::", "   :header-rows: 1", "   :widths: 40 12 48", ""]
    lines += ["   * - metric", "     - kind", "     - meaning"]
    for metric in metrics:
        labels = "; labels: " + ", ".join(f"``{label}``" for label in metric.labels) if metric.labels else ""
        lines += [f"   * - ``{metric.name}``", f"     - {metric.kind}"]
        lines += [f"     - {metric.help.removesuffix('.')}{labels}"]
    return "\n".join(lines) + "\n"


# --- configuration keys -------------------------------------------------------

KINDS = {
    "Seconds": "seconds, more than 0",
    "Rate": "number, 1 or more",
    "RedisName": "name without blanks",
    "RedisUrl": "address of a Redis server",
    "FileName": "name of letters, digits, dots, hyphens and underscores, with no dot at its beginning",
    "Size": "size: bytes, or such as 4GB or 4GiB",
    "Detectors": "detectors, such as 0-8,12",
    "WritableFolder": "folder that can be written",
    "HttpAddress": "HOST:PORT",
    "KafkaAddress": "``kafka://BROKER:PORT/TOPIC``",
    "CollectorUrl": "URL",
    "Address": "address, such as ``tcp://host:5570``",
    "CollectionTemplate": "collection, in which ``{instrument}`` is replaced",
    "ConnectAddress": "address, such as ``tcp://host:5570``",
    "SocketPath": "path",
    "SecretKeyFile": "file that only its owner can read",
    "SecretPath": "file",
    "PasswordFile": "file that not all users can read",
    "PublicKeyFile": "file",
    "KeyFolder": "folder",
    "Publisher": "address or mapping",
    "Publication": "mapping",
    "UserId": "name or number",
    "GroupId": "name or number",
    "Name": "text",
    "LoggerName": "name of a logger",
    "LogLevel": "DEBUG, INFO, WARNING or ERROR",
    "Path": "path",
    "str": "text",
    "int": "integer",
    "float": "number",
    "bool": "true or false",
    "Any": "anything",
    "LayoutField": "lsst, imsim, generic, or a mapping",
    "DoneMarker": "suffix or name of a file",
    "RootConfig": "path or mapping",
    "RemoteRoot": "mapping",
    "Rule": "rule",
    "RelayInstrument": "mapping",
    "WatchKind": "auto, inotify or poll",
    "IngestKind": "builtin or obs_base",
    "VisitGrouping": "one-to-one or by-group",
    "ImageType": "sky or calibration",
    "RaRange": "mapping of min and max, degrees",
    "DecRange": "mapping of min and max, degrees",
    "CoordType": "detector or boresight",
    "_MapFile": "path",
    "_Declination": "number",
}
"""How values of a type are written; by the name that the annotation has."""


def config_keys(model: type[pydantic.BaseModel], prefix: str = "") -> str:
    """Return an entry for each key of a configuration, with the keys of its parts below it."""
    documents, annotations = _fields_in_source(model)
    parts, keys = [], []
    for name, field in model.model_fields.items():
        key = prefix + (field.alias or name)
        part = _model_in(field.annotation)
        if part is not None and _is_part(annotations[name]):
            parts.append(_heading(key, part, documents.get(name, "")))
            parts.append(config_keys(part, f"{key}."))
            continue
        if not (document := documents.get(name)):
            raise Undocumented(f"{model.__module__}.{model.__name__}.{name} has no docstring")
        keys += [
            f".. confval:: {key}",
            f"   :type: {_kind(annotations[name], field)}",
            *([] if field.is_required() else [f"   :default: {_default(field)}"]),
            "",
            textwrap.indent(_plain(document), "   "),
            "",
        ]
    return "\n".join([*keys, *parts])


def _heading(key: str, part: type[pydantic.BaseModel], document: str) -> str:
    text = _plain(document or inspect.getdoc(part) or "")
    return f"{key}\n{'~' * len(key)}\n\n{text}\n"


def _is_part(annotation: str) -> bool:
    """Return whether a field is a part of the file, and not a list or mapping of such."""
    name = re.fullmatch(r"(\w+)( \| None)?", annotation)
    return name is not None and name[1] not in KINDS


def _model_in(annotation: Any) -> type[pydantic.BaseModel] | None:
    if get_origin(annotation) in (Union, UnionType):
        annotation = next(one for one in get_args(annotation) if one is not NoneType)
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return annotation
    return None


def _fields_in_source(model: type[pydantic.BaseModel]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the docstring under each field, and its annotation as it is written."""
    documents, annotations = {}, {}
    if (base := model.__base__) is not None and base.model_fields:
        documents, annotations = _fields_in_source(base)
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign):
            annotations[node.target.id] = ast.unparse(node.annotation)
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                documents[node.target.id] = inspect.cleandoc(after.value.value)
        elif isinstance(node, ast.FunctionDef):  # a computed field
            documents[node.name] = ast.get_docstring(node) or ""
    return documents, annotations


def _kind(annotation: str, field: Any) -> str:
    text = _kind_of(ast.parse(annotation, mode="eval").body)
    limits = [
        f"{words} {limit}"
        for attribute, words in (("ge", "at least"), ("gt", "more than"), ("le", "at most"))
        for meta in field.metadata
        if (limit := getattr(meta, attribute, None)) is not None
    ]
    return "; ".join(dict.fromkeys([text, *(limit for limit in limits if limit not in text)]))


def _kind_of(node: ast.expr) -> str:
    match node:
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[first, *_])):
            return _kind_of(first)
        case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=[first, _])):
            return f"list of: {_kind_of(first)}"
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[_, value])):
            return f"mapping of: {_kind_of(value)}"
        case ast.Subscript(value=ast.Name(id="_Several"), slice=value):
            return f"{_kind_of(value)}, or a list of such"
        case ast.Subscript(value=ast.Name(id="Literal"), slice=ast.Tuple(elts=values)):
            return ", ".join(value.value for value in values[:-1]) + f" or {values[-1].value}"
        case ast.BinOp(op=ast.BitOr(), left=left, right=right):
            return " or ".join((_kind_of(left), _kind_of(right)))
        case ast.Constant(value=None):
            return "null"
        case ast.Name(id=name):
            return KINDS[name]
        case unexpected:
            raise Undocumented(f"no words for {ast.unparse(unexpected)}")


def _default(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    if isinstance(value, tuple | list):
        return f"``[{', '.join(str(each) for each in value)}]``"
    return "``" + ("null" if value is None else str(value) if value != "" else '""') + "``"


# --- JSON ---------------------------------------------------------------------


COMMON = {
    "attempt": "Number of the attempt at the visit-detector, from 1.",
    "dataset_type": "Name of the dataset type.",
    "detector": "Id of the detector.",
    "exposure": "Id of the exposure.",
    "group": "Group of the visit, as it was announced.",
    "instrument": "Short name of the camera.",
    "node": "Name of the node.",
    "pid": "Process id of the program.",
    "slot": "Number of the slot.",
    "survey": "Survey of the visit, as it was announced.",
    "version": "Version of the program.",
}
"""By name: the meaning of fields that have none of their own."""


def json_fields(model: type[pydantic.BaseModel]) -> str:
    """Return the fields of a model as a table, by its JSON schema."""
    schema = model.model_json_schema(mode="serialization")
    documents, _ = _fields_in_source(model)
    lines = [
        _plain(inspect.getdoc(model) or ""),
        "",
        ".. list-table::",
        "   :class: sentences",
        "   :header-rows: 1",
        "   :widths: 22 22 56",
        "",
        "   * - field",
        "     - type",
        "     - meaning",
    ]
    for name, field in schema["properties"].items():
        if not (document := documents.get(name) or COMMON.get(name)):
            raise Undocumented(f"{model.__module__}.{model.__name__}.{name} has no docstring")
        lines += [
            f"   * - ``{name}``",
            f"     - {_json_type(field)}",
            f"     - {_plain(' '.join(document.split()))}",
        ]
    return "\n".join(lines) + "\n"


def json_schema(model: type[pydantic.BaseModel]) -> str:
    """Return the JSON schema of a model."""
    return json.dumps(model.model_json_schema(mode="serialization"), indent=2)


def _json_type(field: Mapping[str, Any]) -> str:
    if "$ref" in field:
        return field["$ref"].rpartition("/")[2]
    if "anyOf" in field:
        return " or ".join(_json_type(each) for each in field["anyOf"])
    if "allOf" in field:
        return _json_type(field["allOf"][0])
    if "const" in field:
        return f"``{field['const']}``"
    if "enum" in field:
        return ", ".join(f"``{value}``" for value in field["enum"])
    match field.get("type"):
        case "array":
            return f"list of {_json_type(field['items'])}" if field.get("items") else "list"
        case "object":
            value = field.get("additionalProperties")
            return f"object of {_json_type(value)}" if isinstance(value, dict) and value else "object"
        case None:
            return "anything"
        case kind:
            return str(kind)


# --- modules ------------------------------------------------------------------


def module_map(package: str, skip: Iterable[str] = ()) -> str:
    """Return modules of a package with what they have, read without importing them.

    `skip` are modules that have a page of their own. Subpackages are left out.
    """
    skipped = set(skip)
    lines: list[str] = []
    for name, path in _modules(package):
        tree = ast.parse(path.read_text())
        document = ast.get_docstring(tree)
        if name in skipped:
            continue
        lines += [f".. py:module:: {name}", "   :no-index-entry:", ""]
        if document:
            lines += [f"``{name.removeprefix('ppdaemon.')}``", textwrap.indent(_plain(document), "   "), ""]
        for kind, object_name, summary in _public(tree):
            lines += [f"   .. py:{kind}:: {object_name}", "      :no-index-entry:", ""]
            lines += [textwrap.indent(_plain(summary), "      "), ""]
    return "\n".join(lines)


def _modules(package: str) -> Iterator[tuple[str, Path]]:
    folder = ROOT / package.replace(".", "/")
    for path in sorted(folder.glob("*.py")):
        name = package if path.stem == "__init__" else f"{package}.{path.stem}"
        yield name, path


def _public(tree: ast.Module) -> Iterator[tuple[str, str, str]]:
    """Yield kind, name with arguments and summary of the classes and functions that a module offers."""
    kinds = {ast.ClassDef: "class", ast.FunctionDef: "function", ast.AsyncFunctionDef: "function"}
    for node in tree.body:
        kind = kinds.get(type(node))
        if kind is not None and not node.name.startswith("_"):
            arguments = "" if kind == "class" else f"({', '.join(_argument_names(node.args))})"
            yield kind, node.name + arguments, (ast.get_docstring(node) or "").partition("\n\n")[0]


def _argument_names(arguments: ast.arguments) -> list[str]:
    names = [each.arg for each in (*arguments.posonlyargs, *arguments.args)]
    if arguments.kwonlyargs:
        names += [f"*{arguments.vararg.arg}" if arguments.vararg else "*"]
    elif arguments.vararg:
        names.append(f"*{arguments.vararg.arg}")
    return names + [each.arg for each in arguments.kwonlyargs]
