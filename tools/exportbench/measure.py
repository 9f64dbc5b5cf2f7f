# SPDX-License-Identifier: BSD-3-Clause
"""Measures exports of the outputs of one exposure to a central repo."""

import gc
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic_core
import sqlalchemy
from lsst.daf.butler import (
    Butler,
    Config,
    DatasetRef,
    DatasetType,
    DimensionRecord,
    FileDataset,
    Timespan,
)
from lsst.sphgeom import ConvexPolygon, LonLat, UnitVector3d
from preloadbench.survey import CAMERA, OBSERVED, SurveyCam

from ppdaemon.clock import Clock
from ppdaemon.config import ExportConfig
from ppdaemon.durable import sync
from ppdaemon.middleware.butler.datafiles import LocatedFile, copied, located
from ppdaemon.middleware.export.exporter import CentralExporter
from ppdaemon.middleware.export.manifest import MANIFEST, SpoolKey
from ppdaemon.middleware.export.mark import ID, mark_datastore
from ppdaemon.middleware.export.outputs import SelectedOutputs
from ppdaemon.middleware.export.register import Registrar
from ppdaemon.middleware.export.rows import RowIngest
from ppdaemon.middleware.export.spool import write_spool
from ppdaemon.middleware.run.engine import PipelineRun, RunResult

_DICT = "StructuredDataDict"
_VISIT = ("instrument", "visit", "detector")
_EXPOSURE = 2026112200001
_RUN = f"{CAMERA}/prompt/output-2026-11-22/Alerts/bench"
_CHAIN = f"{CAMERA}/prompt/output-2026-11-22"
_GROUP = "2026-11-22T03:25:00.000"

type _Rows = dict[str, list[dict[str, Any]]]
"""Rows by the name of the table."""


@dataclass(frozen=True, slots=True)
class Amounts:
    """The outputs of the exposure."""

    detectors: int
    images: int
    others: int
    image_bytes: int
    other_bytes: int

    @property
    def datasets(self) -> int:
        """Number of all datasets."""
        return self.detectors * (self.images + self.others)


# --- the repos ----------------------------------------------------------------


def _make_repo(root: Path, amounts: Amounts, url: str = "") -> Path:
    config = {"registry": {"db": url or "sqlite:///<butlerRoot>/gen3.sqlite3"}}
    Butler.makeRepo(str(root), config=Config(config))
    with Butler.from_config(str(root), writeable=True) as butler:
        SurveyCam(detectors=amounts.detectors).register(butler.registry)
        for dataset_type in _types(butler, amounts):
            butler.registry.registerDatasetType(dataset_type)
        mark_datastore(butler)
    return root


def _types(butler: Butler, amounts: Amounts) -> list[DatasetType]:
    names = [f"image_{k}" for k in range(amounts.images)] + [f"catalog_{k}" for k in range(amounts.others)]
    return [DatasetType(name, _VISIT, _DICT, universe=butler.dimensions) for name in names]


def _make_local(root: Path, amounts: Amounts) -> Path:
    """Make the repo that has the outputs of all detectors."""
    _make_repo(root, amounts)
    files = root.with_name(f"{root.name}-files")
    files.mkdir()
    with Butler.from_config(str(root), writeable=True) as butler:
        insert = butler.registry.insertDimensionData
        day = {"instrument": CAMERA, "id": 20261122}
        insert("day_obs", day)
        insert("group", {"instrument": CAMERA, "name": _GROUP})
        common = {"instrument": CAMERA, "physical_filter": OBSERVED, "day_obs": 20261122}
        insert(
            "exposure",
            common | {"id": _EXPOSURE, "obs_id": "bench", "group": _GROUP, "timespan": Timespan(None, None)},
        )
        insert("visit", common | {"id": _EXPOSURE, "name": "bench", "timespan": Timespan(None, None)})
        butler.collections.register(_RUN)
        datasets = []
        for detector in range(amounts.detectors):
            place = {"instrument": CAMERA, "visit": _EXPOSURE, "detector": detector}
            insert("visit_detector_region", place | {"region": _square(detector)})
            data_id = butler.registry.expandDataId(instrument=CAMERA, visit=_EXPOSURE, detector=detector)
            for dataset_type in _types(butler, amounts):
                is_image = dataset_type.name.startswith("image")
                path = files / f"{dataset_type.name}-{detector}.yaml"
                path.write_bytes(os.urandom(amounts.image_bytes if is_image else amounts.other_bytes))
                datasets.append(FileDataset(str(path), DatasetRef(dataset_type, data_id, run=_RUN)))
        butler.ingest(*datasets, transfer="move")
    files.rmdir()
    return root


