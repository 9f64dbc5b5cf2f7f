# SPDX-License-Identifier: BSD-3-Clause
"""DemoCam without pixels, its central repo, and tasks that take no time or pass on large images."""

import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

# CollectionType is public, though its package does not list it.
from lsst.daf.butler import (  # type: ignore[attr-defined]
    Butler,
    CollectionType,
    DatasetType,
    FormatterV2,
    Timespan,
)
from lsst.images import Image, MaskedImage
from lsst.pex.config import Field
from lsst.pipe.base import PipelineTask, PipelineTaskConfig, PipelineTaskConnections, Struct
from lsst.pipe.base.connectionTypes import Input, Output, PrerequisiteInput

from ppdaemon.demo.geometry import CAMERA_NAME, DETECTOR_COUNT, FILTER_BANDS
from ppdaemon.demo.instrument import DemoCam
from ppdaemon.demo.tasks.planes import PLANES
from ppdaemon.middleware.export.mark import mark_datastore

_DICT = "StructuredDataDict"
_IMAGE = "MaskedImageV2"
_EXPOSURE = ("instrument", "exposure", "detector")
_VISIT = ("instrument", "visit", "detector")
_BIAS = ("instrument", "detector")
_FLAT = (*_BIAS, "physical_filter")
_SKY_ADU, _NOISE_ADU = 1000.0, 10.0


class BlankFormatter(FormatterV2):
    """Read only the length of a raw, so that reading takes no time."""

    can_read_from_local_file: ClassVar[bool] = True
    default_extension: ClassVar[str] = ".fits"

    def read_from_local_file(self, path: str, component: str | None = None, expected_size: int = -1) -> Any:
        """Return the size in bytes."""
        return {"bytes": len(Path(path).read_bytes())}


class BlankCam(DemoCam):
    """DemoCam with raws that have a full header and a few pixels."""

    raw_definition = ("raw", _EXPOSURE, _DICT)

    def getRawFormatter(self, dataId: Any) -> type[FormatterV2]:  # noqa: D102, N802, N803
        return BlankFormatter


def make_central(root: Path) -> None:
    """Make a central repo with the instrument, and a bias and flats for each detector."""
    with Butler.from_config(Butler.makeRepo(str(root)), writeable=True) as butler:
        camera = BlankCam()
        camera.register(butler.registry)
        define = partial(DatasetType, storageClass=_DICT, universe=butler.dimensions)
        for dataset_type in (
            define("raw", _EXPOSURE),
            define("bias", _BIAS, isCalibration=True),
            define("flat", _FLAT, isCalibration=True),
        ):
            butler.registry.registerDatasetType(dataset_type)
        calibs = camera.makeCalibrationCollectionName()
        butler.collections.register(calibs, CollectionType.CALIBRATION)
        run = f"{calibs}/bench"
        butler.collections.register(run)
        refs = []
        for detector in range(DETECTOR_COUNT):
            data_id = {"instrument": CAMERA_NAME, "detector": detector}
            refs.append(butler.put({"level": 1}, "bias", data_id, run=run))
            for name in FILTER_BANDS:
                refs.append(butler.put({"level": 2}, "flat", data_id, physical_filter=name, run=run))
        butler.registry.certify(calibs, refs, Timespan(None, None))
        mark_datastore(butler)


def write_pipeline(folder: Path, name: str, tasks: Sequence[type[PipelineTask]] = ()) -> str:
    """Write a pipeline of tasks, or ``Five``, ``Twenty`` or ``Images``, to a file; return its path."""
    lines = [f"description: {name}", "tasks:"]
    lines += [f"  {task._DefaultName}: {task.__module__}.{task.__name__}" for task in tasks or _TASKS[name]]
    path = folder / f"{name}.yaml"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


# --- tasks -----------------------------------------------------------------


