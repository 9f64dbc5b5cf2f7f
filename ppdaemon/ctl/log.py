# SPDX-License-Identifier: BSD-3-Clause
"""``ppctl log``: the lines of one visit in the logs of a node."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.text import Text

from ppdaemon.clock import TAI_MINUS_UTC_S
from ppdaemon.ctl.client import Daemon
from ppdaemon.errors import Unreadable
from ppdaemon.reports import VisitRow
from ppdaemon.states import Stage
from ppdaemon.terminal import plain

__all__ = (
    "LogLine",
    "line_text",
    "lines_of",
    "logs_folder",
    "supervisor_lines",
    "visit_lines",
    "worker_lines",
    "worker_log",
)

UNIT = "ppdaemon"
JOURNAL_S = 10.0
"""How long systemd may search its journal."""
BEFORE_S, AFTER_S = 60.0, 600.0
"""Around the acceptance of a visit, to find its lines in the log of the supervisor."""

_LEVELS = {"warning": "yellow", "error": "red", "critical": "bold red"}
_SHOWN = frozenset({"timestamp", "level", "event", "logger", "node", "role", "epoch", "instrument", "group"})
"""Fields that are not repeated at the end of a line."""


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line, with the lines after it that have no fields, such as the traceback of a library."""

    source: str
    """Such as ``slot 3`` or ``supervisor``."""
    fields: dict[str, Any]
    more: list[str] = field(default_factory=list)

    @property
    def timestamp(self) -> str:
        """UTC, ISO 8601; blank if the line has none."""
        return str(self.fields.get("timestamp", ""))


def logs_folder(daemon: Daemon) -> Path:
    """Return the folder of a node's logs; raises as `~ppdaemon.ctl.client.Daemon.ask` does."""
    if daemon.from_journal and daemon.journal is not None:
        return daemon.journal.with_name("logs")
    return Path(daemon.status().logs)


def visit_lines(daemon: Daemon, rows: Sequence[VisitRow]) -> list[LogLine]:
    """Return the lines of a visit in the logs of workers and daemon, by time; raises as `worker_lines` and
    `~ppdaemon.ctl.client.Daemon.ask` do.
    """
    lines = [*worker_lines(logs_folder(daemon), rows), *supervisor_lines(rows)]
    return sorted(lines, key=lambda line: line.timestamp)


def worker_log(folder: Path, slot: int) -> Path:
    """Return the log of a slot's workers."""
    return folder / f"worker-{slot:04d}.log"


def worker_lines(folder: Path, rows: Sequence[VisitRow]) -> list[LogLine]:
    """Return the lines of a visit in the logs of the workers that had its detectors, by time.

    Raises `~ppdaemon.errors.Unreadable` if this user may not read them.
    """
    detectors: dict[int, set[int]] = {}
    for row in rows:
        if row.slot is not None:
            detectors.setdefault(row.slot, set()).add(row.detector)
    found: list[LogLine] = []
    for slot, those in detectors.items():
        path = worker_log(folder, slot)
        try:
            with path.open("rb") as stream:
                found += _matching(stream, f"slot {slot}", rows[0].group, those)
        except FileNotFoundError:
            continue
        except PermissionError:
            raise Unreadable(f"{path}: permission denied; run ppctl as the user of the daemon") from None
    return sorted(found, key=lambda line: line.timestamp)


def supervisor_lines(rows: Sequence[VisitRow]) -> list[LogLine]:
    """Return the lines of a visit in the log of the daemon, where systemd has it."""
    program = shutil.which("journalctl")
    accepted = [row.stages[Stage.ACCEPTED] for row in rows if Stage.ACCEPTED in row.stages]
    if program is None or not accepted:
        return []
    unix = [tai - TAI_MINUS_UTC_S for tai in accepted]
    ended = [row.ended_tai - TAI_MINUS_UTC_S for row in rows if row.ended_tai is not None]
    command = [
        program,
        *("--unit", UNIT, "--output", "cat", "--quiet", "--no-pager"),
        f"--since=@{min(unix) - BEFORE_S:.0f}",
        f"--until=@{max(unix + ended) + AFTER_S:.0f}",
    ]
    try:
        result = subprocess.run(command, capture_output=True, check=False, timeout=JOURNAL_S)
    except subprocess.TimeoutExpired:
        return []  # the lines of the workers are shown all the same
    return list(
        _matching(result.stdout.splitlines(), "supervisor", rows[0].group, {r.detector for r in rows})
    )


