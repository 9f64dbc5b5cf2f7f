# SPDX-License-Identifier: BSD-3-Clause
"""The algorithms used by the demo's tasks, on synthetic images."""

import os
from pathlib import Path

import astropy.units as u
import numpy as np
import pandas
import pytest
from lsst.alert.packet import Schema
from numpy.testing import assert_allclose

from ppdaemon.demo.geometry import tangent_wcs
from ppdaemon.demo.tasks.alerts import cutout, publish_alerts
from ppdaemon.demo.tasks.astrometry import fit_tangent_plane, match_catalogs, vote_for_offset
from ppdaemon.demo.tasks.calibrate import CalibrateTask
from ppdaemon.demo.tasks.cosmics import find_cosmic_rays
from ppdaemon.demo.tasks.detect import significance_image
from ppdaemon.demo.tasks.diacatalogs import dia_source_ids, match_to_objects
from ppdaemon.demo.tasks.errors import UncalibratedPointingError
from ppdaemon.demo.tasks.isr import fill_from_sides
from ppdaemon.demo.tasks.matching import convolve, fit_matching_kernel
from ppdaemon.demo.tasks.photometry import point_fluxes
from ppdaemon.demo.tasks.planes import make_image, plane, sky_projection, unusable
from ppdaemon.demo.tasks.psf import Moffat, fit_moffat
from ppdaemon.demo.tasks.warp import warp_patches

SIZE, NOISE = 200, 10.0
PSF = Moffat(4.0, 4.0)


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(7)


def draw(psf: Moffat, x: np.ndarray, y: np.ndarray, flux: np.ndarray, size: int = SIZE) -> np.ndarray:
    """Draw stars on an empty image."""
    column, row = np.meshgrid(np.arange(size), np.arange(size))
    image = np.zeros((size, size))
    for each in zip(x, y, flux, strict=True):
        image += each[2] * psf.at((column - each[0]) ** 2 + (row - each[1]) ** 2)
    return image.astype(np.float32)


