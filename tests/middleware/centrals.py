# SPDX-License-Identifier: BSD-3-Clause
"""Central repos on SQLite and on PostgreSQL with so few datasets that a test can name each.

Around detector 1 of ToyCam: two patches under it, one that only the padding
of its footprint reaches, one beyond; the refcat's shards of a wide area; one
model; an optional input of which there is no dataset.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from lsst.daf.butler import Butler, Config, DatasetRef, DimensionConfig, FileDataset
from lsst.pipe.base import PipelineTask, PipelineTaskConfig, PipelineTaskConnections, Struct
from lsst.sphgeom import ConvexPolygon
from postgres import PostgresServer
from toycam import (
    DAY,
    DEC,
    EXPOSURE,
    FILTERS,
    NAME,
    RA,
    SHARDS,
    Rig,
    ShardFormatter,
    ToyCam,
    add_calibs,
    box,
    dataset_type,
    finds,
    makes,
    reads,
    write_pipeline,
)

from ppdaemon.messages import Done, Process
from ppdaemon.middleware.butlerwork import ButlerWork
from ppdaemon.middleware.export.mark import mark_datastore

PADDED = 0.004
"""Degrees beyond the detector's edge, half of the usual padding."""
PATCHES = {
    0: (RA - 0.3, RA - 0.1),
    1: (RA - 0.1, RA + PADDED),
    2: (RA + PADDED, RA + 0.02),
    3: (RA + 0.02, RA + 0.2),
}
"""Where patches begin and end in right ascension; detector 1 ends at `RA`."""
OLD_UNIVERSES = {"SQLite": 6, "PostgreSQL": 7}
"""Older versions of the Butler's dimensions that have groups, each on one database; the newest is 8."""


CHAIN = f"{NAME}/prompt/output-2026-11-22"
"""Chain of the usual visits' outputs."""
FIRST = DAY * 100000 + 1
"""The usual exposure."""


ON_SQLITE = pytest.mark.parametrize("server", ["SQLite"], indirect=True)
"""Marks tests that do not depend on the database."""
ON_POSTGRES = pytest.mark.parametrize("server", ["PostgreSQL"], indirect=True)
"""Marks tests of what only PostgreSQL can do."""


@dataclass(frozen=True)
class Central:
    """A central repo and its database."""

    root: Path
    server: PostgresServer | None = None
    database: str = ""

    def copy(self, root: Path) -> "Central":
        """Make a repo of the same content."""
        shutil.copytree(self.root, root)
        if self.server is None:
            return Central(root)
        copy = self.server.create(template=self.database)
        settings = root / "butler.yaml"
        settings.write_text(
            settings.read_text().replace(self.server.url(self.database), self.server.url(copy))
        )
        return Central(root, self.server, copy)


def make_few(
    root: Path, server: PostgresServer | None, universe: int | None = None, datastore: Path | None = None
) -> Central:
    """Make a central repo; without a server it is on SQLite."""
    settings: dict[str, Any] = {"datastore": {"root": str(datastore or "<butlerRoot>")}}
    database = server.create() if server else ""
    url = server.url(database) if server else "sqlite:///<butlerRoot>/gen3.sqlite3"
    settings["registry"] = {"db": url}
    dimensions = DimensionConfig(_old_dimensions(universe)) if universe is not None else None
    config = Butler.makeRepo(
        str(root), config=Config(settings), dimensionConfig=dimensions, forceConfigRoot=False
    )
    with Butler.from_config(config, writeable=True) as butler:
        ToyCam().register(butler.registry)
        add_calibs(butler)
        _add_patches(butler)
        _add_shards(butler, root)
        _add_models(butler)
        butler.registry.registerDatasetType(dataset_type(butler, "raw", EXPOSURE))
        mark_datastore(butler)
    return Central(root, server, database)


def _old_dimensions(version: int) -> str:
    return f"resource://lsst.daf.butler/configs/old_dimensions/daf_butler_universe{version}.yaml"


