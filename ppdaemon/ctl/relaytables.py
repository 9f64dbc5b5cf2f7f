# SPDX-License-Identifier: BSD-3-Clause
"""Terminal output of ``ppctl --relay`` and ``--bridge``: status, nodes, visits. Does not print."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ppdaemon.clock import tai_iso
from ppdaemon.ctl.tables import STATE_STYLES, counted, problem_lines
from ppdaemon.detectorlist import ranges
from ppdaemon.reports import (
    BridgeStatusReport,
    RelayDetectorRow,
    RelayHostsReport,
    RelayNodeRow,
    RelayStatusReport,
    RelayVisitRow,
)
from ppdaemon.states import BAD_OUTCOMES, Outcome
from ppdaemon.terminal import duration, new_table, number_of, plain

__all__ = (
    "bridge_status_view",
    "hosts_view",
    "needed_view",
    "relay_status_view",
    "relay_visit_view",
    "relay_visits_table",
)

_NODE_STYLES = {"ready": "green", "disconnected": "red"}


def relay_status_view(report: RelayStatusReport) -> RenderableType:
    """Show the state of a relay."""
    return _status_view("pprelay", report.relay, report, _lines(report))


def bridge_status_view(report: BridgeStatusReport) -> RenderableType:
    """Show the state of a bridge."""
    return _status_view("ppbridge", report.bridge, report, _bridge_lines(report))


def _status_view(
    program: str,
    name: str,
    report: RelayStatusReport | BridgeStatusReport,
    lines: Iterable[tuple[str, str]],
) -> RenderableType:
    head = Text.assemble(
        (f"{program} ", "bold"),
        (plain(name), "bold cyan"),
        "  ",
        (report.state, STATE_STYLES[report.state]),
        f"  {plain(report.text)}",
    )
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for line in lines:
        grid.add_row(*line)
    return Group(head, *problem_lines(report), grid)


def _bridge_lines(report: BridgeStatusReport) -> Iterator[tuple[str, str]]:
    """Yield name and value of each line below the first one."""
    up = duration(report.tai - report.started_tai)
    yield "process", f"{report.pid}, version {plain(report.version)}, up {up}"
    if report.listening:
        yield "HTTP", f"{plain(report.listening)}, {number_of(report.connections, 'connection')}"
    age = "none" if report.last_notice_s is None else f"{duration(report.last_notice_s)} ago"
    yield "last notice", f"{age}, number {report.last}"
    yield (
        "ring",
        f"{plain(report.ring)}, {number_of(report.depth, 'notice')} from {report.first} on,"
        f" {report.ring_mb:.1f} MB, {report.backlog} to write",
    )
    for row in report.nodes:
        behind = "has all" if not row.behind else f"lacks {row.behind}"
        yield "node", f"{plain(row.node)} {behind}, asked {duration(row.asked_s)} ago"
    if any(report.counters.values()):
        yield "counted", counted(sorted(report.counters.items()))


def _lines(report: RelayStatusReport) -> Iterator[tuple[str, str]]:
    """Yield name and value of each line below the first one."""
    up = duration(report.tai - report.started_tai)
    yield "process", f"{report.pid}, version {plain(report.version)}, up {up}"
    yield "nodes", counted(sorted(report.nodes.items()))
    yield "visits", f"{report.open_visits} open, with {report.open_detectors} open detectors"
    for instrument, numbers in _by_instrument(report).items():
        oldest = min((row for row in report.waits if row.instrument == instrument), key=lambda r: r.since_tai)
        yield (
            "waiting",
            f"{plain(instrument)} {ranges(numbers)}, since {tai_iso(oldest.since_tai)} TAI"
            f" ({duration(report.tai - oldest.since_tai)})",
        )
    for instrument, detectors in report.unserved.items():
        yield "not served", f"{plain(instrument)} {ranges(detectors)}"
    for key, names in report.switched_off.items():
        if names:
            yield "switched off", f"{key}: {', '.join(map(plain, names))}"
    yield "hosts", needed_text(report.hosts)
    for instrument, suffice in report.spares_suffice.items():
        answer = "enough for one whole visit" if suffice else "not enough for one whole visit"
        yield "idle spares", f"{answer} of {plain(instrument)}"
    size = "" if report.ledger_mb is None else f", {report.ledger_mb:.1f} MB"
    yield "ledger", f"{plain(report.ledger)}{size}, {report.ledger_backlog} changes to write"
    if report.reloaded_tai is not None:
        yield "configuration", f"reloaded {duration(report.tai - report.reloaded_tai)} ago"
    if any(report.counters.values()):
        yield "counted", counted(sorted(report.counters.items()))


def _by_instrument(report: RelayStatusReport) -> Mapping[str, list[int]]:
    found: dict[str, list[int]] = {}
    for row in report.waits:
        found.setdefault(row.instrument, []).append(row.detector)
    return found


def hosts_view(rows: Sequence[RelayNodeRow]) -> RenderableType:
    """Show the nodes of a relay, and below them what each has as its worst problem."""
    if not rows:
        return Text("no nodes", style="dim")
    table = new_table("node", "state", "has>", "of>", "last message>", "lost>", "version", "detectors~")
    for row in rows:
        state = row.state + (", draining" if row.drained and not row.connected else "")
        state += ", spare" if row.spare else ""
        state += f", {plain(row.own_state)}" if row.own_state not in ("", "running", row.state) else ""
        table.add_row(
            plain(row.node),
            Text(state, style=_NODE_STYLES.get(row.state, "yellow")),
            str(row.open),
            str(row.capacity),
            "" if row.last_message_s is None else f"{duration(row.last_message_s)} ago",
            str(row.messages_lost or ""),
            plain(row.version),
            ", ".join(f"{plain(name)} {ids}" for name, ids in sorted(row.detectors.items())),
        )
    problems = [
        Text(f"{plain(row.node)} {plain(row.own_state)}: {plain(row.problem)}", style="red")
        for row in rows
        if row.problem
    ]
    return Group(table, *problems)


def needed_view(report: RelayHostsReport) -> RenderableType:
    """Show how many nodes the cadence needs, and why."""
    table = new_table("instrument", "cadence>", "detectors>", "time at a node>", "slots needed>")
    for row in report.instruments:
        times = f"{row.cadence_s:.1f} s", str(row.detectors), f"{row.visit_s:.1f} s", str(row.slots)
        table.add_row(plain(row.instrument), *times)
    return Group(*([table] if report.instruments else []), Text(needed_text(report), style="bold"))


def needed_text(report: RelayHostsReport) -> str:
    """Return in one line how many nodes are needed, and how many there are."""
    ready = f"{number_of(report.ready, 'node')} ready with {number_of(report.slots, 'slot')}"
    if report.needed is None:
        return f"{ready}; not known how many are needed: no visits come, or too few have ended"
    change = "enough"
    if report.missing:
        change = f"add {report.missing}" if report.missing > 0 else f"{-report.missing} may be released"
    return f"{number_of(report.needed, 'node')} needed, {ready}: {change}"


def relay_visits_table(rows: Sequence[RelayVisitRow]) -> RenderableType:
    """Show visits, one line each. Times are TAI."""
    if not rows:
        return Text("no visits", style="dim")
    table = new_table("group", "instrument", "received", "dets>", "state~")
    for row in rows:
        canceled = " (canceled)" if row.cancelled else ""
        bad = any(outcome in BAD_OUTCOMES for outcome in row.outcomes)
        table.add_row(
            plain(row.group) + canceled,
            plain(row.instrument),
            tai_iso(row.received_tai)[:19],  # without milliseconds
            str(row.detectors),
            Text(", ").join(
                Text(counted(sorted(counts.items())), style)
                for counts, style in ((row.open, "yellow"), (row.outcomes, "red" if bad else "green"))
                if counts
            ),
        )
    return table


def relay_visit_view(rows: Sequence[RelayDetectorRow]) -> RenderableType:
    """Show the detectors of the visits of one group; `rows` must not be empty."""
    table = new_table("det>", "state", "node", "try>", "reason~")
    for row in rows:
        style = "yellow" if row.outcome is None else "green" if row.outcome == Outcome.SUCCEEDED else "red"
        table.add_row(
            str(row.detector),
            Text(row.outcome or row.state, style=style),
            plain(row.node),
            str(row.attempt),
            plain(row.reason),
        )
    first = rows[0]
    counts = Counter(row.outcome or row.state for row in rows)
    received = f"{plain(first.instrument)} {plain(first.group)}, received {tai_iso(first.received_tai)} TAI"
    return Group(Text(received, style="bold"), Text(counted(sorted(counts.items()))), table)
