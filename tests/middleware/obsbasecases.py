# SPDX-License-Identifier: BSD-3-Clause
"""Headers of five kinds of cameras, instruments that take them, and a repo that has these instruments.

Keywords are those that the observatory's translators read, values are made up.
The module is imported by tests, and by `obsbasejudge` in a separate process
where ``lsst.obs.base`` can be imported.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import astropy.time
import astropy.units as u
from astro_metadata_translator.translators import DecamTranslator, HscTranslator
from lsst.daf.butler import Butler, FormatterV2
from lsst.pipe.base import Instrument

from ppdaemon.camera import camera_names, load_camera

type Header = dict[str, Any]

_Base: Any = getattr(sys.modules.get("lsst.obs.base"), "Instrument", Instrument)


class RawFormatter(FormatterV2):
    """Never reads anything; the judge gives it the way from pixels to the sky."""

    can_read_from_local_file: ClassVar[bool] = True
    default_extension: ClassVar[str] = ".fits"
    makeRawSkyWcsFromBoresight: ClassVar[Any] = None  # noqa: N815


class _Cam(_Base):
    """As far as an ingest needs an instrument."""

    name: ClassVar[str]
    filters: ClassVar[dict[str, str]]
    raw_definition = ("raw", ("instrument", "exposure", "detector"), "StructuredDataDict")
    visitSystem = 2  # noqa: N815

    @classmethod
    def getName(cls) -> str:  # noqa: N802
        return cls.name

    @property
    def filterDefinitions(self) -> None:  # noqa: N802
        return None

    def getCamera(self) -> Any:  # noqa: N802
        import obsbasejudge

        return obsbasejudge.camera_of(self.name)

    def getRawFormatter(self, dataId: Any) -> type[RawFormatter]:  # noqa: N802, N803
        return RawFormatter

    @classmethod
    def detectors(cls) -> dict[int, str]:
        if cls.name in camera_names():
            return {number: each.name for number, each in load_camera(cls.name).detectors.items()}
        return {number: f"S{number:02d}" for number in (1, 2)}

    def register(self, registry: Any, *, update: bool = False) -> None:
        def sync(element: str, **record: Any) -> None:
            registry.syncDimensionData(element, record, update=update)

        with registry.transaction():
            sync(
                "instrument",
                name=self.name,
                detector_max=1000,
                visit_max=10**14,
                exposure_max=10**14,
                class_name=f"{__name__}.{type(self).__name__}",
                visit_system=2,
            )
            for number, name in self.detectors().items():
                sync("detector", instrument=self.name, id=number, full_name=name, purpose="SCIENCE")
            for name, band in self.filters.items():
                sync("physical_filter", instrument=self.name, name=name, band=band)


class MainCam(_Cam):
    name = "LSSTCam"
    filters: ClassVar = {"g_6": "g", "i_39": "i", "r_57": "r", "unknown": "unknown"}


class ComCam(_Cam):
    name = "LSSTComCam"
    filters: ClassVar = {"g_01": "g", "r_03": "r", "unknown": "unknown"}


class Latiss(_Cam):
    name = "LATISS"
    filters: ClassVar = {"SDSSr_65mm~empty": "r", "empty~holo4_003": "white", "unknown~unknown": "unknown"}


class Decam(_Cam):
    name = "DECam"
    translatorClass = DecamTranslator  # noqa: N815
    filters: ClassVar = {
        "r DECam SDSS c0002 6415.0 1480.0": "r",
        "solid plate 0.0 0.0": "black",
    }


class Hsc(_Cam):
    name = "HSC"
    translatorClass = HscTranslator  # noqa: N815
    filters: ClassVar = {"HSC-R2": "r", "empty": "white"}


CAMS: dict[str, type[_Cam]] = {each.name: each for each in (MainCam, ComCam, Latiss, Decam, Hsc)}


def make_repo(root: Path) -> None:
    """Make a repo with all instruments."""
    Butler.makeRepo(str(root))
    with Butler.from_config(str(root), writeable=True) as butler:
        for cam in CAMS.values():
            cam().register(butler.registry)


# --- headers -----------------------------------------------------------------


def _rubin(code: str, day: int, seq: int, minute: float, changes: Header) -> Header:
    """Return a header as Rubin's cameras write it; ``minute`` counts from the midnight of a day, TAI."""
    controller = changes.get("CONTRLLR", "O")
    date = f"{day // 10000}-{day // 100 % 100:02d}-{day % 100:02d}"
    begin = astropy.time.Time(f"{date}T00:00:00", scale="tai") + (1440.0 + minute) * u.min
    exposure = changes.get("EXPTIME", 30.0)
    end = begin + (exposure + 0.413) * u.s
    group = (begin - 44.5 * u.s).isot
    header = {
        "IMGTYPE": "OBJECT",
        "OBSID": f"{code}_{controller}_{day}_{seq:06d}",
        "DATE": (end + 2.0 * u.s).isot,
        "MJD": (end + 2.0 * u.s).mjd,
        "DATE-OBS": begin.isot,
        "MJD-OBS": begin.mjd,
        "DATE-BEG": begin.isot,
        "MJD-BEG": begin.mjd,
        "DATE-END": end.isot,
        "MJD-END": end.mjd,
        "TIMESYS": "TAI",
        "GROUPID": group,
        "INSTRUME": {"MC": "lsstCam", "CC": "ComCam", "AT": "LATISS"}[code],
        "TELESCOP": "LSST AuxTelescope" if code == "AT" else "Simonyi Survey Telescope",
        "OBS-LONG": -70.7494,
        "OBS-LAT": -30.2446,
        "OBS-ELEV": 2663.0,
        "RA": 149.8731,
        "DEC": 2.3117,
        "RASTART": 149.87344,
        "DECSTART": 2.31152,
        "ROTPA": 25.25,
        "ROTCOORD": "sky",
        "ELSTART": 61.372,
        "AZSTART": 48.0151,
        "AMSTART": 1.1383,
        "TRACKSYS": "RADEC",
        "RADESYS": "ICRS",
        "OBJECT": "field 12",
        "VIGNETTE": "NO",
        "VIGN_MIN": "NO",
        "CAMCODE": code,
        "CONTRLLR": controller,
        "DAYOBS": str(day),
        "SEQNUM": seq,
        "PROGRAM": "BLOCK-T77",
        "REASON": "Science",
        "CURINDEX": 1,
        "MAXINDEX": 1,
        "CCDSLOT": {"MC": "S11", "CC": "S01", "AT": "S00"}[code],
        "RAFTBAY": "R00" if code == "AT" else "R22",
        "FILTER": {"MC": "r_57", "CC": "r_03", "AT": "SDSSr_65mm"}[code],
        "EXPTIME": exposure,
        "DARKTIME": exposure + 0.37,
        "SHUTTIME": exposure + 0.000904,
    }
    if code == "AT":
        header["GRATING"] = "empty_1"
    return header | {key: value for key, value in changes.items() if value is not ...}


