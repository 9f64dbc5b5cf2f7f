# SPDX-License-Identifier: BSD-3-Clause
"""Waiting for a condition with a deadline: a test never sleeps to synchronize."""

import time
from collections.abc import Callable

__all__ = ("TIMEOUT_S", "wait_until")

TIMEOUT_S = 40.0
"""For actions that take a moment unless the machine is busy."""
PAUSE_S = 0.01


def wait_until[T](
    condition: Callable[[], T], deadline_s: float = TIMEOUT_S, story: str | Callable[[], object] = ""
) -> T:
    """Return the value of a condition as soon as it is true.

    Parameters
    ----------
    condition : `~collections.abc.Callable`
        Called every 10 ms.
    deadline_s : `float`, optional
        How long it may take.
    story : `str` or `~collections.abc.Callable`, optional
        Text of the failure: what was waited for, or a function that returns what has happened.

    Returns
    -------
    value : `object`
        The condition's first true value.

    Raises
    ------
    AssertionError
        Raised if the deadline passes.
    """
    __tracebackhide__ = True
    deadline = time.monotonic() + deadline_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            text = story() if callable(story) else story
            raise AssertionError(f"not within {deadline_s} s: {text or condition}")
        time.sleep(PAUSE_S)
    return value
