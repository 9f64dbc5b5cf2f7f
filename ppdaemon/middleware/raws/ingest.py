# SPDX-License-Identifier: BSD-3-Clause
"""A raw file is taken and becomes a dataset with dimension records, or is refused with a reason."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from lsst.daf.butler import DatasetRef, DimensionRecord

from ppdaemon.config import ExposuresConfig
from ppdaemon.errors import BadMessage, VisitFailed
from ppdaemon.messages import Raw
from ppdaemon.middleware.butler.datafiles import file_dataset
from ppdaemon.middleware.butler.failures import describe, is_out_of_space
from ppdaemon.middleware.raws.header import ExposureHeader, contradictions, understand
from ppdaemon.middleware.raws.obsbase import ObsBaseIngester
from ppdaemon.middleware.raws.rawfiles import RawFiles
from ppdaemon.middleware.raws.records import exposure_records, with_own_groups
from ppdaemon.middleware.raws.remote import StoreError
from ppdaemon.middleware.raws.visits import AnnouncedVisit, insert_records
from ppdaemon.states import Outcome

__all__ = ("BuiltinIngester", "VisitRaws")

_LOG = logging.getLogger(__name__)

RETRIES_S = (0.1, 0.4)
"""Pauses before a file that cannot be read is tried again: a rename or a
network filesystem's cache may lag, a dead mount is not waited for."""


class BuiltinIngester:
    """Makes datasets and records in a worker's repo by itself, for one visit-detector.

    What it returns, the central repo may lack.
    """

    def __init__(self, announced: AnnouncedVisit):
        self._announced = announced

    def ingest(self, copy: Path, header: ExposureHeader) -> list[DimensionRecord]:
        """Move a raw into the repo; return the records of exposure, group and day.

        A raw that an ingester does not take raises `~ppdaemon.errors.VisitFailed`
        with ``BAD_RAW``.
        """
        butler, instrument = self._announced.butler, self._announced.instrument
        records = exposure_records(butler.dimensions, header)
        insert_records(butler, records)
        data_id = butler.registry.expandDataId(
            instrument=header.instrument, exposure=header.exposure, detector=header.detector
        )
        run = instrument.makeDefaultRawIngestRunName()
        ref = DatasetRef(butler.get_dataset_type("raw"), data_id, run=run)
        formatter = instrument.getRawFormatter(data_id)
        butler.ingest(file_dataset(copy, [ref], formatter), transfer="move")
        return records

    def define_visits(
        self, headers: Sequence[ExposureHeader], inputs: Sequence[str]
    ) -> list[DimensionRecord]:
        """Make visits of all exposures that are processed together; return the
        records of the visits and of this detector in them, none for exposures
        not of the sky.

        ``inputs`` are collections that may have the camera's geometry.
        """
        records = self._announced.visits_seen(headers)
        insert_records(self._announced.butler, records)
        return records


