# SPDX-License-Identifier: BSD-3-Clause
"""The Butler work of a node's processes: `ppdaemon.work.WorkModule` for real pipelines.

Nothing is opened at import, so that a zygote can import this and fork. The
steps of a visit are in `ppdaemon.middleware.butlerwork`.
"""

import importlib
import logging
import os
from collections.abc import Iterable, Iterator

from lsst.daf.butler import Butler, DatasetType, DimensionUniverse, StorageClassFactory
from lsst.daf.butler.logging import ButlerMDC
from lsst.pipe.base import Instrument

from ppdaemon.config import ButlerConfig, NodeConfig
from ppdaemon.errors import ConfigError, Unavailable
from ppdaemon.folders import NodeFolders
from ppdaemon.messages import Connecting, NameFinding, Resolving, TaskNamesResolved
from ppdaemon.middleware.butler.central import (
    ParsedConfig,
    known_dataset_type,
    open_central,
    own_storage_classes,
)
from ppdaemon.middleware.butler.failures import DATABASE_ERRORS, describe
from ppdaemon.middleware.butler.repo import make_template
from ppdaemon.middleware.butlerwork import ButlerWork, library_of
from ppdaemon.middleware.export.exporter import CentralExporter
from ppdaemon.middleware.export.packing import Packer
from ppdaemon.middleware.export.writer import WriterExporter
from ppdaemon.middleware.names import NameResolver
from ppdaemon.middleware.pipelines.graph import (
    LoadedPipeline,
    PipelineLibrary,
    UnusablePipeline,
    dataset_types_of,
)
from ppdaemon.middleware.pipelines.provenance import hash_versions
from ppdaemon.middleware.preload.asker import HostAsker
from ppdaemon.middleware.preload.groupdata import types_of_groups
from ppdaemon.middleware.raws.obsbase import require_obs_base
from ppdaemon.middleware.rehearsal import rehearse
from ppdaemon.middleware.run.initoutputs import types_of_runs
from ppdaemon.middleware.run.provenancegraph import provenance_type
from ppdaemon.pointing import disable_astropy_downloads
from ppdaemon.uncompressed import UncompressedRoom
from ppdaemon.work import WorkerContext

__all__ = (
    "PRELOAD",
    "build_template",
    "open_asker",
    "open_exporter",
    "open_work",
    "raw_type",
    "resolve_names",
    "set_up_libraries",
    "warm_up",
)

_LOG = logging.getLogger(__name__)

CONNECT_S = 5
"""Until a PostgreSQL server must have accepted a connection of exporter or asker."""

PRELOAD = (
    "lsst.daf.butler.datastore.cache_manager",
    "lsst.daf.butler.datastores.fileDatastore",
    "lsst.daf.butler.direct_butler",
    "lsst.daf.butler.formatters.json",
    "lsst.daf.butler.formatters.logs",
    "lsst.daf.butler.formatters.parquet",
    "lsst.daf.butler.formatters.yaml",
    "lsst.daf.butler.registry.collections.synthIntKey",
    "lsst.daf.butler.registry.databases.sqlite",
    "lsst.daf.butler.registry.datasets.byDimensions",
    "lsst.daf.butler.registry.dimensions.static",
    "lsst.pipe.base.formatters.pexConfig",
)
"""Modules that the Butler imports by name when it first needs them. The zygote
imports them once, instead of each worker."""


def set_up_libraries() -> None:
    """Bring libraries into the state that workers inherit; called once, in the zygote, before any fork."""
    disable_astropy_downloads()
    ButlerMDC.add_mdc_log_record_factory()  # log records name their task
    for name in PRELOAD:
        importlib.import_module(name)
    # Shared by every Butler of a process and never changed. Created here, a
    # worker is ready 20 ms sooner and has 4 MB less private memory.
    StorageClassFactory()
    for element in DimensionUniverse().elements:
        assert element.RecordClass is not None


def warm_up(config: NodeConfig) -> PipelineLibrary:
    """Do what the first visit of each worker would do first; see `ppdaemon.middleware.rehearsal`."""
    return rehearse(config)


