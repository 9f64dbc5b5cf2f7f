# SPDX-License-Identifier: BSD-3-Clause
"""What a worker does with the Butler: `ppdaemon.work.WorkModule` for real pipelines.

Nothing is opened at import, so that a zygote can import this and fork. The
steps of a visit are `ppdaemon.middleware.local`'s.
"""

import importlib
import logging

import astropy.utils.iers
from lsst.daf.butler import Butler, DatasetType, DimensionUniverse, StorageClassFactory
from lsst.pipe.base import Instrument

from ppdaemon.config import ButlerConfig, NodeConfig
from ppdaemon.errors import ConfigError, Unavailable
from ppdaemon.middleware.central import known_dataset_type
from ppdaemon.middleware.export import CentralExporter
from ppdaemon.middleware.failures import DATABASE_ERRORS, describe
from ppdaemon.middleware.graph import UnusablePipeline, dataset_types_of, load_pipeline
from ppdaemon.middleware.local import LocalWork
from ppdaemon.middleware.provenance import hash_versions
from ppdaemon.middleware.repo import make_template
from ppdaemon.work import Seat

__all__ = ("PRELOAD", "build_template", "open_exporter", "open_work", "set_up_libraries")

_LOG = logging.getLogger(__name__)

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
"""What the Butler imports by name when it is first needed: better once, in
the zygote, than in each worker."""


def set_up_libraries() -> None:
    """Bring libraries into the state that workers inherit.

    Called once, in the zygote, before any fork.
    """
    # Tables of the Earth's rotation come with astropy; a worker must never
    # wait for a network, and the latest few milliseconds of UT1 do not count.
    astropy.utils.iers.conf.auto_download = False
    astropy.utils.iers.conf.iers_degraded_accuracy = "warn"
    for name in PRELOAD:
        importlib.import_module(name)
    # What every Butler of the process shares and none changes. Made here, a
    # worker is ready 20 ms sooner and has 4 MB less of its own.
    StorageClassFactory()
    for element in DimensionUniverse().elements:
        assert element.RecordClass is not None


def build_template(seat: Seat) -> None:
    """Make the repo that workers copy.

    Parameters
    ----------
    seat : `~ppdaemon.work.Seat`
        Tells configuration and place.

    Raises
    ------
    ppdaemon.errors.Unavailable
        Raised if the central repo, whose dimensions are needed, is away.
    ppdaemon.errors.ConfigError
        Raised if it is too old, or the configuration has no such part.
    """
    config = _butler_config(seat.config)
    instruments = [
        Instrument.from_string(config.instrument_class[name]) for name in sorted(seat.config.node.instruments)
    ]
    try:
        with Butler.from_config(config.central, writeable=False) as central:
            universe = central.dimensions
            if "group" not in universe.dimensions:
                text = f"{config.central} has dimensions of version {universe.version}, 6 is needed"
                raise ConfigError([f"butler.central: {text}"])
            dataset_types = _known_before(seat.config, central, instruments)
    except DATABASE_ERRORS as error:
        raise Unavailable(f"the central repo {config.central} cannot be read: {describe(error)}") from error
    make_template(seat.template, universe, instruments, dataset_types, hash_versions(), config.local)


def open_work(seat: Seat) -> LocalWork:
    """Copy the template and be ready for visits.

    Parameters
    ----------
    seat : `~ppdaemon.work.Seat`
        Tells configuration and places.

    Returns
    -------
    work : `~ppdaemon.middleware.local.LocalWork`
        The worker's work.
    """
    return LocalWork(seat, _butler_config(seat.config))


def open_exporter(seat: Seat) -> CentralExporter:
    """Be ready for exports; the central repo is opened by the first one.

    Parameters
    ----------
    seat : `~ppdaemon.work.Seat`
        Tells the configuration.

    Returns
    -------
    exporter : `~ppdaemon.middleware.export.CentralExporter`
        Registers spools.
    """
    return CentralExporter(_butler_config(seat.config).central, seat.clock, seat.config.node.name)


def _butler_config(config: NodeConfig) -> ButlerConfig:
    if config.butler is None:
        raise ConfigError(["butler: missing key, the configured work needs it"])
    return config.butler


def _known_before(config: NodeConfig, central: Butler, instruments: list[Instrument]) -> list[DatasetType]:
    """Return the dataset types of raws and of all configured pipelines.

    A pipeline that is unusable now is left out; it is tried again, and its
    failure told, when a visit selects it.
    """
    found: dict[str, DatasetType] = {}
    for instrument in instruments:
        raw = _raw_type(instrument, central)
        found.setdefault(raw.name, raw)
    rules = (*config.pipelines.preprocessing, *config.pipelines.main)
    for path in dict.fromkeys(path for rule in rules for path in rule.pipelines):
        try:
            pipeline = load_pipeline(path, config.pipelines.overrides)
            types = dataset_types_of(
                pipeline, central.dimensions, lambda name: known_dataset_type(central, name)
            )
        except UnusablePipeline as error:
            _LOG.error("%s", error)
            continue
        for dataset_type in types:
            if found.setdefault(dataset_type.name, dataset_type) != dataset_type:
                _LOG.warning("%s defines %s differently than another pipeline", path, dataset_type.name)
    return list(found.values())


def _raw_type(instrument: Instrument, central: Butler) -> DatasetType:
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
