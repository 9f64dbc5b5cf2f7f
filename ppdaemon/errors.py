# SPDX-License-Identifier: BSD-3-Clause
"""Exceptions that say what the caller may do.

Every error of the programs derives from `PPDaemonError` and carries the exit
code with which a program that cannot go on should end.
"""

from collections.abc import Sequence

from ppdaemon.states import ExitCode, Outcome


class PPDaemonError(Exception):
    """Base of all errors that are told to a person without a traceback."""

    exit_code = ExitCode.SOFTWARE


class BadMessage(PPDaemonError):
    """Words from outside that cannot be understood: drop them, go on.

    Parameters
    ----------
    reason : `str`
        What is wrong, naming the field if there is one.
    kind : `str`
        A short fixed word to count by, such as ``size`` or ``field``.
    """

    exit_code = ExitCode.DATA

    def __init__(self, reason: str, kind: str = "content"):
        super().__init__(reason)
        self.kind = kind


class ConfigError(PPDaemonError):
    """A configuration that cannot be used: mend the file, start again.

    Parameters
    ----------
    problems : `~collections.abc.Sequence` [`str`]
        One line for each error, with file, line and key.
    """

    exit_code = ExitCode.CONFIG

    def __init__(self, problems: Sequence[str]):
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class Unavailable(PPDaemonError):
    """Another program does not answer: try again when it runs."""

    exit_code = ExitCode.UNAVAILABLE


class Refused(PPDaemonError):
    """The request is understood and not granted in the present state."""

    exit_code = ExitCode.TRY_LATER


class StateUnusable(PPDaemonError):
    """A program's own files cannot be made, opened or locked: mend the folder."""

    exit_code = ExitCode.CANNOT_CREATE


class VisitFailed(PPDaemonError):
    """This visit-detector ends here with the given outcome; the worker lives on.

    Parameters
    ----------
    outcome : `~ppdaemon.states.Outcome`
        What to write into the journal.
    reason : `str`
        One sentence for the operator.
    retriable : `bool`
        Whether a second attempt could fare better.
    """

    exit_code = ExitCode.DATA

    def __init__(self, outcome: Outcome, reason: str, *, retriable: bool = False):
        super().__init__(reason)
        self.outcome = outcome
        self.retriable = retriable
