# SPDX-License-Identifier: BSD-3-Clause
"""Tables of the alert production database: DiaSources and DiaObjects.

Covers IDs, matching by position, and building rows. Column names are those of
lsst.sdm.schemas, fluxes are in nJy, positions in degrees, times in MJD TAI.
"""

from typing import Any

import numpy as np
import pandas
from astropy.table import Table
from scipy.spatial import cKDTree

__all__ = (
    "dia_source_ids",
    "make_dia_sources",
    "match_to_objects",
    "update_dia_objects",
)

_DETECTOR_BITS, _COUNT_BITS = 9, 12
_VISIT_BITS = 63 - _DETECTOR_BITS - _COUNT_BITS
_BANDS = "ugrizy"


def dia_source_ids(visit: int, detector: int, count: int) -> np.ndarray:
    """Return IDs that are unique across visits and detectors.

    Parameters
    ----------
    visit : `int`
        Visit ID, below 2^42.
    detector : `int`
        Detector number, below 512.
    count : `int`
        Number of IDs, at most 4096.

    Returns
    -------
    ids : `numpy.ndarray` of `int64`
        Positive, in ascending order.

    Raises
    ------
    ValueError
        Raised if one of the numbers is too large.
    """
    limits = (1 << _VISIT_BITS, 1 << _DETECTOR_BITS, (1 << _COUNT_BITS) + 1)
    for name, value, limit in zip(
        ("visit", "detector", "count"), (visit, detector, count), limits, strict=True
    ):
        if not 0 <= value < limit:
            raise ValueError(f"{name} {value} does not fit into a DiaSource ID, it must be below {limit}")
    first = ((visit << _DETECTOR_BITS) | detector) << _COUNT_BITS
    return first + np.arange(count, dtype=np.int64)


def match_to_objects(
    ra_deg: np.ndarray,
    dec_deg: np.ndarray,
    objects: pandas.DataFrame,
    radius_arcsec: float,
) -> np.ndarray:
    """Find the object of each source.

    Parameters
    ----------
    ra_deg, dec_deg : `numpy.ndarray`, (n,)
        Positions of the sources, ICRS degrees.
    objects : `pandas.DataFrame`
        Objects with columns ``ra`` and ``dec``, ICRS degrees.
    radius_arcsec : `float`
        Largest distance of a source from its object.

    Returns
    -------
    rows : `numpy.ndarray` of `int`, (n,)
        Row number of the object, -1 for none. Two sources never share an
        object: the nearer one gets it.
    """
    rows = np.full(len(ra_deg), -1, dtype=np.intp)
    if not len(ra_deg) or objects.empty:
        return rows
    chord = 2.0 * np.sin(np.radians(radius_arcsec / 3600.0) / 2.0)
    tree = cKDTree(_unit_vectors(objects["ra"].to_numpy(), objects["dec"].to_numpy()))
    distance, nearest = tree.query(_unit_vectors(ra_deg, dec_deg), distance_upper_bound=chord)
    matched_rows: set[int] = set()
    for source in np.argsort(distance, kind="stable"):
        if np.isfinite(distance[source]) and int(nearest[source]) not in matched_rows:
            matched_rows.add(int(nearest[source]))
            rows[source] = nearest[source]
    return rows


def _unit_vectors(ra_deg: np.ndarray, dec_deg: np.ndarray) -> np.ndarray:
    ra, dec = np.radians(np.asarray(ra_deg, dtype=float)), np.radians(np.asarray(dec_deg, dtype=float))
    return np.column_stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)])


def make_dia_sources(
    candidates: Table, visit: int, detector: int, processed_mjd_tai: float, pixel_scale_arcsec: float
) -> pandas.DataFrame:
    """Convert accepted candidates to DiaSources without an object.

    Parameters
    ----------
    candidates : `astropy.table.Table`
        Rows of ``dia_source_detector`` that were not rejected.
    visit, detector : `int`
        IDs that become part of the source IDs.
    processed_mjd_tai : `float`
        Time of processing, TAI modified Julian date.
    pixel_scale_arcsec : `float`
        Size of a pixel, arcsec.

    Returns
    -------
    sources : `pandas.DataFrame`
        All columns that the database requires, except for ``diaObjectId``.
    """
    count = len(candidates)
    error_deg = np.asarray(candidates["xy_err"]) * pixel_scale_arcsec / 3600.0
    cos_dec = np.cos(np.radians(np.asarray(candidates["dec"])))
    flux, science_flux = np.asarray(candidates["flux"]), np.asarray(candidates["science_flux"])
    psf_moment = (np.asarray(candidates["psf_fwhm_px"]) * pixel_scale_arcsec / 2.3548) ** 2
    columns: dict[str, Any] = {
        "diaSourceId": dia_source_ids(visit, detector, count),
        "visit": np.full(count, visit, dtype=np.int64),
        "detector": np.full(count, detector, dtype=np.int16),
        "midpointMjdTai": np.asarray(candidates["midpoint_mjd_tai"], dtype=float),
        "exposureTime": np.asarray(candidates["exposure_time_s"], dtype=np.float32),
        "ra": np.asarray(candidates["ra"], dtype=float),
        "raErr": (error_deg / cos_dec).astype(np.float32),
        "dec": np.asarray(candidates["dec"], dtype=float),
        "decErr": error_deg.astype(np.float32),
        "x": np.asarray(candidates["x"], dtype=np.float32),
        "xErr": np.asarray(candidates["xy_err"], dtype=np.float32),
        "y": np.asarray(candidates["y"], dtype=np.float32),
        "yErr": np.asarray(candidates["xy_err"], dtype=np.float32),
        "isNegative": flux < 0.0,
        "snr": np.asarray(candidates["snr"], dtype=np.float32),
        "psfFlux": flux.astype(np.float32),
        "psfFluxErr": np.asarray(candidates["flux_err"], dtype=np.float32),
        "psfChi2": np.asarray(candidates["chi2"], dtype=np.float32),
        "psfNdata": np.asarray(candidates["pixel_count"], dtype=np.int32),
        "scienceFlux": science_flux.astype(np.float32),
        "scienceFluxErr": np.asarray(candidates["science_flux_err"], dtype=np.float32),
        "templateFlux": (science_flux - flux).astype(np.float32),
        "ixxPSF": psf_moment.astype(np.float32),
        "iyyPSF": psf_moment.astype(np.float32),
        "ixyPSF": np.zeros(count, dtype=np.float32),
        "band": np.asarray(candidates["band"]).astype(object),
        "bboxSize": np.ceil(np.sqrt(np.asarray(candidates["pixel_count"]))).astype(np.int32),
        "trailNdata": np.zeros(count, dtype=np.int32),
        "dipoleNdata": np.zeros(count, dtype=np.int32),
        "isDipole": np.zeros(count, dtype=bool),
        "timeProcessedMjdTai": np.full(count, processed_mjd_tai),
    }
    return pandas.DataFrame(columns)


