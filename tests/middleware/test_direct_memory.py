# SPDX-License-Identifier: BSD-3-Clause
"""When objects are copied, passed on and released in memory; prefetched inputs."""

import threading
import uuid
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from astropy.table import Table
from lsst.daf.butler import (
    ButlerConfig,
    DataCoordinate,
    DatasetProvenance,
    DatasetRef,
    DatasetType,
    DimensionUniverse,
    Quantum,
    StorageClass,
    StorageClassDelegate,
    StorageClassFactory,
)
from lsst.daf.butler.registry import ConflictingDefinitionError
from lsst.pipe.base import PipelineTask
from pandas import DataFrame

from ppdaemon.middleware.butler.formatters import read_dataset
from ppdaemon.middleware.direct import memory
from ppdaemon.middleware.direct.copies import deep_copy, size_bytes
from ppdaemon.middleware.direct.files import DatasetWriter, MemoryDataset
from ppdaemon.middleware.direct.memory import MemoryButler
from ppdaemon.middleware.direct.prefetch import Prefetcher
from ppdaemon.middleware.direct.quanta import QuantumStep
from ppdaemon.middleware.direct.writing import BackgroundWriter
from ppdaemon.testing.waiting import wait_until

pytest_plugins = ("columnsclass",)
pytestmark = pytest.mark.usefixtures("columns_class")

UNIVERSE = DimensionUniverse()
TYPES = {name: DatasetType(name, UNIVERSE.empty, "Columns") for name in ("one", "two", "three", "a_log")}
EMPTY = DataCoordinate.make_empty(UNIVERSE)


def ref_of(name: str) -> DatasetRef:
    return DatasetRef(TYPES[name], EMPTY, run="run")


def by_type(refs: Iterable[DatasetRef]) -> dict[DatasetType, list[DatasetRef]]:
    refs = list(refs)
    return {ref.datasetType: [each for each in refs if each.datasetType == ref.datasetType] for ref in refs}


def step(
    reads: Mapping[DatasetRef, int], makes: list[DatasetRef], deferred: str = "", *, single_reads: bool = True
) -> QuantumStep:
    """Make a quantum that reads each dataset that many times; without `single_reads`, at any time."""
    quantum = Quantum(
        taskName="task",
        taskClass=PipelineTask,
        dataId=EMPTY,
        inputs=by_type(reads),
        outputs=by_type(makes),
    )
    immediate = tuple(ref.datasetType.name for ref, count in reads.items() for _ in range(count))
    task: Any = SimpleNamespace(
        label="task",
        immediate=immediate,
        deferred=frozenset({deferred} - {""}),
        log="a_log",
        single_reads=single_reads,
    )
    return QuantumStep(task, quantum, frozenset())


