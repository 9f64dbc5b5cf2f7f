# SPDX-License-Identifier: BSD-3-Clause
"""What a task reads in memory is what a Butler's files give, or a documented difference."""

import itertools
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import astropy.units as u
import lsst.images
import numpy as np
import pyarrow as pa
import pytest
from astropy.table import Column, MaskedColumn, Table
from astropy.units import imperial
from lsst.daf.butler import (
    Butler,
    ButlerConfig,
    DataCoordinate,
    DatasetProvenance,
    DatasetRef,
    DatasetType,
    Quantum,
    Timespan,
)
from lsst.daf.butler.formatters.parquet import add_pandas_index_to_astropy
from lsst.daf.butler.logging import ButlerLogRecord, ButlerLogRecords
from lsst.images import MaskedImage, MaskPlane, MaskSchema
from lsst.pex.config import Config, Field
from lsst.pipe.base import PipelineTask, QuantumSuccessCaveats, TaskMetadata
from lsst.utils.packages import Packages
from pandas import Categorical, DataFrame, MultiIndex, RangeIndex
from pandas import array as pandas_array

from ppdaemon.middleware.direct.files import DatasetWriter
from ppdaemon.middleware.direct.memory import MemoryButler
from ppdaemon.middleware.direct.quanta import QuantumStep
from ppdaemon.middleware.direct.writing import BackgroundWriter
from ppdaemon.middleware.run.engine import RunResult

_DOCUMENT = Path(__file__).parents[2] / "doc" / "operators" / "engines.rst"
_IN_MEMORY = {"ButlerLogRecords", "Config", "ImageV2", "MaskV2", "MaskedImageV2", "NumpyArray", "Packages"}
"""Classes that the tests of this module pass on in memory."""


class LimitsConfig(Config):
    limit = Field[float](doc="a limit", default=1.0)


def stars() -> Table:
    """Return a table with all that Parquet does not store."""
    table = Table(
        {
            "flux": np.arange(3.0) * u.nJy,
            "count": MaskedColumn([1, 2, 3], mask=[0, 1, 0]),
            "good": MaskedColumn([True, False, True], mask=[0, 1, 0]),
            "pair": MaskedColumn(np.ones((3, 2)), mask=[[0, 1], [0, 0], [1, 1]]),
            "name": ["a", "", "ccc"],
            "day": np.array(["2020-01-01"] * 3, dtype="M8[s]"),
        },
        meta={"epoch": "new", "LSST.BUTLER.ID": "of another dataset"},
    )
    table["flux"].format, table["flux"].description = "%.2f", "a flux"
    return table


def plain() -> Table:
    """Return a table that Parquet stores as it is."""
    table = Table(
        {
            "id": np.array([1, 2, -(2**62)]),
            "flux": np.array([1.5, np.nan, -np.inf]) * u.nJy,
            "width": np.arange(3, dtype="f4") * (u.arcsec / u.pix),
            "flags": np.array([0, 2**63, 1], dtype="u8"),
            "good": np.array([True, False, True]),
            "band": np.array(["g", "", "long"]),
        },
        meta={"epoch": "new", "count": 3, "LSST.BUTLER.ID": "of another dataset"},
    )
    table["flux"].description, table["flux"].format = "a flux, in: nJy", "%.2f"
    table["flux"].meta["ucd"] = "phot.flux"
    return table


def special() -> Table:
    """Return a table with texts, units and metadata that a file does not give back as they are."""
    table = plain()
    table["id"].unit, table["id"].description = u.dimensionless_unscaled, ""
    table["flags"].unit = u.Unit("")
    table["width"].unit = u.CompositeUnit(2.0, [], [])
    add_pandas_index_to_astropy(table, "id")
    return table


def of_unit(unit: u.UnitBase) -> Table:
    return Table({"a": np.arange(3.0) * unit})


def indexed(table: Table) -> Table:
    table.add_index("id")
    return table


def frame() -> DataFrame:
    """Return a table of pandas with objects in its cells and an index."""
    table = DataFrame(
        {
            "id": [7, 8],
            "count": pandas_array([1, None], dtype="Int64"),
            "good": pandas_array([True, None], dtype="boolean"),
            "near": [(1, 2), None],
            "band": Categorical(["g", "r"]),
        }
    ).set_index("id")
    table.attrs["epoch"] = "new"
    return table


