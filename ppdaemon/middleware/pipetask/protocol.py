# SPDX-License-Identifier: BSD-3-Clause
"""Messages between a ``pipetask`` command and its worker."""

from typing import Annotated, Literal

import pydantic

from ppdaemon.states import Outcome
from ppdaemon.wire import BY_TYPE, Model

__all__ = (
    "CHANNEL_FD",
    "GO",
    "MAX_PACKET_BYTES",
    "MESSAGES",
    "CommandFailed",
    "GraphBuilt",
    "Succeeded",
    "TaskFailed",
    "CommandSettings",
    "Message",
)

CHANNEL_FD = 3
"""Descriptor of the command's end of the socket: the first that is free in a new process."""

GO = b"go"
"""The worker allows the tasks to run."""
MAX_PACKET_BYTES = 65_536
"""Receive buffer; a longer packet would be cut, so that texts are limited below."""

type _Text = Annotated[str, pydantic.BeforeValidator(lambda text: text[:4_000])]
"""A longer text is cut, to fit into a packet."""


class CommandSettings(Model):
    """Log settings of a command."""

    level: str
    """Level of the log."""
    form: Literal["json", "console"]
    """Format of the log."""
    levels: dict[str, str]
    """Other levels, by logger."""
    bound: dict[str, str | int]
    """Fields of each line of the worker's log."""
    context: dict[str, str]
    """Fields of each record of a task's log."""


class GraphBuilt(Model):
    """The graph has quanta; the command waits for `GO`."""

    type: Literal["built"] = "built"
    labels: tuple[str, ...]
    """Tasks that have quanta."""


class TaskFailed(Model):
    """A task has failed; those that do not depend on it continue."""

    type: Literal["failed"] = "failed"
    label: str
    text: _Text
    outcome: Outcome


class CommandFailed(Model):
    """The command has failed, outside of tasks."""

    type: Literal["broken"] = "broken"
    text: _Text
    outcome: Outcome


class Succeeded(Model):
    """All tasks have succeeded."""

    type: Literal["ended"] = "ended"


type Message = GraphBuilt | TaskFailed | CommandFailed | Succeeded

MESSAGES = pydantic.TypeAdapter[Message](
    Annotated[GraphBuilt | TaskFailed | CommandFailed | Succeeded, BY_TYPE]
)
