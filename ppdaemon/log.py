# SPDX-License-Identifier: BSD-3-Clause
"""Logging of all programs: one JSON object per line, or colored text.

Each line about a visit-detector has the fields ``instrument``, ``group``, ``detector`` and
``attempt``, and ``stage``, ``exposure``, ``slot`` and ``outcome`` where there is one. A worker has
one visit at a time: it binds them with `bind`. Other processes have many and name them with `about`.
"""

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal, TextIO

__all__ = ("about", "bind", "bound", "set_up")

MAX_MESSAGE = 4000
"""Longer messages are cut, so that a library that prints large objects does not fill
the log."""

PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
"""Levels, and the priorities of ``syslog(3)`` from there on; 7 below."""

COLORS = {"debug": "2", "warning": "33", "error": "31", "critical": "1;31"}
"""Of levels on a terminal, as parameters of its escape sequence."""

_NUMBERS = frozenset({"detector", "exposure"})
"""Fields that are numbers in all lines, and text in the record of a task."""

_NO_FIELDS = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime", "MDC"})
"""Attributes of a record that are not fields of its line."""

_TRACEBACKS = logging.Formatter()
_about: ContextVar[Mapping[str, object]] = ContextVar("about", default={})  # noqa: B039  # not modified


def _task_context(record: logging.LogRecord) -> dict[str, object]:
    """Return the task label and the data ID, which LSST code stores in the record.

    It is the dictionary ``MDC``; its ``LABEL`` is the task's label, a colon and
    the data ID.
    """
    mapped = getattr(record, "MDC", None) or {}
    label, _, data_id = mapped.get("LABEL", "").partition(":")
    context = {"task": label, "data_id": data_id}
    context |= {key.lower(): mapped.get(key) for key in ("INSTRUMENT", "GROUP", "DETECTOR", "EXPOSURE")}
    return {
        key: int(value) if value.isdigit() and key in _NUMBERS else value
        for key, value in context.items()
        if value
    }


def _fields(record: logging.LogRecord, bound: Mapping[str, object]) -> dict[str, object]:
    """Return the fields of a line; `bound` are those of all lines of the process."""
    text = record.getMessage()
    if len(text) > MAX_MESSAGE:
        text = f"{text[:MAX_MESSAGE]} [{len(text) - MAX_MESSAGE} more characters]"
    time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds")
    return {
        "timestamp": f"{time.removesuffix('+00:00')}Z",
        "level": record.levelname.lower(),
        "logger": record.name,
        "event": text,
        **_task_context(record),
        **bound,
        **_about.get(),
        **{name: value for name, value in vars(record).items() if name not in _NO_FIELDS},
    }


def _json_line(fields: Mapping[str, object], exception: str) -> str:
    return json.dumps({**fields, "exception": exception} if exception else fields, default=repr)


def _console_line(fields: Mapping[str, object], exception: str, *, colored: bool) -> str:
    """Return a line for people, which `ppdaemon.ctl.log` reads, too; a traceback follows it."""
    others = dict(fields)
    time, level, logger, event = (others.pop(each) for each in ("timestamp", "level", "logger", "event"))
    shown = f"{level:9}"
    if colored and (color := COLORS.get(str(level))):
        shown = f"\x1b[{color}m{shown}\x1b[0m"
    pairs = "".join(f" {name}={_console_value(value)}" for name, value in others.items())
    return f"{time} [{shown}] {event:30} [{logger}]{pairs}" + (f"\n{exception}" if exception else "")


def _console_value(value: object) -> str:
    is_word = isinstance(value, str) and value.split() == [value] and not ('"' in value or "'" in value)
    return str(value) if is_word else repr(value)


class _Handler(logging.StreamHandler[TextIO]):
    """The handler of a process, with the fields of all its lines."""

    levels: Mapping[str, str] = {}
    """The loggers that have levels of their own."""
    fields: Mapping[str, object] = {}

    def __init__(self, stream: TextIO, form: Literal["json", "console"]):
        super().__init__(stream)
        self._form = form
        self._journal = _is_journal(stream)

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; for the journal of systemd with its priority, see ``sd-daemon(3)``."""
        fields = _fields(record, self.fields)
        exception = _TRACEBACKS.formatException(record.exc_info) if record.exc_info else ""
        if self._form == "json":
            text = _json_line(fields, exception)
        else:
            text = _console_line(fields, exception, colored=self.stream.isatty())
        if not self._journal:
            return text
        priority = f"<{next((each for level, each in PRIORITIES if record.levelno >= level), 7)}>"
        return priority + text.replace("\n", f"\n{priority}")


def _is_journal(stream: TextIO) -> bool:
    """Return whether a stream goes to the journal of systemd, and not to a file or another process: children
    inherit the variable.
    """
    try:
        status = os.fstat(stream.fileno())
    except OSError:  # it has no descriptor
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _handlers() -> list[_Handler]:
    return [handler for handler in logging.getLogger().handlers if isinstance(handler, _Handler)]


def bind(**fields: object) -> None:
    """Add fields to all later lines of this process, those of its threads too; `None` removes one."""
    for handler in _handlers():
        bound = {**handler.fields, **fields}
        handler.fields = {name: value for name, value in bound.items() if value is not None}


def bound() -> Mapping[str, object]:
    """Return the fields of all lines of this process."""
    return {name: value for handler in _handlers() for name, value in handler.fields.items()}


@contextmanager
def about(**fields: object) -> Iterator[None]:
    """Add fields to the lines that are logged within; those that are `None` are left out.

    To be used around the line or around code that decides: a task or a callback that is created
    within would keep the fields.
    """
    known = {name: value for name, value in fields.items() if value is not None}
    token = _about.set({**_about.get(), **known})
    try:
        yield
    finally:
        _about.reset(token)


def set_up(
    level: str,
    form: Literal["json", "console"],
    levels: Mapping[str, str] | None = None,
    *,
    stream: TextIO | None = None,
    **context: object,
) -> None:
    """Send all logs of this process to a stream, by default standard error.

    `levels` has other levels by logger, which replace those of a previous call. `context` is added to
    each line. Libraries that log much are limited to warnings.
    """
    stream, levels = stream or sys.stderr, levels or {}
    handler = _Handler(stream, form)
    handler.levels, handler.fields = dict(levels), context
    root = logging.getLogger()
    for previous in _handlers():
        for name in previous.levels:
            logging.getLogger(name).setLevel(logging.NOTSET)
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Their debug messages are about themselves and would hide those of ppdaemon.
    for noisy in ("asyncio", "botocore", "matplotlib", "urllib3", "watchdog"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
    for name, own in levels.items():
        logging.getLogger(name).setLevel(own)
