# SPDX-License-Identifier: BSD-3-Clause
"""Score alerts against the injected truth.

Completeness counts injected transients whose signal to noise in their image is
above a threshold. That signal to noise is the transient's true flux over the
standard deviation of a PSF fit at its true position, which follows from the
image: its variance, mask, projection and PSF (the same noise that
`~ppdaemon.demo.tasks.photometry.point_fluxes` returns for any source there). A
transient with more than half of its PSF masked or outside the image does not
count as injected.

An alert is false if neither a transient nor a variable star, however faint, is
within the match radius.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
from lsst.images import MaskedImage
from scipy.spatial import cKDTree

from ppdaemon.demo.geometry import PIXEL_SCALE_ARCSEC
from ppdaemon.demo.sky import Sky
from ppdaemon.demo.tasks.calibrate import psf_of
from ppdaemon.demo.tasks.photometry import point_fluxes
from ppdaemon.demo.tasks.planes import projection_of, unusable
from ppdaemon.demo.truth import TRANSIENT, truth_table

__all__ = ("DetectorScore", "read_alerts", "score_alerts", "total_score")

SNR_MIN = 10.0
"""Signal to noise above which a transient must be found."""
RADIUS_ARCSEC = 1.0
"""Largest distance of an alert from its source."""


@dataclass(frozen=True, slots=True)
class DetectorScore:
    """The score of one detector, or the sum of several."""

    injected: int
    """Transients above the threshold."""
    recovered: int
    """Injected transients with an alert."""
    false_positives: int
    """Alerts without a real source."""
    alerts: int
    """All alerts."""
    detectors: int = 1
    """Number of detectors in the sum."""
    missed: tuple[int, ...] = ()
    """IDs of the transients without an alert."""

    @property
    def completeness(self) -> float:
        """Fraction of the injected transients that was recovered; 1 if there were none."""
        return self.recovered / self.injected if self.injected else 1.0


def total_score(scores: Iterable[DetectorScore]) -> DetectorScore:
    """Add up the scores of several detectors."""
    each = list(scores)
    return DetectorScore(
        injected=sum(score.injected for score in each),
        recovered=sum(score.recovered for score in each),
        false_positives=sum(score.false_positives for score in each),
        alerts=sum(score.alerts for score in each),
        detectors=sum(score.detectors for score in each),
        missed=tuple(number for score in each for number in score.missed),
    )


def read_alerts(path: Path | str) -> list[dict[str, Any]]:
    """Read the alert packets of an Avro file with the schema in the file."""
    with Path(path).open("rb") as stream:
        return [dict(packet) for packet in fastavro.reader(stream) if isinstance(packet, dict)]


def score_alerts(path: Path | str, image: MaskedImage, sky: Sky) -> DetectorScore:
    """Score the alert file of one visit and detector.

    `image` is the detector's ``difference_image``, or ``preliminary_visit_image`` whose noise is a little
    lower.
    """
    metadata: dict[str, Any] = dict(image.metadata)
    middle_mjd_tai = (float(metadata["mjd_begin_tai"]) + float(metadata["mjd_end_tai"])) / 2.0
    truth = truth_table(sky, middle_mjd_tai, str(metadata["band"]))
    alerts, wcs = read_alerts(path), projection_of(image)
    true_xy = np.column_stack(wcs.all_world2pix(truth["ra"].value, truth["dec"].value, 0))
    height, width = image.image.array.shape
    inside = (true_xy > -0.5).all(axis=1) & (true_xy[:, 0] < width - 0.5) & (true_xy[:, 1] < height - 0.5)
    ra_dec = np.array([(each["diaSource"]["ra"], each["diaSource"]["dec"]) for each in alerts]).reshape(-1, 2)
    alert_xy = np.column_stack(wcs.all_world2pix(ra_dec[:, 0], ra_dec[:, 1], 0)) if len(alerts) else ra_dec
    radius_px = RADIUS_ARCSEC / PIXEL_SCALE_ARCSEC
    expected = np.flatnonzero(inside & (truth["kind"] == TRANSIENT))
    # All sources count as real, but only bright enough transients as injected.
    snr = _signal_to_noise(image, true_xy[expected], truth["difference_njy"].value[expected])
    expected = expected[snr > SNR_MIN]
    found = _within(true_xy[expected], alert_xy, radius_px)
    real = _within(alert_xy, true_xy, radius_px)
    return DetectorScore(
        injected=len(expected),
        recovered=int(found.sum()),
        false_positives=int((~real).sum()),
        alerts=len(alerts),
        missed=tuple(int(number) for number in truth["id"][expected[~found]]),
    )


def _signal_to_noise(image: MaskedImage, xy: np.ndarray, flux_njy: np.ndarray) -> np.ndarray:
    """Return flux over the error of a PSF fit; 0 if too much of the PSF is masked."""
    fits = point_fluxes(
        image.image.array, image.variance.array, ~unusable(image), xy[:, 0], xy[:, 1], psf_of(image)
    )
    return np.asarray(np.nan_to_num(flux_njy / fits.error))


def _within(points: np.ndarray, others: np.ndarray, radius: float) -> np.ndarray:
    """Return for each point whether another one is within a radius."""
    if not len(points) or not len(others):
        return np.zeros(len(points), dtype=bool)
    distance, _ = cKDTree(others).query(points)
    return np.asarray(distance <= radius)
