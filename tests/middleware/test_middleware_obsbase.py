# SPDX-License-Identifier: BSD-3-Clause
"""Ingest by lsst.obs.base, tested with a replacement of that package.

The real package is not on PyPI. These tests show that its tasks are called as
their signatures of 2025 require, and that the datasets and records they leave
in the repo are found, processed and exported.
"""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import toycam
from astropy.io import fits
from lsst.daf.butler import Butler, DatasetRef, FileDataset
from lsst.pipe.base import Struct
from toycam import DAY, GROUP, NAME, MakeRig

from ppdaemon.errors import ConfigError, VisitFailed
from ppdaemon.messages import Process, Raw
from ppdaemon.middleware import work
from ppdaemon.middleware.export.manifest import read_manifest
from ppdaemon.middleware.raws import obsbase
from ppdaemon.middleware.raws.header import check_expected, translate
from ppdaemon.middleware.raws.records import exposure_records, make_record
from ppdaemon.middleware.raws.visits import joined_visit
from ppdaemon.states import Outcome

pytest_plugins = ("toyfixtures",)

FIRST = DAY * 100000 + 1
GROUP_ID = 4711
"""Visit id that the replacement gives to any group."""


class RawIngestConfig:
    def __init__(self) -> None:
        self.transfer = "auto"
        self.failFast = False


class RawIngestTask:
    """Takes a file as the real one does: by its own header, into the given run."""

    _DefaultName: ClassVar[str] = "ingest"

    def __init__(self, config: RawIngestConfig, *, butler: Butler, **kwargs: Any):
        assert not kwargs
        self.config = config
        self.butler = butler

    def run(self, files: Any, *, run: str | None = None) -> list[DatasetRef]:
        return [self._take(path, run) for path in files]

    def _take(self, path: str, run: str | None) -> DatasetRef:
        header = dict(fits.getheader(path))
        if header["OBJECT"] == "unknown":
            raise RuntimeError("Some failures encountered during ingestion")
        exposure = DAY * 100000 + header["SEQNUM"]
        raw = Raw(
            path=path,
            instrument=NAME,
            group=GROUP,
            detector=header["DETECTOR"],
            exposure=exposure,
            seen_tai=0.0,
        )
        known = check_expected(translate(header, toycam.ToyCam(), path), raw)
        known = replace(known, group=header["GROUPID"])
        for record in exposure_records(self.butler.dimensions, known):
            self.butler.registry.syncDimensionData(record.definition.name, record)
        data_id = self.butler.registry.expandDataId(
            instrument=NAME, exposure=exposure, detector=known.detector
        )
        ref = DatasetRef(self.butler.get_dataset_type("raw"), data_id, run=run or "")
        self.butler.ingest(
            FileDataset(path, ref, formatter=toycam.ToyFormatter), transfer=self.config.transfer
        )
        return ref


class DefineVisitsConfig:
    def __init__(self) -> None:
        self.groupExposures = "one-to-one-and-by-counter"


class DefineVisitsTask:
    """Makes visits with regions of all detectors, as the real one does."""

    _DefaultName: ClassVar[str] = "defineVisits"
    searched: ClassVar[list[Any]] = []

    def __init__(self, config: DefineVisitsConfig, *, butler: Butler, **kwargs: Any):
        assert not kwargs
        self.config = config
        self.butler = butler

    def run(
        self,
        dataIds_or_records: Any,  # noqa: N803
        *,
        collections: Any = None,
        update_records: bool = False,
        incremental: bool = False,
    ) -> Struct:
        self.searched.append(collections)
        exposures = [
            self.butler.registry.expandDataId(each).records["exposure"] for each in dataIds_or_records
        ]
        match self.config.groupExposures:
            case "one-to-one":
                for exposure in exposures:
                    self._define(exposure.id, [exposure], 0, "one-to-one")
            case "by-group-metadata":
                self._define(GROUP_ID, exposures, 1, "by-group-metadata")
            case unexpected:
                raise AssertionError(unexpected)
        return Struct(n_visits=len(exposures))

    def _define(self, visit: int, exposures: list[Any], system: int, name: str) -> None:
        universe, insert = self.butler.dimensions, self.butler.registry.insertDimensionData
        keys = {"instrument": NAME, "visit": visit}
        region = toycam.box(149.0, 1.0, 151.0, 3.0)
        self.butler.registry.syncDimensionData(
            "visit_system", {"instrument": NAME, "id": system, "name": name}
        )
        insert("visit", joined_visit(universe, visit, exposures, region))
        insert("visit_system_membership", {"visit_system": system} | keys)
        insert("visit_definition", *({"exposure": each.id} | keys for each in exposures))
        regions = [
            make_record(universe, "visit_detector_region", detector=k, region=region, **keys)
            for k in range(toycam.DETECTORS)
        ]
        insert("visit_detector_region", *regions)