def _add_patches(butler: Butler) -> None:
    insert = butler.registry.insertDimensionData
    insert("skymap", {"name": "toy", "hash": b"toy", "tract_max": 1, "patch_nx_max": 4, "patch_ny_max": 1})
    low, high = DEC - 0.4, DEC + 0.4
    insert("tract", {"skymap": "toy", "id": 0, "region": box(RA - 0.3, low, RA + 0.2, high)})
    butler.registry.registerDatasetType(
        dataset_type(butler, "toy_template", ("skymap", "tract", "patch", "band"))
    )
    butler.collections.register(f"{NAME}/templates")
    for patch, (left, right) in PATCHES.items():
        cell = {"cell_x": patch, "cell_y": 0, "region": box(left, low, right, high)}
        insert("patch", {"skymap": "toy", "tract": 0, "id": patch, **cell})
        for band in FILTERS.values():
            ids = {"skymap": "toy", "tract": 0, "patch": patch, "band": band}
            butler.put({"patch": patch, "band": band}, "toy_template", ids, run=f"{NAME}/templates")


def shards_in(area: ConvexPolygon) -> set[int]:
    """Return the shards that overlap an area."""
    candidates = (shard for begin, end in SHARDS.envelope(area).ranges() for shard in range(begin, end))
    return {shard for shard in candidates if SHARDS.triangle(shard).overlaps(area)}


def _add_shards(butler: Butler, root: Path) -> None:
    definition = dataset_type(butler, "toy_refcat", ("htm7",))
    butler.registry.registerDatasetType(definition)
    butler.collections.register("refcats")
    files = []
    for shard in sorted(shards_in(box(RA - 1.5, DEC - 1.5, RA + 1.5, DEC + 1.5))):
        path = root / f"{shard}.shard"
        path.write_text(f"shard {shard}")
        ref = DatasetRef(definition, butler.registry.expandDataId(htm7=shard), run="refcats")
        files.append(FileDataset(str(path), ref, formatter=ShardFormatter))
    butler.ingest(*files, transfer="move")


def _add_models(butler: Butler) -> None:
    for name in ("toy_model", "toy_optional"):
        butler.registry.registerDatasetType(dataset_type(butler, name, ()))
    butler.collections.register("pretrained_models")
    butler.put({"model": "the only one"}, "toy_model", run="pretrained_models")


# --- a pipeline with a model and with optional inputs ------------------------


class ClassifyConnections(PipelineTaskConnections, dimensions=EXPOSURE):
    image = reads("toy_isr")
    model = finds("toy_model", (), doc="one for all")
    optional = finds("toy_optional", (), doc="there is none", minimum=0)
    unregistered = finds("toy_unregistered", (), doc="not even registered", minimum=0)
    output = makes("toy_classes")


class ClassifyConfig(PipelineTaskConfig, pipelineConnections=ClassifyConnections):
    pass


class ClassifyTask(PipelineTask):
    ConfigClass = ClassifyConfig
    _DefaultName = "classify"

    def run(self, image: Any, model: Any, **optional: Any) -> Struct:
        return Struct(output={"image": image, **model, "optional": sorted(optional)})


def write_everything(folder: Path) -> str:
    """Write a pipeline that reads every dataset type; return its path."""
    tasks = {each.lower(): f"toycam.{each}Task" for each in ("Isr", "Calibrate", "Subtract", "Associate")}
    return write_pipeline(folder, "Everything", tasks | {"classify": f"{__name__}.ClassifyTask"})


# --- outputs ---------------------------------------------------------------


def outputs(central: Central, name: str) -> list[tuple[int, Any]]:
    """Return detector and UUID of each output of a type in the day's chain."""
    with Butler.from_config(str(central.root)) as butler:
        refs = butler.query_datasets(name, collections=CHAIN, find_first=False, explain=False)
        return sorted((int(ref.dataId.get("detector", -1)), ref.id) for ref in refs)


def run_visit(rig: Rig, worker: ButlerWork, detector: int, **order: Any) -> Done:
    """Process the usual exposure with two tasks; return the result."""
    worker.prepare(rig.order(detector, main="Frame", **order))
    worker.ingest(rig.raw(detector))
    return worker.process(Process(exposures=(FIRST,)))
