# SPDX-License-Identifier: BSD-3-Clause
"""What ``ppctl install-files`` writes, what it leaves alone, and what it deletes."""

import os
import re
from pathlib import Path, PurePosixPath
from pkgutil import resolve_name

import click
import pytest

from ppdaemon.ctl import cli
from ppdaemon.ctl.installfiles import RECORD, Decision, Installation, InstalledFile, all_files, decide
from ppdaemon.ctl.manpages import PROGRAMS, commands_of, completion, man_page

ROOT = Path(__file__).parents[2]
PREFIX = PurePosixPath("/srv/pp")
CONFIG = "etc/ppdaemon/a.yaml"
UNIT = "usr/local/lib/systemd/system/a.service"
V1, V2 = [
    [InstalledFile(path, f"{path} {number}".encode()) for path in (CONFIG, UNIT)] for number in ("one", "two")
]


def digest(text: str) -> str:
    return InstalledFile("", text.encode()).digest


@pytest.mark.parametrize(
    ("found", "recorded", "decision"),
    [
        (None, None, Decision.WRITE),
        ("new", None, Decision.SAME),
        ("new", "old", Decision.SAME),
        ("old", "old", Decision.WRITE),
        ("site", None, Decision.BESIDE),
        ("site", "old", Decision.BESIDE),
        ("site", "new", Decision.CHANGED),
        (None, "new", Decision.DELETED),
        (None, "old", Decision.DELETED),
    ],
)
def test_what_the_site_changed_is_left_alone(
    found: str | None, recorded: str | None, decision: Decision
) -> None:
    digests = [None if text is None else digest(text) for text in (found, recorded)]
    assert decide(InstalledFile(CONFIG, b"new"), *digests) is decision


def test_a_deleted_unit_is_written_again() -> None:
    assert decide(InstalledFile(UNIT, b"new"), None, digest("old")) is Decision.WRITE


def tree(folder: Path) -> dict[str, str]:
    """Return all files and empty folders."""
    return {
        str(path.relative_to(folder)): path.read_text() if path.is_file() else ""
        for path in folder.rglob("*")
        if path.is_file() or not any(path.iterdir())
    }


def install(folder: Path, files: list[InstalledFile]) -> list[str]:
    return [line.replace(f"{folder}/", "") for line in Installation(folder).install(files)]


def remove(folder: Path) -> list[str]:
    return [line.replace(f"{folder}/", "") for line in Installation(folder).remove()]


def test_files_are_installed_upgraded_and_removed(tmp_path: Path) -> None:
    (tmp_path / "usr" / "local").mkdir(parents=True)
    assert install(tmp_path, V1) == [f"wrote {CONFIG}", f"wrote {UNIT}"]
    assert install(tmp_path, V1) == []
    assert install(tmp_path, V2) == [f"wrote {CONFIG}", f"wrote {UNIT}"]
    assert (tmp_path / UNIT).read_bytes() == V2[1].content
    assert remove(tmp_path) == [f"deleted {CONFIG}", f"deleted {UNIT}"]
    assert tree(tmp_path) == {"usr/local": ""}
    assert remove(tmp_path) == []


def test_edited_configuration_survives_upgrades_and_removal(tmp_path: Path) -> None:
    install(tmp_path, V1)
    (tmp_path / CONFIG).write_text("edited")
    assert install(tmp_path, V1) == [f"left {CONFIG}, which was changed here"]
    assert install(tmp_path, V2) == [
        f"left {CONFIG}, which was changed here; the new version is {CONFIG}.new",
        f"wrote {UNIT}",
    ]
    assert (tmp_path / f"{CONFIG}.new").read_bytes() == V2[0].content
    assert install(tmp_path, V2) == [f"left {CONFIG}, which was changed here"]
    remove(tmp_path)
    assert tree(tmp_path) == {CONFIG: "edited"}


def test_a_new_version_that_was_taken_over_is_not_offered_again(tmp_path: Path) -> None:
    install(tmp_path, V1)
    (tmp_path / CONFIG).write_text("edited")
    install(tmp_path, V2)
    (tmp_path / CONFIG).write_bytes(V2[0].content)
    assert install(tmp_path, V2) == [f"deleted {CONFIG}.new"]


def test_deleted_configuration_stays_deleted(tmp_path: Path) -> None:
    install(tmp_path, V1)
    for path in (CONFIG, UNIT):
        (tmp_path / path).unlink()
    assert install(tmp_path, V2) == [f"left out {CONFIG}, which was deleted here", f"wrote {UNIT}"]
    assert not (tmp_path / CONFIG).exists()


