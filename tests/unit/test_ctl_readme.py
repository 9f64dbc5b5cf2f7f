# SPDX-License-Identifier: BSD-3-Clause
"""What README.rst says of ``ppctl`` and of exit codes is what they are."""

import re
from pathlib import Path

import click
import pytest

from ppdaemon.ctl import cli
from ppdaemon.states import ExitCode

README = Path(__file__).parents[2] / "README.rst"


def section(name: str) -> str:
    """Return the text between two markers."""
    found = re.search(
        rf"^\.\. {name}-begin$(.*)^\.\. {name}-end$", README.read_text(), re.MULTILINE | re.DOTALL
    )
    assert found, name
    return found[1]


def test_every_command_is_listed_and_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    commands = capsys.readouterr().out.partition("Commands:")[2]
    existing = set(re.findall(r"^  (\w+) ", commands, re.MULTILINE))
    assert set(re.findall(r"^``(\w+)[^`]*``  ", section("ppctl-commands"), re.MULTILINE)) == existing


def test_every_exit_code_is_listed_and_no_other() -> None:
    listed = [int(number) for number in re.findall(r"^(\d+) ", section("exit-codes"), re.MULTILINE)]
    assert listed == sorted(ExitCode)


def test_the_arguments_are_those_of_the_commands() -> None:
    group = cli._ppctl
    assert isinstance(group, click.Group)
    for name, arguments in re.findall(r"^``(\w+) ([A-Z.]+)``", section("ppctl-commands"), re.MULTILINE):
        (argument,) = [p for p in group.commands[name].params if isinstance(p, click.Argument)]
        assert argument.make_metavar(click.Context(group.commands[name])) == arguments
