# SPDX-License-Identifier: BSD-3-Clause
"""Taking possession of a node's folders."""

import errno
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from ppdaemon import folders as folders_module
from ppdaemon.errors import StateUnusable
from ppdaemon.folders import REFUSAL, NodeFolders, save_spools
from ppdaemon.node import lock as lock_module
from ppdaemon.node.lock import OWNER_VARIABLE, lock_node
from ppdaemon.node.visits.recovery import spools_left
from ppdaemon.testing.waiting import wait_until


@pytest.fixture
def folders(tmp_path):
    return NodeFolders(ramdisk=tmp_path / "ram" / "ppdaemon-n1", state=tmp_path / "state")


def test_a_claim_makes_the_folders_and_its_release_clears_the_ram_disk(folders):
    lock = lock_node(folders, "run")
    assert folders.slots.is_dir()
    assert folders.spool.is_dir()
    (folders.slots / "0000").mkdir()
    lock.release(folders)
    assert not folders.ramdisk.exists()
    assert folders.state.is_dir()


def test_a_second_claim_is_refused_with_the_holders_pid(folders):
    lock = lock_node(folders, "run")
    with pytest.raises(StateUnusable, match=f"process {os.getpid()}"):
        lock_node(folders, "other")
    lock.release(folders)
    lock_node(folders, "other").release(folders)


def test_two_nodes_of_one_name_do_not_share_a_ram_disk(folders, tmp_path):
    lock = lock_node(folders, "run")
    (folders.slots / "0000").mkdir()
    other = NodeFolders(folders.ramdisk, tmp_path / "other-state")
    with pytest.raises(
        StateUnusable, match=f"{folders.ramdisk} belongs to a running ppdaemon .process {os.getpid()}"
    ):
        lock_node(other, "other")
    assert (folders.slots / "0000").exists()
    lock.release(folders)
    lock_node(other, "other").release(other)


def test_temporary_files_of_killed_processes_are_deleted_but_not_what_a_link_leads_to(folders, tmp_path):
    lock_node(folders, "run").release(folders)
    (tmp_path / "other").mkdir()
    (folders.temporary / "butler-cache-dir-1" / "part").mkdir(parents=True)
    (folders.temporary / "names.json").touch()
    (folders.temporary / "link").symlink_to(tmp_path / "other")
    lock_node(folders, "next").release(folders)
    assert not list(folders.temporary.iterdir())
    assert (tmp_path / "other").is_dir()


def test_a_previous_run_is_cleared_and_strangers_are_kept(folders):
    """Fault 43: only what is ours is removed."""
    lock = lock_node(folders, "run")
    (folders.slots / "0000" / "repo").mkdir(parents=True)
    (folders.ramdisk / "warmup-x" / "template-partial").mkdir(parents=True)
    (folders.ramdisk / "stranger").mkdir()
    lock.unlock()  # as if killed
    lock = lock_node(folders, "next")
    assert (lock.removed, lock.unknown) == (1, (folders.ramdisk / "stranger",))
    assert list(folders.slots.iterdir()) == []
    lock.release(folders)
    assert list(folders.ramdisk.iterdir()) == [folders.ramdisk / "stranger"]


def is_marked(process, folders):
    """Return whether a process has the environment of its program already: a moment after it was started."""
    variable = f"{OWNER_VARIABLE}={folders.state}".encode()
    return variable in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")


def test_processes_of_a_previous_run_are_killed_and_those_of_other_nodes_are_not(folders):
    def sleeper(owner):
        return subprocess.Popen(["sleep", "60"], env=os.environ | {OWNER_VARIABLE: str(owner)})

    with sleeper(folders.state) as left, sleeper(folders.state / "other") as other:
        wait_until(lambda: is_marked(left, folders))
        lock_node(folders, "next").release(folders)
        assert left.wait(10) == -signal.SIGKILL
        assert other.poll() is None
        other.kill()


def test_incomplete_spools_of_a_dead_process_are_removed(folders):
    for name in ("DemoCam~g~0~1", "DemoCam~g~1~1.part", "DemoCam~g~2~1.done"):
        (folders.spool / name).mkdir(parents=True)
    folders.publish.mkdir()
    for name in ("DemoCam~g~0~1.json", "DemoCam~g~1~1.part"):
        (folders.publish / name).touch()
    lock = lock_node(folders, "run")
    assert [path.name for path in folders.spool.iterdir()] == ["DemoCam~g~0~1"]
    assert [path.name for path in folders.publish.iterdir()] == ["DemoCam~g~0~1.json"]
    lock.release(folders)


def test_a_folder_without_the_marker_is_not_touched(folders):
    """Fault 43: a folder of the same name that no daemon has made."""
    (folders.ramdisk / "slots" / "photos").mkdir(parents=True)
    with pytest.raises(StateUnusable, match="slots exists and no ppdaemon has created it"):
        lock_node(folders, "run")
    assert (folders.slots / "photos").exists()


