# SPDX-License-Identifier: BSD-3-Clause
"""Exposures and their visits: one each, or one of all snaps; images that contradict the announcement."""

import functools
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import toycam
from centrals import ON_SQLITE, Central
from lsst.daf.butler import Butler, DimensionRecord, DimensionUniverse, Timespan
from lsst.pipe.base import PipelineTask, PipelineTaskConfig, PipelineTaskConnections, Struct
from lsst.pipe.base.connectionTypes import Input, Output
from lsst.sphgeom import ConvexPolygon
from toycam import DAY, DEC, GROUP, NAME, RA, MakeRig, Rig

from ppdaemon.camera import Camera, Site
from ppdaemon.clock import Clock
from ppdaemon.config import ExposuresConfig
from ppdaemon.errors import VisitFailed
from ppdaemon.messages import Done, Process
from ppdaemon.middleware.butlerwork import ButlerWork
from ppdaemon.middleware.direct.engine import DirectEngine, DirectRun
from ppdaemon.middleware.direct.exposures import MAX_EXPECTED
from ppdaemon.middleware.export.exporter import CentralExporter
from ppdaemon.middleware.export.manifest import read_manifest
from ppdaemon.middleware.raws.header import check_expected, contradictions, separation_deg, translate
from ppdaemon.middleware.raws.records import exposure_records, make_record
from ppdaemon.middleware.raws.regions import footprint_of
from ppdaemon.middleware.raws.visits import AnnouncedVisit, joined_visit
from ppdaemon.middleware.run.engine import Job, Unsupported
from ppdaemon.pointing import Pointing
from ppdaemon.states import Outcome

pytest_plugins = ("toyfixtures", "dbfixtures")

FIRST, SECOND = DAY * 100000 + 1, DAY * 100000 + 2
BY_GROUP = {"visits": {NAME: "by-group"}}
REGISTERS = {"kind": "separable"}
"""The engine that puts records of exposures and visits into the worker's repo."""
SNAPS = {"MAXINDEX": 2}


class CombineConnections(PipelineTaskConnections, dimensions=toycam.VISIT):
    raws = Input(
        name="raw",
        doc="all snaps",
        storageClass="StructuredDataDict",
        dimensions=toycam.EXPOSURE,
        multiple=True,
    )
    output = Output(
        name="toy_combined", doc="of a visit", storageClass="StructuredDataDict", dimensions=toycam.VISIT
    )


class CombineConfig(PipelineTaskConfig, pipelineConnections=CombineConnections):
    pass


class CombineTask(PipelineTask):
    """Outputs the list of its snaps."""

    ConfigClass: ClassVar[type] = CombineConfig
    _DefaultName: ClassVar[str] = "combine"

    def run(self, raws: Any) -> Struct:
        return Struct(output={"snaps": sorted(raw["exposure"] for raw in raws)})


class GroupingCam(toycam.ToyCam):
    """Declares that snaps make one visit, as LSST's cameras do."""

    visitSystem = 2  # noqa: N815


def add_combine(rig: Rig) -> None:
    """Write a pipeline whose one task reads all snaps of a visit."""
    path = Path(rig.paths["Short"]).with_name("Combine.yaml")
    path.write_text(f"description: Combine\ntasks:\n  combine: {__name__}.CombineTask\n")
    rig.paths["Combine"] = str(path)


def take_snaps(
    rig: Rig, worker: ButlerWork, snaps: tuple[int, ...], detector: int = 1, **headers: Any
) -> Done:
    """Run a visit of two snaps with those that arrived."""
    add_combine(rig)
    worker.prepare(rig.order(detector, main="Combine", before="", nimages=2))
    for snap in snaps:
        worker.ingest(rig.raw(detector, snap, CURINDEX=snap, **SNAPS, **headers))
    exposures = tuple(DAY * 100000 + snap for snap in snaps)
    return worker.process(Process(exposures=exposures, partial=len(snaps) < 2))


