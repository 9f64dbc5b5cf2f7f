# SPDX-License-Identifier: BSD-3-Clause
"""A central repo of a survey's size, made for the bench."""

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import astropy.time
import astropy.units as u
from benching.cli import progress

# CollectionType is public, though its package does not list it.
from lsst.daf.butler import (  # type: ignore[attr-defined]
    Butler,
    CollectionType,
    Config,
    DataCoordinate,
    DatasetRef,
    DatasetType,
    FileDataset,
    Timespan,
)
from lsst.sphgeom import ConvexPolygon, HtmPixelization, LonLat, UnitVector3d

from preloadbench.survey import CALIBS, CAMERA, FILTERS, FLATS, IMAGES, SurveyCam

RA_DEG, DEC_DEG = 150.0, -20.0
"""Middle of the field."""
SKYMAP = "survey"
COLLECTIONS = (f"{CAMERA}/templates", "refcats", "skymaps", "models")
"""Collections that are searched for datasets other than calibrations."""
_DICT = "StructuredDataDict"
_EPOCH_DAYS = 90.0
_SHARDS = HtmPixelization(7)


@dataclass(frozen=True, slots=True)
class Size:
    """Amounts of data, and sizes of the files."""

    epochs: int
    """Validity ranges of each calibration, 90 days each; the last one is open."""
    tracts: int
    """Tracts along each side of the field; a tract has 10 x 10 patches of 0.17 deg."""
    bands: int
    """Number of bands with templates."""
    image_bytes: int
    """Size of a calibration image or a template."""
    table_bytes: int
    """Size of a shard, a table, or a model."""
    detectors: int = 205

    @property
    def side_deg(self) -> float:
        """Side of the field with templates and shards."""
        return self.tracts * _TRACT_DEG


_PATCHES = 10
_PATCH_DEG = 0.17
_TRACT_DEG = _PATCHES * _PATCH_DEG


def make_central(root: Path, size: Size, database: str = "") -> Path:
    """Make the repo in a folder that must not exist yet, with its database at a URL; a file without."""
    settings = Config({"registry": {"db": database}}) if database else None
    with Butler.from_config(Butler.makeRepo(str(root), config=settings), writeable=True) as butler:
        SurveyCam(detectors=size.detectors).register(butler.registry)
        files = _Files(root / "files", size)
        progress(f"{_add_calibs(butler, files, size)} calibrations")
        progress(f"{_add_templates(butler, files, size)} templates")
        progress(f"{_add_shards(butler, files, size)} shards of two catalogs")
        _add_others(butler, files)
    return root


class _Files:
    """Makes files for ingest: hard links to two files, so that a large repo takes little space."""

    def __init__(self, folder: Path, size: Size):
        folder.mkdir()
        self._folder = folder
        self._names = itertools.count()
        self._originals = {"image": size.image_bytes, "table": size.table_bytes}
        for name, length in self._originals.items():
            (folder / name).write_bytes(os.urandom(length))

    def image(self) -> Path:
        return self._link("image")

    def table(self) -> Path:
        return self._link("table")

    def _link(self, name: str) -> Path:
        path = self._folder / f"{next(self._names)}.yaml"
        path.hardlink_to(self._folder / name)
        return path


def _register(
    butler: Butler, name: str, dimensions: tuple[str, ...], *, calibration: bool = False
) -> DatasetType:
    dataset_type = DatasetType(name, dimensions, _DICT, universe=butler.dimensions, isCalibration=calibration)
    butler.registry.registerDatasetType(dataset_type)
    return dataset_type


def _ingest(butler: Butler, datasets: Iterable[tuple[DatasetRef, Path]]) -> list[DatasetRef]:
    files = [FileDataset(str(path), ref) for ref, path in datasets]
    butler.ingest(*files, transfer="direct")
    return [ref for file in files for ref in file.refs]


def _add_calibs(butler: Butler, files: _Files, size: Size) -> int:
    """Certify calibrations in several collections, as a survey does over the years."""
    newest = astropy.time.Time("2026-10-01T00:00:00", scale="tai")
    count = 0
    kinds: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
        (("camera",), ("instrument",)),
        (CALIBS, ("instrument", "detector")),
        (FLATS, ("instrument", "detector", "physical_filter")),
    ]
    chain = []
    for names, dimensions in kinds:
        collection = f"{CAMERA}/calib/certified-{names[0]}"
        butler.collections.register(collection, CollectionType.CALIBRATION)
        chain.append(collection)
        for name in names:
            dataset_type = _register(butler, name, dimensions, calibration=True)
            for epoch in range(size.epochs):
                begin = newest - (size.epochs - 1 - epoch) * _EPOCH_DAYS * u.day
                end = None if epoch == size.epochs - 1 else begin + _EPOCH_DAYS * u.day
                run = f"{CAMERA}/calib/{epoch}"
                butler.collections.register(run)
                refs = _ingest(butler, _calibs(dataset_type, run, butler, files, size.detectors))
                butler.registry.certify(collection, refs, Timespan(begin, end))
                count += len(refs)
    butler.collections.register(f"{CAMERA}/calib", CollectionType.CHAINED)
    butler.collections.redefine_chain(f"{CAMERA}/calib", chain)
    return count


