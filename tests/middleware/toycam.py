# SPDX-License-Identifier: BSD-3-Clause
"""A tiny instrument, tasks that do next to nothing, and a central repo with all they need.

Everything stored is a dictionary, so that each output lists its inputs.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import astropy.time
import astropy.units as u
import numpy as np
from astro_metadata_translator import cache_translation
from astro_metadata_translator.translators import FitsTranslator
from astropy.coordinates import Angle, SkyCoord
from astropy.io import fits
from astropy.time import TimeDelta
from lsst.daf.butler import (
    Butler,
    CollectionType,
    DatasetRef,
    DatasetType,
    FileDataset,
    FormatterV2,
    Timespan,
)
from lsst.pex.config import Field
from lsst.pipe.base import (
    Instrument,
    PipelineTask,
    PipelineTaskConfig,
    PipelineTaskConnections,
    Struct,
)
from lsst.pipe.base.connectionTypes import InitOutput, Input, Output, PrerequisiteInput
from lsst.sphgeom import ConvexPolygon, HtmPixelization, LonLat, UnitVector3d

from ppdaemon.camera import Camera
from ppdaemon.clock import Clock
from ppdaemon.config import NodeConfig
from ppdaemon.errors import ConfigError
from ppdaemon.folders import NodeFolders
from ppdaemon.messages import Connecting, MayCross, Pipelines, Prepare, Raw, StageReached
from ppdaemon.middleware.butlerwork import ButlerWork
from ppdaemon.middleware.export.mark import mark_datastore
from ppdaemon.visit import read_next_visit
from ppdaemon.work import WorkerContext

NAME = "ToyCam"
DETECTORS = 4
FILTERS = {"g_01": "g", "r_03": "r"}
RA, DEC = 150.0, 2.0
DETECTOR_SIDE_DEG = 0.2
EPOCH = astropy.time.Time("2026-11-20T00:00:00", scale="tai")
"""Calibrations change here."""
BEGIN_TAI = astropy.time.Time("2026-11-23T03:25:16", scale="tai")
"""Begin of the usual exposure; its day_obs is 20261122."""
DAY = 20261122
GROUP = "2026-11-23T03:25:00.000"

EXPOSURE = ("instrument", "exposure", "detector")
VISIT = ("instrument", "visit", "detector")
GROUP_DETECTOR = ("instrument", "group", "detector")


class ToyTranslator(FitsTranslator):
    """The few properties that an ingest needs."""

    name = NAME
    supported_instrument = NAME
    default_resource_root = None
    _const_map: ClassVar[dict[str, Any]] = {
        "boresight_rotation_coord": "sky",
        "has_simulated_content": True,
        "altaz_begin": None,
        "observing_day_offset": TimeDelta(43200, format="sec", scale="tai"),
    }
    _trivial_map: ClassVar[dict[str, Any]] = {
        "instrument": "INSTRUME",
        "physical_filter": "FILTER",
        "observation_id": "OBSID",
        "observation_counter": "SEQNUM",
        "observation_reason": "REASON",
        "science_program": "PROGRAM",
        "exposure_group": "GROUPID",
        "object": "OBJECT",
        "observation_type": "IMGTYPE",
        "exposure_time": ("EXPTIME", {"unit": u.s}),
        "dark_time": ("EXPTIME", {"unit": u.s}),
        "detector_num": "DETECTOR",
    }

    @cache_translation
    def to_observing_day(self) -> int:
        return int(self._header["DAYOBS"])

    @cache_translation
    def to_exposure_id(self) -> int:
        return self.to_observing_day() * 100000 + int(self._header["SEQNUM"])

    @cache_translation
    def to_group_counter_start(self) -> int:
        return int(self._header["SEQNUM"]) - int(self._header.get("CURINDEX", 1)) + 1

    @cache_translation
    def to_group_counter_end(self) -> int:
        return self.to_group_counter_start() + int(self._header.get("MAXINDEX", 1)) - 1

    @cache_translation
    def to_tracking_radec(self) -> SkyCoord | None:
        if not self.are_keys_ok(["RA", "DEC"]):
            return None
        return SkyCoord(self._header["RA"], self._header["DEC"], unit=u.deg, frame="icrs")

    @cache_translation
    def to_boresight_rotation_angle(self) -> Angle | None:
        return Angle(self._header["ROTPA"] * u.deg) if self.is_key_ok("ROTPA") else None

    @cache_translation
    def to_can_see_sky(self) -> bool:
        return self.to_observation_type() == "science"


class ToyFormatter(FormatterV2):
    """Read header and sum of pixels of a raw."""

    can_read_from_local_file: ClassVar[bool] = True
    default_extension: ClassVar[str] = ".fits"
    supported_extensions: ClassVar[frozenset[str]] = frozenset({".fits", ".fits.fz", ".fits.gz"})

    def read_from_local_file(self, path: str, component: str | None = None, expected_size: int = -1) -> Any:
        with fits.open(path) as hdus:
            return {"exposure": int(hdus[0].header["SEQNUM"]), "sum": float(hdus[1].data.sum())}


class ShardFormatter(FormatterV2):
    """Read a shard from a format that the default formatter cannot read."""

    can_read_from_local_file: ClassVar[bool] = True
    default_extension: ClassVar[str] = ".shard"

    def read_from_local_file(self, path: str, component: str | None = None, expected_size: int = -1) -> Any:
        return {"shard": int(Path(path).read_text().removeprefix("shard "))}


class ToyCam(Instrument):
    """Four detectors in a square, two filters."""

    raw_definition = ("raw", EXPOSURE, "StructuredDataDict")
    translatorClass = ToyTranslator  # noqa: N815

    @classmethod
    def getName(cls) -> str:  # noqa: N802
        return NAME

    def getRawFormatter(self, dataId: Any) -> type[FormatterV2]:  # noqa: N802, N803
        return ToyFormatter

    def register(self, registry: Any, *, update: bool = False) -> None:
        def sync(element: str, **record: Any) -> None:
            registry.syncDimensionData(element, record, update=update)

        with registry.transaction():
            sync(
                "instrument",
                name=NAME,
                detector_max=DETECTORS,
                visit_max=10**13,
                exposure_max=10**13,
                class_name=f"{ToyCam.__module__}.ToyCam",
                visit_system=0,
            )
            for k in range(DETECTORS):
                sync("detector", instrument=NAME, id=k, full_name=f"S{k:02d}", purpose="SCIENCE")
            for name, band in FILTERS.items():
                sync("physical_filter", instrument=NAME, name=name, band=band)


def load_toy_camera(instrument: str) -> Camera:
    """Stand in for `ppdaemon.camera.load_camera`: four squares around the optical axis."""
    if instrument != NAME:
        raise ConfigError([f"no focal-plane table for {instrument!r}"])
    side_mm = DETECTOR_SIDE_DEG * 100.0
    detectors = [
        {
            "id": k,
            "name": f"S{k:02d}",
            "purpose": "SCIENCE",
            "type": "TOY",
            "x": (k % 2 - 0.5) * side_mm,
            "y": (k // 2 - 0.5) * side_mm,
            "width": side_mm,
            "height": side_mm,
            "yaw": 0,
        }
        for k in range(DETECTORS)
    ]
    return Camera.model_validate(
        {
            "instrument": NAME,
            "focal_plane_parity": False,
            "plate_scale_arcsec_per_mm": 36.0,
            "visit_padding_pixels": 5,
            "radial_coefficients": {"c1": 1.0, "c3": 0.0, "c5": 0.0},
            "detectors": detectors,
        }
    )


# --- tasks -----------------------------------------------------------------

_DICT = "StructuredDataDict"
CALIB, FLAT = ("instrument", "detector"), ("instrument", "detector", "physical_filter")
PATCHES = ("skymap", "tract", "patch", "band")


def _connection(
    kind: type, name: str, dimensions: tuple[str, ...] = EXPOSURE, storage: str = _DICT, **more: Any
) -> Any:
    return kind(**{"name": name, "doc": name, "storageClass": storage, "dimensions": dimensions} | more)


reads, finds, makes = (partial(_connection, kind) for kind in (Input, PrerequisiteInput, Output))
"""Make a connection, by default of dictionaries of an exposure's detector."""


