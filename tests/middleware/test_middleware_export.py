# SPDX-License-Identifier: BSD-3-Clause
"""Exports of spools to the central repo: everything once, whatever happens."""

import errno
import gc
import io
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from centrals import CHAIN, FIRST, ON_SQLITE, Central, outputs, run_visit
from lsst.daf.butler import Butler
from toycam import DETECTORS, GROUP, NAME, MakeRig

from ppdaemon import folders
from ppdaemon.clock import Clock
from ppdaemon.config import ExportConfig
from ppdaemon.errors import Unavailable, VisitFailed
from ppdaemon.folders import REFUSAL, NodeFolders, remove_spool
from ppdaemon.messages import Process
from ppdaemon.middleware.butler.failures import spool_full_errors
from ppdaemon.middleware.export import exporter as export_module
from ppdaemon.middleware.export import register, spool
from ppdaemon.middleware.export.exporter import CentralExporter
from ppdaemon.middleware.export.manifest import (
    MANIFEST,
    SpooledFile,
    SpoolKey,
    manifest_text,
    read_manifest,
    replace_manifest,
)
from ppdaemon.middleware.export.spool import choose_folder
from ppdaemon.states import Outcome

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
def test_a_spool_that_is_gone_counts_as_exported_only_if_this_exporter_has_deleted_it(
    exporter: CentralExporter, spools: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    remove, (first, taken, second) = export_module.remove_spool, spools

    def break_off(path: Path) -> None:
        if path == second:
            raise OSError(errno.EIO, "Input/output error")
        remove(path)

    monkeypatch.setattr(export_module, "remove_spool", break_off)
    with pytest.raises(OSError, match="Input/output error"):
        exporter.export([first, second])
    monkeypatch.undo()
    taken.rename(taken.with_name("taken"))
    exported = exporter.export([first, taken, second])
    assert (exported.spools, exported.gone) == ((str(first), str(second)), (str(taken),))
    assert exporter.export([first]).gone == (str(first),), "it is exported, and that was reported"


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


@ON_SQLITE
@pytest.mark.parametrize(
    "removed", ["runs", "runs, made anew", "a dataset type", "dimension records", "the chain"]
)
def test_what_was_removed_between_two_exports_is_made_again(
    exporter: CentralExporter, central: Central, spools: list[Path], removed: str
) -> None:
    exporter.export(spools[:1])
    with Butler.from_config(str(central.root), writeable=True) as butler:
        runs = butler.collections.get_info(CHAIN).children
        if removed == "the chain":
            butler.collections.x_remove(CHAIN)
        else:
            butler.collections.redefine_chain(CHAIN, [])
            butler.removeRuns(runs)
        if removed == "runs, made anew":
            for run in runs:
                butler.collections.register(run)
            butler.collections.redefine_chain(CHAIN, runs)
        if removed == "a dataset type":
            butler.registry.removeDatasetType("toy_image")
    if removed == "dimension records":
        with closing(sqlite3.connect(central.root / "gen3.sqlite3")) as database, database:
            assert database.execute("DELETE FROM visit").rowcount == 1
    exported = exporter.export(spools[2:])
    assert (exported.spools, exported.refused) == ((str(spools[2]),), ())
    assert [detector for detector, _ in outputs(central, "toy_image")][-1] == 2
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
    rename, renamed = os.rename, []

    def break_off(source: Any, target: Any) -> None:
        if "incoming" not in str(target):  # as in the undoing
            renamed.append(target)
            if len(renamed) >= 5:
                raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", break_off)
    with pytest.raises(Unavailable, match=r"cannot be written to: OSError: .*Input/output error"):
        exporter.export(spools)
    monkeypatch.undo()
    assert all(spool.exists() for spool in spools)
    with Butler.from_config(str(central.root)) as butler:
        assert not butler.query_dimension_records("visit", explain=False)
    assert not any(Path(target).exists() for target in renamed)
    assert len(exporter.export(spools).spools) == 3


@ON_SQLITE
def test_files_are_copied_before_the_database_is_locked_and_images_last(
    central: Central, spools: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def watch(registrar: Any, butler: Butler, mark: Any, records: Any, files: Any, copies: Any) -> None:
        (folder,) = {Path(copies[file.path]).parent.name for file in files}
        commits.append((folder, {file.first.dataset_type.name for file in files}))
        ingest(registrar, butler, mark, records, files, copies)

    commits: list[tuple[str, set[str]]] = []
    ingest = register.Registrar._ingest
    config = ExportConfig(images=("toy_image",))
    exporter = CentralExporter(str(central.root), Clock(), "node1", tmp_path / "refused", config=config)
    monkeypatch.setattr(register.Registrar, "_ingest", watch)
    incoming = central.root / "incoming-node1"
    incoming.mkdir()
    (incoming / "of-a-previous-run").touch()
    with closing(exporter):
        assert exporter.export([spools[0], spools[2]]).datasets == 12
    assert [folder for folder, _ in commits] == [incoming.name] * 2
    assert "toy_isr" in commits[0][1]
    assert commits[1][1] == {"toy_image"}
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
        ("ten bytes are changed", "was changed in the spool: its checksum is crc32:"),
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
        case "ten bytes are changed":
            size = file.stat().st_size
            with file.open("r+b") as stream:
                stream.seek(size // 2)
                stream.write(bytes(255 - byte for byte in file.read_bytes()[size // 2 :][:10]))
            assert file.stat().st_size == size
        case "an unknown detector":
            text = (spool / MANIFEST).read_text().replace('"detector":1', f'"detector":{DETECTORS + 5}')
            key = {"key": json.loads((spool / MANIFEST).read_text())["key"]}
            (spool / MANIFEST).write_text(json.dumps(json.loads(text) | key | {"checksum": ""}))
        case "no folder":
            shutil.rmtree(spool)
            spool.touch()
        case unexpected:
            raise AssertionError(unexpected)


@ON_SQLITE
@pytest.mark.parametrize("full", [False, True])
def test_a_bad_spool_on_the_ramdisk_is_quarantined_on_the_state_disk(
    exporter: CentralExporter, spools: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    rename, sync, synced = Path.rename, folders.sync, []

    def other_disk(path: Path, target: Path) -> Path:
        if target.parent == tmp_path / "refused" and path.parent != target.parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(path, target)

    def noted(path: Path) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        synced.append(path.name)
        sync(path)

    monkeypatch.setattr(Path, "rename", other_disk)
    monkeypatch.setattr(folders, "sync", noted)
    names = {path.name for path in spools[0].iterdir()}
    (spools[0] / MANIFEST).write_text("{")
    exported = exporter.export([spools[0], spools[2]])
    assert (exported.spools, exported.refused) == ((str(spools[2]),), (str(spools[0]),))
    assert spools[0].exists() == full
    assert [path.name for path in (tmp_path / "refused").iterdir()] == ([] if full else [spools[0].name])
    if not full:
        assert names <= set(synced), "a power failure must not lose them after the RAM disk"


@ON_SQLITE
def test_a_renamed_spool_is_quarantined(
    exporter: CentralExporter, spools: list[Path], tmp_path: Path
) -> None:
    renamed = spools[2].rename(spools[2].with_name("of-an-operator"))
    exported = exporter.export([renamed])
    assert (exported.refused, exported.datasets) == ((str(renamed),), 0)
    assert (
        "was renamed: its manifest is that of ToyCam"
        in (tmp_path / "refused" / renamed.name / REFUSAL).read_text()
    )


@ON_SQLITE
def test_a_spool_whose_checksums_a_person_has_removed_is_exported(
    exporter: CentralExporter, spools: list[Path]
) -> None:
    text = (spools[0] / MANIFEST).read_text()
    assert "crc32:" in text
    (spools[0] / MANIFEST).write_text(re.sub("crc32:[0-9a-f]*", "", text))
    assert exporter.export(spools[:1]).datasets == 8


@ON_SQLITE
def test_a_registered_file_is_no_file_of_the_worker(
    exporter: CentralExporter, central: Central, spools: list[Path]
) -> None:
    """A process that the worker has left writes to its file later."""
    path = next(path for path in spools[0].iterdir() if path.name != MANIFEST)
    before = path.read_bytes()
    with path.open("r+b") as left:
        exporter.export(spools[:1])
        left.write(b"damage")
    found = [each for each in central.root.rglob("*") if each.is_file() and each.read_bytes() == before]
    assert found


@ON_SQLITE
def test_only_files_of_a_spool_that_was_copied_are_synced_again(
    exporter: CentralExporter, spools: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that a worker has written are on the disk. The spools of the fixture were copied, all."""
    manifest = read_manifest(spools[0])
    written = (
        file._replace(changed_ns=(spools[0] / file.name).stat().st_ctime_ns) for file in manifest.files
    )
    replace_manifest(spools[0], manifest.model_copy(update={"files": tuple(written)}))
    files = {file.stat().st_ino: file.parent for spool in spools for file in spool.iterdir()}
    synced: list[Path] = []
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: synced.append(files[os.fstat(descriptor).st_ino]))
    linked = len(read_manifest(spools[2]).files)
    assert exporter.export([spools[0], spools[2]]).refused == ()
    assert set(synced) == {spools[2]}
    assert 0 < len(synced) <= linked


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
def test_a_spool_whose_image_was_cut_is_exported_once_after_its_repair(
    central: Central, spools: list[Path], tmp_path: Path
) -> None:
    """What is no image is registered before images are read."""
    bad, _, good = spools
    refused = tmp_path / "refused"
    (image,) = (file.name for file in read_manifest(bad).files if type_of(file) == "toy_image")
    content = (bad / image).read_bytes()
    (bad / image).write_bytes(content[:-1])
    config = ExportConfig(images=("toy_image",))
    with closing(CentralExporter(str(central.root), Clock(), "node1", refused, config=config)) as exporter:
        exported = exporter.export([bad, good])
        assert (exported.spools, exported.refused) == ((str(good),), (str(bad),))
        note = (refused / bad.name / REFUSAL).read_text()
        assert f"{image} has {len(content) - 1} bytes, not {len(content)}" in note
        assert [detector for detector, _ in outputs(central, "toy_image")] == [2]
        (refused / bad.name / image).write_bytes(content)
        shutil.move(refused / bad.name, bad)
        exported = exporter.export([bad])
    assert (exported.spools, exported.skipped) == ((str(bad),), {})
    for name in ("toy_image", "toy_isr"):
        assert [detector for detector, _ in outputs(central, name)] == [1, 2]


@ON_SQLITE
def test_no_garbage_is_collected_during_an_export(
    exporter: CentralExporter,
    spools: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []

    def fail(*args: Any) -> None:
        found.append(gc.isenabled())
        raise RuntimeError("of an unknown kind")

    monkeypatch.setattr(register.Registrar, "register", fail)
    for enabled in (True, False):
        (gc.enable if enabled else gc.disable)()
        try:
            with pytest.raises(Unavailable):
                exporter.export(spools[:1])
            assert gc.isenabled() == enabled
        finally:
            gc.enable()
    assert found == [False, False]


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

    class Damaged(io.FileIO):
        def readinto(self, buffer: Any) -> int | None:
            if Path(str(self.name)) == damaged:
                raise OSError(errno.EIO, "Input/output error")
            return super().readinto(buffer)

    monkeypatch.setattr(io, "FileIO", Damaged)
    exported = exporter.export([bad, good])
    assert (exported.spools, exported.refused) == ((str(good),), (str(bad),))


@ON_SQLITE
def test_an_error_of_only_one_spool_is_attributed_to_it(
    exporter: CentralExporter, spools: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of unknown type, such as one of a cloud datastore, may be caused by the central repo."""
    bad, _, good = spools
    register_all = register.Registrar.register

    def fail(self: Any, butler: Any, mark: Any, batch: dict[Path, Any]) -> register.Registered:
        if bad in batch:
            raise RuntimeError("of an unknown kind")
        return register_all(self, butler, mark, batch)

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

    def fail(self: Any, butler: Any, mark: Any, batch: dict[Path, Any]) -> register.Registered:
        calls.append(len(batch))
        if copies[7] in batch:
            raise ValueError("bad")
        return register.Registered(0, {})

    copies = [spools[0].with_name(str(k)) for k in range(32)]
    for k, copy in enumerate(copies):
        shutil.copytree(spools[0], copy)
        manifest = read_manifest(copy)
        key = manifest.key.model_copy(update={"attempt": 100 + k})
        replace_manifest(copy, manifest.model_copy(update={"key": key}))
    copies = [copy.rename(copy.with_name(read_manifest(copy).key.folder)) for copy in copies]
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


@pytest.mark.parametrize(
    ("on_ramdisk", "outcome"), [(False, Outcome.STATE_FULL), (True, Outcome.RAMDISK_FULL)]
)
@pytest.mark.parametrize("step", ["wait_until_written", "sync"])
def test_a_full_disk_leaves_no_partial_spool(
    rigs: MakeRig, monkeypatch: pytest.MonkeyPatch, step: str, on_ramdisk: bool, outcome: Outcome
) -> None:
    def refuse(files: spool.OpenFiles) -> None:
        full = rig.context.repo / "written-ahead" if on_ramdisk else files.paths[0]
        raise OSError(errno.ENOSPC, "No space left on device", str(full))

    rig, worker = rigs(export={"types": [".*"]})
    worker.prepare(rig.order(main="Short", before=""))
    worker.ingest(rig.raw())
    monkeypatch.setattr(spool.OpenFiles, step, refuse)
    with pytest.raises(VisitFailed, match="No space left") as caught:
        worker.process(Process(exposures=(FIRST,)))
    assert (caught.value.outcome, caught.value.retriable) == (outcome, True)
    assert list(rig.context.spool.iterdir()) == []


def test_a_spool_that_the_ramdisk_has_no_room_for_goes_to_the_state_disk(
    rigs: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More workers than fit have chosen the RAM disk at the same moment."""
    sync = spool.OpenFiles.sync

    def refuse_ramdisk(files: spool.OpenFiles) -> None:
        if Path(files.paths[0]).is_relative_to(rig.context.ramdisk_spool):
            raise OSError(errno.ENOSPC, "No space left on device")  # as of a write, which names no file
        sync(files)

    rig, worker = rigs(export={"types": [".*"], "ramdisk_max": 10**9})
    rig.context.ramdisk_spool.mkdir()
    monkeypatch.setattr(spool.OpenFiles, "sync", refuse_ramdisk)
    done = run_visit(rig, worker, 1)
    assert done.outcome == Outcome.SUCCEEDED
    assert Path(done.spool or "").parent == rig.context.spool
    spool.check_files(Path(done.spool or ""), read_manifest(Path(done.spool or "")))
    assert list(rig.context.ramdisk_spool.iterdir()) == []


def test_of_a_copy_to_a_full_disk_the_disk_of_the_copy_is_named(tmp_path: Path) -> None:
    ramdisk, disk = tmp_path / "ramdisk", tmp_path / "disk"
    # As shutil.copyfile raises it.
    error = OSError(errno.ENOSPC, "No space left", str(ramdisk / "output"), None, str(disk / "output"))
    with (
        pytest.raises(VisitFailed, match="no space left for the spool") as caught,
        spool_full_errors(ramdisk),
    ):
        raise error
    assert caught.value.outcome == Outcome.STATE_FULL


@ON_SQLITE
def test_a_half_deleted_spool_is_no_spool(
    exporter: CentralExporter, spools: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_off(folder: str) -> None:
        (Path(folder) / MANIFEST).unlink()
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(folders, "_remove_folder", break_off)
    with pytest.raises(OSError, match="Input/output error"):
        exporter.export(spools[:1])
    monkeypatch.undo()
    (left,) = set((spools[0].parent).iterdir()) - set(spools)
    assert NodeFolders.parse_spool_name(spools[0].name)
    assert not NodeFolders.parse_spool_name(left.name), "the node does not list it as a spool"
    assert exporter.export(spools[:1]).spools == (str(spools[0]),)
    assert not left.exists()


def test_what_an_interrupted_deletion_has_left_is_deleted_with_the_spool(tmp_path: Path) -> None:
    spool, left = tmp_path / "spool", tmp_path / "spool.done"
    for folder in (spool, spool / "packing", left):
        folder.mkdir()
        (folder / "file").write_text("content")
    remove_spool(spool)
    assert not list(tmp_path.iterdir())
    (left / "packing").mkdir(parents=True)
    remove_spool(spool)
    assert not list(tmp_path.iterdir())
    remove_spool(spool)


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
rename, renamed = os.rename, []
def last(source, target):
    rename(source, target)
    renamed.append(target)
    if len(renamed) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
os.rename = last
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


def test_what_waits_on_both_disks_is_measured_to_choose_one(tmp_path: Path) -> None:
    def spooled(folder: Path, size_bytes: int, age_s: float) -> None:
        (folder / "one").mkdir(parents=True, exist_ok=True)
        (folder / "one" / "file").write_bytes(bytes(size_bytes))
        os.utime(folder / "one", (time.time() - age_s,) * 2)

    spill, ramdisk = tmp_path / "spill", tmp_path / "ramdisk"
    config = ExportConfig(ramdisk_max=1000, spill_max=1000)
    assert choose_folder(spill, ramdisk, config) == spill, "the node has none"
    ramdisk.mkdir()
    assert choose_folder(spill, ramdisk, config) == ramdisk
    assert choose_folder(spill, ramdisk, ExportConfig()) == spill
    spooled(ramdisk, 999, 61)
    assert choose_folder(spill, ramdisk, config) == spill, "exports fail"
    spooled(spill, 1000, 61)
    assert choose_folder(spill, ramdisk, config) == ramdisk
    spooled(ramdisk, 1000, 0)
    assert choose_folder(spill, ramdisk, config) == spill


@ON_SQLITE
def test_outputs_on_the_ramdisk_are_exported(
    exporter: CentralExporter, rigs: MakeRig, central: Central
) -> None:
    rig, worker = rigs(export={"types": ["toy_.*"], "ramdisk_max": 10**9})
    rig.context.ramdisk_spool.mkdir()
    done = run_visit(rig, worker, 1)
    assert Path(done.spool or "").parent == rig.context.ramdisk_spool
    assert exporter.export([Path(done.spool or "")]).spools == (done.spool,)
    assert len(outputs(central, "toy_image")) == 1
    assert list(rig.context.ramdisk_spool.iterdir()) == []


@ON_SQLITE
def test_the_rest_of_a_spool_is_exported_whose_run_had_images_only(
    central: Central, spools: list[Path], tmp_path: Path
) -> None:
    manifest = read_manifest(spools[0])
    (run,) = {file.refs[0].run for file in manifest.files if type_of(file) == "toy_image"}
    files = tuple(each for each in manifest.files if each.refs[0].run != run or type_of(each) == "toy_image")
    changed = manifest.model_copy(update={"files": files})
    (spools[0] / MANIFEST).write_bytes(manifest_text(changed))
    config = ExportConfig(images=("toy_image",))
    exporter = CentralExporter(str(central.root), Clock(), "node1", tmp_path / "refused", config=config)
    with closing(exporter):
        assert exporter.give_up_images([spools[0].parent], 1).spools == {str(spools[0]): "toy_image"}
        exported = exporter.export(spools[:1])
    assert (exported.spools, exported.datasets) == ((str(spools[0]),), len(files) - 1)
    with Butler.from_config(str(central.root)) as butler:
        assert run not in butler.collections.get_info(CHAIN).children


def type_of(file: SpooledFile) -> str:
    assert file.refs[0].datasetType is not None
    return file.refs[0].datasetType.name


@ON_SQLITE
def test_of_too_much_that_waits_the_oldest_images_are_given_up_and_reported(
    central: Central, spools: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = ExportConfig(images=("toy_image",))
    exporter = CentralExporter(str(central.root), Clock(), "node1", tmp_path / "refused", config=config)
    away = central.root.rename(central.root.with_name("away"))
    shutil.move(spools[1], tmp_path)
    partial = shutil.copytree(spools[0], spools[0].with_name(f"{spools[0].name}.part"))
    with closing(exporter):
        os.utime(partial, (0, 0))
        os.utime(spools[0], (1, 1))
        size = sum(each.size_bytes for each in read_manifest(spools[0]).files if type_of(each) == "toy_image")
        given_up = exporter.give_up_images([spools[0].parent], 1)
        assert (given_up.spools, given_up.size_bytes) == ({str(spools[0]): "toy_image"}, size)
        assert f"the images of {spools[0].name} are given up" in caplog.text
        assert spools[2].name not in caplog.text, "that was enough"
        assert exporter.give_up_images([spools[0].parent], 0).spools == {}
        assert any(type_of(file) == "toy_image" for file in read_manifest(partial).files), (
            "it is being written"
        )
        away.rename(central.root)
        exported = exporter.export([spools[0], spools[2]])
    assert exported.refused == ()
    assert exported.given_up == {str(spools[0]): "toy_image"}
    assert [detector for detector, _ in outputs(central, "toy_image")] == [2]
    assert [detector for detector, _ in outputs(central, "toy_isr")] == [1, 2], "all others stay"


def write_to_full(path: Path, content: bytes) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


def test_a_manifest_that_became_longer_is_not_written_to_a_full_disk(
    spools: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    oldest, path = spools[0], spools[0] / MANIFEST
    os.utime(oldest, (1, 1))
    before, text = path.read_bytes(), manifest_text
    monkeypatch.setattr(spool, "manifest_text", lambda manifest: text(manifest).ljust(len(before) + 1))
    monkeypatch.setattr(Path, "write_bytes", write_to_full)
    given_up = spool.give_up_oldest_images([oldest.parent], spool.image_types(["toy_image"]), 1)
    assert str(oldest) not in given_up.spools
    assert f"the images of {oldest.name} cannot be given up" in caplog.text
    assert path.read_bytes() == before
    spool.check_files(oldest, read_manifest(oldest))


def test_images_are_given_up_on_a_disk_without_a_free_block(
    spools: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    oldest, path = spools[0], spools[0] / MANIFEST
    before = read_manifest(oldest)
    images = [file for file in before.files if type_of(file) == "toy_image"]
    place = path.stat()
    for _ in range(2):
        content = manifest_text(before)
        path.write_bytes(content)
        for file in images:
            (oldest / file.name).write_bytes(bytes(file.size_bytes))
        os.utime(oldest, (1, 1))
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", write_to_full)
            given_up = spool.give_up_oldest_images([oldest.parent], spool.image_types(["toy_image"]), 1)
        assert given_up.spools == {str(oldest): "toy_image"}
        after = read_manifest(oldest)
        assert after.files == tuple(file for file in before.files if file not in images)
        assert after.given_up == ("toy_image",)
        assert not any((oldest / file.name).exists() for file in images)
        assert path.stat().st_ino == place.st_ino
        assert path.stat().st_size == len(content)
        replace_manifest(oldest, after)
        assert read_manifest(oldest) == after
        place = path.stat()
