# SPDX-License-Identifier: BSD-3-Clause
"""Runs the tasks of ``lsst.obs.base`` itself on headers, in a separate process.

It takes work trees of obs_base and, for Rubin's translators, obs_lsst, from
``PPDAEMON_OBS_BASE`` and ``PPDAEMON_OBS_LSST``. What these import and is on no
package index (``lsst.afw``, ``lsst.geom``) is stood in for by small
calculations of the same things.

``python obsbasejudge.py values FILE`` writes what the tasks make of all
`obsbasecases.HEADERS`; ``python obsbasejudge.py ingest REPO`` reads from its
standard input the names of cases and ingests them into a repo that is there.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import astro_metadata_translator
from lsst.daf.butler import Butler
from lsst.sphgeom import LonLat, UnitVector3d

from ppdaemon.camera import Camera, camera_names, load_camera

OBS_BASE, OBS_LSST = "PPDAEMON_OBS_BASE", "PPDAEMON_OBS_LSST"
STOOD_IN = ("lsst.afw", "lsst.geom", "lsst.daf.base", "lsst.pex.exceptions", "lsst.obs.base.version", "pytz")
SHOWN_DETECTORS = (0, 94, 188)
"""Of which regions are written down."""
GROUPINGS = ("one-to-one", "one-to-one-and-by-counter")
ELEMENTS = ("day_obs", "group", "exposure", "visit_system", "visit", "visit_system_membership")


# --- what obs_base imports and we do not have --------------------------------


class _Module(types.ModuleType):
    """Has any class that is asked for; it does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (), {})
        setattr(self, name, made)
        return made


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if any(name == known or name.startswith(f"{known}.") for known in STOOD_IN):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> _Module:
        return _Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__path__ = []
        if module.__name__ == "lsst.geom":
            known: tuple[Any, ...] = (Angle, SpherePoint, Box2D)
            module.__dict__.update({each.__name__: each for each in known}, degrees=math.pi / 180.0)
        if module.__name__ == "lsst.afw.cameraGeom":
            module.__dict__.update(PIXELS="pixels", FOCAL_PLANE="focal plane")
        if module.__name__ == "lsst.obs.base.version":
            module.__all__ = []
        if module.__name__ == "pytz":
            module.timezone = ZoneInfo


class Angle:
    def __init__(self, value: float, unit: float):
        self.radians = value * unit


class SpherePoint:
    def __init__(self, lon: Angle, lat: Angle):
        self.lon, self.lat = lon, lat

    def getVector(self) -> UnitVector3d:  # noqa: N802
        return UnitVector3d(LonLat.fromRadians(self.lon.radians, self.lat.radians))


@dataclass(frozen=True)
class Box2I:
    """First and last pixel in x and y."""

    x: tuple[int, int]
    y: tuple[int, int]

    def dilatedBy(self, pixels: int) -> "Box2I":  # noqa: N802
        (x0, x1), (y0, y1) = self.x, self.y
        return Box2I((x0 - pixels, x1 + pixels), (y0 - pixels, y1 + pixels))


class Box2D:
    """The area of all pixels of a box; a pixel's middle has whole numbers."""

    def __init__(self, box: Box2I):
        (x0, x1), (y0, y1) = box.x, box.y
        self._x, self._y = (x0 - 0.5, x1 + 0.5), (y0 - 0.5, y1 + 0.5)

    def getCorners(self) -> list[tuple[float, float]]:  # noqa: N802
        (x0, x1), (y0, y1) = self._x, self._y
        return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


class Transform:
    def __init__(self, *steps: Callable[[Any], Any]):
        self._steps = steps

    def then(self, following: "Transform") -> "Transform":
        return Transform(*self._steps, *following._steps)

    def applyForward(self, points: Iterable[Any]) -> list[Any]:  # noqa: N802
        points = list(points)
        for step in self._steps:
            points = [step(point) for point in points]
        return points

    def getTransform(self) -> "Transform":  # noqa: N802
        return self


class Detector:
    """A detector of a table; its pixels are those of the focal plane's axes."""

    def __init__(self, camera: Camera, number: int):
        self.camera, self.place = camera, camera.detectors[number]

    def getId(self) -> int:  # noqa: N802
        return self.place.id

    def _size(self) -> tuple[int, int]:
        return round(self.place.width_mm / 0.01), round(self.place.height_mm / 0.01)

    def getBBox(self) -> Box2I:  # noqa: N802
        nx, ny = self._size()
        return Box2I((0, nx - 1), (0, ny - 1))

    def getTransform(self, origin: str, target: str) -> Transform:  # noqa: N802
        (nx, ny), place = self._size(), self.place
        x0, y0 = place.x_mm - (nx - 1) / 2 * 0.01, place.y_mm - (ny - 1) / 2 * 0.01
        if (origin, target) == ("pixels", "focal plane"):
            return Transform(lambda p: (x0 + 0.01 * p[0], y0 + 0.01 * p[1]))
        return Transform(lambda p: ((p[0] - x0) / 0.01, (p[1] - y0) / 0.01))


