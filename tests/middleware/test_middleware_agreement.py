# SPDX-License-Identifier: BSD-3-Clause
"""Dimension records are those that ``lsst.obs.base`` makes.

What its tasks made of the headers in `obsbasecases` is in
``data/obs_base.json``, written by ``obsbasejudge.py``; the slow tests run the
tasks again, where a work tree of obs_base is named. A second calculation here,
by other formulae, shares nothing with either.
"""

import datetime
import json
import math
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from astro_metadata_translator import ObservationInfo
from lsst.daf.butler import Butler, DimensionRecord, DimensionUniverse, SerializedDimensionRecord
from lsst.sphgeom import ConvexPolygon, LonLat, Region, UnitVector3d
from obsbasecases import CAMS, HEADERS, Header, make_repo
from obsbasejudge import OBS_BASE, OBS_LSST, dump

from ppdaemon.camera import camera_names, load_camera
from ppdaemon.messages import Raw
from ppdaemon.middleware.raws.header import ExposureHeader, check_expected, translate
from ppdaemon.middleware.raws.records import exposure_records, group_record, with_own_groups
from ppdaemon.middleware.raws.regions import detector_region, preload_corners
from ppdaemon.middleware.raws.visits import AnnouncedVisit, insert_records
from ppdaemon.pointing import Pointing
from ppdaemon.visit import parent_group

DATA = Path(__file__).with_name("data") / "obs_base.json"
JUDGED = json.loads(DATA.read_text())
UNIVERSE = DimensionUniverse()
NO_VISIT_OF_THEIRS = ("MC no pointing", "DECam moving target")
"""Science images without a pointing."""

needs_obs_base = pytest.mark.skipif(
    OBS_BASE not in os.environ, reason=f"{OBS_BASE} names no work tree of obs_base"
)


def info_of(name: str) -> ObservationInfo:
    """Return the translation of a header."""
    return ObservationInfo.from_simple(JUDGED["infos"][name])


def header_of(name: str) -> ExposureHeader:
    """Return what a worker knows of an exposure: of DECam and HSC, translated by itself."""
    info = info_of(name)
    instrument = CAMS[info.instrument]()
    if hasattr(instrument, "translatorClass"):
        info = translate(HEADERS[name], instrument, name)
    raw = Raw(
        path=name,
        instrument=info.instrument,
        group=parent_group(info.exposure_group),
        detector=info.detector_num,
        exposure=info.exposure_id,
        seen_tai=0.0,
    )
    return check_expected(info, raw)


@pytest.fixture(scope="module")
def headers() -> dict[str, ExposureHeader]:
    return {name: header_of(name) for name in HEADERS}


def shared(header: ExposureHeader) -> list[DimensionRecord]:
    """Return what the central repo is given of an exposure."""
    return with_own_groups(exposure_records(UNIVERSE, header), {header.exposure: header})


def simple(record: DimensionRecord) -> dict[str, Any]:
    return dict(record.to_simple().model_dump(mode="json")["record"])


def judged(element: str, record: dict[str, Any]) -> DimensionRecord:
    """Return a record of the judge."""
    if isinstance(record.get("region"), int):
        record = record | {"region": JUDGED["regions"][record["region"]]}
    return DimensionRecord.from_simple(
        SerializedDimensionRecord(definition=element, record=record), universe=UNIVERSE
    )


def judged_exposure(header: ExposureHeader) -> dict[str, Any]:
    (found,) = (
        record
        for record in JUDGED["exposures"]["exposure"]
        if (record["instrument"], record["id"]) == (header.instrument, header.exposure)
    )
    return dict(found)


def test_the_headers_are_of_many_kinds() -> None:
    kinds = {info_of(name).instrument for name in HEADERS}
    assert kinds == {"LSSTCam", "LSSTComCam", "LATISS", "DECam", "HSC"}
    assert len(HEADERS) >= 40
    assert HEADERS.keys() == JUDGED["infos"].keys()
    assert len(JUDGED["exposures"]["exposure"]) == len(HEADERS)


# --- exposures ----------------------------------------------------------------


@pytest.mark.parametrize("name", HEADERS)
def test_an_exposures_records_are_theirs(name: str, headers: dict[str, ExposureHeader]) -> None:
    header = headers[name]
    made = {record.definition.name: simple(record) for record in shared(header)}
    theirs = judged_exposure(header)
    assert made["exposure"] == theirs
    groups = [simple(each) for each in shared(header) if each.definition.name == "group"]
    assert {"instrument": header.instrument, "name": theirs["group"]} in groups
    days = [each for each in JUDGED["exposures"]["day_obs"] if each["id"] == header.day_obs]
    assert made["day_obs"] in days