def test_a_folder_that_cannot_be_created_is_named(tmp_path):
    (tmp_path / "state").write_text("a file")
    with pytest.raises(StateUnusable, match="state"):
        lock_node(NodeFolders(tmp_path / "ram", tmp_path / "state"), "run")


def test_files_are_deleted_only_when_the_processes_of_the_previous_run_have_ended(folders, monkeypatch):
    environment = os.environ | {OWNER_VARIABLE: str(folders.state)}
    left = [subprocess.Popen(["sleep", "60"], env=environment) for _ in range(5)]
    wait_until(lambda: all(is_marked(each, folders) for each in left))
    states = []

    def remove(node_folders):
        states.extend(Path(f"/proc/{each.pid}/stat").read_text().split()[2] for each in left)
        return 0

    monkeypatch.setattr(lock_module, "_remove_ramdisk_files", remove)
    folders.ramdisk.mkdir(parents=True, exist_ok=True)
    folders.marker.touch()
    lock_node(folders, "next").release(folders)
    assert set(states) == {"Z"}  # only their parent has not read their status
    for each in left:
        each.wait(10)


def test_a_process_that_does_not_end_delays_the_start_for_a_bounded_time(folders, monkeypatch, caplog):
    monkeypatch.setattr(lock_module, "KILL_S", 0.05)
    monkeypatch.setattr(lock_module.signal, "pidfd_send_signal", lambda descriptor, number: None)
    environment = os.environ | {OWNER_VARIABLE: str(folders.state)}
    with subprocess.Popen(["sleep", "60"], env=environment) as hanging:
        wait_until(lambda: is_marked(hanging, folders))
        lock_node(folders, "next").release(folders)
        assert f"do not end, and may still write: [{hanging.pid}]" in caplog.text
        hanging.kill()


def spool_of(folder: Path, name: str, text: str) -> Path:
    spool = folder / name
    spool.mkdir(parents=True)
    (spool / "manifest.json").write_text(text)
    return spool


@pytest.mark.parametrize("stopped", [True, False])
def test_spools_on_the_ramdisk_outlive_a_stop_and_a_crash(folders, stopped):
    lock = lock_node(folders, "life1")
    spool_of(folders.ramdisk_spool, "DemoCam~g~0~1", "complete")
    spool_of(folders.ramdisk_spool, "DemoCam~g~1~1.part", "half of one")
    spool_of(folders.ramdisk_spool, "DemoCam~g~2~1.done", "exported")
    if stopped:
        lock.release(folders)
        assert not folders.ramdisk.exists()
    else:
        lock.unlock()
    lock_node(folders, "life2").unlock()
    assert [path.name for path in folders.spool.iterdir()] == ["DemoCam~g~0~1"]
    assert (folders.spooled("DemoCam", "g", 0, 1) / "manifest.json").read_text() == "complete"
    assert list(folders.ramdisk_spool.iterdir()) == []


def test_a_spool_that_cannot_be_moved_stays_on_the_ramdisk(folders, monkeypatch, caplog):
    lock = lock_node(folders, "life1")
    spool = spool_of(folders.ramdisk_spool, "DemoCam~g~0~1", "complete")

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(folders_module, "sync", full)
    lock.release(folders)
    assert "spools stay on the RAM disk" in caplog.text
    with pytest.raises(StateUnusable, match="No space left"):
        lock_node(folders, "life2")
    assert (spool / "manifest.json").read_text() == "complete"
    assert list(folders.spool.iterdir()) == []


def test_a_spool_that_cannot_be_copied_is_named_with_the_reason(folders):
    lock_node(folders, "life1").unlock()
    spool = spool_of(folders.ramdisk_spool, "DemoCam~g~0~1", "complete")
    (spool / "output").symlink_to(spool / "gone")
    with pytest.raises(StateUnusable, match=f"{spool}.*No such file"):
        lock_node(folders, "life2")
    assert (spool / "manifest.json").read_text() == "complete"


