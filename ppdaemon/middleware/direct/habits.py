# SPDX-License-Identifier: BSD-3-Clause
"""What a task's ``runQuantum`` does with its Butler, as far as its code tells.

Most read each input once, and put all that they made at the very end. Only to
these can objects be given, and from these be taken, as they are: who reads
again wants what was written, and who goes on with what was put would change it.
"""

import ast
import inspect
import textwrap
from collections.abc import Iterator

from lsst.pipe.base import PipelineTask

__all__ = ("is_orderly",)

_HARMLESS = frozenset({"add_additional_provenance", "dimensions", "quantum", "resources"})
"""What else a `lsst.pipe.base.QuantumContext` has."""
_REPEATED = (
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.comprehension,
    ast.ListComp,
    ast.SetComp,
    ast.DictComp,
    ast.GeneratorExp,
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.Lambda,
)
"""What is in there may be done any number of times, at any time."""

type _Parents = dict[ast.AST, ast.AST]


def is_orderly(task_class: type[PipelineTask]) -> bool:
    """Tell whether a task reads each input once, and is through when it puts.

    Parameters
    ----------
    task_class : `type`
        Class of the task.

    Returns
    -------
    orderly : `bool`
        `False` wherever its code does not show that it is.
    """
    try:
        (function,) = ast.parse(textwrap.dedent(inspect.getsource(task_class.runQuantum))).body
    except (OSError, TypeError, SyntaxError, ValueError):  # there is no source, or not of one function
        return False
    if not isinstance(function, ast.FunctionDef) or len(function.args.args) < 3:
        return False
    _, butler, refs = (argument.arg for argument in function.args.args[:3])
    parents: _Parents = {child: node for node in ast.walk(function) for child in ast.iter_child_nodes(node)}
    calls: dict[str, list[ast.Call]] = {"get": [], "put": []}
    for node in ast.walk(function):
        if not isinstance(node, ast.Name) or node.id != butler:
            continue
        attribute = parents[node]
        if isinstance(attribute, ast.Attribute) and attribute.attr in _HARMLESS:
            continue
        call = parents[attribute]
        if not (
            isinstance(attribute, ast.Attribute) and isinstance(call, ast.Call) and call.func is attribute
        ):
            return False  # it goes where it cannot be seen
        if attribute.attr not in calls or any(
            isinstance(each, _REPEATED) for each in _around(call, function, parents)
        ):
            return False
        calls[attribute.attr].append(call)
    return _reads_once(calls["get"], refs) and all(_is_last(put, butler, parents) for put in calls["put"])


def _around(node: ast.AST, function: ast.AST, parents: _Parents) -> Iterator[ast.AST]:
    while (node := parents[node]) is not function:
        yield node


def _reads_once(gets: list[ast.Call], refs: str) -> bool:
    """Tell whether no two readings can be of the same dataset: they are of connections by name."""
    if len(gets) < 2:
        return True
    names = set()
    for get in gets:
        match get:
            case ast.Call(args=[ast.Attribute(value=ast.Name(id=name), attr=connection)]) if name == refs:
                names.add(connection)
            case _:
                return False
    return len(names) == len(gets)


def _is_last(put: ast.Call, butler: str, parents: _Parents) -> bool:
    """Tell whether nothing but puts follows a put."""
    node = parents[put]
    if not isinstance(node, ast.Expr):
        return False
    left = False
    while not isinstance(node, ast.FunctionDef):
        above = parents[node]
        for each in _behind(node, above, left=left):
            if not _is_quiet(each, butler):
                return False
            if isinstance(each, (ast.Return, ast.Raise)):
                left = True
                break
        if isinstance(above, (ast.Try, ast.TryStar)):
            if not all(_is_quiet(each, butler) for each in _besides(node, above)):
                return False
            left = left and node not in above.body  # it may be caught there
        node = above
    return True


def _behind(node: ast.AST, above: ast.AST, *, left: bool) -> Iterator[ast.stmt]:
    """Return what is executed after a statement of a block, unless the function is left there."""
    for name in ("body", "orelse", "finalbody"):
        block = getattr(above, name, ())
        if not left and node in block:
            yield from block[block.index(node) + 1 :]


def _besides(node: ast.AST, above: ast.Try | ast.TryStar) -> Iterator[ast.stmt]:
    """Return what else is executed after a part of a ``try`` statement, or may be."""
    if node in above.body:
        yield from (each for handler in above.handlers for each in handler.body)
        yield from above.orelse
    if node not in above.finalbody:
        yield from above.finalbody


def _is_quiet(statement: ast.stmt, butler: str) -> bool:
    """Tell whether a statement changes nothing."""
    match statement:
        case ast.Raise() | ast.Pass():
            return True
        case ast.Expr(
            value=ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="put"), args=args, keywords=[])
        ):
            return name == butler and not any(map(_calls, args))
        case ast.Return(value=value):
            return value is None or not _calls(value)
        case _:
            return False


def _calls(node: ast.AST) -> bool:
    return any(isinstance(each, ast.Call) for each in ast.walk(node))