def seconds_of(date: str) -> float:
    """Return TAI seconds since 1970 of a date, TAI."""
    epoch = datetime.datetime(1970, 1, 1)  # noqa: DTZ001
    return (datetime.datetime.fromisoformat(date) - epoch).total_seconds()


def sexagesimal(text: str) -> float:
    sign = -1.0 if text.startswith("-") else 1.0
    whole, minutes, seconds = (float(part.lstrip("+-")) for part in text.split(":"))
    return sign * (whole + minutes / 60.0 + seconds / 3600.0)


def rubin(header: Header) -> dict[str, Any]:
    """Return what a header of Rubin's cameras means."""
    day, seq, letter = int(header["DAYOBS"]), header["SEQNUM"], header["CONTRLLR"]
    year = {"O": 0, "C": 1000, "H": 2000, "P": 3000, "Q": 4000, "S": 5000}[letter]
    if letter in "PQS" and day >= 20250418:
        year = 0
    if letter == "C" and day >= 20231005:
        year = 0
    exposure = int(f"{day // 10000 + year}{day % 10000:04d}{seq:05d}")
    kind = {"object": "science", "skyexp": "science"}.get(
        header["IMGTYPE"].lower(), header["IMGTYPE"].lower()
    )
    latiss = header["INSTRUME"] == "LATISS"
    # That of LATISS is ignored, except that the shutter stayed closed.
    shutter = None if latiss and header["SHUTTIME"] else header["SHUTTIME"]
    actual = shutter if shutter else header["EXPTIME"]
    begin = seconds_of(header["DATE-BEG"])
    end = begin + actual if header["DATE-END"] is None else seconds_of(header["DATE-END"])
    dark = header["DARKTIME"]
    on_mountain = latiss or day > (20250301 if header["INSTRUME"] == "lsstCam" else 20240824)
    if not on_mountain or shutter == 0.0 or header["VIGN_MIN"] == "FULLY":
        sees: bool | None = False
    elif header["VIGN_MIN"] == "NO":
        sees = True
    else:
        sees = {"bias": False, "dark": False, "flat": False}.get(kind) if latiss else None
    tracks = kind not in ("bias", "flat") and header["TRACKSYS"] in (None, "RADEC")
    placed = tracks and header["RASTART"] is not None
    on_sky = kind not in ("bias", "dark", "flat") and header["TRACKSYS"] != "LOCAL" and on_mountain
    turned = placed and on_sky and header["ROTCOORD"] == "sky"
    altaz = header["AZSTART"] is not None and on_mountain
    counted = header["CURINDEX"] is not None
    start = seq - header["CURINDEX"] + 1 if counted else seq
    filters = header["FILTER"] or "unknown"
    if latiss:
        filters = "empty" if filters.startswith("empty") else filters
        grating = header["GRATING"] or "unknown"
        filters += "~" + ("empty" if grating.startswith("empty") else grating)
    return {
        "instrument": {"lsstCam": "LSSTCam", "ComCam": "LSSTComCam", "LATISS": "LATISS"}[header["INSTRUME"]],
        "id": exposure,
        "obs_id": header["OBSID"],
        "group": header["GROUPID"] or str(exposure),
        "day_obs": day,
        "physical_filter": filters,
        "timespan": (begin, max(begin, end)),
        "exposure_time": header["EXPTIME"],
        "dark_time": actual if dark is None or (latiss and dark < actual) else dark,
        "observation_type": kind,
        "observation_reason": (header["REASON"] or ("science" if kind == "science" else "unknown")).lower(),
        "science_program": header["PROGRAM"] or header.get("RUNNUM", "unknown"),
        "target_name": header["OBJECT"] or "UNKNOWN",
        "seq_num": seq,
        "seq_start": start,
        "seq_end": start + header["MAXINDEX"] - 1 if counted else seq,
        "tracking_ra": header["RASTART"] % 360.0 if placed else None,
        "tracking_dec": header["DECSTART"] if placed else None,
        "sky_angle": (header["ROTPA"] or 0.0) if turned else None,
        "azimuth": header["AZSTART"] % 360.0 if altaz else None,
        "zenith_angle": 90.0 - min(90.0, header["ELSTART"]) if altaz else None,
        "has_simulated": letter in "HPQS" or any("SIMULATE" in key and header[key] for key in header),
        "can_see_sky": sees,
    }


