# SPDX-License-Identifier: BSD-3-Clause
"""Datasets that programs of others look for: metrics of the preload, provenance, the run of preprocessing."""

import json
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from centrals import CHAIN, ON_SQLITE, Central
from enginecompare import EXPOSURE, PAIR, start_worker
from lsst.daf.butler import Butler
from lsst.pipe.base.quantum_graph import ProvenanceQuantumGraph, ProvenanceQuantumGraphReader
from toycam import GROUP, NAME, MakeRig

from ppdaemon.clock import Clock
from ppdaemon.messages import Process
from ppdaemon.middleware.export.exporter import CentralExporter
from ppdaemon.middleware.export.manifest import Manifest, read_manifest
from ppdaemon.publish.messages import BUNDLES
from ppdaemon.states import Outcome

pytest_plugins = ("toyfixtures", "dbfixtures")


def spooled(rigs: MakeRig, kind: str = "direct", **options: Any) -> tuple[Path, Manifest]:
    """Process a visit; return its spool."""
    order = {name: options.pop(name) for name in ("main", "before") if name in options}
    rig, worker = start_worker(rigs, kind, **options)
    worker.prepare(rig.order(**({"main": "Full", "before": "Known"} | order)))
    worker.ingest(rig.raw())
    spool = Path(worker.process(Process(exposures=(EXPOSURE,))).spool or "")
    return spool, read_manifest(spool)


def files_of(spool: Path, manifest: Manifest, name: str) -> dict[str, Path]:
    """Return the files of a dataset type, by the pipeline in the name of the run."""
    found = {}
    for file in manifest.files:
        (ref,) = file.refs
        if ref.datasetType is not None and ref.datasetType.name == name:
            assert ref.dataId is not None
            assert ref.dataId.dataId == {"instrument": NAME, "group": GROUP, "detector": 1}
            found[str(ref.run).split("/")[-2]] = spool / file.name
    return found


def test_the_preload_writes_the_metrics_of_the_field_under_their_names(rigs: MakeRig) -> None:
    ((run, path),) = files_of(*spooled(rigs), "promptPreload_metrics").items()
    assert run == "NoPipeline"
    bundle = json.loads(path.read_text())
    assert (bundle.pop("__dataset_identifier"), bundle.pop("__metricNamePrefix")) == ("Live", "")
    ((action, measurements),) = bundle.items()
    assert action == "prepButlerTimeMetric"
    assert {each["unit"] for each in measurements} == {"s"}
    assert len({uuid.UUID(each["identifier"]) for each in measurements}) == 4
    times = {each["metric"]: each["value"] for each in measurements}
    total = times.pop("prep_butlerTotalTime")
    assert times.keys() == {"prep_butlerSearchTime", "prep_butlerTransferTime", "prep_butlerPreprocessTime"}
    assert all(value > 0 for value in times.values())
    assert sum(times.values()) <= total + 2e-4 < 60, "rounded to 0.1 ms each"


def test_the_outputs_of_preprocessing_are_in_a_run_of_its_name(rigs: MakeRig) -> None:
    _, manifest = spooled(rigs)
    runs = {ref.datasetType.name: str(ref.run) for file in manifest.files for ref in file.refs}  # type: ignore[union-attr]
    assert runs["toy_known"].split("/")[-2] == "Known"
    assert runs["regionTimeInfo"].split("/")[-2] == "NoPipeline"
    ((_, chained),) = manifest.chains.items()
    assert [run.split("/")[-2] for run in chained] == ["Full", "Known", "NoPipeline"]


def described(path: Path) -> dict[str, Any]:
    """Return what a provenance graph has, without identifiers and times."""
    with ProvenanceQuantumGraphReader.open(path.as_uri()) as reader:
        reader.read_full_graph()
        graph = reader.graph
        logged = reader.fetch_logs(graph.quantum_only_xgraph)
        metadata = reader.fetch_metadata(graph.quantum_only_xgraph)
        assert "ppdaemon" in reader.fetch_packages()
    quanta = {}
    for quantum_id, node in graph.quantum_only_xgraph.nodes.items():
        (attempt,) = node["attempts"] or (None,)
        quanta[node["task_label"]] = (
            node["status"].name,
            str(node["data_id"]),
            attempt and attempt.exception and attempt.exception.message,
            sorted(neighbors(graph, quantum_id)),
            bool(logged.get(quantum_id)) and any(logged[quantum_id]),
            [sorted(each.keys()) for each in metadata.get(quantum_id, ()) if each is not None],
        )
    datasets = Counter(
        (node["dataset_type_name"], str(node["data_id"]), node["run"].split("/")[-2], node["produced"])
        for node in graph.bipartite_xgraph.nodes.values()
        if "dataset_type_name" in node
    )
    return {"quanta": quanta, "datasets": datasets, "tasks": graph.header.n_task_quanta}