def records_in(repo: Path, element: str) -> list[Any]:
    with Butler.from_config(str(repo)) as butler:
        return butler.query_dimension_records(element, explain=False)


def local_repo(rig: Rig) -> Path:
    return rig.context.repo / "repo"


def combined(done: Done) -> list[tuple[int, str]]:
    """Return visit and text of each combined dataset."""
    assert done.spool is not None
    return [
        (dict(file.refs[0].dataId.dataId)["visit"], Path(done.spool, file.name).read_text())
        for file in read_manifest(Path(done.spool)).files
        if file.refs[0].datasetType.name == "toy_combined"
    ]


def pairs_of(records: list[Any]) -> list[tuple[int, int]]:
    return sorted((record.visit, record.exposure) for record in records)


# --- one visit per exposure, or one of all snaps ------------------------------


def test_each_exposure_is_a_visit_by_default(rigs: MakeRig) -> None:
    rig, worker = rigs(engine=REGISTERS)
    done = take_snaps(rig, worker, (1, 2))
    assert [visit for visit, _ in combined(done)] == [FIRST, SECOND]
    repo = local_repo(rig)
    assert pairs_of(records_in(repo, "visit_definition")) == [(FIRST, FIRST), (SECOND, SECOND)]
    assert [(each.id, each.name) for each in records_in(repo, "visit_system")] == [(0, "one-to-one")]
    assert {each.visit_system for each in records_in(repo, "visit_system_membership")} == {0}
    visit, region = records_in(repo, "visit")[0], records_in(repo, "visit_detector_region")[0]
    assert (visit.name, visit.exposure_time, visit.seq_num) == (f"TY_O_{DAY}_000001", 30.0, 1)
    assert visit.region.contains(region.region)
    width = visit.region.getBoundingBox().getWidth().asDegrees()
    assert width == pytest.approx(0.401, abs=0.0005), "the whole camera's, and 5 pixels on each side"


def test_the_snaps_of_a_group_are_one_visit_where_that_is_configured(rigs: MakeRig) -> None:
    rig, worker = rigs(butler=BY_GROUP, engine=REGISTERS)
    done = take_snaps(rig, worker, (2, 1))
    assert done.outcome == Outcome.SUCCEEDED
    ((visit, text),) = combined(done)
    assert visit == FIRST
    assert "- 1\n- 2" in text
    repo = local_repo(rig)
    (record,) = records_in(repo, "visit")
    assert (record.id, record.name) == (FIRST, f"TY_O_{DAY}_000001")
    assert (record.exposure_time, record.seq_num, record.day_obs) == (60.0, 1, DAY)
    begins = [each.timespan.begin for each in records_in(repo, "exposure")]
    ends = [each.timespan.end for each in records_in(repo, "exposure")]
    assert (record.timespan.begin, record.timespan.end) == (min(begins), max(ends))
    assert pairs_of(records_in(repo, "visit_definition")) == [(FIRST, FIRST), (FIRST, SECOND)]
    assert [(each.id, each.name) for each in records_in(repo, "visit_system")] == [(2, "by-seq-start-end")]
    (membership,) = records_in(repo, "visit_system_membership")
    assert (membership.visit, membership.visit_system) == (FIRST, 2)
    assert [each.visit for each in records_in(repo, "visit_detector_region")] == [FIRST]


@pytest.mark.parametrize("snap", [1, 2])
def test_a_partial_set_runs_with_the_snaps_that_arrived_and_has_the_visits_id(
    rigs: MakeRig, snap: int
) -> None:
    rig, worker = rigs(butler=BY_GROUP, engine=REGISTERS)
    ((visit, text),) = combined(take_snaps(rig, worker, (snap,)))
    assert visit == FIRST, "also where the first snap is the one that is lost"
    assert f"- {snap}" in text
    repo = local_repo(rig)
    assert pairs_of(records_in(repo, "visit_definition")) == [(FIRST, DAY * 100000 + snap)]
    name = {1: f"TY_O_{DAY}_000001", 2: f"TY_O_{DAY}_000002_rest"}[snap]
    assert [each.name for each in records_in(repo, "visit")] == [name]


