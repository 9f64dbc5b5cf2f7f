# SPDX-License-Identifier: BSD-3-Clause
"""What the requests and the answers of all programs share."""

from typing import Literal

import pydantic

from ppdaemon.wire import Model

SCHEMA = 1
"""Version of the output of ``ppctl --json``; incremented when a field is removed or its meaning changes."""

CONTROL_LIMIT = 65_536
"""Largest request in bytes; replies may be larger."""

DEFERRED = pydantic.ConfigDict(defer_build=True)
"""Models and adapters are built when they are first used: a command of ``ppctl`` needs few of them, and
all take 30 ms of its start.
"""


class ControlModel(Model):
    """Base of requests and answers."""

    model_config = DEFERRED


type ProblemSource = Literal[
    "zygote",
    "central_repo",
    "capacity",
    "journal",
    "ledger",
    "ring",
    "relay",
    "redis",
    "nodes",
    "detectors",
    "arrivals",
    "pipelines",
    "slots",
    "export",
    "ramdisk",
    "resources",
    "limits",
    "configuration",
    "metrics",
    "publish",
    "kafka",
    "traces",
    "leftovers",
]
"""The part of the program, or the dependency, that a problem is about; the worst first."""


class Problem(ControlModel):
    """Something that does not work now."""

    source: ProblemSource
    """The part of the program, or the dependency, that it is about."""
    text: str
    """What does not work, and what the program does about it."""
    since_tai: float
    """When it began, TAI seconds since 1970."""
    degrades: bool
    """Whether it limits the program now; otherwise it should be checked by day."""


class ServerStatus(ControlModel):
    """What a relay and a bridge report alike."""

    schema_version: int = SCHEMA
    """Version of the output of ``ppctl --json``."""
    version: str
    pid: int
    state: Literal["running", "degraded", "stopping"]
    """``degraded``: running, with a problem that an operator should check."""
    text: str
    """The state in one line for an operator."""
    started_tai: float
    """When the program started."""
    tai: float
    """When this report was made."""
    counters: dict[str, int]
    """Events by kind since the start, such as ``node field`` for invalid messages of nodes, or ``http json``
    for bodies that are no JSON."""
    reloaded_tai: float | None = None
    """When the configuration was read again; `None` if it was not."""
    reload_refused: bool = False
    """Whether the last reload by a signal was refused."""
    problems: tuple[Problem, ...] = ()
    """What does not work now, the worst first."""

    @property
    def problem_texts(self) -> tuple[str, ...]:
        """The texts of the problems."""
        return tuple(problem.text for problem in self.problems)

    @property
    def healthy(self) -> bool:
        """Whether nothing limits it."""
        return self.state == "running"
