# SPDX-License-Identifier: BSD-3-Clause
"""The commands ``ppctl catchup``: bring what failed in a night into the central repo, and process it there.

What needs the Butler is done by `ppdaemon.middleware.catchup` in a process of its own.
"""

import fcntl
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import click
import pydantic
from rich.console import Group, RenderableType
from rich.text import Text

from ppdaemon import journalfile
from ppdaemon.catchup import CatchupItem, CatchupOrder, CatchupReport, CatchupRow, run_of
from ppdaemon.clock import Clock, day_obs
from ppdaemon.config import NodeConfig
from ppdaemon.ctl.catchupfiles import CatchupUnit, units_of
from ppdaemon.ctl.catchuprun import Runner, run_program
from ppdaemon.ctl.client import Daemon
from ppdaemon.environment import CHILD_ENVIRONMENT
from ppdaemon.errors import ConfigError, NotRunning, PPDaemonError, Refused, Unavailable
from ppdaemon.folders import NodeFolders
from ppdaemon.journalfile import FailedVisit
from ppdaemon.pipelinenames import output_chain, override_target, pipeline_name
from ppdaemon.pointing import expected_begin
from ppdaemon.reports import CatchupState, RequeueRow, VisitsRequest
from ppdaemon.retries import WAITS_FOR_EXPORT, catchup_state, refusal_reason
from ppdaemon.selection import Selector
from ppdaemon.sqlitereader import reading
from ppdaemon.statelock import LockHeld, StateLock
from ppdaemon.states import ExitCode, Outcome
from ppdaemon.terminal import new_table, plain

__all__ = (
    "Catchup",
    "catchup_view",
    "failed_of",
    "folder_of",
    "items_of",
    "units_of_items",
    "with_overrides",
)

BUSY_S = 5.0
"""How long a mark waits for another program that reads or repairs the journal."""

_ROWS = pydantic.TypeAdapter(list[CatchupRow])
_STYLES = {"done": "green", "prepared": "green", "failed": "red", "refused": "yellow", "not_run": "red"}


def failed_of(config: NodeConfig, limit: int, selected: dict[str, Any]) -> list[FailedVisit]:
    """Return the failed visit-detectors in a node's journal, the newest first.

    Raises `~ppdaemon.errors.Refused` in shadow mode, and if the journal is of that mode.
    """
    journal = NodeFolders.of(config).journal
    with reading(journal) as db:
        if config.shadow.enabled or journalfile.is_shadow(db):
            raise Refused(
                f"{journal} is of a node in shadow mode: nothing of it is brought into a central repo, the"
                " present service has its visits; ppctl retry processes them again on the node"
            )
        return journalfile.failed_visits(db, VisitsRequest(limit=limit, failed=True, **selected))


def folder_of(config: NodeConfig, selected: dict[str, Any]) -> Path:
    """Return the default folder of the files of a catch-up: one for each night."""
    since = selected.get("since_tai")
    return NodeFolders.of(config).state / "catchup" / ("all" if since is None else str(day_obs(since)))


