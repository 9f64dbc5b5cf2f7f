# SPDX-License-Identifier: BSD-3-Clause
"""The description of one exposure and the FITS header made from it."""

import enum
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from ppdaemon.clock import day_obs, tai_iso
from ppdaemon.demo.geometry import CAMERA_NAME

__all__ = ("CAMERA_CODES", "ExposurePlan", "ImageType", "primary_header")

CAMERA_CODES = {
    "LATISS": "AT",
    "LSSTComCam": "CC",
    "LSSTComCamSim": "CC",
    "LSSTCam": "MC",
    "LSSTCamSim": "MC",
    "LSST-TS8": "TS",
    CAMERA_NAME: "DC",
}
"""The cameras that can be simulated, and the first part of their obsids."""

_MJD_OF_1970 = 40587.0
_READOUT_S = 2.3
# A time span of length 0 overlaps nothing, so that no calibration would be valid for a bias.
_SHORTEST_S = 0.001
_AZIMUTH_DEG, _ELEVATION_DEG, _AIRMASS = 0.0, 60.0, 1.155
"""The simulated Earth does not turn: the demo works at any hour."""
_OBSERVATORY = (1819093.567, -5208411.765, -3195180.588)
"""Geocentric position of Cerro Pachon, m."""


class ImageType(enum.StrEnum):
    """IMGTYPE as the header has it."""

    SCIENCE = "OBJECT"
    BIAS = "BIAS"
    DARK = "DARK"
    FLAT = "FLAT"


class ExposurePlan(BaseModel):
    """One exposure of a camera: the source of all values in its raws and headers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    instrument: str = CAMERA_NAME
    """One of `CAMERA_CODES`."""
    controller: Literal["O", "S"] = "O"
    """O for the observatory's control system, S for a simulation."""
    seq_num: int = Field(gt=0, lt=100_000)
    """Counter within the observing day."""
    group: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    """The visit's group, GROUPID."""
    snap_index: int = Field(default=1, ge=1)
    """CURINDEX, from 1."""
    snap_count: int = Field(default=1, ge=1)
    """MAXINDEX."""
    physical_filter: str
    """FILTER, such as ``r_03``."""
    ra_deg: float | None = Field(default=None, ge=0.0, lt=360.0)
    dec_deg: float | None = Field(default=None, ge=-90.0, le=90.0)
    rotpa_deg: float | None = None
    """Position angle of focal-plane +Y, north through east. Science exposures need all three."""
    exposure_s: float = Field(default=30.0, ge=0.0)
    image_type: ImageType = ImageType.SCIENCE
    program: str = "BLOCK-365"
    reason: str = "demo"
    target: str = "demo-field"
    begin_tai_s: float
    """When the shutter opens, TAI seconds since 1970."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.instrument not in CAMERA_CODES:
            raise ValueError(f"unknown instrument {self.instrument!r}, known are {sorted(CAMERA_CODES)}")
        if self.snap_index > self.snap_count:
            raise ValueError(f"snap index {self.snap_index} is not within 0 to {self.snap_count - 1}")
        position = (self.ra_deg, self.dec_deg, self.rotpa_deg)
        if self.image_type is ImageType.SCIENCE and None in position:
            raise ValueError("a science exposure needs ra_deg, dec_deg and rotpa_deg")
        if self.image_type is ImageType.BIAS and self.exposure_s > 0.0:
            raise ValueError("a bias has exposure_s 0")
        return self

    @property
    def day_obs(self) -> int:
        """Observing day, the TAI date minus 12 h, ``YYYYMMDD``."""
        return day_obs(self.begin_tai_s)

    @property
    def exposure_id(self) -> int:
        """Butler exposure ID, day_obs * 100000 + sequence number."""
        return self.day_obs * 100_000 + self.seq_num

    @property
    def obs_id(self) -> str:
        """OBSID, such as ``DC_O_20261122_000012``."""
        return f"{CAMERA_CODES[self.instrument]}_{self.controller}_{self.day_obs}_{self.seq_num:06d}"

    @property
    def end_tai_s(self) -> float:
        """When the shutter closes, TAI seconds since 1970; 1 ms after the opening for a bias."""
        return self.begin_tai_s + max(self.exposure_s, _SHORTEST_S)

    @property
    def mid_mjd_tai(self) -> float:
        """Middle of the exposure, TAI modified Julian date."""
        return _mjd(self.begin_tai_s + self.exposure_s / 2.0)


def _mjd(tai_s: float) -> float:
    return _MJD_OF_1970 + tai_s / 86400.0


def primary_header(plan: ExposurePlan, detector: int, name: str) -> dict[str, Any]:
    """Return the primary header of one detector's raw, the content of its JSON sidecar.

    `name` is the detector's name in file names, such as ``R22_S11``. Null
    values are `None`.
    """
    raft, slot = name.split("_", 1)
    on_sky = plan.image_type is ImageType.SCIENCE
    header: dict[str, Any] = {
        "TIMESYS": "TAI",
        "INSTRUME": plan.instrument,
        "TELESCOP": f"Simulated {plan.instrument}",
        "OBSID": plan.obs_id,
        "GROUPID": plan.group,
        "CAMCODE": CAMERA_CODES[plan.instrument],
        "CONTRLLR": plan.controller,
        "DAYOBS": str(plan.day_obs),
        "SEQNUM": plan.seq_num,
        "CURINDEX": plan.snap_index,
        "MAXINDEX": plan.snap_count,
        "IMGTYPE": plan.image_type.value,
        "PROGRAM": plan.program,
        "REASON": plan.reason,
        "OBJECT": plan.target,
        "RAFTBAY": raft,
        "CCDSLOT": slot,
        "DETECTOR": detector,
        "LSST_NUM": f"SIM-{detector:03d}",
        "FILTER": plan.physical_filter,
        "FILTBAND": plan.physical_filter.split("_")[0],
        "EXPTIME": plan.exposure_s,
        "SHUTTIME": plan.exposure_s,
        "DARKTIME": plan.exposure_s,
    }
    return header | _dates(plan) | _pointing(plan, on_sky) | _site()


def _dates(plan: ExposurePlan) -> dict[str, Any]:
    written_tai_s = plan.end_tai_s + _READOUT_S
    times = {
        "": written_tai_s,
        "-OBS": plan.begin_tai_s,
        "-TRG": plan.end_tai_s,
        "-BEG": plan.begin_tai_s,
        "-AVG": plan.begin_tai_s + plan.exposure_s / 2.0,
        "-END": plan.end_tai_s,
    }
    cards: dict[str, Any] = {}
    for suffix, tai_s in times.items():
        cards[f"DATE{suffix}"] = tai_iso(tai_s)
        cards[f"MJD{suffix}"] = _mjd(tai_s)
    return cards


def _pointing(plan: ExposurePlan, on_sky: bool) -> dict[str, Any]:
    position: dict[str, Any] = {
        "RA": plan.ra_deg,
        "DEC": plan.dec_deg,
        "ROTPA": plan.rotpa_deg,
        "ROTCOORD": "sky",
        "RADESYS": "ICRS",
    }
    for key, value in (("AZ", _AZIMUTH_DEG), ("EL", _ELEVATION_DEG), ("AM", _AIRMASS)):
        for end in ("START", "END"):
            position[key + end] = value if on_sky else None
    return position


def _site() -> dict[str, Any]:
    site = dict(zip(("OBSGEO-X", "OBSGEO-Y", "OBSGEO-Z"), _OBSERVATORY, strict=True))
    return site | {"AIRTEMP": 9.8, "PRESSURE": 744.0, "HUMIDITY": 31.0, "SIMULATE": True}
