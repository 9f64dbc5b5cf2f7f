# SPDX-License-Identifier: BSD-3-Clause
"""What the first visit of each worker would do first, done once before workers are forked.

Pipelines are parsed, a small repo is made, opened, searched and deleted, and an empty task is run, with
records in memory. The central repo is not opened, no task of a pipeline is constructed: they may connect to
databases.
"""

import gc
import importlib
import logging
import os
import sqlite3
import tempfile
from functools import partial
from pathlib import Path

import sqlalchemy
from astropy.time import Time

# CollectionType is public, though its package does not list it.
from lsst.daf.butler import (  # type: ignore[attr-defined]
    Butler,
    ButlerConfig,
    CollectionType,
    Config,
    DatasetType,
    DimensionUniverse,
    FormatterFactory,
    Timespan,
)
from lsst.daf.butler.queries.expressions.parser.parser import parse_expression
from lsst.pipe.base import Instrument
from lsst.sphgeom import Angle, Circle, UnitVector3d
from lsst.utils.packages import getAllPythonDistributions

from ppdaemon.camera import load_camera
from ppdaemon.clock import Clock
from ppdaemon.config import NodeConfig
from ppdaemon.folders import NodeFolders
from ppdaemon.middleware.butler.central import CentralReader, existing_collections
from ppdaemon.middleware.butler.failures import describe
from ppdaemon.middleware.butler.formatters import UnknownDatastore
from ppdaemon.middleware.butler.repo import make_template, template_dimensions, template_repo
from ppdaemon.middleware.butler.timings import Timings
from ppdaemon.middleware.direct.exposures import expected_exposures
from ppdaemon.middleware.direct.files import DatasetWriter
from ppdaemon.middleware.direct.shape import pipeline_shape
from ppdaemon.middleware.direct.warmup import warm_up
from ppdaemon.middleware.pipelines.graph import LoadedPipeline, PipelineLibrary, rehearse_resolving
from ppdaemon.middleware.pipelines.provenance import system_packages
from ppdaemon.middleware.pipelines.schemayaml import read_schemas_faster, rehearse_schema
from ppdaemon.middleware.preload.groupdata import types_of_groups
from ppdaemon.middleware.preload.search import Search, find_inputs
from ppdaemon.middleware.raws.regions import find_camera, footprint_of
from ppdaemon.middleware.raws.visits import AnnouncedVisit
from ppdaemon.visit import CoordinateSystem, NextVisit, RotationSystem

__all__ = ("rehearse",)

_LOG = logging.getLogger(__name__)

_LATER = (
    "astropy.io.misc.yaml",
    "lsst.daf.butler.formatters.packages",
    "lsst.daf.butler.registry.attributes",
    "lsst.pipe.base.quantum_graph.formatter",
    "lsst.resources.http",
    "pyarrow.dataset",
    "pyarrow.pandas_compat",
)
"""Modules that are imported when a dataset is read or written, such as an image or a table."""
_OPEN = (Butler, sqlalchemy.Engine, sqlite3.Connection)
"""What must not be left: a connection that processes share breaks in both."""


_REPETITIONS = 4
"""Python replaces instructions in place, in the first few runs of a function: each worker would do it again,
in its own copy of the memory."""


def rehearse(config: NodeConfig) -> PipelineLibrary:
    """Return the configured pipelines, parsed, after the rehearsal."""
    before = _open_objects()
    for name in _LATER:
        importlib.import_module(name)
    library = PipelineLibrary(config.pipelines.overrides)
    pipelines, _ = library.load(_without_threads(config))
    read_schemas_faster()  # of what the pipelines have imported
    try:
        rehearse_schema()
    except Exception as error:  # its package may be missing
        _LOG.info("the schema of alert databases is not read before the first visit: %s", describe(error))
    universe = DimensionUniverse()
    local = ButlerConfig(Config(dict(config.butler.local) if config.butler else {}))
    writer: DatasetWriter | None = None
    formatters = FormatterFactory()
    try:
        writer = DatasetWriter(local, universe)
        formatters.registerFormatters(local["datastore", "formatters"], universe=universe)
    except UnknownDatastore as reason:
        _LOG.warning("no dataset is written before the first visit of a worker: %s", reason)
    for pipeline in pipelines:
        try:
            _rehearse_graph(pipeline, universe, formatters)
        except Exception as error:  # it may need definitions that only a repo has
            _LOG.info("the graph of %s is not rehearsed: %s", pipeline.path, describe(error))
    for name in config.node.instruments:
        try:
            _rehearse_visit(name, config, universe)
        except (Exception, SystemExit) as error:  # code of the site
            _LOG.info("no visit of %s is rehearsed: %s", name, describe(error))
    assert Time("2026-11-22", scale="tai").utc.scale == "utc"  # reads the table of leap seconds
    parse_expression("band IN (allowed)")  # the first one generates the parser
    getAllPythonDistributions()  # kept by lsst.utils; each provenance graph has it
    system_packages()
    with tempfile.TemporaryDirectory(prefix="warmup-", dir=NodeFolders.of(config).ramdisk) as folder:
        _rehearse_search(universe, Path(folder, "template"))
        if writer is not None:
            for _ in range(_REPETITIONS):
                warm_up(universe, writer, Path(folder, "files"))
    if left := [each for each in _open_objects() if not any(each is known for known in before)]:
        raise RuntimeError(f"the rehearsal leaves {', '.join(map(str, left))}")
    return library