def _cases_of_rubin(code: str, day: int, cases: dict[str, Header]) -> Iterator[tuple[str, Header]]:
    for seq, (name, changes) in enumerate(cases.items(), start=41):
        changes = dict(changes)
        header = _rubin(code, changes.pop("day", day), changes.pop("seq", seq), 3.0 * seq, changes)
        yield f"{code} {name}", {key: value for key, value in header.items() if value != "absent"}


_NO_PLACE: Header = dict.fromkeys(
    ("RA", "DEC", "RASTART", "DECSTART", "ROTPA", "ROTCOORD", "ELSTART", "AZSTART", "TRACKSYS")
)
_GROUP = "2026-11-22T03:01:12.250"

_MAIN: dict[str, Header] = {
    "plain": {},
    "supplement": {"GROUPID": "2026-11-22T02:05:16.951#1"},
    "second supplement": {"GROUPID": "2026-11-22T02:05:16.951#12"},
    "ends before it begins": {"DATE-END": "2026-11-22T01:00:00.000"},
    "ends when it begins": {"DATE-END": "2026-11-22T02:15:00.000", "seq": 45},
    "no pointing": _NO_PLACE,
    "first snap": {"CURINDEX": 1, "MAXINDEX": 2, "GROUPID": _GROUP, "AZSTART": 359.25, "EXPTIME": 15.0},
    "second snap": {"CURINDEX": 2, "MAXINDEX": 2, "GROUPID": _GROUP, "AZSTART": 1.5, "EXPTIME": 15.1},
    "first of three": {"CURINDEX": 1, "MAXINDEX": 3, "AZSTART": 270.0, "REASON": "a", "OBJECT": "a"},
    "second of three": {"CURINDEX": 2, "MAXINDEX": 3, "AZSTART": 270.1, "REASON": "b", "OBJECT": "b"},
    "third of three": {"CURINDEX": 3, "MAXINDEX": 3, "AZSTART": 270.3, "REASON": "b", "OBJECT": "c"},
    "without counters": {"CURINDEX": None, "MAXINDEX": None},
    "azimuth below zero": {"AZSTART": -133.375},
    "azimuth above a turn": {"AZSTART": 371.5},
    "altitude above the zenith": {"ELSTART": 91.25},
    "right ascension below zero": {"RASTART": -0.004, "ROTPA": -170.0},
    "at the pole": {"RASTART": 10.5, "DECSTART": -89.98, "ROTPA": 359.9},
    "bias": {"IMGTYPE": "BIAS", "EXPTIME": 0.0, "SHUTTIME": 0.0} | _NO_PLACE,
    "dark that tracks": {"IMGTYPE": "DARK", "SHUTTIME": 0.0},
    "flat": {"IMGTYPE": "FLAT", "VIGN_MIN": "FULLY"},
    "dome closed": {"VIGN_MIN": "FULLY"},
    "dome unknown, engineering": {"IMGTYPE": "ENGTEST", "VIGN_MIN": "UNKNOWN", "REASON": None},
    "acquisition": {"IMGTYPE": "ACQ", "PROGRAM": None, "RUNNUM": "R7"},
    "focus without rotation": {"IMGTYPE": "FOCUS", "ROTCOORD": None},
    "local tracking": {"IMGTYPE": "ENGTEST", "TRACKSYS": "LOCAL"},
    "simulated part": {"SIMULATE MTMOUNT": 1},
    "controller S": {"CONTRLLR": "S"},
    "controller C": {"CONTRLLR": "C"},
    "controller H": {"CONTRLLR": "H"},
    "no group": {"GROUPID": None},
    "group of digits": {"GROUPID": "2024061200001"},
    "no shutter time": {"SHUTTIME": None, "DARKTIME": None},
    "whole seconds": {"EXPTIME": 30},
    "no end": {"DATE-END": None, "MJD-END": None},
    "no filter, no object": {"FILTER": None, "OBJECT": None},
}
_COM: dict[str, Header] = {
    "plain": {},
    "controller S of old": {"CONTRLLR": "S", "day": 20240321},
    "controller P of old": {"CONTRLLR": "P", "day": 20240321},
    "controller O of old": {"day": 20240321},
    "supplement": {"GROUPID": "2026-11-22T02:05:16.951#2"},
    "ends before it begins": {"DATE-END": "2026-11-22T01:00:00.000"},
    "no rotation": {"ROTPA": None},
    "azimuth below zero": {"AZSTART": -0.125},
}
_AUX: dict[str, Header] = {
    "plain": {},
    "with a grating": {"FILTER": "empty_1", "GRATING": "holo4_003", "REASON": "FINAL_BLOCK"},
    "supplement": {"GROUPID": "2026-11-22T02:05:16.951#1", "IMGTYPE": "CWFS", "TRACKSYS": None},
    "dark time too short": {"DARKTIME": 3.0},
    "bias": {"IMGTYPE": "BIAS", "EXPTIME": 0.0, "SHUTTIME": 0.0, "FILTER": None, "GRATING": None} | _NO_PLACE,
    "acquisition": {"IMGTYPE": "ACQ", "AZSTART": -89.5},
    "first snap": {"CURINDEX": 1, "MAXINDEX": 2, "EXPTIME": 2.0},
}


