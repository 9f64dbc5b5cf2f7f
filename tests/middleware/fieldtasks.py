# SPDX-License-Identifier: BSD-3-Clause
# ruff: noqa: N803  # arguments are named after the field's connections
"""A pipeline with the shape of the field's alert pipeline: labels, dimensions, connections.

Its tasks do simple arithmetic, so that each output depends on all inputs.
Storage classes are those that can be installed without the camera software:
images of ``lsst.images`` stand for exposures, tables for source catalogs.
"""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
from astropy.table import Table
from astropy.wcs import WCS
from directtasks import find_flat
from lsst.daf.butler import Butler, CollectionType, DatasetType, Timespan
from lsst.images import Box, MaskedImage
from lsst.pex.config import Field
from lsst.pipe.base import NoWorkFound, PipelineTask, Struct
from lsst.pipe.base.connectionTypes import InitInput, InitOutput, Input, Output, PrerequisiteInput
from lsst.pipe.base.utils import RegionTimeInfo
from objecttasks import task
from toycam import DEC, EXPOSURE, FILTERS, GROUP_DETECTOR, NAME, RA, VISIT, Rig

from ppdaemon.demo.tasks.planes import make_image, sky_projection

ROWS, COLUMNS = 60, 80
SKYMAP, TRACT = (*VISIT, "skymap"), (*VISIT, "skymap", "tract")
PATCH = ("skymap", "tract", "patch")
FILTER = ("instrument", "detector", "physical_filter")
DICT, IMAGE, TABLE, FRAME = "StructuredDataDict", "MaskedImageV2", "ArrowAstropy", "DataFrame"

# --- connections: name, storage class, dimensions ------------------------------


def _reads(name: str, storage: str, dimensions: Any = VISIT, **more: Any) -> Input:
    return Input(name=name, storageClass=storage, dimensions=dimensions, doc="input", **more)


def _finds(name: str, storage: str, dimensions: Any, **more: Any) -> PrerequisiteInput:
    return PrerequisiteInput(name=name, storageClass=storage, dimensions=dimensions, doc="found", **more)


def _makes(name: str, storage: str, dimensions: Any = VISIT, **more: Any) -> Output:
    return Output(name=name, storageClass=storage, dimensions=dimensions, doc="output", **more)


def _apdb() -> dict[str, Any]:
    return {"apdb": Field[str](doc="Path of the alert database.", default="")}


def _task(label: str, dimensions: Any, connections: dict[str, Any], *bases: type, **attributes: Any) -> None:
    """Add a task to this module: ``buildTemplate`` becomes ``BuildTemplateTask``."""
    name = f"{label[0].upper()}{label[1:]}"
    made = task(name, connections, *bases, module=__name__, dimensions=dimensions, **attributes)
    globals()[made.__name__] = made


# --- contents -------------------------------------------------------------------


def _projection(ra: float, dec: float) -> Any:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.cdelt = ["RA---TAN", "DEC--TAN"], [ra, dec], [-2e-3, 2e-3]
    return sky_projection(wcs)


def _image(pixels: Any, like: MaskedImage | None = None, ra: float = RA, dec: float = DEC) -> MaskedImage:
    pixels = np.asarray(pixels, dtype=np.float32)
    projection = _projection(ra, dec) if like is None else like.sky_projection
    bad = {"BAD": pixels > float(np.quantile(pixels, 0.99))}
    return make_image(pixels, np.abs(pixels) + 1, bad, u.nJy, projection=projection, metadata={"by": "test"})


def _pixels(image: MaskedImage) -> Any:
    return image.image.array


def _sources(pixels: Any, count: int = 30) -> Table:
    """Return the brightest pixels as sources."""
    brightest = np.argsort(pixels, axis=None, kind="stable")[-count:]
    y, x = np.unravel_index(brightest, pixels.shape)
    flux = pixels[y, x].astype(np.float64)
    return Table({"id": np.arange(count), "x": x.astype(np.float64), "y": y.astype(np.float64), "flux": flux})


# --- before the image, by group ---------------------------------------------------


