# SPDX-License-Identifier: BSD-3-Clause
"""Sending visits to a relay by hand: the inner part of ``send_visit.py``.

Covers making the event, asking the relay, and watching a visit until every
detector has its outcome. The relay alone judges what an event says.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import pydantic
import rich.markup
import rich.progress
import rich.table
import zmq
from rich.console import Console

from ppdaemon.clock import tai_iso
from ppdaemon.errors import BadMessage, Unavailable
from ppdaemon.messages import NODE_LIMIT, Accepted, DetectorOutcome
from ppdaemon.states import ExitCode, Outcome
from ppdaemon.visit import CoordinateSystem, RotationSystem
from ppdaemon.wire import decode

__all__ = (
    "ANSWER_S",
    "RelayClient",
    "exit_code",
    "follow",
    "make_event",
    "outcome_table",
    "summary",
    "watching",
)

ANSWER_S = 5.0
"""How long an answer is waited for, if nothing else is said."""

POLL_S = 0.3
"""Interval of questions to the relay while a visit is followed."""

LEAD_S = 30.0
"""From the announcement to the expected start, if nothing else is said."""

ACCEPTED = pydantic.TypeAdapter(Accepted)


def make_event(given: Mapping[str, Any], now_tai: float) -> dict[str, Any]:
    """Make a next_visit of what was said on a command line."""
    said = {name: value for name, value in given.items() if value is not None}
    names = {"group": "groupId", "filter": "filters"}
    plain = ("instrument", "nimages", "survey", "duration")
    fields: dict[str, Any] = {
        "groupId": tai_iso(now_tai),
        "nimages": 1,
        "private_sndStamp": now_tai,
        "startTime": now_tai + LEAD_S,
    }
    fields |= {names.get(name, name): value for name, value in said.items() if name in (*names, *plain)}
    if "ra" in said or "dec" in said:
        fields["coordinateSystem"] = int(CoordinateSystem.ICRS)
        fields["position"] = [said.get("ra", 0.0), said.get("dec", 0.0)]
    if "angle" in said:
        fields["rotationSystem"] = int(RotationSystem.SKY)
        fields["cameraAngle"] = said["angle"]
    return fields


class RelayClient:
    """A connection to a relay's submit socket; use as a context manager."""

    def __init__(self, address: str, timeout_s: float = ANSWER_S):
        self._address = address
        self._timeout_s = timeout_s
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.REQ)
        self._socket.linger = 0
        self._socket.set(zmq.IMMEDIATE, 1)  # a message never waits for a relay that is not there
        self._socket.set(zmq.MAXMSGSIZE, NODE_LIMIT)
        # After a question without an answer another one may be asked; should the
        # answer come late, it is not taken for that of the second.
        self._socket.set(zmq.REQ_RELAXED, 1)
        self._socket.set(zmq.REQ_CORRELATE, 1)
        self._socket.sndtimeo = self._socket.rcvtimeo = max(1, round(timeout_s * 1000))
        try:
            self._socket.connect(address)
        except zmq.ZMQError as error:
            self._context.destroy()
            raise Unavailable(f"{address} cannot be used: {error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.destroy()

    def ask(self, fields: Mapping[str, Any]) -> Accepted:
        """Send one object and return the answer."""
        try:
            self._socket.send(json.dumps(fields).encode())
            data = self._socket.recv()
        except zmq.Again:
            raise Unavailable(
                f"no answer from {self._address} in {self._timeout_s:g} s: does pprelay run there?"
            ) from None
        try:
            return decode(data, ACCEPTED, limit=NODE_LIMIT)
        except BadMessage as error:
            raise BadMessage(f"{self._address} does not answer as a relay does: {error}") from None


def follow(
    client: RelayClient,
    group: str,
    *,
    timeout_s: float,
    show: Callable[[Accepted], None],
    mono: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> Accepted:
    """Ask how a visit stands until all its detectors have an outcome."""
    deadline = mono() + timeout_s
    while True:
        standing = client.ask({"type": "visit_status", "groupId": group})
        show(standing)
        under_way = any(found.outcome is None for found in standing.outcomes or ())
        if not under_way or mono() >= deadline:
            return standing
        pause(POLL_S)


def exit_code(answer: Accepted, *, followed: bool, cancelling: bool) -> ExitCode:
    """Say with which status the program ends."""
    if answer.status == "rejected":
        return ExitCode.DATA
    if not followed:
        return ExitCode.OK
    wanted = {Outcome.SUCCEEDED, Outcome.CANCELLED} if cancelling else {Outcome.SUCCEEDED}
    outcomes = {found.outcome for found in answer.outcomes or ()}
    if None in outcomes:
        return ExitCode.TRY_LATER
    return ExitCode.OK if outcomes and outcomes <= wanted else ExitCode.FAILED


def summary(answer: Accepted) -> str:
    """Write an answer as one line."""
    parts = [answer.group] if answer.group else []
    if answer.detectors:
        parts.append(f"{answer.detectors} detector{'s' if answer.detectors > 1 else ''}")
    if answer.reason:
        parts.append(answer.reason)
    return f"{answer.status}: {', '.join(parts)}"


def outcome_table(outcomes: tuple[DetectorOutcome, ...]) -> rich.table.Table:
    """Lay outcomes out for people."""
    table = rich.table.Table("detector", "outcome", "node", "attempt", "reason")
    for found in sorted(outcomes, key=lambda found: found.detector):
        outcome = "(under way)" if found.outcome is None else found.outcome.value
        style = "green" if found.outcome is Outcome.SUCCEEDED else "yellow"
        row = (str(found.detector), outcome, found.node or "", str(found.attempt), found.reason)
        table.add_row(*(rich.markup.escape(text) for text in row), style=style)
    return table


@contextmanager
def watching(console: Console) -> Iterator[Callable[[Accepted], None]]:
    """Show how a visit goes on: a bar on a terminal, else a line per change."""
    if not console.is_terminal:
        yield _Lines(console).show
        return
    columns = ("{task.description}", rich.progress.BarColumn(), rich.progress.MofNCompleteColumn())
    with rich.progress.Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("detectors", total=None)
        yield lambda answer: progress.update(bar, total=answer.detectors, completed=_ended(answer).total())


class _Lines:
    """Prints a line whenever more detectors have ended."""

    def __init__(self, console: Console):
        self._console = console
        self._last: Counter[Outcome] | None = None

    def show(self, answer: Accepted) -> None:
        ended = _ended(answer)
        if ended != self._last:
            self._last = ended
            counts = ", ".join(f"{number} {outcome}" for outcome, number in sorted(ended.items()))
            line = f"{ended.total()} of {answer.detectors} detectors ended"
            self._console.print(f"{line}: {counts}" if counts else line, highlight=False)


def _ended(answer: Accepted) -> Counter[Outcome]:
    return Counter(found.outcome for found in answer.outcomes or () if found.outcome is not None)
