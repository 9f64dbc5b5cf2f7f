# SPDX-License-Identifier: BSD-3-Clause
"""Ingest and visit definition by the tasks of ``lsst.obs.base``, where that is installed and configured.

The package is imported only when it is needed. Headers are read and checked by
`ppdaemon.middleware.raws.ingest` in any case; a raw that is rejected there is
not passed on.
"""

import importlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lsst.daf.butler import Butler, DimensionRecord

from ppdaemon.config import ButlerConfig
from ppdaemon.errors import ConfigError, VisitFailed
from ppdaemon.middleware.butler.failures import describe, is_out_of_space
from ppdaemon.middleware.raws.header import ExposureHeader
from ppdaemon.middleware.raws.visits import AnnouncedVisit
from ppdaemon.states import Outcome

__all__ = ("ObsBaseIngester", "require_obs_base")

_OBS_BASE = "lsst.obs.base"


def require_obs_base(config: ButlerConfig, instruments: Iterable[str]) -> None:
    """Raise `~ppdaemon.errors.ConfigError` if ``lsst.obs.base`` is configured and cannot be imported."""
    needed_by = [name for name in instruments if config.ingest_of(name) == "obs_base"]
    if not needed_by:
        return
    try:
        importlib.import_module(_OBS_BASE)
    except ImportError as error:
        text = f"obs_base is configured for {', '.join(needed_by)}, but {_OBS_BASE} cannot be imported"
        raise ConfigError([f"butler.ingest: {text}: {describe(error)}"]) from error


class ObsBaseIngester:
    """Makes records and datasets with ``lsst.obs.base``.

    The instrument's configuration overrides for both tasks apply. The
    instrument derives the id of a visit of a group from the group's name.
    """

    def __init__(self, announced: AnnouncedVisit, butler: Butler):
        self._butler = butler
        self._instrument = instrument = announced.instrument
        self._detector = announced.detector
        base: Any = importlib.import_module(_OBS_BASE)
        ingest = base.RawIngestConfig()
        instrument.applyConfigOverrides(base.RawIngestTask._DefaultName, ingest)
        ingest.transfer = "move"
        ingest.failFast = True
        self._ingest = base.RawIngestTask(config=ingest, butler=butler)
        define = base.DefineVisitsConfig()
        instrument.applyConfigOverrides(base.DefineVisitsTask._DefaultName, define)
        # The default makes two visits of an exposure of several snaps, and
        # every task of a pipeline would be run for both.
        define.groupExposures = "by-group-metadata" if announced.grouped else "one-to-one"
        self._define = base.DefineVisitsTask(config=define, butler=butler)

    def ingest(self, copy: Path, header: ExposureHeader) -> list[DimensionRecord]:
        """Put a raw into the repo; see `ppdaemon.middleware.raws.ingest.BuiltinIngester`."""
        try:
            self._ingest.run([str(copy)], run=self._instrument.makeDefaultRawIngestRunName())
        except Exception as error:  # it runs code of the instrument: any exception
            if is_out_of_space(error) or isinstance(error, MemoryError):
                raise
            raise VisitFailed(
                Outcome.BAD_RAW, f"obs_base cannot ingest the raw: {describe(error)}"
            ) from error
        exposure = self._in_group(header)
        return [
            *self._records("day_obs", day_obs=exposure.day_obs),
            *self._records("group", group=exposure.group),
            exposure,
        ]

    def define_visits(
        self, headers: Sequence[ExposureHeader], inputs: Sequence[str]
    ) -> list[DimensionRecord]:
        """Define visits; see `ppdaemon.middleware.raws.ingest.BuiltinIngester`."""
        exposures = [{"instrument": header.instrument, "exposure": header.exposure} for header in headers]
        self._define.run(exposures, collections=list(inputs))
        definitions = [
            record
            for header in headers
            for record in self._records("visit_definition", exposure=header.exposure)
        ]
        records = [*self._records("visit_system"), *definitions]
        for visit in sorted({record.visit for record in definitions}):
            records += self._records("visit", visit=visit)
            records += self._records("visit_system_membership", visit=visit)
            records += self._records("visit_detector_region", visit=visit, detector=self._detector)
        return records

    def _in_group(self, header: ExposureHeader) -> DimensionRecord:
        """Return an exposure's record; move a supplement to the visit's group."""
        (exposure,) = self._records("exposure", exposure=header.exposure)
        if exposure.group == header.group:
            return exposure
        moved = type(exposure)(**exposure.toDict() | {"group": header.group})
        self._butler.registry.syncDimensionData("exposure", moved, update=True)
        return moved

    def _records(self, element: str, **data_id: Any) -> list[DimensionRecord]:
        """Return records of this instrument from the repo."""
        full_id = {"instrument": self._instrument.getName()} | data_id
        return self._butler.query_dimension_records(element, data_id=full_id, explain=False)
