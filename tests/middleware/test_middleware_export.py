# SPDX-License-Identifier: BSD-3-Clause
"""From spools into the central repo: everything once, whatever happens."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy.exc
from lsst.daf.butler import Butler
from toycam import DAY, DETECTORS, GROUP, NAME, MakeRig, Rig, load_toy_camera

from ppdaemon.clock import Clock
from ppdaemon.errors import BadMessage, VisitFailed
from ppdaemon.folders import NodeFolders
from ppdaemon.messages import Done, Process
from ppdaemon.middleware import export, spool
from ppdaemon.middleware.export import CentralExporter
from ppdaemon.middleware.local import LocalWork
from ppdaemon.middleware.spool import MANIFEST, SpoolKey, read_manifest

pytest_plugins = ("toyfixtures",)

CHAIN = f"{NAME}/prompt/output-2026-11-22"
EXPOSURE = DAY * 100000 + 1


@pytest.fixture(scope="session")
def spooled(tmp_path_factory: pytest.TempPathFactory, toy_central: Path, toy_template: Path) -> Path:
    """Give a folder with the spools of two detectors and, of one, a second attempt."""
    root = tmp_path_factory.mktemp("spooled")
    rig = Rig(root, root / "ram", toy_central, export={"types": ["toy_.*", ".*_config", "regionTimeInfo"]})
    shutil.copytree(toy_template, rig.seat.template)
    assert rig.config.butler is not None
    worker = LocalWork(rig.seat, rig.config.butler, load_toy_camera)
    for detector, attempt in ((1, 1), (2, 1), (1, 2)):
        run_visit(rig, worker, detector, attempt=attempt)
        worker.reset()
    worker.close()
    return rig.seat.spool


def run_visit(rig: Rig, worker: LocalWork, detector: int, **order: Any) -> Done:
    worker.prepare(rig.order(detector, main="Frame", **order))
    worker.ingest(rig.raw(detector))
    return worker.process(Process(exposures=(EXPOSURE,)))


@pytest.fixture
def central(tmp_path: Path, toy_central: Path) -> Path:
    """Give a central repo of the test's own."""
    shutil.copytree(toy_central, tmp_path / "central")
    return tmp_path / "central"


@pytest.fixture
def exporter(central: Path) -> Iterator[CentralExporter]:
    """Give the exporter into that repo."""
    exporter = CentralExporter(str(central), Clock(), "node1")
    yield exporter
    exporter.close()


@pytest.fixture
def spools(tmp_path: Path, spooled: Path) -> list[Path]:
    """Give copies of the spools: detector 1, its second attempt, detector 2."""
    shutil.copytree(spooled, tmp_path / "spool")
    return sorted((tmp_path / "spool").iterdir())


def outputs(central: Path, dataset_type: str) -> list[tuple[int, Any]]:
    """Return detector and UUID of each output of a type that the day's chain finds."""
    with Butler.from_config(str(central)) as butler:
        refs = butler.query_datasets(dataset_type, collections=CHAIN, find_first=False, explain=False)
        return sorted((int(ref.dataId.get("detector", -1)), ref.id) for ref in refs)


def test_outputs_of_many_visits_are_found_through_the_chain_of_the_day(
    exporter: CentralExporter, central: Path, spools: list[Path]
) -> None:
    first, _, second = spools
    exported = exporter.export([first, second])
    assert exported.spools == (str(first), str(second))
    assert not first.exists()
    assert not second.exists()
    with Butler.from_config(str(central)) as butler:
        for detector in (1, 2):
            ids = {"instrument": NAME, "visit": EXPOSURE, "detector": detector}
            assert butler.get("toy_image", ids, collections=CHAIN)["image"]["raw"]["exposure"] == 1
            ids = {"instrument": NAME, "group": GROUP, "detector": detector}
            assert butler.get("regionTimeInfo", ids, collections=CHAIN).timespan.begin is not None
        assert len(butler.query_dimension_records("visit_detector_region", instrument=NAME)) == 2
        assert butler.query_dimension_records("visit")[0].region is not None
        runs = butler.collections.get_info(CHAIN).children
    assert [run.split("/")[3] for run in runs] == ["Frame", "NoPipeline"]
    assert len(outputs(central, "isr_config")) == 1, "made by each visit, and alike"


