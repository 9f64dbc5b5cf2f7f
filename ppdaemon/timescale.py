# SPDX-License-Identifier: BSD-3-Clause
"""The difference of the time scales TAI and UTC."""

__all__ = ("TAI_MINUS_UTC_S",)

TAI_MINUS_UTC_S = 37.0
"""TAI - UTC since 2017-01-01 (IERS Bulletin C 52); no leap second is announced."""