class IsrConnections(PipelineTaskConnections, dimensions=EXPOSURE):
    raw = reads("raw")
    bias = finds("bias", CALIB, isCalibration=True)
    flat = finds("flat", FLAT, isCalibration=True)
    output = makes("toy_isr")


class IsrConfig(PipelineTaskConfig, pipelineConnections=IsrConnections):
    note = Field[str](doc="Goes into the output.", default="")


class IsrTask(PipelineTask):
    ConfigClass = IsrConfig
    _DefaultName = "isr"

    def run(self, raw: Any, bias: Any, flat: Any) -> Struct:
        return Struct(output={"raw": raw, "bias": bias, "flat": flat, "note": self.config.note})


class CalibrateConnections(PipelineTaskConnections, dimensions=VISIT):
    image = reads("toy_isr")
    refcat = finds("toy_refcat", ("skypix",), multiple=True)
    schema = InitOutput(name="toy_schema", doc="made once", storageClass=_DICT)
    output = makes("toy_image", VISIT)


class CalibrateConfig(PipelineTaskConfig, pipelineConnections=CalibrateConnections):
    fail = Field[str](doc="Exception text to fail with.", default="")


class CalibrateTask(PipelineTask):
    ConfigClass = CalibrateConfig
    _DefaultName = "calibrate"

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.schema = {"columns": ["a"]}

    def run(self, image: Any, refcat: Any) -> Struct:
        if self.config.fail:
            raise RuntimeError(self.config.fail)
        return Struct(output={"image": image, "shards": sorted(each["shard"] for each in refcat)})