def test_the_instruments_class_does_not_change_that_each_exposure_is_a_visit(rigs: MakeRig) -> None:
    rig, worker = rigs(butler={"instrument_class": {NAME: f"{__name__}.GroupingCam"}})
    assert [visit for visit, _ in combined(take_snaps(rig, worker, (1, 2)))] == [FIRST, SECOND]


@pytest.mark.parametrize("grouping", ["one-to-one", "by-group"])
def test_a_supplement_belongs_to_its_visit(rigs: MakeRig, grouping: str) -> None:
    rig, worker = rigs(butler={"visits": {NAME: grouping}})
    add_combine(rig)
    worker.prepare(rig.order(main="Combine", before=""))
    worker.ingest(rig.raw())
    worker.ingest(rig.raw(seq_num=2, GROUPID=f"{GROUP}#1"))
    done = worker.process(Process(exposures=(FIRST, SECOND)))
    visits = [visit for visit, _ in combined(done)]
    assert visits == ([FIRST] if grouping == "by-group" else [FIRST, SECOND])
    records = read_manifest(Path(done.spool or "")).records
    exposures = [dict(each.record) for each in records if each.definition == "exposure"]
    assert [(each["id"], each["group"]) for each in exposures] == [(FIRST, GROUP), (SECOND, f"{GROUP}#1")]
    groups = [dict(each.record)["name"] for each in records if each.definition == "group"]
    assert set(groups) == {GROUP, f"{GROUP}#1"}


@pytest.mark.parametrize("kind", ["direct", "separable"])
def test_a_supplement_finds_the_datasets_made_before_the_image(rigs: MakeRig, kind: str) -> None:
    rig, worker = rigs(engine={"kind": kind})
    worker.prepare(rig.order(main="Full", before="Known"))
    worker.ingest(rig.raw(seq_num=2, GROUPID=f"{GROUP}#1"))
    done = worker.process(Process(exposures=(SECOND,)))
    assert (done.outcome, done.pipeline, done.engine) == (Outcome.SUCCEEDED, "Full", kind)


@ON_SQLITE
@pytest.mark.parametrize(
    ("kind", "pipeline"), [("direct", "Frame"), pytest.param("separable", "Full", marks=pytest.mark.slow)]
)
def test_a_supplement_stays_in_its_own_group_in_the_central_repo(
    rigs: MakeRig, tmp_path: Path, central: Central, kind: str, pipeline: str
) -> None:
    rig, worker = rigs(engine={"kind": kind}, export={"types": ["toy_.*"]})
    worker.prepare(rig.order(main=pipeline, before="Known"))
    worker.ingest(rig.raw(GROUPID=f"{GROUP}#1"))
    done = worker.process(Process(exposures=(FIRST,)))
    assert (done.outcome, done.engine) == (Outcome.SUCCEEDED, kind)
    exporter = CentralExporter(str(central.root), Clock(), "node1", tmp_path / "refused")
    assert len(exporter.export([Path(done.spool or "")]).spools) == 1
    exporter.close()
    (exposure,) = records_in(central.root, "exposure")
    assert exposure.group == f"{GROUP}#1"
    assert {each.name for each in records_in(central.root, "group")} == {GROUP, f"{GROUP}#1"}
    with Butler.from_config(str(central.root)) as butler:
        chain = f"{NAME}/prompt/output-2026-11-22"
        known = butler.query_datasets("toy_known", collections=chain, find_first=True)
    assert [ref.dataId["group"] for ref in known] == [GROUP]


