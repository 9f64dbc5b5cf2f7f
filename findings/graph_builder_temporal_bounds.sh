#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# The graph builder ignores temporal bounds of connections, unless there are spatial ones, too.
#
# Package:  lsst-pipe-base 30.2026.4300, with Python 3.13. Date: 2026-11-29.
# Where:    AllDimensionsQuantumGraphBuilder._find_followup_datasets: whether to leave a
#           calibration to the search by quantum is decided by "spatial_connections" in
#           the branch for temporal bounds.
# Expected: a task whose getTemporalBoundsConnections names an input gets the calibration
#           that is valid at the time of that input.
# Seen:     it is joined by the time of the quantum alone: FileNotFoundError, not enough
#           datasets. If getSpatialBoundsConnections names the input, too, it is found.
#
# Exit status: 0 if this is still so, 1 if the behavior has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check lsst-pipe-base==30.2026.4300
"$work/venv/bin/python" - "$work/repo" <<'PY'
import sys

import astropy.time
import lsst.pipe.base.connectionTypes as connections
from lsst.daf.butler import Butler, CollectionType, DatasetType, Timespan
from lsst.pipe.base import PipelineTask, PipelineTaskConfig, PipelineTaskConnections
from lsst.pipe.base.all_dimensions_quantum_graph_builder import AllDimensionsQuantumGraphBuilder
from lsst.pipe.base.pipeline_graph import PipelineGraph

Butler.makeRepo(sys.argv[1])
butler = Butler.from_config(sys.argv[1], writeable=True)


def hour(number: int) -> astropy.time.Time:
    return astropy.time.Time(f"2026-01-01T{number:02d}:00:00", scale="tai")


for element, record in (
    ("instrument", {"name": "Cam", "detector_max": 1, "visit_max": 9, "exposure_max": 9}),
    ("physical_filter", {"instrument": "Cam", "name": "r", "band": "r"}),
    ("day_obs", {"instrument": "Cam", "id": 20260101, "timespan": Timespan(hour(0), hour(23))}),
    ("group", {"instrument": "Cam", "name": "g"}),
    (
        "exposure",
        {
            "instrument": "Cam",
            "id": 1,
            "obs_id": "o1",
            "group": "g",
            "physical_filter": "r",
            "day_obs": 20260101,
            "timespan": Timespan(hour(3), hour(4)),
        },
    ),
):
    butler.registry.insertDimensionData(element, record)
DICT = "StructuredDataDict"
for name, dimensions, calibration in (
    ("night", ("instrument", "day_obs"), False),
    ("bias", ("instrument",), True),
):
    group = butler.dimensions.conform(dimensions)
    butler.registry.registerDatasetType(DatasetType(name, group, DICT, isCalibration=calibration))
for run in ("nights", "biases"):
    butler.collections.register(run)
butler.put({}, "night", instrument="Cam", day_obs=20260101, run="nights")
bias = butler.put({}, "bias", instrument="Cam", run="biases")
butler.collections.register("calib", CollectionType.CALIBRATION)
butler.registry.certify("calib", [bias], Timespan(hour(10), hour(11)))  # in the night, not in the exposure


class TemporalConnections(PipelineTaskConnections, dimensions=("instrument", "exposure")):
    night = connections.Input(name="night", doc="", storageClass=DICT, dimensions=("instrument", "day_obs"))
    bias = connections.PrerequisiteInput(
        name="bias", doc="", storageClass=DICT, dimensions=("instrument",), isCalibration=True
    )
    output = connections.Output(name="made", doc="", storageClass=DICT, dimensions=("instrument", "exposure"))

    def getTemporalBoundsConnections(self):
        return ("night",)


class BothConnections(TemporalConnections, dimensions=("instrument", "exposure")):
    def getSpatialBoundsConnections(self):
        return ("night",)


def biases(of: type[PipelineTaskConnections]) -> int | str:
    class Config(PipelineTaskConfig, pipelineConnections=of):
        pass

    class Task(PipelineTask):
        ConfigClass = Config
        _DefaultName = "task"

    graph = PipelineGraph()
    graph.add_task("task", Task, Config())
    builder = AllDimensionsQuantumGraphBuilder(
        graph, butler, input_collections=["nights", "calib"], output_run=f"made_{of.__name__}"
    )
    try:
        built = builder.finish(attach_datastore_records=False).assemble()
    except Exception as error:
        return type(error).__name__
    (quantum,) = built.build_execution_quanta().values()
    return len(quantum.inputs["bias"])


seen = biases(TemporalConnections), biases(BothConnections)
print("biases with temporal bounds:", seen[0])
print("biases with temporal and spatial bounds:", seen[1])
sys.exit(0 if seen == ("FileNotFoundError", 1) else 1)
PY