def make_task(
    module: dict[str, Any],
    name: str,
    dimensions: Sequence[str],
    connections: Mapping[str, Any],
    run: Callable[..., Struct],
    fields: Mapping[str, Any] | None = None,
) -> type[PipelineTask]:
    """Make a task with connections and configuration that can be imported by name from a module, given by
    its ``globals()``.
    """
    class_name = name[0].upper() + name[1:]
    edges = types.new_class(
        f"{class_name}Connections",
        (PipelineTaskConnections,),
        {"dimensions": dimensions},
        lambda namespace: namespace.update(connections),
    )
    config = types.new_class(
        f"{class_name}Config",
        (PipelineTaskConfig,),
        {"pipelineConnections": edges},
        lambda namespace: namespace.update(fields or {}),
    )
    task = type(
        f"{class_name}Task", (PipelineTask,), {"ConfigClass": config, "_DefaultName": name, "run": run}
    )
    for each in (edges, config, task):
        each.__module__ = module["__name__"]
        module[each.__name__] = each
    return task


def _raws_and_calibs() -> dict[str, Any]:
    calib = partial(PrerequisiteInput, doc="calibration", storageClass=_DICT, isCalibration=True)
    return {
        "raw": Input(name="raw", doc="raw", storageClass=_DICT, dimensions=_EXPOSURE),
        "bias": calib(name="bias", dimensions=_BIAS),
        "flat": calib(name="flat", dimensions=_FLAT),
    }


def _doing_nothing(outputs: Iterable[str]) -> Callable[..., Struct]:
    names = tuple(outputs)

    def run(self: PipelineTask, **inputs: Any) -> Struct:
        return Struct(**{name: {"inputs": len(inputs)} for name in names})

    return run


def _idle_tasks(name: str, output_counts: Sequence[int]) -> list[type[PipelineTask]]:
    """Make tasks that do nothing; each reads all outputs of the task before."""
    tasks, connections = [], _raws_and_calibs()
    for k, count in enumerate(output_counts):
        dimensions = _VISIT if k else _EXPOSURE
        outputs = {f"output{i}": f"{name}_{k}_{i}" for i in range(count)}
        for connection, dataset in outputs.items():
            connections[connection] = Output(
                name=dataset, doc="nothing", storageClass=_DICT, dimensions=dimensions
            )
        tasks.append(make_task(globals(), f"{name}{k}", dimensions, connections, _doing_nothing(outputs)))
        connections = {
            f"input{i}": Input(name=dataset, doc="nothing", storageClass=_DICT, dimensions=dimensions)
            for i, dataset in enumerate(outputs.values())
        }
    return tasks


@cache
def _exposed(rows: int, columns: int) -> MaskedImage:
    """Return an image of the sky; cached, so that making noise is not measured."""
    shape = rows, columns
    noise = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
    image = Image(_SKY_ADU + _NOISE_ADU * noise)
    variance = Image(np.full(shape, _NOISE_ADU**2, dtype=np.float32))
    return MaskedImage(image, variance=variance, mask_schema=PLANES)


def _expose(self: PipelineTask, raw: Any, bias: Any, flat: Any) -> Struct:
    return Struct(output=_exposed(self.config.rows, self.config.columns).copy())


def _change(self: PipelineTask, image: MaskedImage) -> Struct:
    """Make a new image, as most tasks do."""
    changed = image.copy()
    changed.image.array += 1.0
    return Struct(output=changed)


def _image_tasks(count: int) -> list[type[PipelineTask]]:
    """Make tasks that pass on an image."""
    edge = partial(dict, doc="image", storageClass=_IMAGE, dimensions=_EXPOSURE)
    size = {
        "rows": Field[int](doc="Rows of the image.", default=4000),
        "columns": Field[int](doc="Columns of the image.", default=4072),
    }
    first = _raws_and_calibs() | {"output": Output(**edge(name="image_0"))}
    tasks = [make_task(globals(), "image0", _EXPOSURE, first, _expose, size)]
    for k in range(1, count):
        edges = {
            "image": Input(**edge(name=f"image_{k - 1}")),
            "output": Output(**edge(name=f"image_{k}")),
        }
        tasks.append(make_task(globals(), f"image{k}", _EXPOSURE, edges, _change))
    return tasks


_TASKS: Mapping[str, Sequence[type[PipelineTask]]] = {
    "Five": _idle_tasks("five", (1, 2, 1, 1, 1)),
    # With raw, bias and flat these are 60 dataset types, metadata and logs not counted.
    "Twenty": _idle_tasks("twenty", (*[3] * 17, *[2] * 3)),
    "Images": _image_tasks(5),
}