class SubtractConnections(PipelineTaskConnections, dimensions=VISIT):
    image = reads("toy_image", VISIT)
    templates = reads("toy_template", PATCHES, multiple=True, deferGraphConstraint=True)
    output = makes("toy_difference", VISIT)


class SubtractConfig(PipelineTaskConfig, pipelineConnections=SubtractConnections):
    pass


class SubtractTask(PipelineTask):
    ConfigClass = SubtractConfig
    _DefaultName = "subtract"

    def run(self, image: Any, templates: Any) -> Struct:
        return Struct(output={"image": image, "patches": sorted(each["patch"] for each in templates)})


class AssociateConnections(PipelineTaskConnections, dimensions=VISIT):
    difference = reads("toy_difference", VISIT)
    known = reads("toy_known", GROUP_DETECTOR)
    output = makes("toy_association", VISIT)


class AssociateConfig(PipelineTaskConfig, pipelineConnections=AssociateConnections):
    fail = Field[str](doc="Exception text to fail with.", default="")


class AssociateTask(PipelineTask):
    ConfigClass = AssociateConfig
    _DefaultName = "associate"

    def run(self, difference: Any, known: Any) -> Struct:
        if self.config.fail:
            raise RuntimeError(self.config.fail)
        return Struct(output={"difference": difference, "known": known})


class KnownConnections(PipelineTaskConnections, dimensions=GROUP_DETECTOR):
    footprint = reads("regionTimeInfo", GROUP_DETECTOR, storage="RegionTimeInfo", doc="where and when")
    known = makes("toy_known", GROUP_DETECTOR)


class KnownConfig(PipelineTaskConfig, pipelineConnections=KnownConnections):
    fail = Field[str](doc="Exception text to fail with.", default="")


class KnownTask(PipelineTask):
    ConfigClass = KnownConfig
    _DefaultName = "known"

    def run(self, footprint: Any) -> Struct:
        if self.config.fail:
            raise RuntimeError(self.config.fail)
        width = footprint.region.getBoundingBox().getWidth().asDegrees()
        return Struct(known={"width_deg": width, "begin": footprint.timespan.begin.isot})


class NeedsModelConnections(PipelineTaskConnections, dimensions=EXPOSURE):
    raw = reads("raw")
    model = finds("toy_model", ())
    output = makes("toy_modeled")


class NeedsModelConfig(PipelineTaskConfig, pipelineConnections=NeedsModelConnections):
    pass


class NeedsModelTask(PipelineTask):
    ConfigClass = NeedsModelConfig
    _DefaultName = "needsModel"


