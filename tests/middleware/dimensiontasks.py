# SPDX-License-Identifier: BSD-3-Clause
"""Tasks with many kinds of dimensions, each of which outputs what it was given."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import toycam
from directtasks import find_shards
from lsst.daf.butler import Butler, DatasetRef
from lsst.pex.config import Field
from lsst.pipe.base import NoWorkFound
from objecttasks import task
from toycam import DEC, EXPOSURE, GROUP_DETECTOR, NAME, PATCHES, RA, VISIT, Rig, box, makes

SKYMAP = (*VISIT, "skymap")
TRACT = (*SKYMAP, "tract")
PATCH = (*TRACT, "patch")
reads = partial(toycam.reads, multiple=True, minimum=0)
finds = partial(toycam.finds, multiple=True, minimum=0)
"""Inputs and prerequisites of several datasets."""


def _fields() -> dict[str, Any]:
    """Return the configuration of a task here."""
    return {
        "fail": Field[str](doc="Text in the data ID of quanta that fail.", default=""),
        "idle": Field[str](doc="Text in the data ID of quanta that have no work.", default=""),
    }


class Listing:
    """Writes the data IDs of its quantum and of all inputs."""

    def runQuantum(self, butlerQC: Any, inputRefs: Any, outputRefs: Any) -> None:  # noqa: N802, N803
        quantum, config = butlerQC.quantum.dataId, self.config  # type: ignore[attr-defined]
        if config.fail and config.fail in str(quantum):
            raise RuntimeError("no stars")
        if config.idle and config.idle in str(quantum):
            raise NoWorkFound("not today")
        content = {
            "quantum": str(quantum),
            "region": "" if quantum.region is None else quantum.region.encode().hex(),
            "timespan": str(quantum.timespan),
            "inputs": {
                name: [[str(ref.dataId), butlerQC.get(ref)] for ref in _each(refs)]
                for name, refs in inputRefs
            },
        }
        for _, refs in outputRefs:
            for ref in _each(refs):
                butlerQC.put(content | {"output": str(ref.dataId)}, ref)


def _each(refs: Any) -> Any:
    return [refs] if isinstance(refs, DatasetRef) else refs


def image() -> dict[str, Any]:
    """Return the calibrated image of a visit as an input."""
    return {"image": reads("toy_image", VISIT, minimum=1)}


def isr() -> dict[str, Any]:
    """Return the images of exposures as an input."""
    return {"isr": reads("toy_isr", EXPOSURE)}


def templates() -> dict[str, Any]:
    """Return the templates of all patches as an input, which need not be there."""
    return {"templates": reads("toy_template", PATCHES, deferGraphConstraint=True)}


def shards(**more: Any) -> dict[str, Any]:
    """Return the shards as an input, some of which must be there unless that is deferred."""
    return {"shards": reads("toy_refcat", ("htm7",), **more)}


def found_shards() -> dict[str, Any]:
    """Return the shards as a prerequisite."""
    return {"shards": finds("toy_refcat", ("skypix",))}


def _add(label: str, dimensions: tuple[str, ...], *output: str, **inputs: Any) -> None:
    """Add a task to this module; `output` are the dimensions of its output, by default those of the task."""
    made = {"output": makes(f"made_{label}", output or dimensions, multiple=bool(output))}
    name = f"{label[0].upper()}{label[1:]}"
    globals()[f"{name}Task"] = task(
        name, inputs | made, Listing, module=__name__, dimensions=dimensions, fields=_fields()
    )


PIXEL, COARSE = (*VISIT, "healpix8"), ("instrument", "visit", "healpix6")
_add("toVisit", VISIT, **isr())
_add("bySkymap", SKYMAP, **image(), **templates(), **found_shards())
_add("byTract", TRACT, **image(), **templates())
_add("afterTract", TRACT, made=reads("made_byTract", TRACT, minimum=1))
_add("overTracts", VISIT, made=reads("made_afterTract", TRACT))
_add("edgeTract", TRACT, made=reads("made_toVisit", VISIT), **templates())
_add(
    "byPatch",
    PATCH,
    **image(),
    template=reads("toy_template", PATCHES, minimum=1, deferGraphConstraint=True),
)
_add("tractFinds", TRACT, **image(), found=finds("toy_template", PATCHES))
_add("findsTwo", PATCH, **image(), **templates(), **found_shards())
_add("noDetector", ("instrument", "visit", "skymap", "tract"), **image(), **templates())
_add("noVisit", (*EXPOSURE, "skymap", "tract", "patch"), **isr(), **templates())
_add("noRegion", EXPOSURE, **isr(), **found_shards(), templates=finds("toy_template", PATCHES))
_add("byPixel", PIXEL, **image())
_add("overPixels", VISIT, made=reads("made_byPixel", PIXEL))
_add("alsoPixel", ("instrument", "visit", "healpix8"), made=reads("made_byPixel", PIXEL))
_add("visitPixel", COARSE, made=reads("made_byPixel", PIXEL))
_add("manyPixels", VISIT, *VISIT, "htm9", **image())
_add("patchPixel", (*PATCHES, "healpix8"), **templates())
_add("pixelPatch", PIXEL, **image(), **templates())
_add("byShard", (*VISIT, "htm7"), made=reads("made_toVisit", VISIT), **shards())
_add("laterShard", (*VISIT, "htm7"), made=reads("made_toVisit", VISIT), **shards(deferGraphConstraint=True))
_add("patchShard", (*PATCHES, "htm7"), **templates(), **shards(deferGraphConstraint=True))
_add("shardPatch", (*PATCH, "htm7"), **image(), **templates())
_add(
    "byDay",
    ("instrument", "detector", "day_obs"),
    **isr(),
    bias=finds("bias", ("instrument", "detector"), isCalibration=True),
)
_add("onlyDay", ("instrument", "day_obs"), **isr())
_add("byGroup", GROUP_DETECTOR, **image(), known=reads("toy_known", GROUP_DETECTOR))
_add("visitOfGroup", VISIT, made=reads("made_byGroup", GROUP_DETECTOR, minimum=1))

_add("perTract", VISIT, "skymap", "tract", **image(), **templates())
_add("tractOnly", ("skymap", "tract"), made=reads("made_perTract", ("skymap", "tract")))
_add("patchesOfTract", PATCH, made=reads("made_byTract", TRACT), **templates())
_add(
    "asksByTract",
    TRACT,
    **image(),
    **templates(),
    shards=finds("toy_refcat", ("skypix",), lookupFunction=find_shards),
)
_add("exposureMap", (*EXPOSURE, "skymap"), **isr(), **templates())
_add("rawPixel", PIXEL, made=reads("made_toVisit", VISIT))
_add("combine", ("instrument", "detector"), **isr())

_TO_VISIT = ("toVisit", "patchShard")

PIPELINES = {
    "skymap": ("bySkymap",),
    "tracts": ("byTract", "afterTract", "overTracts"),
    "perTract": ("perTract", "tractOnly"),
    "patchesOfTract": ("byTract", "patchesOfTract"),
    "asksByTract": ("asksByTract",),
    "exposureMap": ("exposureMap",),
    "rawPixels": ("toVisit", "rawPixel"),
    "edgeTracts": ("toVisit", "edgeTract"),
    "patches": ("byPatch",),
    "tractFinds": ("tractFinds",),
    "findsTwo": ("findsTwo",),
    "noDetector": ("noDetector",),
    "noVisit": ("noVisit",),
    "noRegion": ("noRegion",),
    "pixels": ("byPixel", "overPixels", "manyPixels"),
    "visitPixels": ("byPixel", "visitPixel"),
    "patchPixels": ("patchPixel", "byPixel"),
    "sameDetector": ("byPixel", "alsoPixel"),
    "pixelPatches": ("pixelPatch",),
    "shards": ("byShard", "toVisit"),
    "laterShards": ("laterShard", "toVisit"),
    "patchShards": ("patchShard",),
    "shardPatches": ("shardPatch",),
    "days": ("byDay", "onlyDay"),
    "groups": ("byGroup", "visitOfGroup"),
}


def write_dimensions(rig: Rig) -> None:
    """Add the pipelines of this module, each after the tasks whose outputs it reads."""
    for name, labels in PIPELINES.items():
        before = ["Isr"] if set(labels) & set(_TO_VISIT) else ["Isr", "Calibrate"]
        tasks = {each.lower(): f"toycam.{each}Task" for each in before}
        tasks |= {label: f"{__name__}.{label[0].upper()}{label[1:]}Task" for label in labels}
        rig.add_pipeline(name, tasks)


def make_tracts(source: Path, root: Path) -> Path:
    """Copy a central repo, and add two tracts: one that overlaps the first, one around RA 0."""
    shutil.copytree(source, root)
    with Butler.from_config(str(root), writeable=True) as butler:
        insert = butler.registry.insertDimensionData
        for tract, left in ((1, RA - 0.1), (2, -0.5)):
            region = box(left, DEC - 1.0, left + 2.0, DEC + 1.0)
            insert("tract", {"skymap": "toy", "id": tract, "region": region})
            for k in range(4):
                x, y = left + 0.5 * (k % 2), DEC - 0.5 + 0.5 * (k // 2)
                patch = {"skymap": "toy", "tract": tract, "id": k, "cell_x": k % 2, "cell_y": k // 2}
                insert("patch", patch | {"region": box(x, y, x + 0.5, y + 0.5)})
            for k in (0, 1):  # the others have no template
                ids = {"skymap": "toy", "tract": tract, "patch": k, "band": "r"}
                butler.put({"patch": k}, "toy_template", ids, run=f"{NAME}/templates")
    return root
