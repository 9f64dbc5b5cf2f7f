# SPDX-License-Identifier: BSD-3-Clause
"""A raw file becomes a dataset with dimension records, or is refused with a reason."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from astropy.io import fits
from lsst.daf.butler import Butler, DatasetRef, DimensionRecord, FileDataset
from lsst.pipe.base import Instrument
from lsst.resources import ResourcePath

from ppdaemon.camera import Camera
from ppdaemon.config import ButlerConfig, ExposuresConfig
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
from ppdaemon.middleware.raws.records import exposure_records
from ppdaemon.middleware.raws.remote import StoreError
from ppdaemon.middleware.raws.visits import groups_snaps, visit_records
from ppdaemon.pointing import Pointing
from ppdaemon.states import Outcome
from ppdaemon.visit import NextVisit

__all__ = ("BuiltinIngester", "Ingester", "RawIngest", "choose_ingester")

_LOG = logging.getLogger(__name__)

RETRIES_S = (0.1, 0.4)
"""Pauses before a file that cannot be read is tried again: a rename or a
network filesystem's cache may lag, a dead mount is not waited for."""


class Ingester(Protocol):
    """Makes datasets and records in a worker's repo, for one visit-detector."""

    def ingest(self, copy: Path, header: ExposureHeader) -> list[DimensionRecord]:
        """Put a raw into the repo.

        Parameters
        ----------
        copy : `pathlib.Path`
            A file on the repo's filesystem, which is moved into it.
        header : `~ppdaemon.middleware.raws.header.ExposureHeader`
            What its header says.

        Returns
        -------
        records : `list` [`lsst.daf.butler.DimensionRecord`]
            Of exposure, group and day: the central repo may lack them.

        Raises
        ------
        ppdaemon.errors.VisitFailed
            Raised with ``BAD_RAW``.
        """

    def define_visits(
        self, headers: Sequence[ExposureHeader], inputs: Sequence[str]
    ) -> list[DimensionRecord]:
        """Make visits of exposures.

        Parameters
        ----------
        headers : `~collections.abc.Sequence`
            Of all exposures that are processed together.
        inputs : `~collections.abc.Sequence` [`str`]
            Collections that may have the camera's geometry.

        Returns
        -------
        records : `list` [`lsst.daf.butler.DimensionRecord`]
            Of the visits and of this detector in them: the central repo may
            lack them. Empty for exposures not of the sky.
        """


def choose_ingester(
    config: ButlerConfig,
    butler: Butler,
    instrument: Instrument,
    detector: int,
    camera: Camera | None,
    announced: Pointing | None,
) -> Ingester:
    """Return who puts a visit-detector's raws into the repo.

    Parameters
    ----------
    config : `~ppdaemon.config.ButlerConfig`
        Says who does it for this instrument, and what a visit is.
    butler : `lsst.daf.butler.Butler`
        The worker's repo.
    instrument : `lsst.pipe.base.Instrument`
        The instrument.
    detector : `int`
        Id of the detector.
    camera : `~ppdaemon.camera.Camera` or `None`
        The focal-plane table, if there is one.
    announced : `~ppdaemon.pointing.Pointing` or `None`
        Where the visit was to look.

    Returns
    -------
    ingester : `Ingester`
        For this visit-detector.
    """
    name = instrument.getName()
    grouped = groups_snaps(config.visits.get(name), instrument)
    if config.ingest_of(name) == "obs_base":
        return ObsBaseIngester(butler, instrument, detector, grouped=grouped)
    return BuiltinIngester(butler, instrument, grouped=grouped, camera=camera, announced=announced)


class BuiltinIngester:
    """Does all that by itself.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        The worker's repo.
    instrument : `lsst.pipe.base.Instrument`
        The instrument.
    grouped : `bool`
        Whether a group's exposures are one visit.
    camera : `~ppdaemon.camera.Camera` or `None`
        Its focal-plane table, if there is one.
    announced : `~ppdaemon.pointing.Pointing` or `None`
        Where the visit was to look.
    """

    def __init__(
        self,
        butler: Butler,
        instrument: Instrument,
        *,
        grouped: bool,
        camera: Camera | None,
        announced: Pointing | None,
    ):
        self._butler = butler
        self._instrument = instrument
        self._grouped = grouped
        self._camera = camera
        self._announced = announced

    def ingest(self, copy: Path, header: ExposureHeader) -> list[DimensionRecord]:
        """Put a raw into the repo; see `Ingester`."""
        records = exposure_records(self._butler.dimensions, header)
        insert_records(self._butler, records)
        data_id = self._butler.registry.expandDataId(
            instrument=header.instrument, exposure=header.exposure, detector=header.detector
        )
        run = self._instrument.makeDefaultRawIngestRunName()
        ref = DatasetRef(self._butler.get_dataset_type("raw"), data_id, run=run)
        formatter = self._instrument.getRawFormatter(data_id)
        self._butler.ingest(
            FileDataset(path=ResourcePath(copy.as_uri()), refs=[ref], formatter=formatter), transfer="move"
        )
        return records

    def define_visits(
        self, headers: Sequence[ExposureHeader], inputs: Sequence[str]
    ) -> list[DimensionRecord]:
        """Make visits of exposures; see `Ingester`."""
        universe = self._butler.dimensions
        seen = [header for header in headers if header.sees_sky]
        records = visit_records(
            universe,
            [exposure_records(universe, header)[-1] for header in seen],
            headers[0].detector,
            grouped=self._grouped,
            camera=self._camera,
            announced=self._announced,
        )
        insert_records(self._butler, records)
        return records


class RawIngest:
    """Takes the raws of one visit-detector.

    Parameters
    ----------
    ingester : `Ingester`
        Puts them into the repo.
    instrument : `lsst.pipe.base.Instrument`
        The instrument.
    visit : `~ppdaemon.visit.NextVisit`
        What was announced.
    limits : `~ppdaemon.config.ExposuresConfig`
        How far the raws may be from that.
    files : `~ppdaemon.middleware.raws.rawfiles.RawFiles`
        Where raws come from.
    incoming : `pathlib.Path`
        Folder on the repo's filesystem.
    """

    def __init__(
        self,
        ingester: Ingester,
        instrument: Instrument,
        visit: NextVisit,
        limits: ExposuresConfig,
        files: RawFiles,
        incoming: Path,
    ):
        self._ingester = ingester
        self._instrument = instrument
        self._visit = visit
        self._limits = limits
        self._files = files
        self._incoming = incoming
        self.headers: dict[int, ExposureHeader] = {}
        """Of what is in the repo, by exposure."""
        self.records: list[DimensionRecord] = []
        """Made for it; the central repo may lack them."""

    def take(self, raw: Raw) -> ExposureHeader:
        """Put a raw into the repo.

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
            self.records += self._ingester.ingest(copy, header)
        finally:
            copy.unlink(missing_ok=True)
        self.headers[raw.exposure] = header
        return header

    def define_visits(self, exposures: Sequence[int], inputs: Sequence[str]) -> None:
        """Make visits of all exposures that came.

        Parameters
        ----------
        exposures : `~collections.abc.Sequence` [`int`]
            Those that are processed, of which each is in the repo.
        inputs : `~collections.abc.Sequence` [`str`]
            Collections that may have the camera's geometry.
        """
        headers = [self.headers[exposure] for exposure in exposures]
        self.records += self._ingester.define_visits(headers, inputs)

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
        if reasons := contradictions(understood, self._visit, self._limits):
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
        return check_expected(translate(header, self._instrument, raw.path), raw)
