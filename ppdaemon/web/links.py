# SPDX-License-Identifier: BSD-3-Clause
"""Addresses of the pages."""

from urllib.parse import quote

__all__ = ("detector_link", "night_link", "visit_link")


def visit_link(group: str) -> str:
    """Return the address of a visit's page."""
    return f"/visit/{quote(group, safe='')}"


def detector_link(instrument: str, detector: int) -> str:
    """Return the address of a detector's page."""
    return f"/detector/{quote(instrument, safe='')}/{detector}"


def night_link(day_obs: int) -> str:
    """Return the address of a night's page."""
    return f"/night/{day_obs}"
