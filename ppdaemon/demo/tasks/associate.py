# SPDX-License-Identifier: BSD-3-Clause
"""Read the alert database before the image arrives, and write to it after detection.

`AssociateTask` makes the first write of a pipeline that cannot be repeated.
"""

from typing import Any

import lsst.pex.config as pexConfig  # noqa: N812
import lsst.pipe.base as pipeBase  # noqa: N812
import lsst.pipe.base.connectionTypes as cT
import pandas
from astropy.table import Table
from astropy.time import Time
from lsst.dax.apdb import Apdb
from lsst.pipe.base.utils import RegionTimeInfo

from ppdaemon.demo.geometry import PIXEL_SCALE_ARCSEC
from ppdaemon.demo.tasks.diacatalogs import (
    make_dia_sources,
    match_to_objects,
    update_dia_objects,
)
from ppdaemon.demo.tasks.errors import AlreadyAssociatedError
from ppdaemon.demo.tasks.visitdetector import VisitDetectorTask

__all__ = (
    "AssociateConfig",
    "AssociateConnections",
    "AssociateTask",
    "LoadDiaCatalogsConfig",
    "LoadDiaCatalogsConnections",
    "LoadDiaCatalogsTask",
)


def _open(config_url: str, label: str) -> Apdb:
    if not config_url:
        raise ValueError(f"{label}:apdb_config_url is not set: name the APDB's configuration file")
    return Apdb.from_uri(config_url)


class LoadDiaCatalogsConnections(
    pipeBase.PipelineTaskConnections, dimensions=("instrument", "group", "detector")
):
    """A sky region and time as input, the database's objects and sources in it as outputs."""

    region_time = cT.Input(
        name="regionTimeInfo",
        doc="Padded footprint and time of the visit.",
        storageClass="RegionTimeInfo",
        dimensions=("instrument", "group", "detector"),
    )
    preloaded_dia_objects = cT.Output(
        name="preloaded_dia_objects",
        doc="DiaObjects in the region.",
        storageClass="DataFrame",
        dimensions=("instrument", "group", "detector"),
    )
    preloaded_dia_sources = cT.Output(
        name="preloaded_dia_sources",
        doc="Known DiaSources of those objects.",
        storageClass="DataFrame",
        dimensions=("instrument", "group", "detector"),
    )


class LoadDiaCatalogsConfig(pipeBase.PipelineTaskConfig, pipelineConnections=LoadDiaCatalogsConnections):
    """Configuration of `LoadDiaCatalogsTask`."""

    apdb_config_url = pexConfig.Field[str](doc="Configuration file of the APDB.", default="")


class LoadDiaCatalogsTask(pipeBase.PipelineTask):
    """Read the alert database's objects and sources in a region.

    The database is opened when the task is constructed, which takes longer than reading it.
    """

    ConfigClass = LoadDiaCatalogsConfig
    _DefaultName = "loadDiaCatalogs"
    config: LoadDiaCatalogsConfig

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.apdb = _open(self.config.apdb_config_url, self.getName())

    def run(self, region_time: RegionTimeInfo) -> pipeBase.Struct:
        """Load objects and their sources.

        Parameters
        ----------
        region_time : `lsst.pipe.base.utils.RegionTimeInfo`
            Padded region and time span of the visit.

        Returns
        -------
        result : `lsst.pipe.base.Struct`
            ``preloaded_dia_objects`` and ``preloaded_dia_sources``, both
            `pandas.DataFrame`.

        Raises
        ------
        ValueError
            Raised if the database is configured to return no sources.
        """
        objects = self.apdb.getDiaObjects(region_time.region)
        ids = [int(each) for each in objects["diaObjectId"]]
        sources = self.apdb.getDiaSources(region_time.region, ids, region_time.timespan.begin)
        if sources is None:
            raise ValueError(
                "the APDB is configured not to return DiaSources: set read_sources_months above 0"
            )
        self.metadata["dia_object_count"] = len(objects)
        self.metadata["dia_source_count"] = len(sources)
        return pipeBase.Struct(preloaded_dia_objects=objects, preloaded_dia_sources=sources)


