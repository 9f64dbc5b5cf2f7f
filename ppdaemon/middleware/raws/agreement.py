# SPDX-License-Identifier: BSD-3-Clause
"""Whether an image is the one that was announced; pure."""

import math

from ppdaemon.camera import SkyPoint
from ppdaemon.config import ExposuresConfig
from ppdaemon.middleware.raws.header import ExposureHeader
from ppdaemon.visit import NextVisit

__all__ = ("contradictions", "separation_deg")


def contradictions(header: ExposureHeader, visit: NextVisit, limits: ExposuresConfig) -> list[str]:
    """Return what an image's header and its announcement disagree in.

    Parameters
    ----------
    header : `~ppdaemon.middleware.raws.header.ExposureHeader`
        What the header says.
    visit : `~ppdaemon.visit.NextVisit`
        What was announced.
    limits : `~ppdaemon.config.ExposuresConfig`
        How far they may differ.

    Returns
    -------
    reasons : `list` [`str`]
        Empty where nothing contradicts, as where nothing is known, and for
        images that are not of the sky.

    Notes
    -----
    Only positions in ICRS and rotations on the sky are compared. What was
    announced in azimuth and altitude is somewhere else on the sky when the
    exposure begins a few minutes late, and no contradiction.
    """
    if not header.sees_sky:
        return []
    reasons = []
    if visit.boresight is not None and header.boresight is not None:
        apart = separation_deg(visit.boresight, header.boresight)
        if apart > limits.pointing_deg:
            reasons.append(f"the boresight is {apart:.3g} deg from the announced")
    if visit.sky_angle is not None and header.sky_angle is not None:
        turned = abs((header.sky_angle - visit.sky_angle + 180.0) % 360.0 - 180.0)
        if turned > limits.rotation_deg:
            reasons.append(f"the sky angle is {turned:.3g} deg from the announced")
    names = visit.filter_names
    if limits.filter == "exact" and names and header.physical_filter not in names:
        reasons.append(f"the filter is {header.physical_filter} instead of {' or '.join(names)}")
    return reasons


def separation_deg(one: SkyPoint, other: SkyPoint) -> float:
    """Return the distance of two points on the sky.

    Parameters
    ----------
    one, other : `tuple` [`float`, `float`]
        Right ascension and declination, degrees.

    Returns
    -------
    apart : `float`
        Degrees along the great circle, by the haversine formula, which is
        exact for small distances too.
    """
    ra, dec, other_ra, other_dec = map(math.radians, (*one, *other))
    half = (
        math.sin((dec - other_dec) / 2) ** 2
        + math.cos(dec) * math.cos(other_dec) * math.sin((ra - other_ra) / 2) ** 2
    )
    return math.degrees(2 * math.asin(math.sqrt(min(1.0, half))))