def image() -> lsst.images.Image:
    image = lsst.images.Image(np.arange(12.0, dtype="f4").reshape(3, 4), unit=u.nJy)
    image.array[0, 0] = np.nan
    image.metadata["epoch"] = "new"
    return image


def masked_image() -> MaskedImage:
    return MaskedImage(image(), mask_schema=MaskSchema([MaskPlane("BAD", "bad")]))


def metadata() -> TaskMetadata:
    values = TaskMetadata()
    values["count"], values["good"], values["noise"] = 1, [True, False], float("nan")
    return values


def config() -> LimitsConfig:
    limits = LimitsConfig()
    limits.limit = 2.0
    return limits


def arrow() -> pa.Table:
    times = pa.array([1, None], pa.timestamp("s"))
    return pa.table(
        {"at": times, "band": pa.array(["g", "r"]).dictionary_encode()}, metadata={"epoch": "new"}
    )


def log() -> ButlerLogRecords:
    record = logging.LogRecord("a.task", logging.INFO, "task.py", 7, "%d stars", (3,), None)
    record.created = 0.0  # it would differ between the two logs
    return ButlerLogRecords([ButlerLogRecord.from_record(record)])


STRUCTURED = np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")])
INDEXED = MultiIndex.from_tuples([(1, "a"), (2, "b")], names=["one", "two"])
SHARED = [1, (2, 3)]

CASES: dict[str, tuple[str, Callable[[], Any]]] = {
    "astropy": ("ArrowAstropy", stars),
    "astropy, plain": ("ArrowAstropy", plain),
    "astropy, plain and empty": ("ArrowAstropy", lambda: plain()[:0]),
    "astropy, a slice": ("ArrowAstropy", lambda: plain()[::2]),
    "astropy, plain with special values": ("ArrowAstropy", special),
    "astropy, units that are not enabled": ("ArrowAstropy", lambda: of_unit(imperial.inch / u.s)),
    "astropy, units of its own": ("ArrowAstropy", lambda: of_unit(u.def_unit("fathom_", 6 * u.m))),
    "astropy, another unit of a known name": ("ArrowAstropy", lambda: of_unit(u.def_unit("deg", 3 * u.m))),
    "astropy, logarithmic units": ("ArrowAstropy", lambda: of_unit(u.mag(u.AB))),
    "astropy, texts with zeros": ("ArrowAstropy", lambda: Table({"a": ["a\0b", "c", "\0d"]})),
    "astropy, plain texts that end with zeros": ("ArrowAstropy", lambda: Table({"a": np.zeros(2, "U3")})),
    "astropy, plain texts without length": ("ArrowAstropy", lambda: Table({"a": np.zeros(2, "U0")})),
    "astropy, plain and indexed": ("ArrowAstropy", lambda: indexed(plain())),
    "astropy, empty": ("ArrowAstropy", lambda: stars()[:0]),
    "astropy from pandas": ("ArrowAstropy", lambda: frame()[["count", "good"]]),
    "astropy from columns": ("ArrowAstropy", lambda: {"a": np.arange(3)}),
    "pandas": ("DataFrame", frame),
    "pandas, a named range": ("DataFrame", lambda: DataFrame({"a": [1, 2]}, index=RangeIndex(2, name="i"))),
    "pandas, two indexes": ("DataFrame", lambda: DataFrame({"a": [1, 2]}, index=INDEXED)),
    "pandas, two levels": ("DataFrame", lambda: DataFrame({("g", "a"): [1], ("r", "a"): [2]})),
    "pandas from astropy": ("DataFrame", stars),
    "arrow": ("ArrowTable", arrow),
    "arrow from pandas": ("ArrowTable", frame),
    "arrow from astropy": ("ArrowTable", stars),
    "structured": ("ArrowNumpy", lambda: STRUCTURED),
    "masked and structured": ("ArrowNumpy", lambda: np.ma.MaskedArray(STRUCTURED, mask=[(True, False)])),
    "columns": ("ArrowNumpyDict", lambda: {"a": np.arange(3), "text": np.array([b"a", b"", b"cc"])}),
    "masked columns": ("ArrowNumpyDict", lambda: {"a": np.ma.MaskedArray([1, 2], mask=[0, 1])}),
    "text table": ("AstropyTable", lambda: stars()["flux", "count", "good", "pair", "name"]),
    "text table, bytes": ("AstropyTable", lambda: Table({"a": [b"x", b"y"]}, meta={"pair": (1, 2)})),
    "dictionary": ("StructuredDataDict", lambda: {"pair": (1, 2), 1: None, "nan": float("nan"), "set": {1}}),
    "dictionary, one list twice": ("StructuredDataDict", lambda: {"a": SHARED, "b": SHARED}),
    "dictionary, like numbers": ("StructuredDataDict", lambda: {"a": "1e5", "b": "yes", "c": 1e20}),
    "metadata": ("TaskMetadata", metadata),
    "number": ("int", lambda: 7),
    "timespan": ("Timespan", lambda: Timespan(None, None)),
    "array": ("NumpyArray", lambda: np.arange(12.0).reshape(3, 4)[:, ::2]),
    "masked array": ("NumpyArray", lambda: np.ma.MaskedArray([1, 2], mask=[0, 1])),
    "objects": ("NumpyArray", lambda: np.array([None, (1, 2)], dtype=object)),
    "image": ("ImageV2", image),
    "mask": ("MaskV2", lambda: masked_image().mask),
    "masked image": ("MaskedImageV2", masked_image),
    "configuration": ("Config", config),
    "packages": ("Packages", lambda: Packages({"numpy": np.__version__, "site": "7"})),
    "log": ("ButlerLogRecords", log),
}

