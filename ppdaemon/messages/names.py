# SPDX-License-Identifier: BSD-3-Clause
"""The supervisor and the process that resolves the names in the configuration."""

from typing import Annotated, Literal

import pydantic

from ppdaemon.wire import BY_TYPE, Model


class Resolving(Model):
    """The next names are resolved; the process may hang there."""

    type: Literal["resolving"] = "resolving"
    what: str
    """Such as ``the central repo``."""


class NameFinding(Model):
    """A name in the configuration that does not exist, or could not be resolved."""

    type: Literal["name"] = "name"
    level: Literal["error", "warning", "fallback", "unavailable"]
    """``error``: with this configuration the daemon does not start. ``fallback``: the first
    pipeline of a rule is dropped for every detector. ``unavailable``: the database or mount
    that has the name does not answer now."""
    key: tuple[str | int, ...]
    """Keys and indexes of the value in the configuration file."""
    text: str


class TaskNamesResolved(Model):
    """The names of tasks have been resolved, or could not be; other names follow."""

    type: Literal["task_names_resolved"] = "task_names_resolved"


class NamesResolved(Model):
    """All names have been resolved, or could not be; the process exits."""

    type: Literal["names_resolved"] = "names_resolved"


type NameFact = Annotated[Resolving | NameFinding | TaskNamesResolved | NamesResolved, BY_TYPE]
NAME_FACTS = pydantic.TypeAdapter[NameFact](NameFact)