def decam(header: Header) -> dict[str, Any]:
    number, kind = header["EXPNUM"], header["OBSTYPE"]
    begin = seconds_of(header["DATE-OBS"]) + 37.0
    end = seconds_of(header["DTUTC"]) + 37.0 if "DTUTC" in header else begin + header["EXPTIME"]
    moves = header["RADESYS"] == "GAPPT"
    return {
        "instrument": "DECam",
        "id": number,
        "obs_id": header["OBSID"],
        "group": str(number),
        "day_obs": int(f"{datetime.datetime.fromtimestamp(begin - 43200.0, datetime.UTC):%Y%m%d}"),
        "physical_filter": "solid plate 0.0 0.0" if kind == "zero" else header["FILTER"],
        "timespan": (begin, max(begin, end)),
        "exposure_time": header["EXPREQ"],
        "dark_time": header["DARKTIME"],
        "observation_type": "science" if kind == "object" else kind,
        "observation_reason": "science" if kind == "object" else "unknown",
        "science_program": header["PROPID"],
        "target_name": header["OBJECT"],
        "seq_num": number,
        "seq_start": number,
        "seq_end": number,
        "tracking_ra": None if moves else 15.0 * sexagesimal(header["TELRA"]),
        "tracking_dec": None if moves else sexagesimal(header["TELDEC"]),
        "sky_angle": None if moves else 90.0,
        "azimuth": header["AZ"],
        "zenith_angle": header["ZD"],
        "has_simulated": False,
        "can_see_sky": kind not in ("zero", "dark", "dome flat"),
    }


def hsc(header: Header) -> dict[str, Any]:
    number, kind = int(header["EXP-ID"][4:]), header["DATA-TYP"].lower()
    begin, end = (seconds_of(f"{header['DATE-OBS']}T{header[key]}") + 37.0 for key in ("UT-STR", "UT-END"))
    kinds = {"object": "science"}
    return {
        "instrument": "HSC",
        "id": number,
        "obs_id": header["EXP-ID"],
        "group": str(number),
        "day_obs": int(header["DATE-OBS"].replace("-", "")),
        "physical_filter": "empty" if header["FILTER01"] == "NONE" else header["FILTER01"].upper(),
        "timespan": (begin, max(end, begin + header["EXPTIME"])),
        "exposure_time": header["EXPTIME"],
        "dark_time": header["EXPTIME"],
        "observation_type": kinds.get(kind, kind),
        "observation_reason": "science" if kind == "object" else "unknown",
        "science_program": header["PROP-ID"],
        "target_name": header["OBJECT"],
        "seq_num": number,
        "seq_start": number,
        "seq_end": number,
        "tracking_ra": 15.0 * sexagesimal(header["RA2000"]),
        "tracking_dec": sexagesimal(header["DEC2000"]),
        "sky_angle": (270.0 - header["INST-PA"]) % 360.0,
        "azimuth": header["AZIMUTH"] % 360.0,
        "zenith_angle": 90.0 - header["ALTITUDE"],
        "has_simulated": False,
        "can_see_sky": {"object": True, "focusing": True, "bias": False}.get(kind),
    }


@pytest.mark.parametrize("name", HEADERS)
def test_an_exposures_record_is_what_its_keywords_mean(name: str, headers: dict[str, ExposureHeader]) -> None:
    meant: Callable[[Header], dict[str, Any]] = {"DECam": decam, "HSC": hsc}.get(name.split()[0], rubin)
    wanted = meant(HEADERS[name])
    made = shared(headers[name])[-1].toDict()
    span = made.pop("timespan")
    begin, end = wanted.pop("timespan")
    # A timespan of no length is empty, and is made one of a nanosecond.
    assert (span.begin.unix_tai, span.end.unix_tai) == pytest.approx((begin, end), abs=2e-6, rel=0.0)
    assert not span.isEmpty()
    for field, value in wanted.items():
        if isinstance(value, float):
            value = pytest.approx(value, abs=1e-9, rel=1e-12)
        assert made[field] == value, field
    assert made.keys() == wanted.keys()


