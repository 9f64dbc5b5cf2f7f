# SPDX-License-Identifier: BSD-3-Clause
"""Ingests raws: a raw becomes a dataset with dimension records, or is rejected with a reason."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lsst.daf.butler import Butler, DatasetRef, DimensionRecord

from ppdaemon.clock import Clock
from ppdaemon.config import ExposuresConfig
from ppdaemon.errors import BadMessage, VisitFailed
from ppdaemon.messages import Raw
from ppdaemon.middleware.butler.datafiles import file_dataset
from ppdaemon.middleware.butler.failures import describe, is_out_of_space
from ppdaemon.middleware.raws.header import ExposureHeader, contradictions, read_checked_header
from ppdaemon.middleware.raws.obsbase import ObsBaseIngester
from ppdaemon.middleware.raws.rawfiles import RawFiles
from ppdaemon.middleware.raws.records import exposure_records, with_own_groups
from ppdaemon.middleware.raws.remote import StoreError
from ppdaemon.middleware.raws.visits import AnnouncedVisit, insert_records
from ppdaemon.pointing import expected_begin
from ppdaemon.states import Outcome

__all__ = ("BuiltinIngester", "RawLimits", "VisitRaws")

_LOG = logging.getLogger(__name__)

RETRIES_S = (0.1, 0.4)
"""Pauses before an unreadable file is read again: a rename or the cache of a
network filesystem may lag. Short, because waiting does not repair a dead
mount."""


class BuiltinIngester:
    """Makes datasets and records in a worker's repo without obs_base, for one visit-detector.

    It returns the records that the central repo may lack.
    """

    def __init__(self, announced: AnnouncedVisit, butler: Butler):
        self._announced = announced
        self._butler = butler

    def ingest(self, copy: Path, header: ExposureHeader) -> list[DimensionRecord]:
        """Move a raw into the repo; return the records of exposure, group and day.

        An ingester that rejects the raw raises `~ppdaemon.errors.VisitFailed`
        (``BAD_RAW``).
        """
        butler, instrument = self._butler, self._announced.instrument
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
        """Define the visits of all exposures that are processed together; return the
        records of the visits and of this detector in them, none for exposures
        not of the sky.

        ``inputs`` are collections that may have the camera's geometry.
        """
        records = self._announced.visits_seen(headers)
        insert_records(self._butler, records)
        return records


@dataclass(frozen=True, slots=True)
class RawLimits:
    """What a raw must comply with."""

    exposures: ExposuresConfig
    """Limits between raws and announcement."""
    filters: frozenset[str]
    """Filters of the instrument in the central repo, which refuses outputs with another one."""
    local_filters: frozenset[str]
    """Those that are registered in the repo that gets the raws."""
    register_command: str
    """Registers other filters."""
    clock: Clock
    """Dates in the future are impossible."""


class VisitRaws:
    """Copies and checks the raws of one visit-detector; `register` puts them into the repo.

    With `obs_base`, each raw is ingested at once, because ``lsst.obs.base`` may
    reject it. `repo` returns the Butler of the repo; it is called before raws are
    registered. `incoming` is a folder on the repo's filesystem.
    """

    def __init__(
        self,
        announced: AnnouncedVisit,
        repo: Callable[[], Butler],
        obs_base: bool,
        limits: RawLimits,
        files: RawFiles,
        incoming: Path,
    ):
        self.announced = announced
        self._repo = repo
        self._obs_base = obs_base
        self._ingester: ObsBaseIngester | BuiltinIngester | None = None
        self._limits = limits
        self._files = files
        self._incoming = incoming
        self._inputs: tuple[str, ...] = ()
        self.headers: dict[int, ExposureHeader] = {}
        """Headers of the raws, by exposure."""
        self.records: list[DimensionRecord] = []
        """Records of exposures and visits, in the form of the worker's repo; for
        the central repo see `shared_records`."""
        self.files: dict[int, Path] = {}
        """Files that are not in the repo, by exposure."""
        self.exposures: tuple[int, ...] = ()
        """Exposures of which visits were defined."""
        if obs_base:
            self.register()

    @property
    def registered(self) -> bool:
        """Whether raws are in the repo, and later ones are put there at once (`bool`)."""
        return self._ingester is not None

    @property
    def shared_records(self) -> list[DimensionRecord]:
        """The records for the central repo (`list`); see
        `~ppdaemon.middleware.raws.records.with_own_groups`.
        """
        return with_own_groups(self.records, self.headers)

    def take(self, raw: Raw) -> ExposureHeader:
        """Copy a raw and check it; return its header. A second raw of an exposure is ignored.

        Raises `~ppdaemon.errors.VisitFailed`: ``RAW_UNREADABLE``, or
        ``BAD_RAW``, also for an image that contradicts its announcement. The
        raw file is never changed.
        """
        # Only the copy on the RAM disk is checked: the shared filesystem is read
        # once, and the file may change or disappear later.
        if raw.exposure in self.headers:
            return self.headers[raw.exposure]
        copy = self._fetch(raw.path)
        try:
            header = self._read_header(copy, raw)
            if self._ingester is not None:
                self.records += self._ingester.ingest(copy, header)
            else:
                self._store(copy, header)
        finally:
            copy.unlink(missing_ok=True)
        self.headers[raw.exposure] = header
        return header

    def define_visits(self, exposures: Sequence[int], inputs: Sequence[str]) -> None:
        """Define the visits of the exposures that are processed, all of which were taken.

        ``inputs`` are collections that may have the camera's geometry.
        """
        self.exposures, self._inputs = tuple(exposures), tuple(inputs)
        headers = [self.headers[exposure] for exposure in exposures]
        if self._ingester is not None:
            self._repo()  # the inputs may have been extended
            self.records += self._ingester.define_visits(headers, inputs)
        else:
            self.records += self.announced.visits_seen(headers)

    def register(self) -> None:
        """Put the raws into the repo, and from now on each raw when it is taken."""
        if self._ingester is not None:
            return
        make = ObsBaseIngester if self._obs_base else BuiltinIngester
        self._ingester = ingester = make(self.announced, self._repo())
        for exposure in list(self.files):
            ingester.ingest(self.files.pop(exposure), self.headers[exposure])
        if self.exposures:
            headers = [self.headers[exposure] for exposure in self.exposures]
            ingester.define_visits(headers, self._inputs)

    def _store(self, copy: Path, header: ExposureHeader) -> None:
        # A folder for each exposure: snaps may have the same name in different folders.
        folder = self._incoming / "kept" / str(header.exposure)
        folder.mkdir(parents=True, exist_ok=True)
        self.files[header.exposure] = copy.rename(folder / copy.name)
        self.records += exposure_records(self.announced.universe, header)

    def _fetch(self, path: str) -> Path:
        for pause_s in (*RETRIES_S, None):
            try:
                return self._files.fetch(path, self._incoming)
            except (OSError, BadMessage) as error:
                if is_out_of_space(error):
                    raise
                # Requests to a store have been retried already.
                if pause_s is None or isinstance(error, StoreError):
                    raise VisitFailed(
                        Outcome.RAW_UNREADABLE, f"{path} cannot be read: {describe(error)}", retriable=True
                    ) from error
                _LOG.info("%s cannot be read, trying again: %s", path, describe(error))
                time.sleep(pause_s)
        raise AssertionError("the last attempt returns or raises")

    def _read_header(self, copy: Path, raw: Raw) -> ExposureHeader:
        limits, now_tai = self._limits, self._limits.clock.tai()
        begin_tai, _ = expected_begin(self.announced.visit, now_tai)
        header = read_checked_header(
            copy, raw, self.announced.instrument, self._files, max(now_tai, begin_tai)
        )
        if reasons := contradictions(header, self.announced.visit, limits.exposures):
            text = f"exposure {raw.exposure} is not used: {', '.join(reasons)}"
            raise VisitFailed(Outcome.BAD_RAW, text)
        name = header.physical_filter
        text = f"exposure {raw.exposure} is not used: its filter {name!r} is not registered"
        if name not in limits.filters:
            raise VisitFailed(Outcome.BAD_RAW, f"{text} in the central repo: {limits.register_command}")
        if name not in limits.local_filters:
            # The template has the filters of the time at which its generation was created.
            raise VisitFailed(Outcome.BAD_RAW, f"{text} in the worker's repo: run ppctl reload")
        return header
