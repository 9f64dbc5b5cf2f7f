# SPDX-License-Identifier: BSD-3-Clause
"""Client of a relay's submit socket, for ``send_visit.py`` and the simulated camera.

Covers making a next_visit, sending it, and waiting until each detector has an
outcome. Does not check the fields of an event: the relay does.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import click
import pydantic
import rich.progress
import zmq
from rich.console import Console

from ppdaemon.clock import tai_iso
from ppdaemon.curve import ClientKeys
from ppdaemon.detectorlist import ranges
from ppdaemon.errors import BadMessage, Unavailable
from ppdaemon.fittingtable import FittingTable
from ppdaemon.messages import BUSY, NODE_LIMIT, Accepted, DetectorOutcome
from ppdaemon.states import ExitCode, Outcome
from ppdaemon.terminal import new_table, number_of, plain
from ppdaemon.visit import CoordinateSystem, RotationSystem
from ppdaemon.wire import decode

__all__ = (
    "ANSWER_S",
    "VisitSubmitter",
    "exit_code",
    "follow",
    "make_event",
    "outcome_table",
    "summary",
    "watching",
)

ANSWER_S = 5.0
"""Default time limit of an answer."""

POLL_S = 0.3
"""Interval of status requests while waiting for outcomes."""

LEAD_S = 30.0
"""Default time from the announcement to the expected start."""

ACCEPTED = pydantic.TypeAdapter(Accepted)


def make_event(options: Mapping[str, Any], now_tai: float) -> dict[str, Any]:
    """Return the SAL fields of a next_visit from command-line options.

    `None` means that an option was not set; without ``group`` the group is named by
    the time `now_tai`. Raises `click.UsageError` for half a position.
    """
    options = {name: value for name, value in options.items() if value is not None}
    names = {"group": "groupId", "filter": "filters"}
    for one, other in (("ra", "dec"), ("dec", "ra")):
        if one in options and other not in options:
            raise click.UsageError(f"--{one} without --{other}: a position has both")
    plain = ("instrument", "nimages", "survey", "duration")
    fields: dict[str, Any] = {
        "groupId": tai_iso(now_tai),
        "nimages": 1,
        "private_sndStamp": now_tai,
        "startTime": now_tai + LEAD_S,
    }
    fields |= {names.get(name, name): value for name, value in options.items() if name in (*names, *plain)}
    if "ra" in options:
        fields["coordinateSystem"] = int(CoordinateSystem.ICRS)
        fields["position"] = [options["ra"], options["dec"]]
    if "angle" in options:
        fields["rotationSystem"] = int(RotationSystem.SKY)
        fields["cameraAngle"] = options["angle"]
    return fields


class VisitSubmitter:
    """A connection to a relay's submit socket; use as a context manager.

    With `keys` the connection is encrypted. Raises `~ppdaemon.errors.Unavailable` if the address is
    not valid, or too many files are open.
    """

    def __init__(self, address: str, timeout_s: float = ANSWER_S, keys: ClientKeys | None = None):
        self._address = address
        self._keys = keys
        self._timeout_s = timeout_s
        self._context = zmq.Context()
        try:
            self._socket = self._connect(address)
        except zmq.ZMQError as error:
            self._context.destroy()
            raise Unavailable(f"{address} cannot be used: {error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.destroy()

    def _connect(self, address: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.REQ)
        socket.linger = 0
        socket.set(zmq.IMMEDIATE, 1)  # do not queue messages while no relay is connected
        socket.set(zmq.MAXMSGSIZE, NODE_LIMIT)
        # After a request without an answer another one may be sent, and a late
        # answer is not taken for the answer to the second request.
        socket.set(zmq.REQ_RELAXED, 1)
        socket.set(zmq.REQ_CORRELATE, 1)
        if self._keys is not None:
            self._keys.apply(socket)
        socket.sndtimeo = socket.rcvtimeo = max(1, round(self._timeout_s * 1000))
        socket.connect(address)
        return socket

    def ask(self, fields: Mapping[str, Any]) -> Accepted:
        """Send a request and return the relay's answer.

        Raises `~ppdaemon.errors.Unavailable` if none arrives in time, and
        `~ppdaemon.errors.BadMessage` if the answer is not a relay's.
        """
        try:
            self._socket.send(json.dumps(fields).encode())
            data = self._socket.recv()
        except zmq.Again:
            keys = "the keys" if self._keys else "whether it needs keys (--key, --server)"
            text = f"no answer from {self._address} in {self._timeout_s:g} s: check address and pprelay"
            raise Unavailable(f"{text}, and {keys}") from None
        try:
            return decode(data, ACCEPTED, limit=NODE_LIMIT)
        except BadMessage as error:
            raise BadMessage(
                f"{self._address}: not the answer of a relay; check the address: {error}"
            ) from None


def follow(
    client: VisitSubmitter,
    group: str,
    *,
    timeout_s: float,
    show: Callable[[Accepted], None],
    mono: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> Accepted:
    """Request the status of a visit until all its detectors have an outcome.

    Call `show` with each answer and return the last one; after `timeout_s` it may
    lack outcomes.
    """
    deadline = mono() + timeout_s
    while True:
        status = client.ask({"type": "visit_status", "groupId": group})
        show(status)
        under_way = any(found.outcome is None for found in status.outcomes or ())
        if not under_way or mono() >= deadline:
            return status
        pause(POLL_S)


def exit_code(answer: Accepted, *, followed: bool, cancelling: bool) -> ExitCode:
    """Return the exit code for the relay's last answer.

    ``OK`` if it was accepted (with `followed`: if all detectors succeeded), ``DATA``
    if it was refused, ``FAILED`` for other outcomes, ``TRY_LATER`` if outcomes are
    missing, or the relay was busy. With `cancelling`, canceled detectors count as succeeded.
    """
    if answer.status == "rejected":
        return ExitCode.TRY_LATER if answer.reason.startswith(BUSY) else ExitCode.DATA
    if not followed:
        return ExitCode.OK
    expected = {Outcome.SUCCEEDED, Outcome.CANCELLED} if cancelling else {Outcome.SUCCEEDED}
    outcomes = {found.outcome for found in answer.outcomes or ()}
    if None in outcomes:
        return ExitCode.TRY_LATER
    return ExitCode.OK if outcomes and outcomes <= expected else ExitCode.FAILED


def summary(answer: Accepted) -> str:
    """Return an answer as one line, such as ``accepted: 2026-11-22T03:25:16.951, 9 detectors``."""
    parts = [answer.group] if answer.group else []
    if answer.detectors:
        parts.append(number_of(answer.detectors, "detector"))
    if answer.unserved:
        parts.append(f"no node serves {ranges(answer.unserved)} now")
    if answer.reason:
        parts.append(answer.reason)
    return f"{answer.status}: {', '.join(parts)}"


def outcome_table(outcomes: tuple[DetectorOutcome, ...]) -> FittingTable:
    """Return a table with one row for each detector."""
    table = new_table("det>", "outcome", "node", "try>", "why~")
    for found in sorted(outcomes, key=lambda found: found.detector):
        outcome = "under way" if found.outcome is None else found.outcome.value
        style = "green" if found.outcome is Outcome.SUCCEEDED else "yellow"
        row = (str(found.detector), outcome, plain(found.node), str(found.attempt), plain(found.reason))
        table.add_row(*row, style=style)
    return table


@contextmanager
def watching(console: Console) -> Iterator[Callable[[Accepted], None]]:
    """Show progress: a bar on a terminal, otherwise a line per change.

    Yields the function to call with each answer.
    """
    if not console.is_terminal:
        yield _ProgressLines(console).show
        return
    columns = ("{task.description}", rich.progress.BarColumn(), rich.progress.MofNCompleteColumn())
    with rich.progress.Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("detectors", total=None)
        yield lambda answer: progress.update(bar, total=answer.detectors, completed=_ended(answer).total())


class _ProgressLines:
    """Prints a line when more detectors have ended."""

    def __init__(self, console: Console):
        self._console = console
        self._last: Counter[Outcome] | None = None

    def show(self, answer: Accepted) -> None:
        ended = _ended(answer)
        if ended != self._last:
            self._last = ended
            counts = ", ".join(f"{number} {outcome}" for outcome, number in sorted(ended.items()))
            line = f"{ended.total()} of {answer.detectors} detectors ended"
            self._console.print(f"{line}: {counts}" if counts else line)


def _ended(answer: Accepted) -> Counter[Outcome]:
    return Counter(found.outcome for found in answer.outcomes or () if found.outcome is not None)