class CameraLike:
    def __init__(self, camera: Camera):
        self._detectors = {number: Detector(camera, number) for number in sorted(camera.detectors)}

    def __iter__(self) -> Iterator[Detector]:
        return iter(self._detectors.values())

    def __getitem__(self, number: int) -> Detector:
        return self._detectors[number]

    def getIdIter(self) -> Iterator[int]:  # noqa: N802
        return iter(self._detectors)


@cache
def camera_of(instrument: str) -> CameraLike:
    """Return the camera of an instrument; of those without a table two detectors somewhere."""
    if instrument in camera_names():
        return CameraLike(load_camera(instrument))
    table = load_camera("DemoCam").model_dump(by_alias=True)
    table["detectors"] = [dict(each) for number, each in table["detectors"].items() if number in (1, 2)]
    return CameraLike(Camera.model_validate(table | {"instrument": instrument}))


def to_sky(boresight: SpherePoint, orientation: Angle, detector: Detector) -> Transform:
    """Return the way from a detector's pixels to the sky: the tangential projection (FITS ``TAN``)."""
    camera = detector.camera
    scale = math.radians(camera.plate_scale_arcsec_per_mm / 3600.0)
    radial = camera.radial_coefficients
    angle, ra, dec = orientation.radians, boresight.lon.radians, boresight.lat.radians

    def project(point: tuple[float, float]) -> SpherePoint:
        x, y = point
        r2 = x * x + y * y
        factor = scale * (radial.c1 + radial.c3 * r2 + radial.c5 * r2 * r2)
        x, y = (x if camera.focal_plane_parity else -x) * factor, y * factor
        xi = x * math.cos(angle) + y * math.sin(angle)
        eta = y * math.cos(angle) - x * math.sin(angle)
        below = math.cos(dec) - eta * math.sin(dec)
        lon = ra + math.atan2(xi, below)
        lat = math.atan2(math.sin(dec) + eta * math.cos(dec), math.hypot(xi, below))
        return SpherePoint(Angle(lon, 1.0), Angle(lat, 1.0))

    return Transform(*detector.getTransform("pixels", "focal plane")._steps, project)


# --- the judge ---------------------------------------------------------------