def build_template(context: WorkerContext) -> None:
    """Create the repo that workers copy.

    `Unavailable` is raised if the central repo, whose dimensions are needed,
    cannot be reached. `ConfigError` is raised if its version does not fit, its
    database driver is not installed, the configuration has no ``butler``
    section, or ``lsst.obs.base`` is configured and missing.
    """
    config = _butler_config(context.config)
    require_obs_base(config, context.config.node.instruments)
    instruments = [
        Instrument.from_string(config.instrument_class[name])
        for name in sorted(context.config.node.instruments)
    ]
    pipelines, _ = library_of(context).load(context.config.pipelines.paths)
    context.report(Connecting(what=f"the central repo {config.source}"))
    try:
        with open_central(config.source) as central:
            universe = central.dimensions
            if "group" not in universe.dimensions:
                text = f"{config.source} has dimensions of version {universe.version}, 6 is needed"
                raise ConfigError([f"butler.central: {text}"])
            dataset_types = _template_dataset_types(pipelines, central, instruments)
            records = [
                record
                for instrument in instruments
                for element in ("detector", "physical_filter")
                for record in central.query_dimension_records(
                    element, instrument=instrument.getName(), explain=False, limit=None
                )
            ]
            # A worker may get datasets that another one has found in the central repo.
            storage_classes = own_storage_classes(config.source) | config.local.get("storageClasses", {})
    except DATABASE_ERRORS as error:
        raise Unavailable(f"the central repo {config.source} cannot be read: {describe(error)}") from error
    versions = hash_versions()
    local = config.local | ({"storageClasses": storage_classes} if storage_classes else {})
    make_template(context.template, universe, instruments, dataset_types, versions, local, records)
    ParsedConfig.write(context.template, config.source)


def open_work(context: WorkerContext) -> ButlerWork:
    """Return the work of a worker."""
    return ButlerWork(context, _butler_config(context.config))


def open_exporter(context: WorkerContext) -> CentralExporter | WriterExporter:
    """Return the work of an exporter; the first export opens the central repo."""
    config, folders = context.config, NodeFolders.of(context.config)
    _limit_connecting()
    central, template = _butler_config(config).central, context.template
    room = UncompressedRoom.of(folders.uncompressed, folders.spool, config.export)
    # One without any: there may be images of workers and runs that had packers.
    processes = max(1, config.export.packers)
    times = config.workers.times
    visit_s = times.after_images_s + times.grace_s + times.kill_s
    packer = Packer(template, (folders.ramdisk_spool, *folders.disk_spools), processes, room, visit_s)
    shared = folders.refused, context.runs
    if config.export.writer.to is not None:
        return WriterExporter(central, template, config.export, context.clock, *shared, packer)
    return CentralExporter(central, context.clock, config.node.name, *shared, config.export, packer)


def open_asker(context: WorkerContext) -> HostAsker:
    """Return what asks the central repo for all workers."""
    _limit_connecting()
    return HostAsker(context, _butler_config(context.config), library_of(context))


def resolve_names(config: NodeConfig) -> Iterator[Resolving | NameFinding | TaskNamesResolved]:
    """Yield what is wrong with the names in a configuration; see `ppdaemon.middleware.names`."""
    return NameResolver(config, _butler_config(config)).findings()


def _limit_connecting() -> None:
    # For libpq: a host that is away answers no packet, and the next try would come minutes late.
    os.environ.setdefault("PGCONNECT_TIMEOUT", str(CONNECT_S))


def _butler_config(config: NodeConfig) -> ButlerConfig:
    if config.butler is None:
        raise ConfigError(["butler: missing key, the configured work needs it"])
    return config.butler


def _template_dataset_types(
    pipelines: Iterable[LoadedPipeline], central: Butler, instruments: Iterable[Instrument]
) -> list[DatasetType]:
    """Return the dataset types of raws, of pipelines, of all runs and of all visits."""
    universe = central.dimensions
    found = {
        each.name: each
        for each in (*types_of_runs(universe), *types_of_groups(universe), provenance_type(universe))
    }
    for instrument in instruments:
        raw = raw_type(instrument, central)
        found.setdefault(raw.name, raw)
    for pipeline in pipelines:
        try:
            types = dataset_types_of(pipeline, central)
        except UnusablePipeline as error:
            _LOG.error("%s", error)
            continue
        for dataset_type in types:
            if found.setdefault(dataset_type.name, dataset_type) != dataset_type:
                _LOG.warning(
                    "%s defines %s differently than another pipeline, whose definition is used",
                    pipeline.path,
                    dataset_type.name,
                )
    return list(found.values())


def raw_type(instrument: Instrument, central: Butler) -> DatasetType:
    """Return the definition of ``raw``: the central repo's, or the instrument's own."""
    known = known_dataset_type(central, "raw")
    if known is not None:
        return known
    definition = getattr(instrument, "raw_definition", None)
    if definition is None:
        raise ConfigError(
            [f"butler.central: no dataset type 'raw', and {instrument.getName()} does not define it"]
        )
    name, dimensions, storage_class = definition
    return DatasetType(name, dimensions, storage_class, universe=central.dimensions)
