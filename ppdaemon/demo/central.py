# SPDX-License-Identifier: BSD-3-Clause
"""Make the demo's central repo: ``python -m ppdaemon.demo.central ROOT``.

ROOT is a Butler repo on SQLite (instrument, sky map, calibrations with
validity ranges, templates, reference catalog). Beside it are an alert
production database, described by ``apdb.yaml``, and ``alert_map.fits``, the
sky map of the area in which alerts are made.
"""

import gc
import hashlib
import json
import multiprocessing
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import astropy.time
import astropy.units as u
import click
import numpy as np
from astropy.table import Table, vstack

# CollectionType is public, though its package does not list it.
from lsst.daf.butler import (  # type: ignore[attr-defined]
    Butler,
    CollectionType,
    DataCoordinate,
    DatasetRef,
    DatasetType,
    FileDataset,
    Timespan,
)
from lsst.dax.apdb.sql import ApdbSql, ApdbSqlConnectionConfig
from lsst.images.formatters import GenericFormatter
from lsst.sphgeom import HtmPixelization, LonLat, UnitVector3d

from ppdaemon.demo.geometry import CAMERA_NAME, DETECTOR_COUNT, FILTER_BANDS
from ppdaemon.demo.instrument import DemoCam
from ppdaemon.demo.masters import MasterFile, make_calibrations, make_templates
from ppdaemon.demo.rules import ALERT_MAP, write_alert_map
from ppdaemon.demo.signatures import EPOCHS
from ppdaemon.demo.sky import Sky, demo_skies
from ppdaemon.demo.skymap import PATCH_COUNT, PATCH_SIDE, SKYMAP_NAME, TRACT, TractMap
from ppdaemon.middleware.export.mark import mark_datastore

__all__ = (
    "APDB_CONFIG",
    "APDB_NAME",
    "FIELD_IDS",
    "REFCAT_LIMIT_R",
    "Done",
    "Progress",
    "main",
    "make_apdb",
    "make_central_repo",
    "reference_catalog",
)

APDB_NAME = "apdb"
"""Stem of the names of the files of the alert production database below the root."""
APDB_CONFIG = f"{APDB_NAME}.yaml"
"""File name of the APDB configuration below the root."""
REFCAT_LIMIT_R = 22.5
"""Magnitude of the faintest star in the reference catalog."""
FIELD_IDS = 10_000_000
"""Offset between the IDs of one field and the next in the reference catalog."""

# The level that the pipelines' reference catalog connection (htm7) has.
_HTM_LEVEL = 7
# For a worker that waits while others write.
_APDB_LOCK_TIMEOUT_S = 120
# Small, so that the image limits the fit.
_REFCAT_POSITION_ERROR_ARCSEC = 0.005
_REFCAT_MAGNITUDE_ERROR = 0.005
# EX_CANTCREAT of sysexits.h.
_CANNOT_CREATE = 73

type Progress = Callable[[str], None]
type Done = Callable[[int, int], None]
type Job = partial[list[MasterFile]]


def make_central_repo(
    root: Path | str,
    *,
    bands: Sequence[str] = tuple(FILTER_BANDS.values()),
    detectors: Sequence[int] = tuple(range(DETECTOR_COUNT)),
    processes: int = 2,
    progress: Progress = print,
    done: Done = lambda jobs, total: None,
) -> Path:
    """Make the demo's central repo in a folder that must not exist yet.

    The folder appears by a rename when everything is done. Raws must be
    rendered with the same skies; only the first one has templates and is in
    the alert map. `processes` is the number of processes that make images; 1
    makes them in this process. `progress` gets one line per step, `done` the
    number of finished jobs and that of all jobs, before each line of a job.
    Raises `FileExistsError` if the folder exists.
    """
    root = Path(root).absolute()
    if root.exists():
        raise FileExistsError(f"{root} exists: name a folder that does not, or remove it first")
    skies = demo_skies()
    # The name has no dot: Butler.makeRepo treats a path with a dot as a file.
    partial_root = root.with_name(f"{root.name.replace('.', '-')}-partial")
    shutil.rmtree(partial_root, ignore_errors=True)
    partial_root.mkdir(parents=True)
    try:
        _fill(partial_root, skies, bands, detectors, processes, progress, done)
        make_apdb(partial_root, root)
        write_alert_map(partial_root / ALERT_MAP, skies[0])
        partial_root.rename(root)
    except BaseException:  # also after Ctrl-C: an incomplete repo must not remain
        shutil.rmtree(partial_root, ignore_errors=True)
        raise
    progress(f"central repo ready: {root}")
    return root