def load() -> Any:
    """Import obs_base, and Rubin's translators if they are there; return the former."""
    import lsst

    sys.meta_path.insert(0, _Finder())
    base = Path(os.environ[OBS_BASE], "python", "lsst")
    lsst.__path__ = [*lsst.__path__, str(base)]
    module = importlib.import_module("lsst.obs.base")
    if OBS_LSST in os.environ:
        folder = Path(os.environ[OBS_LSST], "python", "lsst", "obs", "lsst")
        # Its own __init__ imports pixels' code; translators need none.
        spec = importlib.util.spec_from_file_location(
            "lsst.obs.lsst", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        sys.modules["lsst.obs.lsst"] = importlib.util.module_from_spec(spec)
        importlib.import_module("lsst.obs.lsst.translators.lsst").read_detector_ids = _detector_ids
        importlib.import_module("lsst.obs.lsst.translators")
    import obsbasecases

    obsbasecases.RawFormatter.makeRawSkyWcsFromBoresight = staticmethod(to_sky)
    return module


def _detector_ids(policy: str) -> dict[str, tuple[int, str]]:
    """Return numbers of detectors by name: the policy files are only in a built obs_lsst."""
    camera = load_camera({"lsstCam": "LSSTCam", "comCam": "LSSTComCam"}[Path(policy).stem])
    return {each.name: (number, f"serial {number}") for number, each in camera.detectors.items()}


def tree_version(variable: str) -> str:
    """Return release and commit of a work tree."""
    tree = os.environ[variable]

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", tree, *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    return f"{git('describe', '--tags', '--abbrev=0')}, {git('log', '-1', '--format=%h of %cs')}"


def write_raws(folder: Path, sidecars: dict[str, dict[str, Any]]) -> list[str]:
    """Write files that are no images, and sidecars that contain all fields."""
    paths = []
    for number, sidecar in enumerate(sidecars.values()):
        path = folder / f"{number:03d}.fits"
        path.write_bytes(b"pixels")
        path.with_suffix(".json").write_text(json.dumps(sidecar))
        paths.append(str(path))
    return paths


def define_config(base: Any, instrument: str, grouping: str) -> Any:
    """Return the configuration of visits that an instrument has, with another grouping."""
    config = base.DefineVisitsConfig()
    config.groupExposures = grouping
    folder = {"LSSTCam": "lsstCam", "LSSTComCam": "comCam", "LATISS": "latiss"}.get(instrument, instrument)
    if OBS_LSST in os.environ:
        path = Path(os.environ[OBS_LSST], "config", folder, "defineVisits.py")
        if path.exists():
            config.load(str(path))
    elif instrument == "LATISS":
        config.computeVisitRegions.active.padding = 4000
    return config


def run_tasks(base: Any, root: Path, sidecars: dict[str, dict[str, Any]], grouping: str, **how: Any) -> None:
    """Ingest raws and define their visits, as on the command line."""
    with tempfile.TemporaryDirectory() as name, Butler.from_config(str(root), writeable=True) as butler:
        config = base.RawIngestConfig()
        config.transfer = "copy"
        config.failFast = True
        ingest = base.RawIngestTask(config, butler=butler)
        refs = ingest.run(write_raws(Path(name), sidecars))
        exposures: dict[str, list[Any]] = {}
        for ref in refs:
            exposures.setdefault(str(ref.dataId["instrument"]), []).append(ref.dataId)
        for instrument, data_ids in exposures.items():
            define = base.DefineVisitsTask(define_config(base, instrument, grouping), butler=butler)
            data_ids.sort(key=lambda data_id: data_id["exposure"])
            define.run([data_id.subset(("instrument", "exposure")) for data_id in data_ids], **how)


def dump(root: Path) -> dict[str, list[dict[str, Any]]]:
    """Return all records of exposures and visits that a repo has."""
    with Butler.from_config(str(root)) as butler:
        found = {name: _dumped(butler, name) for name in (*ELEMENTS, "visit_definition")}
        regions = _dumped(butler, "visit_detector_region")
    tables = camera_names()
    found["visit_detector_region"] = [
        each for each in regions if each["detector"] in SHOWN_DETECTORS and each["instrument"] in tables
    ]
    return found


def _dumped(butler: Butler, element: str) -> list[dict[str, Any]]:
    records = butler.query_dimension_records(element, explain=False, limit=None)
    dumped = [record.to_simple().model_dump(mode="json")["record"] for record in records]
    return sorted(dumped, key=lambda record: json.dumps(record, sort_keys=True))


def values(base: Any) -> dict[str, Any]:
    """Return what the tasks make of all headers."""
    from obsbasecases import HEADERS, make_repo

    required, optional = base.RawIngestTask.getObservationInfoSubsets()
    infos = {}
    for name, header in HEADERS.items():
        info = astro_metadata_translator.ObservationInfo(
            dict(header), pedantic=False, filename=name, required=required, subset=required | optional
        )
        infos[name] = info.to_simple()
    made = {}
    sidecars = {name: {"__CONTENT__": "metadata"} | header for name, header in HEADERS.items()}
    for grouping in GROUPINGS:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder, "repo")
            make_repo(root)
            run_tasks(base, root, sidecars, grouping)
            made[grouping] = dump(root)
    regions = _number_regions(
        each for found in made.values() for records in found.values() for each in records
    )
    first = made[GROUPINGS[0]]
    exposures = {element: first[element] for element in ("day_obs", "group", "exposure")}
    return {
        "versions": {
            "obs_base": tree_version(OBS_BASE),
            "obs_lsst": tree_version(OBS_LSST),
            "astro_metadata_translator": version("astro-metadata-translator"),
            "daf_butler": version("lsst-daf-butler"),
        },
        "infos": infos,
        "exposures": exposures,
        "regions": regions,
        "visits": {
            grouping: {element: found[element] for element in found if element not in exposures}
            for grouping, found in made.items()
        },
    }


def _number_regions(records: Iterable[dict[str, Any]]) -> list[str]:
    """Put numbers in the place of regions, most of which are there several times; return them."""
    numbers: dict[str, int] = {}
    for record in records:
        if record.get("region") is not None:
            record["region"] = numbers.setdefault(record["region"], len(numbers))
    return list(numbers)


def lines(value: Any, indent: str = "") -> str:
    """Return JSON with one record a line."""
    if isinstance(value, dict) and any(isinstance(each, dict | list) and each for each in value.values()):
        parts = [f"{json.dumps(key)}: {lines(each, indent + ' ')}" for key, each in sorted(value.items())]
        if indent.count(" ") < 3 and "exposure_id" not in value:
            return "{\n" + ",\n".join(f"{indent} {part}" for part in parts) + "\n" + indent + "}"
    if isinstance(value, list) and value and isinstance(value[0], dict | str):
        return (
            "[\n"
            + ",\n".join(f"{indent} {lines(each, indent + ' ')}" for each in value)
            + "\n"
            + indent
            + "]"
        )
    return json.dumps(value, sort_keys=True)


def main(words: Sequence[str]) -> None:
    base = load()
    match words:
        case ["values", path]:
            Path(path).write_text(lines(values(base)) + "\n")
        case ["ingest", repo]:
            order = json.load(sys.stdin)
            run_tasks(base, Path(repo), order["sidecars"], order["grouping"], **order["how"])
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    # Instruments ask for this module by its name.
    sys.modules["obsbasejudge"] = sys.modules["__main__"]
    main(sys.argv[1:])
