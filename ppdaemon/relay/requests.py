# SPDX-License-Identifier: BSD-3-Clause
"""What comes in on the submit socket: reading it, and the first judgement.

Covers everything that can be said without the ledger. Knows nothing of
sockets beyond the frames of a message.
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

__all__ = ("Request", "content_of", "differences", "judge", "oddities", "read_request", "unwrap")

type Request = NextVisit | VisitCanceled | VisitStatus

CLOCK_SKEW_S = 5.0
"""A stamp that is so far ahead is not explained by unsynchronised clocks."""


def unwrap(frames: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Part a ROUTER's message into the way back and the body.

    Parameters
    ----------
    frames : `~collections.abc.Sequence` [`bytes`]
        The sender's identity, what a REQ socket puts before its delimiter, the
        empty delimiter itself if the sender uses one, the body.

    Returns
    -------
    envelope : `list` [`bytes`]
        What an answer has to begin with.
    body : `list` [`bytes`]
        One frame, if the sender is sane.
    """
    for place in range(1, len(frames) - 1):
        if not frames[place]:
            return list(frames[: place + 1]), list(frames[place + 1 :])
    return list(frames[:1]), list(frames[1:])


def read_request(body: Sequence[bytes]) -> Request:
    """Validate what was sent to the submit socket.

    Parameters
    ----------
    body : `~collections.abc.Sequence` [`bytes`]
        Frames after the envelope.

    Returns
    -------
    request : `Request`
        An announcement, a cancellation, or a question.

    Raises
    ------
    ppdaemon.errors.BadMessage
        Raised if it is none of them; its kind is a word to count by.
    """
    if len(body) != 1:
        raise BadMessage(f"{len(body)} frames, expected one JSON object in one frame", "frames")
    if not body[0]:
        raise BadMessage("empty message, expected one JSON object", "empty")
    fields = parse_json(body[0], limit=SUBMIT_LIMIT)
    if not isinstance(fields, dict):
        raise BadMessage(f"expected a JSON object, got {type(fields).__name__}", "json")
    _check_carriable(fields)
    try:
        if fields.get("type") == "visit_status":
            return VisitStatus.model_validate(fields)
        if "groupId" in fields and not fields.keys() & {"instrument", "position"}:
            return VisitCanceled.model_validate(fields)
    except pydantic.ValidationError as error:
        raise BadMessage(explain(error), "field") from None
    return read_next_visit(fields)


def _check_carriable(fields: Mapping[str, Any]) -> None:
    """Refuse what the parser lets through but no JSON can carry on: 1e999,
    which it takes for infinite, and half a surrogate pair.
    """
    try:
        json.dumps(fields, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise BadMessage(f"cannot be passed on: {error}"[:200], "content") from None


def content_of(visit: NextVisit) -> str:
    """Write an announcement as the JSON that is kept.

    Parameters
    ----------
    visit : `~ppdaemon.visit.NextVisit`
        The announcement.

    Returns
    -------
    content : `str`
        JSON with SAL names, unknown fields included.
    """
    return json.dumps(visit.to_sal(), ensure_ascii=False, allow_nan=False)


def judge(visit: NextVisit, config: RelayConfig, now_tai: float) -> Accepted | None:
    """Refuse or ignore a visit on its own merits.

    Parameters
    ----------
    visit : `~ppdaemon.visit.NextVisit`
        The announcement.
    config : `~ppdaemon.relay.config.RelayConfig`
        Instruments and expiry.
    now_tai : `float`
        TAI seconds since 1970.

    Returns
    -------
    answer : `~ppdaemon.messages.Accepted` or `None`
        `None` if nothing speaks against it.
    """

    def answer(status: str, reason: str) -> Accepted:
        return Accepted.model_validate({"status": status, "group": visit.group, "reason": reason})

    if not visit.instrument.strip():
        return answer("ignored", "blank instrument: the script takes no image")
    known = config.instruments.get(visit.instrument)
    if known is None:
        names = ", ".join(sorted(config.instruments))
        return answer("rejected", f"instrument {visit.instrument!r} is not one of {names}")
    if known.sal_indexes and visit.sal_index not in known.sal_indexes:
        return answer("ignored", f"salIndex {visit.sal_index} is not configured for {visit.instrument}")
    age_s = visit.age_s(now_tai)
    if age_s > config.expiry_s:
        return answer("rejected", f"stale: published {age_s:.0f} s ago, the limit is {config.expiry_s:g} s")
    return None


def oddities(visit: NextVisit, now_tai: float) -> list[str]:
    """Say what is strange about a visit that is accepted all the same.

    Parameters
    ----------
    visit : `~ppdaemon.visit.NextVisit`
        The announcement.
    now_tai : `float`
        TAI seconds since 1970.

    Returns
    -------
    oddities : `list` [`str`]
        One sentence each.
    """
    if visit.published_tai is None:
        return ["no private_sndStamp: its age is unknown"]
    if visit.age_s(now_tai) < -CLOCK_SKEW_S:
        return [f"published {-visit.age_s(now_tai):.0f} s in the future"]
    return []


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Name the fields in which two announcements of a group differ.

    Parameters
    ----------
    first, second : `~collections.abc.Mapping`
        SAL field names and values.

    Returns
    -------
    names : `list` [`str`]
        Without the ``private_`` ones, which differ from delivery to delivery.
    """
    names = {name for name in first.keys() | second.keys() if not name.startswith("private_")}
    return sorted(name for name in names if first.get(name) != second.get(name))
