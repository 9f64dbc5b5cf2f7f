# SPDX-License-Identifier: BSD-3-Clause
"""The command ``ppctl check``: runs all checks, each with a time limit, and shows what they found."""

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import click
import pydantic
from rich.console import RenderableType
from rich.text import Text

from ppdaemon.config import NodeConfig, load_node
from ppdaemon.ctl import hostchecks, nodechecks
from ppdaemon.ctl.client import Daemon
from ppdaemon.ctl.hostchecks import CheckFinding
from ppdaemon.errors import ConfigError
from ppdaemon.reports import SCHEMA
from ppdaemon.states import ExitCode
from ppdaemon.terminal import new_table, plain
from ppdaemon.wire import Model

__all__ = ("Check", "CheckReport", "check_view", "exit_code_of", "run_checks", "run_limited")

SHORT_S, LONG_S = 15.0, 180.0
"""Time limits: a disk that works answers in a second; imports and a database take a minute or two."""
_FINDINGS = pydantic.TypeAdapter[list[CheckFinding]](list[CheckFinding])
_STYLES = {"ok": "green", "skipped": "dim", "warning": "yellow", "error": "red"}


type Check = tuple[str, Callable[[], Iterable[CheckFinding]], float]
"""What is checked, how, and the time limit in seconds."""


class CheckReport(Model):
    """The findings of ``ppctl check``."""

    schema_version: int = SCHEMA
    """Version of the output of ``ppctl --json``."""
    config: str
    """Path of the node's configuration."""
    findings: tuple[CheckFinding, ...]
    """What was found, in the order of the checks."""


def run_checks(path: Path, daemon: Daemon) -> CheckReport:
    """Run all checks of a node; those that need its configuration only if the file can be used."""
    progress = _progress if sys.stderr.isatty() else _silent
    findings: list[CheckFinding] = []
    checks: list[Check] = [
        ("versions", hostchecks.check_versions, SHORT_S),
        ("clock", hostchecks.check_clock, SHORT_S),
        ("configuration and pipelines", partial(nodechecks.check_configuration, path), LONG_S),
    ]
    with contextlib.suppress(ConfigError):  # each line of it is a finding of the check above
        checks += _of_config(path, load_node(path, os.environ, writing=False))
    checks.append(("daemon", partial(nodechecks.check_daemon, daemon), SHORT_S))
    for name, check, limit_s in checks:
        progress(name)
        findings += run_limited(name, check, limit_s)
    progress("")
    return CheckReport(config=str(path), findings=tuple(findings))


def _of_config(path: Path, config: NodeConfig) -> list[Check]:
    short: list[tuple[str, Callable[[NodeConfig], Iterable[CheckFinding]]]] = [
        ("user", nodechecks.check_user),
        ("RAM disk", hostchecks.check_ramdisk),
        ("state disk", hostchecks.check_state_disk),
        ("spill", hostchecks.check_spill),
        ("raws", hostchecks.check_inotify),
        ("limits", hostchecks.check_limits),
        ("keys", nodechecks.check_keys),
        ("relay", nodechecks.check_relay),
        ("redis", nodechecks.check_redis),
    ]
    checks: list[Check] = [(name, partial(check, config), SHORT_S) for name, check in short]
    if config.butler is not None:
        checks.append(("central repo", partial(nodechecks.check_repo, config), LONG_S))
        check = partial(nodechecks.check_calibrations, path, config)
        checks.append(("inputs for tonight", check, LONG_S * len(config.node.instruments)))
    return checks


def run_limited(
    name: str, check: Callable[[], Iterable[CheckFinding]], limit_s: float
) -> Sequence[CheckFinding]:
    """Return what a check finds within a time limit.

    It runs in a child process: a filesystem that does not answer blocks a thread, and a program with
    such a thread cannot end.
    """
    sys.stdout.flush()
    reader, writer = os.pipe()
    if not (pid := os.fork()):
        _run_in_child(name, check, writer)
    os.setpgid(pid, pid)  # here and in the child: in the one that runs first
    os.close(writer)
    try:
        data = _read_until(reader, time.monotonic() + limit_s)
    finally:
        os.close(reader)
        # Also programs that it has started; none is waited for, because it may be unkillable.
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, os.WNOHANG)
    if data is None:
        action = "see whether a filesystem or a database hangs"
        return [CheckFinding(item=name, level="error", text=f"no answer in {limit_s:g} s", action=action)]
    if not data:
        return [CheckFinding(item=name, level="error", text="the process that checks it crashed")]
    return _FINDINGS.validate_json(data)


def _run_in_child(name: str, check: Callable[[], Iterable[CheckFinding]], writer: int) -> None:
    try:
        os.setpgid(0, 0)
        try:
            findings = list(check())
        except Exception as error:
            text = f"cannot be checked: {type(error).__name__}: {plain(error)}"
            findings = [CheckFinding(item=name, level="error", text=text)]
        with open(writer, "wb") as file:
            file.write(_FINDINGS.dump_json(findings))
    finally:
        os._exit(0)


def _read_until(reader: int, deadline: float) -> bytes | None:
    """Return what is written to a pipe until it is closed; `None` if that is not before a deadline."""
    poll, data = select.poll(), b""
    poll.register(reader, select.POLLIN)
    while poll.poll(max(0.0, deadline - time.monotonic()) * 1e3):
        part = os.read(reader, 65_536)
        if not part:
            return data
        data += part
    return None


def _progress(name: str) -> None:
    """Show on one line what is checked now; without a thread, because checks are forked."""
    click.echo(f"\r\033[K{f'checking: {name} ...' if name else ''}", nl=False, err=True)


def _silent(name: str) -> None:
    """Show nothing."""


def check_view(report: CheckReport) -> RenderableType:
    """Show a line for each finding, and below it what to do."""
    table = new_table("item", "", "found~")
    for found in report.findings:
        text = Text(plain(found.text))
        if found.action:
            text.append(f"\n-> {plain(found.action)}", "bold" if found.level == "error" else "")
        table.add_row(plain(found.item), Text(found.level, style=_STYLES[found.level]), text)
    return table


def exit_code_of(findings: Sequence[CheckFinding]) -> ExitCode:
    """Return the exit code: warnings count as 0."""
    errors = {found.item for found in findings if found.level == "error"}
    if "configuration" in errors:
        return ExitCode.CONFIG
    return ExitCode.FAILED if errors else ExitCode.OK