@pytest.mark.parametrize("name", ["MC ends before it begins", "DECam ends before it begins"])
def test_an_end_before_the_beginning_is_logged(name: str, caplog: pytest.LogCaptureFixture) -> None:
    header = header_of(name)
    assert header.end == header.begin
    assert f"exposure {header.exposure} ends before it begins" in caplog.text


# --- visits -------------------------------------------------------------------


def visits_of(headers: Iterable[ExposureHeader], *, grouped: bool) -> list[DimensionRecord]:
    """Return the records of visits that workers make of exposures, each group by itself."""
    sets: dict[Any, list[ExposureHeader]] = defaultdict(list)
    for header in headers:
        if header.has_visit:
            start, end = header.info.group_counter_start, header.info.group_counter_end
            sets[(header.instrument, header.day_obs, start, end) if grouped else id(header)].append(header)
    made = []
    for members in sets.values():
        first = members[0]
        camera = load_camera(first.instrument) if first.instrument in camera_names() else None
        exposures = [shared(header)[-1] for header in members]
        announced = AnnouncedVisit(
            UNIVERSE,
            instrument=None,
            visit=None,
            detector=first.detector,
            footprint=SimpleNamespace(pointing=None),
            camera=camera,
            grouped=grouped,
        )
        made += announced.visit_records(exposures)
    return made


def of(records: Iterable[DimensionRecord], element: str) -> dict[Any, dict[str, Any]]:
    """Return records of an element by what names them."""
    return {
        record.dataId.required_values: simple(record)
        for record in records
        if record.definition.name == element
    }


def theirs(grouping: str, element: str) -> dict[Any, DimensionRecord]:
    records = (judged(element, record) for record in JUDGED["visits"][grouping][element])
    return {record.dataId.required_values: record for record in records}


def assert_same_region(ours: Region, other: Region) -> None:
    """Compare the corners of two polygons, to a thousandth of an arcsecond."""
    assert isinstance(ours, ConvexPolygon)
    assert isinstance(other, ConvexPolygon)
    tolerance = math.radians(0.001 / 3600.0)

    def near(point: UnitVector3d, points: list[UnitVector3d]) -> bool:
        return min((point - each).getNorm() for each in points) < tolerance

    for one, another in ((ours, other), (other, ours)):
        corners = list(another.getVertices())
        # Corners of detectors lie on one line, and rounding decides which of them are corners.
        outside = [point for point in one.getVertices() if not near(point, corners)]
        wider = ConvexPolygon.convexHull([*corners, *outside])
        assert wider.getBoundingCircle().getOpeningAngle().asRadians() == pytest.approx(
            another.getBoundingCircle().getOpeningAngle().asRadians(), abs=tolerance
        )
        assert len(outside) <= len(corners) // 2


@pytest.fixture(scope="module")
def science(headers: dict[str, ExposureHeader]) -> list[ExposureHeader]:
    """Return the exposures of which obs_base makes visits, or would if it had their pointing."""
    return [header for name, header in headers.items() if name not in NO_VISIT_OF_THEIRS]


@pytest.mark.parametrize("element", ["visit", "visit_definition", "visit_system_membership", "visit_system"])
def test_visits_are_theirs_where_each_exposure_is_one(element: str, science: list[ExposureHeader]) -> None:
    ours = of(visits_of(science, grouped=False), element)
    judged_ones = {key: simple(record) for key, record in theirs("one-to-one", element).items()}
    assert ours.keys() == judged_ones.keys()
    for key, record in ours.items():
        assert without(record, "region") == without(judged_ones[key], "region")


def without(record: dict[str, Any], field: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != field}


def test_an_image_without_a_pointing_has_a_visit_only_if_it_is_science(
    headers: dict[str, ExposureHeader],
) -> None:
    definitions = theirs("one-to-one", "visit_definition").values()
    defined = {(each.instrument, each.exposure) for each in definitions}
    ours = {name for name, each in headers.items() if each.has_visit}
    judged_ones = {name for name, each in headers.items() if (each.instrument, each.exposure) in defined}
    assert ours - judged_ones == set(NO_VISIT_OF_THEIRS)
    assert judged_ones <= ours
    assert not headers["MC focus without rotation"].has_visit
    assert not headers["MC dome closed"].has_visit
    assert headers["MC dome unknown, engineering"].has_visit


