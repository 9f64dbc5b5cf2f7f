# SPDX-License-Identifier: BSD-3-Clause
"""Runs one visit with each engine and compares the outputs."""

import json
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet
from toycam import DAY, MakeRig, Rig
from toyscripted import write_scripted

from ppdaemon.messages import Process, StageReached
from ppdaemon.middleware.export.spool import read_manifest
from ppdaemon.states import Outcome

EXPOSURE = DAY * 100000 + 1
ENGINES = ("separable", "direct", "pipetask")
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
    return None if name == "preload_metrics" else text


def keys(value: Any, above: str = "") -> Iterator[str]:
    """Return the names in nested dictionaries."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from keys(below, f"{above}.{key}")
    else:
        yield above


def process_visit(
    rigs: MakeRig,
    kind: str,
    *,
    main: str = "Scripted",
    before: str = "",
    action: str = "",
    write: Callable[[Rig], None] = write_scripted,
    snaps: Sequence[int] = (1,),
    butler: dict[str, Any] | None = None,
    ran_by: str = "",
    settings: dict[str, Any] | None = None,
    sal: dict[str, Any] | None = None,
    **overrides: Any,
) -> VisitResult:
    """Process a visit with an engine, and read its spool."""
    engine = {"kind": kind, "no_return": ["associate"]} | (settings or {})
    overrides |= {"scripted:action": action} if action else {}
    rig, worker = rigs(engine=engine, pipelines={"overrides": overrides}, export={"types": [".*"]})
    if butler:
        rig.config = rig.config.model_copy(
            update={"butler": rig.config.butler.model_copy(update=butler)}  # type: ignore[union-attr]
        )
        worker._config = rig.config.butler  # type: ignore[assignment]
    write(rig)
    worker.prepare(rig.order(main=main, before=before, nimages=len(snaps), **(sal or {})))
    for snap in snaps:
        worker.ingest(rig.raw(seq_num=snap, CURINDEX=snap, MAXINDEX=len(snaps)))
    done = worker.process(Process(exposures=tuple(DAY * 100000 + snap for snap in snaps)))
    assert done.engine == (ran_by or kind)
    manifest = read_manifest(Path(done.spool))
    contents = {}
    for file in manifest.files:
        (ref,) = file.refs
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


def compare_engines(rigs: MakeRig, engines: Sequence[str] = ENGINES, **visit: Any) -> VisitResult:
    """Process a visit with several engines; check that all results are equal, and return one."""
    first, *others = (process_visit(rigs, kind, **visit) for kind in engines)
    for other in others:
        assert not (lost := first.contents.keys() ^ other.contents.keys()), lost
        for where, content in first.contents.items():
            assert content == other.contents[where], f"{where}: {content} is not {other.contents[where]}"
        assert first == other
    return first
