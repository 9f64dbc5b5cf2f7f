# SPDX-License-Identifier: BSD-3-Clause
"""The central repo that a demonstration keeps for the next one."""

import fcntl
from pathlib import Path

import pytest
from lsst.daf.butler import Butler
from lsst.dax.apdb import Apdb

from ppdaemon.demo import keptcentral
from ppdaemon.demo.central import APDB_CONFIG
from ppdaemon.demo.keptcentral import (
    central_key,
    copy_central_repo,
    keep_central_repo,
    provide_central_repo,
)
from ppdaemon.middleware.export.mark import mark_datastore


@pytest.fixture
def made(monkeypatch):
    """Record the repos that are made, which are empty folders."""
    roots = []

    def make(root, **_):
        root.mkdir(parents=True)
        roots.append(root)
        return root

    monkeypatch.setattr(keptcentral, "make_central_repo", make)
    return roots


def keep(folder, bands=("r",)):
    return keep_central_repo(folder, bands, progress=print, done=lambda jobs, total: None)


def test_the_repo_is_made_once_and_older_ones_are_deleted(made, tmp_path):
    first, was_there = keep(tmp_path / "kept")
    assert (made, was_there) == ([first], False)
    assert keep(tmp_path / "kept") == (first, True)
    other, was_there = keep(tmp_path / "kept", ("g", "r"))
    assert (made, was_there) == ([first, other], False)
    assert list((tmp_path / "kept").iterdir()) == [other]


def test_another_demonstration_waits_and_an_interrupted_copy_is_no_repo(monkeypatch, made, tmp_path):
    def refused(*_):
        with (
            (tmp_path / "kept.lock").open() as lock,
            pytest.raises(BlockingIOError),
        ):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        raise KeyboardInterrupt

    def provide():
        return provide_central_repo(
            tmp_path / "kept", tmp_path / "copy", ("r",), progress=print, done=lambda jobs, total: None
        )

    monkeypatch.setattr(keptcentral, "make_apdb", refused)
    with pytest.raises(KeyboardInterrupt):
        provide()
    assert not (tmp_path / "copy").exists()
    monkeypatch.setattr(keptcentral, "make_apdb", lambda *_: None)
    assert provide()
    assert (tmp_path / "copy").is_dir()


@pytest.mark.parametrize("changed", ["source", "version", "bands"])
def test_the_name_changes_with_all_that_the_repo_is_made_of(changed, monkeypatch):
    before = central_key(("r",))
    assert central_key(("r",)) == before
    if changed == "source":
        read = Path.read_bytes
        monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b"#" * (path.name == "sky.py"))
    elif changed == "version":
        monkeypatch.setattr(keptcentral, "version", lambda name: "1" * (name == "lsst-images"))
    assert central_key(("g",) if changed == "bands" else ("r",)) != before


def test_a_copy_has_the_datasets_the_mark_and_an_alert_database_of_its_own(demo_central, tmp_path):
    copy_central_repo(demo_central, tmp_path / "copy")
    config = (tmp_path / "copy" / APDB_CONFIG).read_text()
    assert str(tmp_path / "copy") in config
    assert str(demo_central) not in config
    assert Apdb.from_uri(tmp_path / "copy" / APDB_CONFIG) is not None
    counts = []
    for root in (demo_central, tmp_path / "copy"):
        with Butler.from_config(root, writeable=True) as butler:
            refs = butler.query_all_datasets("*", find_first=False, limit=None)
            counts.append(len(refs))
            assert all(butler.stored_many(refs).values())
            mark_datastore(butler)  # of the same repo, else it would be refused
    assert counts[0] == counts[1] > 0