def test_a_repeated_export_does_no_harm(
    exporter: CentralExporter, central: Path, spools: list[Path], tmp_path: Path
) -> None:
    shutil.copytree(spools[0], tmp_path / "again" / spools[0].name)
    before = exporter.export(spools[:1])
    found = outputs(central, "toy_image")
    again = exporter.export([tmp_path / "again" / spools[0].name])
    assert (before.datasets, again.datasets) == (8, 0)
    assert outputs(central, "toy_image") == found
    with Butler.from_config(str(central)) as butler:
        assert len(butler.collections.get_info(CHAIN).children) == 2


def test_a_spool_that_is_gone_counts_as_exported(
    exporter: CentralExporter, central: Path, spools: list[Path]
) -> None:
    exporter.export(spools[:1])
    exported = exporter.export([spools[0], spools[2]])
    assert exported.spools == (str(spools[0]), str(spools[2]))


def test_of_two_attempts_the_first_stays(
    exporter: CentralExporter, central: Path, spools: list[Path]
) -> None:
    exporter.export(spools[:1])
    first = outputs(central, "toy_image")
    assert exporter.export(spools[1:2]).datasets == 0
    assert outputs(central, "toy_image") == first


def test_two_attempts_and_another_detector_go_in_one_export(
    exporter: CentralExporter, central: Path, spools: list[Path]
) -> None:
    exported = exporter.export(spools)
    assert len(exported.spools) == 3
    assert [detector for detector, _ in outputs(central, "toy_image")] == [1, 2]


def test_new_runs_come_in_front_of_the_chain_and_old_ones_stay(
    exporter: CentralExporter, central: Path, spools: list[Path]
) -> None:
    with Butler.from_config(str(central), writeable=True) as butler:
        butler.collections.register("u/somebody")
        butler.collections.register(CHAIN, butler.collections.get_info(f"{NAME}/calib").type)
        butler.collections.redefine_chain(CHAIN, "u/somebody")
    exporter.export(spools[:1])
    with Butler.from_config(str(central)) as butler:
        runs = butler.collections.get_info(CHAIN).children
    assert [run.split("/")[-2] for run in runs] == ["Frame", "NoPipeline", "u"]
    exporter.export(spools[2:])
    with Butler.from_config(str(central)) as butler:
        assert butler.collections.get_info(CHAIN).children == runs


def test_while_the_central_repo_is_away_the_spool_stays(
    exporter: CentralExporter, central: Path, spools: list[Path]
) -> None:
    away = central.rename(central.with_name("away"))
    with pytest.raises(FileNotFoundError):
        exporter.export(spools)
    assert all(read_manifest(spool).files for spool in spools)
    away.rename(central)
    assert len(exporter.export(spools).spools) == 3