_PLAIN = [
    make for name, (_, make) in CASES.items() if name.startswith(("astropy, plain", "astropy, a slice"))
]


NUMBERS = itertools.count()


class _Repo:
    """A Butler with files, and a direct engine's Butler with the same dataset types."""

    def __init__(self, butler: Butler, config: str, folder: Path):
        self.butler = butler
        self._writer = DatasetWriter(ButlerConfig(config), butler.dimensions)
        self._folder = folder

    def refs(self, storage: str) -> tuple[DatasetRef, DatasetRef]:
        """Return the refs of one dataset for the files and of one for the memory."""
        universe = self.butler.dimensions
        number = next(NUMBERS)  # the repo has the dataset types of other tests, too
        one, other = (DatasetType(f"{name}{number}", universe.empty, storage) for name in ("one", "other"))
        self.butler.registry.registerDatasetType(one)
        empty = DataCoordinate.make_empty(universe)
        return DatasetRef(one, empty, run="run"), DatasetRef(other, empty, run="run")

    def pass_on(
        self,
        content: Any,
        ref: DatasetRef,
        reads: Callable[[MemoryButler], Any],
        *,
        other_process: bool = False,
    ) -> Any:
        """Put a dataset in one quantum and read it in another one; return what that reads."""
        task: Any = SimpleNamespace(
            label="task", immediate=(ref.datasetType.name,), deferred=frozenset(), log="a_log"
        )
        empty, common = ref.dataId, {"taskName": "task", "taskClass": PipelineTask}
        maker, reader = (
            QuantumStep(task, Quantum(dataId=empty, **common, **edges), frozenset())  # type: ignore[arg-type]
            for edges in ({"outputs": {ref.datasetType: [ref]}}, {"inputs": {ref.datasetType: [ref]}})
        )
        memory, other = (
            MemoryButler(
                self.butler.dimensions,
                {ref.datasetType.name: ref.datasetType},
                [maker, reader],
                lambda ref, parameters: None,
                lambda name: False,
                10**9,
                BackgroundWriter(self._writer, self._folder),
            )
            for _ in range(2)
        )
        memory.begin(maker)
        memory.expect_single_reads()
        memory.put(content, ref, provenance=DatasetProvenance())
        if other_process:
            other.adopt(maker, memory.outputs_for_transfer(maker))
            memory = other
        memory.end(maker)
        memory.begin(reader)
        return reads(memory)

    @property
    def written(self) -> bool:
        """Whether the dataset was passed on in a file."""
        return self._folder.exists()