def _load(self: Any, regionTime: RegionTimeInfo) -> Struct:
    """Read what the alert database has; its tables have a row in any case."""
    width = regionTime.region.getBoundingBox().getWidth().asDegrees()
    table = Table({"diaObjectId": np.arange(3), "ra": RA + width * np.arange(3.0), "nDiaSources": [1, 2, 3]})
    return Struct(diaObjects=table, diaSources=table[:2], diaForcedSources=table[:1])


_task(
    "loadDiaCatalogs",
    GROUP_DETECTOR,
    {
        "regionTime": _reads("regionTimeInfo", "RegionTimeInfo", GROUP_DETECTOR),
        "diaObjects": _makes("preloaded_dia_object", TABLE, GROUP_DETECTOR),
        "diaSources": _makes("preloaded_dia_source", TABLE, GROUP_DETECTOR),
        "diaForcedSources": _makes("preloaded_dia_forced_source", TABLE, GROUP_DETECTOR),
    },
    run=_load,
)


def _query(self: Any, predictedRegionTime: RegionTimeInfo) -> Struct:
    raise NoWorkFound("no solar system object is near")


_task(
    "mpSkyEphemerisQuery",
    GROUP_DETECTOR,
    {
        "predictedRegionTime": _reads("regionTimeInfo", "RegionTimeInfo", GROUP_DETECTOR),
        "ssObjects": _makes("preloaded_ss_object", TABLE, GROUP_DETECTOR),
    },
    run=_query,
)

# --- single frame ---------------------------------------------------------------------


def _isr(self: Any, ccdExposure: Any, camera: Any, bias: Any, flat: Any, **optional: Any) -> Struct:
    y, x = np.mgrid[0:ROWS, 0:COLUMNS]
    level = ccdExposure["sum"] % 97 + len(bias["epoch"]) + len(flat["filter"]) + camera["detectors"]
    wave = np.sin(0.37 * x + 0.11 * level) * np.cos(0.23 * y) * (1 + (x * y) % 7)
    return Struct(outputExposure=_image(level + 3 * wave))


_task(
    "isr",
    EXPOSURE,
    {
        "ccdExposure": _reads("raw", DICT, EXPOSURE),
        "camera": _finds("camera", DICT, ("instrument",), isCalibration=True),
        "bias": _finds("bias", DICT, ("instrument", "detector"), isCalibration=True),
        "flat": _finds("flat", DICT, FILTER, isCalibration=True, lookupFunction=find_flat),
        "linearizer": _finds("linearizer", DICT, ("instrument", "detector"), isCalibration=True, minimum=0),
        "crosstalkSources": _finds(
            "isrOverscanCorrected", DICT, EXPOSURE, multiple=True, deferLoad=True, minimum=0
        ),
        "outputExposure": _makes("post_isr_image", IMAGE, EXPOSURE),
    },
    run=_isr,
)