class VisitRaws:
    """Takes the raws of one visit-detector, and keeps them out of the repo until an engine wants them there.

    Parameters
    ----------
    announced : `~ppdaemon.middleware.raws.visits.AnnouncedVisit`
        What was announced.
    obs_base : `bool`
        Whether ``lsst.obs.base`` ingests them. It may refuse a raw, so each
        goes into the repo at once.
    limits : `~ppdaemon.config.ExposuresConfig`
        How far the raws may be from the announcement.
    files : `~ppdaemon.middleware.raws.rawfiles.RawFiles`
        Where raws come from.
    incoming : `pathlib.Path`
        Folder on the repo's filesystem.
    """

    def __init__(
        self,
        announced: AnnouncedVisit,
        obs_base: bool,
        limits: ExposuresConfig,
        files: RawFiles,
        incoming: Path,
    ):
        self.announced = announced
        self._ingester = ObsBaseIngester(announced) if obs_base else BuiltinIngester(announced)
        self._limits = limits
        self._files = files
        self._incoming = incoming
        self._inputs: tuple[str, ...] = ()
        self.registered = obs_base
        """Whether the raws are in the repo, and those that come go there."""
        self.headers: dict[int, ExposureHeader] = {}
        """Of what came, by exposure."""
        self.records: list[DimensionRecord] = []
        """Made for it, as they are in the worker's repo; the central repo may lack
        them and takes them as `shared_records`."""
        self.files: dict[int, Path] = {}
        """What is not in the repo, by exposure."""
        self.exposures: tuple[int, ...] = ()
        """Those of which visits were defined."""

    @property
    def shared_records(self) -> list[DimensionRecord]:
        """The records for the central repo (`list`); see
        `~ppdaemon.middleware.raws.records.with_own_groups`.
        """
        return with_own_groups(self.records, self.headers)

    def take(self, raw: Raw) -> ExposureHeader:
        """Copy a raw and check it.

        Parameters
        ----------
        raw : `~ppdaemon.messages.Raw`
            The file, and what it should be; a second time it is not looked
            at again.

        Returns
        -------
        header : `~ppdaemon.middleware.raws.header.ExposureHeader`
            What its header says.

        Raises
        ------
        ppdaemon.errors.VisitFailed
            Raised with ``BAD_RAW`` or ``RAW_UNREADABLE``; the file is not
            touched. An image that contradicts its announcement is a bad raw
            of this visit too.

        Notes
        -----
        The file is first copied to the RAM disk and only the copy is looked
        at: the shared filesystem is read once, and it does not matter if the
        file disappears or changes later.
        """
        if raw.exposure in self.headers:
            return self.headers[raw.exposure]
        copy = self._fetch(raw.path)
        try:
            header = self._understand(copy, raw)
            if self.registered:
                self.records += self._ingester.ingest(copy, header)
            else:
                self._keep(copy, header)
        finally:
            copy.unlink(missing_ok=True)
        self.headers[raw.exposure] = header
        return header

    def define_visits(self, exposures: Sequence[int], inputs: Sequence[str]) -> None:
        """Make visits of the exposures that are processed, all of which came.

        ``inputs`` are collections that may have the camera's geometry.
        """
        self.exposures, self._inputs = tuple(exposures), tuple(inputs)
        headers = [self.headers[exposure] for exposure in exposures]
        if self.registered:
            self.records += self._ingester.define_visits(headers, inputs)
        else:
            self.records += self.announced.visits_seen(headers)

    def register(self) -> None:
        """Put into the repo what came, and from now on each raw when it comes."""
        if self.registered:
            return
        self.registered = True
        for exposure in list(self.files):
            self._ingester.ingest(self.files.pop(exposure), self.headers[exposure])
        if self.exposures:
            headers = [self.headers[exposure] for exposure in self.exposures]
            self._ingester.define_visits(headers, self._inputs)

    def _keep(self, copy: Path, header: ExposureHeader) -> None:
        # A folder each: snaps may lie under one name in different folders.
        folder = self._incoming / "kept" / str(header.exposure)
        folder.mkdir(parents=True, exist_ok=True)
        self.files[header.exposure] = copy.rename(folder / copy.name)
        self.records += exposure_records(self.announced.butler.dimensions, header)

    def _fetch(self, path: str) -> Path:
        for pause_s in (*RETRIES_S, None):
            try:
                return self._files.fetch(path, self._incoming)
            except (OSError, BadMessage) as error:
                if is_out_of_space(error):
                    raise
                # A store that does not serve was asked several times already.
                if pause_s is None or isinstance(error, StoreError):
                    raise VisitFailed(
                        Outcome.RAW_UNREADABLE, f"{path} cannot be read: {describe(error)}", retriable=True
                    ) from error
                _LOG.info("%s cannot be read yet: %s", path, describe(error))
                time.sleep(pause_s)
        raise AssertionError("the last try returns or raises")

    def _understand(self, copy: Path, raw: Raw) -> ExposureHeader:
        understood = understand(copy, raw, self.announced.instrument, self._files)
        if reasons := contradictions(understood, self.announced.visit, self._limits):
            text = f"exposure {raw.exposure} is set aside: {', '.join(reasons)}"
            raise VisitFailed(Outcome.BAD_RAW, text)
        return understood