def _decam(number: int, **changes: Any) -> Header:
    header = {
        "INSTRUME": "DECam",
        "TELESCOP": "CTIO 4.0-m telescope",
        "OBSID": f"ct4m20260314t0{number % 10}0255",
        "EXPNUM": 1400000 + number,
        "DATE-OBS": f"2026-03-14T0{number % 10}:02:55.753848",
        "DTUTC": f"2026-03-14T0{number % 10}:04:30.100000",
        "TIMESYS": "UTC",
        "MJD-OBS": 61113.0 + (number % 10) / 24 + 0.00203418,
        "OBS-LONG": 70.81489,
        "OBS-LAT": -30.16606,
        "OBS-ELEV": 2215.0,
        "EXPREQ": 90.0,
        "EXPTIME": 90.012,
        "DARKTIME": 91.15662,
        "OBJECT": "field 7",
        "OBSTYPE": "object",
        "PROPID": "2026A-000001",
        "FILTER": "r DECam SDSS c0002 6415.0 1480.0",
        "TELRA": "10:51:16.790",
        "TELDEC": "-00:40:05.699",
        "RADESYS": "ICRS",
        "ZD": 40.46,
        "AZ": 61.24,
        "CCDNUM": 1,
        "DETECTOR": "S3-120_130206",
        "DETPOS": "S29",
        "PROCTYPE": "RAW",
        "PRODTYPE": "image",
    }
    return {key: value for key, value in (header | changes).items() if value is not None}


