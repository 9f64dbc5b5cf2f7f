# SPDX-License-Identifier: BSD-3-Clause
"""The injected transients and variables of an exposure, for scoring alerts."""

from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.table import Table, vstack

from ppdaemon.demo.geometry import FILTER_BANDS
from ppdaemon.demo.plan import ExposurePlan
from ppdaemon.demo.sky import Sky, magnitude_to_njy, njy_to_magnitude

__all__ = ("TRANSIENT", "VARIABLE", "truth_table", "write_truth")

TRANSIENT, VARIABLE = "transient", "variable"


def truth_table(sky: Sky, mjd_tai: float, band: str) -> Table:
    """Return all sources that differ from the template at a TAI modified Julian date.

    Columns: ``id``; ``kind`` (``transient`` or ``variable``); ``ra``, ``dec``
    (ICRS, degrees); ``mag`` (AB, of the source itself); ``difference_njy``
    (flux beyond the template's, negative for a variable that is faint).
    Ordered by ID.
    """
    new, stars, variables = sky.transients, sky.stars, sky.variables
    flux_njy = new.flux_njy(mjd_tai, band)
    chosen = variables.index
    mean = stars.magnitude[band][chosen]
    magnitude = mean + variables.offset_mag(mjd_tai)
    change_njy = magnitude_to_njy(magnitude) - magnitude_to_njy(mean)
    # A transient at the very start of its rise has no flux, and no magnitude.
    shining = flux_njy > 0.0
    return vstack(
        [
            _table(
                stars.id[chosen], VARIABLE, stars.ra_deg[chosen], stars.dec_deg[chosen], magnitude, change_njy
            ),
            _table(
                new.id[shining],
                TRANSIENT,
                new.ra_deg[shining],
                new.dec_deg[shining],
                njy_to_magnitude(flux_njy[shining]),
                flux_njy[shining],
            ),
        ]
    )


def write_truth(path: Path | str, sky: Sky, plan: ExposurePlan) -> Path:
    """Write the truth of a whole exposure as an ECSV table.

    The table's metadata identify the exposure: ``obs_id``, ``group``,
    ``band``, ``mjd_tai``.
    """
    band = FILTER_BANDS[plan.physical_filter]
    truth = truth_table(sky, plan.mid_mjd_tai, band)
    truth.meta |= {"obs_id": plan.obs_id, "group": plan.group, "band": band, "mjd_tai": plan.mid_mjd_tai}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    truth.write(path, format="ascii.ecsv", overwrite=True)
    return path


def _table(
    number: np.ndarray,
    kind: str,
    ra_deg: np.ndarray,
    dec_deg: np.ndarray,
    magnitude: np.ndarray,
    difference_njy: np.ndarray,
) -> Table:
    return Table(
        {
            "id": number.astype(np.int64),
            "kind": np.full(len(number), kind),
            "ra": ra_deg * u.deg,
            "dec": dec_deg * u.deg,
            "mag": magnitude * u.ABmag,
            "difference_njy": difference_njy * u.nJy,
        }
    )
