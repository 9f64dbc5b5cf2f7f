# SPDX-License-Identifier: BSD-3-Clause
"""Exports of spools to the central repo: everything once, whatever happens."""

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
from centrals import CHAIN, FIRST, ON_SQLITE, Central, outputs
from lsst.daf.butler import Butler
from toycam import DETECTORS, GROUP, NAME, MakeRig

from ppdaemon.clock import Clock
from ppdaemon.errors import BadMessage, Unavailable, VisitFailed
from ppdaemon.folders import REFUSAL, NodeFolders
from ppdaemon.messages import Process
from ppdaemon.middleware.export import register, spool
from ppdaemon.middleware.export.exporter import CentralExporter
from ppdaemon.middleware.export.spool import MANIFEST, SpoolKey, read_manifest

pytest_plugins = ("toyfixtures", "dbfixtures")


@pytest.fixture
def exporter(central: Central, tmp_path: Path) -> Iterator[CentralExporter]:
    """Yield the exporter into that repo."""
    exporter = CentralExporter(str(central.root), Clock(), "node1", tmp_path / "refused")
    yield exporter
    exporter.close()


def test_outputs_of_many_visits_are_found_through_the_chain_of_the_day(
    exporter: CentralExporter, central: Central, spools: list[Path]
) -> None:
    first, _, second = spools
    exported = exporter.export([first, second])
    assert exported.spools == (str(first), str(second))
    assert not first.exists()
    assert not second.exists()
    with Butler.from_config(str(central.root)) as butler:
        for detector in (1, 2):
            ids = {"instrument": NAME, "visit": FIRST, "detector": detector}
            assert butler.get("toy_image", ids, collections=CHAIN)["image"]["raw"]["exposure"] == 1
            ids = {"instrument": NAME, "group": GROUP, "detector": detector}
            assert butler.get("regionTimeInfo", ids, collections=CHAIN).timespan.begin is not None
        assert len(butler.query_dimension_records("visit_detector_region", instrument=NAME)) == 2
        assert butler.query_dimension_records("visit")[0].region is not None
        runs = butler.collections.get_info(CHAIN).children
    assert [run.split("/")[3] for run in runs] == ["Frame", "Known", "NoPipeline"]
    assert len(outputs(central, "isr_config")) == 1, "each visit makes the same one"


def test_a_repeated_export_changes_nothing(
    exporter: CentralExporter, central: Central, spools: list[Path], tmp_path: Path
) -> None:
    shutil.copytree(spools[0], tmp_path / "again" / spools[0].name)
    before = exporter.export(spools[:1])
    found = outputs(central, "toy_image")
    again = exporter.export([tmp_path / "again" / spools[0].name])
    assert (before.datasets, again.datasets) == (8, 0)
    assert outputs(central, "toy_image") == found
    with Butler.from_config(str(central.root)) as butler:
        assert len(butler.collections.get_info(CHAIN).children) == 3


@ON_SQLITE
def test_a_spool_that_is_gone_counts_as_exported(
    exporter: CentralExporter, central: Central, spools: list[Path]
) -> None:
    exporter.export(spools[:1])
    exported = exporter.export([spools[0], spools[2]])
    assert exported.spools == (str(spools[0]), str(spools[2]))


def test_of_two_attempts_the_first_stays(
    exporter: CentralExporter, central: Central, spools: list[Path]
) -> None:
    exporter.export(spools[:1])
    first = outputs(central, "toy_image")
    assert exporter.export(spools[1:2]).datasets == 0
    assert outputs(central, "toy_image") == first


def test_two_attempts_and_another_detector_go_in_one_export(
    exporter: CentralExporter, central: Central, spools: list[Path]
) -> None:
    exported = exporter.export(spools)
    assert len(exported.spools) == 3
    assert [detector for detector, _ in outputs(central, "toy_image")] == [1, 2]


def test_new_runs_are_prepended_to_the_chain_and_old_ones_stay(
    exporter: CentralExporter, central: Central, spools: list[Path]
) -> None:
    with Butler.from_config(str(central.root), writeable=True) as butler:
        butler.collections.register("u/person")
        butler.collections.register(CHAIN, butler.collections.get_info(f"{NAME}/calib").type)
        butler.collections.redefine_chain(CHAIN, "u/person")
    exporter.export(spools[:1])
    with Butler.from_config(str(central.root)) as butler:
        runs = butler.collections.get_info(CHAIN).children
    assert [run.split("/")[-2] for run in runs] == ["Frame", "Known", "NoPipeline", "u"]
    exporter.export(spools[2:])
    with Butler.from_config(str(central.root)) as butler:
        assert butler.collections.get_info(CHAIN).children == runs


def test_while_the_central_repo_is_unavailable_the_spool_stays(
    exporter: CentralExporter, central: Central, spools: list[Path]
) -> None:
    away = central.root.rename(central.root.with_name("away"))
    with pytest.raises(Unavailable, match="cannot be opened for writing: FileNotFoundError"):
        exporter.export(spools)
    assert all(read_manifest(spool).files for spool in spools)
    away.rename(central.root)
    assert len(exporter.export(spools).spools) == 3


