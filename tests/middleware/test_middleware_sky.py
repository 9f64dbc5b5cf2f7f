# SPDX-License-Identifier: BSD-3-Clause
"""Preload at right ascension 0 and at the poles, against plane geometry in numpy."""

import itertools
from collections.abc import Iterator

import astropy.time
import numpy as np
import pytest
from lsst.daf.butler import Butler, CollectionType, DatasetType, Timespan
from lsst.sphgeom import ConvexPolygon, HtmPixelization, LonLat, UnitVector3d

from ppdaemon.camera import SkyPoint, load_camera
from ppdaemon.clock import Clock
from ppdaemon.middleware.preload.search import Found, Search, find_inputs
from ppdaemon.middleware.raws.regions import corners_of, detector_region, preload_corners
from ppdaemon.pointing import Pointing

PADDING_ARCSEC = 50.1
SLACK = np.radians(0.5 / 3600)
"""Polygons that touch within this are not compared."""
STEP_DEG = 0.25
DETECTORS_STEP = 20
"""Of the detectors, every so many: a query of each alone takes some milliseconds."""

type Corners = tuple[SkyPoint, ...]


def vectors(corners: Corners) -> np.ndarray:
    ra, dec = np.radians(np.array(corners)).T
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)


def gap(first: np.ndarray, second: np.ndarray) -> float:
    """Return the largest gap between convex polygons along the normals of their sides, in radians;
    negative if they overlap. Computed in the tangent plane, where sides are straight.
    """
    center = first.mean(axis=0)
    center /= np.linalg.norm(center)
    if min(first @ center) < 0.5 or min(second @ center) < 0.5:
        return np.inf
    x_axis = np.cross(center, [0.3, 0.5, 0.8])
    x_axis /= np.linalg.norm(x_axis)
    basis = np.stack([x_axis, np.cross(center, x_axis)])
    flat = [(basis @ each.T / (each @ center)).T for each in (first, second)]
    gaps = []
    for polygon in flat:
        for side in np.roll(polygon, -1, axis=0) - polygon:
            normal = np.array([-side[1], side[0]]) / np.hypot(*side)
            one, other = (each @ normal for each in flat)
            gaps.append(max(other.min() - one.max(), one.min() - other.max()))
    return float(max(gaps))


def cap_patches(pole: int) -> Iterator[Corners]:
    """Yield squares around a pole as the sky map of a tract there has: one has the pole inside."""
    for i, j in itertools.product(range(-4, 4), repeat=2):
        square = [(i, j), (i + 1, j), (i + 1, j + 1), (i, j + 1)]
        points = ((STEP_DEG * (x + 0.4), STEP_DEG * (y + 0.3)) for x, y in square)
        yield tuple(
            (float(np.degrees(np.arctan2(y, x)) % 360), pole * (90.0 - float(np.hypot(x, y))))
            for x, y in points
        )


def seam_patches(dec: float) -> Iterator[Corners]:
    """Yield squares on both sides of right ascension 0, one column across it."""
    for i, j in itertools.product(range(-4, 4), repeat=2):
        left, low = STEP_DEG * (i + 0.4) / np.cos(np.radians(dec)), dec + STEP_DEG * j
        right = left + STEP_DEG / np.cos(np.radians(dec))
        yield (
            (float(left % 360), low), (float(right % 360), low),
            (float(right % 360), low + STEP_DEG), (float(left % 360), low + STEP_DEG),
        )  # fmt: skip


TRACTS = {
    0: tuple(cap_patches(1)),
    1: tuple(cap_patches(-1)),
    2: tuple(seam_patches(0.0)),
    3: tuple(seam_patches(-30.0)),
    4: tuple(seam_patches(60.0)),
}
AIMS = {0: (0.0, 90.0), 1: (0.0, -90.0), 2: (0.0, 0.0), 3: (0.0, -30.0), 4: (0.0, 60.0)}


def polygon(corners: Corners) -> ConvexPolygon:
    return ConvexPolygon.convexHull([UnitVector3d(LonLat.fromDegrees(*corner)) for corner in corners])


