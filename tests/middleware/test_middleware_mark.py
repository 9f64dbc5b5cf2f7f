# SPDX-License-Identifier: BSD-3-Clause
"""The mark of the central repo's datastore: without it nothing is registered, and no spool is deleted."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from centrals import ON_SQLITE, Central, outputs
from lsst.daf.butler import Butler
from toycam import NAME

from ppdaemon.clock import Clock
from ppdaemon.errors import Refused, Unavailable
from ppdaemon.middleware.export import register
from ppdaemon.middleware.export.exporter import CentralExporter
from ppdaemon.middleware.export.mark import ID, MARK, mark_datastore

pytest_plugins = ("toyfixtures", "dbfixtures")


@pytest.fixture
def exporter(central: Central, tmp_path: Path) -> Iterator[CentralExporter]:
    """Yield the exporter into that repo."""
    exporter = CentralExporter(str(central.root), Clock(), "node1", tmp_path / "refused")
    yield exporter
    exporter.close()


def refuses(exporter: CentralExporter, central: Central, spools: list[Path], reason: str) -> None:
    """Check that nothing is exported."""
    with pytest.raises(Unavailable, match=reason):
        exporter.export(spools)
    assert all(spool.exists() for spool in spools)
    assert outputs_if_any(central) == []


def outputs_if_any(central: Central) -> list[Any]:
    with Butler.from_config(str(central.root)) as butler:
        return butler.query_datasets("toy_model", f"{NAME}/prompt/*", find_first=False, explain=False)


def unmark(central: Central) -> str:
    text = (central.root / MARK).read_text()
    (central.root / MARK).unlink()
    return text


def test_without_the_mark_nothing_is_exported_and_the_command_makes_it_again(
    exporter: CentralExporter, central: Central, spools: list[Path]
) -> None:
    before = unmark(central)
    refuses(exporter, central, spools, f"has no mark {MARK}: nothing is exported.*run 'ppctl export init'")
    assert exporter.mark_datastore().endswith("is marked now")
    assert (central.root / MARK).read_text() == before, "the repo has its id still"
    assert exporter.mark_datastore().endswith("was marked before")
    assert len(exporter.export(spools).spools) == 3


def test_a_cut_mark_is_written_again_and_an_unreadable_one_is_named(
    exporter: CentralExporter, central: Central, spools: list[Path]
) -> None:
    before = unmark(central)
    (central.root / MARK).touch()
    refuses(exporter, central, spools, "has no mark")
    assert exporter.mark_datastore().endswith("is marked now")
    assert (central.root / MARK).read_text() == before
    (central.root / MARK).write_bytes(b"\xff\xfe")
    refuses(exporter, central, spools, "is that of another repo")
    with pytest.raises(Refused, match=f"its {MARK} has the id .* delete that file and run the command again"):
        exporter.mark_datastore()


@ON_SQLITE
def test_a_repo_of_a_version_without_marks_needs_the_command(
    exporter: CentralExporter, central: Central, spools: list[Path]
) -> None:
    unmark(central)
    with Butler.from_config(str(central.root), writeable=True) as butler:
        butler.registry.removeCollection(ID)
    refuses(exporter, central, spools, "run 'ppctl export init'")
    exporter.mark_datastore()
    assert len(exporter.export(spools).spools) == 3


@ON_SQLITE
def test_a_folder_without_the_files_of_the_repo_is_not_marked(
    exporter: CentralExporter, central: Central, spools: list[Path]
) -> None:
    """The filesystem is not mounted: its mount point is an empty folder."""
    away = central.root.with_name("away")
    away.mkdir()
    for path in list(central.root.iterdir()):
        if path.name not in ("butler.yaml", "gen3.sqlite3"):
            path.rename(away / path.name)
    with pytest.raises(Refused, match=r"none of \d+ files of the repo is there, such as .*: is it mounted\?"):
        exporter.mark_datastore()
    refuses(exporter, central, spools, "has no mark")
    assert not [path for path in central.root.iterdir() if path.is_dir()], "no folder was made"
    for path in away.iterdir():
        path.rename(central.root / path.name)
    assert len(exporter.export(spools).spools) == 3


@ON_SQLITE
def test_the_datastore_of_another_repo_is_not_written_to(
    exporter: CentralExporter, central: Central, spools: list[Path]
) -> None:
    unmark(central)
    (central.root / MARK).write_text("of-another-repo\n")
    refuses(exporter, central, spools, "is that of another repo: its mark .* has the id of-another-repo")
    with pytest.raises(Refused, match=r"another repo: its .* has the id 'of-another-repo', not "):
        exporter.mark_datastore()


@ON_SQLITE
def test_a_mark_that_a_crash_of_the_host_has_emptied_is_written_again(
    exporter: CentralExporter, central: Central, spools: list[Path]
) -> None:
    before = (central.root / MARK).read_text()
    (central.root / MARK).write_text("")
    refuses(exporter, central, spools, "run 'ppctl export init'")
    assert exporter.mark_datastore().endswith("is marked now")
    assert (central.root / MARK).read_text() == before


@ON_SQLITE
def test_a_datastore_that_goes_away_while_files_are_copied_is_noticed(
    exporter: CentralExporter, central: Central, spools: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = register.copy_checked

    def copy_and_go(*args: Any) -> None:
        (central.root / MARK).unlink(missing_ok=True)
        copy(*args)

    before = (central.root / MARK).read_text()
    monkeypatch.setattr(register, "copy_checked", copy_and_go)
    refuses(exporter, central, spools, "has no mark")
    monkeypatch.undo()
    assert not list(central.root.glob("incoming-*"))
    (central.root / MARK).write_text(before)
    assert len(exporter.export(spools).spools) == 3
    assert [detector for detector, _ in outputs(central, "toy_image")] == [1, 2]


def test_a_new_repo_is_marked_by_its_first_export(tmp_path: Path, spools: list[Path]) -> None:
    root = tmp_path / "new"
    Butler.makeRepo(str(root))
    exporter = CentralExporter(str(root), Clock(), "node1", tmp_path / "refused")
    exported = exporter.export(spools)
    exporter.close()
    assert len(exported.spools) + len(exported.refused) == 3
    assert (root / MARK).exists()


def test_two_hosts_may_mark_at_once(tmp_path: Path) -> None:
    root = tmp_path / "new"
    Butler.makeRepo(str(root))
    with (
        Butler.from_config(str(root), writeable=True) as one,
        Butler.from_config(str(root), writeable=True) as other,
    ):
        assert mark_datastore(one).endswith("is marked now")
        assert mark_datastore(other).endswith("was marked before")