@pytest.fixture
def fake_obs_base(monkeypatch: pytest.MonkeyPatch) -> type[DefineVisitsTask]:
    """Return a replacement of lsst.obs.base."""
    module: Any = ModuleType("lsst.obs.base")
    for each in (RawIngestConfig, RawIngestTask, DefineVisitsConfig, DefineVisitsTask):
        setattr(module, each.__name__, each)
    monkeypatch.setitem(sys.modules, "lsst.obs", ModuleType("lsst.obs"))
    monkeypatch.setitem(sys.modules, "lsst.obs.base", module)
    monkeypatch.setattr(DefineVisitsTask, "searched", [])
    return DefineVisitsTask


@pytest.mark.parametrize(("grouping", "visit"), [("one-to-one", FIRST), ("by-group", GROUP_ID)])
def test_its_tasks_ingest_and_define_visits(
    rigs: MakeRig, fake_obs_base: type[DefineVisitsTask], grouping: str, visit: int
) -> None:
    rig, worker = rigs(butler={"ingest": {NAME: "obs_base"}, "visits": {NAME: grouping}})
    worker.prepare(rig.order(main="Frame", before=""))
    raw = rig.raw()
    worker.ingest(raw)
    assert Path(raw.path).exists(), "only its copy was moved"
    assert not list((rig.context.repo / "incoming").iterdir())
    done = worker.process(Process(exposures=(FIRST,)))
    assert done.outcome == Outcome.SUCCEEDED
    assert done.spool is not None
    manifest = read_manifest(Path(done.spool))
    (image,) = [file for file in manifest.files if file.refs[0].datasetType.name == "toy_image"]
    assert dict(image.refs[0].dataId.dataId)["visit"] == visit
    made = [record.definition for record in manifest.records]
    assert sorted(made) == [
        "day_obs",
        "exposure",
        "group",
        "group",
        "visit",
        "visit_definition",
        "visit_detector_region",
        "visit_system",
        "visit_system_membership",
    ], "records of this detector only, although regions of all are created"
    assert len(fake_obs_base.searched[0]) > 0, "the camera may be one of the preloaded datasets"


def test_a_supplement_finds_what_was_made_before_the_image(
    rigs: MakeRig, fake_obs_base: type[DefineVisitsTask]
) -> None:
    rig, worker = rigs(butler={"ingest": "obs_base"})
    worker.prepare(rig.order(main="Full", before="Known"))
    worker.ingest(rig.raw(GROUPID=f"{GROUP}#1"))
    done = worker.process(Process(exposures=(FIRST,)))
    assert (done.outcome, done.pipeline) == (Outcome.SUCCEEDED, "Full")


def test_a_file_that_obs_base_cannot_ingest_is_a_bad_raw(
    rigs: MakeRig, fake_obs_base: type[DefineVisitsTask]
) -> None:
    rig, worker = rigs(butler={"ingest": "obs_base"})
    worker.prepare(rig.order(main="Short", before=""))
    with pytest.raises(
        VisitFailed, match="obs_base cannot ingest the raw: RuntimeError: Some failures"
    ) as caught:
        worker.ingest(rig.raw(OBJECT="unknown"))
    assert caught.value.outcome == Outcome.BAD_RAW
    assert worker.ingest(rig.raw(seq_num=2)).exposure == FIRST + 1


def test_a_raw_that_contradicts_its_announcement_is_not_ingested(
    rigs: MakeRig, fake_obs_base: type[DefineVisitsTask]
) -> None:
    rig, worker = rigs(butler={"ingest": "obs_base"})
    worker.prepare(rig.order(main="Short", before=""))
    with pytest.raises(VisitFailed, match="is not used: the filter is g_01"):
        worker.ingest(rig.raw(FILTER="g_01"))


def test_the_start_fails_if_the_package_is_missing(rigs: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lsst.obs.base", None)
    rig, _ = rigs(butler={"ingest": {NAME: "obs_base"}})
    with pytest.raises(ConfigError, match=r"butler\.ingest: obs_base is configured for ToyCam"):
        work.build_template(rig.context)


def test_the_package_is_imported_only_if_configured(rigs: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lsst.obs.base", None)
    classes = {name: f"{toycam.__name__}.ToyCam" for name in (NAME, "OtherCam")}
    rig, worker = rigs(butler={"ingest": {"OtherCam": "obs_base"}, "instrument_class": classes})
    assert rig.config.butler is not None
    obsbase.require_obs_base(rig.config.butler, rig.config.node.instruments)
    worker.prepare(rig.order(main="Short", before=""))
    worker.ingest(rig.raw())
    assert worker.process(Process(exposures=(FIRST,))).outcome == Outcome.SUCCEEDED
