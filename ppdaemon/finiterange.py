# SPDX-License-Identifier: BSD-3-Clause
"""Numbers on command lines."""

import math
from typing import Any

import click

__all__ = ("FiniteRange",)


class FiniteRange(click.FloatRange):
    """A range of numbers without NaN, which no comparison excludes, and without infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number; fail with a message if it is none of the range."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number
