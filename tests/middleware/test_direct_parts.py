# SPDX-License-Identifier: BSD-3-Clause
"""Parts of objects in memory are those that a Butler reads from a file."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import astropy.units as u
import numpy as np
import pytest
from astropy.table import Table
from astropy.wcs import WCS
from enginecompare import described
from lsst.daf.butler import Butler, ButlerConfig, DatasetRef, DatasetType, Quantum
from lsst.images import Box, MaskedImage
from lsst.pipe.base import PipelineTask

from ppdaemon.demo.tasks.planes import make_image, sky_projection
from ppdaemon.middleware.direct.files import DatasetWriter
from ppdaemon.middleware.direct.memory import MemoryButler
from ppdaemon.middleware.direct.quanta import QuantumStep
from ppdaemon.middleware.direct.writing import BackgroundWriter

NUMBERS = itertools.count()
ROWS, COLUMNS = 40, 50
PART = Box.factory[5:15, 10:40]


def image() -> MaskedImage:
    """Return an image with a projection, a unit, planes and metadata."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.cdelt = ["RA---TAN", "DEC--TAN"], [150.0, 2.0], [-1e-4, 1e-4]
    pixels = np.arange(ROWS * COLUMNS, dtype=np.float32).reshape(ROWS, COLUMNS)
    projection = sky_projection(wcs)
    return make_image(
        pixels, pixels + 1.0, {"BAD": pixels > 900}, u.nJy, projection=projection, metadata={"note": "made"}
    )


def table() -> Table:
    return Table({"a": np.arange(4.0), "b": ["one", "two", "three", "four"]})


type Request = tuple[str | None, dict[str, Any] | None]


class Rig:
    """A dataset in a repo and, as an output of one quantum and an input of another, in memory."""

    def __init__(
        self, butler: Butler, config: str, folder: Path, storage: str, content: Any, *, exported: bool = False
    ):
        self.butler = butler
        name = f"made{next(NUMBERS)}"  # the repo has the dataset types of other tests, too
        dataset_type = DatasetType(name, butler.dimensions.empty, storage)
        butler.registry.registerDatasetType(dataset_type)
        self.ref = butler.put(content, name)
        task: Any = SimpleNamespace(label="task", immediate=(), deferred=frozenset({name}), log=None)
        maker, self.reader, self.last = (
            QuantumStep(
                task,
                Quantum(
                    taskName="task",
                    taskClass=PipelineTask,
                    dataId=self.ref.dataId,
                    inputs={dataset_type: [self.ref]} if reads else {},
                    outputs={} if reads else {dataset_type: [self.ref]},
                ),
                frozenset(),
            )
            for reads in (False, True, True)
        )
        self.files = folder / "files"
        self.memory = MemoryButler(
            self.butler.dimensions,
            {name: dataset_type},
            [maker, self.reader, self.last],
            lambda ref, parameters: None,
            lambda _: exported,
            10**9,
            BackgroundWriter(DatasetWriter(ButlerConfig(config), self.butler.dimensions), self.files),
        )
        self.memory.begin(maker)
        self.memory.put(content, self.ref)
        self.memory.end(maker)
        self.memory.begin(self.reader)

    def both(self, request: Request) -> tuple[Any, Any]:
        """Return what both Butlers answer to a request: an object, or the type of the exception."""
        component, parameters = request
        ref = self.ref if component is None else self.ref.makeComponentRef(component)
        return answer(self.memory.get, ref, parameters), answer(self.butler.get, ref, parameters)


type MakeRig = Callable[..., Rig]


@pytest.fixture(scope="module")
def butler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Butler, str]]:
    """Return the module's Butler, and its configuration."""
    config = str(tmp_path_factory.mktemp("parts") / "repo")
    with Butler.from_config(Butler.makeRepo(config), run="run") as butler:
        yield butler, config


@pytest.fixture
def make_rig(tmp_path: Path, butler: tuple[Butler, str]) -> MakeRig:
    """Return a function that creates a rig."""
    return partial(Rig, *butler, tmp_path)


def answer(get: Callable[..., Any], ref: DatasetRef, parameters: dict[str, Any] | None) -> Any:
    try:
        return get(ref, parameters=None if parameters is None else dict(parameters))
    except Exception as error:  # compared with that of the other Butler
        return type(error)