@pytest.fixture(scope="module")
def butler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Butler, str]]:
    """Return the module's Butler, and its configuration."""
    config = str(tmp_path_factory.mktemp("storage") / "repo")
    with Butler.from_config(Butler.makeRepo(config), writeable=True) as butler:
        butler.collections.register("run")
        yield butler, config


@pytest.fixture
def repo(tmp_path: Path, butler: tuple[Butler, str]) -> _Repo:
    return _Repo(*butler, tmp_path / "direct")


def described(content: Any) -> Any:
    """Return all properties of a dataset that a task can use, in a form that can be compared."""
    match content:
        case Table():
            columns = {name: described_column(column) for name, column in content.columns.items()}
            # The id of the dataset is another one.
            meta = {key: None if "BUTLER" in key else value for key, value in content.meta.items()}
            return type(content), meta, columns
        case DataFrame():
            cells = {name: [repr(cell) for cell in content[name]] for name in content.columns}
            types = [str(each) for each in content.dtypes]
            return cells, types, repr(content.index), content.columns.names, content.attrs
        case pa.Table():
            return content.schema.to_string(show_field_metadata=True), content.to_pylist()
        case np.ndarray():
            mask = repr(content.mask) if isinstance(content, np.ma.MaskedArray) else None
            return type(content), content.dtype, content.flags.writeable, repr(content), mask
        case MaskedImage():
            planes = [described(plane) for plane in (content.image, content.mask, content.variance)]
            return planes, dict(content.metadata)
        case lsst.images.Image():
            return described(content.array), content.unit, content.bbox, dict(content.metadata)
        case lsst.images.Mask():
            return described(content.array), content.schema, content.bbox
        case Config():
            return type(content), content.toDict()
        case TaskMetadata():
            return repr(content.model_dump())
        case ButlerLogRecords():
            return content.to_json_data()
        case Mapping():
            return type(content), [(repr(key), described(value)) for key, value in content.items()]
        case _:
            return type(content), repr(content)


def described_column(column: Any) -> Any:
    fill = repr(column.fill_value) if isinstance(column, MaskedColumn) else None
    info = column.info
    return described(np.asarray(column)), repr(column), fill, info.unit, info.format, info.description


@pytest.mark.parametrize(("storage", "make"), CASES.values(), ids=CASES.keys())
def test_what_a_task_reads_in_memory_equals_the_file(
    repo: _Repo, storage: str, make: Callable[[], Any]
) -> None:
    stored, passed = repo.refs(storage)
    repo.butler.put(deepcopy(make()), stored)
    read = repo.pass_on(make(), passed, lambda memory: memory.get(passed))
    assert described(read) == described(repo.butler.get(stored))
    assert repo.written == (storage not in _IN_MEMORY and make not in _PLAIN)


@pytest.mark.parametrize("case", ["astropy", "astropy, plain", "masked image", "dictionary"])
def test_what_another_process_has_put_equals_the_file(repo: _Repo, case: str) -> None:
    storage, make = CASES[case]
    stored, passed = repo.refs(storage)
    repo.butler.put(make(), stored)
    read = repo.pass_on(make(), passed, lambda memory: memory.get(passed), other_process=True)
    assert described(read) == described(repo.butler.get(stored))


@pytest.mark.parametrize(
    ("case", "requested"),
    [
        ("astropy", {"parameters": {"columns": ["co*", "name"]}}),
        ("pandas", {"parameters": {"columns": ["count"]}}),
        ("pandas, a named range", {"storageClass": "ArrowAstropy"}),
        ("pandas, two indexes", {"storageClass": "ArrowNumpyDict", "parameters": {"columns": ["two", "a"]}}),
        ("pandas from astropy", {"parameters": {"columns": ["name"]}}),
        ("astropy", {"storageClass": "DataFrame"}),
        ("astropy, plain", {"parameters": {"columns": ["fl*"]}}),
        ("astropy, plain", {"storageClass": "DataFrame"}),
        ("metadata", {"storageClass": "StructuredDataDict"}),
    ],
)
def test_a_part_or_another_class_read_in_memory_equals_that_of_the_file(
    repo: _Repo, case: str, requested: dict[str, Any]
) -> None:
    storage, make = CASES[case]
    stored, passed = repo.refs(storage)
    repo.butler.put(make(), stored)
    read = repo.pass_on(make(), passed, lambda memory: memory.get(passed, **requested))
    assert described(read) == described(repo.butler.get(stored, **requested))


