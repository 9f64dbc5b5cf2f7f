# SPDX-License-Identifier: BSD-3-Clause
"""One kind of state of a process that visits share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ("Part",)


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of state. `read` returns a value that can be compared; `restore` is `None` if only
    a new process is as before.
    """

    name: str
    read: Callable[[], Any]
    restore: Callable[[Any], object] | None = None