def update_dia_objects(
    sources: pandas.DataFrame, objects: pandas.DataFrame, history: pandas.DataFrame, stored_mjd_tai: float
) -> pandas.DataFrame:
    """Make new versions of the objects that the sources belong to.

    Parameters
    ----------
    sources : `pandas.DataFrame`
        New DiaSources with ``diaObjectId``, one per object.
    objects : `pandas.DataFrame`
        Known DiaObjects; an object without a row is new.
    history : `pandas.DataFrame`
        Known DiaSources of those objects, also of visits that were taken later.
    stored_mjd_tai : `float`
        Time of storing, from which the new versions are valid, TAI modified Julian date.

    Returns
    -------
    updated : `pandas.DataFrame`
        One row per new source, in the same order.
    """
    known = objects.set_index("diaObjectId")[["nDiaSources", "firstDiaSourceMjdTai"]]
    columns = ["diaObjectId", "ra", "dec", "band", "psfFlux", "psfFluxErr", "midpointMjdTai"]
    past = history[history["diaObjectId"].isin(sources["diaObjectId"])][columns]
    every = pandas.concat([past, sources[columns]], ignore_index=True) if len(past) else sources[columns]
    groups = dict(tuple(every.groupby("diaObjectId")))
    rows = []
    for object_id, time in zip(sources["diaObjectId"], sources["midpointMjdTai"], strict=True):
        row = _summary(groups[object_id])
        count, first = 0, time
        if object_id in known.index:
            count, first = known.loc[object_id]
        rows.append(
            {
                "diaObjectId": int(object_id),
                # The database sets both; if they are missing, it adds them in a way that pandas deprecates.
                "validityStartMjdTai": stored_mjd_tai,
                "validityEndMjdTai": float("nan"),
                "nDiaSources": int(count) + 1,
                "firstDiaSourceMjdTai": min(float(first), float(time)),
                "lastDiaSourceMjdTai": float(groups[object_id]["midpointMjdTai"].max()),
                **row,
            }
        )
    updated = pandas.DataFrame(rows)
    counts = {name: "int32" for name in updated.columns if name.endswith("Ndata") or name == "nDiaSources"}
    return updated.astype(counts)


def _summary(sources: pandas.DataFrame) -> dict[str, float | int]:
    """Return mean position and fluxes by band of one object's sources."""
    summary: dict[str, float | int] = {"ra": _mean_ra(sources["ra"]), "dec": float(sources["dec"].mean())}
    for band in _BANDS:
        in_band = sources[sources["band"] == band]
        summary[f"{band}_psfFluxNdata"] = len(in_band)
        if in_band.empty:
            continue
        flux = in_band["psfFlux"].to_numpy(dtype=float)
        weight = 1.0 / in_band["psfFluxErr"].to_numpy(dtype=float) ** 2
        summary[f"{band}_psfFluxMean"] = float((flux * weight).sum() / weight.sum())
        summary[f"{band}_psfFluxMeanErr"] = float(1.0 / np.sqrt(weight.sum()))
        summary[f"{band}_psfFluxMin"] = float(flux.min())
        summary[f"{band}_psfFluxMax"] = float(flux.max())
        if len(in_band) > 1:
            summary[f"{band}_psfFluxSigma"] = float(flux.std(ddof=1))
    return summary


def _mean_ra(ra_deg: pandas.Series) -> float:
    """Average right ascensions that may lie on both sides of 0."""
    first = float(ra_deg.iloc[0])
    offset = (ra_deg.to_numpy(dtype=float) - first + 180.0) % 360.0 - 180.0
    return float((first + offset.mean()) % 360.0)