def test_a_crash_while_a_moved_spool_is_deleted_does_not_replace_it_by_the_rest(folders, monkeypatch):
    name = folders.spooled("DemoCam", "g", 0, 1).name
    spool_of(folders.ramdisk_spool, name, "complete")

    def crash(folder):
        (Path(folder) / "manifest.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folders_module, "_remove_folder", crash)
        with pytest.raises(KeyboardInterrupt):
            save_spools(folders.ramdisk_spool, folders.spool)
    save_spools(folders.ramdisk_spool, folders.spool)
    assert [path.name for path in folders.spool.iterdir()] == [name]
    assert (folders.spool / name / "manifest.json").read_text() == "complete"
    assert not list(folders.ramdisk_spool.iterdir())


def test_a_spool_is_found_on_each_disk_and_missed_on_none(folders, tmp_path):
    folders = NodeFolders(folders.ramdisk, folders.state, tmp_path / "spill")
    key = ("DemoCam", "g", 0, 1)
    name = folders.spooled(*key).name
    assert folders.is_lost(*key)
    for parent in (folders.refused, *folders.disk_spools, folders.ramdisk_spool):
        spool_of(parent, name, "")
        assert not folders.is_lost(*key)
        shutil.rmtree(parent)
    spool = spool_of(folders.ramdisk_spool, name, "")
    assert folders.find_spool(*key) == spool


def test_spools_of_a_run_without_a_spill_folder_are_found_with_one(folders, tmp_path):
    spill = NodeFolders(folders.ramdisk, folders.state, tmp_path / "spill")
    lock_node(folders, "life1").unlock()
    spool_of(folders.spool, "DemoCam~g~0~1", "")
    spool_of(folders.spool, "DemoCam~g~1~1.part", "")
    returned = spool_of(folders.spool, "DemoCam~g~2~1", "")
    (returned / REFUSAL).touch()
    lock = lock_node(spill, "life2")
    spool_of(spill.ramdisk_spool, "DemoCam~g~3~1", "")
    spool_of(spill.spool, "DemoCam~g~4~1.done", "")
    lock.release(spill)
    lock_node(spill, "life3").unlock()
    keys, renamed = spools_left(spill)
    assert ({key.detector for key in keys}, renamed) == ({0, 2, 3}, [])
    assert [path.name for path in spill.spool.iterdir()] == ["DemoCam~g~3~1"]
    assert not list(folders.spool.glob("*.part"))
    assert spill.returned_spools() == [returned]


def test_spools_in_the_spill_folder_of_an_earlier_configuration_are_found(folders, tmp_path):
    def start(name):
        spill = NodeFolders(folders.ramdisk, folders.state, tmp_path / name)
        lock = lock_node(spill, "life")
        lock.unlock()
        return spill, lock.away, [key.detector for key in spools_left(spill)[0]]

    first, away, found = start("first")
    assert (away, found) == ((), [])
    spool = spool_of(first.spool, "DemoCam~g~0~1", "")
    second, away, found = start("second")
    assert (away, found) == ((), [0])
    assert second.find_spool("DemoCam", "g", 0, 1) == spool
    first.spool.rename(tmp_path / "not mounted")
    assert start("second")[1:] == ((first.spool,), [])
    assert start("first")[1:] == ((first.spool,), []), "nor is it called there because it was made"
    first.spool.rmdir()
    (tmp_path / "not mounted").rename(first.spool)
    assert start("second")[1:] == ((), [0])
    assert start("second")[1:] == ((), [0]), "not once only"
    folders.spills.write_text(f"\n{folders.spills.read_text()}\n \n")
    assert start("second")[1:] == ((), [0]), "a person has edited it"
    shutil.rmtree(spool)
    assert start("second")[1:] == ((), [])
    assert folders.spills.read_text() == f"{second.spool}\n", "it is empty, and may go"
    without = NodeFolders(folders.ramdisk, folders.state)
    assert without.disk_spools == (without.spool, second.spool)
    spool = spool_of(second.spool, "DemoCam~g~0~1", "")
    for _ in range(2):
        without = NodeFolders(folders.ramdisk, folders.state)
        lock_node(without, "life").unlock()
        assert [key.detector for key in spools_left(without)[0]] == [0]
    shutil.rmtree(spool)
    lock_node(without, "life").unlock()
    assert not folders.spills.read_text()


def test_an_earlier_spill_folder_that_is_read_only_does_not_end_the_start(folders, tmp_path, monkeypatch):
    first = NodeFolders(folders.ramdisk, folders.state, tmp_path / "first")
    lock_node(first, "life").unlock()
    spool_of(first.spool, "DemoCam~g~0~1.part", "")

    rmtree = shutil.rmtree

    def refuse(path, *args):
        if path.parent == first.spool:
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        rmtree(path, *args)

    monkeypatch.setattr(os, "access", lambda path, mode: path != first.spool)
    monkeypatch.setattr(lock_module.shutil, "rmtree", refuse)
    lock = lock_node(NodeFolders(folders.ramdisk, folders.state, tmp_path / "second"), "life")
    lock.unlock()
    assert lock.away == (first.spool,)


def test_a_full_disk_does_not_forget_the_spill_folders(folders, tmp_path, monkeypatch):
    spills = [NodeFolders(folders.ramdisk, folders.state, tmp_path / name) for name in ("first", "second")]
    lock_node(spills[0], "life").unlock()
    spool_of(spills[0].spool, "DemoCam~g~0~1", "")

    def write(path, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folders_module, "write_durably", write)
    second = NodeFolders(folders.ramdisk, folders.state, tmp_path / "second")
    lock_node(second, "life").unlock()
    assert folders.spills.read_text() == f"{spills[0].spool}\n"
    assert [key.detector for key in spools_left(second)[0]] == [0]


def test_the_spill_folder_is_that_of_the_node(tmp_path, config):
    export = config.export.model_copy(update={"spill": tmp_path})
    folders = NodeFolders.of(config.model_copy(update={"export": export}))
    assert folders.spool == tmp_path / f"ppdaemon-{config.node.name}"
    assert folders.disk_spools == (folders.spool, config.node.state_dir / "spool")