def test_a_visit_of_snaps_is_theirs(science: list[ExposureHeader]) -> None:
    made = visits_of(science, grouped=True)
    grouping = "one-to-one-and-by-counter"
    members = {key for key in theirs(grouping, "visit_system_membership") if 2 in key}
    assert (
        members
        <= of(made, "visit_system_membership").keys()
        <= theirs(grouping, "visit_system_membership").keys()
    )
    judged_ones = theirs(grouping, "visit")
    ours = of(made, "visit")
    (of_three,) = (each for each in ours.values() if each["name"] == "MC_O_20261121_000049")
    assert (of_three["exposure_time"], of_three["azimuth"]) == (90.0, pytest.approx(-89.8667, abs=1e-4))
    for key, record in ours.items():
        assert without(record, "region") == without(simple(judged_ones[key]), "region")
    assert of(made, "visit_definition").keys() <= theirs(grouping, "visit_definition").keys()
    assert of(made, "visit_system").keys() == theirs(grouping, "visit_system").keys()


def test_the_regions_of_visits_are_theirs(science: list[ExposureHeader]) -> None:
    visits = {(each.instrument, each.id): each for each in theirs("one-to-one", "visit").values()}
    ours = [record for record in visits_of(science, grouped=False) if record.definition.name == "visit"]
    compared = [record for record in ours if record.region is not None]
    assert {record.instrument for record in compared} == {"LSSTCam", "LSSTComCam", "LATISS"}
    for record in compared:
        assert_same_region(record.region, visits[record.instrument, record.id].region)
    detectors = list(theirs("one-to-one", "visit_detector_region").values())
    exposures = {(header.instrument, header.exposure): header for header in science}
    assert len({each.detector for each in detectors if each.instrument == "LSSTCam"}) == 3
    for each in detectors:
        header = exposures[each.instrument, each.visit]
        assert header.boresight is not None
        assert header.sky_angle is not None
        pointing = Pointing(*header.boresight, header.sky_angle)
        ours_region = detector_region(load_camera(each.instrument), each.detector, pointing)
        assert_same_region(ours_region, each.region)
        assert len(ours_region.getVertices()) == 4


@pytest.mark.parametrize(
    ("instrument", "pixel_arcsec", "pixels"),
    [("LSSTCam", 0.2, 250), ("LSSTComCam", 0.2, 250), ("LATISS", 0.0957, 4000)],
)
@pytest.mark.parametrize("padding_arcsec", [0.0, 30.0, 50.1, 600.0])
def test_what_is_preloaded_is_never_less_than_a_visits_region(
    instrument: str, pixel_arcsec: float, pixels: int, padding_arcsec: float
) -> None:
    camera, pointing = load_camera(instrument), Pointing(150.0, -30.0, 33.0)
    for detector in sorted(camera.detectors)[::37]:
        region = detector_region(camera, detector, pointing)
        preloaded = polygon(preload_corners(camera, detector, pointing, padding_arcsec))
        plain = polygon(camera.footprint(detector, 150.0, -30.0, 33.0))
        for corner in region.getVertices():
            grown = ConvexPolygon.convexHull([*preloaded.getVertices(), corner])
            assert preloaded.contains(corner) or len(grown.getVertices()) == len(preloaded.getVertices())
        widened = math.sqrt(area(preloaded)) - math.sqrt(area(plain))
        wanted = 2.0 * max(padding_arcsec, pixels * pixel_arcsec)
        assert widened == pytest.approx(wanted, rel=0.02)


def polygon(corners: Iterable[tuple[float, float]]) -> ConvexPolygon:
    return ConvexPolygon.convexHull([UnitVector3d(LonLat.fromDegrees(*corner)) for corner in corners])


def area(region: ConvexPolygon) -> float:
    """Return the area of a small quadrilateral, square arcseconds."""
    a, b, c, d = region.getVertices()
    return 0.5 * (c - a).cross(d - b).getNorm() * math.degrees(3600.0) ** 2


