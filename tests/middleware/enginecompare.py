# SPDX-License-Identifier: BSD-3-Clause
"""Runs one visit with each engine and compares the outputs."""

import json
import pickle
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from astropy.table import Table
from lsst.images import GeneralizedImage, Image, Mask, MaskedImage
from lsst.images.serialization import open_archive
from toycam import DAY, MakeRig, Rig
from toyscripted import write_scripted

from ppdaemon.messages import Process, StageReached
from ppdaemon.middleware.butlerwork import ButlerWork
from ppdaemon.middleware.export.manifest import read_manifest
from ppdaemon.states import Outcome

EXPOSURE = DAY * 100000 + 1
PAIR = ("separable", "direct")
ENGINES = (*PAIR, "pipetask")
_PIPETASK = pytest.mark.slow
"""A process of ``pipetask`` takes 3 s of CPU time; some tests of each of its paths are in ``make test``."""
EACH_ENGINE = pytest.mark.parametrize("kind", [*PAIR, pytest.param("pipetask", marks=_PIPETASK)])
"""Runs a test with each engine."""
COMPARED = pytest.mark.parametrize(
    "engines", [PAIR, pytest.param(("separable", "pipetask"), marks=_PIPETASK)], ids=PAIR[1:] + ENGINES[2:]
)
"""Runs a test that compares engines, with ``direct`` and with ``pipetask``."""
_CHANGING = re.compile(r"id=[-0-9a-f]{36}|took [0-9.]+ seconds")


@dataclass(frozen=True)
class VisitResult:
    """The result of a visit."""

    outcome: Outcome
    reason: str
    retriable: bool
    pipeline: str
    failed: str
    contents: dict[tuple[str, str, str], Any]
    """Content of each dataset, by type, data ID and run; of metadata and logs only what
    does not change from run to run."""
    records: dict[str, int]
    """How many dimension records are exported, by element."""
    reports: list[str]

    @property
    def types(self) -> set[str]:
        return {name for name, _, _ in self.contents}


def comparable_content(name: str, path: Path) -> Any:
    """Return the part of a file's content that must be the same for all engines."""
    if path.suffix == ".fits":
        with open_archive(path.as_uri()) as reader:  # as a path its percent signs would be decoded
            return described(reader.read())
    if path.suffix == ".parq":
        table = pyarrow.parquet.read_table(path)
        return table.to_pydict(), sorted(table.schema.metadata)
    if path.suffix == ".pickle":
        return {column: values.tolist() for column, values in pickle.loads(path.read_bytes()).items()}
    text = path.read_text()
    if name.endswith("_metadata"):
        return sorted(keys(json.loads(text)))
    if name.endswith("_log"):
        records = json.loads(text).get("records", [])
        contexts = {tuple(sorted(record["MDC"].items())) for record in records}
        # The order in which missing inputs are logged differs between processes.
        return sorted(_CHANGING.sub("", record["message"]) for record in records), contexts
    # Packages are those that this process has imported so far.
    return None if name in ("preload_metrics", "promptPreload_metrics", "packages") else text


def described(content: Any) -> Any:
    """Return all of an object, in a form that can be compared."""
    if isinstance(content, MaskedImage):
        planes = [described(plane) for plane in (content.image, content.mask, content.variance)]
        return type(content), planes, _about(content)
    if isinstance(content, (Image, Mask)):
        return type(content), content.array.tolist(), _about(content)
    if isinstance(content, Table):
        return type(content), content.colnames, [list(content[name]) for name in content.colnames]
    if isinstance(content, Mapping):
        return {name: described(each) for name, each in content.items()}
    return content


def _about(content: GeneralizedImage) -> tuple[Any, ...]:
    unit = getattr(content, "unit", None)
    return content.bbox, unit, str(content.sky_projection), dict(content.metadata)


def keys(value: Any, above: str = "") -> Iterator[str]:
    """Return the names in nested dictionaries."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from keys(below, f"{above}.{key}")
    else:
        yield above


def start_worker(
    rigs: MakeRig,
    kind: str,
    *,
    action: str = "",
    write: Callable[[Rig], None] = write_scripted,
    butler: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    central: Path | None = None,
    **overrides: Any,
) -> tuple[Rig, ButlerWork]:
    """Return a worker with an engine."""
    engine = {"kind": kind, "no_return": ["associate"]} | (settings or {})
    overrides |= {"scripted:action": action} if action else {}
    where = () if central is None else (central,)
    rig, worker = rigs(*where, engine=engine, pipelines={"overrides": overrides}, export={"types": [".*"]})
    if butler:
        rig.config = rig.config.model_copy(
            update={"butler": rig.config.butler.model_copy(update=butler)}  # type: ignore[union-attr]
        )
        worker._config = rig.config.butler  # type: ignore[assignment]
    write(rig)
    return rig, worker


def run_worker(
    rig: Rig,
    worker: ButlerWork,
    ran_by: str,
    *,
    detector: int = 1,
    main: str = "Scripted",
    before: str = "",
    snaps: Sequence[int] = (1,),
    sal: dict[str, Any] | None = None,
    header: dict[str, Any] | None = None,
) -> VisitResult:
    """Process a visit in a worker, and read its spool; the engine named in `ran_by` must run it."""
    worker.prepare(rig.order(detector, main=main, before=before, nimages=len(snaps), **(sal or {})))
    for snap in snaps:
        raw = rig.raw(detector, seq_num=snap, CURINDEX=snap, MAXINDEX=len(snaps), **(header or {}))
        worker.ingest(raw)
    done = worker.process(Process(exposures=tuple(DAY * 100000 + snap for snap in snaps)))
    assert done.engine == ran_by
    manifest = read_manifest(Path(done.spool))
    contents = {}
    for file in manifest.files:
        (ref,) = file.refs
        if ref.datasetType.name == "prompt_provenance":
            continue  # not written by pipetask; compared in test_middleware_consumers
        where = (ref.datasetType.name, str(sorted(ref.dataId.dataId.items())), ref.run)
        assert where not in contents
        contents[where] = comparable_content(where[0], Path(done.spool, file.name))
    elements = [record.definition for record in manifest.records]
    records = {name: elements.count(name) for name in sorted(set(elements))}
    reports = [
        fact.stage if isinstance(fact, StageReached) else f"no return: {fact.what}" for fact in rig.reports
    ]
    return VisitResult(
        done.outcome, done.reason, done.retriable, done.pipeline, manifest.failed, contents, records, reports
    )


def process_visit(rigs: MakeRig, kind: str, *, ran_by: str = "", **options: Any) -> VisitResult:
    """Process a visit with an engine; for options see `start_worker` and `run_worker`."""
    names = ("detector", "main", "before", "snaps", "sal", "header")
    visit = {name: options.pop(name) for name in names if name in options}
    return run_worker(*start_worker(rigs, kind, **options), ran_by or kind, **visit)


def compare_engines(rigs: MakeRig, engines: Sequence[str], **visit: Any) -> VisitResult:
    """Process a visit with several engines; check that all results are equal, and return one."""
    first, *others = (process_visit(rigs, kind, **visit) for kind in engines)
    for other in others:
        assert_equal(first, other)
    return first


def assert_equal(first: VisitResult, other: VisitResult) -> None:
    """Check that two engines have the same results, and name the first dataset that differs."""
    assert not (lost := first.contents.keys() ^ other.contents.keys()), lost
    for where, content in first.contents.items():
        assert content == other.contents[where], f"{where}: {content} is not {other.contents[where]}"
    assert first == other
