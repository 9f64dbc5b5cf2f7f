# SPDX-License-Identifier: BSD-3-Clause
"""When the graph of a pipeline that the zygote has resolved is that for a repo."""

import pytest
from lsst.daf.butler import DatasetType, DimensionUniverse, MissingDatasetTypeError
from lsst.pipe.base import PipelineTask, PipelineTaskConfig, PipelineTaskConnections
from lsst.pipe.base.connectionTypes import PrerequisiteInput

from ppdaemon.middleware.direct.shape import pipeline_shape
from ppdaemon.middleware.pipelines.graph import UnusablePipeline, load_pipeline, rehearse_resolving, resolved

UNIVERSE = DimensionUniverse()
OWN = DatasetType("warmup", ("instrument",), "StructuredDataDict", universe=UNIVERSE)
PIPELINE = "description: one task\ntasks:\n  one: ppdaemon.middleware.direct.warmup.WarmupTask\n"


class CatalogConnections(PipelineTaskConnections, dimensions=("instrument", "visit", "detector")):
    refcat = PrerequisiteInput(
        name="refcat", doc="", storageClass="StructuredDataDict", dimensions=("skypix",), multiple=True
    )


class CatalogConfig(PipelineTaskConfig, pipelineConnections=CatalogConnections):
    pass


class CatalogTask(PipelineTask):
    ConfigClass = CatalogConfig
    _DefaultName = "catalog"


def shards(pixels, storage_class="StructuredDataDict"):
    return DatasetType("refcat", (pixels,), storage_class, universe=UNIVERSE)


class Repo:
    def __init__(self, *types, dimensions=UNIVERSE):
        self.dimensions = dimensions
        self._types = {each.name: each for each in types}

    def get_dataset_type(self, name):
        if name not in self._types:
            raise MissingDatasetTypeError(name)
        return self._types[name]


@pytest.fixture
def pipeline(tmp_path):
    (tmp_path / "one.yaml").write_text(PIPELINE)
    found = load_pipeline(str(tmp_path / "one.yaml"), {})
    rehearse_resolving(found, UNIVERSE)
    return found


@pytest.mark.parametrize("types", [(), (OWN,), (OWN, DatasetType("other", (), "int", universe=UNIVERSE))])
def test_a_repo_with_the_definitions_of_the_pipeline_has_its_graph(pipeline, types):
    graph = resolved(pipeline, Repo(*types))
    assert graph is pipeline.graph
    assert pipeline_shape(graph) is pipeline_shape(pipeline.graph)


def test_a_repo_with_another_definition_has_its_own_graph(pipeline):
    own = pipeline.graph.dataset_types["one_metadata"].dataset_type
    other = DatasetType("one_metadata", own.dimensions, "StructuredDataDict")  # metadata are converted
    graph = resolved(pipeline, Repo(OWN, other))
    assert graph.dataset_types["one_metadata"].dataset_type == other != own
    assert pipeline_shape(graph).types["one_metadata"] == other
    assert pipeline.graph.dataset_types["one_metadata"].dataset_type == own, "not changed for others"


def test_a_definition_that_does_not_fit_is_an_error(pipeline):
    with pytest.raises(UnusablePipeline, match="does not fit the repo"):
        resolved(pipeline, Repo(DatasetType("warmup", (), "StructuredDataDict", universe=UNIVERSE)))


def test_a_repo_with_other_dimensions_has_its_own_graph(pipeline):
    config = UNIVERSE.dimensionConfig.toDict() | {"namespace": "other"}
    other = DimensionUniverse(type(UNIVERSE.dimensionConfig)(config))
    assert other is not UNIVERSE
    graph = resolved(pipeline, Repo(dimensions=other))
    assert graph.universe is other
    assert pipeline.graph.universe is UNIVERSE


@pytest.fixture
def with_catalog(tmp_path):
    path = tmp_path / "catalog.yaml"
    path.write_text(f"description: one task\ntasks:\n  catalog: {__name__}.CatalogTask\n")
    found = load_pipeline(str(path), {})
    rehearse_resolving(found, UNIVERSE)
    assert found.graph.is_fully_resolved
    return found


def test_a_repo_with_catalogs_in_the_usual_pixels_has_the_graph_of_the_pipeline(with_catalog):
    assert resolved(with_catalog, Repo(shards("htm7"))) is with_catalog.graph


@pytest.mark.parametrize("catalog", [shards("healpix9"), shards("htm7", "TaskMetadata")])
def test_a_repo_with_other_catalogs_has_its_own_graph(with_catalog, catalog):
    graph = resolved(with_catalog, Repo(catalog))
    assert graph.dataset_types["refcat"].dataset_type == catalog
    assert with_catalog.graph.dataset_types["refcat"].dataset_type == shards("htm7"), "not changed for others"


def test_a_repo_without_the_catalogs_does_not_fit(with_catalog):
    with pytest.raises(UnusablePipeline, match=r"does not fit the repo: .*refcat"):
        resolved(with_catalog, Repo())


def test_a_pipeline_that_is_not_rehearsed_is_resolved_for_each_caller(tmp_path):
    (tmp_path / "one.yaml").write_text(PIPELINE)
    found = load_pipeline(str(tmp_path / "one.yaml"), {})
    assert resolved(found, Repo()).is_fully_resolved
    assert not found.graph.is_fully_resolved
