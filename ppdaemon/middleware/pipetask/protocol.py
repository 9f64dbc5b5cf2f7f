# SPDX-License-Identifier: BSD-3-Clause
"""What a ``pipetask`` command and the worker that waits for it say to each other."""

from typing import Annotated, Literal

import pydantic

from ppdaemon.states import Outcome
from ppdaemon.wire import Model

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
"""The command's descriptor of its end of the socket: the first that is free
in a new process."""

GO = b"go"
"""The worker wants the tasks to run."""
MAX_PACKET_BYTES = 65_536

type _Text = Annotated[str, pydantic.BeforeValidator(lambda text: text[:4_000])]
"""What is too long for a packet is cut."""


class CommandSettings(Model):
    """How a command fits into its worker."""

    level: str
    """Level of logs."""
    form: Literal["json", "console"]
    """Form of logs."""
    bound: dict[str, str | int]
    """What stands in each line of the worker's log."""
    context: dict[str, str]
    """What each record of a task's log carries."""


class GraphBuilt(Model):
    """The graph has quanta; it waits until it may run them."""

    type: Literal["built"] = "built"
    labels: tuple[str, ...]
    """Tasks that have something to do."""


class TaskFailed(Model):
    """A task has failed; those that do not depend on it go on."""

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
    Annotated[GraphBuilt | TaskFailed | CommandFailed | Succeeded, pydantic.Field(discriminator="type")]
)
