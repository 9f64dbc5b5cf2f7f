# SPDX-License-Identifier: BSD-3-Clause
"""Two hosts export at the same moment: the same visit, the same runs, the same chain."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from centrals import CHAIN, FIRST, ON_POSTGRES, Central, outputs
from lsst.daf.butler import Butler
from toycam import NAME

from ppdaemon.clock import Clock
from ppdaemon.messages import Exported
from ppdaemon.middleware.export.exporter import CentralExporter
from ppdaemon.middleware.export.manifest import MANIFEST
from ppdaemon.testing.waiting import wait_until

pytest_plugins = ("toyfixtures", "dbfixtures")

TIMEOUT_S = 40.0
PATH = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)])


@contextmanager
def rival(
    central: Central, refused: Path, manner: str, spools: list[Path]
) -> Iterator[subprocess.Popen[str]]:
    """Run another exporter; its Butler is open, and it waits for `proceed`."""
    script = Path(__file__).with_name("rival.py")
    with subprocess.Popen(
        [sys.executable, script, central.root, refused, manner, *spools],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": PATH},
    ) as process:
        try:
            assert read_line(process) == "open"
            yield process
        finally:
            process.kill()


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def proceed(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def begin_both(central: Central, first: subprocess.Popen[str], second: subprocess.Popen[str]) -> None:
    """Let the first do everything except the commit, and the second wait for its locks."""
    proceed(first)
    assert read_line(first) == "holding"
    proceed(second)
    wait_until(lambda: waiting_for_locks(central), TIMEOUT_S)


def waiting_for_locks(central: Central) -> bool:
    """Return whether a transaction waits for another; `True` for SQLite, which cannot be queried."""
    if central.server is None:
        return True
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = "
    return central.server.run("postgres", f"{query} '{central.database}'") != [(0,)]


def assert_complete(central: Central, detectors: list[int]) -> None:
    """Check that each dataset is there once, with its file."""
    assert [detector for detector, _ in outputs(central, "toy_image")] == detectors
    with Butler.from_config(str(central.root)) as butler:
        assert [run.split("/")[3] for run in butler.collections.get_info(CHAIN).children] == [
            "Frame",
            "Known",
            "NoPipeline",
        ]
        for name in ("isr_config", "toy_schema", "toy_image", "toy_isr", "regionTimeInfo"):
            refs = butler.query_datasets(name, collections=CHAIN, find_first=False)
            assert len(refs) == (len(detectors) if refs[0].dataId.dimensions else 1), name
            for ref in refs:
                butler.get(ref)
        assert len(butler.query_dimension_records("visit", instrument=NAME, visit=FIRST)) == 1


@pytest.mark.slow
@ON_POSTGRES
def test_hosts_that_export_the_same_visit_and_runs_at_once_both_succeed(
    central: Central, spools: list[Path], tmp_path: Path
) -> None:
    with (
        rival(central, tmp_path / "first", "hold", spools[:1]) as first,
        rival(central, tmp_path / "second", "pass", spools[2:]) as second,
    ):
        begin_both(central, first, second)
        proceed(first)
        exported = [Exported.model_validate_json(read_line(process)) for process in (first, second)]
    assert [len(each.spools) for each in exported] == [1, 1]
    assert exported[0].datasets > exported[1].datasets > 0, "the first one registers what both runs share"
    assert_complete(central, [1, 2])


@pytest.mark.slow
@ON_POSTGRES
def test_uncommitted_outputs_of_a_killed_host_do_not_block_another_host(
    central: Central, spools: list[Path], tmp_path: Path
) -> None:
    with (
        rival(central, tmp_path / "first", "hold", spools[:1]) as first,
        rival(central, tmp_path / "second", "pass", spools[2:]) as second,
    ):
        begin_both(central, first, second)
        first.kill()
        assert Exported.model_validate_json(read_line(second)).spools == (str(spools[2]),)
    assert_complete(central, [2])
    exporter = CentralExporter(str(central.root), Clock(), "node1", tmp_path / "refused")
    assert exporter.export(spools[:1]).spools == (str(spools[0]),)
    exporter.close()
    assert_complete(central, [1, 2])


@pytest.mark.slow
@ON_POSTGRES
def test_the_same_visit_detector_from_two_hosts_at_once_is_registered_once(
    central: Central, spools: list[Path], tmp_path: Path
) -> None:
    with (
        rival(central, tmp_path / "first", "hold", spools[:1]) as first,
        rival(central, tmp_path / "second", "pass", spools[1:2]) as second,
    ):
        begin_both(central, first, second)
        proceed(first)
        exported = [Exported.model_validate_json(read_line(process)) for process in (first, second)]
    assert exported[0].datasets > 0
    assert exported[1].datasets == 0
    assert exported[1].spools, "its spool counts as exported"
    assert_complete(central, [1])


def test_chains_that_two_hosts_extend_at_once_keep_all_runs(
    central: Central, spools: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One extends the chain after the other has read it and before that one extends it."""
    for spool, host in ((spools[0], "host1"), (spools[2], "host2")):  # they differ in their deployment
        text = (spool / MANIFEST).read_text()
        for pipeline in ("Frame", "Known", "NoPipeline"):
            text = text.replace(f"{CHAIN}/{pipeline}/", f"{CHAIN}/{pipeline}/{host}-")
        (spool / MANIFEST).write_text(json.dumps(json.loads(text) | {"checksum": ""}))
    first, second = (
        CentralExporter(str(central.root), Clock(), host, tmp_path / "refused") for host in ("host1", "host2")
    )
    kind = type(first._connect().collections)
    read = kind.query_info
    exported: list[Exported] = []

    def read_before_the_other(self: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return read(self, name, *args, **kwargs)
        finally:  # there is no chain yet
            if name == CHAIN and not exported:
                monkeypatch.undo()
                exported.append(second.export(spools[2:]))

    monkeypatch.setattr(kind, "query_info", read_before_the_other)
    exported.append(first.export(spools[:1]))
    first.close()
    second.close()
    assert [len(each.spools) for each in exported] == [1, 1]
    with Butler.from_config(str(central.root)) as butler:
        runs = butler.collections.get_info(CHAIN).children
    assert [run.removeprefix(f"{CHAIN}/").partition("-")[0] for run in runs] == [
        "Frame/host1",
        "Known/host1",
        "NoPipeline/host1",
        "Frame/host2",
        "Known/host2",
        "NoPipeline/host2",
    ]


@pytest.mark.slow
@ON_POSTGRES
def test_a_deadlock_with_another_program_is_retried(
    central: Central, spools: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert central.server is not None
    caplog.set_level("INFO")
    # PostgreSQL checks for a deadlock once, this long after a transaction has
    # begun to wait: the deadlock must exist by then.
    alter = f"ALTER DATABASE \"{central.database}\" SET deadlock_timeout = '5s'"
    central.server.run("postgres", alter)
    exporter = CentralExporter(str(central.root), Clock(), "node1", tmp_path / "refused")
    exporter.export(spools[2:])  # creates tables, which is done outside of the transaction
    exported: list[Exported] = []
    thread = threading.Thread(target=lambda: exported.append(exporter.export(spools[:1])))
    engine = sqlalchemy.create_engine(central.server.url(central.database), poolclass=sqlalchemy.NullPool)
    with engine.begin() as program:
        # Only the exporter's connection checks for a deadlock, so that the exporter is the one that fails.
        program.execute(sqlalchemy.text("SET deadlock_timeout = '1h'"))
        program.execute(sqlalchemy.text("LOCK TABLE dataset IN EXCLUSIVE MODE"))
        thread.start()
        wait_until(lambda: waiting_for_locks(central), TIMEOUT_S)
        program.execute(sqlalchemy.text("LOCK TABLE visit_detector_region IN EXCLUSIVE MODE"))
    thread.join(TIMEOUT_S)
    exporter.close()
    assert "collided with another one, trying again" in caplog.text
    assert "DeadlockDetected" in caplog.text
    assert exported[0].datasets > 0
    assert_complete(central, [1, 2])
