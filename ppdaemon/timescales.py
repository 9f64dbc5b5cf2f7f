# SPDX-License-Identifier: BSD-3-Clause
"""Offsets between time scales. Imports no clock, so that pure modules may use them."""

__all__ = ("TAI_MINUS_UTC_S",)

TAI_MINUS_UTC_S = 37.0
"""TAI - UTC since 2017-01-01, seconds (IERS Bulletin C 52); no leap second is announced."""