def _fill(
    root: Path,
    skies: Sequence[Sky],
    bands: Sequence[str],
    detectors: Sequence[int],
    processes: int,
    progress: Progress,
    done: Done,
) -> None:
    """Make a Butler repo in an empty folder and ingest all datasets."""
    sky = skies[0]
    progress("making the registry: instrument, sky map, dataset types")
    staging = root / "staging"
    staging.mkdir()
    with Butler.from_config(Butler.makeRepo(root), writeable=True) as butler:
        DemoCam().register(butler.registry)
        _register_skymap(butler, TractMap.around(sky))
        _register_collections(butler)
        _register_dataset_types(butler)
        butler.put(TractMap.around(sky).description, "skyMap", skymap=SKYMAP_NAME, run="skymaps")
        progress("reference catalog")
        _put_reference_catalog(butler, skies)
        jobs = _jobs(str(staging), sky, bands, detectors)
        for finished, files in enumerate(_run_jobs(jobs, processes), start=1):
            done(finished, len(jobs))
            progress(f"{finished}/{len(jobs)} {_title(files[0])}: {len(files)} files")
            _ingest(butler, files)
        mark_datastore(butler)
    staging.rmdir()


def _jobs(staging: str, sky: Sky, bands: Sequence[str], detectors: Sequence[int]) -> list[Job]:
    jobs = [partial(make_templates, staging, sky, band) for band in bands]
    jobs += [
        partial(make_calibrations, staging, each, epoch.number) for epoch in EPOCHS for each in detectors
    ]
    return jobs


def _run_jobs(jobs: Sequence[Job], processes: int) -> Iterator[list[MasterFile]]:
    if processes == 1:
        yield from (job() for job in jobs)
        return
    # Spawned, not forked: a child must not inherit an open Butler.
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(job) for job in jobs]
        try:
            yield from (future.result() for future in futures)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _title(file: MasterFile) -> str:
    if file.epoch is None:
        return f"templates in {file.data_id['band']}"
    return f"calibrations of detector {file.data_id['detector']} in epoch {file.epoch}"


def _register_skymap(butler: Butler, tract: TractMap) -> None:
    description = json.dumps(tract.description, sort_keys=True).encode()
    tract_region = tract.region(tract.projection.pixel_frame.bbox)
    sync = butler.registry.syncDimensionData
    with butler.transaction():
        sync(
            "skymap",
            {
                "name": SKYMAP_NAME,
                "hash": hashlib.sha1(description, usedforsecurity=False).digest(),
                "tract_max": TRACT + 1,
                "patch_nx_max": PATCH_SIDE,
                "patch_ny_max": PATCH_SIDE,
            },
        )
        sync("tract", {"skymap": SKYMAP_NAME, "id": TRACT, "region": tract_region})
        for patch in range(PATCH_COUNT):
            row, column = tract.patch_cell(patch)
            cell = {"cell_x": column, "cell_y": row, "region": tract.region(tract.patch_box(patch))}
            sync("patch", {"skymap": SKYMAP_NAME, "tract": TRACT, "id": patch, **cell})


def _calibration_run(epoch: int) -> str:
    begin = astropy.time.Time(EPOCHS[epoch].begin_mjd_tai, format="mjd", scale="tai")
    return DemoCam().makeCollectionName("calib", begin.strftime("%Y-%m-%d"))


def _register_collections(butler: Butler) -> None:
    camera = DemoCam()
    raws = camera.makeDefaultRawIngestRunName()
    calibs = camera.makeCalibrationCollectionName()
    templates = camera.makeCollectionName("templates")
    refcats = camera.makeRefCatCollectionName()
    refcat_run = camera.makeRefCatCollectionName("demo")
    register = butler.collections.register
    register(calibs, CollectionType.CALIBRATION)
    for run in (raws, templates, refcat_run, "skymaps", *(_calibration_run(each.number) for each in EPOCHS)):
        register(run, CollectionType.RUN)
    for chain, children in (
        (refcats, [refcat_run]),
        (camera.makeUmbrellaCollectionName(), [raws, calibs, templates, refcats, "skymaps"]),
    ):
        register(chain, CollectionType.CHAINED)
        butler.collections.redefine_chain(chain, children)


def _register_dataset_types(butler: Butler) -> None:
    detector = ("instrument", "detector")
    universe = butler.dimensions
    for name, dimensions, storage_class, is_calibration in (
        (*(DemoCam.raw_definition or ()), False),
        ("bias", detector, "MaskedImageV2", True),
        ("dark", detector, "MaskedImageV2", True),
        ("flat", (*detector, "physical_filter"), "MaskedImageV2", True),
        ("template", ("skymap", "tract", "patch", "band"), "MaskedImageV2", False),
        ("demo_refcat", ("htm7",), "ArrowAstropy", False),
        ("skyMap", ("skymap",), "StructuredDataDict", False),
    ):
        butler.registry.registerDatasetType(
            DatasetType(name, dimensions, storage_class, universe=universe, isCalibration=is_calibration)
        )


