# SPDX-License-Identifier: BSD-3-Clause
"""Options of ``ppctl`` that select visits: by time, night, outcome, detector, survey, data ID."""

import datetime
import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from ppdaemon.clock import TAI_MINUS_UTC_S, Clock, night_limits
from ppdaemon.detectorlist import parse_detector_list
from ppdaemon.errors import NotFound
from ppdaemon.states import BAD_OUTCOMES, Outcome

if TYPE_CHECKING:  # imported when a command runs: the help and the completion must come at once
    from ppdaemon.ctl.client import Daemon, RelayDaemon
    from ppdaemon.reports import RelayDetectorRow, VisitRow

__all__ = (
    "LATEST",
    "find_relay_visit",
    "find_visit",
    "parse_data_id",
    "parse_night",
    "parse_time",
    "select",
    "selecting",
)

LATEST = "latest"
"""Stands for the group of the newest visit."""
RELAY_VISITS = 1000
"""Newest visits of a relay that are searched for the beginning of a group: as many as it lists."""
MATCHES = 5
"""Groups that a message lists if a prefix is not unique."""

_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|h|d)")
_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_DAY = re.compile(r"\d{8}|\d{4}-\d\d-\d\d")
_FIELD = re.compile(
    r"(\w+)\s*=\s*('[^']*'|\"[^\"]*\"|[^\s,'\"]+(?:,\d[^\s,]*)*)\s*(?:,|and\b)?\s*", re.IGNORECASE
)
_NAMES = {
    "instrument": "instrument",
    "group": "group",
    "detector": "detectors",
    "survey": "survey",
    "day_obs": "night",
    "outcome": "outcomes",
}
"""By name in a data ID: the name of the option, or of the field of a filter."""


def parse_time(text: str, now_tai: float) -> float:
    """Return TAI seconds since 1970.

    Parameters
    ----------
    text : `str`
        ``2026-11-22``, ``2026-11-22T03:25`` or with seconds, in TAI; with a ``Z`` or an offset in UTC.
        Or how long ago: ``30min``, ``2h``, ``1.5d``.
    now_tai : `float`
        The time now.

    Raises
    ------
    ValueError
        Raised if it is neither.
    """
    if ago := _AGO.fullmatch(text.strip()):
        return now_tai - float(ago[1]) * _UNITS[ago[2]]
    try:
        instant = datetime.datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(
            f"{text!r} is no time: use 2026-11-22T03:25:16 (TAI), or 2h for 2 hours ago"
        ) from None
    if instant.tzinfo is None:
        return instant.replace(tzinfo=datetime.UTC).timestamp()
    return instant.timestamp() + TAI_MINUS_UTC_S


def _hint(name: str, names: Sequence[str]) -> str:
    from ppdaemon.yamlfile import did_you_mean  # with its parser, which only a wrong name needs

    return did_you_mean(name, names)


def parse_night(text: str) -> int:
    """Return a day_obs, which may be written with dashes; raises ValueError."""
    try:
        if not _DAY.fullmatch(text):
            raise ValueError
        day = int(text.replace("-", ""))
        night_limits(day)
    except ValueError:
        raise ValueError(f"{text!r} is no night: use its day_obs, such as 20261122") from None
    return day


def _outcomes(text: str) -> tuple[Outcome, ...]:
    chosen: list[Outcome] = []
    for name in map(str.strip, text.split(",")):
        if name == "bad":
            chosen += sorted(BAD_OUTCOMES)
            continue
        try:
            chosen.append(Outcome(name))
        except ValueError:
            raise ValueError(
                f"there is no outcome {name!r}{_hint(name, [*map(str, Outcome), 'bad'])}"
            ) from None
    return tuple(chosen)


def parse_data_id(text: str) -> dict[str, str]:
    """Return the fields of a data ID, such as ``instrument=LSSTCam detector=0-3``, by the name of the
    option or of the field of a filter.

    Blanks, commas and ``AND`` separate them; a value may be quoted. Raises ValueError for anything else.
    """
    fields: dict[str, str] = {}
    rest = text.strip()
    while rest:
        found = _FIELD.match(rest)
        if found is None:
            raise ValueError(f"{rest!r} is no data ID: use instrument=NAME detector=LIST, as in the Butler")
        name, value = found[1], found[2]
        if name not in _NAMES:
            raise ValueError(
                f"{name} cannot be used here{_hint(name, list(_NAMES))}; use {', '.join(_NAMES)}"
            )
        if _NAMES[name] in fields:
            raise ValueError(f"{name} is there twice")
        fields[_NAMES[name]] = value.strip("'\"")
        rest = rest[found.end() :]
    return fields


