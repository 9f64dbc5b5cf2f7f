# SPDX-License-Identifier: BSD-3-Clause
"""Reads a visit from a file: one JSON object with SAL field names."""

from pathlib import Path
from typing import Any

from ppdaemon.errors import BadMessage
from ppdaemon.messages import SUBMIT_LIMIT
from ppdaemon.visit import NextVisit, read_next_visit
from ppdaemon.wire import parse_json

__all__ = ("read_event", "read_visit")


def read_event(path: Path) -> dict[str, Any]:
    """Return the fields of an event in a JSON file; ``-`` is standard input.

    Raises `~ppdaemon.errors.BadMessage` if it cannot be read or is no JSON object.
    """
    try:
        data = Path("/dev/stdin" if str(path) == "-" else path).read_bytes()
    except OSError as error:
        raise BadMessage(f"{path}: cannot be read: {error.strerror}") from None
    try:
        fields = parse_json(data, limit=SUBMIT_LIMIT)
    except BadMessage as error:
        raise BadMessage(f"{path}: {error}") from None
    if not isinstance(fields, dict):
        raise BadMessage(f"{path}: expected a JSON object, got {type(fields).__name__}")
    return fields


def read_visit(path: Path) -> NextVisit:
    """Return the next_visit in a JSON file; ``-`` is standard input.

    Raises `~ppdaemon.errors.BadMessage` with file and field if a field is not valid: the person who
    has written it can correct it.
    """
    fields = read_event(path)
    try:
        visit = read_next_visit(fields)
    except BadMessage as error:
        raise BadMessage(f"{path}: {error}", error.kind) from None
    if visit.without_meaning:
        raise BadMessage(f"{path}: {', '.join(visit.without_meaning)}: unset or invalid", "field")
    return visit
