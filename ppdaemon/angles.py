# SPDX-License-Identifier: BSD-3-Clause
"""Angles in degrees."""

__all__ = ("wrap_degrees",)


def wrap_degrees(angle_deg: float) -> float:
    """Return an angle in degrees, reduced to [0, 360)."""
    turned = angle_deg % 360.0
    # The remainder of a tiny negative angle rounds to 360.
    return 0.0 if turned == 360.0 else turned
