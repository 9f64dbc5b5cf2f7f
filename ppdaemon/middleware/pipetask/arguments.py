# SPDX-License-Identifier: BSD-3-Clause
"""What a ``pipetask`` command and the worker that waits for it say to each other."""

import socket
from typing import Annotated, Literal

import pydantic

from ppdaemon.states import Outcome
from ppdaemon.wire import Model

__all__ = (
    "CHANNEL",
    "Broken",
    "Built",
    "Ended",
    "Failed",
    "Setting",
    "Word",
    "hear",
    "is_opened",
    "open_gate",
    "say",
)

CHANNEL = 3
"""The command's descriptor of its end of the socket: the first that is free
in a new process."""

_GO = b"go"
_PACKET = 65_536
_LONGEST = 4_000
"""Longer texts are cut."""


class Setting(Model):
    """How a command fits into its worker."""

    level: str
    """Level of logs."""
    form: Literal["json", "console"]
    """Form of logs."""
    bound: dict[str, str | int]
    """What stands in each line of the worker's log."""
    context: dict[str, str]
    """What each record of a task's log carries."""


class Built(Model):
    """The graph has quanta; it waits until it may run them."""

    type: Literal["built"] = "built"
    labels: tuple[str, ...]
    """Tasks that have something to do."""


class Failed(Model):
    """A task has failed; those that do not depend on it go on."""

    type: Literal["failed"] = "failed"
    label: str
    text: str
    outcome: Outcome


class Broken(Model):
    """The command has failed, outside of tasks."""

    type: Literal["broken"] = "broken"
    text: str
    outcome: Outcome


class Ended(Model):
    """All tasks have succeeded."""

    type: Literal["ended"] = "ended"


type Word = Built | Failed | Broken | Ended

_WORDS = pydantic.TypeAdapter[Word](
    Annotated[Built | Failed | Broken | Ended, pydantic.Field(discriminator="type")]
)


def say(channel: socket.socket, word: Word) -> None:
    """Tell the worker something.

    Parameters
    ----------
    channel : `socket.socket`
        The command's end.
    word : `Built`, `Failed`, `Broken` or `Ended`
        What happened.
    """
    if isinstance(word, Failed | Broken):
        word = word.model_copy(update={"text": word.text[:_LONGEST]})
    channel.send(word.model_dump_json().encode())


def hear(channel: socket.socket) -> Word | None:
    """Wait for what a command says next.

    Parameters
    ----------
    channel : `socket.socket`
        The worker's end.

    Returns
    -------
    word : `Built`, `Failed`, `Broken`, `Ended` or `None`
        `None` if it has ended.
    """
    packet = channel.recv(_PACKET)
    return _WORDS.validate_json(packet) if packet else None


def open_gate(channel: socket.socket) -> None:
    """Let a command run its tasks.

    Parameters
    ----------
    channel : `socket.socket`
        The worker's end.
    """
    channel.send(_GO)


def is_opened(channel: socket.socket) -> bool:
    """Wait until the worker has decided.

    Parameters
    ----------
    channel : `socket.socket`
        The command's end.

    Returns
    -------
    opened : `bool`
        False if the worker does not want the tasks to run.
    """
    return channel.recv(_PACKET) == _GO
