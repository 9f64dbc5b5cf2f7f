# SPDX-License-Identifier: BSD-3-Clause
"""Translate a DemoCam header (FITS or JSON sidecar) to an ObservationInfo."""

from collections.abc import Mapping
from typing import Any, ClassVar

import astropy.units as u
from astro_metadata_translator import cache_translation
from astro_metadata_translator.translators import FitsTranslator
from astro_metadata_translator.translators.helpers import altaz_from_degree_headers
from astropy.coordinates import AltAz, Angle, SkyCoord
from astropy.time import TimeDelta

from ppdaemon.demo.geometry import CAMERA_NAME

__all__ = ("DemoCamTranslator",)

_OBSERVATION_TYPES = {"OBJECT": "science"}
_MAX_DETECTORS = 16


class DemoCamTranslator(FitsTranslator):
    """Metadata translator for DemoCam: the LSST cameras' keywords, all times in TAI."""

    name = CAMERA_NAME
    supported_instrument = CAMERA_NAME
    default_resource_root = None

    _observing_day_offset: ClassVar[TimeDelta] = TimeDelta(12 * 3600, format="sec", scale="tai")

    _const_map = {
        "has_simulated_content": True,
        "boresight_rotation_coord": "sky",
        "focus_z": 0.0 * u.m,
    }
    _trivial_map = {
        "instrument": "INSTRUME",
        "telescope": "TELESCOP",
        "physical_filter": "FILTER",
        "observation_id": "OBSID",
        "observation_counter": "SEQNUM",
        "observation_reason": "REASON",
        "science_program": "PROGRAM",
        "exposure_group": "GROUPID",
        "object": "OBJECT",
        "exposure_time": ("SHUTTIME", {"unit": u.s}),
        "exposure_time_requested": ("EXPTIME", {"unit": u.s}),
        "dark_time": ("DARKTIME", {"unit": u.s}),
        "detector_name": "CCDSLOT",
        "detector_group": "RAFTBAY",
        "detector_serial": "LSST_NUM",
        "detector_num": "DETECTOR",
        "temperature": ("AIRTEMP", {"unit": u.deg_C}),
        "pressure": ("PRESSURE", {"unit": u.hPa}),
        "relative_humidity": "HUMIDITY",
    }

    @classmethod
    def observing_date_to_offset(cls, observing_date: Any) -> TimeDelta:
        """Return 12 h: the observing day rolls over at noon TAI."""
        return cls._observing_day_offset

    @classmethod
    def can_translate(cls, header: Mapping[str, Any], filename: str | None = None) -> bool:
        """Return whether a header is from DemoCam."""
        return header.get("INSTRUME") == cls.supported_instrument

    @cache_translation
    def to_observing_day(self) -> int:
        """Return DAYOBS as an integer."""
        self._used_these_cards("DAYOBS")
        return int(self._header["DAYOBS"])

    @cache_translation
    def to_exposure_id(self) -> int:
        """Return day_obs * 100000 + sequence number."""
        return self.to_observing_day() * 100000 + int(self.to_observation_counter())

    @cache_translation
    def to_visit_id(self) -> int:
        """Return the exposure's ID: each snap is a separate visit."""
        return self.to_exposure_id()

    @cache_translation
    def to_detector_unique_name(self) -> str:
        """Return raft and slot, ``R22_S11``."""
        return f"{self.to_detector_group()}_{self.to_detector_name()}"

    @cache_translation
    def to_detector_exposure_id(self) -> int:
        """Return an ID of detector and exposure."""
        return self.to_exposure_id() * _MAX_DETECTORS + int(self.to_detector_num())

    @cache_translation
    def to_group_counter_start(self) -> int:
        """Return the sequence number of the group's first snap."""
        self._used_these_cards("CURINDEX")
        return int(self.to_observation_counter()) - int(self._header["CURINDEX"]) + 1

    @cache_translation
    def to_group_counter_end(self) -> int:
        """Return the sequence number of the group's last snap."""
        self._used_these_cards("MAXINDEX")
        return self.to_group_counter_start() + int(self._header["MAXINDEX"]) - 1

    @cache_translation
    def to_observation_type(self) -> str:
        """Return the image type in lower case; OBJECT is ``science``."""
        image_type = str(self._header["IMGTYPE"]).strip().upper()
        self._used_these_cards("IMGTYPE")
        return _OBSERVATION_TYPES.get(image_type, image_type.lower())

    @cache_translation
    def to_can_see_sky(self) -> bool:
        """Return whether the shutter opened to the sky."""
        return self.to_observation_type() == "science"

    @cache_translation
    def to_tracking_radec(self) -> SkyCoord | None:
        """Return the boresight, or `None` where RA or DEC is null."""
        self._used_these_cards("RA", "DEC")
        if not self.are_keys_ok(["RA", "DEC"]):
            return None
        return SkyCoord(self._header["RA"], self._header["DEC"], unit=u.deg, frame="icrs")

    @cache_translation
    def to_boresight_rotation_angle(self) -> Angle | None:
        """Return the position angle of focal-plane +Y, or `None` where ROTPA is null."""
        self._used_these_cards("ROTPA")
        return Angle(self._header["ROTPA"] * u.deg) if self.is_key_ok("ROTPA") else None

    @cache_translation
    def to_boresight_airmass(self) -> float | None:
        """Return the airmass at shutter open, `None` off the sky."""
        self._used_these_cards("AMSTART")
        return float(self._header["AMSTART"]) if self.is_key_ok("AMSTART") else None

    @cache_translation
    def to_altaz_begin(self) -> AltAz | None:
        """Return azimuth and elevation at shutter open, `None` off the sky."""
        if not self.are_keys_ok(["AZSTART", "ELSTART"]):
            return None
        return altaz_from_degree_headers(self, (("ELSTART", "AZSTART"),), self.to_datetime_begin())

    @cache_translation
    def to_altaz_end(self) -> AltAz | None:
        """Return azimuth and elevation at shutter close, `None` off the sky."""
        if not self.are_keys_ok(["AZEND", "ELEND"]):
            return None
        return altaz_from_degree_headers(self, (("ELEND", "AZEND"),), self.to_datetime_end())