@pytest.mark.parametrize(
    "request_",
    [
        (None, None),
        (None, {"bbox": PART}),
        ("image", None),
        ("mask", None),
        ("image", {"bbox": PART}),
        ("mask", {"bbox": PART}),
        ("bbox", None),
        ("unit", None),
        ("sky_projection", None),
        ("components", None),
        ("components", {"components": ["image", "sky_projection"]}),
        ("components", {"components": ["variance", "unit"], "bbox": PART}),
    ],
)
def test_a_part_of_an_image_is_the_same_in_memory_and_in_a_file(make_rig: MakeRig, request_: Request) -> None:
    rig = make_rig("MaskedImageV2", image())
    ours, theirs = rig.both(request_)
    assert not isinstance(theirs, type), theirs
    assert described(ours) == described(theirs)


@pytest.mark.parametrize(
    "request_",
    [
        (None, {"rows": 3}),
        (None, {"components": ["image"]}),
        ("components", {"components": []}),
        ("components", {"components": ["psf"]}),
        ("bbox", {"bbox": PART}),
    ],
)
def test_what_a_file_does_not_have_is_refused_in_memory_too(make_rig: MakeRig, request_: Request) -> None:
    ours, theirs = make_rig("MaskedImageV2", image()).both(request_)
    assert isinstance(theirs, type)
    assert ours is theirs


@pytest.mark.parametrize(
    "request_", [(None, {"columns": ["a"]}), ("columns", None), ("rowcount", None), ("schema", None)]
)
def test_parts_of_a_table_are_those_of_its_file(make_rig: MakeRig, request_: Request) -> None:
    rig = make_rig("ArrowAstropy", table())
    ours, theirs = rig.both(request_)
    assert described(ours) == described(theirs)


def test_a_box_and_a_projection_need_no_file(make_rig: MakeRig) -> None:
    """The template task reads just these of an image, which may be large."""
    rig = make_rig("MaskedImageV2", image())
    assert rig.both(("bbox", None))[0] == Box.factory[0:ROWS, 0:COLUMNS]
    assert rig.both(("sky_projection", None))[0] is not None
    assert not rig.files.exists()


@pytest.mark.parametrize(
    ("storage", "content"),
    [("MaskedImageV2", image()), ("ImageV2", image().image), ("MaskV2", image().mask)],
)
@pytest.mark.parametrize("box", [PART, Box.factory[0:ROWS, 0:COLUMNS], Box.factory[39:40, 49:50]])
def test_a_cutout_needs_no_file_and_is_that_of_the_file(
    make_rig: MakeRig, storage: str, content: Any, box: Box
) -> None:
    """Tasks read one for each source; writing the image of a detector first takes seconds."""
    rig = make_rig(storage, content)
    ours, theirs = rig.both((None, {"bbox": box}))
    assert described(ours) == described(theirs)
    assert ours.bbox == theirs.bbox == box
    assert not rig.files.exists()
    for plane in (ours.image, ours.mask) if storage == "MaskedImageV2" else (ours,):
        plane.array[...] = 1  # a copy: the image is not changed
    assert described(rig.memory.get(rig.ref)) == described(content)


def test_the_last_cutout_does_not_keep_the_memory_of_the_image(make_rig: MakeRig) -> None:
    rig = make_rig("ImageV2", image().image)
    rig.memory.end(rig.reader)
    rig.memory.begin(rig.last)
    cutout = rig.memory.get(rig.ref, parameters={"bbox": PART})
    base = cutout.array if cutout.array.base is None else cutout.array.base
    assert base.nbytes == cutout.array.nbytes


@pytest.mark.parametrize("box", [Box.factory[30:50, 0:10], Box.factory[100:110, 100:110]])
def test_a_box_beyond_the_image_is_the_formatters_to_judge(make_rig: MakeRig, box: Box) -> None:
    ours, theirs = make_rig("MaskedImageV2", image()).both((None, {"bbox": box}))
    assert isinstance(theirs, type)
    assert ours is theirs


def test_an_image_is_written_once_for_several_parts_and_stays_in_memory(make_rig: MakeRig) -> None:
    rig = make_rig("MaskedImageV2", image())
    for part in (PART, Box.factory[0:3, 0:3]):
        ours, theirs = rig.both(("mask", {"bbox": part}))
        assert described(ours) == described(theirs)
    (file,) = rig.files.iterdir()
    file.write_bytes(b"")  # what is read as a whole does not come from there
    assert described(rig.memory.get(rig.ref)) == described(image())
    assert rig.memory.used_bytes > 0
    for reader in (rig.reader, rig.last):
        rig.memory.end(reader)
    assert rig.memory.used_bytes == 0


def test_an_exported_image_is_not_written_a_second_time(make_rig: MakeRig) -> None:
    rig = make_rig("MaskedImageV2", image(), exported=True)
    rig.both(("mask", {"bbox": PART}))
    for reader in (rig.reader, rig.last):
        rig.memory.end(reader)
    (output,) = rig.memory.outputs
    assert not output.unwritten
