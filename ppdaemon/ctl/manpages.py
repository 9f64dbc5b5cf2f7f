# SPDX-License-Identifier: BSD-3-Clause
"""Man pages and completion scripts of the programs, made from their click commands."""

import re
from collections.abc import Iterator
from pkgutil import resolve_name

import click
from click.shell_completion import get_completion_class

from ppdaemon import __version__

__all__ = ("PROGRAMS", "commands_of", "completion", "man_page")

PROGRAMS = {
    "ppdaemon": ("ppdaemon.node.app:cli", 8, ("/etc/ppdaemon/ppdaemon.yaml", "/var/lib/ppdaemon/node")),
    "pprelay": ("ppdaemon.relay.app:_command", 8, ("/etc/ppdaemon/pprelay.yaml", "/var/lib/ppdaemon/relay")),
    "ppbridge": (
        "ppdaemon.bridge.app:_command",
        8,
        ("/etc/ppdaemon/ppbridge.yaml", "/var/lib/ppdaemon/bridge"),
    ),
    "ppweb": ("ppdaemon.web.app:command", 8, ("/run/ppdaemon/control.sock",)),
    "ppctl": ("ppdaemon.ctl.cli:_ppctl", 1, ("/run/ppdaemon/control.sock",)),
    "send_visit": ("ppdaemon.ctl.send:command", 1, ()),
}
"""For each program: its command, the section of its man page, and the files it uses."""


def _command(program: str) -> click.Command:
    # By name: ctl imports no other program, and this needs no more than their options.
    command: click.Command = resolve_name(PROGRAMS[program][0])
    return command


def commands_of(command: click.Command) -> dict[str, click.Command]:
    """Return the commands of a program by name, sorted; none if it is one command itself."""
    if not isinstance(command, click.Group):
        return {}
    context = click.Context(command)
    found = {name: command.get_command(context, name) for name in sorted(command.list_commands(context))}
    return {name: each for name, each in found.items() if each is not None}


def completion(program: str, shell: str) -> str:
    """Return the script with which a shell completes a program's commands and options."""
    kind = get_completion_class(shell)
    assert kind is not None, shell
    source = kind(_command(program), {}, program, f"_{program.upper()}_COMPLETE").source()
    # Click separates kind and text by a comma, and reads only what is before the next one.
    return source.replace('string split "," $', 'string split --max 1 "," $')


def man_page(program: str) -> str:
    """Return the man page of a program with all its commands, as roff."""
    command = _command(program)
    _, section, files = PROGRAMS[program]
    context = click.Context(command, info_name=program, **command.context_settings)
    lines = [
        f'.TH {program.upper()} {section} "" "ppdaemon {__version__}" "ppdaemon"',
        ".SH NAME",
        f"{program} \\- {_escape(command.get_short_help_str(200))}",
        ".SH SYNOPSIS",
        *_synopsis(program, command, context),
        ".SH DESCRIPTION",
        *_paragraphs(command),
        ".SH OPTIONS",
        *_options(command, context),
    ]
    if commands := commands_of(command):
        lines.append(".SH COMMANDS")
        for name, each in commands.items():
            inner = click.Context(each, info_name=name, parent=context)
            lines += [f'.SS "{name}"', *_synopsis(f"{program} {name}", each, inner), ".PP"]
            lines += [*_paragraphs(each), *_options(each, inner)]
    if files:
        lines += [".SH FILES", *(line for path in files for line in (f".I {_escape(path)}", ".br"))]
    others = ", ".join(f"{name}({part[1]})" for name, part in PROGRAMS.items() if name != program)
    return "\n".join([*lines, ".SH SEE ALSO", others, ""])


def _escape(text: str) -> str:
    """Return text that roff prints as it is."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^(?=[.'])", r"\\&", text, flags=re.MULTILINE)


def _synopsis(name: str, command: click.Command, context: click.Context) -> list[str]:
    return [f".B {_escape(name)}", _escape(" ".join(command.collect_usage_pieces(context)))]


def _paragraphs(command: click.Command) -> Iterator[str]:
    for number, text in enumerate((command.help or "").strip().split("\n\n")):
        yield from ([".PP"] if number else []) + [_escape(text)]


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record and record[1]:  # an argument is explained in the description
            yield from (".TP", f".B {_escape(record[0])}", _escape(record[1]))