def test_a_transaction_that_breaks_leaves_nothing_half_done(
    exporter: CentralExporter, central: Central, spools: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    link, links = os.link, []

    def break_off(source: Any, target: Any, **kwargs: Any) -> None:
        links.append(target)
        if len(links) == 5:
            raise OSError(errno.EIO, "Input/output error")
        link(source, target, **kwargs)

    monkeypatch.setattr(os, "link", break_off)
    with pytest.raises(Unavailable, match=r"cannot be written to: OSError: .*Input/output error"):
        exporter.export(spools)
    monkeypatch.undo()
    assert all(spool.exists() for spool in spools)
    with Butler.from_config(str(central.root)) as butler:
        assert not butler.query_dimension_records("visit", explain=False)
    assert not any(Path(target).exists() for target in links)
    assert len(exporter.export(spools).spools) == 3


@ON_SQLITE
def test_without_links_files_are_copied_before_the_database_is_locked(
    exporter: CentralExporter, central: Central, spools: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Any, target: Any, **kwargs: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    def watch(butler: Butler, records: Any, files: Any, transfer: str) -> None:
        commits.append((transfer, *{Path(file.path.ospath).parent.name for file in files}))
        ingest(butler, records, files, transfer)

    commits: list[tuple[str, ...]] = []
    ingest = register._ingest
    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(register, "_ingest", watch)
    incoming = central.root / "incoming-node1"
    incoming.mkdir()
    (incoming / "of-a-previous-run").touch()
    names = [spool.name for spool in spools]
    assert exporter.export(spools[:1]).datasets == 8
    assert exporter.export(spools[2:]).spools == (str(spools[2]),)
    assert commits == [("hardlink", names[0]), ("move", incoming.name), ("move", incoming.name)]
    assert not incoming.exists()
    with Butler.from_config(str(central.root)) as butler:
        ids = {"instrument": NAME, "visit": FIRST, "detector": 1}
        assert butler.get("toy_image", ids, collections=CHAIN)["image"]["raw"]["exposure"] == 1


@ON_SQLITE
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("no manifest", "no manifest"),
        ("not JSON", "damaged manifest"),
        ("a file is missing", "is missing"),
        ("a file is cut short", "has 1 bytes, not "),
        ("an unknown detector", "Error"),
        ("no folder", "no manifest: Not a directory"),
    ],
)
def test_a_bad_spool_is_quarantined_with_the_reason_and_blocks_no_other(
    exporter: CentralExporter, central: Central, spools: list[Path], tmp_path: Path, damage: str, reason: str
) -> None:
    bad, _, good = spools
    break_spool(bad, damage)
    exported = exporter.export([bad, good])
    assert (exported.spools, exported.refused) == ((str(good),), (str(bad),))
    assert not bad.exists()
    if damage != "no folder":
        note = (tmp_path / "refused" / bad.name / REFUSAL).read_text()
        assert reason in note
        assert f"move this folder back to {bad.parent}" in note
    assert [detector for detector, _ in outputs(central, "toy_image")] == [2]
    again = exporter.export([bad])
    assert (again.spools, again.refused) == ((), (str(bad),)), "though it is gone"


def break_spool(spool: Path, damage: str) -> None:
    file = next(path for path in spool.iterdir() if path.name != MANIFEST)
    match damage:
        case "no manifest":
            (spool / MANIFEST).unlink()
        case "not JSON":
            (spool / MANIFEST).write_text("{")
        case "a file is missing":
            file.unlink()
        case "a file is cut short":
            file.write_text("x")
        case "an unknown detector":
            text = (spool / MANIFEST).read_text()
            (spool / MANIFEST).write_text(text.replace('"detector":1', f'"detector":{DETECTORS + 5}'))
        case "no folder":
            shutil.rmtree(spool)
            spool.touch()
        case unexpected:
            raise AssertionError(unexpected)


@ON_SQLITE
def test_a_repaired_spool_that_was_moved_back_is_exported(
    exporter: CentralExporter, central: Central, spools: list[Path], tmp_path: Path
) -> None:
    bad = spools[0]
    manifest = (bad / MANIFEST).read_text()
    break_spool(bad, "not JSON")
    assert exporter.export([bad]).refused == (str(bad),)
    (tmp_path / "refused" / bad.name / MANIFEST).write_text(manifest)
    shutil.copytree(tmp_path / "refused" / bad.name, bad)  # copied, where it should be moved
    assert NodeFolders(tmp_path, tmp_path).returned_spools() == [bad]
    exported = exporter.export([bad])
    assert (exported.spools, exported.refused, exported.datasets) == ((str(bad),), (), 8)


