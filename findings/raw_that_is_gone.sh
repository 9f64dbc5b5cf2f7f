#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# A raw whose file is gone when its task begins is a success without outputs, and is never tried again.
#
# Package:  lsst-pipe-base 30.2026.4300, lsst-daf-butler 30.2026.4300, with Python 3.13. Date: 2026-11-30.
# Where:    SeparablePipelineExecutor (as `pipetask run`, with a full Butler), if the file of an input that no task
#           makes disappears between building the graph and running it: a purge, or storage that is away.
# Expected: FileNotFoundError and a failed quantum, as for a prerequisite (a bias), and as with a graph that has
#           datastore records: "an unexpected problem that we want to raise as an exception, and definitely
#           not a case where some predicted output just wasn't produced".
# Seen:     the quantum "has nothing to do", at level INFO: it succeeds, its metadata are written with caveats 15;
#           so it is with all that follow from it. run_pipeline returns without an error. When the file is back, a
#           graph with skip_existing_in has no quanta: they "previously succeeded". Build the graph with
#           attach_datastore_records=True (pipetask --qgraph-datastore-records), or look for the flag
#           ADJUST_QUANTUM_RAISED in the metadata of tasks that read raws.
#
# Exit status: 0 if this is still so, 1 if the behavior has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    lsst-pipe-base==30.2026.4300 lsst-daf-butler==30.2026.4300
cat > "$work/readers.py" <<'PY'
from lsst.pipe.base import PipelineTask, PipelineTaskConfig, PipelineTaskConnections, Struct
from lsst.pipe.base import connectionTypes as kinds

EXPOSURE = ("instrument", "exposure", "detector")
KIND = {"doc": "A dictionary.", "storageClass": "StructuredDataDict"}


class FirstConnections(PipelineTaskConnections, dimensions=EXPOSURE):
    raw = kinds.Input(name="raw", dimensions=EXPOSURE, **KIND)
    bias = kinds.PrerequisiteInput(name="bias", dimensions=("instrument", "detector"), **KIND)
    out = kinds.Output(name="first", dimensions=EXPOSURE, **KIND)


class SecondConnections(PipelineTaskConnections, dimensions=EXPOSURE):
    first = kinds.Input(name="first", dimensions=EXPOSURE, **KIND)
    out = kinds.Output(name="second", dimensions=EXPOSURE, **KIND)


class FirstConfig(PipelineTaskConfig, pipelineConnections=FirstConnections):
    pass


class SecondConfig(PipelineTaskConfig, pipelineConnections=SecondConnections):
    pass


class FirstTask(PipelineTask):
    ConfigClass = FirstConfig
    _DefaultName = "first"

    def run(self, raw: dict, bias: dict) -> Struct:
        return Struct(out=raw | bias)


class SecondTask(PipelineTask):
    ConfigClass = SecondConfig
    _DefaultName = "second"

    def run(self, first: dict) -> Struct:
        return Struct(out=first)
PY
PYTHONPATH=$work "$work/venv/bin/python" -W ignore - "$work/repo" <<'PY'
import logging
import sys
from pathlib import Path

from lsst.daf.butler import Butler, DatasetType
from lsst.pipe.base import Pipeline
from lsst.pipe.base.separable_pipeline_executor import SeparablePipelineExecutor
from readers import EXPOSURE, FirstTask, SecondTask

logging.getLogger("lsst").setLevel(logging.CRITICAL)  # of what fails as expected
Butler.makeRepo(sys.argv[1])
butler = Butler.from_config(sys.argv[1], writeable=True)
CAM = {"instrument": "Cam"}
KEYS = CAM | {"detector": 1, "exposure": 1}
for element, record in {
    "instrument": {"name": "Cam"},
    "detector": CAM | {"id": 1, "full_name": "1"},
    "physical_filter": CAM | {"name": "r", "band": "r"},
    "day_obs": CAM | {"id": 20260101},
    "group": CAM | {"name": "one"},
    "exposure": CAM
    | {"id": 1, "obs_id": "1", "physical_filter": "r", "day_obs": 20260101, "group": "one", "seq_num": 1},
}.items():
    butler.registry.insertDimensionData(element, record)
refs = {}
for name, dimensions in (("raw", EXPOSURE), ("bias", ("instrument", "detector"))):
    dataset_type = DatasetType(name, dimensions, "StructuredDataDict", universe=butler.dimensions)
    butler.registry.registerDatasetType(dataset_type)
    butler.collections.register(f"{name}s")
    refs[name] = butler.put({name: 1}, name, KEYS, run=f"{name}s")
pipeline = Pipeline("two tasks")
pipeline.addTask(FirstTask, "first")
pipeline.addTask(SecondTask, "second")


def build(run: str, **options: object) -> tuple[SeparablePipelineExecutor, object, Butler]:
    butler.collections.register(run)
    client = Butler.from_config(sys.argv[1], collections=["raws", "biass"], run=run)
    executor = SeparablePipelineExecutor(client, **options)
    return executor, executor.make_quantum_graph(pipeline), client


def processed(run: str, absent: str, *, records: bool) -> object:
    """Run the pipeline without the file of an input; return the error, or outputs and caveats."""
    executor, _, client = build(run)
    graph = executor.make_quantum_graph(pipeline, attach_datastore_records=records)
    executor.pre_execute_qgraph(graph, register_dataset_types=True)
    file = Path(butler.getURI(refs[absent]).ospath)
    content = file.read_bytes()
    file.unlink()
    try:
        executor.run_pipeline(graph)
    except Exception as error:
        return type(error).__name__
    finally:
        file.write_bytes(content)
    client.registry.refresh()
    made = client.query_datasets("second", run, explain=False)
    metadata = (client.get(f"{label}_metadata", KEYS, collections=run) for label in ("first", "second"))
    return len(made), *(int(each["quantum"]["caveats"]) for each in metadata)


seen = {
    "bias is gone": processed("1", "bias", records=False),
    "raw is gone": processed("2", "raw", records=False),
    "raw is back, quanta": len(build("2", skip_existing_in=["2"])[1]),
    "raw is gone, records": processed("3", "raw", records=True),
}
for name, value in seen.items():
    print(f"{name}: {value}")
expected = {
    "bias is gone": "MPGraphExecutorError",
    "raw is gone": (0, 15, 15),
    "raw is back, quanta": 0,
    "raw is gone, records": "MPGraphExecutorError",
}
sys.exit(0 if seen == expected else 1)
PY