# --- two that write into one repo ----------------------------------------------


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a repo with the instruments."""
    root = tmp_path_factory.mktemp("agreement") / "repo"
    make_repo(root)
    return root


@pytest.fixture
def repo(empty: Path, tmp_path: Path) -> Path:
    return shutil.copytree(empty, tmp_path / "repo")


def ours_into(root: Path, headers: Iterable[ExposureHeader], *, grouped: bool = False) -> None:
    """Insert what the exporter inserts, visit by visit."""
    headers = list(headers)
    with Butler.from_config(str(root), writeable=True) as butler:
        for header in headers:
            # What was made before the image is in the group that was announced.
            announced = group_record(UNIVERSE, header.instrument, header.group)
            insert_records(butler, [announced, *shared(header)])
        insert_records(butler, visits_of(headers, grouped=grouped))


def theirs_into(root: Path, grouping: str = "one-to-one", *, update: bool = False) -> None:
    """Do with the judge's records what its tasks do: synchronize, update none but visits."""
    with Butler.from_config(str(root), writeable=True) as butler:
        for element in ("day_obs", "group", "exposure"):
            for record in JUDGED["exposures"][element]:
                butler.registry.syncDimensionData(element, judged(element, record))
        for record in theirs(grouping, "visit_system").values():
            butler.registry.syncDimensionData("visit_system", record)
        for record in theirs(grouping, "visit").values():
            butler.registry.syncDimensionData("visit", record, update=update)


def assert_all_theirs(root: Path, grouping: str = "one-to-one") -> None:
    found = dump(root)
    assert found["exposure"] == JUDGED["exposures"]["exposure"]
    assert found["day_obs"] == JUDGED["exposures"]["day_obs"]
    groups = JUDGED["exposures"]["group"]
    more = [each["name"] for each in found["group"] if each not in groups]
    assert set(more) == {"2026-11-22T02:05:16.951"}, "the visit whose supplements came"
    visits = {(each["instrument"], each["id"]): each for each in found["visit"]}
    for record in JUDGED["visits"][grouping]["visit"]:
        stored = visits[record["instrument"], record["id"]]
        assert without(stored, "region") == without(record, "region")
    for element in ("visit_definition", "visit_system_membership", "visit_system"):
        missing = [each for each in JUDGED["visits"][grouping][element] if each not in found[element]]
        assert not missing, element


@pytest.mark.parametrize("ours_first", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_both_orders_end_well_and_equal(
    repo: Path, science: list[ExposureHeader], headers: dict[str, ExposureHeader], ours_first: bool
) -> None:
    if ours_first:
        ours_into(repo, headers.values())
        theirs_into(repo, update=True)
    else:
        theirs_into(repo)
        ours_into(repo, headers.values())
    assert_all_theirs(repo)


# --- their tasks themselves -----------------------------------------------------


def judge(*words: str, sent: str = "") -> None:
    """Run the judge."""
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)])
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("obsbasejudge.py")), *words],
        env=os.environ | {"PYTHONPATH": path},
        input=sent,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.slow
@needs_obs_base
@pytest.mark.skipif(OBS_LSST not in os.environ, reason=f"{OBS_LSST} names no work tree of obs_lsst")
@pytest.mark.timeout(900)
def test_their_tasks_still_give_the_same_values(tmp_path: Path) -> None:
    judge("values", str(tmp_path / "values.json"))
    now = json.loads((tmp_path / "values.json").read_text())
    for part in ("infos", "exposures", "visits", "regions"):
        assert now[part] == JUDGED[part], f"of {now['versions']}"


@pytest.mark.slow
@needs_obs_base
@pytest.mark.timeout(900)
@pytest.mark.parametrize("grouping", ["one-to-one", "one-to-one-and-by-counter"])
@pytest.mark.parametrize("how", [None, {"incremental": True}, {"skip_conflicting": True}])
def test_both_orders_end_well_and_equal_with_their_tasks(
    repo: Path, headers: dict[str, ExposureHeader], how: dict[str, bool] | None, grouping: str
) -> None:
    grouped = grouping != "one-to-one"
    sidecars = {name: {"__CONTENT__": "translated"} | info for name, info in JUDGED["infos"].items()}
    order = {"sidecars": sidecars, "grouping": grouping, "how": how or {}}
    if how is not None:
        ours_into(repo, headers.values(), grouped=grouped)
    judge("ingest", str(repo), sent=json.dumps(order))
    if how is None:
        ours_into(repo, headers.values(), grouped=grouped)
    assert_all_theirs(repo, grouping)
    with Butler.from_config(str(repo)) as butler:
        raws = butler.query_datasets("raw", collections="*", find_first=False, limit=None)
        place = {"instrument": "LSSTCam", "visit": headers["MC plain"].exposure}
        regions = butler.query_dimension_records("visit_detector_region", data_id=place, limit=None)
    assert len(raws) == len(HEADERS)
    # Where they skip a visit that is there, it has the regions of detectors that were processed.
    assert len(regions) == (1 if how == {"skip_conflicting": True} else 205)
