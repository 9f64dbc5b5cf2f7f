# SPDX-License-Identifier: BSD-3-Clause
"""Requests on the submit socket: parsing, and the checks that need no ledger.

Does not cover sockets, except for the frames of a message.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pydantic

from ppdaemon.errors import BadMessage
from ppdaemon.messages import SUBMIT_LIMIT, Accepted, VisitStatus
from ppdaemon.relay.config import RelayConfig
from ppdaemon.visit import NextVisit, VisitCanceled, read_next_visit
from ppdaemon.wire import explain, parse_json

__all__ = (
    "Request",
    "visit_json",
    "differences",
    "check_visit",
    "visit_warnings",
    "chosen_detectors",
    "read_request",
    "split_envelope",
)

type Request = NextVisit | VisitCanceled | VisitStatus

CLOCK_SKEW_S = 5.0
"""A publication time further in the future than this is logged: clocks that are
synchronized differ by less."""

POINTING = frozenset({"position", "coordinateSystem", "cameraAngle", "rotationSystem"})
"""The fields without which the place of a visit on the sky is unknown."""
EVENT_FIELDS = frozenset({"instrument", "position"})
"""A next_visit has one of these fields, a cancellation has none."""
MAX_WRAPPERS = 3
"""An event is wrapped once by a bridge, and once more by the bus that it writes to."""


def split_envelope(frames: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Split a ROUTER's message into the envelope (return address) and the body.

    The envelope is the sender's identity and, if the sender uses a delimiter as
    REQ sockets do, all frames up to the empty one.
    """
    for k in range(1, len(frames) - 1):
        if not frames[k]:
            return list(frames[: k + 1]), list(frames[k + 1 :])
    return list(frames[:1]), list(frames[1:])


def read_request(body: Sequence[bytes]) -> Request:
    """Validate a request; raise `~ppdaemon.errors.BadMessage` if it is none."""
    if len(body) != 1:
        raise BadMessage(f"{len(body)} frames, expected one JSON object in one frame", "frames")
    if not body[0]:
        raise BadMessage("empty message, expected one JSON object", "empty")
    fields = _unwrap(parse_json(body[0], limit=SUBMIT_LIMIT, nan_as_null=True))
    if not isinstance(fields, dict):
        raise BadMessage(f"expected a JSON object, got {type(fields).__name__}", "json")
    # The parser accepts text that JSON cannot encode again, such as half a surrogate pair, but the
    # ledger and the nodes get the same fields: such a value counts as not set.
    fields = {
        name: value if _is_encodable(value) else None for name, value in fields.items() if _is_encodable(name)
    }
    try:
        if fields.get("type") == "visit_status":
            return VisitStatus.model_validate(fields)
        if "groupId" in fields and not fields.keys() & EVENT_FIELDS:
            return VisitCanceled.model_validate(fields)
    except pydantic.ValidationError as error:
        raise BadMessage(explain(error), "field") from None
    return read_next_visit(fields)


