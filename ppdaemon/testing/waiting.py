# SPDX-License-Identifier: BSD-3-Clause
"""Waiting for a condition with a deadline: a test never sleeps to synchronize."""

import time
from collections.abc import Callable

__all__ = ("TIMEOUT_S", "wait_until")

TIMEOUT_S = 40.0
"""For what takes a moment on a machine that is not busy."""
PAUSE_S = 0.01


def wait_until[T](
    condition: Callable[[], T], deadline_s: float = 10.0, story: str | Callable[[], object] = ""
) -> T:
    """Return what a condition gives as soon as that is true.

    Parameters
    ----------
    condition : `~collections.abc.Callable`
        Called every 10 ms.
    deadline_s : `float`, optional
        How long it may take.
    story : `str` or `~collections.abc.Callable`, optional
        What was waited for, or a function that returns what has happened so
        far; stands in the failure.

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