_DECAM: dict[str, Header] = {
    "plain": {},
    "azimuth in the west": {"AZ": 315.5},
    "ends before it begins": {"DTUTC": "2026-03-13T22:00:00.000000"},
    "zero": {"OBSTYPE": "zero", "EXPREQ": 0.0, "EXPTIME": 0.0},
    "dome flat": {"OBSTYPE": "dome flat"},
    "standard": {"OBSTYPE": "standard"},
    "no end": {"DTUTC": None},
    "moving target": {"RADESYS": "GAPPT"},
}


def _hsc(number: int, **changes: Any) -> Header:
    header = {
        "INSTRUME": "Hyper Suprime-Cam",
        "TELESCOP": "Subaru",
        "EXP-ID": f"HSCE{200000 + 2 * number:08d}",
        "FRAMEID": f"HSCA{200000 + 2 * number:06d}01",
        "DATE-OBS": "2026-02-11",
        "UT-STR": f"1{number % 10}:15:55.908",
        "UT-END": f"1{number % 10}:20:58.330",
        "MJD": 61082.42 + (number % 10) / 24,
        "FILTER01": "HSC-r2",
        "DATA-TYP": "OBJECT",
        "OBJECT": "field 3",
        "PROP-ID": "o26001",
        "EXPTIME": 300.0,
        "RA2000": "09:22:59.982",
        "DEC2000": "+00:30:00.07",
        "AZIMUTH": 226.689,
        "ALTITUDE": 63.0435,
        "INST-PA": 35.5,
        "INR-STR": 43.2,
        "DET-ID": 1,
        "T_CCDSN": "107",
    }
    return header | changes


_HSC: dict[str, Header] = {
    "plain": {},
    "longer than its times": {"EXPTIME": 400.0},
    "bias": {"DATA-TYP": "BIAS", "EXPTIME": 0.0, "FILTER01": "NONE"},
    "focusing": {"DATA-TYP": "FOCUSING", "INST-PA": 280.0},
    "test": {"DATA-TYP": "TEST"},
    "azimuth below zero": {"AZIMUTH": -46.5},
}


def _all_cases() -> Iterator[tuple[str, Header]]:
    yield from _cases_of_rubin("MC", 20261121, _MAIN)
    yield from _cases_of_rubin("CC", 20261121, _COM)
    yield from _cases_of_rubin("AT", 20261121, _AUX)
    for number, (name, changes) in enumerate(_DECAM.items()):
        yield f"DECam {name}", _decam(number, **changes)
    for number, (name, changes) in enumerate(_HSC.items()):
        yield f"HSC {name}", _hsc(number, **changes)


HEADERS: dict[str, Header] = dict(_all_cases())
"""By name of the case."""
