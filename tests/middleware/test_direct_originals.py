# SPDX-License-Identifier: BSD-3-Clause
"""Datasets of which each task gets a copy whose pages are shared until they are written."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lsst.daf.butler import StorageClass, StorageClassDelegate, StorageClassFactory
from lsst.images import Box, Image, MaskedImage, MaskPlane, MaskSchema
from pandas import DataFrame

from ppdaemon.middleware.direct.originals import Original
from ppdaemon.node.slots.memory import memory_bound

PLAIN = StorageClass("Plain", pytype=dict)
MB = 1_000_000


def random_bytes(count: int) -> np.ndarray:
    return np.frombuffer(os.urandom(count), np.uint8).copy()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def mappings() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:inputs")


def test_nobody_sees_what_is_written_to_a_copy() -> None:
    content = {"image": np.arange(MB), "small": np.arange(3), "text": ["a"]}
    original = Original(content, PLAIN)
    for _ in range(2):
        one, two = original.copy(), original.copy()
        for each in one, two, content:
            np.testing.assert_array_equal(each["image"], np.arange(MB))
            np.testing.assert_array_equal(each["small"], np.arange(3))
            assert each["text"] == ["a"]
        one["image"][7] = one["small"][1] = -1
        one["image"] += 1
        one["text"].append("b")
        content["image"][:] = 0
        assert two["image"][7] == 7
        content["image"][:] = np.arange(MB)


def test_copies_take_memory_only_where_they_are_written() -> None:
    original = Original({"image": random_bytes(100 * MB)}, PLAIN)
    before = memory_bound(os.getpid()).anonymous
    copies = [original.copy() for _ in range(3)]
    assert sum(int(each["image"].any()) for each in copies) == 3
    assert memory_bound(os.getpid()).anonymous - before < 10 * MB
    copies[0]["image"][: 50 * MB] = 0
    assert 40 * MB < memory_bound(os.getpid()).anonymous - before < 60 * MB


@pytest.mark.parametrize(
    "array",
    [
        random_bytes(MB).view(">i8").reshape(50, -1, 5),
        np.arange(MB // 8).view("M8[ms]"),
        np.zeros(MB // 12, [("id", "i8"), ("flux", "f4")]),
        np.asfortranarray(random_bytes(MB).reshape(1000, 1000)),
        random_bytes(MB).reshape(1000, 1000)[::2, 3:],
        np.array(["star", "galaxy"] * MB),
        np.array([["object"], 1] * MB, dtype=object),
        np.ma.masked_array(random_bytes(MB), mask=random_bytes(MB) > 9),
        random_bytes(MB).view(np.bool_),
    ],
    ids=["wrong-endian", "times", "records", "fortran", "view", "text", "objects", "masked", "bool"],
)
@pytest.mark.parametrize("writeable", [True, False])
def test_all_kinds_of_arrays_are_copied_as_they_are(array: np.ndarray, writeable: bool) -> None:
    array = array.copy("K")
    array.flags.writeable = writeable
    copy = Original({"array": array}, PLAIN).copy()["array"]
    assert (type(copy), copy.dtype, copy.shape) == (type(array), array.dtype, array.shape)
    assert copy.strides == array.copy("K").strides
    assert copy.flags.writeable
    assert copy.tolist() == array.tolist()


def test_what_is_one_object_stays_one() -> None:
    array = np.arange(MB)
    copy = Original({"a": array, "b": [array, array]}, PLAIN).copy()
    assert copy["a"] is copy["b"][0] is copy["b"][1]


def test_an_image_is_copied_with_all_of_its_planes() -> None:
    image = Image(np.random.default_rng(1).normal(size=(500, 400)), bbox=Box.factory[10:510, 20:420])
    masked = MaskedImage(image, mask_schema=MaskSchema([MaskPlane("BAD", "bad"), None]))
    masked.variance.array[:] = 2.0
    masked.mask.set("BAD", image.array > 1)
    storage = StorageClassFactory().getStorageClass("MaskedImageV2")
    original = Original(masked, storage)
    one, two = original.copy(), original.copy()
    one.image.array[:] = 0
    one.mask.clear()
    one.metadata["changed"] = True
    for plane in ("image", "mask", "variance"):
        np.testing.assert_array_equal(getattr(two, plane).array, getattr(masked, plane).array)
    assert two.mask.array.any()
    assert (two.bbox, dict(two.metadata)) == (masked.bbox, {})
    assert not two.image.array.flags.owndata, "its pages are those of the original"


class Other(StorageClassDelegate):
    def copy(self, inMemoryDataset: Any) -> Any:  # noqa: N803
        return {name: each.copy() for name, each in inMemoryDataset.items()}


@pytest.mark.parametrize(
    ("content", "storage"),
    [
        ({"image": np.ones(MB)}, StorageClass("Other", pytype=dict, delegate=f"{__name__}.Other")),
        (DataFrame({"a": np.ones(MB)}), StorageClassFactory().getStorageClass("DataFrame")),
        ({"small": np.ones(3)}, PLAIN),
    ],
)
def test_what_is_copied_in_another_way_needs_no_file(content: Any, storage: StorageClass) -> None:
    before = descriptors()
    original = Original(content, storage)
    assert original.copy() is not original.copy()
    assert [*map(list, original.copy())] == [*map(list, content)]
    assert descriptors() == before


def test_nothing_is_left_of_an_original_but_its_copies() -> None:
    before = descriptors(), mappings()
    original = Original({"image": np.arange(MB)}, PLAIN)
    copy = original.copy()["image"]
    assert mappings() == before[1] + 2
    del original
    assert mappings() == before[1] + 1
    assert copy[5] == 5
    del copy
    assert (descriptors(), mappings()) == before


def test_a_forked_process_changes_only_its_own() -> None:
    original = Original({"image": np.arange(MB)}, PLAIN)
    copy = original.copy()["image"]
    pid = os.fork()
    if pid == 0:
        copy[:] = 0
        os._exit(int(original.copy()["image"][5] != 5))
    assert os.waitpid(pid, 0)[1] == 0
    assert copy[5] == original.copy()["image"][5] == 5


def test_what_cannot_be_copied_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="cannot be copied"):
        Original({"image": np.ones(MB), "stream": (each for each in "abc")}, PLAIN)