def items_of(
    config: NodeConfig, found: Iterable[FailedVisit], *, force: bool = False, pipeline: str | None = None
) -> tuple[list[CatchupItem], list[CatchupRow]]:
    """Return what is caught up, and what is not and why.

    The pipeline is the one that ran, else the first that the rules select, or the one that is passed.
    """
    selector = Selector(config.pipelines.preprocessing, config.pipelines.main)
    folders = NodeFolders.of(config)
    items: list[CatchupItem] = []
    refused: list[CatchupRow] = []
    for each in found:
        row = each.row
        choice = selector.choose(each.visit, [row.detector])[row.detector]
        paths = (pipeline,) if pipeline is not None else choice.pipelines.main
        path = next((p for p in paths if pipeline_name(p) == row.pipeline), paths[0] if paths else "")
        begin_tai, _ = expected_begin(each.visit, each.received_tai)
        chain = output_chain(row.instrument, day_obs(begin_tai))
        keys: dict[str, Any] = row.model_dump(include={"instrument", "group", "detector", "attempt"})
        keys["run"] = run_of(chain, pipeline_name(path))
        state = catchup_state(row)
        # What a catch-up that was ended has left is taken up again.
        text = (
            choice.reason if not path else refusal_reason(row, row.attempt, force=force or state == "running")
        )
        key = row.instrument, row.group, row.detector, row.attempt
        # Its spool was moved back from quarantine: the daemon exports it, also one that does not run now.
        if row.outcome == Outcome.SUCCEEDED and not (text or force) and folders.find_spool(*key).exists():
            text = WAITS_FOR_EXPORT
        if state == "done" and not force:
            mark = CatchupRow(**keys | {"run": row.figures["catchup"]["run"]}, pipeline="", state="done")
            refused.append(mark)
        elif text:
            refused.append(CatchupRow(**keys, pipeline=pipeline_name(path), state="refused", text=text))
        else:
            items.append(
                CatchupItem(
                    **keys,
                    visit=each.visit,
                    received_tai=each.received_tai,
                    exposures=each.exposures,
                    chain=chain,
                    pipeline=path,
                    preprocessing=() if pipeline is not None else choice.pipelines.preprocessing,
                )
            )
    return items, refused


def units_of_items(
    items: Iterable[CatchupItem], rows: Sequence[CatchupRow] | None = None
) -> list[CatchupUnit]:
    """Return the units of items in the order in which they run, with the exposures that are prepared, or
    those that the journal has.
    """
    prepared = None
    if rows is not None:
        prepared = {_key(row): row.exposures for row in rows if row.state == "prepared"}

    def units(items: Iterable[tuple[CatchupItem, Iterable[tuple[str, str]]]]) -> list[CatchupUnit]:
        return units_of(
            (
                each.instrument,
                each.chain,
                path,
                run,
                each.detector,
                each.exposures if prepared is None else prepared.get(_key(each), ()),
            )
            for each, steps in items
            for path, run in steps
        )

    items = tuple(items)
    return [
        *units((each, each.steps[:-1]) for each in items),
        *units((each, each.steps[-1:]) for each in items),
    ]


def with_overrides(units: Sequence[CatchupUnit], config: NodeConfig) -> list[CatchupUnit]:
    """Return units with the overrides of their tasks: ``pipetask`` refuses those of other pipelines.

    Raises `~ppdaemon.errors.ConfigError` if a pipeline file cannot be read.
    """
    overrides = config.pipelines.overrides
    if not (overrides and units):
        return list(units)
    paths = sorted({unit.pipeline for unit in units})
    command = [sys.executable, "-m", "ppdaemon.middleware.catchup", "targets", *paths]
    done = subprocess.run(command, capture_output=True, text=True, env=work_environment(config), check=False)
    if done.returncode:
        raise ConfigError(done.stderr.strip().splitlines()[-1:])
    targets = json.loads(done.stdout)
    return [
        replace(
            unit,
            overrides={
                key: value
                for key, value in overrides.items()
                if override_target(key) in targets[unit.pipeline]
            },
        )
        for unit in units
    ]


def _key(each: CatchupItem | CatchupRow) -> tuple[str, str, int]:
    return each.instrument, each.group, each.detector


