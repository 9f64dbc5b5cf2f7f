# SPDX-License-Identifier: BSD-3-Clause
"""Waiting for a condition with a deadline: tests never sleep to synchronise."""

import time
from collections.abc import Callable

__all__ = ("wait_until",)


def wait_until[T](
    condition: Callable[[], T], deadline_s: float = 10.0, story: str | Callable[[], object] = ""
) -> T:
    """Return what a condition gives as soon as that is true.

    Parameters
    ----------
    condition : `~collections.abc.Callable`
        Called again and again, every 10 ms.
    deadline_s : `float`
        How long it may take.
    story : `str` or `~collections.abc.Callable`
        What was waited for, or a function that tells what happened so far;
        stands in the failure.

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
            told = story() if callable(story) else story
            raise AssertionError(f"not within {deadline_s} s: {told or condition}")
        time.sleep(0.01)
    return value