def select(options: dict[str, str | None], now_tai: float) -> dict[str, Any]:
    """Return fields of `~ppdaemon.reports.JournalFilter` for the values of the options; raises ValueError."""
    texts = {name: value for name, value in options.items() if value is not None}
    for name, value in parse_data_id(texts.pop("where", "")).items():
        if name in texts:
            raise ValueError(f"--where and another option both select by {name}")
        texts[name] = value
    if "night" in texts and texts.keys() & {"since", "until"}:
        raise ValueError("use either --night, or --since and --until")
    selected: dict[str, Any] = {}
    if "night" in texts:
        selected["since_tai"], selected["until_tai"] = night_limits(parse_night(texts.pop("night")))
    for name in ("since", "until"):
        if name in texts:
            selected[f"{name}_tai"] = parse_time(texts.pop(name), now_tai)
    if selected.get("since_tai", -math.inf) > selected.get("until_tai", math.inf):
        raise ValueError("--since is after --until")
    if "outcomes" in texts:
        selected["outcomes"] = _outcomes(texts.pop("outcomes"))
    if "detectors" in texts:
        selected["detectors"] = parse_detector_list(texts.pop("detectors"))
    return selected | texts


def selecting(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options, whose values the command gets as fields of a filter in ``selected``."""

    @click.option(
        "--since", metavar="TIME", help="From this TAI, such as 2026-11-22T03:25, or 2h for 2 h ago."
    )
    @click.option("--until", metavar="TIME", help="Until this time.")
    @click.option("--night", metavar="DAY_OBS", help="In this night, such as 20261122.")
    @click.option(
        "--outcome",
        "outcomes",
        metavar="NAME,...",
        help="With one of these outcomes; bad stands for all bad ones.",
    )
    @click.option("--detector", "detectors", metavar="LIST", help="Of these detectors, such as 0-8,12.")
    @click.option("--survey", metavar="NAME", help="Of this survey, such as BLOCK-365.")
    @click.option(
        "--where", metavar="DATA_ID", help="Such as 'instrument=LSSTCam detector=0-8 day_obs=20261122'."
    )
    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> Any:
        names = ("since", "until", "night", "outcomes", "detectors", "survey", "where")
        try:
            selected = select({name: options.pop(name) for name in names}, Clock().tai())
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        return command(*args, selected=selected, **options)

    return run


def find_visit(daemon: "Daemon", text: str) -> "tuple[VisitRow, ...]":
    """Return the visit whose group a text is, or begins if it is the only one; ``latest`` is the newest.

    Raises `~ppdaemon.errors.NotFound` if there is none, or more than one.
    """
    return _find(
        daemon.visit,
        lambda limit, prefix: [row.group for row in daemon.summaries(limit, group_prefix=prefix)],
        text,
    )


def find_relay_visit(daemon: "RelayDaemon", text: str) -> "tuple[RelayDetectorRow, ...]":
    """Return the visit of a relay, as `find_visit`; a beginning is searched in the newest visits."""

    def groups(limit: int, prefix: str) -> list[str]:
        visits = daemon.visits(RELAY_VISITS if prefix else limit)
        return [row.group for row in visits if row.group.startswith(prefix)][:limit]

    return _find(daemon.visit, groups, text)


def _find[T](visit: Callable[[str], T], groups: Callable[[int, str], Sequence[str]], text: str) -> T:
    """Return the visit of a group, of its beginning, or the latest one.

    `groups` returns at most so many of the newest groups that begin with a text.
    """
    if text == LATEST:
        newest = groups(1, "")
        if not newest:
            raise NotFound("there is no visit yet")
        return visit(newest[0])
    try:
        return visit(text)
    except NotFound:
        if not text:
            raise
        found = sorted(set(groups(MATCHES + 1, text)))
        if not found:
            raise
    if len(found) > 1:
        more = ", ..." if len(found) > MATCHES else ""
        raise NotFound(f"{text!r} is not unique: {', '.join(found[:MATCHES])}{more}")
    return visit(found[0])