def neighbors(graph: ProvenanceQuantumGraph, quantum: uuid.UUID) -> Any:
    edges = graph.bipartite_xgraph
    for kind, others in (("reads", edges.predecessors(quantum)), ("writes", edges.successors(quantum))):
        yield from (f"{kind} {edges.nodes[other]['dataset_type_name']}" for other in others)


@pytest.mark.parametrize(
    "action", ["", *(pytest.param(each, marks=pytest.mark.slow) for each in ("fail", "partial"))]
)
def test_direct_writes_the_provenance_that_the_executor_of_lsst_writes(rigs: MakeRig, action: str) -> None:
    visit = {"action": action, "main": "Scripted", "before": ""} if action else {}
    graphs = [files_of(*spooled(rigs, kind, **visit), "prompt_provenance") for kind in PAIR]
    first, other = ({name: described(path) for name, path in each.items()} for each in graphs)
    assert first.keys() == other.keys() == ({"Scripted"} if action else {"Full", "Known"})
    for name in first:
        assert first[name] == other[name]


@pytest.mark.slow
def test_processes_of_a_visit_write_one_provenance_graph(rigs: MakeRig) -> None:
    graphs = []
    for processes in (1, 2):
        settings = {"processes": processes}
        files = files_of(*spooled(rigs, settings=settings, main="Scripted", before=""), "prompt_provenance")
        graphs.append(described(files["Scripted"]))
    assert graphs[0] == graphs[1]


def test_no_provenance_is_written_that_is_not_exported(rigs: MakeRig) -> None:
    rig, worker = rigs(export={"types": ["toy_.*"]})
    worker.prepare(rig.order())
    worker.ingest(rig.raw())
    spool = Path(worker.process(Process(exposures=(EXPOSURE,))).spool or "")
    assert {file.name.rpartition(".")[2] for file in read_manifest(spool).files} == {"yaml"}
    assert not worker._repo.butler.query_datasets("prompt_provenance", "*", find_first=False, explain=False)


@pytest.mark.slow
@ON_SQLITE
def test_the_central_repo_returns_the_graph(rigs: MakeRig, central: Central, tmp_path: Path) -> None:
    spool, _ = spooled(rigs, central=central.root)
    exporter = CentralExporter(str(central.root), Clock(), "node1", tmp_path / "refused")
    exporter.export([spool])
    exporter.close()
    ids = {"instrument": NAME, "group": GROUP, "detector": 1}
    with Butler.from_config(str(central.root)) as butler:
        graph = butler.get("prompt_provenance", ids, collections=CHAIN)
        assert isinstance(graph, ProvenanceQuantumGraph)
        assert {node["task_label"] for node in graph.quantum_only_xgraph.nodes.values()} == {
            "isr",
            "calibrate",
            "subtract",
            "associate",
        }
        (written,) = (
            node
            for node in graph.bipartite_xgraph.nodes
            if graph.bipartite_xgraph.nodes[node].get("dataset_type_name") == "toy_association"
        )
        assert butler.get_dataset(written) is not None, "the same dataset as in the repo"


PUBLISH = {"what": ".*_metrics", "to": "https://nobody/proxy"}


def test_published_metrics_are_left_for_the_publisher(rigs: MakeRig) -> None:
    rig, worker = rigs(export={"types": [".*_metrics", "toy_isr"]}, publish=[PUBLISH])
    rig.context.publish.mkdir()
    worker.prepare(rig.order())
    worker.ingest(rig.raw())
    done = worker.process(Process(exposures=(EXPOSURE,)))
    (path,) = rig.context.publish.iterdir()
    assert path.name == f"{Path(done.spool or '').name}.json"
    (bundle,) = BUNDLES.validate_json(path.read_bytes())
    assert bundle.dataset_type == "promptPreload_metrics", "preload_metrics is no bundle"
    assert bundle.data_id == {"instrument": NAME, "group": GROUP, "detector": 1}
    assert bundle.run.split("/")[-2] == "NoPipeline"
    assert "prepButlerTimeMetric" in bundle.content
    assert abs(bundle.utc - time.time()) < 600


def test_metrics_that_cannot_be_left_cost_no_output(rigs: MakeRig, caplog: pytest.LogCaptureFixture) -> None:
    rig, worker = rigs(export={"types": [".*_metrics", "toy_isr"]}, publish=[PUBLISH])
    worker.prepare(rig.order())  # the folder does not exist
    worker.ingest(rig.raw())
    done = worker.process(Process(exposures=(EXPOSURE,)))
    assert done.outcome == Outcome.SUCCEEDED
    assert read_manifest(Path(done.spool or "")).files
    assert "the metrics of" in caplog.text
