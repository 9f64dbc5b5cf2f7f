# SPDX-License-Identifier: BSD-3-Clause
"""Bytes to objects and back: strict JSON with limits, and the base of all models.

JSON from anywhere passes through `parse_json`, which refuses what Python's
parser lets through: too large, too deep, ``NaN``, duplicate keys.
"""

import json
import math
from collections.abc import Iterable
from typing import Any, NoReturn

import pydantic

from ppdaemon.errors import BadMessage

__all__ = ("Model", "decode", "encode", "explain", "parse_json")

MAX_DEPTH = 32


class Model(pydantic.BaseModel):
    """Base of what is validated once, at the edge, and never changed."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _refuse_constant(name: str) -> NoReturn:
    raise BadMessage(f"{name} is not a JSON number", "json")


def _finite(text: str) -> float:
    value = float(text)
    if value in (math.inf, -math.inf):
        raise BadMessage(f"{text[:40]} is too large a number", "json")
    return value


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise BadMessage(f"key {key[:80]!r} occurs twice", "json")
        result[key] = value
    return result


def _depth(text: str) -> int:
    """Return an upper bound of the nesting: brackets, those in strings too."""
    return max(text.count("["), text.count("{"))


def parse_json(data: bytes, *, limit: int) -> Any:
    """Parse one JSON text, strictly."""
    if len(data) > limit:
        raise BadMessage(f"{len(data)} bytes are more than the {limit} accepted", "size")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise BadMessage(f"not UTF-8 at byte {error.start}", "encoding") from None
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite
        )
    except RecursionError:
        raise BadMessage("nested too deeply", "depth") from None
    except json.JSONDecodeError as error:
        raise BadMessage(f"not JSON: {error.msg} at character {error.pos}", "json") from None
    except ValueError as error:  # an integer of more than 4300 digits
        raise BadMessage(f"not JSON: {error}", "json") from None
    if _depth(text) > MAX_DEPTH and _deeper_than(value, MAX_DEPTH):
        raise BadMessage(f"nested more than {MAX_DEPTH} deep", "depth")
    return value


def _deeper_than(value: Any, limit: int) -> bool:
    """Tell whether a parsed value nests deeper than `limit` levels."""
    level = [value]
    for _ in range(limit):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return False
    return True


def explain(error: pydantic.ValidationError, most: int = 3) -> str:
    """Say in one line which fields are wrong and why."""
    parts = []
    problems = error.errors(include_url=False, include_context=False)
    for problem in problems[:most]:
        where = ".".join(str(step) for step in problem["loc"]) or "message"
        got = repr(problem["input"])
        shown = f" (got {got[:60]})" if problem["type"] != "missing" and len(got) < 400 else ""
        parts.append(f"{where}: {problem['msg'].removeprefix('Value error, ')}{shown}")
    if len(problems) > most:
        parts.append(f"and {len(problems) - most} more")
    return "; ".join(parts)


def decode[T](data: bytes, adapter: pydantic.TypeAdapter[T], *, limit: int) -> T:
    """Make a message of bytes."""
    value = parse_json(data, limit=limit)
    if b"\\u" in data:  # else it was encoded once, and can be again
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise BadMessage("half of a surrogate pair, which no database takes", "encoding") from None
    try:
        return adapter.validate_python(value)
    except pydantic.ValidationError as error:
        raise BadMessage(explain(error), "field") from None


def encode(message: pydantic.BaseModel) -> bytes:
    """Make bytes of a message, without the fields that are `None`."""
    return message.model_dump_json(by_alias=True, exclude_none=True).encode()