class _Calibrate:
    """Reads by connection, as the field's task does, and sums its exposures."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.initial_stars_schema = Table({"id": np.zeros(0, dtype=int), "flux": np.zeros(0)})

    def runQuantum(self, butlerQC: Any, inputRefs: Any, outputRefs: Any) -> None:  # noqa: N802
        inputs = butlerQC.get(inputRefs)
        shards = [handle.get()["shard"] for handle in inputs["astrometry_ref_cat"]]
        stacked = sum(_pixels(each) for each in inputs["exposures"]) + min(shards) % 13
        image = _image(stacked, inputs["exposures"][0])
        butlerQC.put(image, outputRefs.exposure)
        butlerQC.put(_sources(stacked), outputRefs.stars)
        butlerQC.put({"count": 30}, outputRefs.stars_footprints)
        butlerQC.put({"level": float(np.median(stacked))}, outputRefs.background)


_task(
    "calibrateImage",
    VISIT,
    {
        "astrometry_ref_cat": _finds("toy_refcat", DICT, ("skypix",), deferLoad=True, multiple=True),
        "camera_model": _finds(
            "astrometry_camera", DICT, ("instrument", "physical_filter"), isCalibration=True, minimum=0
        ),
        "exposures": _reads("post_isr_image", IMAGE, EXPOSURE, multiple=True),
        "initial_stars_schema": InitOutput(name="single_visit_star_schema", storageClass=TABLE, doc="schema"),
        "exposure": _makes("preliminary_visit_image", IMAGE),
        "stars": _makes("single_visit_star_unstandardized", TABLE),
        "stars_footprints": _makes("single_visit_star_footprints", DICT),
        "background": _makes("preliminary_visit_image_background", DICT),
    },
    _Calibrate,
)

# --- difference imaging -----------------------------------------------------------------


def _warp(self: Any, bbox: Box, wcs: Any, skyMap: Any, coaddExposures: Any) -> Struct:
    """Sum a part of each patch; the position of the image decides which part."""
    total = np.zeros((bbox.y.size, bbox.x.size))
    for handle in coaddExposures:
        data_id = handle.dataId
        part = handle.get(parameters={"bbox": Box.factory[2:12, 3:13]})
        total += float(_pixels(part).sum()) + skyMap["tracts"] + data_id["tract"] + data_id["patch"]
    ra = float(wcs.pixel_to_sky(x=np.array([0.0]), y=np.array([0.0])).ra.deg[0])
    y, x = np.mgrid[0 : bbox.y.size, 0 : bbox.x.size]
    return Struct(template=_image(total / 1000 + ra / 100 + np.sin(0.3 * x) * np.cos(0.2 * y)))


_task(
    "buildTemplate",
    SKYMAP,
    {
        "bbox": _reads("preliminary_visit_image.bbox", "BoxV2"),
        "wcs": _reads("preliminary_visit_image.sky_projection", "SkyProjection"),
        "skyMap": _reads("skyMap", DICT, ("skymap",)),
        "coaddExposures": _reads(
            "template_coadd",
            IMAGE,
            (*PATCH, "band"),
            multiple=True,
            deferLoad=True,
            deferGraphConstraint=True,
        ),
        "template": _makes("template_detector", IMAGE),
    },
    run=_warp,
)


def _subtract(self: Any, template: MaskedImage, science: MaskedImage, sources: Any) -> Struct:
    scale = float(np.median(_pixels(science)) / np.median(_pixels(template)))
    matched = _image(scale * _pixels(template), science)
    return Struct(
        difference=_image(_pixels(science) - _pixels(matched), science),
        matchedTemplate=matched,
        psfMatchingKernel={"scale": scale, "sources": sources["count"]},
        kernelSources=_sources(_pixels(matched), 5),
    )


_task(
    "subtractImages",
    VISIT,
    {
        "template": _reads("template_detector", IMAGE),
        "science": _reads("preliminary_visit_image", IMAGE),
        "sources": _reads("single_visit_star_footprints", DICT),
        "difference": _makes("difference_image_predetection", IMAGE),
        "matchedTemplate": _makes("template_matched", IMAGE),
        "psfMatchingKernel": _makes("difference_kernel", DICT),
        "kernelSources": _makes("difference_kernel_sources", TABLE),
    },
    run=_subtract,
)


class _Detect(PipelineTask):
    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.outputSchema = Table({"id": np.zeros(0, dtype=int), "snr": np.zeros(0)})

    def run(
        self,
        science: MaskedImage,
        matchedTemplate: MaskedImage,
        difference: MaskedImage,
        kernelSources: Table,
    ) -> Struct:
        sources = _sources(_pixels(difference))
        noise = np.sqrt(np.abs(_pixels(science)).mean() + np.abs(_pixels(matchedTemplate)).mean())
        sources["snr"] = sources["flux"] / float(noise) + len(kernelSources)
        difference.metadata["sources"] = len(sources)
        return Struct(diaSources=sources, subtractedMeasuredExposure=difference)


_task(
    "detectAndMeasureDiaSource",
    VISIT,
    {
        "science": _reads("preliminary_visit_image", IMAGE),
        "matchedTemplate": _reads("template_matched", IMAGE),
        "difference": _reads("difference_image_predetection", IMAGE),
        "kernelSources": _reads("difference_kernel_sources", TABLE),
        "outputSchema": InitOutput(name="dia_source_schema", storageClass=TABLE, doc="schema"),
        "diaSources": _makes("dia_source_unfiltered", TABLE),
        "subtractedMeasuredExposure": _makes("difference_image", IMAGE),
    },
    _Detect,
)


def _filter(self: Any, diaSourceCat: Table, diffImUnit: Any) -> Struct:
    kept = diaSourceCat[diaSourceCat["id"] % 3 != 0]
    kept["unit"] = str(diffImUnit)
    return Struct(filteredDiaSourceCat=kept, longTrailedSources=diaSourceCat[:2])


_task(
    "filterDiaSource",
    VISIT,
    {
        "diaSourceCat": _reads("dia_source_unfiltered", TABLE),
        "diffImUnit": _reads("difference_image.unit", "AstropyUnit"),
        "filteredDiaSourceCat": _makes("dia_source_unstandardized", TABLE),
        "longTrailedSources": _makes("long_trailed_source_detector", TABLE),
    },
    run=_filter,
)


def _classify(
    self: Any,
    science: Any,
    template: Any,
    difference: Any,
    diaSources: Any,
    pretrainedModel: Any,
) -> Struct:
    """Read parts of deferred images: cutouts, and several components at once."""
    scores = []
    for source in diaSources:
        x, y = (int(source[name]) for name in ("x", "y"))
        cutout = Box.factory[max(y - 3, 0) : min(y + 4, ROWS), max(x - 3, 0) : min(x + 4, COLUMNS)]
        images = [each.get(parameters={"bbox": cutout}) for each in (science, template, difference)]
        planes = difference.get(component="mask", parameters={"bbox": cutout})
        scores.append(sum(float(_pixels(each).mean()) for each in images) + float(planes.array.sum()))
    parts = science.get(component="components", parameters={"components": ["variance", "bbox"]})
    scale = float(_pixels_of(parts["variance"]).mean()) + parts["bbox"].x.size + pretrainedModel["weight"]
    return Struct(classifications=Table({"id": diaSources["id"], "score": np.array(scores) / scale}))


def _pixels_of(plane: Any) -> Any:
    assert plane.sky_projection is None, "a plane that is read as a component has none"
    return plane.array


_task(
    "computeReliability",
    VISIT,
    {
        "science": _reads("preliminary_visit_image", IMAGE, deferLoad=True),
        "template": _reads("template_detector", IMAGE, deferLoad=True),
        "difference": _reads("difference_image", IMAGE, deferLoad=True),
        "diaSources": _reads("dia_source_unstandardized", TABLE),
        "pretrainedModel": _finds("pretrainedModelPackage", DICT, ()),
        "classifications": _makes("dia_source_reliability", TABLE),
    },
    run=_classify,
)


def _reliable(self: Any, diaSourceCat: Table, reliability: Table) -> Struct:
    high = reliability["score"] >= np.median(reliability["score"])
    return Struct(filteredDiaSources=diaSourceCat[high], rejectedDiaSources=diaSourceCat[~high])


_task(
    "filterDiaSourcePostReliability",
    VISIT,
    {
        "diaSourceCat": _reads("dia_source_unstandardized", TABLE),
        "reliability": _reads("dia_source_reliability", TABLE),
        "filteredDiaSources": _makes("dia_source_high_reliability", TABLE),
        "rejectedDiaSources": _makes("dia_source_low_reliability", TABLE),
    },
    run=_reliable,
)


class _Standardize(PipelineTask):
    def __init__(self, initInputs: Any, **kwargs: Any):
        super().__init__(initInputs=initInputs, **kwargs)
        self.columns = initInputs["diaSourceSchema"].colnames

    def run(self, diaSourceCat: Table, diffIm: MaskedImage) -> Struct:
        table = diaSourceCat[[*self.columns, "x", "y"]]
        table["sky"] = float(_pixels(diffIm).mean())
        return Struct(diaSourceTable=table)


_task(
    "standardizeDiaSource",
    VISIT,
    {
        "diaSourceSchema": InitInput(name="dia_source_schema", storageClass=TABLE, doc="schema"),
        "diaSourceCat": _reads("dia_source_high_reliability", TABLE),
        "diffIm": _reads("difference_image", IMAGE),
        "diaSourceTable": _makes("dia_source_detector", TABLE),
    },
    _Standardize,
)

# --- association, forced photometry, alerts ----------------------------------------------


class _Associate:
    """Writes to the alert database, which all detectors share, and puts tables."""

    def runQuantum(self, butlerQC: Any, inputRefs: Any, outputRefs: Any) -> None:  # noqa: N802
        inputs, data_id = butlerQC.get(inputRefs), butlerQC.quantum.dataId
        sources, objects = inputs["diaSourceTable"], inputs["preloadedDiaObjects"]
        sources["diaObjectId"] = objects["diaObjectId"].to_numpy()[np.arange(len(sources)) % len(objects)]
        level = float(sum(_pixels(inputs[name]).mean() for name in ("exposure", "template", "diffIm")))
        with closing(sqlite3.connect(self.config.apdb, timeout=60)) as database, database:  # type: ignore[attr-defined]
            database.execute("CREATE TABLE IF NOT EXISTS DiaSource (visit, detector, id, snr)")
            rows = [
                (data_id["visit"], data_id["detector"], int(row.id), float(row.snr))
                for row in sources.itertuples()
            ]
            database.executemany("INSERT INTO DiaSource VALUES (?, ?, ?, ?)", rows)
        known = len(inputs["preloadedDiaSources"]) + len(inputs["preloadedDiaForcedSources"])
        forced = Table({"diaObjectId": objects["diaObjectId"].to_numpy()})
        forced["flux"] = level + known
        outputs = Struct(
            apdbMarker=self.config,  # type: ignore[attr-defined]
            associatedDiaSources=Table.from_pandas(sources),
            diaForcedSources=forced,
            diaObjects=Table.from_pandas(objects),
        )
        butlerQC.put(outputs, outputRefs)


_task(
    "associateApdb",
    VISIT,
    {
        "diaSourceTable": _reads("dia_source_detector", FRAME),
        "solarSystemObjectTable": _reads("preloaded_ss_object", TABLE, GROUP_DETECTOR, minimum=0),
        "diffIm": _reads("difference_image", IMAGE),
        "exposure": _reads("preliminary_visit_image", IMAGE),
        "template": _reads("template_detector", IMAGE),
        "preloadedDiaObjects": _reads("preloaded_dia_object", FRAME, GROUP_DETECTOR),
        "preloadedDiaSources": _reads("preloaded_dia_source", FRAME, GROUP_DETECTOR),
        "preloadedDiaForcedSources": _reads("preloaded_dia_forced_source", FRAME, GROUP_DETECTOR),
        "apdbMarker": _makes("apdb_marker", "Config"),
        "associatedDiaSources": _makes("dia_source_apdb", TABLE),
        "diaForcedSources": _makes("dia_forced_source_apdb", TABLE),
        "diaObjects": _makes("dia_object_apdb", TABLE),
    },
    _Associate,
    fields=_apdb(),
)


def _force(self: Any, exposure: MaskedImage, skyMap: Any, objects: Any, known: Any) -> Struct:
    """Measure at the positions of a tract's objects, of which only some columns are read."""
    columns = [handle.get(parameters={"columns": ["id", "x"]}) for handle in objects]
    x = np.concatenate([np.asarray(each["x"]) for each in columns])
    flux = _pixels(exposure)[0, x.astype(int) % COLUMNS].astype(np.float64)
    return Struct(measured=Table({"x": x, "flux": flux + skyMap["tracts"] + len(known)}))