def _square(detector: int) -> ConvexPolygon:
    corners = [(0, 0), (0.2, 0), (0.2, 0.2), (0, 0.2)]
    return ConvexPolygon([UnitVector3d(LonLat.fromDegrees(10 + x + 0.3 * detector, y)) for x, y in corners])


def _records(butler: Butler, *elements: str) -> list[DimensionRecord]:
    return [
        record
        for element in elements
        for record in butler.query_dimension_records(element, instrument=CAMERA, limit=None)
    ]


# --- spooling -----------------------------------------------------------------


class _NoTasks(PipelineRun):
    """A run whose outputs are in the worker's repo."""

    def __call__(self, before_task: Callable[[str], None]) -> RunResult:
        raise NotImplementedError


@dataclass(slots=True)
class _Local:
    """The outputs by detector."""

    files: dict[int, list[LocatedFile]]
    records: list[DimensionRecord]
    """Those of the whole exposure."""
    regions: dict[int, DimensionRecord]
    """That of each detector."""

    @classmethod
    def read(cls, root: Path) -> "_Local":
        """Locate all outputs."""
        with Butler.from_config(str(root)) as butler:
            refs = [
                ref
                for name in butler.collections.get_info(_RUN, include_summary=True).dataset_types or ()
                for ref in butler.query_datasets(
                    name, collections=_RUN, limit=None, with_dimension_records=True
                )
            ]
            files: dict[int, list[LocatedFile]] = {}
            for file in located(butler, refs):
                files.setdefault(int(file.refs[0].dataId["detector"]), []).append(file)
            regions = {int(r.dataId["detector"]): r for r in _records(butler, "visit_detector_region")}
            return cls(files, _records(butler, "day_obs", "group", "exposure", "visit"), regions)

    def key(self, detector: int) -> SpoolKey:
        """Return the key of a detector's spool."""
        return SpoolKey(instrument=CAMERA, group=_GROUP, detector=detector, attempt=1)

    def spool(self, folder: Path, detector: int) -> Path:
        """Write a detector's spool as a worker does."""
        outputs = SelectedOutputs(tuple(self.files[detector]), _NoTasks())
        records = [*self.records, self.regions[detector]]
        return write_spool(folder, self.key(detector), outputs.fill, records, {_CHAIN: (_RUN,)})

    def spool_as_before(self, folder: Path, detector: int) -> None:
        """Write a detector's spool as before there were checksums: one file after the other is synced."""
        key = self.key(detector)
        partial = folder / f"{key.folder}.part"
        partial.mkdir(parents=True)
        files = [
            {
                "name": file.path.name,
                "size_bytes": file.path.stat().st_size,
                "formatter": file.formatter,
                "refs": [ref.to_simple() for ref in file.refs],
            }
            for file in copied(self.files[detector], partial)
        ]
        manifest = {
            "key": key,
            "chains": {_CHAIN: (_RUN,)},
            "files": files,
            "records": [record.to_simple() for record in (*self.records, self.regions[detector])],
        }
        (partial / MANIFEST).write_bytes(pydantic_core.to_json(manifest, exclude_none=True))
        for path in (*partial.iterdir(), partial):
            sync(path)
        partial.rename(folder / key.folder)
        sync(folder)

    def write_as_one(self, folder: Path, detector: int) -> None:
        """Write the bytes of a detector's files to one file, and sync it: no spool can take less."""
        path = folder / str(detector)
        with path.open("xb", buffering=0) as stream:
            for file in self.files[detector]:
                stream.write(file.path.read_bytes())
        sync(path)


def measure_held(local: Path, disk: Path, detectors: Iterable[int]) -> tuple[list[float], ...]:
    """Return the milliseconds for which each worker is held by its spool: as before, now, and at least."""
    outputs, samples = _Local.read(local), ([], [], [])
    ways: Sequence[Callable[[Path, int], object]] = (
        outputs.spool_as_before,
        outputs.spool,
        outputs.write_as_one,
    )
    for detector in detectors:
        # In turns, so that all meet the same load.
        for number, way in enumerate(ways):
            folder = disk / f"spool-{number}"
            folder.mkdir(exist_ok=True)
            begin = time.perf_counter()
            way(folder, detector)
            samples[number].append((time.perf_counter() - begin) * 1e3)
    return samples