class UnbuildableConnections(PipelineTaskConnections, dimensions=EXPOSURE):
    raw = reads("raw")
    output = makes("toy_unbuildable")

    def adjustQuantum(self, inputs: Any, outputs: Any, label: str, data_id: Any) -> Any:  # noqa: N802
        raise FileNotFoundError("this exposure is not for this pipeline")


class UnbuildableConfig(PipelineTaskConfig, pipelineConnections=UnbuildableConnections):
    pass


class UnbuildableTask(PipelineTask):
    ConfigClass = UnbuildableConfig
    _DefaultName = "unbuildable"


_PIPELINES = {
    "Full": {
        "isr": "IsrTask",
        "calibrate": "CalibrateTask",
        "subtract": "SubtractTask",
        "associate": "AssociateTask",
    },
    "Short": {"isr": "IsrTask"},
    "Frame": {"isr": "IsrTask", "calibrate": "CalibrateTask"},
    "Known": {"known": "KnownTask"},
    "NeedsModel": {"needsModel": "NeedsModelTask"},
    "Unbuildable": {"unbuildable": "UnbuildableTask"},
}


def write_pipeline(folder: Path, name: str, tasks: Mapping[str, str], module: str = "") -> str:
    """Write the pipeline of a module's tasks, or of tasks with their full names; return its path."""
    path, prefix = folder / f"{name}.yaml", f"{module}." if module else ""
    lines = [f"description: {name}", f"instrument: {__name__}.ToyCam", "tasks:"]
    lines += [f"  {label}: {prefix}{task}" for label, task in tasks.items()]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def write_pipelines(folder: Path) -> dict[str, str]:
    """Write all pipeline files; return their paths by name."""
    return {name: write_pipeline(folder, name, tasks, __name__) for name, tasks in _PIPELINES.items()}


# --- central repo ----------------------------------------------------------

SHARDS = HtmPixelization(7)
PATCH_SIDE_DEG = 0.3


def box(left: float, low: float, right: float, high: float) -> ConvexPolygon:
    """Make a polygon of corners in degrees."""
    corners = ((left, low), (right, low), (right, high), (left, high))
    return ConvexPolygon([UnitVector3d(LonLat.fromDegrees(*corner)) for corner in corners])


def shards_around() -> list[int]:
    """Return the shards of a wide area around the field."""
    found = SHARDS.envelope(box(RA - 3, DEC - 3, RA + 3, DEC + 3))
    return [shard for begin, end in found.ranges() for shard in range(begin, end)]


def make_central(root: Path) -> Path:
    """Make a central repo: calibs of two epochs, 25 patches in two bands, many shards."""
    with Butler.from_config(Butler.makeRepo(str(root)), writeable=True) as butler:
        ToyCam().register(butler.registry)
        add_calibs(butler)
        _add_templates(butler)
        _add_refcat(butler, root)
        butler.registry.registerDatasetType(dataset_type(butler, "raw", EXPOSURE))
        mark_datastore(butler)
    return root


def dataset_type(
    butler: Butler, name: str, dimensions: tuple[str, ...], *, calibration: bool = False
) -> DatasetType:
    """Define a type of dictionaries."""
    return DatasetType(name, dimensions, _DICT, universe=butler.dimensions, isCalibration=calibration)


def add_calibs(butler: Butler) -> None:
    """Certify biases and flats of all detectors: the epoch "old" until `EPOCH`, then "new"."""
    butler.registry.registerDatasetType(
        dataset_type(butler, "bias", ("instrument", "detector"), calibration=True)
    )
    butler.registry.registerDatasetType(
        dataset_type(butler, "flat", ("instrument", "detector", "physical_filter"), calibration=True)
    )
    collection = f"{NAME}/calib/certified"
    butler.collections.register(collection, CollectionType.CALIBRATION)
    butler.collections.register(f"{NAME}/calib", CollectionType.CHAINED)
    butler.collections.redefine_chain(f"{NAME}/calib", collection)
    for epoch, span in (("old", Timespan(None, EPOCH)), ("new", Timespan(EPOCH, None))):
        run = f"{NAME}/calib/{epoch}"
        butler.collections.register(run)
        refs = []
        for detector in range(DETECTORS):
            ids = {"instrument": NAME, "detector": detector}
            refs.append(butler.put({"epoch": epoch}, "bias", ids, run=run))
            for name in FILTERS:
                refs.append(
                    butler.put({"epoch": epoch, "filter": name}, "flat", ids, physical_filter=name, run=run)
                )
        butler.registry.certify(collection, refs, span)


