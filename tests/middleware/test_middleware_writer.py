# SPDX-License-Identifier: BSD-3-Clause
"""Exports by the observatory's writer service: its events, read by a real Butler as the service does."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from centrals import ON_SQLITE, Central
from enginecompare import EXPOSURE
from kafkacluster import KafkaCluster, kafka_cluster
from lsst.daf.butler import Butler, DatasetRef, DatasetType, DimensionRecord, FileDataset
from lsst.daf.butler.registry import ConflictingDefinitionError
from toycam import GROUP, NAME, MakeRig

from ppdaemon.clock import Clock
from ppdaemon.config import ExportConfig, WriterConfig
from ppdaemon.errors import Unavailable
from ppdaemon.folders import REFUSAL
from ppdaemon.messages import Process
from ppdaemon.middleware import work
from ppdaemon.middleware.export import writer as module
from ppdaemon.middleware.export.exporter import CentralExporter
from ppdaemon.middleware.export.manifest import read_manifest, replace_manifest
from ppdaemon.middleware.export.writer import WriterEvent, WriterExporter

pytest_plugins = ("toyfixtures", "dbfixtures")
pytestmark = ON_SQLITE

TOPIC = "butler-writer"


@pytest.fixture
def cluster() -> Iterator[KafkaCluster]:
    with kafka_cluster() as cluster:
        yield cluster


class Site:
    """Hosts, a central repo and the topic of its service."""

    def __init__(self, rigs: MakeRig, central: Central, folder: Path, brokers: str):
        self.rigs = rigs
        self.root = central.root
        self.refused = folder / "refused"
        self.config = WriterConfig(to=f"kafka://{brokers}/{TOPIC}", timeout_s=10.0)
        self.rig, self.worker = self.host()
        self.exporter().mark_datastore()

    def host(self) -> tuple[Any, Any]:
        """Return a host with its own folders."""
        export = {"types": [".*"], "writer": {"to": self.config.to}}
        return self.rigs(self.root, export=export)

    def spool(self, attempt: int = 1, host: Any = None) -> Path:
        """Process a visit; return its spool."""
        rig, worker = host or (self.rig, self.worker)
        worker.prepare(rig.order(attempt=attempt))
        worker.ingest(rig.raw())
        return Path(worker.process(Process(exposures=(EXPOSURE,))).spool)

    def exporter(self, images: tuple[str, ...] = (), **config: Any) -> WriterExporter:
        context = self.rig.context
        return WriterExporter(
            str(self.root),
            context.template,
            ExportConfig(images=images, writer=self.config.model_copy(update=config)),
            Clock(),
            self.refused,
            context.runs,
        )

    def ingest(self, values: list[bytes]) -> list[DatasetRef]:
        """Register events as the service does, one after the other; return the datasets."""
        found = []
        with Butler.from_config(str(self.root), writeable=True) as butler:
            for value in values:
                event = WriterEvent.model_validate_json(value)
                records: dict[str, list[DimensionRecord]] = {}
                for simple in event.dimension_records:
                    record = DimensionRecord.from_simple(simple, universe=butler.dimensions)
                    records.setdefault(record.definition.name, []).append(record)
                for element in butler.dimensions.sorted(records):
                    butler.registry.insertDimensionData(element, *records[element.name], skip_existing=True)
                types = {
                    each.name: DatasetType.from_simple(each, universe=butler.dimensions)
                    for each in event.dataset_types
                }
                files = [
                    FileDataset.from_simple(
                        each, universe=butler.dimensions, dataset_type_loader=types.__getitem__
                    )
                    for each in event.datasets
                ]
                butler.ingest(*files, transfer=None, skip_existing=True, record_validation_info=False)
                found += [ref for file in files for ref in file.refs]
        return found


@pytest.fixture
def site(rigs: MakeRig, central: Central, tmp_path: Path, cluster: KafkaCluster) -> Site:
    return Site(rigs, central, tmp_path, cluster.brokers)


def test_the_service_registers_what_the_events_name(site: Site, cluster: KafkaCluster) -> None:
    spool = site.spool()
    manifest = read_manifest(spool)
    expected = {ref.id for file in manifest.files for ref in file.refs}
    exported = site.exporter().export([spool])
    assert exported.spools == (str(spool),)
    assert exported.datasets == len(expected)
    assert not spool.exists()
    values = [value for _, value in cluster.read(TOPIC, 2)]
    assert json.loads(values[0]).keys() == {"type", "dimension_records", "dataset_types", "datasets"}
    assert {json.loads(value)["type"] for value in values} == {"pp-output"}
    refs = site.ingest(values)
    assert {ref.id for ref in refs} == expected
    with Butler.from_config(str(site.root)) as butler:
        for ref in refs:
            if ref.datasetType.name != "promptPreload_metrics":  # needs lsst.analysis.tools
                butler.get(ref)
        ids = {"instrument": NAME, "visit": EXPOSURE, "detector": 1}
        (run,) = {ref.run for ref in refs if ref.datasetType.name == "toy_association"}
        assert butler.get("toy_association", ids, collections=run)["known"]
        (visit,) = butler.query_dimension_records("visit", instrument=NAME)
        assert visit.region is not None
        assert butler.query_dimension_records("group")[0].name == GROUP
        graph = butler.get("prompt_provenance", instrument=NAME, group=GROUP, detector=1, collections=run)
        assert graph.header.n_quanta == 4


@pytest.mark.slow
def test_datasets_of_several_hosts_are_in_an_event_of_their_own(site: Site, cluster: KafkaCluster) -> None:
    site.exporter().export([site.spool()])
    shared, own = (json.loads(value) for _, value in cluster.read(TOPIC, 2))
    data_ids = [
        [next(iter(each["refs"].values()))["data_id"] for each in event["datasets"]]
        for event in (shared, own)
    ]
    assert all("detector" not in each for each in data_ids[0])
    assert all("detector" in each for each in data_ids[1])


@pytest.mark.slow
def test_of_two_hosts_and_attempts_the_first_is_handed_over(site: Site, cluster: KafkaCluster) -> None:
    first = site.spool()
    second = site.spool(attempt=2, host=site.host())
    exported = site.exporter().export([first, second])
    assert exported.spools == (str(first), str(second))
    assert "toy_association" in exported.skipped[str(second)]
    values = [value for _, value in cluster.read(TOPIC, 2)]
    ids = {ref.id for ref in site.ingest(values)}
    assert exported.datasets == len(ids)


@pytest.mark.slow
def test_without_kafka_the_spool_stays_and_is_handed_over_later(site: Site, cluster: KafkaCluster) -> None:
    spool = site.spool()
    with pytest.raises(Unavailable, match=r"topic kafka://127.0.0.1:1/t cannot be written to"):
        site.exporter(to="kafka://127.0.0.1:1/t", timeout_s=1.0).export([spool])
    assert read_manifest(spool).files
    exported = site.exporter().export([spool])
    assert exported.spools == (str(spool),)
    assert not exported.skipped, "the files in the datastore are its own"
    assert len(site.ingest([value for _, value in cluster.read(TOPIC, 2)])) == exported.datasets


@pytest.mark.slow
def test_a_spool_that_is_packed_between_two_tries_is_handed_over_whole(
    site: Site, cluster: KafkaCluster
) -> None:
    spool = site.spool()
    with pytest.raises(Unavailable):
        site.exporter(to=f"kafka://localhost:1/{TOPIC}", timeout_s=0.3).export([spool])
    manifest = read_manifest(spool)
    files = []
    for file in manifest.files:
        (spool / file.name).rename(spool / f"packed-{file.name}")
        files.append(file._replace(name=f"packed-{file.name}"))
    replace_manifest(spool, manifest.model_copy(update={"files": tuple(files)}))
    exported = site.exporter().export([spool])
    assert (exported.datasets, exported.skipped) == (sum(len(file.refs) for file in files), {})
    assert len(site.ingest([value for _, value in cluster.read(TOPIC, 2)])) == exported.datasets


@pytest.mark.slow
def test_an_event_that_arrives_twice_changes_nothing(
    site: Site, cluster: KafkaCluster, tmp_path: Path
) -> None:
    spool = site.spool()
    copy = tmp_path / "again" / spool.name
    exporter = site.exporter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "remove_spool", lambda spool: shutil.copytree(spool, copy))
        exporter.export([spool])  # the process dies before it deletes the spool
    exporter.export([copy])
    values = [value for _, value in cluster.read(TOPIC, 4)]
    assert sorted(values[:2]) == sorted(values[2:])
    site.ingest(values)


@pytest.mark.slow
def test_a_damaged_spool_and_an_event_that_is_too_large_are_quarantined(
    site: Site, cluster: KafkaCluster
) -> None:
    damaged, large = site.spool(), site.spool(attempt=2)
    next(damaged.glob("*.yaml")).unlink()
    exported = site.exporter(options={"message.max.bytes": "2000"}).export([damaged, large])
    assert set(exported.refused) == {str(damaged), str(large)}
    assert {path.name for path in site.refused.iterdir()} == {damaged.name, large.name}


def test_of_too_much_that_waits_images_are_given_up_and_reported(site: Site, cluster: KafkaCluster) -> None:
    spool = site.spool()
    exporter = site.exporter(images=("toy_image",))
    assert exporter.give_up_images([spool.parent], 1).spools == {str(spool): "toy_image"}
    exported = exporter.export([spool])
    assert exported.spools == (str(spool),)
    assert exported.given_up == {str(spool): "toy_image"}
    names = {ref.datasetType.name for ref in site.ingest([value for _, value in cluster.read(TOPIC, 2)])}
    assert "toy_isr" in names
    assert "toy_image" not in names


def test_a_datastore_that_is_away_is_not_made_anew(site: Site) -> None:
    spool = site.spool()
    away = site.root.rename(site.root.with_name("away"))
    with pytest.raises(Unavailable):
        site.exporter().export([spool])
    assert not site.root.exists()
    site.root.mkdir()  # the empty folder on which it was mounted
    shutil.copy(away / "butler.yaml", site.root)
    with pytest.raises(Unavailable, match="has no mark"):
        site.exporter().export([spool])
    assert read_manifest(spool).files
    assert [path.name for path in site.root.iterdir()] == ["butler.yaml"]


def test_a_file_that_was_changed_in_the_spool_is_not_handed_over(site: Site) -> None:
    spool = site.spool()
    path = next(spool.glob("*.yaml"))
    text = path.read_bytes()
    path.write_bytes(text[:-1] + b"x")
    exported = site.exporter().export([spool])
    assert exported.refused == (str(spool),)


@pytest.mark.slow
def test_events_of_two_hosts_at_once_lose_no_detector(site: Site, cluster: KafkaCluster) -> None:
    """Both make the configurations of a run; the service refuses the event of the second with them."""
    first = site.spool()
    site.exporter().export([first])
    values = [value for _, value in cluster.read(TOPIC, 2)]
    site.ingest(values)
    event = json.loads(values[0])
    event["datasets"] = [
        {**each, "refs": {f"{'0' * 8}{key[8:]}": ref for key, ref in each["refs"].items()}}
        for each in event["datasets"]
    ]
    with pytest.raises(ConflictingDefinitionError):
        site.ingest([json.dumps(event).encode()])
    assert all(
        "detector" not in ref["data_id"] for each in event["datasets"] for ref in each["refs"].values()
    )


def test_the_configuration_chooses_the_exporter(site: Site, rigs: MakeRig) -> None:
    assert isinstance(work.open_exporter(site.rig.context), WriterExporter)
    rig, _ = rigs()
    assert isinstance(work.open_exporter(rig.context), CentralExporter)


@pytest.mark.slow
def test_a_spool_that_the_datastore_refuses_does_not_hold_up_the_others(
    site: Site, cluster: KafkaCluster
) -> None:
    bad, good = site.spool(), site.spool(attempt=2)
    manifest = read_manifest(bad)
    files = tuple(file._replace(formatter="no.such.Formatter") for file in manifest.files)
    changed = manifest.model_copy(update={"files": files})
    replace_manifest(bad, changed)
    exporter = site.exporter()
    with pytest.raises(Unavailable, match=r"Unable to import 'no\.such"):
        exporter.export([bad])
    assert bad.exists(), "the datastore may be the cause"
    exported = exporter.export([bad, good])
    assert (exported.spools, exported.refused) == ((str(good),), (str(bad),))
    assert cluster.read(TOPIC, 1)


def test_a_spool_with_a_type_that_the_datastore_rejects_is_quarantined(site: Site) -> None:
    path = site.root / "butler.yaml"
    config = yaml.safe_load(path.read_text())
    config.setdefault("datastore", {})["constraints"] = {"reject": ["toy_image"]}
    path.write_text(yaml.safe_dump(config))
    spool = site.spool()
    assert site.exporter().export([spool]).refused == (str(spool),)
    assert "reject a type of export.types: " in (site.refused / spool.name / REFUSAL).read_text()
