# SPDX-License-Identifier: BSD-3-Clause
"""A raw file becomes a dataset with dimension records, or is refused with a reason."""

import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astropy.io import fits
from lsst.daf.butler import Butler, DatasetRef, DimensionRecord, FileDataset
from lsst.pipe.base import Instrument
from lsst.resources import ResourcePath

from ppdaemon.camera import Camera
from ppdaemon.errors import VisitFailed
from ppdaemon.messages import Raw
from ppdaemon.middleware.failures import describe, is_out_of_space
from ppdaemon.middleware.fitsfile import BadFits, read_primary_header
from ppdaemon.middleware.header import ExposureHeader, check_expected, read_sidecar, same_exposure, translate
from ppdaemon.middleware.records import exposure_records, insert_records, visit_records
from ppdaemon.middleware.regions import Pointing
from ppdaemon.states import Outcome

__all__ = ("IngestedRaw", "RawIngest")

_LOG = logging.getLogger(__name__)

RETRIES_S = (0.1, 0.4)
"""Pauses before a file that cannot be read is tried again: a rename or a
network filesystem's cache may lag, a dead mount is not waited for."""


@dataclass(frozen=True, slots=True)
class IngestedRaw:
    """A raw that is in the repo."""

    header: ExposureHeader
    records: tuple[DimensionRecord, ...]
    """What was inserted for it."""


class RawIngest:
    """Takes raws of one visit-detector.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        The worker's repo.
    instrument : `lsst.pipe.base.Instrument`
        The instrument.
    camera : `~ppdaemon.camera.Camera` or `None`
        Its focal-plane table, if there is one.
    announced : `~ppdaemon.middleware.regions.Pointing` or `None`
        Where the visit was to look.
    incoming : `pathlib.Path`
        Folder on the repo's filesystem.
    """

    def __init__(
        self,
        butler: Butler,
        instrument: Instrument,
        camera: Camera | None,
        announced: Pointing | None,
        incoming: Path,
    ):
        self._butler = butler
        self._instrument = instrument
        self._camera = camera
        self._announced = announced
        self._incoming = incoming

    def take(self, raw: Raw) -> IngestedRaw:
        """Put a raw into the repo.

        Parameters
        ----------
        raw : `~ppdaemon.messages.Raw`
            The file, and what it should be.

        Returns
        -------
        ingested : `IngestedRaw`
            What its header says.

        Raises
        ------
        ppdaemon.errors.VisitFailed
            Raised with ``BAD_RAW`` or ``RAW_UNREADABLE``; the file is not
            touched.

        Notes
        -----
        The file is first copied to the RAM disk and only the copy is looked
        at: the shared filesystem is read once, and it does not matter if the
        file disappears or changes later.
        """
        copy = self._fetch(Path(raw.path))
        try:
            header = self._understand(copy, raw)
            records = self._insert(header)
            self._ingest(copy, raw)
        finally:
            copy.unlink(missing_ok=True)
        return IngestedRaw(header, records)

    def _fetch(self, path: Path) -> Path:
        copy = self._incoming / path.name
        for pause_s in (*RETRIES_S, None):
            try:
                shutil.copyfile(path, copy)
                return copy
            except OSError as error:
                copy.unlink(missing_ok=True)
                if is_out_of_space(error):
                    raise
                if pause_s is None:
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
            return self._from_sidecar(header, raw) or self._checked(header, raw)
        except VisitFailed as error:
            raise VisitFailed(error.outcome, f"{raw.path} cannot be used: {error}") from error

    def _from_sidecar(self, header: fits.Header, raw: Raw) -> ExposureHeader | None:
        """Take the sidecar's word if it is good and of the same exposure."""
        sidecar = read_sidecar(None if raw.sidecar is None else Path(raw.sidecar))
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

    def _insert(self, header: ExposureHeader) -> tuple[DimensionRecord, ...]:
        universe = self._butler.dimensions
        records = exposure_records(universe, header)
        records += visit_records(universe, header, self._camera, self._announced)
        insert_records(self._butler, records)
        return tuple(records)

    def _ingest(self, copy: Path, raw: Raw) -> None:
        data_id = self._butler.registry.expandDataId(
            instrument=raw.instrument, exposure=raw.exposure, detector=raw.detector
        )
        run = self._instrument.makeDefaultRawIngestRunName()
        ref = DatasetRef(self._butler.get_dataset_type("raw"), data_id, run=run)
        formatter = self._instrument.getRawFormatter(data_id)
        self._butler.ingest(
            FileDataset(path=ResourcePath(copy.as_uri()), refs=[ref], formatter=formatter), transfer="move"
        )
