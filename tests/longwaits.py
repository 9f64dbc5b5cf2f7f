# SPDX-License-Identifier: BSD-3-Clause
"""Refuses waits in real time: a test waits for a condition, with a deadline."""

import asyncio
import select
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LONGEST_S = 0.5
TESTS = str(Path(__file__).parent)


def refuse_long_waits(patch: pytest.MonkeyPatch) -> None:
    """Fail a test that waits longer than `LONGEST_S` for time alone.

    Other threads may: some simulate processes that hang. Of coroutines, only those of the
    tests: others wait beside the test.
    """
    patch.setattr(time, "sleep", _refusing(time.sleep, lambda seconds: seconds))
    patch.setattr(select, "select", _refusing(select.select, _select_s))
    patch.setattr(asyncio, "sleep", _refusing(asyncio.sleep, _asyncio_s))


def _select_s(reads: Any, writes: Any, errors: Any, seconds: float | None = None) -> float:
    return 0.0 if seconds is None or any((reads, writes, errors)) else seconds


def _asyncio_s(seconds: float, *_: object) -> float:
    return seconds if sys._getframe(2).f_code.co_filename.startswith(TESTS) else 0.0


def _refusing(call: Callable[..., Any], seconds_of: Callable[..., float]) -> Callable[..., Any]:
    def refusing(*arguments: Any, **named: Any) -> Any:
        if threading.current_thread() is threading.main_thread():
            seconds = seconds_of(*arguments, **named)
            if seconds > LONGEST_S:
                pytest.fail(
                    f"{call.__name__} waits for {seconds:g} s: wait for a condition, or mark the test "
                    "slow or waits(reason)"
                )
        return call(*arguments, **named)

    return refusing