def _matching(lines: Iterable[bytes], source: str, group: str, detectors: set[int]) -> Iterator[LogLine]:
    """Yield the lines of one visit: those of some detectors, and those of all together."""
    wanted = {None, *detectors}
    return lines_of(
        lines,
        source,
        lambda fields: fields.get("group") == group and fields.get("detector") in wanted,
        json.dumps(group).encode(),
    )


def lines_of(
    lines: Iterable[bytes],
    source: str,
    is_wanted: Callable[[Mapping[str, Any]], bool] = lambda fields: True,
    text: bytes = b"",
) -> Iterator[LogLine]:
    """Yield the wanted lines of a log, each when the next one begins; JSON is parsed if it has a text."""
    current: LogLine | None = None
    for raw in lines:
        fields = _fields(raw) if text in raw or b"{" not in raw[:1] else {}
        if fields is None:
            if current is not None:
                current.more.append(raw.decode(errors="replace").rstrip("\n"))
            continue
        if current is not None:
            yield current
        current = LogLine(source, fields) if is_wanted(fields) else None
    if current is not None:
        yield current


_CONSOLE = re.compile(r"(?P<timestamp>\d{4}-\d\d-\d\dT\S+) \[(?P<level>\w+) *\] (?P<event>.*)")
_PAIR = re.compile(r"""(\w+)=('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\S+)""")
_TAIL = re.compile(rf"(.*) \[[\w.]+\]((?:\s+{_PAIR.pattern})*)\s*")
"""Only pairs behind the logger are fields: tasks write pairs into their texts, too."""
_NUMBERS = {"attempt", "detector", "exposure", "slot"}


def _fields(raw: bytes) -> dict[str, Any] | None:
    """Return the fields of a line of either format; `None` if it has none."""
    if raw.startswith(b"{"):
        try:
            return dict(json.loads(raw))
        except ValueError:
            return None
    found = _CONSOLE.match(re.sub(r"\x1b\[[0-9;]*m", "", raw.decode(errors="replace")))
    if found is None:
        return None
    tail = _TAIL.fullmatch(found["event"])
    event, pairs = (tail[1], tail[2]) if tail else (found["event"], "")
    fields: dict[str, Any] = {name: value.strip("'\"") for name, value in _PAIR.findall(pairs)}
    for name in _NUMBERS & fields.keys():
        if fields[name].isdigit():
            fields[name] = int(fields[name])
    return fields | {"timestamp": found["timestamp"], "level": found["level"], "event": event.strip()}


def line_text(line: LogLine) -> Text:
    """Return a line for a terminal: time in UTC, where, level, detector, text, other fields."""
    fields = line.fields
    style = _LEVELS.get(str(fields.get("level")), "")
    others = " ".join(
        f"{name}={plain(value)}"
        for name, value in fields.items()
        if name not in _SHOWN and name not in ("detector", "slot", "exception")
    )
    text = Text.assemble(
        (f"{plain(line.timestamp)[11:23]} ", "dim"),
        (f"{line.source:10} ", "dim"),
        f"{plain(fields.get('detector')):>3} ",
        (f"{plain(fields.get('level')):8}", style),
        (plain(fields.get("event")), style),
        (f"  {others}" if others else "", "dim"),
    )
    for more in (*str(fields.get("exception", "")).splitlines(), *line.more):
        text.append(f"\n    {plain(more)}", "dim")
    return text