_task(
    "forcedPhotDiffOnDiaObjects",
    TRACT,
    {
        "exposure": _reads("difference_image", IMAGE),
        "skyMap": _reads("skyMap", DICT, ("skymap",)),
        "objects": _reads("dia_object_patch", TABLE, PATCH, multiple=True, deferLoad=True),
        "known": _reads("dia_object_apdb", TABLE),
        "measured": _makes("dia_forced_source_unstandardized", TABLE, TRACT),
    },
    run=_force,
)


def _package(self: Any, diaSources: Any, forced: Any, diffIm: Any, template: Any) -> Struct:
    alerts = {}
    for row in diaSources[:5]:
        x, y = (min(max(int(row[name]), 4), side - 5) for name, side in (("x", COLUMNS), ("y", ROWS)))
        cutout = Box.factory[y - 4 : y + 5, x - 4 : x + 5]
        parts = [each.get(parameters={"bbox": cutout}) for each in (diffIm, template)]
        alerts[f"{row['id']}"] = [float(_pixels(each).sum()) for each in parts] + [float(forced["flux"][0])]
    return Struct(alerts=alerts)


_task(
    "packageAlerts",
    VISIT,
    {
        "diaSources": _reads("dia_source_apdb", TABLE),
        "forced": _reads("dia_forced_source_apdb", TABLE),
        "diffIm": _reads("difference_image", IMAGE, deferLoad=True),
        "template": _reads("template_detector", IMAGE, deferLoad=True),
        "alerts": _makes("alerts", DICT),
    },
    run=_package,
)


