# SPDX-License-Identifier: BSD-3-Clause
"""Write raws as a camera does: FITS, sidecar, and the list of expected sensors.

One exposure of DemoCam, all nine detectors::

    plan = ExposurePlan(seq_num=1, group="2026-11-22T03:25:16.951", physical_filter="r_03",
                        ra_deg=150.1, dec_deg=2.2, rotpa_deg=0.0, begin_tai_s=1795317916.0)
    sky = Sky()
    write_expected_sensors(raw_root, plan, range(9))
    for detector in range(9):
        path = write_raw(raw_root, plan, detector, render_raw(plan, detector, sky))

`encode_raw` returns the contents without writing them, `encode_blank` those of
a camera that is not rendered. Files appear by rename.
"""

import io
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from ppdaemon.camera import load_camera
from ppdaemon.demo.geometry import AMPLIFIERS, RAW_SHAPE
from ppdaemon.demo.plan import ExposurePlan, primary_header
from ppdaemon.raws.layout import Layout
from ppdaemon.raws.path import RawFileKind, RawName

__all__ = (
    "detector_names",
    "encode_blank",
    "encode_raw",
    "encode_sidecar",
    "exposure_folder",
    "path_in_layout",
    "publish",
    "raw_path",
    "write_expected_sensors",
    "write_raw",
)

# A valid image, small so that a camera of 205 detectors is written quickly.
_BLANK_SHAPE = (64, 64)
_GUIDER = "_SG"


def detector_names(instrument: str) -> dict[int, tuple[str, str]]:
    """Return name (as in file names) and purpose of a camera's detectors, by number.

    Raises `ConfigError` if the camera has no focal-plane table.
    """
    detectors = load_camera(instrument).detectors.values()
    # The detector of LATISS is RXX_S00 in the table and R00_S00 in file names.
    return {each.id: (each.name.replace("RXX", "R00"), each.purpose) for each in detectors}


def exposure_folder(plan: ExposurePlan) -> Path:
    """Return the folder of an exposure, relative to the raw root."""
    return Path(plan.instrument, str(plan.day_obs), plan.obs_id)


def raw_path(plan: ExposurePlan, name: str) -> Path:
    """Return a raw's path in the layout of LSST cameras, relative to the raw root.

    `name` is the detector's name in file names, such as ``R22_S11``. The
    sidecar has the suffix ``.json``.
    """
    suffix = "_guider.fits" if _GUIDER in name else ".fits"
    return exposure_folder(plan) / f"{plan.obs_id}_{name}{suffix}"


def path_in_layout(layout: Layout, plan: ExposurePlan, detector: int, name: str) -> Path:
    """Return a raw's path in any layout, relative to the raw root, ending in ``.fits``."""
    raw = RawName(
        RawFileKind.GUIDER if _GUIDER in name else RawFileKind.IMAGE,
        plan.instrument,
        plan.exposure_id,
        plan.day_obs,
        detector,
        obsid=plan.obs_id,
        group=plan.group,
        snap=plan.snap_index - 1,  # in paths from 0, in headers from 1
        detector_name=name,
        filter=plan.physical_filter,
        label=f"{plan.obs_id}_{name}",
    )
    return Path(layout.path_of(raw))


def encode_raw(plan: ExposurePlan, detector: int, pixels: np.ndarray) -> tuple[bytes, bytes]:
    """Make FITS file and JSON sidecar of one DemoCam detector.

    `pixels` are ADU as uint16, (1024, 1088), from
    `~ppdaemon.demo.render.render_raw`. The FITS file has one Rice-compressed
    extension per amplifier. Raises `ValueError` for another shape or type.
    """
    if pixels.shape != RAW_SHAPE or pixels.dtype != np.uint16:
        raise ValueError(f"a raw is uint16 of shape {RAW_SHAPE}, not {pixels.dtype} of shape {pixels.shape}")
    name = detector_names(plan.instrument)[detector][0]
    header = primary_header(plan, detector, name)
    extensions = []
    for amplifier in AMPLIFIERS:
        header[f"GAIN{amplifier.name}"] = amplifier.gain
        header[f"RDN{amplifier.name}"] = amplifier.read_noise_electrons
        hdu = _compressed(np.ascontiguousarray(pixels[:, amplifier.raw_columns]), amplifier.name)
        hdu.header["GAIN"] = (amplifier.gain, "electron/ADU")
        hdu.header["RDNOISE"] = (amplifier.read_noise_electrons, "electron")
        hdu.header["DATASEC"] = _section(amplifier.data_columns, amplifier.raw_columns)
        hdu.header["BIASSEC"] = _section(amplifier.overscan_columns, amplifier.raw_columns)
        extensions.append(hdu)
    return _encode_fits(header, extensions), encode_sidecar(header)


def encode_blank(plan: ExposurePlan, detector: int, name: str) -> tuple[bytes, bytes]:
    """Make a small valid FITS file and a JSON sidecar, both with full headers.

    For cameras that are not rendered.
    """
    header = primary_header(plan, detector, name)
    noise = np.random.default_rng([plan.exposure_id, detector])
    pixels = noise.normal(1000.0, 4.0, _BLANK_SHAPE).astype(np.uint16)
    return _encode_fits(header, [_compressed(pixels, "Segment00")]), encode_sidecar(header)


def encode_sidecar(header: dict[str, Any]) -> bytes:
    """Return a primary header as the content of a JSON sidecar."""
    return json.dumps(header, indent=1).encode()


def write_raw(root: Path | str, plan: ExposurePlan, detector: int, pixels: np.ndarray) -> Path:
    """Write one DemoCam detector below the raw root, the sidecar first; return the FITS path."""
    image, sidecar = encode_raw(plan, detector, pixels)
    path = Path(root) / raw_path(plan, detector_names(plan.instrument)[detector][0])
    # In the order of a real camera: a program that finds the image can rely on the sidecar.
    publish(path.with_suffix(".json"), sidecar)
    publish(path, image)
    return path


def write_expected_sensors(root: Path | str, plan: ExposurePlan, detectors: Iterable[int]) -> Path:
    """Write the list of an exposure's detectors; a camera does so before its images."""
    names = detector_names(plan.instrument)
    expected = {names[detector][0]: names[detector][1] for detector in detectors}
    path = Path(root) / exposure_folder(plan) / f"{plan.obs_id}_expectedSensors.json"
    publish(path, json.dumps({"obsId": plan.obs_id, "expectedSensors": expected}, indent=1).encode())
    return path


def publish(path: Path, content: bytes) -> None:
    """Write a file so that it appears complete: under another name, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    partial.write_bytes(content)
    # The rename is atomic: no reader sees an incomplete file.
    os.replace(partial, path)


def _compressed(pixels: np.ndarray, name: str) -> fits.CompImageHDU:
    return fits.CompImageHDU(pixels, name=name, compression_type="RICE_1", tile_shape=(16, pixels.shape[1]))


def _section(columns: slice, amplifier_columns: slice) -> str:
    """Return columns of the assembled raw as a FITS section of their amplifier."""
    first = columns.start - amplifier_columns.start + 1
    return f"[{first}:{columns.stop - amplifier_columns.start},1:{RAW_SHAPE[0]}]"


def _encode_fits(header: dict[str, Any], extensions: list[fits.CompImageHDU]) -> bytes:
    primary = fits.PrimaryHDU()
    for key, value in header.items():
        primary.header[key] = value
    stream = io.BytesIO()
    fits.HDUList([primary, *extensions]).writeto(stream)
    return stream.getvalue()
