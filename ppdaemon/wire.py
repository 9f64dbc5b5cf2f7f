# SPDX-License-Identifier: BSD-3-Clause
"""Conversion of bytes to objects and back: strict JSON, and the base of all models.

All JSON from outside is parsed by `parse_json`, which refuses texts that Python's
parser accepts: too large, nested too deeply, with ``NaN``, with duplicate keys.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NoReturn

import pydantic
from pydantic_core import PydanticSerializationError

from ppdaemon.errors import BadMessage

__all__ = ("BY_TYPE", "Model", "decode", "encode", "explain", "parse_json")

MAX_DEPTH = 32
"""Deepest nesting of a message, far above that of any valid one."""

BY_TYPE = pydantic.Field(discriminator="type")
"""In the annotation of a union of models: the field ``type`` tells which one it is."""


class Model(pydantic.BaseModel):
    """Base of all models: validated when data enters the process, then immutable."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _refuse_constant(name: str) -> NoReturn:
    raise BadMessage(f"{name} is not a JSON number", "json")


def _null(name: str) -> None:
    return None


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise BadMessage(f"{text[:40]} is too large a number", "json")
    return value


def _finite_or_null(text: str) -> float | None:
    value = float(text)
    return None if math.isinf(value) else value


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        ((key, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise BadMessage(f"key {key[:80]!r} occurs twice", "json")
    return result


# `json.loads` would make a new decoder for each text.
_STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite)
_LENIENT = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_null, parse_float=_finite_or_null)


def _depth(text: str) -> int:
    """Return an upper bound of the nesting: the number of brackets, also in strings."""
    return max(text.count("["), text.count("{"))


def parse_json(data: bytes, *, limit: int, nan_as_null: bool = False) -> Any:
    """Parse a JSON text in UTF-8 of at most `limit` bytes.

    Raises `~ppdaemon.errors.BadMessage` if the text is too large or nested too deeply,
    is not UTF-8 or JSON, or has ``NaN``, ``Infinity``, a number that is too large, or a key
    twice. With `nan_as_null`, such numbers are read as ``null``.
    """
    if len(data) > limit:
        raise BadMessage(f"{len(data)} bytes are more than the {limit} accepted", "size")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise BadMessage(f"not UTF-8 at byte {error.start}", "encoding") from None
    try:
        value = (_LENIENT if nan_as_null else _STRICT).decode(text)
    except RecursionError:
        raise BadMessage("nested too deeply", "depth") from None
    except json.JSONDecodeError as error:
        raise BadMessage(f"not JSON: {error.msg} at character {error.pos}", "json") from None
    except ValueError as error:  # an integer of more than 4300 digits
        raise BadMessage(f"not JSON: {error}", "json") from None
    # The number of brackets is fast to count and small in nearly all messages.
    if _depth(text) > MAX_DEPTH and _deeper_than(value, MAX_DEPTH):
        raise BadMessage(f"nested more than {MAX_DEPTH} deep", "depth")
    return value


def _deeper_than(value: Any, limit: int) -> bool:
    """Return whether a parsed value has more than `limit` levels."""
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
    """Return the errors of at most `most` fields in one line.

    Such as ``nimages: Input should be a valid integer (got 'two')``.
    """
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
    """Return the message in a JSON text of at most `limit` bytes.

    Raises `~ppdaemon.errors.BadMessage`, with the name of the field, if it is not valid.
    """
    value = parse_json(data, limit=limit)
    if b"\\u" in data:  # other texts are UTF-8, which can be encoded again
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise BadMessage("half of a surrogate pair, which cannot be stored", "encoding") from None
    try:
        return adapter.validate_python(value)
    except pydantic.ValidationError as error:
        raise BadMessage(explain(error), "field") from None


def encode(message: pydantic.BaseModel, *, nulls: bool = False) -> bytes:
    """Return a message as JSON in UTF-8, without the fields that are `None` unless they are to be written as
    ``null``. Halves of surrogate pairs, which stand for bytes of a file's name that are no text, are escaped.
    """
    try:
        return message.model_dump_json(by_alias=True, exclude_none=not nulls).encode()
    except PydanticSerializationError:
        content = message.model_dump(mode="json", by_alias=True, exclude_none=not nulls)
        return json.dumps(_encodable(content), ensure_ascii=False).encode()


def _encodable(value: Any) -> Any:
    match value:
        case str():
            return value.encode(errors="backslashreplace").decode()
        case dict():
            return {_encodable(key): _encodable(each) for key, each in value.items()}
        case list():
            return [_encodable(each) for each in value]
    return value