def _unwrap(content: Any) -> Any:
    """Return the object with a group within an envelope such as ``{"message": {...}}``.

    The object may also be JSON text, and an element of a list, as in entries of a Redis
    stream. Any other content is returned unchanged, to be refused with its own reason.
    """
    level = [content]
    for _ in range(MAX_WRAPPERS + 1):
        parsed = [_parse_text(item) if isinstance(item, str) else item for item in level]
        found = [item for item in parsed if _is_event(item)]
        # The key of a record, such as {"groupId": ...} beside the value, is not another event.
        found = [item for item in found if not any(item.items() < other.items() for other in found)]
        if len(found) > 1:
            raise BadMessage(f"an envelope with {len(found)} events, expected one", "envelope")
        if found:
            return found[0]
        level = [
            child
            for item in parsed
            # An event without its group must not become the cancellation of one that it names.
            if isinstance(item, list) or (isinstance(item, dict) and not item.keys() & EVENT_FIELDS)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
    return content


def _is_event(item: Any) -> bool:
    """Return whether an object is an event and not an envelope that repeats the group of its event."""
    if not isinstance(item, dict) or "groupId" not in item:
        return False
    parts = (_parse_text(value) if isinstance(value, str) else value for value in item.values())
    return bool(item.keys() & EVENT_FIELDS) or not any(
        isinstance(part, dict) and "groupId" in part for part in parts
    )


def _parse_text(text: str) -> Any:
    """Return the object or list in a JSON text, which may be encoded twice; `None` for other text."""
    if not text.lstrip().startswith(("{", "[", '"')):
        return None
    try:
        value = parse_json(text.encode(errors="replace"), limit=SUBMIT_LIMIT, nan_as_null=True)
    except BadMessage:
        return None
    return _parse_text(value) if isinstance(value, str) else value


def _is_encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def visit_json(visit: NextVisit) -> str:
    """Return the JSON of an announcement for the ledger, unknown fields included."""
    return json.dumps(visit.to_sal(), ensure_ascii=False, allow_nan=False)


def check_visit(visit: NextVisit, config: RelayConfig, now_tai: float) -> Accepted | None:
    """Return the answer to a visit that is refused or ignored, else `None`."""

    def answer(status: str, reason: str) -> Accepted:
        return Accepted.model_validate({"status": status, "group": visit.group, "reason": reason})

    if not visit.instrument.strip():
        return answer("ignored", "blank instrument: the script takes no image")
    known = config.instruments.get(visit.instrument)
    if known is None:
        names = ", ".join(sorted(config.instruments))
        return answer("rejected", f"instrument {visit.instrument!r} is not one of {names}")
    if known.sal_indexes and visit.sal_index not in (0, *known.sal_indexes):  # 0: not set
        return answer("ignored", f"salIndex {visit.sal_index} is not configured for {visit.instrument}")
    if visit.detector is not None and visit.detector not in known.detectors:
        return answer("ignored", f"detector {visit.detector} is not configured for {visit.instrument}")
    if visit.survey in config.switched_off.surveys:
        return answer("ignored", f"survey {visit.survey!r} is switched off (switched_off.surveys)")
    if visit.instrument in config.switched_off.instruments:
        return answer("ignored", f"{visit.instrument} is switched off (switched_off.instruments)")
    if not chosen_detectors(visit, config):
        return answer("ignored", "all its detectors are switched off (switched_off.detectors)")
    age_s = visit.age_s(now_tai)
    if age_s > config.expiry_s:
        return answer("rejected", f"stale: published {age_s:.0f} s ago, the limit is {config.expiry_s:g} s")
    return None


def visit_warnings(visit: NextVisit, now_tai: float) -> list[str]:
    """Return warnings about a visit that is accepted nevertheless."""
    warnings = []
    if visit.published_tai is None:
        warnings.append("neither private_sndStamp nor private_efdStamp: its age is unknown")
    elif visit.age_s(now_tai) < -CLOCK_SKEW_S:
        warnings.append(f"published {-visit.age_s(now_tai):.0f} s in the future")
    if visit.without_meaning:
        names = ", ".join(visit.without_meaning)
        text = f"accepted without {names}: the values sent are unset or invalid"
        if POINTING.intersection(visit.without_meaning):
            text += "; nothing is preloaded by position"
        warnings.append(text)
    return warnings


def chosen_detectors(visit: NextVisit, config: RelayConfig) -> tuple[int, ...]:
    """Return the configured detectors that an announcement concerns, without those switched off."""
    detectors = config.active_detectors[visit.instrument]
    return tuple(each for each in detectors if visit.detector in (None, each))


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Return the names of the fields in which two announcements of a group differ.

    Without the ``private_`` fields, which differ between deliveries of one event.
    """
    names = {name for name in first.keys() | second.keys() if not name.startswith("private_")}
    return sorted(name for name in names if first.get(name) != second.get(name))