@pytest.mark.parametrize("kind", ["direct", "separable"])
def test_snaps_of_one_name_in_different_folders_are_separate(rigs: MakeRig, kind: str) -> None:
    rig, worker = rigs(engine={"kind": kind})
    add_combine(rig)
    worker.prepare(rig.order(main="Combine", before="", nimages=2))
    for snap in (1, 2):
        raw = rig.raw(1, snap, sidecar=False, CURINDEX=snap, **SNAPS)
        path = rig.raws / str(snap) / "raw.fits"
        path.parent.mkdir()
        worker.ingest(raw.model_copy(update={"path": str(Path(raw.path).rename(path))}))
    texts = [text for _, text in combined(worker.process(Process(exposures=(FIRST, SECOND))))]
    assert [text.split() for text in texts] == [["snaps:", "-", "1"], ["snaps:", "-", "2"]]


def test_a_pipeline_after_one_that_another_engine_could_not_build_finds_its_raws(
    rigs: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = DirectEngine.build

    def decline(engine: DirectEngine, job: Job, *args: Any) -> DirectRun:
        if job.pipeline.name == "Unbuildable":
            raise Unsupported("adjustQuantum")
        return build(engine, job, *args)

    monkeypatch.setattr(DirectEngine, "build", decline)
    rig, worker = rigs(engine={"kind": "direct"})
    worker.prepare(rig.order(main="Unbuildable,Short", before=""))
    worker.ingest(rig.raw())
    done = worker.process(Process(exposures=(FIRST,)))
    assert (done.outcome, done.pipeline, done.engine) == (Outcome.SUCCEEDED, "Short", "separable")


def test_any_number_of_snaps_can_be_announced(rigs: MakeRig) -> None:
    rig, worker = rigs(engine={"kind": "direct"})
    order = rig.order(main="Short", before="", nimages=10**9)
    assert worker.prepare(order).detail["quanta"] <= MAX_EXPECTED


def test_a_calibration_exposure_makes_no_visit(rigs: MakeRig) -> None:
    rig, worker = rigs(engine=REGISTERS)
    worker.prepare(rig.order(main="Short", before="", coordinateSystem=1))
    worker.ingest(rig.raw(IMGTYPE="bias", RA=None, DEC=None, ROTPA=None))
    assert worker.process(Process(exposures=(FIRST,))).outcome == Outcome.SUCCEEDED
    assert not records_in(local_repo(rig), "visit")


def test_a_header_without_a_pointing_uses_the_announced_one(rigs: MakeRig) -> None:
    rig, worker = rigs(engine=REGISTERS)
    worker.prepare(rig.order(main="Short", before=""))
    worker.ingest(rig.raw(ROTPA=None))
    worker.process(Process(exposures=(FIRST,)))
    assert records_in(local_repo(rig), "visit")[0].region is not None


@pytest.mark.parametrize(("coordinates", "rotation"), [(1, 1), (3, 3), (4, 4), (2, 4)])
def test_a_visit_without_a_sky_position_is_processed_with_that_of_its_header(
    rigs: MakeRig, coordinates: int, rotation: int
) -> None:
    rig, worker = rigs(engine=REGISTERS)
    visit = {"coordinateSystem": coordinates, "rotationSystem": rotation}
    worker.prepare(rig.order(main="Short", before="", **visit))
    worker.ingest(rig.raw())
    assert worker.process(Process(exposures=(FIRST,))).outcome == Outcome.SUCCEEDED
    assert records_in(local_repo(rig), "visit")[0].region is not None


def test_azimuth_and_altitude_give_a_footprint_where_the_site_is_known() -> None:
    camera = toycam.load_toy_camera(NAME)
    site = Site(longitude_deg=-70.749, latitude_deg=-30.244, height_m=2663.0)
    sal = {"coordinateSystem": 3, "position": [150.0, 80.0], "rotationSystem": 3, "startTime": 1.8e9}
    visit = toycam.read_next_visit({"groupId": GROUP, "instrument": NAME} | sal)
    limits = {"padding_arcsec": 30.0, "image_deadline_s": 100.0, "now_tai": 1.8e9}
    footprint = footprint_of(visit, 1, camera.model_copy(update={"site": site}), **limits)
    assert footprint.pointing is not None
    assert footprint.region == padded_region(camera, footprint.pointing)
    assert footprint_of(visit, 1, camera, **limits).region is None


def padded_region(camera: Camera, pointing: Pointing) -> ConvexPolygon:
    """Return the footprint of detector 1 as announced on the sky."""
    sal = {
        "coordinateSystem": 2,
        "position": [pointing.ra_deg, pointing.dec_deg],
        "rotationSystem": 2,
        "cameraAngle": pointing.sky_angle_deg,
    }
    visit = toycam.read_next_visit({"groupId": GROUP, "instrument": NAME} | sal)
    region = footprint_of(visit, 1, camera, padding_arcsec=30.0, image_deadline_s=1.0, now_tai=1.8e9).region
    assert region is not None
    return region


# --- in the central repo ------------------------------------------------------


ARRIVED = {1: (1, 2), 2: (2,), 3: (1,)}
"""Snaps by detector."""


@pytest.fixture(scope="module")
def lacking(tmp_path_factory: pytest.TempPathFactory, rigs_in: Any) -> dict[int, Path]:
    """Return the spools of detectors, some of which lack a snap."""
    with rigs_in(tmp_path_factory.mktemp("lacking")) as rigs:
        done = {
            detector: take_snaps(*rigs(butler=BY_GROUP), snaps, detector)
            for detector, snaps in ARRIVED.items()
        }
    return {detector: Path(each.spool or "") for detector, each in done.items()}


def export(central: Central, folder: Path, spools: list[Path], together: bool) -> None:
    """Export copies of spools in their order, in one batch or each in its own."""
    copies = [Path(shutil.copytree(spool, folder / "spools" / spool.name)) for spool in spools]
    exporter = CentralExporter(str(central.root), Clock(), "node1", folder / "refused")
    for batch in [copies] if together else [[spool] for spool in copies]:
        assert len(exporter.export(batch).spools) == len(batch)
    exporter.close()


@pytest.mark.parametrize(
    ("order", "together"), [((2, 3, 1), False), pytest.param((2, 1, 3), True, marks=pytest.mark.slow)]
)
def test_detectors_that_lack_a_snap_do_not_contradict_the_others(
    lacking: dict[int, Path], tmp_path: Path, central: Central, order: tuple[int, ...], together: bool
) -> None:
    export(central, tmp_path, [lacking[detector] for detector in order], together)
    repo = central.root
    (visit,) = records_in(repo, "visit")
    assert (visit.id, visit.name) == (FIRST, f"TY_O_{DAY}_000001")
    assert (visit.exposure_time, visit.seq_num) == (60.0, 1)
    exposures = sorted(records_in(repo, "exposure"), key=lambda each: each.id)
    assert visit.timespan.begin == exposures[0].timespan.begin
    assert visit.timespan.end == exposures[1].timespan.end
    assert visit.region is not None
    assert pairs_of(records_in(repo, "visit_definition")) == [(FIRST, FIRST), (FIRST, SECOND)]
    assert sorted(each.detector for each in records_in(repo, "visit_detector_region")) == [1, 2, 3]
    with Butler.from_config(str(repo)) as butler:
        for detector, snaps in ARRIVED.items():
            found = butler.get(
                "toy_combined",
                {"instrument": NAME, "visit": FIRST, "detector": detector},
                collections=f"{NAME}/prompt/output-2026-11-22",
            )
            assert found["snaps"] == list(snaps)


@pytest.fixture(scope="module")
def pointings(tmp_path_factory: pytest.TempPathFactory, rigs_in: Any) -> dict[int, Path]:
    """Return the spools of two detectors: the header of the second one has no pointing."""
    spools = {}
    with rigs_in(tmp_path_factory.mktemp("pointings")) as rigs:
        for detector, place in ((1, {}), (2, {"RA": None, "DEC": None, "ROTPA": None})):
            rig, worker = rigs()
            worker.prepare(rig.order(detector, main="Short", before=""))
            worker.ingest(rig.raw(detector, **place))
            spools[detector] = Path(worker.process(Process(exposures=(FIRST,))).spool or "")
    return spools


@pytest.mark.parametrize("order", [(2, 1), (1, 2)])
@pytest.mark.parametrize("together", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_header_with_a_pointing_is_preferred_to_another_detectors_without(
    pointings: dict[int, Path], tmp_path: Path, central: Central, order: tuple[int, int], together: bool
) -> None:
    export(central, tmp_path, [pointings[detector] for detector in order], together)
    (exposure,) = records_in(central.root, "exposure")
    assert (exposure.tracking_ra, exposure.tracking_dec, exposure.sky_angle) == (RA, DEC, 0.0)
    assert len(records_in(central.root, "visit")) == 1


# --- images that contradict the announcement ----------------------------------


def test_an_exposure_that_contradicts_is_set_aside_and_the_others_run(
    rigs: MakeRig, caplog: pytest.LogCaptureFixture
) -> None:
    rig, worker = rigs(butler=BY_GROUP, engine=REGISTERS)
    add_combine(rig)
    worker.prepare(rig.order(main="Combine", before="", nimages=2))
    worker.ingest(rig.raw(seq_num=1, CURINDEX=1, **SNAPS))
    with pytest.raises(VisitFailed) as caught:
        worker.ingest(rig.raw(seq_num=2, CURINDEX=2, FILTER="g_01", ROTPA=200.0, RA=RA + 3.0, **SNAPS))
    assert caught.value.outcome == Outcome.BAD_RAW
    assert str(caught.value) == (
        f"exposure {SECOND} is not used: the boresight is 3 deg from the announced,"
        " the sky angle is 160 deg from the announced, the filter is g_01 instead of r_03"
    )
    assert not caught.value.retriable
    ((visit, text),) = combined(worker.process(Process(exposures=(FIRST,), partial=True)))
    assert (visit, "- 2" in text) == (FIRST, False)
    assert [each.id for each in records_in(local_repo(rig), "exposure")] == [FIRST]
    assert not list((rig.context.repo / "incoming").iterdir())


def test_limits_are_configurable(rigs: MakeRig) -> None:
    wide = {"pointing_deg": 10.0, "rotation_deg": 180.0, "filter": "ignore"}
    rig, worker = rigs(exposures=wide)
    worker.prepare(rig.order(main="Short", before=""))
    changed = {"FILTER": "g_01", "ROTPA": 170.0, "RA": RA + 3.0}
    assert worker.ingest(rig.raw(**changed)).exposure == FIRST


@pytest.mark.parametrize("name", ["i_07", 40 * "x"])
def test_a_raw_with_a_filter_that_is_not_registered_is_refused_by_name(rigs: MakeRig, name: str) -> None:
    rig, worker = rigs(exposures={"filter": "ignore"})
    worker.prepare(rig.order(main="Short", before=""))
    with pytest.raises(VisitFailed, match=f"its filter '{name}' is not registered") as caught:
        worker.ingest(rig.raw(FILTER=name))
    assert caught.value.outcome == Outcome.BAD_RAW


def test_a_property_of_the_wrong_type_is_converted_or_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Translators of the observatory return some keywords as they are in the header."""
    keys = {"exposure_group": "GROUPID", "object": "OBJECT", "observation_counter": "SEQNUM"}
    keys |= {"dark_time": "EXPTIME", "group_counter_start": "CURINDEX", "group_counter_end": "MAXINDEX"}
    for name, key in keys.items():
        read = functools.partialmethod(lambda self, key: self._header[key], key)
        monkeypatch.setattr(toycam.ToyTranslator, f"to_{name}", read)
    changed = {"GROUPID": 20261128000018, "OBJECT": 1.5, "SEQNUM": 1.0, "EXPTIME": "30.0"}
    changed |= {"CURINDEX": "1", "MAXINDEX": "two"}
    info = translate(toycam.make_header(1, 1, **changed), toycam.ToyCam(), "raw")
    assert (info.exposure_group, info.observation_counter) == ("20261128000018", 1)
    assert (info.group_counter_start, info.group_counter_end) == (1, None)
    raw = toycam.Raw(
        path="raw", instrument=NAME, group="20261128000018", detector=1, exposure=FIRST, seen_tai=0.0
    )
    record = exposure_records(DimensionUniverse(), check_expected(info, raw))[-1]
    assert (record.group, record.seq_num) == ("20261128000018", 1)
    assert (record.target_name, record.dark_time) == (None, None)


def compare(visit: dict[str, Any], header: dict[str, Any], **limits: Any) -> list[str]:
    """Return the differences between a header and an announcement."""
    raw_header = toycam.make_header(1, 1, **header)
    info = translate(raw_header, toycam.ToyCam(), "raw")
    raw = toycam.Raw(path="raw", instrument=NAME, group=GROUP, detector=1, exposure=FIRST, seen_tai=0.0)
    fields = {
        "groupId": GROUP,
        "instrument": NAME,
        "coordinateSystem": 2,
        "position": [RA, DEC],
        "rotationSystem": 2,
        "cameraAngle": 0.0,
        "filters": "r_03",
    }
    announced = toycam.read_next_visit(fields | visit)
    return contradictions(check_expected(info, raw), announced, ExposuresConfig(**limits))


AGREEING: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"cameraAngle": 359.6}, {"ROTPA": 0.5}),
    ({"cameraAngle": -0.5}, {"ROTPA": 0.4}),
    ({"cameraAngle": 720.0}, {"ROTPA": 0.0}),
    ({"position": [359.9, 0.0]}, {"RA": 0.1, "DEC": 0.0}),
    ({"position": [-10.0, 0.0]}, {"RA": 350.0, "DEC": 0.0}),
    ({"position": [10.0, 89.9]}, {"RA": 190.0, "DEC": 89.9}),
    ({"position": [RA + 1.4, 60.0]}, {"RA": RA, "DEC": 60.0}),
    ({"filters": ""}, {"FILTER": "g_01"}),
    ({"filters": "g_01, r_03"}, {"FILTER": "r_03"}),
    ({"position": [0.0, 0.0]}, {"RA": None}),
    ({"cameraAngle": 90.0}, {"ROTPA": None}),
    ({"coordinateSystem": 1, "position": [0.0, 0.0]}, {}),
    ({"coordinateSystem": 3, "position": [0.0, 50.0]}, {}),
    ({"coordinateSystem": 4, "position": [0.0, 50.0]}, {}),
    ({"rotationSystem": 1, "cameraAngle": 90.0}, {}),
    ({"rotationSystem": 3, "cameraAngle": 90.0}, {}),
    ({"position": [0.0, 0.0], "cameraAngle": 90.0, "filters": "g_01"}, {"IMGTYPE": "bias"}),
]


@pytest.mark.parametrize(("visit", "header"), AGREEING)
def test_equal_or_unknown_values_are_no_contradiction(visit: dict[str, Any], header: dict[str, Any]) -> None:
    assert compare(visit, header) == []


@pytest.mark.parametrize(
    ("visit", "header", "reason"),
    [
        ({"cameraAngle": 359.0}, {"ROTPA": 0.5}, "the sky angle is 1.5 deg from the announced"),
        ({"cameraAngle": 180.0}, {"ROTPA": 0.0}, "the sky angle is 180 deg from the announced"),
        ({"position": [359.4, 0.0]}, {"RA": 0.7, "DEC": 0.0}, "the boresight is 1.3 deg from the announced"),
        ({"position": [RA, DEC + 1.01]}, {}, "the boresight is 1.01 deg from the announced"),
        ({"filters": "g_01,u_05"}, {}, "the filter is r_03 instead of g_01 or u_05"),
    ],
)
def test_contradictions_are_named(visit: dict[str, Any], header: dict[str, Any], reason: str) -> None:
    assert compare(visit, header) == [reason]


def test_limits_are_limits() -> None:
    assert compare({"cameraAngle": 2.0}, {}, rotation_deg=2.5) == []
    assert compare({"position": [RA, DEC + 2.0]}, {}, pointing_deg=2.5) == []
    assert compare({"filters": "g_01"}, {}, filter="ignore") == []


def test_distances_are_those_along_the_great_circle() -> None:
    assert separation_deg((0.0, 90.0), (180.0, -90.0)) == pytest.approx(180.0)
    assert separation_deg((10.0, 0.0), (370.0, 0.0)) == pytest.approx(0.0, abs=1e-12)
    assert separation_deg((10.0, 60.0), (12.0, 60.0)) == pytest.approx(1.0, abs=1e-3)
    assert separation_deg((10.0, 20.0), (10.0, 20.0 + 1e-6)) == pytest.approx(1e-6, rel=1e-6)


# --- a visit's record ---------------------------------------------------------


def exposures_of(*changes: dict[str, Any]) -> list[Any]:
    """Return records of exposures 1, 2, ... with changed headers."""
    universe = DimensionUniverse()
    found = []
    for k, change in enumerate(changes, start=1):
        info = translate(toycam.make_header(1, k, **change), toycam.ToyCam(), "raw")
        raw = toycam.Raw(
            path="raw", instrument=NAME, group=GROUP, detector=1, exposure=DAY * 100000 + k, seen_tai=0.0
        )
        found.append(exposure_records(universe, check_expected(info, raw))[-1])
    return found


def test_values_that_differ_between_snaps_are_left_blank() -> None:
    snaps = exposures_of({}, {"OBJECT": "elsewhere", "PROGRAM": "BLOCK-2", "REASON": "other"})
    visit = joined_visit(DimensionUniverse(), FIRST, snaps, None)
    assert (visit.target_name, visit.science_program, visit.observation_reason) == (None, None, "various")
    assert (visit.physical_filter, visit.azimuth, visit.zenith_angle) == ("r_03", None, None)


@pytest.mark.parametrize(
    ("azimuths", "mean"), [((350.0, 20.0), 5.0), ((90.0, 90.0), 90.0), ((90.0, None), None)]
)
def test_the_directions_of_snaps_are_averaged_across_north(
    azimuths: tuple[float | None, ...], mean: float | None
) -> None:
    usual = {"timespan": Timespan.from_day_obs(DAY), "obs_id": "a", "day_obs": DAY, "instrument": NAME}
    snaps = [
        make_record(DimensionUniverse(), "exposure", id=number, azimuth=azimuth, **usual)
        for number, azimuth in enumerate(azimuths)
    ]
    visit = joined_visit(DimensionUniverse(), 0, snaps, None)
    assert visit.azimuth == pytest.approx(mean, abs=1e-9)


def visits_of(exposures: list[Any], **announced: Any) -> list[DimensionRecord]:
    """Return the records of the visits of exposures that were announced without a position on the sky."""
    usual = {"detector": 1, "camera": None, "grouped": False}
    places: Any = (DimensionUniverse(), None, None)
    footprint = SimpleNamespace(pointing=None)
    return AnnouncedVisit(*places, footprint=footprint, **usual | announced).visit_records(exposures)


@pytest.mark.parametrize(
    ("counters", "visit"),
    [
        ({"CURINDEX": 2}, FIRST),
        ({"CURINDEX": 1}, SECOND),
        ({"CURINDEX": 7}, SECOND),
    ],
)
def test_the_first_snap_of_a_sequence_names_the_visit(counters: dict[str, Any], visit: int) -> None:
    _, snap = exposures_of({}, counters)
    records = visits_of([snap], grouped=True)
    (record,) = [each for each in records if each.definition.name == "visit"]
    assert record.id == visit, "a sequence that began before the day's first exposure is invalid"


def test_a_detector_missing_in_the_table_has_no_region(caplog: pytest.LogCaptureFixture) -> None:
    camera = toycam.load_toy_camera(NAME)
    with caplog.at_level(logging.WARNING):
        records = visits_of(exposures_of({}), detector=99, camera=camera)
    assert "visit_detector_region" not in {each.definition.name for each in records}
    assert "is recorded without a region" in caplog.text
