# SPDX-License-Identifier: BSD-3-Clause
"""A raw file is taken and becomes a dataset with dimension records, or is refused with a reason."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from astropy.io import fits
from lsst.daf.butler import Butler, DatasetRef, DimensionRecord, FileDataset
from lsst.pipe.base import Instrument
from lsst.resources import ResourcePath

from ppdaemon.camera import Camera
from ppdaemon.config import ExposuresConfig
from ppdaemon.errors import BadMessage, VisitFailed
from ppdaemon.messages import Raw
from ppdaemon.middleware.butler.failures import describe, is_out_of_space
from ppdaemon.middleware.raws.agreement import contradictions
from ppdaemon.middleware.raws.fitsfile import BadFits, read_primary_header
from ppdaemon.middleware.raws.header import (
    ExposureHeader,
    check_expected,
    read_sidecar,
    same_exposure,
    translate,
)
from ppdaemon.middleware.raws.insertion import insert_records
from ppdaemon.middleware.raws.obsbase import ObsBaseIngester
from ppdaemon.middleware.raws.rawfiles import RawFiles
from ppdaemon.middleware.raws.records import exposure_records, with_own_groups
from ppdaemon.middleware.raws.regions import Footprint
from ppdaemon.middleware.raws.remote import StoreError
from ppdaemon.middleware.raws.visits import visit_records
from ppdaemon.states import Outcome
from ppdaemon.visit import NextVisit

__all__ = ("AnnouncedVisit", "Ingester", "VisitRaws")

_LOG = logging.getLogger(__name__)

RETRIES_S = (0.1, 0.4)
"""Pauses before a file that cannot be read is tried again: a rename or a
network filesystem's cache may lag, a dead mount is not waited for."""


@dataclass(frozen=True, slots=True)
class AnnouncedVisit:
    """One detector of an announced visit, and the repo that its worker has for it."""

    butler: Butler
    instrument: Instrument
    visit: NextVisit
    detector: int
    footprint: Footprint
    camera: Camera | None
    """The focal-plane table, if there is one."""
    grouped: bool
    """Whether a group's exposures are one visit."""

    def visit_records(self, exposures: Sequence[DimensionRecord]) -> list[DimensionRecord]:
        """Make the records of the visits of some exposures of the sky."""
        return visit_records(
            self.butler.dimensions,
            exposures,
            self.detector,
            grouped=self.grouped,
            camera=self.camera,
            announced=self.footprint.pointing,
        )

    def visits_seen(self, headers: Sequence[ExposureHeader]) -> list[DimensionRecord]:
        """Make the records of the visits of exposures, of those that have one."""
        universe = self.butler.dimensions
        return self.visit_records(
            [exposure_records(universe, header)[-1] for header in headers if header.has_visit]
        )


class Ingester(Protocol):
    """Makes datasets and records in a worker's repo, for one visit-detector.

    What it returns, the central repo may lack.
    """

    def ingest(self, copy: Path, header: ExposureHeader) -> list[DimensionRecord]:
        """Move a raw into the repo; return the records of exposure, group and day.

        A raw that it does not take raises `~ppdaemon.errors.VisitFailed` with
        ``BAD_RAW``.
        """

    def define_visits(
        self, headers: Sequence[ExposureHeader], inputs: Sequence[str]
    ) -> list[DimensionRecord]:
        """Make visits of all exposures that are processed together; return the
        records of the visits and of this detector in them, none for exposures
        not of the sky.

        ``inputs`` are collections that may have the camera's geometry.
        """


class BuiltinIngester:
    """Does all that by itself."""

    def __init__(self, announced: AnnouncedVisit):
        self._announced = announced

    def ingest(self, copy: Path, header: ExposureHeader) -> list[DimensionRecord]:
        """Move a raw into the repo; see `Ingester`."""
        butler, instrument = self._announced.butler, self._announced.instrument
        records = exposure_records(butler.dimensions, header)
        insert_records(butler, records)
        data_id = butler.registry.expandDataId(
            instrument=header.instrument, exposure=header.exposure, detector=header.detector
        )
        run = instrument.makeDefaultRawIngestRunName()
        ref = DatasetRef(butler.get_dataset_type("raw"), data_id, run=run)
        formatter = instrument.getRawFormatter(data_id)
        butler.ingest(
            FileDataset(path=ResourcePath(copy.as_uri()), refs=[ref], formatter=formatter), transfer="move"
        )
        return records

    def define_visits(
        self, headers: Sequence[ExposureHeader], inputs: Sequence[str]
    ) -> list[DimensionRecord]:
        """Make visits of exposures; see `Ingester`."""
        records = self._announced.visits_seen(headers)
        insert_records(self._announced.butler, records)
        return records


class VisitRaws:
    """Takes the raws of one visit-detector, and keeps them out of the repo until an engine wants them there.

    Parameters
    ----------
    announced : `AnnouncedVisit`
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
        self._ingester: Ingester = (
            ObsBaseIngester(
                announced.butler, announced.instrument, announced.detector, grouped=announced.grouped
            )
            if obs_base
            else BuiltinIngester(announced)
        )
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
        try:
            header = read_primary_header(copy)
        except BadFits as error:
            raise VisitFailed(Outcome.BAD_RAW, f"{raw.path} cannot be used: {error}") from error
        try:
            understood = self._from_sidecar(header, raw) or self._checked(header, raw)
        except VisitFailed as error:
            raise VisitFailed(error.outcome, f"{raw.path} cannot be used: {error}") from error
        if reasons := contradictions(understood, self.announced.visit, self._limits):
            text = f"exposure {raw.exposure} is set aside: {', '.join(reasons)}"
            raise VisitFailed(Outcome.BAD_RAW, text)
        return understood

    def _from_sidecar(self, header: fits.Header, raw: Raw) -> ExposureHeader | None:
        """Take the sidecar's word if it is good and of the same exposure."""
        sidecar = read_sidecar(raw.sidecar, self._files)
        if sidecar is None:
            return None
        same_exposure(sidecar, header)
        try:
            return self._checked(sidecar, raw)
        except VisitFailed as error:
            _LOG.warning("sidecar %s is not used: %s", raw.sidecar, error)
            return None

    def _checked(self, header: Mapping[str, Any], raw: Raw) -> ExposureHeader:
        return check_expected(translate(header, self.announced.instrument, raw.path), raw)