@pytest.mark.parametrize("installed", [True, False])
def test_a_dangling_link_is_left_and_not_written_through(tmp_path: Path, installed: bool) -> None:
    """The site may have its configuration on a disk that is not mounted now."""
    folder, target = tmp_path / "root", tmp_path / "unmounted" / "a.yaml"
    path = folder / CONFIG
    if installed:
        install(folder, [InstalledFile(CONFIG, b"1")])
        path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    target.parent.mkdir()
    left = f"left {CONFIG}, which was changed here"
    new = [InstalledFile(CONFIG, b"2")]
    assert install(folder, new) == [f"{left}; the new version is {CONFIG}.new"]
    assert install(folder, new) == [left]
    assert left in remove(folder)
    assert path.is_symlink()
    assert not target.exists()


def test_files_that_a_version_no_longer_has_are_deleted(tmp_path: Path) -> None:
    install(tmp_path, V1)
    assert install(tmp_path, V1[:1]) == [f"deleted {UNIT}"]


def test_modes_do_not_depend_on_the_umask_and_those_of_the_site_stay(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        install(tmp_path, V1)
        (tmp_path / CONFIG).chmod(0o640)
        install(tmp_path, V2)
    finally:
        os.umask(before)
    modes = {path: (tmp_path / path).stat().st_mode & 0o777 for path in (CONFIG, UNIT, "usr", RECORD)}
    assert modes == {CONFIG: 0o640, UNIT: 0o644, "usr": 0o755, RECORD: 0o644}


def test_a_dry_run_lists_the_same_and_changes_nothing(tmp_path: Path) -> None:
    target = tmp_path / "root"
    dry = list(Installation(target, dry_run=True).install(V1))
    assert not target.exists()
    assert dry == list(Installation(target).install(V1))
    before = tree(target)
    assert len(list(Installation(target, dry_run=True).remove())) == len(V1)
    assert tree(target) == before


def test_every_unit_and_example_is_installed() -> None:
    installed = {PurePosixPath(file.path).name for file in all_files(PREFIX)}
    shipped = [*(ROOT / "systemd").rglob("*"), *(ROOT / "etc").glob("*.yaml")]
    assert {path.name for path in shipped if path.is_file()} <= installed


def test_no_two_files_have_one_place() -> None:
    paths = [file.path for file in all_files(PREFIX)]
    assert len(set(paths)) == len(paths)


def test_units_and_commands_start_the_programs_of_the_prefix() -> None:
    files = {file.path: file for file in all_files(PREFIX)}
    for program in ("ppdaemon", "pprelay"):
        unit = files[f"usr/local/lib/systemd/system/{program}.service"].content.decode()
        assert f"\nExecStart={PREFIX}/bin/{program} run " in unit
    assert "/opt/" not in "".join(file.content.decode() for file in files.values())
    assert files["usr/local/bin/ppctl"].mode == 0o755


def test_programs_below_usr_local_are_not_replaced() -> None:
    paths = [file.path for file in all_files(PurePosixPath("/usr/local"))]
    assert not [path for path in paths if path.startswith("usr/local/bin/")]


def test_the_pipelines_of_the_example_are_installed() -> None:
    named = set(re.findall(r"/(etc/ppdaemon/pipelines/\S+)", (ROOT / "etc" / "ppdaemon.yaml").read_text()))
    assert named
    assert named <= {file.path for file in all_files(PREFIX)}


def test_each_program_has_a_man_page_and_completion() -> None:
    scripts = re.findall(r'"(\w+) = ppdaemon\.', (ROOT / "setup.py").read_text())
    assert set(scripts) == set(PROGRAMS)


@pytest.mark.parametrize("program", PROGRAMS)
def test_fish_gets_the_whole_help_of_an_option(program: str) -> None:
    """Click's script cuts it at its first comma."""
    assert "(string split --max 1 " in completion(program, "fish")


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_man_page_has_every_command_and_option(program: str) -> None:
    text = man_page(program).replace("\\-", "-")
    command: click.Command = resolve_name(PROGRAMS[program][0])
    commands = commands_of(command)
    assert re.findall(r'^\.SS "(.+)"$', text, re.MULTILINE) == list(commands)
    for each in (command, *commands.values()):
        for parameter in each.params:
            if isinstance(parameter, click.Option):
                assert parameter.opts[-1] in text


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main(["install-files", *map(str, arguments)])
    assert isinstance(end.value.code, int)
    return end.value.code


def test_the_command_prints_each_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--prefix", PREFIX) == 0
    written = capsys.readouterr().out.splitlines()
    assert sorted(written) == sorted(f"wrote {tmp_path / file.path}" for file in all_files(PREFIX))
    assert run(tmp_path, "--prefix", PREFIX) == 0
    assert capsys.readouterr().out == ""
    assert run(tmp_path, "--remove") == 0
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [(("--prefix", "bin"), 64, "absolute path"), (("--prefix", PREFIX), 73, "Not a directory")],
)
def test_what_cannot_be_done_is_one_line(
    tmp_path: Path, arguments: tuple[object, ...], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "usr").write_text("a file")
    assert run(tmp_path, *arguments) == code
    assert message in capsys.readouterr().err