def work_environment(config: NodeConfig) -> dict[str, str]:
    """Return the environment of processes that run pipelines: commands of this installation first."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**os.environ, **config.workers.environment, **CHILD_ENVIRONMENT, "PATH": path}


def ask_central(
    task: str, config: NodeConfig, items: Sequence[CatchupItem], folder: Path
) -> list[CatchupRow]:
    """Run a task of the inner process, ``prepare`` or ``check``, and return its rows."""
    if not items:
        return []
    order = CatchupOrder(config=config, items=tuple(items)).model_dump_json(by_alias=True).encode()
    command = [sys.executable, "-m", "ppdaemon.middleware.catchup", task]
    output, errors = folder / f"{task}.json", folder / f"{task}.log"
    code = run_program(command, work_environment(config), folder, output=output, errors=errors, given=order)
    if code:
        lines = errors.read_text(errors="replace").strip().splitlines() or [f"exit code {code}"]
        error = PPDaemonError(lines[-1].removeprefix("ppctl: "))
        error.exit_code = ExitCode(code) if code in set(ExitCode) else ExitCode.SOFTWARE
        raise error
    return _ROWS.validate_json(output.read_bytes())


@contextmanager
def _locked(state: Path, folder: Path) -> Iterator[None]:
    """Let one catch-up at a time process visits of a node, whatever folder it uses."""
    folder.mkdir(parents=True, exist_ok=True)
    # Those of two nights, or of a night and of all, have folders of their own and may have the same
    # visit-detectors. The state directory itself: who may only read it needs no file there.
    lock = os.open(state, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused("another catch-up of this node runs: wait until it ends, or end it") from None
        yield
    finally:
        os.close(lock)


@dataclass(frozen=True)
class Catchup:
    """A catch-up of one node in one folder."""

    daemon: Daemon
    config: NodeConfig
    folder: Path
    force: bool
    _told: set[str] = field(default_factory=set, init=False)
    """What was printed about the journal: it is written up to three times."""

    def prepare(self, items: Sequence[CatchupItem]) -> list[CatchupRow]:
        """Bring raws and visits into the central repo."""
        with _locked(self.config.node.state_dir, self.folder):
            return ask_central("prepare", self.config, items, self.folder)

    def check(self, items: Sequence[CatchupItem]) -> list[CatchupRow]:
        """Ask for outputs, and note what is done."""
        with _locked(self.config.node.state_dir, self.folder):
            rows = ask_central("check", self.config, items, self.folder)
            done = {_key(row) for row in rows if row.state == "done"}
            self._mark([item for item in items if _key(item) in done], "done")
            return rows

    def run(
        self, items: Sequence[CatchupItem], kind: Literal["bps", "pipetask"], cores: int, site: Path | None
    ) -> list[CatchupRow]:
        """Prepare, process and check visit-detectors; return one row for each.

        The daemon does not retry meanwhile what the catch-up has, and not at all what the catch-up has done.
        """
        environment = work_environment(self.config)
        runner = Runner(kind, self.config, environment, self.folder, cores, site, _report)
        with _locked(self.config.node.state_dir, self.folder):
            claimed, refused = self._claim(items)
            done: set[tuple[str, str, int]] = set()
            try:
                prepared = ask_central("prepare", self.config, claimed, self.folder)
                for unit in with_overrides(units_of_items(claimed, prepared), self.config):
                    runner.run(unit)
                ready = {_key(row) for row in prepared if row.state == "prepared"}
                rows = ask_central(
                    "check", self.config, [each for each in claimed if _key(each) in ready], self.folder
                )
                done = {_key(row) for row in rows if row.state == "done"}
            finally:
                self._mark([item for item in claimed if _key(item) in done], "done")
                # What may have written permanently stays with the catch-up.
                if not (runner.started and self.config.engine.no_return):
                    self._mark([item for item in claimed if _key(item) not in done], "released")
        rest = [row for row in prepared if row.state != "prepared"]
        steps = {_key(item): item.steps for item in claimed}
        new = {_key(row): row.new_raws for row in prepared}
        rows = [row.model_copy(update={"new_raws": new[_key(row)]}) for row in rows]
        return [*refused, *rest, *(_explained(row, steps[_key(row)], runner.reasons) for row in rows)]

    def _claim(self, items: Sequence[CatchupItem]) -> tuple[list[CatchupItem], list[CatchupRow]]:
        """Ask the daemon for visit-detectors; return those that the catch-up may process, and the others."""
        answers = {(row.instrument, group, row.detector): row for group, row in self._mark(items, "running")}
        claimed: list[CatchupItem] = []
        refused: list[CatchupRow] = []
        for item in items:
            answer = answers.get(_key(item))
            if answer is None or answer.attempt is not None:  # without a daemon there is no answer
                claimed.append(item)
                continue
            keys = item.model_dump(include={"instrument", "group", "detector", "attempt", "run"})
            name = pipeline_name(item.pipeline)
            refused.append(CatchupRow(**keys, pipeline=name, state="refused", text=answer.text))
        return claimed, refused

    def _mark(self, items: Sequence[CatchupItem], state: CatchupState) -> list[tuple[str, RequeueRow]]:
        """Note in the journal what the catch-up does; return the answers with their groups."""
        visits: dict[tuple[str, str, str], list[int]] = {}
        for item in items:
            visits.setdefault((item.instrument, item.group, item.run), []).append(item.detector)
        answers = []
        try:
            for (instrument, group, run), detectors in visits.items():
                mark: dict[str, Any] = {"state": state, "run": run, "force": self.force}
                rows = self.daemon.mark_catchup(instrument, group, tuple(detectors), **mark)
                answers += [(group, row) for row in rows]
        except NotRunning:
            # Not what the daemon has answered before it ended: it may have been refused.
            answered = {(row.instrument, group, row.detector) for group, row in answers}
            try:
                self._mark_in_journal([each for each in items if _key(each) not in answered], state)
            except Unavailable as error:
                if (text := str(error)) not in self._told:
                    self._told.add(text)
                    click.echo(f"ppctl: {text}; run later: ppctl catchup check", err=True)
        return answers

    def _mark_in_journal(self, items: Sequence[CatchupItem], state: CatchupState) -> None:
        """Note it without the daemon. Raises `~ppdaemon.errors.Unavailable` if this user must not write the
        journal, or the daemon is about to start.
        """
        folders = NodeFolders.of(self.config)
        why = "the daemon does not run, and its journal does not get what the catch-up does"
        if not folders.lock.exists():  # one that is created here may belong to another user than the daemon
            raise Unavailable(f"{why}: {folders.lock} does not exist")
        try:
            # The daemon reads all attempts at its start, and is the only writer from then on.
            with (
                closing(StateLock(folders.lock)),
                closing(sqlite3.connect(folders.journal, timeout=BUSY_S)) as db,
                db,
            ):
                db.execute("PRAGMA synchronous = FULL")
                for item in items:
                    key = (item.instrument, item.group, item.detector, item.attempt)
                    journalfile.mark_catchup(db, [key], state, item.run, Clock().tai())
        except LockHeld:
            raise Unavailable(f"{why}: it is starting") from None
        except (OSError, sqlite3.Error) as error:
            raise Unavailable(f"{why}: {error}") from None


def _report(text: str) -> None:
    click.echo(text, err=True)


def _explained(row: CatchupRow, steps: Iterable[tuple[str, str]], reasons: Mapping[str, str]) -> CatchupRow:
    """Add the first error in the logs if a task has not run."""
    why = next((reasons[run] for _, run in steps if reasons.get(run)), "")
    return row.model_copy(update={"text": f"{row.text}: {why}"}) if row.state == "not_run" and why else row


def catchup_view(report: CatchupReport) -> RenderableType:
    """Show what the central repo has of failed visit-detectors."""
    if not report.rows:
        return Text("nothing to catch up", style="dim")
    table = new_table("group", "det>", "pipeline", "state", "exposures", "new>", "why~")
    for row in report.rows:
        table.add_row(
            plain(row.group),
            str(row.detector),
            plain(row.pipeline),
            Text(row.state, style=_STYLES.get(row.state, "yellow")),
            " ".join(map(str, row.exposures)),
            str(row.new_raws or ""),
            Text(plain(row.text), overflow="fold"),
        )
    counts: dict[str, int] = {}
    for row in report.rows:
        counts[row.state] = counts.get(row.state, 0) + 1
    return Group(table, Text(", ".join(f"{number} {state}" for state, number in sorted(counts.items()))))
