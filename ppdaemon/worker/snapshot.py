# SPDX-License-Identifier: BSD-3-Clause
"""The process state that a pipeline must leave unchanged for the next visit."""

import os
import signal
import threading
from dataclasses import dataclass, fields

from ppdaemon.processes import children

__all__ = ("ProcessSnapshot",)


@dataclass(frozen=True, slots=True)
class ProcessSnapshot:
    """The parts of a process's state that visits share."""

    directory: str
    umask: int
    handlers: tuple[object, ...]
    """Handlers of all signals."""
    threads: frozenset[str]
    """Names of Python's threads; threads of C libraries' pools are allowed."""
    children: frozenset[int]

    @classmethod
    def now(cls) -> "ProcessSnapshot":
        """Return the present state of this process."""
        # The function returns the present value only when it sets another one.
        umask = os.umask(0)
        os.umask(umask)
        try:
            directory = os.getcwd()
        except FileNotFoundError:
            directory = "(deleted)"
        return cls(
            directory=directory,
            umask=umask,
            handlers=tuple(signal.getsignal(number) for number in sorted(signal.valid_signals())),
            threads=frozenset(thread.name for thread in threading.enumerate()),
            children=frozenset(children()),
        )

    def changes_to(self, other: "ProcessSnapshot") -> str:
        """Return the names of the parts in which a later snapshot differs, such as ``directory,
        umask``; blank if none does.
        """
        return ", ".join(
            field.name for field in fields(self) if getattr(self, field.name) != getattr(other, field.name)
        )
