# SPDX-License-Identifier: BSD-3-Clause
"""Logs of all programs: one JSON object per line, or coloured lines.

Context such as group and detector is bound once with
`structlog.contextvars.bind_contextvars` and stands in every line after.
"""

import logging
import sys
from typing import Literal, TextIO

import structlog

__all__ = ("set_up",)

MAX_MESSAGE = 4000
"""Longer messages are cut, so that no line floods the journal."""


def _cut(_logger: object, _name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    text = event.get("event")
    if isinstance(text, str) and len(text) > MAX_MESSAGE:
        event["event"] = text[:MAX_MESSAGE] + f" [{len(text) - MAX_MESSAGE} more characters]"
    return event


def _tell_task(_logger: object, _name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Tell the task, and of which data it is, in its own words.

    LSST code carries both in records, as ``MDC``: ``LABEL`` is the task's
    label, then a colon and the data ID.
    """
    mapped = event.pop("MDC", None) or {}
    label, _, data_id = mapped.get("LABEL", "").partition(":")
    told = {"task": label, "data_id": data_id}
    told |= {key.lower(): mapped.get(key) for key in ("INSTRUMENT", "GROUP", "DETECTOR", "EXPOSURE")}
    for key, value in told.items():
        if value and key not in event:
            event[key] = value
    return event


def set_up(
    level: str, form: Literal["json", "console"], *, stream: TextIO | None = None, **context: object
) -> None:
    """Send all logs of this process to a stream."""
    stream = stream or sys.stderr
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        _tell_task,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _cut,
    ]
    last: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(colors=stream.isatty())
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for noisy in ("asyncio", "botocore", "matplotlib", "urllib3", "watchdog"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(**context)