@pytest.fixture(scope="module")
def central(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Butler]:
    """Give a repo with templates and shards around the poles and right ascension 0."""
    root = tmp_path_factory.mktemp("sky")
    with Butler.from_config(Butler.makeRepo(str(root / "repo")), writeable=True) as butler:
        insert = butler.registry.insertDimensionData
        sizes = {"tract_max": 10, "patch_nx_max": 8, "patch_ny_max": 8}
        insert("skymap", {"name": "s", "hash": b"s", **sizes})
        template = DatasetType(
            "template", butler.dimensions.conform(("skymap", "tract", "patch")), "StructuredDataDict"
        )
        shard = DatasetType("shard", butler.dimensions.conform(("htm7",)), "StructuredDataDict")
        for dataset_type in (template, shard):
            butler.registry.registerDatasetType(dataset_type)
        butler.collections.register("templates", CollectionType.RUN)
        for tract, patches in TRACTS.items():
            whole = polygon(tuple(corner for corners in patches for corner in corners))
            insert("tract", {"skymap": "s", "id": tract, "region": whole})
            for k, corners in enumerate(patches):
                ids = {"skymap": "s", "tract": tract}
                cell = {"cell_x": k % 8, "cell_y": k // 8}
                insert("patch", {**ids, "id": k, **cell, "region": polygon(corners)})
                butler.put({"k": k}, template, {**ids, "patch": k}, run="templates")
        for number in sorted({shard for aim in AIMS.values() for shard in shards_around(aim)}):
            butler.put({"shard": number}, shard, {"htm7": number}, run="templates")
        yield butler


def shards_around(aim: SkyPoint) -> list[int]:
    circle = detector_region(load_camera("DemoCam"), 4, Pointing(*aim, 0.0)).getBoundingCircle()
    circle.dilateBy(circle.getOpeningAngle() * 8)
    return [n for begin, end in HtmPixelization(7).envelope(circle).ranges() for n in range(begin, end)]


def search_of(detector: int, corners: Corners) -> Search:
    when = astropy.time.Time("2026-11-22T03:25:16", scale="tai")
    return Search(
        instrument="LSSTCam", detector=detector, physical_filters=(), bands=(), skymap="s",
        timespan=Timespan(when, when), region=polygon(corners), calibs=(), inputs=("templates",),
    )  # fmt: skip


def found(central: Butler, corners: Corners) -> dict[str, Found]:
    search = search_of(94, corners)
    types = [central.get_dataset_type(name) for name in ("template", "shard")]
    return {each.dataset_type.name: each for each in find_inputs(central, types, [search], Clock())[0]}


def pointings(count: int) -> Iterator[Pointing]:
    random = np.random.default_rng(94)
    for number in range(count):
        ra, dec = AIMS[number % len(AIMS)]
        if abs(dec) == 90.0:
            ra, dec = random.uniform(0, 360), dec * (1 - random.uniform(0, 0.7) ** 2 / 90)
        else:
            ra += random.uniform(-0.7, 0.7) / np.cos(np.radians(dec))
            dec += random.uniform(-0.7, 0.7)
        yield Pointing(float(ra % 360), float(dec), float(random.uniform(0, 360)))
    for aim in AIMS.values():
        yield Pointing(*aim, 0.0)


@pytest.mark.slow
def test_templates_and_shards_are_those_of_plane_geometry(central: Butler) -> None:
    camera = load_camera("LSSTCam")
    shards = {n: np.array([list(v) for v in HtmPixelization(7).triangle(n).getVertices()])
              for aim in AIMS.values() for n in shards_around(aim)}  # fmt: skip
    patches = {(t, k): vectors(c) for t, tract in TRACTS.items() for k, c in enumerate(tract)}
    counts = []
    for pointing in pointings(60):
        corners = preload_corners(camera, 94, pointing, PADDING_ARCSEC)
        footprint = vectors(corners)
        results = found(central, corners)
        got_patches = {(r.dataId["tract"], r.dataId["patch"]) for r in results["template"].refs}
        got_shards = {r.dataId["htm7"] for r in results["shard"].refs}
        for got, regions in ((got_patches, patches), (got_shards, shards)):
            gaps = {key: gap(footprint, region) for key, region in regions.items()}
            assert {key for key, value in gaps.items() if value < -SLACK} <= got, pointing
            assert got <= {key for key, value in gaps.items() if value < SLACK}, pointing
        for ref in results["template"].refs:  # what `ppdaemon plan` shows of them
            drawn = corners_of(ref.dataId.region)
            assert drawn is not None
            original = vectors(TRACTS[ref.dataId["tract"]][ref.dataId["patch"]])
            assert all(min(np.linalg.norm(original - corner, axis=1)) < 1e-12 for corner in vectors(drawn))
        counts.append((len(got_patches), len(got_shards)))
    assert min(shard for _, shard in counts) >= 1
    assert min(patch for patch, _ in counts[-len(AIMS) :]) >= 1


def test_one_query_for_many_detectors_finds_what_each_would(central: Butler) -> None:
    camera = load_camera("LSSTCam")
    types = [central.get_dataset_type(name) for name in ("template", "shard")]
    for aim in AIMS.values():
        pointing = Pointing(*aim, 20.0)
        searches = [
            search_of(detector, preload_corners(camera, detector, pointing, PADDING_ARCSEC))
            for detector in sorted(camera.detectors)[::DETECTORS_STEP]
        ]
        together = find_inputs(central, types, searches, Clock())
        for search, parts in zip(searches, together, strict=True):
            (alone,) = find_inputs(central, types, [search], Clock())
            assert [set(each.refs) for each in parts] == [set(each.refs) for each in alone], search
        assert len({frozenset(ref for each in parts for ref in each.refs) for parts in together}) > 1