def reference_catalog(sky: Sky) -> Table:
    """Return the bright stars as a table: the reference catalog of one field.

    Columns: ``id``; ``ra``, ``dec`` (ICRS, degrees, 5 mas errors); ``g_mag``,
    ``r_mag``, ``i_mag`` (AB, 0.005 mag errors). Variable stars are not marked.
    """
    random = np.random.default_rng([sky.seed, 30])
    stars = sky.stars
    chosen = np.flatnonzero(stars.magnitude["r"] < REFCAT_LIMIT_R)
    error_deg = random.normal(0.0, _REFCAT_POSITION_ERROR_ARCSEC / 3600.0, (2, len(chosen)))
    dec_deg = stars.dec_deg[chosen] + error_deg[1]
    table = Table(
        {
            "id": stars.id[chosen].astype(np.int64),
            "ra": (stars.ra_deg[chosen] + error_deg[0] / np.cos(np.radians(dec_deg))) * u.deg,
            "dec": dec_deg * u.deg,
        }
    )
    for band, magnitude in stars.magnitude.items():
        error = random.normal(0.0, _REFCAT_MAGNITUDE_ERROR, len(chosen))
        table[f"{band}_mag"] = (magnitude[chosen] + error) * u.ABmag
    return table


def _put_reference_catalog(butler: Butler, skies: Iterable[Sky]) -> None:
    """Put the stars of all fields, one dataset for each HTM triangle."""
    fields = [reference_catalog(sky) for sky in skies]
    for number, field in enumerate(fields):
        field["id"] += number * FIELD_IDS
    catalog = vstack(fields)
    pixelization = HtmPixelization(_HTM_LEVEL)
    positions = zip(catalog["ra"].value, catalog["dec"].value, strict=True)
    shards = np.array(
        [pixelization.index(UnitVector3d(LonLat.fromDegrees(ra, dec))) for ra, dec in positions]
    )
    run = DemoCam.makeRefCatCollectionName("demo")
    for shard in np.unique(shards):
        butler.put(catalog[shards == shard], "demo_refcat", htm7=int(shard), run=run)


def _ingest(butler: Butler, files: Iterable[MasterFile]) -> None:
    """Move files into the repo and certify those that have an epoch."""
    datasets: list[FileDataset] = []
    certified: dict[int, list[DatasetRef]] = {}
    for file in files:
        ref = _reference(butler, file)
        datasets.append(FileDataset(path=file.path, refs=[ref], formatter=GenericFormatter))
        if file.epoch is not None:
            certified.setdefault(file.epoch, []).append(ref)
    # Certified after the ingest: only datasets in the registry can be certified.
    butler.ingest(*datasets, transfer="move")
    for number, refs in certified.items():
        epoch = EPOCHS[number]
        timespan = Timespan(_tai(epoch.begin_mjd_tai), _tai(epoch.end_mjd_tai))
        butler.registry.certify(DemoCam().makeCalibrationCollectionName(), refs, timespan)


def _reference(butler: Butler, file: MasterFile) -> DatasetRef:
    dataset_type = butler.get_dataset_type(file.dataset_type)
    data_id = dict(file.data_id)
    if file.epoch is None:
        run = DemoCam().makeCollectionName("templates")
    else:
        data_id["instrument"] = CAMERA_NAME
        run = _calibration_run(file.epoch)
    expanded: DataCoordinate = butler.registry.expandDataId(data_id, dimensions=dataset_type.dimensions)
    return DatasetRef(dataset_type, expanded, run=run)


def _tai(mjd: float | None) -> astropy.time.Time | None:
    return None if mjd is None else astropy.time.Time(mjd, format="mjd", scale="tai")


def make_apdb(folder: Path, final_folder: Path | None = None) -> Path:
    """Make an empty alert production database on SQLite and its configuration.

    `final_folder` is the later name of the folder, for the paths in the
    configuration. Ten processes may write at once: each waits up to two
    minutes for the lock, and connections are not shared across forks.
    """
    name = f"{APDB_NAME}.sqlite3"
    with warnings.catch_warnings():
        # init_database does not close its pooled connection: the garbage collector does.
        warnings.simplefilter("ignore", ResourceWarning)
        config = ApdbSql.init_database(db_url=f"sqlite:///{folder / name}", ss_schema_file="")
        gc.collect()
    config.db_url = config.db_url.replace(str(folder / name), str((final_folder or folder) / name))
    # A new object is assigned: changes inside the default object are not saved.
    config.connection_config = ApdbSqlConnectionConfig(
        connection_pool=False, connection_timeout=_APDB_LOCK_TIMEOUT_S
    )
    path = folder / APDB_CONFIG
    config.save(path)
    return path


@click.command()
@click.argument("root", type=click.Path(path_type=Path))
@click.option(
    "--processes",
    default=2,
    show_default=True,
    type=click.IntRange(1),
    help="Number of processes that make images.",
)
def main(root: Path, processes: int) -> None:
    """Make the demo's central repo in ROOT, a folder that must not exist."""
    begin = time.monotonic()
    try:
        make_central_repo(root, processes=processes, progress=click.echo)
    except OSError as error:
        click.echo(f"cannot make the central repo: {error}", err=True)
        sys.exit(_CANNOT_CREATE)
    click.echo(f"took {time.monotonic() - begin:.1f} s")


if __name__ == "__main__":
    main()