@ON_SQLITE
def test_an_unreadable_spool_is_not_mistaken_for_an_unavailable_repo(
    exporter: CentralExporter,
    central: Central,
    spools: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The disk is damaged below one file of a spool: it can be opened, but not read."""
    bad, _, good = spools
    damaged = next(path for path in bad.iterdir() if path.name != MANIFEST)
    copy_file = shutil.copyfile

    def link(source: Any, target: Any, **kwargs: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    def copy(source: Any, target: Any) -> None:
        if Path(source) == damaged:
            raise OSError(errno.EIO, "Input/output error")
        copy_file(source, target)

    def read(path: Path, manifest: Any, *, read_all: bool = False) -> None:
        if path == bad and read_all:
            raise BadMessage(f"{damaged} cannot be read: Input/output error")

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(register.shutil, "copyfile", copy)
    monkeypatch.setattr("ppdaemon.middleware.export.exporter.check_files", read)
    exported = exporter.export([bad, good])
    assert (exported.spools, exported.refused) == ((str(good),), (str(bad),))


@ON_SQLITE
def test_an_error_of_only_one_spool_is_attributed_to_it(
    exporter: CentralExporter, spools: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of unknown type, such as one of a cloud datastore, may be caused by the central repo."""
    bad, _, good = spools
    register_all = register.Registrar.register

    def fail(self: Any, butler: Any, batch: dict[Path, Any]) -> register.Registered:
        if bad in batch:
            raise RuntimeError("of an unknown kind")
        return register_all(self, butler, batch)

    monkeypatch.setattr(register.Registrar, "register", fail)
    with pytest.raises(Unavailable, match=r"cannot be written to: RuntimeError: of an unknown kind"):
        exporter.export([bad])
    assert bad.exists()
    exported = exporter.export([bad, good])
    assert (exported.spools, exported.refused) == ((str(good),), (str(bad),))


@ON_SQLITE
def test_many_spools_with_a_bad_one_take_few_transactions(
    exporter: CentralExporter, spools: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of 32 is found by halves: 1 + 2 x 5 transactions, of which 6 fail."""
    calls: list[int] = []

    def fail(self: Any, butler: Any, batch: dict[Path, Any]) -> register.Registered:
        calls.append(len(batch))
        if tmp_path / "spool" / "7" in batch:
            raise ValueError("bad")
        return register.Registered(0, {})

    copies = [shutil.copytree(spools[0], tmp_path / "spool" / str(k)) for k in range(32)]
    monkeypatch.setattr(register.Registrar, "register", fail)
    exported = exporter.export(copies)
    assert len(calls) == 11
    assert exported.refused == (str(copies[7]),)
    assert len(exported.spools) == 31


def test_spool_folders_of_different_visits_have_different_names() -> None:
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
    assert folder == NodeFolders(Path(), Path()).spooled(*key).name, "the folder in which the node expects it"


def test_a_full_disk_leaves_no_partial_spool(rigs: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    rig, worker = rigs(export={"types": [".*"]})
    worker.prepare(rig.order(main="Short", before=""))
    worker.ingest(rig.raw())
    monkeypatch.setattr(spool, "sync", refuse)
    with pytest.raises(VisitFailed, match="No space left") as caught:
        worker.process(Process(exposures=(FIRST,)))
    assert caught.value.retriable
    assert list(rig.context.spool.iterdir()) == []


@ON_SQLITE
def test_a_half_deleted_spool_is_no_spool(
    exporter: CentralExporter, spools: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = shutil.rmtree

    def break_off(folder: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            (folder / MANIFEST).unlink()
            raise OSError(errno.EIO, "Input/output error")
        remove(folder, ignore_errors=True)

    monkeypatch.setattr(shutil, "rmtree", break_off)
    with pytest.raises(OSError, match="Input/output error"):
        exporter.export(spools[:1])
    monkeypatch.undo()
    (left,) = set((spools[0].parent).iterdir()) - set(spools)
    assert NodeFolders.parse_spool_name(spools[0].name)
    assert not NodeFolders.parse_spool_name(left.name), "the node does not list it as a spool"
    assert exporter.export(spools[:1]).spools == (str(spools[0]),)
    assert not left.exists()


def test_nothing_to_export_makes_no_spool(rigs: MakeRig) -> None:
    rig, worker = rigs(export={"types": ["nothing"]})
    worker.prepare(rig.order(main="Short", before=""))
    worker.ingest(rig.raw())
    done = worker.process(Process(exposures=(FIRST,)))
    assert (done.spool, done.datasets) == (None, 0)
    assert not rig.context.spool.exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from ppdaemon.clock import Clock
from ppdaemon.middleware.export.exporter import CentralExporter
link, links = os.link, []
def last(source, target, **kwargs):
    link(source, target, **kwargs)
    links.append(target)
    if len(links) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
os.link = last
CentralExporter(sys.argv[1], Clock(), "node1", Path("unused")).export([Path(sys.argv[2])])
"""


@pytest.mark.slow
def test_an_export_that_was_killed_is_repeated(
    exporter: CentralExporter, central: Central, spools: list[Path]
) -> None:
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)])
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(central.root), str(spools[0])],
        env=os.environ | {"PYTHONPATH": path},
        check=False,
        timeout=60,
    )
    assert killed.returncode == -signal.SIGKILL
    assert exporter.export(spools[:1]).datasets == 8
    assert len(outputs(central, "toy_image")) == 1
