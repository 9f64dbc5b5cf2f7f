# SPDX-License-Identifier: BSD-3-Clause
"""Raws that are understood, and not registered: what the ``direct`` engine needs of them.

If another engine has to run, they are registered after all.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lsst.daf.butler import Butler, DimensionRecord
from lsst.pipe.base import Instrument

from ppdaemon.camera import Camera
from ppdaemon.middleware.direct.exposures import Exposures
from ppdaemon.middleware.raws.header import ExposureHeader
from ppdaemon.middleware.raws.ingest import BuiltinIngester
from ppdaemon.middleware.raws.records import exposure_records, group_record, make_record
from ppdaemon.middleware.raws.regions import Footprint
from ppdaemon.middleware.raws.visits import visit_records
from ppdaemon.visit import NextVisit

__all__ = ("UnregisteredRaws",)

MOST_EXPECTED = 50
"""Images that are prepared for: an announcement can tell any number."""


class UnregisteredRaws:
    """Keeps the raws of one visit-detector at hand; an `~ppdaemon.middleware.raws.ingest.Ingester`.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        The worker's repo.
    instrument : `lsst.pipe.base.Instrument`
        The instrument.
    visit : `~ppdaemon.visit.NextVisit`
        What was announced.
    detector : `int`
        Id of the detector.
    footprint : `~ppdaemon.middleware.raws.regions.Footprint`
        Where and when it is to look.
    camera : `~ppdaemon.camera.Camera` or `None`
        The focal-plane table, if there is one.
    grouped : `bool`
        Whether a group's exposures are one visit.
    folder : `pathlib.Path`
        Takes the files; on the filesystem of the repo.
    """

    def __init__(
        self,
        butler: Butler,
        instrument: Instrument,
        visit: NextVisit,
        detector: int,
        footprint: Footprint,
        *,
        camera: Camera | None,
        grouped: bool,
        folder: Path,
    ):
        self._butler = butler
        self._instrument = instrument
        self._visit = visit
        self._detector = detector
        self._footprint = footprint
        self._camera = camera
        self._grouped = grouped
        self._folder = folder
        self._files: dict[int, Path] = {}
        self._headers: tuple[ExposureHeader, ...] = ()
        self._inputs: tuple[str, ...] = ()
        self._records: dict[int, list[DimensionRecord]] = {}
        self._visits: list[DimensionRecord] = []
        self.registered = False
        """Whether what came is in the repo, and not here any more (`bool`)."""

    def ingest(self, copy: Path, header: ExposureHeader) -> list[DimensionRecord]:
        """Keep a raw; see `~ppdaemon.middleware.raws.ingest.Ingester`."""
        # A folder each: snaps may lie under one name in different folders.
        folder = self._folder / str(header.exposure)
        folder.mkdir(parents=True, exist_ok=True)
        self._files[header.exposure] = copy.rename(folder / copy.name)
        self._records[header.exposure] = exposure_records(self._butler.dimensions, header)
        return self._records[header.exposure]

    def define_visits(
        self, headers: Sequence[ExposureHeader], inputs: Sequence[str]
    ) -> list[DimensionRecord]:
        """Make visits in memory; see `~ppdaemon.middleware.raws.ingest.Ingester`."""
        self._headers, self._inputs = tuple(headers), tuple(inputs)
        seen = [self._records[header.exposure][-1] for header in headers if header.sees_sky]
        self._visits = self._visits_of(seen)
        return self._visits

    def landed(self, context: Mapping[str, str]) -> Exposures:
        """Return what came.

        Parameters
        ----------
        context : `~collections.abc.Mapping` [`str`, `str`]
            What log records tell of the visit.

        Returns
        -------
        exposures : `~ppdaemon.middleware.direct.engine.Exposures`
            Those of which visits were defined.
        """
        ids = tuple(header.exposure for header in self._headers)
        records = [record for exposure in ids for record in self._records[exposure]]
        return self._exposures(ids, [*records, *self._visits], self._files, context)

    def expected(self) -> Exposures:
        """Return what was announced, as if it had come.

        Returns
        -------
        exposures : `~ppdaemon.middleware.direct.engine.Exposures`
            With the first of the announced filters, and ids that no exposure
            has; never more than `MOST_EXPECTED`.
        """
        universe, day = self._butler.dimensions, self._footprint.day_obs
        name, group = self._instrument.getName(), self._visit.group
        pointing = self._footprint.pointing
        ids = tuple(range(1, min(max(self._visit.nimages, 1), MOST_EXPECTED) + 1))
        exposures = [
            make_record(
                universe,
                "exposure",
                instrument=name,
                id=exposure,
                obs_id=str(exposure),
                group=group,
                day_obs=day,
                physical_filter=self._likely_filter(),
                timespan=self._footprint.exposure,
                seq_num=exposure,
                seq_start=1,
                tracking_ra=None if pointing is None else pointing.ra_deg,
                tracking_dec=None if pointing is None else pointing.dec_deg,
                sky_angle=None if pointing is None else pointing.sky_angle_deg,
            )
            for exposure in ids
        ]
        records = [
            make_record(universe, "day_obs", instrument=name, id=day, timespan=None),
            group_record(universe, name, group),
            *exposures,
            *self._visits_of(exposures),
        ]
        return self._exposures(ids, records, {}, {})

    def register(self) -> None:
        """Put into the repo what came, for an engine that looks there.

        Raises
        ------
        ppdaemon.errors.VisitFailed
            Raised with ``BAD_RAW``.
        """
        ingester = BuiltinIngester(
            self._butler,
            self._instrument,
            grouped=self._grouped,
            camera=self._camera,
            announced=self._footprint.pointing,
        )
        self.registered = True
        for header in self._headers:
            ingester.ingest(self._files.pop(header.exposure), header)
        ingester.define_visits(self._headers, self._inputs)

    def _visits_of(self, exposures: Sequence[DimensionRecord]) -> list[DimensionRecord]:
        return visit_records(
            self._butler.dimensions,
            exposures,
            self._detector,
            grouped=self._grouped,
            camera=self._camera,
            announced=self._footprint.pointing,
        )

    def _likely_filter(self) -> str:
        """Return the first announced filter that the instrument has, or else any; blank if it has none."""
        records = self._butler.query_dimension_records(
            "physical_filter", instrument=self._instrument.getName(), explain=False
        )
        known = sorted(str(record.name) for record in records)
        return next((name for name in (*self._visit.filter_names, *known) if name in known), "")

    def _exposures(
        self,
        ids: tuple[int, ...],
        records: Sequence[DimensionRecord],
        files: Mapping[int, Path],
        context: Mapping[str, str],
    ) -> Exposures:
        return Exposures(
            instrument=self._instrument.getName(),
            detector=self._detector,
            ids=ids,
            records=tuple(records),
            run=self._instrument.makeDefaultRawIngestRunName(),
            formatter=self._instrument.getRawFormatter,
            files=dict(files),
            context=context,
        )