class _RegionTime:
    """Reads only records, and does not put one of its outputs."""

    def runQuantum(self, butlerQC: Any, inputRefs: Any, outputRefs: Any) -> None:  # noqa: N802
        records = inputRefs.dummy_visit.dataId.records
        made = RegionTimeInfo(
            region=records["visit_detector_region"].region, timespan=records["visit"].timespan
        )
        butlerQC.put(made, outputRefs.output)


_task(
    "getRegionTimeFromVisit",
    GROUP_DETECTOR,
    {
        "dummy_visit": _reads("single_visit_star_footprints", DICT),
        "dummy_exposure": _makes("getRegionTimeFromVisit_dummy2", DICT, EXPOSURE, multiple=True),
        "output": _makes("region_time_of_visit", "RegionTimeInfo", GROUP_DETECTOR),
    },
    _RegionTime,
)

PREPROCESSING = ("loadDiaCatalogs", "mpSkyEphemerisQuery")
PROMPT = (
    "isr",
    "calibrateImage",
    "buildTemplate",
    "subtractImages",
    "detectAndMeasureDiaSource",
    "filterDiaSource",
    "computeReliability",
    "filterDiaSourcePostReliability",
    "standardizeDiaSource",
    "getRegionTimeFromVisit",
    "associateApdb",
    "forcedPhotDiffOnDiaObjects",
    "packageAlerts",
)