def _add_templates(butler: Butler) -> None:
    insert = butler.registry.insertDimensionData
    insert("skymap", {"name": "toy", "hash": b"toy", "tract_max": 1, "patch_nx_max": 5, "patch_ny_max": 5})
    half = 2.5 * PATCH_SIDE_DEG
    region = box(RA - half, DEC - half, RA + half, DEC + half)
    insert("tract", {"skymap": "toy", "id": 0, "region": region})
    for k in range(25):
        left, low = RA - half + (k % 5) * PATCH_SIDE_DEG, DEC - half + (k // 5) * PATCH_SIDE_DEG
        region = box(left, low, left + PATCH_SIDE_DEG, low + PATCH_SIDE_DEG)
        insert(
            "patch",
            {"skymap": "toy", "tract": 0, "id": k, "cell_x": k % 5, "cell_y": k // 5, "region": region},
        )
    butler.registry.registerDatasetType(
        dataset_type(butler, "toy_template", ("skymap", "tract", "patch", "band"))
    )
    run = f"{NAME}/templates"
    butler.collections.register(run)
    for band in FILTERS.values():
        for k in range(25):
            ids = {"skymap": "toy", "tract": 0, "patch": k, "band": band}
            butler.put({"patch": k, "band": band}, "toy_template", ids, run=run)


def _add_refcat(butler: Butler, root: Path) -> None:
    butler.registry.registerDatasetType(dataset_type(butler, "toy_refcat", ("htm7",)))
    butler.collections.register("refcats", CollectionType.CHAINED)
    butler.collections.register("refcats/toy")
    butler.collections.redefine_chain("refcats", "refcats/toy")
    datasets = []
    for shard in shards_around():
        path = root / f"{shard}.shard"
        path.write_text(f"shard {shard}")
        ref = DatasetRef(
            butler.get_dataset_type("toy_refcat"), butler.registry.expandDataId(htm7=shard), run="refcats/toy"
        )
        datasets.append(FileDataset(str(path), ref, formatter=ShardFormatter))
    butler.ingest(*datasets, transfer="move")


# --- raws ------------------------------------------------------------------


def make_header(detector: int, seq_num: int = 1, **changes: Any) -> dict[str, Any]:
    """Return the primary header of a raw; `None` as a change is a null."""
    begin = BEGIN_TAI + seq_num * 35 * u.s
    header: dict[str, Any] = {
        "INSTRUME": NAME,
        "OBSID": f"TY_O_{DAY}_{seq_num:06d}",
        "GROUPID": GROUP,
        "DAYOBS": str(DAY),
        "SEQNUM": seq_num,
        "DETECTOR": detector,
        "FILTER": "r_03",
        "IMGTYPE": "science",
        "REASON": "test",
        "PROGRAM": "BLOCK-1",
        "OBJECT": "field",
        "EXPTIME": 30.0,
        "RA": RA,
        "DEC": DEC,
        "ROTPA": 0.0,
        "TIMESYS": "TAI",
        "DATE-BEG": begin.isot,
        "DATE-END": (begin + 30 * u.s).isot,
    }
    return header | {key.replace("_", "-"): value for key, value in changes.items()}


def write_raw(folder: Path, header: Mapping[str, Any], *, sidecar: bool = True) -> Path:
    """Write a raw and its sidecar; return the path of the FITS file."""
    path = folder / f"{header['OBSID']}_S{header['DETECTOR']:02d}.fits"
    primary = fits.PrimaryHDU()
    for key, value in header.items():
        primary.header[key] = value
    pixels = fits.ImageHDU(np.full((40, 50), header["SEQNUM"], dtype=np.int16))
    fits.HDUList([primary, pixels]).writeto(path, overwrite=True)
    if sidecar:
        path.with_suffix(".json").write_text(json.dumps(dict(header)))
    return path


# --- a node ----------------------------------------------------------------


type MakeRig = Callable[..., tuple["Rig", ButlerWork]]


class Rig:
    """A node's folders and configuration around one context, without its other processes."""

    def __init__(self, root: Path, ramdisk: Path, central: Path, **changes: Any):
        self.central = central
        self.raws = root / "raws"
        self._pipelines = root / "pipelines"
        for folder in (self.raws, self._pipelines, ramdisk / "slot"):
            folder.mkdir(parents=True)
        self.paths = write_pipelines(self._pipelines)
        self.reports: list[StageReached | MayCross | Connecting] = []
        self.config = self._configure(root, ramdisk, changes)
        NodeFolders.of(self.config).uncompressed.mkdir(parents=True)
        self.context = WorkerContext(
            config=self.config,
            slot=0,
            epoch=1,
            repo=ramdisk / "slot",
            template=ramdisk / "template",
            cache=ramdisk / "cache",
            runs=ramdisk / "runs",
            spool=root / "spool",
            ramdisk_spool=ramdisk / "spool",
            publish=root / "publish",
            clock=Clock(),
            report=self.reports.append,
            cross=self._cross,
        )

    def add_pipeline(self, name: str, tasks: Mapping[str, str], module: str = "") -> None:
        """Write a pipeline that orders can name; it is not in the configuration."""
        self.paths[name] = write_pipeline(self._pipelines, name, tasks, module)

    def _cross(self, what: str) -> None:
        """Allow all steps at once, and record the tasks among them."""
        if what:
            self.reports.append(MayCross(what=what))

    def _configure(self, root: Path, ramdisk: Path, changes: Mapping[str, Any]) -> NodeConfig:
        usual: dict[str, Any] = {
            "node": {
                "name": "toy",
                "state_dir": root,
                "ramdisk": ramdisk,
                "control": root / "control",
                "instruments": {NAME: f"0-{DETECTORS - 1}"},
            },
            "arrivals": {"roots": [self.raws], "layout": "generic"},
            "butler": {
                "central": str(self.central),
                "instrument_class": {NAME: f"{__name__}.ToyCam"},
                "skymap": "toy",
            },
            "pipelines": {"main": [{"pipelines": list(self.paths.values())}]},
            "engine": {"no_return": ["associate"]},
            "export": {"types": ["toy_.*", ".*_metadata", ".*_config"]},
        }
        for part, values in changes.items():
            usual[part] = usual.get(part, {}) | values if isinstance(values, dict) else values
        return NodeConfig.model_validate(usual)

    def order(self, detector: int = 1, *, main: str = "Full", before: str = "Known", **sal: Any) -> Prepare:
        """Announce a visit; pipelines are named by their files, comma-separated."""
        attempt = sal.pop("attempt", 1)
        fields = {
            "groupId": GROUP,
            "instrument": NAME,
            "coordinateSystem": 2,
            "position": [RA, DEC],
            "startTime": BEGIN_TAI.unix_tai,
            "rotationSystem": 2,
            "cameraAngle": 0.0,
            "filters": "r_03",
            "duration": 35.0,
            "nimages": 1,
        }
        pipelines = Pipelines(
            preprocessing=tuple(self.paths[name] for name in before.split(",") if name),
            main=tuple(self.paths[name] for name in main.split(",")),
        )
        visit = read_next_visit(fields | sal)
        return Prepare(visit=visit, detector=detector, attempt=attempt, pipelines=pipelines)

    def raw(self, detector: int = 1, seq_num: int = 1, *, sidecar: bool = True, **header: Any) -> Raw:
        """Write a raw; `header` changes its header, not what is expected of it."""
        expected = make_header(detector, seq_num)
        path = write_raw(self.raws, make_header(detector, seq_num, **header), sidecar=sidecar)
        return Raw(
            path=str(path),
            sidecar=str(path.with_suffix(".json")) if sidecar else None,
            instrument=NAME,
            group=expected["GROUPID"],
            detector=detector,
            exposure=DAY * 100000 + seq_num,
            seen_tai=0.0,
        )