def grid(random: np.random.Generator, step: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Return positions that do not overlap."""
    x, y = np.meshgrid(np.arange(20.0, SIZE, step), np.arange(20.0, SIZE, step))
    return (x + random.uniform(-0.5, 0.5, x.shape)).ravel(), (y + random.uniform(-0.5, 0.5, y.shape)).ravel()


def everywhere() -> np.ndarray:
    return np.ones((SIZE, SIZE), dtype=bool)


def test_a_fitted_psf_has_the_width_and_wings_of_the_stars(random: np.random.Generator) -> None:
    x, y = grid(random)
    image = draw(PSF, x, y, np.full(len(x), 1e5)) + random.normal(0.0, NOISE, (SIZE, SIZE))
    fitted = fit_moffat(image, everywhere(), x, y, Moffat(5.0, 3.0))
    assert fitted.fwhm_px == pytest.approx(PSF.fwhm_px, rel=0.01)
    assert fitted.beta == pytest.approx(PSF.beta, rel=0.05)


def test_point_fluxes_are_right_within_their_errors(random: np.random.Generator) -> None:
    x, y = grid(random)
    flux = random.uniform(2e3, 2e4, len(x))
    image = draw(PSF, x, y, flux) + random.normal(0.0, NOISE, (SIZE, SIZE))
    variance = np.full(image.shape, NOISE**2)
    measured = point_fluxes(image, variance, everywhere(), x, y, PSF)
    pull = (measured.flux - flux) / measured.error
    assert abs(pull.mean()) < 0.8
    assert 0.6 < pull.std() < 1.4


def test_a_star_that_is_mostly_masked_has_no_flux() -> None:
    usable = everywhere()
    usable[:, 98:] = False
    measured = point_fluxes(
        np.ones((SIZE, SIZE)), np.ones((SIZE, SIZE)), usable, *np.array([[100.0], [50.0]]), PSF
    )
    assert np.isnan(measured.flux[0])
    assert np.isnan(measured.error[0])


def test_cosmic_rays_are_found_and_stars_are_not(random: np.random.Generator) -> None:
    x, y = grid(random)
    stars = draw(Moffat(3.2, 4.0), x, y, random.uniform(1e3, 1e6, len(x)))
    variance = (stars + NOISE**2).astype(np.float32)
    image = (stars + random.normal(0.0, 1.0, stars.shape) * np.sqrt(variance)).astype(np.float32)
    nothing = np.zeros(image.shape, dtype=bool)
    assert find_cosmic_rays(image, variance, nothing).sum() == 0
    track = np.zeros(image.shape, dtype=bool)
    steps = np.arange(25)
    track[(40 + 0.6 * steps).astype(int), 80 + steps] = True
    track[150, 40] = True
    image[track] += 2000.0
    found = find_cosmic_rays(image, variance, nothing)
    assert found[track].mean() > 0.95
    assert found.sum() < 9 * track.sum()


def test_bad_columns_are_bridged() -> None:
    image = np.tile(np.arange(10.0, dtype=np.float32), (4, 1))
    truth, bad = image.copy(), np.zeros(image.shape, dtype=bool)
    bad[:, 4:6] = True
    image[bad] = 1e6
    fill_from_sides(image, bad)
    assert_allclose(image, truth)


def test_voting_finds_the_pointing_error_among_wrong_pairs(random: np.random.Generator) -> None:
    reference, shift = random.uniform(0.0, 1000.0, (60, 2)), np.array([7.0, -4.0])
    sources = np.concatenate([reference[:25] + shift, random.uniform(0.0, 1000.0, (60, 2))])
    offset, votes = vote_for_offset(sources, reference, 40.0)
    assert_allclose(offset, shift, atol=0.1)
    assert votes >= 20
    matched_sources, matched_references = match_catalogs(sources, reference + offset, 1.0)
    assert set(
        zip(matched_sources[matched_sources < 25], matched_references[matched_sources < 25], strict=True)
    ) == {(k, k) for k in range(25)}


def test_the_tangent_plane_is_fitted_despite_outliers(random: np.random.Generator) -> None:
    truth = tangent_wcs(150.1, 2.2, 12.0, 100.0, -300.0)
    guess = tangent_wcs(150.1003, 2.1998, 12.01, 100.0, -300.0)
    x, y = random.uniform(0.0, 1000.0, (2, 50))
    ra_deg, dec_deg = truth.all_pix2world(x, y, 0)
    error_px = np.where(np.arange(50) % 2, 0.02, 0.2)
    x, y = x + random.normal(0.0, error_px), y + random.normal(0.0, error_px)
    x[:5] += 3.0
    fit = fit_tangent_plane(x, y, ra_deg, dec_deg, error_px, guess)
    assert not fit.used[:5].any()
    assert fit.used[5:].mean() > 0.9
    assert fit.scatter_arcsec < 0.03
    corners = np.array([[0.0, 0.0], [999.0, 0.0], [0.0, 999.0], [999.0, 999.0]])
    back = truth.all_world2pix(fit.wcs.all_pix2world(corners, 0), 0)
    assert_allclose(back, corners, atol=0.03)


def test_a_patch_warped_to_a_rotated_grid_has_the_same_flux(random: np.random.Generator) -> None:
    x, y = grid(random)
    source_wcs = tangent_wcs(150.0, 2.0, 0.0, 99.5, 99.5)
    pixels = draw(PSF, x, y, np.full(len(x), 1e4))
    patch = make_image(pixels, np.ones_like(pixels), {}, u.nJy, projection=sky_projection(source_wcs))
    wcs = tangent_wcs(150.0, 2.0, 30.0, 49.5, 49.5)
    warped = warp_patches([patch], wcs, (100, 100))
    new_x, new_y = wcs.all_world2pix(*source_wcs.all_pix2world(x, y, 0), 0)
    inside = (new_x > 15) & (new_x < 85) & (new_y > 15) & (new_y < 85)
    flux = point_fluxes(
        warped.pixels, warped.variance, ~warped.no_data, new_x[inside], new_y[inside], PSF
    ).flux
    assert inside.sum() >= 3
    assert_allclose(flux, 1e4, rtol=0.01)
    assert warped.coverage == 1.0


def test_pixels_outside_all_patches_have_no_data() -> None:
    pixels = np.ones((SIZE, SIZE), dtype=np.float32)
    projection = sky_projection(tangent_wcs(150.0, 2.0, 0.0, 99.5, 99.5))
    patch = make_image(pixels, pixels, {}, u.nJy, projection=projection)
    warped = warp_patches([patch], tangent_wcs(150.0, 2.0, 0.0, -0.5, 99.5), (SIZE, SIZE))
    assert 0.45 < warped.coverage < 0.51
    assert warped.no_data[:, -90:].all()
    assert warp_patches([patch], tangent_wcs(151.0, 2.0, 0.0, 99.5, 99.5), (SIZE, SIZE)).patch_count == 0


def test_the_kernel_reproduces_the_other_image_from_the_sharper_one(random: np.random.Generator) -> None:
    x, y = grid(random)
    flux = random.uniform(5e4, 2e5, len(x))
    sharp, blurred = draw(Moffat(3.0, 4.0), x, y, flux), draw(Moffat(4.4, 4.0), x, y, 0.8 * flux)
    blurred[90:110, 90:110] += 500.0
    noisy = (blurred + 30.0 + random.normal(0.0, NOISE, sharp.shape)).astype(np.float32)
    variance = np.full(sharp.shape, NOISE**2) + blurred
    kernel = fit_matching_kernel(
        sharp, noisy, variance, everywhere(), x, y, width_px=1.5, half_width_px=10, stamp_half_width_px=12
    )
    assert kernel.flux_ratio == pytest.approx(0.8, rel=0.02)
    assert kernel.background == pytest.approx(30.0, abs=3.0)
    residual = noisy - convolve(sharp, kernel.pixels) - kernel.background
    residual[90:110, 90:110] = 0.0
    assert np.std((residual / np.sqrt(variance))[20:-20, 20:-20]) < 1.15


def test_significance_is_normal_in_noise_and_right_for_a_star(random: np.random.Generator) -> None:
    variance = np.full((SIZE, SIZE), NOISE**2)
    variance[:, 100:] *= 9.0
    noise = random.normal(0.0, 1.0, variance.shape) * np.sqrt(variance)
    star = draw(PSF, np.array([50.0]), np.array([100.0]), np.array([4e3]))
    significance, seen = significance_image(noise, variance, everywhere(), PSF)
    assert significance[20:-20, 20:-20].std() == pytest.approx(1.0, abs=0.1)
    assert seen[100, 100] == pytest.approx(1.0, abs=0.01)
    expected = 4e3 * np.sqrt((PSF.stamp(10) ** 2).sum()) / NOISE
    with_star, _ = significance_image(star, variance, everywhere(), PSF)
    assert with_star[100, 50] == pytest.approx(expected, rel=0.02)


def test_source_ids_are_unique_across_visits_and_detectors() -> None:
    ids = np.concatenate(
        [
            dia_source_ids(visit, detector, 4096)
            for visit in (2026112200001, 2026112200002)
            for detector in (0, 8)
        ]
    )
    assert len(np.unique(ids)) == len(ids)
    assert (ids > 0).all()


@pytest.mark.parametrize(
    ("visit", "detector", "count"), [(1 << 42, 0, 1), (1, 512, 1), (1, 1, 4097), (-1, 0, 1)]
)
def test_ids_that_do_not_fit_are_refused(visit: int, detector: int, count: int) -> None:
    with pytest.raises(ValueError, match="does not fit into a DiaSource ID"):
        dia_source_ids(visit, detector, count)


def test_each_object_goes_to_its_nearest_source_only() -> None:
    objects = pandas.DataFrame({"ra": [0.0001, 10.0], "dec": [0.0, 60.0]})
    ra_deg = np.array([359.99995, 0.0002, 10.0 + 0.9 / 3600 / 0.5, 20.0])
    rows = match_to_objects(ra_deg, np.array([0.0, 0.0, 60.0, 0.0]), objects, 1.0)
    assert rows.tolist() == [-1, 0, 1, -1]


def test_planes_that_an_image_lacks_are_empty() -> None:
    pixels = np.zeros((5, 6), dtype=np.float32)
    hit = np.zeros(pixels.shape, dtype=bool)
    hit[2, 3] = True
    image = make_image(pixels, pixels, {"COSMIC_RAY": hit, "VIGNETTED": ~hit}, u.nJy)
    assert not plane(image, "NO_SUCH_PLANE").any()
    assert (unusable(image) == hit).all()


def test_a_cutout_at_the_corner_is_padded_and_has_the_right_projection(tmp_path: Path) -> None:
    from astropy.io import fits
    from astropy.wcs import WCS

    wcs = tangent_wcs(150.0, 2.0, 0.0, 20.0, 20.0)
    pixels = np.arange(40.0 * 40.0).reshape(40, 40)
    path = tmp_path / "cutout.fits"
    path.write_bytes(cutout(pixels, 1.2, 3.0, 5, wcs))
    with fits.open(path) as hdus:
        data, header = hdus[0].data, hdus[0].header
        assert data.shape == (11, 11)
        assert np.isnan(data[:, :4]).all()
        assert data[5, 5] == pixels[3, 1]
        assert_allclose(WCS(header).all_pix2world(5, 5, 0), wcs.all_pix2world(1, 3, 0))


def test_an_alert_file_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "alerts" / "a.avro"
    schema = Schema.from_uri()
    publish_alerts(path, schema, [])
    before = path.read_bytes()
    with pytest.raises(FileExistsError):
        publish_alerts(path, schema, [])
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["a.avro"]


def test_the_error_names_the_pointing_keywords_that_a_header_lacks() -> None:
    pixels = np.ones((5, 6), dtype=np.float32)
    metadata = {"obs_id": "DC_O_20261122_000001", "boresight_ra_deg": 150.0, "rotpa_deg": 0.0, "detector": 4}
    image = make_image(pixels, pixels, {}, u.electron, metadata=metadata)
    with pytest.raises(
        UncalibratedPointingError, match="DC_O_20261122_000001 lacks boresight_dec_deg"
    ) as caught:
        CalibrateTask().run(image, [])
    assert caught.value.metadata == {"missing": "boresight_dec_deg"}