def write_field(rig: Rig) -> None:
    """Add the two pipelines of this module."""
    for name, labels in (("FieldPreload", PREPROCESSING), ("FieldPrompt", PROMPT)):
        rig.add_pipeline(name, {each: f"{each[0].upper()}{each[1:]}Task" for each in labels}, __name__)


def make_field(source: Path, root: Path) -> Path:
    """Copy a central repo with two tracts, and add what these pipelines read."""
    shutil.copytree(source, root)
    with Butler.from_config(str(root), writeable=True) as butler:

        def put(content: Any, name: str, storage: str, run: str, **data_id: Any) -> Any:
            calibration = run == calibs
            butler.registry.registerDatasetType(
                DatasetType(
                    name, tuple(data_id), storage, universe=butler.dimensions, isCalibration=calibration
                )
            )
            return butler.put(content, name, data_id, run=run)

        calibs, templates, models = f"{NAME}/calib/field", f"{NAME}/templates", f"{NAME}/models"
        for run in (calibs, models, "skymaps"):
            butler.collections.register(run)
        camera = put({"detectors": 4}, "camera", DICT, calibs, instrument=NAME)
        butler.collections.register(f"{NAME}/calib/camera", CollectionType.CALIBRATION)
        butler.registry.certify(f"{NAME}/calib/camera", [camera], Timespan(None, None))
        put({"weight": 2.5}, "pretrainedModelPackage", DICT, models)
        put({"tracts": 3}, "skyMap", DICT, "skymaps", skymap="toy")
        chain = butler.collections.get_info(f"{NAME}/calib").children
        butler.collections.redefine_chain(f"{NAME}/calib", [*chain, f"{NAME}/calib/camera", models])
        pixels = np.random.default_rng(7).normal(100.0, 10.0, size=(20, 20))
        for record in butler.query_dimension_records("patch"):
            ids = {"skymap": "toy", "tract": record.tract, "patch": record.id}
            objects = {"id": np.arange(4), "x": 10.0 * np.arange(4) + record.id, "y": np.zeros(4)}
            put(Table(objects), "dia_object_patch", TABLE, templates, **ids)
            for band in FILTERS.values():
                coadd = _image(pixels + record.id, dec=DEC + record.id)
                put(coadd, "template_coadd", IMAGE, templates, **ids, band=band)
    return root
