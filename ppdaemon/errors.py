# SPDX-License-Identifier: BSD-3-Clause
"""Exceptions, grouped by what the caller can do.

All errors of the programs derive from `PPDaemonError` and have the exit code of a
program that ends because of them.
"""

from collections.abc import Sequence

from ppdaemon.states import ExitCode, Outcome


class PPDaemonError(Exception):
    """Base of all errors that are shown to a user without a traceback."""

    exit_code = ExitCode.SOFTWARE


class BadMessage(PPDaemonError):
    """A message from another program is invalid: drop it and continue.

    Parameters
    ----------
    reason : `str`
        The error, with the name of the field if there is one.
    kind : `str`
        Category under which the message is counted, one word such as ``size``,
        ``json`` or ``field``.
    """

    exit_code = ExitCode.DATA

    def __init__(self, reason: str, kind: str = "content"):
        super().__init__(reason)
        self.kind = kind


class ConfigError(PPDaemonError):
    """A configuration has errors: correct the file and start again.

    Parameters
    ----------
    problems : `~collections.abc.Sequence` [`str`]
        One line for each error: file, line number, key, error.
    """

    exit_code = ExitCode.CONFIG

    def __init__(self, problems: Sequence[str]):
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)

    @property
    def brief(self) -> str:
        """The first error and the number of others, on one line."""
        others = len(self.problems) - 1
        more = f"; {others} more error{'s' if others > 1 else ''}" if others > 0 else ""
        return f"{' '.join(self.problems[0].split()) if self.problems else 'no text'}{more}"


class NeedsRestart(ConfigError):
    """A configuration changes what a running program cannot change: restart it, or undo the change.

    Parameters
    ----------
    keys : `~collections.abc.Sequence` [`str`]
        What differs.
    """

    def __init__(self, keys: Sequence[str]):
        super().__init__([f"{key}: cannot change while the daemon runs; restart it instead" for key in keys])


class Unavailable(PPDaemonError):
    """Another program or service does not answer: try again later."""

    exit_code = ExitCode.UNAVAILABLE


class NotRunning(Unavailable):
    """No process listens on the socket: start the daemon."""


class Unreadable(Unavailable):
    """This user may not read a file or a folder."""

    exit_code = ExitCode.PERMISSION


class Denied(PPDaemonError):
    """This user may not do this: an operator may, or allow it in ``security`` of the configuration."""

    exit_code = ExitCode.PERMISSION


class NotFound(PPDaemonError):
    """The daemon has no such slot or visit: check the number or the group."""

    exit_code = ExitCode.DATA


class Refused(PPDaemonError):
    """A valid request cannot be done in the present state: try again later."""

    exit_code = ExitCode.TRY_LATER


class StateUnusable(PPDaemonError):
    """A program cannot create, open or lock its state files: correct the folder."""

    exit_code = ExitCode.CANNOT_CREATE


class VisitFailed(PPDaemonError):
    """The visit-detector ends with this outcome; the worker continues.

    Parameters
    ----------
    outcome : `~ppdaemon.states.Outcome`
        Outcome that the journal and the relay get.
    reason : `str`
        One sentence for the operator.
    retriable : `bool`
        Whether another attempt may succeed, for example after a network error.
    """

    exit_code = ExitCode.DATA

    def __init__(self, outcome: Outcome, reason: str, *, retriable: bool = False):
        super().__init__(reason)
        self.outcome = outcome
        self.retriable = retriable