class Unpicklable(dict[str, Any]):
    """A dictionary that its formatter cannot write."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("cannot be pickled")

    def __deepcopy__(self, memo: Any) -> "Unpicklable":
        return Unpicklable(self)


class MemorySetup:
    """A memory Butler and its background writer."""

    def __init__(
        self, folder: Path, steps: list[QuantumStep], exported: tuple[str, ...] = (), limit: int = 10**9
    ):
        self.writer = DatasetWriter(ButlerConfig(), UNIVERSE)
        self.background = BackgroundWriter(self.writer, folder)
        self.source: dict[DatasetRef, Any] = {}
        self.memory = MemoryButler(
            UNIVERSE,
            TYPES,
            steps,
            lambda ref, parameters: self.source[ref],
            exported.__contains__,
            limit,
            self.background,
        )


def begin(setup: MemorySetup, step: QuantumStep) -> None:
    setup.memory.begin(step)
    if step.task.single_reads:  # type: ignore[attr-defined]
        setup.memory.expect_single_reads()


def make(setup: MemorySetup, step: QuantumStep, **outputs: Any) -> None:
    """Run a quantum that puts datasets."""
    begin(setup, step)
    for name, content in outputs.items():
        (ref,) = step.quantum.outputs[name]
        setup.memory.put(content, ref)
    setup.memory.end(step)


def read(setup: MemorySetup, step: QuantumStep, ref: DatasetRef) -> Any:
    """Run a quantum that reads one dataset."""
    begin(setup, step)
    content = setup.memory.get(ref)
    setup.memory.end(step)
    return content


def pixels() -> np.ndarray[Any, Any]:
    return np.zeros(50_000)


def address_of(content: Any) -> int:
    """Return the address of the pixels."""
    return int(content["pixels"].ctypes.data)


def test_the_last_reader_gets_the_object_and_others_get_copies(tmp_path: Path) -> None:
    one = ref_of("one")
    first, second, third = step({}, [one]), step({one: 1}, []), step({one: 1}, [])
    setup, content = MemorySetup(tmp_path, [first, second, third]), {"pixels": pixels()}
    made_at = address_of(content)
    begin(setup, first)
    setup.memory.put(content, one)
    del content
    setup.memory.end(first)
    copy = read(setup, second, one)
    assert address_of(copy) != made_at
    copy["pixels"] += 1.0
    last = read(setup, third, one)
    assert (address_of(last), last["pixels"].sum()) == (made_at, 0.0)
    assert setup.memory.used_bytes == 0, "no quantum reads it any more"


@pytest.mark.parametrize(
    "keep",
    [
        lambda it: it,
        lambda it: it["pixels"],
        lambda it: it["pixels"][9:],
        lambda it: memoryview(it["pixels"]),
    ],
    ids=["all", "array", "view", "buffer"],
)
def test_an_object_that_its_task_still_references_is_copied_when_its_quantum_has_ended(
    tmp_path: Path, keep: Any
) -> None:
    one = ref_of("one")
    first, second = step({}, [one]), step({one: 1}, [])
    setup, content = MemorySetup(tmp_path, [first, second]), {"pixels": pixels()}
    made_at, kept = address_of(content), keep(content)
    begin(setup, first)
    setup.memory.put(content, one)
    del content
    setup.memory.end(first)
    assert address_of(read(setup, second, one)) != made_at
    assert kept is not None


def test_a_view_of_a_larger_array_is_copied(tmp_path: Path) -> None:
    one, whole = ref_of("one"), pixels()
    first, second = step({}, [one]), step({one: 1}, [])
    setup = MemorySetup(tmp_path, [first, second])
    make(setup, first, one={"pixels": whole[9:]})
    whole += 1.0
    assert read(setup, second, one)["pixels"].sum() == 0.0


def test_a_weakly_referenced_array_is_copied(tmp_path: Path) -> None:
    one = ref_of("one")
    first, second = step({}, [one]), step({one: 1}, [])
    setup, content = MemorySetup(tmp_path, [first, second]), {"pixels": pixels()}
    kept = weakref.ref(content["pixels"])
    begin(setup, first)
    setup.memory.put(content, one)
    del content
    setup.memory.end(first)
    assert kept() is None
    assert read(setup, second, one)["pixels"].sum() == 0.0


def test_several_datasets_of_a_type_may_be_one_object_that_changes_between_puts(tmp_path: Path) -> None:
    refs = [DatasetRef(TYPES["one"], EMPTY, run=f"run{k}") for k in range(3)]
    first, second = step({}, refs), step(dict.fromkeys(refs, 1), [], single_reads=False)
    setup, content = MemorySetup(tmp_path, [first, second]), {"pixels": pixels()}
    begin(setup, first)
    for k, ref in enumerate(refs):
        content["pixels"][:] = k
        setup.memory.put(content, ref)
    setup.memory.end(first)
    setup.memory.begin(second)
    assert [setup.memory.get(ref)["pixels"][0] for ref in refs] == [0.0, 1.0, 2.0]


def test_a_read_after_the_last_expected_one_fails(tmp_path: Path) -> None:
    one = ref_of("one")
    first, second = step({}, [one]), step({one: 1}, [])
    setup = MemorySetup(tmp_path, [first, second])
    make(setup, first, one={"pixels": [1]})
    begin(setup, second)
    assert setup.memory.get(one) == {"pixels": [1]}
    with pytest.raises(FileNotFoundError, match="was released after its last expected read"):
        setup.memory.get(one)


def test_a_read_before_the_task_is_known_returns_a_copy(tmp_path: Path) -> None:
    one = ref_of("one")
    first, second = step({}, [one]), step({one: 1}, [])
    setup = MemorySetup(tmp_path, [first, second])
    make(setup, first, one={"pixels": [1]})
    setup.memory.begin(second)
    setup.memory.get(one)["pixels"].append(2)
    setup.memory.expect_single_reads()
    assert setup.memory.get(one) == {"pixels": [1]}


def test_an_object_that_is_still_to_be_written_is_copied_for_readers(tmp_path: Path) -> None:
    one = ref_of("one")
    first, second = step({}, [one]), step({one: 1}, [])
    setup, content = MemorySetup(tmp_path, [first, second], exported=("one",)), {"pixels": [1]}
    make(setup, first, one=content)
    read(setup, second, one)["pixels"].append(2)
    (dataset,) = setup.memory.outputs
    assert dataset.content == {"pixels": [1]}


def test_objects_that_may_share_memory_are_copied_while_another_is_needed(tmp_path: Path) -> None:
    one, two = ref_of("one"), ref_of("two")
    first = step({}, [one, two])
    second, third = step({one: 1}, []), step({two: 1}, [])
    setup, shared = MemorySetup(tmp_path, [first, second, third]), [1]
    make(setup, first, one={"pixels": shared}, two={"pixels": shared})
    read(setup, second, one)["pixels"].append(2)
    assert read(setup, third, two) == {"pixels": [1]}


def test_a_task_that_may_read_again_gets_copies(tmp_path: Path) -> None:
    one = ref_of("one")
    first, second = step({}, [one]), step({one: 1}, [], single_reads=False)
    setup = MemorySetup(tmp_path, [first, second])
    make(setup, first, one={"pixels": [1]})
    setup.memory.begin(second)
    setup.memory.get(one)["pixels"].append(2)
    assert setup.memory.get(one) == {"pixels": [1]}
    setup.memory.end(second)
    assert setup.memory.used_bytes == 0


def test_changes_after_a_put_do_not_reach_readers(tmp_path: Path) -> None:
    one = ref_of("one")
    first, second = step({}, [one], single_reads=False), step({one: 1}, [])
    setup, content = MemorySetup(tmp_path, [first, second]), {"pixels": [1]}
    setup.memory.begin(first)
    setup.memory.put(content, one)
    content["pixels"].append(2)
    setup.memory.end(first)
    assert read(setup, second, one) == {"pixels": [1]}


def test_an_object_that_cannot_be_copied_is_written_at_the_put(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError

    monkeypatch.setattr(memory, "deep_copy", refuse)
    one = ref_of("one")
    first, second = step({}, [one], single_reads=False), step({one: 1}, [])
    setup, content = MemorySetup(tmp_path, [first, second]), {"pixels": [1]}
    setup.memory.begin(first)
    setup.memory.put(content, one)
    content["pixels"].append(2)
    setup.memory.end(first)
    assert read(setup, second, one) == {"pixels": [1]}


def test_a_dataset_without_readers_is_not_written(tmp_path: Path) -> None:
    first = step({}, [ref_of("one")])
    make(MemorySetup(tmp_path, [first], limit=1), first, one={"text": "long"})
    assert not list(tmp_path.iterdir())


def test_a_skipped_quantum_releases_its_inputs(tmp_path: Path) -> None:
    one = ref_of("one")
    first, second, third = step({}, [one]), step({one: 1}, []), step({one: 1}, [])
    setup, content = MemorySetup(tmp_path, [first, second, third]), {"pixels": [1]}
    make(setup, first, one=content)
    setup.memory.end(second)
    assert read(setup, third, one) == content
    assert setup.memory.used_bytes == 0


def test_a_deferred_reader_may_read_any_number_of_times(tmp_path: Path) -> None:
    one = ref_of("one")
    first, second = step({}, [one]), step({one: 0}, [], deferred="one")
    setup, content = MemorySetup(tmp_path, [first, second]), {"pixels": [1]}
    make(setup, first, one=content)
    begin(setup, second)
    handle = setup.memory.getDeferred(one)
    handle.get()["pixels"].append(2)
    assert handle.get() == {"pixels": [1]}
    setup.memory.end(second)
    with pytest.raises(FileNotFoundError):
        handle.get()


def test_a_dataset_that_was_not_put_is_not_stored(tmp_path: Path) -> None:
    one, two, outside = ref_of("one"), ref_of("two"), ref_of("three")
    first = step({}, [one, two])
    setup = MemorySetup(tmp_path, [first, step({one: 1, two: 1}, [])])
    make(setup, first, one={})
    assert setup.memory.stored_many([one, two, outside]) == {one: True, two: False, outside: True}


def test_a_dataset_is_put_once(tmp_path: Path) -> None:
    one = ref_of("one")
    first = step({}, [one])
    setup = MemorySetup(tmp_path, [first])
    make(setup, first, one={})
    with pytest.raises(ConflictingDefinitionError):
        make(setup, first, one={})


def test_an_object_of_a_wrong_type_is_refused_at_the_put(tmp_path: Path) -> None:
    first = step({}, [ref_of("one")])
    with pytest.raises(TypeError):
        make(MemorySetup(tmp_path, [first]), first, one=7)


def test_a_dataset_beyond_the_memory_limit_is_passed_through_a_file(tmp_path: Path) -> None:
    one = ref_of("one")
    first, second = step({}, [one]), step({one: 1}, [])
    setup = MemorySetup(tmp_path, [first, second], limit=1)
    make(setup, first, one={"text": "long"})
    assert [path.name for path in tmp_path.iterdir()] == [f"{one.id}.pickle"]
    assert setup.memory.used_bytes == 0
    assert read(setup, second, one) == {"text": "long"}


class Slow:
    """A writer that waits until it may proceed."""

    def __init__(self) -> None:
        self.started, self.proceed = threading.Event(), threading.Event()

    def write(self, content: Any, ref: Any, folder: Path, provenance: Any) -> str:
        self.started.set()
        assert self.proceed.wait(60)
        if content == "bad":
            raise ValueError("cannot be written")
        return f"file of {content}"

    def writes_plain(self, ref: Any) -> bool:
        return True


@pytest.fixture
def slow() -> Iterator[Slow]:
    writer = Slow()
    yield writer
    writer.proceed.set()


def pending_dataset(content: str) -> Any:
    return SimpleNamespace(ref=content, content=content, provenance=None, file=None)


def test_the_background_writer_begins_when_allowed_and_finishes_its_file(tmp_path: Path, slow: Slow) -> None:
    background: Any = BackgroundWriter(slow, tmp_path)  # type: ignore[arg-type]
    first, second = pending_dataset("one"), pending_dataset("two")
    background.offer(first)
    background.offer(second)
    assert not slow.started.is_set()
    background.allow()
    assert slow.started.wait(60)
    threading.Timer(0.05, slow.proceed.set).start()
    background.finish()
    assert first.file == "file of one"
    assert all(each.name != "background-writer" for each in threading.enumerate())


def test_the_background_writer_leaves_images_that_stay_uncompressed(tmp_path: Path, slow: Slow) -> None:
    slow.proceed.set()
    background: Any = BackgroundWriter(slow, tmp_path, lambda ref, size: ref == "two")  # type: ignore[arg-type]
    datasets = [MemoryDataset(ref, ref) for ref in ("one", "two")]  # type: ignore[arg-type]
    background.allow()
    for dataset in datasets:
        background.offer(dataset)
    wait_until(lambda: datasets[1].uncompressed is not None)
    background.finish()
    assert [dataset.file for dataset in datasets] == ["file of one", None]


def test_the_background_writer_skips_a_dataset_that_a_reader_had_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    monkeypatch.setattr(memory, "deep_copy", refuse)
    one, content = ref_of("one"), {"text": "x" * 2_000_000}
    first, second = step({}, [one]), step({one: 1}, [])
    setup = MemorySetup(tmp_path, [first, second], exported=("one",))
    make(setup, first, one=content)
    assert read(setup, second, one) == content
    setup.background.allow()
    wait_until(lambda: not setup.background._queue)
    setup.background.finish()
    (dataset,) = setup.memory.outputs
    assert dataset.file is not None
    assert read_dataset(dataset.file, one) == content


def test_a_table_is_written_with_provenance_and_not_changed(tmp_path: Path) -> None:
    table = Table({"a": [1.0, 2.0]}, meta={"epoch": "new"})
    ref = DatasetRef(DatasetType("stars", UNIVERSE.empty, "ArrowAstropy"), EMPTY, run="run")
    provenance = DatasetProvenance(quantum_id=uuid.uuid4())
    file = DatasetWriter(ButlerConfig(), UNIVERSE).write(table, ref, tmp_path, provenance)
    assert table.meta == {"epoch": "new"}
    assert b"LSST.BUTLER.QUANTUM" in file.path.read_bytes()


def test_a_dataset_that_the_background_writer_cannot_write_stays_unwritten(
    tmp_path: Path, slow: Slow
) -> None:
    background: Any = BackgroundWriter(slow, tmp_path)  # type: ignore[arg-type]
    slow.proceed.set()
    bad = pending_dataset("bad")
    background.offer(bad)
    background.allow()
    assert slow.started.wait(60)
    background.finish()
    assert bad.file is None


def test_calibrations_are_read_once_and_copied_for_each_reader() -> None:
    one, read = ref_of("one"), []

    def get(ref: DatasetRef) -> dict[str, Any]:
        read.append(ref)
        return {"epoch": "new"}

    prefetcher = Prefetcher(1000)
    for _ in range(3):
        prefetcher.read({one: 2}, get)
        for _ in range(2):
            content, found = prefetcher.pop(one)
            assert found
            assert content == {"epoch": "new"}
            content["epoch"] = "changed"
        assert prefetcher.pop(one) == (None, False)
        prefetcher.discard_unread()
    assert read == [one]


def test_a_calibration_that_cannot_be_copied_is_read_for_each_reader() -> None:
    one, read = ref_of("one"), list[DatasetRef]()

    def get(ref: DatasetRef) -> Any:
        read.append(ref)
        return {"epoch": (each for each in "abc")}

    prefetcher = Prefetcher(1000)
    for _ in range(2):
        prefetcher.read({one: 2}, get)
        contents = [prefetcher.pop(one)[0]["epoch"] for _ in range(2)]
        assert [*map(next, contents)] == ["a", "a"]
    assert read == [one] * 4


class Flat:
    """An image to which there may be weak references."""

    def __init__(self) -> None:
        self.array = np.ones(100_000)


def test_a_calibration_that_is_cached_is_in_memory_once() -> None:
    one, read = ref_of("one"), list[weakref.ref[Flat]]()

    def get(ref: DatasetRef) -> Flat:
        content = Flat()
        read.append(weakref.ref(content))
        return content

    prefetcher = Prefetcher(2_000_000)
    for _ in range(2):
        assert prefetcher.read({one: 2}, get) == 1_600_000
        assert [each() for each in read] == [None], "no task gets the object that was read"
        for _ in range(2):
            content, found = prefetcher.pop(one)
            assert found
            assert np.all(content.array == 1)
            content.array[:] = 2


def patch_ref(patch: int) -> DatasetRef:
    dimensions = UNIVERSE.conform(("patch",))
    data_id = DataCoordinate.standardize(skymap="sky", tract=1, patch=patch, dimensions=dimensions)
    return DatasetRef(DatasetType("template", dimensions, "Columns"), data_id, run="run")


def test_templates_stay_in_memory_as_long_as_visits_stay_in_a_field() -> None:
    here, elsewhere, read = patch_ref(1), patch_ref(2), list[DatasetRef]()

    def get(ref: DatasetRef) -> dict[str, Any]:
        read.append(ref)
        return {"epoch": "new"}

    def visit(prefetcher: Prefetcher, *refs: DatasetRef) -> int:
        """Return how many of the inputs were read from their files."""
        read.clear()
        prefetcher.read(dict.fromkeys(refs, 1), get)
        for ref in refs:
            content, found = prefetcher.pop(ref)
            assert (content, found) == ({"epoch": "new"}, True)
            content["epoch"] = "changed"
        prefetcher.discard_unread()
        return len(read)

    prefetcher = Prefetcher(1000)
    assert [visit(prefetcher, here) for _ in range(4)] == [1, 1, 0, 0]
    assert prefetcher.cached_bytes == 3
    assert visit(prefetcher, elsewhere) == 1
    assert prefetcher.cached_bytes == 0
    assert visit(prefetcher, here) == 1
    small, calibration = Prefetcher(7), ref_of("one")
    assert [visit(small, calibration, here) for _ in range(3)] == [2, 1, 0]
    other = ref_of("two")
    assert visit(small, other, here) == 2
    assert visit(small, calibration, other) == 0, "calibrations come first"


def test_inputs_beyond_the_limit_are_not_prefetched() -> None:
    prefetcher = Prefetcher(5)
    assert prefetcher.read({ref_of("one"): 1}, lambda ref: {"text": "longer"}) == 0
    assert prefetcher.cached_bytes == 0


def test_an_input_that_cannot_be_prefetched_is_left_to_its_task(caplog: pytest.LogCaptureFixture) -> None:
    def get(ref: DatasetRef) -> Any:
        raise OSError("broken file")

    prefetcher = Prefetcher(1000)
    assert prefetcher.read({ref_of("one"): 1}, get) == 0
    assert "its task reads it again: OSError: broken file" in caplog.text


def test_objects_in_cells_of_tables_are_copied() -> None:
    frame = DataFrame({"neighbors": [[1], [2, 3]]})
    table = Table({"neighbors": np.array([[1], [2, 3]], dtype=object)})
    for content, name in ((frame, "DataFrame"), (table, "ArrowAstropy")):
        deep_copy(content, StorageClassFactory().getStorageClass(name))["neighbors"][0].append(9)
        assert content["neighbors"][0] == [1]


def test_the_size_of_a_dataset_is_estimated() -> None:
    assert size_bytes({"a": np.zeros(100), "b": [np.zeros(10), "text"]}) == 884
    assert size_bytes(SimpleNamespace(image=SimpleNamespace(array=np.zeros(50)))) == 400
    assert size_bytes(MappingProxyType({"a": (np.zeros(1), {"text"}, frozenset({b"bytes"}), 1, None)})) == 17


class Stubborn:
    """Can be copied only by the delegate of its storage class."""

    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("not me")


class Lenient(StorageClassDelegate):
    def copy(self, inMemoryDataset: Any) -> Any:  # noqa: N803
        return "a copy"


def test_the_delegate_of_a_storage_class_may_copy_what_deepcopy_cannot() -> None:
    by_itself = StorageClass("Stubborn", pytype=Stubborn)
    with pytest.raises(NotImplementedError, match=r"Stubborn.* cannot be copied: not me"):
        deep_copy(Stubborn(), by_itself)
    assert (
        deep_copy(Stubborn(), StorageClass("Lenient", pytype=Stubborn, delegate=f"{__name__}.Lenient"))
        == "a copy"
    )


def test_a_data_frame_is_copied_with_the_objects_in_its_cells() -> None:
    table = DataFrame({"a": [[1], [2]]})
    deep_copy(table, StorageClassFactory().getStorageClass("DataFrame"))["a"][0].append(3)
    assert table["a"][0] == [1]


def test_outputs_are_transferred_to_another_process_in_memory_or_in_files(tmp_path: Path) -> None:
    """As a forked child returns its outputs, both ways."""
    one, two = ref_of("one"), ref_of("two")
    maker, reader = step({}, [one, two]), step({one: 1, two: 1}, [])
    for in_files in (False, True):
        child = MemorySetup(tmp_path / f"child-{in_files}", [maker, reader])
        begin(child, maker)
        child.memory.put({"text": "one"}, one)
        child.memory.put({"text": "two"}, two)
        outputs = child.memory.outputs_for_transfer(maker, in_files=in_files)
        assert [each.file is None for each in outputs] == [not in_files] * 2
        parent = MemorySetup(tmp_path / "parent", [maker, reader])
        parent.memory.end(maker)
        parent.memory.adopt(maker, outputs)
        begin(parent, reader)
        assert (parent.memory.get(one), parent.memory.get(two)) == ({"text": "one"}, {"text": "two"})


def test_transferred_outputs_beyond_the_limit_are_written(tmp_path: Path) -> None:
    one = ref_of("one")
    maker, reader = step({}, [one]), step({one: 1}, [])
    child = MemorySetup(tmp_path / "child", [maker, reader])
    begin(child, maker)
    child.memory.put({"pixels": "x" * 1000}, one)
    parent = MemorySetup(tmp_path / "parent", [maker, reader], limit=100)
    parent.memory.adopt(maker, child.memory.outputs_for_transfer(maker))
    assert parent.memory.used_bytes == 0
    assert read(parent, reader, one) == {"pixels": "x" * 1000}


def test_an_output_of_a_child_that_does_not_fit_and_cannot_be_written_is_lost(tmp_path: Path) -> None:
    one, two = ref_of("one"), ref_of("two")
    maker, reader = step({}, [one, two]), step({one: 1, two: 1}, [])
    child, parent = (MemorySetup(tmp_path, [maker, reader], ("one",), limit) for limit in (10**9, 300_000))
    make(child, maker, one=Unpicklable({"pixels": np.zeros(50_000)}), two={"pixels": np.ones(1000)})
    parent.memory.adopt(maker, child.memory.outputs_for_transfer(maker))
    (lost,) = parent.memory.unwritten.values()
    assert lost.reason == "output one of task task cannot be written: TypeError: cannot be pickled"
    assert parent.memory.stored_many([one, two]) == {one: False, two: True}
    assert not parent.memory.outputs


@pytest.mark.parametrize(
    ("name", "kind"), [("one", "output"), ("a_log", "log"), ("task_metadata", "metadata")]
)
def test_a_lost_dataset_is_named_by_what_it_is(tmp_path: Path, name: str, kind: str) -> None:
    ref = DatasetRef(DatasetType(name, UNIVERSE.empty, "Columns"), EMPTY, run="run")
    setup = MemorySetup(tmp_path, [step({}, [ref])])
    setup.memory.lose(ref, "E: e")
    assert [each.reason for each in setup.memory.unwritten.values()] == [
        f"{kind} {name} of task task cannot be written: E: e"
    ]
