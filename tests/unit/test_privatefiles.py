# SPDX-License-Identifier: BSD-3-Clause
"""Folders and files that other users cannot change, replace or read."""

import os
import stat
from contextlib import contextmanager
from pathlib import Path

import pytest

from ppdaemon.config import load_node
from ppdaemon.errors import ConfigError, StateUnusable
from ppdaemon.folders import NodeFolders
from ppdaemon.node.lock import lock_node
from ppdaemon.privatefiles import (
    UnsafePath,
    check_path,
    check_socket_folder,
    make_folder,
    open_private,
    write_private,
)
from ppdaemon.statelock import lock_state
from ppdaemon.states import ExitCode
from ppdaemon.testing.node import node_config

NOBODY = 65534
ONLY_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


@contextmanager
def umask(value):
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


@pytest.fixture
def folders(tmp_path):
    return NodeFolders(ramdisk=tmp_path / "ram" / "ppdaemon-n1", state=tmp_path / "state")


@pytest.mark.parametrize("mask", [0, 0o022, 0o077])
def test_modes_do_not_depend_on_the_umask(tmp_path, mask):
    with umask(mask):
        make_folder(tmp_path / "a" / "b")
        write_private(tmp_path / "secret", "text")
        os.close(open_private(tmp_path / "file", os.O_CREAT | os.O_WRONLY))
    assert mode(tmp_path / "a") == mode(tmp_path / "a" / "b") == 0o750
    assert mode(tmp_path / "secret") == 0o600
    assert mode(tmp_path / "file") & 0o027 == 0


def test_existing_folders_and_files_are_closed_to_others(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a").chmod(0o2755)
    (tmp_path / "b").mkdir()
    (tmp_path / "b").chmod(0o700)
    (tmp_path / "secret").write_text("older")
    (tmp_path / "secret").chmod(0o664)
    for name in ("a", "b"):
        make_folder(tmp_path / name)
    write_private(tmp_path / "secret", "text")
    assert mode(tmp_path / "a") == 0o2750
    assert mode(tmp_path / "b") == 0o700  # nothing is opened
    assert (mode(tmp_path / "secret"), (tmp_path / "secret").read_text()) == (0o600, "text")


@pytest.mark.parametrize("bits", [0o770, 0o707, 0o777, 0o1777])
def test_a_folder_in_which_others_may_write_is_refused(tmp_path, bits):
    folder = tmp_path / "taken"
    folder.mkdir()
    folder.chmod(bits)
    with pytest.raises(UnsafePath, match=r"may write to .*chmod go-w") as refused:
        make_folder(folder)
    assert refused.value.exit_code == ExitCode.PERMISSION
    assert mode(folder) == bits


@ONLY_ROOT
def test_a_folder_of_another_user_is_refused(tmp_path):
    folder = tmp_path / "taken"
    folder.mkdir()
    os.chown(folder, NOBODY, NOBODY)
    with pytest.raises(UnsafePath, match=r"belongs to user \w+, but this program runs as user") as refused:
        make_folder(folder)
    assert refused.value.exit_code == ExitCode.PERMISSION


def test_a_link_is_refused_with_the_path_to_write_instead(tmp_path):
    (tmp_path / "real" / "ram").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for path, instead in ((tmp_path / "link", "real"), (tmp_path / "link" / "ram", "real/ram")):
        with pytest.raises(UnsafePath, match=rf"is a symbolic link.*write {tmp_path / instead} ") as refused:
            make_folder(path)
        assert refused.value.exit_code == ExitCode.CONFIG


def test_a_file_that_is_a_link_is_not_written(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic link"):
        write_private(tmp_path / "link", "text")
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_folder_that_every_user_can_replace_is_refused_unless_it_is_sticky(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(UnsafePath, match=f"chmod o-w {tmp_path}"):
        check_path(tmp_path / "state")
    tmp_path.chmod(0o1777)
    check_path(tmp_path / "state")


def test_a_folder_of_sockets_is_open_and_may_be_sticky(tmp_path):
    check_socket_folder(tmp_path / "run")
    assert mode(tmp_path / "run") == 0o755
    (tmp_path / "run").chmod(0o775)
    with pytest.raises(UnsafePath, match="may write to"):
        check_socket_folder(tmp_path / "run")
    check_socket_folder(Path("/tmp").resolve())


def test_everything_that_a_node_makes_is_closed_to_others(folders):
    with umask(0):
        lock = lock_node(folders, "run")
    made = [folders.ramdisk.parent, folders.ramdisk, *folders.ramdisk.iterdir()]
    made += [folders.state, *folders.state.iterdir()]
    assert [path for path in made if mode(path) & 0o027] == []
    lock.release(folders)


def test_a_node_does_not_delete_behind_a_link(folders, tmp_path):
    """Fault 68: neither its folder nor a folder in it may be a link."""
    (tmp_path / "home" / "slots" / "photos").mkdir(parents=True)
    (tmp_path / "home" / "ppdaemon.json").touch()
    folders.ramdisk.parent.mkdir()
    folders.ramdisk.symlink_to(tmp_path / "home")
    with pytest.raises(UnsafePath, match="symbolic link"):
        lock_node(folders, "run")
    folders.ramdisk.unlink()

    lock_node(folders, "run").unlock()  # as if killed
    folders.slots.rmdir()
    folders.slots.symlink_to(tmp_path / "home" / "slots")
    lock_node(folders, "next").release(folders)
    assert (tmp_path / "home" / "slots" / "photos").is_dir()


@ONLY_ROOT
def test_a_ram_disk_folder_prepared_by_another_user_is_refused(folders):
    """Fault 68."""
    folders.ramdisk.mkdir(parents=True)
    folders.marker.touch()
    os.chown(folders.ramdisk, NOBODY, NOBODY)
    with pytest.raises(StateUnusable, match="belongs to user"):
        lock_node(folders, "run")


@ONLY_ROOT
def test_a_ram_disk_of_another_user_is_refused(folders):
    folders.ramdisk.parent.mkdir()
    folders.ramdisk.parent.chmod(0o1777)
    lock_node(folders, "first").unlock()
    os.chown(folders.ramdisk.parent, NOBODY, NOBODY)
    with pytest.raises(UnsafePath, match=rf"{folders.ramdisk.parent} belongs to user nobody"):
        lock_node(folders, "second")


def test_a_state_folder_of_a_relay_is_checked_too(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o777)
    with pytest.raises(UnsafePath, match="may write to"):
        lock_state(tmp_path / "state", "pprelay")


def test_check_config_refuses_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "ram").symlink_to(tmp_path / "disk")
    config = node_config(tmp_path, tmp_path)
    assert config["node"]["ramdisk"] == str(tmp_path / "ram")
    (tmp_path / "node.yaml").write_text(str(config))
    with pytest.raises(ConfigError, match=rf"node.yaml:1: node.ramdisk: .* write {tmp_path / 'disk'} "):
        load_node(tmp_path / "node.yaml", {})