@pytest.mark.parametrize("component", ["columns", "rowcount", "schema"])
def test_a_component_read_in_memory_equals_that_of_the_file(repo: _Repo, component: str) -> None:
    stored, passed = (ref.makeComponentRef(component) for ref in repo.refs("DataFrame"))
    repo.butler.put(frame(), stored.makeCompositeRef())
    read = repo.pass_on(frame(), passed.makeCompositeRef(), lambda memory: memory.get(passed))
    assert repr(read) == repr(repo.butler.get(stored))


@pytest.mark.parametrize(
    ("storage", "content"),
    [
        ("StructuredDataDict", {"flux": np.float64(1.0)}),
        ("ArrowAstropy", Table({"near": np.array([None, (1, 2)], dtype=object)})),
        ("ArrowAstropy", Table({"a": [1]}, meta={"begin": object()})),
        ("ArrowAstropy", Table({"a": Column([1], description=5)})),
        ("ArrowAstropy", Table({"a\udc80": [1]})),
        ("ArrowAstropy", Table({"a": ["b\udc80"]})),
        ("DataFrame", DataFrame({"mixed": np.array([1, "a"], dtype=object)})),
    ],
)
def test_what_cannot_be_written_fails_at_the_put_as_with_files(
    repo: _Repo, storage: str, content: Any
) -> None:
    stored, passed = repo.refs(storage)
    with pytest.raises(RuntimeError, match="Failed to serialize") as with_files:
        repo.butler.put(content, stored)
    with pytest.raises(RuntimeError) as in_memory:
        repo.pass_on(content, passed, lambda memory: memory.get(passed))
    changing = re.compile(r"(other|one)\d+|id=[-0-9a-f]+")
    assert changing.sub("", str(in_memory.value)) == changing.sub("", str(with_files.value))


def test_a_put_does_not_change_the_table_of_the_task(repo: _Repo) -> None:
    """With files, it has the provenance of its dataset afterwards."""
    stored, passed = repo.refs("ArrowAstropy")
    table = Table({"a": [1]}, meta={"epoch": "new"})
    repo.pass_on(table, passed, lambda memory: memory.get(passed))
    assert table.meta == {"epoch": "new"}
    repo.butler.put(table, stored)
    assert "LSST.BUTLER.ID" in table.meta


def test_only_an_image_that_was_read_from_a_file_has_provenance(repo: _Repo) -> None:
    stored, passed = repo.refs("MaskedImageV2")
    repo.butler.put(masked_image(), stored)
    read = repo.pass_on(masked_image(), passed, lambda memory: memory.get(passed))
    assert read.butler_provenance is None
    assert repo.butler.get(stored).butler_provenance is not None


def test_caveats_of_metadata_that_were_read_from_a_file_are_reported(repo: _Repo) -> None:
    """`TaskMetadata` returns integers as floats, and an unknown combination of flags is no float."""
    stored, _ = repo.refs("TaskMetadata")
    flags = QuantumSuccessCaveats
    caveats = flags.PARTIAL_OUTPUTS_ERROR.value | flags.UNPROCESSABLE_DATA.value | flags.NO_WORK.value
    repo.butler.put(TaskMetadata.from_dict({"quantum": {"caveats": caveats}}), stored)
    assert RunResult.of(None, [("detect", repo.butler.get(stored))]).caveats == "partial outputs of detect"


def test_the_classes_that_are_passed_on_in_memory_are_documented() -> None:
    (sentence,) = re.findall(r"Passed on in memory: (.*?)\.\s", _DOCUMENT.read_text(), re.DOTALL)
    assert set(re.findall(r"``(\w+)``", sentence)) == _IN_MEMORY