def _open_objects() -> list[object]:
    gc.collect()
    return [each for each in gc.get_objects() if issubclass(type(each), _OPEN)]


def _without_threads(config: NodeConfig) -> list[str]:
    """Return the pipelines that start no thread when they are loaded, as a child process finds out that
    loads them all: a process with threads cannot be forked. Workers load the others by themselves.
    """
    paths = config.pipelines.paths
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            library = PipelineLibrary(config.pipelines.overrides)
            for path in paths:
                threads = len(os.listdir("/proc/self/task"))
                library.load([path])
                os.write(writing, bytes([len(os.listdir("/proc/self/task")) > threads]))
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as answers:
        found = answers.read().ljust(len(paths), b"\1")  # fewer if it has crashed
    os.waitpid(pid, 0)
    alone = [path for path, starts in zip(paths, found, strict=True) if starts]
    if alone:
        _LOG.warning("each worker loads %s by itself: it starts threads, or crashes", ", ".join(alone))
    return [path for path in paths if path not in alone]


def _rehearse_graph(
    pipeline: LoadedPipeline, universe: DimensionUniverse, formatters: FormatterFactory
) -> None:
    """Resolve a pipeline, and import what its datasets are read and written with."""
    rehearse_resolving(pipeline, universe)
    for node in pipeline.graph.dataset_types.values():
        formatters.getFormatterClass(node.dataset_type)
        assert node.storage_class.pytype is not None
    pipeline_shape(pipeline.graph)


def _rehearse_visit(name: str, config: NodeConfig, universe: DimensionUniverse) -> None:
    """Make the dimension records of a visit, somewhere on the sky."""
    types_of_groups(universe)
    camera = find_camera(load_camera, name)
    if camera is None:  # it would be logged of each region that it is missing
        return
    visit = NextVisit(
        groupId="warmup",
        instrument=name,
        coordinateSystem=CoordinateSystem.ICRS,
        rotationSystem=RotationSystem.SKY,
        nimages=1,
    )
    detector = min(config.node.instruments[name])
    footprint = footprint_of(
        visit,
        detector,
        camera,
        padding_arcsec=config.preload.padding_arcsec,
        image_deadline_s=config.arrivals.image_deadline_s(visit),
        now_tai=Clock().tai(),
    )
    if config.butler is not None and name in config.butler.instrument_class:
        instrument = Instrument.from_string(config.butler.instrument_class[name])
        grouped = config.butler.visits.get(name) == "by-group"
        announced = AnnouncedVisit(universe, instrument, visit, detector, footprint, camera, grouped)
        expected_exposures(announced, ())


def _rehearse_search(universe: DimensionUniverse, folder: Path) -> None:
    """Make a repo and search it as the central one is searched."""
    define = partial(DatasetType, storageClass="StructuredDataDict", universe=universe)
    types = [
        define("bias", ("instrument", "detector"), isCalibration=True),
        define("template", ("skymap", "tract", "patch", "band")),
    ]
    make_template(folder, universe, (), types, "")
    template_dimensions(folder)
    root, clock = str(template_repo(folder)), Clock()
    with Butler.from_config(root, writeable=True) as butler:
        butler.collections.register("calib", CollectionType.CALIBRATION)
    search = Search(
        instrument="warmup",
        detector=0,
        physical_filters=("warmup",),
        bands=("warmup",),
        skymap="warmup",
        timespan=Timespan(None, None),
        region=Circle(UnitVector3d.X(), Angle(1e-3)),
        calibs=("calib",),
        inputs=(),
    )
    reader = CentralReader(root)
    try:
        with reader.reading(Timings(clock)) as butler:
            existing_collections(butler, search.calibs)
            butler.query_dimension_records("physical_filter", instrument="warmup", explain=False)
            find_inputs(butler, types, [search], clock)
    finally:
        reader.close()
