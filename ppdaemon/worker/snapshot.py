# SPDX-License-Identifier: BSD-3-Clause
"""What a pipeline must leave as it was in a process that serves the next one."""

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
    """Of all signals."""
    threads: frozenset[str]
    """Names of Python's threads; those of C libraries' pools are theirs."""
    children: frozenset[int]

    @classmethod
    def now(cls) -> "ProcessSnapshot":
        """Look at this process.

        Returns
        -------
        posture : `ProcessSnapshot`
            As it is.
        """
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

    def differs_from(self, other: "ProcessSnapshot") -> str:
        """Say in what two postures differ.

        Parameters
        ----------
        other : `ProcessSnapshot`
            A later one.

        Returns
        -------
        text : `str`
            For instance ``directory, umask``; blank if they are the same.
        """
        return ", ".join(
            field.name for field in fields(self) if getattr(self, field.name) != getattr(other, field.name)
        )