def _calibs(
    dataset_type: DatasetType, run: str, butler: Butler, files: _Files, detectors: int
) -> Iterator[tuple[DatasetRef, Path]]:
    known: dict[str, Sequence[Any]] = {
        "instrument": [CAMERA],
        "detector": range(detectors),
        "physical_filter": list(FILTERS),
    }
    names = [name for name in known if name in dataset_type.dimensions.required]
    for values in itertools.product(*(known[name] for name in names)):
        data_id = butler.registry.expandDataId(dict(zip(names, values, strict=True)))
        path = files.image() if dataset_type.name in IMAGES else files.table()
        yield DatasetRef(dataset_type, data_id, run=run), path


def box(left: float, low: float, side: float) -> ConvexPolygon:
    """Make a polygon from a corner and a side in degrees on the tangent plane of the field."""
    corners = ((left, low), (left + side, low), (left + side, low + side), (left, low + side))
    stretch = 1.0 / math.cos(math.radians(DEC_DEG))
    return ConvexPolygon.convexHull(
        [UnitVector3d(LonLat.fromDegrees(RA_DEG + x * stretch, DEC_DEG + y)) for x, y in corners]
    )


def _add_templates(butler: Butler, files: _Files, size: Size) -> int:
    insert = butler.registry.insertDimensionData
    limits = {"tract_max": size.tracts**2, "patch_nx_max": _PATCHES, "patch_ny_max": _PATCHES}
    insert("skymap", {"name": SKYMAP, "hash": b"survey", **limits})
    tracts, patches = [], []
    for tract in range(size.tracts**2):
        left = (tract % size.tracts) * _TRACT_DEG - size.side_deg / 2
        low = (tract // size.tracts) * _TRACT_DEG - size.side_deg / 2
        tracts.append({"skymap": SKYMAP, "id": tract, "region": box(left, low, _TRACT_DEG)})
        for k in range(_PATCHES**2):
            x, y = k % _PATCHES, k // _PATCHES
            region = box(left + x * _PATCH_DEG, low + y * _PATCH_DEG, _PATCH_DEG)
            cell = {"cell_x": x, "cell_y": y, "region": region}
            patches.append({"skymap": SKYMAP, "tract": tract, "id": k, **cell})
    insert("tract", *tracts)
    insert("patch", *patches)
    dataset_type = _register(butler, "template_coadd", ("skymap", "tract", "patch", "band"))
    run = f"{CAMERA}/templates"
    butler.collections.register(run)
    bands = list(FILTERS.values())[: size.bands]
    ids = (
        butler.registry.expandDataId(skymap=SKYMAP, tract=patch["tract"], patch=patch["id"], band=band)
        for patch, band in itertools.product(patches, bands)
    )
    return len(_ingest(butler, ((DatasetRef(dataset_type, each, run=run), files.image()) for each in ids)))


def _add_shards(butler: Butler, files: _Files, size: Size) -> int:
    found = _SHARDS.envelope(box(-size.side_deg / 2, -size.side_deg / 2, size.side_deg))
    shards = [shard for begin, end in found.ranges() for shard in range(begin, end)]
    butler.collections.register("refcats", CollectionType.CHAINED)
    butler.collections.register("refcats/survey")
    butler.collections.redefine_chain("refcats", "refcats/survey")
    count = 0
    for name in ("stars", "galaxies"):
        dataset_type = _register(butler, name, ("htm7",))
        ids = [butler.registry.expandDataId(htm7=shard) for shard in shards]
        refs = ((DatasetRef(dataset_type, each, run="refcats/survey"), files.table()) for each in ids)
        count += len(_ingest(butler, refs))
    return count


def _add_others(butler: Butler, files: _Files) -> None:
    _register(butler, "raw", ("instrument", "exposure", "detector"))
    others = (("skyMap", ("skymap",), {"skymap": SKYMAP}, "skymaps"), ("model", (), {}, "models"))
    for name, dimensions, parts, run in others:
        dataset_type = _register(butler, name, dimensions)
        butler.collections.register(run)
        data_id = DataCoordinate.standardize(parts, dimensions=dataset_type.dimensions)
        _ingest(
            butler,
            [(DatasetRef(dataset_type, butler.registry.expandDataId(data_id), run=run), files.table())],
        )