def test_a_transaction_that_breaks_leaves_nothing_half_done(
    exporter: CentralExporter, central: Path, spools: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    link, links = os.link, []

    def break_off(source: Any, target: Any, **kwargs: Any) -> None:
        links.append(target)
        if len(links) == 5:
            raise OSError(errno.EIO, "Input/output error")
        link(source, target, **kwargs)

    monkeypatch.setattr(os, "link", break_off)
    with pytest.raises(OSError, match="Input/output error"):
        exporter.export(spools)
    monkeypatch.undo()
    assert all(spool.exists() for spool in spools)
    with Butler.from_config(str(central)) as butler:
        assert not butler.query_dimension_records("visit", explain=False)
    assert not any(Path(target).exists() for target in links)
    assert len(exporter.export(spools).spools) == 3


def test_without_links_files_are_copied_before_the_database_is_locked(
    exporter: CentralExporter, central: Path, spools: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Any, target: Any, **kwargs: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    def watch(butler: Butler, records: Any, files: Any, transfer: str) -> None:
        commits.append((transfer, *{Path(file.path.ospath).parent.name for file in files}))
        commit(butler, records, files, transfer)

    commits: list[tuple[str, ...]] = []
    commit = export._commit
    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(export, "_commit", watch)
    incoming = central / "incoming-node1"
    incoming.mkdir()
    (incoming / "of-a-former-life").touch()
    names = [spool.name for spool in spools]
    assert exporter.export(spools[:1]).datasets == 8
    assert exporter.export(spools[2:]).spools == (str(spools[2]),)
    assert commits == [("hardlink", names[0]), ("move", incoming.name), ("move", incoming.name)]
    assert not incoming.exists()
    with Butler.from_config(str(central)) as butler:
        ids = {"instrument": NAME, "visit": EXPOSURE, "detector": 1}
        assert butler.get("toy_image", ids, collections=CHAIN)["image"]["raw"]["exposure"] == 1


@pytest.mark.parametrize("damage", ["no manifest", "not JSON", "a file is missing"])
def test_a_damaged_spool_does_not_keep_the_others(
    exporter: CentralExporter, central: Path, spools: list[Path], damage: str
) -> None:
    bad, _, good = spools
    match damage:
        case "no manifest":
            (bad / MANIFEST).unlink()
        case "not JSON":
            (bad / MANIFEST).write_text("{")
        case _:
            next(path for path in bad.iterdir() if path.name != MANIFEST).unlink()
    assert exporter.export([bad, good]).spools == (str(good),)
    assert bad.exists()
    with pytest.raises(BadMessage, match=bad.name):
        exporter.export([bad])


def test_an_unknown_detector_fails_that_spool_only(
    exporter: CentralExporter, central: Path, spools: list[Path], tmp_path: Path, toy_central: Path
) -> None:
    bad, _, good = spools
    text = (bad / MANIFEST).read_text()
    (bad / MANIFEST).write_text(text.replace('"detector":1', f'"detector":{DETECTORS + 5}'))
    assert exporter.export([bad, good]).spools == (str(good),)
    with pytest.raises((sqlalchemy.exc.IntegrityError, LookupError, ValueError)):
        exporter.export([bad])


def test_spool_folders_tell_all_visits_apart() -> None:
    keys = [("A", "g", 1, 1), ("A", "g", 1, 2), ("A", "g~1", 1, 1), ("A", "g#1", 1, 1), ("A", "g/../x", 1, 1)]
    names = {
        SpoolKey(instrument=name, group=group, detector=detector, attempt=attempt).folder
        for name, group, detector, attempt in keys
    }
    assert len(names) == len(keys)
    assert not any("/" in name or "#" in name for name in names)
    assert all(name.count("~") == 3 for name in names)
    key = ("A", "2025-11-22T03:25:16.951#1/..", 1, 2)
    folder = SpoolKey(instrument=key[0], group=key[1], detector=key[2], attempt=key[3]).folder
    assert folder == NodeFolders(Path(), Path()).spooled(*key).name, "where the node looks for it"


def test_a_disk_that_is_full_keeps_no_half_of_a_spool(rigs: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    rig, worker = rigs(export={"types": [".*"]})
    worker.prepare(rig.order(main="Short", before=""))
    worker.ingest(rig.raw())
    monkeypatch.setattr(spool, "sync", refuse)
    with pytest.raises(VisitFailed, match="No space left") as caught:
        worker.process(Process(exposures=(EXPOSURE,)))
    assert caught.value.retriable
    assert list(rig.seat.spool.iterdir()) == []


def test_a_spool_of_which_half_is_deleted_is_no_spool(
    exporter: CentralExporter, spools: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = shutil.rmtree

    def break_off(folder: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            (folder / MANIFEST).unlink()
            raise OSError(errno.EIO, "Input/output error")
        remove(folder, ignore_errors=True)

    monkeypatch.setattr(export.shutil, "rmtree", break_off)
    with pytest.raises(OSError, match="Input/output error"):
        exporter.export(spools[:1])
    monkeypatch.undo()
    (left,) = set((spools[0].parent).iterdir()) - set(spools)
    assert NodeFolders.read_spooled(spools[0].name)
    assert not NodeFolders.read_spooled(left.name), "the node does not take it for a spool"
    assert exporter.export(spools[:1]).spools == (str(spools[0]),)


def test_nothing_to_export_makes_no_spool(rigs: MakeRig) -> None:
    rig, worker = rigs(export={"types": ["nothing"]})
    worker.prepare(rig.order(main="Short", before=""))
    worker.ingest(rig.raw())
    done = worker.process(Process(exposures=(EXPOSURE,)))
    assert (done.spool, done.datasets) == (None, 0)
    assert not rig.seat.spool.exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from ppdaemon.clock import Clock
from ppdaemon.middleware.export import CentralExporter
link, links = os.link, []
def last(source, target, **kwargs):
    link(source, target, **kwargs)
    links.append(target)
    if len(links) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
os.link = last
CentralExporter(sys.argv[1], Clock(), "node1").export([Path(sys.argv[2])])
"""


def test_an_export_that_was_killed_is_repeated(
    exporter: CentralExporter, central: Path, spools: list[Path]
) -> None:
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)])
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(central), str(spools[0])],
        env=os.environ | {"PYTHONPATH": path},
        check=False,
        timeout=60,
    )
    assert killed.returncode == -signal.SIGKILL
    assert exporter.export(spools[:1]).datasets == 8
    assert len(outputs(central, "toy_image")) == 1
