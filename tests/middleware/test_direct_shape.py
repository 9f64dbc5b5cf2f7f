# SPDX-License-Identifier: BSD-3-Clause
"""Which pipelines the ``direct`` engine refuses, and rows made of records in memory."""

import types
from collections.abc import Collection
from typing import Any

import pytest
from lsst.daf.butler import DatasetType, DimensionRecord, DimensionUniverse
from lsst.pipe.base import PipelineTask, PipelineTaskConfig, PipelineTaskConnections
from lsst.pipe.base.connectionTypes import BaseInput, Input, Output, PrerequisiteInput
from lsst.pipe.base.pipeline_graph import PipelineGraph
from lsst.sphgeom import Angle, Ellipse, LonLat, Region, UnitVector3d
from toycam import DAY, EXPOSURE, NAME, VISIT, box

from ppdaemon.middleware.direct.dataids import DataIds
from ppdaemon.middleware.direct.inputs import spatial_join
from ppdaemon.middleware.direct.shape import PipelineShape, pipeline_shape
from ppdaemon.middleware.raws.records import make_record
from ppdaemon.middleware.raws.regions import regions_overlap
from ppdaemon.middleware.run.engine import Unsupported

UNIVERSE = DimensionUniverse()
SKY = ("skymap", "tract", "patch")


class Plain(PipelineTaskConnections, dimensions=EXPOSURE):
    """The output that each of these tasks has."""

    output = Output(name="output", doc="", storageClass="StructuredDataDict", dimensions=EXPOSURE)


class Together(Plain, dimensions=EXPOSURE):
    def adjust_all_quanta(self, adjuster: Any) -> None:
        """Decide over all quanta at once."""


class Bound(Plain, dimensions=VISIT):
    raw = Input(name="raw", doc="", storageClass="StructuredDataDict", dimensions=EXPOSURE)

    def getSpatialBoundsConnections(self) -> Collection[str]:  # noqa: N802
        return ("raw",)


def reading(*inputs: BaseInput, dimensions: tuple[str, ...] = EXPOSURE) -> type[PipelineTaskConnections]:
    """Return the connections of a task with these inputs."""
    names = {f"input{number}": each for number, each in enumerate(inputs)}
    output = Output(name="output", doc="", storageClass="StructuredDataDict", dimensions=dimensions)
    body = {"output": output} | names
    bases, options = (PipelineTaskConnections,), {"dimensions": dimensions}
    return types.new_class("Reading", bases, options, lambda namespace: namespace.update(body))


def an_input(name: str, dimensions: tuple[str, ...], kind: type[BaseInput] = Input, **more: Any) -> BaseInput:
    usual = {"doc": "", "storageClass": "StructuredDataDict"}
    return kind(name=name, dimensions=dimensions, **usual | more)


def shape_of_task(connections: type[PipelineTaskConnections]) -> PipelineShape:
    """Return the shape of a pipeline of one task."""

    class Config(PipelineTaskConfig, pipelineConnections=connections):
        pass

    class Task(PipelineTask):
        ConfigClass = Config
        _DefaultName = "task"

    graph = PipelineGraph(universe=UNIVERSE)
    graph.add_task("task", Task, Config())  # type: ignore[no-untyped-call]
    registered = DatasetType("one", EXPOSURE, "DataFrame", universe=UNIVERSE)
    graph.resolve(dimensions=UNIVERSE, dataset_types={"one": registered})
    return pipeline_shape(graph)


@pytest.mark.parametrize(
    ("connections", "reason"),
    [
        (reading(dimensions=()), "task: a task without dimensions"),
        (Together, "task: its connections override adjust_all_quanta"),
        (Bound, "task: spatial or temporal bounds of other connections"),
        (
            reading(an_input("bias", ("instrument", "detector"), isCalibration=True)),
            "task.input0: a calibration that is a regular input",
        ),
        (
            reading(an_input("raw", EXPOSURE, PrerequisiteInput)),
            "task.input0: a raw that is a prerequisite",
        ),
        (
            reading(an_input("shards", ("htm9",), PrerequisiteInput, multiple=True), dimensions=VISIT),
            "task.input0: a prerequisite that the registry cannot join by regions of "
            "htm9, visit_detector_region",
        ),
        (
            reading(an_input("shards", ("htm9",), PrerequisiteInput, multiple=True)),
            "task.input0: a prerequisite that the registry cannot join by regions of htm9",
        ),
        (
            reading(
                an_input("shards", ("htm7",), PrerequisiteInput, multiple=True), dimensions=(*VISIT, *SKY)
            ),
            "task.input0: a prerequisite that the registry cannot join by regions of "
            "htm7, patch, visit_detector_region",
        ),
        (
            reading(an_input("maps", ("healpix9",)), dimensions=VISIT),
            "maps: a regular input with sky pixels other than htm7",
        ),
        (
            reading(dimensions=(*VISIT, *SKY, "htm7")),
            "datasets with dimension htm7, and not one other kind of region to join",
        ),
        (
            reading(dimensions=(*EXPOSURE, "htm7")),
            "datasets with dimension htm7, and not one other kind of region to join",
        ),
        (reading(dimensions=(*EXPOSURE, "healpix9")), "dimension healpix9 of several regions, or of none"),
        (
            reading(dimensions=(*VISIT, "healpix9", "healpix7")),
            "dimension healpix7, healpix9 of several regions, or of none",
        ),
        (
            reading(
                *(an_input("one", EXPOSURE, storageClass=kind) for kind in ("DataFrame", "ArrowAstropy"))
            ),
            "task: one read as two storage classes",
        ),
        (reading(an_input("part", (*EXPOSURE, "subfilter"))), "datasets with dimension subfilter"),
    ],
)
def test_an_unsupported_pipeline_is_refused_with_the_reason(
    connections: type[PipelineTaskConnections], reason: str
) -> None:
    with pytest.raises(Unsupported) as caught:
        shape_of_task(connections)
    assert str(caught.value) == reason


