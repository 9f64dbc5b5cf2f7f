# SPDX-License-Identifier: BSD-3-Clause
"""The supervisor and the zygote, which forks its processes."""

from typing import Annotated, Literal

import pydantic

from ppdaemon.messages.worker import Role
from ppdaemon.wire import BY_TYPE, Model


class ForkWorker(Model):
    """Order to fork a process; `Forked` returns its channel and pidfd."""

    type: Literal["fork"] = "fork"
    role: Role
    slot: int
    """Number of the slot; negative for processes without a slot."""
    epoch: int
    """Number of the process, counted per slot."""
    repo: str
    """The folder of this process on the RAM disk."""
    log: str
    """The file for its standard output and error."""
    generation: int = 1
    """Generation of its configuration and template repo; see `ppdaemon.folders`."""


ZYGOTE_ORDERS = pydantic.TypeAdapter[ForkWorker](ForkWorker)


class ZygoteReady(Model):
    """The zygote has imported everything and has one thread, so that it can fork."""

    type: Literal["zygote_ready"] = "zygote_ready"
    pid: int
    import_s: float
    modules: int
    cold: str = ""
    """Why it has not warmed up, so that the first visit of each worker takes longer; blank if it has."""


class ZygoteRefused(Model):
    """The modules of the configuration cannot be used; the zygote ends."""

    type: Literal["zygote_refused"] = "zygote_refused"
    problems: tuple[str, ...]


class Forked(Model):
    """A process was forked; the packet also transfers its channel and its pidfd."""

    type: Literal["forked"] = "forked"
    role: Role
    slot: int
    epoch: int
    pid: int


class ForkFailed(Model):
    """The fork failed."""

    type: Literal["fork_failed"] = "fork_failed"
    role: Role
    slot: int
    epoch: int
    reason: str


class Reaped(Model):
    """A process of this zygote has ended."""

    type: Literal["reaped"] = "reaped"
    pid: int
    status: int
    """Exit code, or the negative number of the signal."""
    cpu_s: float
    """With its children that have ended; the benches read it."""


type ForkFact = Annotated[Forked | ForkFailed | Reaped, BY_TYPE]
"""Result of a fork, or end of a forked process."""
type ZygoteFact = Annotated[ZygoteReady | ZygoteRefused | Forked | ForkFailed | Reaped, BY_TYPE]
ZYGOTE_FACTS = pydantic.TypeAdapter[ZygoteFact](ZygoteFact)
