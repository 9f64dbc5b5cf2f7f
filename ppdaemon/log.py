# SPDX-License-Identifier: BSD-3-Clause
"""Logging of all programs: one JSON object per line, or colored text.

Each line about a visit-detector has the fields ``instrument``, ``group``, ``detector`` and
``attempt``, and ``stage``, ``exposure``, ``slot`` and ``outcome`` where there is one. A worker has
one visit at a time: it binds them with `bind`. Other processes have many and name them with `about`.
"""

import logging
import os
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Literal, TextIO

import structlog

__all__ = ("about", "bind", "bound", "set_up")

MAX_MESSAGE = 4000
"""Longer messages are cut, so that a library that prints large objects does not fill
the log."""

PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
"""Levels, and the priorities of ``syslog(3)`` from there on; 7 below."""


def _cut(_logger: object, _name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    text = event.get("event")
    if isinstance(text, str) and len(text) > MAX_MESSAGE:
        event["event"] = text[:MAX_MESSAGE] + f" [{len(text) - MAX_MESSAGE} more characters]"
    return event


def _add_task_context(
    _logger: object, _name: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Add the task label and the data ID, which LSST code stores in the record.

    It is the dictionary ``MDC``; its ``LABEL`` is the task's label, a colon and
    the data ID.
    """
    mapped = event.pop("MDC", None) or {}
    label, _, data_id = mapped.get("LABEL", "").partition(":")
    context = {"task": label, "data_id": data_id}
    context |= {key.lower(): mapped.get(key) for key in ("INSTRUMENT", "GROUP", "DETECTOR", "EXPOSURE")}
    for key, value in context.items():
        if value and key not in event:
            event[key] = int(value) if value.isdigit() and key in _NUMBERS else value
    return event


_NUMBERS = frozenset({"detector", "exposure"})
"""Fields that are numbers in all lines, and text in the record of a task."""


class _Handler(logging.StreamHandler[TextIO]):
    """The handler of a process, with the fields of all its lines."""

    levels: Mapping[str, str] = {}
    """The loggers that have levels of their own."""
    fields: Mapping[str, object] = {}

    def __init__(self, stream: TextIO):
        super().__init__(stream)
        self._journal = _is_journal(stream)

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; for the journal of systemd with its priority, see ``sd-daemon(3)``."""
        text = super().format(record)
        if not self._journal:
            return text
        priority = f"<{next((each for level, each in PRIORITIES if record.levelno >= level), 7)}>"
        return priority + text.replace("\n", f"\n{priority}")

    def add_fields(
        self, _logger: object, _name: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        """Add the fields that a line does not have."""
        return {**self.fields, **event}


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


def about(**fields: object) -> AbstractContextManager[None]:
    """Add fields to the lines that are logged within; those that are `None` are left out.

    To be used around the line or around code that decides: a task or a callback that is created
    within would keep the fields.
    """
    known = {name: value for name, value in fields.items() if value is not None}
    return structlog.contextvars.bound_contextvars(**known)


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
    handler = _Handler(stream)
    handler.levels, handler.fields = dict(levels), context
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        handler.add_fields,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        _add_task_context,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _cut,
    ]
    last: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(colors=stream.isatty())
    )
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, last],
        )
    )
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