def test_a_prerequisite_is_joined_by_the_finest_regions_that_one_data_id_does_not_have() -> None:
    tract, patch, visit = (UNIVERSE.conform(each) for each in (("tract",), ("patch",), VISIT))
    names = [
        None if (pair := spatial_join(task, dataset)) is None else [each.name for each in pair]
        for task, dataset in [
            (visit, UNIVERSE.conform(("htm7",))),
            (visit, patch),
            (visit.union(tract), patch),
            (tract, patch),
            (visit.union(patch), patch),
            (UNIVERSE.conform(EXPOSURE), patch),
            (visit, UNIVERSE.conform(("instrument", "detector"))),
        ]
    ]
    with pytest.raises(Unsupported, match="by regions of patch, visit_detector_region"):
        spatial_join(UNIVERSE.conform(("visit", "patch")), UNIVERSE.conform(("detector", "patch")))
    region = "visit_detector_region"
    assert names == [[region, "htm7"], [region, "patch"], [region, "patch"], None, None, None, None]


def test_the_shape_of_a_supported_pipeline_has_its_inputs_and_outputs() -> None:
    shape = shape_of_task(reading(an_input("raw", EXPOSURE)))
    (task,) = shape.tasks
    assert (set(shape.external), task.immediate, task.deferred) == ({"raw"}, ("raw",), frozenset())
    assert {"raw", "output"} <= set(shape.types)


# --- rows ------------------------------------------------------------------


def records(**visit: Any) -> list[DimensionRecord]:
    """Return the records of an exposure and its visit, which may differ."""
    keys, physical = {"instrument": NAME}, {"physical_filter": "r_03", "day_obs": DAY}
    return [
        make_record(UNIVERSE, "physical_filter", **keys, name="r_03", band="r"),
        make_record(UNIVERSE, "exposure", **keys, **physical, id=1, group="g"),
        make_record(UNIVERSE, "visit", **keys, **physical | visit, id=7),
        make_record(UNIVERSE, "visit_definition", **keys, exposure=1, visit=7),
        make_record(UNIVERSE, "visit_definition", **keys, exposure=2, visit=8),
        make_record(UNIVERSE, "visit_system_membership", **keys, visit=7, visit_system=0),
        make_record(UNIVERSE, "visit_system_membership", **keys, visit=8, visit_system=0),
    ]


def test_an_exposure_is_joined_with_its_own_visits() -> None:
    data_ids = DataIds(UNIVERSE, records())
    (row,) = data_ids.rows(UNIVERSE.conform(VISIT), NAME, 3, [1])
    assert (row["visit"], row["band"], row["detector"]) == (7, "r", 3)
    (row,) = data_ids.rows(UNIVERSE.conform((*VISIT, "visit_system")), NAME, 3, [1])
    assert (row["visit"], row["visit_system"]) == (7, 0)


def test_a_visit_of_another_day_is_not_joined() -> None:
    data_ids = DataIds(UNIVERSE, records(day_obs=DAY + 1))
    assert list(data_ids.rows(UNIVERSE.conform(VISIT), NAME, 3, [1])) == []


def test_a_missing_record_is_reported() -> None:
    with pytest.raises(Unsupported, match=rf"no record of exposure \('{NAME}', 9\)"):
        list(DataIds(UNIVERSE, records()).rows(UNIVERSE.conform(EXPOSURE), NAME, 3, [9]))


def ellipse(ra_deg: float) -> Region:
    center = UnitVector3d(LonLat.fromDegrees(ra_deg, 0.0))
    return Ellipse(center, Angle.fromDegrees(0.2), Angle.fromDegrees(0.1), Angle(0.0))


def test_regions_overlap_as_in_the_registry() -> None:
    field = box(10.0, -1.0, 11.0, 1.0)
    assert regions_overlap(field, box(10.5, 0.0, 12.0, 1.0), UNIVERSE)
    assert not regions_overlap(field, box(20.0, 0.0, 21.0, 1.0), UNIVERSE)
    assert not regions_overlap(field, None, UNIVERSE)
    assert ellipse(10.0).overlaps(ellipse(10.1)) is None, "then pixels decide"
    assert regions_overlap(ellipse(10.0), ellipse(10.1), UNIVERSE)
    assert not regions_overlap(ellipse(10.0), ellipse(80.0), UNIVERSE)