# --- exports ------------------------------------------------------------------


def _transfer(central: str, local: str, detectors: Sequence[int]) -> float:
    """Be a worker that exports its detectors one by one; runs in its own process.

    Return the CPU seconds of the transfers, without its queries for what there is to transfer.
    """
    cpu_s = 0.0
    with (
        Butler.from_config(central, writeable=True) as target,
        Butler.from_config(local, writeable=False) as source,
    ):
        for detector in detectors:
            refs = [
                ref
                for name in source.collections.get_info(_RUN, include_summary=True).dataset_types or ()
                for ref in source.query_datasets(
                    name, collections=_RUN, detector=detector, instrument=CAMERA, with_dimension_records=True
                )
            ]
            begin = time.process_time()
            target.transfer_from(source, refs, transfer="copy", transfer_dimensions=True)
            cpu_s += time.process_time() - begin
    return cpu_s


@contextmanager
def _timed(samples: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds of a block, and the CPU seconds of the process, its threads included."""
    begin, cpu_begin = time.perf_counter(), time.process_time()
    yield
    samples[f"{name}_s"] = samples.get(f"{name}_s", 0.0) + time.perf_counter() - begin
    samples[f"{name}_cpu_s"] = samples.get(f"{name}_cpu_s", 0.0) + time.process_time() - cpu_begin


def measure_database(
    folder: Path, ramdisk: Path, local: Path, amounts: Amounts, databases: Callable[[], str]
) -> dict[str, float]:
    """Export all outputs in each way, each to a new repo; `databases` returns the URL of a new database."""
    samples: dict[str, float] = {}
    _measure_direct(_make_repo(folder / "direct", amounts, databases()), local, amounts, samples)
    outputs = _Local.read(local)
    central, apart, empty = (
        _make_repo(folder / name, amounts, databases()) for name in ("batched", "apart", "bare")
    )
    with _exporter(apart, outputs, ramdisk / folder.name, amounts) as (export, _), _timed(samples, "apart"):
        export()
    with (
        _exporter(central, outputs, folder / "spool", amounts) as (export, before),
        _timed(samples, "batched"),
        _split(samples),
    ):
        export()
    share = (amounts.detectors - 1) / amounts.detectors
    samples["direct_s"] *= share
    samples["direct_cpu_s"] *= share
    for unit in ("s", "cpu_s"):
        samples[f"registered_{unit}"] = samples[f"batched_{unit}"] - samples[f"copied_{unit}"]
        placed = samples[f"placed_{unit}"] + samples[f"removed_{unit}"]
        samples[f"rows_{unit}"] = samples[f"registered_{unit}"] - placed
    _measure_bare(empty, before, _tables(central), samples)
    return samples


@contextmanager
def _exporter(
    central: Path, outputs: _Local, folder: Path, amounts: Amounts
) -> Iterator[tuple[Callable[[], None], _Rows]]:
    """Spool all outputs into a folder, and export the first; yield what exports the others, and the rows
    until then: the first export of a night makes run and chain, and the exporter is connected.
    """
    spools = [outputs.spool(folder, detector) for detector in range(amounts.detectors)]
    config = ExportConfig(images=("image_.*",))
    with closing(
        CentralExporter(str(central), Clock(), "bench", folder.with_name("refused"), config=config)
    ) as exporter:
        first = exporter.export(spools[:1])

        def export() -> None:
            found = first.datasets + exporter.export(spools[1:]).datasets
            if found != amounts.datasets:
                raise RuntimeError(f"{found} of {amounts.datasets} datasets were exported")

        before = _tables(central)
        gc.collect()  # the garbage of others is not collected within a sample
        yield export, before
        files = sum(len(names) for below, _, names in central.walk() if below != central)
        if files != amounts.datasets:  # a name that two of them have is no error of the registry
            raise RuntimeError(f"{files} files of {amounts.datasets} datasets are in the datastore")


def _measure_direct(central: Path, local: Path, amounts: Amounts, samples: dict[str, float]) -> None:
    cores = os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")
    with context.Pool(cores) as pool:
        pool.starmap(_nothing, [()] * cores)  # they have started and imported
        shares = [(str(central), str(local), range(k, amounts.detectors, cores)) for k in range(cores)]
        with _timed(samples, "direct"):
            cpu_s = pool.starmap(_transfer, shares)
    samples["direct_cpu_s"] = sum(cpu_s)


def _nothing() -> None:
    """Import this module in a process of a pool."""


_PARTS = {
    "copied": (Registrar, "_copy"),
    "placed": (RowIngest, "_move"),
    "removed": (CentralExporter, "_remove"),
}
"""What an export does with files, by the name of the sample: it copies them, renames them and syncs their
folders, deletes the spool. The rest of it are rows."""


@contextmanager
def _split(samples: dict[str, float]) -> Iterator[None]:
    """Measure what an export does with files, and count its transactions that write."""
    writing = set()
    begun: dict[int, float] = {}
    samples["transactions"] = samples["statements_s"] = 0.0

    def timed[**P, R](name: str, function: Callable[P, R]) -> Callable[P, R]:
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            with _timed(samples, name):
                return function(*args, **kwargs)

        return call

    def execute(connection: Any, cursor: Any, statement: str, *args: Any) -> None:
        if statement.lstrip().split(" ", 1)[0].upper() in ("INSERT", "UPDATE", "DELETE"):
            writing.add(id(connection))
        begun[id(connection)] = time.perf_counter()

    def executed(connection: Any, *args: Any) -> None:
        samples["statements_s"] += time.perf_counter() - begun.pop(id(connection))

    def commit(connection: Any) -> None:
        if id(connection) in writing:
            writing.discard(id(connection))
            samples["transactions"] += 1

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", execute)
    sqlalchemy.event.listen(sqlalchemy.Engine, "after_cursor_execute", executed)
    sqlalchemy.event.listen(sqlalchemy.Engine, "commit", commit)
    with ExitStack() as undo:
        for name, (owner, attribute) in _PARTS.items():
            function = getattr(owner, attribute)
            samples[f"{name}_s"] = samples[f"{name}_cpu_s"] = 0.0
            undo.callback(setattr, owner, attribute, function)
            setattr(owner, attribute, timed(name, function))
        yield
    sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", execute)
    sqlalchemy.event.remove(sqlalchemy.Engine, "after_cursor_execute", executed)
    sqlalchemy.event.remove(sqlalchemy.Engine, "commit", commit)


# --- bare inserts -------------------------------------------------------------


def _engine(repo: Path) -> sqlalchemy.Engine:
    url = str(Config(str(repo / "butler.yaml"))["registry", "db"]).replace("<butlerRoot>", str(repo))
    engine = sqlalchemy.create_engine(url)
    if engine.dialect.name == "sqlite":
        # As the Butler does; SQLite checks no foreign keys otherwise.
        sqlalchemy.event.listen(engine, "connect", lambda each, _: each.execute("PRAGMA foreign_keys = ON"))
    return engine


def _tables(repo: Path) -> _Rows:
    """Return all rows of all tables."""
    engine, metadata = _engine(repo), sqlalchemy.MetaData()
    metadata.reflect(engine)
    with engine.connect() as connection:
        rows = {
            table.name: [dict(row._mapping) for row in connection.execute(sqlalchemy.select(table))]
            for table in metadata.sorted_tables
        }
    engine.dispose()
    return rows


def _measure_bare(repo: Path, before: _Rows, after: _Rows, samples: dict[str, float]) -> None:
    """Insert the rows that the export has added into the same tables of another repo, in one transaction."""
    engine, metadata = _engine(repo), sqlalchemy.MetaData()
    metadata.reflect(engine)
    first, second = _added(_tables(repo), before), _added(before, after)
    with engine.begin() as connection:
        _insert(connection, metadata, first)
    gc.collect()
    with _timed(samples, "bare"), engine.begin() as connection:
        _insert(connection, metadata, second)
    engine.dispose()
    samples["bare_rows"] = sum(map(len, second.values()))


def _added(before: _Rows, after: _Rows) -> _Rows:
    """Return the rows of each table with a new primary key or, of the mark, with none."""
    added = {}
    for name, rows in after.items():
        known = {json.dumps(row, default=str, sort_keys=True) for row in before[name]}
        new = [row for row in rows if json.dumps(row, default=str, sort_keys=True) not in known]
        added[name] = [row for row in new if row.get("name") != ID]
    return added


def _insert(connection: sqlalchemy.Connection, metadata: sqlalchemy.MetaData, added: _Rows) -> None:
    for table in metadata.sorted_tables:
        if added[table.name]:
            connection.execute(table.insert(), added[table.name])


def make_local(folder: Path, amounts: Amounts) -> Path:
    """Make the outputs of the exposure on the RAM disk, as workers have them."""
    shutil.rmtree(folder / "local", ignore_errors=True)
    return _make_local(folder / "local", amounts)