class AssociateConnections(pipeBase.PipelineTaskConnections, dimensions=("instrument", "visit", "detector")):
    """Candidates and known objects as inputs, stored sources and objects as outputs."""

    dia_source_detector = cT.Input(
        name="dia_source_detector",
        doc="Candidates.",
        storageClass="ArrowAstropy",
        dimensions=("instrument", "visit", "detector"),
    )
    preloaded_dia_objects = cT.Input(
        name="preloaded_dia_objects",
        doc="Known DiaObjects.",
        storageClass="DataFrame",
        dimensions=("instrument", "group", "detector"),
    )
    preloaded_dia_sources = cT.Input(
        name="preloaded_dia_sources",
        doc="Known DiaSources of those objects.",
        storageClass="DataFrame",
        dimensions=("instrument", "group", "detector"),
    )
    dia_source_apdb = cT.Output(
        name="dia_source_apdb",
        doc="DiaSources as stored.",
        storageClass="DataFrame",
        dimensions=("instrument", "visit", "detector"),
    )
    dia_object_apdb = cT.Output(
        name="dia_object_apdb",
        doc="The DiaObjects of those sources as stored, in the same order.",
        storageClass="DataFrame",
        dimensions=("instrument", "visit", "detector"),
    )


class AssociateConfig(pipeBase.PipelineTaskConfig, pipelineConnections=AssociateConnections):
    """Configuration of `AssociateTask`."""

    apdb_config_url = pexConfig.Field[str](doc="Configuration file of the APDB.", default="")
    radius_arcsec = pexConfig.Field[float](doc="Largest distance of a source from its object.", default=1.0)


class AssociateTask(VisitDetectorTask):
    """Match candidates to known objects and store both in the alert database."""

    ConfigClass = AssociateConfig
    _DefaultName = "associate"
    config: AssociateConfig

    def run(
        self,
        dia_source_detector: Table,
        preloaded_dia_objects: pandas.DataFrame,
        preloaded_dia_sources: pandas.DataFrame,
        *,
        visit: int,
        detector: int,
    ) -> pipeBase.Struct:
        """Associate the candidates with objects and store both.

        Parameters
        ----------
        dia_source_detector : `astropy.table.Table`
            Candidates; those with a reason in ``rejected`` are not stored.
        preloaded_dia_objects, preloaded_dia_sources : `pandas.DataFrame`
            Content of the database before the image arrived.
        visit, detector : `int`
            IDs that become part of the source IDs.

        Returns
        -------
        result : `lsst.pipe.base.Struct`
            ``dia_source_apdb`` and ``dia_object_apdb``, `pandas.DataFrame`: row k
            of the second is the object of row k of the first.

        Raises
        ------
        AlreadyAssociatedError
            Raised if the database has sources of this visit and detector.
        ValueError
            Raised if no database is configured.
        """
        apdb = _open(self.config.apdb_config_url, self.getName())
        candidates = dia_source_detector[dia_source_detector["rejected"] == ""]
        # Also the time for the database, instead of the visit's: visits may end in another order than they
        # were taken in, but it takes what is stored with a later call for newer, whatever its time.
        now = Time.now()
        sources = make_dia_sources(candidates, visit, detector, float(now.tai.mjd), PIXEL_SCALE_ARCSEC)
        rows = match_to_objects(
            sources["ra"].to_numpy(),
            sources["dec"].to_numpy(),
            preloaded_dia_objects,
            self.config.radius_arcsec,
        )
        matched = rows >= 0
        object_ids = sources["diaSourceId"].to_numpy(copy=True)
        object_ids[matched] = preloaded_dia_objects["diaObjectId"].to_numpy(dtype="int64")[rows[matched]]
        # A new object has the ID of its first source: no other ID is unique across workers.
        sources.insert(1, "diaObjectId", object_ids)
        objects = update_dia_objects(
            sources, preloaded_dia_objects, preloaded_dia_sources, float(now.tai.mjd)
        )
        self.metadata["dia_source_count"] = len(sources)
        self.metadata["new_dia_object_count"] = int((~matched).sum())
        if apdb.containsVisitDetector(visit, detector):
            raise AlreadyAssociatedError(
                f"the APDB has DiaSources of visit {visit}, detector {detector} already: they are not "
                "stored again, because each would be in the database twice",
                visit=visit,
                detector=detector,
            )
        if len(sources):
            apdb.store(now, objects, sources)
        return pipeBase.Struct(dia_source_apdb=sources, dia_object_apdb=objects)
